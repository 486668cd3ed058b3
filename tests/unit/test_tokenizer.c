/* tokenizer.cpp with the small model of the golden tests: eos, truncation, ordinary text, files that are no model. */
#include "util.h"
#include "tokenizer.h"
#include "config.h"

#include <criterion/criterion.h>
#include <malloc.h>

#define MODEL GOLDEN_DIR "/data/spiece.model"

TestSuite(tokenizer, .fini = scratch_remove);

#if HS_HAVE_TOKENIZER

static hs_tokenizer *open_model(void) {
    hs_tokenizer *t = NULL;
    hs_err e = {0};
    cr_assert_eq(hs_tokenizer_open(MODEL, &t, &e), 0, "%s", e.msg);
    return t;
}

static int encode(const hs_tokenizer *t, const char *s, int max, int32_t *ids, int *total) {
    int n = -1;
    hs_err e = {0};
    cr_assert_eq(hs_tokenizer_encode(t, s, max, ids, &n, total, &e), 0, "%s", e.msg);
    cr_assert(n >= 1 && n <= max);
    cr_assert_eq(ids[n - 1], 1, "ends in eos");
    for (int i = 0; i < n; i++) cr_assert(ids[i] >= 0 && ids[i] < hs_tokenizer_vocab(t));
    for (int i = 0; i < n - 1; i++) cr_assert_neq(ids[i], 1, "eos within the text");
    return n;
}

