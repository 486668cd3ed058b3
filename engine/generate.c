/* READ THIS FIRST: prompt -> tokens -> text rows -> noise -> denoising loop -> latents -> frames -> sink. */
#include "session.h"

#include <math.h>
#include <string.h>

typedef struct run { /* one call of hs_generate */
    hs_session *s;
    const hs_request *req;
    const hs_run_hooks *hooks;
    hs_run_stats st;
    double stage_start;
    double calls, density, sparse, reused; /* head calls; sums over them */
} run;

static int64_t recent_peak(const hs_model *m) {
    return hs_device_recent_peak(m->dev) + (m->vae_dev != m->dev ? hs_device_recent_peak(m->vae_dev) : 0);
}

static void begin(run *g) {
    recent_peak(g->s->m);
    g->stage_start = hs_seconds();
}

static void end_memory(run *g, hs_stage stage) {
    const int64_t peak = recent_peak(g->s->m);
    if (peak > g->st.stage_peak[stage]) g->st.stage_peak[stage] = peak;
}

static void end(run *g, hs_stage stage) {
    g->st.seconds[stage] += hs_seconds() - g->stage_start;
    end_memory(g, stage);
}

static void progress(const run *g, hs_stage stage, int done, int total) {
    if (g->hooks && g->hooks->progress)
        g->hooks->progress(g->hooks->user, &(hs_progress){.stage = stage,
                                                          .done = done,
                                                          .total = total,
                                                          .seconds = hs_seconds() - g->stage_start,
                                                          .first = stage == HS_STAGE_DENOISE ? g->st.first_step : 0});
}

static int interrupted(const run *g, hs_err *err, const char *where) {
    if (g->hooks && g->hooks->interrupted && g->hooks->interrupted(g->hooks->user))
        return hs_fail(err, HS_EINTR, "interrupted %s", where);
    return 0;
}

/* ---- text ---------------------------------------------------------------------------------------------------------
 */

static const char *negative_of(const run *g) {
    return g->req->negative ? g->req->negative : g->s->m->info.negative_prompt;
}

static int prompts_are_encoded(const run *g) {
    const char *const want[HS_BRANCH_COUNT] = {g->req->prompt, negative_of(g)};
    for (int b = 0; b < (g->req->guidance > 1 ? 2 : 1); b++)
        if (!g->s->prompt[b] || strcmp(g->s->prompt[b], want[b])) return 0;
    return 1;
}

static int encode_prompts(run *g, hs_err *err) {
    hs_session *s = g->s;
    const char *negative = negative_of(g);
    int total, total_neg = 0, r;
    if ((r = hs_session_set_text(s, HS_BRANCH_COND, g->req->prompt, &g->st.tokens_cond, &total, err))) return r;
    if (g->req->guidance > 1 &&
        (r = hs_session_set_text(s, HS_BRANCH_UNCOND, negative, &g->st.tokens_uncond, &total_neg, err)))
        return hs_fail_ctx(err, r, "negative prompt");
    g->st.truncated = total > HS_TEXT_LEN || total_neg > HS_TEXT_LEN;
    if (total > HS_TEXT_LEN)
        hs_log(HS_LOG_WARN, "the prompt has %d tokens; the model reads the first %d", total, HS_TEXT_LEN);
    if (total_neg > HS_TEXT_LEN)
        hs_log(HS_LOG_WARN, "the negative prompt has %d tokens; the model reads the first %d", total_neg, HS_TEXT_LEN);
    return 0;
}

/* ---- denoising ------------------------------------------------------------------------------------------------------
 */

/* The velocity holds NaN or Inf: runs the same forward again and names the first tensor that does: which block, and
 * what operation made it. */
typedef struct culprit {
    hs_device *dev;
    char name[64];
} culprit;

static void find_culprit(void *user, const char *name, hs_buf x) {
    culprit *c = user;
    if (!c->name[0] && hs_count_nonfinite(c->dev, x)) strncpy(c->name, name, sizeof c->name - 1);
}

