/* The command line of haste-eval. Options that haste-run has too are handed to its parser, and so are the flags of a
 * variant: what a flag means is said in one place (engine/options.c). */
#include "eval_options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum id {
    ID_SHARED, /* haste-run's, by the same name */
    ID_VARIANTS,
    ID_PROFILE,
    ID_SEEDS,
    ID_MAX_PROMPTS,
    ID_SHARD,
    ID_VELOCITY_CLIPS,
    ID_DRIFT,
    ID_OUT,
    ID_REPORT,
    ID_BASELINE,
    ID_SIDE_BY_SIDE,
    ID_VERSION,
    ID_HELP
};

static const hs_option_row rows[] = {
    {0, 0, NULL, NULL, "What to compare"},
    {ID_SHARED, 'm', "model", "DIR", "model folder: Diffusers, original or ComfyUI layout (needed, or its parts:)"},
    {ID_SHARED, 0, "transformer", "PATH", "file or folder of this part, instead of the folder's"},
    {ID_SHARED, 0, "text-encoder", "PATH", "likewise (UMT5-XXL)"},
    {ID_SHARED, 0, "vae", "PATH", "likewise"},
    {ID_SHARED, 0, "tokenizer", "PATH", "spiece.model or its folder [in or beside the text encoder]"},
    {ID_SHARED, 0, "prompts", "FILE", "one prompt a line, '#' comments (needed)"},
    {ID_VARIANTS, 0, "variants", "FILE", "one variant a line, \"name: flags\" with haste-run's flags of attention"},
    {ID_PROFILE, 0, "profile", "FILE", "a variant for every budget of a calibrated profile; may be given again"},
    {ID_SEEDS, 0, "seeds", "N", "videos of every prompt, with seeds S, S+1, ... [1]"},
    {ID_SHARED, 0, "seed", "S", "the first seed [0]"},
    {ID_MAX_PROMPTS, 0, "max-prompts", "N", "only the first N prompts [all]"},
    {0, 0, NULL, NULL, "Video and sampling, as haste-run"},
    {ID_SHARED, 0, "size", "WxH", "[the model's]"},
    {ID_SHARED, 0, "width", "N", NULL},
    {ID_SHARED, 0, "height", "N", NULL},
    {ID_SHARED, 0, "frames", "N", "[the model's]"},
    {ID_SHARED, 0, "fps", "N", "of the side-by-side videos [the model's]"},
    {ID_SHARED, 0, "steps", "N", "[the model's]"},
    {ID_SHARED, 0, "guidance", "X", "[the model's]"},
    {ID_SHARED, 0, "shift", "X", "[the model's]"},
    {ID_SHARED, 0, "solver", "NAME", "[the model's]"},
    {ID_SHARED, 0, "sigmas", "NAME", "[the solver's]"},
    {ID_SHARED, 'n', "negative", "TEXT", "[the model's]"},
    {0, 0, NULL, NULL, "What to measure"},
    {ID_VELOCITY_CLIPS, 0, "velocity-clips", "N",
     "velocity error on the first N clips: a second pass along the dense\ntrajectory; all or 0 too [all]"},
    {ID_DRIFT, 0, "drift", "FILE",
     "how masks change with the drift of Q and K (CSV), of the variants that\nsay --reuse none; not svg2; slow"},
    {ID_SIDE_BY_SIDE, 0, "side-by-side", "N", "videos \"dense | variant\" of the first N clips [0]"},
    {ID_SHARD, 0, "shard", "I/N", "every N-th clip, from clip I on (0 <= I < N): split over processes,\nthen --report"},
    {0, 0, NULL, NULL, "Output"},
    {ID_OUT, 'o', "output", "DIR",
     "measurements, table.json, table.md, report.html (needed); a rerun goes on\nwhere the "
     "last one stopped"},
    {ID_REPORT, 0, "report", NULL, "measure nothing: merge what is in DIR and write the tables again"},
    {ID_BASELINE, 0, "baseline", "NAME",
     "compare with this variant, clip by clip, or with a group's curve at equal\ndensity"},
    {0, 0, NULL, NULL, "Machine"},
    {ID_SHARED, 0, "device", "NAME", "auto, cpu, cuda, cuda:N or ref [auto]"},
    {ID_SHARED, 0, "precision", "NAME",
     "auto, fp32, bf16 or fp16 (GPU): of the dense reference, and of variants\nthat name none [auto]"},
    {ID_SHARED, 0, "threads", "N", "CPU threads [all cores]"},
    {ID_SHARED, 0, "max-vram", "GB", "device memory to live with, as haste-run [all that is free]"},
    {0, 0, NULL, NULL, "Other"},
    {ID_SHARED, 'q', "quiet", NULL, "no progress"},
    {ID_SHARED, 'v', "verbose", NULL, "more"},
    {ID_VERSION, 0, "version", NULL, "print the version"},
    {ID_HELP, 'h', "help", NULL, "print this"},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

void hs_eval_options_help(void (*line)(void *user, const char *text), void *user) {
    static const char *const head[] = {
        "haste-eval compares sparse attention with dense attention: same prompts, same noise, frame by frame.",
        "",
        "  haste-eval -m DIR --prompts FILE --variants FILE [--profile FILE]... -o DIR [options]",
        "  haste-eval --report -o DIR [--baseline NAME]",
        "",
        "Defaults are in brackets.",
    };
    static const char *const tail[] = {
        "",
        "A file of variants:",
        "  # name: flags as haste-run --help lists them under Attention, and --precision",
        "  x90: --attention xattention --top-p 0.9 --dense-steps 3",
        "  x90-reuse: --attention xattention --top-p 0.9 --dense-steps 3 --reuse drift --reuse-delta 10",
        "  svg2/p90: --attention svg2 --top-p 0.9",
        "  fp32: --attention dense --precision fp32",
        "Variants of one method form a curve in the report: the name up to '/', or up to its first digit.",
        "",
        "Every clip is measured for every variant and kept at once: kill -9 loses one clip of one variant.",
        "Ctrl-C stops after the step; the same command goes on from there.",
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        "",
        "Examples",
        "  haste-eval -m data/demo --prompts prompts/evaluate.txt --variants variants.txt -o eval",
        "  haste-eval -m data/demo --prompts prompts/demo_hard.txt --profile p.json --max-prompts 8 --seeds 4 -o eval",
        "  haste-eval --report -o eval --baseline x90",
        "  haste-eval --report -o eval --baseline xattn      (xattn/p80, xattn/p90, ...: at equal density)",
    };
    for (size_t i = 0; i < sizeof head / sizeof head[0]; i++) line(user, head[i]);
    hs_options_list(rows, ROWS, line, user);
    for (size_t i = 0; i < sizeof tail / sizeof tail[0]; i++) line(user, tail[i]);
}

/* ---- one option ------------------------------------------------------------------------------------------------- */
static int set(void *user, const hs_option_row *r, const char *arg, hs_err *err) {
    hs_eval_options *o = user;
    int rc = 0;
    switch (r->id) {
    case ID_SHARED: rc = hs_options_set(&o->run, r->name, arg, err); break;
    case ID_VARIANTS: o->variants = arg; break;
    case ID_PROFILE:
        if (o->n_profiles == HS_EVAL_MAX_PROFILES)
            return hs_fail(err, HS_EINVAL, "--profile: at most %d of them", HS_EVAL_MAX_PROFILES);
        o->profiles[o->n_profiles++] = arg;
        break;
    case ID_SEEDS: rc = hs_option_int(r->name, arg, 1, 1000000, &o->seeds, err); break;
    case ID_MAX_PROMPTS: rc = hs_option_int(r->name, arg, 1, 1000000, &o->max_prompts, err); break;
    case ID_SHARD: rc = hs_option_shard(r->name, arg, &o->shard, &o->shards, err); break;
    case ID_VELOCITY_CLIPS:
        if (!strcmp(arg, "all"))
            o->velocity_clips = -1;
        else
            rc = hs_option_int(r->name, arg, 0, 1000000, &o->velocity_clips, err);
        break;
    case ID_DRIFT: o->drift = arg; break;
    case ID_OUT: o->out = arg; break;
    case ID_REPORT: o->report = 1; break;
    case ID_BASELINE: o->baseline = arg; break;
    case ID_SIDE_BY_SIDE: rc = hs_option_int(r->name, arg, 0, 1000000, &o->side_by_side, err); break;
    case ID_VERSION: o->version = 1; return 1;
    case ID_HELP: o->help = 1; return 1;
    default: break;
    }
    return rc;
}

static int check_together(const hs_eval_options *o, hs_err *err) {
    if (!o->out) return hs_fail(err, HS_EINVAL, "-o DIR is missing: the folder for measurements and tables");
    if (o->report) return 0;
    hs_model_params model = {.dir = NULL};
    int rc = hs_options_model(&o->run, &model, err);
    if (rc) return rc;
    if (!o->run.prompts)
        return hs_fail(err, HS_EINVAL, "--prompts FILE is missing, such as --prompts prompts/evaluate.txt");
    if (!o->variants && !o->n_profiles)
        return hs_fail(err, HS_EINVAL,
                       "nothing to compare with dense attention: give --variants FILE or --profile FILE");
    if (o->run.quiet && o->run.verbose) return hs_fail(err, HS_EINVAL, "--quiet and --verbose: give one of the two");
    return 0;
}

int hs_eval_options_parse(int argc, char **argv, hs_eval_options *ret, hs_err *err) {
    hs_eval_options o = {.run = hs_options_none(), .seeds = 1, .shards = 1, .velocity_clips = -1};
    int rc = hs_options_read(rows, ROWS, argc, argv, set, &o, err);
    if (!rc) rc = check_together(&o, err);
    if (rc < 0) return rc;
    *ret = o;
    return 0;
}

/* ---- variants --------------------------------------------------------------------------------------------------- */
static int check_name(const hs_eval_variants *list, const char *name, const char *where, hs_err *err) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+=/-";
    size_t len = strlen(name);
    if (!isalnum((unsigned char)name[0]) || strspn(name, letters) != len || len >= HS_EVAL_NAME || name[len - 1] == '/')
        return hs_fail(err, HS_EINVAL,
                       "%s: the name \"%.80s\" should begin with a letter or digit and hold letters, digits and ._+=/- "
                       "only, at most %d",
                       where, name, HS_EVAL_NAME - 1);
    if (!strcmp(name, "dense"))
        return hs_fail(err, HS_EINVAL, "%s: the name dense belongs to the reference, which is always there", where);
    for (int i = 0; i < list->n; i++)
        if (!strcmp(list->v[i].name, name))
            return hs_fail(err, HS_EINVAL, "%s: there is a variant %s already", where, name);
    return 0;
}

