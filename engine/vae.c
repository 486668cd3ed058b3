/* Causal VAE decoder. spec wan.md section 5.
 *
 * Frames are channels-last [T, Y, X, C]. A latent frame goes through all stages before the next one comes; what a
 * 3-frame convolution needs of the past is its own last two input frames (after norm and SiLU), zero at the start of
 * the video. So memory does not depend on the length of the video, and the result equals a decode in one piece.
 */
#include "vae.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { STAGES = 4, MAX_RES = 8, HIST = 2, MAX_HISTORIES = STAGES * (2 * MAX_RES + 1) + 8 };

typedef struct conv {
    hs_weight *w;
    int cin, cout;
    int history; /* index of its two remembered frames in the run, -1 for convolutions without memory */
} conv;

typedef struct resblock {
    hs_buf gamma1, gamma2;
    conv conv1, conv2, shortcut; /* shortcut.cin == 0: identity */
} resblock;

typedef struct stage {
    int cin, cout;
    resblock res[MAX_RES];
    int up, up_time;     /* the stage ends by doubling Y and X; and T before that */
    conv time, resample; /* time: C -> 2C over 3 frames; resample: doubles Y and X, 3x3, C -> C/2 */
} stage;

struct hs_vae {
    const hs_config *c;
    hs_device *dev;
    conv post_quant, conv_in, qkv, proj, conv_out;
    resblock mid[2];
    hs_buf attn_gamma, out_gamma;
    stage st[STAGES];
    int histories;
    struct {
        int channels, scale; /* [2, scale*h, scale*w, channels] */
    } hist[MAX_HISTORIES];
    double flops_first, flops_next; /* per latent pixel: first latent frame, every other one */
    int64_t weights;                /* values of weights, with what devices may pad */
};

struct hs_vae_run {
    hs_vae *v;
    int h, w;   /* latent size */
    int chunk;  /* frames at a time in the last stage */
    hs_buf own; /* the memory of all that follows, where it is this run's own */
    hs_buf hist[MAX_HISTORIES];
    hs_buf frames[2]; /* the residual stream, F32: one holds the current frames, the other gets the next ones */
    hs_buf x, x2;     /* these two, the current ones first */
    hs_buf tmp;       /* a convolution's result; act. At the end the frames in F32 */
    hs_buf in;        /* history and input of the convolution about to run [2 + T, Y, X, cin]; act */
    hs_buf u8;        /* [4, 8h, 8w, 3] */
};

/* ---- weights: one walk over the decoder, in order ------------------------------------------------------------------
 * With st NULL the walk only counts (histories, sizes, FLOPs), so the plan and the real thing cannot differ. */
typedef struct walk {
    hs_vae *v;
    hs_st *st;
    hs_err *err;
    int r;                 /* first error; the walk then does nothing more */
    int scale, t_first, t; /* where we are: times the latent size; frames of the first and of later latent frames */
    char name[128];
} walk;

HS_PRINTF(2, 3) static walk *at(walk *k, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(k->name, sizeof k->name, fmt, ap);
    va_end(ap);
    return k;
}

static void take_conv(walk *k, conv *c, int cout, int cin, int kt, int ky, int up2) {
    hs_vae *v = k->v;
    int64_t px = (int64_t)k->scale * k->scale, frames = k->t;
    c->cin = cin;
    c->cout = cout;
    c->history = -1;
    if (kt == 3) {
        v->hist[v->histories].channels = cin;
        v->hist[v->histories].scale = k->scale;
        c->history = v->histories++;
    }
    double fl = 2.0 * cin * cout * (kt ? kt : 1) * ky * ky * (double)px * (up2 ? 4 : 1);
    v->flops_first += fl * k->t_first;
    v->flops_next += fl * (double)frames;
    v->weights += (int64_t)((cin + 31) / 32 * 32) * ((cout + 15) / 16 * 16) * (kt ? kt : 1) * (up2 ? 24 : ky * ky);
    if (k->st && !k->r) k->r = hs_bind_conv(k->st, v->dev, cout, cin, kt, ky, ky, up2, &c->w, k->err, "%s", k->name);
}

