/* Measuring in pieces: shards, Ctrl-C, kill -9, a full disk. However the pieces end, together they are the table of an
 * undisturbed run. */
#include "measure_util.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(measure_ends, .fini = scratch_remove);

Test(measure_ends, shards_are_the_whole) {
    setup s = make_setup(FAST, HS_SVG2);
    static const float mixed[CELLS] = {0.3f, 1, 0.55f, 0.9f};
    const hs_thresholds config = {1, mixed};
    char path[8][128];
    const char *paths[8];
    int64_t passes = 0, whole_passes = 0;
    hs_err err = {0};
    for (int shards = 1; shards <= 7; shards += shards == 1 ? 1 : 5) { /* 1, 2, 7: more than prompts */
        s.p.shards = shards;
        passes = 0;
        for (int k = 0; k < shards; k++) {
            hs_measure_plan plan;
            s.p.shard = k;
            snprintf(path[k], sizeof path[k], "%s", scratch("s%d-%d", shards, k));
            paths[k] = s.p.table = path[k];
            cr_assert_eq(hs_measure_plan_make(s.m, &s.req, &s.p, &plan, &err), 0, "%s", err.msg);
            passes += plan.dense_passes;
            measure_into(&s, path[k]);
            cr_assert_eq(hs_measure_joint(s.m, &s.req, &s.p, 1, 1, &config, &err), 0, "%s", err.msg);
        }
        hs_table *t = load_tables(shards, paths);
        static char want[65];
        if (shards == 1) {
            strcpy(want, t->sha256);
            whole_passes = passes;
            cr_assert_eq(t->n_probes, CELLS * 3 * 2 * 2);
            cr_assert_eq(t->n_joints, 2 * 2 + (3 + 1) * 2 * 4); /* the floor of two prompts; both pools */
        }
        cr_assert_str_eq(t->sha256, want, "%d shards", shards);
        if (shards == 2) cr_assert_eq(passes, whole_passes, "shards share a dense pass");
        int64_t sum = 0;
        for (int k = 0; k < shards; k++) {
            hs_table *one = load_tables(1, &paths[k]);
            sum += one->n_probes;
            hs_table_free(one);
        }
        cr_assert_eq(sum, t->n_probes, "shards share probes");
        hs_table_free(t);
    }
    free_setup(&s);
}

/* ---- bad ends ---- */

static int countdown;

static int tired(void *user) {
    (void)user;
    return --countdown < 0;
}

static void want_table(setup *s, char ret[65]) {
    const char *path = scratch("want");
    measure_into(s, path);
    hs_table *t = load_tables(1, &path);
    strcpy(ret, t->sha256);
    hs_table_free(t);
}

Test(measure_ends, ctrl_c_anywhere) {
    setup s = make_setup(FAST, HS_XATTENTION);
    char want[65];
    const char *path = scratch("t");
    int64_t before = 0;
    int stops = 0;
    want_table(&s, want);
    s.p.interrupted = tired;
    s.p.table = path;
    for (;; stops++) {
        hs_err err = {0};
        countdown = 3 + 7 * stops % 20;
        int r = hs_measure_probes(s.m, &s.req, &s.p, &err);
        hs_table *t = load_tables(1, &path);
        cr_assert_geq(t->n_probes, before, "probes are lost");
        before = t->n_probes;
        if (!r) cr_assert_str_eq(t->sha256, want);
        hs_table_free(t);
        if (!r) break;
        cr_assert_eq(r, HS_EINTR, "%s", err.msg);
        cr_assert_lt(stops, 500);
    }
    cr_assert_geq(stops, 5);
    free_setup(&s);
}

