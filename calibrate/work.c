/* What measuring has to do: see work.h. Nothing here computes with the model. */
#include "work.h"
#include "sha256.h"

#include <stdio.h>
#include <string.h>

/* ---- settings ---- */

static int middle(const int interval[2]) {
    return (interval[0] + interval[1]) / 2;
}

void hs_work_hash_texts(int n, const char *const *texts, const char *last, char ret[65]) {
    hs_sha256 h;
    hs_sha256_init(&h);
    for (int k = 0; k < n; k++) {
        hs_sha256_add(&h, texts[k], strlen(texts[k]));
        hs_sha256_add(&h, "\n", 1);
    }
    if (last) hs_sha256_add(&h, last, strlen(last));
    hs_sha256_done(&h, ret);
}

static int check(const hs_model_info *mi, const hs_request *req, const hs_measure_params *p, hs_err *err) {
    const int steps = req->steps - req->attention.dense_steps;
    if (req->attention.method == HS_DENSE)
        return hs_fail(err, HS_EINVAL, "measuring needs a sparse method: xattention, pooled or svg2");
    if (req->attention.dense_layers >= mi->layers)
        return hs_fail(err, HS_EINVAL, "all %d layers are dense: there is nothing to measure", mi->layers);
    if (p->n_prompts < 1) return hs_fail(err, HS_EINVAL, "measuring needs prompts");
    if (p->prompts_per_head < 1 || p->prompts_per_head > p->n_prompts)
        return hs_fail(err, HS_EINVAL, "%d prompts per head: must be 1 to %d, the number of prompts",
                       p->prompts_per_head, p->n_prompts);
    if (p->n_intervals < 1 || p->n_intervals > HS_PROFILE_MAX_INTERVALS || p->n_intervals > steps)
        return hs_fail(err, HS_EINVAL, "%d intervals of the %d steps behind the dense ones: must be 1 to %d",
                       p->n_intervals, steps, steps < HS_PROFILE_MAX_INTERVALS ? steps : HS_PROFILE_MAX_INTERVALS);
    if (p->n_candidates < 1 || p->n_candidates > HS_PROFILE_MAX_CANDIDATES)
        return hs_fail(err, HS_EINVAL, "%d candidates: must be 1 to %d", p->n_candidates, HS_PROFILE_MAX_CANDIDATES);
    for (int k = 0; k < p->n_candidates; k++) {
        if (!(p->candidates[k] > 0 && (float)p->candidates[k] < 1))
            return hs_fail(err, HS_EINVAL, "candidate %g: must be above 0 and below 1", p->candidates[k]);
        for (int i = 0; i < k; i++)
            if (p->candidates[i] == p->candidates[k])
                return hs_fail(err, HS_EINVAL, "candidate %g is given twice", p->candidates[k]);
    }
    if (p->shards < 1 || p->shard < 0 || p->shard >= p->shards)
        return hs_fail(err, HS_EINVAL, "shard %d of %d: must be 0 to %d", p->shard, p->shards, p->shards - 1);
    return 0;
}

int hs_measure_info(hs_model *m, const hs_request *req, const hs_measure_params *p, hs_table_info *ret, hs_err *err) {
    const hs_model_info *mi = hs_model_get_info(m);
    int r = check(mi, req, p, err);
    if (r) return r;
    hs_table_info i = {.layers = mi->layers,
                       .heads = mi->heads,
                       .width = req->width,
                       .height = req->height,
                       .frames = req->frames,
                       .steps = req->steps,
                       .shift = req->shift,
                       .guidance = req->guidance,
                       .solver = req->solver,
                       .sigmas = req->sigmas,
                       .policy = req->attention,
                       .prompts = p->n_prompts,
                       .seed = p->seed,
                       .n_intervals = p->n_intervals,
                       .n_candidates = p->n_candidates};
    memcpy(i.model, mi->name, sizeof i.model);
    memcpy(i.sha256, mi->sha256, sizeof i.sha256);
    memcpy(i.device, mi->device, sizeof i.device);
    memcpy(i.precision, mi->precision, sizeof i.precision);
    memcpy(i.candidates, p->candidates, sizeof i.candidates);
    i.policy.top_p_heads = NULL;
    i.policy.intervals = 1;
    i.policy.reuse.kind = HS_REUSE_NONE; /* a probe must not depend on what came before it */
    i.policy.seed_exact = 0;
    const int first = req->attention.dense_steps, steps = req->steps - first;
    for (int k = 0; k < p->n_intervals; k++) {
        i.intervals[k][0] = first + k * steps / p->n_intervals;
        i.intervals[k][1] = first + (k + 1) * steps / p->n_intervals - 1;
    }
    hs_work_hash_texts(p->n_prompts, p->prompts, req->negative ? req->negative : mi->negative_prompt, i.prompts_sha256);
    *ret = i;
    return 0;
}

