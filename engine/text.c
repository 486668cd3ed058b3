/* UMT5 encoder. spec wan.md 2.4: pre-norm blocks, no 1/sqrt(d), a relative position bias in every layer, gated GELU.
 * The residual stream is F32 (values grow large), operands have the device's act type. */
#include "text.h"
#include "stream.h"

#include <math.h>
#include <string.h>

typedef struct layer {
    hs_weight *qkv, *o, *wi, *wo;
    hs_buf norm1, norm2;
    float *bias; /* host [buckets, heads]: expanded to distances for every prompt length */
} layer;

struct hs_text {
    const hs_config *c;
    hs_device *dev;
    hs_buf embed; /* [vocab, d] act or F32 */
    hs_buf final_norm;
    layer *layers;
    hs_stream *stream; /* group i: layer i; NULL: all layers are on the device */
    /* activations for HS_TEXT_LEN rows */
    hs_buf ids, x, y, qkv, att, ab, hid, rel;
    float *rel_host; /* [heads, 2*HS_TEXT_LEN - 1] */
};

/* T5's bidirectional bucket of the distance key - query; the logarithm in float32 as in the reference. */
static int bucket(int delta, int buckets, int max_distance) {
    int half = buckets / 2, exact = half / 2, a = delta < 0 ? -delta : delta, b = a;
    if (a >= exact) {
        b = exact +
            (int)(logf((float)a / (float)exact) / logf((float)max_distance / (float)exact) * (float)(half - exact));
        if (b > half - 1) b = half - 1;
    }
    return (delta > 0 ? half : 0) + b;
}

static int bind_embedding(const hs_config *c, hs_st *st, hs_device *dev, hs_buf *ret, hs_err *err) {
    const hs_st_tensor *t, *alias;
    int64_t shape[] = {c->t_vocab, c->t_dim};
    int r = hs_st_get(st, "shared.weight", 2, shape, &t, err);
    if (r) return r;
    /* some files store the same matrix a second time under this name */
    if (hs_st_find(st, "encoder.embed_tokens.weight") &&
        (r = hs_st_get(st, "encoder.embed_tokens.weight", 2, shape, &alias, err)))
        return r;
    if (!dev) return 0;
    hs_st_expect(st, t);
    if ((r = hs_device_alloc(dev, hs_device_act(dev), t->numel, "text embedding", ret, err))) return r;
    /* the largest tensor of all (2 GB in 16 bits): in pieces, so that the file's pages do not pile up */
    enum { CHUNK = 1 << 20, RELEASE = 64 };
    const int as_it_is = t->dtype == ret->type && t->scale == 1;
    float *f = as_it_is ? NULL : hs_alloc(CHUNK * sizeof *f);
    char *conv = as_it_is ? NULL : hs_alloc(CHUNK * sizeof *f);
    if (!as_it_is && (!f || !conv)) r = hs_fail(err, HS_ENOMEM, "no memory for the text embedding");
    for (int64_t i = 0; i < t->numel && !r; i += CHUNK) {
        const int64_t n = t->numel - i < CHUNK ? t->numel - i : CHUNK;
        if (!as_it_is) {
            hs_st_floats(t, i, n, f);
            hs_from_f32(conv, ret->type, f, n);
        }
        hs_upload(dev, hs_buf_at(*ret, i, n),
                  as_it_is ? (const char *)t->data + i * (int64_t)hs_dtype_size(t->dtype) : conv);
        if (i / CHUNK % RELEASE == RELEASE - 1) hs_st_release(st, t);
    }
    hs_st_release(st, t);
    hs_free(f);
    hs_free(conv);
    return r;
}

static int bind_layer(const hs_config *c, hs_st *st, hs_device *dev, int i, layer *l, hs_err *err) {
    int64_t inner = (int64_t)c->t_heads * c->t_dkv, n = (int64_t)c->t_buckets * c->t_heads;
    int r;
#define P "encoder.block.%d.layer."
    if ((r = hs_bind_vector(st, dev, c->t_dim, &l->norm1, err, P "0.layer_norm.weight", i)) ||
        (r = hs_bind_stacked(st, dev, 3, (const char *const[]){"q", "k", "v"}, (int64_t[]){inner, inner, inner},
                             c->t_dim, 0, &l->qkv, err, P "0.SelfAttention.", i)) ||
        (r = hs_bind_linear(st, dev, c->t_dim, inner, 0, 0, &l->o, err, P "0.SelfAttention.o", i)) ||
        (r = hs_bind_vector(st, dev, c->t_dim, &l->norm2, err, P "1.layer_norm.weight", i)) ||
        (r = hs_bind_stacked(st, dev, 2, (const char *const[]){"wi_0", "wi_1"}, (int64_t[]){c->t_ff, c->t_ff}, c->t_dim,
                             0, &l->wi, err, P "1.DenseReluDense.", i)) ||
        (r = hs_bind_linear(st, dev, c->t_dim, c->t_ff, 0, 0, &l->wo, err, P "1.DenseReluDense.wo", i)))
        return r;
    hs_buf bias = HS_NOBUF;
    if ((r = hs_bind_vector(st, dev, n, &bias, err, P "0.SelfAttention.relative_attention_bias.weight", i)) || !dev)
        return r;
#undef P
    if ((l->bias = hs_alloc((size_t)n * sizeof *l->bias)))
        hs_download(dev, l->bias, bias);
    else
        r = hs_fail(err, HS_ENOMEM, "no memory for the position bias of text layer %d", i);
    hs_device_free(dev, bias);
    return r;
}

