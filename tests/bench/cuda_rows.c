/* Products and memory-bound row operations at the shapes of Wan2.1, each timed by itself.
 *
 *     cuda_rows [--device NAME] [--precision P] [--tokens N] [--dim D] [--ffn F] [--verbose]
 *     (default: cuda, bf16, 32760 tokens = 832x480, 1536 and 8960 = the 1.3B model; 75600, 5120 and 13824: 720p, 14B)
 *
 * Times are the device's own (hs_lap), of at least 50 ms of calls after one that is not counted (it tunes). The last
 * column of a row operation is its traffic, every operand once, against a plain copy of the activations; of a product,
 * how long that copy would take for its operands: no product is faster than this and its plain relative. --verbose
 * shows what tuning found. Exit code: 0, 1 something failed, 2 usage, 77 no such device.
 */
#include "backend.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_DIM = 128, LATENT_COLUMNS = 64, NOISE = 1 << 20, SKIP = 77 };

typedef struct bench {
    hs_device *dev;
    int64_t n, d, ff;
    int failed;
    double copy;                    /* bytes per second */
    hs_buf act, wide, x, vec, gate; /* [n, d] act, [n, max(3d, ff)] act, [n, d] F32, [6 * d] F32 twice */
    hs_buf rope, mean;              /* [n, HEAD_DIM] F32, [2 * d] F32 */
    hs_weight *w;
    hs_linear product;
    void *noise; /* [NOISE] act type */
} bench;

static void copy_rows(bench *b) {
    hs_copy(b->dev, b->act, hs_buf_at(b->wide, 0, b->act.n));
}
static void convert_rows(bench *b) {
    hs_copy(b->dev, b->act, b->x);
}
static void norm_rows(bench *b) {
    hs_op_norm(b->dev, HS_NORM_LAYER, b->x, b->n, b->d, b->vec, b->gate, 1e-6f, b->act);
}
/* Queries alone as cross-attention has them (parts 1), queries and keys as self-attention has them (2). */
static void turn(bench *b, int parts, int means) {
    hs_op_qk_norm(b->dev,
                  &(hs_qk_norm){.x = b->wide,
                                .gamma = {b->vec, hs_buf_at(b->vec, b->d, b->d)},
                                .rope = parts == 2 ? b->rope : HS_NOBUF,
                                .mean = {means ? b->mean : HS_NOBUF, means ? hs_buf_at(b->mean, b->d, b->d) : HS_NOBUF},
                                .rows = b->n,
                                .ld = parts == 2 ? 3 * b->d : b->d,
                                .d = b->d,
                                .parts = parts,
                                .head_dim = HEAD_DIM,
                                .eps = 1e-6f});
}
static void norm_queries(bench *b) {
    turn(b, 1, 0);
}
static void turn_both(bench *b) {
    turn(b, 2, 0);
}
static void turn_and_means(bench *b) {
    turn(b, 2, 1);
}
static void combine_rows(bench *b) {
    const int64_t n = b->x.n / 2;
    hs_op_combine(b->dev, 2, (double[]){0.5, 0.25}, (hs_buf[]){hs_buf_at(b->x, 0, n), hs_buf_at(b->x, n, n)},
                  hs_buf_at(b->x, 0, n));
}
static void multiply(bench *b) {
    hs_op_linear(b->dev, &b->product);
}

/* Seconds of one call; 0 after saying what failed. */
static double seconds_of(bench *b, const char *what, void (*call)(bench *)) {
    double before[HS_LAP_COUNT], after[HS_LAP_COUNT], s = 0;
    hs_err err = {0};
    call(b);
    for (int runs = 1; s < 0.05 && !hs_device_check(b->dev, &err); runs *= 2) {
        hs_laps(b->dev, before);
        hs_lap(b->dev, HS_LAP_NONE);
        for (int i = 0; i < runs; i++) call(b);
        hs_lap(b->dev, HS_LAP_PREDICT);
        hs_laps(b->dev, after);
        s = after[HS_LAP_PREDICT] - before[HS_LAP_PREDICT];
        if (s >= 0.05) return s / runs;
    }
    printf("%-44s failed: %s\n", what, err.msg);
    b->failed = 1;
    return 0;
}

static void rows(bench *b, const char *what, void (*call)(bench *), double bytes) {
    const double s = seconds_of(b, what, call);
    if (s <= 0) return;
    if (b->copy <= 0) b->copy = bytes / s;
    printf("%-44s %9.4f ms %8.0f GB/s %6.1f %% of copying\n", what, 1e3 * s, bytes / s * 1e-9,
           100 * bytes / s / b->copy);
    fflush(stdout);
}

