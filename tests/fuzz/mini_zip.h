/* A small zip archive in memory, and where its parts are, so that tests can damage them one by one. */
#ifndef MINI_ZIP_H
#define MINI_ZIP_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MZ_ENTRIES = 16 };
typedef struct mini_zip {
    unsigned char *p;
    size_t n, cap;
    int count;
    size_t local[MZ_ENTRIES], central[MZ_ENTRIES], directory, end64, locator, end;
    const char *name[MZ_ENTRIES];
    size_t size[MZ_ENTRIES];
    uint32_t crc[MZ_ENTRIES];
} mini_zip;

static inline void mz_put(mini_zip *z, const void *x, size_t n) {
    if (z->n + n > z->cap) {
        z->cap = 2 * (z->n + n);
        z->p = realloc(z->p, z->cap);
        if (!z->p) abort();
    }
    if (n) memcpy(z->p + z->n, x, n);
    z->n += n;
}

static inline void mz_set(mini_zip *z, size_t at, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) z->p[at + (size_t)i] = (unsigned char)(v >> 8 * i);
}

static inline void mz_le(mini_zip *z, uint64_t v, int bytes) {
    static const unsigned char zero[8] = {0};
    mz_put(z, zero, (size_t)bytes);
    mz_set(z, z->n - (size_t)bytes, v, bytes);
}

static inline uint32_t mz_crc(const void *data, size_t n) {
    const unsigned char *p = data;
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
    }
    return ~c;
}

/* At most MZ_ENTRIES; name is kept by the caller. */
static inline void mz_add(mini_zip *z, const char *name, const void *data, size_t n) {
    const int i = z->count++;
    z->local[i] = z->n;
    z->name[i] = name;
    z->size[i] = n;
    z->crc[i] = mz_crc(data, n);
    mz_le(z, 0x04034b50, 4);
    mz_le(z, 0, 8);
    mz_le(z, 0, 2);
    mz_le(z, z->crc[i], 4);
    mz_le(z, n, 4);
    mz_le(z, n, 4);
    mz_le(z, strlen(name), 2);
    mz_le(z, 0, 2);
    mz_put(z, name, strlen(name));
    mz_put(z, data, n);
}

/* Directory and end records; zip64: as PyTorch, sizes and offsets of entries stand in ZIP64 fields too. */
static inline void mz_finish(mini_zip *z, int zip64) {
    z->directory = z->n;
    for (int i = 0; i < z->count; i++) {
        z->central[i] = z->n;
        mz_le(z, 0x02014b50, 4);
        mz_le(z, 0, 8);
        mz_le(z, 0, 4);
        mz_le(z, z->crc[i], 4);
        mz_le(z, zip64 ? 0xffffffff : z->size[i], 4);
        mz_le(z, zip64 ? 0xffffffff : z->size[i], 4);
        mz_le(z, strlen(z->name[i]), 2);
        mz_le(z, zip64 ? 28 : 0, 2);
        mz_le(z, 0, 8);
        mz_le(z, 0, 2);
        mz_le(z, zip64 ? 0xffffffff : z->local[i], 4);
        mz_put(z, z->name[i], strlen(z->name[i]));
        if (!zip64) continue;
        mz_le(z, 1, 2);
        mz_le(z, 24, 2);
        mz_le(z, z->size[i], 8);
        mz_le(z, z->size[i], 8);
        mz_le(z, z->local[i], 8);
    }
    const size_t size = z->n - z->directory;
    z->end64 = z->n;
    if (zip64) {
        mz_le(z, 0x06064b50, 4);
        mz_le(z, 44, 8);
        mz_le(z, 0, 4);
        mz_le(z, 0, 8);
        mz_le(z, (uint64_t)z->count, 8);
        mz_le(z, (uint64_t)z->count, 8);
        mz_le(z, size, 8);
        mz_le(z, z->directory, 8);
        z->locator = z->n;
        mz_le(z, 0x07064b50, 4);
        mz_le(z, 0, 4);
        mz_le(z, z->end64, 8);
        mz_le(z, 1, 4);
    }
    z->end = z->n;
    mz_le(z, 0x06054b50, 4);
    mz_le(z, 0, 4);
    mz_le(z, (uint64_t)z->count, 2);
    mz_le(z, (uint64_t)z->count, 2);
    mz_le(z, size, 4);
    mz_le(z, z->directory, 4);
    mz_le(z, 0, 2);
}

static inline void mz_free(mini_zip *z) {
    free(z->p);
    *z = (mini_zip){0};
}
#endif
