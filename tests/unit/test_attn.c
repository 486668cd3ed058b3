/* attn.c as a whole, on the plain backend: what one branch or layer remembers is its own, Algorithm 1 replayed through
 * the public call, dense warm-up, exact seeding. Masks and attention themselves are tested elsewhere. */
#include "engine/attn_state.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { LAYERS = 2, HEADS = 3, DIM = 16, TOKENS = 200, BLOCK = 64, WIDTH = HEADS * DIM, STEPS = 12 };

static hs_err err;
static hs_device *dev;

static void open_device(void) {
    cr_assert_eq(hs_device_open(&(hs_device_params){.name = "ref", .precision = "fp32"}, &dev, &err), 0, "%s", err.msg);
}

static void close_device(void) {
    hs_device_close(dev);
    cr_assert_eq(hs_alloc_live(), 0);
}

static float noise(uint64_t seed, int64_t i) {
    return (float)((double)(hs_hash64(hs_hash64(seed) + (uint64_t)i) >> 11) * 0x1p-52 - 1);
}

/* q, k, v of a step: smooth over tokens with some noise, drifting from step to step at a pace of its own per head. */
static void input(uint64_t seed, int step, float *qkv, float *mean_q, float *mean_k) {
    memset(mean_q, 0, WIDTH * sizeof *mean_q);
    memset(mean_k, 0, WIDTH * sizeof *mean_k);
    for (int i = 0; i < TOKENS; i++)
        for (int c = 0; c < 3 * WIDTH; c++) {
            const int head = c % WIDTH / DIM;
            const float base = noise(seed + 1, i / 24 * 3 * WIDTH + c), move = noise(seed + 2, c);
            const float own = noise(seed + 3, i * 3 * WIDTH + c);
            qkv[i * 3 * WIDTH + c] = 1.5f * base + own + 0.04f * (float)(step * (head + 1)) * move;
            if (c < 2 * WIDTH) (c < WIDTH ? mean_q : mean_k)[c % WIDTH] += qkv[i * 3 * WIDTH + c] / TOKENS;
        }
}

typedef struct fixture {
    hs_attn *a;
    hs_buf qkv, out;
    float host_in[TOKENS * 3 * WIDTH], host_out[TOKENS * WIDTH], mean[2][WIDTH];
} fixture;

static fixture *make(const hs_attn_policy *p) {
    fixture *f = hs_calloc(1, sizeof *f);
    cr_assert_eq(hs_attn_new(dev, p, LAYERS, HEADS, DIM, TOKENS, &f->a, &err), 0, "%s", err.msg);
    cr_assert_eq(hs_device_alloc(dev, HS_F32, TOKENS * 3 * WIDTH, "qkv", &f->qkv, &err), 0);
    cr_assert_eq(hs_device_alloc(dev, HS_F32, TOKENS * WIDTH, "out", &f->out, &err), 0);
    hs_attn_begin(f->a);
    return f;
}

static void drop(fixture *f) {
    hs_attn_free(f->a);
    hs_device_free(dev, f->qkv);
    hs_device_free(dev, f->out);
    hs_free(f);
}

/* One call of hs_attn_self; the output is left in f->host_out. */
static void call(fixture *f, int branch, int layer, int step, uint64_t seed) {
    const hs_policy p = {.step = step, .steps = STEPS, .branch = branch};
    input(seed, step, f->host_in, f->mean[0], f->mean[1]);
    hs_upload(dev, f->qkv, f->host_in);
    for (int s = 0; s < 2; s++) {
        const hs_buf to = hs_attn_mean(f->a, &p, layer, s);
        if (to.p) hs_upload(dev, to, f->mean[s]);
    }
    hs_attn_self(f->a, &p, layer, f->qkv, f->out);
    hs_download(dev, f->host_out, f->out);
    cr_assert_eq(hs_device_check(dev, &err), 0, "%s", err.msg);
}

typedef struct report {
    float density[HEADS], drift[HEADS];
    uint8_t call[HEADS];
    float out[TOKENS * WIDTH];
} report;

static void look(fixture *f, int branch, int layer, report *ret) {
    memset(ret, 0, sizeof *ret); /* compared as bytes */
    cr_assert_eq(hs_attn_report(f->a, branch, layer, ret->density, ret->drift, ret->call, &err), 0);
    memcpy(ret->out, f->host_out, sizeof f->host_out);
}

