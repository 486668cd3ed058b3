/* Models without files, for benchmarks: the published shapes of Wan2.1, or the configs of a folder, and weights that
 * are random numbers. What is measured with them is time and memory; the videos show noise.
 *
 * All tensors of a set are windows into three pools of bf16 numbers, each a few megabytes of memory that are mapped
 * over and over, one behind the other: a tensor of two gigabytes costs no memory, and reading it costs what the caches
 * give.
 */
#include "random.h"
#include "sha256.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const int64_t POOL = 16 << 20;   /* bytes */
static const int64_t REACH = 4ll << 30; /* bytes of a tensor, at most; the embedding of UMT5-XXL has 2.1e9 */

/* ---- pools ------------------------------------------------------------------------------------------------------- */

/* Uniform in center +- scale: pages shared by all windows. NULL if the system has no room for that. */
static char *pool_new(double center, double scale, uint64_t seed) {
    const int fd = memfd_create("haste-random", MFD_CLOEXEC);
    char *all = MAP_FAILED;
    uint16_t *x = MAP_FAILED;
    if (fd < 0 || ftruncate(fd, POOL)) goto out;
    x = mmap(NULL, (size_t)POOL, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (x == MAP_FAILED) goto out;
    for (int64_t i = 0; i < POOL / 2; i += 4) { /* four numbers of a hash */
        const uint64_t h = hs_hash64(seed + (uint64_t)i);
        for (int k = 0; k < 4; k++)
            x[i + k] = hs_f32_to_bf16((float)(center + scale * ((double)(h >> 16 * k & 0xffff) / 32767.5 - 1)));
    }
    all = mmap(NULL, (size_t)(REACH + POOL), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (int64_t at = 0; all != MAP_FAILED && at <= REACH; at += POOL)
        if (mmap(all + at, (size_t)POOL, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
            munmap(all, (size_t)(REACH + POOL));
            all = MAP_FAILED;
        }
out:
    if (x != MAP_FAILED) munmap(x, (size_t)POOL);
    if (fd >= 0) close(fd);
    return all == MAP_FAILED ? NULL : all;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

typedef struct node {
    hs_st_tensor t;
    char name[128];
    struct node *next;
} node;

struct hs_random {
    char *small, *patch, *gains; /* pools: around 0, the same for products of 64, around 1 */
    node *first;
};

int hs_random_new(hs_random **ret, hs_err *err) {
    hs_random *r = hs_calloc(1, sizeof *r);
    if (!r) return hs_fail(err, HS_ENOMEM, "no memory for random weights");
    /* deviation 0.02: sums of 10,000 products double, and norms stand between them */
    r->small = pool_new(0, 0.035, 1);
    /* patches are products of 64 only. Smaller ones would drown in what all tokens have in common, and multiplying
     * nearly equal rows takes a third less power of a GPU, so that its clocks do not fall as they do in earnest */
    r->patch = pool_new(0, 0.2165, 3);
    r->gains = pool_new(1, 0.2, 2);
    if (!r->small || !r->patch || !r->gains) {
        hs_random_free(r);
        return hs_fail(err, HS_ENOMEM, "no address space for random weights (3 x 4 GiB; see ulimit -v)");
    }
    *ret = r;
    return 0;
}

void hs_random_free(hs_random *r) {
    if (!r) return;
    if (r->small) munmap(r->small, (size_t)(REACH + POOL));
    if (r->patch) munmap(r->patch, (size_t)(REACH + POOL));
    if (r->gains) munmap(r->gains, (size_t)(REACH + POOL));
    for (node *n = r->first, *next; n; n = next) {
        next = n->next;
        hs_free(n);
    }
    hs_free(r);
}

const hs_st_tensor *hs_random_find(const hs_random *r, const char *name) {
    node *n = r->first;
    while (n && strcmp(n->name, name) != 0) n = n->next;
    return n ? &n->t : NULL;
}

static int ends_with(const char *s, const char *end) {
    const size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

int hs_random_get(hs_random *r, const char *label, const char *name, int ndim, const int64_t *shape,
                  const hs_st_tensor **ret, hs_err *err) {
    node *n = hs_calloc(1, sizeof *n);
    if (!n) return hs_fail(err, HS_ENOMEM, "no memory for tensor %s", name);
    snprintf(n->name, sizeof n->name, "%s", name);
    n->t = (hs_st_tensor){
        .name = n->name, .dtype = HS_BF16, .ndim = ndim, .numel = 1, .scale = 1, .file = label, .used = 1};
    uint64_t place = 0;
    for (const char *p = name; *p; p++) place = hs_hash64(place ^ (unsigned char)*p);
    int bad = ndim > HS_ST_MAX_DIMS;
    for (int i = 0; i < ndim && !bad; i++) {
        n->t.shape[i] = shape[i];
        bad = shape[i] < 1 || hs_mul(n->t.numel, shape[i], &n->t.numel) || n->t.numel > REACH / 2;
    }
    if (bad) {
        hs_free(n);
        return hs_fail(err, HS_EINVAL, "%s: tensor %s is too large for random weights", label, name);
    }
    const int gain = ndim == 1 && (ends_with(name, ".weight") || ends_with(name, ".gamma"));
    const int patch = !strcmp(name, "patch_embedding.weight");
    n->t.data = (gain ? r->gains : patch ? r->patch : r->small) + place % (uint64_t)(POOL / 2) * 2;
    n->next = r->first;
    r->first = n;
    *ret = &n->t;
    return 0;
}

/* ---- configurations ---------------------------------------------------------------------------------------------- */

/* What the two published models share, spec wan.md 1.1. */
static const hs_config wan = {.head_dim = 128,
                              .in_channels = 16,
                              .out_channels = 16,
                              .text_dim = 4096,
                              .freq_dim = 256,
                              .rope_max = 1024,
                              .eps = 1e-6f,
                              .t_dim = 4096,
                              .t_heads = 64,
                              .t_dkv = 64,
                              .t_ff = 10240,
                              .t_layers = 24,
                              .t_vocab = 256384,
                              .t_buckets = 32,
                              .t_max_distance = 128,
                              .t_eps = 1e-6f,
                              .v_base = 96,
                              .v_z = 16,
                              .v_mult = {1, 2, 4, 4},
                              .v_res_blocks = 2,
                              .v_temporal_down = {0, 1, 1},
                              .v_mean = {-0.7571f, -0.7089f, -0.9113f, 0.1075f, -0.1745f, 0.9653f, -0.1517f, 1.5508f,
                                         0.4134f, -0.0715f, 0.5517f, -0.3632f, -0.1922f, -0.9497f, 0.2503f, -0.2921f},
                              .v_std = {2.8184f, 1.4541f, 2.3275f, 2.6558f, 1.2196f, 1.7708f, 2.6052f, 2.0743f, 3.2687f,
                                        2.1526f, 2.8652f, 1.5579f, 1.6382f, 1.1253f, 2.8251f, 1.9160f},
                              .guidance = 5,
                              .frames = 81,
                              .fps = 16,
                              .steps = 50,
                              .solver = HS_UNIPC};

int hs_random_config(const char *name, hs_config *ret, hs_err *err) {
    static const struct {
        const char *name;
        int dim, layers, ffn, width, height;
        double shift;
    } known[] = {{"wan2.1-1.3b", 1536, 30, 8960, 832, 480, 3}, {"wan2.1-14b", 5120, 40, 13824, 1280, 720, 5}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].name, name) != 0) continue;
        hs_config c = wan;
        c.dim = known[i].dim;
        c.heads = c.dim / c.head_dim;
        c.layers = known[i].layers;
        c.ffn = known[i].ffn;
        c.width = known[i].width;
        c.height = known[i].height;
        c.shift = known[i].shift;
        if (!(c.negative_prompt = hs_strdup("what it should not show")))
            return hs_fail(err, HS_ENOMEM, "no memory for the config of %s", name);
        *ret = c;
        return 0;
    }
    if (!access(name, F_OK)) return hs_config_load(name, ret, err);
    return hs_fail(
        err, HS_EINVAL,
        "--random-weights %.100s: it should be wan2.1-1.3b, wan2.1-14b or a folder with the configs of a model", name);
}

void hs_random_sha256(const hs_config *c, char ret_hex[65]) {
    char text[160];
    hs_sha256 h;
    snprintf(text, sizeof text, "random weights: dim %d, %d heads, %d layers, ffn %d, text %d", c->dim, c->heads,
             c->layers, c->ffn, c->text_dim);
    hs_sha256_init(&h);
    hs_sha256_add(&h, text, strlen(text));
    hs_sha256_done(&h, ret_hex);
}

/* A token per byte, then the end. */
int hs_random_ids(const hs_config *c, const char *prompt, int32_t *ret_ids) {
    int n = 0;
    for (; prompt[n] && n < HS_TEXT_LEN - 1; n++)
        ret_ids[n] = 2 + (int32_t)(hs_hash64((uint64_t)(unsigned char)prompt[n]) % (uint64_t)(c->t_vocab - 2));
    ret_ids[n++] = 1;
    return n;
}
