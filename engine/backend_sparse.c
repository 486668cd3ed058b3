/* Wrappers of attention, dense or masked, and of the predictors of its masks: the same statements as in backend.c.
 *
 * A backend may lack predictors (a table entry that is NULL): asking for one is then the sticky error HS_ENOTSUP, so
 * that a device which only attends densely is a whole device.
 */
#include "backend_checks.h"
#include "mask.h"

enum { MAX_BLOCK = 1024, MAX_ROUNDS = 1000 };

static int offers(const call *c, int there) {
    if (!there)
        hs_device_sticky(c->dev, HS_ENOTSUP,
                         "%s: device '%s' does not offer it; choose dense attention or another device", c->op,
                         c->dev->name);
    return !c->dev->sticky;
}

static int64_t blocks(int64_t len, int block) {
    return block < 1 ? 0 : (len + block - 1) / block;
}

/* What selection writes and attention reads: one bit per pair, one flag per head. */
static void check_bits(const call *c, hs_mask *m) {
    range(c, "rows of the mask", m->rows, 1, INT32_MAX);
    range(c, "columns of the mask", m->cols, 1, HS_MASK_MAX_COLS);
    if (c->dev->sticky) return;
    if (m->words != hs_mask_words(m->cols))
        bad(c, "mask rows of %d words, %d needed for %d columns", m->words, hs_mask_words(m->cols), m->cols);
    m->bits = need(c, "bits", m->bits, T_I32, VOLUME(c, "bits", m->heads, m->rows, m->words));
    m->dense = need(c, "dense", m->dense, T_U8, m->heads);
}

/* How many tokens a row and a column are: equal blocks, or ranges of a permutation. */
static void check_sizes(const call *c, hs_mask *m) {
    if (c->dev->sticky) return;
    range(c, "block of the mask", m->block, 0, MAX_BLOCK);
    if (m->block > 0) {
        range(c, "rows of the mask", m->rows, blocks(m->len_q, m->block), blocks(m->len_q, m->block));
        range(c, "columns of the mask", m->cols, blocks(m->len_k, m->block), blocks(m->len_k, m->block));
        return;
    }
    m->q_start = need(c, "q_start", m->q_start, T_I32, VOLUME(c, "q_start", m->heads, (int64_t)m->rows + 1));
    m->k_start = need(c, "k_start", m->k_start, T_I32, VOLUME(c, "k_start", m->heads, (int64_t)m->cols + 1));
}

/* And which ones. */
static void check_layout(const call *c, hs_mask *m) {
    check_sizes(c, m);
    if (c->dev->sticky || m->block > 0) return;
    m->q_order = need(c, "q_order", m->q_order, T_I32, VOLUME(c, "q_order", m->heads, m->len_q));
    m->k_order = need(c, "k_order", m->k_order, T_I32, VOLUME(c, "k_order", m->heads, m->len_k));
}

/* The mask of attention and what stands for its gaps. */
static void check_mask(const call *c, hs_attention *t, hs_mask *m) {
    if (m->heads != t->heads || m->len_q != t->len_q || m->len_k != t->len_k)
        bad(c, "mask of %d heads, %lld queries, %lld keys for %d heads, %lld queries, %lld keys", m->heads,
            (long long)m->len_q, (long long)m->len_k, t->heads, (long long)t->len_q, (long long)t->len_k);
    check_bits(c, m);
    check_layout(c, m);
    apart(c, "out", t->out, "bits", m->bits);
    apart(c, "out", t->out, "q_order", m->q_order);
    apart(c, "out", t->out, "k_order", m->k_order);
    if (!t->comp_k.p && !t->comp_v.p) return;
    if (!m->block) bad(c, "compensation needs uniform blocks, this mask has clusters");
    const int64_t n = VOLUME(c, "comp_k", t->heads, m->cols, t->head_dim);
    t->comp_k = need(c, "comp_k", t->comp_k, T_F32, n);
    t->comp_v = need(c, "comp_v", t->comp_v, T_F32, n);
    apart(c, "out", t->out, "comp_k", t->comp_k);
    apart(c, "out", t->out, "comp_v", t->comp_v);
}

