/* UMT5 encoder: rows of given ids against transformers' UMT5EncoderModel (padded to 512 and masked there). */
#include "engine/text.h"
#include "golden.h"

#include <stdio.h>

static void make_ids(const char *name, int n, int vocab, int32_t *ret) {
    char key[64];
    snprintf(key, sizeof key, "ids:%s", name);
    for (int i = 0; i < n; i++)
        ret[i] = 4 + (int32_t)(hs_hash64(gm_fnv1a64(key) + (uint64_t)i) % (uint64_t)(vocab - 4));
    ret[n - 1] = 1;
}

/* Rows [n, text_dim] of one case, freed by the caller; tap and opt may be NULL. */
static float *encode(hs_device *dev, const char *model, const gm_options *opt, const cJSON *c, gold_taps *taps,
                     int64_t *ret_n) {
    char dir[256], path[512];
    int32_t ids[HS_TEXT_LEN];
    hs_config config = {0};
    hs_st *st = NULL;
    hs_text *text = NULL;
    hs_buf rows = HS_NOBUF;
    hs_err err = {0};
    hs_tap tap = {taps ? gold_tap : NULL, taps};
    const int n = (int)gold_num(c, "n");
    gold_model(model, opt, dir);
    cr_assert_eq(hs_config_load(dir, &config, &err), 0, "%s", err.msg);
    snprintf(path, sizeof path, "%s/text_encoder", dir);
    cr_assert_eq(hs_st_open_dir(path, "model", &st, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_text_load(&config, st, dev, 0, &text, &err), 0, "%s", err.msg);
    cr_expect(hs_st_unused(st) == NULL, "tensor %s was not used", hs_st_unused(st) ? hs_st_unused(st)->name : "");
    cr_assert_eq(hs_device_alloc(dev, HS_F32, (int64_t)n * config.t_dim, "test", &rows, &err), 0, "%s", err.msg);
    make_ids(gold_str(c, "name"), n, config.t_vocab, ids);
    cr_assert_eq(hs_text_encode(text, ids, n, rows, &tap, &err), 0, "%s", err.msg);
    float *host = hs_alloc((size_t)rows.n * sizeof *host);
    cr_assert(host != NULL);
    hs_download(dev, host, rows);
    *ret_n = rows.n;
    hs_device_free(dev, rows);
    hs_text_free(text);
    hs_st_close(st);
    hs_config_done(&config);
    gold_model_done(dir);
    return host;
}

static void run_case(gold *g, int which, hs_device *dev, const char *model, const cJSON *c) {
    const double factor = gold_devices[which].half ? GOLD_BF16_TEXT : 1;
    char key[128];
    gold_taps taps = {0};
    int64_t n;
    float *rows = encode(dev, model, NULL, c, &taps, &n);
    snprintf(key, sizeof key, "text/%s/%s/", model, gold_str(c, "name"));
    gold_compare_taps(g, key, &taps, factor);
    snprintf(key, sizeof key, "text/%s/%s/text.rows", model, gold_str(c, "name")); /* memory holds what the tap saw */
    gold_compare(g, key, rows, n, factor);
    hs_free(rows);
}

static void run_all(int which) {
    hs_device *dev = gold_open(which);
    gold g = gold_load("text", &gold_devices[which]);
    for (const cJSON *c = gold_first(gold_cases("text")); c; c = c->next)
        for (const cJSON *m = gold_first(cJSON_GetObjectItemCaseSensitive(c, "models")); m; m = m->next)
            run_case(&g, which, dev, m->valuestring, c);
    gold_close(&g);
    hs_device_close(dev);
}

Test(text, ref) {
    run_all(GOLD_REF);
}
Test(text, cpu_fp32) {
    run_all(GOLD_CPU_FP32);
}
Test(text, cpu_bf16) {
    run_all(GOLD_CPU_BF16);
}
Test(text, cuda_fp32) {
    run_all(GOLD_CUDA_FP32);
}
Test(text, cuda_bf16) {
    run_all(GOLD_CUDA_BF16);
}
Test(text, cuda_fp16) {
    run_all(GOLD_CUDA_FP16);
}

/* As dit_sensitivity: every tensor 10 % larger must show in the rows. */
Test(text_sensitivity, every_tensor) {
    hs_device *dev = gold_open_fast();
    gold g = gold_load("text", &gold_devices[GOLD_REF]);
    const cJSON *c = gold_case("text", "medium"); /* 120 ids: far relative positions too */
    int64_t kept, n;
    const float *ref = gold_plain(&g, "text/A/medium/text.rows", &kept);
    gm_list l = gold_tensors("A", "text_encoder");
    for (int i = 0; i < l.n; i++) {
        gm_options o = {.perturb = l.at[i].name, .amount = 0.1};
        float *rows = encode(dev, "A", &o, c, NULL, &n);
        gold_expect_moved(&g, "text/A/medium/text.rows", l.at[i].name, rows, n, ref, kept);
        hs_free(rows);
    }
    gm_list_free(&l);
    gold_close(&g);
    hs_device_close(dev);
}
