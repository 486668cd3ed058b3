/* The steps of a round of k-means but for the assignment: tokens are grouped by label, added up, means taken; and who
 * goes on. Work is shared by warps; what is done in one step is read by others only after all blocks have waited. */
#ifndef HS_CLUSTER_STEPS_CUH
#define HS_CLUSTER_STEPS_CUH
#include "cuda/cluster.cuh"

enum {
    SEGMENT = 32, /* grouped tokens that are added up together: one per lane */
    AT_ONCE = 8,  /* tokens whose loads are under way in a warp; they are added up before the sum sees them */
    MEANS = 2,    /* centroids whose loads are under way in a warp */
    SCANNED = 16, /* runs whose counts are under way in a thread */
};
static const float STANDS_STILL = 1e-4f; /* contract of hs_op_cluster */

/* Where a warp is in the launch. Asked for by every step: kept from one to the next it would cost the products
 * registers.
 */
struct launch_place {
    unsigned thread, block, blocks;
    __device__ __forceinline__ launch_place() {
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
        asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
        asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(blocks));
    }
    __device__ __forceinline__ int lane() const { return (int)(thread % 32); }
    __device__ __forceinline__ int warps() const { return (int)(blocks * (blockDim.x / 32)); }
    /* Neighbours are in different blocks, so that few items keep all processors busy; each side begins elsewhere. */
    __device__ __forceinline__ int warp(const kmeans &m, int warps) const {
        const int w = (int)(thread / 32 * blocks + block) + m.side * (warps / 2);
        return w < warps ? w : w - warps;
    }
};

/* The warps of the launch share `items` of every head that is in one of these states (0: in any), N at a time:
 * work(head, item), head -1 where there is none. */
