/* Cases of k-means: operands centroids, label, order, start, x, want; with `beside`, the number of its clusters,
 * another side's first four, of the same tokens in the same call. `skip` of a line is a set of heads that want nothing,
 * `first` of those that start from tokens. Tokens lie in runs around a point each, so that labels do not hang on
 * rounding, or are `loose`: then one round, since labels that rounding decides decide all that follows. */
#include "check.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void list(void) {
    emit("n=200 heads=2 D=64 clusters=5 rounds=3");
    emit("n=200 heads=3 D=128 clusters=9 rounds=2 first=5 pad=8"); /* from tokens; from centroids */
    emit("n=200 heads=3 D=64 clusters=7 rounds=2 first=1 skip=2");
    emit("n=1 heads=1 D=64 clusters=1 rounds=2");
    emit("n=65 heads=2 D=64 clusters=1 rounds=2 first=3");
    emit("n=6 heads=2 D=64 clusters=9 rounds=3 first=3"); /* fewer tokens than clusters: equal starts, empty clusters */
    emit("n=10 heads=2 D=64 clusters=300 rounds=2 first=3"); /* equal starts far apart */
    emit("n=1300 heads=3 D=40 clusters=129 rounds=3 first=5 skip=2 pad=8");
    emit("n=1290 heads=3 D=128 clusters=129 rounds=2 first=5 skip=2 pad=8"); /* several tiles each way */
    emit("n=2100 heads=2 D=128 clusters=300 rounds=1 first=1 loose=1 pad=264");
    emit("n=700 heads=4 D=128 clusters=50 rounds=1 first=10 loose=1 skip=1");
    emit("n=600 heads=2 D=64 clusters=128 rounds=1 loose=1"); /* tiles of 128 */
    emit("n=600 heads=2 D=64 clusters=104 rounds=1 loose=1"); /* of 104 */
    emit("n=1000 heads=2 D=128 clusters=205 rounds=1 loose=1 beside=40");
    /* several tiles a block */
    emit("n=3000 heads=12 D=128 clusters=20 rounds=1 beside=130 first=1365 skip=34 loose=1");
    emit("n=200 heads=3 D=64 clusters=5 rounds=3 beside=7 first=5");
    emit("n=300 heads=40 D=128 clusters=6 rounds=2 beside=9 first=3 skip=34");
    emit("n=300 heads=2 D=128 clusters=20 rounds=30 first=1 beside=9"); /* one side stops long before the other */
    emit("n=250 heads=3 D=40 clusters=4 rounds=2 beside=3 skip=2 first=1");
    emit("n=250 heads=3 D=40 clusters=4 rounds=2 beside=3 skip=7");
    emit("n=500 heads=3 D=128 clusters=9 rounds=2 skip=7");
    emit("n=300 heads=2 D=128 clusters=20 rounds=30 first=3");          /* long enough to stop by itself */
    emit("n=300 heads=2 D=128 clusters=20 rounds=30 first=3 compat=1"); /* ... both heads together */
    emit("n=300 heads=3 D=64 clusters=6 rounds=3 first=5");             /* from tokens: every round counts */
    emit("n=900 heads=3 D=128 clusters=60 rounds=4 first=2 skip=1");
    emit("n=100 heads=2 D=64 clusters=4 rounds=5 tiny=1 compat=0"); /* head 0 stops at once, head 1 goes on */
    emit("n=100 heads=2 D=64 clusters=4 rounds=5 tiny=1 compat=1");
}

static operand *add_side(test *t, int64_t k) {
    const int64_t n = get(t, "n"), heads = get(t, "heads");
    operand *c = OPERAND(t, "centroids", INOUT, F32, 1, heads, k, get(t, "D"));
    OPERAND(t, "label", OUT, I32, 0, heads, n);
    OPERAND(t, "order", OUT, I32, 0, heads, n);
    OPERAND(t, "start", OUT, I32, 0, heads, k + 1);
    return c;
}
/* The first operand of a side. */
static operand *side_at(const test *t, int n) {
    return (operand *)&t->o[n ? 6 : 0];
}
static int sides(const test *t) {
    return get(t, "beside") ? 2 : 1;
}

