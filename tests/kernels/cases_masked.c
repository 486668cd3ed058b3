/* Cases of attention under a block mask: equal blocks and clusters, ragged ends, dense heads, rows that keep nothing,
 * empty clusters, and means that stand for what is dropped. */
#include "check.h"
#include "mask.h"
#include <math.h>
#include <stdlib.h>

static void list(void) {
    static const int lengths[] = {1, 63, 64, 65, 128, 129, 200, 300};
    for (int i = 0; i < 8; i++) {
        emit("q=%d k=%d heads=2 D=128 block=64 keep=50 stacked=1", lengths[i], lengths[i]);
        emit("q=%d k=%d heads=3 D=64 block=128 keep=40 stacked=1 dense=2", lengths[i], lengths[i]);
        emit("q=%d k=%d heads=2 D=128 block=64 keep=30 stacked=1 comp=1", lengths[i], lengths[i]);
        emit("q=%d k=%d heads=2 D=64 rows=5 cols=9 keep=40 stacked=1", lengths[i], lengths[i]);
    }
    emit("q=200 k=200 heads=2 D=128 block=64 keep=0 stacked=1");          /* nothing kept: zeros */
    emit("q=200 k=200 heads=2 D=128 block=64 keep=0 stacked=1 comp=1");   /* means alone */
    emit("q=200 k=200 heads=2 D=128 block=64 keep=100 stacked=1 comp=1"); /* all kept: means do not count */
    emit("q=130 k=260 heads=2 D=96 block=128 keep=50");
    emit("q=130 k=70 heads=1 D=32 block=64 keep=60 bonus=3 pad=8");
    emit("q=200 k=200 heads=3 D=128 rows=4 cols=40 keep=30 stacked=1 dense=5");
    emit("q=20 k=30 heads=2 D=64 rows=40 cols=50 keep=30 pad=8"); /* more clusters than tokens: empty ones */
    for (int i = 0; i < 3; i++) { /* clusters of the sizes below: around a panel, two of them, none, one */
        static const int keep[] = {15, 40, 85};
        emit("q=164 k=246 heads=2 D=128 rows=12 cols=18 sizes=1 keep=%d", keep[i]);
        emit("q=246 k=984 heads=2 D=96 rows=18 cols=72 sizes=2 keep=%d stacked=0", keep[i]);
        emit("q=410 k=410 heads=1 D=64 rows=30 cols=30 sizes=4 keep=%d stacked=1 bonus=3", keep[i]);
    }
    emit("q=500 k=1200 heads=2 D=128 rows=30 cols=40 keep=70"); /* columns a little wider than a panel, most of them */
    emit("q=500 k=300 heads=2 D=128 rows=2 cols=30 keep=40");   /* clusters of several tiles */
    emit("q=300 k=300 heads=2 D=128 block=256 keep=60 stacked=1 comp=1");
    emit("q=100 k=2100 heads=1 D=64 block=16 keep=30"); /* many words of bits */
    emit("q=70 k=90 heads=2 D=20 block=64 keep=50 comp=1");
    emit("q=130 k=200 heads=1 D=384 block=128 keep=60 comp=1");
    emit("q=300 k=300 heads=1 D=128 block=64 keep=40 stacked=1 spread=20");
    emit("q=300 k=300 heads=1 D=128 rows=7 cols=70 keep=40 stacked=1 spread=20 bonus=2");
    /* tiles and steps of 128 and of 64 of kernels that keep several under way; more tiles than processors; the last
     * block kept or not; columns of several steps; bits of several words */
    emit("q=500 k=500 heads=3 D=128 block=128 keep=40 stacked=1 dense=2");
    emit("q=600 k=600 heads=2 D=128 block=256 keep=60 stacked=1");
    emit("q=400 k=650 heads=2 D=128 block=192 keep=50");
    emit("q=257 k=640 heads=4 D=128 block=128 keep=15");
    emit("q=300 k=300 heads=2 D=128 block=128 keep=0 stacked=1");
    emit("q=130 k=300 heads=2 D=128 block=128 keep=60 bonus=3 pad=8");
    emit("q=130 k=300 heads=2 D=128 block=64 keep=60 bonus=3 pad=8");
    emit("q=1450 k=100 heads=12 D=128 block=64 keep=35 many=1");
    emit("q=1500 k=130 heads=12 D=128 block=128 keep=40 many=1");
    emit("q=130 k=4300 heads=1 D=128 block=128 keep=30 spread=20");
    emit("q=70 k=2200 heads=2 D=128 block=64 keep=30");
    emit("q=500 k=700 heads=3 D=128 rows=9 cols=60 keep=35 dense=2");
    emit("q=130 k=2300 heads=2 D=128 rows=3 cols=1100 keep=30");
    emit("q=900 k=150 heads=12 D=128 rows=13 cols=40 keep=40 spread=20 many=1");
    emit("q=200 k=700 heads=2 D=128 rows=9 cols=7 keep=0");
    /* tiles whose rows, or whose keys, are shared by two, of many steps; more tiles than are put in order */
    emit("q=300 k=1500 heads=2 D=128 rows=2 cols=90 keep=50 dense=2");
    emit("q=300 k=1500 heads=2 D=128 rows=2 cols=90 keep=50 dense=2 spread=20");
    emit("q=150 k=100 heads=2 D=128 rows=4200 cols=4 keep=60");
    for (int i = 0; i < 4; i++) { /* two rows of a mask side by side that have little in common, or one alone */
        static const int keep[] = {4, 12, 35, 90};
        emit("q=640 k=2500 heads=3 D=128 block=64 keep=%d dense=2", keep[i]);
        emit("q=700 k=1300 heads=2 D=128 block=192 keep=%d bonus=3", keep[i]);
        emit("q=64 k=%d heads=2 D=128 block=64 keep=%d", 900 + 64 * i, keep[i]);
    }
    for (int i = 0; i < 2; i++) { /* logits that leave behind whatever came before, for some queries alone */
        static const int steep[] = {30, 120};
        emit("q=600 k=900 heads=3 D=128 block=128 keep=60 steep=%d dense=2", steep[i]);
        emit("q=600 k=900 heads=3 D=128 block=64 keep=60 steep=%d dense=2", steep[i]);
        emit("q=600 k=900 heads=3 D=128 rows=6 cols=45 keep=60 steep=%d dense=2", steep[i]);
        emit("q=300 k=1500 heads=2 D=128 rows=2 cols=90 keep=50 steep=%d", steep[i]);
    }
}

