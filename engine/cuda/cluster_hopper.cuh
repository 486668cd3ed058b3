/* Tokens to their nearest centroids on Hopper: TMA and wgmma, a running choice of the best in registers.
 *
 * A producer thread and three warpgroups of 64 tokens each: the tokens of a tile stay in shared memory, tiles of 128
 * centroids stream past. Warpgroups take turns: one multiplies while the others choose. Products are of tokens and
 * negative centroids and begin with the halves of both squares, so sums are |x - c|^2 / 2 as they come, and floats that
 * are not negative are ordered as integers are. Centroids are rounded to the type of the tokens, which halves the
 * products: labels are exact for the rounded ones, as are those of the published code, which keeps no others.
 */
#ifndef HS_CLUSTER_HOPPER_CUH
#define HS_CLUSTER_HOPPER_CUH
#include "cuda/cluster_steps.cuh"

enum {
    NEAR_GROUPS = 3,              /* warpgroups that multiply */
    NEAR_ROWS = NEAR_GROUPS * 64, /* tokens of a tile */
    NEAR_STAGES = 3,              /* tiles of centroids under way */
    NEAR_SLABS = 2,               /* of 64 elements: head sizes of 128, and of 64 with zeros */
    NEAR_BOX = NEAR_ROWS * SLAB * 2,
    NEAR_TOKENS = NEAR_SLABS * NEAR_BOX, /* bytes */
    NEAR_BARRIERS = 2 * NEAR_STAGES + 4,
    NEAR_NUMBERS = 32, /* of columns of a tile that a thread sees: 26 or all */
};

/* The nearest of the centroids that a thread has seen of a row. A key is the bits of half a squared distance, the last
 * five being the number of its column in the tile instead. NaN is above all; what rounding has made negative is below
 * all. */
struct nearest_key {
    int key, tile;
};

/* Half the squared distances of 64 tokens to a tile of centroids become choices, in four chains: in one each would wait
 * for the one before. high: -NEAR_NUMBERS, not known to the compiler: an instruction has room for one constant. */
template <int COLS>
static __device__ __forceinline__ void look_near(const float (&acc)[COLS / 2], int high, int tile,
                                                 nearest_key (&row)[2]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int best[4] = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
            int key[2];
#pragma unroll
            for (int e = 0; e < 2; e++) /* sum & high | column */
                asm("lop3.b32 %0, %1, %2, %3, 0xea;"
                    : "=r"(key[e])
                    : "r"(__float_as_uint(acc[4 * j + 2 * i + e])), "r"(high), "r"(2 * j + e));
            best[j % 4] = __vimin3_s32(best[j % 4], key[0], key[1]);
        }
        const int least = __vimin3_s32(best[0], best[1], min(best[2], best[3]));
        if (least < row[i].key) row[i] = {least, tile};
    }
}

/* The quads of a row agree: of equals the one with the lower label. token: of this thread's first row. */
template <int COLS>
static __device__ __forceinline__ void finish_near(const kmeans &m, int head, int64_t token,
                                                   const nearest_key (&row)[2]) {
    const int quad = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int in_tile = row[i].key & (NEAR_NUMBERS - 1);
        int half = row[i].key & -NEAR_NUMBERS, label = row[i].tile * COLS + in_tile / 2 * 8 + quad * 2 + in_tile % 2;
#pragma unroll
        for (int d = 1; d < 4; d *= 2) {
            const int other = __shfl_xor_sync(~0u, half, d), its = __shfl_xor_sync(~0u, label, d);
            if (other < half || (other == half && its < label)) half = other, label = its;
        }
        if (!(__int_as_float(half) < NEVER / 2)) label = 0; /* no centroid, or NaN */
        if (quad == 0 && token + 8 * i < m.len) write_label(m, head, token + 8 * i, label);
    }
}

