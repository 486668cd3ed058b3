/* Decoding in tiles, where not even a few frames at a time fit: every tile is decoded on its own over the whole length,
 * and neighbours are blended where they overlap. Memory is that of a tile; the frames are not quite those of a whole
 * decode, because a tile does not see beyond its border (spec wan.md 5.5: sizes and overlap). */
#include "tiles.h"

#include <string.h>

enum { SIZE = 32, STRIDE = 24, SCALE = 8, OVERLAP = (SIZE - STRIDE) * SCALE };

int hs_tiles_side(int latent_side) {
    return latent_side < SIZE ? latent_side : SIZE;
}

static int along(int side) {
    return (side + STRIDE - 1) / STRIDE;
}

int hs_tiles_count(int h, int w) {
    return along(h) * along(w);
}

/* [C, f, h, w] -> [C, f, th, tw] at y, x */
static void crop(const hs_tiles *t, int y, int x, int th, int tw) {
    float *to = t->latents;
    for (int64_t plane = 0; plane < (int64_t)t->channels * t->f; plane++)
        for (int row = 0; row < th; row++, to += tw)
            memcpy(to, t->whole + (plane * t->h + y + row) * t->w + x, (size_t)tw * sizeof *to);
}

/* How much of a pixel is the new tile's; what it overlaps was there before. */
static float share(int at, int has_before) {
    return has_before && at < OVERLAP ? (float)at / OVERLAP : 1;
}

/* Frames of a tile [T, H, W, 3] into the canvas from frame `first` on; H, W in pixels. */
static void blend(const hs_tiles *t, const uint8_t *rgb, int first, int T, int y0, int x0, int H, int W) {
    const int64_t line = (int64_t)t->w * SCALE * 3;
    for (int k = 0; k < T; k++)
        for (int y = 0; y < H; y++) {
            uint8_t *to = t->canvas + ((int64_t)(first + k) * t->h * SCALE + y0 + y) * line + (int64_t)x0 * 3;
            const float down = share(y, y0 > 0);
            for (int x = 0; x < W; x++) {
                const float new = down *share(x, x0 > 0);
                for (int c = 0; c < 3; c++, to++, rgb++)
                    *to = new >= 1 ? *rgb : (uint8_t)((float)*to * (1 - new) + (float)*rgb * new + 0.5f);
            }
        }
}

int hs_tiles_decode(const hs_tiles *t, hs_vae *vae, hs_device *dev, hs_buf room, int number, hs_err *err) {
    const int y = number / along(t->w) * STRIDE, x = number % along(t->w) * STRIDE;
    const int th = t->h - y < SIZE ? t->h - y : SIZE, tw = t->w - x < SIZE ? t->w - x : SIZE;
    const hs_buf z = hs_buf_at(t->on_device, 0, (int64_t)t->channels * t->f * th * tw);
    hs_vae_run *run = NULL;
    int r = hs_vae_run_new(vae, th, tw, 4, room, &run, err);
    if (r) return r;
    crop(t, y, x, th, tw);
    hs_upload(dev, z, t->latents);
    hs_vae_begin(run);
    for (int i = 0, first = 0, T; i < t->f && !r; i++, first += T) {
        hs_buf rgb;
        hs_vae_decode(run, z, t->f, i, &rgb, &T, &(hs_tap){0});
        hs_download(dev, t->rgb, rgb);
        if (!(r = hs_device_check(dev, err))) blend(t, t->rgb, first, T, y * SCALE, x * SCALE, th * SCALE, tw * SCALE);
    }
    hs_vae_run_free(run);
    return r ? hs_fail_ctx(err, r, "tile %d", number) : 0;
}

int hs_tiles_new(hs_device *dev, int channels, int f, int h, int w, const float *whole, hs_tiles *ret, hs_err *err) {
    const int64_t n = (int64_t)channels * f * hs_tiles_side(h) * hs_tiles_side(w), frames = 1 + 4 * ((int64_t)f - 1);
    hs_tiles t = {.channels = channels, .f = f, .h = h, .w = w, .whole = whole};
    int r = hs_device_alloc(dev, HS_F32, n, "latents of a tile", &t.on_device, err);
    t.latents = hs_alloc((size_t)n * sizeof *t.latents);
    t.rgb = hs_alloc((size_t)4 * SIZE * SIZE * SCALE * SCALE * 3);
    t.canvas = hs_alloc((size_t)(frames * h * w * SCALE * SCALE * 3));
    if (!r && (!t.latents || !t.rgb || !t.canvas)) r = hs_fail(err, HS_ENOMEM, "no memory for the frames of all tiles");
    *ret = t;
    if (r) hs_tiles_free(dev, ret);
    return r;
}

void hs_tiles_free(hs_device *dev, hs_tiles *t) {
    hs_device_free(dev, t->on_device);
    hs_free(t->latents);
    hs_free(t->rgb);
    hs_free(t->canvas);
    *t = (hs_tiles){0};
}
