/* From probes to thresholds: means, incomplete tables, the floor, dense layers, budgets, joint errors. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "measure.h"
#include "refine.h"
#include "show.h"

enum { LAYERS = 3, HEADS = 2, CANDIDATES = 3, INTERVALS = 2, PROMPTS = 2 };

static const double thresholds[CANDIDATES] = {0.9, 0.5, 0.7}; /* in no order: curves sort them */

/* What head (l, h) costs at threshold p, and drops. */
static double error_at(int l, int h, double p) {
    return (1 + l) * (1 + 2 * h) * 1e-3 * (1 - p) * (1 - p);
}
static double sparsity_at(int l, int h, double p) {
    return (1 - p) * (0.6 + 0.1 * l + 0.15 * h);
}

/* Every head on one prompt; intervals differ by a factor, so that a mean over them must be taken. In the order of a
 * loaded table. */
static hs_table *make_table(int dense_layers) {
    hs_table *t = calloc(1, sizeof *t);
    hs_table_info *i = &t->info;
    *i = (hs_table_info){.model = "made-up",
                         .layers = LAYERS,
                         .heads = HEADS,
                         .width = 64,
                         .height = 64,
                         .frames = 9,
                         .steps = 10,
                         .shift = 3,
                         .guidance = 4,
                         .solver = HS_EULER,
                         .prompts = PROMPTS,
                         .seed = 3,
                         .n_intervals = INTERVALS,
                         .intervals = {{0, 4}, {5, 9}},
                         .n_candidates = CANDIDATES};
    memset(i->sha256, '5', 64);
    memset(i->prompts_sha256, '6', 64);
    memset(t->sha256, '7', 64);
    memcpy(i->candidates, thresholds, sizeof thresholds);
    i->policy = hs_attn_policy_default(HS_SVG2);
    i->policy.reuse.kind = HS_REUSE_NONE;
    i->policy.dense_layers = dense_layers;
    t->probes = calloc(LAYERS * HEADS * CANDIDATES * INTERVALS, sizeof *t->probes);
    t->joints = calloc(64, sizeof *t->joints);
    for (int l = dense_layers; l < LAYERS; l++)
        for (int h = 0; h < HEADS; h++)
            for (int k = 0; k < CANDIDATES; k++)
                for (int j = 0; j < INTERVALS; j++) {
                    double e = error_at(l, h, thresholds[k]) * (j ? 0.5 : 1.5);
                    double s = sparsity_at(l, h, thresholds[k]) + (j ? 0.01 : -0.01);
                    t->probes[t->n_probes++] =
                        (hs_probe){(l + h) % PROMPTS, 2 + 5 * j, j, l, h, k, {e, 3 * e, e, e, s, 0}};
                }
    return t;
}

static void free_table(hs_table *t) {
    free(t->probes);
    free(t->joints);
    free(t);
}

static void add_joint(hs_table *t, int candidate, const char *config, int prompt, double error) {
    hs_joint *j = &t->joints[t->n_joints++];
    *j = (hs_joint){.prompt = prompt, .candidate = candidate, .m = {error, 10 * error, 0, 0, 0.4, 2}};
    snprintf(j->config, sizeof j->config, "%s", config);
    j->step = (int)t->n_joints; /* each another one */
    snprintf(j->text, sizeof j->text, "%016x", prompt);
}

static hs_curves *curves_of(const hs_table *t, hs_error_kind kind) {
    hs_curves *c = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_curves_make(t, kind, &c, &err), 0, "%s", err.msg);
    return c;
}

Test(solve, curves_are_means_with_dense_at_the_end) {
    hs_table *t = make_table(0);
    static const double sorted[] = {0.5, 0.7, 0.9, 1};
    for (int kind = 0; kind < 2; kind++) {
        hs_curves *c = curves_of(t, (hs_error_kind)kind);
        cr_assert(c->points == 4 && c->samples == t->n_probes && c->dropped == 0 && !c->has_floor);
        cr_assert(c->fewest == 1 && c->most == 1);
        for (int i = 0; i < LAYERS * HEADS; i++)
            for (int k = 0; k < 4; k++) {
                double e = error_at(i / HEADS, i % HEADS, sorted[k]) * (kind ? 3 : 1);
                cr_assert_eq(c->top_p[k], sorted[k]);
                cr_assert_float_eq(c->error[4 * i + k], k == 3 ? 0 : e, 1e-12);
                cr_assert_float_eq(c->sparsity[4 * i + k], k == 3 ? 0 : sparsity_at(i / HEADS, i % HEADS, sorted[k]),
                                   1e-12);
                cr_assert_float_eq(c->interval_error[4 * i + k], k == 3 ? 0 : 1.5 * e, 1e-12);
            }
        hs_curves_free(c);
    }
    free_table(t);
}

