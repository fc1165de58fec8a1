/* Runs a decode step: a list of small operations on buffers whose places are all known beforehand.
 *
 * A step of a small model is hundreds of operations on a few thousand numbers each; here one costs
 * what its numbers cost and a function call. Included by kernels.c, whose products and attention it
 * uses; skimp/engine/program/ writes the list.
 *
 * Arithmetic is done in float32 and rounded to the type of the result, one operation at a time, as
 * torch does it; so a step gives what the same operations give in torch. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CLONES
#endif

enum { DIMS = 5, INPUTS = 3, BLOCK = 512 };
enum { FLOAT32, BFLOAT16, INT64, BOOL };

typedef struct {
    void *data;
    int64_t dtype, stride[DIMS]; /* elements; 0 repeats */
} operand;

/* Element by element: out = op(in...), over a shape whose last dimension is the innermost. With one
 * input, an operation on two takes scalar[1] for the second. */
typedef struct {
    int64_t op, dims, shape[DIMS], inputs;
    operand out, in[INPUTS];
    double scalar[2];
} map_args;

/* out = the sum (or mean, if `scale` is 1 / count) of in over its last dimension. */
typedef struct {
    int64_t dims, shape[DIMS];
    operand out, in;
    double scale;
} reduce_args;

/* out [M, K] = (x - mean) / sqrt(variance + eps) * weight + bias; weight and bias may be null. */
typedef struct {
    const void *x, *weight, *bias;
    void *out;
    int64_t m, k, dtype;
    double eps;
} layer_norm_args;

/* out [M, width] = rows of a table, by index; refuses an index that is not in it. */
typedef struct {
    const void *table;
    const int64_t *index;
    void *out;
    int64_t m, height, stride, bytes;
} gather_args;

typedef struct {
    void *keys, *values; /* [B, heads, size, width], contiguous */
    int64_t size;
} slot;

/* The neurons of an FF that this step uses: `rows` [count]; `mask` [B, count], which of them each
 * sequence keeps, or null; `fill` [B, N], what is added to the FF's output, or null. */
typedef struct {
    const int32_t *rows;
    const uint8_t *mask;
    const void *fill;
    const int32_t *order; /* [count]: of rows by the sequences that keep them, or null */
    int64_t count;
} neurons_used;

/* What belongs to the request and changes with every step, which is over Q columns from `at` on. If
 * a slot is to hold fewer entries than there are columns by then, Q must be 1. */
typedef struct {
    const slot *slots;
    const neurons_used *used; /* by layer; null where every FF is whole */
    const int64_t *pads;      /* [B] */
    uint8_t *valid;           /* scratch [B, Q, largest size] */
    int64_t at, queries, threads, sized;
} context;

/* Store the columns' keys and values in a slot and attend over it. q [B, Hq, Q, D] and k, v
 * [B, Hk, Q, D] by strides, out [B, Q, Hq, Dv]. */
typedef struct {
    int64_t slot;
    store_args stored_keys, stored_values;
    attend_args attended;
} slot_args;

/* Activations [M, neurons] on their way out of an FF: those a sequence does not keep become 0. */
typedef struct {
    void *h;
    int64_t m, dtype;
} mask_args;

enum { LINEAR, NEURONS, MAP, REDUCE, LAYER_NORM, GATHER, SLOT, STORE, MASK };

/* `layer`: of an FF whose neurons the step may thin, else -1; `width`: all its neurons. */
typedef struct {
    int64_t kind;
    const void *args;
    int64_t layer, width;
} operation;

static inline float widen(uint16_t half) {
    union { uint32_t u; float f; } bits = {(uint32_t)half << 16};
    return bits.f;
}

static inline uint16_t narrow(float value) {
    union { float f; uint32_t u; } bits = {value};
    const uint32_t near = (bits.u + 0x7fff + ((bits.u >> 16) & 1)) >> 16;
    return value != value ? 0x7fc0 : (uint16_t)near;
}

static inline void load(float *to, const operand *from, int64_t offset, int64_t stride, int64_t n) {
    if (from->dtype == FLOAT32) {
        const float *p = (const float *)from->data + offset;
        if (stride == 1) memcpy(to, p, (size_t)n * sizeof(float));
        else for (int64_t i = 0; i < n; i++) to[i] = p[i * stride];
    } else if (from->dtype == BFLOAT16) {
        const uint16_t *p = (const uint16_t *)from->data + offset;
        if (stride == 1) for (int64_t i = 0; i < n; i++) to[i] = widen(p[i]);
        else for (int64_t i = 0; i < n; i++) to[i] = widen(p[i * stride]);
    } else if (from->dtype == INT64) {
        const int64_t *p = (const int64_t *)from->data + offset;
        for (int64_t i = 0; i < n; i++) to[i] = (float)p[i * stride];
    } else {
        const uint8_t *p = (const uint8_t *)from->data + offset;
        for (int64_t i = 0; i < n; i++) to[i] = (float)p[i * stride];
    }
}

