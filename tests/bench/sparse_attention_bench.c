/* What sparse attention costs on this machine against dense attention, and what its masks cost to predict.
 *
 *     OMP_WAIT_POLICY=passive sparse_attention_bench [--threads N] [--precision auto|fp32|bf16] [--repeat N]
 *                                                    [--tokens N] [--only STR] [--seed N] [--device NAME]
 *                                                    [--take median|least]
 *
 * Queries and keys are made up: smooth over a small video of tokens, so that masks look like those of a model: near
 * tokens attend to each other, and clusters are pieces of the picture. Thresholds are searched for that give densities
 * near 0.2, 0.4, 0.6 and 0.8; the masks are the predictors' own. Dense and masked attention take turns, medians are
 * printed (on a busy machine least times are steadier): wall time, and processor time of all threads, which also says
 * something on a machine that others use. Goal (docs/kernels.md): at density d at most d + 0.10 of dense attention's
 * time; more is marked. A tool, not a test.
 */
#include "backend.h"
#include "mask.h"
#include "policy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HEADS = 3, DIM = 128, WIDTH = HEADS * DIM, WAVES = 12, MOST_REPEATS = 99 };
static const double ALLOWED = 0.10;
static const int64_t WAN_TOKENS = 32760; /* 480p, 81 frames: what the published numbers of clusters are for */

static struct {
    const char *device, *precision, *only;
    int threads, repeat, least;
    int64_t tokens;
    uint64_t seed;
} opt = {.device = "cpu", .precision = "bf16", .only = "", .threads = 2, .repeat = 7, .seed = 1};

static hs_device *dev;

static void stop(const char *what) {
    fprintf(stderr, "sparse_attention_bench: %s\n", what);
    exit(1);
}

static hs_buf buffer(hs_dtype type, int64_t n) {
    hs_buf b;
    hs_err err;
    if (hs_device_alloc(dev, type, n, "benchmark", &b, &err)) stop(err.msg);
    hs_zero(dev, b);
    return b;
}

static void *memory(int64_t n, size_t size) {
    void *p = calloc((size_t)n, size);
    if (!p) stop("no memory");
    return p;
}

/* ---- time ------------------------------------------------------------------------------------------------------- */

typedef struct times {
    double wall, cpu; /* seconds */
} times;

static times now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (times){hs_seconds(), (double)t.tv_sec + 1e-9 * (double)t.tv_nsec};
}

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

typedef void (*call)(void *user);

/* Medians of calls that take turns, so that what slows the machine down meets all of them. */
static void measure(int count, const call *f, void *const *user, int repeat, times *ret) {
    double wall[4][MOST_REPEATS], cpu[4][MOST_REPEATS];
    for (int r = -1; r < repeat; r++) /* the first one warms up */
        for (int k = 0; k < count; k++) {
            const times start = now();
            f[k](user[k]);
            const times end = now();
            if (r < 0) continue;
            wall[k][r] = end.wall - start.wall;
            cpu[k][r] = end.cpu - start.cpu;
        }
    for (int k = 0; k < count; k++) {
        qsort(wall[k], (size_t)repeat, sizeof(double), by_size);
        qsort(cpu[k], (size_t)repeat, sizeof(double), by_size);
        const int at = opt.least ? 0 : repeat / 2;
        ret[k] = (times){wall[k][at], cpu[k][at]};
    }
    hs_err err;
    if (hs_device_check(dev, &err)) stop(err.msg);
}

/* ---- input ------------------------------------------------------------------------------------------------------ */

static double uniform(uint64_t stream, uint64_t i) {
    return (double)(hs_hash64(hs_hash64(opt.seed * 1000 + stream) + i) >> 11) * 0x1p-53;
}

/* qkv [n, 3 * WIDTH], n tokens of frames of side x side: waves in time and space that queries and keys of a head have
 * in common, and as much again that they have not. */
