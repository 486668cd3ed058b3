/* Frame sinks: exact kinds bit by bit, lossy kinds by size, count, tags and colour, metadata, refusals, full disks.
 * The ffmpeg and ffprobe programs are the oracle where a file must be read back; without them those tests are skipped.
 */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "video.h"

static char dir[64];
static char path_[4][256];

static void enter(void) {
    strcpy(dir, "/tmp/haste-video-XXXXXX");
    cr_assert(mkdtemp(dir));
}

static void leave(void) {
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", dir);
    cr_assert_eq(system(cmd), 0);
}

TestSuite(video, .init = enter, .fini = leave);

/* A name in the test's folder; valid for the next three calls. */
static const char *in_dir(const char *name) {
    static int i;
    char *p = path_[i++ % 4];
    snprintf(p, sizeof path_[0], "%s/%s", dir, name);
    return p;
}

static void need_ffmpeg(void) {
    if (!strstr(hs_sink_formats(), "mp4")) cr_skip_test("built without FFmpeg");
    if (system("ffmpeg -version >/dev/null 2>&1 && ffprobe -version >/dev/null 2>&1"))
        cr_skip_test("no ffmpeg program");
}

/* Output of a shell command, at most size - 1 bytes; returns its length. */
static size_t shell(char *ret, size_t size, const char *fmt, ...) HS_PRINTF(3, 4);
static size_t shell(char *ret, size_t size, const char *fmt, ...) {
    char cmd[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, args);
    va_end(args);
    FILE *f = popen(cmd, "r");
    cr_assert(f);
    size_t n = fread(ret, 1, size - 1, f);
    ret[n] = 0;
    cr_assert_eq(pclose(f), 0, "%s", cmd);
    return n;
}

/* Noise that no codec can predict: exactness cannot come from smoothness. */
static void noise(uint8_t *p, size_t n, uint64_t frame) {
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)hs_hash64(frame << 32 | i);
}

/* Eight flat colours in columns 32 wide, moved along by one column per frame. */
static const uint8_t colours[8][3] = {{0, 0, 0},   {255, 255, 255}, {255, 0, 0},     {0, 255, 0},
                                      {0, 0, 255}, {255, 255, 0},   {128, 128, 128}, {200, 100, 50}};
static void bars(uint8_t *p, int w, int h, int frame) {
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            memcpy(p + 3 * ((size_t)y * (size_t)w + (size_t)x), colours[(x / 32 + frame) % 8], 3);
}

static const char *const meta[] = {
    "title", "a \"red\" circle, f\xc3\xbcr \xe3\x81\x82", "comment", "made by a test", "seed", "4711", NULL};

static hs_sink *open_sink(const char *path, int w, int h) {
    hs_err err = {0};
    hs_sink *s = NULL;
    hs_sink_params p = {.path = path, .width = w, .height = h, .fps_num = 16, .fps_den = 1, .meta = meta};
    cr_assert_eq(hs_sink_open(&p, &s, &err), 0, "%s: %s", path, err.msg);
    return s;
}

static void close_sink(hs_sink *s, char md5[33]) {
    hs_err err = {0};
    cr_assert_eq(hs_sink_close(s, md5, &err), 0, "%s", err.msg);
}

/* Writes n frames and leaves their bytes behind each other in *all, which the caller frees. */
static void write_video(const char *path, int w, int h, int n, int noisy, uint8_t **all, char md5[33]) {
    size_t size = 3 * (size_t)w * (size_t)h;
    hs_err err = {0};
    hs_sink *s = open_sink(path, w, h);
    *all = malloc(size * (size_t)n);
    for (int i = 0; i < n; i++) {
        uint8_t *p = *all + size * (size_t)i;
        if (noisy)
            noise(p, size, (uint64_t)i);
        else
            bars(p, w, h, i);
        cr_assert_eq(hs_sink_write(s, p, &err), 0, "%s", err.msg);
        cr_assert_eq(hs_sink_frames(s), i + 1);
    }
    close_sink(s, md5);
}

