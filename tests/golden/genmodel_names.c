/* Names and shapes of all tensors of the Wan2.1 architecture in the Diffusers layout, from its configs.
 *
 * Written from the architecture, not copied from the engine: golden.c holds the result against the lists that diffusers
 * and transformers wrote (data/names_*.txt), and the engine binds what is written from here. */
#include "genmodel.h"

#include <stdio.h>
#include <string.h>

static int int_of(const cJSON *part, const char *key, int dflt) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(part, key);
    return cJSON_IsNumber(v) ? v->valueint : dflt;
}

static int int_at(const cJSON *part, const char *key, int i) {
    return cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(part, key), i)->valueint;
}

static int true_at(const cJSON *part, const char *key, int i) {
    return cJSON_IsTrue(cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(part, key), i));
}

/* Adds prefix + suffix with ndim dimensions; out of memory is remembered by n < 0. */
static void add(gm_list *l, const char *prefix, const char *suffix, int ndim, const int64_t *shape) {
    if (l->n < 0) return;
    if (l->n == l->cap) {
        int cap = l->cap ? 2 * l->cap : 256;
        gm_tensor *at = hs_alloc((size_t)cap * sizeof *at);
        if (!at) {
            hs_free(l->at);
            *l = (gm_list){NULL, -1, 0};
            return;
        }
        if (l->n) memcpy(at, l->at, (size_t)l->n * sizeof *at);
        hs_free(l->at);
        l->at = at;
        l->cap = cap;
    }
    gm_tensor *t = &l->at[l->n++];
    snprintf(t->name, sizeof t->name, "%s%s", prefix, suffix);
    t->ndim = ndim;
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
}

#define ADD(l, prefix, suffix, ...)                                                                                    \
    add(l, prefix, suffix, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]){__VA_ARGS__})

static void linear(gm_list *l, const char *prefix, const char *name, int64_t out, int64_t in) {
    char full[112];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    ADD(l, full, ".weight", out, in);
    ADD(l, full, ".bias", out);
}

/* ---- transformer --------------------------------------------------------------------------------------------------
 */
static void transformer(const cJSON *c, gm_list *l) {
    int64_t d = (int64_t)int_of(c, "num_attention_heads", 0) * int_of(c, "attention_head_dim", 128);
    int64_t ffn = int_of(c, "ffn_dim", 0), text = int_of(c, "text_dim", 4096), channels = int_of(c, "in_channels", 16);
    ADD(l, "", "scale_shift_table", 1, 2, d);
    ADD(l, "", "patch_embedding.weight", d, channels, 1, 2, 2);
    ADD(l, "", "patch_embedding.bias", d);
    linear(l, "condition_embedder.", "time_embedder.linear_1", d, int_of(c, "freq_dim", 256));
    linear(l, "condition_embedder.", "time_embedder.linear_2", d, d);
    linear(l, "condition_embedder.", "time_proj", 6 * d, d);
    linear(l, "condition_embedder.", "text_embedder.linear_1", d, text);
    linear(l, "condition_embedder.", "text_embedder.linear_2", d, d);
    for (int i = 0; i < int_of(c, "num_layers", 0); i++) {
        char b[32], p[48];
        snprintf(b, sizeof b, "blocks.%d.", i);
        ADD(l, b, "scale_shift_table", 1, 6, d);
        for (int a = 1; a <= 2; a++) {
            snprintf(p, sizeof p, "%sattn%d.", b, a);
            linear(l, p, "to_q", d, d);
            linear(l, p, "to_k", d, d);
            linear(l, p, "to_v", d, d);
            linear(l, p, "to_out.0", d, d);
            ADD(l, p, "norm_q.weight", d);
            ADD(l, p, "norm_k.weight", d);
        }
        ADD(l, b, "norm2.weight", d);
        ADD(l, b, "norm2.bias", d);
        linear(l, b, "ffn.net.0.proj", ffn, d);
        linear(l, b, "ffn.net.2", d, ffn);
    }
    linear(l, "", "proj_out", 4 * (int64_t)int_of(c, "out_channels", 16), d);
}

/* ---- UMT5 encoder --------------------------------------------------------------------------------------------------
 */
static void text_encoder(const cJSON *c, gm_list *l) {
    int64_t d = int_of(c, "d_model", 0), ff = int_of(c, "d_ff", 0), heads = int_of(c, "num_heads", 0);
    int64_t inner = heads * int_of(c, "d_kv", 64);
    ADD(l, "", "shared.weight", int_of(c, "vocab_size", 0), d);
    for (int i = 0; i < int_of(c, "num_layers", 0); i++) {
        char p[64];
        snprintf(p, sizeof p, "encoder.block.%d.layer.0.", i);
        ADD(l, p, "SelfAttention.q.weight", inner, d);
        ADD(l, p, "SelfAttention.k.weight", inner, d);
        ADD(l, p, "SelfAttention.v.weight", inner, d);
        ADD(l, p, "SelfAttention.o.weight", d, inner);
        ADD(l, p, "SelfAttention.relative_attention_bias.weight", int_of(c, "relative_attention_num_buckets", 32),
            heads);
        ADD(l, p, "layer_norm.weight", d);
        snprintf(p, sizeof p, "encoder.block.%d.layer.1.", i);
        ADD(l, p, "DenseReluDense.wi_0.weight", ff, d);
        ADD(l, p, "DenseReluDense.wi_1.weight", ff, d);
        ADD(l, p, "DenseReluDense.wo.weight", d, ff);
        ADD(l, p, "layer_norm.weight", d);
    }
    ADD(l, "", "encoder.final_layer_norm.weight", d);
}

