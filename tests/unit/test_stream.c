/* Weights that come and go (stream.h), and the plan that decides which do: on ref, where moving is copying, and for the
 * published models on a device that only knows how much memory it has. */
#include "random.h"
#include "session.h"
#include "stream.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>

TestSuite(stream);

enum { D = 8, GROUPS = 7 };

static hs_device *open_ref(int64_t max_bytes) {
    hs_device *dev = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_device_open(&(hs_device_params){.name = "ref", .max_bytes = max_bytes}, &dev, &err), 0, "%s",
                 err.msg);
    return dev;
}

/* A matrix that multiplies by `factor`. */
static hs_weight *scaling(hs_device *dev, float factor) {
    float w[D * D] = {0};
    hs_weight *ret = NULL;
    hs_err err = {0};
    for (int i = 0; i < D; i++) w[i * D + i] = factor;
    cr_assert_eq(hs_weight_linear(dev, &(hs_linear_src){.parts = 1, .w = {w}, .out = {D}, .in = D}, &ret, &err), 0,
                 "%s", err.msg);
    return ret;
}

static float apply(hs_device *dev, const hs_weight *w) {
    hs_buf x, y;
    float in[D] = {1}, out[D];
    hs_err err = {0};
    cr_assert(!hs_device_alloc(dev, HS_F32, D, "x", &x, &err) && !hs_device_alloc(dev, HS_F32, D, "y", &y, &err));
    hs_upload(dev, x, in);
    hs_op_linear(dev, &(hs_linear){.x = x, .y = y, .w = w, .rows = 1});
    hs_download(dev, out, y);
    hs_device_free(dev, x);
    hs_device_free(dev, y);
    return out[0];
}

Test(stream, groups_come_in_any_order_and_memory_is_two_slots) {
    hs_device *dev = open_ref(0);
    hs_stream *s;
    hs_weight *w[GROUPS][2];
    hs_err err = {0};
    const int64_t none = hs_device_bytes(dev, NULL);
    cr_assert_eq(hs_stream_new(dev, GROUPS, 4, &s, &err), 0); /* rings 0..3 and 4..6 */
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < 2; k++) w[g][k] = scaling(dev, (float)(10 * g + k + 1));
    const int64_t each = hs_weight_bytes(w[0][0]);
    for (int g = 0; g < GROUPS; g++) /* group 2 stays on the device */
        if (g != 2) cr_assert_eq(hs_stream_add(s, g, 2, w[g], &err), 0, "%s", err.msg);
    const int64_t slots = hs_device_bytes(dev, NULL) - none - 2 * each;
    cr_assert(slots >= 4 * each && slots < 4 * each + 4 * 256, "%lld bytes of slots", (long long)slots);
    cr_assert(hs_stream_host_bytes(s) >= 12 * each);
    const int order[] = {0, 1, 2, 3, 0, 1, 2, 3, 5, 4, 6, 0, 3, 1, 1, 2, 2, 6, 5};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        const int g = order[i];
        hs_stream_need(s, g);
        for (int k = 0; k < 2; k++) cr_assert_eq(apply(dev, w[g][k]), (float)(10 * g + k + 1), "place %zu", i);
    }
    cr_assert_eq(hs_device_check(dev, &err), 0, "%s", err.msg);
    apply(dev, w[0][0]); /* not what was asked for: refused, not computed from what lies there */
    cr_assert_eq(hs_device_check(dev, &err), HS_EINVAL);
    for (int g = 0; g < GROUPS; g++)
        for (int k = 0; k < 2; k++) hs_weight_free(dev, w[g][k]);
    hs_stream_free(s);
    cr_assert_eq(hs_device_bytes(dev, NULL), none);
    hs_device_close(dev);
    cr_assert_eq(hs_alloc_live(), 0);
}

/* Every copy into a slot comes after the release of what was used there, and before its use. */
static int log_of[256], logged;
static void note(int what, int slot) {
    if (logged < 256) log_of[logged++] = what * 2 + slot;
}
static const hs_ops *real;
static void noting_fill(hs_device *dev, int slot, void *dst, const void *host, size_t bytes) {
    note(0, slot);
    real->slot_fill(dev, slot, dst, host, bytes);
}
static void noting_use(hs_device *dev, int slot) {
    (void)dev;
    note(1, slot);
}
static void noting_release(hs_device *dev, int slot) {
    (void)dev;
    note(2, slot);
}

