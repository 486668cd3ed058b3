/* Tokens to their nearest centroids on Hopper: TMA and wgmma, a running choice of the best in registers.
 *
 * A producer thread and three warpgroups of 64 tokens each: the tokens of a tile stay in shared memory, tiles of 128
 * or 104 centroids stream past. Warpgroups take turns: one multiplies while the others choose. Products are of tokens
 * and negative centroids and begin with the halves of both squares, so sums are |x - c|^2 / 2 as they come, and floats
 * that are not negative are ordered as integers are. Centroids are rounded to the type of the tokens, which halves the
 * products: labels are exact for the rounded ones, as are those of the published code, which keeps no others.
 */
#ifndef HS_CLUSTER_HOPPER_CUH
#define HS_CLUSTER_HOPPER_CUH
#include "cuda/cluster_steps.cuh"

enum {
    NEAR_GROUPS = 3,              /* warpgroups that multiply */
    NEAR_ROWS = NEAR_GROUPS * 64, /* tokens of a tile */
    NEAR_WIDE = 128,              /* centroids of a tile */
    NEAR_NARROW = 104,            /* ... where that leaves less of the last one empty: 200 clusters, 300, 400 */
    NEAR_STAGES = 3,              /* tiles of centroids under way */
    NEAR_SLABS = 2,               /* of 64 elements: head sizes of 128, and of 64 with zeros */
    NEAR_BOX = NEAR_ROWS * SLAB * 2,
    NEAR_TOKENS = NEAR_SLABS * NEAR_BOX, /* bytes */
    NEAR_CENTROIDS = NEAR_SLABS * NEAR_WIDE * SLAB * 2,
    NEAR_MOST = 4096,             /* centroids of a head, up to whole tiles */
    NEAR_SQUARES = NEAR_MOST * 4, /* bytes, of the half squares of all centroids of a head */
    NEAR_SHARED = 2 * (NEAR_TOKENS + NEAR_SQUARES) + NEAR_STAGES * NEAR_CENTROIDS,
    NEAR_BARRIERS = 2 * NEAR_STAGES + 4,
    NEAR_NUMBERS = 32, /* of columns of a tile that a thread sees */
};

/* The nearest of the centroids that a thread has seen of a row. A key is the bits of half a squared distance, the last
 * five being the number of its column in the tile instead. NaN is above all; what rounding has made negative is below
 * all. */
struct nearest_key {
    int half, number, tile;
};

/* Half the squared distances of 64 tokens to a tile of centroids become choices, in four chains: in one each would wait
 * for the one before. Of equals the first one stays. high: -NEAR_NUMBERS, but the compiler must not know it: an
 * instruction has room for one constant. */
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
        if ((least & high) < row[i].half) row[i] = {least & high, least & ~high, tile};
    }
}

/* The quads of a row agree: of equals the one with the lower label. token: of this thread's first row. */
template <int COLS>
static __device__ __forceinline__ void finish_near(const kmeans &m, int head, int64_t token,
                                                   const nearest_key (&row)[2]) {
    const int quad = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int half = row[i].half, label = row[i].tile * COLS + row[i].number / 2 * 8 + quad * 2 + row[i].number % 2;
#pragma unroll
        for (int d = 1; d < 4; d *= 2) {
            const int other = __shfl_xor_sync(~0u, half, d), its = __shfl_xor_sync(~0u, label, d);
            if (other < half || (other == half && its < label)) half = other, label = its;
        }
        if (!(__int_as_float(half) < NEVER / 2)) label = 0; /* no centroid, or NaN */
        if (quad == 0 && token + 8 * i < m.len) write_label(m, head, token + 8 * i, label);
    }
}

