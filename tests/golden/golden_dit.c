/* Transformer: every stage of one forward, and guidance, against diffusers' WanTransformer3DModel. */
#include "engine/dit.h"
#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct rig { /* one model, one grid */
    hs_device *dev;
    hs_config config;
    hs_st *st;
    hs_dit *dit;
    hs_dit_run *run;
    hs_buf latents, velocity[2];
    int f, h, w;
} rig;

static hs_buf device_floats(hs_device *dev, int64_t n) {
    hs_buf b = HS_NOBUF;
    hs_err err = {0};
    cr_assert_eq(hs_device_alloc(dev, HS_F32, n, "test", &b, &err), 0, "%s", err.msg);
    return b;
}

/* n hash-generated values under a name, on the device */
static hs_buf device_normalish(hs_device *dev, const char *name, int64_t n) {
    float *x = malloc((size_t)n * sizeof *x);
    hs_buf b = device_floats(dev, n);
    cr_assert(x != NULL);
    gm_normalish(name, n, x);
    hs_upload(dev, b, x);
    free(x);
    return b;
}

static float *to_host(hs_device *dev, hs_buf b) {
    float *x = malloc((size_t)b.n * sizeof *x);
    cr_assert(x != NULL);
    hs_download(dev, x, b);
    return x;
}