/* Starts of heads with want 1: near a run of tokens; of cluster 2 far from all. */
static void start_near(test *t, operand *c) {
    const int64_t heads = c->dim[0], k = c->dim[1], D = c->dim[2];
    for (int64_t i = 0; i < c->n && get(t, "n") >= k && !get(t, "loose"); i++) {
        const int64_t h = i / (k * D), run = i / D % k;
        const double near = noise(t, 90, run * heads * D + h * D + i % D);
        c->data[i] = (float)(run == 2 ? 20 + near : near + 0.1 * (double)c->data[i]);
        if (get(t, "tiny") && h == 0) c->data[i] *= 1e-5f;
    }
}

static void setup(test *t) {
    const int64_t n = get(t, "n"), heads = get(t, "heads"), D = get(t, "D"), k = get(t, "clusters");
    add_side(t, k);
    operand *x = OPERAND(t, "x", IN, ACT, 0.25, n, heads * D + get(t, "pad"));
    add_want(t, (int)heads);
    for (int64_t i = 0; i < n; i++) /* runs of tokens around one point each: labels do not hang on rounding */
        for (int64_t e = 0; e < heads * D; e++) {
            const int64_t run = i * k / n;
            float *at = &x->data[i * x->dim[1] + e];
            if (!get(t, "loose")) *at = to_type(t, ACT, (double)*at + noise(t, 90, run * heads * D + e));
            if (get(t, "tiny") && e < D) *at = to_type(t, ACT, (double)*at * 1e-5);
        }
    start_near(t, side_at(t, 0));
    if (sides(t) > 1) start_near(t, add_side(t, get(t, "beside")));
}

static hs_cluster view(const test *t, const hs_buf *b, int n) {
    const hs_buf *of = b + (n ? 6 : 0);
    return (hs_cluster){.centroids = of[0],
                        .label = of[1],
                        .order = of[2],
                        .start = of[3],
                        .x = b[4],
                        .want = b[5],
                        .len = get(t, "n"),
                        .ld = t->o[4].dim[1],
                        .heads = (int)get(t, "heads"),
                        .head_dim = (int)get(t, "D"),
                        .clusters = (int)get(t, n ? "beside" : "clusters"),
                        .iters_first = (int)get(t, "rounds") + (get(t, "loose") ? 0 : n),
                        .iters_next = (int)get(t, "rounds") / 2 + 1,
                        .compat = (int)get(t, "compat"),
                        .seed = 7 + (uint64_t)n};
}

static void call(const test *t, const side *s) {
    const hs_cluster other = view(t, s->b, 1);
    hs_cluster a = view(t, s->b, 0);
    if (sides(t) > 1) a.beside = &other;
    hs_op_cluster(s->dev, &a);
}

/* One head's state in the plain loop. */
typedef struct means {
    float *c, *next; /* [clusters, D] */
    int *label, *size;
    int rounds;
    double most; /* how far a centroid went */
} means;

/* Assignment and what the update would be; how far the furthest centroid would go. */
static double plain_round(const test *t, const hs_cluster *a, int h, means *m) {
    const int D = a->head_dim;
    const float *x = t->o[4].data + (int64_t)h * D;
    double most = 0;
    memcpy(m->next, m->c, (size_t)(a->clusters * D) * sizeof *m->c);
    for (int k = 0; k < a->clusters; k++) m->size[k] = 0;
    for (int64_t i = 0; i < a->len; i++) {
        double least = INFINITY;
        for (int k = 0; k < a->clusters; k++) {
            double d = 0; /* so that near ties go as in ref */
            for (int e = 0; e < D; e++) {
                const double apart = (double)x[i * a->ld + e] - m->c[k * D + e];
                d += apart * apart;
            }
            if (d < least) least = d, m->label[i] = k;
        }
        float *sum = m->next + m->label[i] * D;
        if (!m->size[m->label[i]]++) memset(sum, 0, (size_t)D * sizeof *sum);
        for (int e = 0; e < D; e++) sum[e] += x[i * a->ld + e];
    }
    for (int k = 0; k < a->clusters; k++) {
        double move = 0;
        for (int e = 0; e < D; e++) {
            if (m->size[k]) m->next[k * D + e] /= (float)m->size[k];
            move += pow((double)m->next[k * D + e] - m->c[k * D + e], 2);
        }
        most = fmax(most, sqrt(move));
    }
    return most;
}

