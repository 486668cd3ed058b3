/* Reads the configs of a Diffusers folder into hs_config.
 *
 * One reader per document, every key of it in one place: its range, its default (spec wan.md 1.1), or the only value
 * that is supported. The reader keeps the first error, so that a parser is a list of keys without branches. What a
 * document alone cannot show (the VAE's channels against the transformer's) is compared in hs_config_load; the tensors
 * are held against the numbers by the binders.
 */
#include "model.h"
#include "json.h"
#include "sha256.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_CONFIG = 1 << 20 /* bytes; real ones have less than 2 KB */, REQUIRED = -1 };

static const double MIN_EPS = 1e-12; /* a float keeps it, and 1 / sqrt(eps) stays harmless */

/* Default of ORIG (spec 2.2). */
static const char default_negative[] = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发"
                                       "灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
                                       "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的"
                                       "肢体，手指融合，静止不动的画面，杂乱的背景，"
                                       "三条腿，背景人很多，倒着走";

/* ---- reading keys ---------------------------------------------------------------------------------------------- */

typedef struct reader {
    cJSON *doc;
    const char *path;
    hs_err *err;
    int rc; /* the first failure; later calls do nothing */
} reader;

/* The length of a number at s that only Python's JSON has, or 0. */
static size_t python_number(const char *s, size_t len) {
    static const char *const words[] = {"-Infinity", "Infinity", "NaN"};
    if (*s != '-' && *s != 'I' && *s != 'N') return 0;
    for (size_t k = 0; k < sizeof words / sizeof *words; k++)
        if (len >= strlen(words[k]) && !memcmp(s, words[k], strlen(words[k]))) return strlen(words[k]);
    return 0;
}

/* Such numbers (DPMSolverMultistepScheduler's lambda_min_clipped is -Infinity) become texts: nothing that is read may
 * be one, and the message shows it. Room for 2 * len + 1 bytes. */
static size_t quote_python_numbers(const char *json, size_t len, char *ret) {
    size_t n = 0;
    int in_text = 0;
    for (size_t i = 0; i < len;) {
        const size_t word = in_text ? 0 : python_number(json + i, len - i);
        if (word) {
            n += (size_t)sprintf(ret + n, "\"%.*s\"", (int)word, json + i);
            i += word;
            continue;
        }
        if (json[i] == '"') in_text = !in_text;
        if (in_text && json[i] == '\\' && i + 1 < len) ret[n++] = json[i++]; /* and what it escapes */
        ret[n++] = json[i++];
    }
    return n;
}

static reader reader_open(const char *json, size_t len, const char *path, hs_err *err) {
    reader r = {.path = path, .err = err};
    char *text = hs_alloc(2 * len + 1);
    r.rc = text ? hs_json_parse(text, quote_python_numbers(json, len, text), path, &r.doc, err)
                : hs_fail(err, HS_ENOMEM, "no memory to read %s", path);
    hs_free(text);
    if (!r.rc && !cJSON_IsObject(r.doc)) r.rc = hs_fail(err, HS_EFORMAT, "%s: not a JSON object", path);
    return r;
}

static int reader_close(reader *r) {
    cJSON_Delete(r->doc);
    return r->rc;
}

/* What a key holds, for messages. */
static const char *found(const cJSON *v, char *buf, size_t size) {
    char *text = v ? cJSON_PrintUnformatted(v) : NULL;
    snprintf(buf, size, "%.60s", text ? text : "missing");
    cJSON_free(text);
    return buf;
}

static void refuse(reader *r, int code, const char *key, const cJSON *v, const char *expected) {
    char buf[64];
    r->rc = hs_fail(r->err, code, "%s: '%s' is %s, %s", r->path, key, found(v, buf, sizeof(buf)), expected);
}

/* NULL if the key is absent or null, or after a failure. */
static const cJSON *item(const reader *r, const char *key) {
    const cJSON *v = r->rc ? NULL : cJSON_GetObjectItemCaseSensitive(r->doc, key);
    return cJSON_IsNull(v) ? NULL : v;
}

