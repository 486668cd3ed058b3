/* safetensors.c: headers that must be refused and why, sets of shards, look-up, the writer, failing memory. */
#include "util.h"
#include "safetensors.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <glob.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(safetensors, .fini = scratch_remove);

/* [2,3] F32 in bytes 0..24, [4] BF16 in 24..32 */
#define TWO                                                                                                            \
    "{\"__metadata__\":{\"format\":\"pt\",\"by\":\"a \\u00e9\\n\"},"                                                   \
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"                                               \
    "\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}"

Test(safetensors, a_good_file) {
    hs_st *st = NULL;
    hs_err e;
    write_tensors(scratch("m"), TWO, 32);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 2);
    cr_assert_eq(hs_st_bytes(st), 32);
    cr_assert_str_eq(hs_st_at(st, 0)->name, "a");
    cr_assert_str_eq(hs_st_at(st, 1)->name, "b");
    cr_assert_str_eq(hs_st_metadata(st, "format"), "pt");
    cr_assert_str_eq(hs_st_metadata(st, "by"), "a \xc3\xa9\n");
    cr_assert_null(hs_st_metadata(st, "none"));

    const hs_st_tensor *t = hs_st_unused(st);
    cr_assert_str_eq(t->name, "a");
    cr_assert_null(hs_st_find(st, "c"));
    cr_assert_eq(hs_st_get(st, "a", 1, (int64_t[]){4}, &t, &e), 0);
    cr_assert(t->dtype == HS_BF16 && t->ndim == 1 && t->numel == 4);
    cr_assert_eq(*(const unsigned char *)t->data, 24);
    cr_assert_str_eq(hs_st_unused(st)->name, "b");
    cr_assert_eq(hs_st_get(st, "b", 2, (int64_t[]){-1, 3}, &t, &e), 0);
    cr_assert_eq(t->numel, 6);
    cr_assert_eq(*(const unsigned char *)t->data, 0);
    cr_assert_str_eq(t->file, scratch("m"));
    cr_assert_null(hs_st_unused(st));
    hs_st_close(st);
    hs_st_close(NULL);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(safetensors, getting_says_what_is_wrong) {
    hs_st *st;
    hs_err e;
    const hs_st_tensor *t = NULL;
    write_tensors(scratch("m"),
                  "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                  "\"i\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[24,32]}}",
                  32);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_get(st, "x", 1, (int64_t[]){4}, &t, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "tensor 'x' is missing") && strstr(e.msg, scratch("m")), "%s", e.msg);
    cr_assert_eq(hs_st_get(st, "b", 2, (int64_t[]){3, 2}, &t, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "shape [2,3], expected [3,2]"), "%s", e.msg);
    cr_assert_eq(hs_st_get(st, "b", 1, (int64_t[]){6}, &t, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "shape [2,3], expected [6]"), "%s", e.msg);
    cr_assert_eq(hs_st_get(st, "i", 1, (int64_t[]){2}, &t, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "is I32, expected a floating point type"), "%s", e.msg);
    cr_assert_null(t, "untouched on failure");
    hs_st_close(st);
}

#define T(dtype, shape, offsets) "{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define U(name, b, e)            "\"" name "\":{\"dtype\":\"U8\",\"shape\":[" #e "],\"data_offsets\":[" #b "," #e "]}"

