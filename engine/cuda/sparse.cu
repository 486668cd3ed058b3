/* The smaller predictors of masks: scores of centroids, selection, means of blocks, decisions of reuse. spec haste.md
 * 1.3, 3, 4.2. Scores of XAttention are in block_scores.cu, k-means is in cluster.cu.
 *
 * `want` is read where the work is done, so that nothing waits for a decision; heads that reuse cost an empty block.
 * Sums have a fixed order: two runs agree to the bit.
 */
#include "cuda/tile.cuh"

enum {
    SELECT_THREADS = 128,
    SELECT_LANE = 40,     /* columns of a lane: rows of up to 1280 columns are in the registers of a warp */
    SELECT_SHARED = 4000, /* columns of a row that 48 KiB of shared memory have room for; longer rows are read again */
    REUSE_HEADS = 32,     /* warps of the one block that decides */
};

/* ---- centroids -------------------------------------------------------------------------------------------------- */
struct centroids {
    const float *q, *k;   /* [heads, rows, dim], [heads, cols, dim] */
    const int32_t *start; /* [heads, cols + 1] or NULL */
    const uint8_t *want;
    float *scores; /* [heads, rows, cols] */
    int64_t len;
    int rows, cols, dim, block, compat, row_tiles, col_tiles;
    float scale;
};

/* Logits, where the scores will be. */
static __global__ void __launch_bounds__(fma_tile::THREADS) centroid_logits(centroids s) {
    __shared__ __align__(16) float shared[FMA_SHARED / 4];
    const int64_t tiles = (int64_t)s.row_tiles * s.col_tiles, head = blockIdx.x / tiles;
    const int row0 = (int)(blockIdx.x % tiles) / s.col_tiles * TILE,
              col0 = (int)(blockIdx.x % tiles) % s.col_tiles * TILE;
    if (!s.want[head]) return;
    const float *q = s.q + head * s.rows * s.dim, *k = s.k + head * s.cols * s.dim;
    fma_tile c;
    c.clear();
    c.multiply(
        s.dim, [&](int r, int d) { return row0 + r < s.rows ? q[(int64_t)(row0 + r) * s.dim + d] : 0; },
        [&](int r, int d) { return col0 + r < s.cols ? k[(int64_t)(col0 + r) * s.dim + d] : 0; }, shared);
    for (int i = 0; i < fma_tile::ROWS; i++)
        for (int j = 0; j < fma_tile::COLS; j++) {
            const int64_t r = row0 + fma_tile::row(i), col = col0 + fma_tile::col(j);
            if (r < s.rows && col < s.cols) s.scores[(head * s.rows + r) * s.cols + col] = c.at(i, j) * s.scale;
        }
}

static __device__ __forceinline__ float column_size(const centroids &s, int64_t head, int c) {
    if (!s.start) return (float)(s.len - (int64_t)c * s.block < s.block ? s.len - (int64_t)c * s.block : s.block);
    const int32_t *start = s.start + head * (s.cols + 1);
    return (float)(start[c + 1] - start[c]);
}

/* One row; the size of a column weighs after the exponential, so that an empty one may set the maximum, as published
 * (compat), or be left out. */
static __global__ void __launch_bounds__(256) centroid_softmax(centroids s) {
    __shared__ float partial[8];
    const int64_t head = blockIdx.x / s.rows;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (!s.want[head]) return;
    float *row = s.scores + (int64_t)blockIdx.x * s.cols, max = -INFINITY, sum = 0;
    for (int c = threadIdx.x; c < s.cols; c += 256)
        if (s.compat || column_size(s, head, c) > 0) max = fmaxf(max, row[c]);
    max = warp_max(max);
    if (lane == 0) partial[warp] = max;
    __syncthreads();
    for (int w = 0; w < 8; w++) max = fmaxf(max, partial[w]);
    __syncthreads();
    for (int c = threadIdx.x; c < s.cols; c += 256) {
        const float n = column_size(s, head, c);
        row[c] = n > 0 ? n * expf(row[c] - max) : 0;
        sum += row[c];
    }
    sum = warp_sum(sum);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < 8; w++) sum += partial[w];
    if (s.compat) sum = fmaxf(sum, 1e-12f); /* reached where an empty column sets the maximum */
    for (int c = threadIdx.x; c < s.cols; c += 256) row[c] /= sum;
}