static hs_attn_policy policy(hs_method method) {
    hs_attn_policy p = hs_attn_policy_default(method);
    p.block = BLOCK;
    p.stride = 8;
    p.top_p = 0.6f;
    p.q_clusters = 5;
    p.k_clusters = 7;
    p.iters_first = 4;
    p.reuse = (hs_reuse_policy){.kind = HS_REUSE_DRIFT, .delta = 3, .interval = 1, .gate_low = 0.4f, .gate_high = 0.8f};
    return p;
}

TestSuite(attn, .init = open_device, .fini = close_device);

/* The same calls of one branch and layer, alone and between calls of the others: same masks, drift and output. */
Test(attn, branches_and_layers_never_touch_each_other) {
    static const hs_method methods[] = {HS_XATTENTION, HS_SVG2, HS_POOLED};
    static report alone[STEPS], among;
    for (int m = 0; m < 3; m++) {
        const hs_attn_policy p = policy(methods[m]);
        fixture *f = make(&p);
        int reused = 0, predicted = 0;
        for (int t = 0; t < STEPS; t++) {
            call(f, HS_BRANCH_COND, 1, t, 7);
            look(f, HS_BRANCH_COND, 1, &alone[t]);
            for (int h = 0; h < HEADS; h++) {
                reused += alone[t].call[h] == HS_HEAD_REUSED;
                predicted += t > 0 && alone[t].call[h] == HS_HEAD_PREDICTED;
            }
        }
        cr_assert(reused && predicted, "%s: %d reused, %d predicted: tests nothing", hs_method_name(methods[m]), reused,
                  predicted);
        hs_attn_begin(f->a);
        for (int t = 0; t < STEPS; t++) {
            call(f, HS_BRANCH_UNCOND, 1, t, 8);
            call(f, HS_BRANCH_COND, 0, t, 9);
            call(f, HS_BRANCH_COND, 1, t, 7);
            look(f, HS_BRANCH_COND, 1, &among);
            cr_assert(!memcmp(&among, &alone[t], sizeof among), "%s: step %d differs", hs_method_name(methods[m]), t);
        }
        drop(f);
    }
}

/* Bit by bit, sizes as the mask has them: what is reported must be of the masks that were used. */
static double plain_density(const hs_attn *a, int branch, int layer, int h) {
    hs_mask m = hs_attn_memory_of(a, branch, layer)->mask; /* the plain backend's memory is the host's */
    double pairs = 0;
    if (((const uint8_t *)m.dense.p)[h]) return 1;
    const int32_t *q = m.block ? NULL : (const int32_t *)m.q_start.p + h * (m.rows + 1);
    const int32_t *k = m.block ? NULL : (const int32_t *)m.k_start.p + h * (m.cols + 1);
    for (int r = 0; r < m.rows; r++)
        for (int c = 0; c < m.cols; c++) {
            const int32_t *row = (const int32_t *)m.bits.p + ((int64_t)h * m.rows + r) * m.words;
            const int nq = q ? q[r + 1] - q[r] : r == m.rows - 1 ? TOKENS - r * BLOCK : BLOCK;
            const int nk = k ? k[c + 1] - k[c] : c == m.cols - 1 ? TOKENS - c * BLOCK : BLOCK;
            if (hs_mask_bit(row, c)) pairs += (double)nq * nk;
        }
    return pairs / ((double)TOKENS * TOKENS);
}

