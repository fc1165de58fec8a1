/* y = h W for W stored by rows: each row, times its activation, is added to the output.
 *
 * The sums stay in float32 in the cache, a stretch of columns at a time. Four rows from far parts
 * of the list are added at once, so that a sum is loaded and stored once for four rows and each
 * part of the weight is read in a long run. For the same reason the parts of a call are stretches
 * of rows, not of columns, each with sums of its own.
 *
 * Where the inputs use rows of their own, `order` puts rows together that the same inputs use: four
 * of them are added at once to the sums of those inputs only, which saves the others' products. */
INLINE void FN(add_rows)(const int S, int64_t inputs, float *const *sums, const E *const *w,
                         const E *const *next, const float *h, int64_t columns) {
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
            float *to = sums[m] + c;
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

/* Rows i, i + apart, ... of the list (or of its order): S of them. */
INLINE void FN(add_at)(const int S, const neurons_work *work, int64_t i, int64_t apart,
                       float *sums, int64_t first, int64_t columns) {
    const neurons_args *a = work->args;
    const E *w[STREAMS], *next[STREAMS];
    const int64_t ahead = a->order ? STREAMS : FETCH_ROWS;
    const int listed = a->rows || a->order;
    float h[MOST_INPUTS * STREAMS], *to[MOST_INPUTS];
    int64_t place[STREAMS], inputs = 0;
    UNROLL for (int s = 0; s < S; s++) {
        const int64_t at = i + s * apart, later = at + ahead < a->r ? at + ahead : at;
        const int64_t then = a->order ? a->order[later] : later;
        place[s] = a->order ? a->order[at] : at;
        const int64_t row = a->rows ? a->rows[place[s]] : place[s];
        w[s] = (const E *)a->weight + row * a->stride + first;
        next[s] = w[s] + (listed ? ((a->rows ? a->rows[then] : then) - row) * a->stride
                                 : (int64_t)(FETCH_BYTES / sizeof(E)));
    }
    for (int64_t m = 0; m < a->m; m++) {
        int used = !a->order;
        UNROLL for (int s = 0; s < S; s++) {
            const float value = FN(one)(((const E *)a->h)[m * a->r + place[s]]);
            h[inputs * S + s] = value;
            used |= value != 0;
        }
        if (used) to[inputs++] = sums + m * work->width;
    }
    FN(add_rows)(S, inputs, to, w, listed || a->m > 1 ? next : NULL, h, columns);
}

static TARGET int FN(neurons)(const neurons_work *work, int part, int parts) {
    const neurons_args *a = work->args;
    const int64_t first = a->r * part / parts, last = a->r * (part + 1) / parts;
    const int64_t each = (last - first) / STREAMS, most = 4096; /* columns: 16 KB an input */
    const int64_t apart = a->order ? 1 : each, on = a->order ? STREAMS : 1;
    float *sums = work->sums + part * a->m * work->width;
    memset(sums, 0, (size_t)(a->m * work->width) * sizeof *sums);
    for (int64_t c = 0; c < a->n; c += most) {
        const int64_t columns = a->n - c < most ? a->n - c : most;
        for (int64_t i = 0; i < each; i++)
            FN(add_at)(STREAMS, work, first + i * on, apart, sums + c, c, columns);
        for (int64_t i = first + STREAMS * each; i < last; i++)
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