static void rig_open(rig *r, hs_device *dev, const char *model, const gm_options *opt, const cJSON *c) {
    char dir[256], path[512], name[128], *json = NULL;
    size_t len;
    hs_err err = {0};
    gm_options o = opt ? *opt : (gm_options){0};
    o.only = "transformer"; /* model C has nothing else */
    *r = (rig){.dev = dev, .f = (int)gold_num(c, "f"), .h = (int)gold_num(c, "h"), .w = (int)gold_num(c, "w")};
    gold_model(model, &o, dir);
    snprintf(path, sizeof path, "%s/transformer/config.json", dir);
    cr_assert_eq(hs_file_read(path, 1 << 20, &json, &len, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_config_parse_transformer(json, len, path, &r->config, &err), 0, "%s", err.msg);
    hs_free(json);
    snprintf(path, sizeof path, "%s/transformer", dir);
    cr_assert_eq(hs_st_open_dir(path, "diffusion_pytorch_model", &r->st, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_dit_load(&r->config, r->st, dev, HS_ALL_BLOCKS, &r->dit, &err), 0, "%s", err.msg);
    cr_expect(hs_st_unused(r->st) == NULL, "tensor %s was not used",
              hs_st_unused(r->st) ? hs_st_unused(r->st)->name : "");
    gold_model_done(dir); /* mapped files stay readable */
    cr_assert_eq(hs_dit_run_new(r->dit, r->f, r->h, r->w, HS_NOBUF, &r->run, &err), 0, "%s", err.msg);
    int64_t n = (int64_t)r->config.in_channels * r->f * r->h * r->w * 4;
    snprintf(name, sizeof name, "dit:%s:latents", gold_str(c, "name"));
    r->latents = device_normalish(dev, name, n);
    for (int b = 0; b < 2; b++) r->velocity[b] = device_floats(dev, n);
}

static void rig_close(rig *r) {
    hs_device_free(r->dev, r->latents);
    for (int b = 0; b < 2; b++) hs_device_free(r->dev, r->velocity[b]);
    hs_dit_run_free(r->run);
    hs_dit_free(r->dit);
    hs_st_close(r->st);
}

/* One forward of a branch with n hash-generated text rows. */
static void rig_forward(rig *r, int branch, const char *rows_name, int n, double t, const hs_tap *tap) {
    char name[128];
    hs_err err = {0};
    snprintf(name, sizeof name, "dit:%s:rows", rows_name);
    hs_buf rows = device_normalish(r->dev, name, (int64_t)n * r->config.text_dim);
    cr_assert_eq(hs_dit_set_text(r->run, branch, rows, n, tap, &err), 0, "%s", err.msg);
    hs_device_free(r->dev, rows);
    hs_policy policy = {.step = 0, .steps = 1, .branch = branch};
    hs_dit_forward(r->run, r->latents, (float)t, &policy, r->velocity[branch], tap);
    cr_assert_eq(hs_device_check(r->dev, &err), 0, "%s", err.msg);
}

static void run_case(gold *g, int which, hs_device *dev, const char *model, const cJSON *c) {
    rig r;
    char key[128], other[64];
    const char *name = gold_str(c, "name");
    const double t = gold_num(c, "t");
    gold_taps taps = {0};
    hs_tap tap = {gold_tap, &taps}, off = {0};
    rig_open(&r, dev, model, NULL, c);
    rig_forward(&r, 0, name, (int)gold_num(c, "n"), t, &tap);
    snprintf(key, sizeof key, "dit/%s/%s/", model, name);
    gold_compare_taps(g, key, &taps, 1);

    /* The other branch must not disturb the first one's text: run it, then the first again, and combine. */
    snprintf(other, sizeof other, "%s:other", name);
    rig_forward(&r, 1, other, 2, t, &off);
    hs_policy policy = {.steps = 1};
    hs_zero(dev, r.velocity[0]);
    hs_dit_forward(r.run, r.latents, (float)t, &policy, r.velocity[0], &off);
    const double scale[] = {5.0, 1.0 - 5.0}; /* u + 5 (v - u) */
    hs_op_combine(dev, 2, scale, r.velocity, r.velocity[0]);
    float *guided = to_host(dev, r.velocity[0]);
    snprintf(key, sizeof key, "dit/%s/%s/dit.guided", model, name);
    /* guidance amplifies the rounding of both branches by about the ratio of its weights to the result's */
    gold_compare(g, key, guided, r.velocity[0].n, which == GOLD_REF ? 1 : 6);
    free(guided);
    rig_close(&r);
}

static void run_all(int which, int wide) {
    hs_device *dev = gold_open(which);
    gold g = gold_load("dit", &gold_devices[which]);
    for (const cJSON *c = gold_first(gold_cases("dit")); c; c = c->next)
        for (const cJSON *m = gold_first(cJSON_GetObjectItemCaseSensitive(c, "models")); m; m = m->next)
            if (wide == !strcmp(m->valuestring, "C")) run_case(&g, which, dev, m->valuestring, c);
    gold_close(&g);
    hs_device_close(dev);
}

Test(dit, ref) {
    run_all(GOLD_REF, 0);
}
Test(dit, cpu_fp32) {
    run_all(GOLD_CPU_FP32, 0);
}
Test(dit, cpu_bf16) {
    run_all(GOLD_CPU_BF16, 0);
}
Test(dit, cuda_fp32) {
    run_all(GOLD_CUDA_FP32, 0);
}
Test(dit, cuda_bf16) {
    run_all(GOLD_CUDA_BF16, 0);
}
Test(dit, cuda_fp16) {
    run_all(GOLD_CUDA_FP16, 0);
}
/* the width of the 1.3B model: 116 M parameters */
Test(dit_wide, ref) {
    run_all(GOLD_REF, 1);
}
Test(dit_wide, cpu_fp32) {
    run_all(GOLD_CPU_FP32, 1);
}
Test(dit_wide, cpu_bf16) {
    run_all(GOLD_CPU_BF16, 1);
}
Test(dit_wide, cuda_fp32) {
    run_all(GOLD_CUDA_FP32, 1);
}
Test(dit_wide, cuda_bf16) {
    run_all(GOLD_CUDA_BF16, 1);
}
Test(dit_wide, cuda_fp16) {
    run_all(GOLD_CUDA_FP16, 1);
}

/* Do the comparisons above see every weight? One tensor at a time is made 10 % larger; the velocity must leave the
 * bound clearly. Without this a term that is zero or cancels by accident would go untested. */
Test(dit_sensitivity, every_tensor) {
    hs_device *dev = gold_open_fast();
    gold g = gold_load("dit", &gold_devices[GOLD_REF]);
    const cJSON *c = gold_case("dit", "one_frame");
    int64_t kept;
    const float *ref = gold_plain(&g, "dit/A/one_frame/dit.velocity", &kept);
    gm_list l = gold_tensors("A", "transformer");
    for (int i = 0; i < l.n; i++) {
        rig r;
        hs_tap off = {0};
        gm_options o = {.perturb = l.at[i].name, .amount = 0.1};
        rig_open(&r, dev, "A", &o, c);
        rig_forward(&r, 0, gold_str(c, "name"), (int)gold_num(c, "n"), gold_num(c, "t"), &off);
        float *v = to_host(dev, r.velocity[0]);
        gold_expect_moved(&g, "dit/A/one_frame/dit.velocity", l.at[i].name, v, r.velocity[0].n, ref, kept);
        free(v);
        rig_close(&r);
    }
    gm_list_free(&l);
    gold_close(&g);
    hs_device_close(dev);
}
