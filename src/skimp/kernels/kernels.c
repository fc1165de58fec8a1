/* Kernels for decoding on CPUs, for whichever of three instruction sets the processor has.
 *
 * Each instruction set compiles the same templates (*.h) with its own vector width and target
 * attribute, so that one object serves every processor of its architecture. abi.h is the
 * interface. */
#include "abi.h"

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline)) TARGET
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, ISA)
#define FN(name) JOIN(JOIN(name, TYPE), ISA)
enum {
    MOST_INPUTS = 16,
    AT_ONCE = 8, /* inputs whose sums fit the registers */
    STREAMS = 4, /* weight rows likewise */
    NEAR_BYTES = 16384, /* of inputs that stay in the first cache beside the rows that pass */
    GROUP = 8, /* rows that take turns on them */
    /* The processor sees by itself that a row goes on, but where the work on a line fills its
     * queues it looks too little ahead: then lines this far on are asked for. */
    FETCH_INPUTS = 3,
    FETCH_BYTES = 4096,
    FETCH_ROWS = 2, /* of a list: its rows are asked for so many early */
    TURN = 128, /* cache entries that stay near while all queries and columns pass */
    FETCH_KEYS = 32, /* entries that are asked for so many early */
    FETCH_VALUES = 64,
};

/* Working memory of a thread, kept from call to call; good until its next call of this. */
static pthread_key_t room_key;
static pthread_once_t room_once = PTHREAD_ONCE_INIT;
typedef struct {
    void *memory;
    size_t size;
} thread_room;

static void free_room(void *pointer) {
    free(((thread_room *)pointer)->memory);
    free(pointer);
}
static void make_key(void) { pthread_key_create(&room_key, free_room); }

static void *scratch(size_t size) {
    pthread_once(&room_once, make_key);
    thread_room *room = pthread_getspecific(room_key);
    if (!room) {
        room = calloc(1, sizeof *room);
        if (!room) return NULL;
        pthread_setspecific(room_key, room);
    }
    if (room->size < size) {
        free(room->memory);
        room->size = (size + size / 2 + 4095) / 4096 * 4096;
        room->memory = aligned_alloc(64, room->size);
        if (!room->memory) room->size = 0;
    }
    return room->memory;
}

#include "cache.h"
#include "pool.h"

/* What the parts of a product with neurons share: sums [parts, M, width]. */
typedef struct {
    const neurons_args *args;
    float *sums;
    int64_t width;
} neurons_work;

EXPORT int skimp_linear(const linear_args *a);

#define ISA portable
#define TARGET
#define VW 8
#define FMA 0
#define DOTS 0
#include "variant.h"

#ifdef __x86_64__
#define ISA avx2
#define TARGET __attribute__((target("avx2,fma")))
#define VW 8
#define FMA 1
#define DOTS 0
#include "variant.h"

#define ISA avx512bf16
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define VW 16
#define FMA 1
#define DOTS 1
#include "variant.h"
#endif

typedef struct {
    kernel *linear[2], *neurons[2], *neurons_end[2], *attend[2], *norm[2], *screen[2]; /* by dtype */
} kernels;
#define TABLE_OF(name, isa) {(kernel *)name##_f32_##isa, (kernel *)name##_bf16_##isa}
#define TABLE(isa)                                                                    \
    {TABLE_OF(linear, isa), TABLE_OF(neurons, isa), TABLE_OF(neurons_end, isa),       \
     TABLE_OF(attend, isa), TABLE_OF(norm, isa), TABLE_OF(screen, isa)}
static const kernels tables[] = {
    TABLE(portable),
#ifdef __x86_64__
    TABLE(avx2),
    TABLE(avx512bf16),
#endif
};

static int best_isa(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return ISA_PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bf16"))
        return ISA_AVX512BF16;
    return ISA_AVX2;
#else
    return ISA_PORTABLE;
#endif
}

static const kernels *chosen = &tables[ISA_PORTABLE];

/* Take an instruction set, or the best one that the processor has below it; say which. */
EXPORT int skimp_isa(int wanted) {
    const int best = best_isa(), taken = wanted < 0 || wanted > best ? best : wanted;
    chosen = &tables[taken];
    return taken;
}

EXPORT int skimp_abi(void) { return ABI; }

static int64_t size_of(int64_t dtype) { return dtype ? 2 : 4; }

static int outside(const int32_t *rows, int64_t count, int64_t height) {
    int bad = 0;
    for (int64_t i = 0; i < count; i++) bad |= (rows[i] < 0) | (rows[i] >= height);
    return bad;
}

EXPORT int skimp_linear(const linear_args *a) {
    for (int64_t j = 0; j < a->jobs && a->rows; j++)
        if (outside(a->rows, a->job[j].count, a->job[j].height)) return FAIL_INDEX;
    int64_t rows = 0;
    for (int64_t j = 0; j < a->jobs; j++) rows += a->job[j].count;
    const int parts = parts_of(a->threads, rows * a->k * size_of(a->dtype));
    return in_parts(chosen->linear[a->dtype], a, a->threads, parts);
}

EXPORT int skimp_neurons(const neurons_args *a) {
    if (a->rows && outside(a->rows, a->r, a->height)) return FAIL_INDEX;
    const int parts = parts_of(a->threads, a->r * a->n * size_of(a->dtype));
    const int64_t width = (a->n + 31) / 32 * 32; /* whole steps of any instruction set */
    neurons_work work = {a, scratch((size_t)(parts * a->m * width) * sizeof(float)), width};
    if (!work.sums) return FAIL_MEMORY;
    in_parts(chosen->neurons[a->dtype], &work, a->threads, parts);
    return chosen->neurons_end[a->dtype](&work, 0, parts);
}

EXPORT int skimp_attend(const attend_args *a) {
    const int64_t numbers = a->b * a->hk * a->s * (a->d + a->dv);
    const int parts = parts_of(a->threads, numbers * size_of(a->dtype));
    return in_parts(chosen->attend[a->dtype], a, a->threads, parts);
}

EXPORT int skimp_norm(const norm_args *a) { return chosen->norm[a->dtype](a, 0, 1); }

EXPORT int skimp_screen(const screen_args *a) {
    const linear_args near = {a->z, NULL, a->m, a->k, a->dtype, a->threads, 1,
                              {{a->centres, a->offsets, a->near, a->kinds + 1, a->k, a->kinds + 1}}};
    const int failed = skimp_linear(&near);
    return failed ? failed : chosen->screen[a->dtype](a, 0, 1);
}

EXPORT int skimp_store(const store_args *a) {
    for (int64_t i = 0; i < a->q; i++)
        if (a->index[i] < 0 || a->index[i] >= a->s) return FAIL_INDEX;
    for (int64_t b = 0; b < a->b; b++)
        for (int64_t h = 0; h < a->h; h++) {
            char *to = (char *)a->cache + b * a->cache_b + h * a->cache_h;
            const char *from = (const char *)a->fresh + b * a->fresh_b + h * a->fresh_h;
            for (int64_t i = 0; i < a->q; i++)
                memcpy(to + a->index[i] * a->cache_s, from + i * a->fresh_q, (size_t)a->bytes);
        }
    return 0;
}

#include "program.h"
