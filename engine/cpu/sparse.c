/* Predictors of block masks: scores of XAttention and of centroids, selection, means. spec haste.md 3, 4.2.
 *
 * Whatever is a product goes through attention's micro-kernels: the right operand is packed once per head and shared,
 * threads take stripes of rows, and what a softmax or an argmax needs of a stripe is used up while it is in the cache.
 * Nothing of the size rows x columns exists but the scores that are asked for.
 *
 * All of it borrows attention's room for packed keys (attention.h), so that calls allocate nothing; what each operation
 * takes of it stands where it begins. Results do not depend on the number of threads: a row belongs to one thread,
 * which takes its columns in order. (One exception: blocks of more than STRIPE folded queries, where the room is
 * short.)
 */
#include "cpu/sparse.h"
#include "cpu/sparse_parts.h"
#include "mask.h"

#include <math.h>

enum {
    STRIPE = 64, /* rows a thread has in work: their logits stay in the second-level cache */
    DEPTH = 256, /* words of depth per product: four panels of it fit there as well */
    PANELS = 4,  /* panels per product */
};
static const float LOG2_E = 1.44269504f;

/* ---- XAttention -------------------------------------------------------------------------------------------------
 * Folding needs no memory of its own: a folded vector is `stride` vectors side by side, and depth is where they are put
 * while packing. */

typedef struct fold {
    const hs_block_scores *a;
    const hs_attn_kernels *kn, *fp32;
    int dim;              /* head size with padding */
    int64_t slice, depth; /* words of one token; of a folded vector */
    int64_t folded, keys; /* folded vectors that have tokens; with those of padding alone that take mass */
    int64_t rows, cols;   /* of the scores */
    int per;              /* folded vectors in a block */
    int64_t tile, ld;     /* folded queries in work at a time; floats from one row of logits to the next */
    float *k;             /* packed keys */
    int64_t most;         /* as many of them */
} fold;

/* The token of a folded vector that lies at slice s of the depth; zeros beyond the end. */
static void fold_slice(const fold *f, hs_buf x, int64_t ld, int h, int64_t token, float *words) {
    const int n = f->a->head_dim;
    const int64_t size = x.type == HS_F32 ? 4 : 2;
    if (token < f->a->len)
        hs_attn_words(f->kn, (const char *)x.p + (token * ld + (int64_t)h * n) * size, x.type, n, f->dim, words);
    else
        memset(words, 0, (size_t)f->slice * 4);
}

/* Slice s of panel p of folded keys from `first` on. */
static void fold_panel(const fold *f, int h, int64_t first, int64_t p, int s, float *tmp) {
    const int S = f->a->stride;
    for (int r = 0; r < HS_ATTN_PANEL; r++)
        fold_slice(f, f->a->k, f->a->ld_k, h, (first + p * HS_ATTN_PANEL + r) * S + s, tmp + r * f->slice);
    hs_attn_panel(tmp, f->slice, f->k + (p * f->depth + s * f->slice) * HS_ATTN_PANEL);
}

static void fold_queries(const fold *f, int h, int64_t first, int64_t n, float *q) {
    const int S = f->a->stride;
    for (int64_t i = 0; i < hs_round_up(n, HS_ATTN_TILE); i++)
        for (int s = 0; s < S; s++)
            fold_slice(f, f->a->q, f->a->ld_q, h, i < n ? (first + i) * S + S - 1 - s : f->a->len,
                       q + i * f->depth + s * f->slice);
}

/* Logits of n folded queries and the packed folded keys [begin, end). */
static void fold_logits(const fold *f, int64_t n, int64_t begin, int64_t end, const float *q, float *s) {
    const int64_t panels = hs_round_up(end - begin, HS_ATTN_PAD) / HS_ATTN_PANEL;
    if (f->kn->begin) f->kn->begin();
    for (int64_t p = 0; p < panels; p += PANELS)
        for (int64_t d = 0; d < f->depth; d += DEPTH)
            f->kn->gemm((int)n, (int)hs_min64(PANELS, panels - p), hs_min64(DEPTH, f->depth - d), q + d, f->depth,
                        f->k + (p * f->depth + d) * HS_ATTN_PANEL, f->depth * HS_ATTN_PANEL,
                        s + begin + p * HS_ATTN_PANEL, f->ld, d > 0);
    if (f->kn->end) f->kn->end();
}

