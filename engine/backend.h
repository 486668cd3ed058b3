/* The seam between the model and a device: a table of whole operations over device memory.
 *
 * Model code (text.c, dit.c, attn.c, vae.c) calls the hs_op_* wrappers below; backend.c checks shapes and types once
 * and forwards to the table of the opened device (ref, cpu, cuda), which may assume valid input. Operations are ordered
 * within a device; they do not return results to the host and report no errors themselves: a failure is sticky and
 * asked for with hs_device_check (once per step), so that model code stays a page of mathematics.
 *
 * Types: activations are F32 or the device's act type (dev->act: F32, or BF16 or F16 where the device computes in
 *        them). The residual stream, statistics, modulation, latents and solver state are always F32.
 * Layout: row major; shapes in brackets, outermost first. Letters: N tokens, d model width, H heads, D head size,
 *        n text rows, C channels, T frames, Y rows, X columns.
 * Threads: one device is used by one thread at a time.
 */
#ifndef HS_BACKEND_H
#define HS_BACKEND_H
#include "base.h"
#include "reuse.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_device hs_device;

/* A view of device memory: n elements of one type, plain contiguous. Views are values; they own nothing. */
typedef struct hs_buf {
    void *p; /* device address (host address on ref and cpu) */
    hs_dtype type;
    int64_t n; /* elements */
} hs_buf;

static inline hs_buf hs_buf_at(hs_buf b, int64_t off, int64_t n) {
    hs_buf r = {(char *)b.p + off * (int64_t)(b.type == HS_F32 || b.type == HS_I32    ? 4
                                              : b.type == HS_BF16 || b.type == HS_F16 ? 2
                                                                                      : 1),
                b.type, n};
    return r;
}
static const hs_buf HS_NOBUF = {0, HS_F32, 0}; /* "none" for optional operands: p == NULL */

/* ---- device ---------------------------------------------------------------------------------------------------- */
typedef struct hs_device_params {
    const char *name;      /* "auto", "cpu", "ref", "cuda", "cuda:N" */
    int threads;           /* cpu: 0 = all */
    const char *precision; /* "auto", "fp32", "bf16", "fp16" (GPUs): the act type; auto = what the device does fast */
    int64_t max_bytes;     /* refuse to allocate more than this on the device; 0 = no limit */
} hs_device_params;

int hs_device_open(const hs_device_params *p, hs_device **ret, hs_err *err);
void hs_device_close(hs_device *dev);
const char *hs_device_name(const hs_device *dev); /* "cpu: oneDNN 2.6.3, bf16 (AVX512-BF16), 2 threads" */
hs_dtype hs_device_act(const hs_device *dev);     /* F32, BF16 or F16 */
int hs_device_check(hs_device *dev, hs_err *err); /* sticky error of any operation since the last check */
int64_t hs_device_bytes(const hs_device *dev, int64_t *ret_peak); /* allocated now */
int64_t hs_device_recent_peak(hs_device *dev);                    /* most bytes since the last call */
void hs_device_count(hs_device *dev, int64_t bytes);              /* more, or fewer: for backends */
int64_t hs_device_free_bytes(const hs_device *dev); /* what could still be allocated: limit or physical memory */

/* hs_device_alloc: p == NULL in *ret on failure; contents undefined. free accepts a view with p == NULL. */
int hs_device_alloc(hs_device *dev, hs_dtype type, int64_t n, const char *purpose, hs_buf *ret, hs_err *err);
void hs_device_free(hs_device *dev, hs_buf b);
void hs_upload(hs_device *dev, hs_buf dst, const void *host); /* dst.n elements of dst.type */
void hs_download(hs_device *dev, void *host, hs_buf src);     /* waits */
void hs_copy(hs_device *dev, hs_buf dst, hs_buf src);         /* same n; converts between F32 and act type */
void hs_zero(hs_device *dev, hs_buf dst);

