/* Tokens to their nearest centroids on Hopper: TMA and wgmma, a running choice of the best two in registers.
 *
 * A producer thread and two warpgroups of 64 tokens each: the tokens of a tile stay in shared memory, tiles of 128
 * centroids stream past, and the warpgroups take turns at issuing products, so that one multiplies while the other
 * chooses. A product's depth has 16 places more, where the half squares of token and centroid meet ones, in three parts
 * of 8 bits each: sums are |x - c|^2 / 2 as they come, and floats that are not negative are ordered as integers are.
 * Centroids are rounded to the type of the tokens, which halves the products; distances to the rounded centroid differ
 * by (token - c) times the rounding of c. Where the lead of the best is not clear of that, the best two are compared
 * again by their exact distances.
 */
#ifndef HS_CLUSTER_HOPPER_CUH
#define HS_CLUSTER_HOPPER_CUH
#include "cuda/cluster_steps.cuh"

enum {
    NEAR_GROUPS = 2,              /* warpgroups that multiply */
    NEAR_ROWS = NEAR_GROUPS * 64, /* tokens of a tile */
    NEAR_COLS = 128,              /* centroids */
    NEAR_STAGES = 4,              /* tiles of centroids under way */
    NEAR_SLABS = 2,               /* of 64 elements: head sizes of 128, and of 64 with zeros */
    NEAR_BOX = NEAR_ROWS * SLAB * 2,
    NEAR_TOKENS = NEAR_SLABS * NEAR_BOX, /* bytes */
    NEAR_CENTROIDS = NEAR_SLABS * NEAR_COLS * SLAB * 2,
    NEAR_SQUARES = NEAR_COLS * 16, /* bytes, of half squares in parts */
    NEAR_SHARED = 2 * NEAR_TOKENS + NEAR_STAGES * (NEAR_CENTROIDS + NEAR_SQUARES),
    NEAR_BARRIERS = 2 * NEAR_STAGES + 4,
    NEAR_THREAD_COLS = NEAR_COLS / 4, /* of a row in a tile that a thread sees */
};

/* The lower two of some keys: half a squared distance, whose last bits give way to the number of its column among those
 * that the thread has seen. NaN is above all; what rounding has made negative is below all. */
struct lowest_two {
    int first, second;
};
static __device__ __forceinline__ lowest_two lowest_of(int a, int b) {
    return {min(a, b), max(a, b)};
}
static __device__ __forceinline__ lowest_two lowest_of(lowest_two a, lowest_two b) {
    return {min(a.first, b.first), __vimin3_s32(max(a.first, b.first), a.second, b.second)};
}

/* Half the squared distances of 64 tokens to a tile of centroids become choices. high: the bits of a key that are not a
 * number; before: columns seen. In pairs, pairs of pairs and so on: in a row each would wait for the one before. */
static __device__ __forceinline__ void look_near(const float (&acc)[64], unsigned high, int before,
                                                 lowest_two (&row)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        lowest_two best;
#pragma unroll
        for (int j0 = 0; j0 < 16; j0 += 4) {
            lowest_two pair[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                unsigned key[2]; /* sum & high | column */
#pragma unroll
                for (int e = 0; e < 2; e++)
                    asm("lop3.b32 %0, %1, %2, %3, 0xea;"
                        : "=r"(key[e])
                        : "r"(__float_as_uint(acc[4 * (j0 + n) + 2 * i + e])), "r"(high), "r"(2 * (j0 + n) + e));
                pair[n] = lowest_of((int)key[0], (int)key[1]);
            }
            const lowest_two four = lowest_of(lowest_of(pair[0], pair[1]), lowest_of(pair[2], pair[3]));
            best = j0 ? lowest_of(best, four) : four;
        }
        row[i] = lowest_of(row[i], {best.first | before, best.second | before});
    }
}

/* Column of a key of this thread. */
static __device__ __forceinline__ int column_of(int key, unsigned high) {
    const int n = key & (int)~high, in_tile = n % NEAR_THREAD_COLS;
    return n / NEAR_THREAD_COLS * NEAR_COLS + in_tile / 2 * 8 + (int)threadIdx.x % 4 * 2 + in_tile % 2;
}

