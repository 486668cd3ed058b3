/* XAttention's block scores: folded products, softmax, sums over blocks. spec haste.md 3.1
 *
 * A folded vector is `stride` tokens side by side and is never put together: the depth of the product walks over the
 * slices. One pass over the products is enough. A tile of 128 folded queries x (up to) 128 folded keys turns its logits
 * at once into exponentials relative to the tile's own row maxima and adds them up over the parts of blocks it covers;
 * only these sums, per folded query one float per block, and the maxima go to memory. A second, small kernel brings the
 * rows of a block of queries onto common maxima, divides and adds up. Where the sums would be large, heads and rows go
 * through in groups. Hopper has wider tiles (fold_hopper.cuh), everything else is the same.
 */
#include "cuda/fold_hopper.cuh"
#include "cuda/tile.cuh"

enum {
    STAGES = 3,       /* pairs of slabs under way */
    PITCH = TILE + 8, /* floats from one row of logits to the next: pairs of eight rows meet in no bank */
    AT_ONCE = 4,      /* rows that a warp has in work: their chains of shuffles hide each other's latency */
    FOLD_MMA_SHARED = STAGES * 2 * SLAB_SIZE * 2,
    LOGITS_SHARED = TILE * PITCH * 4,
    MAX_PER = 1024,        /* folded queries in a block: as many tokens as backend_sparse.c lets through */
    SUMS_LIMIT = 64 << 20, /* bytes of sums and maxima at a time: they stay near the second-level cache */
};
static_assert(LOGITS_SHARED <= FOLD_MMA_SHARED, "logits take the place of the slabs");

/* The folded key in column x of a tile, or -1. */
static __device__ __forceinline__ int64_t key_of(const fold &f, int tile, int x) {
    const int64_t part = (int64_t)tile * f.group + x / f.width;
    const int within = (int)(part % f.parts) * f.width + x % f.width;
    const int64_t key = part / f.parts * f.per + within;
    return x / f.width < f.group && within < f.per && part < (int64_t)f.cols * f.parts && key < f.keys ? key : -1;
}

/* Sums of parts that do not lie side by side in lanes. row: a row of logits, free by now. */
static __device__ void odd_parts(const fold &f, const float (&x)[4], float *row, float *sums) {
    const int lane = threadIdx.x % 32;
    const int64_t left = (int64_t)f.cols * f.parts - (int64_t)blockIdx.x * f.group;
    for (int e = 0; e < 4; e++) row[lane * 4 + e] = x[e];
    __syncwarp();
    for (int p = lane; p < f.group && p < left; p += 32) {
        float part = 0;
        for (int o = 0; o < f.width; o++) part += row[p * f.width + o];
        sums[p] = part;
    }
}

/* From products to sums and statistics. logits: LOGITS_SHARED bytes that nobody uses any more. */
template <typename Tile>
static __device__ __forceinline__ void finish_tile(const fold &f, const Tile &c, float *logits) {
    const int lane = threadIdx.x % 32, lanes = f.width / 4;
    const int64_t all = (int64_t)f.cols * f.parts, first_part = (int64_t)blockIdx.x * f.group;
    /* Lanes hold four columns each: a part of 4, 8, ... 128 columns is that many lanes side by side. */
    const int aligned = f.width % 4 == 0 && (lanes & (lanes - 1)) == 0;
    int there[4];
    for (int e = 0; e < 4; e++) there[e] = key_of(f, blockIdx.x, lane * 4 + e) >= 0;
#pragma unroll
    for (int i = 0; i < Tile::ROWS; i++)
#pragma unroll
        for (int j = 0; j < Tile::COLS; j += 2) /* columns j and j + 1 are neighbours */
            *(float2 *)(logits + Tile::row(i) * PITCH + Tile::col(j)) =
                make_float2(c.at(i, j) * f.scale, c.at(i, j + 1) * f.scale);
    __syncthreads();
    for (int r0 = threadIdx.x / 32 * AT_ONCE; r0 < TILE; r0 += Tile::THREADS / 32 * AT_ONCE) {
        const int64_t i0 = (int64_t)blockIdx.y * TILE + r0;
        float x[AT_ONCE][4], max[AT_ONCE], sum[AT_ONCE], part[AT_ONCE];
        if (i0 >= f.rows) break;
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const float4 four = *(const float4 *)(logits + (r0 + r) * PITCH + lane * 4);
            x[r][0] = four.x, x[r][1] = four.y, x[r][2] = four.z, x[r][3] = four.w;
            max[r] = -INFINITY;
            for (int e = 0; e < 4; e++)
                if (there[e]) max[r] = fmaxf(max[r], x[r][e]);
        }
#pragma unroll
        for (int d = 16; d; d /= 2)
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) max[r] = fmaxf(max[r], __shfl_xor_sync(~0u, max[r], d));
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            sum[r] = part[r] = 0;
            for (int e = 0; e < 4; e++) sum[r] += x[r][e] = there[e] ? exp2f(x[r][e] - max[r]) : 0;
        }
