/* Frame sinks that need FFmpeg: mp4 (H.264), webm (VP9), mkv (FFV1, exact RGB) and png.
 *
 * The two lossy kinds are yuv420p, BT.709, limited range, converted by swscale with both ranges set and tagged as such.
 * The two exact kinds never see a colour matrix: bytes are only moved. Files are bit-exact for the same frames (no
 * date, no random ids), and packets are flushed at once, so that a full disk is noticed early and not at the end.
 */
#include "video_sink.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/crc.h>
#include <libavutil/opt.h>
#include <libswscale/swscale.h>

enum { DEFAULT_CRF = 17 };

/* Encoders are tried in order; any after the first is a fall-back and is announced. Options apply where they exist. */
typedef struct container {
    const char *ext, *muxer, *codec_name;
    const char *encoders[5];
    enum AVPixelFormat pix;
    const char *options[9]; /* key, value, ... of the encoder */
    const char *package;    /* what to install when no encoder is there */
} container;

static const container containers[] = {
    {".mp4",
     "mp4",
     "H.264",
     {"libx264", "libopenh264", "h264", "mpeg4"},
     AV_PIX_FMT_YUV420P,
     {"preset", "medium"},
     "an FFmpeg with libx264 (Debian's libavcodec59 or libavcodec-extra59 have it)"},
    {".webm",
     "webm",
     "VP9",
     {"libvpx-vp9"},
     AV_PIX_FMT_YUV420P,
     {"cpu-used", "2", "row-mt", "1", "deadline", "good"},
     "an FFmpeg with libvpx (Debian's libavcodec59 has it)"},
    {".mkv",
     "matroska",
     "FFV1",
     {"ffv1"},
     AV_PIX_FMT_BGR0,
     {"level", "3", "slicecrc", "1"},
     "an FFmpeg with its own FFV1 encoder switched on"},
};

typedef struct coder {
    AVFormatContext *fmt; /* NULL for png */
    AVCodecContext *enc;
    AVFrame *frame;
    AVPacket *pkt;
    struct SwsContext *sws; /* NULL where bytes are only moved */
    char *pattern;          /* png: owned copy of the path */
    uint8_t *text;          /* png: ready-made iTXt chunks, owned */
    size_t text_len;
} coder;

const char *const hs_sink_coded_formats = "mp4 webm mkv y4m rgb png md5";

static int av_fail(hs_err *err, const char *path, const char *what, int averror) {
    char why[AV_ERROR_MAX_STRING_SIZE] = "";
    av_strerror(averror, why, sizeof why);
    return hs_fail(err, averror == AVERROR(ENOMEM) ? HS_ENOMEM : HS_EIO, "%s: cannot %s: %s", path, what, why);
}

/* FFmpeg writes to stderr unless told otherwise; its errors become warnings of ours, the rest debug lines. */
static void to_hs_log(void *ctx, int level, const char *fmt, va_list args) {
    char line[512];
    int prefix = 1;
    if (level > AV_LOG_INFO) return;
    av_log_format_line2(ctx, level, fmt, args, line, (int)sizeof line, &prefix);
    line[strcspn(line, "\r\n")] = 0;
    if (*line) hs_log(level <= AV_LOG_ERROR ? HS_LOG_WARN : HS_LOG_DEBUG, "FFmpeg: %s", line);
}

static void coder_free(coder *c) {
    if (!c) return;
    sws_freeContext(c->sws);
    avcodec_free_context(&c->enc);
    av_frame_free(&c->frame);
    av_packet_free(&c->pkt);
    if (c->fmt && c->fmt->pb) avio_closep(&c->fmt->pb);
    avformat_free_context(c->fmt);
    hs_free(c->pattern);
    hs_free(c->text);
    hs_free(c);
}

static const container *find_container(const char *path) {
    const container *k = containers;
    while (strcasecmp(k->ext, hs_sink_extension(path))) k++; /* video.c sends only these three here */
    return k;
}

