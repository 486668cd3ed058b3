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
    float *diff;    /* [channels, frames, height, width] */
    float *by_t;    /* [low t, height, width]: one channel, low in time */
    float *by_h;    /* [low h, width]: one frame, low over rows */
    float *spatial; /* [frames, low h, low w]: one channel, low in space */
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
        const size_t size = sizeof(float), plane = (size_t)height * (size_t)width;
        b->channels = channels;
        if (make_axis(&b->t, frames, 0) && make_axis(&b->h, height, 0) && make_axis(&b->w, width, 1) &&
            (b->diff = hs_alloc((size_t)channels * (size_t)frames * plane * size)) &&
            (b->by_t = hs_alloc((size_t)b->t.low * plane * size)) &&
            (b->by_h = hs_alloc((size_t)b->h.low * (size_t)width * size)) &&
            (b->spatial = hs_alloc((size_t)frames * (size_t)b->h.low * (size_t)b->w.low * size))) {
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
    hs_free(b);
}

static double squares(const float *x, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
    return s;
}

/* y[m, cols] = a[m, n] x[n, cols] */
static void multiply(int64_t m, int64_t n, int64_t cols, const float *restrict a, const float *restrict x,
                     float *restrict y) {
    memset(y, 0, (size_t)(m * cols) * sizeof *y);
    for (int64_t r = 0; r < m; r++)
        for (int64_t k = 0; k < n; k++) {
            const float v = a[r * n + k];
            for (int64_t c = 0; c < cols; c++) y[r * cols + c] += v * x[k * cols + c];
        }
}

/* One channel, added to ret. */
static void add_channel(hs_bands *b, const float *x, double ret[HS_BAND_COUNT]) {
    const axis *t = &b->t, *h = &b->h, *w = &b->w;
    const int64_t plane = (int64_t)h->n * w->n, low_plane = (int64_t)h->low * w->low;
    for (int f = 0; f < t->n; f++) {
        multiply(h->low, h->n, w->n, h->basis, x + f * plane, b->by_h);
        multiply(h->low, w->n, w->low, b->by_h, w->basis, b->spatial + f * low_plane);
    }
    multiply(t->low, t->n, plane, t->basis, x, b->by_t);
    const double all = squares(x, t->n * plane), low_space = squares(b->spatial, t->n * low_plane),
                 low_time = squares(b->by_t, t->low * plane);
    multiply(t->low, t->n, low_plane, t->basis, b->spatial, b->by_t);
    const double low = squares(b->by_t, t->low * low_plane);
    ret[HS_BAND_LL] += low;
    ret[HS_BAND_LH] += low_time - low;
    ret[HS_BAND_HL] += low_space - low;
    ret[HS_BAND_HH] += all - low_time - low_space + low;
}

void hs_bands_energy(hs_bands *b, const float *x, double ret[HS_BAND_COUNT]) {
    const int64_t channel = (int64_t)b->t.n * b->h.n * b->w.n;
    for (int k = 0; k < HS_BAND_COUNT; k++) ret[k] = 0;
    for (int c = 0; c < b->channels; c++) add_channel(b, x + c * channel, ret);
    for (int k = 0; k < HS_BAND_COUNT; k++)
        if (ret[k] < 0) ret[k] = 0; /* an empty band, rounded */
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
