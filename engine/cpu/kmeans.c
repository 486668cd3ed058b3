/* k-means of tokens for SVG2's masks (spec haste.md 3.2), in attention's room for packed keys and through its
 * micro-kernels, as sparse.c does the other predictors.
 *
 * The nearest centroid c of a token x has the largest score x.c - |c|^2 / 2. Scores of centroids rounded to bf16 would
 * move labels; but where activations are bf16 they are twice as fast, and for most tokens the best one leads by more
 * than rounding can have done. Only the others are scored again in fp32. A round is five passes over all heads that
 * still run.
 */
#include "cpu/sparse.h"
#include "cpu/sparse_parts.h"

#include <math.h>

enum {
    TOKENS = 96, /* tokens of a tile */
    NEAR = 128,  /* centroids of a tile */
    RANGE = 384, /* tokens of which those in doubt are scored together */
    LANES = 16,  /* sums of neighbouring columns, which the compiler keeps in vectors */
};

typedef struct kmeans {
    const hs_cluster *a;
    const hs_attn_kernels *rough, *fp32; /* rough: NULL where activations are not bf16 */
    int from, heads;                     /* in work together */
    int64_t padded;                      /* clusters, up to whole panels */
    int64_t depth;                       /* words of a rounded centroid */
    float *panels, *rounded;             /* [heads, padded * dim], [heads, padded * depth] packed centroids */
    float *less;                         /* [heads, padded] -|c|^2 / 2, minus infinity in the padding */
    float *error;                        /* [heads, padded] how far off the score of a token of length 1 may be */
    float *next, *moved;                 /* [heads, clusters, dim] means; [heads, clusters] how far they are */
    int32_t *runs;                       /* [heads] 1 = still running */
} kmeans;

static const float *centroid_of(const kmeans *m, int h, int c) {
    return (const float *)m->a->centroids.p + ((int64_t)(m->from + h) * m->a->clusters + c) * m->a->head_dim;
}

static float squared_norm(const float *x, int n) {
    float part[LANES] = {0}, sum = 0;
    int d = 0;
    for (; d + LANES <= n; d += LANES)
        for (int l = 0; l < LANES; l++) part[l] += x[d + l] * x[d + l];
    for (; d < n; d++) sum += x[d] * x[d];
    for (int l = 0; l < LANES; l++) sum += part[l];
    return sum;
}

/* Centroid c as words of a row, rounded; returns by how much its product with a token of length 1 may be wrong: what
 * was rounded off, and fp32 sums in another order. */
static float round_centroid(const kmeans *m, const float *c, float *row) {
    const int n = m->a->head_dim;
    float back[HS_SPARSE_MAX_DIM];
    hs_attn_words(m->rough, c, HS_F32, n, (int)m->depth * 2, row);
    hs_to_f32(back, row, HS_BF16, n);
    for (int d = 0; d < n; d++) back[d] -= c[d];
    return sqrtf(squared_norm(back, n)) * 1.001f + sqrtf(squared_norm(c, n)) * 1e-5f;
}

/* rows [16, depth]: room */
static void centroid_panel(const kmeans *m, int h, int64_t p, float *rows) {
    const int n = m->a->head_dim;
    hs_sparse_panel(centroid_of(m, h, 0), m->a->clusters, n, p, m->panels + h * m->padded * n);
    if (m->rough) memset(rows, 0, (size_t)(HS_ATTN_PANEL * m->depth) * 4);
    for (int64_t c = p * HS_ATTN_PANEL; c < (p + 1) * HS_ATTN_PANEL; c++) {
        double sum = c < m->a->clusters ? 0 : INFINITY;
        for (int d = 0; d < n && c < m->a->clusters; d++) {
            const double v = centroid_of(m, h, (int)c)[d];
            sum += v * v;
        }
        m->less[h * m->padded + c] = (float)(-sum / 2);
        m->error[h * m->padded + c] = 0;
        if (m->rough && c < m->a->clusters)
            m->error[h * m->padded + c] =
                round_centroid(m, centroid_of(m, h, (int)c), rows + c % HS_ATTN_PANEL * m->depth);
    }
    if (m->rough) hs_attn_panel(rows, m->depth, m->rounded + (h * m->padded + p * HS_ATTN_PANEL) * m->depth);
}

