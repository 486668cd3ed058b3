/* Prompt cleaning: any bytes. The result is valid UTF-8 (it can be cleaned again) without control characters, outer or
 * double spaces. */
#include "fuzz.h"
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    char *text = malloc(len + 1), *clean = NULL, *again = NULL;
    if (!text) return 0;
    if (len) memcpy(text, data, len);
    text[len] = '\0';
    hs_err err = {0};
    int rc = hs_prompt_clean(text, &clean, &err);
    if (rc) {
        FUZZ_ASSERT(rc == HS_EINVAL && !clean && *err.msg);
    } else {
        size_t n = strlen(clean);
        FUZZ_ASSERT(!n || (clean[0] != ' ' && clean[n - 1] != ' '));
        for (size_t i = 0; i < n; i++)
            FUZZ_ASSERT((unsigned char)clean[i] >= 0x20 && clean[i] != 0x7f &&
                        (clean[i] != ' ' || clean[i + 1] != ' '));
        FUZZ_ASSERT(hs_prompt_clean(clean, &again, &err) == 0 || n > 1000000);
        hs_free(again);
        hs_free(clean);
    }
    free(text);
    FUZZ_ASSERT(hs_alloc_live() == 0);
    return 0;
}
