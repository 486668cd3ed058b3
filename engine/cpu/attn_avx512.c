/* AVX-512 micro-kernels of attention: fp32, and bf16 through vdpbf16ps (two products per lane and instruction). */
#if defined(__x86_64__)
#include "cpu/attn_kernels.h"

#include <immintrin.h>

#define VEC         __m512
#define LANES       16
#define ROWS        6
#define VECS        4
#define LOAD        _mm512_loadu_ps
#define STORE       _mm512_storeu_ps
#define ZERO        _mm512_setzero_ps()
#define SET1        _mm512_set1_ps
#define ADD         _mm512_add_ps
#define MUL         _mm512_mul_ps
#define MAX         _mm512_max_ps
#define MIN         _mm512_min_ps
#define EQUAL(a, b) (unsigned)_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)
#define FMA         _mm512_fmadd_ps
#define HMAX        _mm512_reduce_max_ps
#define HADD        _mm512_reduce_add_ps
#define OWN_COPY

#define TARGET_FP32 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define TARGET_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))

/* x = n + f, n integer, |f| <= 1/2. Minimax polynomials of 2^f, relative error 7.5e-8 (degree 5) and 7.5e-5 (3). */
static inline TARGET_FP32 __m512 exp2_fp32(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(HS_ATTN_LEAST), x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(0.00132764725f);
    p = FMA(p, f, _mm512_set1_ps(0.00967554096f));
    p = FMA(p, f, _mm512_set1_ps(0.0555071309f));
    p = FMA(p, f, _mm512_set1_ps(0.240221202f));
    p = FMA(p, f, _mm512_set1_ps(0.693146944f));
    p = FMA(p, f, _mm512_set1_ps(1.00000012f));
    return _mm512_scalef_ps(p, n);
}

/* For probabilities that are rounded to bf16 (2^-9) anyway. */
static inline TARGET_BF16 __m512 exp2_bf16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(HS_ATTN_LEAST), x);
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(0.0551716685f);
    p = FMA(p, f, _mm512_set1_ps(0.242611125f));
    p = FMA(p, f, _mm512_set1_ps(0.693260968f));
    p = FMA(p, f, _mm512_set1_ps(0.999928057f));
    return _mm512_scalef_ps(p, n);
}

/* ---- copies -----------------------------------------------------------------------------------------------------
 * Whole rows are loaded, which are cache lines, and lanes permuted: unaligned loads of parts of rows take twice as
 * long.
 */

/* Keys of a panel come from `count` other panels, a constant after inlining: lane c from lane[c] % 16 of the first one,
 * where bit 4 of lane[c] is set of the second one, where bit c of mask[i] is set of a later one. */
static inline __attribute__((always_inline)) TARGET_FP32 void
copy_panel(int count, const float *const *from, const __mmask16 *mask, __m512i lane, int64_t depth, float *to) {
    for (int64_t d = 0; d < depth * HS_ATTN_PANEL; d += HS_ATTN_PANEL) {
        __m512 row = LOAD(from[0] + d);
        row = count > 1 ? _mm512_permutex2var_ps(row, lane, LOAD(from[1] + d)) : _mm512_permutexvar_ps(lane, row);
        for (int i = 2; i < count; i++) row = _mm512_mask_permutexvar_ps(row, mask[i], lane, LOAD(from[i] + d));
        STORE(to + d, row);
    }
}

static TARGET_FP32 void copy_keys(const float *k, int64_t depth, const int32_t *place, int n, float *to) {
    for (; n > 0; n -= HS_ATTN_PANEL, place += HS_ATTN_PANEL, to += HS_ATTN_PANEL * depth) {
        const float *from[HS_ATTN_PANEL];
        __mmask16 mask[HS_ATTN_PANEL];
        int32_t lane[HS_ATTN_PANEL];
        int count = 0;
        for (int c = 0; c < HS_ATTN_PANEL; c++) {
            lane[c] = place[c] % HS_ATTN_PANEL;
            const float *panel = k + (int64_t)(place[c] - lane[c]) * depth;
            if (!count || panel != from[count - 1]) {
                from[count] = panel;
                mask[count++] = 0;
            }
            if (count == 2) lane[c] |= HS_ATTN_PANEL;
            mask[count - 1] = (__mmask16)(mask[count - 1] | 1u << c);
        }
        const __m512i lanes = _mm512_loadu_si512(lane);
        switch (count) {
        case 1: copy_panel(1, from, mask, lanes, depth, to); break;
        case 2: copy_panel(2, from, mask, lanes, depth, to); break;
        case 3: copy_panel(3, from, mask, lanes, depth, to); break;
        default: copy_panel(count, from, mask, lanes, depth, to);
        }
    }
}

