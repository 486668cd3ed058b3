/* The frame of a report: head with its style sheet, sections, tables, foot. Colours are CSS variables, so that one page
 * serves light and dark; heat maps use 16 classes h0 .. h15 for the same reason. */
#include "plot.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct hs_page {
    FILE *file;
    char *path;
};

/* clang-format off */
static const char style[] =
    ":root{color-scheme:light dark;--paper:#fbfbfa;--card:#fff;--ink:#1c2024;--soft:#5b6470;--rule:#e3e5e8;\n"
    "--grid:#eceef0;--s0:#1f6fd1;--s1:#d2540b;--s2:#0b8566;--s3:#8149c4;--s4:#a87400;--s5:#c02c7c;--s6:#0a7f96;\n"
    "--s7:#66707b;--sn:#5b6470}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1b1f23;--ink:#e8eaed;--soft:#a0a9b4;\n"
    "--rule:#31373e;--grid:#2a2f35;--s0:#6aa8ff;--s1:#ff9357;--s2:#4bc8a1;--s3:#c29af4;--s4:#e0b63a;--s5:#ff86be;\n"
    "--s6:#5bcfe2;--s7:#a8b2bd;--sn:#a0a9b4}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--paper);color:var(--ink);\n"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\n"
    "main{max-width:1180px;margin:0 auto;padding:28px 24px 60px}\n"
    "h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650}\n"
    "h2{font-size:19px;margin:40px 0 6px;font-weight:650}\n"
    "p{margin:0 0 12px;max-width:76ch}\n"
    "p.sub,p.text,figcaption span{color:var(--soft)}\n"
    ".row{display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;margin-bottom:12px}\n"
    ".row>figure{margin:0;flex:1 1 460px}\n"
    ".row>figure.heat{flex:0 1 auto}\n"
    ".row>figure.heat figcaption{width:0;min-width:100%}\n"
    "figure{margin:12px 0;padding:16px 18px 12px;max-width:100%;min-width:0}\n"
    "figure,.facts div{background:var(--card);border:1px solid var(--rule);border-radius:8px}\n"
    "figcaption{margin-bottom:8px}\n"
    "figcaption b{display:block;font-weight:600}\n"
    "figcaption span{font-size:13px}\n"
    "figure.chart{max-width:720px}\n"
    "svg{display:block;max-width:100%;height:auto}\n"
    "figure.chart>svg{width:100%}\n"
    "svg text{fill:var(--soft);font-size:12px;font-family:inherit}\n"
    "svg text.axis{fill:var(--ink)}\n"
    "svg text.note{fill:var(--ink);font-size:11.5px}\n"
    ".grid{stroke:var(--grid)}\n"
    ".frame{stroke:var(--soft);fill:none}\n"
    ".legend{list-style:none;margin:0 0 6px;padding:0;display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px}\n"
    ".legend li{display:flex;align-items:center;gap:6px}\n"
    ".legend svg{width:26px;flex:none}\n"
    ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\n"
    ".dash{stroke-dasharray:6 5}\n"
    ".faint{opacity:.42;stroke-width:1.3}\n"
    ".legend .faint{opacity:1;stroke-width:2}\n"
    ".dot{stroke:var(--card);stroke-width:1.5}\n"
    ".bar{stroke-width:1.3;fill:none;opacity:.55}\n"
    "g.hit:hover .dot{stroke:var(--ink)}\n"
    "polyline.faint:hover{opacity:1;stroke-width:2.5}\n"
    ".cell:hover{stroke:var(--ink);stroke-width:2}\n"
    ".none{fill:none;stroke:var(--rule)}\n"
    ".facts{display:flex;flex-wrap:wrap;gap:12px;margin:16px 0}\n"
    ".facts div{padding:10px 16px;min-width:130px}\n"
    ".facts b{display:block;font-size:22px;font-weight:650;line-height:1.3}\n"
    ".facts span{color:var(--soft);font-size:13px}\n"
    ".scroll{overflow-x:auto}\n"
    "table{border-collapse:collapse;margin:10px 0;font-size:14px;font-variant-numeric:tabular-nums}\n"
    "th,td{padding:5px 14px;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}\n"
    "th{font-weight:600;color:var(--soft)}\n"
    "th.n,td.n{text-align:right;white-space:nowrap}\n"
    "th:first-child,td:first-child{padding-left:2px}\n"
    "@media print{body{background:#fff}figure{break-inside:avoid}}\n";
/* clang-format on */

/* Stops of the heat scale for low, middle and high values: towards ink on light paper, towards light on dark paper. */
static const int heat_light[3][3] = {{0xee, 0xf3, 0xf8}, {0x6f, 0xa8, 0xdc}, {0x0c, 0x2f, 0x6b}};
static const int heat_dark[3][3] = {{0x22, 0x2a, 0x35}, {0x2f, 0x6f, 0xb5}, {0xd9, 0xec, 0xff}};

static void heat_classes(FILE *f, const int stop[3][3]) {
    for (int i = 0; i < 16; i++) {
        int from = i < 8 ? 0 : 1, rgb[3];
        double t = (i < 8 ? i : i - 7.5) / 7.5;
        for (int c = 0; c < 3; c++) rgb[c] = (int)(stop[from][c] + t * (stop[from + 1][c] - stop[from][c]) + 0.5);
        double light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255;
        fprintf(f, ".h%d{fill:#%02x%02x%02x}svg text.t%d{fill:%s;font-size:11px}", i, rgb[0], rgb[1], rgb[2], i,
                light > 0.5 ? "#14171a" : "#f4f6f8");
    }
}

