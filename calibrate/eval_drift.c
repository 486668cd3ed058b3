/* Drift against overlap. A ring of the last steps holds what is needed to look back by the largest lag. */
#include "eval_drift.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const int hs_drift_lag[HS_DRIFT_LAGS] = {1, 4, 8};
enum { RING = 9 };

typedef struct entry { /* one layer, branch and step */
    int step;          /* -1 = nothing */
    float *means;      /* [2, 2, dim] */
    int32_t *bits;     /* [heads, rows, words] */
    uint8_t *dense;    /* [heads] */
} entry;

typedef struct series {
    double *post, *pre, *overlap;
    int n, room;
} series;

struct hs_drift {
    int layers, heads, head_dim;
    FILE *csv;
    const char *label;
    int64_t head_words; /* rows * words; 0 until the first mask was seen */
    entry *ring;        /* [RING, HS_BRANCH_COUNT, layers] */
    series seen[HS_DRIFT_LAGS];
};

int hs_drift_new(const hs_model_info *info, FILE *csv, const char *label, hs_drift **ret, hs_err *err) {
    hs_drift *d = hs_calloc(1, sizeof *d);
    size_t n = (size_t)RING * HS_BRANCH_COUNT * (size_t)info->layers;
    if (d) {
        *d = (hs_drift){.layers = info->layers,
                        .heads = info->heads,
                        .head_dim = info->head_dim,
                        .csv = csv,
                        .label = label,
                        .ring = hs_calloc(n, sizeof *d->ring)};
        for (size_t i = 0; d->ring && i < n; i++) d->ring[i].step = -1;
    }
    if (!d || !d->ring) {
        hs_drift_free(d);
        return hs_fail(err, HS_ENOMEM, "no memory to follow masks");
    }
    *ret = d;
    return 0;
}

void hs_drift_free(hs_drift *d) {
    if (!d) return;
    for (int i = 0; d->ring && i < RING * HS_BRANCH_COUNT * d->layers; i++) {
        hs_free(d->ring[i].means);
        hs_free(d->ring[i].bits);
        hs_free(d->ring[i].dense);
    }
    for (int k = 0; k < HS_DRIFT_LAGS; k++) {
        hs_free(d->seen[k].post);
        hs_free(d->seen[k].pre);
        hs_free(d->seen[k].overlap);
    }
    hs_free(d->ring);
    hs_free(d);
}

static int grow(double **x, int n, int room) {
    double *grown = hs_alloc((size_t)room * sizeof *grown);
    if (!grown) return HS_ENOMEM;
    if (n) memcpy(grown, *x, (size_t)n * sizeof *grown);
    hs_free(*x);
    *x = grown;
    return 0;
}

static int observe(series *s, double post, double pre, double overlap) {
    if (s->n == s->room) {
        int room = s->room ? 2 * s->room : 1024;
        if (grow(&s->post, s->n, room) || grow(&s->pre, s->n, room) || grow(&s->overlap, s->n, room)) return HS_ENOMEM;
        s->room = room;
    }
    s->post[s->n] = post;
    s->pre[s->n] = pre;
    s->overlap[s->n++] = overlap;
    return 0;
}

double hs_drift_overlap(const int32_t *a, const int32_t *b, int64_t words) {
    int64_t both = 0, either = 0;
    for (int64_t i = 0; i < words; i++) {
        both += __builtin_popcount((uint32_t)a[i] & (uint32_t)b[i]);
        either += __builtin_popcount((uint32_t)a[i] | (uint32_t)b[i]);
    }
    return either ? (double)both / (double)either : 1;
}

/* rotated 0, 1: L1 distance of the means of q plus that of k, of one head. */
static double drift(const hs_drift *d, const entry *a, const entry *b, int head, int rotated) {
    const int dim = d->heads * d->head_dim;
    double sum = 0;
    for (int which = 0; which < 2; which++) {
        const int at = (2 * rotated + which) * dim + head * d->head_dim;
        for (int i = 0; i < d->head_dim; i++) sum += fabs((double)a->means[at + i] - (double)b->means[at + i]);
    }
    return sum;
}

static int compare(hs_drift *d, const entry *now, const entry *then, int k, int branch, int layer) {
    for (int h = 0; h < d->heads; h++) {
        if (now->dense[h] || then->dense[h]) continue;
        double overlap = hs_drift_overlap(now->bits + h * d->head_words, then->bits + h * d->head_words, d->head_words);
        double post = drift(d, now, then, h, 1), pre = drift(d, now, then, h, 0);
        if (observe(&d->seen[k], post, pre, overlap)) return HS_ENOMEM;
        if (d->csv)
            fprintf(d->csv, "%s,%d,%s,%d,%d,%d,%.6g,%.6g,%.6g\n", d->label, now->step, branch ? "uncond" : "cond",
                    layer, h, hs_drift_lag[k], post, pre, overlap);
    }
    return 0;
}