/* The best two of a row; of equals the one with the lower label is better. */
struct best_two {
    float half[2]; /* of the squared distance */
    int label[2];
    static __device__ __forceinline__ bool before(float a, int a_label, float b, int b_label) {
        return a < b || (a == b && a_label < b_label);
    }
    __device__ __forceinline__ void take(float h, int l) {
        if (before(h, l, half[0], label[0])) {
            half[1] = half[0], label[1] = label[0];
            half[0] = h, label[0] = l;
        } else if (before(h, l, half[1], label[1])) {
            half[1] = h, label[1] = l;
        }
    }
};

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
                                                   const float (&square)[2], const lowest_two (&row)[2],
                                                   unsigned high) {
    /* 8 or 11 bits of a centroid are kept: its components are off by at most this part of them; small ones in fp16 by
     * 2^-25, 128 of them by 2^-21 */
    constexpr bool BF16 = std::is_same<T, __nv_bfloat16>::value;
    constexpr float PART = BF16 ? 0x1p-9f : 0x1p-12f, LEAST = BF16 ? 0 : 0x1p-21f;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        best_two best = {{__int_as_float(row[i].first & (int)high), __int_as_float(row[i].second & (int)high)},
                         {column_of(row[i].first, high), column_of(row[i].second, high)}};
        for (int d = 1; d < 4; d *= 2) {
            float half[2];
            int label[2];
            for (int n = 0; n < 2; n++) {
                half[n] = __shfl_xor_sync(~0u, best.half[n], d);
                label[n] = __shfl_xor_sync(~0u, best.label[n], d);
            }
            for (int n = 0; n < 2; n++) best.take(half[n], label[n]);
        }
        const int64_t mine = token + 8 * i;
        for (int n = 0; n < 2; n++) /* no centroid, or NaN */
            if (!(best.half[n] < NEVER / 2)) best.label[n] = 0;
        int label = best.label[0];
        const int second = best.label[1];
        /* |x - c| |c| times the part bounds (x - c) times the rounding of c; where no component is much larger than the
         * others it is seven times its deviation or more. Then what keys lack, and sums of products. */
        const float squares = square[i] / 2 + m.bias[head * m.padded + label].y, least = fmaxf(best.half[0], 0);
        const float apart = sqrtf(2 * least) * (PART * sqrtf(2 * m.bias[head * m.padded + label].y) + LEAST) +
                            least * (float)(2 * ~high) * 0x1p-23f + squares * 0x1p-20f;
        const int doubt = best.half[1] - best.half[0] <= apart && second != label && mine < m.len;
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
    unsigned barriers;         /* of every stage full, empty; of both halves of tokens full, empty */
    unsigned centroids, tiles; /* tiles of centroids, of tokens that are done */

    __device__ __forceinline__ unsigned full(int s) const { return barriers + 8 * s; }
    __device__ __forceinline__ unsigned empty(int s) const { return barriers + 8 * (NEAR_STAGES + s); }
    __device__ __forceinline__ unsigned tokens_full(int s) const { return barriers + 8 * (2 * NEAR_STAGES + s); }
    __device__ __forceinline__ unsigned tokens_empty(int s) const { return barriers + 8 * (2 * NEAR_STAGES + 2 + s); }

    /* Half squares of this stage in shared memory; first: the first stage's centroids. */
    __device__ __forceinline__ unsigned squares_at(unsigned first) const {
        return first + NEAR_STAGES * NEAR_CENTROIDS + stage() * NEAR_SQUARES;
    }

    __device__ __forceinline__ unsigned stage() const { return centroids % NEAR_STAGES; }
    __device__ __forceinline__ unsigned phase() const { return centroids / NEAR_STAGES % 2; }
    __device__ __forceinline__ unsigned half() const { return tiles % 2; }
    __device__ __forceinline__ unsigned half_phase() const { return tiles / 2 % 2; }

    __device__ __forceinline__ void begin() {
#if HS_HOPPER
        __shared__ uint64_t room[NEAR_BARRIERS];
        barriers = shared_address(room);
        centroids = tiles = 0;
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
        const unsigned tokens = shared_address(shared), stages = tokens + 2 * NEAR_TOKENS;
        const launch_place place;
        auto share = [&](auto work) {
            for (int item = (int)place.block; item < m.heads * tiles; item += (int)place.blocks)
                if (states()[item / tiles] & RUNS) work(item / tiles, item % tiles * NEAR_ROWS);
        };
        if (group == NEAR_GROUPS) {
            if (threadIdx.x % 128 == 0)
                share([&](int head, int first) { produce(m, head, first, cols, tokens, stages); });
            __syncwarp();
        } else {
            share([&](int head, int first) { consume(m, round, head, first, cols, shared, group); });
        }
#endif
    }

    __device__ __forceinline__ void produce(const kmeans &m, int head, int first, int cols, unsigned tokens,
                                            unsigned stages) {
        barrier_wait(tokens_empty(half()), half_phase() ^ 1);
        barrier_expect(tokens_full(half()), NEAR_TOKENS);
        for (int s = 0; s < NEAR_SLABS; s++)
            tma_load(tokens + half() * NEAR_TOKENS + s * NEAR_BOX, &m.tokens, tokens_full(half()), s * SLAB, first, head);
        tiles++;
        for (int c = 0; c < cols; c++, centroids++) {
            const unsigned to = stages + stage() * NEAR_CENTROIDS;
            barrier_wait(empty(stage()), phase() ^ 1);
            barrier_expect(full(stage()), NEAR_CENTROIDS + NEAR_SQUARES);
            bulk_load(squares_at(stages), m.squares + head * m.padded + c * NEAR_COLS, NEAR_SQUARES, full(stage()));
            for (int s = 0; s < NEAR_SLABS; s++)
                tma_load(to + s * (NEAR_CENTROIDS / NEAR_SLABS), &m.rounded, full(stage()), s * SLAB, c * NEAR_COLS,
                         head);
        }
    }

    __device__ __forceinline__ void consume(const kmeans &m, int round, int head, int first, int cols,
                                            const unsigned char *shared, int group) {
        const unsigned tokens = shared_address(shared), stages = tokens + 2 * NEAR_TOKENS;
        /* shuffled so that the compiler knows it to be the same in a warp: descriptors live in uniform registers */
        const unsigned mine = __shfl_sync(~0u, tokens + half() * NEAR_TOKENS + group * 64 * SLAB * 2, 0);
        const unsigned high = ~((1u << m.key_bits) - 1);
        lowest_two row[2] = {{INT32_MAX, INT32_MAX}, {INT32_MAX, INT32_MAX}};
        unsigned ones[4] = {}; /* columns of a token: 1, 1, 1 for the centroid's parts, its own parts, 0 and so on */
        barrier_wait(tokens_full(half()), half_phase());
        const int lane = threadIdx.x % 32, quad = lane % 4;
        float square[2];
#pragma unroll
        for (int i = 0; i < 2; i++) { /* a quad shares a row: two pieces of eight values of each slab a lane */
            const int at = threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * i;
            float sum = 0;
            for (int n = 0; n < 2 * NEAR_SLABS; n++) {
                const unsigned char *box =
                    shared + half() * NEAR_TOKENS + n / 2 * NEAR_BOX + (group * 64 + at) * SLAB * 2;
                const several<T, 8> v =
                    *(const several<T, 8> *)(const void *)(box + ((quad + n % 2 * 4) ^ (at % 8)) * 16);
#pragma unroll
                for (int e = 0; e < 8; e++) sum = fmaf(to_f32(v.at[e]), to_f32(v.at[e]), sum);
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            square[i] = sum + __shfl_xor_sync(~0u, sum, 2);
            const parts own(square[i] / 2);
            ones[i] = quad == 0 ? parts::pair(1, 1) : quad == 1 ? parts::pair(1, own.at[0]) :
                      quad == 2 ? parts::pair(own.at[1], own.at[2]) : 0;
        }
        for (int c = 0; c < cols; c++, centroids++) {
            const unsigned at = __shfl_sync(~0u, stages + stage() * NEAR_CENTROIDS, 0);
            const unsigned squares = __shfl_sync(~0u, squares_at(stages), 0);
            float acc[64];
            barrier_wait(full(stage()), phase());
            named_sync(1 + group, 256);
            products_begin();
            product_rs_rows<__nv_bfloat16, NEAR_COLS>(acc, ones, operand_of_eights(squares), 0);
#pragma unroll
            for (int s = 0; s < NEAR_SLABS; s++) {
                const uint64_t a = operand_by_rows(mine + s * NEAR_BOX);
                const uint64_t b = operand_by_rows(at + s * (NEAR_CENTROIDS / NEAR_SLABS));
#pragma unroll
                for (int k = 0; k < SLAB / 16; k++) product_ss<T, NEAR_COLS>(acc, a + 2 * k, b + 2 * k, 1);
            }
            products_commit();
            named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
            products_wait<0>();
            keep(acc);
            keep(ones);
            if (threadIdx.x % 32 == 0) barrier_arrive(empty(stage()));
            if (threadIdx.x % 128 == 0 && c == cols - 1) barrier_arrive(tokens_empty(half()));
            look_near(acc, high, c * NEAR_THREAD_COLS, row);
        }
        tiles++;
        finish_near<T>(m, round, head, (int64_t)first + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4, square,
                       row, high);
    }
};
#endif
