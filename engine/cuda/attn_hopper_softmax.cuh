/* Softmax of attn_hopper.cuh, which includes this, in the registers that hold the logits.
 *
 * A row's largest logit is looked for in a tile's first step only, and is the reference of its exponentials from there
 * on. They may grow past 1, which floating point does not mind; only when a step's sum is beyond a limit do they shrink
 * again, by a power of two. Should one of them have become infinite in between, the tile is lost, and a second launch
 * computes it again, carefully: with a maximum in every step. docs/kernels.md says what a maximum costs.
 */
#ifndef HS_ATTN_HOPPER_SOFTMAX_CUH
#define HS_ATTN_HOPPER_SOFTMAX_CUH

/* The running softmax of two rows of a lane: lane / 4 and that + 8 of its warp's 16. */
typedef struct hopper_rows {
    float from[2], sum[2]; /* reference (a power of two's exponent), sum of exponentials of this lane's columns */
} hopper_rows;

/* Maximum of a row's four lanes. */
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

template <int N> __device__ __forceinline__ void largest_of(const float (&s)[N], float (&most)[2]) {
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) most[i] = fmaxf(most[i], fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
    most[0] = row_max(most[0]);
    most[1] = row_max(most[1]);
}

template <int N> __device__ __forceinline__ void sums_of(const float (&s)[N], float (&sum)[2]) {
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) sum[i] += s[4 * j + 2 * i] + s[4 * j + 2 * i + 1];
}

/* The references rise to the rows' largest logits; `shrink` says how much what was summed up so far has shrunk. */
template <int N>
__device__ __forceinline__ void raise_references(const float (&s)[N], hopper_rows &r, float (&shrink)[2], float unit) {
    float most[2] = {-INFINITY, -INFINITY};
    largest_of(s, most);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float to = fmaxf(r.from[i], most[i] * unit);
        shrink[i] = exp2_fast(r.from[i] - to); /* 0 at first: from minus infinity */
        r.from[i] = to;
        r.sum[i] *= shrink[i];
    }
}

/* Exponentials beyond 1 shrink by a power of two, and so has to what was summed up so far. 1 if one was infinite. */
template <int N>
__device__ __forceinline__ bool shrink_exponentials(float (&s)[N], hopper_rows &r, float (&shrink)[2]) {
    float most[2] = {0, 0}, by[2];
    largest_of(s, most);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int up = min(max((__float_as_int(most[i]) >> 23) - 127, 0), 126);
        by[i] = __int_as_float((127 - up) << 23);
        r.from[i] += (float)up;
        r.sum[i] *= by[i];
        shrink[i] *= by[i];
    }
#pragma unroll
    for (int j = 0; j < N; j++) s[j] *= by[j / 2 % 2];
    return most[0] == INFINITY || most[1] == INFINITY;
}

/* The last step of a tile: columns from `valid` on are not keys; the last of all has a bonus. */
template <int N> __device__ __forceinline__ void end_of_keys(float (&s)[N], const hopper_tile &t, float bonus) {
    const int lane = (int)threadIdx.x % 4;
    const int last = t.bonus ? t.valid - 1 : -1;
    if (t.valid == N * 2 && bonus == 0) return;
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int column = 8 * j + 2 * lane + e;
            const float more = column >= t.valid ? -INFINITY : column == last ? bonus : 0;
            s[4 * j + e] += more;
            s[4 * j + 2 + e] += more;
        }
}

/* Gathered keys: of granule j the last rows are no keys, as many as digit j says. Column c of a granule of 8 is none if
 * digit and c add up to 8 or more. */
template <int N> __device__ __forceinline__ void only_keys(float (&s)[N], uint64_t gaps) {
    const uint64_t ones = 0x1111111111111111,
                   none[2] = {gaps + threadIdx.x % 4 * 2 * ones, gaps + (threadIdx.x % 4 * 2 + 1) * ones};
    if (gaps == 0) return;
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (none[e % 2] >> (4 * j + 3) & 1) s[4 * j + e] = -INFINITY;
}
#endif
