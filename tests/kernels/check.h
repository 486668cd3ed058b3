/* What the files of kernelcheck share: a test is one operation on made-up operands; a case is its line of text.
 *
 * "linear rows=17 in=48 out=33 y=act" names the operation and its parameters; the operand values follow from the line
 * and the seed alone. An `operation` knows how to make the operands (setup), how to call the operation (call) and how a
 * plain loop in the device's own precision would compute it (plain). kernelcheck.c does the rest, the same for every
 * operation.
 */
#ifndef CHECK_H
#define CHECK_H
#include "backend.h"

enum { MAX_OPERANDS = 16, MAX_DIMS = 6 };

typedef enum role { IN, OUT, INOUT } role;
typedef enum kind { F32, ACT, I32, U8 } kind; /* ACT: the device's act type, F32 on ref; I32 below 2^24 */

typedef struct operand {
    const char *name;
    role role;
    kind kind;
    int ndim;
    int64_t dim[MAX_DIMS], n;
    float *data;     /* [n] before the call, exact in the device's type; of an OUT operand poison */
    float *ref;      /* [n] after the call on ref */
    float *plain;    /* [n] what the plain loop gives, rounded to the operand's type */
    double *mag;     /* [n] sum of the magnitudes of what was added up; the scale of errors. < 0: must not be written */
    double *sum_mag; /* [n] the same for errors of fp32 sums before the operands of a product are rounded */
} operand;

typedef struct test {
    const char *line;
    uint64_t seed;
    hs_dtype act; /* of the device under test: F32, BF16 or F16 */
    int exact;    /* outputs must equal the plain loop's bit for bit */
    int expect;   /* the sticky error that the operation must leave */
    operand o[MAX_OPERANDS];
    int count;
    float *w, *bias; /* weight values in the order of the source, all parts together */
    void *memory[6]; /* what the sources below point into */
    hs_linear_src linear;
    hs_conv_src conv;
} test;

typedef struct side {
    hs_device *dev;
    hs_buf b[MAX_OPERANDS]; /* of t->o */
    hs_weight *w;
} side;

typedef struct operation {
    const char *name;
    void (*list)(void); /* emits the cases */
    void (*setup)(test *t);
    void (*call)(const test *t, const side *s);
    void (*plain)(test *t);
    double (*flops)(const test *t); /* NULL: bound by memory */
    const char *const *bench;       /* lines to time, NULL terminated */
    /* NULL, or after plain: where rounding decides between results that are all right, those that the device chose
     * (got: of every operand) become ref and plain */
    void (*accept)(test *t, float *const *got);
} operation;

extern const operation op_linear, op_attention, op_conv, op_norm, op_modulation, op_qk_norm, op_gated_gelu,
    op_gather_rows, op_combine, op_patchify, op_unpatchify, op_latent_frames, op_channel_norm, op_split_frames,
    op_to_u8, op_count_nonfinite, op_copy, op_zero, op_masked, op_block_scores, op_centroid_scores, op_select,
    op_mask_density, op_block_means, op_cluster, op_reuse;

/* ---- kernelcheck.c --------------------------------------------------------------------------------------------- */
void emit(const char *fmt, ...) HS_PRINTF(1, 2);           /* adds a case */
int64_t get(const test *t, const char *key);               /* key=number of the line, 0 if absent */
int is(const test *t, const char *key, const char *value); /* key=value is in the line */
void *need_memory(size_t count, size_t bytes);             /* cleared; ends the program when exhausted */
double noise(const test *t, int stream, int64_t i);        /* mean 0, deviation 1, at most 3.5 */
float to_type(const test *t, kind k, double v);            /* rounded to what the device stores */
operand *add_operand(test *t, const char *name, role r, kind k, double scale, int ndim, const int64_t *dim);
operand *add_want(test *t, int heads); /* of predictors: who wants a new mask, by skip= and first= of the line */
#define OPERAND(t, name, role, kind, scale, ...)                                                                       \
    add_operand(t, name, role, kind, scale, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),                 \
                (int64_t[]){__VA_ARGS__})
/* Weight sources from t->line's wt=f32|bf16|f16 and bias=; they begin 2 bytes off any alignment. */
void add_linear(test *t, int parts, const int64_t *out, int64_t in, int f32);
void add_conv(test *t, int cout, int cin, int kt, int ky, int kx, int up2);
/* The plain loop's result for element i. */
void put(const test *t, operand *o, int64_t i, double value, double mag, double sum_mag);

#endif
