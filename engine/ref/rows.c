/* Reference row operations: norms, modulation, rotation, gated GELU, gather, combine, patches, latent frames, checks.
 */
#include "ref/ref.h"
#include <math.h>
#include <string.h>

static double rms(const float *x, int64_t n, double eps) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum / (double)n + eps);
}

void hs_ref_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                 float eps, hs_buf y) {
    (void)dev;
    const float *m = mul.p, *s = add.p;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *xr = (const float *)x.p + r * d;
        float *yr = (float *)y.p + r * d;
        double mean = 0, scale = 0;
        if (kind == HS_NORM_RMS) {
            scale = rms(xr, d, eps);
        } else {
            for (int64_t i = 0; i < d; i++) mean += xr[i];
            mean /= (double)d;
            for (int64_t i = 0; i < d; i++) scale += (xr[i] - mean) * (xr[i] - mean);
            scale = sqrt(scale / (double)d + eps);
        }
        for (int64_t i = 0; i < d; i++) yr[i] = (float)((xr[i] - mean) / scale * m[i] + (s ? s[i] : 0.0));
    }
}

void hs_ref_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                       hs_buf y) {
    (void)dev;
    const float *t = table.p, *add = e.p;
    float *out = y.p;
    for (int r = 0; r < rows; r++)
        for (int64_t i = 0; i < d; i++) {
            const double one = one_plus >> r & 1;
            out[r * d + i] = (float)(one + t[r * d + i] + add[(e_rows == 1 ? 0 : r) * d + i]);
        }
}

/* Pairs (2j, 2j + 1) of each head turned by the angle of their row; angle [D/2, 2] = cos, sin. */
static void rotate(float *x, int64_t d, int head_dim, const float *angle) {
    for (int64_t i = 0; i < d; i += 2) {
        const double c = angle[i % head_dim], s = angle[i % head_dim + 1], a = x[i], b = x[i + 1];
        x[i] = (float)(a * c - b * s);
        x[i + 1] = (float)(a * s + b * c);
    }
}

void hs_ref_qk_norm(hs_device *dev, const hs_qk_norm *a) {
    (void)dev;
    const float *rope = a->rope.p;
    for (int k = 0; k < a->parts; k++) {
        const float *gamma = a->gamma[k].p;
        float *x = (float *)a->x.p + a->col + k * a->d, *mean = a->mean[k].p;
#pragma omp parallel for schedule(static)
        for (int64_t r = 0; r < a->rows; r++) {
            float *xr = x + r * a->ld;
            const double scale = rms(xr, a->d, a->eps);
            for (int64_t i = 0; i < a->d; i++) xr[i] = (float)(xr[i] / scale * gamma[i]);
            if (rope) rotate(xr, a->d, a->head_dim, rope + r * a->head_dim);
        }
        for (int64_t i = 0; mean && i < a->d; i++) {
            double sum = 0;
            for (int64_t r = 0; r < a->rows; r++) sum += x[r * a->ld + i];
            mean[i] = (float)(sum / (double)a->rows);
        }
    }
}

void hs_ref_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y) {
    (void)dev;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float *a = (const float *)ab.p + r * 2 * ff, *b = a + ff;
        float *yr = (float *)y.p + r * ff;
        for (int64_t i = 0; i < ff; i++) {
            const double v = a[i];
            yr[i] = (float)(0.5 * v * (1 + tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))) * b[i]);
        }
    }
}

void hs_ref_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y) {
    (void)dev;
    const int32_t *id = ids.p;
    for (int64_t i = 0; i < n; i++)
        memcpy((float *)y.p + i * d, (const float *)table.p + id[i] * d, (size_t)d * sizeof(float));
}

void hs_ref_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y) {
    (void)dev;
    for (int64_t i = 0; i < y.n; i++) {
        double sum = 0;
        for (int k = 0; k < count; k++) sum += c[k] * ((const float *)x[k].p)[i];
        ((float *)y.p)[i] = (float)sum;
    }
}

/* Both patch layouts are walked alike: pixel (2i + dy, 2j + dx) of channel c and frame t belongs to token (t, i, j). */
void hs_ref_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    (void)dev;
    const float *in = x.p;
    float *out = y.p;
    for (int64_t c = 0; c < C; c++)
        for (int64_t t = 0; t < f; t++)
            for (int64_t Y = 0; Y < 2 * h; Y++)
                for (int64_t X = 0; X < 2 * w; X++) {
                    const int64_t token = (t * h + Y / 2) * w + X / 2, column = c * 4 + Y % 2 * 2 + X % 2;
                    out[token * 4 * C + column] = *in++;
                }
}

void hs_ref_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    (void)dev;
    const float *in = x.p;
    float *out = y.p;
    for (int64_t c = 0; c < C; c++)
        for (int64_t t = 0; t < f; t++)
            for (int64_t Y = 0; Y < 2 * h; Y++)
                for (int64_t X = 0; X < 2 * w; X++) {
                    const int64_t token = (t * h + Y / 2) * w + X / 2, column = (Y % 2 * 2 + X % 2) * C + c;
                    *out++ = in[token * 4 * C + column];
                }
}

void hs_ref_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                          const float *add, hs_buf z) {
    (void)dev;
    const float *in = x.p;
    const int64_t area = (int64_t)Y * X;
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < area; i++)
            for (int64_t c = 0; c < C; c++) {
                const double v = in[(c * f + t0 + t) * area + i];
                ((float *)z.p)[(t * area + i) * C + c] = (float)(v * mul[c] + add[c]);
            }
}

void hs_ref_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y) {
    (void)dev;
    const float *g = gamma.p;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < pixels; i++) {
        const float *xi = (const float *)x.p + i * C;
        float *yi = (float *)y.p + i * C;
        double sum = 0;
        for (int c = 0; c < C; c++) sum += (double)xi[c] * xi[c];
        const double scale = sqrt((double)C) / fmax(sqrt(sum), 1e-12);
        for (int c = 0; c < C; c++) {
            const double v = xi[c] * scale * g[c];
            yi[c] = (float)(silu ? v / (1 + exp(-v)) : v);
        }
    }
}

void hs_ref_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y) {
    (void)dev;
    const float *in = x.p;
    for (int64_t t = 0; t < T; t++)
        for (int64_t i = 0; i < pixels; i++)
            for (int64_t s = 0; s < 2; s++, in += C)
                memcpy((float *)y.p + ((2 * t + s) * pixels + i) * C, in, (size_t)C * sizeof(float));
}

/* In float, as the reference pipeline does it: 0.5 x is exact, so the result is the same bit for bit with and without
 * fused multiply-add, and every backend must give the same byte. */
void hs_ref_to_u8(hs_device *dev, hs_buf x, hs_buf y) {
    const float *in = x.p;
    uint8_t *out = y.p;
    int64_t nan = 0;
    for (int64_t i = 0; i < x.n; i++) {
        const float v = 0.5f * in[i] + 0.5f;
        nan += in[i] != in[i];
        out[i] = v > 0 ? (uint8_t)(255.0f * (v < 1 ? v : 1.0f)) : 0;
    }
    if (nan) hs_device_sticky(dev, HS_ENUMERIC, "to_u8: %lld of %lld values are NaN", (long long)nan, (long long)x.n);
}

int64_t hs_ref_count_nonfinite(hs_device *dev, hs_buf x) {
    (void)dev;
    int64_t n = 0;
    for (int64_t i = 0; i < x.n; i++) n += !isfinite(((const float *)x.p)[i]);
    return n;
}
