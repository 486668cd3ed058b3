/* Two videos beside each other, each under its name: what an eye needs to judge a table. */
#ifndef HS_EVAL_VIDEO_H
#define HS_EVAL_VIDEO_H
#include "base.h"

typedef struct hs_eval_pair {
    const uint8_t *left, *right; /* [frames, height, width, 3] */
    const char *left_name, *right_name;
    int frames, width, height, fps;
} hs_eval_pair;

/* Writes stem.mp4, or stem.y4m in a build without FFmpeg. */
int hs_eval_video_write(const char *stem, const hs_eval_pair *p, hs_err *err);

#endif
