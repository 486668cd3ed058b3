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

/* CONSUMERS: warpgroups of 64 query rows; KEYS: of a step; BLOCKS: on a processor at a time; GATHER: queries and keys
 * are wherever an order says; TILES: places for queries and descriptions; STAGES: of keys and of values; registers of a
 * thread of either kind. */
template <typename T_, int CONSUMERS_, int KEYS_, int BLOCKS_, bool GATHER_, int TILES_, int STAGES_,
          int PRODUCER_REGS_, int CONSUMER_REGS_>
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
        ROWS = 64 * CONSUMERS,
        THREADS = 128 * (CONSUMERS + 1),
        Q_BYTES = ROWS * HOPPER_DIM * 2,
        KV_BYTES = KEYS * HOPPER_DIM * 2,
        LISTS = 8 /* of the tokens of a step: how far the one who makes them is ahead */
    };
};

/* What a consumer needs to know of a tile. */
typedef struct hopper_tile {
    int head, first, count; /* query places */
    int steps;              /* 0: no keys; -1: no more tiles */
    int valid;              /* keys in the last step */
    int bonus;              /* the last of them is the last key of all */
} hopper_tile;

/* Shared memory behind the tiles. */
template <typename S> struct hopper_room {
    uint64_t q_full[S::TILES], q_empty[S::TILES], k_full[S::STAGES], k_empty[S::STAGES], v_full[S::STAGES],
        v_empty[S::STAGES];
    hopper_tile tile[S::TILES];
    /* the rest only where tokens are gathered */
    uint64_t list_full[S::LISTS], list_empty[S::LISTS];
    int list_head[S::LISTS]; /* -1: no more lists */
    int query[S::TILES][S::GATHER ? S::ROWS : 1];
    int list[S::GATHER ? S::LISTS : 1][S::KEYS];
};

template <typename S> static inline size_t hopper_bytes() {
    return S::TILES * S::Q_BYTES + 2 * S::STAGES * S::KV_BYTES + sizeof(hopper_room<S>);
}

/* Who takes which tile when. Heads with most to do come first, and so do the longest tiles of a head: what runs at a
 * time reads the keys of one head, and nobody is left with a long tile at the end. */
