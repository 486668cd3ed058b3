/* profile.c, profile_use.c: every refusal, what is read and written, budgets, step fractions, failing memory. */
#include "util.h"
#include "profile.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(profile, .fini = scratch_remove);

static const char *sample(const char *name) {
    static char buf[4096];
    char path[512];
    snprintf(path, sizeof path, "%s/%s", PROFILE_DIR, name);
    FILE *f = fopen(path, "r");
    cr_assert_not_null(f, "%s", path);
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    cr_assert(feof(f) && !fclose(f), "%s is too long for the test", path);
    buf[n] = 0;
    return buf;
}

/* What was saved begins with this version. */
static void has_version(const char *path, int version) {
    char *text, want[32];
    size_t len;
    snprintf(want, sizeof want, "\"version\":\t%d,", version);
    cr_assert_eq(hs_file_read(path, 1 << 20, &text, &len, NULL), 0);
    cr_assert(strstr(text, want), "%.80s", text);
    hs_free(text);
}

static hs_profile *good(const char *json) {
    hs_profile *p = NULL;
    hs_err err = {0};
    int rc = hs_profile_parse(json, strlen(json), "p.json", &p, &err);
    cr_assert_eq(rc, 0, "refused: %s", err.msg);
    return p;
}

/* Refused with this code; the message names the file and holds both parts. */
static void refused(const char *json, size_t len, int code, const char *part, const char *other) {
    hs_profile *p = (hs_profile *)&len; /* untouched */
    hs_err err = {0};
    int64_t live = hs_alloc_live();
    int rc = hs_profile_parse(json, len, "p.json", &p, &err);
    cr_assert_eq(rc, code, "%.60s... gave %d, not %d: %s", json, rc, code, err.msg);
    cr_assert_eq(err.code, code);
    cr_assert_eq((void *)p, (void *)&len);
    cr_assert(!strncmp(err.msg, "p.json: ", 8), "%s", err.msg);
    cr_assert(strstr(err.msg, part), "\"%s\" lacks \"%s\"", err.msg, part);
    cr_assert(strstr(err.msg, other), "\"%s\" lacks \"%s\"", err.msg, other);
    cr_assert_eq(hs_alloc_live(), live);
}

typedef struct change {
    const char *from, *to;
    int code;
    const char *part, *other;
} change;

static void all_refused(const char *name, const change *c, size_t n) {
    char json[4096];
    snprintf(json, sizeof json, "%s", sample(name));
    for (size_t i = 0; i < n; i++) {
        const char *t = edit(json, c[i].from, c[i].to);
        refused(t, strlen(t), c[i].code, c[i].part, c[i].other);
    }
}
#define ALL_REFUSED(name, list) all_refused(name, list, sizeof list / sizeof *list)

/* ---- reading ---------------------------------------------------------------------------------------------------- */

