/* reuse.c: decisions against a naive replay of Algorithm 1 on random drift, the gate, the baselines, relative drift. */
#include "engine/reuse.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { HEADS = 12, DIM = 16, STEPS = 60 };

/* Uniform in [-1, 1), the same in every run. */
static double noise(uint64_t seed, uint64_t i) {
    return (double)(hs_hash64(hs_hash64(seed) + i) >> 11) * 0x1p-52 - 1;
}

typedef struct state {
    float q[HEADS * DIM], k[HEADS * DIM]; /* anchors */
    int32_t age[HEADS];
    uint8_t want[HEADS];
    float drift[HEADS];
} state;

static void begin(state *s) {
    memset(s, 0, sizeof *s);
    for (int h = 0; h < HEADS; h++) s->age[h] = -1;
}

static void decide(const hs_reuse_policy *p, int heads, state *s, const float *q, const float *k) {
    hs_reuse_decide(p, heads, DIM, q, k, s->q, s->k, s->age, s->want, s->drift);
}

/* The means of step t: every head walks at its own pace, now and then one jumps. */
static void walk(uint64_t seed, int t, int heads, float *q, float *k) {
    for (int i = 0; i < heads * DIM; i++) {
        const int h = i / DIM;
        const double pace = 0.02 * (h + 1) + (hs_hash64(seed + (uint64_t)(t * HEADS + h)) % 17 == 0 ? 1 : 0);
        q[i] = (float)((t ? q[i] : 3) + pace * noise(seed + 1, (uint64_t)(t * HEADS * DIM + i)));
        k[i] = (float)((t ? k[i] : -2) + pace * noise(seed + 2, (uint64_t)(t * HEADS * DIM + i)));
    }
}

/* Algorithm 1 in the order of the paper, one history per head: the mask of a head is the step it was predicted at. */
typedef struct replay {
    int mask[HEADS]; /* step of the refresh, -1 = none */
    float q[STEPS][HEADS * DIM], k[STEPS][HEADS * DIM];
} replay;

static double distance(const replay *r, int h, int a, int b) { /* b < 0: norm of the means of step a */
    double d = 0;
    for (int i = h * DIM; i < (h + 1) * DIM; i++)
        d += fabs((double)r->q[a][i] - (b < 0 ? 0 : r->q[b][i])) + fabs((double)r->k[a][i] - (b < 0 ? 0 : r->k[b][i]));
    return d;
}

static void replay_step(const hs_reuse_policy *p, replay *r, int t, int heads, int ret_refresh[HEADS]) {
    double wanting = 0;
    for (int h = 0; h < heads; h++) {
        const int m = r->mask[h];
        if (m < 0) {
            ret_refresh[h] = 2;
        } else {
            const double d = distance(r, h, m, t);
            ret_refresh[h] = p->kind == HS_REUSE_NONE;
            if (p->kind == HS_REUSE_DRIFT && d > p->delta) ret_refresh[h] = 1;
            if (p->kind == HS_REUSE_RELATIVE && d / distance(r, h, m, -1) > p->delta) ret_refresh[h] = 1;
            if (hs_reuse_counts(p->kind) && t - m >= p->interval) ret_refresh[h] = 1;
        }
        wanting += ret_refresh[h] > 0;
    }
    const double rho = wanting / heads;
    for (int h = 0; h < heads; h++) {
        if (rho < (double)p->gate_low - 1e-6 && ret_refresh[h] == 1) ret_refresh[h] = 0;
        if (rho > (double)p->gate_high + 1e-6 && ret_refresh[h] == 0) ret_refresh[h] = 1;
        if (ret_refresh[h]) r->mask[h] = t;
    }
}

