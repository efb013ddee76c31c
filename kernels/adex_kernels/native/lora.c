/* The low-rank terms of one group of linears in one layer, for all thin segments of a step at once:
 * y[row] += (x[row] A^T) B, each adapter's matrices read once, front to back.
 *
 * Products accumulate in float32; y is rounded once, to nearest even. The sum for an element of y
 * is taken in one order that depends on the adapter's shape alone: a row's bits are the same
 * whatever else is in the step and however many threads run. So no option may let the compiler
 * reorder sums.
 *
 * A record describes one adapter, in int64 words: the offset of an entry for each (layer, group), 0
 * where there is none, then the entries (see native/lora.py, which writes them).
 */
#include <sched.h>
#include <stdint.h>
#include <string.h>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

enum { BFLOAT16, FLOAT16, FLOAT32 };
enum { LANES = 16, RANKS = 8, COLUMNS = 1024, TEAM_BYTES = 1 << 18, SPINS_MAX = 1000 };

typedef float f32 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef uint32_t u32 __attribute__((vector_size(64)));
typedef uint16_t u16 __attribute__((vector_size(32)));

typedef struct { int64_t rank_start, rank, out_start, out; const void *b; } Slice;
typedef struct { const void *a; int64_t in, rank_total, slices; Slice slice[]; } Entry;
typedef struct { int64_t row_start, rows; const int64_t *record; int64_t shrunk_start; } Segment;
typedef struct {
    void *y;
    int64_t y_stride, y_columns;
    const void *x;
    int64_t x_stride, x_columns, rows;
    const Segment *segments;
    int64_t count, index;
    float *shrunk;                   /* [rows, rank_total] of each segment at its shrunk_start */
    int64_t threads;
} Call;

#define INLINE static inline __attribute__((always_inline))

INLINE const char *at(const void *base, int64_t element, int type) {
    return (const char *)base + element * (type == FLOAT32 ? 4 : 2);
}

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

/* The first `count` lanes, the others 0. */
INLINE f32 load(const char *from, int64_t count, int type) {
    if (type == FLOAT32) {
        f32 value = {0};
        memcpy(&value, from, count * 4);
        return value;
    }
    u16 bits = {0};
    memcpy(&bits, from, count * 2);
    if (type == FLOAT16)
        return from_half(bits);
    return (f32)(__builtin_convertvector(bits, u32) << 16);
}

INLINE void store(char *to, f32 value, int64_t count, int type) {
    if (type == FLOAT32) {
        memcpy(to, &value, count * 4);
        return;
    }
    u16 bits;
    if (type == FLOAT16) {
        bits = to_half(value);
    } else {
        /* No NaN is carried into the sign: made from bfloat16, its lower half is 0. */
        u32 wide = (u32)value;
        wide = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
        bits = __builtin_convertvector(wide, u16);
    }
    memcpy(to, &bits, count * 2);
}