/* ---- exact kinds ------------------------------------------------------------------------------------------------- */
Test(video, md5_is_md5) {
    char got[33], file[64], want[64];
    for (int w = 1; w <= 45; w++) { /* 3 to 135 bytes: every case of the padding */
        uint8_t *all;
        write_video("null:", w, 1, 1, 1, &all, got);
        FILE *f = fopen(in_dir("raw"), "wb");
        cr_assert_eq(fwrite(all, 3, (size_t)w, f), (size_t)w);
        fclose(f);
        free(all);
        shell(want, sizeof want, "md5sum < %s/raw", dir);
        cr_assert_eq(strncmp(got, want, 32), 0, "%d bytes: %s, md5sum says %s", 3 * w, got, want);
    }
    uint8_t *all;
    write_video(in_dir("x.md5"), 31, 7, 5, 1, &all, got);
    free(all);
    cr_assert_eq(shell(file, sizeof file, "cat %s/x.md5", dir), 33);
    cr_assert_eq(strncmp(file, got, 32), 0);
    cr_assert_eq(file[32], '\n');
}

static void exact(const char *name, const char *input, int w, int h, int n) {
    uint8_t *all;
    char md5[33];
    size_t size = 3 * (size_t)w * (size_t)h * (size_t)n;
    char *back = malloc(size + 2);
    need_ffmpeg();
    write_video(in_dir(name), w, h, n, 1, &all, md5);
    cr_assert_eq(shell(back, size + 2, "ffmpeg -v error -i '%s/%s' -f rawvideo -pix_fmt rgb24 -", dir, input), size);
    cr_assert_eq(memcmp(all, back, size), 0, "%s does not hold the exact frames", name);
    free(all);
    free(back);
}

Test(video, mkv_is_exact) {
    exact("x.mkv", "x.mkv", 64, 48, 5);
}
Test(video, mkv_takes_odd_sizes) {
    exact("x.MKV", "x.MKV", 33, 17, 3);
}
Test(video, png_folder_is_exact) {
    exact("frames/", "frames/frame_%04d.png", 64, 48, 3);
}
Test(video, png_pattern_is_exact) {
    exact("f_%d_x.png", "f_%d_x.png", 33, 17, 12);
}
Test(video, single_png_is_exact) {
    exact("one.png", "one.png", 16, 16, 1);
}

Test(video, rgb_is_the_pixels) {
    enum { SIZE = 3 * 33 * 17 * 3 };
    uint8_t *all;
    char md5[33], file[SIZE + 2];
    write_video(in_dir("x.RGB"), 33, 17, 3, 1, &all, md5);
    cr_assert_eq(shell(file, sizeof file, "cat %s/x.RGB", dir), SIZE);
    cr_assert_eq(memcmp(all, file, SIZE), 0);
    free(all);
}

Test(video, y4m_is_601_444) {
    enum { W = 256, H = 3, N = 2 };
    static const uint8_t want[8][3] = {{16, 128, 128}, {235, 128, 128}, {81, 90, 240},   {145, 54, 34},
                                       {41, 240, 110}, {210, 16, 146},  {126, 128, 128}, {123, 91, 175}};
    uint8_t *all;
    char md5[33], file[N * (6 + 3 * W * H) + 128];
    write_video(in_dir("x.y4m"), W, H, N, 0, &all, md5);
    free(all);
    size_t n = shell(file, sizeof file, "cat %s/x.y4m", dir);
    const char *head = "YUV4MPEG2 W256 H3 F16:1 Ip A1:1 C444 XCOLORRANGE=LIMITED\n";
    size_t len = strlen(head);
    cr_assert_eq(n, len + N * (6 + 3 * W * H));
    cr_assert_eq(memcmp(file, head, len), 0);
    for (int i = 0; i < N; i++) {
        const char *frame = file + len + (size_t)i * (6 + 3 * W * H);
        cr_assert_eq(memcmp(frame, "FRAME\n", 6), 0);
        for (int x = 0; x < W; x += 31)
            for (int c = 0; c < 3; c++)
                cr_assert_eq((uint8_t)frame[6 + c * W * H + W + x], want[(x / 32 + i) % 8][c], "frame %d x %d plane %d",
                             i, x, c);
    }
}

Test(video, y4m_comes_back_within_two_levels) {
    enum { W = 64, H = 48, N = 2, SIZE = 3 * W * H * N };
    uint8_t *all;
    char md5[33], back[SIZE + 2];
    int worst = 0;
    need_ffmpeg();
    write_video(in_dir("x.y4m"), W, H, N, 1, &all, md5);
    cr_assert_eq(shell(back, sizeof back, "ffmpeg -v error -i %s/x.y4m -f rawvideo -pix_fmt rgb24 -", dir), SIZE);
    for (int i = 0; i < SIZE; i++) {
        int d = abs((uint8_t)back[i] - all[i]);
        worst = d > worst ? d : worst;
    }
    free(all);
    cr_assert_leq(worst, 3, "worst difference %d", worst);
}

