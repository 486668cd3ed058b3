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
    NEAR_SQUARES = NEAR_WIDE * 16, /* bytes, of quarter squares in parts */
    NEAR_OWN = NEAR_ROWS * 16,     /* the same of the tokens of a tile */
    NEAR_BEHIND = 1024, /* memcheck takes the two halves of an operand that are the same for one behind the other */
    NEAR_SHARED = 2 * (NEAR_TOKENS + NEAR_OWN) + NEAR_STAGES * (NEAR_CENTROIDS + NEAR_SQUARES) + NEAR_BEHIND,
    NEAR_BARRIERS = 2 * NEAR_STAGES + 4,
    NEAR_NUMBERS = 32, /* of columns of a tile that a thread sees */
};

/* The nearest of the centroids that a thread has seen of a row. A key is the bits of half a squared distance, the last
 * five being the number of its column in the tile instead. NaN is above all; what rounding has made negative is below
 * all. */
struct nearest_key {
    int key, tile;
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
        if ((least & high) < (row[i].key & high)) row[i] = {least, tile};
    }
}

/* The quads of a row agree: of equals the one with the lower label. token: of this thread's first row. */
template <int COLS>
static __device__ __forceinline__ void finish_near(const kmeans &m, int head, int64_t token,
                                                   const nearest_key (&row)[2]) {
    const int quad = (int)threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int number = row[i].key & (NEAR_NUMBERS - 1);
        int half = row[i].key & -NEAR_NUMBERS, label = row[i].tile * COLS + number / 2 * 8 + quad * 2 + number % 2;
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
    unsigned barriers;     /* of every stage full, empty; of both places for tokens full, empty */
    unsigned stage, phase; /* of the next tile of centroids */
    unsigned tiles;        /* of tokens that came */

    __device__ __forceinline__ unsigned full() const { return barriers + 8 * stage; }
    __device__ __forceinline__ unsigned empty() const { return barriers + 8 * (NEAR_STAGES + stage); }
    __device__ __forceinline__ unsigned tokens_full(unsigned n) const {
        return barriers + 8 * (2 * NEAR_STAGES + n % 2);
    }
    __device__ __forceinline__ unsigned tokens_empty(unsigned n) const {
        return barriers + 8 * (2 * NEAR_STAGES + 2 + n % 2);
    }
    __device__ __forceinline__ void next() {
        stage = stage + 1 < NEAR_STAGES ? stage + 1 : 0;
        phase ^= stage == 0;
    }
    /* Places in shared memory: of the nth tile of tokens, their quarter squares, the next tile of centroids, theirs. */
    static __device__ __forceinline__ unsigned tokens_at(unsigned shared, unsigned n) {
        return shared + n % 2 * NEAR_TOKENS;
    }
    static __device__ __forceinline__ unsigned own_at(unsigned shared, unsigned n) {
        return shared + 2 * NEAR_TOKENS + n % 2 * NEAR_OWN;
    }
    __device__ __forceinline__ unsigned centroids_at(unsigned shared) const {
        return shared + 2 * (NEAR_TOKENS + NEAR_OWN) + stage * NEAR_CENTROIDS;
    }
    __device__ __forceinline__ unsigned squares_at(unsigned shared) const {
        return shared + 2 * (NEAR_TOKENS + NEAR_OWN) + NEAR_STAGES * NEAR_CENTROIDS + stage * NEAR_SQUARES;
    }
};