/* Intervals weigh the same, however many prompts each was measured with. */
Test(solve, means_are_over_prompts_then_intervals) {
    hs_table *t = make_table(0);
    hs_probe *more = calloc((size_t)t->n_probes + 3, sizeof *more);
    int64_t n = 0;
    for (int64_t i = 0; i < t->n_probes; i++) {
        more[n++] = t->probes[i];
        if (t->probes[i].layer || t->probes[i].head || t->probes[i].interval) continue;
        more[n] = t->probes[i]; /* a second prompt in interval 0 of head 0, three times the error */
        more[n].prompt++, more[n].m.error *= 3;
        n++;
    }
    free(t->probes);
    t->probes = more, t->n_probes = n;
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    cr_assert_float_eq(c->error[0], error_at(0, 0, 0.5) * (0.5 * (1.5 + 4.5) + 0.5) / 2, 1e-12);
    cr_assert(c->fewest == 1 && c->most == 2);
    hs_curves_free(c);
    free_table(t);
}

Test(solve, incomplete_sets_are_left_out_and_missing_ones_refused) {
    hs_table *t = make_table(0);
    hs_curves *c;
    hs_err err;
    /* a prompt that only one threshold saw must not shift that threshold's mean */
    hs_probe *more = calloc((size_t)t->n_probes + 1, sizeof *more);
    memcpy(more, t->probes, sizeof *more);
    more[1] = more[0], more[1].prompt = 1, more[1].m.error = 99;
    memcpy(more + 2, t->probes + 1, (size_t)(t->n_probes - 1) * sizeof *more);
    free(t->probes);
    t->probes = more, t->n_probes++;
    c = curves_of(t, HS_ERROR_PLAIN);
    cr_assert_eq(c->dropped, 1);
    cr_assert_float_eq(c->error[2], error_at(0, 0, 0.9), 1e-12);
    hs_curves_free(c);
    t->n_probes--; /* the last head lacks its last candidate's last interval */
    cr_assert_eq(hs_curves_make(t, HS_ERROR_PLAIN, &c, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "1 of 12 pairs of head and step interval lack probes"), "%s", err.msg);
    t->n_probes = 0;
    cr_assert_eq(hs_curves_make(t, HS_ERROR_PLAIN, &c, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "12 of 12"), "%s", err.msg);
    free_table(t);
}

/* All 4^6 choices, by the same arithmetic as the prediction. */
static double best_by_trying(const hs_curves *c, double target) {
    int n = LAYERS * HEADS;
    double best = INFINITY;
    for (int code = 0; code < 4096; code++) {
        double error = 0, sparsity = 0;
        for (int i = c->dense_layers * HEADS, rest = code; i < n; i++, rest /= 4) {
            error += hs_curves_excess(c, c->error[4 * i + rest % 4]);
            sparsity += c->sparsity[4 * i + rest % 4] / hs_curves_sparse_heads(c);
        }
        if (sparsity >= target - 1e-9 && error < best) best = error;
    }
    return best;
}

