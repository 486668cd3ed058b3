/* zip.c and pth.c: a checkpoint that PyTorch wrote, and everything that must be refused, by its message. */
#include "mini_zip.h"
#include "safetensors.h"
#include "util.h"

#include <criterion/criterion.h>

TestSuite(pth, .fini = scratch_remove);

/* ---- PyTorch's own file ----------------------------------------------------------------------------------------- */

/* state_dict.txt (oracle/make_pth.py) has a line for each tensor: name, type, shape, values. */
Test(pth, what_pytorch_wrote) {
    hs_st *st = NULL;
    hs_err e = {0};
    char line[4096];
    int n = 0;
    cr_assert_eq(hs_st_open(GOLDEN_DIR "/data/state_dict.pth", &st, &e), 0, "%s", e.msg);
    FILE *f = fopen(GOLDEN_DIR "/data/state_dict.txt", "r");
    cr_assert_not_null(f);
    while (fgets(line, sizeof line, f)) {
        char name[64], type[8], shape[64], found[64];
        int at = 0;
        if (*line == '#') continue;
        cr_assert_eq(sscanf(line, "%63s %7s [%63[^]]%n", name, type, shape, &at) >= 2, 1);
        const hs_st_tensor *t = hs_st_find(st, name);
        cr_assert_not_null(t, "%s", name);
        cr_expect_str_eq(hs_dtype_name(t->dtype), type, "%s", name);
        hs_st_shape_text(t, found, sizeof found);
        if (t->ndim) cr_expect_str_eq(found, shape, "%s", name);
        char *p = strchr(line, ']') + 1, *end;
        for (int64_t i = 0; i < t->numel; i++, p = end) {
            float v;
            hs_st_floats(t, i, 1, &v);
            cr_expect_eq(v, strtof(p, &end), "%s[%d]", name, (int)i);
            cr_assert(end > p, "%s: fewer values than elements", name);
        }
        cr_expect_eq(strspn(p, " \n"), strlen(p), "%s: more values than elements: %s", name, p);
        n++;
    }
    fclose(f);
    cr_expect_eq(n, hs_st_count(st));
    cr_expect_eq(n, 12);
    hs_st_close(st);
    cr_assert_eq(hs_alloc_live(), 0);
}

static int open_and_close(void *arg, hs_err *err) {
    hs_st *st;
    int rc = hs_st_open(arg, &st, err);
    if (!rc) hs_st_close(st);
    return rc;
}

Test(pth, every_allocation_may_fail) {
    cr_assert_geq(fail_allocations(open_and_close, (void *)(GOLDEN_DIR "/data/state_dict.pth"), "hs_st_open"), 10);
}

/* A file cut off anywhere is refused, and nothing is read behind its end. */
Test(pth, truncated_anywhere) {
    char *all, *cut;
    size_t n;
    hs_err e = {0};
    cr_assert_eq(hs_file_read(GOLDEN_DIR "/data/state_dict.pth", 1 << 20, &all, &n, &e), 0);
    for (size_t len = 0; len < n; len++) {
        hs_st *st;
        cut = malloc(len ? len : 1);
        memcpy(cut, all, len);
        cr_assert_eq(hs_st_parse(cut, len, (int64_t)len, "cut", &st, &e), HS_EFORMAT, "%zu bytes", len);
        free(cut);
    }
    hs_free(all);
}

/* ---- pickles ---------------------------------------------------------------------------------------------------- */
#define OD      "ccollections\nOrderedDict\n)R"
#define HEAD    "\x80\x02" OD "("
#define NAME(c) "X\1\0\0\0" c
#define STORAGE(type)                                                                                                  \
    "(X\7\0\0\0storagectorch\n" type "\nX\1\0\0\0"                                                                     \
    "0X\3\0\0\0cpuK\6tQ"
#define TENSOR(type, rest) "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(type) rest "\x89" OD "tR"
#define GOOD               HEAD NAME("a") TENSOR("FloatStorage", "K\0K\2K\3\x86K\3K\1\x86") "u."

