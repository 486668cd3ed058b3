/* A whole forward of the transformer, and the VAE's decoding, at full size with random weights.
 *
 *     wan_shapes -m wan2.1-14b --size 1280x720 --frames 81 [--device cuda] [--precision bf16] [--repeat 5]
 *                [--part dit|vae] [--attention dense|xattention|svg2|pooled --top-p .9 [--every 5]]
 *
 * --every N: masks are predicted in every Nth forward, and the median is of the means of N of them; 1 without it.
 * With random weights all blocks weigh about the same, so masks have a density of about top-p.
 * -m: as --random-weights of haste-run; the weights of official models are not needed to know how long a forward takes,
 * only their shapes. Prints the median seconds of a forward of one branch without stopping anywhere, then where they
 * go, measured with a wait after every operation. A tool, not a test.
 */
#include "dit.h"
#include "random.h"
#include "vae.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINEAR, SELF, CROSS, CONV, NORM, QK_NORM, CHANNEL_NORM, PREDICT, REST, KINDS };
static const char *const kind_name[KINDS] = {"linear",          "self-attention",  "other attention",
                                             "convolution",     "norm + modulate", "qk norm + rope",
                                             "VAE norm + silu", "prediction",      "the rest"};
static struct {
    double seconds, flops;
    long calls;
} total[KINDS];
static const hs_ops *real;
static hs_ops wrapped;
static int64_t self_tokens;
static int stop_after_each;

/* ---- stopwatches --------------------------------------------------------------------------------------------------
 */
static double begin(hs_device *dev) {
    hs_err err;
    if (stop_after_each) real->sync(dev, &err);
    return hs_seconds();
}
static void end(hs_device *dev, int kind, double start, double flops) {
    hs_err err;
    if (!stop_after_each) return;
    real->sync(dev, &err);
    total[kind].seconds += hs_seconds() - start;
    total[kind].flops += flops;
    total[kind].calls++;
}
static void linear(hs_device *dev, const hs_linear *a) {
    double t = begin(dev);
    real->linear(dev, a);
    end(dev, LINEAR, t, 2.0 * (double)a->rows * (double)a->w->in * (double)a->w->out);
}
static void attention(hs_device *dev, const hs_attention *a) {
    double t = begin(dev);
    real->attention(dev, a);
    end(dev, a->len_k == self_tokens ? SELF : CROSS, t,
        4.0 * (double)a->len_q * (double)a->len_k * a->heads * a->head_dim);
}
static void conv(hs_device *dev, const hs_conv *a) {
    double t = begin(dev);
    real->conv(dev, a);
    double taps = (double)a->w->kt * a->w->ky * a->w->kx * (a->w->up2 ? 4 : 1);
    end(dev, CONV, t, 2.0 * a->T * a->Y * a->X * taps * a->w->cin * a->w->cout);
}
static void norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf plus,
                 float eps, hs_buf y) {
    double t = begin(dev);
    real->norm(dev, kind, x, rows, d, mul, plus, eps, y);
    end(dev, NORM, t, 0);
}
static void qk_norm(hs_device *dev, const hs_qk_norm *a) {
    double t = begin(dev);
    real->qk_norm(dev, a);
    end(dev, QK_NORM, t, 0);
}
static void channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y) {
    double t = begin(dev);
    real->channel_norm(dev, x, pixels, C, gamma, silu, y);
    end(dev, CHANNEL_NORM, t, 0);
}
#define PREDICTOR(name, type)                                                                                          \
    static void timed_##name(hs_device *dev, const type *a) {                                                          \
        double t = begin(dev);                                                                                         \
        real->name(dev, a);                                                                                            \
        end(dev, PREDICT, t, 0);                                                                                       \
    }
PREDICTOR(block_scores, hs_block_scores)
PREDICTOR(centroid_scores, hs_centroid_scores)
PREDICTOR(select, hs_select)
PREDICTOR(cluster, hs_cluster)
PREDICTOR(reuse, hs_reuse)

