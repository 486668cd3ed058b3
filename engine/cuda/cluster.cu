/* k-means of the tokens of each head, for SVG2's masks. spec haste.md 4.2
 *
 * A round is six launches over all heads: assign, scan, place, add, mean, update. Which heads still run is decided on
 * the device, by update, and read by the next round; a head that has stopped or reuses costs empty blocks. Rounds are
 * launched to the largest number that any head may want, since the host does not wait to learn how many do.
 *
 * The nearest centroid c of a token x has the largest x.c - |c|^2 / 2. On tensor cores a centroid is the sum of two
 * 16-bit halves, after a power of two that brings its largest component to [1/2, 1): that keeps 16 (bf16) or 22 bits of
 * it, and |c|^2 is that of what is kept, so labels are exact for centroids moved by less than their 2^-17th part.
 * Tokens are grouped by counting per run of 512 tokens, which is stable; sums are over 128 grouped tokens at a time,
 * whatever the sizes of the clusters. Nothing depends on the order in which blocks run.
 */
#include "cuda/tile.cuh"

enum {
    RUN = 512,     /* tokens whose labels are counted together */
    SEGMENT = 128, /* grouped tokens that are added up together */
    STAGES = 4,    /* slabs of centroids under way */
    MAX_SLABS = 4, /* of a token: head sizes of more than 256 go without tensor cores */
    GROUP = 8,     /* clusters of a block of mean and update: a warp each */
    PLACE_THREADS = 512,
    SCAN_THREADS = 1024,
};
static const float STANDS_STILL = 1e-4f; /* contract of hs_op_cluster */

struct kmeans {
    const void *x;
    const uint8_t *want;
    float *centroids; /* [heads, clusters, dim] */
    int32_t *label, *order, *start;
    int *running; /* [2, heads] does the head take part in the even, the odd rounds? */
    float2 *bias; /* [heads, padded] power of two that a product is to be multiplied with, |c|^2 / 2 */
    void *halves; /* [heads, padded, 2, slabs * SLAB] of x's type */
    int *counts;  /* [heads, runs, clusters] labels; after scan: those of earlier runs */
    float *sums;  /* [heads, segments + clusters, dim]; a cluster's sum in a segment is at their numbers' sum */
    float *next;  /* [heads, clusters, dim] means */
    float *moved; /* [heads, clusters] */
    int64_t len, ld;
    int64_t runs, segments, padded; /* padded: clusters, up to whole tiles */
    uint64_t seed;
    int heads, dim, clusters, slabs, iters_first, iters_next, compat;
};

static __device__ __forceinline__ int rounds_of(const kmeans &m, int h) {
    return m.want[h] > 1 ? m.iters_first : m.want[h] ? m.iters_next : 0;
}

static __device__ __forceinline__ int runs_in(const kmeans &m, int round, int h) {
    return m.running[(round & 1) * m.heads + h];
}

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
    const int mine = label[threadIdx.x][0];
    m.label[head * m.len + token] = mine;
    atomicAdd(&m.counts[(head * m.runs + token / RUN) * m.clusters + mine], 1);
}

/* 128 tokens of a head against all its centroids: the tokens stay in shared memory, centroids stream past. */
template <typename T> __global__ void __launch_bounds__(mma_tile::THREADS, 2) assign_mma(kmeans m, int round) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int64_t tiles = (m.len + TILE - 1) / TILE, first = blockIdx.x % tiles * TILE;
    const int head = (int)(blockIdx.x / tiles), chunk = threadIdx.x % CHUNK;
    if (!runs_in(m, round, head)) return;
    T *tokens = (T *)shared, *stages = tokens + m.slabs * SLAB_SIZE;
    const T *x = (const T *)m.x + (int64_t)head * m.dim;
    const int wide = 2 * m.slabs, steps = (int)(m.padded / TILE) * wide;
    const T *halves = (const T *)m.halves + (int64_t)head * m.padded * wide * SLAB;
    auto load = [&](int step) {
        T *slab = stages + step % STAGES * SLAB_SIZE;
        const T *from = halves + (int64_t)(step / wide) * TILE * wide * SLAB + step % wide * SLAB + chunk * CHUNK;
        for (int r = threadIdx.x / CHUNK; r < TILE; r += mma_tile::THREADS / CHUNK)
            copy_chunk(slab, r, chunk, from + (int64_t)r * wide * SLAB, true);
    };
    for (int s = 0; s < m.slabs; s++)
        for (int r = threadIdx.x / CHUNK; r < TILE; r += mma_tile::THREADS / CHUNK) {
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
}