static inline void store(const operand *to, int64_t offset, int64_t stride, const float *from,
                         int64_t n) {
    if (to->dtype == FLOAT32) {
        float *p = (float *)to->data + offset;
        for (int64_t i = 0; i < n; i++) p[i * stride] = from[i];
    } else {
        uint16_t *p = (uint16_t *)to->data + offset;
        if (stride == 1) for (int64_t i = 0; i < n; i++) p[i] = narrow(from[i]);
        else for (int64_t i = 0; i < n; i++) p[i * stride] = narrow(from[i]);
    }
}

/* The operations, by the numbers that lower.py gives them. */
enum { COPY, NEG, COS, SIN, RSQRT, SQRT, SILU, GELU, GELU_TANH, RELU, SIGMOID, TANH, EXP, SQUARE,
       POWER, CLAMP, RECIPROCAL, ABS, FILL,
       ADD, SUB, MUL, DIV, MAXIMUM, MINIMUM }; /* these have two inputs */

#define EACH(expression) \
    for (int64_t i = 0; i < n; i++) { const float x = a[i]; a[i] = (expression); }
#define BOTH(expression) \
    for (int64_t i = 0; i < n; i++) { const float x = a[i], y = b[i]; a[i] = (expression); }

static inline void compute(int64_t op, float *a, const float *b, const double *scalar, int64_t n) {
    const float s = (float)scalar[0], t = (float)scalar[1];
    switch (op) {
    case NEG: EACH(-x) break;
    case COS: EACH(cosf(x)) break;
    case SIN: EACH(sinf(x)) break;
    case RSQRT: EACH(1.0f / sqrtf(x)) break;
    case SQRT: EACH(sqrtf(x)) break;
    case SILU: EACH(x / (1.0f + expf(-x))) break;
    case GELU: EACH(0.5f * x * (1.0f + erff(x * 0.70710678f))) break;
    case GELU_TANH:
        EACH(0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)))) break;
    case RELU: EACH(x < 0 ? 0.0f : x) break;
    case SIGMOID: EACH(1.0f / (1.0f + expf(-x))) break;
    case TANH: EACH(tanhf(x)) break;
    case EXP: EACH(expf(x)) break;
    case SQUARE: EACH(x * x) break;
    case POWER: EACH(powf(x, s)) break;
    case CLAMP: EACH(x < s ? s : x > t ? t : x) break;
    case RECIPROCAL: EACH(1.0f / x) break;
    case ABS: EACH(fabsf(x)) break;
    case FILL: for (int64_t i = 0; i < n; i++) a[i] = s; break;
    case ADD: BOTH(x + s * y) break; /* s: torch's alpha */
    case SUB: BOTH(x - s * y) break;
    case MUL: BOTH(x * y) break;
    case DIV: BOTH(x / y) break;
    case MAXIMUM: BOTH(x != x || x > y ? x : y) break;
    case MINIMUM: BOTH(x != x || x < y ? x : y) break;
    default: break; /* COPY */
    }
}

static inline int64_t integer(int64_t op, int64_t x, int64_t y, const double *scalar) {
    const int64_t s = (int64_t)scalar[0], t = (int64_t)scalar[1];
    switch (op) {
    case ADD: return x + s * y;
    case SUB: return x - s * y;
    case MUL: return x * y;
    case CLAMP: return x < s ? s : x > t ? t : x;
    case FILL: return s;
    default: return x;
    }
}

/* One line along the innermost dimension. `at`: offsets of out and in. */
CLONES static void line(const map_args *m, const int64_t *at, int64_t n) {
    float a[BLOCK], b[BLOCK];
    const int64_t last = m->dims - 1, number = (int64_t)m->scalar[1];
    if (m->out.dtype == INT64) {
        int64_t *out = (int64_t *)m->out.data + at[0];
        const int64_t *x = (const int64_t *)m->in[0].data + at[1];
        const int64_t *y = m->inputs > 1 ? (const int64_t *)m->in[1].data + at[2] : &number;
        const int64_t ys = m->inputs > 1 ? m->in[1].stride[last] : 0;
        for (int64_t i = 0; i < n; i++)
            out[i * m->out.stride[last]] =
                integer(m->op, x[i * m->in[0].stride[last]], y[i * ys], m->scalar);
        return;
    }
    if (m->inputs == 1 && m->op >= ADD)
        for (int64_t i = 0; i < BLOCK; i++) b[i] = (float)m->scalar[1];
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t some = n - first < BLOCK ? n - first : BLOCK;
        const int64_t sx = m->in[0].stride[last];
        load(a, &m->in[0], at[1] + first * sx, sx, some);
        if (m->inputs > 1) {
            const int64_t sy = m->in[1].stride[last];
            load(b, &m->in[1], at[2] + first * sy, sy, some);
        }
        compute(m->op, a, b, m->scalar, some);
        store(&m->out, at[0] + first * m->out.stride[last], m->out.stride[last], a, some);
    }
}

