/* Lifetimes: what a model and a session hold, when parts are loaded and released, what a request would cost. */
#include "session.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- model ------------------------------------------------------------------------------------------------------ */

static int open_part(const char *dir, const char *part, const char *stem, hs_st **ret, hs_err *err) {
    char *path = hs_path_join(dir, part);
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
    int r = hs_st_open_dir(path, stem, ret, err);
    hs_free(path);
    return r;
}

/* Every name and shape is checked before anything is loaded: the load of a wrong file fails in milliseconds. */
static int open_files(hs_model *m, const char *dir, hs_err *err) {
    int r;
    if ((r = hs_config_load(dir, &m->c, err)) || (r = hs_model_sha256(dir, m->info.sha256, err)) ||
        (r = open_part(dir, "text_encoder", "model", &m->st_text, err)) ||
        (r = hs_text_load(&m->c, m->st_text, NULL, NULL, err)) ||
        (r = open_part(dir, "transformer", "diffusion_pytorch_model", &m->st_dit, err)) ||
        (r = hs_dit_load(&m->c, m->st_dit, NULL, NULL, err)) ||
        (r = open_part(dir, "vae", "diffusion_pytorch_model", &m->st_vae, err)) ||
        (r = hs_vae_load(&m->c, m->st_vae, NULL, NULL, err)))
        return r;
    char *spiece = hs_path_join(dir, "tokenizer/spiece.model");
    if (!spiece) return hs_fail(err, HS_ENOMEM, "no memory to open %s", dir);
    r = hs_tokenizer_open(spiece, &m->tokenizer, err);
    if (!r && hs_tokenizer_vocab(m->tokenizer) > m->c.t_vocab)
        r = hs_fail(err, HS_EFORMAT,
                    "%s has %d pieces, the text encoder's embedding %d rows; they do not belong together", spiece,
                    hs_tokenizer_vocab(m->tokenizer), m->c.t_vocab);
    hs_free(spiece);
    return r;
}

/* On a CPU in bf16 the VAE's error would be 1.4 % on random weights (docs/testing.md), in F32 it is nil, for about one
 * second (estimated) of a demo video on 2 cores. On a GPU F32 would take most of a video's time, so there the VAE has
 * the type of the rest. fp16 too: the demo VAE's largest value, of the residual stream, is 8,000 of the 65,504 that
 * fit; what does not becomes NaN at the next norm, and hs_op_to_u8 reports it. */
static int open_devices(hs_model *m, hs_device_params dp, hs_err *err) {
    int r = hs_device_open(&dp, &m->dev, err);
    if (r) return r;
    m->vae_dev = m->dev;
    if (strncmp(hs_device_name(m->dev), "cpu", 3) || hs_device_act(m->dev) == HS_F32) return 0;
    dp.name = "cpu";
    dp.precision = "fp32";
    return hs_device_open(&dp, &m->vae_dev, err);
}

/* The last part of a path, without slashes behind it. */
static void name_of(const char *dir, char *ret, size_t size) {
    size_t end = strlen(dir), start;
    while (end > 1 && dir[end - 1] == '/') end--;
    for (start = end; start && dir[start - 1] != '/';) start--;
    snprintf(ret, size, "%.*s", (int)(end - start), dir + start);
}

int hs_model_open(const hs_model_params *p, hs_model **ret, hs_err *err) {
    hs_model *m = hs_calloc(1, sizeof *m);
    if (!m) return hs_fail(err, HS_ENOMEM, "no memory for the model");
    hs_device_params dp = {.name = p->device, .threads = p->threads, .precision = p->precision};
    int r;
    if ((r = open_files(m, p->dir, err)) || (r = open_devices(m, dp, err))) {
        hs_model_free(m);
        return r;
    }
    const hs_config *c = &m->c;
    hs_model_info *i = &m->info;
    i->layers = c->layers;
    i->heads = c->heads;
    i->head_dim = c->head_dim;
    i->dim = c->dim;
    i->latent_channels = c->in_channels;
    i->stride_t = 4;
    i->stride_s = 8;
    i->width = c->width;
    i->height = c->height;
    i->frames = c->frames;
    i->fps = c->fps;
    i->steps = c->steps;
    i->guidance = c->guidance;
    i->shift = c->shift;
    i->solver = c->solver;
    i->negative_prompt = c->negative_prompt;
    i->bytes_text = hs_st_bytes(m->st_text);
    i->bytes_dit = hs_st_bytes(m->st_dit);
    i->bytes_vae = hs_st_bytes(m->st_vae);
    snprintf(i->device, sizeof i->device, "%s", hs_device_name(m->dev));
    const hs_dtype act = hs_device_act(m->dev);
    strcpy(i->precision, act == HS_F32 ? "fp32" : act == HS_F16 ? "fp16" : "bf16");
    name_of(p->dir, i->name, sizeof i->name);
    *ret = m;
    return 0;
}

