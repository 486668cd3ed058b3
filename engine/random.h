/* Models without files, for benchmarks (--random-weights): shapes from a configuration, weights from a pool. */
#ifndef HS_RANDOM_H
#define HS_RANDOM_H
#include "model.h"
#ifdef __cplusplus
extern "C" {
#endif

/* "wan2.1-1.3b", "wan2.1-14b", or a folder with configs (Diffusers layout; weights are not looked at). */
int hs_random_config(const char *name, hs_config *ret, hs_err *err);
void hs_random_sha256(const hs_config *c, char ret_hex[65]);
/* Token ids of a prompt without a tokenizer, at most HS_TEXT_LEN; returns how many. */
int hs_random_ids(const hs_config *c, const char *prompt, int32_t *ret_ids);

/* For safetensors.c, where a set of this kind is a hs_st that has whatever tensor it is asked for. */
typedef struct hs_random hs_random;
int hs_random_new(hs_random **ret, hs_err *err);
void hs_random_free(hs_random *r);
const hs_st_tensor *hs_random_find(const hs_random *r, const char *name); /* what was asked for before, or NULL */
int hs_random_get(hs_random *r, const char *label, const char *name, int ndim, const int64_t *shape,
                  const hs_st_tensor **ret, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
