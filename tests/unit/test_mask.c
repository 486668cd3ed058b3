/* mask.c and the operations around masks on the reference backend: what selection promises, densities, p = 1 equal to
 * dense attention bit for bit, and masked attention of every legal size against a loop over tokens. */
#include "engine/mask.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLS = 70 };

/* Uniform in [0, 1), the same in every run. */
static double uniform(uint64_t seed, uint64_t i) {
    return (double)(hs_hash64(hs_hash64(seed) + i) >> 11) * 0x1p-53;
}

/* ---- selection ------------------------------------------------------------------------------------------------------
 */
/* Scores as predictors give them: spread over decades, some equal, some zero. */
static int make_row(uint64_t seed, float score[MAX_COLS]) {
    const int cols = 1 + (int)(uniform(seed, 0) * MAX_COLS);
    for (int c = 0; c < cols; c++) {
        score[c] = (float)exp(6 * uniform(seed, 1 + (uint64_t)c) - 6);
        if (uniform(seed, 100 + (uint64_t)c) < 0.2) score[c] = 0.125f;
        if (uniform(seed, 200 + (uint64_t)c) < 0.1) score[c] = 0;
    }
    return cols;
}

typedef struct picked {
    int n;
    int32_t bits[3];
    double mass, sum, least; /* kept, all, smallest kept */
} picked;

static picked pick(const float *score, int cols, float p, int at_least, int rule) {
    picked x = {.bits = {-1, -1, -1}, .least = INFINITY};
    int32_t order[MAX_COLS];
    int n = 0;
    x.n = hs_mask_select(score, cols, p, at_least, rule, order, x.bits);
    for (int c = 0; c < cols; c++) {
        x.sum += score[c];
        if (!hs_mask_bit(x.bits, c)) continue;
        n++;
        x.mass += score[c];
        x.least = fmin(x.least, score[c]);
    }
    cr_assert_eq(n, x.n, "%d bits, said %d", n, x.n);
    for (int c = cols; c < 32 * hs_mask_words(cols); c++) cr_assert_eq(hs_mask_bit(x.bits, c), 0, "spare bit %d", c);
    return x;
}

Test(mask, kept_mass_reaches_p_and_one_block_fewer_falls_short) {
    static const float ps[] = {1e-6f, 0.3f, 0.5f, 0.8f, 0.9f, 0.99f, 0.9999f};
    for (uint64_t seed = 0; seed < 2000; seed++) {
        float score[MAX_COLS];
        const int cols = make_row(seed, score), at_least = (int)(seed % 4);
        const float p = ps[seed % 7];
        const picked x = pick(score, cols, p, at_least, 0);
        const int least = at_least > 1 ? at_least : 1;
        cr_assert(x.mass >= p * x.sum * (1 - 1e-12), "seed %d: %g of %g at p %g", (int)seed, x.mass, x.sum, p);
        cr_assert(x.n >= (least < cols ? least : cols));
        if (x.n > least)
            cr_assert(x.mass - x.least < p * x.sum, "seed %d: %d columns are one too many", (int)seed, x.n);
        for (int c = 0; c < cols; c++) /* the largest are kept, of equal ones the first */
            for (int d = 0; d < cols; d++)
                if (hs_mask_bit(x.bits, c) && !hs_mask_bit(x.bits, d))
                    cr_assert(score[c] > score[d] || (score[c] == score[d] && c < d), "seed %d: %d kept, %d not",
                              (int)seed, c, d);
    }
}

Test(mask, density_never_falls_with_p) {
    for (uint64_t seed = 0; seed < 300; seed++) {
        float score[MAX_COLS];
        const int cols = make_row(seed, score);
        picked last = pick(score, cols, 0.01f, 1, 0);
        for (int i = 2; i <= 100; i++) {
            const picked x = pick(score, cols, (float)i / 100, 1, 0);
            cr_assert(x.n >= last.n);
            for (int w = 0; w < hs_mask_words(cols); w++)
                cr_assert_eq(last.bits[w] & ~x.bits[w], 0, "kept at less, not at more");
            last = x;
        }
        cr_assert_eq(last.n, cols, "p = 1 keeps all, zeros too");
    }
}