static void styles(FILE *f) {
    fputs("<style>\n", f);
    fputs(style, f);
    for (int i = 0; i < HS_PLOT_COLORS; i++) fprintf(f, ".l%d{stroke:var(--s%d)}.f%d{fill:var(--s%d)}", i, i, i, i);
    fputs(".ln{stroke:var(--sn)}.fn{fill:var(--sn)}\n", f);
    heat_classes(f, heat_light);
    fputs("\n@media(prefers-color-scheme:dark){", f);
    heat_classes(f, heat_dark);
    fputs("}\n</style>\n", f);
}

int hs_page_open(const char *path, const char *title, const char *subtitle, hs_page **ret, hs_err *err) {
    hs_page *page = hs_calloc(1, sizeof *page);
    char *name = hs_strdup(path);
    FILE *f = page && name ? fopen(path, "w") : NULL;
    if (!f) {
        int code = errno;
        hs_free(page);
        hs_free(name);
        return page && name ? hs_fail(err, HS_EIO, "cannot write %s: %s", path, strerror(code))
                            : hs_fail(err, HS_ENOMEM, "no memory for the page %s", path);
    }
    *page = (hs_page){f, name};
    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
          f);
    hs_page_escape(f, title);
    fputs("</title>\n", f);
    styles(f);
    fputs("</head>\n<body>\n<main>\n<h1>", f);
    hs_page_escape(f, title);
    fputs("</h1>\n<p class=\"sub\">", f);
    hs_page_escape(f, subtitle);
    fputs("</p>\n", f);
    *ret = page;
    return 0;
}

int hs_page_close(hs_page *page, hs_err *err) {
    if (!page) return 0;
    fputs("</main>\n</body>\n</html>\n", page->file);
    struct stat st;
    int plain = !fstat(fileno(page->file), &st) && S_ISREG(st.st_mode); /* never unlink a device */
    int bad = fflush(page->file) || ferror(page->file), code = errno, rc = 0;
    if (fclose(page->file) && !bad) bad = 1, code = errno;
    if (bad) {
        if (plain) unlink(page->path);
        rc = hs_fail(err, HS_EIO, "cannot write %s: %s", page->path, strerror(code));
    }
    hs_free(page->path);
    hs_free(page);
    return rc;
}

FILE *hs_page_file(hs_page *page) {
    return page->file;
}

void hs_page_escape(FILE *to, const char *text) {
    for (; *text; text++) {
        switch (*text) {
        case '&': fputs("&amp;", to); break;
        case '<': fputs("&lt;", to); break;
        case '>': fputs("&gt;", to); break;
        case '"': fputs("&quot;", to); break;
        default: fputc((unsigned char)*text < 0x20 && *text != '\n' ? ' ' : *text, to);
        }
    }
}

/* <tag class="cls">text</tag> */
static void element(FILE *f, const char *tag, const char *cls, const char *text) {
    fprintf(f, cls ? "<%s class=\"%s\">" : "<%s>", tag, cls);
    hs_page_escape(f, text);
    fprintf(f, "</%s>", tag);
}

void hs_page_section(hs_page *page, const char *title, const char *text) {
    element(page->file, "h2", NULL, title);
    fputc('\n', page->file);
    if (text) hs_page_text(page, "%s", text);
}

void hs_page_text(hs_page *page, const char *fmt, ...) {
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    element(page->file, "p", "text", text);
    fputc('\n', page->file);
}

void hs_page_row_begin(hs_page *page) {
    fputs("<div class=\"row\">\n", page->file);
}
void hs_page_row_end(hs_page *page) {
    fputs("</div>\n", page->file);
}

void hs_page_facts(hs_page *page, int n, const char *const *value, const char *const *label) {
    fputs("<div class=\"facts\">", page->file);
    for (int i = 0; i < n; i++) {
        fputs("<div>", page->file);
        element(page->file, "b", NULL, value[i]);
        element(page->file, "span", NULL, label[i]);
        fputs("</div>", page->file);
    }
    fputs("</div>\n", page->file);
}

static int is_number(const char *text) {
    return text && *text && strchr("0123456789+-.", *text) && (!text[1] || text[strcspn(text, "0123456789")]);
}

void hs_page_table(hs_page *page, int columns, const char *const *head, int rows, const char *const *cells) {
    FILE *f = page->file;
    fputs("<div class=\"scroll\"><table>\n<thead><tr>", f);
    for (int c = 0; c < columns; c++)
        element(f, "th", rows && is_number(cells[c]) ? "n" : NULL, head[c]); /* as the column's first cell */
    fputs("</tr></thead>\n<tbody>\n", f);
    for (int r = 0; r < rows; r++) {
        fputs("<tr>", f);
        for (int c = 0; c < columns; c++) {
            const char *text = cells[r * columns + c];
            element(f, "td", is_number(text) ? "n" : NULL, text ? text : "");
        }
        fputs("</tr>\n", f);
    }
    fputs("</tbody>\n</table></div>\n", f);
}
