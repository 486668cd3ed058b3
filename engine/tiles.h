/* The VAE in tiles of 256 x 256 pixels that overlap by 64: the last resort where memory is short. */
#ifndef HS_TILES_H
#define HS_TILES_H
#include "vae.h"

typedef struct hs_tiles {
    int channels, f, h, w; /* of the latents */
    const float *whole;    /* the latents [channels, f, h, w], borrowed */
    float *latents;        /* of a tile */
    hs_buf on_device;      /* the same */
    uint8_t *rgb;          /* frames of a tile from one latent frame */
    uint8_t *canvas;       /* all frames [1 + 4 (f - 1), 8h, 8w, 3] */
} hs_tiles;

int hs_tiles_side(int latent_side); /* of the largest tile, in latents: what a run of the VAE must have room for */
int hs_tiles_count(int h, int w);
int hs_tiles_new(hs_device *dev, int channels, int f, int h, int w, const float *whole, hs_tiles *ret, hs_err *err);
void hs_tiles_free(hs_device *dev, hs_tiles *t); /* accepts what was never made */
/* Tile `number` of all frames into the canvas; in order from 0. */
int hs_tiles_decode(const hs_tiles *t, hs_vae *vae, hs_device *dev, hs_buf room, int number, hs_err *err);
#endif
