/* Curves of the heads from the probes of a table, and the choice of thresholds through ilp/choose.h. */
#include "solve.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *hs_error_kind_name(hs_error_kind k) {
    return k == HS_ERROR_BAND ? "band" : "plain";
}

static double error_of(const hs_measured *m, hs_error_kind kind) {
    return kind == HS_ERROR_BAND ? m->error_band : m->error;
}

/* ---- means ------------------------------------------------------------------------------------------------------ */

void hs_curves_free(hs_curves *c) {
    if (!c) return;
    hs_free(c->error);
    hs_free(c->sparsity);
    hs_free(c->interval_error);
    hs_free(c->interval_sparsity);
    hs_free(c);
}

static size_t at_head(const hs_curves *c, int layer, int head) {
    return ((size_t)layer * (size_t)c->heads + (size_t)head) * (size_t)c->points;
}
static size_t at_interval(const hs_curves *c, int interval, int layer, int head) {
    return (size_t)interval * at_head(c, c->layers, 0) + at_head(c, layer, head);
}

static int curves_new(const hs_table_info *info, hs_error_kind kind, hs_curves **ret, hs_err *err) {
    hs_curves *c = hs_calloc(1, sizeof *c);
    if (c) {
        *c = (hs_curves){.layers = info->layers,
                         .heads = info->heads,
                         .dense_layers = info->policy.dense_layers,
                         .intervals = info->n_intervals,
                         .points = info->n_candidates + 1,
                         .fewest = INT_MAX,
                         .kind = kind};
        for (int k = 0; k < c->points; k++) { /* insertion by rising threshold; 1 is above all candidates */
            double p = k < info->n_candidates ? info->candidates[k] : 1;
            int i = k;
            for (; i > 0 && c->top_p[i - 1] > p; i--)
                c->top_p[i] = c->top_p[i - 1], c->candidate[i] = c->candidate[i - 1];
            c->top_p[i] = p, c->candidate[i] = k < info->n_candidates ? k : -1;
        }
        size_t n = at_head(c, c->layers, 0), all = n * (size_t)c->intervals;
        c->error = hs_calloc(n, sizeof(double));
        c->sparsity = hs_calloc(n, sizeof(double));
        c->interval_error = hs_calloc(all, sizeof(double));
        c->interval_sparsity = hs_calloc(all, sizeof(double));
        if (c->error && c->sparsity && c->interval_error && c->interval_sparsity) {
            *ret = c;
            return 0;
        }
    }
    hs_curves_free(c);
    return hs_fail(err, HS_ENOMEM, "no memory for the curves of %d heads", info->layers * info->heads);
}

/* Where within one candidate of one head: the same place in the order of the table for every candidate. */
static int place_order(const hs_probe *a, const hs_probe *b) {
    if (a->interval != b->interval) return a->interval < b->interval ? -1 : 1;
    if (a->prompt != b->prompt) return a->prompt < b->prompt ? -1 : 1;
    return (a->step > b->step) - (a->step < b->step);
}

/* The means of one head from its probes, sorted by candidate and place. A (prompt, step) counts only if every candidate
 * was measured there, because candidates are compared with each other. Returns how many intervals have none. */
