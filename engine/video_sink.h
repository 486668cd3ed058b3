/* Inside of the frame sinks, shared by video.c (paths, y4m, rgb, md5, null) and the file that knows FFmpeg
 * (video_ffmpeg.c, or video_stub.c in a build without it). Nobody else includes this. */
#ifndef HS_VIDEO_SINK_H
#define HS_VIDEO_SINK_H
#include "newfile.h"
#include "video.h"

/* What one kind of sink does. check: everything that can be refused without touching a file (codec, sizes).
 * open fills sink->impl or fails without leaving anything behind. finish flushes, closes and frees impl, always. */
typedef struct hs_sink_ops {
    int (*check)(const hs_sink_params *p, hs_err *err);
    int (*open)(hs_sink *s, const hs_sink_params *p, hs_err *err);
    int (*write)(hs_sink *s, const uint8_t *rgb, hs_err *err);
    int (*finish)(hs_sink *s, hs_err *err);
} hs_sink_ops;

typedef struct hs_md5 {
    uint32_t k[64], state[4];
    uint64_t bytes;
    uint8_t block[64];
} hs_md5;

struct hs_sink {
    const hs_sink_ops *ops;
    char *path;      /* owned; for messages */
    char *target;    /* owned: the file itself where path is a link; NULL = no file that is renamed: */
    hs_newfile file; /* open until close gives it its name */
    int width, height;
    int64_t frames;
    hs_md5 md5;
    hs_err failure; /* the first failed write: later writes and close repeat it */
    void *impl;     /* owned by ops: NULL, a file with a row buffer, or an encoder */
};

extern const hs_sink_ops hs_sink_ops_container; /* mp4, webm, mkv by extension */
extern const hs_sink_ops hs_sink_ops_png;
extern const char *const hs_sink_coded_formats; /* what these two can write in this build, for --help */

/* Where the bytes go until the sink is closed. */
const char *hs_sink_place(const hs_sink *s);
/* Extension of the last path component with its dot, "" if there is none. */
const char *hs_sink_extension(const char *path);
/* A png path with one %d or %0Nd behind the last slash: expands it for frame i (never through printf). A path ending in
 * '/' stands for frame_%04d.png in that folder. HS_EINVAL if the pattern is bad; *ret_numbered = 0 if the path names
 * one file. */
int hs_sink_png_name(const char *path, int64_t i, char *ret, size_t size, int *ret_numbered, hs_err *err);

#endif
