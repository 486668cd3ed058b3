/* SHA-256 (FIPS 180-4) of bytes that come in pieces: the identity of model files in profiles. */
#ifndef HS_SHA256_H
#define HS_SHA256_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_sha256 {
    uint32_t state[8];
    uint64_t bytes;          /* added so far */
    unsigned char block[64]; /* the incomplete block */
} hs_sha256;

void hs_sha256_init(hs_sha256 *h);
void hs_sha256_add(hs_sha256 *h, const void *data, size_t len);
void hs_sha256_done(hs_sha256 *h, char ret_hex[65]);

#ifdef __cplusplus
}
#endif
#endif