/* Softmax of n folded queries from `first` on over all folded keys, added up over blocks. */
static void fold_scores(const fold *f, int h, int64_t first, int64_t n, float *s, float *max, float *sum) {
    const hs_block_scores *a = f->a;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = f->folded; j < f->keys; j++) s[i * f->ld + j] = 0;
    hs_attn_block b = {.s = s,
                       .max = max,
                       .sum = sum,
                       .ld_s = f->ld,
                       .rows = (int)n,
                       .keys = (int)f->keys,
                       .first = 1,
                       .scale = LOG2_E / (sqrtf((float)a->head_dim) * (float)a->stride)};
    f->fp32->softmax(&b);
    for (int64_t i = 0, m; i < n; i += m) {
        const int64_t r = (first + i) / f->per;
        float *mass = s + i * f->ld, *ret = (float *)a->scores.p + (h * f->rows + r) * f->cols;
        m = hs_min64(n - i, (r + 1) * f->per - first - i); /* folded queries of the same block: add them up first */
        const float scale = 1 / sum[i];
#pragma omp simd
        for (int64_t j = 0; j < f->keys; j++) mass[j] *= scale;
        for (int64_t x = 1; x < m; x++) {
            const float *more = mass + x * f->ld, part = 1 / sum[i + x];
#pragma omp simd
            for (int64_t j = 0; j < f->keys; j++) mass[j] += part * more[j];
        }
        const int begins = (first + i) % f->per == 0;
        for (int64_t c = 0; c < f->cols; c++) {
            float block = begins ? 0 : ret[c];
            for (int64_t j = c * f->per; j < hs_min64((c + 1) * f->per, f->keys); j++) block += mass[j];
            ret[c] = block;
        }
    }
}

/* Every thread has `group` blocks of queries in work, `tile` folded queries of them at a time. Where the keys do not
 * fit, all threads pack them segment by segment, and again for every tile. */
static void fold_head(const fold *f, int threads, int h, float *local, int64_t words) {
    const int64_t most_group = f->per < f->tile ? f->tile / f->per : 1;
    const int64_t tasks = hs_round_up((f->rows + most_group - 1) / most_group, threads);
    const int64_t group = (f->rows + tasks - 1) / tasks * f->per; /* in folded queries */
    const int once = f->most >= f->folded;
#pragma omp parallel num_threads(threads)
    {
        const int team = omp_get_num_threads();
        const int64_t held = hs_round_up(f->tile, HS_ATTN_TILE);
        float *q = local + omp_get_thread_num() * words, *s = q + held * f->depth, *max = s + held * f->ld;
        float *tmp = max + 2 * held;
        int packed = 0;
        for (int64_t task = omp_get_thread_num(), lead = 0; lead < f->folded; task += team, lead += team * group)
            for (int64_t i = 0; i < group; i += f->tile) {
                const int64_t first = task * group + i;
                const int64_t n = hs_min64(hs_min64(f->tile, group - i), f->folded - first);
                if (n > 0) fold_queries(f, h, first, n, q);
                for (int64_t begin = 0; begin < f->folded; begin += f->most) {
                    const int64_t end = hs_min64(begin + f->most, f->folded);
                    const int64_t panels = hs_round_up(end - begin, HS_ATTN_PAD) / HS_ATTN_PANEL;
                    if (!packed) {
#pragma omp for schedule(static)
                        for (int64_t p = 0; p < panels * f->a->stride; p++)
                            fold_panel(f, h, begin, p / f->a->stride, (int)(p % f->a->stride), tmp);
                    }
                    if (n > 0) fold_logits(f, n, begin, end, q, s);
                    if (!once) {
#pragma omp barrier
                    }
                }
                packed = once;
                if (n > 0) fold_scores(f, h, first, n, s, max, max + held);
            }
    }
}

