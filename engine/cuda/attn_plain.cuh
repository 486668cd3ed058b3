/* Attention in fp32 on ordinary cores: for fp32 devices, and for the head sizes and alignments that tensor cores do not
 * take. Any head size, any element type; arithmetic is fp32 throughout.
 *
 * A block of threads computes ROWS queries times COLUMNS output columns of one head; wider heads take several blocks,
 * each of which computes the logits anew. Operands pass through shared memory in slices; a thread holds 4 x 4 logits of
 * a step and 4 x 8 outputs in registers.
 */
#ifndef HS_ATTN_PLAIN_CUH
#define HS_ATTN_PLAIN_CUH
#include "cuda/attn_walk.cuh"

enum {
    PLAIN_ROWS = 64,
    PLAIN_KEYS = 64,
    PLAIN_SLICE = 32,    /* head columns of queries and keys, or keys of values, in shared memory at a time */
    PLAIN_COLUMNS = 128, /* output columns of a block */
    PLAIN_THREADS = 256, /* 16 x 16: thread (y, x) has rows 4y .. 4y + 3 */
    PLAIN_PAD = 4,       /* keeps float4 aligned and transposed stores apart */
};

static inline int attn_plain_parts(int head_dim) {
    return (head_dim + PLAIN_COLUMNS - 1) / PLAIN_COLUMNS;
}

/* Columns [d, d + PLAIN_SLICE) of 64 rows of x, transposed; zeros for token -1 and behind `width`. */
template <typename T>
__device__ __forceinline__ void plain_slice(float (*to)[PLAIN_ROWS + PLAIN_PAD], const T *x, int64_t ld,
                                            const int *token, int d, int width) {
    for (int i = (int)threadIdx.x; i < PLAIN_SLICE * PLAIN_ROWS; i += PLAIN_THREADS) {
        /* a warp takes 8 columns of 4 rows: whole sectors of memory, and no two stores to one bank */
        const int c = i % 8 + i / 32 % 4 * 8, r = i / 8 % 4 + i / 128 * 4;
        const int t = token[r];
        to[c][r] = t >= 0 && d + c < width ? to_f32(x[t * ld + d + c]) : 0;
    }
}

/* Rows token[0 .. PLAIN_SLICE), columns [d, d + PLAIN_COLUMNS) of x. */
template <typename T>
__device__ __forceinline__ void plain_values(float (*to)[PLAIN_COLUMNS], const T *x, int64_t ld, const int *token,
                                             int d, int width) {
    for (int i = (int)threadIdx.x; i < PLAIN_SLICE * PLAIN_COLUMNS; i += PLAIN_THREADS) {
        const int c = i % PLAIN_COLUMNS, r = i / PLAIN_COLUMNS, t = token[r];
        to[r][c] = t >= 0 && d + c < width ? to_f32(x[t * ld + d + c]) : 0;
    }
}

__device__ __forceinline__ void plain_load4(float (&r)[4], const float *from) {
    const float4 x = *(const float4 *)(const void *)from;
    r[0] = x.x, r[1] = x.y, r[2] = x.z, r[3] = x.w;
}

