/* Checkpoints: the state of a run between two steps as one safetensors file.
 *
 * What the next step depends on: the latents and the solver's history, the text rows (so the text encoder need not come
 * back), and what attention remembers. Beside it, as metadata, everything that decides what the steps compute; a run
 * with anything else is refused by name. Files are written under another name and renamed, so there is always a whole
 * one.
 */
#include "newfile.h"
#include "session.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION "1"
enum { VALUE = 192, NAME = 48 }; /* 32 steps, each up to 1000 and a comma, fit a value */

/* ---- settings: one table for writing, reading and comparing ----------------------------------------------------- */
typedef enum kind { INT, FLOAT, DOUBLE, U64, STARTS } kind;
typedef struct field {
    const char *name;
    kind kind;
    size_t at; /* in hs_request */
    int free;  /* may differ: decides nothing that the steps compute */
} field;

#define F(name, kind, member)                                                                                          \
    { name, kind, offsetof(hs_request, member), 0 }
#define ATTENTION(kind, member)                                                                                        \
    { "attention." #member, kind, offsetof(hs_request, attention.member), 0 }
static const field fields[] = {F("width", INT, width),
                               F("height", INT, height),
                               F("frames", INT, frames),
                               F("steps", INT, steps),
                               F("solver", INT, solver),
                               F("sigmas", INT, sigmas),
                               F("guidance", DOUBLE, guidance),
                               F("shift", DOUBLE, shift),
                               F("seed", U64, seed),
                               {"fps", INT, offsetof(hs_request, fps), 1},
                               ATTENTION(INT, method),
                               ATTENTION(FLOAT, top_p),
                               ATTENTION(INT, intervals),
                               ATTENTION(STARTS, interval_start),
                               ATTENTION(INT, block),
                               ATTENTION(INT, stride),
                               ATTENTION(INT, q_clusters),
                               ATTENTION(INT, k_clusters),
                               ATTENTION(INT, iters_first),
                               ATTENTION(INT, iters_next),
                               ATTENTION(FLOAT, min_share),
                               ATTENTION(INT, reuse.kind),
                               ATTENTION(FLOAT, reuse.delta),
                               ATTENTION(INT, reuse.interval),
                               ATTENTION(FLOAT, reuse.gate_low),
                               ATTENTION(FLOAT, reuse.gate_high),
                               ATTENTION(INT, dense_steps),
                               ATTENTION(INT, dense_layers),
                               ATTENTION(INT, seed_exact),
                               ATTENTION(INT, compensate),
                               ATTENTION(INT, compat)};
#undef ATTENTION
#undef F
enum { FIELDS = sizeof fields / sizeof *fields };

static void print_field(const field *f, const hs_request *r, char ret[VALUE]) {
    const char *p = (const char *)r + f->at;
    switch (f->kind) {
    case INT: snprintf(ret, VALUE, "%d", *(const int *)(const void *)p); break;
    case FLOAT: snprintf(ret, VALUE, "%.9g", (double)*(const float *)(const void *)p); break;
    case DOUBLE: snprintf(ret, VALUE, "%.17g", *(const double *)(const void *)p); break;
    case U64: snprintf(ret, VALUE, "%" PRIu64, *(const uint64_t *)(const void *)p); break;
    case STARTS: /* of the intervals that there are */
        for (int i = 0, n = 0; i < r->attention.intervals && n < VALUE; i++)
            n += snprintf(ret + n, (size_t)(VALUE - n), i ? ",%d" : "%d", ((const int *)(const void *)p)[i]);
        break;
    }
}

static int read_field(const field *f, const char *text, hs_request *r) {
    char *p = (char *)r + f->at, *end;
    errno = 0;
    switch (f->kind) {
    case INT: {
        const long v = strtol(text, &end, 10);
        if (v < INT32_MIN || v > INT32_MAX) return -1;
        *(int *)(void *)p = (int)v;
        break;
    }
    case FLOAT: *(float *)(void *)p = strtof(text, &end); break;
    case DOUBLE: *(double *)(void *)p = strtod(text, &end); break;
    case U64: *(uint64_t *)(void *)p = strtoull(text, &end, 10); break;
    case STARTS:
        for (int i = 0; i < HS_MAX_INTERVALS; i++, text = end + 1) {
            const long v = strtol(text, &end, 10);
            if (v < 0 || v > HS_MAX_STEPS) return -1;
            ((int *)(void *)p)[i] = (int)v;
            if (*end != ',') break;
        }
        break;
    default: return -1;
    }
    return errno == ERANGE || end == text || *end;
}

/* The request with what it leaves to defaults filled in, so that saying a default is the same as not saying it. */
static hs_request resolved(const hs_model *m, const hs_request *r) {
    hs_request q = *r;
    hs_sched sched;
    if (!hs_session_sched(r, &sched, NULL)) q.sigmas = (int)sched.sigmas_kind;
    if (!q.negative) q.negative = m->info.negative_prompt;
    if (!q.negative || q.guidance <= 1) q.negative = "";
    if (!q.prompt) q.prompt = "";
    return q;
}

/* ---- reading ------------------------------------------------------------------------------------------------------
 */
struct hs_checkpoint {
    hs_st *st;
    char *path;
    int step, steps;
    float *top_p; /* [intervals, layers, heads] of its attention, aligned; NULL = one for all */
    float *noise; /* stands for "noise from a file" in a request; NULL = from a seed */
};

static const char *meta(const hs_checkpoint *c, const char *key) {
    return hs_st_metadata(c->st, key);
}

static int meta_int(const hs_checkpoint *c, const char *key, int low, int high, int *ret, hs_err *err) {
    const char *text = meta(c, key);
    char *end;
    const long v = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || v < low || v > high)
        return hs_fail(err, HS_EFORMAT, "%s: %s is %.40s, expected a number from %d to %d", c->path, key,
                       text ? text : "missing", low, high);
    *ret = (int)v;
    return 0;
}

