/* Sigma schedules and solver coefficients. spec wan.md 4.2 to 4.4; scalars in double, sigmas rounded to float32 as the
 * references hold them. */
#include "scheduler.h"

#include <math.h>
#include <string.h>

static double shifted(double s, double u) {
    return s * u / (1 + (s - 1) * u);
}

/* linspace(a, b, n)[i], in numpy's order of operations: whole timesteps depend on the last bit */
static double lin(double a, double b, int n, int i) {
    return n > 1 ? a + i * ((b - a) / (n - 1)) : a;
}

hs_sigmas_kind hs_sigmas_of(hs_solver_kind solver, int sigmas) {
    static const hs_sigmas_kind usual[] = {
        [HS_UNIPC] = HS_SIGMAS_A, [HS_DPMPP] = HS_SIGMAS_C, [HS_EULER] = HS_SIGMAS_D};
    return sigmas < 0 ? usual[solver] : (hs_sigmas_kind)sigmas;
}

int hs_sched_init(hs_sched *s, hs_solver_kind solver, hs_sigmas_kind kind, int steps, double shift, hs_err *err) {
    if (steps < 1 || steps > HS_MAX_STEPS)
        return hs_fail(err, HS_EINVAL, "%d steps asked for; 1 to %d are possible", steps, HS_MAX_STEPS);
    if (!(shift > 0 && shift <= 100)) return hs_fail(err, HS_EINVAL, "flow shift %g is not in (0, 100]", shift);
    memset(s, 0, sizeof *s);
    s->solver = solver;
    s->sigmas_kind = kind;
    s->steps = steps;
    s->shift = shift;
    for (int i = 0; i < steps; i++) {
        double sigma = 0;
        switch (kind) {
        case HS_SIGMAS_A: sigma = shifted(shift, lin(0.999, 0, steps + 1, i)); break;
        case HS_SIGMAS_B: sigma = shifted(shift, lin(1, 0.001, steps + 1, i)); break;
        case HS_SIGMAS_C: sigma = shifted(shift, lin(1, 0, steps + 1, i)); break;
        case HS_SIGMAS_D: sigma = shifted(shift, lin(1, shifted(shift, 0.001), steps, i)); break;
        }
        /* UniPC needs a finite log(alpha/sigma) at the first step (schedule B does the same in diffusers) */
        if (i == 0 && solver == HS_UNIPC && fabs(sigma - 1) < 1e-6) sigma -= 1e-6;
        s->sigma[i] = (float)sigma;
        s->t[i] = (float)(kind == HS_SIGMAS_D ? 1000 * sigma : floor(1000 * sigma));
    }
    return 0;
}

static double lambda(const hs_sched *s, int i) { /* -inf at sigma 1, +inf at sigma 0 */
    double sg = s->sigma[i];
    return log((1 - sg) / sg);
}

static void unipc(const hs_sched *s, int i, hs_sched_step *r) {
    int n = s->steps;
    if (i > 0) { /* corrector: order 1 after the first step, order 2 after the others */
        double h = lambda(s, i) - lambda(s, i - 1), e = expm1(-h), ae = (1 - (double)s->sigma[i]) * e;
        r->has_corr = 1;
        r->corr[HS_TERM_XL] = (double)s->sigma[i] / s->sigma[i - 1];
        if (i == 1) {
            r->corr[HS_TERM_M1] = -ae + ae / 2;
            r->corr[HS_TERM_M] = -ae / 2;
        } else {
            double rk = (lambda(s, i - 2) - lambda(s, i - 1)) / h;
            double g1 = e / -h - 1, g2 = g1 / -h - 0.5, b1 = g1 / e, b2 = 2 * g2 / e;
            double c0 = (b1 - b2) / (1 - rk), c1 = b1 - c0;
            r->corr[HS_TERM_M1] = -ae + ae * (c0 / rk + c1);
            r->corr[HS_TERM_M2] = -ae * c0 / rk;
            r->corr[HS_TERM_M] = -ae * c1;
        }
    }
    if (i == n - 1) { /* sigma 0: the x0 prediction itself */
        r->pred[HS_TERM_M1] = 1;
        return;
    }
    double h = lambda(s, i + 1) - lambda(s, i), ae = (1 - (double)s->sigma[i + 1]) * expm1(-h);
    r->pred[HS_TERM_X] = (double)s->sigma[i + 1] / s->sigma[i];
    r->pred[HS_TERM_M1] = -ae;
    if (i > 0) {
        double half = ae / (2 * (lambda(s, i - 1) - lambda(s, i)) / h);
        r->pred[HS_TERM_M1] += half;
        r->pred[HS_TERM_M2] = -half;
    }
}

static void dpmpp(const hs_sched *s, int i, hs_sched_step *r) {
    int n = s->steps;
    if (i == n - 1) {
        r->pred[HS_TERM_M1] = 1;
        return;
    }
    double h = lambda(s, i + 1) - lambda(s, i), ae = (1 - (double)s->sigma[i + 1]) * expm1(-h);
    r->pred[HS_TERM_X] = (double)s->sigma[i + 1] / s->sigma[i];
    r->pred[HS_TERM_M1] = -ae;
    if (i > 0) { /* D = (m - m_prev) h / (lambda_i - lambda_{i-1}); the quotient is 0 when the first sigma is 1 */
        double d = ae / 2 * (h / (lambda(s, i) - lambda(s, i - 1)));
        r->pred[HS_TERM_M1] -= d;
        r->pred[HS_TERM_M2] = d;
    }
}

void hs_sched_step_at(const hs_sched *s, int i, hs_sched_step *ret) {
    hs_sched_step r = {0};
    double sg = s->sigma[i];
    r.m[HS_TERM_X] = 1;
    r.m[HS_TERM_V] = -sg;
    switch (s->solver) {
    case HS_UNIPC: unipc(s, i, &r); break;
    case HS_DPMPP: dpmpp(s, i, &r); break;
    case HS_EULER: /* x + (next - sigma) v */
        r.pred[HS_TERM_X] = 1;
        r.pred[HS_TERM_V] = (double)s->sigma[i + 1] - sg;
        break;
    }
    *ret = r;
}

static const char *const solver_names[] = {[HS_UNIPC] = "unipc", [HS_DPMPP] = "dpm++", [HS_EULER] = "euler"};

const char *hs_solver_name(hs_solver_kind k) {
    return solver_names[k];
}

int hs_solver_parse(const char *name, hs_solver_kind *ret) {
    for (int k = 0; k < 3; k++)
        if (!strcmp(name, solver_names[k])) {
            *ret = (hs_solver_kind)k;
            return 0;
        }
    return HS_EINVAL;
}
