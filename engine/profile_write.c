/* Profiles: hs_profile to JSON. What is written has been read back. */
#include "json.h"
#include "newfile.h"
#include "profile_fields.inc"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The fewest digits that give the same number back. */
static cJSON *number(double v, int is_float) {
    char text[40];
    int same = 0;
    if (!isfinite(v)) return cJSON_CreateNull();
    for (int digits = 6; digits <= 17 && !same; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        same = is_float ? strtof(text, NULL) == (float)v : strtod(text, NULL) == v;
    }
    return cJSON_CreateRaw(text);
}

/* Takes the item over in every case; 0 if it is NULL or memory ran out, and with that the whole text fails. */
static int put(cJSON *object, const char *key, cJSON *v) {
    int ok = cJSON_AddItemToObject(object, key, v);
    if (!ok) cJSON_Delete(v);
    return ok;
}

static int write_fields(cJSON *to, const field *fields, const void *base) {
    int ok = to != NULL;
    for (const field *f = fields; f->key && ok; f++) {
        const void *at = (const char *)base + f->at;
        cJSON *v = NULL;
        switch (f->kind) {
        case INT: v = cJSON_CreateNumber(*(const int *)at); break;
        case REAL:
        case KNOWN: v = number(*(const double *)at, 0); break;
        case FLOAT: v = number((double)*(const float *)at, 1); break;
        case TEXT:
        case SHA: v = cJSON_CreateString(at); break;
        case NAME: v = cJSON_CreateString(f->name(*(const int *)at)); break;
        case SWITCH: v = cJSON_CreateBool(*(const int *)at); break;
        }
        ok = put(to, f->key, v);
    }
    return ok;
}

static cJSON *write_object(cJSON *doc, const char *key, const field *fields, const hs_profile *p) {
    cJSON *to = cJSON_AddObjectToObject(doc, key);
    return to && write_fields(to, fields, p) ? to : NULL;
}

static int write_calibration(cJSON *doc, const hs_profile *p) {
    if (!p->has_calibration) return cJSON_AddNullToObject(doc, "calibration") != NULL;
    cJSON *to = write_object(doc, "calibration", calibration_fields, p), *list;
    int ok = to && (list = cJSON_AddArrayToObject(to, "intervals"));
    for (int i = 0; i < p->n_intervals && ok; i++)
        ok = cJSON_AddItemToArray(list, cJSON_CreateIntArray(p->intervals[i], 2));
    ok = ok && (list = cJSON_AddArrayToObject(to, "candidates"));
    for (int i = 0; i < p->n_candidates && ok; i++) ok = cJSON_AddItemToArray(list, number(p->candidates[i], 0));
    return ok;
}

static int write_rows(cJSON *rows, const hs_profile *p, const float *top_p) {
    cJSON *row;
    int ok = rows != NULL;
    for (int i = 0; i < p->layers && ok; i++) {
        ok = cJSON_AddItemToArray(rows, row = cJSON_CreateArray());
        for (int h = 0; h < p->heads && ok; h++)
            ok = cJSON_AddItemToArray(row, number((double)top_p[i * p->heads + h], 1));
    }
    return ok;
}

static int write_budget(cJSON *list, const hs_profile *p, const hs_profile_budget *b) {
    cJSON *to = cJSON_CreateObject(), *tables, *rows;
    int ok = cJSON_AddItemToArray(list, to) && write_fields(to, budget_fields, b);
    if (b->intervals == 1) return ok && write_rows(cJSON_AddArrayToObject(to, "top_p"), p, b->top_p);
    ok = ok && (rows = cJSON_AddArrayToObject(to, "until"));
    for (int i = 0; i < b->intervals && ok; i++) ok = cJSON_AddItemToArray(rows, number(b->until[i], 0));
    ok = ok && (tables = cJSON_AddArrayToObject(to, "top_p"));
    for (int i = 0; i < b->intervals && ok; i++)
        ok = cJSON_AddItemToArray(tables, rows = cJSON_CreateArray()) &&
             write_rows(rows, p, b->top_p + i * p->layers * p->heads);
    return ok;
}

/* The oldest version that can say it. */
static int version_of(const hs_profile *p) {
    int version = 1;
    for (int i = 0; i < p->n_budgets; i++)
        if (p->budgets[i].intervals > 1) version = 2;
    return p->sigmas < 0 || hs_sigmas_of(p->solver, p->sigmas) == hs_sigmas_of(p->solver, -1) ? version : 3;
}

static char *text_of(const hs_profile *p) {
    cJSON *doc = cJSON_CreateObject(), *list;
    int ok = doc && cJSON_AddStringToObject(doc, "format", "haste-profile") &&
             cJSON_AddNumberToObject(doc, "version", version_of(p)) && write_object(doc, "made", made_fields, p) &&
             write_object(doc, "model", model_fields, p) &&
             write_object(doc, "made_for", made_for_fields(version_of(p)), p) &&
             write_object(doc, "method", method_fields[p->policy.method], p) &&
             write_object(doc, "reuse", reuse_fields[p->policy.reuse.kind], p) &&
             write_object(doc, "dense", warm_up_fields, p) && write_calibration(doc, p) &&
             (list = cJSON_AddArrayToObject(doc, "budgets"));
    for (int i = 0; i < p->n_budgets && ok; i++) ok = write_budget(list, p, &p->budgets[i]);
    char *text = ok ? cJSON_Print(doc) : NULL;
    cJSON_Delete(doc);
    return text;
}

int hs_profile_save(const char *path, const hs_profile *p, hs_err *err) {
    char *text = text_of(p);
    hs_profile *again;
    hs_newfile f;
    if (!text) return hs_fail(err, HS_ENOMEM, "%s: no memory to write the profile", path);
    size_t len = strlen(text);
    int rc = len <= HS_PROFILE_MAX_BYTES
                 ? hs_profile_parse(text, len, path, &again, err)
                 : hs_fail(err, HS_EFORMAT, "%s: %zu bytes, a profile has at most %d", path, len, HS_PROFILE_MAX_BYTES);
    if (!rc) {
        hs_profile_free(again);
        rc = hs_newfile_open(path, &f, err);
    }
    if (!rc) {
        hs_newfile_write(&f, text, len);
        hs_newfile_write(&f, "\n", 1);
        rc = hs_newfile_done(&f, 0, err);
    }
    cJSON_free(text);
    return rc;
}
