/*
 * Resident mode: at its first open a file is decrypted whole, by all threads of the pool, into a
 * file of the supervisor's tmpfs, every tag is checked, and from then on the kernel serves reads
 * and mappings from there without asking us.
 *
 * The kernel does not mix cached opens and passthrough opens of one inode, so how a node is served
 * is decided at its first open and holds until its last close. Whatever goes wrong (no memory, no
 * privilege, a tag that fails) leaves it to the page cache, where intact tensors stay readable.
 */
#ifndef KVFS_SERVE_RESIDENT_H
#define KVFS_SERVE_RESIDENT_H

#include "kvfs/serve/open.h"

struct kvfs_resident_set *kvfs_resident_start(struct kvfs_serve *s, struct ct_err *err);

/* Takes an open whose content is there: answers it now or once the file is resident. Not from a
 * FUSE thread. An opener that is killed meanwhile is answered at once. */
void kvfs_resident_open(struct kvfs_serve *s, struct kvfs_opening *o);
/* One handle less. Never waits. */
void kvfs_resident_close(struct kvfs_serve *s, struct kvfs_node *node);

/* For the pool's threads: whether there is something to decrypt, and doing one extent of it. */
bool kvfs_resident_pending(struct kvfs_serve *s);
void kvfs_resident_step(struct kvfs_serve *s);

/* Once a second: gives back what nobody has used for `linger` seconds. Not from a FUSE thread. */
void kvfs_resident_tick(struct kvfs_serve *s);
/* Keeps the node's file, if it is resident, until it is opened and closed again, or memory is
 * needed.
 */
bool kvfs_resident_keep(struct kvfs_serve *s, struct kvfs_node *node);

/* For sealing: refuses who waits, and truncates. What is being populated, which nobody has yet,
 * loses its pages, and is truncated when the last step comes back from the source. */
void kvfs_resident_seal(struct kvfs_serve *s);

/* For revoking, when the content of the node's file is revoked already: truncates. Does
 * nothing if it is being populated, unless that is to be waited for. Not from a pool thread. */
void kvfs_resident_revoke(struct kvfs_serve *s, const struct kvfs_node *node, bool wait);

struct kvfs_resident_info {
    const char *mode;     /* "none", "page", "populating", "resident" */
    uint64_t bytes, done; /* populating, resident */
};
void kvfs_resident_info(struct kvfs_serve *s, const struct kvfs_node *node,
                        struct kvfs_resident_info *out);
/* Bytes taken, of how many. */
uint64_t kvfs_resident_used(struct kvfs_serve *s, uint64_t *limit);

#endif
