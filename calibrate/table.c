/* Tables of measurements: lines of a journal to structs and back.
 *
 * Two lists of fields, identity_fields (what a measurement depends on) and record_fields (a probe, or a joint one), are
 * walked by reading and writing alike, which so cannot disagree. What the reader does not know it refuses: a member
 * that is silently ignored would merge measurements that are not alike. */
#include "table.h"
#include "json.h"
#include "model.h"
#include "sha256.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the format ---- */
enum { VERSION = 1, MAX_POOL = 1 << 20, MAX_LINE = 8192 };

/* MEASURED: a double of which nine digits are kept. SHA: 64 lower-case hex digits, HEX: 16 or none. NAME: an int, one
 * of `high` names. SEED: uint64_t up to 2^53. */
typedef enum kind { INT, REAL, MEASURED, FLOAT, TEXT, SHA, HEX, NAME, SWITCH, SEED } kind;

typedef struct field {
    const char *section, *key;
    kind kind;
    size_t at;
    double low, high;
    const char *(*name)(int);
    unsigned methods; /* bits of the hs_method that have it; 0 = all */
} field;

static const char *method_name(int k) {
    return hs_method_name((hs_method)k);
}
static const char *solver_name(int k) {
    return hs_solver_name((hs_solver_kind)k);
}

/* clang-format off */
#define AT(member) offsetof(hs_table_info, member)
#define P(member) AT(policy.member)
enum { BLOCKS = 1u << HS_XATTENTION | 1u << HS_POOLED, CLUSTERS = 1u << HS_SVG2 };
static const field identity_fields[] = {
    {"model", "sha256", SHA, AT(sha256)},
    {"model", "layers", INT, AT(layers), 1, HS_MAX_LAYERS},
    {"model", "heads", INT, AT(heads), 1, HS_MAX_HEADS},
    {"made_for", "width", INT, AT(width), 16, 65536},
    {"made_for", "height", INT, AT(height), 16, 65536},
    {"made_for", "frames", INT, AT(frames), 1, 65536},
    {"made_for", "steps", INT, AT(steps), 1, HS_MAX_STEPS},
    {"made_for", "shift", REAL, AT(shift), 0, 100},
    {"made_for", "guidance", REAL, AT(guidance), 0, 1000},
    {"made_for", "solver", NAME, AT(solver), 0, HS_EULER + 1, solver_name},
    {"made_for", "sigmas", INT, AT(sigmas), -1, 3},
    {"method", "name", NAME, P(method), 0, HS_METHOD_COUNT, method_name},
    {"method", "block", INT, P(block), 64, 128, NULL, BLOCKS},
    {"method", "stride", INT, P(stride), 1, 16, NULL, 1u << HS_XATTENTION},
    {"method", "q_clusters", INT, P(q_clusters), 1, 65535, NULL, CLUSTERS},
    {"method", "k_clusters", INT, P(k_clusters), 1, 65535, NULL, CLUSTERS},
    {"method", "iters_first", INT, P(iters_first), 1, 1000, NULL, CLUSTERS},
    {"method", "iters_next", INT, P(iters_next), 1, 1000, NULL, CLUSTERS}, /* for the profile; probes never use it */
    {"method", "min_share", FLOAT, P(min_share), 0, 1, NULL, CLUSTERS},
    {"method", "compensate", SWITCH, P(compensate), 0, 1, NULL, BLOCKS},
    {"method", "compat", SWITCH, P(compat), 0, 1},
    {"dense", "steps", INT, P(dense_steps), 0, HS_MAX_STEPS},
    {"dense", "layers", INT, P(dense_layers), 0, HS_MAX_LAYERS},
    {"calibration", "precision", TEXT, AT(precision), 0, sizeof((hs_table_info *)0)->precision},
    {"calibration", "prompts_sha256", SHA, AT(prompts_sha256)},
    {"calibration", "prompts", INT, AT(prompts), 1, MAX_POOL},
    {"calibration", "seed", SEED, AT(seed)}, {0}};
#undef P
#undef AT

