/* Band energies against a direct three-dimensional DFT, and the identities that the errors promise. */
#include "error.h"

#include <complex.h>
#include <criterion/criterion.h>
#include <math.h>

TestSuite(error);

enum { MAX = 4096 };

static void fill(float *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)(hs_hash64(seed + (uint64_t)i) >> 40) / 8388608.0f - 1;
}

/* Cycles per sample of frequency k of n, as numpy.fft.fftfreq has it. */
static double frequency(int k, int n) {
    return (k < (n + 1) / 2 ? k : k - n) / (double)n;
}

static int is_low(int k, int n) {
    return fabs(frequency(k, n)) < 0.25;
}

/* The definition: every coefficient of the transform by its sum, its energy to its band. */
static void direct(int channels, int T, int Y, int X, const float *x, double ret[HS_BAND_COUNT]) {
    const double pi = acos(-1.0);
    for (int k = 0; k < HS_BAND_COUNT; k++) ret[k] = 0;
    for (int c = 0; c < channels; c++)
        for (int kt = 0; kt < T; kt++)
            for (int ky = 0; ky < Y; ky++)
                for (int kx = 0; kx < X; kx++) {
                    double complex sum = 0;
                    for (int t = 0; t < T; t++)
                        for (int i = 0; i < Y; i++)
                            for (int j = 0; j < X; j++)
                                sum +=
                                    (double)x[((c * T + t) * Y + i) * X + j] *
                                    cexp(-2 * I * pi * (kt * t / (double)T + ky * i / (double)Y + kx * j / (double)X));
                    const int high_t = !is_low(kt, T), high_s = !(is_low(ky, Y) && is_low(kx, X));
                    ret[2 * high_t + high_s] += creal(sum * conj(sum)) / (T * Y * X);
                }
}

static const int shapes[][4] = {{1, 1, 1, 1}, {2, 1, 2, 3}, {1, 2, 4, 4}, {2, 3, 5, 6},
                                {1, 4, 7, 8}, {3, 5, 6, 9}, {1, 9, 4, 5}, {1, 8, 10, 3}};
#define EACH_SHAPE(s) for (const int(*s)[4] = shapes; s < shapes + sizeof shapes / sizeof *shapes; s++)

Test(error, bands_are_those_of_the_transform) {
    EACH_SHAPE(s) {
        const int c = (*s)[0], t = (*s)[1], y = (*s)[2], x = (*s)[3];
        float v[MAX];
        double want[HS_BAND_COUNT], is[HS_BAND_COUNT], sum = 0, all = 0;
        hs_bands *b = NULL;
        fill(v, c * t * y * x, 7);
        cr_assert_eq(hs_bands_new(c, t, y, x, &b, NULL), 0);
        direct(c, t, y, x, v, want);
        hs_bands_energy(b, v, is);
        for (int k = 0; k < HS_BAND_COUNT; k++) sum += want[k], all += is[k];
        for (int k = 0; k < HS_BAND_COUNT; k++)
            cr_assert_leq(fabs(is[k] - want[k]), 1e-5 * sum, "%d x %d x %d x %d, band %d: %.9g, by the sum %.9g", c, t,
                          y, x, k, is[k], want[k]);
        cr_assert_leq(fabs(all - sum), 1e-6 * sum);
        hs_bands_free(b);
    }
    cr_assert_eq(hs_alloc_live(), 0);
}

/* One wave in one band: everything else stays (nearly) empty. */
Test(error, a_wave_lands_in_its_band) {
    enum { T = 8, Y = 16, X = 16 };
    static const struct {
        int kt, ky, kx;
        enum hs_band band;
    } wave[] = {{1, 3, 3, HS_BAND_LL}, {0, 0, 0, HS_BAND_LL}, {1, 4, 0, HS_BAND_LH}, {0, 2, 8, HS_BAND_LH},
                {2, 1, 1, HS_BAND_HL}, {4, 0, 3, HS_BAND_HL}, {3, 0, 7, HS_BAND_HH}, {4, 8, 8, HS_BAND_HH}};
    hs_bands *b = NULL;
    float *v = hs_alloc(T * Y * X * sizeof *v);
    cr_assert_eq(hs_bands_new(1, T, Y, X, &b, NULL), 0);
    for (size_t w = 0; w < sizeof wave / sizeof *wave; w++) {
        double e[HS_BAND_COUNT], all = 0;
        for (int i = 0; i < T * Y * X; i++) {
            const int t = i / (Y * X), y = i / X % Y, x = i % X;
            v[i] = cosf((float)(2 * acos(-1.0)) *
                        ((float)(wave[w].kt * t) / T + (float)(wave[w].ky * y) / Y + (float)(wave[w].kx * x) / X));
        }
        hs_bands_energy(b, v, e);
        for (int k = 0; k < HS_BAND_COUNT; k++) all += e[k];
        cr_assert_geq(e[wave[w].band], 0.99999 * all, "wave %zu", w);
    }
    hs_bands_free(b);
    hs_free(v);
}

Test(error, weights_and_identities) {
    enum { C = 2, T = 5, Y = 6, X = 8, N = C * T * Y * X };
    float dense[N], v[N], diff[N];
    double band[HS_BAND_COUNT], squares = 0, off = 0, want = 0, all = 0;
    hs_bands *b = NULL;
    fill(dense, N, 1);
    fill(v, N, 2);
    for (int i = 0; i < N; i++) {
        v[i] = dense[i] + 0.1f * v[i];
        diff[i] = v[i] - dense[i];
        squares += (double)dense[i] * (double)dense[i];
        off += (double)diff[i] * (double)diff[i];
    }
    cr_assert_eq(hs_bands_new(C, T, Y, X, &b, NULL), 0);
    direct(C, T, Y, X, diff, band);
    for (int k = 0; k < HS_BAND_COUNT; k++) {
        want += (double[]){1, 0.5, 0.01, 0.01}[k] * band[k] / squares;
        all += band[k] / squares;
    }
    cr_assert_float_eq(hs_error_bands(b, v, dense) / want, 1, 1e-5);
    cr_assert_float_eq(hs_error_plain(v, dense, N) / (off / squares), 1, 1e-9);
    cr_assert_float_eq(hs_error_plain(v, dense, N) / all, 1, 1e-5); /* Parseval: weights of 1 are the plain error */
    cr_assert_eq(hs_error_plain(dense, dense, N), 0);
    cr_assert_eq(hs_error_bands(b, dense, dense), 0);
    cr_assert_leq(hs_error_bands(b, v, dense), hs_error_plain(v, dense, N));
    float zero[N] = {0}; /* nothing to relate to: large, not infinite */
    cr_assert(isfinite(hs_error_plain(v, zero, N)) && hs_error_plain(v, zero, N) > 1e6);
    v[3] = NAN; /* must be seen, whatever the band */
    cr_assert(isnan(hs_error_plain(v, dense, N)) && isnan(hs_error_bands(b, v, dense)));
    hs_bands_free(b);
}