Test(profile, every_field_is_read) {
    hs_profile *p = good(sample("xattention.json"));
    cr_assert_str_eq(p->path, "p.json");
    cr_assert_str_eq(p->made_by, "haste-calibrate 0.1.0");
    cr_assert_str_eq(p->made_at, "2026-11-22T19:00:00Z");
    cr_assert_str_eq(p->model, "tiny");
    cr_assert_str_eq(p->sha256, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
    cr_assert(p->layers == 2 && p->heads == 2);
    cr_assert(p->width == 832 && p->height == 480 && p->frames == 81 && p->steps == 50);
    cr_assert(p->shift == 3 && p->guidance == 5 && p->solver == HS_UNIPC);
    const hs_attn_policy *a = &p->policy;
    cr_assert(a->method == HS_XATTENTION && a->block == 128 && a->stride == 16);
    cr_assert(!a->top_p_heads && !a->compat && !a->compensate && !a->seed_exact);
    cr_assert(a->reuse.kind == HS_REUSE_DRIFT && a->reuse.delta == 30);
    cr_assert(a->reuse.gate_low == 0.4f && a->reuse.gate_high == 0.8f);
    cr_assert(a->dense_steps == 5 && a->dense_layers == 0);
    cr_assert(p->has_calibration && p->n_intervals == 4 && p->n_candidates == 3 && p->seed == 7);
    cr_assert(p->intervals[3][0] == 37 && p->intervals[3][1] == 49 && p->candidates[1] == 0.9);
    cr_assert_str_eq(p->error_name, "band-weighted");
    cr_assert(p->prompts_sha256[63] == 'a' && p->table_sha256[0] == 'b');
    cr_assert_eq(p->n_budgets, 3);
    const hs_profile_budget *b = p->budgets;
    cr_assert(b[0].target == 0.74 && b[0].sparsity == 0.7413 && b[0].error == 0.0123 && b[0].bound == 0.0122);
    cr_assert(b[0].gap == 0.0081 && b[0].joint_error == 0.015);
    cr_assert(isnan(b[1].bound) && isnan(b[1].gap) && isnan(b[1].joint_error), "null is not known");
    cr_assert(b[0].top_p[0] == 0.9f && b[0].top_p[1] == 0.95f && b[0].top_p[2] == 0.85f && b[0].top_p[3] == 0.9f);
    cr_assert(b[1].top_p[0] == 1 && b[2].top_p[3] == 0.9f);
    hs_profile_free(p);

    p = good(sample("svg2.json"));
    a = &p->policy;
    cr_assert(a->method == HS_SVG2 && a->q_clusters == 300 && a->k_clusters == 1000 && a->iters_first == 50);
    cr_assert(a->iters_next == 2 && a->min_share == 0.1f && a->dense_layers == 1);
    cr_assert(a->reuse.kind == HS_REUSE_INTERVAL && a->reuse.interval == 4 && !p->has_calibration);
    hs_profile_free(p);

    p = good(sample("pooled.json"));
    a = &p->policy;
    cr_assert(a->method == HS_POOLED && a->block == 64 && a->compensate && a->seed_exact && !a->compat);
    cr_assert(a->reuse.kind == HS_REUSE_FREEZE && a->dense_steps == 1);
    hs_profile_free(p);
    hs_profile_free(NULL);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(profile, what_may_be_left_out) {
    hs_profile *p = good(edit(sample("pooled.json"), "  \"calibration\": null,\n", ""));
    cr_assert(!p->has_calibration);
    hs_profile_free(p);
    p = good(edit(sample("pooled.json"),
                  "\"sparsity\": null, \"error\": null, \"bound\": null, \"gap\": null, "
                  "\"joint_error\": null, ",
                  ""));
    cr_assert(isnan(p->budgets[0].sparsity) && isnan(p->budgets[0].error));
    hs_profile_free(p);
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

Test(profile, other_formats_and_versions) {
    static const change list[] = {
        {"\"haste-profile\"", "\"haste-table\"", HS_EFORMAT, "'format' is \"haste-table\"",
         "expected \"haste-profile\""},
        {"\"haste-profile\"", "7", HS_EFORMAT, "'format' is 7", "expected \"haste-profile\""},
        {"\"format\": \"haste-profile\",", "", HS_EFORMAT, "'format' is missing", "expected"},
        {"\"version\": 1,", "\"version\": 0,", HS_ENOTSUP, "'version' is 0", "reads versions 1 to 3"},
        {"\"version\": 1,", "\"version\": 1.5,", HS_ENOTSUP, "'version' is 1.5", "reads versions 1 to 3"},
        {"\"version\": 1,", "\"version\": \"1\",", HS_ENOTSUP, "'version' is \"1\"", "reads versions 1 to 3"},
        {"\"version\": 1,", "", HS_ENOTSUP, "'version' is missing", "reads versions 1 to 3"},
        /* the version first: the rest of another version need not be known */
        {"\"version\": 1,", "\"version\": 4, \"step_tables\": [],", HS_ENOTSUP, "'version' is 4",
         "reads versions 1 to 3"},
    };
    ALL_REFUSED("xattention.json", list);
}

Test(profile, unknown_fields_are_not_skipped) {
    static const change list[] = {
        {"\"version\": 1,", "\"version\": 1, \"step_tables\": [],", HS_ENOTSUP, "'step_tables'", "version 1"},
        {"\"layers\": 2,", "\"layers\": 2, \"dim\": 3,", HS_ENOTSUP, "'model.dim'", "version 1"},
        {"\"delta\": 30,", "\"delta\": 30, \"interval\": 3,", HS_ENOTSUP, "'reuse.interval'", "version 1"},
        {"\"stride\": 16", "\"stride\": 16, \"q_clusters\": 3", HS_ENOTSUP, "'method.q_clusters'", "version 1"},
        {"{\"steps\": 5,", "{\"steps\": 5, \"heads\": 1,", HS_ENOTSUP, "'dense.heads'", "version 1"},
        {"\"seed\": 7,", "\"seed\": 7, \"sead\": 7,", HS_ENOTSUP, "'calibration.sead'", "version 1"},
        {"{\"target\": 0.5,", "{\"target\": 0.5, \"until\": [1],", HS_ENOTSUP, "'budgets[1].until'", "version 1"},
        {"{\"target\": 0.5,", "{\"target\": 0.5, \"top_k\": [],", HS_ENOTSUP, "'budgets[1].top_k'", "version 1"},
        {"\"by\":", "\"By\":", HS_ENOTSUP, "'made.By'", "version 1"},
    };
    ALL_REFUSED("xattention.json", list);
}

Test(profile, wrong_values) {
    static const change list[] = {
        {"\"layers\": 2,", "\"layers\": 0,", HS_EFORMAT, "'model.layers' is 0", "an integer of 1 to 128"},
        {"\"layers\": 2,", "\"layers\": 1e9,", HS_EFORMAT, "'model.layers' is", "an integer of 1 to 128"},
        {"\"heads\": 2}", "\"heads\": 129}", HS_EFORMAT, "'model.heads' is 129", "an integer of 1 to 128"},
        {"\"heads\": 2}", "\"heads\": 1.5}", HS_EFORMAT, "'model.heads' is 1.5", "an integer of 1 to 128"},
        {"\"heads\": 2}", "\"heads\": null}", HS_EFORMAT, "'model.heads' is missing", "an integer of 1 to 128"},
        {"\"name\": \"tiny\"", "\"name\": 7", HS_EFORMAT, "'model.name' is 7", "expected a text"},
        {"0123456789abcdef0", "0123456789ABCDEF0", HS_EFORMAT, "'model.sha256'", "64 lower-case hexadecimal"},
        {"0123456789abcdef0", "0123456789abcde0", HS_EFORMAT, "'model.sha256'", "64 lower-case hexadecimal"},
        {"\"model\": {", "\"model\": [], \"x\": {", HS_ENOTSUP, "'x'", "version 1"},
        {"\"dense\": {\"steps\": 5, \"layers\": 0}", "\"dense\": 5", HS_EFORMAT, "'dense' is 5", "expected an object"},
        {"  \"dense\": {\"steps\": 5, \"layers\": 0},\n", "", HS_EFORMAT, "'dense' is missing", "expected an object"},
        {"{\"steps\": 5,", "{\"steps\": -1,", HS_EFORMAT, "'dense.steps' is -1", "an integer of 0 to 1000"},
        {"{\"steps\": 5,", "{\"steps\": 51,", HS_EFORMAT, "'dense.steps' is 51", "at most 50"},
        {"\"layers\": 0}", "\"layers\": 3}", HS_EFORMAT, "dense layers is 3", "0 to 2"},
        {"\"width\": 832", "\"width\": \"832\"", HS_EFORMAT, "'made_for.width' is \"832\"", "an integer"},
        {"\"steps\": 50", "\"steps\": 0", HS_EFORMAT, "'made_for.steps' is 0", "an integer of 1 to 1000"},
        {"\"guidance\": 5", "\"guidance\": 1e999", HS_EFORMAT, "'made_for.guidance'", "a number of 0 to 1000"},
        {"\"unipc\"", "\"heun\"", HS_ENOTSUP, "'made_for.solver' is \"heun\"", "one of unipc, dpm++, euler"},
        {"\"xattention\"", "\"sta\"", HS_ENOTSUP, "'method.name' is \"sta\"", "dense, xattention, svg2, pooled"},
        {"\"xattention\"", "\"dense\"", HS_EFORMAT, "'method.name' is \"dense\"", "sparse attention only"},
        {"\"xattention\"", "1", HS_EFORMAT, "'method.name' is 1", "one of dense, xattention"},
        {"\"block\": 128", "\"block\": 100", HS_EFORMAT, "blocks of 100 tokens", "64 or 128"},
        {"\"block\": 128, ", "", HS_EFORMAT, "'method.block' is missing", "an integer"},
        {"\"stride\": 16", "\"stride\": 12", HS_EFORMAT, "stride 12", "8 or 16"},
        {"\"stride\": 16", "\"stride\": 16, \"compat\": 1", HS_EFORMAT, "'method.compat' is 1", "true or false"},
        {"\"stride\": 16", "\"stride\": 16, \"compat\": null", HS_EFORMAT, "'method.compat' is null", "true or false"},
        {"\"drift\"", "\"always\"", HS_ENOTSUP, "'reuse.kind' is \"always\"", "one of none, drift"},
        {"\"delta\": 30", "\"delta\": -1", HS_EFORMAT, "'reuse.delta' is -1", "a number of 0 to"},
        {"\"delta\": 30, ", "", HS_EFORMAT, "'reuse.delta' is missing", "a number of 0 to"},
        {"\"gate_low\": 0.4", "\"gate_low\": 1.4", HS_EFORMAT, "'reuse.gate_low' is 1.4", "a number of 0 to 1"},
        {"\"seed\": 7", "\"seed\": 7.5", HS_EFORMAT, "'calibration.seed' is 7.5", "an integer"},
        {"[[0, 11],", "[[11, 0],", HS_EFORMAT, "'calibration.intervals' is [11,0]", "[first, last]"},
        {"[37, 49]]", "[37, 50]]", HS_EFORMAT, "'calibration.intervals' is [37,50]", "steps from 0 to 49"},
        {"[0.85, 0.9, 0.95]", "[0.85, 0]", HS_EFORMAT, "'calibration.candidates' is 0", "above 0 and at most 1"},
        {"[0.85, 0.9, 0.95]", "[]", HS_EFORMAT, "'calibration.candidates' is []", "a list of 1 to 32"},
    };
    ALL_REFUSED("xattention.json", list);
    static const change svg2[] = {
        {"\"q_clusters\": 300", "\"q_clusters\": 0", HS_EFORMAT, "'method.q_clusters' is 0", "1 to 65535"},
        {"\"min_share\": 0.1", "\"min_share\": 2", HS_EFORMAT, "'method.min_share' is 2", "0 to 1"},
        {"\"min_share\": 0.1", "\"min_share\": 0.1, \"compensate\": true", HS_ENOTSUP, "'method.compensate'",
         "version 1"},
        {"\"interval\": 4", "\"interval\": 0", HS_EFORMAT, "'reuse.interval' is 0", "1 to 1000"},
        {"\"interval\": 4", "\"interval\": 4, \"delta\": 3", HS_ENOTSUP, "'reuse.delta'", "version 1"},
    };
    ALL_REFUSED("svg2.json", svg2);
}

Test(profile, budgets_and_thresholds) {
    static const change list[] = {
        {"\"budgets\": [", "\"budgets\": [], \"x\": [", HS_ENOTSUP, "'x'", "version 1"},
        {"\"budgets\": [", "\"budgets\": [7, ", HS_EFORMAT, "'budgets' is 7", "a list of objects"},
        {"{\"target\": 0.74,", "{\"target\": 74,", HS_EFORMAT, "'budgets[0].target' is 74", "a number of 0 to 1"},
        {"{\"target\": 0.74,", "{", HS_EFORMAT, "'budgets[0].target' is missing", "a number of 0 to 1"},
        {"{\"target\": 0.5,", "{\"target\": 0.74,", HS_EFORMAT, "'budgets[1].target' is 0.74", "budgets[0]"},
        {"\"sparsity\": 0.51", "\"sparsity\": 1.1", HS_EFORMAT, "'budgets[1].sparsity' is 1.1", "a number of 0 to 1"},
        {"\"gap\": 0.0081", "\"gap\": \"none\"", HS_EFORMAT, "'budgets[0].gap' is \"none\"", "a number"},
        {"[[0.9, 0.95], [0.85, 0.9]]", "[[0.9, 0.95]]", HS_EFORMAT, "'budgets[0].top_p' has 1 rows", "expected 2"},
        {"[[0.9, 0.95], [0.85, 0.9]]", "[[1, 1], [1, 1], [1, 1]]", HS_EFORMAT, "has 3 rows", "expected 2"},
        {"[[0.9, 0.95], [0.85, 0.9]]", "[[0.9, 0.95], [0.85]]", HS_EFORMAT, "'budgets[0].top_p[1]' has 1",
         "expected 2"},
        {"[[0.9, 0.95], [0.85, 0.9]]", "[[0.9, 0.95], [1, 1, 1]]", HS_EFORMAT, "top_p[1]' has 3", "expected 2"},
        {"[[0.9, 0.95], [0.85, 0.9]]", "[[0.9, 0.95], 0.85]", HS_EFORMAT, "top_p[1]' has 0", "expected 2"},
        {"[[0.9, 0.95], [0.85, 0.9]]", "0.9", HS_EFORMAT, "'budgets[0].top_p' is 0.9", "2 rows"},
        {", \"top_p\": [[0.9, 0.95], [0.85, 0.9]]", "", HS_EFORMAT, "'budgets[0].top_p' is missing", "2 rows"},
        {"[[0.9, 0.95]", "[[0.9, 0]", HS_EFORMAT, "'budgets[0].top_p[0][1]' is 0,", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, -0.1]", HS_EFORMAT, "top_p[0][1]' is -0.1", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, 1.0000001]", HS_EFORMAT, "top_p[0][1]' is 1.0000001", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, 1.00000000001]", HS_EFORMAT, "top_p[0][1]' is", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, 1e-60]", HS_EFORMAT, "top_p[0][1]' is", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, 1e999]", HS_EFORMAT, "top_p[0][1]' is", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, \"0.95\"]", HS_EFORMAT, "top_p[0][1]' is \"0.95\"", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, null]", HS_EFORMAT, "top_p[0][1]' is null", "above 0 and at most 1"},
        {"[[0.9, 0.95]", "[[0.9, NaN]", HS_EFORMAT, "not valid JSON", "at byte"},
        {"[[0.85, 0.85], [0.85, 0.9]]", "[[0.85, 0.85], [0.85, 2]]", HS_EFORMAT, "'budgets[2].top_p[1][1]' is 2",
         "at most 1"},
    };
    ALL_REFUSED("xattention.json", list);
    const char *json = sample("pooled.json");
    char cut[4096];
    snprintf(cut, sizeof cut, "%.*s}", (int)(strstr(json, ",\n  \"budgets\"") - json), json);
    refused(cut, strlen(cut), HS_EFORMAT, "'budgets' is missing", "a list of 1 to 32");
    strcpy(cut + strlen(cut) - 1, ",\"budgets\":[]}");
    refused(cut, strlen(cut), HS_EFORMAT, "'budgets' is []", "a list of 1 to 32");
}

Test(profile, step_intervals) {
    hs_profile *p = good(sample("intervals.json"));
    const hs_profile_budget *b = p->budgets;
    cr_assert(b[0].intervals == 3 && b[0].until[0] == 0.3 && b[0].until[1] == 0.7 && b[0].until[2] == 1);
    cr_assert(b[0].top_p[0] == 0.5f && b[0].top_p[3] == 0.8f && b[0].top_p[4] == 1 && b[0].top_p[11] == 0.95f);
    cr_assert(b[1].intervals == 1 && b[1].until[0] == 1 && b[1].top_p[2] == 0.6f, "nothing said: one");
    cr_assert(b[2].intervals == 1 && b[2].until[0] == 1 && b[2].top_p[3] == 0.99f, "one, said");
    hs_profile_free(p);
    static const change list[] = {
        {"\"version\": 2", "\"version\": 1", HS_ENOTSUP, "'budgets[0].until' is not a field", "version 1"},
        {"[0.3, 0.7, 1]", "[]", HS_EFORMAT, "'budgets[0].until' is []", "a list of 1 to 32"},
        {"[0.3, 0.7, 1]", "0.3", HS_EFORMAT, "'budgets[0].until' is 0.3", "a list of 1 to 32"},
        {"[0.3, 0.7, 1]", "[0, 0.7, 1]", HS_EFORMAT, "'budgets[0].until[0]' is 0,", "above 0 and at most 1"},
        {"[0.3, 0.7, 1]", "[0.3, 0.3, 1]", HS_EFORMAT, "'budgets[0].until[1]' is 0.3", "above 0.3 and at most 1"},
        {"[0.3, 0.7, 1]", "[0.3, 0.2, 1]", HS_EFORMAT, "'budgets[0].until[1]' is 0.2", "above 0.3 and at most 1"},
        {"[0.3, 0.7, 1]", "[0.3, \"x\", 1]", HS_EFORMAT, "'budgets[0].until[1]' is \"x\"", "above 0.3 and at most 1"},
        {"[0.3, 0.7, 1]", "[0.3, 0.7, 1.1]", HS_EFORMAT, "'budgets[0].until[2]' is 1.1", "at most 1"},
        {"[0.3, 0.7, 1]", "[0.3, 0.7, 0.9]", HS_EFORMAT, "'budgets[0].until[2]' is 0.9", "expected 1: the last"},
        {"[0.3, 0.7, 1]", "[0.3, 1]", HS_EFORMAT, "'budgets[0].top_p' has 3 tables", "expected 2, one for each"},
        {"\"until\": [0.3, 0.7, 1], ", "", HS_EFORMAT, "'budgets[0].top_p' has 3 rows", "expected 2 (model.layers)"},
        {"[[0.5, 0.6], [0.7, 0.8]]", "[[0.5, 0.6]]", HS_EFORMAT, "'budgets[0].top_p[0]' has 1 rows", "expected 2"},
        {"[[0.5, 0.6], [0.7, 0.8]]", "0.5", HS_EFORMAT, "'budgets[0].top_p[0]' is 0.5", "2 rows (layers) of 2"},
        {"[[1, 0.6], [0.7, 0.9]]", "[[1, 0.6], [0.7]]", HS_EFORMAT, "top_p[1][1]' has 1 numbers", "expected 2"},
        {"[[1, 0.6], [0.7, 0.9]]", "[[1, 0.6], [0, 1]]", HS_EFORMAT, "top_p[1][1][0]' is 0,", "above 0"},
        {"[[[0.7", "[[[7", HS_EFORMAT, "'budgets[2].top_p[0][0][0]' is 7", "at most 1"},
    };
    ALL_REFUSED("intervals.json", list);
}

Test(profile, damaged_text) {
    char json[4096];
    snprintf(json, sizeof json, "%s", sample("xattention.json"));
    size_t len = strlen(json);
    while (json[len - 1] != '}') len--; /* white space at the end may be missing */
    for (size_t n = 0; n < len; n++) refused(json, n, HS_EFORMAT, "", " at byte ");
    refused("[]", 2, HS_EFORMAT, "not a JSON object", "");
    static const change twice[] = {
        {"\"version\": 1,", "\"version\": 1, \"version\": 1,", HS_EFORMAT, "'version' is given twice", ""},
        {"\"stride\": 16", "\"stride\": 16, \"stride\": 8", HS_EFORMAT, "'stride' is given twice", ""},
    };
    ALL_REFUSED("xattention.json", twice);
}

Test(profile, hundred_megabytes_of_nesting) {
    size_t n = 100000000;
    char *text = malloc(n);
    cr_assert_not_null(text);
    memset(text, '[', n);
    refused(text, n, HS_EFORMAT, "nested too deeply", "at byte 16");
    for (size_t i = 0; i + 5 <= n; i += 5) memcpy(text + i, "{\"a\":", 5);
    refused(text, n, HS_EFORMAT, "nested too deeply", "at byte");
    free(text);
    /* as a file it is not even read */
    const char *path = scratch("deep.json");
    write_text(path, "[");
    cr_assert(!truncate(path, (off_t)n));
    hs_profile *p = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_profile_load(path, &p, &err), HS_EFORMAT);
    cr_assert(!p && strstr(err.msg, "100000000 bytes") && strstr(err.msg, "at most 16777216"), "%s", err.msg);
}

