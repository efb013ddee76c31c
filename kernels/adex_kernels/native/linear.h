/* Dense products with weights in panels of 64 columns, each read once and front to back.
 *
 * A panel holds, for each element k of the input, its 64 weights; of bfloat16 for each pair of
 * elements, as the processor's pair products want them, the two weights of a column side by side
 * (int8 as the type it is served in). Columns behind the last are 0. Every product is one sum over
 * k in one order: a row's bits do not depend on the other rows, nor on the threads.
 */
#ifndef ADEX_LINEAR_H
#define ADEX_LINEAR_H
#include "team.h"
#include "vectors.h"

enum { VECTORS = 4, PANEL = VECTORS * LANES, ROWS = 6, STREAM_AHEAD = 2048 };

/* [in, out]; `bias` and `scales`, one per column, may be absent: with scales, panels are int8. */
typedef struct {
    const void *panels;
    const float *bias, *scales;
    int64_t in, out;
} Linear;

static inline int64_t panels_of(const Linear *linear) { return (linear->out + PANEL - 1) / PANEL; }

INLINE f32 splat_pair(const char *x) {
    uint32_t pair;
    memcpy(&pair, x, 4);
    return (f32)(pair - (u32){0});
}

INLINE f32 splat_element(const char *x) {
    if (TYPE == FLOAT32) {
        float value;
        memcpy(&value, x, 4);
        return splat(value);
    }
    uint16_t bits;
    memcpy(&bits, x, 2);
    return from_half(bits - (u16){0});
}

/* Where a panel's weights come from: memory, this once; the cache; bytes, to be unpacked; or the
 * cache for so few blocks of rows that each has to fetch more of the next panel. */
enum { STREAMED, CACHED, BYTES, SHORTLY, FEW_BLOCKS = 3 };

/* Sixteen weights from bytes; eight bits are exact in every type. */
INLINE f32 widened(const int8_t *from) {
#if defined(__AVX512F__)
    return (f32)_mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#else
    typedef int8_t i8 __attribute__((vector_size(LANES)));
    i8 bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, i32), f32);
#endif
}

/* Vector v of a panel's weights for step k: one element of the input, of bfloat16 a pair. */
INLINE f32 weights_of(const char *panel, int64_t k, int v, int from) {
    int64_t first = (k * PANEL + v * LANES) * (TYPE == BFLOAT16 ? 2 : 1);
    const int8_t *bytes = (const int8_t *)panel + first;
    if (from != BYTES)
        return TYPE == BFLOAT16 ? load_floats(at(panel, first), LANES)
                                : load(at(panel, first), LANES);
    if (TYPE != BFLOAT16)
        return widened(bytes);
#if defined(__AVX512BF16__)
    return (f32)_mm512_cvtne2ps_pbh((__m512)widened(bytes + LANES), (__m512)widened(bytes));
#else
    char pairs[sizeof(f32)];
    store(pairs, widened(bytes), LANES);
    store(at(pairs, LANES), widened(bytes + LANES), LANES);
    return load_floats(pairs, LANES);
#endif
}

/* Adds the products of `rows` rows of x with a panel. Meanwhile the memory at `ahead` is fetched,
 * `lines` lines for every step. */
INLINE void multiply(f32 (*sums)[VECTORS], int rows, const char *x, int64_t x_stride,
                     const char *panel, int64_t in, int from, const char *ahead, int lines) {
    int64_t steps = TYPE == BFLOAT16 ? in / 2 : in;
    for (int64_t k = 0; k < steps; k++) {
#pragma GCC unroll 4
        for (int i = 0; i < lines; i++)
            __builtin_prefetch(ahead + (k * lines + i) * 64, 0, 2);
        f32 weights[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            weights[v] = weights_of(panel, k, v, from);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            f32 value = TYPE == BFLOAT16 ? splat_pair(at(x, i * x_stride + 2 * k))
                                         : splat_element(at(x, i * x_stride + k));
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++)
                sums[i][v] = add_products(sums[i][v], value, weights[v]);
        }
    }
}

/* A panel of bytes in the serving type. */
static void unpack(char *to, const char *panel, int64_t in) {
    int64_t steps = TYPE == BFLOAT16 ? in / 2 : in;
    for (int64_t k = 0; k < steps; k++)
        for (int v = 0; v < VECTORS; v++, to += LANES * (TYPE == BFLOAT16 ? 4 : ELEMENT)) {
            f32 weights = weights_of(panel, k, v, BYTES);
            if (TYPE == BFLOAT16)
                store_floats(to, weights, LANES);
            else
                store(to, weights, LANES);
        }
}

