/* Block masks against what the published code of XAttention and SVG2 answers, and our corrected default against the
 * same numbers recomputed (masks/README.md: formats, rules of comparison). Inputs are made from hashes, never stored.
 */
#include "engine/mask.h"
#include "golden_masks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- device
 * ---------------------------------------------------------------------------------------------------------- */
static hs_buf new_buf(hs_device *dev, hs_dtype type, int64_t n, const void *host) {
    hs_buf b;
    hs_err err = {0};
    cr_assert_eq(hs_device_alloc(dev, type, n, "mask test", &b, &err), 0, "%s", err.msg);
    if (host)
        hs_upload(dev, b, host);
    else
        hs_zero(dev, b);
    return b;
}

static void *fetch(hs_device *dev, hs_buf b) {
    void *x = malloc((size_t)b.n * hs_dtype_size(b.type));
    cr_assert(x != NULL);
    hs_download(dev, x, b);
    return x;
}

/* The device did what was asked; a device without these operations skips the test. */
static void settle(hs_device *dev) {
    hs_err err = {0};
    const int rc = hs_device_check(dev, &err);
    if (rc == HS_ENOTSUP) cr_skip_test("%s", err.msg);
    cr_assert_eq(rc, 0, "%s", err.msg);
}

static hs_buf ones(hs_device *dev, int heads) {
    const uint8_t one[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    return new_buf(dev, HS_U8, heads, one);
}

static hs_mask mask_new(hs_device *dev, int heads, int rows, int cols) {
    hs_mask m = {.heads = heads, .rows = rows, .cols = cols, .words = hs_mask_words(cols)};
    m.bits = new_buf(dev, HS_I32, (int64_t)heads * rows * m.words, NULL);
    m.dense = new_buf(dev, HS_U8, heads, NULL);
    return m;
}

/* A copy whose bits can be read here. */
static hs_mask mask_fetch(hs_device *dev, const hs_mask *m) {
    hs_mask copy = *m;
    copy.bits.p = fetch(dev, m->bits);
    copy.dense.p = fetch(dev, m->dense);
    return copy;
}

static void mask_drop(hs_device *dev, hs_mask *m, hs_mask *copy) {
    free(copy->bits.p);
    free(copy->dense.p);
    hs_device_free(dev, m->bits);
    hs_device_free(dev, m->dense);
}

/* ---- comparing masks ------------------------------------------------------------------------------------------------
 */
static int stored(const uint8_t *row, int c) {
    return row[c / 8] >> (c % 8) & 1;
}

static void blocks_text(char *ret, size_t size, const uint8_t *bytes, const int32_t *words, int cols) {
    size_t used = 0;
    ret[0] = 0;
    for (int c = 0; c < cols && used + 8 < size; c++)
        if (bytes ? stored(bytes, c) : hs_mask_bit(words, c))
            used += (size_t)snprintf(ret + used, size - used, " %d", c);
}

/* Every row of mine [heads, rows, cols] against the stored one: equal in columns [from, real) and as many of the
 * others, unless the row is marked as one that rounding may decide. Returns the rows that are not equal. */
static int masks_expect(gold *g, const char *key, int from, int real, const hs_mask *mine) {
    char name[160];
    int64_t n, rows;
    const uint8_t *bits = gold_bytes(g, key, &n);
    snprintf(name, sizeof name, "%s.tie", key);
    const uint8_t *tie = gold_bytes(g, name, &rows);
    const int64_t bytes = (mine->cols + 7) / 8;
    int other = 0;
    g->compared++;
    cr_expect(rows == (int64_t)mine->heads * mine->rows && n == rows * bytes, "%s: another shape", key);
    if (rows != (int64_t)mine->heads * mine->rows || n != rows * bytes) return (int)rows;
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *theirs = bits + r * bytes;
        const int32_t *ours = (const int32_t *)mine->bits.p + r * mine->words;
        int differ = 0, number = 0;
        for (int c = 0; c < mine->cols; c++) {
            differ += c >= from && c < real && stored(theirs, c) != hs_mask_bit(ours, c);
            if (c >= from) number += hs_mask_bit(ours, c) - stored(theirs, c);
        }
        other += differ || number;
        if (tie[r] ? abs(number) <= 1 : !differ && !number) continue;
        char want[400], got[400];
        blocks_text(want, sizeof want, theirs, NULL, mine->cols);
        blocks_text(got, sizeof got, NULL, ours, mine->cols);
        cr_expect(0, "%s on %s, head %lld, row %lld (tie %d): keeps%s, published%s", key, g->device,
                  (long long)(r / mine->rows), (long long)(r % mine->rows), tie[r], got, want);
        return other; /* one row says it */
    }
    return other;
}

