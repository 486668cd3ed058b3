/* A file that appears whole or not at all: it is written under a name beside its own, flushed to disk and renamed. */
#ifndef HS_NEWFILE_H
#define HS_NEWFILE_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_newfile {
    const char *path; /* borrowed */
    char *tmp;        /* owned: PATH.tmp.PID.N */
    int fd, failed;   /* failed: errno of the first write that failed */
} hs_newfile;

/* HS_EIO with the reason; what exists and is no regular file is refused (renaming over /dev/null would replace it). */
int hs_newfile_open(const char *path, hs_newfile *ret, hs_err *err);
/* 0, or -1 once something failed; hs_newfile_done says what. */
int hs_newfile_write(hs_newfile *f, const void *data, size_t bytes);
/* Closes the file and gives it its name. With rc, or after a failure, nothing is left of it; returns rc or HS_EIO. */
int hs_newfile_done(hs_newfile *f, int rc, hs_err *err);
/* All of that for one text. */
int hs_newfile_text(const char *path, const char *text, hs_err *err);
/* Whether the folder of path takes files; HS_EIO with the cure if it is missing. */
int hs_newfile_folder(const char *path, hs_err *err);
/* Whether both paths lead to one file, there or not yet; devices do not count. */
int hs_newfile_same(const char *a, const char *b);
/* Removes what writers of path left that were killed: PATH.tmp.PID.N where PID is no more. */
void hs_newfile_sweep(const char *path);

#ifdef __cplusplus
}
#endif
#endif
