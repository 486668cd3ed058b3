/* Hopper's own instructions (sm_90a), one function per instruction: barriers in shared memory, bulk tensor copies
 * (TMA), warpgroup products (wgmma), registers moved between warpgroups. On the host: the description of a tensor that
 * TMA takes. Facts and pitfalls: spec kernels.md 3.3 and 3.6.
 *
 * Tiles in shared memory are [rows][64] 16-bit values, 128 bytes a row, aligned to 1,024 bytes, in the 128-byte
 * swizzle: piece c (16 bytes) of row r lies at place c ^ (r % 8). Wider matrices are several such tiles side by side.
 *
 * A warpgroup is 128 threads, warp w of it (0..3), lane l. Sums d[N / 2] of a 64 x N product: d[4 j + 2 i + e] is row
 * 16 w + l / 4 + 8 i, column 8 j + 2 (l % 4) + e. Packed in pairs, j = 2 n and 2 n + 1 are the left operand of depth
 * 16 n .. 16 n + 15 of the next product.
 */
#ifndef HS_HOPPER_CUH
#define HS_HOPPER_CUH
#include "cuda/mma.h"

#include <cstdint>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#include <type_traits>

/* sm_90a is compiled beside other architectures: kernels are empty there and are not launched. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HS_HOPPER 1
#else
#define HS_HOPPER 0
#endif

/* ---- barriers in shared memory (8 bytes each) ------------------------------------------------------------------- */

__device__ __forceinline__ void barrier_init(unsigned bar, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
/* After the last barrier_init, before the block's __syncthreads() or its cluster's cluster_sync(). */
__device__ __forceinline__ void barrier_init_done() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(unsigned bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* Arrives, and makes the phase wait for so many bytes of copies besides. */
__device__ __forceinline__ void barrier_expect(unsigned bar, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/* The same barrier of another block of the cluster. What was written before is not told of by it. */
__device__ __forceinline__ void barrier_arrive_at(unsigned bar, unsigned block) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(bar),
                 "r"(block)
                 : "memory");
}
/* Number of this block in its cluster. */
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
/* All threads of all blocks of the cluster. */
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}
/* Until the phase of this parity has ended. A barrier begins in phase 0; the phase before it, parity 1, has ended. */
__device__ __forceinline__ void barrier_wait(unsigned bar, unsigned parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra ready;\n"
                 "bra again;\n"
                 "ready:\n"
                 "}" ::"r"(bar),
                 "r"(parity)
                 : "memory");
}

/* What ordinary stores wrote to shared memory is seen by TMA and wgmma; by every writing thread, before the barrier
 * that tells of it. */
__device__ __forceinline__ void fence_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The same for what ordinary stores wrote anywhere, before other blocks are told of it. */
__device__ __forceinline__ void fence_async_all() {
#if HS_HOPPER
    asm volatile("fence.proxy.async;" ::: "memory");
#endif
}

/* Barriers of the block by number (1 to 15) for `threads` of it: wait for all, or only count oneself. */
template <int ID> __device__ __forceinline__ void named_sync(int threads) {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}
template <int ID> __device__ __forceinline__ void named_arrive(int threads) {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "r"(threads) : "memory");
}
/* By a number known only when it runs. */
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- bulk tensor copies ----------------------------------------------------------------------------------------- */

/* The box at (x, y, z) of a tensor to shared memory; one thread. Beyond the tensor's edges it is zeros, which count as
 * bytes of the barrier like all others. */
__device__ __forceinline__ void tma_load(unsigned dst, const CUtensorMap *map, unsigned bar, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
        "[%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
        : "memory");
}
/* The same to that place of both blocks of a cluster of two; its bytes count for either's barrier. */
__device__ __forceinline__ void tma_load_both(unsigned dst, const CUtensorMap *map, unsigned bar, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%3, %4, %5}], [%2], %6;" ::"r"(dst),
                 "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "h"((unsigned short)3)
                 : "memory");
}
__device__ __forceinline__ void tma_load_4d(unsigned dst, const CUtensorMap *map, unsigned bar, int x, int y, int z,
                                            int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(dst),
        "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}
/* So many bytes as they lie in memory, a multiple of 16, as both addresses; one thread. */
__device__ __forceinline__ void bulk_load(unsigned dst, const void *src, unsigned bytes, unsigned bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}
__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* Adds to four floats in global memory, aligned to 16 bytes; nothing waits for it. */
__device__ __forceinline__ void add_four(float *p, const float (&v)[4]) {
#if HS_HOPPER
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v[0]), "f"(v[1]), "f"(v[2]),
                 "f"(v[3])
                 : "memory");
#endif
}

/* ---- warpgroup products ----------------------------------------------------------------------------------------- */

