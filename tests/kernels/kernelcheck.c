/* kernelcheck: every operation of a device against the reference backend, on values aimed at the branches.
 *
 * Each case runs on ref (double sums) and twice on the device. Buffers lie between guards of NaN bits, outputs start as
 * NaN; the guards, all inputs and whatever an operation must not write have to stay as they were, both runs must agree
 * bit for bit (on the cpu backend a third one with a single thread as well), and the second may not allocate host
 * memory. The pass rule for an element is
 *
 *     |device - ref|  <=  2 E mag + u |ref| + 8 * 2^-24 sum_mag
 *
 * where E is the largest |plain - ref| / mag of a plain loop in the device's own precision (fp32 sums; for bf16 and
 * fp16 devices operands, outputs and attention's P rounded to that), u the unit roundoff of the output type (2^-24,
 * bf16 2^-8, fp16 2^-11, where what it can hold ends at 2^-25), and mag the sum of the magnitudes that were added up: a
 * kernel may be twice as wrong as the plain loop, plus one rounding of the output, plus the rounding of a few fp32
 * additions. Inputs are rounded to the device's type first, so that only the kernel's own error is left. Exit status: 0
 * all passed, 1 something failed, 2 usage, 77 no such device.
 */
#include "check.h"
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GUARD = 256,
    POISON_U8 = 0xa5,
    POISON_I32 = 0xa5a5a,
    SKIP = 77,
    MAX_CASES = 4096
}; /* GUARD keeps the alignment of an allocation */

static const operation *const ops[] = {&op_linear,
                                       &op_attention,
                                       &op_conv,
                                       &op_norm,
                                       &op_modulation,
                                       &op_qk_norm,
                                       &op_gated_gelu,
                                       &op_gather_rows,
                                       &op_combine,
                                       &op_patchify,
                                       &op_unpatchify,
                                       &op_latent_frames,
                                       &op_channel_norm,
                                       &op_split_frames,
                                       &op_to_u8,
                                       &op_count_nonfinite,
                                       &op_copy,
                                       &op_zero,
                                       &op_masked,
                                       &op_block_scores,
                                       &op_centroid_scores,
                                       &op_select,
                                       &op_mask_density,
                                       &op_block_means,
                                       &op_cluster,
                                       &op_reuse};
enum { OPS = sizeof ops / sizeof *ops };

static struct {
    char line[160];
    const operation *op;
} cases[MAX_CASES];
static int case_count;
static const operation *listing; /* whose list() runs */

/* ---- cases and values ------------------------------------------------------------------------------------------ */
void *need_memory(size_t count, size_t bytes) {
    void *p = calloc(count ? count : 1, bytes);
    if (!p) {
        fprintf(stderr, "kernelcheck: out of memory (%zu x %zu bytes)\n", count, bytes);
        exit(1);
    }
    return p;
}

static void add_case(const operation *o, const char *line) {
    if (case_count == MAX_CASES) {
        fprintf(stderr, "kernelcheck: more than %d cases\n", MAX_CASES);
        exit(1);
    }
    snprintf(cases[case_count].line, sizeof cases[case_count].line, "%s", line);
    cases[case_count++].op = o;
}

void emit(const char *fmt, ...) {
    char line[160];
    va_list ap;
    int used = snprintf(line, sizeof line, "%s ", listing->name);
    va_start(ap, fmt);
    vsnprintf(line + used, sizeof line - (size_t)used, fmt, ap);
    va_end(ap);
    add_case(listing, line);
}

static const char *find(const test *t, const char *key) {
    const size_t n = strlen(key);
    for (const char *p = strchr(t->line, ' '); p; p = strchr(p + 1, ' '))
        if (!strncmp(p + 1, key, n) && p[1 + n] == '=') return p + n + 2;
    return NULL;
}

int64_t get(const test *t, const char *key) {
    const char *p = find(t, key);
    return p ? atoll(p) : 0;
}

int is(const test *t, const char *key, const char *value) {
    const char *p = find(t, key);
    const size_t n = strlen(value);
    return p && !strncmp(p, value, n) && (p[n] == ' ' || !p[n]);
}

static uint64_t bits_at(const test *t, int stream, int64_t i) {
    uint64_t h = t->seed;
    for (const char *p = t->line; *p; p++) h = h * 1099511628211u + (unsigned char)*p;
    return hs_hash64(hs_hash64(h + (uint64_t)stream) + (uint64_t)i);
}