static hs_buf make_tokens(int64_t n) {
    const int64_t side = (int64_t)sqrt((double)(n / 9)), frame = side * side;
    const hs_dtype act = hs_device_act(dev);
    float *x = memory(n * 3 * WIDTH, sizeof *x);
    void *host = memory(n * 3 * WIDTH, hs_dtype_size(act));
    for (int64_t i = 0; i < n; i++) {
        const double at[3] = {(double)(i / frame) / 9, (double)(i % frame / side) / (double)side,
                              (double)(i % side) / (double)side};
        for (int h = 0; h < HEADS; h++) {
            double wave[WAVES];
            for (int w = 0; w < WAVES; w++) {
                double phase = uniform(1, (uint64_t)(h * WAVES + w));
                for (int axis = 0; axis < 3; axis++)
                    phase += at[axis] * (5 * uniform(2, (uint64_t)((h * WAVES + w) * 3 + axis)) - 2.5);
                wave[w] = cos(2 * 3.14159265358979 * phase);
            }
            for (int part = 0; part < 3; part++)
                for (int d = 0; d < DIM; d++) {
                    double v = 0;
                    for (int w = 0; w < WAVES; w++)
                        v += wave[w] * (uniform(part < 2 ? 3 : 4, (uint64_t)((h * WAVES + w) * DIM + d)) - 0.5);
                    const uint64_t own = (uint64_t)((i * 3 + part) * WIDTH + h * DIM + d);
                    x[(i * 3 + part) * WIDTH + h * DIM + d] = (float)(0.9 * v + 1.5 * (uniform(5, own) - 0.5));
                }
        }
    }
    hs_buf b = buffer(act, n * 3 * WIDTH);
    if (act == HS_F32)
        memcpy(host, x, (size_t)(n * 3 * WIDTH) * sizeof *x);
    else
        hs_from_f32(host, act, x, n * 3 * WIDTH);
    hs_upload(dev, b, host);
    free(x);
    free(host);
    return b;
}

/* ---- a method on some tokens ------------------------------------------------------------------------------------ */

typedef struct rig {
    int64_t n;
    hs_attn_policy p;
    hs_buf qkv, out, want, first, top_p, scores, label, pooled[2], centroid[2], start[2]; /* start: warm centroids */
    hs_mask mask;
    int masked; /* attend sparsely */
} rig;

static hs_buf part(const rig *r, int which) {
    return hs_buf_at(r->qkv, which * WIDTH, r->qkv.n - which * WIDTH);
}

static hs_buf filled(hs_dtype type, int64_t n, double value) {
    const hs_buf b = buffer(type, n);
    float *f = memory(n, sizeof *f);
    uint8_t *u = (uint8_t *)f;
    for (int64_t i = 0; i < n; i++)
        if (type == HS_F32)
            f[i] = (float)value;
        else
            u[i] = (uint8_t)value;
    hs_upload(dev, b, f);
    free(f);
    return b;
}

static void rig_open(rig *r, int64_t n, hs_buf qkv, const hs_attn_policy *p) {
    const int svg2 = p->method == HS_SVG2, blocks = svg2 ? 0 : (int)((n + p->block - 1) / p->block);
    *r = (rig){.n = n, .p = *p, .qkv = qkv, .masked = 1};
    hs_mask *m = &r->mask;
    *m = (hs_mask){.heads = HEADS, .block = svg2 ? 0 : p->block, .len_q = n, .len_k = n};
    m->rows = svg2 ? p->q_clusters : blocks;
    m->cols = svg2 ? p->k_clusters : blocks;
    m->words = hs_mask_words(m->cols);
    m->bits = buffer(HS_I32, (int64_t)HEADS * m->rows * m->words);
    m->dense = buffer(HS_U8, HEADS);
    r->out = buffer(hs_device_act(dev), n * WIDTH);
    r->want = filled(HS_U8, HEADS, 1);
    r->first = filled(HS_U8, HEADS, 2);
    r->top_p = filled(HS_F32, HEADS, 0.9);
    r->scores = buffer(HS_F32, (int64_t)HEADS * m->rows * m->cols);
    for (int s = 0; s < 2; s++) {
        const int64_t groups = s ? m->cols : m->rows;
        if (svg2) {
            *(s ? &m->k_order : &m->q_order) = buffer(HS_I32, HEADS * n);
            *(s ? &m->k_start : &m->q_start) = buffer(HS_I32, HEADS * (groups + 1));
        }
        r->pooled[s] = buffer(HS_F32, groups * WIDTH);
        r->centroid[s] = buffer(HS_F32, groups * WIDTH);
        r->start[s] = buffer(HS_F32, groups * WIDTH);
    }
    r->label = buffer(HS_I32, HEADS * n);
}