/* The data of a tensor of exactly this type and size, or NULL. */
static const void *tensor(const hs_checkpoint *c, const char *name, hs_dtype type, int64_t n) {
    const hs_st_tensor *t = hs_st_find(c->st, name);
    return t && t->dtype == type && t->numel == n ? t->data : NULL;
}

int hs_checkpoint_open(const char *path, hs_checkpoint **ret, hs_err *err) {
    hs_checkpoint *c = hs_calloc(1, sizeof *c);
    int r = 0;
    if (!c || !(c->path = hs_strdup(path)))
        r = hs_fail(err, HS_ENOMEM, "no memory to open %s", path);
    else if (!(r = hs_st_open(path, &c->st, err))) {
        const char *version = meta(c, "haste_checkpoint"), *noise = meta(c, "noise");
        const hs_st_tensor *p = hs_st_find(c->st, "attention.top_p");
        if (!version || strcmp(version, VERSION))
            r = hs_fail(err, HS_EFORMAT, "%s: %s; --resume needs a file that --checkpoint wrote", path,
                        version ? "a checkpoint of another version" : "no checkpoint");
        else if (!meta(c, "prompt") || !meta(c, "negative_prompt"))
            r = hs_fail(err, HS_EFORMAT, "%s: the prompts are missing", path);
        else if (!(r = meta_int(c, "steps", 1, HS_MAX_STEPS, &c->steps, err)))
            r = meta_int(c, "step", 1, c->steps, &c->step, err);
        if (!r && noise && !(c->noise = hs_calloc(1, sizeof *c->noise)))
            r = hs_fail(err, HS_ENOMEM, "no memory to open %s", path);
        if (!r && p && p->dtype == HS_F32) {
            if ((c->top_p = hs_alloc((size_t)p->numel * sizeof *c->top_p)))
                memcpy(c->top_p, p->data, (size_t)p->numel * sizeof *c->top_p);
            else
                r = hs_fail(err, HS_ENOMEM, "no memory to open %s", path);
        }
    }
    if (r)
        hs_checkpoint_close(c);
    else
        *ret = c;
    return r;
}

void hs_checkpoint_close(hs_checkpoint *c) {
    if (!c) return;
    if (c->st) hs_st_close(c->st);
    hs_free(c->top_p);
    hs_free(c->noise);
    hs_free(c->path);
    hs_free(c);
}

int hs_checkpoint_steps(const hs_checkpoint *c, int *ret_total) {
    if (ret_total) *ret_total = c->steps;
    return c->step;
}

const char *hs_checkpoint_prompt(const hs_checkpoint *c) {
    return meta(c, "prompt");
}