/* A record of either kind as the reader sees it. */
typedef struct record {
    hs_probe p;
    hs_joint j;
} record;
#define PROBE(member) offsetof(record, p.member)
#define JOINT(member) offsetof(record, j.member)
#define MEASURES(section, at) \
    {section, "error", MEASURED, at(m.error), 0, 1e30}, \
    {section, "error_band", MEASURED, at(m.error_band), 0, 1e30}, \
    {section, "error_cond", MEASURED, at(m.error_cond), 0, 1e30}, \
    {section, "error_uncond", MEASURED, at(m.error_uncond), 0, 1e30}, \
    {section, "sparsity", MEASURED, at(m.sparsity), 0, 1}, \
    {section, "seconds", MEASURED, at(m.seconds), 0, 1e30}, {0}
static const field probe_fields[] = {
    {"probe", "prompt", INT, PROBE(prompt), 0, MAX_POOL},
    {"probe", "step", INT, PROBE(step), 0, HS_MAX_STEPS},
    {"probe", "interval", INT, PROBE(interval), 0, HS_PROFILE_MAX_INTERVALS},
    {"probe", "layer", INT, PROBE(layer), 0, HS_MAX_LAYERS},
    {"probe", "head", INT, PROBE(head), 0, HS_MAX_HEADS},
    {"probe", "candidate", INT, PROBE(candidate), 0, HS_PROFILE_MAX_CANDIDATES},
    MEASURES("probe", PROBE)};
static const field joint_fields[] = {
    {"joint", "prompt", INT, JOINT(prompt), 0, MAX_POOL},
    {"joint", "step", INT, JOINT(step), 0, HS_MAX_STEPS},
    {"joint", "interval", INT, JOINT(interval), 0, HS_PROFILE_MAX_INTERVALS},
    {"joint", "candidate", INT, JOINT(candidate), HS_JOINT_FLOOR, HS_PROFILE_MAX_CANDIDATES},
    {"joint", "config", HEX, JOINT(config)},
    {"joint", "text", HEX, JOINT(text)},
    MEASURES("joint", JOINT)};
/* clang-format on */

/* ---- writing ---- */

/* Text that grows in a fixed buffer; too small shows at the end. */
typedef struct text {
    char *at;
    size_t len, size;
} text;

HS_PRINTF(2, 3) static void put(text *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(t->at + t->len, t->size - t->len, fmt, ap);
    va_end(ap);
    t->len = n < 0 || t->len + (size_t)n >= t->size ? t->size - 1 : t->len + (size_t)n;
}

/* The fewest digits that give the same number back. */
static void put_number(text *t, double v, int is_float) {
    char s[40];
    int same = 0;
    for (int digits = 6; digits <= 17 && !same; digits++) {
        snprintf(s, sizeof s, "%.*g", digits, v);
        same = is_float ? strtof(s, NULL) == (float)v : strtod(s, NULL) == v;
    }
    put(t, "%s", s);
}

static void put_field(text *t, const field *f, const void *base) {
    const void *at = (const char *)base + f->at;
    put(t, "\"%s\":", f->key);
    switch (f->kind) {
    case INT: put(t, "%d", *(const int *)at); break;
    case REAL: put_number(t, *(const double *)at, 0); break;
    case MEASURED: put(t, "%.9g", *(const double *)at); break;
    case FLOAT: put_number(t, (double)*(const float *)at, 1); break;
    case TEXT:
    case SHA:
    case HEX: put(t, "\"%s\"", (const char *)at); break;
    case NAME: put(t, "\"%s\"", f->name(*(const int *)at)); break;
    case SWITCH: put(t, *(const int *)at ? "true" : "false"); break;
    case SEED: put(t, "%llu", (unsigned long long)*(const uint64_t *)at); break;
    }
}

/* The sections of a list of fields, without the braces around them. */
static void put_sections(text *t, const field *fields, const void *base, hs_method method, const char *leave_out) {
    const char *section = NULL;
    for (const field *f = fields; f->key; f++) {
        if ((f->methods && !(f->methods >> method & 1)) || !strcmp(f->key, leave_out)) continue;
        if (!section || strcmp(section, f->section)) {
            put(t, "%s\"%s\":{", section ? "}," : "", f->section);
            section = f->section;
        } else {
            put(t, ",");
        }
        put_field(t, f, base);
    }
    put(t, "}");
}

