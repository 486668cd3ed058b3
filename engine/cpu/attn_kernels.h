/* What attention.c asks of an instruction set: a small table of functions, one table per micro-kernel.
 *
 * Operands travel as 32-bit words: a word is one fp32 value or two neighbouring bf16 values, so that matrix products,
 * packing and layouts are the same code for both. Right-hand operands are packed in panels of 16 columns, [depth][16]
 * words: for bf16 this is the pair-interleaved layout that vdpbf16ps and the AMX tiles expect. Word buffers are
 * declared float and touched only by intrinsics, memcpy or, where words are fp32, as floats.
 */
#ifndef HS_ATTN_KERNELS_H
#define HS_ATTN_KERNELS_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum {
    HS_ATTN_PANEL = 16, /* columns of a panel */
    HS_ATTN_PAD = 32,   /* head size and keys get zeros up to a multiple of this: two panels, a depth step of AMX */
    HS_ATTN_TILE = 16,  /* gemm may compute and overwrite rows up to the next multiple of this */
};

/* Exponents of probabilities, base 2. The reference of a row moves only when a logit exceeds it by more than STEP:
 * probabilities then reach 2^8, far from overflow in fp32 and bf16, and accumulators are rescaled in the first few
 * blocks only. Below LEAST they stay at 2^LEAST: nothing beside the sum of the row, which is at least 1, and far enough
 * from the denormals that products with values stay clear of them. */
#define HS_ATTN_STEP  8.0f
#define HS_ATTN_LEAST -100.0f

/* One block of logits and what its rows carry from key block to key block. */
typedef struct hs_attn_block {
    float *s;   /* [rows, ld_s] logits; replaced by probabilities as words (fp32, or bf16 pairs in the front half) */
    float *o;   /* [rows, ld_o] accumulated numerator */
    float *max; /* [rows] reference of the exponent, in units of log2: at most STEP below the largest logit */
    float *sum; /* [rows] accumulated denominator */
    int64_t ld_s, ld_o;
    int rows, keys; /* keys valid columns of s; the padding behind them is overwritten */
    int cols;       /* columns of o, a multiple of HS_ATTN_PAD */
    int first;      /* nothing is accumulated yet: o, max and sum are undefined */
    float scale;    /* > 0; probabilities are 2^(scale * s - max) */
} hs_attn_block;

typedef struct hs_attn_kernels {
    const char *name;
    int bf16; /* words are pairs of bf16 */
    /* c[rows, 16 * panels] = (add ? c : 0) + a[rows, depth] b; panel p of b at b + p * ld_b. panels is even; with bf16
     * depth is a multiple of 16 words. */
    void (*gemm)(int rows, int panels, int64_t depth, const float *a, int64_t ld_a, const float *b, int64_t ld_b,
                 float *c, int64_t ld_c, int add);
    void (*softmax)(const hs_attn_block *b);
    /* Numerator over denominator, as words in the front of every row of o. */
    void (*finish)(const hs_attn_block *b);
    /* n packed keys from the places given, a multiple of a panel, as panels one after the other. */
    void (*copy_keys)(const float *k, int64_t depth, const int32_t *place, int n, float *to);
    /* The same for values, a multiple of two: panels of 16 columns at v + p * ld_v, and at to + p * ld. */
    void (*copy_values)(const float *v, int64_t ld_v, int panels, const int32_t *place, int n, float *to, int64_t ld);
    /* The largest of n numbers, the largest of the others, and where the first one is, lowest index among equals. n is
     * a multiple of a panel. */
    int (*rank)(const float *s, int n, float *ret_best, float *ret_second);
    /* Per-thread processor state around a run of gemm calls; NULL = none. */
    void (*begin)(void), (*end)(void);
} hs_attn_kernels;

extern const hs_attn_kernels hs_attn_portable;
#if defined(__x86_64__)
extern const hs_attn_kernels hs_attn_avx2, hs_attn_avx512, hs_attn_avx512_bf16, hs_attn_amx;
#endif

#ifdef __cplusplus
}
#endif
#endif
