/* Self-attention of one layer: dense? reuse? predict? then attend. Holds what lives from step to step: per branch and
 * layer the anchors of every head and its mask. */
#ifndef HS_ATTN_H
#define HS_ATTN_H
#include "backend.h"
#include "haste.h"
#include "policy.h"

typedef struct hs_attn hs_attn;

/* Buffers for one size and policy (borrowed while the hs_attn lives). Allocates everything a run will need. */
int hs_attn_new(hs_device *dev, const hs_attn_policy *p, int layers, int heads, int head_dim, int64_t tokens,
                hs_attn **ret, hs_err *err);
void hs_attn_free(hs_attn *a);
int64_t hs_attn_bytes(const hs_attn_policy *p, int layers, int heads, int head_dim, int64_t tokens);
/* What the device may come to need for itself under this policy (hs_device_own_bytes). */
int64_t hs_attn_own_bytes(const hs_device *dev, const hs_attn_policy *p, int heads, int head_dim, int64_t tokens);
/* A new video: forgets anchors and masks. */
void hs_attn_begin(hs_attn *a);

/* Where qk_norm shall put the token means of q (which 0) and k (1), F32 [d]; HS_NOBUF while nobody asks for them. */
hs_buf hs_attn_mean(const hs_attn *a, const hs_policy *call, int layer, int which);
/* qkv [N, 3*d] act type, normalised and rotated; out [N, d] act type. */
void hs_attn_self(hs_attn *a, const hs_policy *call, int layer, hs_buf qkv, hs_buf out);

/* What the last call of this branch and layer did, [heads] each: share of token pairs attended to, drift before the
 * decision (0 while dense), hs_head_call. Waits for the device: ask after a step, not inside it. */
int hs_attn_report(hs_attn *a, int branch, int layer, float *ret_density, float *ret_drift, uint8_t *ret_call,
                   hs_err *err);
/* The mask of the last call of this branch and layer on the host, until the next report or mask. HS_EINVAL if that
 * call was dense. */
int hs_attn_mask(hs_attn *a, int branch, int layer, hs_mask_view *ret, hs_err *err);
/* Seconds that the device spent in predicting and in attending since hs_attn_begin. Waits for it. */
void hs_attn_seconds(const hs_attn *a, double *ret_predict, double *ret_attend);

/* What must be kept for a later run to go on exactly: every buffer of branch and layer by a name, none where no mask
 * was predicted yet. Stops at the first result that is not 0. */
enum { HS_ATTN_KEPT = 11 }; /* buffers of a layer, at most */
typedef int (*hs_attn_visit)(void *user, const char *name, hs_buf b);
int hs_attn_each_kept(hs_attn *a, int branch, int layer, hs_attn_visit see, void *user);
int64_t hs_attn_kept_bytes(const hs_attn *a); /* of the largest of them, predicted or not */
/* Takes such buffers back, as they were before `step`: fetch(user, name, type, n) gives the host memory of one, or
 * NULL. The layer stays as after hs_attn_begin if `age` is not there. HS_EFORMAT if the values cannot be what a run
 * left. */
typedef const void *(*hs_attn_fetch)(void *user, const char *name, hs_dtype type, int64_t n);
int hs_attn_restore(hs_attn *a, int branch, int layer, int step, hs_attn_fetch fetch, void *user, hs_err *err);
#endif
