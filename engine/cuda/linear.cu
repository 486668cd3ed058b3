/* Products with prepared weights: y[M, out] = act(x[M, in] W^T + b), or y += gate * (x W^T + b).
 *
 * cuBLASLt multiplies, sums in fp32, and where its epilogue is the contract (bias, GELU in its tanh form, adding to y,
 * a gate as a factor per column) writes y itself. On Hopper, large products that are added to y go through a kernel of
 * our own instead, which hides that behind products (residual_hopper.cuh). Everything else is a product in F32 and one
 * pass over it (finish), a piece of rows at a time so that scratch stays small. Matrices that do not consist of 16-byte
 * vectors, and very few rows, where reading W is all there is to do, go through a kernel of one warp per output.
 *
 * For every shape the library is asked once. Large products try its first few answers and keep the fastest of those
 * that give the same bits as the first: which one wins may vary from run to run, results may not.
 *
 * A row-major [rows, cols] matrix is to the library a column-major one of cols x rows, so it computes y^T = W x^T.
 */
#include "cuda/cublaslt.h"
#include "cuda/cuda.h"
#include "cuda/residual_hopper.cuh"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>

enum {
    ALIGN = 256,
    THREADS = 256,
    WIDE = 8, /* elements per access of W */
    FEW = 8,  /* rows up to which W is read for all of them at once, without the library */
    FINISH_THREADS = 128,
    FINISH_ROWS = 4,      /* rows of one thread in finish: bias and gate are read once for them */
    PIECE = 128 << 20,    /* bytes of an operand or a product in scratch */
    OWN_SLABS = 64,       /* of a processor, from which the residual stream is left to our own kernel */
    UNGATED_DEPTH = 2048, /* of a product up to which it is where there is no gate */
    CANDIDATES = 5,
    TIMED_RUNS = 3,
};
static const double TUNED_WORK = 1ll << 33; /* multiplications from which a tenth of a millisecond is at stake */

/* ---- weights ----------------------------------------------------------------------------------------------------- */
/* hs_weight.impl: W [out, in] of the computing type, b [out] F32, b [out] of the computing type; b may be zero. */
typedef struct layout {
    hs_dtype type;
    size_t bias, bias_typed, bytes; /* offsets; size of all */
} layout;

static size_t padded(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static layout layout_of(const hs_device *dev, const hs_weight *w) {
    layout l;
    l.type = w->f32 ? HS_F32 : dev->act;
    l.bias = padded((size_t)(w->out * w->in) * hs_dtype_size(l.type));
    l.bias_typed = l.bias + padded((size_t)w->out * sizeof(float));
    l.bytes = l.bias_typed + padded((size_t)w->out * hs_dtype_size(l.type));
    return l;
}

int hs_cuda_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight *w, hs_err *err) {
    const layout l = layout_of(dev, w);
    const size_t size = hs_dtype_size(l.type);
    char *p = NULL;
    float *bias = (float *)hs_calloc((size_t)w->out, sizeof *bias);
    int64_t row = 0;
    int rc = bias ? hs_cuda_malloc(dev, l.bytes, "weights", (void **)&p, err)
                  : hs_fail(err, HS_ENOMEM, "out of memory preparing a [%lld, %lld] matrix", (long long)w->out,
                            (long long)w->in);
    for (int k = 0; k < src->parts && !rc; row += src->out[k++]) {
        rc = hs_cuda_load(dev, p + (size_t)(row * w->in) * size, l.type, src->w[k], src->type[k], src->out[k] * w->in,
                          err);
        if (src->bias[k]) hs_to_f32(bias + row, src->bias[k], src->bias_type[k], src->out[k]);
    }
    if (!rc) rc = hs_cuda_load(dev, p + l.bias, HS_F32, bias, HS_F32, w->out, err);
    if (!rc) rc = hs_cuda_load(dev, p + l.bias_typed, l.type, bias, HS_F32, w->out, err);
    hs_free(bias);
    if (rc) {
        if (p) dev->ops->free(dev, p);
        return rc;
    }
    w->impl = p;
    w->bytes = (int64_t)l.bytes;
    return HS_OK;
}

/* ---- own kernels ------------------------------------------------------------------------------------------------- */
template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) vec { T v[N]; };