double noise(const test *t, int stream, int64_t i) {
    const uint64_t h = bits_at(t, stream, i);
    double sum = 0;
    for (int k = 0; k < 4; k++) sum += (double)(h >> (16 * k) & 0xffff) / 65535.0;
    return (sum - 2) * sqrt(3);
}

static hs_dtype device_type(kind k, hs_dtype act) {
    static const hs_dtype types[] = {[F32] = HS_F32, [I32] = HS_I32, [U8] = HS_U8};
    return k == ACT ? act : types[k];
}

float to_type(const test *t, kind k, double v) {
    if (k != ACT || t->act == HS_F32) return (float)v;
    return t->act == HS_BF16 ? hs_bf16_to_f32(hs_f32_to_bf16((float)v)) : hs_f16_to_f32(hs_f32_to_f16((float)v));
}

operand *add_operand(test *t, const char *name, role r, kind k, double scale, int ndim, const int64_t *dim) {
    operand *o = &t->o[t->count];
    *o = (operand){.name = name, .role = r, .kind = k, .ndim = ndim, .n = 1};
    for (int i = 0; i < ndim; i++) {
        o->dim[i] = dim[i];
        o->n *= dim[i];
    }
    o->data = need_memory((size_t)o->n, sizeof(float));
    for (int64_t i = 0; i < o->n; i++) {
        if (r == OUT)
            o->data[i] = k == U8 ? (float)POISON_U8 : k == I32 ? (float)POISON_I32 : NAN;
        else
            o->data[i] = to_type(t, k, scale * noise(t, t->count, i));
    }
    t->count++;
    return o;
}

/* n floats rounded to what source and device hold, and their copy in the source type, 2 bytes off alignment. */
static const void *source(test *t, int slot, float *values, int64_t n, hs_dtype type, double scale, int keep_f32) {
    const size_t bytes = (size_t)n * hs_dtype_size(type);
    void *aligned = need_memory(1, bytes);
    char *memory = need_memory(1, bytes + 2);
    for (int64_t i = 0; i < n; i++) values[i] = to_type(t, keep_f32 ? F32 : ACT, scale * noise(t, 100 + slot, i));
    hs_from_f32(aligned, type, values, n);
    hs_to_f32(values, aligned, type, n);
    memcpy(memory + 2, aligned, bytes);
    free(aligned);
    t->memory[slot] = memory;
    return memory + 2;
}

static hs_dtype source_type(const test *t) {
    return is(t, "wt", "bf16") ? HS_BF16 : is(t, "wt", "f16") ? HS_F16 : HS_F32;
}

void add_linear(test *t, int parts, const int64_t *out, int64_t in, int f32) {
    int64_t total = 0;
    for (int k = 0; k < parts; k++) total += out[k];
    t->w = need_memory((size_t)(total * in), sizeof(float));
    t->bias = need_memory((size_t)total, sizeof(float));
    t->linear = (hs_linear_src){.parts = parts, .in = in, .f32 = f32};
    for (int64_t k = 0, o = 0; k < parts; o += out[k++]) {
        t->linear.out[k] = out[k];
        t->linear.type[k] = t->linear.bias_type[k] = source_type(t);
        t->linear.w[k] = source(t, (int)k, t->w + o * in, out[k] * in, source_type(t), 1 / sqrt((double)in), f32);
        if (get(t, "bias")) t->linear.bias[k] = source(t, 3 + (int)k, t->bias + o, out[k], source_type(t), 0.5, f32);
    }
}

void add_conv(test *t, int cout, int cin, int kt, int ky, int kx, int up2) {
    const int64_t n = (int64_t)cout * cin * kt * ky * kx;
    t->w = need_memory((size_t)n, sizeof(float));
    t->bias = need_memory((size_t)cout, sizeof(float));
    t->conv = (hs_conv_src){.cout = cout, .cin = cin, .kt = kt, .ky = ky, .kx = kx, .up2 = up2};
    t->conv.type = t->conv.bias_type = source_type(t);
    t->conv.w = source(t, 0, t->w, n, source_type(t), 1 / sqrt((double)n / cout), 0);
    if (get(t, "bias")) t->conv.bias = source(t, 1, t->bias, cout, source_type(t), 0.5, 0);
}

