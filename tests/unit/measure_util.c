/* What the tests of measuring share. */
#include "measure_util.h"
#include "genmodel.h"

#include <criterion/criterion.h>
#include <unistd.h>

const char *const pool[3] = {"a red circle", "a blue square moves", "two rings"};
static const char *const apart[] = {"a green star"};

setup make_setup(const char *device, hs_method method) {
    setup s = {0};
    hs_err err = {0};
    const char *dir = scratch("model");
    if (access(dir, R_OK)) cr_assert_eq(gm_write_model(GOLDEN_DIR, "A", dir, NULL, &err), 0, "%s", err.msg);
    const hs_model_params mp = {.dir = dir, .device = device, .precision = "fp32", .threads = 1};
    cr_assert_eq(hs_model_open(&mp, &s.m, &err), 0, "%s", err.msg);
    s.req = hs_request_default(s.m);
    s.req.width = s.req.height = 128;
    s.req.frames = 9;
    s.req.steps = 4;
    s.req.guidance = 3;
    s.req.negative = "dull";
    s.req.attention = hs_attn_policy_default(method);
    s.req.attention.block = 64;
    s.req.attention.stride = 8;
    if (method == HS_SVG2) {
        s.req.attention.q_clusters = 5;
        s.req.attention.k_clusters = 9;
        s.req.attention.iters_first = 4;
    }
    s.p = (hs_measure_params){.prompts = pool,
                              .n_prompts = 3,
                              .held_out = apart,
                              .n_held_out = 1,
                              .n_intervals = 2,
                              .prompts_per_head = 2,
                              .n_candidates = 3,
                              .candidates = {0.3, 0.6, 0.8},
                              .seed = 11,
                              .shards = 1};
    s.n = 16 * 3 * 16 * 16;
    return s;
}

void free_setup(setup *s) {
    hs_model_free(s->m);
    cr_assert_eq(hs_alloc_live(), 0);
}

hs_table *load_tables(int n, const char *const *paths) {
    hs_table *t = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_table_load(n, paths, &t, &err), 0, "%s", err.msg);
    return t;
}

void measure_into(setup *s, const char *path) {
    hs_err err = {0};
    s->p.table = path;
    cr_assert_eq(hs_measure_probes(s->m, &s->req, &s->p, &err), 0, "%s", err.msg);
}
