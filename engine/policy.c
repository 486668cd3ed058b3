/* Defaults, names and limits of attention policies. */
#include "policy.h"

#include <string.h>

hs_attn_policy hs_attn_policy_default(hs_method method) {
    hs_attn_policy p = {.method = method, .top_p = 0.9f, .intervals = 1, .block = 128, .stride = 16};
    p.reuse =
        (hs_reuse_policy){.kind = HS_REUSE_DRIFT, .delta = 30, .interval = 4, .gate_low = 0.4f, .gate_high = 0.8f};
    if (method == HS_DENSE) p.reuse.kind = HS_REUSE_NONE;
    if (method == HS_SVG2) {
        p.q_clusters = 300;
        p.k_clusters = 1000;
        p.iters_first = 50;
        p.iters_next = 2;
        p.min_share = 0.1f;
        p.reuse.delta = 8;
    }
    return p;
}

static const char *const names[] = {"dense", "xattention", "svg2", "pooled"};
_Static_assert(sizeof names / sizeof *names == HS_METHOD_COUNT, "a name for every method");

const char *hs_method_name(hs_method m) {
    return names[m];
}

int hs_method_parse(const char *name, hs_method *ret) {
    for (int k = 0; k < HS_METHOD_COUNT; k++)
        if (!strcmp(name, names[k])) {
            *ret = (hs_method)k;
            return 0;
        }
    return HS_EINVAL;
}

static const char *const reuse_names[] = {"none", "drift", "relative", "interval", "freeze", "stagger"};
_Static_assert(sizeof reuse_names / sizeof *reuse_names == HS_REUSE_STAGGER + 1, "a name for every kind of reuse");

const char *hs_reuse_name(hs_reuse_kind k) {
    return reuse_names[k];
}

int hs_reuse_parse(const char *name, hs_reuse_kind *ret) {
    for (int k = 0; k <= HS_REUSE_STAGGER; k++)
        if (!strcmp(name, reuse_names[k])) {
            *ret = (hs_reuse_kind)k;
            return 0;
        }
    return HS_EINVAL;
}

static int range(const char *what, double v, double low, double high, hs_err *err) {
    if (v >= low && v <= high) return 0;
    return hs_fail(err, HS_EINVAL, "attention policy: %s is %g, must be %g to %g", what, v, low, high);
}

int hs_attn_policy_interval(const hs_attn_policy *p, int step) {
    int i = 0;
    while (i + 1 < p->intervals && p->interval_start[i + 1] <= step) i++;
    return i;
}

/* Thresholds and the parts of the run that they are for. */
static int check_thresholds(const hs_attn_policy *p, int layers, int heads, hs_err *err) {
    int r = range("the number of step intervals", p->intervals, 1, p->top_p_heads ? HS_MAX_INTERVALS : 1, err);
    if (r || !p->top_p_heads) return r;
    if (p->interval_start[0])
        return hs_fail(err, HS_EINVAL, "attention policy: the first step interval begins at step %d, must be 0",
                       p->interval_start[0]);
    for (int i = 1; i < p->intervals; i++)
        if (p->interval_start[i] < p->interval_start[i - 1])
            return hs_fail(err, HS_EINVAL,
                           "attention policy: step interval %d begins at step %d, before interval %d (step %d)", i,
                           p->interval_start[i], i - 1, p->interval_start[i - 1]);
    for (int i = 0; i < p->intervals * layers * heads; i++)
        if (!(p->top_p_heads[i] > 0 && p->top_p_heads[i] <= 1))
            return hs_fail(err, HS_EINVAL,
                           "top-p of layer %d, head %d in step interval %d is %g, must be above 0 and at most 1",
                           i / heads % layers, i % heads, i / heads / layers, p->top_p_heads[i]);
    return 0;
}

int hs_attn_policy_check(const hs_attn_policy *p, int layers, int heads, hs_err *err) {
    int r;
    if (p->method == HS_DENSE) return 0;
    if ((r = range("top-p", p->top_p, 1e-6f, 1, err)) || (r = range("dense steps", p->dense_steps, 0, 1000, err)) ||
        (r = range("dense layers", p->dense_layers, 0, layers, err)) ||
        (r = range("reuse interval", p->reuse.interval, 1, 1000, err)) ||
        (r = range("reuse delta", p->reuse.delta, 0, 1e9, err)) ||
        (r = range("lower gate", p->reuse.gate_low, 0, 1, err)) ||
        (r = range("upper gate", p->reuse.gate_high, 0, 1, err)) || (r = check_thresholds(p, layers, heads, err)))
        return r;
    if (p->method == HS_SVG2) {
        if ((r = range("query clusters", p->q_clusters, 1, 65535, err)) ||
            (r = range("key clusters", p->k_clusters, 1, 65535, err)) ||
            (r = range("first k-means rounds", p->iters_first, 1, 1000, err)) ||
            (r = range("k-means rounds", p->iters_next, 1, 1000, err)) ||
            (r = range("least share", p->min_share, 0, 1, err)))
            return r;
        if (p->compensate) return hs_fail(err, HS_ENOTSUP, "compensation works with uniform blocks, not with svg2");
    } else {
        if (p->block != 64 && p->block != 128)
            return hs_fail(err, HS_EINVAL, "attention policy: blocks of %d tokens, must be 64 or 128", p->block);
        if (p->method == HS_XATTENTION && (p->stride < 1 || p->stride > 16 || (p->stride & (p->stride - 1))))
            return hs_fail(err, HS_EINVAL, "attention policy: stride %d, must be 1, 2, 4, 8 or 16", p->stride);
    }
    if (!p->seed_exact) return 0;
    if (p->method == HS_SVG2 || p->compat)
        return hs_fail(err, HS_ENOTSUP, "first masks from exact block mass (seed_exact) need uniform blocks (%s)",
                       p->method == HS_SVG2 ? "svg2 has clusters" : "not in compat mode, which pads as published");
    if (p->dense_steps < 1 || p->reuse.kind == HS_REUSE_NONE)
        return hs_fail(err, HS_EINVAL,
                       "first masks from exact block mass (seed_exact) need a dense step to come from and reuse to be "
                       "used; found %d dense steps, reuse %s",
                       p->dense_steps, hs_reuse_name(p->reuse.kind));
    return 0;
}
