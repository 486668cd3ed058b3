/* A file of prompts, one a line: what --prompts of every program reads. */
#ifndef HS_PROMPTS_H
#define HS_PROMPTS_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_prompts {
    char **text; /* [n], each owned */
    int n;
} hs_prompts;

/* `what` names the text in messages. HS_EINVAL if it is not UTF-8. */
int hs_prompt_check(const char *text, const char *what, hs_err *err);
/* Checks the text and adds a copy. */
int hs_prompts_add(hs_prompts *p, const char *text, const char *what, hs_err *err);
/* Adds every prompt of the file; white space around it, empty lines, lines that begin with '#' and a byte order mark do
 * not count. A file without prompts is refused, and JSON. */
int hs_prompts_read(hs_prompts *p, const char *path, hs_err *err);
void hs_prompts_done(hs_prompts *p);

#ifdef __cplusplus
}
#endif
#endif
