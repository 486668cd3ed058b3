/* CPU attention alone: correctness of every micro-kernel, and its speed beside the processor's peak in the same minute.
 *
 *     attention_bench [--isa NAME[,NAME..]] [--threads N] [--check | --bench] [--seconds S] [--shape TEXT]
 *                     [--cpu-time]
 *     NAME: amx avx512bf16 avx512 avx2 portable; default: all that this processor has
 *
 * Needs nothing of the library but engine/cpu/attention.c, attn_*.c and engine/base.c, so that one compiler call builds
 * it on a bare machine (docs/kernels.md). A case prints as a line of options that runs it again. Exit code: 0 all
 * right, 1 a check failed, 77 a requested instruction set is not there.
 */
#include "cpu/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The library's own is in backend.c, which would bring the whole of it. */
void hs_device_sticky(hs_device *dev, int code, const char *fmt, ...) {
    (void)fmt;
    if (!dev->sticky) dev->sticky = code;
}

/* ---- instruction sets ------------------------------------------------------------------------------------------- */

enum isa { PORTABLE, AVX2, AVX512, AVX512_BF16, AMX, ISAS };
static const char *const isa_name[ISAS] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

static int has_amx(void) {
#if defined(HS_ATTN_AMX_EMULATE)
    return __builtin_cpu_supports("avx512bf16") != 0; /* softmax is not emulated */
#elif defined(__x86_64__) && defined(__linux__)
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return 0; /* AMX-BF16, AMX-TILE */
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
#else
    return 0;
#endif
}

static int isa_present(enum isa i) {
#if defined(__x86_64__)
    switch (i) {
    case AVX2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case AVX512_BF16: return isa_present(AVX512) && __builtin_cpu_supports("avx512bf16");
    case AMX: return isa_present(AVX512_BF16) && has_amx();
    default: break;
    }
#endif
    return i == PORTABLE;
}

