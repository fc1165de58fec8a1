/* y = h W for W stored by rows: each row, times its activation, is added to the output.
 *
 * The sums stay in float32 in the cache, a stretch of columns at a time. Four rows from far parts
 * of the list are added at once, so that a sum is loaded and stored once for four rows and each
 * part of the weight is read in a long run. For the same reason the parts of a call are stretches
 * of rows, not of columns, each with sums of its own. */
INLINE void FN(add_rows)(const int S, int64_t inputs, int64_t width, const E *const *w,
                         const E *const *next, const float *h, float *sums, int64_t columns) {
    for (int64_t c = 0; c < columns; c += STEP) {
        PAIR row[STREAMS];
        if (next) {
            UNROLL for (int s = 0; s < S; s++) FN(fetch)(next[s] + c);
        }
        UNROLL for (int s = 0; s < S; s++) {
            const E *from = w[s] + c;
            row[s] = columns - c >= STEP ? FN(load)(from) : FN(load_some)(from, columns - c);
        }
        for (int64_t m = 0; m < inputs; m++) {
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
INLINE void FN(add_at)(const int S, const neurons_work *work, int64_t i, int64_t apart,
                       float *sums, int64_t first, int64_t columns) {
    const neurons_args *a = work->args;
    const E *w[STREAMS], *next[STREAMS];
    float h[MOST_INPUTS * STREAMS];
    UNROLL for (int s = 0; s < S; s++) {
        const int64_t at = i + s * apart;
        w[s] = (const E *)a->weight + (a->rows ? a->rows[at] : at) * a->stride + first;
        const int64_t later = at + FETCH_ROWS < a->r ? at + FETCH_ROWS : at;
        next[s] = w[s] + (a->rows ? (a->rows[later] - a->rows[at]) * a->stride
                                  : (int64_t)(FETCH_BYTES / sizeof(E)));
        for (int64_t m = 0; m < a->m; m++) h[m * S + s] = FN(one)(((const E *)a->h)[m * a->r + at]);
    }
    FN(add_rows)(S, a->m, work->width, w, a->rows || a->m > 1 ? next : NULL, h, sums, columns);
}

static TARGET int FN(neurons)(const neurons_work *work, int part, int parts) {
    const neurons_args *a = work->args;
    const int64_t first = a->r * part / parts, last = a->r * (part + 1) / parts;
    const int64_t apart = (last - first) / STREAMS, most = 4096; /* columns: 16 KB an input */
    float *sums = work->sums + part * a->m * work->width;
    memset(sums, 0, (size_t)(a->m * work->width) * sizeof *sums);
    for (int64_t c = 0; c < a->n; c += most) {
        const int64_t columns = a->n - c < most ? a->n - c : most;
        for (int64_t i = 0; i < apart; i++)
            FN(add_at)(STREAMS, work, first + i, apart, sums + c, c, columns);
        for (int64_t i = first + STREAMS * apart; i < last; i++)
            FN(add_at)(1, work, i, 0, sums + c, c, columns);
    }
    return 0;
}

/* Adds the parts' sums up and rounds. */
static TARGET int FN(neurons_end)(const neurons_work *work, int none, int parts) {
    const neurons_args *a = work->args;
    (void)none;
    for (int64_t m = 0; m < a->m; m++) {
        E *out = (E *)a->out + m * a->n;
        for (int64_t j = 0; j < a->n; j += STEP) {
            PAIR v = {{0}, {0}};
            for (int64_t part = 0; part < parts; part++) {
                const float *from = work->sums + (part * a->m + m) * work->width + j;
                v.a += NAME(load)(from);
                v.b += NAME(load)(from + VW);
            }
            if (a->n - j >= STEP) FN(put)(out + j, v);
            else FN(put_some)(out + j, v, a->n - j);
        }
    }
    return 0;
}
