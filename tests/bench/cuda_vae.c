/* Where the time of the VAE's decoder goes: each operation of one latent frame at the shapes of the full Wan2.1 VAE,
 * timed by itself with random weights and values, and the sum over a video of 81 frames.
 *
 *     cuda_vae [--device NAME] [--precision P] [--size WIDTHxHEIGHT]...     (default: cuda, bf16, 832x480 and 1280x720)
 *
 * The order of the table is that of engine/vae.c. An operation that occurs several times is timed once. The video is 20
 * latent frames of the measured kind and the first one, whose every stage has one frame: a quarter of the others' time
 * where it counts. Works on any device. Exit code: 0, 1 something failed, 2 usage, 77 no such device.
 */
#include "backend.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BASE = 96, TOP = 4 * BASE, Z = 16, LATENT_FRAMES = 21, HIST = 2, MAX_ROWS = 64, MAX_WEIGHT = TOP * TOP * 27 };
static const double VIDEO = LATENT_FRAMES - 1 + 0.25;

typedef enum kind { CONV, NORM, COPY, SPLIT, ATTENTION, U8 } kind;
static const char *const kind_name[] = {"conv", "norm", "copy", "split", "attention", "u8"};

/* One operation. COPY: n of cin channels, from_f32: converted from F32. */
typedef struct row {
    kind kind;
    int cin, cout, kt, k, up2, T, Y, X;
    int f32, add; /* y of a convolution, x of the others, is F32; the convolution adds to y */
    int count;    /* times per latent frame */
} row;

typedef struct bench {
    hs_device *dev;
    hs_buf act_in, act_out, f32;
    float *weights; /* host, [MAX_WEIGHT] */
    row rows[MAX_ROWS];
    int n;
} bench;

/* ---- the decoder ------------------------------------------------------------------------------------------------ */
static void count(bench *b, row r) {
    int i = 0;
    r.count = 0;
    for (; i < b->n; i++) {
        row old = b->rows[i];
        old.count = 0;
        if (!memcmp(&old, &r, sizeof r)) break;
    }
    if (i == b->n) b->rows[b->n++] = r;
    b->rows[i].count++;
}

/* A convolution over three frames with its history moved in and out. */
static void causal(bench *b, row r) {
    count(b, r);
    for (int i = 0; i < 2; i++) count(b, (row){.kind = COPY, .cin = r.cin, .T = HIST, .Y = r.Y, .X = r.X});
}

static void residual_block(bench *b, int cin, int cout, int T, int Y, int X) {
    count(b, (row){.kind = NORM, .cin = cin, .T = T, .Y = Y, .X = X, .f32 = 1});
    causal(b, (row){.kind = CONV, .cin = cin, .cout = cout, .kt = 3, .k = 3, .T = T, .Y = Y, .X = X});
    if (cin != cout) {
        count(b, (row){.kind = COPY, .cin = cin, .T = T, .Y = Y, .X = X, .f32 = 1});
        count(b, (row){.kind = CONV, .cin = cin, .cout = cout, .kt = 1, .k = 1, .T = T, .Y = Y, .X = X, .f32 = 1});
    }
    count(b, (row){.kind = NORM, .cin = cout, .T = T, .Y = Y, .X = X});
    causal(b,
           (row){.kind = CONV, .cin = cout, .cout = cout, .kt = 3, .k = 3, .T = T, .Y = Y, .X = X, .f32 = 1, .add = 1});
}