void put(const test *t, operand *o, int64_t i, double value, double mag, double sum_mag) {
    o->plain[i] = to_type(t, o->kind, value);
    o->mag[i] = mag;
    o->sum_mag[i] = sum_mag;
}

static void test_begin(test *t, const operation *op, const char *line, uint64_t seed, hs_dtype act) {
    memset(t, 0, sizeof *t);
    t->line = line;
    t->seed = seed;
    t->act = act;
    op->setup(t);
}

static void test_end(test *t) {
    for (int k = 0; k < t->count; k++) {
        operand *o = &t->o[k];
        free(o->data), free(o->ref), free(o->plain), free(o->mag), free(o->sum_mag);
    }
    for (int k = 0; k < 6; k++) free(t->memory[k]);
    free(t->w), free(t->bias);
}

/* ---- running on a device --------------------------------------------------------------------------------------- */
static int complain(const test *t, const char *fmt, ...) HS_PRINTF(2, 3);
static int complain(const test *t, const char *fmt, ...) {
    va_list ap;
    printf("%s: ", t->line);
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
    printf(" (seed %llu) FAILED\n", (unsigned long long)t->seed);
    return 1;
}

static size_t image_bytes(const operand *o, hs_dtype act) {
    return (size_t)o->n * hs_dtype_size(device_type(o->kind, act)) + 2 * GUARD;
}

/* Guard, values in the device's type, guard. */
static uint8_t *image_new(const operand *o, hs_dtype act) {
    const size_t bytes = image_bytes(o, act);
    uint8_t *image = need_memory(1, bytes);
    memset(image, 0xff, bytes);
    for (int64_t i = 0; i < o->n; i++) {
        if (o->kind == U8) image[GUARD + i] = (uint8_t)o->data[i];
        if (o->kind == I32) ((int32_t *)(void *)(image + GUARD))[i] = (int32_t)o->data[i];
    }
    if (o->kind == F32 || o->kind == ACT) hs_from_f32(image + GUARD, device_type(o->kind, act), o->data, o->n);
    return image;
}

static void image_values(const operand *o, hs_dtype act, const uint8_t *image, float *ret) {
    for (int64_t i = 0; i < o->n && o->kind == U8; i++) ret[i] = image[GUARD + i];
    for (int64_t i = 0; i < o->n && o->kind == I32; i++)
        ret[i] = (float)((const int32_t *)(const void *)(image + GUARD))[i];
    if (o->kind == F32 || o->kind == ACT) hs_to_f32(ret, image + GUARD, device_type(o->kind, act), o->n);
}

static int make_weight(const test *t, hs_device *dev, hs_weight **ret, hs_err *err) {
    if (t->linear.parts) return hs_weight_linear(dev, &t->linear, ret, err);
    return t->conv.cout ? hs_weight_conv(dev, &t->conv, ret, err) : HS_OK;
}

static int buffers_new(const test *t, hs_device *dev, side *s, hs_buf *whole, hs_err *err) {
    for (int k = 0; k < t->count; k++) {
        const operand *o = &t->o[k];
        uint8_t *image = image_new(o, dev->act);
        const int64_t bytes = (int64_t)image_bytes(o, dev->act);
        int rc = hs_device_alloc(dev, HS_U8, bytes, o->name, &whole[k], err);
        if (!rc) hs_upload(dev, whole[k], image);
        free(image);
        if (rc) return rc;
        s->b[k] = (hs_buf){(char *)whole[k].p + GUARD, device_type(o->kind, dev->act), o->n};
    }
    return HS_OK;
}

/* A test is done with, and has not passed. */
enum { FAILED = 1, SKIPPED = 2 /* this device does not offer the operation (ref offers all) */ };

