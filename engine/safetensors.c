/* Safetensors: header checks, shards behind one sorted list of tensors. (Folders with an index:
 * safetensors_index.c; writing: safetensors_write.c.)
 *
 * Opening goes one way: map a shard, parse its header into the set's list (header_add), then sort and look for a name
 * in two shards (set_finish). Nothing of a header is believed before it is checked: lengths against the file, shapes
 * against byte ranges, ranges against each other. The strings of a shard live in one block, as large as its header.
 *
 * A mapped file that another process makes shorter raises SIGBUS when the lost pages are read: model files are replaced
 * by renaming, never cut in place (hs_st_write does so too).
 */
#include "safetensors.h"
#include "ahead.h"
#include "json.h"
#include "pth.h"
#include "zip.h"
#include "random.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_HEADER = 100000000, MAX_SHARDS = 4096, PREFIX = 8 /* bytes of the header length */ };

typedef struct shard {
    char *path;    /* owned; tensors point to it */
    char *strings; /* owned: names and metadata */
    void *map;     /* NULL if only parsed */
    size_t map_len;
} shard;

struct hs_st {
    char *label; /* what was opened, for messages about the whole set */
    hs_st_tensor *t;
    int n;
    shard *shards;
    int n_shards;
    const char **meta; /* key, value, ...: of the first shard */
    int n_meta;
    int64_t bytes;
    char *names;       /* owned: what hs_st_translate made of them */
    hs_random *random; /* NULL: the tensors are those of the files */
    hs_ahead *ahead;   /* reads what comes next; NULL before the first hs_st_expect, or where no thread starts */
    int ahead_tried;
};

/* ---- one header ------------------------------------------------------------------------------------------------ */

static const char *keep(char **at, const char *s) {
    size_t n = strlen(s) + 1;
    char *p = memcpy(*at, s, n);
    *at += n;
    return p;
}

void hs_st_shape_text(const hs_st_tensor *t, char *ret, size_t size) {
    size_t at = 0;
    ret[0] = '\0';
    for (int i = 0; i < t->ndim && at < size; i++)
        at += (size_t)snprintf(ret + at, size - at, i ? ",%lld" : "%lld", (long long)t->shape[i]);
}

static int parse_dtype(const cJSON *v, hs_dtype *ret) {
    if (!cJSON_IsString(v)) return 0;
    for (int i = 0; i < HS_DTYPE_COUNT; i++)
        if (!strcmp(v->valuestring, hs_dtype_name((hs_dtype)i))) {
            *ret = (hs_dtype)i;
            return 1;
        }
    return 0;
}