static int identity_text(const hs_table_info *i, char ret[MAX_LINE], hs_err *err) {
    text t = {ret, 0, MAX_LINE};
    put(&t, "{\"format\":\"haste-table\",\"version\":%d,", VERSION);
    put_sections(&t, identity_fields, i, i->policy.method, "");
    put(&t, ",\"intervals\":[");
    for (int k = 0; k < i->n_intervals; k++) put(&t, "%s[%d,%d]", k ? "," : "", i->intervals[k][0], i->intervals[k][1]);
    put(&t, "],\"candidates\":[");
    for (int k = 0; k < i->n_candidates; k++) {
        if (k) put(&t, ",");
        put_number(&t, i->candidates[k], 0);
    }
    put(&t, "]}");
    return t.len + 1 < t.size ? 0
                              : hs_fail(err, HS_EINVAL, "the identity of the table has more than %d bytes", MAX_LINE);
}

static void record_text(const field *fields, const record *r, const char *leave_out, char ret[MAX_LINE]) {
    text t = {ret, 0, MAX_LINE};
    put(&t, "{");
    put_sections(&t, fields, r, HS_DENSE, leave_out);
    put(&t, "}");
}

/* ---- reading ---- */

static int is_hex(const char *s, size_t digits) {
    return strlen(s) == digits && strspn(s, "0123456789abcdef") == digits;
}

static int read_name(const field *f, const char *s, int *ret) {
    for (int k = 0; k < (int)f->high; k++)
        if (!strcmp(f->name(k), s)) {
            *ret = k;
            return 1;
        }
    return 0;
}

/* 1 if v is what the field wants; stored. */
static int read_value(const field *f, const cJSON *v, void *base) {
    void *at = (char *)base + f->at;
    const double x = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    int64_t n;
    switch (f->kind) {
    case INT:
        if (!(x >= f->low && x <= f->high && x == floor(x))) return 0;
        *(int *)at = (int)x;
        return 1;
    case REAL:
    case MEASURED:
    case FLOAT:
        if (!(x >= f->low && x <= f->high)) return 0;
        if (f->kind == FLOAT)
            *(float *)at = (float)x;
        else
            *(double *)at = x;
        return 1;
    case TEXT:
        if (!cJSON_IsString(v) || strlen(v->valuestring) >= (size_t)f->high || strpbrk(v->valuestring, "\"\\"))
            return 0;
        strcpy(at, v->valuestring);
        return 1;
    case SHA:
    case HEX:
        if (!cJSON_IsString(v)) return 0;
        if (!is_hex(v->valuestring, f->kind == SHA ? 64 : 16) && (f->kind == SHA || *v->valuestring)) return 0;
        strcpy(at, v->valuestring);
        return 1;
    case NAME: return cJSON_IsString(v) && read_name(f, v->valuestring, at);
    case SWITCH:
        if (!cJSON_IsBool(v)) return 0;
        *(int *)at = cJSON_IsTrue(v);
        return 1;
    case SEED:
        if (!hs_json_is_count(v, &n)) return 0;
        *(uint64_t *)at = (uint64_t)n;
        return 1;
    }
    return 0;
}

/* Every field from its section, and nothing else in those sections. Fields of a method come after its name. */
static int read_sections(const cJSON *doc, const field *fields, void *base, const hs_method *method, hs_err *err) {
    const cJSON *section = NULL;
    int members = 0;
    for (const field *f = fields;; f++) {
        if (section && (!f->key || strcmp(section->string, f->section))) { /* the section is complete */
            if (cJSON_GetArraySize(section) != members)
                return hs_fail(err, HS_EFORMAT, "%s has members that version %d does not know", section->string,
                               VERSION);
            section = NULL;
        }
        if (!f->key) return 0;
        if (method && f->methods && !(f->methods >> *method & 1)) continue;
        if (!section) {
            section = cJSON_GetObjectItemCaseSensitive(doc, f->section);
            if (!cJSON_IsObject(section)) return hs_fail(err, HS_EFORMAT, "%s is missing", f->section);
            members = 0;
        }
        const cJSON *v = cJSON_GetObjectItemCaseSensitive(section, f->key);
        if (!v) return hs_fail(err, HS_EFORMAT, "%s.%s is missing", f->section, f->key);
        if (!read_value(f, v, base)) return hs_fail(err, HS_EFORMAT, "%s.%s is out of range", f->section, f->key);
        members++;
    }
}

