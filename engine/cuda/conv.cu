/* Convolution over channels-last frames (backend.h, spec wan.md 5.2) as a product of matrices that is never laid out:
 * rows are output pixels, columns output channels, and the sum runs over taps and input channels.
 *
 * A block owns a tile of TILE_Y x TILE_X pixels of one frame. Per frame of history and 32 input channels it brings
 * the patch of input pixels under the tile into shared memory once, and all taps in Y and X read it there, shifted:
 * fetching every tap by itself would ask the L2 cache for more than it gives. Weights are prepared so that the slice of
 * one step (a tap, 32 input channels, all columns of the tile) is one contiguous piece. Both arrive through a ring of
 * asynchronous copies while the tensor cores work on earlier steps.
 *
 * Doubling (up2) is folded away: of the doubled picture every output parity sees just 2 x 2 input pixels, so it is four
 * convolutions of 2 x 2 taps whose weights are sums of the original ones (spec wan.md 5.4a), 4/9 of the work.
 */
#include "cuda/cuda.h"
#include "cuda/hopper.cuh"

#include <type_traits>

enum {
    TILE_Y = 12,                         /* divides the sizes of 480p and 720p at all levels but the lowest */
    TILE_X = 16,                         /* the 16 rows of one matrix fragment */
    THREADS = TILE_Y * TILE_X,           /* without tensor cores */
    PATCH = (TILE_Y + 2) * (TILE_X + 2), /* pixels under a tile, at most */
    CHUNK = 32,                          /* input channels of a step on tensor cores: 64 bytes of a pixel */
    CHUNK_F32 = 8,                       /* and without */
    COLUMNS_F32 = 32
};

typedef struct conv_plan {
    const void *x, *add; /* x [T + kt - 1, Y, X, cin]; add like y or NULL */
    void *y;             /* [T, Y << up, X << up, cout] */
    const float *bias;   /* [columns], zeros where there is none */
    const void *w;       /* see packed_at */
    int T, Y, X, up;
    int cin, cout, columns;        /* columns: cout, padded */
    int kt, ky, kx, chunks;        /* ky, kx: 2 x 2 where doubling is folded */
    int patches, loads;            /* of shared memory: patches at a time, loads of a thread for one */
    int tiles_n, tiles_y, tiles_x; /* blocks: tiles_n fastest, then parity, T, tiles_x, tiles_y */
    int y_f32, pairs;              /* pairs: y and add can be accessed two columns at a time */
} conv_plan;

/* Columns of a block: few for few channels. */
static int tile_columns(hs_dtype act, int cout) {
    return act == HS_F32 ? COLUMNS_F32 : cout <= 16 ? 16 : cout <= 32 ? 32 : cout <= 48 ? 48 : 96;
}

static int chunk_of(hs_dtype act) {
    return act == HS_F32 ? CHUNK_F32 : CHUNK;
}

