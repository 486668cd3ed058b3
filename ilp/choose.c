/* The multiple-choice knapsack problem through GLPK, made small and warm before GLPK sees it.
 *
 * Three things are known about this problem that a general solver finds out slowly:
 *   - an option that another one of its group beats in cost and gain is never needed (prune);
 *   - the linear relaxation is solved by walking the groups' lower convex hulls in order of falling value (relax): that
 *     gives GLPK an optimal basis to start from, and the price of gain, hence a bound in exact arithmetic;
 *   - rounding that solution and spending what is left over is nearly optimal when groups are many (repair, improve):
 *     GLPK gets it as incumbent at the root, and so for every relaxation in the tree.
 * GLPK's part is the proof: its simplex confirms the relaxation, its branch and cut closes the gap.
 *
 * Inside, option 0 of a group is its cheapest one and stands for "no variable set"; costs and gains count from there,
 * so that all are >= 0, and columns are scaled to about 1, because GLPK's tolerances are absolute around 1.
 */
#include "choose.h"

#include <glpk.h>
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct item {
    double cost, gain; /* above the group's cheapest option */
    int option;        /* index in the caller's group */
} item;

typedef struct hull_step {
    double price; /* cost per gain of going from item `from` to item `to` */
    int group, from, to;
} hull_step;

typedef struct work {
    const hs_choose_problem *p;
    int groups, columns, columns_left;
    int *first;  /* [groups + 1] */
    item *items; /* [first[groups]] of every group, by rising cost and rising gain */
    hull_step *step;
    int *pick; /* [groups] item of the choice in work */
    int *best; /* [groups] the cheapest one that reaches the need */
    double base_cost, base_gain;
    double need;             /* gain above base_gain */
    double slack;            /* of need: what counts as reached */
    double best_cost, bound; /* above base_cost */
    /* GLPK */
    glp_prob *lp;
    double cost_scale;
    double *x; /* [1 + columns] */
    int64_t nodes;
    int rooted, stopped;
    jmp_buf fatal;
    char message[120];
} work;

/* ---- the problem ------------------------------------------------------------------------------------------------ */

static int check(const hs_choose_problem *p, int64_t *ret_options, hs_err *err) {
    int64_t n = 0;
    if (p->groups < 1) return hs_fail(err, HS_EINVAL, "%d groups to choose for: there should be at least 1", p->groups);
    if (!(p->gap >= 0 && p->seconds >= 0) || isnan(p->least_gain))
        return hs_fail(err, HS_EINVAL, "gain of at least %g within gap %g and %g s: not a problem", p->least_gain,
                       p->gap, p->seconds);
    for (int g = 0; g < p->groups; g++) {
        if (p->options[g] < 1 || p->options[g] > 1000000 ||
            (p->start && (p->start[g] < 0 || p->start[g] >= p->options[g])))
            return hs_fail(err, HS_EINVAL, "group %d has %d options%s: expected 1 to 1000000", g, p->options[g],
                           p->options[g] > 0 ? ", and the start is none of them" : "");
        for (int k = 0; k < p->options[g]; k++, n++)
            if (!(p->cost[n] >= 0 && p->cost[n] <= 1e100) || !(fabs(p->gain[n]) <= 1e100))
                return hs_fail(err, HS_EINVAL,
                               "option %d of group %d costs %g and gains %g: expected a cost >= 0, both "
                               "finite",
                               k, g, p->cost[n], p->gain[n]);
    }
    *ret_options = n;
    return n > INT32_MAX / 2 ? hs_fail(err, HS_EINVAL, "too many options: %lld", (long long)n) : 0;
}

/* Falling gain; among equals the cheaper one, then the earlier one. */
static int by_gain(const void *a, const void *b) {
    const item *x = a, *y = b;
    if (x->gain != y->gain) return x->gain < y->gain ? 1 : -1;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return x->option - y->option;
}

/* Keeps of n options those that no other one beats, by rising cost (and gain); returns how many. */
static int prune(item *at, int n) {
    int kept = 0;
    qsort(at, (size_t)n, sizeof *at, by_gain);
    for (int k = 0; k < n; k++)
        if (!kept || at[k].cost < at[kept - 1].cost) at[kept++] = at[k];
    for (int i = 0, j = kept - 1; i < j; i++, j--) {
        item t = at[i];
        at[i] = at[j], at[j] = t;
    }
    return kept;
}

