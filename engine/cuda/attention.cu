/* Attention of the CUDA backend: which kernel takes a call. 16-bit operands go to tensor cores (attn_mma.cuh), fp32 and
 * what does not fit there to ordinary cores (attn_plain.cuh); both walk masks the same way (attn_walk.cuh), dense
 * attention being the mask that keeps everything.
 *
 * Blocks of threads are numbered head by head: those that run at a time read the same keys, which then come from L2.
 */
#include "cuda/attn_mma.cuh"
#include "cuda/attn_plain.cuh"

static const float LOG2_E = 1.44269504f;

static attn_call call_of(const hs_attention *a) {
    attn_call c = {};
    c.q = a->q.p, c.k = a->k.p, c.v = a->v.p, c.out = a->out.p;
    c.ld_q = a->ld_q, c.ld_k = a->ld_k, c.ld_v = a->ld_v, c.ld_out = a->ld_out;
    c.len_q = (int)a->len_q, c.len_k = (int)a->len_k;
    c.heads = a->heads, c.head_dim = a->head_dim;
    c.unit = a->scale * LOG2_E;
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

/* Sets the number of tiles; 0 after a sticky error. */
static unsigned grid_of(hs_device *dev, attn_call *c, int tile_rows, int parts) {
    const int64_t tiles = attn_tiles(c, tile_rows);
    if (tiles > INT32_MAX / parts / c->heads) {
        hs_device_sticky(dev, HS_ENOTSUP, "attention: %d heads of %d queries are more than one launch can take",
                         c->heads, c->len_q);
        return 0;
    }
    c->tiles = (int)tiles;
    return (unsigned)(tiles * parts * c->heads);
}

template <typename T> static void launch_plain(hs_device *dev, attn_call *c) {
    const int parts = attn_plain_parts(c->head_dim);
    const unsigned grid = grid_of(dev, c, PLAIN_ROWS, parts);
    if (!grid) return;
    attn_plain<T><<<grid, PLAIN_THREADS, c->words * sizeof(uint32_t), hs_cuda_of(dev)->stream>>>(*c, parts);
    HS_CUDA_LAUNCHED(dev, "attention");
}

/* 0: the shape does not fit into this GPU's shared memory. */
template <typename S> static int launch_mma(hs_device *dev, attn_call *c) {
    const size_t bytes = attn_mma_bytes<S>(c->words);
    if (bytes > hs_cuda_of(dev)->shared_max) return 0;
    const unsigned grid = grid_of(dev, c, S::ROWS, 1);
    if (!grid) return 1;
    const cudaError_t e = cudaFuncSetAttribute(attn_mma<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (!hs_cuda_ok(dev, e, "attention")) return 1;
    attn_mma<S><<<grid, S::THREADS, bytes, hs_cuda_of(dev)->stream>>>(*c);
    HS_CUDA_LAUNCHED(dev, "attention");
    return 1;
}

/* Blocks of up to 64 tokens and clusters get tiles of 64 rows: of the tiles of a cluster the last one is rarely full.
 */
template <typename T> static int launch_shape(hs_device *dev, attn_call *c) {
    if (c->head_dim <= 64) return launch_mma<attn_shape<T, 64, 4, 2, 1, 64, 2>>(dev, c);
    if (c->head_dim > 128) return launch_mma<attn_shape<T, 384, 4, 1, 2, 32, 1>>(dev, c);
    if (c->bits && c->block <= 64) return launch_mma<attn_shape<T, 128, 2, 2, 1, 64, 4>>(dev, c);
    return launch_mma<attn_shape<T, 128, 4, 2, 1, 64, 2>>(dev, c);
}

/* Rows of tensor core kernels are loaded in pieces of 16 bytes; the bytes between them fit into 32 bits. */
static int in_pieces(const hs_buf *b, int64_t ld) {
    return (uintptr_t)b->p % 16 == 0 && ld % 8 == 0 && ld < INT32_MAX;
}
static int for_tensor_cores(const hs_attention *a) {
    return a->q.type != HS_F32 && a->head_dim % 8 == 0 && a->head_dim <= 384 && in_pieces(&a->q, a->ld_q) &&
           in_pieces(&a->k, a->ld_k) && in_pieces(&a->v, a->ld_v) && in_pieces(&a->out, a->ld_out);
}

/* Means in the type of the keys, for the tensor core kernels; 0 after a sticky error. */
static int round_means(hs_device *dev, const hs_attention *a, attn_call *c) {
    if (!a->comp_k.p) return 1;
    const size_t bytes = (size_t)(a->comp_k.n * 2 + 255) / 256 * 256;
    char *room = (char *)hs_cuda_scratch(dev, 2 * bytes);
    if (!room) return 0;
    hs_cuda_copy(dev, hs_buf{room, a->q.type, a->comp_k.n}, a->comp_k);
    hs_cuda_copy(dev, hs_buf{room + bytes, a->q.type, a->comp_v.n}, a->comp_v);
    c->comp_k = room;
    c->comp_v = room + bytes;
    return 1;
}

void hs_cuda_attention(hs_device *dev, const hs_attention *a) {
    if (a->len_q > INT32_MAX / 2 || a->len_k > INT32_MAX / 2) { /* places are ints */
        hs_device_sticky(dev, HS_ENOTSUP, "attention: %lld queries and %lld keys, at most %d each", (long long)a->len_q,
                         (long long)a->len_k, INT32_MAX / 2);
        return;
    }
    attn_call c = call_of(a);
    if (for_tensor_cores(a)) {
        attn_call rounded = c;
        if (!round_means(dev, a, &rounded)) return;
        if (a->q.type == HS_BF16 ? launch_shape<__nv_bfloat16>(dev, &rounded) : launch_shape<__half>(dev, &rounded))
            return;
    }
    hs_cuda_typed(a->q.type, [&](auto *t) { launch_plain<std::decay_t<decltype(*t)>>(dev, &c); });
}