static int device_open(enum isa i, hs_dtype act, int threads, hs_cpu *cpu, hs_device *dev) {
    memset(cpu, 0, sizeof(*cpu));
    memset(dev, 0, sizeof(*dev));
    cpu->threads = threads;
    cpu->isa =
        (hs_cpu_isa){.avx2 = i >= AVX2, .avx512 = i >= AVX512, .avx512_bf16 = i >= AVX512_BF16, .amx_bf16 = i == AMX};
    dev->impl = cpu;
    dev->act = act;
    hs_err err;
    if (hs_cpu_attention_init(dev, &err) == HS_OK) return 0;
    fprintf(stderr, "attention_bench: %s\n", err.msg);
    return -1;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

typedef struct shape {
    int64_t len_q, len_k;
    int heads, head_dim;
    int64_t gap;  /* elements between one token's heads and the next token's */
    float spread; /* standard deviation of the logits */
    float low;    /* added to all logits of row 0 through the bias */
    float bonus;  /* last_key_bonus */
    int bias;     /* 1: relative bias */
} shape;

typedef struct data {
    hs_attention a;
    void *mem[4];
    float *f[3], *bias; /* the operands as floats, [len, heads * head_dim] */
    int64_t ld, guard;
} data;

enum { GUARD = 256 };
static const uint32_t POISON = 0x7fa5a5a5u; /* a NaN in fp32, and in bf16 */

static double uniform(uint64_t seed, uint64_t i) {
    return ((double)(hs_hash64(seed * 0x10001 + i) >> 11) + 0.5) * 0x1p-53;
}
static float normal(uint64_t seed, uint64_t i) {
    return (float)(sqrt(-2 * log(uniform(seed, 2 * i))) * cos(6.283185307179586 * uniform(seed, 2 * i + 1)));
}

static void *must(void *p) {
    if (p) return p;
    fprintf(stderr, "attention_bench: no memory\n");
    exit(1);
}

static void poison(data *d, hs_dtype act) {
    size_t n = (size_t)(d->a.len_q * d->ld + 2 * GUARD), size = act == HS_F32 ? 4 : 2;
    for (size_t i = 0; i < n * size / 4; i++) ((uint32_t *)d->mem[3])[i] = POISON;
}

/* Rounded to the act type first, so that only the kernel's own error is left. */
static data data_new(const shape *s, hs_dtype act) {
    data d = {0};
    int64_t hd = (int64_t)s->heads * s->head_dim, len[4] = {s->len_q, s->len_k, s->len_k, s->len_q};
    size_t size = act == HS_F32 ? 4 : 2;
    d.ld = hd + s->gap;
    float *row = must(hs_alloc((size_t)hd * 4));
    for (int t = 0; t < 4; t++) {
        d.mem[t] = must(hs_calloc((size_t)(len[t] * d.ld + 2 * GUARD), size));
        if (t == 3) break;
        d.f[t] = must(hs_alloc((size_t)(len[t] * hd) * 4));
        for (int64_t i = 0; i < len[t]; i++) {
            /* q of unit variance; k scaled so that scale * q.k has the wanted spread */
            float f = t == 1 ? s->spread : 1;
            for (int64_t c = 0; c < hd; c++) row[c] = f * normal(77 + (uint64_t)t, (uint64_t)(i * hd + c));
            void *at = (char *)d.mem[t] + (size_t)(GUARD + i * d.ld) * size;
            if (act == HS_F32)
                memcpy(at, row, (size_t)hd * 4);
            else
                for (int64_t c = 0; c < hd; c++) ((uint16_t *)at)[c] = hs_f32_to_bf16(row[c]);
            for (int64_t c = 0; c < hd; c++)
                d.f[t][i * hd + c] = act == HS_F32 ? row[c] : hs_bf16_to_f32(hs_f32_to_bf16(row[c]));
        }
    }
    hs_free(row);
    hs_buf b[4];
    for (int t = 0; t < 4; t++) b[t] = (hs_buf){(char *)d.mem[t] + GUARD * size, act, len[t] * d.ld};
    d.a = (hs_attention){.q = b[0],
                         .k = b[1],
                         .v = b[2],
                         .out = b[3],
                         .ld_q = d.ld,
                         .ld_k = d.ld,
                         .ld_v = d.ld,
                         .ld_out = d.ld,
                         .len_q = s->len_q,
                         .len_k = s->len_k,
                         .heads = s->heads,
                         .head_dim = s->head_dim,
                         .scale = 1 / sqrtf((float)s->head_dim),
                         .last_key_bonus = s->bonus,
                         .rel_bias = HS_NOBUF};
    if (s->bias || s->low != 0) {
        int64_t n = s->heads * (s->len_q + s->len_k - 1);
        d.bias = must(hs_alloc((size_t)n * 4));
        for (int64_t i = 0; i < n; i++) d.bias[i] = s->low + (s->bias ? 3 * normal(99, (uint64_t)i) : 0);
        d.a.rel_bias = (hs_buf){d.bias, HS_F32, n};
    }
    poison(&d, act);
    return d;
}

static void data_free(data *d) {
    for (int t = 0; t < 4; t++) hs_free(d->mem[t]);
    for (int t = 0; t < 3; t++) hs_free(d->f[t]);
    hs_free(d->bias);
}

static double logit(const data *d, int h, int64_t i, int64_t j) {
    const hs_attention *a = &d->a;
    int64_t hd = (int64_t)a->heads * a->head_dim;
    const float *q = d->f[0] + i * hd + h * a->head_dim, *k = d->f[1] + j * hd + h * a->head_dim;
    double x = 0;
    for (int c = 0; c < a->head_dim; c++) x += (double)q[c] * k[c];
    x *= a->scale;
    if (d->bias) x += d->bias[h * (a->len_q + a->len_k - 1) + j - i + a->len_q - 1];
    return j == a->len_k - 1 ? x + a->last_key_bonus : x;
}

/* One row of the truth in double, and of the plain loop in the working precision: fp32 sums in order, and with bf16
 * probabilities and result rounded to bf16. */
static void row_reference(const data *d, hs_dtype act, int h, int64_t i, double *p, double *exact, float *plain) {
    const hs_attention *a = &d->a;
    int64_t hd = (int64_t)a->heads * a->head_dim;
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j < a->len_k; j++) {
        p[j] = logit(d, h, i, j);
        if (p[j] > top) top = p[j];
    }
    for (int c = 0; c < a->head_dim; c++) exact[c] = plain[c] = 0;
    for (int64_t j = 0; j < a->len_k; j++) sum += exp(p[j] - top);
    for (int64_t j = 0; j < a->len_k; j++)
        for (int c = 0; c < a->head_dim; c++)
            exact[c] += exp(p[j] - top) / sum * (double)d->f[2][j * hd + h * a->head_dim + c];

    const float *q = d->f[0] + i * hd + h * a->head_dim;
    float ftop = -INFINITY, fsum = 0;
    for (int64_t j = 0; j < a->len_k; j++) {
        const float *k = d->f[1] + j * hd + h * a->head_dim;
        float x = 0;
        for (int c = 0; c < a->head_dim; c++) x += q[c] * k[c];
        x *= a->scale;
        if (d->bias) x += d->bias[h * (a->len_q + a->len_k - 1) + j - i + a->len_q - 1];
        if (j == a->len_k - 1) x += a->last_key_bonus;
        p[j] = x;
        if (x > ftop) ftop = x;
    }
    for (int64_t j = 0; j < a->len_k; j++) {
        float e = expf((float)p[j] - ftop);
        fsum += e;
        p[j] = e;
    }
    for (int64_t j = 0; j < a->len_k; j++) {
        float e = (float)p[j] / fsum;
        if (act == HS_BF16) e = hs_bf16_to_f32(hs_f32_to_bf16(e));
        for (int c = 0; c < a->head_dim; c++) plain[c] += e * d->f[2][j * hd + h * a->head_dim + c];
    }
    if (act == HS_BF16)
        for (int c = 0; c < a->head_dim; c++) plain[c] = hs_bf16_to_f32(hs_f32_to_bf16(plain[c]));
}