typedef struct hopper_plan {
    int *next;       /* a counter of what was taken, 0 at the start */
    int *done;       /* a counter of heads, 0 at the start */
    int *keys;       /* [heads, rows] kept by a row of the mask; NULL: there is no plan, tiles come by their number */
    int *tile_order; /* [heads, tiles] */
    int *head_order; /* [heads] */
    unsigned long long *load; /* [heads] sum of the tiles' keys */
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
    unsigned q, k, v; /* tiles: queries [TILES], keys [STAGES], values [STAGES] */
    hopper_room<S> *room;

    __device__ __forceinline__ explicit hopper_places(unsigned char *raw) {
        q = shared_address(raw);
        k = q + S::TILES * S::Q_BYTES;
        v = k + S::STAGES * S::KV_BYTES;
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

/* Row of the mask that a tile belongs to. */
__device__ __forceinline__ int hopper_row(const attn_call &a, const attn_tile &t) {
    return (int)((t.bits - a.bits) / a.words - (int64_t)t.head * a.rows);
}

/* Describes tile `number`; 0: there is nothing under it. */
template <typename S>
__device__ __forceinline__ int hopper_tile_at(const hopper_call &c, int number, attn_tile *ret_place,
                                              hopper_tile *ret) {
    if (!attn_tile_at(c.a, S::ROWS, number, ret_place)) return 0;
    const attn_tile &t = *ret_place;
    const int keys = t.bits ? c.plan.keys[t.head * c.a.rows + hopper_row(c.a, t)] : c.a.len_k;
    ret->head = t.head, ret->first = t.first, ret->count = t.count;
    ret->steps = (keys + S::KEYS - 1) / S::KEYS;
    ret->valid = keys - (ret->steps - 1) * S::KEYS;
    ret->bonus = !t.bits || t.bits[(c.a.cols - 1) / 32] >> ((c.a.cols - 1) % 32) & 1;
    return 1;
}

/* ---- producer: keys in natural order, by TMA -------------------------------------------------------------------- */

/* The keys of a tile, step by step. Columns are whole steps but for the last one of all. */
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
    hopper_ring<S::TILES> tile;
    hopper_ring<S::STAGES> k, v;
    auto load = [&](hopper_ring<S::STAGES> &ring, unsigned to, uint64_t *full, uint64_t *empty, const CUtensorMap *map,
                    int key, int head) {
        const unsigned rows = to + ring.at * S::KV_BYTES, bar = at.bar(full + ring.at);
        barrier_wait(at.bar(empty + ring.at), ring.phase ^ 1);
        barrier_expect(bar, S::KV_BYTES);
        tma_load(rows, map, bar, 0, key, head);
        tma_load(rows + S::KEYS * HOPPER_ROW, map, bar, 64, key, head);
        ring.step();
    };
    for (int number = atomicAdd(c.plan.next, 1); number < c.total;) {
        const int after = atomicAdd(c.plan.next, 1); /* its answer is needed when this tile is done */
        attn_tile place;
        hopper_tile t;
        if (hopper_tile_at<S>(c, hopper_number(c, number), &place, &t)) {
            const unsigned bar = at.bar(&room->q_full[tile.at]), q = at.q + tile.at * S::Q_BYTES;
            barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
            room->tile[tile.at] = t;
            barrier_expect(bar, S::Q_BYTES);
            tma_load(q, &c.q, bar, 0, t.first, t.head);
            tma_load(q + S::ROWS * HOPPER_ROW, &c.q, bar, 64, t.first, t.head);
            tile.step();
            hopper_walk w = hopper_walk_of(c.a, place.bits);
            int before = 0;
            for (int j = 0; j < t.steps; j++) {
                const int key = hopper_next(c.a, w, S::KEYS);
                load(k, at.k, room->k_full, room->k_empty, &c.k, key, t.head);
                if (j > 0) load(v, at.v, room->v_full, room->v_empty, &c.v, before, t.head);
                before = key;
            }
            if (t.steps > 0) load(v, at.v, room->v_full, room->v_empty, &c.v, before, t.head);
        }
        number = after;
    }
    barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
    room->tile[tile.at].steps = -1;
    barrier_arrive(at.bar(&room->q_full[tile.at]));
}

/* ---- producer: queries and keys by an order --------------------------------------------------------------------- *
 * One warp follows the tiles: it brings their queries and writes, step after step, lists of the tokens to be read; two
 * more read the lists and bring keys and values. */

/* The thread's copies so far count as one of the barrier's arrivals once they are done. */
__device__ __forceinline__ void copies_arrive(unsigned bar) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

/* Rows token[0 .. ROWS) of a head to a tile (two halves of 64 columns) by a warp. Zeros for token -1. */
template <int ROWS>
__device__ __forceinline__ void gather_rows(unsigned tile, const void *head, int64_t ld_bytes, const int *token) {
    const int row0 = (int)threadIdx.x % 32 / 16, piece = (int)threadIdx.x % 16;
    const unsigned to = tile + piece / 8 * ROWS * HOPPER_ROW;
#pragma unroll 8
    for (int i = 0; i < ROWS / 2; i++) {
        const int row = 2 * i + row0, t = token[row];
        copy_async16(to + row * HOPPER_ROW + ((piece % 8) ^ (row % 8)) * 16,
                     (const char *)head + max(t, 0) * ld_bytes + piece * 16, t >= 0);
    }
}

/* The lists of tokens, entry by entry; one warp writes them. */
template <typename S> struct hopper_lister {
    hopper_room<S> *room;
    hopper_ring<S::LISTS> ring;
    int filled = 0; /* entries of the list at ring.at */

    __device__ __forceinline__ unsigned bar(const uint64_t *b) const { return shared_address(b + ring.at); }
    __device__ __forceinline__ void open(int head) {
        barrier_wait(bar(room->list_empty), ring.phase ^ 1);
        if (threadIdx.x % 32 == 0) room->list_head[ring.at] = head;
    }
    __device__ __forceinline__ void close() {
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(bar(room->list_full));
        ring.step();
        filled = 0;
    }
    /* One token of each of the first `count` lanes. */
    __device__ __forceinline__ void put(int head, int count, int token) {
        const int lane = (int)threadIdx.x % 32, now = min(count, S::KEYS - filled);
        if (filled == 0) open(head);
        if (lane < now) room->list[ring.at][filled + lane] = token;
        filled += now;
        if (filled < S::KEYS) return;
        close();
        if (now == count) return;
        open(head);
        if (lane >= now && lane < count) room->list[ring.at][lane - now] = token;
        filled = count - now;
    }
    /* The last list of a tile is filled up with nothing. */
    __device__ __forceinline__ void end() {
        if (filled == 0) return;
        for (int i = filled + (int)threadIdx.x % 32; i < S::KEYS; i += 32) room->list[ring.at][i] = -1;
        close();
    }
};

/* All keys of a tile. The columns of a word of bits are looked at together, a lane each; then every lane finds the
 * column of its next keys by the columns' sums. */
template <typename S>
__device__ __forceinline__ void list_keys(const attn_call &a, const attn_tile &t, hopper_lister<S> &to) {
    enum { AT_ONCE = 4 }; /* reads of the order that are under way together */
    const int lane = (int)threadIdx.x % 32;
    const int *const start = a.k_start + (int64_t)t.head * (a.cols + 1);
    const int *const order = a.k_order + (int64_t)t.head * a.len_k;
    for (int i = 0; !t.bits && i < a.len_k; i += 32) to.put(t.head, min(32, a.len_k - i), i + lane);
    for (int w = 0; t.bits && w < a.words; w++) {
        const uint32_t bits = t.bits[w];
        const int col = w * 32 + lane, kept = bits >> lane & 1;
        const int begin = kept ? start[col] : 0, size = kept ? start[col + 1] - begin : 0;
        int sum = size; /* keys of the word's columns up to this lane's */
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int more = __shfl_up_sync(~0u, sum, d);
            if (lane >= d) sum += more;
        }
        const int all = __shfl_sync(~0u, sum, 31), shift = begin - (sum - size);
        for (int i = 0; i < all; i += 32 * AT_ONCE) {
            int token[AT_ONCE];
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                const int mine = i + u * 32 + lane;
                int c = 0; /* the first column whose sum exceeds `mine`, if any does */
#pragma unroll
                for (int d = 16; d; d /= 2) {
                    const int below = __shfl_sync(~0u, sum, c + d - 1);
                    if (below <= mine) c += d;
                }
                const int place = mine + __shfl_sync(~0u, shift, c);
                token[u] = mine < all ? order[place] : -1;
            }
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++)
                if (i + u * 32 < all) to.put(t.head, min(32, all - i - u * 32), token[u]);
        }
    }
    to.end();
}

