/* Writes safetensors files, whole or not at all. */
#include "safetensors.h"
#include "json.h"
#include "newfile.h"

#include <stdio.h>
#include <string.h>

enum { PREFIX = 8 /* bytes of the header length */ };

/* Header text of the tensors in the given order, padded with blanks so that the data starts at a multiple of 8; freed
 * with cJSON_free. NULL when memory runs out. */
static char *header_text(int n, const hs_st_tensor *tensors, const char *const *meta) {
    cJSON *doc = cJSON_CreateObject();
    cJSON *m = doc && meta ? cJSON_AddObjectToObject(doc, "__metadata__") : NULL;
    int ok = doc && (!meta || m);
    for (int i = 0; ok && meta && meta[i]; i += 2) ok = cJSON_AddStringToObject(m, meta[i], meta[i + 1]) != NULL;
    int64_t at = 0;
    for (int i = 0; ok && i < n; i++) { /* raw text: cJSON would print large offsets as 1e+15 */
        const hs_st_tensor *t = &tensors[i];
        int64_t bytes = t->numel * (int64_t)hs_dtype_size(t->dtype);
        char shape[160], text[320];
        hs_st_shape_text(t, shape, sizeof(shape));
        snprintf(text, sizeof(text), "{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%lld,%lld]}",
                 hs_dtype_name(t->dtype), shape, (long long)at, (long long)(at + bytes));
        at += bytes;
        ok = cJSON_AddRawToObject(doc, t->name, text) != NULL;
    }
    char *text = ok ? cJSON_PrintUnformatted(doc) : NULL;
    cJSON_Delete(doc);
    return text;
}

int hs_st_write(const char *path, int n, const hs_st_tensor *tensors, const char *const *meta, hs_err *err) {
    return hs_st_write_from(path, n, tensors, meta, NULL, NULL, err);
}

int hs_st_write_from(const char *path, int n, const hs_st_tensor *tensors, const char *const *meta, hs_st_fetch fetch,
                     void *user, hs_err *err) {
    hs_newfile f;
    char *header = header_text(n, tensors, meta);
    int rc = header ? hs_newfile_open(path, &f, err) : hs_fail(err, HS_ENOMEM, "no memory to write %s", path);
    if (rc) goto out;
    const uint64_t text = strlen(header), padded = (text + 7) / 8 * 8;
    unsigned char prefix[PREFIX];
    for (int i = 0; i < PREFIX; i++) prefix[i] = (unsigned char)(padded >> 8 * i);
    hs_newfile_write(&f, prefix, PREFIX);
    hs_newfile_write(&f, header, text);
    hs_newfile_write(&f, "       ", padded - text);
    for (int i = 0; i < n && !rc && !f.failed; i++) {
        const void *data = fetch ? fetch(user, i, err) : tensors[i].data;
        if (data)
            hs_newfile_write(&f, data, (size_t)tensors[i].numel * hs_dtype_size(tensors[i].dtype));
        else
            rc = err && err->code ? err->code : HS_EDEVICE;
    }
    rc = hs_newfile_done(&f, rc, err);
out:
    cJSON_free(header);
    return rc;
}