/* ---- lossy kinds --------------------------------------------------------------------------------------------------
 */
static void lossy(const char *name, const char *codec) {
    enum { W = 256, H = 64, N = 9, SIZE = 3 * W * H };
    uint8_t *all;
    char md5[33], text[8192];
    char *back = malloc(SIZE * N + 2);
    int worst = 0;
    need_ffmpeg();
    write_video(in_dir(name), W, H, N, 0, &all, md5);
    shell(
        text, sizeof text,
        "ffprobe -v error -count_frames -of default=noprint_wrappers=1 -show_entries "
        "stream=codec_name,width,height,pix_fmt,color_range,color_space,color_transfer,color_primaries,avg_frame_rate,"
        "nb_read_frames:format=duration:format_tags '%s/%s'",
        dir, name);
    const char *const parts[] = {codec,
                                 "width=256\n",
                                 "height=64\n",
                                 "pix_fmt=yuv420p\n",
                                 "color_range=tv\n",
                                 "color_space=bt709\n",
                                 "color_transfer=bt709\n",
                                 "color_primaries=bt709\n",
                                 "avg_frame_rate=16/1\n",
                                 "nb_read_frames=9\n",
                                 "duration=0.56",
                                 meta[1],
                                 meta[3],
                                 "4711"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        cr_assert(strstr(text, parts[i]), "%s: ffprobe lacks \"%s\":\n%s", name, parts[i], text);
    /* flat colours away from edges survive; a wrong matrix or range would shift them by 10 and more */
    cr_assert_eq(shell(back, SIZE * N + 2, "ffmpeg -v error -i '%s/%s' -f rawvideo -pix_fmt rgb24 -", dir, name),
                 SIZE * N);
    for (int i = 0; i < N; i++)
        for (int x = 16; x < W; x += 32)
            for (int c = 0; c < 3; c++) {
                size_t at = (size_t)SIZE * (size_t)i + 3 * (size_t)(H / 2 * W + x) + (size_t)c;
                int d = abs((uint8_t)back[at] - all[at]);
                worst = d > worst ? d : worst;
            }
    free(all);
    free(back);
    cr_assert_leq(worst, 4, "%s: a flat colour is off by %d", name, worst);
}

Test(video, mp4_is_tagged_and_true_in_colour) {
    lossy("x.mp4", "codec_name=h264\n");
}
Test(video, webm_is_tagged_and_true_in_colour) {
    lossy("x.webm", "codec_name=vp9\n");
}

Test(video, one_frame_lasts_as_long_as_it_should) {
    uint8_t *all;
    char md5[33], text[64];
    need_ffmpeg();
    write_video(in_dir("x.mp4"), 64, 64, 1, 0, &all, md5);
    free(all);
    shell(text, sizeof text, "ffprobe -v error -of csv=p=0 -show_entries stream=duration %s/x.mp4", dir);
    cr_assert_str_eq(text, "0.062500\n");
}

static size_t slurp(const char *path, uint8_t **ret) {
    FILE *f = fopen(path, "rb");
    cr_assert(f, "%s", path);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    *ret = malloc((size_t)n + 1);
    cr_assert_eq(fread(*ret, 1, (size_t)n, f), (size_t)n);
    fclose(f);
    return (size_t)n;
}

Test(video, mp4_starts_fast_and_files_repeat_bit_by_bit) {
    static const char *const names[] = {"a.mp4", "b.mp4", "a.webm", "b.webm", "a.mkv", "b.mkv"};
    uint8_t *all, *x[2];
    char md5[33];
    need_ffmpeg();
    for (int k = 0; k < 6; k += 2) {
        size_t n[2];
        for (int i = 0; i < 2; i++) {
            write_video(in_dir(names[k + i]), 64, 64, 5, 0, &all, md5);
            free(all);
            n[i] = slurp(in_dir(names[k + i]), &x[i]);
        }
        cr_assert(n[0] == n[1] && !memcmp(x[0], x[1], n[0]), "%s and %s differ", names[k], names[k + 1]);
        if (!k) {
            const uint8_t *moov = memmem(x[0], n[0], "moov", 4), *mdat = memmem(x[0], n[0], "mdat", 4);
            cr_assert(moov && mdat && moov < mdat, "the index of the mp4 is not in front");
        }
        free(x[0]);
        free(x[1]);
    }
}

static uint32_t be32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Room that is kept for the index has to be enough: a failure would come at the very end. Every frame is another scene
 * here, and lookahead, B frames and keys are as the encoder likes them. */
Test(video, the_index_of_an_mp4_fits_the_room_that_is_kept) {
    enum { W = 64, H = 48, N = 400, SIZE = 3 * W * H };
    static uint8_t rgb[SIZE];
    static char longest[5000], text[64];
    const char *const much[] = {"title", longest, "prompt", longest, "negative_prompt", longest, NULL};
    uint8_t *file;
    hs_err err = {0};
    need_ffmpeg();
    memset(longest, 'x', sizeof longest - 1);
    for (int noisy = 0; noisy < 2; noisy++) {
        hs_sink_params p = {
            .path = in_dir("x.mp4"), .width = W, .height = H, .fps_num = 16, .fps_den = 1, .meta = much, .frames = N};
        hs_sink *s = NULL;
        cr_assert_eq(hs_sink_open(&p, &s, &err), 0, "%s", err.msg);
        for (int i = 0; i < N; i++) {
            if (noisy)
                noise(rgb, SIZE, (uint64_t)(i / 3)); /* scenes of three frames */
            else
                bars(rgb, W, H, i);
            cr_assert_eq(hs_sink_write(s, rgb, &err), 0, "%s", err.msg);
        }
        cr_assert_eq(hs_sink_close(s, NULL, &err), 0, "%s", err.msg);
        const size_t n = slurp(in_dir("x.mp4"), &file);
        const uint8_t *moov = memmem(file, n, "moov", 4), *mdat = memmem(file, n, "mdat", 4);
        cr_assert(moov && mdat && moov < mdat, "the index of the mp4 is not in front");
        const size_t moov_size = be32(moov - 4);
        cr_expect_lt(moov_size, 4096 + 64 * N / 2 + 4 * sizeof longest, "%zu bytes: too near to the room", moov_size);
        free(file);
        shell(text, sizeof text,
              "ffprobe -v error -count_frames -of csv=p=0 -show_entries stream=nb_read_frames %s/x.mp4", dir);
        cr_assert_eq(atoi(text), N, "%s frames play", text);
    }
}

/* ---- metadata of png ------------------------------------------------------------------------------------------------
 */
static uint32_t crc32_bitwise(const uint8_t *p, size_t n) {
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int b = 0; b < 8; b++) c = c & 1 ? c >> 1 ^ 0xedb88320u : c >> 1;
    }
    return ~c;
}

