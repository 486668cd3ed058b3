/* The command line of haste-run. */
#include "options.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* clang-format off */
enum id {
    ID_GROUP, ID_MODEL, ID_TRANSFORMER, ID_TEXT_ENCODER, ID_VAE, ID_TOKENIZER, ID_RANDOM, ID_PROMPT, ID_PROMPTS, ID_NUM_VIDEOS, ID_NEGATIVE, ID_SIZE, ID_WIDTH, ID_HEIGHT, ID_FRAMES, ID_FPS,
    ID_STEPS, ID_GUIDANCE, ID_SHIFT, ID_SOLVER, ID_SCHEDULER, ID_SIGMAS, ID_SEED, ID_NOISE, ID_OUTPUT, ID_CRF, ID_SAVE_LATENTS,
    ID_DECODE_LATENTS, ID_CHECKPOINT, ID_EVERY, ID_RESUME, ID_STATS, ID_DEVICE, ID_PRECISION, ID_THREADS, ID_MAX_VRAM, ID_FALLBACK, ID_DRY_RUN, ID_QUIET, ID_VERBOSE,
    ID_VERSION, ID_HELP, ID_PROFILE, ID_BUDGET, ID_ATTENTION, ID_TOP_P, ID_REUSE, ID_REUSE_DELTA, ID_REUSE_INTERVAL,
    ID_DENSE_STEPS, ID_DENSE_LAYERS, ID_BLOCK, ID_STRIDE, ID_Q_CLUSTERS, ID_K_CLUSTERS, ID_COMPENSATE, ID_SEED_EXACT, ID_COMPAT
};
/* clang-format on */

