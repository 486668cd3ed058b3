/* Measuring one clip. Free runs go through hs_generate; velocity errors through hs_denoise along the recorded dense
 * trajectory, so that errors of earlier steps do not add up. */
#include "eval_clip.h"
#include "quality.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_ENGINES = 4 };

typedef struct engine {
    char precision[8];
    hs_model *model;
    hs_session *session;
} engine;

struct hs_eval_bench {
    hs_model_params params;
    hs_eval_hooks hooks;
    hs_request req;        /* of the clip in work */
    hs_attn_policy *later; /* of all variants: memory is planned for them */
    int n_later;
    hs_model_info info;
    engine e[MAX_ENGINES]; /* [0]: of the reference */
    int dense_runs;
    int64_t n; /* elements of one latent tensor */
    uint8_t *frames[2];
    float *latents, *velocity; /* [steps, C, f, h, w] of the dense run, guided; NULL until asked for */
    float *scratch;            /* [2, C, f, h, w] */
    /* sums of the run in work */
    double sparse, sparse_density;
};

/* ---- models ----------------------------------------------------------------------------------------------------- */
static void engine_close(engine *e) {
    hs_session_free(e->session);
    hs_model_free(e->model);
    *e = (engine){.model = NULL};
}

/* Dense now, any of the variants later. */
static hs_request session_request(const hs_eval_bench *b) {
    hs_request r = b->req;
    r.attention = hs_attn_policy_default(HS_DENSE);
    r.later = b->later, r.n_later = b->n_later;
    return r;
}

static int engine_open(hs_eval_bench *b, engine *e, const char *precision, int session, hs_err *err) {
    hs_model_params p = b->params;
    int rc = 0;
    p.precision = precision;
    if (!e->model) rc = hs_model_open(&p, &e->model, err);
    if (!rc && session && !e->session) {
        const hs_request r = session_request(b);
        rc = hs_session_new(e->model, &r, &e->session, err);
    }
    if (rc)
        engine_close(e);
    else
        snprintf(e->precision, sizeof e->precision, "%s", hs_model_get_info(e->model)->precision);
    return rc;
}

/* The engine of a precision, NULL = of the reference, with a session if wanted. Where memory does not suffice for two,
 * the others go first. */
static int engine_get(hs_eval_bench *b, const char *precision, int session, engine **ret, hs_err *err) {
    engine *e = NULL;
    if (!precision) precision = b->info.precision;
    for (int i = MAX_ENGINES - 1; i >= 0; i--)
        if (!b->e[i].model) e = &b->e[i];
    for (int i = 0; i < MAX_ENGINES; i++)
        if (b->e[i].model && !strcmp(b->e[i].precision, precision)) e = &b->e[i];
    if (!e) return hs_fail(err, HS_EINVAL, "more than %d precisions in one table", MAX_ENGINES);
    int rc = engine_open(b, e, precision, session, err);
    if (rc == HS_ENOMEM) {
        for (int i = 0; i < MAX_ENGINES; i++) engine_close(&b->e[i]);
        rc = engine_open(b, e, precision, session, err);
    }
    *ret = e;
    return rc;
}

int hs_eval_bench_new(const hs_model_params *params, const hs_eval_hooks *hooks, hs_eval_bench **ret, hs_err *err) {
    hs_eval_bench *b = hs_calloc(1, sizeof *b);
    if (!b) return hs_fail(err, HS_ENOMEM, "no memory for the measurements");
    b->params = *params;
    b->hooks = *hooks;
    engine *e;
    int rc = engine_get(b, params->precision, 0, &e, err);
    if (rc) {
        hs_eval_bench_free(b);
        return rc;
    }
    b->info = *hs_model_get_info(e->model);
    b->info.negative_prompt = NULL; /* the model's, which may go and come again */
    *ret = b;
    return 0;
}

void hs_eval_bench_free(hs_eval_bench *b) {
    if (!b) return;
    for (int i = 0; i < MAX_ENGINES; i++) engine_close(&b->e[i]);
    hs_free(b->frames[0]);
    hs_free(b->frames[1]);
    hs_free(b->latents);
    hs_free(b->velocity);
    hs_free(b->scratch);
    hs_free(b->later);
    hs_free(b);
}

hs_model *hs_eval_bench_model(hs_eval_bench *b) {
    return b->e[0].model;
}

const hs_model_info *hs_eval_bench_info(const hs_eval_bench *b) {
    return &b->info;
}