void hs_model_free(hs_model *m) {
    if (!m) return;
    hs_text_free(m->text);
    hs_dit_free(m->dit);
    hs_vae_free(m->vae);
    hs_tokenizer_close(m->tokenizer);
    hs_st_close(m->st_text);
    hs_st_close(m->st_dit);
    hs_st_close(m->st_vae);
    if (m->vae_dev != m->dev) hs_device_close(m->vae_dev);
    hs_device_close(m->dev);
    hs_config_done(&m->c);
    hs_free(m);
}

const hs_model_info *hs_model_get_info(const hs_model *m) {
    return &m->info;
}

/* ---- request ---------------------------------------------------------------------------------------------------- */

hs_request hs_request_default(const hs_model *m) {
    const hs_model_info *i = &m->info;
    return (hs_request){.width = i->width,
                        .height = i->height,
                        .frames = i->frames,
                        .fps = i->fps,
                        .steps = i->steps,
                        .solver = i->solver,
                        .sigmas = -1,
                        .guidance = i->guidance,
                        .shift = i->shift,
                        .attention = hs_attn_policy_default(HS_DENSE)};
}

int hs_session_sched(const hs_request *r, hs_sched *ret, hs_err *err) {
    static const hs_sigmas_kind usual[] = {
        [HS_UNIPC] = HS_SIGMAS_A, [HS_DPMPP] = HS_SIGMAS_C, [HS_EULER] = HS_SIGMAS_D};
    return hs_sched_init(ret, r->solver, r->sigmas < 0 ? usual[r->solver] : (hs_sigmas_kind)r->sigmas, r->steps,
                         r->shift, err);
}

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

static int64_t elements(const hs_st *st, const char *prefix) {
    int64_t n = 0;
    for (int i = 0; i < hs_st_count(st); i++)
        if (!strncmp(hs_st_at(st, i)->name, prefix, strlen(prefix))) n += hs_st_at(st, i)->numel;
    return n;
}

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

int hs_request_check(hs_model *m, const hs_request *r, hs_plan *ret_plan, hs_err *err) {
    const hs_config *c = &m->c;
    int e = check_ranges(c, r, err);
    if (e) return e;
    hs_dtype act = hs_device_act(m->dev);
    hs_dtype vae_act = hs_device_act(m->vae_dev);
    int64_t size = (int64_t)hs_dtype_size(act), vae_size = (int64_t)hs_dtype_size(vae_act);
    hs_plan p = {.latent_frames = 1 + (r->frames - 1) / 4, .latent_h = r->height / 8, .latent_w = r->width / 8};
    int f = (int)p.latent_frames, h = (int)p.latent_h, w = (int)p.latent_w;
    p.tokens = p.latent_frames * (h / 2) * (w / 2);
    p.text_bytes = elements(m->st_text, "") * size;
    p.dit_bytes = elements(m->st_dit, "") * size;
    p.vae_bytes = (elements(m->st_vae, "decoder.") + elements(m->st_vae, "post_quant_conv.")) * vae_size;
    p.act_bytes = hs_dit_run_bytes(c, act, f, h / 2, w / 2) +
                  hs_attn_bytes(&r->attention, c->layers, c->heads, c->head_dim, p.tokens);
    p.vae_act_bytes = hs_vae_run_bytes(c, vae_act, h, w);
    p.latent_bytes = 7 * c->in_channels * p.latent_frames * h * w * 4 + 2 * (int64_t)HS_TEXT_LEN * c->text_dim * 4;
    int64_t denoise = p.dit_bytes + p.act_bytes + p.vae_bytes + p.vae_act_bytes;
    p.peak_bytes = p.latent_bytes + (denoise > p.text_bytes ? denoise : p.text_bytes);
    p.free_bytes = hs_device_free_bytes(m->dev);
    int branches = r->guidance > 1 ? 2 : 1;
    p.flops_text = 2.0 * branches * 64 * c->t_layers * c->t_dim * (4.0 * c->t_heads * c->t_dkv + 3.0 * c->t_ff);
    p.flops_step = branches * hs_dit_flops(c, f, h / 2, w / 2, 64);
    p.flops_vae = hs_vae_flops(c, h, w, f);
    if (p.peak_bytes > p.free_bytes)
        return hs_fail(
            err, HS_ENOMEM,
            "%dx%d with %d frames is %lld tokens and needs %.1f GB (transformer %.1f + its activations %.1f + "
            "VAE %.1f); %.1f GB are free on %s. Ask for a smaller size or fewer frames",
            r->width, r->height, r->frames, (long long)p.tokens, (double)p.peak_bytes / 1e9, (double)p.dit_bytes / 1e9,
            (double)p.act_bytes / 1e9, (double)(p.vae_bytes + p.vae_act_bytes) / 1e9, (double)p.free_bytes / 1e9,
            hs_device_name(m->dev));
    if (!ret_plan) return 0;
    /* attention, convolutions and memory traffic bring the whole to about 60 % of what a plain product reaches */
    double rate = 0.6 * probe_rate(m->dev);
    if (rate > 0) p.seconds = (p.flops_text + p.flops_step * r->steps + p.flops_vae) / rate;
    *ret_plan = p;
    return 0;
}

