/* The command line of haste-run as data: parsing, strict numbers, help. Pure: prints nothing, touches no file. */
#ifndef HS_OPTIONS_H
#define HS_OPTIONS_H
#include "haste.h"
#include "option_table.h"

typedef struct hs_options {
    /* borrowed from argv; NULL = not given */
    const char *model, *transformer, *text_encoder, *vae, *tokenizer, *random;
    const char *prompt, *prompts, *negative, *output, *noise, *save_latents, *decode_latents, *stats;
    const char *checkpoint, *resume;
    int checkpoint_every; /* 0 = HS_CHECKPOINT_EVERY */
    const char *device, *precision;
    int width, height, frames, fps, steps; /* 0 = the model's own */
    double guidance, shift;                /* NAN = the model's own */
    int solver, sigmas;                    /* -1 = the model's own, the solver's own */
    int crf;                               /* -1 = the default */
    int num_videos;                        /* of every prompt, from seed, seed + 1, ...; 0 = not given */
    int has_seed;
    uint64_t seed;
    int threads;     /* 0 = all cores */
    double max_vram; /* GB = 10^9 bytes; NAN = what is free */
    /* attention; -1 or NAN = not given: the profile's, else the method's own. hs_options_attention puts them together
     */
    const char *profile;
    double budget, top_p, reuse_delta;
    int attention, reuse; /* hs_method, hs_reuse_kind */
    int reuse_interval, dense_steps, dense_layers, block, stride, q_clusters, k_clusters;
    int compat, compensate, seed_exact;
    int dry_run, error_on_fallback, quiet, verbose, help, version;
} hs_options;

/* ---- haste-run ---------------------------------------------------------------------------------------------------
 */
hs_options hs_options_none(void); /* nothing was said */
/* One option of haste-run by its long name, for programs that share some of them. */
int hs_options_set(hs_options *o, const char *name, const char *arg, hs_err *err);
/* A line that may hold haste-run's options of the group Attention and --precision, and nothing else. */
int hs_options_parse_attention(int argc, char **argv, hs_options *ret, hs_err *err);

/* Fills *ret from the arguments (argv[0] is the program). HS_EINVAL with a message that names the option, the text and
 * what it should be. --help and --version end the parsing. */
int hs_options_parse(int argc, char **argv, hs_options *ret, hs_err *err);

/* Puts what was said about attention over *policy, which is dense or comes from the profile named in the options.
 * Returns in ret_flags whether anything of the policy was said. HS_EINVAL for flags that contradict the method, the
 * profile or each other; *policy is then unchanged. */
int hs_options_attention(const hs_options *o, hs_attn_policy *policy, int *ret_flags, hs_err *err);

/* HS_EINVAL for options that contradict each other, or that would be ignored beside the others. */
int hs_options_check(const hs_options *o, hs_err *err);
/* Of them, those that say how attention works. */
int hs_options_check_attention(const hs_options *o, hs_err *err);

/* Where the model is, threads and memory, for hs_model_open; device and precision stay. HS_EINVAL if too little of the
 * model was named. */
int hs_options_model(const hs_options *o, hs_model_params *p, hs_err *err);
/* The folder, or the transformer of a model given by its parts; NULL if neither. */
const char *hs_options_model_name(const hs_options *o);

/* The help text, line by line: grouped options with their defaults, then examples. */
void hs_options_help(void (*line)(void *user, const char *text), void *user);

/* "out.mp4" -> "out_007.mp4", "frames/" -> "frames_007/", "out_%02d.mp4" -> "out_07.mp4" (only the last part of the
 * path is looked at), "null:" stays. "-" cannot be numbered. ret has size bytes. */
int hs_options_number(const char *path, int i, char *ret, size_t size, hs_err *err);

/* What is given of size, frames, steps, guidance, shift, solver, sigmas and negative prompt; the rest of *r stays. */
void hs_options_request(const hs_options *o, hs_request *r);

#endif
