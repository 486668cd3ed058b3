/* Where haste-run puts files: looked at before the work, so that nothing is computed for a place that cannot take it.
 */
#ifndef HS_RUN_FILES_H
#define HS_RUN_FILES_H
#include "base.h"

/* What a path is there for. */
typedef struct hs_place {
    const char *option, *path; /* path NULL: not given */
    int input;                 /* read, not written */
} hs_place;

/* A file that is written whole under another name and renamed, so it must not exist as anything else than a file. With
 * in_place it is opened as it is, so that a device or pipe will do. HS_EINVAL or HS_EIO with the option's name. */
int hs_place_check(const char *option, const char *path, int in_place, hs_err *err);

/* HS_EINVAL if a file that is written is named twice, however it is spelled. */
int hs_places_differ(const hs_place *p, int n, hs_err *err);
#endif
