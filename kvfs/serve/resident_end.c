#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "kvfs/serve/resident_parts.h"

/* Overwriting it first would reach pages that lie in pipes as well, but show zeros to who reads
 * meanwhile. */
void kvfs_resident_take_back(struct kvfs_serve *s, const struct kvfs_resident *r)
{
    if (ftruncate(r->fd, 0)) {
        ct_log(CT_LOG_ERROR, "a resident file can't be revoked: %s", strerror(errno));
    }
    kvfs_progress(s);
}

/* With the lock held. Whether it is to be taken back here and now: else a step runs, or is just
 * settling it, which sees that all is sealed. A step has the file mapped, so that it can't be
 * truncated, and may wait for the source: the pages that lie there by now go without it. */
static bool stop_populating(struct kvfs_resident_set *set, struct kvfs_resident *r)
{
    bool idle = r->done == r->taken && r->taken < r->extents;
    if (r->done < r->taken) {
        (void)fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)r->size);
    }
    if (r->taken < r->extents) {
        r->extents = r->taken;
        atomic_fetch_sub(&set->populating, 1);
    }
    return idle;
}

/* With the lock held. One that is STARTING has nothing yet. */
static struct kvfs_resident *next_to_take(struct kvfs_resident_set *set)
{
    for (struct kvfs_resident *r = set->list; r; r = r->next) {
        if (!r->taken_back && r->state != STARTING &&
            (r->state != POPULATING || stop_populating(set, r))) {
            r->taken_back = true;
            return r;
        }
    }
    return NULL;
}

void kvfs_resident_revoke(struct kvfs_serve *s, const struct kvfs_node *node, bool wait)
{
    struct kvfs_resident_set *set = s->residents;
    pthread_mutex_lock(&set->lock);
    /* Once all is sealed, nothing is populated any more, and what was is taken back there. */
    while (wait && node->resident && node->resident->state != READY && !set->sealed) {
        pthread_cond_wait(&set->changed, &set->lock);
    }
    struct kvfs_resident *r = node->resident && node->resident->state == READY &&
                                      !node->resident->taken_back && !set->sealed
                                  ? node->resident
                                  : NULL;
    if (r) {
        r->taken_back = true;
        r->users++; /* so that it stays */
    }
    pthread_mutex_unlock(&set->lock);
    if (r) {
        kvfs_resident_take_back(s, r);
        pthread_mutex_lock(&set->lock);
        r->users--;
        pthread_mutex_unlock(&set->lock);
    }
}

void kvfs_resident_seal(struct kvfs_serve *s)
{
    struct kvfs_resident_set *set = s->residents;
    struct ct_err err = CT_ERR_INIT;
    struct kvfs_opening *all = NULL;
    (void)kvfs_seal_why(s, &err);
    pthread_mutex_lock(&set->lock);
    set->sealed = set->off = true;
    pthread_cond_broadcast(&set->changed);
    for (struct kvfs_resident *r = set->list; r; r = r->next) {
        while (r->waiters) {
            struct kvfs_opening *o = r->waiters;
            r->waiters = o->next;
            o->next = all;
            all = o;
        }
    }
    struct kvfs_resident *r;
    while ((r = next_to_take(set))) {
        pthread_mutex_unlock(&set->lock);
        kvfs_resident_take_back(s, r);
        pthread_mutex_lock(&set->lock);
    }
    pthread_mutex_unlock(&set->lock);
    while (all) {
        struct kvfs_opening *o = all;
        all = o->next;
        kvfs_open_fail(o, &err);
    }
}
