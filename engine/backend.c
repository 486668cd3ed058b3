/* The one door to a device: opens it, accounts its memory, and checks every call once so that backends may trust
 * theirs.
 *
 * A wrapper is a list of statements about its operands (backend_checks.h). Attention and the predictors of its masks
 * are in backend_sparse.c.
 */
#include "backend_checks.h"

enum {
    MAX_COMBINE = 6,
    MAX_MODULATION_ROWS = 32, /* bits of one_plus */
};

/* ---- device ---------------------------------------------------------------------------------------------------- */
/* "cuda" or "cuda-portable" (without the kernels of one architecture), alone or with ":N" of at most two digits */
static int is_cuda(const char *name) {
    if (strncmp(name, "cuda", 4)) return 0;
    name += strncmp(name, "cuda-portable", 13) ? 4 : 13;
    const size_t n = strlen(name);
    return !n || (*name == ':' && n > 1 && n < 4 && strspn(name + 1, "0123456789") == n - 1);
}

static int open_named(const hs_device_params *p, hs_device *dev, hs_err *err) {
    if (!strcmp(p->name, "ref")) return hs_ref_open(p, dev, err);
    if (!strcmp(p->name, "cpu")) return hs_cpu_open(p, dev, err);
    if (is_cuda(p->name)) return hs_cuda_open(p, dev, err);
    return hs_fail(err, HS_EINVAL, "unknown device '%s', expected auto, cpu, ref, cuda, cuda:N or cuda-portable",
                   p->name);
}

/* The fastest backend that answers. A GPU may fail in any way, with a warning; the cpu must not, unless not built. */
static int open_auto(const hs_device_params *p, hs_device *dev, hs_err *err) {
    static const char *const order[] = {"cuda", "cpu", "ref"};
    for (int i = 0;; i++) {
        hs_device_params q = *p;
        hs_err why = {0};
        q.name = order[i];
        memset(dev, 0, sizeof *dev);
        int rc = open_named(&q, dev, &why);
        if (!rc) {
            hs_log(i < 2 ? HS_LOG_INFO : HS_LOG_FALLBACK, "device auto: %s%s", dev->name,
                   i < 2 ? "" : " (the slow reference: no other backend is available)");
            return HS_OK;
        }
        if (i == 2 || (i == 1 && rc != HS_ENODEV)) return hs_fail(err, rc, "%s", why.msg);
        hs_log(rc == HS_ENODEV ? HS_LOG_DEBUG : HS_LOG_FALLBACK, "device auto: passing over %s: %s", q.name, why.msg);
    }
}

int hs_device_open(const hs_device_params *p, hs_device **ret, hs_err *err) {
    hs_device_params q = *p;
    if (!q.name) q.name = "auto";
    if (!q.precision) q.precision = "auto";
    if (strcmp(q.precision, "auto") && strcmp(q.precision, "fp32") && strcmp(q.precision, "bf16") &&
        strcmp(q.precision, "fp16"))
        return hs_fail(err, HS_EINVAL, "unknown precision '%s', expected auto, fp32, bf16 or fp16", q.precision);
    if (q.threads < 0 || q.max_bytes < 0)
        return hs_fail(err, HS_EINVAL, "device: threads %d and memory limit %lld must not be negative", q.threads,
                       (long long)q.max_bytes);
    hs_device *dev = hs_calloc(1, sizeof *dev);
    if (!dev) return hs_fail(err, HS_ENOMEM, "out of memory opening device '%s'", q.name);
    int rc = !strcmp(q.name, "auto") ? open_auto(&q, dev, err) : open_named(&q, dev, err);
    if (rc) {
        hs_free(dev);
        return rc;
    }
    dev->max_bytes = q.max_bytes;
    *ret = dev;
    return HS_OK;
}

