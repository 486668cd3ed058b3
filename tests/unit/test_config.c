/* config.c: what the published configs give, every refusal, defaults, contradictions, identity, failing memory. */
#include "util.h"
#include "model.h"
#include "sha256.h"

#include <criterion/criterion.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(config, .fini = scratch_remove);

typedef int (*parser)(const char *json, size_t len, const char *path, hs_config *c, hs_err *err);

static int parse(parser p, const char *json, hs_config *c, hs_err *e) {
    return p(json, strlen(json), "x.json", c, e);
}

Test(config, the_published_1_3b) {
    hs_config c;
    hs_err e;
    write_configs(scratch("."));
    cr_assert_eq(hs_config_load(scratch("."), &c, &e), 0, "%s", e.msg);
    cr_assert(c.dim == 1536 && c.heads == 12 && c.head_dim == 128 && c.layers == 30 && c.ffn == 8960);
    cr_assert(c.in_channels == 16 && c.out_channels == 16 && c.text_dim == 4096 && c.freq_dim == 256 &&
              c.rope_max == 1024);
    cr_assert_eq(c.eps, 1e-6f);
    cr_assert(c.t_dim == 4096 && c.t_heads == 64 && c.t_dkv == 64 && c.t_ff == 10240 && c.t_layers == 24);
    cr_assert(c.t_vocab == 256384 && c.t_buckets == 32 && c.t_max_distance == 128 && c.t_eps == 1e-6f);
    cr_assert(c.v_base == 96 && c.v_z == 16 && c.v_res_blocks == 2);
    cr_assert(c.v_mult[0] == 1 && c.v_mult[1] == 2 && c.v_mult[2] == 4 && c.v_mult[3] == 4);
    cr_assert(!c.v_temporal_down[0] && c.v_temporal_down[1] && c.v_temporal_down[2]);
    cr_assert(c.v_mean[0] == -0.7571f && c.v_mean[15] == -0.2921f && c.v_std[0] == 2.8184f && c.v_std[15] == 1.916f);
    /* no haste.json: the family's own */
    cr_assert(c.width == 832 && c.height == 480 && c.frames == 81 && c.fps == 16 && c.steps == 50);
    cr_assert(c.guidance == 5 && c.shift == 3 && c.solver == HS_UNIPC);
    cr_assert(!strncmp(c.negative_prompt, "\xe8\x89\xb2\xe8\xb0\x83", 6)); /* U+8272 U+8C03 */
    int points = 0;
    for (const char *s = c.negative_prompt; *s; s++) points += ((unsigned char)*s & 0xc0) != 0x80;
    cr_assert_eq(points, 137); /* spec 2.2 */
    hs_config_done(&c);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(config, missing_keys_take_the_published_values) {
    hs_config c = {0};
    hs_err e;
    cr_assert_eq(parse(hs_config_parse_transformer,
                       "{\"_class_name\":\"WanTransformer3DModel\",\"num_attention_heads\":40,\"num_layers\":40,"
                       "\"ffn_dim\":13824}",
                       &c, &e),
                 0, "%s", e.msg);
    cr_assert(c.dim == 5120 && c.head_dim == 128 && c.in_channels == 16 && c.text_dim == 4096 && c.freq_dim == 256);
    cr_assert(c.rope_max == 1024 && c.eps == 1e-6f);
    cr_assert_eq(parse(hs_config_parse_vae, "{\"_class_name\":\"AutoencoderKLWan\"}", &c, &e), 0, "%s", e.msg);
    cr_assert(c.v_base == 96 && c.v_z == 16 && c.v_res_blocks == 2 && c.v_mult[2] == 4 && c.v_temporal_down[2] == 1);
    hs_config published = {0};
    cr_assert_eq(parse(hs_config_parse_vae, vae_json, &published, &e), 0, "%s", e.msg);
    cr_assert_arr_eq(c.v_mean, published.v_mean, sizeof(c.v_mean));
    cr_assert_arr_eq(c.v_std, published.v_std, sizeof(c.v_std));
    cr_assert_eq(parse(hs_config_parse_text,
                       "{\"model_type\":\"umt5\",\"d_model\":8,\"num_heads\":2,\"d_ff\":3,\"num_layers\":1,"
                       "\"vocab_size\":100}",
                       &c, &e),
                 0, "%s", e.msg);
    cr_assert(c.t_dkv == 64 && c.t_buckets == 32 && c.t_max_distance == 128 && c.t_eps == 1e-6f);
}

Test(config, newer_files_and_other_schedulers) {
    hs_config c = {0};
    hs_err e;
    cr_assert_eq(parse(hs_config_parse_vae,
                       edit(vae_json, "\"z_dim\":16",
                            "\"z_dim\":16,\"decoder_base_dim\":null,\"is_residual\":false,\"in_channels\":3,"
                            "\"out_channels\":3,\"patch_size\":null,\"scale_factor_temporal\":4,"
                            "\"scale_factor_spatial\":8,\"clip_output\":true"),
                       &c, &e),
                 0, "%s", e.msg);
    cr_assert_eq(parse(hs_config_parse_transformer,
                       edit(transformer_json, "\"eps\"", "\"pos_embed_seq_len\":null,\"eps\""), &c, &e),
                 0, "%s", e.msg);
    cr_assert_eq(
        parse(hs_config_parse_sched, "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\",\"shift\":8.5}", &c, &e), 0,
        "%s", e.msg);
    cr_assert_eq(c.shift, 8.5);
    cr_assert_eq(parse(hs_config_parse_sched, edit(sched_json, "\"flow_shift\":3.0,", ""), &c, &e), 0, "%s", e.msg);
    cr_assert_eq(c.shift, 3);
    const char *index = "{\"_class_name\":\"WanPipeline\",\"transformer_2\":[null,null],\"boundary_ratio\":null,"
                        "\"expand_timesteps\":false}";
    cr_assert_eq(hs_config_parse_index(index, strlen(index), "x", NULL, &e), 0, "%s", e.msg);
}

Test(config, numbers_that_only_python_writes) {
    hs_config c = {0};
    hs_err e = {0};
    const char *json = edit(sched_json, "\"flow_shift\"",
                            "\"lambda_min_clipped\":-Infinity,\"x\":[Infinity,NaN,\"a\\\" NaN\"],\"flow_shift\"");
    cr_assert_eq(parse(hs_config_parse_sched, json, &c, &e), 0, "%s", e.msg);
    cr_assert_eq(c.shift, 3);
}

static int parse_index(const char *json, size_t len, const char *path, hs_config *c, hs_err *err) {
    (void)c;
    return hs_config_parse_index(json, len, path, NULL, err);
}

Test(config, unsupported_and_impossible_values_are_refused_by_name) {
    static const char index_json[] = "{\"_class_name\":\"WanPipeline\",\"boundary_ratio\":null}";
    static const struct {
        const char *json, *from, *to;
        int code;
        const char *message;
        parser p;
    } cases[] = {
        {transformer_json, "WanTransformer3DModel", "HunyuanVideoTransformer3DModel", HS_ENOTSUP,
         "'_class_name' is \"HunyuanVideoTransformer3DModel\", but only WanTransformer3DModel",
         hs_config_parse_transformer},
        {transformer_json, "_class_name", "class", HS_ENOTSUP, "'_class_name' is missing", hs_config_parse_transformer},
        {transformer_json, "\"image_dim\":null", "\"image_dim\":1280", HS_ENOTSUP,
         "'image_dim' is 1280, but image-conditioned", hs_config_parse_transformer},
        {transformer_json, "\"added_kv_proj_dim\":null", "\"added_kv_proj_dim\":1536", HS_ENOTSUP,
         "'added_kv_proj_dim' is 1536", hs_config_parse_transformer},
        {transformer_json, "\"in_channels\":16", "\"in_channels\":36", HS_ENOTSUP, "'in_channels' is 36, but image",
         hs_config_parse_transformer},
        {transformer_json, "[1,2,2]", "[1,1,1]", HS_ENOTSUP, "'patch_size' is [1,1,1], but only [1,2,2]",
         hs_config_parse_transformer},
        {transformer_json, "[1,2,2]", "[1,2]", HS_ENOTSUP, "'patch_size'", hs_config_parse_transformer},
        {transformer_json, "[1,2,2]", "\"122\"", HS_ENOTSUP, "'patch_size'", hs_config_parse_transformer},
        {transformer_json, "rms_norm_across_heads", "rms_norm", HS_ENOTSUP, "'qk_norm' is \"rms_norm\", but only",
         hs_config_parse_transformer},
        {transformer_json, "\"cross_attn_norm\":true", "\"cross_attn_norm\":false", HS_ENOTSUP, "but only true",
         hs_config_parse_transformer},
        {transformer_json, "\"num_layers\":30", "\"num_layers\":0", HS_EFORMAT,
         "'num_layers' is 0, expected an integer of 1", hs_config_parse_transformer},
        {transformer_json, "\"num_layers\":30", "\"num_layers\":1e9", HS_EFORMAT, "'num_layers'",
         hs_config_parse_transformer},
        {transformer_json, "\"num_layers\":30", "\"num_layers\":2.5", HS_EFORMAT, "'num_layers' is 2.5",
         hs_config_parse_transformer},
        {transformer_json, "\"num_layers\":30", "\"num_layers\":\"30\"", HS_EFORMAT, "'num_layers' is \"30\"",
         hs_config_parse_transformer},
        {transformer_json, "\"num_layers\":30,", "", HS_EFORMAT, "'num_layers' is missing",
         hs_config_parse_transformer},
        {transformer_json, "\"num_layers\":30", "\"num_layers\":30,\"num_layers\":30", HS_EFORMAT, "given twice",
         hs_config_parse_transformer},
        {transformer_json, "\"num_attention_heads\":12", "\"num_attention_heads\":-12", HS_EFORMAT,
         "'num_attention_heads'", hs_config_parse_transformer},
        {transformer_json, "\"attention_head_dim\":128", "\"attention_head_dim\":127", HS_EFORMAT,
         "expected an even number", hs_config_parse_transformer},
        {transformer_json, "\"freq_dim\":256", "\"freq_dim\":255", HS_EFORMAT, "expected an even number",
         hs_config_parse_transformer},
        {transformer_json, "\"eps\":1e-06", "\"eps\":0", HS_EFORMAT, "'eps' is 0, expected a number above 1e-12",
         hs_config_parse_transformer},
        {transformer_json, "\"eps\":1e-06", "\"eps\":1e-60", HS_EFORMAT, "'eps' is 1e-60", hs_config_parse_transformer},
        {transformer_json, "\"eps\":1e-06", "\"eps\":1e999", HS_EFORMAT, "'eps'", hs_config_parse_transformer},
        {transformer_json, "\"eps\"", "\"quantization_config\":{\"load_in_4bit\":true},\"eps\"", HS_ENOTSUP,
         "quantised", hs_config_parse_transformer},
        {transformer_json, "{", "[", HS_EFORMAT, "not valid JSON", hs_config_parse_transformer},

        {text_json, "umt5", "t5", HS_ENOTSUP, "'model_type' is \"t5\", but only umt5", hs_config_parse_text},
        {text_json, "gated-gelu", "relu", HS_ENOTSUP, "'feed_forward_proj' is \"relu\"", hs_config_parse_text},
        {text_json, "gelu_new", "silu", HS_ENOTSUP, "'dense_act_fn'", hs_config_parse_text},
        {text_json, "\"eos_token_id\":1", "\"eos_token_id\":2", HS_ENOTSUP, "'eos_token_id' is 2, but only 1",
         hs_config_parse_text},
        {text_json, "\"d_model\":4096,", "", HS_EFORMAT, "'d_model' is missing", hs_config_parse_text},
        {text_json, "\"vocab_size\":256384", "\"vocab_size\":99999999", HS_EFORMAT, "'vocab_size'",
         hs_config_parse_text},
        {text_json, "num_buckets\":32", "num_buckets\":30", HS_EFORMAT, "30 buckets", hs_config_parse_text},
        {text_json, "max_distance\":128", "max_distance\":8", HS_EFORMAT, "distances up to 8", hs_config_parse_text},

        {vae_json, "AutoencoderKLWan", "AutoencoderKL", HS_ENOTSUP, "'_class_name'", hs_config_parse_vae},
        {vae_json, "\"attn_scales\":[]", "\"attn_scales\":[1.0]", HS_ENOTSUP, "'attn_scales' is [1], but only []",
         hs_config_parse_vae},
        {vae_json, "[false,true,true]", "[true,true,true]", HS_ENOTSUP, "'temperal_downsample'", hs_config_parse_vae},
        {vae_json, "[false,true,true]", "[false,true]", HS_ENOTSUP, "'temperal_downsample'", hs_config_parse_vae},
        {vae_json, "[1,2,4,4]", "[1,2,4]", HS_EFORMAT, "'dim_mult' is [1,2,4], expected 4", hs_config_parse_vae},
        {vae_json, "[1,2,4,4]", "[1,2,4,0]", HS_EFORMAT, "'dim_mult'", hs_config_parse_vae},
        {vae_json, "\"base_dim\":96", "\"base_dim\":95", HS_EFORMAT, "expected an even number", hs_config_parse_vae},
        {vae_json, "\"z_dim\":16", "\"z_dim\":16,\"is_residual\":true", HS_ENOTSUP, "'is_residual' is true",
         hs_config_parse_vae},
        {vae_json, "\"z_dim\":16", "\"z_dim\":16,\"decoder_base_dim\":256", HS_ENOTSUP, "Wan2.2", hs_config_parse_vae},
        {vae_json, "\"z_dim\":16", "\"z_dim\":16,\"patch_size\":2", HS_ENOTSUP, "Wan2.2", hs_config_parse_vae},
        {vae_json, "\"z_dim\":16", "\"z_dim\":16,\"scale_factor_spatial\":16", HS_ENOTSUP, "but only 8",
         hs_config_parse_vae},
        {vae_json, "\"z_dim\":16", "\"z_dim\":48", HS_EFORMAT, "expected 48 numbers (z_dim)", hs_config_parse_vae},
        {vae_json, "\"z_dim\":16", "\"z_dim\":65", HS_EFORMAT, "'z_dim' is 65", hs_config_parse_vae},
        {vae_json, "2.8184", "0", HS_EFORMAT, "'latents_std'", hs_config_parse_vae},
        {vae_json, "-0.7571", "\"a\"", HS_EFORMAT, "'latents_mean'", hs_config_parse_vae},

        {sched_json, "UniPCMultistepScheduler", "DDIMScheduler", HS_ENOTSUP, "'_class_name' is \"DDIMScheduler\"",
         hs_config_parse_sched},
        {sched_json, "flow_prediction", "epsilon", HS_ENOTSUP, "'prediction_type'", hs_config_parse_sched},
        {sched_json, "\"prediction_type\":\"flow_prediction\",", "", HS_ENOTSUP, "'prediction_type'",
         hs_config_parse_sched},
        {sched_json, "\"use_flow_sigmas\":true", "\"use_flow_sigmas\":false", HS_ENOTSUP, "'use_flow_sigmas'",
         hs_config_parse_sched},
        {sched_json, "\"flow_shift\":3.0", "\"flow_shift\":0", HS_EFORMAT, "'flow_shift' is 0", hs_config_parse_sched},
        {sched_json, "\"flow_shift\":3.0", "\"flow_shift\":101", HS_EFORMAT, "at most 100", hs_config_parse_sched},
        {sched_json, "\"flow_shift\":3.0", "\"flow_shift\":-Infinity", HS_EFORMAT, "'flow_shift' is \"-Infinity\"",
         hs_config_parse_sched},
        {sched_json, ":1000", ":500", HS_ENOTSUP, "'num_train_timesteps' is 500", hs_config_parse_sched},
        {sched_json, "\"use_karras_sigmas\":false", "\"use_karras_sigmas\":true", HS_ENOTSUP, "'use_karras_sigmas'",
         hs_config_parse_sched},
        {sched_json, ":1000", ":1000,\"invert_sigmas\":true", HS_ENOTSUP, "'invert_sigmas' is true",
         hs_config_parse_sched},
        {sched_json, ":1000", ":1000,\"stochastic_sampling\":true", HS_ENOTSUP, "'stochastic_sampling' is true",
         hs_config_parse_sched},

        {index_json, "WanPipeline", "WanImageToVideoPipeline", HS_ENOTSUP, "but only WanPipeline", parse_index},
        {index_json, "\"boundary_ratio\":null", "\"boundary_ratio\":0.875", HS_ENOTSUP, "two transformers",
         parse_index},
        {index_json, "\"boundary_ratio\":null", "\"expand_timesteps\":true", HS_ENOTSUP, "'expand_timesteps'",
         parse_index},
        {index_json, "\"boundary_ratio\":null", "\"transformer_2\":[\"diffusers\",\"WanTransformer3DModel\"]",
         HS_ENOTSUP, "'transformer_2'", parse_index},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        hs_config c = {0};
        hs_err e = {0};
        int rc = parse(cases[i].p, edit(cases[i].json, cases[i].from, cases[i].to), &c, &e);
        cr_assert_eq(rc, cases[i].code, "%s -> %s: code %d %s", cases[i].from, cases[i].to, rc, e.msg);
        cr_assert(strstr(e.msg, cases[i].message), "%s -> %s: \"%s\"", cases[i].from, cases[i].to, e.msg);
        cr_assert(strstr(e.msg, "x.json"), "%s", e.msg);
        cr_assert_eq(parse(cases[i].p, cases[i].json, &c, &e), 0, "unedited: %s", e.msg);
    }
}

Test(config, native_defaults) {
    hs_config c = {.width = 832, .height = 480, .frames = 81, .fps = 16, .steps = 50, .guidance = 5, .shift = 3};
    hs_err e;
    cr_assert_eq(parse(hs_config_parse_defaults, "{}", &c, &e), 0);
    cr_assert(c.width == 832 && c.frames == 81 && c.guidance == 5 && c.shift == 3);
    cr_assert_eq(
        parse(hs_config_parse_defaults,
              "{\"width\":160,\"height\":128,\"frames\":33,\"fps\":8,\"steps\":30,\"guidance\":0,\"shift\":4.5,"
              "\"solver\":\"dpm++\",\"negative_prompt\":\"\"}",
              &c, &e),
        0, "%s", e.msg);
    cr_assert(c.width == 160 && c.height == 128 && c.frames == 33 && c.fps == 8 && c.steps == 30);
    cr_assert(c.guidance == 0 && c.shift == 4.5 && c.solver == HS_DPMPP);
    cr_assert_str_empty(c.negative_prompt);
    static const char *const bad[][2] = {
        {"{\"width\":100}", "multiples of 16"},
        {"{\"width\":0}", "'width' is 0"},
        {"{\"frames\":32}", "4k+1"},
        {"{\"steps\":1001}", "'steps' is 1001"},
        {"{\"fps\":\"16\"}", "'fps'"},
        {"{\"guidance\":1000}", "'guidance'"},
        {"{\"solver\":\"ddim\"}", "expected unipc, dpm++ or euler"},
        {"{\"negative_prompt\":5}", "expected a text"},
        {"{\"negative_prompt\":\"\xff\"}", "invalid UTF-8"},
        {"{\"colour\":1}", "unknown key 'colour'"},
        {"[]", "not a JSON object"},
        {"", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        hs_config d = c;
        cr_assert_neq(parse(hs_config_parse_defaults, bad[i][0], &d, &e), 0, "%s", bad[i][0]);
        cr_assert(strstr(e.msg, bad[i][1]), "%s: \"%s\"", bad[i][0], e.msg);
    }
    hs_config_done(&c);
    cr_assert_eq(hs_alloc_live(), 0);
}

Test(config, folders) {
    hs_config c = {.dim = -7};
    hs_err e;
    cr_assert_eq(hs_config_load(scratch("."), &c, &e), HS_EIO);
    cr_assert(strstr(e.msg, "transformer/config.json: No such file"), "%s", e.msg);
    write_configs(scratch("."));
    write_text(scratch("text_encoder/config.json"), edit(text_json, "\"d_model\":4096", "\"d_model\":512"));
    cr_assert_eq(hs_config_load(scratch("."), &c, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "d_model is 512, but the transformer's text_dim is 4096"), "%s", e.msg);
    write_text(scratch("text_encoder/config.json"), text_json);
    write_text(scratch("transformer/config.json"),
               "{\"_class_name\":\"WanTransformer3DModel\",\"num_attention_heads\":1,\"num_layers\":1,\"ffn_dim\":9,"
               "\"in_channels\":4,\"out_channels\":4}");
    cr_assert_eq(hs_config_load(scratch("."), &c, &e), HS_EFORMAT);
    cr_assert(strstr(e.msg, "z_dim is 16, but the transformer's in_channels is 4"), "%s", e.msg);
    write_text(scratch("transformer/config.json"), transformer_json);
    write_text(scratch("model_index.json"), "{\"_class_name\":\"FluxPipeline\"}");
    cr_assert_eq(hs_config_load(scratch("."), &c, &e), HS_ENOTSUP);
    cr_assert(strstr(e.msg, "FluxPipeline"), "%s", e.msg);
    cr_assert_eq(c.dim, -7, "untouched on failure");
    write_text(scratch("model_index.json"), "{\"_class_name\":\"WanPipeline\"}");
    write_text(scratch("haste.json"), "{\"steps\":4}");
    cr_assert_eq(hs_config_load(scratch("."), &c, &e), 0, "%s", e.msg);
    cr_assert(c.steps == 4 && c.width == 832);
    hs_config_done(&c);
    cr_assert_eq(hs_alloc_live(), 0);
}

static int load_and_free(void *arg, hs_err *err) {
    hs_config c;
    int rc = hs_config_load(arg, &c, err);
    if (!rc) hs_config_done(&c);
    return rc;
}

Test(config, every_allocation_may_fail) {
    write_configs(scratch("."));
    write_text(scratch("haste.json"), "{\"negative_prompt\":\"mush\"}");
    cr_assert_geq(fail_allocations(load_and_free, (void *)scratch("."), "hs_config_load"), 200);
}

/* ---- identity -------------------------------------------------------------------------------------------------- */

static const char *sha(const void *data, size_t len, size_t piece) {
    static char hex[65];
    hs_sha256 h;
    hs_sha256_init(&h);
    for (size_t i = 0; i < len; i += piece)
        hs_sha256_add(&h, (const char *)data + i, len - i < piece ? len - i : piece);
    hs_sha256_done(&h, hex);
    return hex;
}

Test(config, sha256_test_vectors) { /* FIPS 180-4 examples */
    static const char two[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    cr_assert_str_eq(sha("", 0, 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    cr_assert_str_eq(sha("abc", 3, 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    for (size_t piece = 1; piece < 200; piece += 9)
        cr_assert_str_eq(sha(two, 56, piece), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    cr_assert_str_eq(sha(million, 1000000, 777), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(million);
}

Test(config, identity_of_a_model) {
    char first[65], second[65];
    hs_err e;
    make_dir(scratch("transformer"));
    cr_assert_eq(hs_model_sha256(scratch("."), first, &e), HS_EIO);
    write_text(scratch("transformer/config.json"), transformer_json);
    cr_assert_eq(hs_model_sha256(scratch("."), first, &e), HS_EIO);
    cr_assert(strstr(e.msg, "diffusion_pytorch_model.safetensors: No such file"), "%s", e.msg);

    const char *weights = scratch("transformer/diffusion_pytorch_model.safetensors");
    const char *header = "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    char all[1024];
    write_tensors(weights, header, 1);
    cr_assert_eq(hs_model_sha256(scratch("."), first, &e), 0, "%s", e.msg);
    int n = snprintf(all, sizeof(all), "%s%c", transformer_json, (char)strlen(header));
    memset(all + n, 0, 7);
    strcpy(all + n + 7, header);
    cr_assert_str_eq(first, sha(all, (size_t)n + 7 + strlen(header), 64), "config, then length and header");
    write_tensors(weights, header, 9); /* more data, same header */
    cr_assert_eq(hs_model_sha256(scratch("."), second, &e), 0);
    cr_assert_str_eq(first, second);
    write_tensors(weights, "{}", 1);
    cr_assert_eq(hs_model_sha256(scratch("."), second, &e), 0);
    cr_assert_str_neq(first, second);
    write_text(scratch("transformer/diffusion_pytorch_model.safetensors.index.json"), "{}");
    cr_assert_eq(hs_model_sha256(scratch("."), second, &e), 0);
    snprintf(all, sizeof(all), "%s{}", transformer_json);
    cr_assert_str_eq(second, sha(all, strlen(all), 64), "config, then the index");
    cr_assert_eq(hs_alloc_live(), 0);
}
