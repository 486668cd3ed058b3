/* What a request would cost, and how it fits: which weights stay on the device, which are streamed, how many frames the
 * VAE makes at a time. Decided before anything is loaded, from the configuration alone. */
#include "session.h"
#include "stream.h"
#include "tiles.h"

#include <string.h>

/* ---- ranges ------------------------------------------------------------------------------------------------------ */

static int check_size(const hs_config *c, const char *what, int v, hs_err *err) {
    int most = 16 * c->rope_max;
    if (v >= 16 && v <= most && v % 16 == 0) return 0;
    int near = v < 16 ? 16 : v > most ? most : (v + 8) / 16 * 16;
    return hs_fail(err, HS_EINVAL, "%s %d: must be a multiple of 16 from 16 to %d; the nearest is %d", what, v, most,
                   near);
}

static int check_ranges(const hs_config *c, const hs_request *r, hs_err *err) {
    int e, most = 4 * (c->rope_max - 1) + 1;
    hs_sched sched;
    if ((e = check_size(c, "width", r->width, err)) || (e = check_size(c, "height", r->height, err)) ||
        (e = hs_session_sched(r, &sched, err)))
        return e;
    if ((e = hs_attn_policy_check(&r->attention, c->layers, c->heads, err))) return e;
    for (int i = 0; i < r->n_later; i++)
        if ((e = hs_attn_policy_check(&r->later[i], c->layers, c->heads, err))) return e;
    if (r->frames < 1 || r->frames > most || r->frames % 4 != 1)
        return hs_fail(err, HS_EINVAL, "%d frames: must be 4k+1 from 1 to %d; the nearest is %d", r->frames, most,
                       r->frames < 1      ? 1
                       : r->frames > most ? most
                                          : r->frames / 4 * 4 + 1);
    if (r->fps < 1 || r->fps > 1000)
        return hs_fail(err, HS_EINVAL, "%d frames per second: 1 to 1000 are possible", r->fps);
    if (!(r->guidance >= 0 && r->guidance <= 1000))
        return hs_fail(err, HS_EINVAL, "guidance %g is not in 0 to 1000", r->guidance);
    return 0;
}

/* ---- work ---- */

