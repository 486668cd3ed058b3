/* Small random models and the inputs of the golden tests, made from hashes: no weight files are committed.
 *
 * The Python half is oracle/hashgen.py; both must agree to the bit. Every name is part of the seed. Functions return 0
 * or a negative HS_E* code (base.h). `golden_dir` is the folder of this file in the source tree.
 */
#ifndef GENMODEL_H
#define GENMODEL_H
#include "engine/base.h"
#include <cjson/cJSON.h>
#include <stdio.h>

/* ---- numbers ---------------------------------------------------------------------------------------------------- */
uint64_t gm_fnv1a64(const char *text);
/* Elements start..start+n of the tensor `name`: uniform in [center - scale, center + scale). */
void gm_uniform(const char *name, double scale, double center, int64_t start, int64_t n, float *ret);
void gm_normalish(const char *name, int64_t n, float *ret); /* uniform of unit variance */
/* Position of golden sample j in a tensor of numel values stored under `key`. */
int64_t gm_sample_index(const char *key, int64_t j, int64_t numel);

/* ---- tensors of a model ------------------------------------------------------------------------------------------ */
enum { GM_MAX_DIMS = 5 };
typedef struct gm_tensor {
    char name[112];
    int ndim;
    int64_t shape[GM_MAX_DIMS];
} gm_tensor;
typedef struct gm_list {
    gm_tensor *at;
    int n, cap;
} gm_list;
void gm_list_free(gm_list *l);
int64_t gm_numel(const gm_tensor *t);
void gm_weight_rule(const gm_tensor *t, double *ret_scale, double *ret_center);

/* models.json with `like` resolved; the caller frees it with cJSON_Delete. NULL: *err says why. */
cJSON *gm_config(const char *golden_dir, const char *model, hs_err *err);
cJSON *gm_json_file(const char *dir, const char *name, hs_err *err);
/* Tensors of one part ("transformer", "text_encoder", "vae") by the rules of the architecture (genmodel_names.c). */
int gm_tensors(const cJSON *config, const char *part, gm_list *ret, hs_err *err);
/* The same from data/names_<model>.txt, which the reference implementations wrote. */
int gm_tensors_golden(const char *golden_dir, const char *model, const char *part, gm_list *ret, hs_err *err);

/* ---- files of tensors ------------------------------------------------------------------------------------------- */
/* One tensor of a file: a tensor of the model under the name and in the type that the file has it, or given bytes. */
typedef struct gm_item {
    char name[128];
    const gm_tensor *t; /* whose values; NULL: raw */
    hs_dtype type;
    int quant;     /* values are rounded to 8 bits (F8_E4M3), whatever the type */
    float scale;   /* ... as multiples of this */
    double factor; /* the tests' perturbation */
    const void *raw;
    int64_t raw_n; /* elements */
} gm_item;
/* sparse: no data, only a file of the right length. pad: header padded to 8 bytes. */
int gm_write_safetensors(const char *path, const gm_item *items, int n, int sparse, int pad, hs_err *err);
/* As torch.save writes a state dict (genmodel_pth.c). */
int gm_write_pth(const char *path, const gm_item *items, int n, int sparse, hs_err *err);
int64_t gm_item_bytes(const gm_item *it);
int gm_item_data(FILE *f, const gm_item *it); /* writes its values */

/* ---- model folders ------------------------------------------------------------------------------------------------
 */
typedef enum gm_layout { GM_DIFFUSERS, GM_ORIGINAL, GM_COMFYUI } gm_layout;
/* The name that a tensor of Diffusers' name has in the original repository; period: blocks in a level of the VAE. */
void gm_original_name(const char *part, const char *name, int period, char ret[128]);

typedef struct gm_options {
    int sparse; /* headers only: files of the right length without data (ftruncate); names from data/names_*.txt */
    const char *only;    /* one part, or NULL = all */
    const char *perturb; /* this tensor is scaled by 1 + amount: the tests must notice */
    double amount;
    const char *drop; /* this tensor is left out */
    gm_layout layout;
    const char *dtype; /* instead of the model's: F32, BF16, F16 */
    /* 1: transformer rounded to 8 bits; 2: matrices of transformer and text encoder rounded to 8 bits with scales.
     * ComfyUI's files store them so, the others the same values in their own type. */
    int quant;
    const char *prefix; /* in front of the transformer's names in ComfyUI's file */
} gm_options;
/* Writes a model into `out` (made if missing). opt may be NULL. */
int gm_write_model(const char *golden_dir, const char *model, const char *out, const gm_options *opt, hs_err *err);
int gm_remove_tree(const char *dir); /* deletes what gm_write_model made: plain files */
#endif