Test(solve, budgets_are_the_best_there_are) {
    static const double targets[] = {0.2, 0.3, 0.1, 0.05};
    for (int dense = 0; dense < 2; dense++) {
        hs_table *t = make_table(dense);
        hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
        hs_solve_params p = {.n = 4, .target = targets, .reuse = {.kind = HS_REUSE_INTERVAL, .interval = 5}};
        hs_profile *profile;
        hs_err err = {0};
        cr_assert_eq(hs_solve(t, c, &p, &profile, &err), 0, "%s", err.msg);
        for (int i = 0; i < 4; i++) {
            const hs_profile_budget *b = &profile->budgets[i];
            double error, sparsity, best = best_by_trying(c, targets[i]);
            cr_assert_eq(b->target, targets[i]);
            cr_assert_eq(hs_curves_predict(c, hs_thresholds_of(b), &error, &sparsity, NULL), 0);
            cr_assert(fabs(error - b->error) < 1e-15 && fabs(sparsity - b->sparsity) < 1e-12);
            cr_assert(sparsity >= targets[i] - 1e-9);
            cr_assert(fabs(error - best) <= 1e-7 * best, "target %g: %g, best %g", targets[i], error, best);
            cr_assert(isnan(b->joint_error) && b->gap < 1e-6);
            for (int h = 0; h < dense * HEADS; h++) cr_assert_eq(b->top_p[h], 1);
        }
        cr_assert(profile->policy.reuse.kind == HS_REUSE_INTERVAL && profile->policy.reuse.interval == 5);
        cr_assert(profile->policy.method == HS_SVG2 && profile->policy.dense_layers == dense);
        cr_assert(profile->n_candidates == 3 && profile->n_intervals == 2 && profile->seed == 3);
        cr_assert_str_eq(profile->table_sha256, t->sha256);
        cr_assert_str_eq(profile->error_name, "plain");
        hs_profile_free(profile);
        hs_curves_free(c);
        free_table(t);
    }
}

/* Nothing below the floor counts: those thresholds tie with dense, and the sparsest of them is taken. */
Test(solve, does_not_optimise_below_the_floor) {
    hs_table *t = make_table(0);
    double floor = error_at(0, 0, 0.7) * 1.0001;
    add_joint(t, HS_JOINT_FLOOR, "", 0, floor * 1.5);
    add_joint(t, HS_JOINT_FLOOR, "", 1, floor * 0.5);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    cr_assert(c->has_floor && fabs(c->floor - floor) < 1e-15 && c->below_floor > 0.3 && c->below_floor < 0.7);
    double zero = 0;
    hs_solve_params p = {.n = 1, .target = &zero};
    hs_profile *profile;
    cr_assert_eq(hs_solve(t, c, &p, &profile, NULL), 0);
    const hs_profile_budget *b = profile->budgets;
    cr_assert(b->error == 0 && b->gap == 0);
    cr_assert_eq(b->top_p[0], 0.7f); /* below the floor, as 0.9 and dense are; 0.5 is above */
    cr_assert_eq(b->top_p[5], 0.9f);
    hs_profile_free(profile);
    hs_curves_free(c);
    free_table(t);
}

/* Curves without any order, and a gap that accepts the first choice: alone, larger budgets would now and then do
 * better. */
Test(solve, errors_never_fall_with_sparsity) {
    for (uint64_t seed = 0; seed < 400; seed++) {
        hs_table *t = make_table(0);
        for (int64_t i = 0; i < t->n_probes; i++) {
            t->probes[i].m.error = (double)(hs_hash64(seed * 1000 + (uint64_t)i) % 1000) * 1e-5;
            t->probes[i].m.sparsity = (double)(hs_hash64(seed * 1000 + 500 + (uint64_t)i) % 1000) * 1e-3;
        }
        hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
        double targets[30], last = 0, most = 0;
        for (int i = 0; i < LAYERS * HEADS; i++)
            most += fmax(fmax(c->sparsity[4 * i], c->sparsity[4 * i + 1]), c->sparsity[4 * i + 2]) / (LAYERS * HEADS);
        for (int i = 0; i < 30; i++) targets[i] = most * i / 30;
        hs_solve_params p = {.n = 30, .target = targets, .gap = 1};
        hs_profile *profile;
        cr_assert_eq(hs_solve(t, c, &p, &profile, NULL), 0);
        for (int i = 0; i < 30; i++) {
            cr_assert(profile->budgets[i].error >= last, "seed %d, budget %d: %g after %g", (int)seed, i,
                      profile->budgets[i].error, last);
            last = profile->budgets[i].error;
        }
        hs_profile_free(profile);
        hs_curves_free(c);
        free_table(t);
    }
}