void hs_op_attention(hs_device *dev, const hs_attention *a) {
    const call c = {dev, "attention"};
    hs_attention t = *a;
    hs_mask mask;
    range(&c, "heads", t.heads, 1, INT32_MAX);
    range(&c, "head_dim", t.head_dim, 1, MAX_HEAD_DIM);
    const int64_t width = VOLUME(&c, "q", t.heads, t.head_dim);
    t.q = need(&c, "q", t.q, act(dev), extent(&c, "q", t.len_q, t.ld_q, width));
    t.k = need(&c, "k", t.k, act(dev), extent(&c, "k", t.len_k, t.ld_k, width));
    t.v = need(&c, "v", t.v, act(dev), extent(&c, "v", t.len_k, t.ld_v, width));
    t.out = need(&c, "out", t.out, act(dev), extent(&c, "out", t.len_q, t.ld_out, width));
    if (t.rel_bias.p && !dev->sticky)
        t.rel_bias = need(&c, "rel_bias", t.rel_bias, T_F32, VOLUME(&c, "rel_bias", t.heads, t.len_q + t.len_k - 1));
    apart(&c, "out", t.out, "q", t.q);
    apart(&c, "out", t.out, "k", t.k);
    apart(&c, "out", t.out, "v", t.v);
    apart(&c, "out", t.out, "rel_bias", t.rel_bias);
    if (t.mask && !dev->sticky) {
        mask = *t.mask;
        check_mask(&c, &t, &mask);
        t.mask = &mask;
    } else if (t.comp_k.p || t.comp_v.p)
        bad(&c, "compensation without a mask");
    if (!dev->sticky) dev->ops->attention(dev, &t);
}

void hs_op_block_scores(hs_device *dev, const hs_block_scores *a) {
    const call c = {dev, "block_scores"};
    hs_block_scores s = *a;
    range(&c, "heads", s.heads, 1, INT32_MAX);
    range(&c, "head_dim", s.head_dim, 1, MAX_HEAD_DIM);
    range(&c, "block", s.block, 1, MAX_BLOCK);
    range(&c, "stride", s.stride, 1, s.block);
    if (!dev->sticky && s.block % s.stride) bad(&c, "block %d is not a multiple of stride %d", s.block, s.stride);
    if (!dev->sticky && s.padded && (s.padded < s.len || s.padded % s.block))
        bad(&c, "padded to %lld tokens, must be a multiple of %d not below %lld", (long long)s.padded, s.block,
            (long long)s.len);
    const int64_t width = VOLUME(&c, "q", s.heads, s.head_dim);
    s.q = need(&c, "q", s.q, act(dev), extent(&c, "q", s.len, s.ld_q, width));
    s.k = need(&c, "k", s.k, act(dev), extent(&c, "k", s.len, s.ld_k, width));
    s.want = need(&c, "want", s.want, T_U8, s.heads);
    if (dev->sticky) return;
    const int64_t rows = blocks(s.len, s.block), cols = s.padded ? s.padded / s.block : rows;
    range(&c, "columns of the scores", cols, 1, HS_MASK_MAX_COLS);
    s.scores = need(&c, "scores", s.scores, T_F32, VOLUME(&c, "scores", s.heads, rows, cols));
    apart(&c, "scores", s.scores, "q", s.q);
    apart(&c, "scores", s.scores, "k", s.k);
    apart(&c, "scores", s.scores, "want", s.want);
    if (offers(&c, dev->ops->block_scores != NULL)) dev->ops->block_scores(dev, &s);
}

void hs_op_centroid_scores(hs_device *dev, const hs_centroid_scores *a) {
    const call c = {dev, "centroid_scores"};
    hs_centroid_scores s = *a;
    range(&c, "head_dim", s.head_dim, 1, MAX_HEAD_DIM);
    range(&c, "cols", s.cols, 1, HS_MASK_MAX_COLS);
    s.cq = need(&c, "cq", s.cq, T_F32, VOLUME(&c, "cq", s.heads, s.rows, s.head_dim));
    s.ck = need(&c, "ck", s.ck, T_F32, VOLUME(&c, "ck", s.heads, s.cols, s.head_dim));
    s.want = need(&c, "want", s.want, T_U8, s.heads);
    s.scores = need(&c, "scores", s.scores, T_F32, VOLUME(&c, "scores", s.heads, s.rows, s.cols));
    if (dev->sticky) return;
    if (s.start.p) {
        s.start = need(&c, "start", s.start, T_I32, VOLUME(&c, "start", s.heads, (int64_t)s.cols + 1));
    } else {
        range(&c, "block", s.block, 1, MAX_BLOCK);
        range(&c, "cols", s.cols, blocks(s.len, s.block), blocks(s.len, s.block));
    }
    apart(&c, "scores", s.scores, "cq", s.cq);
    apart(&c, "scores", s.scores, "ck", s.ck);
    apart(&c, "scores", s.scores, "start", s.start);
    apart(&c, "scores", s.scores, "want", s.want);
    if (offers(&c, dev->ops->centroid_scores != NULL)) dev->ops->centroid_scores(dev, &s);
}

