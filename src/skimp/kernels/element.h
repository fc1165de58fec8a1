/* One element type on one instruction set: loads, stores and the dot product's step.
 *
 * Elements are loaded STEP at a time, as a pair of vectors. bfloat16: a 32-bit lane holds two
 * neighbours, so the even and the odd elements are a shift and a mask away; sums kept in that
 * order go back by the inverse. float32: the first and the second vector.
 *
 * BF16 is 0 or 1; DOTS says that the processor multiplies pairs of bfloat16 itself, so that `x`
 * stays as it is; else it is widened once and kept in the order in which weights come. (Such
 * processors take numbers below the least normal one, 1e-38, for zero.) */
#undef E
#undef STEP
#undef DOT_X
#undef DOT_V
#undef DOT_SAME
#define STEP (2 * VW)

#if BF16
#define E uint16_t

INLINE float FN(one)(E e) {
    union { uint32_t u; float f; } bits = {(uint32_t)e << 16};
    return bits.f;
}
INLINE E FN(rounded)(float f) {
    union { float f; uint32_t u; } bits = {f};
    if (f != f) return 0x7fc0;
    return (E)((bits.u + 0x7fff + ((bits.u >> 16) & 1)) >> 16); /* to nearest, ties to even */
}
INLINE PAIR FN(load)(const E *p) {
    const VI both = (VI) * (const VI_ANYWHERE *)p;
    return (PAIR){(VF)(both << 16), (VF)(both & (int32_t)0xffff0000)};
}
/* The rounded value in the upper half of each lane, the lower half zero. */
INLINE VI FN(round_lanes)(VF v) {
    const VI bits = (VI)v;
    const VI near = (bits + (0x7fff + ((bits >> 16) & 1))) & (int32_t)0xffff0000;
    const VI nan = (VI)(v != v);
    return (near & ~nan) | (nan & 0x7fc00000);
}
INLINE void FN(put)(E *p, PAIR v) {
    const VI low = (FN(round_lanes)(v.a) >> 16) & 0xffff;
    *(VI_ANYWHERE *)p = (VI_ANYWHERE)(low | FN(round_lanes)(v.b));
}
INLINE PAIR FN(round)(PAIR v) {
    return (PAIR){(VF)FN(round_lanes)(v.a), (VF)FN(round_lanes)(v.b)};
}

#else
#define E float

INLINE float FN(one)(E e) { return e; }
INLINE E FN(rounded)(float f) { return f; }
INLINE PAIR FN(load)(const E *p) { return (PAIR){NAME(load)(p), NAME(load)(p + VW)}; }
INLINE void FN(put)(E *p, PAIR v) {
    NAME(put)(p, v.a);
    NAME(put)(p + VW, v.b);
}
INLINE PAIR FN(round)(PAIR v) { return v; }
#endif

/* Ask for a step of elements that will be needed, but not into the first cache: it has too few
 * slots for lines under way. */
INLINE void FN(fetch)(const E *p) {
    UNROLL for (size_t i = 0; i < STEP * sizeof(E); i += 64) {
        __builtin_prefetch((const char *)p + i, 0, 1);
    }
}

INLINE PAIR FN(load_some)(const E *p, int64_t n) {
    E some[STEP] = {0};
    memcpy(some, p, (size_t)n * sizeof(E));
    return FN(load)(some);
}
INLINE void FN(put_some)(E *p, PAIR v, int64_t n) {
    E some[STEP];
    FN(put)(some, v);
    memcpy(p, some, (size_t)n * sizeof(E));
}

#if BF16 && DOTS
#define DOT_X uint16_t
#define DOT_V __m512i
#define DOT_SAME 1
INLINE DOT_V FN(dot_w)(const E *p) { return _mm512_loadu_si512(p); }
INLINE DOT_V FN(dot_x)(const DOT_X *p) { return _mm512_loadu_si512(p); }
INLINE VF FN(dot)(VF sum, DOT_V w, DOT_V x) {
    return (VF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
}
#else
#define DOT_X float
#define DOT_V PAIR
#define DOT_SAME (!BF16)
INLINE DOT_V FN(dot_w)(const E *p) { return FN(load)(p); }
INLINE DOT_V FN(dot_x)(const DOT_X *p) { return (PAIR){NAME(load)(p), NAME(load)(p + VW)}; }
INLINE VF FN(dot)(VF sum, DOT_V w, DOT_V x) {
    sum += w.a * x.a;
    sum += w.b * x.b;
    return sum;
}
#endif

INLINE DOT_V FN(dot_w_some)(const E *p, int64_t n) {
    E some[STEP] = {0};
    memcpy(some, p, (size_t)n * sizeof(E));
    return FN(dot_w)(some);
}

/* Lay a row of `k` elements out as the dot product wants it, zeros up to a whole step; steps come
 * `apart` elements after each other. */
INLINE void FN(lay)(DOT_X *to, int64_t apart, const E *from, int64_t k) {
    for (int64_t i = 0; i < k; i += STEP, to += apart) {
        E some[STEP] = {0};
        memcpy(some, from + i, (size_t)(k - i < STEP ? k - i : STEP) * sizeof(E));
#if BF16 && DOTS
        memcpy(to, some, sizeof some);
#else
        const PAIR v = FN(load)(some);
        NAME(put)(to, v.a);
        NAME(put)(to + VW, v.b);
#endif
    }
}