static int is_int(const cJSON *v, int lo, int hi) {
    return cJSON_IsNumber(v) && v->valuedouble >= lo && v->valuedouble <= hi && v->valuedouble == floor(v->valuedouble);
}

static void read_int(reader *r, const char *key, int lo, int hi, int def, int *ret) {
    const cJSON *v = item(r, key);
    char expected[64];
    snprintf(expected, sizeof(expected), "expected an integer of %d to %d", lo, hi);
    if (r->rc) return;
    if (!v && def != REQUIRED)
        *ret = def;
    else if (!is_int(v, lo, hi))
        refuse(r, HS_EFORMAT, key, v, expected);
    else
        *ret = (int)v->valuedouble;
}

/* A number of (above, most]. */
static void read_real(reader *r, const char *key, double above, double most, double def, double *ret) {
    const cJSON *v = item(r, key);
    char expected[64];
    snprintf(expected, sizeof(expected), "expected a number above %g, at most %g", above, most);
    if (r->rc) return;
    if (!v)
        *ret = def;
    else if (!cJSON_IsNumber(v) || !(v->valuedouble > above && v->valuedouble <= most))
        refuse(r, HS_EFORMAT, key, v, expected);
    else
        *ret = v->valuedouble;
}

/* The only supported value; absent and null are as good. */
static void expect_text(reader *r, const char *key, const char *value) {
    const cJSON *v = item(r, key);
    char expected[96];
    snprintf(expected, sizeof(expected), "but only \"%s\" is supported", value);
    if (v && (!cJSON_IsString(v) || strcmp(v->valuestring, value))) refuse(r, HS_ENOTSUP, key, v, expected);
}

static void expect_bool(reader *r, const char *key, int value) {
    const cJSON *v = item(r, key);
    if (v && (!cJSON_IsBool(v) || cJSON_IsTrue(v) != value))
        refuse(r, HS_ENOTSUP, key, v, value ? "but only true is supported" : "but only false is supported");
}

static void expect_null(reader *r, const char *key, const char *supported) {
    const cJSON *v = item(r, key);
    if (v) refuse(r, HS_ENOTSUP, key, v, supported);
}

static void expect_int(reader *r, const char *key, int value) {
    const cJSON *v = item(r, key);
    char expected[64];
    snprintf(expected, sizeof(expected), "but only %d is supported", value);
    if (v && !is_int(v, value, value)) refuse(r, HS_ENOTSUP, key, v, expected);
}

static void expect_ints(reader *r, const char *key, int n, const int *value, const char *supported) {
    const cJSON *v = item(r, key), *x = v ? v->child : NULL;
    if (!v) return;
    int same = cJSON_IsArray(v) && cJSON_GetArraySize(v) == n;
    for (int i = 0; i < n && same; i++, x = x->next) same = is_int(x, value[i], value[i]);
    if (!same) refuse(r, HS_ENOTSUP, key, v, supported);
}

/* The class tells one model from another, so it must be there: one of up to three names, which is returned. */
static const char *expect_class(reader *r, const char *key, const char *const names[3]) {
    const cJSON *v = item(r, key);
    for (int i = 0; v && i < 3 && names[i]; i++)
        if (cJSON_IsString(v) && !strcmp(v->valuestring, names[i])) return names[i];
    char expected[96];
    snprintf(expected, sizeof(expected), "but only %s is supported", names[0]);
    if (!r->rc) refuse(r, HS_ENOTSUP, key, v, expected);
    return "";
}

/* ---- documents ------------------------------------------------------------------------------------------------- */

