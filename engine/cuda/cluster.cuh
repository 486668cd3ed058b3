/* What the ways of assigning tokens to centroids share: the state of a call, and how a label is written. */
#ifndef HS_CLUSTER_CUH
#define HS_CLUSTER_CUH
#include "cuda/hopper.cuh"
#include "cuda/tile.cuh"

enum { RUN = 512 }; /* tokens whose labels are counted together */

/* The tokens of one side, queries or keys. */
struct kmeans {
    CUtensorMap tokens, rounded; /* Hopper: x and halves, as the copies see them */
    const void *x;
    const uint8_t *want;
    float *centroids; /* [heads, clusters, dim] */
    int32_t *label, *order, *start;
    int *most;      /* [2, heads] the bits of the furthest move of the even, the odd rounds */
    float2 *bias;   /* [heads, padded] power of two that a product is to be multiplied with, |c|^2 / 2 */
    float *squares; /* [heads, padded] Hopper: |c|^2 / 2 of the rounded centroid */
    void *halves;   /* [heads, padded, 2 or 1, slabs * SLAB] of x's type */
    int *counts;    /* [heads, runs, clusters] labels; after scan: those of earlier runs */
    int *totals;    /* [heads, clusters] */
    float *sums;    /* [heads, segments + clusters, dim]; a cluster's sum in a segment is at their numbers' sum */
    float *other;   /* [heads, clusters, dim] centroids of the odd rounds; those of the even ones are in `centroids` */
    int64_t len, ld;
    int64_t runs, segments, padded; /* padded: clusters, up to whole tiles */
    uint64_t seed;
    int side; /* of the launch */
    int heads, dim, clusters, slabs, iters_first, iters_next, compat;
    int fours;  /* vectors can be read four elements at a time */
    int ahead;  /* 16-byte copies can bring them */
    int shared; /* bytes of shared memory of a block */
    int high;   /* Hopper: the bits of a key that are of a distance */
};

enum { SIDES = 2 };
struct kmeans_call {
    kmeans side[SIDES];
    int sides;
};

static const float NEVER = 3e38f; /* half the square of a centroid that is none */

/* What every block knows of every head: does it take part in this round; has it ended with its centroids in `other`? */
enum { RUNS = 1, ENDED = 2 };
static __device__ __forceinline__ uint8_t *states(const kmeans &m) {
    __shared__ uint8_t of_head[SIDES][HS_CLUSTER_HEADS];
    return of_head[m.side];
}
/* The centroids of a round. */
static __device__ __forceinline__ float *centroids_of(const kmeans &m, int round) {
    return round % 2 ? m.other : m.centroids;
}

static __device__ __forceinline__ void write_label(const kmeans &m, int head, int64_t token, int label) {
    m.label[head * m.len + token] = label;
    atomicAdd(&m.counts[(head * m.runs + token / RUN) * m.clusters + label], 1);
}
/* V neighbours of a vector at once. */
template <typename T, int V> struct alignas(V * sizeof(T)) several { T at[V]; };
#endif