/* One entry {"dtype":..,"shape":[..],"data_offsets":[b,e]}; *ret_begin, *ret_end are relative to the data. */
static int parse_tensor(const cJSON *v, const char *path, hs_st_tensor *t, int64_t *ret_begin, int64_t *ret_end,
                        hs_err *err) {
    const char *name = v->string;
    if (!cJSON_IsObject(v))
        return hs_fail(err, HS_EFORMAT, "%s: entry '%s' of the header is not an object", path, name);
    for (const cJSON *k = v->child; k; k = k->next)
        if (strcmp(k->string, "dtype") && strcmp(k->string, "shape") && strcmp(k->string, "data_offsets"))
            return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' has an unknown key '%s'", path, name, k->string);

    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(v, "dtype");
    if (!parse_dtype(dtype, &t->dtype))
        return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' has dtype %s, expected one of F32 BF16 F16 U8 I32 F8_E4M3%s",
                       path, name, cJSON_IsString(dtype) ? dtype->valuestring : "(none)",
                       cJSON_IsString(dtype) && !strncmp(dtype->valuestring, "F8_", 3)
                           ? ": use the fp8_e4m3fn, fp16 or bf16 file of this model"
                           : "");

    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(v, "shape");
    if (!cJSON_IsArray(shape)) return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' has no shape", path, name);
    t->numel = 1;
    t->ndim = 0;
    for (const cJSON *d = shape->child; d; d = d->next) {
        if (t->ndim == HS_ST_MAX_DIMS)
            return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' has more than %d dimensions", path, name, HS_ST_MAX_DIMS);
        int64_t n;
        if (!hs_json_is_count(d, &n) || hs_mul(t->numel, n, &t->numel))
            return hs_fail(err, HS_EFORMAT, "%s: tensor '%s': dimension %d is not a size", path, name, t->ndim);
        t->shape[t->ndim++] = n;
    }

    const cJSON *off = cJSON_GetObjectItemCaseSensitive(v, "data_offsets");
    if (!cJSON_IsArray(off) || cJSON_GetArraySize(off) != 2 || !hs_json_is_count(off->child, ret_begin) ||
        !hs_json_is_count(off->child->next, ret_end) || *ret_begin > *ret_end)
        return hs_fail(err, HS_EFORMAT, "%s: tensor '%s': data_offsets are not two ascending integers", path, name);
    int64_t bytes;
    if (hs_mul(t->numel, (int64_t)hs_dtype_size(t->dtype), &bytes) || bytes != *ret_end - *ret_begin) {
        char text[160];
        hs_st_shape_text(t, text, sizeof(text));
        return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' [%s] %s does not fill its %lld bytes", path, name, text,
                       hs_dtype_name(t->dtype), (long long)(*ret_end - *ret_begin));
    }
    return HS_OK;
}

typedef struct range {
    int64_t begin, end;
    const char *name;
} range;

