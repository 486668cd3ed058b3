/* Parity tests look at intermediate tensors through this; costs one comparison when off. */
#ifndef HS_TAP_H
#define HS_TAP_H
#include "backend.h"
typedef struct hs_tap {
    void (*fn)(void *user, const char *name, const float *x, int ndim, const int64_t *shape);
    void *user;
} hs_tap;
/* Downloads x (F32 or act type) and calls the tap; shape is ndim int64_t following. */
void hs_tap_emit(const hs_tap *tap, hs_device *dev, const char *name, hs_buf x, int ndim, const int64_t *shape);
#define HS_TAP(tap, dev, name, x, ...)                                                                                 \
    do {                                                                                                               \
        if ((tap)->fn)                                                                                                 \
            hs_tap_emit(tap, dev, name, x, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                  \
                        (int64_t[]){__VA_ARGS__});                                                                     \
    } while (0)
#endif