Test(safetensors, bad_headers_are_refused) {
    static const struct {
        const char *what, *header, *message;
    } cases[] = {
        {"not JSON", "{\"t\":", "not valid JSON"},
        {"empty header", "", "not valid JSON"},
        {"no object", "[]", "not a JSON object"},
        {"bytes after it", "{} {}", "bytes after the end"},
        {"tensor is no object", "{\"t\":3}", "'t' of the header is not an object"},
        {"another 8-bit type", T("\"F8_E5M2\"", "[8]", "[0,8]"), "F8_E4M3: use the fp8_e4m3fn, fp16 or bf16 file"},
        {"unknown dtype", T("\"I64\"", "[1]", "[0,8]"), "'t' has dtype I64, expected one of F32"},
        {"no dtype", "{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", "dtype (none)"},
        {"number as dtype", T("3", "[1]", "[0,4]"), "dtype (none)"},
        {"no shape", "{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "has no shape"},
        {"shape no array", T("\"F32\"", "{\"a\":1}", "[0,4]"), "has no shape"},
        {"negative size", T("\"F32\"", "[-1]", "[0,4]"), "dimension 0 is not a size"},
        {"fraction of a size", T("\"F32\"", "[1,0.5]", "[0,4]"), "dimension 1 is not a size"},
        {"size beyond 2^53", T("\"F32\"", "[18014398509481984]", "[0,4]"), "is not a size"},
        {"size of 1e999", T("\"F32\"", "[1e999]", "[0,4]"), "is not a size"},
        {"product overflows", T("\"F32\"", "[4294967296,4294967296]", "[0,4]"), "dimension 1 is not a size"},
        {"bytes overflow", T("\"F32\"", "[4503599627370496,2000]", "[0,4]"), "does not fill"},
        {"seven dimensions", T("\"F32\"", "[1,1,1,1,1,1,1]", "[0,4]"), "more than 6 dimensions"},
        {"no offsets", "{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", "not two ascending integers"},
        {"one offset", T("\"F32\"", "[1]", "[0]"), "not two ascending integers"},
        {"three offsets", T("\"F32\"", "[1]", "[0,4,8]"), "not two ascending integers"},
        {"offsets as object", T("\"F32\"", "[1]", "{\"a\":0,\"b\":4}"), "not two ascending integers"},
        {"offsets descend", T("\"F32\"", "[1]", "[8,4]"), "not two ascending integers"},
        {"fraction of an offset", T("\"F32\"", "[1]", "[0.5,4.5]"), "not two ascending integers"},
        {"negative offset", T("\"F32\"", "[1]", "[-4,0]"), "not two ascending integers"},
        {"text as offset", T("\"F32\"", "[1]", "[\"0\",4]"), "not two ascending integers"},
        {"too few bytes", T("\"F32\"", "[2]", "[0,4]"), "[2] F32 does not fill its 4 bytes"},
        {"too many bytes", T("\"F32\"", "[1]", "[0,8]"), "[1] F32 does not fill its 8 bytes"},
        {"ends behind the file", T("\"F32\"", "[16]", "[0,64]"), "'t' ends at byte"},
        {"far behind the file", T("\"U8\"", "[4]", "[9007199254740988,9007199254740992]"), "'t' ends at byte"},
        {"overlap", "{" U("a", 0, 8) ",\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[7,15]}}",
         "'a' and 'b' overlap at byte 7"},
        {"the same bytes", "{" U("a", 0, 8) "," U("b", 0, 8) "}", "overlap at byte 0"},
        {"a name twice", "{" U("a", 0, 4) ",\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[4,5]}}",
         "'a' is given twice"},
        {"a key twice", "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}",
         "'shape' is given twice"},
        {"unknown key", "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"scale\":2}}",
         "unknown key 'scale'"},
        {"NUL in a name", "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "NUL character"},
        {"control character in a name", "{\"a\nb\":{}}", "control character"},
        {"invalid UTF-8 in a name", "{\"a\xc3(\":{}}", "invalid UTF-8"},
        {"half a surrogate", "{\"\\ud800\":{}}", "not valid JSON"},
        {"leading zero", T("\"F32\"", "[01]", "[0,4]"), "malformed number"},
        {"hexadecimal", T("\"F32\"", "[0x1]", "[0,4]"), "not valid JSON"},
        {"deep nesting", "{\"t\":[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}", "nested too deeply"},
        {"metadata no object", "{\"__metadata__\":[]}", "__metadata__ is not an object"},
        {"metadata no text", "{\"__metadata__\":{\"a\":1}}", "__metadata__ 'a' is not a string"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        hs_st *st = NULL;
        hs_err e = {0};
        write_tensors(scratch("m"), cases[i].header, 32);
        int rc = hs_st_open(scratch("m"), &st, &e);
        cr_assert_eq(rc, HS_EFORMAT, "%s: code %d", cases[i].what, rc);
        cr_assert_null(st);
        cr_assert(strstr(e.msg, cases[i].message), "%s: \"%s\" lacks \"%s\"", cases[i].what, e.msg, cases[i].message);
        cr_assert(strstr(e.msg, scratch("m")), "%s: \"%s\" does not name the file", cases[i].what, e.msg);
        cr_assert_eq(hs_alloc_live(), 0, "%s: memory leaked", cases[i].what);
    }
}

Test(safetensors, unusual_headers_that_are_right) {
    static const char *const good[] = {
        "{}",
        "{}   \n ",
        T("\"F32\"", "[]", "[0,4]"),
        T("\"F32\"", "[0,3]", "[8,8]"),
        T("\"F8_E4M3\"", "[32]", "[0,32]"),
        T("\"F32\"", "[1e0]", "[0,4.0]"),
        T("\"F16\"", "[1]", "[30,32]"),
        "{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        "{" U("z", 0, 0) "," U("y", 0, 0) "," U("x", 0, 5) "}",
        "{\"__metadata__\":{}}",
    };
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        hs_st *st;
        hs_err e = {0};
        write_tensors(scratch("m"), good[i], 32);
        cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s: %s", good[i], e.msg);
        hs_st_close(st);
    }
}

Test(safetensors, bad_files) {
    hs_st *st = NULL;
    hs_err e;
    static const unsigned char too_long[16] = {9}, huge[16] = {255, 255, 255, 255, 255, 255, 255, 255},
                               over_limit[16] = {0x01, 0xe1, 0xf5, 0x05};
    cr_assert_eq(hs_st_open(scratch("none"), &st, &e), HS_EIO);
    cr_assert(strstr(e.msg, "No such file"), "%s", e.msg);
    write_file(scratch("m"), "", 0);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "0 bytes: too short"), "%s", e.msg);
    write_file(scratch("m"), "1234567", 7);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), HS_EFORMAT);
    write_file(scratch("m"), too_long, 16);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "header length 9, but the file has 16 bytes"), "%s", e.msg);
    write_file(scratch("m"), huge, 16);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "is neither a safetensors file") && strstr(e.msg, "18446744073709551615"), "%s", e.msg);
    make_dir(scratch("d"));
    cr_assert_eq(hs_st_open(scratch("d"), &st, &e), HS_EIO);
    /* 100,000,001 bytes of header, and a file that would hold them */
    cr_assert_eq(hs_st_parse(over_limit, 16, 1ll << 40, "x", &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "at most 100000000"), "%s", e.msg);
    cr_assert_eq(hs_st_parse(too_long, 16, 1ll << 40, "x", &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "16 bytes given"), "%s", e.msg);
    cr_assert_eq(hs_st_parse(too_long, 16, -5, "x", &st, &e), HS_EFORMAT);
    cr_assert_null(st);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(safetensors, a_file_cut_anywhere_is_refused) {
    write_tensors(scratch("m"), TWO, 32);
    struct stat s;
    cr_assert(!stat(scratch("m"), &s));
    for (off_t n = s.st_size - 1; n >= 0; n--) {
        hs_st *st;
        hs_err e;
        cr_assert(!truncate(scratch("m"), n));
        cr_assert_eq(hs_st_open(scratch("m"), &st, &e), HS_EFORMAT, "cut to %lld bytes", (long long)n);
    }
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(safetensors, a_header_alone) {
    unsigned char head[8 + sizeof(TWO)] = {0};
    size_t n = strlen(TWO);
    head[0] = (unsigned char)n;
    memcpy(head + 8, TWO, n);
    hs_st *st;
    hs_err e;
    cr_assert_lt(n, 256);
    cr_assert_eq(hs_st_parse(head, 8 + n, 8 + (int64_t)n + 32, "x", &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 2);
    cr_assert_null(hs_st_find(st, "b")->data, "the data is not there");
    hs_st_close(st);
}

/* ---- shards ---------------------------------------------------------------------------------------------------- */

#define ONE(name)  "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"
#define INDEX(map) "{\"metadata\":{\"total_size\":16},\"weight_map\":{" map "}}"

static void two_shards(const char *index) {
    write_tensors(scratch("m-1.safetensors"), ONE("w.b"), 8);
    write_tensors(scratch("m-2.safetensors"), ONE("w.a"), 8);
    write_text(scratch("m.safetensors.index.json"), index);
}

Test(safetensors, shards_are_one_set) {
    hs_st *st;
    hs_err e;
    two_shards(INDEX("\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-1.safetensors\""));
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 2);
    cr_assert_eq(hs_st_bytes(st), 16);
    cr_assert(strstr(hs_st_find(st, "w.a")->file, "m-2.safetensors"));
    cr_assert(strstr(hs_st_find(st, "w.b")->file, "m-1.safetensors"));
    hs_st_close(st);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(safetensors, a_folder_without_index) {
    hs_st *st = NULL;
    hs_err e;
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), HS_EIO);
    cr_assert(strstr(e.msg, "m.safetensors.index.json"), "%s", e.msg);
    cr_assert_null(st);
    write_tensors(scratch("m.safetensors"), ONE("w"), 8);
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 1);
    hs_st_close(st);
    cr_assert_eq(hs_alloc_live(), 0);
}