const uint8_t *hs_eval_clip_frames(const hs_eval_bench *b, int which) {
    return b->frames[which];
}

int hs_eval_bench_plan(hs_eval_bench *b, hs_plan *ret, hs_err *err) {
    const hs_request r = session_request(b);
    engine *e; /* which policies of other precisions may have pushed out */
    const int rc = engine_get(b, NULL, 0, &e, err);
    return rc ? rc : hs_request_check(e->model, &r, ret, err);
}

int hs_eval_bench_settings(hs_eval_bench *b, const hs_request *req, hs_err *err) {
    hs_plan plan;
    b->req = *req;
    b->req.attention = hs_attn_policy_default(HS_DENSE);
    int rc = hs_request_fit(b->e[0].model, &b->req, &plan, err);
    if (rc) return rc;
    b->n = b->info.latent_channels * plan.latent_frames * plan.latent_h * plan.latent_w;
    size_t video = 3 * (size_t)req->frames * (size_t)req->height * (size_t)req->width;
    b->frames[0] = hs_alloc(video);
    b->frames[1] = hs_alloc(video);
    b->scratch = hs_alloc(2 * (size_t)b->n * sizeof *b->scratch);
    if (!b->frames[0] || !b->frames[1] || !b->scratch)
        return hs_fail(err, HS_ENOMEM, "no memory to keep two videos of %zu MB", video / 1000000);
    return 0;
}

/* ---- variants --------------------------------------------------------------------------------------------------- */
/* Words do not hold every threshold: their hash does. */
static uint64_t thresholds_hash(const hs_attn_policy *p, int cells) {
    uint64_t h = 0;
    for (int i = 0; i < p->intervals * cells; i++) {
        uint32_t bits;
        memcpy(&bits, &p->top_p_heads[i], sizeof bits);
        h = hs_hash64(h ^ bits);
    }
    for (int i = 1; i < p->intervals; i++) h = hs_hash64(h ^ (uint64_t)p->interval_start[i]);
    return h;
}

static int plan_for(hs_eval_bench *b, const hs_attn_policy *p, hs_err *err) {
    hs_attn_policy *grown = hs_alloc((size_t)(b->n_later + 1) * sizeof *grown);
    if (!grown) return hs_fail(err, HS_ENOMEM, "no memory for the variants");
    if (b->n_later) memcpy(grown, b->later, (size_t)b->n_later * sizeof *grown);
    hs_free(b->later);
    b->later = grown;
    b->later[b->n_later++] = *p;
    return 0;
}

int hs_eval_policy_make(hs_eval_bench *b, const hs_eval_variant *v, hs_eval_policy *ret, hs_err *err) {
    hs_eval_policy p = {.name = v->name, .precision = v->o.precision};
    hs_request req = b->req;
    engine *e;
    int rc = hs_attn_choose(&v->o, &b->info, req.steps, &p.source, &p.policy, err);
    req.attention = p.policy;
    if (p.precision && !strcmp(p.precision, "auto")) p.precision = NULL;
    if (!rc) rc = engine_get(b, p.precision, 0, &e, err);
    if (!rc) rc = hs_request_check(e->model, &req, NULL, err);
    if (!rc) rc = plan_for(b, &p.policy, err);
    if (rc) {
        hs_eval_policy_done(&p);
        return hs_fail_ctx(err, rc, "%s", v->name);
    }
    hs_attn_describe(&req, &b->info, p.what, sizeof p.what);
    size_t at = strlen(p.what);
    if (p.policy.top_p_heads)
        at += (size_t)snprintf(p.what + at, sizeof p.what - at, ", thresholds %016llx",
                               (unsigned long long)thresholds_hash(&p.policy, b->info.layers * b->info.heads));
    if (p.precision) snprintf(p.what + at, sizeof p.what - at, ", %s", p.precision);
    *ret = p;
    return 0;
}

void hs_eval_policy_done(hs_eval_policy *p) {
    hs_profile_free(p->source.profile);
    p->source.profile = NULL;
}

/* ---- free runs -------------------------------------------------------------------------------------------------- */
static void on_progress(void *user, const hs_progress *p) {
    hs_eval_bench *b = user;
    if (p->stage == HS_STAGE_DENOISE && p->done > 0) b->hooks.step(b->hooks.user);
}

static int on_interrupted(void *user) {
    hs_eval_bench *b = user;
    return b->hooks.interrupted(b->hooks.user);
}

