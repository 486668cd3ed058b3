/* A self-contained HTML page with tables, charts and heat maps as inline SVG: the reports of haste-calibrate and
 * haste-eval. No scripts, no network, light and dark by the reader's preference; every mark says its numbers on hover,
 * every figure has a title and a description for screen readers.
 *
 *     hs_page *page;
 *     hs_page_open("report.html", "Calibration of demo", "xattention, 30 heads", &page, err);
 *     hs_page_section(page, "Sparsity", "What every head may drop.");
 *     hs_page_heat(page, &heat);
 *     hs_page_close(page, err);                               // says whether all of it was written
 *
 * All texts are UTF-8 and escaped here. Functions between open and close cannot fail: the first failure is kept.
 */
#ifndef HS_PLOT_H
#define HS_PLOT_H
#include "base.h"

#include <stdio.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_page hs_page;

int hs_page_open(const char *path, const char *title, const char *subtitle, hs_page **ret, hs_err *err);
/* Accepts NULL. HS_EIO if anything could not be written; the file is then removed. */
int hs_page_close(hs_page *page, hs_err *err);

/* text NULL: none */
void hs_page_section(hs_page *page, const char *title, const char *text);
void hs_page_text(hs_page *page, const char *fmt, ...) HS_PRINTF(2, 3);
/* Figures between begin and end stand side by side where the window is wide enough. */
void hs_page_row_begin(hs_page *page);
void hs_page_row_end(hs_page *page);
/* A few large numbers: value[i] over label[i]. */
void hs_page_facts(hs_page *page, int n, const char *const *value, const char *const *label);
/* head [columns], cells [rows, columns]; NULL cells are empty. Cells that begin with a digit or sign are aligned right.
 */
void hs_page_table(hs_page *page, int columns, const char *const *head, int rows, const char *const *cells);
/* For what the functions here have no word for (a <video>). */
FILE *hs_page_file(hs_page *page);
void hs_page_escape(FILE *to, const char *text);

/* ---- charts ----------------------------------------------------------------------------------------------------- */
enum { HS_PLOT_COLORS = 8, HS_PLOT_NEUTRAL = -1 };

enum {
    HS_PLOT_LINE = 1,
    HS_PLOT_POINTS = 2,
    HS_PLOT_DASHED = 4,
    HS_PLOT_FAINT = 8,    /* many lines of which no single one matters */
    HS_PLOT_LABELS = 16,  /* write label beside the points, not only on hover */
    HS_PLOT_ACROSS = 32,  /* a line over the whole width at y[0]: a limit; widens the y axis, not the x axis */
    HS_PLOT_DIAGONAL = 64 /* y = x; needs no points */
};

typedef struct hs_series {
    const char *name; /* in the legend, NULL = not there */
    int style, color; /* 0 .. HS_PLOT_COLORS - 1, or HS_PLOT_NEUTRAL */
    int n;
    const double *x, *y;      /* [n]; what is not finite (or not above 0 on a log axis) is left out */
    const double *low, *high; /* [n] interval of y, or NULL */
    const char *const *label; /* [n] in front of the numbers on hover, or NULL */
} hs_series;

typedef struct hs_axis {
    const char *label; /* with its unit: "sparsity of the head (share of token pairs dropped)" */
    int log;
    double low, high; /* both 0: from the data */
} hs_axis;

typedef struct hs_chart {
    const char *title, *about; /* about: one sentence under it; NULL = none */
    hs_axis x, y;
    int n;
    const hs_series *series;
} hs_chart;

void hs_page_chart(hs_page *page, const hs_chart *c);

/* ---- heat maps -------------------------------------------------------------------------------------------------- */
typedef struct hs_heat {
    const char *title, *about;
    const char *row, *column; /* what rows and columns are: "layer", "head" */
    const char *unit;         /* what the colour says: "top-p" */
    int rows, columns;
    const double *value; /* [rows, columns], row 0 on top; NAN = an empty cell */
    int log;
    double low, high; /* both 0: from the data */
    int reversed;     /* small values stand out */
    int decimals;     /* of numbers in the cells and scale; -1 = two significant digits */
} hs_heat;

void hs_page_heat(hs_page *page, const hs_heat *h);

#ifdef __cplusplus
}
#endif
#endif
