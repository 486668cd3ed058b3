/* Results of haste-eval: to and from lines of JSON, merged from the journals of a folder. */
#include "eval_table.h"
#include "journal.h"
#include "json.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const keys[HS_EVAL_METRICS] = {"psnr",
                                                  "psnr_clip",
                                                  "ssim",
                                                  "velocity_error",
                                                  "seconds",
                                                  "seconds_denoise",
                                                  "seconds_predict",
                                                  "seconds_attend",
                                                  "density",
                                                  "density_sparse",
                                                  "reuse_rate",
                                                  "rank_post_1",
                                                  "rank_post_4",
                                                  "rank_post_8",
                                                  "rank_pre_1",
                                                  "rank_pre_4",
                                                  "rank_pre_8"};

const char *hs_eval_metric_key(hs_eval_metric m) {
    return keys[m];
}

/* ---- one line --------------------------------------------------------------------------------------------------- */
char *hs_eval_result_json(const hs_eval_result *r) {
    char seed[24], number[32], *text = NULL, *ret = NULL;
    snprintf(seed, sizeof seed, "%" PRIu64, r->seed); /* as text: JSON numbers end at 2^53 */
    cJSON *o = cJSON_CreateObject();
    int ok = o && cJSON_AddStringToObject(o, "prompt", r->prompt) && cJSON_AddStringToObject(o, "seed", seed) &&
             cJSON_AddStringToObject(o, "variant", r->variant) && cJSON_AddStringToObject(o, "what", r->what) &&
             cJSON_AddStringToObject(o, "device", r->device) && cJSON_AddStringToObject(o, "run", r->run) &&
             cJSON_AddBoolToObject(o, "warm", r->warm) && cJSON_AddBoolToObject(o, "identical", r->identical);
    for (int i = 0; i < HS_EVAL_METRICS && ok; i++) {
        if (!isfinite(r->value[i])) continue;
        snprintf(number, sizeof number, "%.9g", r->value[i]);
        ok = cJSON_AddRawToObject(o, keys[i], number) != NULL;
    }
    if (ok) text = cJSON_PrintUnformatted(o);
    if (text) ret = hs_strdup(text);
    cJSON_free(text);
    cJSON_Delete(o);
    return ret;
}

static int get_text(const cJSON *o, const char *key, const char **ret, const char *path, int number, hs_err *err) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsString(v)) return hs_fail(err, HS_EFORMAT, "%s line %d: '%s' is not a text", path, number, key);
    *ret = v->valuestring;
    return 0;
}

int hs_eval_results_line(void *user, const char *json, size_t len, int number, hs_err *err) {
    hs_eval_results *t = user;
    const char *path = t->path ? t->path : "journal", *seed = NULL, *run = NULL, *text[4] = {NULL};
    cJSON *o;
    int rc = hs_json_parse(json, len, path, &o, err);
    if (rc) return hs_fail_ctx(err, rc, "line %d", number);
    hs_eval_result r = {.warm = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, "warm")),
                        .identical = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, "identical"))};
    char *end = NULL;
    if ((rc = get_text(o, "prompt", &text[0], path, number, err)) ||
        (rc = get_text(o, "variant", &text[1], path, number, err)) ||
        (rc = get_text(o, "what", &text[2], path, number, err)) ||
        (rc = get_text(o, "device", &text[3], path, number, err)) ||
        (rc = get_text(o, "seed", &seed, path, number, err)) || (rc = get_text(o, "run", &run, path, number, err)))
        goto out;
    r.seed = strtoull(seed, &end, 10);
    if (end == seed || *end) {
        rc = hs_fail(err, HS_EFORMAT, "%s line %d: 'seed' is \"%.30s\", not a number", path, number, seed);
        goto out;
    }
    snprintf(r.run, sizeof r.run, "%s", run);
    for (int i = 0; i < HS_EVAL_METRICS; i++) {
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, keys[i]);
        if (v && !cJSON_IsNumber(v)) {
            rc = hs_fail(err, HS_EFORMAT, "%s line %d: '%s' is not a number", path, number, keys[i]);
            goto out;
        }
        r.value[i] = v ? v->valuedouble : NAN;
    }
    r.prompt = (char *)text[0], r.variant = (char *)text[1], r.what = (char *)text[2], r.device = (char *)text[3];
    rc = hs_eval_results_add(t, &r, err);
    if (rc) hs_fail_ctx(err, rc, "%s line %d", path, number);
out:
    cJSON_Delete(o);
    return rc;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */
