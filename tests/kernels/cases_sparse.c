/* Cases of the predictors of block masks: antidiagonal scores, centroid scores, selection, block means, reuse.
 * `skip` of a line is a set of heads that do not want a new mask: nothing of theirs may be written. */
#include "check.h"
#include "mask.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

operand *add_want(test *t, int heads) {
    operand *want = OPERAND(t, "want", IN, U8, 0, heads);
    for (int h = 0; h < heads; h++) want->data[h] = get(t, "skip") >> h & 1 ? 0 : get(t, "first") >> h & 1 ? 2 : 1;
    return want;
}

/* ---- block_scores: operands scores, q, k, want ---------------------------------------------------------------------
 */
static void list_block_scores(void) {
    static const int lengths[] = {1, 15, 16, 17, 64, 65, 130, 300};
    for (int i = 0; i < 8; i++) {
        emit("n=%d heads=2 D=64 block=64 stride=8", lengths[i]);
        emit("n=%d heads=2 D=128 block=128 stride=16 pad=8", lengths[i]);
        emit("n=%d heads=1 D=64 block=64 stride=16 padded=%d", lengths[i], (lengths[i] + 127) / 64 * 64);
    }
    emit("n=130 heads=2 D=64 block=64 stride=8 padded=1024"); /* more padding than products are rounded up by */
    emit("n=65 heads=1 D=32 block=128 stride=16 padded=2048");
    emit("n=200 heads=3 D=32 block=64 stride=16 skip=5");
    emit("n=200 heads=2 D=128 block=64 stride=8 spread=6");
    emit("n=3000 heads=1 D=64 block=64 stride=8");       /* several tiles of folded tokens */
    emit("n=700 heads=2 D=40 block=35 stride=5 pad=1");  /* blocks of 7, vectors aligned to nothing */
    emit("n=1500 heads=1 D=16 block=400 stride=2");      /* blocks of 200, wider than a tile */
    emit("n=600 heads=3 D=64 block=64 stride=1 skip=2"); /* exact mass */
    emit("n=300 heads=2 D=64 block=128 stride=1");       /* ... of blocks as wide as a tile */
    /* Tiles of 128 x 256 folded tokens: several each way, last ones cut, last folds of 1, 3 and all tokens, parts of
     * every width, more heads than want scores, vectors far apart. */
    emit("n=1400 heads=2 D=128 block=64 stride=4");
    emit("n=1403 heads=3 D=128 block=128 stride=4 skip=2 pad=520");
    emit("n=1101 heads=2 D=128 block=256 stride=4 spread=5");
    emit("n=700 heads=5 D=128 block=256 stride=2 skip=21");
    emit("n=5000 heads=1 D=128 block=128 stride=16");
    emit("n=600 heads=2 D=128 block=256 stride=1 skip=1");
    emit("n=700 heads=1 D=64 block=1024 stride=1");             /* four tiles to a block, the last one without keys */
    emit("n=300 heads=2 D=192 block=64 stride=8 pad=64");       /* three slabs to a token */
    emit("n=1200 heads=4 D=64 block=64 stride=1 skip=4");       /* more tiles than processors, two bands of them */
    emit("n=1300 heads=2 D=128 block=64 stride=4 padded=2048"); /* a last tile of half keys, half zeros */
    emit("n=900 heads=2 D=128 block=64 stride=4 padded=2304");  /* ... of zeros alone */
    emit("n=40 heads=3 D=128 block=64 stride=16 skip=7");       /* nobody wants any */
}

static void setup_block_scores(test *t) {
    const int64_t n = get(t, "n"), heads = get(t, "heads"), block = get(t, "block"), padded = get(t, "padded"),
                  rows = (n + block - 1) / block, ld = heads * get(t, "D") + get(t, "pad");
    OPERAND(t, "scores", OUT, F32, 0, heads, rows, padded ? padded / block : rows);
    OPERAND(t, "q", IN, ACT, get(t, "spread") ? (double)get(t, "spread") : 2, n, ld);
    OPERAND(t, "k", IN, ACT, 1.5, n, ld);
    add_want(t, (int)heads);
}

