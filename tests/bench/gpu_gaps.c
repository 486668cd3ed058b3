/* Where a GPU waits: how much of the time a kernel or a copy was running, and which kernels took it, in any program.
 *
 *     cc -O2 -shared -fPIC tests/bench/gpu_gaps.c -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lcupti -o gaps.so
 *     CUDA_INJECTION64_PATH=$PWD/gaps.so wan_shapes -m wan2.1-1.3b --size 832x480 --part dit --device cuda
 *
 * CUDA loads the library when the program first uses it; CUPTI then notes begin and end of everything that runs on the
 * device. At the end, on standard error: per window of
 * GAPS_WINDOW_MS (100) the share of time in which something ran, of gaps shorter than a millisecond, and the kernels
 * that took most of the time. Gaps of a millisecond and more are the host's own pauses (loading, printing) and counted
 * apart. A tool, not a test; not part of the build, since CUPTI is not needed otherwise.
 */
#include <cupti.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct span {
    uint64_t start, end; /* ns */
    int name;            /* of names[]; -1: a copy */
} span;

static span *spans;
static size_t n_spans, room;
typedef struct total {
    char text[72];
    double seconds;
    long calls;
} total;
static total names[512];
static int n_names;

static int name_of(const char *text) {
    for (int i = 0; i < n_names; i++)
        if (!strncmp(names[i].text, text, sizeof names[i].text - 1)) return i;
    if (n_names == 512) return -1;
    snprintf(names[n_names].text, sizeof names[n_names].text, "%s", text);
    return n_names++;
}

static void note(uint64_t start, uint64_t end, int name) {
    if (n_spans == room) {
        room = room ? 2 * room : 1 << 16;
        span *more = realloc(spans, room * sizeof *more);
        if (!more) abort();
        spans = more;
    }
    spans[n_spans++] = (span){start, end, name};
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *size, size_t *records) {
    *size = 8 << 20;
    *buffer = aligned_alloc(8, *size);
    *records = 0;
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    CUpti_Activity *r = NULL;
    (void)context, (void)stream, (void)size;
    while (cuptiActivityGetNextRecord(buffer, valid, &r) == CUPTI_SUCCESS) {
        if (r->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
            const CUpti_ActivityKernel9 *k = (const void *)r;
            note(k->start, k->end, name_of(k->name));
        } else if (r->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
            const CUpti_ActivityMemcpy5 *m = (const void *)r;
            note(m->start, m->end, -1);
        } else if (r->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
            const CUpti_ActivityMemset4 *m = (const void *)r;
            note(m->start, m->end, -1);
        }
    }
    free(buffer);
}

static int by_start(const void *a, const void *b) {
    const span *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}
static int by_seconds(const void *a, const void *b) {
    const total *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

static void report(void) {
    const char *given = getenv("GAPS_WINDOW_MS");
    const uint64_t window = (uint64_t)((given ? atof(given) : 100) * 1e6);
    cuptiActivityFlushAll(1);
    if (!n_spans) return;
    qsort(spans, n_spans, sizeof *spans, by_start);
    const uint64_t begin = spans[0].start;
    uint64_t until = begin, edge = begin + window, gaps = 0, pauses = 0;
    long kernels = 0;
    fprintf(stderr, "gaps: %zu kernels and copies; windows of %.0f ms: busy %% (gaps us, kernels)\n", n_spans,
            (double)window / 1e6);
    for (size_t i = 0; i <= n_spans; i++) {
        if (i == n_spans || spans[i].start >= edge) {
            const double paused = (double)pauses, span = (double)window - paused;
            if (kernels && span > 0.2 * (double)window)
                fprintf(stderr, "  %6.1f s: %6.2f %% (%.0f us, %ld)%s\n", (double)(edge - begin) / 1e9,
                        100 * (1 - (double)gaps / span), (double)gaps / 1e3, kernels, pauses ? " paused" : "");
            gaps = pauses = 0, kernels = 0;
            if (i == n_spans) break;
            while (spans[i].start >= edge) edge += window;
        }
        if (spans[i].start > until) {
            const uint64_t gap = spans[i].start - until;
            if (gap < 1000000)
                gaps += gap;
            else
                pauses += gap < window ? gap : 0;
        }
        if (spans[i].end > until) until = spans[i].end;
        if (spans[i].name >= 0) {
            names[spans[i].name].seconds += (double)(spans[i].end - spans[i].start) / 1e9;
            names[spans[i].name].calls++;
        }
        kernels++;
    }
    qsort(names, (size_t)n_names, sizeof names[0], by_seconds);
    for (int i = 0; i < n_names && i < 40; i++)
        fprintf(stderr, "  %9.4f s %7ld x %9.1f us  %s\n", names[i].seconds, names[i].calls,
                1e6 * names[i].seconds / (double)names[i].calls, names[i].text);
}

/* Called by CUDA; see CUPTI's documentation of injection. */
int InitializeInjection(void);
int InitializeInjection(void) {
    if (cuptiActivityRegisterCallbacks(give_buffer, take_buffer) != CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY) != CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET) != CUPTI_SUCCESS)
        fprintf(stderr, "gaps: CUPTI refuses: nothing will be noted\n");
    else
        atexit(report);
    return 1;
}
