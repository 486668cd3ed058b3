/* What the files of the CUDA backend share: the state behind hs_device.impl, error handling, element types.
 *
 * cuda.cu opens the device, owns memory and scratch and puts the operation table together; stream.cu copies weights
 * that do not fit, on a stream of its own; linear.cu owns products (cuBLASLt, which cublaslt.cu loads), rows.cu the
 * memory-bound row operations, attention.cu and attn_hopper.cu dense and masked attention, block_scores.cu, cluster.cu
 * and sparse.cu the predictors of masks, vae.cu the VAE's small operations, conv.cu its convolutions. Everything else
 * runs on one stream in call order; nothing waits for the device but download, sync and count_nonfinite. Failures are
 * sticky (backend.h).
 */
#ifndef HS_GPU_STATE_H
#define HS_GPU_STATE_H
#include "backend.h"
#include "mask.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

typedef struct hs_cuda {
    int ordinal, sms, cc; /* cc: 90 for compute capability 9.0 */
    int portable;         /* Hopper's own kernels are not used */
    size_t shared_max;    /* bytes of shared memory a block may opt in to */
    cudaStream_t stream;
    void *workspace; /* for cuBLASLt */
    size_t workspace_bytes;
    void *scratch; /* of one operation; see hs_cuda_scratch */
    size_t scratch_bytes;
    int *nan; /* pinned host memory (cudaMallocHost), 0: vae.cu sets it from the device where to_u8 meets NaN; sync and
                 download look at it after waiting: HS_ENUMERIC becomes sticky and it is 0 again */
    struct hs_cuda_laps *laps;     /* owned by cuda.cu: the stopwatch's events */
    struct hs_cuda_stages *stages; /* owned by cuda.cu: where weights pass through */
    struct hs_cuda_slots *slots;   /* owned by stream.cu: its stream and events */
    struct hs_cuda_plans *plans;   /* owned by linear.cu: one tuned product per shape */
} hs_cuda;

static inline hs_cuda *hs_cuda_of(const hs_device *dev) {
    return (hs_cuda *)dev->impl;
}

/* Makes a CUDA failure sticky; 1 if there was none. */
int hs_cuda_ok(hs_device *dev, cudaError_t e, const char *what);
/* After every launch: did it start? */
#define HS_CUDA_LAUNCHED(dev, what) hs_cuda_ok(dev, cudaGetLastError(), what)

/* At least so many bytes (256-aligned) for use within one operation: the next operation may overwrite them. Grows on
 * the first calls and stays. NULL after a sticky out-of-memory error: the caller returns at once. */
void *hs_cuda_scratch(hs_device *dev, size_t bytes);

/* Does this GPU run Hopper's own kernels, and does this build have them? */
static inline int hs_cuda_hopper(const hs_device *dev) {
#ifdef HS_BUILD_HOPPER
    return hs_cuda_of(dev)->cc == 90 && !hs_cuda_of(dev)->portable;
#else
    (void)dev;
    return 0;
#endif
}

/* Calls f with a null pointer of the C++ type of an hs_dtype: f([&](auto *t) { using T = std::decay_t<decltype(*t)>; })
 */
template <typename F> static inline void hs_cuda_typed(hs_dtype type, F f) {
    switch (type) {
    case HS_BF16: f((__nv_bfloat16 *)nullptr); break;
    case HS_F16: f((__half *)nullptr); break;
    default: f((float *)nullptr); break;
    }
}

template <typename T> __device__ __forceinline__ float to_f32(T x) {
    return (float)x;
}
template <typename T> __device__ __forceinline__ T from_f32(float x) {
    return (T)x;
}
template <> __device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half from_f32<__half>(float x) {
    return __float2half_rn(x);
}

/* Memory outside of hs_device_alloc (weights, scratch): a cudaMalloc that says what failed. */
int hs_cuda_malloc(hs_device *dev, size_t bytes, const char *purpose, void **ret, hs_err *err);
/* n values of any float type in host memory -> device memory of another; for weights. Uses scratch. */
int hs_cuda_load(hs_device *dev, void *dst, hs_dtype to, const void *host, hs_dtype from, int64_t n, hs_err *err);

/* stream.cu */
int hs_cuda_slots_open(hs_device *dev, hs_err *err);
void hs_cuda_slots_close(hs_device *dev);
int hs_cuda_host_alloc(hs_device *dev, size_t bytes, void **ret);
void hs_cuda_host_free(hs_device *dev, void *p);
void hs_cuda_slot_fill(hs_device *dev, int slot, void *dst, const void *host, size_t bytes);
void hs_cuda_slot_use(hs_device *dev, int slot);
void hs_cuda_slot_release(hs_device *dev, int slot);
/* linear.cu */
int hs_cuda_plans_open(hs_device *dev, hs_err *err);
void hs_cuda_plans_close(hs_device *dev);
int hs_cuda_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight *w, hs_err *err);
void hs_cuda_linear(hs_device *dev, const hs_linear *a);
/* rows.cu */
void hs_cuda_copy(hs_device *dev, hs_buf dst, hs_buf src); /* between any two float types */
void hs_cuda_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                  float eps, hs_buf y);
void hs_cuda_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                        hs_buf y);
void hs_cuda_qk_norm(hs_device *dev, const hs_qk_norm *a);
void hs_cuda_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y);
void hs_cuda_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y);
void hs_cuda_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y);
void hs_cuda_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
void hs_cuda_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
int64_t hs_cuda_count_nonfinite(hs_device *dev, hs_buf x);
/* attention.cu */
void hs_cuda_attention(hs_device *dev, const hs_attention *a);
/* attn_hopper.cu: 0: not for this GPU or this call, which the portable kernels take */
int hs_cuda_attention_hopper(hs_device *dev, const hs_attention *a);
/* block_scores.cu, cluster.cu, sparse.cu */
void hs_cuda_block_scores(hs_device *dev, const hs_block_scores *a);
void hs_cuda_centroid_scores(hs_device *dev, const hs_centroid_scores *a);
void hs_cuda_select(hs_device *dev, const hs_select *a);
void hs_cuda_mask_density(hs_device *dev, const struct hs_mask *mask, hs_buf want, hs_buf density);
void hs_cuda_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                         hs_buf want, hs_buf y);
void hs_cuda_cluster(hs_device *dev, const hs_cluster *a);
int64_t hs_cuda_cluster_scratch(const hs_cluster *a); /* bytes at most, on any GPU and in any precision */
void hs_cuda_reuse(hs_device *dev, const hs_reuse *a);
/* vae.cu */
void hs_cuda_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                           const float *add, hs_buf z);
void hs_cuda_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y);
void hs_cuda_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y);
void hs_cuda_to_u8(hs_device *dev, hs_buf x, hs_buf y);
/* conv.cu */
int hs_cuda_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err);
void hs_cuda_conv(hs_device *dev, const hs_conv *a);
#endif
