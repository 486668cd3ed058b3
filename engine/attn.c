/* Self-attention of one layer: dense? reuse? predict? then attend. Start with hs_attn_self at the end; above it are the
 * predictors. What lives from step to step is in attn_state.h. spec haste.md 1, 3, 4. */
#include "attn_state.h"

#include <math.h>

_Static_assert((int)HS_MAX_HEADS <= (int)HS_CLUSTER_HEADS, "every model's heads in one call");

/* Element (token i, head h, c) of part `which` of qkv is at i * 3d + h * D + c. */
static hs_buf part(const hs_attn *a, hs_buf qkv, int which) {
    return hs_buf_at(qkv, which * a->d, qkv.n - which * a->d);
}

/* ---- predictors: queries and keys of the heads that want it -> mask ---- */

/* Stride 1 folds nothing: the scores are then the exact mass of every block. */
static void score_antidiagonals(hs_attn *a, hs_attn_memory *m, hs_buf qkv, int stride, hs_buf scores) {
    hs_op_block_scores(a->dev, &(hs_block_scores){.q = part(a, qkv, HS_Q),
                                                  .k = part(a, qkv, HS_K),
                                                  .want = m->want,
                                                  .scores = scores,
                                                  .ld_q = 3 * a->d,
                                                  .ld_k = 3 * a->d,
                                                  .len = a->n,
                                                  .padded = a->padded,
                                                  .heads = a->heads,
                                                  .head_dim = a->head_dim,
                                                  .block = a->p.block,
                                                  .stride = stride});
}

static void pool(hs_attn *a, hs_buf qkv, int which, hs_buf want) {
    hs_op_block_means(a->dev, part(a, qkv, which), a->n, 3 * a->d, a->heads, a->head_dim, a->p.block, want,
                      a->pooled[which]);
}

static void score_means(hs_attn *a, hs_attn_memory *m, hs_buf qkv, hs_buf scores) {
    pool(a, qkv, HS_Q, m->want);
    pool(a, qkv, HS_K, m->want);
    hs_op_centroid_scores(a->dev, &(hs_centroid_scores){.cq = a->pooled[HS_Q],
                                                        .ck = a->pooled[HS_K],
                                                        .want = m->want,
                                                        .scores = scores,
                                                        .len = a->n,
                                                        .heads = a->heads,
                                                        .rows = a->rows,
                                                        .cols = a->cols,
                                                        .head_dim = a->head_dim,
                                                        .block = a->p.block,
                                                        .scale = 1 / sqrtf((float)a->head_dim)});
}

/* Labels and map belong together: a reused head keeps both. Centroids start where the last refresh left them; a device
 * that decides by itself who runs how long has to be offered no more rounds than anybody can take. */
static void score_clusters(hs_attn *a, hs_attn_memory *m, hs_buf qkv, int layer, hs_buf scores) {
    const int clusters[2] = {a->rows, a->cols};
    hs_buf order[2] = {m->mask.q_order, m->mask.k_order}, start[2] = {m->mask.q_start, m->mask.k_start};
    hs_cluster of[2];
    for (int s = HS_Q; s <= HS_K; s++)
        of[s] = (hs_cluster){.x = part(a, qkv, s),
                             .centroids = m->centroid[s],
                             .want = m->want,
                             .label = a->label[s],
                             .order = order[s],
                             .start = start[s],
                             .len = a->n,
                             .ld = 3 * a->d,
                             .heads = a->heads,
                             .head_dim = a->head_dim,
                             .clusters = clusters[s],
                             .iters_first = m->started ? a->p.iters_next : a->p.iters_first,
                             .iters_next = a->p.iters_next,
                             .compat = a->p.compat,
                             .seed = (uint64_t)layer * 2 + (uint64_t)s};
    of[HS_Q].beside = &of[HS_K];
    hs_op_cluster(a->dev, &of[HS_Q]);
    hs_op_centroid_scores(a->dev, &(hs_centroid_scores){.cq = m->centroid[HS_Q],
                                                        .ck = m->centroid[HS_K],
                                                        .start = m->mask.k_start,
                                                        .want = m->want,
                                                        .scores = scores,
                                                        .len = a->n,
                                                        .heads = a->heads,
                                                        .rows = a->rows,
                                                        .cols = a->cols,
                                                        .head_dim = a->head_dim,
                                                        .compat = a->p.compat,
                                                        .scale = 1 / sqrtf((float)a->head_dim)});
}

/* Which of the published selection rules, if any. */
static int rule(const hs_attn *a) {
    if (!a->p.compat || a->p.method == HS_POOLED) return 0;
    return a->p.method == HS_SVG2 ? HS_SELECT_UPTO : HS_SELECT_BLOCK0;
}

/* exact: the true mass of every block instead of the method's estimate (uniform blocks only). */
static void score(hs_attn *a, hs_attn_memory *m, hs_buf qkv, int layer, int exact, hs_buf scores) {
    switch (a->p.method) {
    case HS_XATTENTION: score_antidiagonals(a, m, qkv, exact ? 1 : a->p.stride, scores); break;
    case HS_POOLED: exact ? score_antidiagonals(a, m, qkv, 1, scores) : score_means(a, m, qkv, scores); break;
    case HS_SVG2: score_clusters(a, m, qkv, layer, scores); break;
    default: return;
    }
}

