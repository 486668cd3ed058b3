/* Strict JSON on top of cJSON, for every document that comes from a file: safetensors headers, indexes, configs.
 *
 * cJSON checks the structure but lets pass what two readers could understand differently; this refuses it first: NUL
 * bytes and NUL escapes, control characters, invalid UTF-8, malformed numbers, keys given twice, deep nesting, floods
 * of values, bytes after the document. Look keys up with cJSON_GetObjectItemCaseSensitive: cJSON_GetObjectItem ignores
 * case.
 */
#ifndef HS_JSON_H
#define HS_JSON_H
#include "base.h"
#include <cjson/cJSON.h>
#ifdef __cplusplus
extern "C" {
#endif

enum { HS_JSON_MAX_DEPTH = 16, HS_JSON_MAX_VALUES = 1 << 20 };
#define HS_JSON_MAX_INT 9007199254740992.0 /* 2^53: above it a double skips integers */

/* text need not be NUL terminated; `path` names the document in messages. *ret is freed with cJSON_Delete. */
int hs_json_parse(const char *text, size_t len, const char *path, cJSON **ret, hs_err *err);
/* Is the item an integer of 0 .. 2^53? */
int hs_json_is_count(const cJSON *item, int64_t *ret);

#ifdef __cplusplus
}
#endif
#endif