/* A stopwatch over what the device does, without waiting for it: hs_lap charges the time since the lap before to
 * `slot`; HS_LAP_NONE charges nobody and so begins a span. hs_laps: seconds per slot since the device was opened;
 * waits. */
enum { HS_LAP_NONE, HS_LAP_PREDICT, HS_LAP_ATTEND, HS_LAP_COUNT };
void hs_lap(hs_device *dev, int slot);
void hs_laps(hs_device *dev, double ret[HS_LAP_COUNT]);

/* ---- prepared weights ------------------------------------------------------------------------------------------
 * Whatever form the device computes with (packed, converted to act type); made once when the model is loaded from host
 * memory in PyTorch order, any float dtype, unaligned. Freed with the device or by hs_weight_free. */
typedef struct hs_weight hs_weight;

/* w [out, in], bias [out] or NULL. f32 != 0 keeps F32 operands on every device (time path, head; spec 3.4). Several
 * matrices with the same `in` may be stacked into one: parts > 1 gives arrays of parts pointers and rows. */
typedef struct hs_linear_src {
    int parts;
    const void *w[3], *bias[3]; /* bias all NULL or all given */
    hs_dtype type[3], bias_type[3];
    int64_t out[3], in;
    int f32;
} hs_linear_src;
int hs_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight **ret, hs_err *err);

/* Convolution over channels-last frames. w [cout, cin, kt, ky, kx], bias [cout] or NULL.
 * up2: 1 = the input is doubled by nearest neighbour in Y and X first (kt = 1, 3x3), so the device may fold the two. */
typedef struct hs_conv_src {
    const void *w, *bias;
    hs_dtype type, bias_type;
    int cout, cin, kt, ky, kx, up2;
} hs_conv_src;
int hs_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight **ret, hs_err *err);
void hs_weight_free(hs_device *dev, hs_weight *w);
int64_t hs_weight_bytes(const hs_weight *w); /* device bytes */

/* ---- linear algebra -----------------------------------------------------------------------------------------------
 */
typedef enum hs_act { HS_ACT_NONE, HS_ACT_GELU_TANH, HS_ACT_SILU } hs_act;

/* y[M, out] = act(x[M, in] W^T + b).  x: F32 or act type; y: F32 or act type.
 * With `residual`: y must be F32 and y += gate * (x W^T + b), gate [out] F32 or HS_NOBUF (= 1). act must be NONE. */
typedef struct hs_linear {
    hs_buf x, y;
    const hs_weight *w;
    int64_t rows; /* M */
    hs_act act;
    int residual;
    hs_buf gate;
} hs_linear;
void hs_op_linear(hs_device *dev, const hs_linear *a);

/* ---- row operations -----------------------------------------------------------------------------------------------
 */
/* y[rows, d] = norm(x[rows, d]) * mul + add.  LayerNorm (biased variance, eps) or RMS (no mean). x F32; y F32 or act.
 * mul, add [d] F32; add may be HS_NOBUF. Modulated layers pass mul = 1 + scale, add = shift (hs_op_modulation). */
typedef enum hs_norm_kind { HS_NORM_LAYER, HS_NORM_RMS } hs_norm_kind;
void hs_op_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add, float eps,
                hs_buf y);

/* y[r, d] = table[r, d] + e[r, d] for r < rows (e_rows = 1: the same e row for all r); 1 is added to the rows whose bit
 * is set in one_plus. All F32. spec 3.1 */
void hs_op_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                      hs_buf y);

/* In place on x [rows, ld] (act type), on each of `parts` (1 or 2: queries, then keys) ranges of columns
 * [col + k d, col + (k + 1) d): RMS over the d values, times gamma[k] [d] (F32), then if rope.p != NULL rotation of
 * interleaved pairs (2j, 2j+1) within each head of size D, rope [rows, D/2, 2] = cos, sin F32. mean[k] [d] F32 or
 * HS_NOBUF: mean over rows of the result (token means per head, for the drift of mask reuse). spec 3.2, 3.3. */
