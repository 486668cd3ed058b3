/* Instructions that only attention uses, beside those of mma.h, and in its terms. */
#ifndef HS_ATTN_PTX_CUH
#define HS_ATTN_PTX_CUH
#include "cuda/mma.h"

/* d = A B: cheaper than clearing d first. */
template <typename T>
__device__ __forceinline__ void mma16816_first(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void mma16816_first<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                              unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}
template <>
__device__ __forceinline__ void mma16816_first<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                       unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}

/* 2^x within 2 units of the last place; 0 for minus infinity. */
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Until everything this thread copies in the background has arrived. */
__device__ __forceinline__ void copy_wait_all() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* p + i * n bytes, in one instruction. */
__device__ __forceinline__ const char *row_at(const char *p, unsigned i, unsigned n) {
    const char *r;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(r) : "r"(i), "r"(n), "l"(p));
    return r;
}
#endif
