/* Profiles: any bytes. What is accepted keeps every promise of profile.h, gives a policy that hs_attn_policy_check
 * accepts at any number of steps, and comes back the same when it is saved and read again. */
#include "fuzz.h"
#include "profile.h"

#include <math.h>
#include <unistd.h>

static int share(double v) {
    return v >= 0 && v <= 1;
}

static void check(const hs_profile *p) {
    FUZZ_ASSERT(p->layers >= 1 && p->layers <= 128 && p->heads >= 1 && p->heads <= 128);
    FUZZ_ASSERT(p->n_budgets >= 1 && p->n_budgets <= HS_PROFILE_MAX_BUDGETS && strlen(p->sha256) == 64);
    FUZZ_ASSERT(p->steps >= 1 && p->policy.dense_steps <= p->steps && p->policy.method != HS_DENSE);
    FUZZ_ASSERT(p->n_intervals <= HS_PROFILE_MAX_INTERVALS && p->n_candidates <= HS_PROFILE_MAX_CANDIDATES);
    for (int i = 0; i < p->n_budgets; i++) {
        const hs_profile_budget *b = &p->budgets[i];
        int found = -1;
        hs_attn_policy a;
        FUZZ_ASSERT(share(b->target) && (isnan(b->sparsity) || share(b->sparsity)) && !isinf(b->error));
        FUZZ_ASSERT(!hs_profile_choose(p, b->target, &found, NULL) && found == i);
        static const int steps[] = {1, 7, 50, HS_MAX_STEPS};
        for (int k = 0; k < 4; k++) {
            FUZZ_ASSERT(!hs_profile_policy(p, i, steps[k], &a, NULL) && a.top_p_heads == b->top_p);
            FUZZ_ASSERT(!hs_attn_policy_check(&a, p->layers, p->heads, NULL) && a.dense_steps <= steps[k]);
            FUZZ_ASSERT(!p->policy.dense_steps == !a.dense_steps);
            FUZZ_ASSERT(a.intervals == b->intervals && b->until[b->intervals - 1] == 1);
            FUZZ_ASSERT(a.interval_start[a.intervals - 1] <= steps[k]);
        }
    }
}

static void save_and_load(const hs_profile *p) {
    char path[64];
    hs_profile *again = NULL;
    hs_err err = {0};
    snprintf(path, sizeof path, "/tmp/haste-fuzz-profile.%ld", (long)getpid());
    FUZZ_ASSERT(!hs_profile_save(path, p, &err));
    FUZZ_ASSERT(!hs_profile_load(path, &again, &err) && again->n_budgets == p->n_budgets);
    for (int i = 0; i < p->n_budgets; i++)
        FUZZ_ASSERT(!memcmp(again->budgets[i].top_p, p->budgets[i].top_p,
                            (size_t)(p->budgets[i].intervals * p->layers * p->heads) * sizeof(float)) &&
                    !memcmp(again->budgets[i].until, p->budgets[i].until, sizeof p->budgets[i].until));
    FUZZ_ASSERT(again->policy.reuse.delta == p->policy.reuse.delta && again->seed == p->seed);
    hs_profile_free(again);
    unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    hs_profile *p = NULL;
    hs_err err = {0};
    int rc = hs_profile_parse((const char *)data, len, "fuzz", &p, &err);
    if (rc) {
        FUZZ_ASSERT(!p && err.code == rc && *err.msg && (rc == HS_EFORMAT || rc == HS_ENOTSUP));
    } else {
        char text[64];
        check(p);
        save_and_load(p);
        hs_profile_differences(p, &(hs_request){.width = 16, .steps = 3}, text, sizeof text);
        hs_profile_free(p);
    }
    FUZZ_ASSERT(hs_alloc_live() == 0);
    return 0;
}
