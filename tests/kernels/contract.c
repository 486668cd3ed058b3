/* The door to a device (backend.c): every wrapper takes a right call and refuses each wrong one with a message that has
 * the operation's name and both numbers; after a refusal nothing is written until the error is asked for; memory is
 * counted, limited and given back; no allocation failure leaks or crashes. Exit status: 0 all held, 1 something did
 * not. */
#include "contract.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static int failures, checks;
hs_device *dev;

void expect(int ok, const char *what, const char *found) {
    checks++;
    if (ok) return;
    failures++;
    printf("FAILED: %s (found: %s)\n", what, found);
}

void expect_sticky(int code, const char *text, const char *what) {
    hs_err err = {0};
    const int rc = hs_device_check(dev, &err);
    char expected[256];
    snprintf(expected, sizeof expected, "%s: expected %d '%s'", what, code, text);
    expect(rc == code && strstr(err.msg, text), expected, err.msg);
}
hs_buf buffer(hs_dtype t, int64_t n) {
    hs_err err = {0};
    hs_buf b;
    if (hs_device_alloc(dev, t, n, "test", &b, &err))
        expect(0, "allocation", err.msg);
    else
        hs_zero(dev, b);
    return b;
}

hs_buf cut(hs_buf b, int64_t n) {
    return hs_buf_at(b, 0, n);
}
static hs_buf retyped(hs_buf b, hs_dtype t) {
    return (hs_buf){b.p, t, b.n};
}

static hs_weight *linear_weight(int64_t out, int64_t in) {
    static const float zeros[64] = {0};
    hs_weight *w = NULL;
    hs_err err = {0};
    if (hs_weight_linear(dev, &(hs_linear_src){.parts = 1, .w = {zeros}, .type = {HS_F32}, .out = {out}, .in = in}, &w,
                         &err))
        expect(0, "linear weight", err.msg);
    return w;
}

static hs_weight *conv_weight(int cout, int cin, int kt, int k, int up2) {
    static const float zeros[512] = {0};
    hs_weight *w = NULL;
    hs_err err = {0};
    const hs_conv_src src = {
        .w = zeros, .type = HS_F32, .cout = cout, .cin = cin, .kt = kt, .ky = k, .kx = k, .up2 = up2};
    if (hs_weight_conv(dev, &src, &w, &err)) expect(0, "conv weight", err.msg);
    return w;
}

