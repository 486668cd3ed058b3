/* A pickle interpreter that knows nothing but state dicts. Opcodes and their meaning: CPython's Lib/pickletools.py;
 * what torch.save writes: spec wan.md 1.2.
 *
 * Values are small and flat: a number, a range of the pickle's bytes, or the number of a tuple or dictionary. Nothing
 * is ever copied deep, so a pickle of n bytes costs O(n) memory and time whatever it says. Dictionaries grow by pairs
 * in one list, so the tensors at the end are the pairs whose dictionary is the one on the stack.
 */
#include "pth.h"
#include "zip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_PICKLE = 8 << 20, /* bytes; that of the 14B transformer would have 0.3 MB */
    MAX_STACK = 1 << 16,  /* pickles set at most 1000 pairs at once */
    MAX_NAME = 512,
    MAX_DEPTH = 8 /* of tuples in tuples; a tensor has 2 */
};

typedef enum kind {
    NONE,
    BOOL,
    INT,
    TEXT,   /* bytes [at, at + n) of the pickle */
    GLOBAL, /* at = row of globals[] */
    TUPLE,  /* items [at, at + n) */
    DICT,   /* at = its number */
    STORAGE,
    TENSOR,
    MARK
} kind;
static const char *const kind_names[] = {"None",    "a boolean",    "a number",  "a text",   "a function or type",
                                         "a tuple", "a dictionary", "a storage", "a tensor", "a mark"};

typedef struct value {
    uint8_t kind, depth;
    int32_t n;
    int64_t at;
} value;

typedef struct pair {
    int64_t dict;
    value key, val;
} pair;

typedef struct storage {
    int64_t begin, numel; /* place in the file */
    hs_dtype type;
} storage;

typedef struct tensor {
    int64_t storage, offset, numel, shape[HS_ST_MAX_DIMS];
    int ndim;
} tensor;

/* A growing array of T; capacity doubles. */
typedef struct list {
    void *p;
    int64_t n, cap;
} list;

typedef struct machine {
    const unsigned char *p, *end; /* what is left of the pickle */
    const unsigned char *start;
    const char *path;
    const void *file;
    const hs_zip_entry *entries;
    int n_entries;
    const char *root; /* folder of the archive that everything is in */
    int root_len;
    hs_err *err;
    list stack, memo, items, pairs, storages, tensors;
    int64_t dicts;
} machine;

/* The only names a pickle may speak of. */
typedef enum call { CALL_TENSOR, CALL_DICT, CALL_STORAGE } call;
static const struct {
    const char *module, *name;
    call what;
    hs_dtype type;
} globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", CALL_TENSOR, HS_F32},
    {"collections", "OrderedDict", CALL_DICT, HS_F32},
    {"torch", "FloatStorage", CALL_STORAGE, HS_F32},
    {"torch", "BFloat16Storage", CALL_STORAGE, HS_BF16},
    {"torch", "HalfStorage", CALL_STORAGE, HS_F16},
    {"torch", "ByteStorage", CALL_STORAGE, HS_U8},
    {"torch", "IntStorage", CALL_STORAGE, HS_I32},
};
enum { GLOBALS = sizeof globals / sizeof *globals };

/* ---- small things ----------------------------------------------------------------------------------------------- */

static int bad(machine *m, const char *what) {
    return hs_fail(m->err, HS_EFORMAT, "%s: byte %lld of its pickle: %s", m->path, (long long)(m->p - m->start), what);
}

static int add(machine *m, list *l, const void *x, size_t size) {
    if (l->n == l->cap) {
        const int64_t cap = l->cap ? 2 * l->cap : 256;
        void *p = hs_alloc((size_t)cap * size);
        if (!p) return hs_fail(m->err, HS_ENOMEM, "no memory to read %s", m->path);
        if (l->n) memcpy(p, l->p, (size_t)l->n * size);
        hs_free(l->p);
        l->p = p;
        l->cap = cap;
    }
    memcpy((char *)l->p + (size_t)l->n * size, x, size);
    l->n++;
    return HS_OK;
}

