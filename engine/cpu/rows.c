/* Row operations of the CPU backend: norms, modulation, rotation, gated GELU, gather, combine, patches, latent frames,
 * checks. All are bound by memory: one pass where the mathematics allows it, F32 inside, OpenMP over rows or pieces.
 *
 * The inner loops live in rows_kernels.h, compiled here for AVX-512, AVX2 and whatever the compiler's base is, and
 * chosen at run time. Work is cut the same way whatever the number of threads, so results do not depend on it.
 */
#include "cpu/rows.h"
#include <math.h>
#include <string.h>

enum {
    PIECE = 4096, /* values an inner loop keeps at hand (16 KB of F32); also the widest head and channel count */
    COPY_PIECE = 1 << 16,
};

/* ---- numbers ---------------------------------------------------------------------------------------------------- */
#define INLINE static inline __attribute__((always_inline))

INLINE float float_of(uint32_t u) {
    union {
        uint32_t u;
        float f;
    } v = {u};
    return v.f;
}

INLINE uint32_t bits_of(float f) {
    union {
        float f;
        uint32_t u;
    } v = {f};
    return v.u;
}

/* hs_f32_to_bf16 without a branch, so that it vectorises */
INLINE uint16_t bf16_of(float f) {
    const uint32_t u = bits_of(f), even = (u + 0x7fffu + (u >> 16 & 1u)) >> 16, nan = u >> 16 | 0x40u;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? nan : even);
}

typedef float eight __attribute__((vector_size(32)));

/* ---- instruction sets ------------------------------------------------------------------------------------------- */
typedef struct kernels {
    void (*load)(float *dst, const void *src, hs_dtype t, int64_t n);
    void (*store)(void *dst, hs_dtype t, const float *src, int64_t n);
    void (*add_gated)(const float *x, const float *gate, int64_t d, float *y);
    void (*norm_row)(hs_norm_kind kind, const float *x, int64_t d, const float *mul, const float *add, float eps,
                     char *y, hs_dtype t);
    void (*qk_row)(char *x, hs_dtype t, int64_t d, int head_dim, const float *gamma, const float *rope, float eps);
    void (*add_rows)(const char *x, hs_dtype t, int64_t rows, int64_t ld, int64_t n, double *sum);
    void (*gelu_mul)(const char *a, const char *b, char *y, hs_dtype t, int64_t n);
    void (*pixels)(const char *x, hs_dtype tx, int64_t pixels, int C, const float *gamma, int silu, char *y,
                   hs_dtype ty);
    void (*combine)(int count, const double *c, const hs_buf *x, int64_t i, float *y, int64_t n);
    int64_t (*bytes)(const char *x, hs_dtype t, uint8_t *y, int64_t n);
    int64_t (*nonfinite)(const char *x, hs_dtype t, int64_t n);
} kernels;

#define HS_KERNEL(name) name##_base
#define HS_TARGET
#define HS_FMA(a, b, c) ((a) * (b) + (c))
#include "cpu/rows_kernels.h"
#undef HS_KERNEL
#undef HS_TARGET
#undef HS_FMA
#if defined(__x86_64__)
#define HS_FMA(a, b, c) __builtin_fmaf(a, b, c)
#define HS_KERNEL(name) name##_avx2
#define HS_TARGET       __attribute__((target("avx2,fma,f16c")))
#include "cpu/rows_kernels.h"
#undef HS_KERNEL
#undef HS_TARGET
#define HS_KERNEL(name) name##_avx512
#define HS_TARGET       __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#include "cpu/rows_kernels.h"
#undef HS_KERNEL
#undef HS_TARGET
#undef HS_FMA
#endif

static const kernels *kernels_of(const hs_device *dev) {
#if defined(__x86_64__)
    if (hs_cpu_of(dev)->isa.avx512) return &table_avx512;
    if (hs_cpu_of(dev)->isa.avx2) return &table_avx2;
#endif
    (void)dev;
    return &table_base;
}

