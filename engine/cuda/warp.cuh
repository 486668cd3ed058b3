/* Sums and maxima of a warp; by all of its lanes. */
#ifndef HS_CUDA_WARP_CUH
#define HS_CUDA_WARP_CUH

static __device__ __forceinline__ float warp_max(float x) {
    for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}
/* The order of the additions is fixed and the result the same in every lane. */
template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
/* Of the lanes up to this one. */
static __device__ __forceinline__ int warp_sum_to(int lane, int x) {
    for (int d = 1; d < 32; d *= 2) {
        const int before = __shfl_up_sync(~0u, x, d);
        if (lane >= d) x += before;
    }
    return x;
}
#endif
