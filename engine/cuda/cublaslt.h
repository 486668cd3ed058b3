/* cuBLASLt, loaded when a GPU is opened and not before: linked in, half a gigabyte of library would cost every run of
 * every program 0.15 s and 200 MB, on machines without a GPU too.
 */
#ifndef HS_CUBLASLT_H
#define HS_CUBLASLT_H
#include "base.h"

#include <cublasLt.h>

/* The functions in use; hs_cublaslt has a pointer of the right type for each, without the prefix. */
#define HS_CUBLASLT_FUNCTIONS(F)                                                                                       \
    F(Create)                                                                                                          \
    F(Destroy)                                                                                                         \
    F(GetStatusString)                                                                                                 \
    F(Matmul)                                                                                                          \
    F(MatmulAlgoGetHeuristic)                                                                                          \
    F(MatmulDescCreate)                                                                                                \
    F(MatmulDescDestroy)                                                                                               \
    F(MatmulDescSetAttribute)                                                                                          \
    F(MatmulPreferenceCreate)                                                                                          \
    F(MatmulPreferenceDestroy)                                                                                         \
    F(MatmulPreferenceSetAttribute)                                                                                    \
    F(MatrixLayoutCreate)                                                                                              \
    F(MatrixLayoutDestroy)

typedef struct hs_cublaslt {
#define HS_CUBLASLT_POINTER(name) decltype(&cublasLt##name) name;
    HS_CUBLASLT_FUNCTIONS(HS_CUBLASLT_POINTER)
#undef HS_CUBLASLT_POINTER
} hs_cublaslt;

/* Stays loaded. HS_EDEVICE says what is missing: there is a GPU, so falling back to the CPU must not go unnoticed. */
int hs_cublaslt_load(const hs_cublaslt **ret, hs_err *err);
#endif
