/* Tables of names, and what follows from them. A rule's '#' is a number, the same on both sides; on the right '/' and
 * '%' are that number divided by the naming's period, and the remainder (a flat list of blocks becomes levels). A rule
 * that ends in '.' takes every name that goes on from there. */
#include "naming.h"
#include "json.h"
#include "sha256.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 256, MAX_RULES = 48 };

typedef struct rule {
    const char *from, *to;
} rule;

typedef struct naming {
    hs_part part;
    const char *whose;
    const char *probe; /* only this naming has it */
    rule rules[MAX_RULES];
} naming;

#define E "condition_embedder."
#define T "encoder.block.#.layer."
#define U "decoder.up_blocks./.resnets.%."
#define V "decoder.up_blocks./.upsamplers.0."
#define D "encoder.down_blocks.#."
static const naming namings[] = {
    {HS_PART_TRANSFORMER, "Diffusers", E "time_proj.weight", {{NULL, NULL}}},
    {HS_PART_TRANSFORMER,
     "original",
     "time_projection.1.weight",
     {{"patch_embedding.", "patch_embedding."},
      {"text_embedding.0.", E "text_embedder.linear_1."},
      {"text_embedding.2.", E "text_embedder.linear_2."},
      {"time_embedding.0.", E "time_embedder.linear_1."},
      {"time_embedding.2.", E "time_embedder.linear_2."},
      {"time_projection.1.", E "time_proj."},
      {"blocks.#.modulation", "blocks.#.scale_shift_table"},
      {"blocks.#.self_attn.q.", "blocks.#.attn1.to_q."},
      {"blocks.#.self_attn.k.", "blocks.#.attn1.to_k."},
      {"blocks.#.self_attn.v.", "blocks.#.attn1.to_v."},
      {"blocks.#.self_attn.o.", "blocks.#.attn1.to_out.0."},
      {"blocks.#.self_attn.norm_q.", "blocks.#.attn1.norm_q."},
      {"blocks.#.self_attn.norm_k.", "blocks.#.attn1.norm_k."},
      {"blocks.#.norm3.", "blocks.#.norm2."}, /* the only affine LayerNorm */
      {"blocks.#.cross_attn.q.", "blocks.#.attn2.to_q."},
      {"blocks.#.cross_attn.k.", "blocks.#.attn2.to_k."},
      {"blocks.#.cross_attn.v.", "blocks.#.attn2.to_v."},
      {"blocks.#.cross_attn.o.", "blocks.#.attn2.to_out.0."},
      {"blocks.#.cross_attn.norm_q.", "blocks.#.attn2.norm_q."},
      {"blocks.#.cross_attn.norm_k.", "blocks.#.attn2.norm_k."},
      {"blocks.#.ffn.0.", "blocks.#.ffn.net.0.proj."},
      {"blocks.#.ffn.2.", "blocks.#.ffn.net.2."},
      {"head.modulation", "scale_shift_table"},
      {"head.head.", "proj_out."}}},
    {HS_PART_TEXT, "Hugging Face's", "shared.weight", {{NULL, NULL}}},
    {HS_PART_TEXT,
     "original",
     "token_embedding.weight",
     {{"token_embedding.", "shared."},
      {"blocks.#.norm1.", T "0.layer_norm."},
      {"blocks.#.attn.q.", T "0.SelfAttention.q."},
      {"blocks.#.attn.k.", T "0.SelfAttention.k."},
      {"blocks.#.attn.v.", T "0.SelfAttention.v."},
      {"blocks.#.attn.o.", T "0.SelfAttention.o."},
      {"blocks.#.pos_embedding.embedding.", T "0.SelfAttention.relative_attention_bias."},
      {"blocks.#.norm2.", T "1.layer_norm."},
      {"blocks.#.ffn.gate.0.", T "1.DenseReluDense.wi_0."}, /* the side that GELU acts on */
      {"blocks.#.ffn.fc1.", T "1.DenseReluDense.wi_1."},
      {"blocks.#.ffn.fc2.", T "1.DenseReluDense.wo."},
      {"norm.", "encoder.final_layer_norm."}}},
    {HS_PART_VAE, "Diffusers", "decoder.conv_in.weight", {{NULL, NULL}}},
    {HS_PART_VAE,
     "original",
     "decoder.conv1.weight",
     {{"conv1.", "quant_conv."},
      {"conv2.", "post_quant_conv."},
      {"encoder.conv1.", "encoder.conv_in."},
      {"encoder.head.0.", "encoder.norm_out."},
      {"encoder.head.2.", "encoder.conv_out."},
      {"encoder.middle.0.residual.0.", "encoder.mid_block.resnets.0.norm1."},
      {"encoder.middle.0.residual.2.", "encoder.mid_block.resnets.0.conv1."},
      {"encoder.middle.0.residual.3.", "encoder.mid_block.resnets.0.norm2."},
      {"encoder.middle.0.residual.6.", "encoder.mid_block.resnets.0.conv2."},
      {"encoder.middle.1.", "encoder.mid_block.attentions.0."},
      {"encoder.middle.2.residual.0.", "encoder.mid_block.resnets.1.norm1."},
      {"encoder.middle.2.residual.2.", "encoder.mid_block.resnets.1.conv1."},
      {"encoder.middle.2.residual.3.", "encoder.mid_block.resnets.1.norm2."},
      {"encoder.middle.2.residual.6.", "encoder.mid_block.resnets.1.conv2."},
      {"encoder.downsamples.#.residual.0.", D "norm1."},
      {"encoder.downsamples.#.residual.2.", D "conv1."},
      {"encoder.downsamples.#.residual.3.", D "norm2."},
      {"encoder.downsamples.#.residual.6.", D "conv2."},
      {"encoder.downsamples.#.shortcut.", D "conv_shortcut."},
      {"encoder.downsamples.#.resample.", D "resample."},
      {"encoder.downsamples.#.time_conv.", D "time_conv."},
      {"decoder.conv1.", "decoder.conv_in."},
      {"decoder.head.0.", "decoder.norm_out."},
      {"decoder.head.2.", "decoder.conv_out."},
      {"decoder.middle.0.residual.0.", "decoder.mid_block.resnets.0.norm1."},
      {"decoder.middle.0.residual.2.", "decoder.mid_block.resnets.0.conv1."},
      {"decoder.middle.0.residual.3.", "decoder.mid_block.resnets.0.norm2."},
      {"decoder.middle.0.residual.6.", "decoder.mid_block.resnets.0.conv2."},
      {"decoder.middle.1.", "decoder.mid_block.attentions.0."},
      {"decoder.middle.2.residual.0.", "decoder.mid_block.resnets.1.norm1."},
      {"decoder.middle.2.residual.2.", "decoder.mid_block.resnets.1.conv1."},
      {"decoder.middle.2.residual.3.", "decoder.mid_block.resnets.1.norm2."},
      {"decoder.middle.2.residual.6.", "decoder.mid_block.resnets.1.conv2."},
      {"decoder.upsamples.#.residual.0.", U "norm1."},
      {"decoder.upsamples.#.residual.2.", U "conv1."},
      {"decoder.upsamples.#.residual.3.", U "norm2."},
      {"decoder.upsamples.#.residual.6.", U "conv2."},
      {"decoder.upsamples.#.shortcut.", U "conv_shortcut."},
      {"decoder.upsamples.#.resample.", V "resample."},
      {"decoder.upsamples.#.time_conv.", V "time_conv."}}},
};
#undef E
#undef T
#undef U
#undef V
#undef D
enum { NAMINGS = sizeof namings / sizeof *namings };

