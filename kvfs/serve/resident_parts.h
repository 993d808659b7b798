/* What resident.c and resident_end.c share. Not for others. */
#ifndef KVFS_SERVE_RESIDENT_PARTS_H
#define KVFS_SERVE_RESIDENT_PARTS_H

#include <pthread.h>
#include <time.h>

#include "kvfs/serve/resident.h"

enum kvfs_resident_state {
    STARTING,   /* memory is being had: nothing to decrypt yet */
    POPULATING, /* extents are handed out to threads */
    READY,
    ENDING, /* the supervisor is asked whether anybody still has it */
};

struct kvfs_resident {
    struct kvfs_resident *next;
    struct kvfs_node *node; /* kept by its `busy` */
    struct kvfs_content *content;
    enum kvfs_resident_state state;
    uint32_t number;
    int32_t backing;
    int fd;
    uint8_t *map; /* while populating */
    struct ct_load *load;
    uint64_t size;
    uint32_t extents, taken, done;
    uint64_t bytes_done;
    bool failed;
    struct ct_err why;
    struct kvfs_opening *waiters;
    unsigned users;
    bool taken_back;
    bool kept;          /* lingers without end, until it was used */
    int64_t idle_since; /* ct_now_seconds() */
    uint64_t tried;     /* the number of the search for room that last tried to end it */
};

struct kvfs_resident_set {
    pthread_mutex_t lock;   /* guards all of these, and every node's cache, users and resident */
    pthread_cond_t changed; /* one is no longer ENDING */
    struct kvfs_resident *list;
    uint64_t used;
    uint64_t searches;      /* for room, so far */
    atomic_uint populating; /* files that have extents to hand out */
    bool off;               /* the supervisor can't, or the kernel */
    bool sealed;
};

/* Without the lock, by who has set r->taken_back: nobody can reach what the file held, mapped or
 * not. */
void kvfs_resident_take_back(struct kvfs_serve *s, const struct kvfs_resident *r);

#endif