/* ---- shared by containers and png: the encoder and its frame ---------------------------------------------------- */
static AVCodecContext *encoder_new(const char *name, const hs_sink_params *p, enum AVPixelFormat pix) {
    const AVCodec *codec = avcodec_find_encoder_by_name(name);
    if (!codec && !strcmp(name, "h264")) codec = avcodec_find_encoder(AV_CODEC_ID_H264);
    AVCodecContext *enc = codec ? avcodec_alloc_context3(codec) : NULL;
    if (!enc) return NULL;
    enc->width = p->width, enc->height = p->height;
    enc->pix_fmt = pix;
    enc->time_base = (AVRational){p->fps_den, p->fps_num};
    enc->framerate = (AVRational){p->fps_num, p->fps_den};
    enc->sample_aspect_ratio = (AVRational){1, 1};
    int yuv = pix == AV_PIX_FMT_YUV420P;
    enc->color_range = yuv ? AVCOL_RANGE_MPEG : AVCOL_RANGE_JPEG;
    enc->colorspace = yuv ? AVCOL_SPC_BT709 : AVCOL_SPC_RGB;
    if (yuv) {
        enc->color_primaries = AVCOL_PRI_BT709;
        enc->color_trc = AVCOL_TRC_BT709;
        enc->chroma_sample_location = AVCHROMA_LOC_LEFT;
    }
    return enc;
}

static int frame_new(coder *c, const char *path, hs_err *err) {
    c->frame = av_frame_alloc();
    c->pkt = av_packet_alloc();
    if (!c->frame || !c->pkt) return hs_fail(err, HS_ENOMEM, "%s: out of memory", path);
    c->frame->format = c->enc->pix_fmt;
    c->frame->width = c->enc->width, c->frame->height = c->enc->height;
    c->frame->color_range = c->enc->color_range;
    c->frame->colorspace = c->enc->colorspace;
    c->frame->color_primaries = c->enc->color_primaries;
    c->frame->color_trc = c->enc->color_trc;
    c->frame->chroma_location = c->enc->chroma_sample_location;
    int rc = av_frame_get_buffer(c->frame, 0);
    return rc < 0 ? av_fail(err, path, "allocate a frame", rc) : 0;
}

static int frame_fill(coder *c, const hs_sink *s, const uint8_t *rgb, hs_err *err) {
    AVFrame *f = c->frame;
    int w = s->width, rc = av_frame_make_writable(f); /* the encoder may still hold the last one */
    if (rc < 0) return av_fail(err, s->path, "allocate a frame", rc);
    if (c->sws) {
        sws_scale(c->sws, &(const uint8_t *){rgb}, &(const int){3 * w}, 0, s->height, f->data, f->linesize);
    } else {
        for (int y = 0; y < s->height; y++) {
            const uint8_t *from = rgb + 3 * (size_t)w * (size_t)y;
            uint8_t *to = f->data[0] + (ptrdiff_t)f->linesize[0] * y;
            if (f->format == AV_PIX_FMT_RGB24) {
                memcpy(to, from, 3 * (size_t)w);
                continue;
            }
            for (int x = 0; x < w; x++, from += 3, to += 4)
                to[0] = from[2], to[1] = from[1], to[2] = from[0], to[3] = 0;
        }
    }
    f->pts = s->frames;
    return 0;
}

/* ---- mp4, webm, mkv --------------------------------------------------------------------------------------------- */
/* The first encoder of the list that opens; *ret_enc is owned by the caller. */
static int encoder_open(const hs_sink_params *p, const container *k, int global_header, AVCodecContext **ret_enc,
                        hs_err *err) {
    for (int i = 0; k->encoders[i]; i++) {
        AVCodecContext *enc = encoder_new(k->encoders[i], p, k->pix);
        if (!enc) continue;
        if (global_header) enc->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
        enc->flags |= AV_CODEC_FLAG_BITEXACT;
        for (int o = 0; k->options[o]; o += 2)
            av_opt_set(enc->priv_data, k->options[o], k->options[o + 1], 0); /* other encoders lack some: no matter */
        if (k->pix == AV_PIX_FMT_YUV420P) {
            /* constant quality; where an encoder knows no crf: fixed quantiser 2 or about 4 Mbit/s at 832x480, 16 fps
             */
            enc->bit_rate = 0;
            if (av_opt_set_int(enc->priv_data, "crf", p->has_crf ? p->crf : DEFAULT_CRF, 0) < 0) {
                if (p->has_crf)
                    hs_log(HS_LOG_FALLBACK, "%s: the encoder %s takes no CRF; not %d, but a quality of its own is used",
                           p->path, k->encoders[i], p->crf);
                enc->flags |= AV_CODEC_FLAG_QSCALE;
                enc->global_quality = 2 * FF_QP2LAMBDA;
                enc->bit_rate = (int64_t)p->width * p->height * p->fps_num / p->fps_den * 5 / 8;
            }
        }
        if (avcodec_open2(enc, NULL, NULL) < 0) {
            avcodec_free_context(&enc);
            continue;
        }
        if (i)
            hs_log(HS_LOG_FALLBACK, "%s: no %s encoder in this FFmpeg, using %s", p->path, k->encoders[0],
                   enc->codec->name);
        *ret_enc = enc;
        return 0;
    }
    return hs_fail(err, HS_ENOTSUP, "%s: FFmpeg here has no working %s encoder; install %s, or write .mkv or .y4m",
                   p->path, k->codec_name, k->package);
}