/* What one panel is multiplied with, and where to. y is of x's type; with `widened`, that in turn
 * as float32. `scratch` holds an unpacked panel. Where `held` is given, a thread that has lost its
 * core does not keep the others waiting: they may do its `work` again. */
typedef struct {
    const Linear *linear;
    const char *x;
    char *y, *scratch;
    int64_t y_stride, rows, threads;
    int widened;
    Held *held;
    int64_t work;
} Product;

INLINE void store_lanes(const Product *p, int64_t row, int64_t column, f32 value, int64_t count) {
    const Linear *linear = p->linear;
    if (linear->scales)
        value *= load_floats(linear->scales + column, count);
    if (linear->bias)
        value += load_floats(linear->bias + column, count);
    if (!p->widened) {
        store(at(p->y, row * p->y_stride + column), value, count);
        return;
    }
    char rounded[sizeof value];
    store(rounded, value, LANES);
    store_floats((float *)p->y + row * p->y_stride + column, load(rounded, LANES), count);
}

static __attribute__((noinline)) void store_rows(const Product *p, int64_t row, int rows,
                                                 int64_t column, f32 (*sums)[VECTORS]) {
    for (int v = 0; v < VECTORS; v++) {
        int64_t first = column + v * LANES, count = p->linear->out - first;
        for (int i = 0; count > 0 && i < rows; i++)
            if (count >= LANES)
                store_lanes(p, row + i, first, sums[i][v], LANES);
            else
                store_lanes(p, row + i, first, sums[i][v], count);
    }
}

/* Of the next panel, for each step. */
INLINE int lines_ahead(int from) { return from == SHORTLY ? 2 : 1; }

/* Returns: whether this thread was the one to store the results. */
INLINE int multiply_rows(const Product *p, int64_t row, int rows, const char *panel, int from,
                         int64_t column, const char *ahead) {
    enum { STEP_BYTES = PANEL * (TYPE == BFLOAT16 ? 4 : ELEMENT) };
    const Linear *linear = p->linear;
    f32 sums[ROWS][VECTORS] = {{{0}}};
    int cached = from == CACHED || from == SHORTLY;
    int lines = cached ? lines_ahead(from) : STEP_BYTES / 64 / (from == BYTES ? ELEMENT : 1);
    multiply(sums, rows, at(p->x, row * linear->in), linear->in, panel, linear->in, from,
             cached ? ahead : panel + STREAM_AHEAD, lines);
    f32 results[ROWS][VECTORS];
    memcpy(results, sums, sizeof results);
    if (p->held && !release(p->held, p->work))
        return 0;
    store_rows(p, row, rows, column, results);
    return 1;
}

/* Rows that pass a panel in one block, which is stored at once. */
static inline int in_one_block(const Product *p) { return p->rows <= ROWS; }

/* All rows through one panel. It stays in the cache for as long, and the one that this thread
 * probably takes next is fetched behind the arithmetic. Returns: whether it is done by this thread;
 * otherwise it is by another. */
static int multiply_panel(const Product *p, int64_t index) {
    const Linear *linear = p->linear;
    int64_t elements = linear->in * PANEL, blocks = (p->rows + ROWS - 1) / ROWS;
    int64_t bytes = linear->scales ? elements : elements * ELEMENT;
    const char *panel = (const char *)linear->panels + index * bytes;
    const char *ahead = panel + p->threads * bytes, *fetched = ahead + bytes;
    int64_t steps = TYPE == BFLOAT16 ? linear->in / 2 : linear->in;
    if (linear->scales && blocks > 1) {
        unpack(p->scratch, panel, linear->in);
        panel = p->scratch;
    }
    int from = blocks > FEW_BLOCKS ? CACHED : blocks > 1 ? SHORTLY : linear->scales ? BYTES : STREAMED;
    int64_t stride = steps * 64 * lines_ahead(from);
    int done = 1;
    for (int64_t row = 0, left = blocks, rows; left; left--, row += rows, ahead += stride) {
        rows = (p->rows - row + left - 1) / left;
        if (ahead >= fetched)
            ahead = fetched = panel; /* it is here */
        switch (from * (ROWS + 1) + rows) {
#define CASE(source, n)                                                         \
    case source * (ROWS + 1) + n:                                               \
        done = multiply_rows(p, row, n, panel, source, index * PANEL, ahead);   \
        break;
#define CASES(source)                                                           \
    CASE(source, 1) CASE(source, 2) CASE(source, 3)                             \
    CASE(source, 4) CASE(source, 5) CASE(source, 6)
            CASES(STREAMED) CASES(CACHED) CASES(BYTES) CASES(SHORTLY)
#undef CASES
#undef CASE
        }
    }
    return done;
}
#endif
