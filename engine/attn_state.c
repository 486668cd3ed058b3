/* What attention remembers from step to step: made, forgotten, counted, reported. */
#include "attn_state.h"
#include "model.h"

#include <string.h>

/* ---- lifetimes
 * -------------------------------------------------------------------------------------------------------- */

/* Every buffer, once: hs_attn_new allocates them, hs_attn_bytes adds them up, hs_attn_free frees them. `each` visits.
 */
typedef int (*visitor)(void *user, hs_buf *b, hs_dtype type, int64_t n, const char *what);

static int each_of_mask(hs_attn *a, hs_mask *k, visitor see, void *user) {
    int64_t h = a->heads;
    int r;
    if ((r = see(user, &k->bits, HS_I32, h * a->rows * hs_mask_words(a->cols), "block masks")) ||
        (r = see(user, &k->dense, HS_U8, h, "block masks")) || a->p.method != HS_SVG2)
        return r;
    if ((r = see(user, &k->q_order, HS_I32, h * a->n, "token orders")) ||
        (r = see(user, &k->k_order, HS_I32, h * a->n, "token orders")) ||
        (r = see(user, &k->q_start, HS_I32, h * (a->rows + 1), "token orders")))
        return r;
    return see(user, &k->k_start, HS_I32, h * (a->cols + 1), "token orders");
}

static int each(hs_attn *a, visitor see, void *user) {
    int64_t h = a->heads, hd = h * a->head_dim;
    int r, svg2 = a->p.method == HS_SVG2;
    if (a->p.method == HS_DENSE) return 0;
    for (int i = 0; i < HS_BRANCH_COUNT * a->layers; i++) {
        hs_attn_memory *m = &a->mem[i];
        for (int s = HS_Q; s <= HS_K; s++)
            if ((r = see(user, &m->anchor[s], HS_F32, hd, "anchors")) ||
                (svg2 && (r = see(user, &m->centroid[s], HS_F32, hd * (s == HS_Q ? a->rows : a->cols), "centroids"))))
                return r;
        if ((r = see(user, &m->age, HS_I32, h, "anchors")) || (r = each_of_mask(a, &m->mask, see, user))) return r;
    }
    if ((r = see(user, &a->want, HS_U8, HS_BRANCH_COUNT * a->layers * h, "anchors")) ||
        (r = see(user, &a->drift, HS_F32, HS_BRANCH_COUNT * a->layers * h, "anchors")) ||
        (r = see(user, &a->density, HS_F32, HS_BRANCH_COUNT * a->layers * h, "anchors")))
        return r;
    for (int s = HS_Q; s <= HS_K; s++)
        if ((r = see(user, &a->mean[s], HS_F32, hd, "token means"))) return r;
    for (int b = 0; b < HS_BRANCH_COUNT; b++)
        if ((r = see(user, &a->scores[b], HS_F32, h * a->rows * a->score_cols, "block scores"))) return r;
    if ((r = see(user, &a->top_p, HS_F32, h * a->layers * a->p.intervals, "thresholds")) ||
        (r = see(user, &a->every, HS_U8, h, "thresholds")) ||
        (svg2 && ((r = see(user, &a->label[HS_Q], HS_I32, h * a->n, "token orders")) ||
                  (r = see(user, &a->label[HS_K], HS_I32, h * a->n, "token orders")))))
        return r;
    for (int s = HS_Q; s <= HS_V && !svg2; s++)
        if ((a->p.method == HS_POOLED || a->p.compensate) &&
            (r = see(user, &a->pooled[s], HS_F32, hd * a->cols, "block means")))
            return r;
    return 0;
}

static int count_buf(void *user, hs_buf *b, hs_dtype type, int64_t n, const char *what) {
    (void)b, (void)what;
    *(int64_t *)user += n * (int64_t)hs_dtype_size(type);
    return 0;
}

typedef struct allocation {
    hs_device *dev;
    hs_err *err;
} allocation;

static int alloc_buf(void *user, hs_buf *b, hs_dtype type, int64_t n, const char *what) {
    allocation *c = user;
    return hs_device_alloc(c->dev, type, n, what, b, c->err);
}

static int free_buf(void *user, hs_buf *b, hs_dtype type, int64_t n, const char *what) {
    (void)type, (void)n, (void)what;
    hs_device_free(user, *b);
    return 0;
}

/* The published code pads to a multiple of a chunk that follows from the length (tests/golden/masks/README.md). */
static int64_t published_padding(int64_t n) {
    int64_t power = 2048;
    while (power < n) power *= 2;
    int64_t chunk = power <= 16384 ? power : (1 << 28) / power > 2048 ? (1 << 28) / power : 2048;
    return (n + chunk - 1) / chunk * chunk;
}

