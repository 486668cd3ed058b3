/* Attention on Hopper (sm_90a): 16-bit operands, head size 128; dense attention and masks are one kernel.
 *
 * A block of threads stays on its processor and takes tiles of query rows until none are left. One warpgroup is the
 * producer: it follows a tile's keys and brings them, STAGES steps ahead, by TMA or, where keys are scattered
 * (clusters), from a copy in which they are not. The others are consumers of 64 rows each: logits, softmax and output
 * stay in their registers. A consumer issues the logits of step j before the values of step j - 1, so that softmax runs
 * beside products; two consumers take turns at issuing, so that one's softmax runs beside the other's products. spec
 * kernels.md 3.
 *
 * What the two sides tell each other goes through barriers in shared memory: `full` ends a phase when a stage is there,
 * `empty` when all consumers are done with it. Queries and the description of a tile have two places, so that the next
 * tile is under way while this one ends, and the output goes through the place of the queries. With 64 keys a step,
 * products that read both operands from shared memory would ask for all of its bandwidth, and copies come on top: there
 * a consumer takes its queries to registers and frees their place at once. So it does where keys are gathered, which
 * leaves room for a third stage.
 *
 * Dense attention runs in pairs: two blocks of a cluster take neighbouring tiles, and each brings half of every stage
 * to both. `empty` then waits for the consumers of both.
 *
 * Clusters of tokens are of any size. Two consumers share the keys of a tile of up to 128 queries by rows; a tile that
 * has 64 or fewer they share by keys, every other step to one of them, and what they found is joined at its end.
 */
#ifndef HS_ATTN_HOPPER_CUH
#define HS_ATTN_HOPPER_CUH
#include "cuda/attn_ptx.cuh"
#include "cuda/attn_walk.cuh"
#include "cuda/hopper.cuh"
#include "cuda/warp.cuh"

enum { HOPPER_DIM = 128, HOPPER_ROW = 128 /* bytes of a row of a tile in shared memory: 64 values */ };

/* CONSUMERS: warpgroups of 64 query rows; KEYS: of a step, at most 128; BLOCKS: on a processor at a time; GATHER:
 * queries and keys are wherever an order says; TILES: places for queries and descriptions; STAGES: of keys and of
 * values; registers of a thread of either kind; PAIR: 2 for blocks that share all keys. */
template <typename T_, int CONSUMERS_, int KEYS_, int BLOCKS_, bool GATHER_, int TILES_, int STAGES_,
          int PRODUCER_REGS_, int CONSUMER_REGS_, int PAIR_ = 1>
struct hopper_shape {
    typedef T_ T;
    enum {
        CONSUMERS = CONSUMERS_,
        KEYS = KEYS_,
        BLOCKS = BLOCKS_,
        GATHER = GATHER_,
        TILES = TILES_,
        STAGES = STAGES_,
        PRODUCER_REGS = PRODUCER_REGS_,
        CONSUMER_REGS = CONSUMER_REGS_,
        PAIR = PAIR_,
        ROWS = 64 * CONSUMERS,
        THREADS = 128 * (CONSUMERS + 1),
        HELD = KEYS < 128 || GATHER, /* queries in registers */
        Q_BYTES = ROWS * HOPPER_DIM * 2,
        KV_BYTES = KEYS * HOPPER_DIM * 2
    };
};

/* What a consumer needs to know of a tile. */
typedef struct hopper_tile {
    int head, first, count; /* query places */
    int steps;              /* 0: no keys; -1: no more tiles */
    int valid;              /* keys in the last step */
    int bonus;              /* the last of them is the last key of all */
    int row;                /* of the mask; -1: everything in natural order */
    int number;             /* of the tile, its place in hopper_call.lost */
} hopper_tile;

/* Shared memory behind the tiles. */
template <typename S> struct hopper_room {
    uint64_t q_full[S::TILES], q_empty[S::TILES], k_full[S::STAGES], k_empty[S::STAGES], v_full[S::STAGES],
        v_empty[S::STAGES];
    hopper_tile tile[S::TILES];
    uint64_t gaps[S::STAGES]; /* gathered: four bits per granule, how many of its last rows are no keys */
    int query[S::TILES][S::GATHER ? S::ROWS : 1];
    float joined[4][S::GATHER ? 128 : 1]; /* references and sums of the second consumer */
};

