/* Attention of the fast CPU backend: who computes which rows against which keys, and in what layout.
 *
 * The unit of work is a query block of one head. It walks a list of key ranges, KEYS keys at a time: logits of the
 * block (gemm), online softmax, probabilities times values (gemm), with maximum, sum and numerator of every row in
 * fp32. An N x N matrix never exists. Dense attention is the list with the one range [0, len_k); a block mask is a
 * longer list.
 *
 * Keys and values are packed once per call and head into panels (attn_kernels.h) and shared by all query blocks. The
 * room for them is fixed when the device is opened, so that calls allocate nothing: as many heads as fit are packed
 * together, and where not even one fits its keys are packed segment by segment. Pages that are never used cost nothing.
 *
 * Every row's result depends on its own list of keys only: not on threads, block height or other rows.
 */
#include "cpu/attention.h"
#include "cpu/attn_kernels.h"

#include <string.h>
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
    KEYS = 128,     /* keys per step */
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
    float q[ROWS * WIDE];               /* packed queries, words [rows, depth] */
    float o[ROWS * WIDE];               /* [rows, dim] numerator */
    float s[ROWS * KEYS];               /* logits, then probabilities as words */
    float tmp[HS_ATTN_PANEL * MAX_DIM]; /* rows while packing */
    float max[ROWS], sum[ROWS];
    int first; /* nothing is accumulated yet */
} scratch;

typedef struct hs_cpu_attn {
    const hs_attn_kernels *kernels;
    float *pack;    /* [PACK_WORDS] */
    scratch *local; /* [threads] */
} hs_cpu_attn;

/* One call, with what follows from its sizes. */
typedef struct job {
    const hs_attention *a;
    const hs_attn_kernels *kn;
    int dim;        /* head size with padding */
    int64_t depth;  /* words of a query or key */
    int per_word;   /* values in a word */
    int rows;       /* query rows per block */
    int64_t blocks; /* query blocks per head */
    float *pack;
} job;

/* Keys [begin, end) of one head, packed: keys in panels of 16 keys [depth][16], values in panels of 16 columns
 * [keys / per_word][16]. begin is a multiple of KEYS. */
typedef struct segment {
    int64_t begin, end;
    float *k, *v;
    int64_t ld_v; /* words from one panel of values to the next */
} segment;

typedef struct range {
    int64_t begin, end;
} range;

static int64_t round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}
static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Words that `keys` keys and values of one head take. */
static int64_t packed_words(const job *j, int64_t keys) {
    return round_up(keys, HS_ATTN_PAD) * 2 * (j->dim / j->per_word);
}

static segment segment_at(const job *j, int64_t begin, int64_t end, float *at) {
    int64_t keys = round_up(end - begin, HS_ATTN_PAD);
    return (segment){begin, end, at, at + keys * j->depth, keys / j->per_word * HS_ATTN_PANEL};
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Row i of head h of x as words; zeros behind head_dim. */
static void load_row(const job *j, hs_buf x, int64_t ld, int h, int64_t i, float *words) {
    int n = j->a->head_dim;
    int64_t at = i * ld + (int64_t)h * n;
    /* Rows of a head are pages apart, out of the hardware prefetcher's sight. */
    const int size = x.type == HS_F32 ? 4 : 2;
    const char *ahead = (const char *)x.p + (at + 8 * ld) * size;
    for (int b = 0; b < n * size; b += 64) __builtin_prefetch(ahead + b);
    if (x.type == HS_F32) {
        memcpy(words, (const float *)x.p + at, (size_t)n * 4);
    } else if (j->kn->bf16) {
        memcpy(words, (const uint16_t *)x.p + at, (size_t)n * 2);
    } else {
        hs_to_f32(words, (const uint16_t *)x.p + at, HS_BF16, n);
    }
    size_t bytes = 4 / (size_t)j->per_word;
    memset((char *)words + (size_t)n * bytes, 0, (size_t)(j->dim - n) * bytes);
}

/* Up to HS_ATTN_PAD keys of head h from key i on, into their places in the segment; zeros behind seg->end. */
static void pack_keys(const job *j, const segment *seg, int h, int64_t i, float *tmp) {
    const hs_attention *a = j->a;
    int n = (int)min64(HS_ATTN_PAD, seg->end - i);
    int64_t off = i - seg->begin, depth = j->depth;

    for (int p = 0; p < HS_ATTN_PAD / HS_ATTN_PANEL; p++) {
        float *dst = seg->k + (off + p * HS_ATTN_PANEL) * depth;
        for (int r = 0; r < HS_ATTN_PANEL; r++) {
            int key = p * HS_ATTN_PANEL + r;
            if (key < n)
                load_row(j, a->k, a->ld_k, h, i + key, tmp + r * depth);
            else
                memset(tmp + r * depth, 0, (size_t)depth * 4);
        }
        for (int64_t d = 0; d < depth; d++)
            for (int r = 0; r < HS_ATTN_PANEL; r++) memcpy(dst + d * HS_ATTN_PANEL + r, tmp + r * depth + d, 4);
    }

    for (int key = 0; key < HS_ATTN_PAD; key += j->per_word) {
        for (int w = 0; w < j->per_word; w++) {
            if (key + w < n)
                load_row(j, a->v, a->ld_v, h, i + key + w, tmp + w * depth);
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
                for (int x = 0; x < HS_ATTN_PANEL; x++) {
                    pair[2 * x] = even[x];
                    pair[2 * x + 1] = odd[x];
                }
                memcpy(dst, pair, sizeof(pair));
            }
        }
    }
}