static int read_lists(const cJSON *doc, hs_table_info *i, hs_err *err) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(doc, "intervals"), *v;
    int n = cJSON_GetArraySize(list), k = 0;
    if (!cJSON_IsArray(list) || n < 1 || n > HS_PROFILE_MAX_INTERVALS)
        return hs_fail(err, HS_EFORMAT, "intervals: 1 to %d are needed", HS_PROFILE_MAX_INTERVALS);
    i->n_intervals = n;
    cJSON_ArrayForEach(v, list) {
        int64_t first, last;
        if (!cJSON_IsArray(v) || cJSON_GetArraySize(v) != 2 || !hs_json_is_count(v->child, &first) ||
            !hs_json_is_count(v->child->next, &last) || first > last || last >= i->steps)
            return hs_fail(err, HS_EFORMAT, "interval %d is not [first, last] step of %d", k, i->steps);
        i->intervals[k][0] = (int)first;
        i->intervals[k++][1] = (int)last;
    }
    list = cJSON_GetObjectItemCaseSensitive(doc, "candidates");
    n = cJSON_GetArraySize(list), k = 0;
    if (!cJSON_IsArray(list) || n < 1 || n > HS_PROFILE_MAX_CANDIDATES)
        return hs_fail(err, HS_EFORMAT, "candidates: 1 to %d are needed", HS_PROFILE_MAX_CANDIDATES);
    i->n_candidates = n;
    cJSON_ArrayForEach(v, list) {
        if (!cJSON_IsNumber(v) || !(v->valuedouble > 0 && v->valuedouble < 1))
            return hs_fail(err, HS_EFORMAT, "candidate %d is no number between 0 and 1", k);
        i->candidates[k++] = v->valuedouble;
    }
    return 0;
}

static int read_identity(const char *json, hs_table_info *ret, hs_err *err) {
    enum { MEMBERS = 9 }; /* format, version, five sections, two lists */
    hs_table_info i = {.policy = hs_attn_policy_default(HS_DENSE)};
    cJSON *doc = NULL;
    int r = hs_json_parse(json, strlen(json), "the first line", &doc, err);
    if (r) return r;
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(doc, "format"),
                *version = cJSON_GetObjectItemCaseSensitive(doc, "version"),
                *method = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(doc, "method"), "name");
    int found = HS_DENSE;
    if (!cJSON_IsString(format) || strcmp(format->valuestring, "haste-table"))
        r = hs_fail(err, HS_EFORMAT, "the first line is not that of a haste-table");
    else if (!cJSON_IsNumber(version) || version->valuedouble != VERSION)
        r = hs_fail(err, HS_ENOTSUP, "a haste-table of another version than %d: use the program that wrote it",
                    VERSION);
    else if (!cJSON_IsString(method) ||
             !read_name(&(field){.high = HS_METHOD_COUNT, .name = method_name}, method->valuestring, &found) ||
             found == HS_DENSE)
        r = hs_fail(err, HS_EFORMAT, "method.name is none of the sparse methods");
    else if (cJSON_GetArraySize(doc) != MEMBERS)
        r = hs_fail(err, HS_EFORMAT, "the first line has %d members, expected %d", cJSON_GetArraySize(doc), MEMBERS);
    if (!r) {
        hs_method m = (hs_method)found;
        i.policy = hs_attn_policy_default(m);
        i.policy.reuse.kind = HS_REUSE_NONE;
        r = read_sections(doc, identity_fields, &i, &m, err);
    }
    if (!r) r = read_lists(doc, &i, err);
    if (!r) r = hs_attn_policy_check(&i.policy, i.layers, i.heads, err);
    cJSON_Delete(doc);
    if (!r) *ret = i;
    return r;
}

