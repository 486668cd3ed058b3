#include "run_files.h"
#include "newfile.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int hs_place_check(const char *option, const char *path, int in_place, hs_err *err) {
    const size_t n = strlen(path);
    struct stat st;
    if (!n) return hs_fail(err, HS_EINVAL, "%s: the path is empty, expected the name of a file", option);
    const int there = !stat(path, &st);
    if (path[n - 1] == '/' || (there && S_ISDIR(st.st_mode)))
        return hs_fail(err, HS_EINVAL, "%s %s: is a folder, expected a file: give a name in it", option, path);
    if (there && !S_ISREG(st.st_mode) && !in_place)
        return hs_fail(err, HS_EINVAL, "%s %s: exists and is no regular file: give another name", option, path);
    if (there && in_place)
        return access(path, W_OK) ? hs_fail(err, HS_EIO, "%s %s: cannot write: %s", option, path, strerror(errno)) : 0;
    const int r = hs_newfile_folder(path, err);
    return r ? hs_fail_ctx(err, r, "%s", option) : 0;
}

int hs_places_differ(const hs_place *p, int n, hs_err *err) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            if (p[i].path && p[j].path && (!p[i].input || !p[j].input) && hs_newfile_same(p[i].path, p[j].path))
                return hs_fail(err, HS_EINVAL, "%s and %s are both %s, and one would replace the other: give two names",
                               p[j].option, p[i].option, p[i].path);
    return 0;
}