/* ---- XAttention
 * ------------------------------------------------------------------------------------------------------ */
typedef struct xrig {
    hs_device *dev;
    gold *g;
    const mask_input *in;
    hs_buf q, k, want;
    threshold t[8];
    int sets, nb;
} xrig;

/* Scores and masks of one layout; `pre` + "/score" and "/mask/<tau>" are the keys. padded: compat. from: the first
 * column that must agree. */
static void check_layout(const xrig *x, const char *pre, int stride, int block, int64_t padded, int from) {
    const int heads = x->in->heads, cols = padded ? (int)(padded / block) : x->nb;
    char key[160];
    hs_buf scores = new_buf(x->dev, HS_F32, (int64_t)heads * x->nb * cols, NULL);
    hs_op_block_scores(x->dev, &(hs_block_scores){.q = x->q,
                                                  .k = x->k,
                                                  .want = x->want,
                                                  .scores = scores,
                                                  .ld_q = heads * x->in->d,
                                                  .ld_k = heads * x->in->d,
                                                  .len = x->in->n,
                                                  .padded = padded,
                                                  .heads = heads,
                                                  .head_dim = (int)x->in->d,
                                                  .block = block,
                                                  .stride = stride});
    settle(x->dev);
    float *host = fetch(x->dev, scores);
    snprintf(key, sizeof key, "%s/score", pre);
    gold_compare(x->g, key, host, scores.n, 2); /* 2e-5 on ref */
    free(host);
    for (int i = 0; i < x->sets; i++) {
        hs_mask m = mask_new(x->dev, heads, x->nb, cols);
        hs_buf top_p = new_buf(x->dev, HS_F32, heads, x->t[i].p);
        hs_op_select(x->dev, &(hs_select){.scores = scores,
                                          .top_p = top_p,
                                          .want = x->want,
                                          .cols = cols,
                                          .at_least = 1,
                                          .rule = padded ? HS_SELECT_BLOCK0 : 0,
                                          .mask = &m});
        settle(x->dev);
        hs_mask mine = mask_fetch(x->dev, &m);
        snprintf(key, sizeof key, "%s/mask/%s", pre, x->t[i].name);
        masks_expect(x->g, key, from, x->nb, &mine);
        mask_drop(x->dev, &m, &mine);
        hs_device_free(x->dev, top_p);
    }
    hs_device_free(x->dev, scores);
}

static int32_t first_int(gold *g, const char *key) {
    const hs_st_tensor *t = hs_st_find(g->st, key);
    int32_t v;
    cr_assert(t && t->dtype == HS_I32, "no golden tensor '%s'", key);
    memcpy(&v, t->data, sizeof v);
    return v;
}

/* compat: as published. Otherwise ours: padding masked, block 0 not forced; where nothing was padded the published
 * scores are ours, and the published masks but for block 0. */
static void xattention_input(hs_device *dev, gold *g, const char *name, const cJSON *layouts, int compat) {
    mask_input in = masks_input(name);
    const int64_t n = in.heads * in.n * in.d;
    xrig x = {.dev = dev, .g = g, .in = &in};
    x.q = new_buf(dev, HS_F32, n, in.q);
    x.k = new_buf(dev, HS_F32, n, in.k);
    x.want = ones(dev, in.heads);
    x.sets = masks_thresholds(masks_item(masks_json("cases.json"), "xattention"), in.heads, x.t);
    for (const cJSON *s = gold_first(layouts); s; s = s->next) {
        const int stride = s->child->valueint, block = s->child->next->valueint, chunk = s->child->next->next->valueint;
        char pre[96], key[128];
        snprintf(pre, sizeof pre, "%s/s%db%dc%d", in.name, stride, block, chunk);
        snprintf(key, sizeof key, "%s/length", pre);
        const int64_t length = first_int(g, key);
        x.nb = (int)((in.n + block - 1) / block);
        if (compat)
            check_layout(&x, pre, stride, block, length, 0);
        else if (length > in.n) {
            snprintf(key, sizeof key, "%s/masked", pre);
            check_layout(&x, key, stride, block, 0, 0);
        } else
            check_layout(&x, pre, stride, block, 0, 1);
    }
    hs_device_free(dev, x.q);
    hs_device_free(dev, x.k);
    hs_device_free(dev, x.want);
    masks_input_free(&in);
}

