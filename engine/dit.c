/* The diffusion transformer, one forward. Reads like section 3 of spec wan.md: time path, patches, blocks, head.
 * Residual stream, modulation, time path and head in F32, operands of the big products in the device's act type. */
#include "dit.h"
#include "attn.h"
#include "stream.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2, MOD_ROWS };

typedef struct block {
    hs_weight *qkv, *o, *cross_q, *cross_kv, *cross_o, *up, *down;
    hs_buf gq, gk, cross_gq, cross_gk; /* RMS weights [d] of queries and keys */
    hs_buf norm_g, norm_b;             /* the affine LayerNorm before cross-attention [d] */
    hs_buf table;                      /* modulation [6, d] */
} block;

struct hs_dit {
    const hs_config *c;
    hs_device *dev;
    hs_weight *patch, *text1, *text2, *time1, *time2, *time_proj, *head;
    hs_buf head_table; /* [2, d] */
    block *blocks;
    int resident;      /* blocks on the device */
    hs_stream *stream; /* group i: block i without its text part; group layers + i: that. NULL: all are resident */
};

struct hs_dit_run {
    hs_dit *dit;
    hs_attn *attn; /* what self-attention does, and what it remembers from step to step */
    int f, h, w;
    int64_t n;       /* tokens */
    hs_buf room;     /* what the large buffers of a forward lie in, where it is this run's own */
    hs_buf rope;     /* [N, head_dim/2, 2] cos, sin */
    hs_buf patches;  /* [N, 4*max(in, out)] F32 */
    hs_buf x;        /* residual stream [N, d] F32 */
    hs_buf y;        /* [N, d] act: the normalised input of a product, then the result of attention */
    hs_buf wide;     /* [N, max(3d, ffn)] act: q, k, v, then the hidden rows of the feed forward part, at the
                        end the head's F32 rows [N, d]; none is needed while another is */
    hs_buf qkv, hid; /* views of wide: [N, 3d], [N, ffn] */
    hs_buf sinus, t1, e, es, e0; /* time path: [freq], [d], [d], silu(e) [d], [6d] F32 */
    hs_buf m;                    /* modulation of the current block [6, d] */
    hs_buf ctx_in, ctx_hid, ctx; /* text rows [512, text_dim] F32, MLP hidden and result [512, d] act */
    hs_buf kv[HS_BRANCH_COUNT];  /* cross-attention keys and values per branch [layers, 512, 2d] act */
    int n_ctx[HS_BRANCH_COUNT], n_pad[HS_BRANCH_COUNT]; /* keys held; padded rows that the last of them stands for */
    hs_buf kept[HS_BRANCH_COUNT]; /* the residual stream that enters layer kept_layer; HS_NOBUF until asked for */
    int kept_layer[HS_BRANCH_COUNT];
    hs_buf copy, mean; /* for token_means: [n, 3d] act, [d] F32; HS_NOBUF until asked for */
    float *sinus_host;
};

/* ---- weights -------------------------------------------------------------------------------------------------- */

static int bind_block(const hs_config *c, hs_st *st, hs_device *dev, int i, block *b, hs_err *err) {
    static const char *const qkv[] = {"to_q", "to_k", "to_v"}, *const kv[] = {"to_k", "to_v"};
    int64_t d = c->dim, f = c->ffn, ddd[] = {d, d, d};
    int r;
#define P "blocks.%d."
    if ((r = hs_bind_vector(st, dev, MOD_ROWS * d, &b->table, err, P "scale_shift_table", i)) ||
        (r = hs_bind_stacked(st, dev, 3, qkv, ddd, d, 1, &b->qkv, err, P "attn1.", i)) ||
        (r = hs_bind_vector(st, dev, d, &b->gq, err, P "attn1.norm_q.weight", i)) ||
        (r = hs_bind_vector(st, dev, d, &b->gk, err, P "attn1.norm_k.weight", i)) ||
        (r = hs_bind_linear(st, dev, d, d, 1, 0, &b->o, err, P "attn1.to_out.0", i)) ||
        (r = hs_bind_vector(st, dev, d, &b->norm_g, err, P "norm2.weight", i)) ||
        (r = hs_bind_vector(st, dev, d, &b->norm_b, err, P "norm2.bias", i)) ||
        (r = hs_bind_linear(st, dev, d, d, 1, 0, &b->cross_q, err, P "attn2.to_q", i)) ||
        (r = hs_bind_stacked(st, dev, 2, kv, ddd, d, 1, &b->cross_kv, err, P "attn2.", i)) ||
        (r = hs_bind_vector(st, dev, d, &b->cross_gq, err, P "attn2.norm_q.weight", i)) ||
        (r = hs_bind_vector(st, dev, d, &b->cross_gk, err, P "attn2.norm_k.weight", i)) ||
        (r = hs_bind_linear(st, dev, d, d, 1, 0, &b->cross_o, err, P "attn2.to_out.0", i)) ||
        (r = hs_bind_linear(st, dev, f, d, 1, 0, &b->up, err, P "ffn.net.0.proj", i)) ||
        (r = hs_bind_linear(st, dev, d, f, 1, 0, &b->down, err, P "ffn.net.2", i)))
        return r;
#undef P
    return 0;
}