int hs_eval_variants_add(hs_eval_variants *list, const char *line, const char *where, hs_err *err) {
    enum { MAX_WORDS = 64 };
    char *argv[MAX_WORDS + 1] = {(char[]){"variant"}};
    int argc = 1, rc;
    hs_eval_variant v = {.line = hs_strdup(line)};
    if (!v.line) return hs_fail(err, HS_ENOMEM, "no memory for the variants");
    char *save, *name = v.line + strspn(v.line, " \t"), *colon = strchr(name, ':');
    if (!colon) {
        rc = hs_fail(err, HS_EINVAL,
                     "%s: \"%.60s\" should be \"name: flags\", such as \"x90: --attention xattention --top-p 0.9\"",
                     where, name);
        goto out;
    }
    *colon = 0;
    for (char *end = colon; end > name && strchr(" \t", end[-1]);) *--end = 0;
    if ((rc = check_name(list, name, where, err))) goto out;
    snprintf(v.name, sizeof v.name, "%s", name);
    for (char *w = strtok_r(colon + 1, " \t\r\n", &save); w; w = strtok_r(NULL, " \t\r\n", &save)) {
        if (argc == MAX_WORDS) {
            rc = hs_fail(err, HS_EINVAL, "%s: %s has more than %d words", where, name, MAX_WORDS - 1);
            goto out;
        }
        argv[argc++] = w;
    }
    if ((rc = hs_options_parse_attention(argc, argv, &v.o, err))) {
        hs_fail_ctx(err, rc, "%s: %s", where, v.name);
        goto out;
    }
    if (v.o.attention < 0 && !v.o.profile) {
        rc = hs_fail(err, HS_EINVAL, "%s: %s says neither --attention NAME nor --profile FILE", where, v.name);
        goto out;
    }
    hs_eval_variant *grown = realloc(list->v, (size_t)(list->n + 1) * sizeof *grown);
    if (!grown) {
        rc = hs_fail(err, HS_ENOMEM, "no memory for the variants");
        goto out;
    }
    list->v = grown;
    list->v[list->n++] = v;
    return 0;
out:
    hs_free(v.line);
    return rc;
}

