/* The command line of haste-calibrate: a verb, then options. What haste-run knows too is handed to its parser. Which
 * group of options belongs to which verb is said once, in the groups of the table. */
#include "calibrate_options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
enum id {
    ID_SHARED, /* haste-run's, by the same name */
    ID_SEED, ID_METHOD, ID_HELD_OUT, ID_MAX_PROMPTS, ID_MAX_HELD_OUT, ID_CANDIDATES, ID_INTERVALS, ID_PROMPTS_PER_HEAD, ID_SHARD,
    ID_TABLE, ID_SPARSITY, ID_MATCH, ID_SECONDS, ID_ERROR, ID_PER_INTERVAL, ID_GAP, ID_TIME, ID_NO_CHECK, ID_RANDOM, ID_REFINE, ID_OUT, ID_REPORT, ID_VERSION,
    ID_HELP
};
/* clang-format on */

static const hs_option_row rows[] = {
    {0, 0, NULL, NULL, "What to calibrate"},
    {ID_SHARED, 'm', "model", "DIR", "model folder, any layout, or its parts: (needed; solve: to check the choice)"},
    {ID_SHARED, 0, "transformer", "PATH", "file or folder of this part, instead of the folder's"},
    {ID_SHARED, 0, "text-encoder", "PATH", "likewise (UMT5-XXL)"},
    {ID_SHARED, 0, "vae", "PATH", "likewise"},
    {ID_SHARED, 0, "tokenizer", "PATH", "spiece.model or its folder [in or beside the text encoder]"},
    {ID_SHARED, 0, "prompts", "FILE",
     "calibration prompts, one a line, '#' comments; each counts once (needed with -m)"},
    {ID_MAX_PROMPTS, 0, "max-prompts", "N", "only the first N of them [all]"},
    {ID_HELD_OUT, 0, "held-out", "FILE", "other prompts, on which the choice is checked [none]"},
    {ID_MAX_HELD_OUT, 0, "max-held-out", "N", "only the first N of them [8; 0 = all]"},
    {ID_SHARED, 'n', "negative", "TEXT", "what the video should not show [the model's]; solve: as when measuring"},
    {ID_SHARED, 0, "negative-prompt", "TEXT", NULL},
    {ID_SHARED, 0, "negative_prompt", "TEXT", NULL},
    {0, 0, NULL, NULL, "Video and sampling, as haste-run"},
    {ID_SHARED, 0, "size", "WxH", "[the model's]"},
    {ID_SHARED, 0, "width", "N", "[the model's]"},
    {ID_SHARED, 0, "height", "N", "[the model's]"},
    {ID_SHARED, 0, "frames", "N", "[the model's]"},
    {ID_SHARED, 0, "frame_num", "N", NULL},
    {ID_SHARED, 0, "num-frames", "N", NULL},
    {ID_SHARED, 0, "num_frames", "N", NULL},
    {ID_SHARED, 0, "steps", "N", "[the model's]"},
    {ID_SHARED, 0, "sample_steps", "N", NULL},
    {ID_SHARED, 0, "num-inference-steps", "N", NULL},
    {ID_SHARED, 0, "num_inference_steps", "N", NULL},
    {ID_SHARED, 0, "guidance", "X", "[the model's]"},
    {ID_SHARED, 0, "guidance-scale", "X", NULL},
    {ID_SHARED, 0, "guidance_scale", "X", NULL},
    {ID_SHARED, 0, "sample_guide_scale", "X", NULL},
    {ID_SHARED, 0, "shift", "X", "[the model's]"},
    {ID_SHARED, 0, "flow-shift", "X", NULL},
    {ID_SHARED, 0, "flow_shift", "X", NULL},
    {ID_SHARED, 0, "sample_shift", "X", NULL},
    {ID_SHARED, 0, "solver", "NAME", "[the model's]"},
    {ID_SHARED, 0, "sample_solver", "NAME", NULL},
    {ID_SHARED, 0, "sigmas", "NAME", "[the solver's]"},
    {ID_SEED, 0, "seed", "N", "of noise, prompts of heads and random configurations [0]"},
    {ID_SEED, 0, "base_seed", "N", NULL},
    {0, 0, NULL, NULL, "Sparse attention"},
    {ID_METHOD, 0, "method", "NAME", "xattention, svg2 or pooled [xattention]"},
    {ID_METHOD, 0, "attention", "NAME", NULL},
    {ID_SHARED, 0, "block", "N", "xattention, pooled: tokens a block, 64 or 128 [128]"},
    {ID_SHARED, 0, "stride", "N", "xattention: sample antidiagonals of 2, 4, 8 or 16; 1 = exact mass, slow [16]"},
    {ID_SHARED, 0, "q-clusters", "N", "svg2: clusters of queries [300]"},
    {ID_SHARED, 0, "k-clusters", "N", "svg2: clusters of keys [1000]"},
    {ID_SHARED, 0, "compensate", NULL, "xattention, pooled: approximate dropped blocks by their mean"},
    {ID_SHARED, 0, "compat", NULL, "xattention, svg2: masks as the published code makes them"},
    {ID_SHARED, 0, "dense-steps", "N", "the first N steps attend densely and are not measured [0]"},
    {ID_SHARED, 0, "dense-layers", "N", "the first N layers likewise [0]"},
    {0, 0, NULL, NULL, "Measuring"},
    {ID_CANDIDATES, 0, "candidates", "P,P,..",
     "thresholds to try [0.5,0.6,0.7,0.8,0.85,0.9,0.95,0.99]; 1 is always there"},
    {ID_INTERVALS, 0, "intervals", "N", "parts of the trajectory, each probed at its middle step [4]"},
    {ID_PROMPTS_PER_HEAD, 0, "prompts-per-head", "N", "prompts that each head is probed with [1]"},
    {ID_SHARD, 0, "shard", "I/N", "measure: the I-th of N parts of the work (0 <= I < N), each to a table of its own"},
    {0, 0, NULL, NULL, "Table"},
    {ID_TABLE, 0, "table", "FILE",
     "measurements, kept as they are made; a rerun goes on where it stopped\n"
     "[profile.table.jsonl]; solve, report: give it again for more shards"},
    {0, 0, NULL, NULL, "Choosing"},
    {ID_SPARSITY, 0, "sparsity", "S,S,..", "budgets: mean share of token pairs that sparse layers drop"},
    {ID_MATCH, 0, "match-top-p", "P,P,..",
     "budgets: as sparse as all heads at threshold P, one of the candidates [0.9]"},
    {ID_SECONDS, 0, "seconds", "T,T,..",
     "budgets: seconds a step may take, by the seconds that shared thresholds took"},
    {ID_ERROR, 0, "error", "NAME", "plain or band (weighted by frequency, as the paper) [plain]"},
    {ID_PER_INTERVAL, 0, "per-interval", NULL, "every head gets a threshold of its own in each part of the trajectory"},
    {ID_GAP, 0, "gap", "X", "proof of the choice: at most this share above the best one [1e-4]"},
    {ID_TIME, 0, "time-limit", "SEC", "for each budget; the gap that was reached is in the profile [60]"},
    {ID_SHARED, 0, "reuse", "NAME",
     "what the profile says of reuse: none, drift, relative, interval, freeze,\nstagger [drift]"},
    {ID_SHARED, 0, "reuse-delta", "D", "[30, svg2 8]"},
    {ID_SHARED, 0, "reuse-interval", "N", "[4]"},
    {ID_NO_CHECK, 0, "no-check", NULL, "do not measure the error of the chosen thresholds together"},
    {ID_RANDOM, 0, "random", "N", "measure N random configurations too: how good is the prediction? [0]"},
    {ID_REFINE, 0, "refine", "N", "at most N rounds of correcting errors by what heads cost together [0]"},
    {0, 0, NULL, NULL, "Output"},
    {ID_OUT, 'o', "output", "FILE", "the profile (needed to solve); report: the page [profile.html]"},
    {ID_REPORT, 0, "report", "FILE", "write the page of `report` as well"},
    {0, 0, NULL, NULL, "Looking"},
    {ID_SHARED, 0, "budget", "S", "show, report: only this budget of the profile [show: all; report: the first]"},
    {0, 0, NULL, NULL, "Machine"},
    {ID_SHARED, 0, "device", "NAME", "auto, cpu, cuda, cuda:N or ref [auto]"},
    {ID_SHARED, 0, "precision", "NAME", "fp32, fp16 (GPU) or bf16, which drowns small errors in noise [fp32]"},
    {ID_SHARED, 0, "threads", "N", "CPU threads [all cores]"},
    {ID_SHARED, 0, "max-vram", "GB", "device memory to live with, as haste-run [all that is free]"},
    {0, 0, NULL, NULL, "Other"},
    {ID_SHARED, 0, "dry-run", NULL, "print the work and what it costs; measure nothing"},
    {ID_SHARED, 'q', "quiet", NULL, "only warnings and errors"},
    {ID_SHARED, 'v', "verbose", NULL, "more"},
    {ID_VERSION, 0, "version", NULL, "print the version"},
    {ID_HELP, 'h', "help", NULL, "print this"},
};
enum { ROWS = sizeof rows / sizeof rows[0] };
_Static_assert((int)ROWS <= (int)HS_OPTIONS_MAX_ROWS, "HS_OPTIONS_MAX_ROWS");

