/* Temporal Mask Reuse: when a head's cached mask is still good. Pure decisions; spec haste.md 1.3 (Algorithm 1).
 *
 * Per branch, layer and head there is an anchor: the token means of Q and K at the last refresh. The drift is the L1
 * distance of today's means from it; above delta the mask is predicted again and the anchor moves; else both stay, so
 * slow drift accumulates. The layer gate then makes nearly unanimous layers unanimous (launch overhead, v2 bounds).
 */
#ifndef HS_REUSE_H
#define HS_REUSE_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum hs_reuse_kind {
    HS_REUSE_NONE,     /* predict every step */
    HS_REUSE_DRIFT,    /* Algorithm 1, absolute L1 drift */
    HS_REUSE_RELATIVE, /* drift divided by the anchor's L1 norm: no units, one delta for every model */
    HS_REUSE_INTERVAL, /* baseline: every interval-th sparse step */
    HS_REUSE_FREEZE,   /* baseline: the first mask for ever */
    HS_REUSE_STAGGER,  /* as interval, but layers take turns, so that steps take equally long */
} hs_reuse_kind;

typedef struct hs_reuse_policy {
    hs_reuse_kind kind;
    float delta;               /* refresh above this drift */
    int interval;              /* HS_REUSE_INTERVAL, HS_REUSE_STAGGER */
    int begin_age;             /* HS_REUSE_STAGGER: of this layer, after a mask that was not its turn; else 0 */
    float gate_low, gate_high; /* share of heads that want a refresh: below low none, above high all; 0, 1 = no gate */
} hs_reuse_policy;

/* Is a mask due after so many steps? */
static inline int hs_reuse_counts(hs_reuse_kind k) {
    return k == HS_REUSE_INTERVAL || k == HS_REUSE_STAGGER;
}

/* One layer, one branch. heads x dim means; all arrays owned by the caller (host on cpu and ref, device on a GPU).
 *   mean_q, mean_k   [heads, dim]  today's token means
 *   anchor_q, anchor_k [heads, dim]  moved where refreshed
 *   age              [heads]  sparse steps since the refresh; -1 = no anchor yet (always refreshes, whatever the gate
 * says) ret_want         [heads]  0 = reuse, 1 = predict again, 2 = predict for the first time ret_drift        [heads]
 * drift against the anchor before the decision; 0 without anchor */
void hs_reuse_decide(const hs_reuse_policy *p, int heads, int dim, const float *mean_q, const float *mean_k,
                     float *anchor_q, float *anchor_k, int32_t *age, uint8_t *ret_want, float *ret_drift);

#ifdef __cplusplus
}
#endif
#endif
