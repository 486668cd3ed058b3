/* Two profiles side by side, as lines of a table. */
#include "compare.h"

#include <math.h>
#include <string.h>

static const hs_profile_budget *nearest(const hs_profile *p, double target) {
    const hs_profile_budget *best = p->budgets;
    for (int i = 1; i < p->n_budgets; i++)
        if (fabs(p->budgets[i].target - target) < fabs(best->target - target)) best = &p->budgets[i];
    return best;
}

static int comparable(const hs_profile *a, const hs_profile *b, hs_err *err) {
    if (a->layers != b->layers || a->heads != b->heads || strcmp(a->sha256, b->sha256))
        return hs_fail(err, HS_EINVAL,
                       "%s is for %s (%d x %d heads, sha256 %.16s...), %s for %s (%d x %d heads, sha256 %.16s...): "
                       "profiles of two models have nothing to compare",
                       a->path, a->model, a->layers, a->heads, a->sha256, b->path, b->model, b->layers, b->heads,
                       b->sha256);
    if (a->policy.method != b->policy.method)
        return hs_fail(err, HS_EINVAL, "%s is for %s, %s for %s: thresholds of two methods cannot be compared", a->path,
                       hs_method_name(a->policy.method), b->path, hs_method_name(b->policy.method));
    for (int i = 0; i < a->n_budgets; i++) {
        const hs_profile_budget *x = &a->budgets[i], *y = nearest(b, x->target);
        int n = x->intervals, m = y->intervals;
        if (n != m && n != 1 && m != 1)
            return hs_fail(err, HS_EINVAL, "budget %.4g of %s has %d step intervals, budget %.4g of %s has %d",
                           x->target, a->path, n, y->target, b->path, m);
    }
    return 0;
}

/* No threshold that was tried lies between the two. */
static int are_next(const hs_profile *p, float x, float y) {
    for (int k = 0; k < p->n_candidates; k++) {
        const float c = (float)p->candidates[k];
        if (c > fminf(x, y) && c < fmaxf(x, y)) return 0;
    }
    return p->has_calibration || x == y;
}

static void print_cost(FILE *to, const hs_curves *c, const hs_profile_budget *b, double *ret_error) {
    double sparsity;
    *ret_error = NAN;
    if (!c) return;
    if (hs_curves_predict(c, hs_thresholds_of(b), ret_error, &sparsity, NULL))
        fprintf(to, "  %8s %10s", "-", "-");
    else
        fprintf(to, "  %8.4f %10.4g", sparsity, *ret_error);
}

int hs_compare(FILE *to, const hs_profile *a, const hs_profile *b, const hs_curves *c, hs_err *err) {
    int rc = comparable(a, b, err);
    if (rc) return rc;
    const int cells = a->layers * a->heads, first = a->policy.dense_layers * a->heads;
    fprintf(to, "A  %s, made by %s at %s\nB  %s, made by %s at %s\n", a->path, a->made_by, a->made_at, b->path,
            b->made_by, b->made_at);
    fprintf(to, "target A  target B  thresholds    equal  or next%s\n",
            c ? "  A: sparsity  error  B: sparsity  error   B / A" : "");
    for (int i = 0; i < a->n_budgets; i++) {
        const hs_profile_budget *x = &a->budgets[i], *y = nearest(b, x->target);
        const int intervals = x->intervals > y->intervals ? x->intervals : y->intervals;
        int n = 0, equal = 0, next = 0;
        for (int j = 0; j < intervals; j++)
            for (int h = first; h < cells; h++, n++) {
                const float p = x->top_p[(x->intervals > 1 ? j : 0) * cells + h];
                const float q = y->top_p[(y->intervals > 1 ? j : 0) * cells + h];
                equal += p == q;
                next += are_next(a, p, q);
            }
        double of_a, of_b;
        fprintf(to, "%8.4g  %8.4g  %10d  %5.1f %%  %5.1f %%", x->target, y->target, n, 100.0 * equal / n,
                100.0 * next / n);
        print_cost(to, c, x, &of_a);
        print_cost(to, c, y, &of_b);
        if (of_a > 0 && isfinite(of_b)) fprintf(to, "  %6.3f", of_b / of_a);
        fputc('\n', to);
    }
    return 0;
}
