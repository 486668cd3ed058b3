/* The page of haste-calibrate. Each section computes what it draws from the table, its curves and the profile; nothing
 * here is kept or decided. */
#include "report.h"
#include "eval_drift.h"
#include "measure.h"
#include "plot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FRONT = 31, MAX_RANDOM = 1000, MAX_POINTS = HS_CURVES_MAX_POINTS + HS_PROFILE_MAX_BUDGETS + MAX_RANDOM };

static const char spar[] = "mean sparsity (share of token pairs dropped)";

/* Names for points: a fixed number of short texts. */
typedef char label40[40];

typedef struct view {
    hs_page *page;
    const hs_profile *p;
    const hs_profile_budget *b; /* whose heads are drawn */
    const hs_table *t;
    const hs_curves *c;
    int heads; /* layers * heads */
    hs_pool pool;
    float *top_p; /* [layers, heads] scratch */
} view;

static const char *pool_name(const view *v) {
    return v->pool.kind == HS_POOL_HELD_OUT ? "held-out prompts" : "calibration prompts";
}

/* Lines far from everything else would squeeze it: the floor is drawn where it is near the lowest value, and else said.
 */
static int floor_is_near(const view *v, double lowest) {
    return v->c->floor > 0 && v->c->floor * 300 > lowest;
}

static double lowest_of(int n, const double *x, double lowest) {
    for (int i = 0; i < n; i++)
        if (x[i] > 0 && x[i] < lowest) lowest = x[i];
    return lowest;
}

static void add_floor(const view *v, int drawn, char *about, size_t size) {
    size_t len = strlen(about);
    if (v->c->floor > 0 && !drawn)
        snprintf(about + len, size - len, " The numeric floor, %.2g, is far below.", v->c->floor);
}

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

static hs_joint_mean joint_of(const view *v, hs_thresholds config) {
    char name[17];
    hs_measure_config_name(config, v->c->layers, v->c->heads, name);
    return hs_table_joint(v->t, v->c->kind, v->pool, HS_JOINT_CONFIG, name);
}

/* The scratch thresholds, the same in every interval. */
static hs_thresholds scratch(const view *v) {
    return (hs_thresholds){1, v->top_p};
}

static void put(const char **cell, label40 *text, int at, const char *fmt, double x) {
    snprintf(text[at], sizeof *text, isfinite(x) ? fmt : "-", x);
    cell[at] = text[at];
}

/* Predicted error of one threshold for all heads at this sparsity, between those that were measured (log error is
 * taken to be linear in sparsity); NAN outside of them. */
static double shared_error_at(const view *v, double sparsity) {
    double e0 = NAN, s0 = NAN, e1, s1;
    for (int k = 0; k < v->c->points; k++, e0 = e1, s0 = s1) { /* sparsity falls */
        hs_curves_shared(v->c, v->c->top_p[k], v->top_p);
        if (hs_curves_predict(v->c, scratch(v), &e1, &s1, NULL)) return NAN;
        if (k && s1 <= sparsity && sparsity <= s0 && e1 > 0 && s0 > s1)
            return e1 * pow(e0 / e1, (sparsity - s1) / (s0 - s1));
    }
    return NAN;
}

static void budget_table(const view *v) {
    enum { COLUMNS = 9 };
    static const char *const head[COLUMNS] = {"target",       "sparsity", "predicted error",   "of one p for all",
                                              "bound",        "gap",      "measured together", "interval",
                                              "sparsity then"};
    label40 text[HS_PROFILE_MAX_BUDGETS * COLUMNS];
    char interval[HS_PROFILE_MAX_BUDGETS][48];
    const char *cell[HS_PROFILE_MAX_BUDGETS * COLUMNS];
    for (int i = 0; i < v->p->n_budgets; i++) {
        const hs_profile_budget *b = &v->p->budgets[i];
        hs_joint_mean j = joint_of(v, hs_thresholds_of(b));
        int at = i * COLUMNS;
        put(cell, text, at, "%.4g", b->target);
        put(cell, text, at + 1, "%.4f", b->sparsity);
        put(cell, text, at + 2, "%.4g", b->error);
        put(cell, text, at + 3, "%.0f %%", 100 * b->error / shared_error_at(v, b->sparsity));
        put(cell, text, at + 4, "%.4g", b->bound);
        put(cell, text, at + 5, b->gap > 0 ? "%.1e" : "%g", b->gap);
        put(cell, text, at + 6, "%.4g", j.error);
        snprintf(interval[i], sizeof interval[i], isfinite(j.low) ? "%.3g to %.3g" : "-", j.low, j.high);
        cell[at + 7] = interval[i];
        put(cell, text, at + 8, "%.4f", j.sparsity);
    }
    hs_page_table(v->page, COLUMNS, head, v->p->n_budgets, cell);
}