static int push(machine *m, value v) {
    if (m->stack.n == MAX_STACK) return bad(m, "more values at once than a state dict has");
    return add(m, &m->stack, &v, sizeof v);
}

static value *top(machine *m) {
    return m->stack.n ? (value *)m->stack.p + m->stack.n - 1 : NULL;
}

static int pop(machine *m, value *ret) {
    const value *v = top(m);
    if (!v || v->kind == MARK) return bad(m, "a value is used that nothing made");
    *ret = *v;
    m->stack.n--;
    return HS_OK;
}

static value item(const machine *m, value tuple, int i) {
    return ((const value *)m->items.p)[tuple.at + i];
}

static int is_text(const machine *m, value v, const char *text) {
    return v.kind == TEXT && (size_t)v.n == strlen(text) && !memcmp(m->start + v.at, text, (size_t)v.n);
}

/* Argument of an opcode: n bytes, little endian. */
static int take(machine *m, int n, uint64_t *ret) {
    uint64_t v = 0;
    if (m->end - m->p < n) return bad(m, "it ends in the middle of a value");
    for (int i = 0; i < n; i++) v |= (uint64_t)m->p[i] << 8 * i;
    m->p += n;
    *ret = v;
    return HS_OK;
}

/* ---- what opcodes do -------------------------------------------------------------------------------------------- */

static int push_int(machine *m, int bytes, int is_signed) {
    uint64_t v = 0;
    const int rc = take(m, bytes, &v);
    return rc ? rc : push(m, (value){.kind = INT, .at = is_signed ? (int32_t)v : (int64_t)v});
}

static int push_long(machine *m) {
    uint64_t n = 0, v = 0;
    int rc = take(m, 1, &n);
    if (!rc && n > 8) return bad(m, "a number of more than 64 bits");
    if (!rc) rc = take(m, (int)n, &v);
    if (rc) return rc;
    if (n && n < 8 && v >> (8 * n - 1)) v |= ~0ull << 8 * n; /* the sign */
    return push(m, (value){.kind = INT, .at = (int64_t)v});
}

static int push_text(machine *m) {
    uint64_t n = 0;
    const int rc = take(m, 4, &n);
    if (rc) return rc;
    if (n > (uint64_t)(m->end - m->p)) return bad(m, "a text is longer than the pickle");
    const value v = {.kind = TEXT, .n = (int32_t)n, .at = m->p - m->start};
    m->p += n;
    return push(m, v);
}

/* Two lines: module and name. */
static int push_global(machine *m) {
    const char *word[2];
    int len[2];
    for (int i = 0; i < 2; i++) {
        const unsigned char *end = m->p < m->end ? memchr(m->p, '\n', (size_t)(m->end - m->p)) : NULL;
        if (!end || end - m->p > MAX_NAME) return bad(m, "a function's name has no end");
        word[i] = (const char *)m->p;
        len[i] = (int)(end - m->p);
        m->p = end + 1;
    }
    for (int i = 0; i < GLOBALS; i++)
        if (strlen(globals[i].module) == (size_t)len[0] && !memcmp(globals[i].module, word[0], (size_t)len[0]) &&
            strlen(globals[i].name) == (size_t)len[1] && !memcmp(globals[i].name, word[1], (size_t)len[1]))
            return push(m, (value){.kind = GLOBAL, .at = i});
    char text[96]; /* hostile names are shown without what a terminal could obey */
    snprintf(text, sizeof text, "%.*s.%.*s", len[0] < 40 ? len[0] : 40, word[0], len[1] < 40 ? len[1] : 40, word[1]);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e) *c = '?';
    return hs_fail(m->err, HS_ENOTSUP,
                   "%s: its pickle asks for '%s'; only plain state dicts are read, with tensors of float32, bfloat16, "
                   "float16, uint8 or int32, and nothing in a file is ever run. Convert it to safetensors",
                   m->path, text);
}

