/* Side-by-side videos with a line of text, written with a small font of its own: names of variants are ASCII. */
#include "eval_video.h"
#include "video.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { GLYPH_W = 5, GLYPH_H = 7, GAP = 4, INK = 230, PAPER = 24 };

/* Rows of five pixels from the top, the last row in the lowest bits; capitals serve for both cases. */
static const uint64_t glyphs[128] = {
    ['0'] = 0x3a33ae62e, ['1'] = 0x11842108e, ['2'] = 0x3a211111f, ['3'] = 0x3a213062e, ['4'] = 0x08ca97c42,
    ['5'] = 0x7e1e0862e, ['6'] = 0x1910f462e, ['7'] = 0x7c2211084, ['8'] = 0x3a317462e, ['9'] = 0x3a317844c,
    ['A'] = 0x3a31fc631, ['B'] = 0x7a31f463e, ['C'] = 0x3a308422e, ['D'] = 0x7a318c63e, ['E'] = 0x7e10f421f,
    ['F'] = 0x7e10f4210, ['G'] = 0x3a30bc62f, ['H'] = 0x4631fc631, ['I'] = 0x38842108e, ['J'] = 0x1c4210a4c,
    ['K'] = 0x4654c5251, ['L'] = 0x42108421f, ['M'] = 0x4775ac631, ['N'] = 0x4735ace31, ['O'] = 0x3a318c62e,
    ['P'] = 0x7a31f4210, ['Q'] = 0x3a318d64d, ['R'] = 0x7a31f5251, ['S'] = 0x3e107043e, ['T'] = 0x7c8421084,
    ['U'] = 0x46318c62e, ['V'] = 0x46318c544, ['W'] = 0x4631ad771, ['X'] = 0x462a22a31, ['Y'] = 0x462a21084,
    ['Z'] = 0x7c222221f, ['.'] = 0x00000018c, ['-'] = 0x0000f8000, ['+'] = 0x0084f9080, ['='] = 0x001f07c00,
    ['/'] = 0x042222210, ['_'] = 0x00000001f,
};

static void draw_text(uint8_t *rgb, int stride, int x0, int y0, int width, int scale, const char *text) {
    int step = (GLYPH_W + 1) * scale;
    for (int x = x0; *text && x + GLYPH_W * scale <= x0 + width; text++, x += step) {
        uint64_t g = glyphs[toupper((unsigned char)*text) & 127];
        for (int i = 0; i < GLYPH_H * scale; i++)
            for (int j = 0; j < GLYPH_W * scale; j++) {
                int bit = (GLYPH_H - 1 - i / scale) * GLYPH_W + (GLYPH_W - 1 - j / scale);
                if (g >> bit & 1) memset(rgb + ((size_t)(y0 + i) * (size_t)stride + (size_t)(x + j)) * 3, INK, 3);
            }
    }
}

static int open_sink(const char *stem, int width, int height, int fps, hs_sink **ret, hs_err *err) {
    char path[4200];
    hs_sink_params p = {.path = path, .width = width, .height = height, .fps_num = fps, .fps_den = 1};
    snprintf(path, sizeof path, "%s.mp4", stem);
    if (hs_sink_check(&p, NULL) == HS_ENOTSUP) snprintf(path, sizeof path, "%s.y4m", stem);
    return hs_sink_open(&p, ret, err);
}

int hs_eval_video_write(const char *stem, const hs_eval_pair *p, hs_err *err) {
    int scale = 1 + p->width / 200, bar = ((GLYPH_H + 4) * scale + 1) / 2 * 2, margin = 2 * scale;
    int width = 2 * p->width + GAP, height = p->height + bar; /* even, as H.264 wants them: sizes are multiples of 16 */
    size_t row = (size_t)p->width * 3, frame = row * (size_t)p->height, out_row = (size_t)width * 3;
    uint8_t *rgb = hs_alloc(out_row * (size_t)height);
    hs_sink *sink;
    if (!rgb) return hs_fail(err, HS_ENOMEM, "no memory for a frame of %dx%d", width, height);
    int rc = open_sink(stem, width, height, p->fps, &sink, err);
    if (rc) goto out;
    memset(rgb, PAPER, out_row * (size_t)height);
    draw_text(rgb, width, margin, margin, p->width - margin, scale, p->left_name);
    draw_text(rgb, width, p->width + GAP + margin, margin, p->width - margin, scale, p->right_name);
    for (int f = 0; f < p->frames && !rc; f++) {
        for (int y = 0; y < p->height; y++) {
            uint8_t *to = rgb + (size_t)(bar + y) * out_row;
            memcpy(to, p->left + (size_t)f * frame + (size_t)y * row, row);
            memcpy(to + row + 3 * GAP, p->right + (size_t)f * frame + (size_t)y * row, row);
        }
        rc = hs_sink_write(sink, rgb, err);
    }
    hs_err late = {0};
    if (hs_sink_close(sink, NULL, &late) && !rc) rc = hs_fail(err, late.code, "%s", late.msg);
out:
    hs_free(rgb);
    return rc;
}
