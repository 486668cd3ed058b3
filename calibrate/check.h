/* After solving: what do the chosen thresholds cost with all heads sparse together? The only part of solving that needs
 * the model. Refining goes on from there: measured sums correct the heads' errors, and the problem is solved again. */
#ifndef HS_CHECK_H
#define HS_CHECK_H
#include "measure.h"
#include "solve.h"

#include <stdio.h>
#ifdef __cplusplus
extern "C" {
#endif

/* hs_table_load and hs_curves_make in one; *table and *curves are replaced (and freed) only if both succeed. */
int hs_check_load(int n, const char *const *tables, hs_error_kind kind, hs_table **table, hs_curves **curves,
                  hs_err *err);

typedef struct hs_check_params {
    hs_model *model;
    const hs_request *req;            /* as the table says */
    const hs_measure_params *measure; /* likewise; its table is written, its held-out pool judges */
    hs_pool held_out;                 /* its held-out pool by name */
    int n_tables;
    const char *const *tables;
    const char *profile;   /* saved whenever a joint error is known */
    int random;            /* so many random configurations as well */
    int rounds;            /* of refining; needs held-out prompts */
    hs_solve_params solve; /* the budgets, to solve them again */
    FILE *say;             /* what was found, for people; NULL = nothing */
} hs_check_params;

/* Measures the budgets of *profile, the shared thresholds and the random configurations; fills joint_error. Then up to
 * `rounds` rounds: neighbours of the chosen thresholds are measured, factors fitted (refine.h), budgets solved again
 * and measured; a budget takes its new thresholds if their error on held-out prompts is lower, and when none does it is
 * over. *table and *curves are what they are at the end. */
int hs_check_run(const hs_check_params *p, hs_profile *profile, hs_table **table, hs_curves **curves, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