void hs_cpu_block_scores(hs_device *dev, const hs_block_scores *a) {
    const int threads = hs_cpu_of(dev)->threads;
    hs_cpu_room room = hs_cpu_attention_room(dev);
    fold f = {.a = a, .kn = room.kernels, .fp32 = room.fp32, .per = a->block / a->stride};
    f.dim = (int)hs_round_up(a->head_dim, HS_ATTN_PAD);
    f.slice = f.dim / (f.kn->bf16 ? 2 : 1);
    f.depth = f.slice * a->stride;
    f.folded = (a->len + a->stride - 1) / a->stride;
    f.keys = a->padded ? a->padded / a->stride : f.folded;
    f.rows = (a->len + a->block - 1) / a->block;
    f.cols = a->padded ? a->padded / a->block : f.rows;
    f.ld = hs_round_up(f.keys, HS_ATTN_PAD);
    /* What the threads need first: fewer queries at a time where that would leave little for the keys. */
    int64_t words = 0;
    for (f.tile = STRIPE; f.tile >= HS_ATTN_TILE; f.tile /= 2) {
        words = hs_round_up(f.tile * (f.depth + f.ld + 2) + HS_ATTN_PANEL * f.slice, 16);
        if (words * threads <= room.count / 2) break;
    }
    if (f.tile < HS_ATTN_TILE) f.tile = HS_ATTN_TILE;
    if (f.per < f.tile) f.tile -= f.tile % f.per; /* whole blocks, so that sums are formed alike whoever forms them */
    float *local = hs_sparse_take(&room, words * threads);
    f.k = room.words;
    f.most = room.count / f.depth / HS_ATTN_PAD * HS_ATTN_PAD;
    if (f.most < HS_ATTN_PAD) hs_sparse_take(&room, HS_ATTN_PAD * f.depth);
    if (!hs_sparse_fits(dev, &room, "block scores", "a larger stride or fewer threads need less")) return;
    for (int h = 0; h < a->heads; h++)
        if (hs_sparse_wanted(a->want, h)) fold_head(&f, threads, h, local, words);
}

/* ---- centroids -------------------------------------------------------------------------------------------------- */

/* The size of a column weighs after the exponential, not in the logit: so an empty one may set the maximum, as
 * published (compat), or be left out, by minus infinity. */
static void centroid_rows(const hs_centroid_scores *a, const hs_attn_kernels *kn, int h, int r, int n,
                          const float *panels, const float *size, float *s, float *max, float *sum) {
    const int64_t ld = hs_round_up(a->cols, HS_ATTN_PAD);
    const float *q = (const float *)a->cq.p + ((int64_t)h * a->rows + r) * a->head_dim;
    kn->gemm(n, (int)(ld / HS_ATTN_PANEL), a->head_dim, q, a->head_dim, panels, (int64_t)a->head_dim * HS_ATTN_PANEL, s,
             ld, 0);
    for (int i = 0; i < n && !a->compat; i++)
        for (int c = 0; c < a->cols; c++)
            if (size[c] == 0) s[i * ld + c] = -INFINITY;
    kn->softmax(&(hs_attn_block){.s = s,
                                 .max = max,
                                 .sum = sum,
                                 .ld_s = ld,
                                 .rows = n,
                                 .keys = a->cols,
                                 .first = 1,
                                 .scale = a->scale * LOG2_E});
    for (int i = 0; i < n; i++, s += ld) {
        float *ret = (float *)a->scores.p + ((int64_t)h * a->rows + r + i) * a->cols;
        double total = 0;
        for (int c = 0; c < a->cols; c++) total += (double)size[c] * s[c];
        if (a->compat && total < 1e-12) total = 1e-12; /* reached where an empty column sets the maximum */
        const float part = (float)(1 / total);
        for (int c = 0; c < a->cols; c++) ret[c] = size[c] * s[c] * part;
    }
}

