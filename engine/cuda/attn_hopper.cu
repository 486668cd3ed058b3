/* Attention on Hopper: which calls the kernel takes, in which shape, and the plan of a mask's tiles. */
#include "cuda/attn_hopper.cuh"

enum { PLAN_THREADS = 256, PLAN_TILES = 4096 /* of a head; more come in their natural order */ };

/* Keys that a row of the mask keeps; by a warp. */
static __device__ int keys_of_row(const attn_call &a, int head, int row) {
    const uint32_t *bits = a.bits + ((int64_t)head * a.rows + row) * a.words;
    int keys = 0;
    for (int w = (int)threadIdx.x % 32; w < a.words; w += 32) {
        const uint32_t word = bits[w];
        if (a.block)
            keys += __popc(word) * a.block;
        else
            for (uint32_t left = word; left; left &= left - 1) {
                const int c = w * 32 + __ffs((int)left) - 1;
                keys += attn_edge(a, head, c + 1) - attn_edge(a, head, c);
            }
        if (a.block && w == a.words - 1 && word >> ((a.cols - 1) % 32) & 1) keys -= a.cols * a.block - a.len_k;
    }
    for (int d = 16; d; d /= 2) keys += __shfl_xor_sync(~0u, keys, d);
    return keys;
}

/* The tiles' keys and order; a block per head. The last head to finish ranks the heads. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_tiles(const __grid_constant__ attn_call a, hopper_plan plan, int tile_rows) {
    __shared__ int keys[PLAN_TILES], last; /* keys: of a tile; -1: there is none */
    __shared__ unsigned long long sum;     /* of the tiles */
    const int head = (int)blockIdx.x, tid = (int)threadIdx.x, some = min(a.tiles, (int)PLAN_TILES);
    if (tid == 0) sum = 0;
    for (int r = tid / 32; r < a.rows; r += PLAN_THREADS / 32) {
        const int k = keys_of_row(a, head, r);
        if (tid % 32 == 0) plan.keys[head * a.rows + r] = k;
    }
    __syncthreads();
    for (int t = tid; t < some; t += PLAN_THREADS) {
        attn_tile tile;
        const int there = attn_tile_at(a, tile_rows, (int64_t)head * a.tiles + t, &tile);
        keys[t] = !there ? -1 : tile.bits ? plan.keys[head * a.rows + hopper_row(a, tile)] : a.len_k;
        if (there) atomicAdd(&sum, (unsigned long long)keys[t]);
    }
    __syncthreads();
    for (int t = tid; t < a.tiles; t += PLAN_THREADS) {
        int rank = t;
        if (a.tiles <= PLAN_TILES) {
            rank = 0;
            for (int i = 0; i < a.tiles; i++) rank += keys[i] > keys[t] || (keys[i] == keys[t] && i < t);
        }
        plan.tile_order[head * a.tiles + rank] = t;
    }
    if (tid == 0) {
        plan.load[head] = sum;
        __threadfence();
        last = atomicAdd(plan.done, 1) == a.heads - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    for (int h = tid; h < a.heads; h += PLAN_THREADS) {
        const unsigned long long mine = ((volatile unsigned long long *)plan.load)[h];
        int rank = 0;
        for (int i = 0; i < a.heads; i++) {
            const unsigned long long other = ((volatile unsigned long long *)plan.load)[i];
            rank += other > mine || (other == mine && i < h);
        }
        plan.head_order[rank] = h;
    }
}

template <typename S> static int launch(hs_device *dev, const hs_attention *a, hopper_call *c) {
    hs_cuda *const gpu = hs_cuda_of(dev);
    const size_t bytes = hopper_bytes<S>();
    const int64_t tiles = attn_tiles(&c->a, S::ROWS), total = tiles * a->heads;
    const bool bf16 = std::is_same<typename S::T, __nv_bfloat16>::value, planned = a->mask;
    if (bytes > gpu->shared_max || total > INT32_MAX / 2) return 0;
    if (!S::GATHER && !(hopper_map(&c->q, bf16, a->q.p, HOPPER_DIM, a->len_q, a->heads, a->ld_q, HOPPER_DIM, S::ROWS) &&
                        hopper_map(&c->k, bf16, a->k.p, HOPPER_DIM, a->len_k, a->heads, a->ld_k, HOPPER_DIM, S::KEYS) &&
                        hopper_map(&c->v, bf16, a->v.p, HOPPER_DIM, a->len_k, a->heads, a->ld_v, HOPPER_DIM, S::KEYS)))
        return 0;
    c->a.tiles = (int)tiles;
    c->total = (int)total;
    const int64_t rows = planned ? (int64_t)a->heads * a->mask->rows : 0, order = planned ? total : 0;
    int *room = (int *)hs_cuda_scratch(dev, (size_t)(4 + rows + order + 3 * a->heads) * sizeof(int));
    if (!room) return 1;
    c->plan.next = room;
    c->plan.done = room + 1;
    if (planned) {
        c->plan.load = (unsigned long long *)(room + 4);
        c->plan.keys = room + 4 + 2 * a->heads;
        c->plan.tile_order = c->plan.keys + rows;
        c->plan.head_order = c->plan.tile_order + order;
    }
    if (!hs_cuda_ok(dev, cudaMemsetAsync(room, 0, 2 * sizeof(int), gpu->stream), "attention")) return 1;
    if (planned) {
        plan_tiles<<<(unsigned)a->heads, PLAN_THREADS, 0, gpu->stream>>>(c->a, c->plan, S::ROWS);
        if (!HS_CUDA_LAUNCHED(dev, "attention, plan")) return 1;
    }
    const cudaError_t e = cudaFuncSetAttribute(attn_hopper<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (!hs_cuda_ok(dev, e, "attention")) return 1;
    const int64_t blocks = (int64_t)gpu->sms * S::BLOCKS;
    attn_hopper<S><<<(unsigned)(blocks < total ? blocks : total), S::THREADS, bytes, gpu->stream>>>(*c);
    HS_CUDA_LAUNCHED(dev, "attention");
    return 1;
}

/* Tiles of 128 rows where a mask's blocks allow it; a processor has room for one of them, or for two of 64 rows. */
template <typename T> static int launch_shape(hs_device *dev, const hs_attention *a, hopper_call *c) {
    const hs_mask *m = a->mask;
    if (!m || (m->block && m->block % 128 == 0))
        return launch<hopper_shape<T, 2, 128, 1, false, 2, 2, 40, 232>>(dev, a, c);
    if (m->block) return launch<hopper_shape<T, 1, 64, 2, false, 1, 3, 56, 200>>(dev, a, c);
    return launch<hopper_shape<T, 1, 64, 2, true, 2, 2, 56, 200>>(dev, a, c);
}

int hs_cuda_attention_hopper(hs_device *dev, const hs_attention *a) {
    const hs_mask *m = a->mask;
    if (!hs_cuda_hopper(dev) || a->q.type == HS_F32 || a->head_dim != HOPPER_DIM || !attn_in_pieces(a)) return 0;
    if (a->rel_bias.p || a->comp_k.p || (m && m->block % 64) || (m && !m->block && a->last_key_bonus != 0)) return 0;
    hopper_call c = {};
    c.a = attn_call_of(a);
    c.slack = 8 / c.a.unit; /* exponentials reach 2^8, which all types hold */
    return a->q.type == HS_BF16 ? launch_shape<__nv_bfloat16>(dev, a, &c) : launch_shape<__half>(dev, a, &c);
}