static int by_begin(const void *a, const void *b) {
    const range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int check_overlap(range *r, int n, const char *path, hs_err *err) {
    qsort(r, (size_t)n, sizeof(*r), by_begin);
    for (int i = 1; i < n; i++)
        if (r[i].begin < r[i - 1].end)
            return hs_fail(err, HS_EFORMAT, "%s: tensors '%s' and '%s' overlap at byte %lld of the data", path,
                           r[i - 1].name, r[i].name, (long long)r[i].begin);
    return HS_OK;
}

static int parse_metadata(hs_st *st, const cJSON *meta, const char *path, char **strings, hs_err *err) {
    if (!cJSON_IsObject(meta)) return hs_fail(err, HS_EFORMAT, "%s: __metadata__ is not an object", path);
    for (const cJSON *m = meta->child; m; m = m->next)
        if (!cJSON_IsString(m))
            return hs_fail(err, HS_EFORMAT, "%s: __metadata__ '%s' is not a string", path, m->string);
    if (st->n_shards > 1) return HS_OK;
    st->meta = hs_alloc(2 * (size_t)cJSON_GetArraySize(meta) * sizeof(*st->meta));
    if (!st->meta) return hs_fail(err, HS_ENOMEM, "no memory for the metadata of %s", path);
    for (const cJSON *m = meta->child; m; m = m->next) {
        st->meta[st->n_meta++] = keep(strings, m->string);
        st->meta[st->n_meta++] = keep(strings, m->valuestring);
    }
    return HS_OK;
}

/* Room for n more tensors; 0 when memory runs out. */
static int set_room(hs_st *st, int n) {
    hs_st_tensor *t = hs_alloc(((size_t)st->n + (size_t)n + 1) * sizeof(*t));
    if (!t) return 0;
    if (st->t) memcpy(t, st->t, (size_t)st->n * sizeof(*t));
    hs_free(st->t);
    st->t = t;
    return 1;
}

/* Appends the tensors of shard *sh, whose first len bytes are at data, to the set. */
static int header_add(hs_st *st, shard *sh, const void *data, size_t len, int64_t file_size, hs_err *err) {
    const char *path = sh->path;
    const unsigned char *p = data;
    uint64_t hlen = 0;
    if (file_size < PREFIX || len < PREFIX)
        return hs_fail(err, HS_EFORMAT, "%s has %lld bytes: too short for a safetensors file", path,
                       (long long)file_size);
    for (int i = 0; i < PREFIX; i++) hlen |= (uint64_t)p[i] << 8 * i;
    if (hlen > MAX_HEADER)
        return hs_fail(err, HS_EFORMAT,
                       "%s is neither a safetensors file nor a PyTorch checkpoint: its first bytes would be a header "
                       "of %llu bytes, expected at most %d",
                       path, (unsigned long long)hlen, MAX_HEADER);
    if (hlen > (uint64_t)file_size - PREFIX)
        return hs_fail(
            err, HS_EFORMAT,
            "%s: header length %llu, but the file has %lld bytes: truncated, or not a safetensors file; fetch it again",
            path, (unsigned long long)hlen, (long long)file_size);
    if (hlen > len - PREFIX)
        return hs_fail(err, HS_EFORMAT, "%s: %zu bytes given, but the header needs %llu", path, len,
                       (unsigned long long)hlen + PREFIX);

    cJSON *doc = NULL;
    range *ranges = NULL;
    int rc = hs_json_parse((const char *)data + PREFIX, (size_t)hlen, path, &doc, err);
    if (rc) return rc;
    if (!cJSON_IsObject(doc)) {
        rc = hs_fail(err, HS_EFORMAT, "%s: the header is not a JSON object", path);
        goto out;
    }
    const int count = cJSON_GetArraySize(doc); /* at most HS_JSON_MAX_VALUES */
    const int room = set_room(st, count);
    /* an unescaped string with its NUL is shorter than the quoted one, so all of them fit into the length of the header
     */
    sh->strings = hs_alloc((size_t)hlen + 1);
    ranges = hs_alloc(((size_t)count + 1) * sizeof(*ranges));
    if (!room || !sh->strings || !ranges) {
        rc = hs_fail(err, HS_ENOMEM, "no memory for the %d tensors of %s", count, path);
        goto out;
    }
    int64_t base = PREFIX + (int64_t)hlen, space = file_size - base;
    char *strings = sh->strings;
    int n = 0;
    for (const cJSON *v = doc->child; v; v = v->next) {
        if (!strcmp(v->string, "__metadata__")) {
            rc = parse_metadata(st, v, path, &strings, err);
            if (rc) goto out;
            continue;
        }
        hs_st_tensor *x = &st->t[st->n + n];
        range *r = &ranges[n];
        *x = (hs_st_tensor){.scale = 1};
        rc = parse_tensor(v, path, x, &r->begin, &r->end, err);
        if (rc) goto out;
        if (r->end > space) {
            rc = hs_fail(
                err, HS_EFORMAT,
                "%s: tensor '%s' ends at byte %lld, but the file has %lld: truncated or damaged; fetch it again", path,
                v->string, (long long)(base + r->end), (long long)file_size);
            goto out;
        }
        x->name = r->name = keep(&strings, v->string);
        x->file = path;
        x->data = base + r->end <= (int64_t)len ? (const char *)data + base + r->begin : NULL;
        n++;
    }
    rc = check_overlap(ranges, n, path, err);
    if (rc) goto out;
    st->n += n;
    for (int i = 0; i < n; i++) st->bytes += ranges[i].end - ranges[i].begin; /* no overlap: at most the file */
out:
    hs_free(ranges);
    cJSON_Delete(doc);
    return rc;
}

/* The tensors of a PyTorch checkpoint. */
static int checkpoint_add(hs_st *st, shard *sh, const void *data, size_t len, hs_err *err) {
    hs_st_tensor *t = NULL;
    int n = 0, rc = hs_pth_read(data, len, sh->path, &t, &n, &sh->strings, err);
    if (!rc && !set_room(st, n)) rc = hs_fail(err, HS_ENOMEM, "no memory for the %d tensors of %s", n, sh->path);
    for (int i = 0; i < n && !rc; i++) {
        st->t[st->n] = t[i];
        st->t[st->n++].scale = 1;
        st->bytes += t[i].numel * (int64_t)hs_dtype_size(t[i].dtype);
    }
    hs_free(t);
    return rc;
}

/* Files that people mistake for models, by how they begin. */
static const struct {
    const char *begin;
    int len;
    const char *what;
} foreign[] = {
    {"GGUF", 4, "a GGUF file, which is not supported: use the safetensors or .pth files of the model"},
    {"version https://git-lfs", 23, "only a pointer of Git LFS: the file itself was not fetched (git lfs pull)"},
    {"\x80\x02\x8a\x0a", 4, "a PyTorch checkpoint of the old format: save it again with PyTorch 1.6 or newer"},
    {"<!DOCTYPE", 9, "a web page: the download went wrong"},
    {"<html", 5, "a web page: the download went wrong"},
};

static int file_add(hs_st *st, shard *sh, const void *data, size_t len, int64_t file_size, hs_err *err) {
    for (size_t i = 0; i < sizeof(foreign) / sizeof(*foreign); i++)
        if (len >= (size_t)foreign[i].len && !memcmp(data, foreign[i].begin, (size_t)foreign[i].len))
            return hs_fail(err, HS_ENOTSUP, "%s is %s", sh->path, foreign[i].what);
    if (hs_zip_is(data, len)) return checkpoint_add(st, sh, data, len, err);
    return header_add(st, sh, data, len, file_size, err);
}

/* ---- sets ------------------------------------------------------------------------------------------------------ */

static int by_name(const void *a, const void *b) {
    return strcmp(((const hs_st_tensor *)a)->name, ((const hs_st_tensor *)b)->name);
}

static int set_finish(hs_st *st, hs_err *err) {
    if (st->n) qsort(st->t, (size_t)st->n, sizeof(*st->t), by_name);
    for (int i = 1; i < st->n; i++)
        if (!by_name(&st->t[i - 1], &st->t[i]))
            return hs_fail(err, HS_EFORMAT, "tensor '%s' is in %s and in %s", st->t[i].name, st->t[i - 1].file,
                           st->t[i].file);
    return HS_OK;
}

static int set_new(const char *label, int shards, hs_st **ret, hs_err *err) {
    hs_st *st = hs_calloc(1, sizeof(*st));
    if (st) {
        st->label = hs_strdup(label);
        st->shards = hs_calloc((size_t)shards, sizeof(*st->shards));
        if (st->label && st->shards) {
            *ret = st;
            return HS_OK;
        }
    }
    hs_st_close(st);
    return hs_fail(err, HS_ENOMEM, "no memory to open %s", label);
}

void hs_st_close(hs_st *st) {
    if (!st) return;
    hs_ahead_free(st->ahead); /* reads from the mappings */
    for (int i = 0; i < st->n_shards; i++) {
        if (st->shards[i].map) munmap(st->shards[i].map, st->shards[i].map_len);
        hs_free(st->shards[i].strings);
        hs_free(st->shards[i].path);
    }
    hs_random_free(st->random);
    hs_free(st->shards);
    hs_free(st->meta);
    hs_free(st->names);
    hs_free(st->t);
    hs_free(st->label);
    hs_free(st);
}

/* Maps one file and adds its tensors. Takes over `path`, which may be NULL when memory ran out. */
static int shard_add(hs_st *st, char *path, hs_err *err) {
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to open %s", st->label);
    shard *sh = &st->shards[st->n_shards++];
    sh->path = path;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO is refused below, not waited for */
    if (fd < 0) return hs_fail(err, HS_EIO, "cannot open %s: %s", path, strerror(errno));
    int rc = HS_OK;
    struct stat s;
    if (fstat(fd, &s) || !S_ISREG(s.st_mode)) {
        rc = hs_fail(err, HS_EIO, "%s is not a regular file", path);
    } else if (s.st_size < PREFIX) { /* an empty file cannot be mapped */
        rc =
            hs_fail(err, HS_EFORMAT, "%s has %lld bytes: too short for a safetensors file", path, (long long)s.st_size);
    } else {
        void *map = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            rc = hs_fail(err, HS_EIO, "cannot map %s: %s", path, strerror(errno));
        } else {
            sh->map = map;
            sh->map_len = (size_t)s.st_size;
        }
    }
    close(fd);
    if (rc) return rc;
    madvise(sh->map, sh->map_len, MADV_SEQUENTIAL); /* a hint: weights are read once, from front to back */
    return file_add(st, sh, sh->map, sh->map_len, s.st_size, err);
}

