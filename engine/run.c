/* haste-run: the command line around haste.h. Reads options, opens the model once, makes one video per prompt, reports
 * progress, and sees to it that nothing computed is lost when the place for the video fails.
 *
 * stderr is for people, stdout for data (the plan of --dry-run, y4m with -o -).
 */
#include "haste.h"
#include "options.h"
#include "profile.h"
#include "newfile.h"
#include "program.h"
#include "prompts.h"
#include "run_attn.h"
#include "run_files.h"
#include "run_print.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 };

typedef struct app {
    hs_options o;
    hs_model *model;
    const hs_model_info *info;
    hs_session *session;
    hs_attn_source attention; /* where req.attention comes from; owns the profile */
    hs_attn_log *log;         /* what it did in the video in work; NULL = dense */
    hs_request req;           /* what all videos have in common; the prompt changes */
    hs_plan plan;             /* of req */
    int64_t shape[4];         /* of the latents */
    int64_t numel;
    hs_checkpoint *resume; /* --resume, else NULL */
    float *latents;        /* --noise or --decode-latents, else NULL; later the ones to be rescued */
    hs_prompts prompts;
    int videos;   /* of every prompt, with a seed each */
    int numbered; /* --prompts, --num-videos: every file name gets a number */
    const char *output;
    char default_output[64];
    /* progress */
    hs_console console;
    int last_tenth[HS_STAGE_COUNT], denoised;
} app;

