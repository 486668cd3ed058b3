/* Base services: errors, log hook, counted memory, number formats, random numbers, clocks.
 *
 * Everything here is plain C11 with atomics and a few POSIX calls; it knows nothing of tensors, files or devices. The
 * allocator puts the size of a block in the 64 bytes in front of it, so that live and peak bytes are known without help
 * from the C library and the block itself keeps the alignment of a cache line.
 */
#include "base.h"

#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <sys/stat.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- errors -------------------------------------------------------------------------------------------------- */

/* Messages may quote names from files: control characters become '?' (no terminal escapes), and a message cut at the
 * end of the buffer does not end within a UTF-8 character. */
static void tidy(char *s, int cut) {
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)s[i] < 0x20 && s[i] != '\n') || s[i] == 0x7f) s[i] = '?';
    if (!cut || !n) return;
    size_t k = n; /* the last character starts at k - 1 */
    while (k > 1 && ((unsigned char)s[k - 1] & 0xc0) == 0x80) k--;
    unsigned char lead = k ? (unsigned char)s[k - 1] : 0;
    size_t needs = lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (n - (k - 1) < needs) s[k - 1] = '\0';
}

int hs_fail(hs_err *err, int code, const char *fmt, ...) {
    if (!err) return code;
    char msg[sizeof(err->msg)]; /* an argument may be err->msg itself */
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    tidy(msg, n >= (int)sizeof(msg));
    memcpy(err->msg, msg, sizeof(msg));
    err->code = code;
    return code;
}

int hs_fail_ctx(hs_err *err, int code, const char *fmt, ...) {
    if (!err) return code;
    char ctx[sizeof(err->msg)], msg[2 * sizeof(err->msg) + 2];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ctx, sizeof(ctx), fmt, ap);
    va_end(ap);
    int n = snprintf(msg, sizeof(msg), "%s: %s", ctx, err->msg);
    msg[sizeof(err->msg) - 1] = '\0';
    tidy(msg, n >= (int)sizeof(err->msg));
    memcpy(err->msg, msg, strlen(msg) + 1);
    return err->code;
}

/* ---- log ----------------------------------------------------------------------------------------------------- */

static hs_log_fn log_fn;
static void *log_user;

void hs_log_set(hs_log_fn fn, void *user) {
    log_fn = fn;
    log_user = user;
}

