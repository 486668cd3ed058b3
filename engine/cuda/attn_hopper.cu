/* Attention on Hopper: which calls the kernel takes, in which shape; what is made of a mask before: the plan of its
 * tiles, and for clusters copies of keys and values. */
#include "cuda/attn_hopper.cuh"

enum {
    PLAN_THREADS = 1024,
    PLAN_TILES = 4096, /* of a head; more come in their natural order */
    COPY_THREADS = 256,
    COPIES_LIMIT = 256 << 20 /* bytes of copies at a time: heads beyond it come in turn */
};

/* Where the granules of every column of a clustered mask begin: first [cols + 1]; by a block. */
static __device__ void place_granules(const attn_call &a, int head, int *first) {
    __shared__ int warps[PLAN_THREADS / 32];
    const int tid = (int)threadIdx.x;
    int before = 0;
    for (int begin = 0; begin < a.cols; begin += PLAN_THREADS) {
        const int c = begin + tid;
        const int mine = c < a.cols ? (attn_edge(a, head, c + 1) - attn_edge(a, head, c) + GRANULE - 1) / GRANULE : 0;
        const int sum = warp_sum_to(tid % 32, mine);
        if (tid % 32 == 31) warps[tid / 32] = sum;
        __syncthreads();
        if (tid < 32) warps[tid] = warp_sum_to(tid % 32, warps[tid]);
        __syncthreads();
        if (c < a.cols) first[c] = before + (tid < 32 ? 0 : warps[tid / 32 - 1]) + sum - mine;
        before += warps[PLAN_THREADS / 32 - 1];
        __syncthreads();
    }
    if (tid == 0) first[a.cols] = before;
}

/* Keys that a row of the mask keeps, clusters in whole granules; by a warp. */
static __device__ int keys_of_row(const attn_call &a, int head, int row, const int *first) {
    const uint32_t *bits = a.bits + ((int64_t)head * a.rows + row) * a.words;
    int keys = 0;
    if (a.dense[head]) return 0; /* its bits mean nothing */
    for (int w = (int)threadIdx.x % 32; w < a.words; w += 32) {
        const uint32_t word = bits[w];
        if (a.block)
            keys += __popc(word) * a.block;
        else
            for (uint32_t left = word; left; left &= left - 1) {
                const int c = w * 32 + __ffs((int)left) - 1;
                keys += (first[c + 1] - first[c]) * GRANULE;
            }
        if (a.block && w == a.words - 1 && word >> ((a.cols - 1) % 32) & 1) keys -= a.cols * a.block - a.len_k;
    }
    return warp_sum(keys);
}

/* Descending; n: a power of two. By a block. */
static __device__ void sort_down(unsigned long long *v, int n) {
    for (int run = 2; run <= n; run *= 2)
        for (int apart = run / 2; apart; apart /= 2) {
            for (int i = (int)threadIdx.x; i < n / 2; i += PLAN_THREADS) {
                const int a = 2 * i - (i & (apart - 1)), b = a + apart;
                const unsigned long long x = v[a], y = v[b];
                if ((x < y) == !(a & run)) v[a] = y, v[b] = x;
            }
            __syncthreads();
        }
}

/* The tiles' keys and order, and where columns begin in the copies of a clustered mask; a block per head. The last head
 * to finish ranks the heads. */