Test(profile, files_that_cannot_be_read) {
    hs_profile *p = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_profile_load(scratch("none.json"), &p, &err), HS_EIO);
    cr_assert(strstr(err.msg, "none.json"), "%s", err.msg);
    cr_assert_eq(hs_profile_load(scratch("."), &p, &err), HS_EIO);
    write_text(scratch("empty.json"), "");
    cr_assert_eq(hs_profile_load(scratch("empty.json"), &p, &err), HS_EFORMAT);
    cr_assert(strstr(err.msg, "empty.json"), "%s", err.msg);
    cr_assert(!p && hs_alloc_live() == 0);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int same(double a, double b) {
    return a == b || (isnan(a) && isnan(b));
}

static void check_same(const hs_profile *a, const hs_profile *b) {
    cr_assert_str_eq(a->made_by, b->made_by);
    cr_assert_str_eq(a->made_at, b->made_at);
    cr_assert_str_eq(a->model, b->model);
    cr_assert_str_eq(a->sha256, b->sha256);
    cr_assert(a->layers == b->layers && a->heads == b->heads && a->width == b->width && a->height == b->height);
    cr_assert(a->frames == b->frames && a->steps == b->steps && a->shift == b->shift && a->guidance == b->guidance);
    cr_assert_eq(a->solver, b->solver);
    cr_assert(!memcmp(&a->policy, &b->policy, offsetof(hs_attn_policy, compat) + sizeof a->policy.compat));
    cr_assert_eq(a->has_calibration, b->has_calibration);
    cr_assert_str_eq(a->prompts_sha256, b->prompts_sha256);
    cr_assert_str_eq(a->table_sha256, b->table_sha256);
    cr_assert_str_eq(a->error_name, b->error_name);
    cr_assert(a->seed == b->seed && a->n_intervals == b->n_intervals && a->n_candidates == b->n_candidates);
    cr_assert_eq(memcmp(a->intervals, b->intervals, sizeof a->intervals), 0);
    cr_assert_eq(memcmp(a->candidates, b->candidates, sizeof a->candidates), 0);
    cr_assert_eq(a->n_budgets, b->n_budgets);
    for (int i = 0; i < a->n_budgets; i++) {
        const hs_profile_budget *x = &a->budgets[i], *y = &b->budgets[i];
        cr_assert(same(x->target, y->target) && same(x->sparsity, y->sparsity) && same(x->error, y->error));
        cr_assert(same(x->bound, y->bound) && same(x->gap, y->gap) && same(x->joint_error, y->joint_error));
        cr_assert_eq(x->intervals, y->intervals);
        for (int k = 0; k < x->intervals; k++) cr_assert_eq(x->until[k], y->until[k]);
        for (int k = 0; k < x->intervals * a->layers * a->heads; k++) cr_assert_eq(x->top_p[k], y->top_p[k]);
    }
}