#pragma unroll
        for (int d = 1; d < 32; d *= 2) /* on its way to the row's sum it is the part's */
#pragma unroll
            for (int r = 0; r < AT_ONCE; r++) {
                if (d == lanes) part[r] = sum[r];
                sum[r] += __shfl_xor_sync(~0u, sum[r], d);
            }
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const int64_t at = blockIdx.z * f.rows + i0 + r;
            if (i0 + r >= f.rows) break;
            if (lane == 0) f.stats[at * f.tiles + blockIdx.x] = make_float2(max[r], sum[r]);
            if (!aligned)
                odd_parts(f, x[r], logits + (r0 + r) * PITCH, f.sums + at * all + first_part);
            else if (lane % lanes == 0 && lane / lanes < f.group && first_part + lane / lanes < all)
                f.sums[at * all + first_part + lane / lanes] = lanes == 32 ? sum[r] : part[r];
        }
    }
}

template <typename T> __global__ void __launch_bounds__(mma_tile::THREADS, 2) fold_mma(fold f) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int head = f.head + blockIdx.z;
    if (!f.want[head]) return;
    const T *q = (const T *)f.q + (int64_t)head * f.dim, *k = (const T *)f.k + (int64_t)head * f.dim;
    const int chunk = threadIdx.x % CHUNK, slabs = (f.dim + SLAB - 1) / SLAB, steps = f.stride * slabs;
    enum { EACH = TILE / (mma_tile::THREADS / CHUNK) }; /* rows that a thread copies of every slab */
    int64_t row[EACH], col[EACH];                       /* their first tokens; len = beyond the end */
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int r = threadIdx.x / CHUNK + i * (mma_tile::THREADS / CHUNK);
        const int64_t x = (int64_t)blockIdx.y * TILE + r, key = key_of(f, blockIdx.x, r);
        row[i] = x < f.rows ? (f.first + x) * f.stride : f.len;
        col[i] = key >= 0 ? key * f.stride : f.len;
    }
    auto load = [&](int step) {
        T *a = (T *)shared + step % STAGES * (2 * SLAB_SIZE), *b = a + SLAB_SIZE;
        const int s = step / slabs, d = step % slabs * SLAB + chunk * CHUNK;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const int r = threadIdx.x / CHUNK + i * (mma_tile::THREADS / CHUNK);
            const int64_t qt = row[i] + f.stride - 1 - s, kt = col[i] + s;
            const bool q_there = qt < f.len && d < f.dim, k_there = kt < f.len && d < f.dim;
            copy_chunk(a, r, chunk, q_there ? q + qt * f.ld_q + d : q, q_there);
            copy_chunk(b, r, chunk, k_there ? k + kt * f.ld_k + d : k, k_there);
        }
    };
    mma_tile c;
    c.clear();
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) load(step);
        copy_commit();
    }
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads(); /* the slabs of this step are there for all, those of the last one free */
        if (step + STAGES - 1 < steps) load(step + STAGES - 1);
        copy_commit();
        T *a = (T *)shared + step % STAGES * (2 * SLAB_SIZE);
        c.multiply(a, a + SLAB_SIZE);
    }
    copy_wait<0>();
    __syncthreads();
    finish_tile(f, c, (float *)shared);
}

