/* The VAE's operations beside its convolutions (backend.h, spec wan.md 5): all are bound by memory, so each value is
 * read and written once, 16 bytes at a time where the sizes allow.
 */
#include "cuda/cuda.h"

#include <type_traits>

enum { THREADS = 256 };

static unsigned blocks_for(int64_t threads) {
    return (unsigned)((threads + THREADS - 1) / THREADS);
}

__device__ __forceinline__ int64_t thread_index() {
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}

static int aligned16(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

/* ---- latent frames ---------------------------------------------------------------------------------------------- */
/* Scale and shift come from the host and travel as an argument of the kernel. */
typedef struct channel_map {
    float mul[128], add[128];
} channel_map;
enum { MAP_CHANNELS = 128 };

/* Channels [c0, c0 + n) of z [T * area, C] from x [C, f, area], frame t0 on. */
template <typename T>
static __global__ void latent_kernel(const float *__restrict__ x, T *__restrict__ z,
                                     const __grid_constant__ channel_map map, int C, int f, int t0, int64_t frames_area,
                                     int64_t area, int c0, int n) {
    const int64_t i = thread_index();
    if (i >= frames_area * n) return;
    const int64_t pixel = i / n;
    const int c = (int)(i % n);
    const float v = x[((int64_t)(c0 + c) * f + t0) * area + pixel]; /* frames follow each other */
    z[pixel * C + c0 + c] = from_f32<T>(v * map.mul[c] + map.add[c]);
}

void hs_cuda_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                           const float *add, hs_buf z) {
    const int64_t area = (int64_t)Y * X;
    for (int c0 = 0; c0 < C; c0 += MAP_CHANNELS) {
        const int n = C - c0 < MAP_CHANNELS ? C - c0 : (int)MAP_CHANNELS;
        channel_map map = {};
        for (int c = 0; c < n; c++) {
            map.mul[c] = mul[c0 + c];
            map.add[c] = add[c0 + c];
        }
        hs_cuda_typed(z.type, [&](auto *t) {
            using Z = std::decay_t<decltype(*t)>;
            latent_kernel<Z><<<blocks_for(T * area * n), THREADS, 0, hs_cuda_of(dev)->stream>>>(
                (const float *)x.p, (Z *)z.p, map, C, f, t0, T * area, area, c0, n);
        });
    }
    HS_CUDA_LAUNCHED(dev, "latent_frames");
}

/* ---- channel norm ----------------------------------------------------------------------------------------------- */
/* 16-bit results have no use for the last bits of exp and of a division; F32 ones get them. */
template <typename T> __device__ __forceinline__ float silu(float v) {
    return std::is_same<T, float>::value ? v / (1 + expf(-v)) : __fdividef(v, 1 + __expf(-v));
}

template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) vec { T v[N]; };

__device__ __forceinline__ float norm_scale(float square_sum, int C) {
    return sqrtf((float)C) / fmaxf(sqrtf(square_sum), 1e-12f);
}

/* `lanes` neighbouring threads (a power of two up to 32) share a pixel and hold HELD of its channels each, in pieces of
 * 16 bytes that alternate between them: the widths of the model, 24 * 2^k, keep all of them busy. */
enum { HELD = 24 };
template <typename X, typename Y>
static __global__ void channel_norm_kernel(const X *__restrict__ x, const float *__restrict__ gamma, Y *__restrict__ y,
                                           int64_t pixels, int C, int lanes, int apply_silu) {
    constexpr int N = 16 / sizeof(X);
    const int64_t pixel = thread_index() / lanes;
    const int lane = (int)threadIdx.x & (lanes - 1);
    const bool here = pixel < pixels; /* the others must take part in the exchange */
    float v[HELD / N][N], sum = 0;
#pragma unroll
    for (int k = 0; k < HELD / N; k++) {
        const int c = (lane + k * lanes) * N;
        if (!here || c >= C) continue;
        const vec<X, N> in = *(const vec<X, N> *)(x + pixel * C + c);
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[k][i] = to_f32(in.v[i]);
            sum += v[k][i] * v[k][i];
        }
    }
    for (int o = lanes / 2; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    const float scale = norm_scale(sum, C);
#pragma unroll
    for (int k = 0; k < HELD / N; k++) {
        const int c = (lane + k * lanes) * N;
        if (!here || c >= C) continue;
        const vec<float, N> g = *(const vec<float, N> *)(gamma + c);
        vec<Y, N> out;
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float u = v[k][i] * scale * g.v[i];
            out.v[i] = from_f32<Y>(apply_silu ? silu<Y>(u) : u);
        }
        *(vec<Y, N> *)(y + pixel * C + c) = out;
    }
}

