/* Dense trajectories: recorded through the step hook of hs_generate, kept as one latents file per step. A file's name
 * is a hash of everything its content depends on, so files of other settings are never mistaken for these. */
#include "record.h"
#include "sha256.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *path_of(const hs_record *c, const hs_model_info *i, const hs_request *r, int step) {
    const char *negative = r->negative ? r->negative : i->negative_prompt;
    char text[512], hex[65], name[64];
    hs_sha256 h;
    hs_sha256_init(&h);
    snprintf(text, sizeof text, "%s %s %d %d %d %d %d %d %.17g %.17g %llu", i->sha256, i->precision, r->width,
             r->height, r->frames, r->steps, (int)r->solver, r->sigmas, r->guidance, r->shift,
             (unsigned long long)r->seed);
    hs_sha256_add(&h, text, strlen(text) + 1);
    hs_sha256_add(&h, r->prompt, strlen(r->prompt) + 1);
    hs_sha256_add(&h, negative, strlen(negative) + 1);
    hs_sha256_done(&h, hex);
    snprintf(name, sizeof name, "%.16s.step%d.safetensors", hex, step);
    return hs_path_join(c->dir, name);
}

int hs_record_open(const char *dir, const hs_model_info *i, const hs_request *r, int n_steps, const int *steps,
                   hs_record **ret, hs_err *err) {
    hs_record *c = hs_calloc(1, sizeof *c);
    int e = 0;
    if (c) {
        const int64_t shape[4] = {i->latent_channels, 1 + (r->frames - 1) / i->stride_t, r->height / i->stride_s,
                                  r->width / i->stride_s};
        memcpy(c->shape, shape, sizeof shape);
        c->n_steps = n_steps;
        c->steps = steps;
        c->dir = hs_strdup(dir);
        c->latents = hs_alloc((size_t)n_steps * (size_t)(shape[0] * shape[1] * shape[2] * shape[3]) * sizeof(float));
    }
    if (!c || !c->dir || !c->latents) e = hs_fail(err, HS_ENOMEM, "no memory to record latents");
    if (e)
        hs_record_close(c);
    else
        *ret = c;
    return e;
}

void hs_record_close(hs_record *c) {
    if (!c) return;
    hs_free(c->dir);
    hs_free(c->latents);
    hs_free(c);
}

int hs_record_has(const hs_record *c, const hs_model_info *i, const hs_request *r) {
    int has = 1;
    for (int k = 0; k < c->n_steps && has; k++) {
        char *path = path_of(c, i, r, c->steps[k]);
        has = path && !access(path, R_OK);
        hs_free(path);
    }
    return has;
}

typedef struct recording {
    hs_record *c;
    int seen; /* steps recorded so far */
    void *user;
    void (*stepped)(void *user);
    int (*interrupted)(void *user);
} recording;

static void keep_step(void *user, int step, float t, const float *latents,
                      const float *const velocity[HS_BRANCH_COUNT]) {
    recording *g = user;
    const int64_t n = g->c->shape[0] * g->c->shape[1] * g->c->shape[2] * g->c->shape[3];
    (void)t, (void)velocity;
    if (g->seen < g->c->n_steps && step == g->c->steps[g->seen])
        memcpy(g->c->latents + g->seen++ * n, latents, (size_t)n * sizeof *latents);
    g->stepped(g->user);
}

static int stop(void *user) { /* nothing after the last step is needed */
    const recording *g = user;
    return g->seen == g->c->n_steps || g->interrupted(g->user);
}

int hs_record_make(hs_record *c, hs_session *s, const hs_model_info *i, const hs_request *r, void *user,
                   void (*stepped)(void *user), int (*interrupted)(void *user), hs_err *err) {
    const int64_t n = c->shape[0] * c->shape[1] * c->shape[2] * c->shape[3];
    recording g = {c, 0, user, stepped, interrupted};
    hs_err why = {0};
    if (mkdir(c->dir, 0777) && errno != EEXIST)
        return hs_fail(err, HS_EIO, "cannot make the folder %s for recorded latents: %s", c->dir, strerror(errno));
    int e = hs_generate(s, r, NULL, &(hs_run_hooks){.user = &g, .interrupted = stop, .step = keep_step}, NULL, &why);
    if (g.seen < c->n_steps) return hs_fail(err, e, "%s", why.msg);
    for (int k = 0; k < c->n_steps; k++) {
        char *path = path_of(c, i, r, c->steps[k]);
        e = path ? hs_latents_save(path, c->latents + k * n, c->shape, NULL, err)
                 : hs_fail(err, HS_ENOMEM, "no memory to keep latents");
        hs_free(path);
        if (e) return e;
    }
    return 0;
}

int hs_record_load(const hs_record *c, const hs_model_info *i, const hs_request *r, int step, float *ret, hs_err *err) {
    char *path = path_of(c, i, r, step);
    if (!path) return hs_fail(err, HS_ENOMEM, "no memory to read latents");
    int e = hs_latents_load(path, c->shape, ret, err);
    if (e) e = hs_fail_ctx(err, e, "recorded latents (remove %s to record them again)", c->dir);
    hs_free(path);
    return e;
}