/* p[m, o] = x[m, :] . w[o, :] with a warp per o, FEW rows at a time. */
template <typename T>
static __global__ void few_rows(const T *w, const float *x, int64_t rows, int64_t out, int64_t in, bool wide,
                                float *p) {
    const int lane = threadIdx.x % 32;
    const int64_t o = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (o >= out) return;
    w += o * in;
    for (int64_t first = (int64_t)blockIdx.y * FEW; first < rows; first += (int64_t)gridDim.y * FEW) {
        const int n = rows - first < FEW ? (int)(rows - first) : FEW;
        const float *xs = x + first * in;
        float sum[FEW] = {};
        for (int64_t i = lane * WIDE; wide && i < in; i += 32 * WIDE) {
            const vec<T, WIDE> a = *(const vec<T, WIDE> *)(w + i);
#pragma unroll
            for (int m = 0; m < FEW; m++) {
                if (m >= n) continue;
                const vec<float, WIDE> b = *(const vec<float, WIDE> *)(xs + m * in + i);
                for (int e = 0; e < WIDE; e++) sum[m] += to_f32(a.v[e]) * b.v[e];
            }
        }
        for (int64_t i = lane; !wide && i < in; i += 32) {
            const float a = to_f32(w[i]);
#pragma unroll
            for (int m = 0; m < FEW; m++)
                if (m < n) sum[m] += a * xs[m * in + i];
        }
#pragma unroll
        for (int m = 0; m < FEW; m++) {
            for (int k = 16; k; k /= 2) sum[m] += __shfl_xor_sync(~0u, sum[m], k);
            if (m < n && lane == m) p[(first + m) * out + o] = sum[m];
        }
    }
}

static __device__ float activate(hs_act act, float v) {
    if (act == HS_ACT_SILU) return v / (1 + expf(-v));
    if (act == HS_ACT_GELU_TANH) return 0.5f * v * (1 + tanhf(0.7978845608028654f * (v + 0.044715f * v * v * v)));
    return v;
}

static unsigned blocks_for(int64_t n, int64_t per_block) {
    return (unsigned)((n + per_block - 1) / per_block);
}

/* The library adds the bias after it has applied the gate. */
static __global__ void gate_bias(const float *gate, const float *bias, int64_t out, float *gated) {
    const int64_t c = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (c < out) gated[c] = gate[c] * bias[c];
}

/* What is to be done with a product p [rows, out] F32; y may be p itself. */
typedef struct rest {
    const float *bias, *gate; /* gate NULL: 1 */
    hs_act act;
    bool residual; /* y is F32 and added to */
} rest;

template <typename T, int N> __global__ void finish(const float *p, int64_t rows, int64_t out, rest f, T *y) {
    const int64_t c = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (c >= out) return;
    float bias[N], gate[N];
    for (int e = 0; e < N; e++) {
        bias[e] = f.bias[c + e];
        gate[e] = f.gate ? f.gate[c + e] : 1;
    }
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
        const vec<float, N> a = *(const vec<float, N> *)(p + r * out + c);
        vec<T, N> b = {};
        if (f.residual) b = *(const vec<T, N> *)(y + r * out + c);
        for (int e = 0; e < N; e++) {
            const float v = a.v[e] + bias[e];
            b.v[e] = from_f32<T>(f.residual ? to_f32(b.v[e]) + gate[e] * v : activate(f.act, v));
        }
        *(vec<T, N> *)(y + r * out + c) = b;
    }
}

static bool aligned(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

static void run_finish(hs_device *dev, const float *p, int64_t rows, int64_t out, rest f, hs_buf y) {
    const bool wide = out % 4 == 0 && aligned(p) && aligned(y.p);
    const int64_t slices = (rows + FINISH_ROWS - 1) / FINISH_ROWS;
    const dim3 grid(blocks_for(out, wide ? FINISH_THREADS * 4 : FINISH_THREADS),
                    (unsigned)(slices < 65535 ? slices : 65535));
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    hs_cuda_typed(y.type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        if (wide)
            finish<T, 4><<<grid, FINISH_THREADS, 0, stream>>>(p, rows, out, f, (T *)y.p);
        else
            finish<T, 1><<<grid, FINISH_THREADS, 0, stream>>>(p, rows, out, f, (T *)y.p);
    });
    HS_CUDA_LAUNCHED(dev, "linear");
}