INLINE float total(f32 lanes) {
    union { f32 whole; f32x8 half[2]; } a = {lanes};
    union { f32x8 whole; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
    f32x4 c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Sixteen at a time and then what is left; constants, so that there is no branch within. */
#define IN_LANES(k, count, stop, work)                                          \
    {                                                                           \
        int64_t k = 0;                                                          \
        for (; k + LANES <= (stop); k += LANES) { enum { count = LANES }; work; } \
        if (k < (stop)) { int64_t count = (stop) - k; work; }                   \
    }

/* Four at a time and then one; constants, so that sums stay in registers. */
#define IN_BLOCKS(i, start, stop, work)                                         \
    {                                                                           \
        int64_t i = (start);                                                    \
        for (; i + 4 <= (stop); i += 4) { enum { i##_block = 4 }; work; }       \
        for (; i < (stop); i++) { enum { i##_block = 1 }; work; }               \
    }

/* The products of `rows` rows of x with `ranks` rows of A; each has a sum of its own. */
INLINE void shrink(const char *x, int64_t x_stride, int rows, const char *a, int64_t in, int ranks,
                   float *shrunk, int64_t shrunk_stride, int type) {
    f32 sums[4][4] = {{{0}}}, values[4];
    IN_LANES(k, count, in, {
        for (int i = 0; i < rows; i++)
            values[i] = load(at(x, i * x_stride + k, type), count, type);
        for (int r = 0; r < ranks; r++) {
            f32 weights = load(at(a, r * in + k, type), count, type);
            __builtin_prefetch(at(a, (r + ranks) * in + k, type));
            for (int i = 0; i < rows; i++)
                sums[i][r] += values[i] * weights;
        }
    })
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < ranks; r++)
            shrunk[i * shrunk_stride + r] = total(sums[i][r]);
}

/* Add `ranks` rows of B to the sums of `rows` rows. */
INLINE void expand(f32 (*sums)[COLUMNS / LANES], int rows, const float *shrunk,
                   int64_t shrunk_stride, const char *b, int64_t b_stride, int64_t columns,
                   int ranks, int type) {
    float factors[4][4];
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < ranks; r++)
            factors[i][r] = shrunk[i * shrunk_stride + r];
    IN_LANES(c, count, columns, {
        f32 values[4];
        for (int i = 0; i < rows; i++)
            values[i] = sums[i][c / LANES];
        for (int r = 0; r < ranks; r++) {
            f32 weights = load(at(b, r * b_stride + c, type), count, type);
            __builtin_prefetch(at(b, (r + ranks) * b_stride + c, type));
            for (int i = 0; i < rows; i++)
                values[i] += factors[i][r] * weights;
        }
        for (int i = 0; i < rows; i++)
            sums[i][c / LANES] = values[i];
    })
}

INLINE void shrink_ranks(const Call *call, const Segment *segment, const Entry *entry, int64_t rank,
                         int type) {
    int64_t stop = rank + RANKS < entry->rank_total ? rank + RANKS : entry->rank_total;
    const char *x = at(call->x, segment->row_start * call->x_stride, type);
    float *shrunk = call->shrunk + segment->shrunk_start;
    IN_BLOCKS(r, rank, stop, IN_BLOCKS(row, 0, segment->rows,
        shrink(at(x, row * call->x_stride, type), call->x_stride, row_block,
               at(entry->a, r * entry->in, type), entry->in, r_block,
               shrunk + row * entry->rank_total + r, entry->rank_total, type)))
}

INLINE void expand_rows(const Call *call, const Entry *entry, const Slice *slice, char *y,
                        const float *shrunk, const char *b, int64_t columns, int rows, int type) {
    f32 sums[4][COLUMNS / LANES];
    for (int i = 0; i < rows; i++)
        IN_LANES(c, count, columns,
            sums[i][c / LANES] = load(at(y, i * call->y_stride + c, type), count, type))
    IN_BLOCKS(r, 0, slice->rank,
        expand(sums, rows, shrunk + r, entry->rank_total, at(b, r * slice->out, type), slice->out,
               columns, r_block, type))
    for (int i = 0; i < rows; i++)
        IN_LANES(c, count, columns,
            store((char *)at(y, i * call->y_stride + c, type), sums[i][c / LANES], count, type))
}

INLINE void expand_columns(const Call *call, const Segment *segment, const Entry *entry,
                           const Slice *slice, int64_t column, int type) {
    int64_t columns = slice->out - column < COLUMNS ? slice->out - column : COLUMNS;
    char *y = (char *)at(call->y, segment->row_start * call->y_stride + slice->out_start + column,
                         type);
    const float *shrunk = call->shrunk + segment->shrunk_start + slice->rank_start;
    IN_BLOCKS(row, 0, segment->rows,
        expand_rows(call, entry, slice, (char *)at(y, row * call->y_stride, type),
                    shrunk + row * entry->rank_total, at(slice->b, column, type), columns,
                    row_block, type))
}

static inline const Entry *entry_of(const Segment *segment, int64_t index) {
    int64_t offset = segment->record[index];
    return offset ? (const Entry *)(segment->record + offset) : 0;
}

typedef struct { int64_t next_shrink, shrunk, next_expand; } Progress;

#define TAKE(counter) __atomic_fetch_add(&(counter), 1, __ATOMIC_RELAXED)

/* Every thread walks all pieces of work and does those whose numbers it takes. */
INLINE void take_part(const Call *call, Progress *progress, int type) {
    int64_t piece = 0, mine = TAKE(progress->next_shrink);
    for (const Segment *s = call->segments; s < call->segments + call->count; s++) {
        const Entry *entry = entry_of(s, call->index);
        for (int64_t rank = 0; entry && rank < entry->rank_total; rank += RANKS, piece++) {
            if (piece != mine)
                continue;
            shrink_ranks(call, s, entry, rank, type);
            __atomic_fetch_add(&progress->shrunk, 1, __ATOMIC_RELEASE);
            mine = TAKE(progress->next_shrink);
        }
    }
    /* Pieces under way elsewhere are short, unless their thread has lost its core. */
    for (int spins = 0; __atomic_load_n(&progress->shrunk, __ATOMIC_ACQUIRE) < piece;)
        if (spins < SPINS_MAX)
            spins++;
        else
            sched_yield();
    piece = 0, mine = TAKE(progress->next_expand);
    for (const Segment *s = call->segments; s < call->segments + call->count; s++) {
        const Entry *entry = entry_of(s, call->index);
        for (int64_t i = 0; entry && i < entry->slices; i++)
            for (int64_t column = 0; column < entry->slice[i].out; column += COLUMNS, piece++) {
                if (piece != mine)
                    continue;
                expand_columns(call, s, entry, &entry->slice[i], column, type);
                mine = TAKE(progress->next_expand);
            }
    }
}

static void run_bfloat16(const Call *call, Progress *p) { take_part(call, p, BFLOAT16); }
static void run_float16(const Call *call, Progress *p) { take_part(call, p, FLOAT16); }
static void run_float32(const Call *call, Progress *p) { take_part(call, p, FLOAT32); }

/* The vector instructions that this was compiled for. */
const char *adex_lora_target(void) {
#if defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
    return "avx2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "generic";
#endif
}

/* Returns: 0, or 1 with y untouched where a segment or its matrices do not fit x and y. */
int adex_lora_add(const Call *call, int type) {
    int64_t bytes = 0;
    for (const Segment *s = call->segments; s < call->segments + call->count; s++) {
        const Entry *entry = entry_of(s, call->index);
        if (s->row_start < 0 || s->rows < 1 || s->row_start + s->rows > call->rows)
            return 1;
        if (entry && entry->in != call->x_columns)
            return 1;
        for (int64_t i = 0; entry && i < entry->slices; i++) {
            if (entry->slice[i].out_start + entry->slice[i].out > call->y_columns)
                return 1;
            bytes += entry->slice[i].rank * (entry->in + entry->slice[i].out) * 2;
        }
    }
    void (*const run[])(const Call *, Progress *) = {run_bfloat16, run_float16, run_float32};
    Progress progress = {0, 0, 0};
    /* All of torch's threads or none: OpenMP ends those that a smaller team leaves over. */
    if (bytes < TEAM_BYTES || call->threads < 2)
        run[type](call, &progress);
    else {
#pragma omp parallel num_threads((int)call->threads)
        run[type](call, &progress);
    }
    return 0;
}