static void put_head(test *t, operand *o, const hs_cluster *a, int h, const means *m) {
    const int D = a->head_dim;
    int at = 0;
    for (int64_t i = 0; i < (int64_t)a->clusters * D; i++) {
        /* of the members' mean; an empty cluster keeps its centroid, which may be the mean of an earlier round */
        double mag = m->size[i / D] ? 0 : fabs((double)m->c[i]);
        for (int64_t x = 0; x < a->len; x++)
            if (m->label[x] == i / D) mag += fabs((double)t->o[4].data[x * a->ld + h * D + i % D]) / m->size[i / D];
        put(t, o, (int64_t)h * a->clusters * D + i, m->c[i], mag, mag);
    }
    for (int k = 0; k < a->clusters; k++) {
        put(t, &o[3], (int64_t)h * (a->clusters + 1) + k, at, 0, 0);
        for (int64_t i = 0; i < a->len; i++)
            if (m->label[i] == k) put(t, &o[2], h * a->len + at++, (double)i, 0, 0);
    }
    put(t, &o[3], (int64_t)h * (a->clusters + 1) + a->clusters, at, 0, 0);
    for (int64_t i = 0; i < a->len; i++) put(t, &o[1], h * a->len + i, m->label[i], 0, 0);
}

static void plain_side(test *t, operand *o, hs_cluster a) {
    const size_t size = (size_t)(a.clusters * a.head_dim);
    means *m = need_memory((size_t)a.heads, sizeof *m);
    for (int h = 0; h < a.heads; h++) {
        const int want = (int)t->o[5].data[h];
        m[h] = (means){need_memory(size, sizeof(float)),
                       need_memory(size, sizeof(float)),
                       need_memory((size_t)a.len, sizeof(int)),
                       need_memory((size_t)a.clusters, sizeof(int)),
                       want == 2 ? a.iters_first
                       : want    ? a.iters_next
                                 : 0,
                       0};
        memcpy(m[h].c, o->data + (size_t)h * size, size * sizeof(float));
        for (int k = 0; k < a.clusters && want == 2; k++)
            for (int e = 0; e < a.head_dim; e++)
                m[h].c[k * a.head_dim + e] =
                    t->o[4].data[hs_cluster_token(a.seed, h, k, a.clusters, a.len) * a.ld + h * a.head_dim + e];
    }
    for (int round = 0; round < 1000; round++) {
        double all = 0;
        for (int h = 0; h < a.heads; h++) {
            m[h].most = round < m[h].rounds ? plain_round(t, &a, h, &m[h]) : 0;
            all = fmax(all, m[h].most);
        }
        for (int h = 0; h < a.heads; h++) {
            if (round >= m[h].rounds) continue;
            if ((a.compat ? all : m[h].most) < 1e-4) {
                m[h].rounds = 0;
                continue;
            }
            memcpy(m[h].c, m[h].next, size * sizeof(float));
        }
    }
    for (int h = 0; h < a.heads; h++) {
        if (t->o[5].data[h] != 0) put_head(t, o, &a, h, &m[h]);
        free(m[h].c), free(m[h].next), free(m[h].label), free(m[h].size);
    }
    free(m);
}

static void plain(test *t) {
    for (int s = 0; s < sides(t); s++) plain_side(t, side_at(t, s), view(t, (hs_buf[MAX_OPERANDS]){{0}}, s));
}

/* Where centroid k started, or what remains of it if it is empty. */
static float start_at(const test *t, const operand *o, const hs_cluster *a, int h, int k, int e) {
    return t->o[5].data[h] > 1
               ? t->o[4]
                     .data[hs_cluster_token(a->seed, h, k, a->clusters, a->len) * a->ld + h * (int64_t)a->head_dim + e]
               : o->data[((int64_t)h * a->clusters + k) * a->head_dim + e];
}

