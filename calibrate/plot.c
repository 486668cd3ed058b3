/* Charts and heat maps as inline SVG. Coordinates are CSS pixels of a figure 620 wide; the page scales it. */
#include "plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 620, HEIGHT = 380, LEFT = 74, RIGHT = 18, TOP = 12, BOTTOM = 50, MAX_TICKS = 16 };

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

typedef char text48[48];

/* As people write it: 0.35, 1200, 4.2e-5. */
static const char *print(double v, int digits, text48 ret) {
    snprintf(ret, sizeof(text48), "%.*g", digits, v);
    char *e = strchr(ret, 'e');
    if (e) snprintf(e, 8, "e%d", atoi(e + 1));
    return ret;
}

/* 10 to the k, in superscript digits of UTF-8. */
static const char *print_power(int k, text48 ret) {
    static const char *const digit[] = {"\u2070", "\u00b9", "\u00b2", "\u00b3", "\u2074",
                                        "\u2075", "\u2076", "\u2077", "\u2078", "\u2079"};
    char plain[16];
    snprintf(plain, sizeof plain, "%d", k);
    snprintf(ret, sizeof(text48), "10");
    for (const char *c = plain; *c; c++) strcat(ret, *c == '-' ? "\u207b" : digit[*c - '0']);
    return ret;
}

/* ---- axes ------------------------------------------------------------------------------------------------------- */

typedef struct scale {
    int log;
    double low, high; /* of the value, or of its log10 */
    double from, to;  /* in pixels */
} scale;

static int drawable(const hs_axis *a, double v) {
    return isfinite(v) && (!a->log || v > 0);
}

static double place(const scale *s, double v) {
    double t = ((s->log ? log10(v) : v) - s->low) / (s->high - s->low);
    return s->from + fmin(fmax(t, -1), 2) * (s->to - s->from);
}

static void widen(const hs_axis *a, double v, double *low, double *high) {
    if (!drawable(a, v)) return;
    *low = fmin(*low, v);
    *high = fmax(*high, v);
}

/* The range of the data with room around it, or the one that was asked for. */
static scale make_scale(const hs_axis *a, double low, double high, double from, double to) {
    scale s = {a->log, low, high, from, to};
    int fixed = a->low != 0 || a->high != 0;
    if (fixed) s.low = a->low, s.high = a->high;
    if (!(s.low <= s.high)) s.low = a->log ? 0.1 : 0, s.high = 1; /* no data */
    if (a->log) s.low = log10(s.low), s.high = log10(s.high);
    double room = fixed ? 0 : 0.05 * (s.high - s.low);
    if (s.high - s.low < 1e-9 * fmax(1, fabs(s.high))) room = s.log ? 0.5 : fmax(0.5 * fabs(s.high), 0.5);
    int positive = low >= 0;
    s.low -= room, s.high += room;
    if (!a->log && !fixed && positive && s.low < 0) s.low = 0;
    return s;
}

/* Round values inside the scale. Linear: steps of 1, 2 or 5. Log: decades, with 2 and 5 between when there are few. */
static int ticks(const scale *s, double ret[MAX_TICKS]) {
    int n = 0;
    if (s->log) {
        int first = (int)ceil(s->low - 1e-9), last = (int)floor(s->high + 1e-9), every = 1;
        while ((last - first) / every > 7) every++;
        for (int k = first - 1; k <= last && n + 3 <= MAX_TICKS; k++) {
            static const double part[] = {1, 2, 5};
            for (int i = 0; i < (last - first < 2 ? 3 : 1); i++) {
                double v = part[i] * pow(10, k), at = log10(v);
                if (at >= s->low - 1e-9 && at <= s->high + 1e-9 && (k - first) % every == 0) ret[n++] = v;
            }
        }
        return n;
    }
    double step = pow(10, floor(log10((s->high - s->low) / 4)));
    while ((s->high - s->low) / step > 8) step *= (s->high - s->low) / step > 16 ? 5 : 2;
    for (double k = ceil(s->low / step - 1e-9); k * step <= s->high + 1e-9 * step && n < MAX_TICKS; k++)
        ret[n++] = fabs(k) < 0.5 ? 0 : k * step;
    return n;
}