/* Block i leaves the device if it is one of the streamed ones; they are spread evenly, so that each has the time of
 * several blocks to come. The text part of every block leaves, as it is used once per prompt. */
static int stream_block(hs_dit *m, int i, hs_err *err) {
    const block *b = &m->blocks[i];
    const int layers = m->c->layers, streamed = layers - m->resident;
    int r;
    if (!m->stream) return 0;
    if ((r = hs_stream_add(m->stream, layers + i, 1, (hs_weight *const[]){b->cross_kv}, err))) return r;
    if ((i + 1) * streamed / layers == i * streamed / layers) return 0;
    return hs_stream_add(m->stream, i, 6, (hs_weight *const[]){b->qkv, b->o, b->cross_q, b->cross_o, b->up, b->down},
                         err);
}

static void need_block(const hs_dit *m, int group) {
    if (m->stream) hs_stream_need(m->stream, group);
}

int hs_dit_resident(const hs_dit *m) {
    return m->resident;
}

hs_dit_bytes hs_dit_weight_bytes(const hs_config *c, hs_dtype act) {
    const int64_t d = c->dim, f = c->ffn, size = (int64_t)hs_dtype_size(act), bias = size + 4;
    hs_dit_bytes b = {.block = (6 * d * d + 2 * d * f) * size + (7 * d + f) * bias,
                      .text = 2 * d * d * size + 2 * d * bias,
                      .rest = c->layers * (MOD_ROWS + 6) * d * 4}; /* vectors of the blocks */
    b.rest += (d * c->text_dim + d * d) * size + 2 * d * bias;     /* text MLP; below, what is F32 everywhere */
    b.rest += (d * (4LL * c->in_channels + c->freq_dim + (MOD_ROWS + 1) * d + 4LL * c->out_channels) + 16 * d) * 4;
    return b;
}

