/* PSNR and SSIM. The Gaussian window is separable: columns first, into five sums per pixel (a, b, aa, bb, ab), then
 * rows. In double, because variances come as differences of means of squares. */
#include "quality.h"

#include <math.h>
#include <string.h>

enum { RADIUS = 5, WINDOW = 2 * RADIUS + 1, SUMS = 5 };

static void gauss(double ret[WINDOW]) {
    double sum = 0;
    for (int i = 0; i < WINDOW; i++) sum += ret[i] = exp(-0.5 * (i - RADIUS) * (i - RADIUS) / (1.5 * 1.5));
    for (int i = 0; i < WINDOW; i++) ret[i] /= sum;
}

static double frame_error(const uint8_t *a, const uint8_t *b, int64_t n) {
    int64_t sum = 0; /* at most 65025 each: 1e14 values fit */
    for (int64_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
    return (double)sum;
}

static double psnr(double error, double values) {
    return error > 0 ? fmin(10 * log10(255.0 * 255.0 * values / error), HS_PSNR_IDENTICAL) : HS_PSNR_IDENTICAL;
}

/* One window: means of a and b, of their squares and of their product. */
static double similarity(const double s[SUMS]) {
    const double c1 = 0.01 * 255 * 0.01 * 255, c2 = 0.03 * 255 * 0.03 * 255;
    double aa = s[2] - s[0] * s[0], bb = s[3] - s[1] * s[1], ab = s[4] - s[0] * s[1];
    return (2 * s[0] * s[1] + c1) * (2 * ab + c2) / ((s[0] * s[0] + s[1] * s[1] + c1) * (aa + bb + c2));
}

/* column: [width, SUMS] scratch. Sum of the similarities of all windows of one channel. */
static double channel_similarity(const uint8_t *a, const uint8_t *b, int height, int width, const double g[WINDOW],
                                 double *column) {
    double total = 0;
    for (int y = 0; y + WINDOW <= height; y++) {
        memset(column, 0, (size_t)width * SUMS * sizeof *column);
        for (int k = 0; k < WINDOW; k++) {
            const uint8_t *ra = a + (size_t)(y + k) * (size_t)width * 3, *rb = b + (size_t)(y + k) * (size_t)width * 3;
            for (int x = 0; x < width; x++) {
                double va = ra[3 * x], vb = rb[3 * x], *c = column + x * SUMS;
                c[0] += g[k] * va;
                c[1] += g[k] * vb;
                c[2] += g[k] * va * va;
                c[3] += g[k] * vb * vb;
                c[4] += g[k] * va * vb;
            }
        }
        for (int x = 0; x + WINDOW <= width; x++) {
            double s[SUMS] = {0};
            for (int k = 0; k < WINDOW; k++)
                for (int i = 0; i < SUMS; i++) s[i] += g[k] * column[(x + k) * SUMS + i];
            total += similarity(s);
        }
    }
    return total;
}

int hs_quality_compare(const uint8_t *a, const uint8_t *b, int frames, int height, int width, hs_quality *ret,
                       hs_err *err) {
    if (frames < 1 || height < WINDOW || width < WINDOW)
        return hs_fail(err, HS_EINVAL, "%d frames of %dx%d pixels: SSIM needs at least one frame of %dx%d", frames,
                       width, height, WINDOW, WINDOW);
    int64_t frame = (int64_t)height * width * 3;
    double windows = 3.0 * (height - WINDOW + 1) * (width - WINDOW + 1), g[WINDOW];
    double error = 0, sum_psnr = 0, sum_ssim = 0;
    /* kept per frame, so that the sum does not depend on the number of threads */
    double *ssim = hs_calloc((size_t)frames, sizeof *ssim);
    int failed = !ssim;
    gauss(g);
#pragma omp parallel for schedule(dynamic) reduction(+ : failed)
    for (int f = 0; f < (ssim ? frames : 0); f++) {
        double *column = hs_alloc((size_t)width * SUMS * sizeof *column);
        for (int c = 0; c < 3 && column; c++)
            ssim[f] += channel_similarity(a + f * frame + c, b + f * frame + c, height, width, g, column) / windows;
        failed += !column;
        hs_free(column);
    }
    for (int f = 0; f < frames; f++) {
        double e = frame_error(a + f * frame, b + f * frame, frame);
        error += e;
        sum_psnr += psnr(e, (double)frame);
        sum_ssim += failed ? 0 : ssim[f];
    }
    hs_free(ssim);
    if (failed) return hs_fail(err, HS_ENOMEM, "no memory to compare frames of %dx%d pixels", width, height);
    *ret = (hs_quality){.psnr = sum_psnr / frames,
                        .psnr_clip = psnr(error, (double)frame * frames),
                        .ssim = sum_ssim / frames,
                        .identical = error == 0};
    return 0;
}
