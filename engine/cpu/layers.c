/* Linear layers and convolutions: what is multiplied. (How is onednn.c's.)
 *
 * A weight is converted to the computing type when it is loaded and packed by onednn.c. Here are the parts that oneDNN
 * does not do: operands of another type go through a scratch of fixed size, a piece of rows at a time, and doubling by
 * nearest neighbour before a 3x3 kernel is folded into the kernel (spec wan.md 5.4 a), two output rows at a time. An
 * output row of parity p sees two input rows; both column parities are computed side by side as 2 * cout channels of a
 * 2x3 kernel, because then a row of that convolution is, byte for byte, a row of the doubled image. That is 24 / 36 of
 * the literal product. Four 2x2 kernels would be 16 / 36, but their outputs interleave by pixel, and 24 channels fill
 * oneDNN's blocks badly; doubling is a twentieth of decoding, so the simpler form stays.
 */
#include "cpu/layers.h"
#include "cpu/onednn.h"
#include "cpu/rows.h"
#include <string.h>

enum {
    SCRATCH = 4 << 20,   /* bytes, until a row or a doubled frame needs more */
    TYPICAL_ROWS = 1024, /* the sizes weights are packed for */
    TYPICAL_FRAMES = 2,
    TYPICAL_SIDE = 64,
};

/* impl of a weight; part[1] is the second row parity of folded doubling */
typedef struct weight {
    hs_packed part[2];
    float *bias;   /* [out]; folded: [2 * cout]; NULL = none */
    hs_dtype type; /* F32 or BF16, of the packed operand */
} weight;

int hs_cpu_layers_init(hs_device *dev, hs_err *err) {
    hs_cpu *cpu = hs_cpu_of(dev);
    cpu->scratch = hs_alloc(SCRATCH);
    cpu->scratch_bytes = SCRATCH;
    return cpu->scratch ? HS_OK : hs_fail(err, HS_ENOMEM, "out of memory opening the cpu backend");
}

void hs_cpu_layers_done(hs_device *dev) {
    hs_free(hs_cpu_of(dev)->scratch);
}

/* For sizes known when loading, and for doubling. */
static int scratch_at_least(hs_device *dev, size_t bytes) {
    hs_cpu *cpu = hs_cpu_of(dev);
    if (bytes <= cpu->scratch_bytes) return HS_OK;
    char *p = hs_alloc(bytes);
    if (!p) return HS_ENOMEM;
    hs_free(cpu->scratch);
    cpu->scratch = p;
    cpu->scratch_bytes = bytes;
    return HS_OK;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */
void hs_cpu_weight_free(hs_device *dev, hs_weight *w) {
    weight *v = w->impl;
    if (!v) return;
    for (int i = 0; i < 2; i++) hs_onednn_unpack(dev, &v->part[i]);
    hs_free(v->bias);
    hs_free(v);
    w->impl = NULL;
}

/* n elements of any float type to t (F32 or BF16). In parallel, because a file of weights is read here first. */
static void convert(hs_device *dev, void *dst, hs_dtype t, const void *src, hs_dtype from, int64_t n) {
    enum { PIECE = 1024 };
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, n))
    for (int64_t i = 0; i < n; i += PIECE) {
        float piece[PIECE];
        const int64_t m = n - i < PIECE ? n - i : PIECE;
        const char *x = (const char *)src + (size_t)i * hs_dtype_size(from);
        char *y = (char *)dst + (size_t)i * hs_dtype_size(t);
        if (t == from) {
            memcpy(y, x, (size_t)m * hs_dtype_size(t));
        } else {
            hs_to_f32(piece, x, from, m);
            hs_cpu_copy(dev, (hs_buf){y, t, m}, (hs_buf){piece, HS_F32, m}); /* small enough for this one thread */
        }
    }
}

int hs_cpu_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight *w, hs_err *err) {
    const int64_t out = w->out, in = w->in;
    const hs_dtype t = w->f32 ? HS_F32 : dev->act;
    const size_t size = hs_dtype_size(t), row = (size_t)(out > in ? out : in) * sizeof(float) + 64;
    weight *v = w->impl = hs_calloc(1, sizeof *v);
    /* one matrix of the type that is wanted can be packed from where it is */
    const int direct = src->parts == 1 && src->type[0] == t && (uintptr_t)src->w[0] % size == 0;
    char *plain = direct ? NULL : hs_alloc((size_t)(out * in) * size);
    float *bias = src->bias[0] ? hs_alloc((size_t)out * sizeof *bias) : NULL;
    int rc = HS_ENOMEM;
    if (!v || (!direct && !plain) || (src->bias[0] && !bias) || scratch_at_least(dev, 2 * row)) {
        hs_free(bias);
        hs_fail(err, rc, "out of memory preparing a [%lld, %lld] matrix", (long long)out, (long long)in);
        goto out;
    }
    v->type = t;
    v->bias = bias;
    for (int64_t i = 0, o = 0; i < src->parts; o += src->out[i++]) {
        if (!direct) convert(dev, plain + (size_t)(o * in) * size, t, src->w[i], src->type[i], src->out[i] * in);
        if (bias) hs_to_f32(bias + o, src->bias[i], src->bias_type[i], src->out[i]);
    }
    const hs_product k = {.dim = {TYPICAL_ROWS, out, in}, .op = HS_LINEAR, .type = (int)t, .y_type = (int)t};
    rc = hs_onednn_pack(dev, &k, direct ? src->w[0] : plain, &v->part[0], err);
    if (rc) hs_fail_ctx(err, rc, "[%lld, %lld] matrix", (long long)out, (long long)in);
    w->bytes = v->part[0].bytes + (bias ? out * (int64_t)sizeof *bias : 0);
out:
    hs_free(plain);
    if (rc) hs_cpu_weight_free(dev, w);
    return rc;
}

