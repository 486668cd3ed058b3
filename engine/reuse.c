/* Temporal Mask Reuse, spec haste.md 1.3. */
#include "reuse.h"

#include <math.h>
#include <string.h>

static double l1(const float *a, const float *b, int n) { /* b NULL: the norm of a */
    double s = 0;
    for (int i = 0; i < n; i++) s += fabs((double)a[i] - (b ? b[i] : 0));
    return s;
}

/* Does this head, which has an anchor, want a new mask? */
static int wants(const hs_reuse_policy *p, int32_t age, double drift, double norm) {
    switch (p->kind) {
    case HS_REUSE_NONE: return 1;
    case HS_REUSE_DRIFT: return drift > p->delta;
    case HS_REUSE_RELATIVE: return drift > p->delta * norm;
    case HS_REUSE_INTERVAL:
    case HS_REUSE_STAGGER: return age + 1 >= p->interval;
    case HS_REUSE_FREEZE: return 0;
    }
    return 1;
}

void hs_reuse_decide(const hs_reuse_policy *p, int heads, int dim, const float *mean_q, const float *mean_k,
                     float *anchor_q, float *anchor_k, int32_t *age, uint8_t *ret_want, float *ret_drift) {
    int wanting = 0;
    for (int h = 0; h < heads; h++) {
        const float *q = mean_q + (size_t)h * dim, *k = mean_k + (size_t)h * dim;
        float *aq = anchor_q + (size_t)h * dim, *ak = anchor_k + (size_t)h * dim;
        double drift = age[h] < 0 ? 0 : l1(aq, q, dim) + l1(ak, k, dim);
        ret_drift[h] = (float)drift;
        ret_want[h] = age[h] < 0 ? 2 : (uint8_t)wants(p, age[h], drift, l1(aq, NULL, dim) + l1(ak, NULL, dim));
        wanting += ret_want[h] > 0;
    }
    const int none = wanting < p->gate_low * (float)heads;
    const int all = wanting > p->gate_high * (float)heads;
    for (int h = 0; h < heads; h++) {
        if (none && ret_want[h] < 2) ret_want[h] = 0; /* a head without a mask cannot reuse one */
        if (all && ret_want[h] < 1) ret_want[h] = 1;
        const int turn = p->kind == HS_REUSE_STAGGER && age[h] >= 0;
        age[h] = !ret_want[h] ? age[h] + 1 : turn ? 0 : p->begin_age;
        if (!ret_want[h]) continue;
        memcpy(anchor_q + (size_t)h * dim, mean_q + (size_t)h * dim, (size_t)dim * sizeof(float));
        memcpy(anchor_k + (size_t)h * dim, mean_k + (size_t)h * dim, (size_t)dim * sizeof(float));
    }
}
