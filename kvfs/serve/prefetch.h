/*
 * Recognising sequential reads of a file: up to CURSORS streams a file, whoever reads (loaders
 * share one descriptor over threads, and kernel read-ahead arrives slightly out of order).
 */
#ifndef KVFS_SERVE_PREFETCH_H
#define KVFS_SERVE_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

enum { KVFS_CURSORS = 64 };

struct kvfs_cursor {
    uint64_t next;  /* offset where the stream would go on */
    uint64_t used;  /* tick of the last match */
    uint32_t asked; /* extents before this one have been asked of the source; its user's */
};

struct kvfs_streams { /* zero-initialised; its user locks */
    struct kvfs_cursor cursors[KVFS_CURSORS];
    uint64_t tick;
};

/* Notes a read. The stream that it continues, if it does: the file is being read forward there. */
struct kvfs_cursor *kvfs_streams_note(struct kvfs_streams *s, uint64_t offset, uint64_t len);

#endif