/* Memo places are counted up by every pickler; a hole would only cost memory. */
static int memo_put(machine *m, int bytes) {
    uint64_t i = 0;
    const int rc = take(m, bytes, &i);
    const value *v = top(m);
    if (rc) return rc;
    if (!v || v->kind == MARK) return bad(m, "it remembers a value that nothing made");
    if (i > (uint64_t)m->memo.n) return bad(m, "it skips places of its memory");
    if (i == (uint64_t)m->memo.n) return add(m, &m->memo, v, sizeof *v);
    ((value *)m->memo.p)[i] = *v;
    return HS_OK;
}

static int memo_get(machine *m, int bytes) {
    uint64_t i = 0;
    const int rc = take(m, bytes, &i);
    if (rc) return rc;
    if (i >= (uint64_t)m->memo.n) return bad(m, "it recalls a value that it never had");
    return push(m, ((value *)m->memo.p)[i]);
}

/* The top n values as one tuple. */
static int push_tuple(machine *m, int64_t n) {
    value t = {.kind = TUPLE, .n = (int32_t)n, .at = m->items.n};
    if (m->stack.n < n) return bad(m, "a tuple of values that nothing made");
    for (int64_t i = 0; i < n; i++) {
        const value *v = (value *)m->stack.p + (m->stack.n - n + i);
        if (v->kind == MARK) return bad(m, "a tuple of values that nothing made");
        if (v->depth >= t.depth) t.depth = (uint8_t)(v->depth + 1);
        const int rc = add(m, &m->items, v, sizeof *v);
        if (rc) return rc;
    }
    if (t.depth > MAX_DEPTH) return bad(m, "tuples are nested deeper than in a state dict");
    m->stack.n -= n;
    return push(m, t);
}

/* How many values lie above the last mark. */
static int above_mark(machine *m, int64_t *ret) {
    const value *v = m->stack.p;
    for (int64_t i = m->stack.n; i-- > 0;)
        if (v[i].kind == MARK) {
            *ret = m->stack.n - i - 1;
            return HS_OK;
        }
    return bad(m, "a mark is missing");
}

static int push_marked_tuple(machine *m) {
    int64_t n = 0;
    int rc = above_mark(m, &n);
    if (!rc) rc = push_tuple(m, n);
    if (rc) return rc;
    value t = *top(m); /* the mark is below it */
    m->stack.n -= 2;
    return push(m, t);
}

/* The top n values are keys and values of the dictionary below them (below the mark, if there is one). */
static int set_items(machine *m, int64_t n, int marked) {
    if (n % 2 || m->stack.n < n + 1 + marked) return bad(m, "a dictionary is given half a pair");
    const value *v = (value *)m->stack.p + m->stack.n - n, *dict = v - 1 - marked;
    if (dict->kind != DICT) return bad(m, "pairs for what is no dictionary");
    for (int64_t i = 0; i < n; i += 2) {
        const pair p = {dict->at, v[i], v[i + 1]};
        if (p.key.kind == MARK || p.val.kind == MARK) return bad(m, "a dictionary is given half a pair");
        const int rc = add(m, &m->pairs, &p, sizeof p);
        if (rc) return rc;
    }
    m->stack.n -= n + marked;
    return HS_OK;
}

static int set_marked_items(machine *m) {
    int64_t n = 0;
    const int rc = above_mark(m, &n);
    return rc ? rc : set_items(m, n, 1);
}

static int push_dict(machine *m) {
    return push(m, (value){.kind = DICT, .at = m->dicts++});
}