static entry *entry_of(hs_drift *d, int step, int branch, int layer) {
    return &d->ring[(step % RING * HS_BRANCH_COUNT + branch) * d->layers + layer];
}

static int visit_layer(hs_drift *d, const hs_mask_view *m, int step, int branch, int layer, const float *means) {
    entry *now = entry_of(d, step, branch, layer);
    size_t n_means = 4 * (size_t)(d->heads * d->head_dim);
    size_t n_bits = (size_t)(d->heads * d->head_words);
    if (!now->means) now->means = hs_alloc(n_means * sizeof *now->means);
    if (!now->bits) now->bits = hs_alloc(n_bits * sizeof *now->bits);
    if (!now->dense) now->dense = hs_alloc((size_t)d->heads);
    if (!now->means || !now->bits || !now->dense) return HS_ENOMEM;
    now->step = step;
    memcpy(now->means, means, n_means * sizeof *now->means);
    memcpy(now->bits, m->bits, n_bits * sizeof *now->bits);
    memcpy(now->dense, m->dense, (size_t)d->heads);
    for (int k = 0; k < HS_DRIFT_LAGS; k++) {
        if (step < hs_drift_lag[k]) break;
        const entry *then = entry_of(d, step - hs_drift_lag[k], branch, layer);
        if (then->step == step - hs_drift_lag[k] && compare(d, now, then, k, branch, layer)) return HS_ENOMEM;
    }
    return 0;
}

int hs_drift_visit(void *user, hs_session *s, int step, int branch, const float *means, hs_err *err) {
    hs_drift *d = user;
    for (int l = 0; l < d->layers; l++) {
        hs_mask_view m;
        if (hs_session_mask(s, branch, l, &m, NULL)) continue; /* dense step or layer */
        if (!m.block) return hs_fail(err, HS_ENOTSUP, "masks of clusters cannot be compared between steps");
        d->head_words = (int64_t)m.rows * m.words;
        if (visit_layer(d, &m, step, branch, l, means + (size_t)l * 4 * (size_t)(d->heads * d->head_dim)))
            return hs_fail(err, HS_ENOMEM, "no memory to follow masks");
    }
    return 0;
}

/* ---- ranks ------------------------------------------------------------------------------------------------------ */
typedef struct ranked {
    double value, rank;
    int at;
} ranked;

static int by_value(const void *a, const void *b) {
    double x = ((const ranked *)a)->value, y = ((const ranked *)b)->value;
    return (x > y) - (x < y);
}

/* rank of each x, those that are equal get the mean of their places */
static void rank(int n, const double *x, ranked *r, double *ret) {
    for (int i = 0; i < n; i++) r[i] = (ranked){x[i], 0, i};
    qsort(r, (size_t)n, sizeof *r, by_value);
    for (int i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && r[end].value == r[i].value;) end++;
        for (int k = i; k < end; k++) ret[r[k].at] = 0.5 * (i + end - 1);
    }
}

double hs_drift_spearman(int n, const double *x, const double *y) {
    double ret = NAN, mean = 0.5 * (n - 1), xx = 0, yy = 0, xy = 0;
    if (n < 3) return NAN;
    ranked *r = hs_alloc((size_t)n * sizeof *r);
    double *a = hs_alloc(2 * (size_t)n * sizeof *a);
    if (r && a) {
        rank(n, x, r, a);
        rank(n, y, r, a + n);
        for (int i = 0; i < n; i++) {
            double u = a[i] - mean, v = a[n + i] - mean;
            xx += u * u;
            yy += v * v;
            xy += u * v;
        }
        if (xx > 0 && yy > 0) ret = xy / sqrt(xx * yy);
    }
    hs_free(r);
    hs_free(a);
    return ret;
}

void hs_drift_ranks(hs_drift *d, double ret_post[HS_DRIFT_LAGS], double ret_pre[HS_DRIFT_LAGS]) {
    for (int k = 0; k < HS_DRIFT_LAGS; k++) {
        const series *s = &d->seen[k];
        ret_post[k] = hs_drift_spearman(s->n, s->post, s->overlap);
        ret_pre[k] = hs_drift_spearman(s->n, s->pre, s->overlap);
    }
}