Test(video, png_carries_the_settings) {
    uint8_t *all, *file;
    char md5[33];
    int texts = 0;
    need_ffmpeg();
    write_video(in_dir("x.png"), 16, 16, 1, 1, &all, md5);
    size_t n = slurp(in_dir("x.png"), &file);
    for (size_t at = 8; at < n;) {
        uint32_t len = be32(file + at);
        const uint8_t *body = file + at + 8;
        cr_assert_leq(at + len + 12, n);
        cr_assert_eq(be32(body + len), crc32_bitwise(file + at + 4, len + 4), "chunk %.4s",
                     (const char *)file + at + 4);
        if (!memcmp(file + at + 4, "iTXt", 4)) {
            const char *key = meta[2 * texts], *value = meta[2 * texts + 1];
            size_t k = strlen(key), v = strlen(value);
            cr_assert_eq(len, k + 5 + v);
            cr_assert(!memcmp(body, key, k) && !memcmp(body + k, "\0\0\0\0\0", 5) && !memcmp(body + k + 5, value, v));
            texts++;
        }
        at += len + 12;
    }
    cr_assert_eq(texts, 3);
    free(all);
    free(file);
}

/* ---- refusals -------------------------------------------------------------------------------------------------------
 */
/* Neither check nor open accepts it, nothing is created, nothing leaks. */
static void refused(hs_sink_params p, int code, const char *part, int check_too) {
    hs_err err = {0};
    hs_sink *s = NULL;
    int64_t live = hs_alloc_live();
    if (!p.fps_num && !p.fps_den) p.fps_num = 16, p.fps_den = 1;
    if (check_too) cr_assert_eq(hs_sink_check(&p, &err), code, "%s: check gave %d %s", p.path, err.code, err.msg);
    cr_assert_eq(hs_sink_open(&p, &s, &err), code, "%s: open gave %d %s", p.path, err.code, err.msg);
    cr_assert(strstr(err.msg, part), "%s: \"%s\" lacks \"%s\"", p.path, err.msg, part);
    cr_assert_null(s);
    cr_assert_eq(hs_alloc_live(), live);
}

