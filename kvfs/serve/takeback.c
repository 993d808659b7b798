#include "format/base/clock.h"
#include "format/base/secret.h"
#include "kvfs/serve/chunks_parts.h"
#include "kvfs/serve/edges.h"

/*
 * How slots lose what they hold, and readers what they wait for. A source may hang, and with it the
 * threads that fill slots: nobody who waits for an answer waits for these, and what has been given
 * out neither. Only wiping waits, and for a sealed mount not for long: who comes back then finds it
 * sealed, and wipes what he has brought.
 */

enum { SETTLE_MS = 300 }; /* for extents that are being decrypted, with keys that go afterwards */

/* With the lock held: until a slot, if it is the node's, is not read out, nor (`filling`) filled.
 */
static void wait_for_slot(struct kvfs_chunks *c, const struct kvfs_slot *slot,
                          const struct kvfs_node *node, bool filling)
{
    while (slot->node == node->id &&
           (slot->pins || (filling && slot->state == KVFS_SLOT_FILLING))) {
        pthread_cond_wait(&c->changed, &c->lock);
    }
}

static void drop(struct kvfs_chunks *c, const struct kvfs_node *node, bool wipe)
{
    kvfs_wishes_drop(c, node);
    kvfs_stores_drop(c, node);
    for (unsigned i = 0; i < c->slots.count; i++) {
        struct kvfs_slot *slot = &c->slots.slots[i];
        wait_for_slot(c, slot, node, true); /* whoever uses it keeps the content */
        if (slot->node == node->id) {
            if (wipe) {
                ct_wipe(slot->buf, slot->len);
            }
            slot->state = KVFS_SLOT_FREE;
            slot->node = 0;
        }
    }
}

void kvfs_chunks_drop(struct kvfs_chunks *c, const struct kvfs_node *node)
{
    pthread_mutex_lock(&c->lock);
    drop(c, node, false);
    pthread_mutex_unlock(&c->lock);
}

static void put(struct kvfs_job **list, struct kvfs_job *j)
{
    j->next = *list;
    *list = j;
}

/* With the lock held: the jobs of a node, or all that are, from whoever has them. */
static struct kvfs_job *take_jobs(struct kvfs_chunks *c, const struct kvfs_node *node)
{
    struct kvfs_job *taken = NULL;
    struct kvfs_job *j;
    struct kvfs_job **at = &c->first;
    while ((j = *at)) {
        if (!node || j->node == node) {
            *at = j->next;
            put(&taken, j);
        } else {
            at = &j->next;
        }
    }
    c->last = at;
    for (unsigned i = 0; i < c->slots.count; i++) {
        struct kvfs_slot *slot = &c->slots.slots[i];
        if (node && slot->node != node->id) {
            continue;
        }
        if (slot->own) {
            put(&taken, slot->own);
            slot->own = NULL;
        }
        while ((j = slot->waiters)) {
            slot->waiters = j->next;
            put(&taken, j);
        }
    }
    return taken;
}

void kvfs_chunks_refuse(struct kvfs_chunks *c, const struct kvfs_node *node,
                        const struct ct_err *why)
{
    pthread_mutex_lock(&c->lock);
    c->sealed = c->sealed || !node;
    kvfs_wishes_drop(c, node);
    kvfs_stores_drop(c, node);
    struct kvfs_job *jobs = take_jobs(c, node);
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    kvfs_jobs_fail(c, jobs, why);

    pthread_mutex_lock(&c->lock);
    for (unsigned i = 0; node && i < c->slots.count; i++) {
        wait_for_slot(c, &c->slots.slots[i], node, false);
    }
    while (!node && c->busy > c->filling) { /* none begins to fill any more */
        pthread_cond_wait(&c->changed, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

/* With the lock held. */
static void wipe_all(struct kvfs_chunks *c)
{
    const struct timespec until = ct_after_ms(SETTLE_MS);
    while (c->filling && pthread_cond_timedwait(&c->changed, &c->lock, &until) == 0) {
    }
    kvfs_slots_wipe(&c->slots);
    ct_wipe(c->slots.assembly, (size_t)c->threads * KVFS_ASSEMBLY);
}

void kvfs_chunks_wipe(struct kvfs_chunks *c, const struct kvfs_node *node)
{
    pthread_mutex_lock(&c->lock);
    if (node) {
        drop(c, node, true);
        kvfs_edges_forget(&c->slots.edges, node->id);
        c->revocations++;
        pthread_cond_broadcast(&c->work);
    } else {
        wipe_all(c);
    }
    pthread_mutex_unlock(&c->lock);
}
