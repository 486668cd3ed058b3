/* Tokens to their nearest centroids on Hopper: TMA and wgmma, a running choice of the best two in registers.
 *
 * A producer thread and two warpgroups of 64 tokens each: the tokens of a tile stay in shared memory, tiles of 128
 * centroids stream past, and the warpgroups take turns at issuing products, so that one multiplies while the other
 * chooses. Centroids are rounded to the type of the tokens, which halves the products; distances to the rounded
 * centroid differ by (token - c) times the rounding of c. Where the lead of the best is not clear of that, the best two
 * are compared again by their exact distances.
 */
#ifndef HS_CLUSTER_HOPPER_CUH
#define HS_CLUSTER_HOPPER_CUH
#include "cuda/cluster.cuh"

enum {
    NEAR_GROUPS = 2,              /* warpgroups that multiply */
    NEAR_ROWS = NEAR_GROUPS * 64, /* tokens of a tile */
    NEAR_COLS = 128,              /* centroids */
    NEAR_STAGES = 4,              /* tiles of centroids under way */
    NEAR_SLABS = 2,               /* of 64 elements: head sizes of 128, and of 64 with zeros */
    NEAR_BOX = NEAR_ROWS * SLAB * 2,
    NEAR_TOKENS = NEAR_SLABS * NEAR_BOX, /* bytes */
    NEAR_CENTROIDS = NEAR_SLABS * NEAR_COLS * SLAB * 2,
    NEAR_BIAS = NEAR_COLS * 8, /* their scales and half squares */
    NEAR_SHARED = 2 * NEAR_TOKENS + NEAR_STAGES * (NEAR_CENTROIDS + NEAR_BIAS),
    NEAR_BARRIERS = 2 * NEAR_STAGES + 4,
};

/* The best two of a row; of equals the one with the lower number is better. later: l is higher than all before. */
struct best_two {
    float score[2];
    int label[2];
    __device__ __forceinline__ void clear() {
        score[0] = score[1] = -INFINITY;
        label[0] = label[1] = 0;
    }
    static __device__ __forceinline__ bool before(float a, int a_label, float b, int b_label) {
        return a > b || (a == b && a_label < b_label);
    }
    __device__ __forceinline__ void take(float s, int l) {
        if (before(s, l, score[0], label[0])) {
            score[1] = score[0], label[1] = label[0];
            score[0] = s, label[0] = l;
        } else if (before(s, l, score[1], label[1])) {
            score[1] = s, label[1] = l;
        }
    }
    __device__ __forceinline__ void take_later(float s, int l) {
        const bool best = s > score[0], second = s > score[1];
        score[1] = best ? score[0] : second ? s : score[1];
        label[1] = best ? label[0] : second ? l : label[1];
        score[0] = best ? s : score[0];
        label[0] = best ? l : label[0];
    }
};

/* The higher two of some keys. */
struct top_two {
    float first, second;
};
static __device__ __forceinline__ top_two top_of(float a, float b) {
    return {fmaxf(a, b), fminf(a, b)};
}
static __device__ __forceinline__ top_two top_of(top_two a, top_two b) {
    return {fmaxf(a.first, b.first), fmaxf(fminf(a.first, b.first), fmaxf(a.second, b.second))};
}

/* The products of 64 tokens with a tile of centroids become choices; bias: of the tile, in shared memory. A score gives
 * up its last five bits for the number of its column among this thread's 32, so that the best two are found by minima
 * and maxima alone; pairs, pairs of pairs and so on, because in a row each would wait for the one before. */
static __device__ __forceinline__ void look_near(const float (&acc)[64], const float2 *bias, int first,
                                                 best_two (&row)[2]) {
    const int quad = threadIdx.x % 4;
    unsigned high; /* in a register: one instruction, which takes one constant, makes a key */
    asm volatile("mov.b32 %0, 0xffffffe0;" : "=r"(high));
    top_two best[2];
#pragma unroll
    for (int j0 = 0; j0 < 16; j0 += 4) {
        float4 two[4];
        top_two pair[2][4];
#pragma unroll
        for (int n = 0; n < 4; n++) two[n] = *(const float4 *)(bias + 8 * (j0 + n) + 2 * quad);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = 4 * (j0 + n) + 2 * i;
                const float score[2] = {fmaf(acc[at], two[n].x, -two[n].y), fmaf(acc[at + 1], two[n].z, -two[n].w)};
                unsigned key[2]; /* score & high | 31 - column */
#pragma unroll
                for (int e = 0; e < 2; e++)
                    asm("lop3.b32 %0, %1, %2, %3, 0xea;"
                        : "=r"(key[e])
                        : "r"(__float_as_uint(score[e])), "r"(high), "r"(31 - 2 * (j0 + n) - e));
                pair[i][n] = top_of(__uint_as_float(key[0]), __uint_as_float(key[1]));
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const top_two four = top_of(top_of(pair[i][0], pair[i][1]), top_of(pair[i][2], pair[i][3]));
            best[i] = j0 ? top_of(best[i], four) : four;
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int key = __float_as_int(n ? best[i].second : best[i].first), at = 31 - (key & 31);
            row[i].take_later(__int_as_float(key & ~31), first + at / 2 * 8 + 2 * quad + at % 2);
        }
}

