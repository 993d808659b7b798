/*
 * The memory that holds plaintext: slots for decrypted extents, their edges, and one assembly
 * buffer a thread.
 * One mapping of fixed size, locked as it is touched where limits allow, left out of core dumps.
 * Everything here is called with the cache's lock held unless it says otherwise.
 */
#ifndef KVFS_SERVE_SLOTS_H
#define KVFS_SERVE_SLOTS_H

#include "kvfs/serve/node.h"

enum { KVFS_ASSEMBLY = 1 << 20 }; /* the largest FUSE read there is */

/* It is remembered which pages of the file were given out; any page size will do. An extent begins
 * and ends within pages. */
enum { KVFS_PAGE = 4096, KVFS_PAGES = CT_EXTENT_MAX / KVFS_PAGE + 1 };

enum kvfs_slot_state { KVFS_SLOT_FREE, KVFS_SLOT_FILLING, KVFS_SLOT_READY };

struct kvfs_job;

struct kvfs_slot {
    enum kvfs_slot_state state;
    uint64_t node; /* id */
    uint32_t extent;
    uint64_t begin; /* in the file */
    uint32_t len;
    uint8_t *buf;
    unsigned pins;                          /* threads that read it just now */
    bool damaged;                           /* some unit of it: see the node's memo */
    uint64_t given[(KVFS_PAGES + 63) / 64]; /* a bit a page */
    unsigned given_count;
    bool stored;              /* its rest goes, or went, into the page cache */
    uint64_t touched;         /* tick */
    struct kvfs_job *waiters; /* requests that are parked here while it is filled */
    struct kvfs_job *own;     /* that of the thread which fills it, parked here as well */
};

/* For edges.h: any page size will do. */
enum { KVFS_EDGE = 4096, KVFS_EDGES_SIZE = 2 * KVFS_EDGE };

struct kvfs_edge {
    uint64_t node; /* id; 0: none */
    uint32_t extent;
    uint64_t begin, end;  /* of the extent, in the file */
    uint32_t first, last; /* bytes kept from its beginning, and from its end */
    uint8_t *memory;      /* KVFS_EDGE bytes for each of the two */
};

struct kvfs_edges {
    struct kvfs_edge *all;
    unsigned count;
};

struct kvfs_slots {
    struct kvfs_slot *slots;
    unsigned count;
    uint64_t tick;
    uint8_t *map;
    size_t map_len;
    uint8_t *assembly; /* `threads` buffers of KVFS_ASSEMBLY bytes */
    struct kvfs_edges edges;
};

/* How many of `threads` may be: their buffers take a quarter of the memory at most. */
unsigned kvfs_slots_threads(uint64_t memory, unsigned threads);
/* As many slots as fit beside `threads` buffers, at least 4. */
int kvfs_slots_make(struct kvfs_slots *s, uint64_t memory, unsigned threads, struct ct_err *err);
/* All of them; of one that is being filled only what lies there by now, and it stays so. */
void kvfs_slots_wipe(struct kvfs_slots *s);
void kvfs_slots_free(struct kvfs_slots *s);

struct kvfs_slot *kvfs_slots_find(struct kvfs_slots *s, uint64_t node, uint32_t extent);
/* A slot to fill for a file: what was given out whole, else a free one, else the least recently
 * used of a file that has more than its share of the slots, or of this one; of any other only if
 * there is nothing else; NULL if all are in use. For prefetch only what nobody still waits to read.
 * *unread: data that nobody ever read was dropped. */
struct kvfs_slot *kvfs_slots_take(struct kvfs_slots *s, uint64_t node, bool prefetch, bool *unread);
/* It begins to be filled: nothing of it was given out. */
void kvfs_slot_begin(struct kvfs_slot *slot);
/* `bytes` from `offset` in the slot were given out. */
void kvfs_slots_touch(struct kvfs_slots *s, struct kvfs_slot *slot, uint32_t offset,
                      uint32_t bytes);
/* Whether all of it was; and noting so. */
bool kvfs_slot_is_served(const struct kvfs_slot *slot);
void kvfs_slot_serve_all(struct kvfs_slot *slot);

#endif
