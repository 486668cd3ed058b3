/* Measuring one clip: the dense run that everything is compared with, then any number of variants from the same noise.
 *
 * A bench holds what stays from clip to clip: models (one per precision), sessions, the frames and the dense trajectory
 * of the clip in work. Host memory: two videos of u8 frames, and for velocity errors two latents per step.
 */
#ifndef HS_EVAL_CLIP_H
#define HS_EVAL_CLIP_H
#include "eval_options.h"
#include "eval_table.h"
#include "haste.h"
#include "run_attn.h"

/* A variant that is ready to run. */
typedef struct hs_eval_policy {
    const char *name, *precision; /* borrowed; precision NULL = that of the reference */
    hs_attn_source source;        /* owns the profile */
    hs_attn_policy policy;
    char what[640]; /* in words */
    int runs;       /* in this process: the first one is cold */
} hs_eval_policy;

typedef struct hs_eval_hooks {
    void *user;
    void (*step)(void *user); /* after every step of every pass: hs_request.steps times a pass */
    int (*interrupted)(void *user);
} hs_eval_hooks;

typedef struct hs_eval_bench hs_eval_bench;

/* params and req are copied; what they borrow must outlive the bench. The model is opened, weights are loaded later. */
int hs_eval_bench_new(const hs_model_params *params, const hs_eval_hooks *hooks, hs_eval_bench **ret, hs_err *err);
void hs_eval_bench_free(hs_eval_bench *b);
hs_model *hs_eval_bench_model(hs_eval_bench *b); /* of the reference; until policies are made */
/* Numbers and names of the model; without its negative prompt. */
const hs_model_info *hs_eval_bench_info(const hs_eval_bench *b);

/* The settings that all clips share; prompt and seed are filled in later. Checks that memory suffices. */
int hs_eval_bench_settings(hs_eval_bench *b, const hs_request *req, hs_err *err);
/* A policy from what was said; refuses what the model or the device cannot do. */
int hs_eval_policy_make(hs_eval_bench *b, const hs_eval_variant *v, hs_eval_policy *ret, hs_err *err);
void hs_eval_policy_done(hs_eval_policy *p);
/* What a run of any of the policies made so far, which must be alive, needs on the device of the reference. */
int hs_eval_bench_plan(hs_eval_bench *b, hs_plan *ret, hs_err *err);

/* The dense run. record: keep the trajectory, for velocity errors and drift. Fills values, warm, identical, device. */
int hs_eval_clip_dense(hs_eval_bench *b, const char *prompt, uint64_t seed, int record, hs_eval_result *ret,
                       hs_err *err);
/* A variant of the same clip. velocity: measure the velocity error too; the dense run must have been recorded. */
int hs_eval_clip_variant(hs_eval_bench *b, hs_eval_policy *p, int velocity, hs_eval_result *ret, hs_err *err);
/* Goes along the recorded dense trajectory with the variant's masks, predicted anew in every call, and shows every call
 * of the model to visit: means as hs_policy.ret_means. */
typedef int (*hs_eval_visit)(void *user, hs_session *s, int step, int branch, const float *means, hs_err *err);
int hs_eval_clip_walk(hs_eval_bench *b, const hs_eval_policy *p, hs_eval_visit visit, void *user, hs_err *err);
/* Frames [frames, height, width, 3] of the dense run (0) and of the last variant (1). */
const uint8_t *hs_eval_clip_frames(const hs_eval_bench *b, int which);

#endif
