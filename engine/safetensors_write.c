/* Writes safetensors files, whole or not at all. */
#include "safetensors.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

static int write_all(int fd, const void *data, size_t len) {
    const char *p = data;
    while (len) {
        ssize_t k = write(fd, p, len < 1u << 30 ? len : 1u << 30);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return -1;
        p += k;
        len -= (size_t)k;
    }
    return 0;
}

int hs_st_write(const char *path, int n, const hs_st_tensor *tensors, const char *const *meta, hs_err *err) {
    return hs_st_write_from(path, n, tensors, meta, NULL, NULL, err);
}

int hs_st_write_from(const char *path, int n, const hs_st_tensor *tensors, const char *const *meta, hs_st_fetch fetch,
                     void *user, hs_err *err) {
    static _Atomic int serial;
    struct stat s;
    if (!stat(path, &s) && !S_ISREG(s.st_mode)) /* renaming over /dev/null would replace it */
        return hs_fail(err, HS_EIO, "cannot write %s: it exists and is not a regular file", path);
    size_t size = strlen(path) + 40;
    int rc = HS_OK, fd = -1;
    char *tmp = hs_alloc(size), *header = header_text(n, tensors, meta);
    if (!tmp || !header) {
        rc = hs_fail(err, HS_ENOMEM, "no memory to write %s", path);
        goto out;
    }
    snprintf(tmp, size, "%s.tmp.%ld.%d", path, (long)getpid(), atomic_fetch_add(&serial, 1));
    fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        rc = hs_fail(err, HS_EIO, "cannot write %s: creating %s: %s", path, tmp, strerror(errno));
        goto out;
    }
    uint64_t text = strlen(header), padded = (text + 7) / 8 * 8;
    unsigned char prefix[PREFIX];
    for (int i = 0; i < PREFIX; i++) prefix[i] = (unsigned char)(padded >> 8 * i);
    int bad = write_all(fd, prefix, PREFIX) || write_all(fd, header, text) || write_all(fd, "       ", padded - text);
    for (int i = 0; i < n && !bad && !rc; i++) {
        const void *data = fetch ? fetch(user, i, err) : tensors[i].data;
        if (!data)
            rc = err && err->code ? err->code : HS_EDEVICE;
        else
            bad = write_all(fd, data, (size_t)tensors[i].numel * hs_dtype_size(tensors[i].dtype));
    }
    bad = bad || (!rc && fsync(fd));
    int why = errno;
    if (close(fd) && !bad) {
        bad = 1;
        why = errno;
    }
    if (!bad && !rc && rename(tmp, path)) {
        bad = 1;
        why = errno;
    }
    if (bad || rc) unlink(tmp);
    if (bad) rc = hs_fail(err, HS_EIO, "cannot write %s: %s", path, strerror(why));
out:
    cJSON_free(header);
    hs_free(tmp);
    return rc;
}
