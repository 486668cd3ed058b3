/* Cases of the operations that move or test values without arithmetic; their results must be exact. */
#include "check.h"
#include <math.h>

static kind kind_of(const test *t, const char *key) {
    return is(t, key, "f32") ? F32 : ACT;
}

/* y[i] = v, to the bit */
static void move(test *t, int y, int64_t i, double v) {
    put(t, &t->o[y], i, v, fabs(v), fabs(v));
}

/* ---- gather_rows ----------------------------------------------------------------------------------------------- */
static void gather_list(void) {
    emit("n=1 d=64 vocab=10 table=f32");
    emit("n=17 d=33 vocab=300 table=act");
    emit("n=65 d=384 vocab=50 table=act");
    emit("n=7 d=1 vocab=2 table=f32");
}

static void gather_setup(test *t) {
    const int64_t vocab = get(t, "vocab");
    t->exact = 1;
    OPERAND(t, "table", IN, kind_of(t, "table"), 1, vocab, get(t, "d"));
    operand *ids = OPERAND(t, "ids", IN, I32, 0, get(t, "n"));
    for (int64_t i = 0; i < ids->n; i++) /* first and last row among them */
        ids->data[i] = i == 0   ? (float)(vocab - 1)
                       : i == 1 ? 0
                                : (float)((int64_t)(1e6 * (noise(t, 9, i) + 4)) % vocab);
    OPERAND(t, "y", OUT, F32, 1, get(t, "n"), get(t, "d"));
}

static void gather_call(const test *t, const side *s) {
    hs_op_gather_rows(s->dev, s->b[0], s->b[1], get(t, "n"), get(t, "d"), s->b[2]);
}

static void gather_plain(test *t) {
    const int64_t d = get(t, "d");
    for (int64_t i = 0; i < t->o[2].n; i++) move(t, 2, i, t->o[0].data[(int64_t)t->o[1].data[i / d] * d + i % d]);
}

static const char *const gather_bench[] = {"gather_rows n=512 d=4096 vocab=1024 table=act", 0};
const operation op_gather_rows = {"gather_rows", gather_list, gather_setup, gather_call,
                                  gather_plain,  NULL,        gather_bench};

/* ---- patches --------------------------------------------------------------------------------------------------- */
static void patch_list(void) {
    emit("C=16 f=1 h=1 w=1 y=act");
    emit("C=16 f=3 h=5 w=7 y=f32");
    emit("C=16 f=2 h=4 w=3 y=act");
    emit("C=1 f=2 h=3 w=1 y=f32");
    emit("C=5 f=1 h=2 w=9 y=act");
    emit("C=16 f=3 h=13 w=9 y=act");
}

static void patchify_setup(test *t) {
    const int64_t C = get(t, "C"), f = get(t, "f"), h = get(t, "h"), w = get(t, "w");
    t->exact = 1;
    OPERAND(t, "x", IN, F32, 1, C, f, 2 * h, 2 * w);
    OPERAND(t, "y", OUT, kind_of(t, "y"), 1, f, h, w, C, 2, 2);
}

static void patchify_call(const test *t, const side *s) {
    hs_op_patchify(s->dev, s->b[0], (int)get(t, "C"), (int)get(t, "f"), (int)get(t, "h"), (int)get(t, "w"), s->b[1]);
}

/* Walks the rows; ref walks the latent. */
static void patchify_plain(test *t) {
    const int64_t C = get(t, "C"), f = get(t, "f"), h = get(t, "h"), w = get(t, "w");
    for (int64_t i = 0; i < t->o[1].n; i++) {
        const int64_t dx = i % 2, dy = i / 2 % 2, c = i / 4 % C, token = i / 4 / C;
        const int64_t frame = token / w / h, y = 2 * (token / w % h) + dy, x = 2 * (token % w) + dx;
        move(t, 1, i, t->o[0].data[((c * f + frame) * 2 * h + y) * 2 * w + x]);
    }
}

static void unpatchify_setup(test *t) {
    const int64_t C = get(t, "C"), f = get(t, "f"), h = get(t, "h"), w = get(t, "w");
    t->exact = 1;
    OPERAND(t, "x", IN, F32, 1, f, h, w, 2, 2, C);
    OPERAND(t, "y", OUT, F32, 1, C, f, 2 * h, 2 * w);
}

