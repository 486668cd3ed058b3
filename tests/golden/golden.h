/* Shared by the golden tests: reference values, temporary models, devices, comparison. Functions end the test on
 * failure of the machinery (cr_assert) and record a failed expectation for a wrong number (cr_expect). */
#ifndef GOLDEN_H
#define GOLDEN_H
#include "engine/backend.h"
#include "engine/safetensors.h"
#include "engine/tap.h"
#include "genmodel.h"

#include <criterion/criterion.h>

#ifndef GOLDEN_DIR
#error "GOLDEN_DIR must name tests/golden"
#endif

/* ---- devices: what is held to which bound ---------------------------------------------------------------------------
 */
typedef struct gold_device {
    const char *name, *precision;
    double tol; /* ||out - ref|| / ||ref|| per stage */
    int half;   /* activations in 16 bits: text encoder and VAE get the factors below */
} gold_device;
/* The references' own error in bf16 is 1.4e-2 (text) and 1.7e-2 (VAE): data/manifest.json. fp16 has three bits more. */
#define GOLD_BF16_TEXT 1.4
#define GOLD_BF16_VAE  1.7
/* "ref", "cpu_fp32", "cpu_bf16", "cuda_fp32", "cuda_bf16", "cuda_fp16" */
extern const gold_device gold_devices[];
enum { GOLD_REF, GOLD_CPU_FP32, GOLD_CPU_BF16, GOLD_CUDA_FP32, GOLD_CUDA_BF16, GOLD_CUDA_FP16, GOLD_DEVICES };
/* Opens it, or skips the running test if this build or machine does not have it. */
hs_device *gold_open(int which);
hs_device *
gold_open_fast(void); /* fp32 on the cpu backend if there is one, else ref: for tests that run a model often */

/* ---- cases
 * ----------------------------------------------------------------------------------------------------------- */
const cJSON *gold_cases(const char *group); /* array or value in cases.json; kept for the process */
const cJSON *gold_case(const char *group, const char *name);
const char *gold_str(const cJSON *o, const char *key);
double gold_num(const cJSON *o, const char *key);
static inline const cJSON *gold_first(const cJSON *array) {
    return array ? array->child : NULL;
}

/* ---- reference values
 * ------------------------------------------------------------------------------------------------ */
typedef struct gold {
    hs_st *st;
    const char *device;
    double tol;
    int compared;             /* tensors held against a reference so far: a test that compares none has failed */
    struct gold_copy *copies; /* what gold_plain handed out, freed by gold_close */
} gold;
gold gold_load(const char *group, const gold_device *device); /* data/<group>.safetensors */
void gold_close(gold *g);                                     /* expects compared > 0 */
/* The stored values as floats, aligned, until gold_close; *ret_n = elements. */
const float *gold_plain(gold *g, const char *key, int64_t *ret_n);
const uint8_t *gold_bytes(gold *g, const char *key, int64_t *ret_n);
/* Relative error of x against the reference, samples and statistics; expects <= factor * tol. Returns the error. */
double gold_compare(gold *g, const char *key, const float *x, int64_t n, double factor);
double gold_error(const float *x, const float *ref, int64_t n); /* ||x - ref|| / ||ref|| */
/* Frames: equal but for a share of values off by one, and all within `most`. */
void gold_frames(gold *g, const char *key, const uint8_t *rgb, int64_t n, double share, int most);

/* ---- intermediate values
 * ----------------------------------------------------------------------------------------------- */
/* A tap that keeps every tensor; the VAE shows a stage once per latent frame, and those are joined along time. */
typedef struct gold_stage {
    char name[32];
    float *x;
    int64_t n;
} gold_stage;
typedef struct gold_taps {
    gold_stage stage[64];
    int n;
} gold_taps;
void gold_tap(void *user, const char *name, const float *x, int ndim, const int64_t *shape);
void gold_compare_taps(gold *g, const char *prefix, gold_taps *t, double factor); /* and frees them */

/* ---- models
 * ---------------------------------------------------------------------------------------------------------------- */
/* Writes a model into a new temporary folder; ret_dir [256]. opt may be NULL. Removed by gold_model_done. */
void gold_model(const char *model, const gm_options *opt, char ret_dir[256]);
void gold_model_done(const char *dir);
gm_list gold_tensors(const char *model, const char *part); /* freed with gm_list_free */
/* Expects x, computed with `tensor` changed, to differ from the reference by clearly more than the bound. */
void gold_expect_moved(gold *g, const char *key, const char *tensor, const float *x, int64_t n, const float *ref,
                       int64_t kept);
#endif
