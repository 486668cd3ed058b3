/* The memory-bound operations of the CPU backend; contracts in backend.h. Called by cpu.c (and copy by onednn.c). */
#ifndef HS_CPU_ROWS_H
#define HS_CPU_ROWS_H
#include "cpu/cpu.h"
#ifdef __cplusplus
extern "C" {
#endif

void hs_cpu_copy(hs_device *dev, hs_buf dst, hs_buf src);
/* y[rows, d] += gate[d] * x[rows, d], all F32; gate may be HS_NOBUF (= 1) */
void hs_cpu_add_gated(hs_device *dev, hs_buf x, hs_buf gate, int64_t rows, int64_t d, hs_buf y);
void hs_cpu_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                 float eps, hs_buf y);
void hs_cpu_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                       hs_buf y);
void hs_cpu_qk_norm(hs_device *dev, const hs_qk_norm *a);
void hs_cpu_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y);
void hs_cpu_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y);
void hs_cpu_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y);
void hs_cpu_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
void hs_cpu_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
void hs_cpu_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                          const float *add, hs_buf z);
void hs_cpu_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y);
void hs_cpu_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y);
void hs_cpu_to_u8(hs_device *dev, hs_buf x, hs_buf y);
int64_t hs_cpu_count_nonfinite(hs_device *dev, hs_buf x);

#ifdef __cplusplus
}
#endif
#endif
