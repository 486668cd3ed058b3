/* The producers of attn_hopper.cuh, which includes this: they find the keys of tile after tile and bring them to shared
 * memory. */
#ifndef HS_ATTN_HOPPER_KEYS_CUH
#define HS_ATTN_HOPPER_KEYS_CUH

/* ---- keys in natural order, by TMA -------------------------------------------------------------------- */

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

/* One thread issues everything. Tiles come by a counter, or, for pairs, in turn: all are equally long. */
template <typename S> __device__ __forceinline__ void produce(const hopper_call &c, const hopper_places<S> &at) {
    if (threadIdx.x % 128 != 0) return;
    constexpr int SHARE = S::KEYS / S::PAIR; /* rows of a stage that this block brings */
    const int rank = S::PAIR == 2 ? (int)cluster_rank() : 0;
    hopper_room<S> *const room = at.room;
    hopper_ring<S::TILES> tile;
    hopper_ring<S::STAGES> k, v;
    auto load = [&](hopper_ring<S::STAGES> &ring, unsigned to, uint64_t *full, uint64_t *empty, const CUtensorMap *map,
                    int key, int head) {
        const unsigned rows = to + ring.at * S::KV_BYTES + rank * SHARE * HOPPER_ROW, bar = at.bar(full + ring.at);
        barrier_wait(at.bar(empty + ring.at), ring.phase ^ 1);
        barrier_expect(bar, S::KV_BYTES);
        for (int half = 0; half < 2; half++) {
            const unsigned dst = rows + half * S::KEYS * HOPPER_ROW;
            if (S::PAIR == 2)
                tma_load_both(dst, map, bar, half * 64, key + rank * SHARE, head);
            else
                tma_load(dst, map, bar, half * 64, key, head);
        }
        ring.step();
    };
    auto bring = [&](const hopper_tile &t, const uint32_t *bits) {
        const unsigned bar = at.bar(&room->q_full[tile.at]), q = at.q + tile.at * S::Q_BYTES;
        barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
        room->tile[tile.at] = t;
        barrier_expect(bar, S::Q_BYTES);
        tma_load(q, &c.q, bar, 0, t.first, t.head);
        tma_load(q + S::ROWS * HOPPER_ROW, &c.q, bar, 64, t.first, t.head);
        tile.step();
        hopper_walk w = hopper_walk_of(c.a, bits);
        int before = 0;
        for (int j = 0; j < t.steps; j++) {
            const int key = hopper_next(c.a, w, S::KEYS);
            load(k, at.k, room->k_full, room->k_empty, &c.k, key, t.head);
            if (j > 0) load(v, at.v, room->v_full, room->v_empty, &c.v, before, t.head);
            before = key;
        }
        if (t.steps > 0) load(v, at.v, room->v_full, room->v_empty, &c.v, before, t.head);
    };
    attn_tile place;
    hopper_tile t;
    if constexpr (S::PAIR == 2) {
        const int pairs = (c.a.tiles + 1) / 2, total = hopper_total(c) ? pairs * c.a.heads : 0; /* pairs of a head */
        for (int i = (int)blockIdx.x / 2; i < total; i += (int)gridDim.x / 2) {
            const int end = (i / pairs + 1) * c.a.tiles, first = end - c.a.tiles + i % pairs * 2,
                      last = min(first + 1, end - 1);
            if (!hopper_wanted(c, first) && !hopper_wanted(c, last)) continue;
            hopper_tile_at<S>(c, rank ? last : first, &place, &t);
            if (rank && last == first) t.count = 0; /* the other block's tile once more, of which nothing is written */
            bring(t, NULL);
        }
    } else {
        const int total = hopper_total(c);
        for (int nth = total ? atomicAdd(c.plan.next, 1) : 0; nth < total;) {
            const int after = atomicAdd(c.plan.next, 1); /* its answer is needed when this tile is done */
            const int number = hopper_number(c, nth);
            if (hopper_wanted(c, number) && hopper_tile_at<S>(c, number, &place, &t)) bring(t, place.bits);
            nth = after;
        }
    }
    barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
    room->tile[tile.at].steps = -1;
    barrier_arrive(at.bar(&room->q_full[tile.at]));
}

/* ---- queries by an order, keys from a copy in the order of columns ------------------------------------------------ *
 * One warp follows the tiles and brings their queries, row by row; two more follow the tiles' columns in the copies of
 * keys and of values, in pieces of whole granules. */

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

template <typename S> __device__ __forceinline__ void follow_tiles(const hopper_call &c, const hopper_places<S> &at) {
    typedef typename S::T T;
    hopper_room<S> *const room = at.room;
    const int lane = (int)threadIdx.x % 32;
    const int total = hopper_total(c);
    hopper_ring<S::TILES> tile;
    while (total) {
        int nth = lane == 0 ? atomicAdd(c.plan.next, 1) : 0;
        nth = __shfl_sync(~0u, nth, 0);
        if (nth >= total) break;
        const int number = hopper_number(c, nth);
        attn_tile place;
        hopper_tile t;
        if (!hopper_wanted(c, number) || !hopper_tile_at<S>(c, number, &place, &t)) continue;
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
    }
    barrier_wait(at.bar(&room->q_empty[tile.at]), tile.phase ^ 1);
    if (lane == 0) {
        room->tile[tile.at].steps = -1;
        barrier_arrive(at.bar(&room->q_full[tile.at]));
    }
    barrier_arrive(at.bar(&room->q_full[tile.at]));
}

