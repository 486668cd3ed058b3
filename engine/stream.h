/* Weights that do not fit: groups of them stay in host memory and come to the device when they are needed.
 *
 * A group is what is used together (a block of the transformer). Two slots of device memory take turns: while the
 * operations of one group run, the next group is on its way into the other slot. The host never waits for any of that.
 * Groups that nothing was added to are on the device as always; needing them is then only the moment at which the next
 * streamed one may start to come.
 */
#ifndef HS_STREAM_H
#define HS_STREAM_H
#include "backend.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct hs_stream hs_stream;

/* Can weights of this device come and go? (Not where they are prepared for one place: oneDNN.) */
int hs_stream_possible(const hs_device *dev);
/* Groups are used in the order of their numbers, round and round, within rings of `ring` groups each. */
int hs_stream_new(hs_device *dev, int groups, int ring, hs_stream **ret, hs_err *err);
void hs_stream_free(hs_stream *s); /* not the weights; they can no longer be used, only freed */
/* Moves prepared weights to host memory. They are still freed by hs_weight_free. */
int hs_stream_add(hs_stream *s, int group, int n, hs_weight *const *w, hs_err *err);
/* The operations from here to the next call use weights of this group and of no other streamed one. */
void hs_stream_need(hs_stream *s, int group);
int64_t hs_stream_host_bytes(const hs_stream *s);

#ifdef __cplusplus
}
#endif
#endif
