/* AVX-512 micro-kernels of attention: fp32, and bf16 through vdpbf16ps (two products per lane and instruction). */
#if defined(__x86_64__)
#include "cpu/attn_kernels.h"

#include <immintrin.h>

#define VEC   __m512
#define LANES 16
#define ROWS  6
#define VECS  4
#define LOAD  _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ZERO  _mm512_setzero_ps()
#define SET1  _mm512_set1_ps
#define ADD   _mm512_add_ps
#define MUL   _mm512_mul_ps
#define MAX   _mm512_max_ps
#define FMA   _mm512_fmadd_ps
#define HMAX  _mm512_reduce_max_ps
#define HADD  _mm512_reduce_add_ps

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

const hs_attn_kernels hs_attn_avx512 = {"AVX-512", 0, gemm_fp32, softmax_fp32, finish_fp32, 0, 0};
const hs_attn_kernels hs_attn_avx512_bf16 = {"AVX512-BF16", 1, gemm_bf16, softmax_bf16, finish_bf16, 0, 0};
#else
typedef int hs_attn_avx512_none; /* ISO C wants a declaration */
#endif
