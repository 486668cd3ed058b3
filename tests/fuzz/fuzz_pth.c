/* PyTorch checkpoints: any bytes as a file, and any bytes as the pickle of an otherwise right archive. What is accepted
 * must keep every promise of safetensors.h. */
#include "fuzz.h"
#include "mini_zip.h"
#include "safetensors.h"
#include "zip.h"

static void check_set(hs_st *st, const uint8_t *data, size_t len) {
    for (int i = 0; i < hs_st_count(st); i++) {
        const hs_st_tensor *t = hs_st_at(st, i);
        int64_t size = t->numel * (int64_t)hs_dtype_size(t->dtype), product = 1;
        FUZZ_ASSERT(t->ndim >= 0 && t->ndim <= HS_ST_MAX_DIMS);
        for (int d = 0; d < t->ndim; d++) product *= t->shape[d];
        FUZZ_ASSERT(product == t->numel && t->numel >= 0 && t->scale == 1);
        FUZZ_ASSERT(i == 0 || strcmp(hs_st_at(st, i - 1)->name, t->name) < 0);
        const uint8_t *p = t->data; /* the tensor's first and last byte can be read */
        FUZZ_ASSERT(p >= data && size <= data + len - p);
        volatile uint8_t sink = size ? (uint8_t)(p[0] ^ p[size - 1]) : 0;
        (void)sink;
        FUZZ_ASSERT(hs_st_find(st, t->name) == t);
    }
    FUZZ_ASSERT(!hs_st_unused(st));
}

static void parse(const uint8_t *data, size_t len) {
    hs_st *st = NULL;
    hs_err err = {0};
    int rc = hs_st_parse(data, len, (int64_t)len, "fuzz", &st, &err);
    if (rc) {
        FUZZ_ASSERT(!st && err.code == rc && *err.msg);
    } else {
        check_set(st, data, len);
        hs_st_close(st);
    }
    FUZZ_ASSERT(hs_alloc_live() == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static const uint8_t values[64] = {1, 2, 3};
    if (hs_zip_is(data, len)) parse(data, len); /* else it is what fuzz_safetensors does */
    mini_zip z = {0};
    mz_add(&z, "a/data.pkl", data, len);
    mz_add(&z, "a/data/0", values, 24);
    mz_add(&z, "a/data/1", values, 64);
    mz_finish(&z, len % 2);
    uint8_t *exact = malloc(z.n); /* so that a sanitizer sees reads behind the end */
    if (exact) {
        memcpy(exact, z.p, z.n);
        parse(exact, z.n);
    }
    free(exact);
    mz_free(&z);
    return 0;
}
