/* Operations of an FF of which a request uses some neurons; included by program.h. */

/* Rows and counts are those of the step; all rows need no list, and are read in long runs. */
static int linear_used(const linear_args *fixed, const neurons_used *used) {
    linear_args a = *fixed;
    a.rows = used->count == a.job[0].height ? NULL : used->rows;
    for (int64_t j = 0; j < a.jobs; j++) a.job[j].count = used->count;
    return skimp_linear(&a);
}

CLONES static void add_fill(const neurons_args *a, const void *fill) {
    float sums[BLOCK], more[BLOCK];
    const operand out = {a->out, a->dtype, {1}}, from = {(void *)fill, a->dtype, {1}};
    const int64_t all = a->m * a->n;
    for (int64_t first = 0; first < all; first += BLOCK) {
        const int64_t n = all - first < BLOCK ? all - first : BLOCK;
        load(sums, &out, first, 1, n);
        load(more, &from, first, 1, n);
        for (int64_t i = 0; i < n; i++) sums[i] += more[i];
        store(&out, first, 1, sums, n);
    }
}

static int neurons_of(const neurons_args *fixed, const neurons_used *used) {
    neurons_args a = *fixed;
    a.rows = used->count == a.height ? NULL : used->rows;
    a.r = used->count;
    a.order = used->order;
    const int failed = skimp_neurons(&a);
    if (!failed && used->fill) add_fill(&a, used->fill);
    return failed;
}

static void map_used(const map_args *fixed, const neurons_used *used, int64_t width) {
    map_args m = *fixed; /* one dimension: lower.py sees to that */
    m.shape[0] = m.shape[0] / width * used->count;
    map(&m);
}

CLONES static void mask(const mask_args *a, const uint8_t *kept, int64_t count) {
    float block[BLOCK];
    const operand h = {a->h, a->dtype, {1}};
    const int64_t all = a->m * count;
    for (int64_t first = 0; first < all; first += BLOCK) {
        const int64_t n = all - first < BLOCK ? all - first : BLOCK;
        load(block, &h, first, 1, n);
        for (int64_t i = 0; i < n; i++) block[i] = kept[first + i] ? block[i] : 0.0f;
        store(&h, first, 1, block, n);
    }
}
