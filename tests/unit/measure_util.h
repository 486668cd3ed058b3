/* What the tests of measuring share: a tiny random model and small settings. */
#ifndef HS_MEASURE_UTIL_H
#define HS_MEASURE_UTIL_H
#include "util.h"
#include "measure.h"
#include "config.h"

/* Model A: 2 layers of 2 heads. 128x128 with 9 frames is 3x8x8 tokens, 3 blocks of 64. */
enum { LAYERS = 2, HEADS = 2, CELLS = LAYERS * HEADS };
extern const char *const pool[3]; /* the calibration prompts */
#if HS_HAVE_CPU
#define FAST "cpu"
#else
#define FAST "ref"
#endif

typedef struct setup {
    hs_model *m;
    hs_request req;
    hs_measure_params p;
    int64_t n; /* elements of a latent tensor */
} setup;

/* The model is written into the scratch folder once. */
setup make_setup(const char *device, hs_method method);
/* Asserts that no memory is left. */
void free_setup(setup *s);

hs_table *load_tables(int n, const char *const *paths);
/* All probes into the table `path`. */
void measure_into(setup *s, const char *path);
#endif