/* As published, rounding included: the sum of the kept may stay below the sum of all, yet no zero follows. */
Test(mask, published_xattention_never_keeps_zeros) {
    for (uint64_t seed = 0; seed < 2000; seed++) {
        float score[MAX_COLS];
        const int cols = make_row(seed, score);
        int expected = score[0] == 0; /* block 0 comes on top */
        for (int c = 0; c < cols; c++) expected += score[c] > 0;
        const picked x = pick(score, cols, 1, 1, HS_SELECT_BLOCK0);
        cr_assert(x.n <= expected, "seed %d: %d kept of %d", (int)seed, x.n, expected);
    }
}

Test(mask, edges_of_selection) {
    static const float zero[5] = {0}, equal[4] = {2, 2, 2, 2}, exact[4] = {4, 2, 1, 1}, nan[3] = {NAN, 1, NAN};
    picked x = pick(zero, 5, 0.9f, 0, 0);
    cr_expect(x.n == 1 && x.bits[0] == 1, "nothing to choose from: the first column");
    cr_expect_eq(pick(zero, 5, 1, 0, 0).n, 5);
    cr_expect_eq(pick(zero, 5, 0.9f, 9, 0).n, 5, "no more than there are");
    cr_expect_eq(pick(zero, 5, 1, 1, HS_SELECT_BLOCK0).n, 1);
    x = pick(equal, 4, 0.5f, 1, 0);
    cr_expect(x.n == 2 && x.bits[0] == 3, "equal: lower columns first");
    cr_expect_eq(pick(exact, 4, 0.75f, 1, 0).n, 2, "at equality it stops");
    cr_expect_eq(pick(exact, 4, 0.76f, 1, 0).n, 3);
    cr_expect_eq(pick(exact, 1, 0.5f, 1, 0).n, 1);
    cr_expect(pick(nan, 3, 0.5f, 1, 0).n >= 1, "NaN scores end the search");
    static const float last[4] = {0, 0, 1, 7}, share[4] = {0.5f, 0.25f, 0.125f, 0.125f};
    x = pick(last, 4, 0.5f, 1, HS_SELECT_BLOCK0);
    cr_expect(x.n == 2 && x.bits[0] == 9, "block 0 besides what is kept");
    cr_expect_eq(pick(last, 4, 1, 1, HS_SELECT_BLOCK0).n, 3, "zeros are not kept at p = 1");
    cr_expect_eq(pick(share, 4, 0.5f, 1, HS_SELECT_UPTO).n, 2, "at equality one more");
    cr_expect_eq(pick(share, 4, 0.25f, 3, HS_SELECT_UPTO).n, 3);
    cr_expect_eq(pick(last, 4, 0.5f, 1, HS_SELECT_UPTO).n, 1, "the total counts as 1, whatever it is");
}

/* ---- densities -----------------------------------------------------------------------------------------------------
 */
Test(mask, density_counts_token_pairs) {
    int32_t bits[6] = {5, 2, 0, 7, 7, 7}; /* two heads of 3 x 3 blocks of 64, 64 and 2 tokens */
    uint8_t dense[2] = {0, 0};
    hs_mask m = {.heads = 2,
                 .rows = 3,
                 .cols = 3,
                 .words = 1,
                 .block = 64,
                 .len_q = 130,
                 .len_k = 130,
                 .bits = {bits, HS_I32, 6},
                 .dense = {dense, HS_U8, 2}};
    cr_expect_float_eq(hs_mask_density(&m, 0), (64.0 * 66 + 64 * 64) / (130 * 130), 1e-12);
    cr_expect_eq(hs_mask_density(&m, 1), 1);
    dense[0] = 1;
    cr_expect_eq(hs_mask_density(&m, 0), 1, "bits of a dense head do not count");

    int32_t rows[4] = {1, 6, 0, 3}, q_start[6] = {0, 3, 3, 0, 0, 3}, k_start[8] = {0, 1, 1, 5, 0, 2, 4, 5};
    uint8_t none[2] = {0, 0};
    hs_mask c = {.heads = 2,
                 .rows = 2,
                 .cols = 3,
                 .words = 1,
                 .len_q = 3,
                 .len_k = 5,
                 .bits = {rows, HS_I32, 4},
                 .dense = {none, HS_U8, 2},
                 .q_start = {q_start, HS_I32, 6},
                 .k_start = {k_start, HS_I32, 8}};
    cr_expect_float_eq(hs_mask_density(&c, 0), 3.0 / 15, 1e-12); /* its second row has no token */
    cr_expect_float_eq(hs_mask_density(&c, 1), 12.0 / 15, 1e-12);
}

