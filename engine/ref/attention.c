/* Reference attention: per row first the largest logit, then sums of exponentials. Logits are computed twice so that
 * nothing of length len_k is stored: the step loop allocates nothing, and no size is too large. */
#include "ref/ref.h"
#include <math.h>

enum { MAX_HEAD_DIM = 1024, LANES = 4 }; /* backend.c admits no larger head */

/* LANES interleaved partial sums, so that the compiler can vectorise; their order is fixed. */
static double dot(const float *a, const float *b, int n) {
    double sum[LANES] = {0}, total = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += (double)a[i + l] * b[i + l];
    for (; i < n; i++) total += (double)a[i] * b[i];
    for (int l = 0; l < LANES; l++) total += sum[l];
    return total;
}

static double logit(const hs_attention *a, int h, int64_t i, int64_t j) {
    const int64_t col = (int64_t)h * a->head_dim;
    const float *q = (const float *)a->q.p + i * a->ld_q + col;
    const float *k = (const float *)a->k.p + j * a->ld_k + col;
    double s = a->scale * dot(q, k, a->head_dim);
    if (a->rel_bias.p) s += ((const float *)a->rel_bias.p)[h * (a->len_q + a->len_k - 1) + (j - i) + a->len_q - 1];
    if (j == a->len_k - 1) s += a->last_key_bonus;
    return s;
}

static void attend_row(const hs_attention *a, int h, int64_t i) {
    const int64_t col = (int64_t)h * a->head_dim;
    double max = -INFINITY, sum = 0, acc[MAX_HEAD_DIM];
    for (int64_t j = 0; j < a->len_k; j++) {
        const double s = logit(a, h, i, j);
        if (s > max) max = s; /* a NaN is not seen here, but makes the sums below NaN */
    }
    for (int c = 0; c < a->head_dim; c++) acc[c] = 0;
    for (int64_t j = 0; j < a->len_k; j++) {
        const float *v = (const float *)a->v.p + j * a->ld_v + col;
        const double p = exp(logit(a, h, i, j) - max);
        sum += p;
#pragma omp simd
        for (int c = 0; c < a->head_dim; c++) acc[c] += p * v[c];
    }
    float *out = (float *)a->out.p + i * a->ld_out + col;
    for (int c = 0; c < a->head_dim; c++) out[c] = (float)(acc[c] / sum);
}

void hs_ref_attention(hs_device *dev, const hs_attention *a) {
    if (a->mask) {
        hs_device_sticky(dev, HS_ENOTSUP, "attention: device ref has dense attention only; run without a block mask");
        return;
    }
#pragma omp parallel for collapse(2) schedule(static)
    for (int h = 0; h < a->heads; h++)
        for (int64_t i = 0; i < a->len_q; i++) attend_row(a, h, i);
}