/* What follows from the weight alone. */
static conv_plan plan_of(hs_dtype act, const hs_weight *w) {
    conv_plan p = {};
    const int tile = tile_columns(act, w->cout), chunk = chunk_of(act);
    p.up = w->up2;
    p.cin = w->cin;
    p.cout = w->cout;
    p.columns = (w->cout + tile - 1) / tile * tile;
    p.kt = w->kt;
    p.ky = w->up2 ? 2 : w->ky;
    p.kx = w->up2 ? 2 : w->kx;
    p.chunks = (w->cin + chunk - 1) / chunk;
    p.bias = (const float *)w->impl;
    p.w = (const char *)w->impl + (size_t)p.columns * sizeof(float);
    return p;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */
/* impl: bias F32 [columns], then weights
 *   tensor cores: act [parity][kt][chunks][ky][kx][columns][CHUNK]
 *   else:         F32 [parity][kt][chunks][ky][kx][CHUNK_F32][columns]
 * with zeros for the channels that only fill up. One thread makes one of them from w [cout, cin, kt, ky, kx]. */
template <typename S, typename T>
static __global__ void pack_kernel(const S *__restrict__ w, T *__restrict__ packed, conv_plan p, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const bool f32 = std::is_same<T, float>::value;
    const int chunk = f32 ? (int)CHUNK_F32 : (int)CHUNK, inner = f32 ? p.columns : chunk,
              outer = f32 ? chunk : p.columns;
    int64_t r = i;
    const int b = (int)(r % inner);
    r /= inner;
    const int a = (int)(r % outer);
    r /= outer;
    const int dx = (int)(r % p.kx);
    r /= p.kx;
    const int dy = (int)(r % p.ky);
    r /= p.ky;
    const int c = (int)(r % p.chunks) * chunk + (f32 ? a : b), o = f32 ? b : a;
    r /= p.chunks;
    const int dt = (int)(r % p.kt), parity = (int)(r / p.kt);
    float sum = 0;
    if (c < p.cin && o < p.cout) {
        /* Parity 0 sees rows (w0 | w1 + w2), parity 1 rows (w0 + w1 | w2), and columns alike. */
        const int py = parity >> 1, px = parity & 1, ky = p.up ? 3 : p.ky, kx = p.up ? 3 : p.kx;
        const int y0 = p.up ? (dy ? 1 + py : 0) : dy, y1 = p.up ? (dy ? 3 : 1 + py) : dy + 1;
        const int x0 = p.up ? (dx ? 1 + px : 0) : dx, x1 = p.up ? (dx ? 3 : 1 + px) : dx + 1;
        const S *tap = w + (((int64_t)o * p.cin + c) * p.kt + dt) * ky * kx;
        for (int y = y0; y < y1; y++)
            for (int x = x0; x < x1; x++) sum += to_f32(tap[y * kx + x]);
    }
    packed[i] = from_f32<T>(sum);
}

int hs_cuda_weight_conv(hs_device *dev, const hs_conv_src *src, hs_weight *w, hs_err *err) {
    cudaStream_t stream = hs_cuda_of(dev)->stream;
    const conv_plan p = plan_of(dev->act, w);
    const int64_t raw = (int64_t)src->cout * src->cin * src->kt * src->ky * src->kx,
                  n = (int64_t)(p.up ? 4 : 1) * p.kt * p.ky * p.kx * p.columns * p.chunks * chunk_of(dev->act);
    const size_t bias_bytes = (size_t)p.columns * sizeof(float),
                 bytes = bias_bytes + (size_t)n * hs_dtype_size(dev->act);
    int rc = hs_cuda_malloc(dev, bytes, "weights", &w->impl, err);
    if (rc) return rc;
    hs_cuda_ok(dev, cudaMemsetAsync(w->impl, 0, bias_bytes, stream), "loading weights");
    if (src->bias) rc = hs_cuda_load(dev, w->impl, HS_F32, src->bias, src->bias_type, src->cout, err);
    void *packed = (char *)w->impl + bias_bytes,
         *staged = rc ? NULL : hs_cuda_scratch(dev, (size_t)raw * hs_dtype_size(src->type));
    if (staged) rc = hs_cuda_load(dev, staged, src->type, src->w, src->type, raw, err);
    if (staged && !rc)
        hs_cuda_typed(src->type, [&](auto *s) {
            using S = std::decay_t<decltype(*s)>;
            hs_cuda_typed(dev->act, [&](auto *t) {
                using T = std::decay_t<decltype(*t)>;
                pack_kernel<S, T>
                    <<<(unsigned)((n + 255) / 256), 256, 0, stream>>>((const S *)staged, (T *)packed, p, n);
                HS_CUDA_LAUNCHED(dev, "loading weights");
            });
        });
    if (!rc && dev->sticky) {
        rc = hs_fail(err, dev->sticky, "%s", dev->sticky_msg);
        dev->sticky = 0; /* reported here, so not again */
    }
    if (rc) {
        dev->ops->free(dev, w->impl);
        w->impl = NULL;
    }
    w->bytes = (int64_t)bytes;
    return rc;
}

/* ---- tiles ------------------------------------------------------------------------------------------------------ */
typedef struct tile {
    int n0, parity, t; /* first column; which of the doubled pixels; frame */
    int y0, x0;        /* first pixel, counted in those of the input */
    int pad_y, pad_x;  /* the first tap of pixel (y, x) is input pixel (y - pad_y, x - pad_x) */
} tile;

__device__ __forceinline__ tile tile_of(const conv_plan &p, int columns) {
    tile a;
    unsigned b = blockIdx.x;
    a.n0 = (int)(b % p.tiles_n) * columns;
    b /= p.tiles_n;
    a.parity = p.up ? (int)(b & 3) : 0;
    b = p.up ? b >> 2 : b;
    a.t = (int)(b % p.T);
    b /= p.T;
    a.x0 = (int)(b % p.tiles_x) * TILE_X;
    a.y0 = (int)(b / p.tiles_x) * TILE_Y;
    a.pad_y = p.up ? 1 - (a.parity >> 1) : (p.ky - 1) / 2;
    a.pad_x = p.up ? 1 - (a.parity & 1) : (p.kx - 1) / 2;
    return a;
}

/* Index within a frame of the input pixel under (py, px) of the patch, -1 where the zero padding is. */
__device__ __forceinline__ int patch_pixel(const conv_plan &p, const tile &a, int py, int px) {
    const int y = a.y0 + py - a.pad_y, x = a.x0 + px - a.pad_x;
    return y >= 0 && y < p.Y && x >= 0 && x < p.X ? y * p.X + x : -1;
}

/* Where output pixel (y, x) of the tile begins in y, -1 where it does not exist. */
__device__ __forceinline__ int64_t output_at(const conv_plan &p, const tile &a, int y, int x) {
    const int yi = a.y0 + y, xi = a.x0 + x;
    if (yi >= p.Y || xi >= p.X) return -1;
    const int64_t yo = ((int64_t)yi << p.up) + (a.parity >> 1), xo = ((int64_t)xi << p.up) + (a.parity & 1);
    return (((int64_t)a.t * p.Y << p.up) + yo) * ((int64_t)p.X << p.up) * p.cout + xo * p.cout;
}

template <typename Y> __device__ __forceinline__ void put(const conv_plan &p, int64_t at, int column, float v) {
    if (column >= p.cout) return;
    v += p.bias[column];
    if (p.add) v += to_f32(((const Y *)p.add)[at + column]);
    ((Y *)p.y)[at + column] = from_f32<Y>(v);
}

/* ---- tensor cores ----------------------------------------------------------------------------------------------- */
/* Shared memory holds pixels, and columns of weights, as rows of CHUNK values: four pieces of 16 bytes, exchanged so
 * that eight rows in sequence lie in different banks. */
__device__ __forceinline__ unsigned piece_at(int row, int piece) {
    return (unsigned)(row * 64 + (((piece ^ (row >> 1)) & 3) << 4));
}

/* The warps of a block: for 96 columns four, 96 pixels x 48 columns each, which read less from shared memory per
 * product than six of 64 x 48 and so leave it to the copies; for fewer columns six, 32 pixels x all columns. */
static __host__ __device__ constexpr int warps_of(int columns) {
    return columns == 96 ? 4 : 6;
}

/* What a thread brings in: every so many-th piece as the block has threads, so always of the same place in a row and
 * loaded_rows rows apart (a multiple of 8, which leaves the exchange as it is). A patch has room for all rows that this
 * touches. */
static __host__ __device__ constexpr int loaded_rows(int columns) {
    return warps_of(columns) * 8;
}
static __host__ __device__ constexpr int loads_for(int pixels, int columns) {
    return (pixels + loaded_rows(columns) - 1) / loaded_rows(columns);
}

/* Channels c.. of the pixels of frame x, -1 for zeros. DIRECT: x can be copied in pieces of 16 bytes (channels in
 * eights, aligned); otherwise value by value. */
template <typename T, bool DIRECT, int APART, int LOADS>
__device__ __forceinline__ void load_patch(const conv_plan &p, const int (&pixel)[LOADS], const T *x, int c,
                                           unsigned char *to) {
#pragma unroll
    for (int k = 0; k < LOADS; k++) {
        if (k >= p.loads) break;
        if (DIRECT) {
            const bool valid = (pixel[k] >= 0) & (c < p.cin);
            copy_async16(shared_address(to) + k * APART * 64, valid ? x + (int64_t)pixel[k] * p.cin + c : x, valid);
        } else {
            T *values = (T *)(to + k * APART * 64);
            for (int j = 0; j < 8; j++)
                values[j] = pixel[k] >= 0 && c + j < p.cin ? x[(int64_t)pixel[k] * p.cin + c + j] : from_f32<T>(0);
        }
    }
}

/* Two neighbouring columns, the first one even. */
template <typename Y> struct alignas(2 * sizeof(Y)) pair { Y a, b; };

/* An image row of a warp: sums of pixels (lane / 4) and (lane / 4) + 8, columns `column` and the next one of every
 * eight. What is added is read first, all at once: it may be y itself. */
template <typename Y, int EIGHTS>
__device__ __forceinline__ void put_row(const conv_plan &p, const int64_t (&at)[2], int column,
                                        const float (&sum)[EIGHTS][4]) {
    if (p.pairs) {
        pair<Y> old[2][EIGHTS];
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int n = 0; n < EIGHTS; n++) {
                const int c = column + n * 8;
                const bool read = p.add && at[h] >= 0 && c < p.cout;
                old[h][n] =
                    read ? *(const pair<Y> *)((const Y *)p.add + at[h] + c) : pair<Y>{from_f32<Y>(0), from_f32<Y>(0)};
            }
#pragma unroll
        for (int n = 0; n < EIGHTS; n++) {
            const int c = column + n * 8;
            const float2 bias = *(const float2 *)(p.bias + c);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (at[h] < 0 || c >= p.cout) continue;
                const float v0 = sum[n][2 * h] + bias.x + to_f32(old[h][n].a),
                            v1 = sum[n][2 * h + 1] + bias.y + to_f32(old[h][n].b);
                *(pair<Y> *)((Y *)p.y + at[h] + c) = {from_f32<Y>(v0), from_f32<Y>(v1)};
            }
        }
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++)
            for (int n = 0; n < EIGHTS && at[h] >= 0; n++) {
                put<Y>(p, at[h], column + n * 8, sum[n][2 * h]);
                put<Y>(p, at[h], column + n * 8 + 1, sum[n][2 * h + 1]);
            }
    }
}

