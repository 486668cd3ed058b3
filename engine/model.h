/* The model family: configuration, names and shapes of every tensor, layout of the files.
 *
 * hs_config is read from the Diffusers configs and then held against the tensors; a contradiction is refused. The
 * binders (text.c, dit.c, vae.c) ask for tensors by name through hs_st_get, so that nothing is missing, and
 * hs_st_unused afterwards names anything left over.
 */
#ifndef HS_MODEL_H
#define HS_MODEL_H
#include "backend.h"
#include "safetensors.h"
#include "scheduler.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum hs_part { HS_PART_TRANSFORMER, HS_PART_TEXT, HS_PART_VAE, HS_PART_COUNT } hs_part;

enum { HS_TEXT_LEN = 512, HS_MAX_LATENT_CHANNELS = 64, HS_MAX_LAYERS = 128, HS_MAX_HEADS = 128 };

typedef struct hs_config {
    /* DiT: transformer/config.json */
    int dim, heads, head_dim, layers, ffn, in_channels, out_channels, text_dim, freq_dim, rope_max;
    float eps;
    /* UMT5 encoder: text_encoder/config.json */
    int t_dim, t_heads, t_dkv, t_ff, t_layers, t_vocab, t_buckets, t_max_distance;
    float t_eps;
    /* VAE: vae/config.json */
    int v_base, v_z, v_mult[4], v_res_blocks, v_temporal_down[3];
    float v_mean[HS_MAX_LATENT_CHANNELS], v_std[HS_MAX_LATENT_CHANNELS];
    /* scheduler/scheduler_config.json and haste.json (native defaults of this checkpoint, optional) */
    double shift, guidance;
    int width, height, frames, fps, steps;
    hs_solver_kind solver;
    char *negative_prompt; /* owned, hs_free */
} hs_config;

/* What every model of the family has unless its files say otherwise. */
int hs_config_init(hs_config *ret, hs_err *err);
/* Reads all configs of a Diffusers folder. Every number is range checked; unknown classes and unsupported variants
 * (image conditioning, other patch sizes, ...) are refused by name. */
int hs_config_load(const char *dir, hs_config *ret, hs_err *err);
void hs_config_done(hs_config *c);

/* Parsers of single documents (used by hs_config_load and the fuzzers); text need not be NUL terminated. The index,
 * model_index.json, only tells whether this is a text-to-video model of one transformer. */
typedef int (*hs_config_parse_fn)(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
/* One document: dir/name through its parser. */
int hs_config_file(const char *dir, const char *name, int optional, hs_config_parse_fn parse, hs_config *c,
                   hs_err *err);
/* Do the parts fit each other? label names the model in messages. */
int hs_config_check(const hs_config *c, const char *label, hs_err *err);
int hs_config_parse_index(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
int hs_config_parse_transformer(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
int hs_config_parse_text(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
int hs_config_parse_vae(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
int hs_config_parse_sched(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
/* The transformer's config in the original layout: it only has to agree with *c, which comes from the tensors. */
int hs_config_parse_original(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);
int hs_config_parse_defaults(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);

/* SHA-256 of the given bytes/files as hex: identity of a model in a profile: transformer/config.json and the index, or
 * the header of an unsharded file. */
int hs_model_sha256(const char *dir, char ret_hex[65], hs_err *err);
/* The same, of the folder that holds the transformer. */
int hs_transformer_sha256(const char *dir, char ret_hex[65], hs_err *err);

/* Binding helpers: tensor -> device memory or prepared weight; each checks the shape, the error names the tensor.
 * dev == NULL: check only (headers, --dry-run). */
/* Any shape of n elements, as F32. */
int hs_bind_vector(hs_st *st, hs_device *dev, int64_t n, hs_buf *ret, hs_err *err, const char *fmt, ...)
    HS_PRINTF(6, 7);
/* `fmt` gives the name without ".weight"/".bias". */
int hs_bind_linear(hs_st *st, hs_device *dev, int64_t out, int64_t in, int has_bias, int f32, hs_weight **ret,
                   hs_err *err, const char *fmt, ...) HS_PRINTF(9, 10);
/* patch_embedding [out, channels, 1, 2, 2] as a matrix [out, 4*channels], in F32: 64 inputs per token cost nothing. */
int hs_bind_patch(hs_st *st, hs_device *dev, int64_t out, int64_t channels, hs_weight **ret, hs_err *err);
/* Up to three matrices with the same input stacked into one: names are prefix + suffix[k]. */
int hs_bind_stacked(hs_st *st, hs_device *dev, int parts, const char *const *suffix, const int64_t *out, int64_t in,
                    int has_bias, hs_weight **ret, hs_err *err, const char *fmt, ...) HS_PRINTF(10, 11);
/* kt == 0: a 2-D convolution (its file shape has no time axis). */
int hs_bind_conv(hs_st *st, hs_device *dev, int cout, int cin, int kt, int ky, int kx, int up2, hs_weight **ret,
                 hs_err *err, const char *fmt, ...) HS_PRINTF(11, 12);

#ifdef __cplusplus
}
#endif
#endif