/* Measured FLOP/s of a mid-sized product on this device; a tenth of a second. */
static double probe_rate(hs_device *dev) {
    enum { DIM = 768 };
    const int64_t rows = strncmp(hs_device_name(dev), "cuda", 4) ? 512 : 1 << 15; /* that fill it */
    static const float zero[DIM * DIM];
    hs_linear_src src = {.parts = 1, .w = {zero}, .type = {HS_F32}, .out = {DIM}, .in = DIM};
    hs_weight *w = NULL;
    hs_buf x = HS_NOBUF, y = HS_NOBUF;
    double rate = 0, seconds = 0;
    hs_dtype act = hs_device_act(dev);
    if (!hs_weight_linear(dev, &src, &w, NULL) && !hs_device_alloc(dev, act, rows * DIM, "probe", &x, NULL) &&
        !hs_device_alloc(dev, act, rows * DIM, "probe", &y, NULL)) {
        hs_zero(dev, x);
        for (int64_t runs = 1; seconds < 0.05; runs *= 2) { /* a GPU starts them all before it has finished the first */
            double start = hs_seconds();
            for (int64_t i = 0; i < runs; i++) hs_op_linear(dev, &(hs_linear){.x = x, .y = y, .w = w, .rows = rows});
            if (hs_device_check(dev, NULL)) break;
            seconds = hs_seconds() - start;
            rate = 2.0 * (double)rows * DIM * DIM * (double)runs / (seconds + 1e-9);
        }
    }
    hs_device_free(dev, x);
    hs_device_free(dev, y);
    hs_weight_free(dev, w);
    return rate;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The VAE's largest frames all at once, two, or one at a time; at last in tiles. */
enum { WAYS = 4, TILED = 3 };
static const int chunks[WAYS] = {4, 2, 1, 4};

/* What the pieces of a plan are made of. */
typedef struct parts {
    hs_dit_bytes dit;
    int64_t text_layer, text_rest, room; /* room: of the transformer alone */
    int64_t vae[WAYS];                   /* VAE activations */
    int ways;                            /* of them that there are: small frames have no tiles */
    int shared;                          /* the VAE computes on the same device */
} parts;

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t denoise_bytes(const parts *k, const hs_plan *p) {
    return p->dit_bytes + p->stream_bytes + p->act_bytes + p->mask_bytes + p->room_bytes + p->vae_bytes +
           (k->shared ? 0 : p->vae_act_bytes);
}

/* The plan with so many resident blocks and this way of the VAE; returns its highest stage. */
static int64_t arrange(const hs_model *m, const parts *k, int resident, int chunk, int text_streamed, hs_plan *p) {
    const int blocks = m->c.layers, layers = m->c.t_layers, streamed = blocks - resident;
    p->blocks = blocks;
    p->resident = resident;
    p->text_streamed = text_streamed;
    p->vae_chunk = chunks[chunk];
    p->vae_tiled = chunk == TILED;
    p->vae_act_bytes = k->vae[chunk];
    p->room_bytes = k->shared ? most(k->room, p->vae_act_bytes) : k->room;
    p->text_bytes = k->text_rest + (text_streamed ? 2 : layers) * k->text_layer;
    p->dit_bytes = k->dit.rest + resident * k->dit.block + (streamed ? 0 : blocks * k->dit.text);
    p->stream_bytes = streamed ? 2 * most(k->dit.block, k->dit.text) : 0;
    p->host_bytes =
        most(streamed ? streamed * k->dit.block + blocks * k->dit.text : 0, text_streamed ? layers * k->text_layer : 0);
    return p->peak_bytes = p->latent_bytes + p->own_bytes + most(denoise_bytes(k, p), p->text_bytes);
}

/* Everything on the device if that fits, with the VAE's frames at once or a few at a time; else as many blocks of the
 * transformer as do, the others streamed. -1: nothing fits; *p is then the least there is. */
static int fit(const hs_model *m, const parts *k, int64_t limit, hs_plan *p) {
    const int can = k->dit.block && hs_stream_possible(m->dev),
              all = m->c.layers; /* nothing to stream: only decoding */
    int64_t text = 0;
    int chunk, text_streamed = 0;
    arrange(m, k, all, 0, 0, p);
    text = p->latent_bytes + p->own_bytes + p->text_bytes;
    if (text > limit) text_streamed = can;
    for (chunk = 0; chunk < (can ? TILED : k->ways); chunk++)
        if (arrange(m, k, all, chunk, text_streamed, p) <= limit) return 0;
    for (chunk = 0; chunk < k->ways && can; chunk++) {
        if (arrange(m, k, 0, chunk, text_streamed, p) > limit) continue;
        const int64_t rooms = (limit - p->latent_bytes - p->own_bytes - denoise_bytes(k, p)) / k->dit.block;
        arrange(m, k, rooms < all ? (int)rooms : all - 1, chunk, text_streamed, p);
        return 0;
    }
    const int least = k->ways == WAYS && k->vae[TILED] < k->vae[TILED - 1] ? TILED : TILED - 1;
    arrange(m, k, can ? 0 : all, least, text_streamed, p);
    return -1;
}

/* What the device has for this model: what is free and what the model holds already. Without a limit a little is left
 * to fragmentation and to the driver. */
static int64_t limit_of(const hs_model *m) {
    int64_t limit = hs_device_free_bytes(m->dev) + hs_device_bytes(m->dev, NULL);
    if (m->vae_dev != m->dev) limit += hs_device_bytes(m->vae_dev, NULL);
    return m->dev->max_bytes || !hs_stream_possible(m->dev) ? limit : limit - limit / 64;
}

/* Everything that is there for the steps. */
static void plan_steps(const hs_model *m, const hs_request *r, hs_plan *p, parts *k) {
    const hs_config *c = &m->c;
    const hs_dtype act = hs_device_act(m->dev);
    const int f = (int)p->latent_frames, h = (int)p->latent_h, w = (int)p->latent_w;
    k->dit = hs_dit_weight_bytes(c, act);
    k->text_rest = hs_text_bytes(c, act, &k->text_layer);
    p->act_bytes = hs_dit_run_bytes(c, act, f, h / 2, w / 2, &k->room);
    if (r->layer_ranges) p->act_bytes += (r->guidance > 1 ? 2 : 1) * hs_dit_kept_bytes(c, p->tokens);
    for (int i = -1; i < r->n_later; i++) {
        const hs_attn_policy *const a = i < 0 ? &r->attention : &r->later[i];
        p->mask_bytes = most(p->mask_bytes, hs_attn_bytes(a, c->layers, c->heads, c->head_dim, p->tokens));
        p->own_bytes = most(p->own_bytes, hs_attn_own_bytes(m->dev, a, c->heads, c->head_dim, p->tokens));
    }
    p->latent_bytes = 7 * c->in_channels * p->latent_frames * h * w * 4 + 2 * (int64_t)HS_TEXT_LEN * c->text_dim * 4;
}

int hs_plan_memory(hs_model *m, const hs_request *r, int64_t host, hs_plan *ret, hs_err *err) {
    const hs_config *c = &m->c;
    int e = check_ranges(c, r, err);
    if (e) return e;
    const hs_dtype vae_act = hs_device_act(m->vae_dev);
    hs_plan p = {.latent_frames = 1 + (r->frames - 1) / 4, .latent_h = r->height / 8, .latent_w = r->width / 8};
    const int f = (int)p.latent_frames, h = (int)p.latent_h, w = (int)p.latent_w;
    parts k = {.shared = m->vae_dev == m->dev};
    p.tokens = p.latent_frames * (h / 2) * (w / 2);
    p.latent_bytes = c->in_channels * p.latent_frames * h * w * 4;
    p.own_bytes = hs_device_own_bytes(m->dev, NULL);
    if (!r->decode_only) plan_steps(m, r, &p, &k);
    p.vae_bytes = hs_vae_weight_bytes(c, vae_act);
    for (int i = 0; i < TILED; i++) k.vae[i] = hs_vae_run_bytes(c, vae_act, h, w, chunks[i]);
    const int th = hs_tiles_side(h), tw = hs_tiles_side(w);
    k.ways = th < h || tw < w ? WAYS : TILED;
    k.vae[TILED] = hs_vae_run_bytes(c, vae_act, th, tw, chunks[TILED]) +
                   (int64_t)c->in_channels * f * th * tw * 4; /* the latents of a tile */
    p.limit_bytes = limit_of(m);
    p.limited = m->dev->max_bytes && p.limit_bytes >= m->dev->max_bytes;
    if (fit(m, &k, p.limit_bytes, &p))
        return hs_fail(
            err, HS_ENOMEM,
            "%dx%d with %d frames is %lld tokens and needs %.3g GB at least (transformer %.3g + its activations %.3g + "
            "VAE %.3g); %.3g GB are %s on %s. Ask for a smaller size or fewer frames",
            r->width, r->height, r->frames, (long long)p.tokens, (double)p.peak_bytes / 1e9,
            (double)(p.dit_bytes + p.stream_bytes) / 1e9, (double)(p.act_bytes + p.mask_bytes + p.room_bytes) / 1e9,
            (double)(p.vae_bytes + (k.shared ? 0 : p.vae_act_bytes)) / 1e9, (double)p.limit_bytes / 1e9,
            p.limited ? "allowed" : "free", hs_device_name(m->dev));
    if (p.host_bytes > host + (m->dit || m->text ? p.host_bytes : 0))
        return hs_fail(
            err, HS_ENOMEM,
            "%.1f GB of weights do not fit on the device and would stay in host memory, of which %.1f GB are "
            "free: allow more with --max-vram, or ask for a smaller size",
            (double)p.host_bytes / 1e9, (double)host / 1e9);
    *ret = p;
    return 0;
}

static void plan_work(const hs_config *c, const hs_request *r, hs_plan *p) {
    const int f = (int)p->latent_frames, h = (int)p->latent_h, w = (int)p->latent_w, branches = r->guidance > 1 ? 2 : 1;
    p->flops_vae = hs_vae_flops(c, h, w, f);
    if (r->decode_only) return;
    p->flops_text = 2.0 * branches * 64 * c->t_layers * c->t_dim * (4.0 * c->t_heads * c->t_dkv + 3.0 * c->t_ff);
    p->flops_step = branches * hs_dit_flops(c, f, h / 2, w / 2, 64);
}

int hs_request_fit(hs_model *m, const hs_request *r, hs_plan *ret, hs_err *err) {
    hs_plan p;
    const int e = hs_plan_memory(m, r, hs_host_free_bytes(), &p, err);
    if (e) return e;
    plan_work(&m->c, r, &p);
    *ret = p;
    return 0;
}

int hs_request_check(hs_model *m, const hs_request *r, hs_plan *ret_plan, hs_err *err) {
    hs_plan p;
    const int e = hs_request_fit(m, r, &p, err);
    if (e || !ret_plan) return e;
    /* attention, convolutions and memory traffic bring the whole to about 60 % of what a plain product reaches */
    const double rate = 0.6 * probe_rate(m->dev);
    const int steps = r->steps - (r->resume ? hs_checkpoint_steps(r->resume, NULL) : 0);
    if (rate > 0) p.seconds = (p.flops_text + p.flops_step * steps + p.flops_vae) / rate;
    *ret_plan = p;
    return 0;
}
