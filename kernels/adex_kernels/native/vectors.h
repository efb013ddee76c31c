/* Sixteen floats at a time, in the compiler's own vectors: one source for AVX-512, AVX2, NEON and
 * others. Elements of every type are computed with as float32 and rounded once, to nearest even.
 *
 * The sources are compiled once for each TYPE of element. No option may let the compiler reorder
 * sums: a row's bits must not depend on its company.
 */
#ifndef ADEX_VECTORS_H
#define ADEX_VECTORS_H
#include <stdint.h>
#include <string.h>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

/* TYPE is one of the following; exported names end in it. */
#define BFLOAT16 0
#define FLOAT16 1
#define FLOAT32 2
#if TYPE == BFLOAT16
#define EXPORTED(name) name##_bfloat16
#elif TYPE == FLOAT16
#define EXPORTED(name) name##_float16
#else
#define EXPORTED(name) name##_float32
#endif
enum { LANES = 16, ELEMENT = TYPE == FLOAT32 ? 4 : 2 };

typedef float f32 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32 __attribute__((vector_size(64)));
typedef int32_t i32 __attribute__((vector_size(64)));
typedef uint16_t u16 __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))
INLINE char *at(const void *base, int64_t element) { return (char *)base + element * ELEMENT; }

INLINE f32 from_half(u16 bits) {
#if defined(__AVX512F__)
    return (f32)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
    union { u16 whole; __m128i half[2]; } in = {bits};
    union { __m256 half[2]; f32 whole; } out;
    for (int i = 0; i < 2; i++)
        out.half[i] = _mm256_cvtph_ps(in.half[i]);
    return out.whole;
#else
    typedef _Float16 f16 __attribute__((vector_size(32)));
    return __builtin_convertvector((f16)bits, f32);
#endif
}

INLINE u16 to_half(f32 value) {
#if defined(__AVX512F__)
    return (u16)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    union { f32 whole; __m256 half[2]; } in = {value};
    union { __m128i half[2]; u16 whole; } out;
    for (int i = 0; i < 2; i++)
        out.half[i] = _mm256_cvtps_ph(in.half[i], _MM_FROUND_TO_NEAREST_INT);
    return out.whole;
#else
    typedef _Float16 f16 __attribute__((vector_size(32)));
    return (u16)__builtin_convertvector(value, f16);
#endif
}

/* The compiler's own conversions go through halves of a vector. */
INLINE u32 lengthened(u16 bits) {
#if defined(__AVX512F__)
    return (u32)_mm512_cvtepu16_epi32((__m256i)bits);
#else
    return __builtin_convertvector(bits, u32);
#endif
}

INLINE u16 shortened(u32 bits) {
#if defined(__AVX512F__)
    return (u16)_mm512_cvtepi32_epi16((__m512i)bits);
#else
    return __builtin_convertvector(bits, u16);
#endif
}

/* The first `count` lanes, the others 0. */
INLINE f32 load_floats(const void *from, int64_t count) {
    f32 value = {0};
    memcpy(&value, from, count * 4);
    return value;
}

INLINE f32 load_as(int type, const char *from, int64_t count) {
    if (type == FLOAT32)
        return load_floats(from, count);
    u16 bits = {0};
    memcpy(&bits, from, count * 2);
    if (type == FLOAT16)
        return from_half(bits);
    return (f32)(lengthened(bits) << 16);
}

INLINE f32 load(const char *from, int64_t count) { return load_as(TYPE, from, count); }

INLINE void store_floats(void *to, f32 value, int64_t count) { memcpy(to, &value, count * 4); }

INLINE void store(char *to, f32 value, int64_t count) {
    if (TYPE == FLOAT32) {
        store_floats(to, value, count);
        return;
    }
    u16 bits;
    if (TYPE == FLOAT16) {
        bits = to_half(value);
    } else {
        /* No NaN is carried into the sign: made from bfloat16, its lower half is 0. */
        u32 wide = (u32)value;
        wide = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
        bits = shortened(wide);
    }
    memcpy(to, &bits, count * 2);
}