static void take_gamma(walk *k, hs_buf *b, int n) {
    if (k->st && !k->r) k->r = hs_bind_vector(k->st, k->v->dev, n, b, k->err, "%s", k->name);
}

static void take_res(walk *k, resblock *b, int cin, int cout, const char *base) {
    take_gamma(at(k, "%s.norm1.gamma", base), &b->gamma1, cin);
    take_conv(at(k, "%s.conv1", base), &b->conv1, cout, cin, 3, 3, 0);
    take_gamma(at(k, "%s.norm2.gamma", base), &b->gamma2, cout);
    take_conv(at(k, "%s.conv2", base), &b->conv2, cout, cout, 3, 3, 0);
    if (cin != cout) take_conv(at(k, "%s.conv_shortcut", base), &b->shortcut, cout, cin, 1, 1, 0);
}

static void walk_decoder(walk *k) {
    hs_vae *v = k->v;
    const hs_config *c = v->c;
    char base[96];
    int top = c->v_base * c->v_mult[3];
    k->scale = k->t = k->t_first = 1;
    take_conv(at(k, "post_quant_conv"), &v->post_quant, c->v_z, c->v_z, 1, 1, 0);
    take_conv(at(k, "decoder.conv_in"), &v->conv_in, top, c->v_z, 3, 3, 0);
    take_res(k, &v->mid[0], top, top, "decoder.mid_block.resnets.0");
    take_gamma(at(k, "decoder.mid_block.attentions.0.norm.gamma"), &v->attn_gamma, top);
    take_conv(at(k, "decoder.mid_block.attentions.0.to_qkv"), &v->qkv, 3 * top, top, 0, 1, 0);
    take_conv(at(k, "decoder.mid_block.attentions.0.proj"), &v->proj, top, top, 0, 1, 0);
    take_res(k, &v->mid[1], top, top, "decoder.mid_block.resnets.1");
    int cin = top;
    for (int i = 0; i < STAGES; i++) {
        stage *s = &v->st[i];
        s->cin = cin;
        s->cout = c->v_base * c->v_mult[STAGES - 1 - i];
        s->up = i < STAGES - 1;
        s->up_time = s->up && c->v_temporal_down[STAGES - 2 - i];
        for (int j = 0; j <= c->v_res_blocks; j++) {
            snprintf(base, sizeof base, "decoder.up_blocks.%d.resnets.%d", i, j);
            take_res(k, &s->res[j], j ? s->cout : cin, s->cout, base);
        }
        if (s->up_time) {
            take_conv(at(k, "decoder.up_blocks.%d.upsamplers.0.time_conv", i), &s->time, 2 * s->cout, s->cout, 3, 1, 0);
            k->t *= 2; /* the first latent frame stays one frame */
        }
        if (s->up) {
            take_conv(at(k, "decoder.up_blocks.%d.upsamplers.0.resample.1", i), &s->resample, s->cout / 2, s->cout, 0,
                      3, 1);
            k->scale *= 2;
        }
        cin = s->cout / 2;
    }
    take_gamma(at(k, "decoder.norm_out.gamma"), &v->out_gamma, c->v_base * c->v_mult[0]);
    take_conv(at(k, "decoder.conv_out"), &v->conv_out, 3, c->v_base * c->v_mult[0], 3, 3, 0);
}

