/* Reference predictors of block masks, spec haste.md 3 and 4.2. Nothing is stored that grows with the video: logits are
 * computed again wherever they are needed, means of clusters as well. */
#include "ref/ref.h"
#include "mask.h"

#include <math.h>
#include <string.h>

enum { MAX_HEAD_DIM = 1024, MAX_BLOCK = 1024 }; /* limits of backend_sparse.c */

static int wanted(hs_buf want, int h) {
    return ((const uint8_t *)want.p)[h];
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- XAttention ------------------------------------------------------------------------------------------------ */

/* Folded query i meets folded key j: the mean of one antidiagonal of the tile, tokens beyond the end being zeros. */
static double folded_logit(const hs_block_scores *a, int h, int64_t i, int64_t j) {
    double sum = 0;
    for (int s = 0; s < a->stride; s++) {
        const int64_t row = i * a->stride + a->stride - 1 - s, key = j * a->stride + s;
        if (row >= a->len || key >= a->len) continue;
        const float *q = (const float *)a->q.p + row * a->ld_q + (int64_t)h * a->head_dim;
        const float *k = (const float *)a->k.p + key * a->ld_k + (int64_t)h * a->head_dim;
        sum += hs_ref_dot(q, k, a->head_dim);
    }
    return sum / (sqrt((double)a->head_dim) * a->stride);
}

/* One row of blocks: softmax of each of its folded queries over `keys` folded keys, summed over blocks. */
static void score_row(const hs_block_scores *a, int h, int64_t r, int64_t keys, int64_t cols, float *ret) {
    const int64_t per = a->block / a->stride, first = r * per,
                  count = smaller(per, (a->len + a->stride - 1) / a->stride - first);
    double max[MAX_BLOCK], sum[MAX_BLOCK];
    for (int64_t i = 0; i < count; i++) {
        max[i] = -INFINITY;
        sum[i] = 0;
        for (int64_t j = 0; j < keys; j++) max[i] = fmax(max[i], folded_logit(a, h, first + i, j));
        for (int64_t j = 0; j < keys; j++) sum[i] += exp(folded_logit(a, h, first + i, j) - max[i]);
    }
    for (int64_t c = 0; c < cols; c++) {
        double mass = 0;
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = c * per; j < smaller((c + 1) * per, keys); j++)
                mass += exp(folded_logit(a, h, first + i, j) - max[i]) / sum[i];
        ret[c] = (float)mass;
    }
}

void hs_ref_block_scores(hs_device *dev, const hs_block_scores *a) {
    (void)dev;
    const int64_t rows = (a->len + a->block - 1) / a->block, cols = a->padded ? a->padded / a->block : rows,
                  keys = ((a->padded ? a->padded : a->len) + a->stride - 1) / a->stride;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int h = 0; h < a->heads; h++)
        for (int64_t r = 0; r < rows; r++)
            if (wanted(a->want, h)) score_row(a, h, r, keys, cols, (float *)a->scores.p + (h * rows + r) * cols);
}

/* ---- centroids --------------------------------------------------------------------------------------------------- */
static int64_t column_size(const hs_centroid_scores *a, int h, int c) {
    if (!a->start.p) return smaller(a->block, a->len - (int64_t)c * a->block);
    const int32_t *start = (const int32_t *)a->start.p + (int64_t)h * (a->cols + 1);
    return start[c + 1] - start[c];
}

static double centroid_logit(const hs_centroid_scores *a, int h, int r, int c) {
    const float *q = (const float *)a->cq.p + ((int64_t)h * a->rows + r) * a->head_dim;
    const float *k = (const float *)a->ck.p + ((int64_t)h * a->cols + c) * a->head_dim;
    return a->scale * hs_ref_dot(q, k, a->head_dim);
}

