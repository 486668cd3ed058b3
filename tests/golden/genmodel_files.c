/* Values of tensors into safetensors files. */
#include "genmodel.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 16 };

/* The nearest of the values of F8_E4M3: codes 0 to 126 rise, 127 is NaN, 128 and more are the same with a sign. The
 * smaller code where two are as near. */
static unsigned char nearest_f8(const float *value, float v) {
    const float size = fabsf(v);
    int low = 0, high = 126;
    while (high - low > 1) {
        const int mid = (low + high) / 2;
        *(value[mid] <= size ? &low : &high) = mid;
    }
    const int best = fabsf(value[high] - size) < fabsf(value[low] - size) ? high : low;
    return (unsigned char)(v < 0 && best ? best + 128 : best);
}

static int element_count(const gm_item *it, int64_t *ret) {
    *ret = it->t ? gm_numel(it->t) : it->raw_n;
    return it->t != NULL;
}

int64_t gm_item_bytes(const gm_item *it) {
    int64_t n;
    element_count(it, &n);
    return n * (int64_t)hs_dtype_size(it->type);
}

int gm_item_data(FILE *f, const gm_item *it) {
    static float value[CHUNK], f8[256];
    static unsigned char raw[CHUNK * sizeof(float)];
    double scale, center;
    int64_t numel;
    const size_t size = hs_dtype_size(it->type);
    if (!element_count(it, &numel)) return fwrite(it->raw, size, (size_t)numel, f) == (size_t)numel ? 0 : -1;
    for (int i = 0; i < 256; i++) hs_to_f32(&f8[i], &(unsigned char){(unsigned char)i}, HS_F8_E4M3, 1);
    gm_weight_rule(it->t, &scale, &center);
    for (int64_t a = 0; a < numel; a += CHUNK) {
        const int64_t n = numel - a < CHUNK ? numel - a : CHUNK;
        gm_uniform(it->t->name, scale, center, a, n, value);
        for (int64_t i = 0; i < n && it->factor != 1.0; i++) value[i] = (float)(value[i] * it->factor);
        for (int64_t i = 0; i < n && it->quant; i++) {
            const unsigned char b = nearest_f8(f8, value[i] / it->scale);
            if (it->type == HS_F8_E4M3) raw[i] = b;
            value[i] = f8[b] * it->scale;
        }
        if (it->type != HS_F8_E4M3) hs_from_f32(raw, it->type, value, n);
        if (fwrite(raw, size, (size_t)n, f) != (size_t)n) return -1;
    }
    return 0;
}

int gm_write_safetensors(const char *path, const gm_item *items, int n, int sparse, int pad, hs_err *err) {
    const size_t cap = (size_t)(n + 1) * 320 + 64;
    char *head = hs_alloc(cap);
    FILE *f = head ? fopen(path, "wb") : NULL;
    int bad = !f;
    if (f) {
        size_t len = (size_t)snprintf(head, cap, "{\"__metadata__\":{\"format\":\"pt\"}");
        int64_t at = 0;
        for (int i = 0; i < n; i++) {
            const gm_item *it = &items[i];
            len += (size_t)snprintf(head + len, cap - len, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", it->name,
                                    hs_dtype_name(it->type));
            if (!it->t && it->raw_n != 1) len += (size_t)snprintf(head + len, cap - len, "%lld", (long long)it->raw_n);
            for (int k = 0; it->t && k < it->t->ndim; k++)
                len += (size_t)snprintf(head + len, cap - len, "%s%lld", k ? "," : "", (long long)it->t->shape[k]);
            const int64_t end = at + gm_item_bytes(it);
            len += (size_t)snprintf(head + len, cap - len, "],\"data_offsets\":[%lld,%lld]}", (long long)at,
                                    (long long)end);
            at = end;
        }
        head[len++] = '}';
        while (pad && len % 8) head[len++] = ' '; /* as the safetensors library does; the format does not demand it */
        if (!pad && len % 2 == 0) head[len++] = ' '; /* odd on purpose: no tensor is aligned */
        unsigned char le[8];
        for (int k = 0; k < 8; k++) le[k] = (unsigned char)((uint64_t)len >> (8 * k));
        bad = fwrite(le, 1, 8, f) != 8 || fwrite(head, 1, len, f) != len;
        if (sparse)
            bad = bad || fflush(f) || ftruncate(fileno(f), (off_t)(8 + len) + (off_t)at);
        else
            for (int i = 0; i < n && !bad; i++) bad = gm_item_data(f, &items[i]) != 0;
        if (fclose(f)) bad = 1;
    }
    hs_free(head);
    return bad ? hs_fail(err, HS_EIO, "%s: cannot be written: %s", path, strerror(errno)) : 0;
}
