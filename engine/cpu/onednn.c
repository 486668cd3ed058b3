/* How matrices are multiplied: oneDNN, its 2.6 (Debian 12) and its 3.x interface alike.
 *
 * Primitives are made on first use and kept in a fixed table by shape, types and epilogue, so that layers of the same
 * shape share one and the step loop allocates nothing of ours after its first step. Weights are reordered when they are
 * loaded, into the layout oneDNN prefers for a typical size. Nearly every other size is as fast with that layout; where
 * oneDNN has no fast code for it (some convolutions), the weight gets one more layout on first use. Bias, activation,
 * gate and residual are oneDNN's post-operations: the product is written once.
 */
#include "cpu/onednn.h"
#include <dnnl.h>
#include <stdio.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { PLANS = 256 }; /* primitives kept; a whole pipeline needs about 100 */

/* ---- the two interfaces of oneDNN ------------------------------------------------------------------------------- */
/* In 2.x a memory descriptor is a struct and an operation is described by another; in 3.x both are handles. An all-zero
 * md_own is "none" in both. */
#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t md_own;
typedef const_dnnl_memory_desc_t md_ref;
static md_ref md_of(const md_own *m) {
    return *m;
}
static dnnl_status_t md_make(md_own *m, int n, const dnnl_dims_t dims, dnnl_data_type_t t, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_create_with_tag(m, n, dims, t, tag);
}
static dnnl_status_t md_copy(md_own *m, md_ref from) {
    return dnnl_memory_desc_clone(m, from);
}
static void md_done(md_own *m) {
    if (*m) dnnl_memory_desc_destroy(*m);
    *m = NULL;
}
static dnnl_status_t post_activation(dnnl_post_ops_t po, dnnl_alg_kind_t alg, float alpha) {
    return dnnl_post_ops_append_eltwise(po, alg, alpha, 0);
}
static dnnl_status_t post_sum(dnnl_post_ops_t po) {
    return dnnl_post_ops_append_sum(po, 1, 0, dnnl_data_type_undef);
}
static dnnl_status_t pd_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnnl_primitive_attr_t attr, md_ref x,
                               md_ref w, md_ref bias, md_ref y) {
    return dnnl_matmul_primitive_desc_create(pd, e, x, w, bias, y, attr);
}
static dnnl_status_t pd_conv(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnnl_primitive_attr_t attr, md_ref x, md_ref w,
                             md_ref bias, md_ref y, const dnnl_dims_t before, const dnnl_dims_t after) {
    const dnnl_dims_t one = {1, 1, 1}, none = {0, 0, 0};
    return dnnl_convolution_forward_primitive_desc_create(pd, e, dnnl_forward_inference, dnnl_convolution_direct, x, w,
                                                          bias, y, one, none, before, after, attr);
}
#else
typedef dnnl_memory_desc_t md_own;
typedef const dnnl_memory_desc_t *md_ref;
static md_ref md_of(const md_own *m) {
    return m->ndims ? m : NULL;
}
static dnnl_status_t md_make(md_own *m, int n, const dnnl_dims_t dims, dnnl_data_type_t t, dnnl_format_tag_t tag) {
    return dnnl_memory_desc_init_by_tag(m, n, dims, t, tag);
}
static dnnl_status_t md_copy(md_own *m, md_ref from) {
    *m = *from;
    return dnnl_success;
}
static void md_done(md_own *m) {
    m->ndims = 0;
}
static dnnl_status_t post_activation(dnnl_post_ops_t po, dnnl_alg_kind_t alg, float alpha) {
    return dnnl_post_ops_append_eltwise(po, 1, alg, alpha, 0);
}
static dnnl_status_t post_sum(dnnl_post_ops_t po) {
    return dnnl_post_ops_append_sum(po, 1);
}
static dnnl_status_t pd_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnnl_primitive_attr_t attr, md_ref x,
                               md_ref w, md_ref bias, md_ref y) {
    dnnl_matmul_desc_t d;
    const dnnl_status_t s = dnnl_matmul_desc_init(&d, x, w, bias, y);
    return s ? s : dnnl_primitive_desc_create(pd, &d, attr, e, NULL);
}
static dnnl_status_t pd_conv(dnnl_primitive_desc_t *pd, dnnl_engine_t e, dnnl_primitive_attr_t attr, md_ref x, md_ref w,
                             md_ref bias, md_ref y, const dnnl_dims_t before, const dnnl_dims_t after) {
    const dnnl_dims_t one = {1, 1, 1};
    dnnl_convolution_desc_t d;
    const dnnl_status_t s = dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct, x,
                                                               w, bias, y, one, before, after);
    return s ? s : dnnl_primitive_desc_create(pd, &d, attr, e, NULL);
}
#endif