static int count_files(void) {
    DIR *d = opendir(scratch("."));
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

Test(profile, round_trip) {
    static const char *const names[] = {"xattention.json", "svg2.json", "pooled.json", "intervals.json"};
    hs_err err = {0};
    for (int i = 0; i < 4; i++) {
        hs_profile *p = good(sample(names[i])), *q = NULL;
        if (i == 0) { /* numbers that are short in neither base */
            p->budgets[0].error = 1.0 / 3;
            p->budgets[0].top_p[1] = 1.0f / 3;
            p->budgets[0].top_p[2] = 0x1p-60f;
            p->policy.reuse.delta = 0.1f;
            p->seed = 9007199254740991;
            strcpy(p->model, "na\"me \xc3\xbc");
        }
        cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), 0, "%s", err.msg);
        cr_assert_eq(hs_profile_load(scratch("out.json"), &q, &err), 0, "%s", err.msg);
        check_same(p, q);
        hs_profile_free(p);
        hs_profile_free(q);
    }
    cr_assert_eq(count_files(), 1, "nothing is left beside the file");
    cr_assert_eq(hs_alloc_live(), 0);
}

/* Version 3 says of which noise schedule; before it was the solver's own, and still is where nothing else is said. */
Test(profile, sigmas) {
    char json[4096];
    snprintf(json, sizeof json, "%s", sample("xattention.json"));
    const change list[] = {
        {"\"solver\": \"unipc\"", "\"solver\": \"unipc\", \"sigmas\": \"B\"", HS_ENOTSUP, "'made_for.sigmas'",
         "version 1"},
        {"\"version\": 1", "\"version\": 3", HS_EFORMAT, "'made_for.sigmas' is missing", "expected one of A, B, C, D"}};
    ALL_REFUSED("xattention.json", list);
    hs_profile *p = good(json);
    cr_assert_eq(p->sigmas, -1);
    hs_request r = {.width = 832, .height = 480, .frames = 81, .steps = 50, .shift = 3, .guidance = 5, .sigmas = -1};
    char text[512];
    hs_err err = {0};
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 0);
    r.sigmas = 0; /* A, which unipc has anyway */
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 0);
    p->sigmas = 0;
    cr_assert_eq(hs_profile_save(scratch("a.json"), p, &err), 0, "%s", err.msg);
    has_version(scratch("a.json"), 1);
    p->sigmas = 1;
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 1);
    cr_assert(strstr(text, "made for unipc with sigmas B, shift 3 and guidance 5: "), "%s", text);
    cr_assert_eq(hs_profile_save(scratch("b.json"), p, &err), 0, "%s", err.msg);
    hs_profile_free(p);
    has_version(scratch("b.json"), 3);
    cr_assert_eq(hs_profile_load(scratch("b.json"), &p, &err), 0, "%s", err.msg);
    cr_assert_eq(p->sigmas, 1);
    hs_profile_free(p);
}