/* ---- Hopper's products ------------------------------------------------------------------------------------------ */
/* The slice of weights as the hardware wants an operand by rows of 64 bytes: its exchange of pieces (swizzle) is the
 * one of piece_at. `address`: a multiple of 8 rows, plus 32 bytes for the second half of the channels. */
__device__ __forceinline__ uint64_t weights_operand(unsigned address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(512 >> 4) << 32 | (uint64_t)2 << 62;
}

#define HS_EIGHT(n)  "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define HS_EIGHTS(n) HS_EIGHT(n), HS_EIGHT(n + 1), HS_EIGHT(n + 2), HS_EIGHT(n + 3)
#define HS_WGMMA_RS_96(TYPE)                                                                                           \
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32." TYPE "." TYPE " "                                       \
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                             \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                    \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "                   \
                 "{%48, %49, %50, %51}, %52, 1, 1, 1, 0;"                                                              \
                 : HS_EIGHTS(0), HS_EIGHTS(4), HS_EIGHTS(8)                                                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

/* d += A B^T over 16 channels: A, a fragment of 16 pixels per warp, in registers; B, 96 columns, in shared memory. */
template <typename T>
__device__ __forceinline__ void product_96(float (&d)[12][4], const unsigned (&a)[4], uint64_t b) {
#if HS_HOPPER
    if constexpr (std::is_same<T, __nv_bfloat16>::value)
        HS_WGMMA_RS_96("bf16");
    else
        HS_WGMMA_RS_96("f16");
#endif
}