int hs_config_parse_index(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    (void)c;
    reader r = reader_open(json, len, path, err);
    expect_class(&r, "_class_name", (const char *const[3]){"WanPipeline"});
    expect_null(&r, "boundary_ratio", "but models of two transformers (Wan2.2 A14B) are not supported");
    expect_bool(&r, "expand_timesteps", 0);          /* Wan2.2 TI2V */
    const cJSON *second = item(&r, "transformer_2"); /* [null, null] in files that have none */
    if (second && !(cJSON_IsArray(second) && cJSON_IsNull(second->child)))
        refuse(&r, HS_ENOTSUP, "transformer_2", second,
               "but models of two transformers (Wan2.2 A14B) are not supported");
    return reader_close(&r);
}

int hs_config_parse_transformer(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    static const char t2v[] = "but image-conditioned models are not supported, only text to video";
    reader r = reader_open(json, len, path, err);
    double eps = 0;
    expect_class(&r, "_class_name", (const char *const[3]){"WanTransformer3DModel"});
    read_int(&r, "num_attention_heads", 1, HS_MAX_HEADS, REQUIRED, &c->heads);
    read_int(&r, "attention_head_dim", 8, 256, 128, &c->head_dim);
    read_int(&r, "num_layers", 1, HS_MAX_LAYERS, REQUIRED, &c->layers);
    read_int(&r, "ffn_dim", 1, 1 << 16, REQUIRED, &c->ffn);
    read_int(&r, "in_channels", 1, HS_MAX_LATENT_CHANNELS, 16, &c->in_channels);
    read_int(&r, "out_channels", 1, HS_MAX_LATENT_CHANNELS, 16, &c->out_channels);
    read_int(&r, "text_dim", 1, 1 << 16, 4096, &c->text_dim);
    read_int(&r, "freq_dim", 2, 1 << 12, 256, &c->freq_dim);
    read_int(&r, "rope_max_seq_len", 1, 1 << 14, 1024, &c->rope_max);
    read_real(&r, "eps", MIN_EPS, 1e-2, 1e-6, &eps);
    expect_ints(&r, "patch_size", 3, (const int[]){1, 2, 2}, "but only [1,2,2] is supported");
    expect_text(&r, "qk_norm", "rms_norm_across_heads");
    expect_bool(&r, "cross_attn_norm", 1);
    expect_null(&r, "image_dim", t2v);
    expect_null(&r, "added_kv_proj_dim", t2v);
    expect_null(&r, "pos_embed_seq_len", t2v);
    expect_null(&r, "quantization_config", "but quantised checkpoints are not supported");
    if (!r.rc && c->in_channels != c->out_channels) refuse(&r, HS_ENOTSUP, "in_channels", item(&r, "in_channels"), t2v);
    /* heads rotate in pairs on each of three axes (spec 3.3), the sinusoid has a cosine and a sine half (3.1) */
    if (!r.rc && c->head_dim % 2)
        refuse(&r, HS_EFORMAT, "attention_head_dim", item(&r, "attention_head_dim"), "expected an even number");
    if (!r.rc && c->freq_dim % 2) refuse(&r, HS_EFORMAT, "freq_dim", item(&r, "freq_dim"), "expected an even number");
    c->dim = r.rc ? 0 : c->heads * c->head_dim;
    c->eps = (float)eps;
    return reader_close(&r);
}

int hs_config_parse_original(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    reader r = reader_open(json, len, path, err);
    const cJSON *class_name = item(&r, "_class_name");
    double eps = 0;
    if (cJSON_IsString(class_name) && !strcmp(class_name->valuestring, "WanTransformer3DModel"))
        r.rc = hs_fail(err, HS_EFORMAT,
                       "%s is Diffusers', but the weights beside it have the names of the original repository: name "
                       "them without it, by --transformer FILE",
                       path);
    expect_class(&r, "_class_name", (const char *const[3]){"WanModel"});
    expect_text(&r, "model_type", "t2v");
    expect_int(&r, "dim", c->dim);
    expect_int(&r, "num_heads", c->heads);
    expect_int(&r, "num_layers", c->layers);
    expect_int(&r, "ffn_dim", c->ffn);
    expect_int(&r, "in_dim", c->in_channels);
    expect_int(&r, "out_dim", c->out_channels);
    expect_int(&r, "text_len", HS_TEXT_LEN);
    read_real(&r, "eps", MIN_EPS, 1e-2, 1e-6, &eps);
    if (!r.rc) c->eps = (float)eps;
    return reader_close(&r);
}

