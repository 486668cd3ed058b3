/* naming.c: what a set of tensors is, by its names and shapes; everything that is no Wan2.1 text-to-video model is
 * refused by what it is. (That every name of the real models is translated right: tests/golden/golden_layouts.c.) */
#include "naming.h"
#include "util.h"

#include <criterion/criterion.h>

TestSuite(naming, .fini = scratch_remove);

/* A safetensors file from lines "name type shape"; all zero but for 1, 2, 3 ... in its bytes. */
static void write_set(const char *path, const char *lines) {
    static char header[1 << 16];
    size_t len = 0, at = 0;
    char name[200], type[16], shape[64];
    int used;
    len += (size_t)snprintf(header, sizeof header, "{");
    for (const char *s = lines; sscanf(s, " %199s %15s [%63[^]]]%n", name, type, shape, &used) == 3; s += used) {
        size_t n = !strcmp(type, "F32") ? 4 : !strcmp(type, "BF16") ? 2 : 1;
        for (char *p = shape, *end; *p; p = *end ? end + 1 : end) n *= strtoul(p, &end, 10);
        len += (size_t)snprintf(header + len, sizeof header - len,
                                "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", at ? "," : "",
                                name, type, shape, at, at + n);
        at += n;
    }
    snprintf(header + len, sizeof header - len, "}");
    write_tensors(path, header, at);
}

static int apply(const char *lines, hs_part part, hs_config *c, hs_err *err) {
    hs_st *st = NULL;
    write_set(scratch("m"), lines);
    int rc = hs_st_open(scratch("m"), &st, err);
    cr_assert_eq(rc, 0, "%s", err->msg);
    if (!(rc = hs_naming_apply(st, part, "m", NULL, err))) rc = hs_naming_config(st, part, "m", c, err);
    hs_st_close(st);
    return rc;
}

/* As small as a transformer can be: width, channels in, rows of the head */
#define DIT(d, in, head)                                                                                               \
    "patch_embedding.weight U8 [" #d "," #in ",1,2,2] head.head.weight U8 [" #head "," #d "]"                          \
    " text_embedding.0.weight U8 [" #d ",8] time_embedding.0.weight U8 [" #d ",6] time_projection.1.weight U8 [1,1]"   \
    " blocks.0.ffn.0.weight U8 [5," #d "] blocks.11.ffn.0.weight U8 [5," #d "] "
#define T5                                                                                                             \
    "shared.weight U8 [20,8] encoder.block.0.layer.1.DenseReluDense.wo.weight U8 [8,12]"                               \
    " encoder.block.0.layer.0.SelfAttention.q.weight U8 [128,8] encoder.block.1.layer.0.SelfAttention.q.weight U8 "    \
    "[128,8]"                                                                                                          \
    " encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight U8 [32,2] "
#define T5_TABLE "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight U8 [32,2] "
#define VAE(z, mid)                                                                                                    \
    "decoder.conv1.weight U8 [8,16,3,3,3] encoder.conv1.weight U8 [4,3,3,3,3] conv2.weight U8 [" #z "," #z ",1,1,1]"   \
    " encoder.downsamples.2.resample.1.weight U8 [4,4,3,3] encoder.downsamples.5.resample.1.weight U8 [" #mid          \
    ",8,3,3]"                                                                                                          \
    " encoder.downsamples.8.resample.1.weight U8 [16,16,3,3] encoder.head.2.weight U8 [32,16,3,3,3]"                   \
    " decoder.upsamples.0.residual.2.weight U8 [1] decoder.upsamples.2.residual.2.weight U8 [1]"                       \
    " decoder.upsamples.3.resample.1.weight U8 [1] decoder.upsamples.7.resample.1.weight U8 [1] "

Test(naming, what_shapes_say) {
    hs_config c = {0};
    hs_err e = {0};
    cr_assert_eq(apply(DIT(256, 16, 64), HS_PART_TRANSFORMER, &c, &e), 0, "%s", e.msg);
    cr_assert(c.dim == 256 && c.heads == 2 && c.head_dim == 128 && c.layers == 12 && c.ffn == 5 && c.text_dim == 8);
    cr_assert(c.freq_dim == 6 && c.in_channels == 16 && c.out_channels == 16);
    cr_assert_eq(apply(T5 T5_TABLE, HS_PART_TEXT, &c, &e), 0, "%s", e.msg);
    cr_assert(c.t_dim == 8 && c.t_vocab == 20 && c.t_layers == 2 && c.t_ff == 12 && c.t_heads == 2 && c.t_dkv == 64);
    cr_assert_eq(apply(VAE(16, 8), HS_PART_VAE, &c, &e), 0, "%s", e.msg);
    cr_assert(c.v_base == 4 && c.v_z == 16 && c.v_res_blocks == 2 && c.v_mult[0] == 1 && c.v_mult[1] == 2);
    cr_assert(c.v_mult[2] == 4 && c.v_mult[3] == 4);
}

