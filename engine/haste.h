/* HASTE: Wan2.1-class text-to-video generation. The public boundary; callers never see tensors of the model.
 *
 *     hs_model *model;  hs_session *session;  hs_err err;
 *     hs_model_open(&(hs_model_params){.dir = "data/demo", .device = "auto"}, &model, &err);
 *     hs_request req = hs_request_default(model);
 *     req.prompt = "a red circle moves to the right on a white background";
 *     hs_session_new(model, &req, &session, &err);
 *     hs_generate(session, &req, sink, NULL, &err);                // sink: video.h
 *     hs_session_free(session);  hs_model_free(model);
 *
 * hs_model:   files, configuration and weights; immutable after opening except that parts are loaded when first needed
 *             and released when no longer needed (the text encoder leaves before the transformer comes).
 * hs_session: everything one video in flight needs: latents, activations, caches, random state. Sized when made; the
 *             step loop allocates nothing. One session at a time uses a model's device.
 * Functions return 0 or a negative HS_E* code (base.h). Library code never prints or exits.
 */
#ifndef HS_HASTE_H
#define HS_HASTE_H
#include "base.h"
#include "policy.h"
#include "scheduler.h"
#include "video.h"
#ifdef __cplusplus
extern "C" {
#endif

#define HS_VERSION "0.1.0"

typedef struct hs_model hs_model;
typedef struct hs_session hs_session;

/* ---- model ------------------------------------------------------------------------------------------------------ */
typedef struct hs_model_params {
    const char *dir; /* model folder in any layout (layout.h), or NULL if the first three parts are named: */
    const char *transformer, *text_encoder, *vae, *tokenizer; /* files or folders instead of the folder's; or NULL */
    const char *random;    /* instead of all of these: "wan2.1-1.3b", "wan2.1-14b" or a folder with configs */
    const char *device;    /* "auto", "cpu", "ref", "cuda", "cuda:N" */
    const char *precision; /* "auto", "fp32", "bf16" */
    int threads;           /* cpu; 0 = all */
    int64_t max_vram;      /* bytes of device memory to live with; 0 = what is free. The driver's own is not counted */
    int headers_only;      /* read configs and headers, check names and shapes, load no weights (--dry-run) */
} hs_model_params;

typedef struct hs_model_info {
    int layers, heads, head_dim, dim, latent_channels;
    int stride_t, stride_s;                /* pixels per latent: 4 in time, 8 in space; patches double the latter */
    int width, height, frames, fps, steps; /* native defaults (haste.json, else the family's) */
    double guidance, shift;
    hs_solver_kind solver;
    const char *negative_prompt;              /* default; owned by the model */
    int64_t bytes_text, bytes_dit, bytes_vae; /* tensor bytes on disk */
    char name[128];                           /* of the folder or transformer; for people */
    char device[160];                         /* what computes */
    char precision[8];                        /* "fp32", "bf16", "fp16": of activations */
    char sha256[65];        /* profile identity: of the transformer's config and weights index/header in a Diffusers
                             * folder; in other layouts the same as: */
    char shapes_sha256[65]; /* of the transformer's tensor names and shapes, equal in every layout */
} hs_model_info;

int hs_model_open(const hs_model_params *p, hs_model **ret, hs_err *err);
void hs_model_free(hs_model *m);
const hs_model_info *hs_model_get_info(const hs_model *m);

/* ---- request: one video; variants are data ------------------------------------------------------------------------
 */
typedef struct hs_request {
    const char *prompt, *negative; /* UTF-8; negative NULL = the model's default */
    int width, height, frames;     /* pixels; multiples of 16, frames = 4k + 1 */
    int fps, steps;
    hs_solver_kind solver;
    int sigmas;             /* hs_sigmas_kind, or -1 = the solver's default (unipc A, dpm++ C, euler D) */
    double guidance, shift; /* guidance <= 1: one branch only */
    uint64_t seed;
    const float *noise;       /* [C, f, height/8, width/8] instead of the seed, or NULL */
    const char *save_latents; /* path, written before decoding; NULL = none */
    /* The state of the run goes to `checkpoint` after every checkpoint_every-th step, after the last one and when it is
     * interrupted; NULL = nowhere. A run with `resume` goes on from there, to the bit. */
    const char *checkpoint;
    int checkpoint_every; /* 0 = HS_CHECKPOINT_EVERY */
    const struct hs_checkpoint *resume;
    hs_attn_policy attention; /* dense by default; what it borrows must outlive the session */
    /* Memory is planned for the largest of `attention` and these, which hs_session_attention may bring; with
     * layer_ranges for calls that stop between layers too (hs_policy.end). */
    const hs_attn_policy *later;
    int n_later, layer_ranges;
    int decode_only; /* for hs_decode alone: no memory is planned, nor taken, for text, transformer and solver */
} hs_request;

enum { HS_CHECKPOINT_EVERY = 5 };

hs_request hs_request_default(const hs_model *m);
/* Everything that can be refused before work starts: sizes, ranges, memory. ret_plan (may be NULL): the plan. */
typedef struct hs_plan {
    int64_t tokens, latent_frames, latent_h, latent_w;
    /* device bytes per purpose; weights are what stays on the device */
    int64_t text_bytes, dit_bytes, vae_bytes;
    int64_t stream_bytes;            /* slots that streamed weights come to */
    int64_t act_bytes, mask_bytes;   /* of the transformer: activations, what sparse attention remembers */
    int64_t vae_act_bytes;           /* of the VAE */
    int64_t room_bytes;              /* the memory that both of these share; act_bytes is what lies beside it */
    int64_t latent_bytes, own_bytes; /* latents, solver and text rows; scratch and workspace of the device */
    int64_t host_bytes;              /* host memory for streamed weights */
    int64_t peak_bytes, limit_bytes; /* highest stage against what there is: the device's free memory, or --max-vram */
    int limited;                     /* by --max-vram */
    int text_streamed;               /* the text encoder's layers are streamed */
    int blocks, resident;            /* of the transformer: all, those that stay on the device */
    int vae_chunk;                   /* largest frames at a time: 4, 2 or 1 */
    int vae_tiled;                   /* in tiles of 256 x 256: other frames than whole ones, by a little */
    double flops_text, flops_step,
        flops_vae;  /* floating point operations: per run, per step with both branches, decode */
    double seconds; /* rough estimate for the whole video, or what a resumed run has left of it; 0 = unknown */
} hs_plan;
int hs_request_fit(hs_model *m, const hs_request *r, hs_plan *ret_plan, hs_err *err); /* the same without time */
int hs_request_check(hs_model *m, const hs_request *r, hs_plan *ret_plan, hs_err *err);

/* ---- session ------------------------------------------------------------------------------------------------------
 */
/* Made for the sizes, steps and solver of *r; prompts, seeds and guidance may change between videos. */
int hs_session_new(hs_model *m, const hs_request *r, hs_session **ret, hs_err *err);
void hs_session_free(hs_session *s);

/* Where a call stands in a trajectory, and what attention does there. */
typedef struct hs_policy {
    int step, steps;
    int branch; /* 0 = cond, 1 = uncond: caches are kept per branch */
    /* The rest is for calibration; zero while generating.
     * top_p: [layers, heads] instead of the session's thresholds. Such a call reuses no mask of an earlier step and
     * starts its clusters anew, so nothing before it has an influence; heads of threshold 1 are dense and cost no
     * prediction. It overwrites masks: hs_session_begin before generating with the session's thresholds again. */
    const float *top_p;
    int full_masks;  /* with top_p: masks of the heads below 1 keep everything (what the masked kernel itself costs) */
    int keep_scores; /* with top_p: one layer is sparse and its input is that of this branch's last call: only the
                      * selection is done again */
    /* Only layers [first, end); end 0 = all of them. A call that ends early keeps the residual stream that would enter
     * layer `end` and has no velocity; a call with first > 0 starts from the stream kept for that layer, as often as
     * wanted. */
    int first, end;
    /* Analysis: token means of q and k of every layer that runs, host memory [layers, 2, 2, dim]: before and after the
     * rotation, q and k. Slow. */
    float *ret_means;
} hs_policy;

enum { HS_BRANCH_COND, HS_BRANCH_UNCOND, HS_BRANCH_COUNT };

/* Encodes a prompt into the session's text slot of that branch; released text encoders are loaded again.
 * ret_tokens / ret_total (may be NULL): ids used, ids the whole prompt would need. */
int hs_session_set_text(hs_session *s, int branch, const char *prompt, int *ret_tokens, int *ret_total, hs_err *err);

/* Forgets masks and anchors as at the start of a video; text and transformer are loaded and handed over, so that a
 * caller can go through steps by hs_denoise with latents of its own. */
int hs_session_begin(hs_session *s, hs_err *err);
/* Another variant of attention for the same sizes, without loading the model again. On failure the old one stays. */
int hs_session_attention(hs_session *s, const hs_attn_policy *p, hs_err *err);
/* The timestep of a step of the session's schedule. */
float hs_session_timestep(const hs_session *s, int step);

/* The one model call: velocity of `branch` for latents [C, f, h, w] at timestep t. latents and ret_velocity are host
 * memory, or NULL = the session's own device latents / velocity slot of that branch (no copies; the step loop's way).
 */
int hs_denoise(hs_session *s, const float *latents, float t, const hs_policy *policy, float *ret_velocity, hs_err *err);

typedef enum hs_stage {
    HS_STAGE_LOAD,
    HS_STAGE_TEXT,
    HS_STAGE_DENOISE,
    HS_STAGE_DECODE,
    HS_STAGE_ENCODE,
    HS_STAGE_COUNT
} hs_stage;

typedef struct hs_progress {
    hs_stage stage;
    int done, total; /* steps or frames of this stage */
    double seconds;  /* since the stage began */
    int first;       /* done before: the steps of the run that this one resumes */
} hs_progress;

typedef struct hs_run_hooks {
    void *user;
    void (*progress)(void *user, const hs_progress *p);
    int (*interrupted)(void *user); /* != 0: stop at the next safe point with HS_EINTR */
    /* After each step, for every branch and layer: what attention did, [heads] each. reused is an hs_head_call. Must
     * not allocate. */
    void (*layer)(void *user, int step, int branch, int layer, int heads, const float *density, const float *drift,
                  const uint8_t *reused);
    /* Once the velocities of a step are known: the latents [C, f, h, w] that entered it and the velocity of each
     * branch, uncond NULL without guidance; host memory, valid during the call. Must not allocate by hs_alloc. */
    void (*step)(void *user, int step, float t, const float *latents, const float *const velocity[HS_BRANCH_COUNT]);
} hs_run_hooks;

/* What attention did in the last hs_denoise of this branch: as the layer hook, [heads] each. */
int hs_session_layer_stats(hs_session *s, int branch, int layer, float *ret_density, float *ret_drift,
                           uint8_t *ret_call, hs_err *err);

/* Analysis: the mask that the last hs_denoise of this branch used in this layer, until the next call. */
typedef struct hs_mask_view {
    int heads, rows, cols, words;
    int block;            /* tokens per row and column; 0 = clusters: masks of different steps cannot be compared */
    const int32_t *bits;  /* [heads, rows, words], bit c % 32 of word c / 32 = column c is kept */
    const uint8_t *dense; /* [heads]: attends to everything, bits mean nothing */
} hs_mask_view;
/* HS_EINVAL if that call was dense there. */
int hs_session_mask(hs_session *s, int branch, int layer, hs_mask_view *ret, hs_err *err);

/* What one head did in one call: its mask was predicted, or reused, or it needed none (dense step or layer). */
enum hs_head_call { HS_HEAD_PREDICTED, HS_HEAD_REUSED, HS_HEAD_DENSE };

typedef struct hs_run_stats {
    double seconds[HS_STAGE_COUNT], total;
    double step_seconds[HS_MAX_STEPS];
    int steps, frames_written, tokens_cond, tokens_uncond, truncated;
    int first_step;      /* where a resumed run went on; the figures below are of the steps since then */
    int checkpoint_step; /* steps that the last checkpoint of this run holds; 0 = none was written */
    int flat_frames;     /* frames of one colour */
    int64_t peak_host, peak_device;
    int64_t stage_peak[HS_STAGE_COUNT];     /* of device memory; encoding needs none */
    double density, reuse_rate;             /* 1 and 0 while dense; reuse: share of the sparse calls of heads */
    double seconds_predict, seconds_attend; /* of self-attention, parts of the denoising stage; 0 = not measured */
} hs_run_stats;

/* Prompt -> video. sink may be NULL (latents only). After HS_EINTR or a failed sink the latents are kept in the session
 * and, if save_latents was given and denoising was complete, on disk. */
int hs_generate(hs_session *s, const hs_request *r, hs_sink *sink, const hs_run_hooks *hooks, hs_run_stats *ret_stats,
                hs_err *err);

/* Final (or last reached) latents of the session, [C, f, h, w], to host memory. */
int hs_session_latents(hs_session *s, float *ret, hs_err *err);
/* Decodes given latents [C, f, h, w] into the sink. */
int hs_decode(hs_session *s, const float *latents, hs_sink *sink, const hs_run_hooks *hooks, hs_run_stats *stats,
              hs_err *err);

/* Latents as a safetensors file with one F32 tensor `latents` [C, f, h, w]. Load checks the shape. */
int hs_latents_save(const char *path, const float *x, const int64_t shape[4], const char *const *meta, hs_err *err);
int hs_latents_load(const char *path, const int64_t shape[4], float *ret, hs_err *err);
/* Shape of the latents in a file, so that a video can be decoded without repeating its sizes. */
int hs_latents_shape(const char *path, int64_t ret_shape[4], hs_err *err);

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */
/* A file that hs_generate wrote, opened: the settings of its run, latents, solver history, text rows, and what
 * attention remembers. */
typedef struct hs_checkpoint hs_checkpoint;
int hs_checkpoint_open(const char *path, hs_checkpoint **ret, hs_err *err);
void hs_checkpoint_close(hs_checkpoint *c);
int hs_checkpoint_steps(const hs_checkpoint *c, int *ret_total); /* steps done */
const char *hs_checkpoint_prompt(const hs_checkpoint *c);
/* The settings of the run into *r, which borrows from c; the rest of *r stays. */
int hs_checkpoint_request(const hs_checkpoint *c, const hs_model *m, hs_request *r, hs_err *err);
/* Is *r on m that run? If not, the message names the first difference. */
int hs_checkpoint_match(const hs_checkpoint *c, const hs_model *m, const hs_request *r, hs_err *err);

/* ---- tests: named intermediate values ------------------------------------------------------------------------------
 */
/* Called with host copies of intermediate tensors (slow; parity tests only). NULL switches it off. */
typedef void (*hs_tap_fn)(void *user, const char *name, const float *x, int ndim, const int64_t *shape);
void hs_session_tap(hs_session *s, hs_tap_fn fn, void *user);

#ifdef __cplusplus
}
#endif
#endif
