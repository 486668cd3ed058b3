/* Copies an intermediate tensor to the host as floats and shows it to the tap. For parity tests, which may
 * allocate; what only wants to see where the tensor is copies nothing. */
#include "tap.h"

void hs_tap_emit(const hs_tap *tap, hs_device *dev, const char *name, hs_buf x, int ndim, const int64_t *shape) {
    if (tap->see) {
        tap->see(tap->user, name, x);
        return;
    }
    float *host = hs_alloc((size_t)x.n * sizeof(float));
    void *raw = x.type == HS_F32 ? host : hs_alloc((size_t)x.n * hs_dtype_size(x.type));
    if (host && raw) {
        hs_download(dev, raw, x);
        if (raw != host) hs_to_f32(host, raw, x.type, x.n);
        tap->fn(tap->user, name, host, ndim, shape);
    } else {
        hs_log(HS_LOG_ERROR, "tap %s: no memory for %lld values", name, (long long)x.n);
    }
    if (raw != host) hs_free(raw);
    hs_free(host);
}
