/* The web page of haste-calibrate: what was measured, what was chosen, and how good the prediction was. */
#ifndef HS_REPORT_H
#define HS_REPORT_H
#include "solve.h"
#ifdef __cplusplus
extern "C" {
#endif

/* One self-contained page (plot.h). budget: the one whose heads are drawn. held_out: whose joint errors are shown, if
 * the profile has any there; else those on calibration prompts. HS_EINVAL if the profile was not made with such a
 * table. */
int hs_report_write(const char *path, const hs_profile *p, int budget, const hs_table *t, const hs_curves *c,
                    hs_pool held_out, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