/* A product with random weights [out, in]; p says the rest. */
static void product(bench *b, const char *what, hs_linear p, int64_t out, int64_t in, int f32) {
    const size_t size = hs_dtype_size(b->dev->act), piece = NOISE * size, all = (size_t)(out * in) * size;
    char *values = malloc(all + (size_t)out * size);
    hs_err err = {0};
    if (!values) return;
    for (size_t at = 0; at < all + (size_t)out * size; at += piece) /* noise is random enough for a rate */
        memcpy(values + at, b->noise, all + (size_t)out * size - at < piece ? all + (size_t)out * size - at : piece);
    const hs_linear_src src = {.parts = 1,
                               .w = {values},
                               .bias = {values + all},
                               .type = {b->dev->act},
                               .bias_type = {b->dev->act},
                               .out = {out},
                               .in = in,
                               .f32 = f32};
    b->product = p;
    if (hs_weight_linear(b->dev, &src, &b->w, &err)) {
        printf("%-44s failed: %s\n", what, err.msg);
        b->failed = 1;
    } else {
        b->product.w = b->w;
        const double s = seconds_of(b, what, multiply), flops = 2.0 * (double)p.rows * (double)out * (double)in;
        const double bytes = (double)hs_dtype_size(p.x.type) * (double)(p.rows * in) +
                             (f32 ? 4.0 : (double)size) * (double)(out * in) +
                             (double)hs_dtype_size(p.y.type) * (double)(p.rows * out) * (p.residual ? 2 : 1);
        if (s > 0) printf("%-44s %9.4f ms %8.1f TFLOP/s", what, 1e3 * s, flops / s * 1e-12);
        if (s > 0 && p.rows == 1) printf(" %8.0f GB/s", bytes / s * 1e-9);
        if (s > 0 && p.rows > 1 && b->copy > 0) printf(", operands at copying speed %.4f ms", 1e3 * bytes / b->copy);
        printf("\n");
        hs_weight_free(b->dev, b->w);
    }
    fflush(stdout);
    free(values);
}

static void products(bench *b) {
    const int64_t n = b->n, d = b->d, ff = b->ff;
    const hs_buf row = hs_buf_at(b->x, 0, d), row6 = hs_buf_at(b->x, d, 6 * d);
    const hs_linear to_stream = {.x = b->act, .y = b->x, .rows = n, .residual = 1};
    hs_linear gated = to_stream, down = to_stream;
    gated.gate = down.gate = b->gate;
    down.x = b->wide;
    product(b, "q, k, v: [d] to [3d]", (hs_linear){.x = b->act, .y = b->wide, .rows = n}, 3 * d, d, 0);
    product(b, "out: [d] to [d], gate, residual", gated, d, d, 0);
    product(b, "cross out: [d] to [d], residual", to_stream, d, d, 0);
    product(b, "the same, no residual, rows in F32", (hs_linear){.x = b->act, .y = b->x, .rows = n}, d, d, 0);
    product(b, "cross q: [d] to [d]", (hs_linear){.x = b->act, .y = b->wide, .rows = n}, d, d, 0);
    product(b, "up: [d] to [ffn], GELU", (hs_linear){.x = b->act, .y = b->wide, .rows = n, .act = HS_ACT_GELU_TANH}, ff,
            d, 0);
    product(b, "down: [ffn] to [d], gate, residual", down, d, ff, 0);
    product(b, "the same, no residual, rows in F32", (hs_linear){.x = b->wide, .y = b->x, .rows = n}, d, ff, 0);
    product(b, "head: [d] to [64], F32", (hs_linear){.x = b->x, .y = b->rope, .rows = n}, LATENT_COLUMNS, d, 1);
    product(b, "time: one row, [d] to [6d], F32", (hs_linear){.x = row, .y = row6, .rows = 1}, 6 * d, d, 1);
}

/* Random numbers in every buffer, so that power and caches see what they would in earnest. */
static void fill(bench *b, hs_buf y) {
    for (int64_t at = 0; at < y.n; at += NOISE) {
        const hs_buf piece = hs_buf_at(y, at, y.n - at < NOISE ? y.n - at : NOISE);
        if (y.type == b->dev->act)
            hs_upload(b->dev, piece, b->noise);
        else
            hs_copy(b->dev, piece, hs_buf_at(b->act, 0, piece.n));
    }
}