int hs_dit_load(const hs_config *c, hs_st *st, hs_device *dev, int resident, hs_dit **ret, hs_err *err) {
    hs_dit *m = hs_calloc(1, sizeof *m);
    int64_t d = c->dim;
    int r;
    if (!m || !(m->blocks = hs_calloc((size_t)c->layers, sizeof *m->blocks))) {
        hs_free(m);
        return hs_fail(err, HS_ENOMEM, "no memory for the transformer");
    }
    m->c = c;
    m->dev = dev;
    m->resident = resident < 0 || resident > c->layers ? c->layers : resident;
    if (dev && m->resident < c->layers && !hs_stream_possible(dev)) {
        r = hs_fail(err, HS_ENOMEM, "%d of %d blocks of the transformer fit, and %s cannot stream the others", resident,
                    c->layers, hs_device_name(dev));
        goto out;
    }
    if (dev && m->resident < c->layers && (r = hs_stream_new(dev, 2 * c->layers, c->layers, &m->stream, err))) goto out;
#define E "condition_embedder."
    if ((r = hs_bind_patch(st, dev, d, c->in_channels, &m->patch, err)) ||
        (r = hs_bind_linear(st, dev, d, c->text_dim, 1, 0, &m->text1, err, E "text_embedder.linear_1")) ||
        (r = hs_bind_linear(st, dev, d, d, 1, 0, &m->text2, err, E "text_embedder.linear_2")) ||
        (r = hs_bind_linear(st, dev, d, c->freq_dim, 1, 1, &m->time1, err, E "time_embedder.linear_1")) ||
        (r = hs_bind_linear(st, dev, d, d, 1, 1, &m->time2, err, E "time_embedder.linear_2")) ||
        (r = hs_bind_linear(st, dev, MOD_ROWS * d, d, 1, 1, &m->time_proj, err, E "time_proj")) ||
        (r = hs_bind_linear(st, dev, 4 * c->out_channels, d, 1, 1, &m->head, err, "proj_out")) ||
        (r = hs_bind_vector(st, dev, 2 * d, &m->head_table, err, "scale_shift_table")))
        goto out;
#undef E
    for (int i = 0; i < c->layers; i++)
        if ((r = bind_block(c, st, dev, i, &m->blocks[i], err)) || (r = stream_block(m, i, err))) goto out;
    const hs_st_tensor *extra = hs_st_unused(st);
    if (extra)
        r = hs_fail(err, HS_EFORMAT, "%s: tensor %s is not part of a Wan2.1 text-to-video transformer with %d layers",
                    extra->file, extra->name, c->layers);
out:
    if (r || !dev)
        hs_dit_free(m);
    else
        *ret = m;
    return r;
}

void hs_dit_free(hs_dit *m) {
    if (!m) return;
    if (m->dev) {
        hs_weight *w[] = {m->patch, m->text1, m->text2, m->time1, m->time2, m->time_proj, m->head};
        for (size_t k = 0; k < sizeof w / sizeof *w; k++) hs_weight_free(m->dev, w[k]);
        hs_device_free(m->dev, m->head_table);
        for (int i = 0; i < m->c->layers; i++) {
            block *b = &m->blocks[i];
            hs_weight *bw[] = {b->qkv, b->o, b->cross_q, b->cross_kv, b->cross_o, b->up, b->down};
            hs_buf bv[] = {b->gq, b->gk, b->cross_gq, b->cross_gk, b->norm_g, b->norm_b, b->table};
            for (size_t k = 0; k < sizeof bw / sizeof *bw; k++) hs_weight_free(m->dev, bw[k]);
            for (size_t k = 0; k < sizeof bv / sizeof *bv; k++) hs_device_free(m->dev, bv[k]);
        }
    }
    hs_stream_free(m->stream);
    hs_free(m->blocks);
    hs_free(m);
}

/* ---- one size --------------------------------------------------------------------------------------------------- */

/* The activations, each once: what run_new allocates and run_bytes adds up. The first ones are only needed during a
 * forward and lie in the room that others may use between forwards. */
typedef struct plan_row {
    size_t member; /* offset of the hs_buf in hs_dit_run */
    hs_dtype type;
    int64_t n;
} plan_row;
enum { PLAN_ROWS = 16, ROOM_ROWS = 4, ALIGN = 256 };

static int64_t padded_bytes(const plan_row *row) {
    return (row->n * (int64_t)hs_dtype_size(row->type) + ALIGN - 1) / ALIGN * ALIGN;
}

