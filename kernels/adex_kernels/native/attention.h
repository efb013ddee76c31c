/* Causal attention of a step's rows over their sequences' blocks, where these lie.
 *
 * Keys and values are read once, some blocks at a time, for all queries of a tile: those that share
 * a key head, or those of one row for several key heads, which lie side by side. A query's sums are
 * taken in one order that depends on its own context alone; where a later chunk has a greater
 * score, what was summed before is scaled down to it (Milakov and Gimelshein 2018,
 * arXiv:1805.02867).
 */
#ifndef ADEX_ATTENTION_H
#define ADEX_ATTENTION_H
#include <float.h>

#include "vectors.h"

/* A block holds as many tokens as a vector has lanes. Chunks begin at multiples of CHUNK blocks. */
enum { QUERIES = 12, CHUNK = 8, PARTS_AHEAD = 4 };

/* Row t of sequence i, t in [query_starts[i], query_starts[i + 1]), has the position
 * context_lens[i] - query_starts[i + 1] + t. Of the pages of a table only those that the context
 * reaches are looked at. */
typedef struct {
    char *kv; /* [pages, layers, 2, LANES, kv_heads, head_dim] */
    int64_t sequences, layers, heads, kv_heads, head_dim, tables_stride;
    const int64_t *query_starts, *context_lens, *tables;
    float scale, softcap; /* softcap 0: none */
} Attention;

/* Queries of one sequence: for each of `heads` key heads from `kv_head` on, those with the numbers
 * [first, first + count). Number q is that of row q / per_head and head q % per_head; where there
 * are several key heads, there is one row, and these are all its queries. `next` is what the thread
 * does afterwards, or none. */
typedef struct Tile {
    const Attention *attention;
    const char *q; /* the first row's first head that reads the first key head */
    char *out;
    int64_t q_stride, out_stride, kv_head, heads, layer, window, position, first, count;
    const int64_t *table;
    float *sums; /* scratch, [heads * count, head_dim] */
    const struct Tile *next;
} Tile;

/* The scores of a chunk, later its weights, and what is kept of the chunks before. */
typedef struct {
    f32 scores[QUERIES][CHUNK];
    f32 totals[QUERIES];
    float top[QUERIES];
} Softmax;

INLINE const char *block_of(const Tile *t, int64_t head, int64_t block, int value) {
    const Attention *a = t->attention;
    int64_t cell = (t->table[block] * a->layers + t->layer) * 2 + value;
    return at(a->kv, (cell * LANES * a->kv_heads + t->kv_head + head) * a->head_dim);
}

INLINE int64_t per_head_of(const Attention *a) { return a->heads / a->kv_heads; }

INLINE int64_t position_of(const Tile *t, int64_t query) {
    return t->position + (t->first + query) / per_head_of(t->attention);
}

INLINE int64_t offset_of(const Tile *t, int64_t head, int64_t query, int64_t stride) {
    int64_t per_head = per_head_of(t->attention), number = t->first + query;
    int64_t column = head * per_head + number % per_head;
    return number / per_head * stride + column * t->attention->head_dim;
}

/* The products of `queries` queries with the keys of a block, in `lanes` of partial sums. */
INLINE void score_block(const Tile *t, int64_t head, int64_t query, int queries, int64_t block,
                        Softmax *softmax) {
    const Attention *a = t->attention;
    const char *keys = block_of(t, head, block, 0);
    int64_t key_stride = a->kv_heads * a->head_dim;
    const char *q[4];
    for (int i = 0; i < queries; i++)
        q[i] = at(t->q, offset_of(t, head, query + i, t->q_stride));
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
        softmax->scores[head * t->count + query + i][block % CHUNK] = scores;
    }
}

