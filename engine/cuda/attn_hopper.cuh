/* Attention on Hopper (sm_90a): 16-bit operands, head size 128; dense attention and masks are one kernel.
 *
 * A block of threads stays on its processor and takes tiles of query rows until none are left. One warpgroup is the
 * producer: it follows a tile's list of keys and brings them, STAGES steps ahead, by TMA or, where keys are scattered
 * (clusters), row by row. The others are consumers of 64 rows each: logits, softmax and output stay in their registers.
 * A consumer issues the logits of step j before the values of step j - 1, so that softmax runs beside products; two
 * consumers take turns at issuing, so that one's softmax runs beside the other's products. spec kernels.md 3.
 *
 * What the two sides tell each other goes through barriers in shared memory: `full` ends a phase when a stage is there,
 * `empty` when all consumers are done with it. Queries and the description of a tile have two places, so that the next
 * tile is under way while this one ends; the output goes through the place of the queries.
 */
#ifndef HS_ATTN_HOPPER_CUH
#define HS_ATTN_HOPPER_CUH
#include "cuda/attn_ptx.cuh"
#include "cuda/attn_walk.cuh"
#include "cuda/hopper.cuh"

enum { HOPPER_DIM = 128, HOPPER_ROW = 128 /* bytes of a row of a tile in shared memory: 64 values */ };

/* CONSUMERS: warpgroups of 64 query rows; KEYS: of a step; GATHER: keys through a list of tokens; BLOCKS: on a
 * processor at a time; registers of a thread of either kind. */
template <typename T_, int CONSUMERS_, int KEYS_, int BLOCKS_, bool GATHER_, int PRODUCER_REGS_, int CONSUMER_REGS_>
struct hopper_shape {
    typedef T_ T;
    enum {
        CONSUMERS = CONSUMERS_,
        KEYS = KEYS_,
        BLOCKS = BLOCKS_,
        GATHER = GATHER_,
        PRODUCER_REGS = PRODUCER_REGS_,
        CONSUMER_REGS = CONSUMER_REGS_,
        ROWS = 64 * CONSUMERS,
        THREADS = 128 * (CONSUMERS + 1),
        STAGES = 2,
        Q_BYTES = ROWS * HOPPER_DIM * 2,
        KV_BYTES = KEYS * HOPPER_DIM * 2,
        LISTS = 3 /* of tokens: of values, of keys, and the one being made */
    };
};

/* What a consumer needs to know of a tile. */
typedef struct hopper_tile {
    int head, first, count; /* query places */
    int steps;              /* 0: no keys; -1: no more tiles */
    int valid;              /* keys in the last step */
    int bonus;              /* the last of them is the last key of all */
} hopper_tile;

/* Shared memory in front of the tiles' place, which is aligned by hand. */
template <typename S> struct hopper_room {
    uint64_t q_full[2], q_empty[2], k_full[S::STAGES], k_empty[S::STAGES], v_full[S::STAGES], v_empty[S::STAGES];
    hopper_tile tile[2];
    /* the rest only where keys are gathered */
    int query[2][S::GATHER ? S::ROWS : 1];
    int key[S::GATHER ? S::LISTS : 1][S::KEYS];
    int sums[2], number;
};

template <typename S> static inline size_t hopper_bytes(int words) {
    return 1024 + 2 * S::Q_BYTES + 2 * S::STAGES * S::KV_BYTES + sizeof(hopper_room<S>) +
           (S::GATHER ? (size_t)words * 4 : 0);
}

/* Who takes which tile when. Heads with most to do come first, and so do the longest tiles of a head: what runs at a
 * time reads the keys of one head, and nobody is left with a long tile at the end. */
typedef struct hopper_plan {
    int *next;       /* a counter of what was taken, 0 at the start */
    int *done;       /* a counter of heads, 0 at the start */
    int *steps;      /* [heads, rows] of a row of the mask; NULL: there is no plan, tiles come by their number */
    int *tile_order; /* [heads, tiles] */
    int *load;       /* [heads] sum of the steps */
    int *head_order; /* [heads] */
} hopper_plan;

typedef struct hopper_call {
    attn_call a;
    CUtensorMap q, k, v;
    hopper_plan plan;
    int total;   /* numbers of tiles */
    float slack; /* raw logits may exceed a row's reference by this much */
} hopper_call;

