/* What predicting masks costs beside attention: every predictor at the shapes of Wan2.1, timed by itself.
 *
 *     cuda_predict [--device NAME] [--precision P] [--tokens N] [--heads H] [--repeat R] [--no-dense]
 *     (default: cuda, bf16, 32760 tokens = 832x480, 12 heads = the 1.3B model; 75600 and 40 are 1280x720 and 14B)
 *
 * Times are the device's own (hs_lap), the mean of R calls after one that is not counted. Queries and keys are noise
 * around a slow drift, so that clusters are neither equal nor one. The limits in the first column are the project's
 * own, of the dense attention measured in the same run. Exit code: 0, 1 something failed, 2 usage, 77 no such device.
 */
#include "backend.h"
#include "mask.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 128, TABLE = 1048573, Q_CLUSTERS = 200, K_CLUSTERS = 1000, ROUNDS = 2, SKIP = 77 };

typedef struct bench {
    hs_device *dev;
    int64_t n;
    int heads, repeat, no_dense, failed;
    double dense;                                      /* seconds */
    hs_buf qkv, out, want, first, none, top_p, scores; /* qkv as the model lays it out: [n, 3 * heads * DIM] */
    hs_buf bits, flags, centroids[2], means, order[2]; /* bits: of the largest mask */
    hs_buf label[2], start[2], anchors[4], age, drift, density;
} bench;

static void run(bench *b, const char *what, void (*call)(bench *, int), int arg, double flops) {
    double before[HS_LAP_COUNT], after[HS_LAP_COUNT];
    hs_err err = {0};
    call(b, arg);
    hs_laps(b->dev, before);
    hs_lap(b->dev, HS_LAP_NONE);
    for (int i = 0; i < b->repeat; i++) call(b, arg);
    hs_lap(b->dev, HS_LAP_PREDICT);
    hs_laps(b->dev, after);
    if (hs_device_check(b->dev, &err)) {
        printf("%-52s failed: %s\n", what, err.msg);
        b->failed = 1;
        return;
    }
    const double s = (after[HS_LAP_PREDICT] - before[HS_LAP_PREDICT]) / b->repeat;
    if (b->dense <= 0) b->dense = s;
    printf("%-52s %9.3f ms", what, 1e3 * s);
    if (!b->no_dense) printf(" %6.2f %% of dense", 100 * s / b->dense);
    if (flops > 0) printf(" %8.1f TFLOP/s", flops / s * 1e-12);
    printf("\n");
    fflush(stdout);
}

/* ---- operations ------------------------------------------------------------------------------------------------- */
static hs_buf part(const bench *b, int which) {
    const int64_t d = (int64_t)b->heads * DIM;
    return hs_buf_at(b->qkv, which * d, b->qkv.n - which * d);
}

static int64_t ld(const bench *b) {
    return 3 * (int64_t)b->heads * DIM;
}

static void attention(bench *b, int arg) {
    (void)arg;
    hs_op_attention(b->dev, &(hs_attention){.q = part(b, 0),
                                            .k = part(b, 1),
                                            .v = part(b, 2),
                                            .out = b->out,
                                            .ld_q = ld(b),
                                            .ld_k = ld(b),
                                            .ld_v = ld(b),
                                            .ld_out = ld(b) / 3,
                                            .len_q = b->n,
                                            .len_k = b->n,
                                            .heads = b->heads,
                                            .head_dim = DIM,
                                            .scale = 1 / sqrtf(DIM)});
}

/* arg: 1000 block + stride; negative: no head wants it */
static void block_scores(bench *b, int arg) {
    const int shape = abs(arg);
    hs_op_block_scores(b->dev, &(hs_block_scores){.q = part(b, 0),
                                                  .k = part(b, 1),
                                                  .want = arg < 0 ? b->none : b->want,
                                                  .scores = b->scores,
                                                  .ld_q = ld(b),
                                                  .ld_k = ld(b),
                                                  .len = b->n,
                                                  .heads = b->heads,
                                                  .head_dim = DIM,
                                                  .block = shape / 1000,
                                                  .stride = shape % 1000});
}

