/* What a run takes from a profile: whether it is the model's own, which budget, which policy, and what is off its
 * shape. */
#include "profile.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

int hs_profile_check(const hs_profile *p, const hs_model_info *info, hs_err *err) {
    static const char cure[] = "a profile serves only the model it was made with; calibrate this one, or choose "
                               "--attention and --top-p instead";
    if (p->layers != info->layers || p->heads != info->heads)
        return hs_fail(err, HS_EINVAL,
                       "%s: made for %s with %d layers x %d heads, this model has %d layers x %d heads: %s", p->path,
                       p->model, p->layers, p->heads, info->layers, info->heads, cure);
    if (!strcmp(p->sha256, info->sha256) || !strcmp(p->sha256, info->shapes_sha256)) return 0;
    /* Outside of a Diffusers folder nothing tells the weights that the profile was made with: shapes have to do. */
    if (!strcmp(info->sha256, info->shapes_sha256))
        hs_log(HS_LOG_WARN, "%s was made for %s; that these files hold the same model cannot be checked in this layout",
               p->path, p->model);
    else
        return hs_fail(err, HS_EINVAL, "%s: made for %s with sha256 %.16s..., this model has sha256 %.16s...: %s",
                       p->path, p->model, p->sha256, info->sha256, cure);
    return 0;
}

int hs_profile_choose(const hs_profile *p, double target, int *ret, hs_err *err) {
    const double near = 0.005; /* 0.74 finds a target of 0.7413 */
    char list[200] = "";
    int best = 0;
    for (int i = 0; i < p->n_budgets; i++) {
        size_t len = strlen(list);
        if (fabs(p->budgets[i].target - target) < fabs(p->budgets[best].target - target)) best = i;
        snprintf(list + len, sizeof list - len, "%s%.4g", i ? ", " : "", p->budgets[i].target);
    }
    /* 1e-9: 0.745 - 0.74 is more than 0.005 in binary */
    if (!isnan(target) && !(fabs(p->budgets[best].target - target) <= near + 1e-9))
        return hs_fail(err, HS_EINVAL, "%s: no budget of sparsity %g; it has %s", p->path, target, list);
    *ret = best;
    return 0;
}

/* Steps whose middle lies before this share of the run. */
static int steps_until(double share, int steps) {
    return (int)ceil(share * steps - 0.5);
}

int hs_profile_policy(const hs_profile *p, int budget, int steps, hs_attn_policy *ret, hs_err *err) {
    if (budget < 0 || budget >= p->n_budgets || steps < 1 || steps > HS_MAX_STEPS)
        return hs_fail(err, HS_EINVAL, "%s: budget %d of %d for %d steps", p->path, budget, p->n_budgets, steps);
    hs_attn_policy a = p->policy;
    const hs_profile_budget *b = &p->budgets[budget];
    a.top_p_heads = b->top_p;
    a.intervals = b->intervals;
    for (int i = 1; i < b->intervals; i++) a.interval_start[i] = steps_until(b->until[i - 1], steps);
    a.dense_steps = (a.dense_steps * steps + p->steps - 1) / p->steps;
    if (hs_reuse_counts(a.reuse.kind)) {
        a.reuse.interval = (2 * a.reuse.interval * steps + p->steps) / (2 * p->steps);
        if (a.reuse.interval < 1) a.reuse.interval = 1;
        if (a.reuse.interval > steps)
            a.reuse.interval = steps; /* once, as more would be, and in the range of a policy */
    }
    *ret = a;
    return 0;
}

int hs_profile_differences(const hs_profile *p, const hs_request *r, char *ret, size_t size) {
    int size_same = p->width == r->width && p->height == r->height && p->frames == r->frames;
    int steps_same = p->steps == r->steps;
    int sigmas_same = hs_sigmas_of(p->solver, p->sigmas) == hs_sigmas_of(r->solver, r->sigmas);
    int rest_same = p->solver == r->solver && sigmas_same && fabs(p->shift - r->shift) < 1e-6 &&
                    fabs(p->guidance - r->guidance) < 1e-6;
    hs_attn_policy a;
    size_t n = 0;
    ret[0] = '\0';
    if (size_same && steps_same && rest_same) return 0;
#define ADD(...) (n = n < size ? n + (size_t)snprintf(ret + n, size - n, __VA_ARGS__) : n)
    ADD("the profile was made for");
    if (!size_same) ADD(" %dx%d with %d frames", p->width, p->height, p->frames);
    if (!steps_same) ADD("%s %d steps", size_same ? "" : ",", p->steps);
    if (!rest_same) ADD("%s %s with", size_same && steps_same ? "" : ",", hs_solver_name(p->solver));
    if (!sigmas_same) ADD(" sigmas %c,", 'A' + (int)hs_sigmas_of(p->solver, p->sigmas));
    if (!rest_same) ADD(" shift %g and guidance %g", p->shift, p->guidance);
    ADD(": its thresholds are used as they are, their error here was not measured");
    if (!steps_same && !hs_profile_policy(p, 0, r->steps, &a, NULL)) {
        if (p->policy.dense_steps)
            ADD("; %d dense steps of %d become %d of %d", p->policy.dense_steps, p->steps, a.dense_steps, r->steps);
        if (hs_reuse_counts(a.reuse.kind))
            ADD("; a refresh every %d steps becomes every %d", p->policy.reuse.interval, a.reuse.interval);
        for (int i = 1; i < r->attention.intervals; i++)
            ADD(i == 1 ? "; thresholds change at step %d" : ", %d", r->attention.interval_start[i]);
    }
#undef ADD
    return 1;
}
