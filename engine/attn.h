/* Self-attention of one layer: dense? reuse? predict? then attend. */
#ifndef HS_ATTN_H
#define HS_ATTN_H
#include "backend.h"
#include "haste.h"
/* qkv [N, 3*d] act type, normalised and rotated; out [N, d] act type. */
void hs_attn_self(hs_device *dev, const hs_policy *policy, int layer, int heads, int head_dim, int64_t n, hs_buf qkv,
                  hs_buf out);
#endif