const hs_eval_result *hs_eval_results_find(const hs_eval_results *t, const char *prompt, uint64_t seed,
                                           const char *variant) {
    for (int i = 0; i < t->n; i++)
        if (t->r[i].seed == seed && !strcmp(t->r[i].variant, variant) && !strcmp(t->r[i].prompt, prompt))
            return &t->r[i];
    return NULL;
}

static void result_done(hs_eval_result *r) {
    hs_free(r->prompt);
    hs_free(r->variant);
    hs_free(r->what);
    hs_free(r->device);
}

int hs_eval_results_add(hs_eval_results *t, const hs_eval_result *r, hs_err *err) {
    for (int i = 0; i < t->n; i++) {
        if (strcmp(t->r[i].variant, r->variant)) continue;
        if (strcmp(t->r[i].what, r->what))
            return hs_fail(err, HS_EINVAL,
                           "%s is \"%s\" here, but was measured as \"%s\": give it another name, or measure into "
                           "another folder",
                           r->variant, r->what, t->r[i].what);
        if (t->r[i].seed == r->seed && !strcmp(t->r[i].prompt, r->prompt)) return 0;
    }
    if (t->n == t->room) {
        int room = t->room ? 2 * t->room : 64;
        hs_eval_result *grown = hs_alloc((size_t)room * sizeof *grown);
        if (!grown) return hs_fail(err, HS_ENOMEM, "no memory for the results");
        if (t->n) memcpy(grown, t->r, (size_t)t->n * sizeof *grown);
        hs_free(t->r);
        t->r = grown;
        t->room = room;
    }
    hs_eval_result copy = *r;
    copy.prompt = hs_strdup(r->prompt);
    copy.variant = hs_strdup(r->variant);
    copy.what = hs_strdup(r->what);
    copy.device = hs_strdup(r->device);
    if (!copy.prompt || !copy.variant || !copy.what || !copy.device) {
        result_done(&copy);
        return hs_fail(err, HS_ENOMEM, "no memory for the results");
    }
    t->r[t->n++] = copy;
    return 0;
}

void hs_eval_results_done(hs_eval_results *t) {
    for (int i = 0; i < t->n; i++) result_done(&t->r[i]);
    hs_free(t->r);
    hs_free(t->identity);
    hs_free(t->path);
    *t = (hs_eval_results){0};
}

/* A folder may hold other files of lines, tables of haste-calibrate for one. */
static int is_ours(const char *identity) {
    cJSON *doc = NULL;
    if (hs_json_parse(identity, strlen(identity), "the first line", &doc, NULL)) return 0;
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(doc, "format");
    const int ours = cJSON_IsString(format) && !strcmp(format->valuestring, "haste-eval");
    cJSON_Delete(doc);
    return ours;
}

static int load_one(hs_eval_results *t, const char *path, hs_err *err) {
    char *identity = NULL, *before = t->path;
    int rc = 0;
    if (!(t->path = hs_strdup(path))) {
        t->path = before;
        return hs_fail(err, HS_ENOMEM, "no memory to read %s", path);
    }
    hs_free(before);
    if ((rc = hs_journal_read(path, &identity, NULL, NULL, err))) return rc;
    if (!is_ours(identity)) {
        hs_free(identity);
        return 0;
    }
    if (t->identity) {
        rc = hs_journal_same(path, identity, t->identity, err);
        hs_free(identity);
    } else {
        t->identity = identity;
    }
    if (rc) return rc;
    rc = hs_journal_read(path, &identity, hs_eval_results_line, t, err);
    if (!rc) hs_free(identity);
    return rc;
}

static int is_journal(const struct dirent *e) {
    const char *dot = strrchr(e->d_name, '.');
    return dot && e->d_name[0] != '.' && !strcmp(dot, ".jsonl");
}

int hs_eval_results_load(hs_eval_results *t, const char *dir, const char *identity, const char *skip, hs_err *err) {
    struct dirent **entry;
    int n = scandir(dir, &entry, is_journal, alphasort), rc = 0;
    if (n < 0) return hs_fail(err, HS_EIO, "%s: cannot look into the folder: %s", dir, strerror(errno));
    if (identity && !t->identity && !(t->identity = hs_strdup(identity)))
        rc = hs_fail(err, HS_ENOMEM, "no memory for the results");
    for (int i = 0; i < n; i++) {
        char *path = rc || (skip && !strcmp(entry[i]->d_name, skip)) ? NULL : hs_path_join(dir, entry[i]->d_name);
        if (path) rc = load_one(t, path, err);
        hs_free(path);
        free(entry[i]);
    }
    free(entry);
    return rc;
}
