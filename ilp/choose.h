/* One option per group, least total cost, at least so much total gain: the multiple-choice knapsack problem
 *
 *     min sum cost[g, k] x[g, k]   s.t.   sum_k x[g, k] = 1 for every g,   sum gain[g, k] x[g, k] >= least_gain
 *
 * with binary x, solved by GLPK's branch and cut. The answer comes with its proof: no choice costs less than `bound`.
 * Knows nothing of what groups and options are. GLPK stays inside: it prints nothing and cannot end the process. One
 * call at a time per thread; GLPK's per-thread state is gone when it returns.
 */
#ifndef HS_CHOOSE_H
#define HS_CHOOSE_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_choose_problem {
    int groups;
    const int *options; /* [groups] how many options each group has, at least 1 */
    const double *cost; /* [sum of options] >= 0 */
    const double *gain; /* same; any sign */
    double least_gain;  /* counts as reached when at most 1e-9 of the reachable range is missing */
    const int *start;   /* [groups] a choice that is known already, or NULL; the answer never costs more than it */
    double gap;         /* stop when (cost - bound) / cost is at most this; 0 = the very best */
    double seconds;     /* limit, 0 = none; a choice is returned in any case */
    void *user;
    int (*interrupted)(void *user); /* may be NULL; != 0 gives HS_EINTR */
} hs_choose_problem;

typedef struct hs_choose_result {
    double cost, gain, bound, gap; /* gap: (cost - bound) / cost, 0 if cost is 0 */
    int proven;                    /* gap is as small as was asked for */
    int columns;                   /* binary variables that the search had left to decide */
    int64_t nodes;                 /* of the search tree that were looked at */
} hs_choose_result;

/* What least_gain can buy: up to ret_low nothing has to be given up (the gain of the cheapest options), above ret_high
 * there is no choice. HS_EINVAL for numbers that are no problem (counts, NaN, negative costs). */
int hs_choose_range(const hs_choose_problem *p, double *ret_low, double *ret_high, hs_err *err);
/* ret_pick [groups]: the option of each group; the first one among equals. HS_EINVAL if least_gain cannot be reached;
 * the message gives the range.
 */
int hs_choose(const hs_choose_problem *p, int *ret_pick, hs_choose_result *ret, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