Test(naming, other_models_are_refused_by_name) {
    static const struct {
        hs_part part;
        const char *set, *message;
    } cases[] = {
        {HS_PART_TRANSFORMER, DIT(128, 36, 64) "img_emb.proj.0.weight U8 [1]",
         "m is Wan2.1 I2V, which needs a picture"},
        {HS_PART_TRANSFORMER, DIT(128, 36, 64) "img_emb.emb_pos U8 [1] img_emb.proj.0.weight U8 [1]", "Wan2.1 FLF2V"},
        {HS_PART_TRANSFORMER, "condition_embedder.image_embedder.norm1.weight U8 [1]", "Wan2.1 I2V"},
        {HS_PART_TRANSFORMER, DIT(128, 36, 64), "Wan2.2 I2V-A14B"},
        {HS_PART_TRANSFORMER, DIT(128, 48, 192), "Wan2.2 TI2V-5B"},
        {HS_PART_TRANSFORMER, DIT(128, 16, 64) "vace_blocks.0.after_proj.weight U8 [1]", "Wan VACE"},
        {HS_PART_TRANSFORMER, DIT(128, 32, 64), "32 channels in and 16 out, an unknown model"},
        {HS_PART_TRANSFORMER, DIT(192, 16, 64), "192 wide, expected a multiple of 128"},
        {HS_PART_TRANSFORMER, "diffusion_model.blocks.0.cross_attn.k.lora_A.weight U8 [1]", "a LoRA"},
        {HS_PART_TRANSFORMER, "double_blocks.0.img_attn.qkv.weight U8 [1]", "HunyuanVideo or FLUX"},
        {HS_PART_TRANSFORMER, "layers.0.weight U8 [1]", "not the transformer of a Wan2.1 model that is known here"},
        {HS_PART_TRANSFORMER, VAE(16, 8), "m is the VAE of a Wan model, expected the transformer"},
        {HS_PART_TRANSFORMER, DIT(128, 16, 64) "blocks.0.norm2.weight U8 [1]",
         "tensor 'blocks.0.norm2.weight' is not part"},
        {HS_PART_TRANSFORMER, DIT(128, 16, 64) "blocks.00.norm3.weight U8 [1]", "'blocks.00.norm3.weight' is not part"},
        {HS_PART_TRANSFORMER, "time_projection.1.weight U8 [1] patch_embedding.weight U8 [4]",
         "'patch_embedding.weight' has shape [4], expected 5 sizes"},
        {HS_PART_TRANSFORMER, "time_projection.1.weight U8 [1]", "tensor 'patch_embedding.weight' is missing"},
        {HS_PART_TEXT, T5, "a T5 encoder (t5xxl); Wan2.1 has another one, UMT5-XXL"},
        {HS_PART_TEXT, T5 "decoder.block.0.layer.0.layer_norm.weight U8 [1]", "a T5 with its decoder"},
        {HS_PART_TEXT, "text_model.encoder.layers.0.mlp.fc1.weight U8 [1]", "a CLIP text encoder"},
        {HS_PART_TEXT, DIT(128, 16, 64), "m is the transformer of a Wan model, expected the text encoder"},
        {HS_PART_VAE, "decoder.conv1.weight U8 [1] decoder.upsamples.0.upsamples.0.residual.0.gamma U8 [1]",
         "the VAE of Wan2.2 TI2V-5B"},
        {HS_PART_VAE, VAE(48, 8), "48 latent channels, expected the 16"},
        {HS_PART_VAE, VAE(16, 6), "6 channels on level 1, not a multiple of 4"},
        {HS_PART_VAE, "encoder.down.0.block.0.conv1.weight U8 [1]", "the VAE of a model for pictures"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hs_config c = {0};
        hs_err e = {0};
        int rc = apply(cases[i].set, cases[i].part, &c, &e);
        cr_expect(rc == HS_ENOTSUP || rc == HS_EFORMAT, "%s: code %d", cases[i].message, rc);
        cr_expect_not_null(strstr(e.msg, cases[i].message), "\"%s\", expected %s", e.msg, cases[i].message);
        cr_expect_eq(hs_alloc_live(), 0);
    }
}

/* ---- prefixes and 8-bit weights --------------------------------------------------------------------------------- */
static hs_st *open_set(const char *lines, hs_part part) {
    hs_st *st = NULL;
    hs_err e = {0};
    write_set(scratch("m"), lines);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_naming_apply(st, part, "m", NULL, &e), 0, "%s", e.msg);
    return st;
}

