/* What attention does: method, thresholds, reuse, warm-up. Plain data; comes from flags, a profile or the calibrator.
 */
#ifndef HS_POLICY_H
#define HS_POLICY_H
#include "reuse.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum hs_method { HS_DENSE, HS_XATTENTION, HS_SVG2, HS_POOLED, HS_METHOD_COUNT } hs_method;

enum { HS_MAX_INTERVALS = 32 };

typedef struct hs_attn_policy {
    hs_method method;
    float top_p;              /* every head's threshold unless top_p_heads is given; 1 = that head is dense */
    const float *top_p_heads; /* [intervals, layers, heads] or NULL; borrowed for the life of the session */
    int intervals;            /* parts of the run, each with thresholds of its own; 1 = the same in every step */
    int interval_start[HS_MAX_INTERVALS]; /* first step of each: 0, then never less than the one before */
    int block, stride; /* xattention, pooled: tokens per block (64, 128); xattention: antidiagonal stride (1 = exact
                          mass, 2 .. 16) */
    int q_clusters, k_clusters, iters_first, iters_next; /* svg2 */
    float min_share;                                     /* svg2: least share of key clusters kept per query cluster */
    hs_reuse_policy reuse;
    int dense_steps, dense_layers; /* the first so many steps and layers attend densely */
    int seed_exact; /* masks of the first sparse step come from exact block mass at the last dense step */
    int compensate; /* a dropped block still counts with its mean key and value */
    int compat;     /* the published code's artefacts, for comparison (spec haste.md 3.1, 3.2) */
} hs_attn_policy;

/* The paper's settings for a method (spec haste.md 3, 4, 6). */
hs_attn_policy hs_attn_policy_default(hs_method method);
const char *hs_method_name(hs_method m);               /* "dense", "xattention", "svg2", "pooled" */
int hs_method_parse(const char *name, hs_method *ret); /* 0, or HS_EINVAL */
const char *hs_reuse_name(hs_reuse_kind k);            /* "none", "drift", "relative", "interval", "freeze" */
int hs_reuse_parse(const char *name, hs_reuse_kind *ret);
/* Whose thresholds hold in a step: the last interval that has begun. */
int hs_attn_policy_interval(const hs_attn_policy *p, int step);
/* Ranges, contradictions; err names the field. */
int hs_attn_policy_check(const hs_attn_policy *p, int layers, int heads, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