Test(mask, overlap_is_intersection_over_union) {
    int32_t x[2] = {3, 4}, y[2] = {6, 4}, z[2] = {0, 0};
    uint8_t sparse[1] = {0}, dense[1] = {1};
    hs_mask a = {.heads = 1,
                 .rows = 2,
                 .cols = 3,
                 .words = 1,
                 .block = 64,
                 .len_q = 128,
                 .len_k = 192,
                 .bits = {x, HS_I32, 2},
                 .dense = {sparse, HS_U8, 1}},
            b = a, c = a, d = a;
    b.bits.p = y;
    c.bits.p = z;
    d.dense.p = dense;
    cr_expect_float_eq(hs_mask_overlap(&a, &b, 0), 2.0 / 4, 1e-12);
    cr_expect_eq(hs_mask_overlap(&a, &a, 0), 1);
    cr_expect_eq(hs_mask_overlap(&a, &c, 0), 0);
    cr_expect_eq(hs_mask_overlap(&c, &c, 0), 1, "two empty masks are equal");
    cr_expect_float_eq(hs_mask_overlap(&a, &d, 0), 3.0 / 6, 1e-12);
}

/* ---- chains of operations, on ref
 * ------------------------------------------------------------------------------------- */
enum { HEADS = 3, D = 32, MAX_N = 200, ROWS = 8, CLUSTERS = 12 };

/* Tokens around a few points, so that masks have something to find. Everything an attention layer would hold. */
typedef struct rig {
    hs_device *dev;
    int64_t n;
    hs_buf q, k, v, out, want, top_p, scores, label, pooled[2], centroid[2];
    hs_mask m;
} rig;

static hs_buf fresh(rig *r, hs_dtype type, int64_t n) {
    hs_buf b;
    hs_err err = {0};
    cr_assert_eq(hs_device_alloc(r->dev, type, n, "test", &b, &err), 0, "%s", err.msg);
    hs_zero(r->dev, b);
    return b;
}

static void check(const rig *r) {
    hs_err err = {0};
    cr_assert_eq(hs_device_check(r->dev, &err), 0, "%s", err.msg);
}

static void open_rig(rig *r, int64_t n, int rows, int cols, int block) {
    hs_err err = {0};
    *r = (rig){.n = n};
    cr_assert_eq(hs_device_open(&(hs_device_params){.name = "ref"}, &r->dev, &err), 0, "%s", err.msg);
    r->q = fresh(r, HS_F32, n * HEADS * D);
    r->k = fresh(r, HS_F32, r->q.n);
    r->v = fresh(r, HS_F32, r->q.n);
    r->out = fresh(r, HS_F32, r->q.n);
    for (int64_t i = 0; i < r->q.n; i++) { /* device memory is host memory here */
        const uint64_t point = (uint64_t)(i / (HEADS * D) / 7 % 5),
                       at = point * HEADS * D + (uint64_t)(i % (HEADS * D));
        ((float *)r->q.p)[i] = (float)(3 * uniform(1, at) - 1.5 + uniform(2, (uint64_t)i));
        ((float *)r->k.p)[i] = (float)(3 * uniform(1, at) - 1.5 + uniform(3, (uint64_t)i));
        ((float *)r->v.p)[i] = (float)(2 * uniform(4, (uint64_t)i) - 1);
    }
    r->want = fresh(r, HS_U8, HEADS);
    memset(r->want.p, 2, HEADS);
    r->top_p = fresh(r, HS_F32, HEADS);
    r->scores = fresh(r, HS_F32, HEADS * rows * cols);
    r->m = (hs_mask){.heads = HEADS,
                     .rows = rows,
                     .cols = cols,
                     .words = hs_mask_words(cols),
                     .block = block,
                     .len_q = n,
                     .len_k = n};
    r->m.bits = fresh(r, HS_I32, HEADS * rows * r->m.words);
    r->m.dense = fresh(r, HS_U8, HEADS);
    r->label = fresh(r, HS_I32, HEADS * n);
    r->m.q_order = fresh(r, HS_I32, HEADS * n);
    r->m.k_order = fresh(r, HS_I32, HEADS * n);
    r->m.q_start = fresh(r, HS_I32, HEADS * (rows + 1));
    r->m.k_start = fresh(r, HS_I32, HEADS * (cols + 1));
    r->centroid[0] = fresh(r, HS_F32, HEADS * rows * D);
    r->centroid[1] = fresh(r, HS_F32, HEADS * cols * D);
    r->pooled[0] = fresh(r, HS_F32, HEADS * cols * D);
    r->pooled[1] = fresh(r, HS_F32, HEADS * cols * D);
}

