/* The CUDA backend: finds the GPU, owns its memory, its scratch and its stream, and puts the operation table together.
 *
 * Operations only enqueue work on one stream; the host waits in download, sync and count_nonfinite alone. So a failure,
 * NaN in the frames, and the times of laps become known at the next of these.
 */
#include "cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    OLDEST_CC = 80, /* mma.sync on bf16, cp.async */
    MAX_LAPS = 512, /* recorded between two waits; a forward takes three per layer */
    WORKSPACE = 32 << 20,
    SCRATCH_STEP = 16 << 20,
    OWN_SCRATCH = 288 << 20, /* what scratch grows to: linear's two pieces; only k-means may need more */
    LOAD_PIECE = 8 << 20,    /* bytes of a weight on their way through pinned memory and scratch */
    STAGES = 4,              /* pieces on their way at once */
    LOAD_THREADS = 8,        /* at most, that fill them: not tuned */
    LOAD_SMALL = 64 << 10,   /* fewer bytes are copied by the driver before it returns */
};

struct hs_cuda_laps {
    cudaEvent_t at[MAX_LAPS];
    int slot[MAX_LAPS], n;
};

/* Pinned host memory that weights pass through: while threads fill one piece, the bus takes the others. */
struct hs_cuda_stages {
    char *host[STAGES];
    cudaEvent_t gone[STAGES]; /* the bus has taken it */
    int turn, threads, usable;
};

/* ---- errors ------------------------------------------------------------------------------------------------------ */
int hs_cuda_ok(hs_device *dev, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return 1;
    cudaGetLastError(); /* or the next launch would report it again */
    hs_device_sticky(dev, HS_EDEVICE, "cuda:%d: %s: %s", hs_cuda_of(dev)->ordinal, what, cudaGetErrorString(e));
    return 0;
}

/* CUDA's current device is a property of the thread, and a session may move between threads. */
static void use(const hs_device *dev) {
    cudaSetDevice(hs_cuda_of(dev)->ordinal);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */
static int cuda_alloc(hs_device *dev, size_t bytes, void **ret) {
    use(dev);
    if (cudaMalloc(ret, bytes) == cudaSuccess) return HS_OK;
    cudaGetLastError();
    *ret = NULL;
    return HS_ENOMEM;
}

static void cuda_free(hs_device *dev, void *p) {
    use(dev);
    cudaFree(p);
}

static int64_t cuda_free_bytes(const hs_device *dev) {
    size_t free = 0, total = 0;
    use(dev);
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? (int64_t)free : 0;
}

int hs_cuda_malloc(hs_device *dev, size_t bytes, const char *purpose, void **ret, hs_err *err) {
    const int allowed = !dev->max_bytes || (int64_t)bytes <= dev->max_bytes - dev->bytes;
    if (allowed && !cuda_alloc(dev, bytes, ret)) return HS_OK;
    *ret = NULL;
    return hs_fail(
        err, HS_ENOMEM,
        "device memory for %s: %zu bytes asked, %lld in use, %lld free on cuda:%d; choose a smaller video or "
        "another device",
        purpose, bytes, (long long)dev->bytes, (long long)hs_device_free_bytes(dev), hs_cuda_of(dev)->ordinal);
}

static size_t scratch_room(size_t bytes) {
    return (bytes + SCRATCH_STEP - 1) / SCRATCH_STEP * SCRATCH_STEP;
}

/* Freeing waits for the device, so whatever still uses the old scratch has finished. In the device's account until
 * cuda_close. */
void *hs_cuda_scratch(hs_device *dev, size_t bytes) {
    hs_cuda *c = hs_cuda_of(dev);
    if (bytes <= c->scratch_bytes) return c->scratch;
    hs_err why = {};
    bytes = scratch_room(bytes);
    cuda_free(dev, c->scratch);
    hs_device_count(dev, -(int64_t)c->scratch_bytes);
    c->scratch_bytes = 0;
    if (hs_cuda_malloc(dev, bytes, "scratch", &c->scratch, &why)) {
        hs_device_sticky(dev, HS_ENOMEM, "%.200s", why.msg);
        return NULL;
    }
    c->scratch_bytes = bytes;
    hs_device_count(dev, (int64_t)bytes);
    return c->scratch;
}

/* Made when the first weight is loaded. Where memory cannot be pinned, weights are copied from where they are: more
 * slowly, since the driver then takes pages of files and copies them with one thread. */
static void stages_open(hs_device *dev) {
    struct hs_cuda_stages *s = (struct hs_cuda_stages *)hs_calloc(1, sizeof *s);
    hs_cuda_of(dev)->stages = s;
    if (!s) return;
    const int threads = hs_host_threads() - 1; /* one reads ahead */
    s->threads = threads < 1 ? 1 : threads < LOAD_THREADS ? threads : LOAD_THREADS;
    cudaError_t e = cudaSuccess;
    for (int i = 0; i < STAGES && e == cudaSuccess; i++) {
        e = cudaMallocHost((void **)&s->host[i], LOAD_PIECE);
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&s->gone[i], cudaEventDisableTiming);
    }
    s->usable = e == cudaSuccess;
    if (s->usable) return;
    cudaGetLastError();
    hs_log(HS_LOG_DEBUG, "%.60s: weights are loaded without pinned memory: %s", dev->name, cudaGetErrorString(e));
}