/* The best there is, over the sparsities that can be reached: thresholds per head, or per head and interval. */
static int front(const view *v, int per_interval, double *ret_sparsity, double *ret_error, hs_err *err) {
    double target[FRONT], low, high;
    hs_profile *p;
    hs_curves_shared(v->c, v->c->top_p[0], v->top_p);
    int rc = hs_curves_predict(v->c, scratch(v), &low, &high, err);
    if (rc) return rc;
    for (int i = 0; i < FRONT; i++) target[i] = high * (i + 1) / (FRONT + 1);
    hs_solve_params sp = {.n = FRONT,
                          .target = target,
                          .per_interval = per_interval,
                          .gap = 1e-3,
                          .seconds = 5,
                          .reuse = v->p->policy.reuse};
    if ((rc = hs_solve(v->t, v->c, &sp, &p, err))) return rc;
    for (int i = 0; i < FRONT; i++) ret_sparsity[i] = p->budgets[i].sparsity, ret_error[i] = p->budgets[i].error;
    hs_profile_free(p);
    return 0;
}

/* Budgets and shared thresholds in the plane of error and sparsity, predicted and measured. */
static int pareto(const view *v, hs_err *err) {
    double fx[FRONT], fy[FRONT], ix[FRONT], iy[FRONT], sx[HS_CURVES_MAX_POINTS], sy[HS_CURVES_MAX_POINTS];
    double mx[HS_CURVES_MAX_POINTS], my[HS_CURVES_MAX_POINTS], ml[HS_CURVES_MAX_POINTS], mh[HS_CURVES_MAX_POINTS];
    double bx[HS_PROFILE_MAX_BUDGETS], by[HS_PROFILE_MAX_BUDGETS], jx[HS_PROFILE_MAX_BUDGETS];
    double jy[HS_PROFILE_MAX_BUDGETS], jl[HS_PROFILE_MAX_BUDGETS], jh[HS_PROFILE_MAX_BUDGETS];
    label40 shared_text[HS_CURVES_MAX_POINTS], budget_text[HS_PROFILE_MAX_BUDGETS];
    const char *shared[HS_CURVES_MAX_POINTS], *budget[HS_PROFILE_MAX_BUDGETS];
    const hs_curves *c = v->c;
    double floor = c->floor;
    int timed = v->b->intervals > 1, rc = front(v, 0, fx, fy, err);
    if (rc || (timed && (rc = front(v, 1, ix, iy, err)))) return rc;
    for (int k = 0; k < c->points; k++) {
        hs_joint_mean j = hs_table_joint(v->t, c->kind, v->pool, c->candidate[k], "");
        hs_curves_shared(c, c->top_p[k], v->top_p);
        hs_curves_predict(c, scratch(v), &sy[k], &sx[k], NULL);
        if (c->candidate[k] < 0) j.error = NAN;
        mx[k] = j.sparsity, my[k] = j.error, ml[k] = j.low, mh[k] = j.high;
        snprintf(shared_text[k], sizeof shared_text[k], "%g", c->top_p[k]);
        shared[k] = shared_text[k];
    }
    for (int i = 0; i < v->p->n_budgets; i++) {
        const hs_profile_budget *b = &v->p->budgets[i];
        hs_joint_mean j = joint_of(v, hs_thresholds_of(b));
        bx[i] = b->sparsity, by[i] = b->error;
        jx[i] = j.sparsity, jy[i] = j.error, jl[i] = j.low, jh[i] = j.high;
        snprintf(budget_text[i], sizeof budget_text[i], "budget %.4g", b->target);
        budget[i] = budget_text[i];
    }
    char about[240];
    snprintf(about, sizeof about, "All heads sparse at once, on %s; bars are 95 %% intervals over prompts.",
             pool_name(v));
    const hs_series predicted[] = {
        {"all heads at one p", HS_PLOT_LINE | HS_PLOT_POINTS | HS_PLOT_LABELS, 1, c->points, sx, sy, .label = shared},
        {"p per head: the best there is", HS_PLOT_LINE, 0, FRONT, fx, fy},
        {"budgets of the profile", HS_PLOT_POINTS, 0, v->p->n_budgets, bx, by, .label = budget},
        {"p per head and step interval", HS_PLOT_LINE, 2, FRONT, ix, iy},
    };
    int budgets_measured = 0;
    for (int i = 0; i < v->p->n_budgets; i++) budgets_measured |= isfinite(jy[i]);
    const hs_series measured[] = {
        {"all heads at one p", HS_PLOT_LINE | HS_PLOT_POINTS | HS_PLOT_LABELS, 1, c->points, mx, my, ml, mh, shared},
        {budgets_measured ? "budgets of the profile" : NULL, HS_PLOT_POINTS, 0, v->p->n_budgets, jx, jy, jl, jh,
         budget},
        {"numeric floor", HS_PLOT_ACROSS | HS_PLOT_DASHED, HS_PLOT_NEUTRAL, 1, NULL, &floor},
    };
    int floor_near = floor_is_near(v, lowest_of(v->p->n_budgets, jy, lowest_of(c->points, my, INFINITY)));
    add_floor(v, floor_near, about, sizeof about);
    int any = budgets_measured;
    for (int k = 0; k < c->points; k++) any |= isfinite(my[k]);
    hs_page_row_begin(v->page);
    hs_page_chart(v->page,
                  &(hs_chart){"Predicted: sum of the heads' own errors",
                              "At equal sparsity, lower is better. The distance of the two lines is what choosing "
                              "per head promises.",
                              {spar},
                              {"predicted error (relative squared)", 1},
                              timed ? 4 : 3,
                              predicted});
    if (any)
        hs_page_chart(v->page, &(hs_chart){"Measured: all heads together",
                                           about,
                                           {spar},
                                           {"velocity error (relative squared)", 1},
                                           floor_near ? 3 : 2,
                                           measured});
    hs_page_row_end(v->page);
    if (!any)
        hs_page_text(v->page, "Not measured together yet: haste-calibrate solve with -m and --prompts does that.");
    return 0;
}

