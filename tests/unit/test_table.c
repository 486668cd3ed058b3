/* Tables of measurements: what goes in comes out, shards merge to the whole, and nothing foreign or damaged is taken.
 */
#include "util.h"
#include "table.h"

#include <criterion/criterion.h>
#include <math.h>

TestSuite(table, .fini = scratch_remove);

static const char sha[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static hs_table_info info_of(hs_method method) {
    hs_table_info i = {.model = "demo \"x\\y\"",
                       .device = "a device",
                       .precision = "fp32",
                       .layers = 3,
                       .heads = 2,
                       .width = 256,
                       .height = 128,
                       .frames = 33,
                       .steps = 30,
                       .shift = 3.1,
                       .guidance = 4,
                       .solver = HS_UNIPC,
                       .sigmas = -1,
                       .policy = hs_attn_policy_default(method),
                       .prompts = 5,
                       .seed = 9007199254740992,
                       .n_intervals = 2,
                       .intervals = {{3, 15}, {16, 29}},
                       .n_candidates = 3,
                       .candidates = {0.9, 1.0 / 3, 0.5}};
    strcpy(i.sha256, sha);
    strcpy(i.prompts_sha256, sha);
    i.policy.reuse.kind = HS_REUSE_NONE;
    i.policy.dense_steps = 3;
    i.policy.dense_layers = 1;
    if (method == HS_SVG2) i.policy.min_share = 0.123f;
    return i;
}

/* The k-th of many probes, all different and in no order; its values depend on k alone. */
static hs_probe probe(int k) {
    const int interval = k % 2;
    hs_probe p = {.prompt = k / 2 % 5,
                  .step = interval ? 22 : 9,
                  .interval = interval,
                  .layer = k / 10 % 3,
                  .head = k / 30 % 2,
                  .candidate = k / 60 % 3};
    const double x = 1 + k;
    p.m = (hs_measured){1e-3 / x, 1e-4 / x, 0.1 / x, 12345.678 / x, 1 / (x + 1), 0.25 * x};
    return p;
}

static hs_joint joint(int k) {
    hs_joint j = {.prompt = 3 + k % 4, .step = k % 2 ? 22 : 9, .interval = k % 2, .candidate = k % 5 - 2};
    if (j.candidate == HS_JOINT_CONFIG) strcpy(j.config, k % 3 ? "00000000000000ab" : "fedcba9876543210");
    strcpy(j.text, k % 7 ? "aaaaaaaaaaaaaaaa" : "bbbbbbbbbbbbbbbb");
    j.m = (hs_measured){1.0 / (k + 1), 0, 0, 1e-12, 0.5, 3};
    return j;
}

static hs_table_writer *open_table(const char *path, const hs_table_info *i) {
    hs_table_writer *w = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_table_open(path, i, &w, &err), 0, "%s", err.msg);
    return w;
}

/* Probes and joints first, first + step, ... below n. */
static void write_some(const char *path, const hs_table_info *i, int n, int first, int step) {
    hs_table_writer *w = open_table(path, i);
    hs_err err = {0};
    for (int k = first; k < n; k += step) {
        const hs_probe p = probe(k);
        const hs_joint j = joint(k);
        cr_assert_eq(hs_table_add_probe(w, &p, &err), 0, "%s", err.msg);
        cr_assert_eq(hs_table_add_joint(w, &j, &err), 0, "%s", err.msg);
    }
    cr_assert_eq(hs_table_close(w, &err), 0, "%s", err.msg);
}

static hs_table *load(int n, const char *const *paths) {
    hs_table *t = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_table_load(n, paths, &t, &err), 0, "%s", err.msg);
    return t;
}

static int same_info(const hs_table_info *a, const hs_table_info *b) {
    hs_attn_policy p = a->policy, q = b->policy;
    p.reuse = q.reuse; /* not of the table */
    return !strcmp(a->model, b->model) && !strcmp(a->device, b->device) && !strcmp(a->sha256, b->sha256) &&
           !strcmp(a->precision, b->precision) && a->layers == b->layers && a->heads == b->heads &&
           a->width == b->width && a->height == b->height && a->frames == b->frames && a->steps == b->steps &&
           a->shift == b->shift && a->guidance == b->guidance && a->solver == b->solver && a->sigmas == b->sigmas &&
           !memcmp(&p, &q, offsetof(hs_attn_policy, compat) + sizeof p.compat) &&
           !strcmp(a->prompts_sha256, b->prompts_sha256) && a->prompts == b->prompts && a->seed == b->seed &&
           a->n_intervals == b->n_intervals && !memcmp(a->intervals, b->intervals, sizeof a->intervals) &&
           a->n_candidates == b->n_candidates && !memcmp(a->candidates, b->candidates, sizeof a->candidates);
}