/* The encoder is in the file but not needed for text-to-video: only its names and shapes are checked. */
static void check_encoder(walk *k) {
    const hs_config *c = k->v->c;
    hs_vae scratch = {.c = c};
    resblock b;
    conv cv;
    hs_buf g;
    char base[96];
    walk e = {.v = &scratch, .st = k->st, .err = k->err, .r = k->r, .scale = 1, .t = 1, .t_first = 1};
    int dim = c->v_base, n = 0, top = c->v_base * c->v_mult[3];
    take_conv(at(&e, "encoder.conv_in"), &cv, dim, 3, 3, 3, 0);
    for (int i = 0; i < STAGES; i++) {
        int out = c->v_base * c->v_mult[i];
        for (int j = 0; j < c->v_res_blocks; j++, n++, dim = out) {
            snprintf(base, sizeof base, "encoder.down_blocks.%d", n);
            take_res(&e, &b, dim, out, base);
        }
        if (i == STAGES - 1) break;
        take_conv(at(&e, "encoder.down_blocks.%d.resample.1", n), &cv, out, out, 0, 3, 0);
        if (c->v_temporal_down[i]) take_conv(at(&e, "encoder.down_blocks.%d.time_conv", n), &cv, out, out, 3, 1, 0);
        n++;
    }
    take_res(&e, &b, top, top, "encoder.mid_block.resnets.0");
    take_gamma(at(&e, "encoder.mid_block.attentions.0.norm.gamma"), &g, top);
    take_conv(at(&e, "encoder.mid_block.attentions.0.to_qkv"), &cv, 3 * top, top, 0, 1, 0);
    take_conv(at(&e, "encoder.mid_block.attentions.0.proj"), &cv, top, top, 0, 1, 0);
    take_res(&e, &b, top, top, "encoder.mid_block.resnets.1");
    take_gamma(at(&e, "encoder.norm_out.gamma"), &g, top);
    take_conv(at(&e, "encoder.conv_out"), &cv, 2 * c->v_z, top, 3, 3, 0);
    take_conv(at(&e, "quant_conv"), &cv, 2 * c->v_z, 2 * c->v_z, 1, 1, 0);
    k->r = e.r;
}

int hs_vae_load(const hs_config *c, hs_st *st, hs_device *dev, hs_vae **ret, hs_err *err) {
    hs_vae *v = hs_calloc(1, sizeof *v);
    if (!v) return hs_fail(err, HS_ENOMEM, "no memory for the VAE");
    v->c = c;
    v->dev = dev;
    walk k = {.v = v, .st = st, .err = err};
    walk_decoder(&k);
    check_encoder(&k);
    const hs_st_tensor *extra = hs_st_unused(st);
    if (!k.r && extra)
        k.r = hs_fail(err, HS_EFORMAT, "%s: tensor %s is not part of a Wan2.1 VAE with %d residual blocks per stage",
                      extra->file, extra->name, c->v_res_blocks);
    if (k.r || !dev)
        hs_vae_free(v);
    else
        *ret = v;
    return k.r;
}

static void free_res(hs_device *dev, resblock *b) {
    hs_device_free(dev, b->gamma1);
    hs_device_free(dev, b->gamma2);
    hs_weight_free(dev, b->conv1.w);
    hs_weight_free(dev, b->conv2.w);
    hs_weight_free(dev, b->shortcut.w);
}

void hs_vae_free(hs_vae *v) {
    if (v && v->dev) {
        conv *c[] = {&v->post_quant, &v->conv_in, &v->qkv, &v->proj, &v->conv_out};
        for (int i = 0; i < 5; i++) hs_weight_free(v->dev, c[i]->w);
        for (int i = 0; i < 2; i++) free_res(v->dev, &v->mid[i]);
        hs_device_free(v->dev, v->attn_gamma);
        hs_device_free(v->dev, v->out_gamma);
        for (int i = 0; i < STAGES; i++) {
            for (int j = 0; j < MAX_RES; j++) free_res(v->dev, &v->st[i].res[j]);
            hs_weight_free(v->dev, v->st[i].time.w);
            hs_weight_free(v->dev, v->st[i].resample.w);
        }
    }
    hs_free(v);
}

/* ---- one size --------------------------------------------------------------------------------------------------- */

/* What a decode needs of each buffer, in values per latent pixel: the walk of hs_vae_decode without the work. */
typedef struct sizes {
    int64_t frames[2], tmp, in; /* F32, act, act */
    int64_t rgb;                /* values of frames in F32, which lie in tmp */
    int current;                /* which of the two frames */
} sizes;

static void at_least(int64_t *x, int64_t v) {
    *x = *x > v ? *x : v;
}

/* px: pixels of all frames per latent pixel. */
static void size_res(sizes *z, const resblock *b, int64_t T, int64_t px) {
    at_least(&z->in, (T + HIST) * px * (b->conv1.cin > b->conv1.cout ? b->conv1.cin : b->conv1.cout));
    at_least(&z->tmp, T * px * b->conv1.cout);
    at_least(&z->frames[z->current], T * px * b->conv1.cin);
    if (b->shortcut.cin) z->current ^= 1;
    at_least(&z->frames[z->current], T * px * b->conv1.cout);
}

