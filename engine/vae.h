/* Causal VAE decoder: latents -> frames, one latent frame at a time with exact temporal history. spec wan.md section 5.
 */
#ifndef HS_VAE_H
#define HS_VAE_H
#include "model.h"
#include "tap.h"

typedef struct hs_vae hs_vae;         /* weights */
typedef struct hs_vae_run hs_vae_run; /* histories and activations for one size */

int hs_vae_load(const hs_config *c, hs_st *st, hs_device *dev, hs_vae **ret, hs_err *err);
void hs_vae_free(hs_vae *v);
/* chunk: 4, or 2 or 1 to make so many of the largest frames at a time: less memory, a little slower, the same frames.
 * room: U8 memory that others may use between videos; HS_NOBUF: the run's own. */
int hs_vae_run_new(hs_vae *v, int latent_h, int latent_w, int chunk, hs_buf room, hs_vae_run **ret, hs_err *err);
void hs_vae_run_free(hs_vae_run *r);
int64_t hs_vae_run_bytes(const hs_config *c, hs_dtype act, int latent_h, int latent_w, int chunk); /* the room */
int64_t hs_vae_weight_bytes(const hs_config *c, hs_dtype act);

/* Starts a video: clears the histories. */
void hs_vae_begin(hs_vae_run *r);
/* Decodes latent frame t of latents [C, f, h, w] (F32, the DiT's normalised latents), in order from 0.
 * *ret_frames = RGB u8 device memory [T, 8h, 8w, 3] owned by r, valid until the next call; *ret_T = 1 for t == 0,
 * else 4. */
void hs_vae_decode(hs_vae_run *r, hs_buf latents, int f, int t, hs_buf *ret_frames, int *ret_T, const hs_tap *tap);
double hs_vae_flops(const hs_config *c, int latent_h, int latent_w, int frames);
#endif
