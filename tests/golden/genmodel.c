/* Hash numbers, and model folders written from them. See genmodel.h; the rules are those of oracle/hashgen.py. */
#include "genmodel.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_LEN = 1024 };

/* ---- numbers ---------------------------------------------------------------------------------------------------- */
uint64_t gm_fnv1a64(const char *text) {
    uint64_t h = 0xcbf29ce484222325ull;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3ull;
    return h;
}

void gm_uniform(const char *name, double scale, double center, int64_t start, int64_t n, float *ret) {
    /* float32 factors: their product with a 24 bit number is exact in double, fused or not (hashgen.py) */
    const double s = (float)scale, c = (float)center;
    const uint64_t seed = gm_fnv1a64(name) + (uint64_t)start;
    for (int64_t i = 0; i < n; i++) {
        double u = (double)(hs_hash64(seed + (uint64_t)i) >> 40) * 0x1p-24;
        ret[i] = (float)((2.0 * u - 1.0) * s + c);
    }
}

void gm_normalish(const char *name, int64_t n, float *ret) {
    gm_uniform(name, sqrt(3.0), 0.0, 0, n, ret);
}

int64_t gm_sample_index(const char *key, int64_t j, int64_t numel) {
    char full[256];
    snprintf(full, sizeof full, "sample:%s", key);
    return (int64_t)(hs_hash64(gm_fnv1a64(full) + (uint64_t)j) % (uint64_t)numel);
}

static int ends(const char *s, const char *tail) {
    size_t a = strlen(s), b = strlen(tail);
    return a >= b && !strcmp(s + a - b, tail);
}

void gm_weight_rule(const gm_tensor *t, double *ret_scale, double *ret_center) {
    const char *n = t->name;
    double unit = sqrt(3.0 / (double)(gm_numel(t) / t->shape[0])), s = unit, c = 0.0;
    if (ends(n, ".bias"))
        s = 0.1;
    else if (ends(n, "norm_q.weight") || ends(n, "norm_k.weight"))
        s = 0.3, c = 1.25;
    else if (ends(n, ".gamma") || t->ndim == 1)
        s = 0.2, c = 1.0;
    else if (ends(n, "relative_attention_bias.weight"))
        s = 1.0;
    else if (!strcmp(n, "shared.weight"))
        s = 1.5;
    else if (ends(n, "scale_shift_table"))
        s = 0.8;
    else if (ends(n, "SelfAttention.q.weight") || ends(n, "SelfAttention.k.weight"))
        s = 0.5 * unit;
    *ret_scale = s;
    *ret_center = c;
}

/* ---- configs ------------------------------------------------------------------------------------------------------
 */
cJSON *gm_json_file(const char *dir, const char *name, hs_err *err) {
    char path[PATH_LEN];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    long size = -1;
    if (f && !fseek(f, 0, SEEK_END)) size = ftell(f);
    char *text = size >= 0 ? hs_alloc((size_t)size + 1) : NULL;
    cJSON *json = NULL;
    if (text) {
        rewind(f);
        text[fread(text, 1, (size_t)size, f)] = 0;
        json = cJSON_Parse(text);
    }
    if (f) fclose(f);
    hs_free(text);
    if (!json) hs_fail(err, HS_EFORMAT, "%s: cannot be read as JSON", path);
    return json;
}

/* Keys of `over` replace those of `base`; objects are merged one level deep (the parts of a model). */
static void merge(cJSON *base, const cJSON *over) {
    for (const cJSON *item = over->child; item; item = item->next) {
        cJSON *old = cJSON_GetObjectItemCaseSensitive(base, item->string);
        if (cJSON_IsObject(item) && cJSON_IsObject(old))
            merge(old, item);
        else {
            cJSON_DeleteItemFromObjectCaseSensitive(base, item->string);
            cJSON_AddItemToObject(base, item->string, cJSON_Duplicate(item, 1));
        }
    }
}

