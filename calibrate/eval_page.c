/* The page of haste-eval: the table, curves of every method, and every single clip, because clips scatter far more than
 * their means do. */
#include "eval_report.h"
#include "json.h"
#include "plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_GROUPS = 64, MAX_SERIES = 24 };

typedef struct page {
    const hs_eval_report *r;
    hs_page *to;
    const char *group[MAX_GROUPS]; /* of the variants, without dense */
    int groups;
} page;

typedef const hs_eval_mean *(*pick)(const hs_eval_row *row);

static const hs_eval_mean *pick_psnr(const hs_eval_row *row) {
    return &row->m[HS_EVAL_PSNR];
}
static const hs_eval_mean *pick_ssim(const hs_eval_row *row) {
    return &row->m[HS_EVAL_SSIM];
}
static const hs_eval_mean *pick_error(const hs_eval_row *row) {
    return &row->m[HS_EVAL_VELOCITY_ERROR];
}
static const hs_eval_mean *pick_density(const hs_eval_row *row) {
    return &row->m[HS_EVAL_DENSITY];
}
static const hs_eval_mean *pick_speedup(const hs_eval_row *row) {
    return &row->speedup;
}

static int any(const page *p, pick of) {
    for (int i = 0; i < p->r->n; i++)
        if (strcmp(p->r->rows[i].variant, "dense") && of(&p->r->rows[i])->n > 0) return 1;
    return 0;
}

static int group_of(const page *p, const char *name) {
    for (int g = 0; g < p->groups; g++)
        if (!strcmp(p->group[g], name)) return g;
    return -1;
}

/* One curve per method through the means of its variants, in the order of x. */
static void curves(page *p, const char *title, const char *about, hs_axis x_axis, pick x_of, hs_axis y_axis,
                   pick y_of) {
    size_t room = (size_t)p->r->n;
    double *numbers = hs_alloc(4 * room * sizeof *numbers);
    const char **label = hs_alloc(room * sizeof *label);
    hs_series series[MAX_GROUPS] = {{0}};
    int at = 0;
    if (!numbers || !label || !any(p, y_of) || !any(p, x_of)) goto out;
    for (int g = 0; g < p->groups; g++) {
        double *x = numbers + at, *y = x + room, *low = y + room, *high = low + room;
        int n = 0;
        for (int i = 0; i < p->r->n; i++) {
            const hs_eval_row *row = &p->r->rows[i];
            const hs_eval_mean *mx = x_of(row), *my = y_of(row);
            if (strcmp(row->group, p->group[g]) || !strcmp(row->variant, "dense") || mx->n < 1 || my->n < 1) continue;
            int k = n++;
            for (; k > 0 && x[k - 1] > mx->mean; k--) { /* the place where the curve has it */
                x[k] = x[k - 1], y[k] = y[k - 1], low[k] = low[k - 1], high[k] = high[k - 1];
                label[at + k] = label[at + k - 1];
            }
            x[k] = mx->mean, y[k] = my->mean, low[k] = my->low, high[k] = my->high;
            label[at + k] = row->variant;
        }
        series[g] = (hs_series){.name = p->group[g],
                                .style = HS_PLOT_LINE | HS_PLOT_POINTS,
                                .color = g % HS_PLOT_COLORS,
                                .n = n,
                                .x = x,
                                .y = y,
                                .low = low,
                                .high = high,
                                .label = label + at};
        at += n;
    }
    hs_page_chart(
        p->to, &(hs_chart){.title = title, .about = about, .x = x_axis, .y = y_axis, .n = p->groups, .series = series});
out:
    hs_free(numbers);
    hs_free(label);
}