template <typename T> __global__ void __launch_bounds__(fma_tile::THREADS) fold_fma(fold f) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int head = f.head + blockIdx.z;
    if (!f.want[head]) return;
    const T *q = (const T *)f.q + (int64_t)head * f.dim, *k = (const T *)f.k + (int64_t)head * f.dim;
    fma_tile c;
    c.clear();
    c.multiply(
        f.stride * f.dim,
        [&](int r, int depth) {
            const int64_t x = (int64_t)blockIdx.y * TILE + r;
            const int64_t token = (f.first + x) * f.stride + f.stride - 1 - depth / f.dim;
            return x < f.rows && token < f.len ? to_f32(q[token * f.ld_q + depth % f.dim]) : 0;
        },
        [&](int r, int depth) {
            const int64_t key = key_of(f, blockIdx.x, r), token = key * f.stride + depth / f.dim;
            return key >= 0 && token < f.len ? to_f32(k[token * f.ld_k + depth % f.dim]) : 0;
        },
        (float *)shared);
    finish_tile(f, c, (float *)shared);
}

/* One block of queries: its folded queries onto their maxima over all tiles, then column by column. */
static __global__ void __launch_bounds__(256) fold_rows(fold f) {
    __shared__ float max[MAX_PER], part[MAX_PER]; /* part: one over the row's sum */
    const int head = f.head + blockIdx.z, lane = threadIdx.x % 32;
    if (!f.want[head]) return;
    const int64_t begin = (int64_t)blockIdx.x * f.per; /* within this launch */
    const int count = (int)(f.rows - begin < f.per ? f.rows - begin : f.per);
    const int64_t all = (int64_t)f.cols * f.parts, at = blockIdx.z * f.rows + begin;
    for (int i = threadIdx.x / 32; i < count; i += blockDim.x / 32) {
        const float2 *stats = f.stats + (at + i) * f.tiles;
        float most = -INFINITY, sum = 0;
        for (int t = lane; t < f.tiles; t += 32) most = fmaxf(most, stats[t].x);
        most = warp_max(most);
        for (int t = lane; t < f.tiles; t += 32) sum += stats[t].y * exp2f(stats[t].x - most);
        sum = warp_sum(sum);
        if (lane == 0) {
            max[i] = most;
            part[i] = 1 / sum;
        }
    }
    __syncthreads();
    const int64_t score_row = (f.first + begin) / f.per;
    for (int c = threadIdx.x; c < f.cols; c += blockDim.x) {
        float sum = 0;
        for (int64_t p = (int64_t)c * f.parts; p < (int64_t)(c + 1) * f.parts; p++) {
            const int64_t tile = p / f.group;
#pragma unroll 4
            for (int i = 0; i < count; i++)
                sum += f.sums[(at + i) * all + p] * exp2f(f.stats[(at + i) * f.tiles + tile].x - max[i]) * part[i];
        }
        f.scores[((int64_t)head * f.score_rows + score_row) * f.cols + c] = sum;
    }
}

/* ---- launches --------------------------------------------------------------------------------------------------- */

/* Hopper's tiles begin at any block if blocks are a power of two of folded keys; 0: it does not fit. */
static int plan_wide(hs_device *dev, const hs_block_scores *a, const fold *f, fold_maps *maps) {
    const hs_cuda *c = hs_cuda_of(dev);
    const int64_t folds = (a->len + a->stride - 1) / a->stride, whole = a->len / a->stride;
    if (!hs_cuda_hopper(dev) || dev->act == HS_F32 || c->shared_max < WIDE_SHARED) return 0;
    if (f->per < 4 || f->per & (f->per - 1) || f->dim % WIDE_DEPTH || whole < 1) return 0;
    if (!copies_reach(f->q, f->ld_q, f->dim) || !copies_reach(f->k, f->ld_k, f->dim)) return 0;
    for (int i = 0; i < 2; i++) {
        const int64_t dims[4] = {f->dim, f->stride, i ? whole : folds, a->heads};
        const int64_t q[3] = {f->ld_q, f->ld_q * f->stride, f->dim}, k[3] = {f->ld_k, f->ld_k * f->stride, f->dim};
        if (!hopper_map_4d(&maps->q[i], dev->act == HS_BF16, f->q, dims, q, WIDE_ROWS) ||
            !hopper_map_4d(&maps->k[i], dev->act == HS_BF16, f->k, dims, k, WIDE_COLS))
            return 0;
    }
    return 1;
}

template <typename K> static int with_shared(hs_device *dev, K *kernel, int bytes) {
    return hs_cuda_ok(dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                      "block scores");
}