static void close_rig(rig *r) {
    const hs_buf all[] = {r->q,      r->k,       r->v,         r->out,       r->want,        r->top_p,
                          r->scores, r->label,   r->pooled[0], r->pooled[1], r->centroid[0], r->centroid[1],
                          r->m.bits, r->m.dense, r->m.q_order, r->m.k_order, r->m.q_start,   r->m.k_start};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hs_device_free(r->dev, all[i]);
    cr_expect_eq(hs_device_bytes(r->dev, NULL), 0);
    hs_device_close(r->dev);
}

typedef enum method { XATTENTION, POOLED, SVG2, METHODS } method;

static void centroid_scores(rig *r, hs_buf cq, hs_buf ck, hs_buf start) {
    hs_op_centroid_scores(r->dev, &(hs_centroid_scores){.cq = cq,
                                                        .ck = ck,
                                                        .start = start,
                                                        .want = r->want,
                                                        .scores = r->scores,
                                                        .len = r->n,
                                                        .heads = HEADS,
                                                        .rows = r->m.rows,
                                                        .cols = r->m.cols,
                                                        .head_dim = D,
                                                        .block = r->m.block,
                                                        .scale = 1 / sqrtf(D)});
}

static void predict(rig *r, method how, const float top_p[HEADS]) {
    const int64_t ld = HEADS * D;
    if (how == XATTENTION)
        hs_op_block_scores(r->dev, &(hs_block_scores){.q = r->q,
                                                      .k = r->k,
                                                      .want = r->want,
                                                      .scores = r->scores,
                                                      .ld_q = ld,
                                                      .ld_k = ld,
                                                      .len = r->n,
                                                      .heads = HEADS,
                                                      .head_dim = D,
                                                      .block = r->m.block,
                                                      .stride = 16});
    if (how == POOLED) {
        hs_op_block_means(r->dev, r->q, r->n, ld, HEADS, D, r->m.block, r->want, r->pooled[0]);
        hs_op_block_means(r->dev, r->k, r->n, ld, HEADS, D, r->m.block, r->want, r->pooled[1]);
        centroid_scores(r, r->pooled[0], r->pooled[1], HS_NOBUF);
    }
    for (int s = 0; s < 2 && how == SVG2; s++)
        hs_op_cluster(r->dev, &(hs_cluster){.x = s ? r->k : r->q,
                                            .centroids = r->centroid[s],
                                            .want = r->want,
                                            .label = r->label,
                                            .order = s ? r->m.k_order : r->m.q_order,
                                            .start = s ? r->m.k_start : r->m.q_start,
                                            .len = r->n,
                                            .ld = ld,
                                            .heads = HEADS,
                                            .head_dim = D,
                                            .clusters = s ? r->m.cols : r->m.rows,
                                            .iters_first = 4,
                                            .iters_next = 2,
                                            .seed = 3});
    if (how == SVG2) centroid_scores(r, r->centroid[0], r->centroid[1], r->m.k_start);
    hs_upload(r->dev, r->top_p, top_p);
    hs_op_select(r->dev, &(hs_select){.scores = r->scores,
                                      .top_p = r->top_p,
                                      .want = r->want,
                                      .cols = r->m.cols,
                                      .at_least = how == SVG2 ? r->m.cols / 10 : 1,
                                      .mask = &r->m});
    check(r);
}

static void attend(rig *r, const hs_mask *m, hs_buf comp_k, hs_buf comp_v) {
    const int64_t ld = HEADS * D;
    hs_op_attention(r->dev, &(hs_attention){.q = r->q,
                                            .k = r->k,
                                            .v = r->v,
                                            .out = r->out,
                                            .ld_q = ld,
                                            .ld_k = ld,
                                            .ld_v = ld,
                                            .ld_out = ld,
                                            .len_q = r->n,
                                            .len_k = r->n,
                                            .heads = HEADS,
                                            .head_dim = D,
                                            .scale = 1 / sqrtf(D),
                                            .mask = m,
                                            .comp_k = comp_k,
                                            .comp_v = comp_v});
    check(r);
}