static int container_check(const hs_sink_params *p, hs_err *err) {
    const container *k = find_container(p->path);
    int known = 0;
    for (int i = 0; k->encoders[i]; i++) known |= avcodec_find_encoder_by_name(k->encoders[i]) != NULL;
    if (!known)
        return hs_fail(err, HS_ENOTSUP, "%s: FFmpeg here has no %s encoder; install %s, or write .y4m", p->path,
                       k->codec_name, k->package);
    if (k->pix == AV_PIX_FMT_YUV420P && (p->width % 2 || p->height % 2))
        return hs_fail(err, HS_EINVAL,
                       "%s: %s halves the colour resolution and needs even sizes, not %dx%d; .mkv, .png and "
                       ".y4m take any size",
                       p->path, k->codec_name, p->width, p->height);
    if (p->has_crf && (p->crf < 0 || p->crf > 51))
        return hs_fail(err, HS_EINVAL, "%s: CRF %d is outside 0 .. 51", p->path, p->crf);
    return 0;
}

static int converter_open(coder *c, const hs_sink_params *p, hs_err *err) {
    c->sws = sws_getContext(p->width, p->height, AV_PIX_FMT_RGB24, p->width, p->height, c->enc->pix_fmt,
                            SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INP, NULL, NULL, NULL);
    const int *matrix = sws_getCoefficients(SWS_CS_ITU709);
    if (!c->sws || sws_setColorspaceDetails(c->sws, matrix, 1, matrix, 0, 0, 1 << 16, 1 << 16) < 0)
        return hs_fail(err, HS_ENOTSUP, "%s: swscale cannot convert RGB to BT.709 at %dx%d", p->path, p->width,
                       p->height);
    return 0;
}

/* More than the index of an mp4 takes: per frame at most a size, an offset with its chunk, two times and a key (40
 * bytes), the settings each with two headers, and 2 kB for one track. */
static int64_t index_bytes(const hs_sink_params *p) {
    int64_t n = 4096 + 64 * p->frames;
    for (const char *const *m = p->meta; m && m[0] && m[1]; m += 2) n += (int64_t)(strlen(m[0]) + strlen(m[1])) + 64;
    return n;
}

static int container_open(hs_sink *s, const hs_sink_params *p, hs_err *err) {
    const container *k = find_container(p->path);
    coder *c = hs_calloc(1, sizeof *c);
    char url[4200];
    AVDictionary *opts = NULL;
    AVStream *st;
    int rc;
    if (!c) return hs_fail(err, HS_ENOMEM, "%s: out of memory", p->path);
    av_log_set_callback(to_hs_log);
    snprintf(url, sizeof url, "file:%s",
             hs_sink_place(s)); /* else "a:b.mp4" would name a protocol; length checked by video.c */
    rc = avformat_alloc_output_context2(&c->fmt, NULL, k->muxer, url);
    if (rc < 0) {
        rc = av_fail(err, p->path, "start the container", rc);
        goto out;
    }
    c->fmt->flags |= AVFMT_FLAG_BITEXACT | AVFMT_FLAG_FLUSH_PACKETS;
    if ((rc = encoder_open(p, k, c->fmt->oformat->flags & AVFMT_GLOBALHEADER, &c->enc, err)) ||
        (rc = frame_new(c, p->path, err)) ||
        (c->enc->pix_fmt == AV_PIX_FMT_YUV420P && (rc = converter_open(c, p, err))))
        goto out;
    st = avformat_new_stream(c->fmt, NULL);
    if (!st || avcodec_parameters_from_context(st->codecpar, c->enc) < 0) {
        rc = hs_fail(err, HS_ENOMEM, "%s: out of memory", p->path);
        goto out;
    }
    st->time_base = c->enc->time_base;
    st->avg_frame_rate = st->r_frame_rate = c->enc->framerate;
    st->sample_aspect_ratio = c->enc->sample_aspect_ratio;
    for (const char *const *m = p->meta; m && m[0] && m[1]; m += 2) av_dict_set(&c->fmt->metadata, m[0], m[1], 0);
    rc = avio_open(&c->fmt->pb, url, AVIO_FLAG_WRITE);
    if (rc < 0) {
        rc = av_fail(err, p->path, "open for writing", rc);
        goto out;
    }
    /* mp4: moov in front, so that a browser can start at once: room is kept for it, else the file is written twice. Our
     * own metadata keys beside the standard ones. webm, mkv: small clusters, because one is held in memory until it is
     * full */
    if (!strcmp(k->muxer, "mp4") && p->frames > 0) {
        av_dict_set(&opts, "movflags", "+use_metadata_tags", 0);
        av_dict_set_int(&opts, "moov_size", index_bytes(p), 0);
    } else if (!strcmp(k->muxer, "mp4"))
        av_dict_set(&opts, "movflags", "+faststart+use_metadata_tags", 0);
    else
        av_dict_set(&opts, "cluster_size_limit", "16384", 0);
    rc = avformat_write_header(c->fmt, &opts);
    av_dict_free(&opts);
    if (rc >= 0) avio_flush(c->fmt->pb);
    if (rc >= 0) rc = c->fmt->pb->error;
    /* what was skipped is a hole; where the file system cannot say, it stays one */
    if (rc >= 0 && s->target && posix_fallocate(s->file.fd, 0, avio_tell(c->fmt->pb)) == ENOSPC) rc = AVERROR(ENOSPC);
    if (rc < 0) {
        rc = av_fail(err, p->path, "write the header", rc);
        goto out;
    }
    rc = 0;
out:
    if (rc)
        coder_free(c);
    else
        s->impl = c;
    return rc;
}

