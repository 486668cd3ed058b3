/* Prompt cleaning: the repairs of ftfy and html.unescape that change tokens (spec wan.md 2.1), in their order.
 *
 * Line by line and until nothing changes: HTML entities (not from the first line with a '<' on), C1 controls as
 * Windows-1252, Latin ligatures, full-width forms, curly quotes, line breaks, terminal escapes, control characters,
 * NFC. Then the whole text: HTML entities twice by the looser rules of browsers, and white space runs to one space.
 *
 * Not done: repair of mojibake (UTF-8 once read as Latin-1). Of the 2,231 entity names of HTML 5 only the 252 of HTML
 * 4, &apos; and the upper-case forms without semicolon are known; others stay as they are written.
 */
#include "tokenizer.h"

#include <string.h>
#include <utf8proc.h>

enum { MAX_BYTES = 1000000, MAX_PASSES = 32 /* of nested entities: &amp;amp;... */ };

typedef struct text {
    char *p;
    size_t n, cap;
    int failed; /* memory ran out: contents are incomplete */
} text;

static void put(text *t, const char *s, size_t n) {
    if (t->failed) return;
    if (t->n + n > t->cap) {
        size_t cap = 2 * (t->n + n) + 64;
        char *p = hs_alloc(cap);
        if (!p) {
            t->failed = 1;
            return;
        }
        if (t->n) memcpy(p, t->p, t->n);
        hs_free(t->p);
        t->p = p;
        t->cap = cap;
    }
    if (n) memcpy(t->p + t->n, s, n);
    t->n += n;
}

static void put_char(text *t, int32_t cp) {
    utf8proc_uint8_t b[4];
    put(t, (const char *)b, (size_t)utf8proc_encode_char(cp, b));
}

/* The code point at *at, which is valid UTF-8; *at moves behind it. */
static int32_t next_char(const char *s, size_t n, size_t *at) {
    utf8proc_int32_t cp;
    *at += (size_t)utf8proc_iterate((const utf8proc_uint8_t *)s + *at, (utf8proc_ssize_t)(n - *at), &cp);
    return cp;
}

/* ---- entities -------------------------------------------------------------------------------------------------- */

/* Windows-1252 at 0x80 .. 0x9f; the five holes stand for themselves. */
static const uint16_t cp1252[32] = {
    0x20ac, 0x81,   0x201a, 0x192,  0x201e, 0x2026, 0x2020, 0x2021, 0x2c6,  0x2030, 0x160,
    0x2039, 0x152,  0x8d,   0x17d,  0x8f,   0x90,   0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
    0x2013, 0x2014, 0x2dc,  0x2122, 0x161,  0x203a, 0x153,  0x9d,   0x17e,  0x178,
};

