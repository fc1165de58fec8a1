/* Root-mean-square norm of each row of x; the row stays in the cache between its two passes. */
static TARGET int FN(norm)(const norm_args *a, int part, int parts) {
    (void)part, (void)parts;
    const E *weight = a->weight;
    for (int64_t m = 0; m < a->m; m++) {
        const E *x = (const E *)a->x + m * a->k;
        E *out = (E *)a->out + m * a->k;
        VF even = {0}, odd = {0};
        for (int64_t j = 0; j < a->k; j += STEP) {
            const PAIR v = a->k - j >= STEP ? FN(load)(x + j) : FN(load_some)(x + j, a->k - j);
            even += v.a * v.a;
            odd += v.b * v.b;
        }
        const float mean = NAME(sum)(even + odd) / (float)a->k;
        const float factor = 1.0f / sqrtf(mean + (float)a->eps), offset = (float)a->offset;
        for (int64_t j = 0; j < a->k; j += STEP) {
            const int64_t n = a->k - j < STEP ? a->k - j : STEP;
            PAIR v = n == STEP ? FN(load)(x + j) : FN(load_some)(x + j, n);
            PAIR w = n == STEP ? FN(load)(weight + j) : FN(load_some)(weight + j, n);
            v = (PAIR){v.a * factor, v.b * factor};
            w = (PAIR){w.a + offset, w.b + offset};
            if (a->round_first) v = FN(round)(v), w = FN(round)(w);
            v = (PAIR){v.a * w.a, v.b * w.b};
            if (n == STEP) FN(put)(out + j, v);
            else FN(put_some)(out + j, v, n);
        }
    }
    return 0;
}
