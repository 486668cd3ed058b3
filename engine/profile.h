/* The JSON profile "haste-profile": which top-p threshold every head gets on one model, and how that was found.
 *
 * A profile belongs to one model (sha256, layers, heads) and was made for one size and number of steps. It holds
 * several budgets: thresholds for different sparsity targets, each the same all along the run or others in each of its
 * step intervals. docs/formats.md explains every field, data/profile.schema.json is the same for programs. Reading is
 * strict: what a version does not know is refused, not skipped, because a threshold that is silently ignored shows only
 * as a worse video.
 */
#ifndef HS_PROFILE_H
#define HS_PROFILE_H
#include "haste.h"
#ifdef __cplusplus
extern "C" {
#endif

enum {
    HS_PROFILE_VERSION =
        3, /* the newest; 1 lacks step intervals, 1 and 2 sigmas: the oldest that can say it is written */
    HS_PROFILE_MAX_BUDGETS = 32,
    HS_PROFILE_MAX_CANDIDATES = 32,
    HS_PROFILE_MAX_INTERVALS = HS_MAX_INTERVALS,
    HS_PROFILE_MAX_BYTES = 1 << 24, /* 32 budgets of 40 layers x 40 heads are 1 MB */
};

typedef struct hs_profile_budget {
    double target;      /* sparsity asked for: share of token pairs dropped, 0 .. 1 */
    double sparsity;    /* predicted; this and the following: NAN = not known */
    double error;       /* predicted: sum of the heads' measured errors */
    double bound, gap;  /* no choice has less predicted error than bound; gap = (error - bound) / error */
    double joint_error; /* measured with all heads sparse at once, on prompts that calibration did not see */
    int intervals;      /* parts of the run with thresholds of their own; 1 = the same in every step */
    double until[HS_MAX_INTERVALS]; /* share of the steps at which each ends; rises, the last one is 1 */
    float *top_p;                   /* [intervals, layers, heads], each above 0 and at most 1 */
} hs_profile_budget;

typedef struct hs_profile {
    char *path; /* where it was read from, for messages */
    char made_by[64], made_at[32];
    char model[128], sha256[65];
    int layers, heads;
    /* made for */
    int width, height, frames, steps;
    double shift, guidance;
    hs_solver_kind solver;
    int sigmas;            /* hs_sigmas_kind, or -1 = the solver's own */
    hs_attn_policy policy; /* method, its parameters, reuse, dense steps (of `steps`) and layers; no thresholds */
    /* calibration; made by hand: has_calibration = 0 */
    int has_calibration;
    char prompts_sha256[65], table_sha256[65], error_name[64];
    double seed;                                  /* an integer of 0 .. 2^53 */
    int intervals[HS_PROFILE_MAX_INTERVALS][2];   /* first and last step of each */
    double candidates[HS_PROFILE_MAX_CANDIDATES]; /* top-p values that were tried */
    int n_intervals, n_candidates;
    int n_budgets;
    hs_profile_budget *budgets; /* the first one is used when none is asked for */
} hs_profile;

int hs_profile_load(const char *path, hs_profile **ret, hs_err *err);
int hs_profile_parse(const char *json, size_t len, const char *path, hs_profile **ret, hs_err *err);
void hs_profile_free(hs_profile *p);
/* Whole or not at all: written beside the place, then renamed. Refuses what hs_profile_load would refuse. */
int hs_profile_save(const char *path, const hs_profile *p, hs_err *err);
/* An empty profile with room for n budgets of [intervals, layers, heads] zeros, to be filled and saved. The intervals
 * are equal until `until` says otherwise. */
int hs_profile_new(int layers, int heads, int intervals, int n, hs_profile **ret, hs_err *err);

/* Is it a profile of this model? */
int hs_profile_check(const hs_profile *p, const hs_model_info *info, hs_err *err);
/* The index of the budget with this target (within 0.005, the nearest); NAN = the first one. */
int hs_profile_choose(const hs_profile *p, double target, int *ret, hs_err *err);
/* The policy of a budget for a run of so many steps: what the profile says in steps becomes the same share of the run,
 * dense steps rounded up, an interval to the nearest; a step has the thresholds that hold at its middle. Borrows the
 * thresholds of *p. */
int hs_profile_policy(const hs_profile *p, int budget, int steps, hs_attn_policy *ret, hs_err *err);
/* One sentence on what differs between the request and what the profile was made for; "" and 0 if nothing, else 1. */
int hs_profile_differences(const hs_profile *p, const hs_request *r, char *ret, size_t size);

#ifdef __cplusplus
}
#endif
#endif
