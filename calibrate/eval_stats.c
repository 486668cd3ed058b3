/* Rows of the table: means over clips with bootstrap intervals, and comparisons that pair clips. */
#include "eval_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RESAMPLES = 4000 };

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double value_of(int kind, double a, double b, int n) {
    return kind == HS_EVAL_DIFFERENCE ? (a - b) / n : kind == HS_EVAL_RATIO ? (b > 0 ? a / b : INFINITY) : a / n;
}

/* Every call draws the same clips for the same n: rows and metrics are comparable, and a table can be made again. */
hs_eval_mean hs_eval_bootstrap(int n, const double *a, const double *b, int kind) {
    hs_eval_mean m = {NAN, NAN, NAN, NAN, n};
    double *x = hs_alloc((size_t)(n > RESAMPLES ? n : RESAMPLES) * sizeof *x), sa = 0, sb = 0;
    if (n < 1 || !x) {
        hs_free(x);
        return m;
    }
    for (int i = 0; i < n; i++) {
        sa += a[i];
        sb += b ? b[i] : 0;
        x[i] = value_of(kind, a[i], b ? b[i] : 0, 1);
    }
    m.mean = value_of(kind, sa, sb, n);
    qsort(x, (size_t)n, sizeof *x, by_value);
    m.median = n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
    for (int k = 0; k < RESAMPLES && n > 1; k++) {
        sa = sb = 0;
        for (int i = 0; i < n; i++) {
            int at = (int)(hs_hash64((uint64_t)k << 32 | (uint64_t)i) % (uint64_t)n);
            sa += a[at];
            sb += b ? b[at] : 0;
        }
        x[k] = value_of(kind, sa, sb, n);
    }
    if (n > 1) {
        qsort(x, RESAMPLES, sizeof *x, by_value);
        m.low = x[RESAMPLES / 40];
        m.high = x[RESAMPLES - 1 - RESAMPLES / 40];
    }
    hs_free(x);
    return m;
}

void hs_eval_group(const char *name, char *ret) {
    size_t n = strcspn(name, "/");
    if (!name[n]) {
        n = strcspn(name, "0123456789");
        while (n && strchr("._+=-", name[n - 1])) n--;
    }
    if (!n) n = strlen(name);
    snprintf(ret, HS_EVAL_NAME, "%.*s", (int)n, name);
}

/* ---- pairs ------------------------------------------------------------------------------------------------------ */
int hs_eval_has_variant(const hs_eval_results *t, const char *name) {
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->r[i].variant, name)) return 1;
    return 0;
}

/* Between two points of a curve; errors span decades, so their logarithms are what is straight. */
static double between(const hs_eval_result *low, const hs_eval_result *high, double density, hs_eval_metric m) {
    double x = low->value[HS_EVAL_DENSITY], width = high->value[HS_EVAL_DENSITY] - x;
    double u = low->value[m], v = high->value[m], f = width > 0 ? (density - x) / width : 0;
    if (m == HS_EVAL_VELOCITY_ERROR && u > 0 && v > 0) return u * pow(v / u, f);
    return u + f * (v - u);
}

static double on_curve(const hs_eval_results *t, const char *group, const hs_eval_result *of, hs_eval_metric m,
                       int timed, int warm) {
    const hs_eval_result *low = NULL, *high = NULL;
    double density = of->value[HS_EVAL_DENSITY];
    char name[HS_EVAL_NAME];
    for (int i = 0; i < t->n; i++) {
        const hs_eval_result *r = &t->r[i];
        double x = r->value[HS_EVAL_DENSITY];
        if (r->seed != of->seed || strcmp(r->prompt, of->prompt) || !isfinite(r->value[m]) || (warm && !r->warm) ||
            (timed && strcmp(r->run, of->run)))
            continue;
        hs_eval_group(r->variant, name);
        if (strcmp(name, group)) continue;
        if (x <= density && (!low || x > low->value[HS_EVAL_DENSITY])) low = r;
        if (x >= density && (!high || x < high->value[HS_EVAL_DENSITY])) high = r;
    }
    return low && high ? between(low, high, density, m) : NAN;
}

double hs_eval_baseline(const hs_eval_results *t, const char *name, const hs_eval_result *of, hs_eval_metric m,
                        int timed, int warm) {
    if (!hs_eval_has_variant(t, name)) return on_curve(t, name, of, m, timed, warm);
    const hs_eval_result *r = hs_eval_results_find(t, of->prompt, of->seed, name);
    return r && (!timed || !strcmp(r->run, of->run)) && (!warm || r->warm) ? r->value[m] : NAN;
}

/* Which clips of one variant count, and what they are compared with. timed: of the same process. */
typedef struct selection {
    const hs_eval_results *t;
    const char *variant, *other; /* other NULL: no partner */
    int timed, warm;
} selection;