/* What producer and consumers know of each other. */
struct near_ring {
    unsigned barriers;         /* of every stage full, empty; of both places for tokens full, empty */
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
    /* Places in shared memory: of the nth tile of tokens, the nth tile of centroids, the squares beside the tokens. */
    static __device__ __forceinline__ unsigned tokens_at(unsigned shared, unsigned n) {
        return shared + n % 2 * NEAR_TOKENS;
    }
    static __device__ __forceinline__ unsigned centroids_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + n % NEAR_STAGES * NEAR_CENTROIDS;
    }
    static __device__ __forceinline__ unsigned squares_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + NEAR_STAGES * NEAR_CENTROIDS + n % 2 * NEAR_SQUARES;
    }
};

/* The tiles of a block, COLS centroids at a time. */
template <typename T, int COLS> struct near_tiles {
    near_ring &ring;
    const kmeans &m;
    unsigned char *shared;

    __device__ __forceinline__ void produce(int head, int first, int cols) {
        const unsigned at = shared_address(shared);
        barrier_wait(ring.tokens_empty(ring.tiles), ring.tiles / 2 % 2 ^ 1);
        barrier_expect(ring.tokens_full(ring.tiles), NEAR_TOKENS + (unsigned)m.padded * 4);
        bulk_load(ring.squares_at(at, ring.tiles), m.squares + head * m.padded, (unsigned)m.padded * 4,
                  ring.tokens_full(ring.tiles));
        for (int s = 0; s < NEAR_SLABS; s++)
            tma_load(ring.tokens_at(at, ring.tiles) + s * NEAR_BOX, &m.tokens, ring.tokens_full(ring.tiles), s * SLAB,
                     first, head);
        ring.tiles++;
        for (int c = 0; c < cols; c++, ring.centroids++) {
            const unsigned full = ring.full(ring.centroids);
            barrier_wait(ring.empty(ring.centroids), ring.centroids / NEAR_STAGES % 2 ^ 1);
            barrier_expect(full, NEAR_SLABS * COLS * SLAB * 2);
            for (int s = 0; s < NEAR_SLABS; s++)
                tma_load(ring.centroids_at(at, ring.centroids) + s * COLS * SLAB * 2, &m.rounded, full, s * SLAB,
                         c * COLS, head);
        }
    }

    /* Waits for the next tile's tokens. square: |x|^2 / 2 of this thread's rows. */
    __device__ __forceinline__ void take_tokens(int group, float (&square)[2]) const {
        const int lane = threadIdx.x % 32, quad = lane % 4;
        barrier_wait(ring.tokens_full(ring.tiles), ring.tiles / 2 % 2);
#pragma unroll
        for (int i = 0; i < 2; i++) { /* a quad shares a row: two pieces of eight values of each slab a lane */
            const int at = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * i;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < 2 * NEAR_SLABS; n++) {
                const several<T, 8> v =
                    *(const several<T, 8> *)(const void *)(shared + ring.tokens_at(0, ring.tiles) + n / 2 * NEAR_BOX +
                                                           at * SLAB * 2 + ((quad + n % 2 * 4) ^ (at % 8)) * 16);
#pragma unroll
                for (int e = 0; e < 8; e++) sum = fmaf(to_f32(v.at[e]), to_f32(v.at[e]), sum);
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            square[i] = (sum + __shfl_xor_sync(~0u, sum, 2)) / 2;
        }
    }

    /* Half squared distances of this warpgroup's tokens to the next tile of centroids, the head's tile number `col`. */
    __device__ __forceinline__ void multiply(float (&acc)[COLS / 2], int group, int col,
                                             const float (&square)[2]) const {
        /* shuffled so that the compiler knows it to be the same in a warp: descriptors live in uniform registers */
        const unsigned at = shared_address(shared);
        const unsigned x = __shfl_sync(~0u, ring.tokens_at(at, ring.tiles) + group * 64 * SLAB * 2, 0);
        const unsigned c = __shfl_sync(~0u, ring.centroids_at(at, ring.centroids), 0);
        barrier_wait(ring.full(ring.centroids), ring.centroids / NEAR_STAGES % 2);
        const float2 *halves =
            (const float2 *)(const void *)(shared + ring.squares_at(0, ring.tiles) + col * COLS * 4) + threadIdx.x % 4;
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
                                    operand_by_rows(c + s * COLS * SLAB * 2) + 2 * k, 1);
        products_commit();
        products_wait<0>();
        named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
        keep(acc);
    }

    __device__ __forceinline__ void consume(int head, int first, int cols, int group) {
        const int lane = threadIdx.x % 32, row = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
        float square[2];
        nearest_key best[2] = {{INT32_MAX, 0, 0}, {INT32_MAX, 0, 0}};
        take_tokens(group, square);
        for (int c = 0; c < cols; c++, ring.centroids++) {
            float acc[COLS / 2];
            multiply(acc, group, c, square);
            if (lane == 0) barrier_arrive(ring.empty(ring.centroids));
            if (c == cols - 1) barrier_arrive(ring.tokens_empty(ring.tiles)); /* all have read squares */
            look_near<COLS>(acc, m.high, c, best);
        }
        ring.tiles++;
        finish_near<COLS>(m, head, (int64_t)first + row, best);
    }

    /* before: tiles of the sides before, so that blocks have equally many of all together. */
    __device__ __forceinline__ void share(int before) {
        const launch_place place;
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), blocks = (int)place.blocks;
        const int tiles_of_head = (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS), cols = (int)(m.padded / COLS);
        const int begin = ((int)place.block + blocks - before % blocks) % blocks;
        if (group == NEAR_GROUPS && threadIdx.x % 128) return;
        for (int item = begin; item < m.heads * tiles_of_head; item += blocks) {
            const int head = item / tiles_of_head, first = item % tiles_of_head * NEAR_ROWS;
            if (!(states(m)[head] & RUNS)) continue;
            if (group == NEAR_GROUPS)
                produce(head, first, cols);
            else
                consume(head, first, cols, group);
        }
    }
};