/* ---- state ------------------------------------------------------------------------------------------------------ */
typedef struct plan {
    hs_product key;
    int64_t used; /* when last, for eviction; 0 = free */
    int64_t runs;
    dnnl_primitive_t prim;
    dnnl_memory_t x, y, bias, gate; /* without data: the addresses are set at each call */
    md_own w;                       /* the layout of weights it takes */
    char name[48];                  /* of oneDNN's implementation */
} plan;

typedef struct hs_onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int64_t clock;
    plan plans[PLANS];
} hs_onednn;

static hs_onednn *dnn_of(const hs_device *dev) {
    return hs_cpu_of(dev)->dnn;
}

static dnnl_data_type_t dnn_type(int t) {
    return t == HS_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* oneDNN takes as many threads as the calling thread's OpenMP setting; ours is per device. */
static int enter(const hs_device *dev) {
#ifdef _OPENMP
    const int before = omp_get_max_threads();
    omp_set_num_threads(hs_cpu_of(dev)->threads);
    return before;
#else
    (void)dev;
    return 0;
#endif
}

static void leave(int before) {
#ifdef _OPENMP
    omp_set_num_threads(before);
#else
    (void)before;
#endif
}

hs_cpu_isa hs_onednn_isa(void) {
    const unsigned isa = (unsigned)dnnl_get_effective_cpu_isa(); /* nested sets of bits */
#define HAS(name) ((isa & (unsigned)(name)) == (unsigned)(name))
    return (hs_cpu_isa){.avx2 = HAS(dnnl_cpu_isa_avx2),
                        .avx512 = HAS(dnnl_cpu_isa_avx512_core),
                        .avx512_bf16 = HAS(dnnl_cpu_isa_avx512_core_bf16),
                        .amx_bf16 = HAS(dnnl_cpu_isa_avx512_core_amx)};
#undef HAS
}

void hs_onednn_version(char *ret, size_t size) {
    const dnnl_version_t *v = dnnl_version();
    snprintf(ret, size, "%d.%d.%d", v->major, v->minor, v->patch);
}

int hs_onednn_open(hs_device *dev, hs_err *err) {
    hs_onednn *o = hs_calloc(1, sizeof *o);
    if (!o) return hs_fail(err, HS_ENOMEM, "out of memory opening the cpu backend");
    hs_cpu_of(dev)->dnn = o;
    const dnnl_status_t s = dnnl_engine_create(&o->engine, dnnl_cpu, 0);
    if (s || dnnl_stream_create(&o->stream, o->engine, dnnl_stream_default_flags))
        return hs_fail(err, HS_EDEVICE, "oneDNN gives no CPU engine (status %d)", (int)s);
    return HS_OK;
}

static void plan_done(plan *p) {
    if (p->prim) dnnl_primitive_destroy(p->prim);
    md_done(&p->w);
    dnnl_memory_t mem[] = {p->x, p->y, p->bias, p->gate};
    for (int i = 0; i < 4; i++)
        if (mem[i]) dnnl_memory_destroy(mem[i]);
    memset(p, 0, sizeof *p);
}

void hs_onednn_close(hs_device *dev) {
    hs_onednn *o = dnn_of(dev);
    if (!o) return;
    for (int i = 0; i < PLANS; i++) plan_done(&o->plans[i]);
    if (o->stream) dnnl_stream_destroy(o->stream);
    if (o->engine) dnnl_engine_destroy(o->engine);
    hs_free(o);
}

/* ---- plans ------------------------------------------------------------------------------------------------------ */
typedef struct shape { /* descriptors of one primitive's operands; all may be empty */
    md_own x, w, bias, y, gate;
} shape;

static void shape_done(shape *s) {
    md_own *all[] = {&s->x, &s->w, &s->bias, &s->y, &s->gate};
    for (int i = 0; i < 5; i++) md_done(all[i]);
}

/* All but w. */
static dnnl_status_t shape_make(shape *s, const hs_product *k) {
    const int64_t *d = k->dim;
    const dnnl_data_type_t t = dnn_type(k->type), ty = dnn_type(k->y_type);
    dnnl_status_t e = dnnl_success;
    if (k->op == HS_LINEAR) {
        const dnnl_dims_t x = {d[0], d[2]}, y = {d[0], d[1]}, row = {1, d[1]};
        e = md_make(&s->x, 2, x, t, dnnl_ab);
        if (!e) e = md_make(&s->y, 2, y, ty, dnnl_ab);
        if (!e && k->bias) e = md_make(&s->bias, 2, row, dnnl_f32, dnnl_ab);
        if (!e && k->gate) e = md_make(&s->gate, 2, row, dnnl_f32, dnnl_ab);
    } else {
        const dnnl_dims_t x = {1, d[3], d[0] + d[5] - 1, d[1], d[2]}, y = {1, d[4], d[0], d[1], d[2]},
                          channels = {d[4]};
        e = md_make(&s->x, 5, x, t, dnnl_ndhwc);
        if (!e) e = md_make(&s->y, 5, y, ty, dnnl_ndhwc);
        if (!e && k->bias) e = md_make(&s->bias, 1, channels, dnnl_f32, dnnl_a);
    }
    return e;
}

/* Any layout: what oneDNN may choose freely. */
static dnnl_status_t any_weight(md_own *w, const hs_product *k) {
    const int64_t *d = k->dim;
    const dnnl_dims_t linear = {d[2], d[1]}, conv = {d[4], d[3], d[5], d[6], d[7]};
    return k->op == HS_LINEAR ? md_make(w, 2, linear, dnn_type(k->type), dnnl_format_tag_any)
                              : md_make(w, 5, conv, dnn_type(k->type), dnnl_format_tag_any);
}

static dnnl_status_t epilogue(const shape *s, const hs_product *k, dnnl_primitive_attr_t attr) {
    dnnl_post_ops_t po;
    dnnl_status_t e = dnnl_post_ops_create(&po);
    if (e) return e;
    if (k->act == HS_ACT_GELU_TANH) e = post_activation(po, dnnl_eltwise_gelu_tanh, 0);
    if (k->act == HS_ACT_SILU) e = post_activation(po, dnnl_eltwise_swish, 1);
    if (!e && k->gate) e = dnnl_post_ops_append_binary(po, dnnl_binary_mul, md_of(&s->gate)); /* always post-op 0 */
    if (!e && k->residual) e = post_sum(po);
    if (!e) e = dnnl_primitive_attr_set_post_ops(attr, po);
    dnnl_post_ops_destroy(po);
    return e;
}

/* s->w must be set. */
static dnnl_status_t describe(hs_onednn *o, const shape *s, const hs_product *k, dnnl_primitive_desc_t *pd) {
    const dnnl_dims_t before = {0, k->dim[8], (k->dim[7] - 1) / 2}, after = {0, k->dim[9], (k->dim[7] - 1) / 2};
    const md_ref x = md_of(&s->x), w = md_of(&s->w), bias = md_of(&s->bias), y = md_of(&s->y);
    dnnl_primitive_attr_t attr;
    dnnl_status_t e = dnnl_primitive_attr_create(&attr);
    if (e) return e;
    e = epilogue(s, k, attr);
    if (!e)
        e = k->op == HS_LINEAR ? pd_matmul(pd, o->engine, attr, x, w, bias, y)
                               : pd_conv(pd, o->engine, attr, x, w, bias, y, before, after);
    dnnl_primitive_attr_destroy(attr);
    return e;
}

static const char *choice(dnnl_primitive_desc_t pd) {
    const char *name = "?";
    (void)dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name);
    return name;
}

