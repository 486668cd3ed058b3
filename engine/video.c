/* Frame sinks: chooses the kind by path, counts and hashes every frame, and writes the kinds that need no codec.
 *
 * y4m is 4:4:4, 8 bit, limited range, BT.601 matrix: the format has no field for the matrix and FFmpeg and its
 * relatives read it as 601. That costs up to two levels per channel; mkv, png and rgb hold the exact frames.
 */
#include "video.h"
#include "video_sink.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SIDE = 16384 };

/* ---- md5 (RFC 1321) --------------------------------------------------------------------------------------------- */
static void md5_init(hs_md5 *m) {
    static const uint32_t start[4] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u};
    memset(m, 0, sizeof *m);
    memcpy(m->state, start, sizeof start);
    for (int i = 0; i < 64; i++) m->k[i] = (uint32_t)(fabs(sin(i + 1.0)) * 4294967296.0); /* RFC section 3.4 */
}

static void md5_block(hs_md5 *m, const uint8_t *p) {
    static const uint8_t shift[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
    uint32_t w[16], a = m->state[0], b = m->state[1], c = m->state[2], d = m->state[3];
    for (int i = 0; i < 16; i++)
        w[i] = p[4 * i] | (uint32_t)p[4 * i + 1] << 8 | (uint32_t)p[4 * i + 2] << 16 | (uint32_t)p[4 * i + 3] << 24;
    for (int i = 0; i < 64; i++) {
        uint32_t f;
        int g;
        switch (i / 16) {
        case 0: f = (b & c) | (~b & d), g = i; break;
        case 1: f = (d & b) | (~d & c), g = 5 * i + 1; break;
        case 2: f = b ^ c ^ d, g = 3 * i + 5; break;
        default: f = c ^ (b | ~d), g = 7 * i; break;
        }
        uint32_t x = a + f + m->k[i] + w[g % 16];
        int s = shift[i / 16][i % 4];
        a = d, d = c, c = b, b += x << s | x >> (32 - s);
    }
    m->state[0] += a, m->state[1] += b, m->state[2] += c, m->state[3] += d;
}

static void md5_add(hs_md5 *m, const uint8_t *p, size_t n) {
    size_t have = m->bytes % 64;
    m->bytes += n;
    if (have) {
        size_t take = n < 64 - have ? n : 64 - have;
        memcpy(m->block + have, p, take);
        p += take, n -= take;
        if (have + take < 64) return;
        md5_block(m, m->block);
    }
    for (; n >= 64; p += 64, n -= 64) md5_block(m, p);
    memcpy(m->block, p, n);
}

static void md5_hex(hs_md5 m, char ret[33]) {
    uint64_t bits = m.bytes * 8;
    uint8_t tail[72] = {0x80};
    size_t pad = (m.bytes % 64 < 56 ? 56 : 120) - m.bytes % 64;
    for (int i = 0; i < 8; i++) tail[pad + (size_t)i] = (uint8_t)(bits >> 8 * i);
    md5_add(&m, tail, pad + 8);
    for (int i = 0; i < 16; i++) snprintf(ret + 2 * i, 3, "%02x", (unsigned)(m.state[i / 4] >> 8 * (i % 4) & 0xff));
}

/* ---- plain files: y4m, rgb, md5 ---------------------------------------------------------------------------------- */
typedef struct plain {
    FILE *file;
    uint8_t *planes; /* one frame Y, Cb, Cr; NULL for md5 */
} plain;

static int plain_error(const hs_sink *s, const char *what, hs_err *err) {
    return hs_fail(err, HS_EIO, "%s: cannot %s after %lld frames: %s", s->path, what, (long long)s->frames,
                   strerror(errno));
}

static int plain_finish(hs_sink *s, hs_err *err) {
    plain *f = s->impl;
    int rc = 0;
    if (f->file == stdout ? fflush(stdout) : fclose(f->file)) rc = plain_error(s, "finish writing", err);
    hs_free(f->planes);
    hs_free(f);
    return rc;
}

static int plain_open(hs_sink *s, size_t planes, hs_err *err) {
    plain *f = hs_calloc(1, sizeof *f);
    if (!f) return hs_fail(err, HS_ENOMEM, "%s: out of memory", s->path);
    if (planes && !(f->planes = hs_alloc(planes))) {
        hs_free(f);
        return hs_fail(err, HS_ENOMEM, "%s: out of memory for one frame of %zu bytes", s->path, planes);
    }
    f->file = strcmp(s->path, "-") ? fopen(hs_sink_place(s), "wb") : stdout;
    if (!f->file) {
        int code = errno;
        hs_free(f->planes);
        hs_free(f);
        return hs_fail(err, HS_EIO, "%s: cannot open for writing: %s", s->path, strerror(code));
    }
    s->impl = f;
    return 0;
}

static int no_check(const hs_sink_params *p, hs_err *err) {
    (void)p, (void)err;
    return 0;
}

static int y4m_check(const hs_sink_params *p, hs_err *err) {
    if (!strcmp(p->path, "-") && isatty(STDOUT_FILENO))
        return hs_fail(err, HS_EINVAL, "-: stdout is a terminal; send the y4m stream to a file or a pipe");
    return 0;
}

static int y4m_open(hs_sink *s, const hs_sink_params *p, hs_err *err) {
    int rc = plain_open(s, 3 * (size_t)p->width * (size_t)p->height, err);
    if (rc) return rc;
    plain *f = s->impl;
    /* flushed now, so that a place that takes no bytes is known before the work starts */
    if (fprintf(f->file, "YUV4MPEG2 W%d H%d F%d:%d Ip A1:1 C444 XCOLORRANGE=LIMITED\n", p->width, p->height, p->fps_num,
                p->fps_den) < 0 ||
        fflush(f->file)) {
        rc = plain_error(s, "write", err);
        plain_finish(s, NULL);
    }
    return rc;
}

static int y4m_write(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    plain *f = s->impl;
    size_t n = (size_t)s->width * (size_t)s->height;
    uint8_t *y = f->planes, *cb = y + n, *cr = cb + n;
    /* BT.601 in 16-bit fixed point, rounded; chroma rows sum to zero so that gray stays exactly 128 */
    for (size_t i = 0; i < n; i++) {
        int r = rgb[3 * i], g = rgb[3 * i + 1], b = rgb[3 * i + 2];
        y[i] = (uint8_t)((16829 * r + 33039 * g + 6416 * b + (16 << 16) + 32768) >> 16);
        cb[i] = (uint8_t)((-9714 * r - 19070 * g + 28784 * b + (128 << 16) + 32768) >> 16);
        cr[i] = (uint8_t)((28784 * r - 24103 * g - 4681 * b + (128 << 16) + 32768) >> 16);
    }
    if (fputs("FRAME\n", f->file) < 0 || fwrite(f->planes, 1, 3 * n, f->file) != 3 * n)
        return plain_error(s, "write", err);
    return 0;
}

static int rgb_open(hs_sink *s, const hs_sink_params *p, hs_err *err) {
    (void)p;
    return plain_open(s, 0, err);
}

/* Pixels and nothing else: the reader must know the size. */
static int rgb_write(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    const plain *f = s->impl;
    const size_t n = 3 * (size_t)s->width * (size_t)s->height;
    return fwrite(rgb, 1, n, f->file) == n ? 0 : plain_error(s, "write", err);
}

static int md5_open(hs_sink *s, const hs_sink_params *p, hs_err *err) {
    (void)p;
    return plain_open(s, 0, err);
}

static int md5_finish(hs_sink *s, hs_err *err) {
    plain *f = s->impl;
    char hex[33];
    md5_hex(s->md5, hex);
    fprintf(f->file, "%s\n", hex); /* a failure stays in the stream and shows when it is closed */
    if (ferror(f->file)) {
        int rc = plain_error(s, "write", err);
        plain_finish(s, NULL);
        return rc;
    }
    return plain_finish(s, err);
}

/* The caller hashes and counts; nothing is left to do. */
static int hash_only(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    (void)s, (void)rgb, (void)err;
    return 0;
}

static int null_open(hs_sink *s, const hs_sink_params *p, hs_err *err) {
    (void)s, (void)p, (void)err;
    return 0;
}

static int null_finish(hs_sink *s, hs_err *err) {
    (void)s, (void)err;
    return 0;
}

static const hs_sink_ops y4m_ops = {y4m_check, y4m_open, y4m_write, plain_finish};
static const hs_sink_ops rgb_ops = {no_check, rgb_open, rgb_write, plain_finish};
static const hs_sink_ops md5_ops = {no_check, md5_open, hash_only, md5_finish};
static const hs_sink_ops null_ops = {no_check, null_open, hash_only, null_finish};

/* ---- paths ------------------------------------------------------------------------------------------------------ */
const char *hs_sink_extension(const char *path) {
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');
    return dot && dot != base ? dot : "";
}

int hs_sink_png_name(const char *path, int64_t i, char *ret, size_t size, int *ret_numbered, hs_err *err) {
    size_t len = strlen(path);
    const char *pattern = path, *slash, *percent, *end;
    char folder[4096];
    if (len && path[len - 1] == '/') {
        if ((size_t)snprintf(folder, sizeof folder, "%sframe_%%04d.png", path) >= sizeof folder)
            return hs_fail(err, HS_EINVAL, "%.100s...: path too long", path);
        pattern = folder;
    }
    slash = strrchr(pattern, '/'); /* what stands in front of it is as it is */
    percent = strchr(slash ? slash : pattern, '%');
    int digits = 1, numbered = percent != NULL, n;
    if (!numbered) {
        n = snprintf(ret, size, "%s", pattern);
    } else {
        end = percent + 1;
        if (end[0] == '0' && end[1] >= '1' && end[1] <= '9') digits = end[1] - '0', end += 2;
        if (*end != 'd' || strchr(end, '%'))
            return hs_fail(err, HS_EINVAL, "%s: a numbered png needs exactly one %%d or %%0Nd, such as out_%%04d.png",
                           path);
        n = snprintf(ret, size, "%.*s%0*lld%s", (int)(percent - pattern), pattern, digits, (long long)i, end + 1);
    }
    if (n < 0 || (size_t)n >= size) return hs_fail(err, HS_EINVAL, "%.100s...: path too long", path);
    *ret_numbered = numbered;
    return 0;
}

static int choose(const char *path, const hs_sink_ops **ret, hs_err *err) {
    const char *ext = hs_sink_extension(path);
    size_t len = strlen(path);
    if (!len) return hs_fail(err, HS_EINVAL, "the output path is empty");
    if (!strcmp(path, "null:"))
        *ret = &null_ops;
    else if (!strcmp(path, "-") || !strcasecmp(ext, ".y4m"))
        *ret = &y4m_ops;
    else if (!strcasecmp(ext, ".rgb"))
        *ret = &rgb_ops;
    else if (!strcasecmp(ext, ".md5"))
        *ret = &md5_ops;
    else if (path[len - 1] == '/' || !strcasecmp(ext, ".png"))
        *ret = &hs_sink_ops_png;
    else if (!strcasecmp(ext, ".mp4") || !strcasecmp(ext, ".webm") || !strcasecmp(ext, ".mkv"))
        *ret = &hs_sink_ops_container;
    else
        return hs_fail(
            err, HS_EINVAL,
            "%s: %s%s: the extension decides the format, and this build writes %s (a path ending in / becomes a "
            "folder of png files, - is y4m on stdout)",
            path, *ext ? "unknown format " : "no extension", ext, hs_sink_formats());
    return 0;
}

/* The folder a file would go into must be there; creating the file itself is left to open. One for png files is created
 * in a folder that is there, unless it is there itself. */
static int check_folder(const char *path, hs_err *err) {
    char dir[4096];
    struct stat st;
    size_t len = strlen(path);
    if (!strcmp(path, "-") || !strcmp(path, "null:")) return 0;
    if (len >= sizeof dir) return hs_fail(err, HS_EINVAL, "%.100s...: path too long", path);
    memcpy(dir, path, len + 1);
    while (len > 1 && dir[len - 1] == '/') dir[--len] = 0; /* the folder of "a/b/" is "a": b is created */
    if (path[strlen(path) - 1] != '/' && !stat(path, &st) && S_ISDIR(st.st_mode))
        return hs_fail(err, HS_EINVAL, "%s: is a folder; give a file name, or end it in / for numbered png files",
                       path);
    if (path[strlen(path) - 1] == '/' && !stat(dir, &st)) {
        if (!S_ISDIR(st.st_mode))
            return hs_fail(err, HS_EINVAL, "%s: %s is a file, expected a folder for numbered png files", path, dir);
        if (access(dir, W_OK | X_OK))
            return hs_fail(err, HS_EIO, "%s: cannot write into this folder: %s", path, strerror(errno));
        return 0;
    }
    return hs_newfile_folder(dir, err);
}

static int check(const hs_sink_params *p, const hs_sink_ops **ret, hs_err *err) {
    const hs_sink_ops *ops = NULL;
    int rc = choose(p->path, &ops, err);
    if (rc) return rc;
    if (p->width < 1 || p->height < 1 || p->width > MAX_SIDE || p->height > MAX_SIDE)
        return hs_fail(err, HS_EINVAL, "%s: frame size %dx%d is outside 1x1 .. %dx%d", p->path, p->width, p->height,
                       MAX_SIDE, MAX_SIDE);
    if (p->fps_num < 1 || p->fps_den < 1)
        return hs_fail(err, HS_EINVAL, "%s: frame rate %d/%d must be positive", p->path, p->fps_num, p->fps_den);
    if ((rc = ops->check(p, err)) || (rc = check_folder(p->path, err))) return rc;
    *ret = ops;
    return 0;
}

/* ---- the sink --------------------------------------------------------------------------------------------------- */
int hs_sink_check(const hs_sink_params *p, hs_err *err) {
    const hs_sink_ops *ops;
    return check(p, &ops, err);
}

const char *hs_sink_place(const hs_sink *s) {
    return s->target ? s->file.tmp : s->path;
}

/* Plain files and containers get their name when they are closed; what is no regular file has to be written itself. */
static int open_beside(hs_sink *s, hs_err *err) {
    struct stat st;
    const int there = !stat(s->path, &st);
    if (!strcmp(s->path, "-") || s->ops == &null_ops || s->ops == &hs_sink_ops_png || (there && !S_ISREG(st.st_mode)))
        return 0;
    if (there && access(s->path, W_OK))
        return hs_fail(err, HS_EIO, "%s: cannot open for writing: %s", s->path, strerror(errno));
    char *real = realpath(s->path, NULL);
    s->target = hs_strdup(real ? real : s->path);
    free(real);
    if (!s->target) return hs_fail(err, HS_ENOMEM, "%s: out of memory", s->path);
    hs_newfile_sweep(s->target);
    const int rc = hs_newfile_open(s->target, &s->file, err);
    if (rc) hs_free(s->target), s->target = NULL;
    return rc;
}

/* keep: the file gets its name, else nothing is left of it. */
static int sink_free(hs_sink *s, int keep, hs_err *err) {
    const int rc = s->target ? hs_newfile_done(&s->file, keep ? 0 : HS_EINTR, err) : 0;
    hs_free(s->target);
    hs_free(s->path);
    hs_free(s);
    return keep ? rc : 0;
}

int hs_sink_open(const hs_sink_params *p, hs_sink **ret, hs_err *err) {
    const hs_sink_ops *ops;
    int rc = check(p, &ops, err);
    if (rc) return rc;
    hs_sink *s = hs_calloc(1, sizeof *s);
    if (!s || !(s->path = hs_strdup(p->path))) {
        hs_free(s);
        return hs_fail(err, HS_ENOMEM, "%s: out of memory", p->path);
    }
    s->ops = ops;
    s->width = p->width, s->height = p->height;
    md5_init(&s->md5);
    if ((rc = open_beside(s, err)) || (rc = ops->open(s, p, err))) {
        sink_free(s, 0, NULL);
        return rc;
    }
    *ret = s;
    return 0;
}

typedef struct memory {
    uint8_t *at;
    int64_t left; /* frames */
} memory;

static int memory_write(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    memory *m = s->impl;
    size_t frame = 3 * (size_t)s->width * (size_t)s->height;
    if (m->left-- < 1) return hs_fail(err, HS_EINVAL, "more frames than there is memory for");
    memcpy(m->at, rgb, frame);
    m->at += frame;
    return 0;
}

static int memory_finish(hs_sink *s, hs_err *err) {
    (void)err;
    hs_free(s->impl);
    return 0;
}

static const hs_sink_ops memory_ops = {no_check, NULL, memory_write, memory_finish};

int hs_sink_open_memory(uint8_t *frames, int64_t capacity, int width, int height, hs_sink **ret, hs_err *err) {
    hs_sink *s = hs_calloc(1, sizeof *s);
    memory *m = hs_alloc(sizeof *m);
    if (!s || !m) {
        hs_free(s);
        hs_free(m);
        return hs_fail(err, HS_ENOMEM, "no memory for a sink of frames");
    }
    *m = (memory){frames, capacity};
    s->ops = &memory_ops;
    s->width = width, s->height = height;
    s->impl = m;
    md5_init(&s->md5);
    *ret = s;
    return 0;
}

int hs_sink_write(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    if (!s->failure.code && !s->ops->write(s, rgb, &s->failure)) {
        md5_add(&s->md5, rgb, 3 * (size_t)s->width * (size_t)s->height);
        s->frames++;
        return 0;
    }
    return hs_fail(err, s->failure.code, "%s", s->failure.msg);
}

int hs_sink_close(hs_sink *s, char *ret_md5, hs_err *err) {
    hs_err late = {0};
    if (!s) return 0;
    s->ops->finish(s, &late);
    const hs_err *e = s->failure.code ? &s->failure : &late; /* the first one is the cause */
    int rc = e->code ? hs_fail(err, e->code, "%s", e->msg) : 0;
    if (!rc && ret_md5) md5_hex(s->md5, ret_md5);
    const int named = sink_free(s, s->frames > 0, rc ? NULL : err);
    return rc ? rc : named;
}

int64_t hs_sink_frames(const hs_sink *s) {
    return s->frames;
}

const char *hs_sink_formats(void) {
    return hs_sink_coded_formats;
}
