/* What haste-run says to people (plan, durations, sizes) and to programs (settings in the container, --stats). */
#include "run_print.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

const char *hs_print_seconds(double seconds, hs_text32 ret) {
    int64_t s = (int64_t)(seconds + 0.5);
    if (seconds < 10)
        snprintf(ret, sizeof(hs_text32), "%.1f s", seconds);
    else if (s < 120)
        snprintf(ret, sizeof(hs_text32), "%" PRId64 " s", s);
    else if (s < 7200)
        snprintf(ret, sizeof(hs_text32), "%" PRId64 " min %02" PRId64 " s", s / 60, s % 60);
    else
        snprintf(ret, sizeof(hs_text32), "%" PRId64 " h %02" PRId64 " min", s / 3600, s / 60 % 60);
    return ret;
}

const char *hs_print_bytes(int64_t bytes, hs_text32 ret) {
    double b = (double)bytes;
    if (b < 1e6)
        snprintf(ret, sizeof(hs_text32), "%.0f kB", b / 1e3);
    else if (b < 1e9)
        snprintf(ret, sizeof(hs_text32), "%.0f MB", b / 1e6);
    else
        snprintf(ret, sizeof(hs_text32), "%.1f GB", b / 1e9);
    return ret;
}

static const char *print_flops(double flops, hs_text32 ret) {
    static const char unit[] = "MGTPE";
    double v = flops / 1e6;
    int i = 0;
    for (; v >= 1000 && unit[i + 1]; i++) v /= 1000;
    snprintf(ret, sizeof(hs_text32), "%.3g %cFLOP", v, unit[i]);
    return ret;
}

/* ---- words for a shell ------------------------------------------------------------------------------------------ */
void hs_print_quoted(FILE *to, const char *text) {
    fputc('\'', to);
    for (; *text; text++)
        if (*text == '\'')
            fputs("'\\''", to);
        else
            fputc(*text, to);
    fputc('\'', to);
}

void hs_print_flags(FILE *to, const hs_options *o) {
    const char *const flag[][2] = {{"--random-weights", o->random},
                                   {"-m", o->model},
                                   {"--transformer", o->transformer},
                                   {"--text-encoder", o->text_encoder},
                                   {"--vae", o->vae},
                                   {"--tokenizer", o->tokenizer},
                                   {"--device", o->device},
                                   {"--precision", o->precision}};
    for (size_t i = 0; i < sizeof flag / sizeof *flag; i++)
        if (flag[i][1]) {
            fprintf(to, " %s ", flag[i][0]);
            hs_print_quoted(to, flag[i][1]);
        }
    if (o->threads) fprintf(to, " --threads %d", o->threads);
    if (!isnan(o->max_vram)) fprintf(to, " --max-vram %.9g", o->max_vram);
}

/* ---- the plan --------------------------------------------------------------------------------------------------- */
char hs_sigmas_letter(const hs_request *r) {
    return (char)('A' + (int)hs_sigmas_of(r->solver, r->sigmas));
}

/* How it fits, where that is not simply with everything in its place. */
void hs_print_fit(FILE *to, const char *label, const hs_plan *plan) {
    if (!plan->text_streamed && plan->resident == plan->blocks && plan->vae_chunk == 4 && !plan->vae_tiled) return;
    const char *comma = "";
    fprintf(to, "%s ", label);
    if (plan->text_streamed) fprintf(to, "text encoder streamed"), comma = ", ";
    if (plan->resident < plan->blocks)
        fprintf(to, "%s%d of %d blocks of the transformer on the device, the others streamed", comma, plan->resident,
                plan->blocks),
            comma = ", ";
    if (plan->vae_tiled) fprintf(to, "%sVAE in tiles (frames differ a little from whole ones)", comma);
    if (plan->vae_chunk < 4)
        fprintf(to, "%sVAE %d frame%s at a time", comma, plan->vae_chunk, plan->vae_chunk == 1 ? "" : "s");
    fputc('\n', to);
}