static void rig_close(rig *r) {
    hs_mask *m = &r->mask;
    const hs_buf all[] = {r->out,         r->want,        r->first,    r->top_p,    r->scores,  r->label,
                          r->pooled[0],   r->pooled[1],   m->bits,     m->dense,    m->q_order, m->k_order,
                          r->centroid[0], r->centroid[1], r->start[0], r->start[1], m->q_start, m->k_start};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hs_device_free(dev, all[i]);
}

static void attend(void *user) {
    rig *r = user;
    hs_op_attention(dev, &(hs_attention){.q = part(r, 0),
                                         .k = part(r, 1),
                                         .v = part(r, 2),
                                         .out = r->out,
                                         .ld_q = 3 * WIDTH,
                                         .ld_k = 3 * WIDTH,
                                         .ld_v = 3 * WIDTH,
                                         .ld_out = WIDTH,
                                         .len_q = r->n,
                                         .len_k = r->n,
                                         .heads = HEADS,
                                         .head_dim = DIM,
                                         .scale = 1 / sqrtf(DIM),
                                         .mask = r->masked ? &r->mask : NULL});
}

static void xattention(void *user) {
    rig *r = user;
    hs_op_block_scores(dev, &(hs_block_scores){.q = part(r, 0),
                                               .k = part(r, 1),
                                               .want = r->want,
                                               .scores = r->scores,
                                               .ld_q = 3 * WIDTH,
                                               .ld_k = 3 * WIDTH,
                                               .len = r->n,
                                               .heads = HEADS,
                                               .head_dim = DIM,
                                               .block = r->p.block,
                                               .stride = r->p.stride});
}

static void select_keys(void *user) {
    rig *r = user;
    hs_op_select(dev, &(hs_select){.scores = r->scores,
                                   .top_p = r->top_p,
                                   .want = r->want,
                                   .cols = r->mask.cols,
                                   .at_least = (int)(r->p.min_share * (float)r->mask.cols),
                                   .mask = &r->mask});
}

static void block_means(void *user) {
    rig *r = user;
    for (int s = 0; s < 2; s++)
        hs_op_block_means(dev, part(r, s), r->n, 3 * WIDTH, HEADS, DIM, r->p.block, r->want, r->pooled[s]);
}

static void centroid_scores(void *user) {
    rig *r = user;
    const int svg2 = r->p.method == HS_SVG2;
    hs_op_centroid_scores(dev, &(hs_centroid_scores){.cq = svg2 ? r->centroid[0] : r->pooled[0],
                                                     .ck = svg2 ? r->centroid[1] : r->pooled[1],
                                                     .start = svg2 ? r->mask.k_start : HS_NOBUF,
                                                     .want = r->want,
                                                     .scores = r->scores,
                                                     .len = r->n,
                                                     .heads = HEADS,
                                                     .rows = r->mask.rows,
                                                     .cols = r->mask.cols,
                                                     .head_dim = DIM,
                                                     .block = r->p.block,
                                                     .scale = 1 / sqrtf(DIM)});
}

static void cluster(rig *r, hs_buf want, int rounds) {
    for (int s = 0; s < 2; s++)
        hs_op_cluster(dev, &(hs_cluster){.x = part(r, s),
                                         .centroids = r->centroid[s],
                                         .want = want,
                                         .label = r->label,
                                         .order = s ? r->mask.k_order : r->mask.q_order,
                                         .start = s ? r->mask.k_start : r->mask.q_start,
                                         .len = r->n,
                                         .ld = 3 * WIDTH,
                                         .heads = HEADS,
                                         .head_dim = DIM,
                                         .clusters = s ? r->mask.cols : r->mask.rows,
                                         .iters_first = rounds,
                                         .iters_next = rounds,
                                         .seed = (uint64_t)s});
}