/* Which group each token of head h is in, by either layout. */
static void groups(const rig *r, hs_buf order, hs_buf start, int n, int h, int *ret) {
    const int32_t *o = (const int32_t *)order.p + h * r->n, *s = (const int32_t *)start.p + h * (n + 1);
    for (int64_t i = 0; i < r->n; i++) ret[i] = r->m.block ? (int)(i / r->m.block) : -1;
    for (int c = 0; c < n && !r->m.block; c++)
        for (int32_t p = s[c]; p < s[c + 1]; p++) ret[o[p]] = c;
}

/* A loop over tokens: every pair is looked up in the mask by the groups of its two tokens. Returns the largest error of
 * r->out and the kept pairs of all heads. */
static double against_tokens(const rig *r, int64_t *ret_pairs) {
    int row[MAX_N], col[MAX_N];
    double worst = 0;
    *ret_pairs = 0;
    for (int h = 0; h < HEADS; h++) {
        const int dense = ((const uint8_t *)r->m.dense.p)[h];
        groups(r, r->m.q_order, r->m.q_start, r->m.rows, h, row);
        groups(r, r->m.k_order, r->m.k_start, r->m.cols, h, col);
        for (int64_t i = 0; i < r->n; i++) {
            const int32_t *bits = (const int32_t *)r->m.bits.p + (h * r->m.rows + row[i]) * r->m.words;
            double sum = 0, acc[D] = {0};
            cr_assert(row[i] >= 0 && col[i] >= 0, "token %d is in no group", (int)i);
            for (int64_t j = 0; j < r->n; j++) {
                double s = 0;
                if (!dense && !hs_mask_bit(bits, col[j])) continue;
                for (int c = 0; c < D; c++)
                    s +=
                        (double)((float *)r->q.p)[(i * HEADS + h) * D + c] * ((float *)r->k.p)[(j * HEADS + h) * D + c];
                sum += exp(s / sqrt(D));
                for (int c = 0; c < D; c++) acc[c] += exp(s / sqrt(D)) * ((float *)r->v.p)[(j * HEADS + h) * D + c];
                ++*ret_pairs;
            }
            for (int c = 0; c < D; c++)
                worst = fmax(worst, fabs((sum > 0 ? acc[c] / sum : 0) - ((float *)r->out.p)[(i * HEADS + h) * D + c]));
        }
    }
    return worst;
}

static void open_method(rig *r, method how, int64_t n) {
    const int blocks = (int)((n + 63) / 64);
    open_rig(r, n, how == SVG2 ? ROWS : blocks, how == SVG2 ? CLUSTERS : blocks, how == SVG2 ? 0 : 64);
}

Test(masks_on_ref, any_size_equals_a_loop_over_tokens) {
    static const int64_t sizes[] = {1, 2, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200};
    static const float top_p[HEADS] = {0.6f, 0.9f, 1};
    for (int how = 0; how < METHODS; how++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            rig r;
            int64_t pairs;
            double density = 0;
            open_method(&r, (method)how, sizes[i]);
            predict(&r, (method)how, top_p);
            attend(&r, &r.m, HS_NOBUF, HS_NOBUF);
            const double worst = against_tokens(&r, &pairs);
            cr_expect(worst < 1e-6, "method %d, %d tokens: error %g", how, (int)r.n, worst);
            for (int h = 0; h < HEADS; h++) density += hs_mask_density(&r.m, h) * (double)(r.n * r.n);
            cr_expect_float_eq(density, (double)pairs, 1e-6, "method %d, %d tokens: density", how, (int)r.n);
            if (r.n == 200) cr_expect(hs_mask_density(&r.m, 0) < 0.95, "method %d: nothing was dropped", how);
            cr_expect(((uint8_t *)r.m.dense.p)[2] == 1 && ((uint8_t *)r.m.dense.p)[1] == 0,
                      "p = 1 is dense, .9 is not");
            close_rig(&r);
        }
}

