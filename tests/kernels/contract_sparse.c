/* The wrappers of masked attention and of the predictors (backend_sparse.c): right calls taken, wrong ones refused. */
#include "contract.h"
#include "mask.h"

static void masked_attention(hs_buf a, hs_buf b, hs_buf c) {
    const hs_buf flags = buffer(HS_U8, 4), ints = buffer(HS_I32, 64);
    const hs_mask blocks = {.heads = 2,
                            .rows = 2,
                            .cols = 3,
                            .words = 1,
                            .block = 2,
                            .len_q = 3,
                            .len_k = 5,
                            .bits = cut(ints, 4),
                            .dense = cut(flags, 2)};
    hs_mask m = blocks;
    const hs_attention t = {.q = cut(a, 24),
                            .k = hs_buf_at(a, 24, 40),
                            .v = cut(c, 40),
                            .out = cut(b, 24),
                            .ld_q = 8,
                            .ld_k = 8,
                            .ld_v = 8,
                            .ld_out = 8,
                            .len_q = 3,
                            .len_k = 5,
                            .heads = 2,
                            .head_dim = 4,
                            .scale = 1,
                            .mask = &m};
#define MASKED(...)                                                                                                    \
    {                                                                                                                  \
        hs_attention u = t;                                                                                            \
        m = blocks;                                                                                                    \
        __VA_ARGS__;                                                                                                   \
        hs_op_attention(dev, &u);                                                                                      \
    }
    ACCEPT(MASKED());
    REFUSE("attention: mask of 1 heads, 3 queries, 5 keys for 2 heads", MASKED(m.heads = 1));
    REFUSE("attention: mask of 2 heads, 3 queries, 6 keys for 2 heads", MASKED(m.len_k = 6));
    REFUSE("attention: bits holds 3 elements, 4 needed", MASKED(m.bits = cut(ints, 3)));
    REFUSE("attention: bits is F32, must be I32", MASKED(m.bits = cut(c, 4)));
    REFUSE("attention: dense holds 1 elements, 2 needed", MASKED(m.dense = cut(flags, 1)));
    REFUSE("attention: mask rows of 2 words, 1 needed for 3 columns", MASKED(m.words = 2));
    REFUSE("attention: rows of the mask is 3, must be 2 to 2", MASKED(m.rows = 3; m.bits = cut(ints, 6)));
    REFUSE("attention: columns of the mask is 2, must be 3 to 3", MASKED(m.cols = 2));
    REFUSE("attention: columns of the mask is 0", MASKED(m.cols = 0));
    REFUSE("attention: block of the mask is -1", MASKED(m.block = -1));
    REFUSE("attention: comp_v is missing", MASKED(u.comp_k = hs_buf_at(a, 64, 24)));
    REFUSE("attention: comp_k holds 23 elements, 24 needed",
           MASKED(u.comp_k = hs_buf_at(a, 64, 23), u.comp_v = cut(c, 24)));
    REFUSE("attention: output out (24 elements) overlaps comp_v",
           MASKED(u.comp_k = cut(c, 24), u.comp_v = hs_buf_at(b, 20, 24)));
    ACCEPT(MASKED(u.comp_k = hs_buf_at(a, 64, 24), u.comp_v = hs_buf_at(c, 40, 24)));

    static const int32_t layout[30] = {0, 1, 2, 2, 1, 0, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0, /* q_order, k_order */
                                       0, 1, 3, 0, 0, 3, 0, 2, 2, 5, 0, 0, 4, 5};      /* q_start, k_start */
    hs_upload(dev, hs_buf_at(ints, 4, 30), layout);
#define CLUSTERS(...)                                                                                                  \
    MASKED(m.block = 0; m.q_order = hs_buf_at(ints, 4, 6); m.k_order = hs_buf_at(ints, 10, 10);                        \
           m.q_start = hs_buf_at(ints, 20, 6); m.k_start = hs_buf_at(ints, 26, 8); __VA_ARGS__)
    ACCEPT(CLUSTERS());
    REFUSE("attention: q_order is missing", CLUSTERS(m.q_order = HS_NOBUF));
    REFUSE("attention: k_order holds 9 elements, 10 needed", CLUSTERS(m.k_order = cut(ints, 9)));
    REFUSE("attention: q_start holds 5 elements, 6 needed", CLUSTERS(m.q_start = cut(ints, 5)));
    REFUSE("attention: k_start holds 7 elements, 8 needed", CLUSTERS(m.k_start = cut(ints, 7)));
    REFUSE("attention: compensation needs uniform blocks", CLUSTERS(u.comp_k = cut(c, 24)));
    hs_device_free(dev, flags);
    hs_device_free(dev, ints);
}

