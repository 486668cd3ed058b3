/* Finds cuBLASLt: where the program was built to look for libraries (its rpath), or where the system does. */
#include "cuda/cublaslt.h"

#include <dlfcn.h>
#include <stdio.h>

int hs_cublaslt_load(const hs_cublaslt **ret, hs_err *err) {
    static hs_cublaslt lt;
    char name[32];
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    void *library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
    if (!library)
        return hs_fail(err, HS_EDEVICE,
                       "%s does not load (%.200s): install cuBLAS %d, or name its folder in LD_LIBRARY_PATH", name,
                       dlerror(), CUBLAS_VER_MAJOR);
#define HS_CUBLASLT_LOOK_UP(function)                                                                                  \
    lt.function = (decltype(lt.function))dlsym(library, "cublasLt" #function);                                         \
    if (!lt.function) return hs_fail(err, HS_EDEVICE, "%s has no function cublasLt" #function, name);
    HS_CUBLASLT_FUNCTIONS(HS_CUBLASLT_LOOK_UP)
#undef HS_CUBLASLT_LOOK_UP
    *ret = &lt;
    return HS_OK;
}
