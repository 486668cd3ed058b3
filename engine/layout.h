/* Finding a model's parts: which files, in which layout, under which names. What comes out does not show it any more:
 * tensors have Diffusers' names, the configuration is complete.
 *
 * A folder is one of the layouts of the table in layout.c (Diffusers, the original repository, ComfyUI, files side by
 * side); any part may instead be named by a file or folder of its own.
 */
#ifndef HS_LAYOUT_H
#define HS_LAYOUT_H
#include "haste.h"
#include "model.h"
#include "tokenizer.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_files {
    hs_config config;
    hs_st *st[HS_PART_COUNT];
    hs_tokenizer *tokenizer;
    char sha256[65];        /* identity in profiles: of the Diffusers folder, else the next one */
    char shapes_sha256[65]; /* the same for every layout of a model (naming.h) */
} hs_files;

/* Opens what *p names. Tensors are not yet held against the configuration: the binders do that. */
int hs_files_open(const hs_model_params *p, hs_files *ret, hs_err *err);
void hs_files_close(hs_files *f);

#ifdef __cplusplus
}
#endif
#endif