static float out_at(const data *d, hs_dtype act, int64_t at) {
    return act == HS_F32 ? ((const float *)d->a.out.p)[at] : hs_bf16_to_f32(((const uint16_t *)d->a.out.p)[at]);
}

/* Everything outside the written columns still holds the poison. */
static int guards_hold(const data *d, hs_dtype act, const shape *s) {
    int64_t hd = (int64_t)s->heads * s->head_dim, n = s->len_q * d->ld + 2 * GUARD;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = i - GUARD;
        if (at >= 0 && at < s->len_q * d->ld && at % d->ld < hd) continue;
        uint32_t want = act == HS_F32 ? POISON : (i & 1) ? POISON >> 16 : POISON & 0xffff;
        uint32_t got = act == HS_F32 ? ((const uint32_t *)d->mem[3])[i] : ((const uint16_t *)d->mem[3])[i];
        if (got != want) {
            printf("  guard overwritten at element %lld of row %lld\n", (long long)(at % d->ld),
                   (long long)(at / d->ld));
            return 0;
        }
    }
    return 1;
}

static int check_case(enum isa isa, hs_dtype act, const shape *s) {
    data d = data_new(s, act);
    size_t bytes = (size_t)(s->len_q * d.ld + 2 * GUARD) * (act == HS_F32 ? 4 : 2);
    void *first = must(hs_alloc(bytes));
    double *p = must(hs_alloc((size_t)s->len_k * 8)), *exact = must(hs_alloc((size_t)s->head_dim * 8));
    float *plain = must(hs_alloc((size_t)s->head_dim * 4));
    int ok = 1;

    for (int threads = 1; threads <= 3; threads++) {
        hs_cpu cpu;
        hs_device dev;
        if (device_open(isa, act, threads, &cpu, &dev)) exit(1);
        for (int rep = 0; rep < 2; rep++) {
            poison(&d, act);
            hs_guard_begin();
            hs_cpu_attention(&dev, &d.a);
            if (hs_guard_end() || dev.sticky) ok = (printf("  allocates or fails\n"), 0);
            if (threads == 1 && rep == 0)
                memcpy(first, d.mem[3], bytes);
            else if (memcmp(first, d.mem[3], bytes))
                ok = (printf("  run %d with %d threads differs\n", rep, threads), 0);
        }
        hs_cpu_attention_done(&dev);
    }
    ok &= guards_hold(&d, act, s);

    double e2 = 0, plain2 = 0, norm2 = 0, worst = 0, worst_plain = 0;
    for (int64_t i = 0; i<s->len_q; i += s->len_q> 40 ? s->len_q / 23 + 1 : 1)
        for (int h = 0; h < s->heads; h++) {
            row_reference(&d, act, h, i, p, exact, plain);
            for (int c = 0; c < s->head_dim; c++) {
                double x = out_at(&d, act, i * d.ld + h * s->head_dim + c), e = fabs(x - exact[c]);
                double q = fabs(plain[c] - exact[c]);
                e2 += e * e;
                plain2 += q * q;
                norm2 += exact[c] * exact[c];
                if (!(e <= worst)) worst = e;
                if (q > worst_plain) worst_plain = q;
            }
        }
    /* Twice the plain loop's error, plus a rounding of the result where the plain loop happens to be exact (one key).
     * The single worst value is an extreme of a few thousand roundings: three times the plain loop's, plus an ulp at 4.
     */
    double ulp = act == HS_F32 ? 0x1p-23 : 0x1p-8, rms = sqrt(norm2);
    if (!(sqrt(e2) <= 2 * sqrt(plain2) + 0.5 * ulp * rms && worst <= 3 * worst_plain + 4 * ulp)) ok = 0;
    if (!ok || getenv("HS_VERBOSE"))
        printf("%s %-10s %-4s q %lld k %lld heads %d dim %d gap %lld spread %g low %g bonus %g bias %d: relative error "
               "%.2e (plain loop %.2e), worst %.2e (%.2e)\n",
               ok ? "ok  " : "FAIL", isa_name[isa], act == HS_F32 ? "f32" : "bf16", (long long)s->len_q,
               (long long)s->len_k, s->heads, s->head_dim, (long long)s->gap, s->spread, s->low, s->bonus, s->bias,
               sqrt(e2) / rms, sqrt(plain2) / rms, worst, worst_plain);
    hs_free(first);
    hs_free(p);
    hs_free(exact);
    hs_free(plain);
    data_free(&d);
    return ok;
}