static hs_block_scores view_block_scores(const test *t, const hs_buf *b) {
    const int64_t ld = get(t, "heads") * get(t, "D") + get(t, "pad");
    return (hs_block_scores){.scores = b[0],
                             .q = b[1],
                             .k = b[2],
                             .want = b[3],
                             .ld_q = ld,
                             .ld_k = ld,
                             .len = get(t, "n"),
                             .padded = get(t, "padded"),
                             .heads = (int)get(t, "heads"),
                             .head_dim = (int)get(t, "D"),
                             .block = (int)get(t, "block"),
                             .stride = (int)get(t, "stride")};
}

static void call_block_scores(const test *t, const side *s) {
    const hs_block_scores a = view_block_scores(t, s->b);
    hs_op_block_scores(s->dev, &a);
}

static void plain_block_scores(test *t) {
    const hs_block_scores a = view_block_scores(t, (hs_buf[4]){{0}, {0}, {0}, {0}});
    operand *out = &t->o[0];
    const int64_t rows = out->dim[1], cols = out->dim[2],
                  keys = ((a.padded ? a.padded : a.len) + a.stride - 1) / a.stride;
    const float scale = 1 / (sqrtf((float)a.head_dim) * (float)a.stride);
    float *p = need_memory((size_t)keys, sizeof *p), *sum = need_memory((size_t)cols, sizeof *sum);
    for (int64_t at = 0; at < a.heads * rows; at++) {
        const int64_t h = at / rows, r = at % rows;
        double largest = 0;
        if (t->o[3].data[h] == 0) continue;
        for (int64_t c = 0; c < cols; c++) sum[c] = 0;
        for (int64_t i = r * a.block / a.stride; i * a.stride < a.len && i < (r + 1) * a.block / a.stride; i++) {
            float max = -INFINITY, total = 0;
            for (int64_t j = 0; j < keys; j++) {
                float x = 0;
                double mag = 0;
                for (int64_t s = 0; s < a.stride; s++) {
                    const int64_t row = (i + 1) * a.stride - 1 - s, key = j * a.stride + s;
                    for (int64_t e = h * a.head_dim; row < a.len && key < a.len && e < (h + 1) * a.head_dim; e++) {
                        x += t->o[1].data[row * a.ld_q + e] * t->o[2].data[key * a.ld_k + e];
                        mag += fabs((double)t->o[1].data[row * a.ld_q + e] * t->o[2].data[key * a.ld_k + e]);
                    }
                }
                p[j] = x * scale;
                largest = fmax(largest, mag * scale);
                max = fmaxf(max, p[j]);
            }
            for (int64_t j = 0; j < keys; j++) total += p[j] = expf(p[j] - max);
            for (int64_t j = 0; j < keys;) { /* a row's share of a block first: sums of sums round less */
                const int64_t c = j * a.stride / a.block;
                float share = 0;
                for (; j < keys && j * a.stride / a.block == c; j++) share += p[j] / total;
                sum[c] += share;
            }
        }
        for (int64_t c = 0; c < cols; c++) put(t, out, at * cols + c, sum[c], sum[c], sum[c] * (1 + largest));
    }
    free(p);
    free(sum);
}

static double flops_block_scores(const test *t) {
    return 2.0 * (double)get(t, "n") * (double)get(t, "n") / (double)get(t, "stride") * (double)get(t, "heads") *
           (double)get(t, "D");
}

static const char *const bench_block_scores[] = {"block_scores n=2304 heads=3 D=128 block=128 stride=16",
                                                 "block_scores n=2304 heads=3 D=128 block=64 stride=8", 0};

/* ---- centroid_scores: operands scores, cq, ck, start, want
 * ----------------------------------------------------------- */
static void list_centroid_scores(void) {
    static const int n[] = {1, 63, 64, 65, 300};
    for (int i = 0; i < 5; i++)
        emit("n=%d heads=2 rows=%d cols=%d D=64 block=64", n[i], (n[i] + 63) / 64, (n[i] + 63) / 64);
    for (int compat = 0; compat < 2; compat++) {
        emit("n=200 heads=2 rows=3 cols=7 D=128 compat=%d", compat);
        emit("n=20 heads=3 rows=30 cols=50 D=64 compat=%d skip=2", compat); /* empty clusters */
        emit("n=20 heads=2 rows=5 cols=9 D=32 compat=%d far=1", compat);    /* one of them sets the maximum */
    }
    emit("n=20 heads=2 rows=5 cols=9 D=32 compat=0 far=30"); /* ... and would push all others below the smallest double
                                                              */
}

