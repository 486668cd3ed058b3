/* Maps files of tensors and looks tensors up; nothing else. Safetensors, and PyTorch's checkpoints through pth.h.
 *
 * A set is one file, or all shards that an index names. The files are mapped read-only for the life of the set; every
 * pointer handed out is into the mapping. The header is checked strictly before anything is believed: length against
 * the file, JSON shape, dtype, shape product against offsets, offsets in range, no overlap, no duplicate names.
 */
#ifndef HS_SAFETENSORS_H
#define HS_SAFETENSORS_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

#define HS_ST_MAX_DIMS 6

typedef struct hs_st_tensor {
    const char *name; /* owned by the set */
    hs_dtype dtype;
    int ndim;
    int64_t shape[HS_ST_MAX_DIMS];
    int64_t numel;
    const void *data; /* into the mapping: little endian, row major, NO alignment promise */
    const char *file; /* path of the shard, for messages */
    int used;         /* set by hs_st_get: left-over tensors can be named (hs_st_unused) */
    float scale;      /* the tensor is this times its data; not 1 only for scaled 8-bit weights */
} hs_st_tensor;

typedef struct hs_st hs_st;

/* One .safetensors or .pth file: told by its first bytes, not by its name. */
int hs_st_open(const char *path, hs_st **ret, hs_err *err);
/* Several of them as one; label names all of them in messages. */
int hs_st_open_files(const char *label, int n, const char *const *paths, hs_st **ret, hs_err *err);
/* A folder: `<stem>.safetensors.index.json` with its shards if it exists, else `<stem>.safetensors`, else the index of
 * a variant (`<stem>.safetensors.index.fp16.json`), if there is only one. The index's
 * weight_map must name exactly the tensors that its shards hold. */
int hs_st_open_dir(const char *dir, const char *stem, hs_st **ret, hs_err *err);
/* Is there something that hs_st_open_dir would open? */
int hs_st_dir_has(const char *dir, const char *stem);
/* No file: random numbers in BF16 for every tensor that is asked for (random.h). */
int hs_st_random(const char *label, hs_st **ret, hs_err *err);
void hs_st_close(hs_st *st);

int hs_st_count(const hs_st *st);
const hs_st_tensor *hs_st_at(const hs_st *st, int i);        /* in name order */
const hs_st_tensor *hs_st_find(hs_st *st, const char *name); /* NULL if absent; marks it used */
/* The tensor with exactly this shape (-1 = any), floating point dtype; else an error naming file, tensor, found,
 * expected. */
int hs_st_get(hs_st *st, const char *name, int ndim, const int64_t *shape, const hs_st_tensor **ret, hs_err *err);
/* First tensor never asked for, or NULL: a strict binder refuses left-overs by name. */
const hs_st_tensor *hs_st_unused(const hs_st *st);
const char *hs_st_metadata(const hs_st *st, const char *key); /* __metadata__ of the (first) file, or NULL */
int64_t hs_st_bytes(const hs_st *st);                         /* tensor bytes in all shards */
/* Elements start .. start + n as floats, scaled. */
void hs_st_floats(const hs_st_tensor *t, int64_t start, int64_t n, float *ret);
void hs_st_shape_text(const hs_st_tensor *t, char *ret, size_t size); /* "2,3" */
/* The tensor is about to be read, and what lies behind it in the file soon: a thread of the set begins with it. */
void hs_st_expect(hs_st *st, const hs_st_tensor *t);
/* The tensor was read and is not needed soon: its pages leave this process (they stay in the page cache). */
void hs_st_release(const hs_st *st, const hs_st_tensor *t);

/* Gives tensors other names: fn writes the new one to ret_name ("" = the tensor leaves the set) and may change *t. The
 * set may be searched by the old names meanwhile. After a failure the set is good only for hs_st_close. */
typedef int (*hs_st_translate_fn)(void *user, hs_st_tensor *t, char *ret_name, size_t size, hs_err *err);
int hs_st_translate(hs_st *st, hs_st_translate_fn fn, void *user, hs_err *err);

/* Writes one file atomically (temporary file, fsync, rename). meta: key, value, ..., NULL or NULL. */
int hs_st_write(const char *path, int n, const hs_st_tensor *tensors, const char *const *meta, hs_err *err);
/* The same where the data of a tensor comes when its turn does: fetch(user, i) gives that of tensor i, valid until the
 * next call, or NULL with *err filled. */
typedef const void *(*hs_st_fetch)(void *user, int i, hs_err *err);
int hs_st_write_from(const char *path, int n, const hs_st_tensor *tensors, const char *const *meta, hs_st_fetch fetch,
                     void *user, hs_err *err);

/* Parses only a header (used by the fuzzer and by hs_st_open): data = first bytes of the file, file_size its length. */
int hs_st_parse(const void *data, size_t len, int64_t file_size, const char *path, hs_st **ret, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
