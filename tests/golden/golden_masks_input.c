/* Cases and inputs of the mask tests: cases.json, and Q, K, V made from hashes by the formulas of masks/README.md. */
#include "golden_masks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- cases --------------------------------------------------------------------------------------------------------
 */
const cJSON *masks_json(const char *file) {
    static cJSON *cases, *manifest;
    cJSON **at = file[0] == 'c' ? &cases : &manifest;
    hs_err err = {0};
    if (!*at) *at = gm_json_file(file[0] == 'c' ? GOLDEN_DIR "/masks" : GOLDEN_DIR "/masks/data", file, &err);
    cr_assert(*at != NULL, "%s", err.msg);
    return *at;
}

const cJSON *masks_item(const cJSON *o, const char *key) {
    const cJSON *ret = cJSON_GetObjectItemCaseSensitive(o, key);
    cr_assert(ret != NULL, "no '%s' in the cases of the masks", key);
    return ret;
}

double masks_number(const cJSON *o, const char *key) { /* absent: 0 */
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    return v ? v->valuedouble : 0;
}

int masks_thresholds(const cJSON *group, int heads, threshold ret[8]) {
    int n = 0;
    for (const cJSON *t = gold_first(masks_item(group, "thresholds")); t; t = t->next, n++) {
        snprintf(ret[n].name, sizeof ret[n].name, "%g", t->valuedouble);
        for (int h = 0; h < heads; h++) ret[n].p[h] = (float)t->valuedouble;
    }
    if (heads < 2) return n;
    snprintf(ret[n].name, sizeof ret[n].name, "heads");
    for (int h = 0; h < heads; h++)
        ret[n].p[h] = (float)cJSON_GetArrayItem(masks_item(group, "per_head"), h)->valuedouble;
    return n + 1;
}

/* ---- inputs --------------------------------------------------------------------------------------------------------
 */
uint64_t masks_seed(const char *name, const char *what) {
    char text[96];
    snprintf(text, sizeof text, "%s/%s", name, what);
    return gm_fnv1a64(text);
}

/* Element i of a named stream; a multiple of 2^-26, so that sums of a few are exact in any order. */
double masks_gauss(uint64_t seed, int64_t i) {
    int64_t sum = -33554430;
    for (uint64_t r = 0; r < 4; r++) sum += (int64_t)(hs_hash64(seed + 4 * (uint64_t)i + r) >> 40);
    return (double)(7 * sum) * 0x1p-26;
}

/* What the formula of the README needs of one head of side q, k or v, looked up once. */
typedef struct recipe {
    char side;
    double smooth, proto, sink, noise; /* how much of each */
    int64_t grain, knots;
    uint64_t run, protos;
    int first, count; /* keys of the sink */
    uint64_t seed, seed_smooth, seed_cluster, seed_proto, seed_bias;
} recipe;

static recipe recipe_of(const mask_input *in, char side, int h) {
    const cJSON *c = in->json, *m = cJSON_GetArrayItem(masks_item(c, "mix"), h);
    const char name[2] = {side, 0};
    recipe r = {.side = side, .noise = 1, .seed = masks_seed(in->name, name)};
    if (side == 'v') return r;
    r.smooth = masks_number(m, "smooth");
    r.proto = masks_number(m, "proto");
    r.sink = masks_number(m, "sink");
    r.noise = masks_number(m, side == 'q' ? "noise_q" : "noise_k");
    r.grain = (int64_t)masks_number(c, "grain");
    r.knots = r.grain ? in->n / r.grain + 2 : 0;
    r.run = (uint64_t)masks_number(c, "run");
    r.protos = (uint64_t)masks_number(c, "protos");
    if (r.sink != 0) {
        r.first = cJSON_GetArrayItem(masks_item(c, "sink"), 0)->valueint;
        r.count = cJSON_GetArrayItem(masks_item(c, "sink"), 1)->valueint;
    }
    r.seed_smooth = masks_seed(in->name, "smooth");
    r.seed_cluster = masks_seed(in->name, "cluster");
    r.seed_proto = masks_seed(in->name, "proto");
    r.seed_bias = masks_seed(in->name, "bias");
    return r;
}

