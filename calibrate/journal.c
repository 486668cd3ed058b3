/* Append-only file of JSON lines: locked, cut back to whole lines, compared with what it should belong to.
 *
 * A line is written by one write() behind the end that is known to be good; whatever goes wrong, the file is cut back
 * to that end, and a writer that dies in between leaves at most one line without a newline, which nobody counts. */
#include "journal.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_BYTES = 1 << 30, MAX_PLACE = 128 };

struct hs_journal {
    char *path;
    int fd;
    int64_t end;    /* bytes of whole lines */
    int torn;       /* something behind end could not be cut off yet */
    int unsynced;   /* lines that may not be on the disk yet */
    double sync_at; /* when they will be handed to it */
};

/* ---- identities ---- */

static void print_value(const cJSON *v, char ret[64]) {
    if (cJSON_IsNumber(v) && v->valuedouble == floor(v->valuedouble) && fabs(v->valuedouble) <= HS_JSON_MAX_INT) {
        snprintf(ret, 64, "%.0f", v->valuedouble);
        return;
    }
    char *text = v ? cJSON_PrintUnformatted(v) : NULL;
    snprintf(ret, 64, "%s", text ? text : "missing");
    if (text && strlen(text) > 63) memcpy(ret + 60, "...", 4);
    cJSON_free(text);
}

/* Exactly: cJSON_Compare lets numbers differ by a rounding. */
static int is_same(const cJSON *a, const cJSON *b) {
    if (cJSON_IsNumber(a) && cJSON_IsNumber(b)) return a->valuedouble == b->valuedouble;
    if (!cJSON_IsArray(a) || !cJSON_IsArray(b)) return cJSON_Compare(a, b, 1);
    for (a = a->child, b = b->child; a && b && is_same(a, b);) a = a->next, b = b->next;
    return !a && !b;
}

/* Where the two differ first, in the order of `a` and then of what only `b` has; 0 if nowhere. */
static int first_difference(const cJSON *a, const cJSON *b, char place[MAX_PLACE], char ret_a[64], char ret_b[64]) {
    if (cJSON_IsObject(a) && cJSON_IsObject(b)) {
        const size_t at = strlen(place);
        for (int side = 0; side < 2; side++)
            for (const cJSON *m = (side ? b : a)->child; m; m = m->next) {
                const cJSON *other = cJSON_GetObjectItemCaseSensitive(side ? a : b, m->string);
                if (side && other) continue; /* compared before */
                snprintf(place + at, MAX_PLACE - at, "%s%s", at ? "." : "", m->string);
                if (first_difference(side ? NULL : m, side ? m : other, place, ret_a, ret_b)) return 1;
                place[at] = '\0';
            }
        return 0;
    }
    if (a && b && is_same(a, b)) return 0;
    print_value(a, ret_a);
    print_value(b, ret_b);
    return 1;
}

int hs_journal_same(const char *path, const char *found, const char *expected, hs_err *err) {
    cJSON *f = NULL, *e = NULL;
    char place[MAX_PLACE] = "", is[64], should[64];
    int r;
    if ((r = hs_json_parse(found, strlen(found), path, &f, err)) ||
        (r = hs_json_parse(expected, strlen(expected), "the expected identity", &e, err)))
        goto out;
    if (first_difference(e, f, place, should, is))
        r = hs_fail(err, HS_EINVAL,
                    "%s belongs to something else: its %s is %s, expected %s. Go on with the settings that it was made "
                    "with, or name another place",
                    path, *place ? place : "first line", is, should);
out:
    cJSON_Delete(f);
    cJSON_Delete(e);
    return r;
}

/* ---- reading ---- */

/* The whole file, and how much of it is whole lines. */
static int read_lines(const char *path, char **ret_text, size_t *ret_len, size_t *ret_whole, hs_err *err) {
    int r = hs_file_read(path, MAX_BYTES, ret_text, ret_len, err);
    if (r) return r;
    const char *last = memrchr(*ret_text, '\n', *ret_len);
    *ret_whole = last ? (size_t)(last - *ret_text) + 1 : 0;
    return 0;
}

/* Every whole line but the first. Puts NULs into the text. */
static int hand_out(const char *path, char *text, size_t whole, hs_journal_fn fn, void *user, hs_err *err) {
    char *at = memchr(text, '\n', whole), *end = text + whole;
    *at++ = '\0';
    for (int number = 2; at < end; number++) {
        char *stop = memchr(at, '\n', (size_t)(end - at));
        *stop = '\0';
        int r = fn ? fn(user, at, (size_t)(stop - at), number, err) : 0;
        if (r) return hs_fail_ctx(err, r, "%s, line %d", path, number);
        at = stop + 1;
    }
    return 0;
}

int hs_journal_read(const char *path, char **ret_identity, hs_journal_fn fn, void *user, hs_err *err) {
    char *text = NULL, *identity = NULL;
    size_t len, whole;
    int r = read_lines(path, &text, &len, &whole, err);
    if (!r && !whole) r = hs_fail(err, HS_EFORMAT, "%s has no whole line: it is empty or no table", path);
    if (!r) r = hand_out(path, text, whole, fn, user, err); /* the first line now ends in a NUL */
    if (!r && !(identity = hs_strdup(text))) r = hs_fail(err, HS_ENOMEM, "no memory for the first line of %s", path);
    hs_free(text);
    if (!r) *ret_identity = identity;
    return r;
}

