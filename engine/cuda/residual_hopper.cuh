/* Products that are added to the residual stream, on Hopper: y += gate * (x W^T + b) with TMA and wgmma.
 *
 * A block of threads is a producer and two consumer warpgroups, and stays on its processor: it walks tiles of 128 rows
 * x 192 columns of y, each warpgroup 64 x 192 of them. The sums of a tile are 96 registers a thread, and there are two
 * sets of them: while one tile is multiplied, the tile before it is scaled and added to y, sixteen columns after every
 * few slabs. So y's traffic, which is four fifths of all that a product of 1,536 x 1,536 moves, is spread over the
 * whole time and hidden behind products. y is not read here: memory adds (red), each value once, so results do not
 * depend on who does what when.
 *
 * Tiles are taken from a counter, so that those under way at a time are neighbours and share operands in L2.
 */
#ifndef HS_RESIDUAL_HOPPER_CUH
#define HS_RESIDUAL_HOPPER_CUH
#include "cuda/hopper.cuh"

enum {
    RESIDUAL_ROWS = 128, /* of a tile */
    RESIDUAL_COLS = 192,
    RESIDUAL_DEPTH = 64, /* of a slab: 128 bytes, the span of the swizzle */
    RESIDUAL_STAGES = 5, /* pairs of slabs under way */
    RESIDUAL_THREADS = 3 * 128,
    RESIDUAL_A_BYTES = RESIDUAL_ROWS * RESIDUAL_DEPTH * 2,
    RESIDUAL_STAGE = RESIDUAL_A_BYTES + RESIDUAL_COLS * RESIDUAL_DEPTH * 2,
    RESIDUAL_TILES = 3, /* whose gates and biases are there: added, multiplied, on their way */
    RESIDUAL_VECTOR = RESIDUAL_COLS * 4,
    RESIDUAL_SHARED = RESIDUAL_STAGES * RESIDUAL_STAGE + RESIDUAL_TILES * 2 * RESIDUAL_VECTOR + 1024, /* to align it */
    RESIDUAL_PIECES = RESIDUAL_COLS / 16,
    RESIDUAL_BAND = 8, /* rows of tiles that are walked together, column by column */
};

struct residual {
    const float *gate, *bias; /* gate NULL: 1 */
    float *y;
    int *turns; /* tiles taken beyond every block's first, blocks that are done; zeros, and left so */
    int rows, out, in;
    int row_tiles, col_tiles;
};
struct residual_maps {
    CUtensorMap x, w;
};

/* First row and column of a tile. */
static __device__ __forceinline__ int2 residual_place(const residual &r, int tile) {
    const int band = tile / (RESIDUAL_BAND * r.col_tiles), rest = tile % (RESIDUAL_BAND * r.col_tiles);
    const int left = r.row_tiles - band * RESIDUAL_BAND, rows = left < RESIDUAL_BAND ? left : RESIDUAL_BAND;
    return make_int2((band * RESIDUAL_BAND + rest % rows) * RESIDUAL_ROWS, rest / rows * RESIDUAL_COLS);
}

/* This thread's part of a tile whose sums are done. */
struct residual_done {
    float *y;         /* of its first row and column */
    int below, right; /* rows and columns from there to the ends of y; they may lie beyond */
    unsigned vectors; /* gates and biases */
    unsigned read;    /* barrier of the place of those */
};

/* Two values from shared memory. */
static __device__ __forceinline__ float2 residual_two(unsigned address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

/* Adds columns 16 n .. 16 n + 15 to y. The four lanes of a row hold two columns of each eight; they exchange halves, so
 * that each has four in a row. */
static __device__ __forceinline__ void residual_add(const residual &r, const residual_done &d, const float (&acc)[96],
                                                    int n) {
    const int quad = threadIdx.x % 4;
    const bool second = quad & 1; /* of the eights is this lane's */
    float v[2][2][2], four[2][4]; /* eight, row, column */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int j = 2 * n + h;
        const unsigned at = d.vectors + 4 * (8 * j + 2 * quad);
        const float2 bias = residual_two(at);
        float2 gate = make_float2(1, 1);
        if (r.gate) gate = residual_two(at + RESIDUAL_VECTOR);
        const float2 gated = make_float2(gate.x * bias.x, gate.y * bias.y);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            v[h][i][0] = fmaf(gate.x, acc[4 * j + 2 * i], gated.x);
            v[h][i][1] = fmaf(gate.y, acc[4 * j + 2 * i + 1], gated.y);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float keeps = second ? v[1][i][e] : v[0][i][e];
            const float got = __shfl_xor_sync(~0u, second ? v[0][i][e] : v[1][i][e], 1);
            four[i][e] = second ? got : keeps;
            four[i][2 + e] = second ? keeps : got;
        }
    if (16 * n < d.right) {
        if (d.below > 0) add_four(d.y + 16 * n, four[0]);
        if (d.below > 8) add_four(d.y + 8 * (int64_t)r.out + 16 * n, four[1]);
    }
}