/* ---- the kernel on tensor cores --------------------------------------------------------------------------------- */
/* Which products a block makes: COLUMNS of it; its warps form WARPS_Y x WARPS_N and own 16 pixels x several rows x
 * several columns. WGMMA: Hopper's products of a warpgroup, 64 pixels x all columns, whose weights the tensor cores
 * read from shared memory themselves; their steps are rows of taps, so that its threads meet less often. */
template <typename T_, int COLUMNS_, bool DIRECT_, bool WGMMA_> struct shape {
    using T = T_;
    static constexpr int COLUMNS = COLUMNS_, WARPS = warps_of(COLUMNS);
    static constexpr bool DIRECT = DIRECT_, WGMMA = WGMMA_;
    static constexpr int WARPS_N = COLUMNS == 96 && !WGMMA ? 2 : 1, WARPS_Y = WARPS / WARPS_N;
    static constexpr int ROWS = TILE_Y / WARPS_Y, WIDTH = COLUMNS / WARPS_N; /* of a warp: image rows, columns */
    static constexpr int NEXT_ROW = WGMMA ? WARPS_Y : 1; /* from an image row of a warp to the next */
    static constexpr int STAGES = WGMMA ? 3 : 4;         /* steps in flight or in use */
    static constexpr int SLICE = COLUMNS * 64;           /* bytes of weights of a tap */
    static constexpr int APART = loaded_rows(COLUMNS), LOADS = loads_for(PATCH, COLUMNS);
};

