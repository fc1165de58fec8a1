/* Softmax of one row of scores in place, without its last division. */

static TARGET void NAME(capped)(float *row, int64_t count, float scale, float cap) {
    for (int64_t i = 0; i < count; i += VW) {
        const VF s = NAME(load)(row + i) * scale;
        /* A score that is hidden stays so; tanh would make a finite one of it. */
        const VI hidden = (VI)(NAME(load)(row + i) == NAME(all)(-INFINITY));
        const VF kept = cap != 0.0f ? NAME(tanh)(s / cap) * cap : s;
        NAME(put)(row + i, NAME(choose)(hidden, NAME(all)(-INFINITY), kept));
    }
}

/* Turn scores into e^(score - max); return 1 / their sum, 0 if there is nothing to see.
 * The row has room for a multiple of VW scores. */
static TARGET float NAME(softmax)(float *row, int64_t count, float scale, float cap,
                                  const float *sink) {
    const int64_t padded = (count + VW - 1) / VW * VW;
    for (int64_t i = count; i < padded; i++) row[i] = -INFINITY;
    if (cap != 0.0f || scale <= 0.0f) { /* else the scale can wait for the exponent */
        NAME(capped)(row, count, scale, cap);
        scale = 1.0f;
    }
    VF top = NAME(all)(-INFINITY);
    for (int64_t i = 0; i < padded; i += VW) top = NAME(larger)(NAME(load)(row + i), top);
    float lanes[VW], max = -INFINITY;
    NAME(put)(lanes, top);
    for (int i = 0; i < VW; i++) max = lanes[i] > max ? lanes[i] : max;
    max *= scale;
    if (max == -INFINITY) {
        int nan = 0; /* a score that is not a number is larger than nothing, but not nothing */
        for (int64_t i = 0; i < count; i++) nan |= row[i] != row[i];
        if (!nan) {
            memset(row, 0, (size_t)padded * sizeof(float));
            return 0.0f;
        }
        max = 0.0f;
    }
    VF sum = {0};
    for (int64_t i = 0; i < padded; i += VW) {
        const VF e = NAME(exp)(NAME(load)(row + i) * scale - max);
        NAME(put)(row + i, e);
        sum += e;
    }
    return 1.0f / (NAME(sum)(sum) + (sink ? expf(*sink - max) : 0.0f));
}
