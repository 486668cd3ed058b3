/* The command line of haste-run as data: parsing, strict numbers, help. Pure: prints nothing, touches no file. */
#ifndef HS_OPTIONS_H
#define HS_OPTIONS_H
#include "haste.h"

typedef struct hs_options {
    /* borrowed from argv; NULL = not given */
    const char *model, *prompt, *prompts, *negative, *output, *noise, *save_latents, *decode_latents, *stats;
    const char *device, *precision;
    int width, height, frames, fps, steps; /* 0 = the model's own */
    double guidance, shift;                /* NAN = the model's own */
    int solver, sigmas;                    /* -1 = the model's own, the solver's own */
    int has_seed;
    uint64_t seed;
    int threads; /* 0 = all cores */
    /* attention; -1 or NAN = not given: the profile's, else the method's own. hs_options_attention puts them together
     */
    const char *profile;
    double budget, top_p, reuse_delta;
    int attention, reuse; /* hs_method, hs_reuse_kind */
    int reuse_interval, dense_steps, dense_layers, block, stride, q_clusters, k_clusters;
    int compat, compensate, seed_exact;
    int dry_run, error_on_fallback, quiet, verbose, help, version;
} hs_options;

/* Fills *ret from the arguments (argv[0] is the program). HS_EINVAL with a message that names the option, the text and
 * what it should be. --help and --version end the parsing. */
int hs_options_parse(int argc, char **argv, hs_options *ret, hs_err *err);

/* Puts what was said about attention over *policy, which is dense or comes from the profile named in the options.
 * Returns in ret_flags whether anything of the policy was said. HS_EINVAL for flags that contradict the method, the
 * profile or each other; *policy is then unchanged. */
int hs_options_attention(const hs_options *o, hs_attn_policy *policy, int *ret_flags, hs_err *err);

/* The help text, line by line: grouped options with their defaults, then examples. */
void hs_options_help(void (*line)(void *user, const char *text), void *user);

/* "out.mp4" -> "out_007.mp4", "frames/" -> "frames_007/", "out_%02d.mp4" -> "out_07.mp4", "null:" stays. "-" cannot be
 * numbered. ret has size bytes. */
int hs_options_number(const char *path, int i, char *ret, size_t size, hs_err *err);

#endif