/* Can the last stage take some frames at a time? Not where it needs both buffers itself, or makes new frames. */
static int can_chunk(const hs_vae *v) {
    return !v->st[STAGES - 2].up_time && !v->st[STAGES - 1].res[0].shortcut.cin;
}

static sizes measure(const hs_vae *v, int chunk) {
    sizes z = {0};
    int64_t T = 1, px = 1;
    at_least(&z.in, 3 * v->conv_in.cin);
    at_least(&z.tmp, v->conv_in.cin);
    at_least(&z.frames[0], v->conv_in.cout);
    size_res(&z, &v->mid[0], 1, 1);
    at_least(&z.tmp, v->qkv.cout);
    size_res(&z, &v->mid[1], 1, 1);
    for (int i = 0; i < STAGES; i++) {
        const stage *st = &v->st[i];
        for (int j = 0; j <= v->c->v_res_blocks; j++) size_res(&z, &st->res[j], T, px);
        if (!st->up) break;
        if (st->up_time) { /* the doubled frames lie in the other buffer, at most as F32 */
            at_least(&z.in, (T + HIST) * px * st->cout);
            at_least(&z.tmp, 2 * T * px * st->cout);
            at_least(&z.frames[z.current ^ 1], 2 * T * px * st->cout);
            T *= 2;
        } else {
            if (i == STAGES - 2 && can_chunk(v) && chunk < T) T = chunk;
            at_least(&z.in, T * px * st->cout);
            z.current ^= 1;
        }
        px *= 4;
        at_least(&z.frames[z.current], T * px * st->resample.cout);
    }
    at_least(&z.in, (T + HIST) * px * v->conv_out.cin);
    z.rgb = T * px * 3;
    return z;
}

/* Every buffer, once; `each` visits. */
typedef struct buffer {
    hs_buf *b;
    hs_dtype type;
    int64_t n;
} buffer;
enum { BUFFERS = 5 + MAX_HISTORIES, ALIGN = 256, MOST_FRAMES = 4 };

static int list_buffers(const hs_vae *v, hs_dtype act, int h, int w, int chunk, hs_vae_run *r, buffer ret[BUFFERS]) {
    const int64_t px = (int64_t)h * w, per = 4 / (int64_t)hs_dtype_size(act);
    sizes z = measure(v, chunk);
    int n = 0;
    at_least(&z.tmp, z.rgb * per);
    ret[n++] = (buffer){&r->frames[0], HS_F32, px * z.frames[0]};
    ret[n++] = (buffer){&r->frames[1], HS_F32, px * z.frames[1]};
    ret[n++] = (buffer){&r->tmp, act, px * z.tmp};
    ret[n++] = (buffer){&r->in, act, px * z.in};
    ret[n++] = (buffer){&r->u8, HS_U8, px * MOST_FRAMES * 64 * 3};
    for (int i = 0; i < v->histories; i++)
        ret[n++] = (buffer){&r->hist[i], act, px * HIST * v->hist[i].scale * v->hist[i].scale * v->hist[i].channels};
    return n;
}

static int64_t padded_bytes(const buffer *b) {
    return (b->n * (int64_t)hs_dtype_size(b->type) + ALIGN - 1) / ALIGN * ALIGN;
}

int64_t hs_vae_run_bytes(const hs_config *c, hs_dtype act, int latent_h, int latent_w, int chunk) {
    hs_vae v = {.c = c};
    hs_vae_run r;
    buffer all[BUFFERS];
    int64_t bytes = 0;
    walk_decoder(&(walk){.v = &v});
    for (int i = 0, n = list_buffers(&v, act, latent_h, latent_w, chunk, &r, all); i < n; i++)
        bytes += padded_bytes(&all[i]);
    return bytes;
}

int64_t hs_vae_weight_bytes(const hs_config *c, hs_dtype act) {
    hs_vae v = {.c = c};
    walk_decoder(&(walk){.v = &v});
    return v.weights * (int64_t)hs_dtype_size(act);
}