void hs_device_close(hs_device *dev) {
    if (!dev) return;
    while (dev->weights) hs_weight_free(dev, dev->weights);
    dev->ops->close(dev); /* frees what the backend counted for itself */
    if (dev->bytes) hs_log(HS_LOG_WARN, "device closed with %lld bytes not freed", (long long)dev->bytes);
    hs_free(dev);
}

const char *hs_device_name(const hs_device *dev) {
    return dev->name;
}
hs_dtype hs_device_act(const hs_device *dev) {
    return dev->act;
}

void hs_device_sticky(hs_device *dev, int code, const char *fmt, ...) {
    if (dev->sticky) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(dev->sticky_msg, sizeof dev->sticky_msg, fmt, ap);
    va_end(ap);
    dev->sticky = code;
}

int hs_device_check(hs_device *dev, hs_err *err) {
    int rc = dev->ops->sync(dev, err);
    if (!dev->sticky) return rc;
    rc = hs_fail(err, dev->sticky, "%s", dev->sticky_msg);
    dev->sticky = 0;
    return rc;
}

void hs_lap(hs_device *dev, int slot) {
    if (dev->ops->lap) {
        dev->ops->lap(dev, slot);
        return;
    }
    const double now = hs_seconds();
    dev->laps[slot] += now - dev->lap_at;
    dev->lap_at = now;
}

void hs_laps(hs_device *dev, double ret[HS_LAP_COUNT]) {
    dev->ops->sync(dev, NULL); /* a failure stays for hs_device_check to report */
    memcpy(ret, dev->laps, sizeof dev->laps);
}

/* ---- device memory ----------------------------------------------------------------------------------------------- */
int64_t hs_device_bytes(const hs_device *dev, int64_t *ret_peak) {
    if (ret_peak) *ret_peak = dev->peak;
    return dev->bytes;
}

int64_t hs_device_recent_peak(hs_device *dev) {
    const int64_t peak = dev->recent_peak;
    dev->recent_peak = dev->bytes;
    return peak;
}

int64_t hs_device_own_bytes(const hs_device *dev, const hs_cluster *cluster) {
    return dev->ops->own_bytes ? dev->ops->own_bytes(dev, cluster) : 0;
}

int64_t hs_device_free_bytes(const hs_device *dev) {
    const int64_t there = dev->ops->free_bytes(dev), allowed = dev->max_bytes - dev->bytes;
    return dev->max_bytes && allowed < there ? allowed : there;
}

void hs_device_count(hs_device *dev, int64_t bytes) {
    dev->bytes += bytes;
    if (dev->bytes > dev->peak) dev->peak = dev->bytes;
    if (dev->bytes > dev->recent_peak) dev->recent_peak = dev->bytes;
}

static int over_limit(const hs_device *dev, int64_t bytes) {
    return dev->max_bytes && bytes > dev->max_bytes - dev->bytes;
}

static int fail_memory(const hs_device *dev, const char *purpose, int64_t bytes, hs_err *err) {
    char limit[64] = "none set";
    if (dev->max_bytes) snprintf(limit, sizeof limit, "%lld", (long long)dev->max_bytes);
    return hs_fail(err, HS_ENOMEM,
                   "device memory for %s: %lld bytes asked, %lld in use, limit %s, free %lld; choose a smaller video "
                   "or another device",
                   purpose, (long long)bytes, (long long)dev->bytes, limit, (long long)hs_device_free_bytes(dev));
}

int hs_device_alloc(hs_device *dev, hs_dtype type, int64_t n, const char *purpose, hs_buf *ret, hs_err *err) {
    int64_t bytes;
    *ret = HS_NOBUF;
    if ((unsigned)type >= HS_DTYPE_COUNT || n < 1 || hs_mul(n, (int64_t)hs_dtype_size(type), &bytes))
        return hs_fail(err, HS_EINVAL, "device memory for %s: %lld elements of type %d asked", purpose, (long long)n,
                       (int)type);
    void *p = NULL;
    if (over_limit(dev, bytes) || dev->ops->alloc(dev, (size_t)bytes, &p)) return fail_memory(dev, purpose, bytes, err);
    hs_device_count(dev, bytes);
    *ret = (hs_buf){p, type, n};
    return HS_OK;
}

