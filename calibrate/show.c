/* The terminal view of a profile. Cells get as many columns as fit: three or two digits of the threshold, or one. */
#include "show.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

hs_show_style hs_show_detect(FILE *to) {
    const char *none = getenv("NO_COLOR"), *term = getenv("TERM"), *color = getenv("COLORTERM");
    const char *columns = getenv("COLUMNS");
    hs_show_style s = {HS_SHOW_PLAIN, 80};
    struct winsize size;
    int fd = fileno(to), tty = isatty(fd);
    if (tty && !ioctl(fd, TIOCGWINSZ, &size) && size.ws_col > 0) s.width = size.ws_col;
    if (columns && atoi(columns) > 0) s.width = atoi(columns);
    if (!tty || (none && *none) || !term || !strcmp(term, "dumb")) return s;
    s.color = HS_SHOW_256;
    if (color && (!strcmp(color, "truecolor") || !strcmp(color, "24bit"))) s.color = HS_SHOW_TRUECOLOR;
    return s;
}

/* ---- budgets ---------------------------------------------------------------------------------------------------- */

static void print_known(FILE *to, double v, const char *format, int width) {
    char text[32] = "-";
    if (isfinite(v)) snprintf(text, sizeof text, format, v);
    fprintf(to, "  %*s", width, text);
}

void hs_show_budgets(FILE *to, const hs_profile *p) {
    fputs("  target  sparsity  predicted error      bound      gap  joint error  top-p (mean)\n", to);
    for (int i = 0; i < p->n_budgets; i++) {
        const hs_profile_budget *b = &p->budgets[i];
        float low = 1, high = 0;
        double sum = 0;
        int n = b->intervals * p->layers * p->heads;
        for (int h = 0; h < n; h++) {
            low = fminf(low, b->top_p[h]), high = fmaxf(high, b->top_p[h]);
            sum += (double)b->top_p[h];
        }
        fprintf(to, "  %6.4g", b->target);
        print_known(to, b->sparsity, "%.4f", 8);
        print_known(to, b->error, "%.4g", 15);
        print_known(to, b->bound, "%.3g", 9);
        print_known(to, b->gap, b->gap > 0 ? "%.1e" : "%g", 7);
        print_known(to, b->joint_error, "%.4g", 11);
        fprintf(to, "  %g to %g (%.3f)\n", (double)low, (double)high, sum / n);
    }
}

/* ---- the map ---------------------------------------------------------------------------------------------------- */

/* Light for dense, strong for sparse; the scale runs over the thresholds of the profile. */
static void cell_color(double t, int ret[3]) {
    static const int stop[3][3] = {{0xdf, 0xe9, 0xf4}, {0x5b, 0x9b, 0xd8}, {0x0c, 0x2f, 0x6b}};
    int from = t < 0.5 ? 0 : 1;
    double f = 2 * t - from;
    for (int c = 0; c < 3; c++) ret[c] = (int)(stop[from][c] + f * (stop[from + 1][c] - stop[from][c]) + 0.5);
}

static void begin_color(FILE *to, hs_show_color color, double t) {
    int c[3];
    if (color == HS_SHOW_PLAIN) return;
    cell_color(t, c);
    int dark = 299 * c[0] + 587 * c[1] + 114 * c[2] < 128000;
    if (color == HS_SHOW_TRUECOLOR)
        fprintf(to, "\033[48;2;%d;%d;%dm\033[38;2;%sm", c[0], c[1], c[2], dark ? "255;255;255" : "20;23;26");
    else
        fprintf(to, "\033[48;5;%dm\033[38;5;%dm",
                16 + 36 * ((c[0] + 25) / 51) + 6 * ((c[1] + 25) / 51) + (c[2] + 25) / 51, dark ? 231 : 16);
}