/* ('storage', type, key, device, elements): the entry <root>/data/<key> of the archive. */
static int push_storage(machine *m) {
    value t, v[5];
    char name[MAX_NAME];
    int rc = pop(m, &t);
    if (rc) return rc;
    if (t.kind != TUPLE || t.n != 5) return bad(m, "a storage that is not described by five values");
    for (int i = 0; i < 5; i++) v[i] = item(m, t, i);
    if (!is_text(m, v[0], "storage") || v[1].kind != GLOBAL || globals[v[1].at].what != CALL_STORAGE ||
        v[2].kind != TEXT || v[3].kind != TEXT || v[4].kind != INT)
        return bad(m, "a storage whose description is not type, key, device, elements");
    if (m->root_len + v[2].n + 6 >= MAX_NAME) return bad(m, "the key of a storage is too long");
    const int n = snprintf(name, sizeof name, "%.*s/data/%.*s", m->root_len, m->root, v[2].n, m->start + v[2].at);
    const hs_zip_entry *e = hs_zip_find(m->entries, m->n_entries, name, n);
    const hs_dtype type = globals[v[1].at].type;
    int64_t bytes;
    if (!e) return bad(m, "a storage that is not in the archive: an incomplete file");
    if (hs_mul(v[4].at, (int64_t)hs_dtype_size(type), &bytes) || bytes != e->size)
        return bad(m, "a storage whose elements do not fill its entry of the archive");
    const storage s = {e->begin, v[4].at, type};
    const value ret = {.kind = STORAGE, .at = m->storages.n};
    rc = add(m, &m->storages, &s, sizeof s);
    return rc ? rc : push(m, ret);
}

/* (storage, offset, sizes, strides, requires_grad, hooks[, metadata]). Strides must be those of a tensor that lies in
 * one piece: anything else could repeat a few bytes a million times. */
static int rebuild_tensor(machine *m, value args) {
    if (args.n != 6 && args.n != 7) return bad(m, "a tensor that is not described by six values");
    const value s = item(m, args, 0), offset = item(m, args, 1), size = item(m, args, 2), stride = item(m, args, 3);
    if (s.kind != STORAGE || offset.kind != INT || size.kind != TUPLE || stride.kind != TUPLE || size.n != stride.n)
        return bad(m, "a tensor whose description is not storage, offset, sizes, strides");
    if (size.n > HS_ST_MAX_DIMS) return bad(m, "a tensor of more than 6 dimensions");
    const storage *st = (storage *)m->storages.p + s.at;
    tensor t = {.storage = s.at, .offset = offset.at, .numel = 1, .ndim = size.n};
    for (int i = size.n; i-- > 0;) {
        const value n = item(m, size, i), step = item(m, stride, i);
        if (n.kind != INT || step.kind != INT || n.at < 0) return bad(m, "a tensor whose sizes are no numbers");
        if (n.at > 1 && step.at != t.numel && t.numel)
            return bad(m, "a tensor that does not lie in one piece (call .contiguous() before saving)");
        t.shape[i] = n.at;
        if (hs_mul(t.numel, n.at, &t.numel)) return bad(m, "a tensor too large to exist");
    }
    if (t.offset < 0 || t.offset > st->numel || t.numel > st->numel - t.offset)
        return bad(m, "a tensor that is larger than its storage");
    const value ret = {.kind = TENSOR, .at = m->tensors.n};
    const int rc = add(m, &m->tensors, &t, sizeof t);
    return rc ? rc : push(m, ret);
}

static int reduce(machine *m) {
    value args, f;
    int rc;
    if ((rc = pop(m, &args)) || (rc = pop(m, &f))) return rc;
    if (f.kind != GLOBAL || args.kind != TUPLE) return bad(m, "a call of what is no function");
    if (globals[f.at].what == CALL_TENSOR) return rebuild_tensor(m, args);
    if (globals[f.at].what != CALL_DICT || args.n) return bad(m, "a call that no state dict makes");
    return push_dict(m);
}

