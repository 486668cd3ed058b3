/* The command line: every option and alias, strict numbers, refusals that name the option, numbering of outputs. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "options.h"

enum { MAX_ARGS = 32 };

/* Splits "a|b|c" behind the program's name and parses. The arguments live until the next call: options borrow them. */
static int parse(const char *line, hs_options *o, hs_err *err) {
    static char text[4096];
    char *argv[MAX_ARGS + 1] = {(char[]){"haste-run"}};
    int argc = 1;
    snprintf(text, sizeof text, "%s", line);
    for (char *p = *text ? text : NULL; p && argc < MAX_ARGS;) {
        argv[argc++] = p;
        p = strchr(p, '|');
        if (p) *p++ = 0;
    }
    *err = (hs_err){0};
    return hs_options_parse(argc, argv, o, err);
}

static hs_options good(const char *line) {
    hs_options o;
    hs_err err;
    int rc = parse(line, &o, &err);
    cr_assert_eq(rc, 0, "\"%s\" refused: %s", line, err.msg);
    return o;
}

/* Refused with this code, and the message holds `part`; *ret is untouched. */
static void refused(const char *line, int code, const char *part) {
    hs_options o, before;
    hs_err err;
    memset(&o, 0x5a, sizeof o);
    before = o;
    int rc = parse(line, &o, &err);
    cr_assert_eq(rc, code, "\"%s\" gave %d, not %d", line, rc, code);
    cr_assert_eq(err.code, code);
    cr_assert(strstr(err.msg, part), "\"%s\": message \"%s\" lacks \"%s\"", line, err.msg, part);
    cr_assert_eq(memcmp(&o, &before, sizeof o), 0, "\"%s\" changed the options", line);
}

Test(options, defaults_mean_the_model_decides) {
    hs_options o = good("-m|dir|-p|text");
    cr_assert_str_eq(o.model, "dir");
    cr_assert_str_eq(o.prompt, "text");
    cr_assert(!o.width && !o.height && !o.frames && !o.fps && !o.steps && !o.threads && !o.has_seed);
    cr_assert(isnan(o.guidance) && isnan(o.shift));
    cr_assert(o.solver == -1 && o.sigmas == -1);
    cr_assert(!o.output && !o.negative && !o.noise && !o.stats && !o.device && !o.precision);
    cr_assert(!o.profile && isnan(o.budget) && isnan(o.top_p) && o.attention == -1 && o.reuse == -1);
    cr_assert(!o.dry_run && !o.quiet && !o.verbose && !o.error_on_fallback && !o.help && !o.version);
}

Test(options, every_option_is_read) {
    hs_options o =
        good("--model|d|--prompt|p|--negative|n|--width|64|--height|48|--frames|9|--fps|24|--steps|7|--guidance|"
             "2.5|--shift|3.5|--solver|dpm++|--sigmas|b|--seed|18446744073709551615|--output|o");
    cr_assert_str_eq(o.negative, "n");
    cr_assert(o.width == 64 && o.height == 48 && o.frames == 9 && o.fps == 24 && o.steps == 7);
    cr_assert(o.guidance == 2.5 && o.shift == 3.5 && o.solver == HS_DPMPP && o.sigmas == HS_SIGMAS_B);
    cr_assert(o.has_seed && o.seed == UINT64_MAX);
    cr_assert_str_eq(o.output, "o");
    cr_assert_str_eq(good("-m|d|-p|p|--noise|a").noise, "a");
    o = good("-md|-pp|-nx|-oy|-q|--save-latents|s|--stats|t|--device|ref|--precision|fp32|--threads|3|--dry-run|"
             "--error-on-fallback|--attention|dense");
    cr_assert_str_eq(o.save_latents, "s");
    cr_assert_str_eq(o.stats, "t");
    cr_assert_str_eq(o.device, "ref");
    cr_assert_str_eq(o.precision, "fp32");
    cr_assert(o.threads == 3 && o.dry_run && o.error_on_fallback && o.quiet);
    cr_assert_str_eq(good("-m|d|--decode-latents|f|-v").decode_latents, "f");
    cr_assert_str_eq(good("-m|d|--prompts|f").prompts, "f");
}