template <typename S>
static __global__ void __launch_bounds__(S::WARPS * 32, 2) conv_kernel(const __grid_constant__ conv_plan p) {
    using T = typename S::T;
    constexpr int COLUMNS = S::COLUMNS, ROWS = S::ROWS, WIDTH = S::WIDTH, SLICE = S::SLICE, APART = S::APART,
                  LOADS = S::LOADS, STAGES = S::STAGES;
    extern __shared__ __align__(1024) unsigned char shared[];
    const tile a = tile_of(p, COLUMNS);
    const int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31, col0 = warp % S::WARPS_N * WIDTH,
              row0 = S::WGMMA ? warp : warp / S::WARPS_N * ROWS;
    const int width = TILE_X + p.kx - 1, together = S::WGMMA ? p.kx : 1, /* taps of a step */
        steps_of_patch = p.ky * p.kx / together, steps = p.kt * p.chunks * steps_of_patch,
              patch_bytes = p.loads * APART * 64;
    unsigned char *const patches = shared + STAGES * together * SLICE;

    int pixel[LOADS];
    const int load_row = (int)threadIdx.x >> 2, load_piece = (int)threadIdx.x & 3;
#pragma unroll
    for (int k = 0; k < LOADS; k++) {
        const int i = load_row + k * APART, py = i / width;
        pixel[k] = py < TILE_Y + p.ky - 1 ? patch_pixel(p, a, py, i % width) : -1;
    }

    /* The loader runs STAGES - 1 steps ahead of the products; these are its step's coordinates. */
    const int64_t frame = (int64_t)p.Y * p.X * p.cin;
    const T *x = (const T *)p.x + a.t * frame;
    const T *w = (const T *)p.w + ((int64_t)a.parity * steps * together * p.columns + a.n0) * CHUNK + threadIdx.x * 8;
    const unsigned load_at = piece_at(load_row, load_piece);
    int ahead = 0, ahead_step = 0, ahead_chunk = 0, ahead_patch = 0;
    auto load = [&]() {
        if (ahead < steps) {
            if (ahead_step == 0) {
                load_patch<T, S::DIRECT, APART>(p, pixel, x, ahead_chunk * CHUNK + load_piece * 8,
                                                patches + load_at + ahead_patch * patch_bytes);
                ahead_patch = ahead_patch + 1 == p.patches ? 0 : ahead_patch + 1;
                ahead_chunk = ahead_chunk + 1 == p.chunks ? 0 : ahead_chunk + 1;
                if (ahead_chunk == 0) x += frame;
            }
            unsigned slice = shared_address(shared) + load_at + ahead % STAGES * together * SLICE;
            for (int t = 0; t < together; t++, slice += SLICE, w += (int64_t)p.columns * CHUNK)
#pragma unroll
                for (int k = 0; k * APART < COLUMNS; k++)
                    if (k * APART + load_row < COLUMNS)
                        copy_async16_cached(slice + k * APART * 64, w + k * APART * CHUNK);
            ahead_step = ahead_step + 1 == steps_of_patch ? 0 : ahead_step + 1;
            ahead++;
        }
        copy_commit(); /* empty at the end, so that the count of groups stays right */
    };

    float sum[ROWS][WIDTH / 8][4] = {};
    for (int s = 0; s < STAGES - 1; s++) load();

    int dy = 0, dx = 0, patch = 0, s = 0;
    /* Pixels of image row r of this warp, 16 of the 32 channels: pieces 2 half, 2 half + 1. */
    auto pixels_of = [&](unsigned(&m)[4], int r, int half) {
        const int first = (row0 + r * S::NEXT_ROW + dy) * width + dx;
        load_matrix4(m, shared_address(patches) + patch * patch_bytes +
                            piece_at(first + (lane & 15), half * 2 + (lane >> 4)));
    };
    auto next_tap = [&]() {
        if (++dx < p.kx) return;
        dx = 0;
        if (++dy < p.ky) return;
        dy = 0;
        patch = patch + 1 == p.patches ? 0 : patch + 1;
    };
    if constexpr (S::WGMMA) {
#if HS_HOPPER
        /* Fragments may not be touched while products run (ptxas would put all in a row), so a block's own steps do not
         * overlap: the other block of the multiprocessor fills the gaps. */
        unsigned m[2][ROWS][4];
        for (; s < steps; s++) {
            copy_wait<STAGES - 2>();
            fence_async();
            products_wait<0>();
            __syncthreads(); /* step s is here for all, and all are done with what the next load overwrites */
            load();
            unsigned w_at = shared_address(shared) + s % STAGES * together * SLICE;
            for (int t = 0; t < together; t++, w_at += SLICE, next_tap()) {
                products_wait<0>();
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int r = 0; r < ROWS; r++) pixels_of(m[half][r], r, half);
                products_begin();
#pragma unroll
                for (int half = 0; half < 2; half++)
#pragma unroll
                    for (int r = 0; r < ROWS; r++) product_96<T>(sum[r], m[half][r], weights_operand(w_at + half * 32));
                products_commit();
            }
        }
        products_wait<0>();
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < WIDTH / 8; n++) keep(sum[r][n]);
#endif
    } else {
        for (; s < steps; s++) {
            copy_wait<STAGES - 2>();
            __syncthreads(); /* step s is here for all, and all are done with what the next load overwrites */
            load();
            const unsigned w_at = shared_address(shared) + s % STAGES * SLICE +
                                  piece_at(col0 + (lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                unsigned b[WIDTH / 16][4];
#pragma unroll
                for (int n = 0; n < WIDTH / 16; n++) load_matrix4(b[n], (w_at ^ (unsigned)half * 32) + n * 16 * 64);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    unsigned m[4];
                    pixels_of(m, r, half);
#pragma unroll
                    for (int n = 0; n < WIDTH / 16; n++) {
                        mma16816<T>(sum[r][2 * n], m, b[n][0], b[n][1]);
                        mma16816<T>(sum[r][2 * n + 1], m, b[n][2], b[n][3]);
                    }
                }
            }
            next_tap();
        }
    }

    const int column = a.n0 + col0 + (lane & 3) * 2;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int y = row0 + r * S::NEXT_ROW;
        const int64_t at[2] = {output_at(p, a, y, lane >> 2), output_at(p, a, y, (lane >> 2) + 8)};
        if (p.y_f32)
            put_row<float>(p, at, column, sum[r]);
        else
            put_row<T>(p, at, column, sum[r]);
    }
}