Test(video, bad_requests_are_refused_before_anything_is_made) {
    char text[256];
    refused((hs_sink_params){.path = "", .width = 16, .height = 16}, HS_EINVAL, "empty", 1);
    refused((hs_sink_params){.path = in_dir("x.avi"), .width = 16, .height = 16}, HS_EINVAL, "unknown format .avi", 1);
    refused((hs_sink_params){.path = in_dir("noext"), .width = 16, .height = 16}, HS_EINVAL, "no extension", 1);
    refused((hs_sink_params){.path = in_dir("no/x.y4m"), .width = 16, .height = 16}, HS_EIO, "No such file", 1);
    refused((hs_sink_params){.path = in_dir("x.y4m"), .width = 0, .height = 16}, HS_EINVAL, "0x16", 1);
    refused((hs_sink_params){.path = in_dir("x.y4m"), .width = 16, .height = 16385}, HS_EINVAL, "16x16385", 1);
    refused((hs_sink_params){.path = in_dir("x.y4m"), .width = 16, .height = 16, .fps_num = -1, .fps_den = 1},
            HS_EINVAL, "frame rate", 1);
    refused((hs_sink_params){.path = in_dir("x.y4m"), .width = 16, .height = 16, .fps_num = 16}, HS_EINVAL, "16/0", 1);
    cr_assert_eq(mkdir(in_dir("d.y4m"), 0777), 0);
    refused((hs_sink_params){.path = in_dir("d.y4m"), .width = 16, .height = 16}, HS_EINVAL, "is a folder", 1);
    cr_assert_eq(rmdir(in_dir("d.y4m")), 0);
    refused((hs_sink_params){.path = "/proc/haste.y4m", .width = 16, .height = 16}, HS_EIO, "/proc/haste.y4m", 0);
    cr_assert_eq(shell(text, sizeof text, "ls -A %s", dir), 0, "left behind: %s", text);
}

Test(video, coded_kinds_refuse_too) {
    char text[256];
    need_ffmpeg();
    refused((hs_sink_params){.path = in_dir("x.mp4"), .width = 33, .height = 16}, HS_EINVAL, "33x16", 1);
    refused((hs_sink_params){.path = in_dir("x.webm"), .width = 32, .height = 17}, HS_EINVAL, "even", 1);
    refused((hs_sink_params){.path = in_dir("x.mp4"), .width = 32, .height = 16, .has_crf = 1, .crf = 52}, HS_EINVAL,
            "52", 1);
    refused((hs_sink_params){.path = in_dir("no/x.mp4"), .width = 32, .height = 16}, HS_EIO, "No such file", 1);
    static const char *const patterns[] = {"%s.png", "%d_%d.png", "%04x.png",  "%",
                                           "%n.png", "a%.png",    "%123d.png", "%-4d.png"};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        hs_sink_params p = {.path = in_dir(patterns[i]), .width = 16, .height = 16, .fps_num = 1, .fps_den = 1};
        hs_err err = {0};
        cr_assert_eq(hs_sink_check(&p, &err), HS_EINVAL, "%s", patterns[i]);
    }
    refused((hs_sink_params){.path = "/proc/haste.mp4", .width = 16, .height = 16}, HS_EIO, "/proc/haste.mp4", 0);
    refused((hs_sink_params){.path = "/proc/haste/", .width = 16, .height = 16}, HS_EIO, "/proc/haste/", 0);
    cr_assert_eq(shell(text, sizeof text, "ls -A %s", dir), 0, "left behind: %s", text);
}