typedef struct hs_qk_norm {
    hs_buf x, gamma[2], rope, mean[2];
    int64_t rows, ld, col, d;
    int parts, head_dim;
    float eps;
} hs_qk_norm;
void hs_op_qk_norm(hs_device *dev, const hs_qk_norm *a);

/* y[rows, ff] = gelu_tanh(ab[:, 0:ff]) * ab[:, ff:2ff]   (gated GELU of UMT5) */
void hs_op_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y);

/* y[i, :] = table[ids[i], :], ids I32 [n]; table [vocab, d] F32 or act type; y F32. ids are valid (checked by text.c).
 */
void hs_op_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y);

/* y = sum_k c[k] * x[k], F32, k < count <= 6, all of n elements; y may be one of the x. */
void hs_op_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y);

/* ---- attention --------------------------------------------------------------------------------------------------
 * out[i, h, :] = sum_j softmax_j(scale * q[i,h,:].k[j,h,:] + extra(h, i, j)) v[j,h,:]
 * q, k, v, out: act type, element (token i, head h, c) at p[i * ld + h * head_dim + c].
 * extra: last_key_bonus is added to the logit of the last key (collapsed padding rows, spec 3.6);
 *        rel_bias [H, len_q + len_k - 1] F32 or HS_NOBUF adds rel_bias[h, (j - i) + len_q - 1] (UMT5, spec 2.4).
 * scale must be above 0. mask: NULL = dense; else which key blocks each query block attends to (mask.h): the sum and
 * the softmax run over the kept pairs only. A query block that keeps no key at all gets zeros. With comp_k, comp_v (F32
 * [H, cols, D], uniform blocks only) a dropped block still counts as one key of that mean with ln(tokens of the block)
 * on its logit. */
struct hs_mask;
typedef struct hs_attention {
    hs_buf q, k, v, out;
    int64_t ld_q, ld_k, ld_v, ld_out; /* elements between tokens */
    int64_t len_q, len_k;
    int heads, head_dim;
    float scale;
    float last_key_bonus;
    hs_buf rel_bias;
    const struct hs_mask *mask;
    hs_buf comp_k, comp_v; /* HS_NOBUF: what the mask drops is gone */
} hs_attention;
void hs_op_attention(hs_device *dev, const hs_attention *a);

/* ---- sparse attention: predictors (spec haste.md 3, 4.2) -----------------------------------------------------------
 * All of these leave heads alone whose want [heads] U8 is 0: their mask is reused. q, k as in hs_attention. */

/* XAttention: antidiagonal block scores. q and k are folded by `stride` (token i*stride + stride-1-s of q with token
 * j*stride + s of k), scaled by 1/(sqrt(D) stride), softmax over the folded keys, summed over blocks of `block` tokens:
 * scores F32 [heads, rows, cols], rows = ceil(len / block). Folded keys made of padding alone take no mass, and
 * cols = rows. compat: q and k are padded with zeros to `padded` tokens as the published code does, those keys take
 * mass, and cols = padded / block. */
typedef struct hs_block_scores {
    hs_buf q, k, want, scores;
    int64_t ld_q, ld_k, len, padded; /* padded: compat only, else 0 */
    int heads, head_dim, block, stride;
} hs_block_scores;
void hs_op_block_scores(hs_device *dev, const hs_block_scores *a);

/* softmax over columns of scale * cq.ck + ln(size): scores F32 [heads, rows, cols] of centroids cq [heads, rows, D] and
 * ck [heads, cols, D] F32. size: tokens per column, from start I32 [heads, cols + 1], or HS_NOBUF = `block` tokens each
 * of len. Empty columns get 0 and, unless compat, do not enter the maximum. */
typedef struct hs_centroid_scores {
    hs_buf cq, ck, start, want, scores;
    int64_t len;
    int heads, rows, cols, head_dim, block, compat;
    float scale;
} hs_centroid_scores;
void hs_op_centroid_scores(hs_device *dev, const hs_centroid_scores *a);