int hs_config_parse_text(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    reader r = reader_open(json, len, path, err);
    double eps = 0;
    expect_class(&r, "model_type", (const char *const[3]){"umt5"});
    read_int(&r, "d_model", 1, 1 << 16, REQUIRED, &c->t_dim);
    read_int(&r, "num_heads", 1, HS_MAX_HEADS, REQUIRED, &c->t_heads);
    read_int(&r, "d_kv", 1, 256, 64, &c->t_dkv);
    read_int(&r, "d_ff", 1, 1 << 16, REQUIRED, &c->t_ff);
    read_int(&r, "num_layers", 1, HS_MAX_LAYERS, REQUIRED, &c->t_layers);
    read_int(&r, "vocab_size", 4, 1 << 22, REQUIRED, &c->t_vocab);
    read_int(&r, "relative_attention_num_buckets", 4, 1 << 10, 32, &c->t_buckets);
    read_int(&r, "relative_attention_max_distance", 2, 1 << 16, 128, &c->t_max_distance);
    read_real(&r, "layer_norm_epsilon", MIN_EPS, 1e-2, 1e-6, &eps);
    expect_text(&r, "feed_forward_proj", "gated-gelu");
    expect_text(&r, "dense_act_fn", "gelu_new");
    expect_bool(&r, "is_gated_act", 1);
    expect_int(&r, "pad_token_id", 0);
    expect_int(&r, "eos_token_id", 1);
    expect_null(&r, "quantization_config", "but quantised checkpoints are not supported");
    /* half of the buckets per direction, half of those exact, the rest logarithmic up to the distance (spec 2.4) */
    if (!r.rc && (c->t_buckets % 4 || c->t_max_distance <= c->t_buckets / 4))
        r.rc =
            hs_fail(err, HS_EFORMAT, "%s: %d buckets for distances up to %d, expected a multiple of 4 below 4 times it",
                    path, c->t_buckets, c->t_max_distance);
    c->t_eps = (float)eps;
    return reader_close(&r);
}

/* Per-channel constants of the latents; those of Wan2.1 (spec 5.1) if the key is missing. */
static const float mean_16[16] = {-0.7571f, -0.7089f, -0.9113f, 0.1075f,  -0.1745f, 0.9653f,  -0.1517f, 1.5508f,
                                  0.4134f,  -0.0715f, 0.5517f,  -0.3632f, -0.1922f, -0.9497f, 0.2503f,  -0.2921f};
static const float std_16[16] = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f,
                                 3.2687f, 2.1526f, 2.8652f, 1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.9160f};

static void read_statistics(reader *r, const char *key, int n, double lo, double hi, const float def[16], float *ret) {
    const cJSON *v = item(r, key), *x = v ? v->child : NULL;
    char expected[96];
    snprintf(expected, sizeof(expected), "expected %d numbers (z_dim) of %g to %g", n, lo, hi);
    if (r->rc) return;
    if (!v && n == 16) {
        memcpy(ret, def, 16 * sizeof(*ret));
        return;
    }
    int ok = cJSON_IsArray(v) && cJSON_GetArraySize(v) == n;
    for (int i = 0; i < n && ok; i++, x = x->next) {
        ok = cJSON_IsNumber(x) && x->valuedouble >= lo && x->valuedouble <= hi;
        if (ok) ret[i] = (float)x->valuedouble;
    }
    if (!ok) refuse(r, HS_EFORMAT, key, v, expected);
}

