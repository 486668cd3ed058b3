/* The steps of a round of k-means but for the assignment: tokens are grouped by label, added up, means taken; and who
 * goes on. Work is shared by warps; what is done in one step is read by others only after all blocks have waited. */
#ifndef HS_CLUSTER_STEPS_CUH
#define HS_CLUSTER_STEPS_CUH
#include "cuda/cluster.cuh"

enum {
    SEGMENT = 32, /* grouped tokens that are added up together: one per lane */
    AT_ONCE = 8,  /* tokens whose loads are under way in a warp; they are added up in float */
    SCANNED = 32, /* runs whose counts are under way in a thread */
};
static const float STANDS_STILL = 1e-4f; /* contract of hs_op_cluster */
static const float NEVER = 3e38f;        /* half the square of a centroid that is none */

/* The warps of the launch share `items` of every head that is in one of these states (0: in any): work(head, item). */
template <typename W>
static __device__ __forceinline__ void share_by_warps(const kmeans &m, int which, int items, W work) {
    /* neighbours are in different blocks, so that few items keep all processors busy */
    for (int i = (int)(threadIdx.x / 32 * gridDim.x + blockIdx.x); i < m.heads * items;
         i += (int)(gridDim.x * (blockDim.x / 32))) {
        const int head = i / items;
        if (!which || states()[head] & which) work(head, i % items);
    }
}

/* ---- group ------------------------------------------------------------------------------------------------------ */

/* A warp takes 32 clusters: counts become the numbers of equal labels in earlier runs. */
static __device__ void scan(const kmeans &m, int round) {
    if (blockIdx.x == 0) /* for the next round: that of the last one has been read by all */
        for (int h = (int)threadIdx.x; h < m.heads; h += (int)blockDim.x) m.most[(round + 1) % 2 * m.heads + h] = 0;
    share_by_warps(m, RUNS, (m.clusters + 31) / 32, [&](int head, int group) {
        const int c = group * 32 + (int)threadIdx.x % 32;
        int *counts = m.counts + head * m.runs * m.clusters + c, total = 0;
        if (c >= m.clusters) return;
        for (int64_t r0 = 0; r0 < m.runs; r0 += SCANNED) { /* loads first: they need not wait for each other */
            int n[SCANNED];
#pragma unroll
            for (int r = 0; r < SCANNED; r++) n[r] = r0 + r < m.runs ? counts[(r0 + r) * m.clusters] : 0;
#pragma unroll
            for (int r = 0; r < SCANNED; r++) {
                if (r0 + r < m.runs) counts[(r0 + r) * m.clusters] = total;
                total += n[r];
            }
        }
        m.totals[(int64_t)head * m.clusters + c] = total;
    });
}

/* A warp takes a run of tokens to their places: behind the start, the equal labels of earlier runs, and those before in
 * this one. The first run of a head also says where clusters start. */
static __device__ void place(const kmeans &m, unsigned char *shared) {
    const int lane = threadIdx.x % 32;
    const bool fits = (int64_t)m.clusters * 4 * (blockDim.x / 32) <= m.shared;
    share_by_warps(m, RUNS, (int)m.runs, [&](int head, int run) {
        int *counts = m.counts + (head * m.runs + run) * m.clusters; /* nobody else reads this run's */
        int *next = fits ? (int *)shared + threadIdx.x / 32 * m.clusters : counts, before = 0;
        const int *totals = m.totals + (int64_t)head * m.clusters;
        for (int c0 = 0; c0 < m.clusters; c0 += 32 * AT_ONCE) {
            int total[AT_ONCE], earlier[AT_ONCE];
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                const int c = c0 + n * 32 + lane;
                total[n] = c < m.clusters ? totals[c] : 0;
                earlier[n] = c < m.clusters ? counts[c] : 0;
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                const int c = c0 + n * 32 + lane;
                int end = total[n];
                for (int d = 1; d < 32; d *= 2) {
                    const int left = __shfl_up_sync(~0u, end, d);
                    if (lane >= d) end += left;
                }
                if (c < m.clusters) next[c] = before + end - total[n] + earlier[n];
                if (c < m.clusters && run == 0) m.start[(int64_t)head * (m.clusters + 1) + c + 1] = before + end;
                before += __shfl_sync(~0u, end, 31);
            }
        }
        if (run == 0 && lane == 0) m.start[(int64_t)head * (m.clusters + 1)] = 0;
        int label[RUN / 32];
        const int64_t first = head * m.len + (int64_t)run * RUN;
        const int count = (int)(m.len - (int64_t)run * RUN < RUN ? m.len - (int64_t)run * RUN : RUN);
#pragma unroll
        for (int n = 0; n < RUN / 32; n++) label[n] = n * 32 + lane < count ? m.label[first + n * 32 + lane] : -1;
        __syncwarp();
#pragma unroll
        for (int n = 0; n < RUN / 32; n++) {
            const unsigned same = __match_any_sync(~0u, label[n]);
            const int rank = __popc(same & ((1u << lane) - 1));
            int at = 0;
            if (label[n] >= 0 && rank == 0) {
                at = next[label[n]];
                next[label[n]] = at + __popc(same);
            }
            at = __shfl_sync(~0u, at, __ffs(same) - 1) + rank;
            if (label[n] >= 0) m.order[head * m.len + at] = run * RUN + n * 32 + lane;
            __syncwarp();
        }
        __syncwarp();
    });
}