/* Every clip by itself. */
static void scatter(page *p, const char *title, const char *about, hs_axis x_axis, hs_eval_metric x_of, hs_axis y_axis,
                    hs_eval_metric y_of) {
    size_t room = (size_t)p->r->results->n;
    double *x = hs_alloc(2 * room * sizeof *x), *y = x + room;
    const char **label = hs_alloc(room * sizeof *label);
    hs_series series[MAX_GROUPS] = {{0}};
    char group[HS_EVAL_NAME];
    int n = 0;
    if (!x || !label) goto out;
    for (int g = 0; g < p->groups; g++) {
        int first = n;
        for (size_t i = 0; i < room; i++) {
            const hs_eval_result *c = &p->r->results->r[i];
            hs_eval_group(c->variant, group);
            if (strcmp(group, p->group[g]) || !strcmp(c->variant, "dense") || !isfinite(c->value[x_of]) ||
                !isfinite(c->value[y_of]))
                continue;
            x[n] = c->value[x_of];
            y[n] = c->value[y_of];
            label[n++] = c->variant;
        }
        series[g] = (hs_series){.name = p->group[g],
                                .style = HS_PLOT_POINTS,
                                .color = g % HS_PLOT_COLORS,
                                .n = n - first,
                                .x = x + first,
                                .y = y + first,
                                .label = label + first};
    }
    if (n > 0)
        hs_page_chart(
            p->to,
            &(hs_chart){.title = title, .about = about, .x = x_axis, .y = y_axis, .n = p->groups, .series = series});
out:
    hs_free(x);
    hs_free(label);
}

static int by_number(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* PSNR of every clip less that of the baseline, sorted: how often a variant wins, and how much hangs on few clips. */
static void gains(page *p) {
    const hs_eval_results *t = p->r->results;
    size_t room = (size_t)t->n;
    double *x = hs_alloc(2 * room * sizeof *x), *y = x + room;
    const char **label = hs_alloc(room * sizeof *label);
    hs_series series[MAX_SERIES] = {{0}};
    int n = 0, count = 0;
    for (int i = 0; x && label && i < p->r->n && count < MAX_SERIES; i++) {
        const hs_eval_row *row = &p->r->rows[i];
        int first = n;
        if (!strcmp(row->variant, "dense") || !row->compared) continue;
        for (int k = 0; k < t->n; k++) {
            const hs_eval_result *c = &t->r[k];
            if (strcmp(c->variant, row->variant)) continue;
            double gain = c->value[HS_EVAL_PSNR] - hs_eval_baseline(t, p->r->baseline, c, HS_EVAL_PSNR, 0, 0);
            if (!isfinite(gain)) continue;
            label[n] = row->variant;
            y[n++] = gain;
        }
        qsort(y + first, (size_t)(n - first), sizeof *y, by_number);
        for (int k = first; k < n; k++) x[k] = (k - first + 0.5) / (n - first);
        series[count++] = (hs_series){.name = row->variant,
                                      .style = HS_PLOT_LINE | HS_PLOT_POINTS,
                                      .color = i % HS_PLOT_COLORS,
                                      .n = n - first,
                                      .x = x + first,
                                      .y = y + first,
                                      .label = label + first};
    }
    static const double zero = 0;
    if (n && count < MAX_SERIES)
        series[count++] = (hs_series){
            .style = HS_PLOT_LINE | HS_PLOT_DASHED | HS_PLOT_ACROSS, .color = HS_PLOT_NEUTRAL, .n = 1, .y = &zero};
    if (n)
        hs_page_chart(p->to, &(hs_chart){.title = "PSNR gain of every clip",
                                         .about = "Against the baseline, sorted: where a line crosses zero it stops to "
                                                  "lose.",
                                         .x = {.label = "share of the clips"},
                                         .y = {.label = "PSNR less the baseline's, dB"},
                                         .n = count,
                                         .series = series});
    hs_free(x);
    hs_free(label);
}

static void page_note(void *user, const char *text) {
    hs_page_text(user, "%s", text);
}

static int table(page *p, hs_err *err) {
    hs_eval_cell *cells;
    int n, rc = hs_eval_report_cells(p->r, &cells, &n, err);
    if (rc) return rc;
    size_t all = (size_t)(p->r->n + 1) * (size_t)n;
    const char **text = hs_alloc(all * sizeof *text);
    if (text) {
        for (size_t i = 0; i < all; i++) text[i] = cells[i];
        hs_page_table(p->to, n, text, p->r->n, text + n);
    } else {
        rc = hs_fail(err, HS_ENOMEM, "no memory for the table");
    }
    hs_free(text);
    hs_free(cells);
    return rc;
}

static void figures(page *p) {
    const hs_axis density = {.label = "density (share of token pairs attended to)"};
    const hs_axis psnr = {.label = "PSNR against dense, dB"}, ssim = {.label = "SSIM against dense"};
    const hs_axis error = {.label = "velocity error", .log = 1}, speed = {.label = "speed-up over dense"};
    hs_page_section(p->to, "Quality against density",
                    "Means over clips with their 95 % intervals; one curve per method. Up and to the left is better.");
    hs_page_row_begin(p->to);
    curves(p, "PSNR", NULL, density, pick_density, psnr, pick_psnr);
    curves(p, "Velocity error", "Down and to the left is better.", density, pick_density, error, pick_error);
    curves(p, "SSIM", NULL, density, pick_density, ssim, pick_ssim);
    curves(p, "PSNR against speed", "Up and to the right is better.", speed, pick_speedup, psnr, pick_psnr);
    hs_page_row_end(p->to);
    hs_page_section(p->to, "Every clip",
                    "A small error may lead to quite another video: single clips scatter by many dB, so only "
                    "differences of means over many clips mean something.");
    hs_page_row_begin(p->to);
    scatter(p, "PSNR of every clip", NULL, density, HS_EVAL_DENSITY, psnr, HS_EVAL_PSNR);
    scatter(p, "PSNR against velocity error", "Does a smaller error of the velocity make a closer video?", error,
            HS_EVAL_VELOCITY_ERROR, psnr, HS_EVAL_PSNR);
    if (p->r->baseline) gains(p);
    hs_page_row_end(p->to);
}

static void clips(page *p, const char *const *videos) {
    if (!videos || !*videos) return;
    FILE *to = hs_page_file(p->to);
    hs_page_section(p->to, "Side by side", "Left: dense; right: the variant, from the same noise.");
    for (; *videos; videos++) {
        fputs("<figure><video controls loop muted preload=\"metadata\" style=\"max-width:100%\" src=\"", to);
        hs_page_escape(to, *videos);
        fputs("\"></video><figcaption>", to);
        hs_page_escape(to, *videos);
        fputs("</figcaption></figure>\n", to);
    }
}

/* "256x256, 33 frames, 30 steps, guidance 4, shift 3, unipc A": of the journals' identity. */
static void settings(const char *identity, char *ret, size_t size) {
    static const char *const number[] = {"width", "height", "frames", "steps", "guidance", "shift"};
    double v[sizeof number / sizeof *number] = {0};
    cJSON *o = identity ? cJSON_Parse(identity) : NULL;
    for (size_t i = 0; i < sizeof number / sizeof *number; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(o, number[i]);
        if (cJSON_IsNumber(item)) v[i] = item->valuedouble;
    }
    const char *solver = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "solver"));
    const char *sigmas = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "sigmas"));
    snprintf(ret, size, "Sparse against dense attention: %gx%g, %g frames, %g steps, guidance %g, shift %g, %s %s",
             v[0], v[1], v[2], v[3], v[4], v[5], solver ? solver : "", sigmas ? sigmas : "");
    cJSON_Delete(o);
}