/* ---- wrappers -------------------------------------------------------------------------------------------------- */
static void matrix_operations(hs_buf a, hs_buf b, hs_buf c) {
    hs_weight *w = linear_weight(4, 8), *k = conv_weight(4, 2, 3, 3, 0), *up = conv_weight(4, 2, 1, 3, 1);
    const hs_linear l = {.x = cut(a, 24), .y = cut(b, 12), .w = w, .rows = 3};
#define LINEAR(...)                                                                                                    \
    {                                                                                                                  \
        hs_linear u = l;                                                                                               \
        __VA_ARGS__;                                                                                                   \
        hs_op_linear(dev, &u);                                                                                         \
    }
    ACCEPT(hs_op_linear(dev, &l));
    REFUSE("linear: x holds 24 elements, 32 needed", LINEAR(u.rows = 4));
    REFUSE("linear: y holds 11 elements, 12 needed", LINEAR(u.y = cut(b, 11)));
    REFUSE("linear: x is missing", LINEAR(u.x = HS_NOBUF));
    REFUSE("linear: y is I32, must be F32", LINEAR(u.y = retyped(l.y, HS_I32)));
    REFUSE("linear: x is BF16, must be F32", LINEAR(u.x = retyped(l.x, HS_BF16)));
    REFUSE("linear: dimension 0 of x is 0", LINEAR(u.rows = 0));
    REFUSE("linear: x is too large", LINEAR(u.rows = INT64_MAX));
    REFUSE("linear: w is missing", LINEAR(u.w = NULL));
    REFUSE("linear: w is a convolution", LINEAR(u.w = k));
    REFUSE("linear: output y (12 elements) overlaps x (24 elements)", LINEAR(u.y = hs_buf_at(a, 23, 12)));
    REFUSE("linear: a gate of 4 elements without residual", LINEAR(u.gate = cut(c, 4)));
    REFUSE("linear: gate holds 3 elements, 4 needed", LINEAR(u.residual = 1, u.gate = cut(c, 3)));
    REFUSE("linear: act is 1, must be 0 to 0", LINEAR(u.residual = 1, u.act = HS_ACT_GELU_TANH));
    REFUSE("linear: x is not aligned", LINEAR(u.x = (hs_buf){(char *)a.p + 2, HS_F32, 24}));
    REFUSE("linear: output y (12 elements) overlaps gate", LINEAR(u.residual = 1, u.gate = cut(b, 4)));
    ACCEPT(LINEAR(u.residual = 1, u.gate = cut(c, 4)));

    const hs_conv v = {.x = cut(a, 96), .y = cut(b, 96), .w = k, .T = 2, .Y = 3, .X = 4}; /* x: 4 frames of 3 x 4 x 2 */
#define CONV(...)                                                                                                      \
    {                                                                                                                  \
        hs_conv u = v;                                                                                                 \
        __VA_ARGS__;                                                                                                   \
        hs_op_conv(dev, &u);                                                                                           \
    }
    ACCEPT(hs_op_conv(dev, &v));
    ACCEPT(CONV(u.add = v.y));
    REFUSE("conv: x holds 95 elements, 96 needed", CONV(u.x = cut(a, 95)));
    REFUSE("conv: y holds 96 elements, 144 needed", CONV(u.T = 3, u.x = cut(a, 120)));
    REFUSE("conv: y holds 96 elements, 384 needed", CONV(u.w = up));
    REFUSE("conv: add holds 95 elements, 96 needed", CONV(u.add = cut(c, 95)));
    REFUSE("conv: output y (96 elements) overlaps add", CONV(u.add = hs_buf_at(b, 1, 96)));
    REFUSE("conv: output y (96 elements) overlaps x", CONV(u.y = hs_buf_at(a, 95, 96)));
    REFUSE("conv: dimension 0 of x is 0", CONV(u.T = 0));
    REFUSE("conv: w is a linear weight", CONV(u.w = w));

    const hs_attention t = {.q = cut(a, 24),
                            .k = hs_buf_at(a, 8, 40),
                            .v = hs_buf_at(a, 16, 32),
                            .out = cut(b, 8),
                            .ld_q = 24,
                            .ld_k = 24,
                            .ld_v = 24,
                            .ld_out = 8,
                            .len_q = 1,
                            .len_k = 2,
                            .heads = 2,
                            .head_dim = 4,
                            .scale = 1};
    hs_attention u = t;
    ACCEPT(hs_op_attention(dev, &t));
    u.len_k = 3;
    REFUSE("attention: k holds 40 elements, 56 needed", hs_op_attention(dev, &u));
    u = t, u.ld_v = 7;
    REFUSE("attention: 7 elements between tokens of v, heads * head_dim are 8", hs_op_attention(dev, &u));
    u = t, u.head_dim = 2000;
    REFUSE("attention: head_dim is 2000", hs_op_attention(dev, &u));
    u = t, u.heads = 0;
    REFUSE("attention: heads is 0", hs_op_attention(dev, &u));
    u = t, u.len_q = 0;
    REFUSE("attention: dimension 0 of q is 0", hs_op_attention(dev, &u));
    u = t, u.out = hs_buf_at(a, 40, 8);
    REFUSE("attention: output out (8 elements) overlaps v", hs_op_attention(dev, &u));
    u = t, u.rel_bias = cut(c, 3);
    REFUSE("attention: rel_bias holds 3 elements, 4 needed", hs_op_attention(dev, &u));
    u = t, u.rel_bias = cut(b, 4);
    REFUSE("attention: output out (8 elements) overlaps rel_bias", hs_op_attention(dev, &u));
    u = t, u.out = cut(b, 7);
    REFUSE("attention: out holds 7 elements, 8 needed", hs_op_attention(dev, &u));
    u = t, u.q = hs_buf_at(b, 4, 8);
    REFUSE("attention: output out (8 elements) overlaps q", hs_op_attention(dev, &u));
    u = t, u.k = hs_buf_at(b, 7, 32);
    REFUSE("attention: output out (8 elements) overlaps k", hs_op_attention(dev, &u));
    u = t, u.comp_k = cut(c, 8);
    REFUSE("attention: compensation without a mask", hs_op_attention(dev, &u));
}