/* The two largest scores of a token and where the first one is; lowest index among equals. */
typedef struct ranks {
    float best, second;
    int at;
} ranks;

/* More scores, of n centroids from c on. */
static void rank_more(ranks *r, const hs_attn_kernels *kn, const float *s, int64_t c, int n) {
    float best, second;
    const int at = kn->rank(s, n, &best, &second);
    if (best > r->best) {
        r->second = second > r->best ? second : r->best;
        r->best = best;
        r->at = (int)c + at;
    } else if (best > r->second) {
        r->second = best;
    }
}

/* Ranks the centroids of tokens list[0 .. n], counted from the head's first, with the rounded ones or the real ones.
 * x [TOKENS, dim] and s [TOKENS, NEAR] are room. */
static void rank_tokens(const kmeans *m, const hs_attn_kernels *kn, int h, const int32_t *list, int n, float *x,
                        float *s, ranks *ret) {
    const hs_cluster *a = m->a;
    const int64_t size = a->x.type == HS_F32 ? 4 : 2, depth = kn == m->rough ? m->depth : a->head_dim;
    const float *panels = (kn == m->rough ? m->rounded : m->panels) + h * m->padded * depth;
    for (int t = 0; t < n; t++) {
        const char *from = (const char *)a->x.p + (list[t] * a->ld + (int64_t)(m->from + h) * a->head_dim) * size;
        hs_attn_words(kn, from, a->x.type, a->head_dim, (int)(kn->bf16 ? depth * 2 : depth), x + t * depth);
        ret[t] = (ranks){-INFINITY, -INFINITY, 0};
    }
    if (kn->begin) kn->begin();
    for (int64_t c = 0; c < m->padded; c += NEAR) {
        const int wide = (int)hs_min64(NEAR, m->padded - c);
        for (int t = 0; t < n; t++) memcpy(s + t * NEAR, m->less + h * m->padded + c, (size_t)wide * sizeof *s);
        kn->gemm(n, wide / HS_ATTN_PANEL, depth, x, depth, panels + c * depth, depth * HS_ATTN_PANEL, s, NEAR, 1);
        for (int t = 0; t < n; t++) rank_more(&ret[t], m->fp32, s + t * NEAR, c, wide);
    }
    if (kn->end) kn->end();
}

/* Labels of the tokens list[0 .. n]; those that rounding leaves in doubt are put to the front of the list instead.
 * Returns how many. */
static int label_roughly(const kmeans *m, int h, int32_t *list, int n, float *x, float *s) {
    const int dim = m->a->head_dim;
    int32_t *label = (int32_t *)m->a->label.p + (m->from + h) * m->a->len;
    float most = 0, wide[HS_SPARSE_MAX_DIM];
    ranks rank[TOKENS];
    int doubts = 0;
    for (int c = 0; c < m->a->clusters; c++) {
        const float e = m->error[h * m->padded + c];
        most = e > most ? e : most;
    }
    rank_tokens(m, m->rough, h, list, n, x, s, rank);
    for (int t = 0; t < n; t++) {
        hs_attn_words(m->fp32, x + t * m->depth, HS_BF16, dim, dim, wide);
        const float doubt =
            2 * most * sqrtf(squared_norm(wide, dim)) + 1e-6f * (fabsf(rank[t].best) + fabsf(rank[t].second));
        if (rank[t].best - rank[t].second > doubt)
            label[list[t]] = rank[t].at;
        else
            list[doubts++] = list[t];
    }
    return doubts;
}