int hs_eval_report_page(const char *path, const hs_eval_report *r, const char *const *videos, hs_err *err) {
    page p = {.r = r};
    char subtitle[256], clips_text[16], variants_text[16];
    int most = 0;
    for (int i = 0; i < r->n; i++) {
        const hs_eval_row *row = &r->rows[i];
        if (row->n > most) most = row->n;
        if (strcmp(row->variant, "dense") && group_of(&p, row->group) < 0 && p.groups < MAX_GROUPS)
            p.group[p.groups++] = row->group;
    }
    settings(r->results->identity, subtitle, sizeof subtitle);
    int rc = hs_page_open(path, "haste-eval", subtitle, &p.to, err);
    if (rc) return rc;
    snprintf(clips_text, sizeof clips_text, "%d", most);
    snprintf(variants_text, sizeof variants_text, "%d", r->n - 1);
    hs_page_facts(p.to, 2, (const char *const[]){clips_text, variants_text},
                  (const char *const[]){"clips", "variants"});
    figures(&p);
    hs_page_section(p.to, "Table", NULL);
    rc = table(&p, err);
    hs_eval_report_notes(r, page_note, p.to);
    hs_page_section(p.to, "Variants", NULL);
    for (int i = 0; i < r->n; i++) hs_page_text(p.to, "%s: %s", r->rows[i].variant, r->rows[i].what);
    clips(&p, videos);
    hs_err late = {0};
    if (hs_page_close(p.to, &late) && !rc) rc = hs_fail(err, late.code, "%s", late.msg);
    return rc;
}