/* What the formula gives at [h, i, e]. */
static double value(const mask_input *in, const recipe *r, int h, int64_t i, int64_t e) {
    const int64_t d = in->d;
    double x = 0;
    if (r->smooth != 0) {
        const int64_t at = (h * r->knots + i / r->grain) * d + e;
        const double w = (double)(i % r->grain) / (double)r->grain;
        x += r->smooth * ((1 - w) * masks_gauss(r->seed_smooth, at) + w * masks_gauss(r->seed_smooth, at + d));
    }
    if (r->proto != 0) {
        const uint64_t which = hs_hash64(r->seed_cluster + ((uint64_t)h << 20) + (uint64_t)i / r->run) % r->protos;
        x += r->proto * masks_gauss(r->seed_proto, (int64_t)((uint64_t)h * r->protos + which) * d + e);
    }
    if (r->sink != 0 && (r->side == 'q' || (i >= r->first && i < r->first + r->count)))
        x += r->sink * masks_gauss(r->seed_bias, h * d + e);
    return x + r->noise * masks_gauss(r->seed, (h * in->n + i) * d + e);
}

static float *side_new(const mask_input *in, char side) {
    float *x = malloc((size_t)(in->heads * in->n * in->d) * sizeof *x);
    uint64_t sum = 0, j = 0;
    char key[96], hex[24];
    cr_assert(x != NULL);
    for (int h = 0; h < in->heads; h++) {
        const recipe r = recipe_of(in, side, h);
        for (int64_t i = 0; i < in->n; i++)
            for (int64_t e = 0; e < in->d; e++, j++) {
                float *at = &x[(i * in->heads + h) * in->d + e];
                uint32_t bits;
                *at = (float)value(in, &r, h, i, e);
                memcpy(&bits, at, sizeof bits);
                sum += hs_hash64(j << 32 | bits);
            }
    }
    snprintf(key, sizeof key, "%s/%c", in->name, side);
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)sum);
    cr_assert_str_eq(hex, gold_str(masks_item(masks_json("manifest.json"), "checksums"), key),
                     "input %s is made wrongly", key);
    return x;
}

/* The demo model's own q and k of one head (post-norm, post-rope), stored rounded to BF16 by make_masks.py --qk. */
static mask_input demo_input(void) {
    const cJSON *c = masks_item(masks_item(masks_json("manifest.json"), "demo"), "case");
    mask_input in = {.name = "demo",
                     .json = c,
                     .heads = (int)gold_num(c, "heads"),
                     .n = (int64_t)gold_num(c, "n"),
                     .d = (int64_t)gold_num(c, "d")};
    hs_st *st;
    hs_err err = {0};
    cr_assert_eq(in.heads, 1, "more heads want turning from [heads, n, d] to [n, heads, d]");
    cr_assert_eq(hs_st_open(GOLDEN_DIR "/masks/data/demo_qk.safetensors", &st, &err), 0, "%s", err.msg);
    for (int s = 0; s < 2; s++) {
        const hs_st_tensor *t;
        float *x = malloc((size_t)(in.n * in.d) * sizeof *x);
        cr_assert(x != NULL);
        cr_assert_eq(hs_st_get(st, s ? "k" : "q", 3, (int64_t[]){1, in.n, in.d}, &t, &err), 0, "%s", err.msg);
        hs_to_f32(x, t->data, t->dtype, t->numel);
        *(s ? &in.k : &in.q) = x;
    }
    hs_st_close(st);
    return in;
}

mask_input masks_input(const char *name) {
    if (!strcmp(name, "demo")) return demo_input();
    for (const cJSON *c = gold_first(masks_item(masks_json("cases.json"), "inputs")); c; c = c->next) {
        if (strcmp(gold_str(c, "name"), name)) continue;
        mask_input in = {gold_str(c, "name"),
                         c,
                         (int)gold_num(c, "heads"),
                         (int64_t)gold_num(c, "n"),
                         (int64_t)gold_num(c, "d"),
                         NULL,
                         NULL,
                         NULL};
        in.q = side_new(&in, 'q');
        in.k = side_new(&in, 'k');
        in.v = side_new(&in, 'v');
        return in;
    }
    cr_assert_fail("cases.json: no input '%s'", name);
    return (mask_input){0};
}

void masks_input_free(mask_input *in) {
    free(in->q);
    free(in->k);
    free(in->v);
}