static int fail_nonfinite(hs_session *s, int step, const hs_policy *p, int64_t count, hs_err *err) {
    static const char *const branch[] = {"prompt", "negative prompt"};
    culprit c = {.dev = s->m->dev};
    int64_t text_rows = s->n_rows[p->branch] * (int64_t)s->m->c.text_dim;
    if (hs_count_nonfinite(s->m->dev, hs_buf_at(s->rows[p->branch], 0, text_rows)))
        strcpy(c.name, "text.rows (text encoder)");
    else
        hs_dit_forward(s->dit, s->x, s->sched.t[step], p, s->v[p->branch], &(hs_tap){.see = find_culprit, .user = &c});
    return hs_fail(
        err, HS_ENUMERIC,
        "step %d, %s: %lld of %lld values of the velocity are NaN or Inf; the first bad tensor is %s. The weights "
        "are damaged, or the model overflows in this precision (try --precision fp32)",
        step, branch[p->branch], (long long)count, (long long)s->n, c.name[0] ? c.name : "dit.velocity");
}

/* Shows the latents and velocities of a step to the hook. The device has nothing left to do (the velocities were
 * counted): the time this takes is not part of the stage. */
static void record_step(run *g, int step) {
    hs_session *s = g->s;
    const double start = hs_seconds();
    int branches = g->req->guidance > 1 ? 2 : 1;
    const float *velocity[HS_BRANCH_COUNT] = {NULL};
    hs_download(s->m->dev, s->recorded, s->x);
    for (int b = 0; b < branches; b++) {
        float *v = s->recorded + (1 + b) * s->n;
        hs_download(s->m->dev, v, s->v[b]);
        velocity[b] = v;
    }
    g->hooks->step(g->hooks->user, step, s->sched.t[step], s->recorded, velocity);
    g->stage_start += hs_seconds() - start;
}

/* v[COND] = guided velocity at x, t: v_u + g (v_c - v_u). */
static int guided_velocity(run *g, int step, hs_err *err) {
    hs_session *s = g->s;
    int branches = g->req->guidance > 1 ? 2 : 1, r;
    for (int b = 0; b < branches; b++) {
        hs_policy policy = {.step = step, .steps = s->sched.steps, .branch = b};
        /* what attention remembers changes with every branch: a checkpoint is of the state between steps */
        if (((b == 0 || !g->req->checkpoint) && (r = interrupted(g, err, "while denoising"))) ||
            (r = hs_denoise(s, NULL, s->sched.t[step], &policy, NULL, err)))
            return r;
        int64_t bad = hs_count_nonfinite(s->m->dev, s->v[b]);
        if (bad) return fail_nonfinite(s, step, &policy, bad, err);
    }
    if (g->hooks && g->hooks->step) record_step(g, step);
    if (branches == 2)
        hs_op_combine(s->m->dev, 2, (double[]){g->req->guidance, 1 - g->req->guidance}, s->v, s->v[HS_BRANCH_COND]);
    return 0;
}

/* y = sum of the terms with a coefficient; the others are not read (the history is empty at first). */
static void combine_terms(hs_session *s, const double coef[HS_TERM_COUNT], hs_buf x, hs_buf y) {
    const hs_buf term[HS_TERM_COUNT] = {[HS_TERM_X] = x,      [HS_TERM_V] = s->v[HS_BRANCH_COND],
                                        [HS_TERM_M1] = s->m1, [HS_TERM_M2] = s->m2,
                                        [HS_TERM_XL] = s->xl, [HS_TERM_M] = s->m0};
    double c[HS_TERM_COUNT];
    hs_buf b[HS_TERM_COUNT];
    int n = 0;
    for (int k = 0; k < HS_TERM_COUNT; k++)
        if (coef[k] != 0) {
            c[n] = coef[k];
            b[n++] = term[k];
        }
    hs_op_combine(s->m->dev, n, c, b, y);
}

static void solver_step(hs_session *s, int step) {
    hs_sched_step k;
    hs_sched_step_at(&s->sched, step, &k);
    combine_terms(s, k.m, s->x, s->m0);
    if (k.has_corr) combine_terms(s, k.corr, s->x, s->x);
    hs_buf spare = s->m2, corrected = s->x; /* the history moves by handles, not by copies */
    s->m2 = s->m1;
    s->m1 = s->m0;
    s->m0 = spare;
    s->x = s->xl;
    s->xl = corrected;
    combine_terms(s, k.pred, corrected, s->x);
}