static const hs_option_row rows[] = {
    {ID_GROUP, 0, NULL, NULL, "What to make"},
    {ID_MODEL, 'm', "model", "DIR", "model folder: Diffusers, original or ComfyUI layout (needed, or its parts:)"},
    {ID_MODEL, 0, "ckpt_dir", "DIR", NULL},
    {ID_TRANSFORMER, 0, "transformer", "PATH", "file or folder of this part, instead of the folder's"},
    {ID_TRANSFORMER, 0, "unet", "PATH", NULL},
    {ID_TRANSFORMER, 0, "diffusion-model", "PATH", NULL},
    {ID_TEXT_ENCODER, 0, "text-encoder", "PATH", "likewise (UMT5-XXL)"},
    {ID_TEXT_ENCODER, 0, "text_encoder", "PATH", NULL},
    {ID_TEXT_ENCODER, 0, "t5xxl", "PATH", NULL},
    {ID_VAE, 0, "vae", "PATH", "likewise"},
    {ID_TOKENIZER, 0, "tokenizer", "PATH", "spiece.model or its folder [in or beside the text encoder]"},
    {ID_RANDOM, 0, "random-weights", "NAME",
     "instead, for benchmarks: wan2.1-1.3b, wan2.1-14b, or a folder with configs;\n"
     "all of the model, text encoder too, of random numbers. The video is noise"},
    {ID_PROMPT, 'p', "prompt", "TEXT", "what the video shows"},
    {ID_PROMPTS, 0, "prompts", "FILE",
     "one prompt a line instead ('#' comments): out_000.mp4, out_001.mp4, ...,\nall from the same seed"},
    {ID_NUM_VIDEOS, 'b', "num-videos", "N", "of every prompt, from seed S, S+1, ...; numbered as with --prompts [1]"},
    {ID_NUM_VIDEOS, 0, "batch-count", "N", NULL},
    {ID_NUM_VIDEOS, 0, "n_iter", "N", NULL},
    {ID_NEGATIVE, 'n', "negative", "TEXT", "what it should not show [the model's]"},
    {ID_NEGATIVE, 0, "negative-prompt", "TEXT", NULL},
    {ID_NEGATIVE, 0, "negative_prompt", "TEXT", NULL},
    {ID_NEGATIVE, 0, "n_prompt", "TEXT", NULL},
    {ID_NEGATIVE, 0, "n-prompt", "TEXT", NULL},
    {ID_GROUP, 0, NULL, NULL, "Video"},
    {ID_WIDTH, 'W', "width", "N", "pixels, a multiple of 16 [the model's]"},
    {ID_HEIGHT, 'H', "height", "N", "pixels, a multiple of 16 [the model's]"},
    {ID_SIZE, 0, "size", "WxH", "both at once, 832x480 or 832*480"},
    {ID_FRAMES, 0, "frames", "N", "4k+1: 1, 5, 9, ... [the model's]"},
    {ID_FRAMES, 0, "frame_num", "N", NULL},
    {ID_FRAMES, 0, "num-frames", "N", NULL},
    {ID_FRAMES, 0, "num_frames", "N", NULL},
    {ID_FRAMES, 0, "video-frames", "N", NULL},
    {ID_FPS, 0, "fps", "N", "frames a second [the model's]"},
    {ID_GROUP, 0, NULL, NULL, "Sampling"},
    {ID_STEPS, 0, "steps", "N", "denoising steps [the model's]"},
    {ID_STEPS, 0, "sample_steps", "N", NULL},
    {ID_STEPS, 0, "num-inference-steps", "N", NULL},
    {ID_STEPS, 0, "num_inference_steps", "N", NULL},
    {ID_GUIDANCE, 0, "guidance", "X", "how strongly the prompt binds; 1 = off, twice as fast [the model's]"},
    {ID_GUIDANCE, 0, "guidance-scale", "X", NULL},
    {ID_GUIDANCE, 0, "guidance_scale", "X", NULL},
    {ID_GUIDANCE, 0, "sample_guide_scale", "X", NULL},
    {ID_GUIDANCE, 0, "cfg-scale", "X", NULL},
    {ID_SHIFT, 0, "shift", "X", "larger spends more steps on layout, fewer on detail [the model's]"},
    {ID_SHIFT, 0, "flow-shift", "X", NULL},
    {ID_SHIFT, 0, "flow_shift", "X", NULL},
    {ID_SHIFT, 0, "sample_shift", "X", NULL},
    {ID_SOLVER, 0, "solver", "NAME", "unipc, dpm++ or euler [the model's]"},
    {ID_SOLVER, 0, "sample_solver", "NAME", NULL},
    {ID_SOLVER, 0, "sampling-method", "NAME", NULL},
    {ID_SCHEDULER, 0, "scheduler", "NAME", NULL},
    {ID_SIGMAS, 0, "sigmas", "NAME", "noise schedule a, b, c or d [unipc a, dpm++ c, euler d]"},
    {ID_SEED, 0, "seed", "N", "same seed, same video; -1 = random [random, printed]"},
    {ID_SEED, 0, "base_seed", "N", NULL},
    {ID_NOISE, 0, "noise", "FILE", "initial latents (safetensors) instead of the seed's"},
    {ID_GROUP, 0, NULL, NULL, "Attention"},
    {ID_PROFILE, 0, "profile", "FILE", "a calibrated profile of this model: method, threshold of every head, reuse"},
    {ID_BUDGET, 0, "budget", "S", "which of its sparsity budgets, such as 0.74 [the profile's first]"},
    {ID_ATTENTION, 0, "attention", "NAME",
     "dense, xattention (start here), svg2 (clusters; long videos) or pooled (for\ncomparison) [the profile's, else "
     "dense]"},
    {ID_TOP_P, 0, "top-p", "P", "attention mass that every head keeps, above 0 to 1 [the profile's, else 0.9]"},
    {ID_REUSE, 0, "reuse", "NAME",
     "keep masks between steps: none, drift (until queries and keys moved by D),\n"
     "relative (by that share of their means), interval (N steps), stagger (N steps,\n"
     "layers in turn) or freeze (the first ones for good) [drift]"},
    {ID_REUSE_DELTA, 0, "reuse-delta", "D", "drift, relative: predict again above D [30, svg2 8]"},
    {ID_REUSE_INTERVAL, 0, "reuse-interval", "N", "interval, stagger: predict every N-th step [4]"},
    {ID_DENSE_STEPS, 0, "dense-steps", "N", "the first N steps attend densely [the profile's, else 0]"},
    {ID_DENSE_LAYERS, 0, "dense-layers", "N", "the first N layers attend densely [the profile's, else 0]"},
    {ID_BLOCK, 0, "block", "N", "xattention, pooled: tokens a block, 64 or 128 [128]"},
    {ID_STRIDE, 0, "stride", "N", "xattention: sample antidiagonals of 2, 4, 8 or 16; 1 = exact mass, slow [16]"},
    {ID_Q_CLUSTERS, 0, "q-clusters", "N", "svg2: clusters of queries [300]"},
    {ID_K_CLUSTERS, 0, "k-clusters", "N", "svg2: clusters of keys [1000]"},
    {ID_COMPENSATE, 0, "compensate", NULL, "xattention, pooled: approximate dropped blocks by their mean"},
    {ID_SEED_EXACT, 0, "seed-exact", NULL, "xattention, pooled: first masks from exact mass at the last dense step"},
    {ID_COMPAT, 0, "compat", NULL, "xattention, svg2: masks as the published code makes them, for comparison"},
    {ID_GROUP, 0, NULL, NULL, "Output"},
    {ID_OUTPUT, 'o', "output", "PATH",
     "out.mp4, .webm, .y4m, .md5; exact: .mkv, .rgb (raw), out_%04d.png, folder/;\n"
     "- for y4m on stdout, null: for nothing [haste-SEED.mp4]. A file that is there\nalready is replaced"},
    {ID_OUTPUT, 0, "output-path", "PATH", NULL},
    {ID_OUTPUT, 0, "output_path", "PATH", NULL},
    {ID_OUTPUT, 0, "save_file", "PATH", NULL},
    {ID_CRF, 0, "crf", "N", "mp4, webm: quality, from 0 (best, largest) to 51 [17]"},
    {ID_SAVE_LATENTS, 0, "save-latents", "FILE", "keep the final latents (safetensors), written before decoding"},
    {ID_DECODE_LATENTS, 0, "decode-latents", "FILE", "only decode saved latents; no prompt needed"},
    {ID_CHECKPOINT, 0, "checkpoint", "FILE", "keep the state of the run every few steps, and when it is interrupted"},
    {ID_EVERY, 0, "checkpoint-every", "N", "steps between two of them [5]"},
    {ID_RESUME, 0, "resume", "FILE",
     "go on from a checkpoint, to the bit; settings come from it, and more\n"
     "checkpoints go to it unless --checkpoint names another file"},
    {ID_STATS, 0, "stats", "FILE", "seconds, memory and settings as JSON"},
    {ID_GROUP, 0, NULL, NULL, "Machine"},
    {ID_DEVICE, 0, "device", "NAME", "auto, cpu, cuda, cuda:N or ref (slow and plain) [auto]"},
    {ID_PRECISION, 0, "precision", "NAME", "auto, fp32, bf16 or fp16 (GPU) [auto: what the device does fast]"},
    {ID_PRECISION, 0, "dtype", "NAME", NULL},
    {ID_THREADS, 0, "threads", "N", "CPU threads [all cores]"},
    {ID_MAX_VRAM, 0, "max-vram", "GB",
     "device memory to live with, such as 12 or 7.5: weights that do not fit are\n"
     "streamed from host memory [all that is free]"},
    {ID_FALLBACK, 0, "error-on-fallback", NULL, "fail where something slower or other than asked for would be used"},
    {ID_GROUP, 0, NULL, NULL, "Other"},
    {ID_DRY_RUN, 0, "dry-run", NULL, "print sizes, memory, work and time; make nothing"},
    {ID_QUIET, 'q', "quiet", NULL, "only warnings and errors"},
    {ID_VERBOSE, 'v', "verbose", NULL, "more"},
    {ID_VERSION, 0, "version", NULL, "print the version and what this build can write"},
    {ID_HELP, 'h', "help", NULL, "print this"},
};

