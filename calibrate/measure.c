/* Measuring: which work there is, how it is dealt, and the forwards themselves.
 *
 * The work comes in units of (prompt, step). A unit goes through the transformer once, layer by layer, densely, for
 * both branches, and holds only the residual stream that enters the current layer; every probe of a head of that layer
 * starts from there (a probe of layer l costs layers - l of layers) and the memory is two such streams, whatever the
 * depth. The first candidate of a head predicts its scores, the others select from them. For svg2 the clusters of a
 * head are those of its own k-means at that step, started from tokens (iters_first rounds), shared by all candidates.
 */
#include "work.h"
#include "model.h"

#include <stdio.h>
#include <string.h>

/* ---- one forward ---- */

static void progress(const hs_work *g, const char *what) {
    const double seconds = hs_seconds() - g->start;
    if (g->p->progress)
        g->p->progress(g->p->user, what, g->items, g->items_total, seconds,
                       g->work > 0 ? seconds / g->work * (g->work_total - g->work) : 0);
}

static int is_interrupted(void *work) {
    const hs_work *g = work;
    return g->p->interrupted && g->p->interrupted(g->p->user);
}

static int interrupted(hs_work *g, hs_err *err) {
    if (!is_interrupted(g)) return 0;
    return hs_fail(err, HS_EINTR, "interrupted while measuring; everything measured is in %s", g->p->table);
}

/* Every head dense. */
static void all_dense(hs_work *g) {
    for (int k = 0; k < g->info.layers * g->info.heads; k++) g->top_p[k] = 1;
}

/* Both branches with the thresholds g->top_p; ret_velocity NULL when the call ends before the head. */
static int forward(hs_work *g, hs_policy policy, float *const *ret_velocity, hs_err *err) {
    policy.steps = g->info.steps;
    policy.top_p = g->top_p;
    for (int b = 0; b < g->branches; b++) {
        int r = interrupted(g, err);
        policy.branch = b;
        if (r || (r = hs_denoise(g->session, g->latents, hs_session_timestep(g->session, policy.step), &policy,
                                 ret_velocity ? ret_velocity[b] : NULL, err)))
            return r;
    }
    const int layers = g->info.layers;
    g->work += (double)g->branches * ((policy.end ? policy.end : layers) - policy.first) / layers;
    return 0;
}

/* v_u + guidance (v_c - v_u) */
static void guide(const hs_work *g, float *const *v, float *ret) {
    const double c = g->req->guidance;
    if (g->branches == 1)
        memcpy(ret, v[HS_BRANCH_COND], (size_t)g->n * sizeof *ret);
    else
        for (int64_t k = 0; k < g->n; k++)
            ret[k] = (float)(c * v[HS_BRANCH_COND][k] + (1 - c) * v[HS_BRANCH_UNCOND][k]);
}

/* Errors of g->velocity against g->dense; sparsity and seconds are the caller's. */
static hs_measured compare(hs_work *g) {
    hs_measured m = {0};
    guide(g, g->velocity, g->guided);
    m.error = hs_error_plain(g->guided, g->guided_dense, g->n);
    m.error_band = hs_error_bands(g->bands, g->guided, g->guided_dense);
    m.error_cond = hs_error_plain(g->velocity[HS_BRANCH_COND], g->dense[HS_BRANCH_COND], g->n);
    if (g->branches == 2)
        m.error_uncond = hs_error_plain(g->velocity[HS_BRANCH_UNCOND], g->dense[HS_BRANCH_UNCOND], g->n);
    return m;
}

/* Mean over both branches and the heads [first, first + n) of layers [from, to), of the last calls. */
static int sparsity(const hs_work *g, int from, int to, int first, int n, double *ret, hs_err *err) {
    float density[HS_MAX_HEADS], drift[HS_MAX_HEADS];
    uint8_t call[HS_MAX_HEADS];
    double sum = 0;
    for (int b = 0; b < g->branches; b++)
        for (int l = from; l < to; l++) {
            int r = hs_session_layer_stats(g->session, b, l, density, drift, call, err);
            if (r) return r;
            for (int h = first; h < first + n; h++) sum += 1 - (double)density[h];
        }
    *ret = sum / ((double)g->branches * (to - from) * n);
    return 0;
}