static void row_operations(hs_buf a, hs_buf b, hs_buf c) {
    const hs_buf ids = buffer(HS_I32, 3);
#define NORM(x, rows, d, mul, add, y) hs_op_norm(dev, HS_NORM_LAYER, x, rows, d, mul, add, 1e-6f, y)
    ACCEPT(NORM(cut(a, 12), 3, 4, cut(c, 4), HS_NOBUF, cut(b, 12)));
    REFUSE("norm: x holds 11 elements, 12 needed", NORM(cut(a, 11), 3, 4, cut(c, 4), HS_NOBUF, cut(b, 12)));
    REFUSE("norm: mul is missing", NORM(cut(a, 12), 3, 4, HS_NOBUF, HS_NOBUF, cut(b, 12)));
    REFUSE("norm: add holds 3 elements, 4 needed", NORM(cut(a, 12), 3, 4, cut(c, 4), cut(c, 3), cut(b, 12)));
    REFUSE("norm: output y (12 elements) overlaps x", NORM(cut(a, 12), 3, 4, cut(c, 4), HS_NOBUF, cut(a, 12)));
    REFUSE("norm: kind is 7",
           hs_op_norm(dev, (hs_norm_kind)7, cut(a, 12), 3, 4, cut(c, 4), HS_NOBUF, 1e-6f, cut(b, 12)));
    REFUSE("norm: y holds 11 elements, 12 needed", NORM(cut(a, 12), 3, 4, cut(c, 4), HS_NOBUF, cut(b, 11)));
    REFUSE("norm: output y (12 elements) overlaps mul", NORM(cut(a, 12), 3, 4, cut(b, 4), HS_NOBUF, cut(b, 12)));
    REFUSE("norm: output y (12 elements) overlaps add", NORM(cut(a, 12), 3, 4, cut(c, 4), cut(b, 4), cut(b, 12)));

    ACCEPT(hs_op_modulation(dev, cut(a, 12), cut(c, 4), 3, 1, 4, 2, cut(b, 12)));
    REFUSE("modulation: e_rows is 2, must be 1 or 3",
           hs_op_modulation(dev, cut(a, 12), cut(c, 8), 3, 2, 4, 2, cut(b, 12)));
    REFUSE("modulation: e holds 4 elements, 12 needed",
           hs_op_modulation(dev, cut(a, 12), cut(c, 4), 3, 3, 4, 2, cut(b, 12)));
    REFUSE("modulation: rows is 33", hs_op_modulation(dev, a, c, 33, 1, 1, 2, b));
#define MODULATION(table, e, y) hs_op_modulation(dev, table, e, 3, 1, 4, 2, y)
    REFUSE("modulation: table holds 11 elements, 12 needed", MODULATION(cut(a, 11), cut(c, 4), cut(b, 12)));
    REFUSE("modulation: y holds 11 elements, 12 needed", MODULATION(cut(a, 12), cut(c, 4), cut(b, 11)));
    REFUSE("modulation: output y (12 elements) overlaps table", MODULATION(cut(a, 12), cut(c, 4), cut(a, 12)));
    REFUSE("modulation: output y (12 elements) overlaps e", MODULATION(cut(a, 12), cut(c, 4), cut(c, 12)));

    const hs_qk_norm q = {.x = cut(a, 40),
                          .gamma = {cut(c, 8)},
                          .rows = 2,
                          .ld = 20,
                          .col = 4,
                          .d = 8,
                          .parts = 1,
                          .head_dim = 4,
                          .eps = 1e-6f};
#define QK(...)                                                                                                        \
    {                                                                                                                  \
        hs_qk_norm u = q;                                                                                              \
        __VA_ARGS__;                                                                                                   \
        hs_op_qk_norm(dev, &u);                                                                                        \
    }
    ACCEPT(hs_op_qk_norm(dev, &q));
    ACCEPT(QK(u.x = cut(a, 32)));
    REFUSE("qk_norm: x holds 31 elements, 32 needed", QK(u.x = cut(a, 31)));
    REFUSE("qk_norm: col is 13, must be 0 to 12", QK(u.col = 13));
    REFUSE("qk_norm: d 8 is not a multiple of head_dim 3", QK(u.head_dim = 3));
    REFUSE("qk_norm: rotation needs an even head_dim, found 1", QK(u.head_dim = 1, u.rope = cut(b, 8)));
    REFUSE("qk_norm: rope holds 7 elements, 8 needed", QK(u.rope = cut(b, 7)));
    REFUSE("qk_norm: mean holds 7 elements, 8 needed", QK(u.mean[0] = cut(b, 7)));
    REFUSE("qk_norm: output mean (8 elements) overlaps x", QK(u.mean[0] = cut(a, 8)));
    REFUSE("qk_norm: output mean (8 elements) overlaps gamma", QK(u.mean[0] = cut(c, 8)));
    REFUSE("qk_norm: output mean (8 elements) overlaps rope", QK(u.mean[0] = cut(b, 8), u.rope = cut(b, 8)));
    REFUSE("qk_norm: output x (32 elements) overlaps gamma", QK(u.gamma[0] = hs_buf_at(a, 31, 8)));
    REFUSE("qk_norm: output x (32 elements) overlaps rope", QK(u.rope = hs_buf_at(a, 31, 8)));
    REFUSE("qk_norm: gamma holds 7 elements, 8 needed", QK(u.gamma[0] = cut(c, 7)));
    REFUSE("qk_norm: head_dim is 0, must be 1 to", QK(u.head_dim = 0));
    REFUSE("qk_norm: parts is 0, must be 1 to 2", QK(u.parts = 0));
    REFUSE("qk_norm: parts is 3, must be 1 to 2", QK(u.parts = 3));
#define BOTH u.parts = 2, u.gamma[1] = cut(c, 8)
    ACCEPT(QK(BOTH, u.x = cut(a, 40)));
    REFUSE("qk_norm: x holds 39 elements, 40 needed", QK(BOTH, u.x = cut(a, 39)));
    REFUSE("qk_norm: col is 5, must be 0 to 4", QK(BOTH, u.col = 5));
    REFUSE("qk_norm: gamma is missing (8 elements needed)", QK(u.parts = 2));
    REFUSE("qk_norm: mean holds 7 elements, 8 needed", QK(BOTH, u.mean[1] = cut(b, 7)));
    REFUSE("qk_norm: output mean (8 elements) overlaps gamma", QK(BOTH, u.gamma[1] = cut(b, 8), u.mean[0] = cut(b, 8)));
    REFUSE("qk_norm: output mean (8 elements) overlaps x", QK(BOTH, u.mean[1] = cut(a, 8)));
    REFUSE("qk_norm: output mean (8 elements) overlaps mean", QK(BOTH, u.mean[0] = cut(b, 8), u.mean[1] = cut(b, 8)));
    REFUSE("qk_norm: output x (40 elements) overlaps gamma", QK(BOTH, u.gamma[1] = hs_buf_at(a, 39, 8)));
#undef BOTH

    ACCEPT(hs_op_gated_gelu(dev, cut(a, 12), 2, 3, cut(b, 6)));
    REFUSE("gated_gelu: ab holds 11 elements, 12 needed", hs_op_gated_gelu(dev, cut(a, 11), 2, 3, cut(b, 6)));
    REFUSE("gated_gelu: output y (6 elements) overlaps ab",
           hs_op_gated_gelu(dev, cut(a, 12), 2, 3, hs_buf_at(a, 11, 6)));
    REFUSE("gated_gelu: y holds 5 elements, 6 needed", hs_op_gated_gelu(dev, cut(a, 12), 2, 3, cut(b, 5)));

    ACCEPT(hs_op_gather_rows(dev, cut(a, 20), ids, 3, 4, cut(b, 12)));
    REFUSE("gather_rows: ids is F32, must be I32", hs_op_gather_rows(dev, cut(a, 20), cut(c, 3), 3, 4, cut(b, 12)));
    REFUSE("gather_rows: table of 21 elements", hs_op_gather_rows(dev, cut(a, 21), ids, 3, 4, cut(b, 12)));
    REFUSE("gather_rows: y holds 11 elements, 12 needed", hs_op_gather_rows(dev, cut(a, 20), ids, 3, 4, cut(b, 11)));
    REFUSE("gather_rows: table holds 3 elements, 4 needed", hs_op_gather_rows(dev, cut(a, 3), ids, 3, 4, cut(b, 12)));
    REFUSE("gather_rows: output y (12 elements) overlaps table",
           hs_op_gather_rows(dev, cut(a, 20), ids, 3, 4, cut(a, 12)));
    REFUSE("gather_rows: output y (12 elements) overlaps ids",
           hs_op_gather_rows(dev, cut(a, 20), retyped(cut(b, 3), HS_I32), 3, 4, cut(b, 12)));

    const double one[7] = {1, 1, 1, 1, 1, 1, 1};
    hs_buf x[7] = {cut(a, 5), cut(b, 5), cut(b, 5), cut(b, 5), cut(b, 5), cut(b, 5), cut(b, 5)};
    ACCEPT(hs_op_combine(dev, 2, one, x, cut(a, 5)));
    REFUSE("combine: count is 7, must be 1 to 6", hs_op_combine(dev, 7, one, x, cut(a, 5)));
    REFUSE("combine: coefficients of 2 terms are missing", hs_op_combine(dev, 2, NULL, x, cut(a, 5)));
    REFUSE("combine: output y (5 elements) overlaps x (5 elements)", hs_op_combine(dev, 2, one, x, hs_buf_at(a, 1, 5)));
    x[1] = cut(b, 6);
    REFUSE("combine: x[1] holds 6 elements, y 5", hs_op_combine(dev, 2, one, x, cut(a, 5)));
    x[1] = retyped(cut(b, 5), HS_I32);
    REFUSE("combine: x is I32, must be F32", hs_op_combine(dev, 2, one, x, cut(a, 5)));
    REFUSE("combine: y is missing", hs_op_combine(dev, 1, one, x, (hs_buf){NULL, HS_F32, 5}));
    hs_device_free(dev, ids);
}

