/* Memory-bound row operations: conversions, norms, modulation, rotation, gated GELU, gather, combine, patches, checks.
 *
 * Every kernel reads its input once and writes its output once, 16 bytes per access where sizes and addresses allow;
 * for the rest there is a plain form. A row is shared by 32 to 256 threads, the fewest that can hold it in registers.
 * Sums have a fixed order, so results do not vary between runs.
 */
#include "cuda/cuda.h"

#include <math.h>
#include <type_traits>

enum {
    THREADS = 256,
    WIDE = 8,        /* elements a thread moves at once */
    NORM_HELD = 8,   /* vectors of 4 that a thread holds of a row in norm_held */
    QK_HELD = 5,     /* vectors of WIDE in qk_held: 5 x 8 x 128 threads are the 14B model's width */
    MEAN_SIDE = 32,  /* columns, and slices of rows, of a block in column_means */
    COUNT_BLOCKS = 4 /* per multiprocessor */
};

/* ---- helpers ----------------------------------------------------------------------------------------------------- */
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) vec { T v[N]; };

static bool aligned(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

static unsigned blocks_for(int64_t n, int64_t per_block) {
    return (unsigned)((n + per_block - 1) / per_block);
}

/* Threads that share a row of d elements when each can hold `held`: a power of two from a warp to the block. */
static int lanes_for(int64_t d, int held) {
    int lanes = 32;
    while (lanes < THREADS && (int64_t)lanes * held < d) lanes *= 2;
    return lanes;
}

static __device__ int64_t thread_index() {
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/* The sum over the `lanes` neighbouring threads that share a row, the same bits in all of them. The whole block must
 * call. */
static __device__ float row_sum(float v, int lanes) {
    __shared__ float part[THREADS / 32];
    for (int k = 16; k; k /= 2) v += __shfl_xor_sync(~0u, v, k);
    if (lanes == 32) return v;
    const int first = (int)threadIdx.x / lanes * (lanes / 32);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int k = 0; k < lanes / 32; k++) v += part[first + k];
    __syncthreads(); /* or the next call's values could come before everybody has read these */
    return v;
}

static __device__ float gelu_tanh(float v) {
    return 0.5f * v * (1 + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
}

/* ---- copy -------------------------------------------------------------------------------------------------------- */
template <typename S, typename D> __global__ void convert(const S *x, D *y, int64_t n, bool wide) {
    const int64_t i = thread_index() * WIDE;
    if (wide && i + WIDE <= n) {
        const vec<S, WIDE> a = *(const vec<S, WIDE> *)(x + i);
        vec<D, WIDE> b;
        for (int k = 0; k < WIDE; k++) b.v[k] = from_f32<D>(to_f32(a.v[k]));
        *(vec<D, WIDE> *)(y + i) = b;
    } else {
        for (int64_t k = i; k < n && k < i + WIDE; k++) y[k] = from_f32<D>(to_f32(x[k]));
    }
}

void hs_cuda_copy(hs_device *dev, hs_buf dst, hs_buf src) {
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    if (dst.type == src.type) {
        const size_t bytes = (size_t)src.n * hs_dtype_size(src.type);
        hs_cuda_ok(dev, cudaMemcpyAsync(dst.p, src.p, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
        return;
    }
    const unsigned blocks = blocks_for(src.n, THREADS * WIDE);
    const bool wide = aligned(dst.p) && aligned(src.p);
    hs_cuda_typed(src.type, [&](auto *s) {
        hs_cuda_typed(dst.type, [&](auto *d) {
            convert<<<blocks, THREADS, 0, stream>>>((decltype(s))src.p, (decltype(d))dst.p, src.n, wide);
        });
    });
    HS_CUDA_LAUNCHED(dev, "copy");
}

/* ---- norm -------------------------------------------------------------------------------------------------------- */
/* The row stays in registers: d a multiple of 4, at most lanes * 4 * NORM_HELD. */
template <typename T>
static __global__ void norm_held(const float *x, int64_t rows, int d, const float *mul, const float *add, float eps,
                                 bool center, T *y, int lanes) {
    const int lane = (int)threadIdx.x % lanes;
    const int64_t row = (int64_t)blockIdx.x * (THREADS / lanes) + threadIdx.x / lanes;
    vec<float, 4> v[NORM_HELD];
    float sum = 0, mean = 0;
#pragma unroll
    for (int k = 0; k < NORM_HELD; k++) {
        const int c = (k * lanes + lane) * 4;
        if (row >= rows || c >= d) continue;
        v[k] = *(const vec<float, 4> *)(x + row * d + c);
        sum += (v[k].v[0] + v[k].v[1]) + (v[k].v[2] + v[k].v[3]);
    }
    if (center) mean = row_sum(sum, lanes) / (float)d;
    sum = 0;
#pragma unroll
    for (int k = 0; k < NORM_HELD; k++) {
        if (row >= rows || (k * lanes + lane) * 4 >= d) continue;
        for (int e = 0; e < 4; e++) {
            v[k].v[e] -= mean;
            sum += v[k].v[e] * v[k].v[e];
        }
    }
    const float scale = 1 / sqrtf(row_sum(sum, lanes) / (float)d + eps);
#pragma unroll
    for (int k = 0; k < NORM_HELD; k++) {
        const int c = (k * lanes + lane) * 4;
        if (row >= rows || c >= d) continue;
        const vec<float, 4> m = *(const vec<float, 4> *)(mul + c);
        vec<float, 4> a = {{0, 0, 0, 0}};
        if (add) a = *(const vec<float, 4> *)(add + c);
        vec<T, 4> out;
        for (int e = 0; e < 4; e++) out.v[e] = from_f32<T>(v[k].v[e] * scale * m.v[e] + a.v[e]);
        *(vec<T, 4> *)(y + row * d + c) = out;
    }
}

/* Any width and alignment; reads the row up to three times. */
template <typename T>
static __global__ void norm_any(const float *x, int64_t d, const float *mul, const float *add, float eps, bool center,
                                T *y) {
    float sum = 0, mean = 0;
    x += blockIdx.x * d;
    y += blockIdx.x * d;
    if (center) {
        for (int64_t c = threadIdx.x; c < d; c += THREADS) sum += x[c];
        mean = row_sum(sum, THREADS) / (float)d;
    }
    sum = 0;
    for (int64_t c = threadIdx.x; c < d; c += THREADS) sum += (x[c] - mean) * (x[c] - mean);
    const float scale = 1 / sqrtf(row_sum(sum, THREADS) / (float)d + eps);
    for (int64_t c = threadIdx.x; c < d; c += THREADS)
        y[c] = from_f32<T>((x[c] - mean) * scale * mul[c] + (add ? add[c] : 0));
}

void hs_cuda_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                  float eps, hs_buf y) {
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    const float *px = (const float *)x.p, *pm = (const float *)mul.p, *pa = (const float *)add.p;
    const bool center = kind == HS_NORM_LAYER;
    const int lanes = lanes_for(d, 4 * NORM_HELD);
    const bool held =
        d % 4 == 0 && d <= (int64_t)lanes * 4 * NORM_HELD && aligned(px) && aligned(pm) && aligned(pa) && aligned(y.p);
    hs_cuda_typed(y.type, [&](auto *t) {
        if (held)
            norm_held<<<blocks_for(rows, THREADS / lanes), THREADS, 0, stream>>>(px, rows, (int)d, pm, pa, eps, center,
                                                                                 (decltype(t))y.p, lanes);
        else
            norm_any<<<(unsigned)rows, THREADS, 0, stream>>>(px, d, pm, pa, eps, center, (decltype(t))y.p);
    });
    HS_CUDA_LAUNCHED(dev, "norm");
}

/* ---- modulation -------------------------------------------------------------------------------------------------- */
static __global__ void modulate(const float *table, const float *e, int64_t d, bool one_row, unsigned one_plus,
                                float *y) {
    const int64_t i = thread_index(), r = blockIdx.y;
    if (i >= d) return;
    const float one = (float)(one_plus >> r & 1);
    y[r * d + i] = one + (table[r * d + i] + e[one_row ? i : r * d + i]);
}

void hs_cuda_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                        hs_buf y) {
    const dim3 grid(blocks_for(d, THREADS), (unsigned)rows);
    modulate<<<grid, THREADS, 0, hs_cuda_of(dev)->stream>>>((const float *)table.p, (const float *)e.p, d, e_rows == 1,
                                                            one_plus, (float *)y.p);
    HS_CUDA_LAUNCHED(dev, "modulation");
}

/* ---- queries and keys -------------------------------------------------------------------------------------------- */
/* WIDE values as the words they travel in: kept apart, 16-bit values would take a register each. */
template <typename T> struct packed { uint32_t w[WIDE * sizeof(T) / 4]; };

/* Past the L1 cache, which keeps gamma and angles instead. */
template <typename T> static __device__ __forceinline__ void load_once(packed<T> &v, const T *p) {
#pragma unroll
    for (int i = 0; i < (int)(sizeof v / 16); i++) {
        const uint4 u = __ldcg((const uint4 *)p + i);
        v.w[4 * i] = u.x, v.w[4 * i + 1] = u.y, v.w[4 * i + 2] = u.z, v.w[4 * i + 3] = u.w;
    }
}
template <typename T> static __device__ __forceinline__ void store(T *p, const packed<T> &v) {
#pragma unroll
    for (int i = 0; i < (int)(sizeof v / 16); i++)
        ((uint4 *)p)[i] = make_uint4(v.w[4 * i], v.w[4 * i + 1], v.w[4 * i + 2], v.w[4 * i + 3]);
}

/* Values 2i and 2i + 1. */
static __device__ __forceinline__ float2 pair_of(const packed<__nv_bfloat16> &v, int i) {
    return make_float2(__uint_as_float(v.w[i] << 16), __uint_as_float(v.w[i] & 0xffff0000u));
}
static __device__ __forceinline__ float2 pair_of(const packed<__half> &v, int i) {
    return make_float2(__half2float(__ushort_as_half((unsigned short)(v.w[i] & 0xffff))),
                       __half2float(__ushort_as_half((unsigned short)(v.w[i] >> 16))));
}
static __device__ __forceinline__ float2 pair_of(const packed<float> &v, int i) {
    return make_float2(__uint_as_float(v.w[2 * i]), __uint_as_float(v.w[2 * i + 1]));
}
static __device__ __forceinline__ void set_pair(packed<__nv_bfloat16> &v, int i, float a, float b) {
    v.w[i] = __bfloat16_as_ushort(__float2bfloat16_rn(a)) | (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(b))
                                                                << 16;
}
static __device__ __forceinline__ void set_pair(packed<__half> &v, int i, float a, float b) {
    v.w[i] = __half_as_ushort(__float2half_rn(a)) | (uint32_t)__half_as_ushort(__float2half_rn(b)) << 16;
}
static __device__ __forceinline__ void set_pair(packed<float> &v, int i, float a, float b) {
    v.w[2 * i] = __float_as_uint(a), v.w[2 * i + 1] = __float_as_uint(b);
}

typedef struct qk_plan {
    void *x; /* at the first column */
    const float *gamma[2], *rope;
    float *part; /* [groups, d] sums of columns, for MEANS */
    int64_t rows, ld;
    int d, head_dim, parts, lanes;
    float eps;
} qk_plan;

/* Blocks per multiprocessor, by the registers that a row, the next one and the sums take. */
static constexpr int qk_blocks(int held, bool means) {
    return held > 3 || means ? 2 : 3;
}

/* A group of `lanes` threads owns one range of columns and every so many rows; groups that follow each other have the
 * ranges of one row, so that they find its angles in the cache. While a row is worked on the next one is on its way:
 * bytes in flight, not arithmetic, are what a pass over memory lacks. A thread's HELD vectors lie lanes * WIDE columns
 * apart, a multiple of head_dim: they turn by the same angles. The number of groups is a multiple of `parts`. */
template <typename T, int HELD, bool MEANS>
static __global__ void __launch_bounds__(THREADS, qk_blocks(HELD, MEANS)) qk_held(const __grid_constant__ qk_plan p) {
    __shared__ float partial[2][THREADS / 32]; /* of alternate rows: one barrier a row is enough */
    const int lanes = p.lanes, lane = (int)threadIdx.x & (lanes - 1), mine = (int)threadIdx.x / lanes;
    const int64_t group = (int64_t)blockIdx.x * (THREADS / lanes) + mine;
    const int64_t step = (int64_t)gridDim.x * (THREADS / lanes) / p.parts, rounds = (p.rows + step - 1) / step;
    const int part = (int)(group % p.parts), d = p.d, c0 = lane * WIDE, apart = lanes * WIDE;
    const float *const gamma = p.gamma[part] + c0, *const rope = p.rope ? p.rope + c0 % p.head_dim : NULL;
    T *const x = (T *)p.x + (int64_t)part * d + c0;
    packed<T> v[HELD], next[HELD] = {};
    vec<float, WIDE> turn, next_turn = {};
    float sums[MEANS ? HELD : 1][WIDE] = {};
    int64_t row = group / p.parts;
    auto load = [&](int64_t r) {
        if (r >= p.rows) return;
#pragma unroll
        for (int k = 0; k < HELD; k++)
            if (c0 + k * apart < d) load_once(next[k], x + r * p.ld + k * apart);
        if (rope) next_turn = *(const vec<float, WIDE> *)(rope + r * p.head_dim);
    };
    load(row);
    for (int64_t round = 0; round < rounds; round++, row += step) {
        float squares = 0;
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            v[k] = next[k];
            if (c0 + k * apart >= d) continue;
#pragma unroll
            for (int i = 0; i < WIDE / 2; i++) {
                const float2 u = pair_of(v[k], i);
                squares += u.x * u.x + u.y * u.y;
            }
        }
        turn = next_turn;
        load(row + step);
        for (int k = 16; k; k /= 2) squares += __shfl_xor_sync(~0u, squares, k);
        if (lanes > 32) {
            float *const all = partial[round & 1];
            if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = squares;
            __syncthreads();
            squares = 0;
            for (int k = 0; k < lanes / 32; k++) squares += all[mine * (lanes / 32) + k];
        }
        if (row >= p.rows) continue; /* only in the last round */
        const float scale = 1 / sqrtf(squares / (float)d + p.eps);
#pragma unroll
        for (int k = 0; k < HELD; k++) {
            if (c0 + k * apart >= d) continue;
            const vec<float, WIDE> g = *(const vec<float, WIDE> *)(gamma + k * apart);
#pragma unroll
            for (int i = 0; i < WIDE / 2; i++) {
                float2 u = pair_of(v[k], i);
                u.x *= scale * g.v[2 * i], u.y *= scale * g.v[2 * i + 1];
                if (rope)
                    u = make_float2(u.x * turn.v[2 * i] - u.y * turn.v[2 * i + 1],
                                    u.x * turn.v[2 * i + 1] + u.y * turn.v[2 * i]);
                set_pair(v[k], i, u.x, u.y);
                if (MEANS) {
                    const float2 rounded = pair_of(v[k], i);
                    sums[k][2 * i] += rounded.x, sums[k][2 * i + 1] += rounded.y;
                }
            }
            store(x + row * p.ld + k * apart, v[k]);
        }
    }
    if (!MEANS) return;
    float *const out = p.part + group * d + c0;
#pragma unroll
    for (int k = 0; k < HELD; k++)
        for (int e = 0; e < WIDE && c0 + k * apart < d; e++) out[k * apart + e] = sums[k][e];
}

/* Of WIDE elements, of a thread. */
static int qk_vectors(int64_t d, int lanes) {
    return (int)((d + lanes * WIDE - 1) / (lanes * WIDE));
}

template <typename T, bool MEANS> static void launch_qk_held(const qk_plan &p, unsigned blocks, cudaStream_t stream) {
    const int held = qk_vectors(p.d, p.lanes);
    const auto kernel = held > 3 ? qk_held<T, QK_HELD, MEANS> : held > 2 ? qk_held<T, 3, MEANS> : qk_held<T, 2, MEANS>;
    kernel<<<blocks, THREADS, 0, stream>>>(p);
}

/* Any sizes: a block per row, a thread per pair. */
template <typename T>
static __global__ void qk_any(T *x, int64_t ld, int64_t d, const float *gamma, const float *rope, int head_dim,
                              float eps) {
    float squares = 0;
    x += blockIdx.x * ld;
    for (int64_t c = threadIdx.x; c < d; c += THREADS) squares += to_f32(x[c]) * to_f32(x[c]);
    const float scale = 1 / sqrtf(row_sum(squares, THREADS) / (float)d + eps);
    for (int64_t c = 2 * threadIdx.x; c < d; c += 2 * THREADS) {
        const bool pair = c + 1 < d;
        float a = to_f32(x[c]) * scale * gamma[c], b = pair ? to_f32(x[c + 1]) * scale * gamma[c + 1] : 0;
        if (rope) { /* head_dim is even, so d is */
            const float *turn = rope + (int64_t)blockIdx.x * head_dim + c % head_dim, a0 = a;
            a = a0 * turn[0] - b * turn[1];
            b = a0 * turn[1] + b * turn[0];
        }
        x[c] = from_f32<T>(a);
        if (pair) x[c + 1] = from_f32<T>(b);
    }
}

/* Sums of columns over the rows of x [rows, ld], divided by count: column c of part c / d goes to mean0 or mean1,
 * either of which may be missing. A block sums MEAN_SIDE columns in as many slices of rows. */
template <typename T>
static __global__ void column_means(const T *x, int64_t rows, int64_t ld, int64_t columns, int64_t d, float count,
                                    float *mean0, float *mean1) {
    __shared__ float slice[MEAN_SIDE][MEAN_SIDE];
    const int64_t c = (int64_t)blockIdx.x * MEAN_SIDE + threadIdx.x;
    float *const mean = c < d ? mean0 : mean1;
    float sum = 0;
#pragma unroll 8
    for (int64_t r = threadIdx.y; r < rows; r += MEAN_SIDE)
        if (c < columns) sum += to_f32(x[r * ld + c]);
    slice[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= columns || !mean) return;
    for (int k = 1; k < MEAN_SIDE; k++) sum += slice[k][threadIdx.x];
    mean[c < d ? c : c - d] = sum / count;
}

/* Any sizes, one range of columns after the other. */
template <typename T> static void qk_norm_any(const hs_qk_norm *a, cudaStream_t stream) {
    for (int k = 0; k < a->parts; k++) {
        T *x = (T *)a->x.p + a->col + k * a->d;
        qk_any<<<(unsigned)a->rows, THREADS, 0, stream>>>(x, a->ld, a->d, (const float *)a->gamma[k].p,
                                                          (const float *)a->rope.p, a->head_dim, a->eps);
        if (a->mean[k].p)
            column_means<<<blocks_for(a->d, MEAN_SIDE), dim3(MEAN_SIDE, MEAN_SIDE), 0, stream>>>(
                x, a->rows, a->ld, a->d, a->d, (float)a->rows, (float *)a->mean[k].p, (float *)NULL);
    }
}

void hs_cuda_qk_norm(hs_device *dev, const hs_qk_norm *a) {
    hs_cuda *cu = hs_cuda_of(dev);
    const int lanes = lanes_for(a->d, WIDE * QK_HELD), per_block = THREADS / lanes;
    const bool means = a->mean[0].p || a->mean[1].p;
    bool held = a->d % WIDE == 0 && a->ld % WIDE == 0 && a->col % WIDE == 0 && a->head_dim % WIDE == 0 &&
                lanes * WIDE % a->head_dim == 0 && a->d <= (int64_t)lanes * WIDE * QK_HELD && aligned(a->x.p) &&
                aligned(a->rope.p);
    for (int k = 0; k < a->parts; k++) held = held && aligned(a->gamma[k].p);
    qk_plan p = {};
    const unsigned most = (unsigned)(cu->sms * qk_blocks(qk_vectors(a->d, lanes), means));
    unsigned blocks = blocks_for(a->rows * a->parts, per_block);
    if (blocks > most) blocks = most;
    if (blocks * (unsigned)per_block % (unsigned)a->parts) blocks++;
    const int64_t groups = (int64_t)blocks * per_block;
    if (held && means && !(p.part = (float *)hs_cuda_scratch(dev, (size_t)(groups * a->d) * sizeof *p.part))) return;
    p.rope = (const float *)a->rope.p;
    p.rows = a->rows, p.ld = a->ld, p.d = (int)a->d, p.head_dim = a->head_dim, p.parts = a->parts;
    p.lanes = lanes, p.eps = a->eps;
    for (int k = 0; k < a->parts; k++) p.gamma[k] = (const float *)a->gamma[k].p;
    hs_cuda_typed(dev->act, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        p.x = (T *)a->x.p + a->col;
        if (held && means)
            launch_qk_held<T, true>(p, blocks, cu->stream);
        else if (held)
            launch_qk_held<T, false>(p, blocks, cu->stream);
        else
            qk_norm_any<T>(a, cu->stream);
    });
    if (held && means) {
        const int64_t columns = a->parts * a->d;
        column_means<<<blocks_for(columns, MEAN_SIDE), dim3(MEAN_SIDE, MEAN_SIDE), 0, cu->stream>>>(
            p.part, groups / a->parts, columns, columns, a->d, (float)a->rows, (float *)a->mean[0].p,
            (float *)a->mean[1].p);
    }
    HS_CUDA_LAUNCHED(dev, "qk_norm");
}