/* Blocks: heads x tiles x parts of the output columns. Dynamic shared memory: [words] bits. */
template <typename T>
__global__ void __launch_bounds__(PLAIN_THREADS) attn_plain(const __grid_constant__ attn_call a, int parts) {
    extern __shared__ uint32_t row_bits[];
    __shared__ union {
        struct {
            float q[PLAIN_SLICE][PLAIN_ROWS + PLAIN_PAD], k[PLAIN_SLICE][PLAIN_KEYS + PLAIN_PAD];
        } of;
        float v[PLAIN_SLICE][PLAIN_COLUMNS];
    } slice;
    __shared__ __align__(16) float p[PLAIN_KEYS][PLAIN_ROWS + PLAIN_PAD]; /* probabilities, transposed */
    __shared__ int token[PLAIN_KEYS], queries[PLAIN_ROWS], sums[2];
    __shared__ float extra[PLAIN_KEYS];

    attn_tile tile;
    if (!attn_tile_at(a, PLAIN_ROWS, blockIdx.x / parts, &tile)) return;
    const int tid = (int)threadIdx.x, x = tid % 16, y = tid / 16;
    const int column = (int)(blockIdx.x % parts) * PLAIN_COLUMNS;
    const int64_t head = (int64_t)tile.head * a.head_dim, mean = head * a.cols;
    if (tid < PLAIN_ROWS) queries[tid] = tid < tile.count ? attn_query(a, tile, tid) : -1;
    const attn_list list = attn_list_of(a, tile, row_bits, sums);
    const int key_steps = attn_key_steps(list, PLAIN_KEYS), steps = attn_steps(list, PLAIN_KEYS);
    attn_cursor cursor = {0, 0, 0};
    float out[4][8] = {}, top[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, sum[4] = {};

    for (int j = 0; j < steps; j++) {
        const bool means = j >= key_steps;
        if (tid < PLAIN_KEYS) {
            token[tid] = attn_key(a, list, tile.head, j, PLAIN_KEYS, tid, &cursor);
            extra[tid] = attn_extra(a, token[tid], means);
        }
        float s[4][4] = {};
        for (int d = 0; d < a.head_dim; d += PLAIN_SLICE) {
            __syncthreads();
            plain_slice(slice.of.q, (const T *)a.q + head, a.ld_q, queries, d, a.head_dim);
            if (means)
                plain_slice(slice.of.k, (const float *)a.comp_k + mean, a.head_dim, token, d, a.head_dim);
            else
                plain_slice(slice.of.k, (const T *)a.k + head, a.ld_k, token, d, a.head_dim);
            __syncthreads();
#pragma unroll 8
            for (int c = 0; c < PLAIN_SLICE; c++) {
                float q[4], k[4];
                plain_load4(q, &slice.of.q[c][4 * y]);
                plain_load4(k, &slice.of.k[c][4 * x]);
#pragma unroll
                for (int r = 0; r < 4; r++)
#pragma unroll
                    for (int i = 0; i < 4; i++) s[r][i] = fmaf(q[r], k[i], s[r][i]);
            }
        }
#pragma unroll
        for (int r = 0; r < 4; r++) { /* a row's logits lie in 16 neighbouring lanes */
            float largest = top[r], total = 0;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[r][i] += extra[4 * x + i];
                if (a.rel_bias && !means)
                    s[r][i] += attn_bias(a, tile.head, max(queries[4 * y + r], 0), max(token[4 * x + i], 0));
                largest = fmaxf(largest, s[r][i]);
            }
#pragma unroll
            for (int w = 1; w < 16; w *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, w));
            const float from = largest == -INFINITY ? 0 : largest;
            const float shrink = exp2f((top[r] - from) * a.unit);
            top[r] = largest;
#pragma unroll
            for (int i = 0; i < 4; i++) total += s[r][i] = exp2f((s[r][i] - from) * a.unit);
            sum[r] = fmaf(sum[r], shrink, total);
#pragma unroll
            for (int c = 0; c < 8; c++) out[r][c] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            *(float4 *)(void *)&p[4 * x + i][4 * y] = make_float4(s[0][i], s[1][i], s[2][i], s[3][i]);

        for (int first = 0; first < PLAIN_KEYS; first += PLAIN_SLICE) {
            __syncthreads();
            if (means)
                plain_values(slice.v, (const float *)a.comp_v + mean, a.head_dim, token + first, column, a.head_dim);
            else
                plain_values(slice.v, (const T *)a.v + head, a.ld_v, token + first, column, a.head_dim);
            __syncthreads();
#pragma unroll 4
            for (int k = 0; k < PLAIN_SLICE; k++) {
                float w[4], v[2][4];
                plain_load4(w, &p[first + k][4 * y]);
                plain_load4(v[0], &slice.v[k][4 * x]);
                plain_load4(v[1], &slice.v[k][PLAIN_COLUMNS / 2 + 4 * x]);
#pragma unroll
                for (int r = 0; r < 4; r++)
#pragma unroll
                    for (int c = 0; c < 8; c++) out[r][c] = fmaf(w[r], v[c / 4][c % 4], out[r][c]);
            }
        }
        __syncthreads(); /* token and p are done with */
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int w = 1; w < 16; w *= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], w);
        if (4 * y + r >= tile.count) continue;
        T *const to = (T *)a.out + queries[4 * y + r] * a.ld_out + head;
        const float factor = sum[r] != 0 ? 1 / sum[r] : 0; /* 0: no keys */
#pragma unroll
        for (int c = 0; c < 8; c++) {
            const int at = column + c / 4 * (PLAIN_COLUMNS / 2) + 4 * x + c % 4;
            if (at < a.head_dim) to[at] = from_f32<T>(out[r][c] * factor);
        }
    }
}
#endif
