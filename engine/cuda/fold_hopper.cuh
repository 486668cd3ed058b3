/* XAttention's folded products on Hopper: TMA and wgmma. spec haste.md 3.1, kernels.md 3.3 and 4.1
 *
 * A block of threads is a producer and two consumer warpgroups, and stays on its processor: it walks tiles of 128
 * folded queries x 256 folded keys, each warpgroup 64 x 256 of them, whose sums fill half of its registers. The second
 * warpgroup begins a little later than the first, so that one turns its logits into sums while the other multiplies.
 *
 * The copies fold: a tensor is read as [head][folded row][token of the fold][column], in boxes of 64 columns of one
 * token of many folded rows. Where the last fold is not whole, its missing tokens are beyond the edge of a map that has
 * one folded row less; every token of the fold is read through the map that knows whether the last row has it.
 */
#ifndef HS_FOLD_HOPPER_CUH
#define HS_FOLD_HOPPER_CUH
#include "cuda/attn_ptx.cuh"
#include "cuda/fold.cuh"
#include "cuda/hopper.cuh"

enum {
    WIDE_ROWS = 128, /* of a tile */
    WIDE_COLS = 256,
    WIDE_DEPTH = 64, /* of a slab: 128 bytes, the span of the swizzle */
    WIDE_STAGES = 4, /* pairs of slabs under way */
    WIDE_THREADS = 3 * 128,
    WIDE_A_BYTES = WIDE_ROWS * WIDE_DEPTH * 2,
    WIDE_B_BYTES = WIDE_COLS * WIDE_DEPTH * 2,
    WIDE_STAGE = WIDE_A_BYTES + WIDE_B_BYTES,
    WIDE_SHARED = WIDE_STAGES * WIDE_STAGE + 1024, /* to align it */
    WIDE_BAND = 8,     /* rows of tiles that are walked together, column by column: their operands stay in L2 */
    WIDE_HEADS = 1024, /* of a launch */
    WIDE_AHEAD = 2,    /* slabs that the first warpgroup is ahead of the second */
};

struct fold_maps {
    CUtensorMap q[2], k[2]; /* [0]: of tokens that the last fold has, [1]: of those it has not */
};

struct wide_place {
    int head, row, col; /* head: within the launch; row and col: of tiles */
};
static __device__ __forceinline__ wide_place wide_place_of(const fold &f, const uint16_t *wanted, int row_tiles,
                                                           int tile) {
    const int each = row_tiles * f.tiles, within = tile % each, band = within / (WIDE_BAND * f.tiles);
    const int rest = within % (WIDE_BAND * f.tiles), left = row_tiles - band * WIDE_BAND;
    const int rows = left < WIDE_BAND ? left : WIDE_BAND;
    return {wanted[tile / each], band * WIDE_BAND + rest % rows, rest / rows};
}

/* The numbers of the heads that want scores, in order; returns how many. By one warp. */
static __device__ int wanted_heads(const uint8_t *want, int heads, uint16_t *wanted) {
    const int lane = threadIdx.x % 32;
    int count = 0;
    for (int h0 = 0; h0 < heads; h0 += 32) {
        const int wants = h0 + lane < heads && want[h0 + lane];
        const unsigned all = __ballot_sync(~0u, wants);
        if (wants) wanted[count + __popc(all & ((1u << lane) - 1))] = (uint16_t)(h0 + lane);
        count += __popc(all);
    }
    return count;
}

/* ---- sums of parts ----------------------------------------------------------------------------------------------
 * The four lanes of a quad hold the same row, two neighbouring columns of every eight. Adding them up exchanges halves:
 * of two values a lane keeps the one with the number of its bit and sends the other. */
template <int N>
static __device__ __forceinline__ void exchange(float (&to)[N / 2 > 0 ? N / 2 : 1], const float (&v)[N], int bit) {
    const int mine = (threadIdx.x & bit) != 0;
    if constexpr (N == 1) {
        to[0] = v[0] + __shfl_xor_sync(~0u, v[0], bit);
    } else {
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            const float send = mine ? v[2 * i] : v[2 * i + 1], keeps = mine ? v[2 * i + 1] : v[2 * i];
            to[i] = keeps + __shfl_xor_sync(~0u, send, bit);
        }
    }
}