enum { RESULT, BITS, DENSE, Q_ORDER, K_ORDER, Q_START, K_START, COMP_K, COMP_V, Q, K, V, QKV = Q };

/* The shape that a line asks for; buffers are left empty. */
static hs_mask shape(const test *t) {
    hs_mask m = {
        .heads = (int)get(t, "heads"), .block = (int)get(t, "block"), .len_q = get(t, "q"), .len_k = get(t, "k")};
    m.rows = m.block ? (int)((m.len_q + m.block - 1) / m.block) : (int)get(t, "rows");
    m.cols = m.block ? (int)((m.len_k + m.block - 1) / m.block) : (int)get(t, "cols");
    m.words = hs_mask_words(m.cols);
    return m;
}

/* A permutation of len tokens cut into n groups, some of them empty: where noise puts the cuts, or (`sizes`) of the
 * sizes below in turn. */
static void fill_groups(const test *t, int stream, operand *order, operand *start, int heads, int64_t len, int n) {
    static const int sizes[] = {0, 1, 15, 16, 17, 33};
    for (int h = 0; h < heads; h++) {
        float *o = order->data + h * len, *s = start->data + (int64_t)h * (n + 1);
        for (int64_t i = 0; i < len; i++) o[i] = (float)i;
        for (int64_t i = len - 1; i > 0; i--) {
            const int64_t j = (int64_t)(fabs(noise(t, stream, h * len + i)) * 1e6) % (i + 1);
            const float x = o[i];
            o[i] = o[j];
            o[j] = x;
        }
        s[0] = 0;
        for (int c = 1; c < n; c++) {
            if (get(t, "sizes")) {
                s[c] = (float)fmin((double)len, (double)s[c - 1] + sizes[(c + h + get(t, "sizes")) % 6]);
                continue;
            }
            const double at = (double)len * c / n + noise(t, stream + 1, (int64_t)h * n + c) * (double)len / n;
            s[c] = (float)fmin((double)len, fmax(s[c - 1], floor(at)));
        }
        s[n] = (float)len;
    }
}

