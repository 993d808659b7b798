/*
 * Recognising sequential reads of a file: up to CURSORS streams a file, whoever reads (loaders
 * share one descriptor over threads, and kernel read-ahead arrives slightly out of order).
 */
#ifndef KVFS_SERVE_PREFETCH_H
#define KVFS_SERVE_PREFETCH_H

#include <stdbool.h>
#include <stdint.h>

enum { KVFS_CURSORS = 16 };

struct kvfs_streams { /* zero-initialised; its user locks */
    struct {
        uint64_t next; /* offset where the stream would go on */
        uint64_t used; /* tick of the last match */
    } cursors[KVFS_CURSORS];
    uint64_t tick;
};

/* Notes a read. True if it continues a stream: the file is being read forward there. */
bool kvfs_streams_note(struct kvfs_streams *s, uint64_t offset, uint64_t len);

#endif
