/* Cases of the two operations with prepared weights: linear and convolution. */
#include "check.h"
#include <math.h>

static const int lengths[] = {1, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200};
static const int widths[] = {1, 3, 8, 16, 24, 33, 96, 385};
enum { LENGTHS = sizeof lengths / sizeof *lengths, WIDTHS = sizeof widths / sizeof *widths };

static kind kind_of(const test *t, const char *key) {
    return is(t, key, "f32") ? F32 : ACT;
}

/* Makes one row much larger than the others: it must keep its relative error and not disturb its neighbours'. */
static void outlier_row(test *t, operand *o, int64_t width) {
    const int64_t row = o->n / width / 2;
    for (int64_t i = 0; i < width; i++) o->data[row * width + i] = to_type(t, o->kind, 60.0 * o->data[row * width + i]);
}

/* ---- linear ---------------------------------------------------------------------------------------------------- */
static void linear_list(void) {
    for (int i = 0; i < LENGTHS; i++) {
        emit("rows=%d in=48 out=33 x=act y=act bias=1 wt=f32", lengths[i]);
        emit("rows=%d in=128 out=96 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16", lengths[i]);
    }
    for (int i = 0; i < WIDTHS; i++)
        for (int j = 0; j < WIDTHS; j++)
            emit("rows=17 in=%d out=%d x=act y=act bias=%d wt=bf16 outlier=1", widths[i], widths[j], (i + j) % 2);
    static const char *const acts[] = {"none", "gelu", "silu"}, *const types[] = {"act", "f32"},
                             *const sources[] = {"f32", "bf16", "f16"};
    for (int a = 0; a < 3; a++)
        for (int x = 0; x < 2; x++)
            for (int y = 0; y < 2; y++)
                emit("rows=19 in=65 out=40 x=%s y=%s act=%s bias=%d wt=%s", types[x], types[y], acts[a], (x + a) % 2,
                     sources[(x + y) % 3]);
    for (int s = 0; s < 3; s++) {
        emit("rows=5 in=33 out=17 x=f32 y=f32 act=silu bias=1 wt=%s f32=1", sources[s]);
        emit("rows=33 in=24 out=12 x=act y=act parts=2 bias=1 wt=%s", sources[s]);
        emit("rows=33 in=40 out=11 x=act y=act parts=3 bias=%d wt=%s", s % 2, sources[s]);
        emit("rows=16 in=64 out=48 x=act y=f32 residual=1 bias=%d wt=%s", s % 2, sources[s]);
        emit("rows=7 in=100 out=50 x=f32 y=f32 residual=1 gate=1 bias=1 wt=%s f32=%d", sources[s], s % 2);
    }
    for (int a = 1; a < 3; a++) /* one product each: nothing but the activation adds error */
        emit("rows=63 in=1 out=33 x=f32 y=f32 act=%s wt=f32 f32=1", acts[a]);
    emit("rows=33 in=40 out=14 x=act y=act parts=3 bias=1 wt=bf16"); /* 48 together: whole vectors */
    emit("rows=1 in=256 out=384 x=f32 y=f32 act=silu bias=1 wt=bf16 f32=1");
    emit("rows=1100 in=1000 out=9 x=f32 y=f32 bias=1 wt=bf16");
    emit("rows=1100 in=1000 out=9 x=f32 y=f32 residual=1 gate=1 wt=bf16");
    emit("rows=200 in=384 out=384 x=act y=act act=gelu bias=1 wt=bf16 outlier=1");
    emit("rows=65 in=1536 out=384 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16 outlier=1");
    /* Weights that reach a GPU in several pieces of 8 MB: more than it has places for them; two, nothing to convert. */
    emit("rows=2 in=2050 out=4201 x=act y=f32 wt=f32");
    emit("rows=3 in=2048 out=2101 x=act y=act bias=1 wt=bf16");
    for (int i = 0; i < 4; i++) { /* whole vectors, with and without each of gate and bias; x converted first */
        emit("rows=37 in=64 out=40 x=act y=f32 residual=1 gate=%d bias=%d wt=bf16", i / 2, i % 2);
        emit("rows=130 in=72 out=264 x=f32 y=f32 residual=1 gate=%d bias=%d wt=f32", i / 2, i % 2);
    }
    /* Tiles of 128 x 192 for 132 processors, 64 slabs of 64 each or more: one tile a processor and up to six, last rows
     * and columns cut, numbers of slabs that are no multiple of the places they have (5) nor of a tile's pieces (12).
     */
    emit("rows=1407 in=5184 out=1912 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16 many=1");
    emit("rows=3065 in=2048 out=2104 x=act y=f32 residual=1 bias=1 wt=f32 outlier=1 many=1");
    emit("rows=2047 in=4224 out=1536 x=f32 y=f32 residual=1 gate=1 wt=bf16 many=1");
    emit("rows=7417 in=1088 out=1544 x=act y=f32 residual=1 gate=1 bias=1 wt=f16 many=1");
    emit("rows=12257 in=768 out=1536 x=act y=f32 residual=1 gate=1 wt=bf16 many=1");
}

