/* Attention of the fast CPU backend: flash style, never an N x N matrix, dense or driven by a block mask.
 *
 * hs_cpu_attention_init is called once by hs_cpu_open, after dev->act, threads and isa are set in *hs_cpu_of(dev); it
 * allocates the scratch of every thread (its size must not depend on the sequence length, so that the step loop
 * allocates nothing) and stores it in hs_cpu.attention. hs_cpu_attention_done accepts a half-opened device.
 */
#ifndef HS_CPU_ATTENTION_H
#define HS_CPU_ATTENTION_H
#include "cpu/attn_kernels.h"
#include "cpu/cpu.h"
#ifdef __cplusplus
extern "C" {
#endif

int hs_cpu_attention_init(hs_device *dev, hs_err *err);
void hs_cpu_attention_done(hs_device *dev);

/* Contract: hs_attention in backend.h. q, k, v, out have type dev->act; input is already checked, except that a scale
 * not above 0 leaves the sticky error HS_EINVAL. */
void hs_cpu_attention(hs_device *dev, const hs_attention *a);

/* What the predictors borrow (sparse.c), which never run while attention does: its micro-kernels, for the words of
 * activations and for fp32, and the room for packed keys. */
typedef struct hs_cpu_room {
    const hs_attn_kernels *kernels, *fp32;
    float *words;
    int64_t count;
} hs_cpu_room;
hs_cpu_room hs_cpu_attention_room(const hs_device *dev);

#ifdef __cplusplus
}
#endif
#endif