/* ---- one query block ------------------------------------------------------------------------------------------- */

/* Adds what is not a product to the logits of keys [key, key + n). s is still to be multiplied by a->scale. */
static void add_extra(const job *j, int h, int64_t row, int rows, int64_t key, int n, float *s) {
    const hs_attention *a = j->a;
    const float *bias = a->rel_bias.p, unscale = 1 / a->scale;
    for (int r = 0; r < rows; r++, s += KEYS) {
        if (bias) {
            const float *b = bias + h * (a->len_q + a->len_k - 1) + (key - row - r) + a->len_q - 1;
#pragma omp simd
            for (int c = 0; c < n; c++) s[c] += b[c] * unscale;
        }
        if (key + n == a->len_k) s[n - 1] += a->last_key_bonus * unscale;
    }
}

static int block_rows(const job *j, int64_t block) {
    return (int)min64(j->rows, j->a->len_q - block * j->rows);
}

static void block_begin(const job *j, int h, int64_t block, scratch *sc) {
    int rows = block_rows(j, block);
    for (int r = 0; r < rows; r++) load_row(j, j->a->q, j->a->ld_q, h, block * j->rows + r, sc->q + r * j->depth);
    int tail = (int)round_up(rows, HS_ATTN_TILE) - rows;
    memset(sc->q + rows * j->depth, 0, (size_t)(tail * j->depth) * 4);
    sc->first = 1;
}

static hs_attn_block block_view(const job *j, int64_t block, scratch *sc) {
    return (hs_attn_block){.s = sc->s,
                           .o = sc->o,
                           .max = sc->max,
                           .sum = sc->sum,
                           .ld_s = KEYS,
                           .ld_o = j->dim,
                           .rows = block_rows(j, block),
                           .cols = j->dim,
                           .first = sc->first,
                           .scale = j->a->scale * LOG2_E};
}

/* Accumulates the keys of the ranges that lie in the segment. Range edges are multiples of KEYS, or len_k. */
static void block_attend(const job *j, int h, int64_t block, const segment *seg, const range *list, int count,
                         scratch *sc) {
    const hs_attention *a = j->a;
    const hs_attn_kernels *kn = j->kn;
    hs_attn_block b = block_view(j, block, sc);
    if (kn->begin) kn->begin();
    for (const range *x = list; x < list + count; x++) {
        int64_t end = min64(x->end, seg->end);
        for (int64_t key = x->begin > seg->begin ? x->begin : seg->begin; key < end; key += KEYS) {
            int64_t off = key - seg->begin;
            b.keys = (int)min64(KEYS, end - key);
            int wide = (int)round_up(b.keys, HS_ATTN_PAD);
            kn->gemm(b.rows, wide / HS_ATTN_PANEL, j->depth, sc->q, j->depth, seg->k + off * j->depth,
                     j->depth * HS_ATTN_PANEL, b.s, b.ld_s, 0);
            if (a->rel_bias.p || (a->last_key_bonus != 0 && key + b.keys == a->len_k))
                add_extra(j, h, block * j->rows, b.rows, key, b.keys, b.s);
            kn->softmax(&b);
            kn->gemm(b.rows, j->dim / HS_ATTN_PANEL, wide / j->per_word, b.s, b.ld_s,
                     seg->v + off / j->per_word * HS_ATTN_PANEL, seg->ld_v, b.o, b.ld_o, !b.first);
            b.first = sc->first = 0;
        }
    }
    if (kn->end) kn->end();
}

