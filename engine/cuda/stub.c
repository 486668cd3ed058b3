/* Stands in for the CUDA backend where it is not built: the same symbol, a clear answer. */
#include "backend.h"

int hs_cuda_open(const hs_device_params *p, hs_device *dev, hs_err *err) {
    (void)dev;
    return hs_fail(err, HS_ENODEV, "device '%s' asked for, but this build has no CUDA backend; use --device cpu",
                   p->name);
}