void hs_op_select(hs_device *dev, const hs_select *a) {
    const call c = {dev, "select"};
    hs_select s = *a;
    if (!s.mask) bad(&c, "mask is missing");
    if (dev->sticky) return;
    hs_mask m = *s.mask;
    check_bits(&c, &m);
    range(&c, "cols", s.cols, m.cols, HS_MASK_MAX_COLS);
    range(&c, "at_least", s.at_least, 0, s.cols);
    range(&c, "rule", s.rule, 0, HS_SELECT_UPTO);
    s.scores = need(&c, "scores", s.scores, T_F32, VOLUME(&c, "scores", m.heads, m.rows, s.cols));
    s.top_p = need(&c, "top_p", s.top_p, T_F32, m.heads);
    s.want = need(&c, "want", s.want, T_U8, m.heads);
    apart(&c, "bits", m.bits, "scores", s.scores);
    apart(&c, "bits", m.bits, "top_p", s.top_p);
    apart(&c, "bits", m.bits, "want", s.want);
    apart(&c, "dense", m.dense, "scores", s.scores);
    apart(&c, "dense", m.dense, "top_p", s.top_p);
    apart(&c, "dense", m.dense, "want", s.want);
    apart(&c, "dense", m.dense, "bits", m.bits);
    s.mask = &m;
    if (offers(&c, dev->ops->select != NULL)) dev->ops->select(dev, &s);
}

void hs_op_mask_density(hs_device *dev, const hs_mask *mask, hs_buf want, hs_buf density) {
    const call c = {dev, "mask_density"};
    if (!mask) bad(&c, "mask is missing");
    if (dev->sticky) return;
    hs_mask m = *mask;
    check_bits(&c, &m);
    range(&c, "len_q", m.len_q, 1, INT32_MAX);
    range(&c, "len_k", m.len_k, 1, INT32_MAX);
    check_sizes(&c, &m);
    want = need(&c, "want", want, T_U8, m.heads);
    density = need(&c, "density", density, T_F32, m.heads);
    apart(&c, "density", density, "bits", m.bits);
    apart(&c, "density", density, "dense", m.dense);
    apart(&c, "density", density, "want", want);
    apart(&c, "density", density, "q_start", m.q_start);
    apart(&c, "density", density, "k_start", m.k_start);
    if (offers(&c, dev->ops->mask_density != NULL)) dev->ops->mask_density(dev, &m, want, density);
}

void hs_op_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                       hs_buf want, hs_buf y) {
    const call c = {dev, "block_means"};
    range(&c, "head_dim", head_dim, 1, MAX_HEAD_DIM);
    range(&c, "block", block, 1, MAX_BLOCK);
    x = need(&c, "x", x, act(dev), extent(&c, "x", len, ld, VOLUME(&c, "x", heads, head_dim)));
    want = need(&c, "want", want, T_U8, heads);
    if (dev->sticky) return;
    y = need(&c, "y", y, T_F32, VOLUME(&c, "y", heads, blocks(len, block), head_dim));
    apart(&c, "y", y, "x", x);
    apart(&c, "y", y, "want", want);
    if (offers(&c, dev->ops->block_means != NULL))
        dev->ops->block_means(dev, x, len, ld, heads, head_dim, block, want, y);
}

