/* Folders of shards: the index says which file holds which tensor, and must be right. */
#include "json.h"
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_INDEX = 100000000 /* bytes */, NAME = 256 };

typedef struct entry {
    const char *name, *file; /* borrowed from the JSON document */
} entry;

static int entry_by_name(const void *a, const void *b) {
    return strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}
static int entry_by_file(const void *a, const void *b) {
    return strcmp(((const entry *)a)->file, ((const entry *)b)->file);
}

/* weight_map -> *ret [*ret_n], sorted by shard. */
static int read_entries(const cJSON *doc, const char *path, entry **ret, int *ret_n, hs_err *err) {
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(doc, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        return hs_fail(err, HS_EFORMAT, "%s: no weight_map, expected {tensor name: shard file}", path);
    int n = 0;
    entry *e = hs_alloc((size_t)cJSON_GetArraySize(map) * sizeof(*e));
    if (!e) return hs_fail(err, HS_ENOMEM, "no memory for the tensor names of %s", path);
    for (const cJSON *v = map->child; v; v = v->next) {
        const char *file = cJSON_IsString(v) ? v->valuestring : "";
        if (!*file || strchr(file, '/') || !strcmp(file, ".") || !strcmp(file, "..")) {
            hs_free(e);
            return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' is in '%s', expected the name of a file beside the index",
                           path, v->string, file);
        }
        e[n++] = (entry){v->string, file};
    }
    qsort(e, (size_t)n, sizeof(*e), entry_by_file);
    *ret = e;
    *ret_n = n;
    return HS_OK;
}

/* The shards of entries sorted by shard, each once: *ret [*ret_n] of paths, all owned. */
static int list_shards(const char *dir, const entry *e, int n, char ***ret, int *ret_n, hs_err *err) {
    int shards = 0;
    char **paths = hs_calloc((size_t)n, sizeof *paths);
    *ret = paths;
    for (int i = 0; i < n && paths; i++) {
        if (i && !strcmp(e[i].file, e[i - 1].file)) continue;
        if (!(paths[shards++] = hs_path_join(dir, e[i].file))) break;
    }
    *ret_n = shards;
    return paths && paths[shards - 1] ? HS_OK : hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
}

/* The index must name exactly the tensors that the shards hold. Both lists are sorted by name. */
static int compare(const hs_st *st, const entry *e, int n, const char *path, hs_err *err) {
    const int held = hs_st_count(st);
    for (int i = 0, j = 0; i < n || j < held;) {
        const hs_st_tensor *t = j < held ? hs_st_at(st, j) : NULL;
        const int c = i == n ? 1 : !t ? -1 : strcmp(e[i].name, t->name);
        if (c < 0)
            return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' is not in its shard %s", path, e[i].name, e[i].file);
        if (c > 0) return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' of %s is not named", path, t->name, t->file);
        const char *base = strrchr(t->file, '/');
        if (strcmp(base + 1, e[i].file)) /* paths were joined, so there is a '/' */
            return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' should be in %s, but is in %s", path, e[i].name, e[i].file,
                           t->file);
        i++;
        j++;
    }
    return HS_OK;
}

static int open_index(const char *dir, const char *path, hs_st **ret, hs_err *err) {
    char *text = NULL, **paths = NULL;
    size_t len;
    cJSON *doc = NULL;
    entry *e = NULL;
    hs_st *st = NULL;
    int n = 0, shards = 0;
    int rc = hs_file_read(path, MAX_INDEX, &text, &len, err);
    if (!rc) rc = hs_json_parse(text, len, path, &doc, err);
    if (!rc) rc = read_entries(doc, path, &e, &n, err);
    if (!rc) rc = list_shards(dir, e, n, &paths, &shards, err);
    for (int i = 0; i < shards && !rc; i++)
        if (access(paths[i], F_OK))
            rc = hs_fail(err, HS_EIO, "cannot open %s: %s; %s names it: an incomplete download, fetch it again",
                         paths[i], strerror(errno), path);
    if (!rc) rc = hs_st_open_files(path, shards, (const char *const *)paths, &st, err);
    if (!rc) {
        qsort(e, (size_t)n, sizeof(*e), entry_by_name);
        rc = compare(st, e, n, path, err);
    }
    for (int i = 0; i < shards && paths; i++) hs_free(paths[i]);
    hs_free(paths);
    hs_free(e);
    cJSON_Delete(doc);
    hs_free(text);
    if (rc)
        hs_st_close(st);
    else
        *ret = st;
    return rc;
}

/* The name of what hs_st_open_dir opens, in ret; how many there are: more than 1 only where several variants are. */
static int find_stock(const char *dir, const char *stem, char ret[NAME]) {
    enum { VARIANT = 1, SINGLE, INDEX };
    char single[NAME];
    const int len = snprintf(single, sizeof single, "%s.safetensors", stem);
    int best = 0, n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (strncmp(e->d_name, single, (size_t)len)) continue;
        const char *tail = e->d_name + len, *end = strrchr(e->d_name, '.');
        const int rank = !*tail                                                  ? SINGLE
                         : !strcmp(tail, ".index.json")                          ? INDEX
                         : !strncmp(tail, ".index.", 7) && !strcmp(end, ".json") ? VARIANT
                                                                                 : 0;
        if (rank < best || !rank) continue;
        n = rank == best ? n + 1 : 1;
        best = rank;
        snprintf(ret, NAME, "%s", e->d_name);
    }
    if (d) closedir(d);
    return n;
}

int hs_st_dir_has(const char *dir, const char *stem) {
    char name[NAME];
    return find_stock(dir, stem, name) > 0;
}

int hs_st_open_dir(const char *dir, const char *stem, hs_st **ret, hs_err *err) {
    char name[NAME] = "";
    const int n = find_stock(dir, stem, name);
    if (!n)
        return hs_fail(err, HS_EIO,
                       "%s holds neither %s.safetensors.index.json nor the file without .index.json: not a model "
                       "folder, or an incomplete download",
                       dir, stem);
    if (n > 1)
        return hs_fail(err, HS_EINVAL, "%s holds %d variants, %s among them: keep the index of one", dir, n, name);
    char *path = hs_path_join(dir, name);
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
    const int rc = strcmp(strrchr(name, '.'), ".json") ? hs_st_open(path, ret, err) : open_index(dir, path, ret, err);
    hs_free(path);
    return rc;
}
