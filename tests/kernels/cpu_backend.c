/* What kernelcheck cannot see of the cpu backend: results do not depend on the number of threads; no allocation that
 * fails, at whatever point, leaks, crashes or leaves a device unusable; no layer of the demo model or of Wan2.1's
 * decoder falls to oneDNN's reference loops; the environment variable that lowers the instruction set is obeyed.
 * Exit status: 0 all held, 1 something did not, 77 no cpu backend in this build. */
#include "backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures, warnings;

static void expect(int ok, const char *what, const char *found) {
    if (ok) return;
    failures++;
    printf("FAILED: %s (found: %s)\n", what, found);
}

static void count_warnings(void *user, enum hs_log_level level, const char *msg) {
    (void)user;
    if (level > HS_LOG_WARN) return;
    warnings++;
    printf("  log: %s\n", msg);
}

static void fill(float *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)(hs_hash64(seed + (uint64_t)i) >> 40) / 8388608.0f - 1;
}

static float values[1 << 22]; /* the source of all weights and inputs */

/* A buffer of pseudo-random values; p == NULL when out of memory. */
static hs_buf random_buf(hs_device *dev, hs_dtype t, int64_t n, hs_err *err) {
    hs_buf b, f;
    if (hs_device_alloc(dev, t, n, "test", &b, err)) return HS_NOBUF;
    if (hs_device_alloc(dev, HS_F32, n, "test", &f, err)) {
        hs_device_free(dev, b);
        return HS_NOBUF;
    }
    hs_upload(dev, f, values);
    hs_copy(dev, b, f);
    hs_device_free(dev, f);
    return b;
}

static hs_weight *linear(hs_device *dev, int64_t out, int64_t in, int f32, hs_err *err) {
    const hs_linear_src s = {.parts = 1,
                             .w = {values},
                             .bias = {values},
                             .type = {HS_F32},
                             .bias_type = {HS_F32},
                             .out = {out},
                             .in = in,
                             .f32 = f32};
    hs_weight *w = NULL;
    (void)hs_weight_linear(dev, &s, &w, err);
    return w;
}

static hs_weight *conv(hs_device *dev, int cout, int cin, int kt, int k, int up2, hs_err *err) {
    const hs_conv_src s = {values, values, HS_F32, HS_F32, cout, cin, kt, k, k, up2};
    hs_weight *w = NULL;
    (void)hs_weight_conv(dev, &s, &w, err);
    return w;
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */
static uint64_t hash(uint64_t h, const void *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) h = hs_hash64(h ^ ((const unsigned char *)p)[i]);
    return h;
}

static uint64_t hash_buf(uint64_t h, hs_buf b) {
    return hash(h, b.p, (size_t)b.n * hs_dtype_size(b.type));
}

/* Large enough that every operation takes several threads; sizes that do not divide evenly. */
static uint64_t all_rows(hs_device *dev) {
    enum { ROWS = 331, D = 384, HEAD = 128, PIXELS = 7919, C = 24 };
    const hs_dtype act = hs_device_act(dev);
    hs_err err = {0};
    hs_buf x = random_buf(dev, HS_F32, ROWS * D, &err), y = random_buf(dev, act, ROWS * D, &err),
           v = random_buf(dev, HS_F32, D, &err);
    hs_buf rope = random_buf(dev, HS_F32, ROWS * HEAD, &err), mean = random_buf(dev, HS_F32, D, &err), bytes;
    hs_buf px = random_buf(dev, act, PIXELS * C, &err), py = random_buf(dev, act, PIXELS * C, &err);
    if (hs_device_alloc(dev, HS_U8, ROWS * D, "test", &bytes, &err)) return 0;
    uint64_t h = 1;
    hs_op_norm(dev, HS_NORM_LAYER, x, ROWS, D, v, v, 1e-6f, y);
    h = hash_buf(h, y);
    const hs_qk_norm q = {.x = y,
                          .gamma = {v},
                          .rope = rope,
                          .mean = {mean},
                          .rows = ROWS,
                          .ld = D,
                          .d = D,
                          .parts = 1,
                          .head_dim = HEAD,
                          .eps = 1e-6f};
    hs_op_qk_norm(dev, &q);
    h = hash_buf(hash_buf(h, y), mean);
    hs_op_gated_gelu(dev, px, ROWS, PIXELS * C / ROWS / 2, py);
    h = hash(h, py.p, (size_t)(ROWS * (PIXELS * C / ROWS / 2)) * hs_dtype_size(act));
    hs_op_channel_norm(dev, px, PIXELS, C, v, 1, py);
    h = hash_buf(h, py);
    hs_op_combine(dev, 2, (double[]){0.3, -1.7}, (hs_buf[]){x, x}, x);
    h = hash_buf(h, x);
    hs_op_to_u8(dev, x, bytes);
    h = hash_buf(h, bytes);
    hs_copy(dev, y, x);
    h = hash_buf(h, y);
    const int64_t bad = hs_count_nonfinite(dev, x);
    h = hash(h, &bad, sizeof bad);
    hs_buf all[] = {x, y, v, rope, mean, px, py, bytes};
    for (int i = 0; i < 8; i++) hs_device_free(dev, all[i]);
    return h;
}