template <typename S> static inline size_t hopper_bytes() {
    return S::TILES * S::Q_BYTES + 2 * S::STAGES * S::KV_BYTES + sizeof(hopper_room<S>);
}

/* Who takes which tile when. Heads with most to do come first, and so do the longest tiles of a head: what runs at a
 * time reads the keys of one head, and nobody is left with a long tile at the end. */
typedef struct hopper_plan {
    int *next; /* a counter of what was taken, 0 at the start */
    int *done; /* a counter of heads, 0 at the start */
    int *keys; /* [heads, rows] kept by a row of the mask, gathered ones in whole granules; NULL: there is no plan,
                * tiles come by their number */
    int *tile_order;          /* [heads, tiles] */
    int *head_order;          /* [heads] */
    unsigned long long *load; /* [heads] sum of the tiles' keys */
} hopper_plan;

/* Keys and values in the order of the mask's columns, as shared memory wants them: granules of 8 rows, [2][8][64]
 * values in the swizzle; a column begins with a granule of its own, and rows behind its end are zeros. A head that is
 * dense is copied in natural order. */
enum { GRANULE = 8, GRANULE_BYTES = GRANULE * HOPPER_DIM * 2 };
typedef struct hopper_copies {
    char *k, *v;       /* [heads, granules] */
    const char *zeros; /* as many as a step has */
    int *first;        /* [heads, cols + 1] granule of a column */
    int granules;      /* room of a head */
} hopper_copies;

typedef struct hopper_call {
    attn_call a;
    CUtensorMap q, k, v;
    hopper_copies copies;
    hopper_plan plan;
    int total;           /* numbers of tiles */
    float limit;         /* of the exponentials that a lane sums up in a step */
    unsigned char *lost; /* [total] 1: this tile is to be computed again */
    int *any;            /* 1: there are such tiles */
    int careful;         /* only they, with a maximum in every step */
} hopper_call;

/* ---- places in shared memory ------------------------------------------------------------------------------------ */

template <typename S> struct hopper_places {
    unsigned q, k, v;       /* tiles: queries [TILES], keys [STAGES], values [STAGES] */
    unsigned char *queries; /* where q is */
    hopper_room<S> *room;

    __device__ __forceinline__ explicit hopper_places(unsigned char *raw) {
        q = shared_address(raw);
        k = q + S::TILES * S::Q_BYTES;
        v = k + S::STAGES * S::KV_BYTES;
        queries = raw;
        room = (hopper_room<S> *)(void *)(raw + S::TILES * S::Q_BYTES + 2 * S::STAGES * S::KV_BYTES);
    }
    __device__ __forceinline__ unsigned bar(const uint64_t *b) const { return shared_address(b); }
};

/* A place in a ring of N and the parity of its phase; step by step. */
template <int N> struct hopper_ring {
    unsigned at = 0, phase = 0;
    __device__ __forceinline__ void step() {
        at++;
        if (at == N) at = 0, phase ^= 1;
    }
};

/* ---- tiles ------------------------------------------------------------------------------------------------------ */

/* Number of the tile that is taken as the nth one. */
__device__ __forceinline__ int hopper_number(const hopper_call &c, int nth) {
    if (!c.plan.keys) return nth;
    const int first = c.plan.head_order[nth / c.a.tiles] * c.a.tiles;
    return first + c.plan.tile_order[first + nth % c.a.tiles];
}

/* Tiles that this launch looks for: from 0 to here, of those the ones that are wanted. */
__device__ __forceinline__ int hopper_total(const hopper_call &c) {
    return c.careful && !*c.any ? 0 : c.total;
}
__device__ __forceinline__ bool hopper_wanted(const hopper_call &c, int number) {
    return !c.careful || c.lost[number];
}

/* Row of the mask that a tile belongs to; -1: none. */
__device__ __forceinline__ int hopper_row(const attn_call &a, const attn_tile &t) {
    return t.bits ? (int)((t.bits - a.bits) / a.words - (int64_t)t.head * a.rows) : -1;
}