static void centroid_row(const hs_centroid_scores *a, int h, int r, float *ret) {
    double max = -INFINITY, sum = 0;
    for (int c = 0; c < a->cols; c++)
        if (a->compat || column_size(a, h, c)) max = fmax(max, centroid_logit(a, h, r, c));
    for (int c = 0; c < a->cols; c++)
        if (column_size(a, h, c)) sum += (double)column_size(a, h, c) * exp(centroid_logit(a, h, r, c) - max);
    if (a->compat) sum = fmax(sum, 1e-12); /* reached where an empty column sets the maximum */
    for (int c = 0; c < a->cols; c++) {
        const double n = (double)column_size(a, h, c);
        ret[c] = n > 0 ? (float)(n * exp(centroid_logit(a, h, r, c) - max) / sum) : 0;
    }
}

void hs_ref_centroid_scores(hs_device *dev, const hs_centroid_scores *a) {
    (void)dev;
#pragma omp parallel for collapse(2) schedule(static)
    for (int h = 0; h < a->heads; h++)
        for (int r = 0; r < a->rows; r++)
            if (wanted(a->want, h)) centroid_row(a, h, r, (float *)a->scores.p + ((int64_t)h * a->rows + r) * a->cols);
}

void hs_ref_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                        hs_buf want, hs_buf y) {
    (void)dev;
    const int64_t blocks = (len + block - 1) / block;
#pragma omp parallel for collapse(2) schedule(static)
    for (int h = 0; h < heads; h++)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t first = b * block, count = smaller(block, len - first);
            for (int c = 0; c < head_dim && wanted(want, h); c++) {
                double sum = 0;
                for (int64_t i = first; i < first + count; i++)
                    sum += ((const float *)x.p)[i * ld + (int64_t)h * head_dim + c];
                ((float *)y.p)[(h * blocks + b) * head_dim + c] = (float)(sum / (double)count);
            }
        }
}

/* ---- selection --------------------------------------------------------------------------------------------------- */
void hs_ref_mask_density(hs_device *dev, const hs_mask *mask, hs_buf want, hs_buf density) {
    (void)dev;
    for (int h = 0; h < mask->heads; h++)
        if (wanted(want, h)) ((float *)density.p)[h] = (float)hs_mask_density(mask, h);
}

void hs_ref_select(hs_device *dev, const hs_select *a) {
    (void)dev;
    const hs_mask *m = a->mask;
    const float *top_p = a->top_p.p;
    for (int h = 0; h < m->heads; h++)
        if (wanted(a->want, h)) ((uint8_t *)m->dense.p)[h] = top_p[h] >= 1 && !a->rule;
#pragma omp parallel for collapse(2) schedule(static)
    for (int h = 0; h < m->heads; h++)
        for (int r = 0; r < m->rows; r++) {
            if (!wanted(a->want, h)) continue;
            const int64_t row = (int64_t)h * m->rows + r;
            int32_t order[HS_MASK_MAX_COLS], all[HS_MASK_MAX_COLS / 32];
            int32_t *bits = (int32_t *)m->bits.p + row * m->words;
            hs_mask_select((const float *)a->scores.p + row * a->cols, a->cols, top_p[h], a->at_least, a->rule, order,
                           all);
            memset(bits, 0, (size_t)m->words * sizeof *bits);
            for (int c = 0; c < m->cols; c++)
                if (hs_mask_bit(all, c)) hs_mask_set(bits, c);
        }
}

/* ---- k-means ------------------------------------------------------------------------------------------------------
 */
static const float *token(const hs_cluster *a, int h, int64_t i) {
    return (const float *)a->x.p + i * a->ld + (int64_t)h * a->head_dim;
}

static float *centroid(const hs_cluster *a, int h, int c) {
    return (float *)a->centroids.p + ((int64_t)h * a->clusters + c) * a->head_dim;
}

static int rounds(const hs_cluster *a, int h) {
    const int want = wanted(a->want, h);
    return want > 1 ? a->iters_first : want ? a->iters_next : 0;
}

static int32_t nearest(const hs_cluster *a, int h, int64_t i) {
    int32_t best = 0;
    double least = INFINITY;
    for (int c = 0; c < a->clusters; c++) {
        const double d = hs_ref_distance(token(a, h, i), centroid(a, h, c), a->head_dim);
        if (d < least) {
            least = d;
            best = c;
        }
    }
    return best;
}

