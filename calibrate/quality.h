/* How far two videos are apart: PSNR and SSIM of 8-bit RGB frames. Pure; no files, no model.
 *
 * PSNR is in use in two forms: the mean of the frames' PSNRs (psnr, what tables of video papers print) and the PSNR of
 * the whole clip's squared error (psnr_clip, what FFmpeg's psnr filter calls "average" of its "psnr_avg"). An identical
 * frame or clip has no finite PSNR and counts as HS_PSNR_IDENTICAL.
 *
 * SSIM is that of Wang et al. 2004 without downsampling: Gaussian window of sigma 1.5 cut to 11 x 11 pixels, K1 = 0.01,
 * K2 = 0.03, population variances, mean over the windows that lie inside the frame, per channel R, G, B, then over
 * channels and frames. scikit-image says the same with gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
 * data_range=255, channel_axis=2.
 */
#ifndef HS_QUALITY_H
#define HS_QUALITY_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

#define HS_PSNR_IDENTICAL 100.0 /* dB; one step in one of 150 million values is 130 dB, a frame rarely beats 60 */

typedef struct hs_quality {
    double psnr, psnr_clip, ssim;
    int identical; /* every byte of the clip */
} hs_quality;

/* a, b: [frames, height, width, 3]. HS_EINVAL for frames smaller than the window. */
int hs_quality_compare(const uint8_t *a, const uint8_t *b, int frames, int height, int width, hs_quality *ret,
                       hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