Test(tokenizer, eos_and_nothing_for_the_empty_prompt) {
    hs_tokenizer *t = open_model();
    int32_t ids[8];
    int total;
    cr_assert_eq(encode(t, "", 8, ids, &total), 1);
    cr_assert_eq(total, 1);
    cr_assert_gt(encode(t, "a red circle", 8, ids, &total), 1);
    cr_assert_gt(total, 1);
    hs_tokenizer_close(t);
    hs_tokenizer_close(NULL);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(tokenizer, five_thousand_words_are_truncated) {
    hs_tokenizer *t = open_model();
    char *s = malloc(5000 * 7 + 1);
    for (int i = 0; i < 5000; i++) snprintf(s + 7 * i, 8, "circle ");
    int32_t ids[513], few[513];
    int total, total_few;
    ids[512] = few[512] = -7;
    cr_assert_eq(encode(t, s, 512, ids, &total), 512);
    cr_assert_geq(total, 5001);
    cr_assert_eq(ids[512], -7, "nothing behind the room given");
    cr_assert_eq(encode(t, s, 5, few, &total_few), 5);
    cr_assert_eq(total_few, total);
    cr_assert_arr_eq(few, ids, 4 * sizeof(*ids)); /* the first ids, then eos */
    cr_assert_eq(encode(t, s, 1, few, &total_few), 1);
    hs_err e;
    cr_assert_eq(hs_tokenizer_encode(t, s, 0, few, &total, &total, &e), HS_EINVAL);
    free(s);
    hs_tokenizer_close(t);
}

Test(tokenizer, exactly_full_is_not_truncated) {
    hs_tokenizer *t = open_model();
    int32_t ids[64], again[64];
    int total, total_again;
    int n = encode(t, "a blue square moves to the left", 64, ids, &total);
    cr_assert_eq(n, total);
    cr_assert_eq(encode(t, "a blue square moves to the left", n, again, &total_again), n);
    cr_assert_eq(total_again, n);
    cr_assert_arr_eq(ids, again, (size_t)n * sizeof(*ids));
    hs_tokenizer_close(t);
}

Test(tokenizer, special_tokens_in_the_prompt_are_text) {
    hs_tokenizer *t = open_model();
    static const char *const texts[] = {"</s>", "<pad>", "a </s> b", "<s>", "<unk>"};
    for (int i = 0; i < 5; i++) {
        int32_t ids[32];
        int total, n = encode(t, texts[i], 32, ids, &total);
        cr_assert_gt(n, 2, "%s became one id", texts[i]);
        for (int j = 0; j < n - 1; j++) cr_assert(ids[j] != 0 && ids[j] != 1 && ids[j] != 2, "%s", texts[i]);
    }
    hs_tokenizer_close(t);
}

Test(tokenizer, files_that_are_no_model) {
    hs_tokenizer *t = NULL;
    hs_err e = {0};
    cr_assert_eq(hs_tokenizer_open(scratch("none"), &t, &e), HS_EIO);
    cr_assert(strstr(e.msg, "none: No such file"), "%s", e.msg);
    cr_assert_eq(hs_tokenizer_open(scratch("."), &t, &e), HS_EIO);
    write_file(scratch("m"), "", 0);
    cr_assert_eq(hs_tokenizer_open(scratch("m"), &t, &e), HS_EFORMAT, "%s", e.msg);
    write_text(scratch("m"), "{\"model\": {\"type\": \"Unigram\"}}");
    cr_assert_eq(hs_tokenizer_open(scratch("m"), &t, &e), HS_EFORMAT, "%s", e.msg);
    cr_assert(strstr(e.msg, scratch("m")) && strstr(e.msg, "is not a SentencePiece model"), "%s", e.msg);
    char *model;
    size_t len;
    cr_assert_eq(hs_file_read(MODEL, 1 << 24, &model, &len, &e), 0, "%s", e.msg);
    for (size_t n = 1; n < len; n = n * 3 + 1) {
        write_file(scratch("m"), model, n); /* a download that stopped */
        int rc = hs_tokenizer_open(scratch("m"), &t, &e);
        cr_assert_eq(rc, HS_EFORMAT, "cut to %zu bytes: code %d", n, rc);
    }
    hs_free(model);
    cr_assert_null(t);
    cr_assert_eq(hs_alloc_live(), 0);
}

/* The golden model with a character map that points elsewhere. */
static void write_damaged(const char *path) {
    char *model;
    size_t len;
    hs_err e = {0};
    cr_assert_eq(hs_file_read(MODEL, 1 << 24, &model, &len, &e), 0, "%s", e.msg);
    for (size_t i = 0; i < 64; i++) model[len / 4 + i] = "\x00\xfc\xff\x7f"[i % 4];
    write_file(path, model, len);
    hs_free(model);
}

Test(tokenizer, damaged_character_map) {
    hs_tokenizer *t = NULL;
    hs_err e;
    size_t before = 0;
    write_damaged(scratch("m"));
    for (int i = 0; i < 12; i++) {
        cr_assert_eq(hs_tokenizer_open(scratch("m"), &t, &e), HS_EFORMAT);
        if (i == 3) before = mallinfo2().uordblks; /* a sanitizer build always counts 0 */
    }
    cr_assert(strstr(e.msg, "character map points outside itself"), "%s", e.msg);
    cr_assert_null(t);
    cr_assert_lt(mallinfo2().uordblks, before + 100000, "the refused model stays in memory");
}

/* The golden model with a character map behind it, which replaces its own: 256 units of which the first, or all, lead 2
 * GB away. `key` makes the field of the normalizer; `sample`: text that the library encodes while it loads the model.
 */
static void write_hostile(const char *path, const char *key, int all, const char *sample) {
    static unsigned char map[1024 + 8] = {0, 4}; /* bytes of the units, units, "abc" */
    char *model;
    size_t len, at;
    hs_err e = {0};
    for (int i = 0; i < 256; i++) {
        const uint32_t u = i && !all ? 0x80000000u : 0x1fffffu << 10 | 512 | (all ? 0 : 0x80000000u);
        for (int k = 0; k < 4; k++) map[4 + 4 * i + k] = (unsigned char)(u >> 8 * k);
    }
    memcpy(map + 1028, "abc", 4);
    cr_assert_eq(hs_file_read(MODEL, 1 << 24, &model, &len, &e), 0, "%s", e.msg);
    char *to = malloc(len + sizeof map + 64);
    memcpy(to, model, at = len);
    at += (size_t)sprintf(to + at, "%s\x8b\x08\x12\x88\x08", key); /* the lengths: 1035 and 1032 */
    memcpy(to + at, map, sizeof map);
    at += sizeof map;
    if (sample) /* self_test_data { samples { input, expected } } */
        at += (size_t)sprintf(to + at, "\x22%c\x0a%c\x0a%c%s\x12\x01x", (int)strlen(sample) + 7,
                              (int)strlen(sample) + 5, (int)strlen(sample), sample);
    write_file(path, to, at);
    free(to);
    hs_free(model);
}

Test(tokenizer, hostile_character_maps) {
    static const struct {
        const char *key;
        int all;
        const char *sample;
    } cases[] = {{"\x1a", 1, NULL},
                 {"\x1a", 1, "hello world"},
                 {"\x1a", 0, NULL},
                 {"\x9a\x80\x80\x80\x10", 1, NULL}, /* protobuf drops what is above 32 bits */
                 {"\x9a\x80\x80\x80\x70", 1, NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hs_tokenizer *t = NULL;
        hs_err e = {0};
        write_hostile(scratch("m"), cases[i].key, cases[i].all, cases[i].sample);
        cr_expect_eq(hs_tokenizer_open(scratch("m"), &t, &e), HS_EFORMAT, "case %zu", i);
        cr_expect_not_null(strstr(e.msg, "character map points outside itself"), "%s", e.msg);
        cr_expect_null(t);
    }
}

static int open_and_close(void *arg, hs_err *err) {
    hs_tokenizer *t;
    int rc = hs_tokenizer_open(arg, &t, err);
    if (!rc) hs_tokenizer_close(t);
    return rc;
}

Test(tokenizer, every_allocation_may_fail) {
    cr_assert_geq(fail_allocations(open_and_close, (void *)MODEL, "hs_tokenizer_open"), 2);
}

#else

Test(tokenizer, says_which_package_is_missing) {
    hs_tokenizer *t = NULL;
    hs_err e;
    cr_assert_eq(hs_tokenizer_open(MODEL, &t, &e), HS_ENOTSUP);
    cr_assert(strstr(e.msg, "libsentencepiece-dev"), "%s", e.msg);
    cr_assert_null(t);
    hs_tokenizer_close(NULL);
}

#endif