/* A row's sums of parts of WIDTH columns, from v[j]: this lane's two of columns 8 j .. 8 j + 7; the first `left` parts
 * are written. */
template <int WIDTH> static __device__ __forceinline__ void write_parts(const float (&v)[32], float *to, int left) {
    const int low = threadIdx.x & 1, high = threadIdx.x >> 1 & 1;
    if constexpr (WIDTH == 4) { /* half of eight: two lanes */
        float half[16];
        exchange<32>(half, v, 1);
#pragma unroll
        for (int i = 0; i < 16; i++)
            if (4 * i + 2 * low + high < left) to[4 * i + 2 * low + high] = half[i];
    } else {
        enum { N = 256 / WIDTH, EACH = 32 / N, HALF = N > 1 ? N / 2 : 1, QUARTER = N > 2 ? N / 4 : 1 };
        float part[N], half[HALF], quarter[QUARTER];
#pragma unroll
        for (int n = 0; n < N; n++) {
            part[n] = v[n * EACH];
#pragma unroll
            for (int e = 1; e < EACH; e++) part[n] += v[n * EACH + e];
        }
        exchange<N>(half, part, 1);
        exchange<HALF>(quarter, half, 2);
#pragma unroll
        for (int i = 0; i < QUARTER; i++) {
            const int at = N >= 4 ? 4 * i + 2 * high + low : N == 2 ? low : 0;
            if ((N >= 4 || high == 0) && (N >= 2 || low == 0) && at < left) to[at] = quarter[i];
        }
    }
}

/* From a warpgroup's 64 x 256 products to sums and statistics. row: this thread's first of the launch, the other one is
 * 8 below. */