double hs_vae_flops(const hs_config *c, int latent_h, int latent_w, int frames) {
    hs_vae v = {.c = c};
    walk_decoder(&(walk){.v = &v});
    double px = (double)latent_h * latent_w, d = c->v_base * c->v_mult[3];
    return px * (v.flops_first + v.flops_next * (frames - 1)) + 4 * px * px * d * frames;
}

int hs_vae_run_new(hs_vae *v, int h, int w, int chunk, hs_buf room, hs_vae_run **ret, hs_err *err) {
    hs_vae_run *r = hs_calloc(1, sizeof *r);
    buffer all[BUFFERS];
    int64_t bytes = 0;
    if (!r) return hs_fail(err, HS_ENOMEM, "no memory for the VAE's activations");
    r->v = v;
    r->h = h;
    r->w = w;
    r->chunk = can_chunk(v) ? chunk : MOST_FRAMES;
    const int n = list_buffers(v, hs_device_act(v->dev), h, w, chunk, r, all);
    int e = 0;
    for (int i = 0; i < n; i++) bytes += padded_bytes(&all[i]);
    if (!room.p) {
        e = hs_device_alloc(v->dev, HS_U8, bytes, "VAE activations", &r->own, err);
        room = r->own;
    } else if (room.n < bytes) {
        e = hs_fail(err, HS_EINVAL, "room for %lld bytes of VAE activations, %lld are needed", (long long)room.n,
                    (long long)bytes);
    }
    for (int64_t i = 0, at = 0; i < n && !e; at += padded_bytes(&all[i++]))
        *all[i].b = (hs_buf){(char *)room.p + at, all[i].type, all[i].n};
    if (e)
        hs_vae_run_free(r);
    else
        *ret = r;
    return e;
}

void hs_vae_run_free(hs_vae_run *r) {
    if (!r) return;
    hs_device_free(r->v->dev, r->own);
    hs_free(r);
}

void hs_vae_begin(hs_vae_run *r) {
    for (int i = 0; i < r->v->histories; i++) hs_zero(r->v->dev, r->hist[i]);
}

/* ---- decoding -----------------------------------------------------------------------------------------------------
 */

typedef struct frames { /* T frames of Y x X pixels: the size of what is in r->x */
    int T, Y, X;
} frames;

static int64_t pixels(frames s) {
    return (int64_t)s.T * s.Y * s.X;
}

/* The first n values of a buffer; what was measured wrongly stops here. */
static hs_buf first(const hs_vae_run *r, hs_buf b, int64_t n) {
    if (n > b.n)
        hs_device_sticky(r->v->dev, HS_EINVAL, "VAE: %lld values in a buffer of %lld", (long long)n, (long long)b.n);
    return hs_buf_at(b, 0, n);
}

/* Where the new input frames of a convolution with memory go: behind its two remembered ones in r->in. */
static hs_buf new_input(hs_vae_run *r, const conv *c, frames s) {
    int64_t per_frame = (int64_t)s.Y * s.X * c->cin;
    return hs_buf_at(first(r, r->in, (HIST + s.T) * per_frame), HIST * per_frame, s.T * per_frame);
}

/* y (+)= c(remembered frames, new frames in r->in), and remembers the last two. */
static void causal_conv(hs_vae_run *r, const conv *c, frames s, hs_buf y, int accumulate) {
    hs_device *dev = r->v->dev;
    int64_t per_frame = (int64_t)s.Y * s.X * c->cin;
    hs_copy(dev, hs_buf_at(r->in, 0, HIST * per_frame), r->hist[c->history]);
    hs_op_conv(dev, &(hs_conv){.x = hs_buf_at(r->in, 0, (HIST + s.T) * per_frame),
                               .y = y,
                               .add = accumulate ? y : HS_NOBUF,
                               .w = c->w,
                               .T = s.T,
                               .Y = s.Y,
                               .X = s.X});
    hs_copy(dev, r->hist[c->history], hs_buf_at(r->in, s.T * per_frame, HIST * per_frame));
}