/* Scales must not overflow. */
static double not_tiny(double x) {
    return fabs(x) < 1e-100 ? 0 : x;
}

static void load(work *w) {
    const hs_choose_problem *p = w->p;
    int at = 0, n = 0;
    for (int g = 0; g < p->groups; g++) {
        item *group = w->items + n;
        w->first[g] = n;
        for (int k = 0; k < p->options[g]; k++, at++)
            group[k] = (item){not_tiny(p->cost[at]), not_tiny(p->gain[at]), k};
        n += prune(group, p->options[g]);
        item cheapest = group[0];
        w->base_cost += cheapest.cost;
        w->base_gain += cheapest.gain;
        for (item *i = group; i < w->items + n; i++) i->cost -= cheapest.cost, i->gain -= cheapest.gain;
    }
    w->first[p->groups] = n;
    w->columns = n - p->groups;
    w->need = p->least_gain - w->base_gain;
}

static double most_gain(const work *w) {
    double sum = 0;
    for (int g = 0; g < w->groups; g++) sum += w->items[w->first[g + 1] - 1].gain;
    return sum;
}

static const item *picked(const work *w, const int *pick, int g) {
    return &w->items[w->first[g] + pick[g]];
}

static double cost_of(const work *w, const int *pick) {
    double sum = 0;
    for (int g = 0; g < w->groups; g++) sum += picked(w, pick, g)->cost;
    return sum;
}

/* What the choice lacks; at most w->slack counts as nothing. */
static double missing(const work *w, const int *pick) {
    double sum = 0;
    for (int g = 0; g < w->groups; g++) sum += picked(w, pick, g)->gain;
    return w->need - sum;
}

/* ---- choices by rounding ---------------------------------------------------------------------------------------- */

static int keep_if_best(work *w) {
    double cost = cost_of(w, w->pick);
    if (cost >= w->best_cost || missing(w, w->pick) > w->slack) return 0;
    w->best_cost = cost;
    memcpy(w->best, w->pick, (size_t)w->groups * sizeof *w->best);
    return 1;
}

/* Until the need is reached: the cheapest single move that does it, if one can; else the move of least cost per gain.
 */
static void repair(work *w) {
    double lacks;
    while ((lacks = missing(w, w->pick)) > w->slack) {
        int group = -1, to = 0, whole = 0;
        double least = INFINITY;
        for (int g = 0; g < w->groups; g++) {
            const item *now = picked(w, w->pick, g);
            for (int i = w->pick[g] + 1; i < w->first[g + 1] - w->first[g]; i++) {
                const item *then = &w->items[w->first[g] + i];
                double gain = then->gain - now->gain, cost = then->cost - now->cost;
                int reaches = gain >= lacks;
                double key = reaches ? cost : cost / gain;
                if (reaches < whole || (reaches == whole && key >= least)) continue;
                whole = reaches, least = key, group = g, to = i;
            }
        }
        if (group < 0) return; /* the last bit of a sum: keep_if_best decides */
        w->pick[group] = to;
    }
}

/* Spends what the choice has too much: always the move that saves most. */
static void improve(work *w) {
    for (;;) {
        double spare = w->slack - missing(w, w->pick), most = 0;
        int group = -1, to = 0;
        for (int g = 0; g < w->groups; g++) {
            const item *now = picked(w, w->pick, g);
            for (int i = w->pick[g] - 1; i >= 0; i--) {
                const item *then = &w->items[w->first[g] + i];
                if (now->gain - then->gain > spare) break;
                if (now->cost - then->cost > most) most = now->cost - then->cost, group = g, to = i;
            }
        }
        if (group < 0) return;
        w->pick[group] = to;
    }
}

/* ---- the linear relaxation -------------------------------------------------------------------------------------- */

static int by_price(const void *a, const void *b) {
    const hull_step *x = a, *y = b;
    if (x->price != y->price) return x->price < y->price ? -1 : 1;
    return x->group != y->group ? x->group - y->group : x->from - y->from;
}

/* The steps of each group's lower convex hull: a step goes where gain is cheapest. Within a group prices rise. */
static int hull(work *w) {
    int n = 0;
    for (int g = 0; g < w->groups; g++) {
        const item *at = w->items + w->first[g];
        int count = w->first[g + 1] - w->first[g];
        for (int from = 0, to; from < count - 1; from = to) {
            double least = INFINITY;
            to = count - 1;
            for (int i = from + 1; i < count; i++) {
                double price = (at[i].cost - at[from].cost) / (at[i].gain - at[from].gain);
                if (price <= least) least = price, to = i;
            }
            w->step[n++] = (hull_step){least, g, from, to};
        }
    }
    qsort(w->step, (size_t)n, sizeof *w->step, by_price);
    return n;
}

