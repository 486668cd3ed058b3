/* Joint errors of chosen thresholds, and the rounds of refining. Every configuration that was ever measured is kept in
 * one list, because each of them says something about how heads meet. */
#include "check.h"
#include "refine.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { NEIGHBOURS = 8 }; /* of each budget and round */

typedef struct job {
    const hs_check_params *p;
    hs_profile *profile;
    hs_table **table;
    hs_curves **curves;
    int cells;             /* layers * heads */
    int n, room;           /* configurations */
    hs_thresholds *config; /* [room]; their numbers are owned */
    double *error;         /* [room] joint, on calibration prompts */
    double *factor;        /* [cells] */
    hs_profile *refined;   /* of the round */
} job;

static void HS_PRINTF(2, 3) say(const job *j, const char *fmt, ...) {
    va_list ap;
    if (!j->p->say) return;
    va_start(ap, fmt);
    vfprintf(j->p->say, fmt, ap);
    va_end(ap);
}

int hs_check_load(int n, const char *const *tables, hs_error_kind kind, hs_table **table, hs_curves **curves,
                  hs_err *err) {
    hs_table *t;
    hs_curves *c;
    int rc = hs_table_load(n, tables, &t, err);
    if (rc) return rc;
    if ((rc = hs_curves_make(t, kind, &c, err))) {
        hs_table_free(t);
        return rc;
    }
    hs_table_free(*table);
    hs_curves_free(*curves);
    *table = t, *curves = c;
    return 0;
}

/* ---- configurations --------------------------------------------------------------------------------------------- */

/* A new one at the end of the list, to be filled: [intervals, cells]. */
static float *new_config(job *j, int intervals) {
    float *top_p = j->n < j->room ? hs_calloc((size_t)(intervals * j->cells), sizeof *top_p) : NULL;
    if (top_p) j->config[j->n++] = (hs_thresholds){intervals, top_p};
    return top_p;
}

/* All behind the first n. */
static void drop_configs(job *j, int n) {
    while (j->n > n) hs_free((float *)j->config[--j->n].top_p);
}

static int add_budgets(job *j, const hs_profile *profile, hs_err *err) {
    for (int i = 0; i < profile->n_budgets; i++) {
        const hs_profile_budget *b = &profile->budgets[i];
        float *to = new_config(j, b->intervals);
        if (!to) return hs_fail(err, HS_ENOMEM, "no memory for the budgets");
        memcpy(to, b->top_p, (size_t)(b->intervals * j->cells) * sizeof *to);
    }
    return 0;
}

/* Random ones of the table's seed, or neighbours of a budget. */
static int add_random(job *j, int n, const hs_profile_budget *near, uint64_t seed, hs_err *err) {
    for (int i = 0; i < n; i++) {
        float *to = new_config(j, near ? near->intervals : 1);
        if (!to) return hs_fail(err, HS_ENOMEM, "no memory for random configurations");
        if (near)
            hs_refine_near(*j->curves, hs_thresholds_of(near), seed, i, to);
        else
            hs_curves_random(*j->curves, seed, i, to);
    }
    return 0;
}

/* Those from `first` on, on both pools or on the calibration prompts only; then everything is read again. */
static int measure(job *j, int first, int shared, int held_out, hs_err *err) {
    const hs_check_params *p = j->p;
    hs_measure_params m = *p->measure;
    if (!held_out) m.n_held_out = 0;
    int rc = hs_measure_joint(p->model, p->req, &m, shared, j->n - first, j->config + first, err);
    return rc ? rc : hs_check_load(p->n_tables, p->tables, (*j->curves)->kind, j->table, j->curves, err);
}

static const hs_pool calibration = {.kind = HS_POOL_CALIBRATION};

static hs_joint_mean joint_of(const job *j, hs_thresholds config, hs_pool pool) {
    char name[17];
    hs_measure_config_name(config, (*j->curves)->layers, (*j->curves)->heads, name);
    return hs_table_joint(*j->table, (*j->curves)->kind, pool, HS_JOINT_CONFIG, name);
}

static int save(job *j, hs_err *err) {
    memcpy(j->profile->table_sha256, (*j->table)->sha256, sizeof j->profile->table_sha256);
    return hs_profile_save(j->p->profile, j->profile, err);
}

/* ---- check ------------------------------------------------------------------------------------------------------ */

static int check(job *j, hs_err *err) {
    int rc, held_out = j->p->measure->n_held_out;
    if ((rc = add_budgets(j, j->profile, err)) ||
        (rc = add_random(j, j->p->random, NULL, (*j->table)->info.seed, err)) || (rc = measure(j, 0, 1, 1, err)))
        return rc;
    say(j, "joint error   predicted  calibration%s\n", held_out ? "  held-out" : "");
    for (int i = 0; i < j->profile->n_budgets; i++) {
        hs_profile_budget *b = &j->profile->budgets[i];
        hs_joint_mean seen = joint_of(j, hs_thresholds_of(b), calibration);
        hs_joint_mean held = joint_of(j, hs_thresholds_of(b), j->p->held_out);
        say(j, "  %-10.4g  %9.4g  %11.4g", b->target, b->error + (*j->curves)->floor, seen.error);
        if (held.n) say(j, "  %8.4g (%.3g to %.3g)", held.error, held.low, held.high);
        say(j, "\n");
        b->joint_error = held.error;
    }
    if (!held_out) say(j, "the profile has no joint error: give --held-out FILE for one on other prompts\n");
    return save(j, err);
}

