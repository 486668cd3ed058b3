/* The inner loops of rows.c for one instruction set. rows.c includes this file once per set, with HS_KERNEL(name)
 * giving the functions distinct names and HS_TARGET their target attribute; there is no guard for that reason. The
 * loops are plain C that gcc and clang vectorise (`omp simd`); sums may be reordered within a row, never across rows.
 */

/* e^x to 2e-7 relative, x clamped to where the result is a normal float; NaN stays NaN. x = n ln 2 + r with n by the
 * rounding of 1.5 * 2^23, ln 2 in two parts, then a polynomial of degree 6 on |r| <= ln(2) / 2. */
static inline HS_TARGET __attribute__((always_inline)) float HS_KERNEL(fast_exp)(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifted = HS_FMA(x, 1.44269504088896341f, 12582912.0f), n = shifted - 12582912.0f;
    const float r = HS_FMA(n, 2.12194440e-4f, HS_FMA(n, -0.693359375f, x));
    float p = 1.3888889e-3f;
    p = HS_FMA(p, r, 8.3333333e-3f);
    p = HS_FMA(p, r, 4.1666667e-2f);
    p = HS_FMA(p, r, 1.6666667e-1f);
    p = HS_FMA(p, r, 0.5f);
    p = HS_FMA(p, r, 1.0f);
    p = HS_FMA(p, r, 1.0f);
    return p * float_of((bits_of(shifted) << 23) + 0x3f800000u);
}

static HS_TARGET void HS_KERNEL(load)(float *restrict dst, const void *restrict src, hs_dtype t, int64_t n) {
    if (t == HS_F32) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    }
    const uint16_t *s = src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dst[i] = float_of((uint32_t)s[i] << 16);
}

static HS_TARGET void HS_KERNEL(store)(void *restrict dst, hs_dtype t, const float *restrict src, int64_t n) {
    if (t == HS_F32) {
        memcpy(dst, src, (size_t)n * sizeof *src);
        return;
    }
    uint16_t *d = dst;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) d[i] = bf16_of(src[i]);
}

static HS_TARGET float HS_KERNEL(square_sum)(const float *x, int64_t n, float mean) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
    return sum;
}

static HS_TARGET float HS_KERNEL(sum)(const float *x, int64_t n) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* One row: y += gate * x; gate may be NULL */
static HS_TARGET void HS_KERNEL(add_gated)(const float *x, const float *gate, int64_t d, float *y) {
    if (gate) {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] += gate[i] * x[i];
    } else {
#pragma omp simd
        for (int64_t i = 0; i < d; i++) y[i] += x[i];
    }
}

/* One row: y = (x - mean) * scale * mul + add */
static HS_TARGET void HS_KERNEL(norm_row)(hs_norm_kind kind, const float *x, int64_t d, const float *mul,
                                          const float *add, float eps, char *y, hs_dtype t) {
    const float mean = kind == HS_NORM_LAYER ? HS_KERNEL(sum)(x, d) / (float)d : 0;
    const float scale = 1 / sqrtf(HS_KERNEL(square_sum)(x, d, mean) / (float)d + eps);
    float piece[PIECE];
    for (int64_t i = 0; i < d; i += PIECE) {
        const int64_t n = d - i < PIECE ? d - i : PIECE;
#pragma omp simd
        for (int64_t k = 0; k < n; k++) piece[k] = (x[i + k] - mean) * scale * mul[i + k];
        if (add) {
#pragma omp simd
            for (int64_t k = 0; k < n; k++) piece[k] += add[i + k];
        }
        HS_KERNEL(store)(y + (size_t)i * hs_dtype_size(t), t, piece, n);
    }
}

/* One row of hs_qk_norm; rope [head_dim / 2, 2] of this row or NULL. */
static HS_TARGET void HS_KERNEL(qk_row)(char *x, hs_dtype t, int64_t d, int head_dim, const float *gamma,
                                        const float *rope, float eps) {
    float in[PIECE], out[PIECE];
    const size_t size = hs_dtype_size(t);
    float sum = 0;
    for (int64_t i = 0; i < d; i += PIECE) {
        const int64_t n = d - i < PIECE ? d - i : PIECE;
        HS_KERNEL(load)(in, x + (size_t)i * size, t, n);
        sum += HS_KERNEL(square_sum)(in, n, 0);
    }
    const float scale = 1 / sqrtf(sum / (float)d + eps);
    for (int64_t i = 0; i < d; i += head_dim) {
        HS_KERNEL(load)(in, x + (size_t)i * size, t, head_dim);
#pragma omp simd
        for (int k = 0; k < head_dim; k++) in[k] *= scale * gamma[i + k];
        if (rope) {
#pragma omp simd
            for (int k = 0; k < head_dim / 2; k++) {
                const float c = rope[2 * k], s = rope[2 * k + 1], a = in[2 * k], b = in[2 * k + 1];
                out[2 * k] = a * c - b * s;
                out[2 * k + 1] = a * s + b * c;
            }
        }
        HS_KERNEL(store)(x + (size_t)i * size, t, rope ? out : in, head_dim);
    }
}

