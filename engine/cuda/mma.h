/* The tensor-core and asynchronous-copy instructions of sm_80 that the kernels share, one function per instruction.
 *
 * Fragments of m16n8k16 (16-bit operands, fp32 sums), lane l of the warp, g = l / 4, q = l % 4:
 *   a[0..3]  A [16, 16]: (g, 2q..), (g + 8, 2q..), (g, 2q + 8..), (g + 8, 2q + 8..), two values each
 *   b0, b1   B [16, 8]:  (2q.., g), (2q + 8.., g), two values each
 *   d[0..3]  D [16, 8]:  (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)
 */
#ifndef HS_MMA_H
#define HS_MMA_H
#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* Address of shared memory as the instructions below want it. */
__device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* 16 bytes to shared memory in the background, past the L1 cache; zeros if not `valid` (src is then not read). Both
 * addresses must be aligned to 16 bytes. */
__device__ __forceinline__ void copy_async16(unsigned dst, const void *src, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
/* The same through the L1 cache: for what the other block of the multiprocessor reads as well. */
__device__ __forceinline__ void copy_async16_cached(unsigned dst, const void *src) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}
/* Everything this thread copied since the last commit is one group. */
__device__ __forceinline__ void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until all but the latest PENDING groups of this thread have arrived. */
template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Four 8 x 8 matrices of 16-bit values: lane l names row l % 8 (16 bytes) of matrix l / 8; r[i] is this lane's pair of
 * matrix i, row l / 4, columns 2 (l % 4).. */
__device__ __forceinline__ void load_matrix4(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
/* The same, each matrix transposed: r[i] is rows 2 (l % 4).. of column l / 4. */
__device__ __forceinline__ void load_matrix4_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* Two values rounded to T in one register, x in the lower half. */
template <typename T> __device__ __forceinline__ unsigned pack(float x, float y);
template <> __device__ __forceinline__ unsigned pack<__nv_bfloat16>(float x, float y) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
    return r;
}
template <> __device__ __forceinline__ unsigned pack<__half>(float x, float y) {
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(y), "f"(x));
    return r;
}

/* d += A B */
template <typename T>
__device__ __forceinline__ void mma16816(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void mma16816<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                        unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma16816<__half>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