static int prepare(bench *b, hs_err *err) {
    const int64_t n = b->n, d = b->d, wide = 3 * d > b->ff ? 3 * d : b->ff;
    const hs_dtype act = b->dev->act;
    float *noise = malloc(NOISE * sizeof *noise);
    int rc = 0;
    b->noise = malloc(NOISE * sizeof *noise);
    if (!noise || !b->noise) return hs_fail(err, HS_ENOMEM, "out of memory");
    for (int64_t i = 0; i < NOISE; i++)
        noise[i] = (float)((double)(hs_hash64((uint64_t)i) >> 40) / (1 << 24) - 0.5) * 0.1f;
    hs_from_f32(b->noise, act, noise, NOISE);
    free(noise);
    if ((rc = hs_device_alloc(b->dev, act, n * d, "rows", &b->act, err)) ||
        (rc = hs_device_alloc(b->dev, act, n * wide, "wide rows", &b->wide, err)) ||
        (rc = hs_device_alloc(b->dev, HS_F32, n * d, "stream", &b->x, err)) ||
        (rc = hs_device_alloc(b->dev, HS_F32, 6 * d, "vectors", &b->vec, err)) ||
        (rc = hs_device_alloc(b->dev, HS_F32, 6 * d, "vectors", &b->gate, err)) ||
        (rc = hs_device_alloc(b->dev, HS_F32, n * HEAD_DIM, "angles", &b->rope, err)) ||
        (rc = hs_device_alloc(b->dev, HS_F32, 2 * d, "means", &b->mean, err)))
        return rc;
    fill(b, b->act), fill(b, b->wide), fill(b, b->x), fill(b, b->vec), fill(b, b->gate), fill(b, b->rope);
    return hs_device_check(b->dev, err);
}

static void print_log(void *user, enum hs_log_level level, const char *msg) {
    (void)user;
    if (level <= HS_LOG_DEBUG) printf("  %s\n", msg);
}

int main(int argc, char **argv) {
    static const struct option names[] = {{"device", 1, 0, 'd'},
                                          {"precision", 1, 0, 'p'},
                                          {"tokens", 1, 0, 'n'},
                                          {"dim", 1, 0, 'w'},
                                          {"ffn", 1, 0, 'f'},
                                          {"verbose", 0, 0, 'v'},
                                          {0}};
    hs_device_params p = {.name = "cuda"};
    bench b = {.n = 32760, .d = 1536, .ff = 8960};
    hs_err err = {0};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
        case 'd': p.name = optarg; break;
        case 'p': p.precision = optarg; break;
        case 'n': b.n = atoll(optarg); break;
        case 'w': b.d = atoll(optarg); break;
        case 'f': b.ff = atoll(optarg); break;
        case 'v': hs_log_set(print_log, NULL); break;
        default: return 2;
        }
    if (optind < argc || b.n < 8 || b.d < HEAD_DIM || b.d % HEAD_DIM || b.ff < 1 || b.n * HEAD_DIM < NOISE) {
        fprintf(stderr, "cuda_rows: at least 8192 tokens, a multiple of %d for --dim\n", HEAD_DIM);
        return 2;
    }
    int rc = hs_device_open(&p, &b.dev, &err);
    if (!rc) rc = prepare(&b, &err);
    if (rc) {
        fprintf(stderr, "cuda_rows: %s\n", err.msg);
        return rc == HS_ENODEV || rc == HS_ENOTSUP ? SKIP : 1;
    }
    const double values = (double)b.act.n, size = (double)hs_dtype_size(b.dev->act), angles = 4.0 * (double)b.rope.n;
    printf("%s\n%lld tokens, width %lld, ffn %lld\n", hs_device_name(b.dev), (long long)b.n, (long long)b.d,
           (long long)b.ff);
    rows(&b, "copy, 16 bits", copy_rows, 2 * size * values);
    rows(&b, "conversion from F32", convert_rows, (4 + size) * values);
    rows(&b, "norm and modulation", norm_rows, (4 + size) * values);
    rows(&b, "norm of cross-attention's queries", norm_queries, 2 * size * values);
    rows(&b, "norm and rotation of queries and keys", turn_both, 4 * size * values + angles);
    rows(&b, "  and token means", turn_and_means, 4 * size * values + angles);
    rows(&b, "sum of two, F32", combine_rows, 6 * values);
    products(&b);
    hs_buf all[] = {b.act, b.wide, b.x, b.vec, b.gate, b.rope, b.mean};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hs_device_free(b.dev, all[i]);
    free(b.noise);
    hs_device_close(b.dev);
    return b.failed;
}
