/* The coded formats in a build without FFmpeg: refused, with the cure. */
#include "video_sink.h"

#include <stddef.h>

static int missing(const hs_sink_params *p, hs_err *err) {
    return hs_fail(
        err, HS_ENOTSUP,
        "%s: this build has no FFmpeg and writes only %s; install libavcodec-dev libavformat-dev libswscale-dev "
        "libavutil-dev and build again",
        p->path, hs_sink_coded_formats);
}

const hs_sink_ops hs_sink_ops_container = {.check = missing};
const hs_sink_ops hs_sink_ops_png = {.check = missing};
const char *const hs_sink_coded_formats = "y4m rgb md5";
