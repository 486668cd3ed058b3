/* Ridge regression of joint errors on the heads' own errors, in its dual form: the unknowns are as many as there are
 * configurations, whatever the number of heads.
 *
 * Row i holds what each head adds to configuration i, relative to its measured error and scaled by the common factor,
 * so that a perfect prediction is 1 and all configurations weigh the same although their errors span powers of ten.
 * With K = A A' and r = 1 - sum of the row, the ridge solution is d = A' x with (K + penalty) x = r, and the residual
 * of configuration i when it is left out is x_i / inverse_ii: no fit has to be repeated. */
#include "refine.h"

#include <math.h>
#include <string.h>

typedef struct fit {
    int n, heads;
    double *a;       /* [n, heads] */
    double *k;       /* [n, n] */
    double *inverse; /* [n, n] of k + penalty */
    double *r, *x;   /* [n] */
} fit;

static int fit_init(fit *f, int n, int heads, hs_err *err) {
    size_t rows = (size_t)n;
    *f = (fit){.heads = heads,
               .a = hs_calloc(rows * (size_t)heads, sizeof(double)),
               .k = hs_calloc(rows * rows, sizeof(double)),
               .inverse = hs_calloc(rows * rows, sizeof(double)),
               .r = hs_calloc(rows, sizeof(double)),
               .x = hs_calloc(rows, sizeof(double))};
    return f->a && f->k && f->inverse && f->r && f->x ? 0 : hs_fail(err, HS_ENOMEM, "no memory to refine");
}

static void fit_done(fit *f) {
    hs_free(f->a);
    hs_free(f->k);
    hs_free(f->inverse);
    hs_free(f->r);
    hs_free(f->x);
}

/* Adds one configuration; at or below the floor it is left out. */
static int add_row(fit *f, const hs_curves *c, hs_thresholds t, double error, hs_err *err) {
    double known = hs_curves_excess(c, error), *row = f->a + (size_t)f->n * (size_t)f->heads;
    double sum, sparsity;
    int rc = hs_curves_predict(c, t, &sum, &sparsity, err);
    if (rc || !(known > 0) || !(sum > 0)) return rc;
    for (int j = 0; j < t.intervals; j++) {
        const double *e = hs_curves_error(c, t.intervals, j);
        for (int h = c->dense_layers * c->heads; h < f->heads; h++) {
            int k = hs_curves_point(c, t.top_p[j * f->heads + h]);
            row[h] += hs_curves_excess(c, e[h * c->points + k]) / known / t.intervals;
        }
    }
    f->n++;
    return 0;
}

/* The common factor in the middle of the configurations (geometric mean), taken into the rows. */
static double take_common(fit *f) {
    double common = 0;
    for (int i = 0; i < f->n; i++) {
        f->r[i] = 0;
        for (int h = 0; h < f->heads; h++) f->r[i] += f->a[i * f->heads + h];
        common -= log(f->r[i]) / f->n;
    }
    common = exp(common);
    for (int i = 0; i < f->n; i++) f->r[i] = 1 - common * f->r[i];
    for (int i = 0; i < f->n * f->heads; i++) f->a[i] *= common;
    return common;
}

static void inner_products(fit *f) {
    for (int i = 0; i < f->n; i++)
        for (int j = 0; j <= i; j++) {
            double sum = 0;
            for (int h = 0; h < f->heads; h++) sum += f->a[i * f->heads + h] * f->a[j * f->heads + h];
            f->k[i * f->n + j] = f->k[j * f->n + i] = sum;
        }
}

/* Inverse of a positive definite matrix in place, by sweeps. */
static void invert(double *m, int n) {
    for (int p = 0; p < n; p++) {
        double pivot = 1 / m[p * n + p];
        for (int j = 0; j < n; j++) m[p * n + j] *= pivot;
        m[p * n + p] = pivot;
        for (int i = 0; i < n; i++) {
            double factor = m[i * n + p];
            if (i == p) continue;
            m[i * n + p] = 0;
            for (int j = 0; j < n; j++) m[i * n + j] -= factor * m[p * n + j];
        }
    }
}