/* Labels of the tokens [first, end), at most RANGE. */
static void label_range(const kmeans *m, int h, int64_t first, int64_t end, float *x, float *s) {
    int32_t *label = (int32_t *)m->a->label.p + (m->from + h) * m->a->len, list[RANGE + TOKENS];
    ranks rank[TOKENS];
    int n = 0;
    for (int64_t i = first; i < end;) {
        int32_t *more = list + n;
        int count = 0;
        while (count < TOKENS && i < end) more[count++] = (int32_t)i++;
        n += m->rough ? label_roughly(m, h, more, count, x, s) : count;
    }
    for (int i = 0; i < n; i += TOKENS) {
        const int count = (int)hs_min64(TOKENS, n - i);
        rank_tokens(m, m->fp32, h, list + i, count, x, s, rank);
        for (int t = 0; t < count; t++) label[list[i + t]] = rank[t].at;
    }
}

/* Tokens by label: count, add up, place, which leaves every start at its end. */
static void group_tokens(const kmeans *m, int h) {
    const hs_cluster *a = m->a;
    const int32_t *label = (const int32_t *)a->label.p + (m->from + h) * a->len;
    int32_t *order = (int32_t *)a->order.p + (m->from + h) * a->len;
    int32_t *start = (int32_t *)a->start.p + (int64_t)(m->from + h) * (a->clusters + 1);
    memset(start, 0, ((size_t)a->clusters + 1) * sizeof *start);
    for (int64_t i = 0; i < a->len; i++) start[label[i] + 1]++;
    for (int c = 0; c < a->clusters; c++) start[c + 1] += start[c];
    for (int64_t i = 0; i < a->len; i++) order[start[label[i]]++] = (int32_t)i;
    memmove(start + 1, start, (size_t)a->clusters * sizeof *start);
    start[0] = 0;
}

/* Where centroid c would go; nowhere if it has no tokens. */
static void mean_of_cluster(const kmeans *m, int h, int c) {
    const hs_cluster *a = m->a;
    const int n = a->head_dim;
    const int64_t off = (int64_t)(m->from + h) * n;
    const int32_t *order = (const int32_t *)a->order.p + (m->from + h) * a->len;
    const int32_t *start = (const int32_t *)a->start.p + (int64_t)(m->from + h) * (a->clusters + 1);
    const float *was = centroid_of(m, h, c);
    float *next = m->next + ((int64_t)h * a->clusters + c) * n;
    double sum[HS_SPARSE_MAX_DIM] = {0}, move = 0;
    hs_sparse_add(hs_buf_at(a->x, off, a->x.n - off), a->ld, order, start[c], start[c + 1], n, sum);
    for (int d = 0; d < n; d++) {
        next[d] = start[c + 1] > start[c] ? (float)(sum[d] / (start[c + 1] - start[c])) : was[d];
        move += ((double)next[d] - was[d]) * ((double)next[d] - was[d]);
    }
    m->moved[(int64_t)h * a->clusters + c] = (float)sqrt(move);
}

/* Heads that stand still stop before their update, in compat mode only if all of them do. */
static void stop_heads(const kmeans *m) {
    float most[2] = {0, 0}; /* of this head, of all */
    for (int h = 0; h < m->heads; h++) {
        if (!m->runs[h]) continue;
        most[0] = 0;
        for (int c = 0; c < m->a->clusters; c++) most[0] = fmaxf(most[0], m->moved[(int64_t)h * m->a->clusters + c]);
        most[1] = fmaxf(most[1], most[0]);
        if (!m->a->compat && most[0] < 1e-4f) m->runs[h] = 0;
    }
    for (int h = 0; h < m->heads && m->a->compat && most[1] < 1e-4f; h++) m->runs[h] = 0;
}

/* Heads that have rounds left; how many. */
static int next_round(const kmeans *m, int round) {
    int running = 0;
    for (int h = 0; h < m->heads; h++) {
        const int want = hs_sparse_wanted(m->a->want, m->from + h);
        if (round >= (want > 1 ? m->a->iters_first : want ? m->a->iters_next : 0)) m->runs[h] = 0;
        running += m->runs[h];
    }
    return running;
}