/* One parity of a doubling 3x3 kernel as a 2x3 kernel for both column parities: w3 [3, 3] -> w2 [2, 3].
 * Along an axis, an output of parity 0 sees source pixels i-1 and i with weights (w0, w1 + w2), one of parity 1 sees i
 * and i+1 with (w0 + w1, w2). Columns keep three taps, the unused one zero. */
static void fold(const float *w3, int row_parity, int col_parity, float *w2) {
    for (int y = 0; y < 2; y++) {
        const int y0 = y ? 1 + row_parity : 0, y1 = y ? 2 : row_parity; /* taps y0..y1 of w3 read this source row */
        float taps[3] = {0};
        for (int k = y0; k <= y1; k++)
            for (int x = 0; x < 3; x++) taps[x] += w3[k * 3 + x];
        w2[y * 3 + 0] = col_parity ? 0 : taps[0];
        w2[y * 3 + 1] = col_parity ? taps[0] + taps[1] : taps[1] + taps[2];
        w2[y * 3 + 2] = col_parity ? taps[2] : 0;
    }
}

static hs_product conv_product(const hs_device *dev, const hs_weight *w, int T, int Y, int X, int parity) {
    const int side = (w->ky - 1) / 2, t = (int)dev->act;
    if (w->up2)
        return (hs_product){
            .dim = {T, Y, X, w->cin, 2 * w->cout, 1, 2, 3, !parity, parity}, .op = HS_CONV, .type = t, .y_type = t};
    return (hs_product){
        .dim = {T, Y, X, w->cin, w->cout, w->kt, w->ky, w->kx, side, side}, .op = HS_CONV, .type = t, .y_type = t};
}

int hs_cpu_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err) {
    const int up = w->up2;
    const int64_t cin = w->cin, cout = w->cout, taps = (int64_t)w->kt * w->ky * w->kx;
    const int64_t outs = up ? 2 * cout : cout, kernel = up ? 6 : taps; /* of one part */
    const size_t size = hs_dtype_size(dev->act), row_bytes = (size_t)(cin * taps) * hs_dtype_size(src->type);
    weight *v = w->impl = hs_calloc(1, sizeof *v);
    float *row = hs_alloc((size_t)(cin * taps) * sizeof *row), *folded = hs_alloc((size_t)(cin * kernel) * sizeof *row);
    char *plain = hs_alloc((size_t)(outs * cin * kernel) * size);
    float *bias = src->bias ? hs_alloc((size_t)outs * sizeof *bias) : NULL;
    int rc = HS_ENOMEM;
    if (!v || !row || !folded || !plain || (src->bias && !bias)) {
        hs_free(bias);
        hs_fail(err, rc, "out of memory preparing a convolution of %d to %d channels", src->cin, src->cout);
        goto out;
    }
    v->type = dev->act;
    v->bias = bias;
    for (int64_t o = 0; bias && o < outs; o += cout) hs_to_f32(bias + o, src->bias, src->bias_type, cout);
    w->bytes = bias ? outs * (int64_t)sizeof *bias : 0;
    for (int part = 0; part <= up; part++) {
        for (int64_t o = 0; o < outs; o++) { /* folded: column parity o / cout of channel o % cout */
            hs_to_f32(row, (const char *)src->w + (size_t)(o % cout) * row_bytes, src->type, cin * taps);
            for (int64_t c = 0; up && c < cin; c++) fold(row + c * 9, part, o >= cout, folded + c * 6);
            hs_from_f32(plain + (size_t)(o * cin * kernel) * size, dev->act, up ? folded : row, cin * kernel);
        }
        const hs_product k = conv_product(dev, w, TYPICAL_FRAMES, TYPICAL_SIDE, TYPICAL_SIDE, part);
        rc = hs_onednn_pack(dev, &k, plain, &v->part[part], err);
        if (rc) {
            hs_fail_ctx(err, rc, "convolution of %d to %d channels", src->cin, src->cout);
            break;
        }
        w->bytes += v->part[part].bytes;
    }
out:
    hs_free(row);
    hs_free(folded);
    hs_free(plain);
    if (rc) hs_cpu_weight_free(dev, w);
    return rc;
}