/* What checkpoints of several parts put in front; '*' is one word. */
static const struct {
    hs_part part;
    const char *prefix;
} prefixes[] = {
    {HS_PART_TRANSFORMER, "model.diffusion_model."},
    {HS_PART_TRANSFORMER, "diffusion_model."},
    {HS_PART_TRANSFORMER, "transformer."},
    {HS_PART_TEXT, "text_encoders.*.transformer."},
    {HS_PART_TEXT, "text_encoders."}, /* of what stands beside the encoder: its tokenizer, a scale of logits */
    {HS_PART_TEXT, "text_encoder."},
    {HS_PART_VAE, "first_stage_model."},
    {HS_PART_VAE, "vae."},
};
enum { PREFIXES = sizeof prefixes / sizeof *prefixes };

/* Parts of names by which other models are told. The first that occurs is said. */
static const struct {
    hs_part part;
    const char *mark, *what;
} others[] = {
    {HS_PART_TRANSFORMER, "lora_", "a LoRA, an addition to a model; only whole models are read"},
    {HS_PART_TRANSFORMER, "img_emb.emb_pos", "Wan2.1 FLF2V, which needs a first and a last frame"},
    {HS_PART_TRANSFORMER, "image_embedder.pos_embed", "Wan2.1 FLF2V, which needs a first and a last frame"},
    {HS_PART_TRANSFORMER, "vace_", "Wan VACE, which needs a control video"},
    {HS_PART_TRANSFORMER, "casual_audio_encoder", "Wan2.2 S2V, which needs a voice"},
    {HS_PART_TRANSFORMER, "audio_proj", "a model that needs a voice"},
    {HS_PART_TRANSFORMER, "face_adapter", "Wan2.2 Animate, which needs a video of a face"},
    {HS_PART_TRANSFORMER, "control_adapter", "a model with camera control"},
    {HS_PART_TRANSFORMER, "ref_conv", "a model that needs a reference picture"},
    {HS_PART_TRANSFORMER, "img_emb.", "Wan2.1 I2V, which needs a picture"},
    {HS_PART_TRANSFORMER, "image_embedder.", "Wan2.1 I2V, which needs a picture"},
    {HS_PART_TRANSFORMER, "add_k_proj", "Wan2.1 I2V, which needs a picture"},
    {HS_PART_TRANSFORMER, "double_blocks.", "HunyuanVideo or FLUX"},
    {HS_PART_TEXT, "decoder.block.", "a T5 with its decoder; Wan2.1 has the encoder of UMT5-XXL"},
    {HS_PART_TEXT, "text_model.", "a CLIP text encoder; Wan2.1 has the encoder of UMT5-XXL"},
    {HS_PART_TEXT, "model.layers.", "a language model; Wan2.1 has the encoder of UMT5-XXL"},
    {HS_PART_VAE, "upsamples.0.upsamples.", "the VAE of Wan2.2 TI2V-5B"},
    {HS_PART_VAE, "down_blocks.0.resnets.", "the VAE of Wan2.2 TI2V-5B or of another model"},
    {HS_PART_VAE, "down.0.block.", "the VAE of a model for pictures"},
};
enum { OTHERS = sizeof others / sizeof *others };