/* ---- plans: one per shape ---------------------------------------------------------------------------------------- */
typedef struct shape {
    int64_t rows, out, in;
    int type, y_type; /* hs_dtype of x and W, of y */
    int epilogue;     /* cublasLtEpilogue_t */
    int add, gated;   /* to y; times a factor per column */
} shape;

typedef struct plan {
    shape of;
    int usable; /* the library has an answer */
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t w, x, y, some_x, some_y; /* some: the rows that trials take */
    cublasLtMatmulAlgo_t algo;
    struct plan *next;
} plan;

struct hs_cuda_plans {
    const hs_cublaslt *lt;
    cublasLtHandle_t handle;
    plan *first;
    cublasLtMatmulPreference_t limits;
    cudaEvent_t begin, end;
    int *turns; /* of residual_wgmma */
};

typedef struct operands {
    const void *w, *bias, *x;
    const float *gate, *ungated; /* for gated shapes: `bias` is then room for gate times `ungated` */
    void *y;
    void *spare; /* for the results of trials: y itself where it is not added to */
    int64_t spare_rows;
} operands;

static cudaDataType_t cuda_type(int t) {
    return t == HS_BF16 ? CUDA_R_16BF : t == HS_F16 ? CUDA_R_16F : CUDA_R_32F;
}

static int set_limit(struct hs_cuda_plans *s, cublasLtMatmulPreferenceAttributes_t which, const void *value,
                     size_t size) {
    return s->lt->MatmulPreferenceSetAttribute(s->limits, which, value, size) != CUBLAS_STATUS_SUCCESS;
}

int hs_cuda_plans_open(hs_device *dev, hs_err *err) {
    hs_cuda *c = hs_cuda_of(dev);
    struct hs_cuda_plans *s = c->plans = (struct hs_cuda_plans *)hs_calloc(1, sizeof *s);
    const uint32_t align = 16, ordered = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* fp32, by a step of its own */
    if (!s) return hs_fail(err, HS_ENOMEM, "out of memory opening %s", dev->name);
    int rc = hs_cublaslt_load(&s->lt, err);
    if (rc) return rc;
    const cublasStatus_t e = s->lt->Create(&s->handle);
    if (e)
        return hs_fail(err, HS_EDEVICE, "opening %.60s: cuBLASLt does not start: %s", dev->name,
                       s->lt->GetStatusString(e));
    if ((rc = hs_cuda_malloc(dev, 2 * sizeof *s->turns, "counters", (void **)&s->turns, err))) return rc;
    if (cudaMemsetAsync(s->turns, 0, 2 * sizeof *s->turns, c->stream) || cudaEventCreate(&s->begin) ||
        cudaEventCreate(&s->end) || s->lt->MatmulPreferenceCreate(&s->limits) ||
        set_limit(s, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &c->workspace_bytes, sizeof c->workspace_bytes) ||
        set_limit(s, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &ordered, sizeof ordered) ||
        set_limit(s, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align) ||
        set_limit(s, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align) ||
        set_limit(s, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align, sizeof align) ||
        set_limit(s, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align, sizeof align))
        return hs_fail(err, HS_EDEVICE, "opening %.60s: cuBLASLt refuses its limits", dev->name);
    return HS_OK;
}

static void plan_free(const hs_cublaslt *lt, plan *p) {
    if (p->op) lt->MatmulDescDestroy(p->op);
    if (p->w) lt->MatrixLayoutDestroy(p->w);
    if (p->x) lt->MatrixLayoutDestroy(p->x);
    if (p->y) lt->MatrixLayoutDestroy(p->y);
    if (p->some_x) lt->MatrixLayoutDestroy(p->some_x);
    if (p->some_y) lt->MatrixLayoutDestroy(p->some_y);
    hs_free(p);
}

void hs_cuda_plans_close(hs_device *dev) {
    struct hs_cuda_plans *s = hs_cuda_of(dev)->plans;
    if (!s) return;
    while (s->first) {
        plan *p = s->first;
        s->first = p->next;
        plan_free(s->lt, p);
    }
    if (s->limits) s->lt->MatmulPreferenceDestroy(s->limits);
    if (s->handle) s->lt->Destroy(s->handle);
    if (s->begin) cudaEventDestroy(s->begin);
    if (s->end) cudaEventDestroy(s->end);
    cudaFree(s->turns);
    hs_free(s);
}

