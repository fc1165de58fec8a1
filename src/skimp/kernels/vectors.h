/* Vectors of floats for one instruction set; included once for each.
 *
 * The including file sets ISA (a suffix), TARGET (an attribute), VW (floats in a vector) and FMA
 * (whether a product and a sum are one instruction). The compiler's own vector types do the
 * arithmetic; only sums across a vector need to be spelled out. */
#undef VF
#undef VI
#undef VF_ANYWHERE
#undef VI_ANYWHERE
#undef PAIR
#define VF NAME(floats)
#define VI NAME(words)
#define VF_ANYWHERE NAME(floats_anywhere)
#define VI_ANYWHERE NAME(words_anywhere)
#define PAIR NAME(pair)

typedef float VF __attribute__((vector_size(4 * VW)));
typedef int32_t VI __attribute__((vector_size(4 * VW)));
typedef float VF_ANYWHERE __attribute__((vector_size(4 * VW), aligned(4), may_alias));
typedef int32_t VI_ANYWHERE __attribute__((vector_size(4 * VW), aligned(2), may_alias));
typedef struct {
    VF a, b;
} PAIR;

INLINE VF NAME(load)(const float *p) { return (VF) * (const VF_ANYWHERE *)p; }
INLINE void NAME(put)(float *p, VF v) { *(VF_ANYWHERE *)p = (VF_ANYWHERE)v; }
INLINE VF NAME(all)(float s) { return (VF){0} + s; }
INLINE VF NAME(choose)(VI mask, VF yes, VF no) { return (VF)(((VI)yes & mask) | ((VI)no & ~mask)); }
INLINE VF NAME(larger)(VF x, VF y) { return NAME(choose)((VI)(x > y), x, y); }

INLINE float NAME(sum)(VF v) {
    float s[4], quarter[VW];
    NAME(put)(quarter, v);
    UNROLL for (int i = 0; i < 4; i++) {
        s[i] = quarter[i];
        UNROLL for (int j = 4; j < VW; j += 4) s[i] += quarter[i + j];
    }
    return (s[0] + s[2]) + (s[1] + s[3]);
}

/* out[i] = the sum across v[i], VW of them. */
#if VW == 16
INLINE void NAME(sums)(const VF *v, float *out) {
    /* Each step folds two vectors into one: half of each stays, the other halves change places. */
    __m512 t[8];
    UNROLL for (int i = 0; i < 8; i++) {
        const __m512 x = (__m512)v[i + (i & 4)], y = (__m512)v[i + (i & 4) + 4];
        t[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, x, y), _mm512_shuffle_f32x4(x, y, 0x4e));
    }
    UNROLL for (int i = 0; i < 4; i++) { /* 128-bit lanes x0 x1 y2 y3 -> x0 y. x1 y. */
        const __m512 x = t[i], y = t[i + 4];
        t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        const __m512 x = t[2 * i], y = t[2 * i + 1];
        t[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, x, y), _mm512_shuffle_ps(x, y, 0x4e));
    }
    const __m512 even = _mm512_shuffle_ps(t[0], t[1], 0x88);
    const __m512 odd = _mm512_shuffle_ps(t[0], t[1], 0xdd);
    _mm512_storeu_ps(out, _mm512_add_ps(even, odd));
}
#elif FMA
INLINE void NAME(sums)(const VF *v, float *out) {
    __m256 t[4];
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm256_hadd_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
    }
    const __m256 low = _mm256_hadd_ps(t[0], t[1]), high = _mm256_hadd_ps(t[2], t[3]);
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                                        _mm256_permute2f128_ps(low, high, 0x31)));
}
#else
INLINE void NAME(sums)(const VF *v, float *out) {
    UNROLL for (int i = 0; i < VW; i++) out[i] = NAME(sum)(v[i]);
}
#endif

/* e^x for x <= 0 to about one unit in the last place; 0 below the least normal number. NaN stays
 * NaN. */
INLINE VF NAME(exp)(VF x) {
    /* Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits. */
    const VF shifted = x * 1.44269504f + 12582912.0f;
    const VF whole = shifted - 12582912.0f;
    const VF r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts */
    VF p = r * (1.0f / 5040) + (1.0f / 720); /* Taylor: |r| < 0.35, the next term is below 2^-26 */
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const VF power = (VF)(((VI)shifted << 23) + 0x3f800000);
    return NAME(choose)((VI)(x < NAME(all)(-87.3f)), (VF){0}, p * power);
}

INLINE VF NAME(tanh)(VF x) {
    const VI sign = (VI)x & (int32_t)0x80000000;
    const VF t = NAME(exp)((VF)((VI)x | (int32_t)0x80000000) * 2.0f); /* e^(-2 |x|) */
    return (VF)((VI)((1.0f - t) / (1.0f + t)) | sign);
}