const char *hs_part_name(hs_part part) {
    static const char *const names[HS_PART_COUNT] = {"transformer", "text encoder", "VAE"};
    return names[part];
}

/* ---- recognising ------------------------------------------------------------------------------------------------ */

/* Length of the beginning of name that matches, or -1. */
static int match_prefix(const char *name, const char *prefix) {
    const char *s = name;
    for (; *prefix; prefix++) {
        if (*prefix == '*') {
            if (*s == '.' || !*s) return -1;
            while (*s && *s != '.') s++;
        } else if (*s++ != *prefix) {
            return -1;
        }
    }
    return (int)(s - name);
}

/* The naming of this part, and how many letters its names have in front of them. */
static const naming *find_naming(const hs_st *st, hs_part part, const char **ret_prefix, int *ret_len) {
    for (int i = 0; i < hs_st_count(st); i++) {
        const char *name = hs_st_at(st, i)->name;
        for (int k = 0; k < NAMINGS; k++) {
            if (namings[k].part != part) continue;
            const size_t all = strlen(name), probe = strlen(namings[k].probe);
            if (all < probe || strcmp(name + all - probe, namings[k].probe)) continue;
            const int len = (int)(all - probe);
            int fits = len == 0;
            for (int p = 0; p < PREFIXES && !fits; p++)
                fits = prefixes[p].part == part && match_prefix(name, prefixes[p].prefix) == len;
            if (!fits) continue;
            *ret_prefix = name;
            *ret_len = len;
            return &namings[k];
        }
    }
    return NULL;
}

int hs_naming_fits(const hs_st *st, hs_part part) {
    const char *prefix;
    int len;
    return find_naming(st, part, &prefix, &len) != NULL;
}

static const char *other_model(const hs_st *st, hs_part part) {
    for (int k = 0; k < OTHERS; k++)
        for (int i = 0; i < hs_st_count(st) && others[k].part == part; i++)
            if (strstr(hs_st_at(st, i)->name, others[k].mark)) return others[k].what;
    return NULL;
}

