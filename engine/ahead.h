/* Reads mapped files ahead of their use: a thread takes the pages of what comes next while the caller works. */
#ifndef HS_AHEAD_H
#define HS_AHEAD_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_ahead hs_ahead;

/* NULL where no thread starts: then nothing is read ahead, which costs time only. */
hs_ahead *hs_ahead_new(void);
/* The bytes from `begin` on are wanted, up to `end`. Replaces what was wanted before; a range that begins within the
 * one before goes on where that one is. Does not wait. */
void hs_ahead_want(hs_ahead *a, const char *begin, const char *end);
/* Before the files are unmapped. NULL is fine. */
void hs_ahead_free(hs_ahead *a);

#ifdef __cplusplus
}
#endif
#endif