template <typename T> __global__ void __launch_bounds__(fma_tile::THREADS) assign_fma(kmeans m, int round) {
    __shared__ __align__(16) float shared[FMA_SHARED / 4];
    const int64_t tiles = (m.len + TILE - 1) / TILE, first = blockIdx.x % tiles * TILE;
    const int head = (int)(blockIdx.x / tiles);
    if (!runs_in(m, round, head)) return;
    const T *x = (const T *)m.x + (int64_t)head * m.dim;
    const float *centroids = m.centroids + (int64_t)head * m.clusters * m.dim;
    nearest<fma_tile> n;
    fma_tile c;
    n.clear();
    for (int c0 = 0; c0 < m.clusters; c0 += TILE) {
        c.clear();
        c.multiply(
            m.dim, [&](int r, int d) { return first + r < m.len ? to_f32(x[(first + r) * m.ld + d]) : 0; },
            [&](int r, int d) { return c0 + r < m.clusters ? centroids[(int64_t)(c0 + r) * m.dim + d] : 0; }, shared);
        n.look(c, m.bias + head * m.padded, c0);
    }
    write_labels(m, head, first, n);
}

/* ---- group ------------------------------------------------------------------------------------------------------ */

/* A block per head: counts become the numbers of equal labels in earlier runs, their totals the starts. */
static __global__ void __launch_bounds__(SCAN_THREADS) scan(kmeans m, int round) {
    const int head = blockIdx.x;
    if (!runs_in(m, round, head)) return;
    int *counts = m.counts + head * m.runs * m.clusters;
    int32_t *start = m.start + (int64_t)head * (m.clusters + 1);
    for (int c = threadIdx.x; c < m.clusters; c += SCAN_THREADS) {
        int total = 0;
        for (int64_t r0 = 0; r0 < m.runs; r0 += 16) { /* loads first: they need not wait for each other */
            int n[16];
#pragma unroll
            for (int r = 0; r < 16; r++) n[r] = r0 + r < m.runs ? counts[(r0 + r) * m.clusters + c] : 0;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                if (r0 + r < m.runs) counts[(r0 + r) * m.clusters + c] = total;
                total += n[r];
            }
        }
        start[c + 1] = total;
    }
    if (threadIdx.x == 0) start[0] = 0;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    for (int c0 = 0, before = 0; c0 < m.clusters; c0 += 32) { /* the first warp adds the totals up */
        const int c = c0 + (int)threadIdx.x;
        int sum = c < m.clusters ? start[c + 1] : 0;
        for (int d = 1; d < 32; d *= 2) {
            const int left = __shfl_up_sync(~0u, sum, d);
            if ((int)threadIdx.x >= d) sum += left;
        }
        if (c < m.clusters) start[c + 1] = before + sum;
        before += __shfl_sync(~0u, sum, 31);
    }
}