/* Keys are longer the later they come in their head's order, up to `steep` times; of queries, two of three blocks of
 * 128 in theirs are short. */
static void steepen(const test *t, const hs_mask *m, const operand *order, operand *x, int64_t len, int keys) {
    const int64_t D = get(t, "D"), ld = x->dim[1];
    for (int h = 0; h < m->heads; h++)
        for (int64_t p = 0; p < len; p++) {
            const int64_t token = m->block ? p : (int64_t)order->data[h * len + p];
            const double by = keys               ? 1 + (double)get(t, "steep") * (double)p / (double)len
                              : p / 128 % 3 == 0 ? 1
                                                 : 0.01;
            for (int64_t i = token * ld + h * D; i < token * ld + (h + 1) * D; i++)
                x->data[i] = to_type(t, ACT, by * x->data[i]);
        }
}

static void setup(test *t) {
    const hs_mask m = shape(t);
    const int64_t D = get(t, "D"), width = m.heads * D, ld = width + get(t, "pad");
    const double spread = get(t, "spread") ? (double)get(t, "spread") : 1.5;
    OPERAND(t, "out", OUT, ACT, 0, m.len_q, ld);
    operand *bits = OPERAND(t, "bits", IN, U8, 0, m.heads, m.rows, m.words * 4);
    operand *dense = OPERAND(t, "dense", IN, U8, 0, m.heads);
    operand *qo = OPERAND(t, "q_order", IN, I32, 0, m.heads, m.len_q),
            *ko = OPERAND(t, "k_order", IN, I32, 0, m.heads, m.len_k);
    operand *qs = OPERAND(t, "q_start", IN, I32, 0, m.heads, m.rows + 1);
    operand *ks = OPERAND(t, "k_start", IN, I32, 0, m.heads, m.cols + 1);
    OPERAND(t, "comp_k", IN, F32, 1, m.heads, m.cols, D);
    OPERAND(t, "comp_v", IN, F32, 1, m.heads, m.cols, D);
    for (int64_t i = 0; i < bits->n; i++) {
        const int64_t row = i / (m.words * 4), byte = i % (m.words * 4);
        int x = 0;
        for (int b = 0; b < 8 && byte * 8 + b < m.cols; b++)
            x |= (fabs(noise(t, 50, row * m.cols + byte * 8 + b)) < 0.0135 * (double)get(t, "keep")) << b;
        if (get(t, "keep") == 100)
            x = byte * 8 + 8 <= m.cols ? 255 : byte * 8 < m.cols ? (1 << (m.cols - byte * 8)) - 1 : 0;
        bits->data[i] = (float)x;
    }
    for (int h = 0; h < m.heads; h++) dense->data[h] = (float)(get(t, "dense") >> h & 1);
    fill_groups(t, 60, qo, qs, m.heads, m.len_q, m.rows);
    fill_groups(t, 70, ko, ks, m.heads, m.len_k, m.cols);
    if (get(t, "stacked")) {
        operand *x = OPERAND(t, "qkv", IN, ACT, 1, m.len_q, 3 * width);
        for (int64_t i = 0; i < x->n; i++)
            if (i % x->dim[1] < width) x->data[i] = to_type(t, ACT, spread * x->data[i]);
        return;
    }
    operand *q = OPERAND(t, "q", IN, ACT, spread, m.len_q, ld), *k = OPERAND(t, "k", IN, ACT, 1, m.len_k, ld);
    if (get(t, "steep")) {
        steepen(t, &m, qo, q, m.len_q, 0);
        steepen(t, &m, ko, k, m.len_k, 1);
    }
    OPERAND(t, "v", IN, ACT, 1, m.len_k, ld + 8);
}

