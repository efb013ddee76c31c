/* The low-rank terms of one group of linears in one layer, for many segments at once:
 * y[row] += (x[row] A^T) B, each adapter's matrices read once, front to back.
 *
 * Products accumulate in float32; y is rounded once. The sum for an element of y is taken in one
 * order that depends on the adapter's shape alone: a row's bits are the same whatever else is in
 * the step and however many threads run.
 *
 * A record describes one adapter, in int64 words: the offset of an entry for each (layer, group), 0
 * where there is none, then the entries (see native/lora.py, which writes them).
 */
#ifndef ADEX_LORA_H
#define ADEX_LORA_H
#include "team.h"
#include "vectors.h"

/* What a piece of work has of A and of B. B is read in whole rows of it where that is for one row of
 * x, and otherwise span by span, which stays in the cache for all rows. */
enum { RANKS = 16, COLUMNS = 2048, SPAN = 256 };

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
    float *shrunk; /* [rows, rank_total] of each segment at its shrunk_start */
    int64_t threads;
} Call;

/* The products of `rows` rows of x with `ranks` rows of A; each has a sum of its own. As much is
 * fetched from `ahead`. */
INLINE void shrink(const char *x, int64_t x_stride, int rows, const char *a, int64_t in, int ranks,
                   const char *ahead, float *shrunk, int64_t shrunk_stride) {
    f32 sums[4][4] = {{{0}}}, values[4];
    IN_STEPS(k, count, WIDTH, in, {
        for (int i = 0; i < rows; i++)
            values[i] = load_factors(at(x, i * x_stride + k), count);
        for (int r = 0; r < ranks; r++) {
            f32 weights = load_factors(at(a, r * in + k), count);
            __builtin_prefetch(at(ahead, r * in + k), 0, 2);
            for (int i = 0; i < rows; i++)
                sums[i][r] = add_products(sums[i][r], values[i], weights);
        }
    })
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < ranks; r++)
            shrunk[i * shrunk_stride + r] = total(sums[i][r]);
}

/* Add `ranks` rows of B to the sums of `rows` rows. As much is fetched from `ahead`. */
INLINE void expand(f32 *sums, int rows, const float *shrunk,
                   int64_t shrunk_stride, const char *b, int64_t b_stride, int64_t columns,
                   int ranks, const char *ahead, int64_t ahead_stride) {
    float factors[4][4];
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < ranks; r++)
            factors[i][r] = shrunk[i * shrunk_stride + r];
    IN_LANES(c, count, columns, {
        f32 values[4];
        for (int i = 0; i < rows; i++)
            values[i] = sums[c / LANES * rows + i];
        for (int r = 0; r < ranks; r++) {
            f32 weights = load(at(b, r * b_stride + c), count);
            __builtin_prefetch(at(ahead, r * ahead_stride + c), 0, 2);
            for (int i = 0; i < rows; i++)
                values[i] += factors[i][r] * weights;
        }
        for (int i = 0; i < rows; i++)
            sums[c / LANES * rows + i] = values[i];
    })
}

/* Work that any thread may do: RANKS ranks of a segment from `first` on, or COLUMNS of a slice. */
typedef struct {
    const Segment *segment;
    const Entry *entry;
    const Slice *slice; /* of B; none of A */
    int64_t first;
    const char *matrix; /* where it begins to read */
} Piece;

/* While a piece is done, what comes after it is fetched: its own rest, then the thread's next. */
static void shrink_piece(const Call *call, const Piece *piece, const Piece *next) {
    const Segment *segment = piece->segment;
    const Entry *entry = piece->entry;
    int64_t start = piece->first, left = entry->rank_total - start;
    int64_t stop = start + (left < RANKS ? left : RANKS);
    const char *x = at(call->x, segment->row_start * call->x_stride);
    float *shrunk = call->shrunk + segment->shrunk_start;
    IN_BLOCKS(r, start, stop, {
        const char *a = at(entry->a, r * entry->in);
        const char *ahead = r + r_block < stop || !next ? at(a, r_block * entry->in) : next->matrix;
        IN_BLOCKS(row, 0, segment->rows,
            shrink(at(x, row * call->x_stride), call->x_stride, row_block, a, entry->in, r_block,
                   ahead, shrunk + row * entry->rank_total + r, entry->rank_total))
    })
}

