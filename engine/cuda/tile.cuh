/* Products of two sets of vectors, a tile of 128 x 128 at a time: what the predictors of masks have in common.
 *
 * A tile lives in the registers of a block, as `mma_tile` (tensor cores, 16-bit operands, 128 threads) or `fma_tile`
 * (plain fp32, any operand, 256 threads); both sum in fp32. Whoever uses one walks it by at(i, j), row(i), col(j),
 * which ascend in i and j, so that epilogues are written once for both. Operands of the tensor cores lie in shared
 * memory as slabs of 128 rows x 64 elements, 16-byte chunks exchanged by row so that neither copies nor reads meet in a
 * bank.
 */
#ifndef HS_CUDA_TILE_CUH
#define HS_CUDA_TILE_CUH
#include "cuda/cuda.h"
#include "cuda/mma.h"
#include "cuda/warp.cuh"

enum {
    TILE = 128, /* rows and columns */
    SLAB = 64,  /* elements of depth in shared memory */
    CHUNK = 8,  /* elements of a 16-byte copy */
    SLAB_SIZE = TILE * SLAB,
    FMA_DEPTH = 16,                             /* depth in shared memory of the fp32 product */
    FMA_PITCH = TILE + 4,                       /* keeps float4 aligned and spreads columns over the banks */
    FMA_SHARED = 2 * FMA_DEPTH * FMA_PITCH * 4, /* bytes */
};

/* Where chunk c of row r of a slab lies. */
template <typename T> static __device__ __forceinline__ T *slab_chunk(T *slab, int r, int c) {
    return slab + r * SLAB + ((c ^ (r & 7)) * CHUNK);
}

/* Four warps, each 64 x 64 of the tile. */
struct mma_tile {
    enum { THREADS = 128, ROWS = 8, COLS = 16, LANES = 4, WARPS = 2 }; /* LANES x WARPS threads share a row */
    float acc[4][8][4];
    __device__ __forceinline__ void clear() {
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 8; j++)
                for (int e = 0; e < 4; e++) acc[i][j][e] = 0;
    }
    __device__ __forceinline__ float at(int i, int j) const { return acc[i / 2][j / 2][i % 2 * 2 + j % 2]; }
    static __device__ __forceinline__ int row(int i) {
        return threadIdx.x / 64 * 64 + i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ int col(int j) {
        return warp_col() * 64 + j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2;
    }
    static __device__ __forceinline__ int warp_col() { return threadIdx.x / 32 % 2; }

    /* Adds the products of a slab of rows and a slab of columns. */
    template <typename T> __device__ __forceinline__ void multiply(T *a, T *b) {
        const int lane = threadIdx.x % 32, r0 = threadIdx.x / 64 * 64, c0 = warp_col() * 64;
#pragma unroll
        for (int k = 0; k < SLAB / 16; k++) {
            uint32_t fa[4][4], fb[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                load_matrix4(fa[i], shared_address(slab_chunk(a, r0 + i * 16 + lane % 16, k * 2 + lane / 16)));
#pragma unroll
            for (int j = 0; j < 4; j++)
                load_matrix4(
                    fb[j], shared_address(slab_chunk(b, c0 + j * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2)));
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++)
                    mma16816<T>(acc[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
};

/* 16 x 16 threads, each four quarters of 4 x 4, 64 apart. */
struct fma_tile {
    enum { THREADS = 256, ROWS = 8, COLS = 8, LANES = 16, WARPS = 1 };
    float acc[8][8];
    __device__ __forceinline__ void clear() {
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 8; j++) acc[i][j] = 0;
    }
    __device__ __forceinline__ float at(int i, int j) const { return acc[i][j]; }
    static __device__ __forceinline__ int row(int i) { return threadIdx.x / 16 * 4 + i % 4 + i / 4 * 64; }
    static __device__ __forceinline__ int col(int j) { return threadIdx.x % 16 * 4 + j % 4 + j / 4 * 64; }
    static __device__ __forceinline__ int warp_col() { return 0; }

    /* Adds the products over `depth` elements a(row, k), b(col, k). shared: FMA_SHARED bytes, 16-byte aligned. */
    template <typename A, typename B> __device__ __forceinline__ void multiply(int depth, A a, B b, float *shared) {
        float *sa = shared, *sb = shared + FMA_DEPTH * FMA_PITCH;
        for (int k0 = 0; k0 < depth; k0 += FMA_DEPTH) {
            const int k = threadIdx.x % FMA_DEPTH;
            __syncthreads();
            for (int r = threadIdx.x / FMA_DEPTH; r < TILE; r += THREADS / FMA_DEPTH) {
                sa[k * FMA_PITCH + r] = k0 + k < depth ? a(r, k0 + k) : 0;
                sb[k * FMA_PITCH + r] = k0 + k < depth ? b(r, k0 + k) : 0;
            }
            __syncthreads();
            for (int e = 0; e < FMA_DEPTH; e++) {
                float x[8], y[8];
                for (int i = 0; i < 8; i++) {
                    x[i] = sa[e * FMA_PITCH + row(i)];
                    y[i] = sb[e * FMA_PITCH + col(i)];
                }
                for (int i = 0; i < 8; i++)
                    for (int j = 0; j < 8; j++) acc[i][j] = fmaf(x[i], y[j], acc[i][j]);
            }
        }
        __syncthreads();
    }
};

/* Chunk c of row r of a slab, in the background; zeros if not `there`. */
template <typename T>
static __device__ __forceinline__ void copy_chunk(T *slab, int r, int c, const T *from, bool there) {
    copy_async16(shared_address(slab_chunk(slab, r, c)), from, there);
}

/* Operands that 16-byte copies can reach: vectors of `dim` elements that begin at p + a multiple of ld. */
static inline int copies_reach(const void *p, int64_t ld, int dim) {
    return (uintptr_t)p % 16 == 0 && ld % CHUNK == 0 && dim % CHUNK == 0;
}
#endif