Test(table, comes_back) {
    static const hs_method methods[] = {HS_XATTENTION, HS_POOLED, HS_SVG2};
    enum { N = 100 };
    for (int m = 0; m < 3; m++) {
        const hs_table_info i = info_of(methods[m]);
        const char *path = scratch("t%d", m);
        write_some(path, &i, N, 0, 1);
        hs_table *t = load(1, &path);
        cr_assert(same_info(&t->info, &i), "method %d", m);
        cr_assert_eq(t->n_probes, N);
        for (int k = 0; k < N; k++) {
            const hs_probe want = probe(k);
            int64_t at = 0;
            while (at < N && memcmp(&t->probes[at], &want, offsetof(hs_probe, m))) at++;
            cr_assert_lt(at, N, "probe %d is lost", k);
            const double *is = &t->probes[at].m.error, *should = &want.m.error;
            for (int v = 0; v < 6; v++) cr_assert_leq(fabs(is[v] / should[v] - 1), 1e-8, "probe %d, value %d", k, v);
        }
        for (int k = 1; k < N; k++) {
            const hs_probe *a = &t->probes[k - 1], *b = &t->probes[k];
            const int64_t x = (((a->layer * 2 + a->head) * 3 + a->candidate) * 2 + a->interval) * 5 + a->prompt,
                          y = (((b->layer * 2 + b->head) * 3 + b->candidate) * 2 + b->interval) * 5 + b->prompt;
            cr_assert_lt(x, y, "order");
        }
        for (int64_t k = 0; k < t->n_joints; k++)
            cr_assert_eq(t->joints[k].candidate == HS_JOINT_CONFIG, strlen(t->joints[k].config) == 16);
        hs_table_free(t);
    }
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(table, shards_merge_to_the_whole) {
    enum { N = 120 };
    const hs_table_info i = info_of(HS_XATTENTION);
    char whole[128], part[3][128];
    snprintf(whole, sizeof whole, "%s", scratch("whole"));
    write_some(whole, &i, N, 0, 1);
    const char *one = whole;
    hs_table *want = load(1, &one);
    for (int s = 0; s < 3; s++) {
        hs_table_info other = i;
        snprintf(other.device, sizeof other.device, "machine %d", s);
        strcpy(other.model, "elsewhere");
        snprintf(part[s], sizeof part[s], "%s", scratch("part%d", s));
        write_some(part[s], &other, N, s, 3);
    }
    static const int order[][6] = {{0, 1, 2, -1}, {2, 0, 1, -1}, {1, 1, 0, 2, 2, -1}};
    for (int o = 0; o < 3; o++) {
        const char *paths[6];
        int n = 0;
        for (; order[o][n] >= 0; n++) paths[n] = part[order[o][n]];
        hs_table *t = load(n, paths);
        cr_assert_str_eq(t->sha256, want->sha256);
        cr_assert_eq(t->n_probes, want->n_probes);
        cr_assert_eq(t->n_joints, want->n_joints);
        cr_assert(!memcmp(t->probes, want->probes, (size_t)t->n_probes * sizeof *t->probes));
        cr_assert(!memcmp(t->joints, want->joints, (size_t)t->n_joints * sizeof *t->joints));
        hs_table_free(t);
    }
    hs_table_free(want);
}

/* The hash knows every value but the seconds; of two that differ the same one stays, whatever the order. */
Test(table, duplicates_and_the_hash) {
    const hs_table_info i = info_of(HS_XATTENTION);
    char path[3][128], first[65] = "";
    for (int k = 0; k < 3; k++) {
        hs_probe p = probe(7);
        p.m.seconds += k;
        if (k == 2) p.m.error *= 2;
        snprintf(path[k], sizeof path[k], "%s", scratch("d%d", k));
        hs_table_writer *w = open_table(path[k], &i);
        cr_assert_eq(hs_table_add_probe(w, &p, NULL), 0);
        cr_assert_eq(hs_table_close(w, NULL), 0);
        const char *one = path[k];
        hs_table *t = load(1, &one);
        if (k == 1) cr_assert_str_eq(t->sha256, first);
        if (k == 2) cr_assert_str_neq(t->sha256, first);
        if (!k) strcpy(first, t->sha256);
        hs_table_free(t);
    }
    for (int k = 0; k < 2; k++) {
        hs_table *t = load(2, (const char *[]){path[k ? 2 : 0], path[k ? 0 : 2]});
        cr_assert_eq(t->n_probes, 1);
        cr_assert_float_eq(t->probes[0].m.error, probe(7).m.error, 1e-12);
        hs_table_free(t);
    }
}

Test(table, a_rerun_sees_what_is_there) {
    const hs_table_info i = info_of(HS_SVG2);
    hs_table_info renamed = i;
    const char *path = scratch("t");
    strcpy(renamed.device, "another");
    write_some(path, &i, 10, 0, 1);
    hs_table_writer *w = open_table(path, &renamed);
    const hs_table *t = hs_table_so_far(w);
    cr_assert_eq(t->n_probes, 10);
    cr_assert_str_eq(t->info.device, "another");
    hs_table_close(w, NULL);
    hs_table *all = load(1, &path);
    cr_assert_str_eq(all->info.device, "another", "the last writer names its device");
    hs_table_free(all);
    /* a writer like the last one leaves no line of its own */
    char *before, *after;
    size_t a, b;
    cr_assert_eq(hs_file_read(path, 1 << 20, &before, &a, NULL), 0);
    hs_table_close(open_table(path, &renamed), NULL);
    cr_assert_eq(hs_file_read(path, 1 << 20, &after, &b, NULL), 0);
    cr_assert_eq(a, b);
    hs_free(before);
    hs_free(after);
}

static void refused(const char *path, const hs_table_info *i, int code, const char *message) {
    hs_table_writer *w = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_table_open(path, i, &w, &err), code, "%d: %s", err.code, err.msg);
    cr_assert_null(w);
    cr_assert(strstr(err.msg, message), "%s", err.msg);
}

