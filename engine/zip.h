/* The entries of a zip archive that only stores: what PyTorch writes. ZIP64 is understood; nothing is unpacked.
 *
 * Whatever two readers could understand differently is refused: compressed or encrypted entries, several disks, bytes
 * behind the archive, local headers that contradict the directory, entries that overlap, a name given twice.
 */
#ifndef HS_ZIP_H
#define HS_ZIP_H
#include "base.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_zip_entry {
    const char *name; /* into the archive: not NUL terminated, holds no control characters */
    int name_len;
    uint32_t crc;         /* of the content; not checked here */
    int64_t begin, size;  /* content: bytes of the archive */
    int64_t from, behind; /* with its local header: no other entry has a byte in between */
} hs_zip_entry;

/* Does it begin as a zip archive? */
int hs_zip_is(const void *data, size_t len);
/* All entries of the archive of len bytes, sorted by name; *ret is freed with hs_free. path is for messages. */
int hs_zip_read(const void *data, size_t len, const char *path, hs_zip_entry **ret, int *ret_n, hs_err *err);
/* NULL if there is none of this name. */
const hs_zip_entry *hs_zip_find(const hs_zip_entry *e, int n, const char *name, int name_len);

#ifdef __cplusplus
}
#endif
#endif