Test(options, names_of_other_programs_work) {
    hs_options o =
        good("-m|d|-p|p|--size|832*480|--frame_num|81|--sample_steps|50|--sample_guide_scale|6|--sample_shift|8|"
             "--base_seed|42|--save_file|x.mp4|--sample_solver|unipc");
    cr_assert(o.width == 832 && o.height == 480 && o.frames == 81 && o.steps == 50 && o.guidance == 6 && o.shift == 8);
    cr_assert(o.has_seed && o.seed == 42 && o.solver == HS_UNIPC);
    cr_assert_str_eq(o.output, "x.mp4");
    o = good("-m|d|-p|p|--size=480x832|--num-frames=5|--num-inference-steps=4|--guidance-scale=1.5|--flow-shift=5|"
             "--negative-prompt=bad|--output-path=y.mkv");
    cr_assert(o.width == 480 && o.height == 832 && o.frames == 5 && o.steps == 4 && o.guidance == 1.5 && o.shift == 5);
    cr_assert_str_eq(o.negative, "bad");
    cr_assert_str_eq(o.output, "y.mkv");
    o = good("-m|d|-p|p|--num_frames|13|--num_inference_steps|3|--guidance_scale|2|--flow_shift|4|--negative_prompt|b|"
             "--output_path|z.y4m");
    cr_assert(o.frames == 13 && o.steps == 3 && o.guidance == 2 && o.shift == 4);
    cr_assert_str_eq(o.output, "z.y4m");
    cr_assert(!good("-m|d|-p|p|--seed|7|--base_seed|-1").has_seed, "-1 means random");
    o = good(
        "--ckpt_dir|d|-p|p|-W|480|-H|832|--video-frames|33|--cfg-scale|6|--sampling-method|dpm++2m|--dtype|bfloat16");
    cr_assert_str_eq(o.model, "d");
    cr_assert(o.width == 480 && o.height == 832 && o.frames == 33 && o.guidance == 6 && o.solver == HS_DPMPP);
    cr_assert_str_eq(o.precision, "bf16");
    cr_assert_str_eq(good("-m|d|-p|p|--t5xxl|t").text_encoder, "t");
    cr_assert_str_eq(good("-m|d|-p|p|--dtype|float16").precision, "fp16");
    cr_assert_str_eq(good("-m|d|-p|p|--dtype|float32").precision, "fp32");
    cr_assert_eq(good("-m|d|-p|p|--scheduler|uni_pc").solver, HS_UNIPC);
    cr_assert_str_eq(good("-m|d|-p|p|--n_prompt|bad").negative, "bad");
    cr_assert_str_eq(good("-m|d|-p|p|--n-prompt|bad").negative, "bad");
    cr_assert_str_eq(good("-m|d|-p|p|--unet|t").transformer, "t");
    cr_assert_str_eq(good("-m|d|-p|p|--diffusion-model|t").transformer, "t");
}

Test(options, numbers_are_strict) {
    static const char *const bad[] = {"--steps|",
                                      "--steps|1e2",
                                      "--steps|10 ",
                                      "--steps| 10",
                                      "--steps|+3",
                                      "--steps|0",
                                      "--steps|1001",
                                      "--steps|-1",
                                      "--steps|0x10",
                                      "--steps|3.0",
                                      "--width|12a",
                                      "--height|",
                                      "--frames|five",
                                      "--fps|0",
                                      "--fps|1001",
                                      "--guidance|x",
                                      "--guidance|-1",
                                      "--guidance|nan",
                                      "--shift|inf",
                                      "--shift|0",
                                      "--shift|1,5",
                                      "--guidance|0x2",
                                      "--seed|-2",
                                      "--seed|1.5",
                                      "--threads|0",
                                      "--seed|18446744073709551616",
                                      "--width|99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char line[128], name[32];
        snprintf(line, sizeof line, "-m|d|-p|p|%s", bad[i]);
        snprintf(name, sizeof name, "%.*s \"", (int)strcspn(bad[i], "|"), bad[i]);
        refused(line, HS_EINVAL, name);
        refused(line, HS_EINVAL, "should be");
    }
    static const char *const sizes[] = {"832",       "832x",  "x480",     "832x480x3",
                                        "832 x 480", "0x480", "832x-480", "8e2x480"};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char line[64];
        snprintf(line, sizeof line, "-m|d|-p|p|--size|%s", sizes[i]);
        refused(line, HS_EINVAL, "such as 832x480");
    }
    refused("-m|d|-p|p|--frames|0", HS_EINVAL, "--frames \"0\": should be 4k+1 frames: 1, 5, 9, ...");
    refused("-m|d|-p|p|--solver|heun", HS_EINVAL, "unipc, dpm++ or euler");
    refused("-m|d|-p|p|--sampling-method|heun", HS_EINVAL,
            "--sampling-method \"heun\": should be unipc, dpm++ or euler");
    refused("-m|d|-p|p|--scheduler|karras", HS_EINVAL, "the noise schedule is --sigmas");
    refused("-m|d|-p|p|--sigmas|e", HS_EINVAL, "a, b, c or d");
    refused("-m|d|-p|p|--sigmas|ab", HS_EINVAL, "a, b, c or d");
}

