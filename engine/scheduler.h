/* Timesteps and solver steps: pure numbers, no tensors, no device. spec wan.md section 4.
 *
 * A solver step is a linear combination of a few latent-sized tensors; hs_solver_step returns the coefficients and the
 * caller (generate.c) lets the backend apply them. All scalars in double.
 */
#ifndef HS_SCHEDULER_H
#define HS_SCHEDULER_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum hs_solver_kind { HS_UNIPC, HS_DPMPP, HS_EULER } hs_solver_kind;
/* A: original UniPC grid. B: diffusers UniPC of 2026. C: original DPM++ grid. D: diffusers FlowMatchEuler (spec 4.2) */
typedef enum hs_sigmas_kind { HS_SIGMAS_A, HS_SIGMAS_B, HS_SIGMAS_C, HS_SIGMAS_D } hs_sigmas_kind;

/* -1 = the solver's own: unipc A, dpm++ C, euler D. */
hs_sigmas_kind hs_sigmas_of(hs_solver_kind solver, int sigmas);

enum { HS_MAX_STEPS = 1000 };

typedef struct hs_sched {
    hs_solver_kind solver;
    hs_sigmas_kind sigmas_kind;
    int steps;
    double shift;
    float sigma[HS_MAX_STEPS + 1]; /* float32 as the references hold them; sigma[steps] = 0 */
    float t[HS_MAX_STEPS];         /* what the model sees: integers for A, B, C; fractional for D */
} hs_sched;

/* steps 1..HS_MAX_STEPS, shift in (0, 100]. */
int hs_sched_init(hs_sched *s, hs_solver_kind solver, hs_sigmas_kind sigmas, int steps, double shift, hs_err *err);

/* The tensors a step reads. The caller keeps X (current sample), V (velocity), M1, M2 (x0 predictions of the previous
 * step and the one before), XL (sample from which the last predictor started). All latent sized, F32. */
enum hs_sched_term { HS_TERM_X, HS_TERM_V, HS_TERM_M1, HS_TERM_M2, HS_TERM_XL, HS_TERM_M, HS_TERM_COUNT };

/* One step as up to three linear combinations, applied in this order:
 *   M  = x0 prediction            = sum m[k] * term k        (always: X - sigma V)
 *   X' = corrected sample         = sum corr[k] * term k     (skipped if !has_corr; M available)
 *   then history: M2 = M1, M1 = M, XL = X'   (rotate pointers, no copies needed)
 *   X  = next sample              = sum pred[k] * term k     (terms after rotation: X = X', M1 = this step's M, M2) */
typedef struct hs_sched_step {
    int has_corr;
    double m[HS_TERM_COUNT], corr[HS_TERM_COUNT], pred[HS_TERM_COUNT];
} hs_sched_step;

/* i in 0..steps-1, called in order; depends only on i, so a resumed run continues exactly. */
void hs_sched_step_at(const hs_sched *s, int i, hs_sched_step *ret);

const char *hs_solver_name(hs_solver_kind k);               /* "unipc", "dpm++", "euler" */
int hs_solver_parse(const char *name, hs_solver_kind *ret); /* 0, or HS_EINVAL */

#ifdef __cplusplus
}
#endif
#endif
