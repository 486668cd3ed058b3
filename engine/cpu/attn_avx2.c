/* AVX2 and FMA micro-kernels of attention: fp32; bf16 operands are widened when they are packed. */
#if defined(__x86_64__)
#include "cpu/attn_kernels.h"

#include <immintrin.h>

#define FN __attribute__((target("avx2,fma")))

/* x = n + f: adding 1.5 * 2^23 leaves n in the low bits. Minimax polynomial of 2^f, |f| <= 1/2, error 7.5e-8. */
static inline FN __m256 exp2_8(__m256 x) {
    const __m256 magic = _mm256_set1_ps(12582912.0f);
    x = _mm256_max_ps(_mm256_set1_ps(HS_ATTN_LEAST), x);
    __m256 t = _mm256_add_ps(x, magic), f = _mm256_sub_ps(x, _mm256_sub_ps(t, magic));
    __m256 p = _mm256_set1_ps(0.00132764725f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.00967554096f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.0555071309f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.240221202f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(0.693146944f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.00000012f));
    __m256i n = _mm256_slli_epi32(_mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(n));
}

static inline FN float hmax8(__m256 v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

static inline FN float hadd8(__m256 v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

#define NAME(x)        x##_avx2
#define VEC            __m256
#define LANES          8
#define ROWS           6
#define VECS           2
#define LOAD           _mm256_loadu_ps
#define STORE          _mm256_storeu_ps
#define ZERO           _mm256_setzero_ps()
#define SET1           _mm256_set1_ps
#define ADD            _mm256_add_ps
#define MUL            _mm256_mul_ps
#define MAX            _mm256_max_ps
#define MIN            _mm256_min_ps
#define EQUAL(a, b)    (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))
#define FMA            _mm256_fmadd_ps
#define HMAX           hmax8
#define HADD           hadd8
#define EXP2           exp2_8
#define WORD           __m256
#define LOADW          _mm256_loadu_ps
#define SPREAD(p)      _mm256_broadcast_ss(p)
#define DOT(acc, a, b) _mm256_fmadd_ps(a, b, acc)
#define STORE2(s, k, a, b)                                                                                             \
    do {                                                                                                               \
        STORE((s) + (k), a);                                                                                           \
        STORE((s) + (k) + LANES, b);                                                                                   \
    } while (0)
#include "cpu/attn_tile.h"

const hs_attn_kernels hs_attn_avx2 = {
    "AVX2", 0, gemm_avx2, softmax_avx2, finish_avx2, copy_keys_avx2, copy_values_avx2, rank_avx2, 0, 0};
#else
typedef int hs_attn_avx2_none; /* ISO C wants a declaration */
#endif