static void set_sizes(hs_attn *a, const hs_attn_policy *p, int layers, int heads, int head_dim, int64_t tokens) {
    a->p = *p;
    a->layers = layers;
    a->heads = heads;
    a->head_dim = head_dim;
    a->n = tokens;
    a->d = (int64_t)heads * head_dim;
    a->rows = p->method == HS_SVG2 ? p->q_clusters : p->block ? (int)((tokens + p->block - 1) / p->block) : 0;
    a->cols = p->method == HS_SVG2 ? p->k_clusters : a->rows;
    a->padded = p->method == HS_XATTENTION && p->compat ? published_padding(tokens) : 0;
    a->score_cols = a->padded ? (int)(a->padded / p->block) : a->cols;
}

int64_t hs_attn_bytes(const hs_attn_policy *p, int layers, int heads, int head_dim, int64_t tokens) {
    hs_attn a = {0};
    hs_attn_memory m = {0};
    int64_t one = 0, two = 0;
    set_sizes(&a, p, 0, heads, head_dim, tokens); /* what all layers share, then what a layer adds */
    a.mem = &m;
    each(&a, count_buf, &one);
    for (int i = 0; i < HS_BRANCH_COUNT && p->method != HS_DENSE; i++) {
        int64_t hd = (int64_t)heads * head_dim, svg2 = p->method == HS_SVG2;
        two += 2 * 4 * hd + (svg2 ? 4 * hd * (a.rows + a.cols) : 0) + heads * 13;
        each_of_mask(&a, &m.mask, count_buf, &two);
    }
    return one + layers * (two + 4 * heads * p->intervals);
}

int64_t hs_attn_own_bytes(const hs_device *dev, const hs_attn_policy *p, int heads, int head_dim, int64_t tokens) {
    hs_cluster q = {.len = tokens, .ld = 3 * (int64_t)heads * head_dim, .heads = heads, .head_dim = head_dim}, k = q;
    q.clusters = p->q_clusters, k.clusters = p->k_clusters;
    q.beside = &k;
    return hs_device_own_bytes(dev, p->method == HS_SVG2 ? &q : NULL);
}

/* The session's thresholds are uploaded once, a call's own ones every time: their owner may have changed them. */
void hs_attn_thresholds(hs_attn *a, const float *of_call) {
    if (!of_call && a->top_p_is_host) return;
    hs_upload(a->dev, of_call ? hs_buf_at(a->top_p, 0, (int64_t)a->layers * a->heads) : a->top_p,
              of_call ? of_call : a->top_p_host);
    a->top_p_is_host = !of_call;
}

int hs_attn_new(hs_device *dev, const hs_attn_policy *p, int layers, int heads, int head_dim, int64_t tokens,
                hs_attn **ret, hs_err *err) {
    hs_attn *a = hs_calloc(1, sizeof *a);
    int r = hs_attn_policy_check(p, layers, heads, err);
    if (!a && !r) r = hs_fail(err, HS_ENOMEM, "no memory for the attention's caches");
    if (r) goto out;
    a->dev = dev;
    set_sizes(a, p, layers, heads, head_dim, tokens);
    a->mem = hs_calloc((size_t)layers * HS_BRANCH_COUNT, sizeof *a->mem);
    const int cells = p->intervals * layers * heads;
    const size_t calls = (size_t)HS_BRANCH_COUNT * (size_t)(layers * heads);
    a->top_p_host = hs_alloc((size_t)cells * sizeof *a->top_p_host);
    a->told_want = hs_alloc(calls);
    a->told_drift = hs_alloc(calls * sizeof *a->told_drift);
    a->told_density = hs_alloc(calls * sizeof *a->told_density);
    if (!a->mem || !a->top_p_host || !a->told_want || !a->told_drift || !a->told_density) {
        r = hs_fail(err, HS_ENOMEM, "no memory for the attention's caches");
        goto out;
    }
    for (int i = 0; i < cells; i++) a->top_p_host[i] = p->top_p_heads ? p->top_p_heads[i] : p->top_p;
    a->p.top_p_heads = NULL; /* copied: nothing of the caller's is kept */
    if ((r = each(a, alloc_buf, &(allocation){dev, err})) || p->method == HS_DENSE) goto out;
    for (int i = 0; i < HS_BRANCH_COUNT * layers; i++) {
        hs_mask *k = &a->mem[i].mask;
        k->heads = heads;
        k->rows = a->rows;
        k->cols = a->cols;
        k->words = hs_mask_words(a->cols);
        k->block = p->method == HS_SVG2 ? 0 : p->block;
        k->len_q = k->len_k = tokens;
        const int64_t first = (int64_t)i * heads;
        a->mem[i].want = hs_buf_at(a->want, first, heads);
        a->mem[i].drift = hs_buf_at(a->drift, first, heads);
        a->mem[i].density = hs_buf_at(a->density, first, heads);
    }
    const hs_mask *const any = &a->mem[0].mask;
    if (!(a->report = hs_alloc((size_t)any->bits.n * sizeof *a->report + (size_t)any->dense.n))) {
        r = hs_fail(err, HS_ENOMEM, "no memory for the attention's report");
        goto out;
    }
    uint8_t ones[HS_MAX_HEADS];
    memset(ones, 1, sizeof ones);
    hs_upload(dev, a->every, ones);
    hs_attn_thresholds(a, NULL);
    hs_attn_begin(a);
    r = hs_device_check(dev, err);
out:
    if (r)
        hs_attn_free(a);
    else
        *ret = a;
    return r;
}