Test(profile, numbers_are_written_short) {
    char text[4096];
    hs_err err = {0};
    hs_profile *p = good(sample("xattention.json"));
    cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), 0, "%s", err.msg);
    hs_profile_free(p);
    FILE *f = fopen(scratch("out.json"), "r");
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    cr_assert(strstr(text, "[[0.9, 0.95], [0.85, 0.9]]"), "%s", text);
    cr_assert(strstr(text, "0.7413,"), "%s", text);
    cr_assert(strstr(text, "\"version\":\t1,"), "a version that older programs read, where it can say all");
}

Test(profile, a_third_of_the_steps_stays_a_third) {
    char text[4096];
    hs_err err = {0};
    hs_profile *p = good(sample("intervals.json")), *q = NULL;
    p->budgets[0].until[0] = 1 / 3.0;
    cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_profile_load(scratch("out.json"), &q, &err), 0, "%s", err.msg);
    check_same(p, q);
    FILE *f = fopen(scratch("out.json"), "r");
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    cr_assert(strstr(text, "\"version\":\t2,") && strstr(text, "[0.3333333333333333, 0.7, 1]"), "%s", text);
    p->budgets[0].until[1] = 0.2;
    cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), HS_EFORMAT);
    hs_profile_free(p);
    hs_profile_free(q);
}

