/* Tensors of a PyTorch checkpoint (torch.save of a state dict), without PyTorch and without running anything.
 *
 * Such a file is a zip archive (zip.h) of raw storages and one pickle that says which tensor is which part of which
 * storage. Pickle is a language; of it only what a state dict needs is understood (pth.c has the list), and the only
 * functions that may be called are the three that rebuild a tensor, a storage and a dictionary. Anything else is
 * refused by its name.
 */
#ifndef HS_PTH_H
#define HS_PTH_H
#include "safetensors.h"
#ifdef __cplusplus
extern "C" {
#endif

/* data = the whole file. *ret [*ret_n] in the order of the file, their data inside `data`, file = path; their names are
 * in *ret_names. Both are freed with hs_free. Tensors may share storages. */
int hs_pth_read(const void *data, size_t len, const char *path, hs_st_tensor **ret, int *ret_n, char **ret_names,
                hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
