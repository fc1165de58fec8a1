/* y = h W for W stored by rows: each row, times its activation, is added to the output.
 *
 * The sums stay in float32 in the cache, a stretch of columns at a time. Four rows from far parts
 * of the list are added at once, so that a sum is loaded and stored once for four rows and each
 * part of the weight is read in a long run. */
INLINE void FN(add_rows)(const int S, const neurons_args *a, const E *const *w,
                         const E *const *next, const float *h, float *sums, int64_t columns) {
    const int64_t width = (columns + STEP - 1) / STEP * STEP;
    for (int64_t c = 0; c < columns; c += STEP) {
        PAIR row[STREAMS];
        if (next) {
            UNROLL for (int s = 0; s < S; s++) FN(fetch)(next[s] + c);
        }
        UNROLL for (int s = 0; s < S; s++) {
            row[s] = columns - c >= STEP ? FN(load)(w[s] + c) : FN(load_some)(w[s] + c, columns - c);
        }
        for (int64_t m = 0; m < a->m; m++) {
            float *to = sums + m * width + c;
            VF even = NAME(load)(to), odd = NAME(load)(to + VW);
            UNROLL for (int s = 0; s < S; s++) {
                even += row[s].a * h[m * S + s];
                odd += row[s].b * h[m * S + s];
            }
            NAME(put)(to, even);
            NAME(put)(to + VW, odd);
        }
    }
}

/* Rows i, i + apart, ... of the list: S of them. */
INLINE void FN(add_at)(const int S, const neurons_args *a, int64_t i, int64_t apart, float *sums,
                       int64_t first, int64_t columns) {
    const E *w[STREAMS], *next[STREAMS];
    float h[MOST_INPUTS * STREAMS];
    UNROLL for (int s = 0; s < S; s++) {
        const int64_t at = i + s * apart;
        w[s] = (const E *)a->weight + (a->rows ? a->rows[at] : at) * a->stride + first;
        const int64_t later = at + FETCH_ROWS < a->r ? at + FETCH_ROWS : at;
        next[s] = w[s] + (a->rows ? a->rows[later] - a->rows[at] : 0) * a->stride;
        for (int64_t m = 0; m < a->m; m++) h[m * S + s] = FN(one)(((const E *)a->h)[m * a->r + at]);
    }
    FN(add_rows)(S, a, w, a->rows ? next : NULL, h, sums, columns);
}

static TARGET int FN(neurons)(const neurons_args *a, int part, int parts) {
    const int64_t blocks = (a->n + STEP - 1) / STEP, apart = a->r / STREAMS;
    const int64_t first = blocks * part / parts * STEP;
    const int64_t last = part + 1 == parts ? a->n : blocks * (part + 1) / parts * STEP;
    const int64_t most = 4096; /* columns at a time: 16 KB of sums an input */
    float *sums = scratch((size_t)(a->m * (most + STEP)) * sizeof *sums);
    if (!sums) return FAIL_MEMORY;
    for (int64_t c = first; c < last; c += most) {
        const int64_t columns = last - c < most ? last - c : most;
        const int64_t width = (columns + STEP - 1) / STEP * STEP;
        memset(sums, 0, (size_t)(a->m * width) * sizeof *sums);
        for (int64_t i = 0; i < apart; i++) FN(add_at)(STREAMS, a, i, apart, sums, c, columns);
        for (int64_t i = STREAMS * apart; i < a->r; i++) FN(add_at)(1, a, i, 0, sums, c, columns);
        for (int64_t m = 0; m < a->m; m++) {
            E *out = (E *)a->out + m * a->n + c;
            for (int64_t j = 0; j < columns; j += STEP) {
                const float *from = sums + m * width + j;
                const PAIR v = {NAME(load)(from), NAME(load)(from + VW)};
                if (columns - j >= STEP) FN(put)(out + j, v);
                else FN(put_some)(out + j, v, columns - j);
            }
        }
    }
    return 0;
}