/* Squared distance of token i to centroid k, as it is or rounded to the type of x; and the squares of both. */
static double apart(const test *t, const operand *o, const hs_cluster *a, int h, int64_t i, int k, int rounded,
                    double *squares) {
    const float *x = t->o[4].data + i * a->ld + (int64_t)h * a->head_dim;
    double sum = 0;
    *squares = 0;
    for (int e = 0; e < a->head_dim; e++) {
        const double c = start_at(t, o, a, h, k, e), kept = rounded ? to_type(t, ACT, c) : c;
        sum += (x[e] - kept) * (x[e] - kept);
        *squares += (double)x[e] * x[e] + kept * kept;
    }
    return sum;
}

/* Is this centroid as near as any other but for the rounding of sums, and of what a kernel drops to number its columns?
 */
static int nearest(const test *t, const operand *o, const hs_cluster *a, int h, int64_t i, int label, int rounded) {
    double squares, least = INFINITY, scale = 0;
    for (int k = 0; k < a->clusters; k++) {
        least = fmin(least, apart(t, o, a, h, i, k, rounded, &squares));
        scale = fmax(scale, squares);
    }
    return apart(t, o, a, h, i, label, rounded, &squares) <= least * (1 + 0x1p-16) + scale * 0x1p-20;
}

/* Means by the labels of m: in double for ref, in float for the plain loop. */
static void means_by_labels(const test *t, operand *o, const hs_cluster *a, int h, means *m) {
    for (int k = 0; k < a->clusters; k++)
        for (int e = 0; e < a->head_dim; e++) {
            double sum = 0;
            float plain = 0;
            for (int64_t i = 0; i < a->len; i++)
                if (m->label[i] == k) {
                    sum += t->o[4].data[i * a->ld + (int64_t)h * a->head_dim + e];
                    plain += t->o[4].data[i * a->ld + (int64_t)h * a->head_dim + e];
                }
            const float was = start_at(t, o, a, h, k, e);
            o->ref[((int64_t)h * a->clusters + k) * a->head_dim + e] = m->size[k] ? (float)(sum / m->size[k]) : was;
            m->c[(int64_t)k * a->head_dim + e] = m->size[k] ? plain / (float)m->size[k] : was;
        }
}

static void accept_side(test *t, operand *o, hs_cluster a, const float *got) {
    means m = {need_memory((size_t)a.clusters * (size_t)a.head_dim, sizeof(float)), NULL,
               need_memory((size_t)a.len, sizeof(int)), need_memory((size_t)a.clusters, sizeof(int)), 1};
    for (int h = 0; h < a.heads; h++) {
        int right = t->o[5].data[h] != 0, differs = 0;
        memset(m.size, 0, (size_t)a.clusters * sizeof *m.size);
        for (int64_t i = 0; i < a.len && right; i++) {
            const float label = got[h * a.len + i];
            m.label[i] = (int)label;
            right = label >= 0 && label < (float)a.clusters &&
                    (nearest(t, o, &a, h, i, m.label[i], 0) || nearest(t, o, &a, h, i, m.label[i], 1));
            if (right) m.size[m.label[i]]++;
            differs |= label != o[1].ref[h * a.len + i];
        }
        if (!right || !differs) continue;
        means_by_labels(t, o, &a, h, &m);
        put_head(t, o, &a, h, &m);
        for (int k = 1; k < 4; k++) {
            const int64_t each = k < 3 ? a.len : a.clusters + 1;
            memcpy(o[k].ref + h * each, o[k].plain + h * each, (size_t)each * sizeof(float));
        }
    }
    free(m.c), free(m.label), free(m.size);
}

/* Devices may compare tokens with centroids rounded to the type of x. Their labels stand if no centroid is nearer; the
 * rest is then held against them. */
static void accept(test *t, float *const *got) {
    for (int s = 0; s < sides(t) && get(t, "loose"); s++)
        accept_side(t, side_at(t, s), view(t, (hs_buf[MAX_OPERANDS]){{0}}, s), got[s ? 7 : 1]);
}

static const char *const bench[] = {"cluster n=2304 heads=3 D=128 clusters=48 rounds=2",
                                    "cluster n=2304 heads=3 D=128 clusters=16 rounds=2", 0};

const operation op_cluster = {"cluster", list, setup, call, plain, NULL, bench, accept};
