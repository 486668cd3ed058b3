/* What goes together on the command line of haste-run: attention, the parts of a model, the whole line. Options that
 * would be ignored are refused. */
#include "options.h"

#include <math.h>
#include <string.h>
#include <strings.h>

/* ---- attention -------------------------------------------------------------------------------------------------- */
enum {
    OF_XATTENTION = 1 << HS_XATTENTION,
    OF_SVG2 = 1 << HS_SVG2,
    OF_POOLED = 1 << HS_POOLED,
    OF_SPARSE = OF_XATTENTION | OF_SVG2 | OF_POOLED
};

/* Every flag that says something of the policy belongs to certain methods. */
static int check_methods(const hs_options *o, hs_method method, int *ret_flags, hs_err *err) {
    const struct {
        const char *name;
        int given, of;
    } flags[] = {
        {"top-p", !isnan(o->top_p), OF_SPARSE},
        {"reuse", o->reuse >= 0, OF_SPARSE},
        {"reuse-delta", !isnan(o->reuse_delta), OF_SPARSE},
        {"reuse-interval", o->reuse_interval >= 0, OF_SPARSE},
        {"dense-steps", o->dense_steps >= 0, OF_SPARSE},
        {"dense-layers", o->dense_layers >= 0, OF_SPARSE},
        {"block", o->block >= 0, OF_XATTENTION | OF_POOLED},
        {"stride", o->stride >= 0, OF_XATTENTION},
        {"q-clusters", o->q_clusters >= 0, OF_SVG2},
        {"k-clusters", o->k_clusters >= 0, OF_SVG2},
        {"compensate", o->compensate, OF_XATTENTION | OF_POOLED},
        {"seed-exact", o->seed_exact, OF_XATTENTION | OF_POOLED},
        {"compat", o->compat, OF_XATTENTION | OF_SVG2},
    };
    *ret_flags = o->attention >= 0;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (!flags[i].given) continue;
        *ret_flags = 1;
        if (flags[i].of & 1 << method) continue;
        if (method == HS_DENSE && o->resume && o->attention < 0)
            return hs_fail(err, HS_EINVAL,
                           "--%s says how sparse attention works, but with --resume the checkpoint does: leave it out",
                           flags[i].name);
        if (method == HS_DENSE)
            return hs_fail(err, HS_EINVAL,
                           "--%s says how sparse attention works, but attention is dense%s: add --attention %s or "
                           "leave it out",
                           flags[i].name, o->attention < 0 ? " unless --attention or --profile is given" : "",
                           flags[i].of & OF_XATTENTION ? "xattention" : "svg2");
        return hs_fail(err, HS_EINVAL, "--%s has no meaning with %s attention: leave it out", flags[i].name,
                       hs_method_name(method));
    }
    return 0;
}

static int set_reuse(const hs_options *o, hs_method method, hs_reuse_policy *r, hs_err *err) {
    hs_reuse_kind was = r->kind;
    if (o->reuse >= 0) r->kind = (hs_reuse_kind)o->reuse;
    int by_drift = r->kind == HS_REUSE_DRIFT || r->kind == HS_REUSE_RELATIVE;
    if (!isnan(o->reuse_delta) && !by_drift)
        return hs_fail(err, HS_EINVAL,
                       "--reuse-delta is a limit for the drift, but reuse is %s: add --reuse drift or "
                       "leave it out",
                       hs_reuse_name(r->kind));
    if (o->reuse_interval >= 0 && !hs_reuse_counts(r->kind))
        return hs_fail(err, HS_EINVAL,
                       "--reuse-interval counts steps, but reuse is %s: add --reuse interval or leave "
                       "it out",
                       hs_reuse_name(r->kind));
    /* the limits of absolute and relative drift have nothing to do with each other, and only one has a known default */
    if (r->kind == HS_REUSE_RELATIVE && was != r->kind && isnan(o->reuse_delta))
        return hs_fail(err, HS_EINVAL,
                       "--reuse relative needs --reuse-delta D: the drift as a share of the means, such as 0.2");
    if (r->kind == HS_REUSE_DRIFT && was != r->kind) r->delta = hs_attn_policy_default(method).reuse.delta;
    if (!isnan(o->reuse_delta)) r->delta = (float)o->reuse_delta;
    if (o->reuse_interval >= 0) r->interval = o->reuse_interval;
    return 0;
}