/* Values of a metric where they are finite (of both). a, b: room for all results. */
static int gather(const selection *s, hs_eval_metric metric, double *a, double *b) {
    int n = 0;
    for (int i = 0; i < s->t->n; i++) {
        const hs_eval_result *r = &s->t->r[i];
        if (strcmp(r->variant, s->variant) || (s->warm && !r->warm) || !isfinite(r->value[metric])) continue;
        a[n] = r->value[metric];
        b[n] = s->other ? hs_eval_baseline(s->t, s->other, r, metric, s->timed, s->warm) : 0;
        n += isfinite(b[n]) != 0;
    }
    return n;
}

static int is_time(int metric) {
    return metric >= HS_EVAL_SECONDS && metric <= HS_EVAL_ATTEND;
}

static hs_eval_mean compare(const selection *s, hs_eval_metric metric, int kind, double *a, double *b) {
    return hs_eval_bootstrap(gather(s, metric, a, b), a, b, kind);
}

static void fill(const hs_eval_results *t, const char *baseline, hs_eval_row *row, double *a, double *b) {
    selection own = {.t = t, .variant = row->variant};
    selection warm = {.t = t, .variant = row->variant, .warm = 1};
    row->cold = !gather(&warm, HS_EVAL_SECONDS, a, b);
    warm.warm = !row->cold;
    for (int m = 0; m < HS_EVAL_METRICS; m++)
        row->m[m] =
            hs_eval_bootstrap(gather(is_time(m) ? &warm : &own, (hs_eval_metric)m, a, b), a, NULL, HS_EVAL_OF_A);
    /* seconds of different processes are not comparable: other clips ran beside them, or another machine ran them */
    selection dense = {t, row->variant, "dense", 1, !row->cold};
    int n = gather(&dense, HS_EVAL_SECONDS, a, b);
    row->speedup = hs_eval_bootstrap(n, b, a, HS_EVAL_RATIO);
    row->compared = baseline && strcmp(row->variant, baseline) &&
                    (hs_eval_has_variant(t, baseline) || strcmp(row->group, baseline));
    if (!row->compared) return;
    selection pair = {t, row->variant, baseline, 0, 0}, timed = {t, row->variant, baseline, 1, !row->cold};
    row->psnr_gain = compare(&pair, HS_EVAL_PSNR, HS_EVAL_DIFFERENCE, a, b);
    row->ssim_gain = compare(&pair, HS_EVAL_SSIM, HS_EVAL_DIFFERENCE, a, b);
    row->density_change = compare(&pair, HS_EVAL_DENSITY, HS_EVAL_DIFFERENCE, a, b);
    row->error_ratio = compare(&pair, HS_EVAL_VELOCITY_ERROR, HS_EVAL_RATIO, a, b);
    row->seconds_ratio = compare(&timed, HS_EVAL_SECONDS, HS_EVAL_RATIO, a, b);
}

static hs_eval_row *row_of(hs_eval_row *rows, int n, const char *variant) {
    for (int i = 0; i < n; i++)
        if (!strcmp(rows[i].variant, variant)) return &rows[i];
    return NULL;
}

int hs_eval_rows(const hs_eval_results *t, const char *baseline, hs_eval_row **ret, int *ret_n, hs_err *err) {
    size_t room = (size_t)t->n + 1;
    hs_eval_row *rows = hs_calloc(room, sizeof *rows);
    double *a = hs_alloc(2 * room * sizeof *a);
    int n = 0, rc = 0;
    if (!rows || !a) {
        rc = hs_fail(err, HS_ENOMEM, "no memory for the table");
        goto out;
    }
    for (int dense = 1; dense >= 0; dense--) /* dense first */
        for (int i = 0; i < t->n; i++) {
            const hs_eval_result *r = &t->r[i];
            hs_eval_row *row = row_of(rows, n, r->variant);
            if ((strcmp(r->variant, "dense") == 0) != dense) continue;
            if (!row) {
                row = &rows[n++];
                row->variant = r->variant;
                row->what = r->what;
                hs_eval_group(r->variant, row->group);
            }
            row->n++;
            row->identical += r->identical;
        }
    int known = !baseline;
    for (int i = 0; i < n && !known; i++)
        known = !strcmp(rows[i].variant, baseline) || !strcmp(rows[i].group, baseline);
    if (!known) {
        rc = hs_fail(err, HS_EINVAL, "--baseline %s: no variant and no group of that name was measured", baseline);
        goto out;
    }
    for (int i = 0; i < n; i++) fill(t, baseline, &rows[i], a, a + room);
    *ret = rows;
    *ret_n = n;
    rows = NULL;
out:
    hs_free(rows);
    hs_free(a);
    return rc;
}