/* ---- gated GELU -------------------------------------------------------------------------------------------------- */
template <typename T, int N> __global__ void gate_gelu(const T *ab, int64_t rows, int64_t ff, T *y) {
    const int64_t c = thread_index() * N;
    if (c >= ff) return;
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
        const vec<T, N> a = *(const vec<T, N> *)(ab + r * 2 * ff + c),
                        b = *(const vec<T, N> *)(ab + (r * 2 + 1) * ff + c);
        vec<T, N> out;
        for (int e = 0; e < N; e++) out.v[e] = from_f32<T>(gelu_tanh(to_f32(a.v[e])) * to_f32(b.v[e]));
        *(vec<T, N> *)(y + r * ff + c) = out;
    }
}

void hs_cuda_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y) {
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    const bool wide = ff % WIDE == 0 && aligned(ab.p) && aligned(y.p);
    const dim3 grid(blocks_for(ff, wide ? THREADS * WIDE : THREADS), (unsigned)(rows < 65535 ? rows : 65535));
    hs_cuda_typed(dev->act, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        if (wide)
            gate_gelu<T, WIDE><<<grid, THREADS, 0, stream>>>((const T *)ab.p, rows, ff, (T *)y.p);
        else
            gate_gelu<T, 1><<<grid, THREADS, 0, stream>>>((const T *)ab.p, rows, ff, (T *)y.p);
    });
    HS_CUDA_LAUNCHED(dev, "gated_gelu");
}