static void xattention(int which, int compat) {
    hs_device *dev = gold_open(which);
    gold g = gold_load("../masks/data/xattention", &gold_devices[which]);
    const cJSON *group = masks_item(masks_json("cases.json"), "xattention");
    for (const cJSON *l = gold_first(masks_item(group, "layouts")); l; l = l->next)
        xattention_input(dev, &g, l->string, l, compat);
    gold_close(&g);
    g = gold_load("../masks/data/demo", &gold_devices[which]);
    xattention_input(dev, &g, "demo", masks_item(group, "demo_layouts"), compat);
    gold_close(&g);
    hs_device_close(dev);
}
Test(masks, xattention_published_ref) {
    xattention(GOLD_REF, 1);
}
Test(masks, xattention_published_cpu_fp32) {
    xattention(GOLD_CPU_FP32, 1);
}
Test(masks, xattention_default_ref) {
    xattention(GOLD_REF, 0);
}
Test(masks, xattention_default_cpu_fp32) {
    xattention(GOLD_CPU_FP32, 0);
}

/* ---- SVG2
 * -------------------------------------------------------------------------------------------------------------- */
/* One side of a run: k-means of q or k. */
typedef struct side {
    hs_buf x, centroids, label, order, start;
    int clusters;
    int32_t *host_start;
} side;

static void side_free(hs_device *dev, side *s) {
    hs_device_free(dev, s->x);
    hs_device_free(dev, s->centroids);
    hs_device_free(dev, s->label);
    hs_device_free(dev, s->order);
    hs_device_free(dev, s->start);
    free(s->host_start);
}

/* The stored tokens [heads, clusters]; -1 = the head's bias vector times `stale`. */
static float *start_centroids(gold *g, const cJSON *run, const mask_input *in, const float *x, const char *key,
                              int clusters) {
    const hs_st_tensor *t = hs_st_find(g->st, key);
    float *c = malloc((size_t)(in->heads * clusters * in->d) * sizeof *c);
    cr_assert(c && t && t->dtype == HS_I32 && t->numel == in->heads * clusters, "no golden tensor '%s'", key);
    for (int64_t i = 0; i < t->numel; i++) {
        const int h = (int)(i / clusters);
        int32_t token;
        memcpy(&token, (const char *)t->data + 4 * i, 4);
        for (int64_t e = 0; e < in->d; e++)
            c[i * in->d + e] =
                token >= 0
                    ? x[(token * in->heads + h) * in->d + e]
                    : (float)(masks_number(run, "stale") * masks_gauss(masks_seed(in->name, "bias"), h * in->d + e));
    }
    return c;
}

/* order: the tokens grouped by label, in token order within a group; start: where the groups begin. */
static void expect_grouped(const char *key, const mask_input *in, const side *s, const int32_t *label,
                           const int32_t *order) {
    for (int h = 0; h < in->heads; h++, label += in->n, order += in->n) {
        const int32_t *start = s->host_start + h * (s->clusters + 1);
        int wrong = start[0] != 0 || start[s->clusters] != in->n;
        for (int64_t p = 0; p < in->n && !wrong; p++) {
            wrong = order[p] < 0 || order[p] >= in->n;
            if (wrong) break;
            const int32_t l = label[order[p]];
            wrong = l < 0 || l >= s->clusters || p < start[l] || p >= start[l + 1];
            if (p > start[l]) wrong |= order[p - 1] >= order[p];
        }
        cr_expect(!wrong, "%s, head %d: tokens are not grouped by label in token order", key, h);
    }
}