static void frame_operations(hs_buf a, hs_buf b, hs_buf c) {
    const hs_buf bytes = buffer(HS_U8, 8);
    const float ones[4] = {1, 1, 1, 1};
    ACCEPT(hs_op_patchify(dev, cut(a, 48), 2, 1, 2, 3, cut(b, 48)));
    REFUSE("patchify: x holds 47 elements, 48 needed", hs_op_patchify(dev, cut(a, 47), 2, 1, 2, 3, cut(b, 48)));
    REFUSE("patchify: dimension 2 of x is 0", hs_op_patchify(dev, cut(a, 48), 2, 1, 0, 3, cut(b, 48)));
    REFUSE("patchify: y holds 47 elements, 48 needed", hs_op_patchify(dev, cut(a, 48), 2, 1, 2, 3, cut(b, 47)));
    REFUSE("patchify: output y (48 elements) overlaps x", hs_op_patchify(dev, cut(a, 48), 2, 1, 2, 3, cut(a, 48)));
    ACCEPT(hs_op_unpatchify(dev, cut(a, 48), 2, 1, 2, 3, cut(b, 48)));
    REFUSE("unpatchify: y holds 47 elements, 48 needed", hs_op_unpatchify(dev, cut(a, 48), 2, 1, 2, 3, cut(b, 47)));
    REFUSE("unpatchify: output y (48 elements) overlaps x", hs_op_unpatchify(dev, cut(a, 48), 2, 1, 2, 3, cut(a, 48)));
    REFUSE("unpatchify: x holds 47 elements, 48 needed", hs_op_unpatchify(dev, cut(a, 47), 2, 1, 2, 3, cut(b, 48)));

    ACCEPT(hs_op_latent_frames(dev, cut(a, 48), 4, 3, 2, 1, 2, 2, ones, ones, cut(b, 16)));
    REFUSE("latent_frames: t0 is 3, must be 0 to 2",
           hs_op_latent_frames(dev, cut(a, 48), 4, 3, 3, 1, 2, 2, ones, ones, cut(b, 16)));
    REFUSE("latent_frames: add of 4 channels is missing",
           hs_op_latent_frames(dev, cut(a, 48), 4, 3, 2, 1, 2, 2, ones, NULL, cut(b, 16)));
    REFUSE("latent_frames: x holds 47 elements, 48 needed",
           hs_op_latent_frames(dev, cut(a, 47), 4, 3, 2, 1, 2, 2, ones, ones, cut(b, 16)));
    REFUSE("latent_frames: z holds 15 elements, 16 needed",
           hs_op_latent_frames(dev, cut(a, 48), 4, 3, 2, 1, 2, 2, ones, ones, cut(b, 15)));
    REFUSE("latent_frames: output z (16 elements) overlaps x",
           hs_op_latent_frames(dev, cut(a, 48), 4, 3, 2, 1, 2, 2, ones, ones, cut(a, 16)));

    ACCEPT(hs_op_channel_norm(dev, cut(a, 12), 3, 4, cut(c, 4), 1, cut(b, 12)));
    REFUSE("channel_norm: gamma holds 3 elements, 4 needed",
           hs_op_channel_norm(dev, cut(a, 12), 3, 4, cut(c, 3), 1, cut(b, 12)));
    REFUSE("channel_norm: output y (12 elements) overlaps x",
           hs_op_channel_norm(dev, cut(a, 12), 3, 4, cut(c, 4), 1, cut(a, 12)));
#define CHANNELS(x, gamma, y) hs_op_channel_norm(dev, x, 3, 4, gamma, 1, y)
    REFUSE("channel_norm: x holds 11 elements, 12 needed", CHANNELS(cut(a, 11), cut(c, 4), cut(b, 12)));
    REFUSE("channel_norm: y holds 11 elements, 12 needed", CHANNELS(cut(a, 12), cut(c, 4), cut(b, 11)));
    REFUSE("channel_norm: output y (12 elements) overlaps gamma", CHANNELS(cut(a, 12), cut(c, 4), cut(c, 12)));

    ACCEPT(hs_op_split_frames(dev, cut(a, 24), 2, 3, 2, cut(b, 24)));
    REFUSE("split_frames: x holds 23 elements, 24 needed", hs_op_split_frames(dev, cut(a, 23), 2, 3, 2, cut(b, 24)));
    REFUSE("split_frames: y holds 23 elements, 24 needed", hs_op_split_frames(dev, cut(a, 24), 2, 3, 2, cut(b, 23)));
    REFUSE("split_frames: output y (24 elements) overlaps x", hs_op_split_frames(dev, cut(a, 24), 2, 3, 2, cut(a, 24)));

    ACCEPT(hs_op_to_u8(dev, cut(a, 8), bytes));
    REFUSE("to_u8: y is F32, must be U8", hs_op_to_u8(dev, cut(a, 8), cut(b, 8)));
    REFUSE("to_u8: y holds 7 elements, 8 needed", hs_op_to_u8(dev, cut(a, 8), cut(bytes, 7)));
    REFUSE("to_u8: y holds 8 elements, x 7", hs_op_to_u8(dev, cut(a, 7), bytes));
    REFUSE("to_u8: output y (8 elements) overlaps x", hs_op_to_u8(dev, cut(a, 8), (hs_buf){a.p, HS_U8, 8}));
    ACCEPT(hs_count_nonfinite(dev, cut(a, 8)));
    REFUSE("count_nonfinite: x is U8, must be F32", hs_count_nonfinite(dev, bytes));
    hs_device_free(dev, bytes);
}