static hs_attention view(const test *t, const hs_buf *b) {
    const int64_t width = get(t, "heads") * get(t, "D"), ld = width + get(t, "pad");
    hs_attention a = {.q = b[Q],
                      .k = b[K],
                      .v = b[V],
                      .out = b[RESULT],
                      .ld_q = ld,
                      .ld_k = ld,
                      .ld_v = ld + 8,
                      .ld_out = ld,
                      .len_q = get(t, "q"),
                      .len_k = get(t, "k"),
                      .heads = (int)get(t, "heads"),
                      .head_dim = (int)get(t, "D"),
                      .scale = 1 / sqrtf((float)get(t, "D")),
                      .last_key_bonus = (float)get(t, "bonus"),
                      .comp_k = get(t, "comp") ? b[COMP_K] : HS_NOBUF,
                      .comp_v = get(t, "comp") ? b[COMP_V] : HS_NOBUF};
    if (get(t, "stacked")) {
        a.k = hs_buf_at(b[QKV], width, b[QKV].n - width);
        a.v = hs_buf_at(b[QKV], 2 * width, b[QKV].n - 2 * width);
        a.ld_q = a.ld_k = a.ld_v = 3 * width;
    }
    return a;
}

static void call(const test *t, const side *s) {
    hs_mask m = shape(t);
    hs_attention a = view(t, s->b);
    m.bits = (hs_buf){s->b[BITS].p, HS_I32, s->b[BITS].n / 4};
    m.dense = s->b[DENSE];
    if (!m.block) {
        m.q_order = s->b[Q_ORDER];
        m.k_order = s->b[K_ORDER];
        m.q_start = s->b[Q_START];
        m.k_start = s->b[K_START];
    }
    a.mask = &m;
    hs_op_attention(s->dev, &a);
}

/* Row or column of token i of head h. */
static int group_of(const test *t, const hs_mask *m, int which, int h, int64_t i) {
    const int64_t len = which == Q_ORDER ? m->len_q : m->len_k;
    const int n = which == Q_ORDER ? m->rows : m->cols;
    const float *order = t->o[which].data + h * len, *start = t->o[which + 2].data + (int64_t)h * (n + 1);
    if (m->block) return (int)(i / m->block);
    for (int c = 0; c < n; c++)
        for (int64_t p = (int64_t)start[c]; p < (int64_t)start[c + 1]; p++)
            if (order[p] == (float)i) return c;
    return -1;
}

static int is_kept(const test *t, const hs_mask *m, int h, int r, int c) {
    if (t->o[DENSE].data[h] != 0) return 1;
    return (int)t->o[BITS].data[((int64_t)h * m->rows + r) * m->words * 4 + c / 8] >> (c % 8) & 1;
}

/* One more key of the softmax: its logit and value are remembered. */
typedef struct keys {
    float *s;
    const float **v;
    int64_t n;
    float max;
    double largest; /* of the sums of magnitudes behind a logit */
} keys;

static void add_key(const test *t, keys *x, const float *q, const float *k, const float *v, int n, float scale,
                    float extra) {
    float sum = 0;
    double mag = 0;
    for (int c = 0; c < n; c++) {
        const float kc = to_type(t, ACT, k[c]);
        sum += q[c] * kc;
        mag += fabs((double)q[c] * kc);
    }
    x->s[x->n] = sum * scale + extra;
    x->v[x->n] = v;
    x->largest = fmax(x->largest, mag * scale + fabs((double)extra));
    x->max = fmaxf(x->max, x->s[x->n++]);
}