/* ---- messages --------------------------------------------------------------------------------------------------- */
/* Text from outside never moves the cursor. */
static void print_prompt(const char *text) {
    for (; *text; text++) fputc((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text, stderr);
    fputc('\n', stderr);
}

static int refuse_fallback(const app *a, hs_err *err) {
    if (!a->o.error_on_fallback || !hs_console_fallbacks()) return 0;
    return hs_fail(err, HS_ENOTSUP, "a fall-back would be used (see above) and --error-on-fallback was given");
}

static void on_progress(void *user, const hs_progress *p) {
    static const char *const stage[HS_STAGE_COUNT] = {"loading", "reading the prompt", "step", "decoding frame",
                                                      "encoding"};
    app *a = user;
    hs_text32 spent, left = "";
    if (p->stage == HS_STAGE_DENOISE && p->done == p->total) a->denoised = 1;
    int tenth = p->total > 0 ? 10 * p->done / p->total : 0, counted = p->total > 1;
    if (a->o.quiet || (!a->console.tty && (!counted || !p->done || tenth <= a->last_tenth[p->stage]))) return;
    a->last_tenth[p->stage] = tenth;
    if (counted && p->done > p->first && p->done < p->total)
        hs_print_seconds(p->seconds / (p->done - p->first) * (p->total - p->done), left);
    hs_console_clear(&a->console);
    fputs(stage[p->stage], stderr);
    if (counted) fprintf(stderr, " %d/%d  %s", p->done, p->total, hs_print_seconds(p->seconds, spent));
    if (p->stage == HS_STAGE_DENOISE && a->log && p->done > 0) {
        hs_attn_sum s = hs_attn_log_sum(a->log, p->done - 1, -1);
        if (s.calls) fprintf(stderr, ", density %.2f, reused %.2f", s.density, s.reuse_rate);
    }
    if (*left) fprintf(stderr, ", about %s left", left);
    /* on a terminal the line stays open to be rewritten; the last one of a counted stage stays to be read */
    hs_console_end_line(&a->console, counted && p->done == p->total);
}

static void on_layer(void *user, int step, int branch, int layer, int heads, const float *density, const float *drift,
                     const uint8_t *reused) {
    app *a = user;
    if (a->log) hs_attn_log_add(a->log, step, branch, layer, heads, density, drift, reused);
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */
/* A fall-back that shows only while the work goes on stops it in the same way. */
static int on_interrupted(void *user) {
    const app *a = user;
    return hs_program_stopped() || refuse_fallback(a, NULL);
}

/* ---- prompts ---------------------------------------------------------------------------------------------------- */
static int get_prompts(app *a, hs_err *err) {
    int rc = a->o.negative ? hs_prompt_check(a->o.negative, "the negative prompt", err) : 0;
    a->videos = a->o.num_videos ? a->o.num_videos : 1;
    a->numbered = a->o.prompts || a->videos > 1;
    if (rc || a->o.decode_latents) return rc;
    if (a->o.resume && (rc = hs_checkpoint_open(a->o.resume, &a->resume, err))) return rc;
    if (a->resume && !a->o.prompt)
        return hs_prompts_add(&a->prompts, hs_checkpoint_prompt(a->resume), a->o.resume, err);
    if (a->o.prompts) return hs_prompts_read(&a->prompts, a->o.prompts, err);
    if (!a->o.prompt[strspn(a->o.prompt, " \t\r\n")])
        hs_log(HS_LOG_WARN, "the prompt is empty: the model decides what to show");
    return hs_prompts_add(&a->prompts, a->o.prompt, "the prompt", err);
}

/* ---- the request ------------------------------------------------------------------------------------------------ */
static int random_seed(uint64_t *ret, hs_err *err) {
    uint32_t s; /* short enough to be typed again */
    if (getrandom(&s, sizeof s, 0) != (ssize_t)sizeof s)
        return hs_fail(err, HS_EIO, "no random seed from the system (%s); give one with --seed", strerror(errno));
    *ret = s;
    return 0;
}

/* Sizes come from the options, else from the file of latents, else from the model. */
static int make_request(app *a, hs_err *err) {
    const hs_options *o = &a->o;
    const hs_model_info *i = a->info;
    const char *file = o->decode_latents ? o->decode_latents : o->noise;
    hs_request *r = &a->req;
    int rc = 0;
    *r = hs_request_default(a->model);
    if (a->resume && (rc = hs_checkpoint_request(a->resume, a->model, r, err))) return rc;
    r->resume = a->resume;
    r->checkpoint_every = o->checkpoint_every;
    r->decode_only = o->decode_latents != NULL;
    if (file) {
        int64_t s[4];
        if ((rc = hs_latents_shape(file, s, err))) return rc;
        if (s[1] < 1 || s[2] < 1 || s[3] < 1 || s[1] > 65536 || s[2] > 65536 || s[3] > 65536)
            return hs_fail(err, HS_EFORMAT, "%s: latents [%lld, %lld, %lld, %lld] are no video", file, (long long)s[0],
                           (long long)s[1], (long long)s[2], (long long)s[3]);
        r->frames = (int)(s[1] - 1) * i->stride_t + 1;
        r->height = (int)s[2] * i->stride_s, r->width = (int)s[3] * i->stride_s;
    }
    const hs_request of_file = *r;
    hs_options_request(o, r);
    if (file && (r->frames != of_file.frames || r->width != of_file.width || r->height != of_file.height))
        return hs_fail(err, HS_EINVAL,
                       "%s holds latents of %dx%d with %d frames, not of %dx%d with %d: leave --size and --frames out",
                       file, of_file.width, of_file.height, of_file.frames, r->width, r->height, r->frames);
    if (o->has_seed) r->seed = o->seed;
    if (!o->has_seed && !o->noise && !o->decode_latents && !o->resume) rc = random_seed(&r->seed, err);
    if (rc || o->decode_latents) return rc;
    hs_attn_policy policy;
    if ((rc = hs_attn_choose(o, i, r->steps, &a->attention, &policy, err))) return rc;
    a->attention.resumed = a->resume && !o->profile && !a->attention.flags;
    if (!a->attention.resumed) r->attention = policy;
    hs_request now = *r;
    now.prompt = a->prompts.n ? a->prompts.text[0] : NULL;
    return a->resume ? hs_checkpoint_match(a->resume, a->model, &now, err) : 0;
}

static int load_latents(app *a, hs_err *err) {
    const hs_request *r = &a->req;
    const char *file = a->o.decode_latents ? a->o.decode_latents : a->o.noise;
    const int64_t shape[4] = {a->info->latent_channels, (r->frames - 1) / a->info->stride_t + 1,
                              r->height / a->info->stride_s, r->width / a->info->stride_s};
    memcpy(a->shape, shape, sizeof shape);
    a->numel = shape[0] * shape[1] * shape[2] * shape[3];
    a->latents = hs_alloc((size_t)a->numel * sizeof *a->latents);
    if (!a->latents) return hs_fail(err, HS_ENOMEM, "no memory for the latents");
    return file ? hs_latents_load(file, shape, a->latents, err) : 0;
}

/* ---- names of files --------------------------------------------------------------------------------------------- */
static int file_name(const app *a, const char *path, int number, char ret[PATH_SIZE], hs_err *err) {
    if (a->numbered) return hs_options_number(path, number, ret, PATH_SIZE, err);
    if (snprintf(ret, PATH_SIZE, "%s", path) >= PATH_SIZE)
        return hs_fail(err, HS_EINVAL, "%.100s...: path too long", path);
    return 0;
}

static hs_sink_params sink_params(const app *a, const char *path, const char *const *meta) {
    return (hs_sink_params){.path = path,
                            .width = a->req.width,
                            .height = a->req.height,
                            .fps_num = a->req.fps,
                            .fps_den = 1,
                            .frames = a->req.frames,
                            .meta = meta,
                            .has_crf = a->o.crf >= 0,
                            .crf = a->o.crf};
}

/* Without -o: mp4, or the next best kind that this build can write (announced). */
static void choose_output(app *a) {
    static const char *const ext[] = {"mp4", "mkv", "y4m"};
    char stem[32];
    hs_err why = {0};
    a->output = a->o.output ? a->o.output : a->default_output;
    if (a->o.output) return;
    if (a->o.decode_latents || a->o.noise || a->req.noise) /* the last: of a checkpoint */
        snprintf(stem, sizeof stem, "haste-%s", a->o.decode_latents ? "decoded" : "noise");
    else
        snprintf(stem, sizeof stem, "haste-%" PRIu64, a->req.seed);
    for (int i = 0; i < 3; i++) {
        snprintf(a->default_output, sizeof a->default_output, "%s.%s", stem, ext[i]);
        hs_sink_params p = sink_params(a, a->default_output, NULL);
        if (hs_sink_check(&p, i ? NULL : &why) != HS_ENOTSUP) break;
    }
    if (why.code == HS_ENOTSUP) hs_log(HS_LOG_FALLBACK, "%s; writing %s instead", why.msg, a->default_output);
}

static int check_output(const app *a, const char *path, hs_err *err) {
    hs_sink_params p = sink_params(a, path, NULL);
    size_t len = strlen(path);
    const char *slash = strrchr(path, '/');
    if (len > 4 && !strcasecmp(path + len - 4, ".png") && !strchr(slash ? slash : path, '%') && a->req.frames > 1)
        return hs_fail(err, HS_EINVAL,
                       "%s: one png holds one frame, not %d; number them (out_%%04d.png) or name a folder (out/)", path,
                       a->req.frames);
    return hs_sink_check(&p, err);
}

static int count(const app *a) {
    return a->prompts.n ? a->prompts.n * a->videos : 1;
}

/* One video in the making. */
typedef struct job {
    char output[PATH_SIZE], latents[PATH_SIZE], stats[PATH_SIZE], checkpoint[PATH_SIZE];
    hs_request req;
    hs_settings settings; /* for the container; points into req */
    hs_run_stats stats_of;
    int begun;      /* the output was opened */
    int64_t frames; /* written */
} job;

/* ---- what is left after a failure ------------------------------------------------------------------------------- */
static void say_what_was_written(const app *a, const char *output, int64_t frames) {
    const char *name = strcmp(output, "-") ? output : "stdout";
    if (!strcmp(output, "null:")) return;
    if (frames == a->req.frames)
        fprintf(stderr, "haste-run: %s could not be finished\n", name);
    else if (frames > 0)
        fprintf(stderr, "haste-run: %s is partial: %" PRId64 " of %d frames\n", name, frames, a->req.frames);
    else if (strcmp(output, "-"))
        fprintf(stderr, "haste-run: no frame was finished; %s is not written\n", output);
}

static int holds_latents(const app *a, const char *path) {
    float *x = hs_alloc((size_t)a->numel * sizeof *x);
    int same = x && !hs_latents_load(path, a->shape, x, NULL) && !memcmp(x, a->latents, (size_t)a->numel * sizeof *x);
    hs_free(x);
    return same;
}

/* Final latents are never lost: they go where --save-latents says, else beside the video, else to the temporary folder.
 * Unfinished ones are kept after an interruption, if that was asked for. Returns whether final ones are kept. */
static int keep_latents(app *a, const job *j, int code) {
    const char *const state[] = {"state", a->denoised ? "final" : "interrupted while denoising", NULL};
    const char *tmp = getenv("TMPDIR"), *save = j->req.save_latents, *slash = strrchr(j->output, '/');
    const char *base = slash ? slash + 1 : j->output;
    char path[3][PATH_SIZE + 64], other[32];
    int n = 0, in_folder = strcmp(j->output, "-") && strcmp(j->output, "null:") && *base;
    hs_err err = {0};
    if (!a->denoised && (code != HS_EINTR || !save)) return 0;
    if (hs_session_latents(a->session, a->latents, &err)) {
        fprintf(stderr, "haste-run: the latents are lost: %s\n", err.msg);
        return 0;
    }
    if (!in_folder) { /* stdout and folders have no name to put a file beside */
        snprintf(other, sizeof other, "haste-%" PRIu64, j->req.seed);
        base = other;
    }
    if (save) snprintf(path[n++], sizeof path[0], "%s", save);
    if (in_folder) snprintf(path[n++], sizeof path[0], "%s.latents.safetensors", j->output);
    snprintf(path[n++], sizeof path[0], "%s/%s.latents.safetensors", tmp && *tmp ? tmp : "/tmp", base);
    for (int i = 0; i < n; i++) {
        hs_err why = {0};
        if (!(save && i == 0 && holds_latents(a, save)) &&
            hs_latents_save(path[i], a->latents, a->shape, state, &why)) {
            fprintf(stderr, "haste-run: %s\n", why.msg);
            continue;
        }
        if (a->denoised) {
            fputs("haste-run: the latents are kept; this makes the video of them:\n  haste-run", stderr);
            hs_print_flags(stderr, &a->o);
            fputs(" --decode-latents ", stderr);
            hs_print_quoted(stderr, path[i]);
            fprintf(stderr, " --fps %d -o NAME.mp4\n", a->req.fps);
        } else
            fprintf(stderr, "haste-run: the unfinished latents are in %s\n", path[i]);
        return a->denoised;
    }
    return 0;
}

/* What stopped the run may not stop the next one: how to go on, where there are no final latents to decode. NaN, and a
 * damaged checkpoint, would come again. */
static void say_how_to_resume(const app *a, const job *j, int code) {
    const int kept = j->stats_of.checkpoint_step, resumed = j->stats_of.first_step;
    if (code == HS_ENUMERIC || code == HS_EFORMAT || a->o.decode_latents) return;
    if (kept || resumed) {
        fprintf(stderr, "haste-run: %d of %d steps are kept; this goes on with them:\n  haste-run",
                kept ? kept : resumed, j->req.steps);
        hs_print_flags(stderr, &a->o);
        fputs(" --resume ", stderr);
        hs_print_quoted(stderr, kept ? j->checkpoint : a->o.resume);
        fputs(" -o ", stderr);
        hs_print_quoted(stderr, j->output);
        fputc('\n', stderr);
    } else if (code == HS_EINTR && !j->req.checkpoint && j->stats_of.steps)
        fprintf(stderr,
                "haste-run: with --checkpoint FILE the steps would have been kept, to go on with by --resume\n");
}

/* ---- one video -------------------------------------------------------------------------------------------------- */
/* A checkpoint may go on in the file that it came from. */
static int check_names(const app *a, const job *j, hs_err *err) {
    const hs_options *o = &a->o;
    const int goes_on = o->resume && hs_newfile_same(o->resume, j->checkpoint);
    const hs_place place[] = {{"--output", j->output, 0},
                              {"--save-latents", o->save_latents ? j->latents : NULL, 0},
                              {"--stats", o->stats ? j->stats : NULL, 0},
                              {"--checkpoint", *j->checkpoint ? j->checkpoint : NULL, 0},
                              {"--resume", goes_on ? NULL : o->resume, 1},
                              {"--noise", o->noise, 1},
                              {"--decode-latents", o->decode_latents, 1}};
    return hs_places_differ(place, (int)(sizeof place / sizeof *place), err);
}

static int prepare(const app *a, const char *prompt, int number, job *j, hs_err *err) {
    const hs_options *o = &a->o;
    int rc = file_name(a, a->output, number, j->output, err);
    if (!rc && o->save_latents) rc = file_name(a, o->save_latents, number, j->latents, err);
    if (!rc && o->stats) rc = file_name(a, o->stats, number, j->stats, err);
    const char *checkpoint = o->checkpoint ? o->checkpoint : o->resume;
    if (!rc && checkpoint) rc = file_name(a, checkpoint, number, j->checkpoint, err);
    if (!rc) rc = check_output(a, j->output, err);
    if (!rc && o->save_latents) rc = hs_place_check("--save-latents", j->latents, 0, err);
    if (!rc && o->stats) rc = hs_place_check("--stats", j->stats, 1, err);
    if (!rc && checkpoint) rc = hs_place_check(o->checkpoint ? "--checkpoint" : "--resume", j->checkpoint, 0, err);
    if (rc || (rc = check_names(a, j, err))) return rc;
    j->req = a->req;
    j->req.seed += (uint64_t)(number % a->videos);
    j->req.prompt = prompt;
    j->req.save_latents = o->save_latents ? j->latents : NULL;
    if (o->noise) j->req.noise = a->latents;
    if (checkpoint) j->req.checkpoint = j->checkpoint;
    hs_settings_fill(&j->settings, a->info, &j->req, &a->plan, &a->attention);
    return 0;
}

/* Opens the sink, makes the video, closes the sink in every case. */
static int work(app *a, job *j, hs_err *err) {
    hs_run_hooks hooks = {a, on_progress, on_interrupted, on_layer};
    hs_sink_params p = sink_params(a, j->output, j->settings.list);
    hs_sink *sink = NULL;
    hs_err late = {0};
    int rc = hs_sink_open(&p, &sink, err);
    if (rc) return rc;
    a->denoised = 0;
    for (int i = 0; i < HS_STAGE_COUNT; i++) a->last_tenth[i] = -1;
    if (!(rc = refuse_fallback(a, err)))
        rc = a->o.decode_latents ? hs_decode(a->session, a->latents, sink, &hooks, &j->stats_of, err)
                                 : hs_generate(a->session, &j->req, sink, &hooks, &j->stats_of, err);
    if (rc == HS_EINTR && !hs_program_stopped()) rc = refuse_fallback(a, err);
    hs_console_clear(&a->console);
    double start = hs_seconds();
    j->frames = hs_sink_frames(sink);
    int closed = hs_sink_close(sink, NULL, &late); /* the encoder hands out its last frames here */
    j->stats_of.seconds[HS_STAGE_ENCODE] += hs_seconds() - start;
    j->stats_of.total += hs_seconds() - start;
    j->begun = 1;
    return rc || !closed ? rc : hs_fail(err, closed, "%s", late.msg);
}

static void summary(const app *a, const job *j) {
    const hs_run_stats *st = &j->stats_of;
    hs_text32 t[HS_STAGE_COUNT], total, host, device;
    for (int i = 0; i < HS_STAGE_COUNT; i++) hs_print_seconds(st->seconds[i], t[i]);
    fprintf(stderr, "load %s, text %s, denoise %s, decode %s, encode %s: %s in all; peak memory %s (device %s)\n",
            t[HS_STAGE_LOAD], t[HS_STAGE_TEXT], t[HS_STAGE_DENOISE], t[HS_STAGE_DECODE], t[HS_STAGE_ENCODE],
            hs_print_seconds(st->total, total), hs_print_bytes(st->peak_host, host),
            hs_print_bytes(st->peak_device, device));
    if (a->log) hs_attn_table(stderr, a->log, st);
    fprintf(stderr, "%s: %" PRId64 " frame%s of %dx%d, %d fps", j->output, j->frames, j->frames == 1 ? "" : "s",
            a->req.width, a->req.height, a->req.fps);
    if (!a->req.noise && !a->o.noise && !a->o.decode_latents) fprintf(stderr, ", seed %" PRIu64, j->req.seed);
    fputc('\n', stderr);
}

/* Returns the exit status; says all there is to say. */
static int one_video(app *a, int number) {
    const char *prompt = a->prompts.n ? a->prompts.text[number / a->videos] : NULL;
    hs_err err = {0};
    int status = EXIT_DONE, rc;
    job *j = hs_calloc(1, sizeof *j);
    if (!j) {
        hs_fail(&err, HS_ENOMEM, "no memory for another video");
        return hs_console_error(&a->console, &err);
    }
    if (!a->o.quiet && count(a) > 1) {
        fprintf(stderr, "%d of %d", number + 1, count(a));
        if (a->videos > 1) fprintf(stderr, ", seed %" PRIu64, a->req.seed + (uint64_t)(number % a->videos));
        fputs(": ", stderr);
        print_prompt(prompt);
    }
    rc = prepare(a, prompt, number, j, &err);
    if (!rc && a->req.attention.method != HS_DENSE)
        rc = hs_attn_log_new(a->req.steps, a->info->layers, a->info->heads, &a->log, &err);
    if (!rc) rc = work(a, j, &err);
    if (rc) {
        status = hs_console_error(&a->console, &err);
        if (j->begun) say_what_was_written(a, j->output, j->frames);
        if (!j->begun || a->o.decode_latents || !keep_latents(a, j, rc)) say_how_to_resume(a, j, rc);
    } else {
        if (!a->o.quiet) summary(a, j);
        if (a->o.stats &&
            hs_stats_save(j->stats, a->info, &j->req, &a->plan, &j->stats_of, &a->attention, a->log, j->output, &err))
            status = hs_console_error(&a->console, &err);
    }
    hs_attn_log_free(a->log);
    a->log = NULL;
    hs_free(j);
    return status;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */
static int setup(app *a, hs_err *err) {
    const hs_options *o = &a->o;
    hs_model_params p = {.device = o->device ? o->device : "auto",
                         .precision = o->precision ? o->precision : "auto",
                         .headers_only = o->dry_run};
    int rc = get_prompts(a, err);
    if (rc || (rc = hs_options_model(o, &p, err)) || (rc = hs_model_open(&p, &a->model, err)) ||
        (rc = refuse_fallback(a, err)))
        return rc;
    a->info = hs_model_get_info(a->model);
    rc = make_request(a, err);
    if (!rc) choose_output(a);
    return rc;
}

/* Every place for a file is looked at before the first video is begun; in a dry run also shown. */
static int check_places(const app *a, FILE *show, hs_err *err) {
    job *j = hs_calloc(1, sizeof *j);
    int rc = j ? 0 : hs_fail(err, HS_ENOMEM, "no memory for another video");
    for (int i = 0; i < count(a) && !rc; i++) {
        rc = prepare(a, NULL, i, j, err);
        if (!rc && show) fprintf(show, "output   %s\n", j->output);
    }
    hs_free(j);
    return rc;
}

static int dry_run(app *a, hs_err *err) {
    int rc = hs_request_check(a->model, &a->req, &a->plan, err);
    if (rc || (rc = check_places(a, NULL, err))) return rc;
    hs_print_plan(stdout, hs_options_model_name(&a->o), a->info, &a->req, &a->plan);
    if (!a->o.decode_latents) hs_attn_print(stdout, "attention", &a->req, a->info, &a->attention);
    return check_places(a, stdout, err);
}

/* How it fits; and how long it takes, where that is long enough to be worth the tenth of a second of measuring. */
static int plan(app *a, hs_err *err) {
    const double lengthy = 1e13; /* operations: ten minutes of a machine that does 17 GFLOP/s */
    int rc = hs_request_fit(a->model, &a->req, &a->plan, err);
    if (!rc && !a->o.quiet && a->plan.flops_step * a->req.steps + a->plan.flops_vae > lengthy)
        rc = hs_request_check(a->model, &a->req, &a->plan, err);
    if (!rc && a->plan.vae_tiled)
        hs_log(HS_LOG_FALLBACK, "memory is short, so the VAE decodes in tiles: frames differ a little from whole ones");
    return rc;
}

/* What is about to be made, and by what. */
static void print_head(const app *a) {
    const double lengthy = 600;
    const hs_request *r = &a->req;
    hs_text32 time;
    fprintf(stderr, "%s on %s\n%dx%d, %d frame%s", hs_options_model_name(&a->o), a->info->device, r->width, r->height,
            r->frames, r->frames == 1 ? "" : "s");
    if (!a->o.decode_latents)
        fprintf(stderr, ", %d %s steps, guidance %g, shift %g", r->steps, hs_solver_name(r->solver), r->guidance,
                r->shift);
    if (!a->o.decode_latents && !a->o.noise && !r->noise) fprintf(stderr, ", seed %" PRIu64, r->seed);
    fputc('\n', stderr);
    if (!a->o.decode_latents) hs_attn_print(stderr, "attention:", r, a->info, &a->attention);
    hs_print_fit(stderr, "memory:", &a->plan);
    if (a->resume) fprintf(stderr, "going on after step %d\n", hs_checkpoint_steps(a->resume, NULL));
    if (a->plan.seconds > lengthy)
        fprintf(stderr, "time about %s%s\n", hs_print_seconds(a->plan.seconds, time), count(a) > 1 ? " a video" : "");
}

static int make_videos(app *a) {
    hs_err err = {0};
    int status = EXIT_DONE;
    if (plan(a, &err) || refuse_fallback(a, &err) || check_places(a, NULL, &err) || load_latents(a, &err) ||
        hs_session_new(a->model, &a->req, &a->session, &err) || refuse_fallback(a, &err) ||
        (hs_program_stopped() && hs_fail(&err, HS_EINTR, "interrupted before the first step")))
        return hs_console_error(&a->console, &err);
    if (!a->o.quiet) print_head(a);
    for (int i = 0; status == EXIT_DONE && i < count(a); i++) status = one_video(a, i);
    return status;
}

int main(int argc, char **argv) {
    app a = {0};
    hs_err err = {0};
    int status = EXIT_DONE;
    if (hs_options_parse(argc, argv, &a.o, &err)) {
        fprintf(stderr, "haste-run: %s\n%s", err.msg,
                argc < 2 ? "haste-run --help shows the options and examples\n" : "");
        return EXIT_USAGE;
    }
    hs_console_begin(&a.console, "haste-run", a.o.verbose);
    hs_program_catch_signals("\nhaste-run: stopping after this step or frame; once more stops at once\n");
    if (a.o.help)
        hs_options_help(hs_program_print_line, stdout);
    else if (a.o.version)
        printf("haste-run " HS_VERSION "; writes %s\n", hs_sink_formats());
    else if (setup(&a, &err) || (a.o.dry_run && dry_run(&a, &err)))
        status = hs_console_error(&a.console, &err);
    else if (!a.o.dry_run)
        status = make_videos(&a);
    if (fflush(stdout) && status == EXIT_DONE) {
        fprintf(stderr, "haste-run: cannot write to stdout: %s\n", strerror(errno));
        status = EXIT_FAILED;
    }
    hs_session_free(a.session);
    hs_model_free(a.model);
    hs_profile_free(a.attention.profile);
    hs_checkpoint_close(a.resume);
    hs_free(a.latents);
    hs_prompts_done(&a.prompts);
    return status;
}