/* ---- places in shared memory ------------------------------------------------------------------------------------ */

template <typename S> struct hopper_places {
    unsigned q, k, v; /* tiles: queries [2], keys [STAGES], values [STAGES] */
    hopper_room<S> *room;
    uint32_t *bits;

    __device__ __forceinline__ explicit hopper_places(unsigned char *raw) {
        const unsigned begin = shared_address(raw), at = (begin + 1023) & ~1023u;
        q = at;
        k = q + 2 * S::Q_BYTES;
        v = k + S::STAGES * S::KV_BYTES;
        room = (hopper_room<S> *)(void *)(raw + (at - begin) + 2 * S::Q_BYTES + 2 * S::STAGES * S::KV_BYTES);
        bits = (uint32_t *)(room + 1);
    }
    __device__ __forceinline__ unsigned bar(const uint64_t *b) const { return shared_address(b); }
};

/* A ring of stages: step n is in stage n % STAGES, in its phase n / STAGES. */
template <typename S> __device__ __forceinline__ unsigned stage_of(unsigned n) {
    return n % S::STAGES;
}
template <typename S> __device__ __forceinline__ unsigned phase_of(unsigned n) {
    return n / S::STAGES & 1;
}

/* ---- producer: keys in natural order, by TMA -------------------------------------------------------------------- */

/* Number of the tile that is taken as the nth one. */
__device__ __forceinline__ int hopper_number(const hopper_call &c, int nth) {
    if (!c.plan.steps) return nth;
    const int first = c.plan.head_order[nth / c.a.tiles] * c.a.tiles;
    return first + c.plan.tile_order[first + nth % c.a.tiles];
}

/* Describes tile `number`; 0: there is nothing under it. */
template <typename S>
__device__ __forceinline__ int hopper_tile_at(const hopper_call &c, int number, hopper_tile *ret,
                                              const uint32_t **bits) {
    attn_tile t;
    if (!attn_tile_at(c.a, S::ROWS, number, &t)) return 0;
    const int last = (c.a.len_k - 1) / S::KEYS * S::KEYS; /* first key of the last step of all */
    *bits = t.bits;
    ret->head = t.head, ret->first = t.first, ret->count = t.count;
    ret->steps = (c.a.len_k + S::KEYS - 1) / S::KEYS;
    ret->bonus = 1;
    if (t.bits) {
        const int row = t.first / c.a.block;
        ret->steps = c.plan.steps[t.head * c.a.rows + row];
        ret->bonus = t.bits[(c.a.cols - 1) / 32] >> ((c.a.cols - 1) % 32) & 1;
    }
    ret->valid = ret->bonus ? c.a.len_k - last : S::KEYS;
    return 1;
}

/* The keys of a tile, step by step. */
typedef struct hopper_walk {
    const uint32_t *bits;
    uint32_t left, ahead; /* what is left of this word, and the next word */
    int word, key, end;   /* key: of the next step, below the end of its column */
} hopper_walk;

__device__ __forceinline__ hopper_walk hopper_walk_of(const attn_call &a, const uint32_t *bits) {
    hopper_walk w = {bits, 0, 0, -1, 0, bits ? 0 : a.len_k};
    if (bits) w.ahead = bits[0];
    return w;
}

/* First key of the next step; there is one. */
__device__ __forceinline__ int hopper_next(const attn_call &a, hopper_walk &w, int keys) {
    if (w.key >= w.end) {
        while (!w.left) {
            w.word++;
            w.left = w.ahead;
            w.ahead = w.word + 1 < a.words ? w.bits[w.word + 1] : 0;
        }
        w.key = (w.word * 32 + __ffs((int)w.left) - 1) * a.block;
        w.end = min(w.key + a.block, a.len_k);
        w.left &= w.left - 1;
    }
    const int key = w.key;
    w.key += keys;
    return key;
}

