/* Attention of the fast CPU backend: who computes which rows against which keys, and in what layout.
 *
 * The unit of work is a block of queries of one head that share one row of the mask. It walks that row's keys
 * (attn_walk.h), KEYS at a time: logits of the block (gemm), online softmax, probabilities times values (gemm), with
 * maximum, sum and numerator of every row in fp32. An N x N matrix never exists. Dense attention is a mask of one
 * column.
 *
 * Keys and values are packed once per call and head into panels (attn_kernels.h) and shared by all units, in the order
 * of the mask's columns: clusters are gathered here, once, so that whatever is kept is a run of neighbours. Runs are
 * used where they lie as far as they fill tiles; ends and small clusters are copied together, panel to panel, into full
 * tiles of their own. Means that stand for dropped blocks are one more run of packed keys, walked with the row's bits
 * inverted.
 *
 * The room for packed keys is fixed when the device is opened, so that calls allocate nothing: as many heads as fit are
 * packed together, and where not even one fits its keys are packed segment by segment. Pages that are never used cost
 * nothing.
 *
 * Every row's result depends on its own list of keys only: not on threads, block height or other rows.
 */
#include "cpu/attention.h"
#include "cpu/attn_pack.h"
#include "cpu/attn_walk.h"

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) {
    return 0;
}
static int omp_get_num_threads(void) {
    return 1;
}
#endif

enum {
    ROWS = 128,     /* most query rows of a block */
    MIN_ROWS = 32,  /* fewest, where blocks are lowered to give every thread some */
    MAX_DIM = 1024, /* the most backend.c lets through */
    WIDE = 512,     /* head size up to which a block has ROWS rows */
};
/* Words for packed keys and values: one head of 75,600 keys (720p, 81 frames) of 128 in fp32. Tests make it small. */
#ifndef HS_ATTN_PACK_WORDS
#define HS_ATTN_PACK_WORDS (80 << 18)
#endif
static const int64_t PACK_WORDS = HS_ATTN_PACK_WORDS;
_Static_assert(HS_ATTN_PACK_WORDS >= 2 * KEYS * MAX_DIM, "one step of keys and values must fit");
static const float LOG2_E = 1.44269504f;

typedef struct scratch {
    float q[ROWS * WIDE];                       /* packed queries, words [rows, depth] */
    float o[ROWS * WIDE];                       /* [rows, dim] numerator */
    float s[ROWS * KEYS];                       /* logits, then probabilities as words */
    float k[KEYS * MAX_DIM], v[KEYS * MAX_DIM]; /* keys and values of a step that were copied together */
    float tmp[HS_ATTN_PANEL * MAX_DIM];         /* rows while packing */
    float max[ROWS], sum[ROWS];
} scratch;

typedef struct hs_cpu_attn {
    const hs_attn_kernels *kernels, *fp32;
    float *pack;    /* [PACK_WORDS] */
    scratch *local; /* [threads] */
} hs_cpu_attn;

/* One call, with what follows from its sizes. */
typedef struct job {
    const hs_attention *a;
    const hs_attn_kernels *kn;
    int dim;       /* head size with padding */
    int64_t depth; /* words of a query or key */
    int per_word;  /* values in a word */
    int rows;      /* most query rows of a unit */
    int means;     /* packed means per head: the mask's columns with compensation, else 0 */
    float *pack;
} job;

/* Vectors of one head that are packed: vector i is at i * ld of x. */
typedef struct vectors {
    hs_buf x;
    int64_t ld, len;
    const int32_t *order; /* as in axis */
} vectors;

/* Places [begin, end) of the k axis of one head, or all of its means, packed: keys in panels of 16 keys [depth][16],
 * values in panels of 16 columns [keys / per_word][16]. begin is a multiple of KEYS. */
typedef struct segment {
    int64_t begin, end;
    int means;
    float *k, *v;
    int64_t ld_v; /* words from one panel of values to the next */
} segment;

/* Words that `keys` keys and values of one head take. */
static int64_t packed_words(const job *j, int64_t keys) {
    return hs_round_up(keys, HS_ATTN_PAD) * 2 * (j->dim / j->per_word);
}