/* As save_pretrained(variant="fp16") names it */
Test(safetensors, a_folder_with_the_index_of_a_variant) {
    hs_st *st = NULL;
    hs_err e;
    two_shards(INDEX("\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-1.safetensors\""));
    cr_assert(!rename(scratch("m.safetensors.index.json"), scratch("m.safetensors.index.fp16.json")));
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 2);
    hs_st_close(st);
    write_text(scratch("m.safetensors.index.bf16.json"), "");
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), HS_EINVAL);
    cr_assert(strstr(e.msg, "holds 2 variants") && strstr(e.msg, "keep the index of one"), "%s", e.msg);
    write_tensors(scratch("m.safetensors"), ONE("w"), 8); /* no variant: comes first */
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 1);
    hs_st_close(st);
}

Test(safetensors, index_and_shards_must_agree) {
    static const struct {
        const char *map, *message;
        int code;
    } cases[] = {
        {"\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-3.safetensors\"", "m-3.safetensors: No such file", HS_EIO},
        {"\"w.a\":\"m-2.safetensors\"", NULL, 0}, /* the other shard is nobody's */
        {"\"w.a\":\"m-2.safetensors\",\"w.c\":\"m-1.safetensors\"", "tensor 'w.b' of ", HS_EFORMAT},
        {"\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-1.safetensors\",\"w.c\":\"m-1.safetensors\"",
         "tensor 'w.c' is not in its shard m-1.safetensors", HS_EFORMAT},
        {"\"w.a\":\"m-1.safetensors\",\"w.b\":\"m-2.safetensors\"", "'w.a' should be in m-1.safetensors", HS_EFORMAT},
        {"\"w.a\":\"../m-2.safetensors\"", "expected the name of a file beside the index", HS_EFORMAT},
        {"\"w.a\":\"..\"", "expected the name of a file beside the index", HS_EFORMAT},
        {"\"w.a\":\"\"", "expected the name of a file beside the index", HS_EFORMAT},
        {"\"w.a\":7", "expected the name of a file beside the index", HS_EFORMAT},
        {"", "no weight_map", HS_EFORMAT},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char index[512];
        hs_st *st = NULL;
        hs_err e = {0};
        snprintf(index, sizeof(index), INDEX("%s"), cases[i].map);
        two_shards(index);
        int rc = hs_st_open_dir(scratch("."), "m", &st, &e);
        cr_assert_eq(rc, cases[i].code, "%s: %s", cases[i].map, e.msg);
        if (cases[i].message) cr_assert(strstr(e.msg, cases[i].message), "%s: \"%s\"", cases[i].map, e.msg);
        if (rc == HS_EIO) cr_assert(strstr(e.msg, "index.json names it: an incomplete download"), "%s", e.msg);
        hs_st_close(st);
        cr_assert_eq(hs_alloc_live(), 0);
    }
}