static void linear_setup(test *t) {
    const int parts = get(t, "parts") ? (int)get(t, "parts") : 1;
    const int64_t rows = get(t, "rows"), in = get(t, "in"), out = get(t, "out"), part_out[] = {out, out + 5, out + 1};
    int64_t total = 0;
    for (int k = 0; k < parts; k++) total += part_out[k];
    add_linear(t, parts, part_out, in, (int)get(t, "f32"));
    operand *x = OPERAND(t, "x", IN, kind_of(t, "x"), 1, rows, in);
    for (int64_t i = 0; i < x->n && !get(t, "f32"); i++) x->data[i] = to_type(t, ACT, x->data[i]);
    if (get(t, "outlier")) outlier_row(t, x, in);
    OPERAND(t, "y", get(t, "residual") ? INOUT : OUT, kind_of(t, "y"), 2, rows, total);
    OPERAND(t, "gate", IN, F32, 1, total);
}

static hs_act linear_act(const test *t) {
    return is(t, "act", "gelu") ? HS_ACT_GELU_TANH : is(t, "act", "silu") ? HS_ACT_SILU : HS_ACT_NONE;
}

static void linear_call(const test *t, const side *s) {
    hs_op_linear(s->dev, &(hs_linear){.x = s->b[0],
                                      .y = s->b[1],
                                      .w = s->w,
                                      .rows = t->o[0].dim[0],
                                      .act = linear_act(t),
                                      .residual = (int)get(t, "residual"),
                                      .gate = get(t, "gate") ? s->b[2] : HS_NOBUF});
}

static float activate(hs_act act, float v) {
    if (act == HS_ACT_SILU) return v / (1 + expf(-v));
    return act == HS_ACT_NONE ? v : 0.5f * v * (1 + tanhf(0.797884561f * (v + 0.044715f * v * v * v)));
}

static void linear_plain(test *t) {
    const float *x = t->o[0].data, *gate = t->o[2].data;
    operand *y = &t->o[1];
    const int64_t rows = y->dim[0], in = t->o[0].dim[1], out = y->dim[1], residual = get(t, "residual"),
                  gated = get(t, "gate");
    const hs_act act = linear_act(t);
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < rows; m++)
        for (int64_t o = 0; o < out; o++) {
            float sum = 0;
            double mag = fabs((double)t->bias[o]);
            for (int64_t i = 0; i < in; i++) {
                const float term = x[m * in + i] * t->w[o * in + i];
                sum += term;
                mag += fabs((double)term);
            }
            float v = activate(act, sum + t->bias[o]);
            if (residual) {
                const float g = gated ? gate[o] : 1;
                v = y->data[m * out + o] + g * v;
                mag = mag * fabs((double)g) + fabs((double)y->data[m * out + o]);
            }
            put(t, y, m * out + o, v, mag, mag);
        }
}

