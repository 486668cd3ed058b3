/* The statements about operands of which the wrappers of backend.c and backend_sparse.c are made; no other file's
 * business.
 *
 * The first statement that does not hold becomes the device's sticky error; from then on every statement is skipped and
 * nothing is forwarded, so no wrapper needs a branch per check. Buffers may be longer than an operation needs; backends
 * see them cut to what it uses. Unless backend.h says otherwise an output must not overlap an input.
 */
#ifndef HS_BACKEND_CHECKS_H
#define HS_BACKEND_CHECKS_H
#include "backend.h"
#include <stdio.h>
#include <string.h>
#ifdef __cplusplus
extern "C" {
#endif

enum {
    T_F32 = 1u << HS_F32,
    T_I32 = 1u << HS_I32,
    T_U8 = 1u << HS_U8,
    MAX_HEAD_DIM = 1024, /* backends keep a row of one head on the stack or in shared memory */
};

typedef struct call {
    hs_device *dev;
    const char *op;
} call;

static inline void bad(const call *c, const char *fmt, ...) HS_PRINTF(2, 3);
static inline void bad(const call *c, const char *fmt, ...) {
    char text[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    hs_device_sticky(c->dev, HS_EINVAL, "%s: %s", c->op, text);
}

static inline unsigned act(const hs_device *dev) {
    return 1u << dev->act;
}

/* value must be in [low, high] */
static inline void range(const call *c, const char *name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        bad(c, "%s is %lld, must be %lld to %lld", name, (long long)value, (long long)low, (long long)high);
}

/* The product of dimensions, each at least 1; 0 after an error. */
static inline int64_t volume(const call *c, const char *name, const int64_t *dims, int count) {
    int64_t n = 1;
    for (int i = 0; i < count; i++) {
        if (dims[i] < 1)
            bad(c, "dimension %d of %s is %lld, must be at least 1", i, name, (long long)dims[i]);
        else if (hs_mul(n, dims[i], &n))
            bad(c, "%s is too large (dimension %d is %lld)", name, i, (long long)dims[i]);
    }
    return c->dev->sticky ? 0 : n;
}
#define VOLUME(c, name, ...)                                                                                           \
    volume(c, name, (int64_t[]){__VA_ARGS__}, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

/* b is there, of one of the types, and holds at least n elements. Returns it cut to n. */
static inline hs_buf need(const call *c, const char *name, hs_buf b, unsigned types, int64_t n) {
    if (c->dev->sticky) return b;
    unsigned t = (unsigned)b.type;
    if (!b.p)
        bad(c, "%s is missing (%lld elements needed)", name, (long long)n);
    else if (t >= HS_DTYPE_COUNT || !(types >> t & 1)) {
        char list[64] = "";
        for (int k = 0; k < HS_DTYPE_COUNT; k++)
            if (types >> k & 1) {
                size_t used = strlen(list);
                snprintf(list + used, sizeof list - used, "%s%s", used ? " or " : "", hs_dtype_name((hs_dtype)k));
            }
        bad(c, "%s is %s, must be %s", name, t < HS_DTYPE_COUNT ? hs_dtype_name(b.type) : "of unknown type", list);
    } else if (b.n < n)
        bad(c, "%s holds %lld elements, %lld needed", name, (long long)b.n, (long long)n);
    else if ((uintptr_t)b.p % hs_dtype_size(b.type))
        bad(c, "%s is not aligned to its elements", name);
    b.n = n;
    return b;
}

static inline hs_buf optional(const call *c, const char *name, hs_buf b, unsigned types, int64_t n) {
    return b.p ? need(c, name, b, types, n) : HS_NOBUF;
}

static inline void apart(const call *c, const char *out, hs_buf y, const char *in, hs_buf x) {
    if (c->dev->sticky || !x.p || !y.p) return;
    uintptr_t a = (uintptr_t)x.p, b = (uintptr_t)y.p;
    if (a < b + (uintptr_t)y.n * hs_dtype_size(y.type) && b < a + (uintptr_t)x.n * hs_dtype_size(x.type))
        bad(c, "output %s (%lld elements) overlaps %s (%lld elements)", out, (long long)y.n, in, (long long)x.n);
}

static inline int same(hs_buf a, hs_buf b) {
    return a.p == b.p && a.type == b.type && a.n == b.n;
}

/* Elements from the first to the last value of `len` tokens that lie ld apart. */
static inline int64_t extent(const call *c, const char *name, int64_t len, int64_t ld, int64_t width) {
    const int64_t dims[2] = {len, ld};
    if (volume(c, name, dims, 2) && ld < width)
        bad(c, "%lld elements between tokens of %s, heads * head_dim are %lld", (long long)ld, name, (long long)width);
    return c->dev->sticky ? 0 : (len - 1) * ld + width;
}

#ifdef __cplusplus
}
#endif
#endif
