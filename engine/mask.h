/* Block masks: which keys each block of queries attends to. Data and pure functions; no device, no model.
 *
 * One type serves both predictors. Rows are blocks of queries, columns blocks of keys, one bit per pair and head.
 *   uniform blocks (XAttention, pooled): every row and column is `block` tokens, the last one may be shorter;
 *   clusters (SVG2): row r of head h is the tokens q_order[h][q_start[h][r] .. q_start[h][r+1]), columns likewise, so
 *   tokens are visited in another order; attention gathers and scatters by it. Clusters may be empty.
 * A head whose `dense` flag is set attends to everything in natural order and its bits are not looked at.
 * Buffers are device memory, owned by whoever made the mask (attn.c keeps one per branch and layer: the cache of mask
 * reuse). Sparsity = dropped share of (query, key) token pairs; density = 1 - sparsity.
 */
#ifndef HS_MASK_H
#define HS_MASK_H
#include "backend.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { HS_MASK_MAX_COLS = 65536 }; /* backends keep a row of column numbers on the stack */

typedef struct hs_mask {
    int heads, rows, cols;
    int words; /* 32-bit words per row: (cols + 31) / 32 */
    int block; /* tokens per block; 0 = clusters */
    int64_t len_q, len_k;
    hs_buf bits;  /* I32 [heads, rows, words]: bit c%32 of word c/32 = column c kept; spare bits are 0 */
    hs_buf dense; /* U8 [heads] */
    hs_buf q_order,
        k_order; /* clusters: I32 [heads, len_q], [heads, len_k] token at each sorted place; else HS_NOBUF */
    hs_buf q_start, k_start; /* clusters: I32 [heads, rows + 1], [heads, cols + 1]; else HS_NOBUF */
} hs_mask;

static inline int hs_mask_words(int cols) {
    return (cols + 31) / 32;
}
static inline int hs_mask_bit(const int32_t *row, int c) {
    return (int)((uint32_t)row[c / 32] >> (c % 32)) & 1;
}
static inline void hs_mask_set(int32_t *row, int c) {
    row[c / 32] = (int32_t)((uint32_t)row[c / 32] | 1u << (c % 32));
}

/* Which columns of one row of scores [cols] >= 0 are kept: the shortest prefix in order of falling score (ties: lower
 * column first) whose mass reaches p of the row's sum, at least max(1, at_least) columns; p >= 1 keeps all. rule: 0, or
 * the published variants HS_SELECT_* (backend.h). Writes hs_mask_words(cols) words to ret_row; order [cols] is scratch.
 * Returns how many are kept. spec haste.md 3.2, 4.2 */
int hs_mask_select(const float *score, int cols, float p, int at_least, int rule, int32_t *order, int32_t *ret_row);

/* Kept (query, key) token pairs of head h / all pairs of the head; host pointers. */
double hs_mask_density(const hs_mask *m, int h);
/* |a and b| / |a or b| over blocks of head h, for two uniform masks of equal shape (host pointers). 1 if both empty. */
double hs_mask_overlap(const hs_mask *a, const hs_mask *b, int h);

#ifdef __cplusplus
}
#endif
#endif