static void compare_labels(gold *g, const char *pre, const mask_input *in, const int32_t *label, const side *s) {
    char key[128];
    int64_t n;
    snprintf(key, sizeof key, "%s_label", pre);
    const uint8_t *theirs = gold_bytes(g, key, &n);
    int64_t differ = 0;
    for (int64_t i = 0; i < n; i++) differ += theirs[i] != label[i];
    cr_expect(n == in->heads * in->n && !differ, "%s on %s: %lld of %lld labels differ", key, g->device,
              (long long)differ, (long long)n);
    snprintf(key, sizeof key, "%s_size", pre);
    const hs_st_tensor *t = hs_st_find(g->st, key);
    cr_assert(t && t->numel == in->heads * s->clusters, "no golden tensor '%s'", key);
    for (int64_t i = 0; i < t->numel; i++) {
        const int32_t *start = s->host_start + i / s->clusters * (s->clusters + 1) + i % s->clusters;
        int32_t size;
        memcpy(&size, (const char *)t->data + 4 * i, 4);
        cr_expect_eq(start[1] - start[0], size, "%s[%lld] on %s", key, (long long)i, g->device);
    }
    g->compared++;
}

/* `rounds` of k-means from the stored start, as published. Labels after one round are those of the start (it0). */
static side cluster(hs_device *dev, gold *g, const cJSON *run, const mask_input *in, char which, int rounds) {
    const float *x = which == 'q' ? in->q : in->k;
    side s = {.clusters = (int)gold_num(run, which == 'q' ? "qc" : "kc")};
    const int64_t tokens = in->heads * in->n;
    char key[128], pre[96];
    snprintf(key, sizeof key, "%s/init_%c", gold_str(run, "name"), which);
    float *start = start_centroids(g, run, in, x, key, s.clusters);
    s.x = new_buf(dev, HS_F32, tokens * in->d, x);
    s.centroids = new_buf(dev, HS_F32, in->heads * s.clusters * in->d, start);
    s.label = new_buf(dev, HS_I32, tokens, NULL);
    s.order = new_buf(dev, HS_I32, tokens, NULL);
    s.start = new_buf(dev, HS_I32, in->heads * (s.clusters + 1), NULL);
    hs_buf want = ones(dev, in->heads);
    hs_op_cluster(dev, &(hs_cluster){.x = s.x,
                                     .centroids = s.centroids,
                                     .want = want,
                                     .label = s.label,
                                     .order = s.order,
                                     .start = s.start,
                                     .len = in->n,
                                     .ld = in->heads * in->d,
                                     .heads = in->heads,
                                     .head_dim = (int)in->d,
                                     .clusters = s.clusters,
                                     .iters_first = 1,
                                     .iters_next = rounds,
                                     .compat = 1});
    settle(dev);
    hs_device_free(dev, want);
    free(start);
    s.host_start = fetch(dev, s.start);
    int32_t *label = fetch(dev, s.label), *order = fetch(dev, s.order);
    float *c = fetch(dev, s.centroids);
    snprintf(pre, sizeof pre, "%s/it%d/%c", gold_str(run, "name"), rounds, which);
    expect_grouped(pre, in, &s, label, order);
    compare_labels(g, pre, in, label, &s);
    snprintf(key, sizeof key, "%s_centroid", pre);
    gold_compare(g, key, c, s.centroids.n, 2);
    if (rounds == 1) {
        snprintf(pre, sizeof pre, "%s/it0/%c", gold_str(run, "name"), which);
        compare_labels(g, pre, in, label, &s);
    }
    free(label);
    free(order);
    free(c);
    return s;
}

