/* Tables of haste-eval. One list of columns serves plain text and Markdown. */
#include "eval_report.h"
#include "json.h"
#include "newfile.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- numbers ---------------------------------------------------------------------------------------------------- */
enum style { FIXED, SIGNED, SIGNIFICANT, COUNT };

static void print_number(double v, enum style style, int digits, char *ret, size_t size) {
    if (style == SIGNIFICANT)
        snprintf(ret, size, "%.*g", digits, v);
    else
        snprintf(ret, size, style == SIGNED ? "%+.*f" : "%.*f", digits, v);
}

/* "27.41 [26.90, 27.95]"; "-" if nothing was measured, no brackets if one clip was. */
static void interval(const hs_eval_mean *m, enum style style, int digits, hs_eval_cell ret) {
    char mean[24], low[24], high[24];
    snprintf(ret, sizeof(hs_eval_cell), "-");
    if (!m || m->n < 1 || !isfinite(m->mean)) return;
    if (style == COUNT) {
        snprintf(ret, sizeof(hs_eval_cell), "%d", m->n);
        return;
    }
    print_number(m->mean, style, digits, mean, sizeof mean);
    print_number(m->low, style, digits, low, sizeof low);
    print_number(m->high, style, digits, high, sizeof high);
    if (isfinite(m->low) && isfinite(m->high))
        snprintf(ret, sizeof(hs_eval_cell), "%s [%s, %s]", mean, low, high);
    else
        snprintf(ret, sizeof(hs_eval_cell), "%s", mean);
}

/* ---- columns ---------------------------------------------------------------------------------------------------- */
enum { OF_METRIC, OF_SPEEDUP, OF_PSNR_GAIN, OF_SSIM_GAIN, OF_ERROR_RATIO, OF_DENSITY_CHANGE, OF_SECONDS_RATIO };

typedef struct column {
    const char *title;
    enum style style;
    int digits;
    int of;
    hs_eval_metric metric;
    int paired;   /* only with a baseline */
    int optional; /* left out where no row has it */
} column;

static const column columns[] = {
    {"PSNR dB", FIXED, 2, OF_METRIC, HS_EVAL_PSNR, 0, 0},
    {"SSIM", FIXED, 4, OF_METRIC, HS_EVAL_SSIM, 0, 0},
    {"velocity error", SIGNIFICANT, 3, OF_METRIC, HS_EVAL_VELOCITY_ERROR, 0, 1},
    {"density", FIXED, 3, OF_METRIC, HS_EVAL_DENSITY, 0, 0},
    {"sparse calls", FIXED, 3, OF_METRIC, HS_EVAL_DENSITY_SPARSE, 0, 1},
    {"reuse", FIXED, 3, OF_METRIC, HS_EVAL_REUSE_RATE, 0, 0},
    {"seconds", SIGNIFICANT, 3, OF_METRIC, HS_EVAL_SECONDS, 0, 0},
    {"speed-up", FIXED, 2, OF_SPEEDUP, 0, 0, 1},
    {"pairs", COUNT, 0, OF_PSNR_GAIN, 0, 1, 0},
    {"PSNR gain", SIGNED, 2, OF_PSNR_GAIN, 0, 1, 0},
    {"SSIM gain", SIGNED, 4, OF_SSIM_GAIN, 0, 1, 0},
    {"error ratio", FIXED, 3, OF_ERROR_RATIO, 0, 1, 1},
    {"density change", SIGNED, 3, OF_DENSITY_CHANGE, 0, 1, 0},
    {"seconds ratio", FIXED, 3, OF_SECONDS_RATIO, 0, 1, 1},
    {"rank lag 1", SIGNED, 3, OF_METRIC, HS_EVAL_RANK_POST_1, 0, 1},
    {"lag 4", SIGNED, 3, OF_METRIC, HS_EVAL_RANK_POST_4, 0, 1},
    {"lag 8", SIGNED, 3, OF_METRIC, HS_EVAL_RANK_POST_8, 0, 1},
    {"pre-rope lag 1", SIGNED, 3, OF_METRIC, HS_EVAL_RANK_PRE_1, 0, 1},
    {"pre-rope lag 4", SIGNED, 3, OF_METRIC, HS_EVAL_RANK_PRE_4, 0, 1},
    {"pre-rope lag 8", SIGNED, 3, OF_METRIC, HS_EVAL_RANK_PRE_8, 0, 1},
};
enum { COLUMNS = sizeof columns / sizeof columns[0] };

static const hs_eval_mean *value(const hs_eval_row *row, const column *c) {
    switch (c->of) {
    case OF_METRIC: return &row->m[c->metric];
    case OF_SPEEDUP: return &row->speedup;
    case OF_PSNR_GAIN: return &row->psnr_gain;
    case OF_SSIM_GAIN: return &row->ssim_gain;
    case OF_ERROR_RATIO: return &row->error_ratio;
    case OF_DENSITY_CHANGE: return &row->density_change;
    default: return &row->seconds_ratio;
    }
}