static void map(const map_args *m) {
    int64_t place[DIMS] = {0}, at[1 + INPUTS] = {0};
    const int64_t last = m->dims - 1;
    for (;;) {
        line(m, at, m->shape[last]);
        int64_t d = last - 1;
        for (; d >= 0; d--) {
            at[0] += m->out.stride[d];
            for (int64_t i = 0; i < m->inputs; i++) at[1 + i] += m->in[i].stride[d];
            if (++place[d] < m->shape[d]) break;
            at[0] -= m->out.stride[d] * m->shape[d];
            for (int64_t i = 0; i < m->inputs; i++) at[1 + i] -= m->in[i].stride[d] * m->shape[d];
            place[d] = 0;
        }
        if (d < 0) return;
    }
}

/* Sixteen partial sums: quick, and closer to the true sum than one. */
CLONES static float total(const operand *in, int64_t offset, int64_t stride, int64_t n) {
    float block[BLOCK], part[16] = {0};
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t some = n - first < BLOCK ? n - first : BLOCK;
        load(block, in, offset + first * stride, stride, some);
        int64_t i = 0;
        for (; i + 16 <= some; i += 16)
            for (int64_t j = 0; j < 16; j++) part[j] += block[i + j];
        for (; i < some; i++) part[i % 16] += block[i];
    }
    for (int64_t half = 8; half; half /= 2)
        for (int64_t j = 0; j < half; j++) part[j] += part[j + half];
    return part[0];
}

static void reduce(const reduce_args *r) {
    int64_t place[DIMS] = {0}, to = 0, from = 0;
    const int64_t last = r->dims - 1;
    for (;;) {
        const float sum = total(&r->in, from, r->in.stride[last], r->shape[last]);
        const float value = sum * (float)r->scale;
        store(&r->out, to, 1, &value, 1);
        int64_t d = last - 1;
        for (; d >= 0; d--) {
            to += r->out.stride[d];
            from += r->in.stride[d];
            if (++place[d] < r->shape[d]) break;
            to -= r->out.stride[d] * r->shape[d];
            from -= r->in.stride[d] * r->shape[d];
            place[d] = 0;
        }
        if (d < 0) return;
    }
}

CLONES static void layer_norm(const layer_norm_args *l) {
    for (int64_t m = 0; m < l->m; m++) {
        const int64_t row = m * l->k;
        const operand x = {(void *)l->x, l->dtype, {1}}, out = {l->out, l->dtype, {1}};
        const operand weight = {(void *)l->weight, l->dtype, {1}};
        const operand bias = {(void *)l->bias, l->dtype, {1}};
        const float mean = total(&x, row, 1, l->k) / (float)l->k;
        float block[BLOCK], more[BLOCK], spread = 0;
        for (int64_t first = 0; first < l->k; first += BLOCK) {
            const int64_t n = l->k - first < BLOCK ? l->k - first : BLOCK;
            load(block, &x, row + first, 1, n);
            for (int64_t i = 0; i < n; i++) spread += (block[i] - mean) * (block[i] - mean);
        }
        const float scale = 1.0f / sqrtf(spread / (float)l->k + (float)l->eps);
        for (int64_t first = 0; first < l->k; first += BLOCK) {
            const int64_t n = l->k - first < BLOCK ? l->k - first : BLOCK;
            load(block, &x, row + first, 1, n);
            for (int64_t i = 0; i < n; i++) block[i] = (block[i] - mean) * scale;
            if (l->weight) {
                load(more, &weight, first, 1, n);
                for (int64_t i = 0; i < n; i++) block[i] *= more[i];
            }
            if (l->bias) {
                load(more, &bias, first, 1, n);
                for (int64_t i = 0; i < n; i++) block[i] += more[i];
            }
            store(&out, row + first, 1, block, n);
        }
    }
}

static int gather(const gather_args *g) {
    for (int64_t m = 0; m < g->m; m++) {
        if (g->index[m] < 0 || g->index[m] >= g->height) return FAIL_INDEX;
        memcpy((char *)g->out + m * g->bytes, (const char *)g->table + g->index[m] * g->stride,
               (size_t)g->bytes);
    }
    return 0;
}

#include "slots.h"
#include "used.h"

/* Runs operations first .. last; 0, or the FAIL_ code of the one that could not be done. */
EXPORT int skimp_program_run(const operation *list, int64_t first, int64_t last, context *c) {
    c->sized = -1;
    for (int64_t i = first; i < last; i++) {
        const operation *o = &list[i];
        const neurons_used *used = o->layer < 0 ? NULL : &c->used[o->layer];
        int failed = 0;
        switch (o->kind) {
        case LINEAR: failed = used ? linear_used(o->args, used) : skimp_linear(o->args); break;
        case NEURONS: failed = used ? neurons_of(o->args, used) : skimp_neurons(o->args); break;
        case MAP:
            if (used) map_used(o->args, used, o->width);
            else map(o->args);
            break;
        case MASK: if (used->mask) mask(o->args, used->mask, used->count); break;
        case REDUCE: reduce(o->args); break;
        case LAYER_NORM: layer_norm(o->args); break;
        case GATHER: failed = gather(o->args); break;
        case SLOT: failed = attend_slot(o->args, c); break;
        case STORE: failed = store_slot(o->args, c); break;
        }
        if (failed) return failed;
    }
    return 0;
}