Test(measure_ends, disk_full) {
    setup s = make_setup(FAST, HS_XATTENTION);
    char want[65];
    const char *path = scratch("t");
    struct rlimit was, limit;
    want_table(&s, want);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &was);
    limit = was;
    s.p.table = path;
    s.p.interrupted = tired;
    int64_t before = -1;
    /* latents are 49 kB: first recording fails; then it works and some probes come; then the table is full */
    static const struct {
        rlim_t room;
        int calls, code;
        const char *message;
    } tries[] = {{20000, 1000, HS_EIO, ".latents/"},
                 {60000, 40, HS_EINTR, "interrupted"},
                 {4000, 1000, HS_EIO, "t: File too large"}};
    for (int k = 0; k < 3; k++) {
        hs_err err = {0};
        limit.rlim_cur = tries[k].room;
        countdown = tries[k].calls;
        setrlimit(RLIMIT_FSIZE, &limit);
        int r = hs_measure_probes(s.m, &s.req, &s.p, &err);
        setrlimit(RLIMIT_FSIZE, &was);
        cr_assert(r == tries[k].code && strstr(err.msg, tries[k].message), "%d %s", r, err.msg);
        hs_table *t = load_tables(1, &path);
        if (k) cr_assert_gt(t->n_probes, before);
        before = t->n_probes;
        hs_table_free(t);
    }
    s.p.interrupted = NULL;
    measure_into(&s, path);
    hs_table *t = load_tables(1, &path);
    cr_assert_str_eq(t->sha256, want);
    hs_table_free(t);
    free_setup(&s);
}

static _Atomic int64_t *said; /* shared with the children: probes that were reported as measured */

static void count_probe(void *user, const char *what, int64_t at, int64_t total, double seconds, double eta) {
    (void)user, (void)at, (void)total, (void)seconds, (void)eta;
    if (!strcmp(what, "probing")) atomic_fetch_add(said, 1);
}

#ifndef KILLS
#define KILLS 50 /* fewer under sanitizers, which are slow */
#endif

/* kill -9 at random moments: every probe that was reported is in the table, and the end is the same as without. */
Test(measure_ends, killed_at_random, .timeout = 300) {
    setup s = make_setup(FAST, HS_XATTENTION);
    char want[65];
    const char *path = scratch("t");
    int64_t before = 0;
    said = mmap(NULL, sizeof *said, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)said, MAP_FAILED);
    /* undisturbed, in a child too: threads of a parent are not there after fork */
    const double start = hs_seconds();
    const char *undisturbed = scratch("want");
    int kills = 0, status;
    s.p.table = undisturbed;
    pid_t child = fork();
    if (!child) _exit(hs_measure_probes(s.m, &s.req, &s.p, NULL) ? 1 : 0);
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
    const double whole = hs_seconds() - start;
    hs_table *t = load_tables(1, &undisturbed);
    strcpy(want, t->sha256);
    hs_table_free(t);
    s.p.table = path;
    s.p.progress = count_probe;
    for (int round = 0; kills < KILLS; round++) {
        atomic_store(said, 0);
        child = fork();
        if (!child) _exit(hs_measure_probes(s.m, &s.req, &s.p, NULL) ? 1 : 0);
        /* short lives first, so that the beginning is hit too; later ones get far enough to finish some probes */
        usleep((unsigned)(1e6 * whole * (double)(hs_hash64((uint64_t)round) % 1000) / 1000 * (round % 5 ? 0.1 : 0.5)));
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        kills += WIFSIGNALED(status);
        cr_assert(WIFSIGNALED(status) || !WEXITSTATUS(status));
        t = NULL;
        const int r = hs_table_load(1, &path, &t, NULL); /* may not even have begun */
        const int64_t now = r ? 0 : t->n_probes, reported = atomic_load(said);
        cr_assert_geq(now, before + reported, "round %d: a reported probe is lost", round);
        cr_assert_leq(now, before + reported + 1, "round %d", round);
        before = now;
        if (!r && !strcmp(t->sha256, want)) { /* complete: once more from the start */
            char command[256];
            snprintf(command, sizeof command, "rm -r '%s' '%s.latents'", path, path);
            cr_assert_eq(system(command), 0);
            before = 0;
        }
        hs_table_free(t);
    }
    s.p.progress = NULL;
    measure_into(&s, path);
    t = load_tables(1, &path);
    cr_assert_str_eq(t->sha256, want);
    hs_table_free(t);
    free_setup(&s);
}