/* Sorted by name. Those below 256 but &apos; are also known without a semicolon. */
static const struct entity {
    char name[9];
    uint16_t cp;
} entities[] = {
    {"AElig", 198},   {"AMP", 38},      {"Aacute", 193},   {"Acirc", 194},   {"Agrave", 192},   {"Alpha", 913},
    {"Aring", 197},   {"Atilde", 195},  {"Auml", 196},     {"Beta", 914},    {"COPY", 169},     {"Ccedil", 199},
    {"Chi", 935},     {"Dagger", 8225}, {"Delta", 916},    {"ETH", 208},     {"Eacute", 201},   {"Ecirc", 202},
    {"Egrave", 200},  {"Epsilon", 917}, {"Eta", 919},      {"Euml", 203},    {"GT", 62},        {"Gamma", 915},
    {"Iacute", 205},  {"Icirc", 206},   {"Igrave", 204},   {"Iota", 921},    {"Iuml", 207},     {"Kappa", 922},
    {"LT", 60},       {"Lambda", 923},  {"Mu", 924},       {"Ntilde", 209},  {"Nu", 925},       {"OElig", 338},
    {"Oacute", 211},  {"Ocirc", 212},   {"Ograve", 210},   {"Omega", 937},   {"Omicron", 927},  {"Oslash", 216},
    {"Otilde", 213},  {"Ouml", 214},    {"Phi", 934},      {"Pi", 928},      {"Prime", 8243},   {"Psi", 936},
    {"QUOT", 34},     {"REG", 174},     {"Rho", 929},      {"Scaron", 352},  {"Sigma", 931},    {"THORN", 222},
    {"Tau", 932},     {"Theta", 920},   {"Uacute", 218},   {"Ucirc", 219},   {"Ugrave", 217},   {"Upsilon", 933},
    {"Uuml", 220},    {"Xi", 926},      {"Yacute", 221},   {"Yuml", 376},    {"Zeta", 918},     {"aacute", 225},
    {"acirc", 226},   {"acute", 180},   {"aelig", 230},    {"agrave", 224},  {"alefsym", 8501}, {"alpha", 945},
    {"amp", 38},      {"and", 8743},    {"ang", 8736},     {"apos", 39},     {"aring", 229},    {"asymp", 8776},
    {"atilde", 227},  {"auml", 228},    {"bdquo", 8222},   {"beta", 946},    {"brvbar", 166},   {"bull", 8226},
    {"cap", 8745},    {"ccedil", 231},  {"cedil", 184},    {"cent", 162},    {"chi", 967},      {"circ", 710},
    {"clubs", 9827},  {"cong", 8773},   {"copy", 169},     {"crarr", 8629},  {"cup", 8746},     {"curren", 164},
    {"dArr", 8659},   {"dagger", 8224}, {"darr", 8595},    {"deg", 176},     {"delta", 948},    {"diams", 9830},
    {"divide", 247},  {"eacute", 233},  {"ecirc", 234},    {"egrave", 232},  {"empty", 8709},   {"emsp", 8195},
    {"ensp", 8194},   {"epsilon", 949}, {"equiv", 8801},   {"eta", 951},     {"eth", 240},      {"euml", 235},
    {"euro", 8364},   {"exist", 8707},  {"fnof", 402},     {"forall", 8704}, {"frac12", 189},   {"frac14", 188},
    {"frac34", 190},  {"frasl", 8260},  {"gamma", 947},    {"ge", 8805},     {"gt", 62},        {"hArr", 8660},
    {"harr", 8596},   {"hearts", 9829}, {"hellip", 8230},  {"iacute", 237},  {"icirc", 238},    {"iexcl", 161},
    {"igrave", 236},  {"image", 8465},  {"infin", 8734},   {"int", 8747},    {"iota", 953},     {"iquest", 191},
    {"isin", 8712},   {"iuml", 239},    {"kappa", 954},    {"lArr", 8656},   {"lambda", 955},   {"lang", 10216},
    {"laquo", 171},   {"larr", 8592},   {"lceil", 8968},   {"ldquo", 8220},  {"le", 8804},      {"lfloor", 8970},
    {"lowast", 8727}, {"loz", 9674},    {"lrm", 8206},     {"lsaquo", 8249}, {"lsquo", 8216},   {"lt", 60},
    {"macr", 175},    {"mdash", 8212},  {"micro", 181},    {"middot", 183},  {"minus", 8722},   {"mu", 956},
    {"nabla", 8711},  {"nbsp", 160},    {"ndash", 8211},   {"ne", 8800},     {"ni", 8715},      {"not", 172},
    {"notin", 8713},  {"nsub", 8836},   {"ntilde", 241},   {"nu", 957},      {"oacute", 243},   {"ocirc", 244},
    {"oelig", 339},   {"ograve", 242},  {"oline", 8254},   {"omega", 969},   {"omicron", 959},  {"oplus", 8853},
    {"or", 8744},     {"ordf", 170},    {"ordm", 186},     {"oslash", 248},  {"otilde", 245},   {"otimes", 8855},
    {"ouml", 246},    {"para", 182},    {"part", 8706},    {"permil", 8240}, {"perp", 8869},    {"phi", 966},
    {"pi", 960},      {"piv", 982},     {"plusmn", 177},   {"pound", 163},   {"prime", 8242},   {"prod", 8719},
    {"prop", 8733},   {"psi", 968},     {"quot", 34},      {"rArr", 8658},   {"radic", 8730},   {"rang", 10217},
    {"raquo", 187},   {"rarr", 8594},   {"rceil", 8969},   {"rdquo", 8221},  {"real", 8476},    {"reg", 174},
    {"rfloor", 8971}, {"rho", 961},     {"rlm", 8207},     {"rsaquo", 8250}, {"rsquo", 8217},   {"sbquo", 8218},
    {"scaron", 353},  {"sdot", 8901},   {"sect", 167},     {"shy", 173},     {"sigma", 963},    {"sigmaf", 962},
    {"sim", 8764},    {"spades", 9824}, {"sub", 8834},     {"sube", 8838},   {"sum", 8721},     {"sup", 8835},
    {"sup1", 185},    {"sup2", 178},    {"sup3", 179},     {"supe", 8839},   {"szlig", 223},    {"tau", 964},
    {"there4", 8756}, {"theta", 952},   {"thetasym", 977}, {"thinsp", 8201}, {"thorn", 254},    {"tilde", 732},
    {"times", 215},   {"trade", 8482},  {"uArr", 8657},    {"uacute", 250},  {"uarr", 8593},    {"ucirc", 251},
    {"ugrave", 249},  {"uml", 168},     {"upsih", 978},    {"upsilon", 965}, {"uuml", 252},     {"weierp", 8472},
    {"xi", 958},      {"yacute", 253},  {"yen", 165},      {"yuml", 255},    {"zeta", 950},     {"zwj", 8205},
    {"zwnj", 8204},
};