Test(attn, densities_are_of_the_masks_in_use) {
    static const hs_method methods[] = {HS_XATTENTION, HS_SVG2, HS_POOLED};
    static const float mixed[LAYERS * HEADS] = {0.3f, 1, 0.5f, 1, 0.2f, 0.9f};
    for (int m = 0; m < 3; m++) {
        hs_attn_policy p = policy(methods[m]);
        p.dense_steps = 2;
        p.seed_exact = methods[m] != HS_SVG2;
        fixture *f = make(&p);
        report r;
        int reused = 0, changed = 0;
        float before[HEADS] = {0};
        for (int t = 0; t < 10 * STEPS; t++) { /* in any order */
            const uint64_t dice = hs_hash64((uint64_t)t);
            const int branch = dice % 3 == 0, alone = (dice >> 8) % 4; /* 3: only that; 2: after the usual call */
            if (t == 5 * STEPS) hs_attn_begin(f->a);                   /* another video */
            if (t < 2 || alone < 3) call(f, branch, 1, t % (5 * STEPS), 31);
            if (t >= 2 && alone >= 2) { /* a call with thresholds of its own, which reports have to tell apart */
                const hs_policy own = {.step = 5, .steps = STEPS, .branch = branch, .top_p = mixed};
                hs_attn_self(f->a, &own, 1, f->qkv, f->out);
            }
            if ((dice >> 16) % 3 == 0) continue; /* nobody asked */
            look(f, branch, 1, &r);
            for (int again = 0; again < 2; again++, look(f, branch, 1, &r))
                for (int h = 0; h < HEADS; h++) {
                    const double want =
                        hs_attn_memory_of(f->a, branch, 1)->attended ? plain_density(f->a, branch, 1, h) : 1;
                    cr_assert_float_eq(r.density[h], want, 1e-6, "%s: step %d, head %d: %g, not %g",
                                       hs_method_name(methods[m]), t, h, r.density[h], want);
                    reused += r.call[h] == HS_HEAD_REUSED;
                    changed += r.density[h] != before[h];
                    before[h] = r.density[h];
                }
        }
        cr_assert(reused > 5 && changed > 5, "%s: %d reused, %d changed", hs_method_name(methods[m]), reused, changed);
        drop(f);
    }
}

static int64_t downloaded;
static const hs_ops *real_ops;
static void counted_download(hs_device *d, void *host, const void *src, size_t bytes) {
    downloaded += (int64_t)bytes;
    real_ops->download(d, host, src, bytes);
}

/* A step ends with a report of all layers: the device must not have to wait for masks to be read and counted. */
Test(attn, a_report_of_all_layers_is_a_few_bytes) {
    static const hs_method methods[] = {HS_XATTENTION, HS_SVG2};
    for (int m = 0; m < 2; m++) {
        const hs_attn_policy p = policy(methods[m]);
        fixture *f = make(&p);
        report r;
        for (int l = 0; l < LAYERS; l++) call(f, HS_BRANCH_COND, l, 0, 7);
        real_ops = dev->ops;
        hs_ops counting = *real_ops;
        counting.download = counted_download;
        dev->ops = &counting;
        downloaded = 0;
        for (int l = 0; l < LAYERS; l++) look(f, HS_BRANCH_COND, l, &r);
        dev->ops = real_ops;
        cr_assert_eq(downloaded, HS_BRANCH_COUNT * LAYERS * HEADS * 9, "%s: %lld bytes", hs_method_name(methods[m]),
                     (long long)downloaded); /* want, drift, density */
        drop(f);
    }
}

/* Drift is against the means of the last refresh, not of the last step. */
Test(attn, replays_algorithm_1) {
    const hs_attn_policy p = policy(HS_XATTENTION);
    fixture *f = make(&p);
    static float anchor[HEADS][2][DIM];
    int refreshes[HEADS] = {0};
    for (int t = 0; t < STEPS; t++) {
        report r;
        double drift[HEADS] = {0}, want = 0;
        call(f, HS_BRANCH_UNCOND, 0, t, 21);
        look(f, HS_BRANCH_UNCOND, 0, &r);
        for (int h = 0; h < HEADS && t; h++) {
            for (int c = 0; c < 2 * DIM; c++)
                drift[h] += fabs((double)f->mean[c / DIM][h * DIM + c % DIM] - anchor[h][c / DIM][c % DIM]);
            cr_assert_float_eq(r.drift[h], drift[h], 1e-4, "step %d, head %d", t, h);
            want += (drift[h] > 3) / (double)HEADS;
        }
        for (int h = 0; h < HEADS; h++) {
            const int refresh = !t || want > 0.8 || (want >= 0.4 && drift[h] > 3);
            cr_assert_eq(r.call[h], refresh ? HS_HEAD_PREDICTED : HS_HEAD_REUSED, "step %d, head %d", t, h);
            refreshes[h] += refresh;
            for (int c = 0; c < 2 * DIM && refresh; c++)
                anchor[h][c / DIM][c % DIM] = f->mean[c / DIM][h * DIM + c % DIM];
        }
    }
    cr_assert(refreshes[2] > 1 && refreshes[2] < STEPS);
    drop(f);
}