void hs_device_free(hs_device *dev, hs_buf b) {
    if (!b.p) return;
    dev->bytes -= b.n * (int64_t)hs_dtype_size(b.type);
    dev->ops->free(dev, b.p);
}

/* ---- prepared weights -------------------------------------------------------------------------------------------- */
static int is_float(hs_dtype t) {
    return t == HS_F32 || t == HS_BF16 || t == HS_F16;
}

static hs_weight *weight_new(hs_device *dev) {
    hs_weight *w = hs_calloc(1, sizeof *w);
    if (!w) return NULL;
    w->next = dev->weights;
    if (w->next) w->next->prev = w;
    dev->weights = w;
    return w;
}

static void weight_unlink(hs_device *dev, hs_weight *w) {
    if (w->prev)
        w->prev->next = w->next;
    else
        dev->weights = w->next;
    if (w->next) w->next->prev = w->prev;
    hs_free(w);
}

/* rc: what the backend said; counts its bytes or takes everything back. */
static int weight_done(hs_device *dev, hs_weight *w, int rc, hs_weight **ret, hs_err *err) {
    if (rc) {
        weight_unlink(dev, w);
        return rc;
    }
    if (over_limit(dev, w->bytes)) {
        rc = fail_memory(dev, "weights", w->bytes, err);
        dev->ops->weight_free(dev, w);
        weight_unlink(dev, w);
        return rc;
    }
    hs_device_count(dev, w->bytes);
    *ret = w;
    return HS_OK;
}

int hs_weight_linear(hs_device *dev, const hs_linear_src *src, hs_weight **ret, hs_err *err) {
    int64_t out = 0, n;
    if (src->parts < 1 || src->parts > 3)
        return hs_fail(err, HS_EINVAL, "linear weight: %d parts, expected 1 to 3", src->parts);
    for (int k = 0; k < src->parts; k++) {
        if (!src->w[k] || !is_float(src->type[k]))
            return hs_fail(err, HS_EINVAL, "linear weight: part %d has %s, expected F32, BF16 or F16 data", k,
                           src->w[k] ? hs_dtype_name(src->type[k]) : "no data");
        if (!src->bias[k] != !src->bias[0] || (src->bias[k] && !is_float(src->bias_type[k])))
            return hs_fail(err, HS_EINVAL,
                           "linear weight: bias of part %d must be F32, BF16 or F16, for all parts or none", k);
        if (src->out[k] < 1 || src->in < 1 || src->out[k] > INT32_MAX || hs_mul(src->out[k], src->in, &n))
            return hs_fail(err, HS_EINVAL, "linear weight: part %d is [%lld, %lld]", k, (long long)src->out[k],
                           (long long)src->in);
        out += src->out[k];
    }
    if (hs_mul(out, src->in, &n)) return hs_fail(err, HS_EINVAL, "linear weight: too large");
    hs_weight *w = weight_new(dev);
    if (!w) return hs_fail(err, HS_ENOMEM, "out of memory preparing weights");
    w->out = out;
    w->in = src->in;
    w->f32 = src->f32;
    return weight_done(dev, w, dev->ops->weight_linear(dev, src, w, err), ret, err);
}