/* The tiles of a block, COLS centroids at a time. */
template <typename T, int COLS> struct near_tiles {
    near_ring &ring;
    const kmeans &m;
    unsigned char *shared;

    __device__ __forceinline__ void produce(int head, int first, int cols) {
        const unsigned at = shared_address(shared), tokens = ring.tokens_full(ring.tiles);
        barrier_wait(ring.tokens_empty(ring.tiles), ring.tiles / 2 % 2 ^ 1);
        barrier_expect(tokens, NEAR_TOKENS);
        for (int s = 0; s < NEAR_SLABS; s++)
            tma_load(ring.tokens_at(at, ring.tiles) + s * NEAR_BOX, &m.tokens, tokens, s * SLAB, first, head);
        ring.tiles++;
        for (int c = 0; c < cols; c++, ring.next()) {
            barrier_wait(ring.empty(), ring.phase ^ 1);
            barrier_expect(ring.full(), NEAR_SLABS * COLS * SLAB * 2 + COLS * 16);
            bulk_load(ring.squares_at(at), m.squares + head * m.padded + c * COLS, COLS * 16, ring.full());
            for (int s = 0; s < NEAR_SLABS; s++)
                tma_load(ring.centroids_at(at) + s * COLS * SLAB * 2, &m.rounded, ring.full(), s * SLAB, c * COLS,
                         head);
        }
    }

    /* Waits for the nth tile's tokens and gives the products their quarter squares. */
    __device__ __forceinline__ void take_tokens(int group, unsigned tile) const {
        const int lane = threadIdx.x % 32, quad = lane % 4;
        barrier_wait(ring.tokens_full(tile), tile / 2 % 2);
#pragma unroll
        for (int i = 0; i < 2; i++) { /* a quad shares a row: two pieces of eight values of each slab a lane */
            const int at = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * i;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < 2 * NEAR_SLABS; n++) {
                const several<T, 8> v =
                    *(const several<T, 8> *)(const void *)(shared + ring.tokens_at(0, tile) + n / 2 * NEAR_BOX +
                                                           at * SLAB * 2 + ((quad + n % 2 * 4) ^ (at % 8)) * 16);
#pragma unroll
                for (int e = 0; e < 8; e++) sum = fmaf(to_f32(v.at[e]), to_f32(v.at[e]), sum);
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            const parts own(sum / 4);
            if (quad == 0) /* ones for the centroid's parts, its own for the centroid's ones */
                *(uint4 *)(void *)(shared + ring.own_at(0, tile) + at * 16) =
                    make_uint4(parts::pair(1, 1), parts::pair(1, own.at[0]), parts::pair(own.at[1], own.at[2]), 0);
        }
        fence_async();
        named_sync(1 + NEAR_GROUPS + group, 128);
    }

    /* Begins the half squared distances of this warpgroup's tokens to the next tile of centroids. */
    __device__ __forceinline__ void multiply(float (&acc)[COLS / 2], int group) const {
        /* shuffled so that the compiler knows it to be the same in a warp: descriptors live in uniform registers */
        const unsigned at = shared_address(shared);
        const unsigned x = __shfl_sync(~0u, ring.tokens_at(at, ring.tiles) + group * 64 * SLAB * 2, 0);
        const unsigned own = __shfl_sync(~0u, ring.own_at(at, ring.tiles) + group * 64 * 16, 0);
        const unsigned c = __shfl_sync(~0u, ring.centroids_at(at), 0);
        const unsigned squares = __shfl_sync(~0u, ring.squares_at(at), 0);
        barrier_wait(ring.full(), ring.phase);
        named_sync(1 + group, 256);
        products_begin();
        product_ss<__nv_bfloat16, COLS>(acc, operand_of_eights(own), operand_of_eights(squares), 0);
#pragma unroll
        for (int s = 0; s < NEAR_SLABS; s++)
#pragma unroll
            for (int k = 0; k < SLAB / 16; k++)
                product_ss<T, COLS>(acc, operand_by_rows(x + s * NEAR_BOX) + 2 * k,
                                    operand_by_rows(c + s * COLS * SLAB * 2) + 2 * k, 1);
        products_commit();
        named_arrive(1 + (group + 1) % NEAR_GROUPS, 256);
    }

    /* The next tile of heads that run, from `item` on. */
    __device__ __forceinline__ int running(int item, int tiles_of_head, int blocks) const {
        while (item < m.heads * tiles_of_head && !(states(m)[item / tiles_of_head] & RUNS)) item += blocks;
        return item < m.heads * tiles_of_head ? item : -1;
    }

    /* before: tiles of the sides before, so that blocks have equally many of all together. What a tile takes besides
     * products, at its end and before its begin, is done while those of its neighbours are under way. */
    __device__ __forceinline__ void share(int before) {
        const launch_place place;
        const int group = __shfl_sync(~0u, threadIdx.x / 128, 0), blocks = (int)place.blocks, lane = threadIdx.x % 32;
        const int tiles_of_head = (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS), cols = (int)(m.padded / COLS);
        const int row = group * 64 + (int)threadIdx.x % 128 / 32 * 16 + lane / 4;
        int item = running(((int)place.block + blocks - before % blocks) % blocks, tiles_of_head, blocks), last = -1;
        nearest_key found[2]; /* in the last one */
        auto finish = [&] {
            finish_near<COLS>(m, last / tiles_of_head, (int64_t)(last % tiles_of_head) * NEAR_ROWS + row, found);
        };
        if (group == NEAR_GROUPS) {
            if (threadIdx.x % 128) return;
            for (; item >= 0; item = running(item + blocks, tiles_of_head, blocks))
                produce(item / tiles_of_head, item % tiles_of_head * NEAR_ROWS, cols);
            return;
        }
        if (item >= 0) take_tokens(group, ring.tiles);
        while (item >= 0) {
            const int after = running(item + blocks, tiles_of_head, blocks);
            nearest_key best[2] = {{INT32_MAX, 0}, {INT32_MAX, 0}};
            for (int c = 0; c < cols; c++) {
                float acc[COLS / 2];
                multiply(acc, group);
                if (c == 0 && last >= 0) finish();
                if (c == cols - 1 && after >= 0) take_tokens(group, ring.tiles + 1);
                products_wait<0>();
                keep(acc);
                if (lane == 0) barrier_arrive(ring.empty());
                ring.next();
                if (lane == 0 && c == cols - 1) barrier_arrive(ring.tokens_empty(ring.tiles));
                look_near<COLS>(acc, m.high, c, best);
            }
            for (int i = 0; i < 2; i++) found[i] = best[i];
            ring.tiles++;
            last = item;
            item = after;
        }
        if (last >= 0) finish();
    }
};