int hs_checkpoint_request(const hs_checkpoint *c, const hs_model *m, hs_request *r, hs_err *err) {
    hs_request q = *r;
    for (int i = 0; i < FIELDS; i++) {
        const char *text = meta(c, fields[i].name);
        if (!text || read_field(&fields[i], text, &q))
            return hs_fail(err, HS_EFORMAT, "%s: %s is %.40s", c->path, fields[i].name, text ? text : "missing");
    }
    if ((unsigned)q.solver > HS_EULER || q.sigmas > (int)HS_SIGMAS_D ||
        (unsigned)q.attention.method >= HS_METHOD_COUNT || (unsigned)q.attention.reuse.kind > HS_REUSE_STAGGER)
        return hs_fail(err, HS_EFORMAT, "%s: solver, sigmas, attention or reuse is none that exists", c->path);
    if (q.attention.intervals < 1 || q.attention.intervals > HS_MAX_INTERVALS)
        return hs_fail(err, HS_EFORMAT, "%s: attention.intervals is %d, expected 1 to %d", c->path,
                       q.attention.intervals, HS_MAX_INTERVALS);
    q.prompt = meta(c, "prompt");
    q.negative = meta(c, "negative_prompt");
    q.noise = c->noise;
    q.attention.top_p_heads = NULL;
    if (c->top_p) {
        if (!tensor(c, "attention.top_p", HS_F32, (int64_t)q.attention.intervals * m->c.layers * m->c.heads))
            return hs_fail(err, HS_EFORMAT,
                           "%s: thresholds of another number of layers and heads than this model's %d x %d", c->path,
                           m->c.layers, m->c.heads);
        q.attention.top_p_heads = c->top_p;
    }
    *r = q;
    return 0;
}

/* cure, with the saved value behind it, is for what is no setting that the checkpoint brings along; else NULL. */
static int fail_match(const hs_checkpoint *c, const char *what, const char *saved, const char *now, const char *cure,
                      hs_err *err) {
    if (!saved || !*saved) saved = "none";
    return hs_fail(err, HS_EINVAL,
                   "%s belongs to a run with %s %.100s, this one has %.100s. %s%.100s, or start afresh "
                   "without --resume",
                   c->path, what, saved, *now ? now : "none", cure ? cure : "Leave the option out", cure ? saved : "");
}

int hs_checkpoint_match(const hs_checkpoint *c, const hs_model *m, const hs_request *r, hs_err *err) {
    const hs_request q = resolved(m, r);
    const struct {
        const char *key, *what, *now, *cure;
    } texts[] = {{"model_sha256", "model", m->info.sha256, "Name that model, of sha256 "},
                 {"precision", "precision", m->info.precision, "Add --precision "},
                 {"prompt", "prompt", q.prompt, NULL},
                 {"negative_prompt", "negative prompt", q.negative, NULL}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const char *saved = meta(c, texts[i].key);
        if (!saved || strcmp(saved, texts[i].now))
            return fail_match(c, texts[i].what, saved, texts[i].now, texts[i].cure, err);
    }
    for (int i = 0; i < FIELDS; i++) {
        char now[VALUE];
        const char *saved = meta(c, fields[i].name);
        if (fields[i].free || (c->noise && !strcmp(fields[i].name, "seed"))) continue;
        print_field(&fields[i], &q, now);
        if (!saved || strcmp(saved, now)) return fail_match(c, fields[i].name, saved, now, NULL, err);
    }
    const size_t heads = (size_t)q.attention.intervals * (size_t)m->c.layers * (size_t)m->c.heads * sizeof(float);
    if (!c->top_p != !q.attention.top_p_heads || (c->top_p && memcmp(c->top_p, q.attention.top_p_heads, heads)))
        return fail_match(c, "thresholds of its own:", c->top_p ? "one per head" : "one for all",
                          q.attention.top_p_heads ? "others" : "one for all", NULL, err);
    const char *device = meta(c, "device");
    if (device && strcmp(device, m->info.device))
        hs_log(
            HS_LOG_WARN,
            "%s was computed on another device (%.120s): the video will be of the same quality, but not equal to the "
            "bit to one computed on one of them",
            c->path, device);
    return 0;
}