/* A head that drops nothing at any threshold, as with fewer tokens than a block, stays dense. */
Test(solve, of_equals_the_safer_one_is_taken) {
    hs_table *t = make_table(0);
    for (int64_t i = 0; i < t->n_probes; i++)
        if (t->probes[i].layer == 0) t->probes[i].m.error = t->probes[i].m.sparsity = 0;
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    double target = 0.1;
    hs_profile *profile;
    cr_assert_eq(hs_solve(t, c, &(hs_solve_params){.n = 1, .target = &target}, &profile, NULL), 0);
    cr_assert(profile->budgets[0].top_p[0] == 1 && profile->budgets[0].top_p[1] == 1);
    cr_assert_geq(profile->budgets[0].sparsity, 0.1 - 1e-9);
    hs_profile_free(profile);
    hs_curves_free(c);
    free_table(t);
}

Test(solve, explains_what_cannot_be_reached) {
    hs_table *t = make_table(0);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    double target = 0.9;
    hs_solve_params p = {.n = 1, .target = &target};
    hs_profile *profile;
    hs_err err = {0};
    cr_assert_eq(hs_solve(t, c, &p, &profile, &err), HS_EINVAL);
    /* all heads at 0.5: half of the mean reach 0.775 */
    cr_assert(strstr(err.msg, "a mean sparsity of 0.9 cannot be reached: these measurements allow 0 to 0.3875"), "%s",
              err.msg);
    target = 1;
    cr_assert_eq(hs_solve(t, c, &p, &profile, &err), HS_EINVAL);
    p.n = 0;
    cr_assert_eq(hs_solve(t, c, &p, &profile, &err), HS_EINVAL);
    float odd[LAYERS * HEADS] = {0.5f, 0.5f, 0.5f, 0.8f, 1, 1};
    double error, sparsity;
    cr_assert_eq(hs_curves_predict(c, (hs_thresholds){1, odd}, &error, &sparsity, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "layer 1 head 1 has threshold 0.8"), "%s", err.msg);
    hs_curves_free(c);
    free_table(t);
}