/* ---- move ------------------------------------------------------------------------------------------------------- */

static __device__ void clear_counts(const kmeans &m) {
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < m.heads * m.runs * m.clusters;
         i += (int64_t)gridDim.x * blockDim.x)
        m.counts[i] = 0;
}

/* The sums of a segment of grouped tokens, one per cluster that it meets, by a warp. label: of the lane's token;
 * row(t): where token t of the segment is, asked by all lanes. */
template <typename T, int V, typename R>
static __device__ __forceinline__ void add_segment(const kmeans &m, int head, int segment, int label, R row) {
    const int lane = threadIdx.x % 32;
    float *sums = m.sums + (head * (m.segments + m.clusters) + segment) * m.dim;
    const int count = (int)min(m.len - (int64_t)segment * SEGMENT, (int64_t)SEGMENT);
    for (int i = 0, end; i < count; i = end) {
        const int cluster = __shfl_sync(~0u, label, i);
        end = i + __popc(__ballot_sync(~0u, label == cluster)); /* labels ascend */
        for (int d = lane * V; d - lane * V < m.dim; d += 32 * V) {
            double sum[V] = {};
            for (int t0 = i; t0 < end; t0 += AT_ONCE) {
                float part[V] = {};
#pragma unroll
                for (int t = t0; t < t0 + AT_ONCE; t++)
                    if (t < end) {
                        const T *x = row(t);
                        if (d >= m.dim) continue;
                        const several<T, V> v = *(const several<T, V> *)(const void *)(x + d);
#pragma unroll
                        for (int e = 0; e < V; e++) part[e] += to_f32(v.at[e]);
                    }
#pragma unroll
                for (int e = 0; e < V; e++) sum[e] += part[e];
            }
            several<float, V> result;
#pragma unroll
            for (int e = 0; e < V; e++) result.at[e] = (float)sum[e];
            if (d < m.dim) *(several<float, V> *)(sums + (int64_t)cluster * m.dim + d) = result;
        }
    }
}