/* Attributes of a dictionary (state dicts have versions of their modules there): not needed. */
static int build(machine *m) {
    value state;
    const int rc = pop(m, &state);
    const value *v = top(m);
    if (rc) return rc;
    if (state.kind != DICT || !v || v->kind != DICT) return bad(m, "attributes of what is no dictionary");
    return HS_OK;
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static int step(machine *m, unsigned char op) {
    switch (op) {
    case '(': return push(m, (value){.kind = MARK});
    case ')': return push_tuple(m, 0);
    case 't': return push_marked_tuple(m);
    case 0x85: return push_tuple(m, 1);
    case 0x86: return push_tuple(m, 2);
    case 0x87: return push_tuple(m, 3);
    case '}': return push_dict(m);
    case 's': return set_items(m, 2, 0);
    case 'u': return set_marked_items(m);
    case 'c': return push_global(m);
    case 'X': return push_text(m);
    case 'J': return push_int(m, 4, 1);
    case 'K': return push_int(m, 1, 0);
    case 'M': return push_int(m, 2, 0);
    case 0x8a: return push_long(m);
    case 0x88: return push(m, (value){.kind = BOOL, .at = 1});
    case 0x89: return push(m, (value){.kind = BOOL});
    case 'N': return push(m, (value){.kind = NONE});
    case 'q': return memo_put(m, 1);
    case 'r': return memo_put(m, 4);
    case 'h': return memo_get(m, 1);
    case 'j': return memo_get(m, 4);
    case 'Q': return push_storage(m);
    case 'R': return reduce(m);
    case 'b': return build(m);
    default: {
        char what[96];
        snprintf(what, sizeof what, "instruction 0x%02x, which no state dict of protocol 2 needs", op);
        return bad(m, what);
    }
    }
}

static int interpret(machine *m) {
    if (m->end - m->p < 2 || m->p[0] != 0x80 || m->p[1] != 2)
        return hs_fail(m->err, HS_EFORMAT, "%s: its pickle is not of protocol 2, the one torch.save writes", m->path);
    m->p += 2;
    while (m->p < m->end) {
        const unsigned char op = *m->p++;
        if (op == '.') {
            if (m->p != m->end) return bad(m, "bytes behind its end");
            if (m->stack.n == 1 && top(m)->kind == DICT) return HS_OK;
            return hs_fail(m->err, HS_EFORMAT, "%s: holds %s, expected a state dict: names and tensors", m->path,
                           m->stack.n == 1 ? kind_names[top(m)->kind] : "several values");
        }
        const int rc = step(m, op);
        if (rc) return rc;
    }
    return bad(m, "it has no end");
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

static uint32_t crc32_of(const unsigned char *p, int64_t n) {
    uint32_t c = ~0u;
    for (int64_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c >> 1 ^ (0xedb88320u & -(c & 1));
    }
    return ~c;
}

/* Finds <root>/data.pkl, the only one. */
static int find_pickle(machine *m) {
    static const char tail[] = "/data.pkl";
    const int n = (int)sizeof tail - 1;
    const hs_zip_entry *found = NULL;
    for (int i = 0; i < m->n_entries; i++) {
        const hs_zip_entry *e = &m->entries[i];
        if (e->name_len <= n || memcmp(e->name + e->name_len - n, tail, (size_t)n)) continue;
        if (found || memchr(e->name, '/', (size_t)(e->name_len - n)))
            return hs_fail(m->err, HS_EFORMAT, "%s: more than one data.pkl, or not where PyTorch puts it", m->path);
        found = e;
    }
    if (!found)
        return hs_fail(m->err, HS_EFORMAT, "%s: a zip archive without data.pkl: not a PyTorch checkpoint", m->path);
    if (found->size > MAX_PICKLE)
        return hs_fail(m->err, HS_EFORMAT, "%s: a pickle of %lld bytes, expected at most %d", m->path,
                       (long long)found->size, MAX_PICKLE);
    m->root = found->name;
    m->root_len = found->name_len - n;
    m->start = m->p = (const unsigned char *)m->file + found->begin;
    m->end = m->p + found->size;
    if (crc32_of(m->p, found->size) != found->crc)
        return hs_fail(m->err, HS_EFORMAT, "%s: the checksum of its pickle is wrong: a damaged file; fetch it again",
                       m->path);
    char order[MAX_NAME];
    const int len = snprintf(order, sizeof order, "%.*s/byteorder", m->root_len < 400 ? m->root_len : 400, m->root);
    const hs_zip_entry *e = hs_zip_find(m->entries, m->n_entries, order, len);
    if (e && (e->size != 6 || memcmp((const char *)m->file + e->begin, "little", 6)))
        return hs_fail(m->err, HS_ENOTSUP, "%s: written by a machine whose byte order is not little endian", m->path);
    return HS_OK;
}

/* The pairs of the dictionary that is left, as tensors. */
static int collect(machine *m, hs_st_tensor **ret, int *ret_n, char **ret_names) {
    const int64_t dict = top(m)->at;
    const pair *p = m->pairs.p;
    int64_t n = 0, bytes = 1;
    for (int64_t i = 0; i < m->pairs.n; i++) {
        if (p[i].dict != dict) continue;
        const value k = p[i].key;
        if (k.kind != TEXT || !k.n || k.n >= MAX_NAME || memchr(m->start + k.at, 0, (size_t)k.n))
            return hs_fail(m->err, HS_EFORMAT, "%s: a key of its dictionary is not a name", m->path);
        if (p[i].val.kind != TENSOR)
            return hs_fail(m->err, HS_EFORMAT, "%s: '%.*s' is %s, expected a tensor: not a plain state dict", m->path,
                           k.n < 160 ? k.n : 160, (const char *)m->start + k.at, kind_names[p[i].val.kind]);
        n++;
        bytes += k.n + 1;
    }
    hs_st_tensor *t = hs_calloc((size_t)n + 1, sizeof *t);
    char *names = hs_alloc((size_t)bytes), *at = names;
    if (!t || !names) {
        hs_free(t);
        hs_free(names);
        return hs_fail(m->err, HS_ENOMEM, "no memory for the %lld tensors of %s", (long long)n, m->path);
    }
    *ret = t;
    for (int64_t i = 0; i < m->pairs.n; i++) {
        if (p[i].dict != dict) continue;
        const tensor *x = (tensor *)m->tensors.p + p[i].val.at;
        const storage *s = (storage *)m->storages.p + x->storage;
        memcpy(at, m->start + p[i].key.at, (size_t)p[i].key.n);
        at[p[i].key.n] = '\0';
        t->name = at;
        at += p[i].key.n + 1;
        t->dtype = s->type;
        t->ndim = x->ndim;
        memcpy(t->shape, x->shape, sizeof t->shape);
        t->numel = x->numel;
        t->data = (const char *)m->file + s->begin + x->offset * (int64_t)hs_dtype_size(s->type);
        t->file = m->path;
        t++;
    }
    *ret_n = (int)n;
    *ret_names = names;
    return HS_OK;
}

int hs_pth_read(const void *data, size_t len, const char *path, hs_st_tensor **ret, int *ret_n, char **ret_names,
                hs_err *err) {
    hs_zip_entry *entries = NULL;
    machine m = {.path = path, .file = data, .err = err};
    int rc = hs_zip_read(data, len, path, &entries, &m.n_entries, err);
    m.entries = entries;
    if (!rc) rc = find_pickle(&m);
    if (!rc) rc = interpret(&m);
    if (!rc) rc = collect(&m, ret, ret_n, ret_names);
    list *lists[] = {&m.stack, &m.memo, &m.items, &m.pairs, &m.storages, &m.tensors};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) hs_free(lists[i]->p);
    hs_free(entries);
    return rc;
}
