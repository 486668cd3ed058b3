/* Attention of the CUDA backend: which kernel takes a call. Hopper is asked first (attn_hopper.cu). Else 16-bit
 * operands go to tensor cores (attn_mma.cuh), fp32 and what does not fit there to ordinary cores (attn_plain.cuh); both
 * walk masks the same way (attn_walk.cuh), dense attention being the mask that keeps everything.
 *
 * Blocks of threads are numbered head by head: those that run at a time read the same keys, which then come from L2.
 */
#include "cuda/attn_mma.cuh"
#include "cuda/attn_plain.cuh"

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

static int for_tensor_cores(const hs_attention *a) {
    return a->q.type != HS_F32 && a->head_dim % 8 == 0 && a->head_dim <= 384 && attn_in_pieces(a);
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
    if (hs_cuda_attention_hopper(dev, a)) return;
    attn_call c = attn_call_of(a);
    if (for_tensor_cores(a)) {
        attn_call rounded = c;
        if (!round_means(dev, a, &rounded)) return;
        if (a->q.type == HS_BF16 ? launch_shape<__nv_bfloat16>(dev, &rounded) : launch_shape<__half>(dev, &rounded))
            return;
    }
    hs_cuda_typed(a->q.type, [&](auto *t) { launch_plain<std::decay_t<decltype(*t)>>(dev, &c); });
}