static void moves(hs_buf a, hs_buf b) {
    float host[8] = {0};
    ACCEPT(hs_upload(dev, cut(a, 8), host));
    ACCEPT(hs_download(dev, host, cut(a, 8)));
    ACCEPT(hs_copy(dev, cut(a, 0), cut(b, 0)));
    REFUSE("upload: host memory is missing (8 elements needed)", hs_upload(dev, cut(a, 8), NULL));
    REFUSE("download: host memory is missing (8 elements needed)", hs_download(dev, NULL, cut(a, 8)));
    REFUSE("download: src is missing (8 elements needed)", hs_download(dev, host, (hs_buf){NULL, HS_F32, 8}));
    REFUSE("copy: dst holds 8 elements, src 7", hs_copy(dev, cut(a, 8), cut(b, 7)));
    REFUSE("copy: dst is U8, must be F32", hs_copy(dev, retyped(cut(a, 8), HS_U8), cut(b, 8)));
    REFUSE("copy: src is U8, must be F32", hs_copy(dev, cut(a, 8), retyped(cut(b, 8), HS_U8)));
    REFUSE("copy: output dst (8 elements) overlaps src", hs_copy(dev, cut(a, 8), hs_buf_at(a, 7, 8)));
    REFUSE("zero: dst holds -1 elements", hs_zero(dev, (hs_buf){a.p, HS_F32, -1}));

    /* a device that computes in bf16: activations that must be of the act type */
    dev->act = HS_BF16;
    REFUSE("gated_gelu: ab is F32, must be BF16", hs_op_gated_gelu(dev, cut(a, 12), 2, 3, cut(b, 6)));
    REFUSE("to_u8: x is I32, must be F32 or BF16",
           hs_op_to_u8(dev, retyped(cut(a, 8), HS_I32), retyped(cut(b, 8), HS_U8)));
    dev->act = HS_F32;
}