/* Any width and alignment: a warp per pixel, which is read twice. */
template <typename X, typename Y>
static __global__ void channel_norm_any_kernel(const X *__restrict__ x, const float *__restrict__ gamma,
                                               Y *__restrict__ y, int64_t pixels, int C, int apply_silu) {
    const int64_t pixel = thread_index() / 32;
    if (pixel >= pixels) return; /* the whole warp */
    float sum = 0;
    for (int c = (int)threadIdx.x & 31; c < C; c += 32) {
        const float v = to_f32(x[pixel * C + c]);
        sum += v * v;
    }
    for (int o = 16; o > 0; o /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, o);
    const float scale = norm_scale(sum, C);
    for (int c = (int)threadIdx.x & 31; c < C; c += 32) {
        const float u = to_f32(x[pixel * C + c]) * scale * gamma[c];
        y[pixel * C + c] = from_f32<Y>(apply_silu ? silu<Y>(u) : u);
    }
}

template <typename X, typename Y>
static void channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int apply_silu, hs_buf y) {
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    int lanes = 1;
    while (lanes < 32 && lanes * HELD < C) lanes *= 2;
    if (C % 8 == 0 && C <= lanes * HELD && aligned16(x.p) && aligned16(gamma.p) && aligned16(y.p))
        channel_norm_kernel<X, Y><<<blocks_for(pixels * lanes), THREADS, 0, stream>>>(
            (const X *)x.p, (const float *)gamma.p, (Y *)y.p, pixels, C, lanes, apply_silu);
    else
        channel_norm_any_kernel<X, Y><<<blocks_for(pixels * 32), THREADS, 0, stream>>>(
            (const X *)x.p, (const float *)gamma.p, (Y *)y.p, pixels, C, apply_silu);
}

void hs_cuda_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y) {
    hs_cuda_typed(y.type, [&](auto *t) {
        using Y = std::decay_t<decltype(*t)>;
        if (x.type == HS_F32)
            channel_norm<float, Y>(dev, x, pixels, C, gamma, silu, y);
        else
            channel_norm<Y, Y>(dev, x, pixels, C, gamma, silu, y);
    });
    HS_CUDA_LAUNCHED(dev, "channel_norm");
}

/* ---- split frames ----------------------------------------------------------------------------------------------- */
/* x [T, pixels, 2, n] -> y [T, 2, pixels, n] in units of V */
template <typename V>
static __global__ void split_kernel(const V *__restrict__ x, V *__restrict__ y, int64_t total, int64_t pixels, int n) {
    const int64_t i = thread_index(); /* of y */
    if (i >= total) return;
    const int64_t row = i / n, frame = row / pixels, pixel = row % pixels;
    y[i] = x[((frame / 2 * pixels + pixel) * 2 + frame % 2) * n + i % n];
}

template <typename V> static void split(hs_device *dev, hs_buf x, int64_t bytes, int64_t pixels, int64_t C, hs_buf y) {
    const int64_t total = bytes / (int64_t)sizeof(V);
    split_kernel<V><<<blocks_for(total), THREADS, 0, hs_cuda_of(dev)->stream>>>((const V *)x.p, (V *)y.p, total, pixels,
                                                                                (int)(C / (int64_t)sizeof(V)));
}

void hs_cuda_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y) {
    const int64_t size = (int64_t)hs_dtype_size(x.type), bytes = 2 * T * pixels * C * size;
    if (C * size % 16 == 0 && aligned16(x.p) && aligned16(y.p))
        split<uint4>(dev, x, bytes, pixels, C * size, y);
    else if (size == 4)
        split<uint32_t>(dev, x, bytes, pixels, C * size, y);
    else
        split<uint16_t>(dev, x, bytes, pixels, C * size, y);
    HS_CUDA_LAUNCHED(dev, "split_frames");
}

/* ---- frames for the eye ----------------------------------------------------------------------------------------- */
/* Bit for bit what ref does: half of x is exact, so the sum rounds once, fused or not. */
template <typename T>
static __global__ void u8_kernel(const T *__restrict__ x, uint8_t *__restrict__ y, int64_t n, int *nan) {
    const int64_t i = thread_index();
    if (i >= n) return;
    const float in = to_f32(x[i]), v = 0.5f * in + 0.5f;
    y[i] = v > 0 ? (uint8_t)(255.0f * (v < 1 ? v : 1.0f)) : 0;
    if (in != in) *nan = 1; /* whoever comes last writes the same */
}

void hs_cuda_to_u8(hs_device *dev, hs_buf x, hs_buf y) {
    hs_cuda_typed(x.type, [&](auto *t) {
        using X = std::decay_t<decltype(*t)>;
        u8_kernel<X><<<blocks_for(x.n), THREADS, 0, hs_cuda_of(dev)->stream>>>((const X *)x.p, (uint8_t *)y.p, x.n,
                                                                               hs_cuda_of(dev)->nan);
    });
    HS_CUDA_LAUNCHED(dev, "to_u8");
}