template <typename T> struct near_by_wgmma {
    using type = T;
    enum { THREADS = NEAR_GROUPS * 128 + 128, BLOCKS = 1, HALVES = 1 };

    /* Of 104 or 128 centroids are the tiles that leave less of the last one empty. */
    static int width(int clusters) {
        const int narrow = (NEAR_NARROW - clusters % NEAR_NARROW) % NEAR_NARROW;
        return narrow < (NEAR_WIDE - clusters % NEAR_WIDE) % NEAR_WIDE ? NEAR_NARROW : NEAR_WIDE;
    }
    /* Where the ring of a warpgroup stands from one round to the next: in registers the steps between would need them.
     */
    static __device__ __forceinline__ near_ring &kept() {
        __shared__ near_ring of_group[NEAR_GROUPS + 1];
        return of_group[threadIdx.x / 128];
    }
    static __device__ __forceinline__ void begin() {
#if HS_HOPPER
        __shared__ uint64_t room[NEAR_BARRIERS];
        near_ring ring = {shared_address(room), 0, 0, 0};
        if (threadIdx.x == 0) {
            for (; ring.stage < NEAR_STAGES; ring.stage++) {
                barrier_init(ring.full(), 1);
                barrier_init(ring.empty(), NEAR_GROUPS * 4);
            }
            ring.stage = 0;
            for (int s = 0; s < 2; s++) {
                barrier_init(ring.tokens_full(s), 1);
                barrier_init(ring.tokens_empty(s), NEAR_GROUPS * 4);
            }
            barrier_init_done();
        }
        if (threadIdx.x % 128 == 0) kept() = ring;
        __syncthreads();
        if (threadIdx.x / 128 == NEAR_GROUPS - 1) named_arrive(1, 256); /* the first turn is the first one's */
#endif
    }
    /* Keys first: they have more clusters, and long tiles had better not come last. */
    static __device__ __forceinline__ void assign(const kmeans_call &call, int, unsigned char *shared) {
#if HS_HOPPER
        near_ring ring = kept();
        for (int s = call.sides - 1, before = 0; s >= 0; s--) {
            const kmeans &m = call.side[s];
            if (m.padded % NEAR_WIDE)
                near_tiles<T, NEAR_NARROW>{ring, m, shared}.share(before);
            else
                near_tiles<T, NEAR_WIDE>{ring, m, shared}.share(before);
            __syncwarp();
            before += m.heads * (int)((m.len + NEAR_ROWS - 1) / NEAR_ROWS);
        }
        __syncthreads();
        if (threadIdx.x % 128 == 0) kept() = ring;
#endif
    }
};
#endif
