/* base.c: messages, counted memory, number formats over all their values, torch's random numbers, small files. */
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <pthread.h>
#include <sys/stat.h>

TestSuite(base, .fini = scratch_remove);

Test(base, fail_sets_code_and_message) {
    hs_err e = {0};
    cr_assert_eq(hs_fail(&e, HS_EFORMAT, "file %s has %d", "a", 3), HS_EFORMAT);
    cr_assert_eq(e.code, HS_EFORMAT);
    cr_assert_str_eq(e.msg, "file a has 3");
    cr_assert_eq(hs_fail_ctx(&e, HS_EIO, "model %d", 7), HS_EFORMAT);
    cr_assert_str_eq(e.msg, "model 7: file a has 3");
    hs_fail(&e, HS_EIO, "again: %s", e.msg);
    cr_assert_str_eq(e.msg, "again: model 7: file a has 3");
    cr_assert_eq(hs_fail(NULL, HS_EINTR, "nobody listens"), HS_EINTR);
    cr_assert_eq(hs_fail_ctx(NULL, HS_EINTR, "nobody listens"), HS_EINTR);
}

Test(base, messages_carry_no_terminal_escapes) {
    hs_err e;
    hs_fail(&e, HS_EFORMAT, "tensor '%s'", "\x1b[31mred\r\x7f");
    cr_assert_str_eq(e.msg, "tensor '?[31mred?"
                            "?'");
}

Test(base, long_messages_are_cut_between_characters) {
    char text[2000] = "";
    for (int i = 0; i < 600; i++) strcat(text, "é");
    hs_err e;
    hs_fail(&e, HS_EFORMAT, "x%s", text);
    cr_assert_eq(strlen(e.msg), 511); /* x, then 255 characters of two bytes */
    cr_assert_eq((unsigned char)e.msg[510], 0xa9);
    hs_fail(&e, HS_EFORMAT, "%s", text);
    cr_assert_eq(strlen(e.msg), 510, "half a character at the end: %zu", strlen(e.msg));
    hs_fail_ctx(&e, HS_EFORMAT, "%s", text);
    cr_assert_eq(strlen(e.msg), 510);
}

static char logged[64];
static void log_hook(void *user, enum hs_log_level level, const char *msg) {
    snprintf(logged, sizeof(logged), "%s%d %s", (const char *)user, (int)level, msg);
}

Test(base, log_goes_to_the_hook_or_nowhere) {
    hs_log(HS_LOG_ERROR, "silent");
    hs_log_set(log_hook, "u");
    hs_log(HS_LOG_WARN, "n = %d", 5);
    cr_assert_str_eq(logged, "u1 n = 5");
    hs_log_set(NULL, NULL);
    hs_log(HS_LOG_INFO, "silent again");
    cr_assert_str_eq(logged, "u1 n = 5");
}

Test(base, memory_is_aligned_and_counted) {
    int64_t live = hs_alloc_live(), peak = hs_alloc_peak_bytes();
    void *p[40];
    for (size_t i = 0; i < 40; i++) {
        p[i] = hs_alloc(i * 37);
        cr_assert_not_null(p[i]);
        cr_assert_eq((uintptr_t)p[i] % 64, 0);
        memset(p[i], 0xee, i * 37);
    }
    cr_assert_eq(hs_alloc_live(), live + 40);
    for (int i = 0; i < 40; i++) hs_free(p[i]);
    hs_free(NULL);
    cr_assert_eq(hs_alloc_live(), live);
    cr_assert_eq(hs_alloc_peak_bytes(), peak + 37 * 39 * 40 / 2);

    unsigned char *z = hs_calloc(100, 3);
    for (int i = 0; i < 300; i++) cr_assert_eq(z[i], 0);
    hs_free(z);
    cr_assert_null(hs_calloc(SIZE_MAX / 4 + 2, 4), "4 bytes, if the product wrapped");
    cr_assert_null(hs_alloc(SIZE_MAX - 10));
    char *s = hs_strdup("copy");
    cr_assert_str_eq(s, "copy");
    hs_free(s);
}

