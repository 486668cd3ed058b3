/* Tables of measurements: any bytes. What is read keeps every promise of table.h, does not change when it is merged
 * with itself, and is what a writer sees that goes on with the file. */
#include "fuzz.h"
#include "table.h"

#include <math.h>
#include <unistd.h>

static void check_measured(const hs_measured *m) {
    const double v[] = {m->error, m->error_band, m->error_cond, m->error_uncond, m->sparsity, m->seconds};
    for (int k = 0; k < 6; k++) FUZZ_ASSERT(v[k] >= 0 && !isinf(v[k]));
    FUZZ_ASSERT(m->sparsity <= 1);
}

static void check(const hs_table *t) {
    const hs_table_info *i = &t->info;
    FUZZ_ASSERT(i->layers >= 1 && i->layers <= 128 && i->heads >= 1 && i->heads <= 128);
    FUZZ_ASSERT(i->policy.method != HS_DENSE && !hs_attn_policy_check(&i->policy, i->layers, i->heads, NULL));
    FUZZ_ASSERT(i->n_intervals >= 1 && i->n_intervals <= HS_PROFILE_MAX_INTERVALS);
    FUZZ_ASSERT(i->n_candidates >= 1 && i->n_candidates <= HS_PROFILE_MAX_CANDIDATES);
    FUZZ_ASSERT(strlen(i->sha256) == 64 && strlen(i->prompts_sha256) == 64 && strlen(t->sha256) == 64);
    for (int k = 0; k < i->n_intervals; k++)
        FUZZ_ASSERT(i->intervals[k][0] >= 0 && i->intervals[k][0] <= i->intervals[k][1] &&
                    i->intervals[k][1] < i->steps);
    for (int64_t k = 0; k < t->n_probes; k++) {
        const hs_probe *p = &t->probes[k];
        FUZZ_ASSERT(p->layer >= 0 && p->layer < i->layers && p->head >= 0 && p->head < i->heads);
        FUZZ_ASSERT(p->candidate >= 0 && p->candidate < i->n_candidates && p->prompt >= 0 && p->prompt < i->prompts);
        FUZZ_ASSERT(p->interval >= 0 && p->interval < i->n_intervals);
        FUZZ_ASSERT(p->step >= i->intervals[p->interval][0] && p->step <= i->intervals[p->interval][1]);
        check_measured(&p->m);
    }
    for (int64_t k = 0; k < t->n_joints; k++) {
        const hs_joint *j = &t->joints[k];
        FUZZ_ASSERT(j->candidate >= HS_JOINT_FLOOR && j->candidate < i->n_candidates && j->prompt >= 0);
        FUZZ_ASSERT(j->interval >= 0 && j->interval < i->n_intervals);
        FUZZ_ASSERT(strlen(j->config) == (j->candidate == HS_JOINT_CONFIG ? 16 : 0));
        check_measured(&j->m);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
    char path[64];
    hs_table *t = NULL, *twice = NULL;
    hs_err err = {0};
    snprintf(path, sizeof path, "/tmp/haste-fuzz-table.%ld", (long)getpid());
    FILE *f = fopen(path, "wb");
    FUZZ_ASSERT(f && fwrite(data, 1, len, f) == len && !fclose(f));
    const char *const both[] = {path, path};
    const int rc = hs_table_load(1, both, &t, &err);
    if (rc) {
        FUZZ_ASSERT(!t && err.code == rc && *err.msg && (rc == HS_EFORMAT || rc == HS_ENOTSUP || rc == HS_EINVAL));
    } else {
        hs_table_writer *w = NULL;
        check(t);
        FUZZ_ASSERT(!hs_table_load(2, both, &twice, &err));
        FUZZ_ASSERT(twice->n_probes == t->n_probes && !strcmp(twice->sha256, t->sha256));
        FUZZ_ASSERT(!hs_table_open(path, &t->info, &w, &err));
        FUZZ_ASSERT(!strcmp(hs_table_so_far(w)->sha256, t->sha256));
        const hs_probe p = {.step = t->info.intervals[0][0], .m.error = 1e30};
        FUZZ_ASSERT(!hs_table_add_probe(w, &p, &err) && !hs_table_close(w, &err));
        hs_table_free(twice);
        FUZZ_ASSERT(!hs_table_load(1, both, &twice, &err) && twice->n_probes >= t->n_probes);
        hs_table_free(twice);
        hs_table_free(t);
    }
    unlink(path);
    FUZZ_ASSERT(hs_alloc_live() == 0);
    return 0;
}
