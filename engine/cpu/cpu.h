/* What the files of the fast CPU backend share: the state behind hs_device.impl.
 *
 * cpu.c opens it and owns memory; layers.c owns linear layers and convolutions and computes them through onednn.c;
 * rows.c owns the memory-bound row operations; attention.c owns attention, sparse.c the predictors of its masks. Only
 * cpu.c sees all of them. Threads are OpenMP's: every parallel region takes num_threads(cpu->threads), and no result
 * depends on how many there are.
 */
#ifndef HS_CPU_H
#define HS_CPU_H
#include "backend.h"
#ifdef __cplusplus
extern "C" {
#endif

/* What this processor and operating system can do, found once by hs_cpu_detect. AMX counts only after Linux has granted
 * the tile registers to this process. */
typedef struct hs_cpu_isa {
    int avx2, avx512, avx512_bf16, amx_bf16; /* avx2 includes FMA and F16C; avx512 = F, BW, DQ, VL */
} hs_cpu_isa;

typedef struct hs_cpu {
    int threads;
    hs_cpu_isa isa;
    struct hs_onednn *dnn; /* owned by onednn.c */
    char *scratch;         /* owned by layers.c */
    size_t scratch_bytes;
    struct hs_cpu_attn *attention; /* owned by attention.c */
} hs_cpu;

static inline hs_cpu *hs_cpu_of(const hs_device *dev) {
    return (hs_cpu *)dev->impl;
}

hs_cpu_isa hs_cpu_detect(void);

/* Threads for a pass over so many values: below some thousands they cost more than they bring. */
static inline int hs_cpu_threads(const hs_device *dev, int64_t values) {
    return values < 16384 ? 1 : hs_cpu_of(dev)->threads;
}

#ifdef __cplusplus
}
#endif
#endif