static const char *const verb_names[HS_VERB_COUNT] = {"", "measure", "solve", "show", "report", "compare"};

/* Which verbs a group is for; a group that is not here is for all. */
static const struct {
    const char *group;
    unsigned verbs;
    const char *why_not;
} belongs[] = {
    {"What to calibrate", 1u << HS_VERB_ALL | 1u << HS_VERB_MEASURE | 1u << HS_VERB_SOLVE, "it needs no model"},
    {"Video and sampling, as haste-run", 1u << HS_VERB_ALL | 1u << HS_VERB_MEASURE,
     "the table says how it was measured"},
    {"Sparse attention", 1u << HS_VERB_ALL | 1u << HS_VERB_MEASURE, "the table says how it was measured"},
    {"Measuring", 1u << HS_VERB_ALL | 1u << HS_VERB_MEASURE, "the table says how it was measured"},
    {"Table", ~(1u << HS_VERB_SHOW), "the profile says all there is to show"},
    {"Choosing", 1u << HS_VERB_ALL | 1u << HS_VERB_SOLVE, "nothing is chosen"},
    {"Output", ~(1u << HS_VERB_MEASURE | 1u << HS_VERB_SHOW | 1u << HS_VERB_COMPARE), "it writes no profile"},
    {"Looking", 1u << HS_VERB_SHOW | 1u << HS_VERB_REPORT, "budgets are chosen by --sparsity or --match-top-p"},
};