/* Six floats behind the pickle. */
static int read_pickle(const char *pickle, size_t n, hs_st **ret, hs_err *err) {
    static const float values[6] = {1, 2, 3, 4, 5, 6};
    mini_zip z = {0};
    mz_add(&z, "m/data.pkl", pickle, n);
    mz_add(&z, "m/data/0", values, sizeof values);
    mz_finish(&z, 1);
    write_file(scratch("m.pth"), z.p, z.n);
    mz_free(&z);
    return hs_st_open(scratch("m.pth"), ret, err);
}

Test(pth, a_state_dict) {
    hs_st *st = NULL;
    const hs_st_tensor *t;
    hs_err e = {0};
    float v[6];
    cr_assert_eq(read_pickle(GOOD, sizeof GOOD - 1, &st, &e), 0, "%s", e.msg);
    cr_assert_eq(hs_st_count(st), 1);
    cr_assert_eq(hs_st_get(st, "a", 2, (int64_t[]){2, 3}, &t, &e), 0, "%s", e.msg);
    hs_st_floats(t, 0, 6, v);
    cr_assert(v[0] == 1 && v[5] == 6);
    cr_assert_eq(hs_st_bytes(st), 24);
    hs_st_release(st, t);
    hs_st_floats(t, 0, 6, v);
    cr_assert_eq(v[5], 6, "released pages come back");
    hs_st_close(st);
}

#define P(what, pickle, message)                                                                                       \
    { what, pickle, sizeof(pickle) - 1, message }

