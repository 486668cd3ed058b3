/* A PyTorch checkpoint as torch.save writes one: a zip archive of stored entries with ZIP64 records, a pickle of
 * protocol 2, storages at multiples of 64 bytes. Written from the formats' descriptions, not from the engine's reader;
 * data/state_dict.pth is what PyTorch itself writes. */
#include "genmodel.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct bytes {
    unsigned char *p;
    size_t n, cap;
} bytes;

static void put(bytes *b, const void *x, size_t n) {
    if (b->n + n <= b->cap) memcpy(b->p + b->n, x, n);
    b->n += n;
}

static void put_le(bytes *b, uint64_t v, int size) {
    for (int i = 0; i < size; i++) put(b, &(unsigned char){(unsigned char)(v >> 8 * i)}, 1);
}

static void put_text(bytes *b, const char *s) {
    put(b, "X", 1);
    put_le(b, strlen(s), 4);
    put(b, s, strlen(s));
}

static void put_int(bytes *b, int64_t v) {
    if (v < 256) {
        put(b, "K", 1);
        put_le(b, (uint64_t)v, 1);
    } else if (v < 65536) {
        put(b, "M", 1);
        put_le(b, (uint64_t)v, 2);
    } else if (v < INT32_MAX) {
        put(b, "J", 1);
        put_le(b, (uint64_t)v, 4);
    } else {
        put(b, "\x8a\x08", 2);
        put_le(b, (uint64_t)v, 8);
    }
}

static void put_sizes(bytes *b, const int64_t *v, int n) {
    if (n > 3) put(b, "(", 1);
    for (int i = 0; i < n; i++) put_int(b, v[i]);
    put(b, n == 0 ? ")" : n == 1 ? "\x85" : n == 2 ? "\x86" : n == 3 ? "\x87" : "t", 1);
}

static void put_code(bytes *b, const char *s) {
    put(b, s, strlen(s));
}

/* An OrderedDict; each tensor is _rebuild_tensor_v2(storage, 0, sizes, strides, False, OrderedDict()). */
static void pickle(bytes *b, const gm_item *items, int n) {
    put_code(b, "\x80\x02"
                "ccollections\nOrderedDict\nq");
    put(b, "", 1); /* remembered as 0 */
    put_code(b, ")R(");
    for (int i = 0; i < n; i++) {
        const gm_tensor *t = items[i].t;
        char key[16];
        int64_t stride[GM_MAX_DIMS], step = 1;
        for (int k = t->ndim; k-- > 0; step *= t->shape[k]) stride[k] = step;
        snprintf(key, sizeof key, "%d", i);
        put_text(b, items[i].name);
        put_code(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
        put_text(b, "storage");
        put_code(b, items[i].type == HS_BF16  ? "ctorch\nBFloat16Storage\n"
                    : items[i].type == HS_F16 ? "ctorch\nHalfStorage\n"
                                              : "ctorch\nFloatStorage\n");
        put_text(b, key);
        put_text(b, "cpu");
        put_int(b, gm_numel(t));
        put_code(b, "tQ");
        put_int(b, 0);
        put_sizes(b, t->shape, t->ndim);
        put_sizes(b, stride, t->ndim);
        put_code(b, "\x89h");
        put(b, "", 1);
        put_code(b, ")RtR");
    }
    put_code(b, "u.");
}

static uint32_t crc32_of(const void *data, size_t n) {
    const unsigned char *p = data;
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
    }
    return ~c;
}

