/* Profiles: JSON to hs_profile and back, and from there to a policy.
 *
 * Every object of the format is one table of fields below. Reading, writing and the search for unknown keys all walk
 * the same tables (profile_fields.inc), so that they cannot disagree. What a table cannot say (a row of thresholds per
 * layer, fields that depend on the method) is in parse_* beside it. The reader keeps the first error, so that parsing
 * has no branches for it.
 */
#include "json.h"
#include "profile_fields.inc"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ----------------------------------------------------------------------------------------------------- */

void hs_profile_free(hs_profile *p) {
    if (!p) return;
    for (int i = 0; i < p->n_budgets && p->budgets; i++) hs_free(p->budgets[i].top_p);
    hs_free(p->budgets);
    hs_free(p->path);
    hs_free(p);
}

static int no_memory(const hs_profile *p, hs_err *err) {
    return hs_fail(err, HS_ENOMEM, "no memory for a profile of %d layers x %d heads", p->layers, p->heads);
}

static int add_budgets(hs_profile *p, int n, hs_err *err) {
    p->budgets = hs_calloc((size_t)n, sizeof *p->budgets);
    p->n_budgets = p->budgets ? n : 0;
    for (int i = 0; i < p->n_budgets; i++) {
        hs_profile_budget *b = &p->budgets[i];
        b->sparsity = b->error = b->bound = b->gap = b->joint_error = NAN;
    }
    return p->budgets ? 0 : no_memory(p, err);
}

/* Room for the thresholds of so many intervals, equal ones until more is known. */
static int add_thresholds(const hs_profile *p, int intervals, hs_profile_budget *b, hs_err *err) {
    b->intervals = intervals;
    for (int i = 0; i < intervals; i++) b->until[i] = (i + 1.0) / intervals;
    b->top_p = hs_calloc((size_t)intervals * (size_t)p->layers * (size_t)p->heads, sizeof *b->top_p);
    return b->top_p ? 0 : no_memory(p, err);
}