Test(pth, pickles_that_are_refused) {
    static const struct {
        const char *what, *pickle;
        size_t n;
        const char *message;
    } cases[] = {
        P("runs a command",
          "\x80\x02"
          "cposix\nsystem\nX\4\0\0\0true\x85R.",
          "asks for 'posix.system'"),
        P("evaluates",
          "\x80\x02"
          "c__builtin__\neval\nX\1\0\0\0"
          "1\x85R.",
          "asks for '__builtin__.eval'"),
        P("loads code",
          "\x80\x02"
          "ctorch.jit\n_load\n)R.",
          "asks for 'torch.jit._load'"),
        P("a name like ours",
          "\x80\x02"
          "ctorch._utils\n_rebuild_tensor_v2x\n)R.",
          "_rebuild_tensor_v2x"),
        P("a terminal's commands",
          "\x80\x02"
          "c\x1b[2J\nx\n)R.",
          "asks for '?[2J.x'"),
        P("a parameter",
          "\x80\x02"
          "ctorch._utils\n_rebuild_parameter\n)R.",
          "_rebuild_parameter"),
        P("64 bit floats",
          "\x80\x02"
          "ctorch\nDoubleStorage\n.",
          "asks for 'torch.DoubleStorage'"),
        P("a name without end",
          "\x80\x02"
          "cposix",
          "name has no end"),
        P("protocol 4", "\x80\x04\x95", "not of protocol 2"),
        P("empty", "", "not of protocol 2"),
        P("a class by a newer instruction", "\x80\x02\x93.", "instruction 0x93"),
        P("an object",
          "\x80\x02"
          "iposix\nsystem\n.",
          "instruction 0x69"),
        P("an extension", "\x80\x02\x82\1.", "instruction 0x82"),
        P("new object", "\x80\x02" OD ")\x81.", "instruction 0x81"),
        P("a list", "\x80\x02].", "instruction 0x5d"),
        P("a number", "\x80\x02K\1.", "holds a number, expected a state dict"),
        P("a tensor", "\x80\x02" TENSOR("FloatStorage", "K\0K\6\x85K\1\x85") ".", "holds a tensor"),
        P("two values", "\x80\x02}}.", "holds several values"),
        P("no end", "\x80\x02}", "has no end"),
        P("bytes behind the end", GOOD "N", "bytes behind its end"),
        P("a number as value", HEAD NAME("a") "K\1u.", "'a' is a number, expected a tensor"),
        P("a dictionary as value", HEAD NAME("a") "}u.", "'a' is a dictionary, expected a tensor"),
        P("a number as name", HEAD "K\1" TENSOR("FloatStorage", "K\0K\6\x85K\1\x85") "u.", "not a name"),
        P("half a pair", HEAD NAME("a") "u.", "half a pair"),
        P("pairs for a number", "\x80\x02K\1(K\1K\1u.", "no dictionary"),
        P("attributes of a number", "\x80\x02K\1}b.", "attributes of what is no dictionary"),
        P("pops what is not there", "\x80\x02R", "a value is used that nothing made"),
        P("a mark as a value", "\x80\x02(R", "a value is used that nothing made"),
        P("no mark", "\x80\x02u", "a mark is missing"),
        P("calls a storage type",
          "\x80\x02"
          "ctorch\nFloatStorage\n)R.",
          "a call that no state dict makes"),
        P("calls a number", "\x80\x02K\1)R.", "a call of what is no function"),
        P("arguments for a dictionary",
          "\x80\x02"
          "ccollections\nOrderedDict\nK\1\x85R.",
          "no state dict makes"),
        P("memory with holes", "\x80\x02}q\5.", "skips places"),
        P("memory that is empty", "\x80\x02h\0.", "never had"),
        P("huge place in memory", "\x80\x02}r\xff\xff\xff\xff.", "skips places"),
        P("remembers nothing", "\x80\x02q\0.", "that nothing made"),
        P("a text without end",
          "\x80\x02X\xff\xff\xff\x7f"
          "a.",
          "longer than the pickle"),
        P("a cut number", "\x80\x02J\1", "in the middle of a value"),
        P("a huge number", "\x80\x02\x8a\xff\1.", "more than 64 bits"),
        P("nested tuples", "\x80\x02)\x85\x85\x85\x85\x85\x85\x85\x85\x85\x85.", "nested deeper"),
        P("a tuple of marks", "\x80\x02((\x86.", "tuple of values that nothing made"),
        P("five dots", HEAD NAME("a") "ctorch._utils\n_rebuild_tensor_v2\n(K\0tRu.", "not described by six"),
        P("storage of a number", "\x80\x02K\1Q.", "not described by five values"),
        P("storage without a type", "\x80\x02(NNNNNtQ.", "not type, key, device, elements"),
        P("wrong numbers of elements",
          "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
          "0X\3\0\0\0cpuK\7tQ.",
          "do not fill its entry"),
        P("negative elements",
          "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
          "0X\3\0\0\0cpuJ\xff\xff\xff\xfftQ.",
          "do not fill its entry"),
        P("elements that overflow",
          "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
          "0X\3\0\0\0cpu\x8a\x08\6\0\0\0\0\0\0\x40tQ.",
          "do not fill its entry"),
        P("another entry",
          "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
          "1X\3\0\0\0cpuK\6tQ.",
          "not in the archive"),
        P("an entry elsewhere",
          "\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\x0b\0\0\0../data.pklX\3\0\0\0cpuK\6tQ.",
          "not in the archive"),
        P("larger than its storage", HEAD NAME("a") TENSOR("FloatStorage", "K\0K\3K\3\x86K\3K\1\x86") "u.",
          "larger than its storage"),
        P("behind its storage", HEAD NAME("a") TENSOR("FloatStorage", "K\1K\2K\3\x86K\3K\1\x86") "u.",
          "larger than its storage"),
        P("before its storage", HEAD NAME("a") TENSOR("FloatStorage", "J\xff\xff\xff\xffK\2K\3\x86K\3K\1\x86") "u.",
          "larger than its storage"),
        P("transposed", HEAD NAME("a") TENSOR("FloatStorage", "K\0K\2K\3\x86K\1K\2\x86") "u.", "in one piece"),
        P("one value a million times",
          HEAD NAME("a") TENSOR("FloatStorage", "K\0M\xff\xffM\xff\xff\x86K\0K\0\x86") "u.", "in one piece"),
        P("sizes that overflow",
          HEAD NAME("a") TENSOR("FloatStorage", "K\0J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87"
                                                "\x8a\x08\1\0\0\0\xff\xff\xff\x3fJ\xff\xff\xff\x7fK\1\x87") "u.",
          "too large to exist"),
        P("negative size", HEAD NAME("a") TENSOR("FloatStorage", "K\0J\xff\xff\xff\xff\x85K\1\x85") "u.",
          "sizes are no numbers"),
        P("seven dimensions",
          HEAD NAME("a") TENSOR("FloatStorage", "K\0(K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1t") "u.",
          "more than 6 dimensions"),
        P("fewer strides", HEAD NAME("a") TENSOR("FloatStorage", "K\0K\2K\3\x86K\1\x85") "u.", "not storage, offset"),
        P("a name twice",
          HEAD NAME("a") TENSOR("FloatStorage", "K\0K\6\x85K\1\x85") NAME("a")
              TENSOR("FloatStorage", "K\0K\6\x85K\1\x85") "u.",
          "tensor 'a' is in"),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hs_st *st = NULL;
        hs_err e = {0};
        int rc = read_pickle(cases[i].pickle, cases[i].n, &st, &e);
        cr_expect(rc == HS_EFORMAT || rc == HS_ENOTSUP, "%s: code %d", cases[i].what, rc);
        cr_expect_not_null(strstr(e.msg, cases[i].message), "%s: \"%s\"", cases[i].what, e.msg);
        cr_expect_not_null(strstr(e.msg, "m.pth"), "%s: \"%s\"", cases[i].what, e.msg);
        cr_expect_eq(hs_alloc_live(), 0, "%s", cases[i].what);
        if (!rc) hs_st_close(st);
    }
}

