/* Where the time of a video goes, per operation, against the floor of the arithmetic.
 *
 *     where_time_goes -m data/demo [--threads N] [--precision auto|fp32|bf16] [--steps N] [--peak GFLOP/s]
 *
 * Puts a stopwatch around every entry of the device's operation table and runs the pipeline into nothing. FLOPs are
 * counted from the calls. --peak is what the machine does at best in that precision (attention_bench prints it per
 * core); with it the share of the peak is printed. A tool, not a test.
 */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINEAR, SELF, CROSS, CONV, NORM, QK_NORM, CHANNEL_NORM, COPY, OTHER, KINDS };
static const char *const kind_name[KINDS] = {"linear",          "self-attention",  "other attention",
                                             "convolution",     "norm + modulate", "qk norm + rope",
                                             "VAE norm + silu", "copy, convert",   "the rest"};
static struct {
    double seconds, flops;
    long calls;
} total[KINDS];
static const hs_ops *real;  /* one table serves both CPU devices */
static int64_t self_tokens; /* an attention over so many keys is self-attention */

static void add(int kind, double start, double flops) {
    total[kind].seconds += hs_seconds() - start;
    total[kind].flops += flops;
    total[kind].calls++;
}

static void linear(hs_device *dev, const hs_linear *a) {
    double t = hs_seconds();
    real->linear(dev, a);
    add(LINEAR, t, 2.0 * (double)a->rows * (double)a->w->in * (double)a->w->out);
}
static void attention(hs_device *dev, const hs_attention *a) {
    double t = hs_seconds();
    real->attention(dev, a);
    add(a->len_k == self_tokens ? SELF : CROSS, t, 4.0 * (double)a->len_q * (double)a->len_k * a->heads * a->head_dim);
}
static void conv(hs_device *dev, const hs_conv *a) {
    double t = hs_seconds();
    real->conv(dev, a);
    double taps = a->w->up2 ? 16 : a->w->kt * a->w->ky * a->w->kx; /* doubling folded: four kernels of four taps */
    add(CONV, t, 2.0 * a->T * a->Y * a->X * taps * a->w->cin * a->w->cout);
}
static void norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf plus,
                 float eps, hs_buf y) {
    double t = hs_seconds();
    real->norm(dev, kind, x, rows, d, mul, plus, eps, y);
    add(NORM, t, 0);
}
static void qk_norm(hs_device *dev, const hs_qk_norm *a) {
    double t = hs_seconds();
    real->qk_norm(dev, a);
    add(QK_NORM, t, 0);
}
static void channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y) {
    double t = hs_seconds();
    real->channel_norm(dev, x, pixels, C, gamma, silu, y);
    add(CHANNEL_NORM, t, 0);
}
static void copy(hs_device *dev, hs_buf dst, hs_buf src) {
    double t = hs_seconds();
    real->copy(dev, dst, src);
    add(COPY, t, 0);
}

static hs_ops timed;

static void time_device(hs_device *dev) {
    if (dev->ops == &timed) return;
    real = dev->ops;
    timed = *real;
    timed.linear = linear;
    timed.attention = attention;
    timed.conv = conv;
    timed.norm = norm;
    timed.qk_norm = qk_norm;
    timed.channel_norm = channel_norm;
    timed.copy = copy;
    dev->ops = &timed;
}

static int run(const hs_model_params *p, int steps, double peak, hs_err *err) {
    hs_model *m;
    hs_session *s = NULL;
    hs_sink *sink = NULL;
    hs_run_stats st;
    int r = hs_model_open(p, &m, err);
    if (r) return r;
    hs_request req = hs_request_default(m);
    req.prompt = "a yellow star bounces over a gradient teal background";
    req.seed = 1;
    if (steps) req.steps = steps;
    hs_sink_params sp = {.path = "null:", .width = req.width, .height = req.height, .fps_num = req.fps, .fps_den = 1};
    if ((r = hs_session_new(m, &req, &s, err)) || (r = hs_sink_open(&sp, &sink, err))) goto out;
    self_tokens = (int64_t)s->f * (s->h / 2) * (s->w / 2);
    time_device(m->dev);
    if (m->vae_dev != m->dev) m->vae_dev->ops = &timed;
    if ((r = hs_generate(s, &req, sink, NULL, &st, err))) goto out;
    total[OTHER].seconds = st.total;
    for (int k = 0; k < OTHER; k++) total[OTHER].seconds -= total[k].seconds;
    printf("%s\n%dx%d, %d frames, %d steps: %.2f s (load %.2f, text %.2f, denoise %.2f, decode %.2f)\n\n",
           hs_device_name(m->dev), req.width, req.height, req.frames, req.steps, st.total, st.seconds[HS_STAGE_LOAD],
           st.seconds[HS_STAGE_TEXT], st.seconds[HS_STAGE_DENOISE], st.seconds[HS_STAGE_DECODE]);
    printf("%-16s %9s %7s %9s %10s%s\n", "operation", "seconds", "share", "calls", "GFLOP/s",
           peak > 0 ? "  of peak" : "");
    for (int k = 0; k < KINDS; k++) {
        double rate = total[k].flops / total[k].seconds / 1e9;
        printf("%-16s %9.3f %6.1f%% %9ld", kind_name[k], total[k].seconds, 100 * total[k].seconds / st.total,
               total[k].calls);
        if (total[k].flops > 0) printf(" %10.0f", rate);
        if (total[k].flops > 0 && peak > 0) printf(" %7.0f%%", 100 * rate / peak);
        printf("\n");
    }
out:
    if (sink) hs_sink_close(sink, NULL, NULL);
    hs_session_free(s);
    hs_model_free(m);
    return r;
}

int main(int argc, char **argv) {
    hs_model_params p = {.dir = "data/demo", .device = "cpu", .precision = "auto"};
    int steps = 0;
    double peak = 0;
    hs_err err = {0};
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "-m")) p.dir = argv[i + 1];
        if (!strcmp(argv[i], "--threads")) p.threads = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--precision")) p.precision = argv[i + 1];
        if (!strcmp(argv[i], "--steps")) steps = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--peak")) peak = atof(argv[i + 1]);
    }
    if (run(&p, steps, peak, &err)) {
        fprintf(stderr, "where_time_goes: %s\n", err.msg);
        return 1;
    }
    return 0;
}