/* ---- session ---------------------------------------------------------------------------------------------------- */

int hs_session_new(hs_model *m, const hs_request *r, hs_session **ret, hs_err *err) {
    int e = hs_request_check(m, r, NULL, err);
    if (e) return e;
    hs_session *s = hs_calloc(1, sizeof *s);
    if (!s) return hs_fail(err, HS_ENOMEM, "no memory for the session");
    const hs_config *c = &m->c;
    s->m = m;
    s->width = r->width;
    s->height = r->height;
    s->frames = r->frames;
    s->attention = r->attention;
    s->ch = c->in_channels;
    s->f = 1 + (r->frames - 1) / 4;
    s->h = r->height / 8;
    s->w = r->width / 8;
    s->n = (int64_t)s->ch * s->f * s->h * s->w;
    hs_buf *latents[] = {&s->x, &s->xl, &s->m0, &s->m1, &s->m2, &s->v[0], &s->v[1]};
    e = hs_session_sched(r, &s->sched, err);
    for (size_t i = 0; i < sizeof latents / sizeof *latents && !e; i++)
        e = hs_device_alloc(m->dev, HS_F32, s->n, "latents and solver state", latents[i], err);
    for (int b = 0; b < HS_BRANCH_COUNT && !e; b++)
        e = hs_device_alloc(m->dev, HS_F32, (int64_t)HS_TEXT_LEN * c->text_dim, "text rows", &s->rows[b], err);
    s->host = hs_alloc((size_t)s->n * sizeof *s->host);
    s->host_rgb = hs_alloc((size_t)4 * (size_t)s->height * (size_t)s->width * 3);
    if (!e && (!s->host || !s->host_rgb)) e = hs_fail(err, HS_ENOMEM, "no memory for the session");
    if (e) {
        hs_session_free(s);
        return e;
    }
    int64_t all = hs_st_bytes(m->st_text) + hs_st_bytes(m->st_dit) + hs_st_bytes(m->st_vae) +
                  hs_dit_run_bytes(c, hs_device_act(m->dev), s->f, s->h / 2, s->w / 2) +
                  hs_vae_run_bytes(c, hs_device_act(m->vae_dev), s->h, s->w);
    s->keep_text = all < hs_device_free_bytes(m->dev) / 2;
    *ret = s;
    return 0;
}

void hs_session_free(hs_session *s) {
    if (!s) return;
    hs_device *dev = s->m->dev;
    hs_buf all[] = {s->x, s->xl, s->m0, s->m1, s->m2, s->v[0], s->v[1], s->rows[0], s->rows[1]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) hs_device_free(dev, all[i]);
    hs_dit_run_free(s->dit);
    hs_vae_run_free(s->vae);
    hs_checkpoint_writer_free(s->writer);
    for (int b = 0; b < HS_BRANCH_COUNT; b++) hs_free(s->prompt[b]);
    hs_free(s->host);
    hs_free(s->recorded);
    hs_free(s->host_rgb);
    hs_free(s);
}

int hs_session_need_text(hs_session *s, hs_err *err) {
    hs_model *m = s->m;
    if (m->text) return 0;
    int r = hs_text_load(&m->c, m->st_text, m->dev, &m->text, err);
    return r ? r : hs_device_check(m->dev, err); /* loaded when it is there */
}

int hs_session_need_vae(hs_session *s, hs_err *err) {
    hs_model *m = s->m;
    int r = m->vae ? 0 : hs_vae_load(&m->c, m->st_vae, m->vae_dev, &m->vae, err);
    if (!r && !s->vae) r = hs_vae_run_new(m->vae, s->h, s->w, &s->vae, err);
    return r ? r : hs_device_check(m->vae_dev, err);
}