static void stages_close(hs_device *dev) {
    struct hs_cuda_stages *s = hs_cuda_of(dev)->stages;
    for (int i = 0; s && i < STAGES; i++) {
        if (s->gone[i]) cudaEventDestroy(s->gone[i]);
        if (s->host[i]) cudaFreeHost(s->host[i]);
    }
    hs_free(s);
}

/* Starts the copy of at most a piece; the host array may change at once. */
static void load_piece(hs_device *dev, void *dst, const void *host, size_t bytes) {
    hs_cuda *c = hs_cuda_of(dev);
    if (!c->stages) stages_open(dev);
    struct hs_cuda_stages *s = bytes > LOAD_SMALL && c->stages && c->stages->usable ? c->stages : NULL;
    const int i = s ? s->turn++ % STAGES : 0;
    if (s) { /* an event that was never recorded holds nobody up */
        if (!hs_cuda_ok(dev, cudaEventSynchronize(s->gone[i]), "loading weights")) return;
        hs_copy_wide(s->host[i], host, bytes, s->threads);
        host = s->host[i];
    }
    if (hs_cuda_ok(dev, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, c->stream), "loading weights") && s)
        hs_cuda_ok(dev, cudaEventRecord(s->gone[i], c->stream), "loading weights");
}

int hs_cuda_load(hs_device *dev, void *dst, hs_dtype to, const void *host, hs_dtype from, int64_t n, hs_err *err) {
    const size_t size = hs_dtype_size(from);
    const int64_t piece = LOAD_PIECE / (int64_t)size;
    use(dev);
    for (int64_t i = 0; i < n; i += piece) {
        const int64_t m = n - i < piece ? n - i : piece;
        hs_buf y = hs_buf_at(hs_buf{dst, to, n}, i, m);
        void *raw = to == from ? y.p : hs_cuda_scratch(dev, LOAD_PIECE);
        if (raw) load_piece(dev, raw, (const char *)host + (size_t)i * size, (size_t)m * size);
        if (raw && to != from && !dev->sticky) hs_cuda_copy(dev, y, hs_buf{raw, from, m});
        if (dev->sticky) { /* reported here, so not again by the next check */
            const int rc = hs_fail(err, dev->sticky, "%s", dev->sticky_msg);
            dev->sticky = 0;
            return rc;
        }
    }
    return HS_OK;
}

static void cuda_weight_free(hs_device *dev, hs_weight *w) {
    cuda_free(dev, w->impl);
    w->impl = NULL;
}

