/* What a probe of an early exit sees of states whose kind picks the rows of the head to read
 * (skimp.methods.exit.screened says what for, and is the twin of this in torch). */

/* Scale and cap logits as the family does, each step rounded as torch rounds it. */
INLINE void FN(finished)(E *logits, int64_t count, float scale, float cap) {
    for (int64_t i = 0; i < count && scale != 1.0f; i++)
        logits[i] = FN(rounded)(FN(one)(logits[i]) * scale);
    for (int64_t i = 0; i < count && cap != 0.0f; i++) {
        const float inner = FN(one)(FN(rounded)(FN(one)(logits[i]) / cap));
        logits[i] = FN(rounded)(FN(one)(FN(rounded)(tanhf(inner))) * cap);
    }
}

/* The features of one row, and where its likeliest token stands; -1 without memory. */
INLINE int64_t FN(features)(const E *logits, int64_t count, float reach, float *out) {
    const int64_t padded = (count + VW - 1) / VW * VW;
    float *row = scratch((size_t)padded * sizeof(float));
    if (!row) return -1;
    for (int64_t i = 0; i < count; i++) row[i] = FN(one)(logits[i]);
    for (int64_t i = count; i < padded; i++) row[i] = -INFINITY;
    float first = -INFINITY, second = -INFINITY;
    int64_t place = 0;
    for (int64_t i = 0; i < count; i++) {
        if (row[i] > first) second = first, first = row[i], place = i;
        else if (row[i] > second) second = row[i];
    }
    VF sums = {0};
    for (int64_t i = 0; i < padded; i += VW) sums += NAME(exp)(NAME(load)(row + i) - first);
    const float total = NAME(sum)(sums), likely = 1.0f / total;
    out[0] = likely - expf(second - first) / total;
    out[1] = likely;
    out[2] = (first - second) / SCREEN_LOGIT;
    out[3] = first / SCREEN_LOGIT;
    out[5] = reach;
    return place;
}

static TARGET int FN(screen)(const screen_args *a, int part, int parts) {
    (void)part, (void)parts;
    for (int64_t m = 0; m < a->m; m++) {
        const E *near = (const E *)a->near + m * (a->kinds + 1);
        int64_t kind = 0;
        for (int64_t c = 1; c < a->kinds; c++)
            if (FN(one)(near[c]) > FN(one)(near[kind])) kind = c;
        const int32_t *tokens = a->tokens + kind * a->count;
        E *logits = (E *)a->logits + m * a->count;
        const linear_args read = {
            (const E *)a->z + m * a->k, tokens, 1, a->k, a->dtype, a->threads, 1,
            {{a->weight, a->bias, logits, a->count, a->stride, a->height}}};
        const int failed = skimp_linear(&read);
        if (failed) return failed;
        FN(finished)(logits, a->count, (float)a->scale, (float)a->softcap);
        float *out = a->features + m * SCREEN_FEATURES;
        const float reach = a->reach[kind] + FN(one)(near[a->kinds]);
        const int64_t place = FN(features)(logits, a->count, reach, out);
        if (place < 0) return FAIL_MEMORY;
        a->kind[m] = kind;
        a->token[m] = tokens[place];
        out[4] = a->before && a->before[m] == a->token[m] ? 1.0f : 0.0f;
    }
    return 0;
}