int hs_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight **ret, hs_err *err) {
    if (!src->w || !is_float(src->type) || (src->bias && !is_float(src->bias_type)))
        return hs_fail(err, HS_EINVAL, "conv weight: data must be F32, BF16 or F16");
    if (src->cout < 1 || src->cin < 1 || src->cout > 65536 || src->cin > 65536)
        return hs_fail(err, HS_EINVAL, "conv weight: %d -> %d channels, expected 1 to 65536", src->cin, src->cout);
    if ((src->kt != 1 && src->kt != 3) || (src->ky != 1 && src->ky != 3) || (src->kx != 1 && src->kx != 3))
        return hs_fail(err, HS_EINVAL, "conv weight: kernel %d x %d x %d, expected 1 or 3 each", src->kt, src->ky,
                       src->kx);
    if (src->up2 && (src->kt != 1 || src->ky != 3 || src->kx != 3))
        return hs_fail(err, HS_EINVAL, "conv weight: doubling needs a 1 x 3 x 3 kernel, found %d x %d x %d", src->kt,
                       src->ky, src->kx);
    hs_weight *w = weight_new(dev);
    if (!w) return hs_fail(err, HS_ENOMEM, "out of memory preparing weights");
    w->cout = src->cout;
    w->cin = src->cin;
    w->kt = src->kt;
    w->ky = src->ky;
    w->kx = src->kx;
    w->up2 = src->up2 != 0;
    return weight_done(dev, w, dev->ops->weight_conv(dev, src, w, err), ret, err);
}

void hs_weight_free(hs_device *dev, hs_weight *w) {
    if (!w) return;
    if (!w->streamed) {
        dev->bytes -= w->bytes;
        dev->ops->weight_free(dev, w);
    }
    weight_unlink(dev, w);
}

int64_t hs_weight_bytes(const hs_weight *w) {
    return w->bytes;
}

/* ---- moving data --------------------------------------------------------------------------------------------------
 */
/* These four accept n == 0 and then do nothing, like memcpy. */
static int move_ok(const call *c, const char *name, hs_buf b) {
    if (b.n < 0) bad(c, "%s holds %lld elements", name, (long long)b.n);
    if (b.n > 0) need(c, name, b, ~0u, b.n);
    return !c->dev->sticky && b.n > 0;
}

void hs_upload(hs_device *dev, hs_buf dst, const void *host) {
    const call c = {dev, "upload"};
    if (!move_ok(&c, "dst", dst)) return;
    if (!host)
        bad(&c, "host memory is missing (%lld elements needed)", (long long)dst.n);
    else
        dev->ops->upload(dev, dst.p, host, (size_t)dst.n * hs_dtype_size(dst.type));
}

void hs_download(hs_device *dev, void *host, hs_buf src) {
    const call c = {dev, "download"};
    if (!move_ok(&c, "src", src)) return;
    if (!host)
        bad(&c, "host memory is missing (%lld elements needed)", (long long)src.n);
    else
        dev->ops->download(dev, host, src.p, (size_t)src.n * hs_dtype_size(src.type));
}

void hs_copy(hs_device *dev, hs_buf dst, hs_buf src) {
    const call c = {dev, "copy"};
    const unsigned convert = T_F32 | act(dev);
    if (dst.n != src.n) bad(&c, "dst holds %lld elements, src %lld", (long long)dst.n, (long long)src.n);
    if (!move_ok(&c, "dst", dst) || !move_ok(&c, "src", src)) return;
    if (dst.type != src.type) {
        need(&c, "dst", dst, convert, dst.n);
        need(&c, "src", src, convert, src.n);
    }
    apart(&c, "dst", dst, "src", src);
    if (!dev->sticky) dev->ops->copy(dev, dst, src);
}

void hs_zero(hs_device *dev, hs_buf dst) {
    const call c = {dev, "zero"};
    if (move_ok(&c, "dst", dst)) dev->ops->zero(dev, dst);
}

/* ---- operations ----------------------------------------------------------------------------------------------------
 */
