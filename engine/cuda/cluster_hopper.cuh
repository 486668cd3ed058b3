/* Tokens to their nearest centroids on Hopper: TMA and wgmma, a running choice of the best two in registers.
 *
 * A producer thread and three warpgroups of 64 tokens each: the tokens of a tile stay in shared memory, tiles of 128
 * centroids stream past. Warpgroups take turns: one multiplies while the others choose. A product's depth has 16
 * places more, where quarter squares of token and centroid meet ones twice, in three parts of 8 bits each: sums are |x
 * - c|^2 / 2 as they come, and floats that are not negative are ordered as integers are. Centroids are rounded to the
 * type of the tokens, which halves the products; distances to the rounded centroid differ by (token - c) times the
 * rounding of c. Where the lead of the best is not clear of that, the best two are compared again by their exact
 * distances.
 */
#ifndef HS_CLUSTER_HOPPER_CUH
#define HS_CLUSTER_HOPPER_CUH
#include "cuda/cluster_steps.cuh"

enum {
    NEAR_GROUPS = 3,              /* warpgroups that multiply */
    NEAR_ROWS = NEAR_GROUPS * 64, /* tokens of a tile */
    NEAR_COLS = 128,              /* centroids */
    NEAR_STAGES = 3,              /* tiles of centroids under way */
    NEAR_SLABS = 2,               /* of 64 elements: head sizes of 128, and of 64 with zeros */
    NEAR_BOX = NEAR_ROWS * SLAB * 2,
    NEAR_TOKENS = NEAR_SLABS * NEAR_BOX, /* bytes */
    NEAR_CENTROIDS = NEAR_SLABS * NEAR_COLS * SLAB * 2,
    NEAR_SQUARES = NEAR_COLS * 16, /* bytes, of quarter squares in parts */
    NEAR_OWN = NEAR_ROWS * 16,     /* the same of the tokens of a tile */
    NEAR_BEHIND = 1024, /* memcheck takes the two halves of an operand that are the same for one behind the other */
    NEAR_SHARED = 2 * (NEAR_TOKENS + NEAR_OWN) + NEAR_STAGES * (NEAR_CENTROIDS + NEAR_SQUARES) + NEAR_BEHIND,
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
    const int d = (int)threadIdx.x % 32 * 4;
    const float *c = centroids_of(m, round) + (int64_t)head * m.clusters * m.dim + d;
    float by = 0;
    if (d < m.dim) {
        const several<T, 4> x = *(const several<T, 4> *)((const T *)m.x + token * m.ld + (int64_t)head * m.dim + d);
        const several<float, 4> ca = *(const several<float, 4> *)(c + (int64_t)a * m.dim);
        const several<float, 4> cb = *(const several<float, 4> *)(c + (int64_t)b * m.dim);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float v = to_f32(x.at[e]);
            by = fmaf(cb.at[e] - ca.at[e], (v - ca.at[e]) + (v - cb.at[e]), by);
        }
    }
    return warp_sum(by);
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
    best_two best[2];
    float norm[2]; /* |c|^2 / 2 of the best */
    int doubt[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        for (int n = 0; n < 2; n++) {
            const int key = n ? row[i].second : row[i].first;
            best[i].half[n] = __int_as_float(key & (int)high);
            best[i].label[n] = column_of(key, high);
        }
        for (int d = 1; d < 4; d *= 2) {
            float half[2];
            int label[2];
            for (int n = 0; n < 2; n++) {
                half[n] = __shfl_xor_sync(~0u, best[i].half[n], d);
                label[n] = __shfl_xor_sync(~0u, best[i].label[n], d);
            }
            for (int n = 0; n < 2; n++) best[i].take(half[n], label[n]);
        }
        for (int n = 0; n < 2; n++) /* no centroid, or NaN */
            if (!(best[i].half[n] < NEVER / 2)) best[i].label[n] = 0;
        norm[i] = m.bias[head * m.padded + best[i].label[0]].y;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        /* |x - c| |c| times the part bounds (x - c) times the rounding of c; where no component is much larger than the
         * others it is seven times its deviation or more. Then what keys lack, and sums of products. */
        const float least = fmaxf(best[i].half[0], 0);
        const float apart = sqrtf(2 * least) * (PART * sqrtf(2 * norm[i]) + LEAST) +
                            least * (float)(2 * ~high) * 0x1p-23f + (square[i] / 2 + norm[i]) * 0x1p-20f;
        doubt[i] = best[i].half[1] - best[i].half[0] <= apart && best[i].label[1] != best[i].label[0];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int64_t mine = token + 8 * i;
        int label = best[i].label[0];
        for (unsigned left = __ballot_sync(~0u, doubt[i] && lane % 4 == 0 && mine < m.len); left; left &= left - 1) {
            const int from = __ffs(left) - 1;
            const int a = __shfl_sync(~0u, label, from), b = __shfl_sync(~0u, best[i].label[1], from);
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
    unsigned centroids, tiles; /* tiles of centroids, of tokens that came */

    __device__ __forceinline__ unsigned full(unsigned n) const { return barriers + 8 * (n % NEAR_STAGES); }
    __device__ __forceinline__ unsigned empty(unsigned n) const {
        return barriers + 8 * (NEAR_STAGES + n % NEAR_STAGES);
    }
    __device__ __forceinline__ unsigned tokens_full(unsigned n) const {
        return barriers + 8 * (2 * NEAR_STAGES + n % 2);
    }
    __device__ __forceinline__ unsigned tokens_empty(unsigned n) const {
        return barriers + 8 * (2 * NEAR_STAGES + 2 + n % 2);
    }

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
                barrier_init(tokens_empty(s), NEAR_GROUPS * 4);
            }
            barrier_init_done();
        }
        __syncthreads();
        if (threadIdx.x / 128 == NEAR_GROUPS - 1) named_arrive(1, 256); /* the first turn is the first one's */