static const char *print_tick(const scale *s, double v, text48 ret) {
    double k = log10(v);
    if (s->log && fabs(k - rint(k)) < 1e-6 && (k < -2.5 || k > 3.5)) return print_power((int)rint(k), ret);
    return print(v, 4, ret);
}

static void axes(FILE *f, const hs_chart *c, const scale *x, const scale *y) {
    double at[MAX_TICKS];
    text48 text;
    int n = ticks(y, at);
    for (int i = 0; i < n; i++)
        fprintf(f,
                "<line class=\"grid\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/>"
                "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
                x->from, x->to, place(y, at[i]), place(y, at[i]), x->from - 8, place(y, at[i]) + 4,
                print_tick(y, at[i], text));
    n = ticks(x, at);
    for (int i = 0; i < n; i++)
        fprintf(f,
                "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%g\" y2=\"%g\"/>"
                "<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%s</text>\n",
                place(x, at[i]), place(x, at[i]), y->from, y->to, place(x, at[i]), y->from + 18,
                print_tick(x, at[i], text));
    fprintf(
        f, "<path class=\"frame\" d=\"M%g %gV%gH%g\"/>\n<text class=\"axis\" x=\"%g\" y=\"%g\" text-anchor=\"middle\">",
        x->from, y->to, y->from, x->to, (x->from + x->to) / 2, y->from + 40);
    hs_page_escape(f, c->x.label);
    fprintf(f, "</text>\n<text class=\"axis\" transform=\"translate(16 %g) rotate(-90)\" text-anchor=\"middle\">",
            (y->from + y->to) / 2);
    hs_page_escape(f, c->y.label);
    fputs("</text>\n", f);
}

/* ---- charts ----------------------------------------------------------------------------------------------------- */

static void color_name(const hs_series *s, char ret[4]) {
    if (s->color < 0)
        strcpy(ret, "n");
    else
        snprintf(ret, 4, "%d", s->color % HS_PLOT_COLORS);
}

static const char *line_class(const hs_series *s) {
    static const char *const name[] = {"line", "line dash", "line faint", "line dash faint"};
    return name[(s->style & HS_PLOT_DASHED ? 1 : 0) + (s->style & HS_PLOT_FAINT ? 2 : 0)];
}

static void legend(FILE *f, const hs_chart *c) {
    int named = 0;
    for (int i = 0; i < c->n; i++) named += c->series[i].name != NULL;
    if (!named) return;
    fputs("<ul class=\"legend\">", f);
    for (int i = 0; i < c->n; i++) {
        const hs_series *s = &c->series[i];
        char color[4];
        if (!s->name) continue;
        color_name(s, color);
        fputs("<li><svg viewBox=\"0 0 26 10\" aria-hidden=\"true\">", f);
        if (s->style & (HS_PLOT_LINE | HS_PLOT_ACROSS | HS_PLOT_DIAGONAL))
            fprintf(f, "<path class=\"%s l%s\" d=\"M2 5H24\"/>", line_class(s), color);
        if (s->style & HS_PLOT_POINTS) fprintf(f, "<circle class=\"dot f%s\" cx=\"13\" cy=\"5\" r=\"4.5\"/>", color);
        fputs("</svg>", f);
        hs_page_escape(f, s->name);
        fputs("</li>", f);
    }
    fputs("</ul>\n", f);
}

static void hover(FILE *f, const hs_series *s, int i) {
    text48 a, b;
    fputs("<title>", f);
    if (s->name) hs_page_escape(f, s->name), fputs(": ", f);
    if (s->label && s->label[i]) hs_page_escape(f, s->label[i]), fputs(": ", f);
    fprintf(f, "(%s, %s)", print(s->x[i], 4, a), print(s->y[i], 4, b));
    if (s->low && s->high) fprintf(f, " from %s to %s", print(s->low[i], 4, a), print(s->high[i], 4, b));
    fputs("</title>", f);
}