static int follow(const hs_reuse_policy *p, int heads, uint64_t seed) {
    static replay r;
    float q[HEADS * DIM], k[HEADS * DIM];
    state s;
    int reused = 0;
    begin(&s);
    for (int h = 0; h < HEADS; h++) r.mask[h] = -1;
    for (int t = 0; t < STEPS; t++) {
        int refresh[HEADS], before[HEADS];
        walk(seed, t, heads, q, k);
        memcpy(r.q[t], q, sizeof q);
        memcpy(r.k[t], k, sizeof k);
        memcpy(before, r.mask, sizeof before);
        replay_step(p, &r, t, heads, refresh);
        decide(p, heads, &s, q, k);
        for (int h = 0; h < heads; h++) {
            const double d = before[h] < 0 ? 0 : distance(&r, h, before[h], t);
            cr_assert_eq(s.want[h], refresh[h], "kind %d, gate %g, seed %llu: step %d, head %d", (int)p->kind,
                         p->gate_low, (unsigned long long)seed, t, h);
            cr_assert_eq(s.age[h], t - r.mask[h], "age: step %d, head %d", t, h);
            cr_assert(fabs(s.drift[h] - d) <= 1e-6 * d + 1e-12, "drift %g, expected %g", s.drift[h], d);
            cr_assert_arr_eq(s.q + h * DIM, r.q[r.mask[h]] + h * DIM, DIM * sizeof(float), "anchor: step %d, head %d",
                             t, h);
            cr_assert_arr_eq(s.k + h * DIM, r.k[r.mask[h]] + h * DIM, DIM * sizeof(float), "anchor: step %d, head %d",
                             t, h);
            reused += !refresh[h];
        }
    }
    return reused;
}

Test(reuse, equals_a_naive_replay) {
    static const float delta[] = {[HS_REUSE_DRIFT] = 2, [HS_REUSE_RELATIVE] = 0.05f, [HS_REUSE_STAGGER] = 0};
    for (int kind = HS_REUSE_NONE; kind <= HS_REUSE_STAGGER; kind++)
        for (int heads = 1; heads <= HEADS; heads++)
            for (int gate = 0; gate < 3; gate++) {
                const hs_reuse_policy p = {.kind = (hs_reuse_kind)kind,
                                           .delta = delta[kind],
                                           .interval = 4,
                                           .gate_low = gate ? 0.4f : 0,
                                           .gate_high = gate == 1 ? 0.8f
                                                        : gate    ? 0.5f
                                                                  : 1};
                const int reused = follow(&p, heads, (uint64_t)(1000 * gate + heads)), all = heads * (STEPS - 1);
                if (kind == HS_REUSE_DRIFT && !gate) /* else nothing was decided */
                    cr_expect(reused > all / 10 && reused < all * 19 / 20, "%d heads reuse %d of %d", heads, reused,
                              all);
            }
}

Test(reuse, slow_drift_accumulates) {
    const hs_reuse_policy p = {.kind = HS_REUSE_DRIFT, .delta = 10.5f, .gate_high = 1};
    float q[HEADS * DIM] = {0}, k[HEADS * DIM] = {0};
    state s;
    begin(&s);
    for (int t = 0; t < 50; t++) {
        q[0] = (float)t; /* 1 per step */
        decide(&p, 1, &s, q, k);
        cr_assert_eq(s.want[0], t == 0 ? 2 : t % 11 == 0, "step %d", t);
        cr_assert_eq(s.drift[0], t ? (t - 1) % 11 + 1 : 0, "step %d", t);
    }
}

Test(reuse, drift_at_the_limit_reuses) {
    const hs_reuse_policy p = {.kind = HS_REUSE_DRIFT, .delta = 2, .gate_high = 1};
    float q[HEADS * DIM] = {0}, k[HEADS * DIM] = {0};
    state s;
    begin(&s);
    decide(&p, 1, &s, q, k);
    q[3] = -1;
    k[5] = 1;
    decide(&p, 1, &s, q, k);
    cr_assert_eq(s.want[0], 0, "d <= delta keeps the mask");
    k[5] = 1.0001f;
    decide(&p, 1, &s, q, k);
    cr_assert_eq(s.want[0], 1);
}

/* `wanting` of 10 heads drift beyond the limit: who is refreshed? */
static int refreshed(int wanting, float low, float high) {
    const hs_reuse_policy p = {.kind = HS_REUSE_DRIFT, .delta = 1, .gate_low = low, .gate_high = high};
    float q[HEADS * DIM] = {0}, k[HEADS * DIM] = {0};
    state s;
    int n = 0;
    begin(&s);
    decide(&p, 10, &s, q, k);
    for (int h = 0; h < wanting; h++) k[h * DIM] = 5;
    decide(&p, 10, &s, q, k);
    for (int h = 0; h < 10; h++) n += s.want[h];
    return n;
}