/* Mass of every block, by the definition of attention, and the shortest prefix that reaches p. */
static void exact_rows(const float *qkv, int h, float p, int32_t ret_bits[4]) {
    enum { BLOCKS = (TOKENS + BLOCK - 1) / BLOCK };
    float mass[BLOCKS][BLOCKS] = {{0}};
    for (int i = 0; i < TOKENS; i++) {
        double e[TOKENS], max = -INFINITY, sum = 0;
        for (int j = 0; j < TOKENS; j++) {
            e[j] = 0;
            for (int c = 0; c < DIM; c++)
                e[j] += (double)qkv[i * 3 * WIDTH + h * DIM + c] * qkv[j * 3 * WIDTH + WIDTH + h * DIM + c];
            max = fmax(max, e[j] /= sqrt(DIM));
        }
        for (int j = 0; j < TOKENS; j++) sum += e[j] = exp(e[j] - max);
        for (int j = 0; j < TOKENS; j++) mass[i / BLOCK][j / BLOCK] += (float)(e[j] / sum);
    }
    int32_t order[BLOCKS];
    for (int r = 0; r < BLOCKS; r++) hs_mask_select(mass[r], BLOCKS, p, 1, 0, order, &ret_bits[r]);
}

Test(attn, first_masks_from_exact_mass) {
    static const hs_method methods[] = {HS_XATTENTION, HS_POOLED};
    for (int m = 0; m < 2; m++) {
        hs_attn_policy p = policy(methods[m]);
        p.dense_steps = 2;
        p.seed_exact = 1;
        p.reuse.kind = HS_REUSE_FREEZE;
        fixture *f = make(&p);
        hs_attn_policy none = hs_attn_policy_default(HS_DENSE);
        fixture *dense = make(&none);
        report r;
        for (int t = 0; t < 2; t++) { /* the dense steps are dense, the one that seeds too */
            call(f, 0, 0, t, 5);
            look(f, 0, 0, &r);
            call(dense, 0, 0, t, 5);
            cr_assert(!memcmp(f->host_out, dense->host_out, sizeof f->host_out), "step %d", t);
            for (int h = 0; h < HEADS; h++) cr_assert(r.call[h] == HS_HEAD_DENSE && r.density[h] == 1);
        }
        int32_t bits[HEADS][4];
        for (int h = 0; h < HEADS; h++) exact_rows(f->host_in, h, p.top_p, bits[h]); /* of the last dense step */
        call(f, 0, 0, 2, 5);
        look(f, 0, 0, &r);
        const hs_attn_memory *mem = hs_attn_memory_of(f->a, 0, 0);
        cr_assert(!memcmp(mem->mask.bits.p, bits, sizeof bits), "%s: not the masks of exact mass",
                  hs_method_name(methods[m]));
        for (int h = 0; h < HEADS; h++) {
            cr_assert_eq(r.call[h], HS_HEAD_REUSED);
            cr_assert(r.density[h] < 1);
        }
        drop(f);
        drop(dense);
    }
}

Test(attn, seeding_is_refused_where_it_means_nothing) {
    hs_attn_policy p = policy(HS_XATTENTION);
    p.seed_exact = 1;
    cr_assert_eq(hs_attn_policy_check(&p, LAYERS, HEADS, &err), HS_EINVAL); /* no dense step */
    p.dense_steps = 1;
    cr_assert_eq(hs_attn_policy_check(&p, LAYERS, HEADS, &err), 0, "%s", err.msg);
    p.reuse.kind = HS_REUSE_NONE;
    cr_assert_eq(hs_attn_policy_check(&p, LAYERS, HEADS, &err), HS_EINVAL);
    p.reuse.kind = HS_REUSE_DRIFT;
    p.compat = 1;
    cr_assert_eq(hs_attn_policy_check(&p, LAYERS, HEADS, &err), HS_ENOTSUP);
    p = policy(HS_SVG2);
    p.dense_steps = p.seed_exact = 1;
    cr_assert_eq(hs_attn_policy_check(&p, LAYERS, HEADS, &err), HS_ENOTSUP);
}