/* ---- a table in memory ---- */

typedef struct builder {
    hs_table *t;
    int64_t cap_probes, cap_joints;
} builder;

/* Room for one more of `size` bytes. */
static int grow(void **array, int64_t n, int64_t *cap, size_t size, hs_err *err) {
    if (n < *cap) return 0;
    int64_t more = *cap ? *cap * 2 : 256;
    void *bigger = hs_alloc((size_t)more * size);
    if (!bigger) return hs_fail(err, HS_ENOMEM, "no memory for %lld measurements", (long long)more);
    if (n) memcpy(bigger, *array, (size_t)n * size);
    hs_free(*array);
    *array = bigger;
    *cap = more;
    return 0;
}

static int in_interval(const hs_table_info *i, int interval, int step) {
    return interval < i->n_intervals && step >= i->intervals[interval][0] && step <= i->intervals[interval][1];
}

static int add_probe(builder *b, const hs_probe *p, hs_err *err) {
    hs_table *t = b->t;
    const hs_table_info *i = &t->info;
    if (p->prompt >= i->prompts || !in_interval(i, p->interval, p->step) || p->layer >= i->layers ||
        p->head >= i->heads || p->candidate >= i->n_candidates)
        return hs_fail(err, HS_EFORMAT, "a probe outside of the table's layers, heads, candidates, steps or prompts");
    int r = grow((void **)&t->probes, t->n_probes, &b->cap_probes, sizeof *p, err);
    if (!r) t->probes[t->n_probes++] = *p;
    return r;
}

static int add_joint(builder *b, const hs_joint *j, hs_err *err) {
    hs_table *t = b->t;
    if (!in_interval(&t->info, j->interval, j->step) || j->candidate >= t->info.n_candidates ||
        (j->candidate == HS_JOINT_CONFIG) != (*j->config != '\0'))
        return hs_fail(err, HS_EFORMAT, "a joint measurement outside of the table's candidates and steps");
    int r = grow((void **)&t->joints, t->n_joints, &b->cap_joints, sizeof *j, err);
    if (!r) t->joints[t->n_joints++] = *j;
    return r;
}

/* The line that a writer leaves when it begins: for people. */
static int read_writer(const cJSON *w, hs_table_info *i, hs_err *err) {
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(w, "model"),
                *device = cJSON_GetObjectItemCaseSensitive(w, "device");
    if (!cJSON_IsString(model) || !cJSON_IsString(device) || cJSON_GetArraySize(w) != 2)
        return hs_fail(err, HS_EFORMAT, "writer must have model and device");
    snprintf(i->model, sizeof i->model, "%s", model->valuestring);
    snprintf(i->device, sizeof i->device, "%s", device->valuestring);
    return 0;
}

static int read_line(void *user, const char *json, size_t len, int number, hs_err *err) {
    builder *b = user;
    record rec = {0};
    cJSON *doc = NULL;
    int r = hs_json_parse(json, len, "this line", &doc, err);
    (void)number;
    if (r) return r;
    const char *what = cJSON_IsObject(doc) && doc->child && !doc->child->next ? doc->child->string : "";
    if (!strcmp(what, "probe")) {
        if (!(r = read_sections(doc, probe_fields, &rec, NULL, err))) r = add_probe(b, &rec.p, err);
    } else if (!strcmp(what, "joint")) {
        if (!(r = read_sections(doc, joint_fields, &rec, NULL, err))) r = add_joint(b, &rec.j, err);
    } else if (!strcmp(what, "writer")) {
        r = read_writer(doc->child, &b->t->info, err);
    } else {
        r = hs_fail(err, HS_EFORMAT, "neither a probe nor a joint measurement nor a writer");
    }
    cJSON_Delete(doc);
    return r;
}

static int measured_order(const hs_measured *a, const hs_measured *b) {
    const double x[] = {a->error, a->error_band, a->error_cond, a->error_uncond, a->sparsity, a->seconds},
                 y[] = {b->error, b->error_band, b->error_cond, b->error_uncond, b->sparsity, b->seconds};
    for (int k = 0; k < 6; k++)
        if (x[k] != y[k]) return x[k] < y[k] ? -1 : 1;
    return 0;
}