Test(safetensors, a_tensor_in_two_shards) {
    hs_st *st;
    hs_err e;
    two_shards(INDEX("\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-1.safetensors\""));
    write_tensors(scratch("m-1.safetensors"),
                  "{\"w.a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                  "\"w.b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                  8);
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "'w.a' is in ") && strstr(e.msg, "m-1.") && strstr(e.msg, "m-2."), "%s", e.msg);
    two_shards("{\"weight_map\":");
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), HS_EFORMAT);
    two_shards(INDEX("\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-1.safetensors\""));
    cr_assert(!truncate(scratch("m-2.safetensors"), 70));
    cr_assert_eq(hs_st_open_dir(scratch("."), "m", &st, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "m-2.safetensors") && strstr(e.msg, "truncated"), "%s", e.msg);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(safetensors, a_pipe_is_not_waited_for, .timeout = 10) {
    hs_st *st;
    hs_err e = {0};
    cr_assert(!mkfifo(scratch("pipe.safetensors"), 0600));
    cr_assert_eq(hs_st_open(scratch("pipe.safetensors"), &st, &e), HS_EIO);
    cr_assert(strstr(e.msg, "pipe.safetensors is not a regular file"), "%s", e.msg);
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

static const float values[6] = {1, -2, 3.5f, 0, 1e-20f, 7};
static const uint16_t halves[3] = {1, 2, 3};
static const hs_st_tensor pair[2] = {
    {.name = "z \"q\"", .dtype = HS_F32, .ndim = 2, .shape = {2, 3}, .numel = 6, .data = values},
    {.name = "a", .dtype = HS_BF16, .ndim = 1, .shape = {3}, .numel = 3, .data = halves},
};

static void expect_no_leftovers(int files) {
    glob_t g;
    int rc = glob(scratch("*"), 0, NULL, &g);
    cr_assert_eq(rc ? 0 : (int)g.gl_pathc, files, "files left behind");
    if (!rc) globfree(&g);
}

Test(safetensors, what_is_written_is_read) {
    hs_st *st;
    hs_err e;
    static const char *const meta[] = {"prompt", "a \"red\" circle\n\xe5\x9c\x86", "seed", "7", NULL};
    for (int i = 0; i < 2; i++) /* the second replaces the first */
        cr_assert_eq(hs_st_write(scratch("m"), 2, pair, meta, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 2);
    cr_assert_str_eq(hs_st_metadata(st, "prompt"), meta[1]);
    cr_assert_str_eq(hs_st_metadata(st, "seed"), "7");
    const hs_st_tensor *t;
    cr_assert_eq(hs_st_get(st, "z \"q\"", 2, (int64_t[]){2, 3}, &t, &e), 0);
    cr_assert_eq((uintptr_t)t->data % 8, 0, "data starts aligned");
    cr_assert_arr_eq(t->data, values, sizeof(values));
    cr_assert_arr_eq(hs_st_find(st, "a")->data, halves, sizeof(halves));
    hs_st_close(st);
    cr_assert_eq(hs_st_write(scratch("m"), 0, NULL, NULL, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    hs_st_close(st);
    expect_no_leftovers(1);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(safetensors, a_full_disk_keeps_the_old_file) {
    hs_err e;
    enum { N = 1 << 18 };
    float *big = hs_calloc(N, sizeof(float));
    hs_st_tensor t = {.name = "big", .dtype = HS_F32, .ndim = 1, .shape = {N}, .numel = N, .data = big};
    cr_assert_eq(hs_st_write(scratch("m"), 2, pair, NULL, &e), 0);
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = N; /* a quarter of what is needed */
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    cr_assert_eq(hs_st_write(scratch("m"), 1, &t, NULL, &e), HS_EIO);
    cr_assert(strstr(e.msg, scratch("m")) && strstr(e.msg, strerror(EFBIG)), "%s", e.msg);
    hs_free(big);
    hs_st *st;
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 2);
    hs_st_close(st);
    expect_no_leftovers(1);
}

Test(safetensors, places_that_cannot_be_written) {
    hs_err e;
    cr_assert_eq(hs_st_write(scratch("none/m"), 2, pair, NULL, &e), HS_EIO);
    cr_assert(strstr(e.msg, "none/m") && strstr(e.msg, "No such file"), "%s", e.msg);
    cr_assert(!mkfifo(scratch("pipe"), 0600)); /* a device would do, but not where root runs the tests */
    cr_assert_eq(hs_st_write(scratch("pipe"), 2, pair, NULL, &e), HS_EIO);
    cr_assert(strstr(e.msg, "not a regular file"), "%s", e.msg);
    make_dir(scratch("d"));
    cr_assert_eq(hs_st_write(scratch("d"), 2, pair, NULL, &e), HS_EIO);
    expect_no_leftovers(2);
    cr_assert_eq(hs_alloc_live(), 0);
}

/* ---- reading ahead --------------------------------------------------------------------------------------------- */

/* Forwards, backwards, the same again, pages given back meanwhile; closing does not wait for what was wanted. */
Test(safetensors, what_is_read_ahead_changes_nothing) {
    enum { TENSORS = 5, N = 1 << 20 };
    static const int order[] = {0, 1, 3, 2, 2, 4, 0};
    static const char *const name[TENSORS] = {"a", "b", "c", "d", "e"};
    hs_st_tensor t[TENSORS];
    hs_err e;
    int32_t *data = hs_alloc((size_t)TENSORS * N * 4);
    for (int i = 0; i < TENSORS * N; i++) data[i] = i;
    for (int i = 0; i < TENSORS; i++)
        t[i] = (hs_st_tensor){
            .name = name[i], .dtype = HS_I32, .ndim = 1, .shape = {N}, .numel = N, .data = data + (size_t)i * N};
    cr_assert_eq(hs_st_write(scratch("m"), TENSORS, t, NULL, &e), 0, "%s", e.msg);
    for (int times = 0; times < 20; times++) {
        hs_st *st;
        cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
        for (int k = 0; k < (times + 1) % 8; k++) {
            const hs_st_tensor *x = hs_st_at(st, order[k]);
            hs_st_expect(st, x);
            if (times % 2) cr_assert(!memcmp(x->data, t[order[k]].data, (size_t)N * 4));
            hs_st_release(st, x);
        }
        hs_st_close(st);
    }
    hs_free(data);
    cr_assert_eq(hs_alloc_live(), 0);
}

/* A file that another process makes shorter: the thread that reads ahead must not die of it. */
Test(safetensors, reading_ahead_survives_a_file_cut_short) {
    enum { N = 8 << 20 };
    hs_err e;
    hs_st *st;
    float *data = hs_calloc(N, sizeof *data);
    hs_st_tensor t = {.name = "a", .dtype = HS_F32, .ndim = 1, .shape = {N}, .numel = N, .data = data};
    cr_assert_eq(hs_st_write(scratch("m"), 1, &t, NULL, &e), 0, "%s", e.msg);
    hs_free(data);
    cr_assert_eq(hs_st_open(scratch("m"), &st, &e), 0, "%s", e.msg);
    cr_assert(!truncate(scratch("m"), 4096));
    hs_st_expect(st, hs_st_at(st, 0));
    usleep(100000); /* time for the thread to meet the end */
    hs_st_close(st);
}

/* ---- failing memory -------------------------------------------------------------------------------------------- */

static int open_and_close(void *arg, hs_err *err) {
    hs_st *st;
    int rc = hs_st_open_dir(arg, "m", &st, err);
    if (!rc) hs_st_close(st);
    return rc;
}

static int write_pair(void *arg, hs_err *err) {
    static const char *const meta[] = {"k", "v", NULL};
    return hs_st_write(arg, 2, pair, meta, err);
}

Test(safetensors, every_allocation_may_fail) {
    two_shards(INDEX("\"w.a\":\"m-2.safetensors\",\"w.b\":\"m-1.safetensors\""));
    cr_assert_geq(fail_allocations(open_and_close, (void *)scratch("."), "opening shards"), 40);
    cr_assert(!unlink(scratch("m.safetensors.index.json")));
    write_tensors(scratch("m.safetensors"), TWO, 32);
    cr_assert_geq(fail_allocations(open_and_close, (void *)scratch("."), "opening a file"), 30);
    cr_assert_geq(fail_allocations(write_pair, (void *)scratch("out"), "writing"), 10);
    expect_no_leftovers(4);
}