Test(profile, a_new_profile_is_filled_and_saved) {
    hs_profile *p = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_profile_new(0, 4, 1, 1, &p, &err), HS_EINVAL);
    cr_assert_eq(hs_profile_new(3, 129, 1, 1, &p, &err), HS_EINVAL);
    cr_assert_eq(hs_profile_new(3, 4, 33, 1, &p, &err), HS_EINVAL);
    cr_assert_eq(hs_profile_new(3, 4, 1, 33, &p, &err), HS_EINVAL);
    cr_assert(!p);
    cr_assert_eq(hs_profile_new(3, 4, 1, 2, &p, &err), 0);
    /* what would be refused when read is refused when written, and the old file stays */
    write_text(scratch("out.json"), "old");
    cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), HS_EFORMAT);
    cr_assert(strstr(err.msg, "'model.sha256' is \"\""), "%s", err.msg);
    memset(p->sha256, 'f', 64);
    p->width = p->height = 256, p->frames = 33, p->steps = 30, p->shift = 3, p->guidance = 4;
    p->budgets[0].target = 0.5, p->budgets[1].target = 0.75;
    for (int i = 0; i < 12; i++) p->budgets[0].top_p[i] = p->budgets[1].top_p[i] = 0.9f;
    p->budgets[1].top_p[11] = NAN;
    cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), HS_EFORMAT);
    cr_assert(strstr(err.msg, "budgets[1].top_p[2][3]"), "%s", err.msg);
    char old[4] = "";
    FILE *f = fopen(scratch("out.json"), "r");
    cr_assert(fgets(old, sizeof old, f));
    fclose(f);
    cr_assert_str_eq(old, "old");
    p->budgets[1].top_p[11] = 1;
    cr_assert_eq(hs_profile_save(scratch("out.json"), p, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_profile_save(scratch("no/out.json"), p, &err), HS_EIO);
    struct stat st; /* a pipe in the scratch folder: a program that fails here must not cost the machine a device */
    cr_assert(!mkfifo(scratch("pipe"), 0600));
    cr_assert_eq(hs_profile_save(scratch("pipe"), p, &err), HS_EIO);
    cr_assert(!stat(scratch("pipe"), &st) && S_ISFIFO(st.st_mode), "renaming would replace it");
    cr_assert_eq(count_files(), 2);
    hs_profile_free(p);
    cr_assert_eq(hs_alloc_live(), 0);
}