/* ---- dense passes ---- */

static void on_recorded_step(void *work) {
    hs_work *g = work;
    g->work += g->branches;
    progress(g, "recording");
}

/* Records the dense generations of the prompts that `wanted` names, as far as they are not there already. */
static int record(hs_work *g, hs_model *m, int prompts, const uint8_t *wanted, hs_err *err) {
    hs_request dense = *g->req;
    dense.attention = hs_attn_policy_default(HS_DENSE);
    dense.later = &g->info.policy, dense.n_later = 1;
    dense.layer_ranges = 1;
    int r = hs_session_new(m, &dense, &g->session, err);
    for (int k = 0; k < prompts && !r; k++) {
        const hs_request q = hs_work_dense_request(g, k);
        if (!wanted[k] || hs_record_has(g->record, g->mi, &q)) continue;
        r = hs_record_make(g->record, g->session, g->mi, &q, g, on_recorded_step, is_interrupted, err);
        if (r) return hs_fail_ctx(err, r, "recording prompt %d of %d", k + 1, prompts);
    }
    return r ? r : hs_session_attention(g->session, &g->info.policy, err);
}

/* Latents, prompts and dense velocities of a unit. */
static int begin_unit(hs_work *g, int prompt, int interval, hs_err *err) {
    const hs_request q = hs_work_dense_request(g, prompt);
    const char *negative = q.negative ? q.negative : g->mi->negative_prompt;
    int r;
    if ((r = hs_record_load(g->record, g->mi, &q, g->steps[interval], g->latents, err)) ||
        (r = hs_session_set_text(g->session, HS_BRANCH_COND, q.prompt, NULL, NULL, err)) ||
        (g->branches == 2 && (r = hs_session_set_text(g->session, HS_BRANCH_UNCOND, negative, NULL, NULL, err))) ||
        (r = hs_session_begin(g->session, err)))
        return r;
    all_dense(g);
    if ((r = forward(g, (hs_policy){.step = g->steps[interval]}, g->dense, err))) return r;
    guide(g, g->dense, g->guided_dense);
    return 0;
}

/* ---- probes ---- */

/* All candidates of one head that are left; the stream that enters its layer is there. */
static int probe_head(hs_work *g, int prompt, int interval, int layer, int head, hs_err *err) {
    const int cell = layer * g->info.heads + head;
    hs_policy policy = {.step = g->steps[interval], .first = layer};
    for (int k = 0; k < g->info.n_candidates; k++) {
        uint8_t *done = hs_work_done_at(g, cell, k, interval, prompt);
        if (*done) continue;
        double start = hs_seconds(), share;
        int r;
        all_dense(g);
        g->top_p[cell] = (float)g->info.candidates[k];
        if ((r = forward(g, policy, g->velocity, err))) return r;
        const double seconds = hs_seconds() - start;
        if ((r = sparsity(g, layer, layer + 1, head, 1, &share, err))) return r;
        hs_probe p = {prompt, g->steps[interval], interval, layer, head, k, compare(g)};
        p.m.sparsity = share;
        p.m.seconds = seconds;
        if ((r = hs_table_add_probe(g->table, &p, err))) return r;
        *done = 1;
        policy.keep_scores = 1;
        g->items++;
        progress(g, "probing");
    }
    return 0;
}

static int probe_unit(hs_work *g, int prompt, int interval, hs_err *err) {
    int at = 0, r = begin_unit(g, prompt, interval, err); /* the layer whose input is there; 0: the latents */
    for (int l = 0; l < g->info.layers && !r; l++)
        for (int h = 0; h < g->info.heads && !r; h++) {
            if (!hs_work_left_of_head(g, l * g->info.heads + h, prompt, interval)) continue;
            if (at < l) {
                all_dense(g);
                r = forward(g, (hs_policy){.step = g->steps[interval], .first = at, .end = l}, NULL, err);
                at = l;
            }
            if (!r) r = probe_head(g, prompt, interval, l, h, err);
        }
    return r;
}

