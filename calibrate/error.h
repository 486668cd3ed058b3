/* How far two velocities are apart: relative squared error, plain and weighted by frequency band. Pure.
 *
 * Bands (spec haste.md 1.4; edges: section 6, row 11): LL, LH, HL, HH, first letter temporal, second spatial. A
 * temporal frequency is low below 1/4 cycle per latent frame, a spatial one where both axes are below 1/4 cycle per
 * latent pixel. Every channel on its own, summed. With all weights 1 the band-weighted error is the plain one
 * (Parseval).
 */
#ifndef HS_ERROR_H
#define HS_ERROR_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

enum hs_band { HS_BAND_LL, HS_BAND_LH, HS_BAND_HL, HS_BAND_HH, HS_BAND_COUNT };
extern const double hs_band_weight[HS_BAND_COUNT]; /* the paper's */

/* |v - dense|^2 / (|dense|^2 + 1e-8), n elements. */
double hs_error_plain(const float *v, const float *dense, int64_t n);

/* Tables and scratch memory for latents [channels, frames, height, width]. */
typedef struct hs_bands hs_bands;
int hs_bands_new(int channels, int frames, int height, int width, hs_bands **ret, hs_err *err);
void hs_bands_free(hs_bands *b);
/* Sums of squares of x [channels, frames, height, width] per band; their sum is |x|^2. */
void hs_bands_energy(hs_bands *b, const float *x, double ret[HS_BAND_COUNT]);
/* sum over bands of weight * energy(v - dense) / (|dense|^2 + 1e-8). */
double hs_error_bands(hs_bands *b, const float *v, const float *dense);

#ifdef __cplusplus
}
#endif
#endif