/* ---- fp32 ------------------------------------------------------------------------------------------------------- */
/* Plain fp32 arithmetic: a thread owns 8 pixels of a row x 4 columns. */
static __global__ void __launch_bounds__(THREADS) conv_f32_kernel(const __grid_constant__ conv_plan p) {
    __shared__ float patch[CHUNK_F32][PATCH];
    __shared__ __align__(16) float slice[9 * CHUNK_F32 * COLUMNS_F32]; /* [taps][CHUNK_F32][COLUMNS_F32] */
    const tile a = tile_of(p, COLUMNS_F32);
    const int group = (int)threadIdx.x >> 3, col0 = ((int)threadIdx.x & 7) * 4, row = group >> 1, x0 = (group & 1) * 8;
    const int width = TILE_X + p.kx - 1, pixels = (TILE_Y + p.ky - 1) * width, taps = p.ky * p.kx;
    const int64_t tap_values = (int64_t)CHUNK_F32 * p.columns;
    const float *w = (const float *)p.w + a.parity * (int64_t)p.kt * p.chunks * taps * tap_values + a.n0;
    float sum[8][4] = {};
    for (int dt = 0; dt < p.kt; dt++)
        for (int chunk = 0; chunk < p.chunks; chunk++, w += taps * tap_values) {
            const float *x = (const float *)p.x + (int64_t)(a.t + dt) * p.Y * p.X * p.cin;
            __syncthreads(); /* all are done with the step before */
            for (int i = (int)threadIdx.x; i < pixels * CHUNK_F32; i += THREADS) {
                const int q = i / CHUNK_F32, c = i % CHUNK_F32, channel = chunk * CHUNK_F32 + c;
                const int at = patch_pixel(p, a, q / width, q % width);
                patch[c][q] = at >= 0 && channel < p.cin ? x[(int64_t)at * p.cin + channel] : 0;
            }
            for (int i = (int)threadIdx.x; i < taps * CHUNK_F32 * COLUMNS_F32; i += THREADS)
                slice[i] = w[(int64_t)(i / COLUMNS_F32) * p.columns + i % COLUMNS_F32];
            __syncthreads();
            for (int dy = 0; dy < p.ky; dy++)
                for (int dx = 0; dx < p.kx; dx++)
#pragma unroll
                    for (int c = 0; c < CHUNK_F32; c++) {
                        const float *in = &patch[c][(row + dy) * width + x0 + dx];
                        const float4 k =
                            *(const float4 *)&slice[((dy * p.kx + dx) * CHUNK_F32 + c) * COLUMNS_F32 + col0];
#pragma unroll
                        for (int j = 0; j < 8; j++) {
                            sum[j][0] += in[j] * k.x;
                            sum[j][1] += in[j] * k.y;
                            sum[j][2] += in[j] * k.z;
                            sum[j][3] += in[j] * k.w;
                        }
                    }
        }
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const int64_t at = output_at(p, a, row, x0 + j);
        if (at < 0) continue;
#pragma unroll
        for (int n = 0; n < 4; n++) put<float>(p, at, a.n0 + col0 + n, sum[j][n]);
    }
}