/* oneDNN's loops for whatever nothing else can do: a thousand times slower. */
static int is_slow(const char *name) {
    return !strncmp(name, "ref", 3);
}

static void log_choice(const plan *p) {
    const int64_t *d = p->key.dim;
    const enum hs_log_level level = is_slow(p->name) ? HS_LOG_FALLBACK : HS_LOG_DEBUG;
    const char *type = hs_dtype_name((hs_dtype)p->key.type), *speed = is_slow(p->name) ? " (slow)" : "";
    if (p->key.op == HS_LINEAR)
        hs_log(level, "oneDNN: linear [%lld, %lld] to %lld, %s, by %s%s", (long long)d[0], (long long)d[2],
               (long long)d[1], type, p->name, speed);
    else
        hs_log(level,
               "oneDNN: convolution %lld x %lld x %lld, %lld to %lld channels, kernel %lld x %lld x %lld, %s, by %s%s",
               (long long)d[0], (long long)d[1], (long long)d[2], (long long)d[3], (long long)d[4], (long long)d[5],
               (long long)d[6], (long long)d[7], type, p->name, speed);
}

/* The description of k for a layout that w has already, if one of them is fast, else for the one oneDNN likes best. */
static dnnl_status_t choose(hs_onednn *o, shape *s, const hs_product *k, const hs_packed *w,
                            dnnl_primitive_desc_t *ret) {
    dnnl_status_t e = dnnl_success;
    for (int i = 0; i <= HS_LAYOUTS && !e; i++) {
        const int any = i == HS_LAYOUTS || !w->mem[i];
        dnnl_primitive_desc_t pd = NULL;
        md_ref layout;
        if (any) {
            e = any_weight(&s->w, k);
        } else {
            e = dnnl_memory_get_memory_desc(w->mem[i], &layout);
            if (!e) e = md_copy(&s->w, layout);
        }
        if (!e && !describe(o, s, k, &pd) && (any || !is_slow(choice(pd)))) {
            *ret = pd;
            return dnnl_success;
        }
        if (pd) dnnl_primitive_desc_destroy(pd);
        md_done(&s->w);
        if (any) break;
    }
    return e ? e : dnnl_unimplemented;
}