/* Runs once on fresh buffers; image[k] = bytes of operand k afterwards, guards included, for the caller to free. */
static int run_once(const operation *op, const test *t, hs_device *dev, hs_weight *w, int no_alloc, uint8_t **image) {
    side s = {.dev = dev, .w = w};
    hs_buf whole[MAX_OPERANDS] = {{0}};
    hs_err err = {0};
    int failed = 0, skipped = 0, allocations = 0;
    if (buffers_new(t, dev, &s, whole, &err) || hs_device_check(dev, &err)) failed = complain(t, "%s", err.msg);
    if (!failed) {
        if (no_alloc) hs_guard_begin();
        op->call(t, &s);
        if (no_alloc) allocations = hs_guard_end();
        const int rc = hs_device_check(dev, &err);
        skipped = rc == HS_ENOTSUP && strncmp(dev->name, "ref", 3) != 0;
        if (rc != t->expect && !skipped)
            failed = complain(t, "left error %d (%s), expected %d", rc, rc ? err.msg : "none", t->expect);
        if (allocations) failed = complain(t, "%d host allocations in a repeated call", allocations);
    }
    for (int k = 0; k < t->count; k++) {
        const operand *o = &t->o[k];
        const size_t bytes = image_bytes(o, dev->act);
        image[k] = need_memory(1, bytes);
        if (!failed) {
            uint8_t *before = image_new(o, dev->act);
            hs_download(dev, image[k], whole[k]);
            if (memcmp(before, image[k], GUARD) || memcmp(before + bytes - GUARD, image[k] + bytes - GUARD, GUARD))
                failed = complain(t, "written outside of %s on %s", o->name, dev->name);
            else if (o->role == IN && memcmp(before, image[k], bytes))
                failed = complain(t, "input %s was changed on %s", o->name, dev->name);
            free(before);
        }
        hs_device_free(dev, whole[k]);
    }
    return failed ? FAILED : skipped ? SKIPPED : 0;
}

static int same_float(float a, float b) {
    return a == b || (isnan(a) && isnan(b));
}

/* ---- comparing ------------------------------------------------------------------------------------------------- */
static void coordinates(const operand *o, int64_t i, char *ret, size_t size) {
    int64_t at[MAX_DIMS];
    for (int d = o->ndim - 1; d >= 0; d--) {
        at[d] = i % o->dim[d];
        i /= o->dim[d];
    }
    size_t used = (size_t)snprintf(ret, size, "%s[", o->name);
    for (int d = 0; d < o->ndim && used < size; d++)
        used += (size_t)snprintf(ret + used, size - used, "%s%lld", d ? ", " : "", (long long)at[d]);
    if (used < size) snprintf(ret + used, size - used, "]");
}

/* Half the distance of the numbers around zero: fp16 stops being a floating-point format below 2^-14. */
static double least(const test *t, const operand *o) {
    return o->kind == ACT && t->act == HS_F16 ? 0x1p-25 : 0;
}

/* The plain loop and ref are written independently and must agree to what fp32 sums, or operands of 16 bits, may cost:
 * this tests ref itself, and keeps the pass rule from being widened by a wrong loop. */
static int agree(const test *t, const operand *o) {
    int rounded = t->conv.cout || (t->linear.parts && !t->linear.f32); /* devices of 16 bits round operands here */
    for (int k = 0; k < t->count; k++) rounded |= t->o[k].kind == ACT;
    const double share = t->act == HS_F32 || !rounded ? 0 : t->act == HS_BF16 ? 1.0 / 64 : 1.0 / 512;
    for (int64_t i = 0; i < o->n; i++) {
        const double want = to_type(t, o->kind, o->ref[i]),
                     bound = 24 * 0x1p-24 * o->sum_mag[i] + share * o->mag[i] + 2 * least(t, o);
        const int ok = o->mag[i] < 0                 ? same_float(o->ref[i], o->data[i])
                       : t->exact || !isfinite(want) ? same_float(o->plain[i], (float)want)
                                                     : fabs(o->plain[i] - want) <= bound;
        char at[96];
        if (ok) continue;
        coordinates(o, i, at, sizeof at);
        return complain(t, "%s: ref %.9g, plain loop %.9g: they contradict each other (bound %.3g)", at, o->ref[i],
                        o->plain[i], bound);
    }
    return 0;
}

typedef struct worst {
    double ratio, error, bound; /* largest error / bound, and where it came from */
} worst;

static double unit_roundoff(const test *t, const operand *o) {
    if (o->kind != ACT || t->act == HS_F32) return 0x1p-24;
    return t->act == HS_BF16 ? 0x1p-8 : 0x1p-11;
}

/* Elements of o after the call on the device against ref. Adds to *w, returns 1 after complaining about the worst one.
 */
