/* SentencePiece models: any bytes. What is accepted must encode text without leaving the model: that is the library's
 * code, which believes the character map. */
#include "fuzz.h"
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    static const char *const texts[] = {"", "a red circle",
                                        "caf\xc3\xa9 \xef\xbc\xa1\xe3\x80\x80 \xf0\x9f\x98\x80 <s>"};
    hs_tokenizer *t = NULL;
    hs_err err = {0};
    if (hs_tokenizer_open_bytes(data, len, "fuzz", &t, &err)) {
        FUZZ_ASSERT(err.msg[0] && !t);
    } else {
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            int32_t ids[8];
            int n = 0, total = 0;
            if (!hs_tokenizer_encode(t, texts[i], 8, ids, &n, &total, &err))
                FUZZ_ASSERT(n >= 1 && n <= 8 && n <= total);
        }
        hs_tokenizer_close(t);
    }
    FUZZ_ASSERT(hs_alloc_live() == 0);
    return 0;
}