void hs_cpu_centroid_scores(hs_device *dev, const hs_centroid_scores *a) {
    if (!(a->scale > 0)) { /* softmax relies on it, as in attention */
        hs_device_sticky(dev, HS_EINVAL, "centroid scores: scale is %g, expected a number above 0", a->scale);
        return;
    }
    const int threads = hs_cpu_threads(dev, (int64_t)a->rows * a->cols * a->head_dim);
    const int64_t ld = hs_round_up(a->cols, HS_ATTN_PAD);
    hs_cpu_room room = hs_cpu_attention_room(dev);
    float *panels = hs_sparse_take(&room, ld * a->head_dim), *size = hs_sparse_take(&room, ld);
    const int64_t words = STRIPE * (ld + 2);
    float *local = hs_sparse_take(&room, words * threads);
    if (!hs_sparse_fits(dev, &room, "centroid scores", "fewer clusters or threads need less")) return;
#pragma omp parallel num_threads(threads)
    {
        float *s = local + omp_get_thread_num() * words;
        for (int h = 0; h < a->heads; h++) {
            if (!hs_sparse_wanted(a->want, h)) continue;
            const int32_t *start = a->start.p ? (const int32_t *)a->start.p + (int64_t)h * (a->cols + 1) : NULL;
            const float *ck = (const float *)a->ck.p + (int64_t)h * a->cols * a->head_dim;
#pragma omp for schedule(static)
            for (int64_t p = 0; p < ld / HS_ATTN_PANEL; p++) {
                hs_sparse_panel(ck, a->cols, a->head_dim, p, panels);
                for (int64_t c = p * HS_ATTN_PANEL; c < hs_min64((p + 1) * HS_ATTN_PANEL, a->cols); c++)
                    size[c] = (float)(start ? start[c + 1] - start[c] : hs_min64(a->block, a->len - c * a->block));
            }
#pragma omp for schedule(static)
            for (int r = 0; r < a->rows; r += STRIPE)
                centroid_rows(a, room.fp32, h, r, (int)hs_min64(STRIPE, a->rows - r), panels, size, s, s + STRIPE * ld,
                              s + STRIPE * (ld + 1));
        }
    }
}

/* ---- selection -------------------------------------------------------------------------------------------------- */

static void select_row(const hs_select *a, int h, int r) {
    const hs_mask *m = a->mask;
    int32_t order[HS_MASK_MAX_COLS], all[HS_MASK_MAX_COLS / 32];
    const int64_t row = (int64_t)h * m->rows + r;
    hs_mask_select((const float *)a->scores.p + row * a->cols, a->cols, ((const float *)a->top_p.p)[h], a->at_least,
                   a->rule, order, all);
    if (m->cols % 32) all[m->words - 1] &= (int32_t)((1u << m->cols % 32) - 1u); /* columns behind the mask's */
    memcpy((int32_t *)m->bits.p + row * m->words, all, (size_t)m->words * sizeof *all);
}

void hs_cpu_select(hs_device *dev, const hs_select *a) {
    const hs_mask *m = a->mask;
    (void)dev;
    for (int h = 0; h < m->heads; h++)
        if (hs_sparse_wanted(a->want, h)) ((uint8_t *)m->dense.p)[h] = ((const float *)a->top_p.p)[h] >= 1 && !a->rule;
#pragma omp parallel for collapse(2) schedule(static) num_threads(hs_cpu_threads(dev, (int64_t)m->rows * a->cols))
    for (int h = 0; h < m->heads; h++)
        for (int r = 0; r < m->rows; r++)
            if (hs_sparse_wanted(a->want, h)) select_row(a, h, r);
}

void hs_cpu_mask_density(hs_device *dev, const hs_mask *mask, hs_buf want, hs_buf density) {
    (void)dev;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, (int64_t)mask->rows * mask->words))
    for (int h = 0; h < mask->heads; h++)
        if (hs_sparse_wanted(want, h)) ((float *)density.p)[h] = (float)hs_mask_density(mask, h);
}

/* ---- means ------------------------------------------------------------------------------------------------------ */

void hs_cpu_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                        hs_buf want, hs_buf y) {
    const int64_t blocks = (len + block - 1) / block;
    (void)dev;
#pragma omp parallel for collapse(2) schedule(static) num_threads(hs_cpu_threads(dev, len *head_dim))
    for (int h = 0; h < heads; h++)
        for (int64_t b = 0; b < blocks; b++) {
            if (!hs_sparse_wanted(want, h)) continue;
            const int64_t first = b * block, end = hs_min64(first + block, len);
            double sum[HS_SPARSE_MAX_DIM] = {0};
            hs_sparse_add(hs_buf_at(x, (int64_t)h * head_dim, x.n - (int64_t)h * head_dim), ld, NULL, first, end,
                          head_dim, sum);
            float *mean = (float *)y.p + (h * blocks + b) * head_dim;
            for (int d = 0; d < head_dim; d++) mean[d] = (float)(sum[d] / (double)(end - first));
        }
}

void hs_cpu_reuse(hs_device *dev, const hs_reuse *a) {
    (void)dev;
    hs_reuse_decide(&a->policy, a->heads, a->dim, a->mean_q.p, a->mean_k.p, a->anchor_q.p, a->anchor_k.p, a->age.p,
                    a->want.p, a->drift.p);
}