static TARGET_FP32 void copy_values_fp32(const float *v, int64_t ld_v, int panels, const int32_t *place, int n,
                                         float *to, int64_t ld) {
    for (int p = 0; p < panels; p++, v += ld_v, to += ld)
        for (int c = 0; c < n; c++) STORE(to + c * HS_ATTN_PANEL, LOAD(v + (int64_t)place[c] * HS_ATTN_PANEL));
}

/* Pairs of keys are neighbours in a word: the halves that are wanted come from two rows of words. */
static TARGET_BF16 void copy_values_bf16(const float *v, int64_t ld_v, int panels, const int32_t *place, int n,
                                         float *to, int64_t ld) {
    const __m512i word = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i first = _mm512_add_epi32(_mm512_slli_epi32(word, 1), _mm512_slli_epi32(word, 17)); /* 2i, 2i */
    for (int c = 0; c < n; c += 2, to += HS_ATTN_PANEL) {
        const uint32_t x = (uint32_t)place[c], y = (uint32_t)place[c + 1], high = 32 + (y & 1);
        const float *a = v + (int64_t)(x >> 1) * HS_ATTN_PANEL, *b = v + (int64_t)(y >> 1) * HS_ATTN_PANEL;
        const __m512i half = _mm512_add_epi32(first, _mm512_set1_epi32((int)((x & 1) | high << 16)));
        for (int p = 0; p < panels; p++) {
            const __m512i low = _mm512_loadu_si512(a + p * ld_v);
            _mm512_storeu_si512(to + p * ld, _mm512_permutex2var_epi16(low, half, _mm512_loadu_si512(b + p * ld_v)));
        }
    }
}

#define NAME(x)        x##_fp32
#define FN             TARGET_FP32
#define EXP2           exp2_fp32
#define WORD           __m512
#define LOADW          _mm512_loadu_ps
#define SPREAD(p)      _mm512_set1_ps(*(p))
#define DOT(acc, a, b) _mm512_fmadd_ps(a, b, acc)
#define STORE2(s, k, a, b)                                                                                             \
    do {                                                                                                               \
        STORE((s) + (k), a);                                                                                           \
        STORE((s) + (k) + LANES, b);                                                                                   \
    } while (0)
#include "cpu/attn_tile.h"
#undef NAME
#undef FN
#undef EXP2
#undef WORD
#undef LOADW
#undef SPREAD
#undef DOT
#undef STORE2

#define NAME(x)            x##_bf16
#define FN                 TARGET_BF16
#define EXP2               exp2_bf16
#define WORD               __m512bh
#define LOADW(p)           ((__m512bh)_mm512_loadu_si512(p))
#define SPREAD(p)          ((__m512bh)_mm512_castps_si512(_mm512_set1_ps(*(p))))
#define DOT                _mm512_dpbf16_ps
#define STORE2(s, k, a, b) _mm512_storeu_si512((s) + (k) / 2, (__m512i)_mm512_cvtne2ps_pbh(b, a))
#include "cpu/attn_tile.h"

const hs_attn_kernels hs_attn_avx512 = {"AVX-512", 0, gemm_fp32, softmax_fp32, finish_fp32, copy_keys, copy_values_fp32,
                                        rank_fp32, 0, 0};
const hs_attn_kernels hs_attn_avx512_bf16 = {
    "AVX512-BF16", 1, gemm_bf16, softmax_bf16, finish_bf16, copy_keys, copy_values_bf16, rank_bf16, 0, 0};
#else
typedef int hs_attn_avx512_none; /* ISO C wants a declaration */
#endif
