/* What the two files of the contract test share: expectations on the device's sticky error. */
#ifndef CONTRACT_H
#define CONTRACT_H
#include "backend.h"

extern hs_device *dev;
void expect(int ok, const char *what, const char *found);
void expect_sticky(int code, const char *text, const char *what); /* and clears it */
hs_buf buffer(hs_dtype t, int64_t n);                             /* of zeros */
hs_buf cut(hs_buf b, int64_t n);
#define ACCEPT(...)                                                                                                    \
    do {                                                                                                               \
        __VA_ARGS__;                                                                                                   \
        expect_sticky(0, "", #__VA_ARGS__);                                                                            \
    } while (0)
#define REFUSE(text, ...)                                                                                              \
    do {                                                                                                               \
        __VA_ARGS__;                                                                                                   \
        expect_sticky(HS_EINVAL, text, #__VA_ARGS__);                                                                  \
    } while (0)

void sparse_operations(hs_buf a, hs_buf b, hs_buf c); /* contract_sparse.c; buffers of 256 floats */
#endif