static int add_head(hs_curves *c, const hs_probe *probe, int64_t n) {
    int layer = probe->layer, head = probe->head, candidates = c->points - 1, empty = c->intervals;
    int64_t next[HS_CURVES_MAX_POINTS], end[HS_CURVES_MAX_POINTS], used = 0;
    int count[HS_PROFILE_MAX_INTERVALS] = {0};
    for (int k = 0, from = 0; k < candidates; k++) {
        for (next[k] = from; from < n && probe[from].candidate == k; from++) {
        }
        end[k] = from;
    }
    for (int64_t i = next[0]; i < end[0]; i++) {
        int complete = 1;
        next[0] = i;
        for (int k = 1; k < candidates; k++) {
            while (next[k] < end[k] && place_order(&probe[next[k]], &probe[i]) < 0) next[k]++;
            complete &= next[k] < end[k] && !place_order(&probe[next[k]], &probe[i]);
        }
        if (!complete) continue;
        size_t at = at_interval(c, probe[i].interval, layer, head);
        for (int k = 0; k < c->points; k++) {
            if (c->candidate[k] < 0) continue;
            const hs_measured *m = &probe[next[c->candidate[k]]].m;
            c->interval_error[at + (size_t)k] += error_of(m, c->kind);
            c->interval_sparsity[at + (size_t)k] += m->sparsity;
        }
        empty -= !count[probe[i].interval]++;
        used += candidates;
    }
    for (int j = 0; j < c->intervals; j++) {
        if (count[j] < c->fewest) c->fewest = count[j];
        if (count[j] > c->most) c->most = count[j];
        for (size_t k = 0; k < (size_t)c->points && count[j]; k++) {
            size_t from = at_interval(c, j, layer, head) + k, to = at_head(c, layer, head) + k;
            c->interval_error[from] /= count[j];
            c->interval_sparsity[from] /= count[j];
            c->error[to] += c->interval_error[from] / c->intervals;
            c->sparsity[to] += c->interval_sparsity[from] / c->intervals;
        }
    }
    c->samples += used;
    c->dropped += n - used;
    return empty;
}

static void measure_floor(hs_curves *c, const hs_table *t) {
    hs_joint_mean floor = hs_table_joint(t, c->kind, (hs_pool){HS_POOL_ANY}, HS_JOINT_FLOOR, "");
    int64_t below = 0, n = (int64_t)hs_curves_sparse_heads(c) * (c->points - 1);
    c->has_floor = floor.n > 0;
    c->floor = c->has_floor ? floor.error : 0;
    for (int i = c->dense_layers * c->heads; i < c->layers * c->heads; i++)
        for (int k = 0; k < c->points - 1; k++) below += c->error[i * c->points + k] <= c->floor;
    c->below_floor = (double)below / (double)n;
}

int hs_curves_make(const hs_table *t, hs_error_kind kind, hs_curves **ret, hs_err *err) {
    hs_curves *c = NULL;
    int rc = curves_new(&t->info, kind, &c, err);
    if (rc) return rc;
    int64_t missing = (int64_t)hs_curves_sparse_heads(c) * c->intervals, all = missing;
    for (int64_t from = 0, to; from < t->n_probes; from = to) {
        const hs_probe *first = &t->probes[from];
        for (to = from; to < t->n_probes && t->probes[to].layer == first->layer && t->probes[to].head == first->head;)
            to++;
        if (first->layer >= c->dense_layers) missing -= c->intervals - add_head(c, first, to - from);
    }
    if (missing) {
        hs_curves_free(c);
        return hs_fail(err, HS_EINVAL,
                       "the table is not complete: %lld of %lld pairs of head and step interval lack probes; "
                       "haste-calibrate measure with the same settings and --table goes on where it stopped (or name "
                       "the tables of all shards)",
                       (long long)missing, (long long)all);
    }
    measure_floor(c, t);
    *ret = c;
    return 0;
}

/* ---- configurations --------------------------------------------------------------------------------------------- */

int hs_curves_point(const hs_curves *c, float p) {
    for (int k = 0; k < c->points; k++)
        if ((float)c->top_p[k] == p) return k;
    return -1;
}

const double *hs_curves_error(const hs_curves *c, int intervals, int i) {
    return intervals > 1 ? c->interval_error + at_interval(c, i, 0, 0) : c->error;
}

const double *hs_curves_sparsity(const hs_curves *c, int intervals, int i) {
    return intervals > 1 ? c->interval_sparsity + at_interval(c, i, 0, 0) : c->sparsity;
}