/* Stages filled with granules by a warp, columns of a few granules by a lane each: consumers wait for it at once if it
 * is slow. gaps: of the stages, NULL for values. */
template <typename S> struct hopper_filler {
    enum { SLOTS = S::KEYS / GRANULE };
    unsigned tiles, full, empty; /* shared memory: stages, barriers */
    uint64_t *gaps;
    hopper_ring<S::STAGES> stage;
    int filled = 0; /* slots of the stage */
    uint64_t gap = 0;

    __device__ __forceinline__ hopper_filler(unsigned tiles_, unsigned full_, unsigned empty_, uint64_t *gaps_)
        : tiles(tiles_), full(full_), empty(empty_), gaps(gaps_) {}
    __device__ __forceinline__ void close() {
        if (threadIdx.x % 32 == 0) {
            if (gaps) gaps[stage.at] = gap;
            barrier_expect(full + stage.at * 8, S::KV_BYTES); /* only now: it tells of the gaps, too */
        }
        stage.step();
        filled = 0;
        gap = 0;
    }
    /* Of every lane a column of so many granules, of whose last one `missing` rows are no keys. */
    __device__ __forceinline__ void put(const char *from, int granules, int missing) {
        int end = filled + warp_sum_to((int)threadIdx.x % 32, granules),
            all = __shfl_sync(~0u, end, 31); /* slots, from this stage's first */
        while (all > filled) {
            if (filled == 0) barrier_wait(empty + stage.at * 8, stage.phase ^ 1);
            const int first = max(end - granules, 0), behind = min(end, (int)SLOTS);
            if (first < behind)
                bulk_load(tiles + stage.at * S::KV_BYTES + first * GRANULE_BYTES,
                          from + (first - (end - granules)) * GRANULE_BYTES, (behind - first) * GRANULE_BYTES,
                          full + stage.at * 8);
            if (gaps) {
                const uint64_t mine = first < end && end <= SLOTS ? (uint64_t)missing << (4 * (end - 1)) : 0;
                gap |= (uint64_t)__reduce_or_sync(~0u, (unsigned)(mine >> 32)) << 32 |
                       __reduce_or_sync(~0u, (unsigned)mine);
            }
            if (all < SLOTS) {
                filled = all;
                return;
            }
            close();
            end -= SLOTS, all -= SLOTS;
        }
    }
    /* The last stage of a tile is filled up with nothing: stale values could be no numbers. */
    __device__ __forceinline__ void end(const char *zeros) {
        if (filled == 0) return;
        gap |= 0x8888888888888888u << (4 * filled);
        if (threadIdx.x % 32 == 0)
            bulk_load(tiles + stage.at * S::KV_BYTES + filled * GRANULE_BYTES, zeros, (SLOTS - filled) * GRANULE_BYTES,
                      full + stage.at * 8);
        close();
    }
};

/* Keys, or values, of tile after tile. The columns of a word of bits are looked up together, a lane each, while those
 * of the word before are brought. */
template <typename S>
__device__ __forceinline__ void follow_columns(const hopper_call &c, const hopper_places<S> &at, const char *copies,
                                               hopper_filler<S> to) {
    const attn_call &a = c.a;
    const int lane = (int)threadIdx.x % 32;
    for (hopper_ring<S::TILES> tile;; tile.step()) {
        barrier_wait(at.bar(&at.room->q_full[tile.at]), tile.phase);
        const hopper_tile t = at.room->tile[tile.at];
        barrier_arrive(at.bar(&at.room->q_empty[tile.at]));
        if (t.steps < 0) return;
        const char *const head = copies + (int64_t)t.head * c.copies.granules * GRANULE_BYTES;
        if (t.row < 0) {
            const int granules = (a.len_k + GRANULE - 1) / GRANULE;
            to.put(head, lane == 0 ? granules : 0, granules * GRANULE - a.len_k);
        }
        const uint32_t *const bits = a.bits + ((int64_t)t.head * a.rows + t.row) * a.words;
        const int *const first = c.copies.first + t.head * (a.cols + 1);
        int kept = 0, begin = 0, end = 0, size_from = 0, size_to = 0; /* this lane's column of the next word */
        auto look_up = [&](int w) {
            const int col = min(w * 32 + lane, a.cols - 1);
            kept = w < a.words ? (int)(bits[w] >> lane & 1) : 0;
            begin = first[col], end = first[col + 1];
            size_from = attn_edge(a, t.head, col), size_to = attn_edge(a, t.head, col + 1);
        };
        if (t.row >= 0) look_up(0);
        for (int w = 0; t.row >= 0 && w < a.words; w++) {
            const int from = begin, granules = kept ? end - begin : 0,
                      missing = (end - begin) * GRANULE - (size_to - size_from);
            look_up(w + 1); /* its answers are needed when these columns are done */
            to.put(head + (int64_t)from * GRANULE_BYTES, granules, missing);
        }
        to.end(c.copies.zeros);
    }
}

template <typename S>
__device__ __forceinline__ void produce_gathered(const hopper_call &c, const hopper_places<S> &at) {
    hopper_room<S> *const room = at.room;
    switch ((int)__shfl_sync(~0u, threadIdx.x / 32, 0)) {
    case 0: follow_tiles(c, at); break;
    case 1:
        follow_columns(c, at, c.copies.k,
                       hopper_filler<S>(at.k, at.bar(room->k_full), at.bar(room->k_empty), room->gaps));
        break;
    case 2:
        follow_columns(c, at, c.copies.v, hopper_filler<S>(at.v, at.bar(room->v_full), at.bar(room->v_empty), NULL));
        break;
    }
}
#endif
