/* The plain reference backend: table, memory and the linear layer. Device memory is host memory, weights are F32. */
#include "ref/ref.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- memory ---------------------------------------------------------------------------------------------------- */
static void ref_close(hs_device *dev) {
    (void)dev;
}

static int ref_alloc(hs_device *dev, size_t bytes, void **ret) {
    (void)dev;
    *ret = hs_alloc(bytes);
    return *ret ? HS_OK : HS_ENOMEM;
}

static void ref_free(hs_device *dev, void *p) {
    (void)dev;
    hs_free(p);
}

static void ref_upload(hs_device *dev, void *dst, const void *host, size_t bytes) {
    (void)dev;
    memcpy(dst, host, bytes);
}

static void ref_download(hs_device *dev, void *host, const void *src, size_t bytes) {
    (void)dev;
    memcpy(host, src, bytes);
}

static void ref_copy(hs_device *dev, hs_buf dst, hs_buf src) {
    (void)dev;
    memcpy(dst.p, src.p, (size_t)src.n * hs_dtype_size(src.type));
}

static void ref_zero(hs_device *dev, hs_buf dst) {
    (void)dev;
    memset(dst.p, 0, (size_t)dst.n * hs_dtype_size(dst.type));
}

static int64_t ref_free_bytes(const hs_device *dev) {
    (void)dev;
    return hs_host_free_bytes();
}

static int ref_sync(hs_device *dev, hs_err *err) {
    (void)dev, (void)err;
    return HS_OK;
}

/* ---- weights that come and go: by plain copies ------------------------------------------------------------------- */
static int ref_host_alloc(hs_device *dev, size_t bytes, void **ret) {
    return ref_alloc(dev, bytes, ret);
}

static void ref_slot_fill(hs_device *dev, int slot, void *dst, const void *host, size_t bytes) {
    (void)slot;
    ref_upload(dev, dst, host, bytes);
}

static void ref_slot_mark(hs_device *dev, int slot) {
    (void)dev, (void)slot;
}

/* ---- linear ----------------------------------------------------------------------------------------------------- */
/* Outputs of the panel that begins at o0. */
static int64_t panel(int64_t out, int64_t o0) {
    return out - o0 < HS_REF_TILE ? out - o0 : HS_REF_TILE;
}

/* impl: W^T in panels of outputs, each [in, panel], then bias [out] (zeros if there is none). */
static int ref_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight *w, hs_err *err) {
    (void)dev;
    const int64_t in = w->in, out = w->out;
    float *wt = hs_calloc((size_t)((in + 1) * out), sizeof *wt);
    float *row = hs_alloc((size_t)in * sizeof *row);
    if (!wt || !row) {
        hs_free(wt);
        hs_free(row);
        return hs_fail(err, HS_ENOMEM, "out of memory preparing a [%lld, %lld] matrix", (long long)out, (long long)in);
    }
    for (int64_t part = 0, o = 0; part < src->parts; part++) {
        const char *p = src->w[part];
        if (src->bias[part]) hs_to_f32(wt + in * out + o, src->bias[part], src->bias_type[part], src->out[part]);
        for (int64_t r = 0; r < src->out[part]; r++, o++) {
            hs_to_f32(row, p + (size_t)(r * in) * hs_dtype_size(src->type[part]), src->type[part], in);
            const int64_t o0 = o / HS_REF_TILE * HS_REF_TILE, n = panel(out, o0);
            for (int64_t i = 0; i < in; i++) wt[o0 * in + i * n + (o - o0)] = row[i];
        }
    }
    hs_free(row);
    w->impl = wt;
    w->bytes = (in + 1) * out * (int64_t)sizeof *wt;
    return HS_OK;
}

static void ref_weight_free(hs_device *dev, hs_weight *w) {
    (void)dev;
    hs_free(w->impl);
}

static double activate(hs_act act, double v) {
    switch (act) {
    case HS_ACT_GELU_TANH: return 0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case HS_ACT_SILU: return v / (1 + exp(-v));
    default: return v;
    }
}