template <typename S> __device__ __forceinline__ void follow_tiles(const hopper_call &c, const hopper_places<S> &at) {
    typedef typename S::T T;
    hopper_room<S> *const room = at.room;
    const int lane = (int)threadIdx.x % 32;
    hopper_ring<S::TILES> tile;
    hopper_lister<S> lists = {room};
    for (;;) {
        int number = lane == 0 ? atomicAdd(c.plan.next, 1) : 0;
        number = __shfl_sync(~0u, number, 0);
        if (number >= c.total) break;
        attn_tile place;
        hopper_tile t;
        if (!hopper_tile_at<S>(c, hopper_number(c, number), &place, &t)) continue;
        const unsigned q_full = at.bar(&room->q_full[tile.at]);
        int *const query = room->query[tile.at];
        barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
        for (int r = lane; r < S::ROWS; r += 32) query[r] = r < t.count ? attn_query(c.a, place, r) : -1;
        if (lane == 0) room->tile[tile.at] = t;
        __syncwarp();
        if (lane == 0) barrier_arrive(q_full); /* the description is there */
        gather_rows<S::ROWS>(at.q + tile.at * S::Q_BYTES, (const T *)c.a.q + t.head * HOPPER_DIM, c.a.ld_q * 2, query);
        copies_arrive(q_full);
        tile.step();
        list_keys(c.a, place, lists);
    }
    lists.open(-1);
    lists.close();
    barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
    if (lane == 0) {
        room->tile[tile.at].steps = -1;
        barrier_arrive(at.bar(&room->q_full[tile.at]));
    }
    barrier_arrive(at.bar(&room->q_full[tile.at]));
}

/* Keys, or values, of list after list. */
template <typename S>
__device__ __forceinline__ void follow_lists(const hopper_places<S> &at, const void *x, int64_t ld, unsigned to,
                                             uint64_t *full, uint64_t *empty) {
    typedef typename S::T T;
    hopper_room<S> *const room = at.room;
    hopper_ring<S::LISTS> list;
    hopper_ring<S::STAGES> stage;
    for (;; list.step(), stage.step()) {
        barrier_wait(at.bar(&room->list_full[list.at]), list.phase);
        const int head = room->list_head[list.at];
        if (head < 0) return;
        barrier_wait(at.bar(empty + stage.at), stage.phase ^ 1);
        gather_rows<S::KEYS>(to + stage.at * S::KV_BYTES, (const T *)x + head * HOPPER_DIM, ld * 2,
                             room->list[list.at]);
        copies_arrive(at.bar(full + stage.at));
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(at.bar(&room->list_empty[list.at]));
    }
}

