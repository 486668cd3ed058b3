/* The walk of attention over a mask: which queries make a unit of work, and which keys it needs, some at a time. Bits,
 * starts and orders become lists here and nowhere else; included by attention.c only.
 *
 * Both lists are made while walking, so that they need no room. Columns of the mask may begin and end at any place.
 * Keys come in full tiles, whatever the mask looks like: those that lie side by side, or nearly so, are used where they
 * are, what a row does not want of them is masked; the ends of runs and small columns are collected until they fill a
 * tile. Which way is taken depends on the mask alone, so that sums do not depend on the number of threads.
 */
#ifndef HS_ATTN_WALK_H
#define HS_ATTN_WALK_H
#include "cpu/attn_pack.h"
#include "mask.h"

enum {
    KEYS = 128, /* keys per step */
    TILE = 64,  /* keys that a product takes at once: four panels, its register tile */
    COPY = 10,  /* what it costs to copy a key, in query rows that could be multiplied with it instead */
    MANY = 128, /* query rows beside which that is next to nothing */
};

/* Tokens of a head in the order they are visited, cut into rows (queries) or columns (keys) of the mask. */
typedef struct axis {
    int64_t len, block;   /* tokens; tokens of every row or column, the last one has the rest; or */
    const int32_t *start; /* [count + 1] clusters */
    const int32_t *order; /* [len] token at each place; NULL = the places are the tokens */
    int count;
} axis;

/* One head of a mask. */
typedef struct head {
    axis q, k;
    const int32_t *bits; /* [q.count, words]; NULL = everything */
    int h, words;
    int rows; /* most query rows of a unit */
} head;

/* Queries [begin, end) in places of the head's q axis; they share a row of bits (NULL = everything). */
typedef struct unit {
    int64_t begin, end;
    const int32_t *bits;
    int tokens; /* of the whole row, at most MANY */
} unit;

static inline int64_t edge(const axis *x, int i) {
    return x->start ? x->start[i] : hs_min64(i * x->block, x->len);
}
static inline int64_t token(const axis *x, int64_t place) {
    return x->order ? x->order[place] : place;
}

/* ---- which queries ---------------------------------------------------------------------------------------------- */

/* Units of a head are numbered so that no list is needed. A row of a uniform mask has always the same number of them. A
 * cluster begins at number row + (its first place) / rows, which leaves it at least as many as it needs; some numbers
 * stay empty. */
static inline int64_t unit_count(const head *x) {
    return x->q.start ? x->q.count + x->q.len / x->rows : x->q.count * ((x->q.block + x->rows - 1) / x->rows);
}

/* Rows of one mask row are shared out evenly. 0: number t is empty. */
static inline int unit_at(const head *x, int64_t t, unit *ret) {
    int64_t row, part, parts;
    if (x->q.start) {
        int low = 0, high = x->q.count; /* the last row that begins at t or before */
        while (high - low > 1) {
            int mid = (low + high) / 2;
            if (mid + x->q.start[mid] / x->rows <= t)
                low = mid;
            else
                high = mid;
        }
        row = low;
        part = t - low - x->q.start[low] / x->rows;
    } else {
        parts = (x->q.block + x->rows - 1) / x->rows;
        row = t / parts;
        part = t % parts;
    }
    if (row >= x->q.count) return 0;
    int64_t begin = edge(&x->q, (int)row), n = edge(&x->q, (int)row + 1) - begin;
    parts = (n + x->rows - 1) / x->rows;
    if (part >= parts) return 0;
    *ret = (unit){begin + part * n / parts, begin + (part + 1) * n / parts, x->bits ? x->bits + row * x->words : NULL,
                  (int)hs_min64(n, MANY)};
    return 1;
}

/* ---- which keys ------------------------------------------------------------------------------------------------- */

/* At most KEYS keys of a segment, in tiles of TILE; only the last tile of a walk may have fewer. Places count from the
 * segment's begin. */
typedef struct step {
    int tiles, keys;
    int64_t at[KEYS / TILE];    /* first place of a tile that is used where it lies, a multiple of a panel; else -1 */
    uint64_t keep[KEYS / TILE]; /* which of its keys count */
    int32_t copied[KEYS / TILE][TILE]; /* places of one that is not; the last is repeated up to HS_ATTN_PAD */
} step;

/* Where a row of the mask stands in its list of keys [first, last): what counts of the TILE places from `at` on is in
 * the window, what comes behind is the run [begin, end) and the columns from `col` on. Places that were taken and lie
 * too far apart wait among the loose ones until they fill a tile. */
