/* haste-eval without a model: command line, variants, results, statistics, ranks, the written tables. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval_drift.h"
#include "eval_options.h"
#include "eval_report.h"
#include "eval_table.h"
#include "journal.h"
#include "json.h"

/* ---- options ---------------------------------------------------------------------------------------------------- */
static int parse(const char *line, hs_eval_options *o, hs_err *err) {
    static char text[1024];
    char *argv[65] = {(char[]){"haste-eval"}}, *save;
    int argc = 1;
    snprintf(text, sizeof text, "%s", line);
    for (char *w = strtok_r(text, " ", &save); w && argc < 64; w = strtok_r(NULL, " ", &save)) argv[argc++] = w;
    *err = (hs_err){0};
    return hs_eval_options_parse(argc, argv, o, err);
}

static void refused(const char *line, const char *part) {
    hs_eval_options o;
    hs_err err;
    cr_assert_eq(parse(line, &o, &err), HS_EINVAL, "\"%s\" was taken", line);
    cr_assert(strstr(err.msg, part), "\"%s\": message \"%s\" lacks \"%s\"", line, err.msg, part);
}

Test(eval, options) {
    hs_eval_options o;
    hs_err err;
    cr_assert_eq(parse("-m d --prompts f --variants v -o out", &o, &err), 0, "%s", err.msg);
    cr_assert(o.seeds == 1 && !o.max_prompts && !o.shard && o.shards == 1 && o.velocity_clips == -1 && !o.report);
    cr_assert(!strcmp(o.run.model, "d") && !strcmp(o.run.prompts, "f") && !o.run.has_seed && isnan(o.run.guidance));
    cr_assert_eq(parse("--model d --prompts f --profile a --profile b --seeds 4 --max-prompts 8 --shard 2/5 "
                       "--velocity-clips 3 --drift d.csv --side-by-side 2 --baseline x --size 64x32 --steps 9 "
                       "--guidance 2.5 --seed 7 --precision fp32 --device ref -q --output out",
                       &o, &err),
                 0, "%s", err.msg);
    cr_assert(o.n_profiles == 2 && !strcmp(o.profiles[1], "b") && o.seeds == 4 && o.max_prompts == 8 && o.shard == 2);
    cr_assert(o.shards == 5 && o.velocity_clips == 3 && o.side_by_side == 2 && !strcmp(o.baseline, "x"));
    cr_assert(o.run.width == 64 && o.run.height == 32 && o.run.steps == 9 && o.run.guidance == 2.5);
    cr_assert(o.run.seed == 7 && o.run.quiet && !strcmp(o.run.precision, "fp32") && !strcmp(o.drift, "d.csv"));
    cr_assert_eq(parse("-m d --prompts f --variants v -o out --velocity-clips all", &o, &err), 0);
    cr_assert_eq(o.velocity_clips, -1);
    cr_assert_eq(parse("--report -o out", &o, &err), 0, "%s", err.msg);
    cr_assert(o.report);
    cr_assert_eq(parse("--help", &o, &err), 0);
    cr_assert(o.help);
}

Test(eval, options_refused) {
    refused("-m d --prompts f --variants v", "-o DIR is missing");
    refused("--prompts f --variants v -o out", "-m DIR is missing");
    refused("-m d --variants v -o out", "--prompts FILE is missing");
    refused("-m d --prompts f -o out", "nothing to compare");
    refused("-m d --prompts f --variants v -o out --shard 4/4", "I/N with 0 <= I < N");
    refused("-m d --prompts f --variants v -o out --shard 1", "I/N");
    refused("-m d --prompts f --variants v -o out --seeds 0", "a whole number from 1");
    refused("-m d --prompts f --variants v -o out --seeds 2x", "a whole number from 1");
    refused("-m d --prompts f --variants v -o out --velocity-clips -1", "a whole number from 0");
    refused("-m d --prompts f --variants v -o out --steps 0", "--steps \"0\"");
    refused("-m d --prompts f --variants v -o out --top-p 0.9", "unknown option --top-p");
    refused("-m d --prompts f --varaints v -o out", "did you mean --variants");
    refused("-m d --prompts f --variants v -o out extra", "unexpected \"extra\"");
}

