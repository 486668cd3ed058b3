/* One thread per set of files. It takes pages (MADV_POPULATE_READ) rather than asking for them (MADV_WILLNEED): the
 * kernel then reads as it does for read(2), in its large steps, and whoever uses the bytes finds the pages in place.
 * Neither may hold up the caller, and both wait where the disk's queue is full. Bytes that cannot be read (the file
 * became shorter) are an error code of madvise here and no signal; their user meets them by itself. */
#include "ahead.h"
#include "base.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older headers do not have it, older kernels answer EINVAL */
#endif

enum { STEP = 4 << 20 }; /* bytes between two looks at what is wanted: a few milliseconds of a disk */

struct hs_ahead {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t change;
    uintptr_t begin, at, end; /* wanted; of it, the thread has taken or is taking what is before `at` */
    int stop;
};

static void take(uintptr_t at, uintptr_t end) {
    if (madvise((void *)at, end - at, MADV_POPULATE_READ)) madvise((void *)at, end - at, MADV_WILLNEED);
}

static void *work(void *user) {
    hs_ahead *a = user;
    pthread_mutex_lock(&a->lock);
    while (!a->stop) {
        if (a->at >= a->end) {
            pthread_cond_wait(&a->change, &a->lock);
            continue;
        }
        const uintptr_t at = a->at, end = a->end - at > STEP ? at + STEP : a->end;
        a->at = end;
        pthread_mutex_unlock(&a->lock);
        take(at, end);
        pthread_mutex_lock(&a->lock);
    }
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

hs_ahead *hs_ahead_new(void) {
    hs_ahead *a = hs_calloc(1, sizeof *a);
    sigset_t all, before;
    if (!a) return NULL;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->change, NULL);
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&a->thread, NULL, work, a);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return a;
    pthread_cond_destroy(&a->change);
    pthread_mutex_destroy(&a->lock);
    hs_free(a);
    return NULL;
}

void hs_ahead_want(hs_ahead *a, const char *begin, const char *end) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)begin / page * page;
    pthread_mutex_lock(&a->lock);
    const int goes_on = first >= a->begin && first <= a->end;
    if (!goes_on || a->at < first) a->at = first;
    a->begin = first;
    a->end = (uintptr_t)end;
    pthread_cond_signal(&a->change);
    pthread_mutex_unlock(&a->lock);
}

void hs_ahead_free(hs_ahead *a) {
    if (!a) return;
    pthread_mutex_lock(&a->lock);
    a->stop = 1;
    pthread_cond_signal(&a->change);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    pthread_cond_destroy(&a->change);
    pthread_mutex_destroy(&a->lock);
    hs_free(a);
}