void hs_calibrate_options_help(void (*line)(void *user, const char *text), void *user) {
    static const char *const head[] = {
        "haste-calibrate finds out, once per model, how sparse every attention head may be.",
        "",
        "  haste-calibrate -m DIR --prompts FILE -o profile.json [options]   measure, then solve",
        "  haste-calibrate measure -m DIR --prompts FILE --table FILE        the costly part: runs the model",
        "  haste-calibrate solve --table FILE -o profile.json                the cheap part: seconds, without model",
        "  haste-calibrate solve ... -m DIR --prompts FILE --held-out FILE   and with it: is it as good as promised?",
        "  haste-calibrate show profile.json                                 thresholds as a map in the terminal",
        "  haste-calibrate report profile.json --table FILE [-o page.html]   everything as a web page",
        "  haste-calibrate compare a.json b.json [--table FILE]              how far two profiles are from each other",
        "",
        "Defaults are in brackets; --dry-run says what it will cost.",
    };
    static const char *const tail[] = {
        "",
        "Every probe is kept at once: kill -9 loses at most the one in flight. Ctrl-C stops after it; the same",
        "command goes on from there. With -m, solve measures what the chosen thresholds cost together, and writes",
        "it beside the prediction into the profile. haste-run --profile profile.json uses the result.",
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        "",
        "Examples",
        "  haste-calibrate -m data/demo --prompts prompts/calibrate.txt --block 64 --stride 8 -o demo.json",
        "  haste-calibrate solve --table demo.table.jsonl --sparsity 0.4,0.5,0.6 -o demo.json",
        "  haste-calibrate measure -m wan --prompts prompts/calibrate.txt --table t3.jsonl --shard 3/8",
        "  haste-calibrate solve t0.jsonl t1.jsonl t2.jsonl --match-top-p 0.9 -o wan.json",
        "  haste-calibrate report demo.json --table demo.table.jsonl -o demo.html",
    };
    for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) line(user, head[i]);
    hs_options_list(rows, ROWS, line, user);
    for (size_t i = 0; i < sizeof tail / sizeof tail[0]; i++) line(user, tail[i]);
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