/* A flood of values is stopped before it takes memory: 100,000 marks, or values that nobody takes. */
Test(pth, floods) {
    enum { N = 100000 };
    static char pickle[N + 2];
    for (int k = 0; k < 2; k++) {
        hs_st *st;
        hs_err e = {0};
        memset(pickle, k ? 'N' : '(', sizeof pickle);
        memcpy(pickle, "\x80\x02", 2);
        cr_assert_eq(read_pickle(pickle, sizeof pickle, &st, &e), HS_EFORMAT);
        cr_assert_not_null(strstr(e.msg, "more values at once"), "%s", e.msg);
    }
}

/* ---- archives --------------------------------------------------------------------------------------------------- */
typedef void (*damage_fn)(mini_zip *z);
#define DAMAGE(name, code)                                                                                             \
    static void name(mini_zip *z) {                                                                                    \
        code;                                                                                                          \
    }
/* entries: 0 pickle, 1 storage; central: size at 20 and 24, name 28, extra 30, offset 42; ZIP64 field: 28 bytes behind
 * the name (10 and 8 letters), values at +4, +12, +20 */
DAMAGE(compressed, mz_set(z, z->central[1] + 10, 8, 2))
DAMAGE(compressed_locally, mz_set(z, z->local[1] + 8, 8, 2))
DAMAGE(encrypted, mz_set(z, z->central[1] + 8, 1, 2))
DAMAGE(encrypted_locally, mz_set(z, z->local[1] + 6, 1, 2))
DAMAGE(overlapping, mz_set(z, z->central[1] + 46 + 8 + 20, z->local[0], 8))
DAMAGE(renamed_locally, z->p[z->local[1] + 30] = 'x')
DAMAGE(same_name, memcpy(z->p + z->central[1] + 46, "m/data/1", 8); memcpy(z->p + z->local[1] + 30, "m/data/1", 8))
DAMAGE(resized_locally, mz_set(z, z->local[1] + 22, 4, 4))
DAMAGE(sizes_differ, mz_set(z, z->central[1] + 46 + 8 + 4, 25, 8))
DAMAGE(bomb, mz_set(z, z->central[1] + 46 + 8 + 4, 1ull << 50, 8);
       mz_set(z, z->central[1] + 46 + 8 + 12, 1ull << 50, 8))
DAMAGE(bomb_of_all_bits, mz_set(z, z->central[1] + 46 + 8 + 4, ~0ull, 8);
       mz_set(z, z->central[1] + 46 + 8 + 12, ~0ull, 8))