/* Text rows: before prompts are encoded, which then need not be. */
int hs_session_resume_text(hs_session *s, const hs_checkpoint *c, hs_err *err) {
    const int64_t width = s->m->c.text_dim;
    for (int b = 0; b < HS_BRANCH_COUNT; b++) {
        char name[NAME], total[NAME];
        snprintf(name, sizeof name, "text.%d", b);
        snprintf(total, sizeof total, "text_tokens.%d", b);
        const hs_st_tensor *t = hs_st_find(c->st, name);
        if (!t) continue;
        const int64_t n = t->numel / width;
        char *prompt = hs_strdup(meta(c, b == HS_BRANCH_COND ? "prompt" : "negative_prompt"));
        int r = prompt ? 0 : hs_fail(err, HS_ENOMEM, "no memory for the prompt");
        if (!r && (t->dtype != HS_F32 || n < 1 || n > HS_TEXT_LEN || n * width != t->numel))
            r = hs_fail(err, HS_EFORMAT, "%s: %s does not hold rows of %lld values", c->path, name, (long long)width);
        if (!r) r = meta_int(c, total, 1, INT32_MAX, &s->n_total[b], err);
        if (r) {
            hs_free(prompt);
            return r;
        }
        hs_upload(s->m->dev, hs_buf_at(s->rows[b], 0, t->numel), t->data);
        hs_free(s->prompt[b]);
        s->prompt[b] = prompt;
        s->n_rows[b] = (int)n;
        s->in_dit[b] = 0;
    }
    return hs_device_check(s->m->dev, err);
}

typedef struct place {
    const hs_checkpoint *c;
    int branch, layer;
} place;

static const void *fetch_kept(void *user, const char *name, hs_dtype type, int64_t n) {
    const place *p = user;
    char full[NAME];
    snprintf(full, sizeof full, "attention.%d.%d.%s", p->branch, p->layer, name);
    return tensor(p->c, full, type, n);
}

int hs_session_resume(hs_session *s, const hs_checkpoint *c, hs_err *err) {
    const struct {
        const char *name;
        hs_buf *buf;
    } state[] = {{"x", &s->x}, {"xl", &s->xl}, {"m1", &s->m1}, {"m2", &s->m2}};
    int r = 0;
    for (size_t i = 0; i < sizeof state / sizeof *state; i++) {
        const void *x = tensor(c, state[i].name, HS_F32, s->n);
        if (!x) return hs_fail(err, HS_EFORMAT, "%s: tensor %s is missing or has another size", c->path, state[i].name);
        hs_upload(s->m->dev, *state[i].buf, x);
    }
    for (int b = 0; b < HS_BRANCH_COUNT && !r; b++)
        for (int l = 0; l < s->m->c.layers && !r; l++)
            r = hs_attn_restore(hs_dit_run_attn(s->dit), b, l, c->step, fetch_kept, &(place){c, b, l}, err);
    return r ? hs_fail_ctx(err, r, "%s", c->path) : hs_device_check(s->m->dev, err);
}

/* ---- writing ------------------------------------------------------------------------------------------------------
 */
typedef struct entry {
    char name[NAME];
    hs_buf buf;
    const float *host; /* instead of buf */
} entry;

/* Made once per session: nothing but the file itself is needed later. */
struct hs_checkpoint_writer {
    int n, cap, branch, layer;
    entry *entry;
    hs_st_tensor *tensor;
    void *staging; /* of the largest entry */
    hs_device *dev;
};

static int add(struct hs_checkpoint_writer *w, const char *name, hs_buf b, const float *host) {
    entry *e = &w->entry[w->n];
    if (w->n == w->cap) return HS_EINVAL;
    snprintf(e->name, sizeof e->name, "%s", name);
    e->buf = b;
    e->host = host;
    w->tensor[w->n++] =
        (hs_st_tensor){.name = e->name, .dtype = b.type, .ndim = 1, .shape = {b.n}, .numel = b.n, .data = host};
    return 0;
}

static int add_kept(void *user, const char *name, hs_buf b) {
    struct hs_checkpoint_writer *w = user;
    char full[NAME];
    snprintf(full, sizeof full, "attention.%d.%d.%s", w->branch, w->layer, name);
    return add(w, full, b, NULL);
}

static const void *fetch_entry(void *user, int i, hs_err *err) {
    const struct hs_checkpoint_writer *w = user;
    if (w->entry[i].host) return w->entry[i].host;
    hs_download(w->dev, w->staging, w->entry[i].buf);
    return hs_device_check(w->dev, err) ? NULL : w->staging;
}

void hs_checkpoint_writer_free(struct hs_checkpoint_writer *w) {
    if (!w) return;
    hs_free(w->entry);
    hs_free(w->tensor);
    hs_free(w->staging);
    hs_free(w);
}