void hs_log(enum hs_log_level level, const char *fmt, ...) {
    if (!log_fn) return;
    char msg[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(msg, sizeof(msg), fmt, ap);
    va_end(ap);
    tidy(msg, n >= (int)sizeof(msg));
    log_fn(log_user, level, msg);
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

enum { ALIGN = 64 }; /* also the room in front of each block that holds its size */

static _Atomic int64_t live_blocks, live_bytes, peak_bytes, fail_countdown;
static _Atomic int guarded, guard_hits;

void *hs_alloc(size_t bytes) {
    if (atomic_load(&guarded)) {
        atomic_fetch_add(&guard_hits, 1);
        return NULL;
    }
    if (atomic_load(&fail_countdown) > 0 && atomic_fetch_sub(&fail_countdown, 1) == 1) return NULL;
    if (bytes > (size_t)INT64_MAX / 2) return NULL;
    void *base;
    if (posix_memalign(&base, ALIGN, bytes + ALIGN)) return NULL;
    memcpy(base, &bytes, sizeof(bytes));
    atomic_fetch_add(&live_blocks, 1);
    int64_t now = atomic_fetch_add(&live_bytes, (int64_t)bytes) + (int64_t)bytes;
    int64_t peak = atomic_load(&peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, now)) {
    }
    return (char *)base + ALIGN;
}

void *hs_calloc(size_t count, size_t bytes) {
    if (bytes && count > SIZE_MAX / bytes) return NULL;
    void *p = hs_alloc(count * bytes);
    if (p) memset(p, 0, count * bytes);
    return p;
}

char *hs_strdup(const char *s) {
    size_t n = strlen(s) + 1;
    char *p = hs_alloc(n);
    if (p) memcpy(p, s, n);
    return p;
}

void hs_free(void *p) {
    if (!p) return;
    char *base = (char *)p - ALIGN;
    size_t bytes;
    memcpy(&bytes, base, sizeof(bytes));
    atomic_fetch_sub(&live_blocks, 1);
    atomic_fetch_sub(&live_bytes, (int64_t)bytes);
    free(base);
}

void hs_guard_begin(void) {
    atomic_store(&guard_hits, 0);
    atomic_store(&guarded, 1);
}

int hs_guard_end(void) {
    atomic_store(&guarded, 0);
    return atomic_load(&guard_hits);
}

void hs_alloc_fail_at(int64_t n) {
    atomic_store(&fail_countdown, n);
}
int64_t hs_alloc_live(void) {
    return atomic_load(&live_blocks);
}
int64_t hs_alloc_peak_bytes(void) {
    return atomic_load(&peak_bytes);
}

int hs_mul(int64_t a, int64_t b, int64_t *ret) {
    if (a < 0 || b < 0 || (b && a > INT64_MAX / b)) return HS_EINVAL;
    *ret = a * b;
    return HS_OK;
}

/* ---- number formats -------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t size;
} dtypes[HS_DTYPE_COUNT] = {
    [HS_F32] = {"F32", 4}, [HS_BF16] = {"BF16", 2}, [HS_F16] = {"F16", 2},
    [HS_U8] = {"U8", 1},   [HS_I32] = {"I32", 4},   [HS_F8_E4M3] = {"F8_E4M3", 1},
};

size_t hs_dtype_size(hs_dtype t) {
    return (unsigned)t < HS_DTYPE_COUNT ? dtypes[t].size : 0;
}
const char *hs_dtype_name(hs_dtype t) {
    return (unsigned)t < HS_DTYPE_COUNT ? dtypes[t].name : "?";
}

static inline uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Moved into place, the exponent is 112 too small: one exact multiplication repairs it, subnormals included. */
static inline float half_to_float(uint16_t h) {
    uint32_t mag = h & 0x7fffu;
    uint32_t u = float_bits(bits_float(mag << 13) * 0x1p112f);
    u |= mag >= 0x7c00u ? 0x7f800000u : 0; /* Inf and NaN keep all exponent bits */
    return bits_float(u | (uint32_t)(h & 0x8000u) << 16);
}

static inline uint16_t float_to_half(float f) {
    uint32_t u = float_bits(f), sign = u >> 16 & 0x8000u, mag = u & 0x7fffffffu, r;
    if (mag >= 0x7f800000u)
        r = mag > 0x7f800000u ? 0x7e00u | (mag >> 13 & 0x3ffu) : 0x7c00u;
    else if (mag >= 0x47800000u) /* 65536 */
        r = 0x7c00u;
    else if (mag >= 0x38800000u) /* 2^-14: a normal half; a carry moves into the exponent, and from 65520 on to Inf */
        r = (mag - 0x38000000u + 0xfffu + (mag >> 13 & 1u)) >> 13;
    else /* adding 0.5 leaves multiples of 2^-24, the subnormal step, in the low bits, rounded by the addition itself */
        r = float_bits(bits_float(mag) + 0.5f) - 0x3f000000u;
    return (uint16_t)(sign | r);
}

float hs_f16_to_f32(uint16_t h) {
    return half_to_float(h);
}
uint16_t hs_f32_to_f16(float f) {
    return float_to_half(f);
}

static float e4m3_to_float(uint8_t b) { /* 1-4-3 bits, bias 7, no Inf; S.1111.111 is NaN */
    int e = b >> 3 & 15, m = b & 7;
    float v = e == 15 && m == 7 ? NAN : e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
    return b & 0x80 ? -v : v;
}

void hs_to_f32(float *dst, const void *src, hs_dtype t, int64_t n) {
    const unsigned char *s = src; /* may have any alignment: it comes from a mapped file */
    switch (t) {
    case HS_F32: memcpy(dst, src, (size_t)n * 4); break;
    case HS_BF16:
        for (int64_t i = 0; i < n; i++) {
            uint16_t b;
            memcpy(&b, s + 2 * i, 2);
            dst[i] = hs_bf16_to_f32(b);
        }
        break;
    case HS_F16:
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, s + 2 * i, 2);
            dst[i] = half_to_float(h);
        }
        break;
    case HS_U8:
        for (int64_t i = 0; i < n; i++) dst[i] = s[i];
        break;
    case HS_I32:
        for (int64_t i = 0; i < n; i++) {
            int32_t v;
            memcpy(&v, s + 4 * i, 4);
            dst[i] = (float)v;
        }
        break;
    case HS_F8_E4M3: {
        float value[256]; /* one step of the exponent costs more than a look */
        const int few = n < 256;
        for (int i = 0; i < 256 && !few; i++) value[i] = e4m3_to_float((uint8_t)i);
        for (int64_t i = 0; i < n; i++) dst[i] = few ? e4m3_to_float(s[i]) : value[s[i]];
        break;
    }
    case HS_DTYPE_COUNT: break;
    }
}