template <typename T> struct near_by_wgmma {
    using type = T;
    enum { THREADS = NEAR_GROUPS * 128 + 128, BLOCKS = 1, HALVES = 1 };
    near_ring ring;

    static int width(int clusters) {
        const int narrow = (NEAR_NARROW - clusters % NEAR_NARROW) % NEAR_NARROW;
        return narrow < (NEAR_WIDE - clusters % NEAR_WIDE) % NEAR_WIDE ? NEAR_NARROW : NEAR_WIDE;
    }
    __device__ __forceinline__ void begin() {
#if HS_HOPPER
        __shared__ uint64_t room[NEAR_BARRIERS];
        ring = {shared_address(room), 0, 0};
        if (threadIdx.x == 0) {
            for (int s = 0; s < NEAR_STAGES; s++) {
                barrier_init(ring.full(s), 1);
                barrier_init(ring.empty(s), NEAR_GROUPS * 4);
            }
            for (int s = 0; s < 2; s++) {
                barrier_init(ring.tokens_full(s), 1);
                barrier_init(ring.tokens_empty(s), NEAR_GROUPS * 128);
            }
            barrier_init_done();
        }
        __syncthreads();
        if (threadIdx.x / 128 == NEAR_GROUPS - 1) named_arrive(1, 256); /* the first turn is the first one's */
#endif
    }
    /* Keys first: they have more clusters, and long tiles had better not come last. */
    __device__ __forceinline__ void assign(const kmeans_call &call, int, unsigned char *shared) {
#if HS_HOPPER
        for (int s = call.sides - 1, before = 0; s >= 0; s--) {
            const kmeans &m = call.side[s];
            if (m.padded % NEAR_WIDE) /* what is a multiple of both is cut into wide ones, as width() has it */
                near_tiles<T, NEAR_NARROW>{ring, m, shared}.share(before);
            else
                near_tiles<T, NEAR_WIDE>{ring, m, shared}.share(before);
            __syncwarp();
            before += m.heads * (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS);
        }
#endif
    }
};
#endif
