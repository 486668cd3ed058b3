/* Inside of hs_model and hs_session, shared by session.c (lifetimes), plan.c (memory), generate.c (the pipeline) and
 * checkpoint.c. */
#ifndef HS_SESSION_H
#define HS_SESSION_H
#include "dit.h"
#include "haste.h"
#include "model.h"
#include "text.h"
#include "tiles.h"
#include "tokenizer.h"
#include "vae.h"

struct hs_model {
    hs_config c;
    hs_device *dev;
    hs_device *vae_dev; /* dev, but for a CPU in bf16: there the VAE runs in F32, as the reference does */
    hs_st *st_text, *st_dit, *st_vae;
    hs_tokenizer *tokenizer;
    hs_text *text; /* the three parts: NULL until needed; the text encoder is freed when memory is short */
    hs_dit *dit;
    hs_vae *vae;
    hs_model_info info;
};

struct hs_session {
    hs_model *m;
    int width, height, frames;
    int ch, f, h, w; /* latents [ch, f, h, w] */
    int64_t n;       /* elements of one latent tensor */
    hs_sched sched;
    hs_attn_policy attention;
    hs_plan plan;
    int keep_text; /* memory allows the text encoder to stay */
    hs_buf room;   /* the large buffers of the transformer's forward, then of the VAE; U8 */
    hs_dit_run *dit;
    hs_vae_run *vae; /* NULL where the plan says tiles */
    hs_tiles tiles;  /* there in that case */
    /* text rows per branch, [512, text_dim] F32, and the prompt they came from */
    hs_buf rows[HS_BRANCH_COUNT];
    char *prompt[HS_BRANCH_COUNT];
    int n_rows[HS_BRANCH_COUNT], n_total[HS_BRANCH_COUNT], in_dit[HS_BRANCH_COUNT];
    /* solver state, all [ch, f, h, w] F32: current sample, x0 predictions of this and the two steps before, the sample
     * the last predictor started from, velocities */
    hs_buf x, xl, m0, m1, m2, v[HS_BRANCH_COUNT];
    float *host;                         /* [ch, f, h, w] */
    float *recorded;                     /* [1 + HS_BRANCH_COUNT, ch, f, h, w] for the step hook; NULL until one asks */
    uint8_t *host_rgb;                   /* [4, height, width, 3] */
    struct hs_checkpoint_writer *writer; /* NULL until a run keeps checkpoints */
    hs_tap tap;
};

/* Loads what the stage needs and is not there yet. */
int hs_session_need_text(hs_session *s, hs_err *err);
int hs_session_need_dit(hs_session *s, hs_err *err); /* and hands both prompts to it */
int hs_session_need_vae(hs_session *s, hs_err *err);
/* plan.c: hs_request_fit where so many bytes of host memory are free. */
int hs_plan_memory(hs_model *m, const hs_request *r, int64_t host, hs_plan *ret, hs_err *err);
int hs_session_sched(const hs_request *r, hs_sched *ret, hs_err *err);

/* checkpoint.c. The first two are for a session that resumes: text before the prompts are encoded, the rest once
 * attention has begun. prepare, once the transformer is there, makes all that checkpoints need; each then holds the
 * state before step `step` and goes to r->checkpoint. */
int hs_session_resume_text(hs_session *s, const hs_checkpoint *c, hs_err *err);
int hs_session_resume(hs_session *s, const hs_checkpoint *c, hs_err *err);
int hs_session_checkpoint_prepare(hs_session *s, const char *path, hs_err *err);
int hs_session_checkpoint(hs_session *s, const hs_request *r, int step, hs_err *err);
void hs_checkpoint_writer_free(struct hs_checkpoint_writer *w);
#endif