static void select_columns(bench *b, int rows, int cols, int64_t block) {
    const hs_mask m = {.heads = b->heads,
                       .rows = rows,
                       .cols = cols,
                       .words = hs_mask_words(cols),
                       .block = (int)block,
                       .len_q = b->n,
                       .len_k = b->n,
                       .bits = b->bits,
                       .dense = b->flags};
    hs_op_select(
        b->dev,
        &(hs_select){.scores = b->scores, .top_p = b->top_p, .want = b->want, .cols = cols, .at_least = 1, .mask = &m});
}

/* Of the mask that was selected last; block 0: of the clusters. */
static void densities(bench *b, int block) {
    const int rows = block ? (int)((b->n + block - 1) / block) : Q_CLUSTERS, cols = block ? rows : K_CLUSTERS;
    const hs_mask m = {.heads = b->heads,
                       .rows = rows,
                       .cols = cols,
                       .words = hs_mask_words(cols),
                       .block = block,
                       .len_q = b->n,
                       .len_k = b->n,
                       .bits = b->bits,
                       .dense = b->flags,
                       .q_start = block ? HS_NOBUF : b->start[0],
                       .k_start = block ? HS_NOBUF : b->start[1]};
    hs_op_mask_density(b->dev, &m, b->want, b->density);
}

static void select_blocks(bench *b, int block) {
    const int rows = (int)((b->n + block - 1) / block);
    select_columns(b, rows, rows, block);
}

static void select_clusters(bench *b, int arg) {
    (void)arg;
    select_columns(b, Q_CLUSTERS, K_CLUSTERS, 0);
}

static void block_means(bench *b, int block) {
    hs_op_block_means(b->dev, part(b, 1), b->n, ld(b), b->heads, DIM, block, b->want, b->means);
}

static hs_cluster cluster_of(bench *b, int side, hs_buf want, int first, int next) {
    return (hs_cluster){.x = part(b, side),
                        .centroids = b->centroids[side],
                        .want = want,
                        .label = b->label[side],
                        .order = b->order[side],
                        .start = b->start[side],
                        .len = b->n,
                        .ld = ld(b),
                        .heads = b->heads,
                        .head_dim = DIM,
                        .clusters = side ? K_CLUSTERS : Q_CLUSTERS,
                        .iters_first = first,
                        .iters_next = next};
}

static void cluster_both_of(bench *b, hs_buf want, int first) {
    const hs_cluster keys = cluster_of(b, 1, want, first, ROUNDS);
    hs_cluster queries = cluster_of(b, 0, want, first, ROUNDS);
    queries.beside = &keys;
    hs_op_cluster(b->dev, &queries);
}

/* From tokens, every time: centroids that have come to rest would stop before their rounds are over. */
static void cluster_side(bench *b, int side) {
    const hs_cluster a = cluster_of(b, side, b->first, ROUNDS, ROUNDS);
    hs_op_cluster(b->dev, &a);
}

static void cluster_both(bench *b, int arg) {
    (void)arg;
    cluster_both_of(b, b->first, ROUNDS);
}

static void cluster_none(bench *b, int first) {
    cluster_both_of(b, b->none, first);
}

static void centroid_scores(bench *b, int arg) {
    (void)arg;
    hs_op_centroid_scores(b->dev, &(hs_centroid_scores){.cq = b->centroids[0],
                                                        .ck = b->centroids[1],
                                                        .start = b->start[1],
                                                        .want = b->want,
                                                        .scores = b->scores,
                                                        .len = b->n,
                                                        .heads = b->heads,
                                                        .rows = Q_CLUSTERS,
                                                        .cols = K_CLUSTERS,
                                                        .head_dim = DIM,
                                                        .scale = 1 / sqrtf(DIM)});
}

static void reuse(bench *b, int arg) {
    (void)arg;
    hs_op_reuse(b->dev, &(hs_reuse){.policy = {.kind = HS_REUSE_DRIFT, .delta = 1e30f, .gate_high = 1},
                                    .heads = b->heads,
                                    .dim = DIM,
                                    .mean_q = b->anchors[0],
                                    .mean_k = b->anchors[1],
                                    .anchor_q = b->anchors[2],
                                    .anchor_k = b->anchors[3],
                                    .age = b->age,
                                    .want = b->none,
                                    .drift = b->drift});
}

