/* haste-eval: what sparse attention costs in quality and saves in time. Every clip is made densely once, then by every
 * variant from the same noise; what was measured is kept at once, so that a run can be stopped and continued anywhere.
 *
 * stderr is for people, stdout for the table.
 */
#include "eval_clip.h"
#include "eval_drift.h"
#include "eval_report.h"
#include "eval_video.h"
#include "journal.h"
#include "json.h"
#include "program.h"
#include "prompts.h"
#include "run_print.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 };

typedef struct app {
    hs_eval_options o;
    hs_prompts prompts;
    hs_eval_variants variants;
    hs_eval_bench *bench;
    hs_eval_policy *policies; /* [variants.n] */
    hs_request req;
    hs_eval_results results; /* all that is known, of all shards */
    hs_journal *journal;
    char *identity;
    char run[17];
    int n_prompts, n_clips;
    /* progress */
    hs_console console;
    int clip;
    const char *variant;
    int64_t steps, steps_done; /* of the work that is left */
    double start, said;
} app;

/* ---- messages --------------------------------------------------------------------------------------------------- */
/* One line, rewritten on a terminal; elsewhere at most every ten seconds. */
static void on_step(void *user) {
    app *a = user;
    double now = hs_seconds(), spent = now - a->start;
    hs_text32 left = "";
    a->steps_done++;
    if (a->o.run.quiet || now - a->said < (a->console.tty ? 0.2 : 10)) return;
    a->said = now;
    if (a->steps > a->steps_done)
        hs_print_seconds(spent / (double)a->steps_done * (double)(a->steps - a->steps_done), left);
    hs_console_clear(&a->console);
    fprintf(stderr, "clip %d of %d, %s: %.0f %%%s%s%s", a->clip + 1, a->n_clips, a->variant,
            100.0 * (double)a->steps_done / (double)(a->steps > a->steps_done ? a->steps : a->steps_done),
            *left ? ", about " : "", left, *left ? " left" : "");
    hs_console_end_line(&a->console, 0);
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */
static int on_interrupted(void *user) {
    (void)user;
    return hs_program_stopped();
}

/* ---- what to measure -------------------------------------------------------------------------------------------- */
static void make_request(app *a) {
    const hs_options *o = &a->o.run;
    hs_request *r = &a->req;
    *r = hs_request_default(hs_eval_bench_model(a->bench));
    hs_options_request(o, r);
    r->seed = o->has_seed ? o->seed : 0;
}

/* Everything that two results must share to stand in one table. */
static int make_identity(app *a, hs_err *err) {
    const hs_model_info *i = hs_model_get_info(hs_eval_bench_model(a->bench));
    const hs_request *r = &a->req;
    char sigmas[2] = {hs_sigmas_letter(r), 0};
    const char *negative = r->negative ? r->negative : i->negative_prompt;
    cJSON *o = cJSON_CreateObject();
    char *text = NULL;
    if (o && cJSON_AddStringToObject(o, "format", "haste-eval") && cJSON_AddNumberToObject(o, "version", 1) &&
        cJSON_AddStringToObject(o, "model", i->sha256) && cJSON_AddNumberToObject(o, "width", r->width) &&
        cJSON_AddNumberToObject(o, "height", r->height) && cJSON_AddNumberToObject(o, "frames", r->frames) &&
        cJSON_AddNumberToObject(o, "steps", r->steps) && cJSON_AddNumberToObject(o, "shift", r->shift) &&
        cJSON_AddNumberToObject(o, "guidance", r->guidance) &&
        cJSON_AddStringToObject(o, "solver", hs_solver_name(r->solver)) &&
        cJSON_AddStringToObject(o, "sigmas", sigmas) && cJSON_AddStringToObject(o, "negative", negative) &&
        cJSON_AddStringToObject(o, "precision", i->precision))
        text = cJSON_PrintUnformatted(o);
    if (text) a->identity = hs_strdup(text);
    cJSON_free(text);
    cJSON_Delete(o);
    return a->identity ? 0 : hs_fail(err, HS_ENOMEM, "no memory for the settings");
}

/* A variant for every budget: "demo/0.74" of demo.json. */
static int add_profile(app *a, const char *path, hs_err *err) {
    hs_profile *p;
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
    int stem = dot && dot != base ? (int)(dot - base) : (int)strlen(base), rc;
    if (strpbrk(path, " \t#"))
        return hs_fail(err, HS_EINVAL, "--profile \"%s\": a path without blanks and '#', please", path);
    if ((rc = hs_profile_load(path, &p, err))) return rc;
    for (int i = 0; i < p->n_budgets && !rc; i++) {
        char line[PATH_SIZE + 256];
        snprintf(line, sizeof line, "%.*s/%.4g: --profile %s --budget %.17g", stem < 40 ? stem : 40, base,
                 p->budgets[i].target, path, p->budgets[i].target);
        rc = hs_eval_variants_add(&a->variants, line, path, err);
    }
    hs_profile_free(p);
    return rc;
}

static int make_policies(app *a, hs_err *err) {
    a->policies = hs_calloc((size_t)a->variants.n, sizeof *a->policies);
    if (!a->policies) return hs_fail(err, HS_ENOMEM, "no memory for the variants");
    for (int i = 0; i < a->variants.n; i++) {
        int rc = hs_eval_policy_make(a->bench, &a->variants.v[i], &a->policies[i], err);
        if (rc) return rc;
    }
    return 0;
}

/* ---- clips ------------------------------------------------------------------------------------------------------ */
/* Clips go seed by seed through all prompts, so that any number of first clips has many prompts. */
static const char *prompt_of(const app *a, int clip) {
    return a->prompts.text[clip % a->n_prompts];
}

static uint64_t seed_of(const app *a, int clip) {
    return a->req.seed + (uint64_t)(clip / a->n_prompts);
}

static int is_ours(const app *a, int clip) {
    return clip % a->o.shards == a->o.shard;
}

static int is_missing(const app *a, int clip, const char *variant) {
    return !hs_eval_results_find(&a->results, prompt_of(a, clip), seed_of(a, clip), variant);
}

static int wants_velocity(const app *a, int clip) {
    return a->o.velocity_clips < 0 || clip < a->o.velocity_clips;
}

/* Variants that predict their masks in every step serve for the analysis of reuse; masks of clusters do not. */
static int wants_drift(const app *a, int v) {
    const hs_attn_policy *p = &a->policies[v].policy;
    return a->o.drift && p->reuse.kind == HS_REUSE_NONE && (p->method == HS_XATTENTION || p->method == HS_POOLED);
}

/* How many variants of the clip are not measured yet; the dense run itself counts where it alone is missing. */
static int missing(const app *a, int clip) {
    int n = 0;
    for (int v = 0; v < a->variants.n; v++) n += is_missing(a, clip, a->variants.v[v].name);
    return n;
}

static int needs_work(const app *a, int clip) {
    return is_ours(a, clip) && (missing(a, clip) || is_missing(a, clip, "dense"));
}

static const char *plural(int n) {
    return n == 1 ? "" : "s";
}

static void announce(app *a, const hs_plan *plan) {
    hs_text32 time;
    int clips = 0, runs = 0, passes = 0;
    for (int c = 0; c < a->n_clips; c++) {
        if (!needs_work(a, c)) continue;
        int n = missing(a, c);
        clips++;
        runs += 1 + n;
        passes += 1 + n * (wants_velocity(a, c) ? 2 : 1);
        for (int v = 0; v < a->variants.n; v++) passes += wants_drift(a, v) && is_missing(a, c, a->variants.v[v].name);
    }
    a->steps = (int64_t)passes * a->req.steps;
    if (a->o.run.quiet) return;
    fprintf(stderr, "haste-eval: %d clip%s (%d prompt%s, seeds %" PRIu64 " to %" PRIu64 "), %d variant%s and dense",
            a->n_clips, plural(a->n_clips), a->n_prompts, plural(a->n_prompts), a->req.seed, seed_of(a, a->n_clips - 1),
            a->variants.n, plural(a->variants.n));
    if (a->o.shards > 1) fprintf(stderr, ", shard %d of %d", a->o.shard, a->o.shards);
    fprintf(stderr, "\nhaste-eval: to do: %d clip%s, %d videos, %" PRId64 " steps", clips, plural(clips), runs,
            a->steps);
    if (plan->seconds > 0 && passes) fprintf(stderr, ", roughly %s", hs_print_seconds(plan->seconds * passes, time));
    fputc('\n', stderr);
    hs_print_fit(stderr, "haste-eval: memory:", plan);
}

/* DIR/clip_007_svg2-p90, to be freed by hs_free */
static char *pair_stem(const app *a, int clip, const char *variant) {
    char name[HS_EVAL_NAME + 32];
    snprintf(name, sizeof name, "clip_%03d_%s", clip, variant);
    for (char *p = name; *p; p++)
        if (*p == '/') *p = '-';
    return hs_path_join(a->o.out, name);
}

static int has_pair(const app *a, int clip, const char *variant) {
    char path[PATH_SIZE], *stem = pair_stem(a, clip, variant);
    int found = 0;
    for (int k = 0; k < 2 && stem; k++) {
        snprintf(path, sizeof path, "%s.%s", stem, k ? "y4m" : "mp4");
        found |= !access(path, F_OK);
    }
    hs_free(stem);
    return found;
}

/* Clips that were measured before are not measured again, not even for what they lack. */
static void warn_of_lacks(const app *a) {
    static const char *const what[] = {"velocity error", "video side by side", "drift"};
    int lack[3] = {0};
    for (int i = 0; i < a->n_clips * a->variants.n; i++) {
        const int clip = i / a->variants.n, v = i % a->variants.n;
        const char *name = a->variants.v[v].name;
        const hs_eval_result *r = hs_eval_results_find(&a->results, prompt_of(a, clip), seed_of(a, clip), name);
        if (!r || !is_ours(a, clip)) continue;
        lack[0] += wants_velocity(a, clip) && isnan(r->value[HS_EVAL_VELOCITY_ERROR]);
        lack[1] += clip < a->o.side_by_side && !has_pair(a, clip, name);
        lack[2] += wants_drift(a, v) && isnan(r->value[HS_EVAL_RANK_POST_1]);
    }
    for (int k = 0; k < 3; k++)
        if (lack[k])
            hs_log(HS_LOG_WARN,
                   "%s: %d result%s measured before without %s and %s so: measure into another folder for it", a->o.out,
                   lack[k], lack[k] == 1 ? " was" : "s were", what[k], lack[k] == 1 ? "stays" : "stay");
}

static int ends_with(const char *path, const char *text, size_t size) {
    FILE *f = fopen(path, "r");
    char *end = f ? hs_alloc(size + 1) : NULL;
    const int same =
        end && size && !fseeko(f, -(off_t)size, SEEK_END) && fread(end, 1, size, f) == size && !memcmp(end, text, size);
    if (f) fclose(f);
    hs_free(end);
    return same;
}

/* The rows of a clip go to the file at once, when it is done: a killed run leaves no part of them, and one that
 * was killed before it kept the result has left them all. */
static int measure_drift(app *a, int clip, int v, hs_eval_result *r, hs_err *err) {
    char label[HS_EVAL_NAME + 32], *text = NULL;
    size_t size;
    hs_drift *d = NULL;
    FILE *rows = open_memstream(&text, &size);
    if (!rows) return hs_fail(err, HS_ENOMEM, "no memory to follow masks");
    snprintf(label, sizeof label, "%d,%s", clip, a->variants.v[v].name);
    int rc = hs_drift_new(hs_eval_bench_info(a->bench), rows, label, &d, err);
    if (!rc) rc = hs_eval_clip_walk(a->bench, &a->policies[v], hs_drift_visit, d, err);
    if (!rc) hs_drift_ranks(d, &r->value[HS_EVAL_RANK_POST_1], &r->value[HS_EVAL_RANK_PRE_1]);
    hs_drift_free(d);
    if (fclose(rows) && !rc) rc = hs_fail(err, HS_ENOMEM, "no memory to follow masks");
    if (!rc && ends_with(a->o.drift, text, size)) {
        free(text);
        return 0;
    }
    FILE *f = rc ? NULL : fopen(a->o.drift, "a");
    if (f && ftell(f) == 0) fputs("clip,variant,step,branch,layer,head,lag,drift,drift_before_rope,overlap\n", f);
    if (!rc && (!f || fwrite(text, 1, size, f) != size))
        rc = hs_fail(err, HS_EIO, "%s: cannot write: %s", a->o.drift, strerror(errno));
    if (f && fclose(f) && !rc) rc = hs_fail(err, HS_EIO, "%s: cannot write: %s", a->o.drift, strerror(errno));
    free(text);
    return rc;
}

static int keep(app *a, const hs_eval_result *r, hs_err *err) {
    hs_eval_result own = *r;
    memcpy(own.run, a->run, sizeof own.run);
    char *line = hs_eval_result_json(&own);
    if (!line) return hs_fail(err, HS_ENOMEM, "no memory for a result");
    int rc = hs_journal_append(a->journal, line, err);
    /* taken from the line, as a later start will: rounded alike, so that both make the same table */
    if (!rc) rc = hs_eval_results_line(&a->results, line, strlen(line), a->results.n + 2, err);
    hs_free(line);
    return rc;
}

static int write_pair(app *a, int clip, const char *variant, hs_err *err) {
    char *stem = pair_stem(a, clip, variant);
    if (!stem) return hs_fail(err, HS_ENOMEM, "no memory for the names of files");
    int rc = hs_eval_video_write(stem,
                                 &(hs_eval_pair){.left = hs_eval_clip_frames(a->bench, 0),
                                                 .right = hs_eval_clip_frames(a->bench, 1),
                                                 .left_name = "dense",
                                                 .right_name = variant,
                                                 .frames = a->req.frames,
                                                 .width = a->req.width,
                                                 .height = a->req.height,
                                                 .fps = a->req.fps},
                                 err);
    hs_free(stem);
    return rc;
}

static int measure_clip(app *a, int clip, hs_err *err) {
    hs_eval_result r;
    const char *prompt = prompt_of(a, clip);
    uint64_t seed = seed_of(a, clip);
    int velocity = wants_velocity(a, clip), rc;
    a->clip = clip;
    a->variant = "dense";
    if ((rc = hs_eval_clip_dense(a->bench, prompt, seed, (velocity || a->o.drift) && missing(a, clip), &r, err)))
        return rc;
    if (is_missing(a, clip, "dense") && (rc = keep(a, &r, err))) return rc;
    for (int v = 0; v < a->variants.n; v++) {
        a->variant = a->variants.v[v].name;
        if (!is_missing(a, clip, a->variant)) continue;
        if ((rc = hs_eval_clip_variant(a->bench, &a->policies[v], velocity, &r, err)) ||
            (wants_drift(a, v) && (rc = measure_drift(a, clip, v, &r, err))) ||
            (clip < a->o.side_by_side && (rc = write_pair(a, clip, a->variant, err))) || (rc = keep(a, &r, err)))
            return hs_fail_ctx(err, rc, "clip %d (\"%.60s\", seed %" PRIu64 "), %s", clip + 1, prompt, seed,
                               a->variant);
    }
    return 0;
}

/* ---- the run ---------------------------------------------------------------------------------------------------- */
static int open_folder(app *a, hs_err *err) {
    char name[64] = "clips.jsonl";
    struct stat st;
    if (a->o.shards > 1) snprintf(name, sizeof name, "clips-%d-of-%d.jsonl", a->o.shard, a->o.shards);
    if (mkdir(a->o.out, 0777) && (errno != EEXIST || stat(a->o.out, &st) || !S_ISDIR(st.st_mode)))
        return hs_fail(err, HS_EIO, "-o %s: cannot make the folder: %s", a->o.out, strerror(errno));
    int rc = hs_eval_results_load(&a->results, a->o.out, a->identity, name, err);
    char *path = hs_path_join(a->o.out, name);
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory for the names of files");
    if (!rc) {
        hs_free(a->results.path);
        a->results.path = path;
        rc = hs_journal_open(path, a->identity, hs_eval_results_line, &a->results, &a->journal, err);
    } else {
        hs_free(path);
    }
    /* what is there under a variant's name must be that variant */
    for (int v = 0; v < a->variants.n && !rc; v++)
        for (int i = 0; i < a->results.n; i++)
            if (!strcmp(a->results.r[i].variant, a->variants.v[v].name) &&
                strcmp(a->results.r[i].what, a->policies[v].what)) {
                rc = hs_fail(err, HS_EINVAL,
                             "%s: %s was measured as \"%s\", now it is \"%s\": give it another name, or measure into "
                             "another folder",
                             a->o.out, a->variants.v[v].name, a->results.r[i].what, a->policies[v].what);
                break;
            }
    return rc;
}

/* Better now than after hours. */
static int check_baseline(const app *a, hs_err *err) {
    const char *name = a->o.baseline;
    char group[HS_EVAL_NAME];
    if (!name || !strcmp(name, "dense") || hs_eval_has_variant(&a->results, name)) return 0;
    for (int v = 0; v < a->variants.n; v++) {
        hs_eval_group(a->variants.v[v].name, group);
        if (!strcmp(a->variants.v[v].name, name) || !strcmp(group, name)) return 0;
    }
    for (int i = 0; i < a->results.n; i++) {
        hs_eval_group(a->results.r[i].variant, group);
        if (!strcmp(group, name)) return 0;
    }
    return hs_fail(err, HS_EINVAL, "--baseline %s: no variant and no group of that name", name);
}

static int prepare(app *a, hs_plan *ret_plan, hs_err *err) {
    const hs_options *o = &a->o.run;
    hs_model_params params = {.device = o->device ? o->device : "auto",
                              .precision = o->precision ? o->precision : "auto"};
    hs_eval_hooks hooks = {a, on_step, on_interrupted};
    uint64_t id;
    int rc;
    if ((rc = hs_options_model(o, &params, err)) || (rc = hs_prompts_read(&a->prompts, o->prompts, err)) ||
        (o->negative && (rc = hs_prompt_check(o->negative, "the negative prompt", err))) ||
        (a->o.variants && (rc = hs_eval_variants_read(&a->variants, a->o.variants, err))))
        return rc;
    for (int i = 0; i < a->o.n_profiles; i++)
        if ((rc = add_profile(a, a->o.profiles[i], err))) return rc;
    a->n_prompts = a->o.max_prompts && a->o.max_prompts < a->prompts.n ? a->o.max_prompts : a->prompts.n;
    a->n_clips = a->n_prompts * a->o.seeds;
    if ((rc = hs_eval_bench_new(&params, &hooks, &a->bench, err))) return rc;
    make_request(a);
    if ((rc = hs_eval_bench_settings(a->bench, &a->req, err)) || (rc = make_identity(a, err)) ||
        (rc = make_policies(a, err)) || (rc = hs_eval_bench_plan(a->bench, ret_plan, err)))
        return rc;
    if (getrandom(&id, sizeof id, 0) != (ssize_t)sizeof id)
        return hs_fail(err, HS_EIO, "no random name for this run from the system: %s", strerror(errno));
    snprintf(a->run, sizeof a->run, "%016" PRIx64, id);
    if ((rc = open_folder(a, err))) return rc;
    return check_baseline(a, err);
}

static int measure(app *a, hs_err *err) {
    hs_plan plan;
    int rc = prepare(a, &plan, err);
    if (rc) return rc;
    announce(a, &plan);
    warn_of_lacks(a);
    a->start = a->said = hs_seconds();
    for (int c = 0; c < a->n_clips && !rc; c++)
        if (needs_work(a, c)) rc = measure_clip(a, c, err);
    hs_err late = {0};
    if (hs_journal_close(a->journal, &late) && !rc) rc = hs_fail(err, late.code, "%s", late.msg);
    a->journal = NULL;
    hs_console_clear(&a->console);
    return rc;
}

static int is_video(const struct dirent *e) {
    const char *dot = strrchr(e->d_name, '.');
    return dot && !strncmp(e->d_name, "clip_", 5) && !strcmp(dot, ".mp4");
}

static int write_page(app *a, const hs_eval_report *r, hs_err *err) {
    struct dirent **entry = NULL;
    char *path = hs_path_join(a->o.out, "report.html");
    int n = scandir(a->o.out, &entry, is_video, alphasort);
    const char **videos = hs_calloc((size_t)(n > 0 ? n : 0) + 1, sizeof *videos);
    for (int i = 0; i < n && videos; i++) videos[i] = entry[i]->d_name;
    int rc = path && videos ? hs_eval_report_page(path, r, videos, err)
                            : hs_fail(err, HS_ENOMEM, "no memory for the report");
    for (int i = 0; i < n; i++) free(entry[i]);
    free(entry);
    hs_free(videos);
    hs_free(path);
    return rc;
}

static int write_report(app *a, hs_err *err) {
    hs_eval_report r = {.results = &a->results, .baseline = a->o.baseline};
    hs_eval_row *rows = NULL;
    char *json = hs_path_join(a->o.out, "table.json"), *md = hs_path_join(a->o.out, "table.md");
    int rc = json && md ? 0 : hs_fail(err, HS_ENOMEM, "no memory for the names of files");
    if (!rc && !(rc = hs_eval_rows(&a->results, a->o.baseline, &rows, &r.n, err))) {
        r.rows = rows;
        if ((rc = hs_eval_report_json(json, &r, err)) || (rc = hs_eval_report_markdown(md, &r, err)) ||
            (rc = write_page(a, &r, err)) || (rc = hs_eval_report_text(stdout, &r, err)))
            goto out;
        if (fflush(stdout)) rc = hs_fail(err, HS_EIO, "stdout: cannot write the table: %s", strerror(errno));
    }
out:
    hs_free(rows);
    hs_free(json);
    hs_free(md);
    return rc;
}

static int only_report(app *a, hs_err *err) {
    int rc = hs_eval_results_load(&a->results, a->o.out, NULL, NULL, err);
    if (!rc && !a->results.n)
        rc = hs_fail(err, HS_EINVAL, "%s: nothing was measured into this folder yet (no *.jsonl)", a->o.out);
    return rc;
}

int main(int argc, char **argv) {
    app a = {0};
    hs_err err = {0};
    int status = EXIT_DONE, rc = hs_eval_options_parse(argc, argv, &a.o, &err);
    hs_console_begin(&a.console, "haste-eval", a.o.run.verbose);
    hs_program_catch_signals("\nhaste-eval: stopping after this step; once more stops at once\n");
    if (rc) {
        status = hs_console_error(&a.console, &err);
    } else if (a.o.help) {
        hs_eval_options_help(hs_program_print_line, stdout);
    } else if (a.o.version) {
        printf("haste-eval %s\n", HS_VERSION);
    } else {
        if ((rc = a.o.report ? only_report(&a, &err) : measure(&a, &err)) ||
            ((a.o.shards == 1 || a.o.report) && (rc = write_report(&a, &err))))
            status = hs_console_error(&a.console, &err);
        else if (a.o.shards > 1 && !a.o.report && !a.o.run.quiet)
            fprintf(stderr, "haste-eval: this shard is done; when all are: haste-eval --report -o %s\n", a.o.out);
    }
    hs_journal_close(a.journal, NULL);
    for (int i = 0; a.policies && i < a.variants.n; i++) hs_eval_policy_done(&a.policies[i]);
    hs_free(a.policies);
    hs_free(a.identity);
    hs_eval_results_done(&a.results);
    hs_eval_bench_free(a.bench);
    hs_eval_variants_done(&a.variants);
    hs_prompts_done(&a.prompts);
    return status;
}