void hs_op_linear(hs_device *dev, const hs_linear *a) {
    const call c = {dev, "linear"};
    hs_linear l = *a;
    if (dev->sticky) return;
    if (!l.w || l.w->cout) {
        bad(&c, "w is %s", l.w ? "a convolution weight" : "missing");
        return;
    }
    if (!l.w->impl) {
        bad(&c, "w is in host memory: its group was not asked for");
        return;
    }
    l.x = need(&c, "x", l.x, l.w->f32 ? T_F32 : T_F32 | act(dev), VOLUME(&c, "x", l.rows, l.w->in));
    l.y = need(&c, "y", l.y, l.residual ? T_F32 : T_F32 | act(dev), VOLUME(&c, "y", l.rows, l.w->out));
    l.gate = optional(&c, "gate", l.gate, T_F32, l.w->out);
    range(&c, "act", (int64_t)l.act, HS_ACT_NONE, l.residual ? HS_ACT_NONE : HS_ACT_SILU);
    if (l.gate.p && !l.residual) bad(&c, "a gate of %lld elements without residual", (long long)l.gate.n);
    apart(&c, "y", l.y, "x", l.x);
    apart(&c, "y", l.y, "gate", l.gate);
    if (!dev->sticky) dev->ops->linear(dev, &l);
}

void hs_op_norm(hs_device *dev, hs_norm_kind kind, hs_buf x, int64_t rows, int64_t d, hs_buf mul, hs_buf add, float eps,
                hs_buf y) {
    const call c = {dev, "norm"};
    const int64_t n = VOLUME(&c, "x", rows, d);
    x = need(&c, "x", x, T_F32, n);
    y = need(&c, "y", y, T_F32 | act(dev), n);
    mul = need(&c, "mul", mul, T_F32, d);
    add = optional(&c, "add", add, T_F32, d);
    range(&c, "kind", (int64_t)kind, HS_NORM_LAYER, HS_NORM_RMS);
    apart(&c, "y", y, "x", x);
    apart(&c, "y", y, "mul", mul);
    apart(&c, "y", y, "add", add);
    if (!dev->sticky) dev->ops->norm(dev, kind, x, rows, d, mul, add, eps, y);
}

void hs_op_modulation(hs_device *dev, hs_buf table, hs_buf e, int rows, int e_rows, int64_t d, unsigned one_plus,
                      hs_buf y) {
    const call c = {dev, "modulation"};
    range(&c, "rows", rows, 1, MAX_MODULATION_ROWS);
    if (e_rows != 1 && e_rows != rows) bad(&c, "e_rows is %d, must be 1 or %d", e_rows, rows);
    table = need(&c, "table", table, T_F32, VOLUME(&c, "table", rows, d));
    e = need(&c, "e", e, T_F32, VOLUME(&c, "e", e_rows, d));
    y = need(&c, "y", y, T_F32, VOLUME(&c, "y", rows, d));
    apart(&c, "y", y, "table", table);
    apart(&c, "y", y, "e", e);
    if (!dev->sticky) dev->ops->modulation(dev, table, e, rows, e_rows, d, one_plus, y);
}

void hs_op_qk_norm(hs_device *dev, const hs_qk_norm *a) {
    const call c = {dev, "qk_norm"};
    hs_qk_norm q = *a;
    range(&c, "parts", q.parts, 1, 2);
    VOLUME(&c, "x", q.rows, q.ld, q.d);
    if (dev->sticky) return;
    range(&c, "col", q.col, 0, q.ld - q.parts * q.d);
    range(&c, "head_dim", q.head_dim, 1, MAX_HEAD_DIM);
    if (!dev->sticky && q.d % q.head_dim)
        bad(&c, "d %lld is not a multiple of head_dim %d", (long long)q.d, q.head_dim);
    if (q.rope.p && q.head_dim % 2) bad(&c, "rotation needs an even head_dim, found %d", q.head_dim);
    if (dev->sticky) return;
    q.x = need(&c, "x", q.x, act(dev), VOLUME(&c, "x", q.rows, q.ld) - (q.ld - q.col - q.parts * q.d));
    q.rope = q.rope.p ? need(&c, "rope", q.rope, T_F32, VOLUME(&c, "rope", q.rows, q.head_dim)) : HS_NOBUF;
    apart(&c, "x", q.x, "rope", q.rope);
    for (int k = 0; k < q.parts; k++) {
        q.gamma[k] = need(&c, "gamma", q.gamma[k], T_F32, q.d);
        q.mean[k] = optional(&c, "mean", q.mean[k], T_F32, q.d);
        apart(&c, "x", q.x, "gamma", q.gamma[k]);
    }
    for (int k = 0; k < q.parts; k++) {
        apart(&c, "mean", q.mean[k], "x", q.x);
        apart(&c, "mean", q.mean[k], "rope", q.rope);
        for (int g = 0; g < q.parts; g++) apart(&c, "mean", q.mean[k], "gamma", q.gamma[g]);
    }
    if (q.parts == 2) apart(&c, "mean", q.mean[0], "mean", q.mean[1]);
    if (!dev->sticky) dev->ops->qk_norm(dev, &q);
}

