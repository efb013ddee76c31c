/* Causal attention of a step's rows over their sequences' blocks, where these lie.
 *
 * Queries that share a sequence and a key head are computed together, some at a time; a query's
 * sums are taken in one order that depends on its own context alone.
 */
#ifndef ADEX_ATTENTION_H
#define ADEX_ATTENTION_H
#include "vectors.h"

/* A block holds as many tokens as a vector has lanes. */
enum { QUERIES = 12 };

/* Row t of sequence i, t in [query_starts[i], query_starts[i + 1]), has the position
 * context_lens[i] - query_starts[i + 1] + t. Of the pages of a table only those that the context
 * reaches are looked at. */
typedef struct {
    char *kv; /* [pages, layers, 2, LANES, kv_heads, head_dim] */
    int64_t sequences, layers, heads, kv_heads, head_dim, tables_stride;
    const int64_t *query_starts, *context_lens, *tables;
    float scale, softcap; /* softcap 0: none */
    float *scores;        /* [threads, QUERIES, scores_stride] */
    int64_t scores_stride;
} Attention;

/* Queries [first, first + count) of one sequence and key head; number q is that of row q / per_head
 * and head q % per_head. */
typedef struct {
    const Attention *attention;
    const char *q; /* the first row's first head that reads this key head */
    char *out;
    int64_t q_stride, out_stride, kv_head, layer, window, position, first, count;
    const int64_t *table;
    float *scores;
} Tile;

INLINE const char *block_of(const Tile *t, int64_t block, int value) {
    const Attention *a = t->attention;
    int64_t cell = (t->table[block] * a->layers + t->layer) * 2 + value;
    return at(a->kv, (cell * LANES * a->kv_heads + t->kv_head) * a->head_dim);
}

INLINE int64_t position_of(const Tile *t, int64_t query) {
    return t->position + (t->first + query) / (t->attention->heads / t->attention->kv_heads);
}

INLINE int64_t offset_of(const Tile *t, int64_t query, int64_t stride) {
    int64_t per_head = t->attention->heads / t->attention->kv_heads;
    int64_t number = t->first + query;
    return number / per_head * stride + number % per_head * t->attention->head_dim;
}

/* The products of `queries` queries with the keys of a block, in `lanes` of partial sums. */
INLINE void score_block(const Tile *t, int64_t query, int queries, const char *keys, int64_t block) {
    const Attention *a = t->attention;
    int64_t key_stride = a->kv_heads * a->head_dim;
    const char *q[4];
    for (int i = 0; i < queries; i++)
        q[i] = at(t->q, offset_of(t, query + i, t->q_stride));
    f32 sums[4][LANES];
    for (int token = 0; token < LANES; token++) {
        f32 sum[4] = {{0}};
        IN_STEPS(d, count, WIDTH, a->head_dim, {
            f32 key = load_factors(at(keys, token * key_stride + d), count);
            for (int i = 0; i < queries; i++)
                sum[i] = add_products(sum[i], load_factors(at(q[i], d), count), key);
        })
        for (int i = 0; i < queries; i++)
            sums[i][token] = sum[i];
    }
    const i32 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int i = 0; i < queries; i++) {
        f32 scores = totals(sums[i]) * a->scale;
        if (a->softcap != 0)
            scores = a->softcap * hyperbolic_tangent(scores / a->softcap);
        int64_t position = position_of(t, query + i);
        int64_t first = t->window ? position - t->window + 1 : 0;
        i32 tokens = lanes + (int32_t)(block * LANES);
        i32 seen = (tokens <= (int32_t)position) & (tokens >= (int32_t)(first > 0 ? first : 0));
        scores = chosen(seen, scores, splat(-__builtin_inff()));
        memcpy(t->scores + (query + i) * a->scores_stride + block * LANES, &scores, sizeof scores);
    }
}

/* Turns a query's scores of blocks [first, stop) into weights; answers one over their sum. */
static float soften(float *scores, int64_t first, int64_t stop) {
    f32 most = splat(-__builtin_inff()), sum = {0}, *score = (f32 *)scores;
    for (int64_t block = first; block < stop; block++)
        most = chosen(score[block] > most, score[block], most);
    float top = greatest(most);
    for (int64_t block = first; block < stop; block++) {
        score[block] = exponential(score[block] - top);
        sum += score[block];
    }
    return 1.0f / total(sum);
}

/* Elements [d, d + columns) of the weighted sums of values. */
INLINE void weigh_values(const Tile *t, int64_t query, int queries, int64_t d, int64_t columns,
                         int64_t first, int64_t stop, const float *factors) {
    const Attention *a = t->attention;
    int64_t value_stride = a->kv_heads * a->head_dim;
    f32 sums[4][4] = {{{0}}};
    for (int64_t block = first; block < stop; block++) {
        const char *values = at(block_of(t, block, 1), d);
        const float *weights = t->scores + query * a->scores_stride + block * LANES;
        for (int token = 0; token < LANES; token++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                int64_t count = columns - v * LANES < LANES ? columns - v * LANES : LANES;
                f32 value = count > 0 ? load(at(values, token * value_stride + v * LANES), count)
                                      : (f32){0};
#pragma GCC unroll 4
                for (int i = 0; i < queries; i++)
                    sums[i][v] += weights[i * a->scores_stride + token] * value;
            }
    }
    for (int i = 0; i < queries; i++) {
        char *out = at(t->out, offset_of(t, query + i, t->out_stride) + d);
        for (int v = 0; v < 4 && v * LANES < columns; v++) {
            int64_t count = columns - v * LANES < LANES ? columns - v * LANES : LANES;
            store(at(out, v * LANES), sums[i][v] * factors[i], count);
        }
    }
}

static void attend_tile(const Tile *t) {
    const Attention *a = t->attention;
    int64_t reach = position_of(t, 0) - t->window + 1;
    int64_t first = t->window && reach > 0 ? reach / LANES : 0;
    int64_t stop = position_of(t, t->count - 1) / LANES + 1;
    for (int64_t block = first; block < stop; block++) {
        const char *keys = block_of(t, block, 0);
        IN_BLOCKS(q, 0, t->count, score_block(t, q, q_block, keys, block))
    }
    float factors[QUERIES];
    for (int64_t q = 0; q < t->count; q++)
        factors[q] = soften(t->scores + q * a->scores_stride, first, stop);
    enum { WIDE = 4 * LANES };
    IN_BLOCKS(q, 0, t->count, {
        int64_t d = 0;
        for (; d + WIDE <= a->head_dim; d += WIDE)
            weigh_values(t, q, q_block, d, WIDE, first, stop, factors + q);
        if (d < a->head_dim)
            weigh_values(t, q, q_block, d, a->head_dim - d, first, stop, factors + q);
    })
}

static inline int64_t tiles_of(const Attention *a, int64_t sequence) {
    int64_t rows = a->query_starts[sequence + 1] - a->query_starts[sequence];
    return (rows * (a->heads / a->kv_heads) + QUERIES - 1) / QUERIES;
}
#endif