/* Operands in shared memory, tiles as above; address: of a tile's row that is a multiple of 8, or 32 bytes times the
 * step along a row of 64; `eight` bytes from a group of eight rows to the next. By rows: the depth of the product runs
 * along rows (q k^T). By columns: it runs down the rows (p v), `next` bytes from a tile to that of the next 64 columns.
 */
__device__ __forceinline__ uint64_t operand_by_rows(unsigned address, unsigned eight = 1024) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(eight >> 4) << 32 | (uint64_t)1 << 62;
}
__device__ __forceinline__ uint64_t operand_by_columns(unsigned address, unsigned next, unsigned eight = 1024) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)(next >> 4) << 16 | (uint64_t)(eight >> 4) << 32 |
           (uint64_t)1 << 62;
}
/* Before the first product after registers of it were touched by other instructions. */
__device__ __forceinline__ void products_begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Until all but the latest PENDING groups are done. */
template <int PENDING> __device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* The compiler does not know that products read and write registers later: nothing that uses r moves across this. */
template <int N> __device__ __forceinline__ void keep(float (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int N> __device__ __forceinline__ void keep(unsigned (&r)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}

#define HS_F4(d, i)   "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HS_F16(d, i)  HS_F4(d, i), HS_F4(d, i + 4), HS_F4(d, i + 8), HS_F4(d, i + 12)
#define HS_F32R(d, i) HS_F16(d, i), HS_F16(d, i + 16)
#define HS_F52R(d)    HS_F32R(d, 0), HS_F16(d, 32), HS_F4(d, 48)
#define HS_F64R(d)    HS_F32R(d, 0), HS_F32R(d, 32)
#define HS_F128R(d)   HS_F64R(d), HS_F32R(d, 64), HS_F32R(d, 96)
#define HS_WGMMA_SS_64(TYPE)                                                                                           \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "                                       \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                   \
                 "%32, %33, add, 1, 1, 0, 0;\n}"                                                                       \
                 : HS_F32R(d, 0)                                                                                       \
                 : "l"(a), "l"(b), "r"(add))
#define HS_WGMMA_SS_104(TYPE)                                                                                          \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %54, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n104k16.f32." TYPE "." TYPE " "                                      \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51}, "                                                                               \
                 "%52, %53, add, 1, 1, 0, 0;\n}"                                                                       \
                 : HS_F52R(d)                                                                                          \
                 : "l"(a), "l"(b), "r"(add))
#define HS_WGMMA_SS_128(TYPE)                                                                                          \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                                      \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                   \
                 "%64, %65, add, 1, 1, 0, 0;\n}"                                                                       \
                 : HS_F64R(d)                                                                                          \
                 : "l"(a), "l"(b), "r"(add))
#define HS_WGMMA_SS_192(TYPE)                                                                                          \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %98, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n192k16.f32." TYPE "." TYPE " "                                      \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                    \
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                    \
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "                   \
                 "%96, %97, add, 1, 1, 0, 0;\n}"                                                                       \
                 : HS_F64R(d), HS_F32R(d, 64)                                                                          \
                 : "l"(a), "l"(b), "r"(add))
#define HS_WGMMA_SS_256(TYPE)                                                                                          \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"                                                     \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " "                                      \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                    \
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                    \
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                    \
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "        \
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "   \
                 "%128, %129, add, 1, 1, 0, 0;\n}"                                                                     \
                 : HS_F128R(d)                                                                                         \
                 : "l"(a), "l"(b), "r"(add))
#define HS_WGMMA_RS_128(TYPE, COLUMNS)                                                                                 \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " "                                      \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                    \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                   \
                 "{%64, %65, %66, %67}, %68, add, 1, 1, " COLUMNS ";\n}"                                               \
                 : HS_F64R(d)                                                                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define HS_WGMMA_RS_ROWS_64(TYPE)                                                                                      \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " "                                       \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                   \
                 "{%32, %33, %34, %35}, %36, add, 1, 1, 0;\n}"                                                         \
                 : HS_F32R(d, 0)                                                                                       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

/* d (+)= A B^T over a depth of 16: A [64, 16], B [N, 16], both by rows in shared memory. add 0: d is overwritten. */
template <typename T, int N>
__device__ __forceinline__ void product_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
#if HS_HOPPER
    static_assert(N == 64 || N == 104 || N == 128 || N == 192 || N == 256, "");
    constexpr bool BF16 = std::is_same<T, __nv_bfloat16>::value;
    if constexpr (N == 64 && BF16) HS_WGMMA_SS_64("bf16");
    if constexpr (N == 64 && !BF16) HS_WGMMA_SS_64("f16");
    if constexpr (N == 104 && BF16) HS_WGMMA_SS_104("bf16");
    if constexpr (N == 104 && !BF16) HS_WGMMA_SS_104("f16");
    if constexpr (N == 128 && BF16) HS_WGMMA_SS_128("bf16");
    if constexpr (N == 128 && !BF16) HS_WGMMA_SS_128("f16");
    if constexpr (N == 192 && BF16) HS_WGMMA_SS_192("bf16");
    if constexpr (N == 192 && !BF16) HS_WGMMA_SS_192("f16");
    if constexpr (N == 256 && BF16) HS_WGMMA_SS_256("bf16");
    if constexpr (N == 256 && !BF16) HS_WGMMA_SS_256("f16");