/* ---- operands --------------------------------------------------------------------------------------------------- */
static int fill(bench *b, hs_err *err) {
    const int64_t width = ld(b), heads = b->heads, rows = (b->n + 63) / 64,
                  most = rows > K_CLUSTERS ? rows : K_CLUSTERS;
    const struct {
        hs_buf *buf;
        hs_dtype type;
        int64_t n;
    } all[] = {{&b->qkv, b->dev->act, b->n * width},
               {&b->out, b->dev->act, b->n * width / 3},
               {&b->want, HS_U8, heads},
               {&b->first, HS_U8, heads},
               {&b->none, HS_U8, heads},
               {&b->top_p, HS_F32, heads},
               {&b->scores, HS_F32, heads * most * most},
               {&b->bits, HS_I32, heads * most * hs_mask_words((int)most)},
               {&b->flags, HS_U8, heads},
               {&b->means, HS_F32, heads * rows * DIM},
               {&b->label[0], HS_I32, heads * b->n},
               {&b->label[1], HS_I32, heads * b->n},
               {&b->age, HS_I32, heads},
               {&b->drift, HS_F32, heads},
               {&b->density, HS_F32, heads},
               {&b->centroids[0], HS_F32, heads * Q_CLUSTERS * DIM},
               {&b->centroids[1], HS_F32, heads * K_CLUSTERS * DIM},
               {&b->order[0], HS_I32, heads * b->n},
               {&b->order[1], HS_I32, heads * b->n},
               {&b->start[0], HS_I32, heads * (Q_CLUSTERS + 1)},
               {&b->start[1], HS_I32, heads * (K_CLUSTERS + 1)},
               {&b->anchors[0], HS_F32, heads * DIM},
               {&b->anchors[1], HS_F32, heads * DIM},
               {&b->anchors[2], HS_F32, heads * DIM},
               {&b->anchors[3], HS_F32, heads * DIM}};
    int rc = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all && !rc; i++) {
        rc = hs_device_alloc(b->dev, all[i].type, all[i].n, "bench", all[i].buf, err);
        if (!rc) hs_zero(b->dev, *all[i].buf);
    }
    float *table = malloc(TABLE * sizeof *table), *row = malloc((size_t)width * sizeof *row);
    void *raw = malloc((size_t)width * 4);
    if (!rc && (!table || !row || !raw)) rc = hs_fail(err, HS_ENOMEM, "out of memory");
    if (!rc) hs_randn(1, table, TABLE);
    for (int64_t i = 0; i < b->n && !rc; i++) { /* neighbours are alike: between two fixed points of 256 tokens */
        const int64_t at = i / 256;
        const float t = (float)(i % 256) / 256;
        for (int64_t d = 0; d < width; d++)
            row[d] = 0.5f * table[(i * width + d) % TABLE] + (1 - t) * table[(at * 7919 + d) % TABLE] +
                     t * table[((at + 1) * 7919 + d) % TABLE];
        hs_from_f32(raw, b->dev->act, row, width);
        hs_upload(b->dev, hs_buf_at(b->qkv, i * width, width), raw);
    }
    for (int64_t h = 0; h < heads && !rc; h++) {
        const uint8_t want = 1, first = 2;
        const float p = 0.9f;
        hs_upload(b->dev, hs_buf_at(b->want, h, 1), &want);
        hs_upload(b->dev, hs_buf_at(b->first, h, 1), &first);
        hs_upload(b->dev, hs_buf_at(b->top_p, h, 1), &p);
    }
    free(table), free(row), free(raw);
    return rc;
}

static void free_all(bench *b) {
    const hs_buf all[] = {b->qkv,          b->out,        b->want,       b->first,      b->none,
                          b->top_p,        b->scores,     b->bits,       b->flags,      b->means,
                          b->label[0],     b->label[1],   b->age,        b->drift,      b->centroids[0],
                          b->centroids[1], b->order[0],   b->order[1],   b->start[0],   b->start[1],
                          b->anchors[0],   b->anchors[1], b->anchors[2], b->anchors[3], b->density};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hs_device_free(b->dev, all[i]);
}