static cJSON *resolve(const cJSON *models, const char *model, hs_err *err) {
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(models, model);
    const cJSON *like = cJSON_GetObjectItemCaseSensitive(entry, "like");
    if (!cJSON_IsObject(entry)) {
        hs_fail(err, HS_EINVAL, "models.json: no model '%s'", model);
        return NULL;
    }
    if (!cJSON_IsString(like)) return cJSON_Duplicate(entry, 1);
    cJSON *base = resolve(models, like->valuestring, err);
    if (base) merge(base, entry);
    return base;
}

cJSON *gm_config(const char *golden_dir, const char *model, hs_err *err) {
    cJSON *file = gm_json_file(golden_dir, "models.json", err);
    cJSON *ret = file ? resolve(cJSON_GetObjectItemCaseSensitive(file, "models"), model, err) : NULL;
    cJSON_Delete(file);
    return ret;
}

int gm_tensors_golden(const char *golden_dir, const char *model, const char *part, gm_list *ret, hs_err *err) {
    char path[PATH_LEN], line[512], which[32];
    snprintf(path, sizeof path, "%s/data/names_%s.txt", golden_dir, model);
    FILE *f = fopen(path, "r");
    if (!f) return hs_fail(err, HS_EIO, "%s: %s", path, strerror(errno));
    *ret = (gm_list){.at = hs_calloc(2048, sizeof(gm_tensor)), .cap = 2048};
    while (ret->at && ret->n < ret->cap && fgets(line, sizeof line, f)) {
        gm_tensor *t = &ret->at[ret->n];
        int used = 0;
        if (sscanf(line, "%31s %111s%n", which, t->name, &used) != 2 || strcmp(which, part) != 0) continue;
        char *at = line + used, *end;
        for (t->ndim = 0; t->ndim < GM_MAX_DIMS; t->ndim++, at = end) {
            t->shape[t->ndim] = strtoll(at, &end, 10);
            if (end == at) break;
        }
        ret->n++;
    }
    fclose(f);
    if (!ret->at) return hs_fail(err, HS_ENOMEM, "no memory for the tensor list");
    if (!ret->n) return hs_fail(err, HS_EFORMAT, "%s: no tensors of part '%s'", path, part);
    return 0;
}

/* ---- files --------------------------------------------------------------------------------------------------------
 */
static int write_text(const char *dir, const char *name, const char *text, hs_err *err) {
    char path[PATH_LEN];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    int bad = !f || fputs(text, f) < 0;
    if (f && fclose(f)) bad = 1;
    return bad ? hs_fail(err, HS_EIO, "%s: %s", path, strerror(errno)) : 0;
}

static int write_json(const char *dir, const char *name, const cJSON *json, hs_err *err) {
    char *text = cJSON_Print(json);
    int rc = text ? write_text(dir, name, text, err) : hs_fail(err, HS_ENOMEM, "no memory for %s", name);
    cJSON_free(text);
    return rc;
}

static int make_dir(const char *path, hs_err *err) {
    if (mkdir(path, 0777) && errno != EEXIST) return hs_fail(err, HS_EIO, "%s: %s", path, strerror(errno));
    return 0;
}

static hs_dtype dtype_of(const cJSON *config, const gm_options *opt) {
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(config, "dtype"));
    if (opt->dtype) name = opt->dtype;
    return name && !strcmp(name, "BF16") ? HS_BF16 : name && !strcmp(name, "F16") ? HS_F16 : HS_F32;
}

/* ---- one part --------------------------------------------------------------------------------------------------- */
typedef struct part_files {
    const cJSON *config;
    const char *part, *out;
    const gm_options *opt;
    hs_dtype type;
    int shards, pad;
} part_files;

static int is_matrix(const gm_tensor *t) {
    return t->ndim == 2 && ends(t->name, ".weight") && !strstr(t->name, "shared") && !strstr(t->name, "bias");
}

