/* Attention as haste-run reports it. Only words and sums; what attention does is decided in attn.c. */
#include "run_attn.h"
#include "run_print.h"

#include <math.h>
#include <string.h>

enum { NO_CALL = 0xff }; /* not an hs_head_call: the hook did not report this one */

/* ---- choice ----------------------------------------------------------------------------------------------------- */

int hs_attn_choose(const hs_options *o, const hs_model_info *info, int steps, hs_attn_source *ret_source,
                   hs_attn_policy *ret, hs_err *err) {
    hs_attn_policy p = hs_attn_policy_default(HS_DENSE);
    hs_attn_source *s = ret_source;
    int rc;
    if (o->profile &&
        ((rc = hs_profile_load(o->profile, &s->profile, err)) || (rc = hs_profile_check(s->profile, info, err)) ||
         (rc = hs_profile_choose(s->profile, o->budget, &s->budget, err)) ||
         (rc = hs_profile_policy(s->profile, s->budget, steps, &p, err))))
        return rc;
    if ((rc = hs_options_attention(o, &p, &s->flags, err)) ||
        (rc = hs_attn_policy_check(&p, info->layers, info->heads, err)))
        return rc;
    *ret = p;
    return 0;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

typedef struct text {
    char *at;
    size_t size, n;
} text;

static void HS_PRINTF(2, 3) add(text *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = t->n < t->size ? vsnprintf(t->at + t->n, t->size - t->n, fmt, ap) : 0;
    va_end(ap);
    if (n > 0) t->n += (size_t)n;
}

/* What only a profile can say is named where it is not the default: haste-eval tells policies apart by these words. */
static void add_gates(text *t, const hs_reuse_policy *r, const hs_reuse_policy *usual) {
    if (r->gate_low != usual->gate_low || r->gate_high != usual->gate_high)
        add(t, " (gates %.9g and %.9g)", (double)r->gate_low, (double)r->gate_high);
}

static void add_clusters(text *t, const hs_attn_policy *p, const hs_attn_policy *usual) {
    add(t, ", %d query and %d key clusters", p->q_clusters, p->k_clusters);
    if (p->iters_first != usual->iters_first || p->iters_next != usual->iters_next)
        add(t, ", %d and %d rounds of k-means", p->iters_first, p->iters_next);
    if (p->min_share != usual->min_share) add(t, ", least share of keys %.9g", (double)p->min_share);
}

static void add_reuse(text *t, const hs_reuse_policy *r, const hs_reuse_policy *usual) {
    switch (r->kind) {
    case HS_REUSE_NONE: add(t, ", masks predicted every step"); break;
    case HS_REUSE_DRIFT: add(t, ", reuse while drift <= %g", (double)r->delta); break;
    case HS_REUSE_RELATIVE: add(t, ", reuse while relative drift <= %g", (double)r->delta); break;
    case HS_REUSE_INTERVAL: add(t, ", masks predicted every %d steps", r->interval); break;
    case HS_REUSE_FREEZE: add(t, ", masks predicted once"); break;
    case HS_REUSE_STAGGER: add(t, ", masks predicted every %d steps, layers in turn", r->interval); break;
    }
    if (r->kind == HS_REUSE_DRIFT || r->kind == HS_REUSE_RELATIVE) add_gates(t, r, usual);
}

static void add_top_p(text *t, const hs_attn_policy *p, int n) {
    float low = 1, high = 0;
    double sum = 0;
    if (!p->top_p_heads) {
        add(t, ", top-p %g for all heads", (double)p->top_p);
        return;
    }
    for (int i = 0; i < n; i++) {
        low = fminf(low, p->top_p_heads[i]);
        high = fmaxf(high, p->top_p_heads[i]);
        sum += (double)p->top_p_heads[i];
    }
    add(t, ", top-p %g to %g per head", (double)low, (double)high);
    if (p->intervals > 1) add(t, " and in %d step intervals", p->intervals);
    add(t, " (mean %.3g)", sum / n);
}

void hs_attn_describe(const hs_request *r, const hs_model_info *info, char *ret, size_t size) {
    const hs_attn_policy *p = &r->attention;
    text t = {ret, size, 0};
    add(&t, "%s", hs_method_name(p->method));
    if (p->method == HS_DENSE) return;
    const hs_attn_policy usual = hs_attn_policy_default(p->method);
    if (p->method == HS_SVG2)
        add_clusters(&t, p, &usual);
    else
        add(&t, ", block %d", p->block);
    if (p->method == HS_XATTENTION) add(&t, ", stride %d", p->stride);
    add_top_p(&t, p, p->intervals * info->layers * info->heads);
    add_reuse(&t, &p->reuse, &usual.reuse);
    if (p->dense_steps >= r->steps || p->dense_layers >= info->layers)
        add(&t, ", but all %s dense: nothing is sparse", p->dense_steps >= r->steps ? "steps are" : "layers are");
    else {
        if (p->dense_steps) add(&t, ", first %d of %d steps dense", p->dense_steps, r->steps);
        if (p->dense_layers) add(&t, ", first %d of %d layers dense", p->dense_layers, info->layers);
    }
    if (p->seed_exact) add(&t, ", first masks from exact block mass");
    if (p->compensate) add(&t, ", dropped blocks count with their mean");
    if (p->compat) add(&t, ", masks as the published code makes them");
}

void hs_attn_print(FILE *to, const char *label, const hs_request *r, const hs_model_info *info,
                   const hs_attn_source *s) {
    char what[384], off[512];
    hs_attn_describe(r, info, what, sizeof what);
    fprintf(to, "%s %s", label, what);
    if (s->profile) {
        fprintf(to, " (profile %s", s->profile->path);
        if (r->attention.top_p_heads) fprintf(to, ", budget %.4g", s->profile->budgets[s->budget].target);
        fprintf(to, "%s)\n", s->flags ? ", changed by flags" : "");
    } else {
        fprintf(to, " (%s)\n", s->flags ? "flags" : s->resumed ? "checkpoint" : "default");
    }
    if (s->profile && hs_profile_differences(s->profile, r, off, sizeof off)) fprintf(to, "%s %s\n", label, off);
}

/* ---- what every head did ---------------------------------------------------------------------------------------- */

struct hs_attn_log {
    int steps, layers, heads;
    float *density, *drift; /* [steps, branches, layers, heads] */
    uint8_t *call;          /* same; hs_head_call or NO_CALL */
};

void hs_attn_log_free(hs_attn_log *log) {
    if (!log) return;
    hs_free(log->density);
    hs_free(log->drift);
    hs_free(log->call);
    hs_free(log);
}

int hs_attn_log_new(int steps, int layers, int heads, hs_attn_log **ret, hs_err *err) {
    hs_attn_log *log = hs_calloc(1, sizeof *log);
    size_t n = (size_t)steps * HS_BRANCH_COUNT * (size_t)layers * (size_t)heads;
    if (log) {
        *log =
            (hs_attn_log){steps, layers, heads, hs_calloc(n, sizeof(float)), hs_calloc(n, sizeof(float)), hs_alloc(n)};
        if (log->density && log->drift && log->call) {
            memset(log->call, NO_CALL, n);
            *ret = log;
            return 0;
        }
    }
    hs_attn_log_free(log);
    return hs_fail(err, HS_ENOMEM, "no memory for what the heads of %d steps do", steps);
}

static size_t row_at(const hs_attn_log *log, int step, int branch, int layer) {
    return (((size_t)step * HS_BRANCH_COUNT + (size_t)branch) * (size_t)log->layers + (size_t)layer) *
           (size_t)log->heads;
}

void hs_attn_log_add(hs_attn_log *log, int step, int branch, int layer, int heads, const float *density,
                     const float *drift, const uint8_t *reused) {
    if (step < 0 || step >= log->steps || branch < 0 || branch >= HS_BRANCH_COUNT || layer < 0 ||
        layer >= log->layers || heads != log->heads)
        return;
    size_t at = row_at(log, step, branch, layer), n = (size_t)heads;
    memcpy(log->density + at, density, n * sizeof *density);
    memcpy(log->drift + at, drift, n * sizeof *drift);
    memcpy(log->call + at, reused, n);
}

hs_attn_sum hs_attn_log_sum(const hs_attn_log *log, int step, int layer) {
    hs_attn_sum s = {.density = 0};
    int64_t reused = 0;
    for (int i = step < 0 ? 0 : step; i < (step < 0 ? log->steps : step + 1); i++)
        for (int b = 0; b < HS_BRANCH_COUNT; b++)
            for (int l = layer < 0 ? 0 : layer; l < (layer < 0 ? log->layers : layer + 1); l++)
                for (int h = 0; h < log->heads; h++) {
                    size_t at = row_at(log, i, b, l) + (size_t)h;
                    if (log->call[at] == NO_CALL) continue;
                    s.calls++;
                    s.sparse += log->call[at] != HS_HEAD_DENSE;
                    reused += log->call[at] == HS_HEAD_REUSED;
                    s.density += (double)log->density[at];
                }
    s.density = s.calls ? s.density / (double)s.calls : 1;
    s.reuse_rate = s.sparse ? (double)reused / (double)s.sparse : 0;
    return s;
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

void hs_attn_table(FILE *to, const hs_attn_log *log, const hs_run_stats *st) {
    enum { PER_LINE = 15 };
    hs_attn_sum all = hs_attn_log_sum(log, -1, -1);
    hs_text32 predict, attend, other;
    double denoise = st->seconds[HS_STAGE_DENOISE];
    fprintf(to, "attention: density %.3f (sparsity %.3f), reuse rate %.3f", all.density, 1 - all.density,
            all.reuse_rate);
    if (st->seconds_attend > 0)
        fprintf(to, "; predicting %s, attending %s, elsewhere %s", hs_print_seconds(st->seconds_predict, predict),
                hs_print_seconds(st->seconds_attend, attend),
                hs_print_seconds(fmax(0, denoise - st->seconds_predict - st->seconds_attend), other));
    fputc('\n', to);
    for (int first = 0; first < log->layers; first += PER_LINE) {
        int end = first + PER_LINE < log->layers ? first + PER_LINE : log->layers;
        static const char *const what[] = {"layer  ", "density", "reused "};
        for (int k = 0; k < 3; k++) {
            fprintf(to, "  %s", what[k]);
            for (int l = first; l < end; l++) {
                hs_attn_sum s = hs_attn_log_sum(log, -1, l);
                if (k == 0)
                    fprintf(to, " %5d", l);
                else
                    fprintf(to, " %5.2f", k == 1 ? s.density : s.reuse_rate);
            }
            fputc('\n', to);
        }
    }
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

/* Four digits are enough for shares and a quarter of the bytes; seven are all that a float has. */
static cJSON *rounded(double v, int digits) {
    char s[32];
    snprintf(s, sizeof s, "%.*g", digits, isfinite(v) ? v : 0);
    return cJSON_CreateRaw(s);
}

static int add_heads(cJSON *to, const char *key, const float *x, int n) {
    cJSON *list = cJSON_AddArrayToObject(to, key);
    int ok = list != NULL;
    for (int h = 0; h < n && ok; h++) ok = cJSON_AddItemToArray(list, rounded((double)x[h], 4));
    return ok;
}

static int add_calls(cJSON *root, const hs_attn_log *log) {
    static const char *const branch[] = {"cond", "uncond"};
    static const char *const did[] = {"predicted", "reused", "dense"};
    cJSON *list = cJSON_AddArrayToObject(root, "calls");
    int ok = list != NULL;
    for (int i = 0; ok && log && i < log->steps * HS_BRANCH_COUNT * log->layers; i++) {
        int step = i / (HS_BRANCH_COUNT * log->layers), b = i / log->layers % HS_BRANCH_COUNT, layer = i % log->layers;
        size_t at = row_at(log, step, b, layer);
        cJSON *row, *heads;
        if (log->call[at] == NO_CALL) continue;
        ok = cJSON_AddItemToArray(list, row = cJSON_CreateObject()) && cJSON_AddNumberToObject(row, "step", step) &&
             cJSON_AddStringToObject(row, "branch", branch[b]) && cJSON_AddNumberToObject(row, "layer", layer) &&
             add_heads(row, "density", log->density + at, log->heads) &&
             add_heads(row, "drift", log->drift + at, log->heads) && (heads = cJSON_AddArrayToObject(row, "mask"));
        for (int h = 0; h < log->heads && ok; h++) {
            uint8_t c = log->call[at + (size_t)h];
            ok = cJSON_AddItemToArray(heads, cJSON_CreateString(c <= HS_HEAD_DENSE ? did[c] : "unknown"));
        }
    }
    return ok;
}

static int add_policy(cJSON *root, const hs_attn_policy *p) {
    if (p->method == HS_DENSE) return cJSON_AddNullToObject(root, "attention_settings") != NULL;
    cJSON *to = cJSON_AddObjectToObject(root, "attention_settings");
    const struct {
        const char *key;
        double value;
        int of; /* methods */
    } n[] = {{"block", p->block, 1 << HS_XATTENTION | 1 << HS_POOLED},
             {"stride", p->stride, 1 << HS_XATTENTION},
             {"q_clusters", p->q_clusters, 1 << HS_SVG2},
             {"k_clusters", p->k_clusters, 1 << HS_SVG2},
             {"iters_first", p->iters_first, 1 << HS_SVG2},
             {"iters_next", p->iters_next, 1 << HS_SVG2},
             {"min_share", (double)p->min_share, 1 << HS_SVG2},
             {"reuse_delta", (double)p->reuse.delta, ~0},
             {"reuse_interval", p->reuse.interval, ~0},
             {"gate_low", (double)p->reuse.gate_low, ~0},
             {"gate_high", (double)p->reuse.gate_high, ~0},
             {"dense_steps", p->dense_steps, ~0},
             {"dense_layers", p->dense_layers, ~0}};
    int ok = to && cJSON_AddStringToObject(to, "reuse", hs_reuse_name(p->reuse.kind)) &&
             cJSON_AddItemToObject(to, "top_p",
                                   !p->top_p_heads    ? rounded((double)p->top_p, 7)
                                   : p->intervals > 1 ? cJSON_CreateString("per head and step interval")
                                                      : cJSON_CreateString("per head")) &&
             (p->intervals == 1 ||
              cJSON_AddItemToObject(to, "interval_starts", cJSON_CreateIntArray(p->interval_start, p->intervals))) &&
             cJSON_AddBoolToObject(to, "seed_exact", p->seed_exact) &&
             cJSON_AddBoolToObject(to, "compensate", p->compensate) && cJSON_AddBoolToObject(to, "compat", p->compat);
    for (size_t i = 0; i < sizeof n / sizeof *n && ok; i++)
        if (n[i].of & 1 << p->method) ok = cJSON_AddItemToObject(to, n[i].key, rounded(n[i].value, 7));
    return ok;
}

static int add_profile(cJSON *root, const hs_attn_source *s, const hs_attn_policy *p) {
    if (!s->profile) return cJSON_AddNullToObject(root, "profile") != NULL;
    const hs_profile_budget *b = &s->profile->budgets[s->budget];
    cJSON *to = cJSON_AddObjectToObject(root, "profile");
    return to && cJSON_AddStringToObject(to, "file", s->profile->path) &&
           cJSON_AddStringToObject(to, "model", s->profile->model) &&
           cJSON_AddItemToObject(to, "budget", p->top_p_heads ? rounded(b->target, 7) : cJSON_CreateNull()) &&
           cJSON_AddItemToObject(to, "sparsity",
                                 p->top_p_heads && isfinite(b->sparsity) ? rounded(b->sparsity, 7)
                                                                         : cJSON_CreateNull()) &&
           cJSON_AddBoolToObject(to, "changed_by_flags", s->flags);
}

int hs_attn_json(cJSON *root, const hs_request *r, const hs_attn_source *s, const hs_attn_log *log) {
    return cJSON_AddStringToObject(root, "attention", hs_method_name(r->attention.method)) &&
           add_policy(root, &r->attention) && add_profile(root, s, &r->attention) && add_calls(root, log);
}