static void draw_line(FILE *f, const hs_chart *c, const hs_series *s, const scale *x, const scale *y) {
    char color[4];
    int open = 0;
    color_name(s, color);
    for (int i = 0; i <= s->n; i++) {
        int here = i < s->n && drawable(&c->x, s->x[i]) && drawable(&c->y, s->y[i]);
        if (here && !open) fprintf(f, "<polyline class=\"%s l%s\" points=\"", line_class(s), color);
        if (here) fprintf(f, "%.1f,%.1f ", place(x, s->x[i]), place(y, s->y[i]));
        if (!here && open) {
            fputs("\">", f);
            if (s->label && s->label[0] && !(s->style & HS_PLOT_POINTS)) {
                fputs("<title>", f);
                hs_page_escape(f, s->label[0]);
                fputs("</title>", f);
            }
            fputs("</polyline>\n", f);
        }
        open = here;
    }
}

static void draw_points(FILE *f, const hs_chart *c, const hs_series *s, const scale *x, const scale *y) {
    char color[4];
    double label_x = -INFINITY, label_y = 0;
    color_name(s, color);
    for (int i = 0; i < s->n; i++) {
        if (!drawable(&c->x, s->x[i]) || !drawable(&c->y, s->y[i])) continue;
        double px = place(x, s->x[i]), py = place(y, s->y[i]);
        fputs("<g class=\"hit\">", f);
        hover(f, s, i);
        if (s->low && s->high && drawable(&c->y, s->low[i]) && drawable(&c->y, s->high[i]))
            fprintf(f, "<path class=\"bar l%s\" d=\"M%.1f %.1fV%.1fm-4 0h8M%.1f %.1fh8\"/>", color, px,
                    place(y, s->low[i]), place(y, s->high[i]), px - 4, place(y, s->low[i]));
        fprintf(f, "<circle class=\"dot f%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\"/>", color, px, py,
                s->style & HS_PLOT_FAINT ? 3.2 : 4.8);
        if (s->style & HS_PLOT_LABELS && s->label && s->label[i] &&
            (fabs(px - label_x) > 36 || fabs(py - label_y) > 13)) { /* not over the one before */
            int right = px < x->from + 36;                          /* no room between the point and the axis */
            fprintf(f, "<text class=\"note\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", right ? px + 8 : px - 5,
                    right ? py + 15 : py - 7, right ? "start" : "end");
            hs_page_escape(f, s->label[i]);
            fputs("</text>", f);
            label_x = px, label_y = py;
        }
        fputs("</g>\n", f);
    }
}

/* From corner to corner of what both axes show. */
static void draw_diagonal(FILE *f, const hs_series *s, const scale *x, const scale *y) {
    char color[4];
    double low = fmax(x->low, y->low), high = fmin(x->high, y->high);
    color_name(s, color);
    if (x->log != y->log || low >= high) return;
    double a = x->log ? pow(10, low) : low, b = x->log ? pow(10, high) : high;
    fprintf(f, "<path class=\"%s l%s\" d=\"M%.1f %.1fL%.1f %.1f\"/>\n", line_class(s), color, place(x, a), place(y, a),
            place(x, b), place(y, b));
}

static void figure_begin(FILE *f, const char *kind, const char *title, const char *about) {
    fprintf(f, "<figure class=\"%s\"><figcaption><b>", kind);
    hs_page_escape(f, title);
    fputs("</b>", f);
    if (about) {
        fputs("<span>", f);
        hs_page_escape(f, about);
        fputs("</span>", f);
    }
    fputs("</figcaption>\n", f);
}