/* Labels of all tokens of a head, then the tokens by label: count, add up, place (which leaves each start at its end).
 */
static void assign(const hs_cluster *a, int h) {
    int32_t *label = (int32_t *)a->label.p + h * a->len, *order = (int32_t *)a->order.p + h * a->len;
    int32_t *start = (int32_t *)a->start.p + (int64_t)h * (a->clusters + 1);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < a->len; i++) label[i] = nearest(a, h, i);
    memset(start, 0, ((size_t)a->clusters + 1) * sizeof *start);
    for (int64_t i = 0; i < a->len; i++) start[label[i] + 1]++;
    for (int c = 0; c < a->clusters; c++) start[c + 1] += start[c];
    for (int64_t i = 0; i < a->len; i++) order[start[label[i]]++] = (int32_t)i;
    memmove(start + 1, start, (size_t)a->clusters * sizeof *start);
    start[0] = 0;
}

/* Mean of the tokens of cluster c, rounded as it will be stored; 0 = the cluster is empty. */
static int mean(const hs_cluster *a, int h, int c, float *ret) {
    const int32_t *order = (const int32_t *)a->order.p + h * a->len;
    const int32_t *start = (const int32_t *)a->start.p + (int64_t)h * (a->clusters + 1);
    double sum[MAX_HEAD_DIM] = {0};
    for (int32_t p = start[c]; p < start[c + 1]; p++)
        for (int e = 0; e < a->head_dim; e++) sum[e] += token(a, h, order[p])[e];
    for (int e = 0; e < a->head_dim; e++) ret[e] = (float)(sum[e] / (start[c + 1] - start[c]));
    return start[c + 1] > start[c];
}

/* How far the furthest centroid of a head would move. */
static double furthest(const hs_cluster *a, int h) {
    double most = 0;
    for (int c = 0; c < a->clusters; c++) {
        float now[MAX_HEAD_DIM];
        if (mean(a, h, c, now)) most = fmax(most, sqrt(hs_ref_distance(now, centroid(a, h, c), a->head_dim)));
    }
    return most;
}

static void update(const hs_cluster *a, int h) {
    for (int c = 0; c < a->clusters; c++) {
        float now[MAX_HEAD_DIM];
        if (mean(a, h, c, now)) memcpy(centroid(a, h, c), now, (size_t)a->head_dim * sizeof *now);
    }
}

static void start_from_tokens(const hs_cluster *a, int h) {
    for (int c = 0; c < a->clusters; c++)
        memcpy(centroid(a, h, c), token(a, h, hs_cluster_token(a->seed, h, c, a->clusters, a->len)),
               (size_t)a->head_dim * sizeof(float));
}

/* Heads [from, to) in step: they stop together. */
static void cluster_heads(const hs_cluster *a, int from, int to) {
    for (int h = from; h < to; h++)
        if (wanted(a->want, h) > 1) start_from_tokens(a, h);
    for (int round = 0;; round++) {
        int running = 0;
        double most = 0;
        for (int h = from; h < to; h++) {
            if (round >= rounds(a, h)) continue;
            assign(a, h);
            most = fmax(most, furthest(a, h));
            running = 1;
        }
        if (!running || most < 1e-4) return;
        for (int h = from; h < to; h++)
            if (round < rounds(a, h)) update(a, h);
    }
}

void hs_ref_cluster(hs_device *dev, const hs_cluster *a) {
    if (a->compat)
        cluster_heads(a, 0, a->heads);
    else
        for (int h = 0; h < a->heads; h++) cluster_heads(a, h, h + 1);
    if (a->beside) hs_ref_cluster(dev, a->beside);
}

/* ---- reuse ---------------------------------------------------------------------------------------------------------
 */
void hs_ref_reuse(hs_device *dev, const hs_reuse *a) {
    (void)dev;
    hs_reuse_decide(&a->policy, a->heads, a->dim, a->mean_q.p, a->mean_k.p, a->anchor_q.p, a->anchor_k.p, a->age.p,
                    a->want.p, a->drift.p);
}