static void wrap(hs_device *dev) {
    real = dev->ops;
    wrapped = *real;
    wrapped.linear = linear;
    wrapped.attention = attention;
    wrapped.conv = conv;
    wrapped.norm = norm;
    wrapped.qk_norm = qk_norm;
    wrapped.channel_norm = channel_norm;
    wrapped.block_scores = timed_block_scores;
    wrapped.centroid_scores = timed_centroid_scores;
    wrapped.select = timed_select;
    wrapped.cluster = timed_cluster;
    wrapped.reuse = timed_reuse;
    dev->ops = &wrapped;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void where_it_goes(double whole) {
    double sum = 0;
    printf("  %-16s %9s %7s %7s %9s   (waiting after every operation)\n", "operation", "seconds", "share", "calls",
           "TFLOP/s");
    for (int k = 0; k < REST; k++) sum += total[k].seconds;
    for (int k = 0; k < REST; k++) {
        if (!total[k].calls) continue;
        printf("  %-16s %9.4f %6.1f%% %7ld", kind_name[k], total[k].seconds, 100 * total[k].seconds / whole,
               total[k].calls);
        if (total[k].flops > 0) printf(" %9.0f", total[k].flops / total[k].seconds / 1e12);
        printf("\n");
    }
    printf("  %-16s %9.4f %6.1f%%\n", kind_name[REST], whole - sum, 100 * (whole - sum) / whole);
    memset(total, 0, sizeof total);
}

/* ---- what is measured ---------------------------------------------------------------------------------------------
 */
typedef struct settings {
    const char *dir, *part;
    hs_device_params device;
    int width, height, frames, repeat, every;
    hs_attn_policy attention;
} settings;

static int upload_noise(hs_device *dev, hs_buf to, uint64_t seed, hs_err *err) {
    float *x = hs_alloc((size_t)to.n * sizeof *x);
    if (!x) return hs_fail(err, HS_ENOMEM, "no memory for noise");
    hs_randn(seed, x, to.n);
    hs_upload(dev, to, x);
    hs_free(x);
    return 0;
}

static int bench_dit(const settings *o, const hs_config *c, hs_device *dev, hs_err *err) {
    const int f = (o->frames - 1) / 4 + 1, h = o->height / 16, w = o->width / 16, tokens = f * h * w;
    const int64_t n = (int64_t)c->in_channels * f * h * w * 4;
    hs_dit *dit = NULL;
    hs_dit_run *run = NULL;
    hs_buf latents, velocity, rows;
    hs_st *st = NULL;
    int r, step = 0;
    double *seconds = hs_calloc((size_t)o->repeat, sizeof *seconds), start = hs_seconds();
    self_tokens = tokens;
    if ((r = hs_st_random(o->dir, &st, err)) || (r = hs_dit_load(c, st, dev, HS_ALL_BLOCKS, &dit, err)) ||
        (r = hs_dit_run_new(dit, f, h, w, HS_NOBUF, &run, err)) ||
        (r = hs_dit_run_attention(run, &o->attention, err)) ||
        (r = hs_device_alloc(dev, HS_F32, n, "latents", &latents, err)) ||
        (r = hs_device_alloc(dev, HS_F32, n, "velocity", &velocity, err)) ||
        (r = hs_device_alloc(dev, HS_F32, 64LL * c->text_dim, "text", &rows, err)))
        goto out;
    if ((r = upload_noise(dev, latents, 1, err)) || (r = upload_noise(dev, rows, 2, err))) goto out;
    if ((r = hs_dit_set_text(run, 0, rows, 64, &(hs_tap){0}, err)) || (r = hs_device_check(dev, err))) goto out;
    int64_t peak, bytes = hs_device_bytes(dev, &peak);
    printf("dit %dx%dx%d, %d tokens, %d layers, %s: ready in %.1f s, %.2f GB on the device\n", o->width, o->height,
           o->frames, tokens, c->layers, hs_device_name(dev), hs_seconds() - start, (double)bytes / 1e9);
    hs_attn_begin(hs_dit_run_attn(run));
    for (int i = o->every > 1 ? -1 : -2; i < o->repeat && !r; i++) { /* first it tunes and warms up */
        start = hs_seconds();
        for (int k = 0; k < o->every; k++, step++)
            hs_dit_forward(run, latents, 700, &(hs_policy){.step = step, .steps = 50}, velocity, &(hs_tap){0});
        r = hs_device_check(dev, err);
        if (i >= 0) seconds[i] = (hs_seconds() - start) / o->every;
    }
    if (r) goto out;
    const int64_t bad = hs_count_nonfinite(dev, velocity);
    qsort(seconds, (size_t)o->repeat, sizeof *seconds, by_value);
    const double median = seconds[o->repeat / 2], flops = hs_dit_flops(c, f, h, w, 64);
    printf(
        "  forward of one branch: %.4f s (median of %d, %.4f to %.4f), %.0f TFLOP/s of dense work, %lld not finite\n",
        median, o->repeat, seconds[0], seconds[o->repeat - 1], flops / median / 1e12, (long long)bad);
    if (o->attention.method != HS_DENSE) {
        float density[HS_MAX_HEADS], drift[HS_MAX_HEADS], mean = 0;
        uint8_t call[HS_MAX_HEADS];
        for (int l = 0; l < c->layers && !r; l++) {
            r = hs_attn_report(hs_dit_run_attn(run), 0, l, density, drift, call, err);
            for (int k = 0; k < c->heads; k++) mean += density[k] / (float)(c->heads * c->layers);
        }
        printf("  %s: mean density %.3f\n", hs_method_name(o->attention.method), mean);
    }
    stop_after_each = 1;
    start = begin(dev);
    hs_dit_forward(run, latents, 700, &(hs_policy){.step = step, .steps = 50}, velocity, &(hs_tap){0});
    r = hs_device_check(dev, err);
    where_it_goes(hs_seconds() - start);
    stop_after_each = 0;
out:
    hs_free(seconds);
    hs_dit_run_free(run);
    hs_dit_free(dit);
    if (st) hs_st_close(st);
    return r;
}

static int bench_vae(const settings *o, const hs_config *c, hs_device *dev, hs_err *err) {
    const int f = (o->frames - 1) / 4 + 1, h = o->height / 8, w = o->width / 8;
    const int64_t n = (int64_t)c->in_channels * f * h * w;
    hs_vae *vae = NULL;
    hs_vae_run *run = NULL;
    hs_buf latents, rgb;
    hs_st *st = NULL;
    int r, T;
    self_tokens = -1;
    if ((r = hs_st_random(o->dir, &st, err)) || (r = hs_vae_load(c, st, dev, &vae, err)) ||
        (r = hs_vae_run_new(vae, h, w, 4, HS_NOBUF, &run, err)) ||
        (r = hs_device_alloc(dev, HS_F32, n, "latents", &latents, err)))
        goto out;
    if ((r = upload_noise(dev, latents, 1, err))) goto out;
    for (int i = 0; i < 3 && !r; i++) { /* tunes, measures, tells where the time goes */
        stop_after_each = i == 2;
        const double start = begin(dev);
        hs_vae_begin(run);
        for (int t = 0; t < f; t++) hs_vae_decode(run, latents, f, t, &rgb, &T, &(hs_tap){0});
        r = hs_device_check(dev, err);
        const double took = hs_seconds() - start;
        int64_t peak, bytes = hs_device_bytes(dev, &peak);
        if (i == 1)
            printf("vae %dx%dx%d: decoded in %.3f s, %.0f TFLOP/s, %.2f GB on the device\n", o->width, o->height,
                   o->frames, took, hs_vae_flops(c, h, w, o->frames) / took / 1e12, (double)bytes / 1e9);
        if (i == 2) where_it_goes(took);
    }
    stop_after_each = 0;
out:
    hs_vae_run_free(run);
    hs_vae_free(vae);
    if (st) hs_st_close(st);
    return r;
}

int main(int argc, char **argv) {
    settings o = {
        .dir = "data/demo", .part = "", .device = {.name = "auto", .precision = "auto"}, .repeat = 5, .every = 1};
    hs_method method = HS_DENSE;
    float top_p = 0.9f;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *a = argv[i], *v = argv[i + 1];
        if (!strcmp(a, "-m"))
            o.dir = v;
        else if (!strcmp(a, "--part"))
            o.part = v;
        else if (!strcmp(a, "--size"))
            sscanf(v, "%dx%d", &o.width, &o.height);
        else if (!strcmp(a, "--frames"))
            o.frames = atoi(v);
        else if (!strcmp(a, "--device"))
            o.device.name = v;
        else if (!strcmp(a, "--precision"))
            o.device.precision = v;
        else if (!strcmp(a, "--threads"))
            o.device.threads = atoi(v);
        else if (!strcmp(a, "--repeat"))
            o.repeat = atoi(v) > 0 ? atoi(v) : 1;
        else if (!strcmp(a, "--attention") && hs_method_parse(v, &method))
            return 2;
        else if (!strcmp(a, "--top-p"))
            top_p = strtof(v, NULL);
        else if (!strcmp(a, "--every"))
            o.every = atoi(v) > 0 ? atoi(v) : 1;
    }
    hs_err err = {0};
    hs_config c;
    hs_device *dev = NULL;
    int r = hs_random_config(o.dir, &c, &err);
    if (r) goto out;
    if (!o.width) o.width = c.width, o.height = c.height;
    if (!o.frames) o.frames = c.frames;
    o.attention = hs_attn_policy_default(method);
    o.attention.top_p = top_p;
    o.attention.reuse.kind = o.every > 1 ? HS_REUSE_INTERVAL : HS_REUSE_NONE;
    o.attention.reuse.interval = o.every;
    if ((r = hs_device_open(&o.device, &dev, &err))) goto out;
    wrap(dev);
    if (strcmp(o.part, "vae")) r = bench_dit(&o, &c, dev, &err);
    if (!r && strcmp(o.part, "dit")) r = bench_vae(&o, &c, dev, &err);
out:
    if (r) fprintf(stderr, "wan_shapes: %s\n", err.msg);
    hs_device_close(dev);
    return r ? 1 : 0;
}