/* y (+)= c(x) for kernels of one frame; x F32 goes through r->in where the device computes in another type. */
static void frame_conv(hs_vae_run *r, const conv *c, frames s, hs_buf x, hs_buf y, int accumulate) {
    x = hs_buf_at(x, 0, pixels(s) * c->cin);
    if (x.type != r->in.type) {
        hs_buf in = first(r, r->in, x.n);
        hs_copy(r->v->dev, in, x);
        x = in;
    }
    hs_op_conv(r->v->dev,
               &(hs_conv){.x = x, .y = y, .add = accumulate ? y : HS_NOBUF, .w = c->w, .T = s.T, .Y = s.Y, .X = s.X});
}

static void swap_x(hs_vae_run *r) {
    hs_buf t = r->x;
    r->x = r->x2;
    r->x2 = t;
}

/* x = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x)))))) */
static void res_forward(hs_vae_run *r, const resblock *b, frames s) {
    hs_device *dev = r->v->dev;
    int cin = b->conv1.cin, cout = b->conv1.cout;
    hs_buf x = first(r, r->x, pixels(s) * cin), h = first(r, r->tmp, pixels(s) * cout);
    hs_op_channel_norm(dev, x, pixels(s), cin, b->gamma1, 1, new_input(r, &b->conv1, s));
    causal_conv(r, &b->conv1, s, h, 0);
    if (b->shortcut.cin) {
        frame_conv(r, &b->shortcut, s, r->x, first(r, r->x2, pixels(s) * cout), 0);
        swap_x(r);
    }
    hs_op_channel_norm(dev, h, pixels(s), cout, b->gamma2, 1, new_input(r, &b->conv2, s));
    causal_conv(r, &b->conv2, s, first(r, r->x, pixels(s) * cout), 1);
}

/* One head over the pixels of a frame, channels wide; frames never mix. Only ever one frame here (lowest resolution).
 */
static void mid_attention(hs_vae_run *r, frames s) {
    hs_vae *v = r->v;
    int64_t n = pixels(s), d = v->qkv.cin;
    hs_buf x = first(r, r->x, n * d), y = first(r, r->in, n * d), qkv = first(r, r->tmp, n * 3 * d);
    hs_op_channel_norm(v->dev, x, n, (int)d, v->attn_gamma, 0, y);
    frame_conv(r, &v->qkv, s, y, qkv, 0);
    hs_op_attention(v->dev, &(hs_attention){.q = qkv,
                                            .k = hs_buf_at(qkv, d, qkv.n - d),
                                            .v = hs_buf_at(qkv, 2 * d, qkv.n - 2 * d),
                                            .out = y,
                                            .ld_q = 3 * d,
                                            .ld_k = 3 * d,
                                            .ld_v = 3 * d,
                                            .ld_out = d,
                                            .len_q = n,
                                            .len_k = n,
                                            .heads = 1,
                                            .head_dim = (int)d,
                                            .scale = 1 / sqrtf((float)d)});
    frame_conv(r, &v->proj, s, y, x, 1);
}

/* Doubles T (not for the first latent frame, which the time convolution neither changes nor sees), then Y and X. */
static frames up_forward(hs_vae_run *r, const stage *st, frames s, int is_first) {
    hs_device *dev = r->v->dev;
    if (st->up_time && !is_first) {
        int64_t n = pixels(s) * 2 * st->cout;
        hs_buf h = first(r, r->tmp, n), doubled = {first(r, r->x2, n).p, h.type, n};
        hs_copy(dev, new_input(r, &st->time, s), first(r, r->x, n / 2));
        causal_conv(r, &st->time, s, h, 0);
        hs_op_split_frames(dev, h, s.T, (int64_t)s.Y * s.X, st->cout, doubled);
        s.T *= 2;
        frame_conv(r, &st->resample, s, doubled, first(r, r->x, pixels(s) * 4 * st->resample.cout), 0);
    } else {
        frame_conv(r, &st->resample, s, r->x, first(r, r->x2, pixels(s) * 4 * st->resample.cout), 0);
        swap_x(r);
    }
    return (frames){s.T, 2 * s.Y, 2 * s.X};
}