/* The items of a file that holds the whole part, under the names of the layout. NULL when out of memory. */
static gm_item *make_items(const part_files *p, const gm_list *l, int *ret_n) {
    static const float one_scale = 1;
    const int text = !strcmp(p->part, "text_encoder"), dit = !strcmp(p->part, "transformer");
    const cJSON *blocks = cJSON_GetObjectItem(cJSON_GetObjectItem(p->config, "vae"), "num_res_blocks");
    const int comfy = p->opt->layout == GM_COMFYUI, period = 2 + (blocks ? blocks->valueint : 0);
    gm_item *items = hs_calloc(3 * (size_t)l->n + 2, sizeof *items);
    int n = 0;
    for (int i = 0; items && i < l->n; i++) {
        const gm_tensor *t = &l->at[i];
        gm_item *it = &items[n++];
        *it = (gm_item){.t = t, .type = p->type, .scale = 1, .factor = 1};
        if (p->opt->perturb && !strcmp(p->opt->perturb, t->name)) it->factor = 1 + p->opt->amount;
        if (p->opt->layout == GM_DIFFUSERS || (comfy && text))
            snprintf(it->name, sizeof it->name, "%s", t->name);
        else
            gm_original_name(p->part, t->name, period, it->name);
        it->quant = (p->opt->quant == 1 && dit) || (p->opt->quant == 2 && (dit || text) && is_matrix(t));
        if (it->quant && p->opt->quant == 2) it->scale = 0.01f + (float)(gm_fnv1a64(t->name) % 1000) * 1e-4f;
        if (it->quant && comfy) it->type = HS_F8_E4M3;
    }
    for (int i = 0; comfy && p->opt->quant == 2 && (dit || text) && i < l->n; i++) {
        const gm_item *it = &items[i];
        const int base = (int)(strlen(it->name) - strlen("weight"));
        static const char quant[] = "{\"format\": \"float8_e4m3fn\"}";
        if (!it->quant) continue;
        gm_item *s = &items[n++];
        *s = (gm_item){.type = HS_F32, .raw = &it->scale, .raw_n = 1};
        snprintf(s->name, sizeof s->name, "%.*s%s", base, it->name, dit ? "scale_weight" : "weight_scale");
        s = &items[n++];
        *s = dit ? (gm_item){.type = HS_F32, .raw = &one_scale, .raw_n = 1}
                 : (gm_item){.type = HS_U8, .raw = quant, .raw_n = sizeof quant - 1};
        snprintf(s->name, sizeof s->name, "%.*s%s", base, it->name, dit ? "scale_input" : "comfy_quant");
    }
    if (items && comfy && p->opt->quant == 2 && dit)
        items[n++] = (gm_item){.name = "scaled_fp8", .type = HS_F8_E4M3, .raw = ""};
    for (int i = 0; items && comfy && dit && p->opt->prefix && i < n; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s", items[i].name);
        snprintf(items[i].name, sizeof items[i].name, "%s%s", p->opt->prefix, name);
    }
    *ret_n = n;
    return items;
}

/* All tensors in `shards` files `stem`, with an index if there is more than one. */
static int write_shards(const part_files *p, const char *dir, const char *stem, const gm_item *items, int n,
                        hs_err *err) {
    char path[2 * PATH_LEN], file[128];
    int64_t total = 0, written = 0;
    int rc = 0, first = 0;
    for (int i = 0; i < n; i++) total += gm_item_bytes(&items[i]);
    cJSON *index = cJSON_CreateObject();
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(index, "metadata"), "total_size", (double)total);
    cJSON *map = cJSON_AddObjectToObject(index, "weight_map");
    for (int s = 0; s < p->shards && !rc; s++) {
        int last = first;
        while (last < n && (s == p->shards - 1 || written < total / p->shards * (s + 1)))
            written += gm_item_bytes(&items[last++]);
        if (p->shards == 1)
            snprintf(file, sizeof file, "%s.safetensors", stem);
        else
            snprintf(file, sizeof file, "%s-%05d-of-%05d.safetensors", stem, s + 1, p->shards);
        for (int i = first; i < last; i++) cJSON_AddStringToObject(map, items[i].name, file);
        snprintf(path, sizeof path, "%s/%s", dir, file);
        rc = gm_write_safetensors(path, items + first, last - first, p->opt->sparse, p->pad, err);
        first = last;
    }
    snprintf(file, sizeof file, "%s.safetensors.index.json", stem);
    if (!rc && p->shards > 1) rc = write_json(dir, file, index, err);
    cJSON_Delete(index);
    return rc;
}