int hs_curves_predict(const hs_curves *c, hs_thresholds t, double *ret_error, double *ret_sparsity, hs_err *err) {
    double error = 0, sparsity = 0;
    const int cells = c->layers * c->heads;
    if (t.intervals != 1 && t.intervals != c->intervals)
        return hs_fail(err, HS_EINVAL, "thresholds of %d step intervals, but the table has %d", t.intervals,
                       c->intervals);
    for (int j = 0; j < t.intervals; j++) {
        const double *e = hs_curves_error(c, t.intervals, j), *s = hs_curves_sparsity(c, t.intervals, j);
        for (int i = c->dense_layers * c->heads; i < cells; i++) {
            const float p = t.top_p[j * cells + i];
            int k = hs_curves_point(c, p);
            if (k < 0)
                return hs_fail(err, HS_EINVAL, "layer %d head %d has threshold %g, which the table did not measure",
                               i / c->heads, i % c->heads, (double)p);
            error += hs_curves_excess(c, e[i * c->points + k]);
            sparsity += s[i * c->points + k];
        }
    }
    *ret_error = error / t.intervals;
    *ret_sparsity = sparsity / t.intervals / hs_curves_sparse_heads(c);
    return 0;
}

void hs_curves_shared(const hs_curves *c, double p, float *ret_top_p) {
    for (int i = 0; i < c->layers * c->heads; i++) ret_top_p[i] = i < c->dense_layers * c->heads ? 1 : (float)p;
}

void hs_curves_random(const hs_curves *c, uint64_t seed, int i, float *ret_top_p) {
    uint64_t state = hs_hash64(seed ^ hs_hash64((uint64_t)i));
    int level = (int)(hs_hash64(state) % (uint64_t)c->points), sparse = c->dense_layers * c->heads;
    hs_curves_shared(c, 1, ret_top_p);
    for (int h = sparse; h < c->layers * c->heads; h++) {
        int k = level - 2 + (int)(hs_hash64(state + 1 + (uint64_t)h) % 5);
        ret_top_p[h] = (float)c->top_p[k < 0 ? 0 : k >= c->points ? c->points - 1 : k];
    }
}

static int in_pool(const hs_table *t, hs_pool pool, const hs_joint *j) {
    if (pool.kind != HS_POOL_ANY && (j->prompt >= t->info.prompts) != (pool.kind == HS_POOL_HELD_OUT)) return 0;
    for (int i = 0; i < pool.n; i++)
        if (!strcmp(pool.text[i], j->text)) return 1;
    return !pool.n;
}

/* Was this prompt's step measured before, at another place in the file? Looks from `first` on. */
static int is_again(const hs_joint *first, const hs_joint *j) {
    for (; first < j; first++)
        if (first->interval == j->interval && first->step == j->step && !strcmp(first->text, j->text)) return 1;
    return 0;
}

