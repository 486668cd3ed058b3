/* The operations of the plain reference backend; contracts in backend.h. All tensors are F32, all sums double.
 *
 * ref is the specification other backends are held against, so each function is the formula and nothing else. OpenMP
 * only shares whole output rows out between threads: no result depends on how many there are.
 */
#ifndef HS_REF_H
#define HS_REF_H
#include "backend.h"

/* Loops that take most of the time, and ten times as much where a sanitizer looks at every element: it sees the ends.
 */
#define HS_REF_HOT __attribute__((no_sanitize("address", "undefined")))
static inline void hs_ref_see_ends(const float *p, int64_t n) {
    const volatile float *const see = p;
    if (n > 0) (void)see[0], (void)see[n - 1];
}

/* ref.c */
void hs_ref_linear(hs_device *dev, const hs_linear *a);
/* sum[o] += the sum over i of x[i] w[i * ld + o], in the order of i; o < out <= HS_REF_TILE, i < in. */
enum { HS_REF_TILE = 64 }; /* outputs side by side: the compiler can vectorise over them, the order of a sum stays */
void hs_ref_add_products(double *sum, const float *x, int64_t in, const float *w, int64_t ld, int64_t out);
/* conv.c */
int hs_ref_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err);
void hs_ref_conv(hs_device *dev, const hs_conv *a);
/* attention.c */
void hs_ref_attention(hs_device *dev, const hs_attention *a);
double hs_ref_dot(const float *a, const float *b, int n);
double hs_ref_distance(const float *a, const float *b, int n); /* squared */
/* sparse.c */
void hs_ref_block_scores(hs_device *dev, const hs_block_scores *a);
void hs_ref_centroid_scores(hs_device *dev, const hs_centroid_scores *a);
void hs_ref_select(hs_device *dev, const hs_select *a);
void hs_ref_mask_density(hs_device *dev, const struct hs_mask *mask, hs_buf want, hs_buf density);
void hs_ref_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                        hs_buf want, hs_buf y);
void hs_ref_cluster(hs_device *dev, const hs_cluster *a);
void hs_ref_reuse(hs_device *dev, const hs_reuse *a);
/* rows.c */
void hs_ref_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add,
                 float eps, hs_buf y);
void hs_ref_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                       hs_buf y);
void hs_ref_qk_norm(hs_device *dev, const hs_qk_norm *a);
void hs_ref_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y);
void hs_ref_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y);
void hs_ref_combine(hs_device *dev, int count, const double *c, const hs_buf *x, hs_buf y);
void hs_ref_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
void hs_ref_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y);
void hs_ref_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                          const float *add, hs_buf z);
void hs_ref_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y);
void hs_ref_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y);
void hs_ref_to_u8(hs_device *dev, hs_buf x, hs_buf y);
int64_t hs_ref_count_nonfinite(hs_device *dev, hs_buf x);

#endif