void hs_cuda_centroid_scores(hs_device *dev, const hs_centroid_scores *a) {
    centroids s = {};
    s.q = (const float *)a->cq.p;
    s.k = (const float *)a->ck.p;
    s.start = (const int32_t *)a->start.p;
    s.want = (const uint8_t *)a->want.p;
    s.scores = (float *)a->scores.p;
    s.len = a->len;
    s.rows = a->rows;
    s.cols = a->cols;
    s.dim = a->head_dim;
    s.block = a->block;
    s.compat = a->compat;
    s.scale = a->scale;
    s.row_tiles = (a->rows + TILE - 1) / TILE;
    s.col_tiles = (a->cols + TILE - 1) / TILE;
    const cudaStream_t stream = hs_cuda_of(dev)->stream;
    centroid_logits<<<(unsigned)(a->heads * s.row_tiles * s.col_tiles), fma_tile::THREADS, 0, stream>>>(s);
    if (!HS_CUDA_LAUNCHED(dev, "centroid scores")) return;
    centroid_softmax<<<(unsigned)(a->heads * a->rows), 256, 0, stream>>>(s);
    HS_CUDA_LAUNCHED(dev, "centroid scores, softmax");
}

/* ---- selection --------------------------------------------------------------------------------------------------
 * What hs_mask_select finds with a heap, without an order: scores are not negative, so their bits are ordered as they
 * are. Bisection finds the smallest bits of which it holds that all larger scores together are not enough; those are
 * kept, and of the scores that equal these bits the first ones, added up one by one. */
struct selection {
    const float *scores; /* [heads, rows, all] */
    const float *top_p;
    const uint8_t *want;
    uint32_t *bits; /* [heads, rows, words] */
    uint8_t *dense;
    int rows, all, cols, words, least, rule;
};

/* Does a selection of `count` columns of mass `kept` go on to a column of this score? */
static __device__ __forceinline__ int goes_on(const selection &s, int count, double kept, double sum, float p,
                                              float score) {
    if (count < s.least) return 1;
    if (s.rule & HS_SELECT_BLOCK0) return score > 0 && kept < p * sum;
    if (s.rule & HS_SELECT_UPTO) return kept <= p;
    return p >= 1 || kept < p * sum;
}

/* How many of `equal` columns of the same score follow `count` columns of mass `kept`. */
static __device__ int take_equal(const selection &s, int count, double kept, double sum, float p, float score,
                                 int equal) {
    int taken = 0;
    if (!(score > 0)) { /* the mass stays what it is */
        const int more = s.least - count > 0 ? s.least - count : 0;
        return goes_on(s, s.least, kept, sum, p, score) ? equal : more < equal ? more : equal;
    }
    while (taken < equal && goes_on(s, count + taken, kept, sum, p, score)) {
        kept += score;
        taken++;
    }
    return taken;
}

/* Kept are all scores above `bits` and the first `taken` of those that equal them. */
struct cut {
    int bits, taken;
};
/* mass(bits, &mass, &count): of the scores above bits, the same in all threads that share the row. */
template <typename M> static __device__ __forceinline__ cut find_cut(const selection &s, float p, M mass) {
    double sum, kept, unused;
    int positive, count, above;
    mass(0, &sum, &positive);
    /* The answer lies in (low, high]: above high a selection goes on, above low it does not. Scores of zero are the
     * answer where not even all others are enough. */
    int low = -1, high = 0;
    if (!goes_on(s, positive, sum, sum, p, 1)) {
        low = 0;
        high = 0x7f800000; /* infinity: nothing is above it */
    }
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        mass(middle, &kept, &count);
        if (goes_on(s, count, kept, sum, p, 1))
            high = middle;
        else
            low = middle;
    }
    mass(high, &kept, &count);
    mass(high - 1, &unused, &above);
    return {high, take_equal(s, count, kept, sum, p, __int_as_float(high), above - count)};
}

/* A warp writes the words of a row; the columns of equal score come first to last. score_of(w): the bits of this lane's
 * column of word w. WORDS: the most there can be, known to the compiler, or 0. */
template <int WORDS, typename G>
static __device__ __forceinline__ void write_words(const selection &s, int64_t row, const cut &at, G score_of) {
    const int lane = threadIdx.x % 32;
    int before = 0;
    auto write = [&](int w) {
        const bool there = w * 32 + lane < s.cols;
        const int score = score_of(w);
        const uint32_t same = __ballot_sync(~0u, there && score == at.bits);
        const int place = before + __popc(same & ((1u << lane) - 1));
        uint32_t word = __ballot_sync(~0u, there && (score > at.bits || (score == at.bits && place < at.taken)));
        if (w == 0 && s.rule & HS_SELECT_BLOCK0) word |= 1;
        if (lane == 0) s.bits[row * s.words + w] = word;
        before += __popc(same);
    };
    if constexpr (WORDS) {
#pragma unroll
        for (int w = 0; w < WORDS; w++)
            if (w < s.words) write(w);
    } else {
        for (int w = 0; w < s.words; w++) write(w);
    }
    if (lane == 0 && row % s.rows == 0) s.dense[row / s.rows] = s.top_p[row / s.rows] >= 1 && !s.rule;
}

