/* The command line of haste-calibrate: what is read, what is refused and how, what the help says. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "calibrate_options.h"

static int parse(const char *line, hs_calibrate_options *o, hs_err *err) {
    static char text[4096];
    static char *argv[128];
    int argc = 0;
    snprintf(text, sizeof text, "haste-calibrate %s", line);
    for (char *w = strtok(text, " "); w; w = strtok(NULL, " ")) argv[argc++] = w;
    argv[argc] = NULL;
    *err = (hs_err){0};
    return hs_calibrate_options_parse(argc, argv, o, err);
}

static hs_calibrate_options good(const char *line) {
    hs_calibrate_options o;
    hs_err err;
    int rc = parse(line, &o, &err);
    cr_assert_eq(rc, 0, "\"%s\" refused: %s", line, err.msg);
    return o;
}

static void refused(const char *line, const char *part) {
    hs_calibrate_options o;
    hs_err err;
    int rc = parse(line, &o, &err);
    cr_assert_eq(rc, HS_EINVAL, "\"%s\" gave %d", line, rc);
    cr_assert(strstr(err.msg, part), "\"%s\": message \"%s\" lacks \"%s\"", line, err.msg, part);
}

Test(calibrate_options, every_option_is_read) {
    hs_calibrate_options o =
        good("-m dir --prompts f --held-out g --max-prompts 3 --max-held-out 0 -o p.json --table t "
             "--method svg2 --q-clusters 9 --dense-steps 2 --dense-layers 1 --size 64*32 --steps 7 "
             "--sample_guide_scale 3 --seed 5 --candidates 0.9,.5 --intervals 2 --prompts-per-head 2 "
             "--sparsity 0,0.4 --seconds 1.5,20 --match-top-p 0.9 --error band --gap 0.01 --time-limit 3 --random 20 "
             "--refine 2 --per-interval "
             "--report r.html --reuse interval --reuse-interval 3 --device cpu --precision bf16 "
             "--threads 1 --dry-run -v");
    cr_assert(o.verb == HS_VERB_ALL && o.run.attention == HS_SVG2 && o.run.q_clusters == 9 && o.run.dense_steps == 2);
    cr_assert(o.run.dense_layers == 1 && o.run.width == 64 && o.run.height == 32 && o.run.steps == 7);
    cr_assert(o.run.guidance == 3 && o.run.seed == 5 && o.run.reuse == HS_REUSE_INTERVAL && o.run.reuse_interval == 3);
    cr_assert(o.candidates.n == 2 && o.candidates.at[0] == 0.9 && o.candidates.at[1] == 0.5);
    cr_assert(o.sparsity.n == 2 && o.sparsity.at[0] == 0 && o.sparsity.at[1] == 0.4 && o.step_seconds.at[1] == 20 &&
              o.match.n == 1);
    cr_assert(o.intervals == 2 && o.prompts_per_head == 2 && o.max_prompts == 3 && o.max_held_out == 0);
    cr_assert(o.error == HS_ERROR_BAND && o.gap == 0.01 && o.time_limit == 3 && o.random == 20 && o.refine == 2 &&
              o.per_interval);
    cr_assert(o.run.dry_run && o.run.verbose && o.run.threads == 1 && !o.no_check);
    cr_assert_str_eq(o.held_out, "g");
    cr_assert_str_eq(o.out, "p.json");
    cr_assert_str_eq(o.report, "r.html");
    cr_assert_str_eq(o.tables[0], "t");
    cr_assert_str_eq(o.run.precision, "bf16");
}

Test(calibrate_options, verbs) {
    hs_calibrate_options o = good("measure -m d --prompts f --table t --shard 2/3");
    cr_assert(o.verb == HS_VERB_MEASURE && o.shard == 2 && o.shards == 3 && o.candidates.n == 8 && o.intervals == 4);
    o = good("solve a b --table c -o p --no-check");
    cr_assert(o.verb == HS_VERB_SOLVE && o.n_tables == 3 && o.no_check && o.gap == 1e-4);
    cr_assert_str_eq(o.tables[1], "b");
    cr_assert_str_eq(o.tables[2], "c");
    o = good("solve a -m d --prompts f -n blur -o p"); /* part of what was measured */
    cr_assert_str_eq(o.run.negative, "blur");
    cr_assert_str_eq(good("solve a -m d --prompts f --negative-prompt x -o p").run.negative, "x");
    o = good("show p.json --budget 0.4");
    cr_assert(o.verb == HS_VERB_SHOW && o.run.budget == 0.4);
    cr_assert_str_eq(o.profile, "p.json");
    o = good("compare p.json q.json --table t");
    cr_assert(o.verb == HS_VERB_COMPARE && o.n_tables == 1 && !strcmp(o.profile, "p.json") &&
              !strcmp(o.other, "q.json"));
    o = good("report p.json --table t");
    cr_assert(o.verb == HS_VERB_REPORT && !o.out);
    cr_assert(good("--help").help && good("measure -h").help && good("--version").version);
}