Test(solve, a_profile_belongs_to_its_kind_of_table) {
    hs_table *t = make_table(1);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    double target = 0.1;
    hs_profile *p;
    hs_err err = {0};
    cr_assert_eq(hs_solve(t, c, &(hs_solve_params){.n = 1, .target = &target}, &p, NULL), 0);
    cr_assert_eq(hs_solve_matches(p, &t->info, 1, &err), 0, "%s", err.msg);
#define DIFFERS(member, value, always, words)                                                                          \
    do {                                                                                                               \
        hs_table_info other = t->info;                                                                                 \
        other.member = value;                                                                                          \
        cr_assert_eq(hs_solve_matches(p, &other, 0, &err), always ? HS_EINVAL : 0, #member);                           \
        cr_assert_eq(hs_solve_matches(p, &other, 1, &err), HS_EINVAL, #member);                                        \
        cr_assert(strstr(err.msg, "was not made with this table") && strstr(err.msg, words), "%s", err.msg);           \
    } while (0)
    DIFFERS(layers, LAYERS + 1, 1, "(3 x 2 heads), the table is of made-up (4 x 2 heads)");
    DIFFERS(heads, HEADS + 1, 1, "(3 x 3 heads)");
    DIFFERS(sha256[0], '6', 1, "it is for made-up");
    DIFFERS(policy.method, HS_POOLED, 1, "its method is svg2, that of the table pooled");
    DIFFERS(policy.q_clusters, 7, 1, "its method.q_clusters is 300, that of the table 7");
    DIFFERS(policy.min_share, 0.2f, 1, "method.min_share");
    DIFFERS(policy.block, 64, 1, "method.block");
    DIFFERS(policy.compat, 1, 1, "method.compat");
    DIFFERS(width, 80, 0, "its made_for.width is 64, that of the table 80");
    DIFFERS(steps, 11, 0, "made_for.steps");
    DIFFERS(solver, HS_UNIPC, 0, "made_for.solver");
    DIFFERS(sigmas, 1, 0, "made_for.sigmas");
    DIFFERS(policy.dense_steps, 1, 0, "dense.steps");
    DIFFERS(intervals[1][0], 6, 0, "its step intervals are others");
    DIFFERS(n_intervals, 1, 0, "its step intervals are others");
    DIFFERS(candidates[2], 0.8, 0, "its candidates are others");
#undef DIFFERS
    hs_profile_free(p);
    hs_curves_free(c);
    free_table(t);
}

/* More freedom never costs more, and here it must help: errors fall with time and sparsity does not. */
Test(solve, thresholds_per_interval_predict_less) {
    hs_table *t = make_table(0);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    const double targets[] = {0.1, 0.25};
    hs_solve_params p = {.n = 2, .target = targets};
    hs_profile *all, *own;
    cr_assert_eq(hs_solve(t, c, &p, &all, NULL), 0);
    p.per_interval = 1;
    cr_assert_eq(hs_solve(t, c, &p, &own, NULL), 0);
    for (int i = 0; i < 2; i++) {
        const hs_profile_budget *b = &own->budgets[i];
        double error, sparsity;
        cr_assert(all->budgets[i].intervals == 1 && b->intervals == INTERVALS);
        cr_assert(b->until[0] == 0.5 && b->until[1] == 1);
        cr_assert_lt(b->error, all->budgets[i].error);
        cr_assert_geq(b->sparsity, targets[i] - 1e-9);
        cr_assert_eq(hs_curves_predict(c, hs_thresholds_of(b), &error, &sparsity, NULL), 0);
        cr_assert(fabs(error - b->error) < 1e-15 && fabs(sparsity - b->sparsity) < 1e-12);
        cr_assert(memcmp(b->top_p, b->top_p + LAYERS * HEADS, LAYERS * HEADS * sizeof(float)), "never change");
    }
    const double beyond = 0.5; /* the mean over intervals reaches what the heads do: 0.3875 */
    hs_err err = {0};
    hs_profile *none = NULL;
    hs_solve_params far = {.n = 1, .target = &beyond, .per_interval = 1};
    cr_assert_eq(hs_solve(t, c, &far, &none, &err), HS_EINVAL);
    cr_assert(!none && strstr(err.msg, "0 to 0.3875"), "%s", err.msg);
    double error, sparsity;
    const hs_thresholds odd = {3, own->budgets[0].top_p};
    cr_assert_eq(hs_curves_predict(c, odd, &error, &sparsity, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "3 step intervals, but the table has 2"), "%s", err.msg);
    hs_profile_free(all);
    hs_profile_free(own);
    hs_curves_free(c);
    free_table(t);
}

Test(solve, joint_errors_are_per_pool_and_per_prompt) {
    hs_table *t = make_table(0);
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 0, 1);
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 2, 4); /* the pool has 2: this is held out */
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 3, 6);
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 0, 3); /* another step of prompt 0 */
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 2, 2);
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 3, 4);
    add_joint(t, HS_JOINT_CONFIG, "ffff456789abcdef", 0, 77);
    add_joint(t, 1, "", 0, 9);
    hs_joint_mean in =
        hs_table_joint(t, HS_ERROR_PLAIN, (hs_pool){HS_POOL_CALIBRATION}, HS_JOINT_CONFIG, "0123456789abcdef");
    cr_assert(in.error == 2 && in.n == 2 && in.prompts == 1 && isnan(in.low) && in.sparsity == 0.4 && in.seconds == 2);
    hs_joint_mean out =
        hs_table_joint(t, HS_ERROR_PLAIN, (hs_pool){HS_POOL_HELD_OUT}, HS_JOINT_CONFIG, "0123456789abcdef");
    /* prompts 3 and 5: mean 4, standard error 1 */
    cr_assert(out.error == 4 && out.n == 4 && out.prompts == 2);
    cr_assert(out.low == 0 && fabs(out.high - 16.706) < 1e-9, "%g %g", out.low, out.high); /* t of one degree */
    hs_joint_mean any = hs_table_joint(t, HS_ERROR_BAND, (hs_pool){HS_POOL_ANY}, HS_JOINT_CONFIG, "0123456789abcdef");
    cr_assert(any.n == 6 && fabs(any.error - 200.0 / 6) < 1e-9);
    cr_assert_eq(hs_table_joint(t, HS_ERROR_PLAIN, (hs_pool){HS_POOL_ANY}, 1, "").error, 9);
    hs_joint_mean none = hs_table_joint(t, HS_ERROR_PLAIN, (hs_pool){HS_POOL_HELD_OUT}, 1, "");
    cr_assert(none.n == 0 && isnan(none.error));
    free_table(t);
}

