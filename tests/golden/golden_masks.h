/* Cases and inputs that the mask tests share (golden_masks_input.c). */
#ifndef GOLDEN_MASKS_H
#define GOLDEN_MASKS_H
#include "golden.h"

const cJSON *masks_json(const char *file); /* "cases.json" or "manifest.json"; kept for the process */
const cJSON *masks_item(const cJSON *o, const char *key);
double masks_number(const cJSON *o, const char *key); /* absent: 0 */

/* Thresholds with their names in the keys: one number, or one per head. */
typedef struct threshold {
    char name[16];
    float p[8]; /* of each head */
} threshold;
int masks_thresholds(const cJSON *group, int heads, threshold ret[8]); /* how many */

typedef struct mask_input {
    const char *name;
    const cJSON *json;
    int heads;
    int64_t n, d;
    float *q, *k, *v; /* [n, heads, d]: as the engine reads tokens; "demo" has no v */
} mask_input;
mask_input masks_input(const char *name); /* checks the checksums of the manifest; "demo": stored */
void masks_input_free(mask_input *in);

uint64_t masks_seed(const char *name, const char *what);
double masks_gauss(uint64_t seed, int64_t i);
#endif
