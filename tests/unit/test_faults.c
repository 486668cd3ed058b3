/* Failing system: the n-th call of each kind fails, for n = 1, 2, ... until the operation succeeds. The program is
 * linked with --wrap, so that the calls of the library go through here. Each failure must be an error with a message
 * that names a path, leave no memory, mapping or file descriptor behind, and never a half-written file. */
#include "util.h"
#include "model.h"
#include "profile.h"
#include "tokenizer.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(faults, .fini = scratch_remove);

enum call { READ, WRITE, OPEN, FOPEN, MAP, SYNC, RENAME, CALLS };
static int countdown[CALLS];

static int fails(enum call c) {
    if (!countdown[c] || --countdown[c]) return 0;
    errno = c == WRITE || c == SYNC ? ENOSPC : EIO;
    return 1;
}

size_t __real_fread(void *p, size_t size, size_t n, FILE *f);
size_t __wrap_fread(void *p, size_t size, size_t n, FILE *f);
size_t __wrap_fread(void *p, size_t size, size_t n, FILE *f) {
    if (fails(READ)) return n ? __real_fread(p, size, n / 2, f) : 0; /* a short read */
    return __real_fread(p, size, n, f);
}
ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n) {
    return fails(WRITE) ? -1 : __real_write(fd, p, n);
}
int __real_open64(const char *path, int flags, int mode);
int __wrap_open64(const char *path, int flags, int mode);
int __wrap_open64(const char *path, int flags, int mode) {
    return fails(OPEN) ? -1 : __real_open64(path, flags, mode);
}
FILE *__real_fopen64(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode);
FILE *__wrap_fopen64(const char *path, const char *mode) {
    return fails(FOPEN) ? NULL : __real_fopen64(path, mode);
}
void *__real_mmap64(void *p, size_t n, int prot, int flags, int fd, int64_t at);
void *__wrap_mmap64(void *p, size_t n, int prot, int flags, int fd, int64_t at);
void *__wrap_mmap64(void *p, size_t n, int prot, int flags, int fd, int64_t at) {
    return fails(MAP) ? MAP_FAILED : __real_mmap64(p, n, prot, flags, fd, at);
}
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    return fails(SYNC) ? -1 : __real_fsync(fd);
}
int __real_rename(const char *a, const char *b);
int __wrap_rename(const char *a, const char *b);
int __wrap_rename(const char *a, const char *b) {
    return fails(RENAME) ? -1 : __real_rename(a, b);
}

