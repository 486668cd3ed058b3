/* What haste-run says: numbers for people, the plan of --dry-run, the settings in the video, the JSON of --stats. */
#ifndef HS_RUN_PRINT_H
#define HS_RUN_PRINT_H
#include "run_attn.h"

#include <stdio.h>

/* "14.2 s", "3 min 20 s", "2 h 05 min" and "812 MB", "4.1 GB" (1e6, 1e9) into ret; returns ret. */
typedef char hs_text32[32];
const char *hs_print_seconds(double seconds, hs_text32 ret);
const char *hs_print_bytes(int64_t bytes, hs_text32 ret);

/* One word of a command line, whatever is in it; and what says model and machine, each with a space before it. */
void hs_print_quoted(FILE *to, const char *text);
void hs_print_flags(FILE *to, const hs_options *o);

/* "unipc A, 30 steps": the name of the noise schedule that a request uses. */
char hs_sigmas_letter(const hs_request *r);

void hs_print_fit(FILE *to, const char *label, const hs_plan *plan);
void hs_print_plan(FILE *to, const char *dir, const hs_model_info *info, const hs_request *r, const hs_plan *plan);

/* Everything that makes the video again, as key, value, ..., NULL for hs_sink_params.meta. A request with noise has no
 * seed; one without a prompt is a decoding of saved latents. list points into *m, r and info. */
typedef struct hs_settings {
    const char *list[48];
    char text[12][64], comment[256], attention[384];
    int n, n_text;
} hs_settings;
void hs_settings_fill(hs_settings *m, const hs_model_info *info, const hs_request *r, const hs_plan *plan,
                      const hs_attn_source *source);

/* One JSON object (docs/formats.md); log NULL: attention was dense. Written to a new file; HS_EIO or HS_ENOMEM. */
int hs_stats_save(const char *path, const hs_model_info *info, const hs_request *r, const hs_plan *plan,
                  const hs_run_stats *st, const hs_attn_source *source, const hs_attn_log *log, const char *output,
                  hs_err *err);
#endif