static void decoder(bench *b, int Y, int X) {
    static const int width[] = {TOP, TOP, 2 * BASE, BASE};
    int T = 1, cin = TOP;
    b->n = 0;
    causal(b, (row){.kind = CONV, .cin = Z, .cout = TOP, .kt = 3, .k = 3, .T = T, .Y = Y, .X = X, .f32 = 1});
    residual_block(b, TOP, TOP, T, Y, X);
    count(b, (row){.kind = NORM, .cin = TOP, .T = T, .Y = Y, .X = X, .f32 = 1});
    count(b, (row){.kind = CONV, .cin = TOP, .cout = 3 * TOP, .kt = 1, .k = 1, .T = T, .Y = Y, .X = X});
    count(b, (row){.kind = ATTENTION, .cin = TOP, .T = T, .Y = Y, .X = X});
    count(b, (row){.kind = CONV, .cin = TOP, .cout = TOP, .kt = 1, .k = 1, .T = T, .Y = Y, .X = X, .f32 = 1, .add = 1});
    residual_block(b, TOP, TOP, T, Y, X);
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 3; j++) residual_block(b, j ? width[i] : cin, width[i], T, Y, X);
        if (i < 2) {
            count(b, (row){.kind = COPY, .cin = width[i], .T = T, .Y = Y, .X = X, .f32 = 1});
            causal(b,
                   (row){.kind = CONV, .cin = width[i], .cout = 2 * width[i], .kt = 3, .k = 1, .T = T, .Y = Y, .X = X});
            count(b, (row){.kind = SPLIT, .cin = width[i], .T = T, .Y = Y, .X = X});
            T *= 2;
        } else if (i == 2)
            count(b, (row){.kind = COPY, .cin = width[i], .T = T, .Y = Y, .X = X, .f32 = 1});
        if (i == 3) break;
        count(b, (row){.kind = CONV,
                       .cin = width[i],
                       .cout = width[i] / 2,
                       .kt = 1,
                       .k = 3,
                       .up2 = 1,
                       .T = T,
                       .Y = Y,
                       .X = X,
                       .f32 = 1});
        cin = width[i] / 2;
        Y *= 2;
        X *= 2;
    }
    count(b, (row){.kind = NORM, .cin = BASE, .T = T, .Y = Y, .X = X, .f32 = 1});
    causal(b, (row){.kind = CONV, .cin = BASE, .cout = 3, .kt = 3, .k = 3, .T = T, .Y = Y, .X = X, .f32 = 1});
    count(b, (row){.kind = U8, .cin = 3, .T = T, .Y = Y, .X = X, .f32 = 1});
}

/* ---- timing ----------------------------------------------------------------------------------------------------- */
static int64_t pixels(const row *r) {
    return (int64_t)r->T * r->Y * r->X;
}

/* Of the work that is done: doubling folded into a convolution leaves 2 x 2 taps (spec wan.md 5.4a). */
static double flops(const row *r) {
    if (r->kind == CONV) return 2.0 * (double)pixels(r) * r->cin * r->cout * r->kt * (r->up2 ? 16 : r->k * r->k);
    return r->kind == ATTENTION ? 4.0 * (double)pixels(r) * (double)pixels(r) * r->cin : 0;
}

static double bytes(const row *r, int act) {
    const double n = (double)pixels(r) * r->cin, in = r->f32 ? 4 : act;
    return r->kind == SPLIT ? 4 * n * act : r->kind == U8 ? n * (in + 1) : n * (in + act);
}

/* n values of noise: uploads some and doubles them on the device. */
static void fill(bench *b, hs_buf x) {
    const int64_t some = x.n < MAX_WEIGHT ? x.n : MAX_WEIGHT;
    hs_upload(b->dev, hs_buf_at(b->f32, 0, some), b->weights);
    if (x.p != b->f32.p) hs_copy(b->dev, hs_buf_at(x, 0, some), hs_buf_at(b->f32, 0, some));
    for (int64_t n = some; n < x.n; n *= 2) {
        const int64_t m = x.n - n < n ? x.n - n : n;
        hs_copy(b->dev, hs_buf_at(x, n, m), hs_buf_at(x, 0, m));
    }
}

