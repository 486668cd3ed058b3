/* Machinery of the golden tests, see golden.h. The tests themselves are in golden_*.c. */
#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* fp32 bounds leave room for the order of sums (oneDNN, cuBLAS); bf16 has 8 significant bits per operand,
 * fp16 11. */
const gold_device gold_devices[] = {
    [GOLD_REF] = {"ref", "fp32", 1e-5},           [GOLD_CPU_FP32] = {"cpu", "fp32", 1e-4},
    [GOLD_CPU_BF16] = {"cpu", "bf16", 1e-2, 1},   [GOLD_CUDA_FP32] = {"cuda", "fp32", 1e-4},
    [GOLD_CUDA_BF16] = {"cuda", "bf16", 1e-2, 1}, [GOLD_CUDA_FP16] = {"cuda", "fp16", 2e-3, 1},
};

hs_device *gold_open(int which) {
    const gold_device *d = &gold_devices[which];
    hs_device_params p = {.name = d->name, .precision = d->precision, .threads = 1};
    hs_device *dev = NULL;
    hs_err err = {0};
    int rc = hs_device_open(&p, &dev, &err);
    if (rc == HS_ENODEV || rc == HS_ENOTSUP) cr_skip_test("%s %s: %s", d->name, d->precision, err.msg);
    cr_assert_eq(rc, 0, "%s %s: %s", d->name, d->precision, err.msg);
    return dev;
}

hs_device *gold_open_fast(void) {
    hs_device_params p = {.name = "cpu", .precision = "fp32", .threads = 1};
    hs_device *dev = NULL;
    hs_err err = {0};
    return hs_device_open(&p, &dev, &err) ? gold_open(GOLD_REF) : dev;
}

/* ---- cases --------------------------------------------------------------------------------------------------------
 */
/* A program that was carried to another machine is told where the folder is. */
static const char *gold_dir(void) {
    const char *dir = getenv("GOLDEN_DIR");
    return dir ? dir : GOLDEN_DIR;
}

const cJSON *gold_cases(const char *group) {
    static cJSON *all;
    hs_err err = {0};
    if (!all) all = gm_json_file(gold_dir(), "cases.json", &err);
    cr_assert(all != NULL, "%s", err.msg);
    const cJSON *ret = cJSON_GetObjectItemCaseSensitive(all, group);
    cr_assert(ret != NULL, "cases.json has no '%s'", group);
    return ret;
}

const cJSON *gold_case(const char *group, const char *name) {
    for (const cJSON *c = gold_first(gold_cases(group)); c; c = c->next)
        if (!strcmp(gold_str(c, "name"), name)) return c;
    cr_assert_fail("cases.json: no case '%s' in '%s'", name, group);
    return NULL;
}

const char *gold_str(const cJSON *o, const char *key) {
    const char *s = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, key));
    cr_assert(s != NULL, "cases.json: no string '%s'", key);
    return s;
}

double gold_num(const cJSON *o, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    cr_assert(cJSON_IsNumber(v), "cases.json: no number '%s'", key);
    return v->valuedouble;
}

/* ---- reference values ---------------------------------------------------------------------------------------------
 */
gold gold_load(const char *group, const gold_device *device) {
    gold g = {.device = device ? device->name : "", .tol = device ? device->tol : 0};
    hs_err err = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/data/%s.safetensors", gold_dir(), group);
    cr_assert_eq(hs_st_open(path, &g.st, &err), 0, "%s", err.msg);
    return g;
}

struct gold_copy {
    struct gold_copy *next;
    float x[];
};

void gold_close(gold *g) {
    while (g->copies) {
        struct gold_copy *c = g->copies;
        g->copies = c->next;
        free(c);
    }
    hs_st_close(g->st);
    cr_expect(g->compared > 0, "nothing was compared");
}