/* fp32 logits, fp32 exponentials, P and the means rounded to the act type before they meet. */
static void plain_row(const test *t, const hs_attention *a, const hs_mask *m, operand *out, int h, int64_t i,
                      const int *column, keys *x) {
    const int D = a->head_dim, r = group_of(t, m, Q_ORDER, h, i);
    const int64_t at = (int64_t)h * D;
    const float *q = (const float *)a->q.p + i * a->ld_q + at;
    *x = (keys){.s = x->s, .v = x->v, .max = -INFINITY};
    for (int64_t j = 0; j < a->len_k; j++)
        if (is_kept(t, m, h, r, column[j]))
            add_key(t, x, q, (const float *)a->k.p + j * a->ld_k + at, (const float *)a->v.p + j * a->ld_v + at, D,
                    a->scale, j == a->len_k - 1 ? a->last_key_bonus : 0);
    for (int c = 0; a->comp_k.p && c < m->cols; c++)
        if (!is_kept(t, m, h, r, c)) {
            const int64_t mean = ((int64_t)h * m->cols + c) * D, left = m->len_k - (int64_t)c * m->block;
            add_key(t, x, q, (const float *)a->comp_k.p + mean, (const float *)a->comp_v.p + mean, D, a->scale,
                    logf((float)(left < m->block ? left : m->block)));
        }
    float total = 0;
    for (int64_t k = 0; k < x->n; k++) total += x->s[k] = expf(x->s[k] - x->max);
    for (int c = 0; c < D; c++) {
        float sum = 0;
        double mag = 0;
        for (int64_t k = 0; k < x->n; k++) {
            const float v = to_type(t, ACT, x->v[k][c]);
            sum += to_type(t, ACT, x->s[k]) * v;
            mag += fabs((double)x->s[k] * v);
        }
        if (!x->n) total = 1;
        put(t, out, i * a->ld_out + at + c, sum / total, mag / total, mag / total * (1 + x->largest));
    }
}

static void plain(test *t) {
    hs_buf b[MAX_OPERANDS];
    for (int k = 0; k < t->count; k++) b[k] = (hs_buf){t->o[k].data, HS_F32, t->o[k].n};
    const hs_attention a = view(t, b);
    const hs_mask m = shape(t);
    const size_t most = (size_t)(a.len_k + m.cols);
    keys x = {.s = need_memory(most, sizeof *x.s), .v = need_memory(most, sizeof *x.v)};
    int *column = need_memory((size_t)a.len_k, sizeof *column);
    for (int h = 0; h < a.heads; h++) {
        for (int64_t j = 0; j < a.len_k; j++) column[j] = group_of(t, &m, K_ORDER, h, j);
        for (int64_t i = 0; i < a.len_q; i++) plain_row(t, &a, &m, &t->o[RESULT], h, i, column, &x);
    }
    free(x.s);
    free(x.v);
    free(column);
}

/* Of dense attention of this size: what a mask saves shows as a higher rate. */
static double flops(const test *t) {
    return 4.0 * (double)get(t, "q") * (double)get(t, "k") * (double)get(t, "heads") * (double)get(t, "D");
}

static const char *const bench[] = {"masked q=2304 k=2304 heads=3 D=128 stacked=1 block=64 keep=25",
                                    "masked q=2304 k=2304 heads=3 D=128 stacked=1 block=128 keep=25",
                                    "masked q=2304 k=2304 heads=3 D=128 stacked=1 block=128 keep=100",
                                    "masked q=2304 k=2304 heads=3 D=128 stacked=1 rows=16 cols=48 keep=25", 0};

const operation op_masked = {"masked", list, setup, call, plain, flops, bench};