/* Half of a 95 % interval in standard errors of a mean of n: Student's t with n - 1 degrees of freedom. */
static double half_width(int n) {
    static const double t[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                               2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                               2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
    return n - 2 < (int)(sizeof t / sizeof *t) ? t[n - 2] : 1.96;
}

hs_joint_mean hs_table_joint(const hs_table *t, hs_error_kind kind, hs_pool pool, int candidate, const char *config) {
    hs_joint_mean r = {0};
    double sum = 0, squares = 0;
    const hs_joint *from = t->joints, *end = t->n_joints ? from + t->n_joints : from, *to;
    while (from < end && (from->candidate != candidate || strcmp(from->config, config))) from++;
    for (to = from; to < end && to->candidate == candidate && !strcmp(to->config, config);) to++;
    for (const hs_joint *j = from; j < to; j++) {
        const hs_joint *k = from;
        double one = 0;
        int n = 0;
        while (strcmp(k->text, j->text)) k++;
        if (k < j || !in_pool(t, pool, j)) continue; /* counted with the first of its prompt */
        for (; k < to; k++) {
            if (strcmp(k->text, j->text) || is_again(j, k)) continue;
            one += error_of(&k->m, kind), n++;
            r.sparsity += k->m.sparsity, r.seconds += k->m.seconds;
        }
        r.error += one, r.n += n;
        sum += one / n, squares += one / n * (one / n);
        r.prompts++;
    }
    r.low = r.high = NAN;
    if (!r.n) {
        r.error = r.sparsity = r.seconds = NAN;
        return r;
    }
    r.error /= r.n, r.sparsity /= r.n, r.seconds /= r.n;
    if (r.prompts > 1) {
        double mean = sum / r.prompts, variance = fmax(0, squares / r.prompts - mean * mean) / (r.prompts - 1);
        double half = half_width(r.prompts) * sqrt(variance);
        r.low = fmax(0, r.error - half);
        r.high = r.error + half;
    }
    return r;
}

/* ---- whose profile? --------------------------------------------------------------------------------------------- */

typedef struct pair {
    const char *what;
    double of_profile, of_table;
} pair;

static int same_numbers(const hs_profile *p, const pair *n, hs_err *err) {
    for (; n->what; n++)
        if (n->of_profile != n->of_table)
            return hs_fail(err, HS_EINVAL, "%s was not made with this table: its %s is %g, that of the table %g",
                           p->path, n->what, n->of_profile, n->of_table);
    return 0;
}

/* Parameters that a method does not have are the same in both. */
static int same_method(const hs_profile *p, const hs_table_info *i, hs_err *err) {
    const hs_attn_policy *a = &p->policy, *b = &i->policy;
    if (a->method != b->method)
        return hs_fail(err, HS_EINVAL, "%s was not made with this table: its method is %s, that of the table %s",
                       p->path, hs_method_name(a->method), hs_method_name(b->method));
    const pair n[] = {{"method.block", a->block, b->block},
                      {"method.stride", a->stride, b->stride},
                      {"method.q_clusters", a->q_clusters, b->q_clusters},
                      {"method.k_clusters", a->k_clusters, b->k_clusters},
                      {"method.iters_first", a->iters_first, b->iters_first},
                      {"method.iters_next", a->iters_next, b->iters_next},
                      {"method.min_share", (double)a->min_share, (double)b->min_share},
                      {"method.compensate", a->compensate, b->compensate},
                      {"method.compat", a->compat, b->compat},
                      {0}};
    return same_numbers(p, n, err);
}

static int same_run(const hs_profile *p, const hs_table_info *i, hs_err *err) {
    const pair n[] = {{"made_for.width", p->width, i->width},
                      {"made_for.height", p->height, i->height},
                      {"made_for.frames", p->frames, i->frames},
                      {"made_for.steps", p->steps, i->steps},
                      {"made_for.shift", p->shift, i->shift},
                      {"made_for.guidance", p->guidance, i->guidance},
                      {"made_for.solver", p->solver, i->solver},
                      {"made_for.sigmas", hs_sigmas_of(p->solver, p->sigmas), hs_sigmas_of(i->solver, i->sigmas)},
                      {"dense.steps", p->policy.dense_steps, i->policy.dense_steps},
                      {"dense.layers", p->policy.dense_layers, i->policy.dense_layers},
                      {0}};
    int rc = same_numbers(p, n, err);
    if (rc || !p->has_calibration) return rc;
    const int intervals = p->n_intervals == i->n_intervals &&
                          !memcmp(p->intervals, i->intervals, (size_t)i->n_intervals * sizeof *i->intervals);
    if (intervals && p->n_candidates == i->n_candidates &&
        !memcmp(p->candidates, i->candidates, (size_t)i->n_candidates * sizeof *i->candidates))
        return 0;
    return hs_fail(err, HS_EINVAL, "%s was not made with this table: its %s are others", p->path,
                   intervals ? "candidates" : "step intervals");
}

int hs_solve_matches(const hs_profile *p, const hs_table_info *i, int whole, hs_err *err) {
    if (p->layers != i->layers || p->heads != i->heads || strcmp(p->sha256, i->sha256))
        return hs_fail(err, HS_EINVAL,
                       "%s was not made with this table: it is for %s (%d x %d heads), the table is of %s "
                       "(%d x %d heads)",
                       p->path, p->model, p->layers, p->heads, i->model, i->layers, i->heads);
    int rc = same_method(p, i, err);
    return rc || !whole ? rc : same_run(p, i, err);
}

/* ---- choice ----------------------------------------------------------------------------------------------------- */

/* Groups: the heads of sparse layers, for every interval that has thresholds of its own in turn. Options: thresholds
 * from dense down, so that of two that cost and gain the same the safer one is taken. */
typedef struct groups {
    hs_choose_problem p;
    int *options, *pick, *start;
    double *cost, *gain;
} groups;

static void groups_done(groups *g) {
    hs_free(g->options);
    hs_free(g->pick);
    hs_free(g->start);
    hs_free(g->cost);
    hs_free(g->gain);
}

static int groups_init(groups *g, const hs_curves *c, const hs_solve_params *p, int times, hs_err *err) {
    int heads = hs_curves_sparse_heads(c), n = times * heads, at = 0;
    size_t options = (size_t)n * (size_t)c->points;
    *g = (groups){.options = hs_calloc((size_t)n, sizeof(int)),
                  .pick = hs_calloc((size_t)n, sizeof(int)),
                  .start = hs_calloc((size_t)n, sizeof(int)),
                  .cost = hs_calloc(options, sizeof(double)),
                  .gain = hs_calloc(options, sizeof(double))};
    if (!g->options || !g->pick || !g->start || !g->cost || !g->gain)
        return hs_fail(err, HS_ENOMEM, "no memory to choose for %d heads", n);
    for (int j = 0; j < times; j++) {
        const double *error = hs_curves_error(c, times, j) + at_head(c, c->dense_layers, 0);
        const double *sparsity = hs_curves_sparsity(c, times, j) + at_head(c, c->dense_layers, 0);
        for (int h = 0; h < heads; h++)
            for (int k = c->points - 1; k >= 0; k--, at++) {
                g->cost[at] = hs_curves_excess(c, error[h * c->points + k]) / times;
                g->gain[at] = sparsity[h * c->points + k] / n;
            }
    }
    for (int i = 0; i < n; i++) g->options[i] = c->points;
    g->p = (hs_choose_problem){.groups = n,
                               .options = g->options,
                               .cost = g->cost,
                               .gain = g->gain,
                               .gap = p->gap,
                               .seconds = p->seconds,
                               .user = p->user,
                               .interrupted = p->interrupted};
    return 0;
}

/* Indices of the targets from the largest to the smallest: each choice starts from the one before, which serves a
 * smaller target too, so that errors never fall when sparsity rises, whatever the gap. */
static void order_targets(const hs_solve_params *p, int *ret) {
    for (int k = 0; k < p->n; k++) {
        int i = k;
        for (; i > 0 && p->target[ret[i - 1]] < p->target[k]; i--) ret[i] = ret[i - 1];
        ret[i] = k;
    }
}

static int choose(groups *g, double target, int first, hs_choose_result *ret, hs_err *err) {
    double low, high;
    g->p.least_gain = target;
    g->p.start = first ? NULL : g->start;
    int rc = hs_choose_range(&g->p, &low, &high, err);
    if (!rc && target > high + 1e-9)
        return hs_fail(err, HS_EINVAL,
                       "a mean sparsity of %.4g cannot be reached: these measurements allow 0 to %.4f (%.4f costs no "
                       "measurable error); lower thresholds among --candidates reach further",
                       target, high, low);
    if (rc || (rc = hs_choose(&g->p, g->pick, ret, err))) return rc;
    memcpy(g->start, g->pick, (size_t)g->p.groups * sizeof *g->pick);
    return 0;
}

static int check_targets(const hs_solve_params *p, int ret_order[HS_PROFILE_MAX_BUDGETS], hs_err *err) {
    if (p->n < 1 || p->n > HS_PROFILE_MAX_BUDGETS)
        return hs_fail(err, HS_EINVAL, "%d budgets: a profile holds 1 to %d", p->n, HS_PROFILE_MAX_BUDGETS);
    for (int i = 0; i < p->n; i++)
        if (!(p->target[i] >= 0 && p->target[i] < 1))
            return hs_fail(err, HS_EINVAL, "a mean sparsity of %g: expected 0 to less than 1", p->target[i]);
    order_targets(p, ret_order);
    return 0;
}

/* Everything but the budgets. */
static void describe(const hs_table *t, const hs_curves *c, const hs_solve_params *p, hs_profile *to) {
    const hs_table_info *i = &t->info;
    time_t now = time(NULL);
    struct tm utc;
    snprintf(to->made_by, sizeof to->made_by, "haste-calibrate %s", HS_VERSION);
    strftime(to->made_at, sizeof to->made_at, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    memcpy(to->model, i->model, sizeof to->model);
    memcpy(to->sha256, i->sha256, sizeof to->sha256);
    to->width = i->width, to->height = i->height, to->frames = i->frames, to->steps = i->steps;
    to->shift = i->shift, to->guidance = i->guidance, to->solver = i->solver, to->sigmas = i->sigmas;
    to->policy = i->policy;
    to->policy.reuse = p->reuse;
    to->has_calibration = 1;
    memcpy(to->prompts_sha256, i->prompts_sha256, sizeof to->prompts_sha256);
    memcpy(to->table_sha256, t->sha256, sizeof to->table_sha256);
    snprintf(to->error_name, sizeof to->error_name, "%s", hs_error_kind_name(c->kind));
    to->seed = (double)i->seed;
    to->n_intervals = i->n_intervals;
    memcpy(to->intervals, i->intervals, sizeof to->intervals);
    to->n_candidates = i->n_candidates;
    memcpy(to->candidates, i->candidates, sizeof to->candidates);
}

/* The choice as thresholds; the intervals end where those of the table do. */
static void fill_budget(const hs_table_info *i, const hs_curves *c, const groups *g, hs_profile_budget *b) {
    const int cells = c->layers * c->heads, dense = c->dense_layers * c->heads, sparse = cells - dense;
    for (int j = 0; j < b->intervals; j++) {
        b->until[j] = j < b->intervals - 1 ? (i->intervals[j][1] + 1.0) / i->steps : 1;
        for (int h = 0; h < cells; h++)
            b->top_p[j * cells + h] = h < dense ? 1 : (float)c->top_p[c->points - 1 - g->pick[j * sparse + h - dense]];
    }
}

int hs_solve(const hs_table *t, const hs_curves *c, const hs_solve_params *p, hs_profile **ret, hs_err *err) {
    int order[HS_PROFILE_MAX_BUDGETS], times = p->per_interval ? c->intervals : 1;
    groups g = {0};
    hs_profile *profile = NULL;
    int rc = check_targets(p, order, err);
    if (rc || (rc = groups_init(&g, c, p, times, err)) ||
        (rc = hs_profile_new(c->layers, c->heads, times, p->n, &profile, err)))
        goto out;
    describe(t, c, p, profile);
    for (int k = 0; k < p->n; k++) {
        hs_profile_budget *b = &profile->budgets[order[k]];
        hs_choose_result r;
        if ((rc = choose(&g, p->target[order[k]], k == 0, &r, err))) goto out;
        b->target = p->target[order[k]];
        b->error = r.cost, b->bound = r.bound, b->gap = r.gap, b->sparsity = r.gain;
        fill_budget(&t->info, c, &g, b);
    }
    *ret = profile;
    profile = NULL;
out:
    groups_done(&g);
    hs_profile_free(profile);
    return rc;
}
