/* Profiles: JSON to hs_profile and back, and from there to a policy.
 *
 * Every object of the format is one table of fields below. Reading, writing and the search for unknown keys all walk
 * the same tables, so that they cannot disagree. What a table cannot say (a row of thresholds per layer, fields that
 * depend on the method) is in parse_* beside it. The reader keeps the first error, so that parsing has no branches for
 * it.
 */
#include "profile.h"
#include "json.h"
#include "model.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the format ------------------------------------------------------------------------------------------------- */

/* TEXT: up to `high` bytes with the NUL. SHA: 64 lower-case hex digits. NAME: an int, one of `high` names. KNOWN: a
 * double that may be missing or null = NAN. SWITCH: an int, missing = false. */
typedef enum kind { INT, REAL, FLOAT, KNOWN, TEXT, SHA, NAME, SWITCH } kind;

typedef struct field {
    const char *key;
    kind kind;
    size_t at; /* in hs_profile, or in hs_profile_budget */
    double low, high;
    const char *(*name)(int);
} field;

static const char *method_name(int k) {
    return hs_method_name((hs_method)k);
}
static const char *reuse_name(int k) {
    return hs_reuse_name((hs_reuse_kind)k);
}
static const char *solver_name(int k) {
    return hs_solver_name((hs_solver_kind)k);
}

/* clang-format off */
#define AT(member) offsetof(hs_profile, member)
#define BUDGET_AT(member) offsetof(hs_profile_budget, member)
#define TEXT_AT(member) TEXT, AT(member), 0, sizeof((hs_profile *)0)->member
static const field made_fields[] = {{"by", TEXT_AT(made_by)}, {"at", TEXT_AT(made_at)}, {0}};
static const field model_fields[] = {
    {"name", TEXT_AT(model)},
    {"sha256", SHA, AT(sha256)},
    {"layers", INT, AT(layers), 1, HS_MAX_LAYERS},
    {"heads", INT, AT(heads), 1, HS_MAX_HEADS}, {0}};
static const field made_for_fields[] = {
    {"width", INT, AT(width), 16, 65536},
    {"height", INT, AT(height), 16, 65536},
    {"frames", INT, AT(frames), 1, 65536},
    {"steps", INT, AT(steps), 1, HS_MAX_STEPS},
    {"shift", REAL, AT(shift), 0, 100},
    {"guidance", REAL, AT(guidance), 0, 1000},
    {"solver", NAME, AT(solver), 0, HS_EULER + 1, solver_name}, {0}};

#define P(member) AT(policy.member)
#define METHOD {"name", NAME, P(method), 0, HS_METHOD_COUNT, method_name}
#define BLOCK {"block", INT, P(block), 64, 128}
#define MASK_SWITCHES {"seed_exact", SWITCH, P(seed_exact)}, {"compat", SWITCH, P(compat)}
static const field dense_fields[] = {METHOD, {0}};
static const field xattention_fields[] = {
    METHOD, BLOCK, {"stride", INT, P(stride), 1, 16}, {"compensate", SWITCH, P(compensate)}, MASK_SWITCHES, {0}};
static const field pooled_fields[] = {METHOD, BLOCK, {"compensate", SWITCH, P(compensate)}, MASK_SWITCHES, {0}};
static const field svg2_fields[] = {
    METHOD,
    {"q_clusters", INT, P(q_clusters), 1, 65535},
    {"k_clusters", INT, P(k_clusters), 1, 65535},
    {"iters_first", INT, P(iters_first), 1, 1000},
    {"iters_next", INT, P(iters_next), 1, 1000},
    {"min_share", FLOAT, P(min_share), 0, 1},
    MASK_SWITCHES, {0}};
static const field *const method_fields[HS_METHOD_COUNT] = {
    [HS_DENSE] = dense_fields, [HS_XATTENTION] = xattention_fields, [HS_SVG2] = svg2_fields, [HS_POOLED] = pooled_fields};

#define REUSE {"kind", NAME, P(reuse.kind), 0, HS_REUSE_FREEZE + 1, reuse_name}
static const field plain_reuse_fields[] = {REUSE, {0}};
static const field drift_fields[] = {
    REUSE,
    {"delta", FLOAT, P(reuse.delta), 0, 1e9},
    {"gate_low", FLOAT, P(reuse.gate_low), 0, 1},
    {"gate_high", FLOAT, P(reuse.gate_high), 0, 1}, {0}};
static const field interval_fields[] = {REUSE, {"interval", INT, P(reuse.interval), 1, 1000}, {0}};
static const field *const reuse_fields[] = {
    [HS_REUSE_NONE] = plain_reuse_fields, [HS_REUSE_DRIFT] = drift_fields, [HS_REUSE_RELATIVE] = drift_fields,
    [HS_REUSE_INTERVAL] = interval_fields, [HS_REUSE_FREEZE] = plain_reuse_fields};
static const field warm_up_fields[] = {
    {"steps", INT, P(dense_steps), 0, HS_MAX_STEPS}, {"layers", INT, P(dense_layers), 0, HS_MAX_LAYERS}, {0}};