static void call(bench *b, const row *r, const hs_weight *w, hs_buf gamma) {
    const int64_t px = pixels(r), n = px * r->cin;
    hs_buf in = r->f32 ? b->f32 : b->act_in;
    switch (r->kind) {
    case CONV: {
        const hs_buf y = hs_buf_at(r->f32 ? b->f32 : b->act_out, 0, px * r->cout * (r->up2 ? 4 : 1));
        hs_op_conv(b->dev, &(hs_conv){.x = hs_buf_at(b->act_in, 0, n + (r->kt - 1) * (n / r->T)),
                                      .y = y,
                                      .add = r->add ? y : HS_NOBUF,
                                      .w = w,
                                      .T = r->T,
                                      .Y = r->Y,
                                      .X = r->X});
        break;
    }
    case NORM:
        hs_op_channel_norm(b->dev, hs_buf_at(in, 0, n), px, r->cin, hs_buf_at(gamma, 0, r->cin), 1,
                           hs_buf_at(b->act_out, 0, n));
        break;
    case COPY: hs_copy(b->dev, hs_buf_at(b->act_out, 0, n), hs_buf_at(in, 0, n)); break;
    case SPLIT:
        hs_op_split_frames(b->dev, hs_buf_at(in, 0, 2 * n), r->T, px / r->T, r->cin, hs_buf_at(b->act_out, 0, 2 * n));
        break;
    case ATTENTION:
        hs_op_attention(b->dev, &(hs_attention){.q = hs_buf_at(in, 0, 3 * n),
                                                .k = hs_buf_at(in, r->cin, 3 * n - r->cin),
                                                .v = hs_buf_at(in, 2 * r->cin, 3 * n - 2 * r->cin),
                                                .out = hs_buf_at(b->act_out, 0, n),
                                                .ld_q = 3 * r->cin,
                                                .ld_k = 3 * r->cin,
                                                .ld_v = 3 * r->cin,
                                                .ld_out = r->cin,
                                                .len_q = n / r->cin,
                                                .len_k = n / r->cin,
                                                .heads = 1,
                                                .head_dim = r->cin,
                                                .scale = 1 / sqrtf((float)r->cin)});
        break;
    case U8: {
        const hs_buf y = {b->act_out.p, HS_U8, n};
        hs_op_to_u8(b->dev, hs_buf_at(in, 0, n), y);
        break;
    }
    }
}

/* Seconds of one call, from a row of calls without waiting in between; *ret undefined after a failure. */
static int time_row(bench *b, const row *r, hs_buf gamma, double *ret, hs_err *err) {
    hs_weight *w = NULL;
    hs_conv_src src = {b->weights, b->weights, HS_F32, HS_F32, r->cout, r->cin, r->kt, r->k, r->k, r->up2};
    int rc = r->kind == CONV ? hs_weight_conv(b->dev, &src, &w, err) : HS_OK, n = 1;
    double seconds = 0;
    fill(b, b->f32); /* sums of repeated calls would run away */
    if (!rc) call(b, r, w, gamma);
    if (!rc) rc = hs_device_check(b->dev, err);
    while (!rc) {
        const double start = hs_seconds();
        for (int i = 0; i < n; i++) call(b, r, w, gamma);
        rc = hs_device_check(b->dev, err);
        seconds = hs_seconds() - start;
        if (seconds > 0.02 || n >= 64) break;
        n *= 2;
    }
    *ret = seconds / n;
    hs_weight_free(b->dev, w);
    return rc;
}

static int buffers(bench *b, hs_buf *ret_gamma, hs_err *err) {
    int64_t in = MAX_WEIGHT, out = MAX_WEIGHT, f32 = MAX_WEIGHT;
    for (int i = 0; i < b->n; i++) {
        const row *r = &b->rows[i];
        const int64_t px = pixels(r), n = px * r->cin, y = px * r->cout * (r->up2 ? 4 : 1);
        const int64_t reads = r->kind == CONV        ? n + (r->kt - 1) * (n / r->T)
                              : r->kind == ATTENTION ? 3 * n
                              : r->kind == SPLIT     ? 2 * n
                                                     : n;
        in = in > reads ? in : reads;
        out = out > 2 * n ? out : 2 * n;
        out = out > y ? out : y;
        f32 = f32 > n ? f32 : n;
        f32 = f32 > y ? f32 : y;
    }
    const hs_dtype act = hs_device_act(b->dev);
    int rc = hs_device_alloc(b->dev, act, in, "input", &b->act_in, err);
    if (!rc) rc = hs_device_alloc(b->dev, act, out, "output", &b->act_out, err);
    if (!rc) rc = hs_device_alloc(b->dev, HS_F32, f32, "residual stream", &b->f32, err);
    if (!rc) rc = hs_device_alloc(b->dev, HS_F32, TOP, "gamma", ret_gamma, err);
    if (rc) return rc;
    hs_upload(b->dev, *ret_gamma, b->weights);
    fill(b, b->act_in);
    return HS_OK;
}

