/* From a table of measurements to a profile: one threshold per head, or per head and step interval, least predicted
 * error at a given mean sparsity.
 *
 * The prediction is the sum over heads of the error each one causes when it alone is sparse (spec haste.md 1.4). Sums
 * and means are over the heads of sparse layers; dense layers (info.policy.dense_layers) keep threshold 1. No model, no
 * device, no clock: seconds of work.
 */
#ifndef HS_SOLVE_H
#define HS_SOLVE_H
#include "choose.h"
#include "table.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum hs_error_kind { HS_ERROR_PLAIN, HS_ERROR_BAND } hs_error_kind;
const char *hs_error_kind_name(hs_error_kind k); /* "plain", "band": of the guided velocity (error.h) */

enum { HS_CURVES_MAX_POINTS = HS_PROFILE_MAX_CANDIDATES + 1 };

/* Error and sparsity of every head over its thresholds: means over prompts, then over step intervals. Thresholds rise;
 * the last one is 1 = dense, with error and sparsity 0. */
typedef struct hs_curves {
    int layers, heads, dense_layers, intervals;
    int points; /* thresholds */
    double top_p[HS_CURVES_MAX_POINTS];
    int candidate[HS_CURVES_MAX_POINTS];        /* in the table; -1 = dense */
    double *error, *sparsity;                   /* [layers, heads, points], as measured; 0 in dense layers */
    double *interval_error, *interval_sparsity; /* [intervals, layers, heads, points] */
    hs_error_kind kind;
    int has_floor;
    double floor;       /* error of full masks against dense attention; 0 without has_floor */
    double below_floor; /* share of the measured points whose error is not above it */
    int fewest, most;   /* probes that a head has at each threshold and interval; they differ until measuring is over */
    int64_t samples, dropped; /* probes used; left out because their head was not measured at every candidate there */
} hs_curves;

/* HS_EINVAL if a head lacks measurements; the message says how many, and that measuring again continues. */
int hs_curves_make(const hs_table *t, hs_error_kind kind, hs_curves **ret, hs_err *err);
void hs_curves_free(hs_curves *c);

/* What an error counts: its excess over the floor. Errors below the floor are noise and tie at 0 with dense attention,
 * so that the sparsest of them is taken and nothing is spent on differences that mean nothing. */
static inline double hs_curves_excess(const hs_curves *c, double error) {
    return error > c->floor ? error - c->floor : 0;
}
static inline int hs_curves_sparse_heads(const hs_curves *c) {
    return (c->layers - c->dense_layers) * c->heads;
}

/* Index of a threshold among the points, or -1. */
int hs_curves_point(const hs_curves *c, float p);
/* Error and sparsity [layers, heads, points] in the i-th of so many intervals: 1 = in their mean. */
const double *hs_curves_error(const hs_curves *c, int intervals, int i);
const double *hs_curves_sparsity(const hs_curves *c, int intervals, int i);

static inline hs_thresholds hs_thresholds_of(const hs_profile_budget *b) {
    return (hs_thresholds){b->intervals, b->top_p};
}
/* Predicted error (sum of excesses, mean over intervals) and mean sparsity. HS_EINVAL if a threshold was not measured
 * or the intervals are not those of the curves. */
int hs_curves_predict(const hs_curves *c, hs_thresholds t, double *ret_error, double *ret_sparsity, hs_err *err);
/* All heads at threshold p. */
void hs_curves_shared(const hs_curves *c, double p, float *ret_top_p);
/* The i-th random configuration of a seed: every head within two thresholds of a level drawn for the whole
 * configuration, so that configurations differ in sparsity as well as in which heads are sparse. */
void hs_curves_random(const hs_curves *c, uint64_t seed, int i, float *ret_top_p);

typedef enum hs_pool_kind { HS_POOL_CALIBRATION, HS_POOL_HELD_OUT, HS_POOL_ANY } hs_pool_kind;
typedef struct hs_pool {
    hs_pool_kind kind;
    int n;            /* of its prompts only these, because a table keeps what earlier runs held out; 0 = all */
    char (*text)[17]; /* [n] as in hs_joint (hs_measure_text_name) */
} hs_pool;

/* Mean joint error of a configuration (candidate >= 0, HS_JOINT_FLOOR, or HS_JOINT_CONFIG with its name), over the
 * records of one pool. A prompt is its text, wherever it stood in the file, and each of its steps counts once. */
typedef struct hs_joint_mean {
    double error, low, high; /* low, high: 95 %, Student's t over prompts; NAN with one prompt */
    double sparsity, seconds;
    int n, prompts; /* n = 0: not measured, all others NAN */
} hs_joint_mean;
hs_joint_mean hs_table_joint(const hs_table *t, hs_error_kind kind, hs_pool pool, int candidate, const char *config);

typedef struct hs_solve_params {
    int n;
    const double *target; /* [n] mean sparsities */
    int per_interval;     /* thresholds of their own in every step interval of the table */
    double gap, seconds;  /* of each choice (choose.h) */
    hs_reuse_policy reuse;
    void *user;
    int (*interrupted)(void *user);
} hs_solve_params;

/* Can the thresholds of the profile be judged by this table? HS_EINVAL names what differs: the model, the method or its
 * parameters; with `whole` also what was generated, dense steps and layers, step intervals, candidates. */
int hs_solve_matches(const hs_profile *p, const hs_table_info *i, int whole, hs_err *err);

/* Every target becomes a budget of the profile, in the order given. HS_EINVAL names the reachable range. */
int hs_solve(const hs_table *t, const hs_curves *c, const hs_solve_params *p, hs_profile **ret, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