/* x [rows, in] -> y [rows, out], rows as in the layouts. */
static cublasStatus_t multiply(const hs_cuda *c, plan *p, const cublasLtMatmulAlgo_t *algo, const operands *o,
                               cublasLtMatrixLayout_t of_x, cublasLtMatrixLayout_t of_y, void *y) {
    const float one = 1, zero = 0, *alpha = p->of.gated ? o->gate : &one;
    const hs_cublaslt *lt = c->plans->lt;
    lt->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &o->bias, sizeof o->bias);
    return lt->Matmul(c->plans->handle, p->op, alpha, o->w, p->w, o->x, of_x, p->of.add ? &one : &zero, y, of_y, y,
                      of_y, algo, c->workspace, c->workspace_bytes, c->stream);
}

static cublasStatus_t multiply_some(const hs_cuda *c, plan *p, const cublasLtMatmulAlgo_t *algo, const operands *o) {
    return multiply(c, p, algo, o, p->some_x, p->some_y, o->spare);
}

/* Order does not matter to a sum of integers, so atomics do no harm. */
static __global__ void fingerprint(const uint32_t *x, int64_t n, unsigned long long *sum) {
    unsigned long long h = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        unsigned long long v = (x[i] ^ (unsigned long long)i << 32) * 0x9e3779b97f4a7c15ull;
        h += (v ^ v >> 29) * 0xbf58476d1ce4e5b9ull;
    }
    atomicAdd(sum, h);
}

/* The bits and the time of one candidate; 0 if it does not run. */
static int try_candidate(hs_device *dev, plan *p, const cublasLtMatmulAlgo_t *algo, const operands *o,
                         unsigned long long *ret_bits, float *ret_ms) {
    hs_cuda *c = hs_cuda_of(dev);
    const size_t bytes = (size_t)(o->spare_rows * p->of.out) * hs_dtype_size((hs_dtype)p->of.y_type);
    unsigned long long *sum = (unsigned long long *)c->workspace; /* free between products */
    if ((p->of.add && !hs_cuda_ok(dev, cudaMemsetAsync(o->spare, 0, bytes, c->stream), "tuning")) ||
        multiply_some(c, p, algo, o) || !hs_cuda_ok(dev, cudaMemsetAsync(sum, 0, sizeof *sum, c->stream), "tuning"))
        return 0;
    fingerprint<<<4 * c->sms, THREADS, 0, c->stream>>>((const uint32_t *)o->spare, (int64_t)bytes / 4, sum);
    HS_CUDA_LAUNCHED(dev, "tuning");
    dev->ops->download(dev, ret_bits, sum, sizeof *sum);
    cudaEventRecord(c->plans->begin, c->stream);
    for (int i = 0; i < TIMED_RUNS; i++)
        if (multiply_some(c, p, algo, o)) return 0;
    cudaEventRecord(c->plans->end, c->stream);
    return hs_cuda_ok(dev, cudaEventSynchronize(c->plans->end), "tuning") &&
           hs_cuda_ok(dev, cudaEventElapsedTime(ret_ms, c->plans->begin, c->plans->end), "tuning");
}

static void tune(hs_device *dev, plan *p, const cublasLtMatmulHeuristicResult_t *answer, int n, const operands *o) {
    unsigned long long bits = 0, first = 0;
    float ms = 0, best = INFINITY;
    for (int i = 0; i < n && !dev->sticky; i++) {
        if (answer[i].state || !try_candidate(dev, p, &answer[i].algo, o, &bits, &ms)) continue;
        if (best == INFINITY) first = bits;
        hs_log(HS_LOG_DEBUG, "product [%lld, %lld] x [%lld]: candidate %d takes %.3f ms%s", (long long)p->of.rows,
               (long long)p->of.in, (long long)p->of.out, i, ms / TIMED_RUNS, bits == first ? "" : ", other bits");
        if (bits != first || ms >= best) continue;
        best = ms;
        p->algo = answer[i].algo;
    }
}