static int run(bench *b, int width, int height, hs_err *err) {
    hs_buf gamma = HS_NOBUF;
    double sum[U8 + 1] = {0}, total = 0, work = 0;
    decoder(b, height / 8, width / 8);
    int rc = buffers(b, &gamma, err);
    printf("%dx%d, 81 frames, %s\n", width, height, hs_device_name(b->dev));
    for (int i = 0; i < b->n && !rc; i++) {
        const row *r = &b->rows[i];
        double s;
        char what[64] = "";
        rc = time_row(b, r, gamma, &s, err);
        if (rc) break;
        if (r->kind == CONV)
            snprintf(what, sizeof what, "%d -> %d, %dx%dx%d%s", r->cin, r->cout, r->kt, r->k, r->k,
                     r->up2   ? ", doubled"
                     : r->add ? ", added"
                              : "");
        else
            snprintf(what, sizeof what, "%d", r->cin);
        printf("%-9s %-28s %s %d x %4d x %4d  %2d x %8.1f us", kind_name[r->kind], what, r->f32 ? "f32" : "act", r->T,
               r->Y, r->X, r->count, s * 1e6);
        if (flops(r) > 0)
            printf("  %7.1f TFLOP/s", flops(r) / s * 1e-12);
        else
            printf("  %7.1f GB/s   ", bytes(r, (int)hs_dtype_size(hs_device_act(b->dev))) / s * 1e-9);
        printf("  %8.2f ms\n", s * r->count * VIDEO * 1e3);
        fflush(stdout);
        sum[r->kind] += s * r->count * VIDEO;
        total += s * r->count * VIDEO;
        work += flops(r) * r->count * VIDEO;
    }
    for (int k = 0; k <= U8 && !rc; k++) printf("%-9s %8.2f ms\n", kind_name[k], sum[k] * 1e3);
    if (!rc)
        printf("decode    %8.2f ms, %.1f TFLOP, %.1f TFLOP/s\n\n", total * 1e3, work * 1e-12, work / total * 1e-12);
    hs_device_free(b->dev, b->act_in);
    hs_device_free(b->dev, b->act_out);
    hs_device_free(b->dev, b->f32);
    hs_device_free(b->dev, gamma);
    b->act_in = b->act_out = b->f32 = HS_NOBUF;
    return rc;
}

int main(int argc, char **argv) {
    static const struct option names[] = {{"device", 1, 0, 'd'}, {"precision", 1, 0, 'p'}, {"size", 1, 0, 's'}, {0}};
    hs_device_params p = {.name = "cuda", .precision = "bf16"};
    int size[8][2] = {{832, 480}, {1280, 720}}, sizes = 0, bad = 0;
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        if (c == 'd')
            p.name = optarg;
        else if (c == 'p')
            p.precision = optarg;
        else if (c != 's' || sizes == 8 || sscanf(optarg, "%dx%d", &size[sizes][0], &size[sizes][1]) != 2 ||
                 size[sizes][0] < 8 || size[sizes][1] < 8 || size[sizes][0] > 8192 || size[sizes][1] > 8192)
            bad = 1;
        else
            sizes++;
    }
    if (bad || optind < argc) {
        fprintf(stderr, "usage: cuda_vae [--device NAME] [--precision P] [--size WIDTHxHEIGHT]...\n");
        return 2;
    }
    bench b = {0};
    hs_err err = {0};
    int rc = hs_device_open(&p, &b.dev, &err);
    if (!rc && !(b.weights = malloc(MAX_WEIGHT * sizeof(float)))) rc = hs_fail(&err, HS_ENOMEM, "out of memory");
    for (int i = 0; i < MAX_WEIGHT && !rc; i++)
        b.weights[i] = ((float)(hs_hash64((uint64_t)i) >> 40) * 0x1p-24f - 0.5f) * 0.06f;
    for (int i = 0; i < (sizes ? sizes : 2) && !rc; i++) rc = run(&b, size[i][0], size[i][1], &err);
    if (rc) fprintf(stderr, "cuda_vae: %s\n", err.msg);
    free(b.weights);
    if (b.dev) hs_device_close(b.dev);
    return !rc ? 0 : rc == HS_ENODEV || rc == HS_ENOTSUP ? 77 : 1;
}
