/* What a caller hands over: one struct of 64-bit fields a call, so that packing it is quick.
 *
 * Pointers may be null where a comment says so. Counts are elements, strides too, and the last
 * dimension of everything is contiguous. `dtype`: 0 float32, 1 bfloat16. `threads`: 1 stays in
 * the calling thread. Every entry point returns 0, or a FAIL_ code with nothing written. */
#ifndef SKIMP_ABI_H
#define SKIMP_ABI_H
#include <stdint.h>

enum { ABI = 5 }; /* goes up with every change below */
enum { FAIL_INDEX = 1, FAIL_MEMORY = 2 };
enum { ISA_PORTABLE = 0, ISA_AVX2 = 1, ISA_AVX512BF16 = 2 };
enum { LINEAR_JOBS = 4 };

typedef struct {
    const void *weight, *bias; /* [rows of weight, K], [rows of weight] or null */
    void *out;                 /* [M, count] */
    int64_t count, stride;     /* rows asked for; elements from one row to the next */
    int64_t height;            /* rows that the weight has */
} linear_job;

typedef struct {
    const void *x;       /* [M, K] */
    const int32_t *rows; /* [count of every job] or null: all rows */
    int64_t m, k, dtype, threads, jobs;
    linear_job job[LINEAR_JOBS];
} linear_args;

typedef struct {
    const void *h, *weight; /* [M, R], [height, N] */
    const int32_t *rows;    /* [R] or null: row r is r */
    void *out;              /* [M, N] */
    int64_t m, r, n, stride, height, dtype, threads;
    const int32_t *order; /* [R] a permutation, by the inputs that use a row, or null */
} neurons_args;

typedef struct {
    const void *q, *k, *v;     /* [B, Hq, Q, D], [B, Hk, S, D], [B, Hk, S, Dv] */
    const uint8_t *valid;      /* [B, Q, S], 0 or 1 */
    const float *sinks;        /* [Hq] or null */
    void *out;                 /* [B, Q, Hq, Dv] */
    int64_t b, hq, hk, q_count, s, d, dv;
    int64_t q_b, q_h, q_q;     /* strides */
    int64_t k_b, k_h, k_s, v_b, v_h, v_s, valid_b, valid_q;
    double scale, softcap;
    int64_t dtype, threads;
    int64_t oldest;            /* entry to begin with; after the last comes the first */
} attend_args;

typedef struct {
    void *cache;          /* [B, H, S, D] */
    const void *fresh;    /* [B, H, Q, D] */
    const int64_t *index; /* [Q] */
    int64_t b, h, s, q, bytes; /* bytes: of one entry [D]; strides below are bytes too */
    int64_t cache_b, cache_h, cache_s, fresh_b, fresh_h, fresh_q;
} store_args;

typedef struct {
    const void *x, *weight; /* [M, K], [K] */
    void *out;              /* [M, K] */
    int64_t m, k;
    double eps, offset;
    int64_t round_first, dtype;
} norm_args;

enum { SCREEN_FEATURES = 6 };
#define SCREEN_LOGIT 10.0f /* logits are about this large */

typedef struct {
    const void *z, *centres, *offsets; /* [M, K], [kinds + 1, K], [kinds + 1] */
    const int32_t *tokens;             /* [kinds, count], rows of the head */
    const float *reach;                /* [kinds] */
    const void *weight, *bias;         /* the head's: [height, K], [height] or null */
    const int64_t *before;             /* [M] tokens that the probe before saw, or null */
    void *near, *logits;               /* [M, kinds + 1], [M, count] */
    float *features;                   /* [M, SCREEN_FEATURES] */
    int64_t *token, *kind;             /* [M] */
    int64_t m, k, kinds, count, stride, height;
    double scale, softcap;
    int64_t dtype, threads;
} screen_args;

#endif