/* A '#' starts a comment where a word could start: file names may hold one. */
static void cut_comment(char *line) {
    line[strcspn(line, "\r\n")] = 0;
    for (char *p = strchr(line, '#'); p; p = strchr(p + 1, '#'))
        if (p == line || p[-1] == ' ' || p[-1] == '\t') {
            *p = 0;
            return;
        }
}

int hs_eval_variants_read(hs_eval_variants *list, const char *path, hs_err *err) {
    char *line = NULL, where[4200];
    size_t size = 0;
    ssize_t len;
    int number = 0, before = list->n, rc = 0;
    FILE *f = fopen(path, "r");
    if (!f) return hs_fail(err, HS_EIO, "%s: cannot read the variants: %s", path, strerror(errno));
    while (!rc && (len = getline(&line, &size, f)) >= 0) {
        snprintf(where, sizeof where, "%s line %d", path, ++number);
        if (strlen(line) != (size_t)len) rc = hs_fail(err, HS_EINVAL, "%s holds a NUL byte: not a text file?", where);
        cut_comment(line);
        if (!rc && line[strspn(line, " \t")]) rc = hs_eval_variants_add(list, line, where, err);
    }
    if (!rc && ferror(f)) rc = hs_fail(err, HS_EIO, "%s: cannot read the variants: %s", path, strerror(errno));
    if (!rc && list->n == before)
        rc = hs_fail(err, HS_EINVAL, "%s: no variants in it (\"name: flags\" a line; '#' starts a comment)", path);
    free(line);
    fclose(f);
    return rc;
}

void hs_eval_variants_done(hs_eval_variants *list) {
    for (int i = 0; i < list->n; i++) hs_free(list->v[i].line);
    free(list->v);
    *list = (hs_eval_variants){0};
}
