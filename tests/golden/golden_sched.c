/* Sigma grids, timesteps, solver trajectories and the random numbers of torch: pure numbers, no device. */
#include "engine/scheduler.h"
#include "golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hs_sigmas_kind grid_of(const char *letter) {
    return (hs_sigmas_kind)(HS_SIGMAS_A + (*letter - 'A'));
}

static void init(hs_sched *s, hs_solver_kind solver, const char *grid, int steps, double shift) {
    hs_err err = {0};
    cr_assert_eq(hs_sched_init(s, solver, grid_of(grid), steps, shift, &err), 0, "%s", err.msg);
}

/* One row of a [shifts, count] table against the engine's numbers. */
static void compare_row(gold *g, const char *key, int row, const float *mine, int count, float slack, float rel) {
    int64_t n;
    const float *ref = gold_plain(g, key, &n) + (int64_t)row * count;
    cr_assert(n >= (int64_t)(row + 1) * count, "%s is too small", key);
    for (int i = 0; i < count; i++)
        if (!(fabsf(mine[i] - ref[i]) <= slack + rel * fabsf(ref[i]))) {
            cr_expect(0, "%s: row %d [%d] is %.9g, reference %.9g", key, row, i, (double)mine[i], (double)ref[i]);
            break;
        }
    g->compared++;
}

Test(sched, grids) {
    gold g = gold_load("schedule", NULL);
    for (const cJSON *c = gold_first(gold_cases("schedule")); c; c = c->next)
        for (const cJSON *n = gold_first(gold_cases("schedule_steps")); n; n = n->next) {
            int row = 0;
            for (const cJSON *shift = gold_first(cJSON_GetObjectItemCaseSensitive(c, "shifts")); shift;
                 shift = shift->next) {
                static hs_sched s;
                char key[96];
                hs_solver_kind solver;
                const char *grid = gold_str(c, "grid");
                const int exact =
                    *grid != 'D'; /* D has fractional timesteps; its ends pass through float32 in diffusers */
                cr_assert_eq(hs_solver_parse(gold_str(c, "solver"), &solver), 0);
                init(&s, solver, grid, n->valueint, shift->valuedouble);
                snprintf(key, sizeof key, "schedule/%s/%d/sigmas", grid, n->valueint);
                compare_row(&g, key, row, s.sigma, n->valueint + 1, 0, exact ? 1.2e-7f : 4e-7f);
                snprintf(key, sizeof key, "schedule/%s/%d/timesteps", grid, n->valueint);
                compare_row(&g, key, row, s.t, n->valueint, exact ? 0 : 1e-3f, 0);
                row++;
            }
        }
    gold_close(&g);
}

/* The velocity field of oracle/solvers.py. */
static void velocity(const char *name, int i, int n, const double *x, double *ret) {
    char key[96];
    float drift[64];
    snprintf(key, sizeof key, "solver:%s:%d", name, i);
    gm_uniform(key, 0.5, 0.0, 0, n, drift);
    for (int k = 0; k < n; k++) ret[k] = tanh(0.7 * x[k]) + drift[k];
}

static void combine(int n, const double *c, double (*term)[64], double *ret) {
    double out[64];
    for (int k = 0; k < n; k++) {
        out[k] = 0;
        for (int t = 0; t < HS_TERM_COUNT; t++)
            if (c[t] != 0) out[k] += c[t] * term[t][k];
    }
    memcpy(ret, out, (size_t)n * sizeof *ret);
}

/* The contract of sched.h in double: coefficients are judged, not the rounding of tensors. */
static void follow(gold *g, const cJSON *c, int steps, double shift) {
    static hs_sched s;
    hs_solver_kind kind;
    char key[96];
    int64_t count;
    const char *name = gold_str(c, "name");
    const int n = gold_cases("solver_numel")->valueint;
    double term[HS_TERM_COUNT][64] = {{0}};
    float x0[64], got[64];
    cr_assert(n <= 64 && !hs_solver_parse(gold_str(c, "solver"), &kind));
    init(&s, kind, gold_str(c, "sigmas"), steps, shift);
    snprintf(key, sizeof key, "solver/%s/%d/%g", name, steps, shift);
    const float *ref = gold_plain(g, key, &count);
    cr_assert_eq(count, (int64_t)steps * n);
    gm_normalish("solver:x", n, x0);
    for (int k = 0; k < n; k++) term[HS_TERM_X][k] = x0[k];
    for (int i = 0; i < steps; i++) {
        hs_sched_step st;
        hs_sched_step_at(&s, i, &st);
        velocity(name, i, n, term[HS_TERM_X], term[HS_TERM_V]);
        combine(n, st.m, term, term[HS_TERM_M]);
        if (st.has_corr) combine(n, st.corr, term, term[HS_TERM_X]);
        memcpy(term[HS_TERM_M2], term[HS_TERM_M1], sizeof term[0]);
        memcpy(term[HS_TERM_M1], term[HS_TERM_M], sizeof term[0]);
        memcpy(term[HS_TERM_XL], term[HS_TERM_X], sizeof term[0]);
        combine(n, st.pred, term, term[HS_TERM_X]);
        for (int k = 0; k < n; k++) got[k] = (float)term[HS_TERM_X][k];
        double e = gold_error(got, ref + (int64_t)i * n, n);
        cr_expect(e <= 1e-6, "%s after step %d: relative error %.3g", key, i, e);
        if (e > 1e-6) break; /* later steps only repeat it */
    }
    g->compared++;
}

Test(sched, solvers) {
    gold g = gold_load("solver", NULL);
    for (const cJSON *c = gold_first(gold_cases("solver")); c; c = c->next)
        for (const cJSON *n = gold_first(cJSON_GetObjectItemCaseSensitive(c, "steps")); n; n = n->next)
            for (const cJSON *shift = gold_first(cJSON_GetObjectItemCaseSensitive(c, "shifts")); shift;
                 shift = shift->next)
                follow(&g, c, n->valueint, shift->valuedouble);
    gold_close(&g);
}

Test(numbers, randn_of_torch) {
    gold g = gold_load("randn", NULL);
    for (const cJSON *c = gold_first(gold_cases("randn")); c; c = c->next) {
        char key[96];
        int64_t count, n = (int64_t)gold_num(c, "n");
        snprintf(key, sizeof key, "randn/%s/%lld", gold_str(c, "seed"), (long long)n);
        const float *ref = gold_plain(&g, key, &count);
        float *x = malloc((size_t)n * sizeof *x);
        cr_assert(x != NULL && count == n);
        hs_randn(strtoull(gold_str(c, "seed"), NULL, 10), x, n);
        for (int64_t k = 0; k < n; k++)
            if (!(fabsf(x[k] - ref[k]) <= 2e-6f)) {
                cr_expect(0, "%s[%lld] is %.9g, torch has %.9g", key, (long long)k, (double)x[k], (double)ref[k]);
                break;
            }
        free(x);
        g.compared++;
    }
    gold_close(&g);
}
