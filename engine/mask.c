/* Selection and statistics of block masks; host memory only. */
#include "mask.h"

#include <string.h>

/* Does column a come before column b? Larger scores first, lower columns among equals: a total order, so that what is
 * kept never depends on how it was found. */
static int before(const float *s, int32_t a, int32_t b) {
    return s[a] != s[b] ? s[a] > s[b] : a < b;
}

/* Restores the heap (root = the column that comes first) below i. */
static void sift(const float *s, int32_t *heap, int n, int i) {
    for (int c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && before(s, heap[c + 1], heap[c])) c++;
        if (!before(s, heap[c], heap[i])) break;
        const int32_t t = heap[c];
        heap[c] = heap[i];
        heap[i] = t;
    }
}

/* Is the next column, of this score, kept for its mass? kept: mass of those before it, sum: of the row. */
static int worth(float score, double kept, double sum, float p, int rule) {
    if (rule & HS_SELECT_BLOCK0) return score > 0 && kept < p * sum;
    if (rule & HS_SELECT_UPTO) return kept <= p;
    return p >= 1 || kept < p * sum;
}

int hs_mask_select(const float *score, int cols, float p, int at_least, int rule, int32_t *order, int32_t *ret_row) {
    const int least = at_least > 1 ? at_least : 1;
    double sum = 0, kept = 0;
    int n = 0;
    memset(ret_row, 0, (size_t)hs_mask_words(cols) * sizeof *ret_row);
    for (int c = 0; c < cols; c++) {
        sum += score[c];
        order[c] = c;
    }
    for (int i = cols / 2 - 1; i >= 0; i--) sift(score, order, cols, i);
    /* take the root until the mass is there: the few kept columns cost a logarithm each, the others nothing */
    for (int left = cols; left > 0 && (n < least || worth(score[order[0]], kept, sum, p, rule)); n++) {
        kept += score[order[0]];
        hs_mask_set(ret_row, order[0]);
        order[0] = order[--left];
        sift(score, order, left, 0);
    }
    if (rule & HS_SELECT_BLOCK0 && !hs_mask_bit(ret_row, 0)) {
        hs_mask_set(ret_row, 0);
        n++;
    }
    return n;
}

/* Tokens of block or cluster i of n. */
static int64_t tokens(const hs_mask *m, hs_buf start, int h, int n, int i, int64_t len) {
    if (m->block) return len - (int64_t)i * m->block < m->block ? len - (int64_t)i * m->block : m->block;
    const int32_t *s = (const int32_t *)start.p + (int64_t)h * (n + 1);
    return s[i + 1] - s[i];
}

static int kept(const hs_mask *m, int h, int r, int c) {
    if (((const uint8_t *)m->dense.p)[h]) return 1;
    return hs_mask_bit((const int32_t *)m->bits.p + ((int64_t)h * m->rows + r) * m->words, c);
}

/* Keys that a row keeps. Blocks are counted by words; each but the last has as many tokens. */
static int64_t keys_of(const hs_mask *m, int h, const int32_t *row) {
    const int32_t *start = m->block ? NULL : (const int32_t *)m->k_start.p + (int64_t)h * (m->cols + 1);
    int64_t keys = 0;
    for (int w = 0; w < m->words; w++) {
        uint32_t word = (uint32_t)row[w];
        if (m->block)
            keys += (int64_t)__builtin_popcount(word) * m->block;
        else
            for (; word; word &= word - 1) {
                const int c = w * 32 + __builtin_ctz(word);
                keys += start[c + 1] - start[c];
            }
    }
    if (m->block && hs_mask_bit(row, m->cols - 1)) keys -= (int64_t)m->cols * m->block - m->len_k;
    return keys;
}

double hs_mask_density(const hs_mask *m, int h) {
    if (((const uint8_t *)m->dense.p)[h]) return 1; /* it may never have had clusters */
    const int32_t *bits = (const int32_t *)m->bits.p + (int64_t)h * m->rows * m->words;
    int64_t pairs = 0;
    for (int r = 0; r < m->rows; r++)
        pairs += keys_of(m, h, bits + (int64_t)r * m->words) * tokens(m, m->q_start, h, m->rows, r, m->len_q);
    return (double)pairs / ((double)m->len_q * (double)m->len_k);
}

double hs_mask_overlap(const hs_mask *a, const hs_mask *b, int h) {
    int64_t both = 0, either = 0;
    for (int r = 0; r < a->rows; r++)
        for (int c = 0; c < a->cols; c++) {
            const int x = kept(a, h, r, c), y = kept(b, h, r, c);
            both += x & y;
            either += x | y;
        }
    return either ? (double)both / (double)either : 1;
}