static int plan(const hs_config *c, hs_dtype act, int f, int h, int w, plan_row *ret) {
    int64_t n = (int64_t)f * h * w, d = c->dim,
            ch = c->in_channels > c->out_channels ? c->in_channels : c->out_channels;
#define ROW(m, type, n) {offsetof(hs_dit_run, m), type, n}
    plan_row rows[] = {ROW(x, HS_F32, n * d),
                       ROW(y, act, n * d),
                       ROW(wide, act, n * (3 * d > c->ffn ? 3 * d : c->ffn)),
                       ROW(patches, HS_F32, n * 4 * ch),
                       ROW(rope, HS_F32, n * c->head_dim),
                       ROW(sinus, HS_F32, c->freq_dim),
                       ROW(t1, HS_F32, d),
                       ROW(e, HS_F32, d),
                       ROW(es, HS_F32, d),
                       ROW(e0, HS_F32, MOD_ROWS * d),
                       ROW(m, HS_F32, MOD_ROWS * d),
                       ROW(ctx_in, HS_F32, (int64_t)HS_TEXT_LEN * c->text_dim),
                       ROW(ctx_hid, act, HS_TEXT_LEN * d),
                       ROW(ctx, act, HS_TEXT_LEN * d),
                       ROW(kv[HS_BRANCH_COND], act, c->layers * HS_TEXT_LEN * 2 * d),
                       ROW(kv[HS_BRANCH_UNCOND], act, c->layers * HS_TEXT_LEN * 2 * d)};
#undef ROW
    _Static_assert(sizeof rows / sizeof *rows == PLAN_ROWS, "PLAN_ROWS");
    memcpy(ret, rows, sizeof rows);
    return PLAN_ROWS;
}

int64_t hs_dit_run_bytes(const hs_config *c, hs_dtype act, int f, int h, int w, int64_t *ret_room) {
    plan_row rows[PLAN_ROWS];
    int64_t room = 0, rest = 0;
    for (int i = 0, k = plan(c, act, f, h, w, rows); i < k; i++)
        *(i < ROOM_ROWS ? &room : &rest) += padded_bytes(&rows[i]);
    *ret_room = room;
    return rest;
}

/* Rotation angles, spec 3.3: pairs split over frame, row, column; each axis has its own frequencies, in double. */
static int make_rope(hs_dit_run *r, hs_err *err) {
    int hd = r->dit->c->head_dim, sp = 2 * (hd / 6), pairs[3] = {(hd - 2 * sp) / 2, sp / 2, sp / 2};
    float *tab = hs_alloc((size_t)r->rope.n * sizeof *tab), *p = tab;
    if (!tab) return hs_fail(err, HS_ENOMEM, "no memory for the rotation table");
    for (int t = 0; t < r->f; t++)
        for (int y = 0; y < r->h; y++)
            for (int x = 0; x < r->w; x++) {
                int pos[3] = {t, y, x};
                for (int axis = 0; axis < 3; axis++)
                    for (int j = 0; j < pairs[axis]; j++) {
                        double a = pos[axis] * pow(10000, -(double)j / pairs[axis]);
                        *p++ = (float)cos(a);
                        *p++ = (float)sin(a);
                    }
            }
    hs_upload(r->dit->dev, r->rope, tab);
    hs_free(tab);
    return 0;
}

static hs_buf *member(hs_dit_run *r, const plan_row *row) {
    return (hs_buf *)(void *)((char *)r + row->member);
}

/* The rows of the room, one behind the other in it. */
static int place_in_room(hs_dit_run *r, const plan_row *rows, hs_buf room, hs_err *err) {
    int64_t bytes = 0;
    int e = 0;
    for (int i = 0; i < ROOM_ROWS; i++) bytes += padded_bytes(&rows[i]);
    if (!room.p) {
        e = hs_device_alloc(r->dit->dev, HS_U8, bytes, "transformer activations", &r->room, err);
        room = r->room;
    } else if (room.n < bytes) {
        e = hs_fail(err, HS_EINVAL, "room for %lld bytes of transformer activations, %lld are needed",
                    (long long)room.n, (long long)bytes);
    }
    for (int64_t i = 0, at = 0; i < ROOM_ROWS && !e; at += padded_bytes(&rows[i++]))
        *member(r, &rows[i]) = (hs_buf){(char *)room.p + at, rows[i].type, rows[i].n};
    r->qkv = hs_buf_at(r->wide, 0, e ? 0 : r->n * 3 * r->dit->c->dim);
    r->hid = hs_buf_at(r->wide, 0, e ? 0 : r->n * r->dit->c->ffn);
    return e;
}