/* A NaN in one query spoils that query's row and no other: the engine finds bad weights by asking for NaN at the end.
 */
static int check_nan(enum isa isa, hs_dtype act) {
    shape s = {.len_q = 40, .len_k = 140, .heads = 1, .head_dim = 64, .spread = 1};
    data d = data_new(&s, act);
    hs_cpu cpu;
    hs_device dev;
    if (device_open(isa, act, 1, &cpu, &dev)) exit(1);
    int64_t at = 7 * d.ld + 3, wrong = 0;
    if (act == HS_F32)
        ((float *)d.a.q.p)[at] = NAN;
    else
        ((uint16_t *)d.a.q.p)[at] = 0x7fc0;
    hs_cpu_attention(&dev, &d.a);
    for (int64_t i = 0; i < s.len_q; i++)
        for (int c = 0; c < s.head_dim; c++) wrong += isnan(out_at(&d, act, i * d.ld + c)) != (i == 7);
    if (wrong) printf("FAIL %s: NaN in row 7, %lld values wrong\n", isa_name[isa], (long long)wrong);
    hs_cpu_attention_done(&dev);
    data_free(&d);
    return !wrong;
}

static int check(enum isa isa) {
    static const int64_t lens[] = {1, 2, 7, 15, 16, 17, 31, 33, 64, 100, 127, 128, 129, 200, 255, 257, 300};
    static const int dims[] = {32, 64, 96, 128, 384};
    int bad = 0, cases = 0;
    for (int t = 0; t < 2; t++) {
        hs_dtype act = t ? HS_BF16 : HS_F32;
        if (act == HS_F32 && isa >= AVX512_BF16) continue; /* fp32 never runs on bf16 units */
        bad += !check_nan(isa, act), cases++;
        int n = sizeof(lens) / sizeof(*lens);
        for (int i = 0; i < n; i++) {
            shape s = {lens[i], lens[(i * 7 + 3) % n], 1 + i % 3, dims[i % 5], 8 * (i % 4), 1, 0, 0, 0};
            bad += !check_case(isa, act, &s), cases++;
            s.len_q = lens[(i * 5 + 1) % n];
            s.len_k = lens[i];
            s.bias = i & 1;
            s.bonus = i & 2 ? 6.2f : 0;
            s.spread = i & 4 ? 20 : 1; /* +-60 */
            bad += !check_case(isa, act, &s), cases++;
        }
        static const shape odd[] = {
            {70, 130, 2, 8, 3, 1, 0, 0, 0},
            {70, 130, 2, 40, 0, 1, 0, 0, 0},
            {33, 65, 1, 13, 1, 1, 0, 2, 1},
            {40, 300, 2, 64, 0, 1, 0, 3, 1},
            {20, 40, 1, 512, 0, 1, 0, 0, 0},
            {20, 40, 1, 1000, 0, 1, 0, 0, 0},
            {64, 200, 2, 64, 8, 1, -1e4f, 0, 0},
            {64, 200, 2, 128, 8, 1, 1e4f, 0, 1},
            {300, 1, 3, 128, 0, 1, 0, 5, 0},
            {130, 300, 1, 128, 0, 60, 0, 0, 0},
            /* more keys, more heads than HS_ATTN_PACK_WORDS = 1 << 18 has room for */
            {150, 300, 1, 1000, 0, 1, 0, 2, 0},
            {10, 300, 5, 384, 0, 1, 0, 2, 0},
        };
        for (size_t i = 0; i < sizeof(odd) / sizeof(*odd); i++) bad += !check_case(isa, act, &odd[i]), cases++;
    }
    printf("%-10s %d cases, %d failed\n", isa_name[isa], cases, bad);
    return bad;
}