Test(options, wrong_lines_say_what_to_do) {
    refused("", HS_EINVAL, "-m DIR is missing");
    refused("-p|text", HS_EINVAL, "-m DIR is missing");
    refused("-m|d", HS_EINVAL, "-p TEXT is missing");
    refused("-m|d|-p|a|b", HS_EINVAL, "unexpected \"b\"");
    refused("-m|d|-p|a|--prompts|f", HS_EINVAL, "-p and --prompts");
    refused("-m|d|-p|a|--decode-latents|f", HS_EINVAL, "--decode-latents only decodes");
    static const char *const ignored[] = {"--steps|3",  "--guidance|5", "--shift|3",    "--solver|euler",
                                          "--sigmas|a", "--seed|5",     "--negative|x", "--noise|f"};
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) {
        char line[64], part[64];
        snprintf(line, sizeof line, "-m|d|--decode-latents|f|%s", ignored[i]);
        snprintf(part, sizeof part, "only decodes: leave out %.*s", (int)strcspn(ignored[i], "|"), ignored[i]);
        refused(line, HS_EINVAL, part);
    }
    good("-m|d|--decode-latents|f|--size|32x32|--frames|5|--fps|9|--seed|-1");
    refused("-m|d|-p|a|--noise|f|--seed|5", HS_EINVAL, "--noise and --seed");
    good("-m|d|-p|a|--noise|f|--seed|-1");
    refused("-m|d|-p|a|-n|b|--guidance|1", HS_EINVAL, "--negative has no effect without guidance");
    good("-m|d|-p|a|-n||--guidance|1");
    good("-m|d|-p|a|-n|b|--guidance|1.5");
    refused("-m|d|--prompts|f|-o|x.png", HS_EINVAL, "name a folder, such as -o frames/, or make pictures: --frames 1");
    refused("-m|d|--prompts|f|-o|x_%04d.PNG|--frames|5", HS_EINVAL, "a png holds one frame");
    good("-m|d|--prompts|f|-o|x.png|--frames|1");
    good("-m|d|--prompts|f|-o|frames/");
    static const char *const no_crf[] = {"x.md5", "x.y4m", "x_%d.png", "frames/", "x.rgb", "x.mkv", "-", "null:"};
    for (size_t i = 0; i < sizeof no_crf / sizeof *no_crf; i++) {
        char line[64];
        snprintf(line, sizeof line, "-m|d|-p|a|--crf|20|-o|%s", no_crf[i]);
        refused(line, HS_EINVAL, "--crf says how .mp4 and .webm are compressed");
    }
    cr_assert_eq(good("-m|d|-p|a|--crf|0|-o|x.mp4").crf, 0);
    cr_assert_eq(good("-m|d|--decode-latents|f|--crf|51|-o|x.webm").crf, 51);
    cr_assert_eq(good("-m|d|-p|a").crf, -1);
    refused("-m|d|-p|a|--crf|52", HS_EINVAL, "--crf \"52\": should be a whole number from 0 to 51");
    cr_assert_eq(good("-m|d|-p|a|--num-videos|3").num_videos, 3);
    cr_assert_eq(good("-m|d|--prompts|f|-b|2").num_videos, 2);
    cr_assert_eq(good("-m|d|-p|a|--batch-count|2|--n_iter|4").num_videos, 4);
    refused("-m|d|-p|a|-b|0", HS_EINVAL, "--num-videos \"0\": should be a whole number from 1");
    refused("-m|d|--resume|c|-b|2", HS_EINVAL, "--resume goes on with one video: leave out --num-videos");
    refused("-m|d|-p|a|--noise|f|-b|2", HS_EINVAL, "with --noise all would be equal");
    refused("-m|d|--decode-latents|f|-b|2", HS_EINVAL, "only decodes: leave out --num-videos");
    refused("-m|d|-p|a|-b|2|-o|x_%d.png", HS_EINVAL, "a png holds one frame");
    good("-m|d|--resume|c|-b|1");
    refused("-m|d|-p|a|-q|-v", HS_EINVAL, "--quiet and --verbose");
    refused("-m|d|-p|a|--widht|64", HS_EINVAL, "did you mean --width?");
    refused("-m|d|-p|a|--widht=64", HS_EINVAL, "unknown option --widht;");
    refused("-m|d|-p|a|--xyzzy", HS_EINVAL, "--help");
    refused("-m|d|-p|a|--note|f", HS_EINVAL, "unknown option --note; --help lists"); /* half of it is not "noise" */
    refused("-m|d|-p|a|-x", HS_EINVAL, "unknown option -x");
    refused("-m|d|-p|a|-qx", HS_EINVAL, "unknown option -x");
    refused("-m|d|-p", HS_EINVAL, "-p: its value is missing");
    refused("-m|d|-p|a|--steps", HS_EINVAL, "--steps: its value is missing");
    refused("-m|d|-p|a|--dry-run=yes", HS_EINVAL, "takes no value");
}

