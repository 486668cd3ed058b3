/* Vectors to words and words to panels: what attention.c and sparse.c do to operands before they multiply them
 * (attn_kernels.h says what words and panels are). */
#ifndef HS_ATTN_PACK_H
#define HS_ATTN_PACK_H
#include "base.h"
#include "cpu/attn_kernels.h"

#include <string.h>
#ifdef __cplusplus
extern "C" {
#endif

static inline int64_t hs_round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}
static inline int64_t hs_min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* n values of type F32 or BF16 as words for the micro-kernel; zeros up to `padded` values. */
static inline void hs_attn_words(const hs_attn_kernels *kn, const void *from, hs_dtype type, int n, int padded,
                                 float *words) {
    const size_t size = kn->bf16 ? 2 : 4;
    if ((type == HS_BF16) == kn->bf16) {
        memcpy(words, from, (size_t)n * size);
    } else if (kn->bf16) {
        hs_from_f32(words, HS_BF16, (const float *)from, n);
    } else {
        const uint16_t *x = (const uint16_t *)from;
#pragma omp simd
        for (int i = 0; i < n; i++) words[i] = hs_bf16_to_f32(x[i]);
    }
    memset((char *)words + (size_t)n * size, 0, (size_t)(padded - n) * size);
}

/* rows [HS_ATTN_PANEL, depth] -> panel [depth, HS_ATTN_PANEL] */
static inline void hs_attn_panel(const float *rows, int64_t depth, float *panel) {
    for (int64_t d = 0; d < depth; d++)
        for (int r = 0; r < HS_ATTN_PANEL; r++) memcpy(panel + d * HS_ATTN_PANEL + r, rows + r * depth + d, 4);
}

#ifdef __cplusplus
}
#endif
#endif