/* config.json of the original repository: the transformer's only. */
static int write_original_config(const cJSON *c, const char *dir, hs_err *err) {
    char text[512];
    const int heads = cJSON_GetObjectItem(c, "num_attention_heads")->valueint;
    snprintf(text, sizeof text,
             "{\n  \"_class_name\": \"WanModel\",\n  \"_diffusers_version\": \"0.30.0\",\n  \"dim\": %d,\n  \"eps\": "
             "1e-06,\n  \"ffn_dim\": %d,\n  \"freq_dim\": 256,\n  \"in_dim\": 16,\n  \"model_type\": \"t2v\",\n  "
             "\"num_heads\": %d,\n  \"num_layers\": %d,\n  \"out_dim\": 16,\n  \"text_len\": 512\n}\n",
             heads * 128, cJSON_GetObjectItem(c, "ffn_dim")->valueint, heads,
             cJSON_GetObjectItem(c, "num_layers")->valueint);
    return write_text(dir, "config.json", text, err);
}

static int write_part(const part_files *p, const gm_list *l, const void *spiece, int64_t spiece_n, hs_err *err) {
    static const char *const comfy[][2] = {
        {"diffusion_models", "wan2.1_t2v_test"}, {"text_encoders", "umt5_xxl_test"}, {"vae", "wan_2.1_vae"}};
    const int which = !strcmp(p->part, "transformer") ? 0 : !strcmp(p->part, "text_encoder") ? 1 : 2;
    const cJSON *config = cJSON_GetObjectItemCaseSensitive(p->config, p->part);
    char dir[PATH_LEN], path[2 * PATH_LEN];
    int n = 0, rc = 0;
    gm_item *items = make_items(p, l, &n);
    if (!items) return hs_fail(err, HS_ENOMEM, "no memory for the tensors of %s", p->part);
    part_files one = *p;
    switch (p->opt->layout) {
    case GM_DIFFUSERS:
        snprintf(dir, sizeof dir, "%s/%s", p->out, p->part);
        if (!(rc = make_dir(dir, err)) && !(rc = write_json(dir, "config.json", config, err)))
            rc = write_shards(p, dir, which == 1 ? "model" : "diffusion_pytorch_model", items, n, err);
        break;
    case GM_ORIGINAL:
        if (which == 0) {
            if (!(rc = write_original_config(config, p->out, err)))
                rc = write_shards(p, p->out, "diffusion_pytorch_model", items, n, err);
        } else {
            snprintf(path, sizeof path, "%s/%s", p->out,
                     which == 1 ? "models_t5_umt5-xxl-enc-bf16.pth" : "Wan2.1_VAE.pth");
            rc = gm_write_pth(path, items, n, p->opt->sparse, err);
        }
        break;
    case GM_COMFYUI:
        snprintf(dir, sizeof dir, "%s/%s", p->out, comfy[which][0]);
        if (which == 1) items[n++] = (gm_item){.name = "spiece_model", .type = HS_U8, .raw = spiece, .raw_n = spiece_n};
        one.shards = 1;
        if (!(rc = make_dir(dir, err))) rc = write_shards(&one, dir, comfy[which][1], items, n, err);
        break;
    }
    hs_free(items);
    return rc;
}

static int copy_file(const char *from, const char *to, hs_err *err) {
    char buf[8192];
    FILE *a = fopen(from, "rb"), *b = fopen(to, "wb");
    int bad = !a || !b;
    for (size_t n; !bad && (n = fread(buf, 1, sizeof buf, a)) > 0;) bad = fwrite(buf, 1, n, b) != n;
    if (a) fclose(a);
    if (b && fclose(b)) bad = 1;
    return bad ? hs_fail(err, HS_EIO, "cannot copy %s to %s: %s", from, to, strerror(errno)) : 0;
}

static const char model_index[] = "{\n  \"_class_name\": \"WanPipeline\",\n  \"_diffusers_version\": \"0.33.0.dev0\",\n"
                                  "  \"scheduler\": [\"diffusers\", \"UniPCMultistepScheduler\"],\n"
                                  "  \"text_encoder\": [\"transformers\", \"UMT5EncoderModel\"],\n"
                                  "  \"tokenizer\": [\"transformers\", \"T5TokenizerFast\"],\n"
                                  "  \"transformer\": [\"diffusers\", \"WanTransformer3DModel\"],\n"
                                  "  \"vae\": [\"diffusers\", \"AutoencoderKLWan\"]\n}\n";