Test(options, what_other_programs_have_is_answered) {
    static const char *const pairs[][2] = {
        {"--lora|x", "--lora: not supported"},
        {"--image=x.png", "--image: not supported: videos are made from text only"},
        {"--task|t2v-1.3B", "--task: not needed"},
        {"--vae-tiling", "--vae-tiling: automatic where memory is short; see --max-vram"},
        {"--vae_tiling", "--vae_tiling: automatic"},
        {"--cpu-offload", "--cpu-offload: not needed"},
        {"--offload_model|True", "--offload_model: not needed"},
        {"--t5_cpu", "--t5_cpu: not needed"},
        {"--ulysses_size|2", "--ulysses_size: not supported: a video is made on one GPU"},
        {"--ring_size|2", "--ring_size: not supported"},
        {"--dit_fsdp", "--dit_fsdp: not supported"},
        {"--lorax|x", "unknown option --lorax"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char line[64];
        snprintf(line, sizeof line, "-m|d|-p|p|%s", pairs[i][0]);
        refused(line, HS_EINVAL, pairs[i][1]);
    }
}

Test(options, memory_has_a_unit_or_none) {
    static const struct {
        const char *text;
        double gb;
    } sizes[] = {{"12", 12}, {"7.5", 7.5}, {"12GB", 12}, {"12G", 12}, {"12gb", 12}, {"10GiB", 10.73741824}};
    char line[64];
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(line, sizeof line, "-m|d|-p|p|--max-vram|%s", sizes[i].text);
        cr_assert_float_eq(good(line).max_vram, sizes[i].gb, 1e-9, "%s", sizes[i].text);
    }
    static const char *const bad[] = {"",    "GB",    "12MB",  "12 000",  "-1",  "0",
                                      "nan", "12GBs", "1e6GB", "1000001", "0x10"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(line, sizeof line, "-m|d|-p|p|--max-vram=%s", bad[i]);
        refused(line, HS_EINVAL, "should be gigabytes from 0.001");
    }
}