Test(table, foreign_tables) {
    const hs_table_info i = info_of(HS_XATTENTION);
    char path[128], other_path[128];
    snprintf(path, sizeof path, "%s", scratch("t"));
    snprintf(other_path, sizeof other_path, "%s", scratch("o"));
    write_some(path, &i, 5, 0, 1);
#define DIFFERS(change, message)                                                                                       \
    {                                                                                                                  \
        hs_table_info other = i;                                                                                       \
        change;                                                                                                        \
        refused(path, &other, HS_EINVAL, message);                                                                     \
        remove(other_path);                                                                                            \
        write_some(other_path, &other, 0, 0, 1);                                                                       \
        hs_err err = {0};                                                                                              \
        hs_table *t = NULL;                                                                                            \
        cr_assert_eq(hs_table_load(2, (const char *[]){other_path, path}, &t, &err), HS_EINVAL);                       \
        cr_assert(!t && strstr(err.msg, message) && strstr(err.msg, path), "%s", err.msg);                             \
    }
    DIFFERS(other.sha256[0] = 'f', "its model.sha256 is \"0123")
    DIFFERS(other.layers = 4, "its model.layers is 3, expected 4")
    DIFFERS(other.heads = 3, "its model.heads is 2, expected 3")
    DIFFERS(other.width = 512, "its made_for.width is 256, expected 512")
    DIFFERS(other.height = 512, "its made_for.height is 128")
    DIFFERS(other.frames = 5, "its made_for.frames is 33")
    DIFFERS(other.steps = 50, "its made_for.steps is 30")
    DIFFERS(other.shift = 3, "its made_for.shift is 3.1, expected 3")
    DIFFERS(other.guidance = 5, "its made_for.guidance is 4")
    DIFFERS(other.solver = HS_EULER, "its made_for.solver is \"unipc\", expected \"euler\"")
    DIFFERS(other.sigmas = 1, "its made_for.sigmas is -1, expected 1")
    DIFFERS(other.policy = info_of(HS_POOLED).policy, "its method.name is \"xattention\", expected \"pooled\"")
    DIFFERS(other.policy.block = 64, "its method.block is 128, expected 64")
    DIFFERS(other.policy.stride = 8, "its method.stride is 16, expected 8")
    DIFFERS(other.policy.stride = 4, "its method.stride is 16, expected 4")
    DIFFERS(other.policy.stride = 2, "its method.stride is 16, expected 2")
    DIFFERS(other.policy.stride = 1, "its method.stride is 16, expected 1")
    DIFFERS(other.policy.compensate = 1, "its method.compensate is false, expected true")
    DIFFERS(other.policy.compat = 1, "its method.compat is false, expected true")
    DIFFERS(other.policy.dense_steps = 2, "its dense.steps is 3, expected 2")
    DIFFERS(other.policy.dense_layers = 0, "its dense.layers is 1, expected 0")
    DIFFERS(strcpy(other.precision, "bf16"), "its calibration.precision is \"fp32\", expected \"bf16\"")
    DIFFERS(other.prompts_sha256[1] = 'f', "its calibration.prompts_sha256 is")
    DIFFERS(other.prompts = 6, "its calibration.prompts is 5, expected 6")
    DIFFERS(other.seed = 1, "its calibration.seed is 9007199254740992, expected 1")
    DIFFERS(other.intervals[0][1] = 14, "its intervals is [[3,15],[16,29]], expected [[3,14],[16,29]]")
    DIFFERS(other.candidates[1] = 0.4, "its candidates is [0.9,0.333")
    hs_table_info alike = i; /* names and reuse mean nothing */
    strcpy(alike.device, "x");
    strcpy(alike.model, "y");
    alike.policy.reuse.kind = HS_REUSE_DRIFT;
    hs_table_close(open_table(path, &alike), NULL);
    /* clusters of svg2, in a table of its own */
    const hs_table_info svg2 = info_of(HS_SVG2);
    hs_table_info other = svg2;
    remove(path);
    write_some(path, &svg2, 0, 0, 1);
    other.policy.min_share = 0.2f;
    refused(path, &other, HS_EINVAL, "its method.min_share is 0.123, expected 0.2");
    other = svg2;
    other.policy.q_clusters = 7;
    refused(path, &other, HS_EINVAL, "its method.q_clusters is 300, expected 7");
    /* what could not be read back is not written */
    other = svg2;
    other.seed = UINT64_MAX;
    refused(scratch("new"), &other, HS_EFORMAT, "calibration.seed");
    other = i;
    other.policy.stride = 3;
    refused(scratch("new"), &other, HS_EINVAL, "stride 3, must be 1, 2, 4, 8 or 16");
    other = svg2;
    other.candidates[2] = 1;
    refused(scratch("new"), &other, HS_EFORMAT, "candidate 2");
}