/* ---- speed ------------------------------------------------------------------------------------------------------ */

/* --cpu-time: what this process computed, shared out over its threads. Unlike the clock it leaves out what other
 * programs took; it is the clock's time where they are absent and the threads equally busy. OMP_WAIT_POLICY=passive, or
 * waiting counts as well. */
static int cpu_time;

static double seconds_of(int threads) {
    struct timespec t;
    if (!cpu_time) return hs_seconds();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / threads;
}

/* Independent multiply-adds on registers: what the processor can do at best, FLOP/s of one thread. */
#if defined(__x86_64__)
#define PEAK(name, target_, vec, count, init, op, flops)                                                               \
    static __attribute__((target(target_), noinline)) double name(void) {                                              \
        vec acc[count];                                                                                                \
        for (int i = 0; i < count; i++) acc[i] = init;                                                                 \
        double best = 0;                                                                                               \
        for (int rep = 0; rep < 5; rep++) {                                                                            \
            double t = seconds_of(1);                                                                                  \
            for (int n = 0; n < 2000000; n++) {                                                                        \
                UNROLL_PEAK for (int i = 0; i < count; i++) {                                                          \
                    op;                                                                                                \
                }                                                                                                      \
                __asm__ volatile("" : : "v"(acc[0])); /* nothing is hoisted */                                         \
            }                                                                                                          \
            t = 2e6 * count * (flops) / (seconds_of(1) - t);                                                           \
            if (t > best) best = t;                                                                                    \
        }                                                                                                              \
        for (int i = 0; i < count; i++) __asm__ volatile("" : : "v"(acc[i]));                                          \
        return best;                                                                                                   \
    }
#if defined(__clang__)
#define UNROLL_PEAK _Pragma("clang loop unroll(full)")
#else
#define UNROLL_PEAK _Pragma("GCC unroll 24")
#endif
PEAK(peak_avx2, "avx2,fma", __m256, 12, _mm256_setzero_ps(),
     acc[i] = _mm256_fmadd_ps(_mm256_set1_ps(1e-3f), _mm256_set1_ps(1), acc[i]), 16)
PEAK(peak_avx512, "avx512f", __m512, 24, _mm512_setzero_ps(),
     acc[i] = _mm512_fmadd_ps(_mm512_set1_ps(1e-3f), _mm512_set1_ps(1), acc[i]), 32)
PEAK(peak_bf16, "avx512f,avx512bf16", __m512, 24, _mm512_setzero_ps(),
     acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)_mm512_set1_epi32(0x3c003c00),
                               (__m512bh)_mm512_set1_epi32(0x3c003c00)),
     64)
#if !defined(HS_ATTN_AMX_EMULATE)
static __attribute__((target("amx-tile,amx-bf16"), noinline)) double peak_amx(void) {
    static const uint8_t config[64] = {1,         [16] = 64, [18] = 64, [20] = 64, [22] = 64, [24] = 64,
                                       [26] = 64, [28] = 64, [30] = 64, [48] = 16, 16,        16,
                                       16,        16,        16,        16,        16};
    double best = 0;
    _tile_loadconfig(config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int rep = 0; rep < 5; rep++) {
        double t = seconds_of(1);
        for (int n = 0; n < 500000; n++) {
            _tile_dpbf16ps(0, 4, 5);
            _tile_dpbf16ps(1, 4, 5);
            _tile_dpbf16ps(2, 4, 5);
            _tile_dpbf16ps(3, 4, 5);
        }
        t = 5e5 * 4 * 16 * 16 * 32 * 2 / (seconds_of(1) - t);
        if (t > best) best = t;
    }
    _tile_release();
    return best;
}
#endif
#endif

static double peak(enum isa isa, hs_dtype act) {
#if defined(__x86_64__)
#if !defined(HS_ATTN_AMX_EMULATE)
    if (isa == AMX && act == HS_BF16) return peak_amx();
#endif
    if (isa >= AVX512_BF16 && act == HS_BF16) return peak_bf16();
    if (isa >= AVX512) return peak_avx512();
    if (isa == AVX2) return peak_avx2();
#endif
    return 0;
}

