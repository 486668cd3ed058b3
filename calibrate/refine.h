/* Corrections of the heads' errors from configurations that were measured with all heads together. Pure.
 *
 * The sum of the heads' own errors leaves out how heads meet. Each head gets a factor c_h, so that sum_h c_h e_h comes
 * near to what configurations cost together. There are fewer configurations than heads, so factors are held near their
 * common value by a ridge penalty, and how hard is decided by leaving out one configuration at a time: if single
 * factors do not predict the one left out clearly better than the common one, they stay equal and nothing changes.
 */
#ifndef HS_REFINE_H
#define HS_REFINE_H
#include "solve.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { HS_REFINE_MIN = 8, HS_REFINE_MAX = 200 }; /* configurations */

typedef struct hs_correction {
    int used;             /* configurations; those at or below the floor say nothing */
    double common;        /* what all errors are multiplied by: measured / predicted */
    double low, high;     /* smallest and largest c_h / common */
    double before, after; /* relative error of the prediction of a configuration that was left out (root mean square):
                             with the common factor alone, with the factors of the heads */
} hs_correction;

/* error [n]: joint errors of n configurations. ret_factor [layers, heads]: c_h. HS_EINVAL for
 * thresholds that were not measured and for fewer than HS_REFINE_MIN usable configurations. */
int hs_refine_fit(const hs_curves *c, int n, const hs_thresholds *config, const double *error, double *ret_factor,
                  hs_correction *ret, hs_err *err);
/* Multiplies what every error has above the floor. */
void hs_refine_apply(hs_curves *c, const double *factor);
/* The i-th random neighbour of thresholds, of as many intervals: every fourth one up or down to the next candidate. */
void hs_refine_near(const hs_curves *c, hs_thresholds t, uint64_t seed, int i, float *ret_top_p);

#ifdef __cplusplus
}
#endif
#endif
