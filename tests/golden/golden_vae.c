/* VAE decoder: every stage of every latent frame, and the final RGB values, against diffusers' AutoencoderKLWan. */
#include "engine/vae.h"
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct decoded {
    uint8_t *rgb; /* [1 + 4(f-1), 8h, 8w, 3] */
    int64_t n;
} decoded;

static decoded decode(hs_vae_run *run, hs_device *dev, hs_buf latents, int f, const hs_tap *tap) {
    decoded d = {0};
    hs_err err = {0};
    hs_vae_begin(run);
    for (int t = 0; t < f; t++) {
        hs_buf frames = HS_NOBUF;
        int count = 0;
        hs_vae_decode(run, latents, f, t, &frames, &count, tap);
        cr_assert_eq(hs_device_check(dev, &err), 0, "%s", err.msg);
        cr_expect_eq(count, t ? 4 : 1, "latent frame %d gave %d frames", t, count);
        d.rgb = realloc(d.rgb, (size_t)(d.n + frames.n));
        cr_assert(d.rgb != NULL);
        hs_download(dev, d.rgb + d.n, frames);
        d.n += frames.n;
    }
    return d;
}

typedef struct rig { /* one model, one size, the latents of one case */
    hs_device *dev;
    hs_config config;
    hs_st *st;
    hs_vae *vae;
    hs_vae_run *run;
    hs_buf latents;
    int f;
} rig;

static void rig_open(rig *r, hs_device *dev, const char *model, const gm_options *opt, const cJSON *c) {
    const int f = (int)gold_num(c, "f"), h = (int)gold_num(c, "h"), w = (int)gold_num(c, "w");
    char dir[256], path[512], name[128];
    hs_err err = {0};
    *r = (rig){.dev = dev, .f = f};
    gold_model(model, opt, dir);
    cr_assert_eq(hs_config_load(dir, &r->config, &err), 0, "%s", err.msg);
    snprintf(path, sizeof path, "%s/vae", dir);
    cr_assert_eq(hs_st_open_dir(path, "diffusion_pytorch_model", &r->st, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_vae_load(&r->config, r->st, dev, &r->vae, &err), 0, "%s", err.msg);
    gold_model_done(dir); /* mapped files stay readable */
    cr_assert_eq(hs_vae_run_new(r->vae, h, w, 4, HS_NOBUF, &r->run, &err), 0, "%s", err.msg);
    int64_t n = (int64_t)r->config.v_z * f * h * w;
    float *x = malloc((size_t)n * sizeof *x);
    cr_assert(x && !hs_device_alloc(dev, HS_F32, n, "test", &r->latents, &err), "%s", err.msg);
    snprintf(name, sizeof name, "vae:%s:latents", gold_str(c, "name"));
    gm_normalish(name, n, x);
    hs_upload(dev, r->latents, x);
    free(x);
}

static void rig_close(rig *r) {
    hs_device_free(r->dev, r->latents);
    hs_vae_run_free(r->run);
    hs_vae_free(r->vae);
    hs_st_close(r->st);
    hs_config_done(&r->config);
}

static void run_case(gold *g, int which, hs_device *dev, const char *model, const cJSON *c) {
    rig r;
    char key[128];
    gold_taps taps = {0};
    hs_tap tap = {gold_tap, &taps}, off = {0};
    const int half = gold_devices[which].half;
    rig_open(&r, dev, model, NULL, c);
    decoded first = decode(r.run, dev, r.latents, r.f, &tap);
    snprintf(key, sizeof key, "vae/%s/%s/", model, gold_str(c, "name"));
    gold_compare_taps(g, key, &taps, half ? GOLD_BF16_VAE : 1);
    snprintf(key, sizeof key, "vae/%s/%s/frames", model, gold_str(c, "name"));
    gold_frames(g, key, first.rgb, first.n, half ? 0.7 : 0.002, half ? 12 : 1);

    decoded again = decode(r.run, dev, r.latents, r.f, &off); /* begin must forget the first video */
    cr_expect(again.n == first.n && !memcmp(again.rgb, first.rgb, (size_t)first.n), "%s: a second decode differs", key);
    free(first.rgb);
    free(again.rgb);
    rig_close(&r);
}

static void run_all(int which) {
    hs_device *dev = gold_open(which);
    gold g = gold_load("vae", &gold_devices[which]);
    for (const cJSON *c = gold_first(gold_cases("vae")); c; c = c->next)
        for (const cJSON *m = gold_first(cJSON_GetObjectItemCaseSensitive(c, "models")); m; m = m->next)
            run_case(&g, which, dev, m->valuestring, c);
    gold_close(&g);
    hs_device_close(dev);
}

Test(vae, ref) {
    run_all(GOLD_REF);
}
Test(vae, cpu_fp32) {
    run_all(GOLD_CPU_FP32);
}
Test(vae, cpu_bf16) {
    run_all(GOLD_CPU_BF16);
}
Test(vae, cuda_fp32) {
    run_all(GOLD_CUDA_FP32);
}
Test(vae, cuda_bf16) {
    run_all(GOLD_CUDA_BF16);
}
Test(vae, cuda_fp16) {
    run_all(GOLD_CUDA_FP16);
}

/* As dit_sensitivity: every tensor of the decoder 10 % larger must show in the output. Two latent frames: the time
 * convolutions have no part in the first. */
Test(vae_sensitivity, every_decoder_tensor) {
    hs_device *dev = gold_open_fast();
    gold g = gold_load("vae", &gold_devices[GOLD_REF]);
    const cJSON *c = gold_case("vae", "tiny");
    int64_t kept;
    const float *ref = gold_plain(&g, "vae/A/tiny/vae.out", &kept);
    gm_list l = gold_tensors("A", "vae");
    for (int i = 0; i < l.n; i++) {
        const char *name = l.at[i].name;
        gm_options o = {.perturb = name, .amount = 0.1};
        gold_taps taps = {0};
        hs_tap tap = {gold_tap, &taps};
        rig r;
        if (strncmp(name, "decoder.", 8) != 0 && strncmp(name, "post_quant", 10) != 0) continue;
        rig_open(&r, dev, "A", &o, c);
        free(decode(r.run, dev, r.latents, r.f, &tap).rgb);
        for (int k = 0; k < taps.n; k++) {
            const gold_stage *s = &taps.stage[k];
            if (!strcmp(s->name, "vae.out")) gold_expect_moved(&g, "vae/A/tiny/vae.out", name, s->x, s->n, ref, kept);
            free(s->x);
        }
        rig_close(&r);
    }
    gm_list_free(&l);
    gold_close(&g);
    hs_device_close(dev);
}
