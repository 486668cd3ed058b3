/* Lifetimes: what a model and a session hold, when parts are loaded and released, what a request would cost. */
#include "random.h"
#include "session.h"
#include "layout.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- model ------------------------------------------------------------------------------------------------------ */

static int check_parts(hs_model *m, hs_err *err) {
    int r;
    if ((r = hs_text_load(&m->c, m->st_text, NULL, 0, NULL, err)) ||
        (r = hs_dit_load(&m->c, m->st_dit, NULL, HS_ALL_BLOCKS, NULL, err)))
        return r;
    return hs_vae_load(&m->c, m->st_vae, NULL, NULL, err);
}

/* A model of random numbers. Asking for every tensor once makes the sizes known. */
static int open_random(hs_model *m, const char *name, hs_err *err) {
    int r = hs_random_config(name, &m->c, err);
    if (r || (r = hs_st_random(name, &m->st_text, err)) || (r = hs_st_random(name, &m->st_dit, err)) ||
        (r = hs_st_random(name, &m->st_vae, err)))
        return r;
    hs_random_sha256(&m->c, m->info.sha256);
    return check_parts(m, err);
}

/* Every name and shape is checked before anything is loaded: the load of a wrong file fails in milliseconds. */
static int open_files(hs_model *m, const hs_model_params *p, hs_err *err) {
    hs_files f;
    int r = hs_files_open(p, &f, err);
    if (r) return r;
    m->c = f.config;
    m->st_dit = f.st[HS_PART_TRANSFORMER];
    m->st_text = f.st[HS_PART_TEXT];
    m->st_vae = f.st[HS_PART_VAE];
    m->tokenizer = f.tokenizer;
    memcpy(m->info.sha256, f.sha256, sizeof m->info.sha256);
    memcpy(m->info.shapes_sha256, f.shapes_sha256, sizeof m->info.shapes_sha256);
    return check_parts(m, err);
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
    hs_device_params dp = {
        .name = p->device, .threads = p->threads, .precision = p->precision, .max_bytes = p->max_vram};
    int r;
    if ((r = p->random ? open_random(m, p->random, err) : open_files(m, p, err)) || (r = open_devices(m, dp, err))) {
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
    name_of(p->random ? p->random : p->dir ? p->dir : p->transformer, i->name, sizeof i->name);
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
    return hs_sched_init(ret, r->solver, hs_sigmas_of(r->solver, r->sigmas), r->steps, r->shift, err);
}

/* ---- session ---------------------------------------------------------------------------------------------------- */

int hs_session_new(hs_model *m, const hs_request *r, hs_session **ret, hs_err *err) {
    hs_plan plan;
    int e = hs_request_fit(m, r, &plan, err);
    if (e) return e;
    hs_session *s = hs_calloc(1, sizeof *s);
    if (!s) return hs_fail(err, HS_ENOMEM, "no memory for the session");
    const hs_config *c = &m->c;
    s->m = m;
    s->width = r->width;
    s->height = r->height;
    s->frames = r->frames;
    s->attention = r->attention;
    s->plan = plan;
    s->ch = c->in_channels;
    s->f = 1 + (r->frames - 1) / 4;
    s->h = r->height / 8;
    s->w = r->width / 8;
    s->n = (int64_t)s->ch * s->f * s->h * s->w;
    hs_buf *latents[] = {&s->x, &s->xl, &s->m0, &s->m1, &s->m2, &s->v[0], &s->v[1]};
    const size_t n_latents = r->decode_only ? 1 : sizeof latents / sizeof *latents;
    e = hs_session_sched(r, &s->sched, err);
    for (size_t i = 0; i < n_latents && !e; i++)
        e = hs_device_alloc(m->dev, HS_F32, s->n, "latents and solver state", latents[i], err);
    for (int b = 0; b < HS_BRANCH_COUNT && !r->decode_only && !e; b++)
        e = hs_device_alloc(m->dev, HS_F32, (int64_t)HS_TEXT_LEN * c->text_dim, "text rows", &s->rows[b], err);
    s->host = hs_alloc((size_t)s->n * sizeof *s->host);
    s->host_rgb = hs_alloc((size_t)4 * (size_t)s->height * (size_t)s->width * 3);
    if (!e && (!s->host || !s->host_rgb)) e = hs_fail(err, HS_ENOMEM, "no memory for the session");
    if (e) {
        hs_session_free(s);
        return e;
    }
    /* the text encoder may stay where nothing else has to make way */
    s->keep_text =
        !plan.text_streamed && plan.resident == plan.blocks && plan.peak_bytes + plan.text_bytes < plan.limit_bytes / 2;
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
    hs_tiles_free(s->m->vae_dev, &s->tiles);
    hs_device_free(dev, s->room);
    hs_checkpoint_writer_free(s->writer);
    for (int b = 0; b < HS_BRANCH_COUNT; b++) hs_free(s->prompt[b]);
    hs_free(s->host);
    hs_free(s->recorded);
    hs_free(s->host_rgb);
    hs_free(s);
}

/* Another prompt, and no room for its encoder beside what the last video needed: all of that is loaded again. */
static void make_way(hs_session *s) {
    hs_model *m = s->m;
    if (s->plan.text_bytes <= hs_device_free_bytes(m->dev)) return;
    hs_log(HS_LOG_INFO, "the transformer makes way for the text encoder");
    hs_dit_run_free(s->dit);
    hs_dit_free(m->dit);
    s->dit = NULL;
    m->dit = NULL;
    if (m->vae_dev == m->dev) {
        hs_vae_run_free(s->vae);
        hs_vae_free(m->vae);
        s->vae = NULL;
        m->vae = NULL;
    }
    hs_device_free(m->dev, s->room);
    s->room = HS_NOBUF;
    for (int b = 0; b < HS_BRANCH_COUNT; b++) s->in_dit[b] = 0;
}

int hs_session_need_text(hs_session *s, hs_err *err) {
    hs_model *m = s->m;
    if (m->text) return 0;
    make_way(s);
    int r = hs_text_load(&m->c, m->st_text, m->dev, s->plan.text_streamed, &m->text, err);
    return r ? r : hs_device_check(m->dev, err); /* loaded when it is there */
}

/* Transformer and VAE never work at the same time: the large buffers of both lie in one piece of memory, so that what
 * the VAE needs is there from the start. */
static int need_room(hs_session *s, hs_err *err) {
    return s->room.p ? 0 : hs_device_alloc(s->m->dev, HS_U8, s->plan.room_bytes, "activations", &s->room, err);
}

int hs_session_need_vae(hs_session *s, hs_err *err) {
    hs_model *m = s->m;
    const int shared = m->vae_dev == m->dev;
    int r = m->vae ? 0 : hs_vae_load(&m->c, m->st_vae, m->vae_dev, &m->vae, err);
    if (!r && !s->vae && shared) r = need_room(s, err);
    if (!r && s->plan.vae_tiled && !s->tiles.canvas)
        return hs_tiles_new(m->vae_dev, s->ch, s->f, s->h, s->w, s->host, &s->tiles, err);
    if (!r && !s->vae && !s->plan.vae_tiled)
        r = hs_vae_run_new(m->vae, s->h, s->w, s->plan.vae_chunk, shared ? s->room : HS_NOBUF, &s->vae, err);
    return r ? r : hs_device_check(m->vae_dev, err);
}

int hs_session_need_dit(hs_session *s, hs_err *err) {
    hs_model *m = s->m;
    int r = 0;
    if (!s->keep_text && m->text) {
        hs_text_free(m->text);
        m->text = NULL;
    }
    if (m->dit && !s->dit && hs_dit_resident(m->dit) > s->plan.resident) { /* left by a session that needed less */
        hs_dit_free(m->dit);
        m->dit = NULL;
    }
    if (!m->dit && (r = hs_dit_load(&m->c, m->st_dit, m->dev, s->plan.resident, &m->dit, err))) return r;
    if (!s->dit) {
        if ((r = need_room(s, err)) || (r = hs_dit_run_new(m->dit, s->f, s->h / 2, s->w / 2, s->room, &s->dit, err)))
            return r;
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
        if (!m->tokenizer)
            n = total = hs_random_ids(&m->c, prompt, ids);
        else if ((r = hs_prompt_clean(prompt, &clean, err)) ||
                 (r = hs_tokenizer_encode(m->tokenizer, clean, HS_TEXT_LEN, ids, &n, &total, err)))
            goto out;
        if ((r = hs_session_need_text(s, err))) goto out;
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
    s->tap = (hs_tap){.fn = fn, .user = user};
}