int hs_dit_run_new(hs_dit *m, int f, int h, int w, hs_buf room, hs_dit_run **ret, hs_err *err) {
    hs_dit_run *r = hs_calloc(1, sizeof *r);
    plan_row rows[PLAN_ROWS];
    int e = 0, k;
    if (!r) return hs_fail(err, HS_ENOMEM, "no memory for the transformer's activations");
    r->dit = m;
    r->f = f, r->h = h, r->w = w, r->n = (int64_t)f * h * w;
    k = plan(m->c, hs_device_act(m->dev), f, h, w, rows);
    e = place_in_room(r, rows, room, err);
    for (int i = ROOM_ROWS; i < k && !e; i++)
        e = hs_device_alloc(m->dev, rows[i].type, rows[i].n, "transformer activations", member(r, &rows[i]), err);
    if (!e && !(r->sinus_host = hs_alloc((size_t)m->c->freq_dim * sizeof *r->sinus_host)))
        e = hs_fail(err, HS_ENOMEM, "no memory for the time embedding");
    hs_attn_policy dense = hs_attn_policy_default(HS_DENSE);
    if (e || (e = make_rope(r, err)) || (e = hs_dit_run_attention(r, &dense, err))) {
        hs_dit_run_free(r);
        return e;
    }
    *ret = r;
    return 0;
}

int hs_dit_run_attention(hs_dit_run *r, const hs_attn_policy *p, hs_err *err) {
    const hs_config *c = r->dit->c;
    hs_attn *a;
    int e = hs_attn_new(r->dit->dev, p, c->layers, c->heads, c->head_dim, r->n, &a, err);
    if (e) return e;
    hs_attn_free(r->attn);
    r->attn = a;
    return 0;
}

hs_attn *hs_dit_run_attn(hs_dit_run *r) {
    return r->attn;
}

void hs_dit_run_free(hs_dit_run *r) {
    if (!r) return;
    hs_attn_free(r->attn);
    plan_row rows[PLAN_ROWS];
    for (int i = ROOM_ROWS, k = plan(r->dit->c, HS_F32, r->f, r->h, r->w, rows); i < k; i++)
        hs_device_free(r->dit->dev, *member(r, &rows[i]));
    hs_device_free(r->dit->dev, r->room);
    for (int b = 0; b < HS_BRANCH_COUNT; b++) hs_device_free(r->dit->dev, r->kept[b]);
    hs_device_free(r->dit->dev, r->copy);
    hs_device_free(r->dit->dev, r->mean);
    hs_free(r->sinus_host);
    hs_free(r);
}

/* ---- text: once per prompt ----------------------------------------------------------------------------------------
 */

static hs_buf layer_kv(const hs_dit_run *r, int branch, int layer) {
    int64_t size = (int64_t)HS_TEXT_LEN * 2 * r->dit->c->dim;
    return hs_buf_at(r->kv[branch], layer * size, r->n_ctx[branch] * 2 * (int64_t)r->dit->c->dim);
}

int hs_dit_set_text(hs_dit_run *r, int branch, hs_buf rows, int n, const hs_tap *tap, hs_err *err) {
    const hs_dit *m = r->dit;
    hs_device *dev = m->dev;
    int64_t d = m->c->dim, td = m->c->text_dim;
    if (n < 1 || n > HS_TEXT_LEN || rows.n != n * td)
        return hs_fail(err, HS_EINVAL, "%d text rows of %lld values; 1 to %d rows of %lld are possible", n,
                       (long long)rows.n, HS_TEXT_LEN, (long long)td);
    /* The reference pads to 512 zero rows; through the MLP they all become one vector, so one key stands for all of
     * them and its logit gets ln(count): exact (spec 3.6). */
    int pad = HS_TEXT_LEN - n, nk = n + (pad > 0);
    r->n_ctx[branch] = nk;
    r->n_pad[branch] = pad;
    hs_copy(dev, hs_buf_at(r->ctx_in, 0, n * td), rows);
    if (pad) hs_zero(dev, hs_buf_at(r->ctx_in, n * td, td));
    hs_buf hid = hs_buf_at(r->ctx_hid, 0, nk * d), ctx = hs_buf_at(r->ctx, 0, nk * d);
    hs_op_linear(
        dev, &(hs_linear){
                 .x = hs_buf_at(r->ctx_in, 0, nk * td), .y = hid, .w = m->text1, .rows = nk, .act = HS_ACT_GELU_TANH});
    hs_op_linear(dev, &(hs_linear){.x = hid, .y = ctx, .w = m->text2, .rows = nk});
    HS_TAP(tap, dev, "dit.ctx", ctx, nk, d);
    for (int i = 0; i < m->c->layers; i++) {
        hs_buf kv = layer_kv(r, branch, i);
        need_block(m, m->c->layers + i);
        hs_op_linear(dev, &(hs_linear){.x = ctx, .y = kv, .w = m->blocks[i].cross_kv, .rows = nk});
        hs_op_qk_norm(dev, &(hs_qk_norm){.x = kv,
                                         .gamma = {m->blocks[i].cross_gk},
                                         .rows = nk,
                                         .ld = 2 * d,
                                         .d = d,
                                         .parts = 1,
                                         .head_dim = m->c->head_dim,
                                         .eps = m->c->eps});
    }
    return hs_device_check(dev, err);
}