static const hs_st_tensor *find(gold *g, const char *key, hs_dtype type) {
    const hs_st_tensor *t = hs_st_find(g->st, key);
    cr_assert(t != NULL, "no golden tensor '%s': run make_golden.py", key);
    cr_assert_eq(t->dtype, type, "golden tensor '%s' has another type", key);
    return t;
}

/* safetensors promise no alignment: hence a copy */
const float *gold_plain(gold *g, const char *key, int64_t *ret_n) {
    const hs_st_tensor *t = find(g, key, HS_F32);
    struct gold_copy *c = malloc(sizeof *c + (size_t)t->numel * sizeof c->x[0]);
    cr_assert(c != NULL);
    memcpy(c->x, t->data, (size_t)t->numel * sizeof c->x[0]);
    c->next = g->copies;
    g->copies = c;
    *ret_n = t->numel;
    return c->x;
}

const uint8_t *gold_bytes(gold *g, const char *key, int64_t *ret_n) {
    const hs_st_tensor *t = find(g, key, HS_U8);
    *ret_n = t->numel;
    return t->data;
}

double gold_error(const float *x, const float *ref, int64_t n) {
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return INFINITY; /* a NaN must not pass as "not greater" */
        diff += ((double)x[i] - ref[i]) * ((double)x[i] - ref[i]);
        norm += (double)ref[i] * ref[i];
    }
    return sqrt(diff / (norm > 0 ? norm : 1));
}

/* Error at the positions that the reference kept. */
static double sampled_error(const char *key, const float *x, int64_t n, const float *ref, int64_t kept) {
    float *mine = malloc((size_t)kept * sizeof *mine);
    cr_assert(mine != NULL);
    for (int64_t j = 0; j < kept; j++) mine[j] = x[kept == n ? j : gm_sample_index(key, j, n)];
    double e = gold_error(mine, ref, kept);
    free(mine);
    return e;
}

double gold_compare(gold *g, const char *key, const float *x, int64_t n, double factor) {
    char name[256];
    int64_t kept, two, numel = 1;
    const float *ref = gold_plain(g, key, &kept);
    snprintf(name, sizeof name, "%s.shape", key);
    const hs_st_tensor *shape = find(g, name, HS_I32);
    for (int64_t i = 0; i < shape->numel; i++) {
        int32_t v;
        memcpy(&v, (const char *)shape->data + 4 * i, 4);
        numel *= v;
    }
    g->compared++;
    cr_expect_eq(n, numel, "%s on %s: %lld values, reference has %lld", key, g->device, (long long)n, (long long)numel);
    if (n != numel) return INFINITY;

    double e = sampled_error(key, x, n, ref, kept), mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) {
        mean += x[i];
        square += (double)x[i] * x[i];
    }
    snprintf(name, sizeof name, "%s.stat", key);
    const float *stat = gold_plain(g, name, &two);
    double rms = stat[1], em = fabs(mean / (double)n - stat[0]) / rms, es = fabs(sqrt(square / (double)n) - rms) / rms;
    double bound = factor * g->tol;
    if (getenv("GOLDEN_VERBOSE"))
        fprintf(stderr, "%-44s %-5s %.0e  error %.2e  mean %.1e  rms %.1e\n", key, g->device, bound, e, em, es);
    cr_expect(e <= bound, "%s on %s: relative error %.3g, bound %.3g", key, g->device, e, bound);
    cr_expect(em <= bound && es <= bound, "%s on %s: the samples agree but mean or rms do not (%.3g, %.3g; bound %.3g)",
              key, g->device, em, es, bound);
    return e;
}

