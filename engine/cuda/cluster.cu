/* k-means of the tokens of each head, for SVG2's masks. spec haste.md 4.2
 *
 * A call is one launch, for queries and keys together: blocks that are all on the GPU at once go through the steps of
 * every round together and wait for each other in between: assign, scan, place, add, mean. Every block decides for
 * itself which heads still run, by the same numbers; a head that has stopped or reuses is passed over, and where no
 * head wants anything the launch ends at once.
 *
 * The nearest centroid c of a token x has the largest x.c - |c|^2 / 2. On tensor cores a centroid is the sum of two
 * 16-bit halves, after a power of two that brings its largest component to [1/2, 1): that keeps 16 (bf16) or 22 bits of
 * it, and |c|^2 is that of what is kept, so labels are exact for centroids moved by less than their 2^-17th part.
 * Hopper multiplies with a rounding of the type of x (cluster_hopper.cuh). Tokens are grouped by counting per run of
 * 512 tokens, which is stable; sums are over 32 grouped tokens at a time, whatever the sizes of the clusters. Nothing
 * depends on the order in which blocks run.
 */
#include "cuda/cluster_hopper.cuh"
#include "cuda/cluster_steps.cuh"

#include <cooperative_groups.h>

enum {
    STAGES = 4,    /* slabs of centroids under way */
    MAX_SLABS = 4, /* of a token: head sizes of more than 256 go without tensor cores */
};

/* ---- assign ----------------------------------------------------------------------------------------------------- */

/* Per thread the best so far of each of its rows. */
template <typename Tile> struct nearest {
    float best[Tile::ROWS];
    int label[Tile::ROWS];
    __device__ __forceinline__ void clear() {
        for (int i = 0; i < Tile::ROWS; i++) {
            best[i] = -INFINITY;
            label[i] = 0;
        }
    }
    /* Columns come in rising order: the first of equals stays. */
    __device__ __forceinline__ void look(const Tile &c, const float2 *bias, int first) {
#pragma unroll
        for (int j = 0; j < Tile::COLS; j++) {
            const int cluster = first + Tile::col(j);
            const float2 b = bias[cluster];
#pragma unroll
            for (int i = 0; i < Tile::ROWS; i++) {
                const float score = fmaf(c.at(i, j), b.x, -b.y);
                if (score > best[i]) {
                    best[i] = score;
                    label[i] = cluster;
                }
            }
        }
    }
};

static __device__ __forceinline__ void better(float &best, int &label, float other, int other_label) {
    if (other > best || (other == best && other_label < label)) {
        best = other;
        label = other_label;
    }
}

/* The threads that share a row agree; labels are written and counted. */
template <typename Tile>
static __device__ __forceinline__ void write_labels(const kmeans &m, int head, int64_t first, nearest<Tile> &n) {
    __shared__ float best[TILE][Tile::WARPS];
    __shared__ int label[TILE][Tile::WARPS];
#pragma unroll
    for (int i = 0; i < Tile::ROWS; i++) {
        for (int d = 1; d < Tile::LANES; d *= 2) {
            const float other = __shfl_xor_sync(~0u, n.best[i], d);
            better(n.best[i], n.label[i], other, __shfl_xor_sync(~0u, n.label[i], d));
        }
        if (threadIdx.x % Tile::LANES == 0) {
            best[Tile::row(i)][Tile::warp_col()] = n.best[i];
            label[Tile::row(i)][Tile::warp_col()] = n.label[i];
        }
    }
    __syncthreads();
    const int64_t token = first + threadIdx.x;
    if (threadIdx.x >= TILE || token >= m.len) return;
    for (int w = 1; w < Tile::WARPS; w++)
        better(best[threadIdx.x][0], label[threadIdx.x][0], best[threadIdx.x][w], label[threadIdx.x][w]);
    write_label(m, head, token, label[threadIdx.x][0]);
}

/* Blocks share the tiles of all heads that run: work(side, head, first token). */
template <typename W> static __device__ __forceinline__ void share_tiles(const kmeans_call &call, W work) {
    for (int s = 0; s < call.sides; s++) {
        const kmeans &m = call.side[s];
        const int64_t tiles = (m.len + TILE - 1) / TILE;
        for (int64_t item = blockIdx.x; item < m.heads * tiles; item += gridDim.x)
            if (states(m)[item / tiles] & RUNS) work(m, (int)(item / tiles), item % tiles * TILE);
    }
}

