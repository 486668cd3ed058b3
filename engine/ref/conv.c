/* Reference convolution over channels-last frames, spec wan.md 5.2. Doubling is done literally: the tap at (y, x) of
 * the doubled image reads pixel (y / 2, x / 2) of the input. */
#include "ref/ref.h"

/* impl: w [kt, ky, kx, cin, cout], then bias [cout] (zeros if there is none). */
int hs_ref_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err) {
    (void)dev;
    const int64_t cin = src->cin, cout = src->cout, taps = (int64_t)src->kt * src->ky * src->kx, n = taps * cin * cout;
    float *impl = hs_calloc((size_t)(n + cout), sizeof *impl);
    if (!impl)
        return hs_fail(err, HS_ENOMEM, "out of memory preparing a convolution of %d to %d channels", src->cin,
                       src->cout);
    for (int64_t o = 0; o < cout; o++)
        for (int64_t c = 0; c < cin; c++)
            for (int64_t k = 0; k < taps; k++) {
                const size_t at = (size_t)((o * cin + c) * taps + k) * hs_dtype_size(src->type);
                hs_to_f32(&impl[(k * cin + c) * cout + o], (const char *)src->w + at, src->type, 1);
            }
    if (src->bias) hs_to_f32(impl + n, src->bias, src->bias_type, cout);
    w->impl = impl;
    w->bytes = (n + cout) * (int64_t)sizeof *impl;
    return HS_OK;
}

/* All output channels of output pixel (t, y, x). */
static void pixel(const hs_conv *a, int t, int y, int x) {
    const hs_weight *w = a->w;
    const int up = w->up2, Yo = a->Y << up, Xo = a->X << up;
    const int64_t cin = w->cin, cout = w->cout, taps = (int64_t)w->kt * w->ky * w->kx;
    const float *weight = w->impl, *bias = weight + taps * cin * cout;
    const int64_t at = (((int64_t)t * Yo + y) * Xo + x) * cout;
    float *out = (float *)a->y.p + at;
    const float *add = a->add.p ? (const float *)a->add.p + at : NULL;
    for (int64_t o0 = 0; o0 < cout; o0 += HS_REF_TILE) {
        const int64_t n = cout - o0 < HS_REF_TILE ? cout - o0 : HS_REF_TILE;
        double sum[HS_REF_TILE] = {0};
        for (int64_t tap = 0; tap < taps; tap++) {
            const int64_t dt = tap / (w->ky * w->kx), dy = tap / w->kx % w->ky, dx = tap % w->kx;
            const int64_t yi = y + dy - (w->ky - 1) / 2, xi = x + dx - (w->kx - 1) / 2;
            if (yi < 0 || yi >= Yo || xi < 0 || xi >= Xo) continue; /* zero padding */
            const float *in = (const float *)a->x.p + (((t + dt) * a->Y + (yi >> up)) * a->X + (xi >> up)) * cin;
            const float *k = weight + tap * cin * cout + o0;
            hs_ref_add_products(sum, in, cin, k, cout, n);
        }
        for (int64_t o = 0; o < n; o++) out[o0 + o] = (float)(sum[o] + bias[o0 + o] + (add ? add[o0 + o] : 0.0));
    }
}

void hs_ref_conv(hs_device *dev, const hs_conv *a) {
    (void)dev;
    const int Yo = a->Y << a->w->up2, Xo = a->X << a->w->up2;
#pragma omp parallel for collapse(2) schedule(static)
    for (int t = 0; t < a->T; t++)
        for (int y = 0; y < Yo; y++)
            for (int x = 0; x < Xo; x++) pixel(a, t, y, x);
}