static int unknown(const hs_st *st, hs_part part, const char *label, hs_err *err) {
    for (int p = 0; p < HS_PART_COUNT; p++)
        if (hs_naming_fits(st, (hs_part)p))
            return hs_fail(err, HS_EFORMAT, "%s is the %s of a Wan model, expected the %s", label,
                           hs_part_name((hs_part)p), hs_part_name(part));
    return hs_fail(err, HS_ENOTSUP,
                   "%s is not the %s of a Wan2.1 model that is known here: its %d tensors (the first is '%.80s') have "
                   "none of the known names",
                   label, hs_part_name(part), hs_st_count(st), hs_st_count(st) ? hs_st_at(st, 0)->name : "");
}

/* ---- translating ------------------------------------------------------------------------------------------------ */

typedef struct translation {
    hs_st *st;
    const naming *n;
    const char *label;
    char prefix[NAME];
    int prefix_len, period;
} translation;

static int ends(const char *s, const char *tail) {
    const size_t a = strlen(s), b = strlen(tail);
    return a >= b && !strcmp(s + a - b, tail);
}

/* If the rule takes the name, ret becomes the new one. */
static int apply_rule(const rule *r, const char *name, int period, char *ret, size_t size) {
    const char *s = name, *f = r->from;
    long number = 0;
    for (; *f; f++) {
        if (*f == '#') {
            if (*s < '0' || *s > '9' || (*s == '0' && s[1] >= '0' && s[1] <= '9')) return 0;
            for (number = 0; *s >= '0' && *s <= '9'; s++) {
                number = 10 * number + (*s - '0');
                if (number > 9999) return 0;
            }
        } else if (*s++ != *f) {
            return 0;
        }
    }
    if (f[-1] != '.' && *s) return 0;
    size_t at = 0;
    for (const char *t = r->to; *t && at < size; t++) {
        if (*t == '#' || *t == '/' || *t == '%')
            at += (size_t)snprintf(ret + at, size - at, "%ld",
                                   *t == '#'   ? number
                                   : *t == '/' ? number / period
                                               : number % period);
        else
            ret[at++] = *t;
    }
    return at < size && (size_t)snprintf(ret + at, size - at, "%s", s) < size - at;
}

static int has(const translation *x, const char *base, size_t len, const char *tail, const hs_st_tensor **ret) {
    char name[2 * NAME];
    snprintf(name, sizeof name, "%.*s%s", (int)(len < NAME ? len : NAME), base, tail);
    const hs_st_tensor *t = hs_st_find(x->st, name);
    if (ret) *ret = t;
    return t != NULL;
}

/* Newer files say beside each weight how it is stored. */
static int check_quant(const hs_st_tensor *t, hs_err *err) {
    cJSON *doc = NULL;
    if (t->dtype != HS_U8) return hs_fail(err, HS_EFORMAT, "%s: '%s' is not a text in JSON", t->file, t->name);
    int rc = t->data ? hs_json_parse(t->data, (size_t)t->numel, t->name, &doc, err) : HS_OK;
    const char *format = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(doc, "format"));
    if (!rc && t->data && (!format || strcmp(format, "float8_e4m3fn")))
        rc = hs_fail(err, HS_ENOTSUP, "%s: '%s' says format %.40s, but only float8_e4m3fn is supported", t->file,
                     t->name, format ? format : "(none)");
    cJSON_Delete(doc);
    return rc;
}

/* The weight's scale, under the older or the newer name. */
static int take_scale(const translation *x, hs_st_tensor *t, hs_err *err) {
    const size_t len = strlen(t->name) - strlen("weight");
    const hs_st_tensor *s;
    float v;
    if (!ends(t->name, ".weight") ||
        (!has(x, t->name, len, "scale_weight", &s) && !has(x, t->name, len, "weight_scale", &s)))
        return HS_OK;
    if (s->numel != 1)
        return hs_fail(err, HS_ENOTSUP, "%s: '%s' has %lld scales, but only one for each weight is supported", s->file,
                       s->name, (long long)s->numel);
    if (!s->data) return HS_OK; /* only the header was given */
    hs_to_f32(&v, s->data, s->dtype, 1);
    if (!(v >= 0 && v <= 3e38f)) /* 0: of a weight that is 0 all over */
        return hs_fail(err, HS_EFORMAT, "%s: '%s' is %g, expected a number from 0 on", s->file, s->name, (double)v);
    t->scale = v;
    return HS_OK;
}