Test(stream, a_slot_is_filled_when_it_is_released_and_while_the_other_one_is_used) {
    hs_device *dev = open_ref(0);
    hs_stream *s;
    hs_err err = {0};
    hs_ops ops = *(real = dev->ops);
    ops.slot_fill = noting_fill, ops.slot_use = noting_use, ops.slot_release = noting_release;
    dev->ops = &ops;
    cr_assert_eq(hs_stream_new(dev, 6, 6, &s, &err), 0);
    for (int g = 0; g < 6; g++) {
        hs_weight *w = scaling(dev, 1);
        if (g % 2 == 0) cr_assert_eq(hs_stream_add(s, g, 1, &w, &err), 0);
    }
    for (int round = 0; round < 3; round++)
        for (int g = 0; g < 6; g++) hs_stream_need(s, g);
    int filled[2] = {0}, used[2] = {0}, ahead = 0;
    for (int i = 0; i < logged; i++) {
        const int slot = log_of[i] % 2;
        switch (log_of[i] / 2) {
        case 0:
            cr_assert(!used[slot], "filled while it is used");
            filled[slot] = 1;
            ahead += used[1 - slot];
            break;
        case 1:
            cr_assert(filled[slot], "used before it was filled");
            used[slot] = 1;
            break;
        default: used[slot] = 0;
        }
    }
    cr_assert_geq(ahead, 1);
    cr_assert_geq(logged, 3 * 3 * 2);
    hs_stream_free(s);
    dev->ops = real;
    hs_device_close(dev);
}

Test(stream, host_memory_that_is_short_is_an_error_by_name) {
    for (int n = 1; n < 4; n++) {
        hs_device *dev = open_ref(0);
        hs_stream *s = NULL;
        hs_err err = {0};
        hs_weight *w = scaling(dev, 2);
        cr_assert_eq(hs_stream_new(dev, 1, 1, &s, &err), 0);
        hs_alloc_fail_at(n);
        const int r = hs_stream_add(s, 0, 1, &w, &err);
        hs_alloc_fail_at(0);
        if (r) cr_assert(r == HS_ENOMEM && strstr(err.msg, "weights"), "%s", err.msg);
        hs_stream_free(s);
        hs_device_close(dev);
        cr_assert_eq(hs_alloc_live(), 0);
    }
}

/* ---- the plan for the published models ----------------------------------------------------------------------------
 */
static int64_t no_memory(const hs_device *dev) {
    (void)dev;
    return (int64_t)1 << 40;
}
static int no_sync(hs_device *dev, hs_err *err) {
    (void)dev, (void)err;
    return 0;
}

/* Something that grows with what k-means is about to group, as on a GPU. */
static int64_t some_scratch(const hs_device *dev, const hs_cluster *a) {
    (void)dev;
    if (!a) return 320 << 20; /* as cuda.cu has it */
    cr_assert(a->beside && !a->beside->beside);
    return ((int64_t)320 << 20) + a->heads * a->head_dim * (a->clusters + 3 * (int64_t)a->beside->clusters) + a->len;
}

static hs_request request_of(int width, int height, hs_method method) {
    return (hs_request){.width = width,
                        .height = height,
                        .frames = 81,
                        .fps = 16,
                        .steps = 50,
                        .sigmas = -1,
                        .guidance = 5,
                        .shift = 5,
                        .attention = hs_attn_policy_default(method)};
}

static hs_plan plan_of(const char *name, hs_request r, double gb, int *ret) {
    hs_err err = {0};
    const hs_ops ops = {.free_bytes = no_memory, .sync = no_sync, .slot_fill = noting_fill, .own_bytes = some_scratch};
    hs_device dev = {.ops = &ops, .act = HS_BF16, .max_bytes = (int64_t)(gb * 1e9), .name = "a card"};
    hs_model m = {.dev = &dev, .vae_dev = &dev};
    hs_plan p = {0};
    cr_assert_eq(hs_random_config(name, &m.c, &err), 0);
    *ret = hs_plan_memory(&m, &r, (int64_t)64 << 30, &p, &err);
    if (!*ret) {
        cr_assert_leq(p.peak_bytes, p.limit_bytes);
        printf("%s %dx%d %5.4g GB %-10s: text %.2f%s, blocks %2d of %d, transformer %.2f + slots %.2f + beside %.2f + "
               "masks "
               "%.2f, VAE %.2f, room %.2f (VAE %d frames%s), peak %.2f; host %.2f\n",
               name, r.width, r.height, gb, hs_method_name(r.attention.method), (double)p.text_bytes / 1e9,
               p.text_streamed ? " streamed" : "", p.resident, p.blocks, (double)p.dit_bytes / 1e9,
               (double)p.stream_bytes / 1e9, (double)p.act_bytes / 1e9, (double)p.mask_bytes / 1e9,
               (double)p.vae_bytes / 1e9, (double)p.room_bytes / 1e9, p.vae_chunk, p.vae_tiled ? ", tiled" : "",
               (double)p.peak_bytes / 1e9, (double)p.host_bytes / 1e9);
    } else
        printf("%s\n", err.msg);
    hs_config_done(&m.c);
    return p;
}

