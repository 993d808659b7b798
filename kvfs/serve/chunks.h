/*
 * The read path: slots of CT_EXTENT_MAX bytes that hold decrypted extents, and the pool of threads
 * that fills them.
 *
 * FUSE threads look up, park the request, or reply; they never decrypt and never wait for a slot.
 * The pool decrypts and replies. An extent that is being decrypted is waited for, not decrypted
 * twice. What a random read leaves of an extent goes into the page cache (store.c). All plaintext
 * that the worker holds lies in these slots and in one assembly buffer a thread: together they
 * never exceed the configured memory. Slots are locked where limits allow, left out of core dumps,
 * wiped when the cache is wiped.
 */
#ifndef KVFS_SERVE_CHUNKS_H
#define KVFS_SERVE_CHUNKS_H

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>

#include "kvfs/serve/node.h"

struct kvfs_chunks;

/* Starts `threads` threads and reserves (not touches) slots for `memory` bytes. Call after the
 * sandbox's privileges are dropped and before its filter, or after: threads are created here. */
struct kvfs_chunks *kvfs_chunks_start(struct kvfs_serve *serve, uint64_t memory, unsigned threads,
                                      struct ct_err *err);

/* Answers a FUSE read, now or later, exactly once, with all bytes asked for (short only at the end
 * of file) or an error. `content` is referenced as long as needed. `direct`: no read-ahead of the
 * kernel's is behind it. */
void kvfs_chunks_read(struct kvfs_chunks *c, fuse_req_t req, struct kvfs_node *node,
                      struct kvfs_content *content, uint64_t offset, size_t size, bool direct);

/* Runs fn(arg) on a pool thread: for opens, whose parsing and unwrapping would hold up a FUSE
 * thread. Bounded queue; runs it at once on the caller when full. */
void kvfs_chunks_run(struct kvfs_chunks *c, void (*fn)(void *), void *arg);

struct kvfs_fetch *kvfs_chunks_fetch(struct kvfs_chunks *c); /* fetch.h */
/* There is something to do beside reads (resident.h). */
void kvfs_chunks_wake(struct kvfs_chunks *c);
/* For the counters: bytes of a node that were decrypted elsewhere. */
void kvfs_chunks_decrypted(struct kvfs_chunks *c, struct kvfs_node *node, uint64_t bytes);

/* Forgets all slots of a node (its content is about to go). */
void kvfs_chunks_drop(struct kvfs_chunks *c, const struct kvfs_node *node);

/* For revoking a node whose content is revoked already, or (NULL) sealing, when the flag is set:
 * answers whatever reads wait for, and returns when no data is on its way to the kernel any more.
 * Does not wait for the source. Not from a FUSE or pool thread. */
void kvfs_chunks_refuse(struct kvfs_chunks *c, const struct kvfs_node *node,
                        const struct ct_err *why);
/* Afterwards: wipes its slots, or all plaintext; and of what threads keep of the reads that they
 * put together, soon, or now. For a node it waits for what is being decrypted; for all of them not
 * long: what comes later is wiped then. */
void kvfs_chunks_wipe(struct kvfs_chunks *c, const struct kvfs_node *node);
void kvfs_chunks_stop(struct kvfs_chunks *c);

struct kvfs_chunks_stats {
    uint64_t slots, slots_used;
    uint64_t hits, misses, waits, prefetched, evicted_unread;
    uint64_t bytes_decrypted, parked, bytes_stored;
};
void kvfs_chunks_stats(struct kvfs_chunks *c, struct kvfs_chunks_stats *out);

#endif
