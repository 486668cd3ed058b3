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

enum { PATH_LEN = 1024, CHUNK = 1 << 16 };

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

static hs_dtype dtype_of(const cJSON *config) {
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(config, "dtype"));
    return name && !strcmp(name, "BF16") ? HS_BF16 : name && !strcmp(name, "F16") ? HS_F16 : HS_F32;
}

static int write_values(FILE *f, const gm_tensor *t, hs_dtype type, double factor, float *value, void *raw) {
    double scale, center;
    gm_weight_rule(t, &scale, &center);
    for (int64_t a = 0, numel = gm_numel(t); a < numel; a += CHUNK) {
        int64_t n = numel - a < CHUNK ? numel - a : CHUNK;
        gm_uniform(t->name, scale, center, a, n, value);
        if (factor != 1.0)
            for (int64_t i = 0; i < n; i++) value[i] = (float)(value[i] * factor);
        hs_from_f32(raw, type, value, n);
        if (fwrite(raw, hs_dtype_size(type), (size_t)n, f) != (size_t)n) return -1;
    }
    return 0;
}

/* One safetensors file with tensors [first, last) of the list. */
static int write_shard(const char *path, const gm_list *l, int first, int last, hs_dtype type, int pad,
                       const gm_options *opt, hs_err *err) {
    const size_t cap = (size_t)(last - first + 1) * 256 + 64;
    char *head = hs_alloc(cap);
    float *value = hs_alloc(CHUNK * sizeof(float));
    void *raw = hs_alloc(CHUNK * sizeof(float));
    FILE *f = head && value && raw ? fopen(path, "wb") : NULL;
    int bad = !f;
    if (f) {
        size_t len = (size_t)snprintf(head, cap, "{\"__metadata__\":{\"format\":\"pt\"}");
        int64_t at = 0;
        for (int i = first; i < last; i++) {
            const gm_tensor *t = &l->at[i];
            len += (size_t)snprintf(head + len, cap - len, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name,
                                    hs_dtype_name(type));
            for (int k = 0; k < t->ndim; k++)
                len += (size_t)snprintf(head + len, cap - len, "%s%lld", k ? "," : "", (long long)t->shape[k]);
            int64_t end = at + gm_numel(t) * (int64_t)hs_dtype_size(type);
            len += (size_t)snprintf(head + len, cap - len, "],\"data_offsets\":[%lld,%lld]}", (long long)at,
                                    (long long)end);
            at = end;
        }
        head[len++] = '}';
        while (pad && len % 8) head[len++] = ' '; /* as the safetensors library does; the format does not demand it */
        if (!pad && len % 2 == 0) head[len++] = ' '; /* odd on purpose: no tensor is aligned */
        uint64_t n = len;
        unsigned char le[8];
        for (int k = 0; k < 8; k++) le[k] = (unsigned char)(n >> (8 * k));
        bad = fwrite(le, 1, 8, f) != 8 || fwrite(head, 1, len, f) != len;
        if (opt->sparse)
            bad = bad || fflush(f) || ftruncate(fileno(f), (off_t)(8 + len) + (off_t)at);
        else
            for (int i = first; i < last && !bad; i++) {
                double factor = opt->perturb && !strcmp(opt->perturb, l->at[i].name) ? 1.0 + opt->amount : 1.0;
                bad = write_values(f, &l->at[i], type, factor, value, raw) != 0;
            }
        if (fclose(f)) bad = 1;
    }
    hs_free(head);
    hs_free(value);
    hs_free(raw);
    return bad ? hs_fail(err, HS_EIO, "%s: cannot be written: %s", path, strerror(errno)) : 0;
}

/* All tensors of one part in `shards` files, with an index if there is more than one, and its config.json. */
static int write_part(const cJSON *config, const char *part, gm_list *l, int shards, const char *out,
                      const gm_options *opt, hs_err *err) {
    const char *stem = strcmp(part, "text_encoder") ? "diffusion_pytorch_model" : "model";
    const hs_dtype type = dtype_of(config);
    const int pad = !cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(config, "pad_header"));
    char dir[PATH_LEN], path[PATH_LEN + 128], file[128];
    int64_t total = 0, done = 0;
    int rc, first = 0;
    snprintf(dir, sizeof dir, "%s/%s", out, part);
    if ((rc = make_dir(dir, err))) return rc;
    if ((rc = write_json(dir, "config.json", cJSON_GetObjectItemCaseSensitive(config, part), err))) return rc;
    for (int i = 0; i < l->n; i++) total += gm_numel(&l->at[i]) * (int64_t)hs_dtype_size(type);

    cJSON *index = cJSON_CreateObject();
    cJSON_AddNumberToObject(cJSON_AddObjectToObject(index, "metadata"), "total_size", (double)total);
    cJSON *map = cJSON_AddObjectToObject(index, "weight_map");
    for (int s = 0; s < shards && !rc; s++) {
        int last = first;
        while (last < l->n && (s == shards - 1 || done < total / shards * (s + 1)))
            done += gm_numel(&l->at[last++]) * (int64_t)hs_dtype_size(type);
        if (shards == 1)
            snprintf(file, sizeof file, "%s.safetensors", stem);
        else
            snprintf(file, sizeof file, "%s-%05d-of-%05d.safetensors", stem, s + 1, shards);
        for (int i = first; i < last; i++) cJSON_AddStringToObject(map, l->at[i].name, file);
        snprintf(path, sizeof path, "%s/%s", dir, file);
        rc = write_shard(path, l, first, last, type, pad, opt, err);
        first = last;
    }
    snprintf(file, sizeof file, "%s.safetensors.index.json", stem);
    if (!rc && shards > 1) rc = write_json(dir, file, index, err);
    cJSON_Delete(index);
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

static int write_frame(const char *golden_dir, const cJSON *config, const char *out, hs_err *err) {
    char from[PATH_LEN], to[PATH_LEN];
    int rc = write_text(out, "model_index.json", model_index, err);
    snprintf(to, sizeof to, "%s/scheduler", out);
    if (!rc) rc = make_dir(to, err);
    if (!rc) rc = write_json(to, "scheduler_config.json", cJSON_GetObjectItemCaseSensitive(config, "scheduler"), err);
    snprintf(to, sizeof to, "%s/tokenizer", out);
    if (!rc) rc = make_dir(to, err);
    snprintf(from, sizeof from, "%s/data/spiece.model", golden_dir);
    snprintf(to, sizeof to, "%s/tokenizer/spiece.model", out);
    return rc ? rc : copy_file(from, to, err);
}

int gm_write_model(const char *golden_dir, const char *model, const char *out, const gm_options *opt, hs_err *err) {
    static const char *const parts[] = {"transformer", "text_encoder", "vae"};
    static const gm_options none = {0};
    if (!opt) opt = &none;
    cJSON *config = gm_config(golden_dir, model, err);
    if (!config) return HS_EFORMAT;
    int rc = make_dir(out, err);
    if (!rc && !opt->only) rc = write_frame(golden_dir, config, out, err);
    for (int p = 0; p < 3 && !rc; p++) {
        const cJSON *s = cJSON_GetObjectItemCaseSensitive(config, p == 1 ? "text_shards" : "shards");
        if (!s) s = cJSON_GetObjectItemCaseSensitive(config, "shards");
        int shards = p == 2 ? 1 : s->valueint; /* the published VAE is always one file */
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
        if (!rc) rc = write_part(config, parts[p], &l, shards, out, opt, err);
        gm_list_free(&l);
    }
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