void hs_attn_free(hs_attn *a) {
    if (!a) return;
    if (a->mem) each(a, free_buf, a->dev);
    hs_free(a->mem);
    hs_free(a->top_p_host);
    hs_free(a->told_want);
    hs_free(a->told_drift);
    hs_free(a->told_density);
    hs_free(a->report);
    hs_free(a);
}

void hs_attn_begin(hs_attn *a) {
    int32_t never[HS_MAX_HEADS];
    for (int h = 0; h < HS_MAX_HEADS; h++) never[h] = -1;
    for (int i = 0; i < HS_BRANCH_COUNT * a->layers && a->p.method != HS_DENSE; i++) {
        hs_upload(a->dev, a->mem[i].age, never);
        a->mem[i].started = 0;
    }
    for (int b = 0; b < HS_BRANCH_COUNT; b++) a->scored[b].layer = -1;
    hs_laps(a->dev, a->laps);
}

hs_buf hs_attn_mean(const hs_attn *a, const hs_policy *call, int layer, int which) {
    if (call->top_p) return HS_NOBUF; /* decides nothing by drift */
    return hs_attn_is_sparse(a, call, layer) || hs_attn_is_seeding(a, call, layer) ? a->mean[which] : HS_NOBUF;
}

int hs_attn_want_alone(hs_attn *a, hs_attn_memory *m, const hs_policy *call, int layer) {
    uint8_t want[HS_MAX_HEADS], dense[HS_MAX_HEADS];
    for (int h = 0; h < a->heads; h++) {
        dense[h] = call->top_p[layer * a->heads + h] >= 1;
        want[h] = dense[h] ? 0 : 2; /* as if for the first time: clusters start from tokens */
    }
    hs_upload(a->dev, m->want, want);
    hs_upload(a->dev, m->mask.dense, dense);
    hs_attn_scored *s = &a->scored[call->branch];
    const int kept = call->keep_scores && s->layer == layer && !memcmp(s->want, want, (size_t)a->heads);
    s->layer = layer;
    memcpy(s->want, want, (size_t)a->heads);
    return kept;
}

int hs_attn_report(hs_attn *a, int branch, int layer, float *ret_density, float *ret_drift, uint8_t *ret_call,
                   hs_err *err) {
    const hs_attn_memory *m = hs_attn_memory_of(a, branch, layer);
    const int64_t first = ((int64_t)branch * a->layers + layer) * a->heads;
    for (int h = 0; h < a->heads; h++) {
        ret_density[h] = 1;
        ret_drift[h] = 0;
        ret_call[h] = HS_HEAD_DENSE;
    }
    if (!m->attended) return 0;
    if (!a->told) {
        hs_download(a->dev, a->told_want, a->want);
        hs_download(a->dev, a->told_drift, a->drift);
        hs_download(a->dev, a->told_density, a->density);
        a->told = 1;
    }
    for (int h = 0; h < a->heads; h++) {
        ret_density[h] = a->told_density[first + h];
        if (!m->alone) ret_drift[h] = a->told_drift[first + h];
        ret_call[h] = a->told_want[first + h] ? HS_HEAD_PREDICTED : m->alone ? HS_HEAD_DENSE : HS_HEAD_REUSED;
    }
    return hs_device_check(a->dev, err);
}

int hs_attn_mask(hs_attn *a, int branch, int layer, hs_mask_view *ret, hs_err *err) {
    const hs_attn_memory *m = hs_attn_memory_of(a, branch, layer);
    if (!m->attended) return hs_fail(err, HS_EINVAL, "layer %d attended densely: there is no mask", layer);
    uint8_t *const dense = (uint8_t *)(a->report + m->mask.bits.n);
    hs_download(a->dev, a->report, m->mask.bits);
    hs_download(a->dev, dense, m->mask.dense);
    *ret = (hs_mask_view){.heads = m->mask.heads,
                          .rows = m->mask.rows,
                          .cols = m->mask.cols,
                          .words = m->mask.words,
                          .block = m->mask.block,
                          .bits = a->report,
                          .dense = dense};
    return hs_device_check(a->dev, err);
}

void hs_attn_seconds(const hs_attn *a, double *ret_predict, double *ret_attend) {
    double now[HS_LAP_COUNT];
    hs_laps(a->dev, now);
    *ret_predict = now[HS_LAP_PREDICT] - a->laps[HS_LAP_PREDICT];
    *ret_attend = now[HS_LAP_ATTEND] - a->laps[HS_LAP_ATTEND];
}
