/* Stands in for the fast CPU backend where oneDNN is not built in: the same symbol, a clear answer. */
#include "backend.h"

int hs_cpu_open(const hs_device_params *p, hs_device *dev, hs_err *err) {
    (void)dev;
    return hs_fail(
        err, HS_ENODEV,
        "device '%s' asked for, but this build has no oneDNN (libdnnl-dev); rebuild with it or use --device ref",
        p->name);
}