static double linear_flops(const test *t) {
    return 2.0 * (double)t->o[1].n * (double)t->o[0].dim[1];
}

/* Demo model (N = 2304, d = 384, ffn 1536), then one 1.3B block cut to 1024 tokens. */
static const char *const linear_bench[] = {
    "linear rows=2304 in=384 out=384 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16",
    "linear rows=2304 in=384 out=384 x=act y=act parts=3 bias=1 wt=bf16",
    "linear rows=2304 in=384 out=1536 x=act y=act act=gelu bias=1 wt=bf16",
    "linear rows=2304 in=1536 out=384 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16",
    "linear rows=1 in=384 out=2304 x=f32 y=f32 bias=1 wt=bf16 f32=1",
    "linear rows=1024 in=1536 out=1536 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16",
    "linear rows=1024 in=1536 out=8960 x=act y=act act=gelu bias=1 wt=bf16",
    "linear rows=1024 in=8960 out=1536 x=act y=f32 residual=1 gate=1 bias=1 wt=bf16",
    0};

const operation op_linear = {"linear",     linear_list,  linear_setup, linear_call,
                             linear_plain, linear_flops, linear_bench};

/* ---- convolution ----------------------------------------------------------------------------------------------- */
static void conv_list(void) {
    static const int channels[] = {1, 3, 8, 16, 24, 33};
    for (int i = 0; i < 6; i++)
        for (int o = 0; o < 6; o++)
            emit("cin=%d cout=%d kt=%d ky=3 kx=3 T=%d Y=5 X=7 y=act bias=%d wt=bf16", channels[i], channels[o],
                 (i + o) % 2 ? 3 : 1, 1 + o % 2, (i + o / 2) % 2);
    static const char *const sources[] = {"f32", "bf16", "f16"};
    for (int kt = 1; kt <= 3; kt += 2)
        for (int ky = 1; ky <= 3; ky += 2)
            for (int T = 1; T <= 4; T *= 2) {
                emit("cin=8 cout=16 kt=%d ky=%d kx=%d T=%d Y=9 X=6 y=act bias=1 wt=%s", kt, ky, ky, T, sources[T % 3]);
                emit("cin=16 cout=8 kt=%d ky=%d kx=%d T=%d Y=3 X=17 y=act add=1 bias=1 wt=%s", kt, ky, ky, T,
                     sources[T % 3]);
            }
    emit("cin=8 cout=8 kt=1 ky=1 kx=3 T=1 Y=4 X=5 y=act wt=f32");
    emit("cin=8 cout=8 kt=3 ky=3 kx=1 T=2 Y=4 X=5 y=act wt=f32");
    emit("cin=96 cout=3 kt=3 ky=3 kx=3 T=2 Y=8 X=8 y=f32 bias=1 wt=bf16");
    emit("cin=24 cout=24 kt=3 ky=3 kx=3 T=2 Y=7 X=5 y=f32 add=1 bias=1 wt=bf16");
    emit("cin=24 cout=24 kt=3 ky=3 kx=3 T=2 Y=7 X=5 y=act add=inplace bias=1 wt=bf16");
    emit("cin=24 cout=24 kt=3 ky=3 kx=3 T=1 Y=8 X=6 y=f32 add=inplace bias=1 wt=bf16"); /* the VAE's residual */
    emit("cin=16 cout=24 kt=1 ky=1 kx=1 T=4 Y=5 X=9 y=f32 add=inplace bias=1 wt=bf16");
    emit("cin=48 cout=96 kt=3 ky=3 kx=3 T=1 Y=8 X=9 y=act bias=1 wt=bf16");
    for (int Y = 1; Y <= 5; Y += 2)
        for (int X = 1; X <= 8; X += 3)
            emit("cin=8 cout=16 kt=1 ky=3 kx=3 up2=1 T=%d Y=%d X=%d y=act bias=1 wt=bf16", 1 + Y / 2, Y, X);
    /* More than one tile of pixels and of channels, the last ones ragged. */
    emit("cin=40 cout=100 kt=3 ky=3 kx=3 T=2 Y=13 X=33 y=f32 add=inplace bias=1 wt=bf16");
    emit("cin=24 cout=100 kt=1 ky=3 kx=3 up2=1 T=2 Y=13 X=17 y=act bias=1 wt=f32");
    emit("cin=12 cout=50 kt=3 ky=3 kx=3 T=1 Y=25 X=17 y=act add=1 bias=1 wt=bf16");
    emit("cin=72 cout=97 kt=3 ky=1 kx=1 T=3 Y=13 X=18 y=f32 add=1 wt=bf16");
    emit("cin=8 cout=96 kt=1 ky=1 kx=1 T=1 Y=1 X=1 y=act bias=1 wt=bf16"); /* one step */
    emit("cin=40 cout=192 kt=1 ky=1 kx=1 T=2 Y=5 X=19 y=f32 add=inplace bias=1 wt=bf16");
    emit("cin=16 cout=384 kt=3 ky=3 kx=3 T=1 Y=4 X=5 y=f32 bias=1 wt=bf16");
    emit("cin=33 cout=24 kt=1 ky=3 kx=3 up2=1 T=4 Y=6 X=5 y=act wt=f32");
    emit("cin=3 cout=1 kt=1 ky=3 kx=3 up2=1 T=1 Y=5 X=3 y=f32 bias=1 wt=f16");
    emit("cin=16 cout=8 kt=1 ky=3 kx=3 up2=1 T=2 Y=3 X=4 y=act add=1 bias=1 wt=f32");
    emit("cin=16 cout=8 kt=1 ky=3 kx=3 up2=1 T=2 Y=3 X=4 y=f32 add=inplace bias=1 wt=f32");
    emit("cin=8 cout=24 kt=1 ky=3 kx=3 up2=1 T=1 Y=9 X=7 y=f32 bias=1 wt=bf16");
}