/* sum[k] += x[k] for `rows` rows that lie ld apart; k < n <= PIECE */
static HS_TARGET void HS_KERNEL(add_rows)(const char *x, hs_dtype t, int64_t rows, int64_t ld, int64_t n, double *sum) {
    float in[PIECE];
    for (int64_t r = 0; r < rows; r++) {
        HS_KERNEL(load)(in, x + (size_t)(r * ld) * hs_dtype_size(t), t, n);
#pragma omp simd
        for (int64_t k = 0; k < n; k++) sum[k] += in[k];
    }
}

/* n <= PIECE values: y = gelu(a) * b. gelu(x) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): the same as with
 * tanh(u), but exact where the result is small. */
static HS_TARGET void HS_KERNEL(gelu_mul)(const char *a, const char *b, char *y, hs_dtype t, int64_t n) {
    float u[PIECE], v[PIECE];
    HS_KERNEL(load)(u, a, t, n);
    HS_KERNEL(load)(v, b, t, n);
#pragma omp simd
    for (int64_t k = 0; k < n; k++) {
        const float x = u[k];
        v[k] *= x / (1 + HS_KERNEL(fast_exp)(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
    }
    HS_KERNEL(store)(y, t, v, n);
}

/* In eights: C is small and mostly a multiple, so that wider vectors would spend their time on the rest. */
static inline HS_TARGET float HS_KERNEL(pixel_square_sum)(const float *x, int C) {
    eight sum = {0};
    float rest = 0;
    int k = 0;
    for (; k + 8 <= C; k += 8) {
        eight v;
        memcpy(&v, x + k, sizeof v);
        sum += v * v;
    }
    for (; k < C; k++) rest += x[k] * x[k];
    return rest + ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

/* `pixels` rows of C channels, together at most PIECE values. The loads, stores and sigmoids run over all of them at
 * once, because C may be as small as 3. */
static HS_TARGET void HS_KERNEL(pixels)(const char *x, hs_dtype tx, int64_t pixels, int C, const float *gamma, int silu,
                                        char *y, hs_dtype ty) {
    float v[PIECE];
    const int64_t n = pixels * C;
    const float root = sqrtf((float)C);
    HS_KERNEL(load)(v, x, tx, n);
    for (int64_t i = 0; i < n; i += C) {
        const float norm = sqrtf(HS_KERNEL(pixel_square_sum)(v + i, C)), scale = root / (norm > 1e-12f ? norm : 1e-12f);
        int k = 0;
        for (; k + 8 <= C; k += 8) {
            eight x8, g8;
            memcpy(&x8, v + i + k, sizeof x8);
            memcpy(&g8, gamma + k, sizeof g8);
            x8 *= scale * g8;
            memcpy(v + i + k, &x8, sizeof x8);
        }
        for (; k < C; k++) v[i + k] *= scale * gamma[k];
    }
    if (silu) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) v[i] = v[i] / (1 + HS_KERNEL(fast_exp)(-v[i]));
    }
    HS_KERNEL(store)(y, ty, v, n);
}

/* n <= PIECE values from element i on: y = sum_k c[k] x[k] */
static HS_TARGET void HS_KERNEL(combine)(int count, const double *c, const hs_buf *x, int64_t i, float *y, int64_t n) {
    double sum[PIECE] = {0};
    for (int k = 0; k < count; k++) {
        const float *v = (const float *)x[k].p + i;
        const double f = c[k];
#pragma omp simd
        for (int64_t j = 0; j < n; j++) sum[j] += f * v[j];
    }
#pragma omp simd
    for (int64_t j = 0; j < n; j++) y[j] = (float)sum[j];
}

/* n <= PIECE values to bytes; returns how many are NaN. The arithmetic of ref: every backend gives the same byte. */
static HS_TARGET int64_t HS_KERNEL(bytes)(const char *x, hs_dtype t, uint8_t *y, int64_t n) {
    float v[PIECE];
    int32_t nan = 0;
    HS_KERNEL(load)(v, x, t, n);
#pragma omp simd reduction(+ : nan)
    for (int64_t i = 0; i < n; i++) {
        const float u = 0.5f * v[i] + 0.5f, low = u > 0 ? u : 0, f = low < 1 ? low : 1; /* NaN becomes 0 */
        nan += v[i] != v[i];
        y[i] = (uint8_t)(int32_t)(255.0f * f);
    }
    return nan;
}

/* n <= PIECE values: how many are NaN or infinite */
static HS_TARGET int64_t HS_KERNEL(nonfinite)(const char *x, hs_dtype t, int64_t n) {
    float v[PIECE];
    int32_t bad = 0;
    HS_KERNEL(load)(v, x, t, n);
#pragma omp simd reduction(+ : bad)
    for (int64_t i = 0; i < n; i++) bad += (bits_of(v[i]) & 0x7f800000u) == 0x7f800000u;
    return bad;
}

static const struct kernels HS_KERNEL(table) = {
    .load = HS_KERNEL(load),
    .store = HS_KERNEL(store),
    .add_gated = HS_KERNEL(add_gated),
    .norm_row = HS_KERNEL(norm_row),
    .qk_row = HS_KERNEL(qk_row),
    .add_rows = HS_KERNEL(add_rows),
    .gelu_mul = HS_KERNEL(gelu_mul),
    .pixels = HS_KERNEL(pixels),
    .combine = HS_KERNEL(combine),
    .bytes = HS_KERNEL(bytes),
    .nonfinite = HS_KERNEL(nonfinite),
};
