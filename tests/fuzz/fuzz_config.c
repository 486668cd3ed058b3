/* The parsers of the model's configs: any bytes, each parser. What is accepted must lie in the ranges of model.h. */
#include "fuzz.h"
#include "model.h"

static int between(double v, double lo, double hi) {
    return v >= lo && v <= hi;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    const char *json = (const char *)data;
    hs_config c = {0};
    hs_err err = {0};
    if (!hs_config_parse_transformer(json, len, "fuzz", &c, &err)) {
        FUZZ_ASSERT(c.dim == c.heads * c.head_dim && between(c.heads, 1, HS_MAX_HEADS) && c.head_dim % 2 == 0);
        FUZZ_ASSERT(between(c.layers, 1, HS_MAX_LAYERS) && between(c.in_channels, 1, HS_MAX_LATENT_CHANNELS));
        FUZZ_ASSERT(c.in_channels == c.out_channels && c.freq_dim % 2 == 0 && c.eps > 0);
    }
    if (!hs_config_parse_text(json, len, "fuzz", &c, &err)) {
        FUZZ_ASSERT(between(c.t_layers, 1, HS_MAX_LAYERS) && between(c.t_heads, 1, HS_MAX_HEADS) && c.t_eps > 0);
        FUZZ_ASSERT(c.t_buckets % 4 == 0 && c.t_max_distance > c.t_buckets / 4 && c.t_vocab > 3);
    }
    if (!hs_config_parse_vae(json, len, "fuzz", &c, &err)) {
        FUZZ_ASSERT(between(c.v_z, 1, HS_MAX_LATENT_CHANNELS) && c.v_base % 2 == 0 && between(c.v_res_blocks, 1, 8));
        for (int i = 0; i < c.v_z; i++) FUZZ_ASSERT(c.v_std[i] > 0 && between(c.v_mean[i], -1e3, 1e3));
        for (int i = 0; i < 4; i++) FUZZ_ASSERT(between(c.v_mult[i], 1, 16));
    }
    if (!hs_config_parse_sched(json, len, "fuzz", &c, &err)) FUZZ_ASSERT(c.shift > 0 && c.shift <= 100);
    hs_config_parse_original(json, len, "fuzz", &c, &err);
    hs_config_parse_index(json, len, "fuzz", &c, &err);

    hs_config d = {.width = 832, .height = 480, .frames = 81, .fps = 16, .steps = 50, .guidance = 5, .shift = 3};
    if (!hs_config_parse_defaults(json, len, "fuzz", &d, &err)) {
        FUZZ_ASSERT(d.width % 16 == 0 && d.height % 16 == 0 && d.width > 0 && d.height > 0 && d.frames % 4 == 1);
        FUZZ_ASSERT(between(d.steps, 1, HS_MAX_STEPS) && between(d.guidance, -1, 100) && between(d.fps, 1, 240));
    }
    hs_config_done(&d);
    hs_config_done(&c);
    FUZZ_ASSERT(hs_alloc_live() == 0);
    return 0;
}