int hs_config_parse_vae(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    static const char wan22[] = "but the VAE of Wan2.2 is not supported, only that of Wan2.1";
    static const int mult[4] = {1, 2, 4, 4}, down[3] = {0, 1, 1};
    reader r = reader_open(json, len, path, err);
    expect_class(&r, "_class_name", (const char *const[3]){"AutoencoderKLWan"});
    read_int(&r, "base_dim", 2, 1 << 10, 96, &c->v_base);
    read_int(&r, "z_dim", 1, HS_MAX_LATENT_CHANNELS, 16, &c->v_z);
    read_int(&r, "num_res_blocks", 1, 8, 2, &c->v_res_blocks);
    const cJSON *m = item(&r, "dim_mult"), *x = m ? m->child : NULL;
    int ok = !m || (cJSON_IsArray(m) && cJSON_GetArraySize(m) == 4);
    for (int i = 0; i < 4 && ok; i++, x = x ? x->next : NULL) {
        ok = !m || is_int(x, 1, 16);
        if (ok) c->v_mult[i] = m ? (int)x->valuedouble : mult[i];
    }
    if (!r.rc && !ok) refuse(&r, HS_EFORMAT, "dim_mult", m, "expected 4 integers of 1 to 16");
    const cJSON *d = item(&r, "temperal_downsample"); /* spelled so */
    ok = !d || (cJSON_IsArray(d) && cJSON_GetArraySize(d) == 3);
    x = d ? d->child : NULL;
    for (int i = 0; i < 3; i++, x = x ? x->next : NULL) {
        ok = ok && (!d || (cJSON_IsBool(x) && cJSON_IsTrue(x) == down[i]));
        c->v_temporal_down[i] = down[i];
    }
    if (!r.rc && !ok)
        refuse(&r, HS_ENOTSUP, "temperal_downsample", d,
               "but only [false,true,true] (4 frames per latent) is supported");
    expect_ints(&r, "attn_scales", 0, NULL, "but only [] is supported");
    expect_null(&r, "decoder_base_dim", wan22);
    expect_null(&r, "patch_size", wan22);
    expect_bool(&r, "is_residual", 0);
    expect_int(&r, "in_channels", 3);
    expect_int(&r, "out_channels", 3);
    expect_int(&r, "scale_factor_temporal", 4);
    expect_int(&r, "scale_factor_spatial", 8);
    read_statistics(&r, "latents_mean", c->v_z, -1e3, 1e3, mean_16, c->v_mean);
    read_statistics(&r, "latents_std", c->v_z, 1e-3, 1e3, std_16, c->v_std);
    if (!r.rc && c->v_base % 2) /* the upsampling convolutions halve the channels */
        refuse(&r, HS_EFORMAT, "base_dim", item(&r, "base_dim"), "expected an even number");
    return reader_close(&r);
}

int hs_config_parse_sched(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    static const char *const names[3] = {"UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
                                         "DPMSolverMultistepScheduler"};
    reader r = reader_open(json, len, path, err);
    /* The class tells which key holds the shift; the solver is chosen by the user. */
    int euler = expect_class(&r, "_class_name", names) == names[1];
    read_real(&r, euler ? "shift" : "flow_shift", 0, 100, 3, &c->shift);
    expect_int(&r, "num_train_timesteps", 1000);
    if (!euler) {
        const cJSON *flow = item(&r, "use_flow_sigmas"), *type = item(&r, "prediction_type");
        if (!r.rc && !cJSON_IsTrue(flow)) refuse(&r, HS_ENOTSUP, "use_flow_sigmas", flow, "but only true is supported");
        if (!r.rc && !type) refuse(&r, HS_ENOTSUP, "prediction_type", type, "but only flow_prediction is supported");
    }
    expect_text(&r, "prediction_type", "flow_prediction");
    expect_bool(&r, "thresholding", 0);
    expect_bool(&r, "use_dynamic_shifting", 0);
    expect_bool(&r, "use_karras_sigmas", 0);
    expect_bool(&r, "use_exponential_sigmas", 0);
    expect_bool(&r, "use_beta_sigmas", 0);
    expect_bool(&r, "invert_sigmas", 0);
    expect_bool(&r, "stochastic_sampling", 0);
    return reader_close(&r);
}

