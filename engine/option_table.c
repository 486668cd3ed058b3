/* Tables of options: reading a line, help, "did you mean", and strict numbers. */
#include "option_table.h"

#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* getopt's value of a long option is FIRST_LONG + its row, which no letter can be */
enum { FIRST_LONG = 256 };

/* ---- help ------------------------------------------------------------------------------------------------------- */
void hs_options_list(const hs_option_row *table, int n, void (*line)(void *user, const char *text), void *user) {
    char text[256], left[64];
    for (int i = 0; i < n; i++) {
        const hs_option_row *r = &table[i];
        if (!r->help) continue;
        if (!r->name) {
            line(user, "");
            line(user, r->help);
            continue;
        }
        char letter[5] = "    ";
        if (r->letter) snprintf(letter, sizeof letter, "-%c, ", r->letter);
        snprintf(left, sizeof left, "%s--%s%s%s", letter, r->name, r->arg ? " " : "", r->arg ? r->arg : "");
        for (const char *help = r->help; help;) { /* a line break in the help continues in its column */
            snprintf(text, sizeof text, "  %-27s %.*s", left, (int)strcspn(help, "\n"), help);
            line(user, text);
            left[0] = 0;
            help = strchr(help, '\n');
            if (help) help++;
        }
    }
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */
int hs_option_bad(const char *name, const char *text, const char *should, hs_err *err) {
    return hs_fail(err, HS_EINVAL, "--%s \"%s\": should be %s", name, text, should);
}

/* Digits only: no sign, no space, no hexadecimal, nothing behind. *ret_end is where the digits stop. */
int hs_option_digits(const char *s, uint64_t *ret, const char **ret_end) {
    uint64_t v = 0;
    const char *p = s;
    for (; *p >= '0' && *p <= '9'; p++) {
        uint64_t d = (uint64_t)(*p - '0');
        if (v > (UINT64_MAX - d) / 10) return HS_EINVAL;
        v = 10 * v + d;
    }
    if (p == s) return HS_EINVAL;
    *ret = v, *ret_end = p;
    return 0;
}

int hs_option_int(const char *name, const char *text, int low, int high, int *ret, hs_err *err) {
    uint64_t v;
    const char *end;
    char should[80];
    if (!hs_option_digits(text, &v, &end) && !*end && v >= (uint64_t)low && v <= (uint64_t)high) {
        *ret = (int)v;
        return 0;
    }
    snprintf(should, sizeof should, "a whole number from %d to %d", low, high);
    return hs_option_bad(name, text, should, err);
}

int hs_option_double(const char *name, const char *text, double low, double high, double *ret, hs_err *err) {
    char *end, should[80];
    double v = strtod(text, &end);
    if (end != text && !*end && strspn(text, "0123456789.eE+-") == strlen(text) && v >= low && v <= high) {
        *ret = v;
        return 0;
    }
    snprintf(should, sizeof should, "a number from %g to %g", low, high);
    return hs_option_bad(name, text, should, err);
}

int hs_option_shard(const char *name, const char *text, int *ret_i, int *ret_n, hs_err *err) {
    const char *slash, *end;
    uint64_t i, n;
    if (hs_option_digits(text, &i, &slash) || *slash != '/' || hs_option_digits(slash + 1, &n, &end) || *end ||
        n > 1000000 || i >= n)
        return hs_option_bad(name, text, "I/N with 0 <= I < N, such as 0/4", err);
    *ret_i = (int)i, *ret_n = (int)n;
    return 0;
}

/* ---- the line --------------------------------------------------------------------------------------------------- */
/* Letters to insert, delete or replace to get from a to b; names longer than 31 letters count as far. */
static int distance(const char *a, const char *b) {
    int row[32], nb = (int)strlen(b);
    if (nb > 31) return INT_MAX;
    for (int j = 0; j <= nb; j++) row[j] = j;
    for (int i = 1; *a; a++, i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = diagonal + (*a != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

/* '-' and '_' are one here: names of other programs are spelled both ways. */
static int same_name(const char *a, const char *b) {
    while (*a && (*a == *b || (*a == '-' && *b == '_') || (*a == '_' && *b == '-'))) a++, b++;
    return *a == *b;
}

/* Why there is no such option, for names that other programs have; NULL for any other name. */
static const char *why_missing(const char *name) {
    static const char streamed[] = "not needed: weights that do not fit are streamed from host memory; see --max-vram";
    static const char tiled[] = "automatic where memory is short; see --max-vram";
    static const char one_gpu[] = "not supported: a video is made on one GPU; for more videos at a time run one "
                                  "process on each, --device cuda:0, cuda:1, ...";
    static const char lora[] = "not supported: merge it into the transformer's weights with another program";
    static const char text_only[] = "not supported: videos are made from text only";
    static const struct {
        const char *name, *why;
    } names[] = {
        {"lora", lora},
        {"lora-path", lora},
        {"lora-model-dir", lora},
        {"image", text_only},
        {"init-img", text_only},
        {"task", "not needed: the model's files say what it is, and videos are made from text only"},
        {"vae-tiling", tiled},
        {"enable-vae-tiling", tiled},
        {"cpu-offload", streamed},
        {"enable-model-cpu-offload", streamed},
        {"offload-model", streamed},
        {"offload-to-cpu", streamed},
        {"t5-cpu", streamed},
        {"ulysses-size", one_gpu},
        {"ring-size", one_gpu},
        {"dit-fsdp", one_gpu},
        {"t5-fsdp", one_gpu},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (same_name(name, names[i].name)) return names[i].why;
    return NULL;
}

static int unknown(const hs_option_row *table, int n, const char *text, hs_err *err) {
    const char *best = NULL;
    char name[64];
    if (strncmp(text, "--", 2)) return hs_fail(err, HS_EINVAL, "unknown option %s; --help lists the options", text);
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text + 2, "="), text + 2);
    const char *why = why_missing(name);
    if (why) return hs_fail(err, HS_EINVAL, "--%s: %s", name, why);
    /* at most two letters off, and less than half of what was typed: "unet" is not "quiet" */
    int least = 3, half = (int)(strlen(name) + 1) / 2;
    if (half < least) least = half;
    for (int i = 0; i < n; i++) {
        int d = table[i].name ? distance(name, table[i].name) : INT_MAX;
        if (d < least) least = d, best = table[i].name;
    }
    if (best) return hs_fail(err, HS_EINVAL, "unknown option --%s; did you mean --%s?", name, best);
    return hs_fail(err, HS_EINVAL, "unknown option --%s; --help lists the options", name);
}

int hs_options_read(const hs_option_row *table, int n, int argc, char **argv, hs_option_fn set, void *user,
                    hs_err *err) {
    struct option longs[HS_OPTIONS_MAX_ROWS + 1];
    char shorts[3 * 26 + 2] = ":";
    int names = 0, prompt = 0;
    memset(longs, 0, sizeof longs);
    for (int i = 0; i < n; i++) {
        const hs_option_row *r = &table[i];
        if (!r->name) continue;
        prompt |= r->letter == 'p';
        longs[names++] = (struct option){r->name, r->arg ? required_argument : no_argument, NULL, FIRST_LONG + i};
        if (r->letter) snprintf(shorts + strlen(shorts), 3, "%c%s", r->letter, r->arg ? ":" : "");
    }
    opterr = 0;
    optind = 0; /* glibc: start afresh, so that a second call works */
    for (;;) {
        int c = getopt_long(argc, argv, shorts, longs, NULL);
        if (c == -1) break;
        if (c == ':') return hs_fail(err, HS_EINVAL, "%s: its value is missing", argv[optind - 1]);
        if (c == '?') {
            if (optopt >= FIRST_LONG) return hs_fail(err, HS_EINVAL, "%s: takes no value", argv[optind - 1]);
            char letter[3] = {'-', (char)optopt, 0};
            return unknown(table, n, optopt ? letter : argv[optind - 1], err);
        }
        int i = c - FIRST_LONG;
        if (c < FIRST_LONG)
            for (i = 0; table[i].letter != c; i++) {
            }
        int rc = set(user, &table[i], optarg, err);
        if (rc) return rc;
    }
    if (optind < argc)
        return hs_fail(err, HS_EINVAL, "unexpected \"%s\"%s", argv[optind],
                       prompt ? "; a prompt goes behind -p, in quotes" : "");
    return 0;
}