static void table(bench *b) {
    const double pairs = (double)b->n * (double)b->n * b->heads * DIM, tokens = (double)b->n * b->heads * DIM;
    printf("%s\n%lld tokens, %d heads of %d\n", hs_device_name(b->dev), (long long)b->n, b->heads, DIM);
    if (!b->no_dense) run(b, "dense attention", attention, 0, 4 * pairs);
    run(b, "block scores, stride 16, block 128 (limit 4.5 %)", block_scores, 128016, 2 * pairs / 16);
    run(b, "  no head wants it (limit 0.1 %)", block_scores, -128016, 0);
    run(b, "  select, block 128 (limit 0.1 ms)", select_blocks, 128, 0);
    run(b, "  densities, block 128", densities, 128, 0);
    run(b, "block scores, stride 8, block 128 (limit 8 %)", block_scores, 128008, 2 * pairs / 8);
    run(b, "block scores, stride 8, block 64 (limit 8 %)", block_scores, 64008, 2 * pairs / 8);
    run(b, "block scores, stride 4, block 128", block_scores, 128004, 2 * pairs / 4);
    run(b, "block scores, stride 16, block 64 (limit 4.5 %)", block_scores, 64016, 2 * pairs / 16);
    run(b, "  select, block 64", select_blocks, 64, 0);
    run(b, "block scores, stride 1: exact mass (limit 100 %)", block_scores, 128001, 2 * pairs);
    run(b, "means of blocks of 64", block_means, 64, 0);
    run(b, "k-means, 200 clusters, 2 rounds", cluster_side, 0, 2 * tokens * ROUNDS * Q_CLUSTERS);
    run(b, "k-means, 1000 clusters, 2 rounds", cluster_side, 1, 2 * tokens * ROUNDS * K_CLUSTERS);
    run(b, "k-means of both (limit 3 % at 720p, 6 % at 480p)", cluster_both, 0,
        2 * tokens * ROUNDS * (Q_CLUSTERS + K_CLUSTERS));
    run(b, "  no head wants it (limit 0.1 %)", cluster_none, ROUNDS, 0);
    run(b, "  no head wants it, of up to 50 rounds", cluster_none, 50, 0);
    run(b, "scores of centroids", centroid_scores, 0, 2.0 * b->heads * Q_CLUSTERS * K_CLUSTERS * DIM);
    run(b, "  select, 1000 columns", select_clusters, 0, 0);
    run(b, "  densities, clusters", densities, 0, 0);
    run(b, "decision of reuse (limit 0.1 %)", reuse, 0, 0);
}

int main(int argc, char **argv) {
    static const struct option names[] = {{"device", 1, 0, 'd'},
                                          {"precision", 1, 0, 'p'},
                                          {"tokens", 1, 0, 'n'},
                                          {"heads", 1, 0, 'h'},
                                          {"repeat", 1, 0, 'r'},
                                          {"no-dense", 0, 0, 'x'},
                                          {0}};
    bench b = {.n = 32760, .heads = 12, .repeat = 10};
    hs_device_params p = {.name = "cuda", .precision = "bf16"};
    hs_err err = {0};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
        case 'd': p.name = optarg; break;
        case 'p': p.precision = optarg; break;
        case 'n': b.n = atoll(optarg); break;
        case 'h': b.heads = atoi(optarg); break;
        case 'r': b.repeat = atoi(optarg); break;
        case 'x': b.no_dense = 1; break;
        default: return 2;
        }
    if (optind < argc || b.n < 1 || b.heads < 1 || b.repeat < 1) {
        fprintf(stderr, "usage: cuda_predict [--device NAME] [--precision P] [--tokens N] [--heads H] [--repeat R] "
                        "[--no-dense]\n");
        return 2;
    }
    int rc = hs_device_open(&p, &b.dev, &err);
    if (rc) {
        fprintf(stderr, "cuda_predict: %s\n", err.msg);
        return rc == HS_ENODEV ? SKIP : 1;
    }
    rc = fill(&b, &err);
    if (rc)
        fprintf(stderr, "cuda_predict: %s\n", err.msg);
    else
        table(&b);
    free_all(&b);
    hs_device_close(b.dev);
    return rc || b.failed;
}
