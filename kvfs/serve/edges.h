/*
 * The edges of extents: a page that two of them share can't go into the page cache with either, and
 * is asked for when the slots of both serve others. So the first and the last bytes of an extent,
 * up to a page's, are kept for a while. Called with the cache's lock held; the memory is a part of
 * the slots' own.
 */
#ifndef KVFS_SERVE_EDGES_H
#define KVFS_SERVE_EDGES_H

#include "kvfs/serve/slots.h"

/* Keeps those of a slot, all of which is authentic. */
void kvfs_edges_keep(struct kvfs_edges *e, const struct kvfs_slot *slot);
/* Bytes [offset, end) of the file, which lie in the extent, if they are kept. */
bool kvfs_edges_copy(const struct kvfs_edges *e, uint64_t node, uint32_t extent, uint64_t offset,
                     uint64_t end, uint8_t *to);
/* Wipes those of a node. */
void kvfs_edges_forget(struct kvfs_edges *e, uint64_t node);

#endif