static dnnl_status_t plan_make(hs_onednn *o, plan *p, const hs_product *k, const hs_packed *w) {
    shape s;
    memset(&s, 0, sizeof s);
    dnnl_primitive_desc_t pd = NULL;
    p->key = *k;
    dnnl_status_t e = shape_make(&s, k);
    if (!e) e = choose(o, &s, k, w, &pd);
    if (!e) snprintf(p->name, sizeof p->name, "%s", choice(pd));
    if (!e) e = md_copy(&p->w, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
    if (!e) e = dnnl_primitive_create(&p->prim, pd);
    if (!e) e = dnnl_memory_create(&p->x, md_of(&s.x), o->engine, DNNL_MEMORY_NONE);
    if (!e) e = dnnl_memory_create(&p->y, md_of(&s.y), o->engine, DNNL_MEMORY_NONE);
    if (!e && k->bias) e = dnnl_memory_create(&p->bias, md_of(&s.bias), o->engine, DNNL_MEMORY_NONE);
    if (!e && k->gate) e = dnnl_memory_create(&p->gate, md_of(&s.gate), o->engine, DNNL_MEMORY_NONE);
    if (pd) dnnl_primitive_desc_destroy(pd);
    shape_done(&s);
    if (e) plan_done(p);
    return e;
}

/* The plan of a key, made if new in a free slot or in that of the plan unused for longest. */
static dnnl_status_t plan_get(hs_onednn *o, const hs_product *k, const hs_packed *w, plan **ret) {
    plan *oldest = &o->plans[0];
    for (int i = 0; i < PLANS; i++) {
        plan *p = &o->plans[i];
        if (p->used < oldest->used) oldest = p;
        if (memcmp(&p->key, k, sizeof *k) != 0) continue;
        p->used = ++o->clock;
        *ret = p;
        return dnnl_success;
    }
    plan_done(oldest);
    const dnnl_status_t e = plan_make(o, oldest, k, w);
    if (e) return e;
    oldest->used = ++o->clock;
    *ret = oldest;
    return dnnl_success;
}

/* ---- layouts of weights ----------------------------------------------------------------------------------------- */
static dnnl_status_t reorder(hs_onednn *o, dnnl_memory_t from, dnnl_memory_t to) {
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t prim = NULL;
    md_ref src, dst;
    dnnl_status_t e = dnnl_memory_get_memory_desc(from, &src);
    if (!e) e = dnnl_memory_get_memory_desc(to, &dst);
    if (!e) e = dnnl_reorder_primitive_desc_create(&pd, src, o->engine, dst, o->engine, NULL);
    if (!e) e = dnnl_primitive_create(&prim, pd);
    if (!e) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
        e = dnnl_primitive_execute(prim, o->stream, 2, args);
    }
    if (!e) e = dnnl_stream_wait(o->stream);
    if (prim) dnnl_primitive_destroy(prim);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return e;
}