static void svg_begin(FILE *f, double width, double height, const char *title, const char *about) {
    fprintf(f, "<svg viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" role=\"img\" aria-label=\"", width, height, width,
            height);
    hs_page_escape(f, title);
    if (about) {
        fputs(". ", f);
        hs_page_escape(f, about);
    }
    fputs("\">\n", f);
}

void hs_page_chart(hs_page *page, const hs_chart *c) {
    FILE *f = hs_page_file(page);
    double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
    for (int k = 0; k < c->n; k++) {
        const hs_series *s = &c->series[k];
        if (s->style & HS_PLOT_ACROSS) widen(&c->y, s->y[0], &y0, &y1);
        for (int i = 0; i < s->n && !(s->style & (HS_PLOT_ACROSS | HS_PLOT_DIAGONAL)); i++) {
            if (!drawable(&c->x, s->x[i]) || !drawable(&c->y, s->y[i])) continue;
            widen(&c->x, s->x[i], &x0, &x1);
            widen(&c->y, s->y[i], &y0, &y1);
            if (s->low && s->high) widen(&c->y, s->low[i], &y0, &y1), widen(&c->y, s->high[i], &y0, &y1);
        }
    }
    scale x = make_scale(&c->x, x0, x1, LEFT, WIDTH - RIGHT), y = make_scale(&c->y, y0, y1, HEIGHT - BOTTOM, TOP);
    figure_begin(f, "chart", c->title, c->about);
    legend(f, c);
    svg_begin(f, WIDTH, HEIGHT, c->title, c->about);
    axes(f, c, &x, &y);
    for (int k = 0; k < c->n; k++) {
        const hs_series *s = &c->series[k];
        const double across[2] = {x.log ? pow(10, x.low) : x.low, x.log ? pow(10, x.high) : x.high};
        if (s->style & HS_PLOT_ACROSS)
            draw_line(f, c,
                      &(hs_series){.style = s->style,
                                   .color = s->color,
                                   .n = 2,
                                   .x = across,
                                   .y = (const double[]){s->y[0], s->y[0]},
                                   .label = &s->name},
                      &x, &y);
        else if (s->style & HS_PLOT_DIAGONAL)
            draw_diagonal(f, s, &x, &y);
        else if (s->style & HS_PLOT_LINE)
            draw_line(f, c, s, &x, &y);
        if (s->style & HS_PLOT_POINTS) draw_points(f, c, s, &x, &y);
    }
    fputs("</svg></figure>\n", f);
}

/* ---- heat maps -------------------------------------------------------------------------------------------------- */

enum { LEVELS = 16 };

static int level(const hs_heat *h, const scale *s, double v) {
    double t = place(s, v);
    int i = (int)(LEVELS * (h->reversed ? 1 - t : t));
    return i < 0 ? 0 : i >= LEVELS ? LEVELS - 1 : i;
}

static const char *print_cell(const hs_heat *h, double v, text48 ret) {
    if (h->decimals < 0 && v != 0 && fabs(v) < 0.095) {
        int k = (int)floor(log10(fabs(v)));
        snprintf(ret, sizeof(text48), "%.1fe%d", v * pow(10, -k), k);
        return ret;
    }
    if (h->decimals < 0) return print(v, 2, ret);
    snprintf(ret, sizeof(text48), "%.*f", h->decimals, v);
    return ret[0] == '0' && ret[1] == '.' ? ret + 1 : ret; /* .95 */
}

/* The scale from low to high under the map. */
static void heat_scale(FILE *f, const hs_heat *h, const scale *s, double left, double top, double width) {
    text48 a, b;
    double low = s->log ? pow(10, s->low) : s->low, high = s->log ? pow(10, s->high) : s->high;
    for (int i = 0; i < LEVELS; i++)
        fprintf(f, "<rect class=\"h%d\" x=\"%.1f\" y=\"%g\" width=\"%.2f\" height=\"10\"/>",
                h->reversed ? LEVELS - 1 - i : i, left + width * i / LEVELS, top, width / LEVELS + 0.3);
    fprintf(f,
            "\n<text x=\"%g\" y=\"%g\">%s</text><text x=\"%g\" y=\"%g\" text-anchor=\"end\">%s</text>"
            "<text class=\"axis\" x=\"%g\" y=\"%g\" text-anchor=\"middle\">",
            left, top + 24, print(low, 3, a), left + width, top + 24, print(high, 3, b), left + width / 2, top + 40);
    hs_page_escape(f, h->unit);
    fputs("</text>\n", f);
}