/* Helpers of 8-bit files that leave once they have been looked at; only beside a weight. */
static int is_helper(const translation *x, const hs_st_tensor *t, hs_err *err, int *ret_rc) {
    static const char *const tails[] = {"scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant"};
    if (ends(t->name, "scaled_fp8")) return 1; /* an empty marker */
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        const size_t all = strlen(t->name), tail = strlen(tails[i]);
        if (!ends(t->name, tails[i]) || all == tail || t->name[all - tail - 1] != '.') continue;
        if (!has(x, t->name, all - tail, "weight", NULL)) return 0;
        if (i == 4) *ret_rc = check_quant(t, err);
        return 1;
    }
    return 0;
}

static int translate(void *user, hs_st_tensor *t, char *ret, size_t size, hs_err *err) {
    const translation *x = user;
    const char *name = t->name;
    int rc = 0;
    if (strncmp(name, x->prefix, (size_t)x->prefix_len)) {
        for (int p = 0; p < PREFIXES; p++) /* of another part in the same file */
            if (prefixes[p].part != x->n->part && match_prefix(name, prefixes[p].prefix) >= 0) return 0;
    } else {
        name += x->prefix_len;
    }
    if (is_helper(x, t, err, &rc)) return rc;
    if (x->n->part == HS_PART_TEXT && ends(name, "logit_scale")) return 0; /* ComfyUI saves one with any text encoder */
    if (x->n->part == HS_PART_TEXT && ends(name, "spiece_model")) name = "spiece_model";
    if ((rc = take_scale(x, t, err))) return rc;
    for (const rule *r = x->n->rules; r->from; r++)
        if (apply_rule(r, name, x->period, ret, size)) return 0;
    if (x->n->rules[0].from && strcmp(name, "spiece_model"))
        return hs_fail(err, HS_EFORMAT,
                       "%s: tensor '%s' is not part of the %s of a Wan2.1 text-to-video model (%s names)", t->file,
                       t->name, hs_part_name(x->n->part), x->n->whose);
    if ((size_t)snprintf(ret, size, "%s", name) >= size)
        return hs_fail(err, HS_EFORMAT, "%s: the name of tensor '%.80s...' is too long", t->file, name);
    return 0;
}

/* In the original VAE the blocks of all levels have one number: the first that resamples ends the first level. */
static int vae_period(const hs_st *st, const char *prefix) {
    char start[NAME + 32];
    int least = 9999;
    snprintf(start, sizeof start, "%sdecoder.upsamples.", prefix);
    for (int i = 0; i < hs_st_count(st); i++) {
        const char *name = hs_st_at(st, i)->name;
        if (strncmp(name, start, strlen(start)) || !ends(name, ".resample.1.weight")) continue;
        const int j = atoi(name + strlen(start));
        if (j >= 0 && j < least) least = j;
    }
    return least + 1;
}

int hs_naming_apply(hs_st *st, hs_part part, const char *label, int *ret_diffusers, hs_err *err) {
    const char *prefix = "";
    translation x = {.st = st, .label = label};
    const char *other = other_model(st, part);
    if (other)
        return hs_fail(err, HS_ENOTSUP, "%s is %s; this program makes videos from text with Wan2.1 T2V", label, other);
    if (!(x.n = find_naming(st, part, &prefix, &x.prefix_len))) return unknown(st, part, label, err);
    if (x.prefix_len >= NAME) return unknown(st, part, label, err);
    snprintf(x.prefix, sizeof x.prefix, "%.*s", x.prefix_len, prefix);
    x.period = part == HS_PART_VAE ? vae_period(st, x.prefix) : 1;
    if (ret_diffusers) *ret_diffusers = !x.n->rules[0].from;
    return hs_st_translate(st, translate, &x, err);
}

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

