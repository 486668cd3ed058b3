/* The diffusion transformer: one forward, latents + text + t -> velocity. spec wan.md section 3. */
#ifndef HS_DIT_H
#define HS_DIT_H
#include "attn.h"
#include "model.h"
#include "haste.h"
#include "tap.h"

typedef struct hs_dit hs_dit;         /* weights */
typedef struct hs_dit_run hs_dit_run; /* activations for one size, and the prompt caches of both branches */

enum { HS_ALL_BLOCKS = -1 };
/* `resident` blocks stay on the device, the others are streamed (stream.h), spread evenly. */
int hs_dit_load(const hs_config *c, hs_st *st, hs_device *dev, int resident, hs_dit **ret, hs_err *err);
int hs_dit_resident(const hs_dit *d); /* blocks */
/* Device bytes of the weights: of a block without its text part, of the text part of a block (cross-attention keys and
 * values: used once per prompt), of the rest. */
typedef struct hs_dit_bytes {
    int64_t block, text, rest;
} hs_dit_bytes;
hs_dit_bytes hs_dit_weight_bytes(const hs_config *c, hs_dtype act);
void hs_dit_free(hs_dit *d);

/* f, h, w: token grid (latent frames, latent rows / 2, latent columns / 2). room: U8 memory for what is only needed
 * during a forward, others may use it in between; HS_NOBUF: the run's own. */
int hs_dit_run_new(hs_dit *d, int f, int h, int w, hs_buf room, hs_dit_run **ret, hs_err *err);
void hs_dit_run_free(hs_dit_run *r);
/* Self-attention is dense until told otherwise. */
int hs_dit_run_attention(hs_dit_run *r, const hs_attn_policy *p, hs_err *err);
hs_attn *hs_dit_run_attn(hs_dit_run *r);
/* What run_new allocates beside the room, and the room. */
int64_t hs_dit_run_bytes(const hs_config *c, hs_dtype act, int f, int h, int w, int64_t *ret_room);

/* Text MLP and cross-attention K, V of one prompt, computed once (spec 3.6). rows [n, text_dim] F32, n <= 512; the
 * 512 - n padded rows are one key with a logit bonus, exactly. */
int hs_dit_set_text(hs_dit_run *r, int branch, hs_buf rows, int n, const hs_tap *tap, hs_err *err);

/* Bytes of the stream that such a call keeps for its branch. */
int64_t hs_dit_kept_bytes(const hs_config *c, int64_t tokens);
/* Can a call run layers [first, end) of *policy? Makes the memory to keep a stream in; before hs_dit_forward. */
int hs_dit_run_range(hs_dit_run *r, const hs_policy *policy, hs_err *err);
/* latents, velocity: F32 [C, f, 2h, 2w]; not looked at when first > 0, end > 0. Errors are sticky on the device. */
void hs_dit_forward(hs_dit_run *r, hs_buf latents, float t, const hs_policy *policy, hs_buf velocity,
                    const hs_tap *tap);

/* Floating point operations of one forward of one branch with n text keys. */
double hs_dit_flops(const hs_config *c, int f, int h, int w, int n);
#endif