/* Tokens through shared memory, a segment ahead: what is under way does not hang on the bounds of clusters. */
template <typename T> static __device__ void add_ahead(const kmeans &m, unsigned char *shared) {
    const int lane = threadIdx.x % 32, stride = (int)(gridDim.x * (blockDim.x / 32)), segments = (int)m.segments;
    const int items = m.heads * segments, pieces = m.dim * (int)sizeof(T) / 16;
    unsigned char *room = shared + threadIdx.x / 32 * 2 * SEGMENT * m.dim * sizeof(T);
    auto next = [&](int i) {
        while (i < items && !(states()[i / segments] & RUNS)) i += stride;
        return i;
    };
    auto fetch = [&](int i,
                     int half) { /* returns the lane's label */
                                 const int head = i / segments;
                                 const int64_t place = (int64_t)(i % segments) * SEGMENT + lane;
                                 const int token = place < m.len ? m.order[head * m.len + place] : -1;
                                 const T *x = (const T *)m.x + (int64_t)head * m.dim;
                                 const unsigned to = shared_address(room) + half * SEGMENT * m.dim * (int)sizeof(T);
                                 for (int p = lane; p < SEGMENT * pieces;
                                      p += 32) { /* all lanes: whole rows are whole groups of 32 */
                                     const int64_t row = __shfl_sync(~0u, token, p / pieces);
                                     copy_async16(to + p * 16,
                                                  x + (row < 0 ? 0 : row) * m.ld + p % pieces * (16 / (int)sizeof(T)),
                                                  row >= 0);
                                 }
                                 return token < 0 ? -1 : m.label[head * m.len + token];
    };
    int i = next((int)(threadIdx.x / 32 * gridDim.x + blockIdx.x)), half = 0;
    int label = i < items ? fetch(i, 0) : -1;
    copy_commit();
    while (i < items) {
        const int after = next(i + stride), after_label = after < items ? fetch(after, half ^ 1) : -1;
        copy_commit();
        copy_wait<1>();
        __syncwarp();
        const T *tokens = (const T *)(const void *)(room + half * SEGMENT * m.dim * sizeof(T));
        add_segment<T, 4>(m, i / segments, i % segments, label, [&](int t) { return tokens + t * m.dim; });
        __syncwarp(); /* before the next copies come here */
        i = after, label = after_label, half ^= 1;
    }
    copy_wait<0>();
}

template <typename T, int V> static __device__ void add_plainly(const kmeans &m) {
    const int lane = threadIdx.x % 32;
    share_by_warps(m, RUNS, (int)m.segments, [&](int head, int segment) {
        const int64_t place = (int64_t)segment * SEGMENT + lane;
        const int token = place < m.len ? m.order[head * m.len + place] : 0;
        const T *x = (const T *)m.x + (int64_t)head * m.dim;
        add_segment<T, V>(m, head, segment, place < m.len ? m.label[head * m.len + token] : -1,
                          [&](int t) { return x + __shfl_sync(~0u, token, t) * m.ld; });
    });
}

/* Sums of tokens; counts are cleared for the next round. */
template <typename T> static __device__ void add(const kmeans &m, unsigned char *shared) {
    if (m.ahead && (int)(blockDim.x / 32) * 2 * SEGMENT * m.dim * (int)sizeof(T) <= m.shared)
        add_ahead<T>(m, shared);
    else if (m.fours)
        add_plainly<T, 4>(m);
    else
        add_plainly<T, 1>(m);
    clear_counts(m);
}

/* What assign needs of a centroid (a warp's work) of `from`: HALVES roundings of it to T, each of what the ones before
 * leave. F32 has none, the product is exact. */
template <typename T, int HALVES> static __device__ void prepare(const kmeans &m, const float *from, int head, int c) {
    const int lane = threadIdx.x % 32, width = HALVES ? m.slabs * SLAB : m.dim;
    const float *centroid = from + ((int64_t)head * m.clusters + c) * m.dim;
    T *halves = (T *)m.halves + ((int64_t)head * m.padded + c) * HALVES * width;
    float most = 0;
    for (int d = lane; d < m.dim && c < m.clusters; d += 32) most = fmaxf(most, fabsf(centroid[d]));
    most = warp_max(most);
    int exponent = 0;
    if (HALVES && most > 0 && most < INFINITY) frexpf(most, &exponent);
    double norm = 0;
    for (int d = lane; d < width; d += 32) {
        float x = c < m.clusters && d < m.dim ? centroid[d] : 0;
        if (HALVES) {
            float left = ldexpf(x, -exponent), kept = 0;
            for (int n = 0; n < HALVES; n++) {
                const T half = from_f32<T>(left);
                halves[n * width + d] = half;
                kept += to_f32(half);
                left -= to_f32(half);
            }
            x = ldexpf(kept, exponent);
        }
        norm += (double)x * x;
    }
    norm = warp_sum(norm);
    if (lane == 0)
        m.bias[head * m.padded + c] = make_float2(ldexpf(1, exponent), c < m.clusters ? (float)(norm / 2) : NEVER);
}

/* Where each centroid would go, and how far that is; nowhere if it has no tokens. Prepared for a round that may not
 * come. */