static void on_layer(void *user, int step, int branch, int layer, int heads, const float *density, const float *drift,
                     const uint8_t *call) {
    hs_eval_bench *b = user;
    (void)step, (void)branch, (void)layer, (void)drift;
    for (int h = 0; h < heads; h++) {
        if (call[h] == HS_HEAD_DENSE) continue;
        b->sparse++;
        b->sparse_density += (double)density[h];
    }
}

/* v_u + g (v_c - v_u) into ret [n] */
static void guide(const hs_eval_bench *b, const float *cond, const float *uncond, float *ret) {
    const float g = (float)b->req.guidance;
    for (int64_t i = 0; i < b->n; i++) ret[i] = uncond ? uncond[i] + g * (cond[i] - uncond[i]) : cond[i];
}

static void on_step(void *user, int step, float t, const float *latents, const float *const velocity[]) {
    hs_eval_bench *b = user;
    (void)t;
    memcpy(b->latents + step * b->n, latents, (size_t)b->n * sizeof *latents);
    guide(b, velocity[HS_BRANCH_COND], velocity[HS_BRANCH_UNCOND], b->velocity + step * b->n);
}

static int free_run(hs_eval_bench *b, engine *e, const hs_attn_policy *policy, int record, uint8_t *frames,
                    hs_eval_result *ret, hs_err *err) {
    hs_run_hooks hooks = {.user = b,
                          .progress = on_progress,
                          .interrupted = on_interrupted,
                          .layer = on_layer,
                          .step = record ? on_step : NULL};
    hs_run_stats st;
    hs_sink *sink;
    int rc = hs_session_attention(e->session, policy, err);
    if (!rc) rc = hs_sink_open_memory(frames, b->req.frames, b->req.width, b->req.height, &sink, err);
    if (rc) return rc;
    b->sparse = b->sparse_density = 0;
    b->req.attention = *policy;
    rc = hs_generate(e->session, &b->req, sink, &hooks, &st, err);
    hs_sink_close(sink, NULL, NULL); /* memory: what can fail has failed in writing */
    if (rc) return rc;
    ret->device = (char *)hs_model_get_info(e->model)->device;
    for (int m = 0; m < HS_EVAL_METRICS; m++) ret->value[m] = NAN;
    ret->value[HS_EVAL_DENOISE] = st.seconds[HS_STAGE_DENOISE];
    ret->value[HS_EVAL_SECONDS] = st.seconds[HS_STAGE_DENOISE] + st.seconds[HS_STAGE_DECODE];
    ret->value[HS_EVAL_PREDICT] = st.seconds_predict;
    ret->value[HS_EVAL_ATTEND] = st.seconds_attend;
    ret->value[HS_EVAL_DENSITY] = st.density;
    ret->value[HS_EVAL_REUSE_RATE] = st.reuse_rate;
    if (b->sparse > 0) ret->value[HS_EVAL_DENSITY_SPARSE] = b->sparse_density / b->sparse;
    return 0;
}

int hs_eval_clip_dense(hs_eval_bench *b, const char *prompt, uint64_t seed, int record, hs_eval_result *ret,
                       hs_err *err) {
    hs_attn_policy dense = hs_attn_policy_default(HS_DENSE);
    engine *e;
    int rc = engine_get(b, NULL, 1, &e, err);
    if (rc) return rc;
    if (record && !b->latents) {
        size_t bytes = (size_t)b->req.steps * (size_t)b->n * sizeof *b->latents;
        b->latents = hs_alloc(bytes);
        b->velocity = hs_alloc(bytes);
        if (!b->latents || !b->velocity)
            return hs_fail(err, HS_ENOMEM, "no memory to record %d steps (%.1f GB); --velocity-clips 0 does without",
                           b->req.steps, 2 * (double)bytes / 1e9);
    }
    b->req.prompt = prompt;
    b->req.seed = seed;
    *ret = (hs_eval_result){
        .prompt = (char *)prompt, .variant = "dense", .what = "dense", .seed = seed, .warm = b->dense_runs > 0};
    rc = free_run(b, e, &dense, record, b->frames[0], ret, err);
    if (!rc) b->dense_runs++;
    return rc;
}