template <typename S> __device__ __forceinline__ void produce(const hopper_call &c, const hopper_places<S> &at) {
    if (threadIdx.x % 128 != 0) return; /* one thread issues everything */
    hopper_room<S> *const room = at.room;
    unsigned n = 0, k_step = 0, v_step = 0;
    auto load = [&](unsigned step, unsigned to, uint64_t *full, uint64_t *empty, const CUtensorMap *map, int key,
                    int head) {
        const unsigned s = stage_of<S>(step), tile = to + s * S::KV_BYTES, bar = at.bar(full + s);
        barrier_wait(at.bar(empty + s), phase_of<S>(step) ^ 1);
        barrier_expect(bar, S::KV_BYTES);
        tma_load(tile, map, bar, 0, key, head);
        tma_load(tile + S::KEYS * HOPPER_ROW, map, bar, 64, key, head);
    };
    for (int number = atomicAdd(c.plan.next, 1); number < c.total;) {
        const int after = atomicAdd(c.plan.next, 1); /* its answer is needed when this tile is done */
        hopper_tile t;
        const uint32_t *bits;
        if (hopper_tile_at<S>(c, hopper_number(c, number), &t, &bits)) {
            const unsigned slot = n % 2, bar = at.bar(&room->q_full[slot]);
            barrier_wait(at.bar(&room->q_empty[slot]), (n / 2 & 1) ^ 1);
            room->tile[slot] = t;
            barrier_expect(bar, S::Q_BYTES);
            tma_load(at.q + slot * S::Q_BYTES, &c.q, bar, 0, t.first, t.head);
            tma_load(at.q + slot * S::Q_BYTES + S::ROWS * HOPPER_ROW, &c.q, bar, 64, t.first, t.head);
            n++;
            hopper_walk w = hopper_walk_of(c.a, bits);
            int before = 0;
            for (int j = 0; j < t.steps; j++) {
                const int key = hopper_next(c.a, w, S::KEYS);
                load(k_step++, at.k, room->k_full, room->k_empty, &c.k, key, t.head);
                if (j > 0) load(v_step++, at.v, room->v_full, room->v_empty, &c.v, before, t.head);
                before = key;
            }
            if (t.steps > 0) load(v_step++, at.v, room->v_full, room->v_empty, &c.v, before, t.head);
        }
        number = after;
    }
    barrier_wait(at.bar(&room->q_empty[n % 2]), (n / 2 & 1) ^ 1);
    room->tile[n % 2].steps = -1;
    barrier_arrive(at.bar(&room->q_full[n % 2]));
}

/* ---- producer: keys through a list of tokens -------------------------------------------------------------------- */

enum { GATHER_THREADS = 128, GATHER_SYNC = 3 };