#endif
    }

    __device__ __forceinline__ void assign(const kmeans &m, int round, unsigned char *shared) {
#if HS_HOPPER
        const launch_place place;
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
        const int tiles_of_head = (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS), cols = (int)(m.padded / NEAR_COLS);
        auto share = [&](auto work) {
            for (int item = (int)place.block; item < m.heads * tiles_of_head; item += (int)place.blocks) {
                const int head = item / tiles_of_head;
                if (states()[head] & RUNS) work(head, item % tiles_of_head * NEAR_ROWS);
            }
        };
        if (group == NEAR_GROUPS) {
            if (threadIdx.x % 128 == 0)
                share([&](int head, int first) { produce(m, head, first, cols, shared_address(shared)); });
            __syncwarp();
        } else {
            share([&](int head, int first) { consume(m, round, head, first, cols, shared, group); });
        }
#endif
    }

    /* Places in shared memory: of the nth tile of tokens, their quarter squares, the nth tile of centroids, theirs. */
    static __device__ __forceinline__ unsigned tokens_at(unsigned shared, unsigned n) {
        return shared + n % 2 * NEAR_TOKENS;
    }
    static __device__ __forceinline__ unsigned centroids_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + n % NEAR_STAGES * NEAR_CENTROIDS;
    }
    static __device__ __forceinline__ unsigned squares_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + NEAR_STAGES * NEAR_CENTROIDS + n % NEAR_STAGES * NEAR_SQUARES;
    }
    static __device__ __forceinline__ unsigned own_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + NEAR_STAGES * (NEAR_CENTROIDS + NEAR_SQUARES) + n % 2 * NEAR_OWN;
    }

    __device__ __forceinline__ void produce(const kmeans &m, int head, int first, int cols, unsigned shared) {
        barrier_wait(tokens_empty(tiles), tiles / 2 % 2 ^ 1);
        barrier_expect(tokens_full(tiles), NEAR_TOKENS);
        for (int s = 0; s < NEAR_SLABS; s++)
            tma_load(tokens_at(shared, tiles) + s * NEAR_BOX, &m.tokens, tokens_full(tiles), s * SLAB, first, head);
        tiles++;
        for (int c = 0; c < cols; c++, centroids++) {
            barrier_wait(empty(centroids), centroids / NEAR_STAGES % 2 ^ 1);
            barrier_expect(full(centroids), NEAR_CENTROIDS + NEAR_SQUARES);
            bulk_load(squares_at(shared, centroids), m.squares + head * m.padded + c * NEAR_COLS, NEAR_SQUARES,
                      full(centroids));
            for (int s = 0; s < NEAR_SLABS; s++)
                tma_load(centroids_at(shared, centroids) + s * (NEAR_CENTROIDS / NEAR_SLABS), &m.rounded,
                         full(centroids), s * SLAB, c * NEAR_COLS, head);
        }
    }

    /* Waits for the next tile's tokens and gives the products their quarter squares. square: |x|^2 of this thread's
     * rows. */
    __device__ __forceinline__ void take_tokens(unsigned char *shared, int group, float (&square)[2]) const {
        const int lane = threadIdx.x % 32, quad = lane % 4;
        barrier_wait(tokens_full(tiles), tiles / 2 % 2);
#pragma unroll
        for (int i = 0; i < 2; i++) { /* a quad shares a row: two pieces of eight values of each slab a lane */
            const int at = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * i;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < 2 * NEAR_SLABS; n++) {
                const several<T, 8> v =
                    *(const several<T, 8> *)(const void *)(shared + tokens_at(0, tiles) + n / 2 * NEAR_BOX +
                                                           at * SLAB * 2 + ((quad + n % 2 * 4) ^ (at % 8)) * 16);
#pragma unroll
                for (int e = 0; e < 8; e++) sum = fmaf(to_f32(v.at[e]), to_f32(v.at[e]), sum);
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            square[i] = sum + __shfl_xor_sync(~0u, sum, 2);
            const parts own(square[i] / 4);
            if (quad == 0) /* ones for the centroid's parts, its own for the centroid's ones */
                *(uint4 *)(void *)(shared + own_at(0, tiles) + at * 16) =
                    make_uint4(parts::pair(1, 1), parts::pair(1, own.at[0]), parts::pair(own.at[1], own.at[2]), 0);
        }
        fence_async();
        named_sync(1 + NEAR_GROUPS + group, 128);
    }

    /* Half squared distances of this warpgroup's tokens to the next tile of centroids. */
    __device__ __forceinline__ void multiply(float (&acc)[64], unsigned shared, int group) const {
        /* shuffled so that the compiler knows it to be the same in a warp: descriptors live in uniform registers */
        const unsigned x = __shfl_sync(~0u, tokens_at(shared, tiles) + group * 64 * SLAB * 2, 0);
        const unsigned own = __shfl_sync(~0u, own_at(shared, tiles) + group * 64 * 16, 0);
        const unsigned c = __shfl_sync(~0u, centroids_at(shared, centroids), 0);
        const unsigned squares = __shfl_sync(~0u, squares_at(shared, centroids), 0);
        barrier_wait(full(centroids), centroids / NEAR_STAGES % 2);
        named_sync(1 + group, 256);
        products_begin();
        product_ss<__nv_bfloat16, NEAR_COLS>(acc, operand_of_eights(own), operand_of_eights(squares), 0);
#pragma unroll
        for (int s = 0; s < NEAR_SLABS; s++)
#pragma unroll
            for (int k = 0; k < SLAB / 16; k++)
                product_ss<T, NEAR_COLS>(acc, operand_by_rows(x + s * NEAR_BOX) + 2 * k,
                                         operand_by_rows(c + s * (NEAR_CENTROIDS / NEAR_SLABS)) + 2 * k, 1);
        products_commit();
        products_wait<0>();
        named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
        keep(acc);
    }

    __device__ __forceinline__ void consume(const kmeans &m, int round, int head, int first, int cols,
                                            unsigned char *shared, int group) {
        const unsigned high = ~((1u << m.key_bits) - 1), base = shared_address(shared);
        const int lane = threadIdx.x % 32, row = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
        float square[2];
        lowest_two best[2] = {{INT32_MAX, INT32_MAX}, {INT32_MAX, INT32_MAX}};
        take_tokens(shared, group, square);
        for (int c = 0; c < cols; c++, centroids++) {
            float acc[64];
            multiply(acc, base, group);
            if (lane == 0) barrier_arrive(empty(centroids));
            if (lane == 0 && c == cols - 1) barrier_arrive(tokens_empty(tiles));
            look_near(acc, high, c * NEAR_THREAD_COLS, best);
        }
        tiles++;
        finish_near<T>(m, round, head, (int64_t)first + row, square, best, high);
    }
};
#endif
