/* Self-attention of one layer: dense? reuse? predict? then attend. Start with hs_attn_self at the end; above it are the
 * predictors. What lives from step to step is in attn_state.h. spec haste.md 1, 3, 4. */
#include "attn_state.h"

#include <math.h>

/* Element (token i, head h, c) of part `which` of qkv is at i * 3d + h * D + c. */
static hs_buf part(const hs_attn *a, hs_buf qkv, int which) {
    return hs_buf_at(qkv, which * a->d, qkv.n - which * a->d);
}

/* ---- predictors: queries and keys of the heads that want it -> mask ---- */

/* Stride 1 folds nothing: the scores are then the exact mass of every block. */
static void predict_xattention(hs_attn *a, hs_attn_memory *m, hs_buf qkv, int stride) {
    hs_op_block_scores(a->dev, &(hs_block_scores){.q = part(a, qkv, HS_Q),
                                                  .k = part(a, qkv, HS_K),
                                                  .want = m->want,
                                                  .scores = a->scores,
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

static void predict_pooled(hs_attn *a, hs_attn_memory *m, hs_buf qkv) {
    pool(a, qkv, HS_Q, m->want);
    pool(a, qkv, HS_K, m->want);
    hs_op_centroid_scores(a->dev, &(hs_centroid_scores){.cq = a->pooled[HS_Q],
                                                        .ck = a->pooled[HS_K],
                                                        .want = m->want,
                                                        .scores = a->scores,
                                                        .len = a->n,
                                                        .heads = a->heads,
                                                        .rows = a->rows,
                                                        .cols = a->cols,
                                                        .head_dim = a->head_dim,
                                                        .block = a->p.block,
                                                        .scale = 1 / sqrtf((float)a->head_dim)});
}

/* Labels and map belong together: a reused head keeps both. Centroids start where the last refresh left them. */
static void predict_svg2(hs_attn *a, hs_attn_memory *m, hs_buf qkv, int layer) {
    const int clusters[2] = {a->rows, a->cols};
    hs_buf order[2] = {m->mask.q_order, m->mask.k_order}, start[2] = {m->mask.q_start, m->mask.k_start};
    for (int s = HS_Q; s <= HS_K; s++)
        hs_op_cluster(a->dev, &(hs_cluster){.x = part(a, qkv, s),
                                            .centroids = m->centroid[s],
                                            .want = m->want,
                                            .label = a->label,
                                            .order = order[s],
                                            .start = start[s],
                                            .len = a->n,
                                            .ld = 3 * a->d,
                                            .heads = a->heads,
                                            .head_dim = a->head_dim,
                                            .clusters = clusters[s],
                                            .iters_first = a->p.iters_first,
                                            .iters_next = a->p.iters_next,
                                            .compat = a->p.compat,
                                            .seed = (uint64_t)layer * 2 + (uint64_t)s});
    hs_op_centroid_scores(a->dev, &(hs_centroid_scores){.cq = m->centroid[HS_Q],
                                                        .ck = m->centroid[HS_K],
                                                        .start = m->mask.k_start,
                                                        .want = m->want,
                                                        .scores = a->scores,
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

static void predict(hs_attn *a, hs_attn_memory *m, hs_buf qkv, int layer, int exact) {
    switch (a->p.method) {
    case HS_XATTENTION: predict_xattention(a, m, qkv, exact ? 1 : a->p.stride); break;
    case HS_POOLED: exact ? predict_xattention(a, m, qkv, 1) : predict_pooled(a, m, qkv); break;
    case HS_SVG2: predict_svg2(a, m, qkv, layer); break;
    default: return;
    }
    hs_op_select(a->dev, &(hs_select){.scores = a->scores,
                                      .top_p = hs_buf_at(a->top_p, (int64_t)layer * a->heads, a->heads),
                                      .want = m->want,
                                      .cols = a->score_cols,
                                      .rule = rule(a),
                                      .at_least = a->p.method == HS_SVG2 ? (int)(a->p.min_share * (float)a->cols) : 1,
                                      .mask = &m->mask});
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
    double start = hs_seconds();
    const int seeding = hs_attn_is_seeding(a, call, layer);
    m->attended = hs_attn_is_sparse(a, call, layer);
    if (m->attended || seeding) {
        hs_attn_thresholds(a, call->top_p);
        hs_op_reuse(a->dev, &(hs_reuse){.policy = a->p.reuse,
                                        .heads = a->heads,
                                        .dim = a->head_dim,
                                        .mean_q = a->mean[HS_Q],
                                        .mean_k = a->mean[HS_K],
                                        .anchor_q = m->anchor[HS_Q],
                                        .anchor_k = m->anchor[HS_K],
                                        .age = m->age,
                                        .want = m->want,
                                        .drift = m->drift});
        predict(a, m, qkv, layer, seeding);
    }
    double predicted = hs_seconds();
    attend(a, qkv, m->attended ? &m->mask : NULL, out);
    a->seconds_predict += predicted - start;
    a->seconds_attend += hs_seconds() - predicted;
}
