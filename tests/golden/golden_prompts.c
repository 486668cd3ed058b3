/* Prompt cleaning against ftfy and diffusers' prompt_clean; token ids against sentencepiece (data/prompts.json). */
#include "engine/tokenizer.h"
#include "golden.h"

#include <stdio.h>
#include <string.h>

static cJSON *records(void) {
    hs_err err = {0};
    cJSON *json = gm_json_file(GOLDEN_DIR, "data/prompts.json", &err);
    cr_assert(json && cJSON_GetArraySize(json) >= 200, "%s", err.msg);
    return json;
}

/* Printable form of a text for messages: other bytes as \xHH, at most 60 of them. */
static const char *shown(const char *s, char ret[256]) {
    size_t at = 0;
    for (int i = 0; s[i] && i < 60; i++)
        at += (size_t)snprintf(ret + at, 256 - at, s[i] >= 32 && s[i] < 127 ? "%c" : "\\x%02x", (unsigned char)s[i]);
    ret[at] = 0;
    return ret;
}

Test(prompts, cleaning) {
    cJSON *json = records();
    for (const cJSON *r = gold_first(json); r; r = r->next) {
        const char *group = gold_str(r, "group"), *want = gold_str(r, "clean");
        char *clean = NULL, a[256], b[256], c[256];
        hs_err err = {0};
        /* what the engine leaves out on purpose (clean.c says so); their ids are still compared below */
        if (!strcmp(group, "mojibake") || !strcmp(group, "rare_entities")) continue;
        int rc = hs_prompt_clean(gold_str(r, "in"), &clean, &err);
        cr_expect(!rc && !strcmp(clean, want), "%s: \"%s\" becomes \"%s\", reference \"%s\" %s", group,
                  shown(gold_str(r, "in"), a), rc ? "" : shown(clean, b), shown(want, c), err.msg);
        hs_free(clean);
    }
    cJSON_Delete(json);
}

Test(prompts, token_ids) {
    enum { MAX = 512 };
    hs_tokenizer *tok = NULL;
    hs_err err = {0};
    int rc = hs_tokenizer_open(GOLDEN_DIR "/data/spiece.model", &tok, &err);
    if (rc == HS_ENOTSUP) cr_skip_test("%s", err.msg);
    cr_assert_eq(rc, 0, "%s", err.msg);
    cJSON *json = records();
    for (const cJSON *r = gold_first(json); r; r = r->next) {
        const cJSON *ids = cJSON_GetObjectItemCaseSensitive(r, "ids");
        const int want = cJSON_GetArraySize(ids);
        int32_t got[MAX];
        int n = 0, total = 0, k = 0;
        char a[256];
        const char *group = gold_str(r, "group"), *clean = gold_str(r, "clean");
        rc = hs_tokenizer_encode(tok, clean, MAX, got, &n, &total, &err);
        cr_expect(!rc && n == want && total == (int)gold_num(r, "total"),
                  "%s: \"%s\" gives %d ids of %d, reference %d of %d %s", group, shown(clean, a), n, total, want,
                  (int)gold_num(r, "total"), err.msg);
        for (const cJSON *id = gold_first(ids); id; id = id->next) {
            if (k < n && got[k] != id->valueint) {
                cr_expect(0, "%s: \"%s\": id %d is %d, reference %d", group, shown(clean, a), k, (int)got[k],
                          id->valueint);
                break;
            }
            k++;
        }
    }
    cJSON_Delete(json);
    hs_tokenizer_close(tok);
}
