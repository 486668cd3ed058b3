/* An append-only file of JSON lines that survives kill -9: what haste-calibrate and haste-eval have measured.
 *
 * The first line says what the file belongs to (identity); every further line is one record. A line counts only when it
 * ends in a newline: a torn last line, left by a killed writer, is cut off when the file is opened for writing and
 * skipped when it is read. One writer at a time (a lock on the file); any number of readers.
 */
#ifndef HS_JOURNAL_H
#define HS_JOURNAL_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_journal hs_journal;

/* Called for every whole line after the first, without its newline, NUL-terminated; `number` counts lines from 1. */
typedef int (*hs_journal_fn)(void *user, const char *json, size_t len, int number, hs_err *err);

/* Opens or makes the file. identity: one line of JSON without newline. A file with another identity is refused
 * (HS_EINVAL) and the message names the first member that differs, found and expected. The lines that
 * are there are handed to fn (may be NULL). */
int hs_journal_open(const char *path, const char *identity, hs_journal_fn fn, void *user, hs_journal **ret,
                    hs_err *err);
/* The same without writing: what is there is handed out; a missing file is empty. */
int hs_journal_peek(const char *path, const char *identity, hs_journal_fn fn, void *user, hs_err *err);
/* Reads without writing, whatever the identity: ret_identity to be freed by hs_free. */
int hs_journal_read(const char *path, char **ret_identity, hs_journal_fn fn, void *user, hs_err *err);
/* Appends one line and hands it to the disk (fsync at most once a second, and on close). After a failure (disk full)
 * the file ends with the last whole line. */
int hs_journal_append(hs_journal *j, const char *json, hs_err *err);
/* Are two identities the same? HS_EINVAL names the first member that differs, in words about the file `path`. */
int hs_journal_same(const char *path, const char *found, const char *expected, hs_err *err);
/* Accepts NULL. */
int hs_journal_close(hs_journal *j, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
