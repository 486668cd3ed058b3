/* Self-attention of one layer. Dense so far: every query attends to every key. */
#include "attn.h"

#include <math.h>

void hs_attn_self(hs_device *dev, const hs_policy *policy, int layer, int heads, int head_dim, int64_t n, hs_buf qkv,
                  hs_buf out) {
    (void)policy;
    (void)layer;
    int64_t d = (int64_t)heads * head_dim;
    hs_op_attention(dev, &(hs_attention){.q = qkv,
                                         .k = hs_buf_at(qkv, d, qkv.n - d),
                                         .v = hs_buf_at(qkv, 2 * d, qkv.n - 2 * d),
                                         .out = out,
                                         .ld_q = 3 * d,
                                         .ld_k = 3 * d,
                                         .ld_v = 3 * d,
                                         .ld_out = d,
                                         .len_q = n,
                                         .len_k = n,
                                         .heads = heads,
                                         .head_dim = head_dim,
                                         .scale = 1 / sqrtf((float)head_dim)});
}