/* ---- along the dense trajectory --------------------------------------------------------------------------------- */
static int replay_step(hs_eval_bench *b, engine *e, int step, double *ret_error, hs_err *err) {
    const float *dense = b->velocity + step * b->n;
    int branches = b->req.guidance > 1 ? 2 : 1, rc;
    double difference = 0, norm = 0;
    for (int k = 0; k < branches; k++) {
        hs_policy policy = {.step = step, .steps = b->req.steps, .branch = k};
        if (b->hooks.interrupted(b->hooks.user)) return hs_fail(err, HS_EINTR, "interrupted while measuring");
        if ((rc = hs_denoise(e->session, b->latents + step * b->n, hs_session_timestep(e->session, step), &policy,
                             b->scratch + k * b->n, err)))
            return rc;
    }
    guide(b, b->scratch, branches == 2 ? b->scratch + b->n : NULL, b->scratch);
    for (int64_t i = 0; i < b->n; i++) {
        double d = (double)b->scratch[i] - (double)dense[i];
        difference += d * d;
        norm += (double)dense[i] * (double)dense[i];
    }
    if (!isfinite(difference) || !(norm > 0))
        return hs_fail(err, HS_ENUMERIC, "step %d: the velocity holds NaN or Inf, or the dense one is zero", step);
    *ret_error = difference / norm;
    return 0;
}

/* Dense steps have no error and leave no trace in the attention's state, but for the one that seeds masks: the others
 * are left out. */
static int replay(hs_eval_bench *b, engine *e, const hs_attn_policy *p, double *ret, hs_err *err) {
    int first = p->method == HS_DENSE || p->dense_steps >= b->req.steps ? 0 : p->dense_steps;
    double sum = 0, error = 0;
    int rc = hs_session_begin(e->session, err);
    for (int step = 0; step < b->req.steps && !rc; step++) {
        if (step >= first - (p->seed_exact && first) && !(rc = replay_step(b, e, step, &error, err)) && step >= first)
            sum += error;
        b->hooks.step(b->hooks.user);
    }
    if (!rc) *ret = sum / (b->req.steps - first);
    return rc;
}

int hs_eval_clip_variant(hs_eval_bench *b, hs_eval_policy *p, int velocity, hs_eval_result *ret, hs_err *err) {
    hs_quality q;
    engine *e;
    int rc = engine_get(b, p->precision, 1, &e, err);
    if (rc) return rc;
    *ret = (hs_eval_result){.prompt = (char *)b->req.prompt,
                            .variant = (char *)p->name,
                            .what = p->what,
                            .seed = b->req.seed,
                            .warm = p->runs > 0};
    if ((rc = free_run(b, e, &p->policy, 0, b->frames[1], ret, err)) ||
        (rc = hs_quality_compare(b->frames[0], b->frames[1], b->req.frames, b->req.height, b->req.width, &q, err)))
        return rc;
    p->runs++;
    ret->identical = q.identical;
    ret->value[HS_EVAL_PSNR] = q.psnr;
    ret->value[HS_EVAL_PSNR_CLIP] = q.psnr_clip;
    ret->value[HS_EVAL_SSIM] = q.ssim;
    return velocity ? replay(b, e, &p->policy, &ret->value[HS_EVAL_VELOCITY_ERROR], err) : 0;
}

int hs_eval_clip_walk(hs_eval_bench *b, const hs_eval_policy *p, hs_eval_visit visit, void *user, hs_err *err) {
    hs_attn_policy fresh = p->policy;
    engine *e;
    int rc = engine_get(b, p->precision, 1, &e, err), branches = b->req.guidance > 1 ? 2 : 1;
    if (rc) return rc;
    float *means = hs_alloc((size_t)b->info.layers * 4 * (size_t)b->info.dim * sizeof *means);
    if (!means) return hs_fail(err, HS_ENOMEM, "no memory for the token means");
    fresh.reuse.kind = HS_REUSE_NONE;
    if (!(rc = hs_session_attention(e->session, &fresh, err))) rc = hs_session_begin(e->session, err);
    for (int step = 0; step < b->req.steps && !rc; step++) {
        for (int k = 0; k < branches && !rc; k++) {
            hs_policy policy = {.step = step, .steps = b->req.steps, .branch = k, .ret_means = means};
            if (b->hooks.interrupted(b->hooks.user))
                rc = hs_fail(err, HS_EINTR, "interrupted while measuring");
            else if (!(rc = hs_denoise(e->session, b->latents + step * b->n, hs_session_timestep(e->session, step),
                                       &policy, NULL, err)))
                rc = visit(user, e->session, step, k, means, err);
        }
        b->hooks.step(b->hooks.user);
    }
    hs_free(means);
    return rc;
}