int hs_st_parse(const void *data, size_t len, int64_t file_size, const char *path, hs_st **ret, hs_err *err) {
    hs_st *st;
    int rc = set_new(path, 1, &st, err);
    if (rc) return rc;
    st->shards[0].path = hs_strdup(path);
    st->n_shards = 1;
    rc = st->shards[0].path ? file_add(st, &st->shards[0], data, len, file_size, err)
                            : hs_fail(err, HS_ENOMEM, "no memory to read %s", path);
    if (!rc) rc = set_finish(st, err);
    if (rc)
        hs_st_close(st);
    else
        *ret = st;
    return rc;
}

int hs_st_open_files(const char *label, int n, const char *const *paths, hs_st **ret, hs_err *err) {
    hs_st *st = NULL;
    int rc = n >= 1 && n <= MAX_SHARDS
                 ? set_new(label, n, &st, err)
                 : hs_fail(err, HS_EFORMAT, "%s names %d shards, expected at most %d", label, n, MAX_SHARDS);
    for (int i = 0; i < n && !rc; i++) rc = shard_add(st, hs_strdup(paths[i]), err);
    if (!rc) rc = set_finish(st, err);
    if (rc)
        hs_st_close(st);
    else
        *ret = st;
    return rc;
}

int hs_st_open(const char *path, hs_st **ret, hs_err *err) {
    return hs_st_open_files(path, 1, &path, ret, err);
}