/* Bytes of a short video of noise at this CRF. */
static int64_t size_at(const char *path, int crf) {
    uint8_t rgb[3 * 32 * 32];
    hs_err err = {0};
    hs_sink *s = NULL;
    struct stat st;
    hs_sink_params p = {.path = path, .width = 32, .height = 32, .fps_num = 16, .fps_den = 1, .has_crf = 1, .crf = crf};
    cr_assert_eq(hs_sink_open(&p, &s, &err), 0, "%s", err.msg);
    noise(rgb, sizeof rgb, 0);
    cr_assert_eq(hs_sink_write(s, rgb, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_sink_close(s, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(stat(path, &st), 0);
    return st.st_size;
}

Test(video, crf_is_the_quality_down_to_0) {
    need_ffmpeg();
    static const char *const names[] = {"q.mp4", "q.webm"};
    for (int i = 0; i < 2; i++) {
        int64_t best = size_at(in_dir(names[i]), 0), usual = size_at(in_dir(names[i]), 17),
                worst = size_at(in_dir(names[i]), 51);
        cr_assert(best > usual && usual > worst, "%s: %lld, %lld, %lld bytes", names[i], (long long)best,
                  (long long)usual, (long long)worst);
    }
}

Test(video, one_png_holds_one_frame) {
    uint8_t rgb[3 * 16 * 16];
    hs_err err = {0};
    need_ffmpeg();
    hs_sink *s = open_sink(in_dir("x.png"), 16, 16);
    noise(rgb, sizeof rgb, 0);
    cr_assert_eq(hs_sink_write(s, rgb, &err), 0);
    cr_assert_eq(hs_sink_write(s, rgb, &err), HS_EINVAL);
    cr_assert(strstr(err.msg, "%04d"));
    cr_assert_eq(hs_sink_frames(s), 1);
    cr_assert_eq(hs_sink_close(s, NULL, &err), HS_EINVAL, "close repeats the failure");
}

Test(video, without_ffmpeg_the_cure_is_named) {
    if (strstr(hs_sink_formats(), "mp4")) cr_skip_test("built with FFmpeg");
    static const char *const names[] = {"x.mp4", "x.webm", "x.mkv", "x.png", "frames/"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        refused((hs_sink_params){.path = in_dir(names[i]), .width = 16, .height = 16}, HS_ENOTSUP, "libavcodec-dev", 1);
}

/* ---- full disks and short memory
 * -------------------------------------------------------------------------------------- */
static const char *const kinds[] = {"x.y4m", "x.mp4", "x.webm", "x.mkv", "x.rgb", "x_%d.png", "x.md5"};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int built(const char *name) {
    return strstr(name, ".y4m") || strstr(name, ".rgb") || strstr(name, ".md5") || strstr(hs_sink_formats(), "mp4");
}

/* Files may hold 20,000 bytes and not one more: the failure must be reported, once by write or at the latest by close,
 * must name the file and the cause, and must leave no memory behind. */
Test(video, a_full_disk_is_reported) {
    enum { W = 64, H = 64 };
    static uint8_t rgb[3 * W * H];
    struct rlimit limit = {20000, 20000};
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    for (int k = 0; k < 5; k++) {
        if (!built(kinds[k])) continue;
        int64_t live = hs_alloc_live();
        hs_err err = {0}, again = {0}, end = {0};
        hs_sink *s = open_sink(in_dir(kinds[k]), W, H);
        int rc = 0, i;
        for (i = 0; i < 60 && !rc; i++) {
            noise(rgb, sizeof rgb, (uint64_t)i);
            rc = hs_sink_write(s, rgb, &err);
        }
        if (rc) {
            cr_assert_eq(hs_sink_frames(s), i - 1, "%s counts a frame that failed", kinds[k]);
            cr_assert_eq(hs_sink_write(s, rgb, &again), rc);
            cr_assert_str_eq(again.msg, err.msg);
        }
        cr_assert_eq(hs_sink_close(s, NULL, &end), HS_EIO, "%s: a full disk went unnoticed", kinds[k]);
        cr_assert(strstr(end.msg, kinds[k]) && strstr(end.msg, "File too large"), "%s", end.msg);
        cr_assert(rc, "%s: noticed only at the end", kinds[k]);
        cr_assert_eq(hs_alloc_live(), live, "%s leaks", kinds[k]);
    }
}

Test(video, a_full_disk_is_reported_for_png) {
    enum { W = 128, H = 128 };
    static uint8_t rgb[3 * W * H];
    struct rlimit limit = {20000, 20000};
    hs_err err = {0};
    need_ffmpeg();
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    hs_sink *s = open_sink(in_dir("x_%d.png"), W, H);
    noise(rgb, sizeof rgb, 0);
    cr_assert_eq(hs_sink_write(s, rgb, &err), HS_EIO);
    cr_assert(strstr(err.msg, "x_0.png") && strstr(err.msg, "File too large"), "%s", err.msg);
    cr_assert_eq(hs_sink_frames(s), 0);
    cr_assert_eq(hs_sink_close(s, NULL, &err), HS_EIO);
}

/* A place that takes no byte at all is known when the sink is opened, before the work. */
Test(video, a_place_that_takes_nothing_is_refused_at_once) {
    for (int k = 0; k < 4; k++) {
        if (!built(kinds[k])) continue;
        const char *path = in_dir(kinds[k]);
        cr_assert_eq(symlink("/dev/full", path), 0);
        refused((hs_sink_params){.path = path, .width = 64, .height = 64}, HS_EIO, "No space left", 0);
    }
}

Test(video, every_failed_allocation_is_survived) {
    enum { W = 32, H = 32 };
    static uint8_t rgb[3 * W * H];
    for (int k = 0; k < KINDS; k++) {
        if (!built(kinds[k])) continue;
        hs_sink_params p = {
            .path = in_dir(kinds[k]), .width = W, .height = H, .fps_num = 16, .fps_den = 1, .meta = meta};
        int64_t live = hs_alloc_live();
        int rc = HS_ENOMEM, n;
        for (n = 1; rc == HS_ENOMEM && n < 100; n++) {
            hs_err err = {0};
            hs_sink *s = NULL;
            hs_alloc_fail_at(n);
            rc = hs_sink_open(&p, &s, &err);
            if (!rc) rc = hs_sink_write(s, rgb, &err);
            hs_alloc_fail_at(0);
            hs_sink_close(s, NULL, NULL);
            cr_assert_eq(hs_alloc_live(), live, "%s leaks when allocation %d fails", kinds[k], n);
        }
        cr_assert_eq(rc, 0, "%s: %d", kinds[k], rc);
        cr_assert_gt(n, 2, "%s: no allocation failed", kinds[k]);
    }
}

/* What an interrupted run leaves: a file without frames, and one with fewer than the encoder looks ahead. */
Test(video, a_file_closed_early_is_whole) {
    uint8_t *all;
    char md5[33], text[64];
    need_ffmpeg();
    close_sink(open_sink(in_dir("empty.mp4"), 64, 64), md5);
    cr_assert_str_eq(md5, "d41d8cd98f00b204e9800998ecf8427e");
    for (int k = 1; k < 4; k++) {
        write_video(in_dir(kinds[k]), 64, 64, 2, 0, &all, md5);
        free(all);
        shell(text, sizeof text,
              "ffprobe -v error -count_frames -of csv=p=0 -show_entries stream=nb_read_frames '%s/%s'", dir, kinds[k]);
        cr_assert_eq(atoi(text), 2, "%s holds %s", kinds[k], text);
    }
}

Test(video, memory_holds_what_was_written_and_no_more) {
    enum { W = 5, H = 3, N = 2, FRAME = 3 * W * H };
    uint8_t frames[N * FRAME + 1], rgb[FRAME];
    char md5[33];
    hs_err err = {0};
    hs_sink *s = NULL;
    memset(frames, 0xee, sizeof frames);
    cr_assert_eq(hs_sink_open_memory(frames, N, W, H, &s, &err), 0, "%s", err.msg);
    for (int i = 0; i < N; i++) {
        memset(rgb, 10 + i, FRAME);
        cr_assert_eq(hs_sink_write(s, rgb, &err), 0, "%s", err.msg);
    }
    cr_assert_eq(hs_sink_frames(s), N);
    cr_assert(frames[0] == 10 && frames[FRAME - 1] == 10 && frames[FRAME] == 11 && frames[2 * FRAME - 1] == 11);
    cr_assert_eq(hs_sink_write(s, rgb, &err), HS_EINVAL, "a frame more than there is room for");
    cr_assert_eq(frames[N * FRAME], 0xee);
    cr_assert_eq(hs_sink_close(s, md5, &err), HS_EINVAL, "close repeats the failure");
    int64_t live = hs_alloc_live();
    for (int n = 1; n < 3; n++) {
        hs_alloc_fail_at(n);
        cr_assert_eq(hs_sink_open_memory(frames, N, W, H, &s, &err), HS_ENOMEM);
        hs_alloc_fail_at(0);
        cr_assert_eq(hs_alloc_live(), live);
    }
}