/* ---- heads ------------------------------------------------------------------------------------------------------ */

static int nearest_point(const hs_curves *c, double p) {
    int best = 0;
    for (int k = 0; k < c->points - 1; k++)
        if (fabs(c->top_p[k] - p) < fabs(c->top_p[best] - p)) best = k;
    return best;
}

/* Thresholds of one interval; adds what the heads drop there to their mean sparsity. */
static void threshold_map(const view *v, int interval, double *p, double *sparsity) {
    const hs_curves *c = v->c;
    const hs_profile_budget *b = v->b;
    const double *share = hs_curves_sparsity(c, b->intervals, interval);
    const int *steps = v->t->info.intervals[interval];
    char title[80];
    int n = snprintf(title, sizeof title, "Threshold p, budget %.4g", b->target);
    if (b->intervals > 1)
        snprintf(title + n, sizeof title - (size_t)n, ", steps %d to %d", interval ? steps[0] : 0, steps[1]);
    for (int i = 0; i < v->heads; i++) {
        const float top_p = b->top_p[interval * v->heads + i];
        int k = hs_curves_point(c, top_p);
        p[i] = (double)top_p;
        sparsity[i] += k < 0 ? NAN : share[i * c->points + k] / b->intervals;
    }
    hs_page_heat(v->page, &(hs_heat){.title = title,
                                     .about = "The stronger the colour, the less of the attention is kept.",
                                     .row = "layer",
                                     .column = "head",
                                     .unit = "top-p",
                                     .rows = c->layers,
                                     .columns = c->heads,
                                     .value = p,
                                     .low = c->top_p[0],
                                     .high = 1,
                                     .reversed = 1,
                                     .decimals = 2});
}