static __global__ void __launch_bounds__(PLAN_THREADS)
    plan_tiles(const __grid_constant__ attn_call a, hopper_plan plan, int *first, int tile_rows) {
    __shared__ unsigned long long work[PLAN_TILES], sum; /* work: keys of a tile, for 64 rows each, and its number */
    __shared__ int last;
    const int head = (int)blockIdx.x, tid = (int)threadIdx.x;
    if (tid == 0) sum = 0;
    if (!a.block && !a.dense[head]) place_granules(a, head, first += head * (a.cols + 1));
    __syncthreads();
    for (int r = tid / 32; r < a.rows; r += PLAN_THREADS / 32) {
        const int k = keys_of_row(a, head, r, first);
        if (tid % 32 == 0) plan.keys[head * a.rows + r] = k;
    }
    __syncthreads();
    int n = 1;
    while (n < a.tiles) n *= 2;
    unsigned long long mine = 0;
    for (int t = tid; t < n; t += PLAN_THREADS) {
        attn_tile tile;
        unsigned keys = 0; /* nothing: behind all tiles */
        if (t < a.tiles && attn_tile_at(a, tile_rows, (int64_t)head * a.tiles + t, &tile))
            keys = 1u + (unsigned)(tile.bits ? plan.keys[head * a.rows + hopper_row(a, tile)] : a.len_k) *
                            (unsigned)((tile.count + 63) / 64);
        mine += keys;
        if (n <= PLAN_TILES)
            work[t] = (unsigned long long)keys << 32 | (0xffffffffu - (unsigned)t);
        else if (t < a.tiles)
            plan.tile_order[head * a.tiles + t] = t;
    }
    mine = warp_sum(mine);
    if (tid % 32 == 0) atomicAdd(&sum, mine);
    __syncthreads();
    if (n <= PLAN_TILES) {
        sort_down(work, n);
        for (int i = tid; i < a.tiles; i += PLAN_THREADS)
            plan.tile_order[head * a.tiles + i] = (int)(0xffffffffu - (unsigned)work[i]);
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

/* A granule of keys and of values; by a warp. */
static __global__ void __launch_bounds__(COPY_THREADS)
    copy_granules(const __grid_constant__ attn_call a, hopper_copies to) {
    const int head = (int)blockIdx.y, granule = (int)(blockIdx.x * (COPY_THREADS / 32) + threadIdx.x / 32);
    const int row0 = (int)threadIdx.x % 32 / 16, piece = (int)threadIdx.x % 16;
    const int *const first = to.first + head * (a.cols + 1);
    const bool dense = a.dense[head];
    int place = granule * GRANULE, end = a.len_k;
    if (!dense) {
        if (granule >= first[a.cols]) return;
        int low = 0, high = a.cols; /* the column's first granule is not behind this one, the next column's is */
        while (high - low > 1) {
            const int mid = (low + high) / 2;
            if (first[mid] <= granule)
                low = mid;
            else
                high = mid;
        }
        place = attn_edge(a, head, low) + (granule - first[low]) * GRANULE;
        end = attn_edge(a, head, low + 1);
    }
    if (place >= end) return;
    uint4 k[GRANULE / 2], v[GRANULE / 2];
#pragma unroll
    for (int i = 0; i < GRANULE / 2; i++) {
        const int at = place + 2 * i + row0;
        k[i] = v[i] = make_uint4(0, 0, 0, 0);
        if (at >= end) continue;
        const int64_t token = dense ? at : a.k_order[(int64_t)head * a.len_k + at];
        k[i] = ((const uint4 *)((const uint16_t *)a.k + token * a.ld_k + head * HOPPER_DIM))[piece];
        v[i] = ((const uint4 *)((const uint16_t *)a.v + token * a.ld_v + head * HOPPER_DIM))[piece];
    }
    const int64_t to_granule =
        ((int64_t)head * to.granules + granule) * GRANULE_BYTES + piece / 8 * (GRANULE_BYTES / 2);
#pragma unroll
    for (int i = 0; i < GRANULE / 2; i++) {
        const int row = 2 * i + row0, at = row * HOPPER_ROW + ((piece % 8) ^ row) * 16;
        *(uint4 *)(void *)(to.k + to_granule + at) = k[i];
        *(uint4 *)(void *)(to.v + to_granule + at) = v[i];
    }
}

/* The next part of scratch memory. */
static char *part(char **room, int64_t bytes) {
    char *const p = *room;
    *room += (bytes + 255) / 256 * 256;
    return p;
}

/* Heads [0, heads) of c->a; scratch is for that many. */
template <typename S> static int launch_heads(hs_device *dev, hopper_call *c, char *room) {
    hs_cuda *const gpu = hs_cuda_of(dev);
    const attn_call *const a = &c->a;
    const bool bf16 = std::is_same<typename S::T, __nv_bfloat16>::value;
    const size_t bytes = hopper_bytes<S>();
    const int64_t total = (int64_t)a->tiles * a->heads;
    const int share = S::KEYS / S::PAIR; /* keys that a block brings of a step */
    if (!S::GATHER && !(hopper_map(&c->q, bf16, a->q, HOPPER_DIM, a->len_q, a->heads, a->ld_q, HOPPER_DIM, S::ROWS) &&
                        hopper_map(&c->k, bf16, a->k, HOPPER_DIM, a->len_k, a->heads, a->ld_k, HOPPER_DIM, share) &&
                        hopper_map(&c->v, bf16, a->v, HOPPER_DIM, a->len_k, a->heads, a->ld_v, HOPPER_DIM, share)))
        return 0;
    c->total = (int)total;
    const char *const cleared = room;
    int *const numbers = (int *)part(&room, 4 * 4);
    c->copies.zeros = part(&room, S::GATHER ? S::KV_BYTES : 0);
    c->lost = (unsigned char *)part(&room, total);
    if (!hs_cuda_ok(dev, cudaMemsetAsync(numbers, 0, (size_t)(room - cleared), gpu->stream), "attention")) return 1;
    c->plan.done = numbers, c->any = numbers + 1;
    if (a->bits) {
        c->plan.load = (unsigned long long *)part(&room, a->heads * 8);
        c->plan.keys = (int *)part(&room, (int64_t)a->heads * a->rows * 4);
        c->plan.tile_order = (int *)part(&room, total * 4);
        c->plan.head_order = (int *)part(&room, a->heads * 4);
        if (S::GATHER) c->copies.first = (int *)part(&room, (int64_t)a->heads * (a->cols + 1) * 4);
        plan_tiles<<<(unsigned)a->heads, PLAN_THREADS, 0, gpu->stream>>>(*a, c->plan, c->copies.first, S::ROWS);
        if (!HS_CUDA_LAUNCHED(dev, "attention, plan")) return 1;
    }
    if (S::GATHER) {
        const int64_t copies = (int64_t)a->heads * c->copies.granules * GRANULE_BYTES;
        c->copies.k = part(&room, copies);
        c->copies.v = part(&room, copies);
        const dim3 grid((unsigned)((c->copies.granules + COPY_THREADS / 32 - 1) / (COPY_THREADS / 32)),
                        (unsigned)a->heads);
        copy_granules<<<grid, COPY_THREADS, 0, gpu->stream>>>(*a, c->copies);
        if (!HS_CUDA_LAUNCHED(dev, "attention, copies")) return 1;
    }
    const cudaError_t e = cudaFuncSetAttribute(attn_hopper<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (!hs_cuda_ok(dev, e, "attention")) return 1;
    const int64_t most = (int64_t)gpu->sms * S::BLOCKS / S::PAIR, /* clusters of blocks */
        needed = (a->tiles + S::PAIR - 1) / S::PAIR * (int64_t)a->heads;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = S::PAIR, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    cudaLaunchConfig_t how = {};
    how.gridDim = dim3((unsigned)((most < needed ? most : needed) * S::PAIR)), how.blockDim = dim3(S::THREADS);
    how.dynamicSmemBytes = bytes, how.stream = gpu->stream;
    how.attrs = &cluster, how.numAttrs = S::PAIR > 1;
    for (c->careful = 0; c->careful < 2; c->careful++) { /* lost tiles once more: hardly ever one */
        c->plan.next = numbers + 2 + c->careful;
        if (!hs_cuda_ok(dev, cudaLaunchKernelEx(&how, attn_hopper<S>, *c), "attention")) break;
    }
    return 1;
}

/* The same call from head h on. */
static attn_call from_head(attn_call a, int h) {
    const int64_t at = (int64_t)h * HOPPER_DIM;
    a.q = (const uint16_t *)a.q + at, a.k = (const uint16_t *)a.k + at, a.v = (const uint16_t *)a.v + at;
    a.out = (uint16_t *)a.out + at;
    if (a.bits) a.bits += (int64_t)h * a.rows * a.words, a.dense += h;
    if (a.q_order) {
        a.q_order += (int64_t)h * a.len_q, a.k_order += (int64_t)h * a.len_k;
        a.q_start += (int64_t)h * (a.rows + 1), a.k_start += (int64_t)h * (a.cols + 1);
    }
    return a;
}

/* 0: not for this kernel. */
template <typename S> static int launch(hs_device *dev, hopper_call *c) {
    const attn_call all = c->a;
    const int64_t tiles = attn_tiles(&all, S::ROWS), granules = all.len_k / GRANULE + all.cols + 1;
    const int64_t copies = S::GATHER ? 2 * granules * GRANULE_BYTES : 0; /* of a head */
    const int64_t fit = COPIES_LIMIT / (copies ? copies : 1);
    const int64_t turns = fit < 1 ? all.heads : (all.heads + fit - 1) / fit;
    const int heads = (int)((all.heads + turns - 1) / turns);
    if (hopper_bytes<S>() > hs_cuda_of(dev)->shared_max || tiles * all.heads > INT32_MAX / 2 ||
        granules > INT32_MAX / 2)
        return 0;
    const int64_t of_head = all.rows * 4 + tiles * 5 + 12 + (all.cols + 1) * 4 + copies;
    char *room = (char *)hs_cuda_scratch(dev, (size_t)(heads * of_head + 10 * 256 + S::KV_BYTES));
    if (!room) return 1;
    c->copies.granules = (int)granules;
    for (int h = 0; h < all.heads && !dev->sticky; h += heads) {
        c->a = from_head(all, h);
        c->a.tiles = (int)tiles;
        c->a.heads = all.heads - h < heads ? all.heads - h : heads;
        if (!launch_heads<S>(dev, c, room)) return 0;
    }
    return 1;
}

/* Tiles of 128 rows where a mask's blocks allow it; a processor has room for one of them, or for two of 64 rows. */
template <typename T> static int launch_shape(hs_device *dev, const hs_mask *m, hopper_call *c) {
    if (!m) return launch<hopper_shape<T, 2, 128, 1, false, 2, 2, 56, 224, 2>>(dev, c);
    if (m->block && m->block % 128 == 0) return launch<hopper_shape<T, 2, 128, 1, false, 2, 2, 40, 232>>(dev, c);
    if (m->block) return launch<hopper_shape<T, 1, 64, 2, false, 1, 3, 56, 200>>(dev, c);
    return launch<hopper_shape<T, 2, 128, 1, true, 1, 3, 56, 224>>(dev, c);
}

int hs_cuda_attention_hopper(hs_device *dev, const hs_attention *a) {
    const hs_mask *m = a->mask;
    if (!hs_cuda_hopper(dev) || a->q.type == HS_F32 || a->head_dim != HOPPER_DIM || !attn_in_pieces(a)) return 0;
    if (a->rel_bias.p || a->comp_k.p || (m && m->block % 64) || (m && !m->block && a->last_key_bonus != 0)) return 0;
    hopper_call c = {};
    c.a = attn_call_of(a);
    c.limit = a->q.type == HS_BF16 ? 0x1p60f : 0x1p15f; /* what 16-bit operands hold, and sums of it */
    return a->q.type == HS_BF16 ? launch_shape<__nv_bfloat16>(dev, m, &c) : launch_shape<__half>(dev, m, &c);
}