/* A run of tokens to their places: behind the start, the equal labels of earlier runs, and those before in this one. */
static __global__ void __launch_bounds__(PLACE_THREADS) place(kmeans m, int round) {
    __shared__ int label[RUN];
    const int head = (int)(blockIdx.x / m.runs);
    const int64_t run = blockIdx.x % m.runs, first = run * RUN;
    if (!runs_in(m, round, head)) return;
    const int count = (int)(m.len - first < RUN ? m.len - first : RUN);
    for (int i = threadIdx.x; i < count; i += PLACE_THREADS) label[i] = m.label[head * m.len + first + i];
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += PLACE_THREADS) {
        const int mine = label[i];
        int rank = 0;
        for (int j = 0; j < i; j++) rank += label[j] == mine;
        const int at = m.start[(int64_t)head * (m.clusters + 1) + mine] +
                       m.counts[(head * m.runs + run) * m.clusters + mine] + rank;
        m.order[head * m.len + at] = (int32_t)(first + i);
    }
}

/* ---- move ------------------------------------------------------------------------------------------------------- */

/* A segment of grouped tokens: one sum per cluster that it meets. */
template <typename T> __global__ void __launch_bounds__(128) add(kmeans m, int round) {
    __shared__ int order[SEGMENT], label[SEGMENT];
    const int head = (int)(blockIdx.x / m.segments);
    const int64_t segment = blockIdx.x % m.segments, first = segment * SEGMENT;
    if (!runs_in(m, round, head)) return;
    const int count = (int)(m.len - first < SEGMENT ? m.len - first : SEGMENT);
    for (int i = threadIdx.x; i < count; i += 128) {
        order[i] = m.order[head * m.len + first + i];
        label[i] = m.label[head * m.len + order[i]];
    }
    __syncthreads();
    float *sums = m.sums + (head * (m.segments + m.clusters) + segment) * m.dim;
    for (int d = threadIdx.x; d < m.dim; d += 128) {
        const T *x = (const T *)m.x + (int64_t)head * m.dim + d;
        for (int i = 0; i < count;) {
            const int cluster = label[i];
            double sum = 0;
            for (int n = 8; n == 8; i += n) { /* eight at a time: their loads do not wait for each other */
                float v[8];
                n = 0;
                for (int e = 0; e < 8; e++) {
                    const int same = i + e < count && label[i + e] == cluster; /* labels ascend */
                    v[e] = same ? to_f32(x[order[i + e] * m.ld]) : 0;
                    n += same;
                }
                for (int e = 0; e < 8; e++) sum += v[e];
            }
            sums[(int64_t)cluster * m.dim + d] = (float)sum;
        }
    }
}

/* Where each centroid would go, and how far that is; nowhere if it has no tokens. */
static __global__ void __launch_bounds__(GROUP * 32) mean(kmeans m, int round) {
    const int64_t groups = (m.clusters + GROUP - 1) / GROUP;
    const int head = (int)(blockIdx.x / groups), lane = threadIdx.x % 32;
    const int c = (int)(blockIdx.x % groups) * GROUP + (int)threadIdx.x / 32;
    if (!runs_in(m, round, head) || c >= m.clusters) return;
    const int32_t *start = m.start + (int64_t)head * (m.clusters + 1);
    const int64_t begin = start[c], end = start[c + 1], at = ((int64_t)head * m.clusters + c) * m.dim;
    const float *sums = m.sums + (head * (m.segments + m.clusters) + c) * m.dim;
    double move = 0;
    for (int d = lane; d < m.dim; d += 32) {
        const float was = m.centroids[at + d];
        double sum = 0;
#pragma unroll 4
        for (int64_t s = begin / SEGMENT; begin < end && s * SEGMENT < end; s++) sum += sums[s * m.dim + d];
        const float next = begin < end ? (float)(sum / (double)(end - begin)) : was;
        m.next[at + d] = next;
        move += ((double)next - was) * ((double)next - was);
    }
    move = warp_sum(move);
    if (lane == 0) m.moved[(int64_t)head * m.clusters + c] = (float)sqrt(move);
}

/* The furthest move of the running heads among [from, to), the same in all threads. */
static __device__ float furthest(const kmeans &m, int round, int from, int to) {
    __shared__ float most[GROUP];
    float x = 0;
    for (int h = from; h < to; h++)
        for (int c = threadIdx.x; c < m.clusters && runs_in(m, round, h); c += GROUP * 32)
            x = fmaxf(x, m.moved[(int64_t)h * m.clusters + c]);
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) most[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < GROUP; w++) x = fmaxf(x, most[w]);
    return x;
}