static void conv_setup(test *t) {
    const int cin = (int)get(t, "cin"), cout = (int)get(t, "cout"), kt = (int)get(t, "kt"), up = (int)get(t, "up2");
    const int64_t T = get(t, "T"), Y = get(t, "Y"), X = get(t, "X");
    add_conv(t, cout, cin, kt, (int)get(t, "ky"), (int)get(t, "kx"), up);
    OPERAND(t, "x", IN, ACT, 1, T + kt - 1, Y, X, cin);
    OPERAND(t, "y", is(t, "add", "inplace") ? INOUT : OUT, kind_of(t, "y"), 1, T, Y << up, X << up, cout);
    if (get(t, "add")) OPERAND(t, "add", IN, kind_of(t, "y"), 1, T, Y << up, X << up, cout);
}

static void conv_call(const test *t, const side *s) {
    const hs_buf add = get(t, "add") ? s->b[2] : is(t, "add", "inplace") ? s->b[1] : HS_NOBUF;
    hs_op_conv(s->dev, &(hs_conv){.x = s->b[0],
                                  .y = s->b[1],
                                  .add = add,
                                  .w = s->w,
                                  .T = (int)get(t, "T"),
                                  .Y = (int)get(t, "Y"),
                                  .X = (int)get(t, "X")});
}

/* The weight tap by which input pixel (yi, xi) reaches output (y, x), summed over all that do and rounded as an
 * operand: with doubling up to four of nine taps read the same pixel, and a kernel may add them up beforehand. */