/* Attention under the map against the published one, back in the original order of tokens. */
static void attend(hs_device *dev, gold *g, const cJSON *run, const mask_input *in, const hs_mask *m, const side *q,
                   const side *k) {
    const int64_t n = in->heads * in->n * in->d, ld = in->heads * in->d;
    char key[96];
    hs_buf v = new_buf(dev, HS_F32, n, in->v), out = new_buf(dev, HS_F32, n, NULL);
    hs_op_attention(dev, &(hs_attention){.q = q->x,
                                         .k = k->x,
                                         .v = v,
                                         .out = out,
                                         .ld_q = ld,
                                         .ld_k = ld,
                                         .ld_v = ld,
                                         .ld_out = ld,
                                         .len_q = in->n,
                                         .len_k = in->n,
                                         .heads = in->heads,
                                         .head_dim = (int)in->d,
                                         .scale = 1 / sqrtf((float)in->d),
                                         .mask = m});
    settle(dev);
    float *host = fetch(dev, out), *turned = malloc((size_t)n * sizeof *turned);
    cr_assert(turned != NULL);
    for (int64_t i = 0; i < n; i++) {
        const int64_t h = i / (in->n * in->d), t = i / in->d % in->n;
        turned[i] = host[t * ld + h * in->d + i % in->d];
    }
    snprintf(key, sizeof key, "%s/it2/out", gold_str(run, "name"));
    gold_compare(g, key, turned, n, 1);
    free(host);
    free(turned);
    hs_device_free(dev, v);
    hs_device_free(dev, out);
}

static void svg2_maps(hs_device *dev, gold *g, const cJSON *run, const mask_input *in, const side *q, const side *k,
                      int it) {
    const cJSON *group = masks_item(masks_json("cases.json"), "svg2");
    const int heads = in->heads;
    char key[128];
    threshold t[8];
    const int sets = masks_thresholds(group, heads, t);
    hs_buf want = ones(dev, heads), scores = new_buf(dev, HS_F32, (int64_t)heads * q->clusters * k->clusters, NULL);
    hs_op_centroid_scores(dev, &(hs_centroid_scores){.cq = q->centroids,
                                                     .ck = k->centroids,
                                                     .start = k->start,
                                                     .want = want,
                                                     .scores = scores,
                                                     .len = in->n,
                                                     .heads = heads,
                                                     .rows = q->clusters,
                                                     .cols = k->clusters,
                                                     .head_dim = (int)in->d,
                                                     .compat = 1,
                                                     .scale = 1 / sqrtf((float)in->d)});
    settle(dev);
    float *prob = fetch(dev, scores);
    snprintf(key, sizeof key, "%s/it%d/prob", gold_str(run, "name"), it);
    gold_compare(g, key, prob, scores.n, 10);
    free(prob);
    for (const cJSON *ratio = gold_first(masks_item(group, "min_ratios")); ratio; ratio = ratio->next)
        for (int i = 0; i < sets; i++) {
            hs_mask m = mask_new(dev, heads, q->clusters, k->clusters);
            hs_buf top_p = new_buf(dev, HS_F32, heads, t[i].p);
            hs_op_select(dev, &(hs_select){.scores = scores,
                                           .top_p = top_p,
                                           .want = want,
                                           .cols = k->clusters,
                                           .at_least = (int)(ratio->valuedouble * k->clusters),
                                           .rule = HS_SELECT_UPTO,
                                           .mask = &m});
            settle(dev);
            m.len_q = m.len_k = in->n;
            m.q_order = q->order;
            m.k_order = k->order;
            m.q_start = q->start;
            m.k_start = k->start;
            hs_mask mine = mask_fetch(dev, &m);
            mine.q_start.p = q->host_start;
            mine.k_start.p = k->host_start;
            snprintf(key, sizeof key, "%s/it%d/map/p%.15sr%g", gold_str(run, "name"), it, t[i].name,
                     ratio->valuedouble);
            const int other = masks_expect(g, key, 0, k->clusters, &mine);
            int64_t count;
            strcat(key, ".density");
            const float *density = gold_plain(g, key, &count);
            for (int h = 0; h < heads && !other; h++)
                cr_expect_float_eq(hs_mask_density(&mine, h), density[h], 1e-6,
                                   "%s of head %d on %s: %.7g, published %.7g", key, h, g->device,
                                   hs_mask_density(&mine, h), density[h]);
            if (it == 2 && ratio->valuedouble == 0 && masks_number(run, "attend") > 0 &&
                masks_number(run, "attend") == strtod(t[i].name, NULL))
                attend(dev, g, run, in, &m, q, k);
            mask_drop(dev, &m, &mine);
            hs_device_free(dev, top_p);
        }
    hs_device_free(dev, want);
    hs_device_free(dev, scores);
}

