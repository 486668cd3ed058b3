/* Attention on Hopper: which calls the kernel takes, in which shape, and the plan of a mask's tiles. */
#include "cuda/attn_hopper.cuh"

enum { PLAN_THREADS = 256, PLAN_TILES = 4096 /* of a head; more come in their natural order */ };

/* The tiles' lengths and order; a block per head. The last head to finish ranks the heads. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_tiles(const __grid_constant__ attn_call a, hopper_plan plan, int rows_per_tile, int keys) {
    __shared__ int length[PLAN_TILES], sum, last;
    const int head = (int)blockIdx.x, tid = (int)threadIdx.x;
    const int parts = a.block / rows_per_tile, all = (a.len_k + keys - 1) / keys, dense = a.dense[head];
    const int full = a.block / keys, end = (a.len_k - (a.cols - 1) * a.block + keys - 1) / keys; /* steps of a column */
    if (tid == 0) sum = 0;
    __syncthreads();
    for (int r = tid; r < a.rows; r += PLAN_THREADS) {
        const uint32_t *bits = a.bits + ((int64_t)head * a.rows + r) * a.words;
        int kept = 0;
        for (int w = 0; w < a.words; w++) kept += __popc(bits[w]);
        const int ends = bits[a.words - 1] >> ((a.cols - 1) % 32) & 1;
        const int steps = dense ? all : (kept - ends) * full + ends * end;
        plan.steps[head * a.rows + r] = steps;
        if (r < PLAN_TILES) length[r] = steps;
        atomicAdd(&sum, steps);
    }
    __syncthreads();
    for (int t = tid; t < a.tiles; t += PLAN_THREADS) {
        int rank = t;
        if (a.rows <= PLAN_TILES && !dense) {
            const int row = t / parts, mine = length[row];
            rank = t % parts;
            for (int r = 0; r < a.rows; r++) rank += length[r] > mine || (length[r] == mine && r < row) ? parts : 0;
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
        const int mine = ((volatile int *)plan.load)[h];
        int rank = 0;
        for (int i = 0; i < a.heads; i++) {
            const int other = ((volatile int *)plan.load)[i];
            rank += other > mine || (other == mine && i < h);
        }
        plan.head_order[rank] = h;
    }
}

template <typename S> static int launch(hs_device *dev, const hs_attention *a, hopper_call *c) {
    hs_cuda *const gpu = hs_cuda_of(dev);
    const size_t bytes = hopper_bytes<S>(c->a.words);
    const int64_t tiles = attn_tiles(&c->a, S::ROWS), total = tiles * a->heads;
    const bool bf16 = std::is_same<typename S::T, __nv_bfloat16>::value, planned = a->mask && a->mask->block;
    if (bytes > gpu->shared_max || total > INT32_MAX / 2) return 0;
    if (!S::GATHER && !(hopper_map(&c->q, bf16, a->q.p, HOPPER_DIM, a->len_q, a->heads, a->ld_q, HOPPER_DIM, S::ROWS) &&
                        hopper_map(&c->k, bf16, a->k.p, HOPPER_DIM, a->len_k, a->heads, a->ld_k, HOPPER_DIM, S::KEYS) &&
                        hopper_map(&c->v, bf16, a->v.p, HOPPER_DIM, a->len_k, a->heads, a->ld_v, HOPPER_DIM, S::KEYS)))
        return 0;
    c->a.tiles = (int)tiles;
    c->total = (int)total;
    const int64_t rows = planned ? (int64_t)a->heads * a->mask->rows : 0, order = planned ? total : 0;
    int *room = (int *)hs_cuda_scratch(dev, (size_t)(4 + rows + order + 2 * a->heads) * sizeof(int));
    if (!room) return 1;
    c->plan.next = room;
    c->plan.done = room + 1;
    if (planned) {
        c->plan.steps = room + 4;
        c->plan.tile_order = c->plan.steps + rows;
        c->plan.load = c->plan.tile_order + order;
        c->plan.head_order = c->plan.load + a->heads;
    }
    if (!hs_cuda_ok(dev, cudaMemsetAsync(room, 0, 2 * sizeof(int), gpu->stream), "attention")) return 1;
    if (planned) {
        plan_tiles<<<(unsigned)a->heads, PLAN_THREADS, 0, gpu->stream>>>(c->a, c->plan, S::ROWS, S::KEYS);
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
    if (!m || (m->block && m->block % 128 == 0)) return launch<hopper_shape<T, 2, 128, 1, false, 40, 232>>(dev, a, c);
    if (m->block) return launch<hopper_shape<T, 1, 64, 2, false, 56, 200>>(dev, a, c);
    return launch<hopper_shape<T, 1, 64, 2, true, 56, 200>>(dev, a, c);
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