static int compare(const test *t, const operand *o, const float *got, worst *w) {
    double plain_error = 0;
    int64_t worst_at = -1, failures = 0;
    worst here = {-1, 0, 0};
    for (int64_t i = 0; i < o->n; i++)
        if (o->mag[i] > 0 && isfinite(o->ref[i]))
            plain_error = fmax(plain_error, fabs((double)o->plain[i] - o->ref[i]) / o->mag[i]);
    for (int64_t i = 0; i < o->n; i++) {
        double want = o->ref[i], bound = 2 * plain_error * o->mag[i] + unit_roundoff(t, o) * fabs(want) +
                                         8 * 0x1p-24 * o->sum_mag[i] + least(t, o);
        if (o->mag[i] < 0 || t->exact) {
            want = o->mag[i] < 0 ? o->data[i] : o->plain[i];
            bound = 0;
        }
        const double error = fabs(got[i] - want);
        double ratio = error <= bound ? (bound > 0 ? error / bound : 0) : bound > 0 ? error / bound : INFINITY;
        if (!isfinite(want) || !isfinite(got[i])) ratio = same_float((float)want, got[i]) ? 0 : INFINITY;
        failures += !(ratio <= 1);
        if (ratio > here.ratio) {
            here = (worst){ratio, error, bound};
            worst_at = i;
        }
    }
    if (here.ratio > w->ratio) *w = here;
    if (!failures) return 0;
    char at[96];
    coordinates(o, worst_at, at, sizeof at);
    return complain(t, "%s is %.9g, ref %.9g, plain loop %.9g: error %.3g over bound %.3g, %lld of %lld elements", at,
                    got[worst_at], o->ref[worst_at], o->plain[worst_at], here.error, here.bound, (long long)failures,
                    (long long)o->n);
}

/* Runs of one case: on ref, twice on the device, and where threads can be counted once more with one of them. */
enum { REF, FIRST, AGAIN, SINGLE, RUNS };
typedef struct runs {
    hs_device *dev[RUNS]; /* AGAIN is FIRST; SINGLE may be NULL */
    hs_weight *w[RUNS];
    uint8_t *image[RUNS][MAX_OPERANDS];
} runs;

static int run_all(const operation *op, const test *t, runs *r) {
    hs_err err = {0};
    for (int i = 0; i < RUNS; i++) {
        if (!r->dev[i]) continue;
        if (i == AGAIN)
            r->w[i] = r->w[FIRST];
        else if (make_weight(t, r->dev[i], &r->w[i], &err))
            return complain(t, "%s", err.msg);
        const int stop = run_once(op, t, r->dev[i], r->w[i], i == REF || i == AGAIN, r->image[i]);
        if (stop) return stop;
    }
    return 0;
}

/* Everything demanded of operand k after the runs. One thread may give other bits in linear layers and convolutions:
 * there the library under the cpu backend cuts sums by the number of threads on some instruction sets. */
static int judge(const test *t, int k, runs *r, worst *w) {
    const operand *o = &t->o[k];
    const hs_dtype act = r->dev[FIRST]->act;
    const size_t bytes = image_bytes(o, act);
    float *got = need_memory((size_t)o->n, sizeof(float));
    int failed = 0;
    for (int i = FIRST; i < RUNS && !failed; i++) {
        if (i == AGAIN || !r->dev[i]) continue;
        image_values(o, act, r->image[i][k], got);
        failed = compare(t, o, got, w);
    }
    free(got);
    if (failed) return 1;
    if (memcmp(r->image[FIRST][k], r->image[AGAIN][k], bytes))
        return complain(t, "two runs give different bits in %s", o->name);
    if (r->dev[SINGLE] && !t->w && memcmp(r->image[FIRST][k], r->image[SINGLE][k], bytes))
        return complain(t, "one thread gives other bits in %s", o->name);
    return 0;
}

static void accept(const operation *op, test *t, const runs *r) {
    float *got[MAX_OPERANDS] = {0};
    for (int k = 0; k < t->count; k++) {
        got[k] = need_memory((size_t)t->o[k].n, sizeof(float));
        image_values(&t->o[k], r->dev[FIRST]->act, r->image[FIRST][k], got[k]);
    }
    op->accept(t, got);
    for (int k = 0; k < t->count; k++) free(got[k]);
}