static void cluster_cold(void *user) {
    rig *r = user;
    cluster(r, r->first, r->p.iters_first);
}

/* From centroids some way from their place, as drift leaves them: what 3 rounds from scratch give. */
static void cluster_warm(void *user) {
    rig *r = user;
    for (int s = 0; s < 2; s++) hs_copy(dev, r->centroid[s], r->start[s]);
    cluster(r, r->want, r->p.iters_next);
}

static void predict(rig *r) {
    if (r->p.method == HS_XATTENTION) {
        xattention(r);
    } else {
        cluster(r, r->first, 3);
        for (int s = 0; s < 2; s++) hs_copy(dev, r->start[s], r->centroid[s]);
        cluster_warm(r);
        centroid_scores(r);
    }
}

/* ---- masks of a density ----------------------------------------------------------------------------------------- */

static double density(rig *r) {
    const hs_mask *m = &r->mask;
    hs_mask host = *m;
    hs_buf *of[] = {&host.bits, &host.dense, &host.q_start, &host.k_start};
    double sum = 0;
    for (int k = 0; k < 4; k++) {
        if (!of[k]->p) continue;
        const hs_buf b = *of[k];
        of[k]->p = memory(b.n, hs_dtype_size(b.type));
        hs_download(dev, of[k]->p, b);
    }
    for (int h = 0; h < HEADS; h++) sum += hs_mask_density(&host, h) / HEADS;
    for (int k = 0; k < 4; k++) free(of[k]->p);
    return sum;
}

/* Halves the range of the threshold; one for all heads. */
static double select_density(rig *r, double goal) {
    double low = 0.001, high = 0.9999;
    for (int k = 0; k < 16; k++) {
        const float p = (float)(low + high) / 2, all[HEADS] = {p, p, p};
        hs_upload(dev, r->top_p, all);
        select_keys(r);
        *(density(r) > goal ? &high : &low) = p;
    }
    return density(r);
}

/* ---- tables ----------------------------------------------------------------------------------------------------- */

static void attention_rows(const char *name, int64_t n, hs_buf qkv, const hs_attn_policy *p) {
    rig r, d;
    if (!strstr(name, opt.only)) return;
    rig_open(&r, n, qkv, p);
    predict(&r);
    d = r;
    d.masked = 0;
    for (int k = 1; k <= 4; k++) {
        times t[2];
        const double at = select_density(&r, 0.2 * k), bound = at + ALLOWED;
        measure(2, (const call[]){attend, attend}, (void *const[]){&d, &r}, opt.repeat, t);
        const double wall = t[1].wall / t[0].wall, cpu = t[1].cpu / t[0].cpu;
        printf("%6lld  %-22s %6.3f %6.3f  %9.2f %9.2f %6.3f%s  %9.2f %9.2f %6.3f%s\n", (long long)n, name, at, bound,
               1e3 * t[0].wall, 1e3 * t[1].wall, wall, wall > bound ? " !" : "  ", 1e3 * t[0].cpu, 1e3 * t[1].cpu, cpu,
               cpu > bound ? " !" : "  ");
        fflush(stdout);
    }
    rig_close(&r);
}

static void predictor_row(const char *name, rig *r, call f, int repeat) {
    times t[2];
    rig d = *r;
    d.masked = 0;
    if (!strstr(name, opt.only)) return;
    measure(2, (const call[]){attend, f}, (void *const[]){&d, r}, repeat, t);
    printf("%6lld  %-34s %9.2f %9.3f %7.2f %%  %9.2f %9.3f %7.2f %%\n", (long long)r->n, name, 1e3 * t[0].wall,
           1e3 * t[1].wall, 100 * t[1].wall / t[0].wall, 1e3 * t[0].cpu, 1e3 * t[1].cpu, 100 * t[1].cpu / t[0].cpu);
    fflush(stdout);
}

