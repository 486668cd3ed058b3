/* Parity tests look at intermediate tensors through this, and so does the search for the first NaN; costs one
 * comparison when off. */
#ifndef HS_TAP_H
#define HS_TAP_H
#include "backend.h"
typedef struct hs_tap {
    void (*fn)(void *user, const char *name, const float *x, int ndim, const int64_t *shape); /* a copy on the host */
    void *user;
    void (*see)(void *user, const char *name, hs_buf x); /* or the tensor where it is, also those inside of a block */
} hs_tap;
/* Hands x (F32 or act type) to the tap; shape is ndim int64_t following. */
void hs_tap_emit(const hs_tap *tap, hs_device *dev, const char *name, hs_buf x, int ndim, const int64_t *shape);
static inline int hs_tap_is_on(const hs_tap *tap) {
    return tap->fn || tap->see;
}
#define HS_TAP(tap, dev, name, x, ...)                                                                                 \
    do {                                                                                                               \
        if (hs_tap_is_on(tap))                                                                                         \
            hs_tap_emit(tap, dev, name, x, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                  \
                        (int64_t[]){__VA_ARGS__});                                                                     \
    } while (0)
#endif
