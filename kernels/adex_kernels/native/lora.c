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
#if defined(__F16C__)
#include <immintrin.h>
#endif

enum { BFLOAT16, FLOAT16, FLOAT32 };
enum { LANES = 16, RANKS = 8, COLUMNS = 1024, SERIAL_BYTES = 1 << 16, SPINS_MAX = 1000 };

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
    union { __m256 half[2]; f32 whole; } out = {{_mm256_cvtph_ps(in.half[0]), _mm256_cvtph_ps(in.half[1])}};
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
    union { __m128i half[2]; u16 whole; } out = {{_mm256_cvtps_ph(in.half[0], 0), _mm256_cvtps_ph(in.half[1], 0)}};
    return out.whole;
#else
    typedef _Float16 f16 __attribute__((vector_size(32)));
    return (u16)__builtin_convertvector(value, f16);
#endif
}

/* `count` lanes, the others 0; a constant LANES needs no branch. */
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
        u32 wide = (u32)value, nan = (u32)(value != value);
        wide = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;   /* would carry a NaN into the sign */
        bits = __builtin_convertvector((wide & ~nan) | (0x7fc0 & nan), u16);
    }
    memcpy(to, &bits, count * 2);
}

INLINE float total(f32 lanes) {
    union { f32 whole; f32x8 half[2]; } a = {lanes};
    union { f32x8 whole; f32x4 half[2]; } b = {a.half[0] + a.half[1]};
    f32x4 c = b.half[0] + b.half[1];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* The products of one row with `ranks` rows of A; each has its own sum. */
INLINE void shrink(const char *x, const char *a, int64_t in, int ranks, float *shrunk, int type) {
    f32 sums[4] = {{0}};
    int64_t k = 0;
    for (; k + LANES <= in; k += LANES) {
        f32 value = load(at(x, k, type), LANES, type);
        for (int r = 0; r < ranks; r++)
            sums[r] += value * load(at(a, r * in + k, type), LANES, type);
    }
    if (k < in) {
        f32 value = load(at(x, k, type), in - k, type);
        for (int r = 0; r < ranks; r++)
            sums[r] += value * load(at(a, r * in + k, type), in - k, type);
    }
    for (int r = 0; r < ranks; r++)
        shrunk[r] = total(sums[r]);
}

/* Add `ranks` rows of B, `stride` apart, to one row's sums. */
INLINE void expand(f32 *sums, const float *shrunk, const char *b, int64_t stride, int64_t columns,
                   int ranks, int type) {
    int64_t c = 0;
    for (; c + LANES <= columns; c += LANES) {
        f32 sum = sums[c / LANES];
        for (int r = 0; r < ranks; r++)
            sum += shrunk[r] * load(at(b, r * stride + c, type), LANES, type);
        sums[c / LANES] = sum;
    }
    if (c < columns)
        for (int r = 0; r < ranks; r++)
            sums[c / LANES] += shrunk[r] * load(at(b, r * stride + c, type), columns - c, type);
}

INLINE void shrink_ranks(const Call *call, const Segment *segment, const Entry *entry, int64_t rank,
                         int type) {
    int64_t stop = rank + RANKS < entry->rank_total ? rank + RANKS : entry->rank_total;
    for (; rank < stop; rank += stop - rank >= 4 ? 4 : 1) {
        const char *a = at(entry->a, rank * entry->in, type);
        for (int64_t row = 0; row < segment->rows; row++) {
            const char *x = at(call->x, (segment->row_start + row) * call->x_stride, type);
            float *shrunk = call->shrunk + segment->shrunk_start + row * entry->rank_total + rank;
            if (stop - rank >= 4)
                shrink(x, a, entry->in, 4, shrunk, type);
            else
                shrink(x, a, entry->in, 1, shrunk, type);
        }
    }
}

INLINE void expand_columns(const Call *call, const Segment *segment, const Entry *entry,
                           const Slice *slice, int64_t column, int type) {
    int64_t columns = slice->out - column < COLUMNS ? slice->out - column : COLUMNS;
    for (int64_t row = 0; row < segment->rows; row++) {
        const float *shrunk = call->shrunk + segment->shrunk_start + row * entry->rank_total
            + slice->rank_start;
        char *y = (char *)at(call->y, (segment->row_start + row) * call->y_stride
                             + slice->out_start + column, type);
        f32 sums[COLUMNS / LANES];
        int64_t c = 0, r = 0;
        for (; c + LANES <= columns; c += LANES)
            sums[c / LANES] = load(at(y, c, type), LANES, type);
        if (c < columns)
            sums[c / LANES] = load(at(y, c, type), columns - c, type);
        const char *b = at(slice->b, column, type);
        for (; r + 4 <= slice->rank; r += 4)
            expand(sums, shrunk + r, at(b, r * slice->out, type), slice->out, columns, 4, type);
        for (; r < slice->rank; r++)
            expand(sums, shrunk + r, at(b, r * slice->out, type), slice->out, columns, 1, type);
        for (c = 0; c + LANES <= columns; c += LANES)
            store((char *)at(y, c, type), sums[c / LANES], LANES, type);
        if (c < columns)
            store((char *)at(y, c, type), sums[c / LANES], columns - c, type);
    }
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
    for (int spins = 0; __atomic_load_n(&progress->shrunk, __ATOMIC_ACQUIRE) < piece; spins++)
        if (spins >= SPINS_MAX)
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
    int64_t threads = 1 + bytes / SERIAL_BYTES < call->threads ? 1 + bytes / SERIAL_BYTES : call->threads;
    if (threads < 2)
        run[type](call, &progress);
    else {
#pragma omp parallel num_threads((int)threads)
        run[type](call, &progress);
    }
    return 0;
}
