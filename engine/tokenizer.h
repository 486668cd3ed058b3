/* Prompt -> token ids, as the reference does: clean (clean.c), SentencePiece, eos, truncate. spec wan.md 2.1 to 2.3. */
#ifndef HS_TOKENIZER_H
#define HS_TOKENIZER_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

/* The ftfy-like repairs and whitespace rules of spec 2.1. Returns hs_alloc'ed NUL-terminated UTF-8 (caller frees with
 * hs_free). Invalid UTF-8: HS_EINVAL naming the byte offset. Empty result is allowed. */
int hs_prompt_clean(const char *text, char **ret, hs_err *err);

typedef struct hs_tokenizer hs_tokenizer;
int hs_tokenizer_open(const char *spiece_path, hs_tokenizer **ret, hs_err *err);
/* The same from the bytes of such a file, which are not needed afterwards; label is for messages. */
int hs_tokenizer_open_bytes(const void *data, size_t len, const char *label, hs_tokenizer **ret, hs_err *err);
void hs_tokenizer_close(hs_tokenizer *t);
int hs_tokenizer_vocab(const hs_tokenizer *t);
/* Cleaned text -> ids ending in eos (1), at most max_ids including eos. *ret_n = ids written (>= 1);
 * *ret_total = ids the whole text would need (> max_ids: it was truncated, the caller says so). */
int hs_tokenizer_encode(const hs_tokenizer *t, const char *clean, int max_ids, int32_t *ret_ids, int *ret_n,
                        int *ret_total, hs_err *err);
#ifdef __cplusplus
}
#endif
#endif
