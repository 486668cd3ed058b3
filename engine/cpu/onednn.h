/* Products of activations with prepared weights, through oneDNN: the only user of its interface. Called by layers.c
 * (and cpu.c, for opening and for what the processor can do). */
#ifndef HS_CPU_ONEDNN_H
#define HS_CPU_ONEDNN_H
#include "cpu/cpu.h"
#ifdef __cplusplus
extern "C" {
#endif

/* What oneDNN would use here: the processor's abilities, or less if the environment variable ONEDNN_MAX_CPU_ISA says
 * so. The whole backend follows it, so that variable tests every path on one machine. */
hs_cpu_isa hs_onednn_isa(void);
void hs_onednn_version(char *ret, size_t size); /* "2.6.3" */

/* After dev->act, threads and isa are set; fills hs_cpu.dnn. Close accepts a half-opened device. */
int hs_onednn_open(hs_device *dev, hs_err *err);
void hs_onednn_close(hs_device *dev);

/* What is multiplied: two products with equal bytes are the same work. No padding, unused fields zero.
 * HS_LINEAR: x [rows, in] -> y [rows, out]; dim = rows, out, in.
 * HS_CONV: x [T + kt - 1, Y, X, cin] -> y [T, Y, X, cout], zeros in X as in backend.h;
 *          dim = T, Y, X, cin, cout, kt, ky, kx, rows of zeros above, rows of zeros below. */
enum { HS_LINEAR = 1, HS_CONV };
typedef struct hs_product {
    int64_t dim[10];
    int32_t op;
    int32_t type, y_type; /* hs_dtype: F32 or BF16, of x and weights; of y. y is F32 where type is */
    int32_t act;          /* hs_act */
    int32_t bias, gate;   /* 1 = given; y = act(x W + bias) * gate (+ y), gate linear only */
    int32_t residual;     /* 1 = add to what is in y */
    int32_t unused;
} hs_product;

/* Weights of one product in the layouts that were needed. Zero it first. */
enum { HS_LAYOUTS = 4 };
struct dnnl_memory;
typedef struct hs_packed {
    struct dnnl_memory *mem[HS_LAYOUTS]; /* over data; knows the layout. [0] is made by hs_onednn_pack */
    void *data[HS_LAYOUTS];
    int64_t bytes;      /* of all layouts */
    int64_t late_bytes; /* of those added by use; counted into dev->bytes */
} hs_packed;

/* plain [out, in] or [cout, cin, kt, ky, kx] of k->type, for products like k; their sizes may differ from k's.
 * hs_onednn_unpack frees what pack made, or whatever is there after it failed. */
int hs_onednn_pack(hs_device *dev, const hs_product *k, const void *plain, hs_packed *ret, hs_err *err);
void hs_onednn_unpack(hs_device *dev, hs_packed *w);

/* Does oneDNN have only its reference loops for this? (Asked where there is another way.) */
int hs_onednn_is_slow(hs_device *dev, const hs_product *k, const hs_packed *w);
/* A failure is sticky. bias, gate: F32 [out], read if k says so. */
void hs_onednn_multiply(hs_device *dev, const hs_product *k, hs_packed *w, const void *x, void *y, const float *bias,
                        const float *gate);

#ifdef __cplusplus
}
#endif
#endif