static void cluster_heads(const kmeans *m, int threads, float *local) {
    const hs_cluster *a = m->a;
    const int64_t panels = m->padded / HS_ATTN_PANEL, tiles = (a->len + RANGE - 1) / RANGE, all = m->heads;
    const int64_t dim = a->head_dim, wide = hs_round_up(dim, HS_ATTN_PAD);
    int running = 0;
    (void)threads;
    for (int h = 0; h < m->heads; h++) {
        m->runs[h] = 1;
        for (int c = 0; c < a->clusters && hs_sparse_wanted(a->want, m->from + h) > 1; c++) {
            const int64_t i = hs_cluster_token(a->seed, m->from + h, c, a->clusters, a->len);
            const hs_buf from = hs_buf_at(a->x, i * a->ld + (m->from + h) * dim, dim);
            hs_to_f32((float *)a->centroids.p + ((int64_t)(m->from + h) * a->clusters + c) * dim, from.p, a->x.type,
                      dim);
        }
    }
#pragma omp parallel num_threads(threads)
    {
        float *x = local + omp_get_thread_num() * TOKENS * (wide + NEAR), *s = x + TOKENS * wide;
        for (int round = 0;; round++) {
#pragma omp single
            running = next_round(m, round);
            if (!running) break;
#pragma omp for schedule(static)
            for (int64_t p = 0; p < all * panels; p++)
                if (m->runs[p / panels]) centroid_panel(m, (int)(p / panels), p % panels, x);
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < all * tiles; t++) {
                const int64_t i = t % tiles * RANGE;
                if (m->runs[t / tiles]) label_range(m, (int)(t / tiles), i, hs_min64(i + RANGE, a->len), x, s);
            }
#pragma omp for schedule(static)
            for (int h = 0; h < m->heads; h++)
                if (m->runs[h]) group_tokens(m, h);
#pragma omp for schedule(dynamic, 8)
            for (int64_t c = 0; c < all * a->clusters; c++)
                if (m->runs[c / a->clusters]) mean_of_cluster(m, (int)(c / a->clusters), (int)(c % a->clusters));
#pragma omp single
            stop_heads(m);
#pragma omp for schedule(static)
            for (int64_t c = 0; c < all * a->clusters; c++)
                if (m->runs[c / a->clusters])
                    memcpy((float *)a->centroids.p + (m->from * (int64_t)a->clusters + c) * dim, m->next + c * dim,
                           (size_t)dim * 4);
        }
    }
}

void hs_cpu_cluster(hs_device *dev, const hs_cluster *a) {
    const int threads = hs_cpu_of(dev)->threads;
    hs_cpu_room room = hs_cpu_attention_room(dev);
    kmeans m = {.a = a, .fp32 = room.fp32, .padded = hs_round_up(a->clusters, HS_ATTN_PAD)};
    if (a->x.type == HS_BF16 && room.kernels->bf16) {
        m.rough = room.kernels;
        m.depth = hs_round_up(a->head_dim, HS_ATTN_PAD) / 2;
    }
    float *local = hs_sparse_take(&room, (int64_t)threads * TOKENS * (hs_round_up(a->head_dim, HS_ATTN_PAD) + NEAR));
    /* As many heads together as there is room for. */
    const int64_t each = m.padded * (a->head_dim + m.depth + 2) + a->clusters * (a->head_dim + 1) + 1 + 7 * 16;
    int64_t heads = hs_min64(a->heads, room.count / each);
    if (heads < 1 || (a->compat && heads < a->heads)) heads = a->compat ? a->heads : 1;
    m.panels = hs_sparse_take(&room, heads * m.padded * a->head_dim);
    m.rounded = hs_sparse_take(&room, heads * m.padded * m.depth);
    m.less = hs_sparse_take(&room, heads * m.padded);
    m.error = hs_sparse_take(&room, heads * m.padded);
    m.next = hs_sparse_take(&room, heads * a->clusters * a->head_dim);
    m.moved = hs_sparse_take(&room, heads * a->clusters);
    m.runs = (int32_t *)(void *)hs_sparse_take(&room, heads);
    if (!hs_sparse_fits(dev, &room, "clusters", "fewer clusters or threads need less")) return;
    for (; m.from < a->heads; m.from += m.heads) {
        m.heads = (int)hs_min64(heads, a->heads - m.from);
        cluster_heads(&m, threads, local);
    }
    if (a->beside) hs_cpu_cluster(dev, a->beside);
}