/* The thread's copies so far count as one of the barrier's arrivals once they are done. */
__device__ __forceinline__ void copies_arrive(unsigned bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/* Rows token[0 .. ROWS) of a head to a tile: two halves of 64 columns. Zeros for token -1. */
template <int ROWS>
__device__ __forceinline__ void gather_rows(unsigned tile, const void *head, int64_t ld_bytes, const int *token) {
    const int tid = (int)threadIdx.x % GATHER_THREADS, row0 = tid / 16, piece = tid % 16;
    static_assert(ROWS % 8 == 0, "row % 8 is row0");
    const unsigned to = tile + piece / 8 * ROWS * HOPPER_ROW + row0 * HOPPER_ROW + ((piece % 8) ^ row0) * 16;
#pragma unroll 4
    for (int i = 0; i < ROWS / 8; i++) {
        const int t = token[row0 + i * 8];
        copy_async16(to + i * 8 * HOPPER_ROW, (const char *)head + max(t, 0) * ld_bytes + piece * 16, t >= 0);
    }
}

template <typename S>
__device__ __forceinline__ void produce_gathered(const hopper_call &c, const hopper_places<S> &at) {
    typedef typename S::T T;
    const attn_call &a = c.a;
    hopper_room<S> *const room = at.room;
    const int tid = (int)threadIdx.x % GATHER_THREADS;
    unsigned n = 0, k_step = 0, v_step = 0;
    auto load = [&](unsigned step, unsigned to, uint64_t *full, uint64_t *empty, const void *x, int64_t ld, int head,
                    const int *token) {
        const unsigned s = stage_of<S>(step);
        barrier_wait(at.bar(empty + s), phase_of<S>(step) ^ 1);
        gather_rows<S::KEYS>(to + s * S::KV_BYTES, (const T *)x + head * HOPPER_DIM, ld * 2, token);
        copies_arrive(at.bar(full + s));
    };
    for (;;) {
        if (tid == 0) {
            room->number = atomicAdd(c.plan.next, 1);
            room->sums[0] = 0;
        }
        named_sync<GATHER_SYNC>(GATHER_THREADS);
        const int number = room->number;
        if (number >= c.total) break;
        attn_tile t;
        const int there = attn_tile_at(a, S::ROWS, number, &t);
        if (there) {
            const unsigned slot = n % 2;
            barrier_wait(at.bar(&room->q_empty[slot]), (n / 2 & 1) ^ 1);
            if (tid < S::ROWS) room->query[slot][tid] = tid < t.count ? attn_query(a, t, tid) : -1;
            int keys = 0;
            for (int w = tid; t.bits && w < a.words; w += GATHER_THREADS) {
                uint32_t left = at.bits[w] = t.bits[w];
                for (; left; left &= left - 1) {
                    const int col = w * 32 + __ffs((int)left) - 1;
                    keys += attn_edge(a, t.head, col + 1) - attn_edge(a, t.head, col);
                }
            }
            if (keys) atomicAdd(&room->sums[0], keys);
        }
        named_sync<GATHER_SYNC>(GATHER_THREADS); /* queries, bits and their sum are there; the number was read */
        if (!there) continue;
        const unsigned slot = n % 2, q_full = at.bar(&room->q_full[slot]);
        const attn_list list = {t.bits ? at.bits : NULL, t.bits ? room->sums[0] : a.len_k, 0};
        const int steps = attn_key_steps(list, S::KEYS);
        if (tid == 0) {
            room->tile[slot] = hopper_tile{t.head, t.first, t.count, steps, list.keys - (steps - 1) * S::KEYS, 0};
            barrier_arrive(q_full);
        }
        gather_rows<S::ROWS>(at.q + slot * S::Q_BYTES, (const T *)a.q + t.head * HOPPER_DIM, a.ld_q * 2,
                             room->query[slot]);
        copies_arrive(q_full);
        n++;
        attn_cursor cursor = {0, 0, 0};
        auto list_step = [&](int j) {
            if (tid < S::KEYS) room->key[j % S::LISTS][tid] = attn_key(a, list, t.head, j, S::KEYS, tid, &cursor);
            named_sync<GATHER_SYNC>(GATHER_THREADS);
        };
        list_step(0);
        for (int j = 0; j < steps; j++) {
            load(k_step++, at.k, room->k_full, room->k_empty, a.k, a.ld_k, t.head, room->key[j % S::LISTS]);
            if (j > 0)
                load(v_step++, at.v, room->v_full, room->v_empty, a.v, a.ld_v, t.head, room->key[(j - 1) % S::LISTS]);
            if (j + 1 < steps) list_step(j + 1);
        }
        if (steps > 0)
            load(v_step++, at.v, room->v_full, room->v_empty, a.v, a.ld_v, t.head, room->key[(steps - 1) % S::LISTS]);
        named_sync<GATHER_SYNC>(GATHER_THREADS); /* the sum and the bits may be made anew */
    }
    barrier_wait(at.bar(&room->q_empty[n % 2]), (n / 2 & 1) ^ 1);
    if (tid == 0) {
        room->tile[n % 2].steps = -1;
        barrier_arrive(at.bar(&room->q_full[n % 2]));
    }
    barrier_arrive(at.bar(&room->q_full[n % 2]));
}

/* ---- consumers -------------------------------------------------------------------------------------------------- */

/* The running softmax of two rows of a lane: lane / 4 and that + 8 of its warp's 16. */
typedef struct hopper_rows {
    float top[2], sum[2]; /* reference (raw logits), sum of exponentials of this lane's columns */
} hopper_rows;

/* Maximum of a row's four lanes. */
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

/* Logits to exponentials relative to the rows' references. A reference moves only when a logit exceeds it by more than
 * the slack: then `shrink` says how much what was summed up so far has shrunk. 1 if any row of the warp moved. */
template <int N>
__device__ __forceinline__ bool soften(float (&s)[N], hopper_rows &r, float (&shrink)[2], float unit, float slack) {
    float most[2] = {r.top[0], r.top[1]};
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) most[i] = fmaxf(most[i], fmaxf(s[4 * j + 2 * i], s[4 * j + 2 * i + 1]));
    most[0] = row_max(most[0]);
    most[1] = row_max(most[1]);
    const bool moved = __any_sync(~0u, most[0] > r.top[0] + slack || most[1] > r.top[1] + slack);
    if (moved) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            shrink[i] = exp2_fast((r.top[i] - most[i]) * unit); /* 0 at first: from minus infinity */
            r.top[i] = most[i];
            r.sum[i] *= shrink[i];
        }
    }
    const float from[2] = {r.top[0] * unit, r.top[1] * unit};
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            s[4 * j + 2 * i] = exp2_fast(fmaf(s[4 * j + 2 * i], unit, -from[i]));
            s[4 * j + 2 * i + 1] = exp2_fast(fmaf(s[4 * j + 2 * i + 1], unit, -from[i]));
            r.sum[i] += s[4 * j + 2 * i] + s[4 * j + 2 * i + 1];
        }
    return moved;
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

