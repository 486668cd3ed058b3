/* The journal: what is in it after good and bad ends, and what it refuses. */
#include "util.h"
#include "journal.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(journal, .fini = scratch_remove);

static const char identity[] = "{\"format\":\"test\",\"of\":{\"width\":256,\"list\":[1,2]},\"seed\":3}";

/* Every line that is handed out, with its number. */
typedef struct seen {
    int lines, fail_at;
    char text[65536];
} seen;

static int see(void *user, const char *json, size_t len, int number, hs_err *err) {
    seen *s = user;
    cr_assert_eq(strlen(json), len);
    cr_assert_eq(number, s->lines + 2);
    if (++s->lines == s->fail_at) return hs_fail(err, HS_EFORMAT, "cannot use this");
    cr_assert_lt(strlen(s->text) + len + 2, sizeof s->text);
    strcat(strcat(s->text, json), "|");
    return 0;
}

static hs_journal *open_it(const char *path, seen *s) {
    hs_err err = {0};
    hs_journal *j = NULL;
    cr_assert_eq(hs_journal_open(path, identity, s ? see : NULL, s, &j, &err), 0, "%s", err.msg);
    return j;
}

static void add(hs_journal *j, const char *json) {
    hs_err err = {0};
    cr_assert_eq(hs_journal_append(j, json, &err), 0, "%s", err.msg);
}

static const char *content(const char *path) {
    static char text[65536];
    FILE *f = fopen(path, "rb");
    cr_assert_not_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return text;
}

static void refused(const char *path, int code, const char *message) {
    hs_err err = {0};
    hs_journal *j = NULL;
    cr_assert_eq(hs_journal_open(path, identity, NULL, NULL, &j, &err), code, "%d: %s", err.code, err.msg);
    cr_assert_null(j);
    cr_assert(strstr(err.msg, message) && strstr(err.msg, path), "%s", err.msg);
    if (code == HS_EINVAL || code == HS_EFORMAT) cr_assert_eq(hs_journal_peek(path, identity, NULL, NULL, &err), code);
}

Test(journal, goes_on_where_it_was) {
    const char *path = scratch("t");
    seen s = {0};
    hs_journal *j = open_it(path, &s);
    add(j, "{\"a\":1}");
    add(j, "{\"b\":2}");
    cr_assert_eq(hs_journal_close(j, NULL), 0);
    cr_assert_eq(s.lines, 0);
    j = open_it(path, &s);
    cr_assert_str_eq(s.text, "{\"a\":1}|{\"b\":2}|");
    add(j, "{\"c\":3}");
    cr_assert_eq(hs_journal_close(j, NULL), 0);
    char want[256], *id = NULL;
    snprintf(want, sizeof want, "%s\n{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n", identity);
    cr_assert_str_eq(content(path), want);
    s = (seen){0};
    cr_assert_eq(hs_journal_read(path, &id, see, &s, NULL), 0);
    cr_assert_str_eq(id, identity);
    cr_assert_str_eq(s.text, "{\"a\":1}|{\"b\":2}|{\"c\":3}|");
    hs_free(id);
    cr_assert_eq(hs_journal_close(NULL, NULL), 0);
    cr_assert_eq(hs_journal_peek(scratch("missing"), identity, NULL, NULL, NULL), 0);
    cr_assert(access(scratch("missing"), F_OK));
    cr_assert_eq(hs_alloc_live(), 0);
}

