/* The inner loops of attention, written once over the vector operations of an instruction set. Included by the
 * attn_*.c files, which define before:
 *
 *   NAME(x), FN      name of this instance; function attributes
 *   VEC, LANES       vector of 4, 8 or 16 floats, with LOAD STORE ZERO SET1 ADD MUL MAX FMA(a, b, c) = a * b + c
 *   HMAX, HADD       over the lanes of a VEC.  MAX(a, b) is b where either is NaN
 *   MIN(a, b), EQUAL(a, b)  as MAX; bits of the lanes that are equal
 *   EXP2(x)          2^x for x <= HS_ATTN_STEP, bounded below by 2^HS_ATTN_LEAST; NaN for NaN
 *   WORD             vector of LANES words: LOADW(p) from p on, SPREAD(p) the one at p in all lanes
 *   DOT(acc, a, b)   acc + products of words
 *   STORE2(s, k, a, b)  values k .. k + 2 * LANES of row s, as words
 *   OWN_COPY         where copy_keys and copy_values are defined elsewhere
 *   ROWS, VECS       register tile: ROWS rows of VECS vectors, 16 to 64 columns
 *
 * With R rows and C vectors a step of the depth costs R + C loads for R * C products: 6 x 4 (29 of the 32 registers of
 * AVX-512) and 6 x 2 (15 of the 16 of AVX2) keep the multipliers busy with loads to spare.
 */
#include "cpu/attn_kernels.h"

