/* The same model in every layout: published names at full size bind completely, and what the tensors say of a model is
 * what its configs say. Videos are compared by tests/e2e/layouts.sh. */
#include "engine/dit.h"
#include "engine/layout.h"
#include "engine/text.h"
#include "engine/vae.h"
#include "golden.h"

#include <string.h>

#define SPIECE GOLDEN_DIR "/data/spiece.model"

/* Opens a folder, binds all of it without a device. */
static int open_and_bind(const char *dir, hs_files *f, hs_err *err) {
    const hs_model_params p = {.dir = dir, .tokenizer = SPIECE};
    int rc = hs_files_open(&p, f, err);
    if (rc) return rc;
    if ((rc = hs_dit_load(&f->config, f->st[HS_PART_TRANSFORMER], NULL, HS_ALL_BLOCKS, NULL, err)) ||
        (rc = hs_text_load(&f->config, f->st[HS_PART_TEXT], NULL, 0, NULL, err)) ||
        (rc = hs_vae_load(&f->config, f->st[HS_PART_VAE], NULL, NULL, err)))
        hs_files_close(f);
    return rc;
}

#define SAME(member) cr_expect_eq(a.config.member, b->config.member, "%s: " #member, what)

static void expect_same(const char *what, const char *dir, const hs_files *b) {
    hs_err err = {0};
    hs_files a;
    cr_assert_eq(open_and_bind(dir, &a, &err), 0, "%s: %s", what, err.msg);
    SAME(dim);
    SAME(heads);
    SAME(head_dim);
    SAME(layers);
    SAME(ffn);
    SAME(in_channels);
    SAME(out_channels);
    SAME(text_dim);
    SAME(freq_dim);
    SAME(rope_max);
    SAME(eps);
    SAME(t_dim);
    SAME(t_heads);
    SAME(t_dkv);
    SAME(t_ff);
    SAME(t_layers);
    SAME(t_vocab);
    SAME(t_buckets);
    SAME(t_max_distance);
    SAME(t_eps);
    SAME(v_base);
    SAME(v_z);
    SAME(v_res_blocks);
    SAME(shift);
    SAME(guidance);
    SAME(width);
    SAME(height);
    SAME(frames);
    SAME(fps);
    SAME(steps);
    SAME(solver);
    cr_expect_arr_eq(a.config.v_mult, b->config.v_mult, sizeof a.config.v_mult, "%s", what);
    cr_expect_arr_eq(a.config.v_temporal_down, b->config.v_temporal_down, sizeof a.config.v_temporal_down, "%s", what);
    cr_expect_arr_eq(a.config.v_mean, b->config.v_mean, 16 * sizeof(float), "%s", what);
    cr_expect_arr_eq(a.config.v_std, b->config.v_std, 16 * sizeof(float), "%s", what);
    for (int p = 0; p < HS_PART_COUNT; p++)
        cr_expect_eq(hs_st_count(a.st[p]) - hs_st_count(b->st[p]),
                     (p == HS_PART_TEXT && strstr(what, "comfyui")) ? 1 : 0, "%s: part %d", what,
                     p); /* the tokenizer */
    cr_expect_str_eq(a.shapes_sha256, b->shapes_sha256, "%s", what);
    cr_expect_str_eq(a.sha256, a.shapes_sha256, "%s", what);
    hs_files_close(&a);
}

static void every_layout(const char *model, const gm_options *opt) {
    char dir[256], other[256];
    hs_err err = {0};
    hs_files f;
    gm_options o = *opt;
    gold_model(model, &o, dir);
    cr_assert_eq(open_and_bind(dir, &f, &err), 0, "%s: %s", model, err.msg);
    cr_expect_str_neq(f.sha256, f.shapes_sha256);
    o.layout = GM_ORIGINAL;
    gold_model(model, &o, other);
    expect_same("original", other, &f);
    gold_model_done(other);
    o.layout = GM_COMFYUI;
    gold_model(model, &o, other);
    expect_same("comfyui", other, &f);
    gold_model_done(other);
    o.prefix = "model.diffusion_model.";
    gold_model(model, &o, other);
    expect_same("comfyui with prefix", other, &f);
    gold_model_done(other);
    hs_files_close(&f);
    gold_model_done(dir);
}

/* Headers only; the text encoder's .pth is longer than 4 GiB, so its offsets need ZIP64. */
Test(layouts, published_1_3b) {
    every_layout("wan_1.3b", &(gm_options){.sparse = 1, .dtype = "BF16"});
}
Test(layouts, published_14b) {
    every_layout("wan_14b", &(gm_options){.sparse = 1, .dtype = "BF16"});
}
Test(layouts, small_models) {
    every_layout("A", &(gm_options){.dtype = "F32"});
    every_layout("B", &(gm_options){.dtype = "F16"});
    every_layout("A", &(gm_options){.quant = 1});
    every_layout("A", &(gm_options){.quant = 2});
}

/* A tensor that is missing is named as Diffusers names it; one too many as the file does. */
Test(layouts, missing_tensors) {
    static const char *const drop[] = {"blocks.1.attn2.norm_k.weight",
                                       "encoder.block.1.layer.1.DenseReluDense.wi_1.weight",
                                       "decoder.up_blocks.1.upsamplers.0.time_conv.bias"};
    for (int i = 0; i < 3; i++) {
        char dir[256];
        hs_err err = {0};
        hs_files f;
        gold_model("A", &(gm_options){.layout = i == 1 ? GM_COMFYUI : GM_ORIGINAL, .drop = drop[i]}, dir);
        cr_expect_eq(open_and_bind(dir, &f, &err), HS_EFORMAT, "%s is missing, and nobody minds", drop[i]);
        cr_expect(strstr(err.msg, drop[i]) != NULL, "the message does not name %s: %s", drop[i], err.msg);
        gold_model_done(dir);
    }
}