static const struct entity *find_entity(const char *s, size_t n) {
    size_t lo = 0, hi = sizeof(entities) / sizeof(*entities);
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int c = strncmp(entities[mid].name, s, n);
        if (!c && !entities[mid].name[n]) return &entities[mid];
        if (c < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}
static int is_alnum(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int hex_digit(char c) {
    return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* What the number of a reference stands for; -1: nothing (it vanishes). */
static int32_t numeric_char(int32_t v) {
    if (v == 0 || (v >= 0xd800 && v <= 0xdfff) || v > 0x10ffff) return 0xfffd;
    if (v >= 0x80 && v <= 0x9f) return cp1252[v - 0x80];
    if (v < 0x20 && v != '\t' && v != '\n' && v != '\f' && v != '\r') return -1;
    if (v == 0x7f || (v >= 0xfdd0 && v <= 0xfdef) || (v & 0xfffe) == 0xfffe) return -1;
    return v;
}

/* A reference at s[0] == '&': its length, or 0 if it is none. *ret_cp = -1: it vanishes.
 * strict: &name; and &#number; with the semicolon only, of at most 24 characters. Otherwise numbers may lack it, and so
 * may the old names, of which the longest that fits counts. */
static size_t parse_entity(const char *s, size_t n, int strict, int32_t *ret_cp) {
    size_t k = 1;
    if (k < n && s[k] == '#') {
        int hex = ++k < n && (s[k] == 'x' || s[k] == 'X');
        size_t first = k += (size_t)hex;
        int32_t v = 0;
        for (; k < n && (hex ? hex_digit(s[k]) >= 0 : is_digit(s[k])); k++)
            if (v <= 0x10ffff) v = v * (hex ? 16 : 10) + hex_digit(s[k]);
        int semicolon = k < n && s[k] == ';';
        if (k == first || (strict && (!semicolon || k - 2 > 24))) return 0;
        if (strict && v == ';') return 0;
        *ret_cp = numeric_char(v);
        return k + (size_t)semicolon;
    }
    while (k < n && is_alnum(s[k])) k++;
    size_t len = k - 1;
    const struct entity *e = k < n && s[k] == ';' ? find_entity(s + 1, len) : NULL;
    if (e) {
        *ret_cp = e->cp;
        return k + 1;
    }
    if (strict) return 0;
    for (len = len < 8 ? len : 8; len >= 2; len--) {
        e = find_entity(s + 1, len);
        if (e && e->cp < 256 && e->cp != '\'') {
            *ret_cp = e->cp;
            return len + 1;
        }
    }
    return 0;
}

static void unescape(text *out, const char *s, size_t n, int strict) {
    for (size_t i = 0, k; i < n; i += k) {
        int32_t cp = -1;
        k = s[i] == '&' ? parse_entity(s + i, n - i, strict, &cp) : 0;
        if (k && cp >= 0) put_char(out, cp);
        if (k) continue;
        for (k = 1; i + k < n && s[i + k] != '&';) k++;
        put(out, s + i, k);
    }
}

/* ---- characters ------------------------------------------------------------------------------------------------ */

static const struct ligature {
    uint16_t cp;
    char s[8];
} ligatures[] = {
    {0x132, "IJ"},   {0x133, "ij"},   {0x149, "'n"},  {0x1c4, "DŽ"},  {0x1c5, "Dž"},  {0x1c6, "dž"},
    {0x1c7, "LJ"},   {0x1c8, "Lj"},   {0x1c9, "lj"},  {0x1ca, "NJ"},  {0x1cb, "Nj"},  {0x1cc, "nj"},
    {0x1f1, "DZ"},   {0x1f2, "Dz"},   {0x1f3, "dz"},  {0xfb00, "ff"}, {0xfb01, "fi"}, {0xfb02, "fl"},
    {0xfb03, "ffi"}, {0xfb04, "ffl"}, {0xfb05, "ſt"}, {0xfb06, "st"},
};

static void map_chars(text *out, const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t from = i;
        int32_t cp = next_char(s, n, &i);
        if (cp < 0x80) {
            put_char(out, cp == '\r' ? '\n' : cp);
        } else if (cp <= 0x9f) {
            int32_t c = cp1252[cp - 0x80];
            put_char(out, c == 0x2018 || c == 0x2019 ? '\'' : c == 0x201c || c == 0x201d ? '"' : c);
        } else if (cp == 0x2bc || (cp >= 0x2018 && cp <= 0x201b)) {
            put_char(out, '\'');
        } else if (cp >= 0x201c && cp <= 0x201f) {
            put_char(out, '"');
        } else if (cp == 0x2028 || cp == 0x2029) {
            put_char(out, '\n');
        } else if (cp == 0x3000) {
            put_char(out, ' ');
        } else if (cp > 0xff00 && cp < 0xfff0) { /* none of them decomposes to something that would compose again */
            utf8proc_int32_t d[8];
            int boundary = 0;
            utf8proc_ssize_t k =
                utf8proc_decompose_char(cp, d, 8, UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &boundary);
            for (utf8proc_ssize_t j = 0; j < k && j < 8; j++) put_char(out, d[j]);
        } else {
            const struct ligature *l = NULL;
            for (size_t j = 0; j < sizeof(ligatures) / sizeof(*ligatures); j++)
                if (ligatures[j].cp == cp) l = &ligatures[j];
            put(out, l ? l->s : s + from, l ? strlen(l->s) : i - from);
        }
    }
}

static void strip_controls(text *out, const char *s, size_t n) {
    for (size_t i = 0; i < n;) {
        size_t from = i;
        int32_t cp = next_char(s, n, &i);
        if (cp == 0x1b && i < n && s[i] == '[') { /* ESC [ numbers letter */
            size_t k = i + 1;
            while (k < n && (is_digit(s[k]) || s[k] == ';')) k++;
            if (k < n && is_alnum(s[k])) {
                i = k + 1;
                continue;
            }
        }
        int drop = (cp < 0x20 && cp != '\t' && cp != '\n' && cp != '\f' && cp != '\r') || cp == 0x7f ||
                   (cp >= 0x206a && cp <= 0x206f) || cp == 0xfeff || (cp >= 0xfff9 && cp <= 0xfffc);
        if (!drop) put(out, s + from, i - from);
    }
}

static void normalise(text *out, const char *s, size_t n) {
    const utf8proc_uint8_t *u = (const utf8proc_uint8_t *)s;
    const utf8proc_option_t form = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    utf8proc_ssize_t k = utf8proc_decompose(u, (utf8proc_ssize_t)n, NULL, 0, form);
    utf8proc_int32_t *cp = k < 0 ? NULL : hs_alloc(((size_t)k + 1) * sizeof(*cp)); /* + 1: reencode ends with NUL */
    if (cp) {
        utf8proc_decompose(u, (utf8proc_ssize_t)n, cp, k, form);
        k = utf8proc_reencode(cp, k, form); /* in place: UTF-8 is never longer than four bytes a code point */
        if (k >= 0) put(out, (const char *)cp, (size_t)k);
    }
    if (!cp || k < 0) out->failed = 1;
    hs_free(cp);
}

/* One line, repaired until it stays the same; the result is in a[0]. a: three texts to work in. */
static void fix_line(text a[3], const char *s, size_t n, int entities_too) {
    a[0].n = 0;
    put(&a[0], s, n);
    for (int pass = 0; pass < MAX_PASSES; pass++) {
        a[1].n = a[2].n = 0;
        if (entities_too)
            unescape(&a[1], a[0].p, a[0].n, 1);
        else
            put(&a[1], a[0].p, a[0].n);
        map_chars(&a[2], a[1].p, a[1].n);
        a[1].n = 0;
        strip_controls(&a[1], a[2].p, a[2].n);
        a[2].n = 0;
        normalise(&a[2], a[1].p, a[1].n);
        if (a[1].failed || a[2].failed || (a[2].n == a[0].n && (!a[0].n || !memcmp(a[2].p, a[0].p, a[0].n)))) return;
        text t = a[0];
        a[0] = a[2];
        a[2] = t;
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------------- */

static int is_space(int32_t cp) {
    return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 0x1c && cp <= 0x1f) || cp == 0x85 || cp == 0xa0 ||
           cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f ||
           cp == 0x205f || cp == 0x3000;
}

static void collapse_space(text *out, const char *s, size_t n) {
    int gap = 0;
    for (size_t i = 0; i < n;) {
        size_t from = i;
        if (is_space(next_char(s, n, &i))) {
            gap = out->n > 0;
            continue;
        }
        if (gap) put(out, " ", 1);
        gap = 0;
        put(out, s + from, i - from);
    }
}

int hs_prompt_clean(const char *s, char **ret, hs_err *err) {
    size_t n = strlen(s);
    if (n > MAX_BYTES) return hs_fail(err, HS_EINVAL, "prompt of %zu bytes, expected at most %d", n, MAX_BYTES);
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t cp;
        utf8proc_ssize_t k = utf8proc_iterate((const utf8proc_uint8_t *)s + i, (utf8proc_ssize_t)(n - i), &cp);
        if (k < 1)
            return hs_fail(err, HS_EINVAL, "prompt is not valid UTF-8 at byte %zu (0x%02x); is it in another encoding?",
                           i, (unsigned char)s[i]);
        i += (size_t)k;
    }
    text a[3] = {{0}}, all = {0};
    int entities_too = 1, failed = 0;
    for (size_t i = 0, k; i < n && !failed; i += k) {
        const char *newline = memchr(s + i, '\n', n - i);
        k = newline ? (size_t)(newline - s) - i + 1 : n - i;
        if (memchr(s + i, '<', k)) entities_too = 0;
        fix_line(a, s + i, k, entities_too);
        failed = a[0].failed || a[1].failed || a[2].failed;
        if (!failed) put(&all, a[0].p, a[0].n);
    }
    a[0].n = a[1].n = a[2].n = 0;
    unescape(&a[0], all.p, all.n, 0);
    unescape(&a[1], a[0].p, a[0].n, 0);
    collapse_space(&a[2], a[1].p, a[1].n);
    put(&a[2], "", 1);
    failed = failed || all.failed || a[0].failed || a[1].failed || a[2].failed;
    char *p = failed ? NULL : hs_strdup(a[2].p);
    for (int i = 0; i < 3; i++) hs_free(a[i].p);
    hs_free(all.p);
    if (!p) return hs_fail(err, HS_ENOMEM, "no memory to clean a prompt of %zu bytes", n);
    *ret = p;
    return HS_OK;
}