template <typename S>
__device__ __forceinline__ void produce_gathered(const hopper_call &c, const hopper_places<S> &at) {
    hopper_room<S> *const room = at.room;
    switch ((int)__shfl_sync(~0u, threadIdx.x / 32, 0)) {
    case 0: follow_tiles(c, at); break;
    case 1: follow_lists(at, c.a.k, c.a.ld_k, at.k, room->k_full, room->k_empty); break;
    case 2: follow_lists(at, c.a.v, c.a.ld_v, at.v, room->v_full, room->v_empty); break;
    }
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
    hopper_ring<S::TILES> tile_ring;
    hopper_ring<S::STAGES> k, v; /* the next keys and values to be used */
    float out[64];

    auto release = [&](uint64_t *empty) { /* all warps of all consumers have to */
                                          if (lane == 0) barrier_arrive(at.bar(empty));
    };
    auto await = [&](uint64_t *full, const hopper_ring<S::STAGES> &ring) {
        barrier_wait(at.bar(full + ring.at), ring.phase);
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

    for (;; tile_ring.step()) {
        const unsigned slot = tile_ring.at;
        barrier_wait(at.bar(&room->q_full[slot]), tile_ring.phase);
        const hopper_tile t = room->tile[slot];
        if (t.steps < 0) break;
        if (S::GATHER) fence_async();
        const unsigned q = at.q + slot * S::Q_BYTES + group * 64 * HOPPER_ROW;
        hopper_rows r = {{-INFINITY, -INFINITY}, {0, 0}};

        if (t.steps > 0) {
            float s[KEYS / 2], shrink[2] = {1, 1};
            unsigned p[KEYS / 16][4];
            auto logits = [&] {
                const unsigned tile = at.k + k.at * S::KV_BYTES;
#pragma unroll
                for (int d = 0; d < HOPPER_DIM / 16; d++)
                    product_ss<T, KEYS>(s, operand_by_rows(q + d / 4 * S::ROWS * HOPPER_ROW + d % 4 * 32),
                                        operand_by_rows(tile + d / 4 * KEYS * HOPPER_ROW + d % 4 * 32), d > 0);
            };
            auto values = [&](int add) {
                const unsigned tile = at.v + v.at * S::KV_BYTES;
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++)
                    product_rs<T>(out, p[i], operand_by_columns(tile + i * 16 * HOPPER_ROW, KEYS * HOPPER_ROW),
                                  add | (i > 0));
            };
            auto round = [&] { /* exponentials become the left operand of the product with values */
#pragma unroll
                               for (int i = 0; i < KEYS / 16; i++)
#pragma unroll
                                   for (int e = 0; e < 4; e++)
                                       p[i][e] = pack<T>(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
            };

            await(room->k_full, k);
            keep(s);
            products_begin();
            logits();
            products_commit();
            products_wait<0>();
            keep(s);
            release(room->k_empty + k.at);
            k.step();
            if (t.steps == 1) end_of_keys(s, t, bonus);
            soften(s, r, shrink, unit, c.slack);
            round();
#pragma unroll 1
            for (int j = 1; j < t.steps; j++) {
                await(room->k_full, k);
                turn_begin();
                keep(s);
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
                keep(out);
                products_begin();
                logits();
                products_commit();
                await(room->v_full, v);
                products_begin();
                values(j > 1);
                products_commit();
                turn_end();
                products_wait<1>();
                keep(s);
                release(room->k_empty + k.at);
                k.step();
                if (j == t.steps - 1) end_of_keys(s, t, bonus);
                const bool moved = soften(s, r, shrink, unit, c.slack);
                products_wait<0>();
                keep(out);
#pragma unroll
                for (int i = 0; i < KEYS / 16; i++) keep(p[i]);
                release(room->v_empty + v.at);
                v.step();
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
            values(t.steps > 1);
            products_commit();
            products_wait<0>();
            keep(out);
            release(room->v_empty + v.at);
            v.step();
        } else {
#pragma unroll
            for (int i = 0; i < 64; i++) out[i] = 0;
        }

        /* out / sum to this warp's rows of the place of the queries, from there in whole rows to memory */
        unsigned char *const tile =
            (unsigned char *)room - 2 * S::STAGES * S::KV_BYTES - (S::TILES - slot) * S::Q_BYTES;
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
    extern __shared__ __align__(1024) unsigned char raw[];
    const hopper_places<S> at(raw);
    hopper_room<S> *const room = at.room;
    if (threadIdx.x == 0) {
        const unsigned copies = S::GATHER ? 32 : 1, warps = 4 * S::CONSUMERS;
        for (int i = 0; i < S::TILES; i++) {
            barrier_init(at.bar(&room->q_full[i]), S::GATHER ? copies + 1 : 1);
            barrier_init(at.bar(&room->q_empty[i]), warps);
        }
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(at.bar(&room->k_full[i]), copies);
            barrier_init(at.bar(&room->k_empty[i]), warps);
            barrier_init(at.bar(&room->v_full[i]), copies);
            barrier_init(at.bar(&room->v_empty[i]), warps);
        }
        for (int i = 0; i < S::LISTS; i++) {
            barrier_init(at.bar(&room->list_full[i]), 1);
            barrier_init(at.bar(&room->list_empty[i]), 2);
        }
        barrier_init_done();
        if (at.q % 1024) __trap(); /* the swizzle would be another one */
    }
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
#endif
}
#endif