static int heat_maps(const view *v, hs_err *err) {
    const hs_curves *c = v->c;
    int ref = nearest_point(c, 0.9), all_zero = 1;
    double *p = hs_calloc((size_t)v->heads * 3, sizeof *p), *sparsity = p + v->heads, *error = p + 2 * v->heads;
    char title[80];
    if (!p) return hs_fail(err, HS_ENOMEM, "no memory for the heat maps");
    for (int i = 0; i < v->heads; i++) {
        error[i] = i < c->dense_layers * c->heads ? NAN : c->error[i * c->points + ref];
        all_zero &= !(error[i] > 0);
    }
    for (int j = 0; j < v->b->intervals; j++) threshold_map(v, j, p, sparsity);
    hs_page_heat(v->page, &(hs_heat){.title = v->b->intervals > 1 ? "Sparsity at those p" : "Sparsity at that p",
                                     .about = "Share of token pairs that the head drops.",
                                     .row = "layer",
                                     .column = "head",
                                     .unit = "sparsity",
                                     .rows = c->layers,
                                     .columns = c->heads,
                                     .value = sparsity,
                                     .low = 0,
                                     .high = 1,
                                     .decimals = 2});
    snprintf(title, sizeof title, "Sensitivity: error at p = %g", c->top_p[ref]);
    hs_page_heat(v->page, &(hs_heat){.title = title,
                                     .about = "Of the velocity, when this head alone is sparse.",
                                     .row = "layer",
                                     .column = "head",
                                     .unit = "relative squared error",
                                     .rows = c->layers,
                                     .columns = c->heads,
                                     .value = error,
                                     .log = !all_zero,
                                     .decimals = -1});
    hs_free(p);
    return 0;
}

/* One faint line per head, coloured by where in the model it is. */
static int head_curves(const view *v, hs_err *err) {
    const hs_curves *c = v->c;
    static const char *const third[] = {"first third of the layers", "middle third", "last third"};
    int n = hs_curves_sparse_heads(c), named[3] = {0};
    hs_series *s = hs_calloc((size_t)n + 1, sizeof *s);
    label40 *text = hs_calloc((size_t)n, sizeof *text);
    const char **label = hs_calloc((size_t)n, sizeof *label);
    int rc = s && text && label ? 0 : hs_fail(err, HS_ENOMEM, "no memory for the curves");
    for (int k = 0; k < n && !rc; k++) {
        int i = k + c->dense_layers * c->heads, layer = i / c->heads, part = 3 * layer / c->layers;
        snprintf(text[k], sizeof *text, "layer %d, head %d", layer, i % c->heads);
        label[k] = text[k];
        s[k] = (hs_series){.name = named[part]++ ? NULL : third[part],
                           .style = HS_PLOT_LINE | HS_PLOT_FAINT,
                           .color = part == 0   ? 0
                                    : part == 1 ? 2
                                                : 1,
                           .n = c->points - 1,
                           .x = c->sparsity + (size_t)i * (size_t)c->points,
                           .y = c->error + (size_t)i * (size_t)c->points,
                           .label = &label[k]};
    }
    if (!rc) {
        char about[320] =
            "A line per head, a point of it per threshold; means over prompts and step intervals. Where lines are "
            "far apart at equal sparsity, one threshold for all wastes quality.";
        int near = floor_is_near(v, lowest_of(v->heads * c->points, c->error, INFINITY));
        add_floor(v, near, about, sizeof about);
        s[n] = (hs_series){"numeric floor", HS_PLOT_ACROSS | HS_PLOT_DASHED, HS_PLOT_NEUTRAL, 1, NULL, &c->floor};
        hs_page_chart(v->page, &(hs_chart){"Error against sparsity, every head",
                                           about,
                                           {"sparsity of the head (share of token pairs dropped)"},
                                           {"velocity error of the head alone (relative squared)", 1},
                                           n + near,
                                           s});
    }
    hs_free(s);
    hs_free(text);
    hs_free(label);
    return rc;
}

/* ---- prediction ------------------------------------------------------------------------------------------------- */

typedef struct scatter {
    int n;
    double x[MAX_POINTS], y[MAX_POINTS], low[MAX_POINTS], high[MAX_POINTS];
    label40 text[MAX_POINTS];
    const char *label[MAX_POINTS];
} scatter;