template <typename S> __device__ __forceinline__ void consume(const hopper_call &c, const hopper_places<S> &at) {
    typedef typename S::T T;
    constexpr int KEYS = S::KEYS;
    hopper_room<S> *const room = at.room;
    const int warp = (int)__shfl_sync(~0u, threadIdx.x / 32, 0), lane = (int)threadIdx.x % 32;
    const int group = warp / 4 - 1, row0 = group * 64 + warp % 4 * 16; /* of this warp's 16 rows in the tile */
    const float unit = c.a.unit, bonus = c.a.last_key_bonus;
    unsigned step = 0;
    float out[64];

    auto release = [&](uint64_t *empty) { /* all warps of all consumers have to */
                                          if (lane == 0) barrier_arrive(at.bar(empty));
    };
    auto await = [&](uint64_t *full, unsigned n) {
        barrier_wait(at.bar(full + stage_of<S>(n)), phase_of<S>(n));
        if (S::GATHER) fence_async();
    };
    auto turn_begin = [&] {
        if (S::CONSUMERS == 2) {
            if (group == 0)
                named_sync<1>(256);
            else
                named_sync<2>(256);
        }
    };
    auto turn_end = [&] {
        if (S::CONSUMERS == 2) {
            if (group == 0)
                named_arrive<2>(256);
            else
                named_arrive<1>(256);
        }
    };
    if (S::CONSUMERS == 2 && group == 1) named_arrive<1>(256); /* the first turn is the first consumer's */

    for (unsigned n = 0;; n++) {
        const unsigned slot = n % 2;
        barrier_wait(at.bar(&room->q_full[slot]), n / 2 & 1);
        const hopper_tile t = room->tile[slot];
        if (t.steps < 0) break;
        if (S::GATHER) fence_async();
        const unsigned q = at.q + slot * S::Q_BYTES + group * 64 * HOPPER_ROW;
        hopper_rows r = {{-INFINITY, -INFINITY}, {0, 0}};

        if (t.steps > 0) {
            float s[KEYS / 2], shrink[2] = {1, 1};
            unsigned p[KEYS / 16][4];
            auto logits = [&](unsigned stage) {
                const unsigned k = at.k + stage * S::KV_BYTES;
#pragma unroll
                for (int d = 0; d < HOPPER_DIM / 16; d++)
                    product_ss<T, KEYS>(s, operand_by_rows(q + d / 4 * S::ROWS * HOPPER_ROW + d % 4 * 32),
                                        operand_by_rows(k + d / 4 * KEYS * HOPPER_ROW + d % 4 * 32), d > 0);
            };
            auto values = [&](unsigned stage, int add) {
                const unsigned v = at.v + stage * S::KV_BYTES;
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++)
                    product_rs<T>(out, p[i], operand_by_columns(v + i * 16 * HOPPER_ROW, KEYS * HOPPER_ROW),
                                  add | (i > 0));
            };
            auto round = [&] { /* exponentials become the left operand of the product with values */
#pragma unroll
                               for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
                                   for (int e = 0; e < 4; e++)
                                       p[i][e] = pack<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
            };

            await(room->k_full, step);
            keep(s);
            products_begin();
            logits(stage_of<S>(step));
            products_commit();
            products_wait<0>();
            keep(s);
            release(room->k_empty + stage_of<S>(step));
            if (t.steps == 1) end_of_keys(s, t, bonus);
            soften(s, r, shrink, unit, c.slack);
            round();
#pragma unroll 1
            for (int j = 1; j < t.steps; j++, step++) {
                const unsigned stage = stage_of<S>(step), next = stage_of<S>(step + 1);
                await(room->k_full, step + 1);
                turn_begin();
                keep(s);
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
                keep(out);
                products_begin();
                logits(next);
                products_commit();
                await(room->v_full, step);
                products_begin();
                values(stage, j > 1);
                products_commit();
                turn_end();
                products_wait<1>();
                keep(s);
                release(room->k_empty + next);
                if (j == t.steps - 1) end_of_keys(s, t, bonus);
                const bool moved = soften(s, r, shrink, unit, c.slack);
                products_wait<0>();
                keep(out);
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
                release(room->v_empty + stage);
                if (moved) {
#pragma unroll
                    for (int i = 0; i < 64; i++) out[i] *= shrink[i / 2 % 2];
                }
                round();
            }
            await(room->v_full, step);
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
            keep(out);
            products_begin();
            values(stage_of<S>(step), t.steps > 1);
            products_commit();
            products_wait<0>();
            keep(out);
            release(room->v_empty + stage_of<S>(step));
            step++;
        } else {
#pragma unroll
            for (int i = 0; i < 64; i++) out[i] = 0;
        }

        /* out / sum to this warp's rows of the place of the queries, from there in whole rows to memory */
        unsigned char *const tile = (unsigned char *)room - 2 * S::STAGES * S::KV_BYTES - (2 - slot) * S::Q_BYTES;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float total = r.sum[i] + __shfl_xor_sync(~0u, r.sum[i], 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float factor = total != 0 ? 1 / total : 0; /* 0: no keys */
            const int row = row0 + lane / 4 + 8 * i;
#pragma unroll
            for (int j = 0; j < 16; j++)
                *(unsigned *)(void *)(tile + j / 8 * S::ROWS * HOPPER_ROW + row * HOPPER_ROW +
                                      ((j % 8) ^ (row % 8)) * 16 + lane % 4 * 4) =
                    pack<T>(out[4 * j + 2 * i] * factor, out[4 * j + 2 * i + 1] * factor);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int row = row0 + 2 * i + lane / 16, piece = lane % 16;
            if (row < t.count) {
                const int64_t token = S::GATHER ? room->query[slot][row] : t.first + row;
                ((uint4 *)((T *)c.a.out + token * c.a.ld_out + (int64_t)t.head * HOPPER_DIM))[piece] =
                    *(const uint4 *)(const void *)(tile + piece / 8 * S::ROWS * HOPPER_ROW + row * HOPPER_ROW +
                                                   ((piece % 8) ^ (row % 8)) * 16);
            }
        }
        fence_async(); /* the next queries come by TMA */
        __syncwarp();
        release(&room->q_empty[slot]);
    }
}