static char *at(hs_buf b, int64_t i) {
    return (char *)b.p + (size_t)i * hs_dtype_size(b.type);
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- operations ------------------------------------------------------------------------------------------------- */
void hs_cpu_copy(hs_device *dev, hs_buf dst, hs_buf src) {
    const kernels *k = kernels_of(dev);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, src.n))
    for (int64_t i = 0; i < src.n; i += COPY_PIECE) {
        const int64_t n = least(COPY_PIECE, src.n - i);
        if (dst.type == src.type)
            memcpy(at(dst, i), at(src, i), (size_t)n * hs_dtype_size(src.type));
        else if (dst.type == HS_F32)
            k->load((float *)dst.p + i, at(src, i), src.type, n);
        else
            k->store(at(dst, i), dst.type, (const float *)src.p + i, n);
    }
}

void hs_cpu_add_gated(hs_device *dev, hs_buf x, hs_buf gate, int64_t rows, int64_t d, hs_buf y) {
    const kernels *k = kernels_of(dev);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, rows *d))
    for (int64_t r = 0; r < rows; r++) k->add_gated((const float *)x.p + r * d, gate.p, d, (float *)y.p + r * d);
}

void hs_cpu_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                 float eps, hs_buf y) {
    const kernels *k = kernels_of(dev);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, rows *d))
    for (int64_t r = 0; r < rows; r++)
        k->norm_row(kind, (const float *)x.p + r * d, d, mul.p, add.p, eps, at(y, r * d), y.type);
}

/* A few rows: not worth threads. */
void hs_cpu_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                       hs_buf y) {
    (void)dev;
    for (int r = 0; r < rows; r++) {
        const float *t = (const float *)table.p + r * d, *add = (const float *)e.p + (e_rows == 1 ? 0 : r * d);
        const float one = one_plus >> r & 1 ? 1.0f : 0.0f;
        float *out = (float *)y.p + r * d;
        for (int64_t i = 0; i < d; i++) out[i] = t[i] + add[i] + one;
    }
}

void hs_cpu_qk_norm(hs_device *dev, const hs_qk_norm *a) {
    const kernels *k = kernels_of(dev);
    const hs_qk_norm q = *a;
    const float *rope = q.rope.p;
    const int threads = hs_cpu_threads(dev, q.parts * q.rows * q.d);
    (void)threads; /* read by OpenMP alone */
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < q.rows; r++)
        for (int part = 0; part < q.parts; part++)
            k->qk_row(at(q.x, r * q.ld + q.col + part * q.d), q.x.type, q.d, q.head_dim, q.gamma[part].p,
                      rope ? rope + r * q.head_dim : NULL, q.eps);
    enum { COLUMNS = 64 }; /* two cache lines of bf16 per row */
    for (int part = 0; part < q.parts; part++) {
        float *mean = q.mean[part].p;
        if (!mean) continue;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int64_t c = 0; c < q.d; c += COLUMNS) {
            double sum[COLUMNS] = {0};
            const int64_t n = least(COLUMNS, q.d - c);
            k->add_rows(at(q.x, q.col + part * q.d + c), q.x.type, q.rows, q.ld, n, sum);
            for (int64_t i = 0; i < n; i++) mean[c + i] = (float)(sum[i] / (double)q.rows);
        }
    }
}

void hs_cpu_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y) {
    const kernels *k = kernels_of(dev);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, rows *ff))
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < ff; i += PIECE)
            k->gelu_mul(at(ab, r * 2 * ff + i), at(ab, (r * 2 + 1) * ff + i), at(y, r * ff + i), y.type,
                        least(PIECE, ff - i));
}

void hs_cpu_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y) {
    const kernels *k = kernels_of(dev);
    const int32_t *id = ids.p;
    for (int64_t i = 0; i < n; i++) k->load((float *)y.p + i * d, at(table, id[i] * d), table.type, d);
}