/* ---- forward ------------------------------------------------------------------------------------------------------
 */

/* t -> e [d] (head) and e0 [6, d] (blocks); cosines first. spec 3.1 */
static void time_embedding(hs_dit_run *r, float t) {
    const hs_dit *m = r->dit;
    int half = m->c->freq_dim / 2;
    for (int k = 0; k < half; k++) {
        double a = t * pow(10000, -(double)k / half);
        r->sinus_host[k] = (float)cos(a);
        r->sinus_host[half + k] = (float)sin(a);
    }
    hs_upload(m->dev, r->sinus, r->sinus_host);
    hs_op_linear(m->dev, &(hs_linear){.x = r->sinus, .y = r->t1, .w = m->time1, .rows = 1, .act = HS_ACT_SILU});
    hs_op_linear(m->dev, &(hs_linear){.x = r->t1, .y = r->e, .w = m->time2, .rows = 1});
    hs_op_linear(m->dev, &(hs_linear){.x = r->t1, .y = r->es, .w = m->time2, .rows = 1, .act = HS_ACT_SILU});
    hs_op_linear(m->dev, &(hs_linear){.x = r->es, .y = r->e0, .w = m->time_proj, .rows = 1});
}

/* Token means of q and k before and after the rotation, on copies: ret [2, 2, d]. */
static void token_means(hs_dit_run *r, int i, float *ret) {
    const hs_dit *m = r->dit;
    for (int k = 0; k < 4; k++, ret += m->c->dim) {
        hs_copy(m->dev, r->copy, r->qkv);
        hs_op_qk_norm(m->dev, &(hs_qk_norm){.x = r->copy,
                                            .gamma = {k % 2 ? m->blocks[i].gk : m->blocks[i].gq},
                                            .mean = {r->mean},
                                            .rope = k / 2 ? r->rope : HS_NOBUF,
                                            .rows = r->n,
                                            .ld = 3 * m->c->dim,
                                            .col = k % 2 * m->c->dim,
                                            .d = m->c->dim,
                                            .parts = 1,
                                            .head_dim = m->c->head_dim,
                                            .eps = m->c->eps});
        hs_download(m->dev, ret, r->mean);
    }
}

/* What an operation of block i has made, for those who look inside. */
static void look(const hs_tap *tap, int i, const char *operation, hs_buf x) {
    char name[64];
    if (!tap->see) return;
    snprintf(name, sizeof name, "dit.block.%d, %s", i, operation);
    tap->see(tap->user, name, x);
}

