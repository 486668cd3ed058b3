/* Reference attention: per row first the largest logit, then sums of exponentials. Logits are computed twice so that
 * nothing of length len_k is stored: the step loop allocates nothing, and no size is too large. Dense attention is the
 * mask of one column that is kept: with and without a mask the same loop adds in the same order. */
#include "ref/ref.h"
#include "mask.h"

#include <math.h>

enum { MAX_HEAD_DIM = 1024, LANES = 4 }; /* backend_sparse.c admits no larger head */

/* LANES interleaved partial sums, so that the compiler can vectorise; their order is fixed. */
HS_REF_HOT static double dot(const float *a, const float *b, int n) {
    double sum[LANES] = {0}, total = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += (double)a[i + l] * b[i + l];
    for (; i < n; i++) total += (double)a[i] * b[i];
    for (int l = 0; l < LANES; l++) total += sum[l];
    return total;
}

HS_REF_HOT static double distance(const float *a, const float *b, int n) {
    double sum[LANES] = {0}, total = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += ((double)a[i + l] - b[i + l]) * ((double)a[i + l] - b[i + l]);
    for (; i < n; i++) total += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    for (int l = 0; l < LANES; l++) total += sum[l];
    return total;
}

double hs_ref_dot(const float *a, const float *b, int n) {
    hs_ref_see_ends(a, n);
    hs_ref_see_ends(b, n);
    return dot(a, b, n);
}

double hs_ref_distance(const float *a, const float *b, int n) {
    hs_ref_see_ends(a, n);
    hs_ref_see_ends(b, n);
    return distance(a, b, n);
}

/* ---- which keys ------------------------------------------------------------------------------------------------- */

/* The mask of one head as attention walks it: dense heads have one row and one column of everything. */
typedef struct head {
    int cols, block;
    int64_t len_k;
    const int32_t *bits;                                  /* of row 0; NULL: dense */
    const int32_t *q_order, *k_order, *q_start, *k_start; /* NULL: natural order */
    int words;
} head;

static head head_of(const hs_attention *a, int h) {
    const hs_mask *m = a->mask;
    if (!m || ((const uint8_t *)m->dense.p)[h]) return (head){.cols = 1, .len_k = a->len_k};
    head x = {.cols = m->cols, .block = m->block, .len_k = m->len_k, .words = m->words};
    x.bits = (const int32_t *)m->bits.p + (int64_t)h * m->rows * m->words;
    if (m->block) return x;
    x.q_order = (const int32_t *)m->q_order.p + h * m->len_q;
    x.k_order = (const int32_t *)m->k_order.p + h * m->len_k;
    x.q_start = (const int32_t *)m->q_start.p + (int64_t)h * (m->rows + 1);
    x.k_start = (const int32_t *)m->k_start.p + (int64_t)h * (m->cols + 1);
    return x;
}

/* Bits of the row that query place p belongs to; NULL: dense. */
static const int32_t *row_of(const head *x, int64_t p) {
    int64_t r = 0;
    if (!x->bits) return NULL;
    if (x->block)
        r = p / x->block;
    else
        while (x->q_start[r + 1] <= p) r++;
    return x->bits + r * x->words;
}

/* Key places [first, end) of column c. */
static int64_t column_first(const head *x, int c) {
    return !x->bits ? 0 : x->block ? (int64_t)c * x->block : x->k_start[c];
}
static int64_t column_end(const head *x, int c) {
    if (!x->bits) return x->len_k;
    if (!x->block) return x->k_start[c + 1];
    return column_first(x, c) + x->block < x->len_k ? column_first(x, c) + x->block : x->len_k;
}

/* ---- one query --------------------------------------------------------------------------------------------------- */
static const float *query(const hs_attention *a, int h, int64_t i) {
    return (const float *)a->q.p + i * a->ld_q + (int64_t)h * a->head_dim;
}

static double logit(const hs_attention *a, int h, int64_t i, int64_t j) {
    double s = a->scale *
               hs_ref_dot(query(a, h, i), (const float *)a->k.p + j * a->ld_k + (int64_t)h * a->head_dim, a->head_dim);
    if (a->rel_bias.p) s += ((const float *)a->rel_bias.p)[h * (a->len_q + a->len_k - 1) + (j - i) + a->len_q - 1];
    if (j == a->len_k - 1) s += a->last_key_bonus;
    return s;
}

/* Row of comp_k or comp_v that stands for column c. */
static const float *stand_in(const hs_attention *a, hs_buf comp, int h, int c) {
    return (const float *)comp.p + ((int64_t)h * a->mask->cols + c) * a->head_dim;
}

/* A dropped block counts as one key of its mean, as often as it has tokens. */
static double dropped_logit(const hs_attention *a, const head *x, int h, int64_t i, int c) {
    return a->scale * hs_ref_dot(query(a, h, i), stand_in(a, a->comp_k, h, c), a->head_dim) +
           log((double)(column_end(x, c) - column_first(x, c)));
}

typedef struct sums {
    double max, sum, acc[MAX_HEAD_DIM];
} sums;

/* The first pass (v NULL) finds the largest logit, the second adds. A NaN is not seen by the first, but makes the sums
 * of the second NaN. */
static void meet(sums *t, double s, const float *v, int n) {
    if (!v) {
        if (s > t->max) t->max = s;
        return;
    }
    const double p = exp(s - t->max);
    t->sum += p;
#pragma omp simd
    for (int c = 0; c < n; c++) t->acc[c] += p * v[c];
}

static void visit(const hs_attention *a, const head *x, const int32_t *row, int h, int64_t i, int second, sums *t) {
    for (int c = 0; c < x->cols; c++) {
        if (row && !hs_mask_bit(row, c)) {
            if (a->comp_k.p)
                meet(t, dropped_logit(a, x, h, i, c), second ? stand_in(a, a->comp_v, h, c) : NULL, a->head_dim);
            continue;
        }
        for (int64_t p = column_first(x, c); p < column_end(x, c); p++) {
            const int64_t j = x->k_order ? x->k_order[p] : p;
            const float *v = (const float *)a->v.p + j * a->ld_v + (int64_t)h * a->head_dim;
            meet(t, logit(a, h, i, j), second ? v : NULL, a->head_dim);
        }
    }
}

void hs_ref_attention(hs_device *dev, const hs_attention *a) {
    (void)dev;
#pragma omp parallel for collapse(2) schedule(static)
    for (int h = 0; h < a->heads; h++)
        for (int64_t p = 0; p < a->len_q; p++) {
            const head x = head_of(a, h);
            const int32_t *row = row_of(&x, p);
            const int64_t i = x.q_order ? x.q_order[p] : p;
            float *out = (float *)a->out.p + i * a->ld_out + (int64_t)h * a->head_dim;
            sums t = {.max = -INFINITY};
            visit(a, &x, row, h, i, 0, &t);
            visit(a, &x, row, h, i, 1, &t);
            for (int c = 0; c < a->head_dim; c++)
                out[c] = t.sum != 0 ? (float)(t.acc[c] / t.sum) : 0; /* 0: kept nothing */
        }
}