static void test_threads(const char *precision) {
    uint64_t first = 0;
    for (int threads = 1; threads <= 5; threads += 2) {
        hs_device *dev;
        hs_err err = {0};
        char text[64];
        if (hs_device_open(&(hs_device_params){.name = "cpu", .threads = threads, .precision = precision}, &dev,
                           &err)) {
            expect(0, "opening with several threads", err.msg);
            return;
        }
        const uint64_t h = all_rows(dev);
        if (threads == 1) first = h;
        snprintf(text, sizeof text, "%d threads give other bits than 1 (%s)", threads, precision);
        expect(h == first, text, "a different hash");
        expect(!hs_device_check(dev, &err), "row operations", err.msg);
        hs_device_close(dev);
    }
}

/* ---- allocations that fail -------------------------------------------------------------------------------------- */
/* Everything that may allocate, once: 0, or what failed. A device that came open is closed. */
static int use_all(const char *precision, hs_err *err) {
    hs_device *dev;
    int rc = hs_device_open(&(hs_device_params){.name = "cpu", .threads = 1, .precision = precision}, &dev, err);
    if (rc) return rc;
    const hs_dtype act = hs_device_act(dev);
    hs_weight *l = linear(dev, 40, 24, 0, err), *f = linear(dev, 40, 24, 1, err);
    hs_weight *c = conv(dev, 96, 48, 1, 1, 0, err), *up = conv(dev, 24, 48, 1, 3, 1, err);
    hs_weight *time = conv(dev, 192, 96, 3, 1, 0, err); /* needs a second layout at this size */
    hs_buf x = random_buf(dev, HS_F32, 3 * 32 * 32 * 96, err), a = random_buf(dev, act, 3 * 32 * 32 * 96, err);
    hs_buf y = random_buf(dev, act, 4 * 32 * 32 * 192, err);
    if (l && f && c && up && time && x.p && a.p && y.p) {
        hs_op_linear(dev, &(hs_linear){.x = x, .y = y, .w = l, .rows = 7});
        hs_op_linear(dev, &(hs_linear){.x = x, .y = y, .w = f, .rows = 7});
        hs_op_conv(dev, &(hs_conv){.x = a, .y = y, .w = c, .T = 1, .Y = 32, .X = 32});
        hs_op_conv(dev, &(hs_conv){.x = a, .y = y, .w = up, .T = 1, .Y = 32, .X = 32});
        hs_op_conv(dev, &(hs_conv){.x = a, .y = y, .w = time, .T = 1, .Y = 32, .X = 32});
        rc = hs_device_check(dev, err);
    } else
        rc = err->code ? err->code : HS_ENOMEM;
    hs_device_free(dev, x);
    hs_device_free(dev, a);
    hs_device_free(dev, y);
    hs_device_close(dev); /* frees the weights; warns if its accounts do not close */
    return rc;
}

static void test_faults(const char *precision) {
    const int64_t live = hs_alloc_live();
    int n = 0, rc = HS_ENOMEM;
    while (rc && n < 200) {
        hs_err err = {0};
        char text[96];
        hs_alloc_fail_at(++n);
        rc = use_all(precision, &err);
        hs_alloc_fail_at(0);
        snprintf(text, sizeof text, "allocation %d failing (%s)", n, precision);
        expect(!rc || (rc == HS_ENOMEM && err.msg[0]), text, err.msg[0] ? err.msg : "no message");
        expect(hs_alloc_live() == live, text, "a leak");
    }
    expect(n > 20 && !rc, "every allocation fails once", "no end or too few");
    expect(!warnings, "quiet and closed accounts under failing allocations", "warnings");
}