typedef struct reuse {
    hs_buf mean[4], age, want, drift;
} reuse;

static void decide(void *user) {
    reuse *u = user;
    hs_op_reuse(dev, &(hs_reuse){.policy = {.kind = HS_REUSE_DRIFT, .delta = 30, .gate_low = 0.4f, .gate_high = 0.8f},
                                 .heads = HEADS,
                                 .dim = DIM,
                                 .mean_q = u->mean[0],
                                 .mean_k = u->mean[1],
                                 .anchor_q = u->mean[2],
                                 .anchor_k = u->mean[3],
                                 .age = u->age,
                                 .want = u->want,
                                 .drift = u->drift});
}

static void reuse_row(rig *dense) {
    reuse u = {.age = buffer(HS_I32, HEADS), .want = buffer(HS_U8, HEADS), .drift = buffer(HS_F32, HEADS)};
    times t[2];
    if (!strstr("reuse", opt.only)) return;
    rig d = *dense;
    d.masked = 0;
    for (int k = 0; k < 4; k++) u.mean[k] = buffer(HS_F32, WIDTH);
    measure(2, (const call[]){attend, decide}, (void *const[]){&d, &u}, opt.repeat, t);
    printf("%6lld  %-34s %9.2f %9.3f %7.2f %%  %9.2f %9.3f %7.2f %%\n", (long long)dense->n, "reuse: drift, decision",
           1e3 * t[0].wall, 1e3 * t[1].wall, 100 * t[1].wall / t[0].wall, 1e3 * t[0].cpu, 1e3 * t[1].cpu,
           100 * t[1].cpu / t[0].cpu);
    for (int k = 0; k < 4; k++) hs_device_free(dev, u.mean[k]);
    hs_device_free(dev, u.age);
    hs_device_free(dev, u.want);
    hs_device_free(dev, u.drift);
}

static hs_attn_policy blocks_of(int block, int stride) {
    hs_attn_policy p = hs_attn_policy_default(HS_XATTENTION);
    p.block = block;
    p.stride = stride;
    return p;
}

/* per_q, per_k tokens in a cluster on average */
static hs_attn_policy clusters_of(int64_t n, double per_q, double per_k) {
    hs_attn_policy p = hs_attn_policy_default(HS_SVG2);
    p.q_clusters = (int)((double)n / per_q + 0.5);
    p.k_clusters = (int)((double)n / per_k + 0.5);
    return p;
}

static void predictor_rows(int64_t n, hs_buf qkv) {
    rig r;
    for (int stride = 8; stride <= 16; stride += 8) {
        char name[64];
        const hs_attn_policy p = blocks_of(128, stride);
        rig_open(&r, n, qkv, &p);
        snprintf(name, sizeof name, "xattention stride %d, block 128", stride);
        predictor_row(name, &r, xattention, opt.repeat);
        if (stride == 16) {
            predictor_row("select, block 128", &r, select_keys, opt.repeat);
            predictor_row("pooled means of q and k, block 128", &r, block_means, opt.repeat);
            predictor_row("pooled scores, block 128", &r, centroid_scores, opt.repeat);
            reuse_row(&r);
        }
        rig_close(&r);
    }
    const hs_attn_policy plain = hs_attn_policy_default(HS_SVG2);
    const double scale = (double)WAN_TOKENS;
    const hs_attn_policy p[] = {clusters_of(n, scale / plain.q_clusters, scale / plain.k_clusters), plain};
    for (int k = 0; k < 2; k++) {
        char name[64];
        rig_open(&r, n, qkv, &p[k]);
        predict(&r);
        snprintf(name, sizeof name, "svg2 warm, %d rounds, %d+%d", p[k].iters_next, p[k].q_clusters, p[k].k_clusters);
        predictor_row(name, &r, cluster_warm, opt.repeat);
        snprintf(name, sizeof name, "svg2 cold, %d rounds, %d+%d", p[k].iters_first, p[k].q_clusters, p[k].k_clusters);
        predictor_row(name, &r, cluster_cold, opt.repeat < 3 ? opt.repeat : 3);
        snprintf(name, sizeof name, "svg2 centroid scores, %d+%d", p[k].q_clusters, p[k].k_clusters);
        predictor_row(name, &r, centroid_scores, opt.repeat);
        snprintf(name, sizeof name, "svg2 select, %d+%d", p[k].q_clusters, p[k].k_clusters);
        predictor_row(name, &r, select_keys, opt.repeat);
        rig_close(&r);
    }
}

