/* Cases of the row operations that compute: norms, modulation, rotation, gated GELU, combine, latent frames. */
#include "check.h"
#include <math.h>

static const int lengths[] = {1, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

static kind kind_of(const test *t, const char *key) {
    return is(t, key, "f32") ? F32 : ACT;
}

/* ---- norm ------------------------------------------------------------------------------------------------------ */
static void norm_list(void) {
    for (int i = 0; i < LENGTHS; i++) {
        emit("kind=layer rows=3 d=%d y=act add=1", lengths[i]);
        emit("kind=rms rows=%d d=33 y=act", lengths[i]);
        emit("kind=layer rows=%d d=384 y=f32 add=%d", lengths[i], i % 2);
        emit("kind=rms rows=2 d=%d y=f32 add=%d", lengths[i], i % 2);
    }
    emit("kind=layer rows=5 d=384 y=act add=1 outlier=1");
    emit("kind=rms rows=5 d=384 y=act outlier=1");
    emit("kind=layer rows=4 d=1536 y=act add=1 offset=30"); /* mean far above the deviation */
    emit("kind=layer rows=4 d=256 y=f32 add=1 constant=1"); /* no deviation at all: eps decides */
    emit("kind=rms rows=4 d=256 y=f32 zero=1");
    emit("kind=layer rows=5 d=5120 y=act add=1"); /* wide and large enough for threads */
    emit("kind=layer rows=2 d=8300 y=act add=1"); /* wider than a GPU's block holds */
}

static void norm_setup(test *t) {
    const int64_t rows = get(t, "rows"), d = get(t, "d");
    operand *x = OPERAND(t, "x", IN, F32, 1, rows, d);
    for (int64_t i = 0; i < x->n; i++) {
        if (get(t, "outlier") && i / d == rows / 2) x->data[i] *= 60;
        if (get(t, "outlier") && i % d == 1) x->data[i] *= 60;
        if (get(t, "constant") && i / d == 0) x->data[i] = 1.5f;
        if (get(t, "zero") && i / d == 0) x->data[i] = 0;
        x->data[i] += (float)get(t, "offset");
    }
    OPERAND(t, "mul", IN, F32, 1, d);
    OPERAND(t, "add", IN, F32, 1, d);
    OPERAND(t, "y", OUT, kind_of(t, "y"), 1, rows, d);
}

static void norm_call(const test *t, const side *s) {
    hs_op_norm(s->dev, is(t, "kind", "rms") ? HS_NORM_RMS : HS_NORM_LAYER, s->b[0], get(t, "rows"), get(t, "d"),
               s->b[1], get(t, "add") ? s->b[2] : HS_NOBUF, 1e-6f, s->b[3]);
}

static void norm_plain(test *t) {
    const int64_t rows = get(t, "rows"), d = get(t, "d");
    const int layer = is(t, "kind", "layer");
    for (int64_t r = 0; r < rows; r++) {
        const float *x = t->o[0].data + r * d, *mul = t->o[1].data, *add = get(t, "add") ? t->o[2].data : NULL;
        float mean = 0, var = 0;
        double mean_mag = 0; /* of |x|: the scale of the mean's own error */
        for (int64_t i = 0; layer && i < d; i++) {
            mean += x[i];
            mean_mag += fabs((double)x[i]) / (double)d;
        }
        mean /= (float)d;
        for (int64_t i = 0; i < d; i++) var += (x[i] - mean) * (x[i] - mean);
        const float scale = 1 / sqrtf(var / (float)d + 1e-6f);
        for (int64_t i = 0; i < d; i++) {
            const float v = (x[i] - mean) * scale * mul[i], s = add ? add[i] : 0;
            const double mag = (fabs((double)x[i]) + mean_mag) * scale * fabs((double)mul[i]) + fabs((double)s);
            put(t, &t->o[3], r * d + i, v + s, mag, mag);
        }
    }
}

static const char *const norm_bench[] = {"norm kind=layer rows=2304 d=384 y=act add=1",
                                         "norm kind=layer rows=4096 d=1536 y=act add=1", 0};
const operation op_norm = {"norm", norm_list, norm_setup, norm_call, norm_plain, NULL, norm_bench};

/* ---- modulation ------------------------------------------------------------------------------------------------ */
static void modulation_list(void) {
    emit("rows=6 e_rows=6 d=384 one_plus=18"); /* rows 1 and 4: the scales of a block */
    emit("rows=2 e_rows=1 d=384 one_plus=2");  /* the head */
    emit("rows=1 e_rows=1 d=1 one_plus=0");
    emit("rows=6 e_rows=1 d=65 one_plus=63");
    emit("rows=6 e_rows=6 d=17 one_plus=33");
}

static void modulation_setup(test *t) {
    OPERAND(t, "table", IN, F32, 1, get(t, "rows"), get(t, "d"));
    OPERAND(t, "e", IN, F32, 1, get(t, "e_rows"), get(t, "d"));
    OPERAND(t, "y", OUT, F32, 1, get(t, "rows"), get(t, "d"));
}

static void modulation_call(const test *t, const side *s) {
    hs_op_modulation(s->dev, s->b[0], s->b[1], (int)get(t, "rows"), (int)get(t, "e_rows"), get(t, "d"),
                     (unsigned)get(t, "one_plus"), s->b[2]);
}

static void modulation_plain(test *t) {
    const int64_t d = get(t, "d");
    for (int64_t i = 0; i < t->o[2].n; i++) {
        const float a = t->o[0].data[i], b = t->o[1].data[get(t, "e_rows") == 1 ? i % d : i];
        const float one = (float)(get(t, "one_plus") >> (i / d) & 1);
        const double mag = fabs((double)a) + fabs((double)b) + one;
        put(t, &t->o[2], i, one + (a + b), mag, mag);
    }
}

static const char *const modulation_bench[] = {"modulation rows=6 e_rows=6 d=384 one_plus=18", 0};
const operation op_modulation = {"modulation", modulation_list, modulation_setup, modulation_call, modulation_plain,
                                 NULL,         modulation_bench};

/* ---- qk_norm --------------------------------------------------------------------------------------------------- */
static void qk_norm_list(void) {
    for (int i = 0; i < LENGTHS; i++) {
        emit("rows=%d ld=384 col=0 d=384 D=128 rope=1", lengths[i]);
        emit("rows=%d ld=1152 col=384 d=384 D=128 rope=1 mean=1", lengths[i]);
        emit("rows=%d ld=256 col=0 d=128 D=128", lengths[i]);
    }
    emit("rows=33 ld=100 col=3 d=96 D=32 rope=1 mean=1");
    emit("rows=9 ld=64 col=0 d=64 D=64 mean=1");
    emit("rows=5 ld=192 col=96 d=96 D=96 rope=1");
    emit("rows=4 ld=12 col=4 d=6 D=2 rope=1 mean=1");
    emit("rows=7 ld=1152 col=0 d=384 D=128 rope=1 outlier=1");
    emit("rows=3 ld=1536 col=0 d=1536 D=128 rope=1");
    emit("rows=6 ld=5128 col=8 d=5120 D=128 rope=1 mean=1");
    emit("rows=2 ld=8208 col=0 d=8208 D=8 rope=1 mean=1");
    emit("rows=5003 ld=24 col=8 d=16 D=8 rope=1 mean=1"); /* more than one round of a GPU's blocks */
    for (int i = 0; i < LENGTHS; i++) {                   /* q and k at once */
        emit("parts=2 rows=%d ld=1160 col=8 d=384 D=128 rope=1 mean=%d", lengths[i], i % 4);
        emit("parts=2 rows=%d ld=144 col=16 d=64 D=%d mean=3", lengths[i], i % 2 ? 64 : 16);
    }
    emit("parts=2 rows=5 ld=4608 col=0 d=1536 D=128 rope=1 mean=3 outlier=1");
    emit("parts=2 rows=4 ld=4608 col=0 d=1536 D=96 rope=1 mean=3"); /* heads that do not divide a warp's columns */
    emit("parts=2 rows=3 ld=15360 col=0 d=5120 D=128 rope=1 mean=3");
    emit("parts=2 rows=3 ld=17500 col=4 d=8200 D=8 rope=1 mean=3"); /* one group of threads per block, off alignment */
    emit("parts=2 rows=3 ld=16416 col=8 d=8200 D=8 rope=1 mean=2");
    emit("parts=2 rows=2 ld=20496 col=8 d=10240 D=128 rope=1 mean=1");
    emit("parts=2 rows=2 ld=20512 col=16 d=10248 D=8 mean=3"); /* wider than a block holds */
    emit("parts=2 rows=6 ld=15 col=3 d=5 D=5 mean=3");         /* odd */
    emit("parts=2 rows=9 ld=100 col=3 d=48 D=8 rope=1 mean=3");
    emit("parts=2 rows=9 ld=144 col=16 d=64 D=4 rope=1 mean=3"); /* heads narrower than a vector */
    emit("parts=2 rows=5001 ld=48 col=0 d=24 D=8 rope=1 mean=3");
}

static int64_t qk_parts(const test *t) {
    return get(t, "parts") ? get(t, "parts") : 1;
}

/* mean: bit k asks for the means of part k */
static void qk_norm_setup(test *t) {
    const int64_t rows = get(t, "rows"), ld = get(t, "ld"), d = get(t, "d"), D = get(t, "D");
    operand *x = OPERAND(t, "x", INOUT, ACT, 1, rows, ld);
    for (int64_t i = 0; i < x->n && get(t, "outlier"); i++)
        if (i / ld == 3) x->data[i] = to_type(t, ACT, 60.0 * x->data[i]);
    const int64_t parts = qk_parts(t);
    OPERAND(t, "gamma", IN, F32, 1, parts, d);
    operand *rope = OPERAND(t, "rope", IN, F32, 1, rows, D / 2, 2);
    for (int64_t i = 0; i < rope->n; i += 2) {
        const double angle = 3 * rope->data[i];
        rope->data[i] = (float)cos(angle);
        rope->data[i + 1] = (float)sin(angle);
    }
    if (get(t, "mean")) OPERAND(t, "mean", OUT, F32, 1, parts, d);
}

static void qk_norm_call(const test *t, const side *s) {
    const int64_t d = get(t, "d");
    hs_qk_norm q = {.x = s->b[0],
                    .rope = get(t, "rope") ? s->b[2] : HS_NOBUF,
                    .rows = get(t, "rows"),
                    .ld = get(t, "ld"),
                    .col = get(t, "col"),
                    .d = d,
                    .parts = (int)qk_parts(t),
                    .head_dim = (int)get(t, "D"),
                    .eps = 1e-6f};
    for (int k = 0; k < q.parts; k++) {
        q.gamma[k] = hs_buf_at(s->b[1], k * d, d);
        if (get(t, "mean") >> k & 1) q.mean[k] = hs_buf_at(s->b[3], k * d, d);
    }
    hs_op_qk_norm(s->dev, &q);
}

static void qk_norm_plain(test *t) {
    const int64_t rows = get(t, "rows"), ld = get(t, "ld"), d = get(t, "d"), D = get(t, "D"), parts = qk_parts(t);
    operand *y = &t->o[0];
    for (int64_t u = 0; u < rows * parts; u++) {
        const int64_t r = u / parts, at = r * ld + get(t, "col") + u % parts * d;
        const float *x = y->data + at, *gamma = t->o[1].data + u % parts * d, *rope = t->o[2].data + r * D;
        float sum = 0;
        for (int64_t i = 0; i < d; i += D) { /* by heads: one long sum would lose more than any device does */
            float head = 0;
            for (int64_t k = i; k < i + D; k++) head += x[k] * x[k];
            sum += head;
        }
        const float scale = 1 / sqrtf(sum / (float)d + 1e-6f);
        for (int64_t i = 0; i < d && !get(t, "rope"); i++) {
            const float a = x[i] * scale * gamma[i];
            put(t, y, at + i, a, fabs((double)a), fabs((double)a));
        }
        for (int64_t i = 0; i < d && get(t, "rope"); i += 2) {
            const float a = x[i] * scale * gamma[i], b = x[i + 1] * scale * gamma[i + 1], c = rope[i % D],
                        s = rope[i % D + 1];
            const double mag = fabs((double)a) + fabs((double)b);
            put(t, y, at + i, a * c - b * s, mag, mag);
            put(t, y, at + i + 1, a * s + b * c, mag, mag);
        }
    }
    for (int64_t i = 0; i < d * parts && get(t, "mean"); i++) {
        if (!(get(t, "mean") >> i / d & 1)) continue;
        const int64_t at = get(t, "col") + i;
        float sum = 0;
        double mag = 0;
        for (int64_t r = 0; r < rows; r++) {
            sum += y->plain[r * ld + at];
            mag += y->mag[r * ld + at];
        }
        put(t, &t->o[3], i, sum / (float)rows, mag / (double)rows, mag / (double)rows);
    }
}

static const char *const qk_norm_bench[] = {"qk_norm rows=2304 ld=1152 col=384 d=384 D=128 rope=1",
                                            "qk_norm rows=4096 ld=4608 col=0 d=1536 D=128 rope=1",
                                            "qk_norm parts=2 rows=4096 ld=4608 col=0 d=1536 D=128 rope=1 mean=3", 0};
const operation op_qk_norm = {"qk_norm", qk_norm_list, qk_norm_setup, qk_norm_call, qk_norm_plain, NULL, qk_norm_bench};

/* ---- gated_gelu ------------------------------------------------------------------------------------------------ */
static void gated_gelu_list(void) {
    for (int i = 0; i < LENGTHS; i++) emit("rows=%d ff=%d", lengths[LENGTHS - 1 - i], lengths[i]);
    emit("rows=3 ff=8200");
    emit("rows=3 ff=1024 wide=1"); /* far into both tails of tanh */
    emit("rows=65600 ff=8");       /* more rows than a grid has */
}

static void gated_gelu_setup(test *t) {
    OPERAND(t, "ab", IN, ACT, get(t, "wide") ? 20 : 1.5, get(t, "rows"), 2, get(t, "ff"));
    OPERAND(t, "y", OUT, ACT, 1, get(t, "rows"), get(t, "ff"));
}

static void gated_gelu_call(const test *t, const side *s) {
    hs_op_gated_gelu(s->dev, s->b[0], get(t, "rows"), get(t, "ff"), s->b[1]);
}

static void gated_gelu_plain(test *t) {
    const int64_t ff = get(t, "ff");
    for (int64_t i = 0; i < t->o[1].n; i++) {
        const float a = t->o[0].data[i / ff * 2 * ff + i % ff], b = t->o[0].data[(i / ff * 2 + 1) * ff + i % ff];
        const float gelu = 0.5f * a * (1 + tanhf(0.797884561f * (a + 0.044715f * a * a * a)));
        put(t, &t->o[1], i, gelu * b, fabs((double)a * b), fabs((double)a * b));
    }
}

static const char *const gated_gelu_bench[] = {"gated_gelu rows=512 ff=10240", 0};
const operation op_gated_gelu = {"gated_gelu", gated_gelu_list, gated_gelu_setup, gated_gelu_call, gated_gelu_plain,
                                 NULL,         gated_gelu_bench};

/* ---- combine --------------------------------------------------------------------------------------------------- */
static void combine_list(void) {
    for (int i = 0; i < LENGTHS; i++) emit("count=%d n=%d", i % 6 + 1, lengths[i]);
    emit("count=4 n=40001");
    emit("count=3 n=1001 alias=1"); /* y is also the first input */
    emit("count=6 n=65 alias=6");
    emit("count=2 n=77 twice=1"); /* one input given twice */
}

static const double coefficients[6] = {1.0 / 3, -5, 0.7182818284590452, 1e-3, -1, 6};

static void combine_setup(test *t) {
    const int alias = (int)get(t, "alias");
    OPERAND(t, "y", alias ? INOUT : OUT, F32, 1, get(t, "n"));
    for (int k = 1; k <= get(t, "count"); k++) OPERAND(t, "x", IN, F32, 1, get(t, "n"));
}

static int combine_source(const test *t, int k) {
    return get(t, "alias") == k + 1 ? 0 : get(t, "twice") ? 1 : k + 1;
}

static void combine_call(const test *t, const side *s) {
    hs_buf x[6];
    for (int k = 0; k < get(t, "count"); k++) x[k] = s->b[combine_source(t, k)];
    hs_op_combine(s->dev, (int)get(t, "count"), coefficients, x, s->b[0]);
}

static void combine_plain(test *t) {
    for (int64_t i = 0; i < t->o[0].n; i++) {
        float sum = 0;
        double mag = 0;
        for (int k = 0; k < get(t, "count"); k++) {
            const float term = (float)coefficients[k] * t->o[combine_source(t, k)].data[i];
            sum += term;
            mag += fabs((double)term);
        }
        put(t, &t->o[0], i, sum, mag, mag);
    }
}

static const char *const combine_bench[] = {"combine count=4 n=2097152", 0};
const operation op_combine = {"combine", combine_list, combine_setup, combine_call, combine_plain, NULL, combine_bench};

/* ---- latent_frames --------------------------------------------------------------------------------------------- */
static void latent_frames_list(void) {
    emit("C=16 f=5 t0=0 T=1 Y=6 X=10");
    emit("C=16 f=5 t0=4 T=1 Y=7 X=5");
    emit("C=3 f=4 t0=1 T=3 Y=1 X=17");
    emit("C=1 f=2 t0=0 T=2 Y=9 X=1");
    emit("C=48 f=3 t0=2 T=1 Y=5 X=3");
    emit("C=16 f=3 t0=1 T=1 Y=40 X=33");
}

static void latent_frames_setup(test *t) {
    const int64_t C = get(t, "C");
    OPERAND(t, "x", IN, F32, 1, C, get(t, "f"), get(t, "Y"), get(t, "X"));
    OPERAND(t, "z", OUT, ACT, 1, get(t, "T"), get(t, "Y"), get(t, "X"), C);
    OPERAND(t, "mul", IN, F32, 2, C); /* host arrays: only the values are used */
    OPERAND(t, "add", IN, F32, 1, C);
}

static void latent_frames_call(const test *t, const side *s) {
    hs_op_latent_frames(s->dev, s->b[0], (int)get(t, "C"), (int)get(t, "f"), (int)get(t, "t0"), (int)get(t, "T"),
                        (int)get(t, "Y"), (int)get(t, "X"), t->o[2].data, t->o[3].data, s->b[1]);
}

static void latent_frames_plain(test *t) {
    const int64_t C = get(t, "C"), area = get(t, "Y") * get(t, "X");
    for (int64_t i = 0; i < t->o[1].n; i++) {
        const int64_t c = i % C, at = i / C % area, frame = get(t, "t0") + i / C / area;
        const float v = t->o[0].data[(c * get(t, "f") + frame) * area + at] * t->o[2].data[c];
        const double mag = fabs((double)v) + fabs((double)t->o[3].data[c]);
        put(t, &t->o[1], i, v + t->o[3].data[c], mag, mag);
    }
}

static const char *const latent_frames_bench[] = {"latent_frames C=16 f=9 t0=3 T=1 Y=32 X=32", 0};
const operation op_latent_frames = {"latent_frames",    latent_frames_list,  latent_frames_setup,
                                    latent_frames_call, latent_frames_plain, NULL,
                                    latent_frames_bench};

/* ---- channel_norm ---------------------------------------------------------------------------------------------- */
static void channel_norm_list(void) {
    static const int channels[] = {1, 3, 8, 16, 24, 33, 48, 96, 384};
    for (int i = 0; i < 9; i++)
        for (int silu = 0; silu < 2; silu++)
            emit("pixels=%d C=%d silu=%d x=%s", lengths[i + silu], channels[i], silu, (i + silu) % 3 ? "f32" : "act");
    emit("pixels=5 C=96 silu=0 x=f32 zero=1"); /* a black pixel: 1e-12 decides */
    emit("pixels=5 C=96 silu=0 x=f32 tiny=1"); /* nearly black: still normalised */
    emit("pixels=5 C=96 silu=1 x=f32 outlier=1");
    emit("pixels=2001 C=24 silu=1 x=f32");
    emit("pixels=2001 C=24 silu=1 x=act");
    for (int C = 192; C <= 768; C *= 2) { /* 8, 16 and 32 threads a pixel */
        emit("pixels=37 C=%d silu=1 x=f32", C);
        emit("pixels=37 C=%d silu=1 x=act", C);
    }
    emit("pixels=9 C=776 silu=1 x=f32"); /* wider than a warp holds */
}

static void channel_norm_setup(test *t) {
    const int64_t C = get(t, "C");
    operand *x = OPERAND(t, "x", IN, kind_of(t, "x"), 1, get(t, "pixels"), C);
    for (int64_t i = 0; i < x->n; i++)
        if (i / C == x->dim[0] / 2) {
            if (get(t, "zero")) x->data[i] = 0;
            if (get(t, "tiny")) x->data[i] *= 1e-6f;
            if (get(t, "outlier")) x->data[i] = to_type(t, x->kind, 60.0 * x->data[i]);
        }
    OPERAND(t, "gamma", IN, F32, 2, C);
    OPERAND(t, "y", OUT, ACT, 1, get(t, "pixels"), C);
}

static void channel_norm_call(const test *t, const side *s) {
    hs_op_channel_norm(s->dev, s->b[0], get(t, "pixels"), (int)get(t, "C"), s->b[1], (int)get(t, "silu"), s->b[2]);
}

static void channel_norm_plain(test *t) {
    const int64_t C = get(t, "C");
    for (int64_t p = 0; p < get(t, "pixels"); p++) {
        const float *x = t->o[0].data + p * C;
        float sum = 0;
        for (int64_t c = 0; c < C; c++) sum += x[c] * x[c];
        const float scale = sqrtf((float)C) / fmaxf(sqrtf(sum), 1e-12f);
        for (int64_t c = 0; c < C; c++) {
            const float v = x[c] * scale * t->o[1].data[c];
            put(t, &t->o[2], p * C + c, get(t, "silu") ? v / (1 + expf(-v)) : v, fabs((double)v), fabs((double)v));
        }
    }
}

static const char *const channel_norm_bench[] = {"channel_norm pixels=262144 C=24 silu=1 x=f32",
                                                 "channel_norm pixels=65536 C=48 silu=1 x=f32", 0};
const operation op_channel_norm = {"channel_norm",    channel_norm_list,  channel_norm_setup,
                                   channel_norm_call, channel_norm_plain, NULL,
                                   channel_norm_bench};