/* Asks the library; the plan stays unusable if it has no answer. */
static void plan_make(hs_device *dev, plan *p, const operands *o) {
    hs_cuda *c = hs_cuda_of(dev);
    const hs_cublaslt *lt = c->plans->lt;
    const shape *s = &p->of;
    const cudaDataType_t type = cuda_type(s->type), y_type = cuda_type(s->y_type);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t epilogue = (cublasLtEpilogue_t)s->epilogue;
    /* A factor per row of the library's matrix: per column of ours. */
    const cublasLtPointerMode_t alpha =
        s->gated ? CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST : CUBLASLT_POINTER_MODE_HOST;
    cublasLtMatmulHeuristicResult_t answer[CANDIDATES];
    const bool tuned = (double)s->rows * (double)s->out * (double)s->in >= TUNED_WORK;
    int n = 0;
    if (lt->MatmulDescCreate(&p->op, s->type == HS_F32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F,
                             CUDA_R_32F) ||
        lt->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) ||
        lt->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_POINTER_MODE, &alpha, sizeof alpha) ||
        lt->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) ||
        lt->MatmulDescSetAttribute(p->op, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &o->bias, sizeof o->bias) ||
        lt->MatrixLayoutCreate(&p->w, type, (uint64_t)s->in, (uint64_t)s->out, s->in) ||
        lt->MatrixLayoutCreate(&p->x, type, (uint64_t)s->in, (uint64_t)s->rows, s->in) ||
        lt->MatrixLayoutCreate(&p->y, y_type, (uint64_t)s->out, (uint64_t)s->rows, s->out) ||
        lt->MatmulAlgoGetHeuristic(c->plans->handle, p->op, p->w, p->x, p->y, p->y, c->plans->limits,
                                   tuned ? CANDIDATES : 1, answer, &n) ||
        n < 1 || answer[0].state) {
        hs_log(HS_LOG_DEBUG, "product [%lld, %lld] x [%lld], epilogue %d%s: not offered by cuBLASLt",
               (long long)s->rows, (long long)s->in, (long long)s->out, s->epilogue, s->gated ? ", gated" : "");
        return;
    }
    p->algo = answer[0].algo;
    p->usable = 1;
    if (tuned && n > 1 && !lt->MatrixLayoutCreate(&p->some_x, type, (uint64_t)s->in, (uint64_t)o->spare_rows, s->in) &&
        !lt->MatrixLayoutCreate(&p->some_y, y_type, (uint64_t)s->out, (uint64_t)o->spare_rows, s->out))
        tune(dev, p, answer, n, o);
}

/* Multiplies if the library can; 0 if it cannot (or something failed: then the device's error is sticky). */
static int library(hs_device *dev, const shape *s, const operands *o) {
    struct hs_cuda_plans *all = hs_cuda_of(dev)->plans;
    plan *p = all->first;
    while (p && memcmp(&p->of, s, sizeof *s)) p = p->next;
    if (p && !p->usable) return 0;
    if (s->gated)
        gate_bias<<<blocks_for(s->out, THREADS), THREADS, 0, hs_cuda_of(dev)->stream>>>(o->gate, o->ungated, s->out,
                                                                                        (float *)o->bias);
    if (s->gated && !HS_CUDA_LAUNCHED(dev, "linear")) return 0;
    if (!p) {
        p = (plan *)hs_calloc(1, sizeof *p);
        if (!p) {
            hs_device_sticky(dev, HS_ENOMEM, "linear: out of memory for a new shape [%lld, %lld] x [%lld]",
                             (long long)s->rows, (long long)s->in, (long long)s->out);
            return 0;
        }
        p->of = *s;
        plan_make(dev, p, o);
        p->next = all->first;
        all->first = p;
    }
    if (!p->usable || dev->sticky) return 0;
    const cublasStatus_t e = multiply(hs_cuda_of(dev), p, &p->algo, o, p->x, p->y, o->y);
    if (e)
        hs_device_sticky(dev, HS_EDEVICE, "product [%lld, %lld] x [%lld]: %s", (long long)s->rows, (long long)s->in,
                         (long long)s->out, all->lt->GetStatusString(e));
    return !e;
}

/* ---- the residual stream by Hopper's own kernel ------------------------------------------------------------------ */
/* Whole slabs, one at least for every piece of a tile that is added; tiles that fill the processors, and many slabs for
 * each: the library is faster with less to do, and where deep products are added without a gate. By the shape alone, so
 * that results do not vary. */