/* 128 tokens of a head against all its centroids: the tokens stay in shared memory, centroids stream past. */
template <typename T> struct near_by_mma {
    using type = T;
    enum { THREADS = mma_tile::THREADS, BLOCKS = 2, HALVES = 2 };
    static int width(int) { return TILE; }
    __device__ __forceinline__ void begin() {}
    __device__ __forceinline__ void assign(const kmeans_call &call, int, unsigned char *shared) {
        share_tiles(call, [&](const kmeans &m, int head, int64_t first) { tile(m, head, first, (T *)shared); });
    }
    static __device__ __forceinline__ void tile(const kmeans &m, int head, int64_t first, T *tokens) {
        const int chunk = threadIdx.x % CHUNK, wide = 2 * m.slabs, steps = (int)(m.padded / TILE) * wide;
        T *stages = tokens + m.slabs * SLAB_SIZE;
        const T *x = (const T *)m.x + (int64_t)head * m.dim;
        const T *halves = (const T *)m.halves + (int64_t)head * m.padded * wide * SLAB;
        auto load = [&](int step) {
            T *slab = stages + step % STAGES * SLAB_SIZE;
            const T *from = halves + (int64_t)(step / wide) * TILE * wide * SLAB + step % wide * SLAB + chunk * CHUNK;
            for (int r = threadIdx.x / CHUNK; r < TILE; r += THREADS / CHUNK)
                copy_chunk(slab, r, chunk, from + (int64_t)r * wide * SLAB, true);
        };
        for (int s = 0; s < m.slabs; s++)
            for (int r = threadIdx.x / CHUNK; r < TILE; r += THREADS / CHUNK) {
                const int d = s * SLAB + chunk * CHUNK;
                const bool there = first + r < m.len && d < m.dim;
                copy_chunk(tokens + s * SLAB_SIZE, r, chunk, there ? x + (first + r) * m.ld + d : x, there);
            }
        for (int step = 0; step < STAGES - 1; step++) { /* the tokens belong to the first group */
            if (step < steps) load(step);
            copy_commit();
        }
        nearest<mma_tile> n;
        mma_tile c;
        n.clear();
        c.clear();
        for (int step = 0; step < steps; step++) {
            copy_wait<STAGES - 2>();
            __syncthreads(); /* the slab of this step is there for all, that of the last one free */
            if (step + STAGES - 1 < steps) load(step + STAGES - 1);
            copy_commit();
            c.multiply(tokens + step % m.slabs * SLAB_SIZE, stages + step % STAGES * SLAB_SIZE);
            if (step % wide == wide - 1) {
                n.look(c, m.bias + head * m.padded, step / wide * TILE);
                c.clear();
            }
        }
        write_labels(m, head, first, n);
        __syncthreads(); /* the next tile may overwrite all */
    }
};

template <typename T> struct near_by_fma {
    using type = T;
    enum { THREADS = fma_tile::THREADS, BLOCKS = 1, HALVES = 0 };
    static int width(int) { return TILE; }
    __device__ __forceinline__ void begin() {}
    __device__ __forceinline__ void assign(const kmeans_call &call, int round, unsigned char *shared) {
        share_tiles(call,
                    [&](const kmeans &m, int head, int64_t first) { tile(m, round, head, first, (float *)shared); });
    }
    static __device__ __forceinline__ void tile(const kmeans &m, int round, int head, int64_t first, float *shared) {
        const T *x = (const T *)m.x + (int64_t)head * m.dim;
        const float *centroids = centroids_of(m, round) + (int64_t)head * m.clusters * m.dim;
        nearest<fma_tile> n;
        fma_tile c;
        n.clear();
        for (int c0 = 0; c0 < m.clusters; c0 += TILE) {
            c.clear();
            c.multiply(
                m.dim, [&](int r, int d) { return first + r < m.len ? to_f32(x[(first + r) * m.ld + d]) : 0; },
                [&](int r, int d) { return c0 + r < m.clusters ? centroids[(int64_t)(c0 + r) * m.dim + d] : 0; },
                shared);
            n.look(c, m.bias + head * m.padded, c0);
        }
        write_labels(m, head, first, n);
        __syncthreads(); /* the next tile may overwrite all */
    }
};

