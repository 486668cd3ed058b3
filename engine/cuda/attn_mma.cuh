/* Attention on tensor cores: 16-bit operands, fp32 products, softmax in the registers that hold the products.
 *
 * A warp owns 16 * M_TILES query rows of its block's tile from the first logit to the last output: logits, maximum, sum
 * and output stay in its registers, logits turn into the first operand of the second product without leaving them.
 * Every matrix read from shared memory is used for all rows of a warp, which is why 32 rows are better than 16. Where
 * the output of a head is too wide for registers (d = 384, the VAE) SPLIT warps share the rows: each computes all
 * logits, but its own columns of the output.
 *
 * Keys and values have one buffer each: values of a step arrive while its logits are computed, keys of the next one
 * during softmax and the second product. What else has to be hidden is hidden by the other blocks on the processor.
 * Tokens are loaded row by row through a list of tokens, so that gathered and natural order are the same code.
 */
#ifndef HS_ATTN_MMA_CUH
#define HS_ATTN_MMA_CUH
#include "cuda/attn_walk.cuh"
#include "cuda/attn_ptx.cuh"

/* DIM: head size with padding; KEYS: per step; BLOCKS: on a processor at a time (the limit of registers). */
template <typename T_, int DIM_, int ROW_WARPS_, int M_TILES_, int SPLIT_, int KEYS_, int BLOCKS_> struct attn_shape {
    typedef T_ T;
    enum {
        DIM = DIM_,
        ROW_WARPS = ROW_WARPS_,
        M_TILES = M_TILES_,
        SPLIT = SPLIT_,
        KEYS = KEYS_,
        BLOCKS = BLOCKS_,
        WARP_ROWS = 16 * M_TILES,
        ROWS = WARP_ROWS * ROW_WARPS,
        THREADS = 32 * ROW_WARPS * SPLIT,
        OUT = DIM / SPLIT, /* output columns of a warp */
        AHEAD = 3          /* lists of keys: this step's, the next one's, and the one being made */
    };
    static_assert(THREADS >= KEYS, "a thread for every key of a step");
};

/* Bytes of shared memory, bits of a row of the mask included. Order: queries (later the output), keys, values; lists of
 * keys: tokens and what their logits get besides; tokens of queries; bits. */
template <typename S> static inline size_t attn_mma_bytes(int words) {
    return (size_t)(S::ROWS + 2 * S::KEYS) * S::DIM * 2 + (size_t)(2 * S::AHEAD * S::KEYS + S::ROWS + words) * 4;
}

/* Rows of DIM 16-bit values lie in shared memory as pieces of 16 bytes; piece c of row r is at place c ^ (r % 8) of its
 * row, so that 8 rows of one column of pieces, and 8 pieces of one row, lie in different banks. */
template <int DIM> __device__ __forceinline__ unsigned piece_at(int row, int c) {
    return (unsigned)(row * (DIM / 8) + (c ^ (row % 8))) * 16;
}

/* Rows token[0 .. ROWS) of a head to a tile of shared memory, in the background. Zeros for token -1 and for columns
 * from 8 * pieces on; full: there are neither. Neighbouring lanes take neighbouring pieces; where a thread's pieces go
 * differs by constants. Tokens are read before any copy begins: on sm_90 a read between two copies costs three more. */
template <typename S, int ROWS>
__device__ __forceinline__ void load_rows(unsigned tile, const void *head, unsigned ld_bytes, const int *token,
                                          int pieces, bool full) {
    constexpr int PER_ROW = S::DIM / 8, LANES = PER_ROW < 16 ? PER_ROW : 16, STEP = S::THREADS / LANES;
    constexpr int BATCH = ROWS / STEP < 8 ? ROWS / STEP : 8;
    static_assert(STEP % 8 == 0 || STEP == 4, "row % 8 is row0 % 8, or that with another third bit");
    static_assert(ROWS % (STEP * BATCH) == 0, "every thread has the same number of rows");
    const int row0 = (int)(threadIdx.x / LANES), c0 = (int)(threadIdx.x % LANES);
    const unsigned to = tile + row0 * S::DIM * 2, swizzled = (unsigned)(c0 ^ (row0 % 8)) * 16;
    const char *const from = (const char *)head + c0 * 16;
#pragma unroll
    for (int first = 0; first < ROWS / STEP; first += BATCH) {
        int t[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) t[i] = token[row0 + (first + i) * STEP];
        auto copy = [&](int i, int k, int row, bool valid) {
            const int at = first + i;
            copy_async16(to + at * STEP * S::DIM * 2 + k * LANES * 16 + (swizzled ^ (at * STEP % 8 * 16)),
                         row_at(from, (unsigned)row, ld_bytes) + k * LANES * 16, valid);
        };
        if (full) {
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int k = 0; k < PER_ROW / LANES; k++) copy(i, k, t[i], true);
        } else {
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int k = 0; k < PER_ROW / LANES; k++)
                    copy(i, k, max(t[i], 0), t[i] >= 0 && c0 + k * LANES < pieces);
        }
    }
}