/* A warp per row, which stays in its registers: as floats to compare and as doubles to add up. */
template <int N>
static __global__ void __launch_bounds__(SELECT_THREADS) select_in_registers(selection s, int64_t all) {
    const int64_t row = (int64_t)blockIdx.x * (SELECT_THREADS / 32) + threadIdx.x / 32;
    if (row >= all || !s.want[row / s.rows]) return;
    const int lane = threadIdx.x % 32;
    int bits[N];
    double wide[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int c = n * 32 + lane;
        const float x = c < s.all ? s.scores[row * s.all + c] : -1; /* below every score */
        bits[n] = __float_as_int(x);
        wide[n] = x;
    }
    const cut at = find_cut(s, s.top_p[row / s.rows], [&](int above, double *ret_mass, int *ret_count) {
        double mass[2] = {0, 0};
        int count = 0;
#pragma unroll
        for (int n = 0; n < N; n++)
            if (bits[n] > above) {
                mass[n % 2] += wide[n];
                count++;
            }
        *ret_mass = warp_sum(mass[0] + mass[1]);
        *ret_count = __reduce_add_sync(~0u, count);
    });
    write_words<N>(s, row, at, [&](int w) { return bits[w]; });
}

/* A block per row of any length: in shared memory, as floats and as doubles, because every conversion costs as much as
 * eight comparisons; or read again and again. */
static __global__ void __launch_bounds__(SELECT_THREADS) select_row(selection s) {
    extern __shared__ double shared[]; /* [all] doubles, then floats */
    __shared__ double masses[SELECT_THREADS / 32];
    __shared__ int counts[SELECT_THREADS / 32];
    const int64_t row = blockIdx.x, head = row / s.rows;
    if (!s.want[head]) return;
    const float *x = s.scores + row * s.all;
    double *wide = s.all <= SELECT_SHARED ? shared : nullptr;
    if (wide) {
        float *floats = (float *)(wide + s.all);
        for (int c = threadIdx.x; c < s.all; c += SELECT_THREADS) wide[c] = floats[c] = x[c];
        x = floats;
        __syncthreads();
    }
    const cut at = find_cut(s, s.top_p[head], [&](int above, double *ret_mass, int *ret_count) {
        double mass = 0;
        int count = 0;
        for (int c = threadIdx.x; c < s.all; c += SELECT_THREADS)
            if (__float_as_int(x[c]) > above) {
                mass += wide ? wide[c] : x[c];
                count++;
            }
        mass = warp_sum(mass);
        count = warp_sum(count);
        __syncthreads(); /* those of the call before have been read */
        if (threadIdx.x % 32 == 0) {
            masses[threadIdx.x / 32] = mass;
            counts[threadIdx.x / 32] = count;
        }
        __syncthreads();
        *ret_mass = 0;
        *ret_count = 0;
        for (int w = 0; w < SELECT_THREADS / 32; w++) {
            *ret_mass += masses[w];
            *ret_count += counts[w];
        }
    });
    if (threadIdx.x < 32)
        write_words<0>(s, row, at, [&](int w) {
            const int c = w * 32 + (int)threadIdx.x;
            return c < s.cols ? __float_as_int(x[c]) : -1;
        });
}

