/* What measuring has to do: settings checked and hashed, prompts dealt to heads, units dealt to shards, what is left
 * and what it costs. Shared by work.c (that) and measure.c (the forwards); nobody else includes it. */
#ifndef HS_WORK_H
#define HS_WORK_H
#include "error.h"
#include "measure.h"
#include "record.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Joint measurements of the numeric floor are made on so many prompts: it hardly depends on them. */
enum { HS_FLOOR_PROMPTS = 2 };

typedef struct hs_work {
    const hs_model_info *mi;
    const hs_request *req;
    const hs_measure_params *p;
    hs_table_info info;
    hs_table_writer *table; /* NULL while nothing but planned */
    const hs_table *so_far; /* what was in the table */
    hs_table *peeked;       /* owned: so_far without a writer */
    hs_record *record;
    hs_session *session;
    hs_bands *bands;
    int steps[HS_PROFILE_MAX_INTERVALS]; /* the probed step of each interval */
    int branches;
    int *place;    /* [layers, heads]: of the head in the seeded deal of prompts; -1 in dense layers */
    uint8_t *done; /* [layers, heads, candidates, intervals, prompts] is in the table */
    int64_t n;     /* elements of a latent tensor */
    float *latents, *velocity[HS_BRANCH_COUNT], *dense[HS_BRANCH_COUNT], *guided, *guided_dense; /* [n] each */
    float *top_p; /* [layers, heads] of the call */
    /* progress: forwards of one branch */
    int64_t items, items_total;
    double work, work_total, start;
} hs_work;

/* Opens the table (or only looks, write 0) and allocates; end closes and frees, also what begin left half done, and
 * keeps the first error. */
int hs_work_begin(hs_work *g, hs_model *m, const hs_request *req, const hs_measure_params *p, int write, hs_err *err);
int hs_work_end(hs_work *g, int r, hs_err *err);
hs_measure_plan hs_work_plan(const hs_work *g);

/* Prompts of both pools in one row: the calibration pool, then the held-out one. */
const char *hs_work_prompt(const hs_work *g, int prompt);
/* The dense generation of a prompt; its noise depends on the seed and the words alone. */
hs_request hs_work_dense_request(const hs_work *g, int prompt);
/* Is this unit this shard's? */
int hs_work_is_mine(const hs_work *g, int prompt, int interval);
/* Candidates of a head (layer * heads + head) that a unit still has to measure; is one of them done? */
int hs_work_left_of_head(const hs_work *g, int head, int prompt, int interval);
uint8_t *hs_work_done_at(const hs_work *g, int head, int candidate, int interval, int prompt);
/* Probes of a unit that are left, their cost in forwards of one branch, and the last layer that has any (-1: none). */
int hs_work_left_of_unit(const hs_work *g, int prompt, int interval, double *ret_forwards, int *ret_last);
/* sha256 of n texts, a line each, and of `last` if it is not NULL. */
void hs_work_hash_texts(int n, const char *const *texts, const char *last, char ret[65]);

#ifdef __cplusplus
}
#endif
#endif