static double at_price(const item *i, double price) {
    return i->cost - price * i->gain;
}

static double least_at_price(const work *w, int g, double price) {
    double least = 0;
    for (int i = w->first[g]; i < w->first[g + 1]; i++) least = fmin(least, at_price(&w->items[i], price));
    return least;
}

/* No choice costs less than need * price + sum over groups of min (cost - price * gain). */
static double bound_at(const work *w, double price) {
    double sum = price * w->need;
    for (int g = 0; g < w->groups; g++) sum += least_at_price(w, g, price);
    return sum;
}

/* Walks the hulls until the need is reached: w->pick is the relaxation without its one fractional step, which is
 * returned. w->best: the best choice around it. */
static hull_step relax(work *w) {
    int n = hull(w), i = 0;
    double gain = 0;
    memset(w->pick, 0, (size_t)w->groups * sizeof *w->pick);
    for (; i < n; i++) {
        const hull_step *s = &w->step[i];
        double more = w->items[w->first[s->group] + s->to].gain - w->items[w->first[s->group] + s->from].gain;
        if (gain + more >= w->need || i == n - 1) break;
        gain += more;
        w->pick[s->group] = s->to;
    }
    hull_step last = w->step[i];
    w->bound = fmax(0, bound_at(w, last.price));
    w->pick[last.group] = last.to;
    improve(w);
    keep_if_best(w);
    memset(w->pick, 0, (size_t)w->groups * sizeof *w->pick);
    for (int j = 0; j < i; j++) w->pick[w->step[j].group] = w->step[j].to;
    repair(w);
    improve(w);
    keep_if_best(w);
    memset(w->pick, 0, (size_t)w->groups * sizeof *w->pick);
    for (int j = 0; j < i; j++) w->pick[w->step[j].group] = w->step[j].to;
    return last;
}

/* ---- GLPK ------------------------------------------------------------------------------------------------------- */
/* Column of item i > 0 of group g: 1 + first[g] + i - g - 1, as every group before it left its item 0 out. */
static int column(const work *w, int g, int i) {
    return w->first[g] + i - g;
}

/* GLPK speaks before it gives up, whatever glp_term_out says: the text goes into our message, not to the terminal. */
static int on_text(void *info, const char *text) {
    work *w = info;
    if (!w->message[0]) snprintf(w->message, sizeof w->message, "%.*s", (int)strcspn(text, "\n"), text);
    return 1;
}

static void on_fatal(void *info) {
    work *w = info;
    longjmp(w->fatal, 1);
}

/* Rows: one per group (at most one column set), then the need. Basis: that of the relaxation, w->pick and `last`.
 * Columns that no choice better than w->best can hold stay at 0, which also keeps the numbers in range; so does that no
 * item need gain more than all of the need. */
static void build(work *w, hull_step last) {
    int need_row = w->groups + 1, row[3];
    double a[3], gain_scale = w->groups / w->need;
    w->cost_scale = w->bound > 0 ? w->groups / w->bound : w->groups / w->best_cost;
    w->lp = glp_create_prob();
    glp_add_rows(w->lp, w->groups + 1);
    glp_add_cols(w->lp, w->columns);
    glp_set_obj_coef(w->lp, 0, w->base_cost * w->cost_scale);
    for (int g = 0; g < w->groups; g++) {
        int now = w->pick[g];
        double least = least_at_price(w, g, last.price);
        glp_set_row_bnds(w->lp, g + 1, GLP_UP, 0, 1);
        glp_set_row_stat(w->lp, g + 1, now ? GLP_NU : GLP_BS);
        for (int i = 1; i < w->first[g + 1] - w->first[g]; i++) {
            const item *at = &w->items[w->first[g] + i];
            int c = column(w, g, i), basic = i == now || (g == last.group && i == last.to);
            glp_set_col_kind(w->lp, c, GLP_BV);
            if (!basic && w->bound + at_price(at, last.price) - least > w->best_cost) {
                glp_set_col_bnds(w->lp, c, GLP_FX, 0, 0);
                continue;
            }
            glp_set_obj_coef(w->lp, c, at->cost * w->cost_scale);
            row[1] = g + 1, a[1] = 1;
            row[2] = need_row, a[2] = fmin(at->gain, w->need) * gain_scale;
            glp_set_mat_col(w->lp, c, 2, row, a);
            glp_set_col_stat(w->lp, c, basic ? GLP_BS : GLP_NL);
            w->columns_left++;
        }
    }
    glp_set_row_bnds(w->lp, need_row, GLP_LO, (w->need - w->slack) * gain_scale, 0);
    glp_set_row_stat(w->lp, need_row, GLP_NL);
}