Test(masks_on_ref, p_1_is_dense_attention_bit_for_bit) {
    static const float one[HEADS] = {1, 1, 1}, some[HEADS] = {1, 0.5f, 1};
    for (int how = 0; how < METHODS; how++) {
        float *dense = malloc(MAX_N * HEADS * D * sizeof *dense);
        rig r;
        open_method(&r, (method)how, MAX_N);
        attend(&r, NULL, HS_NOBUF, HS_NOBUF);
        memcpy(dense, r.out.p, (size_t)r.out.n * sizeof *dense);
        predict(&r, (method)how, one);
        hs_zero(r.dev, r.out);
        attend(&r, &r.m, HS_NOBUF, HS_NOBUF);
        cr_expect_arr_eq(dense, r.out.p, (size_t)r.out.n * sizeof *dense, "method %d", how);
        if (how != SVG2) { /* every block kept is the same sum, whether the head is called dense or not */
            hs_zero(r.dev, r.m.dense);
            hs_zero(r.dev, r.out);
            attend(&r, &r.m, HS_NOBUF, HS_NOBUF);
            cr_expect_arr_eq(dense, r.out.p, (size_t)r.out.n * sizeof *dense, "method %d, all bits", how);
        }
        predict(&r, (method)how, some);
        attend(&r, &r.m, HS_NOBUF, HS_NOBUF);
        int differ[HEADS] = {0};
        for (int64_t i = 0; i < r.out.n; i++) differ[i / D % HEADS] |= dense[i] != ((float *)r.out.p)[i];
        cr_expect(!differ[0] && differ[1] && !differ[2], "method %d: thresholds belong to heads", how);
        free(dense);
        close_rig(&r);
    }
}

/* All clusters kept, but visited cluster by cluster: only the order of the sums may show. */
Test(masks_on_ref, a_permuted_run_comes_back_in_order) {
    static const float one[HEADS] = {1, 1, 1};
    rig r;
    float dense[MAX_N * HEADS * D];
    open_method(&r, SVG2, MAX_N);
    attend(&r, NULL, HS_NOBUF, HS_NOBUF);
    memcpy(dense, r.out.p, sizeof dense);
    predict(&r, SVG2, one);
    hs_zero(r.dev, r.m.dense);
    hs_zero(r.dev, r.out);
    attend(&r, &r.m, HS_NOBUF, HS_NOBUF);
    int moved = 0;
    for (int i = 0; i < MAX_N; i++) moved += ((int32_t *)r.m.q_order.p)[i] != i;
    cr_expect(moved > MAX_N / 2, "the permutation moves only %d tokens", moved);
    for (int64_t i = 0; i < r.out.n; i++)
        cr_assert_float_eq(dense[i], ((float *)r.out.p)[i], 1e-6, "token %d, head %d", (int)(i / (HEADS * D)),
                           (int)(i / D % HEADS));
    close_rig(&r);
}

/* The scores that selection sees are a distribution over the real keys: nothing goes to padding or to empty clusters.
 */
Test(masks_on_ref, scores_add_up) {
    static const float top_p[HEADS] = {0.9f, 0.9f, 0.9f};
    static const int64_t sizes[] = {5, 65, 200};
    for (int how = 0; how < METHODS; how++)
        for (int i = 0; i < 3; i++) {
            rig r;
            open_method(&r, (method)how, sizes[i]);
            predict(&r, (method)how, top_p);
            for (int row = 0; row < HEADS * r.m.rows; row++) {
                const int64_t first = row % r.m.rows * 64, here = r.n - first < 64 ? r.n - first : 64;
                double sum = 0;
                for (int c = 0; c < r.m.cols; c++) sum += ((float *)r.scores.p)[row * r.m.cols + c];
                cr_expect_float_eq(sum, how == XATTENTION ? (double)((here + 15) / 16) : 1, 1e-5,
                                   "method %d, row %d: %g", how, row, sum);
            }
            close_rig(&r);
        }
}

/* Tokens that are equal within a block: its mean is each of them, so compensation must give the dense output. */
Test(masks_on_ref, compensation_is_exact_for_equal_tokens) {
    static const float top_p[HEADS] = {0.1f, 0.5f, 0.7f};
    rig r;
    float dense[MAX_N * HEADS * D];
    open_method(&r, XATTENTION, MAX_N);
    for (int64_t i = 0; i < r.k.n; i++) {
        const int64_t first = i / (HEADS * D) / 64 * 64 * HEADS * D + i % (HEADS * D);
        ((float *)r.k.p)[i] = ((float *)r.k.p)[first];
        ((float *)r.v.p)[i] = ((float *)r.v.p)[first];
    }
    attend(&r, NULL, HS_NOBUF, HS_NOBUF);
    memcpy(dense, r.out.p, sizeof dense);
    predict(&r, XATTENTION, top_p);
    hs_op_block_means(r.dev, r.k, r.n, HEADS * D, HEADS, D, 64, r.want, r.pooled[0]);
    hs_op_block_means(r.dev, r.v, r.n, HEADS * D, HEADS, D, 64, r.want, r.pooled[1]);
    double without = 0;
    attend(&r, &r.m, HS_NOBUF, HS_NOBUF);
    for (int64_t i = 0; i < r.out.n; i++) without = fmax(without, fabs((double)dense[i] - ((float *)r.out.p)[i]));
    cr_expect(without > 1e-2, "the mask drops nothing that matters (%g)", without);
    attend(&r, &r.m, r.pooled[0], r.pooled[1]);
    for (int64_t i = 0; i < r.out.n; i++)
        cr_assert_float_eq(dense[i], ((float *)r.out.p)[i], 2e-6, "element %d", (int)i);
    close_rig(&r);
}