/* Local header into *f at *at, padded so that the content begins at a multiple of 64; its line of the directory. */
static int begin_entry(FILE *f, int64_t *at, const char *name, int64_t size, uint32_t crc, bytes *dir) {
    unsigned char room[512];
    bytes h = {room, 0, sizeof room};
    const size_t len = strlen(name);
    const int64_t plain = *at + 30 + (int64_t)len;
    const int64_t pad = (64 - (plain + 4) % 64) % 64;
    const int big = *at >= 0xffffffffll;
    put_le(&h, 0x04034b50, 4);
    put_le(&h, 0, 8); /* version, flags, method, time */
    put_le(&h, 0, 2); /* date */
    put_le(&h, crc, 4);
    put_le(&h, (uint64_t)size, 4);
    put_le(&h, (uint64_t)size, 4);
    put_le(&h, len, 2);
    put_le(&h, (uint64_t)(4 + pad), 2);
    put(&h, name, len);
    put(&h, "FB", 2);
    put_le(&h, (uint64_t)pad, 2);
    for (int64_t i = 0; i < pad; i++) put(&h, "Z", 1);

    put_le(dir, 0x02014b50, 4);
    put_le(dir, 0, 8); /* versions, flags, method */
    put_le(dir, 0, 4); /* time */
    put_le(dir, crc, 4);
    put_le(dir, (uint64_t)size, 4);
    put_le(dir, (uint64_t)size, 4);
    put_le(dir, len, 2);
    put_le(dir, big ? 12 : 0, 2);
    put_le(dir, 0, 8); /* comment, disk, attributes */
    put_le(dir, 0, 2);
    put_le(dir, big ? 0xffffffff : (uint64_t)*at, 4);
    put(dir, name, len);
    if (big) {
        put_le(dir, 1, 2);
        put_le(dir, 8, 2);
        put_le(dir, (uint64_t)*at, 8);
    }
    *at += (int64_t)h.n;
    return fwrite(room, 1, h.n, f) != h.n;
}

static int write_all(FILE *f, const gm_item *items, int n, int sparse, bytes *pkl, bytes *dir) {
    int64_t at = 0;
    char name[64];
    int bad = begin_entry(f, &at, "archive/data.pkl", (int64_t)pkl->n, crc32_of(pkl->p, pkl->n), dir);
    bad = bad || fwrite(pkl->p, 1, pkl->n, f) != pkl->n;
    at += (int64_t)pkl->n;
    for (int i = 0; i < n && !bad; i++) {
        snprintf(name, sizeof name, "archive/data/%d", i);
        bad = begin_entry(f, &at, name, gm_item_bytes(&items[i]), 0, dir);
        at += gm_item_bytes(&items[i]);
        bad = bad || (sparse ? fseeko(f, (off_t)at, SEEK_SET) : gm_item_data(f, &items[i])) != 0;
    }
    bad = bad || begin_entry(f, &at, "archive/version", 2, crc32_of("3\n", 2), dir) || fwrite("3\n", 1, 2, f) != 2;
    at += 2;
    const uint64_t begin = (uint64_t)at, size = dir->n, count = (uint64_t)n + 2, end64 = begin + size;
    put_le(dir, 0x06064b50, 4);
    put_le(dir, 44, 8);
    put_le(dir, 0x002d001e, 4); /* versions */
    put_le(dir, 0, 8);          /* disks */
    put_le(dir, count, 8);
    put_le(dir, count, 8);
    put_le(dir, size, 8);
    put_le(dir, begin, 8);
    put_le(dir, 0x07064b50, 4);
    put_le(dir, 0, 4);
    put_le(dir, end64, 8);
    put_le(dir, 1, 4);
    put_le(dir, 0x06054b50, 4);
    put_le(dir, 0, 4);
    put_le(dir, count, 2);
    put_le(dir, count, 2);
    put_le(dir, size, 4);
    put_le(dir, begin < 0xffffffff ? begin : 0xffffffff, 4);
    put_le(dir, 0, 2);
    return bad || fwrite(dir->p, 1, dir->n, f) != dir->n;
}

int gm_write_pth(const char *path, const gm_item *items, int n, int sparse, hs_err *err) {
    const size_t cap = (size_t)(n + 4) * 400;
    bytes pkl = {hs_alloc(cap), 0, cap}, dir = {hs_alloc(cap), 0, cap};
    FILE *f = pkl.p && dir.p ? fopen(path, "wb") : NULL;
    int bad = !f;
    if (f) {
        pickle(&pkl, items, n);
        bad = pkl.n > cap || write_all(f, items, n, sparse, &pkl, &dir) || dir.n > cap;
        if (fclose(f)) bad = 1;
    }
    hs_free(pkl.p);
    hs_free(dir.p);
    return bad ? hs_fail(err, HS_EIO, "%s: cannot be written: %s", path, strerror(errno)) : 0;
}
