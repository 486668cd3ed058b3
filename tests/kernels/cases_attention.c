/* Cases of dense attention: ragged lengths, head sizes, stacked operands, logit extras, wide spreads. */
#include "check.h"
#include <math.h>
#include <stdlib.h>

static void list(void) {
    static const int lengths[] = {1, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200};
    static const int dims[] = {32, 64, 96, 128, 384};
    for (int i = 0; i < 12; i++) {
        emit("q=17 k=%d heads=2 D=64 stacked=0", lengths[i]);
        emit("q=%d k=65 heads=1 D=128 stacked=0", lengths[i]);
        emit("q=%d k=%d heads=2 D=128 stacked=1", lengths[i], lengths[i]);
    }
    for (int i = 0; i < 5; i++)
        for (int heads = 1; heads <= 3; heads++)
            emit("q=%d k=%d heads=%d D=%d stacked=%d pad=%d", 33 + 7 * i, i % 2 ? 33 + 7 * i : 50, heads, dims[i],
                 i % 2, heads == 2 ? 8 : 0);
    for (int i = 0; i < 12; i += 3) {
        emit("q=65 k=%d heads=2 D=128 bonus=6", lengths[i]); /* ln(512 - n) of n real text rows */
        emit("q=%d k=%d heads=3 D=64 rel=1 scale=1", lengths[i], lengths[i]);
        emit("q=%d k=33 heads=2 D=32 rel=1 bonus=3", lengths[i]);
        emit("q=64 k=%d heads=1 D=64 spread=20", lengths[i + 1]); /* logits to +-60 and beyond */
        emit("q=%d k=129 heads=2 D=128 outlier=1 stacked=0", lengths[i + 2]);
    }
    emit("q=200 k=200 heads=3 D=128 stacked=1 spread=20");
    emit("q=129 k=200 heads=1 D=384 stacked=0 spread=20");
    emit("q=50 k=70 heads=3 D=20 pad=4"); /* head sizes and rows that vector units and tensor cores do not like */
    emit("q=33 k=90 heads=1 D=400 stacked=0");
    emit("q=33 k=70 heads=2 D=200 rel=1 bonus=2");
    emit("q=65 k=129 heads=2 D=128 equal=1"); /* every logit the same: a plain mean */
    emit("q=1100 k=150 heads=40 D=128 stacked=0 many=1");
    emit("q=9 k=200 heads=2 D=64 rising=10"); /* the running maximum changes with every key block */
    for (int i = 0; i < 3; i++) {             /* by 65, 26 and 261 powers of two in 128 keys, for some queries alone */
        static const int rising[] = {10, 4, 40};
        emit("q=9 k=700 heads=2 D=128 rising=%d stacked=0", rising[i]);
        emit("q=700 k=%d heads=3 D=128 rising=%d stacked=0", 500 + i, rising[i]);
    }
    emit("q=1100 k=300 heads=40 D=128 rising=40 stacked=0 many=1");
}

enum { RESULT, REL, Q, K, V, QKV = Q }; /* operands; stacked: q, k and v lie side by side in QKV */

static void setup(test *t) {
    const int64_t q = get(t, "q"), k = get(t, "k"), heads = get(t, "heads"), width = heads * get(t, "D"),
                  ld = width + get(t, "pad");
    const double spread = get(t, "spread") ? (double)get(t, "spread") : get(t, "scale") ? 0.2 : 1.5;
    OPERAND(t, "out", OUT, ACT, 0, q, ld);
    OPERAND(t, "rel_bias", IN, F32, 2, heads, q + k - 1);
    if (get(t, "stacked")) {
        operand *x = OPERAND(t, "qkv", IN, ACT, 1, q, 3 * width + get(t, "pad"));
        for (int64_t i = 0; i < x->n; i++)
            if (i % x->dim[1] < width) x->data[i] = to_type(t, ACT, spread * x->data[i]);
    } else {
        operand *x = OPERAND(t, "q", IN, ACT, spread, q, ld), *y = OPERAND(t, "k", IN, ACT, 1, k, ld);
        for (int64_t i = 0; i < ld && get(t, "outlier"); i++) { /* one query and one key far from the rest */
            x->data[q / 2 * ld + i] = to_type(t, ACT, 12.0 * x->data[q / 2 * ld + i]);
            y->data[k / 3 * ld + i] = to_type(t, ACT, 5.0 * y->data[k / 3 * ld + i]);
        }
        for (int64_t i = 0; i < x->n && (get(t, "equal") || get(t, "rising")); i++)
            x->data[i] = !get(t, "rising") ? 0 : i / ld / 128 % 3 == 0 && i / ld % 3 == 0 ? 0.5f : 0.0078125f;
        for (int64_t i = 0; i < y->n && get(t, "rising"); i++)
            y->data[i] = to_type(t, ACT, (double)(i / ld) / 160 * (double)get(t, "rising") - 6);
        OPERAND(t, "v", IN, ACT, 1, k, ld + 8);
    }
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
                      .scale = get(t, "scale") ? (float)get(t, "scale") : 1 / sqrtf((float)get(t, "D")),
                      .last_key_bonus = (float)get(t, "bonus"),
                      .rel_bias = get(t, "rel") ? b[REL] : HS_NOBUF};
    if (get(t, "stacked")) {
        a.k = hs_buf_at(b[QKV], width, b[QKV].n - width);
        a.v = hs_buf_at(b[QKV], 2 * width, b[QKV].n - 2 * width);
        a.ld_q = a.ld_k = a.ld_v = 3 * width + get(t, "pad");
    }
    return a;
}