DAMAGE(offset_behind, mz_set(z, z->central[1] + 46 + 8 + 20, 1ull << 40, 8))
DAMAGE(offset_of_all_bits, mz_set(z, z->central[1] + 46 + 8 + 20, ~0ull, 8))
DAMAGE(short_zip64, mz_set(z, z->central[1] + 46 + 8 + 2, 16, 2))
DAMAGE(other_field, mz_set(z, z->central[1] + 46 + 8, 2, 2))
DAMAGE(cut_field, mz_set(z, z->central[1] + 46 + 8 + 2, 60, 2))
DAMAGE(no_end, z->n -= 1)
DAMAGE(behind_the_end, mz_put(z, "x", 1))
DAMAGE(a_comment, mz_set(z, z->end + 20, 2, 2); mz_put(z, "hi", 2))
DAMAGE(count_of_end, mz_set(z, z->end + 8, 2, 2); mz_set(z, z->end + 10, 2, 2))
DAMAGE(disks, mz_set(z, z->end + 4, 1, 2))
DAMAGE(disks64, mz_set(z, z->end64 + 16, 1, 4))
DAMAGE(another_disk, mz_set(z, z->central[1] + 34, 1, 2))
DAMAGE(locator_behind, mz_set(z, z->locator + 8, 1ull << 40, 8))
DAMAGE(locator_of_all_bits, mz_set(z, z->locator + 8, ~0ull, 8))
DAMAGE(locator_astray, mz_set(z, z->locator + 8, z->end64 - 8, 8))
DAMAGE(record_too_long, mz_set(z, z->end64 + 4, 1000, 8))
DAMAGE(no_locator, mz_set(z, z->locator, 0, 4); mz_set(z, z->end + 8, 0xffffffff, 4); mz_set(z, z->end + 12, ~0ull, 8))
DAMAGE(huge_count, mz_set(z, z->end64 + 24, 1ull << 40, 8); mz_set(z, z->end64 + 32, 1ull << 40, 8);
       mz_set(z, z->end + 8, 0xffffffff, 4))
DAMAGE(many_entries, mz_set(z, z->end64 + 24, 60000, 8); mz_set(z, z->end64 + 32, 60000, 8);
       mz_set(z, z->end + 8, 0xffffffff, 4))
DAMAGE(one_entry_less, mz_set(z, z->end64 + 24, 1, 8); mz_set(z, z->end64 + 32, 1, 8);
       mz_set(z, z->end + 8, 0xffffffff, 4))
DAMAGE(directory_behind, mz_set(z, z->end64 + 48, 1ull << 40, 8); mz_set(z, z->end + 16, 0xffffffff, 4))
DAMAGE(directory_shorter, mz_set(z, z->end64 + 40, 40, 8); mz_set(z, z->end + 12, 40, 4))
DAMAGE(no_directory, z->p[z->central[0]] = 'x')
DAMAGE(control_character, z->p[z->central[1] + 46] = 7; z->p[z->local[1] + 30] = 7)
DAMAGE(checksum, mz_set(z, z->central[0] + 16, 5, 4))
DAMAGE(no_pickle, memcpy(z->p + z->central[0] + 46, "m/data.xyz", 10);
       memcpy(z->p + z->local[0] + 30, "m/data.xyz", 10))