/* Squared distance to centroid a less that to b, by a warp; the order of the additions is fixed. */
template <typename T>
static __device__ __forceinline__ float farther(const kmeans &m, int round, int head, int64_t token, int a, int b) {
    const T *x = (const T *)m.x + token * m.ld + (int64_t)head * m.dim;
    const float *ca = centroids_of(m, round) + ((int64_t)head * m.clusters + a) * m.dim;
    const float *cb = centroids_of(m, round) + ((int64_t)head * m.clusters + b) * m.dim;
    float da = 0, db = 0;
    for (int d = threadIdx.x % 32; d < m.dim; d += 32) {
        const float v = to_f32(x[d]), to_a = v - ca[d], to_b = v - cb[d];
        da = fmaf(to_a, to_a, da);
        db = fmaf(to_b, to_b, db);
    }
    return warp_sum(da) - warp_sum(db);
}

/* The quads of a row agree, doubts are settled, labels written. token: of this thread's first row; square: |x|^2 of its
 * two rows. */
template <typename T>
static __device__ __forceinline__ void finish_near(const kmeans &m, int round, int head, int64_t token,
                                                   const float (&square)[2], best_two (&row)[2]) {
    /* 8 or 11 bits of a centroid are kept: its components are off by at most this */
    const float unit = std::is_same<T, __nv_bfloat16>::value ? 0x1p-9f : 0x1p-12f;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        for (int d = 1; d < 4; d *= 2) {
            float score[2];
            int label[2];
            for (int n = 0; n < 2; n++) {
                score[n] = __shfl_xor_sync(~0u, row[i].score[n], d);
                label[n] = __shfl_xor_sync(~0u, row[i].label[n], d);
            }
            for (int n = 0; n < 2; n++) row[i].take(score[n], label[n]);
        }
        const int64_t mine = token + 8 * i;
        for (int n = 0; n < 2; n++) row[i].label[n] = row[i].label[n] < m.clusters ? row[i].label[n] : 0; /* NaN */
        int label = row[i].label[0];
        const int second = row[i].label[1];
        /* |x - c| |c| times the unit bounds (x - c) times the rounding of c; where no component is much larger than the
         * others it is seven times its deviation or more */
        const float apart = sqrtf(fmaxf(square[i] - 2 * row[i].score[0], 0) * 2 * m.bias[head * m.padded + label].y);
        const int doubt = row[i].score[0] - row[i].score[1] <= unit * apart && second != label && mine < m.len;
        for (unsigned left = __ballot_sync(~0u, doubt && lane % 4 == 0); left; left &= left - 1) {
            const int from = __ffs(left) - 1;
            const int a = __shfl_sync(~0u, label, from), b = __shfl_sync(~0u, second, from);
            const float by = farther<T>(m, round, head, token - lane / 4 + from / 4 + 8 * i, a, b);
            if (lane == from && (by > 0 || (by == 0 && b < a))) label = b;
        }
        if (lane % 4 == 0 && mine < m.len) write_label(m, head, mine, label);
    }
}