static int save_sample(void *arg, hs_err *err) {
    return hs_profile_save(scratch("out.json"), arg, err);
}

static int load_and_free(void *arg, hs_err *err) {
    hs_profile *p;
    int rc = hs_profile_load(arg, &p, err);
    if (!rc) hs_profile_free(p);
    return rc;
}

Test(profile, memory_that_runs_out) {
    hs_profile *p = good(sample("intervals.json"));
    cr_assert_geq(fail_allocations(save_sample, p, "hs_profile_save"), 50);
    cr_assert_geq(fail_allocations(load_and_free, (void *)scratch("out.json"), "hs_profile_load"), 50);
    cr_assert_eq(count_files(), 1);
    hs_profile_free(p);
}

/* ---- use -------------------------------------------------------------------------------------------------------- */

Test(profile, only_for_its_model) {
    hs_profile *p = good(sample("xattention.json"));
    hs_err err = {0};
    hs_model_info info = {.layers = 2, .heads = 2};
    strcpy(info.sha256, p->sha256);
    cr_assert_eq(hs_profile_check(p, &info, &err), 0);
    info.sha256[63] = '0';
    cr_assert_eq(hs_profile_check(p, &info, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "p.json: made for tiny with sha256 0123456789abcdef"), "%s", err.msg);
    strcpy(info.sha256, p->sha256);
    info.layers = 3;
    cr_assert_eq(hs_profile_check(p, &info, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "2 layers x 2 heads, this model has 3 layers x 2 heads"), "%s", err.msg);
    info.layers = 2, info.heads = 1;
    cr_assert_eq(hs_profile_check(p, &info, &err), HS_EINVAL);
    hs_profile_free(p);
}

Test(profile, budgets_are_chosen_by_target) {
    hs_profile *p = good(sample("xattention.json"));
    hs_err err = {0};
    int i = -1;
    static const struct {
        double target;
        int want;
    } list[] = {{0.74, 0}, {0.5, 1}, {0.8, 2}, {0.745, 0}, {0.735, 0}, {0.803, 2}};
    for (size_t k = 0; k < sizeof list / sizeof *list; k++) {
        cr_assert_eq(hs_profile_choose(p, list[k].target, &i, &err), 0, "%g: %s", list[k].target, err.msg);
        cr_assert_eq(i, list[k].want, "%g gave %d", list[k].target, i);
    }
    cr_assert_eq(hs_profile_choose(p, NAN, &i, &err), 0);
    cr_assert_eq(i, 0, "the first");
    i = -1;
    static const double none[] = {0, 0.6, 0.746, 0.77, 1};
    for (int k = 0; k < 5; k++) {
        cr_assert_eq(hs_profile_choose(p, none[k], &i, &err), HS_EINVAL, "%g", none[k]);
        cr_assert(strstr(err.msg, "it has 0.74, 0.5, 0.8"), "%s", err.msg);
    }
    cr_assert_eq(i, -1);
    p->budgets[2].target = 0.743; /* two within reach: the nearer one */
    cr_assert_eq(hs_profile_choose(p, 0.742, &i, &err), 0);
    cr_assert_eq(i, 2);
    hs_profile_free(p);
}

Test(profile, steps_are_a_share_of_the_run) {
    hs_profile *p = good(sample("xattention.json"));
    hs_err err = {0};
    hs_attn_policy a;
    static const int dense[][2] = {{50, 5}, {100, 10}, {30, 3}, {31, 4}, {20, 2}, {11, 2}, {10, 1}, {4, 1}, {1, 1}};
    for (size_t k = 0; k < sizeof dense / sizeof *dense; k++) {
        cr_assert_eq(hs_profile_policy(p, 1, dense[k][0], &a, &err), 0);
        cr_assert_eq(a.dense_steps, dense[k][1], "%d steps: %d dense", dense[k][0], a.dense_steps);
        cr_assert_eq((const void *)a.top_p_heads, (const void *)p->budgets[1].top_p);
        cr_assert(a.method == HS_XATTENTION && a.reuse.delta == 30 && a.dense_layers == 0);
    }
    cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), 0);
    cr_assert_eq(hs_profile_policy(p, 3, 50, &a, &err), HS_EINVAL);
    cr_assert_eq(hs_profile_policy(p, -1, 50, &a, &err), HS_EINVAL);
    cr_assert_eq(hs_profile_policy(p, 0, 0, &a, &err), HS_EINVAL);
    hs_profile_free(p);

    p = good(sample("svg2.json")); /* every 4 of 50 */
    static const int interval[][2] = {{50, 4}, {100, 8}, {30, 2}, {20, 2}, {12, 1}, {4, 1}, {1, 1}};
    for (size_t k = 0; k < sizeof interval / sizeof *interval; k++) {
        cr_assert_eq(hs_profile_policy(p, 0, interval[k][0], &a, &err), 0);
        cr_assert_eq(a.reuse.interval, interval[k][1], "%d steps: %d", interval[k][0], a.reuse.interval);
        cr_assert_eq(a.dense_steps, 0, "none stays none");
    }
    hs_profile_free(p);
}