#endif
}
/* d (+)= A B over a depth of 16: A [64, 16] in registers, B [16, 128] by columns in shared memory. */
template <typename T>
__device__ __forceinline__ void product_rs(float (&d)[64], const unsigned (&a)[4], uint64_t b, int add) {
#if HS_HOPPER
    if constexpr (std::is_same<T, __nv_bfloat16>::value)
        HS_WGMMA_RS_128("bf16", "1");
    else
        HS_WGMMA_RS_128("f16", "1");
#endif
}
/* d (+)= A B^T over a depth of 16: A [64, 16] in registers, B [64 or 128, 16] by rows in shared memory. */
template <typename T>
__device__ __forceinline__ void product_rs_rows(float (&d)[32], const unsigned (&a)[4], uint64_t b, int add) {
#if HS_HOPPER
    if constexpr (std::is_same<T, __nv_bfloat16>::value)
        HS_WGMMA_RS_ROWS_64("bf16");
    else
        HS_WGMMA_RS_ROWS_64("f16");
#endif
}
template <typename T>
__device__ __forceinline__ void product_rs_rows(float (&d)[64], const unsigned (&a)[4], uint64_t b, int add) {
#if HS_HOPPER
    if constexpr (std::is_same<T, __nv_bfloat16>::value)
        HS_WGMMA_RS_128("bf16", "0");
    else
        HS_WGMMA_RS_128("f16", "0");
#endif
}

/* Registers per thread of this warpgroup from here on (a multiple of 8); all its warps, once. */
template <int COUNT> __device__ __forceinline__ void registers_grow() {
#if HS_HOPPER
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <int COUNT> __device__ __forceinline__ void registers_shrink() {
#if HS_HOPPER
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

/* ---- host ------------------------------------------------------------------------------------------------------- */

/* The driver's function, so that nothing links against it; NULL: not there. */
static inline PFN_cuTensorMapEncodeTiled_v12000 hopper_encoder() {
    static PFN_cuTensorMapEncodeTiled_v12000 found = [] {
        void *p = nullptr;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault, &result) !=
                cudaSuccess ||
            result != cudaDriverEntryPointSuccess)
            return (PFN_cuTensorMapEncodeTiled_v12000) nullptr;
        return (PFN_cuTensorMapEncodeTiled_v12000)p;
    }();
    return found;
}

/* `rank` dimensions, the innermost first; strides in elements (multiples of 8) of all but the first, p aligned to 16
 * bytes. 0: it cannot be described. */
static inline int hopper_map_of(CUtensorMap *ret, bool bf16, const void *p, int rank, const int64_t *dims,
                                const int64_t *strides, const cuuint32_t *box) {
    const PFN_cuTensorMapEncodeTiled_v12000 encode = hopper_encoder();
    const cuuint32_t step[4] = {1, 1, 1, 1};
    cuuint64_t dim[4], stride[3];
    for (int i = 0; i < rank; i++) dim[i] = (cuuint64_t)dims[i];
    for (int i = 0; i + 1 < rank; i++) stride[i] = (cuuint64_t)strides[i] * 2;
    return encode &&
           encode(ret, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, (cuuint32_t)rank,
                  (void *)p, dim, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* A tensor [z][y][x] of 16-bit values, x contiguous, strides in elements, read in boxes of 64 x `rows` (at most 256)
 * x 1. */
static inline int hopper_map(CUtensorMap *ret, bool bf16, const void *p, int64_t x, int64_t y, int64_t z,
                             int64_t y_stride, int64_t z_stride, int rows) {
    const int64_t dims[3] = {x, y, z}, strides[2] = {y_stride, z_stride};
    const cuuint32_t box[3] = {64, (cuuint32_t)rows, 1};
    return hopper_map_of(ret, bf16, p, 3, dims, strides, box);
}
/* A tensor [w][z][y][x], read in boxes of 64 x 1 x `rows` x 1: rows are along z. */
static inline int hopper_map_4d(CUtensorMap *ret, bool bf16, const void *p, const int64_t (&dims)[4],
                                const int64_t (&strides)[3], int rows) {
    const cuuint32_t box[4] = {64, 1, (cuuint32_t)rows, 1};
    return hopper_map_of(ret, bf16, p, 4, dims, strides, box);
}
#endif
