/* What haste-eval has measured: one result per (clip, variant), kept in journals, merged, and summed up in rows.
 *
 * A folder holds any number of journals (*.jsonl, one per shard). Their identity is everything that two results must
 * share to stand in one table: model and settings. A clip is a prompt and a seed. Pure but for reading the files.
 */
#ifndef HS_EVAL_TABLE_H
#define HS_EVAL_TABLE_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { HS_EVAL_NAME = 64 }; /* bytes of a variant's name */

/* What is measured of every clip. NAN = not measured. */
typedef enum hs_eval_metric {
    HS_EVAL_PSNR,
    HS_EVAL_PSNR_CLIP,
    HS_EVAL_SSIM,
    HS_EVAL_VELOCITY_ERROR, /* mean over the steps that are not dense of |v - v_d|^2 / |v_d|^2, guided velocities along
                             * the dense trajectory; a dense variant: over all steps */
    HS_EVAL_SECONDS,        /* denoising and decoding; not loading, reading the prompt, writing */
    HS_EVAL_DENOISE,
    HS_EVAL_PREDICT,
    HS_EVAL_ATTEND,
    HS_EVAL_DENSITY,        /* over all calls of heads, dense ones count 1 */
    HS_EVAL_DENSITY_SPARSE, /* over the sparse calls only */
    HS_EVAL_REUSE_RATE,
    HS_EVAL_RANK_POST_1, /* Spearman of drift against mask overlap, lag 1, means after the rotation (--drift) */
    HS_EVAL_RANK_POST_4,
    HS_EVAL_RANK_POST_8,
    HS_EVAL_RANK_PRE_1, /* the same, means before the rotation */
    HS_EVAL_RANK_PRE_4,
    HS_EVAL_RANK_PRE_8,
    HS_EVAL_METRICS
} hs_eval_metric;
const char *hs_eval_metric_key(hs_eval_metric m); /* its name in journals and table.json */

typedef struct hs_eval_result {
    char *prompt, *variant, *what, *device; /* what: the settings of the variant in words */
    uint64_t seed;
    char run[17];  /* of one process: seconds are compared only within one */
    int warm;      /* the variant had run before in this process */
    int identical; /* to the dense clip, every byte */
    double value[HS_EVAL_METRICS];
} hs_eval_result;

/* One line of a journal; to be freed by hs_free. NULL when out of memory. */
char *hs_eval_result_json(const hs_eval_result *r);

typedef struct hs_eval_results {
    char *identity;    /* NULL while nothing was read */
    char *path;        /* of the first journal */
    hs_eval_result *r; /* in the order of files and lines; variants in the order in which they came first */
    int n, room;
} hs_eval_results;

/* Adds a copy; one that is there already is left out. HS_EINVAL if the same variant was measured with other settings.
 */
int hs_eval_results_add(hs_eval_results *t, const hs_eval_result *r, hs_err *err);
/* Adds all journals of the folder, those of other formats left out; identity NULL = that of the first one. None: 0 and
 * nothing added. skip: a file name to leave out, or NULL. */
int hs_eval_results_load(hs_eval_results *t, const char *dir, const char *identity, const char *skip, hs_err *err);
/* For hs_journal_open: user is the hs_eval_results. */
int hs_eval_results_line(void *user, const char *json, size_t len, int number, hs_err *err);
const hs_eval_result *hs_eval_results_find(const hs_eval_results *t, const char *prompt, uint64_t seed,
                                           const char *variant);
void hs_eval_results_done(hs_eval_results *t);

/* Variants of one method share a curve: the name up to '/', or else up to the first digit without what joins the two:
 * "xattn/p90" -> "xattn", "x90" -> "x", "svg2-p90" -> "svg". ret has HS_EVAL_NAME bytes. */
void hs_eval_group(const char *name, char *ret);

/* Mean with its 95 % interval: bootstrap over clips, percentiles. n = 0: all NAN; n = 1: no interval. */
typedef struct hs_eval_mean {
    double mean, low, high, median;
    int n;
} hs_eval_mean;

typedef struct hs_eval_row {
    const char *variant, *what; /* of the results */
    char group[HS_EVAL_NAME];
    int n, identical; /* clips; those equal to dense to the byte */
    hs_eval_mean m[HS_EVAL_METRICS];
    hs_eval_mean speedup; /* seconds of dense / own, clips whose dense run was of the same process, warm */
    /* against the baseline, over the clips that both have: differences, and for error and seconds ratios */
    int compared; /* 0: it is the baseline, or there is none */
    hs_eval_mean psnr_gain, ssim_gain, density_change, error_ratio, seconds_ratio;
    int cold; /* seconds are of first runs: no others were there */
} hs_eval_row;

int hs_eval_has_variant(const hs_eval_results *t, const char *name);
/* What the baseline has in the clip of `of`. A variant's name: that variant's value. Else a group's: the value of the
 * group's curve in this clip at the density of `of`, between the nearest variants below and above it. timed: only of
 * the same process; warm: no first runs. NAN if there is none. */
double hs_eval_baseline(const hs_eval_results *t, const char *name, const hs_eval_result *of, hs_eval_metric m,
                        int timed, int warm);

/* Rows in the order of the results, dense first. baseline: a variant or a group, NULL = none. ret to be freed by
 * hs_free. */
int hs_eval_rows(const hs_eval_results *t, const char *baseline, hs_eval_row **ret, int *ret_n, hs_err *err);

/* The statistics by themselves, for tests: mean of a [n], or of a - b, or mean of a / mean of b (b NULL: of a). */
enum { HS_EVAL_OF_A, HS_EVAL_DIFFERENCE, HS_EVAL_RATIO };
hs_eval_mean hs_eval_bootstrap(int n, const double *a, const double *b, int kind);

#ifdef __cplusplus
}
#endif
#endif