static void heat_cell(FILE *f, const hs_heat *h, const scale *s, int r, int c, double x, double y, double w, double t) {
    double v = h->value[r * h->columns + c];
    text48 text;
    int known = isfinite(v) && (!h->log || v > 0), at = known ? level(h, s, v) : 0;
    if (known)
        fprintf(f, "<rect class=\"cell h%d\" ", at);
    else
        fputs("<rect class=\"none\" ", f);
    fprintf(f, "x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"1.5\"><title>%s %d, %s %d: ", x, y, w - 1.5,
            t - 1.5, h->row, r, h->column, c);
    if (known)
        fprintf(f, "%s %s", h->unit, print(v, 4, text));
    else
        fputs(isnan(v) ? "not measured" : "0", f);
    fputs("</title></rect>\n", f);
    if (known && w >= (h->decimals < 0 ? 44 : 30) && t >= 16)
        fprintf(f,
                "<text class=\"t%d\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" pointer-events=\"none\">%s</text>\n",
                at, x + w / 2 - 0.7, y + t / 2 + 3.3, print_cell(h, v, text));
}

/* Cells as large as fit into a readable figure: with numbers in them for small models, colour only for large ones. */
static double cell_size(int count, double most, double least, double room) {
    double size = floor(room / count);
    return size > most ? most : size < least ? least : size;
}

void hs_page_heat(hs_page *page, const hs_heat *h) {
    FILE *f = hs_page_file(page);
    hs_axis axis = {.log = h->log, .low = h->low, .high = h->high};
    double low = INFINITY, high = -INFINITY;
    for (int i = 0; i < h->rows * h->columns; i++) widen(&axis, h->value[i], &low, &high);
    if (low <= high && axis.low == 0 && axis.high == 0) axis.low = low, axis.high = high;
    scale s = make_scale(&axis, low, high, 0, 1);
    double w = cell_size(h->columns, 60, 9, 440), t = cell_size(h->rows, 22, 8, 520), left = 46, top = 36;
    double map = fmax(w * h->columns, 150), width = left + map + 6, height = top + t * h->rows + 56;
    figure_begin(f, "heat", h->title, h->about);
    svg_begin(f, width, height, h->title, h->about);
    for (int r = 0; r < h->rows; r++)
        if (t >= 12 || r % 5 == 0)
            fprintf(f, "<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%d</text>", left - 6, top + t * (r + 0.5) + 3.5,
                    r);
    for (int c = 0; c < h->columns; c++)
        if (w >= 20 || c % 5 == 0)
            fprintf(f, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%d</text>", left + w * (c + 0.5) - 0.7,
                    top - 6, c);
    fprintf(f, "\n<text class=\"axis\" x=\"%.1f\" y=\"12\" text-anchor=\"middle\">", left + w * h->columns / 2);
    hs_page_escape(f, h->column);
    fprintf(f, "</text><text class=\"axis\" transform=\"translate(12 %.1f) rotate(-90)\" text-anchor=\"middle\">",
            top + t * h->rows / 2);
    hs_page_escape(f, h->row);
    fputs("</text>\n", f);
    for (int r = 0; r < h->rows; r++)
        for (int c = 0; c < h->columns; c++) heat_cell(f, h, &s, r, c, left + w * c, top + t * r, w, t);
    heat_scale(f, h, &s, left, top + t * h->rows + 10, map);
    fputs("</svg></figure>\n", f);
}
