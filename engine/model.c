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
    hs_to_f32(host, t->data, t->dtype, n);
    hs_buf b;
    if (!(r = hs_device_alloc(dev, HS_F32, n, name, &b, err))) {
        hs_upload(dev, b, host);
        *ret = b;
    }
    hs_free(host);
    return r;
}

/* One matrix with bias into slot k of src. */
static int find_linear(hs_st *st, const char *base, int64_t out, int64_t in, int has_bias, hs_linear_src *src, int k,
                       hs_err *err) {
    char name[NAME_MAX_LEN + 16];
    const hs_st_tensor *t;
    int r;
    snprintf(name, sizeof name, "%s.weight", base);
    if ((r = hs_st_get(st, name, 2, (int64_t[]){out, in}, &t, err))) return r;
    src->w[k] = t->data;
    src->type[k] = t->dtype;
    src->out[k] = out;
    if (!has_bias) return 0;
    snprintf(name, sizeof name, "%s.bias", base);
    if ((r = hs_st_get(st, name, 1, (int64_t[]){out}, &t, err))) return r;
    src->bias[k] = t->data;
    src->bias_type[k] = t->dtype;
    return 0;
}

int hs_bind_linear(hs_st *st, hs_device *dev, int64_t out, int64_t in, int has_bias, int f32, hs_weight **ret,
                   hs_err *err, const char *fmt, ...) {
    char base[NAME_MAX_LEN];
    va_list ap;
    va_start(ap, fmt);
    int r = bind_name(base, "", fmt, ap, err);
    va_end(ap);
    hs_linear_src src = {.parts = 1, .in = in, .f32 = f32};
    if (r || (r = find_linear(st, base, out, in, has_bias, &src, 0, err)) || !dev) return r;
    return (r = hs_weight_linear(dev, &src, ret, err)) ? hs_fail_ctx(err, r, "tensor %s.weight", base) : 0;
}

int hs_bind_stacked(hs_st *st, hs_device *dev, int parts, const char *const *suffix, const int64_t *out, int64_t in,
                    int has_bias, hs_weight **ret, hs_err *err, const char *fmt, ...) {
    char base[NAME_MAX_LEN];
    hs_linear_src src = {.parts = parts, .in = in};
    int r = 0;
    for (int k = 0; k < parts && !r; k++) {
        va_list ap;
        va_start(ap, fmt);
        r = bind_name(base, suffix[k], fmt, ap, err);
        va_end(ap);
        if (!r) r = find_linear(st, base, out[k], in, has_bias, &src, k, err);
    }
    if (r || !dev) return r;
    return (r = hs_weight_linear(dev, &src, ret, err)) ? hs_fail_ctx(err, r, "tensor %s.weight", base) : 0;
}

int hs_bind_conv(hs_st *st, hs_device *dev, int cout, int cin, int kt, int ky, int kx, int up2, hs_weight **ret,
                 hs_err *err, const char *fmt, ...) {
    char base[NAME_MAX_LEN], name[NAME_MAX_LEN + 16];
    va_list ap;
    va_start(ap, fmt);
    int r = bind_name(base, "", fmt, ap, err);
    va_end(ap);
    if (r) return r;
    /* kt == 0: a 2-D convolution, whose file shape has no time axis */
    int64_t shape3[] = {cout, cin, kt, ky, kx}, shape2[] = {cout, cin, ky, kx};
    const hs_st_tensor *w, *b;
    snprintf(name, sizeof name, "%s.weight", base);
    if ((r = hs_st_get(st, name, kt ? 5 : 4, kt ? shape3 : shape2, &w, err))) return r;
    snprintf(name, sizeof name, "%s.bias", base);
    if ((r = hs_st_get(st, name, 1, (int64_t[]){cout}, &b, err)) || !dev) return r;
    hs_conv_src src = {w->data, b->data, w->dtype, b->dtype, cout, cin, kt ? kt : 1, ky, kx, up2};
    return (r = hs_weight_conv(dev, &src, ret, err)) ? hs_fail_ctx(err, r, "tensor %s.weight", base) : 0;
}
