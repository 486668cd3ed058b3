/* Base services every other file may use: errors, logging, memory with a guard, random numbers.
 *
 * Errors:  functions that can fail return 0 or a negative HS_E* code and fill an hs_err passed last.
 *          `return hs_fail(err, HS_EFORMAT, "...")` sets and returns in one line. err may be NULL.
 *          A message names the object, what was found, what was expected and, where there is one, the cure.
 * Threads: all functions are thread safe unless said otherwise; hs_guard_* and hs_log are per process.
 */
#ifndef HS_BASE_H
#define HS_BASE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HS_OK = 0,
    HS_EFORMAT = -1,  /* a file is damaged, hostile or not what it should be */
    HS_EIO = -2,      /* reading or writing failed (full disk, missing file, ...) */
    HS_ENOMEM = -3,   /* host or device memory is exhausted, or a plan does not fit */
    HS_EINVAL = -4,   /* the caller's argument is out of range */
    HS_ENODEV = -5,   /* the requested device is not there or not built in */
    HS_EDEVICE = -6,  /* the device reported a failure */
    HS_ENUMERIC = -7, /* NaN or Inf where numbers should be */
    HS_EINTR = -8,    /* interrupted by the user */
    HS_ENOTSUP = -9,  /* known, but not supported by this build or this model */
};

typedef struct hs_err {
    int code;
    char msg[512];
} hs_err;

#if defined(__GNUC__)
#define HS_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define HS_PRINTF(f, a)
#endif

/* Fills *err (if not NULL) and returns code. */
int hs_fail(hs_err *err, int code, const char *fmt, ...) HS_PRINTF(3, 4);
/* Puts "context: " in front of the message already in *err; returns err->code (or code if err is NULL). */
int hs_fail_ctx(hs_err *err, int code, const char *fmt, ...) HS_PRINTF(3, 4);

/* ---- log: library code never prints; a program installs a hook ---------------------------------------------- */
/* FALLBACK: something else than was asked for, or slower, is about to be used; --error-on-fallback refuses it. */
enum hs_log_level { HS_LOG_ERROR, HS_LOG_WARN, HS_LOG_FALLBACK, HS_LOG_INFO, HS_LOG_DEBUG };
typedef void (*hs_log_fn)(void *user, enum hs_log_level level, const char *msg);
void hs_log_set(hs_log_fn fn, void *user); /* NULL: silent (the default). Call before threads start. */
void hs_log(enum hs_log_level level, const char *fmt, ...) HS_PRINTF(2, 3);

/* ---- host memory ---------------------------------------------------------------------------------------------
 * All heap use of the library goes through these, so that a test can make the n-th allocation fail and the step
 * loop can be forbidden to allocate. hs_free accepts NULL. hs_alloc returns memory aligned to 64 bytes. */
void *hs_alloc(size_t bytes);                /* not cleared; NULL when exhausted or guarded */
void *hs_calloc(size_t count, size_t bytes); /* cleared; overflow checked */
char *hs_strdup(const char *s);
void hs_free(void *p);
/* Between begin and end every hs_alloc fails and is counted: the step loop allocates nothing. Returns the count. */
void hs_guard_begin(void);
int hs_guard_end(void);
/* Test hook: the n-th allocation from now on (1 = next) fails; 0 switches it off. */
void hs_alloc_fail_at(int64_t n);
int64_t hs_alloc_live(void);       /* blocks allocated and not freed */
int64_t hs_alloc_peak_bytes(void); /* highest sum of live bytes since start */

/* a*b into *ret; returns 0 if it fits in int64_t and both are >= 0, else HS_EINVAL */
int hs_mul(int64_t a, int64_t b, int64_t *ret);

/* ---- numbers ------------------------------------------------------------------------------------------------- */
typedef enum hs_dtype { HS_F32, HS_BF16, HS_F16, HS_U8, HS_I32, HS_F8_E4M3, HS_DTYPE_COUNT } hs_dtype;
size_t hs_dtype_size(hs_dtype t);
const char *hs_dtype_name(hs_dtype t); /* safetensors spelling: "F32", "BF16", ... */

static inline float hs_bf16_to_f32(uint16_t b) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)b << 16};
    return v.f;
}
/* round to nearest even; NaN stays NaN */
static inline uint16_t hs_f32_to_bf16(float f) {
    union {
        float f;
        uint32_t u;
    } v = {f};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((v.u >> 16) | 0x40u);
    return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}
float hs_f16_to_f32(uint16_t h);
uint16_t hs_f32_to_f16(float f); /* round to nearest even, overflow to Inf */
/* n elements of dtype src to float / from float to dtype dst (F32, BF16, F16) */
void hs_to_f32(float *dst, const void *src, hs_dtype t, int64_t n);
void hs_from_f32(void *dst, hs_dtype t, const float *src, int64_t n);

/* Counter-based hash (splitmix64 finaliser): the same bits on CPU, GPU and in Python. */
static inline uint64_t hs_hash64(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* n standard normal numbers, equal to torch.manual_seed(seed); torch.randn(n) on a CPU to about 1e-6
 * (mt19937 and Box-Muller in groups of 16; spec wan.md 4.5). */
void hs_randn(uint64_t seed, float *ret, int64_t n);

/* ---- files --------------------------------------------------------------------------------------------------- */
/* Whole small file (configs, profiles) into hs_alloc'ed memory with a NUL added; refuses more than max_bytes. */
int hs_file_read(const char *path, size_t max_bytes, char **ret, size_t *ret_len, hs_err *err);
/* dir + "/" + name, hs_alloc'ed; NULL when out of memory. */
char *hs_path_join(const char *dir, const char *name);

/* memcpy by so many threads, for megabytes out of a mapped file: taking its pages costs as much as copying them. */
void hs_copy_wide(void *dst, const void *src, size_t bytes, int threads);

/* ---- time ---------------------------------------------------------------------------------------------------- */
double hs_seconds(void); /* monotonic clock */
/* What Linux would give without swapping, or what the container's limit leaves if that is less. */
int64_t hs_host_free_bytes(void);
/* Processors this process may run on, or the share of them that a container has; at least 1. */
int hs_host_threads(void);
int64_t hs_peak_rss(void); /* highest resident set of this process in bytes, 0 if unknown */

#ifdef __cplusplus
}
#endif
#endif
