/* What a forward costs in seconds at a given sparsity, on the machine that measured: a line through the measured
 * seconds of the shared thresholds and of full masks. Pure. */
#ifndef HS_COST_H
#define HS_COST_H
#include "table.h"
#ifdef __cplusplus
extern "C" {
#endif

/* seconds of a step (all branches, masks predicted) = fixed + density * dense, density = 1 - mean sparsity */
typedef struct hs_cost_model {
    double fixed, dense;
    double fit; /* R squared over the points: medians, so that single slow calls do not count */
    int points;
} hs_cost_model;

/* HS_EINVAL if there are fewer than 3 points, or seconds do not follow density (fit below 0.8, or no saving). */
int hs_cost_fit(const hs_table *t, hs_cost_model *ret, hs_err *err);
/* The mean sparsity at which a step takes so long. HS_EINVAL outside of 0 to 1; the message gives the range. */
int hs_cost_sparsity(const hs_cost_model *m, double seconds, double *ret, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