static void block_forward(hs_dit_run *r, int i, const hs_policy *policy, const hs_tap *tap) {
    const hs_dit *m = r->dit;
    const block *b = &m->blocks[i];
    hs_device *dev = m->dev;
    int64_t n = r->n, d = m->c->dim, hd = m->c->head_dim;
    float eps = m->c->eps;
    int br = policy->branch;
    hs_op_modulation(dev, b->table, r->e0, MOD_ROWS, MOD_ROWS, d, 1u << SCALE1 | 1u << SCALE2, r->m);
#define MOD(row) hs_buf_at(r->m, (row)*d, d)

    /* self-attention: x += gate1 * Wo attn(rope(norm(q)), rope(norm(k)), v) */
    hs_op_norm(dev, HS_NORM_LAYER, r->x, n, d, MOD(SCALE1), MOD(SHIFT1), eps, r->y);
    hs_op_linear(dev, &(hs_linear){.x = r->y, .y = r->qkv, .w = b->qkv, .rows = n});
    look(tap, i, "q, k, v", r->qkv);
    if (policy->ret_means) token_means(r, i, policy->ret_means + 4 * i * d);
    hs_op_qk_norm(dev, &(hs_qk_norm){.x = r->qkv,
                                     .gamma = {b->gq, b->gk},
                                     .mean = {hs_attn_mean(r->attn, policy, i, 0), hs_attn_mean(r->attn, policy, i, 1)},
                                     .rope = r->rope,
                                     .rows = n,
                                     .ld = 3 * d,
                                     .d = d,
                                     .parts = 2,
                                     .head_dim = (int)hd,
                                     .eps = eps});
    look(tap, i, "normalised and rotated q, k", r->qkv);
    hs_attn_self(r->attn, policy, i, r->qkv, r->y);
    look(tap, i, "self-attention", r->y);
    hs_op_linear(dev, &(hs_linear){.x = r->y, .y = r->x, .w = b->o, .rows = n, .residual = 1, .gate = MOD(GATE1)});
    look(tap, i, "output of self-attention", r->x);

    /* cross-attention to the text: x += Wo attn(norm(q), k, v), no rotation, no gate */
    hs_op_norm(dev, HS_NORM_LAYER, r->x, n, d, b->norm_g, b->norm_b, eps, r->y);
    hs_buf q = hs_buf_at(r->qkv, 0, n * d), kv = layer_kv(r, br, i);
    hs_op_linear(dev, &(hs_linear){.x = r->y, .y = q, .w = b->cross_q, .rows = n});
    hs_op_qk_norm(
        dev,
        &(hs_qk_norm){
            .x = q, .gamma = {b->cross_gq}, .rows = n, .ld = d, .d = d, .parts = 1, .head_dim = (int)hd, .eps = eps});
    hs_op_attention(dev, &(hs_attention){.q = q,
                                         .k = kv,
                                         .v = hs_buf_at(kv, d, kv.n - d),
                                         .out = r->y,
                                         .ld_q = d,
                                         .ld_k = 2 * d,
                                         .ld_v = 2 * d,
                                         .ld_out = d,
                                         .len_q = n,
                                         .len_k = r->n_ctx[br],
                                         .heads = m->c->heads,
                                         .head_dim = (int)hd,
                                         .scale = 1 / sqrtf((float)hd),
                                         .last_key_bonus = r->n_pad[br] ? logf((float)r->n_pad[br]) : 0});
    look(tap, i, "cross-attention", r->y);
    hs_op_linear(dev, &(hs_linear){.x = r->y, .y = r->x, .w = b->cross_o, .rows = n, .residual = 1});
    look(tap, i, "output of cross-attention", r->x);

    /* feed forward: x += gate2 * W2 gelu(W1 y) */
    hs_op_norm(dev, HS_NORM_LAYER, r->x, n, d, MOD(SCALE2), MOD(SHIFT2), eps, r->y);
    hs_op_linear(dev, &(hs_linear){.x = r->y, .y = r->hid, .w = b->up, .rows = n, .act = HS_ACT_GELU_TANH});
    look(tap, i, "feed forward, first product", r->hid);
    hs_op_linear(dev, &(hs_linear){.x = r->hid, .y = r->x, .w = b->down, .rows = n, .residual = 1, .gate = MOD(GATE2)});
    look(tap, i, "feed forward, second product", r->x);
#undef MOD
}

int64_t hs_dit_kept_bytes(const hs_config *c, int64_t tokens) {
    return tokens * c->dim * (int64_t)sizeof(float);
}