static void call(const test *t, const side *s) {
    const hs_attention a = view(t, s->b);
    hs_op_attention(s->dev, &a);
}

/* One row: fp32 logits, fp32 exponentials, P rounded to the act type before it meets V. */
static void plain_row(const test *t, const hs_attention *a, operand *out, int h, int64_t i, float *s) {
    const int64_t col = (int64_t)h * a->head_dim;
    const float *q = (const float *)a->q.p + i * a->ld_q + col;
    float max = -INFINITY, total = 0;
    double largest = 0; /* of the sums of magnitudes behind a logit */
    for (int64_t j = 0; j < a->len_k; j++) {
        const float *k = (const float *)a->k.p + j * a->ld_k + col;
        float sum = 0, extra = j == a->len_k - 1 ? a->last_key_bonus : 0;
        double mag = 0;
        for (int c = 0; c < a->head_dim; c++) {
            sum += q[c] * k[c];
            mag += fabs((double)q[c] * k[c]);
        }
        if (a->rel_bias.p)
            extra += ((const float *)a->rel_bias.p)[h * (a->len_q + a->len_k - 1) + (j - i) + a->len_q - 1];
        s[j] = sum * a->scale + extra;
        largest = fmax(largest, mag * a->scale + fabs((double)extra));
        max = fmaxf(max, s[j]);
    }
    for (int64_t j = 0; j < a->len_k; j++) {
        s[j] = expf(s[j] - max);
        total += s[j];
    }
    for (int c = 0; c < a->head_dim; c++) {
        float sum = 0;
        double mag = 0;
        for (int64_t j = 0; j < a->len_k; j++) {
            const float v = ((const float *)a->v.p)[j * a->ld_v + col + c];
            sum += to_type(t, ACT, s[j]) * v;
            mag += fabs((double)s[j] * v);
        }
        put(t, out, i * a->ld_out + col + c, sum / total, mag / total, mag / total * (1 + largest));
    }
}

static void plain(test *t) {
    hs_buf b[MAX_OPERANDS];
    for (int k = 0; k < t->count; k++) b[k] = (hs_buf){t->o[k].data, HS_F32, t->o[k].n};
    const hs_attention a = view(t, b);
    float *s = need_memory((size_t)a.len_k, sizeof *s);
    for (int h = 0; h < a.heads; h++)
        for (int64_t i = 0; i < a.len_q; i++) plain_row(t, &a, &t->o[RESULT], h, i, s);
    free(s);
}

static double flops(const test *t) {
    return 4.0 * (double)get(t, "q") * (double)get(t, "k") * (double)get(t, "heads") * (double)get(t, "D");
}

/* Demo model: self, cross (24 words), text; VAE middle at 32 x 32; 1.3B heads at 4096 tokens. */
static const char *const bench[] = {
    "attention q=2304 k=2304 heads=3 D=128 stacked=1",          "attention q=2304 k=25 heads=3 D=128 bonus=6",
    "attention q=32 k=32 heads=6 D=64 stacked=1 rel=1 scale=1", "attention q=1024 k=1024 heads=1 D=96 stacked=1",
    "attention q=4096 k=4096 heads=2 D=128 stacked=1",          0};

const operation op_attention = {"attention", list, setup, call, plain, flops, bench};