/* sums + the products of two pairs in each lane, of bfloat16 as bits. */
INLINE f32 pair_products(f32 sums, u32 x, u32 weights) {
#if defined(__AVX512BF16__)
    return (f32)_mm512_dpbf16_ps((__m512)sums, (__m512bh)x, (__m512bh)weights);
#else
    sums += (f32)(x << 16) * (f32)(weights << 16);
    return sums + (f32)(x & 0xffff0000) * (f32)(weights & 0xffff0000);
#endif
}

/* What a sum of products takes at a time: of bfloat16 pairs, which are not widened first. */
enum { WIDTH = TYPE == BFLOAT16 ? 2 * LANES : LANES };

/* The first `count` of WIDTH elements, the others 0. */
INLINE f32 load_factors(const char *from, int64_t count) {
    if (TYPE != BFLOAT16)
        return load(from, count);
    f32 pairs = {0};
    memcpy(&pairs, from, count * 2);
    return pairs;
}

INLINE f32 add_products(f32 sums, f32 a, f32 b) {
    return TYPE == BFLOAT16 ? pair_products(sums, (u32)a, (u32)b) : sums + a * b;
}

INLINE float total(f32 lanes) {
    union { f32 whole; f32x8 half[2]; } a = {lanes};
    union { f32x8 whole; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
    f32x4 c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Sixteen at a time and then what is left; constants, so that there is no branch within. */
#define IN_STEPS(k, count, step, stop, ...)                                     \
    {                                                                           \
        int64_t k = 0;                                                          \
        for (; k + step <= (stop); k += step) { enum { count = step }; __VA_ARGS__; } \
        if (k < (stop)) { int64_t count = (stop) - k; __VA_ARGS__; }            \
    }
#define IN_LANES(k, count, stop, ...) IN_STEPS(k, count, LANES, stop, __VA_ARGS__)

/* Four at a time, and what is left as one; constants, so that sums stay in registers. */
#define IN_BLOCKS(i, start, stop, ...)                                          \
    {                                                                           \
        int64_t i = (start);                                                    \
        for (; i + 4 <= (stop); i += 4) { enum { i##_block = 4 }; __VA_ARGS__; }       \
        if ((stop) - i == 3) { enum { i##_block = 3 }; __VA_ARGS__; }                  \
        else if ((stop) - i == 2) { enum { i##_block = 2 }; __VA_ARGS__; }             \
        else if ((stop) - i == 1) { enum { i##_block = 1 }; __VA_ARGS__; }             \
    }

INLINE f32 splat(float value) { return value - (f32){0}; }

/* `yes` where the mask's lanes are set (all ones, as comparisons give), else `no`. */
INLINE f32 chosen(i32 mask, f32 yes, f32 no) {
    return (f32)((mask & (i32)yes) | (~mask & (i32)no));
}

INLINE float greatest(f32 lanes) {
    float found = lanes[0];
    for (int i = 1; i < LANES; i++)
        found = lanes[i] > found ? lanes[i] : found;
    return found;
}

/* exp within 2 units in the last place; 0 below -87, the greatest finite result above 88.
 * Source: the Cephes library's expf. */
INLINE f32 exponential(f32 x) {
    const float magic = 12582912.0f;
    f32 high = chosen(x > 88.0f, splat(88.0f), x), low = splat(-87.0f);
    f32 inside = chosen(high < low, low, high);
    f32 turns = (inside * 1.44269504f + magic) - magic;
    f32 rest = inside - turns * 0.693359375f + turns * 2.12194440e-4f;
    f32 sum = splat(1.9875691500e-4f);
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    i32 power = (__builtin_convertvector(turns, i32) + 127) << 23;
    return chosen(x < low, splat(0.0f), sum * (f32)power);
}

INLINE f32 hyperbolic_tangent(f32 x) {
    return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f);
}

/* Lane t is the sum of the lanes of rows[t]. */
INLINE f32 totals(f32 rows[LANES]) {
    const i32 even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, odd = even + 1;
#pragma GCC unroll 4
    for (int left = LANES / 2; left; left /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < left; i++) {
            f32 a = rows[2 * i], b = rows[2 * i + 1];
            rows[i] = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
        }
    return rows[0];
}
#endif
