#include "kvfs/serve/prefetch.h"

#include <stddef.h>

/* A request continues a stream if it begins where the last one ended, or, being read-ahead of some
 * size, one request's length off: several FUSE threads take them from the queue. Looser matching
 * makes random faults prefetch. */
static bool continues(uint64_t next, uint64_t offset, uint64_t len)
{
    uint64_t slack = len >= 65536 ? len : 0;
    return next && offset + slack >= next && offset <= next + slack;
}

struct kvfs_cursor *kvfs_streams_note(struct kvfs_streams *s, uint64_t offset, uint64_t len)
{
    unsigned oldest = 0;
    s->tick++;
    for (unsigned i = 0; i < KVFS_CURSORS; i++) {
        if (continues(s->cursors[i].next, offset, len)) {
            uint64_t end = offset + len;
            s->cursors[i].next = end > s->cursors[i].next ? end : s->cursors[i].next;
            s->cursors[i].used = s->tick;
            return &s->cursors[i];
        }
        if (s->cursors[i].used < s->cursors[oldest].used) {
            oldest = i;
        }
    }
    s->cursors[oldest].next = offset + len;
    s->cursors[oldest].used = s->tick;
    s->cursors[oldest].asked = 0;
    return NULL;
}