/* A plain decimal number at *s, which moves behind it. */
static int number(const char **s, double *ret) {
    char *end;
    if (!strchr("0123456789.", **s)) return HS_EINVAL;
    *ret = strtod(*s, &end);
    if (end == *s || strspn(*s, "0123456789.eE+-") < (size_t)(end - *s)) return HS_EINVAL;
    *s = end;
    return 0;
}

/* Numbers with low < v < high (v = low too if asked), each once. */
static int set_list(const hs_option_row *r, const char *arg, double low, int low_too, float high, hs_number_list *ret,
                    hs_err *err) {
    char should[120];
    hs_number_list list = {0};
    snprintf(should, sizeof should, "1 to %d different numbers %s and below %g, such as %s", HS_PROFILE_MAX_CANDIDATES,
             low_too ? "from 0" : "above 0", (double)high, r->id == ID_SPARSITY ? "0.4,0.5,0.6" : "0.8,0.9,0.95");
    for (const char *s = arg;;) {
        double v;
        if (list.n == HS_PROFILE_MAX_CANDIDATES || number(&s, &v) || !(v > low || (low_too && v == low)) ||
            (float)v >= high || (*s && *s != ','))
            return hs_option_bad(r->name, arg, should, err);
        for (int i = 0; i < list.n; i++)
            if (list.at[i] == v) return hs_option_bad(r->name, arg, should, err);
        list.at[list.n++] = v;
        if (!*s++) break;
    }
    *ret = list;
    return 0;
}

static int set_number(const hs_option_row *r, const char *arg, double low, double high, double *ret, hs_err *err) {
    char should[64];
    const char *s = arg;
    double v;
    snprintf(should, sizeof should, "a number from %g to %g", low, high);
    if (number(&s, &v) || *s || !(v >= low && v <= high)) return hs_option_bad(r->name, arg, should, err);
    *ret = v;
    return 0;
}

static int add_table(hs_calibrate_options *o, const char *path, hs_err *err) {
    if (o->n_tables == HS_CALIBRATE_MAX_TABLES)
        return hs_fail(err, HS_EINVAL, "at most %d tables", HS_CALIBRATE_MAX_TABLES);
    o->tables[o->n_tables++] = path;
    return 0;
}

/* ---- one option ------------------------------------------------------------------------------------------------- */

static int check_verb(const hs_calibrate_options *o, const hs_option_row *row, hs_err *err) {
    const hs_option_row *group = row;
    while (group->name) group--;
    for (size_t i = 0; i < sizeof belongs / sizeof belongs[0]; i++)
        if (!strcmp(belongs[i].group, group->help) && !(belongs[i].verbs & 1u << o->verb))
            return hs_fail(err, HS_EINVAL, "--%s has no meaning %s%s: %s", row->name,
                           o->verb == HS_VERB_ALL ? "without a verb" : "with ", verb_names[o->verb],
                           belongs[i].why_not);
    return 0;
}

