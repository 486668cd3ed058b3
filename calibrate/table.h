/* The table of measurements of haste-calibrate: which error each head causes when it alone is sparse.
 *
 * A table is a journal (journal.h). Its identity is everything a measurement depends on; tables of the same identity
 * merge (the same probe counts once). docs/formats.md describes the lines.
 */
#ifndef HS_TABLE_H
#define HS_TABLE_H
#include "haste.h"
#include "journal.h"
#include "profile.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_table_info {
    char model[128], sha256[65], device[160]; /* model (its name) and device are for people, not of the identity */
    char precision[8];                        /* "fp32", "bf16", "fp16": of the identity */
    int layers, heads;
    int width, height, frames, steps;
    double shift, guidance;
    hs_solver_kind solver;
    int sigmas;              /* hs_sigmas_kind, or -1 = the solver's default */
    hs_attn_policy policy;   /* method and its parameters, dense steps and layers; no thresholds, no reuse */
    char prompts_sha256[65]; /* of the pool, a prompt a line, and then the negative prompt */
    int prompts;             /* in the pool */
    uint64_t seed;
    int n_intervals, intervals[HS_PROFILE_MAX_INTERVALS][2]; /* first and last step of each */
    int n_candidates;
    double candidates[HS_PROFILE_MAX_CANDIDATES]; /* falling or rising as given; every value in (0, 1) */
} hs_table_info;

/* Errors are relative squared errors of the velocity, |v - v_dense|^2 / |v_dense|^2: of the guided velocity, plain and
 * band-weighted (error.h), and of each branch alone. sparsity: mean of both branches, of the probed head (probe) or of
 * all heads of sparse layers (joint). */
typedef struct hs_measured {
    double error, error_band, error_cond, error_uncond, sparsity, seconds;
} hs_measured;

/* One head sparse, all others dense. */
typedef struct hs_probe {
    int prompt, step, interval, layer, head, candidate;
    hs_measured m;
} hs_probe;

/* All heads sparse at once: candidate >= 0 = every head at that candidate's p (the shared-p curve); -1 = the thresholds
 * of a configuration, named by the hash of its floats (hs_thresholds). prompt indices >= info.prompts are of the
 * held-out pool (index - prompts). floor: candidate -2, all masks full (p = 1 through the masked kernel): the numeric
 * floor of the device, below which no error means anything. */
enum { HS_JOINT_CONFIG = -1, HS_JOINT_FLOOR = -2 };
typedef struct hs_joint {
    int prompt, step, interval, candidate;
    char config[17]; /* hex of 64 bits; "" unless candidate == HS_JOINT_CONFIG */
    char text[17];   /* hex of a 64-bit hash of the prompt: the held-out pool is not part of the identity */
    hs_measured m;
} hs_joint;

/* Thresholds of every head: [intervals, layers, heads], the intervals those of the table, or 1: the same in all. */
typedef struct hs_thresholds {
    int intervals;
    const float *top_p;
} hs_thresholds;

typedef struct hs_table {
    hs_table_info info;
    hs_probe *probes; /* sorted by layer, head, candidate, interval, prompt, step; no duplicates */
    int64_t n_probes;
    hs_joint *joints; /* sorted by candidate, config, interval, prompt, text, step; no duplicates */
    int64_t n_joints;
    char sha256[65]; /* of the identity and the sorted content without seconds: profile identity */
} hs_table;

/* Reads and merges n >= 1 tables; every one must have the identity of the first. */
int hs_table_load(int n, const char *const *paths, hs_table **ret, hs_err *err);
void hs_table_free(hs_table *t);

/* What there is in the file that a writer would open, without writing: a missing file is an empty table. */
int hs_table_peek(const char *path, const hs_table_info *info, hs_table **ret, hs_err *err);
/* For the writer: opens (or makes) the file and reads what is there. */
typedef struct hs_table_writer hs_table_writer;
int hs_table_open(const char *path, const hs_table_info *info, hs_table_writer **ret, hs_err *err);
const hs_table *hs_table_so_far(const hs_table_writer *w); /* as it was when opened */
int hs_table_add_probe(hs_table_writer *w, const hs_probe *p, hs_err *err);
int hs_table_add_joint(hs_table_writer *w, const hs_joint *j, hs_err *err);
int hs_table_close(hs_table_writer *w, hs_err *err); /* accepts NULL */

#ifdef __cplusplus
}
#endif
#endif
