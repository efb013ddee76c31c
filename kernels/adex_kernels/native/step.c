/* The layers of one step in one call: no time between operations, one team of threads for all of
 * them, and Python's lock free meanwhile.
 *
 * A step is a sequence of stages. Threads take pieces of a stage's work as they get to them, and go
 * on to the next stage when the last piece is done. Nobody waits for a thread as such: one that has
 * lost its core to another process finds on its return what is left of the step. Whatever passes
 * from stage to stage is rounded to the model's type, as torch would; every piece computes in
 * float32.
 */
#include <math.h>
#include <time.h>

#include "attention.h"
#include "linear.h"
#include "lora.h"

int omp_get_thread_num(void);
int omp_get_num_threads(void);

enum { SILU, GELU, GELU_TANH };
enum { QKV, O, GATE_UP, DOWN, GROUPS };
enum { STAGES_PER_LAYER = 14, PIECE_ELEMENTS = 1 << 12 };

/* Where a step's time goes. Norms include the sums before them, and rotation the cache's writes. */
enum { NORMS, PRODUCTS, SHRINKING, EXPANDING, ROTATION, ATTENTION, ACTIVATION, HEAD, WAITING, PARTS };

/* Norm weights multiply, and are float32. Absent: 0. */
typedef struct {
    const float *attention_norm, *qk_norm, *attention_out_norm, *mlp_norm, *mlp_out_norm;
    Linear qkv, o, gate_up, down;
    int64_t window; /* 0: all positions */
} Layer;

typedef struct {
    const Layer *layers;
    int64_t count, hidden, heads, kv_heads, head_dim, rotary_dim, intermediate, activation;
    float eps, attention_scale, attention_softcap, embedding_scale; /* 0: none */
    int64_t vocabulary;
    const char *embedding; /* [vocabulary, hidden] */
    const float *norm;
    Linear head; /* without panels: the embedding, where it is tied, or the caller's */
    int64_t tied;
} Model;

typedef struct { int64_t next; Gate done; int64_t unused[5]; } Stage;

/* Buffers hold `rows` rows of the model's type. */
typedef struct {
    int64_t rows, wanted;
    const int64_t *token_ids;                          /* [rows] */
    char *hidden, *normed, *qkv, *attended, *out, *wide_pair, *wide;
    char *scratch;                                     /* a panel for each thread */
    int64_t scratch_stride;
    const float *rotation[2];                          /* cos, sin [rows, rotary_dim]; half of sin negated */
    char *turns[2];                                    /* the same, rounded */
    const int64_t *write_pages, *write_offsets;        /* [rows] */
    Attention attention;
    const Segment *segments;
    int64_t segment_count;
    float *shrunk;
    const int64_t *kept_rows;                          /* [kept], ascending: see keep_wanted */
    int64_t kept;
    const Segment *kept_segments;                      /* of the kept rows, numbered anew */
    int64_t kept_segment_count;
    const int64_t *logit_rows;                         /* [wanted], numbers of kept rows */
    char *chosen;                                      /* [wanted, hidden], normed */
    float *logits;                                     /* [wanted, head.out, or the vocabulary] */
    Stage *stages;                                     /* zeroed; for each layer, and one layer more */
    int64_t threads;
    int64_t *spent;                                    /* [threads, PARTS] ns, added to; or none */
    const int32_t *cores;                              /* [threads], each thread's own; or none */
    Held *held;                                        /* [threads], zeroed */
} Step;

typedef struct {
    const Model *model;
    const Step *step;
    Stage *stage;
    int thread, threads;
    int64_t since; /* own time when the present part began, where a step keeps `spent` */
} Team;