static void tables(int64_t n) {
    const hs_attn_policy plain = hs_attn_policy_default(HS_SVG2);
    const hs_buf qkv = make_tokens(n);
    hs_attn_policy p;
    printf("\n%6s  %-22s %6s %6s  %9s %9s %-8s  %9s %9s %s\n%59s %31s\n", "tokens", "mask", "d", "bound", "dense ms",
           "masked", "ratio", "dense ms", "masked", "ratio", "wall time", "processor time");
    for (int block = 64; block <= 128; block += 64) {
        p = blocks_of(block, 16);
        attention_rows(block == 64 ? "blocks 64" : "blocks 128", n, qkv, &p);
    }
    p = clusters_of(n, (double)WAN_TOKENS / plain.q_clusters, (double)WAN_TOKENS / plain.k_clusters);
    attention_rows("clusters of 109, 33", n, qkv, &p);
    p = clusters_of(n, 32, 32);
    attention_rows("clusters of 32, 32", n, qkv, &p);
    attention_rows(n < 4608 ? "300, 1000 (of 8, 2)" : "300, 1000 (of 31, 9)", n, qkv, &plain);
    printf("\n%6s  %-34s %9s %9s %9s  %9s %9s %9s\n", "tokens", "prediction", "dense ms", "wall ms", "share",
           "dense ms", "cpu ms", "share");
    predictor_rows(n, qkv);
    hs_device_free(dev, qkv);
}

static void parse(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *v = i + 1 < argc ? argv[i + 1] : NULL;
        if (v && !strcmp(name, "--threads"))
            opt.threads = atoi(v);
        else if (v && !strcmp(name, "--precision"))
            opt.precision = v;
        else if (v && !strcmp(name, "--device"))
            opt.device = v;
        else if (v && !strcmp(name, "--repeat"))
            opt.repeat = atoi(v);
        else if (v && !strcmp(name, "--tokens"))
            opt.tokens = atoll(v);
        else if (v && !strcmp(name, "--only"))
            opt.only = v;
        else if (v && !strcmp(name, "--take") && (!strcmp(v, "least") || !strcmp(v, "median")))
            opt.least = v[0] == 'l';
        else if (v && !strcmp(name, "--seed"))
            opt.seed = (uint64_t)atoll(v);
        else
            stop("usage: [--threads N] [--precision auto|fp32|bf16] [--repeat N] [--tokens N] [--only STR] [--seed N] "
                 "[--device NAME] [--take median|least]");
    }
    if (opt.repeat < 1 || opt.repeat > MOST_REPEATS) stop("--repeat takes 1 to 99");
    if (opt.tokens && opt.tokens < 64) stop("--tokens takes at least 64");
}

int main(int argc, char **argv) {
    hs_err err;
    parse(argc, argv);
    const hs_device_params dp = {.name = opt.device, .threads = opt.threads, .precision = opt.precision};
    if (hs_device_open(&dp, &dev, &err)) stop(err.msg);
    printf("%s; %d heads of %d, %s of %d; ! = above density + %.2f\n", hs_device_name(dev), HEADS, DIM,
           opt.least ? "least" : "median", opt.repeat, ALLOWED);
    static const int64_t lengths[] = {2304, 9216};
    for (int k = 0; k < 2; k++)
        if (!opt.tokens || k == 0) tables(opt.tokens ? opt.tokens : lengths[k]);
    hs_device_close(dev);
    return 0;
}