/* Errors 0 and 1 in turn. The quantiles are those of tables of Student's t. */
Test(solve, intervals_are_students) {
    static const struct {
        int prompts;
        double t;
    } known[] = {{4, 3.182}, {8, 2.365}, {30, 2.045}, {31, 2.042}, {32, 1.96}, {40, 1.96}};
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
        hs_table *t = make_table(0);
        int n = known[k].prompts;
        for (int i = 0; i < n; i++) add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", i, 10 + i % 2);
        hs_joint_mean m =
            hs_table_joint(t, HS_ERROR_PLAIN, (hs_pool){HS_POOL_ANY}, HS_JOINT_CONFIG, "0123456789abcdef");
        double ones = n / 2, mean = ones / n, error = sqrt(mean * (1 - mean) / (n - 1));
        cr_assert(fabs(m.high - m.error - known[k].t * error) < 1e-9, "%d: %g", n, (m.high - m.error) / error);
        cr_assert(fabs(m.error - m.low - known[k].t * error) < 1e-9);
        free_table(t);
    }
}

/* The held-out file was longer once, and in another order. */
Test(solve, joint_errors_are_of_the_pool_asked_for) {
    static const char config[] = "0123456789abcdef";
    char text[2][17];
    hs_table *t = make_table(0);
    for (int i = 0; i < 3; i++) add_joint(t, HS_JOINT_CONFIG, config, 2 + i, 1 << i);
    add_joint(t, HS_JOINT_CONFIG, config, 2, 1 << 1); /* the text of prompt 3 */
    memcpy(t->joints[3].text, t->joints[1].text, sizeof text[0]);
    t->joints[3].step = t->joints[1].step;
    hs_joint_mean all = hs_table_joint(t, HS_ERROR_PLAIN, (hs_pool){HS_POOL_HELD_OUT}, HS_JOINT_CONFIG, config);
    cr_assert(all.prompts == 3 && all.n == 3 && fabs(all.error - 7.0 / 3) < 1e-12, "%d prompts, %g", all.prompts,
              all.error);
    memcpy(text[0], t->joints[2].text, sizeof text[0]);
    memcpy(text[1], t->joints[1].text, sizeof text[1]);
    const hs_pool now = {HS_POOL_HELD_OUT, 2, text};
    hs_joint_mean some = hs_table_joint(t, HS_ERROR_PLAIN, now, HS_JOINT_CONFIG, config);
    cr_assert(some.prompts == 2 && some.n == 2 && some.error == 3, "%d prompts, %g", some.prompts, some.error);
    free_table(t);
}

Test(solve, random_configurations_repeat_and_differ) {
    hs_table *t = make_table(1);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    float a[LAYERS * HEADS], b[LAYERS * HEADS];
    double low = 1, high = 0, error, sparsity;
    int different = 0;
    for (int i = 0; i < 40; i++) {
        hs_curves_random(c, 5, i, a);
        hs_curves_random(c, 5, i, b);
        cr_assert_eq(memcmp(a, b, sizeof a), 0);
        cr_assert(a[0] == 1 && a[1] == 1, "dense layers stay dense");
        cr_assert_eq(hs_curves_predict(c, (hs_thresholds){1, a}, &error, &sparsity, NULL), 0);
        low = fmin(low, sparsity), high = fmax(high, sparsity);
        hs_curves_random(c, 6, i, b);
        different += memcmp(a, b, sizeof a) != 0;
    }
    cr_assert(low < 0.1 && high > 0.3 && different > 30, "%g %g %d", low, high, different);
    hs_curves_free(c);
    free_table(t);
}