static int by_value(const void *x, const void *y) {
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static void bench(enum isa isa, hs_dtype act, int threads, double seconds, const char *only) {
    static const struct {
        const char *what;
        shape s;
    } table[] = {
        {"self-attention", {2304, 2304, 3, 128, 768, 1, 0, 0, 0}},
        {"four times as long", {9216, 9216, 1, 128, 0, 1, 0, 0, 0}},
        {"cross-attention", {2304, 20, 3, 128, 0, 1, 0, 6, 0}},
        {"VAE, 96", {1024, 1024, 1, 96, 192, 1, 0, 0, 0}},
        {"VAE, 384", {1024, 1024, 1, 384, 768, 1, 0, 0, 0}},
        {"text", {128, 128, 4, 64, 512, 1, 0, 0, 1}},
        {"text, longest", {512, 512, 4, 64, 512, 1, 0, 0, 1}},
    };
    double top = peak(isa, act);
    printf("%s %s, %d threads; peak of one thread %.0f GFLOP/s\n", isa_name[isa], act == HS_F32 ? "f32" : "bf16",
           threads, top * 1e-9);
    hs_cpu cpu;
    hs_device dev;
    if (device_open(isa, act, threads, &cpu, &dev)) exit(1);
    for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
        if (!strstr(table[i].what, only)) continue;
        data d = data_new(&table[i].s, act);
        enum { MOST = 1000 };
        double t[MOST], total = 0;
        int n = 0;
        hs_cpu_attention(&dev, &d.a);
        while (n < MOST && (n < 5 || total < seconds)) {
            double begin = seconds_of(threads);
            hs_cpu_attention(&dev, &d.a);
            total += t[n++] = seconds_of(threads) - begin;
        }
        qsort(t, (size_t)n, sizeof(*t), by_value);
        const shape *s = &table[i].s;
        double flops = 4.0 * (double)s->len_q * (double)s->len_k * s->heads * s->head_dim;
        printf("  %-20s %5lld x %5lld  %d x %3d  %9.3f ms  %7.1f GFLOP/s  %3.0f %% of peak  (best %.3f, n %d)\n",
               table[i].what, (long long)s->len_q, (long long)s->len_k, s->heads, s->head_dim, t[n / 2] * 1e3,
               flops / t[n / 2] * 1e-9, top > 0 ? 100 * flops / t[n / 2] / (top * threads) : 0, t[0] * 1e3, n);
        data_free(&d);
    }
    hs_cpu_attention_done(&dev);
}

int main(int argc, char **argv) {
    const char *list = NULL, *only = "";
    int threads = 2, do_check = 1, do_bench = 1;
    double seconds = 0.5;
    for (int i = 1; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(argv[i], "--check")) {
            do_bench = 0;
        } else if (!strcmp(argv[i], "--bench")) {
            do_check = 0;
        } else if (!strcmp(argv[i], "--cpu-time")) {
            cpu_time = 1;
        } else if (!strcmp(argv[i], "--isa") && next) {
            list = argv[++i];
        } else if (!strcmp(argv[i], "--shape") && next) {
            only = argv[++i];
        } else if (!strcmp(argv[i], "--threads") && next && atoi(next) > 0) {
            threads = atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--seconds") && next && atof(next) > 0) {
            seconds = atof(argv[++i]);
        } else {
            fprintf(stderr,
                    "attention_bench: %s: expected [--isa amx,avx512bf16,avx512,avx2,portable] [--threads N] "
                    "[--check | --bench] [--seconds S] [--shape TEXT] [--cpu-time]\n",
                    argv[i]);
            return 2;
        }
    }
    int bad = 0, ran = 0;
    for (int i = ISAS - 1; i >= 0; i--) {
        if (list) {
            size_t n = strlen(isa_name[i]);
            const char *at = list;
            while (at && (strncmp(at, isa_name[i], n) || (at[n] && at[n] != ',')))
                at = (at = strchr(at, ',')) ? at + 1 : 0;
            if (!at) continue;
        }
        if (!isa_present((enum isa)i)) {
            printf("%-10s not on this processor\n", isa_name[i]);
            continue;
        }
        ran++;
        if (do_check) bad += check((enum isa)i);
        if (do_bench && i < AVX512_BF16) bench((enum isa)i, HS_F32, threads, seconds, only);
        if (do_bench) bench((enum isa)i, HS_BF16, threads, seconds, only);
    }
    return bad ? 1 : ran ? 0 : 77;
}
