/* Rate of attention on a device, dense and under masks, at the sizes of Wan2.1 videos of 81 frames.
 *
 *     cuda_attention [--device cuda[:N]] [--precision auto|fp32|bf16|fp16] [--tokens N] [--heads N] [--repeats N]
 *                    [--dense | --masks tests/bench/demo_masks.safetensors]
 *
 * Without --tokens and --heads: 32,760 and 75,600 tokens (480p, 720p), 12 and 40 heads (1.3B, 14B). Masks are random
 * bits over blocks of 128 or 64 tokens (uneven: heads keep from nothing to twice as much), or over scattered clusters
 * as SVG2 makes them; with --masks also a model's own, a small video's, one tile of them beside the other; with --dense
 * none. FLOPs are those of the kept pairs; the last column is the rate against dense attention of the same size. A
 * tool, not a test; exit status 77: no such device.
 */
#include "backend.h"
#include "mask.h"
#include "safetensors.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 128, MAX_REPEATS = 99, SKIP = 77, Q_CLUSTERS = 300, K_CLUSTERS = 1000, PATTERN = 1 << 20 };

typedef struct options {
    const char *device, *precision, *masks;
    int64_t tokens;
    int heads, repeats, dense;
} options;

/* One size: operands as the model lays them out. */
typedef struct bench {
    hs_device *dev;
    int64_t n;
    int heads, repeats;
    hs_buf qkv, out;           /* [n, 3, heads, DIM], [n, heads, DIM] */
    double dense;              /* FLOP/s without a mask */
    const hs_st_tensor *tiles; /* NULL, or U8 [heads, rows, cols] of blocks of 128: masks that are repeated */
} bench;

/* A mask of host memory and its copy on the device, buffer by buffer. */
typedef struct masks {
    hs_mask host, there;
} masks;

static hs_buf *buffer(hs_mask *m, int i) {
    hs_buf *const all[] = {&m->bits, &m->dense, &m->q_order, &m->k_order, &m->q_start, &m->k_start};
    return all[i];
}
enum { BUFFERS = 6 };

static void *need_memory(size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p) {
        fprintf(stderr, "cuda_attention: out of memory (%zu bytes)\n", bytes);
        exit(1);
    }
    return p;
}

static hs_buf host_buf(hs_dtype type, int64_t n) {
    return (hs_buf){need_memory((size_t)n * hs_dtype_size(type)), type, n};
}

/* ---- masks ------------------------------------------------------------------------------------------------------- */

/* Every head visits its tokens by a stride of its own, cut into n pieces of uneven size. */
static void scatter(hs_mask *m, hs_buf order, hs_buf start, int64_t len, int n, uint64_t salt) {
    for (int h = 0; h < m->heads; h++) {
        int32_t *o = (int32_t *)order.p + h * len, *s = (int32_t *)start.p + (int64_t)h * (n + 1);
        int64_t stride = (int64_t)(hs_hash64(salt + (uint64_t)h) % (uint64_t)len) | 1, at = 0;
        while (len % 3 == 0 && stride % 3 == 0) stride += 2;
        while (len % 5 == 0 && stride % 5 == 0) stride += 2;
        char *const seen = need_memory((size_t)len); /* the stride may still share a factor: steps over what was met */
        for (int64_t i = 0; i < len; i++, at = (at + stride) % len) {
            while (seen[at]) at = (at + 1) % len;
            seen[at] = 1;
            o[i] = (int32_t)at;
        }
        free(seen);
        for (int c = 1; c < n; c++) {
            const double jitter = (double)(hs_hash64(salt + (uint64_t)(h * n + c)) % 1000) / 1000;
            s[c] = (int32_t)(((double)c + jitter - 0.5) * (double)len / n);
        }
        s[n] = (int32_t)len;
    }
}

/* Does head h keep block (r, c)? share: of random ones. */
static int keeps(const bench *b, const hs_mask *m, int tiled, int h, int r, int c, double share) {
    if (!tiled)
        return (double)(hs_hash64((uint64_t)(((int64_t)h * m->rows + r) * m->cols + c)) % 1000000) < share * 1e6;
    const int64_t *shape = b->tiles->shape;
    return ((const uint8_t *)b->tiles->data)[(h % shape[0] * shape[1] + r % shape[1]) * shape[2] + c % shape[2]];
}

