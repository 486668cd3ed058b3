/* Predictors of block masks: scores of XAttention and of centroids, selection, means, k-means. spec haste.md 3, 4.2.
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
#include "cpu/attention.h"
#include "cpu/attn_pack.h"
#include "mask.h"

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) {
    return 0;
}
static int omp_get_num_threads(void) {
    return 1;
}
#endif

enum {
    STRIPE = 64,    /* rows a thread has in work: their logits stay in the second-level cache */
    DEPTH = 256,    /* words of depth per product: four panels of it fit there as well */
    PANELS = 4,     /* panels per product */
    TOKENS = 96,    /* k-means: tokens of a tile */
    NEAR = 128,     /* k-means: centroids of a tile */
    RANGE = 384,    /* k-means: tokens among which those of a tile are looked for */
    LANES = 16,     /* maxima of neighbouring columns, which the compiler keeps in vectors */
    LINE = 32,      /* values of a vector that are added up at a time */
    CHUNK = 64,     /* vectors that are added up in single precision */
    MAX_DIM = 1024, /* the most backend_sparse.c lets through */
};
static const float LOG2_E = 1.44269504f;

static int wanted(hs_buf want, int h) {
    return ((const uint8_t *)want.p)[h];
}

/* ---- room ------------------------------------------------------------------------------------------------------- */

/* Cuts `words` words off the room, on a cache line; the room may go negative, which is asked for once, in the end. */
static float *take(hs_cpu_room *room, int64_t words) {
    float *at = room->words;
    words = hs_round_up(words, 16);
    room->words += words;
    room->count -= words;
    return at;
}

static int fits(hs_device *dev, const hs_cpu_room *room, const char *op, const char *cure) {
    if (room->count >= 0) return 1;
    hs_device_sticky(dev, HS_ENOMEM, "%s: %lld MB of working space are missing on device '%s'; %s", op,
                     (long long)(-room->count >> 18) + 1, dev->name, cure);
    return 0;
}

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
    float *local = take(&room, words * threads);
    f.k = room.words;
    f.most = room.count / f.depth / HS_ATTN_PAD * HS_ATTN_PAD;
    if (f.most < HS_ATTN_PAD) take(&room, HS_ATTN_PAD * f.depth);
    if (!fits(dev, &room, "block scores", "a larger stride or fewer threads need less")) return;
    for (int h = 0; h < a->heads; h++)
        if (wanted(a->want, h)) fold_head(&f, threads, h, local, words);
}

/* ---- centroids -------------------------------------------------------------------------------------------------- */

/* Panels of vectors x [count, n] F32 as right operand: [round_up(count, HS_ATTN_PAD) / HS_ATTN_PANEL][n][16]. */
static void pack_panel(const float *x, int count, int n, int64_t p, float *panels) {
    float *to = panels + p * n * HS_ATTN_PANEL;
    for (int r = 0; r < HS_ATTN_PANEL; r++) {
        const int64_t i = p * HS_ATTN_PANEL + r;
        for (int d = 0; d < n; d++) to[d * HS_ATTN_PANEL + r] = i < count ? x[i * n + d] : 0;
    }
}

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
    float *panels = take(&room, ld * a->head_dim), *size = take(&room, ld);
    const int64_t words = STRIPE * (ld + 2);
    float *local = take(&room, words * threads);
    if (!fits(dev, &room, "centroid scores", "fewer clusters or threads need less")) return;