static void unpatchify_call(const test *t, const side *s) {
    hs_op_unpatchify(s->dev, s->b[0], (int)get(t, "C"), (int)get(t, "f"), (int)get(t, "h"), (int)get(t, "w"), s->b[1]);
}

static void unpatchify_plain(test *t) {
    const int64_t C = get(t, "C"), f = get(t, "f"), h = get(t, "h"), w = get(t, "w");
    for (int64_t i = 0; i < t->o[0].n; i++) {
        const int64_t c = i % C, dx = i / C % 2, dy = i / C / 2 % 2, token = i / C / 4;
        const int64_t frame = token / w / h, y = 2 * (token / w % h) + dy, x = 2 * (token % w) + dx;
        move(t, 1, ((c * f + frame) * 2 * h + y) * 2 * w + x, t->o[0].data[i]);
    }
}

static const char *const patchify_bench[] = {"patchify C=16 f=9 h=16 w=16 y=act", 0};
static const char *const unpatchify_bench[] = {"unpatchify C=16 f=9 h=16 w=16 y=f32", 0};
const operation op_patchify = {"patchify",     patch_list, patchify_setup, patchify_call,
                               patchify_plain, NULL,       patchify_bench};
const operation op_unpatchify = {"unpatchify",     patch_list, unpatchify_setup, unpatchify_call,
                                 unpatchify_plain, NULL,       unpatchify_bench};

/* ---- split_frames ---------------------------------------------------------------------------------------------- */
static void split_list(void) {
    emit("T=1 pixels=1 C=1");
    emit("T=1 pixels=35 C=24");
    emit("T=2 pixels=63 C=16");
    emit("T=4 pixels=7 C=33");
    emit("T=2 pixels=300 C=24");
}

static void split_setup(test *t) {
    const int64_t T = get(t, "T"), pixels = get(t, "pixels"), C = get(t, "C");
    t->exact = 1;
    OPERAND(t, "x", IN, ACT, 1, T, pixels, 2 * C);
    OPERAND(t, "y", OUT, ACT, 1, 2 * T, pixels, C);
}

static void split_call(const test *t, const side *s) {
    hs_op_split_frames(s->dev, s->b[0], (int)get(t, "T"), get(t, "pixels"), (int)get(t, "C"), s->b[1]);
}

static void split_plain(test *t) {
    const int64_t pixels = get(t, "pixels"), C = get(t, "C");
    for (int64_t i = 0; i < t->o[1].n; i++) {
        const int64_t c = i % C, p = i / C % pixels, frame = i / C / pixels;
        move(t, 1, i, t->o[0].data[(frame / 2 * pixels + p) * 2 * C + frame % 2 * C + c]);
    }
}

static const char *const split_bench[] = {"split_frames T=2 pixels=4096 C=96", 0};
const operation op_split_frames = {"split_frames", split_list, split_setup, split_call, split_plain, NULL, split_bench};

/* ---- to_u8 ------------------------------------------------------------------------------------------------------ */
static void u8_list(void) {
    emit("n=1 x=f32");
    emit("n=1000 x=f32");
    emit("n=1000 x=act");
    emit("n=4099 x=f32 levels=1"); /* at and right beside every level */
    emit("n=70001 x=act");
    emit("n=129 x=act nan=1");
    emit("n=129 x=f32 nan=1");
}

static void u8_setup(test *t) {
    t->exact = 1;
    operand *x = OPERAND(t, "x", IN, kind_of(t, "x"), 0.7, get(t, "n"));
    for (int64_t i = 0; i < x->n && get(t, "levels"); i++) {
        const float level = 2 * (float)(i / 16 % 256) / 255 - 1;
        x->data[i] = i % 16 < 5 ? nextafterf(level, -2) : i % 16 < 10 ? nextafterf(level, 2) : level;
    }
    if (x->n >= 129) {
        x->data[0] = -1, x->data[1] = 1, x->data[2] = INFINITY, x->data[3] = -INFINITY, x->data[4] = 0;
        if (get(t, "nan")) x->data[7] = x->data[128] = NAN;
    }
    if (get(t, "nan")) t->expect = HS_ENUMERIC;
    OPERAND(t, "y", OUT, U8, 1, get(t, "n"));
}