INLINE void expand_rows(const Call *call, const Piece *piece, const Piece *next, int64_t row,
                        int rows, int64_t column, int64_t columns) {
    const Slice *slice = piece->slice;
    int64_t stride = piece->entry->rank_total;
    const float *shrunk = call->shrunk + piece->segment->shrunk_start + row * stride +
                          slice->rank_start;
    char *y = at(call->y, (piece->segment->row_start + row) * call->y_stride +
                          slice->out_start + piece->first + column);
    f32 sums[COLUMNS / LANES]; /* four rows of a span are fewer */
    for (int i = 0; i < rows; i++)
        IN_LANES(c, count, columns,
            sums[c / LANES * rows + i] = load(at(y, i * call->y_stride + c), count))
    IN_BLOCKS(r, 0, slice->rank, {
        const char *b = at(piece->matrix, r * slice->out + column), *ahead = at(b, r_block * slice->out);
        int64_t ahead_stride = slice->out;
        if (r + r_block >= slice->rank && next) {
            ahead = next->matrix;
            ahead_stride = next->slice->out;
        }
        expand(sums, rows, shrunk + r, stride, b, slice->out, columns, r_block, ahead, ahead_stride);
    })
    for (int i = 0; i < rows; i++)
        IN_LANES(c, count, columns,
            store(at(y, i * call->y_stride + c), sums[c / LANES * rows + i], count))
}

static void expand_piece(const Call *call, const Piece *piece, const Piece *next) {
    int64_t left = piece->slice->out - piece->first, stop = left < COLUMNS ? left : COLUMNS;
    int64_t span = piece->segment->rows > 1 ? SPAN : COLUMNS;
    for (int64_t column = 0; column < stop; column += span) {
        int64_t columns = stop - column < span ? stop - column : span;
        IN_BLOCKS(row, 0, piece->segment->rows,
            expand_rows(call, piece, next, row, row_block, column, columns))
    }
}

static inline const Entry *entry_of(const Segment *segment, int64_t index) {
    int64_t offset = segment->record[index];
    return offset ? (const Entry *)(segment->record + offset) : 0;
}

static inline int64_t shrink_pieces(const Entry *entry) {
    return entry ? (entry->rank_total + RANKS - 1) / RANKS : 0;
}

static inline int64_t expand_pieces(const Entry *entry) {
    int64_t pieces = 0;
    for (int64_t i = 0; entry && i < entry->slices; i++)
        pieces += (entry->slice[i].out + COLUMNS - 1) / COLUMNS;
    return pieces;
}

/* All pieces of a call, expanding or shrinking. */
static inline int64_t pieces_of(const Call *call, int expanding) {
    int64_t pieces = 0;
    for (const Segment *s = call->segments; s < call->segments + call->count; s++) {
        const Entry *entry = entry_of(s, call->index);
        pieces += expanding ? expand_pieces(entry) : shrink_pieces(entry);
    }
    return pieces;
}

/* Where a thread is: pieces are numbered, and it asks for ever greater numbers. */
typedef struct { const Segment *segment; int64_t before; } Cursor;

static Piece piece_of(const Call *call, Cursor *cursor, int64_t number, int expanding) {
    const Entry *entry = entry_of(cursor->segment, call->index);
    for (int64_t n; number >= cursor->before +
                              (n = expanding ? expand_pieces(entry) : shrink_pieces(entry));) {
        cursor->before += n;
        entry = entry_of(++cursor->segment, call->index);
    }
    number -= cursor->before;
    if (!expanding)
        return (Piece){cursor->segment, entry, 0, number * RANKS,
                       at(entry->a, number * RANKS * entry->in)};
    int64_t column = number * COLUMNS;
    const Slice *slice = entry->slice;
    for (int64_t n; column >= (n = (slice->out + COLUMNS - 1) / COLUMNS * COLUMNS); slice++)
        column -= n;
    return (Piece){cursor->segment, entry, slice, column, at(slice->b, column)};
}

/* Does pieces below `count` until there are none; a thread takes its next one before it does the
 * present one, which `finished` counts, where `wanted` are waited for. Returns: the first number
 * beyond them that it took. */
static int64_t do_pieces(const Call *call, int64_t *next_number, int64_t count, int expanding,
                         Gate *finished, int64_t wanted) {
    Cursor cursor = {call->segments, 0};
    Piece pieces[2];
    int64_t number = TAKE(*next_number);
    if (number < count)
        pieces[0] = piece_of(call, &cursor, number, expanding);
    for (int now = 0; number < count; now = !now) {
        const Piece *next = 0;
        number = TAKE(*next_number);
        if (number < count) {
            pieces[!now] = piece_of(call, &cursor, number, expanding);
            next = &pieces[!now];
        }
        if (expanding)
            expand_piece(call, &pieces[now], next);
        else
            shrink_piece(call, &pieces[now], next);
        arrive(finished, wanted);
    }
    return number;
}

/* 0 where a segment or its matrices do not fit x and y. */
static inline int fits(const Call *call) {
    for (const Segment *s = call->segments; s < call->segments + call->count; s++) {
        const Entry *entry = entry_of(s, call->index);
        if (s->row_start < 0 || s->rows < 1 || s->row_start + s->rows > call->rows)
            return 0;
        if (entry && entry->in != call->x_columns)
            return 0;
        for (int64_t i = 0; entry && i < entry->slices; i++)
            if (entry->slice[i].out_start + entry->slice[i].out > call->y_columns)
                return 0;
    }
    return 1;
}
#endif