template <typename T, int HALVES, int V> static __device__ void mean(const kmeans &m, int round) {
    const int lane = threadIdx.x % 32;
    share_by_warps(m, RUNS, m.clusters, [&](int head, int c) {
        const int32_t *start = m.start + (int64_t)head * (m.clusters + 1);
        const int64_t begin = start[c], end = start[c + 1], at = ((int64_t)head * m.clusters + c) * m.dim;
        const float *sums = m.sums + (head * (m.segments + m.clusters) + c) * m.dim;
        double move = 0;
        for (int d = lane * V; d < m.dim; d += 32 * V) {
            const several<float, V> was = *(const several<float, V> *)(m.centroids + at + d);
            double sum[V] = {};
#pragma unroll 4
            for (int64_t s = begin / SEGMENT; begin < end && s * SEGMENT < end; s++) {
                const several<float, V> part = *(const several<float, V> *)(sums + s * m.dim + d);
#pragma unroll
                for (int e = 0; e < V; e++) sum[e] += part.at[e];
            }
            several<float, V> next;
#pragma unroll
            for (int e = 0; e < V; e++) {
                next.at[e] = begin < end ? (float)(sum[e] / (double)(end - begin)) : was.at[e];
                move += ((double)next.at[e] - was.at[e]) * ((double)next.at[e] - was.at[e]);
            }
            *(several<float, V> *)(m.next + at + d) = next;
        }
        move = warp_sum(move);
        /* the bits of floats that are not negative are ordered as they are; NaN moves nothing */
        if (lane == 0 && move > 0) atomicMax(&m.most[round % 2 * m.heads + head], __float_as_int((float)sqrt(move)));
        __syncwarp();
        prepare<T, HALVES>(m, m.next, head, c);
    });
}

/* ---- who moves, who stays --------------------------------------------------------------------------------------- */

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

static __device__ __forceinline__ int rounds_of(const kmeans &m, int h) {
    return m.want[h] > 1 ? m.iters_first : m.want[h] ? m.iters_next : 0;
}

/* Before the first round: where heads start, and what assign needs of that. */
template <typename T, int HALVES> static __device__ void start(const kmeans &m) {
    const int lane = threadIdx.x % 32;
    for (int h = (int)threadIdx.x; h < m.heads; h += (int)blockDim.x) {
        states()[h] = rounds_of(m, h) > 0 ? RUNS : 0;
        if (blockIdx.x == 0) m.most[h] = 0;
    }
    share_by_warps(m, 0, (int)m.padded, [&](int head, int c) {
        if (!m.want[head]) return;
        if (m.want[head] > 1 && c < m.clusters) {
            const T *token = (const T *)m.x + (int64_t)head * m.dim + first_token(m, head, c) * m.ld;
            for (int d = lane; d < m.dim; d += 32)
                m.centroids[((int64_t)head * m.clusters + c) * m.dim + d] = to_f32(token[d]);
            __syncwarp();
        }
        prepare<T, HALVES>(m, m.centroids, head, c);
    });
    clear_counts(m);
}

/* After a round: who moves for good and who goes on, the same in all blocks. */
static __device__ void decide(const kmeans &m, int round) {
    const int *most = m.most + round % 2 * m.heads, h = (int)threadIdx.x;
    uint8_t state = 0;
    if (h < m.heads && states()[h] & RUNS) {
        float furthest = 0;
        for (int i = m.compat ? 0 : h; i < (m.compat ? m.heads : h + 1); i++)
            if (states()[i] & RUNS) furthest = fmaxf(furthest, __int_as_float(most[i]));
        if (!(furthest < STANDS_STILL)) state = round + 1 < rounds_of(m, h) ? MOVED | RUNS : MOVED;
    }
    __syncthreads();
    if (h < m.heads) states()[h] = state;
    __syncthreads();
}

/* The centroids that the last round moved. */
static __device__ void settle(const kmeans &m) {
    share_by_warps(m, MOVED, m.clusters, [&](int head, int c) {
        const int64_t at = ((int64_t)head * m.clusters + c) * m.dim;
        for (int d = threadIdx.x % 32; d < m.dim; d += 32) m.centroids[at + d] = m.next[at + d];
    });
}
#endif
