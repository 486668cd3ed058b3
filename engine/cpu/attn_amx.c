/* AMX micro-kernel of attention: bf16 matrix products on tiles of 16 rows x 16 words; softmax is AVX-512's.
 *
 * The packed panels are what a tile wants: 16 depth words of a panel are one tile of 1 KB in a row. The eight tile
 * registers hold 2 x 2 sums (0 to 3), two of the left operand (4, 5) and two of the right one (6, 7), so that four
 * products pay for four loads.
 *
 * The caller has Linux's permission for the tile registers (hs_cpu_detect). With HS_ATTN_AMX_EMULATE the tile
 * instructions are replaced by plain loops, so that this code is tested where there is no such processor.
 */
#if defined(__x86_64__)
#include "cpu/attn_kernels.h"

#include <immintrin.h>
#include <string.h>

/* Tile configuration, palette 1: 8 tiles of 16 rows of 64 bytes. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;
static const tile_config config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

#ifdef HS_ATTN_AMX_EMULATE
#define FN
static _Thread_local struct {
    const tile_config *config; /* NULL: not configured, as after tilerelease */
    float tile[8][16][16];
} amx;

static float bf16_half(float word, int high) {
    uint32_t u;
    memcpy(&u, &word, 4);
    u = high ? u & 0xffff0000u : u << 16;
    memcpy(&word, &u, 4);
    return word;
}
static void emulate_load(int t, const void *p, int64_t stride) {
    for (int r = 0; r < amx.config->rows[t]; r++)
        memcpy(amx.tile[t][r], (const char *)p + r * stride, amx.config->row_bytes[t]);
}
static void emulate_store(int t, void *p, int64_t stride) {
    for (int r = 0; r < amx.config->rows[t]; r++)
        memcpy((char *)p + r * stride, amx.tile[t][r], amx.config->row_bytes[t]);
}
static void emulate_dot(int c, int a, int b) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int x = 0; x < 16; x++)
                for (int high = 0; high < 2; high++)
                    amx.tile[c][r][x] += bf16_half(amx.tile[a][r][k], high) * bf16_half(amx.tile[b][k][x], high);
}
#define TILE_CONFIG(c)       (amx.config = (c))
#define TILE_RELEASE()       (amx.config = 0)
#define TILE_ZERO(t)         memset(amx.tile[t], 0, sizeof(amx.tile[t]))
#define TILE_LOAD(t, p, ld)  emulate_load(t, p, ld)
#define TILE_STORE(t, p, ld) emulate_store(t, p, ld)
#define TILE_DOT(c, a, b)    emulate_dot(c, a, b)
#else
#define FN                   __attribute__((target("amx-tile,amx-bf16")))
#define TILE_CONFIG(c)       _tile_loadconfig(c)
#define TILE_RELEASE()       _tile_release()
#define TILE_ZERO(t)         _tile_zero(t)
#define TILE_LOAD(t, p, ld)  _tile_loadd(t, p, ld)
#define TILE_STORE(t, p, ld) _tile_stored(t, p, ld)
#define TILE_DOT(c, a, b)    _tile_dpbf16ps(c, a, b)
#endif

static FN void begin(void) {
    TILE_CONFIG(&config);
}
static FN void end(void) {
    TILE_RELEASE();
}

/* Rows are computed 16 at a time: up to 15 rows behind the last one are read, computed and written as well. */
static FN void gemm(int rows, int panels, int64_t depth, const float *a, int64_t ld_a, const float *b, int64_t ld_b,
                    float *c, int64_t ld_c, int add) {
    const int64_t stride_a = ld_a * 4, stride_c = ld_c * 4, stride_b = HS_ATTN_PANEL * 4;
    for (int p = 0; p < panels; p += 2) {
        const float *b0 = b + p * ld_b, *b1 = b0 + ld_b;
        int r = 0;
        for (; r + 16 < rows; r += 32) {
            const float *a0 = a + r * ld_a, *a1 = a0 + 16 * ld_a;
            float *c0 = c + r * ld_c + p * HS_ATTN_PANEL, *c1 = c0 + 16 * ld_c;
            if (add) {
                TILE_LOAD(0, c0, stride_c);
                TILE_LOAD(1, c0 + 16, stride_c);
                TILE_LOAD(2, c1, stride_c);
                TILE_LOAD(3, c1 + 16, stride_c);
            } else {
                TILE_ZERO(0);
                TILE_ZERO(1);
                TILE_ZERO(2);
                TILE_ZERO(3);
            }
            for (int64_t d = 0; d < depth; d += 16) {
                TILE_LOAD(6, b0 + d * HS_ATTN_PANEL, stride_b);
                TILE_LOAD(4, a0 + d, stride_a);
                TILE_DOT(0, 4, 6);
                TILE_LOAD(7, b1 + d * HS_ATTN_PANEL, stride_b);
                TILE_DOT(1, 4, 7);
                TILE_LOAD(5, a1 + d, stride_a);
                TILE_DOT(2, 5, 6);
                TILE_DOT(3, 5, 7);
            }
            TILE_STORE(0, c0, stride_c);
            TILE_STORE(1, c0 + 16, stride_c);
            TILE_STORE(2, c1, stride_c);
            TILE_STORE(3, c1 + 16, stride_c);
        }
        if (r < rows) {
            const float *a0 = a + r * ld_a;
            float *c0 = c + r * ld_c + p * HS_ATTN_PANEL;
            if (add) {
                TILE_LOAD(0, c0, stride_c);
                TILE_LOAD(1, c0 + 16, stride_c);
            } else {
                TILE_ZERO(0);
                TILE_ZERO(1);
            }
            for (int64_t d = 0; d < depth; d += 16) {
                TILE_LOAD(4, a0 + d, stride_a);
                TILE_LOAD(6, b0 + d * HS_ATTN_PANEL, stride_b);
                TILE_LOAD(7, b1 + d * HS_ATTN_PANEL, stride_b);
                TILE_DOT(0, 4, 6);
                TILE_DOT(1, 4, 7);
            }
            TILE_STORE(0, c0, stride_c);
            TILE_STORE(1, c0 + 16, stride_c);
        }
    }
}

static void softmax(const hs_attn_block *b) {
    hs_attn_avx512_bf16.softmax(b);
}
static void finish(const hs_attn_block *b) {
    hs_attn_avx512_bf16.finish(b);
}
static void copy_keys(const float *k, int64_t depth, const int32_t *place, int n, float *to) {
    hs_attn_avx512_bf16.copy_keys(k, depth, place, n, to);
}
static void copy_values(const float *v, int64_t ld_v, int panels, const int32_t *place, int n, float *to, int64_t ld) {
    hs_attn_avx512_bf16.copy_values(v, ld_v, panels, place, n, to, ld);
}
static int rank(const float *s, int n, float *ret_best, float *ret_second) {
    return hs_attn_avx512.rank(s, n, ret_best, ret_second);
}

const hs_attn_kernels hs_attn_amx = {"AMX-BF16", 1, gemm, softmax, finish, copy_keys, copy_values, rank, begin, end};
#else
typedef int hs_attn_amx_none; /* ISO C wants a declaration */
#endif