/* block 0: clusters. uneven: the first head keeps next to nothing, the last one twice the density. density 0: tiled. */
static hs_mask make_mask(const bench *b, int block, double density, int uneven) {
    hs_mask m = {.heads = b->heads, .block = block, .len_q = b->n, .len_k = b->n};
    m.rows = block ? (int)((b->n + block - 1) / block) : Q_CLUSTERS;
    m.cols = block ? m.rows : K_CLUSTERS;
    m.words = hs_mask_words(m.cols);
    m.bits = host_buf(HS_I32, (int64_t)m.heads * m.rows * m.words);
    m.dense = host_buf(HS_U8, m.heads);
    for (int64_t r = 0; r < (int64_t)m.heads * m.rows; r++) {
        const int h = (int)(r / m.rows);
        const double share = uneven ? density * (double)(2 * h + 1) / m.heads : density;
        for (int c = 0; c < m.cols; c++)
            if (keeps(b, &m, density == 0, h, (int)(r % m.rows), c, share))
                hs_mask_set((int32_t *)m.bits.p + r * m.words, c);
    }
    if (block) return m;
    m.q_order = host_buf(HS_I32, m.heads * b->n);
    m.k_order = host_buf(HS_I32, m.heads * b->n);
    m.q_start = host_buf(HS_I32, (int64_t)m.heads * (m.rows + 1));
    m.k_start = host_buf(HS_I32, (int64_t)m.heads * (m.cols + 1));
    scatter(&m, m.q_order, m.q_start, b->n, m.rows, 1);
    scatter(&m, m.k_order, m.k_start, b->n, m.cols, 1000);
    return m;
}

static int masks_new(const bench *b, int block, double density, int uneven, masks *ret, hs_err *err) {
    int rc = HS_OK;
    ret->host = ret->there = make_mask(b, block, density, uneven);
    for (int i = 0; i < BUFFERS; i++) *buffer(&ret->there, i) = HS_NOBUF;
    for (int i = 0; i < BUFFERS && !rc; i++) {
        const hs_buf from = *buffer(&ret->host, i);
        if (!from.p) continue;
        rc = hs_device_alloc(b->dev, from.type, from.n, "mask", buffer(&ret->there, i), err);
        if (!rc) hs_upload(b->dev, *buffer(&ret->there, i), from.p);
    }
    return rc;
}

static void masks_free(const bench *b, masks *m) {
    for (int i = 0; i < BUFFERS; i++) {
        free(buffer(&m->host, i)->p);
        hs_device_free(b->dev, *buffer(&m->there, i));
    }
}

/* ---- timing ------------------------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median time of a call, after two that are not counted. */
static int measure(bench *b, const char *what, const hs_mask *mask, double density, hs_err *err) {
    const int64_t d = (int64_t)b->heads * DIM;
    const hs_attention a = {.q = b->qkv,
                            .k = hs_buf_at(b->qkv, d, b->qkv.n - d),
                            .v = hs_buf_at(b->qkv, 2 * d, b->qkv.n - 2 * d),
                            .out = b->out,
                            .ld_q = 3 * d,
                            .ld_k = 3 * d,
                            .ld_v = 3 * d,
                            .ld_out = d,
                            .len_q = b->n,
                            .len_k = b->n,
                            .heads = b->heads,
                            .head_dim = DIM,
                            .scale = 1 / sqrtf((float)DIM),
                            .mask = mask};
    double seconds[MAX_REPEATS];
    int rc = HS_OK;
    for (int i = -2; i < b->repeats && !rc; i++) {
        const double start = hs_seconds();
        hs_op_attention(b->dev, &a);
        rc = hs_device_check(b->dev, err);
        if (i >= 0) seconds[i] = hs_seconds() - start;
    }
    if (rc) return rc;
    qsort(seconds, (size_t)b->repeats, sizeof *seconds, by_value);
    const double median = seconds[b->repeats / 2],
                 rate = 4.0 * (double)b->n * (double)b->n * (double)d * density / median;
    if (!mask) b->dense = rate;
    printf("%7lld tokens %3d heads  %-12s density %.3f %9.3f ms (%.3f to %.3f) %7.1f TFLOP/s %6.1f %%\n",
           (long long)b->n, b->heads, what, density, median * 1e3, seconds[0] * 1e3, seconds[b->repeats - 1] * 1e3,
           rate * 1e-12, 100 * rate / b->dense);
    fflush(stdout);
    return HS_OK;
}

static int measure_masked(bench *b, int block, double density, int uneven, hs_err *err) {
    masks m;
    char what[32] = "clusters";
    double kept = 0;
    int rc = masks_new(b, block, density, uneven, &m, err);
    for (int h = 0; h < b->heads; h++) kept += hs_mask_density(&m.host, h) / b->heads;
    if (block) snprintf(what, sizeof what, "%s %d", density == 0 ? "model" : uneven ? "uneven" : "blocks", block);
    if (!rc) rc = measure(b, what, &m.there, kept, err);
    masks_free(b, &m);
    return rc;
}

/* Normal noise, the same million values again and again. */
static void fill(const bench *b) {
    float *noise = need_memory(PATTERN * sizeof *noise);
    void *typed = need_memory(PATTERN * sizeof *noise);
    hs_randn(1, noise, PATTERN);
    hs_from_f32(typed, b->qkv.type, noise, PATTERN);
    for (int64_t at = 0; at < b->qkv.n; at += PATTERN)
        hs_upload(b->dev, hs_buf_at(b->qkv, at, b->qkv.n - at < PATTERN ? b->qkv.n - at : PATTERN), typed);
    free(noise);
    free(typed);
}