template <typename T> struct near_by_wgmma {
    using type = T;
    enum { THREADS = NEAR_GROUPS * 128 + 128, BLOCKS = 1, HALVES = 1, COLS = NEAR_COLS };
    unsigned barriers;                  /* of every stage full, empty; of both halves of tokens full, empty */
    int stage, phase, half, half_phase; /* of centroids; of tokens */

    __device__ __forceinline__ unsigned full(int s) const { return barriers + 8 * s; }
    __device__ __forceinline__ unsigned empty(int s) const { return barriers + 8 * (NEAR_STAGES + s); }
    __device__ __forceinline__ unsigned tokens_full(int s) const { return barriers + 8 * (2 * NEAR_STAGES + s); }
    __device__ __forceinline__ unsigned tokens_empty(int s) const { return barriers + 8 * (2 * NEAR_STAGES + 2 + s); }

    __device__ __forceinline__ void next_stage() {
        stage = stage + 1 < NEAR_STAGES ? stage + 1 : 0;
        phase ^= stage == 0;
    }
    __device__ __forceinline__ void next_tokens() {
        half ^= 1;
        half_phase ^= half == 0;
    }

    __device__ __forceinline__ void begin() {
#if HS_HOPPER
        __shared__ uint64_t room[NEAR_BARRIERS];
        barriers = shared_address(room);
        stage = phase = half = half_phase = 0;
        if (threadIdx.x == 0) {
            for (int s = 0; s < NEAR_STAGES; s++) {
                barrier_init(full(s), 1);
                barrier_init(empty(s), NEAR_GROUPS * 4);
            }
            for (int s = 0; s < 2; s++) {
                barrier_init(tokens_full(s), 1);
                barrier_init(tokens_empty(s), NEAR_GROUPS);
            }
            barrier_init_done();
        }
        __syncthreads();
        if (threadIdx.x / 128 == NEAR_GROUPS - 1) named_arrive(1, 256); /* the first turn is the first one's */
#endif
    }

    __device__ __forceinline__ void assign(const kmeans &m, int round, unsigned char *shared) {
#if HS_HOPPER
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
        const int tiles = (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS);
        const int cols = (int)(m.padded / NEAR_COLS);
        const unsigned tokens = shared_address(shared), centroids = tokens + 2 * NEAR_TOKENS;
        auto share = [&](auto work) {
            for (int item = blockIdx.x; item < m.heads * tiles; item += gridDim.x)
                if (states()[item / tiles] & RUNS) work(item / tiles, item % tiles * NEAR_ROWS);
        };
        if (group == NEAR_GROUPS) {
            if (threadIdx.x % 128 == 0)
                share([&](int head, int first) { produce(m, head, first, cols, tokens, centroids); });
            __syncwarp();
        } else {
            share([&](int head, int first) { consume(m, round, head, first, cols, shared, group); });
        }
#endif
    }

    __device__ __forceinline__ void produce(const kmeans &m, int head, int first, int cols, unsigned tokens,
                                            unsigned centroids) {
        barrier_wait(tokens_empty(half), half_phase ^ 1);
        barrier_expect(tokens_full(half), NEAR_TOKENS);
        for (int s = 0; s < NEAR_SLABS; s++)
            tma_load(tokens + half * NEAR_TOKENS + s * NEAR_BOX, &m.tokens, tokens_full(half), s * SLAB, first, head);
        next_tokens();
        for (int c = 0; c < cols; c++, next_stage()) {
            const unsigned to = centroids + stage * NEAR_CENTROIDS;
            barrier_wait(empty(stage), phase ^ 1);
            barrier_expect(full(stage), NEAR_CENTROIDS + NEAR_BIAS);
            bulk_load(centroids + NEAR_STAGES * NEAR_CENTROIDS + stage * NEAR_BIAS,
                      m.bias + head * m.padded + c * NEAR_COLS, NEAR_BIAS, full(stage));
            for (int s = 0; s < NEAR_SLABS; s++)
                tma_load(to + s * (NEAR_CENTROIDS / NEAR_SLABS), &m.rounded, full(stage), s * SLAB, c * NEAR_COLS,
                         head);
        }
    }

    __device__ __forceinline__ void consume(const kmeans &m, int round, int head, int first, int cols,
                                            const unsigned char *shared, int group) {
        const unsigned tokens = shared_address(shared), centroids = tokens + 2 * NEAR_TOKENS;
        /* shuffled so that the compiler knows it to be the same in a warp: descriptors live in uniform registers */
        const unsigned mine = __shfl_sync(~0u, tokens + half * NEAR_TOKENS + group * 64 * SLAB * 2, 0);
        const float2 *bias = (const float2 *)(const void *)(shared + 2 * NEAR_TOKENS + NEAR_STAGES * NEAR_CENTROIDS);
        best_two row[2];
        row[0].clear();
        row[1].clear();
        barrier_wait(tokens_full(half), half_phase);
        const int lane = threadIdx.x % 32, quad = lane % 4;
        float square[2];
#pragma unroll
        for (int i = 0; i < 2; i++) { /* a quad shares a row: two pieces of eight values of each slab a lane */
            const int at = threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * i;
            float sum = 0;
            for (int n = 0; n < 2 * NEAR_SLABS; n++) {
                const unsigned char *box =
                    shared + half * NEAR_TOKENS + n / 2 * NEAR_BOX + (group * 64 + at) * SLAB * 2;
                const several<T, 8> v =
                    *(const several<T, 8> *)(const void *)(box + ((quad + n % 2 * 4) ^ (at % 8)) * 16);
#pragma unroll
                for (int e = 0; e < 8; e++) sum = fmaf(to_f32(v.at[e]), to_f32(v.at[e]), sum);
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            square[i] = sum + __shfl_xor_sync(~0u, sum, 2);
        }
        for (int c = 0; c < cols; c++, next_stage()) {
            const unsigned at = __shfl_sync(~0u, centroids + stage * NEAR_CENTROIDS, 0);
            float acc[64];
            barrier_wait(full(stage), phase);
            named_sync(1 + group, 256);
            products_begin();
#pragma unroll
            for (int s = 0; s < NEAR_SLABS; s++) {
                const uint64_t a = operand_by_rows(mine + s * NEAR_BOX);
                const uint64_t b = operand_by_rows(at + s * (NEAR_CENTROIDS / NEAR_SLABS));
#pragma unroll
                for (int k = 0; k < SLAB / 16; k++) product_ss<T, 128>(acc, a + 2 * k, b + 2 * k, s | k);
            }
            products_commit();
            named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
            products_wait<0>();
            keep(acc);
            if (threadIdx.x % 128 == 0 && c == cols - 1) barrier_arrive(tokens_empty(half));
            look_near(acc, bias + stage * NEAR_COLS, c * NEAR_COLS, row);
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(empty(stage));
        }
        next_tokens();
        finish_near<T>(m, round, head, (int64_t)first + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4, square,
                       row);
    }
};
#endif
