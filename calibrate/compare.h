/* How far two profiles of one model are from each other: calibrated on two devices, with other prompts or seeds. */
#ifndef HS_COMPARE_H
#define HS_COMPARE_H
#include "solve.h"

#include <stdio.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Every budget of *a with that of *b whose target is nearest: the share of thresholds that are equal, and of those at
 * most one candidate apart. c (may be NULL): what both cost by the same measurements, so that thresholds that tie can
 * be told from worse ones; of a table that both match (hs_solve_matches). HS_EINVAL if the profiles are not of one
 * model and method, or of other step intervals. */
int hs_compare(FILE *to, const hs_profile *a, const hs_profile *b, const hs_curves *c, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