/* Cut at every byte: lines that were whole stay, the rest is gone after the next opening, and skipped by a reader. */
Test(journal, torn_anywhere) {
    const char *path = scratch("t");
    char whole[256];
    snprintf(whole, sizeof whole, "%s\n{\"a\":1}\n{\"b\":2}\n", identity);
    for (size_t len = 0; len <= strlen(whole); len++) {
        char *id = NULL, want[512] = "", lines[64] = "";
        const size_t first = strlen(identity) + 1;
        if (len >= first + 8) strcat(lines, "{\"a\":1}|");
        if (len >= first + 16) strcat(lines, "{\"b\":2}|");
        write_file(path, whole, len);
        seen s = {0};
        if (len < first) {
            cr_assert_eq(hs_journal_read(path, &id, see, &s, NULL), HS_EFORMAT);
        } else {
            cr_assert_eq(hs_journal_read(path, &id, see, &s, NULL), 0);
            cr_assert_str_eq(id, identity);
            hs_free(id);
        }
        cr_assert_str_eq(s.text, lines, "read, %zu bytes", len);
        cr_assert_eq(strlen(content(path)), len, "reading must not write");
        s = (seen){0};
        cr_assert_eq(hs_journal_peek(path, identity, see, &s, NULL), 0);
        cr_assert_str_eq(s.text, lines, "peeked, %zu bytes", len);
        cr_assert_eq(strlen(content(path)), len, "looking must not write");
        s = (seen){0};
        hs_journal *j = open_it(path, &s);
        cr_assert_str_eq(s.text, lines, "opened, %zu bytes", len);
        add(j, "{\"n\":9}");
        cr_assert_eq(hs_journal_close(j, NULL), 0);
        snprintf(want, sizeof want, "%s\n%s%s{\"n\":9}\n", identity, len >= first + 8 ? "{\"a\":1}\n" : "",
                 len >= first + 16 ? "{\"b\":2}\n" : "");
        cr_assert_str_eq(content(path), want, "%zu bytes", len);
    }
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(journal, refuses_what_is_not_its_own) {
    static const struct {
        const char *from, *to, *message;
    } other[] = {{"256", "832", "its of.width is 832, expected 256"},
                 {"[1,2]", "[1,3]", "its of.list is [1,3], expected [1,2]"},
                 {"\"test\"", "\"tost\"", "its format is \"tost\", expected \"test\""},
                 {",\"seed\":3", "", "its seed is missing, expected 3"},
                 {"\"width\"", "\"height\":1,\"width\"", "its of.height is 1, expected missing"},
                 {"{\"width\":256,\"list\":[1,2]}", "7", "its of is 7, expected {\"width\""}};
    const char *path = scratch("t");
    for (size_t k = 0; k < sizeof other / sizeof *other; k++) {
        char text[256];
        snprintf(text, sizeof text, "%s\n{\"a\":1}\nnot yet who", edit(identity, other[k].from, other[k].to));
        write_text(path, text);
        refused(path, HS_EINVAL, other[k].message);
        cr_assert_str_eq(content(path), text, "a refused file must not change");
    }
    hs_err err = {0}; /* nothing about removing: the file may hold days of measurements */
    cr_assert_eq(hs_journal_same("t", "{\"a\":1}", "{\"a\":2}", &err), HS_EINVAL);
    cr_assert_str_eq(err.msg,
                     "t belongs to something else: its a is 1, expected 2. Go on with the settings that it was "
                     "made with, or name another place");
    /* order of members and spaces mean nothing */
    write_text(path, "{\"seed\": 3, \"of\": {\"list\": [1, 2], \"width\": 256}, \"format\": \"test\"}\n");
    hs_journal_close(open_it(path, NULL), NULL);
    write_text(path, "PK\3\4 something else");
    refused(path, HS_EFORMAT, "is no table");
    write_text(path, "some\nother\nfile\n");
    refused(path, HS_EFORMAT, path);
    make_dir(scratch("d"));
    refused(scratch("d"), HS_EIO, "cannot open");
    refused(scratch("no/such"), HS_EIO, "cannot open");
    refused("/dev/null", HS_EIO, "not a regular file");
    cr_assert_eq(mkfifo(scratch("fifo"), 0600), 0);
    refused(scratch("fifo"), HS_EIO, "not a regular file");
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(journal, a_bad_line_is_named) {
    const char *path = scratch("t");
    char text[256], *id = NULL;
    hs_err err = {0};
    hs_journal *j = NULL;
    seen s = {.fail_at = 2};
    snprintf(text, sizeof text, "%s\n{\"a\":1}\n{\"b\":2}\n{\"c\":3}\n", identity);
    write_text(path, text);
    cr_assert_eq(hs_journal_open(path, identity, see, &s, &j, &err), HS_EFORMAT);
    cr_assert(strstr(err.msg, "line 3: cannot use this") && strstr(err.msg, path), "%s", err.msg);
    s = (seen){.fail_at = 3};
    cr_assert_eq(hs_journal_read(path, &id, see, &s, &err), HS_EFORMAT);
    cr_assert(strstr(err.msg, "line 4: cannot use this"), "%s", err.msg);
    cr_assert_str_eq(content(path), text);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(journal, one_writer_at_a_time) {
    const char *path = scratch("t");
    char *id = NULL;
    hs_journal *j = open_it(path, NULL);
    refused(path, HS_EIO, "written by another process");
    add(j, "{\"a\":1}");
    cr_assert_eq(hs_journal_read(path, &id, NULL, NULL, NULL), 0, "readers need no lock");
    hs_free(id);
    hs_journal_close(j, NULL);
    hs_journal_close(open_it(path, NULL), NULL);
}

/* The file may not grow beyond a limit: the line that does not fit is not there, the ones before are, and once there is
 * room the same journal goes on. */
Test(journal, disk_full) {
    const char *path = scratch("t");
    hs_err err = {0};
    seen s = {0};
    hs_journal *j = open_it(path, NULL);
    signal(SIGXFSZ, SIG_IGN);
    add(j, "{\"a\":1}");
    const size_t before = strlen(content(path));
    struct rlimit limit, was;
    getrlimit(RLIMIT_FSIZE, &was);
    limit = was;
    for (size_t room = 0; room < 8; room++) { /* the write is cut at every place */
        limit.rlim_cur = before + room;
        setrlimit(RLIMIT_FSIZE, &limit);
        cr_assert_eq(hs_journal_append(j, "{\"b\":2}", &err), HS_EIO, "%zu bytes are free", room);
        cr_assert(strstr(err.msg, path) && strstr(err.msg, "File too large"), "%s", err.msg);
        cr_assert_eq(strlen(content(path)), before);
    }
    setrlimit(RLIMIT_FSIZE, &was);
    add(j, "{\"c\":3}");
    cr_assert_eq(hs_journal_close(j, NULL), 0);
    hs_journal_close(open_it(path, &s), NULL);
    cr_assert_str_eq(s.text, "{\"a\":1}|{\"c\":3}|");
}

/* kill -9 at random: every line that append said is written is there, whole. */
Test(journal, killed_at_random) {
    const char *path = scratch("t");
    int total = 0;
    for (int round = 0; round < 50; round++) {
        int report[2];
        cr_assert_eq(pipe(report), 0);
        pid_t child = fork();
        if (!child) {
            hs_journal *j = NULL;
            if (hs_journal_open(path, identity, NULL, NULL, &j, NULL)) _exit(1);
            for (int k = 0;; k++) {
                char line[64];
                snprintf(line, sizeof line, "{\"round\":%d,\"k\":%d}", round, k);
                if (hs_journal_append(j, line, NULL) || write(report[1], "x", 1) != 1) _exit(1);
                usleep(50);
            }
        }
        close(report[1]);
        usleep((unsigned)(hs_hash64((uint64_t)round) % 5000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        char buf[4096];
        int said = 0;
        for (ssize_t n; (n = read(report[0], buf, sizeof buf)) > 0;) said += (int)n;
        close(report[0]);
        char *id = NULL;
        if (hs_journal_read(path, &id, NULL, NULL, NULL)) {
            cr_assert_eq(said, 0);
            continue;
        }
        hs_free(id);
        int lines = -1; /* all but the first */
        for (const char *c = content(path); *c; c++) lines += *c == '\n';
        cr_assert_geq(lines, total + said, "round %d", round);
        cr_assert_leq(lines, total + said + 1, "round %d", round);
        total = lines;
        if (total > 1000) {
            cr_assert_eq(unlink(path), 0);
            total = 0;
        }
    }
}

static int open_and_add(void *path, hs_err *err) {
    hs_journal *j = NULL;
    int r = hs_journal_open(path, identity, NULL, NULL, &j, err);
    if (r) return r;
    r = hs_journal_append(j, "{\"a\":1}", err);
    hs_journal_close(j, NULL);
    return r;
}

Test(journal, no_memory) {
    const char *path = scratch("t");
    cr_assert_geq(fail_allocations(open_and_add, (void *)path, "making a journal"), 3);
    cr_assert_geq(fail_allocations(open_and_add, (void *)path, "opening a journal"), 10);
    seen s = {0};
    hs_journal_close(open_it(path, &s), NULL);
    cr_assert_eq(s.lines, 2);
}