static void predictors(hs_buf a, hs_buf b, hs_buf c) {
    const hs_buf flags = buffer(HS_U8, 8), ints = buffer(HS_I32, 64), want = hs_buf_at(flags, 4, 2);
    const hs_block_scores s = {.q = cut(a, 40),
                               .k = hs_buf_at(a, 40, 40),
                               .want = want,
                               .scores = cut(b, 18),
                               .ld_q = 8,
                               .ld_k = 8,
                               .len = 5,
                               .heads = 2,
                               .head_dim = 4,
                               .block = 2,
                               .stride = 2};
#define SCORES(...)                                                                                                    \
    {                                                                                                                  \
        hs_block_scores u = s;                                                                                         \
        __VA_ARGS__;                                                                                                   \
        hs_op_block_scores(dev, &u);                                                                                   \
    }
    ACCEPT(hs_op_block_scores(dev, &s));
    ACCEPT(SCORES(u.padded = 8, u.scores = cut(b, 24)));
    REFUSE("block_scores: scores holds 18 elements, 24 needed", SCORES(u.padded = 8));
    REFUSE("block_scores: padded to 4 tokens, must be a multiple of 2 not below 5", SCORES(u.padded = 4));
    REFUSE("block_scores: padded to 7 tokens", SCORES(u.padded = 7));
    REFUSE("block_scores: stride is 3, must be 1 to 2", SCORES(u.stride = 3));
    REFUSE("block_scores: block 3 is not a multiple of stride 2", SCORES(u.block = 3));
    REFUSE("block_scores: k holds 39 elements, 40 needed", SCORES(u.k = cut(c, 39)));
    REFUSE("block_scores: want is F32, must be U8", SCORES(u.want = cut(c, 2)));
    REFUSE("block_scores: output scores (18 elements) overlaps k", SCORES(u.scores = hs_buf_at(a, 79, 18)));

    const hs_centroid_scores k = {.cq = cut(a, 16),
                                  .ck = cut(c, 24),
                                  .start = cut(ints, 8),
                                  .want = want,
                                  .scores = cut(b, 12),
                                  .len = 5,
                                  .heads = 2,
                                  .rows = 2,
                                  .cols = 3,
                                  .head_dim = 4,
                                  .scale = 1};
#define CENTROIDS(...)                                                                                                 \
    {                                                                                                                  \
        hs_centroid_scores u = k;                                                                                      \
        __VA_ARGS__;                                                                                                   \
        hs_op_centroid_scores(dev, &u);                                                                                \
    }
    ACCEPT(hs_op_centroid_scores(dev, &k));
    ACCEPT(CENTROIDS(u.start = HS_NOBUF, u.block = 2));
    REFUSE("centroid_scores: block is 0, must be 1", CENTROIDS(u.start = HS_NOBUF));
    REFUSE("centroid_scores: cols is 3, must be 2 to 2", CENTROIDS(u.start = HS_NOBUF, u.block = 4));
    REFUSE("centroid_scores: start holds 7 elements, 8 needed", CENTROIDS(u.start = cut(ints, 7)));
    REFUSE("centroid_scores: ck holds 23 elements, 24 needed", CENTROIDS(u.ck = cut(c, 23)));
    REFUSE("centroid_scores: output scores (12 elements) overlaps cq", CENTROIDS(u.scores = cut(a, 12)));

    hs_mask m = {.heads = 2, .rows = 2, .cols = 3, .words = 1, .bits = cut(ints, 4), .dense = cut(flags, 2)};
    const hs_select p = {.scores = cut(a, 16), .top_p = cut(c, 2), .want = want, .cols = 4, .at_least = 1, .mask = &m};
#define SELECT(...)                                                                                                    \
    {                                                                                                                  \
        hs_select u = p;                                                                                               \
        __VA_ARGS__;                                                                                                   \
        hs_op_select(dev, &u);                                                                                         \
    }
    ACCEPT(hs_op_select(dev, &p));
    REFUSE("select: mask is missing", SELECT(u.mask = NULL));
    REFUSE("select: cols is 2, must be 3 to 65536", SELECT(u.cols = 2));
    REFUSE("select: at_least is 5, must be 0 to 4", SELECT(u.at_least = 5));
    REFUSE("select: rule is 3, must be 0 to 2", SELECT(u.rule = 3));
    REFUSE("select: scores holds 15 elements, 16 needed", SELECT(u.scores = cut(a, 15)));
    REFUSE("select: top_p holds 1 elements, 2 needed", SELECT(u.top_p = cut(c, 1)));
    REFUSE("select: output dense (2 elements) overlaps want", SELECT(u.want = cut(flags, 2)));

    hs_mask d = m;
    d.block = 2, d.len_q = 4, d.len_k = 5;
    ACCEPT(hs_op_mask_density(dev, &d, want, cut(b, 2)));
    REFUSE("mask_density: mask is missing", hs_op_mask_density(dev, NULL, want, cut(b, 2)));
    REFUSE("mask_density: density holds 1 elements, 2 needed", hs_op_mask_density(dev, &d, want, cut(b, 1)));
    REFUSE("mask_density: want is F32, must be U8", hs_op_mask_density(dev, &d, cut(c, 2), cut(b, 2)));
    d.len_k = 7;
    REFUSE("mask_density: columns of the mask is 3, must be 4 to 4", hs_op_mask_density(dev, &d, want, cut(b, 2)));
    d.block = 0;
    REFUSE("mask_density: q_start is missing", hs_op_mask_density(dev, &d, want, cut(b, 2)));

    ACCEPT(hs_op_block_means(dev, cut(a, 40), 5, 8, 2, 4, 2, want, cut(b, 24)));
    REFUSE("block_means: y holds 23 elements, 24 needed",
           hs_op_block_means(dev, cut(a, 40), 5, 8, 2, 4, 2, want, cut(b, 23)));
    REFUSE("block_means: x holds 39 elements, 40 needed",
           hs_op_block_means(dev, cut(a, 39), 5, 8, 2, 4, 2, want, cut(b, 24)));
    REFUSE("block_means: block is 0", hs_op_block_means(dev, cut(a, 40), 5, 8, 2, 4, 0, want, cut(b, 24)));
    REFUSE("block_means: output y (24 elements) overlaps x",
           hs_op_block_means(dev, cut(a, 40), 5, 8, 2, 4, 2, want, cut(a, 24)));

    const hs_cluster g = {.x = cut(a, 40),
                          .centroids = cut(b, 24),
                          .want = want,
                          .label = cut(ints, 10),
                          .order = hs_buf_at(ints, 10, 10),
                          .start = hs_buf_at(ints, 20, 8),
                          .len = 5,
                          .ld = 8,
                          .heads = 2,
                          .head_dim = 4,
                          .clusters = 3,
                          .iters_first = 2,
                          .iters_next = 1};
#define CLUSTER(...)                                                                                                   \
    {                                                                                                                  \
        hs_cluster u = g;                                                                                              \
        __VA_ARGS__;                                                                                                   \
        hs_op_cluster(dev, &u);                                                                                        \
    }
    ACCEPT(hs_op_cluster(dev, &g));
    REFUSE("cluster: centroids holds 23 elements, 24 needed", CLUSTER(u.centroids = cut(b, 23)));
    REFUSE("cluster: start holds 7 elements, 8 needed", CLUSTER(u.start = hs_buf_at(ints, 20, 7)));
    REFUSE("cluster: label is missing", CLUSTER(u.label = HS_NOBUF));
    REFUSE("cluster: iters_next is 0, must be 1", CLUSTER(u.iters_next = 0));
    REFUSE("cluster: clusters is 0, must be 1", CLUSTER(u.clusters = 0));
    REFUSE("cluster: heads is 129, must be 1 to 128", CLUSTER(u.heads = 129));
    REFUSE("cluster: output order (10 elements) overlaps label", CLUSTER(u.order = cut(ints, 10)));
    REFUSE("cluster: output centroids (24 elements) overlaps x", CLUSTER(u.centroids = cut(a, 24)));
    hs_cluster beside = g;
    REFUSE("cluster: output centroids (24 elements) overlaps centroids", CLUSTER(u.beside = &beside));
    beside.head_dim = 2;
    REFUSE("cluster: both sets of tokens must have as many heads of the same size", CLUSTER(u.beside = &beside));
    beside.beside = &g;
    REFUSE("cluster: more than two sets of tokens", CLUSTER(u.beside = &beside));

    const hs_reuse r = {.policy = {.kind = HS_REUSE_DRIFT, .gate_high = 1},
                        .heads = 2,
                        .dim = 4,
                        .mean_q = cut(a, 8),
                        .mean_k = cut(c, 8),
                        .anchor_q = cut(b, 8),
                        .anchor_k = hs_buf_at(b, 8, 8),
                        .age = cut(ints, 2),
                        .want = want,
                        .drift = hs_buf_at(b, 16, 2)};
#define REUSE(...)                                                                                                     \
    {                                                                                                                  \
        hs_reuse u = r;                                                                                                \
        __VA_ARGS__;                                                                                                   \
        hs_op_reuse(dev, &u);                                                                                          \
    }
    ACCEPT(hs_op_reuse(dev, &r));
    REFUSE("reuse: kind is 9, must be 0 to 5", REUSE(u.policy.kind = (hs_reuse_kind)9));
    REFUSE("reuse: anchor_k holds 7 elements, 8 needed", REUSE(u.anchor_k = hs_buf_at(b, 8, 7)));
    REFUSE("reuse: age is U8, must be I32", REUSE(u.age = cut(flags, 2)));
    REFUSE("reuse: output anchor_k (8 elements) overlaps anchor_q", REUSE(u.anchor_k = cut(b, 8)));
    REFUSE("reuse: output anchor_q (8 elements) overlaps mean_k", REUSE(u.anchor_q = cut(c, 8)));

    hs_ops partial = *dev->ops; /* a backend without predictors is a whole backend that refuses them */
    const hs_ops *whole = dev->ops;
    partial.block_scores = NULL;
    dev->ops = &partial;
    hs_op_block_scores(dev, &s);
    expect_sticky(HS_ENOTSUP, "block_scores: device 'ref", "an operation that the backend lacks");
    dev->ops = whole;
    hs_device_free(dev, flags);
    hs_device_free(dev, ints);
}

void sparse_operations(hs_buf a, hs_buf b, hs_buf c) {
    masked_attention(a, b, c);
    predictors(a, b, c);
}