/* What attention did in this step, per branch and layer: into the totals, and to the hook if there is one. */
static int report_step(run *g, int step, hs_err *err) {
    hs_session *s = g->s;
    int heads = s->m->c.heads, r;
    float density[HS_MAX_HEADS], drift[HS_MAX_HEADS];
    uint8_t call[HS_MAX_HEADS];
    for (int b = 0; b < (g->req->guidance > 1 ? 2 : 1); b++)
        for (int l = 0; l < s->m->c.layers; l++) {
            if ((r = hs_attn_report(hs_dit_run_attn(s->dit), b, l, density, drift, call, err))) return r;
            for (int h = 0; h < heads; h++) {
                g->calls++;
                g->density += density[h];
                g->sparse += call[h] != HS_HEAD_DENSE;
                g->reused += call[h] == HS_HEAD_REUSED;
            }
            if (g->hooks && g->hooks->layer) g->hooks->layer(g->hooks->user, step, b, l, heads, density, drift, call);
        }
    return 0;
}

/* `done` steps of the run are kept. A failure does no harm to the run, nor to the checkpoint before. */
static void keep_state(run *g, int done) {
    hs_err why = {0};
    if (hs_session_checkpoint(g->s, g->req, done, &why))
        hs_log(HS_LOG_WARN, "no checkpoint after step %d: %s%s", done, why.msg,
               g->st.checkpoint_step ? "; the one before is still there" : "");
    else
        g->st.checkpoint_step = done;
}

/* Where the steps begin: at the start, or where the checkpoint is. */
static int begin_steps(run *g, int *ret_first, hs_err *err) {
    hs_session *s = g->s;
    int r = 0;
    hs_attn_begin(hs_dit_run_attn(s->dit));
    *ret_first = 0;
    if (g->req->checkpoint && (r = hs_session_checkpoint_prepare(s, g->req->checkpoint, err))) return r;
    if (g->req->resume) {
        *ret_first = g->st.first_step = g->st.steps = hs_checkpoint_steps(g->req->resume, NULL);
        return hs_session_resume(s, g->req->resume, err);
    }
    if (g->req->noise)
        hs_upload(s->m->dev, s->x, g->req->noise);
    else {
        hs_randn(g->req->seed, s->host, s->n);
        hs_upload(s->m->dev, s->x, s->host);
    }
    const hs_buf history[] = {s->xl, s->m1, s->m2}; /* not read before it is written, but kept in checkpoints */
    for (size_t i = 0; i < sizeof history / sizeof *history; i++) hs_zero(s->m->dev, history[i]);
    return 0;
}

static int denoise(run *g, hs_err *err) {
    hs_session *s = g->s;
    int n = s->sched.steps, first, r;
    const int every = g->req->checkpoint_every > 0 ? g->req->checkpoint_every : HS_CHECKPOINT_EVERY;
    if (g->hooks && g->hooks->step && !s->recorded &&
        !(s->recorded = hs_alloc((size_t)s->n * (1 + HS_BRANCH_COUNT) * sizeof *s->recorded)))
        return hs_fail(err, HS_ENOMEM, "no memory to record the steps");
    if ((r = begin_steps(g, &first, err))) return r;
    if (first == n) progress(g, HS_STAGE_DENOISE, n, n); /* the checkpoint holds the final latents */
#ifndef NDEBUG
    int guarded = 0;
#endif
    for (int i = first; i < n && !r; i++) {
        double start = hs_seconds();
        if (!(r = guided_velocity(g, i, err))) {
            solver_step(s, i);
            r = hs_device_check(s->m->dev, err);
        }
        if (!r && s->attention.method != HS_DENSE) r = report_step(g, i, err);
        g->st.step_seconds[i] = hs_seconds() - start;
        g->st.steps = i + !r;
        progress(g, HS_STAGE_DENOISE, i + !r, n);
#ifndef NDEBUG
        if (guarded && hs_guard_end() && !r) r = hs_fail(err, HS_EINVAL, "step %d allocated memory", i);
#endif
        if (g->req->checkpoint && r == HS_EINTR && i > g->st.checkpoint_step && i > first) keep_state(g, i);
        if (g->req->checkpoint && !r && (i + 1 == n || (i + 1) % every == 0)) keep_state(g, i + 1);
#ifndef NDEBUG
        if (i + 1 < n && !r)
            hs_guard_begin(), guarded = 1; /* the first step may build what it keeps */
        else
            guarded = 0;
#endif
    }
    return r;
}

/* ---- frames ---------------------------------------------------------------------------------------------------------
 */