static int ints_order(const int *a, const int *b, int n) {
    for (int k = 0; k < n; k++)
        if (a[k] != b[k]) return a[k] < b[k] ? -1 : 1;
    return 0;
}

static int probe_key(const hs_probe *a, const hs_probe *b) {
    return ints_order((int[]){a->layer, a->head, a->candidate, a->interval, a->prompt, a->step},
                      (int[]){b->layer, b->head, b->candidate, b->interval, b->prompt, b->step}, 6);
}

static int joint_key(const hs_joint *a, const hs_joint *b) {
    int c = ints_order(&a->candidate, &b->candidate, 1);
    if (c || (c = strcmp(a->config, b->config))) return c;
    if ((c = ints_order((int[]){a->interval, a->prompt}, (int[]){b->interval, b->prompt}, 2))) return c;
    return (c = strcmp(a->text, b->text)) ? c : ints_order(&a->step, &b->step, 1);
}

/* Values decide among duplicates, so that the order of the files has no influence on which one stays. */
static int probe_order(const void *a, const void *b) {
    int c = probe_key(a, b);
    return c ? c : measured_order(&((const hs_probe *)a)->m, &((const hs_probe *)b)->m);
}

static int joint_order(const void *a, const void *b) {
    int c = joint_key(a, b);
    return c ? c : measured_order(&((const hs_joint *)a)->m, &((const hs_joint *)b)->m);
}

/* Sorts, drops duplicates, hashes. */
static int finish(hs_table *t, hs_err *err) {
    char line[MAX_LINE];
    hs_sha256 h;
    int r = identity_text(&t->info, line, err);
    if (r) return r;
    hs_sha256_init(&h);
    hs_sha256_add(&h, line, strlen(line));
    int64_t n = 0;
    if (t->n_probes) qsort(t->probes, (size_t)t->n_probes, sizeof *t->probes, probe_order);
    for (int64_t k = 0; k < t->n_probes; k++)
        if (!n || probe_key(&t->probes[n - 1], &t->probes[k])) {
            record_text(probe_fields, &(record){.p = t->probes[k]}, "seconds", line);
            hs_sha256_add(&h, line, strlen(line));
            t->probes[n++] = t->probes[k];
        }
    t->n_probes = n;
    n = 0;
    if (t->n_joints) qsort(t->joints, (size_t)t->n_joints, sizeof *t->joints, joint_order);
    for (int64_t k = 0; k < t->n_joints; k++)
        if (!n || joint_key(&t->joints[n - 1], &t->joints[k])) {
            record_text(joint_fields, &(record){.j = t->joints[k]}, "seconds", line);
            hs_sha256_add(&h, line, strlen(line));
            t->joints[n++] = t->joints[k];
        }
    t->n_joints = n;
    hs_sha256_done(&h, t->sha256);
    return 0;
}

void hs_table_free(hs_table *t) {
    if (!t) return;
    hs_free(t->probes);
    hs_free(t->joints);
    hs_free(t);
}

int hs_table_load(int n, const char *const *paths, hs_table **ret, hs_err *err) {
    builder b = {.t = hs_calloc(1, sizeof *b.t)};
    char *first = NULL, *identity;
    int r = b.t ? 0 : hs_fail(err, HS_ENOMEM, "no memory for a table");
    for (int k = 0; k < n && !r; k++) { /* twice: the lines are checked against the identity */
        if ((r = hs_journal_read(paths[k], &identity, NULL, NULL, err))) break;
        if (k) {
            hs_free(identity);
        } else {
            first = identity;
            if ((r = read_identity(first, &b.t->info, err))) hs_fail_ctx(err, r, "%s", paths[k]);
        }
        if (!r) r = hs_journal_peek(paths[k], first, read_line, &b, err);
    }
    hs_free(first);
    if (!r) r = finish(b.t, err);
    if (r)
        hs_table_free(b.t);
    else
        *ret = b.t;
    return r;
}

/* ---- the writer ---- */