/* ---- attention -------------------------------------------------------------------------------------------------- */
/* memcmp up to the last field: there may be padding behind it, none between the fields */
static int same_policy(const hs_attn_policy *a, const hs_attn_policy *b) {
    return !memcmp(a, b, offsetof(hs_attn_policy, compat) + sizeof a->compat);
}

/* The policy of a line, over `base` (what a profile would give) or dense. */
static hs_attn_policy policy_of(const char *line, const hs_attn_policy *base, int *ret_flags) {
    hs_options o = good(line);
    hs_attn_policy p = base ? *base : hs_attn_policy_default(HS_DENSE);
    hs_err err = {0};
    cr_assert_eq(hs_options_attention(&o, &p, ret_flags, &err), 0, "\"%s\": %s", line, err.msg);
    return p;
}

Test(options, attention_is_dense_unless_said) {
    int flags = 7;
    hs_attn_policy p = policy_of("-m|d|-p|p", NULL, &flags);
    cr_assert(p.method == HS_DENSE && flags == 0);
    p = policy_of("-m|d|-p|p|--attention|dense", NULL, &flags);
    cr_assert(p.method == HS_DENSE && flags == 1);
    static const hs_method methods[] = {HS_XATTENTION, HS_SVG2, HS_POOLED};
    for (int i = 0; i < 3; i++) {
        char line[64];
        snprintf(line, sizeof line, "-m|d|-p|p|--attention|%s", hs_method_name(methods[i]));
        p = policy_of(line, NULL, &flags);
        hs_attn_policy want = hs_attn_policy_default(methods[i]);
        cr_assert(same_policy(&p, &want), "%s is not the default", line);
        cr_assert_eq(flags, 1);
    }
}

Test(options, attention_flags_are_read) {
    int flags;
    hs_attn_policy p = policy_of("-m|d|-p|p|--attention|xattention|--top-p|0.8|--reuse-delta|12.5|--dense-steps|3|"
                                 "--dense-layers|1|--block|64|--stride|8|--compat|--compensate",
                                 NULL, &flags);
    cr_assert(p.method == HS_XATTENTION && p.top_p == 0.8f && p.reuse.kind == HS_REUSE_DRIFT && flags == 1);
    cr_assert(p.reuse.delta == 12.5f && p.dense_steps == 3 && p.dense_layers == 1 && p.block == 64 && p.stride == 8);
    cr_assert(p.compat == 1 && p.compensate == 1);
    p = policy_of("-m|d|-p|p|--attention|svg2|--q-clusters|20|--k-clusters|65535|--reuse|interval|--reuse-interval|7",
                  NULL, &flags);
    cr_assert(p.method == HS_SVG2 && p.q_clusters == 20 && p.k_clusters == 65535 && !p.compat && !p.compensate);
    cr_assert(p.reuse.kind == HS_REUSE_INTERVAL && p.reuse.interval == 7);
    p = policy_of("-m|d|-p|p|--attention|xattention|--reuse|stagger|--reuse-interval|5", NULL, &flags);
    cr_assert(p.reuse.kind == HS_REUSE_STAGGER && p.reuse.interval == 5);
    p = policy_of("-m|d|-p|p|--attention|pooled|--reuse|freeze|--top-p|1", NULL, &flags);
    cr_assert(p.method == HS_POOLED && p.reuse.kind == HS_REUSE_FREEZE && p.top_p == 1);
    p = policy_of("-m|d|-p|p|--attention|pooled|--reuse|relative|--reuse-delta|0.2", NULL, &flags);
    cr_assert(p.reuse.kind == HS_REUSE_RELATIVE && p.reuse.delta == 0.2f);
    p = policy_of("-m|d|-p|p|--attention|svg2|--reuse|none", NULL, &flags);
    cr_assert_eq(p.reuse.kind, HS_REUSE_NONE);
}