void gold_frames(gold *g, const char *key, const uint8_t *rgb, int64_t n, double share, int most) {
    int64_t count, off = 0, worst = 0;
    const uint8_t *ref = gold_bytes(g, key, &count);
    g->compared++;
    cr_expect_eq(n, count, "%s on %s: %lld bytes, reference has %lld", key, g->device, (long long)n, (long long)count);
    if (n != count) return;
    for (int64_t i = 0; i < n; i++) {
        int d = abs((int)rgb[i] - (int)ref[i]);
        off += d != 0;
        worst = d > worst ? d : worst;
    }
    if (getenv("GOLDEN_VERBOSE"))
        fprintf(stderr, "%-44s %-5s differ %.4f, most %lld\n", key, g->device, (double)off / (double)n,
                (long long)worst);
    cr_expect((double)off <= share * (double)n && worst <= most, "%s on %s: %lld of %lld values differ, by up to %lld",
              key, g->device, (long long)off, (long long)n, (long long)worst);
}

/* ---- intermediate values --------------------------------------------------------------------------------------------
 */
void gold_tap(void *user, const char *name, const float *x, int ndim, const int64_t *shape) {
    gold_taps *t = user;
    gold_stage *s = NULL;
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= shape[i];
    for (int i = 0; i < t->n && !s; i++)
        if (!strcmp(t->stage[i].name, name)) s = &t->stage[i];
    if (!s) {
        cr_assert(t->n < (int)(sizeof t->stage / sizeof *t->stage), "more stages than expected");
        s = &t->stage[t->n++];
        snprintf(s->name, sizeof s->name, "%s", name);
    }
    s->x = realloc(s->x, (size_t)(s->n + n) * sizeof *x);
    cr_assert(s->x != NULL);
    memcpy(s->x + s->n, x, (size_t)n * sizeof *x);
    s->n += n;
}

void gold_compare_taps(gold *g, const char *prefix, gold_taps *t, double factor) {
    for (int i = 0; i < t->n; i++) {
        char key[128];
        snprintf(key, sizeof key, "%s%s", prefix, t->stage[i].name);
        gold_compare(g, key, t->stage[i].x, t->stage[i].n, factor);
        free(t->stage[i].x);
    }
    t->n = 0;
}

/* ---- models
 * ------------------------------------------------------------------------------------------------------------ */
/* Folders that exist now: a test that ends early (failed assertion, skip) leaves none behind either. */
static char folders[8][256];

static void remove_folders(void) {
    for (int i = 0; i < 8; i++)
        if (folders[i][0]) gold_model_done(folders[i]);
}

void gold_model(const char *model, const gm_options *opt, char ret_dir[256]) {
    static int registered;
    const char *tmp = getenv("TMPDIR");
    hs_err err = {0};
    int slot = 0;
    while (slot < 7 && folders[slot][0]) slot++;
    snprintf(ret_dir, 256, "%s/haste-golden-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    cr_assert(mkdtemp(ret_dir) != NULL, "cannot make a temporary folder like %s", ret_dir);
    memcpy(folders[slot], ret_dir, 256);
    if (!registered++) atexit(remove_folders);
    cr_assert_eq(gm_write_model(gold_dir(), model, ret_dir, opt, &err), 0, "%s", err.msg);
}

void gold_model_done(const char *dir) {
    gm_remove_tree(dir);
    for (int i = 0; i < 8; i++)
        if (!strcmp(folders[i], dir)) folders[i][0] = 0;
}

gm_list gold_tensors(const char *model, const char *part) {
    gm_list l = {0};
    hs_err err = {0};
    cJSON *config = gm_config(gold_dir(), model, &err);
    cr_assert(config && !gm_tensors(config, part, &l, &err), "%s", err.msg);
    cJSON_Delete(config);
    return l;
}

void gold_expect_moved(gold *g, const char *key, const char *tensor, const float *x, int64_t n, const float *ref,
                       int64_t kept) {
    double e = sampled_error(key, x, n, ref, kept);
    g->compared++;
    if (getenv("GOLDEN_VERBOSE")) fprintf(stderr, "%-50s x 1.1 -> %.2e\n", tensor, e);
    cr_expect(e > 3 * g->tol, "10%% more in %s moves %s by only %.2g: the golden test would not see an error there",
              tensor, key, e);
}
