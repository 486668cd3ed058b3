/* Self-attention of one layer: dense? reuse? predict? then attend. The idea of the project in one page is hs_attn_self;
 * below it are the predictors, above it what lives from step to step. spec haste.md 1, 3, 4. */
#include "attn.h"
#include "mask.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { Q, K, V };

/* What one branch of one layer remembers: anchors of every head, its mask, and for svg2 its centroids. */
typedef struct memory {
    hs_buf anchor[2], age; /* F32 [heads, D] of q and k; I32 [heads], -1 = never predicted */
    hs_buf want, drift;    /* of the last call: U8, F32 [heads] */
    hs_buf centroid[2];    /* F32 [heads, clusters, D] */
    hs_mask mask;
    int attended;          /* the last call was sparse */
} memory;

struct hs_attn {
    hs_device *dev;
    hs_attn_policy p;
    int layers, heads, head_dim;
    int64_t n, d;
    int rows, cols;         /* of the masks */
    memory *mem;            /* [HS_BRANCH_COUNT, layers] */
    hs_buf mean[2];         /* F32 [heads, D]: token means of q and k, left by qk_norm */
    hs_buf scores;          /* F32 [heads, rows, cols] */
    hs_buf top_p;           /* F32 [layers, heads] */
    hs_buf every;           /* U8 [heads] of ones */
    hs_buf label;           /* I32 [heads, N] */
    hs_buf pooled[3];       /* F32 [heads, blocks, D]: block means of q, k, v */
    const float *top_p_now; /* host thresholds that top_p holds */
    float *top_p_host;      /* [layers, heads] of the policy */
    double seconds_predict, seconds_attend;
};

static memory *memory_of(const hs_attn *a, int branch, int layer) { return &a->mem[branch * a->layers + layer]; }

/* Element (token i, head h, c) of part `which` of qkv is at i * 3d + h * D + c. */
static hs_buf part(const hs_attn *a, hs_buf qkv, int which) { return hs_buf_at(qkv, which * a->d, qkv.n - which * a->d); }

static int is_sparse(const hs_attn *a, const hs_policy *call, int layer) {
    return a->p.method != HS_DENSE && call->step >= a->p.dense_steps && layer >= a->p.dense_layers;
}

/* ---- predictors: Q, K of the heads that want it -> mask ------------------------------------------------------------- */

static void predict_xattention(hs_attn *a, memory *m, hs_buf qkv) {
    hs_op_block_scores(a->dev, &(hs_block_scores){.q = part(a, qkv, Q),
                                                  .k = part(a, qkv, K),
                                                  .want = m->want,
                                                  .scores = a->scores,
                                                  .ld_q = 3 * a->d,
                                                  .ld_k = 3 * a->d,
                                                  .len = a->n,
                                                  .heads = a->heads,
                                                  .head_dim = a->head_dim,
                                                  .block = a->p.block,
                                                  .stride = a->p.stride});
}

static void pool(hs_attn *a, hs_buf qkv, int which, hs_buf want) {
    hs_op_block_means(a->dev, part(a, qkv, which), a->n, 3 * a->d, a->heads, a->head_dim, a->p.block, want, a->pooled[which]);
}

static void predict_pooled(hs_attn *a, memory *m, hs_buf qkv) {
    pool(a, qkv, Q, m->want);
    pool(a, qkv, K, m->want);
    hs_op_centroid_scores(a->dev, &(hs_centroid_scores){.cq = a->pooled[Q],
                                                        .ck = a->pooled[K],
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
static void predict_svg2(hs_attn *a, memory *m, hs_buf qkv, int layer) {
    const int clusters[2] = {a->rows, a->cols};
    hs_buf order[2] = {m->mask.q_order, m->mask.k_order}, start[2] = {m->mask.q_start, m->mask.k_start};
    for (int s = Q; s <= K; s++)
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
    hs_op_centroid_scores(a->dev, &(hs_centroid_scores){.cq = m->centroid[Q],
                                                        .ck = m->centroid[K],
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

static void predict(hs_attn *a, memory *m, hs_buf qkv, int layer) {
    switch (a->p.method) {
    case HS_XATTENTION: predict_xattention(a, m, qkv); break;
    case HS_POOLED: predict_pooled(a, m, qkv); break;
    case HS_SVG2: predict_svg2(a, m, qkv, layer); break;
    default: return;
    }
    hs_op_select(a->dev, &(hs_select){.scores = a->scores,
                                      .top_p = hs_buf_at(a->top_p, (int64_t)layer * a->heads, a->heads),
                                      .want = m->want,
                                      .cols = a->cols,
                                      .at_least = a->p.method == HS_SVG2 ? (int)(a->p.min_share * (float)a->cols) : 1,
                                      .mask = &m->mask});
}

/* ---- the page ------------------------------------------------------------------------------------------------------- */

static void attend(hs_attn *a, hs_buf qkv, const hs_mask *mask, hs_buf out) {
    hs_attention t = {.q = part(a, qkv, Q),
                      .k = part(a, qkv, K),
                      .v = part(a, qkv, V),
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
        pool(a, qkv, K, a->every);
        pool(a, qkv, V, a->every);
        t.comp_k = a->pooled[K];
        t.comp_v = a->pooled[V];
    }
    hs_op_attention(a->dev, &t);
}

void hs_attn_self(hs_attn *a, const hs_policy *call, int layer, hs_buf qkv, hs_buf out) {
    memory *m = memory_of(a, call->branch, layer);
    double start = hs_seconds();
    m->attended = is_sparse(a, call, layer);
    if (m->attended) {
        hs_op_reuse(a->dev, &(hs_reuse){.policy = a->p.reuse,
                                        .heads = a->heads,
                                        .dim = a->head_dim,
                                        .mean_q = a->mean[Q],
                                        .mean_k = a->mean[K],
                                        .anchor_q = m->anchor[Q],
                                        .anchor_k = m->anchor[K],
                                        .age = m->age,
                                        .want = m->want,
                                        .drift = m->drift});
        predict(a, m, qkv, layer);
    }
    double predicted = hs_seconds();
    attend(a, qkv, m->attended ? &m->mask : NULL, out);
    a->seconds_predict += predicted - start;
    a->seconds_attend += hs_seconds() - predicted;
}