Test(options, flags_go_over_a_profile) {
    static const float table[4] = {0.9f, 0.8f, 0.7f, 1};
    hs_attn_policy base = hs_attn_policy_default(HS_XATTENTION), p;
    int flags = 7;
    base.top_p_heads = table, base.dense_steps = 5, base.reuse.delta = 11;
    p = policy_of("-m|d|-p|p|--profile|f|--budget|0.74", &base, &flags);
    cr_assert(same_policy(&p, &base));
    cr_assert_eq(flags, 0, "choosing a budget is not changing the profile");
    p = policy_of("-m|d|-p|p|--profile|f|--attention|xattention", &base, &flags);
    cr_assert(same_policy(&p, &base), "naming its method changes nothing");
    p = policy_of("-m|d|-p|p|--profile|f|--dense-steps|0|--stride|8", &base, &flags);
    cr_assert(p.dense_steps == 0 && p.stride == 8 && p.top_p_heads == table && p.reuse.delta == 11 && flags == 1);
    p = policy_of("-m|d|-p|p|--profile|f|--top-p|0.5", &base, &flags);
    cr_assert(p.top_p == 0.5f && !p.top_p_heads, "one threshold instead of the table");
    p = policy_of("-m|d|-p|p|--profile|f|--reuse-delta|4", &base, &flags);
    cr_assert_eq(p.reuse.delta, 4);

    /* the profile's limit means nothing for another kind of drift */
    base.reuse = (hs_reuse_policy){.kind = HS_REUSE_RELATIVE, .delta = 0.1f, .interval = 4};
    p = policy_of("-m|d|-p|p|--profile|f|--reuse|drift", &base, &flags);
    cr_assert_eq(p.reuse.delta, 30);
    p = policy_of("-m|d|-p|p|--profile|f|--reuse|relative", &base, &flags);
    cr_assert_eq(p.reuse.delta, 0.1f);

    static const struct {
        const char *line, *part;
    } bad[] = {
        {"-m|d|-p|p|--profile|f|--attention|svg2", "--attention svg2, but f was made for xattention"},
        {"-m|d|-p|p|--profile|f|--q-clusters|3", "--q-clusters has no meaning with xattention"},
        {"-m|d|-p|p|--profile|f|--reuse-interval|3", "--reuse-interval counts steps, but reuse is relative"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hs_options o = good(bad[i].line);
        hs_err err = {0};
        p = base;
        cr_assert_eq(hs_options_attention(&o, &p, &flags, &err), HS_EINVAL, "%s", bad[i].line);
        cr_assert(strstr(err.msg, bad[i].part), "%s", err.msg);
        cr_assert(same_policy(&p, &base), "%s changed the policy", bad[i].line);
    }
}

Test(options, attention_flags_that_contradict) {
    static const char *const sparse_only[] = {
        "--top-p|0.9", "--reuse|none", "--reuse-delta|3",  "--reuse-interval|3", "--dense-steps|2", "--dense-layers|1",
        "--block|64",  "--stride|8",   "--q-clusters|100", "--k-clusters|100",   "--compensate",    "--compat"};
    char line[128], part[64];
    for (size_t i = 0; i < sizeof sparse_only / sizeof *sparse_only; i++) {
        snprintf(part, sizeof part, "%.*s says how", (int)strcspn(sparse_only[i], "|"), sparse_only[i]);
        snprintf(line, sizeof line, "-m|d|-p|p|%s", sparse_only[i]);
        refused(line, HS_EINVAL, part);
        refused(line, HS_EINVAL, "dense unless");
        snprintf(line, sizeof line, "-m|d|-p|p|--attention|dense|%s", sparse_only[i]);
        refused(line, HS_EINVAL, part);
    }
    static const char *const pairs[][2] = {
        {"svg2", "--block|64"},       {"svg2", "--stride|8"},           {"svg2", "--compensate"},
        {"pooled", "--stride|8"},     {"pooled", "--q-clusters|3"},     {"pooled", "--compat"},
        {"pooled", "--k-clusters|3"}, {"xattention", "--q-clusters|3"}, {"xattention", "--k-clusters|3"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        snprintf(line, sizeof line, "-m|d|-p|p|--attention|%s|%s", pairs[i][0], pairs[i][1]);
        snprintf(part, sizeof part, "%.*s has no meaning with %s", (int)strcspn(pairs[i][1], "|"), pairs[i][1],
                 pairs[i][0]);
        refused(line, HS_EINVAL, part);
    }
#define SPARSE "-m|d|-p|p|--attention|xattention|"
    refused(SPARSE "--reuse|none|--reuse-delta|3", HS_EINVAL,
            "--reuse-delta is a limit for the drift, but reuse is none");
    refused(SPARSE "--reuse|freeze|--reuse-delta|3", HS_EINVAL, "reuse is freeze");
    refused(SPARSE "--reuse|interval|--reuse-delta|3", HS_EINVAL, "reuse is interval");
    refused(SPARSE "--reuse-interval|3", HS_EINVAL, "--reuse-interval counts steps, but reuse is drift");
    refused(SPARSE "--reuse|relative", HS_EINVAL, "--reuse relative needs --reuse-delta");
    refused(SPARSE "--budget|0.7", HS_EINVAL, "--budget chooses in a profile");
    refused("-m|d|-p|p|--budget|0.7", HS_EINVAL, "--budget chooses in a profile");
    refused("-m|d|-p|p|--profile|f|--budget|0.7|--top-p|0.9", HS_EINVAL, "--budget and --top-p");
    refused("-m|d|-p|p|--profile|f|--attention|dense", HS_EINVAL, "--profile is for sparse attention");
    refused("-m|d|--decode-latents|l|--profile|f", HS_EINVAL, "--decode-latents only decodes");
    refused("-m|d|--decode-latents|l|--attention|svg2", HS_EINVAL, "--decode-latents only decodes");
    refused("-m|d|--decode-latents|l|--top-p|0.5", HS_EINVAL, "--top-p says how");
    refused("-m|d|--resume|c|--top-p|0.5", HS_EINVAL, "with --resume the checkpoint does");
    refused("-m|d|--resume|c|--attention|dense|--top-p|0.5", HS_EINVAL, "attention is dense");
    good("-m|d|--resume|c|--attention|xattention|--top-p|0.5");
    good("-m|d|--decode-latents|l|--attention|dense");
}

Test(options, attention_values_are_strict) {
    static const char *const bad[][2] = {{"--attention|sparse", "dense, xattention, svg2 or pooled"},
                                         {"--attention|", "dense, xattention"},
                                         {"--reuse|always", "none, drift, relative, interval, stagger or freeze"},
                                         {"--top-p|0", "a number above 0, at most 1"},
                                         {"--top-p|1.01", "a number above 0"},
                                         {"--top-p|nan", "a number above 0"},
                                         {"--top-p|90%", "a number above 0"},
                                         {"--reuse-delta|-1", "a number from 0"},
                                         {"--reuse-interval|0", "a whole number from 1"},
                                         {"--dense-steps|-1", "a whole number from 0"},
                                         {"--dense-steps|0.1", "a whole number"},
                                         {"--dense-layers|x", "a whole number"},
                                         {"--block|32", "should be 64 or 128"},
                                         {"--block|96", "64 or 128"},
                                         {"--stride|12", "should be 1, 2, 4, 8 or 16"},
                                         {"--stride|32", "8 or 16"},
                                         {"--stride|8.0", "8 or 16"},
                                         {"--q-clusters|0", "1 to 65535"},
                                         {"--k-clusters|65536", "1 to 65535"},
                                         {"--budget|1.5", "a number from 0 to 1"},
                                         {"--budget|74", "a number from 0 to 1"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char line[128];
        snprintf(line, sizeof line, "-m|d|-p|p|--attention|xattention|%s", bad[i][0]);
        refused(line, HS_EINVAL, bad[i][1]);
    }
    refused(SPARSE "--compat=1", HS_EINVAL, "takes no value");
    refused(SPARSE "--profile", HS_EINVAL, "--profile: its value is missing");
}

Test(options, help_and_version_need_nothing_else) {
    cr_assert(good("--help").help);
    cr_assert(good("-h").help);
    cr_assert(good("--version").version);
    cr_assert(good("-m|d|--help|--nonsense").help);
}

/* ---- help ------------------------------------------------------------------------------------------------------- */
typedef struct collected {
    char text[16384];
    size_t longest;
} collected;

static void collect(void *user, const char *line) {
    collected *c = user;
    if (strlen(line) > c->longest) c->longest = strlen(line);
    strncat(c->text, line, sizeof c->text - strlen(c->text) - 1);
    strncat(c->text, "\n", sizeof c->text - strlen(c->text) - 1);
}

Test(options, help_lists_the_contract) {
    static const char *const names[] = {"-m, --model",
                                        "-p, --prompt",
                                        "-n, --negative",
                                        "--prompts",
                                        "--width",
                                        "--height",
                                        "--frames",
                                        "--fps",
                                        "--steps",
                                        "--guidance",
                                        "--shift",
                                        "--seed",
                                        "--solver",
                                        "--sigmas",
                                        "--noise",
                                        "--save-latents",
                                        "--decode-latents",
                                        "--device",
                                        "--precision",
                                        "--threads",
                                        "--stats",
                                        "--dry-run",
                                        "--error-on-fallback",
                                        "-q, --quiet",
                                        "-v, --verbose",
                                        "--version",
                                        "-h, --help",
                                        "-o, --output",
                                        "--size",
                                        "--frame_num",
                                        "--sample_steps",
                                        "--sample_guide_scale",
                                        "--sample_shift",
                                        "--base_seed",
                                        "--save_file",
                                        "--num-frames",
                                        "--num-inference-steps",
                                        "--guidance-scale",
                                        "--flow-shift",
                                        "--negative-prompt",
                                        "--output-path",
                                        "--ckpt_dir",
                                        "-W, --width",
                                        "-H, --height",
                                        "--cfg-scale",
                                        "--video-frames",
                                        "--t5xxl",
                                        "--profile",
                                        "--budget",
                                        "--attention",
                                        "--top-p",
                                        "--reuse NAME",
                                        "--reuse-delta",
                                        "--reuse-interval",
                                        "--dense-steps",
                                        "--dense-layers",
                                        "--block",
                                        "--stride",
                                        "--q-clusters",
                                        "--k-clusters",
                                        "--compensate",
                                        "xattention (start here)",
                                        "freeze (the first ones for good)",
                                        "dropped blocks by their mean",
                                        "all from the same seed",
                                        "already is replaced",
                                        "--compat",
                                        "Examples"};
    collected c = {.longest = 0};
    hs_options_help(collect, &c);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        cr_assert(strstr(c.text, names[i]), "help lacks %s", names[i]);
    cr_assert_leq(c.longest, 108, "a line of the help has %zu characters", c.longest);
}

/* ---- numbers in file names --------------------------------------------------------------------------------------- */
Test(options, several_videos_get_numbers) {
    static const char *const pairs[][2] = {
        {"out.mp4", "out_007.mp4"},    {"a.b/out", "a.b/out_007"},     {"a/.mp4", "a/.mp4_007"},
        {"frames/", "frames_007/"},    {"a/b.c.mkv", "a/b.c_007.mkv"}, {"null:", "null:"},
        {"clip_%d.mp4", "clip_7.mp4"}, {"50%/a.mp4", "50%/a_007.mp4"}, {"50%/%d.mp4", "50%/7.mp4"},
        {"50%/f_%d/", "50%/f_7/"},     {"f_%04d.png", "f_0007.png"},   {"clip_%02d.mp4", "clip_07.mp4"},
        {"s.json", "s_007.json"},      {".hidden", ".hidden_007"}};
    char name[64];
    hs_err err = {0};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        cr_assert_eq(hs_options_number(pairs[i][0], 7, name, sizeof name, &err), 0, "%s: %s", pairs[i][0], err.msg);
        cr_assert_str_eq(name, pairs[i][1]);
    }
    cr_assert_eq(hs_options_number("out.mp4", 1234, name, sizeof name, &err), 0);
    cr_assert_str_eq(name, "out_1234.mp4");
    static const char *const bad[] = {"-", "a_%d_%d.mp4", "a_%s.mp4", "a_%", "a%/%n.mp4", "%n.mp4"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(hs_options_number(bad[i], 0, name, sizeof name, &err), HS_EINVAL, "%s", bad[i]);
    cr_assert_eq(hs_options_number("out.mp4", 0, name, 8, &err), HS_EINVAL);
}
