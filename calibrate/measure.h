/* Measuring: a dense pass per prompt, recorded, then one forward per (head, candidate, step) in which only that head is
 * sparse. The forward is hs_denoise, the same call generation uses; a probe of layer l starts from the residual stream
 * that entered layer l in the dense pass. spec haste.md 1.4 (error-guided budgeted calibration). */
#ifndef HS_MEASURE_H
#define HS_MEASURE_H
#include "table.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_measure_params {
    const char *table; /* path of this shard's table; continued if it exists */
    const char *const *prompts;
    int n_prompts;               /* calibration pool: goes into the identity */
    const char *const *held_out; /* pool for joint errors that the choice did not see */
    int n_held_out;              /* 0 = no such pool */
    int n_intervals; /* steps from dense_steps on are cut into so many equal intervals; the middle step is probed */
    int prompts_per_head; /* the paper: 1, dealt by a seeded shuffle; n_prompts = every head on every prompt */
    int n_candidates;
    double candidates[HS_PROFILE_MAX_CANDIDATES];
    uint64_t seed;
    int shard,
        shards; /* 0 <= shard < shards; prompts are dealt, and single steps of them where shards outnumber them */
    void *user;
    void (*progress)(void *user, const char *what, int64_t done, int64_t total, double seconds, double eta);
    int (*interrupted)(void *user);
} hs_measure_params;

/* What it will cost, before anything runs: forwards of one branch, in units of a whole forward (a probe of layer l
 * counts layers - l of layers), against the naive count in which every probe runs all layers twice over (dense and
 * sparse). */
typedef struct hs_measure_plan {
    int64_t probes, probes_done; /* of this shard, and how many of them are in the table */
    int64_t dense_passes;        /* generations to be recorded; their latents are kept in the folder TABLE.latents */
    double forwards, forwards_naive; /* of the probes that are left */
    double forwards_dense;           /* of the dense generations; they come on top of either */
    double bytes;                    /* two residual streams on the device, latents and velocities on the host */
} hs_measure_plan;

/* req: the settings of a run (sizes, steps, guidance, attention.method and parameters, dense steps/layers). The
 * session is made inside. Interrupted: HS_EINTR, and the table holds everything measured. */
int hs_measure_plan_make(hs_model *m, const hs_request *req, const hs_measure_params *p, hs_measure_plan *ret,
                         hs_err *err);
int hs_measure_info(hs_model *m, const hs_request *req, const hs_measure_params *p, hs_table_info *ret, hs_err *err);
int hs_measure_probes(hs_model *m, const hs_request *req, const hs_measure_params *p, hs_err *err);
/* All heads sparse at once on both pools (what is already in the table is not measured again): the shared-p curve if
 * shared != 0, each of n configurations, and always the numeric floor, on the first two prompts. */
int hs_measure_joint(hs_model *m, const hs_request *req, const hs_measure_params *p, int shared, int n,
                     const hs_thresholds *config, hs_err *err);
/* The names of a configuration and of a prompt in the table. */
void hs_measure_config_name(hs_thresholds config, int layers, int heads, char ret[17]);
void hs_measure_text_name(const char *prompt, char ret[17]);

#ifdef __cplusplus
}
#endif
#endif