/* Thresholds of [layers, heads] in three intervals. Layer 0 changes at step 4 and not at 8, layer 1 the other way. */
static const float timed[3][LAYERS][HEADS] = {
    {{0.6f, 0.5f, 0.7f}, {0.5f, 1, 0.6f}},
    {{0.4f, 1, 0.7f}, {0.5f, 1, 0.6f}},
    {{0.4f, 1, 0.7f}, {0.5f, 0.4f, 0.6f}},
};

static hs_attn_policy timed_policy(hs_method method) {
    hs_attn_policy p = policy(method);
    p.top_p_heads = &timed[0][0][0];
    p.intervals = 3;
    p.interval_start[1] = 4, p.interval_start[2] = 8;
    p.reuse.kind = HS_REUSE_FREEZE;
    return p;
}

/* With masks kept for ever: a layer gets new ones exactly where its thresholds change, and they are those that the new
 * thresholds would have given to a video that begins there. */
Test(attn, thresholds_hold_from_the_first_step_of_their_interval) {
    static const hs_method methods[] = {HS_XATTENTION, HS_POOLED};
    for (int m = 0; m < 2; m++) {
        const hs_attn_policy p = timed_policy(methods[m]);
        fixture *f = make(&p);
        for (int t = 0; t < STEPS; t++)
            for (int layer = 0; layer < LAYERS; layer++) {
                const int change = layer ? 8 : 4, interval = t / 4;
                report r, fresh;
                call(f, 0, layer, t, 31);
                look(f, 0, layer, &r);
                for (int h = 0; h < HEADS; h++) {
                    cr_assert_eq(r.call[h], t == 0 || t == change ? HS_HEAD_PREDICTED : HS_HEAD_REUSED,
                                 "%s: step %d, layer %d, head %d", hs_method_name(methods[m]), t, layer, h);
                    cr_assert_eq(r.density[h] == 1, timed[interval][layer][h] == 1, "step %d, layer %d, head %d: %g", t,
                                 layer, h, (double)r.density[h]);
                }
                if (t != change) continue;
                hs_attn_policy same = policy(methods[m]);
                same.top_p_heads = &timed[interval][0][0];
                fixture *g = make(&same);
                call(g, 0, layer, t, 31);
                look(g, 0, layer, &fresh);
                cr_assert(!memcmp(r.out, fresh.out, sizeof r.out), "step %d, layer %d", t, layer);
                drop(g);
            }
        hs_attn_begin(f->a); /* again: the first interval's, not the last one's */
        report r;
        call(f, 0, 1, 0, 31);
        look(f, 0, 1, &r);
        cr_assert_eq(r.density[1], 1);
        drop(f);
    }
}

/* Clusters go on from where they are: only the choice among them is made again. */
Test(attn, clusters_outlive_their_interval) {
    hs_attn_policy p = timed_policy(HS_SVG2);
    p.min_share = 0;
    fixture *f = make(&p);
    for (int t = 0; t <= 4; t++) {
        report r;
        uint8_t want[HEADS];
        call(f, 0, 0, t, 32);
        look(f, 0, 0, &r);
        hs_download(dev, want, hs_attn_memory_of(f->a, 0, 0)->want);
        for (int h = 0; h < HEADS; h++) cr_assert_eq(want[h], t == 0 ? 2 : t == 4, "step %d, head %d", t, h);
        cr_assert_eq(r.density[1] == 1, t == 4);
    }
    drop(f);
}

/* Masks of the last dense step are for the step that follows, also where another interval begins there. */
Test(attn, exact_masks_have_the_thresholds_of_the_step_they_serve) {
    hs_attn_policy p = timed_policy(HS_XATTENTION);
    p.dense_steps = 4;
    p.seed_exact = 1;
    fixture *f = make(&p);
    int32_t bits[4];
    for (int t = 0; t <= 4; t++) {
        if (t == 4) exact_rows(f->host_in, 0, timed[1][0][0], bits);
        call(f, 0, 0, t, 33);
    }
    report r;
    look(f, 0, 0, &r);
    for (int h = 0; h < HEADS; h++) cr_assert_eq(r.call[h], HS_HEAD_REUSED);
    cr_assert(!memcmp(hs_attn_memory_of(f->a, 0, 0)->mask.bits.p, bits, sizeof bits));
    drop(f);
}