int hs_dit_run_range(hs_dit_run *r, const hs_policy *policy, hs_err *err) {
    int layers = r->dit->c->layers, b = policy->branch, end = policy->end ? policy->end : layers;
    if (policy->first < 0 || policy->first >= end || end > layers)
        return hs_fail(err, HS_EINVAL, "layers %d to %d of a transformer with %d", policy->first, end - 1, layers);
    if (policy->first > 0 && r->kept_layer[b] != policy->first)
        return hs_fail(err, HS_EINVAL, "branch %d cannot start at layer %d: no call has kept what enters it", b,
                       policy->first);
    hs_device *dev = r->dit->dev;
    int e = 0;
    if (policy->end && !r->kept[b].p)
        e = hs_device_alloc(dev, HS_F32, r->x.n, "kept residual streams", &r->kept[b], err);
    if (!e && policy->ret_means && !r->copy.p)
        e = hs_device_alloc(dev, r->qkv.type, r->qkv.n, "a copy of q and k", &r->copy, err);
    if (!e && policy->ret_means && !r->mean.p)
        e = hs_device_alloc(dev, HS_F32, r->dit->c->dim, "token means", &r->mean, err);
    return e;
}

/* latents -> the residual stream that enters layer 0 */
static void embed_patches(hs_dit_run *r, hs_buf latents, const hs_tap *tap) {
    const hs_dit *m = r->dit;
    const hs_config *c = m->c;
    hs_buf in = hs_buf_at(r->patches, 0, r->n * 4 * c->in_channels);
    hs_op_patchify(m->dev, latents, c->in_channels, r->f, r->h, r->w, in);
    hs_op_linear(m->dev, &(hs_linear){.x = in, .y = r->x, .w = m->patch, .rows = r->n});
    HS_TAP(tap, m->dev, "dit.patch", r->x, r->n, c->dim);
}

void hs_dit_forward(hs_dit_run *r, hs_buf latents, float t, const hs_policy *policy, hs_buf velocity,
                    const hs_tap *tap) {
    const hs_dit *m = r->dit;
    const hs_config *c = m->c;
    hs_device *dev = m->dev;
    int64_t n = r->n, d = c->dim;
    int br = policy->branch, end = policy->end ? policy->end : c->layers;
    time_embedding(r, t);
    HS_TAP(tap, dev, "dit.temb", r->e, d);
    HS_TAP(tap, dev, "dit.temb6", r->e0, MOD_ROWS * d);

    if (policy->first)
        hs_copy(dev, r->x, r->kept[br]);
    else
        embed_patches(r, latents, tap);
    for (int i = policy->first; i < end; i++) {
        need_block(m, i);
        block_forward(r, i, policy, tap);
        if (hs_tap_is_on(tap)) {
            char name[32];
            snprintf(name, sizeof name, "dit.block.%d", i);
            HS_TAP(tap, dev, name, r->x, n, d);
        }
    }
    if (policy->end) {
        hs_copy(dev, r->kept[br], r->x);
        r->kept_layer[br] = end;
        return;
    }
    /* head: LN(x) (1 + scale) + shift, the same e for both rows; F32 */
    hs_buf hm = hs_buf_at(r->m, 0, 2 * d), y = {r->qkv.p, HS_F32, n * d};
    hs_op_modulation(dev, m->head_table, r->e, 2, 1, d, 1u << 1, hm);
    hs_op_norm(dev, HS_NORM_LAYER, r->x, n, d, hs_buf_at(hm, d, d), hs_buf_at(hm, 0, d), c->eps, y);
    hs_buf out = hs_buf_at(r->patches, 0, n * 4 * c->out_channels);
    hs_op_linear(dev, &(hs_linear){.x = y, .y = out, .w = m->head, .rows = n});
    hs_op_unpatchify(dev, out, c->out_channels, r->f, r->h, r->w, velocity);
    HS_TAP(tap, dev, "dit.velocity", velocity, c->out_channels, r->f, 2 * r->h, 2 * r->w);
}

double hs_dit_flops(const hs_config *c, int f, int h, int w, int n_text) {
    double n = (double)f * h * w, d = c->dim, keys = n_text < HS_TEXT_LEN ? n_text + 1 : n_text;
    double per_layer = 8 * n * d * d + 4 * n * n * d + 4 * n * d * d + 4 * n * keys * d + 4 * n * d * c->ffn;
    return c->layers * per_layer + 8 * n * d * (c->in_channels + c->out_channels);
}
