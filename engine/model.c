/* Binding: a tensor of the files, checked against the shape the model family demands, becomes device memory or a
 * prepared weight. Every function is strict: the first tensor that is missing or different stops the load by name. */
#include "model.h"

#include <stdio.h>
#include <string.h>

enum { NAME_MAX_LEN = 192 };

static int bind_name(char *ret, const char *suffix, const char *fmt, va_list ap, hs_err *err) {
    int n = vsnprintf(ret, NAME_MAX_LEN, fmt, ap);
    size_t room = NAME_MAX_LEN - (size_t)(n < 0 ? NAME_MAX_LEN : n);
    if (n < 0 || n >= NAME_MAX_LEN || strlen(suffix) >= room)
        return hs_fail(err, HS_EINVAL, "tensor name too long: %s...", ret);
    memcpy(ret + n, suffix, strlen(suffix) + 1);
    return 0;
}

int hs_bind_vector(hs_st *st, hs_device *dev, int64_t n, hs_buf *ret, hs_err *err, const char *fmt, ...) {
    char name[NAME_MAX_LEN];
    va_list ap;
    va_start(ap, fmt);
    int r = bind_name(name, "", fmt, ap, err);
    va_end(ap);
    const hs_st_tensor *t;
    if (r) return r;
    /* [n], or any shape of n elements: norms are [C,1,1,1], modulation tables [1,6,d] */
    if (!(t = hs_st_find(st, name)) && (r = hs_st_get(st, name, 1, (int64_t[]){n}, &t, err))) return r;
    if (t->numel != n)
        return hs_fail(err, HS_EFORMAT, "%s: tensor %s has %lld elements, the configuration asks for %lld", t->file,
                       name, (long long)t->numel, (long long)n);
    if ((r = hs_st_get(st, name, t->ndim, t->shape, &t, err)) || !dev) return r; /* checks the dtype */
    float *host = hs_alloc((size_t)n * sizeof *host);
    if (!host) return hs_fail(err, HS_ENOMEM, "no memory for tensor %s", name);
    hs_st_floats(t, 0, n, host);
    hs_st_release(st, t);
    hs_buf b;
    if (!(r = hs_device_alloc(dev, HS_F32, n, name, &b, err))) {
        hs_upload(dev, b, host);
        *ret = b;
    }
    hs_free(host);
    return r;
}

/* What a device reads to prepare a weight: tensors as they are in the file, or copies of those that it does not know.
 */
enum { MAX_READ = 6 };
typedef struct reading {
    hs_st *st;
    hs_device *dev; /* NULL: names and shapes only */
    const hs_st_tensor *t[MAX_READ];
    void *copy[MAX_READ];
    int n;
} reading;

/* Devices know F32, BF16 and F16. 8-bit weights become BF16, which holds each of their values; scaled ones F32, so that
 * they are rounded once, by the device. */
static int take(reading *r, const char *name, int ndim, const int64_t *shape, const void **ret_data, hs_dtype *ret_type,
                hs_err *err) {
    enum { PIECE = 1 << 12 };
    const hs_st_tensor *t;
    const int rc = hs_st_get(r->st, name, ndim, shape, &t, err);
    if (rc || !r->dev) return rc;
    const int slot = r->n++;
    hs_st_expect(r->st, t);
    r->t[slot] = t;
    *ret_data = t->data;
    *ret_type = t->dtype;
    if (t->dtype != HS_F8_E4M3 && t->scale == 1) return 0;
    const hs_dtype type = t->scale == 1 ? HS_BF16 : HS_F32;
    const size_t size = hs_dtype_size(type);
    char *copy = hs_alloc((size_t)t->numel * size + 1);
    if (!copy) return hs_fail(err, HS_ENOMEM, "no memory for tensor %s", name);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < t->numel; i += PIECE) {
        float piece[PIECE];
        const int64_t n = t->numel - i < PIECE ? t->numel - i : PIECE;
        hs_st_floats(t, i, n, piece);
        hs_from_f32(copy + (size_t)i * size, type, piece, n);
    }
    *ret_data = r->copy[slot] = copy;
    *ret_type = type;
    return 0;
}

/* The device has its own form now: copies go, and the file's pages too, so that a model of any size passes through. */
static void done(reading *r) {
    for (int i = 0; i < r->n; i++) {
        hs_free(r->copy[i]);
        hs_st_release(r->st, r->t[i]);
    }
}

