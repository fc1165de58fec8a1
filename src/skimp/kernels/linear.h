/* y = x W^T (+ bias): dot products of weight rows with up to 16 inputs.
 *
 * A few rows are taken at once, from as many far parts of the weight: each part is then read in
 * one long run, which the processor fetches ahead of. Rows that lie together do not do that. */

/* One step of S rows and M inputs. `n` elements are left in the rows; a whole step if STEP. */
INLINE void FN(step)(const int S, const int M, VF (*sum)[AT_ONCE], const E *const *w,
                     const DOT_X *x, int64_t j, int64_t n) {
    DOT_V wv[STREAMS];
    UNROLL for (int s = 0; s < S; s++) {
        wv[s] = n == STEP ? FN(dot_w)(w[s] + j) : FN(dot_w_some)(w[s] + j, n);
    }
    UNROLL for (int m = 0; m < M; m++) {
        const DOT_V xv = FN(dot_x)(x + m * STEP);
        UNROLL for (int s = 0; s < S; s++) sum[s][m] = FN(dot)(sum[s][m], wv[s], xv);
    }
}

INLINE void FN(finish)(const int S, const int M, VF (*sum)[AT_ONCE], const linear_job *job,
                       const int64_t *row, int64_t m0, int64_t i, int64_t apart) {
    const E *bias = job->bias;
    float dots[AT_ONCE * STREAMS];
    UNROLL for (int t = 0; t < S * M; t += VW) {
        VF some[VW];
        UNROLL for (int u = 0; u < VW; u++)
            some[u] = t + u < S * M ? sum[(t + u) / M][(t + u) % M] : (VF){0};
        NAME(sums)(some, dots + t);
    }
    UNROLL for (int s = 0; s < S; s++) {
        const float more = bias ? FN(one)(bias[row[s]]) : 0.0f;
        E *out = (E *)job->out + m0 * job->count + i + s * apart;
        UNROLL for (int m = 0; m < M; m++) {
            out[m * job->count] = FN(rounded)(dots[s * M + m] + more);
        }
    }
}

/* A stretch of the outputs: `count` from `first` on in each of S parts that lie `apart` outputs
 * apart, for M inputs from the m0-th on, of `inputs` that are laid out together. */
typedef struct {
    int64_t first, count, apart, m0, inputs;
} FN(stretch);

/* Where each part's weight row for output i is, and what to ask for while it is read. */
INLINE void FN(find)(const int S, const linear_args *a, const linear_job *job,
                     const FN(stretch) *at, int64_t i, int64_t later, int64_t *row, const E **w,
                     const E **next) {
    const int64_t coming = i + FETCH_ROWS < at->first + at->count ? i + FETCH_ROWS : i;
    UNROLL for (int s = 0; s < S; s++) {
        const int64_t shift = s * at->apart;
        row[s] = a->rows ? a->rows[i + shift] : i + shift;
        w[s] = (const E *)job->weight + row[s] * job->stride;
        next[s] = w[s] + later;
        if (a->rows && !later) next[s] += (a->rows[coming + shift] - row[s]) * job->stride;
    }
}

/* `x`: laid out for the dot product, a step of each input after the other. Inputs that do not fit
 * the first cache are taken a block of columns at a time for a group of rows. */
INLINE void FN(rows_of)(const int S, const int M, const linear_args *a, const linear_job *job,
                        const DOT_X *x, FN(stretch) at) {
    const int64_t fits = NEAR_BYTES / (int64_t)(M * sizeof(DOT_X)) / STEP * STEP;
    const int blocks = a->k > fits, fetch = blocks || a->rows || M >= FETCH_INPUTS;
    const int64_t block = blocks ? fits : a->k, group = blocks ? GROUP : 1;
    const int64_t later = blocks ? block : a->rows ? 0 : (int64_t)(FETCH_BYTES / sizeof(E));
    const int64_t last = at.first + at.count;
    VF kept[GROUP][STREAMS][AT_ONCE];
    for (int64_t i0 = at.first; i0 < last; i0 += group) {
        const int64_t i1 = i0 + group < last ? i0 + group : last;
        for (int64_t j0 = 0; j0 < a->k; j0 += block) {
            const int64_t j1 = j0 + block < a->k ? j0 + block : a->k;
            const int64_t whole = j1 - (j1 - j0) % STEP;
            for (int64_t i = i0; i < i1; i++) {
                const E *w[STREAMS], *next[STREAMS];
                int64_t row[STREAMS];
                VF sum[STREAMS][AT_ONCE];
                FN(find)(S, a, job, &at, i, later, row, w, next);
                UNROLL for (int s = 0; s < S; s++) {
                    UNROLL for (int m = 0; m < M; m++) {
                        sum[s][m] = j0 ? kept[i - i0][s][m] : (VF){0};
                    }
                }
                for (int64_t j = j0; j < whole; j += STEP) {
                    if (fetch) {
                        UNROLL for (int s = 0; s < S; s++) FN(fetch)(next[s] + j);
                    }
                    FN(step)(S, M, sum, w, x + j * at.inputs, j, STEP);
                }
                if (whole < j1) FN(step)(S, M, sum, w, x + whole * at.inputs, whole, j1 - whole);
                if (j1 == a->k) {
                    FN(finish)(S, M, sum, job, row, at.m0, i, at.apart);
                    continue;
                }
                UNROLL for (int s = 0; s < S; s++) {
                    UNROLL for (int m = 0; m < M; m++) kept[i - i0][s][m] = sum[s][m];
                }
            }
        }
    }
}

