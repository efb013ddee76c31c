/* An adapter as it was saved, into its bundle: see native/pack.py, which writes the pieces.
 *
 * Numbers are scaled as float32 and rounded once, to nearest even, as torch does.
 */
#include "vectors.h"

/* A matrix [rows, columns] of type `kind`, `start` bytes into the file, in rows as it lies or, where
 * `turned`, in columns from element `at` of the bundle on. */
typedef struct {
    int64_t start, at, rows, columns;
    int32_t kind, turned;
    float scale;
    int32_t unused;
} Piece;

/* Store, and say in which lanes there is NaN or infinity: in what came, or once it is rounded. A NaN
 * that rounds to a number is found in what came. */
INLINE i32 store_finite(char *to, f32 value, int64_t count) {
    store(to, value, count);
    f32 stored = load(to, count);
    return (value - value != 0.0f) | (stored - stored != 0.0f);
}

INLINE i32 pack_straight(const char *from, int kind, int64_t size, float scale, char *to) {
    int64_t bytes = kind == FLOAT32 ? 4 : 2;
    i32 unreal = {0};
    IN_STEPS(k, count, LANES, size,
             { unreal |= store_finite(at(to, k), load_as(kind, from + k * bytes, count) * scale, count); })
    return unreal;
}

#ifdef __clang__
#define PICKED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICKED(a, b, ...) __builtin_shuffle(a, b, (i32){__VA_ARGS__})
#endif

/* Exchange the lanes of a and b that lie across the diagonal of each square of twice that many. */
#define SWAP(a, b, first, second)                         \
    {                                                     \
        f32 kept = PICKED(a, b, first);                   \
        b = PICKED(a, b, second);                         \
        a = kept;                                         \
    }
#define FIRST_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define SECOND_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define FIRST_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define SECOND_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define FIRST_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define SECOND_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define FIRST_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define SECOND_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31

/* Sixteen vectors, turned: lane j of the i-th becomes lane i of the j-th. */
INLINE void turn(f32 *tile) {
#define STAGE(distance)                                                             \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) if (!(i & distance))   \
        SWAP(tile[i], tile[i + distance], FIRST_##distance, SECOND_##distance)
    STAGE(1)
    STAGE(2)
    STAGE(4)
    STAGE(8)
#undef STAGE
}

/* Sixteen rows and columns at a time: their lines are read once. */
INLINE i32 pack_turned(const char *from, int kind, int64_t rows, int64_t columns, float scale, char *to) {
    int64_t bytes = kind == FLOAT32 ? 4 : 2;
    i32 unreal = {0};
    for (int64_t row = 0; row < rows; row += LANES) {
        int64_t height = rows - row < LANES ? rows - row : LANES;
        for (int64_t column = 0; column < columns; column += LANES) {
            int64_t width = columns - column < LANES ? columns - column : LANES;
            f32 tile[LANES] = {{0}};
            const char *line = from + (row * columns + column) * bytes;
            if (height == LANES && width == LANES)
                for (int i = 0; i < LANES; i++)
                    tile[i] = load_as(kind, line + i * columns * bytes, LANES) * scale;
            else
                for (int64_t i = 0; i < height; i++)
                    tile[i] = load_as(kind, line + i * columns * bytes, width) * scale;
            turn(tile);
            char *place = at(to, column * rows + row);
            if (height == LANES && width == LANES)
                for (int j = 0; j < LANES; j++)
                    unreal |= store_finite(at(place, j * rows), tile[j], LANES);
            else
                for (int64_t j = 0; j < width; j++)
                    unreal |= store_finite(at(place, j * rows), tile[j], height);
        }
    }
    return unreal;
}

INLINE i32 pack_piece(const char *file, int kind, const Piece *piece, char *bundle) {
    const char *from = file + piece->start;
    char *to = at(bundle, piece->at);
    if (piece->turned)
        return pack_turned(from, kind, piece->rows, piece->columns, piece->scale, to);
    return pack_straight(from, kind, piece->rows * piece->columns, piece->scale, to);
}

/* Pack all pieces. Answers whether all numbers are finite, as they were and as they are now. */
int EXPORTED(adex_pack)(const char *file, const Piece *pieces, int64_t count, char *bundle) {
    i32 unreal = {0};
    for (const Piece *piece = pieces; piece < pieces + count; piece++) {
        if (piece->kind == FLOAT32)
            unreal |= pack_piece(file, FLOAT32, piece, bundle);
        else if (piece->kind == FLOAT16)
            unreal |= pack_piece(file, FLOAT16, piece, bundle);
        else
            unreal |= pack_piece(file, BFLOAT16, piece, bundle);
    }
    for (int i = 0; i < LANES; i++)
        if (unreal[i])
            return 0;
    return 1;
}