/* WIDTH: centroids of a tile. */
template <typename T, int WIDTH> struct near_by_wgmma {
    using type = T;
    enum {
        THREADS = NEAR_GROUPS * 128 + 128,
        BLOCKS = 1,
        HALVES = 1,
        COLS = WIDTH,
        CENTROIDS = NEAR_SLABS * COLS * SLAB * 2, /* bytes */
        SQUARES = COLS * 4,
        SHARED = 2 * NEAR_TOKENS + NEAR_STAGES * (CENTROIDS + SQUARES),
    };
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

    __device__ __forceinline__ void assign(const kmeans &m, int, unsigned char *shared) {
#if HS_HOPPER
        const launch_place place;
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
        const int tiles_of_head = (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS), cols = (int)(m.padded / COLS);
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
            share([&](int head, int first) { consume(m, head, first, cols, shared, group); });
        }
#endif
    }

    /* Places in shared memory: of the nth tile of tokens, the nth tile of centroids, their half squares. */
    static __device__ __forceinline__ unsigned tokens_at(unsigned shared, unsigned n) {
        return shared + n % 2 * NEAR_TOKENS;
    }
    static __device__ __forceinline__ unsigned centroids_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + n % NEAR_STAGES * CENTROIDS;
    }
    static __device__ __forceinline__ unsigned squares_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + NEAR_STAGES * CENTROIDS + n % NEAR_STAGES * SQUARES;
    }
    __device__ __forceinline__ void produce(const kmeans &m, int head, int first, int cols, unsigned shared) {
        barrier_wait(tokens_empty(tiles), tiles / 2 % 2 ^ 1);
        barrier_expect(tokens_full(tiles), NEAR_TOKENS);
        for (int s = 0; s < NEAR_SLABS; s++)
            tma_load(tokens_at(shared, tiles) + s * NEAR_BOX, &m.tokens, tokens_full(tiles), s * SLAB, first, head);
        tiles++;
        for (int c = 0; c < cols; c++, centroids++) {
            barrier_wait(empty(centroids), centroids / NEAR_STAGES % 2 ^ 1);
            barrier_expect(full(centroids), CENTROIDS + SQUARES);
            bulk_load(squares_at(shared, centroids), m.squares + head * m.padded + c * COLS, SQUARES, full(centroids));
            for (int s = 0; s < NEAR_SLABS; s++)
                tma_load(centroids_at(shared, centroids) + s * (CENTROIDS / NEAR_SLABS), &m.rounded, full(centroids),
                         s * SLAB, c * COLS, head);
        }
    }

    /* Waits for the next tile's tokens. square: |x|^2 / 2 of this thread's rows. */
    __device__ __forceinline__ void take_tokens(const unsigned char *shared, int group, float (&square)[2]) const {
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
            square[i] = (sum + __shfl_xor_sync(~0u, sum, 2)) / 2;
        }
    }

    /* Half squared distances of this warpgroup's tokens to the next tile of centroids. */
    __device__ __forceinline__ void multiply(float (&acc)[COLS / 2], unsigned char *shared, int group,
                                             const float (&square)[2]) const {
        /* shuffled so that the compiler knows it to be the same in a warp: descriptors live in uniform registers */
        const unsigned x = __shfl_sync(~0u, tokens_at(shared_address(shared), tiles) + group * 64 * SLAB * 2, 0);
        const unsigned c = __shfl_sync(~0u, centroids_at(shared_address(shared), centroids), 0);
        barrier_wait(full(centroids), centroids / NEAR_STAGES % 2);
        const float2 *halves = (const float2 *)(const void *)(shared + squares_at(0, centroids)) + threadIdx.x % 4;
#pragma unroll
        for (int j = 0; j < COLS / 8; j++) {
            const float2 two = halves[4 * j];
#pragma unroll
            for (int e = 0; e < 4; e++) acc[4 * j + e] = square[e / 2] + (e % 2 ? two.y : two.x);
        }
        keep(acc);
        named_sync(1 + group, 256);
        products_begin();
#pragma unroll
        for (int s = 0; s < NEAR_SLABS; s++)
#pragma unroll
            for (int k = 0; k < SLAB / 16; k++)
                product_ss<T, COLS>(acc, operand_by_rows(x + s * NEAR_BOX) + 2 * k,
                                    operand_by_rows(c + s * (CENTROIDS / NEAR_SLABS)) + 2 * k, 1);
        products_commit();
#if TRY_EARLY
        named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
        products_wait<0>();
#else
        products_wait<0>();
        named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
#endif
        keep(acc);
    }

    __device__ __forceinline__ void consume(const kmeans &m, int head, int first, int cols, unsigned char *shared,
                                            int group) {
        const int lane = threadIdx.x % 32, row = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
        float square[2];
        nearest_key best[2] = {{INT32_MAX, 0}, {INT32_MAX, 0}};
        take_tokens(shared, group, square);
        for (int c = 0; c < cols; c++, centroids++) {
            float acc[COLS / 2];
            multiply(acc, shared, group, square);
            if (lane == 0) barrier_arrive(empty(centroids));
            if (lane == 0 && c == cols - 1) barrier_arrive(tokens_empty(tiles));
            look_near<COLS>(acc, m.high, c, best);
        }
        tiles++;
        finish_near<COLS>(m, head, (int64_t)first + row, best);
    }
};
#endif