Test(solve, survives_lack_of_memory) {
    hs_table *t = make_table(0);
    const double target = 0.2;
    hs_solve_params p = {.n = 1, .target = &target};
    int rc = HS_ENOMEM, n = 0;
    int64_t live = hs_alloc_live();
    for (; rc == HS_ENOMEM && n < 200; n++) {
        hs_curves *c = NULL;
        hs_profile *profile = NULL;
        hs_err err;
        hs_alloc_fail_at(n + 1);
        rc = hs_curves_make(t, HS_ERROR_PLAIN, &c, &err);
        if (!rc) rc = hs_solve(t, c, &p, &profile, &err);
        hs_alloc_fail_at(0);
        hs_profile_free(profile);
        hs_curves_free(c);
        cr_assert_eq(hs_alloc_live(), live);
    }
    cr_assert(rc == 0 && n > 10 && n < 200, "%d after %d", rc, n);
    free_table(t);
}

/* ---- seconds ---------------------------------------------------------------------------------------------------- */

Test(cost, a_line_through_medians) {
    hs_table *t = make_table(0);
    hs_cost_model m;
    hs_err err;
    double sparsity;
    cr_assert_eq(hs_cost_fit(t, &m, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "seconds of 0 shared thresholds"), "%s", err.msg);
    for (int k = -2; k < CANDIDATES; k++)
        for (int prompt = 0; prompt < 3 && k != HS_JOINT_CONFIG; prompt++) {
            double s = k < 0 ? 0 : 0.2 * (k + 1);
            add_joint(t, k, "", prompt, 1);
            hs_joint *j = &t->joints[t->n_joints - 1];
            j->m.sparsity = s, j->m.seconds = 2 + 3 * (1 - s) + (prompt == 1 ? 50 : 0); /* one slow call each */
        }
    add_joint(t, HS_JOINT_CONFIG, "0123456789abcdef", 0, 1); /* 2 s at sparsity 0.4: no part of the line */
    cr_assert_eq(hs_cost_fit(t, &m, &err), 0, "%s", err.msg);
    cr_assert(fabs(m.fixed - 2) < 1e-9 && fabs(m.dense - 3) < 1e-9 && m.fit > 0.999 && m.points == 4, "%g %g", m.fixed,
              m.dense);
    cr_assert_eq(hs_cost_sparsity(&m, 3.5, &sparsity, NULL), 0);
    cr_assert_float_eq(sparsity, 0.5, 1e-9);
    cr_assert_eq(hs_cost_sparsity(&m, 5.1, &sparsity, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "dense attention takes 5 s here, and more than 2 s are left"), "%s", err.msg);
    cr_assert_eq(hs_cost_sparsity(&m, 1.9, &sparsity, NULL), HS_EINVAL);
    for (int64_t i = 0; i < t->n_joints; i++) t->joints[i].m.seconds = 7 - t->joints[i].m.seconds;
    cr_assert_eq(hs_cost_fit(t, &m, &err), HS_EINVAL); /* dearer when sparser */
    cr_assert(strstr(err.msg, "seconds do not follow density"), "%s", err.msg);
    free_table(t);
}

/* ---- refining --------------------------------------------------------------------------------------------------- */

/* Joint errors of n random configurations: the sum of factor * own error, each with a relative noise. */
static void joint_errors(const hs_curves *c, const double *factor, double noise, int n, float **top_p, double *ret) {
    for (int i = 0; i < n; i++) {
        hs_curves_random(c, 9, i, top_p[i]);
        ret[i] = c->floor;
        for (int h = 0; h < LAYERS * HEADS; h++)
            for (int k = 0; k < c->points; k++)
                if ((float)c->top_p[k] == top_p[i][h])
                    ret[i] += factor[h] * hs_curves_excess(c, c->error[h * c->points + k]);
        ret[i] *= 1 + noise * ((double)(hs_hash64((uint64_t)i) % 2001) / 1000 - 1);
    }
}

