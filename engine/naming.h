/* The names that tensors have in the files people have, and the one set of names that the engine asks for: Diffusers'.
 *
 * A naming is data: which tensor tells it, and rules from its names to Diffusers' (spec wan.md 1.5). Shapes are the
 * same in all of them, so a rule is only a name. Prefixes of checkpoints that hold several parts are taken off, and the
 * scales of 8-bit weights become a member of their tensor.
 */
#ifndef HS_NAMING_H
#define HS_NAMING_H
#include "model.h"
#ifdef __cplusplus
extern "C" {
#endif

/* "transformer", "text encoder", "VAE" */
const char *hs_part_name(hs_part part);
/* Does the set hold this part, in any naming? */
int hs_naming_fits(const hs_st *st, hs_part part);
/* Translates the set. What is not this part of a Wan2.1 text-to-video model is refused by what it is. *ret_diffusers
 * (may be NULL): the names were Diffusers' own. label names the file or folder in messages. */
int hs_naming_apply(hs_st *st, hs_part part, const char *label, int *ret_diffusers, hs_err *err);
/* Fills in what the shapes of a translated set say of its part: all that the configs of the engine's three parts would
 * (spec wan.md 1.6). */
int hs_naming_config(hs_st *st, hs_part part, const char *label, hs_config *c, hs_err *err);
/* SHA-256 of names and shapes, whatever the file was: equal for the same model in another layout or precision. */
void hs_naming_sha256(const hs_st *st, char ret_hex[65]);

#ifdef __cplusplus
}
#endif
#endif