static segment segment_at(const job *j, int64_t begin, int64_t end, int means, float *at) {
    int64_t keys = hs_round_up(end - begin, HS_ATTN_PAD);
    return (segment){begin, end, means, at, at + keys * j->depth, keys / j->per_word * HS_ATTN_PANEL};
}

static int is_dense(const job *j, int h) {
    return !j->a->mask || ((const uint8_t *)j->a->mask->dense.p)[h];
}

static head head_at(const job *j, int h) {
    const hs_attention *a = j->a;
    const hs_mask *m = a->mask;
    head x = {.q = {.len = a->len_q, .block = j->rows},
              .k = {.len = a->len_k, .block = a->len_k, .count = 1},
              .h = h,
              .rows = j->rows};
    if (is_dense(j, h)) {
        x.q.count = (int)((a->len_q + j->rows - 1) / j->rows);
        return x;
    }
    x.q.count = m->rows;
    x.k.count = m->cols;
    x.q.block = x.k.block = m->block;
    if (!m->block) {
        x.q.start = (const int32_t *)m->q_start.p + (int64_t)h * (m->rows + 1);
        x.k.start = (const int32_t *)m->k_start.p + (int64_t)h * (m->cols + 1);
        x.q.order = (const int32_t *)m->q_order.p + h * a->len_q;
        x.k.order = (const int32_t *)m->k_order.p + h * a->len_k;
    }
    x.words = m->words;
    x.bits = (const int32_t *)m->bits.p + (int64_t)h * m->rows * m->words;
    return x;
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Vector at place i as words; zeros behind head_dim. */
static void load_row(const job *j, const vectors *x, int64_t i, float *words) {
    const int n = j->a->head_dim, size = x->x.type == HS_F32 ? 4 : 2;
    /* Rows of a head are pages apart, out of the hardware prefetcher's sight. */
    int64_t ahead = hs_min64(i + 8, x->len - 1);
    const char *next = (const char *)x->x.p + (x->order ? x->order[ahead] : ahead) * x->ld * size;
    for (int b = 0; b < n * size; b += 64) __builtin_prefetch(next + b);
    const char *from = (const char *)x->x.p + (x->order ? x->order[i] : i) * x->ld * size;
    hs_attn_words(j->kn, from, x->x.type, n, j->dim, words);
}

static vectors vectors_of(const job *j, const head *x, hs_buf b, int64_t ld, const axis *along) {
    int64_t off = (int64_t)x->h * j->a->head_dim;
    return (vectors){hs_buf_at(b, off, b.n - off), ld, along->len, along->order};
}

static vectors means_of(const job *j, const head *x, hs_buf b) {
    int64_t n = (int64_t)j->means * j->a->head_dim;
    return (vectors){hs_buf_at(b, x->h * n, n), j->a->head_dim, j->means, NULL};
}

/* Up to HS_ATTN_PAD keys of a head from place i on, into the segment; zeros behind seg->end. */
static void pack_keys(const job *j, const segment *seg, const head *x, int64_t i, float *tmp) {
    const hs_attention *a = j->a;
    const vectors k = seg->means ? means_of(j, x, a->comp_k) : vectors_of(j, x, a->k, a->ld_k, &x->k);
    const vectors v = seg->means ? means_of(j, x, a->comp_v) : vectors_of(j, x, a->v, a->ld_v, &x->k);
    int n = (int)hs_min64(HS_ATTN_PAD, seg->end - i);
    int64_t off = i - seg->begin, depth = j->depth;

    for (int p = 0; p < HS_ATTN_PAD / HS_ATTN_PANEL; p++) {
        float *dst = seg->k + (off + p * HS_ATTN_PANEL) * depth;
        for (int r = 0; r < HS_ATTN_PANEL; r++) {
            int key = p * HS_ATTN_PANEL + r;
            if (key < n)
                load_row(j, &k, i + key, tmp + r * depth);
            else
                memset(tmp + r * depth, 0, (size_t)depth * 4);
        }
        hs_attn_panel(tmp, depth, dst);
    }

    for (int key = 0; key < HS_ATTN_PAD; key += j->per_word) {
        for (int w = 0; w < j->per_word; w++) {
            if (key + w < n)
                load_row(j, &v, i + key + w, tmp + w * depth);
            else
                memset(tmp + w * depth, 0, (size_t)depth * 4);
        }
        float *dst = seg->v + (off + key) / j->per_word * HS_ATTN_PANEL;
        for (int c = 0; c < j->dim; c += HS_ATTN_PANEL, dst += seg->ld_v) {
            if (j->per_word == 1) {
                memcpy(dst, tmp + c, HS_ATTN_PANEL * 4);
            } else { /* two keys side by side in every word */
                uint16_t pair[2 * HS_ATTN_PANEL], even[HS_ATTN_PANEL], odd[HS_ATTN_PANEL];
                memcpy(even, (const uint16_t *)(const void *)tmp + c, sizeof(even));
                memcpy(odd, (const uint16_t *)(const void *)(tmp + depth) + c, sizeof(odd));
                for (int y = 0; y < HS_ATTN_PANEL; y++) {
                    pair[2 * y] = even[y];
                    pair[2 * y + 1] = odd[y];
                }
                memcpy(dst, pair, sizeof(pair));
            }
        }
    }
}

/* ---- one unit --------------------------------------------------------------------------------------------------- */

/* Adds what is not a product to the logits of the n keys of tile k of a step. s is still to be multiplied by a->scale.
 */
static void add_extra(const job *j, const head *x, const unit *u, const segment *seg, const step *st, int k, int n,
                      float *s) {
    const hs_attention *a = j->a;
    const float unscale = 1 / a->scale;
    for (int64_t row = u->begin; row < u->end; row++, s += KEYS) {
        const float *bias = a->rel_bias.p;
        if (bias) bias += x->h * (a->len_q + a->len_k - 1) + a->len_q - 1 - token(&x->q, row);
        if (bias && (x->k.order || st->at[k] < 0)) {
            for (int c = 0; c < n; c++) s[c] += bias[token(&x->k, seg->begin + place(st, k, c))] * unscale;
        } else if (bias) {
            const float *from = bias + seg->begin + st->at[k];
#pragma omp simd
            for (int c = 0; c < n; c++) s[c] += from[c] * unscale;
        }
        if (a->last_key_bonus != 0)
            for (int c = 0; c < n; c++)
                if (token(&x->k, seg->begin + place(st, k, c)) == a->len_k - 1) s[c] += a->last_key_bonus * unscale;
    }
}

/* A mean stands for as many keys as its block has tokens. */
static void add_sizes(const job *j, const head *x, const segment *seg, const step *st, int k, int n, int rows,
                      float *s) {
    float size[TILE];
    for (int c = 0; c < n; c++) {
        const int col = (int)seg->begin + place(st, k, c);
        size[c] = logf((float)(edge(&x->k, col + 1) - edge(&x->k, col))) / j->a->scale;
    }
    for (int r = 0; r < rows; r++, s += KEYS)
        for (int c = 0; c < n; c++) s[c] += size[c];
}

/* drop: bits of keys that do not count, few of them */
static void drop_keys(uint64_t drop, int rows, float *s) {
    for (; drop; drop &= drop - 1)
        for (int r = 0; r < rows; r++) s[r * KEYS + __builtin_ctzll(drop)] = -INFINITY;
}

static void unit_begin(const job *j, const head *x, const unit *u, scratch *sc) {
    const vectors q = vectors_of(j, x, j->a->q, j->a->ld_q, &x->q);
    const int rows = (int)(u->end - u->begin), tail = (int)hs_round_up(rows, HS_ATTN_TILE) - rows;
    for (int r = 0; r < rows; r++) load_row(j, &q, u->begin + r, sc->q + r * j->depth);
    memset(sc->q + rows * j->depth, 0, (size_t)(tail * j->depth) * 4);
}

static hs_attn_block block_view(const job *j, const unit *u, scratch *sc) {
    return (hs_attn_block){.s = sc->s,
                           .o = sc->o,
                           .max = sc->max,
                           .sum = sc->sum,
                           .ld_s = KEYS,
                           .ld_o = j->dim,
                           .rows = (int)(u->end - u->begin),
                           .cols = j->dim,
                           .scale = j->a->scale * LOG2_E};
}

/* Packed keys and values of a tile of a step, where they are or copied into the thread's room. */
typedef struct packed {
    const float *k, *v;
    int64_t ld_v;
} packed;

/* n: its keys, up to a multiple of HS_ATTN_PAD */
static packed tile_keys(const job *j, const segment *seg, const step *st, int k, int n, scratch *sc) {
    if (st->at[k] >= 0)
        return (packed){seg->k + st->at[k] * j->depth, seg->v + st->at[k] / j->per_word * HS_ATTN_PANEL, seg->ld_v};
    const int64_t ld = KEYS / j->per_word * HS_ATTN_PANEL;
    float *keys = sc->k + k * TILE * j->depth, *values = sc->v + k * TILE / j->per_word * HS_ATTN_PANEL;
    j->kn->copy_keys(seg->k, j->depth, st->copied[k], n, keys);
    j->kn->copy_values(seg->v, seg->ld_v, j->dim / HS_ATTN_PANEL, st->copied[k], n, values, ld);
    return (packed){keys, values, ld};
}

/* Accumulates the unit's keys that lie in the segment. first: nothing is accumulated yet. Returns whether that is still
 * so. */
static int unit_attend(const job *j, const head *x, const unit *u, const segment *seg, int first, scratch *sc) {
    const hs_attn_kernels *kn = j->kn;
    const int extra = !seg->means && (j->a->rel_bias.p || j->a->last_key_bonus != 0), words = TILE / j->per_word;
    hs_attn_block b = block_view(j, u, sc);
    walk w = walk_begin(x, u, seg->begin, seg->end, seg->means);
    step st;
    b.first = first;
    if (kn->begin) kn->begin();
    while (walk_next(&w, &st)) {
        packed p[KEYS / TILE];
        int n[KEYS / TILE];
        for (int k = 0; k < st.tiles; k++) {
            const int keys = (int)hs_min64(TILE, st.keys - k * TILE);
            float *s = b.s + k * TILE;
            n[k] = (int)hs_round_up(keys, HS_ATTN_PAD);
            p[k] = tile_keys(j, seg, &st, k, n[k], sc);
            kn->gemm(b.rows, n[k] / HS_ATTN_PANEL, j->depth, sc->q, j->depth, p[k].k, HS_ATTN_PANEL * j->depth, s,
                     b.ld_s, 0);
            if (extra) add_extra(j, x, u, seg, &st, k, keys, s);
            if (seg->means) add_sizes(j, x, seg, &st, k, keys, b.rows, s);
            drop_keys(first_bits(keys) & ~st.keep[k], b.rows, s);
        }
        b.keys = st.keys;
        kn->softmax(&b);
        for (int k = 0, more; k < st.tiles; k += more) { /* values that lie side by side are one product */
            int64_t depth = n[k] / j->per_word;
            for (more = 1; k + more < st.tiles; depth += n[k + more++] / j->per_word)
                if (p[k + more].v != p[k].v + more * words * HS_ATTN_PANEL) break;
            kn->gemm(b.rows, j->dim / HS_ATTN_PANEL, depth, b.s + k * words, b.ld_s, p[k].v, p[k].ld_v, b.o, b.ld_o,
                     !b.first || k);
        }
        b.first = 0;
    }
    if (kn->end) kn->end();
    return b.first;
}

/* empty: no key was kept */
static void unit_end(const job *j, const head *x, const unit *u, int empty, scratch *sc) {
    const hs_attention *a = j->a;
    hs_attn_block b = block_view(j, u, sc);
    int n = a->head_dim;
    if (empty)
        memset(b.o, 0, (size_t)(b.rows * b.ld_o) * 4);
    else
        j->kn->finish(&b);
    for (int r = 0; r < b.rows; r++) {
        int64_t at = token(&x->q, u->begin + r) * a->ld_out + (int64_t)x->h * n;
        const float *o = b.o + r * b.ld_o;
        if (a->out.type == HS_F32)
            memcpy((float *)a->out.p + at, o, (size_t)n * 4);
        else if (j->kn->bf16)
            memcpy((uint16_t *)a->out.p + at, o, (size_t)n * 2);
        else
            hs_from_f32((uint16_t *)a->out.p + at, HS_BF16, o, n);
    }
}

/* ---- all units -------------------------------------------------------------------------------------------------- */

static int64_t most_units(const job *j, int h0, int heads) {
    int64_t most = 0;
    for (int h = h0; h < h0 + heads; h++) {
        head x = head_at(j, h);
        int64_t n = unit_count(&x);
        if (n > most) most = n;
    }
    return most;
}

/* Heads h0 .. h0 + heads, all their keys packed at once. */
static void attend_heads(const job *j, hs_cpu_attn *st, int threads, int h0, int heads) {
    const int64_t keys = j->a->len_k, words = packed_words(j, keys), all = words + packed_words(j, j->means);
    const int64_t packs = hs_round_up(keys, HS_ATTN_PAD) / HS_ATTN_PAD,
                  more = hs_round_up(j->means, HS_ATTN_PAD) / HS_ATTN_PAD;
    const int64_t units = most_units(j, h0, heads);
    (void)threads; /* without OpenMP */
#pragma omp parallel num_threads(threads)
    {
        scratch *sc = &st->local[omp_get_thread_num()];
#pragma omp for schedule(static)
        for (int64_t p = 0; p < heads * (packs + more); p++) {
            const int64_t h = p / (packs + more), i = p % (packs + more);
            const head x = head_at(j, h0 + (int)h);
            float *at = j->pack + h * all;
            segment seg = i < packs ? segment_at(j, 0, keys, 0, at) : segment_at(j, 0, j->means, 1, at + words);
            if (i < packs || x.bits) pack_keys(j, &seg, &x, (i < packs ? i : i - packs) * HS_ATTN_PAD, sc->tmp);
        }
        /* What is long first: units are handed out in this order, and a dense one at the end would be waited for. */
        for (int dense = 1; dense >= 0; dense--) {
#pragma omp for schedule(dynamic) nowait
            for (int64_t t = 0; t < heads * units; t++) {
                const int64_t h = t / units;
                if (is_dense(j, h0 + (int)h) != dense) continue;
                const head x = head_at(j, h0 + (int)h);
                const segment seg = segment_at(j, 0, keys, 0, j->pack + h * all);
                const segment means = segment_at(j, 0, j->means, 1, j->pack + h * all + words);
                unit u;
                if (!unit_at(&x, t % units, &u)) continue;
                unit_begin(j, &x, &u, sc);
                int empty = unit_attend(j, &x, &u, &seg, 1, sc);
                if (j->means && x.bits) empty = unit_attend(j, &x, &u, &means, empty, sc);
                unit_end(j, &x, &u, empty, sc);
            }
        }
    }
}

/* One head whose keys do not fit: every thread carries one unit at a time through all segments, packed by all. */
static void attend_long(const job *j, hs_cpu_attn *st, int threads, int h) {
    const int64_t most = PACK_WORDS / packed_words(j, KEYS) * KEYS;
    const head x = head_at(j, h);
    const int64_t units = unit_count(&x), len[2] = {j->a->len_k, x.bits ? j->means : 0};
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        scratch *sc = &st->local[omp_get_thread_num()];
        int team = omp_get_num_threads();
        for (int64_t first = 0; first < units; first += team) {
            unit u;
            const int mine = unit_at(&x, first + omp_get_thread_num(), &u);
            int empty = 1;
            if (mine) unit_begin(j, &x, &u, sc);
            for (int means = 0; means < 2; means++) {
                for (int64_t begin = 0; begin < len[means]; begin += most) {
                    segment seg = segment_at(j, begin, hs_min64(begin + most, len[means]), means, j->pack);
#pragma omp for schedule(static)
                    for (int64_t i = begin; i < seg.end; i += HS_ATTN_PAD) pack_keys(j, &seg, &x, i, sc->tmp);
                    if (mine) empty = unit_attend(j, &x, &u, &seg, empty, sc);
#pragma omp barrier
                }
            }
            if (mine) unit_end(j, &x, &u, empty, sc);
        }
    }
}