/* Turns a query's scores of blocks [first, stop) into weights, relative to the greatest so far. */
static void soften(const Tile *t, Softmax *softmax, int64_t query, int64_t first, int64_t stop) {
    f32 most = splat(softmax->top[query]), *score = softmax->scores[query];
    for (int64_t block = first; block < stop; block++)
        most = chosen(score[block % CHUNK] > most, score[block % CHUNK], most);
    float top = greatest(most);
    if (top > softmax->top[query]) {
        int64_t size = t->attention->head_dim;
        f32 factor = exponential(splat(softmax->top[query] - top));
        float *sums = t->sums + query * size;
        softmax->totals[query] *= factor;
        IN_LANES(d, count, size, store_floats(sums + d, load_floats(sums + d, count) * factor, count))
        softmax->top[query] = top;
    }
    for (int64_t block = first; block < stop; block++) {
        score[block % CHUNK] = exponential(score[block % CHUNK] - top);
        softmax->totals[query] += score[block % CHUNK];
    }
}

/* How many of `columns` lie in vector v. */
INLINE int64_t lanes_in(int64_t columns, int v) {
    int64_t left = columns - v * LANES;
    return left < 0 ? 0 : left < LANES ? left : LANES;
}

/* Blocks [first, stop) of a tile that lie within one chunk; of none, the tile is none. */
typedef struct { const Tile *tile; int64_t first, stop; } Chunk;

/* Fetches what a key head has in a block. */
INLINE void fetch(const Tile *t, int64_t head, int64_t block, int value) {
    const Attention *a = t->attention;
    const char *part = block_of(t, head, block, value);
    for (int token = 0; token < LANES; token++)
        for (int64_t d = 0; d < a->head_dim; d += 64 / ELEMENT)
            __builtin_prefetch(at(part, token * a->kv_heads * a->head_dim + d), 0, 2);
}

/* Part `number` of a chunk's values, head by head, if there are so many. */
INLINE void fetch_values(const Tile *t, int64_t first, int64_t stop, int64_t number) {
    int64_t head = number / (stop - first);
    if (head < t->heads)
        fetch(t, head, first + number % (stop - first), 1);
}

/* Adds to elements [d, d + columns) of the sums what the values of blocks [first, stop) weigh. With
 * `fetching`, the values that come next are fetched meanwhile. */
INLINE void weigh_values(const Tile *t, const Softmax *softmax, int64_t head, int64_t query,
                         int queries, int64_t d, int64_t columns, int64_t first, int64_t stop,
                         int fetching) {
    const Attention *a = t->attention;
    int64_t value_stride = a->kv_heads * a->head_dim, own = head * t->count + query;
    const f32(*weights)[CHUNK] = softmax->scores + own;
    float *kept = t->sums + own * a->head_dim + d;
    f32 sums[4][4];
    for (int i = 0; i < queries; i++)
        for (int v = 0; v < 4; v++)
            sums[i][v] = load_floats(kept + i * a->head_dim + v * LANES, lanes_in(columns, v));
    for (int64_t block = first; block < stop; block++) {
        const char *values = at(block_of(t, head, block, 1), d);
        if (fetching)
            fetch_values(t, first, stop, head * (stop - first) + block - first + PARTS_AHEAD);
        for (int token = 0; token < LANES; token++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                f32 value = load(at(values, token * value_stride + v * LANES), lanes_in(columns, v));
#pragma GCC unroll 4
                for (int i = 0; i < queries; i++)
                    sums[i][v] += weights[i][block % CHUNK][token] * value;
            }
    }
    for (int i = 0; i < queries; i++)
        for (int v = 0; v < 4; v++)
            store_floats(kept + i * a->head_dim + v * LANES, sums[i][v], lanes_in(columns, v));
}

/* What comes next is fetched behind the arithmetic, and no earlier: the blocks of a layer lie so far
 * apart that many of them may share few places of the cache. */