int hs_config_parse_defaults(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    static const char *const keys[] = {"width", "height", "frames",         "fps", "steps", "guidance",
                                       "shift", "solver", "negative_prompt"};
    reader r = reader_open(json, len, path, err);
    for (const cJSON *v = r.rc ? NULL : r.doc->child; v && !r.rc; v = v->next) {
        int known = 0;
        for (size_t i = 0; i < sizeof(keys) / sizeof(*keys); i++) known |= !strcmp(keys[i], v->string);
        if (!known) r.rc = hs_fail(err, HS_EFORMAT, "%s: unknown key '%s'", path, v->string);
    }
    read_int(&r, "width", 16, 1 << 14, c->width, &c->width);
    read_int(&r, "height", 16, 1 << 14, c->height, &c->height);
    read_int(&r, "frames", 1, 1 << 16, c->frames, &c->frames);
    read_int(&r, "fps", 1, 240, c->fps, &c->fps);
    read_int(&r, "steps", 1, HS_MAX_STEPS, c->steps, &c->steps);
    read_real(&r, "guidance", -1, 100, c->guidance, &c->guidance);
    read_real(&r, "shift", 0, 100, c->shift, &c->shift);
    if (!r.rc && (c->width % 16 || c->height % 16 || (c->frames && c->frames % 4 != 1)))
        r.rc = hs_fail(err, HS_EFORMAT, "%s: %dx%d, %d frames; expected multiples of 16 and 4k+1 frames", path,
                       c->width, c->height, c->frames);
    const cJSON *v = item(&r, "solver");
    if (v && (!cJSON_IsString(v) || hs_solver_parse(v->valuestring, &c->solver)))
        refuse(&r, HS_EFORMAT, "solver", v, "expected unipc, dpm++ or euler");
    v = item(&r, "negative_prompt");
    if (v && !cJSON_IsString(v)) refuse(&r, HS_EFORMAT, "negative_prompt", v, "expected a text");
    if (v && !r.rc) {
        char *text = hs_strdup(v->valuestring);
        if (text) {
            hs_free(c->negative_prompt);
            c->negative_prompt = text;
        } else {
            r.rc = hs_fail(err, HS_ENOMEM, "no memory for the negative prompt of %s", path);
        }
    }
    return reader_close(&r);
}

/* ---- folder ---------------------------------------------------------------------------------------------------- */

int hs_config_file(const char *dir, const char *name, int optional, hs_config_parse_fn parse, hs_config *c,
                   hs_err *err) {
    char *path = hs_path_join(dir, name), *text = NULL;
    size_t len = 0;
    int rc = HS_ENOMEM;
    if (!path) return hs_fail(err, rc, "no memory to open %s", dir);
    if (optional && access(path, F_OK)) {
        rc = HS_OK;
    } else {
        rc = hs_file_read(path, MAX_CONFIG, &text, &len, err);
        if (!rc) rc = parse(text, len, path, c, err);
    }
    hs_free(text);
    hs_free(path);
    return rc;
}

int hs_config_init(hs_config *ret, hs_err *err) {
    /* shift: what the published Diffusers folders have; the original's own program uses 5 */
    *ret = (hs_config){.width = 832,
                       .height = 480,
                       .frames = 81,
                       .fps = 16,
                       .steps = 50,
                       .guidance = 5,
                       .shift = 3,
                       .solver = HS_UNIPC};
    memcpy(ret->v_mean, mean_16, sizeof(mean_16));
    memcpy(ret->v_std, std_16, sizeof(std_16));
    ret->negative_prompt = hs_strdup(default_negative);
    return ret->negative_prompt ? HS_OK : hs_fail(err, HS_ENOMEM, "no memory for the config of a model");
}