/* The choice nearest to GLPK's fractional one: in every group the item with the largest share. */
static void round_columns(work *w, double (*value)(void *from, int column), void *from) {
    for (int g = 0; g < w->groups; g++) {
        int count = w->first[g + 1] - w->first[g], most = 0;
        double rest = 1, share = 0;
        for (int i = 1; i < count; i++) {
            double x = value(from, column(w, g, i));
            rest -= x;
            if (x > share) share = x, most = i;
        }
        w->pick[g] = share >= rest ? most : 0;
    }
}

static double relaxed_value(void *from, int c) {
    return glp_get_col_prim(from, c);
}
static double whole_value(void *from, int c) {
    return glp_mip_col_val(from, c);
}

static void offer_best(const work *w, glp_tree *tree) {
    memset(w->x, 0, ((size_t)w->columns + 1) * sizeof *w->x);
    for (int g = 0; g < w->groups; g++)
        if (w->best[g]) w->x[column(w, g, w->best[g])] = 1;
    glp_ios_heur_sol(tree, w->x);
}

static void on_tree(glp_tree *tree, void *info) {
    work *w = info;
    int node = glp_ios_best_node(tree);
    if (node) w->bound = fmax(w->bound, glp_ios_node_bound(tree, node) / w->cost_scale - w->base_cost);
    if (w->p->interrupted && w->p->interrupted(w->p->user)) {
        w->stopped = 1;
        glp_ios_terminate(tree);
    }
    if (glp_ios_reason(tree) != GLP_IHEUR) return;
    w->nodes++;
    round_columns(w, relaxed_value, glp_ios_get_prob(tree));
    repair(w);
    improve(w);
    if (keep_if_best(w) || !w->rooted) offer_best(w, tree);
    w->rooted = 1;
}

/* What GLPK's return codes prove is taken into w->bound. */
static int search(work *w, hs_err *err) {
    glp_smcp simplex;
    glp_iocp tree;
    glp_init_smcp(&simplex);
    simplex.msg_lev = GLP_MSG_OFF;
    glp_init_iocp(&tree);
    tree.msg_lev = GLP_MSG_OFF;
    tree.bt_tech = GLP_BT_BLB;
    tree.tol_int = 1e-7;
    tree.mip_gap = w->p->gap;
    tree.cb_func = on_tree;
    tree.cb_info = w;
    if (w->p->seconds > 0) {
        int ms = (int)fmin(w->p->seconds * 1000 + 1, INT32_MAX);
        simplex.tm_lim = tree.tm_lim = ms;
    }
    int rc = glp_simplex(w->lp, &simplex);
    if (rc == GLP_ETMLIM) return 0;
    if (rc || glp_get_status(w->lp) != GLP_OPT)
        return hs_fail(err, HS_ENUMERIC,
                       "GLPK cannot solve the relaxed problem (code %d, status %d): the errors or "
                       "gains span too many powers of ten",
                       rc, glp_get_status(w->lp));
    rc = glp_intopt(w->lp, &tree);
    if (w->stopped) return hs_fail(err, HS_EINTR, "interrupted while choosing");
    if (rc && rc != GLP_EMIPGAP && rc != GLP_ETMLIM)
        return hs_fail(err, HS_ENUMERIC, "GLPK's branch and cut failed with code %d", rc);
    int status = glp_mip_status(w->lp);
    if (status == GLP_OPT || status == GLP_FEAS) {
        double cost = glp_mip_obj_val(w->lp) / w->cost_scale - w->base_cost;
        round_columns(w, whole_value, w->lp);
        keep_if_best(w);
        if (!rc) w->bound = fmax(w->bound, fmin(cost, w->best_cost));
        if (rc == GLP_EMIPGAP) w->bound = fmax(w->bound, cost - w->p->gap * (cost + w->base_cost));
    }
    return 0;
}