/* ---- the operation ---------------------------------------------------------------------------------------------- */
template <typename T, int COLUMNS, bool DIRECT, bool WGMMA = false>
static void launch(hs_device *dev, conv_plan p, unsigned pixel_tiles) {
    using S = shape<T, COLUMNS, DIRECT, WGMMA>;
    const int together = WGMMA ? p.kx : 1, steps_of_patch = p.ky * p.kx / together;
    /* Patches that steps in flight can touch: those of the next STAGES - 1 steps and the one in use. */
    p.patches = (S::STAGES - 1 + steps_of_patch - 1) / steps_of_patch + 1;
    p.loads = loads_for((TILE_Y + p.ky - 1) * (TILE_X + p.kx - 1), COLUMNS);
    p.tiles_n = p.columns / COLUMNS;
    const size_t shared = (size_t)S::STAGES * together * S::SLICE + (size_t)p.patches * p.loads * S::APART * 64;
    if (hs_cuda_ok(dev, cudaFuncSetAttribute(conv_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared),
                   "conv"))
        conv_kernel<S><<<pixel_tiles *(unsigned)p.tiles_n, S::WARPS * 32, shared, hs_cuda_of(dev)->stream>>>(p);
}

template <typename T> static void launch_typed(hs_device *dev, conv_plan p, unsigned pixel_tiles) {
    /* The value-by-value kernel takes 16 columns, which divide the padded columns of all the others. */
    const bool direct = p.cin % 8 == 0 && (uintptr_t)p.x % 16 == 0;
    const int columns = direct ? tile_columns(dev->act, p.cout) : 16;
    p.pairs = p.cout % 2 == 0 && ((uintptr_t)p.y | (uintptr_t)p.add) % (p.y_f32 ? 8 : 4) == 0;
    if (!direct)
        launch<T, 16, false>(dev, p, pixel_tiles);
    else if (columns == 16)
        launch<T, 16, true>(dev, p, pixel_tiles);
    else if (columns == 32)
        launch<T, 32, true>(dev, p, pixel_tiles);
    else if (columns == 48)
        launch<T, 48, true>(dev, p, pixel_tiles);
    else if (hs_cuda_hopper(dev))
        launch<T, 96, true, true>(dev, p, pixel_tiles);
    else
        launch<T, 96, true>(dev, p, pixel_tiles);
}