/* What is beside the parts: scheduler and tokenizer. */
static int write_frame(const char *golden_dir, const cJSON *config, const char *out, gm_layout layout, hs_err *err) {
    char from[PATH_LEN], to[PATH_LEN];
    int rc = 0;
    if (layout == GM_COMFYUI) return 0;
    if (layout == GM_DIFFUSERS) {
        rc = write_text(out, "model_index.json", model_index, err);
        snprintf(to, sizeof to, "%s/scheduler", out);
        if (!rc) rc = make_dir(to, err);
        if (!rc)
            rc = write_json(to, "scheduler_config.json", cJSON_GetObjectItemCaseSensitive(config, "scheduler"), err);
        snprintf(to, sizeof to, "%s/tokenizer", out);
    } else {
        snprintf(to, sizeof to, "%s/google", out);
        rc = make_dir(to, err);
        snprintf(to, sizeof to, "%s/google/umt5-xxl", out);
    }
    if (!rc) rc = make_dir(to, err);
    snprintf(from, sizeof from, "%s/data/spiece.model", golden_dir);
    snprintf(to + strlen(to), sizeof to - strlen(to), "/spiece.model");
    return rc ? rc : copy_file(from, to, err);
}

int gm_write_model(const char *golden_dir, const char *model, const char *out, const gm_options *opt, hs_err *err) {
    static const char *const parts[] = {"transformer", "text_encoder", "vae"};
    static const gm_options none = {0};
    char path[PATH_LEN], *spiece = NULL;
    size_t spiece_n = 0;
    if (!opt) opt = &none;
    cJSON *config = gm_config(golden_dir, model, err);
    if (!config) return HS_EFORMAT;
    snprintf(path, sizeof path, "%s/data/spiece.model", golden_dir);
    int rc = hs_file_read(path, 1 << 24, &spiece, &spiece_n, err);
    if (!rc) rc = make_dir(out, err);
    if (!rc && !opt->only) rc = write_frame(golden_dir, config, out, opt->layout, err);
    for (int p = 0; p < 3 && !rc; p++) {
        const cJSON *s = cJSON_GetObjectItemCaseSensitive(config, p == 1 ? "text_shards" : "shards");
        if (!s) s = cJSON_GetObjectItemCaseSensitive(config, "shards");
        const part_files files = {.config = config,
                                  .part = parts[p],
                                  .out = out,
                                  .opt = opt,
                                  .type = dtype_of(config, opt),
                                  .shards = p == 2 ? 1 : s->valueint, /* the published VAE is always one file */
                                  .pad = !cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(config, "pad_header"))};
        gm_list l;
        if (!cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(config, parts[p]))) continue;
        if (opt->only && strcmp(opt->only, parts[p]) != 0) continue;
        rc = opt->sparse ? gm_tensors_golden(golden_dir, model, parts[p], &l, err)
                         : gm_tensors(config, parts[p], &l, err);
        for (int i = 0; !rc && opt->drop && i < l.n; i++)
            if (!strcmp(l.at[i].name, opt->drop)) {
                memmove(&l.at[i], &l.at[i + 1], (size_t)(l.n - i - 1) * sizeof *l.at);
                l.n--;
            }
        if (!rc) rc = write_part(&files, &l, spiece, (int64_t)spiece_n, err);
        gm_list_free(&l);
    }
    hs_free(spiece);
    cJSON_Delete(config);
    return rc;
}

int gm_remove_tree(const char *dir) {
    DIR *d = opendir(dir);
    struct dirent *e;
    if (!d) return HS_EIO;
    while ((e = readdir(d))) {
        char path[PATH_LEN];
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (!lstat(path, &st) && S_ISDIR(st.st_mode))
            gm_remove_tree(path);
        else
            unlink(path);
    }
    closedir(d);
    return rmdir(dir) ? HS_EIO : 0;
}