/* ---- variants --------------------------------------------------------------------------------------------------- */
Test(eval, variants) {
    hs_eval_variants list = {0};
    hs_err err = {0};
    cr_assert_eq(
        hs_eval_variants_add(&list, " x90 :\t--attention xattention --top-p 0.9  --dense-steps 3", "here", &err), 0,
        "%s", err.msg);
    cr_assert_eq(hs_eval_variants_add(&list, "svg2/p80: --attention svg2 --top-p .8 --precision fp32", "here", &err), 0,
                 "%s", err.msg);
    cr_assert_eq(list.n, 2);
    cr_assert_str_eq(list.v[0].name, "x90");
    cr_assert(list.v[0].o.attention == HS_XATTENTION && list.v[0].o.top_p == 0.9 && list.v[0].o.dense_steps == 3);
    cr_assert(list.v[0].o.reuse == -1 && !list.v[0].o.precision);
    cr_assert(list.v[1].o.attention == HS_SVG2 && !strcmp(list.v[1].o.precision, "fp32"));
    static const struct {
        const char *line, *part;
    } bad[] = {
        {"x91 --attention xattention", "should be \"name: flags\""},
        {": --attention xattention", "the name \"\""},
        {"a b: --attention xattention", "the name \"a b\""},
        {"../x: --attention xattention", "the name \"../x\""},
        {"dense: --attention dense", "belongs to the reference"},
        {"x90: --attention xattention", "a variant x90 already"},
        {"x92:", "neither --attention"},
        {"x92: --top-p 0.9", "attention is dense"},
        {"x92: --attention xattention --steps 5",
         "--steps cannot stand in a variant (options of attention and --precision only)"},
        {"x92: --attention xattention -o there", "--output cannot stand in a variant"},
        {"x92: --attention xattention --top-p 1.5", "x92: --top-p \"1.5\""},
        {"x92: --attention svg2 --stride 8", "no meaning with svg2"},
        {"x92: --attention xattention --tpo-p 0.9", "did you mean --top-p"},
        {"x92: --attention xattention 0.9", "unexpected \"0.9\""},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err.msg[0] = 0;
        cr_assert_eq(hs_eval_variants_add(&list, bad[i].line, "file line 7", &err), HS_EINVAL, "\"%s\" was taken",
                     bad[i].line);
        cr_assert(strstr(err.msg, bad[i].part) && strstr(err.msg, "file line 7"), "\"%s\": %s", bad[i].line, err.msg);
    }
    cr_assert_eq(list.n, 2);
    hs_eval_variants_done(&list);
}

Test(eval, variants_from_a_file) {
    char path[] = "/tmp/haste-eval-XXXXXX";
    int fd = mkstemp(path);
    static const char text[] = "# comment\n\n  \t\nx90: --attention xattention # and why\r\n"
                               "y: --profile a#b.json --budget 0.5";
    hs_eval_variants list = {0};
    hs_err err = {0};
    cr_assert(write(fd, text, sizeof text - 1) == sizeof text - 1 && !close(fd));
    cr_assert_eq(hs_eval_variants_read(&list, path, &err), 0, "%s", err.msg);
    cr_assert_eq(list.n, 2);
    cr_assert_eq(list.v[0].o.attention, HS_XATTENTION);
    cr_assert_str_eq(list.v[1].o.profile, "a#b.json");
    hs_eval_variants_done(&list);
    cr_assert_eq(truncate(path, 12), 0);
    cr_assert_eq(hs_eval_variants_read(&list, path, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "no variants in it"), "%s", err.msg);
    unlink(path);
    cr_assert_eq(hs_eval_variants_read(&list, path, &err), HS_EIO);
}

