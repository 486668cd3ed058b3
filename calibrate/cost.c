/* Least squares through medians: one point per shared threshold, and the full masks at density 1. */
#include "cost.h"

#include <math.h>
#include <stdlib.h>

static int rising(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds and mean density of a configuration's records, which stand together in the table; 0 records: 0. */
static int point_of(const hs_table *t, int candidate, double *scratch, double *ret_density, double *ret_seconds) {
    int n = 0;
    double density = 0;
    for (int64_t i = 0; i < t->n_joints; i++) {
        if (t->joints[i].candidate != candidate) continue;
        density += 1 - t->joints[i].m.sparsity; /* full masks: 1 */
        scratch[n++] = t->joints[i].m.seconds;
    }
    if (!n) return 0;
    qsort(scratch, (size_t)n, sizeof *scratch, rising);
    *ret_density = density / n;
    *ret_seconds = n % 2 ? scratch[n / 2] : 0.5 * (scratch[n / 2 - 1] + scratch[n / 2]);
    return n;
}

int hs_cost_fit(const hs_table *t, hs_cost_model *ret, hs_err *err) {
    double x[HS_PROFILE_MAX_CANDIDATES + 1], y[HS_PROFILE_MAX_CANDIDATES + 1], mx = 0, my = 0, xx = 0, xy = 0, yy = 0;
    double *scratch = hs_alloc((size_t)(t->n_joints + 1) * sizeof *scratch);
    int n = 0;
    if (!scratch) return hs_fail(err, HS_ENOMEM, "no memory for %lld joint records", (long long)t->n_joints);
    for (int k = HS_JOINT_FLOOR; k < t->info.n_candidates; k++)
        if (k != HS_JOINT_CONFIG) n += point_of(t, k, scratch, &x[n], &y[n]) > 0;
    hs_free(scratch);
    if (n < 3)
        return hs_fail(
            err, HS_EINVAL,
            "the table has seconds of %d shared thresholds, a cost model needs 3: solve with -m measures them", n);
    for (int i = 0; i < n; i++) mx += x[i] / n, my += y[i] / n;
    for (int i = 0; i < n; i++) {
        xx += (x[i] - mx) * (x[i] - mx);
        xy += (x[i] - mx) * (y[i] - my);
        yy += (y[i] - my) * (y[i] - my);
    }
    hs_cost_model m = {.dense = xx > 0 ? xy / xx : 0, .fit = xx > 0 && yy > 0 ? xy * xy / (xx * yy) : 0, .points = n};
    m.fixed = my - m.dense * mx;
    if (!(m.dense > 0) || m.fit < 0.8)
        return hs_fail(
            err, HS_EINVAL,
            "seconds do not follow density on this machine (R squared %.2f over %d points, %+.3g s from full "
            "sparsity to none): it was busy, or attention is a small part; choose by --sparsity",
            m.fit, n, m.dense);
    *ret = m;
    return 0;
}

int hs_cost_sparsity(const hs_cost_model *m, double seconds, double *ret, hs_err *err) {
    double sparsity = 1 - (seconds - m->fixed) / m->dense;
    if (!(sparsity >= 0 && sparsity < 1))
        return hs_fail(err, HS_EINVAL,
                       "%g s a step: dense attention takes %.4g s here, and more than %.4g s are left without any",
                       seconds, m->fixed + m->dense, fmax(0, m->fixed));
    *ret = sparsity;
    return 0;
}