#pragma omp parallel num_threads(threads)
    {
        float *s = local + omp_get_thread_num() * words;
        for (int h = 0; h < a->heads; h++) {
            if (!wanted(a->want, h)) continue;
            const int32_t *start = a->start.p ? (const int32_t *)a->start.p + (int64_t)h * (a->cols + 1) : NULL;
            const float *ck = (const float *)a->ck.p + (int64_t)h * a->cols * a->head_dim;
#pragma omp for schedule(static)
            for (int64_t p = 0; p < ld / HS_ATTN_PANEL; p++) {
                pack_panel(ck, a->cols, a->head_dim, p, panels);
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
        if (wanted(a->want, h)) ((uint8_t *)m->dense.p)[h] = ((const float *)a->top_p.p)[h] >= 1 && !a->rule;
#pragma omp parallel for collapse(2) schedule(static) num_threads(hs_cpu_threads(dev, (int64_t)m->rows * a->cols))
    for (int h = 0; h < m->heads; h++)
        for (int r = 0; r < m->rows; r++)
            if (wanted(a->want, h)) select_row(a, h, r);
}

/* ---- means ------------------------------------------------------------------------------------------------------ */

/* Adds `width` columns of vectors to sums; width and type are constants after inlining, so that a cache line's worth of
 * sums stays in registers. */
static inline __attribute__((always_inline)) void add_columns(const void *x, hs_dtype type, int64_t ld,
                                                              const int32_t *order, int64_t first, int64_t end,
                                                              int width, double *sum) {
    float part[LINE] = {0};
    for (int64_t i = first; i < end; i++) {
        const int64_t at = (order ? order[i] : i) * ld;
        const float *f = (const float *)x + at;
        const uint16_t *b = (const uint16_t *)x + at;
        if (type == HS_F32)
            for (int d = 0; d < width; d++) part[d] += f[d];
        else
            for (int d = 0; d < width; d++) part[d] += hs_bf16_to_f32(b[d]);
    }
    for (int d = 0; d < width; d++) sum[d] += part[d];
}

/* Adds vectors [first, end), in places of `order` if there is one, n long and ld apart, to sums [n]. Single precision
 * serves for CHUNK of them at a time. */
static void add_vectors(hs_buf x, int64_t ld, const int32_t *order, int64_t first, int64_t end, int n, double *sum) {
    for (int64_t i = first; i < end; i += CHUNK)
        for (int d = 0; d < n; d += LINE) {
            const hs_buf from = hs_buf_at(x, d, x.n - d);
            const int64_t last = hs_min64(i + CHUNK, end);
            if (n - d < LINE)
                add_columns(from.p, x.type, ld, order, i, last, n - d, sum + d);
            else if (x.type == HS_F32)
                add_columns(from.p, HS_F32, ld, order, i, last, LINE, sum + d);
            else
                add_columns(from.p, HS_BF16, ld, order, i, last, LINE, sum + d);
        }
}

void hs_cpu_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                        hs_buf want, hs_buf y) {
    const int64_t blocks = (len + block - 1) / block;
    (void)dev;
#pragma omp parallel for collapse(2) schedule(static) num_threads(hs_cpu_threads(dev, len *head_dim))
    for (int h = 0; h < heads; h++)
        for (int64_t b = 0; b < blocks; b++) {
            if (!wanted(want, h)) continue;
            const int64_t first = b * block, end = hs_min64(first + block, len);
            double sum[MAX_DIM] = {0};
            add_vectors(hs_buf_at(x, (int64_t)h * head_dim, x.n - (int64_t)h * head_dim), ld, NULL, first, end,
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

/* ---- k-means ----------------------------------------------------------------------------------------------------
 * The nearest centroid c of a token x has the largest x.c - |c|^2 / 2, one product of (x, 1) and (c, -|c|^2 / 2).
 * Products are fp32 for every type of activation: centroids rounded to bf16 would move labels. A round is five passes
 * over all heads that still run. From the second one on most tokens are not looked at: how near the nearest centroid
 * was, how far the second one, and how far centroids have moved since show that the label stands (Hamerly 2010). */

typedef struct kmeans {
    const hs_cluster *a;
    const hs_attn_kernels *kn;
    int from, heads;      /* in work together */
    int64_t padded;       /* clusters, up to whole panels */
    float *panels;        /* [heads, padded * (dim + 1)] packed centroids; minus infinity in the padding */
    float *next, *moved;  /* [heads, clusters, dim] means; [heads, clusters] how far they are */
    float *furthest;      /* [heads] the largest of these */
    float *near, *second; /* [heads, len] at most, at least so far from the token are its centroid and any other */
    int32_t *runs;        /* [heads] 1 = still running */
} kmeans;

static const float *centroid_of(const kmeans *m, int h, int c) {
    return (const float *)m->a->centroids.p + ((int64_t)(m->from + h) * m->a->clusters + c) * m->a->head_dim;
}

static void centroid_panel(const kmeans *m, int h, int64_t p) {
    const int n = m->a->head_dim;
    float *panel = m->panels + (h * m->padded + p * HS_ATTN_PANEL) * (n + 1);
    pack_panel(centroid_of(m, h, 0) + p * HS_ATTN_PANEL * n, (int)(m->a->clusters - p * HS_ATTN_PANEL), n, 0, panel);
    for (int64_t c = p * HS_ATTN_PANEL; c < (p + 1) * HS_ATTN_PANEL; c++) {
        double sum = c < m->a->clusters ? 0 : INFINITY;
        for (int d = 0; d < n && c < m->a->clusters; d++) {
            const double v = centroid_of(m, h, (int)c)[d];
            sum += v * v;
        }
        panel[n * HS_ATTN_PANEL + c % HS_ATTN_PANEL] = (float)(-sum / 2);
    }
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

static float squared_norm(const float *x, int n) {
    float part[LANES] = {0}, sum = 0;
    int d = 0;
    for (; d + LANES <= n; d += LANES)
        for (int l = 0; l < LANES; l++) part[l] += x[d + l] * x[d + l];
    for (; d < n; d++) sum += x[d] * x[d];
    for (int l = 0; l < LANES; l++) sum += part[l];
    return sum;
}

static float above_zero(float x) {
    return x > 0 ? x : 0;
}

/* Labels of n tokens, list[t] counted from the head's first. x [TOKENS, dim + 1] and s [TOKENS, NEAR] are room. */
static void label_tokens(const kmeans *m, int h, const int32_t *list, int n, float *x, float *s) {
    const hs_cluster *a = m->a;
    const int dim = a->head_dim, depth = dim + 1;
    const int64_t size = a->x.type == HS_F32 ? 4 : 2;
    ranks rank[TOKENS];
    for (int t = 0; t < n; t++) {
        const char *from = (const char *)a->x.p + (list[t] * a->ld + (int64_t)(m->from + h) * dim) * size;
        hs_attn_words(m->kn, from, a->x.type, dim, dim, x + (int64_t)t * depth);
        x[(int64_t)t * depth + dim] = 1;
        rank[t] = (ranks){-INFINITY, -INFINITY, 0};
    }
    for (int64_t c = 0; c < m->padded; c += NEAR) {
        const int wide = (int)hs_min64(NEAR, m->padded - c);
        m->kn->gemm(n, wide / HS_ATTN_PANEL, depth, x, depth, m->panels + (h * m->padded + c) * depth,
                    (int64_t)depth * HS_ATTN_PANEL, s, NEAR, 0);
        for (int t = 0; t < n; t++) rank_more(&rank[t], m->kn, s + t * NEAR, c, wide);
    }
    for (int t = 0; t < n; t++) {
        const float norm = squared_norm(x + (int64_t)t * depth, dim);
        /* squared distances, and how wrong they may be: ten times what rounding does to sums of MAX_DIM terms */
        const float near = norm - 2 * rank[t].best, second = norm - 2 * rank[t].second;
        const float error = 1e-5f * (norm + fabsf(near));
        m->near[h * a->len + list[t]] = sqrtf(above_zero(near) + error);
        m->second[h * a->len + list[t]] = sqrtf(above_zero(second - error - 1e-5f * fabsf(second)));
        ((int32_t *)a->label.p)[(m->from + h) * a->len + list[t]] = rank[t].at;
    }
}

/* Labels of the tokens [first, end) that may have changed; in the first round all. */
static void label_range(const kmeans *m, int h, int64_t first, int64_t end, int round, float *x, float *s) {
    const float *moved = m->moved + (int64_t)h * m->a->clusters;
    const int32_t *label = (const int32_t *)m->a->label.p + (m->from + h) * m->a->len;
    float *near = m->near + h * m->a->len, *second = m->second + h * m->a->len;
    int32_t list[TOKENS];
    int n = 0;
    for (int64_t i = first; i < end; i++) {
        if (round) {
            near[i] += moved[label[i]];
            second[i] -= m->furthest[h];
        }
        if (!round || !(near[i] < second[i])) list[n++] = (int32_t)i;
        if (n < TOKENS && (n == 0 || i + 1 < end)) continue;
        label_tokens(m, h, list, n, x, s);
        n = 0;
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
    double sum[MAX_DIM] = {0}, move = 0;
    add_vectors(hs_buf_at(a->x, off, a->x.n - off), a->ld, order, start[c], start[c + 1], n, sum);
    for (int d = 0; d < n; d++) {
        next[d] = start[c + 1] > start[c] ? (float)(sum[d] / (start[c + 1] - start[c])) : was[d];
        move += ((double)next[d] - was[d]) * ((double)next[d] - was[d]);
    }
    m->moved[(int64_t)h * a->clusters + c] = (float)sqrt(move);
}

/* Heads that stand still stop before their update, in compat mode only if all of them do. */
static void stop_heads(const kmeans *m) {
    float most = 0; /* of all heads */
    for (int h = 0; h < m->heads; h++) {
        if (!m->runs[h]) continue;
        m->furthest[h] = 0;
        for (int c = 0; c < m->a->clusters; c++)
            m->furthest[h] = fmaxf(m->furthest[h], m->moved[(int64_t)h * m->a->clusters + c]);
        most = fmaxf(most, m->furthest[h]);
        if (!m->a->compat && m->furthest[h] < 1e-4f) m->runs[h] = 0;
    }
    for (int h = 0; h < m->heads && m->a->compat && most < 1e-4f; h++) m->runs[h] = 0;
}

/* Heads that have rounds left; how many. */
static int next_round(const kmeans *m, int round) {
    int running = 0;
    for (int h = 0; h < m->heads; h++) {
        const int want = wanted(m->a->want, m->from + h);
        if (round >= (want > 1 ? m->a->iters_first : want ? m->a->iters_next : 0)) m->runs[h] = 0;
        running += m->runs[h];
    }
    return running;
}

static void cluster_heads(const kmeans *m, int threads, float *local) {
    const hs_cluster *a = m->a;
    const int64_t panels = m->padded / HS_ATTN_PANEL, tiles = (a->len + RANGE - 1) / RANGE, all = m->heads;
    const int64_t dim = a->head_dim;
    int running = 0;
    (void)threads;
    for (int h = 0; h < m->heads; h++) {
        m->runs[h] = 1;
        for (int c = 0; c < a->clusters && wanted(a->want, m->from + h) > 1; c++) {
            const int64_t i = hs_cluster_token(a->seed, m->from + h, c, a->clusters, a->len);
            const hs_buf from = hs_buf_at(a->x, i * a->ld + (m->from + h) * dim, dim);
            hs_to_f32((float *)a->centroids.p + ((int64_t)(m->from + h) * a->clusters + c) * dim, from.p, a->x.type,
                      dim);
        }
    }
#pragma omp parallel num_threads(threads)
    {
        float *x = local + omp_get_thread_num() * TOKENS * (dim + 1 + NEAR), *s = x + TOKENS * (dim + 1);
        for (int round = 0;; round++) {
#pragma omp single
            running = next_round(m, round);
            if (!running) break;
#pragma omp for schedule(static)
            for (int64_t p = 0; p < all * panels; p++)
                if (m->runs[p / panels]) centroid_panel(m, (int)(p / panels), p % panels);
#pragma omp for schedule(dynamic)
            for (int64_t t = 0; t < all * tiles; t++) {
                const int64_t i = t % tiles * RANGE;
                if (m->runs[t / tiles]) label_range(m, (int)(t / tiles), i, hs_min64(i + RANGE, a->len), round, x, s);
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
    kmeans m = {.a = a, .kn = room.fp32, .padded = hs_round_up(a->clusters, HS_ATTN_PAD)};
    float *local = take(&room, (int64_t)threads * TOKENS * (a->head_dim + 1 + NEAR));
    /* As many heads together as there is room for. */
    const int64_t each = (m.padded + a->clusters) * (a->head_dim + 1) + 2 * a->len + 2 + 7 * 16;
    int64_t heads = hs_min64(a->heads, room.count / each);
    if (heads < 1 || (a->compat && heads < a->heads)) heads = a->compat ? a->heads : 1;
    m.panels = take(&room, heads * m.padded * (a->head_dim + 1));
    m.near = take(&room, heads * a->len);
    m.second = take(&room, heads * a->len);
    m.furthest = take(&room, heads);
    m.next = take(&room, heads * a->clusters * a->head_dim);
    m.moved = take(&room, heads * a->clusters);
    m.runs = (int32_t *)(void *)take(&room, heads);
    if (!fits(dev, &room, "clusters", "fewer clusters or threads need less")) return;
    for (; m.from < a->heads; m.from += m.heads) {
        m.heads = (int)hs_min64(heads, a->heads - m.from);
        cluster_heads(&m, threads, local);
    }
}