Test(refine, finds_what_heads_cost_together) {
    enum { N = 60 };
    static const double truth[LAYERS * HEADS] = {0.8, 2.4, 1.6, 1.2, 3.2, 1.6};
    hs_table *t = make_table(0);
    add_joint(t, HS_JOINT_FLOOR, "", 0, 1e-6);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    float *top_p[N];
    hs_thresholds config[N];
    double error[N], factor[LAYERS * HEADS], before[LAYERS * HEADS * 4], sum, sparsity, corrected;
    hs_correction found;
    for (int i = 0; i < N; i++) config[i] = (hs_thresholds){1, top_p[i] = calloc(LAYERS * HEADS, sizeof(float))};
    joint_errors(c, truth, 0, N, top_p, error);
    cr_assert_eq(hs_refine_fit(c, N, config, error, factor, &found, NULL), 0);
    cr_assert(found.used > 40 && found.used <= N && found.before > 0.1 && found.after < 0.02 * found.before);
    for (int h = 0; h < LAYERS * HEADS; h++)
        cr_assert(fabs(factor[h] / truth[h] - 1) < 0.05, "head %d: %g, not %g", h, factor[h], truth[h]);
    memcpy(before, c->error, sizeof before);
    hs_curves_predict(c, config[3], &sum, &sparsity, NULL);
    /* one of them said per interval, the same in both: the mean of the intervals' errors, and the same fit */
    float *both = calloc(2 * LAYERS * HEADS, sizeof *both);
    double again[LAYERS * HEADS];
    for (int i = 0; i < 2 * LAYERS * HEADS; i++) both[i] = top_p[5][i % (LAYERS * HEADS)];
    hs_thresholds plain = config[5];
    config[5] = (hs_thresholds){2, both};
    cr_assert_eq(hs_refine_fit(c, N, config, error, again, &found, NULL), 0);
    for (int h = 0; h < LAYERS * HEADS; h++) cr_assert(fabs(again[h] / factor[h] - 1) < 0.01);
    config[5] = plain;
    free(both);
    hs_refine_apply(c, factor);
    hs_curves_predict(c, config[3], &corrected, &sparsity, NULL);
    cr_assert(fabs(corrected + c->floor - error[3]) < 0.01 * error[3] && fabs(sum - corrected) > 0.1 * sum);
    cr_assert(c->error[3] == 0 && before[3] == 0, "dense stays 0");
    cr_assert_float_eq(c->interval_error[0] - c->floor, factor[0] * (1.5 * error_at(0, 0, 0.5) - c->floor), 1e-12);
    hs_curves_free(c);

    /* noise alone: the factors must not follow it */
    static const double same[LAYERS * HEADS] = {2, 2, 2, 2, 2, 2};
    c = curves_of(t, HS_ERROR_PLAIN);
    joint_errors(c, same, 0.3, 14, top_p, error);
    cr_assert_eq(hs_refine_fit(c, 14, config, error, factor, &found, NULL), 0);
    cr_assert(found.after <= found.before && found.low > 0.8 && found.high < 1.25, "%g to %g", found.low, found.high);
    cr_assert(found.common > 1.6 && found.common < 2.4);

    hs_err err;
    cr_assert_eq(hs_refine_fit(c, 7, config, error, factor, &found, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "refining needs at least 8"), "%s", err.msg);
    top_p[2][1] = 0.123f;
    cr_assert_eq(hs_refine_fit(c, 14, config, error, factor, &found, &err), HS_EINVAL);
    for (int i = 0; i < N; i++) free(top_p[i]);
    hs_curves_free(c);
    free_table(t);
}

Test(refine, neighbours_are_one_threshold_away) {
    hs_table *t = make_table(1);
    hs_curves *c = curves_of(t, HS_ERROR_PLAIN);
    const float base[LAYERS * HEADS] = {1, 1, 0.5f, 0.7f, 0.9f, 1};
    static const double p[] = {0.5, 0.7, 0.9, 1};
    const hs_thresholds near_base = {1, base};
    int moved = 0;
    for (int i = 0; i < 100; i++) {
        float near[LAYERS * HEADS], again[LAYERS * HEADS];
        hs_refine_near(c, near_base, 4, i, near);
        hs_refine_near(c, near_base, 4, i, again);
        cr_assert_eq(memcmp(near, again, sizeof near), 0);
        cr_assert(near[0] == 1 && near[1] == 1, "dense layers stay dense");
        for (int h = 2; h < LAYERS * HEADS; h++) {
            int from = 0, to = 0;
            while ((float)p[from] != base[h]) from++;
            while ((float)p[to] != near[h]) to++;
            cr_assert(abs(from - to) <= 1);
            moved += from != to;
        }
    }
    cr_assert(moved > 40 && moved < 150, "%d", moved); /* 400 heads, two eighths of them, less at the ends */
    hs_curves_free(c);
    free_table(t);
}