void hs_print_plan(FILE *to, const char *dir, const hs_model_info *info, const hs_request *r, const hs_plan *plan) {
    hs_text32 a, b, c;
    const struct {
        const char *what;
        int64_t bytes;
    } memory[] = {
        {"text encoder", plan->text_bytes},
        {"transformer", plan->dit_bytes},
        {"  slots for streaming", plan->stream_bytes},
        {"  its text keys, tables", plan->act_bytes},
        {"  masks and anchors", plan->mask_bytes},
        {"VAE decoder", plan->vae_bytes},
        {"activations, in turn", plan->room_bytes},
        {r->decode_only ? "latents" : "latents and text rows", plan->latent_bytes},
        {"scratch and workspace", plan->own_bytes},
        {"host, streamed weights", plan->host_bytes},
    };
    fprintf(to, "model    %s: %d layers, %d heads of %d\n", dir, info->layers, info->heads, info->head_dim);
    fprintf(to, "device   %s\n", info->device);
    fprintf(to, "video    %dx%d, %d frames, %d fps (%.1f s)\n", r->width, r->height, r->frames, r->fps,
            (double)r->frames / r->fps);
    fprintf(to, "tokens   %" PRId64 " (%" PRId64 " latent frames of %" PRId64 "x%" PRId64 " patches)\n", plan->tokens,
            plan->latent_frames, plan->latent_w / 2, plan->latent_h / 2);
    if (!r->decode_only)
        fprintf(to, "sampling %d steps, %s with sigmas %c, shift %g, guidance %g\n", r->steps,
                hs_solver_name(r->solver), hs_sigmas_letter(r), r->shift, r->guidance);
    fprintf(to, "memory\n");
    for (size_t i = 0; i < sizeof memory / sizeof memory[0]; i++)
        if (memory[i].bytes) fprintf(to, "  %-24s %8s\n", memory[i].what, hs_print_bytes(memory[i].bytes, a));
    fprintf(to, "  %-24s %8s, of %s %s\n", "highest stage", hs_print_bytes(plan->peak_bytes, a),
            hs_print_bytes(plan->limit_bytes, b), plan->limited ? "allowed (--max-vram)" : "free");
    hs_print_fit(to, "fit     ", plan);
    fprintf(to, "work     ");
    if (!r->decode_only)
        fprintf(to, "text %s, steps %d x %s, ", print_flops(plan->flops_text, a), r->steps,
                print_flops(plan->flops_step, b));
    fprintf(to, "decoding %s\n", print_flops(plan->flops_vae, c));
    if (plan->seconds > 0) fprintf(to, "time     about %s\n", hs_print_seconds(plan->seconds, a));
}

/* ---- settings --------------------------------------------------------------------------------------------------- */
static void add(hs_settings *m, const char *key, const char *value) {
    m->list[m->n++] = key;
    m->list[m->n++] = value;
}

static void HS_PRINTF(3, 4) add_format(hs_settings *m, const char *key, const char *fmt, ...) {
    va_list args;
    char *text = m->text[m->n_text++];
    va_start(args, fmt);
    vsnprintf(text, sizeof m->text[0], fmt, args);
    va_end(args);
    add(m, key, text);
}

void hs_settings_fill(hs_settings *m, const hs_model_info *info, const hs_request *r, const hs_plan *plan,
                      const hs_attn_source *source) {
    const char *negative = r->negative ? r->negative : info->negative_prompt;
    m->n = m->n_text = 0;
    add(m, "comment", m->comment);
    if (r->prompt) {
        add(m, "title", r->prompt);
        add(m, "prompt", r->prompt);
        if (negative && r->guidance > 1) add(m, "negative_prompt", negative);
        if (r->noise)
            add(m, "noise", "from a file");
        else
            add_format(m, "seed", "%" PRIu64, r->seed);
        snprintf(m->comment, sizeof m->comment,
                 "made by haste-run " HS_VERSION ": %s %s, %d steps, %s, guidance %g, shift %g",
                 r->noise ? "noise" : "seed", m->list[m->n - 1], r->steps, hs_solver_name(r->solver), r->guidance,
                 r->shift);
        add_format(m, "steps", "%d", r->steps);
        add(m, "solver", hs_solver_name(r->solver));
        add_format(m, "sigmas", "%c", hs_sigmas_letter(r));
        add_format(m, "guidance", "%g", r->guidance);
        add_format(m, "shift", "%g", r->shift);
        hs_attn_describe(r, info, m->attention, sizeof m->attention);
        add(m, "attention", m->attention);
        if (source->profile) {
            add(m, "profile", source->profile->path);
            if (r->attention.top_p_heads) /* else --top-p replaced them */
                add_format(m, "budget", "%.4g", source->profile->budgets[source->budget].target);
        }
    } else {
        snprintf(m->comment, sizeof m->comment, "decoded from saved latents by haste-run " HS_VERSION);
    }
    if (plan->vae_tiled) add(m, "vae", "in tiles");
    add_format(m, "width", "%d", r->width);
    add_format(m, "height", "%d", r->height);
    add_format(m, "frames", "%d", r->frames);
    add_format(m, "fps", "%d", r->fps);
    add(m, "device", info->device);
    add(m, "model_sha256", info->sha256);
    add(m, "haste_version", HS_VERSION);
    m->list[m->n] = NULL;
}

/* ---- statistics ------------------------------------------------------------------------------------------------- */
/* cJSON's add functions return NULL when memory is short; one of those spoils the whole object. */
static int add_density(cJSON *to, double density, double reuse_rate) {
    return cJSON_AddNumberToObject(to, "density", density) && cJSON_AddNumberToObject(to, "reuse_rate", reuse_rate);
}

/* One step or layer (-1 = all of them) from the log, else from the sums of the run. */
static int add_share(cJSON *to, const hs_run_stats *st, const hs_attn_log *log, int step, int layer) {
    if (!log) return add_density(to, st->density, st->reuse_rate);
    hs_attn_sum s = hs_attn_log_sum(log, step, layer);
    return add_density(to, s.density, s.reuse_rate);
}