static hs_cluster checked_cluster(const call *c, const hs_cluster *a) {
    hs_cluster k = *a;
    range(c, "heads", k.heads, 1, HS_CLUSTER_HEADS);
    range(c, "head_dim", k.head_dim, 1, MAX_HEAD_DIM);
    range(c, "clusters", k.clusters, 1, HS_MASK_MAX_COLS);
    range(c, "len", k.len, 1, INT32_MAX);
    range(c, "iters_first", k.iters_first, 1, MAX_ROUNDS);
    range(c, "iters_next", k.iters_next, 1, MAX_ROUNDS);
    k.x = need(c, "x", k.x, act(c->dev), extent(c, "x", k.len, k.ld, VOLUME(c, "x", k.heads, k.head_dim)));
    k.centroids = need(c, "centroids", k.centroids, T_F32, VOLUME(c, "centroids", k.heads, k.clusters, k.head_dim));
    k.want = need(c, "want", k.want, T_U8, k.heads);
    k.label = need(c, "label", k.label, T_I32, VOLUME(c, "label", k.heads, k.len));
    k.order = need(c, "order", k.order, T_I32, VOLUME(c, "order", k.heads, k.len));
    k.start = need(c, "start", k.start, T_I32, VOLUME(c, "start", k.heads, (int64_t)k.clusters + 1));
    return k;
}

void hs_op_cluster(hs_device *dev, const hs_cluster *a) {
    const call c = {dev, "cluster"};
    hs_cluster k[2] = {checked_cluster(&c, a)};
    int n = 1;
    if (a->beside) {
        if (a->beside->beside) bad(&c, "more than two sets of tokens");
        if (a->beside->heads != a->heads || a->beside->head_dim != a->head_dim)
            bad(&c, "both sets of tokens must have as many heads of the same size");
        k[n++] = checked_cluster(&c, a->beside);
        k[0].beside = &k[1];
    }
    struct {
        const char *name;
        hs_buf b;
    } out[8];
    for (int i = 0; i < n; i++) {
        const hs_buf each[4] = {k[i].centroids, k[i].label, k[i].order, k[i].start};
        static const char *const name[4] = {"centroids", "label", "order", "start"};
        for (int o = 0; o < 4; o++) {
            out[i * 4 + o].name = name[o];
            out[i * 4 + o].b = each[o];
        }
    }
    for (int i = 0; i < 4 * n; i++) {
        for (int j = 0; j < n; j++) {
            apart(&c, out[i].name, out[i].b, "x", k[j].x);
            apart(&c, out[i].name, out[i].b, "want", k[j].want);
        }
        for (int j = 0; j < i; j++) apart(&c, out[i].name, out[i].b, out[j].name, out[j].b);
    }
    if (offers(&c, dev->ops->cluster != NULL)) dev->ops->cluster(dev, k);
}

void hs_op_reuse(hs_device *dev, const hs_reuse *a) {
    const call c = {dev, "reuse"};
    hs_reuse r = *a;
    range(&c, "kind", (int64_t)r.policy.kind, HS_REUSE_NONE, HS_REUSE_STAGGER);
    const int64_t n = VOLUME(&c, "mean_q", r.heads, r.dim);
    r.mean_q = need(&c, "mean_q", r.mean_q, T_F32, n);
    r.mean_k = need(&c, "mean_k", r.mean_k, T_F32, n);
    r.anchor_q = need(&c, "anchor_q", r.anchor_q, T_F32, n);
    r.anchor_k = need(&c, "anchor_k", r.anchor_k, T_F32, n);
    r.age = need(&c, "age", r.age, T_I32, r.heads);
    r.want = need(&c, "want", r.want, T_U8, r.heads);
    r.drift = need(&c, "drift", r.drift, T_F32, r.heads);
    const struct {
        const char *name;
        hs_buf b;
    } out[] = {
        {"anchor_q", r.anchor_q}, {"anchor_k", r.anchor_k}, {"age", r.age}, {"want", r.want}, {"drift", r.drift}};
    for (int i = 0; i < 5; i++) {
        apart(&c, out[i].name, out[i].b, "mean_q", r.mean_q);
        apart(&c, out[i].name, out[i].b, "mean_k", r.mean_k);
        for (int j = 0; j < i; j++) apart(&c, out[i].name, out[i].b, out[j].name, out[j].b);
    }
    if (offers(&c, dev->ops->reuse != NULL)) dev->ops->reuse(dev, &r);
}
