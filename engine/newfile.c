#include "newfile.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FOLDER_SIZE = 4096 };

int hs_newfile_open(const char *path, hs_newfile *ret, hs_err *err) {
    static _Atomic int serial;
    struct stat s;
    if (!stat(path, &s) && !S_ISREG(s.st_mode))
        return hs_fail(err, HS_EIO, "cannot write %s: it exists and is not a regular file", path);
    const size_t size = strlen(path) + 40;
    hs_newfile f = {.path = path, .tmp = hs_alloc(size)};
    if (!f.tmp) return hs_fail(err, HS_ENOMEM, "no memory to write %s", path);
    snprintf(f.tmp, size, "%s.tmp.%ld.%d", path, (long)getpid(), atomic_fetch_add(&serial, 1));
    f.fd = open(f.tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f.fd < 0) {
        const int rc = hs_fail(err, HS_EIO, "cannot write %s: creating %s: %s", path, f.tmp, strerror(errno));
        hs_free(f.tmp);
        return rc;
    }
    *ret = f;
    return 0;
}

int hs_newfile_write(hs_newfile *f, const void *data, size_t bytes) {
    const char *p = data;
    while (bytes && !f->failed) {
        const ssize_t n = write(f->fd, p, bytes < 1u << 30 ? bytes : 1u << 30);
        if (n > 0)
            p += n, bytes -= (size_t)n;
        else if (n == 0 || errno != EINTR)
            f->failed = n ? errno : EIO;
    }
    return f->failed ? -1 : 0;
}

int hs_newfile_done(hs_newfile *f, int rc, hs_err *err) {
    if (!rc && !f->failed && fsync(f->fd)) f->failed = errno;
    if (close(f->fd) && !f->failed) f->failed = errno;
    if (!rc && !f->failed && rename(f->tmp, f->path)) f->failed = errno;
    if (rc || f->failed) unlink(f->tmp);
    hs_free(f->tmp);
    return rc || !f->failed ? rc : hs_fail(err, HS_EIO, "cannot write %s: %s", f->path, strerror(f->failed));
}

int hs_newfile_text(const char *path, const char *text, hs_err *err) {
    hs_newfile f;
    const int rc = hs_newfile_open(path, &f, err);
    if (rc) return rc;
    hs_newfile_write(&f, text, strlen(text));
    return hs_newfile_done(&f, 0, err);
}

void hs_newfile_sweep(const char *path) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const size_t stem = strlen(base);
    char *dir = slash ? hs_strdup(path) : NULL, *name;
    if (dir) dir[slash - path + (slash == path)] = 0;
    DIR *d = opendir(dir ? dir : ".");
    for (struct dirent *e; d && (e = readdir(d));) {
        long pid;
        int end = 0;
        if (strncmp(e->d_name, base, stem) || sscanf(e->d_name + stem, ".tmp.%ld.%*d%n", &pid, &end) != 1 || !end ||
            e->d_name[stem + (size_t)end] || !kill((pid_t)pid, 0) || errno != ESRCH)
            continue;
        if ((name = hs_path_join(dir ? dir : ".", e->d_name))) remove(name);
        hs_free(name);
    }
    if (d) closedir(d);
    hs_free(dir);
}

/* The folder that a path lies in: 0, or HS_EINVAL. */
static int folder_of(const char *path, char ret[FOLDER_SIZE], hs_err *err) {
    const char *slash = strrchr(path, '/');
    const int n = slash == path ? 1 : slash ? (int)(slash - path) : 0;
    if (snprintf(ret, FOLDER_SIZE, "%.*s", n ? n : 1, n ? path : ".") < FOLDER_SIZE) return 0;
    return hs_fail(err, HS_EINVAL, "%.100s...: path too long", path);
}

int hs_newfile_folder(const char *path, hs_err *err) {
    char dir[FOLDER_SIZE];
    const int rc = folder_of(path, dir, err);
    if (rc || !access(dir, W_OK | X_OK)) return rc;
    const int code = errno;
    return hs_fail(err, HS_EIO, "%s: cannot write into folder %s: %s%s%s", path, dir, strerror(code),
                   code == ENOENT ? "; create it first: mkdir -p " : "", code == ENOENT ? dir : "");
}

int hs_newfile_same(const char *a, const char *b) {
    const char *name_a = strrchr(a, '/'), *name_b = strrchr(b, '/');
    char dir_a[FOLDER_SIZE], dir_b[FOLDER_SIZE];
    struct stat x, y;
    const int there = !stat(a, &x);
    if (there != !stat(b, &y) || (there && !S_ISREG(x.st_mode))) return 0;
    if (!there && (strcmp(name_a ? name_a + 1 : a, name_b ? name_b + 1 : b) || folder_of(a, dir_a, NULL) ||
                   folder_of(b, dir_b, NULL) || stat(dir_a, &x) || stat(dir_b, &y)))
        return 0;
    return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}