/* k-means, scores from its centroids, maps, densities, one attention: the whole chain, as published. */
static void svg2_run(hs_device *dev, gold *g, const cJSON *run) {
    mask_input in = masks_input(gold_str(run, "input"));
    const cJSON *iterations = masks_item(masks_item(masks_json("cases.json"), "svg2"), "iterations");
    for (const cJSON *it = gold_first(iterations); it; it = it->next) {
        if (it->valueint < 1) continue;
        side q = cluster(dev, g, run, &in, 'q', it->valueint), k = cluster(dev, g, run, &in, 'k', it->valueint);
        if (it->valueint > 1) svg2_maps(dev, g, run, &in, &q, &k, it->valueint);
        side_free(dev, &q);
        side_free(dev, &k);
    }
    masks_input_free(&in);
}

static void svg2(int which) {
    hs_device *dev = gold_open(which);
    gold g = gold_load("../masks/data/svg2", &gold_devices[which]);
    const cJSON *runs = masks_item(masks_item(masks_json("cases.json"), "svg2"), "runs");
    for (const cJSON *run = gold_first(runs); run; run = run->next) svg2_run(dev, &g, run);
    gold_close(&g);
    g = gold_load("../masks/data/demo", &gold_devices[which]);
    svg2_run(dev, &g, masks_item(masks_item(masks_json("manifest.json"), "demo"), "run"));
    gold_close(&g);
    hs_device_close(dev);
}
Test(masks, svg2_ref) {
    svg2(GOLD_REF);
}
Test(masks, svg2_cpu_fp32) {
    svg2(GOLD_CPU_FP32);
}

/* ---- selection alone
 * --------------------------------------------------------------------------------------------------- */
/* Exact numbers, whose equal entries may be kept in any order: how many are kept, and their sum. */
static void rows_expect(gold *g, const char *key, const cJSON *row, int r, float p, int at_least, int rule) {
    const int cols = cJSON_GetArraySize(row);
    float score[8];
    double sum = 0, mine = 0, theirs = 0;
    int32_t order[8], bits[1];
    int64_t bytes;
    int number = 0;
    cr_assert_eq(cols, 8);
    const uint8_t *stored_rows = gold_bytes(g, key, &bytes);
    for (int c = 0; c < cols; c++) sum += cJSON_GetArrayItem(row, c)->valuedouble;
    for (int c = 0; c < cols; c++) {
        score[c] = (float)cJSON_GetArrayItem(row, c)->valuedouble;
        if (rule == HS_SELECT_UPTO) score[c] /= sum > 0 ? (float)sum : 1;
    }
    const int kept = hs_mask_select(score, cols, p, at_least, rule, order, bits);
    for (int c = 0; c < cols; c++) {
        mine += hs_mask_bit(bits, c) * score[c];
        theirs += stored(stored_rows + r, c) * score[c];
        number += stored(stored_rows + r, c);
    }
    cr_expect(kept == number && mine == theirs, "%s, row %d: keeps %d of mass %g, published %d of %g", key, r, kept,
              mine, number, theirs);
    g->compared++;
}

Test(masks, rows) {
    const cJSON *rows = masks_item(masks_json("cases.json"), "rows");
    gold x = gold_load("../masks/data/xattention", NULL), s = gold_load("../masks/data/svg2", NULL);
    for (const cJSON *t = gold_first(masks_item(rows, "thresholds")); t; t = t->next) {
        int r = 0;
        for (const cJSON *row = gold_first(masks_item(rows, "values")); row; row = row->next, r++) {
            char key[64];
            snprintf(key, sizeof key, "rows/mask/%g", t->valuedouble);
            rows_expect(&x, key, row, r, (float)t->valuedouble, 1, HS_SELECT_BLOCK0);
            for (const cJSON *ratio = gold_first(masks_item(rows, "min_ratios")); ratio; ratio = ratio->next) {
                snprintf(key, sizeof key, "rows/map/p%gr%g", t->valuedouble, ratio->valuedouble);
                rows_expect(&s, key, row, r, (float)t->valuedouble, (int)(ratio->valuedouble * 8), HS_SELECT_UPTO);
            }
        }
    }
    gold_close(&x);
    gold_close(&s);
}