void hs_cpu_attention(hs_device *dev, const hs_attention *a) {
    hs_cpu *cpu = hs_cpu_of(dev);
    hs_cpu_attn *st = cpu->attention;
    if (!(a->scale > 0)) { /* softmax relies on it: padding is minus infinity before scaling */
        hs_device_sticky(dev, HS_EINVAL, "attention: scale is %g, expected a number above 0", a->scale);
        return;
    }
    job j = {.a = a, .kn = st->kernels, .pack = st->pack};
    j.dim = (int)hs_round_up(a->head_dim, HS_ATTN_PAD);
    j.per_word = j.kn->bf16 ? 2 : 1;
    j.depth = j.dim / j.per_word;
    j.means = a->mask && a->comp_k.p ? a->mask->cols : 0;
    /* Lower blocks where wide heads would not fit, or where there are too few blocks to go round. */
    j.rows = ROWS;
    while (j.rows * j.dim > ROWS * WIDE) j.rows /= 2;
    while (j.rows > MIN_ROWS && a->heads * (a->len_q + j.rows - 1) / j.rows < 2 * cpu->threads) j.rows /= 2;

    int fit = (int)hs_min64(a->heads, PACK_WORDS / (packed_words(&j, a->len_k) + packed_words(&j, j.means)));
    for (int h = 0; h < a->heads; h += fit ? fit : 1) {
        if (fit)
            attend_heads(&j, st, cpu->threads, h, (int)hs_min64(fit, a->heads - h));
        else
            attend_long(&j, st, cpu->threads, h);
    }
}

