/* How fast a model's files become prepared weights, and what that costs in memory.
 *
 *     load [--cold] [--device NAME] [--precision P] [--part transformer|text|vae] [haste-run's names of the model]
 *
 * Each part is read once by read(2), as `cat FILE > /dev/null` does, and then loaded; both from the page cache, or with
 * --cold both from the disk (the cache is told to forget the files before each). Peaks are this process's own while it
 * loads: anonymous memory beyond the weights themselves, and mapped pages of the files. */
#include "engine/dit.h"
#include "engine/layout.h"
#include "engine/options.h"
#include "engine/text.h"
#include "engine/vae.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_FILES = 64 };

static int files_of(const hs_st *st, const char *ret[MAX_FILES]) {
    int n = 0;
    for (int i = 0; i < hs_st_count(st); i++) {
        const char *f = hs_st_at(st, i)->file;
        int k = 0;
        while (k < n && strcmp(ret[k], f)) k++;
        if (k == n && n < MAX_FILES) ret[n++] = f;
    }
    return n;
}

static void forget(const char *const *file, int n) {
    for (int i = 0; i < n; i++) {
        int fd = open(file[i], O_RDONLY);
        if (fd < 0) continue;
        fsync(fd);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

/* Processor seconds of this process: what other programs on the machine do not change. */
static double worked(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static double read_all(const char *const *file, int n, double *ret_bytes) {
    static char buf[1 << 17]; /* cat's */
    double start = hs_seconds();
    for (int i = 0; i < n; i++) {
        int fd = open(file[i], O_RDONLY);
        ssize_t k;
        while (fd >= 0 && (k = read(fd, buf, sizeof buf)) > 0) *ret_bytes += (double)k;
        close(fd);
    }
    return hs_seconds() - start;
}

/* Peaks, looked at every few milliseconds by a thread of its own. */
static atomic_int watching;
static double peak_anon, peak_file;

static double status_of(const char *text, const char *key) {
    const char *at = strstr(text, key);
    return at ? strtod(at + strlen(key), NULL) * 1024 : 0;
}

static void look(double *ret_anon, double *ret_file) {
    char text[4096] = "";
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    *ret_anon = status_of(text, "RssAnon:");
    *ret_file = status_of(text, "RssFile:");
}

static void *watch(void *user) {
    (void)user;
    while (atomic_load(&watching)) {
        double anon = 0, file = 0;
        look(&anon, &file);
        if (anon > peak_anon) peak_anon = anon;
        if (file > peak_file) peak_file = file;
        usleep(5000);
    }
    return NULL;
}

static int load(const hs_files *f, int part, hs_device *dev, void **ret, hs_err *err) {
    const hs_config *c = &f->config;
    int rc = part == HS_PART_TRANSFORMER ? hs_dit_load(c, f->st[part], dev, HS_ALL_BLOCKS, (hs_dit **)ret, err)
             : part == HS_PART_TEXT      ? hs_text_load(c, f->st[part], dev, 0, (hs_text **)ret, err)
                                         : hs_vae_load(c, f->st[part], dev, (hs_vae **)ret, err);
    return rc ? rc : hs_device_check(dev, err);
}

static int measure(const hs_files *f, int part, hs_device *dev, int cold, hs_err *err) {
    static const char *const names[] = {"transformer", "text encoder", "VAE"};
    const char *file[MAX_FILES];
    const int n = files_of(f->st[part], file);
    double bytes = 0, anon = 0, mapped = 0;
    pthread_t thread;
    void *loaded = NULL;
    if (cold)
        forget(file, n);
    else
        read_all(file, n, &bytes);
    bytes = 0;
    double work = worked();
    const double plain = read_all(file, n, &bytes), plain_work = worked() - work;
    if (cold) forget(file, n);
    look(&anon, &mapped);
    const int64_t before = hs_device_bytes(dev, NULL);
    peak_anon = anon, peak_file = mapped;
    atomic_store(&watching, 1);
    if (pthread_create(&thread, NULL, watch, NULL)) return hs_fail(err, HS_ENOMEM, "no thread");
    work = worked();
    const double start = hs_seconds();
    const int rc = load(f, part, dev, &loaded, err);
    const double seconds = hs_seconds() - start;
    work = worked() - work;
    atomic_store(&watching, 0);
    pthread_join(thread, NULL);
    if (rc) return rc;
    const double weights = strncmp(hs_device_name(dev), "cuda", 4) ? (double)(hs_device_bytes(dev, NULL) - before) : 0;
    printf("%-12s %6.2f GB in %d files: read %.2f s (processors %.2f s), loaded %.2f s (processors %.2f s), %.2f x "
           "reading; "
           "weights %.2f GB, peak beyond them %.2f GB, mapped %.2f GB\n",
           names[part], bytes / 1e9, n, plain, plain_work, seconds, work, seconds / plain, weights / 1e9,
           (peak_anon - anon - weights) / 1e9, peak_file / 1e9);
    fflush(stdout);
    if (part == HS_PART_TRANSFORMER) hs_dit_free(loaded);
    if (part == HS_PART_TEXT) hs_text_free(loaded);
    if (part == HS_PART_VAE) hs_vae_free(loaded);
    return 0;
}

int main(int argc, char **argv) {
    int cold = 0, part = -1, n = 1;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--cold"))
            cold = 1;
        else if (!strcmp(argv[i], "--part") && i + 1 < argc)
            part = *argv[++i] == 't' && argv[i][1] == 'r' ? HS_PART_TRANSFORMER
                   : *argv[i] == 't'                      ? HS_PART_TEXT
                                                          : HS_PART_VAE;
        else
            argv[n++] = argv[i];
    }
    char *line[40];
    hs_options o;
    hs_err err = {0};
    hs_files f;
    hs_device *dev = NULL;
    hs_model_params p = {.dir = NULL};
    if (n > 36) return 2;
    memcpy(line, argv, (size_t)n * sizeof *line);
    line[n++] = (char[]){"-p"}, line[n++] = (char[]){"a"};
    int rc = hs_options_parse(n, line, &o, &err);
    if (!rc) rc = hs_options_model(&o, &p, &err);
    if (!rc) rc = hs_files_open(&p, &f, &err);
    const hs_device_params dp = {.name = o.device ? o.device : "auto", .precision = o.precision ? o.precision : "bf16"};
    if (!rc) rc = hs_device_open(&dp, &dev, &err);
    for (int k = 0; k < HS_PART_COUNT && !rc; k++)
        if (part < 0 || part == k) rc = measure(&f, k, dev, cold, &err);
    if (rc) fprintf(stderr, "load: %s\n", err.msg);
    return rc != 0;
}