/* ---- gather ------------------------------------------------------------------------------------------------------ */
template <typename T> __global__ void gather(const T *table, const int32_t *ids, int64_t d, float *y) {
    const int64_t row = ids[blockIdx.x];
    for (int64_t c = threadIdx.x; c < d; c += THREADS) y[blockIdx.x * d + c] = to_f32(table[row * d + c]);
}

void hs_cuda_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y) {
    hs_cuda_typed(table.type, [&](auto *t) {
        gather<<<(unsigned)n, THREADS, 0, hs_cuda_of(dev)->stream>>>((decltype(t))table.p, (const int32_t *)ids.p, d,
                                                                     (float *)y.p);
    });
    HS_CUDA_LAUNCHED(dev, "gather_rows");
}

/* ---- combine ----------------------------------------------------------------------------------------------------- */
typedef struct terms {
    const float *x[6]; /* as many as backend.h allows */
    double c[6];
    int count;
} terms;

/* In double like ref: solver coefficients cancel, and the operation is bound by memory even where double is slow. */
template <int N> static __global__ void add_up(terms t, int64_t n, float *y) {
    const int64_t i = thread_index() * N;
    if (i >= n) return;
    double sum[N] = {};
#pragma unroll
    for (int k = 0; k < 6; k++) {
        if (k >= t.count) continue;
        const vec<float, N> x = *(const vec<float, N> *)(t.x[k] + i);
        for (int e = 0; e < N; e++) sum[e] += t.c[k] * (double)x.v[e];
    }
    vec<float, N> out;
    for (int e = 0; e < N; e++) out.v[e] = (float)sum[e];
    *(vec<float, N> *)(y + i) = out;
}

