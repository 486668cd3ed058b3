/* Does the drift of Q and K tell how much a mask has changed? Analysis behind mask reuse (spec haste.md 1.3).
 *
 * A head's drift over `lag` steps is the L1 distance of its token means of Q and of K, the change of its mask their
 * overlap (IoU over blocks). Spearman's rank correlation of the two, over all heads, steps and branches of a clip, says
 * how good a signal the drift is: -1 perfect, 0 none. Means are taken after the rotation, as the engine does, and
 * before it.
 */
#ifndef HS_EVAL_DRIFT_H
#define HS_EVAL_DRIFT_H
#include "haste.h"

#include <stdio.h>

enum { HS_DRIFT_LAGS = 3 };
extern const int hs_drift_lag[HS_DRIFT_LAGS]; /* 1, 4, 8 */

typedef struct hs_drift hs_drift;

/* Observations are also written to csv (NULL: not), behind `label` (clip and variant, with the commas). */
int hs_drift_new(const hs_model_info *info, FILE *csv, const char *label, hs_drift **ret, hs_err *err);
void hs_drift_free(hs_drift *d);
/* After every call of the model, in the order of steps; masks must have been predicted in that call. user: hs_drift;
 * means [layers, 2, 2, dim] as hs_policy.ret_means. */
int hs_drift_visit(void *user, hs_session *s, int step, int branch, const float *means, hs_err *err);
/* One head by itself, as visit does with every head: for tests. a, b: [words] bits. */
double hs_drift_overlap(const int32_t *a, const int32_t *b, int64_t words);
/* NAN where there are fewer than three observations or all are equal. */
void hs_drift_ranks(hs_drift *d, double ret_post[HS_DRIFT_LAGS], double ret_pre[HS_DRIFT_LAGS]);

/* Spearman's rank correlation, ties share their mean rank. Needs scratch memory: NAN without. */
double hs_drift_spearman(int n, const double *x, const double *y);

#endif