/* Weights of benchmarks are numbers, not zeros: zeros take less power, and a GPU multiplies them faster. */
Test(stream, random_weights_are_random) {
    static const struct {
        const char *name;
        double center, deviation;
    } vectors[] = {{"blocks.3.attn1.to_q.bias", 0, 0.02}, {"blocks.3.attn1.norm_q.weight", 1, 0.115}};
    enum { DIM = 1536 };
    hs_device *dev = open_ref(0);
    hs_st *st = NULL;
    hs_err err = {0};
    cr_assert_eq(hs_st_random("wan2.1-1.3b", &st, &err), 0, "%s", err.msg);
    for (int i = 0; i < 2; i++) {
        hs_buf b = HS_NOBUF;
        double sum = 0, square = 0;
        cr_assert_eq(hs_bind_vector(st, dev, DIM, &b, &err, "%s", vectors[i].name), 0, "%s", err.msg);
        for (int k = 0; k < DIM; k++) {
            const double x = ((const float *)b.p)[k] - vectors[i].center;
            sum += x;
            square += x * x;
        }
        cr_expect_lt(fabs(sum / DIM), vectors[i].deviation / 5, "%s: mean %g", vectors[i].name, sum / DIM);
        cr_expect_float_eq(sqrt(square / DIM), vectors[i].deviation, vectors[i].deviation / 5, "%s: deviation %g",
                           vectors[i].name, sqrt(square / DIM));
        hs_device_free(dev, b);
    }
    hs_st_close(st);
    hs_device_close(dev);
}

Test(stream, published_models_fit_the_cards_that_people_have, .init = NULL) {
    int r;
    static const double cards[] = {80, 48, 24, 16, 12, 10, 8, 6, 5};
    for (int i = 0; i < 9; i++) {
        plan_of("wan2.1-14b", request_of(1280, 720, HS_DENSE), cards[i], &r);
        if (cards[i] >= 12) cr_assert_eq(r, 0, "14B at 720p, %g GB", cards[i]);
        plan_of("wan2.1-14b", request_of(832, 480, HS_DENSE), cards[i], &r);
        plan_of("wan2.1-14b", request_of(1280, 720, HS_XATTENTION), cards[i], &r);
        plan_of("wan2.1-14b", request_of(1280, 720, HS_SVG2), cards[i], &r);
        plan_of("wan2.1-1.3b", request_of(832, 480, HS_DENSE), cards[i], &r);
        if (cards[i] >= 6) cr_assert_eq(r, 0, "1.3B at 480p, %g GB", cards[i]);
    }
}

/* Calibration and comparison begin densely: what comes later has its place from the start. */
Test(stream, masks_and_kept_streams_of_later_calls_are_planned) {
    int r;
    const hs_attn_policy later[] = {hs_attn_policy_default(HS_XATTENTION), hs_attn_policy_default(HS_SVG2)};
    hs_request q = request_of(832, 480, HS_DENSE);
    const hs_plan dense = plan_of("wan2.1-14b", q, 80, &r);
    const hs_plan sparse = plan_of("wan2.1-14b", request_of(832, 480, HS_SVG2), 80, &r);
    q.later = later;
    q.n_later = 2;
    cr_assert_lt(dense.mask_bytes, sparse.mask_bytes);
    cr_expect_eq(plan_of("wan2.1-14b", q, 80, &r).mask_bytes, sparse.mask_bytes);
    /* what k-means takes of the device's own memory, too */
    cr_expect_eq(dense.own_bytes, 320 << 20);
    cr_expect_eq(sparse.own_bytes,
                 (320 << 20) + 40 * 128 * (later[1].q_clusters + 3 * (int64_t)later[1].k_clusters) + sparse.tokens);
    cr_expect_eq(plan_of("wan2.1-14b", q, 80, &r).own_bytes, sparse.own_bytes);
    q.layer_ranges = 1;
    const hs_plan p = plan_of("wan2.1-14b", q, 80, &r);
    cr_expect_eq(p.act_bytes, dense.act_bytes + 2 * p.tokens * 5120 * 4); /* F32, for both branches */
    cr_expect_eq(p.peak_bytes, sparse.peak_bytes + 2 * p.tokens * 5120 * 4);
    q.later = (hs_attn_policy[]){{.method = HS_SVG2, .q_clusters = -1}};
    plan_of("wan2.1-14b", q, 80, &r);
    cr_expect_eq(r, HS_EINVAL);
}