int hs_measure_probes(hs_model *m, const hs_request *req, const hs_measure_params *p, hs_err *err) {
    hs_work g;
    double forwards;
    int last, r = hs_work_begin(&g, m, req, p, 1, err);
    uint8_t *wanted = r ? NULL : hs_calloc((size_t)p->n_prompts, 1);
    if (!r && !wanted) r = hs_fail(err, HS_ENOMEM, "no memory to measure");
    if (r) return hs_work_end(&g, r, err);
    const hs_measure_plan todo = hs_work_plan(&g);
    g.items = todo.probes_done;
    g.items_total = todo.probes;
    g.work_total = todo.forwards + todo.forwards_dense;
    g.start = hs_seconds();
    for (int k = 0; k < p->n_prompts * p->n_intervals; k++)
        if (hs_work_left_of_unit(&g, k / p->n_intervals, k % p->n_intervals, &forwards, &last))
            wanted[k / p->n_intervals] = 1;
    if (todo.probes > todo.probes_done) r = record(&g, m, p->n_prompts, wanted, err);
    for (int k = 0; k < p->n_prompts * p->n_intervals && !r; k++)
        if (hs_work_left_of_unit(&g, k / p->n_intervals, k % p->n_intervals, &forwards, &last))
            r = probe_unit(&g, k / p->n_intervals, k % p->n_intervals, err);
    hs_free(wanted);
    return hs_work_end(&g, r, err);
}

/* ---- all heads at once ---- */

/* One joint measurement: candidate as in hs_joint, thresholds for HS_JOINT_CONFIG. */
typedef struct joint_job {
    int candidate;
    hs_thresholds thresholds;
    char config[17];
} joint_job;

static hs_joint joint_of(const hs_work *g, const joint_job *job, int prompt, int interval) {
    hs_joint j = {.prompt = prompt, .step = g->steps[interval], .interval = interval, .candidate = job->candidate};
    memcpy(j.config, job->config, sizeof j.config);
    hs_measure_text_name(hs_work_prompt(g, prompt), j.text);
    return j;
}

/* Is this this shard's, and not in the table yet? Held-out prompts may have changed their places since. */
static int is_left(const hs_work *g, const joint_job *job, int prompt, int interval) {
    if (!hs_work_is_mine(g, prompt, interval) || (job->candidate == HS_JOINT_FLOOR && prompt >= HS_FLOOR_PROMPTS))
        return 0;
    const hs_joint j = joint_of(g, job, prompt, interval);
    const hs_table *t = g->so_far;
    for (int64_t k = 0; k < t->n_joints; k++) {
        const hs_joint *q = &t->joints[k];
        if (q->step == j.step && q->candidate == j.candidate && !strcmp(q->config, j.config) &&
            !strcmp(q->text, j.text))
            return 0;
    }
    return 1;
}

static int measure_joint(hs_work *g, const joint_job *job, int prompt, int interval, hs_err *err) {
    const int cells = g->info.layers * g->info.heads, first = g->info.policy.dense_layers;
    const double start = hs_seconds();
    const float *own = job->thresholds.top_p;
    if (job->thresholds.intervals > 1) own += interval * cells;
    double share;
    int r;
    for (int k = 0; k < cells; k++)
        g->top_p[k] = job->candidate == HS_JOINT_CONFIG  ? own[k]
                      : job->candidate == HS_JOINT_FLOOR ? 0.5f /* any below 1: the masks are full */
                                                         : (float)g->info.candidates[job->candidate];
    const hs_policy policy = {.step = g->steps[interval], .full_masks = job->candidate == HS_JOINT_FLOOR};
    if ((r = forward(g, policy, g->velocity, err))) return r;
    const double seconds = hs_seconds() - start;
    if ((r = sparsity(g, first, g->info.layers, 0, g->info.heads, &share, err))) return r;
    hs_joint j = joint_of(g, job, prompt, interval);
    j.m = compare(g);
    j.m.sparsity = share;
    j.m.seconds = seconds;
    if ((r = hs_table_add_joint(g->table, &j, err))) return r;
    g->items++;
    progress(g, "measuring jointly");
    return 0;
}

