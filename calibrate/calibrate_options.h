/* The command line of haste-calibrate as data. Pure: prints nothing, touches no file. */
#ifndef HS_CALIBRATE_OPTIONS_H
#define HS_CALIBRATE_OPTIONS_H
#include "options.h"
#include "solve.h"

typedef enum hs_verb {
    HS_VERB_ALL,
    HS_VERB_MEASURE,
    HS_VERB_SOLVE,
    HS_VERB_SHOW,
    HS_VERB_REPORT,
    HS_VERB_COMPARE,
    HS_VERB_COUNT
} hs_verb;

enum { HS_CALIBRATE_MAX_TABLES = 256, HS_CALIBRATE_MAX_RANDOM = 1000, HS_CALIBRATE_MAX_ROUNDS = 20 };

#define HS_CALIBRATE_MATCH 0.9 /* the threshold whose sparsity is the budget when none is said */

typedef struct hs_number_list {
    int n;
    double at[HS_PROFILE_MAX_CANDIDATES];
} hs_number_list;
_Static_assert((int)HS_PROFILE_MAX_CANDIDATES == (int)HS_PROFILE_MAX_BUDGETS, "one list for both");

typedef struct hs_calibrate_options {
    hs_options run; /* what haste-run knows too: model, prompts, sizes, sampling, method, machine */
    hs_verb verb;
    const char *profile; /* show, report, compare: the one to look at; borrowed from argv like all texts */
    const char *other;   /* compare: the second one */
    const char *held_out, *out, *report;
    const char *tables[HS_CALIBRATE_MAX_TABLES];
    int n_tables;
    int max_prompts, max_held_out;                            /* 0 = all */
    hs_number_list candidates, sparsity, match, step_seconds; /* match: thresholds whose sparsity is the budget */
    int intervals, prompts_per_head, shard, shards;
    hs_error_kind error;
    double gap, time_limit;
    int per_interval, no_check, random, refine, help, version;
} hs_calibrate_options;

/* HS_EINVAL with a message that names the option, the text and what it should be. --help and --version end the parsing.
 */
int hs_calibrate_options_parse(int argc, char **argv, hs_calibrate_options *ret, hs_err *err);
void hs_calibrate_options_help(void (*line)(void *user, const char *text), void *user);

#endif