static void setup_centroid_scores(test *t) {
    const int64_t heads = get(t, "heads"), rows = get(t, "rows"), cols = get(t, "cols"), D = get(t, "D"),
                  n = get(t, "n");
    OPERAND(t, "scores", OUT, F32, 0, heads, rows, cols);
    operand *q = OPERAND(t, "cq", IN, F32, 2, heads, rows, D), *k = OPERAND(t, "ck", IN, F32, 1.5, heads, cols, D),
            *start = OPERAND(t, "start", IN, I32, 0, heads, cols + 1);
    add_want(t, (int)heads);
    for (int64_t i = 0; i < start->n; i++) { /* sizes of 0 in between */
        const int64_t c = i % (cols + 1);
        start->data[i] = (float)(c == cols ? n
                                 : c == 0  ? 0
                                           : fmax(start->data[i - 1], floor((double)(n * (c / 2 * 2)) / (double)cols)));
    }
    for (int64_t e = 0; e < D && get(t, "far"); e++) { /* along the queries; column 1 of each head has no token */
        for (int64_t h = 0; h < heads; h++)
            k->data[(h * cols + 1) * D + e] = 2 * (float)get(t, "far") * q->data[h * rows * D + e];
        for (int64_t h = 0; h < heads; h++) start->data[h * (cols + 1) + 1] = start->data[h * (cols + 1) + 2] = 0;
    }
}

static hs_centroid_scores view_centroid_scores(const test *t, const hs_buf *b) {
    return (hs_centroid_scores){.scores = b[0],
                                .cq = b[1],
                                .ck = b[2],
                                .start = get(t, "block") ? HS_NOBUF : b[3],
                                .want = b[4],
                                .len = get(t, "n"),
                                .heads = (int)get(t, "heads"),
                                .rows = (int)get(t, "rows"),
                                .cols = (int)get(t, "cols"),
                                .head_dim = (int)get(t, "D"),
                                .block = (int)get(t, "block"),
                                .compat = (int)get(t, "compat"),
                                .scale = 1 / sqrtf((float)get(t, "D"))};
}

static void call_centroid_scores(const test *t, const side *s) {
    const hs_centroid_scores a = view_centroid_scores(t, s->b);
    hs_op_centroid_scores(s->dev, &a);
}

static float column_size(const test *t, const hs_centroid_scores *a, int64_t h, int64_t c) {
    const float *s = t->o[3].data + h * (a->cols + 1);
    if (a->block) return (float)(a->len - c * a->block < a->block ? a->len - c * a->block : a->block);
    return s[c + 1] - s[c];
}

static void plain_centroid_scores(test *t) {
    const hs_centroid_scores a = view_centroid_scores(t, (hs_buf[5]){{0}, {0}, {0}, {0}, {0}});
    float *p = need_memory((size_t)a.cols, sizeof *p);
    for (int64_t at = 0; at < (int64_t)a.heads * a.rows; at++) {
        const int64_t h = at / a.rows;
        float max = -INFINITY, total = 0;
        double largest = 0;
        if (t->o[4].data[h] == 0) continue;
        for (int64_t c = 0; c < a.cols; c++) {
            float x = 0;
            double mag = 0;
            for (int64_t e = 0; e < a.head_dim; e++) {
                const float y = t->o[1].data[at * a.head_dim + e] * t->o[2].data[(h * a.cols + c) * a.head_dim + e];
                x += y;
                mag += fabs((double)y);
            }
            p[c] = x * a.scale;
            largest = fmax(largest, mag * a.scale);
            if (a.compat || column_size(t, &a, h, c) > 0) max = fmaxf(max, p[c]);
        }
        for (int64_t c = 0; c < a.cols; c++) {
            const float n = column_size(t, &a, h, c);
            total += p[c] = n > 0 ? n * expf(p[c] - max) : 0;
        }
        if (a.compat) total = fmaxf(total, 1e-12f);
        for (int64_t c = 0; c < a.cols; c++)
            put(t, &t->o[0], at * a.cols + c, p[c] / total, p[c] / total, p[c] / total * (1 + 2 * largest));
    }
    free(p);
}

/* ---- select: operands bits, dense, scores, top_p, want ------------------------------------------------------------
 */