/* Tensor of ndim dimensions whose sizes a config could hold, or NULL and *rc set. */
static const hs_st_tensor *look(hs_st *st, const char *label, const char *name, int ndim, int *rc, hs_err *err) {
    const hs_st_tensor *t = *rc ? NULL : hs_st_find(st, name);
    if (*rc) return NULL;
    if (!t) {
        *rc = hs_fail(err, HS_EFORMAT, "%s: tensor '%s' is missing", label, name);
        return NULL;
    }
    int ok = t->ndim == ndim;
    for (int i = 0; i < t->ndim && ok; i++) ok = t->shape[i] >= 1 && t->shape[i] <= 1 << 22;
    if (ok) return t;
    char shape[160];
    hs_st_shape_text(t, shape, sizeof shape);
    *rc = hs_fail(err, HS_EFORMAT, "%s: tensor '%s' has shape [%s], expected %d sizes above 0", t->file, name, shape,
                  ndim);
    return NULL;
}

static int size_of(hs_st *st, const char *label, const char *name, int ndim, int axis, int *rc, hs_err *err) {
    const hs_st_tensor *t = look(st, label, name, ndim, rc, err);
    return t ? (int)t->shape[axis] : 0;
}

/* 1 + the largest number behind `start`. */
static int count(const hs_st *st, const char *start) {
    int n = 0;
    const size_t len = strlen(start);
    for (int i = 0; i < hs_st_count(st); i++) {
        const char *name = hs_st_at(st, i)->name;
        if (strncmp(name, start, len)) continue;
        const long k = strtol(name + len, NULL, 10);
        if (k >= n && k < 1 << 16) n = (int)k + 1;
    }
    return n;
}

static int in_range(const char *label, const char *what, int v, int lo, int hi, hs_err *err) {
    return v >= lo && v <= hi ? HS_OK
                              : hs_fail(err, HS_ENOTSUP, "%s has %d %s, expected %d to %d", label, v, what, lo, hi);
}

#define SIZE(name, ndim, axis) size_of(st, label, name, ndim, axis, &rc, err)

static int transformer_config(hs_st *st, const char *label, hs_config *c, hs_err *err) {
    int rc = 0;
    c->dim = SIZE("patch_embedding.weight", 5, 0);
    c->in_channels = SIZE("patch_embedding.weight", 5, 1);
    c->out_channels = SIZE("proj_out.weight", 2, 0) / 4;
    c->ffn = SIZE("blocks.0.ffn.net.0.proj.weight", 2, 0);
    c->text_dim = SIZE("condition_embedder.text_embedder.linear_1.weight", 2, 1);
    c->freq_dim = SIZE("condition_embedder.time_embedder.linear_1.weight", 2, 1);
    c->layers = count(st, "blocks.");
    c->head_dim = 128; /* of every Wan model */
    c->heads = c->dim / 128;
    c->rope_max = 1024;
    c->eps = 1e-6f;
    if (rc) return rc;
    if (c->in_channels == 36)
        return hs_fail(err, HS_ENOTSUP, "%s is Wan2.2 I2V-A14B, which needs a picture; only Wan2.1 T2V is supported",
                       label);
    if (c->in_channels == 48)
        return hs_fail(err, HS_ENOTSUP, "%s is Wan2.2 TI2V-5B; only Wan2.1 T2V is supported", label);
    if (c->in_channels != 16 || c->out_channels != 16)
        return hs_fail(err, HS_ENOTSUP,
                       "%s has %d channels in and %d out, an unknown model; only Wan2.1 T2V (16 and 16) is supported",
                       label, c->in_channels, c->out_channels);
    if (c->dim % 128) return hs_fail(err, HS_ENOTSUP, "%s is %d wide, expected a multiple of 128", label, c->dim);
    if ((rc = in_range(label, "heads", c->heads, 1, HS_MAX_HEADS, err)) ||
        (rc = in_range(label, "layers", c->layers, 1, HS_MAX_LAYERS, err)) ||
        (rc = in_range(label, "hidden units", c->ffn, 1, 1 << 16, err)))
        return rc;
    if (c->freq_dim % 2)
        return hs_fail(err, HS_ENOTSUP, "%s has %d frequencies of time, expected an even number", label, c->freq_dim);
    return HS_OK;
}