Test(calibrate_options, refusals_name_the_option) {
    refused("", "-m DIR is missing");
    refused("dance", "unknown verb \"dance\": measure, solve, show, report or compare");
    refused("-m d -o p", "--prompts FILE is missing");
    refused("-m d --prompts f", "-o FILE is missing");
    refused("measure -m d --prompts f", "--table FILE is missing");
    refused("solve -o p", "--table FILE is missing");
    refused("solve t", "-o FILE is missing");
    refused("show", "show needs a profile behind it");
    refused("report --table t", "report needs a profile behind it");
    refused("show p q", "unexpected \"q\" behind show");
    refused("compare p", "compare needs two profiles behind it");
    refused("compare p q r", "unexpected \"r\" behind compare");
    refused("compare p q -o x", "--output has no meaning with compare: it writes no profile");
    refused("solve t -o p --per-interval=1", "--per-interval");
    refused("solve t -o p --steps 3", "--steps has no meaning with solve: the table says");
    refused("solve t -o p --method svg2", "--method has no meaning with solve");
    refused("show p --table t", "--table has no meaning with show");
    refused("show p -m d", "--model has no meaning with show: it needs no model");
    refused("measure -m d --prompts f --table t --sparsity 0.3", "--sparsity has no meaning with measure");
    refused("-m d --prompts f -o p --budget 0.3", "--budget has no meaning without a verb");
    refused("-m d --prompts f -o p --shard 0/2", "--shard is for haste-calibrate measure");
    refused("-m d --prompts f -o p --method dense", "xattention, svg2 or pooled");
    refused("-m d --prompts f -o p --candidates 0.5,1", "1 to 32 different numbers above 0 and below 1");
    refused("-m d --prompts f -o p --candidates 0.5,0.5", "different");
    refused("-m d --prompts f -o p --candidates 0.5,,0.6", "different");
    refused("-m d --prompts f -o p --candidates 0.99999999999", "below 1"); /* would be 1 as a float */
    refused("-m d --prompts f -o p --sparsity 50%", "such as 0.4,0.5,0.6");
    refused("-m d --prompts f -o p --sparsity nan", "--sparsity \"nan\"");
    refused("-m d --prompts f -o p --error fft", "plain or band");
    refused("-m d --prompts f -o p --shard 3/3", "I/N with 0 <= I < N");
    refused("-m d --prompts f -o p --gap -1", "a number from 0 to 1");
    refused("-m d --prompts f -o p --intervals 0", "a whole number from 1 to 32");
    refused("-m d --prompts f -o p --seed 9007199254740993", "at most 2^53");
    refused("-m d --prompts f -o p --candidats 0.5", "did you mean --candidates?");
    refused("-m d --prompts f -o p --seed -1", "--seed \"-1\": should be a whole number");
    refused("-m d --prompts f -o p -q -v", "--quiet and --verbose");
    refused("-m d --prompts f -o p --table a --table b", "one table is measured at a time");
    refused("solve t -o p --dry-run", "--dry-run says what measuring costs");
    refused("-m d --prompts f -o p --seconds 0", "--seconds \"0\": should be 1 to 32 different numbers above 0");
    refused("solve t -o p --random 3", "--random is for the check of the choice: add -m DIR");
    refused("solve t -o p -n dull", "--negative is for the check of the choice: add -m DIR");
    refused("show p -n dull", "--negative has no meaning with show");
    refused("-m d --prompts f -o p --refine 2", "--refine is judged on other prompts: add --held-out FILE");
    refused("-m d --prompts f -o p --candidates 0.5,0.7", "--match-top-p 0.9 (the default): --candidates lacks it");
    refused("-m d --prompts f -o p --match-top-p 0.9,0.75", "--match-top-p 0.75: --candidates lacks it");
    cr_assert_eq(good("-m d --prompts f -o p --candidates 0.5,0.7 --sparsity 0.3").match.n, 0);
    cr_assert_eq(good("solve t -o p --match-top-p 0.75").match.n, 1); /* the table says what it has */
    refused("-m d --prompts f -o p --no-check --held-out g", "--held-out is for the check");
}

/* Every option of the table is in the help, and every line fits a terminal. */
static void count_line(void *user, const char *text) {
    ++*(int *)user;
    cr_assert(strlen(text) <= 120, "%zu columns: %s", strlen(text), text);
}

Test(calibrate_options, help_fits) {
    int lines = 0;
    hs_calibrate_options_help(count_line, &lines);
    cr_assert_gt(lines, 60);
}