static int set(void *user, const hs_option_row *r, const char *arg, hs_err *err) {
    hs_calibrate_options *o = user;
    int rc = r->id == ID_HELP || r->id == ID_VERSION ? 0 : check_verb(o, r, err);
    if (rc) return rc;
    switch (r->id) {
    case ID_SHARED: return hs_options_set(&o->run, r->name, arg, err);
    case ID_SEED: /* -1 = any, to haste-run; measurements should repeat */
        if (!strcmp(arg, "-1")) return hs_option_bad(r->name, arg, "a whole number", err);
        return hs_options_set(&o->run, r->name, arg, err);
    case ID_METHOD:
        if (!strcmp(arg, "dense") || hs_options_set(&o->run, "attention", arg, NULL))
            return hs_option_bad(r->name, arg, "xattention, svg2 or pooled", err);
        break;
    case ID_HELD_OUT: o->held_out = arg; break;
    case ID_MAX_PROMPTS: return hs_option_int(r->name, arg, 1, 1000000, &o->max_prompts, err);
    case ID_MAX_HELD_OUT: return hs_option_int(r->name, arg, 0, 1000000, &o->max_held_out, err);
    case ID_CANDIDATES: return set_list(r, arg, 0, 0, 1, &o->candidates, err);
    case ID_INTERVALS: return hs_option_int(r->name, arg, 1, HS_PROFILE_MAX_INTERVALS, &o->intervals, err);
    case ID_PROMPTS_PER_HEAD: return hs_option_int(r->name, arg, 1, 1000000, &o->prompts_per_head, err);
    case ID_SHARD: return hs_option_shard(r->name, arg, &o->shard, &o->shards, err);
    case ID_TABLE: return add_table(o, arg, err);
    case ID_SPARSITY: return set_list(r, arg, 0, 1, 1, &o->sparsity, err);
    case ID_MATCH: return set_list(r, arg, 0, 0, 1, &o->match, err);
    case ID_SECONDS: return set_list(r, arg, 0, 0, 1e6f, &o->step_seconds, err);
    case ID_ERROR:
        if (strcmp(arg, "plain") && strcmp(arg, "band")) return hs_option_bad(r->name, arg, "plain or band", err);
        o->error = arg[0] == 'b' ? HS_ERROR_BAND : HS_ERROR_PLAIN;
        break;
    case ID_PER_INTERVAL: o->per_interval = 1; break;
    case ID_GAP: return set_number(r, arg, 0, 1, &o->gap, err);
    case ID_TIME: return set_number(r, arg, 0.001, 1e6, &o->time_limit, err);
    case ID_NO_CHECK: o->no_check = 1; break;
    case ID_RANDOM: return hs_option_int(r->name, arg, 0, HS_CALIBRATE_MAX_RANDOM, &o->random, err);
    case ID_REFINE: return hs_option_int(r->name, arg, 0, HS_CALIBRATE_MAX_ROUNDS, &o->refine, err);
    case ID_OUT: o->out = arg; break;
    case ID_REPORT: o->report = arg; break;
    case ID_VERSION: o->version = 1; return 1;
    case ID_HELP: o->help = 1; return 1;
    default: break;
    }
    return 0;
}

/* ---- the whole line --------------------------------------------------------------------------------------------- */

static int check_model(const hs_calibrate_options *o, hs_err *err) {
    hs_model_params model = {.dir = NULL};
    int rc = hs_options_model(&o->run, &model, err);
    if (rc) return rc;
    if (!o->run.prompts)
        return hs_fail(err, HS_EINVAL, "--prompts FILE is missing, such as --prompts prompts/calibrate.txt");
    return 0;
}

/* Better now than after hours of measuring: --match-top-p, or what stands for it, is one of the candidates. */
static int check_match(const hs_calibrate_options *o, hs_err *err) {
    const int said = o->match.n > 0;
    const hs_number_list match = said ? o->match : (hs_number_list){1, {HS_CALIBRATE_MATCH}};
    if (!said && (o->sparsity.n || o->step_seconds.n)) return 0;
    for (int i = 0; i < match.n; i++) {
        int k = 0;
        while (k < o->candidates.n && (float)o->candidates.at[k] != (float)match.at[i]) k++;
        if (k == o->candidates.n)
            return hs_fail(err, HS_EINVAL,
                           "--match-top-p %g%s: --candidates lacks it; add it there, name one of them, or say "
                           "--sparsity S",
                           match.at[i], said ? "" : " (the default)");
    }
    return 0;
}

