/* From paths to parts. Layouts are a table; a place that is a folder is a set of shards with known file names, or else
 * whatever single file in it holds the part, told by its tensors and not by its name. */
#include "layout.h"
#include "naming.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PLACES = HS_PART_COUNT + 1 /* and the tokenizer */, TOKENIZER = HS_PART_COUNT };

typedef struct layout {
    const char *name;
    const char *mark; /* what tells a folder of this layout; NULL = anything */
    const char *place[PLACES];
} layout;

static const layout layouts[] = {
    {"Diffusers", "model_index.json", {"transformer", "text_encoder", "vae", "tokenizer"}},
    {"Diffusers", "transformer", {"transformer", "text_encoder", "vae", "tokenizer"}},
    {"original", "Wan2.1_VAE.pth", {"", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl"}},
    {"original",
     "models_t5_umt5-xxl-enc-bf16.pth",
     {"", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth", "google/umt5-xxl"}},
    {"ComfyUI", "diffusion_models", {"diffusion_models", "text_encoders", "vae", NULL}},
    {"ComfyUI",
     "split_files/diffusion_models",
     {"split_files/diffusion_models", "split_files/text_encoders", "split_files/vae", NULL}},
    {"ComfyUI", "models/diffusion_models", {"models/diffusion_models", "models/text_encoders", "models/vae", NULL}},
    {"files side by side", NULL, {"", "", "", NULL}},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

static const char *const flags[PLACES] = {"--transformer", "--text-encoder", "--vae", "--tokenizer"};
static const char *const stems[HS_PART_COUNT] = {"diffusion_pytorch_model", "model", "diffusion_pytorch_model"};

static int exists(const char *dir, const char *name) {
    char *path = hs_path_join(dir, name);
    const int there = path && !access(path, F_OK);
    hs_free(path);
    return there;
}

static int is_dir(const char *path) {
    struct stat s;
    return !stat(path, &s) && S_ISDIR(s.st_mode);
}

/* dir itself, or what is in it. */
static char *place_in(const char *dir, const char *name) {
    return *name ? hs_path_join(dir, name) : hs_strdup(dir);
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* ---- one part --------------------------------------------------------------------------------------------------- */

static int is_tensor_file(const char *name) {
    const char *dot = strrchr(name, '.');
    return *name != '.' && dot && (!strcmp(dot, ".safetensors") || !strcmp(dot, ".pth") || !strcmp(dot, ".pt"));
}

/* The only file in dir that holds the part. One that cannot be read is not the one, unless none is. *ret_stock: its
 * name is the stock name with a variant in it. */
static int find_file(const char *dir, hs_part part, hs_st **ret, int *ret_stock, hs_err *err) {
    DIR *d = opendir(dir);
    if (!d) return hs_fail(err, HS_EIO, "cannot open %s: %s", dir, strerror(errno));
    hs_st *found = NULL;
    char *found_name = NULL;
    hs_err why = {0};
    int rc = HS_OK;
    for (struct dirent *e; !rc && (e = readdir(d));) {
        hs_st *st = NULL;
        if (!is_tensor_file(e->d_name)) continue;
        char *path = hs_path_join(dir, e->d_name);
        if (!path) {
            rc = hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
        } else if (hs_st_open(path, &st, &why)) {
            if (why.code == HS_ENOMEM) rc = hs_fail(err, HS_ENOMEM, "%s", why.msg);
        } else if (!hs_naming_fits(st, part)) {
            hs_st_close(st);
        } else if (found) {
            rc = hs_fail(err, HS_EINVAL, "%s: both %s and %s hold a %s: say which by %s FILE", dir, found_name,
                         e->d_name, hs_part_name(part), flags[part]);
            hs_st_close(st);
        } else {
            found = st;
            if (!(found_name = hs_strdup(e->d_name))) rc = hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
        }
        hs_free(path);
    }
    closedir(d);
    if (!rc && !found)
        rc = hs_fail(err, HS_EIO,
                     "%s holds no %s of a Wan2.1 model: not a model folder, or an incomplete download%s%.300s", dir,
                     hs_part_name(part), *why.msg ? "; " : "", why.msg);
    const size_t stem = strlen(stems[part]);
    *ret_stock = !rc && !strncmp(found_name, stems[part], stem) && found_name[stem] == '.';
    hs_free(found_name);
    if (rc)
        hs_st_close(found);
    else
        *ret = found;
    return rc;
}

static int is_any_part(const hs_st *st) {
    int any = 0;
    for (int p = 0; p < HS_PART_COUNT; p++) any |= hs_naming_fits(st, (hs_part)p);
    return any;
}

/* The files with stock names if they hold the part, else the one that does. Files of no part are handed on if nothing
 * else is there, so that they are refused by what they are. *ret_stock: a config.json beside them is theirs. */
static int open_folder(const char *dir, hs_part part, hs_st **ret, int *ret_stock, hs_err *err) {
    hs_st *stock = NULL;
    int rc = hs_st_dir_has(dir, stems[part]) ? hs_st_open_dir(dir, stems[part], &stock, err) : HS_OK;
    if (rc) return rc;
    int use = stock && hs_naming_fits(stock, part);
    if (!use) rc = find_file(dir, part, ret, ret_stock, err);
    if (rc == HS_EIO && stock && !is_any_part(stock)) {
        rc = HS_OK;
        use = 1;
    }
    if (use) {
        *ret_stock = 1;
        *ret = stock;
    } else {
        hs_st_close(stock);
    }
    return rc;
}

static int open_place(const char *path, int named, hs_part part, hs_st **ret, int *ret_stock, hs_err *err) {
    if (access(path, F_OK) && named) return hs_fail(err, HS_EIO, "%s %s: %s", flags[part], path, strerror(errno));
    if (access(path, F_OK))
        return hs_fail(err, HS_EIO, "the %s should be %s: %s", hs_part_name(part), path, strerror(errno));
    if (is_dir(path)) return open_folder(path, part, ret, ret_stock, err);
    const int rc = hs_st_open(path, ret, err);
    return rc && !named && !is_tensor_file(base_name(path))
               ? hs_fail(err, rc, "%s; -m takes the folder of a model", err->msg)
               : rc;
}

/* The identity of a Diffusers folder is that of the files without a variant. */
static int has_identity(const char *dir) {
    return exists(dir, "diffusion_pytorch_model.safetensors.index.json") ||
           exists(dir, "diffusion_pytorch_model.safetensors");
}

/* Opens and translates; the config beside it is read if the names are Diffusers', else the tensors say all. */
static int open_part(hs_files *f, const char *path, int named, hs_part part, int needs_config, hs_err *err) {
    static const hs_config_parse_fn parsers[HS_PART_COUNT] = {hs_config_parse_transformer, hs_config_parse_text,
                                                              hs_config_parse_vae};
    int diffusers = 0, stock = 0, rc;
    if ((rc = open_place(path, named, part, &f->st[part], &stock, err)) ||
        (rc = hs_naming_apply(f->st[part], part, path, &diffusers, err)))
        return rc;
    const int config = needs_config || (stock && exists(path, "config.json"));
    if (diffusers && config) {
        if ((rc = hs_config_file(path, "config.json", 0, parsers[part], &f->config, err))) return rc;
        return part == HS_PART_TRANSFORMER && has_identity(path) ? hs_transformer_sha256(path, f->sha256, err) : HS_OK;
    }
    rc = hs_naming_config(f->st[part], part, path, &f->config, err);
    if (!rc && config && part == HS_PART_TRANSFORMER)
        rc = hs_config_file(path, "config.json", 0, hs_config_parse_original, &f->config, err);
    return rc;
}

/* ---- tokenizer -------------------------------------------------------------------------------------------------- */

static int open_spiece(const char *path, hs_tokenizer **ret, hs_err *err) {
    if (!is_dir(path)) return hs_tokenizer_open(path, ret, err);
    char *file = hs_path_join(path, "spiece.model");
    if (!file) return hs_fail(err, HS_ENOMEM, "no memory to open %s", path);
    const int rc = hs_tokenizer_open(file, ret, err);
    hs_free(file);
    return rc;
}

/* Where it stands beside a text encoder that was named alone. */
static char *spiece_beside(const char *text) {
    static const char *const names[] = {"spiece.model", "google/umt5-xxl/spiece.model", "../tokenizer/spiece.model"};
    char *dir = hs_strdup(text), *path = NULL;
    if (!dir) return NULL;
    if (!is_dir(text)) {
        char *slash = strrchr(dir, '/');
        if (slash)
            slash[slash == dir] = '\0';
        else
            strcpy(dir, *dir ? "." : "");
    }
    for (size_t i = 0; i < sizeof names / sizeof *names && !path; i++)
        if (exists(dir, names[i])) path = hs_path_join(dir, names[i]);
    hs_free(dir);
    return path;
}

/* Named, inside the text encoder's file, in the layout's place, or beside the text encoder: in this order. */
static int open_tokenizer(hs_files *f, const char *named, const char *place, const char *text, hs_err *err) {
    const hs_st_tensor *t = hs_st_find(f->st[HS_PART_TEXT], "spiece_model");
    int rc;
    if (named) {
        rc = open_spiece(named, &f->tokenizer, err);
    } else if (t) {
        rc = t->dtype != HS_U8 || t->ndim != 1
                 ? hs_fail(err, HS_EFORMAT, "%s: '%s' should be the bytes of a SentencePiece model", t->file, t->name)
                 : hs_tokenizer_open_bytes(t->data, (size_t)t->numel, t->file, &f->tokenizer, err);
    } else if (place && exists(place, "spiece.model")) {
        rc = open_spiece(place, &f->tokenizer, err);
    } else {
        char *path = spiece_beside(text);
        const char *json = place && exists(place, "tokenizer.json") ? " (a tokenizer.json is not read)" : "";
        rc = path ? hs_tokenizer_open(path, &f->tokenizer, err)
                  : hs_fail(err, HS_EIO,
                            "%s has no tokenizer inside it or beside it%s%s%s: name one by --tokenizer FILE "
                            "(spiece.model, of google/umt5-xxl)",
                            text, place ? ", and there is none in " : "", place ? place : "", json);
        hs_free(path);
    }
    if (!rc && hs_tokenizer_vocab(f->tokenizer) > f->config.t_vocab)
        rc = hs_fail(err, HS_EFORMAT,
                     "the tokenizer has %d pieces, the text encoder's embedding %d rows; they do not belong together",
                     hs_tokenizer_vocab(f->tokenizer), f->config.t_vocab);
    return rc;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static const layout *find_layout(const char *dir) {
    if (!is_dir(dir)) return &layouts[LAYOUTS - 1]; /* one file for all */
    int i = 0;
    while (layouts[i].mark && !exists(dir, layouts[i].mark)) i++;
    return &layouts[i];
}

/* What a folder says of the whole model. Only a Diffusers folder must have the scheduler's file. */
static int read_folder(const char *dir, int diffusers, hs_config *c, hs_err *err) {
    int rc = hs_config_file(dir, "model_index.json", 1, hs_config_parse_index, c, err);
    if (!rc) rc = hs_config_file(dir, "scheduler/scheduler_config.json", !diffusers, hs_config_parse_sched, c, err);
    if (!rc) rc = hs_config_file(dir, "haste.json", 1, hs_config_parse_defaults, c, err);
    return rc;
}

static int open_all(const hs_model_params *p, const layout *l, char *const place[PLACES], hs_files *f, hs_err *err) {
    const char *const named[HS_PART_COUNT] = {p->transformer, p->text_encoder, p->vae};
    const int diffusers = l == &layouts[0] || l == &layouts[1];
    int rc = p->dir && is_dir(p->dir) ? read_folder(p->dir, diffusers, &f->config, err) : 0;
    for (int i = 0; i < HS_PART_COUNT && !rc; i++)
        rc = open_part(f, place[i], named[i] != NULL, (hs_part)i, diffusers && !named[i], err);
    if (!rc) rc = hs_config_check(&f->config, p->dir ? p->dir : place[0], err);
    if (!rc) rc = open_tokenizer(f, p->tokenizer, place[TOKENIZER], place[HS_PART_TEXT], err);
    if (rc) return rc;
    hs_naming_sha256(f->st[HS_PART_TRANSFORMER], f->shapes_sha256);
    if (!*f->sha256) strcpy(f->sha256, f->shapes_sha256);
    return HS_OK;
}

/* A Diffusers folder's folder of one part, where more than one is asked for? */
static int is_part_of_folder(const hs_model_params *p, const layout *l) {
    const int named = (p->transformer != NULL) + (p->text_encoder != NULL) + (p->vae != NULL);
    return l == &layouts[LAYOUTS - 1] && named < HS_PART_COUNT - 1 && exists(p->dir, "config.json") &&
           exists(p->dir, "../model_index.json");
}

int hs_files_open(const hs_model_params *p, hs_files *ret, hs_err *err) {
    const char *const named[PLACES] = {p->transformer, p->text_encoder, p->vae, p->tokenizer};
    const layout *l = p->dir ? find_layout(p->dir) : NULL;
    char *place[PLACES] = {NULL};
    hs_files f = {.tokenizer = NULL};
    int rc = hs_config_init(&f.config, err);
    if (!rc && p->dir && access(p->dir, F_OK))
        rc = hs_fail(
            err, HS_EIO,
            "cannot open the model folder %s: %s. Weights are not fetched by themselves: docs/wan.md says where "
            "they are",
            p->dir, strerror(errno));
    if (!rc && l && is_part_of_folder(p, l))
        rc = hs_fail(err, HS_EINVAL, "%s holds one part of a model: give -m the folder above it", p->dir);
    for (int i = 0; i < PLACES && !rc; i++) {
        if (!named[i] && !l && i != TOKENIZER)
            rc = hs_fail(err, HS_EINVAL, "neither a model folder nor %s is named", flags[i]);
        else if (!named[i] && (!l || !l->place[i]))
            continue;
        else if (!(place[i] = named[i] ? hs_strdup(named[i]) : place_in(p->dir, l->place[i])))
            rc = hs_fail(err, HS_ENOMEM, "no memory to open the model");
    }
    /* a tokenizer belongs to its text encoder, not to the folder of another one */
    if (!rc && p->text_encoder && !p->tokenizer) {
        hs_free(place[TOKENIZER]);
        place[TOKENIZER] = NULL;
    }
    if (!rc) rc = open_all(p, l, place, &f, err);
    for (int i = 0; i < PLACES; i++) hs_free(place[i]);
    if (rc)
        hs_files_close(&f);
    else
        *ret = f;
    return rc;
}

void hs_files_close(hs_files *f) {
    for (int i = 0; i < HS_PART_COUNT; i++) hs_st_close(f->st[i]);
    hs_tokenizer_close(f->tokenizer);
    hs_config_done(&f->config);
    *f = (hs_files){.tokenizer = NULL};
}
