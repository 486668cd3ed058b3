/* Portable micro-kernels of attention: fp32 on vectors of four through the compiler's vector extension, which every
 * processor of the last twenty years maps to registers (SSE2, NEON, VSX) and others to plain code. */
#include "cpu/attn_kernels.h"

#include <string.h>

typedef float vec4 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef uint32_t word4 __attribute__((vector_size(16)));

static inline vec4 load4(const float *p) {
    vec4 v;
    memcpy(&v, p, sizeof(v));
    return v;
}
static inline void store4(float *p, vec4 v) {
    memcpy(p, &v, sizeof(v));
}
static inline vec4 set4(float x) {
    return (vec4){x, x, x, x};
}
static inline vec4 max4(vec4 a, vec4 b) {
    int4 m = a > b;
    return (vec4)((m & (int4)a) | (~m & (int4)b));
}
static inline unsigned bits4(int4 m) {
    return (unsigned)((m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8));
}
static inline float hmax4(vec4 v) {
    float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
}

/* x = n + f: adding 1.5 * 2^23 leaves n in the low bits. Minimax polynomial of 2^f, |f| <= 1/2, error 7.5e-8. */
static inline vec4 exp2_4(vec4 x) {
    const vec4 magic = set4(12582912.0f);
    x = max4(set4(HS_ATTN_LEAST), x);
    vec4 t = x + magic, f = x - (t - magic);
    vec4 p = set4(0.00132764725f);
    p = p * f + set4(0.00967554096f);
    p = p * f + set4(0.0555071309f);
    p = p * f + set4(0.240221202f);
    p = p * f + set4(0.693146944f);
    p = p * f + set4(1.00000012f);
    return p * (vec4)(((word4)t + 127u) << 23);
}

#define NAME(x) x##_portable
#define FN
#define VEC            vec4
#define LANES          4
#define ROWS           2
#define VECS           4
#define LOAD           load4
#define STORE          store4
#define ZERO           set4(0)
#define SET1           set4
#define ADD(a, b)      ((a) + (b))
#define MUL(a, b)      ((a) * (b))
#define MAX            max4
#define MIN(a, b)      (-max4(-(a), -(b)))
#define EQUAL(a, b)    bits4((a) == (b))
#define FMA(a, b, c)   ((a) * (b) + (c))
#define HMAX           hmax4
#define HADD(v)        (((v)[0] + (v)[1]) + ((v)[2] + (v)[3]))
#define EXP2           exp2_4
#define WORD           vec4
#define LOADW          load4
#define SPREAD(p)      set4(*(p))
#define DOT(acc, a, b) ((acc) + (a) * (b))
#define STORE2(s, k, a, b)                                                                                             \
    do {                                                                                                               \
        STORE((s) + (k), a);                                                                                           \
        STORE((s) + (k) + LANES, b);                                                                                   \
    } while (0)
#include "cpu/attn_tile.h"

const hs_attn_kernels hs_attn_portable = {"portable",
                                          0,
                                          gemm_portable,
                                          softmax_portable,
                                          finish_portable,
                                          copy_keys_portable,
                                          copy_values_portable,
                                          rank_portable,
                                          0,
                                          0};