static void set_int(int *to, int given) {
    if (given >= 0) *to = given;
}

int hs_options_attention(const hs_options *o, hs_attn_policy *policy, int *ret_flags, hs_err *err) {
    hs_attn_policy p = *policy;
    int flags, rc;
    if (o->attention >= 0 && o->profile && o->attention != (int)p.method)
        return hs_fail(err, HS_EINVAL, "--attention %s, but %s was made for %s: leave one of the two out",
                       hs_method_name((hs_method)o->attention), o->profile, hs_method_name(p.method));
    if (o->attention >= 0 && !o->profile) p = hs_attn_policy_default((hs_method)o->attention);
    if ((rc = check_methods(o, p.method, &flags, err)) || (rc = set_reuse(o, p.method, &p.reuse, err))) return rc;
    if (!isnan(o->top_p)) {
        p.top_p = (float)o->top_p;
        p.top_p_heads = NULL;
        p.intervals = 1;
    }
    set_int(&p.dense_steps, o->dense_steps);
    set_int(&p.dense_layers, o->dense_layers);
    set_int(&p.block, o->block);
    set_int(&p.stride, o->stride);
    set_int(&p.q_clusters, o->q_clusters);
    set_int(&p.k_clusters, o->k_clusters);
    p.compensate |= o->compensate;
    p.seed_exact |= o->seed_exact;
    p.compat |= o->compat;
    *policy = p;
    *ret_flags = flags;
    return 0;
}

/* ---- the whole line --------------------------------------------------------------------------------------------- */
int hs_options_model(const hs_options *o, hs_model_params *p, hs_err *err) {
    const int named = (o->transformer != NULL) + (o->text_encoder != NULL) + (o->vae != NULL);
    if (o->random && (o->model || named || o->tokenizer))
        return hs_fail(err, HS_EINVAL, "-m, or parts of a model, and --random-weights: give one of the two");
    if (!o->random && !o->model && named != 3)
        return hs_fail(err, HS_EINVAL, "-m DIR is missing: the model folder, such as -m data/demo%s",
                       named || o->tokenizer ? " (or all of --transformer, --text-encoder and --vae)" : "");
    p->dir = o->model;
    p->transformer = o->transformer;
    p->text_encoder = o->text_encoder;
    p->vae = o->vae;
    p->tokenizer = o->tokenizer;
    p->random = o->random;
    p->threads = o->threads;
    if (!isnan(o->max_vram)) p->max_vram = (int64_t)(o->max_vram * 1e9);
    return 0;
}

const char *hs_options_model_name(const hs_options *o) {
    return o->random ? o->random : o->model ? o->model : o->transformer;
}

int hs_options_check_attention(const hs_options *o, hs_err *err) {
    if (!isnan(o->budget) && !o->profile)
        return hs_fail(err, HS_EINVAL, "--budget chooses in a profile: add --profile FILE, or say --top-p P instead");
    if (!isnan(o->budget) && !isnan(o->top_p))
        return hs_fail(err, HS_EINVAL, "--budget and --top-p both set the heads' thresholds: give one of the two");
    if (o->profile && o->attention == HS_DENSE)
        return hs_fail(err, HS_EINVAL,
                       "--profile is for sparse attention, --attention dense is not: give one of the two");
    /* with a profile the method is not known yet */
    hs_attn_policy policy = hs_attn_policy_default(HS_DENSE);
    int flags;
    return o->profile ? 0 : hs_options_attention(o, &policy, &flags, err);
}

