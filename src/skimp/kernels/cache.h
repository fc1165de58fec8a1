/* Which entries of a cache are seen, and the room that attention works in. */

typedef struct {
    int32_t *list;   /* entries that are seen, padded to whole vectors */
    float *scores;   /* [rows, stride] */
    float *sums;     /* [rows, values] */
    float *inverse;  /* [rows] */
    void *queries;   /* [rows, keys] */
    int64_t stride;
} attend_room;

static int make_room(const attend_args *a, int64_t step, int64_t bytes, attend_room *room) {
    const int64_t rows = a->hq / a->hk * a->q_count, line = 64;
    const int64_t entries = (a->s + line) / line * line;
    const int64_t keys = (a->d + step - 1) / step * step, values = (a->dv + step - 1) / step * step;
    /* A stride that is no power of two keeps the rows out of each other's cache sets. */
    room->stride = entries + 16;
    const int64_t sizes[] = {entries * 4, rows * room->stride * 4, rows * values * 4, rows * 4,
                             rows * keys * bytes};
    char *start[5];
    int64_t total = 0;
    for (int i = 0; i < 5; i++) total += (sizes[i] + line - 1) / line * line;
    char *memory = scratch((size_t)total);
    if (!memory) return 0;
    for (int i = 0; i < 5; i++) {
        start[i] = memory;
        memory += (sizes[i] + line - 1) / line * line;
    }
    room->list = (int32_t *)start[0];
    room->scores = (float *)start[1];
    room->sums = (float *)start[2];
    room->inverse = (float *)start[3];
    room->queries = start[4];
    return 1;
}

/* Eight mask bytes from entry `s` up to `end` that any query of the sequence sees; missing ones
 * are 0. */
static uint64_t eight(const attend_args *a, const uint8_t *valid, int64_t s, int64_t end) {
    uint64_t seen = 0;
    for (int64_t i = 0; i < a->q_count; i++) {
        uint64_t some = 0;
        memcpy(&some, valid + i * a->valid_q + s, (size_t)(end - s < 8 ? end - s : 8));
        seen |= some;
    }
    return seen;
}

/* Lists the entries from `s` up to `end` that some query sees, behind `count` others. */
static int64_t list_run(const attend_args *a, const uint8_t *valid, int64_t s, int64_t end,
                        int32_t *list, int64_t count) {
    for (; s < end; s += 8) {
        const uint64_t seen = eight(a, valid, s, end);
        if (!seen) continue;
        uint8_t byte[8];
        memcpy(byte, &seen, 8);
        for (int i = 0; i < 8; i++) {
            list[count] = (int32_t)(s + i);
            count += byte[i] != 0;
        }
    }
    return count;
}

/* Lists the entries of sequence `b` that some query sees, the oldest first; returns how many. So
 * sums over them come out the same wherever in a ring a sequence stands. */
static int64_t list_valid(const attend_args *a, int64_t b, int32_t *list) {
    const uint8_t *valid = a->valid + b * a->valid_b;
    const int64_t count = list_run(a, valid, a->oldest, a->s, list, 0);
    return list_run(a, valid, 0, a->oldest, list, count);
}

/* Whether entries are left out soon after list[0], so that no processor can guess the next. */
static int has_gaps(const int32_t *list, int64_t count) {
    const int64_t soon = count < 2 * TURN ? count : 2 * TURN;
    return soon > 0 && list[soon - 1] - list[0] != soon - 1;
}

/* Scores of entries that query `i` does not see become -inf. */
static void hide(const attend_args *a, int64_t b, int64_t i, const int32_t *list, int64_t count,
                 float *row) {
    const uint8_t *valid = a->valid + b * a->valid_b + i * a->valid_q;
    for (int64_t j = 0; j < count; j++) row[j] = valid[list[j]] ? row[j] : -INFINITY;
}