static void launch_wide(hs_device *dev, const fold *f, const fold_maps *maps) {
    auto *kernel = dev->act == HS_BF16 ? fold_wgmma<__nv_bfloat16> : fold_wgmma<__half>;
    const int64_t tiles = (f->rows + WIDE_ROWS - 1) / WIDE_ROWS * f->tiles * f->heads;
    const int sms = hs_cuda_of(dev)->sms;
    if (!with_shared(dev, kernel, WIDE_SHARED)) return;
    kernel<<<(unsigned)(tiles < sms ? tiles : sms), WIDE_THREADS, WIDE_SHARED, hs_cuda_of(dev)->stream>>>(*f, *maps);
}

static void launch_tiles(hs_device *dev, const fold *f) {
    const dim3 grid((unsigned)f->tiles, (unsigned)((f->rows + TILE - 1) / TILE), (unsigned)f->heads);
    const int tensor = dev->act != HS_F32 && copies_reach(f->q, f->ld_q, f->dim) &&
                       copies_reach(f->k, f->ld_k, f->dim) && hs_cuda_of(dev)->shared_max >= FOLD_MMA_SHARED;
    const int shared = tensor ? FOLD_MMA_SHARED : LOGITS_SHARED;
    void (*kernel)(fold) = nullptr;
    hs_cuda_typed(dev->act, [&](auto *t) { kernel = fold_fma<std::decay_t<decltype(*t)>>; });
    if (tensor) kernel = dev->act == HS_BF16 ? fold_mma<__nv_bfloat16> : fold_mma<__half>;
    if (!with_shared(dev, kernel, shared)) return;
    kernel<<<grid, tensor ? (int)mma_tile::THREADS : (int)fma_tile::THREADS, (size_t)shared, hs_cuda_of(dev)->stream>>>(
        *f);
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

void hs_cuda_block_scores(hs_device *dev, const hs_block_scores *a) {
    fold f = {};
    f.q = a->q.p;
    f.k = a->k.p;
    f.want = (const uint8_t *)a->want.p;
    f.scores = (float *)a->scores.p;
    f.ld_q = a->ld_q;
    f.ld_k = a->ld_k;
    f.len = a->len;
    f.stride = a->stride;
    f.dim = a->head_dim;
    f.keys = ((a->padded ? a->padded : a->len) + a->stride - 1) / a->stride;
    f.score_rows = (a->len + a->block - 1) / a->block;
    f.cols = (int)(a->padded ? a->padded / a->block : f.score_rows);
    f.per = a->block / a->stride;
    f.scale = (float)(1.4426950408889634 / (sqrt((double)a->head_dim) * a->stride));
    fold_maps maps;
    const int wide = plan_wide(dev, a, &f, &maps), tile = wide ? (int)WIDE_COLS : (int)TILE;
    f.parts = (f.per + tile - 1) / tile;
    f.width = (f.per + f.parts - 1) / f.parts;
    f.group = tile / f.width;
    f.tiles = (int)(((int64_t)f.cols * f.parts + f.group - 1) / f.group);

    const int64_t folded = (a->len + a->stride - 1) / a->stride;
    const int64_t row_bytes = (int64_t)f.cols * f.parts * 4 + (int64_t)f.tiles * 8;
    const int64_t blocks = smaller(f.score_rows, SUMS_LIMIT / (f.per * row_bytes) + 1);
    const int64_t rows = smaller(blocks * f.per, folded);
    const int64_t heads = smaller(smaller(a->heads, WIDE_HEADS), SUMS_LIMIT / (rows * row_bytes) + 1);
    char *room = (char *)hs_cuda_scratch(dev, (size_t)(heads * rows * row_bytes));
    if (!room) return;
    f.stats = (float2 *)room; /* first: it needs the alignment */
    f.sums = (float *)(room + heads * rows * f.tiles * 8);
    for (int64_t h = 0; h < a->heads && !dev->sticky; h += heads)
        for (f.first = 0; f.first < folded && !dev->sticky; f.first += rows) {
            f.head = (int)h;
            f.heads = (int)smaller(heads, a->heads - h);
            f.rows = smaller(rows, folded - f.first);
            if (wide)
                launch_wide(dev, &f, &maps);
            else
                launch_tiles(dev, &f);
            if (dev->sticky || !HS_CUDA_LAUNCHED(dev, "block scores")) return;
            const dim3 grid((unsigned)((f.rows + f.per - 1) / f.per), 1, (unsigned)f.heads);
            fold_rows<<<grid, 256, 0, hs_cuda_of(dev)->stream>>>(f);
            HS_CUDA_LAUNCHED(dev, "block scores, rows");
        }
}