void hs_cpu_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y) {
    const kernels *k = kernels_of(dev);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, y.n))
    for (int64_t i = 0; i < y.n; i += PIECE) k->combine(count, c, x, i, (float *)y.p + i, least(PIECE, y.n - i));
}

/* Pixel (2i + dy, 2j + dx) of channel c and frame t belongs to token (t, i, j). Latents are small: plain loops. */
void hs_cpu_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    const kernels *k = kernels_of(dev);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, y.n))
    for (int64_t row = 0; row < (int64_t)f * h; row++)
        for (int64_t j = 0; j < w; j++)
            for (int64_t c = 0; c < C; c++) {
                const int64_t t = row / h, i = row % h;
                const float *in = (const float *)x.p + ((c * f + t) * 2 * h + 2 * i) * 2 * w + 2 * j;
                const float four[4] = {in[0], in[1], in[2 * w], in[2 * w + 1]};
                k->store(at(y, ((row * w + j) * C + c) * 4), y.type, four, 4);
            }
}

void hs_cpu_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, y.n))
    for (int64_t line = 0; line < (int64_t)C * f * 2 * h; line++) {
        const int64_t c = line / (2 * h) / f, t = line / (2 * h) % f, Y = line % (2 * h);
        const float *in = (const float *)x.p + (t * h + Y / 2) * w * 4 * C + Y % 2 * 2 * C + c;
        float *out = (float *)y.p + line * 2 * w;
        for (int64_t j = 0; j < w; j++) {
            out[2 * j] = in[j * 4 * C];
            out[2 * j + 1] = in[j * 4 * C + C];
        }
    }
}

void hs_cpu_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                          const float *add, hs_buf z) {
    const kernels *k = kernels_of(dev);
    const int64_t area = (int64_t)Y * X;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, z.n))
    for (int64_t p = 0; p < T * area; p++)
        for (int64_t c = 0; c < C; c++) {
            const float v = ((const float *)x.p)[(c * f + t0) * area + p] * mul[c] + add[c];
            k->store(at(z, p * C + c), z.type, &v, 1);
        }
}

void hs_cpu_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y) {
    const kernels *k = kernels_of(dev);
    if (C > PIECE) {
        hs_device_sticky(dev, HS_ENOTSUP, "channel_norm over %d channels, at most %d on the cpu backend", C, PIECE);
        return;
    }
    const int64_t group = PIECE / C;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, pixels *C))
    for (int64_t i = 0; i < pixels; i += group)
        k->pixels(at(x, i * C), x.type, least(group, pixels - i), C, gamma.p, silu, at(y, i * C), y.type);
}

void hs_cpu_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y) {
    (void)dev;
    const size_t bytes = (size_t)C * hs_dtype_size(x.type);
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, x.n))
    for (int64_t p = 0; p < T * pixels; p++) {
        const int64_t t = p / pixels, i = p % pixels;
        for (int64_t s = 0; s < 2; s++) memcpy(at(y, ((2 * t + s) * pixels + i) * C), at(x, (2 * p + s) * C), bytes);
    }
}

void hs_cpu_to_u8(hs_device *dev, hs_buf x, hs_buf y) {
    const kernels *k = kernels_of(dev);
    int64_t nan = 0;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, x.n)) reduction(+ : nan)
    for (int64_t i = 0; i < x.n; i += PIECE)
        nan += k->bytes(at(x, i), x.type, (uint8_t *)y.p + i, least(PIECE, x.n - i));
    if (nan) hs_device_sticky(dev, HS_ENUMERIC, "to_u8: %lld of %lld values are NaN", (long long)nan, (long long)x.n);
}

int64_t hs_cpu_count_nonfinite(hs_device *dev, hs_buf x) {
    const kernels *k = kernels_of(dev);
    int64_t bad = 0;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, x.n)) reduction(+ : bad)
    for (int64_t i = 0; i < x.n; i += PIECE) bad += k->nonfinite(at(x, i), x.type, least(PIECE, x.n - i));
    return bad;
}