enum { ROWS = sizeof rows / sizeof rows[0] };
_Static_assert((int)ROWS <= (int)HS_OPTIONS_MAX_ROWS, "HS_OPTIONS_MAX_ROWS");

/* ---- help ------------------------------------------------------------------------------------------------------- */
void hs_options_help(void (*line)(void *user, const char *text), void *user) {
    line(user, "haste-run makes a video from a prompt with a Wan2.1-class model.");
    line(user, "");
    line(user, "  haste-run -m DIR -p TEXT [-o out.mp4] [options]");
    line(user, "");
    line(user, "Defaults are in brackets; --dry-run shows the model's own.");
    hs_options_list(rows, ROWS, line, user);
    static const char *const tail[] = {
        "",
        "The names of other Wan programs work too: --ckpt_dir --frame_num --sample_steps --sample_guide_scale",
        "--sample_shift --sample_solver --base_seed --save_file --n_prompt --num-frames --num-inference-steps",
        "--guidance-scale --flow-shift --negative-prompt --output-path --scheduler --dtype --unet --diffusion-model",
        "--t5xxl --cfg-scale --video-frames --sampling-method --batch-count.",
        "",
        "Ctrl-C stops after the step and finishes the file; twice stops at once.",
        "Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
        "",
        "Examples",
        "  haste-run -m data/demo -p \"a red circle moves to the right on a white background\" -o circle.mp4",
        "  haste-run -m data/demo -p \"a blue star spins\" --seed 7 --steps 20 -o star.mkv --stats star.json",
        "  haste-run -m data/demo --prompts prompts/evaluate.txt -o videos/clip.mp4",
        "  haste-run -m data/demo -p \"a blue star spins\" --attention xattention --top-p 0.9 --dense-steps 3",
        "  haste-run -m data/demo -p \"a green square grows on a gray background\" --dry-run",
        "  haste-run -m Wan2.1-T2V-1.3B -p \"two cats box on a stage\" -o cats.mp4",
        "  haste-run --transformer wan2.1_t2v_1.3B_bf16.safetensors --text-encoder umt5_xxl_fp16.safetensors \\",
        "            --vae wan_2.1_vae.safetensors -p \"two cats box on a stage\" -o cats.mp4",
    };
    for (size_t i = 0; i < sizeof tail / sizeof tail[0]; i++) line(user, tail[i]);
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */
static int parse_size(const char *name, const char *text, hs_options *o, hs_err *err) {
    uint64_t w, h;
    const char *end;
    if (!hs_option_digits(text, &w, &end) && (*end == 'x' || *end == '*' || *end == 'X') &&
        !hs_option_digits(end + 1, &h, &end) && !*end && w - 1 < 1000000 && h - 1 < 1000000) {
        o->width = (int)w, o->height = (int)h;
        return 0;
    }
    return hs_option_bad(name, text, "width x height, such as 832x480", err);
}

static int parse_seed(const char *name, const char *text, hs_options *o, hs_err *err) {
    const char *end;
    uint64_t v;
    if (!strcmp(text, "-1")) {
        o->has_seed = 0;
        return 0;
    }
    if (hs_option_digits(text, &v, &end) || *end)
        return hs_option_bad(name, text, "a whole number from 0 to 18446744073709551615, or -1", err);
    o->seed = v;
    o->has_seed = 1;
    return 0;
}

/* Gigabytes of 10^9 bytes, bare or with the unit behind them. */
static int parse_gigabytes(const char *name, const char *text, double *ret, hs_err *err) {
    static const struct {
        const char *name;
        double gb;
    } units[] = {{"", 1}, {"G", 1}, {"GB", 1}, {"GiB", 1.073741824}};
    size_t len = strspn(text, "0123456789.");
    char number[32];
    double v;
    snprintf(number, sizeof number, "%.*s", (int)len, text);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (len < sizeof number && !strcasecmp(text + len, units[i].name) &&
            !hs_option_double(name, number, 1e-3, 1e6, &v, NULL)) {
            *ret = v * units[i].gb;
            return 0;
        }
    return hs_option_bad(name, text, "gigabytes from 0.001 to 1000000, such as 12, 7.5, 12GB or 12GiB", err);
}

/* ---- one option ------------------------------------------------------------------------------------------------- */
/* A power of two from `low` to `high`; should: said in words. */
static int parse_power(const char *name, const char *text, int low, int high, const char *should, int *ret,
                       hs_err *err) {
    if (hs_option_int(name, text, low, high, ret, NULL) || (*ret & (*ret - 1)))
        return hs_option_bad(name, text, should, err);
    return 0;
}

/* Values that other programs call otherwise. */
static const char *our_name(const char *theirs) {
    static const char *const names[][2] = {
        {"float32", "fp32"}, {"bfloat16", "bf16"}, {"float16", "fp16"}, {"dpm++2m", "dpm++"}, {"uni_pc", "unipc"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(theirs, names[i][0])) return names[i][1];
    return theirs;
}

static int apply(void *user, const hs_option_row *r, const char *arg, hs_err *err) {
    hs_options *o = user;
    hs_solver_kind solver;
    hs_method method;
    hs_reuse_kind reuse;
    int rc = 0;
    switch (r->id) {
    case ID_MODEL: o->model = arg; break;
    case ID_TRANSFORMER: o->transformer = arg; break;
    case ID_TEXT_ENCODER: o->text_encoder = arg; break;
    case ID_VAE: o->vae = arg; break;
    case ID_TOKENIZER: o->tokenizer = arg; break;
    case ID_RANDOM: o->random = arg; break;
    case ID_PROMPT: o->prompt = arg; break;
    case ID_PROMPTS: o->prompts = arg; break;
    case ID_NUM_VIDEOS: rc = hs_option_int(r->name, arg, 1, 10000, &o->num_videos, err); break;
    case ID_NEGATIVE: o->negative = arg; break;
    case ID_SIZE: rc = parse_size(r->name, arg, o, err); break;
    case ID_WIDTH: rc = hs_option_int(r->name, arg, 1, 1000000, &o->width, err); break;
    case ID_HEIGHT: rc = hs_option_int(r->name, arg, 1, 1000000, &o->height, err); break;
    case ID_FRAMES: /* 4k+1, and the limit, are the model's to check */
        if (hs_option_int(r->name, arg, 1, 1000000, &o->frames, NULL))
            return hs_option_bad(r->name, arg, "4k+1 frames: 1, 5, 9, ... (Wan2.1: 81, at most 4093)", err);
        break;
    case ID_FPS: rc = hs_option_int(r->name, arg, 1, 1000, &o->fps, err); break;
    case ID_STEPS: rc = hs_option_int(r->name, arg, 1, HS_MAX_STEPS, &o->steps, err); break;
    case ID_GUIDANCE: rc = hs_option_double(r->name, arg, 0, 100, &o->guidance, err); break;
    case ID_SHIFT: rc = hs_option_double(r->name, arg, 0.01, 100, &o->shift, err); break;
    case ID_SOLVER:
    case ID_SCHEDULER:
        if (hs_solver_parse(our_name(arg), &solver))
            return hs_option_bad(r->name, arg,
                                 r->id == ID_SOLVER
                                     ? "unipc, dpm++ or euler"
                                     : "unipc, dpm++ or euler; the noise schedule is --sigmas, and --shift",
                                 err);
        o->solver = (int)solver;
        break;
    case ID_SIGMAS:
        if (strlen(arg) != 1 || !strchr("abcdABCD", *arg)) return hs_option_bad(r->name, arg, "a, b, c or d", err);
        o->sigmas = HS_SIGMAS_A + ((*arg | 0x20) - 'a');
        break;
    case ID_SEED: rc = parse_seed(r->name, arg, o, err); break;
    case ID_NOISE: o->noise = arg; break;
    case ID_OUTPUT: o->output = arg; break;
    case ID_CRF: rc = hs_option_int(r->name, arg, 0, 51, &o->crf, err); break;
    case ID_SAVE_LATENTS: o->save_latents = arg; break;
    case ID_DECODE_LATENTS: o->decode_latents = arg; break;
    case ID_CHECKPOINT: o->checkpoint = arg; break;
    case ID_EVERY: rc = hs_option_int(r->name, arg, 1, HS_MAX_STEPS, &o->checkpoint_every, err); break;
    case ID_RESUME: o->resume = arg; break;
    case ID_STATS: o->stats = arg; break;
    case ID_DEVICE: o->device = arg; break; /* hs_model_open knows which exist */
    case ID_PRECISION: o->precision = our_name(arg); break;
    case ID_THREADS: rc = hs_option_int(r->name, arg, 1, 1024, &o->threads, err); break;
    case ID_MAX_VRAM: rc = parse_gigabytes(r->name, arg, &o->max_vram, err); break;
    case ID_PROFILE: o->profile = arg; break;
    case ID_BUDGET: rc = hs_option_double(r->name, arg, 0, 1, &o->budget, err); break;
    case ID_ATTENTION:
        if (hs_method_parse(arg, &method)) return hs_option_bad(r->name, arg, "dense, xattention, svg2 or pooled", err);
        o->attention = (int)method;
        break;
    case ID_TOP_P:
        if (hs_option_double(r->name, arg, 1e-6, 1, &o->top_p, NULL))
            return hs_option_bad(r->name, arg, "a number above 0, at most 1, such as 0.9", err);
        break;
    case ID_REUSE:
        if (hs_reuse_parse(arg, &reuse))
            return hs_option_bad(r->name, arg, "none, drift, relative, interval, stagger or freeze", err);
        o->reuse = (int)reuse;
        break;
    case ID_REUSE_DELTA: rc = hs_option_double(r->name, arg, 0, 1e9, &o->reuse_delta, err); break;
    case ID_REUSE_INTERVAL: rc = hs_option_int(r->name, arg, 1, 1000, &o->reuse_interval, err); break;
    case ID_DENSE_STEPS: rc = hs_option_int(r->name, arg, 0, HS_MAX_STEPS, &o->dense_steps, err); break;
    case ID_DENSE_LAYERS: rc = hs_option_int(r->name, arg, 0, 1000, &o->dense_layers, err); break;
    case ID_BLOCK: rc = parse_power(r->name, arg, 64, 128, "64 or 128", &o->block, err); break;
    case ID_STRIDE: rc = parse_power(r->name, arg, 1, 16, "1, 2, 4, 8 or 16", &o->stride, err); break;
    case ID_Q_CLUSTERS: rc = hs_option_int(r->name, arg, 1, 65535, &o->q_clusters, err); break;
    case ID_K_CLUSTERS: rc = hs_option_int(r->name, arg, 1, 65535, &o->k_clusters, err); break;
    case ID_COMPENSATE: o->compensate = 1; break;
    case ID_SEED_EXACT: o->seed_exact = 1; break;
    case ID_COMPAT: o->compat = 1; break;
    case ID_FALLBACK: o->error_on_fallback = 1; break;
    case ID_DRY_RUN: o->dry_run = 1; break;
    case ID_QUIET: o->quiet = 1; break;
    case ID_VERBOSE: o->verbose = 1; break;
    case ID_VERSION: o->version = 1; break;
    case ID_HELP: o->help = 1; break;
    default: break;
    }
    return rc;
}

/* ---- haste-run -------------------------------------------------------------------------------------------------- */
hs_options hs_options_none(void) {
    return (hs_options){.guidance = NAN,
                        .max_vram = NAN,
                        .shift = NAN,
                        .solver = -1,
                        .sigmas = -1,
                        .crf = -1,
                        .budget = NAN,
                        .top_p = NAN,
                        .reuse_delta = NAN,
                        .attention = -1,
                        .reuse = -1,
                        .reuse_interval = -1,
                        .dense_steps = -1,
                        .dense_layers = -1,
                        .block = -1,
                        .stride = -1,
                        .q_clusters = -1,
                        .k_clusters = -1};
}

int hs_options_set(hs_options *o, const char *name, const char *arg, hs_err *err) {
    for (int i = 0; i < ROWS; i++)
        if (rows[i].name && !strcmp(rows[i].name, name)) return apply(o, &rows[i], arg, err);
    return hs_fail(err, HS_EINVAL, "haste-run has no option --%s", name);
}

static int set_attention(void *user, const hs_option_row *row, const char *arg, hs_err *err) {
    const hs_option_row *group = row;
    while (group->name) group--;
    if (row->id == ID_PRECISION || !strcmp(group->help, "Attention")) return apply(user, row, arg, err);
    return hs_fail(err, HS_EINVAL,
                   "--%s cannot stand in a variant (options of attention and --precision only): what is the same for "
                   "all of them is given to haste-eval",
                   row->name);
}

int hs_options_parse_attention(int argc, char **argv, hs_options *ret, hs_err *err) {
    hs_options o = hs_options_none();
    int rc = hs_options_read(rows, ROWS, argc, argv, set_attention, &o, err);
    if (!rc) rc = hs_options_check_attention(&o, err);
    if (!rc) *ret = o;
    return rc;
}

/* --help and --version end the reading: nothing else need be right then. */
static int set_run(void *user, const hs_option_row *row, const char *arg, hs_err *err) {
    int rc = apply(user, row, arg, err);
    return rc ? rc : row->id == ID_HELP || row->id == ID_VERSION;
}

int hs_options_parse(int argc, char **argv, hs_options *ret, hs_err *err) {
    hs_options o = hs_options_none();
    int rc = hs_options_read(rows, ROWS, argc, argv, set_run, &o, err);
    if (!rc) rc = hs_options_check(&o, err);
    if (rc < 0) return rc;
    *ret = o;
    return 0;
}

/* Behind the last slash, but for one that ends the path. */
static const char *last_part(const char *path) {
    size_t at = strlen(path);
    if (at && path[at - 1] == '/') at--;
    while (at && path[at - 1] != '/') at--;
    return path + at;
}

int hs_options_number(const char *path, int i, char *ret, size_t size, hs_err *err) {
    size_t len = strlen(path);
    const char *percent = strchr(last_part(path), '%'), *slash = strrchr(path, '/'), *dot = strrchr(path, '.'), *end;
    int width = 1, n;
    if (!strcmp(path, "-"))
        return hs_fail(err, HS_EINVAL, "-o -: several videos cannot share stdout; give a name such as -o out.y4m");
    if (!strcmp(path, "null:")) {
        n = snprintf(ret, size, "%s", path);
    } else if (percent) {
        end = percent + 1;
        if (end[0] == '0' && end[1] >= '1' && end[1] <= '9') width = end[1] - '0', end += 2;
        if (*end != 'd' || strchr(end, '%'))
            return hs_fail(err, HS_EINVAL, "%s: needs exactly one %%d or %%0Nd for the number of the prompt", path);
        n = snprintf(ret, size, "%.*s%0*d%s", (int)(percent - path), path, width, i, end + 1);
    } else {
        size_t cut = len; /* the number goes in front of the extension, or of the slash that ends a folder */
        if (len && path[len - 1] == '/')
            cut = len - 1;
        else if (dot && (!slash || dot > slash + 1) && dot != path)
            cut = (size_t)(dot - path);
        n = snprintf(ret, size, "%.*s_%03d%s", (int)cut, path, i, path + cut);
    }
    return n < 0 || (size_t)n >= size ? hs_fail(err, HS_EINVAL, "%.100s...: path too long", path) : 0;
}

void hs_options_request(const hs_options *o, hs_request *r) {
    if (o->width) r->width = o->width;
    if (o->height) r->height = o->height;
    if (o->frames) r->frames = o->frames;
    if (o->fps) r->fps = o->fps;
    if (o->steps) r->steps = o->steps;
    if (!isnan(o->guidance)) r->guidance = o->guidance;
    if (!isnan(o->shift)) r->shift = o->shift;
    if (o->solver >= 0) r->solver = (hs_solver_kind)o->solver;
    if (o->sigmas >= 0) r->sigmas = o->sigmas;
    if (o->negative) r->negative = o->negative;
}