static int shown(const hs_eval_report *r, const column *c) {
    int some = !c->optional;
    for (int i = 0; i < r->n; i++) some |= value(&r->rows[i], c)->n > 0;
    return some && (r->baseline || !c->paired);
}

static void text_of(const hs_eval_row *row, const column *c, hs_eval_cell ret) {
    interval(c->paired && !row->compared ? NULL : value(row, c), c->style, c->digits, ret);
}

/* ---- notes ------------------------------------------------------------------------------------------------------ */
/* How many devices made dense clips; variants may name a precision of their own, which changes the device's name. */
static int devices(const hs_eval_results *t, const char **ret_first) {
    int n = 0;
    *ret_first = "unknown (no dense clip)";
    for (int i = 0; i < t->n; i++) {
        int known = strcmp(t->r[i].variant, "dense") != 0;
        for (int k = 0; k < i && !known; k++)
            known = !strcmp(t->r[k].variant, "dense") && !strcmp(t->r[k].device, t->r[i].device);
        if (!known && !n++) *ret_first = t->r[i].device;
    }
    return n;
}

void hs_eval_report_notes(const hs_eval_report *r, void (*note)(void *user, const char *text), void *user) {
    const char *device;
    int cold = 0, n = devices(r->results, &device);
    char text[1024] = "";
    for (int i = 0; i < r->n; i++) cold |= r->rows[i].cold;
    note(user, "n: clips (prompt and seed); brackets: 95 % interval, bootstrap over clips.");
    note(user,
         "PSNR: mean over frames, then over clips; SSIM: 11x11 Gaussian window, mean of R, G, B; both against the "
         "dense clip of the same noise.");
    for (int i = 0; i < r->n; i++) {
        size_t at = strlen(text);
        if (r->rows[i].identical)
            snprintf(text + at, sizeof text - at, "%s %s %d of %d",
                     at ? "," : "Identical to dense, counted as 100 dB:", r->rows[i].variant, r->rows[i].identical,
                     r->rows[i].n);
    }
    if (*text) note(user, text);
    note(user, "Velocity error: |v - v_d|^2 / |v_d|^2 of the guided velocity along the dense trajectory, mean over the "
               "steps that are not dense (all steps where nothing is sparse).");
    note(user,
         "Density: share of token pairs attended to, over all calls of heads, where dense steps and layers count 1; "
         "reuse: share of the sparse calls that kept their mask.");
    snprintf(text, sizeof text,
             "Seconds: denoising and decoding of a clip, %s; speed-up: only clips whose dense run was made by the same "
             "process.",
             cold ? "first runs where there are no others (warming up included)"
                  : "without a variant's first run in a process");
    note(user, text);
    if (n > 1)
        snprintf(text, sizeof text, "Measured on %d devices: the seconds are not comparable.", n);
    else
        snprintf(text, sizeof text, "Device: %s.", device);
    note(user, text);
    if (r->baseline) {
        snprintf(text, sizeof text,
                 "Pairs, gain, change, ratio: against %s%s, clip by clip; a ratio is that of the means.", r->baseline,
                 hs_eval_has_variant(r->results, r->baseline)
                     ? ""
                     : " at the same density (interpolated between its variants; clips outside of them do not count)");
        note(user, text);
    }
    for (int i = 0; i < r->n; i++)
        if (r->rows[i].m[HS_EVAL_RANK_POST_1].n > 0) {
            note(user,
                 "Rank: Spearman of the drift of the token means of Q and K (after or before the rotation) against "
                 "the overlap (IoU) of the masks so many steps apart, within a clip.");
            break;
        }
}

int hs_eval_report_cells(const hs_eval_report *r, hs_eval_cell **ret, int *ret_columns, hs_err *err) {
    int n = 2, at = 0;
    for (int c = 0; c < COLUMNS; c++) n += shown(r, &columns[c]);
    hs_eval_cell *cells = hs_calloc((size_t)(r->n + 1) * (size_t)n, sizeof *cells);
    if (!cells) return hs_fail(err, HS_ENOMEM, "no memory for the table");
    for (int i = -1; i < r->n; i++) {
        const hs_eval_row *row = i < 0 ? NULL : &r->rows[i];
        snprintf(cells[at++], sizeof *cells, "%s", row ? row->variant : "variant");
        if (row)
            snprintf(cells[at++], sizeof *cells, "%d", row->n);
        else
            snprintf(cells[at++], sizeof *cells, "n");
        for (int c = 0; c < COLUMNS; c++) {
            if (!shown(r, &columns[c])) continue;
            if (row)
                text_of(row, &columns[c], cells[at++]);
            else
                snprintf(cells[at++], sizeof *cells, "%s", columns[c].title);
        }
    }
    *ret = cells;
    *ret_columns = n;
    return 0;
}

/* ---- plain text, Markdown --------------------------------------------------------------------------------------- */
static void plain_note(void *user, const char *text) {
    fprintf(user, "%s\n", text);
}

static void bullet_note(void *user, const char *text) {
    fprintf(user, "- %s\n", text);
}