/* With the thresholds of a step interval; full: keep every column, whatever they are. */
static void choose(hs_attn *a, hs_attn_memory *m, int layer, int interval, int full, hs_buf scores) {
    const int64_t row = (int64_t)interval * a->layers + layer;
    int least = a->p.method == HS_SVG2 ? (int)(a->p.min_share * (float)a->cols) : 1;
    hs_op_select(a->dev, &(hs_select){.scores = scores,
                                      .top_p = hs_buf_at(a->top_p, row * a->heads, a->heads),
                                      .want = m->want,
                                      .cols = a->score_cols,
                                      .rule = full ? 0 : rule(a),
                                      .at_least = full ? a->score_cols : least,
                                      .mask = &m->mask});
    /* heads with thresholds of their own that are dense want no mask, but have a density */
    hs_op_mask_density(a->dev, &m->mask, m->alone ? a->every : m->want, m->density);
}

/* Masks for the heads whose cached ones are no longer good. Where a step interval brings a layer other thresholds, all
 * its heads get new masks, so that these hold at once: a head that becomes dense must not wait for drift. Exact masks
 * serve the step that follows, and are made for that. */
static void predict(hs_attn *a, hs_attn_memory *m, const hs_policy *call, int layer, hs_buf qkv, int exact) {
    const int interval = hs_attn_policy_interval(&a->p, call->step + exact);
    hs_reuse_policy reuse = a->p.reuse;
    reuse.begin_age = reuse.kind == HS_REUSE_STAGGER ? layer % reuse.interval : 0;
    if (hs_attn_changes(a, layer, m->interval, interval)) reuse.kind = HS_REUSE_NONE;
    m->interval = interval;
    hs_attn_thresholds(a, NULL);
    hs_op_reuse(a->dev, &(hs_reuse){.policy = reuse,
                                    .heads = a->heads,
                                    .dim = a->head_dim,
                                    .mean_q = a->mean[HS_Q],
                                    .mean_k = a->mean[HS_K],
                                    .anchor_q = m->anchor[HS_Q],
                                    .anchor_k = m->anchor[HS_K],
                                    .age = m->age,
                                    .want = m->want,
                                    .drift = m->drift});
    score(a, m, qkv, layer, exact, a->scores[call->branch]);
    m->started = 1;
    choose(a, m, layer, interval, 0, a->scores[call->branch]);
    a->scored[call->branch].layer = -1;
}

/* A call with thresholds of its own (calibration): new masks for the heads below 1, nothing for the others. */
static void predict_alone(hs_attn *a, hs_attn_memory *m, const hs_policy *call, int layer, hs_buf qkv) {
    const int kept = hs_attn_want_alone(a, m, call, layer);
    m->started = 0;
    hs_attn_thresholds(a, call->top_p);
    if (!kept) score(a, m, qkv, layer, 0, a->scores[call->branch]);
    choose(a, m, layer, 0, call->full_masks, a->scores[call->branch]);
}

/* ---- the page ---- */

static void attend(hs_attn *a, hs_buf qkv, const hs_mask *mask, hs_buf out) {
    hs_attention t = {.q = part(a, qkv, HS_Q),
                      .k = part(a, qkv, HS_K),
                      .v = part(a, qkv, HS_V),
                      .out = out,
                      .ld_q = 3 * a->d,
                      .ld_k = 3 * a->d,
                      .ld_v = 3 * a->d,
                      .ld_out = a->d,
                      .len_q = a->n,
                      .len_k = a->n,
                      .heads = a->heads,
                      .head_dim = a->head_dim,
                      .scale = 1 / sqrtf((float)a->head_dim),
                      .mask = mask};
    if (mask && a->p.compensate) {
        pool(a, qkv, HS_K, a->every);
        pool(a, qkv, HS_V, a->every);
        t.comp_k = a->pooled[HS_K];
        t.comp_v = a->pooled[HS_V];
    }
    hs_op_attention(a->dev, &t);
}

void hs_attn_self(hs_attn *a, const hs_policy *call, int layer, hs_buf qkv, hs_buf out) {
    hs_attn_memory *m = hs_attn_memory_of(a, call->branch, layer);
    hs_lap(a->dev, HS_LAP_NONE);
    const int seeding = hs_attn_is_seeding(a, call, layer);
    a->told = 0;
    m->attended = hs_attn_is_sparse(a, call, layer);
    m->alone = call->top_p != NULL;
    if (m->attended && m->alone)
        predict_alone(a, m, call, layer, qkv);
    else if (m->attended || seeding)
        predict(a, m, call, layer, qkv, seeding);
    hs_lap(a->dev, HS_LAP_PREDICT);
    attend(a, qkv, m->attended ? &m->mask : NULL, out);
    hs_lap(a->dev, HS_LAP_ATTEND);
}