int hs_profile_new(int layers, int heads, int intervals, int n, hs_profile **ret, hs_err *err) {
    if (layers < 1 || layers > HS_MAX_LAYERS || heads < 1 || heads > HS_MAX_HEADS || intervals < 1 ||
        intervals > HS_MAX_INTERVALS || n < 1 || n > HS_PROFILE_MAX_BUDGETS)
        return hs_fail(err, HS_EINVAL,
                       "a profile of %d layers x %d heads with %d step intervals and %d budgets: 1 to %d, %d, %d and "
                       "%d",
                       layers, heads, intervals, n, HS_MAX_LAYERS, HS_MAX_HEADS, HS_MAX_INTERVALS,
                       HS_PROFILE_MAX_BUDGETS);
    hs_profile *p = hs_calloc(1, sizeof *p);
    if (!p) return hs_fail(err, HS_ENOMEM, "no memory for a profile");
    p->layers = layers;
    p->heads = heads;
    p->sigmas = -1;
    p->policy = hs_attn_policy_default(HS_XATTENTION);
    int rc = add_budgets(p, n, err);
    for (int i = 0; i < n && !rc; i++) rc = add_thresholds(p, intervals, &p->budgets[i], err);
    if (!rc && !(p->path = hs_strdup("new profile"))) rc = hs_fail(err, HS_ENOMEM, "no memory for a profile");
    if (rc)
        hs_profile_free(p);
    else
        *ret = p;
    return rc;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

typedef struct reader {
    const char *path;
    char where[64]; /* "model.", "budgets[1]." */
    hs_err *err;
    int version;
    int rc; /* the first failure; later calls do nothing */
} reader;

/* "p.json: 'model.layers' is "x", expected an integer of 1 to 128" */
static void HS_PRINTF(5, 6) refuse(reader *r, int code, const char *key, const cJSON *v, const char *fmt, ...) {
    char *text = v ? cJSON_PrintUnformatted(v) : NULL;
    char expected[300];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(expected, sizeof expected, fmt, ap);
    va_end(ap);
    if (!r->rc)
        r->rc =
            hs_fail(r->err, code, "%s: '%s%s' is %.60s, %s", r->path, r->where, key, text ? text : "missing", expected);
    cJSON_free(text);
}

/* NULL if absent or null, or after a failure. */
static const cJSON *item(const reader *r, const cJSON *object, const char *key) {
    const cJSON *v = r->rc ? NULL : cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(v) ? NULL : v;
}

static void read_name(reader *r, const field *f, const cJSON *v, int *ret) {
    char names[128] = "";
    int n = (int)f->high;
    for (int k = 0; k < n; k++) {
        if (cJSON_IsString(v) && !strcmp(v->valuestring, f->name(k))) {
            *ret = k;
            return;
        }
        size_t len = strlen(names);
        snprintf(names + len, sizeof names - len, "%s%s", k ? ", " : "", f->name(k));
    }
    refuse(r, cJSON_IsString(v) ? HS_ENOTSUP : HS_EFORMAT, f->key, v, "expected one of %s", names);
}

static int is_sha(const cJSON *v) {
    return cJSON_IsString(v) && strlen(v->valuestring) == 64 && strspn(v->valuestring, "0123456789abcdef") == 64;
}

static int in_range(const cJSON *v, const field *f) {
    return cJSON_IsNumber(v) && v->valuedouble >= f->low && v->valuedouble <= f->high;
}

static void read_field(reader *r, const field *f, const cJSON *object, void *base) {
    const cJSON *v = item(r, object, f->key);
    void *at = (char *)base + f->at;
    if (r->rc) return;
    switch (f->kind) {
    case INT:
        if (in_range(v, f) && v->valuedouble == floor(v->valuedouble))
            *(int *)at = (int)v->valuedouble;
        else
            refuse(r, HS_EFORMAT, f->key, v, "expected an integer of %g to %g", f->low, f->high);
        break;
    case KNOWN:
        *(double *)at = NAN;
        if (!v) break;
        /* fall through */
    case REAL:
    case FLOAT:
        if (!in_range(v, f))
            refuse(r, HS_EFORMAT, f->key, v, "expected a number of %g to %g", f->low, f->high);
        else if (f->kind == FLOAT)
            *(float *)at = (float)v->valuedouble;
        else
            *(double *)at = v->valuedouble;
        break;
    case TEXT:
        if (cJSON_IsString(v) && strlen(v->valuestring) < (size_t)f->high)
            strcpy(at, v->valuestring);
        else
            refuse(r, HS_EFORMAT, f->key, v, "expected a text of at most %g bytes", f->high - 1);
        break;
    case SHA:
        if (is_sha(v))
            strcpy(at, v->valuestring);
        else
            refuse(r, HS_EFORMAT, f->key, v, "expected 64 lower-case hexadecimal digits");
        break;
    case NAME: read_name(r, f, v, at); break;
    case SWITCH:
        v = cJSON_GetObjectItemCaseSensitive(object, f->key); /* null is not false */
        if (v && !cJSON_IsBool(v)) refuse(r, HS_EFORMAT, f->key, v, "expected true or false");
        *(int *)at = cJSON_IsTrue(v);
        break;
    }
}

/* Keys of the object that are neither in the table nor in `others` (up to four, ended by NULL). */
static void refuse_unknown(reader *r, const cJSON *object, const field *fields, const char *const *others) {
    for (const cJSON *c = r->rc ? NULL : object->child; c && !r->rc; c = c->next) {
        int known = 0;
        for (const field *f = fields; f && f->key; f++) known |= !strcmp(c->string, f->key);
        for (int i = 0; others && others[i]; i++) known |= !strcmp(c->string, others[i]);
        if (!known)
            r->rc = hs_fail(r->err, HS_ENOTSUP,
                            "%s: '%s%.60s' is not a field of haste-profile version %d here; ignoring it could mean "
                            "other thresholds than were measured",
                            r->path, r->where, c->string, r->version);
    }
}

static const cJSON *object_of(reader *r, const cJSON *doc, const char *key) {
    const cJSON *v = item(r, doc, key);
    if (!cJSON_IsObject(v)) refuse(r, HS_EFORMAT, key, v, "expected an object");
    return r->rc ? NULL : v;
}

static void read_fields(reader *r, const cJSON *object, const field *fields, const char *const *others, void *base) {
    refuse_unknown(r, object, fields, others);
    for (const field *f = fields; f->key; f++) read_field(r, f, object, base);
}

/* The object `key` of the document into *p. */
static const cJSON *read_object(reader *r, const cJSON *doc, const char *key, const field *fields,
                                const char *const *others, hs_profile *p) {
    const cJSON *v = object_of(r, doc, key);
    if (!v) return NULL;
    snprintf(r->where, sizeof r->where, "%s.", key);
    read_fields(r, v, fields, others, p);
    r->where[0] = '\0';
    return v;
}

/* An object whose fields depend on the name in its first one. */
static void read_variant(reader *r, const cJSON *doc, const char *key, const field *const *variants, hs_profile *p) {
    const field *first = variants[0];
    const cJSON *v = object_of(r, doc, key);
    int *which = (int *)((char *)p + first->at);
    if (!v) return;
    snprintf(r->where, sizeof r->where, "%s.", key);
    read_field(r, first, v, p);
    if (!r->rc && which == (int *)&p->policy.method) {
        p->policy = hs_attn_policy_default((hs_method)*which);
        if (*which == HS_DENSE)
            refuse(r, HS_EFORMAT, first->key, item(r, v, first->key), "a profile is for sparse attention only");
    }
    if (!r->rc) read_fields(r, v, variants[*which], NULL, p);
    r->where[0] = '\0';
}

/* An array of 1 to `most` values; its length. */
static int array_of(reader *r, const cJSON *object, const char *key, int most, const cJSON **ret) {
    const cJSON *v = item(r, object, key);
    int n = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0;
    *ret = v ? v->child : NULL;
    if (n < 1 || n > most) refuse(r, HS_EFORMAT, key, v, "expected a list of 1 to %d", most);
    return r->rc ? 0 : n;
}

static int is_step(const cJSON *v, int low, int high, int *ret) {
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= low && v->valuedouble <= high) ||
        v->valuedouble != floor(v->valuedouble))
        return 0;
    *ret = (int)v->valuedouble;
    return 1;
}