typedef void FN(tile)(const linear_args *, const linear_job *, const DOT_X *, FN(stretch));
#define TILE(S, M)                                                                               \
    static TARGET void FN(tile_##S##_##M)(const linear_args *a, const linear_job *job,           \
                                          const DOT_X *x, FN(stretch) at) {                      \
        FN(rows_of)(S, M, a, job, x, at);                                                        \
    }
TILE(4, 1) TILE(4, 2) TILE(4, 3) TILE(4, 4)
TILE(2, 4) TILE(2, 5) TILE(2, 6) TILE(2, 7) TILE(2, 8)
TILE(1, 1)
#undef TILE

/* More than 8 inputs go in two halves, which take turns on rows that stay in the cache. */
INLINE int64_t FN(inputs_at_once)(int64_t m) { return m > AT_ONCE ? (m + 1) / 2 : m; }

/* Outputs first .. last of one job; `x` holds the halves of the inputs one after the other. */
static TARGET void FN(linear_part)(const linear_args *a, const linear_job *job, const DOT_X *x,
                                   int64_t first, int64_t last) {
    static FN(tile) *const four[] = {FN(tile_4_1), FN(tile_4_2), FN(tile_4_3), FN(tile_4_4)};
    static FN(tile) *const two[] = {FN(tile_2_4), FN(tile_2_5), FN(tile_2_6), FN(tile_2_7),
                                    FN(tile_2_8)}; /* a half of 9 or more inputs is 4 or more */
    const int64_t most = FN(inputs_at_once)(a->m), width = (a->k + STEP - 1) / STEP * STEP;
    const int64_t streams = most > 4 ? 2 : 4, apart = (last - first) / streams;
    const int64_t turn = a->m > most ? GROUP : apart, rest = first + streams * apart;
    for (int64_t i = 0; i < apart; i += turn) {
        const int64_t count = apart - i < turn ? apart - i : turn;
        for (int64_t m0 = 0; m0 < a->m; m0 += most) {
            const int64_t n = a->m - m0 < most ? a->m - m0 : most;
            FN(tile) *const tile = streams == 4 ? four[n - 1] : two[n - 4];
            tile(a, job, x + m0 * width, (FN(stretch)){first + i, count, apart, m0, n});
        }
    }
    for (int64_t m = 0; m < a->m; m++) { /* up to three rows are left */
        const int64_t m0 = m / most * most, n = a->m - m0 < most ? a->m - m0 : most;
        const DOT_X *one = x + m0 * width + (m - m0) * STEP;
        FN(tile_1_1)(a, job, one, (FN(stretch)){rest, last - rest, 0, m, n});
    }
}

static TARGET const DOT_X *FN(laid_inputs)(const linear_args *a) {
    if (DOT_SAME && a->m == 1 && a->k % STEP == 0) return a->x;
    const int64_t most = FN(inputs_at_once)(a->m), width = (a->k + STEP - 1) / STEP * STEP;
    DOT_X *laid = scratch((size_t)(a->m * width) * sizeof *laid);
    for (int64_t m = 0; laid && m < a->m; m++) {
        const int64_t m0 = m / most * most, n = a->m - m0 < most ? a->m - m0 : most;
        DOT_X *to = laid + m0 * width + (m - m0) * STEP;
        FN(lay)(to, n * STEP, (const E *)a->x + m * a->k, a->k);
    }
    return laid;
}

static TARGET int FN(linear)(const linear_args *a, int part, int parts) {
    const DOT_X *x = FN(laid_inputs)(a);
    if (!x) return FAIL_MEMORY;
    int64_t total = 0, done = 0;
    for (int64_t j = 0; j < a->jobs; j++) total += a->job[j].count;
    const int64_t first = total * part / parts, last = total * (part + 1) / parts;
    for (int64_t j = 0; j < a->jobs; done += a->job[j++].count) {
        const int64_t from = first > done ? first - done : 0;
        const int64_t to = last - done < a->job[j].count ? last - done : a->job[j].count;
        if (from < to) FN(linear_part)(a, &a->job[j], x, from, to);
    }
    return 0;
}