static void HS_PRINTF(5, 6)
    add_point(const view *v, scatter *s, const hs_joint_mean *j, hs_thresholds config, const char *fmt, ...) {
    double error, sparsity;
    va_list ap;
    if (!(j->error > 0) || hs_curves_predict(v->c, config, &error, &sparsity, NULL) || !(error > 0)) return;
    s->x[s->n] = error + v->c->floor, s->y[s->n] = j->error;
    s->low[s->n] = j->low, s->high[s->n] = j->high;
    va_start(ap, fmt);
    vsnprintf(s->text[s->n], sizeof s->text[0], fmt, ap);
    va_end(ap);
    s->label[s->n] = s->text[s->n];
    s->n++;
}

static hs_series points(const scatter *s, const char *name, int color, int from, int to) {
    return (hs_series){name,        HS_PLOT_POINTS, color,          to - from,      s->x + from,
                       s->y + from, s->low + from,  s->high + from, s->label + from};
}

static int prediction(const view *v, hs_err *err) {
    const hs_curves *c = v->c;
    scatter *s = hs_calloc(1, sizeof *s);
    if (!s) return hs_fail(err, HS_ENOMEM, "no memory for the scatter plot");
    for (int i = 0; i < MAX_RANDOM; i++) {
        hs_curves_random(c, v->t->info.seed, i, v->top_p);
        hs_joint_mean j = joint_of(v, scratch(v));
        if (!j.n) break;
        add_point(v, s, &j, scratch(v), "random %d", i);
    }
    int random = s->n;
    for (int k = 0; k < c->points - 1; k++) {
        hs_joint_mean j = hs_table_joint(v->t, c->kind, v->pool, c->candidate[k], "");
        hs_curves_shared(c, c->top_p[k], v->top_p);
        add_point(v, s, &j, scratch(v), "p = %g", c->top_p[k]);
    }
    int shared = s->n;
    for (int i = 0; i < v->p->n_budgets; i++) {
        const hs_thresholds config = hs_thresholds_of(&v->p->budgets[i]);
        hs_joint_mean j = joint_of(v, config);
        add_point(v, s, &j, config, "budget %.4g", v->p->budgets[i].target);
    }
    if (s->n) {
        double rank = hs_drift_spearman(s->n, s->x, s->y), ratio = 0;
        char about[200];
        for (int i = 0; i < s->n; i++) ratio += log(s->y[i] / s->x[i]) / s->n;
        snprintf(about, sizeof about,
                 "%d configurations on %s: rank correlation %.3f, measured / predicted %.2f (geometric mean).", s->n,
                 pool_name(v), rank, exp(ratio));
        const hs_series all[] = {
            {"equal", HS_PLOT_DIAGONAL | HS_PLOT_DASHED, HS_PLOT_NEUTRAL},
            points(s, random ? "random thresholds" : NULL, 2, 0, random),
            points(s, shared > random ? "all heads at one p" : NULL, 1, random, shared),
            points(s, s->n > shared ? "budgets of the profile" : NULL, 0, shared, s->n),
        };
        hs_page_chart(v->page, &(hs_chart){"Predicted against measured error",
                                           about,
                                           {c->floor > 0 ? "predicted: sum of the heads' errors + numeric floor"
                                                         : "predicted: sum of the heads' errors (relative squared)",
                                            1},
                                           {"measured with all heads together (relative squared)", 1},
                                           4,
                                           all});
    } else {
        hs_page_text(v->page, "No configuration was measured with all its heads together yet.");
    }
    hs_free(s);
    return 0;
}