/* The first error stays and stops all work until it is asked for. */
static void stickiness(hs_buf a, hs_buf b) {
    float host[4] = {1, 2, 3, 4};
    hs_upload(dev, cut(a, 4), host);
    hs_op_split_frames(dev, cut(a, 3), 1, 1, 2, cut(b, 4));
    hs_op_to_u8(dev, HS_NOBUF, HS_NOBUF);
    hs_zero(dev, cut(a, 4));
    expect(hs_count_nonfinite(dev, cut(a, 4)) == 0, "count after an error", "not 0");
    expect_sticky(HS_EINVAL, "split_frames: x holds 3 elements, 4 needed", "the first error");
    expect_sticky(0, "", "the error was asked for");
    hs_download(dev, host, cut(a, 4));
    expect(host[3] == 4, "zero after an error did nothing", "zeroed");
    hs_device_sticky(dev, HS_EDEVICE, "lost %d", 7);
    hs_device_sticky(dev, HS_EIO, "later");
    expect_sticky(HS_EDEVICE, "lost 7", "hs_device_sticky");
}

/* ---- memory, weights, opening ---------------------------------------------------------------------------------- */
static void memory(void) {
    hs_err err = {0};
    hs_device *d = NULL;
    hs_buf x, y = {&err, HS_U8, 1};
    hs_weight *w = NULL;
    int64_t peak = 0;
    const float zeros[200] = {0};
    const hs_linear_src src = {.parts = 2, .w = {zeros, zeros}, .type = {HS_F32, HS_F32}, .out = {10, 10}, .in = 10};
    const int64_t live = hs_alloc_live();
    expect(!hs_device_open(&(hs_device_params){.name = "ref", .max_bytes = 1000}, &d, &err), "open with a limit",
           err.msg);
    expect(!hs_device_alloc(d, HS_F32, 150, "first", &x, &err), "600 of 1000 bytes", err.msg);
    expect(hs_device_alloc(d, HS_U8, 401, "latents", &y, &err) == HS_ENOMEM && !y.p, "401 of 400 bytes", err.msg);
    expect(strstr(err.msg, "latents") && strstr(err.msg, "401 bytes asked") && strstr(err.msg, "600 in use") &&
               strstr(err.msg, "limit 1000"),
           "the message has purpose, asked, in use, limit", err.msg);
    expect(hs_device_free_bytes(d) == 400, "free bytes", "not 400");
    expect(hs_weight_linear(d, &src, &w, &err) == HS_ENOMEM && !w, "weights count", err.msg);
    expect(hs_device_bytes(d, &peak) == 600 && peak == 600, "refused bytes are not counted", "other");
    hs_device_free(d, x);
    expect(!hs_weight_linear(d, &src, &w, &err), "weights fit now", err.msg);
    expect(w && hs_weight_bytes(w) >= 800 && hs_device_bytes(d, &peak) == hs_weight_bytes(w), "weight bytes", "other");
    expect(peak >= 800, "peak", "low");
    expect(hs_device_alloc(d, HS_F32, INT64_MAX, "x", &x, &err) == HS_EINVAL, "overflow", err.msg);
    expect(hs_device_alloc(d, HS_F32, 0, "x", &x, &err) == HS_EINVAL, "no elements", err.msg);
    hs_device_close(d);
    expect(hs_alloc_live() == live, "closing frees weights", "leak");
    hs_device_close(NULL);
}