/* Sum or maximum of a row: its values lie in four neighbouring lanes. */
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) attn_mma(const __grid_constant__ attn_call a) {
    typedef typename S::T T;
    constexpr int DIM = S::DIM, KEYS = S::KEYS, M_TILES = S::M_TILES, OUT = S::OUT;
    extern __shared__ __align__(128) unsigned char room[];
    __shared__ int sums[2];
    int *const tokens = (int *)(void *)(room + (S::ROWS + 2 * KEYS) * DIM * 2); /* [AHEAD, KEYS] */
    float *const extras = (float *)(void *)(tokens + S::AHEAD * KEYS);          /* [AHEAD, KEYS] */
    int *const queries = tokens + 2 * S::AHEAD * KEYS;                          /* [ROWS] */

    attn_tile tile;
    if (!attn_tile_at(a, S::ROWS, blockIdx.x, &tile)) return;
    const int tid = (int)threadIdx.x, lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32),
              row0 = (int)(threadIdx.x / 32 % S::ROW_WARPS) * S::WARP_ROWS;
    const int pieces = a.head_dim / 8;
    const int64_t head = (int64_t)tile.head * a.head_dim; /* first column of the head */
    const unsigned q_tile = shared_address(room), k_tile = q_tile + S::ROWS * DIM * 2, v_tile = k_tile + KEYS * DIM * 2;

    for (int r = tid; r < S::ROWS; r += S::THREADS) queries[r] = r < tile.count ? attn_query(a, tile, r) : -1;
    const attn_list list = attn_list_of(a, tile, (uint32_t *)(queries + S::ROWS), sums);
    const int key_steps = attn_key_steps(list, KEYS), steps = attn_steps(list, KEYS);
    attn_cursor cursor = {0, 0, 0};
    auto list_key = [&](int j, int key) {
        tokens[j % S::AHEAD * KEYS + tid] = key;
        extras[j % S::AHEAD * KEYS + tid] = attn_extra(a, key, j >= key_steps);
    };
#pragma unroll 1
    for (int j = 0; j < S::AHEAD - 1; j++)
        if (tid < KEYS) list_key(j, attn_key(a, list, tile.head, j, KEYS, tid, &cursor));
    __syncthreads();

    /* keys, or values, of step j */
    auto load_step = [&](int j, unsigned to, const void *x, int64_t ld, const void *means) {
        const int64_t mean = (int64_t)tile.head * a.cols * a.head_dim;
        const int *const token = tokens + j % S::AHEAD * KEYS;
        load_rows<S, KEYS>(to, j < key_steps ? (const T *)x + head : (const T *)means + mean,
                           (unsigned)(j < key_steps ? ld : a.head_dim) * 2, token, pieces,
                           pieces == DIM / 8 && token[KEYS - 1] >= 0);
    };
    load_rows<S, S::ROWS>(q_tile, (const T *)a.q + head, (unsigned)a.ld_q * 2, queries, pieces, false);
    if (steps > 0) load_step(0, k_tile, a.k, a.ld_k, a.comp_k);

    /* Where this lane's rows of matrices begin: of queries and (transposed) values 16 rows by 2 pieces, of keys the two
     * pieces of 8 rows before those of the next 8. All begin at a multiple of 8, so row % 8 is lane % 8. */
    const unsigned q_lane = q_tile + (row0 + lane % 16) * DIM * 2,
                   k_lane = k_tile + (lane % 8 + lane / 16 * 8) * DIM * 2, v_lane = v_tile + lane % 16 * DIM * 2;
    auto piece = [&](int c) { return (unsigned)((c ^ (lane % 8)) * 16); };
    const int out0 = warp / S::ROW_WARPS * OUT; /* first output column of this warp */
    const bool working = row0 < tile.count;

    float out[M_TILES][OUT / 8][4] = {}, top[M_TILES][2], sum[M_TILES][2] = {};