/* A step has the thresholds that hold at its middle, whatever the number of steps. */
Test(profile, intervals_are_a_share_of_the_run) {
    static const struct {
        int steps, second, third; /* where they begin */
    } list[] = {{30, 9, 21}, {50, 15, 35}, {10, 3, 7}, {4, 1, 3}, {3, 1, 2}, {2, 1, 1}, {1, 0, 1}, {1000, 300, 700}};
    hs_profile *p = good(sample("intervals.json"));
    hs_err err = {0};
    hs_attn_policy a;
    for (size_t k = 0; k < sizeof list / sizeof *list; k++) {
        cr_assert_eq(hs_profile_policy(p, 0, list[k].steps, &a, &err), 0);
        cr_assert(a.intervals == 3 && a.interval_start[0] == 0, "%d", list[k].steps);
        cr_assert_eq(a.interval_start[1], list[k].second, "%d: %d", list[k].steps, a.interval_start[1]);
        cr_assert_eq(a.interval_start[2], list[k].third, "%d: %d", list[k].steps, a.interval_start[2]);
        cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), 0, "%s", err.msg);
        for (int s = 0; s < list[k].steps; s++) {
            double middle = (s + 0.5) / list[k].steps;
            cr_assert_eq(hs_attn_policy_interval(&a, s), (middle > 0.3) + (middle > 0.7), "step %d of %d", s,
                         list[k].steps);
        }
    }
    cr_assert_eq(hs_profile_policy(p, 1, 30, &a, &err), 0);
    cr_assert(a.intervals == 1 && hs_attn_policy_interval(&a, 29) == 0);
    /* ends of sampled steps are ends of steps, though k / n is rarely exact */
    for (int n = 1; n <= 200; n++)
        for (int k = 1; k < n; k++) {
            p->budgets[0].until[0] = (double)k / n;
            cr_assert_eq(hs_profile_policy(p, 0, n, &a, &err), 0);
            cr_assert_eq(a.interval_start[1], k, "%d of %d", k, n);
        }
    hs_profile_free(p);

    p = good(sample("intervals.json"));
    cr_assert_eq(hs_profile_policy(p, 0, 30, &a, &err), 0);
    a.interval_start[2] = 8;
    cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "step interval 2 begins at step 8, before interval 1 (step 9)"), "%s", err.msg);
    a.interval_start[2] = 21, a.interval_start[0] = 1;
    cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), HS_EINVAL);
    a.interval_start[0] = 0, p->budgets[0].top_p[6] = 1.5f;
    cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "layer 1, head 0 in step interval 1 is 1.5"), "%s", err.msg);
    p->budgets[0].top_p[6] = 1, a.intervals = 33;
    cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), HS_EINVAL);
    a.intervals = 3, a.top_p_heads = NULL;
    cr_assert_eq(hs_attn_policy_check(&a, 2, 2, &err), HS_EINVAL, "intervals without thresholds");

    char text[512];
    hs_request r = {.width = 832, .height = 480, .frames = 81, .steps = 10, .shift = 3, .guidance = 5};
    cr_assert_eq(hs_profile_policy(p, 0, 10, &r.attention, &err), 0);
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 1);
    cr_assert(strstr(text, "; thresholds change at step 3, 7"), "%s", text);
    hs_profile_free(p);
}

Test(profile, says_what_is_off_its_shape) {
    hs_profile *p = good(sample("xattention.json"));
    hs_request r = {.width = 832, .height = 480, .frames = 81, .steps = 50, .shift = 3, .guidance = 5};
    char text[512] = "old", tiny[16];
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 0);
    cr_assert_str_eq(text, "");
    r.steps = 30;
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 1);
    cr_assert_str_eq(text, "the profile was made for 50 steps: its thresholds are used as they are, their error here "
                           "was not measured; 5 dense steps of 50 become 3 of 30");
    r.width = 480;
    hs_profile_differences(p, &r, text, sizeof text);
    cr_assert(strstr(text, "for 832x480 with 81 frames, 50 steps: "), "%s", text);
    r = (hs_request){.width = 832, .height = 480, .frames = 81, .steps = 50, .shift = 8, .guidance = 5};
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 1);
    cr_assert(strstr(text, "for unipc with shift 3 and guidance 5: "), "%s", text);
    cr_assert_eq(hs_profile_differences(p, &r, tiny, sizeof tiny), 1);
    cr_assert_eq(strlen(tiny), 15);
    r.shift = 3, r.solver = HS_EULER;
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 1);
    r.solver = HS_UNIPC, r.frames = 77;
    cr_assert_eq(hs_profile_differences(p, &r, text, sizeof text), 1);
    hs_profile_free(p);
    p = good(sample("svg2.json"));
    r.frames = 81, r.steps = 25;
    hs_profile_differences(p, &r, text, sizeof text);
    cr_assert(strstr(text, "a refresh every 4 steps becomes every 2"), "%s", text);
    hs_profile_free(p);
}