/* ---- linear ----------------------------------------------------------------------------------------------------- */
void hs_cpu_linear(hs_device *dev, const hs_linear *a) {
    weight *v = a->w->impl;
    hs_cpu *cpu = hs_cpu_of(dev);
    const int64_t in = a->w->in, out = a->w->out;
    hs_product k = {.dim = {a->rows, out, in},
                    .op = HS_LINEAR,
                    .type = (int)v->type,
                    .y_type = v->type == HS_F32 ? HS_F32 : (int)a->y.type,
                    .act = (int)a->act,
                    .bias = v->bias != NULL,
                    .gate = a->gate.p != NULL,
                    .residual = a->residual != 0};
    /* Below AVX-512 oneDNN has no fast product with a gate: there the product is added in a pass of its own. */
    const int other_x = a->x.type != v->type, apart = k.gate && hs_onednn_is_slow(dev, &k, &v->part[0]);
    const int other_y = (int)a->y.type != k.y_type || apart;
    if (apart) k.gate = k.residual = 0;
    if (!other_x && !other_y) {
        hs_onednn_multiply(dev, &k, &v->part[0], a->x.p, a->y.p, v->bias, a->gate.p);
        return;
    }
    /* Pieces of rows, x in one half of the scratch, the product in the other. */
    const size_t half = cpu->scratch_bytes / 2 / 64 * 64;
    const int64_t step = (int64_t)(half / sizeof(float)) / (out > in ? out : in);
    for (int64_t r = 0; r < a->rows && !dev->sticky; r += step) {
        const int64_t n = a->rows - r < step ? a->rows - r : step;
        const hs_buf x = hs_buf_at(a->x, r * in, n * in), y = hs_buf_at(a->y, r * out, n * out);
        const hs_buf x2 = other_x ? (hs_buf){cpu->scratch, v->type, x.n} : x;
        const hs_buf y2 = other_y ? (hs_buf){cpu->scratch + half, (hs_dtype)k.y_type, y.n} : y;
        k.dim[0] = n;
        if (other_x) hs_cpu_copy(dev, x2, x);
        hs_onednn_multiply(dev, &k, &v->part[0], x2.p, y2.p, v->bias, a->gate.p);
        if (apart)
            hs_cpu_add_gated(dev, y2, a->gate, n, out, y);
        else if (other_y)
            hs_cpu_copy(dev, y, y2);
    }
}

/* ---- convolution ------------------------------------------------------------------------------------------------ */
/* Frame by frame, so that what is not yet in place stays in the cache. */
static void conv_doubled(hs_device *dev, const hs_conv *a) {
    weight *v = a->w->impl;
    hs_cpu *cpu = hs_cpu_of(dev);
    const int64_t in = (int64_t)a->Y * a->X * a->w->cin, row = (int64_t)2 * a->X * a->w->cout;
    const size_t bytes = (size_t)row * hs_dtype_size(a->y.type);
    const int Y = a->Y;
    if (scratch_at_least(dev, (size_t)Y * bytes)) {
        hs_device_sticky(dev, HS_ENOMEM, "out of memory doubling a frame of %d x %d pixels", a->X, Y);
        return;
    }
    const hs_buf half = {cpu->scratch, a->y.type, Y * row}; /* every second row */
    for (int t = 0; t < a->T; t++)
        for (int parity = 0; parity < 2; parity++) {
            const int64_t first = ((int64_t)t * 2 * Y + parity) * row;
            hs_product k = conv_product(dev, a->w, 1, Y, a->X, parity);
            k.y_type = (int)a->y.type;
            k.bias = v->bias != NULL;
            k.residual = a->add.p != NULL;
            for (int y = 0; a->add.p && y < Y; y++)
                hs_cpu_copy(dev, hs_buf_at(half, y * row, row), hs_buf_at(a->add, first + 2 * y * row, row));
            hs_onednn_multiply(dev, &k, &v->part[parity], hs_buf_at(a->x, t * in, in).p, half.p, v->bias, NULL);
            char *out = hs_buf_at(a->y, first, row).p;
#pragma omp parallel for schedule(static) num_threads(hs_cpu_threads(dev, half.n))
            for (int y = 0; y < Y; y++) memcpy(out + 2 * (size_t)y * bytes, cpu->scratch + (size_t)y * bytes, bytes);
        }
}

void hs_cpu_conv(hs_device *dev, const hs_conv *a) {
    weight *v = a->w->impl;
    if (a->w->up2) {
        conv_doubled(dev, a);
        return;
    }
    hs_product k = conv_product(dev, a->w, a->T, a->Y, a->X, 0);
    k.y_type = (int)a->y.type;
    k.bias = v->bias != NULL;
    k.residual = a->add.p != NULL;
    if (a->add.p && a->add.p != a->y.p) hs_cpu_copy(dev, a->y, a->add);
    hs_onednn_multiply(dev, &k, &v->part[0], a->x.p, a->y.p, v->bias, NULL);
}