int hs_st_random(const char *label, hs_st **ret, hs_err *err) {
    hs_st *st = hs_calloc(1, sizeof *st);
    int rc = 0;
    if (!st || !(st->label = hs_strdup(label)))
        rc = hs_fail(err, HS_ENOMEM, "no memory for random weights");
    else
        rc = hs_random_new(&st->random, err);
    if (rc)
        hs_st_close(st);
    else
        *ret = st;
    return rc;
}

/* ---- look-up --------------------------------------------------------------------------------------------------- */

int hs_st_count(const hs_st *st) {
    return st->n;
}
const hs_st_tensor *hs_st_at(const hs_st *st, int i) {
    return &st->t[i];
}
int64_t hs_st_bytes(const hs_st *st) {
    return st->bytes;
}

const hs_st_tensor *hs_st_find(hs_st *st, const char *name) {
    if (st->random) return hs_random_find(st->random, name);
    hs_st_tensor key = {.name = name};
    hs_st_tensor *t = st->n ? bsearch(&key, st->t, (size_t)st->n, sizeof(*st->t), by_name) : NULL;
    if (t) t->used = 1;
    return t;
}

int hs_st_get(hs_st *st, const char *name, int ndim, const int64_t *shape, const hs_st_tensor **ret, hs_err *err) {
    const hs_st_tensor *t = hs_st_find(st, name);
    if (!t && st->random) {
        const int rc = hs_random_get(st->random, st->label, name, ndim, shape, ret, err);
        if (!rc) st->bytes += (*ret)->numel * (int64_t)hs_dtype_size((*ret)->dtype);
        return rc;
    }
    if (!t) return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' is missing", st->label, name);
    int same = t->ndim == ndim;
    for (int i = 0; i < ndim && same; i++) same = shape[i] == -1 || shape[i] == t->shape[i];
    if (!same) {
        hs_st_tensor want = {.ndim = ndim < HS_ST_MAX_DIMS ? ndim : HS_ST_MAX_DIMS};
        for (int i = 0; i < want.ndim; i++) want.shape[i] = shape[i];
        char found[160], expected[160];
        hs_st_shape_text(t, found, sizeof(found));
        hs_st_shape_text(&want, expected, sizeof(expected));
        return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' has shape [%s], expected [%s]", t->file, name, found,
                       expected);
    }
    if (t->dtype == HS_U8 || t->dtype == HS_I32)
        return hs_fail(err, HS_EFORMAT, "%s: tensor '%s' is %s, expected a floating point type", t->file, name,
                       hs_dtype_name(t->dtype));
    *ret = t;
    return HS_OK;
}