static int is_top_p(const cJSON *v) { /* as the float that it becomes */
    return cJSON_IsNumber(v) && (float)v->valuedouble > 0 && v->valuedouble <= 1;
}

static void read_calibration(reader *r, const cJSON *doc, hs_profile *p) {
    const cJSON *c = item(r, doc, "calibration"), *v;
    if (!c || r->rc) return;
    read_object(r, doc, "calibration", calibration_fields, (const char *const[]){"intervals", "candidates", NULL}, p);
    snprintf(r->where, sizeof r->where, "calibration.");
    if (!r->rc && p->seed != floor(p->seed))
        refuse(r, HS_EFORMAT, "seed", item(r, c, "seed"), "expected an integer of 0 to 2^53");
    p->n_intervals = array_of(r, c, "intervals", HS_PROFILE_MAX_INTERVALS, &v);
    for (int i = 0, *s; i < p->n_intervals && !r->rc; i++, v = v->next) {
        s = p->intervals[i];
        if (!cJSON_IsArray(v) || cJSON_GetArraySize(v) != 2 || !is_step(v->child, 0, p->steps - 1, &s[0]) ||
            !is_step(v->child->next, s[0], p->steps - 1, &s[1]))
            refuse(r, HS_EFORMAT, "intervals", v, "expected pairs [first, last] of steps from 0 to %d", p->steps - 1);
    }
    p->n_candidates = array_of(r, c, "candidates", HS_PROFILE_MAX_CANDIDATES, &v);
    for (int i = 0; i < p->n_candidates && !r->rc; i++, v = v->next) {
        if (!is_top_p(v)) refuse(r, HS_EFORMAT, "candidates", v, "expected numbers above 0 and at most 1");
        p->candidates[i] = v->valuedouble;
    }
    r->where[0] = '\0';
    p->has_calibration = 1;
}

