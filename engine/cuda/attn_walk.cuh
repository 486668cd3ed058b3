/* The walk of attention over a mask, on the device: which queries a block of threads takes, and which keys they need.
 * Bits, starts and orders are understood here and nowhere else; the kernels see numbers of rows to load.
 *
 * A block of threads takes a tile: query places of one row of the mask. Its keys are one list: the keys of all kept
 * columns, ascending and without gaps, so that steps of any number of keys are full but for the last, however small the
 * columns are; dense attention is the list of everything. Means that stand for dropped columns are a second list behind
 * it. Neither list is stored: thread r of a step finds place r of it with a cursor that only moves forward.
 */
#ifndef HS_ATTN_WALK_CUH
#define HS_ATTN_WALK_CUH
#include "cuda/cuda.h"

/* hs_attention as kernels get it. Logits are handled as raw products q.k: what is added to them is divided by scale. */
typedef struct attn_call {
    const void *q, *k, *v;
    void *out;
    int64_t ld_q, ld_k, ld_v, ld_out;
    int len_q, len_k, heads, head_dim;
    float unit;           /* scale * log2(e): raw product to exponent of 2 */
    float per_scale;      /* 1 / scale */
    float last_key_bonus; /* raw */
    const float *rel_bias;
    const uint32_t *bits; /* of the mask; NULL: dense */
    const uint8_t *dense;
    const int32_t *q_order, *k_order, *q_start, *k_start; /* NULL: equal blocks */
    int rows, cols, words, block;
    const void *comp_k, *comp_v; /* [heads, cols, head_dim] of the type that the kernel reads; NULL: none */
    int tiles;                   /* per head; some may be empty */
} attn_call;

static inline attn_call attn_call_of(const hs_attention *a) {
    attn_call c = {};
    c.q = a->q.p, c.k = a->k.p, c.v = a->v.p, c.out = a->out.p;
    c.ld_q = a->ld_q, c.ld_k = a->ld_k, c.ld_v = a->ld_v, c.ld_out = a->ld_out;
    c.len_q = (int)a->len_q, c.len_k = (int)a->len_k;
    c.heads = a->heads, c.head_dim = a->head_dim;
    c.unit = a->scale * 1.44269504f;
    c.per_scale = 1 / a->scale;
    c.last_key_bonus = a->last_key_bonus / a->scale;
    c.rel_bias = (const float *)a->rel_bias.p;
    const hs_mask *m = a->mask;
    if (!m) return c;
    c.bits = (const uint32_t *)m->bits.p;
    c.dense = (const uint8_t *)m->dense.p;
    c.rows = m->rows, c.cols = m->cols, c.words = m->words, c.block = m->block;
    if (!m->block) {
        c.q_order = (const int32_t *)m->q_order.p, c.k_order = (const int32_t *)m->k_order.p;
        c.q_start = (const int32_t *)m->q_start.p, c.k_start = (const int32_t *)m->k_start.p;
    }
    c.comp_k = a->comp_k.p, c.comp_v = a->comp_v.p;
    return c;
}

/* Rows of tensor core kernels are loaded in pieces of 16 bytes; the bytes between them fit into 32 bits. */
static inline int attn_in_pieces(const hs_attention *a) {
    const hs_buf *const b[] = {&a->q, &a->k, &a->v, &a->out};
    const int64_t ld[] = {a->ld_q, a->ld_k, a->ld_v, a->ld_out};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)b[i]->p % 16 || ld[i] % 8 || ld[i] >= INT32_MAX) return 0;
    return 1;
}

/* Queries at places [first, first + count) of a head; they share a row of bits. */
typedef struct attn_tile {
    int head, first, count;
    const uint32_t *bits; /* [words] global memory; NULL: everything in natural order */
} attn_tile;

/* Tiles that a head needs at most: equal blocks are cut one by one, clusters are numbered as attn_tile_at says. */
static inline int64_t attn_tiles(const attn_call *a, int tile_rows) {
    if (!a->bits) return (a->len_q + tile_rows - 1) / tile_rows;
    if (a->block) return (int64_t)a->rows * ((a->block + tile_rows - 1) / tile_rows);
    return a->rows + (int64_t)a->len_q / tile_rows;
}

/* 0: there is nothing under this number. A cluster begins at number row + (its first place) / tile_rows, which leaves
 * it at least as many numbers as it needs. */
__device__ __forceinline__ int attn_tile_at(const attn_call &a, int tile_rows, int64_t number, attn_tile *ret) {
    const int head = (int)(number / a.tiles), t = (int)(number % a.tiles);
    int row, part, begin, end;
    ret->head = head;
    ret->bits = NULL;
    if (!a.bits || a.dense[head]) {
        begin = 0;
        end = a.len_q;
        part = t;
    } else {
        if (a.block) {
            const int parts = (a.block + tile_rows - 1) / tile_rows;
            row = t / parts;
            part = t % parts;
            begin = row * a.block;
            end = min(begin + a.block, a.len_q);
        } else {
            const int32_t *start = a.q_start + (int64_t)head * (a.rows + 1);
            int high = a.rows;
            row = 0; /* the last row that begins at t or before */
            while (high - row > 1) {
                const int mid = row + (high - row) / 2;
                if (mid + start[mid] / tile_rows <= t)
                    row = mid;
                else
                    high = mid;
            }
            begin = start[row];
            end = start[row + 1];
            part = t - row - begin / tile_rows;
        }
        ret->bits = a.bits + ((int64_t)head * a.rows + row) * a.words;
    }
    const int64_t first = begin + (int64_t)part * tile_rows;
    if (first >= end) return 0;
    ret->first = (int)first;
    ret->count = min(tile_rows, (int)(end - first));
    return 1;
}