/* Rows of scores F32 [heads, mask->rows, cols] -> bits of the mask by hs_mask_select (mask.h) with top_p [heads] F32;
 * score columns from mask->cols on take part in the selection and are then dropped. Also sets the mask's dense flag of
 * the head: 1 where top_p >= 1 (rule 0 only). */
enum {
    HS_SELECT_BLOCK0 = 1, /* XAttention as published: column 0 always kept; zero scores never, not even at p = 1 */
    HS_SELECT_UPTO = 2
}; /* SVG2 as published: kept while the sum before is <= p, the row's total taken as 1 */
typedef struct hs_select {
    hs_buf scores, top_p, want;
    int cols, at_least, rule;
    const struct hs_mask *mask;
} hs_select;
void hs_op_select(hs_device *dev, const hs_select *a);

/* hs_mask_density (mask.h) of the heads that want it: density F32 [heads]. */
void hs_op_mask_density(hs_device *dev, const struct hs_mask *mask, hs_buf want, hs_buf density);

/* Means of blocks of `block` tokens: y F32 [heads, ceil(len / block), D] of x (q or k or v, element (i, h, c) at
 * i*ld + h*D + c). */
void hs_op_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                       hs_buf want, hs_buf y);

enum { HS_CLUSTER_HEADS = 128 }; /* of a call, at most */
/* SVG2: k-means of the tokens of each head, Euclidean; lowest index wins ties, an empty cluster keeps its centroid.
 * Heads with want 2 start from tokens drawn by hs_hash64(seed, head, cluster) and run iters_first rounds, heads with
 * want 1 start from the centroids [heads, clusters, D] F32 as they are and run iters_next. Labels are of the assignment
 * before the last update; a head stops early when no centroid moves by 1e-4 or more (that update is dropped; compat:
 * only all wanted heads together). label I32 [heads, len]; order I32 [heads, len]: tokens grouped by label, in token
 * order within a group; start I32 [heads, clusters + 1]. A device may take a centroid as rounded to the type of x when
 * it looks for the nearest, which is all that the published code keeps of it. beside: other tokens (keys beside
 * queries) with as many heads of the same size, which a device may group at the same time; has none beside itself. */
typedef struct hs_cluster {
    const struct hs_cluster *beside; /* NULL, or the other side */
    hs_buf x, centroids, want, label, order, start;
    int64_t len, ld;
    int heads, head_dim, clusters, iters_first, iters_next, compat;
    uint64_t seed;
} hs_cluster;
void hs_op_cluster(hs_device *dev, const hs_cluster *a);
/* Bytes that the device may come to need for itself: scratch, workspace. cluster: the largest call to come of
 * hs_op_cluster, of which only sizes count, or NULL. */
int64_t hs_device_own_bytes(const hs_device *dev, const hs_cluster *cluster);
/* The token that a cluster of a head with want 2 starts from: one of each of `clusters` equal strata, any where there
 * are fewer tokens than clusters. */
static inline int64_t hs_cluster_token(uint64_t seed, int head, int cluster, int clusters, int64_t len) {
    const uint64_t h = hs_hash64(hs_hash64(seed) + ((uint64_t)head << 20) + (uint64_t)cluster);
    const int64_t width = len / clusters;
    return width ? cluster * width + (int64_t)(h % (uint64_t)width) : (int64_t)(h % (uint64_t)len);
}

/* reuse.h on device arrays: who wants a new mask, and the anchors of those. */
typedef struct hs_reuse {
    hs_reuse_policy policy;
    int heads, dim;
    hs_buf mean_q, mean_k, anchor_q, anchor_k; /* F32 [heads, dim] */
    hs_buf age;                                /* I32 [heads] */
    hs_buf want, drift;                        /* U8, F32 [heads] */
} hs_reuse;
void hs_op_reuse(hs_device *dev, const hs_reuse *a);

