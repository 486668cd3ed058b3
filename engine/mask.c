/* Selection and statistics of block masks; host memory only. */
#include "mask.h"

#include <stdlib.h>
#include <string.h>

/* Heap order of columns: smallest score at the root, among equals the highest column, so that what is popped is what is
 * wanted least. */
static int better(const float *s, int a, int b) { return s[a] != s[b] ? s[a] > s[b] : a < b; }

static void sift(const float *s, int32_t *heap, int n, int i) {
    for (int c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && better(s, heap[c + 1], heap[c])) c++;
        if (!better(s, heap[c], heap[i])) break;
        int32_t t = heap[c];
        heap[c] = heap[i];
        heap[i] = t;
    }
}

int hs_mask_select(const float *score, int cols, float p, int at_least, int32_t *order, int32_t *ret_row) {
    memset(ret_row, 0, (size_t)hs_mask_words(cols) * sizeof *ret_row);
    double sum = 0, kept = 0;
    for (int c = 0; c < cols; c++) sum += score[c], order[c] = c;
    for (int i = cols / 2 - 1; i >= 0; i--) sift(score, order, cols, i);
    /* pop the best column until the mass is there: the few kept columns cost a logarithm each, the others nothing */
    int n = 0, left = cols;
    while (left > 0 && (p >= 1 || n < at_least || kept < p * sum)) {
        int c = order[0];
        hs_mask_set(ret_row, c);
        kept += score[c];
        n++;
        order[0] = order[--left];
        sift(score, order, left, 0);
    }
    return n;
}