static void refused_weights(void) {
    static const float zeros[100] = {0};
    hs_weight *w = NULL;
    hs_err err = {0};
    const hs_linear_src l = {.parts = 2, .w = {zeros, zeros}, .type = {HS_F32, HS_BF16}, .out = {2, 3}, .in = 4};
    hs_linear_src m = l;
    m.parts = 4;
    expect(hs_weight_linear(dev, &m, &w, &err) == HS_EINVAL && strstr(err.msg, "4 parts"), "4 parts", err.msg);
    m = l, m.w[1] = NULL;
    expect(hs_weight_linear(dev, &m, &w, &err) == HS_EINVAL && strstr(err.msg, "part 1"), "no data", err.msg);
    m = l, m.type[1] = HS_U8;
    expect(hs_weight_linear(dev, &m, &w, &err) == HS_EINVAL && strstr(err.msg, "U8"), "U8 weights", err.msg);
    m = l, m.bias[0] = zeros;
    expect(hs_weight_linear(dev, &m, &w, &err) == HS_EINVAL && strstr(err.msg, "bias"), "one bias of two", err.msg);
    m = l, m.in = INT64_MAX;
    expect(hs_weight_linear(dev, &m, &w, &err) == HS_EINVAL, "overflow", err.msg);
    m = l, m.out[0] = 0;
    expect(hs_weight_linear(dev, &m, &w, &err) == HS_EINVAL && strstr(err.msg, "[0, 4]"), "no rows", err.msg);
    const hs_conv_src c = {.w = zeros, .type = HS_F32, .cout = 2, .cin = 2, .kt = 3, .ky = 3, .kx = 3};
    hs_conv_src d = c;
    d.ky = 2;
    expect(hs_weight_conv(dev, &d, &w, &err) == HS_EINVAL && strstr(err.msg, "3 x 2 x 3"), "even kernel", err.msg);
    d = c, d.up2 = 1;
    expect(hs_weight_conv(dev, &d, &w, &err) == HS_EINVAL && strstr(err.msg, "1 x 3 x 3"), "doubling in time", err.msg);
    d = c, d.cin = 0;
    expect(hs_weight_conv(dev, &d, &w, &err) == HS_EINVAL && strstr(err.msg, "0 -> 2"), "no channels", err.msg);
    d = c, d.w = NULL;
    expect(hs_weight_conv(dev, &d, &w, &err) == HS_EINVAL, "no data", err.msg);
    expect(!w, "no weight after a refusal", "one");
}