void hs_measure_config_name(hs_thresholds config, int layers, int heads, char ret[17]) {
    char hex[65];
    hs_sha256 h;
    hs_sha256_init(&h);
    hs_sha256_add(&h, config.top_p, (size_t)(config.intervals * layers * heads) * sizeof *config.top_p);
    hs_sha256_done(&h, hex);
    snprintf(ret, 17, "%.16s", hex);
}

void hs_measure_text_name(const char *prompt, char ret[17]) {
    char hex[65];
    hs_work_hash_texts(1, &prompt, NULL, hex);
    snprintf(ret, 17, "%.16s", hex);
}

/* ---- which work there is ---- */

const char *hs_work_prompt(const hs_work *g, int prompt) {
    return prompt < g->p->n_prompts ? g->p->prompts[prompt] : g->p->held_out[prompt - g->p->n_prompts];
}

hs_request hs_work_dense_request(const hs_work *g, int prompt) {
    hs_request r = *g->req;
    char hex[65];
    unsigned long long words;
    r.prompt = hs_work_prompt(g, prompt);
    r.noise = NULL;
    r.save_latents = NULL;
    r.attention = hs_attn_policy_default(HS_DENSE);
    hs_work_hash_texts(1, &r.prompt, NULL, hex);
    sscanf(hex, "%16llx", &words);
    r.seed = hs_hash64(g->p->seed + words);
    return r;
}

/* Whole prompts of a pool as long as there are enough of them, so that no dense generation is made twice; else single
 * steps of prompts. */
int hs_work_is_mine(const hs_work *g, int prompt, int interval) {
    const int64_t shards = g->p->shards, n = g->p->n_intervals, held_out = prompt >= g->p->n_prompts;
    const int64_t at = held_out ? prompt - g->p->n_prompts : prompt,
                  all = held_out ? g->p->n_held_out : g->p->n_prompts;
    const int64_t owner = shards <= all ? at * shards / all : (at * n + interval) * shards / (all * n);
    return owner == g->p->shard;
}

/* Heads of sparse layers in a seeded order; the head at place k gets prompts k*P .. k*P+P-1, round and round. */
static void deal_prompts(hs_work *g) {
    const int heads = g->info.heads, first = g->info.policy.dense_layers * heads, all = g->info.layers * heads;
    for (int k = 0; k < first; k++) g->place[k] = -1;
    for (int k = first; k < all; k++) {
        const int other = first + (int)(hs_hash64(hs_hash64(g->p->seed) + (uint64_t)k) % (uint64_t)(k - first + 1));
        g->place[k] = g->place[other]; /* a shuffle that grows: the newcomer changes places with any one */
        g->place[other] = k - first;
    }
}

static int has_prompt(const hs_work *g, int head, int prompt) {
    const int64_t n = g->p->n_prompts, first = (int64_t)g->place[head] * g->p->prompts_per_head;
    return g->place[head] >= 0 && (prompt + n - first % n) % n < g->p->prompts_per_head;
}

uint8_t *hs_work_done_at(const hs_work *g, int head, int candidate, int interval, int prompt) {
    const hs_table_info *i = &g->info;
    return &g->done[(((int64_t)head * i->n_candidates + candidate) * i->n_intervals + interval) * i->prompts + prompt];
}

int hs_work_left_of_head(const hs_work *g, int head, int prompt, int interval) {
    int n = 0;
    for (int k = 0; k < g->info.n_candidates && has_prompt(g, head, prompt); k++)
        n += !*hs_work_done_at(g, head, k, interval, prompt);
    return n;
}

int hs_work_left_of_unit(const hs_work *g, int prompt, int interval, double *ret_forwards, int *ret_last) {
    const int layers = g->info.layers, heads = g->info.heads;
    int n = 0;
    *ret_forwards = 0;
    *ret_last = -1;
    for (int h = 0; h < layers * heads && hs_work_is_mine(g, prompt, interval); h++) {
        const int left = hs_work_left_of_head(g, h, prompt, interval);
        if (!left) continue;
        n += left;
        *ret_last = h / heads;
        *ret_forwards += (double)g->branches * left * (layers - h / heads) / layers;
    }
    return n;
}

