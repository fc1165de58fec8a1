/* Threads that help with a call if they are at hand, and are not waited for if they are not.
 *
 * A call's work is cut into parts, and whoever is free takes the next. The caller takes parts too
 * and waits only for those that a helper has begun, so a processor that is busy with something else
 * costs its help and no more. (Threads that all have to arrive at a barrier, as OpenMP's do, stand
 * still together when one of them does not get to run.) A helper looks out for work for a moment
 * after the last call, since a decode step is many calls in a row, and then sleeps. */
#include <sched.h>
#include <stdatomic.h>

enum { MOST_HELPERS = 63, PARTS_EACH = 4, LEAST_PART = 96 << 10 /* bytes */ };
enum { LOOKS = 20000 /* some 100 us of looking out for work */ };

typedef int kernel(const void *args, int part, int parts);

/* `ticket`: number of the call in the upper half, next part in the lower. A helper that read a
 * call's fields while they were changed fails to draw, since the ticket has changed too. */
static struct {
    _Atomic uint64_t ticket;
    _Atomic(kernel *) run;
    _Atomic(const void *) args;
    _Atomic int parts, done, failed, helpers, asleep;
    atomic_flag busy;
    int started;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} pool = {.busy = ATOMIC_FLAG_INIT, .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

static inline void breathe(void) {
#ifdef __x86_64__
    _mm_pause();
#else
    sched_yield();
#endif
}

/* Draw one part of the present call and do it; 0 if there is none. */
static int take_part(int helper) {
    uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
    kernel *run = atomic_load(&pool.run);
    const void *args = atomic_load(&pool.args);
    const int parts = atomic_load(&pool.parts), part = (int)(uint32_t)ticket;
    if (part >= parts || helper > atomic_load(&pool.helpers)) return 0;
    if (!atomic_compare_exchange_strong(&pool.ticket, &ticket, ticket + 1)) return 1;
    const int failed = run(args, part, parts);
    if (failed) atomic_fetch_or(&pool.failed, failed);
    atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
    return 1;
}

static int work_left(void) {
    return (int)(uint32_t)atomic_load(&pool.ticket) < atomic_load(&pool.parts);
}

static void *help(void *number) {
    const int helper = (int)(intptr_t)number;
    for (int looks = 0;; looks++) {
        if (take_part(helper)) looks = 0;
        breathe();
        if (looks < LOOKS) continue;
        pthread_mutex_lock(&pool.lock);
        atomic_fetch_add(&pool.asleep, 1);
        if (!work_left()) pthread_cond_wait(&pool.wake, &pool.lock);
        atomic_fetch_sub(&pool.asleep, 1);
        pthread_mutex_unlock(&pool.lock);
        looks = 0;
    }
    return NULL;
}

/* Helpers are started once and never end; a process that forks goes on without them. */
static void start_helpers(int wanted) {
    if (wanted > MOST_HELPERS) wanted = MOST_HELPERS;
    while (pool.started < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)(pool.started + 1))) return;
        pthread_detach(thread);
        pool.started++;
    }
}

/* Into how many parts a call that reads so many bytes is cut; the same every time, since the order
 * of a sum may hang on it. */
static int parts_of(int64_t threads, int64_t bytes) {
    const int64_t most = threads * PARTS_EACH, fits = bytes / LEAST_PART;
    const int64_t parts = fits < most ? fits : most;
    return threads < 2 || parts < 2 ? 1 : (int)parts;
}

/* Run all parts of a kernel; the FAIL_ codes of all of them. */
static int in_parts(kernel *run, const void *args, int64_t threads, int parts) {
    if (parts < 2 || atomic_flag_test_and_set(&pool.busy)) { /* busy: another thread's call runs */
        int failed = 0;
        for (int part = 0; part < parts; part++) failed |= run(args, part, parts);
        return failed;
    }
    start_helpers((int)threads - 1);
    const uint64_t call = (atomic_load(&pool.ticket) >> 32) + 1;
    atomic_store(&pool.ticket, call << 32 | INT32_MAX); /* no part to draw while this changes */
    atomic_store(&pool.run, run);
    atomic_store(&pool.args, args);
    atomic_store(&pool.helpers, (int)threads - 1);
    atomic_store(&pool.failed, 0);
    atomic_store(&pool.done, 0);
    atomic_store(&pool.parts, parts);
    atomic_store_explicit(&pool.ticket, call << 32, memory_order_release);
    if (atomic_load(&pool.asleep)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    while (take_part(0)) {
    }
    for (int looks = 0; atomic_load_explicit(&pool.done, memory_order_acquire) < parts; looks++) {
        if (looks < LOOKS) breathe();
        else sched_yield(); /* a helper lost its processor in the middle of a part */
    }
    const int failed = atomic_load(&pool.failed);
    atomic_flag_clear(&pool.busy);
    return failed;
}