void hs_cuda_select(hs_device *dev, const hs_select *a) {
    const hs_mask *m = a->mask;
    selection s = {};
    s.scores = (const float *)a->scores.p;
    s.top_p = (const float *)a->top_p.p;
    s.want = (const uint8_t *)a->want.p;
    s.bits = (uint32_t *)m->bits.p;
    s.dense = (uint8_t *)m->dense.p;
    s.rows = m->rows;
    s.all = a->cols;
    s.cols = m->cols;
    s.words = m->words;
    s.least = a->at_least > 1 ? a->at_least : 1;
    s.rule = a->rule;
    const cudaStream_t stream = hs_cuda_of(dev)->stream;
    const int64_t rows = (int64_t)m->heads * m->rows;
    const int lane = (s.all + 31) / 32; /* columns of a lane */
    void (*kernel)(selection, int64_t) = lane <= 8    ? select_in_registers<8>
                                         : lane <= 16 ? select_in_registers<16>
                                         : lane <= 20 ? select_in_registers<20>
                                         : lane <= 32 ? select_in_registers<32>
                                                      : select_in_registers<SELECT_LANE>;
    if (lane <= SELECT_LANE) {
        const int each = SELECT_THREADS / 32;
        kernel<<<(unsigned)((rows + each - 1) / each), SELECT_THREADS, 0, stream>>>(s, rows);
    } else {
        const size_t shared = s.all <= SELECT_SHARED ? (size_t)s.all * (sizeof(double) + sizeof(float)) : 0;
        select_row<<<(unsigned)rows, SELECT_THREADS, shared, stream>>>(s);
    }
    HS_CUDA_LAUNCHED(dev, "select");
}

/* A mask and where its densities go. */
typedef struct counted {
    const uint32_t *bits;
    const uint8_t *dense, *want;
    const int32_t *q_start, *k_start; /* NULL for blocks */
    float *density;
    int64_t len_q, len_k;
    int rows, cols, words, block;
} counted;

/* A block per head, a thread per row. Whole numbers: it does not matter in which order rows are added. */
static __global__ void __launch_bounds__(SELECT_THREADS) count_pairs(counted m) {
    __shared__ unsigned long long pairs;
    const int64_t head = blockIdx.x;
    if (!m.want[head]) return;
    if (threadIdx.x == 0) pairs = 0;
    __syncthreads();
    for (int r = (int)threadIdx.x; r < m.rows && !m.dense[head]; r += SELECT_THREADS) {
        const uint32_t *row = m.bits + (head * m.rows + r) * m.words;
        const int32_t *q = m.block ? nullptr : m.q_start + head * (m.rows + 1) + r;
        const int32_t *k = m.block ? nullptr : m.k_start + head * (m.cols + 1);
        int64_t keys = 0;
        for (int w = 0; w < m.words; w++) {
            uint32_t word = row[w];
            if (m.block)
                keys += (int64_t)__popc(word) * m.block;
            else
                for (; word; word &= word - 1) {
                    const int c = w * 32 + __ffs((int)word) - 1;
                    keys += k[c + 1] - k[c];
                }
        }
        if (m.block && row[m.words - 1] >> ((m.cols - 1) % 32) & 1) keys -= (int64_t)m.cols * m.block - m.len_k;
        const int64_t left = m.len_q - (int64_t)r * m.block, tokens = !m.block         ? q[1] - q[0]
                                                                      : left < m.block ? left
                                                                                       : m.block;
        atomicAdd(&pairs, (unsigned long long)(keys * tokens));
    }
    __syncthreads();
    if (threadIdx.x == 0)
        m.density[head] = m.dense[head] ? 1 : (float)((double)pairs / ((double)m.len_q * (double)m.len_k));
}

void hs_cuda_mask_density(hs_device *dev, const hs_mask *mask, hs_buf want, hs_buf density) {
    counted m = {};
    m.bits = (const uint32_t *)mask->bits.p;
    m.dense = (const uint8_t *)mask->dense.p;
    m.want = (const uint8_t *)want.p;
    m.q_start = (const int32_t *)mask->q_start.p;
    m.k_start = (const int32_t *)mask->k_start.p;
    m.density = (float *)density.p;
    m.len_q = mask->len_q;
    m.len_k = mask->len_k;
    m.rows = mask->rows;
    m.cols = mask->cols;
    m.words = mask->words;
    m.block = mask->block;
    count_pairs<<<(unsigned)mask->heads, SELECT_THREADS, 0, hs_cuda_of(dev)->stream>>>(m);
    HS_CUDA_LAUNCHED(dev, "mask_density");
}

/* ---- means ------------------------------------------------------------------------------------------------------ */
template <typename T>
static __global__ void __launch_bounds__(128) mean_of_block(const T *x, int64_t len, int64_t ld, int dim, int block,
                                                            int64_t blocks, const uint8_t *want, float *y) {
    const int64_t head = blockIdx.x / blocks, b = blockIdx.x % blocks, first = b * block;
    if (!want[head]) return;
    const int count = (int)(len - first < block ? len - first : block);
    for (int d = threadIdx.x; d < dim; d += 128) {
        const T *v = x + first * ld + head * dim + d;
        double sum = 0;
#pragma unroll 8
        for (int i = 0; i < count; i++) sum += to_f32(v[i * ld]);
        y[(int64_t)blockIdx.x * dim + d] = (float)(sum / count);
    }
}