Test(masks_on_ref, a_query_block_that_keeps_nothing_gives_zeros) {
    rig r;
    open_method(&r, XATTENTION, MAX_N);
    memset(r.out.p, 0xff, (size_t)r.out.n * sizeof(float));
    attend(&r, &r.m, HS_NOBUF, HS_NOBUF); /* no bit is set */
    for (int64_t i = 0; i < r.out.n; i++) cr_assert_eq(((float *)r.out.p)[i], 0);
    close_rig(&r);
}

/* A head at rest stops after the first round and keeps its start, whatever the others do. */
Test(masks_on_ref, heads_stop_alone) {
    rig r;
    open_method(&r, SVG2, 100);
    for (int64_t i = 0; i < r.q.n; i++)
        if (i / D % HEADS == 1) ((float *)r.q.p)[i] *= 1e-6f;
    for (int compat = 0; compat < 2; compat++) {
        hs_op_cluster(r.dev, &(hs_cluster){.x = r.q,
                                           .centroids = r.centroid[0],
                                           .want = r.want,
                                           .label = r.label,
                                           .order = r.m.q_order,
                                           .start = r.m.q_start,
                                           .len = r.n,
                                           .ld = HEADS * D,
                                           .heads = HEADS,
                                           .head_dim = D,
                                           .clusters = ROWS,
                                           .iters_first = 3,
                                           .iters_next = 3,
                                           .compat = compat});
        check(&r);
        for (int h = 0; h < 2; h++) {
            int same = 0;
            for (int c = 0; c < ROWS; c++) {
                const int64_t token = hs_cluster_token(0, h, c, ROWS, r.n);
                same += !memcmp((float *)r.q.p + (token * HEADS + h) * D, (float *)r.centroid[0].p + (h * ROWS + c) * D,
                                D * sizeof(float));
            }
            cr_expect(h == 1 && !compat ? same == ROWS : same < ROWS,
                      "compat %d, head %d: %d of %d centroids where they began", compat, h, same, ROWS);
        }
    }
    close_rig(&r);
}

/* A first refresh runs iters_first rounds from tokens, a later one iters_next from where it was left: 2 and then 3
 * rounds are 5 rounds. */
Test(masks_on_ref, rounds_go_on_where_they_were_left) {
    float five[HEADS * ROWS * D], two[HEADS * ROWS * D];
    rig r;
    open_method(&r, SVG2, MAX_N);
    hs_cluster c = {.x = r.q,
                    .centroids = r.centroid[0],
                    .want = r.want,
                    .label = r.label,
                    .order = r.m.q_order,
                    .start = r.m.q_start,
                    .len = r.n,
                    .ld = HEADS * D,
                    .heads = HEADS,
                    .head_dim = D,
                    .clusters = ROWS,
                    .iters_first = 5,
                    .iters_next = 1};
    for (int64_t i = 0; i < r.q.n; i++) ((float *)r.q.p)[i] = (float)uniform(5, (uint64_t)i); /* no clusters: slow */
    hs_op_cluster(r.dev, &c);
    memcpy(five, r.centroid[0].p, sizeof five);
    c.iters_first = 2;
    c.iters_next = 3;
    hs_op_cluster(r.dev, &c);
    memcpy(two, r.centroid[0].p, sizeof two);
    memset(r.want.p, 1, HEADS);
    hs_op_cluster(r.dev, &c);
    check(&r);
    cr_expect_arr_eq(five, r.centroid[0].p, sizeof five);
    cr_expect_arr_neq(five, two, sizeof five);
    close_rig(&r);
}