static void list_select(void) {
    static const int cols[] = {1, 2, 31, 32, 33, 70}, long_rows[] = {256, 257, 512, 591, 641, 1000, 1182, 1280, 1281};
    for (int i = 0; i < 6; i++)
        for (int rule = 0; rule <= HS_SELECT_UPTO; rule++) emit("heads=4 rows=5 cols=%d rule=%d", cols[i], rule);
    for (int i = 0; i < 9; i++) emit("heads=4 rows=3 cols=%d rule=%d skip=4", long_rows[i], i % 3);
    emit("heads=4 rows=3 cols=1200 extra=70 rule=0 least=100");
    emit("heads=4 rows=1 cols=5000 rule=2");
    emit("heads=4 rows=3 cols=40 extra=25 rule=1"); /* padded columns are chosen and dropped */
    emit("heads=4 rows=3 cols=40 extra=25 rule=0 skip=2");
    emit("heads=4 rows=6 cols=30 rule=0 least=9");
    emit("heads=4 rows=6 cols=30 rule=2 least=9 skip=12");
    emit("heads=4 rows=6 cols=30 rule=0 equal=1");
    emit("heads=4 rows=6 cols=30 rule=0 zero=1");
    emit("heads=4 rows=6 cols=30 rule=1 zero=1");
}

static void setup_select(test *t) {
    static const float top_p[] = {0.9f, 0.5f, 1, 0.97f};
    const int64_t heads = get(t, "heads"), rows = get(t, "rows"), cols = get(t, "cols"), all = cols + get(t, "extra");
    OPERAND(t, "bits", OUT, U8, 0, heads, rows, (int64_t)hs_mask_words((int)cols) * 4);
    OPERAND(t, "dense", OUT, U8, 0, heads);
    operand *s = OPERAND(t, "scores", IN, F32, 1, heads, rows, all), *p = OPERAND(t, "top_p", IN, F32, 0, heads);
    add_want(t, (int)heads);
    t->exact = 1;
    for (int64_t r = 0; r < heads * rows; r++) {
        double sum = 0;
        for (int64_t c = 0; c < all; c++) {
            float *x = &s->data[r * all + c];
            *x = get(t, "equal") ? 0.25f : get(t, "zero") && (c % 3 || r == 1) ? 0 : (float)exp(2 * (double)*x);
            sum += *x;
        }
        for (int64_t c = 0; c < all && get(t, "rule") == HS_SELECT_UPTO; c++) s->data[r * all + c] /= (float)sum;
    }
    for (int64_t h = 0; h < heads; h++) p->data[h] = top_p[h % 4];
}

static void call_select(const test *t, const side *s) {
    const int cols = (int)get(t, "cols");
    const hs_mask m = {.heads = (int)get(t, "heads"),
                       .rows = (int)get(t, "rows"),
                       .cols = cols,
                       .words = hs_mask_words(cols),
                       .bits = {s->b[0].p, HS_I32, s->b[0].n / 4},
                       .dense = s->b[1]};
    hs_op_select(s->dev, &(hs_select){.scores = s->b[2],
                                      .top_p = s->b[3],
                                      .want = s->b[4],
                                      .cols = cols + (int)get(t, "extra"),
                                      .at_least = (int)get(t, "least"),
                                      .rule = (int)get(t, "rule"),
                                      .mask = &m});
}

/* Again and again the largest that is not yet taken. */
static void plain_select(test *t) {
    const operand *s = &t->o[2];
    const int64_t rows = s->dim[1], all = s->dim[2], bytes = t->o[0].dim[2], rule = get(t, "rule");
    uint8_t *taken = need_memory((size_t)all, 1), *out = need_memory((size_t)bytes, 1);
    for (int64_t r = 0; r < s->dim[0] * rows; r++) {
        const float *x = s->data + r * all, p = t->o[3].data[r / rows];
        double sum = 0, mass = 0;
        if (t->o[4].data[r / rows] == 0) continue;
        memset(taken, 0, (size_t)all);
        memset(out, 0, (size_t)bytes);
        for (int64_t c = 0; c < all; c++) sum += x[c];
        for (int64_t n = 0; n < all; n++) {
            int64_t best = -1;
            for (int64_t c = 0; c < all; c++)
                if (!taken[c] && (best < 0 || x[c] > x[best])) best = c;
            if (n >= 1 && n >= get(t, "least")) {
                if (rule == 0 && p < 1 && mass >= p * sum) break;
                if (rule == HS_SELECT_BLOCK0 && (mass >= p * sum || x[best] == 0)) break;
                if (rule == HS_SELECT_UPTO && mass > p) break;
            }
            taken[best] = 1;
            mass += x[best];
        }
        if (rule == HS_SELECT_BLOCK0) taken[0] = 1;
        for (int64_t c = 0; c < get(t, "cols"); c++) out[c / 8] |= (uint8_t)(taken[c] << (c % 8));
        for (int64_t b = 0; b < bytes; b++) put(t, &t->o[0], r * bytes + b, out[b], 0, 0);
        put(t, &t->o[1], r / rows, rule == 0 && p >= 1, 0, 0);
    }
    free(taken);
    free(out);
}