Test(eval, groups) {
    static const char *const names[][2] = {
        {"x90", "x"}, {"xattn/p90", "xattn"}, {"svg2-p90", "svg"},     {"freeze", "freeze"},
        {"90", "90"}, {"demo/0.74", "demo"},  {"pooled-90", "pooled"}, {"svg2/p90", "svg2"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char group[HS_EVAL_NAME];
        hs_eval_group(names[i][0], group);
        cr_assert_str_eq(group, names[i][1]);
    }
}

/* ---- results ---------------------------------------------------------------------------------------------------- */
static hs_eval_result result(const char *prompt, uint64_t seed, const char *variant, double psnr, double seconds) {
    hs_eval_result r = {.prompt = (char *)prompt,
                        .seed = seed,
                        .variant = (char *)variant,
                        .what = (char *)variant,
                        .device = (char *)"cpu",
                        .run = "0123456789abcdef",
                        .warm = 1};
    for (int m = 0; m < HS_EVAL_METRICS; m++) r.value[m] = NAN;
    r.value[HS_EVAL_PSNR] = psnr;
    r.value[HS_EVAL_SECONDS] = seconds;
    r.value[HS_EVAL_DENSITY] = 0.5;
    return r;
}

static void add(hs_eval_results *t, const hs_eval_result *r) {
    hs_err err = {0};
    cr_assert_eq(hs_eval_results_add(t, r, &err), 0, "%s", err.msg);
}

Test(eval, a_result_survives_its_line) {
    hs_eval_results t = {0};
    hs_eval_result r = result("a \"red\" dot\t\xc3\xa9", UINT64_MAX, "x90", 27.125, 1.5);
    hs_err err = {0};
    r.identical = 1;
    r.value[HS_EVAL_VELOCITY_ERROR] = 1.25e-5;
    char *line = hs_eval_result_json(&r);
    cr_assert_not_null(line);
    cr_assert_null(strchr(line, '\n'));
    cr_assert_eq(hs_eval_results_line(&t, line, strlen(line), 2, &err), 0, "%s", err.msg);
    const hs_eval_result *f = hs_eval_results_find(&t, r.prompt, UINT64_MAX, "x90");
    cr_assert_not_null(f);
    cr_assert(!strcmp(f->what, "x90") && !strcmp(f->device, "cpu") && !strcmp(f->run, r.run));
    cr_assert(f->warm && f->identical && f->value[HS_EVAL_PSNR] == 27.125 && f->value[HS_EVAL_SECONDS] == 1.5);
    cr_assert(f->value[HS_EVAL_VELOCITY_ERROR] == 1.25e-5 && isnan(f->value[HS_EVAL_SSIM]));
    cr_assert_null(hs_eval_results_find(&t, r.prompt, 1, "x90"));
    /* the same again: left out; other settings under the name: refused */
    cr_assert_eq(hs_eval_results_line(&t, line, strlen(line), 3, &err), 0);
    cr_assert_eq(t.n, 1);
    r.what = (char *)"other";
    r.seed = 1;
    cr_assert_eq(hs_eval_results_add(&t, &r, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "was measured as \"x90\""), "%s", err.msg);
    hs_free(line);
    static const char *const bad[] = {"{}", "[1]", "{\"prompt\":1}",
                                      "{\"prompt\":\"a\",\"variant\":\"b\",\"what\":\"c\",\"device\":\"d\","
                                      "\"seed\":\"7x\",\"run\":\"e\"}",
                                      "{\"prompt\":\"a\",\"variant\":\"b\",\"what\":\"c\",\"device\":\"d\","
                                      "\"seed\":\"7\",\"run\":\"e\",\"psnr\":\"9\"}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert_eq(hs_eval_results_line(&t, bad[i], strlen(bad[i]), 4, &err), HS_EFORMAT, "%s was taken", bad[i]);
    cr_assert_eq(t.n, 1);
    hs_eval_results_done(&t);
}

static void journal(const char *dir, const char *name, const char *identity, int n, const hs_eval_result *r) {
    char path[256];
    hs_journal *j;
    hs_err err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    cr_assert_eq(hs_journal_open(path, identity, NULL, NULL, &j, &err), 0, "%s", err.msg);
    for (int i = 0; i < n; i++) {
        char *line = hs_eval_result_json(&r[i]);
        cr_assert_eq(hs_journal_append(j, line, &err), 0, "%s", err.msg);
        hs_free(line);
    }
    cr_assert_eq(hs_journal_close(j, &err), 0, "%s", err.msg);
}

Test(eval, journals_of_a_folder_merge) {
    char dir[] = "/tmp/haste-eval-XXXXXX", command[64];
    hs_eval_results t = {0};
    hs_err err = {0};
    cr_assert_not_null(mkdtemp(dir));
    hs_eval_result r[] = {result("a", 1, "dense", NAN, 2), result("a", 1, "x", 30, 1), result("b", 1, "x", 20, 1)};
    journal(dir, "clips-0-of-2.jsonl", "{\"format\":\"haste-eval\",\"model\":\"m\",\"steps\":3}", 2, r);
    journal(dir, "a-table.jsonl", "{\"format\":\"haste-table\"}", 0, NULL); /* of haste-calibrate: not looked into */
    journal(dir, "notes.jsonl", "[]", 0, NULL);
    journal(dir, "clips-1-of-2.jsonl", "{\"format\":\"haste-eval\",\"model\":\"m\",\"steps\":3}", 2, r + 1);
    cr_assert_eq(hs_eval_results_load(&t, dir, NULL, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(t.n, 3);
    hs_eval_results_done(&t);
    cr_assert_eq(hs_eval_results_load(&t, dir, NULL, "clips-0-of-2.jsonl", &err), 0);
    cr_assert_eq(t.n, 2);
    hs_eval_results_done(&t);
    cr_assert_eq(hs_eval_results_load(&t, dir, "{\"format\":\"haste-eval\",\"model\":\"m\",\"steps\":4}", NULL, &err),
                 HS_EINVAL);
    cr_assert(strstr(err.msg, "steps") && strstr(err.msg, "clips-0-of-2.jsonl"), "%s", err.msg);
    hs_eval_results_done(&t);
    cr_assert_eq(hs_eval_results_load(&t, "/nowhere/at/all", NULL, NULL, &err), HS_EIO);
    hs_eval_results_done(&t);
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
}

/* ---- statistics ------------------------------------------------------------------------------------------------- */
/* For normal data the interval is close to mean +- 1.96 s / sqrt(n). */
Test(eval, bootstrap_intervals_have_the_right_width) {
    enum { N = 200 };
    float x[N];
    double a[N], b[N], sum = 0, square = 0;
    hs_randn(5, x, N);
    for (int i = 0; i < N; i++) {
        a[i] = 10 + (double)x[i];
        b[i] = a[i] - 1;
        sum += a[i];
        square += a[i] * a[i];
    }
    double mean = sum / N, error = sqrt((square / N - mean * mean) / N);
    hs_eval_mean m = hs_eval_bootstrap(N, a, NULL, HS_EVAL_OF_A);
    cr_assert_float_eq(m.mean, mean, 1e-12);
    cr_assert_float_eq(m.low, mean - 1.96 * error, 0.1 * error);
    cr_assert_float_eq(m.high, mean + 1.96 * error, 0.1 * error);
    cr_assert_eq(m.n, N);
    /* pairs stay together: the same difference everywhere has no spread */
    m = hs_eval_bootstrap(N, a, b, HS_EVAL_DIFFERENCE);
    cr_assert(fabs(m.mean - 1) < 1e-12 && fabs(m.low - 1) < 1e-12 && fabs(m.high - 1) < 1e-12);
    m = hs_eval_bootstrap(3, (double[]){2, 4, 12}, (double[]){1, 2, 6}, HS_EVAL_RATIO);
    cr_assert(fabs(m.mean - 2) < 1e-12 && fabs(m.low - 2) < 1e-12 && fabs(m.high - 2) < 1e-12);
    m = hs_eval_bootstrap(4, (double[]){9, 1, 2, 4}, NULL, HS_EVAL_OF_A);
    cr_assert(m.median == 3 && m.mean == 4 && m.low >= 1 && m.high <= 9 && m.low < 4 && m.high > 4);
    m = hs_eval_bootstrap(1, a, NULL, HS_EVAL_OF_A);
    cr_assert(m.n == 1 && m.mean == a[0] && isnan(m.low) && isnan(m.high));
    cr_assert(isnan(hs_eval_bootstrap(0, a, NULL, HS_EVAL_OF_A).mean));
}

static const hs_eval_row *row(const hs_eval_row *rows, int n, const char *variant) {
    for (int i = 0; i < n; i++)
        if (!strcmp(rows[i].variant, variant)) return &rows[i];
    cr_assert_fail("no row %s", variant);
    return NULL;
}

Test(eval, rows_compare_only_what_is_comparable) {
    hs_eval_results t = {0};
    hs_eval_row *rows;
    hs_err err = {0};
    int n;
    hs_eval_result r[] = {
        result("a", 1, "x", 30, 1),      result("a", 1, "dense", NAN, 3), result("a", 1, "y", 31, 2),
        result("b", 1, "dense", NAN, 9), result("b", 1, "x", 20, 3),      result("c", 1, "x", 40, 100),
        result("c", 1, "dense", NAN, 8), result("b", 1, "y", 22, 2),
    };
    r[0].warm = 0;                       /* its first run: not for seconds */
    strcpy(r[6].run, "another process"); /* c: dense seconds are of another process */
    r[7].identical = 1;
    for (size_t i = 0; i < sizeof r / sizeof *r; i++) add(&t, &r[i]);
    cr_assert_eq(hs_eval_rows(&t, "x", &rows, &n, &err), 0, "%s", err.msg);
    cr_assert_eq(n, 3);
    cr_assert_str_eq(rows[0].variant, "dense");
    const hs_eval_row *x = row(rows, n, "x"), *y = row(rows, n, "y");
    cr_assert(x->n == 3 && x->m[HS_EVAL_PSNR].n == 3 && x->m[HS_EVAL_PSNR].mean == 30 && !x->cold);
    cr_assert(x->m[HS_EVAL_SECONDS].n == 2 && x->m[HS_EVAL_SECONDS].mean == 51.5);
    cr_assert(x->speedup.n == 1 && x->speedup.mean == 3, "only clip b: %d, %g", x->speedup.n, x->speedup.mean);
    cr_assert(y->psnr_gain.n == 2 && y->psnr_gain.mean == 1.5 && y->psnr_gain.low == 1 && y->psnr_gain.high == 2);
    cr_assert(y->identical == 1 && y->seconds_ratio.n == 1 && fabs(y->seconds_ratio.mean - 2.0 / 3) < 1e-12);
    cr_assert(rows[0].m[HS_EVAL_PSNR].n == 0 && isnan(rows[0].m[HS_EVAL_PSNR].mean));
    hs_free(rows);
    cr_assert_eq(hs_eval_rows(&t, "nobody", &rows, &n, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "--baseline nobody"), "%s", err.msg);
    hs_eval_results_done(&t);
}

/* A group as the baseline: its curve in the same clip, at the density of what is compared. */
Test(eval, rows_compare_at_equal_density) {
    static const struct {
        const char *prompt, *variant;
        double density, psnr, error;
    } x[] = {
        {"a", "g/1", 0.25, 20, 1e-1}, {"a", "g/2", 0.5, 30, 1e-3},
        {"a", "g/3", 0.75, 31, 1e-5}, {"a", "p", 0.375, 27, 3e-3}, /* between: 25 dB, 1e-2 */
        {"b", "g/3", 0.75, 41, 1e-5}, {"b", "g/2", 0.5, 40, 1e-3},
        {"b", "p", 0.5, 42, 1e-3}, /* on a point */
        {"c", "g/2", 0.5, 40, 1e-3},  {"c", "g/3", 0.75, 41, 1e-5},
        {"c", "p", 0.4, 10, 1}, /* outside: does not count */
    };
    hs_eval_results t = {0};
    hs_eval_row *rows;
    hs_err err = {0};
    int n;
    for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
        hs_eval_result r = result(x[i].prompt, 1, x[i].variant, x[i].psnr, 1);
        r.value[HS_EVAL_DENSITY] = x[i].density;
        r.value[HS_EVAL_VELOCITY_ERROR] = x[i].error;
        add(&t, &r);
    }
    cr_assert_eq(hs_eval_rows(&t, "g", &rows, &n, &err), 0, "%s", err.msg);
    const hs_eval_row *p = row(rows, n, "p");
    cr_assert(p->compared && !row(rows, n, "g/2")->compared);
    cr_assert_eq(p->psnr_gain.n, 2);
    cr_assert_float_eq(p->psnr_gain.mean, 2, 1e-9);
    cr_assert_float_eq(p->psnr_gain.median, 2, 1e-9);
    cr_assert_float_eq(p->density_change.mean, 0, 1e-12);
    cr_assert_float_eq(p->error_ratio.mean, (3e-3 + 1e-3) / (1e-2 + 1e-3), 1e-9);
    hs_free(rows);
    hs_eval_results_done(&t);
}

/* ---- the tables ------------------------------------------------------------------------------------------------- */
static const char *text_of(const hs_eval_report *r) {
    static char buf[8192];
    hs_err err = {0};
    FILE *f = fmemopen(buf, sizeof buf, "w");
    cr_assert_eq(hs_eval_report_text(f, r, &err), 0, "%s", err.msg);
    fclose(f);
    return buf;
}

Test(eval, tables_say_what_they_need) {
    hs_eval_results t = {0};
    hs_eval_row *rows;
    hs_err err = {0};
    int n;
    char path[] = "/tmp/haste-eval-XXXXXX", *json;
    size_t len;
    hs_eval_result r[] = {result("a", 1, "dense", NAN, 3), result("a", 1, "x", 100, 1), result("b", 1, "dense", NAN, 3),
                          result("b", 1, "x", 30, 1)};
    r[1].identical = 1;
    for (size_t i = 0; i < 4; i++) add(&t, &r[i]);
    cr_assert_eq(hs_eval_rows(&t, NULL, &rows, &n, &err), 0);
    hs_eval_report report = {&t, rows, n, NULL};
    const char *text = text_of(&report);
    cr_assert(strstr(text, "Identical to dense, counted as 100 dB: x 1 of 2"), "%s", text);
    cr_assert(strstr(text, "Device: cpu."), "%s", text);
    cr_assert(strstr(text, "65.00 [30.00, 100.00]"), "%s", text);
    cr_assert_null(strstr(text, "PSNR gain"), "no baseline, no gain");
    close(mkstemp(path));
    cr_assert_eq(hs_eval_report_json(path, &report, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_file_read(path, 1 << 20, &json, &len, &err), 0);
    cJSON *list;
    cr_assert_eq(hs_json_parse(json, len, path, &list, &err), 0, "%s", err.msg);
    const cJSON *x = cJSON_GetArrayItem(list, 1), *psnr = cJSON_GetObjectItemCaseSensitive(x, "psnr");
    cr_assert(cJSON_GetArraySize(list) == 2 && cJSON_GetObjectItemCaseSensitive(psnr, "mean")->valuedouble == 65);
    cr_assert(cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(x, "ssim"), "mean")));
    cJSON_Delete(list);
    hs_free(json);
    cr_assert_eq(hs_eval_report_json("/nowhere/at/all", &report, &err), HS_EIO);
    hs_free(rows);
    hs_eval_results_done(&t);
    /* two devices: the seconds say so */
    r[2].device = (char *)"gpu";
    for (size_t i = 0; i < 4; i++) add(&t, &r[i]);
    cr_assert_eq(hs_eval_rows(&t, NULL, &rows, &n, &err), 0);
    text = text_of(&(hs_eval_report){&t, rows, n, NULL});
    cr_assert(strstr(text, "Measured on 2 devices"), "%s", text);
    unlink(path);
    hs_free(rows);
    hs_eval_results_done(&t);
}

/* ---- drift ------------------------------------------------------------------------------------------------------ */
Test(eval, ranks) {
    cr_assert_float_eq(hs_drift_spearman(5, (double[]){1, 2, 3, 4, 5}, (double[]){9, 7, 5, 3, -100}), -1, 1e-12);
    /* ties share a rank: x 0.5 0.5 2 3, y 0 1 2.5 2.5 -> 4.25 / sqrt(4.5 * 4.5) */
    cr_assert_float_eq(hs_drift_spearman(4, (double[]){1, 1, 2, 3}, (double[]){1, 2, 3, 3}), 4.0 / 4.5, 1e-12);
    cr_assert(isnan(hs_drift_spearman(2, (double[]){1, 2}, (double[]){1, 2})));
    cr_assert(isnan(hs_drift_spearman(3, (double[]){1, 2, 3}, (double[]){1, 1, 1})));
    cr_assert_float_eq(hs_drift_overlap((int32_t[]){7, -1}, (int32_t[]){5, 0}, 2), 2.0 / 35, 1e-12);
    cr_assert_eq(hs_drift_overlap((int32_t[]){0}, (int32_t[]){0}, 1), 1);
}