void hs_from_f32(void *dst, hs_dtype t, const float *src, int64_t n) {
    uint16_t *d = dst;
    switch (t) {
    case HS_F32: memcpy(dst, src, (size_t)n * 4); break;
    case HS_BF16:
        for (int64_t i = 0; i < n; i++) d[i] = hs_f32_to_bf16(src[i]);
        break;
    case HS_F16:
        for (int64_t i = 0; i < n; i++) d[i] = float_to_half(src[i]);
        break;
    default: break;
    }
}

/* ---- random numbers -------------------------------------------------------------------------------------------- */

enum { MT_N = 624, MT_M = 397 };

typedef struct mt19937 {
    uint32_t s[MT_N];
    int at;
} mt19937;

static void mt_seed(mt19937 *m, uint32_t seed) {
    m->s[0] = seed;
    for (uint32_t i = 1; i < MT_N; i++) m->s[i] = 1812433253u * (m->s[i - 1] ^ m->s[i - 1] >> 30) + i;
    m->at = MT_N;
}

static uint32_t mt_next(mt19937 *m) {
    if (m->at == MT_N) {
        for (int i = 0; i < MT_N; i++) {
            uint32_t y = (m->s[i] & 0x80000000u) | (m->s[(i + 1) % MT_N] & 0x7fffffffu);
            m->s[i] = m->s[(i + MT_M) % MT_N] ^ y >> 1 ^ (y & 1u ? 0x9908b0dfu : 0);
        }
        m->at = 0;
    }
    uint32_t y = m->s[m->at++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

static const double PI = 3.14159265358979323846;

/* Uniform numbers [16] -> normal numbers: pairs (j, j + 8). Float arithmetic as in torch, but the three functions are
 * evaluated in double and rounded once, so that a seed's noise does not depend on the C library's float functions. */
static void box_muller_16(float *x) {
    for (int j = 0; j < 8; j++) {
        float u = 1.0f - x[j], angle = (float)(2 * PI) * x[j + 8];
        float radius = sqrtf(-2.0f * (float)log((double)u));
        x[j] = (float)(radius * cos((double)angle));
        x[j + 8] = (float)(radius * sin((double)angle));
    }
}

static float uniform24(mt19937 *m) {
    return (float)(mt_next(m) & 0xffffffu) * 0x1p-24f;
}

static double uniform53(mt19937 *m) {
    uint64_t hi = mt_next(m), lo = mt_next(m);
    return (double)((hi << 32 | lo) & ((1ull << 53) - 1)) * 0x1p-53;
}

void hs_randn(uint64_t seed, float *ret, int64_t n) {
    mt19937 m;
    mt_seed(&m, (uint32_t)seed); /* torch drops the upper half too */
    if (n < 16) {                /* torch's scalar path: double precision, the sine kept for the next call */
        for (int64_t i = 0; i < n; i += 2) {
            double u1 = uniform53(&m), u2 = uniform53(&m);
            double radius = sqrt(-2 * log1p(-u2)), angle = 2 * PI * u1;
            ret[i] = (float)(radius * cos(angle));
            if (i + 1 < n) ret[i + 1] = (float)(radius * sin(angle));
        }
        return;
    }
    for (int64_t i = 0; i < n; i++) ret[i] = uniform24(&m);
    for (int64_t i = 0; i + 16 <= n; i += 16) box_muller_16(ret + i);
    if (n % 16) { /* the last 16 are drawn afresh */
        for (int64_t i = n - 16; i < n; i++) ret[i] = uniform24(&m);
        box_muller_16(ret + n - 16);
    }
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

int hs_file_read(const char *path, size_t max_bytes, char **ret, size_t *ret_len, hs_err *err) {
    FILE *f = fopen(path, "rbe");
    if (!f) return hs_fail(err, HS_EIO, "cannot open %s: %s", path, strerror(errno));
    int rc = HS_OK;
    struct stat st;
    char *text = NULL;
    size_t n = 0;
    if (fstat(fileno(f), &st) || !S_ISREG(st.st_mode)) {
        rc = hs_fail(err, HS_EIO, "%s is not a regular file", path);
        goto out;
    }
    if ((uint64_t)st.st_size > max_bytes) {
        rc =
            hs_fail(err, HS_EFORMAT, "%s has %lld bytes, expected at most %zu", path, (long long)st.st_size, max_bytes);
        goto out;
    }
    text = hs_alloc((size_t)st.st_size + 1);
    if (!text) {
        rc = hs_fail(err, HS_ENOMEM, "no memory for the %lld bytes of %s", (long long)st.st_size, path);
        goto out;
    }
    n = fread(text, 1, (size_t)st.st_size, f);
    if (n < (size_t)st.st_size)
        rc = hs_fail(err, HS_EIO, "reading %s stopped after %zu bytes: %s", path, n,
                     ferror(f) ? strerror(errno) : "the file became shorter");
out:
    fclose(f);
    if (rc) {
        hs_free(text);
        return rc;
    }
    text[n] = '\0';
    *ret = text;
    if (ret_len) *ret_len = n;
    return HS_OK;
}

void hs_copy_wide(void *dst, const void *src, size_t bytes, int threads) {
    (void)threads;              /* without OpenMP */
    enum { PIECE = 128 << 10 }; /* small against what a thread copies, so that all of them end together */
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < bytes; i += PIECE)
        memcpy((char *)dst + i, (const char *)src + i, bytes - i < PIECE ? bytes - i : PIECE);
}

char *hs_path_join(const char *dir, const char *name) {
    size_t a = strlen(dir), b = strlen(name);
    char *p = hs_alloc(a + b + 2);
    if (!p) return NULL;
    memcpy(p, dir, a);
    p[a] = '/';
    memcpy(p + a + 1, name, b + 1);
    return p;
}

/* ---- time and memory of the process ------------------------------------------------------------------------------ */

double hs_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int64_t hs_peak_rss(void) {
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) ? 0 : (int64_t)u.ru_maxrss * 1024; /* Linux counts in KiB */
}

/* The number behind `label` in a small file of lines, or at its start without one; -1 if there is none ("max" means no
 * limit). */
static int64_t number_in(const char *path, const char *label) {
    char line[160];
    long long v = -1;
    const size_t n = strlen(label);
    FILE *f = fopen(path, "r");
    while (f && v < 0 && fgets(line, sizeof line, f))
        if (!strncmp(line, label, n) && sscanf(line + n, "%lld", &v) != 1) v = -1;
    if (f) fclose(f);
    return v;
}

int64_t hs_host_free_bytes(void) {
    const int64_t kb = number_in("/proc/meminfo", "MemAvailable:");
    int64_t free = kb > 0 ? kb * 1024 : (int64_t)sysconf(_SC_AVPHYS_PAGES) * (int64_t)sysconf(_SC_PAGESIZE);
    const int64_t limit = number_in("/sys/fs/cgroup/memory.max", ""),
                  used = number_in("/sys/fs/cgroup/memory.current", ""),
                  cache = number_in("/sys/fs/cgroup/memory.stat", "file "); /* pages of files make way */
    if (limit >= 0 && used >= 0) {
        const int64_t left = limit - used + (cache > 0 && cache < used ? cache : 0);
        if (left < free) free = left > 0 ? left : 0;
    }
    return free;
}

/* Less than all processors where a container is given a share of them (cgroup v2). */
int hs_host_threads(void) {
    int n = 1;
#ifdef _OPENMP
    n = omp_get_max_threads();
#endif
    long long quota, period;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!f) return n;
    if (fscanf(f, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0 && (quota + period - 1) / period < n)
        n = (int)((quota + period - 1) / period);
    fclose(f);
    return n;
}
