/* Measuring on a tiny random model: what a probe is, what the recorder shows, who measures what. */
#include "measure_util.h"
#include "error.h"

#include <criterion/criterion.h>
#include <math.h>
#include <unistd.h>

TestSuite(measure, .fini = scratch_remove);

static hs_session *open_session(const setup *s) {
    hs_session *x = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_session_new(s->m, &s->req, &x, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_session_set_text(x, 0, pool[0], NULL, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_session_set_text(x, 1, s->req.negative, NULL, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_session_begin(x, &err), 0, "%s", err.msg);
    return x;
}

/* The velocity of a call; NULL where none is expected. Freed by hs_free. */
static float *call(const setup *s, hs_session *x, const float *latents, hs_policy p) {
    hs_err err = {0};
    float *v = hs_alloc((size_t)s->n * sizeof *v);
    p.steps = s->req.steps;
    cr_assert_eq(hs_denoise(x, latents, hs_session_timestep(x, p.step), &p, v, &err), 0, "%s", err.msg);
    return v;
}

static float *noise(const setup *s) {
    float *x = hs_alloc((size_t)s->n * sizeof *x);
    hs_randn(5, x, s->n);
    return x;
}

#define SAME(a, b, ...)      cr_assert(!memcmp(a, b, (size_t)s.n * sizeof(float)), __VA_ARGS__)
#define DIFFERENT(a, b, ...) cr_assert(memcmp(a, b, (size_t)s.n * sizeof(float)), __VA_ARGS__)

static const float dense[CELLS] = {1, 1, 1, 1}, one_sparse[CELLS] = {1, 1, 1, 0.4f};

/* ---- what one call is ---- */

Test(measure, a_start_in_the_middle_is_the_whole_forward) {
    setup s = make_setup("ref", HS_XATTENTION);
    hs_session *x = open_session(&s);
    hs_err err = {0};
    float *in = noise(&s);
    for (int b = 0; b < 2; b++) {
        const hs_policy all = {.step = 1, .branch = b, .top_p = dense},
                        probe = {.step = 1, .branch = b, .top_p = one_sparse};
        hs_policy way = all, from = probe;
        float *v = call(&s, x, in, all), *w = call(&s, x, in, probe);
        DIFFERENT(v, w, "the sparse head changes nothing");
        from.first = 1;
        if (!b) {
            cr_assert_eq(hs_denoise(x, in, 500, &from, w, &err), HS_EINVAL);
            cr_assert(strstr(err.msg, "cannot start at layer 1"), "%s", err.msg);
        }
        way.end = 1;
        hs_free(call(&s, x, in, way));
        for (int again = 0; again < 2; again++) { /* the kept stream is not used up */
            float *u = call(&s, x, NULL, from);
            SAME(u, w, "branch %d", b);
            hs_free(u);
        }
        from.top_p = dense;
        float *u = call(&s, x, NULL, from);
        SAME(u, v, "dense, branch %d", b);
        hs_free(u);
        hs_free(v);
        hs_free(w);
    }
    const hs_policy wrong[] = {{.first = 2}, {.first = -1}, {.end = 3}, {.first = 1, .end = 1}};
    for (int k = 0; k < 4; k++) cr_assert_eq(hs_denoise(x, in, 500, &wrong[k], NULL, &err), HS_EINVAL, "%d", k);
    hs_free(in);
    hs_session_free(x);
    free_setup(&s);
}

static void check_calls(hs_session *x, int branch, int layer, int sparse_head) {
    float density[HEADS], drift[HEADS];
    uint8_t kind[HEADS];
    cr_assert_eq(hs_session_layer_stats(x, branch, layer, density, drift, kind, NULL), 0);
    for (int h = 0; h < HEADS; h++) {
        cr_assert_eq(kind[h], h == sparse_head ? HS_HEAD_PREDICTED : HS_HEAD_DENSE, "layer %d, head %d", layer, h);
        cr_assert(h == sparse_head ? density[h] < 1 : density[h] == 1, "layer %d, head %d: %g", layer, h, density[h]);
        cr_assert_eq(drift[h], 0);
    }
}

/* Calls with thresholds of their own leave no trace in later ones, and scores may be kept. */
Test(measure, a_probe_depends_on_nothing_before_it) {
    static const hs_method methods[] = {HS_XATTENTION, HS_POOLED, HS_SVG2};
    for (int m = 0; m < 3; m++) {
        setup s = make_setup(FAST, methods[m]);
        hs_session *x = open_session(&s);
        float *in = noise(&s), *other = noise(&s);
        for (int64_t k = 0; k < s.n; k++) other[k] = 0.5f * other[k] + 0.3f;
        static const float low[CELLS] = {1, 0.3f, 1, 1}, high[CELLS] = {1, 0.6f, 1, 1},
                           all[CELLS] = {0.5f, 0.5f, 0.5f, 0.5f};
        hs_policy p = {.step = 2, .branch = 1, .top_p = low};
        float *v_low = call(&s, x, in, p);
        check_calls(x, 1, 0, 1);
        check_calls(x, 1, 1, -1);
        p.top_p = high;
        float *v_high = call(&s, x, in, p);
        DIFFERENT(v_low, v_high, "method %d: thresholds do nothing", m);
        hs_free(call(&s, x, other, (hs_policy){.step = 2, .branch = 1, .top_p = all}));
        hs_free(call(&s, x, other, (hs_policy){.step = 1, .branch = 0, .top_p = low}));
        for (int keep = 0; keep < 2; keep++) {
            p.keep_scores = keep;
            p.top_p = high;
            float *v = call(&s, x, in, p);
            SAME(v, v_high, "method %d, high, keep %d", m, keep);
            hs_free(v);
            /* the other branch in between, as measuring does it */
            hs_free(call(&s, x, other, (hs_policy){.step = 2, .branch = 0, .top_p = low}));
            p.top_p = low;
            v = call(&s, x, in, p);
            SAME(v, v_low, "method %d, low, keep %d", m, keep);
            check_calls(x, 1, 0, 1);
            hs_free(v);
        }
        /* kept scores are those of the last input: so the flag really saves the prediction */
        p.keep_scores = 1;
        p.top_p = high;
        float *stale = call(&s, x, other, p);
        p.keep_scores = 0;
        float *fresh = call(&s, x, other, p);
        DIFFERENT(stale, fresh, "method %d", m);
        hs_free(stale);
        hs_free(fresh);
        hs_free(v_low);
        hs_free(v_high);
        hs_free(in);
        hs_free(other);
        hs_session_free(x);
        free_setup(&s);
    }
}

Test(measure, dense_and_full) {
    setup s = make_setup("ref", HS_SVG2);
    hs_session *x = open_session(&s);
    hs_err err = {0};
    float *in = noise(&s);
    float *own = call(&s, x, in, (hs_policy){.step = 1, .top_p = dense}); /* thresholds of 1 */
    check_calls(x, 0, 0, -1);
    static const float half[CELLS] = {0.5f, 0.5f, 0.5f, 0.5f};
    float *full = call(&s, x, in, (hs_policy){.step = 1, .top_p = half, .full_masks = 1});
    float density[HEADS], drift[HEADS];
    uint8_t kind[HEADS];
    for (int l = 0; l < LAYERS; l++) {
        cr_assert_eq(hs_session_layer_stats(x, 0, l, density, drift, kind, NULL), 0);
        cr_assert(density[0] == 1 && density[1] == 1 && kind[0] == HS_HEAD_PREDICTED, "full masks drop something");
    }
    cr_assert_leq(hs_error_plain(full, own, s.n), 1e-10);
    /* the same session, now dense: the same numbers */
    const hs_attn_policy none = hs_attn_policy_default(HS_DENSE);
    cr_assert_eq(hs_session_attention(x, &none, &err), 0, "%s", err.msg);
    float *v = call(&s, x, in, (hs_policy){.step = 1});
    SAME(v, own, "dense thresholds are not dense attention");
    hs_attn_policy wrong = s.req.attention;
    wrong.q_clusters = 0;
    cr_assert_eq(hs_session_attention(x, &wrong, &err), HS_EINVAL);
    cr_assert_eq(hs_session_attention(x, &s.req.attention, &err), 0);
    float *again = call(&s, x, in, (hs_policy){.step = 1, .top_p = half, .full_masks = 1});
    SAME(again, full, "a new attention state");
    hs_free(again);
    hs_free(v);
    hs_free(own);
    hs_free(full);
    hs_free(in);
    hs_session_free(x);
    free_setup(&s);
}

/* ---- the recorder ---- */

typedef struct tape {
    const setup *s;
    float *latents, *velocity[2];
    float t[8];
    int steps;
} tape;

static void on_step(void *user, int step, float t, const float *latents, const float *const velocity[HS_BRANCH_COUNT]) {
    tape *k = user;
    const setup s = *k->s;
    cr_assert_eq(step, k->steps++);
    k->t[step] = t;
    memcpy(k->latents + step * s.n, latents, (size_t)s.n * sizeof *latents);
    for (int b = 0; b < 2; b++)
        if (velocity[b])
            memcpy(k->velocity[b] + step * s.n, velocity[b], (size_t)s.n * sizeof *latents);
        else
            cr_assert(b == 1 && s.req.guidance <= 1);
}

/* What the hook shows is what entered and what came out: the same steps by hs_denoise, masks and reuse included. */
Test(measure, recorded_steps_can_be_gone_through_again) {
    for (int guided = 0; guided < 2; guided++) {
        setup s = make_setup(FAST, HS_XATTENTION);
        hs_session *x = NULL;
        hs_err err = {0};
        s.req.prompt = pool[0];
        s.req.guidance = guided ? 3 : 1;
        s.req.attention.dense_steps = 1;
        s.req.attention.top_p = 0.5f;
        tape k = {.s = &s};
        k.latents = hs_alloc((size_t)s.n * 4 * sizeof(float));
        for (int b = 0; b < 2; b++) k.velocity[b] = hs_alloc((size_t)s.n * 4 * sizeof(float));
        cr_assert_eq(hs_session_new(s.m, &s.req, &x, &err), 0);
        const hs_run_hooks hooks = {.user = &k, .step = on_step};
        cr_assert_eq(hs_generate(x, &s.req, NULL, &hooks, NULL, &err), 0, "%s", err.msg);
        cr_assert_eq(k.steps, 4);
        float *first = noise(&s);
        hs_randn(s.req.seed, first, s.n);
        SAME(k.latents, first, "the first step starts from noise");
        cr_assert_eq(hs_session_begin(x, &err), 0);
        for (int step = 0; step < 4; step++)
            for (int b = 0; b <= guided; b++) {
                cr_assert_eq(k.t[step], hs_session_timestep(x, step));
                float *v = call(&s, x, k.latents + step * s.n, (hs_policy){.step = step, .branch = b});
                SAME(v, k.velocity[b] + step * s.n, "step %d, branch %d", step, b);
                hs_free(v);
            }
        hs_free(first);
        hs_free(k.latents);
        hs_free(k.velocity[0]);
        hs_free(k.velocity[1]);
        hs_session_free(x);
        free_setup(&s);
    }
}

/* ---- the measurements ---- */

static int close_to(double a, double b) {
    return fabs(a - b) <= 6e-9 * fabs(b); /* tables keep nine digits */
}

/* One forward of both branches the long way, against the dense one d: the definition of what a table holds. */
static void check_measured(setup *s, hs_session *x, const float *latents, float *const d[2], int step,
                           const float *top_p, int full, int layer, int head, const hs_measured *m) {
    float *v[2], *both[2];
    double sparse = 0;
    hs_bands *bands = NULL;
    for (int b = 0; b < 2; b++) {
        v[b] = call(s, x, latents, (hs_policy){.step = step, .branch = b, .top_p = top_p, .full_masks = full});
        for (int l = 0; l < LAYERS; l++) {
            float density[HEADS], drift[HEADS];
            uint8_t kind[HEADS];
            cr_assert_eq(hs_session_layer_stats(x, b, l, density, drift, kind, NULL), 0);
            for (int h = 0; h < HEADS; h++)
                if (head < 0)
                    sparse += (1 - (double)density[h]) / (2 * CELLS);
                else if (l == layer && h == head)
                    sparse += (1 - (double)density[h]) / 2;
        }
    }
    for (int k = 0; k < 2; k++) {
        float *const *from = k ? d : v;
        both[k] = hs_alloc((size_t)s->n * sizeof(float));
        for (int64_t i = 0; i < s->n; i++)
            both[k][i] = (float)(from[1][i] + s->req.guidance * ((double)from[0][i] - (double)from[1][i]));
    }
    cr_assert_eq(hs_bands_new(16, 3, 16, 16, &bands, NULL), 0);
    const double error = hs_error_plain(both[0], both[1], s->n);
    cr_assert_leq(fabs(m->error - error), 1e-5 * error, "error %.9g, expected %.9g", m->error, error);
    cr_assert_leq(fabs(m->error_band - hs_error_bands(bands, both[0], both[1])), 1e-5 * error);
    cr_assert(close_to(m->error_cond, hs_error_plain(v[0], d[0], s->n)));
    cr_assert(close_to(m->error_uncond, hs_error_plain(v[1], d[1], s->n)));
    cr_assert(close_to(m->sparsity, sparse), "sparsity %.9g, expected %.9g", m->sparsity, sparse);
    hs_bands_free(bands);
    for (int k = 0; k < 2; k++) {
        hs_free(v[k]);
        hs_free(both[k]);
    }
}

/* The recorded latents of a step; the folder holds those of one prompt. */
static float *recorded(const setup *s, int step) {
    char command[512], name[512] = "";
    snprintf(command, sizeof command, "ls '%s.latents'/*.step%d.safetensors", s->p.table, step);
    FILE *f = popen(command, "r");
    float *x = hs_alloc((size_t)s->n * sizeof *x);
    hs_err err = {0};
    cr_assert(f && fgets(name, sizeof name, f));
    cr_assert_null(fgets(command, sizeof command, f), "latents of more than one prompt");
    pclose(f);
    name[strcspn(name, "\n")] = '\0';
    cr_assert_eq(hs_latents_load(name, (int64_t[]){16, 3, 16, 16}, x, &err), 0, "%s", err.msg);
    return x;
}

/* Every probe and joint measurement of a table against forwards through all layers. */
Test(measure, is_what_the_long_way_gives) {
    setup s = make_setup(FAST, HS_XATTENTION);
    s.p.n_prompts = s.p.prompts_per_head = 1;
    s.p.n_held_out = 0;
    s.p.n_candidates = 2;
    const char *path = scratch("t");
    measure_into(&s, path);
    static const float mixed[CELLS] = {0.3f, 1, 0.55f, 0.9f};
    static const float timed[2 * CELLS] = {0.55f, 1, 1, 0.3f, 1, 0.3f, 0.9f, 1}; /* other ones in each interval */
    const hs_thresholds config[] = {{1, mixed}, {1, mixed}, {2, timed}}, odd = {3, timed};
    hs_err err = {0};
    cr_assert_eq(hs_measure_joint(s.m, &s.req, &s.p, 1, 3, config, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_measure_joint(s.m, &s.req, &s.p, 1, 1, &odd, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "thresholds of 3 step intervals, but the table has 2"), "%s", err.msg);
    hs_table *t = load_tables(1, &path);
    cr_assert_eq(t->n_probes, CELLS * 2 * 2);
    cr_assert_eq(t->n_joints, 5 * 2);                  /* floor, two candidates, two configurations (one given twice) */
    float *at[2] = {recorded(&s, 0), recorded(&s, 2)}; /* the middles of steps 0, 1 and 2, 3 */
    hs_session *x = open_session(&s);
    double least = 1;
    float *d[2][2];
    for (int k = 0; k < 4; k++)
        d[k / 2][k % 2] = call(&s, x, at[k / 2], (hs_policy){.step = k / 2 * 2, .branch = k % 2, .top_p = dense});
    for (int64_t k = 0; k < t->n_probes; k++) {
        const hs_probe *p = &t->probes[k];
        float top_p[CELLS] = {1, 1, 1, 1};
        top_p[p->layer * HEADS + p->head] = (float)s.p.candidates[p->candidate];
        cr_assert_eq(p->step, 2 * p->interval);
        check_measured(&s, x, at[p->interval], d[p->interval], p->step, top_p, 0, p->layer, p->head, &p->m);
        cr_assert_gt(p->m.seconds, 0);
        if (p->m.error < least) least = p->m.error;
    }
    cr_assert_gt(least, 1e-12, "a probe that changes nothing");
    char name[2][17];
    for (int k = 0; k < 2; k++) hs_measure_config_name(config[k + 1], LAYERS, HEADS, name[k]);
    cr_assert_str_neq(name[0], name[1]);
    for (int64_t k = 0; k < t->n_joints; k++) {
        const hs_joint *j = &t->joints[k];
        float top_p[CELLS] = {0.5f, 0.5f, 0.5f, 0.5f};
        for (int c = 0; c < CELLS && j->candidate >= 0; c++) top_p[c] = (float)s.p.candidates[j->candidate];
        const int is_timed = !strcmp(j->config, name[1]);
        const float *own = is_timed ? timed + j->interval * CELLS : mixed;
        if (j->candidate == HS_JOINT_CONFIG) cr_assert(is_timed || !strcmp(j->config, name[0]));
        check_measured(&s, x, at[j->interval], d[j->interval], j->step, j->candidate == HS_JOINT_CONFIG ? own : top_p,
                       j->candidate == HS_JOINT_FLOOR, 0, -1, &j->m);
        if (j->candidate == HS_JOINT_FLOOR) cr_assert(j->m.error < 1e-10 && j->m.sparsity == 0);
    }
    /* the recorded latents are those of a dense generation from the recorded noise */
    hs_request r = s.req;
    r.prompt = pool[0];
    r.noise = at[0];
    r.attention = hs_attn_policy_default(HS_DENSE);
    tape k = {.s = &s, .latents = hs_alloc((size_t)s.n * 4 * sizeof(float))};
    for (int b = 0; b < 2; b++) k.velocity[b] = hs_alloc((size_t)s.n * 4 * sizeof(float));
    cr_assert_eq(hs_session_attention(x, &r.attention, NULL), 0);
    const hs_run_hooks hooks = {.user = &k, .step = on_step};
    cr_assert_eq(hs_generate(x, &r, NULL, &hooks, NULL, &err), 0, "%s", err.msg);
    SAME(k.latents + 2 * s.n, at[1], "not the latents of a dense generation");
    hs_free(k.latents);
    hs_free(k.velocity[0]);
    hs_free(k.velocity[1]);
    for (int i = 0; i < 4; i++) hs_free(d[i / 2][i % 2]);
    hs_free(at[0]);
    hs_free(at[1]);
    hs_session_free(x);
    hs_table_free(t);
    free_setup(&s);
}

/* ---- dealing the work ---- */

static double eta_at_end;

static void note_eta(void *user, const char *what, int64_t at, int64_t total, double seconds, double eta) {
    (void)user, (void)what;
    eta_at_end = eta;
    cr_assert(at >= 0 && at <= total && total == 12 && seconds >= 0);
}

Test(measure, every_head_gets_its_prompts) {
    setup s = make_setup(FAST, HS_POOLED);
    s.req.attention.dense_layers = 1;
    s.req.attention.dense_steps = 1;
    s.p.prompts_per_head = 2;
    s.p.n_intervals = 3;
    s.p.n_candidates = 1;
    hs_measure_plan before, after;
    const char *path = scratch("t");
    s.p.table = path;
    hs_err err = {0};
    cr_assert_eq(hs_measure_plan_make(s.m, &s.req, &s.p, &before, &err), 0, "%s", err.msg);
    cr_assert(access(path, F_OK), "planning has made a table");
    s.p.progress = note_eta;
    measure_into(&s, path);
    cr_assert_eq(hs_measure_plan_make(s.m, &s.req, &s.p, &after, &err), 0, "%s", err.msg);
    hs_table *t = load_tables(1, &path);
    int of_head[HEADS] = {0}, of_prompt[3] = {0};
    for (int64_t k = 0; k < t->n_probes; k++) {
        const hs_probe *p = &t->probes[k];
        cr_assert_eq(p->layer, 1, "a dense layer was probed");
        cr_assert_eq(p->step, p->interval + 1); /* steps 1, 2, 3 */
        of_head[p->head]++;
        of_prompt[p->prompt]++;
    }
    for (int h = 0; h < HEADS; h++) cr_assert_eq(of_head[h], 2 * 3);
    for (int k = 0; k < 3; k++) cr_assert(of_prompt[k] == 3 || of_prompt[k] == 6, "prompt %d: %d", k, of_prompt[k]);
    /* Three prompts of three units each: recording steps 0 to 3; in every unit the dense velocity, the way to layer 1
     * of 2, and its probes, each half a forward; all for two branches. */
    cr_assert_eq(before.probes, 12);
    cr_assert_eq(before.probes_done, 0);
    cr_assert_eq(before.dense_passes, 3);
    cr_assert_float_eq(before.forwards, 2 * (9 * 1.5 + 12 * 0.5), 1e-9);
    cr_assert_float_eq(before.forwards_naive, 2 * 12 * 2, 1e-9);
    cr_assert_float_eq(before.forwards_dense, 2 * 3 * 4, 1e-9);
    cr_assert(after.probes == 12 && after.probes_done == 12 && after.dense_passes == 0 && after.forwards == 0 &&
              after.forwards_dense == 0);
    /* and that is what was done: at the end nothing was expected to be left */
    cr_assert_lt(fabs(eta_at_end), 1e-6, "%g s", eta_at_end);
    hs_table_free(t);
    free_setup(&s);
}
