/* What haste-run says about attention: what runs and why, what every head did, the table at the end, its part of
 * --stats. */
#ifndef HS_RUN_ATTN_H
#define HS_RUN_ATTN_H
#include "options.h"
#include "profile.h"

#include <cjson/cJSON.h>
#include <stdio.h>

/* Where a policy came from. */
typedef struct hs_attn_source {
    hs_profile *profile; /* or NULL */
    int budget;          /* index in the profile */
    int flags;           /* the command line had a say */
    int resumed;         /* from a checkpoint */
} hs_attn_source;

/* Dense, or the profile's, with what the options say put over it. ret_source->profile is to be freed, also after an
 * error. */
int hs_attn_choose(const hs_options *o, const hs_model_info *info, int steps, hs_attn_source *ret_source,
                   hs_attn_policy *ret, hs_err *err);

/* "xattention, block 128, stride 16, top-p 0.9 for all heads, reuse while drift <= 30, first 5 of 30 steps dense" */
void hs_attn_describe(const hs_request *r, const hs_model_info *info, char *ret, size_t size);
/* A line with that and the reason, "(flags)" or "(profile demo.json, budget 0.74)"; a second one if the profile was
 * made for something else. */
void hs_attn_print(FILE *to, const char *label, const hs_request *r, const hs_model_info *info,
                   const hs_attn_source *s);

/* What hs_run_hooks.layer reported, of every call: [steps, branches, layers, heads]. All memory is there from the
 * start, as the hook may not allocate. */
typedef struct hs_attn_log hs_attn_log;
int hs_attn_log_new(int steps, int layers, int heads, hs_attn_log **ret, hs_err *err);
void hs_attn_log_free(hs_attn_log *log);
void hs_attn_log_add(hs_attn_log *log, int step, int branch, int layer, int heads, const float *density,
                     const float *drift, const uint8_t *reused);

/* Sums over what matches; step, layer -1 = all. density: mean over the calls of heads, dense ones count 1. reuse_rate:
 * share of the sparse calls that reused their mask. No calls: 1 and 0. */
typedef struct hs_attn_sum {
    double density, reuse_rate;
    int64_t calls, sparse;
} hs_attn_sum;
hs_attn_sum hs_attn_log_sum(const hs_attn_log *log, int step, int layer);

/* Seconds, then density and reuse rate per layer. */
void hs_attn_table(FILE *to, const hs_attn_log *log, const hs_run_stats *st);

/* Adds attention, attention_settings, profile and calls to the object of --stats. log NULL: dense. 0 = out of memory.
 */
int hs_attn_json(cJSON *root, const hs_request *r, const hs_attn_source *s, const hs_attn_log *log);
#endif