/* x for a penalty; returns the mean squared residual of configurations left out, and its standard error. */
static double solve(fit *f, double penalty, double *ret_error) {
    int n = f->n;
    double sum = 0, squares = 0;
    memcpy(f->inverse, f->k, (size_t)n * (size_t)n * sizeof *f->k);
    for (int i = 0; i < n; i++) f->inverse[i * n + i] += penalty;
    invert(f->inverse, n);
    for (int i = 0; i < n; i++) {
        f->x[i] = 0;
        for (int j = 0; j < n; j++) f->x[i] += f->inverse[i * n + j] * f->r[j];
        double out = f->x[i] / f->inverse[i * n + i];
        sum += out * out / n, squares += out * out * out * out / n;
    }
    *ret_error = sqrt(fmax(0, squares - sum * sum) / n);
    return sum;
}

/* The strongest penalty that is as good as the best one, as far as so few configurations can tell (within a standard
 * error): of two explanations the plainer. INFINITY = no correction. */
static double choose_penalty(fit *f, double *ret_before, double *ret_after) {
    enum { HALF_DECADES = 8 };
    double none = 0, size = 0, least = INFINITY, limit = INFINITY, error, out;
    for (int i = 0; i < f->n; i++) none += f->r[i] * f->r[i] / f->n, size += f->k[i * f->n + i] / f->n;
    for (int half = -HALF_DECADES; half <= HALF_DECADES; half++) {
        out = solve(f, size * pow(10, 0.5 * half), &error);
        if (out < least) least = out, limit = out + error;
    }
    *ret_before = *ret_after = sqrt(none);
    for (int half = HALF_DECADES; half >= -HALF_DECADES && none > limit; half--) {
        double penalty = size * pow(10, 0.5 * half);
        out = solve(f, penalty, &error);
        if (out > limit) continue;
        *ret_after = sqrt(out);
        return penalty;
    }
    return INFINITY;
}

int hs_refine_fit(const hs_curves *c, int n, const hs_thresholds *config, const double *error, double *ret_factor,
                  hs_correction *ret, hs_err *err) {
    const double limit = 4; /* no factor leaves the common one by more: thresholds that were hardly varied say little */
    int heads = c->layers * c->heads, rc;
    hs_correction made = {.low = 1, .high = 1};
    fit f;
    if (n > HS_REFINE_MAX) n = HS_REFINE_MAX;
    rc = fit_init(&f, n, heads, err);
    for (int i = 0; i < n && !rc; i++) rc = add_row(&f, c, config[i], error[i], err);
    if (!rc && f.n < HS_REFINE_MIN)
        rc = hs_fail(err, HS_EINVAL,
                     "%d configurations with an error above the numeric floor: refining needs at least %d (--random N)",
                     f.n, HS_REFINE_MIN);
    if (rc) goto out;
    made.used = f.n;
    made.common = take_common(&f);
    inner_products(&f);
    double penalty = choose_penalty(&f, &made.before, &made.after);
    for (int h = 0; h < heads; h++) {
        double d = 0;
        for (int i = 0; i < f.n && isfinite(penalty); i++) d += f.a[i * heads + h] * f.x[i];
        double factor = fmin(fmax(1 + d, 1 / limit), limit);
        made.low = fmin(made.low, factor), made.high = fmax(made.high, factor);
        ret_factor[h] = made.common * factor;
    }
    *ret = made;
out:
    fit_done(&f);
    return rc;
}

void hs_refine_apply(hs_curves *c, const double *factor) {
    int heads = c->layers * c->heads;
    for (int j = -1; j < c->intervals; j++) {
        double *error = j < 0 ? c->error : c->interval_error + (size_t)j * (size_t)heads * (size_t)c->points;
        for (int i = 0; i < heads * c->points; i++) {
            double excess = hs_curves_excess(c, error[i]);
            if (excess > 0) error[i] = c->floor + factor[i / c->points] * excess;
        }
    }
}

void hs_refine_near(const hs_curves *c, hs_thresholds t, uint64_t seed, int i, float *ret_top_p) {
    uint64_t state = hs_hash64(hs_hash64(seed) + (uint64_t)i);
    const int cells = c->layers * c->heads;
    for (int h = 0; h < t.intervals * cells; h++) {
        uint64_t draw = hs_hash64(state + (uint64_t)h) % 8;
        int k = hs_curves_point(c, t.top_p[h]);
        if (draw == 0 && k > 0) k--;
        if (draw == 1 && k < c->points - 1) k++;
        ret_top_p[h] = h % cells < c->dense_layers * c->heads || k < 0 ? 1 : (float)c->top_p[k];
    }
}