/* hs_cluster_token of backend.h, for the device. */
static __device__ uint64_t hash64(uint64_t x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
static __device__ int64_t first_token(const kmeans &m, int head, int c) {
    const uint64_t h = hash64(hash64(m.seed) + ((uint64_t)head << 20) + (uint64_t)c);
    const int64_t width = m.len / m.clusters;
    return width ? c * width + (int64_t)(h % (uint64_t)width) : (int64_t)(h % (uint64_t)m.len);
}

/* What assign needs of a centroid (a warp's work). The two halves are of T; F32 has no halves, the product is exact. */
template <typename T> static __device__ void prepare(const kmeans &m, int head, int c, int halves) {
    const int lane = threadIdx.x % 32, width = m.slabs * SLAB;
    const float *centroid = m.centroids + ((int64_t)head * m.clusters + c) * m.dim;
    T *high = (T *)m.halves + ((int64_t)head * m.padded + c) * 2 * width, *low = high + width;
    float most = 0;
    for (int d = lane; d < m.dim && c < m.clusters; d += 32) most = fmaxf(most, fabsf(centroid[d]));
    most = warp_max(most);
    int exponent = 0;
    if (halves && most > 0 && most < INFINITY) frexpf(most, &exponent);
    double norm = 0;
    for (int d = lane; d < (halves ? width : m.dim); d += 32) {
        float x = c < m.clusters && d < m.dim ? centroid[d] : 0;
        if (halves) {
            x = ldexpf(x, -exponent);
            high[d] = from_f32<T>(x);
            low[d] = from_f32<T>(x - to_f32(high[d]));
            x = ldexpf(to_f32(high[d]) + to_f32(low[d]), exponent);
        }
        norm += (double)x * x;
    }
    norm = warp_sum(norm);
    if (lane == 0)
        m.bias[head * m.padded + c] = make_float2(ldexpf(1, exponent), c < m.clusters ? (float)(norm / 2) : INFINITY);
}

/* The end of a round and the beginning of the next; round -1 is the beginning of all. */
template <typename T> __global__ void __launch_bounds__(GROUP * 32) update(kmeans m, int round, int halves) {
    const int64_t groups = m.padded / GROUP;
    const int head = (int)(blockIdx.x / groups), lane = threadIdx.x % 32;
    const int c = (int)(blockIdx.x % groups) * GROUP + (int)threadIdx.x / 32;
    int moves = round < 0 ? m.want[head] > 1 : runs_in(m, round, head);
    if (moves && round >= 0)
        moves = !(furthest(m, round, m.compat ? 0 : head, m.compat ? m.heads : head + 1) < STANDS_STILL);
    const int goes_on = (round < 0 || moves) && round + 1 < rounds_of(m, head);
    if (threadIdx.x == 0) m.running[((round + 1) & 1) * m.heads + head] = goes_on; /* all blocks of a head agree */
    float *centroid = m.centroids + ((int64_t)head * m.clusters + c) * m.dim;
    const T *token = (const T *)m.x + (int64_t)head * m.dim;
    if (round < 0 && moves) token += first_token(m, head, c) * m.ld;
    for (int d = lane; d < m.dim && moves && c < m.clusters; d += 32)
        centroid[d] = round < 0 ? to_f32(token[d]) : m.next[((int64_t)head * m.clusters + c) * m.dim + d];
    __syncwarp();
    if (!goes_on) return;
    prepare<T>(m, head, c, halves);
    for (int64_t r = lane; r < m.runs && c < m.clusters; r += 32) m.counts[(head * m.runs + r) * m.clusters + c] = 0;
}

/* ---- the rounds ------------------------------------------------------------------------------------------------- */
template <typename T> static void launch(hs_device *dev, const kmeans &m, void (*assign)(kmeans, int), int halves) {
    const cudaStream_t stream = hs_cuda_of(dev)->stream;
    const int rounds = m.iters_first > m.iters_next ? m.iters_first : m.iters_next;
    const unsigned heads = (unsigned)m.heads, tiles = (unsigned)((m.len + TILE - 1) / TILE);
    const unsigned groups = (unsigned)((m.clusters + GROUP - 1) / GROUP), prepared = (unsigned)(m.padded / GROUP);
    const int threads = halves ? (int)mma_tile::THREADS : (int)fma_tile::THREADS;
    const size_t shared = halves ? (size_t)(m.slabs + STAGES) * SLAB_SIZE * 2 : 0;
    if (!hs_cuda_ok(dev, cudaFuncSetAttribute(assign, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                    "clusters"))
        return;
    update<T><<<heads * prepared, GROUP * 32, 0, stream>>>(m, -1, halves);
    for (int round = 0; round < rounds && HS_CUDA_LAUNCHED(dev, "clusters"); round++) {
        assign<<<heads * tiles, threads, shared, stream>>>(m, round);
        scan<<<heads, SCAN_THREADS, 0, stream>>>(m, round);
        place<<<heads *(unsigned)m.runs, PLACE_THREADS, 0, stream>>>(m, round);
        add<T><<<heads *(unsigned)m.segments, 128, 0, stream>>>(m, round);
        mean<<<heads * groups, GROUP * 32, 0, stream>>>(m, round);
        update<T><<<heads * prepared, GROUP * 32, 0, stream>>>(m, round, halves);
    }
    HS_CUDA_LAUNCHED(dev, "clusters");
}

/* Cuts bytes off the room. */
static void *take(char **room, int64_t bytes) {
    char *at = *room;
    *room += (bytes + 255) / 256 * 256;
    return at;
}

/* Places everything; returns how many bytes it takes. */
static int64_t lay_out(kmeans *m, char *room) {
    char *end = room;
    const int64_t heads = m->heads, clusters = m->clusters, dim = m->dim;
    m->running = (int *)take(&end, 2 * heads * 4);
    m->bias = (float2 *)take(&end, heads * m->padded * 8);
    m->halves = take(&end, heads * m->padded * 2 * m->slabs * SLAB * 2);
    m->counts = (int *)take(&end, heads * m->runs * clusters * 4);
    m->sums = (float *)take(&end, heads * (m->segments + clusters) * dim * 4);
    m->next = (float *)take(&end, heads * clusters * dim * 4);
    m->moved = (float *)take(&end, heads * clusters * 4);
    return end - room;
}

void hs_cuda_cluster(hs_device *dev, const hs_cluster *a) {
    kmeans m = {};
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
    m.padded = (int64_t)(a->clusters + TILE - 1) / TILE * TILE;
    m.seed = a->seed;
    m.heads = a->heads;
    m.dim = a->head_dim;
    m.clusters = a->clusters;
    m.slabs = (a->head_dim + SLAB - 1) / SLAB;
    m.iters_first = a->iters_first;
    m.iters_next = a->iters_next;
    m.compat = a->compat;
    const int halves = dev->act != HS_F32 && m.slabs <= MAX_SLABS && copies_reach(m.x, m.ld, m.dim) &&
                       hs_cuda_of(dev)->shared_max >= (size_t)(m.slabs + STAGES) * SLAB_SIZE * 2;
    char *room = (char *)hs_cuda_scratch(dev, (size_t)lay_out(&m, nullptr));
    if (!room) return;
    lay_out(&m, room);
    switch (dev->act) {
    case HS_BF16:
        launch<__nv_bfloat16>(dev, m, halves ? assign_mma<__nv_bfloat16> : assign_fma<__nv_bfloat16>, halves);
        break;
    case HS_F16: launch<__half>(dev, m, halves ? assign_mma<__half> : assign_fma<__half>, halves); break;
    default: launch<float>(dev, m, assign_fma<float>, 0);
    }
}
