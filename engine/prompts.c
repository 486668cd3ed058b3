/* Prompts from files. getline and realloc instead of hs_alloc: a line's length is known only when it has been read. */
#include "prompts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

int hs_prompt_check(const char *text, const char *what, hs_err *err) {
    utf8proc_ssize_t n = (utf8proc_ssize_t)strlen(text), at = 0;
    utf8proc_int32_t c;
    while (at < n) {
        utf8proc_ssize_t len = utf8proc_iterate((const utf8proc_uint8_t *)text + at, n - at, &c);
        if (len <= 0) return hs_fail(err, HS_EINVAL, "%s is not valid UTF-8 (byte %td)", what, (ptrdiff_t)at + 1);
        at += len;
    }
    return 0;
}

int hs_prompts_add(hs_prompts *p, const char *text, const char *what, hs_err *err) {
    int rc = hs_prompt_check(text, what, err);
    if (rc) return rc;
    char **grown = realloc(p->text, (size_t)(p->n + 1) * sizeof *grown);
    if (grown) p->text = grown;
    if (!grown || !(p->text[p->n] = strdup(text))) return hs_fail(err, HS_ENOMEM, "no memory for the prompts");
    p->n++;
    return 0;
}

/* A bracket and what JSON has behind it; "[a close-up] of a cat" is a prompt. */
static int is_json(const char *line) {
    if (*line != '{' && *line != '[') return 0;
    const char *next = line + 1 + strspn(line + 1, " \t");
    return !*next || strchr("\"{[]}", *next);
}

int hs_prompts_read(hs_prompts *p, const char *path, hs_err *err) {
    char *line = NULL, what[4096];
    size_t size = 0;
    ssize_t len;
    int number = 0, before = p->n, rc = 0;
    FILE *f = fopen(path, "r");
    if (!f) return hs_fail(err, HS_EIO, "%s: cannot read the prompts: %s", path, strerror(errno));
    while (!rc && (len = getline(&line, &size, f)) >= 0) {
        char *s = line;
        if (!number++ && !strncmp(s, "\xef\xbb\xbf", 3)) s += 3;
        if (strlen(line) != (size_t)len) {
            rc = hs_fail(err, HS_EINVAL, "%s line %d holds a NUL byte: not a text file?", path, number);
            break;
        }
        s += strspn(s, " \t\r\n");
        size_t end = strlen(s);
        while (end && strchr(" \t\r\n", s[end - 1])) end--;
        s[end] = 0;
        if (!*s || *s == '#') continue;
        snprintf(what, sizeof what, "%s line %d", path, number);
        if (p->n == before && is_json(s)) {
            rc = hs_fail(err, HS_EINVAL, "%s looks like JSON (\"%.20s\"); expected plain text, one prompt a line", what,
                         s);
            break;
        }
        rc = hs_prompts_add(p, s, what, err);
    }
    if (!rc && ferror(f)) rc = hs_fail(err, HS_EIO, "%s: cannot read the prompts: %s", path, strerror(errno));
    if (!rc && p->n == before)
        rc = hs_fail(err, HS_EINVAL, "%s: no prompts in it (one a line; '#' starts a comment)", path);
    free(line);
    fclose(f);
    return rc;
}

void hs_prompts_done(hs_prompts *p) {
    for (int i = 0; i < p->n; i++) free(p->text[i]);
    free(p->text);
    *p = (hs_prompts){0};
}