/* The activations, each once. */
typedef struct plan_row {
    size_t member;
    hs_dtype type;
    int64_t n;
} plan_row;
enum { PLAN_ROWS = 8 };

static void plan(const hs_config *c, hs_dtype act, plan_row ret[PLAN_ROWS]) {
    const int64_t inner = (int64_t)c->t_heads * c->t_dkv, n = HS_TEXT_LEN;
#define ROW(m, type, n)                                                                                                \
    { offsetof(hs_text, m), type, n }
    const plan_row rows[PLAN_ROWS] = {
        ROW(ids, HS_I32, n),        ROW(x, HS_F32, n * c->t_dim),
        ROW(y, act, n * c->t_dim),  ROW(qkv, act, n * 3 * inner),
        ROW(att, act, n * inner),   ROW(ab, act, n * 2 * c->t_ff),
        ROW(hid, act, n * c->t_ff), ROW(rel, HS_F32, (int64_t)c->t_heads * (2 * HS_TEXT_LEN - 1))};
#undef ROW
    memcpy(ret, rows, sizeof rows);
}

int64_t hs_text_bytes(const hs_config *c, hs_dtype act, int64_t *ret_layer) {
    const int64_t inner = (int64_t)c->t_heads * c->t_dkv, size = (int64_t)hs_dtype_size(act), d = c->t_dim;
    int64_t rest = (int64_t)c->t_vocab * d * size + (2 * c->t_layers + 1) * d * 4;
    plan_row rows[PLAN_ROWS];
    plan(c, act, rows);
    for (int i = 0; i < PLAN_ROWS; i++) rest += rows[i].n * (int64_t)hs_dtype_size(rows[i].type);
    *ret_layer =
        (4 * inner * d + 3 * (int64_t)c->t_ff * d) * size + (3 * inner + 2 * d + 2 * (int64_t)c->t_ff) * (size + 4);
    return rest;
}

static int new_activations(hs_text *t, hs_err *err) {
    plan_row rows[PLAN_ROWS];
    plan(t->c, hs_device_act(t->dev), rows);
    for (int i = 0; i < PLAN_ROWS; i++) {
        int r = hs_device_alloc(t->dev, rows[i].type, rows[i].n, "text activations",
                                (hs_buf *)(void *)((char *)t + rows[i].member), err);
        if (r) return r;
    }
    if (!(t->rel_host = hs_alloc((size_t)t->rel.n * sizeof *t->rel_host)))
        return hs_fail(err, HS_ENOMEM, "no memory for the text encoder");
    return 0;
}

static int stream_layer(hs_text *t, int i, hs_err *err) {
    const layer *l = &t->layers[i];
    return t->stream ? hs_stream_add(t->stream, i, 4, (hs_weight *const[]){l->qkv, l->o, l->wi, l->wo}, err) : 0;
}

int hs_text_load(const hs_config *c, hs_st *st, hs_device *dev, int streamed, hs_text **ret, hs_err *err) {
    hs_text *t = hs_calloc(1, sizeof *t);
    int r;
    if (!t || !(t->layers = hs_calloc((size_t)c->t_layers, sizeof *t->layers))) {
        hs_free(t);
        return hs_fail(err, HS_ENOMEM, "no memory for the text encoder");
    }
    t->c = c;
    t->dev = dev;
    if (dev && streamed && (r = hs_stream_new(dev, c->t_layers, c->t_layers, &t->stream, err))) goto out;
    if ((r = bind_embedding(c, st, dev, &t->embed, err))) goto out;
    for (int i = 0; i < c->t_layers; i++)
        if ((r = bind_layer(c, st, dev, i, &t->layers[i], err)) || (r = stream_layer(t, i, err))) goto out;
    if ((r = hs_bind_vector(st, dev, c->t_dim, &t->final_norm, err, "encoder.final_layer_norm.weight"))) goto out;
    const hs_st_tensor *extra = hs_st_unused(st);
    if (extra) {
        r = hs_fail(err, HS_EFORMAT, "%s: tensor %s is not part of a UMT5 encoder with %d layers", extra->file,
                    extra->name, c->t_layers);
        goto out;
    }
    if (dev && (r = new_activations(t, err))) goto out;
out:
    if (r || !dev)
        hs_text_free(t);
    else
        *ret = t;
    return r;
}