const hs_st_tensor *hs_st_unused(const hs_st *st) {
    for (int i = 0; i < st->n; i++)
        if (!st->t[i].used) return &st->t[i];
    return NULL;
}

const char *hs_st_metadata(const hs_st *st, const char *key) {
    for (int i = 0; i < st->n_meta; i += 2)
        if (!strcmp(st->meta[i], key)) return st->meta[i + 1];
    return NULL;
}

void hs_st_floats(const hs_st_tensor *t, int64_t start, int64_t n, float *ret) {
    hs_to_f32(ret, (const char *)t->data + (size_t)start * hs_dtype_size(t->dtype), t->dtype, n);
    if (t->scale != 1)
        for (int64_t i = 0; i < n; i++) ret[i] *= t->scale;
}

/* The shard that a tensor's data is mapped from, or NULL. */
static shard *shard_of(const hs_st *st, const hs_st_tensor *t) {
    for (int i = 0; i < st->n_shards; i++) {
        shard *sh = &st->shards[i];
        const size_t at = (size_t)((const char *)t->data - (const char *)sh->map);
        if (sh->map && t->data >= sh->map && at < sh->map_len) return sh;
    }
    return NULL;
}

/* Reading early lets a disk work while weights are prepared; reading everything would push other things out of the
 * cache. */
void hs_st_expect(hs_st *st, const hs_st_tensor *t) {
    enum { AHEAD = 256 << 20 };
    shard *sh = shard_of(st, t);
    if (!sh) return;
    if (!st->ahead_tried) st->ahead = hs_ahead_new();
    st->ahead_tried = 1;
    if (!st->ahead) return;
    const char *begin = t->data, *end = begin + (size_t)t->numel * hs_dtype_size(t->dtype),
               *last = (const char *)sh->map + sh->map_len;
    hs_ahead_want(st->ahead, begin, last - end > AHEAD ? end + AHEAD : last);
}

void hs_st_release(const hs_st *st, const hs_st_tensor *t) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)t->data / page * page;
    const uintptr_t end = (uintptr_t)t->data + (uintptr_t)t->numel * hs_dtype_size(t->dtype);
    if (shard_of(st, t)) madvise((void *)begin, (size_t)(end - begin), MADV_DONTNEED);
}

/* ---- names ----------------------------------------------------------------------------------------------------- */

int hs_st_translate(hs_st *st, hs_st_translate_fn fn, void *user, hs_err *err) {
    enum { ROOM = 256 };
    char *names = hs_alloc((size_t)st->n * ROOM + 1);
    if (!names) return hs_fail(err, HS_ENOMEM, "no memory for the tensor names of %s", st->label);
    for (int i = 0; i < st->n; i++) {
        char *to = names + (size_t)i * ROOM;
        *to = '\0';
        const int rc = fn(user, &st->t[i], to, ROOM, err);
        if (rc) {
            hs_free(names);
            return rc;
        }
    }
    int n = 0;
    for (int i = 0; i < st->n; i++) {
        char *to = names + (size_t)i * ROOM;
        if (!*to) continue;
        st->t[n] = st->t[i];
        st->t[n].used = 0; /* what fn has looked up is not yet what a binder asks for */
        st->t[n++].name = to;
    }
    st->n = n;
    hs_free(st->names);
    st->names = names;
    return set_finish(st, err);
}