/* One colour all over, give or take what dithering could hide. Pictures end this look after a few pixels. */
static int is_flat(const uint8_t *rgb, int64_t pixels) {
    enum { SPREAD = 4 };
    uint8_t low[3] = {255, 255, 255}, high[3] = {0, 0, 0};
    for (int64_t i = 0; i < pixels; i++, rgb += 3)
        for (int k = 0; k < 3; k++) {
            if (rgb[k] < low[k]) low[k] = rgb[k];
            if (rgb[k] > high[k]) high[k] = rgb[k];
            if (high[k] - low[k] > SPREAD) return 0;
        }
    return 1;
}

static void warn_flat(const run *g, const uint8_t *first) {
    if (g->st.flat_frames)
        hs_log(
            HS_LOG_WARN,
            "%d of %d frames are one colour (the first one about #%02x%02x%02x): if that is not what the prompt asks "
            "for, try --precision fp32, more steps, or the size and shift the model was made for",
            g->st.flat_frames, g->s->frames, first[0], first[1], first[2]);
}

/* T frames to the sink. */
static int hand_over(run *g, hs_sink *sink, const uint8_t *rgb, int T, uint8_t first_flat[3], hs_err *err) {
    const int64_t frame = (int64_t)g->s->height * g->s->width * 3;
    const double start = hs_seconds();
    int r = 0;
    for (int k = 0; k < T; k++)
        if (is_flat(rgb + k * frame, frame / 3) && !g->st.flat_frames++) memcpy(first_flat, rgb + k * frame, 3);
    for (int k = 0; k < T && sink && !r; k++) {
        if (!(r = interrupted(g, err, "while decoding"))) r = hs_sink_write(sink, rgb + k * frame, err);
        g->st.frames_written += !r;
    }
    g->st.seconds[HS_STAGE_ENCODE] += hs_seconds() - start;
    return r;
}

static int decode_tiles(run *g, hs_sink *sink, uint8_t first_flat[3], hs_err *err) {
    hs_session *s = g->s;
    const int tiles = hs_tiles_count(s->h, s->w);
    const double start = hs_seconds();
    hs_download(s->m->dev, s->host, s->x);
    int r = hs_device_check(s->m->dev, err);
    for (int i = 0; i < tiles && !r; i++) {
        if ((r = interrupted(g, err, "while decoding"))) break;
        r = hs_tiles_decode(&s->tiles, s->m->vae, s->m->vae_dev, s->m->vae_dev == s->m->dev ? s->room : HS_NOBUF, i,
                            err);
        progress(g, HS_STAGE_DECODE, (i + 1) * s->frames / tiles, s->frames);
    }
    g->st.seconds[HS_STAGE_DECODE] += hs_seconds() - start;
    return r ? r : hand_over(g, sink, s->tiles.canvas, s->frames, first_flat, err);
}

static int decode_whole(run *g, hs_sink *sink, uint8_t first_flat[3], hs_err *err) {
    hs_session *s = g->s;
    hs_vae_begin(s->vae);
    for (int t = 0; t < s->f; t++) {
        hs_buf rgb;
        int T, r;
        const double start = hs_seconds();
        hs_vae_decode(s->vae, s->x, s->f, t, &rgb, &T, &s->tap);
        hs_download(s->m->vae_dev, s->host_rgb, rgb);
        if ((r = hs_device_check(s->m->vae_dev, err))) return hs_fail_ctx(err, r, "decoding latent frame %d", t);
        g->st.seconds[HS_STAGE_DECODE] += hs_seconds() - start;
        if ((r = hand_over(g, sink, s->host_rgb, T, first_flat, err))) return r;
        progress(g, HS_STAGE_DECODE, 4 * t + 1, s->frames);
    }
    return 0;
}

static int decode(run *g, hs_sink *sink, hs_err *err) {
    uint8_t first_flat[3] = {0};
    const int r =
        g->s->plan.vae_tiled ? decode_tiles(g, sink, first_flat, err) : decode_whole(g, sink, first_flat, err);
    end_memory(g, HS_STAGE_DECODE); /* its seconds are counted without those of the encoder */
    if (!r) warn_flat(g, first_flat);
    return r;
}

