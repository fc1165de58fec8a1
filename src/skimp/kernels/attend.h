/* Attention of a few queries over a cache: scores, softmax, sum of values.
 *
 * The queries that share a key/value head are its rows: each cache entry is read once for all of
 * them. Only entries that some query of the sequence sees are read. */

/* Asks for the `columns` of an entry `ahead` of list[i], if there is one among the `left` on. */
INLINE void FN(fetch_entry)(const E *entries, int64_t stride, const int32_t *list, int64_t i,
                            int64_t ahead, int64_t left, int64_t columns) {
    const E *entry = entries + list[i + ahead < left ? i + ahead : i] * stride;
    for (int64_t j = 0; j < columns; j += STEP) FN(fetch)(entry + j);
}

/* Scores of R rows (up to 4) with `count` entries of the list, a multiple of VW; row r's go to
 * out + r * stride. `left`: entries of the list from here on, 0 if none needs to be asked for.
 *
 * As many entries are taken at once as fill a vector with sums, but one is read after the other:
 * that keeps to the order of memory, which the processor fetches ahead in. */
INLINE void FN(score)(const int R, const DOT_X *q, int64_t qs, const E *k, int64_t ks,
                      const int32_t *list, int64_t count, int64_t left, int64_t d, float *out,
                      int64_t stride) {
    const int T = VW / (R == 3 ? 4 : R);
    const int64_t whole = d - d % STEP;
    for (int64_t i = 0; i < count; i += T) {
        VF sum[VW];
        UNROLL for (int t = 0; t < VW; t++) sum[t] = (VF){0};
        UNROLL for (int t = 0; t < T; t++) {
            const E *key = k + list[i + t] * ks;
            if (left) FN(fetch_entry)(k, ks, list, i + t, FETCH_KEYS, left, d);
            for (int64_t j = 0; j < d; j += STEP) {
                const DOT_V kv = j < whole ? FN(dot_w)(key + j) : FN(dot_w_some)(key + j, d - j);
                UNROLL for (int r = 0; r < R; r++) {
                    const DOT_V x = FN(dot_x)(q + r * qs + j);
                    sum[r * T + t] = FN(dot)(sum[r * T + t], kv, x);
                }
            }
        }
        float flat[VW];
        NAME(sums)(sum, flat);
        UNROLL for (int r = 0; r < R; r++) {
            memcpy(out + r * stride + i, flat + r * T, T * sizeof(float));
        }
    }
}

/* Adds shares times values of entries list[0 .. count) to R rows of sums, C steps of columns. Asks
 * for `columns` of the entries to come, of which there are `left`; 0 if that is not needed. */