static void tap_stage(const hs_vae_run *r, int i, frames s, const hs_tap *tap) {
    const stage *st = &r->v->st[i];
    char name[16];
    int ch = st->up ? st->resample.cout : st->cout;
    snprintf(name, sizeof name, "vae.up.%d", i);
    if (hs_tap_is_on(tap)) HS_TAP(tap, r->v->dev, name, first(r, r->x, pixels(s) * ch), s.T, s.Y, s.X, ch);
}

/* The last stage: frames of full size from r->x, as bytes into rgb. */
static void top_stage(hs_vae_run *r, frames s, hs_buf rgb, const hs_tap *tap) {
    hs_vae *v = r->v;
    int ch = v->conv_out.cin;
    hs_buf f32 = {first(r, r->tmp, rgb.n * 4 / (int64_t)hs_dtype_size(r->tmp.type)).p, HS_F32, rgb.n};
    for (int j = 0; j <= v->c->v_res_blocks; j++) res_forward(r, &v->st[STAGES - 1].res[j], s);
    tap_stage(r, STAGES - 1, s, tap);
    hs_op_channel_norm(v->dev, first(r, r->x, pixels(s) * ch), pixels(s), ch, v->out_gamma, 1,
                       new_input(r, &v->conv_out, s));
    causal_conv(r, &v->conv_out, s, f32, 0);
    HS_TAP(tap, v->dev, "vae.out", f32, s.T, s.Y, s.X, 3);
    hs_op_to_u8(v->dev, f32, rgb);
}

void hs_vae_decode(hs_vae_run *r, hs_buf latents, int f, int t, hs_buf *ret_frames, int *ret_T, const hs_tap *tap) {
    hs_vae *v = r->v;
    hs_device *dev = v->dev;
    const hs_config *c = v->c;
    frames s = {1, r->h, r->w};
    r->x = r->frames[0];
    r->x2 = r->frames[1];
    hs_buf z = first(r, r->tmp, pixels(s) * c->v_z), top = first(r, r->x, pixels(s) * v->conv_in.cout);

    hs_op_latent_frames(dev, latents, c->v_z, f, t, 1, r->h, r->w, c->v_std, c->v_mean, z);
    frame_conv(r, &v->post_quant, s, z, new_input(r, &v->conv_in, s), 0);
    causal_conv(r, &v->conv_in, s, top, 0);
    HS_TAP(tap, dev, "vae.conv_in", top, 1, s.Y, s.X, v->conv_in.cout);
    res_forward(r, &v->mid[0], s);
    mid_attention(r, s);
    res_forward(r, &v->mid[1], s);
    HS_TAP(tap, dev, "vae.mid", first(r, r->x, top.n), 1, s.Y, s.X, v->conv_in.cout);

    for (int i = 0; i < STAGES - 1; i++) {
        const stage *st = &v->st[i];
        for (int j = 0; j <= c->v_res_blocks; j++) res_forward(r, &st->res[j], s);
        if (i == STAGES - 2) break;
        s = up_forward(r, st, s, t == 0);
        tap_stage(r, i, s, tap);
    }
    /* Where it saves memory, the largest frames are made a few at a time: each convolution remembers two anyway. */
    const stage *last = &v->st[STAGES - 2];
    const int64_t rgb = (int64_t)4 * s.Y * s.X * 3, below = (int64_t)s.Y * s.X * last->cout;
    if (s.T <= r->chunk) {
        s = up_forward(r, last, s, t == 0);
        tap_stage(r, STAGES - 2, s, tap);
        top_stage(r, s, first(r, r->u8, s.T * rgb), tap);
        *ret_T = s.T;
    } else {
        for (int done = 0; done < s.T; done += r->chunk) {
            const hs_buf all = r->x;
            const frames part = {s.T - done < r->chunk ? s.T - done : r->chunk, s.Y, s.X};
            r->x = hs_buf_at(all, done * below, part.T * below);
            const frames up = up_forward(r, last, part, t == 0);
            tap_stage(r, STAGES - 2, up, tap);
            top_stage(r, up, hs_buf_at(r->u8, done * rgb, part.T * rgb), tap);
            swap_x(r);
            r->x = all;
        }
        *ret_T = s.T;
    }
    *ret_frames = first(r, r->u8, *ret_T * rgb);
}