/* frame NULL = drain. */
static int encode(hs_sink *s, AVFrame *frame, hs_err *err) {
    coder *c = s->impl;
    AVStream *st = c->fmt->streams[0];
    int rc = avcodec_send_frame(c->enc, frame);
    while (rc >= 0) {
        rc = avcodec_receive_packet(c->enc, c->pkt);
        if (rc == AVERROR(EAGAIN) || rc == AVERROR_EOF) return 0;
        if (rc < 0) break;
        av_packet_rescale_ts(c->pkt, c->enc->time_base, st->time_base);
        c->pkt->stream_index = 0;
        rc = av_interleaved_write_frame(c->fmt, c->pkt);
        if (rc >= 0) rc = c->fmt->pb->error;
        if (rc < 0) {
            char what[64];
            snprintf(what, sizeof what, "write after %lld frames", (long long)s->frames);
            return av_fail(err, s->path, what, rc);
        }
    }
    return av_fail(err, s->path, "encode", rc);
}

static int container_write(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    coder *c = s->impl;
    int rc = frame_fill(c, s, rgb, err);
    return rc ? rc : encode(s, c->frame, err);
}

static int container_finish(hs_sink *s, hs_err *err) {
    coder *c = s->impl;
    int rc = s->failure.code ? 0 : encode(s, NULL, err);
    c->fmt->pb->error = 0; /* the trailer is written even after a failure: what is there can then be played */
    int end = av_write_trailer(c->fmt);
    int closed = avio_closep(&c->fmt->pb);
    if (!rc && (end < 0 || closed < 0)) rc = av_fail(err, s->path, "finish the file", end < 0 ? end : closed);
    coder_free(c);
    return rc;
}

const hs_sink_ops hs_sink_ops_container = {container_check, container_open, container_write, container_finish};

/* ---- png -------------------------------------------------------------------------------------------------------- */
static int png_check(const hs_sink_params *p, hs_err *err) {
    char name[4096];
    int numbered;
    if (!avcodec_find_encoder(AV_CODEC_ID_PNG))
        return hs_fail(err, HS_ENOTSUP, "%s: FFmpeg here has no PNG encoder (it needs zlib); write .mkv or .y4m",
                       p->path);
    return hs_sink_png_name(p->path, 0, name, sizeof name, &numbered, err);
}

static void put_be32(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 24), p[1] = (uint8_t)(v >> 16), p[2] = (uint8_t)(v >> 8), p[3] = (uint8_t)v;
}