static void layout_drop(hs_packed *w, int i) {
    if (w->mem[i]) dnnl_memory_destroy(w->mem[i]);
    hs_free(w->data[i]);
    w->mem[i] = NULL;
    w->data[i] = NULL;
}

/* Fills slot i of w with the values of `from` in layout `to`. */
static dnnl_status_t layout_add(hs_onednn *o, hs_packed *w, int i, dnnl_memory_t from, md_ref to) {
    const size_t bytes = dnnl_memory_desc_get_size(to);
    w->data[i] = hs_alloc(bytes);
    if (!w->data[i]) return dnnl_out_of_memory;
    dnnl_status_t e = dnnl_memory_create(&w->mem[i], to, o->engine, w->data[i]);
    if (!e) e = reorder(o, from, w->mem[i]);
    if (e) {
        layout_drop(w, i);
        return e;
    }
    w->bytes += (int64_t)bytes;
    return e;
}

/* The memory of w in this layout, made from its first one if it is new; more than there is room for replace the last.
 */
static dnnl_status_t layout_get(hs_device *dev, hs_packed *w, md_ref layout, dnnl_memory_t *ret) {
    int i = 0;
    for (; i < HS_LAYOUTS && w->mem[i]; i++) {
        md_ref have = NULL;
        const dnnl_status_t e = dnnl_memory_get_memory_desc(w->mem[i], &have);
        if (e) return e;
        if (!dnnl_memory_desc_equal(have, layout)) continue;
        *ret = w->mem[i];
        return dnnl_success;
    }
    const int64_t before = w->bytes;
    if (i == HS_LAYOUTS) layout_drop(w, --i);
    const dnnl_status_t e = layout_add(dnn_of(dev), w, i, w->mem[0], layout);
    w->late_bytes += w->bytes - before;
    dev->bytes += w->bytes - before;
    if (dev->bytes > dev->peak) dev->peak = dev->bytes;
    *ret = w->mem[i];
    return e;
}