/* ---- VAE ------------------------------------------------------------------------------------------------------------
 */
static void conv3(gm_list *l, const char *prefix, const char *name, int64_t out, int64_t in, int64_t kt, int64_t k) {
    char full[112];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    ADD(l, full, ".weight", out, in, kt, k, k);
    ADD(l, full, ".bias", out);
}

static void conv2(gm_list *l, const char *prefix, const char *name, int64_t out, int64_t in, int64_t k) {
    char full[112];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    ADD(l, full, ".weight", out, in, k, k);
    ADD(l, full, ".bias", out);
}

static void residual(gm_list *l, const char *p, int64_t in, int64_t out) {
    ADD(l, p, "norm1.gamma", in, 1, 1, 1);
    conv3(l, p, "conv1", out, in, 3, 3);
    ADD(l, p, "norm2.gamma", out, 1, 1, 1);
    conv3(l, p, "conv2", out, out, 3, 3);
    if (in != out) conv3(l, p, "conv_shortcut", out, in, 1, 1);
}

static void middle(gm_list *l, const char *side, int64_t c) {
    char p[64];
    for (int i = 0; i < 2; i++) {
        snprintf(p, sizeof p, "%smid_block.resnets.%d.", side, i);
        residual(l, p, c, c);
    }
    snprintf(p, sizeof p, "%smid_block.attentions.0.", side);
    ADD(l, p, "norm.gamma", c, 1, 1);
    conv2(l, p, "to_qkv", 3 * c, c, 1);
    conv2(l, p, "proj", c, c, 1);
}

static void encoder(const cJSON *c, gm_list *l, int64_t base, int64_t z, int blocks) {
    char p[64];
    int64_t in = base, out = base;
    int j = 0; /* down_blocks is one flat list */
    conv3(l, "encoder.", "conv_in", base, 3, 3, 3);
    for (int level = 0; level < 4; level++) {
        out = base * int_at(c, "dim_mult", level);
        for (int r = 0; r < blocks; r++, in = out) {
            snprintf(p, sizeof p, "encoder.down_blocks.%d.", j++);
            residual(l, p, in, out);
        }
        if (level == 3) continue;
        snprintf(p, sizeof p, "encoder.down_blocks.%d.", j++);
        conv2(l, p, "resample.1", out, out, 3);
        if (true_at(c, "temperal_downsample", level)) conv3(l, p, "time_conv", out, out, 3, 1);
    }
    middle(l, "encoder.", out);
    ADD(l, "encoder.", "norm_out.gamma", out, 1, 1, 1);
    conv3(l, "encoder.", "conv_out", 2 * z, out, 3, 3);
}

static void decoder(const cJSON *c, gm_list *l, int64_t base, int64_t z, int blocks) {
    char p[64];
    int64_t in = base * int_at(c, "dim_mult", 3), out = in;
    conv3(l, "decoder.", "conv_in", in, z, 3, 3);
    middle(l, "decoder.", in);
    for (int level = 0; level < 4; level++) {
        out = base * int_at(c, "dim_mult", 3 - level);
        for (int r = 0; r < blocks + 1; r++, in = out) {
            snprintf(p, sizeof p, "decoder.up_blocks.%d.resnets.%d.", level, r);
            residual(l, p, in, out);
        }
        if (level == 3) continue;
        snprintf(p, sizeof p, "decoder.up_blocks.%d.upsamplers.0.", level);
        conv2(l, p, "resample.1", out / 2, out, 3);
        if (true_at(c, "temperal_downsample", 2 - level)) conv3(l, p, "time_conv", 2 * out, out, 3, 1);
        in = out / 2; /* the upsampler halves the channels */
    }
    ADD(l, "decoder.", "norm_out.gamma", out, 1, 1, 1);
    conv3(l, "decoder.", "conv_out", 3, out, 3, 3);
}

static void vae(const cJSON *c, gm_list *l) {
    int64_t base = int_of(c, "base_dim", 96), z = int_of(c, "z_dim", 16);
    int blocks = int_of(c, "num_res_blocks", 2);
    encoder(c, l, base, z, blocks);
    conv3(l, "", "quant_conv", 2 * z, 2 * z, 1, 1);
    conv3(l, "", "post_quant_conv", z, z, 1, 1);
    decoder(c, l, base, z, blocks);
}