/* One matrix with bias into slot k. */
static int find_linear(reading *r, const char *base, int ndim, const int64_t *shape, int has_bias, hs_linear_src *src,
                       int k, hs_err *err) {
    char name[NAME_MAX_LEN + 16];
    snprintf(name, sizeof name, "%s.weight", base);
    int rc = take(r, name, ndim, shape, &src->w[k], &src->type[k], err);
    src->out[k] = shape[0];
    if (rc || !has_bias) return rc;
    snprintf(name, sizeof name, "%s.bias", base);
    return take(r, name, 1, shape, &src->bias[k], &src->bias_type[k], err);
}

static int bind_linear(reading *r, const hs_linear_src *src, int rc, const char *base, hs_weight **ret, hs_err *err) {
    if (!rc && r->dev && (rc = hs_weight_linear(r->dev, src, ret, err))) hs_fail_ctx(err, rc, "tensor %s.weight", base);
    done(r);
    return rc;
}

int hs_bind_linear(hs_st *st, hs_device *dev, int64_t out, int64_t in, int has_bias, int f32, hs_weight **ret,
                   hs_err *err, const char *fmt, ...) {
    char base[NAME_MAX_LEN];
    va_list ap;
    va_start(ap, fmt);
    int rc = bind_name(base, "", fmt, ap, err);
    va_end(ap);
    reading r = {.st = st, .dev = dev};
    hs_linear_src src = {.parts = 1, .in = in, .f32 = f32};
    if (!rc) rc = find_linear(&r, base, 2, (int64_t[]){out, in}, has_bias, &src, 0, err);
    return bind_linear(&r, &src, rc, base, ret, err);
}

int hs_bind_patch(hs_st *st, hs_device *dev, int64_t out, int64_t channels, hs_weight **ret, hs_err *err) {
    static const char base[] = "patch_embedding";
    reading r = {.st = st, .dev = dev};
    hs_linear_src src = {.parts = 1, .in = 4 * channels, .f32 = 1};
    const int rc = find_linear(&r, base, 5, (int64_t[]){out, channels, 1, 2, 2}, 1, &src, 0, err);
    return bind_linear(&r, &src, rc, base, ret, err);
}

int hs_bind_stacked(hs_st *st, hs_device *dev, int parts, const char *const *suffix, const int64_t *out, int64_t in,
                    int has_bias, hs_weight **ret, hs_err *err, const char *fmt, ...) {
    char base[NAME_MAX_LEN];
    reading r = {.st = st, .dev = dev};
    hs_linear_src src = {.parts = parts, .in = in};
    int rc = 0;
    for (int k = 0; k < parts && !rc; k++) {
        va_list ap;
        va_start(ap, fmt);
        rc = bind_name(base, suffix[k], fmt, ap, err);
        va_end(ap);
        if (!rc) rc = find_linear(&r, base, 2, (int64_t[]){out[k], in}, has_bias, &src, k, err);
    }
    return bind_linear(&r, &src, rc, base, ret, err);
}

int hs_bind_conv(hs_st *st, hs_device *dev, int cout, int cin, int kt, int ky, int kx, int up2, hs_weight **ret,
                 hs_err *err, const char *fmt, ...) {
    char base[NAME_MAX_LEN], name[NAME_MAX_LEN + 16];
    va_list ap;
    va_start(ap, fmt);
    int rc = bind_name(base, "", fmt, ap, err);
    va_end(ap);
    if (rc) return rc;
    /* kt == 0: a 2-D convolution, whose file shape has no time axis */
    int64_t shape3[] = {cout, cin, kt, ky, kx}, shape2[] = {cout, cin, ky, kx};
    reading r = {.st = st, .dev = dev};
    hs_conv_src src = {.cout = cout, .cin = cin, .kt = kt ? kt : 1, .ky = ky, .kx = kx, .up2 = up2};
    snprintf(name, sizeof name, "%s.weight", base);
    rc = take(&r, name, kt ? 5 : 4, kt ? shape3 : shape2, &src.w, &src.type, err);
    snprintf(name, sizeof name, "%s.bias", base);
    if (!rc) rc = take(&r, name, 1, (int64_t[]){cout}, &src.bias, &src.bias_type, err);
    if (!rc && dev && (rc = hs_weight_conv(dev, &src, ret, err))) hs_fail_ctx(err, rc, "tensor %s.weight", base);
    done(&r);
    return rc;
}