static int add_rows(cJSON *root, const hs_model_info *info, const hs_run_stats *st, const hs_attn_log *log) {
    cJSON *steps = cJSON_AddArrayToObject(root, "per_step"), *layers = cJSON_AddArrayToObject(root, "per_layer"), *row;
    for (int i = st->first_step; i < st->steps; i++) {
        row = cJSON_CreateObject();
        if (!cJSON_AddItemToArray(steps, row) || !cJSON_AddNumberToObject(row, "step", i) ||
            !cJSON_AddNumberToObject(row, "seconds", st->step_seconds[i]) || !add_share(row, st, log, i, -1))
            return 0;
    }
    for (int i = 0; i < info->layers; i++) {
        row = cJSON_CreateObject();
        if (!cJSON_AddItemToArray(layers, row) || !cJSON_AddNumberToObject(row, "layer", i) ||
            !add_share(row, st, log, -1, i))
            return 0;
    }
    return layers != NULL;
}

static int fill(cJSON *root, const hs_model_info *info, const hs_request *r, const hs_plan *plan,
                const hs_run_stats *st, const hs_attn_source *source, const hs_attn_log *log, const char *output) {
    static const char *const stage[HS_STAGE_COUNT] = {"load", "text", "denoise", "decode", "encode"};
    char seed[24], sigmas[2] = {hs_sigmas_letter(r), 0};
    /* a JSON number, but not through a double; latents from a file have no seed */
    if (r->prompt && !r->noise)
        snprintf(seed, sizeof seed, "%" PRIu64, r->seed);
    else
        strcpy(seed, "null");
    int ok =
        cJSON_AddStringToObject(root, "version", HS_VERSION) && cJSON_AddStringToObject(root, "model", info->sha256) &&
        cJSON_AddStringToObject(root, "device", info->device) &&
        (r->prompt ? cJSON_AddStringToObject(root, "prompt", r->prompt) : cJSON_AddNullToObject(root, "prompt")) &&
        cJSON_AddStringToObject(root, "output", output) && cJSON_AddRawToObject(root, "seed", seed) &&
        cJSON_AddNumberToObject(root, "width", r->width) && cJSON_AddNumberToObject(root, "height", r->height) &&
        cJSON_AddNumberToObject(root, "frames", r->frames) && cJSON_AddNumberToObject(root, "fps", r->fps) &&
        cJSON_AddNumberToObject(root, "steps", r->steps) &&
        cJSON_AddStringToObject(root, "solver", hs_solver_name(r->solver)) &&
        cJSON_AddStringToObject(root, "sigmas", sigmas) && cJSON_AddNumberToObject(root, "guidance", r->guidance) &&
        cJSON_AddNumberToObject(root, "shift", r->shift) &&
        cJSON_AddNumberToObject(root, "resumed_after_step", st->first_step) &&
        cJSON_AddNumberToObject(root, "flat_frames", st->flat_frames) &&
        cJSON_AddBoolToObject(root, "vae_tiled", plan->vae_tiled) &&
        cJSON_AddNumberToObject(root, "prompt_tokens", st->tokens_cond) &&
        cJSON_AddBoolToObject(root, "truncated", st->truncated);
    cJSON *seconds = cJSON_AddObjectToObject(root, "seconds");
    for (int i = 0; i < HS_STAGE_COUNT; i++) ok = ok && cJSON_AddNumberToObject(seconds, stage[i], st->seconds[i]);
    ok = ok && cJSON_AddNumberToObject(seconds, "total", st->total);
    cJSON *parts = cJSON_AddObjectToObject(root, "attention_seconds");
    ok = ok && cJSON_AddNumberToObject(parts, "predict", st->seconds_predict) &&
         cJSON_AddNumberToObject(parts, "attend", st->seconds_attend);
    cJSON *peak = cJSON_AddObjectToObject(root, "peak_bytes");
    ok = ok && cJSON_AddNumberToObject(peak, "host", (double)st->peak_host) &&
         cJSON_AddNumberToObject(peak, "device", (double)st->peak_device);
    cJSON *by_stage = cJSON_AddObjectToObject(root, "device_bytes_by_stage");
    for (int i = 0; i < HS_STAGE_ENCODE; i++)
        ok = ok && cJSON_AddNumberToObject(by_stage, stage[i], (double)st->stage_peak[i]);
    return ok && add_share(root, st, log, -1, -1) && add_rows(root, info, st, log) &&
           hs_attn_json(root, r, source, log);
}

int hs_stats_save(const char *path, const hs_model_info *info, const hs_request *r, const hs_plan *plan,
                  const hs_run_stats *st, const hs_attn_source *source, const hs_attn_log *log, const char *output,
                  hs_err *err) {
    cJSON *root = cJSON_CreateObject();
    char *text = root && fill(root, info, r, plan, st, source, log, output) ? cJSON_Print(root) : NULL;
    int rc = 0;
    cJSON_Delete(root);
    if (!text) return hs_fail(err, HS_ENOMEM, "%s: out of memory for the statistics", path);
    FILE *f = fopen(path, "w");
    int bad = !f || fprintf(f, "%s\n", text) < 0, code = errno;
    if (f && fclose(f) && !bad) bad = 1, code = errno;
    if (bad) rc = hs_fail(err, HS_EIO, "%s: cannot write the statistics: %s", path, strerror(code));
    cJSON_free(text);
    return rc;
}