template <typename T>
__global__ void __launch_bounds__(RESIDUAL_THREADS, 1)
    residual_wgmma(const __grid_constant__ residual r, const __grid_constant__ residual_maps maps) {
#if HS_HOPPER
    extern __shared__ unsigned char residual_shared[];
    __shared__ uint64_t barriers[2 * RESIDUAL_STAGES + RESIDUAL_TILES];
    __shared__ int taken[RESIDUAL_TILES]; /* tiles, -1: no more */
    const unsigned slabs = (shared_address(residual_shared) + 1023) / 1024 * 1024;
    const unsigned vectors = slabs + RESIDUAL_STAGES * RESIDUAL_STAGE;
    const unsigned full = shared_address(barriers), empty = full + 8 * RESIDUAL_STAGES;
    const unsigned read = empty + 8 * RESIDUAL_STAGES; /* what a tile has besides slabs */
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        for (int s = 0; s < RESIDUAL_STAGES; s++) {
            barrier_init(full + 8 * s, 1);
            barrier_init(empty + 8 * s, 2);
        }
        for (int s = 0; s < RESIDUAL_TILES; s++) barrier_init(read + 8 * s, 256);
        barrier_init_done();
    }
    __syncthreads();
    const int steps = r.in / RESIDUAL_DEPTH, tiles = r.row_tiles * r.col_tiles;
    int stage = 0, phase = 0, slot = 0, slot_phase = 0;
    auto next = [&] {
        stage = stage + 1 < RESIDUAL_STAGES ? stage + 1 : 0;
        phase ^= stage == 0;
    };
    auto next_slot = [&] {
        slot = slot + 1 < RESIDUAL_TILES ? slot + 1 : 0;
        slot_phase ^= slot == 0;
    };
    if (warp >= 8) {
        registers_shrink<40>();
        if (threadIdx.x != 256) return;
        tma_prefetch_map(&maps.x);
        tma_prefetch_map(&maps.w);
        for (int tile = blockIdx.x, after; tile < tiles; tile = after, next_slot()) {
            const int2 at = residual_place(r, tile);
            const unsigned bytes = 4 * (r.out - at.y < RESIDUAL_COLS ? r.out - at.y : RESIDUAL_COLS);
            const unsigned to = vectors + slot * 2 * RESIDUAL_VECTOR;
            after = (int)gridDim.x + atomicAdd(r.turns, 1);
            for (int step = 0; step < steps; step++, next()) {
                const unsigned a = slabs + stage * RESIDUAL_STAGE, bar = full + 8 * stage;
                barrier_wait(empty + 8 * stage, phase ^ 1);
                if (step == 0) {
                    barrier_wait(read + 8 * slot, slot_phase ^ 1);
                    taken[slot] = tile;
                    barrier_expect(bar, RESIDUAL_STAGE + (r.gate ? 2 : 1) * bytes);
                    bulk_load(to, r.bias + at.y, bytes, bar);
                    if (r.gate) bulk_load(to + RESIDUAL_VECTOR, r.gate + at.y, bytes, bar);
                } else
                    barrier_expect(bar, RESIDUAL_STAGE);
                tma_load(a, &maps.x, bar, step * RESIDUAL_DEPTH, at.x, 0);
                tma_load(a + RESIDUAL_A_BYTES, &maps.w, bar, step * RESIDUAL_DEPTH, at.y, 0);
            }
        }
        barrier_wait(empty + 8 * stage, phase ^ 1);
        barrier_wait(read + 8 * slot, slot_phase ^ 1);
        taken[slot] = -1;
        barrier_arrive(full + 8 * stage);
        if (atomicAdd(r.turns + 1, 1) == (int)gridDim.x - 1) r.turns[0] = r.turns[1] = 0;
        return;
    }
    registers_grow<232>();
    const int group = warp / 4, lane = threadIdx.x % 32;
    const int lane_row = group * 64 + warp % 4 * 16 + lane / 4, lane_col = 8 * (lane & 1) + 2 * (lane & 2);
    const int between = steps / RESIDUAL_PIECES; /* slabs from piece to piece */
    residual_done done = {nullptr, 0, 0, 0, 0};  /* nothing yet */
    float even[96], odd[96];
    /* Multiplies a tile and adds the one before to y; false: there are no more. */
    auto turn = [&](float(&now)[96], const float(&before)[96]) {
        barrier_wait(full + 8 * stage, phase);
        const int tile = taken[slot];
        if (tile < 0) return false;
        int behind = 0, step = 0;
        auto multiply = [&] {
            const unsigned a = slabs + stage * RESIDUAL_STAGE;
            const uint64_t rows = operand_by_rows(a + group * (RESIDUAL_A_BYTES / 2));
            const uint64_t cols = operand_by_rows(a + RESIDUAL_A_BYTES);
            barrier_wait(full + 8 * stage, phase);
            keep(now);
            products_begin();
#pragma unroll
            for (int k = 0; k < RESIDUAL_DEPTH / 16; k++)
                product_ss<T, RESIDUAL_COLS>(now, rows + 2 * k, cols + 2 * k, step | k);
            products_commit();
            if (step) {
                products_wait<1>();
                if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * behind);
            }
            behind = stage;
            step++;
            next();
        };
#pragma unroll
        for (int n = 0; n < RESIDUAL_PIECES; n++) {
            for (int k = 0; k < between; k++) multiply();
            if (done.y) residual_add(r, done, before, n);
        }
        if (done.y) barrier_arrive(done.read);
        while (step < steps) multiply();
        products_wait<0>();
        keep(now);
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * behind);
        const int2 at = residual_place(r, tile);
        done.below = r.rows - at.x - lane_row;
        done.right = r.out - at.y - lane_col;
        done.y = r.y + (int64_t)(at.x + lane_row) * r.out + at.y + lane_col;
        done.vectors = vectors + slot * 2 * RESIDUAL_VECTOR;
        done.read = read + 8 * slot;
        next_slot();
        return true;
    };
    auto last = [&](const float(&sums)[96]) {
#pragma unroll
        for (int n = 0; n < RESIDUAL_PIECES; n++)
            if (done.y) residual_add(r, done, sums, n);
    };
    for (;;) {
        if (!turn(even, odd)) {
            last(odd);
            break;
        }
        if (!turn(odd, even)) {
            last(even);
            break;
        }
    }
#endif
}
#endif