/* Latents are decoded as they are: what makes them would have no effect. */
static int check_decoding(const hs_options *o, hs_err *err) {
    const struct {
        const char *name;
        int given;
    } others[] = {
        {"-p", o->prompt != NULL},
        {"--prompts", o->prompts != NULL},
        {"--num-videos", o->num_videos > 0},
        {"--negative", o->negative != NULL},
        {"--steps", o->steps > 0},
        {"--guidance", !isnan(o->guidance)},
        {"--shift", !isnan(o->shift)},
        {"--solver", o->solver >= 0},
        {"--sigmas", o->sigmas >= 0},
        {"--seed", o->has_seed},
        {"--noise", o->noise != NULL},
        {"--profile", o->profile != NULL},
        {"--attention", o->attention > HS_DENSE},
        {"--save-latents", o->save_latents != NULL},
        {"--checkpoint", o->checkpoint != NULL},
        {"--resume", o->resume != NULL},
    };
    for (size_t i = 0; o->decode_latents && i < sizeof others / sizeof *others; i++)
        if (others[i].given)
            return hs_fail(err, HS_EINVAL, "--decode-latents only decodes: leave out %s", others[i].name);
    return 0;
}

static int ends_in(const char *path, const char *extension) {
    size_t len = strlen(path), ext = strlen(extension);
    return len > ext && !strcasecmp(path + len - ext, extension);
}

int hs_options_check(const hs_options *o, hs_err *err) {
    hs_model_params model = {.dir = NULL};
    const int several = o->num_videos > 1;
    int rc = hs_options_model(o, &model, err);
    if (rc) return rc;
    if (o->prompt && o->prompts) return hs_fail(err, HS_EINVAL, "-p and --prompts: give one of the two");
    if ((rc = check_decoding(o, err))) return rc;
    if (o->noise && o->has_seed)
        return hs_fail(err, HS_EINVAL, "--noise and --seed both say where the video starts: give one of the two");
    if (o->negative && *o->negative && o->guidance <= 1)
        return hs_fail(err, HS_EINVAL,
                       "--negative has no effect without guidance, and --guidance %g is none: leave one of the two out",
                       o->guidance);
    if (o->resume && (o->prompts || o->noise || several))
        return hs_fail(err, HS_EINVAL, "--resume goes on with one video: leave out %s",
                       o->prompts ? "--prompts"
                       : o->noise ? "--noise, its latents are in the checkpoint"
                                  : "--num-videos");
    if (o->noise && several)
        return hs_fail(
            err, HS_EINVAL,
            "--num-videos makes videos of other seeds, and with --noise all would be equal: give one of the two");
    if ((o->prompts || several) && o->output && o->frames != 1 && ends_in(o->output, ".png"))
        return hs_fail(err, HS_EINVAL,
                       "-o %s: a png holds one frame; for several videos name a folder, such as -o frames/, or make "
                       "pictures: --frames 1",
                       o->output);
    if (o->crf >= 0 && o->output && !ends_in(o->output, ".mp4") && !ends_in(o->output, ".webm"))
        return hs_fail(err, HS_EINVAL,
                       "--crf says how .mp4 and .webm are compressed, and -o %s is neither: leave it out", o->output);
    if (o->checkpoint_every && !o->checkpoint && !o->resume)
        return hs_fail(err, HS_EINVAL, "--checkpoint-every says how often: add --checkpoint FILE");
    if (!o->decode_latents && !o->resume && !o->prompt && !o->prompts)
        return hs_fail(err, HS_EINVAL, "-p TEXT is missing: what should the video show? (or --prompts FILE)");
    if ((rc = hs_options_check_attention(o, err))) return rc;
    if (o->quiet && o->verbose) return hs_fail(err, HS_EINVAL, "--quiet and --verbose: give one of the two");
    return 0;
}