/* ---- latents and patches ---------------------------------------------------------------------------------------- */
/* latent x [C, f, 2h, 2w] F32 -> rows y [f*h*w, C*4] (column c*4 + dy*2 + dx), y F32 or act. spec 3.1 */
void hs_op_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
/* rows x [f*h*w, 4*C] F32 (column (dy*2 + dx)*C + c) -> y [C, f, 2h, 2w] F32. Note the other column order. spec 3.2 */
void hs_op_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);

/* ---- VAE: channels-last frames [T, Y, X, C], act type --------------------------------------------------------------
 */
/* z[t, y, x, c] = x[c, t0 + t, y, x] * mul[c] + add[c]; x [C, f, Y, X] F32 latents, z [T, Y, X, C]; mul, add host
 * arrays */
void hs_op_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                         const float *add, hs_buf z);
/* y = silu(v) or v, with v = x / max(|x|_2 over channels, 1e-12) * sqrt(C) * gamma[C]; `pixels` rows of C. x: F32 or
 * act type; y: act type. spec 5.2 */
void hs_op_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y);
/* Convolution, stride 1, zero padding in Y and X that keeps the size ((ky-1)/2, (kx-1)/2), none in time:
 * x [T + kt - 1, Y, X, cin] -> y [T, Y, X, cout] (up2: y [T, 2Y, 2X, cout]). add: HS_NOBUF, or y itself (accumulate
 * into y: the residual, which is how vae.c calls it), or another buffer of y's shape and type that is added.
 * The kt - 1 leading frames are the history, placed there by vae.c. y: act type (or F32 for the last convolution). */
typedef struct hs_conv {
    hs_buf x, y, add;
    const hs_weight *w;
    int T, Y, X; /* T output frames; Y, X of the input */
} hs_conv;
void hs_op_conv(hs_device *dev, const hs_conv *a);
/* x [T, pixels, 2*C] -> y [2*T, pixels, C]: frame 2t + s takes channels s*C .. s*C + C (time_conv, spec 5.2) */
void hs_op_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y);
/* x [n] F32 or act in [-1, 1] (clamped) -> u8 trunc(255 * (x/2 + 1/2)); NaN -> 0 and the sticky error HS_ENUMERIC.
 * spec 5.6 */
void hs_op_to_u8(hs_device *dev, hs_buf x, hs_buf y);

/* ---- checks ---------------------------------------------------------------------------------------------------- */
/* Number of NaN/Inf among the n values (F32 or act): the step loop asks for it once per step on the velocity. Waits. */
int64_t hs_count_nonfinite(hs_device *dev, hs_buf x);

