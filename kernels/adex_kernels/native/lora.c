/* The low-rank terms of one group of linears, for a step that torch computes otherwise. */
#include "lora.h"

enum { TEAM_BYTES = 1 << 18 };

typedef struct { int64_t next_shrink, next_expand; Gate shrunk, expanded; } Progress;

static void take_part(const Call *call, Progress *progress) {
    int64_t shrinks = pieces_of(call, 0), expands = pieces_of(call, 1);
    do_pieces(call, &progress->next_shrink, shrinks, 0, &progress->shrunk, shrinks);
    await(&progress->shrunk, shrinks);
    do_pieces(call, &progress->next_expand, expands, 1, &progress->expanded,
              expands);
}

/* The vector instructions that this was compiled for. */
const char *EXPORTED(adex_target)(void) {
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
int EXPORTED(adex_lora_add)(const Call *call) {
    if (!fits(call))
        return 1;
    int64_t bytes = 0;
    for (const Segment *s = call->segments; s < call->segments + call->count; s++) {
        const Entry *entry = entry_of(s, call->index);
        for (int64_t i = 0; entry && i < entry->slices; i++)
            bytes += entry->slice[i].rank * (entry->in + entry->slice[i].out) * ELEMENT;
    }
    Progress progress = {0};
    /* All of torch's threads or none: OpenMP ends those that a smaller team leaves over. */
    if (bytes < TEAM_BYTES || call->threads < 2)
        take_part(call, &progress);
    else {
#pragma omp parallel num_threads((int)call->threads)
        take_part(call, &progress);
    }
    return 0;
}
