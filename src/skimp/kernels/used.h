/* Operations of an FF of which a request uses some neurons; included by program.h. */

/* Rows and counts are those of the step. */
static int linear_used(const linear_args *fixed, const neurons_used *used) {
    linear_args a = *fixed;
    a.rows = used->rows;
    for (int64_t j = 0; j < a.jobs; j++) a.job[j].count = used->count;
    return skimp_linear(&a);
}

static int neurons_of(const neurons_args *fixed, const neurons_used *used) {
    neurons_args a = *fixed;
    a.rows = used->rows;
    a.r = used->count;
    return skimp_neurons(&a);
}

static void map_used(const map_args *fixed, const neurons_used *used, int64_t width) {
    map_args m = *fixed; /* one dimension: lower.py sees to that */
    m.shape[0] = m.shape[0] / width * used->count;
    map(&m);
}

CLONES static void watch(const watch_args *w, const neurons_used *used) {
    float block[BLOCK];
    const operand h = {w->h, w->dtype, {1}};
    for (int64_t m = 0; m < w->m; m++) {
        const int64_t row = m * used->count;
        const uint8_t *mask = used->mask ? used->mask + row : NULL;
        float *sums = used->sums ? used->sums + row : NULL, norm = 0;
        for (int pass = 0; pass < 2; pass++) { /* for a statistic first the norm, then the shares */
            for (int64_t first = 0; first < used->count; first += BLOCK) {
                const int64_t n = used->count - first < BLOCK ? used->count - first : BLOCK;
                load(block, &h, row + first, 1, n);
                if (mask && !pass) {
                    for (int64_t i = 0; i < n; i++) block[i] = mask[first + i] ? block[i] : 0.0f;
                    store(&h, row + first, 1, block, n);
                }
                if (sums && !pass) for (int64_t i = 0; i < n; i++) norm += block[i] * block[i];
                if (sums && pass && norm > 0)
                    for (int64_t i = 0; i < n; i++) sums[first + i] += block[i] * block[i] / norm;
            }
        }
    }
}