/* As ComfyUI's CheckpointSave names them */
Test(naming, prefixes_of_checkpoints_with_all_parts) {
    static const char all[] =
        "model.diffusion_model.time_projection.1.weight U8 [1] first_stage_model.decoder.conv1.weight U8 [1]"
        " text_encoders.umt5xxl.transformer.shared.weight U8 [1] text_encoders.umt5xxl.logit_scale F32 [1]"
        " text_encoders.spiece_model U8 [3] ";
    static const char *const want[HS_PART_COUNT][2] = {
        {"condition_embedder.time_proj.weight"}, {"shared.weight", "spiece_model"}, {"decoder.conv_in.weight"}};
    for (int p = 0; p < HS_PART_COUNT; p++) {
        hs_st *st = open_set(all, (hs_part)p);
        for (int k = 0; k < 2 && want[p][k]; k++) cr_expect_not_null(hs_st_find(st, want[p][k]), "%s", want[p][k]);
        cr_expect_null(hs_st_unused(st));
        hs_st_close(st);
    }
}

/* As CLIPSave writes it */
Test(naming, text_encoder_with_a_scale_of_logits) {
    hs_st *st = open_set("shared.weight U8 [1] logit_scale F32 [1] spiece_model U8 [3]", HS_PART_TEXT);
    cr_expect(hs_st_find(st, "shared.weight") && hs_st_find(st, "spiece_model"));
    cr_expect_eq(hs_st_count(st), 2);
    hs_st_close(st);
}

Test(naming, scales_become_part_of_their_weights) {
    /* bytes 0..3 of the data are the scale: 0x03020100, a tiny number */
    hs_st *st = open_set("blocks.0.ffn.0.scale_weight F32 [1] blocks.0.ffn.0.scale_input F32 [1] scaled_fp8 F8_E4M3 [0]"
                         " time_projection.1.weight F8_E4M3 [2] blocks.0.ffn.0.weight F8_E4M3 [4]",
                         HS_PART_TRANSFORMER);
    const hs_st_tensor *t = hs_st_find(st, "blocks.0.ffn.net.0.proj.weight");
    float v, scale;
    cr_assert_not_null(t);
    hs_to_f32(&scale, (unsigned char[]){0, 1, 2, 3}, HS_F32, 1);
    cr_expect_eq(t->scale, scale);
    hs_st_floats(t, 1, 1, &v);
    hs_to_f32(&scale, (const char *)t->data + 1, HS_F8_E4M3, 1);
    cr_expect_eq(v, scale * t->scale);
    cr_expect_eq(hs_st_find(st, "condition_embedder.time_proj.weight")->scale, 1);
    cr_expect_eq(hs_st_count(st), 2, "scales and markers leave");
    hs_st_close(st);
}

Test(naming, a_scale_may_be_zero) {
    hs_st *st =
        open_set("time_projection.1.scale_weight U8 [1] time_projection.1.weight F8_E4M3 [2]", HS_PART_TRANSFORMER);
    float v = 1;
    hs_st_floats(hs_st_find(st, "condition_embedder.time_proj.weight"), 1, 1, &v);
    cr_expect_eq(v, 0);
    hs_st_close(st);
}

Test(naming, eight_bit_forms_that_are_refused) {
    static const char *const cases[][2] = {
        {"time_projection.1.weight F8_E4M3 [2] time_projection.1.scale_weight F32 [2]", "2 scales, but only one"},
        {"time_projection.1.weight F8_E4M3 [128] time_projection.1.scale_weight BF16 [1]",
         "e-38, expected a number from 0 on"},
        {"time_projection.1.weight F8_E4M3 [2] time_projection.1.comfy_quant U8 [8]", "comfy_quant"},
        {"time_projection.1.weight F8_E4M3 [2] time_projection.1.comfy_quant F32 [1]", "not a text in JSON"},
        {"time_projection.1.weight F8_E4M3 [2] time_projection.7.scale_weight F32 [1]",
         "'time_projection.7.scale_weight' is not"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hs_config c = {0};
        hs_err e = {0};
        cr_expect_neq(apply(cases[i][0], HS_PART_TRANSFORMER, &c, &e), 0, "%s", cases[i][1]);
        cr_expect_not_null(strstr(e.msg, cases[i][1]), "\"%s\", expected %s", e.msg, cases[i][1]);
        cr_expect_eq(hs_alloc_live(), 0);
    }
}

static int open_and_apply(void *arg, hs_err *err) {
    hs_st *st = NULL;
    int rc = hs_st_open(arg, &st, err);
    if (!rc) rc = hs_naming_apply(st, HS_PART_TRANSFORMER, "m", NULL, err);
    hs_st_close(st);
    return rc;
}

Test(naming, every_allocation_may_fail) {
    write_set(scratch("m"), DIT(128, 16, 64));
    cr_assert_geq(fail_allocations(open_and_apply, (void *)scratch("m"), "hs_naming_apply"), 10);
}