Test(base, guard_and_failing_allocations) {
    hs_alloc_fail_at(2);
    void *a = hs_alloc(8), *b = hs_alloc(8), *c = hs_alloc(8);
    cr_assert(a && !b && c);
    hs_free(a);
    hs_free(c);
    hs_guard_begin();
    cr_assert_null(hs_alloc(8));
    cr_assert_null(hs_calloc(1, 8));
    cr_assert_eq(hs_guard_end(), 2);
    hs_guard_begin();
    cr_assert_eq(hs_guard_end(), 0);
    a = hs_alloc(8);
    cr_assert_not_null(a);
    hs_free(a);
}

static void *churn(void *arg) {
    (void)arg;
    for (int i = 0; i < 20000; i++) hs_free(hs_alloc(100));
    return NULL;
}

Test(base, counters_hold_under_threads) {
    int64_t live = hs_alloc_live();
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, churn, NULL);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    cr_assert_eq(hs_alloc_live(), live);
    cr_assert_leq(hs_alloc_peak_bytes(), 400);
}

Test(base, products_are_checked) {
    int64_t r = 5;
    cr_assert_eq(hs_mul(3, 4, &r), 0);
    cr_assert_eq(r, 12);
    cr_assert_eq(hs_mul(INT64_MAX, 1, &r), 0);
    cr_assert_eq(hs_mul(INT64_MAX, 0, &r), 0);
    cr_assert_eq(r, 0);
    cr_assert_eq(hs_mul(1ll << 32, 1ll << 31, &r), HS_EINVAL);
    cr_assert_eq(hs_mul(-1, 3, &r), HS_EINVAL);
    cr_assert_eq(hs_mul(3, -1, &r), HS_EINVAL);
    cr_assert_eq(r, 0, "untouched on failure");
}

/* From the definition: sign, 5 bits exponent with bias 15, 10 bits fraction. */
static double half_value(unsigned h) {
    unsigned e = h >> 10 & 31, m = h & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e ? ldexp(1024 + m, (int)e - 25) : ldexp(m, -24);
    return h & 0x8000 ? -v : v;
}

Test(base, every_half_is_exact_and_comes_back) {
    for (unsigned h = 0; h < 65536; h++) {
        double want = half_value(h);
        float got = hs_f16_to_f32((uint16_t)h);
        if (isnan(want)) {
            cr_assert(isnan(got) && isnan(hs_f16_to_f32(hs_f32_to_f16(got))));
        } else {
            cr_assert(got == (float)want && !signbit(got) == !signbit(want), "%04x: %g, expected %g", h, got, want);
            cr_assert_eq(hs_f32_to_f16(got), h);
        }
    }
}