template <typename S>
__global__ void __launch_bounds__(S::THREADS, S::BLOCKS) attn_hopper(const __grid_constant__ hopper_call c) {
#if HS_HOPPER
    extern __shared__ unsigned char raw[];
    const hopper_places<S> at(raw);
    if (threadIdx.x == 0) {
        hopper_room<S> *const room = at.room;
        const unsigned copies = S::GATHER ? GATHER_THREADS : 1, warps = 4 * S::CONSUMERS;
        for (int i = 0; i < 2; i++) {
            barrier_init(at.bar(&room->q_full[i]), S::GATHER ? copies + 1 : 1);
            barrier_init(at.bar(&room->q_empty[i]), warps);
        }
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(at.bar(&room->k_full[i]), copies);
            barrier_init(at.bar(&room->k_empty[i]), warps);
            barrier_init(at.bar(&room->v_full[i]), copies);
            barrier_init(at.bar(&room->v_empty[i]), warps);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (__shfl_sync(~0u, threadIdx.x / 128, 0) == 0) {
        registers_shrink<S::PRODUCER_REGS>();
        if constexpr (S::GATHER)
            produce_gathered<S>(c, at);
        else
            produce<S>(c, at);
    } else {
        registers_grow<S::CONSUMER_REGS>();
        consume<S>(c, at);
    }
#endif
}
#endif
