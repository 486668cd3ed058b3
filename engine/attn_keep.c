/* What attention must remember for a run to go on exactly in another process: which buffers those are, and taking them
 * back from a file that may be damaged. */
#include "attn_state.h"

#include <string.h>

typedef struct kept {
    const char *name;
    hs_buf *buf; /* HS_NOBUF: this method has none */
} kept;
enum { KEPT = HS_ATTN_KEPT };

static void kept_of(hs_attn_memory *m, kept ret[KEPT]) {
    const kept all[KEPT] = {{"age", &m->age},
                            {"anchor_q", &m->anchor[HS_Q]},
                            {"anchor_k", &m->anchor[HS_K]},
                            {"centroid_q", &m->centroid[HS_Q]},
                            {"centroid_k", &m->centroid[HS_K]},
                            {"bits", &m->mask.bits},
                            {"dense", &m->mask.dense},
                            {"q_order", &m->mask.q_order},
                            {"k_order", &m->mask.k_order},
                            {"q_start", &m->mask.q_start},
                            {"k_start", &m->mask.k_start}};
    memcpy(ret, all, sizeof all);
}

int hs_attn_each_kept(hs_attn *a, int branch, int layer, hs_attn_visit see, void *user) {
    hs_attn_memory *m = hs_attn_memory_of(a, branch, layer);
    kept all[KEPT];
    int r = 0;
    if (a->p.method == HS_DENSE || !m->started) return 0;
    kept_of(m, all);
    for (int i = 0; i < KEPT && !r; i++)
        if (all[i].buf->p) r = see(user, all[i].name, *all[i].buf);
    return r;
}

int64_t hs_attn_kept_bytes(const hs_attn *a) {
    kept all[KEPT];
    int64_t most = 0;
    if (a->p.method == HS_DENSE) return 0;
    kept_of(&a->mem[0], all);
    for (int i = 0; i < KEPT; i++) {
        const int64_t bytes = all[i].buf->n * (int64_t)hs_dtype_size(all[i].buf->type);
        if (bytes > most) most = bytes;
    }
    return most;
}

/* ---- values that device code may be trusted with ---------------------------------------------------------------- */

static int32_t at(const void *x, int64_t i) { /* files promise no alignment */
    int32_t v;
    memcpy(&v, (const char *)x + i * (int64_t)sizeof v, sizeof v);
    return v;
}

static int all_in(const void *x, int64_t n, int32_t low, int64_t high) {
    for (int64_t i = 0; i < n; i++)
        if (at(x, i) < low || at(x, i) >= high) return 0;
    return 1;
}

/* Starts of groups [heads, groups + 1]: from 0, never falling, up to len. */
static int are_starts(const void *x, int heads, int groups, int64_t len) {
    for (int h = 0; h < heads; h++) {
        const int64_t first = (int64_t)h * (groups + 1);
        if (at(x, first) || at(x, first + groups) != len) return 0;
        for (int g = 0; g < groups; g++)
            if (at(x, first + g) > at(x, first + g + 1)) return 0;
    }
    return 1;
}

/* Bits behind the last column are 0. */
static int are_bits(const void *x, const hs_mask *m) {
    const int spare = m->words * 32 - m->cols;
    for (int64_t row = 0; row < (int64_t)m->heads * m->rows && spare; row++)
        if ((uint32_t)at(x, (row + 1) * m->words - 1) >> (32 - spare)) return 0;
    return 1;
}

static int are_flags(const void *x, int n) {
    for (int i = 0; i < n; i++)
        if (((const uint8_t *)x)[i] > 1) return 0;
    return 1;
}

static int is_good(const hs_attn *a, const hs_mask *m, const char *name, const void *x, int64_t n) {
    if (!strcmp(name, "age")) return all_in(x, n, 0, INT32_MAX);
    if (!strcmp(name, "bits")) return are_bits(x, m);
    if (!strcmp(name, "dense")) return are_flags(x, a->heads);
    if (!strcmp(name, "q_order") || !strcmp(name, "k_order")) return all_in(x, n, 0, a->n);
    if (!strcmp(name, "q_start")) return are_starts(x, a->heads, m->rows, a->n);
    if (!strcmp(name, "k_start")) return are_starts(x, a->heads, m->cols, a->n);
    return 1;
}

int hs_attn_restore(hs_attn *a, int branch, int layer, int step, hs_attn_fetch fetch, void *user, hs_err *err) {
    hs_attn_memory *m = hs_attn_memory_of(a, branch, layer);
    kept all[KEPT];
    const void *x;
    if (a->p.method == HS_DENSE) return 0;
    kept_of(m, all);
    if (!fetch(user, all[0].name, all[0].buf->type, all[0].buf->n)) return 0;
    for (int i = 0; i < KEPT; i++) {
        if (!all[i].buf->p) continue;
        if (!(x = fetch(user, all[i].name, all[i].buf->type, all[i].buf->n)))
            return hs_fail(err, HS_EFORMAT, "attention of branch %d, layer %d: %s is missing or has another size",
                           branch, layer, all[i].name);
        if (!is_good(a, &m->mask, all[i].name, x, all[i].buf->n))
            return hs_fail(err, HS_EFORMAT, "attention of branch %d, layer %d: %s holds impossible values", branch,
                           layer, all[i].name);
        hs_upload(a->dev, *all[i].buf, x);
    }
    m->started = 1;
    hs_op_mask_density(a->dev, &m->mask, a->every, m->density);
    /* whose thresholds the masks have: the step's before, or of this one where exact masks were made for it */
    m->interval = hs_attn_policy_interval(&a->p, step - !(a->p.seed_exact && step == a->p.dense_steps));
    return 0;
}