void hs_op_gated_gelu(hs_device *dev, hs_buf ab, int64_t rows, int64_t ff, hs_buf y) {
    const call c = {dev, "gated_gelu"};
    ab = need(&c, "ab", ab, act(dev), VOLUME(&c, "ab", rows, 2, ff));
    y = need(&c, "y", y, act(dev), VOLUME(&c, "y", rows, ff));
    apart(&c, "y", y, "ab", ab);
    if (!dev->sticky) dev->ops->gated_gelu(dev, ab, rows, ff, y);
}

void hs_op_gather_rows(hs_device *dev, hs_buf table, hs_buf ids, int64_t n, int64_t d, hs_buf y) {
    const call c = {dev, "gather_rows"};
    y = need(&c, "y", y, T_F32, VOLUME(&c, "y", n, d));
    ids = need(&c, "ids", ids, T_I32, n);
    table = need(&c, "table", table, T_F32 | act(dev), table.n > d ? table.n : d);
    if (!dev->sticky && table.n % d)
        bad(&c, "table of %lld elements is not rows of %lld", (long long)table.n, (long long)d);
    apart(&c, "y", y, "table", table);
    apart(&c, "y", y, "ids", ids);
    if (!dev->sticky) dev->ops->gather_rows(dev, table, ids, n, d, y);
}

void hs_op_combine(hs_device *dev, int count, const double *coef, const hs_buf *x, hs_buf y) {
    const call c = {dev, "combine"};
    range(&c, "count", count, 1, MAX_COMBINE);
    if (!coef || !x) bad(&c, "%s of %d terms are missing", coef ? "inputs" : "coefficients", count);
    need(&c, "y", y, T_F32, VOLUME(&c, "y", y.n));
    for (int k = 0; !dev->sticky && k < count; k++) {
        need(&c, "x", x[k], T_F32, y.n);
        if (x[k].n != y.n) bad(&c, "x[%d] holds %lld elements, y %lld", k, (long long)x[k].n, (long long)y.n);
        if (!same(x[k], y)) apart(&c, "y", y, "x", x[k]);
    }
    if (!dev->sticky) dev->ops->combine(dev, count, coef, x, y);
}

void hs_op_patchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    const call c = {dev, "patchify"};
    const int64_t n = VOLUME(&c, "x", C, f, h, w, 4);
    x = need(&c, "x", x, T_F32, n);
    y = need(&c, "y", y, T_F32 | act(dev), n);
    apart(&c, "y", y, "x", x);
    if (!dev->sticky) dev->ops->patchify(dev, x, C, f, h, w, y);
}

void hs_op_unpatchify(hs_device *dev, hs_buf x, int C, int f, int h, int w, hs_buf y) {
    const call c = {dev, "unpatchify"};
    const int64_t n = VOLUME(&c, "x", C, f, h, w, 4);
    x = need(&c, "x", x, T_F32, n);
    y = need(&c, "y", y, T_F32, n);
    apart(&c, "y", y, "x", x);
    if (!dev->sticky) dev->ops->unpatchify(dev, x, C, f, h, w, y);
}

