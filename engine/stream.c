/* Weights in host memory and the two slots they come to: who is where, who comes next. How copies run beside the
 * operations is the backend's (hs_ops.slot_*). */
#include "stream.h"

#include <stddef.h>

enum { SLOTS = 2, MAX_WEIGHTS = 8, ALIGN = 256, NOBODY = -1 };

typedef struct group {
    int n; /* weights; 0 = not streamed */
    hs_weight *w[MAX_WEIGHTS];
    int64_t at[MAX_WEIGHTS], bytes; /* places in host memory and in a slot; of all */
    char *host;
    int pageable; /* host memory is hs_alloc's, not the backend's */
} group;

struct hs_stream {
    hs_device *dev;
    int groups, ring;
    group *g;
    hs_buf slot[SLOTS];
    int holds[SLOTS]; /* group, or NOBODY */
    int in_use;       /* slot whose group is being used, or NOBODY */
    int64_t host_bytes;
};

int hs_stream_possible(const hs_device *dev) {
    return dev->ops->slot_fill != NULL;
}

int hs_stream_new(hs_device *dev, int groups, int ring, hs_stream **ret, hs_err *err) {
    hs_stream *s = hs_calloc(1, sizeof *s);
    if (!s || !(s->g = hs_calloc((size_t)groups, sizeof *s->g))) {
        hs_free(s);
        return hs_fail(err, HS_ENOMEM, "no memory for the list of streamed weights");
    }
    s->dev = dev;
    s->groups = groups;
    s->ring = ring;
    s->in_use = s->holds[0] = s->holds[1] = NOBODY;
    *ret = s;
    return 0;
}

static void free_host(hs_stream *s, group *k) {
    if (k->pageable)
        hs_free(k->host);
    else if (k->host)
        s->dev->ops->host_free(s->dev, k->host);
    k->host = NULL;
}

void hs_stream_free(hs_stream *s) {
    if (!s) return;
    s->dev->ops->sync(s->dev, NULL); /* nothing may still read a slot */
    for (int i = 0; i < s->groups; i++) free_host(s, &s->g[i]);
    for (int i = 0; i < SLOTS; i++) hs_device_free(s->dev, s->slot[i]);
    hs_free(s->g);
    hs_free(s);
}

int64_t hs_stream_host_bytes(const hs_stream *s) {
    return s->host_bytes;
}

/* Both slots hold the largest group. Only while loading: nothing is in them yet. */
static int grow_slots(hs_stream *s, int64_t bytes, hs_err *err) {
    int r = 0;
    if (s->slot[0].n >= bytes && s->slot[1].n >= bytes) return 0;
    for (int i = 0; i < SLOTS && !r; i++) {
        hs_device_free(s->dev, s->slot[i]);
        s->holds[i] = NOBODY;
        r = hs_device_alloc(s->dev, HS_U8, bytes, "weights on their way", &s->slot[i], err);
    }
    return r;
}

/* Memory that copies can run from beside the operations, else any, which is said. */
static int alloc_host(hs_stream *s, group *k, hs_err *err) {
    void *p = NULL;
    if (s->dev->ops->host_alloc(s->dev, (size_t)k->bytes, &p)) {
        hs_log(
            HS_LOG_FALLBACK,
            "%lld MB of host memory cannot be pinned (a limit of the system, or of a container): weights of this block "
            "come more slowly",
            (long long)(k->bytes >> 20));
        k->pageable = 1;
        p = hs_alloc((size_t)k->bytes);
    }
    k->host = p;
    return p ? 0
             : hs_fail(
                   err, HS_ENOMEM,
                   "host memory for streamed weights: %lld bytes asked, %lld already taken; more memory, or a larger "
                   "--max-vram, keeps more weights on the device",
                   (long long)k->bytes, (long long)s->host_bytes);
}

int hs_stream_add(hs_stream *s, int number, int n, hs_weight *const *w, hs_err *err) {
    group *k = &s->g[number];
    hs_device *dev = s->dev;
    if (n < 1 || n > MAX_WEIGHTS || k->n)
        return hs_fail(err, HS_EINVAL, "group %d of streamed weights: %d weights beside %d", number, n, k->n);
    for (int i = 0; i < n; i++) {
        k->at[i] = k->bytes;
        k->bytes += (w[i]->bytes + ALIGN - 1) / ALIGN * ALIGN;
    }
    int r = alloc_host(s, k, err);
    if (r) return r;
    s->host_bytes += k->bytes;
    for (int i = 0; i < n; i++) {
        k->w[i] = w[i];
        dev->ops->download(dev, k->host + k->at[i], w[i]->impl, (size_t)w[i]->bytes);
        dev->ops->weight_free(dev, w[i]);
        dev->bytes -= w[i]->bytes;
        w[i]->impl = NULL;
        w[i]->streamed = 1;
    }
    k->n = n;
    r = hs_device_check(dev, err);
    return r ? r : grow_slots(s, k->bytes, err);
}

/* The next group of the ring that has to come, or NOBODY. */
static int after(const hs_stream *s, int g) {
    const int first = g / s->ring * s->ring;
    for (int i = 1; i < s->ring; i++) {
        const int next = first + (g - first + i) % s->ring;
        if (next < s->groups && s->g[next].n) return next;
    }
    return NOBODY;
}

static int slot_of(const hs_stream *s, int g) {
    return s->holds[0] == g ? 0 : s->holds[1] == g ? 1 : NOBODY;
}

static void fetch(hs_stream *s, int slot, int g) {
    group *k = &s->g[g];
    const int old = s->holds[slot];
    if (old != NOBODY)
        for (int i = 0; i < s->g[old].n; i++) s->g[old].w[i]->impl = NULL;
    s->dev->ops->slot_fill(s->dev, slot, s->slot[slot].p, k->host, (size_t)k->bytes);
    s->holds[slot] = g;
    for (int i = 0; i < k->n; i++) k->w[i]->impl = (char *)s->slot[slot].p + k->at[i];
}

void hs_stream_need(hs_stream *s, int g) {
    hs_device *dev = s->dev;
    if (!s->slot[0].p || dev->sticky) return;
    const int last = s->in_use;
    if (last != NOBODY && s->holds[last] != g) {
        dev->ops->slot_release(dev, last);
        s->in_use = NOBODY;
    }
    if (s->g[g].n) {
        int slot = slot_of(s, g);
        if (slot == NOBODY) fetch(s, slot = last == 0, g);
        if (s->in_use != slot) dev->ops->slot_use(dev, slot);
        s->in_use = slot;
    }
    const int next = after(s, g);
    if (next != NOBODY && slot_of(s, next) == NOBODY) {
        /* not where g is, nor, with nothing in use, where the group is that was used last but is the next to come */
        const int slot = s->in_use != NOBODY ? 1 - s->in_use : last != NOBODY ? last : 0;
        fetch(s, slot, next);
    }
}