int hs_config_check(const hs_config *c, const char *label, hs_err *err) {
    if (c->t_dim != c->text_dim)
        return hs_fail(err, HS_EFORMAT, "%s: the text encoder's d_model is %d, but the transformer's text_dim is %d",
                       label, c->t_dim, c->text_dim);
    if (c->v_z != c->in_channels)
        return hs_fail(err, HS_EFORMAT, "%s: the VAE's z_dim is %d, but the transformer's in_channels is %d", label,
                       c->v_z, c->in_channels);
    return HS_OK;
}

int hs_config_load(const char *dir, hs_config *ret, hs_err *err) {
    hs_config c;
    int rc = hs_config_init(&c, err);
    if (!rc) rc = hs_config_file(dir, "model_index.json", 1, hs_config_parse_index, &c, err);
    if (!rc) rc = hs_config_file(dir, "transformer/config.json", 0, hs_config_parse_transformer, &c, err);
    if (!rc) rc = hs_config_file(dir, "text_encoder/config.json", 0, hs_config_parse_text, &c, err);
    if (!rc) rc = hs_config_file(dir, "vae/config.json", 0, hs_config_parse_vae, &c, err);
    if (!rc) rc = hs_config_file(dir, "scheduler/scheduler_config.json", 0, hs_config_parse_sched, &c, err);
    if (!rc) rc = hs_config_file(dir, "haste.json", 1, hs_config_parse_defaults, &c, err);
    if (!rc) rc = hs_config_check(&c, dir, err);
    if (rc)
        hs_config_done(&c);
    else
        *ret = c;
    return rc;
}

void hs_config_done(hs_config *c) {
    hs_free(c->negative_prompt);
    c->negative_prompt = NULL;
}

/* ---- identity -------------------------------------------------------------------------------------------------- */

/* The whole file, or of a safetensors file the length and the header. */
static int hash_file(hs_sha256 *h, const char *dir, const char *name, int header_only, hs_err *err) {
    char *path = hs_path_join(dir, name);
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
    FILE *f = fopen(path, "rbe");
    int rc = f ? HS_OK : hs_fail(err, HS_EIO, "cannot open %s: %s", path, strerror(errno));
    uint64_t left = UINT64_MAX;
    unsigned char buf[4096];
    size_t n;
    if (f && header_only) { /* 8 bytes: the length of what follows */
        n = fread(buf, 1, 8, f);
        left = 0;
        for (size_t i = 0; i < n; i++) left |= (uint64_t)buf[i] << 8 * i;
        hs_sha256_add(h, buf, n);
    }
    while (f && left && (n = fread(buf, 1, left < sizeof(buf) ? (size_t)left : sizeof(buf), f)) > 0) {
        hs_sha256_add(h, buf, n);
        left -= n;
    }
    if (f && ferror(f)) rc = hs_fail(err, HS_EIO, "cannot read %s: %s", path, strerror(errno));
    if (f) fclose(f);
    hs_free(path);
    return rc;
}

int hs_transformer_sha256(const char *dir, char ret_hex[65], hs_err *err) {
    static const char file[] = "diffusion_pytorch_model.safetensors";
    static const char index[] = "diffusion_pytorch_model.safetensors.index.json";
    hs_sha256 h;
    hs_sha256_init(&h);
    char *path = hs_path_join(dir, index);
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
    int sharded = !access(path, F_OK);
    hs_free(path);
    int rc = hash_file(&h, dir, "config.json", 0, err);
    if (!rc) rc = sharded ? hash_file(&h, dir, index, 0, err) : hash_file(&h, dir, file, 1, err);
    if (!rc) hs_sha256_done(&h, ret_hex);
    return rc;
}

int hs_model_sha256(const char *dir, char ret_hex[65], hs_err *err) {
    char *path = hs_path_join(dir, "transformer");
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
    const int rc = hs_transformer_sha256(path, ret_hex, err);
    hs_free(path);
    return rc;
}