static int prove(work *w, hull_step last, hs_err *err) {
    int rc;
    if (setjmp(w->fatal)) {
        glp_free_env();
        return hs_fail(err, HS_ENOMEM, "GLPK gave up on %d groups with %d options: %s", w->groups,
                       w->columns + w->groups, w->message);
    }
    glp_term_hook(on_text, w);
    glp_error_hook(on_fatal, w);
    build(w, last);
    rc = search(w, err);
    glp_delete_prob(w->lp);
    glp_free_env();
    return rc;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static void work_free(work *w) {
    if (!w) return;
    hs_free(w->first);
    hs_free(w->items);
    hs_free(w->step);
    hs_free(w->pick);
    hs_free(w->best);
    hs_free(w->x);
    hs_free(w);
}

static int work_new(const hs_choose_problem *p, work **ret, hs_err *err) {
    int64_t n = 0;
    int rc = check(p, &n, err);
    if (rc) return rc;
    work *w = hs_calloc(1, sizeof *w);
    if (w) {
        size_t groups = (size_t)p->groups, options = (size_t)n;
        *w = (work){.p = p,
                    .groups = p->groups,
                    .best_cost = INFINITY,
                    .first = hs_calloc(groups + 1, sizeof *w->first),
                    .items = hs_calloc(options, sizeof *w->items),
                    .step = hs_calloc(options, sizeof *w->step),
                    .pick = hs_calloc(groups, sizeof *w->pick),
                    .best = hs_calloc(groups, sizeof *w->best),
                    .x = hs_calloc(options + 1, sizeof *w->x)};
        if (w->first && w->items && w->step && w->pick && w->best && w->x) {
            load(w);
            *ret = w;
            return 0;
        }
    }
    work_free(w);
    return hs_fail(err, HS_ENOMEM, "no memory to choose among %lld options", (long long)n);
}

int hs_choose_range(const hs_choose_problem *p, double *ret_low, double *ret_high, hs_err *err) {
    work *w = NULL;
    int rc = work_new(p, &w, err);
    if (rc) return rc;
    *ret_low = w->base_gain;
    *ret_high = w->base_gain + most_gain(w);
    work_free(w);
    return 0;
}

/* The caller's start as items: where its option was pruned, the one that beats it. */
static void take_start(work *w) {
    int at = 0;
    for (int g = 0; g < w->groups; at += w->p->options[g++]) {
        const double *gain = w->p->gain + at;
        const item *group = w->items + w->first[g];
        int i = w->first[g + 1] - w->first[g] - 1;
        while (i > 0 && gain[group[i - 1].option] >= gain[w->p->start[g]]) i--;
        w->pick[g] = i;
    }
    keep_if_best(w);
}

static void report(const work *w, int *ret_pick, hs_choose_result *ret) {
    hs_choose_result r = {.bound = w->base_cost + w->bound, .columns = w->columns_left, .nodes = w->nodes};
    int at = 0;
    for (int g = 0; g < w->groups; at += w->p->options[g++]) {
        ret_pick[g] = picked(w, w->best, g)->option;
        r.cost += w->p->cost[at + ret_pick[g]];
        r.gain += w->p->gain[at + ret_pick[g]];
    }
    r.bound = fmin(r.bound, r.cost);
    if (r.cost - r.bound < 1e-12 * r.cost) r.bound = r.cost; /* rounding */
    r.gap = r.cost > 0 ? (r.cost - r.bound) / r.cost : 0;
    r.proven = r.gap <= w->p->gap + 1e-9; /* 1e-9: of tolerances in the proof */
    *ret = r;
}

int hs_choose(const hs_choose_problem *p, int *ret_pick, hs_choose_result *ret, hs_err *err) {
    work *w = NULL;
    int rc = work_new(p, &w, err);
    if (rc) return rc;
    double most = most_gain(w);
    w->slack = 1e-9 * most;
    if (w->need > most + w->slack) {
        rc = hs_fail(err, HS_EINVAL, "a gain of %.6g is out of reach: from %.6g (nothing given up) to %.6g",
                     p->least_gain, w->base_gain, w->base_gain + most);
    } else if (w->need <= w->slack) { /* the cheapest options do */
        w->best_cost = w->bound = 0;
    } else {
        if (p->start) take_start(w);
        hull_step last = relax(w);
        rc = prove(w, last, err);
    }
    if (!rc) report(w, ret_pick, ret);
    work_free(w);
    return rc;
}