int gm_tensors(const cJSON *config, const char *part, gm_list *ret, hs_err *err) {
    const cJSON *c = cJSON_GetObjectItemCaseSensitive(config, part);
    *ret = (gm_list){0};
    if (!cJSON_IsObject(c)) return hs_fail(err, HS_EINVAL, "the model has no part '%s'", part);
    if (!strcmp(part, "transformer"))
        transformer(c, ret);
    else if (!strcmp(part, "text_encoder"))
        text_encoder(c, ret);
    else if (!strcmp(part, "vae"))
        vae(c, ret);
    else
        return hs_fail(err, HS_EINVAL, "no part is called '%s'", part);
    if (ret->n < 0) return hs_fail(err, HS_ENOMEM, "no memory for the tensor list");
    return 0;
}

int64_t gm_numel(const gm_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

void gm_list_free(gm_list *l) {
    hs_free(l->at);
    *l = (gm_list){0};
}

/* ---- the original repository's names ------------------------------------------------------------------------------
 */
typedef struct substitution {
    const char *part, *diffusers, *original;
} substitution;

/* Done one after the other on the whole name. The other way round than the engine's rules, and in pieces. */
static const substitution substitutions[] = {
    {"transformer", "condition_embedder.text_embedder.linear_1", "text_embedding.0"},
    {"transformer", "condition_embedder.text_embedder.linear_2", "text_embedding.2"},
    {"transformer", "condition_embedder.time_embedder.linear_1", "time_embedding.0"},
    {"transformer", "condition_embedder.time_embedder.linear_2", "time_embedding.2"},
    {"transformer", "condition_embedder.time_proj", "time_projection.1"},
    {"transformer", "proj_out", "head.head"},
    {"transformer", ".scale_shift_table", ".modulation"},
    {"transformer", "scale_shift_table", "head.modulation"},
    {"transformer", ".norm2.", ".norm3."},
    {"transformer", ".attn1.", ".self_attn."},
    {"transformer", ".attn2.", ".cross_attn."},
    {"transformer", ".to_out.0.", ".o."},
    {"transformer", ".to_q.", ".q."},
    {"transformer", ".to_k.", ".k."},
    {"transformer", ".to_v.", ".v."},
    {"transformer", ".ffn.net.0.proj.", ".ffn.0."},
    {"transformer", ".ffn.net.2.", ".ffn.2."},
    {"text_encoder", "shared.", "token_embedding."},
    {"text_encoder", "encoder.final_layer_norm.", "norm."},
    {"text_encoder", "encoder.block.", "blocks."},
    {"text_encoder", ".layer.0.layer_norm.", ".norm1."},
    {"text_encoder", ".layer.1.layer_norm.", ".norm2."},
    {"text_encoder", ".layer.0.SelfAttention.relative_attention_bias.", ".pos_embedding.embedding."},
    {"text_encoder", ".layer.0.SelfAttention.", ".attn."},
    {"text_encoder", ".layer.1.DenseReluDense.wi_0.", ".ffn.gate.0."},
    {"text_encoder", ".layer.1.DenseReluDense.wi_1.", ".ffn.fc1."},
    {"text_encoder", ".layer.1.DenseReluDense.wo.", ".ffn.fc2."},
    {"vae", ".norm1.", ".residual.0."},
    {"vae", ".conv1.", ".residual.2."},
    {"vae", ".norm2.", ".residual.3."},
    {"vae", ".conv2.", ".residual.6."},
    {"vae", "post_quant_conv.", "conv2."},
    {"vae", "quant_conv.", "conv1."},
    {"vae", "coder.conv_in.", "coder.conv1."},
    {"vae", "coder.norm_out.", "coder.head.0."},
    {"vae", "coder.conv_out.", "coder.head.2."},
    {"vae", ".mid_block.resnets.0.", ".middle.0."},
    {"vae", ".mid_block.resnets.1.", ".middle.2."},
    {"vae", ".mid_block.attentions.0.", ".middle.1."},
    {"vae", ".down_blocks.", ".downsamples."},
    {"vae", ".conv_shortcut.", ".shortcut."},
};

void gm_original_name(const char *part, const char *name, int period, char ret[128]) {
    char from[128];
    int level, j, used = 0;
    snprintf(ret, 128, "%s", name);
    for (size_t i = 0; i < sizeof substitutions / sizeof *substitutions; i++) {
        const substitution *s = &substitutions[i];
        const char *at = strcmp(s->part, part) ? NULL : strstr(ret, s->diffusers);
        if (!at) continue;
        snprintf(from, sizeof from, "%s", ret);
        snprintf(ret, 128, "%.*s%s%s", (int)(at - ret), from, s->original, from + (at - ret) + strlen(s->diffusers));
    }
    /* levels of the decoder become one list */
    snprintf(from, sizeof from, "%s", ret);
    if (sscanf(from, "decoder.up_blocks.%d.resnets.%d.%n", &level, &j, &used) == 2 && used)
        snprintf(ret, 128, "decoder.upsamples.%d.%s", level * period + j, from + used);
    else if (sscanf(from, "decoder.up_blocks.%d.upsamplers.0.%n", &level, &used) == 1 && used)
        snprintf(ret, 128, "decoder.upsamples.%d.%s", level * period + period - 1, from + used);
}