/* ---- no slow way ------------------------------------------------------------------------------------------------ */
static void test_fast(const char *precision) {
    static const struct {
        int T, Y, X, cin, cout, kt, k, up;
    } shapes[] = {
        {1, 32, 32, 16, 16, 1, 1, 0},   {1, 32, 32, 16, 96, 3, 3, 0},   {1, 32, 32, 96, 288, 1, 1, 0},
        {1, 32, 32, 96, 192, 3, 1, 0},  {2, 64, 64, 96, 192, 3, 1, 0},  {1, 32, 32, 96, 48, 1, 3, 1},
        {1, 32, 32, 48, 96, 1, 1, 0},   {2, 16, 16, 48, 96, 3, 3, 0},   {4, 32, 32, 48, 24, 1, 3, 1},
        {4, 32, 32, 24, 24, 3, 3, 0},   {1, 64, 64, 24, 3, 3, 3, 0},    {4, 64, 64, 24, 3, 3, 3, 0},
        {1, 16, 16, 16, 384, 3, 3, 0},  {1, 16, 16, 384, 768, 3, 1, 0}, {1, 16, 16, 384, 1152, 1, 1, 0},
        {1, 16, 16, 384, 192, 1, 3, 1}, {1, 16, 16, 192, 384, 1, 1, 0}, {4, 16, 16, 96, 96, 3, 3, 0},
        {4, 16, 16, 96, 3, 3, 3, 0},
    };
    static const int layers[][3] = {{2304, 1152, 384}, {2304, 384, 384}, {2304, 384, 1536}, {2304, 384, 64},
                                    {26, 768, 384},    {1, 2304, 384},   {1, 384, 256},     {12, 512, 256}};
    hs_device *dev;
    hs_err err = {0};
    if (hs_device_open(&(hs_device_params){.name = "cpu", .precision = precision}, &dev, &err)) {
        expect(0, "opening", err.msg);
        return;
    }
    const hs_dtype act = hs_device_act(dev);
    hs_buf x = random_buf(dev, act, 1 << 22, &err), y = random_buf(dev, act, 1 << 22, &err),
           r = random_buf(dev, HS_F32, 1 << 22, &err);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        hs_weight *w = conv(dev, shapes[i].cout, shapes[i].cin, shapes[i].kt, shapes[i].k, shapes[i].up, &err);
        hs_conv c = {.x = x, .y = y, .w = w, .T = shapes[i].T, .Y = shapes[i].Y, .X = shapes[i].X};
        hs_op_conv(dev, &c);
        c.y = r;
        if (!shapes[i].up && shapes[i].kt == 3) c.add = r;
        hs_op_conv(dev, &c);
        expect(!hs_device_check(dev, &err), "a convolution of the models", err.msg);
        hs_weight_free(dev, w);
    }
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++) {
        hs_weight *w = linear(dev, layers[i][1], layers[i][2], 0, &err);
        hs_linear l = {.x = x, .y = y, .w = w, .rows = layers[i][0], .act = HS_ACT_GELU_TANH};
        hs_op_linear(dev, &l);
        l.y = r;
        l.act = HS_ACT_NONE;
        l.residual = 1;
        l.gate = hs_buf_at(r, (1 << 22) - layers[i][1], layers[i][1]);
        l.y = hs_buf_at(r, 0, (1 << 22) - layers[i][1]);
        hs_op_linear(dev, &l);
        expect(!hs_device_check(dev, &err), "a linear layer of the models", err.msg);
        hs_weight_free(dev, w);
    }
    hs_device_free(dev, x);
    hs_device_free(dev, y);
    hs_device_free(dev, r);
    hs_device_close(dev);
    expect(!warnings, "no layer of the models is slow", "warnings");
}

/* ---- main ------------------------------------------------------------------------------------------------------- */
int main(void) {
    hs_device *dev;
    hs_err err = {0};
    const char *isa = getenv("ONEDNN_MAX_CPU_ISA");
    fill(values, 1 << 22, 7);
    if (hs_device_open(&(hs_device_params){.name = "cpu"}, &dev, &err)) {
        printf("%s\n", err.msg);
        return err.code == HS_ENODEV ? 77 : 1;
    }
    printf("%s\n", hs_device_name(dev));
    const int has_bf16 = hs_device_act(dev) == HS_BF16;
    hs_device_close(dev);
    if (isa && (!strcmp(isa, "AVX2") || !strcmp(isa, "AVX512_CORE"))) expect(!has_bf16, isa, "bf16");
    if (!has_bf16) {
        const int rc = hs_device_open(&(hs_device_params){.name = "cpu", .precision = "bf16"}, &dev, &err);
        expect(rc == HS_ENOTSUP && strstr(err.msg, "bf16") && strstr(err.msg, "fp32"), "bf16 refused with a cure",
               err.msg);
    }
    hs_log_set(count_warnings, NULL);
    for (int p = 0; p <= has_bf16; p++) {
        const char *precision = p ? "bf16" : "fp32";
        test_threads(precision);
        test_faults(precision);
        test_fast(precision);
    }
    printf("%d failed\n", failures);
    return failures ? 1 : 0;
}