static void attend_chunk(const Tile *t, Softmax *softmax, Chunk now, Chunk ahead) {
    enum { WIDE = 4 * LANES };
    int64_t head_dim = t->attention->head_dim, first = now.first, stop = now.stop;
    /* A tile of several rows computes for as long as its keys take to come by themselves. */
    int fetching = t->heads > 1;
    for (int64_t block = first; block < stop; block++)
        for (int64_t head = 0; head < t->heads; head++) {
            if (fetching && block + 1 < stop)
                fetch(t, head, block + 1, 0);
            else if (fetching && head < PARTS_AHEAD)
                fetch_values(t, first, stop, head);
            IN_BLOCKS(q, 0, t->count, score_block(t, head, q, q_block, block, softmax))
        }
    for (int64_t query = 0; query < t->heads * t->count; query++)
        soften(t, softmax, query, first, stop);
    for (int64_t head = 0; head < t->heads; head++) {
        if (fetching && ahead.tile && head < ahead.tile->heads)
            fetch(ahead.tile, head, ahead.first, 0);
        IN_BLOCKS(q, 0, t->count, {
            int64_t d = 0;
            for (; d + WIDE <= head_dim; d += WIDE)
                weigh_values(t, softmax, head, q, q_block, d, WIDE, first, stop, fetching && !q && !d);
            if (d < head_dim)
                weigh_values(t, softmax, head, q, q_block, d, head_dim - d, first, stop,
                             fetching && !q && !d);
        })
    }
}

/* The first chunk that is not before `block`. */
static Chunk chunk_of(const Tile *t, int64_t block) {
    int64_t stop = position_of(t, t->count - 1) / LANES + 1, end = (block / CHUNK + 1) * CHUNK;
    return (Chunk){t, block, end < stop ? end : stop};
}

/* The first block that any of a tile's queries sees. */
static int64_t first_block(const Tile *t) {
    int64_t unseen = t->window ? position_of(t, 0) - t->window + 1 : 0;
    return unseen > 0 ? unseen / LANES : 0;
}

static void attend_tile(const Tile *t) {
    int64_t size = t->attention->head_dim, queries = t->heads * t->count;
    Softmax softmax;
    memset(softmax.totals, 0, sizeof softmax.totals);
    for (int64_t query = 0; query < queries; query++)
        softmax.top[query] = -FLT_MAX;
    memset(t->sums, 0, queries * size * sizeof *t->sums);
    for (Chunk now = chunk_of(t, first_block(t)), ahead; now.first < now.stop; now = ahead) {
        ahead = chunk_of(t, now.stop);
        Chunk next = ahead;
        if (ahead.first >= ahead.stop)
            next = t->next ? chunk_of(t->next, first_block(t->next)) : (Chunk){0};
        attend_chunk(t, &softmax, now, next);
    }
    for (int64_t query = 0; query < queries; query++) {
        char *out = at(t->out, offset_of(t, query / t->count, query % t->count, t->out_stride));
        float factor = 1.0f / total(softmax.totals[query]);
        const float *sums = t->sums + query * size;
        IN_LANES(d, count, size, store(at(out, d), load_floats(sums + d, count) * factor, count))
    }
}

/* How a sequence's queries are cut into tiles: `tiles` of them for every `heads` key heads. */
typedef struct { int64_t tiles, heads; } Cut;

/* A single row's key heads are read together, unless that left threads without work. */
static inline Cut cut_of(const Attention *a, int64_t sequence, int64_t threads) {
    int64_t rows = a->query_starts[sequence + 1] - a->query_starts[sequence];
    int64_t per_head = per_head_of(a), fit = QUERIES / per_head;
    int64_t fair = (a->sequences * a->kv_heads + 2 * threads - 1) / (2 * threads);
    int64_t most = fit < fair ? fit : fair;
    if (rows > 1 || most < 1)
        most = 1;
    return (Cut){(rows * per_head + QUERIES - 1) / QUERIES, most < a->kv_heads ? most : a->kv_heads};
}

static inline int64_t pieces_in(const Attention *a, Cut cut) {
    return (a->kv_heads + cut.heads - 1) / cut.heads * cut.tiles;
}
#endif
