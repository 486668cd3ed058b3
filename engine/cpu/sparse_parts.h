/* What the files of the predictors share (sparse.c, kmeans.c): cutting attention's room into pieces, packing centroids,
 * adding up vectors. */
#ifndef HS_CPU_SPARSE_PARTS_H
#define HS_CPU_SPARSE_PARTS_H
#include "cpu/attention.h"
#include "cpu/attn_pack.h"

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) {
    return 0;
}
static inline int omp_get_num_threads(void) {
    return 1;
}
#endif

enum {
    HS_SPARSE_MAX_DIM = 1024, /* the most backend_sparse.c lets through */
    HS_SPARSE_LINE = 32,      /* values of a vector that are added up at a time */
    HS_SPARSE_CHUNK = 64,     /* vectors that are added up in single precision */
};

static inline int hs_sparse_wanted(hs_buf want, int h) {
    return ((const uint8_t *)want.p)[h];
}

/* Cuts `words` words off the room, on a cache line; the room may go negative, which is asked for once, in the end. */
static inline float *hs_sparse_take(hs_cpu_room *room, int64_t words) {
    float *at = room->words;
    words = hs_round_up(words, 16);
    room->words += words;
    room->count -= words;
    return at;
}

static inline int hs_sparse_fits(hs_device *dev, const hs_cpu_room *room, const char *op, const char *cure) {
    if (room->count >= 0) return 1;
    hs_device_sticky(dev, HS_ENOMEM, "%s: %lld MB of working space are missing on device '%s'; %s", op,
                     (long long)(-room->count >> 18) + 1, dev->name, cure);
    return 0;
}

/* Panels of vectors x [count, n] F32 as right operand: [round_up(count, HS_ATTN_PAD) / HS_ATTN_PANEL][n][16]. */
static inline void hs_sparse_panel(const float *x, int count, int n, int64_t p, float *panels) {
    float *to = panels + p * n * HS_ATTN_PANEL;
    for (int r = 0; r < HS_ATTN_PANEL; r++) {
        const int64_t i = p * HS_ATTN_PANEL + r;
        for (int d = 0; d < n; d++) to[d * HS_ATTN_PANEL + r] = i < count ? x[i * n + d] : 0;
    }
}

/* Adds `width` columns of vectors to sums; width and type are constants after inlining, so that a cache line's worth of
 * sums stays in registers. */
static inline __attribute__((always_inline)) void hs_sparse_add_columns(const void *x, hs_dtype type, int64_t ld,
                                                                        const int32_t *order, int64_t first,
                                                                        int64_t end, int width, double *sum) {
    float part[HS_SPARSE_LINE] = {0};
    for (int64_t i = first; i < end; i++) {
        const int64_t at = (order ? order[i] : i) * ld;
        const float *f = (const float *)x + at;
        const uint16_t *b = (const uint16_t *)x + at;
        if (type == HS_F32)
            for (int d = 0; d < width; d++) part[d] += f[d];
        else
            for (int d = 0; d < width; d++) part[d] += hs_bf16_to_f32(b[d]);
    }
    for (int d = 0; d < width; d++) sum[d] += part[d];
}

/* Adds vectors [first, end), in places of `order` if there is one, n long and ld apart, to sums [n]. Single precision
 * serves for HS_SPARSE_CHUNK of them at a time. */
static inline void hs_sparse_add(hs_buf x, int64_t ld, const int32_t *order, int64_t first, int64_t end, int n,
                                 double *sum) {
    const int64_t size = x.type == HS_F32 ? 4 : 2;
    for (int64_t i = first; i < end; i += HS_SPARSE_CHUNK) {
        const int64_t last = hs_min64(i + HS_SPARSE_CHUNK, end);
        for (int64_t v = i; v < last; v++) /* pages apart, out of the hardware prefetcher's sight */
            for (int64_t b = 0; b < n * size; b += 64)
                __builtin_prefetch((const char *)x.p + (order ? order[v] : v) * ld * size + b);
        for (int d = 0; d < n; d += HS_SPARSE_LINE) {
            const hs_buf from = hs_buf_at(x, d, x.n - d);
            if (n - d < HS_SPARSE_LINE)
                hs_sparse_add_columns(from.p, x.type, ld, order, i, last, n - d, sum + d);
            else if (x.type == HS_F32)
                hs_sparse_add_columns(from.p, HS_F32, ld, order, i, last, HS_SPARSE_LINE, sum + d);
            else
                hs_sparse_add_columns(from.p, HS_BF16, ld, order, i, last, HS_SPARSE_LINE, sum + d);
        }
    }
}

#endif