#include <float.h>
#include <math.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* rows, vecs: constants after inlining */
static inline __attribute__((always_inline)) FN void NAME(tile)(int rows, int vecs, int64_t depth, const float *a,
                                                                int64_t ld_a, const float *b, int64_t ld_b, float *c,
                                                                int64_t ld_c, int add) {
    enum { PER_PANEL = HS_ATTN_PANEL / LANES };
    VEC acc[ROWS][VECS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = add ? LOAD(c + r * ld_c + v * LANES) : ZERO;
    }
    for (int64_t d = 0; d < depth; d++) {
        WORD w[VECS];
        UNROLL for (int v = 0; v < vecs; v++) w[v] =
            LOADW(b + v / PER_PANEL * ld_b + d * HS_ATTN_PANEL + v % PER_PANEL * LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            WORD x = SPREAD(a + r * ld_a + d);
            UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = DOT(acc[r][v], x, w[v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int v = 0; v < vecs; v++) STORE(c + r * ld_c + v * LANES, acc[r][v]);
    }
}

/* One column of tiles; rows are shared out so that tiles differ by at most one row (few rows leave multiply-add latency
 * uncovered). */
static inline __attribute__((always_inline)) FN void NAME(stripe)(int rows, int vecs, int64_t depth, const float *a,
                                                                  int64_t ld_a, const float *b, int64_t ld_b, float *c,
                                                                  int64_t ld_c, int add) {
    int tiles = (rows + ROWS - 1) / ROWS;
    for (int t = 0; t < tiles; t++) {
        int r0 = t * rows / tiles, n = (t + 1) * rows / tiles - r0;
        const float *ar = a + r0 * ld_a;
        float *cr = c + r0 * ld_c;
        switch (n) {
        case 1: NAME(tile)(1, vecs, depth, ar, ld_a, b, ld_b, cr, ld_c, add); break;
        case 2: NAME(tile)(2, vecs, depth, ar, ld_a, b, ld_b, cr, ld_c, add); break;
#if ROWS > 2
        case 3: NAME(tile)(3, vecs, depth, ar, ld_a, b, ld_b, cr, ld_c, add); break;
        case 4: NAME(tile)(4, vecs, depth, ar, ld_a, b, ld_b, cr, ld_c, add); break;
        case 5: NAME(tile)(5, vecs, depth, ar, ld_a, b, ld_b, cr, ld_c, add); break;
        case 6: NAME(tile)(6, vecs, depth, ar, ld_a, b, ld_b, cr, ld_c, add); break;
#endif
        }
    }
}

static FN void NAME(gemm)(int rows, int panels, int64_t depth, const float *a, int64_t ld_a, const float *b,
                          int64_t ld_b, float *c, int64_t ld_c, int add) {
    enum {
        TILE = VECS * LANES,
        COLS = TILE > HS_ATTN_PANEL ? TILE : HS_ATTN_PANEL,
        REST = COLS > HS_ATTN_PAD ? HS_ATTN_PAD / LANES : VECS, /* vectors of a narrower tile at the end */
    };
    int cols = panels * HS_ATTN_PANEL, j = 0;
    for (; j + COLS <= cols; j += COLS)
        NAME(stripe)(rows, VECS, depth, a, ld_a, b + j / HS_ATTN_PANEL * ld_b, ld_b, c + j, ld_c, add);
    if (j < cols) NAME(stripe)(rows, REST, depth, a, ld_a, b + j / HS_ATTN_PANEL * ld_b, ld_b, c + j, ld_c, add);
}

static FN void NAME(softmax)(const hs_attn_block *b) {
    int keys = (b->keys + HS_ATTN_PAD - 1) / HS_ATTN_PAD * HS_ATTN_PAD;
    VEC scale = SET1(b->scale);
    for (int r = 0; r < b->rows; r++) {
        float *s = b->s + r * b->ld_s;
        for (int k = b->keys; k < keys; k++) s[k] = -INFINITY;
        VEC top0 = LOAD(s), top1 = LOAD(s + LANES);
        for (int k = 2 * LANES; k < keys; k += 2 * LANES) {
            top0 = MAX(top0, LOAD(s + k));
            top1 = MAX(top1, LOAD(s + k + LANES));
        }
        float top = HMAX(MAX(top0, top1)) * b->scale;
        if (b->first || !(top <= b->max[r] + HS_ATTN_STEP)) {
            top = top > -FLT_MAX ? top : -FLT_MAX; /* a row of -inf stays comparable */
            if (b->first) {
                b->sum[r] = 0;
            } else {
                float *o = b->o + r * b->ld_o, shrink = exp2f(b->max[r] - top);
                VEC f = SET1(shrink);
                for (int c = 0; c < b->cols; c += LANES) STORE(o + c, MUL(f, LOAD(o + c)));
                b->sum[r] *= shrink;
            }
            b->max[r] = top;
        }
        VEC ref = SET1(-b->max[r]), sum0 = ZERO, sum1 = ZERO;
        for (int k = 0; k < keys; k += 2 * LANES) {
            VEC p0 = EXP2(FMA(LOAD(s + k), scale, ref)), p1 = EXP2(FMA(LOAD(s + k + LANES), scale, ref));
            sum0 = ADD(sum0, p0);
            sum1 = ADD(sum1, p1);
            STORE2(s, k, p0, p1);
        }
        b->sum[r] += HADD(ADD(sum0, sum1));
    }
}

static FN void NAME(finish)(const hs_attn_block *b) {
    for (int r = 0; r < b->rows; r++) {
        float *o = b->o + r * b->ld_o;
        VEC f = SET1(1 / b->sum[r]);
        for (int c = 0; c < b->cols; c += 2 * LANES) {
            VEC x0 = MUL(f, LOAD(o + c)), x1 = MUL(f, LOAD(o + c + LANES));
            STORE2(o, c, x0, x1);
        }
    }
}

static FN int NAME(rank)(const float *s, int n, float *ret_best, float *ret_second) {
    VEC top = SET1(-INFINITY), next = top;
    float lane[LANES];
    int at = 0;
    for (int k = 0; k < n; k += LANES) {
        const VEC v = LOAD(s + k);
        next = MAX(next, MIN(v, top));
        top = MAX(top, v);
    }
    const float best = HMAX(top);
    unsigned equal = EQUAL(LOAD(s), SET1(best));
    while (!equal && at + LANES < n) equal = EQUAL(LOAD(s + (at += LANES)), SET1(best));
    at += equal ? __builtin_ctz(equal) : 0; /* none: NaN */
    STORE(lane, top);
    lane[at % LANES] = -INFINITY; /* the others of its lane are in next */
    *ret_best = best;
    *ret_second = HMAX(MAX(next, LOAD(lane)));
    return at;
}

#ifndef OWN_COPY
/* A row of a panel is put together from runs of neighbours. */
static FN void NAME(copy_keys)(const float *k, int64_t depth, const int32_t *place, int n, float *to) {
    for (; n > 0; n -= HS_ATTN_PANEL, place += HS_ATTN_PANEL, to += HS_ATTN_PANEL * depth) {
        const float *from[HS_ATTN_PANEL];
        int at[HS_ATTN_PANEL + 1], runs = 0;
        for (int c = 0; c < HS_ATTN_PANEL; c++) {
            const int lane = place[c] % HS_ATTN_PANEL;
            if (c && place[c] == place[c - 1] + 1 && lane) continue;
            from[runs] = k + (int64_t)(place[c] - lane) * depth + lane;
            at[runs++] = c;
        }
        at[runs] = HS_ATTN_PANEL;
        for (int64_t d = 0; d < depth * HS_ATTN_PANEL; d += HS_ATTN_PANEL)
            for (int r = 0; r < runs; r++)
                for (int c = at[r]; c < at[r + 1]; c++) to[d + c] = from[r][d + c - at[r]];
    }
}

static FN void NAME(copy_values)(const float *v, int64_t ld_v, int panels, const int32_t *place, int n, float *to,
                                 int64_t ld) {
    for (int p = 0; p < panels; p++, v += ld_v, to += ld)
        for (int c = 0; c < n; c++)
            for (int i = 0; i < HS_ATTN_PANEL; i += LANES)
                STORE(to + c * HS_ATTN_PANEL + i, LOAD(v + (int64_t)place[c] * HS_ATTN_PANEL + i));
}
#endif