/* A table of one probe and one joint measurement; the line `from` replaced by `to`. */
static const char *damaged(const char *from, const char *to) {
    const hs_table_info i = info_of(HS_XATTENTION);
    const char *path = scratch("damaged");
    char *text, copy[8192];
    size_t len;
    remove(path);
    write_some(path, &i, 1, 0, 1);
    cr_assert_eq(hs_file_read(path, sizeof copy - 1, &text, &len, NULL), 0);
    strcpy(copy, text);
    hs_free(text);
    cr_assert(strstr(copy, from), "%s is not in %s", from, copy);
    char *at = strstr(copy, from), rest[8192];
    strcpy(rest, at + strlen(from));
    strcpy(at, to);
    strcat(copy, rest);
    write_text(path, copy);
    return path;
}

Test(table, damage) {
    static const struct {
        const char *from, *to, *message;
    } bad[] = {
        {"\"format\":\"haste-table\"", "\"format\":\"haste-profile\"", "not that of a haste-table"},
        {"\"version\":1", "\"version\":2", "another version"},
        {"\"layers\":3", "\"layers\":0", "model.layers is out of range"},
        {"\"layers\":3", "\"layers\":3,\"more\":1", "model has members"},
        {"\"layers\":3,", "", "model.layers is missing"},
        {"\"dense\":{", "\"dance\":{", "dense is missing"},
        {"\"seed\":", "\"speed\":", "calibration.seed is missing"},
        {"\"name\":\"xattention\"", "\"name\":\"dense\"", "none of the sparse methods"},
        {"\"block\":128", "\"block\":100", "blocks of 100 tokens"},
        {"\"candidates\":[0.9", "\"candidates\":[1", "candidate 0"},
        {"[[3,15],", "[[3,15,1],", "interval 0"},
        {",29]]", ",30]]", "interval 1"},
        {"\"intervals\"", "\"more\":1,\"intervals\"", "10 members"},
        {"{\"writer\":{\"model\"", "{\"writer\":{\"modal\"", "line 2: writer must have"},
        {"{\"writer\"", "{\"reader\"", "line 2: neither a probe"},
        {"{\"probe\":{\"prompt\":0", "{\"probe\":{\"prompt\":5", "line 3: a probe outside"},
        {"\"layer\":0", "\"layer\":3", "line 3: a probe outside"},
        {"\"head\":0", "\"head\":2", "line 3: a probe outside"},
        {"\"head\":0", "\"head\":0.5", "line 3: probe.head is out of range"},
        {"\"step\":9", "\"step\":16", "line 3: a probe outside"},
        {"\"candidate\":0", "\"candidate\":3", "line 3: a probe outside"},
        {"\"candidate\":0", "\"candidate\":-1", "line 3: probe.candidate is out of range"},
        {"\"error\":0.001", "\"error\":-0.001", "line 3: probe.error is out of range"},
        {"\"error\":0.001", "\"error\":null", "line 3: probe.error is out of range"},
        {"\"error\":0.001,", "", "line 3: probe.error is missing"},
        {"\"sparsity\":0.5", "\"sparsity\":1.5", "line 3: probe.sparsity is out of range"},
        {"\"error\":0.001", "\"extra\":1,\"error\":0.001", "line 3: probe has members"},
        {"{\"probe\":", "{\"also\":1,\"probe\":", "line 3: neither a probe"},
        {"{\"probe\":{", "{\"probe\":{{", "line 3:"},
        {"{\"joint\":{\"prompt\":3", "{\"joint\":{\"prompt\":-3", "line 4: joint.prompt is out of range"},
        {"\"candidate\":-2", "\"candidate\":-3", "line 4: joint.candidate is out of range"},
        {"\"candidate\":-2", "\"candidate\":-1", "line 4: a joint measurement outside"},
        {"\"config\":\"\"", "\"config\":\"00000000000000ab\"", "line 4: a joint measurement outside"},
        {"\"config\":\"\"", "\"config\":\"XY\"", "line 4: joint.config is out of range"},
    };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        const char *path = damaged(bad[k].from, bad[k].to);
        hs_table *t = NULL;
        hs_err err = {0};
        int r = hs_table_load(1, &path, &t, &err);
        cr_assert(r == HS_EFORMAT || r == HS_EINVAL || r == HS_ENOTSUP, "%s: accepted", bad[k].to);
        cr_assert(!t && strstr(err.msg, bad[k].message) && strstr(err.msg, path), "%s: %s", bad[k].to, err.msg);
    }
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(table, no_numbers) {
    const hs_table_info i = info_of(HS_XATTENTION);
    hs_table_writer *w = open_table(scratch("t"), &i);
    hs_err err = {0};
    hs_probe p = probe(1);
    hs_joint j = joint(1);
    p.m.error_band = NAN;
    j.m.error = INFINITY;
    cr_assert_eq(hs_table_add_probe(w, &p, &err), HS_ENUMERIC);
    cr_assert(strstr(err.msg, "layer 0, head 0, step 22"), "%s", err.msg);
    cr_assert_eq(hs_table_add_joint(w, &j, &err), HS_ENUMERIC);
    cr_assert_eq(hs_table_close(w, NULL), 0);
    const char *path = scratch("t");
    hs_table *t = load(1, &path);
    cr_assert(t->n_probes == 0 && t->n_joints == 0 && !t->probes && !t->joints);
    hs_table_free(t);
    hs_table_free(NULL);
    cr_assert_eq(hs_table_close(NULL, NULL), 0);
}

static int open_and_close(void *path, hs_err *err) {
    const hs_table_info i = info_of(HS_SVG2);
    hs_table_writer *w = NULL;
    int r = hs_table_open(path, &i, &w, err);
    if (r) return r;
    const hs_probe p = probe(3);
    r = hs_table_add_probe(w, &p, err);
    hs_table_close(w, NULL);
    return r;
}

static int load_two(void *path, hs_err *err) {
    hs_table *t = NULL;
    const char *const paths[] = {path, path};
    int r = hs_table_load(2, paths, &t, err);
    if (!r) hs_table_free(t);
    return r;
}

Test(table, no_memory) {
    const char *path = scratch("t");
    cr_assert_gt(fail_allocations(open_and_close, (void *)path, "writing a table"), 10);
    cr_assert_gt(fail_allocations(load_two, (void *)path, "reading a table"), 10);
}