/* ---- the rounds ------------------------------------------------------------------------------------------------- */

template <typename Near>
__global__ void __launch_bounds__(Near::THREADS, Near::BLOCKS) rounds(const __grid_constant__ kmeans_call call) {
    using T = typename Near::type;
    extern __shared__ __align__(1024) unsigned char shared[];
    static_assert(Near::THREADS >= HS_CLUSTER_HEADS, "a thread for every head");
    auto each = [&](auto work) {
        for (int s = 0; s < call.sides; s++) work(call.side[s]);
    };
    auto any = [&](auto is) { /* of the heads, a thread each */
                              int found = 0;
                              each([&](const kmeans &m) { found |= (int)threadIdx.x < m.heads && is(m, threadIdx.x); });
                              return __syncthreads_or(found);
    };
    if (!any([](const kmeans &m, int h) { return m.want[h]; })) return;
    const cooperative_groups::grid_group all = cooperative_groups::this_grid();
    constexpr int V1 = Near::HALVES == 1 ? 4 : 1; /* on Hopper always fours */
    Near near;
    near.begin();
    each([&](const kmeans &m) {
        if (V1 == 4 || m.fours)
            start<T, Near::HALVES, 4>(m);
        else
            start<T, Near::HALVES, V1>(m);
    });
    for (int round = 0;; round++) {
        fence_async_all(); /* the halves, for copies of others */
        all.sync();
        if (round) each([&](const kmeans &m) { decide(m, round - 1); });
        if (!any([](const kmeans &m, int h) { return states(m)[h] & RUNS; })) break;
        near.assign(call, round, shared);
        all.sync();
        each([&](const kmeans &m) { settle(m), scan(m, round); });
        all.sync();
        each([&](const kmeans &m) { place(m, shared); });
        all.sync();
        each([&](const kmeans &m) { add<T>(m, shared); });
        all.sync();
        each([&](const kmeans &m) {
            if (V1 == 4 || m.fours)
                mean<T, Near::HALVES, 4>(m, round);
            else
                mean<T, Near::HALVES, V1>(m, round);
        });
    }
    each([](const kmeans &m) { settle(m); });
}

/* Cuts bytes off the room. */
static void *take(char **room, int64_t bytes) {
    char *at = *room;
    *room += (bytes + 255) / 256 * 256;
    return at;
}

/* Places everything of a side from `room` on. */
static void lay_out(kmeans *m, char **room, int halves) {
    const int64_t heads = m->heads, clusters = m->clusters, dim = m->dim;
    m->most = (int *)take(room, 2 * heads * 4);
    m->bias = (float2 *)take(room, halves == 1 ? 0 : heads * m->padded * 8);
    m->squares = (float *)take(room, halves == 1 ? heads * m->padded * 4 : 0);
    m->halves = take(room, heads * m->padded * halves * m->slabs * SLAB * 2);
    m->counts = (int *)take(room, heads * m->runs * clusters * 4);
    m->totals = (int *)take(room, heads * clusters * 4);
    m->sums = (float *)take(room, heads * (m->segments + clusters) * dim * 4);
    m->other = (float *)take(room, heads * clusters * dim * 4);
}

/* What the copies see of a side; 0: it cannot be described. */
static int map_side(kmeans *m, bool bf16, int width) {
    const int64_t depth = m->slabs * SLAB;
    m->high = -NEAR_NUMBERS;
    return hopper_map(&m->tokens, bf16, m->x, m->dim, m->len, m->heads, m->ld, m->dim, NEAR_ROWS) &&
           hopper_map(&m->rounded, bf16, m->halves, depth, m->padded, m->heads, depth, m->padded * depth, width);
}

/* Places both sides from `room` on; bytes. */
template <typename Near> static int64_t lay_out_all(kmeans_call *call, char *room) {
    char *end = room;
    for (int s = 0; s < call->sides; s++) {
        kmeans *m = &call->side[s];
        const int width = Near::width(m->clusters);
        m->padded = (int64_t)(m->clusters + width - 1) / width * width;
        lay_out(m, &end, Near::HALVES);
    }
    return end - room;
}