static int text_config(hs_st *st, const char *label, hs_config *c, hs_err *err) {
    int rc = 0;
    c->t_vocab = SIZE("shared.weight", 2, 0);
    c->t_dim = SIZE("shared.weight", 2, 1);
    c->t_layers = count(st, "encoder.block.");
    c->t_ff = SIZE("encoder.block.0.layer.1.DenseReluDense.wo.weight", 2, 1);
    c->t_buckets = SIZE("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 2, 0);
    c->t_heads = SIZE("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 2, 1);
    const int inner = SIZE("encoder.block.0.layer.0.SelfAttention.q.weight", 2, 0);
    c->t_max_distance = 128;
    c->t_eps = 1e-6f;
    if (rc) return rc;
    /* T5 v1.1, of SD3 and FLUX, has one table of positions; UMT5 one in every layer */
    if (c->t_layers > 1 && !hs_st_find(st, "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"))
        return hs_fail(err, HS_ENOTSUP, "%s is a T5 encoder (t5xxl); Wan2.1 has another one, UMT5-XXL (umt5_xxl)",
                       label);
    if ((rc = in_range(label, "heads", c->t_heads, 1, HS_MAX_HEADS, err)) ||
        (rc = in_range(label, "layers", c->t_layers, 1, HS_MAX_LAYERS, err)) ||
        (rc = in_range(label, "pieces in its vocabulary", c->t_vocab, 4, 1 << 22, err)))
        return rc;
    c->t_dkv = inner / c->t_heads;
    if (inner % c->t_heads || c->t_dkv > 256 || c->t_buckets % 4 || c->t_buckets / 4 >= c->t_max_distance)
        return hs_fail(err, HS_ENOTSUP, "%s: %d attention rows, %d heads, %d buckets of positions: not a UMT5 encoder",
                       label, inner, c->t_heads, c->t_buckets);
    return HS_OK;
}

static int vae_config(hs_st *st, const char *label, hs_config *c, hs_err *err) {
    char name[96];
    int rc = 0;
    c->v_base = SIZE("encoder.conv_in.weight", 5, 0);
    c->v_z = SIZE("post_quant_conv.weight", 5, 0);
    c->v_res_blocks = count(st, "decoder.up_blocks.0.resnets.") - 1;
    for (int i = 0; i < 4 && !rc; i++) {
        int channels = 0;
        snprintf(name, sizeof name, "encoder.down_blocks.%d.resample.1.weight", (i + 1) * (c->v_res_blocks + 1) - 1);
        channels = i < 3 ? SIZE(name, 4, 0) : SIZE("encoder.conv_out.weight", 5, 1);
        c->v_mult[i] = c->v_base ? channels / c->v_base : 0;
        if (!rc && (c->v_mult[i] < 1 || channels % c->v_base))
            rc = hs_fail(err, HS_ENOTSUP, "%s: %d channels on level %d, not a multiple of %d: not the VAE of Wan2.1",
                         label, channels, i, c->v_base);
        if (i) c->v_temporal_down[i - 1] = i > 1;
    }
    if (rc) return rc;
    if (c->v_z != 16 || SIZE("encoder.conv_in.weight", 5, 1) != 3 || c->v_base % 2)
        return hs_fail(err, HS_ENOTSUP, "%s has %d latent channels, expected the 16 of Wan2.1's VAE", label, c->v_z);
    return in_range(label, "residual blocks a level", c->v_res_blocks, 1, 8, err);
}
#undef SIZE

int hs_naming_config(hs_st *st, hs_part part, const char *label, hs_config *c, hs_err *err) {
    if (part == HS_PART_TRANSFORMER) return transformer_config(st, label, c, err);
    return part == HS_PART_TEXT ? text_config(st, label, c, err) : vae_config(st, label, c, err);
}

void hs_naming_sha256(const hs_st *st, char ret_hex[65]) {
    hs_sha256 h;
    hs_sha256_init(&h);
    for (int i = 0; i < hs_st_count(st); i++) {
        const hs_st_tensor *t = hs_st_at(st, i);
        char shape[160];
        hs_st_shape_text(t, shape, sizeof shape);
        hs_sha256_add(&h, t->name, strlen(t->name));
        hs_sha256_add(&h, " ", 1);
        hs_sha256_add(&h, shape, strlen(shape));
        hs_sha256_add(&h, "\n", 1);
    }
    hs_sha256_done(&h, ret_hex);
}