/* ---- mask_density: operands density, bits, dense, q_start, k_start, want -------------------------------------------
 */
static void list_mask_density(void) {
    static const int blocks[] = {1, 63, 64, 65, 200, 2100};
    for (int i = 0; i < 6; i++) emit("n=%d heads=3 block=64 keep=%d skip=%d", blocks[i], 20 * i, i % 3 == 2 ? 2 : 0);
    emit("n=40000 heads=2 block=128 keep=30 many=1"); /* more rows than threads, pairs beyond 32 bits */
    emit("n=300 heads=4 block=100 keep=50 full=5");
    emit("n=300 heads=4 rows=7 cols=70 keep=30 full=2 skip=1");
    emit("n=70000 heads=2 rows=300 cols=1000 keep=25 many=1");
    emit("n=5 heads=2 rows=9 cols=33 keep=50"); /* empty clusters */
}

static void setup_mask_density(test *t) {
    const int64_t n = get(t, "n"), heads = get(t, "heads"), block = get(t, "block");
    const int64_t rows = block ? (n + block - 1) / block : get(t, "rows"), cols = block ? rows : get(t, "cols");
    const int64_t bytes = (int64_t)hs_mask_words((int)cols) * 4;
    OPERAND(t, "density", OUT, F32, 0, heads);
    operand *bits = OPERAND(t, "bits", IN, U8, 0, heads, rows, bytes), *dense = OPERAND(t, "dense", IN, U8, 0, heads);
    operand *start[2] = {OPERAND(t, "q_start", IN, I32, 0, heads, rows + 1),
                         OPERAND(t, "k_start", IN, I32, 0, heads, cols + 1)};
    add_want(t, (int)heads);
    for (int64_t i = 0; i < heads * rows * cols; i++)
        if (noise(t, 91, i) < (double)get(t, "keep") / 50 - 1)
            bits->data[i / cols * bytes + i % cols / 8] += (float)(1 << (i % cols % 8));
    for (int64_t h = 0; h < heads; h++) dense->data[h] = (float)(get(t, "full") >> h & 1);
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < start[k]->n; i++) { /* uneven ranges from 0 to n */
            const int64_t at = i % start[k]->dim[1], last = start[k]->dim[1] - 1;
            start[k]->data[i] = (float)(at * at * n / (last * last));
        }
}

static void call_mask_density(const test *t, const side *s) {
    const int rows = (int)t->o[1].dim[1], cols = (int)t->o[4].dim[1] - 1;
    const hs_mask m = {.heads = (int)get(t, "heads"),
                       .rows = rows,
                       .cols = cols,
                       .words = hs_mask_words(cols),
                       .block = (int)get(t, "block"),
                       .len_q = get(t, "n"),
                       .len_k = get(t, "n"),
                       .bits = {s->b[1].p, HS_I32, s->b[1].n / 4},
                       .dense = s->b[2],
                       .q_start = get(t, "block") ? HS_NOBUF : s->b[3],
                       .k_start = get(t, "block") ? HS_NOBUF : s->b[4]};
    hs_op_mask_density(s->dev, &m, s->b[5], s->b[0]);
}