static bool by_wgmma(const hs_device *dev, const hs_linear *a, hs_dtype type) {
    const int64_t in = a->w->in, out = a->w->out, sms = hs_cuda_of(dev)->sms, slabs = in / RESIDUAL_DEPTH;
    const int64_t tiles = (a->rows + RESIDUAL_ROWS - 1) / RESIDUAL_ROWS * ((out + RESIDUAL_COLS - 1) / RESIDUAL_COLS);
    const double area = (double)((tiles + sms - 1) / sms * sms) * RESIDUAL_ROWS * RESIDUAL_COLS;
    return hs_cuda_hopper(dev) && a->residual && a->act == HS_ACT_NONE && type != HS_F32 && in % RESIDUAL_DEPTH == 0 &&
           (a->gate.p || in <= UNGATED_DEPTH) && slabs >= RESIDUAL_PIECES && tiles * slabs >= OWN_SLABS * sms &&
           tiles < INT_MAX / 256 && (double)a->rows * (double)out >= 0.8 * area &&
           hs_cuda_of(dev)->shared_max >= RESIDUAL_SHARED;
}

/* y += gate * (x W^T + b); 0 if it cannot be launched. */
static int run_wgmma(hs_device *dev, const void *w, hs_dtype type, const hs_buf x, int64_t rows, int64_t in,
                     int64_t out, const rest *f, float *y) {
    const int row_tiles = (int)((rows + RESIDUAL_ROWS - 1) / RESIDUAL_ROWS);
    const int col_tiles = (int)((out + RESIDUAL_COLS - 1) / RESIDUAL_COLS);
    int *turns = hs_cuda_of(dev)->plans->turns;
    const residual r = {f->gate, f->bias, y, turns, (int)rows, (int)out, (int)in, row_tiles, col_tiles};
    const int64_t tiles = (int64_t)row_tiles * col_tiles;
    const unsigned blocks = (unsigned)(tiles < hs_cuda_of(dev)->sms ? tiles : hs_cuda_of(dev)->sms);
    auto *kernel = type == HS_BF16 ? residual_wgmma<__nv_bfloat16> : residual_wgmma<__half>;
    residual_maps maps;
    if (!hopper_map(&maps.x, type == HS_BF16, x.p, in, rows, 1, in, in * rows, RESIDUAL_ROWS) ||
        !hopper_map(&maps.w, type == HS_BF16, w, in, out, 1, in, in * out, RESIDUAL_COLS) ||
        !hs_cuda_ok(dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, RESIDUAL_SHARED),
                    "linear"))
        return 0;
    kernel<<<blocks, RESIDUAL_THREADS, RESIDUAL_SHARED, hs_cuda_of(dev)->stream>>>(r, maps);
    return HS_CUDA_LAUNCHED(dev, "linear");
}

/* ---- the operation ----------------------------------------------------------------------------------------------- */
/* Ways to do it, best first; a shape that one does not offer is passed on to the next. */
typedef enum way {
    WGMMA,   /* our kernel for Hopper does everything */
    WHOLE,   /* the library does everything */
    PRODUCT, /* the library multiplies, finish does the rest */
    WARPS    /* few_rows multiplies */
} way;

/* The library's epilogue that is this operation as a whole, or -1. F32 has none: pedantic arithmetic comes first. */
static int whole_epilogue(const hs_linear *a, hs_dtype type) {
    if (type == HS_F32 || a->act == HS_ACT_SILU) return -1;
    if (a->act == HS_ACT_NONE) return CUBLASLT_EPILOGUE_BIAS;
    return a->y.type == HS_F32 ? -1 : CUBLASLT_EPILOGUE_GELU_BIAS; /* its tanh is good to 16 bits */
}

/* A piece of rows; x is of the type that the way wants. p: where y is not, the product's place in F32; for WHOLE, room
 * for `spare_rows` of trials. gated: room for gate times bias, for WHOLE. 0 if the library has no such product. */