static int check_together(const hs_calibrate_options *o, hs_err *err) {
    int measures = o->verb == HS_VERB_ALL || o->verb == HS_VERB_MEASURE;
    int solves = o->verb == HS_VERB_ALL || o->verb == HS_VERB_SOLVE;
    int rc = measures || (solves && hs_options_model_name(&o->run)) ? check_model(o, err) : 0;
    if (rc) return rc;
    if (measures && o->n_tables > 1)
        return hs_fail(err, HS_EINVAL, "--table: one table is measured at a time; solve merges them");
    if (o->verb == HS_VERB_MEASURE && !o->n_tables)
        return hs_fail(err, HS_EINVAL, "--table FILE is missing: where measurements are kept");
    if (o->verb == HS_VERB_ALL && o->shards > 1)
        return hs_fail(err, HS_EINVAL,
                       "--shard is for haste-calibrate measure; solve then takes the tables of all shards");
    if ((o->verb == HS_VERB_SOLVE || o->verb == HS_VERB_REPORT) && !o->n_tables)
        return hs_fail(err, HS_EINVAL, "--table FILE is missing: what haste-calibrate measure wrote");
    if (solves && !o->out) return hs_fail(err, HS_EINVAL, "-o FILE is missing: the profile, such as -o profile.json");
    if (o->verb == HS_VERB_COMPARE && !o->other)
        return hs_fail(err, HS_EINVAL, "compare needs two profiles behind it: haste-calibrate compare a.json b.json");
    if ((o->verb == HS_VERB_SHOW || o->verb == HS_VERB_REPORT) && !o->profile)
        return hs_fail(err, HS_EINVAL, "%s needs a profile behind it: haste-calibrate %s profile.json",
                       verb_names[o->verb], verb_names[o->verb]);
    if (o->verb == HS_VERB_REPORT && o->report)
        return hs_fail(err, HS_EINVAL, "--report: name the page by -o, such as -o page.html");
    int budgets = o->sparsity.n + o->match.n + o->step_seconds.n;
    if (budgets > HS_PROFILE_MAX_BUDGETS)
        return hs_fail(err, HS_EINVAL, "%d budgets: a profile holds at most %d", budgets, HS_PROFILE_MAX_BUDGETS);
    if (o->run.seed > (uint64_t)1 << 53)
        return hs_fail(err, HS_EINVAL, "--seed: should be at most 2^53 = 9007199254740992, or JSON could not hold it");
    if (o->run.quiet && o->run.verbose) return hs_fail(err, HS_EINVAL, "--quiet and --verbose: give one of the two");
    if (o->verb == HS_VERB_SOLVE && !hs_options_model_name(&o->run) &&
        (o->random || o->held_out || o->run.prompts || o->run.negative))
        return hs_fail(err, HS_EINVAL, "--%s is for the check of the choice: add -m DIR",
                       o->random        ? "random"
                       : o->held_out    ? "held-out"
                       : o->run.prompts ? "prompts"
                                        : "negative");
    if (o->no_check && (o->random || o->held_out))
        return hs_fail(err, HS_EINVAL, "--%s is for the check that --no-check leaves out",
                       o->random ? "random" : "held-out");
    if (o->run.dry_run && !measures)
        return hs_fail(err, HS_EINVAL, "--dry-run says what measuring costs: %s has none of it", verb_names[o->verb]);
    if (o->refine && !o->held_out)
        return hs_fail(err, HS_EINVAL, "--refine is judged on other prompts: add --held-out FILE");
    return o->verb == HS_VERB_ALL ? check_match(o, err) : 0;
}

/* The verb and what stands behind it without an option, off the front of the line. */
static int read_verb(int *argc, char ***argv, hs_calibrate_options *o, hs_err *err) {
    int n = 1, rc = 0;
    if (*argc < 2 || (*argv)[1][0] == '-') return 0;
    const char *verb = (*argv)[n++];
    for (int v = HS_VERB_MEASURE; v < HS_VERB_COUNT; v++)
        if (!strcmp(verb, verb_names[v])) o->verb = (hs_verb)v;
    if (o->verb == HS_VERB_ALL)
        return hs_fail(err, HS_EINVAL,
                       "unknown verb \"%s\": measure, solve, show, report or compare (none: measure, then solve)",
                       verb);
    for (; n < *argc && (*argv)[n][0] != '-' && !rc; n++) {
        if (o->verb == HS_VERB_SOLVE)
            rc = add_table(o, (*argv)[n], err);
        else if (o->verb != HS_VERB_MEASURE && !o->profile)
            o->profile = (*argv)[n];
        else if (o->verb == HS_VERB_COMPARE && !o->other)
            o->other = (*argv)[n];
        else
            rc = hs_fail(err, HS_EINVAL, "unexpected \"%s\" behind %s", (*argv)[n], verb);
    }
    (*argv)[n - 1] = (*argv)[0]; /* the rest reads as a line of its own */
    *argv += n - 1, *argc -= n - 1;
    return rc;
}

int hs_calibrate_options_parse(int argc, char **argv, hs_calibrate_options *ret, hs_err *err) {
    hs_calibrate_options o = {.run = hs_options_none(),
                              .max_held_out = 8,
                              .candidates = {8, {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99}},
                              .intervals = 4,
                              .prompts_per_head = 1,
                              .shards = 1,
                              .gap = 1e-4,
                              .time_limit = 60};
    int rc = read_verb(&argc, &argv, &o, err);
    if (!rc) rc = hs_options_read(rows, ROWS, argc, argv, set, &o, err);
    if (!rc) rc = check_together(&o, err);
    if (rc < 0) return rc;
    *ret = o;
    return 0;
}