static int count_entries(const char *path) {
    int n = 0;
    DIR *d = opendir(path);
    cr_assert_not_null(d);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

static int count_mappings(const char *dir) {
    char line[1024];
    int n = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    cr_assert_not_null(f);
    while (fgets(line, sizeof(line), f)) n += strstr(line, dir) != NULL;
    fclose(f);
    return n;
}

/* Returns how often the call was made to fail before the operation succeeded. */
static int fail_calls(enum call c, attempt_fn attempt, const char *dir) {
    int files = count_entries(dir), descriptors = count_entries("/proc/self/fd");
    for (int n = 1;; n++) {
        hs_err e = {0};
        countdown[c] = n;
        int rc = attempt((void *)dir, &e);
        countdown[c] = 0;
        cr_assert_eq(hs_alloc_live(), 0, "call %d, failure %d: memory left", (int)c, n);
        cr_assert_eq(count_entries("/proc/self/fd"), descriptors, "call %d, failure %d: descriptor left", (int)c, n);
        cr_assert_eq(count_entries(dir), files, "call %d, failure %d: file left", (int)c, n);
        cr_assert_eq(count_mappings(dir), 0, "call %d, failure %d: mapping left", (int)c, n);
        if (!rc) return n - 1;
        cr_assert_eq(rc, HS_EIO, "call %d, failure %d: %s", (int)c, n, e.msg);
        cr_assert(strstr(e.msg, dir), "call %d, failure %d names no file: %s", (int)c, n, e.msg);
        cr_assert_lt(n, 100);
    }
}

static const char *model_folder(void) {
    const char *dir = scratch("model");
    make_dir(dir);
    write_configs(dir);
    write_text(scratch("model/haste.json"), "{}");
    write_tensors(scratch("model/m-1.safetensors"), "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                  4);
    write_tensors(scratch("model/m-2.safetensors"), "{\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                  4);
    write_text(scratch("model/m.safetensors.index.json"),
               "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\"}}");
    write_text(scratch("model/transformer/diffusion_pytorch_model.safetensors.index.json"), "{}");
    return dir;
}

static int load_config(void *dir, hs_err *err) {
    hs_config c;
    int rc = hs_config_load(dir, &c, err);
    if (!rc) hs_config_done(&c);
    return rc;
}

static int open_shards(void *dir, hs_err *err) {
    hs_st *st;
    int rc = hs_st_open_dir(dir, "m", &st, err);
    if (!rc) hs_st_close(st);
    return rc;
}

static int hash_model(void *dir, hs_err *err) {
    char hex[65];
    return hs_model_sha256(dir, hex, err);
}

static int write_again(void *dir, hs_err *err) {
    static const hs_st_tensor t = {.name = "t", .dtype = HS_U8, .ndim = 1, .shape = {4}, .numel = 4, .data = "new!"};
    char path[600];
    snprintf(path, sizeof(path), "%s/out", (char *)dir);
    int rc = hs_st_write(path, 1, &t, NULL, err);
    hs_st *st; /* whatever happened: a whole file, the old one or the new one */
    hs_err e;
    int64_t live = hs_alloc_live();
    countdown[MAP] = countdown[OPEN] = 0;
    cr_assert_eq(hs_st_open(path, &st, &e), 0, "%s", e.msg);
    cr_assert_eq(memcmp(hs_st_find(st, "t")->data, rc ? "old!" : "new!", 4), 0);
    hs_st_close(st);
    cr_assert_eq(hs_alloc_live(), live);
    return rc;
}

Test(faults, reading_a_model) {
    const char *dir = model_folder();
    cr_assert_eq(fail_calls(FOPEN, load_config, dir), 5);
    cr_assert_eq(fail_calls(READ, load_config, dir), 5);
    cr_assert_eq(fail_calls(FOPEN, open_shards, dir), 1);
    cr_assert_eq(fail_calls(READ, open_shards, dir), 1);
    cr_assert_eq(fail_calls(OPEN, open_shards, dir), 2);
    cr_assert_eq(fail_calls(MAP, open_shards, dir), 2);
    cr_assert_eq(fail_calls(FOPEN, hash_model, dir), 2);
}

Test(faults, writing_a_file) {
    const char *dir = scratch("out");
    make_dir(dir);
    static const hs_st_tensor old = {.name = "t", .dtype = HS_U8, .ndim = 1, .shape = {4}, .numel = 4, .data = "old!"};
    static const enum call calls[] = {OPEN, WRITE, SYNC, RENAME};
    static const int times[] = {1, 4, 1, 1};
    for (int i = 0; i < 4; i++) {
        hs_err e;
        cr_assert_eq(hs_st_write(scratch("out/out"), 1, &old, NULL, &e), 0, "%s", e.msg);
        cr_assert_geq(fail_calls(calls[i], write_again, dir), times[i], "call %d", (int)calls[i]);
    }
}

/* steps tells the old profile from the new one */
static int save_again(void *dir, hs_err *err) {
    char path[600];
    hs_profile *p, *q;
    hs_err e = {0};
    int64_t live = hs_alloc_live();
    snprintf(path, sizeof(path), "%s/p.json", (char *)dir);
    cr_assert_eq(hs_profile_new(1, 1, 1, 1, &p, &e), 0);
    memset(p->sha256, 'a', 64);
    p->width = p->height = 32, p->frames = 5, p->steps = 9, p->budgets[0].top_p[0] = 0.5f;
    int rc = hs_profile_save(path, p, err);
    for (int i = 0; i < CALLS; i++) countdown[i] = 0;
    cr_assert_eq(hs_profile_load(path, &q, &e), 0, "%s", e.msg);
    cr_assert_eq(q->steps, rc ? 8 : 9);
    hs_profile_free(p);
    hs_profile_free(q);
    cr_assert_eq(hs_alloc_live(), live);
    return rc;
}

static int load_profile(void *dir, hs_err *err) {
    char path[600];
    hs_profile *p;
    snprintf(path, sizeof(path), "%s/p.json", (char *)dir);
    int rc = hs_profile_load(path, &p, err);
    if (!rc) hs_profile_free(p);
    return rc;
}

Test(faults, profiles) {
    const char *dir = scratch("out");
    make_dir(dir);
    static const enum call calls[] = {OPEN, WRITE, SYNC, RENAME};
    static const int times[] = {1, 2, 1, 1};
    for (int i = 0; i < 4; i++) {
        hs_profile *old;
        hs_err e;
        cr_assert_eq(hs_profile_new(1, 1, 1, 1, &old, &e), 0);
        memset(old->sha256, 'a', 64);
        old->width = old->height = 32, old->frames = 5, old->steps = 8, old->budgets[0].top_p[0] = 0.5f;
        cr_assert_eq(hs_profile_save(scratch("out/p.json"), old, &e), 0, "%s", e.msg);
        hs_profile_free(old);
        cr_assert_eq(fail_calls(calls[i], save_again, dir), times[i], "call %d", (int)calls[i]);
    }
    cr_assert_eq(count_entries(dir), 3, "one file, and nothing beside it");
    cr_assert_eq(fail_calls(FOPEN, load_profile, dir), 1);
    cr_assert_eq(fail_calls(READ, load_profile, dir), 1);
}