int hs_eval_report_text(FILE *to, const hs_eval_report *r, hs_err *err) {
    hs_eval_cell *cells;
    int n, rc = hs_eval_report_cells(r, &cells, &n, err);
    if (rc) return rc;
    for (int i = 0; i <= r->n; i++)
        for (int c = 0; c < n; c++) {
            int width = 0;
            for (int k = 0; k <= r->n; k++) {
                int w = (int)strlen(cells[k * n + c]);
                if (w > width) width = w;
            }
            /* names to the left, numbers to the right */
            fprintf(to, c ? "  %*s%s" : "%-*s%s", width, cells[i * n + c], c + 1 < n ? "" : "\n");
        }
    fputc('\n', to);
    hs_eval_report_notes(r, plain_note, to);
    hs_free(cells);
    return 0;
}

static void markdown(FILE *to, const hs_eval_report *r, hs_eval_cell *cells, int n) {
    for (int i = 0; i <= r->n; i++) {
        for (int c = 0; c < n; c++) fprintf(to, "| %s ", cells[i * n + c]);
        fputs("|\n", to);
        for (int c = 0; c < n && !i; c++) fputs(c ? "---:|" : "|---|", to);
        if (!i) fputc('\n', to);
    }
    fputc('\n', to);
    hs_eval_report_notes(r, bullet_note, to);
    fputs("\nVariants:\n\n", to);
    for (int i = 0; i < r->n; i++) fprintf(to, "- %s: %s\n", r->rows[i].variant, r->rows[i].what);
}

int hs_eval_report_markdown(const char *path, const hs_eval_report *r, hs_err *err) {
    char *text = NULL;
    size_t size;
    hs_eval_cell *cells;
    int n, rc = hs_eval_report_cells(r, &cells, &n, err);
    if (rc) return rc;
    FILE *to = open_memstream(&text, &size);
    if (to) markdown(to, r, cells, n);
    rc = !to || fclose(to) ? hs_fail(err, HS_ENOMEM, "no memory for %s", path) : hs_newfile_text(path, text, err);
    free(text);
    hs_free(cells);
    return rc;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */
static int add_number(cJSON *to, const char *key, double v) {
    char s[32];
    snprintf(s, sizeof s, "%.7g", v);
    return (isfinite(v) ? cJSON_AddRawToObject(to, key, s) : cJSON_AddNullToObject(to, key)) != NULL;
}

static int add_mean(cJSON *to, const char *key, const hs_eval_mean *m, int median) {
    cJSON *o = cJSON_AddObjectToObject(to, key);
    return o && add_number(o, "mean", m->n ? m->mean : NAN) && add_number(o, "low", m->n ? m->low : NAN) &&
           add_number(o, "high", m->n ? m->high : NAN) &&
           (!median || add_number(o, "median", m->n ? m->median : NAN)) && cJSON_AddNumberToObject(o, "n", m->n);
}

static int add_row(cJSON *list, const hs_eval_report *r, const hs_eval_row *row) {
    cJSON *o = cJSON_CreateObject();
    int ok = cJSON_AddItemToArray(list, o) && cJSON_AddStringToObject(o, "variant", row->variant) &&
             cJSON_AddStringToObject(o, "group", row->group) && cJSON_AddStringToObject(o, "what", row->what) &&
             cJSON_AddNumberToObject(o, "n", row->n) && cJSON_AddNumberToObject(o, "identical", row->identical) &&
             cJSON_AddBoolToObject(o, "warm", !row->cold);
    for (int m = 0; m < HS_EVAL_METRICS && ok; m++)
        if (m < HS_EVAL_RANK_POST_1 || row->m[m].n)
            ok = add_mean(o, hs_eval_metric_key((hs_eval_metric)m), &row->m[m],
                          m >= HS_EVAL_SECONDS && m <= HS_EVAL_ATTEND);
    ok = ok && add_mean(o, "speedup", &row->speedup, 1);
    if (!row->compared) return ok;
    cJSON *b = cJSON_AddObjectToObject(o, "against");
    return ok && b && cJSON_AddStringToObject(b, "baseline", r->baseline) &&
           cJSON_AddBoolToObject(b, "at_same_density", !hs_eval_has_variant(r->results, r->baseline)) &&
           add_mean(b, "psnr_gain", &row->psnr_gain, 1) && add_mean(b, "ssim_gain", &row->ssim_gain, 0) &&
           add_mean(b, "density_change", &row->density_change, 0) &&
           add_mean(b, "velocity_error_ratio", &row->error_ratio, 1) &&
           add_mean(b, "seconds_ratio", &row->seconds_ratio, 1);
}

int hs_eval_report_json(const char *path, const hs_eval_report *r, hs_err *err) {
    cJSON *list = cJSON_CreateArray();
    int ok = list != NULL;
    for (int i = 0; i < r->n && ok; i++) ok = add_row(list, r, &r->rows[i]);
    char *text = ok ? cJSON_Print(list) : NULL;
    cJSON_Delete(list);
    if (!text) return hs_fail(err, HS_ENOMEM, "no memory for %s", path);
    int rc = hs_newfile_text(path, text, err);
    cJSON_free(text);
    return rc;
}
