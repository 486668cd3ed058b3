/* Weights that come and go (stream.h): copies from pinned host memory on a stream of their own. Two events per slot
 * order them against the operations; the host waits for neither. */
#include "cuda/cuda.h"

enum { SLOTS = 2 };

struct hs_cuda_slots {
    cudaStream_t copies;
    cudaEvent_t arrived[SLOTS], released[SLOTS];
};

int hs_cuda_slots_open(hs_device *dev, hs_err *err) {
    struct hs_cuda_slots *s = (struct hs_cuda_slots *)hs_calloc(1, sizeof *s);
    if (!s) return hs_fail(err, HS_ENOMEM, "out of memory opening %.60s", dev->name);
    hs_cuda_of(dev)->slots = s;
    cudaError_t e = cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking);
    for (int i = 0; i < SLOTS && e == cudaSuccess; i++) {
        e = cudaEventCreateWithFlags(&s->arrived[i], cudaEventDisableTiming);
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&s->released[i], cudaEventDisableTiming);
    }
    if (e == cudaSuccess) return HS_OK;
    cudaGetLastError();
    return hs_fail(err, HS_EDEVICE, "opening %.60s: %s", dev->name, cudaGetErrorString(e));
}

void hs_cuda_slots_close(hs_device *dev) {
    struct hs_cuda_slots *s = hs_cuda_of(dev)->slots;
    if (!s) return;
    if (s->copies) cudaStreamSynchronize(s->copies);
    for (int i = 0; i < SLOTS; i++) {
        if (s->arrived[i]) cudaEventDestroy(s->arrived[i]);
        if (s->released[i]) cudaEventDestroy(s->released[i]);
    }
    if (s->copies) cudaStreamDestroy(s->copies);
    hs_free(s);
    hs_cuda_of(dev)->slots = NULL;
}

int hs_cuda_host_alloc(hs_device *dev, size_t bytes, void **ret) {
    cudaSetDevice(hs_cuda_of(dev)->ordinal);
    if (cudaMallocHost(ret, bytes) == cudaSuccess) return HS_OK;
    cudaGetLastError();
    *ret = NULL;
    return HS_ENOMEM;
}

/* A copy ahead of its use may still be reading it. */
void hs_cuda_host_free(hs_device *dev, void *p) {
    cudaSetDevice(hs_cuda_of(dev)->ordinal);
    cudaStreamSynchronize(hs_cuda_of(dev)->slots->copies);
    cudaFreeHost(p);
}

/* An event that was never recorded holds nobody up. */
void hs_cuda_slot_fill(hs_device *dev, int slot, void *dst, const void *host, size_t bytes) {
    struct hs_cuda_slots *s = hs_cuda_of(dev)->slots;
    cudaSetDevice(hs_cuda_of(dev)->ordinal);
    if (hs_cuda_ok(dev, cudaStreamWaitEvent(s->copies, s->released[slot], 0), "streaming weights") &&
        hs_cuda_ok(dev, cudaMemcpyAsync(dst, host, bytes, cudaMemcpyHostToDevice, s->copies), "streaming weights"))
        hs_cuda_ok(dev, cudaEventRecord(s->arrived[slot], s->copies), "streaming weights");
}

void hs_cuda_slot_use(hs_device *dev, int slot) {
    hs_cuda_ok(dev, cudaStreamWaitEvent(hs_cuda_of(dev)->stream, hs_cuda_of(dev)->slots->arrived[slot], 0),
               "streaming weights");
}

void hs_cuda_slot_release(hs_device *dev, int slot) {
    hs_cuda_ok(dev, cudaEventRecord(hs_cuda_of(dev)->slots->released[slot], hs_cuda_of(dev)->stream),
               "streaming weights");
}