/* Describes tile `number`; 0: there is nothing under it. */
template <typename S>
__device__ __forceinline__ int hopper_tile_at(const hopper_call &c, int number, attn_tile *ret_place,
                                              hopper_tile *ret) {
    if (!attn_tile_at(c.a, S::ROWS, number, ret_place)) return 0;
    const attn_tile &t = *ret_place;
    ret->row = hopper_row(c.a, t);
    const int keys = t.bits ? c.plan.keys[t.head * c.a.rows + ret->row] : c.a.len_k;
    ret->head = t.head, ret->first = t.first, ret->count = t.count, ret->number = number;
    ret->steps = (keys + S::KEYS - 1) / S::KEYS;
    ret->valid = keys - (ret->steps - 1) * S::KEYS;
    ret->bonus = !t.bits || t.bits[(c.a.cols - 1) / 32] >> ((c.a.cols - 1) % 32) & 1;
    return 1;
}

#include "cuda/attn_hopper_keys.cuh"
#include "cuda/attn_hopper_softmax.cuh"

/* ---- consumers -------------------------------------------------------------------------------------------------- */

/* A consumer's 64 queries as left operands, a step of 16 columns each. tile: of queries in shared memory; row: the
 * first of this lane's two. */
template <typename S>
__device__ __forceinline__ void take_queries(const unsigned char *tile, int row, unsigned (&q)[HOPPER_DIM / 16][4]) {
#pragma unroll
    for (int d = 0; d < HOPPER_DIM / 16; d++)
#pragma unroll
        for (int n = 0; n < 4; n++)
            q[d][n] =
                *(const unsigned *)(const void *)(tile + d / 4 * S::ROWS * HOPPER_ROW + (row + n % 2 * 8) * HOPPER_ROW +
                                                  ((d % 4 * 2 + n / 2) ^ (row % 8)) * 16 + threadIdx.x % 4 * 4);
}

/* What the second consumer found in its keys joins what the first one found in its own, for the same queries; by both.
 * The output goes through the place of the queries, which all have taken by then. */
template <typename S>
__device__ __forceinline__ void join(hopper_room<S> *room, unsigned char *queries, int group, float (&out)[64],
                                     hopper_rows &r) {
    const int thread = (int)threadIdx.x % 128;
    float *const output = (float *)(void *)queries + thread;
    named_sync<3>(256);
    if (group == 1) {
#pragma unroll
        for (int i = 0; i < 64; i++) output[i * 128] = out[i];
#pragma unroll
        for (int i = 0; i < 2; i++) room->joined[i][thread] = r.from[i], room->joined[2 + i][thread] = r.sum[i];
    }
    named_sync<3>(256);
    if (group == 1) return;
    float here[2], there[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float other = room->joined[i][thread], from = fmaxf(r.from[i], other);
        here[i] = exp2_fast(r.from[i] - from);
        there[i] = exp2_fast(other - from);
        r.sum[i] = r.sum[i] * here[i] + room->joined[2 + i][thread] * there[i];
    }
#pragma unroll
    for (int i = 0; i < 64; i++) out[i] = out[i] * here[i / 2 % 2] + output[i * 128] * there[i / 2 % 2];
}

/* Word n of each of a row's four lanes becomes four words of lane n. */
__device__ __forceinline__ uint4 turn_words(const unsigned (&w)[4]) {
    const bool high = threadIdx.x & 2, odd = threadIdx.x & 1;
    const unsigned a = __shfl_xor_sync(~0u, high ? w[0] : w[2], 2), b = __shfl_xor_sync(~0u, high ? w[1] : w[3], 2);
    const unsigned of_low[2] = {high ? a : w[0], high ? b : w[1]}, of_high[2] = {high ? w[2] : a, high ? w[3] : b};
    const unsigned low = __shfl_xor_sync(~0u, odd ? of_low[0] : of_low[1], 1),
                   up = __shfl_xor_sync(~0u, odd ? of_high[0] : of_high[1], 1);
    return odd ? make_uint4(low, of_low[1], up, of_high[1]) : make_uint4(of_low[0], low, of_high[0], up);
}