static int check_case(const operation *op, const char *line, uint64_t seed, runs *r) {
    test t;
    worst w = {-1, 0, 0};
    test_begin(&t, op, line, seed, r->dev[FIRST]->act);
    int failed = run_all(op, &t, r);
    for (int k = 0; k < t.count && !failed; k++) {
        operand *o = &t.o[k];
        if (o->role == IN) continue;
        o->ref = need_memory((size_t)o->n, sizeof(float));
        o->plain = need_memory((size_t)o->n, sizeof(float));
        o->mag = need_memory((size_t)o->n, sizeof(double));
        o->sum_mag = need_memory((size_t)o->n, sizeof(double));
        for (int64_t i = 0; i < o->n; i++) o->mag[i] = -1;
        image_values(o, HS_F32, r->image[REF][k], o->ref);
    }
    if (!failed) op->plain(&t);
    for (int k = 0; k < t.count && !failed; k++)
        if (t.o[k].role != IN) failed = agree(&t, &t.o[k]);
    if (!failed && op->accept) accept(op, &t, r);
    for (int k = 0; k < t.count && !failed; k++)
        if (t.o[k].role != IN) failed = judge(&t, k, r, &w);
    if (failed == SKIPPED) printf("%s: not offered by this device, skipped\n", line);
    if (!failed) printf("%s: error %.2e bound %.2e ok\n", line, w.error, w.bound);
    r->w[AGAIN] = NULL;
    for (int i = 0; i < RUNS; i++) {
        for (int k = 0; k < MAX_OPERANDS; k++) free(r->image[i][k]);
        hs_weight_free(r->dev[i], r->w[i]);
        r->w[i] = NULL;
    }
    memset(r->image, 0, sizeof r->image);
    test_end(&t);
    return failed;
}

/* ---- timing ---------------------------------------------------------------------------------------------------- */
static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of up to 25 calls in about a second, after one that is not counted. */
static int bench_case(const operation *op, const char *line, uint64_t seed, hs_device *dev) {
    enum { MAX_RUNS = 25, MIN_RUNS = 3 };
    test t;
    side s = {.dev = dev};
    hs_buf whole[MAX_OPERANDS] = {{0}};
    hs_err err = {0};
    double seconds[MAX_RUNS], bytes = 0, begin = 0;
    int n = 0;
    test_begin(&t, op, line, seed, dev->act);
    int rc = make_weight(&t, dev, &s.w, &err);
    if (!rc) rc = buffers_new(&t, dev, &s, whole, &err);
    for (int i = -1; !rc && i < MAX_RUNS; i++) {
        const double start = hs_seconds();
        op->call(&t, &s);
        rc = hs_device_check(dev, &err);
        if (i < 0)
            begin = hs_seconds();
        else
            seconds[n++] = hs_seconds() - start;
        if (n >= MIN_RUNS && hs_seconds() - begin > 1) break;
    }
    for (int k = 0; k < t.count; k++) {
        bytes += (double)(image_bytes(&t.o[k], dev->act) - 2 * GUARD);
        hs_device_free(dev, whole[k]);
    }
    if (rc)
        complain(&t, "%s", err.msg);
    else {
        qsort(seconds, (size_t)n, sizeof *seconds, by_value);
        const double median = seconds[n / 2];
        const double work = (op->flops ? op->flops(&t) : bytes) * 1e-9;
        printf("%-86s %10.6f s (%.6f to %.6f, %d runs) %9.2f %s, at best %.2f\n", line, median, seconds[0],
               seconds[n - 1], n, work / median, op->flops ? "GFLOP/s" : "GB/s", work / seconds[0]);
    }
    hs_weight_free(dev, s.w);
    test_end(&t);
    return rc != 0;
}

/* ---- main ------------------------------------------------------------------------------------------------------ */
typedef struct options {
    const char *device, *precision, *filter;
    int list, bench, repeat, threads;
    uint64_t seed;
} options;

static const char usage[] =
    "usage: kernelcheck [--device cpu|cuda[:N]|ref] [--precision auto|fp32|bf16|fp16] [--filter STR]\n"
    "                   [--seed N] [--repeat N] [--threads N] [--list] [--bench]\n"
    "  Checks every operation of the device against the reference backend; --bench times model shapes instead.\n"
    "  --filter takes the cases whose line contains STR; --repeat N runs seeds seed .. seed + N - 1.\n"
    "  Cases with many=1 have more tiles than a GPU has processors; elsewhere they run when a filter asks for them.\n";