/* ---- stopwatch --------------------------------------------------------------------------------------------------- */
/* The recorded laps have been reached: their times go to the device's account; the last one begins the next span. */
static void settle_laps(hs_device *dev) {
    struct hs_cuda_laps *l = hs_cuda_of(dev)->laps;
    for (int i = 1; i < l->n; i++) {
        float ms = 0;
        if (hs_cuda_ok(dev, cudaEventElapsedTime(&ms, l->at[i - 1], l->at[i]), "times of attention"))
            dev->laps[l->slot[i]] += ms * 1e-3;
    }
    if (l->n > 1) {
        cudaEvent_t last = l->at[l->n - 1];
        l->at[l->n - 1] = l->at[0];
        l->at[0] = last;
        l->n = 1;
    }
}

static int cuda_sync(hs_device *dev, hs_err *err);

static void cuda_lap(hs_device *dev, int slot) {
    hs_cuda *c = hs_cuda_of(dev);
    struct hs_cuda_laps *l = c->laps;
    if (l->n == MAX_LAPS) cuda_sync(dev, NULL);
    if (l->n == MAX_LAPS || !hs_cuda_ok(dev, cudaEventRecord(l->at[l->n], c->stream), "times of attention")) return;
    l->slot[l->n++] = slot;
}

/* ---- moving data ------------------------------------------------------------------------------------------------- */
/* Waits, and takes note of what is known only then. */
static int cuda_sync(hs_device *dev, hs_err *err) {
    hs_cuda *c = hs_cuda_of(dev);
    use(dev);
    const cudaError_t e = cudaStreamSynchronize(c->stream);
    if (e != cudaSuccess) return hs_fail(err, HS_EDEVICE, "cuda:%d: %s", c->ordinal, cudaGetErrorString(e));
    if (*c->nan)
        hs_device_sticky(dev, HS_ENUMERIC, "to_u8: some of the values are NaN%s",
                         dev->act == HS_F16 ? ": fp16 overflows at 65504, try --precision bf16" : "");
    *c->nan = 0;
    settle_laps(dev);
    return HS_OK;
}

/* From pageable memory the driver copies to its own before it returns: the host array may change at once. */
static void cuda_upload(hs_device *dev, void *dst, const void *host, size_t bytes) {
    use(dev);
    hs_cuda_ok(dev, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, hs_cuda_of(dev)->stream), "upload");
}

static void cuda_download(hs_device *dev, void *host, const void *src, size_t bytes) {
    hs_err why = {};
    use(dev);
    if (hs_cuda_ok(dev, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, hs_cuda_of(dev)->stream),
                   "download") &&
        cuda_sync(dev, &why))
        hs_device_sticky(dev, why.code, "%.200s", why.msg);
}