/* Looks for the largest buffer; what is not predicted yet has its size all the same. */
static int64_t largest(hs_session *s) {
    int64_t most = s->n * 4, rows = (int64_t)HS_TEXT_LEN * s->m->c.text_dim * 4;
    const int64_t kept = hs_attn_kept_bytes(hs_dit_run_attn(s->dit));
    if (rows > most) most = rows;
    return kept > most ? kept : most;
}

int hs_session_checkpoint_prepare(hs_session *s, const char *path, hs_err *err) {
    hs_newfile_sweep(path);
    hs_checkpoint_writer_free(s->writer);
    struct hs_checkpoint_writer *w = s->writer = hs_calloc(1, sizeof *w);
    if (!w) return hs_fail(err, HS_ENOMEM, "no memory for checkpoints");
    w->dev = s->m->dev;
    w->cap = 4 + HS_BRANCH_COUNT + 1 + HS_BRANCH_COUNT * s->m->c.layers * HS_ATTN_KEPT;
    w->entry = hs_calloc((size_t)w->cap, sizeof *w->entry);
    w->tensor = hs_calloc((size_t)w->cap, sizeof *w->tensor);
    w->staging = hs_alloc((size_t)largest(s));
    return w->entry && w->tensor && w->staging ? 0 : hs_fail(err, HS_ENOMEM, "no memory for checkpoints");
}

/* The tensors of the state before step `step`; attention is of no use behind the last one. */
static int list_tensors(hs_session *s, const hs_request *r, int step) {
    struct hs_checkpoint_writer *w = s->writer;
    const int64_t width = s->m->c.text_dim;
    w->n = 0;
    int rc = add(w, "x", s->x, NULL);
    if (!rc) rc = add(w, "xl", s->xl, NULL);
    if (!rc) rc = add(w, "m1", s->m1, NULL);
    if (!rc) rc = add(w, "m2", s->m2, NULL);
    for (int b = 0; b < (r->guidance > 1 ? 2 : 1) && !rc; b++) {
        char name[NAME];
        snprintf(name, sizeof name, "text.%d", b);
        rc = add(w, name, hs_buf_at(s->rows[b], 0, s->n_rows[b] * width), NULL);
    }
    if (!rc && r->attention.top_p_heads)
        rc = add(w, "attention.top_p",
                 (hs_buf){NULL, HS_F32, (int64_t)r->attention.intervals * s->m->c.layers * s->m->c.heads},
                 r->attention.top_p_heads);
    for (w->branch = 0; w->branch < HS_BRANCH_COUNT; w->branch++)
        for (w->layer = 0; w->layer < s->m->c.layers && step < s->sched.steps && !rc; w->layer++)
            rc = hs_attn_each_kept(hs_dit_run_attn(s->dit), w->branch, w->layer, add_kept, w);
    for (int k = 0; k < 4; k++) { /* latents keep their shape, for other programs */
        hs_st_tensor *t = &w->tensor[k];
        t->ndim = 4;
        t->shape[0] = s->ch, t->shape[1] = s->f, t->shape[2] = s->h, t->shape[3] = s->w;
    }
    return rc;
}

int hs_session_checkpoint(hs_session *s, const hs_request *r, int step, hs_err *err) {
    const hs_request q = resolved(s->m, r);
    char value[FIELDS][VALUE], at[VALUE], total[HS_BRANCH_COUNT][VALUE];
    const char *list[2 * (FIELDS + 12) + 1];
    int n = 0;
#define META(key, text) (list[n++] = (key), list[n++] = (text))
    META("haste_checkpoint", VERSION);
    META("haste_version", HS_VERSION);
    META("model_sha256", s->m->info.sha256);
    META("precision", s->m->info.precision);
    META("device", s->m->info.device);
    META("prompt", q.prompt);
    META("negative_prompt", q.negative);
    if (q.noise) META("noise", "from a file");
    snprintf(at, sizeof at, "%d", step);
    META("step", at);
    for (int b = 0; b < HS_BRANCH_COUNT; b++) {
        snprintf(total[b], sizeof total[b], "%d", s->n_total[b]);
        META(b ? "text_tokens.1" : "text_tokens.0", total[b]);
    }
    for (int i = 0; i < FIELDS; i++) {
        print_field(&fields[i], &q, value[i]);
        META(fields[i].name, value[i]);
    }
#undef META
    list[n] = NULL;
    if (list_tensors(s, &q, step)) return hs_fail(err, HS_EINVAL, "%s: more state than expected", r->checkpoint);
    return hs_st_write_from(r->checkpoint, s->writer->n, s->writer->tensor, list, fetch_entry, s->writer, err);
}
