/* Predictors of block masks of the fast CPU backend; contracts in backend.h. They work in the room that attention has
 * for packed keys (attention.h) and allocate nothing; what does not fit there is a sticky HS_ENOMEM. */
#ifndef HS_CPU_SPARSE_H
#define HS_CPU_SPARSE_H
#include "cpu/cpu.h"
#ifdef __cplusplus
extern "C" {
#endif

void hs_cpu_block_scores(hs_device *dev, const hs_block_scores *a);
void hs_cpu_centroid_scores(hs_device *dev, const hs_centroid_scores *a);
void hs_cpu_select(hs_device *dev, const hs_select *a);
void hs_cpu_mask_density(hs_device *dev, const struct hs_mask *mask, hs_buf want, hs_buf density);
void hs_cpu_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                        hs_buf want, hs_buf y);
void hs_cpu_cluster(hs_device *dev, const hs_cluster *a);
void hs_cpu_reuse(hs_device *dev, const hs_reuse *a);

#ifdef __cplusplus
}
#endif
#endif