INLINE void FN(gather)(const int R, const int C, const float *share, int64_t stride, const E *v,
                       int64_t vs, const int32_t *list, int64_t count, float *sums, int64_t width,
                       int64_t left, int64_t columns) {
    VF even[STREAMS][2], odd[STREAMS][2];
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int c = 0; c < C; c++) {
            even[r][c] = NAME(load)(sums + r * width + c * STEP);
            odd[r][c] = NAME(load)(sums + r * width + c * STEP + VW);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        const E *value = v + list[i] * vs;
        PAIR row[2];
        if (left) FN(fetch_entry)(v, vs, list, i, FETCH_VALUES, left, columns);
        UNROLL for (int c = 0; c < C; c++) row[c] = FN(load)(value + c * STEP);
        UNROLL for (int r = 0; r < R; r++) {
            const float s = share[r * stride + i];
            UNROLL for (int c = 0; c < C; c++) {
                even[r][c] += row[c].a * s;
                odd[r][c] += row[c].b * s;
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++) {
        UNROLL for (int c = 0; c < C; c++) {
            NAME(put)(sums + r * width + c * STEP, even[r][c]);
            NAME(put)(sums + r * width + c * STEP + VW, odd[r][c]);
        }
    }
}

/* The same for the last columns, fewer than a step. */
static TARGET void FN(gather_rest)(int64_t rows, const float *share, int64_t stride, const E *v,
                                   int64_t vs, const int32_t *list, int64_t count, float *sums,
                                   int64_t width, int64_t columns) {
    for (int64_t i = 0; i < count; i++) {
        const PAIR row = FN(load_some)(v + list[i] * vs, columns);
        for (int64_t r = 0; r < rows; r++) {
            float *to = sums + r * width;
            NAME(put)(to, NAME(load)(to) + row.a * share[r * stride + i]);
            NAME(put)(to + VW, NAME(load)(to + VW) + row.b * share[r * stride + i]);
        }
    }
}

/* Instances for the numbers of rows and steps that fit the registers. */
#define SCORE(R)                                                                               \
    static TARGET void FN(score_##R)(const DOT_X *q, int64_t qs, const E *k, int64_t ks,       \
                                     const int32_t *list, int64_t count, int64_t left,         \
                                     int64_t d, float *out, int64_t stride) {                  \
        FN(score)(R, q, qs, k, ks, list, count, left, d, out, stride);                         \
    }
#define GATHER(R, C)                                                                           \
    static TARGET void FN(gather_##R##_##C)(const float *share, int64_t stride, const E *v,    \
                                            int64_t vs, const int32_t *list, int64_t count,    \
                                            float *sums, int64_t width, int64_t left,          \
                                            int64_t columns) {                                 \
        FN(gather)(R, C, share, stride, v, vs, list, count, sums, width, left, columns);       \
    }
SCORE(1) SCORE(2) SCORE(3) SCORE(4)
GATHER(1, 1) GATHER(2, 1) GATHER(3, 1) GATHER(4, 1)
GATHER(1, 2) GATHER(2, 2) GATHER(3, 2) GATHER(4, 2)
#undef SCORE
#undef GATHER

/* Raw scores of all rows; list and scores have room for whole vectors of entries. */
static TARGET void FN(scores)(const DOT_X *q, int64_t qs, int64_t rows, const E *k, int64_t ks,
                              const int32_t *list, int64_t count, int64_t d, float *out,
                              int64_t stride) {
    typedef void tile(const DOT_X *, int64_t, const E *, int64_t, const int32_t *, int64_t, int64_t,
                      int64_t, float *, int64_t);
    static tile *const tiles[] = {FN(score_1), FN(score_2), FN(score_3), FN(score_4)};
    const int64_t padded = (count + VW - 1) / VW * VW;
    for (int64_t i = 0; i < padded; i += TURN) {
        const int64_t n = padded - i < TURN ? padded - i : TURN;
        const int64_t left = has_gaps(list + i, count - i) ? count - i : 0;
        for (int64_t r = 0; r < rows; r += 4) {
            const int64_t some = rows - r < 4 ? rows - r : 4;
            float *to = out + r * stride + i;
            tiles[some - 1](q + r * qs, qs, k, ks, list + i, n, r ? 0 : left, d, to, stride);
        }
    }
}

/* Sums of shares times values of all rows: [rows, width], zero at first. */
static TARGET void FN(values)(const float *share, int64_t stride, int64_t rows, const E *v,
                              int64_t vs, const int32_t *list, int64_t count, int64_t dv,
                              float *sums, int64_t width) {
    typedef void tile(const float *, int64_t, const E *, int64_t, const int32_t *, int64_t, float *,
                      int64_t, int64_t, int64_t);
    static tile *const one[] = {FN(gather_1_1), FN(gather_2_1), FN(gather_3_1), FN(gather_4_1)};
    static tile *const two[] = {FN(gather_1_2), FN(gather_2_2), FN(gather_3_2), FN(gather_4_2)};
    const int64_t most = VW == 16 ? 2 * STEP : STEP; /* columns that the registers hold */
    for (int64_t i = 0; i < count; i += TURN) {
        const int64_t n = count - i < TURN ? count - i : TURN;
        /* Columns in turns are not the order of memory: then the first turn asks for all. */
        const int64_t left = dv > most || has_gaps(list + i, count - i) ? count - i : 0;
        int64_t c = 0;
        while (dv - c >= STEP) {
            const int pair = dv - c >= most && most > STEP;
            for (int64_t r = 0; r < rows; r += 4) {
                const int64_t some = rows - r < 4 ? rows - r : 4;
                (pair ? two : one)[some - 1](share + r * stride + i, stride, v + c, vs, list + i, n,
                                             sums + r * width + c, width, r + c ? 0 : left, dv);
            }
            c += pair ? 2 * STEP : STEP;
        }
        if (c < dv)
            FN(gather_rest)(rows, share + i, stride, v + c, vs, list + i, n, sums + c, width,
                            dv - c);
    }
}

/* One key/value head of one sequence: the rows are (head of the group, query). */
static TARGET void FN(attend_head)(const attend_args *a, int64_t b, int64_t head,
                                   const attend_room *room, int64_t count) {
    const int64_t group = a->hq / a->hk, rows = group * a->q_count;
    const int64_t qs = (a->d + STEP - 1) / STEP * STEP, width = (a->dv + STEP - 1) / STEP * STEP;
    DOT_X *q = (DOT_X *)room->queries;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t h = head * group + r / a->q_count, i = r % a->q_count;
        FN(lay)(q + r * qs, STEP, (const E *)a->q + b * a->q_b + h * a->q_h + i * a->q_q, a->d);
    }
    const E *k = (const E *)a->k + b * a->k_b + head * a->k_h;
    const E *v = (const E *)a->v + b * a->v_b + head * a->v_h;
    float *scores = room->scores;
    FN(scores)(q, qs, rows, k, a->k_s, room->list, count, a->d, scores, room->stride);
    for (int64_t r = 0; r < rows; r++) {
        float *row = scores + r * room->stride;
        if (a->q_count > 1) hide(a, b, r % a->q_count, room->list, count, row);
        const float *sink = a->sinks ? a->sinks + head * group + r / a->q_count : NULL;
        room->inverse[r] = NAME(softmax)(row, count, (float)a->scale, (float)a->softcap, sink);
    }
    memset(room->sums, 0, (size_t)(rows * width) * sizeof(float));
    FN(values)(scores, room->stride, rows, v, a->v_s, room->list, count, a->dv, room->sums, width);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t h = head * group + r / a->q_count, i = r % a->q_count;
        E *out = (E *)a->out + ((b * a->q_count + i) * a->hq + h) * a->dv;
        for (int64_t c = 0; c < a->dv; c += STEP) {
            const float *from = room->sums + r * width + c;
            const PAIR v = {NAME(load)(from) * room->inverse[r],
                            NAME(load)(from + VW) * room->inverse[r]};
            if (a->dv - c >= STEP) FN(put)(out + c, v);
            else FN(put_some)(out + c, v, a->dv - c);
        }
    }
}

static TARGET int FN(attend)(const attend_args *a, int part, int parts) {
    attend_room room;
    if (!make_room(a, STEP, sizeof(DOT_X), &room)) return FAIL_MEMORY;
    const int64_t heads = a->b * a->hk, last = heads * (part + 1) / parts;
    int64_t listed = -1, count = 0;
    for (int64_t i = heads * part / parts; i < last; i++) {
        if (listed != i / a->hk) {
            listed = i / a->hk;
            count = list_valid(a, listed, room.list);
            for (int64_t j = count; count && j % VW; j++) room.list[j] = room.list[count - 1];
        }
        FN(attend_head)(a, i / a->hk, i % a->hk, &room, count);
    }
    return 0;
}