/* Column by column. */
static void plain_mask_density(test *t) {
    const int64_t n = get(t, "n"), block = get(t, "block"), rows = t->o[1].dim[1], bytes = t->o[1].dim[2];
    const int64_t cols = t->o[4].dim[1] - 1;
    for (int64_t h = 0; h < t->o[0].n; h++) {
        double pairs = 0;
        if (t->o[5].data[h] == 0) continue;
        for (int64_t i = 0; i < rows * cols; i++) {
            const int64_t r = i / cols, c = i % cols;
            const float *q = t->o[3].data + h * (rows + 1) + r, *k = t->o[4].data + h * (cols + 1) + c;
            const double nq = block ? (double)(n - r * block < block ? n - r * block : block) : (double)q[1] - q[0];
            const double nk = block ? (double)(n - c * block < block ? n - c * block : block) : (double)k[1] - k[0];
            if ((int)t->o[1].data[(h * rows + r) * bytes + c / 8] >> (c % 8) & 1) pairs += nq * nk;
        }
        const double density = t->o[2].data[h] != 0 ? 1 : pairs / ((double)n * (double)n);
        put(t, &t->o[0], h, density, density, density);
    }
}

/* ---- block_means: operands y, x, want
 * --------------------------------------------------------------------------------- */
static void list_block_means(void) {
    static const int n[] = {1, 63, 64, 65, 200};
    for (int i = 0; i < 5; i++) emit("n=%d heads=2 D=128 block=64", n[i]);
    emit("n=300 heads=3 D=64 block=128 pad=8 skip=2");
    emit("n=70 heads=1 D=33 block=7");
}

static void setup_block_means(test *t) {
    const int64_t n = get(t, "n"), heads = get(t, "heads"), D = get(t, "D"), block = get(t, "block");
    OPERAND(t, "y", OUT, F32, 0, heads, (n + block - 1) / block, D);
    OPERAND(t, "x", IN, ACT, 1, n, heads * D + get(t, "pad"));
    add_want(t, (int)heads);
}

static void call_block_means(const test *t, const side *s) {
    hs_op_block_means(s->dev, s->b[1], get(t, "n"), t->o[1].dim[1], (int)get(t, "heads"), (int)get(t, "D"),
                      (int)get(t, "block"), s->b[2], s->b[0]);
}

static void plain_block_means(test *t) {
    const operand *y = &t->o[0], *x = &t->o[1];
    const int64_t block = get(t, "block"), D = y->dim[2];
    for (int64_t i = 0; i < y->n; i++) {
        const int64_t h = i / (y->dim[1] * D), b = i / D % y->dim[1];
        float sum = 0, n = 0;
        double mag = 0;
        if (t->o[2].data[h] == 0) continue;
        for (int64_t r = b * block; r < (b + 1) * block && r < x->dim[0]; r++, n++) {
            sum += x->data[r * x->dim[1] + h * D + i % D];
            mag += fabs((double)x->data[r * x->dim[1] + h * D + i % D]);
        }
        put(t, &t->o[0], i, sum / n, mag / n, mag / n);
    }
}

/* ---- reuse: operands anchor_q, anchor_k, age, want, drift, mean_q, mean_k
 * ---------------------------------------------- */
static void list_reuse(void) {
    for (int k = HS_REUSE_NONE; k <= HS_REUSE_STAGGER; k++)
        for (int gate = 0; gate < 2; gate++) {
            emit("heads=12 dim=128 kind=%d gate=%d", k, gate);
            emit("heads=40 dim=128 kind=%d gate=%d", k, gate);       /* more than warps of a block */
            emit("heads=3 dim=64 kind=%d gate=%d fresh=1", k, gate); /* no anchor yet */
            emit("heads=1 dim=33 kind=%d gate=%d", k, gate);
        }
}

static void setup_reuse(test *t) {
    static const char *const names[] = {"anchor_q", "anchor_k", "age", "want", "drift", "mean_q", "mean_k"};
    const int64_t heads = get(t, "heads"), dim = get(t, "dim");
    for (int k = 0; k < 2; k++) OPERAND(t, names[k], INOUT, F32, 1, heads, dim);
    operand *age = OPERAND(t, names[2], INOUT, I32, 0, heads);
    OPERAND(t, names[3], OUT, U8, 0, heads);
    OPERAND(t, names[4], OUT, F32, 0, heads);
    for (int k = 5; k < 7; k++) { /* heads drift unequally: around the limit of view_reuse */
        operand *x = OPERAND(t, names[k], IN, F32, 1, heads, dim);
        for (int64_t i = 0; i < x->n; i++)
            x->data[i] = t->o[k - 5].data[i] + (float)(i / dim % 3 + 1) * 0.25f * x->data[i];
    }
    for (int64_t h = 0; h < heads; h++) age->data[h] = (float)(get(t, "fresh") || h == 5 ? -1 : h % 4);
}