static void cuda_zero(hs_device *dev, hs_buf dst) {
    hs_cuda_ok(dev, cudaMemsetAsync(dst.p, 0, (size_t)dst.n * hs_dtype_size(dst.type), hs_cuda_of(dev)->stream),
               "zero");
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */
static void cuda_close(hs_device *dev) {
    hs_cuda *c = hs_cuda_of(dev);
    if (!c) return;
    use(dev);
    if (c->stream) cudaStreamSynchronize(c->stream);
    hs_cuda_plans_close(dev);
    hs_cuda_slots_close(dev);
    stages_close(dev);
    for (int i = 0; c->laps && i < MAX_LAPS; i++)
        if (c->laps->at[i]) cudaEventDestroy(c->laps->at[i]);
    hs_free(c->laps);
    hs_device_count(dev, -(int64_t)(c->scratch_bytes + c->workspace_bytes));
    cudaFree(c->scratch);
    cudaFree(c->workspace);
    if (c->nan) cudaFreeHost(c->nan);
    if (c->stream) cudaStreamDestroy(c->stream);
    hs_free(c);
    dev->impl = NULL;
}

static int64_t own_bytes(const hs_device *dev, const hs_cluster *cluster) {
    (void)dev;
    int64_t scratch = OWN_SCRATCH;
    if (cluster && hs_cuda_cluster_scratch(cluster) > scratch)
        scratch = (int64_t)scratch_room((size_t)hs_cuda_cluster_scratch(cluster));
    return WORKSPACE + scratch;
}

static hs_ops table() {
    hs_ops o = {};
    o.close = cuda_close;
    o.alloc = cuda_alloc;
    o.free = cuda_free;
    o.upload = cuda_upload;
    o.download = cuda_download;
    o.copy = hs_cuda_copy;
    o.zero = cuda_zero;
    o.free_bytes = cuda_free_bytes;
    o.sync = cuda_sync;
    o.lap = cuda_lap;
    o.weight_linear = hs_cuda_weight_linear;
    o.weight_conv = hs_cuda_weight_conv;
    o.weight_free = cuda_weight_free;
    o.host_alloc = hs_cuda_host_alloc;
    o.host_free = hs_cuda_host_free;
    o.slot_fill = hs_cuda_slot_fill;
    o.slot_use = hs_cuda_slot_use;
    o.slot_release = hs_cuda_slot_release;
    o.own_bytes = own_bytes;
    o.linear = hs_cuda_linear;
    o.norm = hs_cuda_norm;
    o.modulation = hs_cuda_modulation;
    o.qk_norm = hs_cuda_qk_norm;
    o.gated_gelu = hs_cuda_gated_gelu;
    o.gather_rows = hs_cuda_gather_rows;
    o.combine = hs_cuda_combine;
    o.attention = hs_cuda_attention;
    o.block_scores = hs_cuda_block_scores;
    o.centroid_scores = hs_cuda_centroid_scores;
    o.select = hs_cuda_select;
    o.mask_density = hs_cuda_mask_density;
    o.block_means = hs_cuda_block_means;
    o.cluster = hs_cuda_cluster;
    o.reuse = hs_cuda_reuse;
    o.patchify = hs_cuda_patchify;
    o.unpatchify = hs_cuda_unpatchify;
    o.latent_frames = hs_cuda_latent_frames;
    o.channel_norm = hs_cuda_channel_norm;
    o.conv = hs_cuda_conv;
    o.split_frames = hs_cuda_split_frames;
    o.to_u8 = hs_cuda_to_u8;
    o.count_nonfinite = hs_cuda_count_nonfinite;
    return o;
}

/* HS_ENODEV only where there is nothing to use: device auto passes over that without a word (backend.c). */
static int fail_no_gpu(const hs_device_params *p, cudaError_t e, hs_err *err) {
    int driver = 0;
    cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    if (!driver || e == cudaErrorStubLibrary)
        return hs_fail(
            err, HS_ENODEV,
            "device '%s' asked for, but no NVIDIA driver is loaded (no usable libcuda.so.1): install one for "
            "CUDA %d or newer, give the container its GPUs, or use --device cpu",
            p->name, CUDART_VERSION / 1000);
    if (e == cudaErrorInsufficientDriver)
        return hs_fail(err, HS_ENOTSUP,
                       "device '%s' asked for, but the NVIDIA driver is too old: it knows CUDA %d.%d, this build needs "
                       "%d.%d; update the driver or use --device cpu",
                       p->name, driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (e == cudaSuccess || e == cudaErrorNoDevice)
        return hs_fail(err, HS_ENODEV,
                       "device '%s' asked for, but the NVIDIA driver shows no GPU (nvidia-smi, CUDA_VISIBLE_DEVICES); "
                       "use --device cpu",
                       p->name);
    return hs_fail(err, HS_EDEVICE, "device '%s': %s; see nvidia-smi, or use --device cpu", p->name,
                   cudaGetErrorString(e));
}

static __global__ void nothing() {}

/* One of the GPUs, of a kind that this build has kernels for. */
static int choose(const hs_device_params *p, cudaDeviceProp *ret_prop, int *ret_ordinal, hs_err *err) {
    int count = 0;
    cudaFuncAttributes kernel;
    const char *const number = strchr(p->name, ':');
    const int ordinal = number ? atoi(number + 1) : 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count < 1) return fail_no_gpu(p, e, err);
    if (ordinal >= count)
        return hs_fail(err, HS_ENODEV, "device '%s' asked for, but the last of %d GPU%s here is cuda:%d", p->name,
                       count, count == 1 ? "" : "s", count - 1);
    if ((e = cudaSetDevice(ordinal)) != cudaSuccess || (e = cudaGetDeviceProperties(ret_prop, ordinal)) != cudaSuccess)
        return fail_no_gpu(p, e, err);
    if (ret_prop->major * 10 + ret_prop->minor < OLDEST_CC)
        return hs_fail(err, HS_ENOTSUP,
                       "device '%s' is a %.60s of compute capability %d.%d, the kernels need %d.%d (Ampere) or newer; "
                       "use --device cpu",
                       p->name, ret_prop->name, ret_prop->major, ret_prop->minor, OLDEST_CC / 10, OLDEST_CC % 10);
    if ((e = cudaFuncGetAttributes(&kernel, nothing)) == cudaErrorNoKernelImageForDevice ||
        e == cudaErrorInvalidDeviceFunction) {
        cudaGetLastError();
        return hs_fail(err, HS_ENOTSUP,
                       "device '%s' is a %.60s of compute capability %d.%d, for which this build has no kernels; build "
                       "with -Dgpu_arch=%d%d or use --device cpu",
                       p->name, ret_prop->name, ret_prop->major, ret_prop->minor, ret_prop->major, ret_prop->minor);
    }
    *ret_ordinal = ordinal;
    return e == cudaSuccess ? HS_OK : fail_no_gpu(p, e, err);
}

static int fill(hs_device *dev, const cudaDeviceProp *prop, int ordinal, hs_err *err) {
    hs_cuda *c = hs_cuda_of(dev);
    c->ordinal = ordinal;
    c->sms = prop->multiProcessorCount;
    c->cc = prop->major * 10 + prop->minor;
    c->shared_max = prop->sharedMemPerBlockOptin;
    c->laps = (struct hs_cuda_laps *)hs_calloc(1, sizeof *c->laps);
    if (!c->laps) return hs_fail(err, HS_ENOMEM, "out of memory opening %s", dev->name);
    cudaError_t e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaMallocHost(&c->nan, sizeof *c->nan);
    for (int i = 0; i < MAX_LAPS && e == cudaSuccess; i++) e = cudaEventCreate(&c->laps->at[i]);
    if (e != cudaSuccess) {
        cudaGetLastError();
        return hs_fail(err, HS_EDEVICE, "opening %.60s: %s; is another program using all of it?", dev->name,
                       cudaGetErrorString(e));
    }
    *c->nan = 0;
    int rc = hs_cuda_malloc(dev, WORKSPACE, "products", &c->workspace, err);
    if (rc) return rc;
    c->workspace_bytes = WORKSPACE;
    hs_device_count(dev, WORKSPACE);
    if ((rc = hs_cuda_slots_open(dev, err))) return rc;
    return hs_cuda_plans_open(dev, err);
}

int hs_cuda_open(const hs_device_params *p, hs_device *dev, hs_err *err) {
    static const hs_ops ops = table();
    cudaDeviceProp prop;
    int ordinal = 0;
    int rc = choose(p, &prop, &ordinal, err);
    if (rc) return rc;
    dev->act = !strcmp(p->precision, "fp32") ? HS_F32 : !strcmp(p->precision, "fp16") ? HS_F16 : HS_BF16;
    snprintf(dev->name, sizeof dev->name, "cuda:%d: %.80s, %s, %d GiB", ordinal, prop.name,
             dev->act == HS_F32   ? "fp32"
             : dev->act == HS_F16 ? "fp16"
                                  : "bf16",
             (int)(prop.totalGlobalMem >> 30));
    dev->impl = hs_calloc(1, sizeof(hs_cuda));
    if (!dev->impl) return hs_fail(err, HS_ENOMEM, "out of memory opening %s", dev->name);
    hs_cuda_of(dev)->portable = !strncmp(p->name, "cuda-portable", 13);
    dev->ops = &ops;
    rc = fill(dev, &prop, ordinal, err);
    if (rc) cuda_close(dev);
    return rc;
}