void hs_cuda_block_means(hs_device *dev, hs_buf x, int64_t len, int64_t ld, int heads, int head_dim, int block,
                         hs_buf want, hs_buf y) {
    const int64_t blocks = (len + block - 1) / block;
    hs_cuda_typed(x.type, [&](auto *t) {
        using T = std::decay_t<decltype(*t)>;
        mean_of_block<T><<<(unsigned)(heads * blocks), 128, 0, hs_cuda_of(dev)->stream>>>(
            (const T *)x.p, len, ld, head_dim, block, blocks, (const uint8_t *)want.p, (float *)y.p);
    });
    HS_CUDA_LAUNCHED(dev, "block means");
}

/* ---- reuse ------------------------------------------------------------------------------------------------------
 * hs_reuse_decide in one block: a warp per head, and in between the count that the gate looks at. */
struct reuse {
    hs_reuse_policy policy;
    int heads, dim;
    const float *mean_q, *mean_k;
    float *anchor_q, *anchor_k;
    int32_t *age;
    uint8_t *want;
    float *drift;
};

static __device__ int wants(const hs_reuse_policy &p, int age, double drift, double norm) {
    switch (p.kind) {
    case HS_REUSE_DRIFT: return drift > p.delta;
    case HS_REUSE_RELATIVE: return drift > p.delta * norm;
    case HS_REUSE_INTERVAL:
    case HS_REUSE_STAGGER: return age + 1 >= p.interval;
    case HS_REUSE_FREEZE: return 0;
    default: return 1;
    }
}

static __global__ void __launch_bounds__(REUSE_HEADS * 32) decide(reuse r) {
    __shared__ int wanting;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) wanting = 0;
    __syncthreads();
    for (int h = threadIdx.x / 32; h < r.heads; h += REUSE_HEADS) {
        const int64_t at = (int64_t)h * r.dim;
        double drift[2] = {0, 0}, norm[2] = {0, 0}; /* of queries, of keys */
        for (int i = lane; i < r.dim; i += 32) {
            drift[0] += fabs((double)r.anchor_q[at + i] - r.mean_q[at + i]);
            drift[1] += fabs((double)r.anchor_k[at + i] - r.mean_k[at + i]);
            norm[0] += fabs((double)r.anchor_q[at + i]);
            norm[1] += fabs((double)r.anchor_k[at + i]);
        }
        const double d = warp_sum(drift[0] + drift[1]), n = warp_sum(norm[0] + norm[1]);
        if (lane > 0) continue;
        const int age = r.age[h], want = age < 0 ? 2 : wants(r.policy, age, d, n);
        r.want[h] = (uint8_t)want;
        r.drift[h] = age < 0 ? 0 : (float)d;
        if (want) atomicAdd(&wanting, 1);
    }
    __syncthreads();
    const int none = wanting<r.policy.gate_low *(float)r.heads, all = wanting> r.policy.gate_high * (float)r.heads;
    for (int h = threadIdx.x / 32; h < r.heads; h += REUSE_HEADS) {
        const int64_t at = (int64_t)h * r.dim;
        int want = r.want[h];
        if (none && want < 2) want = 0; /* a head without a mask cannot reuse one */
        if (all && want < 1) want = 1;
        __syncwarp();
        if (lane == 0) {
            r.want[h] = (uint8_t)want;
            const int age = r.age[h], turn = r.policy.kind == HS_REUSE_STAGGER && age >= 0;
            r.age[h] = !want ? age + 1 : turn ? 0 : r.policy.begin_age;
        }
        for (int i = lane; i < r.dim && want; i += 32) {
            r.anchor_q[at + i] = r.mean_q[at + i];
            r.anchor_k[at + i] = r.mean_k[at + i];
        }
    }
}

void hs_cuda_reuse(hs_device *dev, const hs_reuse *a) {
    const reuse r = {a->policy,
                     a->heads,
                     a->dim,
                     (const float *)a->mean_q.p,
                     (const float *)a->mean_k.p,
                     (float *)a->anchor_q.p,
                     (float *)a->anchor_k.p,
                     (int32_t *)a->age.p,
                     (uint8_t *)a->want.p,
                     (float *)a->drift.p};
    decide<<<1, REUSE_HEADS * 32, 0, hs_cuda_of(dev)->stream>>>(r);
    HS_CUDA_LAUNCHED(dev, "reuse");
}
