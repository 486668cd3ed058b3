/* Dense trajectories, recorded once: the latents that enter the steps which measuring looks at. They are kept as files
 * in a folder, so that a run that was killed, or another round of joint measurements, starts from there. The folder is
 * a cache: deleting it costs the dense generations again and nothing else.
 */
#ifndef HS_RECORD_H
#define HS_RECORD_H
#include "haste.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_record {
    char *dir;
    int n_steps;
    const int *steps; /* rising */
    int64_t shape[4]; /* of latents */
    float *latents;   /* [n_steps, C, f, h, w]: what is being recorded */
} hs_record;

/* dir: made with the first recording. steps are borrowed. */
int hs_record_open(const char *dir, const hs_model_info *i, const hs_request *r, int n_steps, const int *steps,
                   hs_record **ret, hs_err *err);
void hs_record_close(hs_record *c);
/* Are all steps of this generation there? r: with its prompt and seed. */
int hs_record_has(const hs_record *c, const hs_model_info *i, const hs_request *r);
/* Generates densely up to the last step and keeps the latents. The session attends densely. stepped is told of every
 * step; interrupted (asked at every forward) stops with HS_EINTR. */
int hs_record_make(hs_record *c, hs_session *s, const hs_model_info *i, const hs_request *r, void *user,
                   void (*stepped)(void *user), int (*interrupted)(void *user), hs_err *err);
/* ret [C, f, h, w] */
int hs_record_load(const hs_record *c, const hs_model_info *i, const hs_request *r, int step, float *ret, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