static void finish(run *g, double start, hs_run_stats *ret) {
    g->st.total = hs_seconds() - start;
    g->st.peak_host = hs_peak_rss();
    const hs_model *m = g->s->m;
    int64_t vae = 0;
    hs_device_bytes(m->dev, &g->st.peak_device);
    if (m->vae_dev != m->dev) hs_device_bytes(m->vae_dev, &vae);
    g->st.peak_device += vae;
    g->st.density = g->calls > 0 ? g->density / g->calls : 1;
    g->st.reuse_rate = g->sparse > 0 ? g->reused / g->sparse : 0;
    if (g->s->dit) hs_attn_seconds(hs_dit_run_attn(g->s->dit), &g->st.seconds_predict, &g->st.seconds_attend);
    if (ret) *ret = g->st;
}

/* ---- the pipeline
 * ----------------------------------------------------------------------------------------------------- */

int hs_generate(hs_session *s, const hs_request *req, hs_sink *sink, const hs_run_hooks *hooks, hs_run_stats *ret_stats,
                hs_err *err) {
    run g = {.s = s, .req = req, .hooks = hooks};
    double start = hs_seconds();
    const int64_t shape[4] = {s->ch, s->f, s->h, s->w};
    int r = 0;

    if (req->resume &&
        ((r = hs_checkpoint_match(req->resume, s->m, req, err)) || (r = hs_session_resume_text(s, req->resume, err))))
        goto out;
    begin(&g);
    progress(&g, HS_STAGE_LOAD, 0, 1);
    if (!prompts_are_encoded(&g)) r = hs_session_need_text(s, err);
    end(&g, HS_STAGE_LOAD);
    if (r) goto out;

    begin(&g);
    progress(&g, HS_STAGE_TEXT, 0, 1);
    r = encode_prompts(&g, err);
    end(&g, HS_STAGE_TEXT);
    if (r) goto out;

    /* everything the run will need is loaded and allocated before the first step: nothing can run short at its end */
    begin(&g);
    progress(&g, HS_STAGE_LOAD, 0, 1);
    if (!(r = hs_session_need_dit(s, err)) && sink) r = hs_session_need_vae(s, err);
    end(&g, HS_STAGE_LOAD);
    if (r) goto out;

    begin(&g);
    r = denoise(&g, err);
    end(&g, HS_STAGE_DENOISE);
    if (r) goto out;

    if (req->save_latents && ((r = hs_session_latents(s, s->host, err)) ||
                              (r = hs_latents_save(req->save_latents, s->host, shape, NULL, err))))
        goto out;
    if (sink) {
        begin(&g);
        r = decode(&g, sink, err);
    }
out:
    finish(&g, start, ret_stats);
    return r;
}

int hs_decode(hs_session *s, const float *latents, hs_sink *sink, const hs_run_hooks *hooks, hs_run_stats *ret_stats,
              hs_err *err) {
    run g = {.s = s, .hooks = hooks};
    double start = hs_seconds();
    begin(&g);
    int r = hs_session_need_vae(s, err);
    end(&g, HS_STAGE_LOAD);
    if (!r) {
        hs_upload(s->m->dev, s->x, latents);
        begin(&g);
        r = decode(&g, sink, err);
    }
    finish(&g, start, ret_stats);
    return r;
}

/* ---- latents on disk
 * ---------------------------------------------------------------------------------------------------- */

int hs_latents_save(const char *path, const float *x, const int64_t shape[4], const char *const *meta, hs_err *err) {
    hs_st_tensor t = {.name = "latents", .dtype = HS_F32, .ndim = 4, .numel = 1, .data = x};
    for (int i = 0; i < 4; i++) {
        t.shape[i] = shape[i];
        t.numel *= shape[i];
    }
    return hs_st_write(path, 1, &t, meta, err);
}

int hs_latents_load(const char *path, const int64_t shape[4], float *ret, hs_err *err) {
    hs_st *st;
    const hs_st_tensor *t;
    int r = hs_st_open(path, &st, err);
    if (r) return r;
    if (!(r = hs_st_get(st, "latents", 4, shape, &t, err))) hs_to_f32(ret, t->data, t->dtype, t->numel);
    hs_st_close(st);
    return r;
}

int hs_latents_shape(const char *path, int64_t ret_shape[4], hs_err *err) {
    hs_st *st;
    const hs_st_tensor *t;
    int r = hs_st_open(path, &st, err);
    if (r) return r;
    if (!(r = hs_st_get(st, "latents", 4, (int64_t[]){-1, -1, -1, -1}, &t, err)))
        memcpy(ret_shape, t->shape, 4 * sizeof(int64_t));
    hs_st_close(st);
    return r;
}