/* Token of query r of the tile. */
__device__ __forceinline__ int attn_query(const attn_call &a, const attn_tile &t, int r) {
    const int place = t.first + r;
    return t.bits && a.q_order ? a.q_order[(int64_t)t.head * a.len_q + place] : place;
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

/* The two lists of a tile. */
typedef struct attn_list {
    const uint32_t *bits; /* shared memory [words]; NULL: everything */
    int keys, means;      /* entries */
} attn_list;

/* Places of column c in the order of keys: [edge(c), edge(c + 1)). */
__device__ __forceinline__ int attn_edge(const attn_call &a, int head, int c) {
    return a.block ? min(c * a.block, a.len_k) : a.k_start[(int64_t)head * (a.cols + 1) + c];
}

/* Copies the tile's bits to `room` [words] and counts both lists; `sums` [2] is shared memory as well. Called by all
 * threads of the block; ends with a barrier. */
__device__ __forceinline__ attn_list attn_list_of(const attn_call &a, const attn_tile &t, uint32_t *room, int *sums) {
    if (!t.bits) {
        __syncthreads();
        return attn_list{NULL, a.len_k, 0};
    }
    int keys = 0, dropped = 0;
    if (threadIdx.x < 2) sums[threadIdx.x] = 0;
    for (int w = threadIdx.x; w < a.words; w += blockDim.x) {
        uint32_t left = room[w] = t.bits[w];
        dropped += min(32, a.cols - w * 32) - __popc(left);
        for (; left; left &= left - 1) {
            const int c = w * 32 + __ffs((int)left) - 1;
            keys += attn_edge(a, t.head, c + 1) - attn_edge(a, t.head, c);
        }
    }
    __syncthreads();
    atomicAdd(&sums[0], keys);
    if (a.comp_k) atomicAdd(&sums[1], dropped);
    __syncthreads();
    return attn_list{room, sums[0], sums[1]};
}

/* Steps of step_keys entries; those from the returned number of key steps on are of means. */
__device__ __forceinline__ int attn_key_steps(const attn_list &l, int step_keys) {
    return (l.keys + step_keys - 1) / step_keys;
}
__device__ __forceinline__ int attn_steps(const attn_list &l, int step_keys) {
    return attn_key_steps(l, step_keys) + (l.means + step_keys - 1) / step_keys;
}

/* Entries before `end` of a list were met; entry i of the last met column lies at place i + shift; columns from `next`
 * on are still to come. Starts as zeros. */
typedef struct attn_cursor {
    int next, end, shift;
} attn_cursor;

/* Moves the cursor to entry i, which is in the list, of kept (flip 0) or dropped (flip ~0) columns. */
__device__ __forceinline__ void attn_seek(const attn_call &a, const uint32_t *bits, uint32_t flip, int head, int i,
                                          attn_cursor *c) {
    while (i >= c->end) {
        int w = c->next / 32;
        uint32_t left = (bits[w] ^ flip) & (~0u << (c->next % 32));
        while (!left) left = bits[++w] ^ flip;
        const int col = w * 32 + __ffs((int)left) - 1;
        const int begin = flip ? col : attn_edge(a, head, col), end = flip ? col + 1 : attn_edge(a, head, col + 1);
        c->shift = begin - c->end;
        c->end += end - begin;
        c->next = col + 1;
    }
}

/* What entry r of a step is: a token of k and v, a column of the means, or -1: the list is at its end. Every thread
 * asks for the same r in all steps, in order. */
__device__ __forceinline__ int attn_key(const attn_call &a, const attn_list &l, int head, int step, int step_keys,
                                        int r, attn_cursor *c) {
    const int key_steps = attn_key_steps(l, step_keys);
    const int means = step >= key_steps, i = (means ? step - key_steps : step) * step_keys + r;
    if (i >= (means ? l.means : l.keys)) return -1;
    if (!l.bits) return i;
    if (step == key_steps) *c = attn_cursor{0, 0, 0};
    attn_seek(a, l.bits, means ? ~0u : 0, head, i, c);
    const int place = i + c->shift;
    return !means && a.k_order ? a.k_order[(int64_t)head * a.len_k + place] : place;
}

/* What the logit of an entry (of attn_key) gets besides the product, whatever the query. */
__device__ __forceinline__ float attn_extra(const attn_call &a, int key, int means) {
    if (key < 0) return -INFINITY;
    if (means) return logf((float)min(a.block, a.len_k - key * a.block)) * a.per_scale;
    return key == a.len_k - 1 ? a.last_key_bonus : 0;
}

/* rel_bias of query token i and key token j. */
__device__ __forceinline__ float attn_bias(const attn_call &a, int head, int i, int j) {
    return a.rel_bias[head * ((int64_t)a.len_q + a.len_k - 1) + ((int64_t)j - i) + a.len_q - 1] * a.per_scale;
}
#endif
