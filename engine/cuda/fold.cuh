/* What the kernels of XAttention's block scores share: the folded products of a launch and where their sums go. */
#ifndef HS_FOLD_CUH
#define HS_FOLD_CUH
#include "cuda/cuda.h"

/* A tile is some folded queries x some folded keys. Its columns are parts of blocks: a block of `per` folded keys is
 * `parts` parts of `width` keys, the last one may be shorter, and a tile takes `group` whole parts. */
struct fold {
    const void *q, *k;
    const uint8_t *want;
    float *sums;   /* [heads of this launch, rows, cols * parts] */
    float2 *stats; /* [heads of this launch, rows, tiles]: row maximum in powers of two, sum below it */
    float *scores; /* [all heads, score_rows, cols] */
    int64_t ld_q, ld_k, len, keys;
    int64_t first, rows; /* folded queries of this launch, of every head */
    int64_t score_rows;
    int head, heads; /* of this launch: the first one, how many */
    int stride, dim;
    int per, width, parts, group, cols, tiles;
    float scale; /* of logits, to powers of two */
};
#endif