/* Thresholds in hundredths, D for dense: " 85", "85", or only tenths: "8". */
static void print_cell(FILE *to, double p, int width) {
    int hundredths = (int)(p * 100 + 0.5);
    if (p >= 1)
        fprintf(to, "%*s", width, "D");
    else if (width == 1)
        fprintf(to, "%d", (int)(p * 10 + 1e-6));
    else
        fprintf(to, "%*d", width, hundredths > 99 ? 99 : hundredths);
}

enum { LABEL = 7, TAIL = 7 }; /* columns of "layer" and of the mean of the row */

static int cell_width(const hs_profile *p, const hs_show_style *style) {
    int room = style->width - LABEL - TAIL;
    return room >= 3 * p->heads ? 3 : room >= 2 * p->heads ? 2 : 1;
}

/* The thresholds top_p [layers, heads]; low: the least of all that are compared. */
static void print_map(FILE *to, const hs_profile *p, const float *top_p, double low, const hs_show_style *style) {
    const int cell = cell_width(p, style);
    fprintf(to, "%*s", LABEL, "layer ");
    for (int h = 0; h < p->heads; h++)
        if (cell == 3 || h % 5 == 0) fprintf(to, "%*d", cell == 3 ? 3 : h ? 5 * cell : cell, h);
    fputs(cell == 3 ? "   mean\n" : "\n", to);
    for (int l = 0; l < p->layers; l++) {
        double sum = 0;
        fprintf(to, "%*d ", LABEL - 1, l);
        for (int h = 0; h < p->heads; h++) {
            double v = (double)top_p[l * p->heads + h];
            begin_color(to, style->color, low < 1 ? (1 - v) / (1 - low) : 0);
            print_cell(to, v, cell);
            sum += v;
        }
        if (style->color != HS_SHOW_PLAIN) fputs("\033[0m", to);
        fprintf(to, "   %.2f\n", sum / p->heads);
    }
}

static void print_budget(FILE *to, const hs_profile *p, int budget, const hs_show_style *style) {
    const hs_profile_budget *b = &p->budgets[budget];
    const int cells = p->layers * p->heads;
    double low = 1;
    hs_attn_policy a = {.intervals = 1};
    fprintf(to, "\nbudget %.4g\n", b->target);
    for (int i = 0; i < b->intervals * cells; i++) low = fmin(low, (double)b->top_p[i]);
    hs_profile_policy(p, budget, p->steps, &a, NULL); /* which steps an interval has */
    for (int i = 0; i < b->intervals; i++) {
        int from = a.interval_start[i], end = i + 1 < b->intervals ? a.interval_start[i + 1] : p->steps;
        if (b->intervals > 1)
            fprintf(to, "%ssteps %d to %d of %d%s\n", i ? "\n" : "", from, end - 1, p->steps,
                    end > from ? "" : " (none)");
        print_map(to, p, b->top_p + i * cells, low, style);
    }
    fprintf(to, "%*s(%s of top-p; D = dense; right: mean of the layer)\n", LABEL, "",
            cell_width(p, style) == 1 ? "first digit" : "two digits");
}

void hs_show(FILE *to, const hs_profile *p, int budget, const hs_show_style *style) {
    fprintf(to, "%s: %s, %d layers x %d heads, %s\n", p->path, p->model, p->layers, p->heads,
            hs_method_name(p->policy.method));
    fprintf(to, "made by %s at %s for %dx%d, %d frames, %d %s steps, guidance %g, shift %g\n", p->made_by, p->made_at,
            p->width, p->height, p->frames, p->steps, hs_solver_name(p->solver), p->guidance, p->shift);
    if (p->policy.dense_steps || p->policy.dense_layers)
        fprintf(to, "dense: first %d steps, first %d layers\n", p->policy.dense_steps, p->policy.dense_layers);
    if (p->has_calibration)
        fprintf(to, "calibrated on %d thresholds in %d step intervals, error %s\n", p->n_candidates, p->n_intervals,
                p->error_name);
    hs_show_budgets(to, p);
    for (int i = 0; i < p->n_budgets; i++) {
        if (budget >= 0 && i != budget) continue;
        print_budget(to, p, i, style);
    }
}
