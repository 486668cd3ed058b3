/* haste-calibrate: measure every head once, choose a threshold for each, check the choice, show it. The work is in
 * measure.c, solve.c, show.c and report.c; here is what a person sees of it.
 *
 * stderr is for people, stdout for what was asked for (the plan of --dry-run, the view of `show`).
 */
#include "calibrate_options.h"
#include "check.h"
#include "compare.h"
#include "cost.h"
#include "newfile.h"
#include "program.h"
#include "prompts.h"
#include "report.h"
#include "run_print.h"
#include "show.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_SIZE = 4096 };

typedef struct app {
    hs_calibrate_options o;
    char default_table[PATH_SIZE], default_page[PATH_SIZE];
    hs_model *model;
    hs_prompts prompts, held_out;
    char (*held_out_names)[17]; /* [held_out.n] in tables */
    hs_table *table;
    hs_curves *curves;
    hs_profile *profile, *other;
    hs_console console;
    double said; /* when progress was last shown */
    char what[64];
} app;

/* ---- messages --------------------------------------------------------------------------------------------------- */
static void HS_PRINTF(2, 3) say(app *a, const char *fmt, ...) {
    va_list ap;
    if (a->o.run.quiet) return;
    hs_console_clear(&a->console);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
}

/* One line, rewritten on a terminal; elsewhere at most every ten seconds, and at the end of each part. */
static void on_progress(void *user, const char *what, int64_t done, int64_t total, double seconds, double eta) {
    app *a = user;
    double now = hs_seconds();
    hs_text32 spent, left;
    int last = done == total, other = strcmp(what, a->what) != 0;
    if (a->o.run.quiet || (!last && !other && now - a->said < (a->console.tty ? 0.2 : 10))) return;
    a->said = now;
    snprintf(a->what, sizeof a->what, "%s", what);
    hs_console_clear(&a->console);
    fprintf(stderr, "%s %lld/%lld, %s", what, (long long)done, (long long)total, hs_print_seconds(seconds, spent));
    if (eta > 0) fprintf(stderr, ", about %s left", hs_print_seconds(eta, left));
    hs_console_end_line(&a->console, last);
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */
static int on_interrupted(void *user) {
    (void)user;
    return hs_program_stopped();
}

/* ---- model, prompts, settings ----------------------------------------------------------------------------------- */

static int open_model(app *a, const char *precision, hs_err *err) {
    const hs_options *o = &a->o.run;
    hs_model_params p = {.device = o->device ? o->device : "auto",
                         .precision = o->precision ? o->precision : precision,
                         .headers_only = o->dry_run};
    const int rc = hs_options_model(o, &p, err);
    return rc || a->model ? rc : hs_model_open(&p, &a->model, err);
}

/* The same prompt again is no further measurement: means and intervals would take it for one. */
static void drop_repeated(hs_prompts *p, const char *path) {
    int n = 0;
    for (int i = 0; i < p->n; i++) {
        int k = 0;
        while (k < n && strcmp(p->text[k], p->text[i])) k++;
        if (k < n)
            free(p->text[i]);
        else
            p->text[n++] = p->text[i];
    }
    if (n < p->n) hs_log(HS_LOG_WARN, "%s: %d of %d prompts are there before and left out", path, p->n - n, p->n);
    p->n = n;
}

static void keep_first(hs_prompts *p, int n) {
    for (; n && p->n > n; p->n--) free(p->text[p->n - 1]);
}

static int name_held_out(app *a, hs_err *err) {
    if (a->held_out_names || !a->held_out.n) return 0;
    if (!(a->held_out_names = hs_alloc((size_t)a->held_out.n * sizeof *a->held_out_names)))
        return hs_fail(err, HS_ENOMEM, "no memory for the prompts");
    for (int i = 0; i < a->held_out.n; i++) hs_measure_text_name(a->held_out.text[i], a->held_out_names[i]);
    return 0;
}

/* Without such prompts: all that the table has. */
static hs_pool held_out_pool(const app *a) {
    return (hs_pool){HS_POOL_HELD_OUT, a->held_out.n, a->held_out_names};
}

static int read_prompts(app *a, hs_err *err) {
    const hs_calibrate_options *o = &a->o;
    int rc = 0;
    if (!a->prompts.n) rc = hs_prompts_read(&a->prompts, o->run.prompts, err);
    if (!rc && o->held_out && !a->held_out.n) rc = hs_prompts_read(&a->held_out, o->held_out, err);
    drop_repeated(&a->prompts, o->run.prompts);
    drop_repeated(&a->held_out, o->held_out);
    keep_first(&a->prompts, o->max_prompts);
    keep_first(&a->held_out, o->max_held_out);
    for (int i = 0; i < a->held_out.n && !rc; i++)
        for (int k = 0; k < a->prompts.n && !rc; k++)
            if (!strcmp(a->held_out.text[i], a->prompts.text[k]))
                rc = hs_fail(err, HS_EINVAL,
                             "%s holds a calibration prompt: \"%.100s\"; held-out prompts must be others", o->held_out,
                             a->prompts.text[k]);
    return rc ? rc : name_held_out(a, err);
}

/* What the options say, over what the model says. */
static int make_request(const app *a, hs_request *r, hs_err *err) {
    hs_options o = a->o.run;
    int flags;
    *r = hs_request_default(a->model);
    hs_options_request(&o, r);
    r->layer_ranges = 1;
    if (o.attention < 0) o.attention = HS_XATTENTION;
    r->attention = hs_attn_policy_default(HS_DENSE);
    return hs_options_attention(&o, &r->attention, &flags, err);
}

/* What the table says: joint errors belong to the settings of its probes. */
static hs_request request_of_table(const app *a) {
    const hs_table_info *i = &a->table->info;
    hs_request r = hs_request_default(a->model);
    r.width = i->width, r.height = i->height, r.frames = i->frames, r.steps = i->steps;
    r.guidance = i->guidance, r.shift = i->shift, r.solver = i->solver, r.sigmas = i->sigmas;
    r.negative = a->o.run.negative;
    r.attention = i->policy;
    r.attention.top_p = hs_attn_policy_default(i->policy.method).top_p;
    return r;
}

static hs_measure_params make_params(app *a) {
    const hs_calibrate_options *o = &a->o;
    hs_measure_params p = {.table = o->tables[0],
                           .prompts = (const char *const *)a->prompts.text,
                           .n_prompts = a->prompts.n,
                           .held_out = (const char *const *)a->held_out.text,
                           .n_held_out = a->held_out.n,
                           .n_intervals = o->intervals,
                           .prompts_per_head = o->prompts_per_head,
                           .n_candidates = o->candidates.n,
                           .seed = o->run.seed,
                           .shard = o->shard,
                           .shards = o->shards,
                           .user = a,
                           .progress = on_progress,
                           .interrupted = on_interrupted};
    memcpy(p.candidates, o->candidates.at, sizeof p.candidates);
    return p;
}

static hs_measure_params params_of_table(app *a) {
    const hs_table_info *i = &a->table->info;
    hs_measure_params p = make_params(a);
    p.n_intervals = i->n_intervals, p.n_candidates = i->n_candidates, p.seed = i->seed;
    p.prompts_per_head = 1;
    p.shard = 0, p.shards = 1;
    memcpy(p.candidates, i->candidates, sizeof p.candidates);
    return p;
}

/* ---- measure ---------------------------------------------------------------------------------------------------- */

/* Seconds of one forward of one branch, from what is known of the machine; 0 = unknown. */
static double forward_seconds(const hs_plan *plan, const hs_request *r) {
    double flops = plan->flops_step * r->steps, all = flops + plan->flops_text + plan->flops_vae;
    int branches = r->guidance > 1 ? 2 : 1;
    return all > 0 ? plan->seconds * flops / all / (r->steps * branches) : 0;
}

static void print_cost(FILE *to, app *a, const hs_request *r, const hs_plan *plan, const hs_measure_plan *m) {
    const hs_model_info *i = hs_model_get_info(a->model);
    const hs_measure_params p = make_params(a);
    const hs_attn_policy *s = &r->attention;
    hs_text32 text, limit;
    double seconds = forward_seconds(plan, r) * (m->forwards + m->forwards_dense);
    fprintf(to, "model    %s: %d layers, %d heads, on %s\n", hs_options_model_name(&a->o.run), i->layers, i->heads,
            i->device);
    fprintf(to, "video    %dx%d, %d frames, %d %s steps, guidance %g, shift %g, seed %llu\n", r->width, r->height,
            r->frames, r->steps, hs_solver_name(r->solver), r->guidance, r->shift, (unsigned long long)p.seed);
    fprintf(to, "sparse   %s", hs_method_name(s->method));
    if (s->method == HS_SVG2)
        fprintf(to, ", %d query and %d key clusters", s->q_clusters, s->k_clusters);
    else
        fprintf(to, ", block %d", s->block);
    if (s->method == HS_XATTENTION) fprintf(to, ", stride %d", s->stride);
    if (s->dense_steps) fprintf(to, ", first %d steps dense", s->dense_steps);
    if (s->dense_layers) fprintf(to, ", first %d layers dense", s->dense_layers);
    fputc('\n', to);
    fprintf(to, "try     ");
    for (int k = 0; k < p.n_candidates; k++) fprintf(to, " %g", p.candidates[k]);
    fprintf(to, " in %d step intervals, %d prompt%s per head of %d\n", p.n_intervals, p.prompts_per_head,
            p.prompts_per_head == 1 ? "" : "s", p.n_prompts);
    fprintf(to, "work     %lld probes (%lld of them are in %s), %lld dense generations\n", (long long)m->probes,
            (long long)m->probes_done, p.table, (long long)m->dense_passes);
    fprintf(to, "cost     %.0f forwards of one branch", m->forwards);
    if (m->forwards > 0)
        fprintf(to, ", %.1f times fewer than a dense and a sparse one for each probe (%.0f)",
                m->forwards_naive / m->forwards, m->forwards_naive);
    if (m->forwards_dense > 0) fprintf(to, ", and %.0f for the dense generations", m->forwards_dense);
    fprintf(to, "; records %s\n", hs_print_bytes((int64_t)m->bytes, text));
    fprintf(to, "memory   %s of %s %s\n", hs_print_bytes(plan->peak_bytes, text),
            hs_print_bytes(plan->limit_bytes, limit), plan->limited ? "allowed (--max-vram)" : "free");
    hs_print_fit(to, "fit     ", plan);
    if (seconds > 0) fprintf(to, "time     about %s\n", hs_print_seconds(seconds, text));
}

static int measure(app *a, hs_err *err) {
    hs_request r;
    hs_plan plan;
    hs_measure_plan cost;
    int rc;
    if ((rc = read_prompts(a, err)) || (rc = open_model(a, "fp32", err)) || (rc = make_request(a, &r, err)) ||
        (rc = hs_request_check(a->model, &r, &plan, err)))
        return rc;
    hs_measure_params p = make_params(a);
    if ((rc = hs_measure_plan_make(a->model, &r, &p, &cost, err))) return rc;
    if (a->o.run.dry_run || !a->o.run.quiet) print_cost(a->o.run.dry_run ? stdout : stderr, a, &r, &plan, &cost);
    if (a->o.run.dry_run) return 0;
    if ((rc = hs_measure_probes(a->model, &r, &p, err))) return rc;
    p.n_held_out = 0;
    return hs_measure_joint(a->model, &r, &p, 0, 0, NULL, err); /* the numeric floor */
}

/* ---- solve ------------------------------------------------------------------------------------------------------ */

static int load_table(app *a, hs_err *err) {
    return hs_check_load(a->o.n_tables, a->o.tables, a->o.error, &a->table, &a->curves, err);
}

/* Choosing among noisy numbers favours the lucky ones, the more the fewer probes each rests on. */
static void warn_of_few_probes(const app *a) {
    const hs_curves *c = a->curves;
    double each = (double)c->samples / ((double)hs_curves_sparse_heads(c) * c->intervals * (c->points - 1));
    if (a->o.per_interval && c->intervals > 1 && each < 4)
        hs_log(HS_LOG_WARN,
               "--per-interval chooses by %.3g probe%s a number: on other prompts that can be worse than one threshold "
               "per head; measure with --prompts-per-head 4 or more",
               each, each == 1 ? "" : "s");
}

static void say_table(app *a) {
    const hs_curves *c = a->curves;
    const hs_table_info *i = &a->table->info;
    say(a, "table: %lld probes of %d heads, %d thresholds, %d step intervals; %s, %s", (long long)c->samples,
        hs_curves_sparse_heads(c), c->points - 1, c->intervals, i->device, i->precision);
    if (c->dropped) say(a, "; %lld left out (not at every threshold)", (long long)c->dropped);
    if (c->has_floor)
        say(a, "\nnumeric floor %.3g: an error counts as far as it is above (%.0f %% of the points are not)\n",
            c->floor, 100 * c->below_floor);
    else
        say(a, "\nnumeric floor not measured (measure again to add it)\n");
    if (c->floor > 0 && c->below_floor > 0.5)
        hs_log(HS_LOG_WARN, "more than half of the errors drown in rounding: measure with --precision fp32 or fp16");
    if (c->fewest < c->most)
        hs_log(
            HS_LOG_WARN,
            "some heads have %d probe%s at each threshold and step interval, others %d: measuring is not finished, or "
            "the table of a shard is missing",
            c->fewest, c->fewest == 1 ? "" : "s", c->most);
    warn_of_few_probes(a);
}

static void add_target(hs_number_list *list, double v) {
    for (int i = 0; i < list->n; i++)
        if (list->at[i] == v) return;
    list->at[list->n++] = v;
}

/* --seconds as the sparsity that the cost model gives. */
static int add_seconds(app *a, hs_number_list *list, hs_err *err) {
    hs_cost_model m;
    double sparsity = 0;
    int rc = hs_cost_fit(a->table, &m, err);
    if (rc) return hs_fail_ctx(err, rc, "--seconds");
    say(a, "a step takes %.4g s + density x %.4g s (R squared %.3f over %d points)\n", m.fixed, m.dense, m.fit,
        m.points);
    for (int i = 0; i < a->o.step_seconds.n; i++) {
        if ((rc = hs_cost_sparsity(&m, a->o.step_seconds.at[i], &sparsity, err))) return rc;
        sparsity = ceil(sparsity * 1e6) / 1e6;
        say(a, "%g s a step: sparsity %.6g\n", a->o.step_seconds.at[i], sparsity);
        add_target(list, sparsity);
    }
    return 0;
}

/* --sparsity as said; --match-top-p as what the table says, rounded down so that a budget can be named. */
static int make_targets(app *a, hs_number_list *ret, hs_err *err) {
    hs_number_list list = a->o.sparsity, match = a->o.match;
    char known[400] = "";
    float *top_p = hs_alloc((size_t)a->curves->layers * (size_t)a->curves->heads * sizeof *top_p);
    int rc = top_p ? 0 : hs_fail(err, HS_ENOMEM, "no memory for the budgets");
    if (!list.n && !match.n && !a->o.step_seconds.n) add_target(&match, HS_CALIBRATE_MATCH);
    for (int i = 0; i < match.n && !rc; i++) {
        double error, sparsity;
        hs_curves_shared(a->curves, match.at[i], top_p);
        if (hs_curves_predict(a->curves, (hs_thresholds){1, top_p}, &error, &sparsity, NULL)) {
            for (int k = 0; k < a->curves->points - 1; k++)
                snprintf(known + strlen(known), sizeof known - strlen(known), "%s%g", k ? ", " : "",
                         a->curves->top_p[k]);
            rc = hs_fail(err, HS_EINVAL, "--match-top-p %g: the table has %s; name one of them, or say --sparsity S",
                         match.at[i], known);
            break;
        }
        sparsity = floor(sparsity * 1e6) / 1e6;
        say(a, "all heads at top-p %g: sparsity %.6g, predicted error %.4g\n", match.at[i], sparsity, error);
        add_target(&list, sparsity);
    }
    hs_free(top_p);
    if (!rc && a->o.step_seconds.n) rc = add_seconds(a, &list, err);
    if (!rc) *ret = list;
    return rc;
}

static int make_reuse(const app *a, hs_reuse_policy *ret, hs_err *err) {
    hs_options o = hs_options_none();
    hs_attn_policy p = hs_attn_policy_default(HS_DENSE);
    int flags;
    o.attention = (int)a->table->info.policy.method;
    o.reuse = a->o.run.reuse, o.reuse_delta = a->o.run.reuse_delta, o.reuse_interval = a->o.run.reuse_interval;
    int rc = hs_options_attention(&o, &p, &flags, err);
    if (!rc) *ret = p.reuse;
    return rc;
}

/* targets: memory for p->target */
static int make_budgets(app *a, hs_number_list *targets, hs_solve_params *ret, hs_err *err) {
    hs_solve_params p = {
        .per_interval = a->o.per_interval, .gap = a->o.gap, .seconds = a->o.time_limit, .interrupted = on_interrupted};
    int rc;
    if ((rc = make_targets(a, targets, err)) || (rc = make_reuse(a, &p.reuse, err))) return rc;
    p.n = targets->n, p.target = targets->at;
    *ret = p;
    return 0;
}

/* What is measured in addition to the probes has to be measured as they were. */
static int go_on(app *a, hs_request *ret_request, hs_measure_params *ret_params, hs_err *err) {
    hs_table_info info;
    int rc;
    if ((rc = read_prompts(a, err)) || (rc = open_model(a, a->table->info.precision, err))) return rc;
    *ret_request = request_of_table(a);
    *ret_params = params_of_table(a);
    if ((rc = hs_measure_info(a->model, ret_request, ret_params, &info, err))) return rc;
    if (strcmp(info.prompts_sha256, a->table->info.prompts_sha256))
        return hs_fail(err, HS_EINVAL,
                       "%s was measured with other prompts: give --prompts, --max-prompts and --negative as they were",
                       a->o.tables[0]);
    return 0;
}

static int check(app *a, const hs_solve_params *solve, hs_err *err) {
    hs_request r;
    hs_measure_params m;
    int rc = go_on(a, &r, &m, err);
    if (rc) return rc;
    const hs_check_params p = {.model = a->model,
                               .req = &r,
                               .measure = &m,
                               .held_out = held_out_pool(a),
                               .n_tables = a->o.n_tables,
                               .tables = a->o.tables,
                               .profile = a->o.out,
                               .random = a->o.random,
                               .rounds = a->o.refine,
                               .solve = *solve,
                               .say = a->o.run.quiet ? NULL : stderr};
    return hs_check_run(&p, a->profile, &a->table, &a->curves, err);
}

/* The cost model needs the seconds of the shared thresholds before anything is chosen. */
static int measure_shared(app *a, hs_err *err) {
    hs_request r;
    hs_measure_params m;
    int rc = go_on(a, &r, &m, err);
    if (rc) return rc;
    rc = hs_measure_joint(a->model, &r, &m, 1, 0, NULL, err);
    return rc ? rc : load_table(a, err);
}

static int solve(app *a, hs_err *err) {
    hs_number_list targets = {0};
    hs_solve_params p;
    int rc = load_table(a, err);
    if (rc) return rc;
    say_table(a);
    if (a->o.step_seconds.n && hs_options_model_name(&a->o.run) && (rc = measure_shared(a, err))) return rc;
    if ((rc = make_budgets(a, &targets, &p, err)) || (rc = hs_solve(a->table, a->curves, &p, &a->profile, err)) ||
        (rc = hs_profile_save(a->o.out, a->profile, err)))
        return rc;
    if (!a->o.run.quiet) hs_show_budgets(stderr, a->profile);
    if (hs_options_model_name(&a->o.run) && !a->o.no_check) {
        if ((rc = check(a, &p, err))) return hs_fail_ctx(err, rc, "%s is written, but not checked", a->o.out);
    } else if (!a->o.no_check) {
        say(a, "not checked: with -m DIR --prompts FILE the errors of all heads together are measured\n");
    }
    if (a->o.report && (rc = hs_report_write(a->o.report, a->profile, 0, a->table, a->curves, held_out_pool(a), err)))
        return rc;
    say(a, "%s: %d budget%s%s%s\n", a->o.out, a->profile->n_budgets, a->profile->n_budgets == 1 ? "" : "s",
        a->o.report ? "; " : "", a->o.report ? a->o.report : "");
    return 0;
}

/* ---- show, report, compare
 * ----------------------------------------------------------------------------------------------- */

static int load_profile(app *a, int *ret_budget, hs_err *err) {
    int rc = hs_profile_load(a->o.profile, &a->profile, err);
    return rc ? rc : hs_profile_choose(a->profile, a->o.run.budget, ret_budget, err);
}

static int show(app *a, hs_err *err) {
    hs_show_style style = hs_show_detect(stdout);
    int budget, rc = load_profile(a, &budget, err);
    if (!rc) hs_show(stdout, a->profile, isnan(a->o.run.budget) ? -1 : budget, &style);
    return rc;
}

/* The error that a profile was chosen by. */
static hs_error_kind error_of(const hs_profile *p) {
    return !strcmp(p->error_name, "band") ? HS_ERROR_BAND : HS_ERROR_PLAIN;
}

static int write_report(app *a, hs_err *err) {
    int budget, rc = load_profile(a, &budget, err);
    if (rc) return rc;
    a->o.error = error_of(a->profile);
    if ((rc = load_table(a, err)) ||
        (rc = hs_report_write(a->o.out, a->profile, budget, a->table, a->curves, held_out_pool(a), err)))
        return rc;
    say(a, "%s\n", a->o.out);
    return 0;
}

static int compare(app *a, hs_err *err) {
    int budget, rc = load_profile(a, &budget, err);
    if (rc || (rc = hs_profile_load(a->o.other, &a->other, err))) return rc;
    a->o.error = error_of(a->profile);
    if (a->o.n_tables && ((rc = load_table(a, err)) || (rc = hs_solve_matches(a->profile, &a->table->info, 0, err)) ||
                          (rc = hs_solve_matches(a->other, &a->table->info, 0, err))))
        return rc;
    return hs_compare(stdout, a->profile, a->other, a->curves, err);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

/* "dir/demo.json" with ".table.jsonl" is "dir/demo.table.jsonl". */
static int beside(const char *path, const char *extension, char ret[PATH_SIZE], hs_err *err) {
    size_t len = strlen(path);
    if (len > 5 && !strcmp(path + len - 5, ".json")) len -= 5;
    if (snprintf(ret, PATH_SIZE, "%.*s%s", (int)len, path, extension) < PATH_SIZE) return 0;
    return hs_fail(err, HS_EINVAL, "%.100s...: path too long", path);
}

/* What is written must not replace what is read, least of all hours of measurements. */
static int check_apart(const char *option, const char *path, const char *what, const char *other, hs_err *err) {
    if (!path || !other || !hs_newfile_same(path, other)) return 0;
    return hs_fail(err, HS_EINVAL, "%s %s would overwrite %s %s: name another file", option, path, what, other);
}

static int check_places(const hs_calibrate_options *o, hs_err *err) {
    const char *const option[] = {"-o", "--report"}, *const path[] = {o->out, o->report};
    int rc = check_apart("--report", o->report, "the profile", o->out, err);
    for (int k = 0; k < 2 && !rc; k++) {
        if (path[k]) rc = hs_newfile_folder(path[k], err);
        if (!rc) rc = check_apart(option[k], path[k], "the profile", o->profile, err);
        if (!rc) rc = check_apart(option[k], path[k], "the prompts", o->run.prompts, err);
        if (!rc) rc = check_apart(option[k], path[k], "the prompts", o->held_out, err);
        for (int i = 0; i < o->n_tables && !rc; i++)
            rc = check_apart(option[k], path[k], "the table", o->tables[i], err);
    }
    return rc;
}

static int work(app *a, hs_err *err) {
    hs_calibrate_options *o = &a->o;
    int rc = 0;
    if (o->verb == HS_VERB_ALL && !o->n_tables) {
        if ((rc = beside(o->out, ".table.jsonl", a->default_table, err))) return rc;
        o->tables[o->n_tables++] = a->default_table;
    }
    if (o->verb == HS_VERB_REPORT && !o->out) {
        if ((rc = beside(o->profile, ".html", a->default_page, err))) return rc;
        o->out = a->default_page;
    }
    if ((rc = check_places(o, err))) return rc;
    switch (o->verb) {
    case HS_VERB_MEASURE: return measure(a, err);
    case HS_VERB_SOLVE: return solve(a, err);
    case HS_VERB_SHOW: return show(a, err);
    case HS_VERB_REPORT: return write_report(a, err);
    case HS_VERB_COMPARE: return compare(a, err);
    default: rc = measure(a, err); return rc || o->run.dry_run ? rc : solve(a, err);
    }
}

int main(int argc, char **argv) {
    app a = {0};
    hs_err err = {0};
    int status = EXIT_DONE;
    if (hs_calibrate_options_parse(argc, argv, &a.o, &err)) {
        fprintf(stderr, "haste-calibrate: %s\n%s", err.msg,
                argc < 2 ? "haste-calibrate --help shows the options and examples\n" : "");
        return EXIT_USAGE;
    }
    hs_console_begin(&a.console, "haste-calibrate", a.o.run.verbose);
    hs_program_catch_signals("\nhaste-calibrate: stopping after this forward; once more stops at once\n");
    if (a.o.help)
        hs_calibrate_options_help(hs_program_print_line, stdout);
    else if (a.o.version)
        printf("haste-calibrate " HS_VERSION "; GPL-3 as a program, through GLPK\n");
    else if (work(&a, &err))
        status = hs_console_error(&a.console, &err);
    if (fflush(stdout) && status == EXIT_DONE) {
        fprintf(stderr, "haste-calibrate: cannot write to stdout: %s\n", strerror(errno));
        status = EXIT_FAILED;
    }
    hs_profile_free(a.profile);
    hs_profile_free(a.other);
    hs_curves_free(a.curves);
    hs_table_free(a.table);
    hs_prompts_done(&a.prompts);
    hs_prompts_done(&a.held_out);
    hs_free(a.held_out_names);
    hs_model_free(a.model);
    return status;
}