template <int N, typename W>
static __device__ __forceinline__ void share_by_warps(const kmeans &m, int which, int items, W work) {
    const launch_place at;
    const int stride = at.warps();
    for (int i = at.warp(m, stride); i < m.heads * items; i += N * stride) {
        int head[N], item[N];
#pragma unroll
        for (int n = 0; n < N; n++) {
            head[n] = (i + n * stride) / items, item[n] = (i + n * stride) % items;
            if (head[n] >= m.heads || (which && !(states(m)[head[n]] & which))) head[n] = -1;
        }
        work(head, item);
    }
}
template <typename W>
static __device__ __forceinline__ void share_by_warps(const kmeans &m, int which, int items, W work) {
    share_by_warps<1>(m, which, items, [&](const int(&head)[1], const int(&item)[1]) {
        if (head[0] >= 0) work(head[0], item[0]);
    });
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
    const int lane = launch_place().lane();
    const int own =
        m.shared / 4 / ((int)blockDim.x / 32); /* of a warp, the same for both sides: warps are not in step */
    const bool fits = m.clusters <= own;
    share_by_warps(m, RUNS, (int)m.runs, [&](int head, int run) {
        int *counts = m.counts + (head * m.runs + run) * m.clusters; /* nobody else reads this run's */
        int *next = fits ? (int *)shared + threadIdx.x / 32 * own : counts, before = 0;
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
                const int end = warp_sum_to(lane, total[n]);
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
    const launch_place at;
    for (int64_t i = (int64_t)at.block * blockDim.x + at.thread; i < m.heads * m.runs * m.clusters;
         i += (int64_t)at.blocks * blockDim.x)
        m.counts[i] = 0;
}

/* The sums of a segment of grouped tokens, one per cluster that it meets, by a warp. label: of the lane's token;
 * row(t): where token t of the segment is, asked by all lanes. */
template <typename T, int V, typename R>
static __device__ __forceinline__ void add_segment(const kmeans &m, int head, int segment, int label, R row) {
    const int lane = launch_place().lane();
    float *sums = m.sums + (head * (m.segments + m.clusters) + segment) * m.dim;
    const int count = (int)min(m.len - (int64_t)segment * SEGMENT, (int64_t)SEGMENT);
    for (int i = 0, end; i < count; i = end) {
        const int cluster = __shfl_sync(~0u, label, i);
        end = i + __popc(__ballot_sync(~0u, label == cluster)); /* labels ascend */
        for (int d = lane * V; d - lane * V < m.dim; d += 32 * V) {
            float sum[V] = {};
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
            for (int e = 0; e < V; e++) result.at[e] = sum[e];
            if (d < m.dim) *(several<float, V> *)(sums + (int64_t)cluster * m.dim + d) = result;
        }
    }
}

/* Tokens through shared memory, a segment ahead: what is under way does not hang on the bounds of clusters. By as many
 * warps of a block as have room there. */
template <typename T> static __device__ void add_ahead(const kmeans &m, int warps, unsigned char *shared) {
    const launch_place at;
    const int lane = at.lane(), stride = (int)at.blocks * warps, segments = (int)m.segments;
    const int items = m.heads * segments, pieces = m.dim * (int)sizeof(T) / 16;
    unsigned char *room = shared + at.thread / 32 * 2 * SEGMENT * m.dim * sizeof(T);
    if ((int)at.thread / 32 >= warps) return;
    auto next = [&](int i) {
        while (i < items && !(states(m)[i / segments] & RUNS)) i += stride;
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
    int i = next(at.warp(m, stride)), half = 0;
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
    const int lane = launch_place().lane();
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
    const int warps = (int)blockDim.x / 32, room = m.shared / (2 * SEGMENT * m.dim * (int)sizeof(T));
    if (m.ahead && room >= warps / 2)
        add_ahead<T>(m, min(room, warps), shared);
    else if (m.fours)
        add_plainly<T, 4>(m);
    else
        add_plainly<T, 1>(m);
    clear_counts(m);
}

/* What assign needs of a centroid (a warp's work) of `from`: HALVES roundings of it to T, each of what the ones before
 * leave, after a power of two. F32 has none, the product is exact. */
template <typename T, int HALVES> static __device__ void prepare(const kmeans &m, const float *from, int head, int c) {
    const int lane = launch_place().lane(), width = HALVES ? m.slabs * SLAB : m.dim;
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

/* The same for Hopper, which has at most four elements a lane, x: one rounding, negative, and half its square. */
template <typename T>
static __device__ __forceinline__ void prepare_rounded(const kmeans &m, const several<float, 4> &x, int head, int c) {
    const int lane = launch_place().lane(), d = lane * 4;
    several<T, 4> half;
    float norm = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        half.at[e] = from_f32<T>(-x.at[e]);
        norm = fmaf(to_f32(half.at[e]), to_f32(half.at[e]), norm);
    }
    norm = warp_sum(norm);
    if (d < m.dim) *(several<T, 4> *)((T *)m.halves + ((int64_t)head * m.padded + c) * m.dim + d) = half;
    if (lane == 0) m.squares[head * m.padded + c] = c < m.clusters ? norm / 2 : NEVER;
}

/* Where each centroid would go, and how far that is; nowhere if it has no tokens. Prepared for a round that may not
 * come. */
template <typename T, int HALVES, int V> static __device__ void mean(const kmeans &m, int round) {
    constexpr int N = HALVES == 1 ? MEANS : 1;
    const int lane = launch_place().lane();
    share_by_warps<N>(m, RUNS, m.clusters, [&](const int(&head)[N], const int(&c)[N]) {
        int begin[N], end[N];
        float move[N] = {};
        several<float, V> next[N] = {};
        const float *from = centroids_of(m, round);
        float *to = centroids_of(m, round + 1);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const int32_t *start = m.start + (int64_t)head[n] * (m.clusters + 1) + c[n];
            begin[n] = head[n] < 0 ? 0 : start[0];
            end[n] = head[n] < 0 ? 0 : start[1];
        }
        for (int d = lane * V; d < m.dim; d += 32 * V) {
            several<float, V> was[N], part[N][2];
            auto at = [&](int n) { return ((int64_t)head[n] * m.clusters + c[n]) * m.dim + d; };
            auto of_segment = [&](int n, int s) {
                return *(const several<float, V> *)(m.sums + (head[n] * (m.segments + m.clusters) + c[n] + s) * m.dim +
                                                    d);
            };
#pragma unroll
            for (int n = 0; n < N; n++) { /* loads first: they need not wait for each other */
                const int s = begin[n] / SEGMENT;
                part[n][0] = part[n][1] = {};
                if (head[n] >= 0) was[n] = *(const several<float, V> *)(from + at(n));
                if (begin[n] < end[n]) part[n][0] = of_segment(n, s);
                if (begin[n] < end[n] && (s + 1) * SEGMENT < end[n]) part[n][1] = of_segment(n, s + 1);
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (head[n] < 0) continue;
                float sum[V], lost[V]; /* what rounding took off the sum */
#pragma unroll
                for (int e = 0; e < V; e++) {
                    sum[e] = part[n][0].at[e] + part[n][1].at[e];
                    lost[e] = 0;
                }
#pragma unroll 4
                for (int s = begin[n] / SEGMENT + 2; s * SEGMENT < end[n]; s++) {
                    const several<float, V> x = of_segment(n, s);
#pragma unroll
                    for (int e = 0; e < V; e++) {
                        const float y = x.at[e] - lost[e], more = sum[e] + y;
                        lost[e] = (more - sum[e]) - y;
                        sum[e] = more;
                    }
                }
#pragma unroll
                for (int e = 0; e < V; e++) {
                    next[n].at[e] = begin[n] < end[n] ? sum[e] / (float)(end[n] - begin[n]) : was[n].at[e];
                    move[n] = fmaf(next[n].at[e] - was[n].at[e], next[n].at[e] - was[n].at[e], move[n]);
                }
                *(several<float, V> *)(to + at(n)) = next[n];
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            if (head[n] < 0) continue;
            const float far = sqrtf(warp_sum(move[n]));
            /* the bits of floats that are not negative are ordered as they are; NaN moves nothing */
            if (lane == 0 && far > 0) atomicMax(&m.most[round % 2 * m.heads + head[n]], __float_as_int(far));
            if constexpr (HALVES == 1) {
                prepare_rounded<T>(m, next[n], head[n], c[n]);
            } else {
                __syncwarp();
                prepare<T, HALVES>(m, to, head[n], c[n]);
            }
        }
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

/* Before the first round: where heads start, and what assign needs of that. V: elements of a token that can be read at
 * once. */
template <typename T, int HALVES, int V> static __device__ void start(const kmeans &m) {
    constexpr int N = HALVES == 1 ? MEANS : 1;
    const int lane = launch_place().lane();
    for (int h = (int)threadIdx.x; h < m.heads; h += (int)blockDim.x) {
        states(m)[h] = rounds_of(m, h) > 0 ? RUNS : 0;
        if (blockIdx.x == 0) m.most[h] = 0;
    }
    __syncthreads();
    share_by_warps<N>(m, RUNS, (int)m.padded, [&](const int(&head)[N], const int(&c)[N]) {
        several<float, V> x[N] = {};
        bool first[N];
#pragma unroll
        for (int n = 0; n < N; n++) first[n] = head[n] >= 0 && m.want[head[n]] > 1 && c[n] < m.clusters;
        for (int d = lane * V; d < m.dim; d += 32 * V) {
            auto at = [&](int n) {
                return (several<float, V> *)(m.centroids + ((int64_t)head[n] * m.clusters + c[n]) * m.dim + d);
            };
#pragma unroll
            for (int n = 0; n < N; n++) {
                if (first[n]) {
                    const T *token = (const T *)m.x + (int64_t)head[n] * m.dim + first_token(m, head[n], c[n]) * m.ld;
                    const several<T, V> v = *(const several<T, V> *)(const void *)(token + d);
#pragma unroll
                    for (int e = 0; e < V; e++) x[n].at[e] = to_f32(v.at[e]);
                } else if (head[n] >= 0 && c[n] < m.clusters) {
                    x[n] = *at(n);
                }
            }
#pragma unroll
            for (int n = 0; n < N; n++)
                if (first[n]) *at(n) = x[n];
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            if (head[n] < 0) continue;
            if constexpr (HALVES == 1) {
                prepare_rounded<T>(m, x[n], head[n], c[n]);
            } else {
                __syncwarp();
                prepare<T, HALVES>(m, m.centroids, head[n], c[n]);
            }
        }
    });
    clear_counts(m);
}

/* After a round: whose move counts and who goes on, the same in all blocks. */
static __device__ void decide(const kmeans &m, int round) {
    const int *most = m.most + round % 2 * m.heads, h = (int)threadIdx.x;
    uint8_t state = 0;
    if (h < m.heads && states(m)[h] & RUNS) {
        float furthest = 0;
        for (int i = m.compat ? 0 : h; i < (m.compat ? m.heads : h + 1); i++)
            if (states(m)[i] & RUNS) furthest = fmaxf(furthest, __int_as_float(most[i]));
        const bool moves = !(furthest < STANDS_STILL);
        if (moves && round + 1 < rounds_of(m, h))
            state = RUNS;
        else if ((round + moves) % 2)
            state = ENDED;
    }
    __syncthreads();
    if (h < m.heads) states(m)[h] = state;
    __syncthreads();
}

/* The centroids of heads that ended in the last round, from where they are to where they belong. */
static __device__ void settle(const kmeans &m) {
    share_by_warps(m, ENDED, m.clusters, [&](int head, int c) {
        const int64_t at = ((int64_t)head * m.clusters + c) * m.dim;
        for (int d = threadIdx.x % 32; d < m.dim; d += 32) m.centroids[at + d] = m.other[at + d];
    });
}
#endif