/* Every allocation of a short life fails once; each time an error comes back and nothing stays behind. */
static void allocation_failures(const char *name) {
    static const float zeros[512] = {0};
    const int64_t live = hs_alloc_live();
    for (int n = 1, done = 0; !done; n++) {
        hs_device *d = NULL;
        hs_weight *w = NULL;
        hs_buf x = HS_NOBUF;
        hs_err err = {0};
        const hs_linear_src l = {.parts = 1, .w = {zeros}, .bias = {zeros}, .type = {HS_F32}, .out = {8}, .in = 8};
        const hs_conv_src c = {
            .w = zeros, .type = HS_F32, .bias = zeros, .cout = 2, .cin = 2, .kt = 1, .ky = 3, .kx = 3, .up2 = 1};
        hs_alloc_fail_at(n);
        int rc = hs_device_open(&(hs_device_params){.name = name, .threads = 1}, &d, &err);
        if (!rc) rc = hs_device_alloc(d, HS_F32, 64, "test", &x, &err);
        if (!rc) rc = hs_weight_linear(d, &l, &w, &err);
        if (!rc) rc = hs_weight_conv(d, &c, &w, &err);
        hs_alloc_fail_at(0);
        done = rc == HS_OK;
        expect(!rc || (rc == HS_ENOMEM && err.msg[0]), "a failed allocation is HS_ENOMEM with a message", err.msg);
        if (d) hs_device_free(d, x);
        hs_device_close(d);
        if (hs_alloc_live() != live || n > 1000) {
            printf("%s: allocation %d\n", name, n);
            expect(0, "all memory is given back", "leak");
            return;
        }
    }
}

static int logged;
static void count_log(void *user, enum hs_log_level level, const char *msg) {
    (void)user;
    logged += level <= HS_LOG_INFO && strstr(msg, "device auto") != NULL;
}

static void opening(void) {
    static const struct {
        const char *name, *precision;
        int threads, code;
        const char *text;
    } wrong[] = {
        {"gpu", NULL, 0, HS_EINVAL, "unknown device 'gpu'"}, {"cuda:x", NULL, 0, HS_EINVAL, "unknown device"},
        {"cuda:", NULL, 0, HS_EINVAL, "unknown device"},     {"ref", "fp8", 0, HS_EINVAL, "unknown precision 'fp8'"},
        {"ref", "bf16", 0, HS_ENOTSUP, "fp32 only"},         {"ref", "fp16", 0, HS_ENOTSUP, "fp16 needs a GPU"},
        {"ref", NULL, -1, HS_EINVAL, "threads -1"}};
    hs_err err = {0};
    hs_device *d = NULL;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const hs_device_params p = {
            .name = wrong[i].name, .precision = wrong[i].precision, .threads = wrong[i].threads};
        expect(hs_device_open(&p, &d, &err) == wrong[i].code && strstr(err.msg, wrong[i].text) && !d, wrong[i].text,
               err.msg);
    }
    hs_log_set(count_log, NULL);
    expect(!hs_device_open(&(hs_device_params){.threads = 1}, &d, &err) && logged == 1, "auto opens and says what",
           err.msg);
    hs_log_set(NULL, NULL);
    hs_device_close(d);
}

/* Time goes to the slot that ends a lap, and to no other. */
static void stopwatch(void) {
    double before[HS_LAP_COUNT], after[HS_LAP_COUNT];
    const double least = 2e-3, begin = hs_seconds();
    hs_lap(dev, HS_LAP_PREDICT);
    hs_laps(dev, before);
    hs_lap(dev, HS_LAP_NONE);
    for (const double start = hs_seconds(); hs_seconds() < start + least;) {
    }
    hs_lap(dev, HS_LAP_ATTEND);
    hs_laps(dev, after);
    const double lap = after[HS_LAP_ATTEND] - before[HS_LAP_ATTEND];
    expect(lap >= least && lap <= hs_seconds() - begin, "a lap's seconds", "others");
    expect(after[HS_LAP_PREDICT] <= before[HS_LAP_PREDICT], "the other slot stays", "charged");
}

int main(void) {
    hs_err err = {0};
    opening();
    if (hs_device_open(&(hs_device_params){.name = "ref"}, &dev, &err)) {
        printf("ref: %s\n", err.msg);
        return 1;
    }
    const hs_buf a = buffer(HS_F32, 256), b = buffer(HS_F32, 256), c = buffer(HS_F32, 256);
    matrix_operations(a, b, c);
    sparse_operations(a, b, c);
    row_operations(a, b, c);
    frame_operations(a, b, c);
    moves(a, b);
    stickiness(a, b);
    stopwatch();
    refused_weights();
    hs_device_free(dev, a), hs_device_free(dev, b), hs_device_free(dev, c);
    hs_device_close(dev);
    memory();
    allocation_failures("ref");
    hs_device *cpu = NULL;
    if (!hs_device_open(&(hs_device_params){.name = "cpu", .threads = 1}, &cpu, &err)) {
        hs_device_close(cpu);
        allocation_failures("cpu");
        cpu = NULL;
        const int rc = hs_device_open(&(hs_device_params){.name = "cpu", .precision = "fp16"}, &cpu, &err);
        expect(rc == HS_ENOTSUP && !cpu && strstr(err.msg, "fp16 needs a GPU"), "fp16 on the cpu", err.msg);
    }
    expect(hs_alloc_live() == 0, "nothing is left", "leak");
    printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