int hs_session_need_dit(hs_session *s, hs_err *err) {
    hs_model *m = s->m;
    int r = 0;
    if (!s->keep_text && m->text) {
        hs_text_free(m->text);
        m->text = NULL;
    }
    if (!m->dit && (r = hs_dit_load(&m->c, m->st_dit, m->dev, &m->dit, err))) return r;
    if (!s->dit) {
        if ((r = hs_dit_run_new(m->dit, s->f, s->h / 2, s->w / 2, &s->dit, err))) return r;
        if ((r = hs_dit_run_attention(s->dit, &s->attention, err))) {
            hs_dit_run_free(s->dit); /* or a second try would run dense */
            s->dit = NULL;
            return r;
        }
    }
    for (int b = 0; b < HS_BRANCH_COUNT; b++)
        if (s->prompt[b] && !s->in_dit[b]) {
            hs_buf rows = hs_buf_at(s->rows[b], 0, s->n_rows[b] * (int64_t)m->c.text_dim);
            if ((r = hs_dit_set_text(s->dit, b, rows, s->n_rows[b], &s->tap, err))) return r;
            s->in_dit[b] = 1;
        }
    return 0;
}

int hs_session_set_text(hs_session *s, int branch, const char *prompt, int *ret_tokens, int *ret_total, hs_err *err) {
    hs_model *m = s->m;
    int r = 0, n = s->n_rows[branch], total = s->n_total[branch];
    if (!s->prompt[branch] || strcmp(s->prompt[branch], prompt)) {
        int32_t ids[HS_TEXT_LEN];
        char *clean = NULL, *copy = NULL;
        if ((r = hs_prompt_clean(prompt, &clean, err)) ||
            (r = hs_tokenizer_encode(m->tokenizer, clean, HS_TEXT_LEN, ids, &n, &total, err)) ||
            (r = hs_session_need_text(s, err)))
            goto out;
        if (!(copy = hs_strdup(prompt))) {
            r = hs_fail(err, HS_ENOMEM, "no memory for the prompt");
            goto out;
        }
        if ((r = hs_text_encode(m->text, ids, n, hs_buf_at(s->rows[branch], 0, n * (int64_t)m->c.text_dim), &s->tap,
                                err)))
            goto out;
        hs_free(s->prompt[branch]);
        s->prompt[branch] = copy;
        copy = NULL;
        s->n_rows[branch] = n;
        s->n_total[branch] = total;
        s->in_dit[branch] = 0;
    out:
        hs_free(clean);
        hs_free(copy);
        if (r) return r;
    }
    if (ret_tokens) *ret_tokens = n;
    if (ret_total) *ret_total = total;
    return 0;
}

int hs_session_begin(hs_session *s, hs_err *err) {
    int r = hs_session_need_dit(s, err);
    if (!r) hs_attn_begin(hs_dit_run_attn(s->dit));
    return r ? r : hs_device_check(s->m->dev, err);
}

int hs_session_attention(hs_session *s, const hs_attn_policy *p, hs_err *err) {
    int r = hs_attn_policy_check(p, s->m->c.layers, s->m->c.heads, err);
    if (r || (s->dit && (r = hs_dit_run_attention(s->dit, p, err)))) return r;
    s->attention = *p;
    return 0;
}

float hs_session_timestep(const hs_session *s, int step) {
    return s->sched.t[step];
}

int hs_session_layer_stats(hs_session *s, int branch, int layer, float *ret_density, float *ret_drift,
                           uint8_t *ret_call, hs_err *err) {
    if (!s->dit) return hs_fail(err, HS_EINVAL, "attention has done nothing yet: call hs_denoise first");
    return hs_attn_report(hs_dit_run_attn(s->dit), branch, layer, ret_density, ret_drift, ret_call, err);
}

int hs_session_mask(hs_session *s, int branch, int layer, hs_mask_view *ret, hs_err *err) {
    if (!s->dit) return hs_fail(err, HS_EINVAL, "attention has done nothing yet: call hs_denoise first");
    return hs_attn_mask(hs_dit_run_attn(s->dit), branch, layer, ret, err);
}

int hs_denoise(hs_session *s, const float *latents, float t, const hs_policy *policy, float *ret_velocity,
               hs_err *err) {
    hs_device *dev = s->m->dev;
    int b = policy->branch, r = hs_session_need_dit(s, err);
    if (r) return r;
    if (!s->in_dit[b]) return hs_fail(err, HS_EINVAL, "branch %d has no prompt yet: call hs_session_set_text first", b);
    if ((r = hs_dit_run_range(s->dit, policy, err))) return r;
    hs_buf in = latents ? s->m0 : s->x; /* m0 is free between solver steps */
    if (latents && !policy->first) hs_upload(dev, in, latents);
    hs_dit_forward(s->dit, in, t, policy, s->v[b], &s->tap);
    if ((r = hs_device_check(dev, err))) return r;
    if (ret_velocity && !policy->end) hs_download(dev, ret_velocity, s->v[b]);
    return hs_device_check(dev, err);
}

int hs_session_latents(hs_session *s, float *ret, hs_err *err) {
    hs_download(s->m->dev, ret, s->x);
    return hs_device_check(s->m->dev, err);
}

void hs_session_tap(hs_session *s, hs_tap_fn fn, void *user) {
    s->tap = (hs_tap){fn, user};
}
