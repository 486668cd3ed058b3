/* A made-up table of measurements, written through table.h: heads whose error and sparsity follow known curves, and
 * joint errors that are their sum. Usage: gentable FILE [key=value]...; keys: layers heads seed floor joints miss sha.
 * floor: numeric floor. joints: random configurations measured together. miss: leave the last N probes out. */
#include "measure.h"
#include "solve.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double uniform(uint64_t *state) {
    *state = hs_hash64(*state);
    return (double)(*state >> 11) / 9007199254740992.0;
}

static long long option(int argc, char **argv, const char *key, long long otherwise) {
    size_t len = strlen(key);
    for (int i = 2; i < argc; i++)
        if (!strncmp(argv[i], key, len) && argv[i][len] == '=') return atoll(argv[i] + len + 1);
    return otherwise;
}

typedef struct head {
    double scale, power, reach, bend;
} head;

static double error_at(const head *h, double p) {
    return h->scale * pow(1 - p, h->power);
}
static double sparsity_at(const head *h, double p) {
    return h->reach * pow(1 - p, h->bend);
}

static int joint(hs_table_writer *w, const hs_table_info *i, const head *h, const float *top_p, int candidate,
                 double floor, uint64_t *state, hs_err *err) {
    double error = floor, sparsity = 0;
    int n = i->layers * i->heads, rc = 0;
    hs_joint j = {.candidate = candidate};
    for (int k = 0; k < n; k++)
        error += error_at(&h[k], (double)top_p[k]), sparsity += sparsity_at(&h[k], (double)top_p[k]) / n;
    if (candidate == HS_JOINT_FLOOR) sparsity = 0;
    if (candidate == HS_JOINT_CONFIG) hs_measure_config_name((hs_thresholds){1, top_p}, i->layers, i->heads, j.config);
    for (int prompt = 0; prompt < i->prompts + 3; prompt++)
        for (int t = 0; t < i->n_intervals && !rc; t++) {
            double e = candidate == HS_JOINT_FLOOR ? floor : error * exp(0.5 * (uniform(state) - 0.5));
            j.prompt = prompt, j.interval = t, j.step = (i->intervals[t][0] + i->intervals[t][1]) / 2;
            snprintf(j.text, sizeof j.text, "%016x", prompt + 1);
            j.m = (hs_measured){e, 0.5 * e, e, e, sparsity, 0.01 * (2 - sparsity)};
            rc = hs_table_add_joint(w, &j, err);
        }
    return rc;
}

int main(int argc, char **argv) {
    static const double p[] = {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99};
    hs_table_info i = {.model = "made-up",
                       .device = "no device",
                       .precision = "fp32",
                       .width = 64,
                       .height = 64,
                       .frames = 9,
                       .steps = 12,
                       .shift = 3,
                       .guidance = 4,
                       .solver = HS_UNIPC,
                       .sigmas = -1,
                       .prompts = 4,
                       .n_intervals = 3,
                       .n_candidates = 8};
    hs_err err = {0};
    hs_table_writer *w = NULL;
    if (argc < 2) return 2;
    i.layers = (int)option(argc, argv, "layers", 4), i.heads = (int)option(argc, argv, "heads", 3);
    i.seed = (uint64_t)option(argc, argv, "seed", 1);
    double floor = (double)option(argc, argv, "floor", 0) * 1e-9;
    int miss = (int)option(argc, argv, "miss", 0), joints = (int)option(argc, argv, "joints", 0),
        n = i.layers * i.heads;
    memset(i.sha256, '0' + (int)option(argc, argv, "sha", 7), 64);
    memset(i.prompts_sha256, 'a', 64);
    memcpy(i.candidates, p, sizeof p);
    i.policy = hs_attn_policy_default(HS_XATTENTION);
    i.policy.reuse.kind = HS_REUSE_NONE;
    for (int t = 0; t < 3; t++) i.intervals[t][0] = 4 * t, i.intervals[t][1] = 4 * t + 3;
    head *h = calloc((size_t)n, sizeof *h);
    float *top_p = calloc((size_t)n, sizeof *top_p);
    uint64_t state = hs_hash64(i.seed);
    int rc = h && top_p ? hs_table_open(argv[1], &i, &w, &err) : HS_ENOMEM;
    for (int k = 0; k < n && !rc; k++)
        h[k] = (head){pow(10, -4 + 2.5 * uniform(&state)), 1.5 + uniform(&state), 0.5 + 0.49 * uniform(&state),
                      0.25 + 0.5 * uniform(&state)};
    for (int k = 0, at = 0; k < n && !rc; k++)
        for (int c = 0; c < i.n_candidates; c++)
            for (int t = 0; t < 3 && !rc; t++) {
                double noise = exp(0.2 * (uniform(&state) - 0.5)), time = 1.4 - 0.4 * t;
                double e = error_at(&h[k], p[c]) * noise * time + floor, s = sparsity_at(&h[k], p[c]) * (0.9 + 0.1 * t);
                hs_probe q = {k % i.prompts, 4 * t + 1, t, k / i.heads, k % i.heads, c, {e, 0.5 * e, e, e, s, 0.01}};
                if (at++ < n * 24 - miss) rc = hs_table_add_probe(w, &q, &err);
            }
    if (!rc && (floor > 0 || joints)) rc = joint(w, &i, h, top_p, HS_JOINT_FLOOR, floor, &state, &err);
    if (joints && !rc) {
        hs_curves c = {.layers = i.layers, .heads = i.heads, .points = 9};
        memcpy(c.top_p, p, sizeof p);
        c.top_p[8] = 1;
        for (int k = 0; k < i.n_candidates && !rc; k++) {
            hs_curves_shared(&c, p[k], top_p);
            rc = joint(w, &i, h, top_p, k, floor, &state, &err);
        }
        for (int k = 0; k < joints && !rc; k++) {
            hs_curves_random(&c, i.seed, k, top_p);
            rc = joint(w, &i, h, top_p, HS_JOINT_CONFIG, floor, &state, &err);
        }
    }
    int closed = w ? hs_table_close(w, &err) : 0;
    if (rc || closed) fprintf(stderr, "gentable: %s\n", err.msg);
    free(h);
    free(top_p);
    return rc || closed ? 1 : 0;
}