/* What a threshold per step interval adds. */
static int intervals(const view *v, hs_err *err) {
    hs_profile *kind[2] = {NULL, NULL}; /* per head; per head and interval */
    double target[HS_PROFILE_MAX_BUDGETS];
    if (v->c->intervals < 2) return 0;
    for (int i = 0; i < v->p->n_budgets; i++) target[i] = v->p->budgets[i].target;
    hs_solve_params sp = {.n = v->p->n_budgets, .target = target, .gap = 1e-3, .seconds = 5};
    int rc = hs_solve(v->t, v->c, &sp, &kind[0], err);
    sp.per_interval = 1;
    if (!rc) rc = hs_solve(v->t, v->c, &sp, &kind[1], err);
    if (rc) {
        hs_profile_free(kind[0]);
        return rc;
    }
    enum { COLUMNS = 4 };
    static const char *const head[COLUMNS] = {"target", "p per head", "p per head and interval", "change"};
    label40 text[HS_PROFILE_MAX_BUDGETS * COLUMNS];
    const char *cell[HS_PROFILE_MAX_BUDGETS * COLUMNS];
    for (int i = 0; i < v->p->n_budgets; i++) {
        double all = kind[0]->budgets[i].error, own = kind[1]->budgets[i].error;
        put(cell, text, i * COLUMNS, "%.4g", target[i]);
        put(cell, text, i * COLUMNS + 1, "%.4g", all);
        put(cell, text, i * COLUMNS + 2, "%.4g", own);
        put(cell, text, i * COLUMNS + 3, "%+.1f %%", all > 0 ? 100 * (own / all - 1) : 0);
    }
    hs_profile_free(kind[0]);
    hs_profile_free(kind[1]);
    hs_page_section(v->page, "Thresholds that change with time",
                    "Predicted error with one threshold per head, and with one of its own in each step interval "
                    "(haste-calibrate solve --per-interval), at the same mean sparsity. The latter rest on fewer "
                    "probes each, so part of a gain is chance.");
    hs_page_table(v->page, COLUMNS, head, v->p->n_budgets, cell);
    return 0;
}

/* ---- settings --------------------------------------------------------------------------------------------------- */

static void settings(const view *v) {
    enum { MAX = 24 };
    char text[MAX][200];
    const char *cell[2 * MAX];
    const hs_table_info *i = &v->t->info;
    const hs_attn_policy *a = &i->policy;
    int n = 0;
    size_t len;
#define ROW(name, ...)                                                                                                 \
    (snprintf(text[n], sizeof text[n], __VA_ARGS__), cell[2 * n] = name, cell[2 * n + 1] = text[n], n++)
    ROW("model", "%s (sha256 %.16s...)", i->model, i->sha256);
    ROW("measured on", "%s, %s", i->device, i->precision);
    ROW("video", "%dx%d, %d frames", i->width, i->height, i->frames);
    ROW("sampling", "%d %s steps, guidance %g, shift %g", i->steps, hs_solver_name(i->solver), i->guidance, i->shift);
    if (a->method == HS_SVG2)
        ROW("method", "svg2: %d query and %d key clusters", a->q_clusters, a->k_clusters);
    else if (a->method == HS_XATTENTION)
        ROW("method", "xattention: block %d, stride %d", a->block, a->stride);
    else
        ROW("method", "%s: block %d", hs_method_name(a->method), a->block);
    ROW("dense", "first %d steps, first %d layers", a->dense_steps, a->dense_layers);
    ROW("prompts", "%d (sha256 %.16s...), seed %llu", i->prompts, i->prompts_sha256, (unsigned long long)i->seed);
    ROW("step intervals", "%s", "");
    for (int k = 0; k < i->n_intervals; k++) {
        len = strlen(text[n - 1]);
        snprintf(text[n - 1] + len, sizeof text[0] - len, "%s%d to %d", k ? ", " : "", i->intervals[k][0],
                 i->intervals[k][1]);
    }
    ROW("thresholds", "%s", "");
    for (int k = 0; k < v->c->points; k++) {
        len = strlen(text[n - 1]);
        snprintf(text[n - 1] + len, sizeof text[0] - len, "%s%g", k ? ", " : "", v->c->top_p[k]);
    }
    ROW("probes", "%lld used, %lld left out", (long long)v->c->samples, (long long)v->c->dropped);
    ROW("error", "%s, relative squared, of the guided velocity", hs_error_kind_name(v->c->kind));
    if (v->c->has_floor)
        ROW("numeric floor", "%.3g; %.0f %% of the measured points are not above it", v->c->floor,
            100 * v->c->below_floor);
    else
        ROW("numeric floor", "not measured");
    ROW("profile", "%s, made by %s at %s", v->p->path, v->p->made_by, v->p->made_at);
    if (strcmp(v->p->table_sha256, v->t->sha256)) ROW("table", "has changed since the profile was made");
#undef ROW
    static const char *const head[] = {"setting", "value"};
    hs_page_table(v->page, 2, head, n, cell);
}