struct hs_table_writer {
    hs_journal *journal;
    hs_table *so_far;
};

/* Who is writing: names may hold anything. */
static int add_writer(hs_table_writer *w, const hs_table_info *info, hs_err *err) {
    cJSON *doc = cJSON_CreateObject(), *to = doc ? cJSON_AddObjectToObject(doc, "writer") : NULL;
    char *line =
        to && cJSON_AddStringToObject(to, "model", info->model) && cJSON_AddStringToObject(to, "device", info->device)
            ? cJSON_PrintUnformatted(doc)
            : NULL;
    int r = line ? hs_journal_append(w->journal, line, err) : hs_fail(err, HS_ENOMEM, "no memory for a table");
    cJSON_free(line);
    cJSON_Delete(doc);
    return r;
}

/* The text of an identity that can be read again, and an empty table of it. */
static int begin_table(const hs_table_info *info, char identity[MAX_LINE], builder *b, hs_err *err) {
    hs_table_info read;
    int r = identity_text(info, identity, err);
    if (r || (r = read_identity(identity, &read, err))) return r;
    if (!(b->t = hs_calloc(1, sizeof *b->t))) return hs_fail(err, HS_ENOMEM, "no memory for a table");
    b->t->info = *info;
    *b->t->info.device = *b->t->info.model = '\0'; /* until a line names them */
    return 0;
}

int hs_table_peek(const char *path, const hs_table_info *info, hs_table **ret, hs_err *err) {
    char identity[MAX_LINE];
    builder b = {0};
    int r = begin_table(info, identity, &b, err);
    if (r || (r = hs_journal_peek(path, identity, read_line, &b, err)) || (r = finish(b.t, err)))
        hs_table_free(b.t);
    else
        *ret = b.t;
    return r;
}

int hs_table_open(const char *path, const hs_table_info *info, hs_table_writer **ret, hs_err *err) {
    char identity[MAX_LINE];
    builder b = {0};
    hs_table_writer *w = hs_calloc(1, sizeof *w);
    int r = w ? begin_table(info, identity, &b, err) : hs_fail(err, HS_ENOMEM, "no memory for a table");
    if (r || (r = hs_journal_open(path, identity, read_line, &b, &w->journal, err))) goto out;
    hs_table_info *was = &b.t->info;
    const int known = !strcmp(was->device, info->device) && !strcmp(was->model, info->model);
    *was = *info;
    if (!(r = finish(b.t, err)) && !known) r = add_writer(w, info, err);
out:
    if (w) w->so_far = b.t;
    if (r)
        hs_table_close(w, NULL);
    else
        *ret = w;
    return r;
}

const hs_table *hs_table_so_far(const hs_table_writer *w) {
    return w->so_far;
}

/* A velocity with NaN or Inf gives such an error. */
static int check_measured(const hs_measured *m, hs_err *err) {
    if (isfinite(m->error) && isfinite(m->error_band) && isfinite(m->error_cond) && isfinite(m->error_uncond)) return 0;
    return hs_fail(err, HS_ENUMERIC, "the velocity holds NaN or Inf; try another precision");
}

int hs_table_add_probe(hs_table_writer *w, const hs_probe *p, hs_err *err) {
    char line[MAX_LINE];
    int r = check_measured(&p->m, err);
    if (r) return hs_fail_ctx(err, r, "layer %d, head %d, step %d", p->layer, p->head, p->step);
    record_text(probe_fields, &(record){.p = *p}, "", line);
    return hs_journal_append(w->journal, line, err);
}

int hs_table_add_joint(hs_table_writer *w, const hs_joint *j, hs_err *err) {
    char line[MAX_LINE];
    int r = check_measured(&j->m, err);
    if (r) return hs_fail_ctx(err, r, "all heads sparse, step %d", j->step);
    record_text(joint_fields, &(record){.j = *j}, "", line);
    return hs_journal_append(w->journal, line, err);
}

int hs_table_close(hs_table_writer *w, hs_err *err) {
    if (!w) return 0;
    int r = hs_journal_close(w->journal, err);
    hs_table_free(w->so_far);
    hs_free(w);
    return r;
}