void hs_op_latent_frames(hs_device *dev, hs_buf x, int C, int f, int t0, int T, int Y, int X, const float *mul,
                         const float *add, hs_buf z) {
    const call c = {dev, "latent_frames"};
    x = need(&c, "x", x, T_F32, VOLUME(&c, "x", C, f, Y, X));
    z = need(&c, "z", z, act(dev), VOLUME(&c, "z", T, Y, X, C));
    if (!mul || !add) bad(&c, "%s of %d channels is missing", mul ? "add" : "mul", C);
    range(&c, "t0", t0, 0, (int64_t)f - T);
    apart(&c, "z", z, "x", x);
    if (!dev->sticky) dev->ops->latent_frames(dev, x, C, f, t0, T, Y, X, mul, add, z);
}

void hs_op_channel_norm(hs_device *dev, hs_buf x, int64_t pixels, int C, hs_buf gamma, int silu, hs_buf y) {
    const call c = {dev, "channel_norm"};
    const int64_t n = VOLUME(&c, "x", pixels, C);
    x = need(&c, "x", x, T_F32 | act(dev), n);
    gamma = need(&c, "gamma", gamma, T_F32, C);
    y = need(&c, "y", y, act(dev), n);
    apart(&c, "y", y, "x", x);
    apart(&c, "y", y, "gamma", gamma);
    if (!dev->sticky) dev->ops->channel_norm(dev, x, pixels, C, gamma, silu, y);
}

void hs_op_conv(hs_device *dev, const hs_conv *a) {
    const call c = {dev, "conv"};
    hs_conv v = *a;
    if (dev->sticky) return;
    if (!v.w || !v.w->cout) {
        bad(&c, "w is %s", v.w ? "a linear weight" : "missing");
        return;
    }
    const int64_t up = v.w->up2 ? 4 : 1, lead = v.w->kt - 1;
    v.x = need(&c, "x", v.x, act(dev), VOLUME(&c, "x", v.T < 1 ? 0 : v.T + lead, v.Y, v.X, v.w->cin));
    v.y = need(&c, "y", v.y, T_F32 | act(dev), VOLUME(&c, "y", v.T, v.Y, v.X, up, v.w->cout));
    v.add = optional(&c, "add", v.add, 1u << v.y.type, v.y.n);
    apart(&c, "y", v.y, "x", v.x);
    if (!same(v.add, v.y)) apart(&c, "y", v.y, "add", v.add);
    if (!dev->sticky) dev->ops->conv(dev, &v);
}

void hs_op_split_frames(hs_device *dev, hs_buf x, int T, int64_t pixels, int C, hs_buf y) {
    const call c = {dev, "split_frames"};
    const int64_t n = VOLUME(&c, "x", T, pixels, 2, C);
    x = need(&c, "x", x, act(dev), n);
    y = need(&c, "y", y, act(dev), n);
    apart(&c, "y", y, "x", x);
    if (!dev->sticky) dev->ops->split_frames(dev, x, T, pixels, C, y);
}

void hs_op_to_u8(hs_device *dev, hs_buf x, hs_buf y) {
    const call c = {dev, "to_u8"};
    need(&c, "x", x, T_F32 | act(dev), VOLUME(&c, "x", x.n));
    need(&c, "y", y, T_U8, x.n);
    if (y.n != x.n) bad(&c, "y holds %lld elements, x %lld", (long long)y.n, (long long)x.n);
    apart(&c, "y", y, "x", x);
    if (!dev->sticky) dev->ops->to_u8(dev, x, y);
}

int64_t hs_count_nonfinite(hs_device *dev, hs_buf x) {
    const call c = {dev, "count_nonfinite"};
    need(&c, "x", x, T_F32 | act(dev), VOLUME(&c, "x", x.n));
    return dev->sticky ? 0 : dev->ops->count_nonfinite(dev, x);
}