static void block_end(const job *j, int h, int64_t block, scratch *sc) {
    const hs_attention *a = j->a;
    hs_attn_block b = block_view(j, block, sc);
    int n = a->head_dim;
    j->kn->finish(&b);
    for (int r = 0; r < b.rows; r++) {
        int64_t at = (block * j->rows + r) * a->ld_out + (int64_t)h * n;
        const float *o = b.o + r * b.ld_o;
        if (a->out.type == HS_F32)
            memcpy((float *)a->out.p + at, o, (size_t)n * 4);
        else if (j->kn->bf16)
            memcpy((uint16_t *)a->out.p + at, o, (size_t)n * 2);
        else
            hs_from_f32((uint16_t *)a->out.p + at, HS_BF16, o, n);
    }
}

/* ---- all blocks ------------------------------------------------------------------------------------------------ */

/* Heads h0 .. h0 + heads, all their keys packed at once. */
static void attend_heads(const job *j, hs_cpu_attn *st, int threads, int h0, int heads) {
    int64_t keys = j->a->len_k, words = packed_words(j, keys), units = round_up(keys, HS_ATTN_PAD) / HS_ATTN_PAD;
    (void)threads; /* without OpenMP */
#pragma omp parallel num_threads(threads)
    {
        scratch *sc = &st->local[omp_get_thread_num()];
#pragma omp for schedule(static)
        for (int64_t u = 0; u < heads * units; u++) {
            int h = (int)(u / units);
            segment seg = segment_at(j, 0, keys, j->pack + h * words);
            pack_keys(j, &seg, h0 + h, u % units * HS_ATTN_PAD, sc->tmp);
        }
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < heads * j->blocks; t++) {
            int h = (int)(t / j->blocks);
            int64_t block = t % j->blocks;
            segment seg = segment_at(j, 0, keys, j->pack + h * words);
            range all = {0, keys};
            block_begin(j, h0 + h, block, sc);
            block_attend(j, h0 + h, block, &seg, &all, 1, sc);
            block_end(j, h0 + h, block, sc);
        }
    }
}

/* One head whose keys do not fit: every thread carries one block at a time through all segments, packed by all. */
static void attend_long(const job *j, hs_cpu_attn *st, int threads, int h) {
    int64_t keys = j->a->len_k, most = PACK_WORDS / packed_words(j, KEYS) * KEYS;
    (void)threads;
#pragma omp parallel num_threads(threads)
    {
        scratch *sc = &st->local[omp_get_thread_num()];
        int team = omp_get_num_threads();
        for (int64_t first = 0; first < j->blocks; first += team) {
            int64_t block = first + omp_get_thread_num();
            int mine = block < j->blocks;
            for (int64_t begin = 0; begin < keys; begin += most) {
                segment seg = segment_at(j, begin, min64(begin + most, keys), j->pack);
                range all = {0, keys};
#pragma omp for schedule(static)
                for (int64_t i = begin; i < seg.end; i += HS_ATTN_PAD) pack_keys(j, &seg, h, i, sc->tmp);
                if (mine && begin == 0) block_begin(j, h, block, sc);
                if (mine) block_attend(j, h, block, &seg, &all, 1, sc);
#pragma omp barrier
            }
            if (mine) block_end(j, h, block, sc);
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
    j.dim = (int)round_up(a->head_dim, HS_ATTN_PAD);
    j.per_word = j.kn->bf16 ? 2 : 1;
    j.depth = j.dim / j.per_word;
    /* Lower blocks where wide heads would not fit, or where there are too few blocks to go round. */
    j.rows = ROWS;
    while (j.rows * j.dim > ROWS * WIDE) j.rows /= 2;
    while (j.rows > MIN_ROWS && a->heads * (a->len_q + j.rows - 1) / j.rows < 2 * cpu->threads) j.rows /= 2;
    j.blocks = (a->len_q + j.rows - 1) / j.rows;

    int fit = (int)min64(a->heads, PACK_WORDS / packed_words(&j, a->len_k));
    for (int h = 0; h < a->heads; h += fit ? fit : 1) {
        if (fit)
            attend_heads(&j, st, cpu->threads, h, (int)min64(fit, a->heads - h));
        else
            attend_long(&j, st, cpu->threads, h);
    }
}

int hs_cpu_attention_init(hs_device *dev, hs_err *err) {
    hs_cpu *cpu = hs_cpu_of(dev);
    hs_cpu_attn *st = hs_calloc(1, sizeof(*st));
    if (!st) return hs_fail(err, HS_ENOMEM, "attention: no memory");
    cpu->attention = st;
    st->kernels = &hs_attn_portable;
#if defined(__x86_64__)
    int bf16 = dev->act == HS_BF16;
    if (cpu->isa.avx2) st->kernels = &hs_attn_avx2;
    if (cpu->isa.avx512) st->kernels = &hs_attn_avx512;
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