typedef struct walk {
    const axis *k;
    const int32_t *bits;
    int64_t first, last; /* first is a multiple of KEYS */
    int means;           /* what is walked are means of columns, those that the row drops */
    int tokens;          /* of the row */
    int col;
    int64_t begin, end, at;
    uint64_t window;
    int count; /* of the loose ones */
    int32_t loose[TILE + HS_ATTN_PANEL];
} walk;

/* The first column from `col` on whose bit is `value`, or cols. */
static inline int find_bit(const int32_t *bits, int col, int cols, int value) {
    while (col < cols) {
        const uint32_t word = ((uint32_t)bits[col / 32] ^ (value ? 0 : ~0u)) >> col % 32;
        if (word) return (int)hs_min64(col + __builtin_ctz(word), cols);
        col = (col / 32 + 1) * 32;
    }
    return cols;
}

/* The next run of walked columns that has keys in the segment. */
static inline void next_run(walk *w) {
    const int cols = w->k->count;
    do {
        const int first = w->bits ? find_bit(w->bits, w->col, cols, !w->means) : w->col;
        w->col = w->bits ? find_bit(w->bits, first, cols, w->means) : cols;
        w->begin = w->means ? first : edge(w->k, first);
        w->end = hs_min64(w->means ? w->col : edge(w->k, w->col), w->last);
        if (w->begin < w->first) w->begin = w->first;
    } while (w->begin >= w->end && w->col < cols);
}

static inline uint64_t first_bits(int64_t n) {
    return n < 64 ? (1ull << n) - 1 : ~0ull;
}

/* The window moves on by n places, or to the panel where the next run begins if it is empty. */
static inline void move_window(walk *w, int n) {
    w->window = n < TILE ? w->window >> n : 0;
    w->at += n;
    if (!w->window && w->begin < w->end) w->at = w->begin / HS_ATTN_PANEL * HS_ATTN_PANEL;
    while (w->begin < w->end && w->begin < w->at + TILE) {
        const int64_t end = hs_min64(w->end, w->at + TILE);
        w->window |= first_bits(end - w->at) & ~first_bits(w->begin - w->at);
        w->begin = end;
        if (w->begin == w->end) next_run(w);
    }
}

static inline walk walk_begin(const head *x, const unit *u, int64_t first, int64_t last, int means) {
    walk w = {.k = &x->k, .bits = u->bits, .first = first, .last = last, .means = means, .tokens = u->tokens};
    next_run(&w);
    move_window(&w, 0);
    return w;
}

static inline void put_tile(step *st, int64_t at, uint64_t keep, int n) {
    st->at[st->tiles] = at;
    st->keep[st->tiles++] = keep;
    st->keys += n;
}

static inline void put_loose(walk *w, step *st) {
    const int n = w->count < TILE ? w->count : TILE;
    int32_t *to = st->copied[st->tiles];
    memcpy(to, w->loose, (size_t)n * sizeof *to);
    for (int i = n; i < hs_round_up(n, HS_ATTN_PAD); i++) to[i] = to[n - 1];
    put_tile(st, -1, first_bits(n), n);
    w->count -= n;
    memcpy(w->loose, w->loose + TILE, (size_t)w->count * sizeof *to);
}

/* All of the window where it lies, or its first panel to the loose ones: whatever costs less. The end of the segment is
 * a tile only if it is the last one, and if the zeros behind it, up to a multiple of HS_ATTN_PAD, reach as far as
 * products do: a window may begin in the middle of that. */
static inline void take_window(walk *w, step *st) {
    const int n = (int)hs_min64(TILE, w->last - w->at), kept = __builtin_popcountll(w->window);
    const int32_t from = (int32_t)(w->at - w->first);
    const int ends = !w->count && w->at + hs_round_up(n, HS_ATTN_PAD) <= hs_round_up(w->last, HS_ATTN_PAD);
    if (kept * (w->tokens + COPY) >= n * w->tokens && (n == TILE || ends)) {
        put_tile(st, from, w->window, n);
        move_window(w, TILE);
    } else {
        for (uint32_t left = w->window & 0xffff; left; left &= left - 1)
            w->loose[w->count++] = from + __builtin_ctz(left);
        move_window(w, HS_ATTN_PANEL);
    }
}

/* What comes next; 0 = the list is at its end. */
static inline int walk_next(walk *w, step *st) {
    st->tiles = st->keys = 0;
    while (st->tiles < KEYS / TILE && (w->window || w->count)) {
        if (w->count >= TILE || !w->window)
            put_loose(w, st);
        else
            take_window(w, st);
    }
    return st->keys;
}

static inline int32_t place(const step *st, int k, int i) {
    return st->at[k] < 0 ? st->copied[k][i] : (int32_t)st->at[k] + i;
}

#endif