/* Where the step intervals of a budget end; their number. One if nothing is said. */
static int read_until(reader *r, const cJSON *budget, double *ret) {
    const cJSON *v;
    double before = 0;
    char key[32];
    ret[0] = 1;
    if (!item(r, budget, "until")) return 1;
    int n = array_of(r, budget, "until", HS_MAX_INTERVALS, &v);
    for (int i = 0; i < n && !r->rc; i++, v = v->next) {
        snprintf(key, sizeof key, "until[%d]", i);
        if (!cJSON_IsNumber(v) || !(v->valuedouble > before && v->valuedouble <= 1))
            refuse(r, HS_EFORMAT, key, v, "expected a share of the steps above %g and at most 1", before);
        else if (i == n - 1 && v->valuedouble < 1)
            refuse(r, HS_EFORMAT, key, v, "expected 1: the last interval ends with the run");
        before = ret[i] = v->valuedouble;
    }
    return n;
}

/* A table of layers x heads, called `name`. */
static void read_rows(reader *r, const char *name, const cJSON *rows, const hs_profile *p, float *ret) {
    char key[64];
    if (!cJSON_IsArray(rows))
        refuse(r, HS_EFORMAT, name, rows, "expected %d rows (layers) of %d numbers (heads)", p->layers, p->heads);
    int n = cJSON_GetArraySize(rows);
    if (!r->rc && n != p->layers)
        r->rc = hs_fail(r->err, HS_EFORMAT, "%s: '%s%s' has %d rows, expected %d (model.layers)", r->path, r->where,
                        name, n, p->layers);
    const cJSON *row = r->rc ? NULL : rows->child, *v;
    for (int i = 0; i < p->layers && !r->rc; i++, row = row->next) {
        n = cJSON_IsArray(row) ? cJSON_GetArraySize(row) : 0;
        if (n != p->heads) {
            r->rc = hs_fail(r->err, HS_EFORMAT, "%s: '%s%s[%d]' has %d numbers, expected %d (model.heads)", r->path,
                            r->where, name, i, n, p->heads);
            return;
        }
        v = row->child;
        for (int h = 0; h < p->heads && !r->rc; h++, v = v->next) {
            snprintf(key, sizeof key, "%s[%d][%d]", name, i, h);
            if (!is_top_p(v)) refuse(r, HS_EFORMAT, key, v, "expected a number above 0 and at most 1");
            *ret++ = (float)v->valuedouble;
        }
    }
}

/* One table, or with `until` one for each interval. */
static void read_top_p(reader *r, const cJSON *budget, const hs_profile *p, hs_profile_budget *b) {
    const cJSON *v = item(r, budget, "top_p");
    const int cells = p->layers * p->heads, tables = cJSON_IsArray(v) ? cJSON_GetArraySize(v) : 0;
    char name[32];
    if (!item(r, budget, "until")) {
        read_rows(r, "top_p", v, p, b->top_p);
        return;
    }
    if (!r->rc && tables != b->intervals)
        r->rc = hs_fail(r->err, HS_EFORMAT, "%s: '%stop_p' has %d tables, expected %d, one for each number of 'until'",
                        r->path, r->where, tables, b->intervals);
    v = r->rc ? NULL : v->child;
    for (int i = 0; i < tables && !r->rc; i++, v = v->next) {
        snprintf(name, sizeof name, "top_p[%d]", i);
        read_rows(r, name, v, p, b->top_p + i * cells);
    }
}