static void facts(const view *v) {
    label40 text[6];
    const char *value[6], *label[6];
    hs_joint_mean j = joint_of(v, hs_thresholds_of(v->b));
    int n = 0;
#define FACT(name, fmt, x) (snprintf(text[n], sizeof text[n], fmt, x), value[n] = text[n], label[n] = name, n++)
    FACT("heads", "%d", hs_curves_sparse_heads(v->c));
    FACT("mean sparsity", "%.3f", v->b->sparsity);
    FACT("predicted error", "%.3g", v->b->error);
    double shared = shared_error_at(v, v->b->sparsity);
    if (shared > 0) FACT("of what one p for all would cost", "%.0f %%", 100 * v->b->error / shared);
    if (j.n) FACT("measured together", "%.3g", j.error);
    FACT("proven gap to the best choice", v->b->gap > 0 ? "%.1e" : "%g", v->b->gap);
#undef FACT
    hs_page_facts(v->page, n, value, label);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static int write_page(view *v, const char *path, hs_err *err) {
    const hs_table_info *i = &v->t->info;
    char title[200], subtitle[300];
    snprintf(title, sizeof title, "Calibration of %s", i->model);
    snprintf(
        subtitle, sizeof subtitle,
        "%s on %d layers of %d heads, %dx%d, %d frames, %d steps. Every head was made sparse alone; thresholds were "
        "chosen for the least sum of errors.",
        hs_method_name(i->policy.method), i->layers, i->heads, i->width, i->height, i->frames, i->steps);
    int rc = hs_page_open(path, title, subtitle, &v->page, err), closed;
    if (rc) return rc;
    facts(v);
    hs_page_section(v->page, "Budgets", NULL);
    budget_table(v);
    if ((rc = pareto(v, err))) goto out;
    snprintf(title, sizeof title, "What budget %.4g gives to every head, and why.", v->b->target);
    hs_page_section(v->page, "Heads", title);
    hs_page_row_begin(v->page);
    if ((rc = heat_maps(v, err)) || (rc = head_curves(v, err))) goto out;
    hs_page_row_end(v->page);
    hs_page_section(v->page, "How good is the prediction?",
                    "Heads were measured one at a time. Here they are sparse all at once: points on the dashed line "
                    "cost together what their sum said.");
    if ((rc = prediction(v, err)) || (rc = intervals(v, err))) goto out;
    hs_page_section(v->page, "Settings", NULL);
    settings(v);
out:
    closed = hs_page_close(v->page, rc ? NULL : err);
    return rc ? rc : closed;
}

/* The held-out prompts if any budget of this profile was measured on them: others of the table say nothing of it. */
static hs_pool shown_pool(const view *v, hs_pool held_out) {
    view on_held_out = *v;
    on_held_out.pool = held_out;
    for (int i = 0; i < v->p->n_budgets; i++)
        if (joint_of(&on_held_out, hs_thresholds_of(&v->p->budgets[i])).n) return held_out;
    return (hs_pool){HS_POOL_CALIBRATION};
}

int hs_report_write(const char *path, const hs_profile *p, int budget, const hs_table *t, const hs_curves *c,
                    hs_pool held_out, hs_err *err) {
    view v = {.p = p, .b = &p->budgets[budget], .t = t, .c = c, .heads = c->layers * c->heads};
    int rc = hs_solve_matches(p, &t->info, 1, err);
    if (rc) return rc;
    for (int i = 0; i < p->n_budgets; i++)
        if (p->budgets[i].intervals != 1 && p->budgets[i].intervals != c->intervals)
            return hs_fail(err, HS_EINVAL,
                           "%s was not made with this table: its budget %.4g has %d step intervals, "
                           "the table has %d",
                           p->path, p->budgets[i].target, p->budgets[i].intervals, c->intervals);
    v.pool = shown_pool(&v, held_out);
    if (!(v.top_p = hs_alloc((size_t)v.heads * sizeof *v.top_p)))
        return hs_fail(err, HS_ENOMEM, "no memory for the report");
    rc = write_page(&v, path, err);
    hs_free(v.top_p);
    return rc;
}