void hs_text_free(hs_text *t) {
    if (!t) return;
    for (int i = 0; t->layers && i < t->c->t_layers; i++) {
        layer *l = &t->layers[i];
        hs_free(l->bias);
        if (!t->dev) continue;
        hs_weight *w[] = {l->qkv, l->o, l->wi, l->wo};
        for (int k = 0; k < 4; k++) hs_weight_free(t->dev, w[k]);
        hs_device_free(t->dev, l->norm1);
        hs_device_free(t->dev, l->norm2);
    }
    hs_buf all[] = {t->embed, t->final_norm, t->ids, t->x, t->y, t->qkv, t->att, t->ab, t->hid, t->rel};
    for (size_t i = 0; t->dev && i < sizeof all / sizeof *all; i++) hs_device_free(t->dev, all[i]);
    hs_stream_free(t->stream);
    hs_free(t->rel_host);
    hs_free(t->layers);
    hs_free(t);
}

int hs_text_encode(hs_text *t, const int32_t *ids, int n, hs_buf rows, const hs_tap *tap, hs_err *err) {
    const hs_config *c = t->c;
    int64_t d = c->t_dim, inner = (int64_t)c->t_heads * c->t_dkv, ff = c->t_ff;
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= c->t_vocab)
            return hs_fail(err, HS_EFORMAT,
                           "token id %d: the text encoder knows 0 to %d; tokenizer and text encoder do not match",
                           (int)ids[i], c->t_vocab - 1);
    hs_upload(t->dev, hs_buf_at(t->ids, 0, n), ids);
    hs_buf x = hs_buf_at(t->x, 0, n * d), y = hs_buf_at(t->y, 0, n * d), qkv = hs_buf_at(t->qkv, 0, n * 3 * inner),
           att = hs_buf_at(t->att, 0, n * inner), ab = hs_buf_at(t->ab, 0, n * 2 * ff),
           hid = hs_buf_at(t->hid, 0, n * ff), rel = hs_buf_at(t->rel, 0, (int64_t)c->t_heads * (2 * n - 1));
    hs_op_gather_rows(t->dev, t->embed, hs_buf_at(t->ids, 0, n), n, d, x);
    for (int i = 0; i < c->t_layers; i++) {
        const layer *l = &t->layers[i];
        if (t->stream) hs_stream_need(t->stream, i);
        for (int h = 0; h < c->t_heads; h++)
            for (int delta = 1 - n; delta < n; delta++)
                t->rel_host[h * (2 * n - 1) + delta + n - 1] =
                    l->bias[bucket(delta, c->t_buckets, c->t_max_distance) * c->t_heads + h];
        hs_upload(t->dev, rel, t->rel_host);

        hs_op_norm(t->dev, HS_NORM_RMS, x, n, d, l->norm1, HS_NOBUF, c->t_eps, y);
        hs_op_linear(t->dev, &(hs_linear){.x = y, .y = qkv, .w = l->qkv, .rows = n});
        hs_op_attention(t->dev, &(hs_attention){.q = qkv,
                                                .k = hs_buf_at(qkv, inner, qkv.n - inner),
                                                .v = hs_buf_at(qkv, 2 * inner, qkv.n - 2 * inner),
                                                .out = att,
                                                .ld_q = 3 * inner,
                                                .ld_k = 3 * inner,
                                                .ld_v = 3 * inner,
                                                .ld_out = inner,
                                                .len_q = n,
                                                .len_k = n,
                                                .heads = c->t_heads,
                                                .head_dim = c->t_dkv,
                                                .scale = 1,
                                                .rel_bias = rel});
        hs_op_linear(t->dev, &(hs_linear){.x = att, .y = x, .w = l->o, .rows = n, .residual = 1});

        hs_op_norm(t->dev, HS_NORM_RMS, x, n, d, l->norm2, HS_NOBUF, c->t_eps, y);
        hs_op_linear(t->dev, &(hs_linear){.x = y, .y = ab, .w = l->wi, .rows = n});
        hs_op_gated_gelu(t->dev, ab, n, ff, hid);
        hs_op_linear(t->dev, &(hs_linear){.x = hid, .y = x, .w = l->wo, .rows = n, .residual = 1});
    }
    hs_op_norm(t->dev, HS_NORM_RMS, x, n, d, t->final_norm, HS_NOBUF, c->t_eps, rows);
    HS_TAP(tap, t->dev, "text.rows", rows, n, d);
    return hs_device_check(t->dev, err);
}