hs_cpu_room hs_cpu_attention_room(const hs_device *dev) {
    const hs_cpu_attn *st = hs_cpu_of(dev)->attention;
    return (hs_cpu_room){st->kernels, st->fp32, st->pack, PACK_WORDS};
}

int hs_cpu_attention_init(hs_device *dev, hs_err *err) {
    hs_cpu *cpu = hs_cpu_of(dev);
    hs_cpu_attn *st = hs_calloc(1, sizeof(*st));
    if (!st) return hs_fail(err, HS_ENOMEM, "attention: no memory");
    cpu->attention = st;
    st->kernels = st->fp32 = &hs_attn_portable;
#if defined(__x86_64__)
    int bf16 = dev->act == HS_BF16;
    if (cpu->isa.avx2) st->kernels = st->fp32 = &hs_attn_avx2;
    if (cpu->isa.avx512) st->kernels = st->fp32 = &hs_attn_avx512;
    if (bf16 && cpu->isa.avx512_bf16) st->kernels = &hs_attn_avx512_bf16;
    if (bf16 && cpu->isa.amx_bf16) st->kernels = &hs_attn_amx;
#endif
    size_t pack = (size_t)PACK_WORDS * 4, local = (size_t)cpu->threads * sizeof(scratch);
    st->pack = hs_alloc(pack);
    st->local = hs_alloc(local);
    if (st->pack && st->local) return HS_OK;
    hs_cpu_attention_done(dev);
    return hs_fail(err, HS_ENOMEM, "attention: no memory for %zu MB of working space; fewer threads need less",
                   (pack + local) >> 20);
}

void hs_cpu_attention_done(hs_device *dev) {
    hs_cpu_attn *st = dev->impl ? hs_cpu_of(dev)->attention : NULL;
    if (!st) return;
    hs_free(st->pack);
    hs_free(st->local);
    hs_free(st);
    hs_cpu_of(dev)->attention = NULL;
}