Test(measure_ends, other_settings_are_refused) {
    setup s = make_setup(FAST, HS_XATTENTION);
    const char *path = scratch("t");
    static const char *const others[] = {"a red circle", "a blue square moves", "three rings"};
    hs_measure_plan plan;
    hs_err err = {0};
    s.p.table = path;
    s.p.interrupted = tired;
    countdown = 0;
    cr_assert_eq(hs_measure_probes(s.m, &s.req, &s.p, &err), HS_EINTR); /* a table without probes */
#define REFUSED(what, code, message)                                                                                   \
    {                                                                                                                  \
        setup o = s;                                                                                                   \
        what;                                                                                                          \
        cr_assert_eq(hs_measure_probes(o.m, &o.req, &o.p, &err), code, "%s", err.msg);                                 \
        cr_assert(strstr(err.msg, message), "%s", err.msg);                                                            \
        err.msg[0] = '\0';                                                                                             \
        if (code == HS_EINVAL)                                                                                         \
            cr_assert_eq(hs_measure_plan_make(o.m, &o.req, &o.p, &plan, &err), code, "%s", err.msg);                   \
    }
    REFUSED(o.p.prompts = others, HS_EINVAL, "calibration.prompts_sha256")
    REFUSED(o.req.negative = "", HS_EINVAL, "calibration.prompts_sha256")
    REFUSED(o.p.seed = 12, HS_EINVAL, "its calibration.seed is 11, expected 12")
    REFUSED(o.req.guidance = 4, HS_EINVAL, "its made_for.guidance is 3, expected 4")
    REFUSED(o.p.candidates[1] = 0.65, HS_EINVAL, "its candidates is [0.3,0.6,0.8], expected [0.3,0.65,0.8]")
    REFUSED(o.p.candidates[1] = 0.3, HS_EINVAL, "candidate 0.3 is given twice")
    REFUSED(o.p.candidates[1] = 1, HS_EINVAL, "must be above 0 and below 1")
    REFUSED(o.p.n_candidates = 0, HS_EINVAL, "0 candidates")
    REFUSED(o.p.n_intervals = 5, HS_EINVAL, "5 intervals of the 4 steps")
    REFUSED(o.p.prompts_per_head = 4, HS_EINVAL, "4 prompts per head")
    REFUSED(o.p.shard = 1, HS_EINVAL, "shard 1 of 1")
    REFUSED(o.p.n_prompts = 0, HS_EINVAL, "needs prompts")
    REFUSED(o.req.attention.method = HS_DENSE, HS_EINVAL, "needs a sparse method")
    REFUSED(o.req.attention.dense_layers = 2, HS_EINVAL, "all 2 layers are dense")
    REFUSED(o.req.width = 100, HS_EINVAL, "width 100")
    REFUSED(o.p.table = "/proc/none/t", HS_EIO, "/proc/none/t")
    free_setup(&s);
}

static int make_plan(void *user, hs_err *err) {
    const setup *s = user;
    hs_measure_plan plan;
    return hs_measure_plan_make(s->m, &s->req, &s->p, &plan, err);
}

Test(measure_ends, no_memory) {
    setup s = make_setup(FAST, HS_SVG2);
    s.p.table = scratch("t");
    s.p.interrupted = tired;
    countdown = 30; /* some probes are there */
    cr_assert_eq(hs_measure_probes(s.m, &s.req, &s.p, NULL), HS_EINTR);
    cr_assert_gt(fail_allocations(make_plan, &s, "planning"), 20);
    free_setup(&s);
}
