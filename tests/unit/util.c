/* Helpers of the unit tests. They may assert: a failing helper fails the test that called it. */
#include "util.h"

#include <cjson/cJSON.h>
#include <criterion/criterion.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[256];

const char *scratch(const char *fmt, ...) {
    static char buf[8][512];
    static int at;
    if (!*root) {
        const char *tmp = getenv("TMPDIR");
        snprintf(root, sizeof(root), "%s/haste-unit-XXXXXX", tmp && *tmp ? tmp : "/tmp");
        cr_assert_not_null(mkdtemp(root));
    }
    char *p = buf[at++ % 8];
    int n = snprintf(p, sizeof(buf[0]), "%s/", root);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p + n, sizeof(buf[0]) - (size_t)n, fmt, ap);
    va_end(ap);
    return p;
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *ftw) {
    (void)s, (void)type, (void)ftw;
    return remove(path);
}

void scratch_remove(void) {
    if (*root) nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    *root = '\0';
}

void write_file(const char *path, const void *data, size_t len) {
    FILE *f = fopen(path, "wb");
    cr_assert_not_null(f, "%s", path);
    cr_assert_eq(fwrite(data, 1, len, f), len);
    cr_assert_eq(fclose(f), 0);
}

void write_text(const char *path, const char *text) {
    write_file(path, text, strlen(text));
}

void write_tensors(const char *path, const char *header, size_t data_len) {
    size_t n = strlen(header);
    unsigned char *p = calloc(1, 8 + n + data_len);
    cr_assert_not_null(p);
    for (int i = 0; i < 8; i++) p[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(p + 8, header, n);
    for (size_t i = 0; i < data_len; i++) p[8 + n + i] = (unsigned char)i;
    write_file(path, p, 8 + n + data_len);
    free(p);
}

void make_dir(const char *path) {
    cr_assert(!mkdir(path, 0777), "%s", path);
}

const char transformer_json[] =
    "{\"_class_name\":\"WanTransformer3DModel\",\"_diffusers_version\":\"0.33.0.dev0\",\"added_kv_proj_dim\":null,"
    "\"attention_head_dim\":128,\"cross_attn_norm\":true,\"eps\":1e-06,\"ffn_dim\":8960,\"freq_dim\":256,"
    "\"image_dim\":null,\"in_channels\":16,\"num_attention_heads\":12,\"num_layers\":30,\"out_channels\":16,"
    "\"patch_size\":[1,2,2],\"qk_norm\":\"rms_norm_across_heads\",\"rope_max_seq_len\":1024,\"text_dim\":4096}";
const char text_json[] =
    "{\"model_type\":\"umt5\",\"d_model\":4096,\"d_kv\":64,\"d_ff\":10240,\"num_heads\":64,\"num_layers\":24,"
    "\"vocab_size\":256384,\"feed_forward_proj\":\"gated-gelu\",\"dense_act_fn\":\"gelu_new\",\"is_gated_act\":true,"
    "\"relative_attention_num_buckets\":32,\"relative_attention_max_distance\":128,\"layer_norm_epsilon\":1e-06,"
    "\"pad_token_id\":0,\"eos_token_id\":1,\"dropout_rate\":0.1,\"tie_word_embeddings\":false}";
const char vae_json[] =
    "{\"_class_name\":\"AutoencoderKLWan\",\"base_dim\":96,\"z_dim\":16,\"dim_mult\":[1,2,4,4],\"num_res_blocks\":2,"
    "\"attn_scales\":[],\"temperal_downsample\":[false,true,true],"
    "\"latents_mean\":[-0.7571,-0.7089,-0.9113,0.1075,-0.1745,0.9653,-0.1517,1.5508,0.4134,-0.0715,0.5517,-0.3632,"
    "-0.1922,-0.9497,0.2503,-0.2921],"
    "\"latents_std\":[2.8184,1.4541,2.3275,2.6558,1.2196,1.7708,2.6052,2.0743,3.2687,2.1526,2.8652,1.5579,1.6382,"
    "1.1253,2.8251,1.916]}";
const char sched_json[] =
    "{\"_class_name\":\"UniPCMultistepScheduler\",\"num_train_timesteps\":1000,\"prediction_type\":\"flow_prediction\","
    "\"use_flow_sigmas\":true,\"flow_shift\":3.0,\"solver_order\":2,\"thresholding\":false,\"use_karras_sigmas\":"
    "false}";

void write_configs(const char *dir) {
    char path[600];
    static const char *const parts[] = {"transformer", "text_encoder", "vae", "scheduler"};
    static const char *const files[] = {"transformer/config.json", "text_encoder/config.json", "vae/config.json",
                                        "scheduler/scheduler_config.json"};
    const char *const texts[] = {transformer_json, text_json, vae_json, sched_json};
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, parts[i]);
        make_dir(path);
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        write_text(path, texts[i]);
    }
}

const char *edit(const char *json, const char *from, const char *to) {
    static char buf[4096];
    const char *at = strstr(json, from);
    cr_assert_not_null(at, "no %s to replace", from);
    snprintf(buf, sizeof(buf), "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    return buf;
}

int fail_allocations(attempt_fn attempt, void *arg, const char *what) {
    cJSON_Hooks hooks = {hs_alloc, hs_free};
    cJSON_InitHooks(&hooks);
    int64_t live = hs_alloc_live();
    int n = 1;
    for (;; n++) {
        hs_err err = {0};
        hs_alloc_fail_at(n);
        int rc = attempt(arg, &err);
        hs_alloc_fail_at(0);
        cr_assert_eq(hs_alloc_live(), live, "%s: %lld blocks left when allocation %d fails", what,
                     (long long)(hs_alloc_live() - live), n);
        if (!rc) break;
        /* cJSON cannot tell exhausted memory from bad text */
        cr_assert(rc == HS_ENOMEM || rc == HS_EFORMAT, "%s: code %d when allocation %d fails", what, rc, n);
        cr_assert_eq(err.code, rc);
        cr_assert_gt(strlen(err.msg), 10);
        cr_assert_lt(n, 10000, "%s never succeeds", what);
    }
    cJSON_InitHooks(NULL);
    return n - 1;
}