static void u8_call(const test *t, const side *s) {
    (void)t, hs_op_to_u8(s->dev, s->b[0], s->b[1]);
}

static void u8_plain(test *t) {
    for (int64_t i = 0; i < t->o[1].n; i++) {
        const float x = t->o[0].data[i], half = x * 0.5f + 0.5f;
        move(t, 1, i, isnan(x) || half <= 0 ? 0 : half >= 1 ? 255 : truncf(half * 255.0f));
    }
}

static const char *const u8_bench[] = {"to_u8 n=786432 x=f32", 0};
const operation op_to_u8 = {"to_u8", u8_list, u8_setup, u8_call, u8_plain, NULL, u8_bench};

/* ---- count_nonfinite ------------------------------------------------------------------------------------------- */
static void count_list(void) {
    emit("n=1 x=f32");
    emit("n=1 x=f32 special=1");
    emit("n=4099 x=f32 special=7");
    emit("n=70001 x=act special=5");
    emit("n=129 x=act special=3");
    emit("n=200 x=act");
}

/* The count travels through an uploaded float so that it is compared like any output. */
static void count_setup(test *t) {
    t->exact = 1;
    const kind k = kind_of(t, "x");
    const double large = k == ACT && t->act == HS_F16 ? 1.5e4 : 3e37; /* but finite */
    operand *x = OPERAND(t, "x", IN, k, large, get(t, "n"));
    for (int64_t i = 0; i < get(t, "special"); i++)
        x->data[i == 0 ? x->n - 1 : i * x->n / 8] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    OPERAND(t, "count", OUT, F32, 1, 1);
}

static void count_call(const test *t, const side *s) {
    (void)t;
    const float n = (float)hs_count_nonfinite(s->dev, s->b[0]);
    hs_upload(s->dev, s->b[1], &n);
}

static void count_plain(test *t) {
    move(t, 1, 0, (double)get(t, "special"));
}

static const char *const count_bench[] = {"count_nonfinite n=147456 x=f32", 0};
const operation op_count_nonfinite = {"count_nonfinite", count_list, count_setup, count_call,
                                      count_plain,       NULL,       count_bench};

/* ---- copy, zero ------------------------------------------------------------------------------------------------ */
static void copy_list(void) {
    static const char *const types[] = {"f32", "act"};
    for (int x = 0; x < 2; x++)
        for (int y = 0; y < 2; y++) {
            emit("n=1 x=%s y=%s", types[x], types[y]);
            emit("n=1027 x=%s y=%s", types[x], types[y]);
            emit("n=70001 x=%s y=%s", types[x], types[y]);
        }
}

static void copy_setup(test *t) {
    t->exact = 1;
    operand *x = OPERAND(t, "x", IN, kind_of(t, "x"), 1, get(t, "n"));
    if (x->n > 4)
        x->data[1] = INFINITY, x->data[2] = -0.0f,
        x->data[3] = to_type(t, x->kind, 1.00390625); /* halfway between two bf16 */
    OPERAND(t, "y", OUT, kind_of(t, "y"), 1, get(t, "n"));
}

static void copy_call(const test *t, const side *s) {
    (void)t, hs_copy(s->dev, s->b[1], s->b[0]);
}

static void copy_plain(test *t) {
    for (int64_t i = 0; i < t->o[1].n; i++) move(t, 1, i, t->o[0].data[i]);
}

static const char *const copy_bench[] = {"copy n=884736 x=f32 y=act", 0};
const operation op_copy = {"copy", copy_list, copy_setup, copy_call, copy_plain, NULL, copy_bench};

static void zero_list(void) {
    emit("n=1 y=act"), emit("n=1027 y=f32");
}

static void zero_setup(test *t) {
    t->exact = 1;
    OPERAND(t, "y", OUT, kind_of(t, "y"), 1, get(t, "n"));
}

static void zero_call(const test *t, const side *s) {
    (void)t, hs_zero(s->dev, s->b[0]);
}

static void zero_plain(test *t) {
    for (int64_t i = 0; i < t->o[0].n; i++) move(t, 0, i, 0);
}

const operation op_zero = {"zero", zero_list, zero_setup, zero_call, zero_plain, NULL, NULL};
