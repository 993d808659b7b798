/* What chunks.c, its neighbours and takeback.c share. Not for others. */
#ifndef KVFS_SERVE_CHUNKS_PARTS_H
#define KVFS_SERVE_CHUNKS_PARTS_H

#include "kvfs/serve/chunks.h"
#include "kvfs/serve/fetch.h"
#include "kvfs/serve/pool.h"
#include "kvfs/serve/slots.h"

struct kvfs_job {
    struct kvfs_job *next;
    fuse_req_t req;
    struct kvfs_node *node;
    struct kvfs_content *content; /* a reference */
    uint64_t offset;
    uint32_t size;
    bool random; /* continues no stream, and goes through the page cache */
};

enum { KVFS_WISHES = 32 };

struct wish { /* an extent that may be wanted soon */
    struct kvfs_node *node;
    struct kvfs_content *content; /* a reference */
    uint32_t extent;
};

enum { KVFS_STORES = 8 };

struct kvfs_store {         /* a slot whose plaintext is to go into the page cache */
    struct kvfs_slot *slot; /* pinned */
    struct kvfs_node *node;
    struct kvfs_content *content; /* a reference */
    uint64_t asked, asked_end;    /* of the file: what the kernel is given anyway */
};

struct kvfs_chunks {
    struct kvfs_serve *serve;
    struct kvfs_slots slots;
    struct kvfs_pool *pool;
    struct kvfs_fetch *fetch;
    unsigned threads;

    pthread_mutex_t lock;   /* guards what follows, and the slots' bookkeeping */
    pthread_cond_t work;    /* there is a job or a wish */
    pthread_cond_t changed; /* a slot was filled or unpinned */
    pthread_cond_t storing; /* there is something to store */
    struct kvfs_job *first, **last;
    struct wish wishes[KVFS_WISHES];
    unsigned wish_first, wish_count;
    struct kvfs_store stores[KVFS_STORES];
    unsigned store_first, store_count;
    pthread_t storer;
    unsigned busy;        /* threads at work, FUSE threads that reply from a slot included */
    unsigned filling;     /* of these, who reads the source, which may hang, and decrypts */
    unsigned revocations; /* threads wipe what they put together */
    bool sealed, stopping;
    struct kvfs_chunks_stats stats;
};

/* NOLINTNEXTLINE(readability-non-const-parameter): the builtin writes to it */
static inline void kvfs_count(uint64_t *counter, uint64_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* ---- chunks.c ---- */

/* Fills a slot that was just taken; the lock is held before and after, not meanwhile. On success
 * it is ready and pinned by the caller. `own` (may be NULL): the caller's job, which is left with
 * the slot meanwhile; then NULL if somebody else has answered it. */
int kvfs_slot_fill(struct kvfs_chunks *c, struct kvfs_slot *slot, struct kvfs_node *node,
                   struct kvfs_content *content, uint32_t extent, struct kvfs_job **own,
                   struct ct_err *err);
/* Answers all of a list, with an error. */
void kvfs_jobs_fail(struct kvfs_chunks *c, struct kvfs_job *list, const struct ct_err *err);
/* With the lock held. */
void kvfs_slot_unpin(struct kvfs_chunks *c, struct kvfs_slot *slot);

/* ---- at_once.c ---- */

/* Answers a read from its FUSE thread, if all of it is ready. */
bool kvfs_reply_at_once(struct kvfs_chunks *c, fuse_req_t req, struct kvfs_node *node,
                        struct kvfs_content *content, uint64_t offset, uint32_t size);
/* With the lock held: bytes from `offset` in the file are given out from the slot. */
void kvfs_slot_give(struct kvfs_chunks *c, struct kvfs_content *content, struct kvfs_slot *slot,
                    uint64_t offset, uint32_t bytes);

/* ---- ahead.c ---- */

/* Notes a read, and wishes for what comes next if it is part of a stream: then true. */
bool kvfs_look_ahead(struct kvfs_chunks *c, struct kvfs_node *node, struct kvfs_content *content,
                     uint64_t offset, uint32_t size);
/* With the lock held: an extent is being decrypted for a reader, so that nobody need do it ahead.
 */
void kvfs_wish_cancel(struct kvfs_chunks *c, const struct kvfs_node *node, uint32_t extent);
/* With the lock held: fulfils one wish, or drops it when no slot can be spared. */
void kvfs_wish_grant(struct kvfs_chunks *c);
/* With the lock held: forgets the wishes for a node, or all. */
void kvfs_wishes_drop(struct kvfs_chunks *c, const struct kvfs_node *node);

/* ---- store.c ---- */

/* The thread; its argument is the struct kvfs_chunks. */
void *kvfs_store_run(void *arg);
/* With the lock held: whether the rest of a slot should go into the page cache, now that a read of
 * this size was given a part of it; and having it put there soon, unless too much is under way. */
bool kvfs_store_is_wanted(const struct kvfs_slot *slot, uint32_t size, bool random);
void kvfs_store_ask(struct kvfs_chunks *c, struct kvfs_slot *slot, struct kvfs_node *node,
                    struct kvfs_content *content, uint64_t offset, uint32_t size);
/* With the lock held: forgets what waits for a node, or all. */
void kvfs_stores_drop(struct kvfs_chunks *c, const struct kvfs_node *node);

#endif
