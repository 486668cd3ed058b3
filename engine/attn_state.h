/* Inside of hs_attn, shared by attn.c (what a layer does) and attn_state.c (lifetimes, reports). */
#ifndef HS_ATTN_STATE_H
#define HS_ATTN_STATE_H
#include "attn.h"
#include "mask.h"
#include "model.h"

enum { HS_Q, HS_K, HS_V };

/* What one branch of one layer remembers: anchors of every head, its mask, and for svg2 its centroids. */
typedef struct hs_attn_memory {
    hs_buf anchor[2], age; /* F32 [heads, D] of q and k; I32 [heads], -1 = never predicted */
    hs_buf want, drift;    /* of the last call (reuse.h): U8, F32 [heads], parts of hs_attn's */
    hs_buf density;        /* of the masks: F32 [heads], likewise */
    hs_buf centroid[2];    /* F32 [heads, clusters, D] */
    hs_mask mask;
    int attended; /* the last call was sparse */
    int alone;    /* the last call had thresholds of its own */
    int interval; /* whose thresholds the masks were chosen with */
    int started;  /* every head has been predicted in this video: none will want a first time */
} hs_attn_memory;

/* Whose scores are there: layer (-1 = of nobody that could ask for them again) and heads. */
typedef struct hs_attn_scored {
    int layer;
    uint8_t want[HS_MAX_HEADS];
} hs_attn_scored;

struct hs_attn {
    hs_device *dev;
    hs_attn_policy p;
    int layers, heads, head_dim;
    int64_t n, d;
    int64_t padded;                 /* xattention in compat mode: tokens with the published padding, else 0 */
    int score_cols;                 /* columns of scores: cols, and in compat mode those of the padding */
    int rows, cols;                 /* of the masks */
    hs_attn_memory *mem;            /* [HS_BRANCH_COUNT, layers] */
    hs_buf mean[2];                 /* F32 [heads, D]: token means of q and k, left by qk_norm */
    hs_buf scores[HS_BRANCH_COUNT]; /* F32 [heads, rows, score_cols], of the branch's last prediction */
    hs_attn_scored scored[HS_BRANCH_COUNT];
    hs_buf top_p;                /* F32 [intervals, layers, heads]; a call's own thresholds lie in the first table */
    hs_buf every;                /* U8 [heads] of ones */
    hs_buf label[2];             /* I32 [heads, N] */
    hs_buf pooled[3];            /* F32 [heads, blocks, D]: block means of q, k, v */
    hs_buf want, drift, density; /* U8, F32, F32 [HS_BRANCH_COUNT, layers, heads]: a download each for a report */
    int top_p_is_host;           /* top_p holds the session's thresholds */
    float *top_p_host;           /* [intervals, layers, heads] thresholds of the session */
    int32_t *report;             /* host copy of the bits of one mask, and its flags behind them */
    int told;                    /* told_* hold what want, drift and density do */
    uint8_t *told_want;
    float *told_drift, *told_density;
    double laps[HS_LAP_COUNT]; /* the device's at hs_attn_begin */
};

static inline hs_attn_memory *hs_attn_memory_of(const hs_attn *a, int branch, int layer) {
    return &a->mem[branch * a->layers + layer];
}
/* Does any head of this layer need a mask? */
static inline int hs_attn_is_sparse(const hs_attn *a, const hs_policy *call, int layer) {
    if (a->p.method == HS_DENSE || call->step < a->p.dense_steps || layer < a->p.dense_layers) return 0;
    for (int h = 0; call->top_p && h < a->heads; h++)
        if (call->top_p[layer * a->heads + h] < 1) return 1;
    return !call->top_p;
}
/* Do the thresholds of this layer differ between two step intervals? */
static inline int hs_attn_changes(const hs_attn *a, int layer, int from, int to) {
    const float *p = a->top_p_host + (int64_t)layer * a->heads;
    const int64_t table = (int64_t)a->layers * a->heads;
    for (int h = 0; h < a->heads; h++)
        if (p[from * table + h] != p[to * table + h]) return 1;
    return 0;
}
/* The last dense step, where the policy asks for it: attends densely, and leaves anchors and masks of exact block mass,
 * so that the first sparse steps may reuse those. */
static inline int hs_attn_is_seeding(const hs_attn *a, const hs_policy *call, int layer) {
    return a->p.method != HS_DENSE && a->p.seed_exact && !call->top_p && call->step == a->p.dense_steps - 1 &&
           layer >= a->p.dense_layers;
}
/* A call with thresholds of its own: who wants a mask and who is dense. Returns whether the scores of all that want one
 * are there already. */
int hs_attn_want_alone(hs_attn *a, hs_attn_memory *m, const hs_policy *call, int layer);
/* Uploads a call's own thresholds, or the session's (NULL) if they are not there already. */
void hs_attn_thresholds(hs_attn *a, const float *of_call);
#endif