int hs_onednn_pack(hs_device *dev, const hs_product *k, const void *plain, hs_packed *ret, hs_err *err) {
    hs_onednn *o = dnn_of(dev);
    const int64_t *d = k->dim;
    const dnnl_dims_t linear = {d[2], d[1]}, conv = {d[4], d[3], d[5], d[6], d[7]};
    shape s;
    memset(&s, 0, sizeof s);
    md_own plain_md;
    memset(&plain_md, 0, sizeof plain_md);
    dnnl_primitive_desc_t pd = NULL;
    dnnl_memory_t src = NULL;
    const int before = enter(dev);
    dnnl_status_t e = shape_make(&s, k);
    if (!e) e = any_weight(&s.w, k);
    if (!e) e = describe(o, &s, k, &pd);
    if (!e)
        e = k->op == HS_LINEAR ? md_make(&plain_md, 2, linear, dnn_type(k->type), dnnl_ba)
                               : md_make(&plain_md, 5, conv, dnn_type(k->type), dnnl_abcde);
    if (!e) e = dnnl_memory_create(&src, md_of(&plain_md), o->engine, (void *)(uintptr_t)plain); /* only read */
    if (!e) e = layout_add(o, ret, 0, src, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0));
    leave(before);
    if (src) dnnl_memory_destroy(src);
    if (pd) dnnl_primitive_desc_destroy(pd);
    md_done(&plain_md);
    shape_done(&s);
    if (e == dnnl_out_of_memory) return hs_fail(err, HS_ENOMEM, "out of memory packing weights");
    return e ? hs_fail(err, HS_EDEVICE, "oneDNN cannot pack weights (status %d)", (int)e) : HS_OK;
}

void hs_onednn_unpack(hs_device *dev, hs_packed *w) {
    for (int i = 0; i < HS_LAYOUTS; i++) layout_drop(w, i);
    dev->bytes -= w->late_bytes;
    w->bytes = w->late_bytes = 0;
}

/* ---- products --------------------------------------------------------------------------------------------------- */
int hs_onednn_is_slow(hs_device *dev, const hs_product *k, const hs_packed *w) {
    plan *p;
    const int before = enter(dev);
    const dnnl_status_t e = plan_get(dnn_of(dev), k, w, &p);
    leave(before);
    return !e && is_slow(p->name);
}

void hs_onednn_multiply(hs_device *dev, const hs_product *k, hs_packed *w, const void *x, void *y, const float *bias,
                        const float *gate) {
    hs_onednn *o = dnn_of(dev);
    const int before = enter(dev);
    plan *p;
    dnnl_memory_t weights = NULL;
    dnnl_status_t e = plan_get(o, k, w, &p);
    if (!e) e = layout_get(dev, w, md_of(&p->w), &weights);
    if (!e && !p->runs++) log_choice(p);
    if (!e) e = dnnl_memory_set_data_handle(p->x, (void *)(uintptr_t)x);
    if (!e) e = dnnl_memory_set_data_handle(p->y, y);
    if (!e && k->bias) e = dnnl_memory_set_data_handle(p->bias, (void *)(uintptr_t)bias);
    if (!e && k->gate) e = dnnl_memory_set_data_handle(p->gate, (void *)(uintptr_t)gate);
    if (!e) {
        dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, p->x}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_DST, p->y}};
        int n = 3;
        if (k->bias) args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, p->bias};
        if (k->gate) args[n++] = (dnnl_exec_arg_t){DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, p->gate};
        e = dnnl_primitive_execute(p->prim, o->stream, n, args);
        if (!e) e = dnnl_stream_wait(o->stream);
    }
    leave(before);
    if (e)
        hs_device_sticky(dev, e == dnnl_out_of_memory ? HS_ENOMEM : HS_EDEVICE,
                         "oneDNN failed with status %d in a %s of %lld x %lld x %lld", (int)e,
                         k->op == HS_LINEAR ? "linear layer" : "convolution", (long long)k->dim[0],
                         (long long)k->dim[1], (long long)k->dim[2]);
}