void hs_cuda_conv(hs_device *dev, const hs_conv *a) {
    conv_plan p = plan_of(dev->act, a->w);
    p.x = a->x.p;
    p.y = a->y.p;
    p.add = a->add.p;
    p.y_f32 = a->y.type == HS_F32;
    p.T = a->T;
    p.Y = a->Y;
    p.X = a->X;
    p.tiles_y = (a->Y + TILE_Y - 1) / TILE_Y;
    p.tiles_x = (a->X + TILE_X - 1) / TILE_X;
    const int64_t tiles = (int64_t)p.tiles_y * p.tiles_x * p.T * (p.up ? 4 : 1);
    if ((int64_t)p.Y * p.X > INT32_MAX || tiles * (p.columns / 16) > INT32_MAX) {
        hs_device_sticky(dev, HS_EINVAL, "conv: %d frames of %d x %d pixels and %d channels are more than a grid holds",
                         a->T, a->Y, a->X, p.cout);
        return;
    }
    if (dev->act == HS_F32) {
        p.tiles_n = p.columns / COLUMNS_F32;
        conv_f32_kernel<<<(unsigned)(tiles * p.tiles_n), THREADS, 0, hs_cuda_of(dev)->stream>>>(p);
    } else if (dev->act == HS_BF16)
        launch_typed<__nv_bfloat16>(dev, p, (unsigned)tiles);
    else
        launch_typed<__half>(dev, p, (unsigned)tiles);
    HS_CUDA_LAUNCHED(dev, "conv");
}