static float conv_tap(const test *t, int64_t o, int64_t c, int dt, int64_t y, int64_t x, int64_t yi, int64_t xi) {
    const hs_conv_src *v = &t->conv;
    float sum = 0;
    for (int dy = 0; dy < v->ky; dy++)
        for (int dx = 0; dx < v->kx; dx++) {
            const int64_t ys = y + dy - v->ky / 2, xs = x + dx - v->kx / 2; /* -1 >> 1 is -1: still outside */
            if (ys >> v->up2 == yi && xs >> v->up2 == xi)
                sum += t->w[(((o * v->cin + c) * v->kt + dt) * v->ky + dy) * v->kx + dx];
        }
    return to_type(t, ACT, sum);
}

static void conv_plain(test *t) {
    const hs_conv_src *v = &t->conv;
    const operand *in = &t->o[0];
    operand *out = &t->o[1];
    const float *add = get(t, "add") ? t->o[2].data : is(t, "add", "inplace") ? out->data : NULL;
    const int64_t Y = get(t, "Y"), X = get(t, "X");
    for (int64_t i = 0; i < out->n; i++) {
        const int64_t o = i % v->cout, x = i / v->cout % out->dim[2], y = i / v->cout / out->dim[2] % out->dim[1],
                      f = i / v->cout / out->dim[2] / out->dim[1], yc = y >> v->up2, xc = x >> v->up2;
        float sum = 0;
        double mag = fabs((double)t->bias[o]);
        for (int dt = 0; dt < v->kt; dt++)
            for (int64_t yi = yc - v->ky / 2; yi <= yc + v->ky / 2; yi++)
                for (int64_t xi = xc - v->kx / 2; xi <= xc + v->kx / 2; xi++) {
                    if (yi < 0 || yi >= Y || xi < 0 || xi >= X) continue;
                    const float *pixel = in->data + (((f + dt) * Y + yi) * X + xi) * v->cin;
                    for (int64_t c = 0; c < v->cin; c++) {
                        const float term = pixel[c] * conv_tap(t, o, c, dt, y, x, yi, xi);
                        sum += term;
                        mag += fabs((double)term);
                    }
                }
        sum += t->bias[o];
        if (add) {
            sum += add[i];
            mag += fabs((double)add[i]);
        }
        put(t, out, i, sum, mag, mag);
    }
}

static double conv_flops(const test *t) {
    const hs_conv_src *v = &t->conv;
    return 2.0 * (double)t->o[1].n * v->cin * v->kt * v->ky * v->kx;
}

/* The demo VAE at 256 x 256: base width 24, multipliers 1 2 4 4; GFLOP/s of up2 counts the literal form. */
static const char *const conv_bench[] = {
    "conv cin=24 cout=24 kt=3 ky=3 kx=3 T=4 Y=256 X=256 y=f32 add=inplace bias=1 wt=bf16",
    "conv cin=24 cout=3 kt=3 ky=3 kx=3 T=4 Y=256 X=256 y=f32 bias=1 wt=bf16",
    "conv cin=48 cout=48 kt=3 ky=3 kx=3 T=4 Y=128 X=128 y=f32 add=inplace bias=1 wt=bf16",
    "conv cin=48 cout=24 kt=1 ky=3 kx=3 up2=1 T=4 Y=128 X=128 y=act bias=1 wt=bf16",
    "conv cin=96 cout=96 kt=3 ky=3 kx=3 T=2 Y=64 X=64 y=act bias=1 wt=bf16",
    "conv cin=96 cout=48 kt=1 ky=3 kx=3 up2=1 T=4 Y=64 X=64 y=act bias=1 wt=bf16",
    "conv cin=96 cout=96 kt=3 ky=3 kx=3 T=1 Y=32 X=32 y=act bias=1 wt=bf16",
    "conv cin=96 cout=192 kt=3 ky=1 kx=1 T=1 Y=32 X=32 y=act bias=1 wt=bf16",
    0};

const operation op_conv = {"conv", conv_list, conv_setup, conv_call, conv_plain, conv_flops, conv_bench};