static int measure_masks(bench *b, hs_err *err) {
    static const double densities[] = {0.5, 0.3, 0.2, 0.1};
    static const int blocks[] = {128, 64, 0};
    int rc = measure_masked(b, 128, 1, 0, err);
    for (int i = 0; i < 3 && !rc; i++)
        for (int k = 0; k < 4 && !rc; k++) rc = measure_masked(b, blocks[i], densities[k], 0, err);
    if (!rc) rc = measure_masked(b, 128, 0.3, 1, err);
    if (!rc && b->tiles) rc = measure_masked(b, 128, 0, 0, err);
    return rc ? rc : measure(b, "dense", NULL, 1, err); /* again: clocks change */
}

static int measure_size(hs_device *dev, int64_t n, int heads, const options *o, const hs_st_tensor *tiles,
                        hs_err *err) {
    bench b = {.dev = dev, .n = n, .heads = heads, .repeats = o->repeats, .tiles = tiles};
    const hs_dtype act = hs_device_act(dev);
    int rc = hs_device_alloc(dev, act, n * 3 * heads * DIM, "q, k, v", &b.qkv, err);
    if (!rc) rc = hs_device_alloc(dev, act, n * heads * DIM, "result", &b.out, err);
    if (!rc) {
        fill(&b);
        rc = measure(&b, "dense", NULL, 1, err);
    }
    if (!rc && !o->dense) rc = measure_masks(&b, err);
    hs_device_free(dev, b.qkv);
    hs_device_free(dev, b.out);
    return rc;
}

static int parse(int argc, char **argv, options *o) {
    static const struct option names[] = {
        {"device", 1, 0, 'd'},  {"precision", 1, 0, 'p'}, {"tokens", 1, 0, 't'}, {"heads", 1, 0, 'h'},
        {"repeats", 1, 0, 'r'}, {"masks", 1, 0, 'm'},     {"dense", 0, 0, 'D'},  {0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
        case 'd': o->device = optarg; break;
        case 'p': o->precision = optarg; break;
        case 't': o->tokens = atoll(optarg); break;
        case 'h': o->heads = atoi(optarg); break;
        case 'm': o->masks = optarg; break;
        case 'D': o->dense = 1; break;
        case 'r': o->repeats = atoi(optarg); break;
        default: return 2;
        }
    return optind < argc || (o->dense && o->masks) || o->tokens < 0 || o->heads < 0 || o->repeats < 1 ||
                   o->repeats > MAX_REPEATS
               ? 2
               : 0;
}

static int open_tiles(const char *path, hs_st *file, const hs_st_tensor **ret, hs_err *err) {
    const hs_st_tensor *t = *ret = hs_st_find(file, "mask");
    if (!t || t->dtype != HS_U8 || t->ndim != 3 || !t->numel)
        return hs_fail(err, HS_EFORMAT, "%s: expected a tensor 'mask', U8 [heads, rows, columns]", path);
    return HS_OK;
}

int main(int argc, char **argv) {
    options o = {.device = "cuda", .precision = "auto", .repeats = 9};
    if (parse(argc, argv, &o)) {
        fprintf(stderr, "usage: cuda_attention [--device NAME] [--precision auto|fp32|bf16|fp16] [--tokens N] "
                        "[--heads N] [--repeats 1..99] [--dense | --masks FILE]\n");
        return 2;
    }
    const int64_t tokens[] = {o.tokens ? o.tokens : 32760, o.tokens ? 0 : 75600};
    const int heads[] = {o.heads ? o.heads : 12, o.heads ? 0 : 40};
    const hs_device_params p = {.name = o.device, .precision = o.precision};
    hs_device *dev;
    hs_err err = {0};
    hs_st *file = NULL;
    const hs_st_tensor *tiles = NULL;
    if (o.masks && (hs_st_open(o.masks, &file, &err) || open_tiles(o.masks, file, &tiles, &err))) {
        fprintf(stderr, "cuda_attention: %s\n", err.msg);
        return 1;
    }
    int rc = hs_device_open(&p, &dev, &err);
    if (rc) {
        fprintf(stderr, "cuda_attention: %s\n", err.msg);
        return err.code == HS_ENODEV || err.code == HS_ENOTSUP ? SKIP : 1;
    }
    printf("%s\n", hs_device_name(dev));
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2 && !rc; k++)
            if (tokens[i] && heads[k]) rc = measure_size(dev, tokens[i], heads[k], &o, tiles, &err);
    if (rc) fprintf(stderr, "cuda_attention: %s\n", err.msg);
    hs_device_close(dev);
    hs_st_close(file);
    return rc != 0;
}
