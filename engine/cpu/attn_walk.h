/* The walk of attention over a mask: which queries make a unit of work, and which keys it needs, some at a time. Bits,
 * starts and orders become lists here and nowhere else; included by attention.c only.
 *
 * Both lists are made while walking, so that they need no room. Columns of the mask may begin and end at any place;
 * keys come in groups of GROUP neighbours with a bit for each that counts, from anywhere, so that a step is full
 * whatever the mask looks like and a group that two columns share is computed once.
 */
#ifndef HS_ATTN_WALK_H
#define HS_ATTN_WALK_H
#include "cpu/attn_pack.h"
#include "mask.h"

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
    *ret = (unit){begin + part * n / parts, begin + (part + 1) * n / parts, x->bits ? x->bits + row * x->words : NULL};
    return 1;
}

/* ---- which keys ------------------------------------------------------------------------------------------------- */

enum {
    KEYS = 128, /* keys per step */
    GROUP = 16, /* neighbouring keys that are taken or left together: a panel */
};

/* At most KEYS keys of a segment, in groups: at is the group's first key, counted from the segment's begin, and a
 * multiple of GROUP; keep has a bit for each of its keys that counts. */
typedef struct step {
    int groups;
    int64_t at[KEYS / GROUP];
    uint32_t keep[KEYS / GROUP];
} step;

/* Where a unit stands in its list of keys [first, last): columns before `col` are done but for the keys [begin, end).
 */
typedef struct walk {
    const axis *k;
    const int32_t *bits;
    int64_t first, last; /* first is a multiple of KEYS */
    int means;           /* what is walked are means of columns, those that the row drops */
    int col;
    int64_t begin, end;
} walk;

/* The next run of kept columns that has keys in the segment. */
static inline void next_run(walk *w) {
    const int32_t *bits = w->bits;
    const int cols = w->k->count;
    do {
        while (w->col < cols && bits && !hs_mask_bit(bits, w->col)) w->col++;
        int first = w->col;
        while (w->col < cols && (!bits || hs_mask_bit(bits, w->col))) w->col++;
        w->begin = edge(w->k, first);
        w->end = hs_min64(edge(w->k, w->col), w->last);
        if (w->begin < w->first) w->begin = w->first;
    } while (w->begin >= w->end && w->col < cols);
}

static inline uint32_t bits_between(int64_t begin, int64_t end) {
    return ((1u << end) - 1u) & ~((1u << begin) - 1u);
}

static inline void next_keys(walk *w, step *st) {
    st->groups = 0;
    while (st->groups < KEYS / GROUP && w->begin < w->end) {
        const int64_t at = w->begin / GROUP * GROUP;
        uint32_t keep = 0;
        while (w->begin < w->end && w->begin < at + GROUP) {
            int64_t end = hs_min64(w->end, at + GROUP);
            keep |= bits_between(w->begin - at, end - at);
            w->begin = end;
            if (w->begin == w->end) next_run(w);
        }
        st->at[st->groups] = at - w->first;
        st->keep[st->groups++] = keep;
    }
}

/* Means of what the row drops: a group is half a word of bits. */
static inline void next_means(walk *w, step *st) {
    const int cols = (int)w->last;
    for (st->groups = 0; st->groups < KEYS / GROUP && w->col < cols; w->col += GROUP) {
        uint32_t keep =
            ~((uint32_t)w->bits[w->col / 32] >> w->col % 32) & bits_between(0, hs_min64(GROUP, cols - w->col));
        if (!keep) continue;
        st->at[st->groups] = w->col - w->first;
        st->keep[st->groups++] = keep;
    }
}

static inline walk walk_begin(const head *x, const unit *u, int64_t first, int64_t last, int means) {
    walk w = {.k = &x->k, .bits = u->bits, .first = first, .last = last, .means = means, .col = means ? (int)first : 0};
    if (!means) next_run(&w);
    return w;
}

/* What comes next; 0 = the list is at its end. */
static inline int walk_next(walk *w, step *ret) {
    if (w->means)
        next_means(w, ret);
    else
        next_keys(w, ret);
    return ret->groups;
}

enum { ALL_KEYS = (1 << GROUP) - 1 };

/* Groups from g on that lie side by side in the segment. */
static inline int neighbours(const step *st, int g) {
    int n = 1;
    while (g + n < st->groups && st->at[g + n] == st->at[g] + n * GROUP) n++;
    return n;
}

#endif