/* ---- what a backend implements --------------------------------------------------------------------------------- */
/* ops.name(dev, ...) has the contract of hs_op_name above; pointers are never NULL. */
typedef struct hs_ops {
    void (*close)(hs_device *dev);
    int (*alloc)(hs_device *dev, size_t bytes, void **ret); /* 64-byte aligned (256 on a GPU); 0 or HS_ENOMEM */
    void (*free)(hs_device *dev, void *p);
    void (*upload)(hs_device *dev, void *dst, const void *host, size_t bytes);
    void (*download)(hs_device *dev, void *host, const void *src, size_t bytes);
    void (*copy)(hs_device *dev, hs_buf dst, hs_buf src);
    void (*zero)(hs_device *dev, hs_buf dst);
    int64_t (*free_bytes)(const hs_device *dev);
    int (*sync)(hs_device *dev, hs_err *err); /* waits; reports a device failure */
    /* hs_lap; adds to dev->laps not later than the next sync. NULL: operations have finished when they return, so the
     * host's clock is right. */
    void (*lap)(hs_device *dev, int slot);

    int (*weight_linear)(hs_device *dev, const hs_linear_src *src, hs_weight *w,
                         hs_err *err); /* fills w->impl, w->bytes */
    int (*weight_conv)(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err);
    void (*weight_free)(hs_device *dev, hs_weight *w);

    /* Weights that come and go (stream.h). All NULL: a prepared weight cannot move. Else impl is one piece of w->bytes
     * on the device, without pointers into itself. fill starts a copy from host memory beside the operations, once
     * those before the slot's release are done; operations after use see it; those after release do not. */
    int (*host_alloc)(hs_device *dev, size_t bytes, void **ret); /* that fill can copy from beside the operations */
    void (*host_free)(hs_device *dev, void *p);
    void (*slot_fill)(hs_device *dev, int slot, void *dst, const void *host, size_t bytes); /* slot 0 or 1 */
    void (*slot_use)(hs_device *dev, int slot);
    void (*slot_release)(hs_device *dev, int slot);
    int64_t (*own_bytes)(const hs_device *dev, const hs_cluster *cluster); /* NULL: none; see hs_device_own_bytes */

    void (*linear)(hs_device *dev, const hs_linear *a);
    void (*norm)(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                 float eps, hs_buf y);
    void (*modulation)(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                       hs_buf y);
    void (*qk_norm)(hs_device *dev, const hs_qk_norm *a);
    void (*gated_gelu)(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y);
    void (*gather_rows)(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y);
    void (*combine)(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y);
    void (*attention)(hs_device *dev, const hs_attention *a);
    void (*block_scores)(hs_device *dev, const hs_block_scores *a);
    void (*centroid_scores)(hs_device *dev, const hs_centroid_scores *a);
    void (*select)(hs_device *dev, const hs_select *a);
    void (*mask_density)(hs_device *dev, const struct hs_mask *mask, hs_buf want, hs_buf density);
    void (*block_means)(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                        hs_buf want, hs_buf y);
    void (*cluster)(hs_device *dev, const hs_cluster *a);
    void (*reuse)(hs_device *dev, const hs_reuse *a);
    void (*patchify)(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
    void (*unpatchify)(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
    void (*latent_frames)(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                          const float *add, hs_buf z);
    void (*channel_norm)(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y);
    void (*conv)(hs_device *dev, const hs_conv *a);
    void (*split_frames)(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y);
    void (*to_u8)(hs_device *dev, hs_buf x, hs_buf y);
    int64_t (*count_nonfinite)(hs_device *dev, hs_buf x);
} hs_ops;

struct hs_device {
    const hs_ops *ops;
    void *impl; /* the backend's own state */
    char name[160];
    hs_dtype act;
    int sticky; /* first HS_E* code since the last check */
    char sticky_msg[256];
    int64_t bytes, peak, recent_peak, max_bytes;
    double laps[HS_LAP_COUNT], lap_at; /* seconds per slot; host clock at the last lap */
    struct hs_weight *weights;         /* list head; backend.c's */
};
struct hs_weight {
    void *impl; /* the backend's own form */
    int64_t bytes;
    int64_t out, in;                /* linear: total rows, columns */
    int cout, cin, kt, ky, kx, up2; /* conv; cout == 0 for linear */
    int f32;
    int streamed;                  /* impl is in a slot of a stream, or NULL: not here */
    struct hs_weight *next, *prev; /* all weights of a device, so that closing frees them */
};
/* Backends call this when an operation fails; the first one wins. */
void hs_device_sticky(hs_device *dev, int code, const char *fmt, ...) HS_PRINTF(3, 4);

/* Openers, called by backend.c only. dev is zeroed; they fill ops, impl, name, act. cuda/stub.c answers HS_ENODEV. */
int hs_ref_open(const hs_device_params *p, hs_device *dev, hs_err *err);
int hs_cpu_open(const hs_device_params *p, hs_device *dev, hs_err *err);
int hs_cuda_open(const hs_device_params *p, hs_device *dev, hs_err *err);

#ifdef __cplusplus
}
#endif
#endif
