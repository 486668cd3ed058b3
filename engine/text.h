/* UMT5 encoder: ids -> text rows [n, text_dim]. spec wan.md 2.4. Only the n real tokens are computed: padding is masked
 * in the reference, so the rows are identical. */
#ifndef HS_TEXT_H
#define HS_TEXT_H
#include "model.h"
#include "tap.h"
typedef struct hs_text hs_text;
/* dev NULL: check names and shapes only, *ret stays NULL. */
int hs_text_load(const hs_config *c, hs_st *st, hs_device *dev, int streamed, hs_text **ret, hs_err *err);
/* Device bytes of a layer's weights, and (returned) of the rest with activations. */
int64_t hs_text_bytes(const hs_config *c, hs_dtype act, int64_t *ret_layer);
void hs_text_free(hs_text *t);
/* ids [n], 1 <= n <= 512; rows: F32 device memory [n, text_dim]. */
int hs_text_encode(hs_text *t, const int32_t *ids, int n, hs_buf rows, const hs_tap *tap, hs_err *err);
#endif
