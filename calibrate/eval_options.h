/* The command line of haste-eval and its file of variants, as data. */
#ifndef HS_EVAL_OPTIONS_H
#define HS_EVAL_OPTIONS_H
#include "eval_table.h"
#include "options.h"

enum { HS_EVAL_MAX_PROFILES = 64 };

typedef struct hs_eval_options {
    hs_options run; /* what haste-run knows too: model, prompts, sizes, sampling, machine */
    const char *variants, *out, *baseline, *drift; /* borrowed from argv; NULL = not given */
    const char *profiles[HS_EVAL_MAX_PROFILES];
    int n_profiles;
    int seeds, max_prompts; /* max_prompts 0 = all */
    int shard, shards;
    int velocity_clips, side_by_side; /* the first so many clips; -1 = all */
    int report, help, version;
} hs_eval_options;

/* HS_EINVAL with a message that names the option, the text and what it should be. --help and --version end the parsing.
 */
int hs_eval_options_parse(int argc, char **argv, hs_eval_options *ret, hs_err *err);
void hs_eval_options_help(void (*line)(void *user, const char *text), void *user);

/* One way to run attention, as said; a policy only together with a model. */
typedef struct hs_eval_variant {
    char name[HS_EVAL_NAME];
    hs_options o; /* attention and precision; borrows from line */
    char *line;   /* owned */
} hs_eval_variant;

typedef struct hs_eval_variants {
    hs_eval_variant *v;
    int n;
} hs_eval_variants;

/* "name: flags" a line, '#' starts a comment. Adds to *list; a name may come only once. */
int hs_eval_variants_read(hs_eval_variants *list, const char *path, hs_err *err);
/* One variant; where names the place in messages. */
int hs_eval_variants_add(hs_eval_variants *list, const char *line, const char *where, hs_err *err);
void hs_eval_variants_done(hs_eval_variants *list);

#endif
