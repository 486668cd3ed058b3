/* Tensor names and shapes: the lists that diffusers and transformers wrote for the published configs, against the rules
 * in genmodel_names.c and against what the engine binds. Full-size files exist as headers only (sparse). */
#include "engine/dit.h"
#include "engine/text.h"
#include "engine/vae.h"
#include "golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_name(const void *a, const void *b) {
    return strcmp(((const gm_tensor *)a)->name, ((const gm_tensor *)b)->name);
}

Test(names, rules_equal_reference_lists) {
    static const char *const models[] = {"A", "B", "C", "wan_1.3b", "wan_14b"};
    static const char *const parts[] = {"transformer", "text_encoder", "vae"};
    int lists = 0;
    for (int m = 0; m < 5; m++) {
        hs_err err = {0};
        cJSON *config = gm_config(GOLDEN_DIR, models[m], &err);
        cr_assert(config != NULL, "%s", err.msg);
        for (int p = 0; p < 3; p++) {
            gm_list a, b;
            if (!cJSON_IsObject(cJSON_GetObjectItemCaseSensitive(config, parts[p]))) continue;
            cr_assert(!gm_tensors(config, parts[p], &a, &err) &&
                          !gm_tensors_golden(GOLDEN_DIR, models[m], parts[p], &b, &err),
                      "%s", err.msg);
            qsort(a.at, (size_t)a.n, sizeof *a.at, by_name);
            qsort(b.at, (size_t)b.n, sizeof *b.at, by_name);
            cr_expect_eq(a.n, b.n, "%s %s: %d tensors by rule, reference %d", models[m], parts[p], a.n, b.n);
            for (int i = 0; i < a.n && i < b.n; i++) {
                int same = !strcmp(a.at[i].name, b.at[i].name) && a.at[i].ndim == b.at[i].ndim &&
                           !memcmp(a.at[i].shape, b.at[i].shape, (size_t)a.at[i].ndim * sizeof(int64_t));
                cr_expect(same, "%s: %s by rule, reference %s, or shapes differ", models[m], a.at[i].name,
                          b.at[i].name);
                if (!same) break;
            }
            gm_list_free(&a);
            gm_list_free(&b);
            lists++;
        }
        cJSON_Delete(config);
    }
    cr_expect_eq(lists, 13);
}

/* Binds all parts of a folder without a device. Returns the first error. */
static int bind_all(const char *dir, int ret_count[3], hs_err *err) {
    static const char *const parts[] = {"transformer", "text_encoder", "vae"};
    hs_config c = {0};
    hs_dit *dit = NULL;
    hs_text *text = NULL;
    hs_vae *vae = NULL;
    int rc = hs_config_load(dir, &c, err);
    for (int p = 0; p < 3 && !rc; p++) {
        char path[512];
        hs_st *st = NULL;
        snprintf(path, sizeof path, "%s/%s", dir, parts[p]);
        if ((rc = hs_st_open_dir(path, p == 1 ? "model" : "diffusion_pytorch_model", &st, err))) break;
        ret_count[p] = hs_st_count(st);
        rc = p == 0   ? hs_dit_load(&c, st, NULL, HS_ALL_BLOCKS, &dit, err)
             : p == 1 ? hs_text_load(&c, st, NULL, 0, &text, err)
                      : hs_vae_load(&c, st, NULL, &vae, err);
        hs_st_close(st);
    }
    hs_config_done(&c);
    return rc;
}

static void published(const char *model, int dit_tensors) {
    char dir[256];
    hs_err err = {0};
    int count[3] = {0};
    gold_model(model, &(gm_options){.sparse = 1}, dir);
    cr_expect_eq(bind_all(dir, count, &err), 0, "%s: %s", model, err.msg);
    gold_model_done(dir);
    cr_expect(count[0] == dit_tensors && count[1] == 242 && count[2] == 194, "%s: %d, %d, %d tensors", model, count[0],
              count[1], count[2]);
}

Test(names, published_1_3b) {
    published("wan_1.3b", 825);
}
Test(names, published_14b) {
    published("wan_14b", 1095);
}

/* A missing tensor is refused and named, whichever part it is missing from. */
Test(names, missing_tensor) {
    static const char *const drop[] = {"blocks.29.attn2.norm_k.weight",
                                       "encoder.block.23.layer.0.SelfAttention.relative_attention_bias.weight",
                                       "decoder.up_blocks.1.upsamplers.0.time_conv.bias"};
    for (int i = 0; i < 3; i++) {
        char dir[256];
        hs_err err = {0};
        int count[3];
        gold_model("wan_1.3b", &(gm_options){.sparse = 1, .drop = drop[i]}, dir);
        cr_expect_eq(bind_all(dir, count, &err), HS_EFORMAT, "%s is missing, and nobody minds", drop[i]);
        cr_expect(strstr(err.msg, drop[i]) != NULL, "the message does not name %s: %s", drop[i], err.msg);
        gold_model_done(dir);
    }
}