static int run_piece(hs_device *dev, const hs_linear *a, const layout *l, way how, hs_buf x, hs_buf y, int64_t rows,
                     void *p, int64_t spare_rows, void *gated) {
    const char *w = (const char *)a->w->impl;
    const int64_t out = a->w->out, in = a->w->in;
    const rest f = {(const float *)(w + l->bias), (const float *)a->gate.p, a->act, a->residual != 0};
    shape s;
    memset(&s, 0, sizeof s); /* padding too: shapes are compared as memory */
    s.rows = rows, s.out = out, s.in = in, s.type = (int)l->type;
    if (spare_rows > rows) spare_rows = rows;
    if (how == WGMMA) return run_wgmma(dev, w, l->type, x, rows, in, out, &f, (float *)y.p);
    if (how == WHOLE) {
        const void *bias = f.gate ? gated : w + (y.type == HS_F32 ? l->bias : l->bias_typed);
        const operands o = {w, bias, x.p, f.gate, f.bias, y.p, p, spare_rows};
        s.y_type = (int)y.type, s.epilogue = whole_epilogue(a, l->type);
        s.add = a->residual != 0, s.gated = f.gate != NULL;
        return library(dev, &s, &o);
    }
    if (how == PRODUCT) {
        const operands o = {w, NULL, x.p, NULL, NULL, p, p, rows};
        s.y_type = HS_F32, s.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
        if (!library(dev, &s, &o)) return 0;
    } else {
        const int64_t groups = (rows + FEW - 1) / FEW;
        const dim3 grid(blocks_for(out, THREADS / 32), (unsigned)(groups < 65535 ? groups : 65535));
        hs_cuda_typed(l->type, [&](auto *t) {
            few_rows<<<grid, THREADS, 0, hs_cuda_of(dev)->stream>>>((const std::remove_pointer_t<decltype(t)> *)w,
                                                                    (const float *)x.p, rows, out, in,
                                                                    in % WIDE == 0 && aligned(x.p), (float *)p);
        });
        if (!HS_CUDA_LAUNCHED(dev, "linear")) return 0;
    }
    run_finish(dev, (const float *)p, rows, out, f, y);
    return 1;
}

/* As many rows of so many bytes as are to be in scratch at a time. */
static int64_t piece_rows(int64_t rows, size_t row, size_t most) {
    int64_t step = row ? (int64_t)(most / row) : rows;
    if (step > 256) step = step / 256 * 256; /* whole tiles */
    return step < 1 ? 1 : step < rows ? step : rows;
}

/* Scratch is [gate times bias][x of another type][product, or what WHOLE needs]. */
void hs_cuda_linear(hs_device *dev, const hs_linear *a) {
    const layout l = layout_of(dev, a->w);
    const int64_t in = a->w->in, out = a->w->out;
    const size_t p_row = (size_t)out * sizeof(float);
    const bool vectors = in % WIDE == 0 && out % WIDE == 0 && aligned(a->x.p) && aligned(a->y.p);
    int64_t done = 0;
    const bool whole = whole_epilogue(a, l.type) >= 0 && aligned(a->gate.p);
    int how = a->rows <= FEW || !vectors ? WARPS : !whole ? PRODUCT : by_wgmma(dev, a, l.type) ? WGMMA : WHOLE;
    for (; how <= WARPS && done < a->rows && !dev->sticky; how++) {
        const hs_dtype x_type = how == WARPS ? HS_F32 : l.type;
        const bool apart = how > WHOLE && (a->residual || a->y.type != HS_F32); /* the product from y */
        const size_t x_row = a->x.type != x_type ? (size_t)in * hs_dtype_size(x_type) : 0;
        int64_t step = piece_rows(a->rows, x_row, PIECE);
        if (apart) step = piece_rows(step, p_row, PIECE);
        const int64_t spare = how == WHOLE && a->residual ? piece_rows(step, p_row, PIECE) : step;
        const size_t g_bytes = how == WHOLE && a->gate.p ? padded(p_row) : 0, x_bytes = padded((size_t)step * x_row);
        const size_t p_bytes = apart || (how == WHOLE && a->residual) ? (size_t)spare * p_row : 0;
        const size_t bytes = g_bytes + x_bytes + p_bytes;
        char *gated = bytes ? (char *)hs_cuda_scratch(dev, bytes) : NULL, *scratch = gated + g_bytes;
        while (done < a->rows && !dev->sticky) {
            const int64_t rows = a->rows - done < step ? a->rows - done : step;
            hs_buf x = hs_buf_at(a->x, done * in, rows * in), y = hs_buf_at(a->y, done * out, rows * out);
            if (x_row) {
                const hs_buf other = {scratch, x_type, x.n};
                hs_cuda_copy(dev, other, x);
                x = other;
            }
            if (!run_piece(dev, a, &l, (way)how, x, y, rows, p_bytes ? scratch + x_bytes : y.p, spare, gated)) break;
            done += rows;
        }
    }
}
