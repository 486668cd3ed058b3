/* A profile in the terminal: its budgets as lines, its thresholds as a map of layers x heads. */
#ifndef HS_SHOW_H
#define HS_SHOW_H
#include "profile.h"

#include <stdio.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef enum hs_show_color { HS_SHOW_PLAIN, HS_SHOW_256, HS_SHOW_TRUECOLOR } hs_show_color;

typedef struct hs_show_style {
    hs_show_color color;
    int width; /* columns of the terminal */
} hs_show_style;

/* What the terminal behind `to` can do: no colour in a file, with NO_COLOR or TERM=dumb; COLUMNS before its own size.
 */
hs_show_style hs_show_detect(FILE *to);

/* budget -1: all of them. */
void hs_show(FILE *to, const hs_profile *p, int budget, const hs_show_style *style);
void hs_show_budgets(FILE *to, const hs_profile *p);

#ifdef __cplusplus
}
#endif
#endif