Test(reuse, the_gate_makes_layers_unanimous) {
    static const int expected[11] = {0, 0, 0, 0, 4, 5, 6, 7, 8, 10, 10}; /* bounds .4 and .8 are themselves inside */
    for (int n = 0; n <= 10; n++) {
        cr_expect_eq(refreshed(n, 0.4f, 0.8f), expected[n], "%d of 10 want it: %d refreshed", n,
                     refreshed(n, 0.4f, 0.8f));
        cr_expect_eq(refreshed(n, 0, 1), n, "no gate");
    }
}

Test(reuse, a_head_without_mask_is_never_refused) {
    const hs_reuse_policy p = {.kind = HS_REUSE_FREEZE, .gate_low = 1, .gate_high = 1};
    float q[HEADS * DIM] = {0}, k[HEADS * DIM] = {0};
    state s;
    begin(&s);
    for (int h = 0; h < 9; h++) s.age[h] = 3;
    decide(&p, 10, &s, q, k);
    for (int h = 0; h < 10; h++) cr_expect_eq(s.want[h], h == 9 ? 2 : 0);
}

Test(reuse, baselines) {
    static const hs_reuse_policy interval = {.kind = HS_REUSE_INTERVAL,
                                             .interval = 3,
                                             .gate_low = 0.4f,
                                             .gate_high = 0.8f},
                                 freeze = {.kind = HS_REUSE_FREEZE, .gate_low = 0.4f, .gate_high = 0.8f};
    static const hs_reuse_policy none = {.kind = HS_REUSE_NONE, .begin_age = 2, .gate_high = 1},
                                 turn = {.kind = HS_REUSE_STAGGER, .interval = 3, .begin_age = 2, .gate_high = 1};
    float q[HEADS * DIM], k[HEADS * DIM];
    state a, b, c;
    begin(&a);
    begin(&b);
    begin(&c);
    for (int t = 0; t < 20; t++) {
        walk(5, t, 4, q, k);
        decide(&interval, 4, &a, q, k);
        decide(&freeze, 4, &b, q, k);
        decide(t == 9 ? &none : &turn, 4, &c, q, k); /* a mask out of turn: turns begin anew */
        for (int h = 0; h < 4; h++) {
            cr_assert_eq(a.want[h] != 0, t % 3 == 0);
            cr_assert_eq(b.want[h] != 0, t == 0);
            cr_assert_eq(c.want[h] != 0, t == 0 || t == 9 || t % 3 == 1, "step %d", t);
        }
    }
}

Test(reuse, relative_drift_has_no_units) {
    const hs_reuse_policy p = {.kind = HS_REUSE_RELATIVE, .delta = 0.05f, .gate_low = 0.4f, .gate_high = 0.8f};
    float q[HEADS * DIM], k[HEADS * DIM], q64[HEADS * DIM], k64[HEADS * DIM];
    state a, b;
    int reused = 0;
    begin(&a);
    begin(&b);
    for (int t = 0; t < STEPS; t++) {
        walk(9, t, HEADS, q, k);
        for (int i = 0; i < HEADS * DIM; i++) {
            q64[i] = 64 * q[i];
            k64[i] = 64 * k[i];
        }
        decide(&p, HEADS, &a, q, k);
        decide(&p, HEADS, &b, q64, k64);
        cr_assert_arr_eq(a.want, b.want, HEADS, "step %d", t);
        for (int h = 0; h < HEADS; h++) reused += !a.want[h];
    }
    cr_expect(reused > 50 && reused < HEADS * STEPS - 100, "%d reused: nothing was decided", reused);
}

Test(reuse, branches_do_not_touch) {
    const hs_reuse_policy p = {.kind = HS_REUSE_DRIFT, .delta = 4, .gate_low = 0.4f, .gate_high = 0.8f};
    float q[2][HEADS * DIM], k[2][HEADS * DIM];
    state both[2], alone, untouched;
    begin(&both[0]);
    begin(&both[1]);
    begin(&alone);
    for (int t = 0; t < STEPS; t++) {
        walk(21, t, HEADS, q[0], k[0]);
        walk(22, t, HEADS, q[1], k[1]);
        decide(&p, HEADS, &both[0], q[0], k[0]);
        untouched = both[0];
        decide(&p, HEADS, &both[1], q[1], k[1]);
        cr_assert_arr_eq(&untouched, &both[0], sizeof untouched);
        decide(&p, HEADS, &alone, q[0], k[0]);
        cr_assert_arr_eq(&alone, &both[0], sizeof alone, "step %d", t);
    }
}
