/* PSNR and SSIM against scikit-image and FFmpeg's psnr filter (quality_oracle.py). */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quality.h"
#include "quality_golden.h"

/* The same pixels as video() of quality_oracle.py. */
static void make(int frames, int height, int width, int noise, int seed, uint8_t *a, uint8_t *b) {
    int64_t i = 0;
    for (int f = 0; f < frames; f++)
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                for (int c = 0; c < 3; c++, i++) {
                    int ramp = (3 * x + 5 * y + 7 * f + 40 * c) % 512;
                    int v = ramp > 255 ? 511 - ramp : ramp;
                    int n = (int)((hs_hash64((uint64_t)i + ((uint64_t)seed << 32)) >> 32) % (uint64_t)(2 * noise + 1));
                    int w = v + (y % 4 ? n - noise : 0);
                    a[i] = (uint8_t)v;
                    b[i] = (uint8_t)(w < 0 ? 0 : w > 255 ? 255 : w);
                }
}

Test(quality, equals_scikit_image_and_ffmpeg) {
    for (size_t k = 0; k < sizeof golden / sizeof *golden; k++) {
        size_t n = 3 * (size_t)golden[k].frames * (size_t)golden[k].height * (size_t)golden[k].width;
        uint8_t *a = malloc(n), *b = malloc(n);
        hs_quality q;
        hs_err err = {0};
        make(golden[k].frames, golden[k].height, golden[k].width, golden[k].noise, golden[k].seed, a, b);
        cr_assert_eq(hs_quality_compare(a, b, golden[k].frames, golden[k].height, golden[k].width, &q, &err), 0, "%s",
                     err.msg);
        cr_assert_float_eq(q.psnr, golden[k].psnr, 1e-9, "case %zu: PSNR %.12g", k, q.psnr);
        cr_assert_float_eq(q.psnr_clip, golden[k].psnr_clip, 1e-9, "case %zu: PSNR of the clip %.12g", k, q.psnr_clip);
        cr_assert_float_eq(q.ssim, golden[k].ssim, 1e-9, "case %zu: SSIM %.12g", k, q.ssim);
        /* FFmpeg prints two decimals per frame */
        cr_assert_float_eq(q.psnr, golden[k].ffmpeg_frames, 0.0051, "case %zu: PSNR %.12g", k, q.psnr);
        cr_assert_float_eq(q.psnr_clip, golden[k].ffmpeg_clip, 1e-5, "case %zu: PSNR of the clip %.12g", k,
                           q.psnr_clip);
        cr_assert_not(q.identical);
        free(a);
        free(b);
    }
}

Test(quality, identical_frames_count_as_100_dB) {
    enum { H = 16, W = 24, FRAME = 3 * H * W };
    static uint8_t a[2 * FRAME], b[2 * FRAME];
    hs_quality q;
    make(2, H, W, 3, 9, a, b);
    memcpy(b, a, sizeof a);
    cr_assert_eq(hs_quality_compare(a, b, 2, H, W, &q, NULL), 0);
    cr_assert(q.identical && q.psnr == HS_PSNR_IDENTICAL && q.psnr_clip == HS_PSNR_IDENTICAL);
    cr_assert_float_eq(q.ssim, 1, 1e-12);
    b[FRAME + 7] ^= 1; /* one byte of the second frame */
    cr_assert_eq(hs_quality_compare(a, b, 2, H, W, &q, NULL), 0);
    double second = 10 * log10(255.0 * 255.0 * FRAME);
    cr_assert_not(q.identical);
    cr_assert_float_eq(q.psnr, (HS_PSNR_IDENTICAL + second) / 2, 1e-9);
    cr_assert_float_eq(q.psnr_clip, second + 10 * log10(2), 1e-9);
    cr_assert_lt(q.ssim, 1);
}

Test(quality, frames_smaller_than_the_window_are_refused) {
    static uint8_t a[3 * 16 * 16];
    hs_quality q = {.psnr = -1};
    hs_err err = {0};
    cr_assert_eq(hs_quality_compare(a, a, 1, 10, 16, &q, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "11x11") && strstr(err.msg, "16x10"), "%s", err.msg);
    cr_assert_eq(hs_quality_compare(a, a, 0, 16, 16, &q, &err), HS_EINVAL);
    cr_assert_eq(q.psnr, -1);
}
