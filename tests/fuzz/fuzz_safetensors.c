/* safetensors headers: any bytes as a file, and any bytes as the JSON of an otherwise right file. What is accepted must
 * keep every promise of safetensors.h. */
#include "fuzz.h"
#include "safetensors.h"
#include "zip.h"

static void check_set(hs_st *st, const uint8_t *data, size_t len, int64_t file_size) {
    int64_t bytes = 0;
    for (int i = 0; i < hs_st_count(st); i++) {
        const hs_st_tensor *t = hs_st_at(st, i);
        int64_t size = t->numel * (int64_t)hs_dtype_size(t->dtype), product = 1;
        for (int d = 0; d < t->ndim; d++) product *= t->shape[d];
        FUZZ_ASSERT(product == t->numel && t->numel >= 0 && t->ndim <= HS_ST_MAX_DIMS);
        FUZZ_ASSERT(i == 0 || strcmp(hs_st_at(st, i - 1)->name, t->name) < 0);
        FUZZ_ASSERT(hs_st_find(st, t->name) == t);
        if (file_size == (int64_t)len) { /* the tensor's first and last byte can be read */
            const uint8_t *p = t->data;
            FUZZ_ASSERT(p >= data && p + size <= data + len);
            volatile uint8_t sink = size ? (uint8_t)(p[0] ^ p[size - 1]) : 0;
            (void)sink;
        }
        const hs_st_tensor *same;
        hs_err err;
        hs_st_get(st, t->name, t->ndim, t->shape, &same, &err);
        bytes += size;
    }
    FUZZ_ASSERT(bytes == hs_st_bytes(st) && bytes <= file_size);
    FUZZ_ASSERT(!hs_st_unused(st));
    hs_st_metadata(st, "format");
}

static void parse(const uint8_t *data, size_t len, int64_t file_size) {
    hs_st *st = NULL;
    hs_err err = {0};
    int rc = hs_st_parse(data, len, file_size, "fuzz", &st, &err);
    if (rc) {
        FUZZ_ASSERT(!st && err.code == rc && *err.msg);
    } else {
        check_set(st, data, len, file_size);
        hs_st_close(st);
    }
    FUZZ_ASSERT(hs_alloc_live() == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    if (hs_zip_is(data, len)) return 0; /* fuzz_pth.c */
    parse(data, len, (int64_t)len);
    parse(data, len, 1ll << 40);
    uint8_t *file = malloc(len + 8 + 64); /* with room for a few tensors */
    if (!file) return 0;
    for (int i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)len >> 8 * i);
    if (len) memcpy(file + 8, data, len);
    memset(file + 8 + len, 0x55, 64);
    parse(file, len + 8 + 64, (int64_t)len + 8 + 64);
    parse(file, len + 8, INT64_MAX);
    free(file);
    return 0;
}
