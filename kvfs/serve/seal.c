#include <time.h>

#include "format/base/log.h"
#include "kvfs/serve/resident.h"

void kvfs_seal(struct kvfs_serve *s, const char *why)
{
    if (atomic_exchange(&s->sealed, true)) {
        return;
    }
    struct timespec begin;
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    __atomic_store_n(&s->shared->sealed, 1, __ATOMIC_RELAXED);
    if (s->chunks) {
        kvfs_chunks_seal(s->chunks);
        kvfs_resident_seal(s);
    }
    /* The flag is set and nothing is parked: no page comes back behind an invalidation. It waits
     * for reads in flight, which is why this is no FUSE thread. */
    uint64_t highest = __atomic_load_n(&s->shared->highest_node, __ATOMIC_RELAXED);
    for (uint64_t id = 1; s->session && id <= highest; id++) {
        (void)fuse_lowlevel_notify_inval_inode(s->session, id, 0, 0);
    }
    ct_secret_wipe_all();
    clock_gettime(CLOCK_MONOTONIC, &end);
    ct_log(CT_LOG_ERROR, "sealed: %s (%lld ms)", why,
           (long long)(end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
}