static const field calibration_fields[] = {
    {"prompts_sha256", SHA, AT(prompts_sha256)},
    {"table_sha256", SHA, AT(table_sha256)},
    {"error", TEXT_AT(error_name)},
    {"seed", REAL, AT(seed), 0, HS_JSON_MAX_INT}, {0}};
static const field budget_fields[] = {
    {"target", REAL, BUDGET_AT(target), 0, 1},
    {"sparsity", KNOWN, BUDGET_AT(sparsity), 0, 1},
    {"error", KNOWN, BUDGET_AT(error), 0, 1e30},
    {"bound", KNOWN, BUDGET_AT(bound), -1e30, 1e30},
    {"gap", KNOWN, BUDGET_AT(gap), 0, 1e30},
    {"joint_error", KNOWN, BUDGET_AT(joint_error), 0, 1e30}, {0}};
/* clang-format on */

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
    static const char *const others[][3] = {{"top_p", NULL}, {"top_p", "until", NULL}}; /* of each version */
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
    if (!(p->path = hs_strdup(path)))
        r.rc = hs_fail(err, HS_ENOMEM, "%s: no memory for the profile", path);
    else
        r.rc = hs_json_parse(json, len, path, &doc, err);
    if (!r.rc && !cJSON_IsObject(doc)) r.rc = hs_fail(err, HS_EFORMAT, "%s: not a JSON object", path);
    if (!r.rc) read_head(&r, doc); /* first: in another version everything else may differ */
    if (!r.rc) refuse_unknown(&r, doc, NULL, keys);
    read_object(&r, doc, "made", made_fields, NULL, p);
    read_object(&r, doc, "model", model_fields, NULL, p);
    read_object(&r, doc, "made_for", made_for_fields, NULL, p);
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

/* ---- writing ---------------------------------------------------------------------------------------------------- */

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
    return version;
}

static char *text_of(const hs_profile *p) {
    cJSON *doc = cJSON_CreateObject(), *list;
    int ok = doc && cJSON_AddStringToObject(doc, "format", "haste-profile") &&
             cJSON_AddNumberToObject(doc, "version", version_of(p)) && write_object(doc, "made", made_fields, p) &&
             write_object(doc, "model", model_fields, p) && write_object(doc, "made_for", made_for_fields, p) &&
             write_object(doc, "method", method_fields[p->policy.method], p) &&
             write_object(doc, "reuse", reuse_fields[p->policy.reuse.kind], p) &&
             write_object(doc, "dense", warm_up_fields, p) && write_calibration(doc, p) &&
             (list = cJSON_AddArrayToObject(doc, "budgets"));
    for (int i = 0; i < p->n_budgets && ok; i++) ok = write_budget(list, p, &p->budgets[i]);
    char *text = ok ? cJSON_Print(doc) : NULL;
    cJSON_Delete(doc);
    return text;
}

/* 0, or errno */
static int write_all(int fd, const char *text) {
    for (size_t left = strlen(text); left;) {
        ssize_t n = write(fd, text, left);
        if (n < 0 && errno != EINTR) return errno;
        if (n > 0) text += n, left -= (size_t)n;
    }
    return 0;
}

static int replace_file(const char *path, const char *text, hs_err *err) {
    static _Atomic int serial;
    struct stat s;
    if (!stat(path, &s) && !S_ISREG(s.st_mode)) /* renaming over /dev/null would replace it */
        return hs_fail(err, HS_EIO, "cannot write %s: it exists and is not a regular file", path);
    size_t size = strlen(path) + 40;
    char *tmp = hs_alloc(size);
    if (!tmp) return hs_fail(err, HS_ENOMEM, "no memory to write %s", path);
    snprintf(tmp, size, "%s.tmp.%ld.%d", path, (long)getpid(), atomic_fetch_add(&serial, 1));
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666), why = fd < 0 ? errno : 0;
    if (!why) {
        if (!(why = write_all(fd, text)) && !(why = write_all(fd, "\n")) && fsync(fd)) why = errno;
        if (close(fd) && !why) why = errno;
        if (!why && rename(tmp, path)) why = errno;
        if (why) unlink(tmp);
    }
    hs_free(tmp);
    return why ? hs_fail(err, HS_EIO, "cannot write %s: %s", path, strerror(why)) : 0;
}

int hs_profile_save(const char *path, const hs_profile *p, hs_err *err) {
    char *text = text_of(p);
    hs_profile *again;
    if (!text) return hs_fail(err, HS_ENOMEM, "%s: no memory to write the profile", path);
    size_t len = strlen(text);
    int rc = len <= HS_PROFILE_MAX_BYTES
                 ? hs_profile_parse(text, len, path, &again, err)
                 : hs_fail(err, HS_EFORMAT, "%s: %zu bytes, a profile has at most %d", path, len, HS_PROFILE_MAX_BYTES);
    if (!rc) {
        hs_profile_free(again);
        rc = replace_file(path, text, err);
    }
    cJSON_free(text);
    return rc;
}