/* ---- refine ----------------------------------------------------------------------------------------------------- */

/* Factors from all configurations and the shared thresholds; *j->curves are then the corrected ones. */
static int correct(job *j, hs_err *err) {
    hs_correction found;
    const hs_curves *c = *j->curves;
    int before = j->n, rc = 0;
    for (int k = 0; k < c->points - 1 && !rc; k++) {
        float *to = new_config(j, 1);
        if (to)
            hs_curves_shared(c, c->top_p[k], to);
        else
            rc = hs_fail(err, HS_ENOMEM, "no memory to refine");
    }
    for (int i = 0; i < j->n && !rc; i++)
        j->error[i] = i < before ? joint_of(j, j->config[i], calibration).error
                                 : hs_table_joint(*j->table, c->kind, calibration, c->candidate[i - before], "").error;
    /* the latest are the nearest */
    int from = j->n > HS_REFINE_MAX ? j->n - HS_REFINE_MAX : 0;
    if (!rc) rc = hs_refine_fit(c, j->n - from, j->config + from, j->error + from, j->factor, &found, err);
    drop_configs(j, before);
    if (rc) return rc;
    say(j,
        "  %d configurations: measured / predicted %.3f; left out, they are missed by %.1f %%, and by %.1f %% with a "
        "factor "
        "per head (%.2f to %.2f)\n",
        found.used, found.common, 100 * found.before, 100 * found.after, found.low, found.high);
    hs_refine_apply(*j->curves, j->factor);
    return 0;
}

/* Which budgets are better now, on prompts that no factor was fitted to? */
static int take_better(job *j) {
    int taken = 0;
    for (int i = 0; i < j->profile->n_budgets; i++) {
        hs_profile_budget *old = &j->profile->budgets[i], *new = &j->refined->budgets[i];
        hs_joint_mean old_seen = joint_of(j, hs_thresholds_of(old), calibration);
        hs_joint_mean seen = joint_of(j, hs_thresholds_of(new), calibration);
        new->joint_error = joint_of(j, hs_thresholds_of(new), j->p->held_out).error;
        int better = new->joint_error < old->joint_error;
        say(j, "  %-10.4g  predicted %.4g, calibration %.4g -> %.4g, held-out %.4g -> %.4g%s\n", old->target,
            new->error + (*j->curves)->floor, old_seen.error, seen.error, old->joint_error, new->joint_error,
            better ? ", taken" : "");
        if (!better) continue;
        float *top_p = old->top_p;
        *old = *new;
        new->top_p = top_p;
        taken++;
    }
    return taken;
}

static int refine(job *j, int round, int *ret_taken, hs_err *err) {
    int rc = 0, first = j->n, budgets = j->profile->n_budgets;
    say(j, "round %d\n", round + 1);
    for (int i = 0; i < budgets && !rc; i++)
        rc = add_random(j, NEIGHBOURS, &j->profile->budgets[i],
                        (*j->table)->info.seed + (uint64_t)(1 + round * budgets + i), err);
    if (rc || (rc = measure(j, first, 0, 0, err)) || (rc = correct(j, err)) ||
        (rc = hs_solve(*j->table, *j->curves, &j->p->solve, &j->refined, err)))
        return rc;
    first = j->n;
    if ((rc = add_budgets(j, j->refined, err)) || (rc = measure(j, first, 0, 1, err))) return rc;
    *ret_taken = take_better(j);
    hs_profile_free(j->refined);
    j->refined = NULL;
    return *ret_taken ? save(j, err) : 0;
}

int hs_check_run(const hs_check_params *p, hs_profile *profile, hs_table **table, hs_curves **curves, hs_err *err) {
    int budgets = profile->n_budgets, taken = 1, rc;
    job j = {.p = p, .profile = profile, .table = table, .curves = curves, .cells = profile->layers * profile->heads};
    j.room = p->random + budgets + p->rounds * budgets * (NEIGHBOURS + 1) + (*curves)->points;
    j.config = hs_calloc((size_t)j.room, sizeof *j.config);
    j.error = hs_calloc((size_t)j.room, sizeof *j.error);
    j.factor = hs_calloc((size_t)j.cells, sizeof *j.factor);
    rc = j.config && j.error && j.factor ? check(&j, err) : hs_fail(err, HS_ENOMEM, "no memory to check the choice");
    for (int round = 0; round < p->rounds && taken && !rc; round++) rc = refine(&j, round, &taken, err);
    hs_profile_free(j.refined);
    drop_configs(&j, 0);
    hs_free(j.config);
    hs_free(j.error);
    hs_free(j.factor);
    return rc;
}