static hs_reuse view_reuse(const test *t, const hs_buf *b) {
    const int gate = (int)get(t, "gate");
    const float dim = (float)get(t, "dim");
    return (hs_reuse){.policy = {.kind = (hs_reuse_kind)get(t, "kind"),
                                 .delta = get(t, "kind") == HS_REUSE_RELATIVE ? 0.5f : 0.8f * dim,
                                 .interval = 3,
                                 .begin_age = get(t, "kind") == HS_REUSE_STAGGER ? 2 : 0,
                                 .gate_low = gate ? 0.4f : 0,
                                 .gate_high = gate ? 0.6f : 1},
                      .heads = (int)get(t, "heads"),
                      .dim = (int)dim,
                      .anchor_q = b[0],
                      .anchor_k = b[1],
                      .age = b[2],
                      .want = b[3],
                      .drift = b[4],
                      .mean_q = b[5],
                      .mean_k = b[6]};
}

static void call_reuse(const test *t, const side *s) {
    const hs_reuse a = view_reuse(t, s->b);
    hs_op_reuse(s->dev, &a);
}

static void plain_reuse(test *t) {
    const hs_reuse a = view_reuse(t, (hs_buf[7]){{0}, {0}, {0}, {0}, {0}, {0}, {0}});
    int want[64], wanting = 0;
    for (int h = 0; h < a.heads; h++) {
        const int age = (int)t->o[2].data[h];
        float drift = 0, norm = 0;
        double mag = 0;
        for (int i = h * a.dim; i < (h + 1) * a.dim; i++) {
            drift += fabsf(t->o[0].data[i] - t->o[5].data[i]) + fabsf(t->o[1].data[i] - t->o[6].data[i]);
            norm += fabsf(t->o[0].data[i]) + fabsf(t->o[1].data[i]);
            mag += fabs((double)t->o[0].data[i]) + fabs((double)t->o[5].data[i]) + fabs((double)t->o[1].data[i]) +
                   fabs((double)t->o[6].data[i]);
        }
        want[h] = age < 0                              ? 2
                  : a.policy.kind == HS_REUSE_NONE     ? 1
                  : a.policy.kind == HS_REUSE_DRIFT    ? drift > a.policy.delta
                  : a.policy.kind == HS_REUSE_RELATIVE ? drift > a.policy.delta * norm
                  : hs_reuse_counts(a.policy.kind)     ? age + 1 >= a.policy.interval
                                                       : 0;
        wanting += want[h] != 0;
        put(t, &t->o[4], h, age < 0 ? 0 : drift, age < 0 ? 0 : mag, age < 0 ? 0 : mag);
    }
    for (int h = 0; h < a.heads; h++) {
        const int age = (int)t->o[2].data[h];
        const float share = (float)wanting / (float)a.heads;
        if (share < a.policy.gate_low && want[h] == 1) want[h] = 0;
        if (share > a.policy.gate_high && want[h] == 0) want[h] = 1;
        put(t, &t->o[3], h, want[h], 0, 0);
        put(t, &t->o[2], h, !want[h] ? age + 1 : age < 0 ? a.policy.begin_age : 0, 0, 0);
        for (int i = h * a.dim; i < (h + 1) * a.dim; i++)
            for (int k = 0; k < 2; k++) put(t, &t->o[k], i, t->o[want[h] ? 5 + k : k].data[i], 0, 0);
    }
}

const operation
    op_block_scores = {"block_scores",     list_block_scores,  setup_block_scores, call_block_scores,
                       plain_block_scores, flops_block_scores, bench_block_scores},
    op_centroid_scores = {"centroid_scores",
                          list_centroid_scores,
                          setup_centroid_scores,
                          call_centroid_scores,
                          plain_centroid_scores,
                          NULL,
                          NULL},
    op_select = {"select", list_select, setup_select, call_select, plain_select, NULL, NULL},
    op_mask_density =
        {"mask_density", list_mask_density, setup_mask_density, call_mask_density, plain_mask_density, NULL, NULL},
    op_block_means = {"block_means", list_block_means, setup_block_means, call_block_means, plain_block_means, NULL,
                      NULL},
    op_reuse = {"reuse", list_reuse, setup_reuse, call_reuse, plain_reuse, NULL, NULL};