Test(pth, archives_that_are_refused) {
    static const struct {
        const char *what;
        damage_fn damage;
        const char *message;
    } cases[] = {
        {"compressed", compressed, "'m/data/0' is compressed; PyTorch only stores"},
        {"compressed in the local header", compressed_locally, "is compressed according to its local header"},
        {"encrypted", encrypted, "unknown or encrypted flags"},
        {"encrypted in the local header", encrypted_locally, "unknown or encrypted flags"},
        {"overlapping", overlapping, "has another name in its local header"},
        {"another name in the local header", renamed_locally, "has another name in its local header"},
        {"a name twice", same_name, "is there twice"},
        {"another size in the local header", resized_locally, "has another size in its local header"},
        {"sizes differ", sizes_differ, "is stored, but its two sizes differ"},
        {"a bomb", bomb, "ends outside the file"},
        {"a bomb of all bits", bomb_of_all_bits, "ends outside the file"},
        {"begins behind the file", offset_behind, "begins outside the file"},
        {"begins at the end of all numbers", offset_of_all_bits, "begins outside the file"},
        {"a ZIP64 field that is too short", short_zip64, "has a truncated ZIP64 field"},
        {"no ZIP64 field", other_field, "needs a ZIP64 field, but has none"},
        {"a field behind the entry", cut_field, "extra field that is cut off"},
        {"the last byte is missing", no_end, "no end record"},
        {"a byte behind the end", behind_the_end, "no end record"},
        {"a comment", a_comment, "no end record"},
        {"end records contradict", count_of_end, "contradict each other"},
        {"several disks", disks, "several disks"},
        {"several disks in the 64 bit record", disks64, "several disks"},
        {"an entry on another disk", another_disk, "is on another disk"},
        {"locator behind the file", locator_behind, "lies outside the file"},
        {"locator of all bits", locator_of_all_bits, "lies outside the file"},
        {"locator astray", locator_astray, "no ZIP64 end record where the locator points"},
        {"64 bit record too long", record_too_long, "does not end at its locator"},
        {"64 bit record without locator", no_locator, "its end record is missing"},
        {"a huge count", huge_count, "entries, expected at most"},
        {"more entries than bytes", many_entries, "too short for its entries"},
        {"one entry less", one_entry_less, "longer than its entries"},
        {"directory behind the file", directory_behind, "directory does not end at the end record"},
        {"a shorter directory", directory_shorter, "directory does not end at the end record"},
        {"a damaged directory", no_directory, "directory is cut off or damaged"},
        {"a control character", control_character, "control characters"},
        {"checksum of the pickle", checksum, "checksum of its pickle is wrong"},
        {"no pickle", no_pickle, "without data.pkl"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const float values[6];
        hs_st *st = NULL;
        hs_err e = {0};
        mini_zip z = {0};
        mz_add(&z, "m/data.pkl", GOOD, sizeof GOOD - 1);
        mz_add(&z, "m/data/0", values, sizeof values);
        mz_add(&z, "m/data/1", values, sizeof values);
        mz_finish(&z, 1);
        cases[i].damage(&z);
        write_file(scratch("m.pth"), z.p, z.n);
        mz_free(&z);
        int rc = hs_st_open(scratch("m.pth"), &st, &e);
        cr_expect_eq(rc, HS_EFORMAT, "%s: code %d", cases[i].what, rc);
        cr_expect_not_null(strstr(e.msg, cases[i].message), "%s: \"%s\"", cases[i].what, e.msg);
        cr_expect_not_null(strstr(e.msg, "m.pth"), "%s: \"%s\"", cases[i].what, e.msg);
        cr_expect_eq(hs_alloc_live(), 0, "%s", cases[i].what);
        if (!rc) hs_st_close(st);
    }
}

/* Two entries of the directory with the same local header: the same name, or one inside the other's content. */
Test(pth, overlapping_entries) {
    hs_st *st = NULL;
    hs_err e = {0};
    mini_zip inner = {0}, z = {0};
    mz_add(&inner, "m/data/0", "123456781234567812345678", 24);
    mz_add(&z, "m/data.pkl", GOOD, sizeof GOOD - 1);
    mz_add(&z, "m/data/1", inner.p, inner.n); /* a whole entry as content ... */
    z.local[2] = z.local[1] + 30 + 8;         /* ... that the directory lists as well */
    z.name[2] = "m/data/0";
    z.size[2] = 24;
    z.count = 3;
    mz_finish(&z, 1);
    write_file(scratch("m.pth"), z.p, z.n);
    cr_assert_eq(hs_st_open(scratch("m.pth"), &st, &e), HS_EFORMAT);
    cr_assert_not_null(strstr(e.msg, "'m/data/0' overlaps another one"), "%s", e.msg);
    mz_free(&inner);
    mz_free(&z);
}

/* ---- files that people mistake for models ----------------------------------------------------------------------- */
Test(pth, foreign_files) {
    static const char *const cases[][2] = {
        {"GGUF............", "a GGUF file"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"},
        {"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 jj", "old format"},
        {"<!DOCTYPE html><html>", "web page"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hs_st *st;
        hs_err e = {0};
        write_text(scratch("m"), cases[i][0]);
        cr_assert_eq(hs_st_open(scratch("m"), &st, &e), HS_ENOTSUP, "%s", cases[i][1]);
        cr_assert_not_null(strstr(e.msg, cases[i][1]), "%s", e.msg);
    }
}