Test(base, floats_round_to_the_nearest_half_ties_to_even) {
    for (unsigned h = 0; h < 0x7bff; h++) { /* between each half and the next */
        float lo = (float)half_value(h), hi = (float)half_value(h + 1), mid = (lo + hi) / 2;
        cr_assert_eq(hs_f32_to_f16(mid), h + (h & 1), "tie above %04x", h);
        cr_assert_eq(hs_f32_to_f16(nextafterf(mid, 0)), h);
        cr_assert_eq(hs_f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
        cr_assert_eq(hs_f32_to_f16(-nextafterf(mid, INFINITY)), 0x8000u | (h + 1));
    }
    cr_assert_eq(hs_f32_to_f16(65519.996f), 0x7bff);
    cr_assert_eq(hs_f32_to_f16(65520), 0x7c00);
    cr_assert_eq(hs_f32_to_f16(1e30f), 0x7c00);
    cr_assert_eq(hs_f32_to_f16(-INFINITY), 0xfc00);
    cr_assert_eq(hs_f32_to_f16(1e-30f), 0);
}

Test(base, bfloat16_rounds_to_even_and_keeps_nan) {
    for (uint32_t b = 0; b < 65536; b++) {
        float f = hs_bf16_to_f32((uint16_t)b);
        if (isnan(f))
            cr_assert(isnan(hs_bf16_to_f32(hs_f32_to_bf16(f))));
        else
            cr_assert_eq(hs_f32_to_bf16(f), b);
    }
    cr_assert_eq(hs_f32_to_bf16(1.00390625f), 0x3f80); /* 1 + 2^-8: tie, down to even */
    cr_assert_eq(hs_f32_to_bf16(1.01171875f), 0x3f82); /* 1 + 3 * 2^-8: tie, up to even */
    cr_assert_eq(hs_f32_to_bf16(3.4e38f), 0x7f80);
}

Test(base, arrays_convert_from_any_alignment) {
    enum { N = 67 };
    unsigned char raw[4 * N + 1];
    float want[N], got[N];
    for (int i = 0; i < N; i++) want[i] = (float)(i - 30) * 0.25f;
    static const hs_dtype types[] = {HS_F32, HS_BF16, HS_F16};
    for (int t = 0; t < 3; t++) {
        unsigned char aligned[4 * N];
        hs_from_f32(aligned, types[t], want, N);
        memcpy(raw + 1, aligned, N * hs_dtype_size(types[t]));
        memset(got, 0, sizeof(got));
        hs_to_f32(got, raw + 1, types[t], N);
        cr_assert_arr_eq(got, want, sizeof(want), "%s", hs_dtype_name(types[t]));
    }
    int32_t ints[3] = {-5, 0, 1 << 20};
    hs_to_f32(got, ints, HS_I32, 3);
    cr_assert(got[0] == -5 && got[1] == 0 && got[2] == 1048576);
    unsigned char bytes[2] = {0, 255};
    hs_to_f32(got, bytes, HS_U8, 2);
    cr_assert(got[0] == 0 && got[1] == 255);
    /* OCP 8-bit: largest 448, smallest normal 2^-6, smallest subnormal 2^-9, NaN */
    unsigned char f8[7] = {0x7e, 0x08, 0x01, 0x38, 0xb8, 0x7f, 0x80};
    hs_to_f32(got, f8, HS_F8_E4M3, 7);
    cr_assert(got[0] == 448 && got[1] == 0x1p-6f && got[2] == 0x1p-9f && got[3] == 1 && got[4] == -1 && isnan(got[5]));
    cr_assert(got[6] == 0 && signbit(got[6]));
}

/* torch 2.x, CPU: torch.manual_seed(seed); torch.randn(n) */
Test(base, random_numbers_are_those_of_torch) {
    static const struct {
        uint64_t seed;
        int n, at;
        float want[4];
    } cases[] = {
        {42ull, 3, 0, {0.336690366f, 0.128809407f, 0.234462366f}}, /* below 16: double precision, pairs */
        {0ull, 15, 11, {0.182036489f, -0.856674612f, 1.10060418f, -1.07118738f}},
        {42ull, 16, 0, {1.92691529f, 1.48728406f, 0.900717199f, -2.10552096f}},
        {42ull, 16, 8, {-0.752135277f, 1.64872301f, -0.392478645f, -1.40360713f}},
        {42ull, 17, 13, {0.041759491f, -0.251575291f, 0.859858513f, -0.309726775f}},
        {0ull, 32, 28, {1.38936615f, 1.58633423f, 0.946298361f, -0.843676746f}},
        {1ull, 100, 84, {1.38514566f, -0.813846231f, -0.927576542f, 1.11196327f}},
        {1ull, 100, 96, {-0.101034768f, 0.343353748f, -1.07027781f, -0.874263167f}},
        {4294967303ull, 20, 0, {-0.820134521f, 0.395631164f, 0.898908496f, -1.38840389f}},
        {18446744073709551615ull, 40, 36, {-0.119139455f, -1.13509023f, -0.216693997f, 0.182111442f}},
    };
    for (size_t c = 0; c < sizeof(cases) / sizeof(*cases); c++) {
        float x[100];
        hs_randn(cases[c].seed, x, cases[c].n);
        for (int i = 0; i < 4 && cases[c].at + i < cases[c].n; i++)
            cr_assert_float_eq(x[cases[c].at + i], cases[c].want[i], 1e-6, "seed %llu, n %d, value %d: %.8g",
                               (unsigned long long)cases[c].seed, cases[c].n, cases[c].at + i, x[cases[c].at + i]);
    }
}

Test(base, random_numbers_are_normal) {
    enum { N = 160000 };
    float *x = hs_alloc(N * sizeof(float));
    hs_randn(7, x, N);
    double m = 0, v = 0;
    for (int i = 0; i < N; i++) m += x[i] / N;
    for (int i = 0; i < N; i++) v += (x[i] - m) * (x[i] - m) / N;
    hs_free(x);
    cr_assert_float_eq(m, 0, 0.01);
    cr_assert_float_eq(v, 1, 0.015);
}

Test(base, hash_is_splitmix) {
    cr_assert_eq(hs_hash64(0), 0xe220a8397b1dcdafull); /* first output of splitmix64 with seed 0 */
}

Test(base, small_files) {
    hs_err e;
    char *text = NULL;
    size_t len = 99;
    write_file(scratch("a"),
               "12\0"
               "345",
               6);
    cr_assert_eq(hs_file_read(scratch("a"), 6, &text, &len, &e), 0);
    cr_assert_eq(len, 6);
    cr_assert_arr_eq(text,
                     "12\0"
                     "345",
                     7);
    hs_free(text);
    text = NULL;
    cr_assert_eq(hs_file_read(scratch("a"), 5, &text, &len, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "6 bytes, expected at most 5"), "%s", e.msg);
    cr_assert_eq(hs_file_read(scratch("none"), 5, &text, &len, &e), HS_EIO);
    cr_assert(strstr(e.msg, "No such file"), "%s", e.msg);
    cr_assert_eq(hs_file_read(scratch("."), 5, &text, &len, &e), HS_EIO);
    cr_assert(strstr(e.msg, "not a regular file"), "%s", e.msg);
    cr_assert(!text && len == 6, "untouched on failure");
    write_file(scratch("empty"), "", 0);
    cr_assert_eq(hs_file_read(scratch("empty"), 0, &text, NULL, &e), 0);
    cr_assert_str_empty(text);
    hs_free(text);
    char *p = hs_path_join("d/e", "f");
    cr_assert_str_eq(p, "d/e/f");
    hs_free(p);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(base, wide_copies) {
    enum { MOST = 3 * (128 << 10) + 5 };
    char *from = hs_alloc(MOST + 1), *to = hs_alloc(MOST + 2);
    for (int i = 0; i < MOST; i++) from[i + 1] = (char)(i ^ i >> 7);
    static const size_t bytes[] = {0, 1, 128 << 10, (128 << 10) + 1, MOST};
    for (int k = 0; k < 5; k++)
        for (int threads = 1; threads <= 3; threads++) {
            memset(to, 42, MOST + 2);
            hs_copy_wide(to + 1, from + 1, bytes[k], threads);
            cr_assert(!memcmp(to + 1, from + 1, bytes[k]));
            cr_assert(to[0] == 42 && to[bytes[k] + 1] == 42, "%zu bytes by %d threads", bytes[k], threads);
        }
    hs_free(from);
    hs_free(to);
    cr_assert_geq(hs_host_threads(), 1);
}

Test(base, clocks_move) {
    double t = hs_seconds();
    cr_assert_gt(t, 0);
    cr_assert_geq(hs_seconds(), t);
    cr_assert_gt(hs_peak_rss(), 1 << 20);
}