#pragma unroll
    for (int m = 0; m < M_TILES; m++) top[m][0] = top[m][1] = -INFINITY;

    for (int j = 0; j < steps; j++) {
        const int *const token = tokens + j % S::AHEAD * KEYS;
        copy_wait_all();
        __syncthreads(); /* keys are there, values of the step before are done with */
        load_step(j, v_tile, a.v, a.ld_v, a.comp_v);

        float s[M_TILES][KEYS / 8][4];
        if (working) {
#pragma unroll
            for (int d = 0; d < DIM / 16; d++) {
                unsigned q[M_TILES][4], k[4];
#pragma unroll
                for (int m = 0; m < M_TILES; m++)
                    load_matrix4(q[m], q_lane + m * 16 * DIM * 2 + piece(2 * d + lane / 16));
#pragma unroll
                for (int n = 0; n < KEYS / 16; n++) {
                    load_matrix4(k, k_lane + n * 16 * DIM * 2 + piece(2 * d + lane / 8 % 2));
#pragma unroll
                    for (int m = 0; m < M_TILES; m++)
#pragma unroll
                        for (int i = 0; i < 2; i++)
                            if (d == 0)
                                mma16816_first<T>(s[m][2 * n + i], q[m], k[2 * i], k[2 * i + 1]);
                            else
                                mma16816<T>(s[m][2 * n + i], q[m], k[2 * i], k[2 * i + 1]);
                }
            }
        }
        /* the list after the next one: what memory has to say about it is waited for at the end of this step */
        int ahead = -1;
        if (tid < KEYS) ahead = attn_key(a, list, tile.head, j + S::AHEAD - 1, KEYS, tid, &cursor);

        copy_wait_all();
        __syncthreads(); /* values are there, keys are done with */
        if (j + 1 < steps) load_step(j + 1, k_tile, a.k, a.ld_k, a.comp_k);

        if (working) {
            if (a.last_key_bonus != 0 || j >= key_steps || token[KEYS - 1] < 0) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const float x = extras[j % S::AHEAD * KEYS + n * 8 + lane % 4 * 2 + i];
#pragma unroll
                        for (int m = 0; m < M_TILES; m++) {
                            s[m][n][i] += x;
                            s[m][n][2 + i] += x;
                        }
                    }
            }
            if (a.rel_bias && j < key_steps) {
#pragma unroll
                for (int m = 0; m < M_TILES; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int query = max(queries[row0 + m * 16 + lane / 4 + i / 2 * 8], 0);
#pragma unroll
                        for (int n = 0; n < KEYS / 8; n++)
                            s[m][n][i] += attn_bias(a, tile.head, query, max(token[n * 8 + lane % 4 * 2 + i % 2], 0));
                    }
            }
            /* softmax so far: rows lane / 4 and lane / 4 + 8 of every tile of 16 */
            float shrink[M_TILES][2];
            bool grown = false;
#pragma unroll
            for (int m = 0; m < M_TILES; m++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float x = top[m][r];
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++) x = fmaxf(x, fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
                    x = quad_max(x);
                    const float from = x == -INFINITY ? 0 : x * a.unit;
                    shrink[m][r] = exp2_fast(fmaf(top[m][r], a.unit, -from));
                    grown |= x != top[m][r];
                    top[m][r] = x;
                    float total = 0;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++) {
                        total += s[m][n][2 * r] = exp2_fast(fmaf(s[m][n][2 * r], a.unit, -from));
                        total += s[m][n][2 * r + 1] = exp2_fast(fmaf(s[m][n][2 * r + 1], a.unit, -from));
                    }
                    sum[m][r] = fmaf(sum[m][r], shrink[m][r], total);
                }
            if (__any_sync(~0u, grown)) { /* rare after the first steps; else every factor is 1 */
#pragma unroll
                for (int m = 0; m < M_TILES; m++)
#pragma unroll
                    for (int n = 0; n < OUT / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) out[m][n][i] *= shrink[m][i / 2];
            }
            /* products of tiles 2n and 2n + 1 are, in pairs, the left operand of keys 16n .. 16n + 15 */
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                unsigned p[M_TILES][4], v[4];
#pragma unroll
                for (int m = 0; m < M_TILES; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        p[m][i] = pack<T>(s[m][2 * n + i / 2][i % 2 * 2], s[m][2 * n + i / 2][i % 2 * 2 + 1]);
#pragma unroll
                for (int c = 0; c < OUT / 16; c++) {
                    load_matrix4_transposed(v, v_lane + n * 16 * DIM * 2 + piece(out0 / 8 + 2 * c + lane / 16));
#pragma unroll
                    for (int m = 0; m < M_TILES; m++) {
                        mma16816<T>(out[m][2 * c], p[m], v[0], v[1]);
                        mma16816<T>(out[m][2 * c + 1], p[m], v[2], v[3]);
                    }
                }
            }
        }
        if (tid < KEYS) list_key(j + S::AHEAD - 1, ahead);
    }

    /* out / sum into the room of the queries, from there in whole rows to memory */
    copy_wait_all();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float total = quad_sum(sum[m][r]), factor = total != 0 ? 1 / total : 0; /* 0: no keys */
            const int row = row0 + m * 16 + r * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < OUT / 8; n++)
                *(unsigned *)(void *)(room + piece_at<DIM>(row, out0 / 8 + n) + lane % 4 * 4) =
                    pack<T>(out[m][n][2 * r] * factor, out[m][n][2 * r + 1] * factor);
        }
    __syncthreads();
    for (int i = tid; i < tile.count * (DIM / 8); i += S::THREADS) {
        const int row = i / (DIM / 8), c = i % (DIM / 8);
        if (c < pieces)
            ((uint4 *)((T *)a.out + queries[row] * a.ld_out + head))[c] =
                *(const uint4 *)(const void *)(room + piece_at<DIM>(row, c));
    }
}
#endif