/* ---- writing ---- */

/* 0, or errno */
static int write_all(int fd, const char *text, size_t len) {
    while (len) {
        ssize_t n = write(fd, text, len);
        if (n < 0 && errno != EINTR) return errno;
        if (n > 0) text += n, len -= (size_t)n;
    }
    return 0;
}

static int cut(hs_journal *j) {
    j->torn = ftruncate(j->fd, (off_t)j->end) != 0;
    return j->torn ? errno : 0;
}

int hs_journal_append(hs_journal *j, const char *json, hs_err *err) {
    size_t len = strlen(json);
    int why = j->torn ? cut(j) : 0;
    char *line = hs_alloc(len + 2);
    if (!line) return hs_fail(err, HS_ENOMEM, "no memory to write a line of %zu bytes to %s", len, j->path);
    memcpy(line, json, len);
    memcpy(line + len, "\n", 2);
    if (!why && (why = write_all(j->fd, line, len + 1))) cut(j);
    hs_free(line);
    if (!why) {
        j->end += (int64_t)len + 1;
        j->unsynced = 1;
        if (hs_seconds() >= j->sync_at) {
            why = fsync(j->fd) ? errno : 0;
            j->unsynced = why != 0;
            j->sync_at = hs_seconds() + 1;
        }
    }
    if (!why) return 0;
    return hs_fail(err, HS_EIO, "cannot write to %s: %s. The lines before are kept; run again to go on from there",
                   j->path, strerror(why));
}

static int lock(hs_journal *j, hs_err *err) {
    if (!flock(j->fd, LOCK_EX | LOCK_NB)) return 0;
    if (errno == EWOULDBLOCK)
        return hs_fail(err, HS_EIO, "%s is being written by another process: wait for it, or name another file",
                       j->path);
    hs_log(HS_LOG_WARN, "%s cannot be locked (%s): let only one process write to it", j->path, strerror(errno));
    return 0;
}

/* Checks that the file is ours and hands its lines out. */
static int take_over(const char *path, const char *identity, hs_journal_fn fn, void *user, size_t *ret_len,
                     size_t *ret_whole, hs_err *err) {
    char *text = NULL;
    size_t len, whole;
    int r = read_lines(path, &text, &len, &whole, err);
    if (r) return r;
    if (!whole && strncmp(text, identity, len)) { /* a writer killed at its first line leaves a part of it */
        r = hs_fail(err, HS_EFORMAT, "%s exists and is no table: name another file", path);
    } else if (whole) {
        char *end = memchr(text, '\n', whole); /* a broken file may have zeros before it */
        *end = '\0';
        r = hs_journal_same(path, text, identity, err);
        *end = '\n';
        if (!r) r = hand_out(path, text, whole, fn, user, err);
    }
    hs_free(text);
    if (r) return r;
    *ret_len = len;
    *ret_whole = whole;
    return 0;
}

int hs_journal_peek(const char *path, const char *identity, hs_journal_fn fn, void *user, hs_err *err) {
    size_t len, whole;
    if (access(path, F_OK) && errno == ENOENT) return 0;
    return take_over(path, identity, fn, user, &len, &whole, err);
}

/* Leaves the file ending in a whole line, the first one at least. */
static int make_whole(hs_journal *j, const char *identity, size_t len, size_t whole, hs_err *err) {
    j->end = (int64_t)whole;
    if (whole < len) {
        hs_log(HS_LOG_INFO, "%s: cut off an unfinished last line of %zu bytes", j->path, len - whole);
        if (cut(j))
            return hs_fail(err, HS_EIO, "cannot cut the unfinished last line off %s: %s", j->path, strerror(errno));
    }
    return whole ? 0 : hs_journal_append(j, identity, err);
}

int hs_journal_open(const char *path, const char *identity, hs_journal_fn fn, void *user, hs_journal **ret,
                    hs_err *err) {
    struct stat st;
    hs_journal *j = hs_calloc(1, sizeof *j);
    size_t len, whole;
    int r = 0;
    if (!j || !(j->path = hs_strdup(path))) {
        hs_free(j);
        return hs_fail(err, HS_ENOMEM, "no memory to open %s", path);
    }
    j->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666); /* a FIFO must not block */
    if (j->fd < 0)
        r = hs_fail(err, HS_EIO, "cannot open %s for writing: %s", path, strerror(errno));
    else if (fstat(j->fd, &st) || !S_ISREG(st.st_mode))
        r = hs_fail(err, HS_EIO, "%s is not a regular file", path);
    if (r || (r = lock(j, err)) || (r = take_over(path, identity, fn, user, &len, &whole, err)) ||
        (r = make_whole(j, identity, len, whole, err))) {
        if (j->fd >= 0) close(j->fd);
        hs_free(j->path);
        hs_free(j);
        return r;
    }
    *ret = j;
    return 0;
}

int hs_journal_close(hs_journal *j, hs_err *err) {
    if (!j) return 0;
    int why = j->unsynced && fsync(j->fd) ? errno : 0;
    if (close(j->fd) && !why) why = errno;
    int r = why ? hs_fail(err, HS_EIO, "cannot finish %s: %s", j->path, strerror(why)) : 0;
    hs_free(j->path);
    hs_free(j);
    return r;
}