static __device__ __forceinline__ void finish_wide(const fold &f, float (&acc)[128], const wide_place &p, int64_t row) {
    const int quad = threadIdx.x % 4;
    const int64_t key = (int64_t)p.col * WIDE_COLS, all = (int64_t)f.cols * f.parts;
    const int64_t first_part = (int64_t)p.col * f.group;
    if (key + WIDE_COLS > f.keys) {
        const int there = (int)(f.keys - key) - 2 * quad; /* may be below 1 */
#pragma unroll
        for (int j = 0; j < 32; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (8 * j + e % 2 >= there) acc[4 * j + e] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float max = -INFINITY, sum = 0, v[32];
#pragma unroll
        for (int j = 0; j < 32; j++) max = fmaxf(max, fmaxf(acc[4 * j + 2 * i], acc[4 * j + 2 * i + 1]));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
        max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
        max *= f.scale;
        const float less = max == -INFINITY ? 0 : -max; /* a row without keys: a part beyond the last one */
#pragma unroll
        for (int j = 0; j < 32; j++) {
            v[j] = exp2_fast(fmaf(acc[4 * j + 2 * i], f.scale, less)) +
                   exp2_fast(fmaf(acc[4 * j + 2 * i + 1], f.scale, less));
            sum += v[j];
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int64_t r = row + 8 * i, at = p.head * f.rows + r;
        const int there = r < f.rows, left = there ? (int)(all - first_part < f.group ? all - first_part : f.group) : 0;
        float *to = f.sums + at * all + first_part;
        if (there && quad == 0) f.stats[at * f.tiles + p.col] = make_float2(max, sum);
        switch (f.width) {
        case 4: write_parts<4>(v, to, left); break;
        case 8: write_parts<8>(v, to, left); break;
        case 16: write_parts<16>(v, to, left); break;
        case 32: write_parts<32>(v, to, left); break;
        case 64: write_parts<64>(v, to, left); break;
        case 128: write_parts<128>(v, to, left); break;
        default: write_parts<256>(v, to, left); break;
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(WIDE_THREADS, 1)
    fold_wgmma(const __grid_constant__ fold f, const __grid_constant__ fold_maps maps) {
#if HS_HOPPER
    extern __shared__ unsigned char wide_shared[];
    __shared__ uint64_t barriers[2 * WIDE_STAGES];
    __shared__ uint16_t wanted[WIDE_HEADS];
    __shared__ int wanting;
    const unsigned slabs = (shared_address(wide_shared) + 1023) / 1024 * 1024;
    const unsigned full = shared_address(barriers), empty = full + 8 * WIDE_STAGES;
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (warp == 0) {
        const int count = wanted_heads(f.want + f.head, f.heads, wanted);
        if (threadIdx.x == 0) {
            wanting = count;
            for (int s = 0; s < WIDE_STAGES; s++) {
                barrier_init(full + 8 * s, 1);
                barrier_init(empty + 8 * s, 2);
            }
            barrier_init_done();
        }
    }
    __syncthreads();
    const int row_tiles = (int)((f.rows + WIDE_ROWS - 1) / WIDE_ROWS), tiles = wanting * row_tiles * f.tiles;
    const int halves = f.dim / WIDE_DEPTH, steps = f.stride * halves;
    int stage = 0, phase = 0;
    auto next = [&] {
        stage = stage + 1 < WIDE_STAGES ? stage + 1 : 0;
        phase ^= stage == 0;
    };
    if (warp >= 8) {
        registers_shrink<40>();
        if (threadIdx.x != 256) return;
        for (int i = 0; i < 2; i++) {
            tma_prefetch_map(&maps.q[i]);
            tma_prefetch_map(&maps.k[i]);
        }
        const int last = (int)(f.len - (f.len - 1) / f.stride * f.stride); /* tokens of the last fold */
        for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const wide_place p = wide_place_of(f, wanted, row_tiles, tile);
            const int row = (int)f.first + p.row * WIDE_ROWS, col = p.col * WIDE_COLS, head = f.head + p.head;
            for (int step = 0; step < steps; step++, next()) {
                const int k_token = step / halves, q_token = f.stride - 1 - k_token, x = step % halves * WIDE_DEPTH;
                const unsigned a = slabs + stage * WIDE_STAGE, bar = full + 8 * stage;
                barrier_wait(empty + 8 * stage, phase ^ 1);
                barrier_expect(bar, WIDE_STAGE);
                tma_load_4d(a, &maps.q[q_token >= last], bar, x, q_token, row, head);
                tma_load_4d(a + WIDE_A_BYTES, &maps.k[k_token >= last], bar, x, k_token, col, head);
            }
        }
        return;
    }
    registers_grow<232>();
    const int group = warp / 4, ahead = steps < WIDE_AHEAD ? steps : WIDE_AHEAD;
    const int lane_row = group * 64 + warp % 4 * 16 + (int)threadIdx.x % 32 / 4;
    bool started = false;
    float acc[128];
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        if (!started && group == 1) named_sync<1>(256);
        int behind = 0;
        for (int step = 0; step < steps; step++, next()) {
            const unsigned a = slabs + stage * WIDE_STAGE;
            const uint64_t rows = operand_by_rows(a + group * (WIDE_A_BYTES / 2));
            const uint64_t cols = operand_by_rows(a + WIDE_A_BYTES);
            barrier_wait(full + 8 * stage, phase);
            keep(acc);
            products_begin();
#pragma unroll
            for (int k = 0; k < WIDE_DEPTH / 16; k++) product_ss<T, 256>(acc, rows + 2 * k, cols + 2 * k, step | k);
            products_commit();
            if (step) {
                products_wait<1>();
                if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * behind);
            }
            behind = stage;
            if (!started && group == 0 && step == ahead - 1) named_arrive<1>(256);
        }
        started = true;
        products_wait<0>();
        keep(acc);
        if (threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * behind);
        const wide_place p = wide_place_of(f, wanted, row_tiles, tile);
        finish_wide(f, acc, p, (int64_t)p.row * WIDE_ROWS + lane_row);
    }
#endif
}
#endif