HS_REF_HOT static void add_products(double *sum, const float *x, int64_t in, const float *w, int64_t ld, int64_t out) {
    for (int64_t i = 0; i < in; i++)
#pragma omp simd
        for (int64_t o = 0; o < out; o++) sum[o] += (double)x[i] * w[i * ld + o];
}

void hs_ref_add_products(double *sum, const float *x, int64_t in, const float *w, int64_t ld, int64_t out) {
    hs_ref_see_ends(x, in);
    hs_ref_see_ends(w, (in - 1) * ld + out);
    add_products(sum, x, in, w, ld, out);
}

void hs_ref_linear(hs_device *dev, const hs_linear *a) {
    (void)dev;
    const int64_t in = a->w->in, out = a->w->out;
    const float *wt = a->w->impl, *bias = wt + in * out, *gate = a->gate.p;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t m = 0; m < a->rows; m++) {
        for (int64_t o0 = 0; o0 < out; o0 += HS_REF_TILE) {
            const int64_t n = panel(out, o0);
            float *y = (float *)a->y.p + m * out + o0;
            double sum[HS_REF_TILE] = {0};
            hs_ref_add_products(sum, (const float *)a->x.p + m * in, in, wt + o0 * in, n, n);
            for (int64_t o = 0; o < n; o++) {
                const double v = sum[o] + bias[o0 + o];
                if (a->residual)
                    y[o] = (float)(y[o] + (gate ? gate[o0 + o] : 1.0) * v);
                else
                    y[o] = (float)activate(a->act, v);
            }
        }
    }
}

/* ---- open ---------------------------------------------------------------------------------------------------------
 */
static const hs_ops ops = {
    .close = ref_close,
    .alloc = ref_alloc,
    .free = ref_free,
    .upload = ref_upload,
    .download = ref_download,
    .copy = ref_copy,
    .zero = ref_zero,
    .free_bytes = ref_free_bytes,
    .sync = ref_sync,
    .weight_linear = ref_weight_linear,
    .weight_conv = hs_ref_weight_conv,
    .weight_free = ref_weight_free,
    .host_alloc = ref_host_alloc,
    .host_free = ref_free,
    .slot_fill = ref_slot_fill,
    .slot_use = ref_slot_mark,
    .slot_release = ref_slot_mark,
    .linear = hs_ref_linear,
    .norm = hs_ref_norm,
    .modulation = hs_ref_modulation,
    .qk_norm = hs_ref_qk_norm,
    .gated_gelu = hs_ref_gated_gelu,
    .gather_rows = hs_ref_gather_rows,
    .combine = hs_ref_combine,
    .attention = hs_ref_attention,
    .block_scores = hs_ref_block_scores,
    .centroid_scores = hs_ref_centroid_scores,
    .select = hs_ref_select,
    .mask_density = hs_ref_mask_density,
    .block_means = hs_ref_block_means,
    .cluster = hs_ref_cluster,
    .reuse = hs_ref_reuse,
    .patchify = hs_ref_patchify,
    .unpatchify = hs_ref_unpatchify,
    .latent_frames = hs_ref_latent_frames,
    .channel_norm = hs_ref_channel_norm,
    .conv = hs_ref_conv,
    .split_frames = hs_ref_split_frames,
    .to_u8 = hs_ref_to_u8,
    .count_nonfinite = hs_ref_count_nonfinite,
};

int hs_ref_open(const hs_device_params *p, hs_device *dev, hs_err *err) {
    if (!strcmp(p->precision, "fp16"))
        return hs_fail(err, HS_ENOTSUP, "fp16 needs a GPU; device ref computes in fp32 only");
    if (!strcmp(p->precision, "bf16"))
        return hs_fail(err, HS_ENOTSUP, "device ref computes in fp32 only; use --device cpu for bf16");
    dev->ops = &ops;
    dev->act = HS_F32;
    snprintf(dev->name, sizeof dev->name, "ref: plain loops, fp32, double sums");
    return HS_OK;
}