hs_measure_plan hs_work_plan(const hs_work *g) {
    hs_measure_plan r = {0};
    const int last_step = g->steps[g->info.n_intervals - 1], layers = g->info.layers;
    for (int prompt = 0; prompt < g->p->n_prompts; prompt++) {
        int used = 0;
        for (int j = 0; j < g->info.n_intervals; j++) {
            double forwards;
            int last, n = hs_work_left_of_unit(g, prompt, j, &forwards, &last);
            if (!n) continue;
            used = 1;
            r.probes += n;
            r.forwards += forwards + g->branches * (1 + (double)last / layers); /* dense velocity, way to the layers */
            r.forwards_naive += 2.0 * g->branches * n;
        }
        const hs_request dense = hs_work_dense_request(g, prompt);
        if (used && !hs_record_has(g->record, g->mi, &dense)) {
            r.dense_passes++;
            r.forwards_dense += g->branches * (last_step + 1.0);
        }
    }
    for (int64_t k = 0; k < g->so_far->n_probes; k++)
        r.probes_done += hs_work_is_mine(g, g->so_far->probes[k].prompt, g->so_far->probes[k].interval);
    r.probes += r.probes_done;
    const double tokens =
        (double)g->record->shape[1] * (double)(g->record->shape[2] / 2) * (double)(g->record->shape[3] / 2);
    r.bytes = 4.0 * (g->branches * tokens * g->mi->dim + (double)g->n * (g->info.n_intervals + 8));
    return r;
}

/* ---- begin and end ---- */

int hs_work_begin(hs_work *g, hs_model *m, const hs_request *req, const hs_measure_params *p, int write, hs_err *err) {
    *g = (hs_work){.mi = hs_model_get_info(m), .req = req, .p = p, .branches = req->guidance > 1 ? 2 : 1};
    int r = hs_measure_info(m, req, p, &g->info, err);
    if (r || (r = hs_request_check(m, req, NULL, err)) ||
        (r = write ? hs_table_open(p->table, &g->info, &g->table, err)
                   : hs_table_peek(p->table, &g->info, &g->peeked, err)))
        return r;
    g->so_far = write ? hs_table_so_far(g->table) : g->peeked;
    const hs_table_info *i = &g->info;
    for (int k = 0; k < i->n_intervals; k++) g->steps[k] = middle(i->intervals[k]);
    const size_t cells = (size_t)i->layers * (size_t)i->heads, size = strlen(p->table) + 16;
    char *dir = hs_alloc(size);
    if (!dir) return hs_fail(err, HS_ENOMEM, "no memory to measure");
    snprintf(dir, size, "%s.latents", p->table);
    r = hs_record_open(dir, g->mi, req, i->n_intervals, g->steps, &g->record, err);
    hs_free(dir);
    if (r) return r;
    g->n = g->record->shape[0] * g->record->shape[1] * g->record->shape[2] * g->record->shape[3];
    float **tensor[] = {&g->latents,  &g->velocity[0], &g->velocity[1], &g->dense[0],
                        &g->dense[1], &g->guided,      &g->guided_dense};
    int ok = (g->place = hs_alloc(cells * sizeof *g->place)) && (g->top_p = hs_alloc(cells * sizeof *g->top_p)) &&
             (g->done = hs_calloc(cells * (size_t)i->n_candidates * (size_t)i->n_intervals, (size_t)i->prompts));
    for (size_t k = 0; k < sizeof tensor / sizeof *tensor && ok; k++)
        ok = (*tensor[k] = hs_alloc((size_t)g->n * sizeof(float))) != NULL;
    if (!ok) return hs_fail(err, HS_ENOMEM, "no memory to measure");
    deal_prompts(g);
    for (int64_t k = 0; k < g->so_far->n_probes; k++) {
        const hs_probe *q = &g->so_far->probes[k];
        if (q->step == g->steps[q->interval])
            *hs_work_done_at(g, q->layer * i->heads + q->head, q->candidate, q->interval, q->prompt) = 1;
    }
    return hs_bands_new((int)g->record->shape[0], (int)g->record->shape[1], (int)g->record->shape[2],
                        (int)g->record->shape[3], &g->bands, err);
}

int hs_work_end(hs_work *g, int r, hs_err *err) {
    hs_err why = {0};
    int closed = hs_table_close(g->table, &why);
    if (!r && closed) r = hs_fail(err, closed, "%s", why.msg);
    hs_table_free(g->peeked);
    hs_session_free(g->session);
    hs_record_close(g->record);
    hs_bands_free(g->bands);
    float *tensor[] = {g->latents,  g->velocity[0], g->velocity[1], g->dense[0],
                       g->dense[1], g->guided,      g->guided_dense};
    for (size_t k = 0; k < sizeof tensor / sizeof *tensor; k++) hs_free(tensor[k]);
    hs_free(g->place);
    hs_free(g->top_p);
    hs_free(g->done);
    return r;
}

int hs_measure_plan_make(hs_model *m, const hs_request *req, const hs_measure_params *p, hs_measure_plan *ret,
                         hs_err *err) {
    hs_work g;
    int r = hs_work_begin(&g, m, req, p, 0, err);
    hs_measure_plan made = {0};
    if (!r) made = hs_work_plan(&g);
    if ((r = hs_work_end(&g, r, err))) return r;
    *ret = made;
    return 0;
}
