/* Relative squared errors of velocities.
 *
 * Only the energy in four bands is wanted, not a spectrum, so there is no FFT: the low frequencies of an axis span a
 * subspace of about half its size, with an orthonormal real basis of cosines and sines. What a tensor has in the low
 * band is the squared length of its coordinates in that basis, axis by axis; what it has above is the rest. For
 * 16 x 21 x 60 x 104 that is 150 million multiply-adds, in loops over contiguous memory. */
#include "error.h"

#include <math.h>
#include <string.h>

const double hs_band_weight[HS_BAND_COUNT] = {1, 0.5, 0.01, 0.01};
static const double EPSILON = 1e-8; /* a dense velocity of zero must not divide */

/* Orthonormal basis of the frequencies k/n < 1/4 of an axis: low rows of n. */
typedef struct axis {
    int n, low;
    float *basis; /* [low, n], of the width: [n, low] */
} axis;

struct hs_bands {
    int channels;
    axis t, h, w;
    float *diff; /* [channels, frames, height, width] */
    /* scratch of every channel: they are independent */
    float *by_t;    /* [low t, height, width]: low in time */
    float *by_h;    /* [low h, width]: one frame, low over rows */
    float *spatial; /* [frames, low h, low w]: low in space */
    double *energy; /* [HS_BAND_COUNT] */
};

static int make_axis(axis *a, int n, int transposed) {
    const double pi = acos(-1.0);
    a->n = n;
    a->low = 1;
    while (4 * ((a->low + 1) / 2) < n) a->low += 2; /* cosine and sine of the next frequency */
    if (!(a->basis = hs_alloc((size_t)a->low * (size_t)n * sizeof *a->basis))) return 0;
    for (int r = 0; r < a->low; r++)
        for (int i = 0; i < n; i++) {
            const double angle = 2 * pi * ((r + 1) / 2) * i / n;
            const double v = !r ? sqrt(1.0 / n) : sqrt(2.0 / n) * (r % 2 ? cos(angle) : sin(angle));
            a->basis[transposed ? i * a->low + r : r * n + i] = (float)v;
        }
    return 1;
}

int hs_bands_new(int channels, int frames, int height, int width, hs_bands **ret, hs_err *err) {
    hs_bands *b = hs_calloc(1, sizeof *b);
    if (b) {
        const size_t all = (size_t)channels * sizeof(float), plane = (size_t)height * (size_t)width;
        b->channels = channels;
        if (make_axis(&b->t, frames, 0) && make_axis(&b->h, height, 0) && make_axis(&b->w, width, 1) &&
            (b->diff = hs_alloc(all * (size_t)frames * plane)) &&
            (b->by_t = hs_alloc(all * (size_t)b->t.low * plane)) &&
            (b->by_h = hs_alloc(all * (size_t)b->h.low * (size_t)width)) &&
            (b->spatial = hs_alloc(all * (size_t)frames * (size_t)b->h.low * (size_t)b->w.low)) &&
            (b->energy = hs_alloc((size_t)channels * HS_BAND_COUNT * sizeof *b->energy))) {
            *ret = b;
            return 0;
        }
    }
    hs_bands_free(b);
    return hs_fail(err, HS_ENOMEM, "no memory for the bands of %d x %d x %d x %d latents", channels, frames, height,
                   width);
}

void hs_bands_free(hs_bands *b) {
    if (!b) return;
    hs_free(b->t.basis);
    hs_free(b->h.basis);
    hs_free(b->w.basis);
    hs_free(b->diff);
    hs_free(b->by_t);
    hs_free(b->by_h);
    hs_free(b->spatial);
    hs_free(b->energy);
    hs_free(b);
}

static double squares(const float *x, int64_t n) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
    return s;
}

/* y[m, cols] = a[m, n] x[n, cols], four rows of x at a time so that y is seldom written */
static void multiply(int64_t m, int64_t n, int64_t cols, const float *restrict a, const float *restrict x,
                     float *restrict y) {
    memset(y, 0, (size_t)(m * cols) * sizeof *y);
    for (int64_t r = 0; r < m; r++) {
        const float *v = a + r * n, *in = x;
        float *restrict out = y + r * cols;
        int64_t k = 0;
        for (; k + 4 <= n; k += 4, in += 4 * cols) {
            const float *x1 = in + cols, *x2 = x1 + cols, *x3 = x2 + cols;
#pragma omp simd
            for (int64_t c = 0; c < cols; c++)
                out[c] += v[k] * in[c] + v[k + 1] * x1[c] + v[k + 2] * x2[c] + v[k + 3] * x3[c];
        }
        for (; k < n; k++, in += cols) {
#pragma omp simd
            for (int64_t c = 0; c < cols; c++) out[c] += v[k] * in[c];
        }
    }
}

/* x: all channels */
static void measure_channel(const hs_bands *b, int channel, const float *x) {
    const axis *t = &b->t, *h = &b->h, *w = &b->w;
    const int64_t plane = (int64_t)h->n * w->n, low_plane = (int64_t)h->low * w->low;
    const float *in = x + channel * t->n * plane;
    float *by_t = b->by_t + channel * t->low * plane, *by_h = b->by_h + (int64_t)channel * h->low * w->n,
          *spatial = b->spatial + channel * t->n * low_plane;
    for (int f = 0; f < t->n; f++) {
        multiply(h->low, h->n, w->n, h->basis, in + f * plane, by_h);
        multiply(h->low, w->n, w->low, by_h, w->basis, spatial + f * low_plane);
    }
    multiply(t->low, t->n, plane, t->basis, in, by_t);
    const double all = squares(in, t->n * plane), low_space = squares(spatial, t->n * low_plane),
                 low_time = squares(by_t, t->low * plane);
    multiply(t->low, t->n, low_plane, t->basis, spatial, by_t);
    const double low = squares(by_t, t->low * low_plane);
    double *ret = b->energy + channel * HS_BAND_COUNT;
    ret[HS_BAND_LL] = low;
    ret[HS_BAND_LH] = low_time - low;
    ret[HS_BAND_HL] = low_space - low;
    ret[HS_BAND_HH] = all - low_time - low_space + low;
}

void hs_bands_energy(hs_bands *b, const float *x, double ret[HS_BAND_COUNT]) {
#pragma omp parallel for schedule(static)
    for (int c = 0; c < b->channels; c++) measure_channel(b, c, x);
    for (int k = 0; k < HS_BAND_COUNT; k++) {
        ret[k] = 0;
        for (int c = 0; c < b->channels; c++) ret[k] += b->energy[c * HS_BAND_COUNT + k];
        if (ret[k] < 0) ret[k] = 0; /* an empty band, rounded */
    }
}

double hs_error_plain(const float *v, const float *dense, int64_t n) {
    double e = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)v[i] - (double)dense[i];
        e += d * d;
    }
    return e / (squares(dense, n) + EPSILON);
}

double hs_error_bands(hs_bands *b, const float *v, const float *dense) {
    const int64_t n = (int64_t)b->channels * b->t.n * b->h.n * b->w.n;
    double energy[HS_BAND_COUNT], e = 0;
    for (int64_t i = 0; i < n; i++) b->diff[i] = v[i] - dense[i];
    hs_bands_energy(b, b->diff, energy);
    for (int k = 0; k < HS_BAND_COUNT; k++) e += hs_band_weight[k] * energy[k];
    return e / (squares(dense, n) + EPSILON);
}
