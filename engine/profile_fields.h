/* The format of profiles as tables: one row is one key of the JSON and its place in hs_profile. Read by profile.c,
 * written by profile_write.c. */
#ifndef HS_PROFILE_FIELDS_H
#define HS_PROFILE_FIELDS_H
#include "model.h"
#include "profile.h"

#include <stddef.h>

/* TEXT: up to `high` bytes with the NUL. SHA: 64 lower-case hex digits. NAME: an int, one of `high` names. KNOWN: a
 * double that may be missing or null = NAN. SWITCH: an int, missing = false. */
typedef enum kind { INT, REAL, FLOAT, KNOWN, TEXT, SHA, NAME, SWITCH } kind;

typedef struct field {
    const char *key;
    kind kind;
    size_t at; /* in hs_profile, or in hs_profile_budget */
    double low, high;
    const char *(*name)(int);
} field;

static const char *method_name(int k) {
    return hs_method_name((hs_method)k);
}
static const char *reuse_name(int k) {
    return hs_reuse_name((hs_reuse_kind)k);
}
static const char *solver_name(int k) {
    return hs_solver_name((hs_solver_kind)k);
}

/* clang-format off */
#define AT(member) offsetof(hs_profile, member)
#define BUDGET_AT(member) offsetof(hs_profile_budget, member)
#define TEXT_AT(member) TEXT, AT(member), 0, sizeof((hs_profile *)0)->member
static const field made_fields[] = {{"by", TEXT_AT(made_by)}, {"at", TEXT_AT(made_at)}, {0}};
static const field model_fields[] = {
    {"name", TEXT_AT(model)},
    {"sha256", SHA, AT(sha256)},
    {"layers", INT, AT(layers), 1, HS_MAX_LAYERS},
    {"heads", INT, AT(heads), 1, HS_MAX_HEADS}, {0}};
static const field made_for_fields[] = {
    {"width", INT, AT(width), 16, 65536},
    {"height", INT, AT(height), 16, 65536},
    {"frames", INT, AT(frames), 1, 65536},
    {"steps", INT, AT(steps), 1, HS_MAX_STEPS},
    {"shift", REAL, AT(shift), 0, 100},
    {"guidance", REAL, AT(guidance), 0, 1000},
    {"solver", NAME, AT(solver), 0, HS_EULER + 1, solver_name}, {0}};

#define P(member) AT(policy.member)
#define METHOD {"name", NAME, P(method), 0, HS_METHOD_COUNT, method_name}
#define BLOCK {"block", INT, P(block), 64, 128}
#define MASK_SWITCHES {"seed_exact", SWITCH, P(seed_exact)}, {"compat", SWITCH, P(compat)}
static const field dense_fields[] = {METHOD, {0}};
static const field xattention_fields[] = {
    METHOD, BLOCK, {"stride", INT, P(stride), 1, 16}, {"compensate", SWITCH, P(compensate)}, MASK_SWITCHES, {0}};
static const field pooled_fields[] = {METHOD, BLOCK, {"compensate", SWITCH, P(compensate)}, MASK_SWITCHES, {0}};
static const field svg2_fields[] = {
    METHOD,
    {"q_clusters", INT, P(q_clusters), 1, 65535},
    {"k_clusters", INT, P(k_clusters), 1, 65535},
    {"iters_first", INT, P(iters_first), 1, 1000},
    {"iters_next", INT, P(iters_next), 1, 1000},
    {"min_share", FLOAT, P(min_share), 0, 1},
    MASK_SWITCHES, {0}};
static const field *const method_fields[HS_METHOD_COUNT] = {
    [HS_DENSE] = dense_fields, [HS_XATTENTION] = xattention_fields, [HS_SVG2] = svg2_fields, [HS_POOLED] = pooled_fields};

#define REUSE {"kind", NAME, P(reuse.kind), 0, HS_REUSE_FREEZE + 1, reuse_name}
static const field plain_reuse_fields[] = {REUSE, {0}};
static const field drift_fields[] = {
    REUSE,
    {"delta", FLOAT, P(reuse.delta), 0, 1e9},
    {"gate_low", FLOAT, P(reuse.gate_low), 0, 1},
    {"gate_high", FLOAT, P(reuse.gate_high), 0, 1}, {0}};
static const field interval_fields[] = {REUSE, {"interval", INT, P(reuse.interval), 1, 1000}, {0}};
static const field *const reuse_fields[] = {
    [HS_REUSE_NONE] = plain_reuse_fields, [HS_REUSE_DRIFT] = drift_fields, [HS_REUSE_RELATIVE] = drift_fields,
    [HS_REUSE_INTERVAL] = interval_fields, [HS_REUSE_FREEZE] = plain_reuse_fields};
static const field warm_up_fields[] = {
    {"steps", INT, P(dense_steps), 0, HS_MAX_STEPS}, {"layers", INT, P(dense_layers), 0, HS_MAX_LAYERS}, {0}};
static const field calibration_fields[] = {
    {"prompts_sha256", SHA, AT(prompts_sha256)},
    {"table_sha256", SHA, AT(table_sha256)},
    {"error", TEXT_AT(error_name)},
    {"seed", REAL, AT(seed), 0, HS_JSON_MAX_INT}, {0}};
static const field budget_fields[] = {
    {"target", REAL, BUDGET_AT(target), 0, 1},
    {"sparsity", KNOWN, BUDGET_AT(sparsity), 0, 1},
    {"error", KNOWN, BUDGET_AT(error), 0, 1e30},
    {"bound", KNOWN, BUDGET_AT(bound), -1e30, 1e30},
    {"gap", KNOWN, BUDGET_AT(gap), 0, 1e30},
    {"joint_error", KNOWN, BUDGET_AT(joint_error), 0, 1e30}, {0}};
/* clang-format on */

#endif