template <typename S> __device__ __forceinline__ void consume(const hopper_call &c, const hopper_places<S> &at) {
    typedef typename S::T T;
    constexpr int KEYS = S::KEYS;
    /* Bytes between the halves of 64 columns of keys and values, and between groups of eight of their rows. */
    constexpr unsigned HALF = S::GATHER ? GRANULE_BYTES / 2 : KEYS * HOPPER_ROW,
                       EIGHT = S::GATHER ? GRANULE_BYTES : 8 * HOPPER_ROW;
    hopper_room<S> *const room = at.room;
    const int warp = (int)__shfl_sync(~0u, threadIdx.x / 32, 0), lane = (int)threadIdx.x % 32;
    const int group = warp / 4 - 1;
    const float unit = c.a.unit, bonus = c.a.last_key_bonus;
    hopper_ring<S::TILES> tile_ring;
    hopper_ring<S::STAGES> k, v; /* the next keys and values to be used */
    float out[64];

    auto release = [&](uint64_t *empty) { /* all warps of all consumers have to */
                                          if (lane == 0) barrier_arrive(at.bar(empty));
                                          if (S::PAIR == 2 && lane == 0)
                                              barrier_arrive_at(at.bar(empty), cluster_rank() ^ 1);
    };
    auto await = [&](uint64_t *full, const hopper_ring<S::STAGES> &ring) {
        barrier_wait(at.bar(full + ring.at), ring.phase);
    };
    /* a step of the other consumer's */
    auto pass = [&](uint64_t *full, uint64_t *empty, hopper_ring<S::STAGES> &ring) {
        await(full, ring);
        release(empty + ring.at);
        ring.step();
    };
    auto turn_begin = [&](bool turns) {
        if (S::CONSUMERS == 2 && turns) {
            if (group == 0)
                named_sync<1>(256);
            else
                named_sync<2>(256);
        }
    };
    auto turn_end = [&](bool turns) {
        if (S::CONSUMERS == 2 && turns) {
            if (group == 0)
                named_arrive<2>(256);
            else
                named_arrive<1>(256);
        }
    };
    if (S::CONSUMERS == 2 && group == 1) named_arrive<1>(256); /* the first turn is the first consumer's */

    for (;; tile_ring.step()) {
        const unsigned slot = tile_ring.at;
        barrier_wait(at.bar(&room->q_full[slot]), tile_ring.phase);
        const hopper_tile t = room->tile[slot];
        if (t.steps < 0) break;
        const bool by_keys = S::GATHER && t.count <= 64;
        const int first = by_keys ? group : 0, stride = by_keys ? 2 : 1; /* steps of this consumer */
        const int row0 = (by_keys ? 0 : group * 64) + warp % 4 * 16;     /* of this warp's 16 rows in the tile */
        const unsigned q = at.q + slot * S::Q_BYTES + group * 64 * HOPPER_ROW;
        unsigned char *const queries = at.queries + slot * S::Q_BYTES;
        unsigned held[S::HELD ? HOPPER_DIM / 16 : 1][4];
        int token[2];
        hopper_rows r = {{-INFINITY, -INFINITY}, {0, 0}};
        if constexpr (S::HELD) {
            take_queries<S>(queries, row0 + lane / 4, held);
            for (int i = 0; i < 2; i++) {
                const int row = row0 + lane / 4 + 8 * i;
                token[i] = row >= t.count ? -1 : S::GATHER ? room->query[slot][row] : t.first + row;
            }
            if (!by_keys) barrier_arrive(at.bar(&room->q_empty[slot]));
        }

        if (first == 1 && t.steps > 0) {
            pass(room->k_full, room->k_empty, k);
            pass(room->v_full, room->v_empty, v);
        }
        if (first < t.steps) {
            float s[KEYS / 2], shrink[2] = {1, 1};
            unsigned p[KEYS / 16][4];
            auto logits = [&] {
                const unsigned tile = at.k + k.at * S::KV_BYTES;
#pragma unroll
                for (int d = 0; d < HOPPER_DIM / 16; d++) {
                    const uint64_t keys = operand_by_rows(tile + d / 4 * HALF + d % 4 * 32, EIGHT);
                    if constexpr (S::HELD)
                        product_rs_rows<T>(s, held[d], keys, d > 0);
                    else
                        product_ss<T, KEYS>(s, operand_by_rows(q + d / 4 * S::ROWS * HOPPER_ROW + d % 4 * 32), keys,
                                            d > 0);
                }
            };
            auto values = [&](int add) {
                const unsigned tile = at.v + v.at * S::KV_BYTES;
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++)
                    product_rs<T>(out, p[i], operand_by_columns(tile + 2 * i * EIGHT, HALF, EIGHT), add | (i > 0));
            };
            auto round = [&] { /* exponentials become the left operand of the product with values */
#pragma unroll
                               for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
                                   for (int e = 0; e < 4; e++)
                                       p[i][e] = pack<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
            };

            /* Logits to exponentials; 1 if references moved: `shrink` says what becomes of what was summed up. */
            auto soften = [&](bool first_step) {
                bool moved = first_step || c.careful;
                float sum[2];
                if (moved) raise_references(s, r, shrink, unit);
#pragma unroll
                for (int i = 0; i < KEYS / 2; i++) s[i] = exp2_fast(fmaf(s[i], unit, -r.from[i / 2 % 2]));
                sums_of(s, sum);
                if (__any_sync(~0u, !(fmaxf(sum[0], sum[1]) <= c.limit))) {
                    if (!moved) shrink[0] = shrink[1] = 1;
                    if (shrink_exponentials(s, r, shrink)) *c.any = c.lost[t.number] = 1;
                    sums_of(s, sum);
                    moved = true;
                }
                r.sum[0] += sum[0];
                r.sum[1] += sum[1];
                return moved;
            };
            /* read by the lane that says it is done with the stage */
            auto step_gaps = [&]() -> uint64_t {
                if (!S::GATHER) return 0;
                return __shfl_sync(~0u, lane == 0 ? room->gaps[k.at] : 0, 0);
            };

            await(room->k_full, k);
            keep(s);
            products_begin();
            logits();
            products_commit();
            const uint64_t first_gaps = step_gaps();
            products_wait<0>();
            keep(s);
            if constexpr (S::GATHER) only_keys(s, first_gaps);
            release(room->k_empty + k.at);
            k.step();
            if (!S::GATHER && t.steps == 1) end_of_keys(s, t, bonus);
            soften(true);
            round();
#pragma unroll 1
            for (int j = first + stride; j < t.steps; j += stride) {
                if (by_keys) pass(room->k_full, room->k_empty, k);
                await(room->k_full, k);
                turn_begin(!by_keys);
                keep(s);
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
                keep(out);
                products_begin();
                logits();
                products_commit();
                await(room->v_full, v);
                products_begin();
                values(j > first + stride);
                products_commit();
                turn_end(!by_keys);
                const uint64_t gaps = step_gaps();
                products_wait<1>();
                keep(s);
                if constexpr (S::GATHER) only_keys(s, gaps);
                release(room->k_empty + k.at);
                k.step();
                if (!S::GATHER && j == t.steps - 1) end_of_keys(s, t, bonus);
                const bool moved = soften(false);
                products_wait<0>();
                keep(out);
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
                release(room->v_empty + v.at);
                v.step();
                if (by_keys) pass(room->v_full, room->v_empty, v);
                if (moved) {
#pragma unroll
                    for (int i = 0; i < 64; i++) out[i] *= shrink[i / 2 % 2];
                }
                round();
            }
            await(room->v_full, v);
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
            keep(out);
            products_begin();
            values(first + stride < t.steps);
            products_commit();
            products_wait<0>();
            keep(out);
            if constexpr (S::HELD) {
#pragma unroll
                for (int d = 0; d < HOPPER_DIM / 16; d++) keep(held[d]);
            }
            release(room->v_empty + v.at);
            v.step();
            if (by_keys && (t.steps - 1) % 2 != group) {
                pass(room->k_full, room->k_empty, k);
                pass(room->v_full, room->v_empty, v);
            }
        } else {
#pragma unroll
            for (int i = 0; i < 64; i++) out[i] = 0;
        }

        if (by_keys) {
            if (t.steps > 1) join(room, queries, group, out, r);
            barrier_arrive(at.bar(&room->q_empty[slot]));
            if (group == 1) continue;
        }
        float factor[2]; /* 1 / sum; 0: no keys */
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float total = r.sum[i] + __shfl_xor_sync(~0u, r.sum[i], 1);
            total += __shfl_xor_sync(~0u, total, 2);
            factor[i] = total != 0 ? 1 / total : 0;
        }
        if constexpr (S::HELD) { /* straight to memory, 64 bytes of a row at a time */
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 16; j += 4) {
                    unsigned words[4];
#pragma unroll
                    for (int n = 0; n < 4; n++)
                        words[n] =
                            pack<T>(out[4 * (j + n) + 2 * i] * factor[i], out[4 * (j + n) + 2 * i + 1] * factor[i]);
                    const uint4 piece = turn_words(words);
                    if (token[i] >= 0)
                        ((uint4 *)((T *)c.a.out + token[i] * c.a.ld_out + (int64_t)t.head * HOPPER_DIM))[j + lane % 4] =
                            piece;
                }
        } else { /* to this warp's rows of the place of the queries, from there in whole rows to memory */
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int row = row0 + lane / 4 + 8 * i;
#pragma unroll
                for (int j = 0; j < 16; j++)
                    *(unsigned *)(void *)(queries + j / 8 * S::ROWS * HOPPER_ROW + row * HOPPER_ROW +
                                          ((j % 8) ^ (row % 8)) * 16 + lane % 4 * 4) =
                        pack<T>(out[4 * j + 2 * i] * factor[i], out[4 * j + 2 * i + 1] * factor[i]);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int row = row0 + 2 * i + lane / 16, piece = lane % 16;
                if (row < t.count)
                    ((uint4 *)((T *)c.a.out + (t.first + row) * c.a.ld_out + (int64_t)t.head * HOPPER_DIM))[piece] =
                        *(const uint4 *)(const void *)(queries + piece / 8 * S::ROWS * HOPPER_ROW + row * HOPPER_ROW +
                                                       ((piece % 8) ^ (row % 8)) * 16);
            }
            fence_async(); /* the next queries come by TMA */
            barrier_arrive(at.bar(&room->q_empty[slot]));
        }
    }
}

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) attn_hopper(const __grid_constant__ hopper_call c) {
#if HS_HOPPER
    extern __shared__ __align__(1024) unsigned char raw[];
    const hopper_places<S> at(raw);
    hopper_room<S> *const room = at.room;
    if (threadIdx.x == 0) {
        const unsigned warps = 4 * S::CONSUMERS;
        for (int i = 0; i < S::TILES; i++) { /* gathered: a warp's copies and its word; two more warps read */
            barrier_init(at.bar(&room->q_full[i]), S::GATHER ? 33 : 1);
            barrier_init(at.bar(&room->q_empty[i]), 32 * warps + (S::GATHER ? 64 : 0));
        }
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(at.bar(&room->k_full[i]), 1);
            barrier_init(at.bar(&room->k_empty[i]), warps * S::PAIR);
            barrier_init(at.bar(&room->v_full[i]), 1);
            barrier_init(at.bar(&room->v_empty[i]), warps * S::PAIR);
        }
        barrier_init_done();
        if (at.q % 1024) __trap(); /* the swizzle would be another one */
    }
    if (S::PAIR == 2)
        cluster_sync();
    else
        __syncthreads();
    if (__shfl_sync(~0u, threadIdx.x / 128, 0) == 0) {
        registers_shrink<S::PRODUCER_REGS>();
        if constexpr (S::GATHER)
            produce_gathered(c, at);
        else
            produce(c, at);
    } else {
        registers_grow<S::CONSUMER_REGS>();
        consume(c, at);
    }
    if (S::PAIR == 2) cluster_sync(); /* the other block may still tell this one of a stage */
#endif
}
#endif