void hs_cuda_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y) {
    terms t = {};
    t.count = count;
    bool wide = y.n % 4 == 0 && aligned(y.p);
    for (int k = 0; k < count; k++) {
        t.c[k] = c[k];
        t.x[k] = (const float *)x[k].p;
        wide = wide && aligned(x[k].p);
    }
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    if (wide)
        add_up<4><<<blocks_for(y.n, THREADS * 4), THREADS, 0, stream>>>(t, y.n, (float *)y.p);
    else
        add_up<1><<<blocks_for(y.n, THREADS), THREADS, 0, stream>>>(t, y.n, (float *)y.p);
    HS_CUDA_LAUNCHED(dev, "combine");
}

/* ---- patches ----------------------------------------------------------------------------------------------------- */
/* Pixel (2i + dy, 2j + dx) of channel c and frame t belongs to token (t, i, j). A thread makes one output. */
template <typename T> __global__ void to_patches(const float *x, int C, int f, int h, int w, int64_t n, T *y) {
    const int64_t k = thread_index(), c = k / 4 % C, token = k / 4 / C, i = token / w % h, t = token / w / h;
    if (k < n) y[k] = from_f32<T>(x[((c * f + t) * 2 * h + 2 * i + k / 2 % 2) * 2 * w + 2 * (token % w) + k % 2]);
}