/* What this thread has had of its processor, in ns. */
static int64_t own_time(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

/* What the thread has done since the last call was `part`. */
static inline void spend(Team *team, int part) {
    if (!team->step->spent)
        return;
    int64_t now = own_time();
    team->step->spent[team->thread * PARTS + part] += now - team->since;
    team->since = now;
}

/* The stage's `pieces` are done, which were `part`, and the next begins. */
static inline void next_stage(Team *team, int part, int64_t pieces) {
    spend(team, part);
    await(&team->stage->done, pieces);
    team->stage++;
    spend(team, WAITING);
}

/* A stage of `count` pieces, which are `part`. */
#define IN_PIECES(team, part, count, mine, ...)                                 \
    {                                                                           \
        int64_t all_pieces = (count);                                           \
        for (int64_t mine; (mine = TAKE((team)->stage->next)) < all_pieces;     \
             arrive(&(team)->stage->done, all_pieces)) {                        \
            __VA_ARGS__;                                                        \
        }                                                                       \
        next_stage(team, part, all_pieces);                                     \
    }

/* Rows at a time that are worth a piece. */
static inline int64_t rows_in_piece(int64_t elements) {
    return elements < PIECE_ELEMENTS ? PIECE_ELEMENTS / elements : 1;
}

#define IN_ROWS(team, part, elements, rows, row, ...)                           \
    {                                                                           \
        int64_t each = rows_in_piece(elements), pieces = ((rows) + each - 1) / each; \
        IN_PIECES(team, part, pieces, piece,                                    \
            for (int64_t row = piece * each; row < (rows) && row < (piece + 1) * each; row++) \
                __VA_ARGS__)                                                    \
    }

/* to = x / root of its mean square * weight; may be in place. */
static void norm(char *to, const char *x, const float *weight, int64_t size, float eps) {
    f32 squares = {0};
    IN_LANES(k, count, size, {
        f32 value = load(at(x, k), count);
        squares += value * value;
    })
    float factor = 1.0f / sqrtf(total(squares) / size + eps);
    IN_LANES(k, count, size, {
        f32 value = load(at(x, k), count) * factor;
        store(at(to, k), value * load_floats(weight + k, count),
              count);
    })
}

/* hidden += out, which may have a norm of its own; then normed = norm(hidden). */
static void add_and_norm(const Team *team, int64_t row, const float *out_norm, const float *weight) {
    const Step *s = team->step;
    int64_t size = team->model->hidden;
    char *hidden = at(s->hidden, row * size);
    char *out = at(s->out, row * size);
    if (out_norm)
        norm(out, out, out_norm, size, team->model->eps);
    IN_LANES(k, count, size,
        store(at(hidden, k),
              load(at(hidden, k), count) + load(at(out, k), count), count))
    norm(at(s->normed, row * size), hidden, weight, size, team->model->eps);
}

/* hidden = the token's embedding, scaled where the model does so; normed = norm(hidden). The row's
 * rotation is rounded for all layers. */
static void embed(const Team *team, int64_t row) {
    const Model *m = team->model;
    int64_t turns = row * m->rotary_dim;
    for (int i = 0; i < 2; i++)
        IN_LANES(k, count, m->rotary_dim,
                 store(at(team->step->turns[i], turns + k),
                       load_floats(team->step->rotation[i] + turns + k, count), count))
    char *hidden = at(team->step->hidden, row * m->hidden);
    const char *embedding = at(m->embedding, team->step->token_ids[row] * m->hidden);
    float scale = m->embedding_scale;
    if (scale == 0)
        memcpy(hidden, embedding, m->hidden * ELEMENT);
    else
        IN_LANES(k, count, m->hidden, store(at(hidden, k), load(at(embedding, k), count) * scale, count))
    norm(at(team->step->normed, row * m->hidden), hidden, m->layers->attention_norm, m->hidden, m->eps);
}

/* What a stage's panel is called while a thread is at it, and which one that was. */
static inline int64_t work_of(const Team *team, int64_t panel) {
    return ((team->stage - team->step->stages) << 32 | panel) + 1;
}

/* Panels that others hold for longer than they take are done again, by one each. */
static void help_others(Team *team, Product *product, int64_t pieces) {
    int64_t bytes = product->linear->in * PANEL * (product->linear->scales ? 1 : ELEMENT);
    if (opens(&team->stage->done, pieces, bytes / 8))
        return;
    for (int i = 0; i < team->threads; i++) {
        int64_t work = take_over(team->step->held + i), first = work_of(team, 0);
        if (work < first || work >= first + panels_of(product->linear))
            continue;
        product->held = team->step->held + i;
        product->work = work;
        if (multiply_panel(product, work - first))
            arrive(&team->stage->done, pieces);
    }
}

/* A stage's panels, numbered behind `others`; this thread's first is `mine`. */
static void product_stage(Team *team, Product *product, int64_t mine, int64_t others, int part) {
    int64_t pieces = others + panels_of(product->linear);
    Held *held = in_one_block(product) ? team->step->held + team->thread : 0;
    for (; mine < pieces; mine = TAKE(team->stage->next)) {
        product->held = held;
        product->work = work_of(team, mine - others);
        if (held)
            hold(held, product->work);
        if (multiply_panel(product, mine - others))
            arrive(&team->stage->done, pieces);
    }
    spend(team, part);
    if (held)
        help_others(team, product, pieces);
    next_stage(team, part, pieces);
}

/* y = x through the linear, and its low-rank terms. One stage or two. */
static void linear_stages(Team *team, const Linear *linear, const char *x, char *y, int64_t index) {
    const Step *s = team->step;
    Call lora = {y, linear->out, linear->out, x, linear->in, linear->in, s->rows,
                 s->segments, s->segment_count, index, s->shrunk, team->threads};
    char *scratch = s->scratch + team->thread * s->scratch_stride;
    Product product = {linear, x, y, scratch, linear->out, s->rows, team->threads};
    int64_t shrinks = pieces_of(&lora, 0), expands = shrinks ? pieces_of(&lora, 1) : 0;
    int64_t pieces = shrinks + panels_of(linear);
    int64_t mine = do_pieces(&lora, &team->stage->next, shrinks, 0, &team->stage->done, pieces);
    if (shrinks)
        spend(team, SHRINKING);
    product_stage(team, &product, mine, shrinks, PRODUCTS);
    if (!expands)
        return;
    do_pieces(&lora, &team->stage->next, expands, 1, &team->stage->done, expands);
    next_stage(team, EXPANDING, expands);
}

/* One head: its norm, where it has a weight, and its rotation, in place. */
static void turn_head(char *head, const float *weight, const char *cos, const char *sin,
                      const Model *m) {
    if (weight)
        norm(head, head, weight, m->head_dim, m->eps);
    int64_t half = m->rotary_dim / 2;
    char *upper = at(head, half);
    IN_LANES(k, count, half, {
        f32 a = load(at(head, k), count), b = load(at(upper, k), count);
        f32 turned = a * load(at(cos, k), count) +
                     b * load(at(sin, k), count);
        f32 other = b * load(at(cos, half + k), count) +
                    a * load(at(sin, half + k), count);
        store(at(head, k), turned, count);
        store(at(upper, k), other, count);
    })
}

/* Queries and keys of a row are rotated; keys and values go where attention finds them. */
static void turn_and_write(const Team *team, const Layer *layer, int64_t index, int64_t row) {
    const Model *m = team->model;
    const Step *s = team->step;
    int64_t heads = m->heads + m->kv_heads, dim = m->head_dim, keys = m->kv_heads * dim;
    char *qkv = at(s->qkv, row * layer->qkv.out);
    const char *cos = at(s->turns[0], row * m->rotary_dim);
    const char *sin = at(s->turns[1], row * m->rotary_dim);
    for (int64_t head = 0; head < heads; head++)
        turn_head(at(qkv, head * dim),
                  layer->qk_norm ? layer->qk_norm + head * dim : 0, cos, sin, m);
    int64_t cell = (s->write_pages[row] * m->count + index) * 2 * LANES + s->write_offsets[row];
    for (int value = 0; value < 2; value++)
        memcpy(at(s->attention.kv, (cell + value * LANES) * keys),
               at(qkv, m->heads * dim + value * keys), keys * ELEMENT);
}

/* A block that this step begins may hold what an adapter or another sequence left. Cells behind a
 * sequence's end weigh nothing, but what reads as NaN there would still spread in torch's attention. */
static void clear_behind(const Team *team, int64_t index, int64_t sequence) {
    const Attention *a = &team->step->attention;
    int64_t rows = a->query_starts[sequence + 1] - a->query_starts[sequence];
    int64_t last = a->context_lens[sequence] - 1, used = last % LANES + 1, keys = a->kv_heads * a->head_dim;
    if (rows < used)
        return;
    int64_t page = a->tables[sequence * a->tables_stride + last / LANES];
    int64_t cell = (page * team->model->count + index) * 2 * LANES + used;
    for (int value = 0; value < 2; value++)
        memset(at(a->kv, (cell + value * LANES) * keys), 0, (LANES - used) * keys * ELEMENT);
}

static void rotation_stage(Team *team, const Layer *layer, int64_t index) {
    const Step *s = team->step;
    int64_t each = rows_in_piece(layer->qkv.out), pieces = (s->rows + each - 1) / each;
    IN_PIECES(team, ROTATION, pieces + s->attention.sequences, piece, {
        for (int64_t row = piece * each; row < s->rows && row < (piece + 1) * each; row++)
            turn_and_write(team, layer, index, row);
        if (piece >= pieces)
            clear_behind(team, index, piece - pieces);
    })
}

/* Where a thread is in a stage of attention: pieces are numbered, and it asks for ever greater
 * numbers, of which `before` are those of sequences before its own. */
typedef struct { int64_t sequence, before; Cut cut; } Place;

static Tile tile_of(const Team *team, const Layer *layer, int64_t index, Place *place, int64_t number) {
    const Step *s = team->step;
    const Attention *a = &s->attention;
    for (int64_t n; number >= place->before + (n = pieces_in(a, place->cut));) {
        place->before += n;
        place->cut = cut_of(a, ++place->sequence, team->threads);
    }
    Cut cut = place->cut;
    int64_t per_head = per_head_of(a), sequence = place->sequence;
    int64_t kv_head = (number - place->before) / cut.tiles * cut.heads;
    int64_t first = (number - place->before) % cut.tiles * QUERIES;
    int64_t start = a->query_starts[sequence], rows = a->query_starts[sequence + 1] - start;
    int64_t left = rows * per_head - first, heads = a->kv_heads - kv_head;
    int64_t column = kv_head * per_head * a->head_dim, row_columns = a->heads * a->head_dim;
    return (Tile){.attention = a, .kv_head = kv_head, .layer = index, .window = layer->window,
                  .heads = heads < cut.heads ? heads : cut.heads,
                  .q = at(s->qkv, start * layer->qkv.out + column), .q_stride = layer->qkv.out,
                  .out = at(s->attended, start * row_columns + column), .out_stride = row_columns,
                  .position = a->context_lens[sequence] - rows,
                  .first = first, .count = left < QUERIES ? left : QUERIES,
                  .table = a->tables + sequence * a->tables_stride,
                  .sums = (float *)(s->scratch + team->thread * s->scratch_stride)};
}

/* A thread takes its next tile before it does the present one, which fetches what that begins with. */
static void attention_stage(Team *team, const Layer *layer, int64_t index) {
    const Attention *a = &team->step->attention;
    int64_t all = 0;
    for (int64_t i = 0; i < a->sequences; i++)
        all += pieces_in(a, cut_of(a, i, team->threads));
    Place place = {0, 0, cut_of(a, 0, team->threads)};
    Tile tiles[2];
    int64_t number = TAKE(team->stage->next);
    if (number < all)
        tiles[0] = tile_of(team, layer, index, &place, number);
    for (int now = 0; number < all; now = !now) {
        number = TAKE(team->stage->next);
        if (number < all) {
            tiles[!now] = tile_of(team, layer, index, &place, number);
            tiles[now].next = &tiles[!now];
        }
        attend_tile(&tiles[now]);
        arrive(&team->stage->done, all);
    }
    next_stage(team, ATTENTION, all);
}

static f32 activated(f32 x, int64_t kind) {
    if (kind == SILU)
        return x / (1.0f + exponential(-x));
    if (kind == GELU_TANH)
        return 0.5f * x * (1.0f + hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
    for (int i = 0; i < LANES; i++)
        x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
    return x;
}

/* wide = activation(gate) * up, in pieces of a row. */
static void activation_stage(Team *team) {
    enum { SPAN = 512 };
    const Step *s = team->step;
    int64_t size = team->model->intermediate, spans = (size + SPAN - 1) / SPAN;
    IN_PIECES(team, ACTIVATION, s->rows * spans, mine, {
        int64_t row = mine / spans, first = mine % spans * SPAN;
        const char *gate = at(s->wide_pair, 2 * row * size + first);
        const char *up = at(gate, size);
        char *wide = at(s->wide, row * size + first);
        IN_LANES(k, count, size - first < SPAN ? size - first : SPAN, {
            f32 value = activated(load(at(gate, k), count), team->model->activation);
            /* Rounded as torch's own product of two tensors would be. */
            char rounded[sizeof value];
            store(rounded, value, LANES);
            store(at(wide, k),
                  load(rounded, LANES) * load(at(up, k), count), count);
        })
    })
}

/* Behind the last layer's keys and values only rows with logits matter: they move together, to
 * buffers that are free by now, and the others are left. */
static void keep_wanted(Team *team, Step *kept) {
    const Step *s = team->step;
    int64_t hidden = team->model->hidden, attended = team->model->heads * team->model->head_dim;
    *kept = *s;
    kept->rows = s->kept;
    kept->segments = s->kept_segments;
    kept->segment_count = s->kept_segment_count;
    kept->hidden = s->normed;
    kept->normed = s->hidden;
    kept->attended = s->qkv;
    IN_ROWS(team, NORMS, hidden, s->kept, i, {
        memcpy(at(kept->hidden, i * hidden), at(s->hidden, s->kept_rows[i] * hidden), hidden * ELEMENT);
        memcpy(at(kept->attended, i * attended), at(s->attended, s->kept_rows[i] * attended),
               attended * ELEMENT);
    })
    team->step = kept;
}

/* In the last layer, `kept` becomes the team's step. */
static void layer_stages(Team *team, int64_t index, const float *norm_after, Step *kept) {
    const Model *m = team->model;
    const Layer *layer = m->layers + index;
    int64_t group = index * GROUPS;
    linear_stages(team, &layer->qkv, team->step->normed, team->step->qkv, group + QKV);
    rotation_stage(team, layer, index);
    attention_stage(team, layer, index);
    if (index + 1 == m->count && team->step->kept < team->step->rows)
        keep_wanted(team, kept);
    const Step *s = team->step;
    linear_stages(team, &layer->o, s->attended, s->out, group + O);
    IN_ROWS(team, NORMS, m->hidden, s->rows, row,
            add_and_norm(team, row, layer->attention_out_norm, layer->mlp_norm))
    linear_stages(team, &layer->gate_up, s->normed, s->wide_pair, group + GATE_UP);
    activation_stage(team);
    linear_stages(team, &layer->down, s->wide, s->out, group + DOWN);
    IN_ROWS(team, NORMS, m->hidden, s->rows, row,
            add_and_norm(team, row, layer->mlp_out_norm, norm_after))
}

/* Logits of PANEL tokens by the embedding's own rows: each is one sum in one order, rounded as the
 * products of a head in panels are. */
static void multiply_tied(const Model *m, const Step *s, int64_t index) {
    int64_t first = index * PANEL, left = m->vocabulary - first, hidden = m->hidden;
    int64_t stop = first + (left < PANEL ? left : PANEL);
    IN_BLOCKS(token, first, stop, {
        const char *weights = at(m->embedding, token * hidden);
        IN_BLOCKS(row, 0, s->wanted,
            shrink(at(s->chosen, row * hidden), hidden, row_block, weights, hidden, token_block,
                   at(weights, token_block * hidden), s->logits + row * m->vocabulary + token,
                   m->vocabulary))
    })
    for (int64_t row = 0; TYPE != FLOAT32 && row < s->wanted; row++) {
        float *logits = s->logits + row * m->vocabulary + first;
        IN_LANES(k, count, stop - first, {
            char rounded[sizeof(f32)];
            store(rounded, load_floats(logits + k, count), LANES);
            store_floats(logits + k, load(rounded, LANES), count);
        })
    }
}

static void take_part(const Model *m, const Step *s) {
    Team team = {m, s, s->stages, omp_get_thread_num(), omp_get_num_threads(),
                 s->spent ? own_time() : 0};
    if (s->cores)
        stay_on(s->cores[team.thread]);
    IN_ROWS(&team, NORMS, m->hidden, s->rows, row, embed(&team, row))
    Step kept;
    for (int64_t i = 0; i < m->count; i++)
        layer_stages(&team, i, i + 1 < m->count ? m->layers[i + 1].attention_norm : m->norm, &kept);
    IN_ROWS(&team, NORMS, m->hidden, s->wanted, i,
            memcpy(at(s->chosen, i * m->hidden),
                   at(team.step->normed, s->logit_rows[i] * m->hidden),
                   m->hidden * ELEMENT))
    Product product = {&m->head, s->chosen, (char *)s->logits,
                       s->scratch + team.thread * s->scratch_stride, m->head.out, s->wanted,
                       team.threads, 1};
    if (m->head.panels && s->wanted)
        product_stage(&team, &product, TAKE(team.stage->next), 0, HEAD);
    else if (m->tied && s->wanted)
        IN_PIECES(&team, HEAD, (m->vocabulary + PANEL - 1) / PANEL, mine, multiply_tied(m, s, mine))
}

/* Returns: 0, or with nothing computed 1 where an adapter does not fit the model or the rows, and 2
 * where a token is outside the vocabulary. */
int EXPORTED(adex_step)(const Model *m, const Step *s) {
    for (int64_t row = 0; row < s->rows; row++)
        if (s->token_ids[row] < 0 || s->token_ids[row] >= m->vocabulary)
            return 2;
    for (int64_t i = 0; i < m->count * GROUPS; i++) {
        const Layer *layer = m->layers + i / GROUPS;
        const Linear *linears[] = {&layer->qkv, &layer->o, &layer->gate_up, &layer->down};
        const Linear *linear = linears[i % GROUPS];
        Call lora = {.y_columns = linear->out, .x_columns = linear->in, .rows = s->rows,
                     .segments = s->segments, .count = s->segment_count, .index = i};
        if (!fits(&lora))
            return 1;
    }
#pragma omp parallel num_threads((int)s->threads)
    take_part(m, s);
    return 0;
}

static void multiply_all(const Product *p, Stage *stage) {
    Product mine = *p;
    mine.threads = omp_get_num_threads();
    mine.scratch += omp_get_thread_num() * p->linear->in * PANEL * 4;
    for (int64_t i; (i = TAKE(stage->next)) < panels_of(p->linear);)
        multiply_panel(&mine, i);
}

/* y [rows, out] = x [rows, in] through the linear; scratch is a float32 panel for each thread. */
void EXPORTED(adex_linear)(const Linear *linear, const void *x, void *y, int64_t rows, char *scratch,
                 int64_t threads) {
    Product product = {linear, x, y, scratch, linear->out, rows, threads, 0};
    Stage stage = {0};
#pragma omp parallel num_threads((int)threads)
    multiply_all(&product, &stage);
}
