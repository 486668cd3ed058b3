/* Strict JSON: a scan of the bytes for what cJSON is lax about, cJSON itself, then a look for duplicate keys. */
#include "json.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static int is_digit(char c) {
    return c >= '0' && c <= '9';
}
static int is_hex(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* s points behind the opening quote; returns the position behind the closing one, or NULL with a reason. */
static const char *scan_string(const char *s, const char *end, const char **why) {
    while (s < end && *s != '"') {
        if ((unsigned char)*s < 0x20) {
            *why = "control character in a string";
            return NULL;
        }
        if ((unsigned char)*s >= 0x80) {
            utf8proc_int32_t cp;
            utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s, end - s, &cp);
            if (n < 1) {
                *why = "invalid UTF-8";
                return NULL;
            }
            s += n;
            continue;
        }
        if (*s++ != '\\') continue;
        if (s < end && *s == 'u') {
            int hex = end - s >= 5 && is_hex(s[1]) && is_hex(s[2]) && is_hex(s[3]) && is_hex(s[4]);
            if (!hex || !memcmp(s + 1, "0000", 4)) {
                *why = hex ? "NUL character in a string" : "malformed escape";
                return NULL;
            }
            s += 5;
        } else if (s < end && *s && strchr("\"\\/bfnrt", *s)) {
            s++;
        } else {
            *why = "malformed escape";
            return NULL;
        }
    }
    if (s == end) {
        *why = "unterminated string";
        return NULL;
    }
    return s + 1;
}

static const char *scan_digits(const char *s, const char *end) {
    while (s < end && is_digit(*s)) s++;
    return s;
}

static const char *scan_number(const char *s, const char *end, const char **why) {
    *why = "malformed number";
    if (*s == '-') s++;
    const char *first = s;
    s = scan_digits(s, end);
    if (s == first || (*first == '0' && s > first + 1)) return NULL;
    if (s < end && *s == '.') {
        first = s + 1;
        s = scan_digits(first, end);
        if (s == first) return NULL;
    }
    if (s < end && (*s == 'e' || *s == 'E')) {
        first = s + 1;
        if (first < end && (*first == '+' || *first == '-')) first++;
        s = scan_digits(first, end);
        if (s == first) return NULL;
    }
    return s;
}

/* NULL if nothing is wrong at this level; else the place, with a reason. */
static const char *scan(const char *s, const char *end, const char **why) {
    int depth = 0;
    int64_t values = 1;
    while (s < end) {
        const char *at = s;
        switch (*s) {
        case '"': s = scan_string(s + 1, end, why); break;
        case '{':
        case '[':
            *why = "nested too deeply";
            if (++depth > HS_JSON_MAX_DEPTH) return at;
            values++;
            s++;
            break;
        case '}':
        case ']':
            depth--;
            s++;
            break;
        case ',':
            values++;
            s++;
            break;
        default:
            if (*s == '-' || is_digit(*s)) {
                s = scan_number(s, end, why);
            } else if ((unsigned char)*s >= 0x80 || *s == '\0') {
                s = NULL;
                *why = "stray byte";
            } else {
                s++;
            }
        }
        if (!s) return at;
        if (values > HS_JSON_MAX_VALUES) {
            *why = "too many values";
            return at;
        }
    }
    return NULL;
}

static int by_key(const void *a, const void *b) {
    return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string);
}

/* Recursion is bounded by HS_JSON_MAX_DEPTH. */
static int check_keys(const cJSON *node, const char *path, hs_err *err) {
    int64_t n = 0;
    for (const cJSON *c = node->child; c; c = c->next, n++) {
        int rc = c->child ? check_keys(c, path, err) : HS_OK;
        if (rc) return rc;
    }
    if (!cJSON_IsObject(node) || n < 2) return HS_OK;
    const cJSON **keys = hs_alloc((size_t)n * sizeof(*keys));
    if (!keys) return hs_fail(err, HS_ENOMEM, "%s: no memory to check %lld keys", path, (long long)n);
    n = 0;
    for (const cJSON *c = node->child; c; c = c->next) keys[n++] = c;
    qsort(keys, (size_t)n, sizeof(*keys), by_key);
    int rc = HS_OK;
    for (int64_t i = 1; i < n && !rc; i++)
        if (!strcmp(keys[i - 1]->string, keys[i]->string))
            rc = hs_fail(err, HS_EFORMAT, "%s: key '%s' is given twice", path, keys[i]->string);
    hs_free(keys);
    return rc;
}

int hs_json_parse(const char *text, size_t len, const char *path, cJSON **ret, hs_err *err) {
    const char *why = "not valid JSON", *at = scan(text, text + len, &why);
    cJSON *doc = NULL;
    if (!at) {
        const char *end = NULL;
        doc = len ? cJSON_ParseWithLengthOpts(text, len, &end, 0) : NULL;
        if (!doc) {
            at = end ? end : text;
            why = "not valid JSON";
        } else {
            while (end < text + len && strchr(" \t\r\n", *end)) end++;
            if (end < text + len) {
                at = end;
                why = "bytes after the end of the document";
            }
        }
    }
    int rc = at ? hs_fail(err, HS_EFORMAT, "%s: %s at byte %lld", path, why, (long long)(at - text))
                : check_keys(doc, path, err);
    if (rc)
        cJSON_Delete(doc);
    else
        *ret = doc;
    return rc;
}

int hs_json_is_count(const cJSON *item, int64_t *ret) {
    if (!cJSON_IsNumber(item)) return 0;
    double v = item->valuedouble;
    if (!(v >= 0 && v <= HS_JSON_MAX_INT) || v != (double)(int64_t)v) return 0;
    *ret = (int64_t)v;
    return 1;
}