static __global__ void from_patches(const float *x, int C, int f, int h, int w, int64_t n, float *y) {
    const int64_t k = thread_index(), X = k % (2 * w), Y = k / (2 * w) % (2 * h), frame = k / (2 * w) / (2 * h);
    const int64_t c = frame / f, t = frame % f, token = (t * h + Y / 2) * w + X / 2;
    if (k < n) y[k] = x[(token * 4 + Y % 2 * 2 + X % 2) * C + c];
}

void hs_cuda_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    hs_cuda_typed(y.type, [&](auto *t) {
        to_patches<<<blocks_for(y.n, THREADS), THREADS, 0, hs_cuda_of(dev)->stream>>>((const float *)x.p, C, f, h, w,
                                                                                      y.n, (decltype(t))y.p);
    });
    HS_CUDA_LAUNCHED(dev, "patchify");
}

void hs_cuda_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    from_patches<<<blocks_for(y.n, THREADS), THREADS, 0, hs_cuda_of(dev)->stream>>>((const float *)x.p, C, f, h, w, y.n,
                                                                                    (float *)y.p);
    HS_CUDA_LAUNCHED(dev, "unpatchify");
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */
template <typename T> __global__ void count_bad(const T *x, int64_t n, unsigned long long *total) {
    int bad = 0; /* of one thread: n is below 2^31 times the number of threads */
    for (int64_t i = thread_index(); i < n; i += (int64_t)gridDim.x * THREADS) bad += !isfinite(to_f32(x[i]));
    bad = __reduce_add_sync(~0u, bad);
    if (threadIdx.x % 32 == 0 && bad) atomicAdd(total, (unsigned long long)bad);
}

int64_t hs_cuda_count_nonfinite(hs_device *dev, hs_buf x) {
    hs_cuda *cu = hs_cuda_of(dev);
    unsigned long long total = 0, *on_device = (unsigned long long *)hs_cuda_scratch(dev, sizeof total);
    if (!on_device || !hs_cuda_ok(dev, cudaMemsetAsync(on_device, 0, sizeof total, cu->stream), "count_nonfinite"))
        return 0;
    unsigned blocks = blocks_for(x.n, THREADS);
    if (blocks > (unsigned)(cu->sms * COUNT_BLOCKS)) blocks = (unsigned)(cu->sms * COUNT_BLOCKS);
    hs_cuda_typed(x.type, [&](auto *t) {
        count_bad<<<blocks, THREADS, 0, cu->stream>>>((const std::remove_pointer_t<decltype(t)> *)x.p, x.n, on_device);
    });
    HS_CUDA_LAUNCHED(dev, "count_nonfinite");
    dev->ops->download(dev, &total, on_device, sizeof total);
    return (int64_t)total;
}
