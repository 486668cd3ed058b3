/* Prompts and noise in, latents and frames out: the public boundary (haste.h) against diffusers' WanPipeline. */
#include "engine/haste.h"
#include "engine/video_sink.h"
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A sink that keeps the frames in memory. */
typedef struct kept {
    hs_sink sink;
    uint8_t *rgb;
    int64_t n, frame;
} kept;

static int keep_frame(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    kept *k = s->impl;
    (void)err;
    k->rgb = realloc(k->rgb, (size_t)(k->n + k->frame));
    cr_assert(k->rgb != NULL);
    memcpy(k->rgb + k->n, rgb, (size_t)k->frame);
    k->n += k->frame;
    return 0;
}
static const hs_sink_ops keep_ops = {.write = keep_frame};

static void run_case(gold *g, int which, const cJSON *c) {
    const char *name = gold_str(c, "name"), *model_name = gold_str(c, "model");
    const int f = (int)gold_num(c, "f"), h = (int)gold_num(c, "h"), w = (int)gold_num(c, "w");
    char dir[256], key[128];
    hs_model *model = NULL;
    hs_session *session = NULL;
    hs_solver_kind solver;
    hs_err err = {0};
    hs_run_stats stats;
    gold_model(model_name, NULL, dir);
    hs_model_params p = {
        .dir = dir, .device = gold_devices[which].name, .precision = gold_devices[which].precision, .threads = 1};
    int rc = hs_model_open(&p, &model, &err);
    if (rc == HS_ENODEV || rc == HS_ENOTSUP) {
        gold_model_done(dir);
        cr_skip_test("%s", err.msg);
    }
    cr_assert_eq(rc, 0, "%s", err.msg);
    cr_assert_eq(hs_solver_parse(gold_str(c, "solver"), &solver), 0);

    int64_t n = (int64_t)16 * f * h * w * 4;
    float *noise = malloc((size_t)n * sizeof *noise), *latents = malloc((size_t)n * sizeof *latents);
    cr_assert(noise && latents);
    snprintf(key, sizeof key, "pipeline:%s:noise", name);
    gm_normalish(key, n, noise);
    hs_request r = hs_request_default(model);
    r.prompt = cJSON_GetStringValue(gold_cases("pipeline_prompt"));
    r.negative = cJSON_GetStringValue(gold_cases("pipeline_negative"));
    r.width = 16 * w, r.height = 16 * h, r.frames = 4 * f - 3;
    r.steps = (int)gold_num(c, "steps");
    r.solver = solver;
    r.sigmas = HS_SIGMAS_A + (*gold_str(c, "sigmas") - 'A');
    r.guidance = gold_num(c, "guidance");
    r.shift = gold_num(c, "shift");
    r.noise = noise;
    kept k = {.sink = {.ops = &keep_ops, .width = r.width, .height = r.height},
              .frame = (int64_t)3 * r.width * r.height};
    k.sink.impl = &k;
    cr_assert_eq(hs_session_new(model, &r, &session, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_generate(session, &r, &k.sink, NULL, &stats, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_session_latents(session, latents, &err), 0, "%s", err.msg);

    /* Rounding grows along the trajectory: each step adds guided velocities (golden_dit.c) to the error so far. */
    snprintf(key, sizeof key, "pipeline/%s/latents", name);
    gold_compare(g, key, latents, n, 6);
    const int half = gold_devices[which].half;
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(c, "frames"))) {
        snprintf(key, sizeof key, "pipeline/%s/frames", name);
        gold_frames(g, key, k.rgb, k.n, half ? 1.0 : 0.02, half ? 40 : 1);
    } else {
        cr_expect_eq(k.n, k.frame * r.frames, "%s: %lld bytes of frames", name, (long long)k.n);
    }
    free(k.rgb);
    free(noise);
    free(latents);
    hs_session_free(session);
    hs_model_free(model);
    gold_model_done(dir);
}

static void run_all(int which) {
    gold g = gold_load("pipeline", &gold_devices[which]);
    for (const cJSON *c = gold_first(gold_cases("pipeline")); c; c = c->next) run_case(&g, which, c);
    gold_close(&g);
}

Test(pipeline, ref) {
    run_all(GOLD_REF);
}
Test(pipeline, cpu_fp32) {
    run_all(GOLD_CPU_FP32);
}
Test(pipeline, cpu_bf16) {
    run_all(GOLD_CPU_BF16);
}
Test(pipeline, cuda_fp32) {
    run_all(GOLD_CUDA_FP32);
}
Test(pipeline, cuda_bf16) {
    run_all(GOLD_CUDA_BF16);
}
Test(pipeline, cuda_fp16) {
    run_all(GOLD_CUDA_FP16);
}