/* The floor, every candidate shared by all heads, the n configurations. */
static int make_jobs(const hs_work *g, int shared, int n, const hs_thresholds *config, joint_job **ret, int *ret_n,
                     hs_err *err) {
    int jobs = 0;
    for (int k = 0; k < n; k++)
        if (config[k].intervals != 1 && config[k].intervals != g->info.n_intervals)
            return hs_fail(err, HS_EINVAL, "thresholds of %d step intervals, but the table has %d", config[k].intervals,
                           g->info.n_intervals);
    joint_job *job = hs_calloc((size_t)n + 1 + HS_PROFILE_MAX_CANDIDATES, sizeof *job);
    if (!job) return hs_fail(err, HS_ENOMEM, "no memory to measure");
    job[jobs++].candidate = HS_JOINT_FLOOR;
    for (int k = 0; k < g->info.n_candidates && shared; k++) job[jobs++].candidate = k;
    for (int k = 0; k < n; k++) {
        joint_job *j = &job[jobs++];
        j->candidate = HS_JOINT_CONFIG;
        j->thresholds = config[k];
        hs_measure_config_name(config[k], g->info.layers, g->info.heads, j->config);
        for (int i = 0; i < jobs - 1; i++)
            if (!strcmp(job[i].config, j->config)) {
                jobs--; /* the same again */
                break;
            }
    }
    *ret = job;
    *ret_n = jobs;
    return 0;
}

int hs_measure_joint(hs_model *m, const hs_request *req, const hs_measure_params *p, int shared, int n,
                     const hs_thresholds *config, hs_err *err) {
    const int prompts = p->n_prompts + p->n_held_out;
    const int units = prompts * p->n_intervals;
    joint_job *job = NULL;
    uint8_t *wanted = NULL;
    hs_work g;
    int jobs = 0, r = hs_work_begin(&g, m, req, p, 1, err);
    if (r || (r = make_jobs(&g, shared, n, config, &job, &jobs, err))) return hs_work_end(&g, r, err);
    if (!(wanted = hs_calloc((size_t)prompts, 1))) {
        r = hs_fail(err, HS_ENOMEM, "no memory to measure");
        goto out;
    }
    for (int k = 0; k < units; k++) {
        int left = 0;
        for (int i = 0; i < jobs; i++) left += is_left(&g, &job[i], k / p->n_intervals, k % p->n_intervals);
        g.items_total += left;
        if (left) {
            g.work_total += (double)g.branches * (1 + left);
            wanted[k / p->n_intervals] = 1;
        }
    }
    for (int k = 0; k < prompts; k++) {
        const hs_request q = hs_work_dense_request(&g, k);
        if (wanted[k] && !hs_record_has(g.record, g.mi, &q))
            g.work_total += g.branches * (g.steps[p->n_intervals - 1] + 1.0);
    }
    g.start = hs_seconds();
    if (g.items_total) r = record(&g, m, prompts, wanted, err);
    for (int k = 0; k < units && !r; k++) {
        const int prompt = k / p->n_intervals, interval = k % p->n_intervals;
        int begun = 0;
        for (int i = 0; i < jobs && !r; i++) {
            if (!is_left(&g, &job[i], prompt, interval)) continue;
            if (!begun) r = begin_unit(&g, prompt, interval, err);
            begun = 1;
            if (!r) r = measure_joint(&g, &job[i], prompt, interval, err);
        }
    }
out:
    hs_free(job);
    hs_free(wanted);
    return hs_work_end(&g, r, err);
}