/* 0: this way of assigning does not fit; 1 also after a sticky error. */
template <typename Near> static int launch(hs_device *dev, kmeans_call *call, size_t shared) {
    const hs_cuda *c = hs_cuda_of(dev);
    if (shared > c->shared_max) return 0;
    char *const room = (char *)hs_cuda_scratch(dev, (size_t)lay_out_all<Near>(call, nullptr));
    if (!room) return 1;
    lay_out_all<Near>(call, room);
    for (int s = 0; s < call->sides; s++) {
        call->side[s].shared = (int)shared;
        if (Near::HALVES == 1 && !map_side(&call->side[s], dev->act == HS_BF16, Near::width(call->side[s].clusters)))
            return 0;
    }
    int blocks = 0;
    void *args[] = {call};
    const void *kernel = (const void *)rounds<Near>;
    if (!hs_cuda_ok(dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                    "clusters") ||
        !hs_cuda_ok(dev, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, Near::THREADS, shared),
                    "clusters"))
        return 1;
    if (blocks < 1) return 0;
    hs_cuda_ok(dev,
               cudaLaunchCooperativeKernel(kernel, dim3((unsigned)(blocks * c->sms)), dim3(Near::THREADS), args, shared,
                                           c->stream),
               "clusters");
    return 1;
}

/* 16-bit types go to tensor cores where they can. */
template <typename T> static void launch_fast(hs_device *dev, kmeans_call *call) {
    bool hopper = hs_cuda_hopper(dev), reach = true;
    int slabs = 0;
    for (int s = 0; s < call->sides; s++) {
        const kmeans *m = &call->side[s];
        reach = reach && m->ahead;
        hopper =
            hopper && m->fours && m->dim % SLAB == 0 && m->slabs <= NEAR_SLABS && m->clusters <= NEAR_MOST - NEAR_WIDE;
        if (slabs < m->slabs) slabs = m->slabs;
    }
    if (hopper && reach && launch<near_by_wgmma<T>>(dev, call, NEAR_SHARED)) return;
    if (reach && slabs <= MAX_SLABS && launch<near_by_mma<T>>(dev, call, (size_t)(slabs + STAGES) * SLAB_SIZE * 2))
        return;
    launch<near_by_fma<T>>(dev, call, FMA_SHARED);
}

static kmeans side_of(const hs_cluster *a, int side) {
    kmeans m = {};
    m.side = side;
    m.x = a->x.p;
    m.want = (const uint8_t *)a->want.p;
    m.centroids = (float *)a->centroids.p;
    m.label = (int32_t *)a->label.p;
    m.order = (int32_t *)a->order.p;
    m.start = (int32_t *)a->start.p;
    m.len = a->len;
    m.ld = a->ld;
    m.runs = (a->len + RUN - 1) / RUN;
    m.segments = (a->len + SEGMENT - 1) / SEGMENT;
    m.seed = a->seed;
    m.heads = a->heads;
    m.dim = a->head_dim;
    m.clusters = a->clusters;
    m.slabs = (a->head_dim + SLAB - 1) / SLAB;
    m.iters_first = a->iters_first;
    m.iters_next = a->iters_next;
    m.compat = a->compat;
    m.fours = m.dim % 4 == 0 && m.ld % 4 == 0 && (uintptr_t)m.x % 16 == 0 && (uintptr_t)m.centroids % 16 == 0;
    m.ahead = copies_reach(m.x, m.ld, m.dim);
    return m;
}

static kmeans_call call_of(const hs_cluster *a) {
    kmeans_call call = {};
    for (; a; a = a->beside, call.sides++) call.side[call.sides] = side_of(a, call.sides);
    return call;
}

int64_t hs_cuda_cluster_scratch(const hs_cluster *a) {
    kmeans_call call = call_of(a);
    const int64_t ways[] = {lay_out_all<near_by_fma<float>>(&call, nullptr),
                            lay_out_all<near_by_mma<__half>>(&call, nullptr),
                            lay_out_all<near_by_wgmma<__half>>(&call, nullptr)};
    int64_t most = 0;
    for (int64_t bytes : ways) most = bytes > most ? bytes : most;
    return most;
}

void hs_cuda_cluster(hs_device *dev, const hs_cluster *a) {
    kmeans_call call = call_of(a);
    switch (dev->act) {
    case HS_BF16: launch_fast<__nv_bfloat16>(dev, &call); break;
    case HS_F16: launch_fast<__half>(dev, &call); break;
    default: launch<near_by_fma<float>>(dev, &call, FMA_SHARED);
    }
}