static int parse(int argc, char **argv, options *o) {
    static const struct option names[] = {{"device", 1, 0, 'd'}, {"precision", 1, 0, 'p'},
                                          {"filter", 1, 0, 'f'}, {"seed", 1, 0, 's'},
                                          {"repeat", 1, 0, 'r'}, {"threads", 1, 0, 't'},
                                          {"list", 0, 0, 'l'},   {"bench", 0, 0, 'b'},
                                          {"help", 0, 0, 'h'},   {0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (c) {
        case 'd': o->device = optarg; break;
        case 'p': o->precision = optarg; break;
        case 'f': o->filter = optarg; break;
        case 's': o->seed = strtoull(optarg, NULL, 0); break;
        case 'r': o->repeat = atoi(optarg); break;
        case 't': o->threads = atoi(optarg); break;
        case 'l': o->list = 1; break;
        case 'b': o->bench = 1; break;
        case 'h': printf("%s", usage); exit(0);
        default: return 2;
        }
    return optind < argc || o->repeat < 1 ? 2 : 0;
}

static void print_log(void *user, enum hs_log_level level, const char *msg) {
    (void)user;
    if (level <= HS_LOG_WARN) fprintf(stderr, "kernelcheck: %s\n", msg);
}

static int open_devices(const options *o, runs *r, hs_err *err) {
    hs_device_params p = {.name = "ref"};
    int rc = hs_device_open(&p, &r->dev[REF], err);
    p = (hs_device_params){.name = o->device, .precision = o->precision, .threads = o->threads};
    if (!rc) rc = hs_device_open(&p, &r->dev[FIRST], err);
    if (rc) return rc;
    r->dev[AGAIN] = r->dev[FIRST];
    p.threads = 1;
    return o->bench || strcmp(o->device, "cpu") ? HS_OK : hs_device_open(&p, &r->dev[SINGLE], err);
}

static void close_devices(runs *r) {
    r->dev[AGAIN] = NULL;
    for (int i = 0; i < RUNS; i++) hs_device_close(r->dev[i]);
}

int main(int argc, char **argv) {
    options o = {.device = "cpu", .precision = "auto", .repeat = 1, .seed = 1};
    if (parse(argc, argv, &o)) {
        fputs(usage, stderr);
        return 2;
    }
    for (int i = 0; i < OPS; i++) {
        listing = ops[i];
        if (!o.bench) listing->list();
        for (const char *const *line = o.bench ? listing->bench : NULL; line && *line; line++) add_case(listing, *line);
    }
    hs_log_set(print_log, NULL);
    hs_err err = {0};
    runs r = {{0}};
    int passed = 0, failed = 0, skipped = 0, left = 0;
    const int all = o.list || o.filter || !strncmp(o.device, "cuda", 4);
    if (!o.list && open_devices(&o, &r, &err)) {
        fprintf(stderr, "kernelcheck: %s\n", err.msg);
        close_devices(&r);
        return err.code == HS_ENODEV || err.code == HS_ENOTSUP ? SKIP : 1;
    }
    if (!o.list) printf("%s\n", r.dev[FIRST]->name);
    for (int i = 0; i < case_count; i++) {
        if (o.filter && !strstr(cases[i].line, o.filter)) continue;
        if (!all && strstr(cases[i].line, " many=1")) {
            left++;
            continue;
        }
        for (int k = 0; k < o.repeat; k++) {
            const uint64_t seed = o.seed + (uint64_t)k;
            if (o.list) {
                printf("%s\n", cases[i].line);
                break;
            }
            const int stop = o.bench ? bench_case(cases[i].op, cases[i].line, seed, r.dev[FIRST])
                                     : check_case(cases[i].op, cases[i].line, seed, &r);
            passed += !stop;
            failed += stop == FAILED;
            skipped += stop == SKIPPED;
            if (o.bench) break;
        }
    }
    close_devices(&r);
    if (o.list) return 0;
    printf("%d passed, %d failed, %d not offered by this device, %d left to GPUs\n", passed, failed, skipped, left);
    if (!passed && !failed && !skipped)
        fprintf(stderr, "kernelcheck: no case contains '%s'; --list shows them\n", o.filter);
    return failed || !passed;
}
