/* Reads the central directory of a zip archive. Offsets are those of PKWARE's APPNOTE 6.3, sections 4.3 and 4.5.3.
 *
 * From the end to the front: the end record says where the directory is (its 64-bit form, which a locator points to,
 * where numbers do not fit), the directory says where entries are, and each entry's local header is held against it.
 * No number is used before it is known to lie inside the file.
 */
#include "zip.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_ENTRIES = 1 << 16, /* the largest published checkpoint has 1,100 */
    END = 22,              /* bytes of the fixed parts */
    END64 = 56,
    LOCATOR = 20,
    CENTRAL = 46,
    LOCAL = 30,
    FLAG_SIZES_BEHIND = 1 << 3, /* local header without sizes; the directory has them */
    FLAG_UTF8 = 1 << 11,
    EXTRA_ZIP64 = 1,
};
static const uint32_t SIG_LOCAL = 0x04034b50, SIG_CENTRAL = 0x02014b50, SIG_END = 0x06054b50, SIG_END64 = 0x06064b50,
                      SIG_LOCATOR = 0x07064b50;

typedef struct archive {
    const unsigned char *p;
    uint64_t len;
    const char *path;
    hs_err *err;
} archive;

static uint64_t le(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static int bad(const archive *a, const char *what) {
    return hs_fail(a->err, HS_EFORMAT, "%s: %s: a truncated or damaged zip archive; fetch it again", a->path, what);
}

static int bad_entry(const archive *a, const hs_zip_entry *e, const char *what) {
    return hs_fail(a->err, HS_EFORMAT, "%s: entry '%.*s' %s", a->path, e->name_len < 160 ? e->name_len : 160, e->name,
                   what);
}

int hs_zip_is(const void *data, size_t len) {
    return len >= 4 && le(data, 4) == SIG_LOCAL;
}

/* ---- end records ------------------------------------------------------------------------------------------------ */

typedef struct directory {
    uint64_t begin, size, entries;
} directory;

/* The 64-bit record must fill the bytes between directory and locator: no place is left for another one. */
static int read_end64(const archive *a, const unsigned char *end, directory *d, uint64_t *ret_behind) {
    const unsigned char *locator = end - LOCATOR;
    const uint64_t at = le(locator + 8, 8), room = (uint64_t)(locator - a->p);
    if (le(locator + 4, 4) || le(locator + 16, 4) > 1) return bad(a, "an archive of several disks");
    if (at > room || room - at < END64) return bad(a, "the ZIP64 end record lies outside the file");
    const unsigned char *r = a->p + at;
    if (le(r, 4) != SIG_END64) return bad(a, "no ZIP64 end record where the locator points");
    if (le(r + 4, 8) != room - at - 12) return bad(a, "the ZIP64 end record does not end at its locator");
    if (le(r + 16, 4) || le(r + 20, 4)) return bad(a, "an archive of several disks");
    if (le(r + 24, 8) != le(r + 32, 8)) return bad(a, "an archive of several disks");
    directory full = {.entries = le(r + 32, 8), .size = le(r + 40, 8), .begin = le(r + 48, 8)};
    if ((d->entries != 0xffff && d->entries != full.entries) || (d->size != 0xffffffff && d->size != full.size) ||
        (d->begin != 0xffffffff && d->begin != full.begin))
        return bad(a, "the two end records contradict each other");
    *d = full;
    *ret_behind = at;
    return HS_OK;
}

static int read_end(const archive *a, directory *ret) {
    if (a->len < END) return bad(a, "too short for a zip archive");
    const unsigned char *end = a->p + (a->len - END);
    if (le(end, 4) != SIG_END) return bad(a, "no end record at the end of the file");
    if (le(end + 20, 2)) return bad(a, "the archive has a comment, or bytes behind it");
    if (le(end + 4, 2) || le(end + 6, 2) || le(end + 8, 2) != le(end + 10, 2))
        return bad(a, "an archive of several disks");
    directory d = {.entries = le(end + 10, 2), .size = le(end + 12, 4), .begin = le(end + 16, 4)};
    uint64_t behind = a->len - END;
    if (behind >= LOCATOR && le(end - LOCATOR, 4) == SIG_LOCATOR) {
        const int rc = read_end64(a, end, &d, &behind);
        if (rc) return rc;
    } else if (d.entries == 0xffff || d.size == 0xffffffff || d.begin == 0xffffffff) {
        return bad(a, "numbers need ZIP64, but its end record is missing");
    }
    if (d.begin > behind || d.size != behind - d.begin) return bad(a, "the directory does not end at the end record");
    if (d.entries > MAX_ENTRIES)
        return hs_fail(a->err, HS_EFORMAT, "%s: %llu entries, expected at most %d", a->path,
                       (unsigned long long)d.entries, MAX_ENTRIES);
    if (d.entries > d.size / CENTRAL) return bad(a, "the directory is too short for its entries");
    *ret = d;
    return HS_OK;
}

/* ---- entries ---------------------------------------------------------------------------------------------------- */

/* The 64-bit values of an entry stand in its ZIP64 field, in this order, for those that are all ones. */
static int read_extra(const archive *a, const hs_zip_entry *e, const unsigned char *x, uint64_t n, uint64_t *usize,
                      uint64_t *csize, uint64_t *from) {
    uint64_t *value[] = {usize, csize, from};
    int seen = 0;
    while (n) {
        if (n < 4 || le(x + 2, 2) > n - 4) return bad_entry(a, e, "has an extra field that is cut off");
        const uint64_t size = le(x + 2, 2);
        if (le(x, 2) == EXTRA_ZIP64) {
            uint64_t at = 0;
            if (seen++) return bad_entry(a, e, "has two ZIP64 fields");
            for (int i = 0; i < 3; i++) {
                if (*value[i] != 0xffffffff) continue;
                if (size - at < 8) return bad_entry(a, e, "has a truncated ZIP64 field");
                *value[i] = le(x + 4 + at, 8);
                at += 8;
            }
        }
        x += 4 + size;
        n -= 4 + size;
    }
    if (!seen && (*usize == 0xffffffff || *csize == 0xffffffff || *from == 0xffffffff))
        return bad_entry(a, e, "needs a ZIP64 field, but has none");
    return HS_OK;
}

static int read_local(const archive *a, hs_zip_entry *e, uint64_t from, uint64_t size, uint64_t limit) {
    if (from > limit || limit - from < LOCAL) return bad_entry(a, e, "begins outside the file");
    const unsigned char *l = a->p + from;
    if (le(l, 4) != SIG_LOCAL) return bad_entry(a, e, "has no local header where the directory says");
    const uint64_t name = le(l + 26, 2), extra = le(l + 28, 2), flags = le(l + 6, 2);
    if (le(l + 8, 2)) return bad_entry(a, e, "is compressed according to its local header");
    if (flags & ~(uint64_t)(FLAG_SIZES_BEHIND | FLAG_UTF8)) return bad_entry(a, e, "has unknown or encrypted flags");
    if (limit - from - LOCAL < name + extra || limit - from - LOCAL - name - extra < size)
        return bad_entry(a, e, "ends outside the file: truncated");
    if (name != (uint64_t)e->name_len || memcmp(l + LOCAL, e->name, name))
        return bad_entry(a, e, "has another name in its local header");
    const uint64_t told = le(l + 22, 4);
    if (!(flags & FLAG_SIZES_BEHIND) && told != 0xffffffff && told != size)
        return bad_entry(a, e, "has another size in its local header");
    e->from = (int64_t)from;
    e->begin = (int64_t)(from + LOCAL + name + extra);
    e->size = (int64_t)size;
    e->behind = e->begin + e->size;
    return HS_OK;
}

/* One entry of the directory of which `left` bytes remain; *ret_used = its bytes. */
static int read_entry(const archive *a, const unsigned char *c, uint64_t left, uint64_t limit, hs_zip_entry *e,
                      uint64_t *ret_used) {
    if (left < CENTRAL || le(c, 4) != SIG_CENTRAL) return bad(a, "the directory is cut off or damaged");
    const uint64_t name = le(c + 28, 2), extra = le(c + 30, 2), comment = le(c + 32, 2), flags = le(c + 8, 2);
    uint64_t csize = le(c + 20, 4), usize = le(c + 24, 4), from = le(c + 42, 4);
    if (left - CENTRAL < name + extra + comment) return bad(a, "the directory is cut off or damaged");
    *e = (hs_zip_entry){.name = (const char *)c + CENTRAL, .name_len = (int)name, .crc = (uint32_t)le(c + 16, 4)};
    for (uint64_t i = 0; i < name; i++)
        if (c[CENTRAL + i] < 0x20 || c[CENTRAL + i] == 0x7f) return bad(a, "a name with control characters");
    if (!name) return bad(a, "an entry without a name");
    if (flags & ~(uint64_t)(FLAG_SIZES_BEHIND | FLAG_UTF8)) return bad_entry(a, e, "has unknown or encrypted flags");
    if (le(c + 10, 2)) return bad_entry(a, e, "is compressed; PyTorch only stores");
    if (le(c + 34, 2)) return bad_entry(a, e, "is on another disk");
    int rc = read_extra(a, e, c + CENTRAL + name, extra, &usize, &csize, &from);
    if (rc) return rc;
    if (usize != csize) return bad_entry(a, e, "is stored, but its two sizes differ");
    *ret_used = CENTRAL + name + extra + comment;
    return read_local(a, e, from, usize, limit);
}

static int by_place(const void *x, const void *y) {
    const hs_zip_entry *a = x, *b = y;
    if (a->from != b->from) return a->from < b->from ? -1 : 1;
    return (a->behind > b->behind) - (a->behind < b->behind);
}

static int compare_names(const char *a, int a_len, const char *b, int b_len) {
    const int c = memcmp(a, b, (size_t)(a_len < b_len ? a_len : b_len));
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

static int by_name(const void *x, const void *y) {
    const hs_zip_entry *a = x, *b = y;
    return compare_names(a->name, a->name_len, b->name, b->name_len);
}

int hs_zip_read(const void *data, size_t len, const char *path, hs_zip_entry **ret, int *ret_n, hs_err *err) {
    const archive a = {data, len, path, err};
    directory d = {0};
    int rc = read_end(&a, &d);
    if (rc) return rc;
    const int n = (int)d.entries;
    hs_zip_entry *e = hs_alloc(((size_t)n + 1) * sizeof *e);
    if (!e) return hs_fail(err, HS_ENOMEM, "no memory for the %d entries of %s", n, path);
    uint64_t at = d.begin, left = d.size, used = 0;
    for (int i = 0; i < n && !rc; i++) {
        rc = read_entry(&a, a.p + at, left, d.begin, &e[i], &used);
        at += used;
        left -= used;
    }
    if (!rc && left) rc = bad(&a, "the directory is longer than its entries");
    if (!rc) qsort(e, (size_t)n, sizeof *e, by_place);
    for (int i = 1; i < n && !rc; i++)
        if (e[i].from < e[i - 1].behind) rc = bad_entry(&a, &e[i], "overlaps another one");
    if (!rc) qsort(e, (size_t)n, sizeof *e, by_name);
    for (int i = 1; i < n && !rc; i++)
        if (!by_name(&e[i - 1], &e[i])) rc = bad_entry(&a, &e[i], "is there twice");
    if (rc) {
        hs_free(e);
        return rc;
    }
    *ret = e;
    *ret_n = n;
    return HS_OK;
}

const hs_zip_entry *hs_zip_find(const hs_zip_entry *e, int n, const char *name, int name_len) {
    const hs_zip_entry key = {.name = name, .name_len = name_len};
    return n ? bsearch(&key, e, (size_t)n, sizeof *e, by_name) : NULL;
}