/* One uncompressed UTF-8 text chunk per pair (PNG specification 11.3.4.5): keyword 1..79 bytes. */
static int png_text(coder *c, const char *const *meta, hs_err *err) {
    size_t total = 0;
    for (const char *const *m = meta; m && m[0] && m[1]; m += 2) total += strlen(m[0]) + strlen(m[1]) + 12 + 5;
    if (!total) return 0;
    c->text = hs_alloc(total);
    if (!c->text) return hs_fail(err, HS_ENOMEM, "png: out of memory for %zu bytes of metadata", total);
    uint8_t *p = c->text;
    for (const char *const *m = meta; m[0] && m[1]; m += 2) {
        size_t key = strlen(m[0]), value = strlen(m[1]), len = key + value + 5;
        if (key < 1 || key > 79)
            return hs_fail(err, HS_EINVAL, "png: metadata key \"%s\" must have 1 to 79 bytes", m[0]);
        put_be32(p, (uint32_t)len);
        memcpy(p + 4, "iTXt", 4);
        memcpy(p + 8, m[0], key);
        memset(p + 8 + key, 0, 5); /* end of key, not compressed, method 0, no language, no translated key */
        memcpy(p + 8 + key + 5, m[1], value);
        put_be32(p + 8 + len, av_crc(av_crc_get_table(AV_CRC_32_IEEE_LE), UINT32_MAX, p + 4, len + 4) ^ UINT32_MAX);
        p += len + 12;
    }
    c->text_len = total;
    return 0;
}

static int png_open(hs_sink *s, const hs_sink_params *p, hs_err *err) {
    coder *c = hs_calloc(1, sizeof *c);
    int rc;
    if (!c) return hs_fail(err, HS_ENOMEM, "%s: out of memory", p->path);
    av_log_set_callback(to_hs_log);
    c->enc = encoder_new("png", p, AV_PIX_FMT_RGB24);
    c->pattern = hs_strdup(p->path);
    if (!c->enc || !c->pattern) {
        rc = hs_fail(err, HS_ENOMEM, "%s: out of memory", p->path);
        goto out;
    }
    c->enc->thread_count = 1; /* one packet out for each frame in */
    av_opt_set(c->enc->priv_data, "pred", "mixed", 0);
    rc = avcodec_open2(c->enc, NULL, NULL);
    if (rc < 0) {
        rc = av_fail(err, p->path, "start the PNG encoder", rc);
        goto out;
    }
    if ((rc = frame_new(c, p->path, err)) || (rc = png_text(c, p->meta, err))) goto out;
    if (p->path[strlen(p->path) - 1] == '/' && mkdir(p->path, 0777) && errno != EEXIST)
        rc = hs_fail(err, HS_EIO, "%s: cannot create the folder: %s", p->path, strerror(errno));
out:
    if (rc)
        coder_free(c);
    else
        s->impl = c;
    return rc;
}

static int png_write(hs_sink *s, const uint8_t *rgb, hs_err *err) {
    enum { SIGNATURE_AND_IHDR = 8 + 25 }; /* text goes right behind */
    coder *c = s->impl;
    char name[4096];
    int numbered, rc = hs_sink_png_name(c->pattern, s->frames, name, sizeof name, &numbered, err);
    if (rc) return rc;
    if (!numbered && s->frames)
        return hs_fail(err, HS_EINVAL,
                       "%s: one png holds one frame; number them (out_%%04d.png) or name a folder (out/)", name);
    if ((rc = frame_fill(c, s, rgb, err))) return rc;
    rc = avcodec_send_frame(c->enc, c->frame);
    if (rc >= 0) rc = avcodec_receive_packet(c->enc, c->pkt);
    if (rc < 0) return av_fail(err, name, "encode", rc);
    size_t size = (size_t)c->pkt->size;
    FILE *file = fopen(name, "wb");
    int bad =
        !file || fwrite(c->pkt->data, 1, SIGNATURE_AND_IHDR, file) != SIGNATURE_AND_IHDR ||
        (c->text && fwrite(c->text, 1, c->text_len, file) != c->text_len) ||
        fwrite(c->pkt->data + SIGNATURE_AND_IHDR, 1, size - SIGNATURE_AND_IHDR, file) != size - SIGNATURE_AND_IHDR;
    int code = errno;
    if (file && fclose(file) && !bad) bad = 1, code = errno;
    av_packet_unref(c->pkt);
    return bad ? hs_fail(err, HS_EIO, "%s: cannot write: %s", name, strerror(code)) : 0;
}

static int png_finish(hs_sink *s, hs_err *err) {
    (void)err;
    coder_free(s->impl);
    return 0;
}

const hs_sink_ops hs_sink_ops_png = {png_check, png_open, png_write, png_finish};
