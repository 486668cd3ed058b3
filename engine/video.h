/* Frame sinks: where the finished RGB frames go. FFmpeg (mp4, webm, mkv), y4m, raw RGB, png, md5, null.
 *
 * Frames arrive in order, one call each, RGB interleaved u8 [height, width, 3]. A sink that has been opened must be
 * closed; close finishes the file even after a failed or interrupted run, so what was written can be played. Until then
 * it has another name beside its own, so that an older file stays if no frame comes; a partial one gets its name too,
 * the caller says that it is partial. Numbered png files, devices, pipes and stdout are written where they are.
 */
#ifndef HS_VIDEO_H
#define HS_VIDEO_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_sink hs_sink;

typedef struct hs_sink_params {
    const char *path; /* extension decides: .mp4 .webm .mkv .y4m .rgb .md5; "-" = y4m on stdout; "null:" = discard;
                         a path ending in ".png" with one %d (or %0Nd) or a path ending in "/" = numbered png files
                         frame_0000.png ... in that folder (created); "x.png" without %d is allowed for 1 frame */
    int width, height;
    int fps_num, fps_den;
    const char *const
        *meta;        /* key, value, ..., NULL: written into the container (mp4, webm, mkv, png text); may be NULL */
    int64_t frames;   /* how many will come, or more; 0 = not known. An mp4 then keeps room for its index from the
                         start, so that it plays even where the disk was full before its end */
    int has_crf, crf; /* H.264/VP9 constant quality, 0 (best) to 51; has_crf 0 = 17 */
} hs_sink_params;

/* Everything that can be refused without touching a file: path, extension, codec, sizes, the folder. For --dry-run. */
int hs_sink_check(const hs_sink_params *p, hs_err *err);
/* Checks that the place is writable and the codec is built in before anything expensive runs. */
int hs_sink_open(const hs_sink_params *p, hs_sink **ret, hs_err *err);
/* Frames kept in memory instead: into frames [capacity, height, width, 3], the caller's, which must outlive the sink.
 */
int hs_sink_open_memory(uint8_t *frames, int64_t capacity, int width, int height, hs_sink **ret, hs_err *err);
int hs_sink_write(hs_sink *s, const uint8_t *rgb, hs_err *err);
/* Flushes and closes; frees s in every case. ret_md5 (33 bytes, may be NULL): md5 of all frame bytes written (RGB). */
int hs_sink_close(hs_sink *s, char *ret_md5, hs_err *err);
/* Lists what this build can write, for --help: "mp4 webm mkv y4m rgb png md5". */
const char *hs_sink_formats(void);

/* Counts the frames of a sink so far. */
int64_t hs_sink_frames(const hs_sink *s);

#ifdef __cplusplus
}
#endif
#endif