static void read_budgets(reader *r, const cJSON *doc, hs_profile *p) {
    static const char *const others[][3] = {
        {"top_p", NULL}, {"top_p", "until", NULL}, {"top_p", "until", NULL}}; /* of each version */
    const cJSON *v;
    int n = array_of(r, doc, "budgets", HS_PROFILE_MAX_BUDGETS, &v);
    if (r->rc || (r->rc = add_budgets(p, n, r->err))) return;
    for (int i = 0; i < n && !r->rc; i++, v = v->next) {
        hs_profile_budget *b = &p->budgets[i];
        snprintf(r->where, sizeof r->where, "budgets[%d].", i);
        if (!cJSON_IsObject(v)) {
            r->where[0] = '\0';
            refuse(r, HS_EFORMAT, "budgets", v, "expected a list of objects");
            return;
        }
        read_fields(r, v, budget_fields, others[r->version - 1], b);
        double until[HS_MAX_INTERVALS];
        int intervals = read_until(r, v, until);
        if (r->rc || (r->rc = add_thresholds(p, intervals, b, r->err))) return;
        memcpy(b->until, until, (size_t)intervals * sizeof *until);
        read_top_p(r, v, p, b);
        for (int j = 0; j < i && !r->rc; j++)
            if (p->budgets[j].target == b->target)
                refuse(r, HS_EFORMAT, "target", item(r, v, "target"), "the same as that of budgets[%d]", j);
    }
    r->where[0] = '\0';
}

static void read_head(reader *r, const cJSON *doc) {
    const cJSON *v = item(r, doc, "format");
    if (!cJSON_IsString(v) || strcmp(v->valuestring, "haste-profile"))
        refuse(r, HS_EFORMAT, "format", v, "expected \"haste-profile\"");
    v = item(r, doc, "version");
    if (!is_step(v, 1, HS_PROFILE_VERSION, &r->version))
        refuse(r, HS_ENOTSUP, "version", v,
               "this program reads versions 1 to %d; take the program that the profile was made with",
               HS_PROFILE_VERSION);
}

int hs_profile_parse(const char *json, size_t len, const char *path, hs_profile **ret, hs_err *err) {
    static const char *const keys[] = {"format", "version", "made",        "model",   "made_for", "method",
                                       "reuse",  "dense",   "calibration", "budgets", NULL};
    reader r = {.path = path, .err = err};
    cJSON *doc = NULL;
    hs_profile *p = hs_calloc(1, sizeof *p);
    if (!p) return hs_fail(err, HS_ENOMEM, "%s: no memory for the profile", path);
    p->sigmas = -1;
    if (!(p->path = hs_strdup(path)))
        r.rc = hs_fail(err, HS_ENOMEM, "%s: no memory for the profile", path);
    else
        r.rc = hs_json_parse(json, len, path, &doc, err);
    if (!r.rc && !cJSON_IsObject(doc)) r.rc = hs_fail(err, HS_EFORMAT, "%s: not a JSON object", path);
    if (!r.rc) read_head(&r, doc); /* first: in another version everything else may differ */
    if (!r.rc) refuse_unknown(&r, doc, NULL, keys);
    read_object(&r, doc, "made", made_fields, NULL, p);
    read_object(&r, doc, "model", model_fields, NULL, p);
    read_object(&r, doc, "made_for", made_for_fields(r.version), NULL, p);
    read_variant(&r, doc, "method", method_fields, p);
    read_variant(&r, doc, "reuse", reuse_fields, p);
    read_object(&r, doc, "dense", warm_up_fields, NULL, p);
    read_calibration(&r, doc, p);
    read_budgets(&r, doc, p);
    if (!r.rc && p->policy.dense_steps > p->steps)
        r.rc = hs_fail(err, HS_EFORMAT, "%s: 'dense.steps' is %d, expected at most %d (made_for.steps)", path,
                       p->policy.dense_steps, p->steps);
    hs_err why = {0};
    if (!r.rc && hs_attn_policy_check(&p->policy, p->layers, p->heads, &why))
        r.rc = hs_fail(err, HS_EFORMAT, "%s: %s", path, why.msg);
    cJSON_Delete(doc);
    if (r.rc)
        hs_profile_free(p);
    else
        *ret = p;
    return r.rc;
}

int hs_profile_load(const char *path, hs_profile **ret, hs_err *err) {
    char *text;
    size_t len;
    int rc = hs_file_read(path, HS_PROFILE_MAX_BYTES, &text, &len, err);
    if (rc) return hs_fail_ctx(err, rc, "profile");
    rc = hs_profile_parse(text, len, path, ret, err);
    hs_free(text);
    return rc;
}
