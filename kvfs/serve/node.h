/*
 * The tree that the kernel sees. A node id stands for one directory, one link to a directory, or
 * one *version* of one source file under one verdict; ids are dense, start at 1 (the root) and are
 * never reused, so that page cache of two versions cannot mix and a supervisor can invalidate all
 * of them.
 *
 * A verdict is what we say of a file under a name: a model, a file a manifest vouches for, a side
 * file passed on unauthenticated, or refused, and why. One source file with one verdict is one
 * node, however many names lead to it.
 */
#ifndef KVFS_SERVE_NODE_H
#define KVFS_SERVE_NODE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "format/header.h"
#include "format/manifest.h"
#include "kvfs/serve/content.h"
#include "kvfs/serve/prefetch.h"

struct kvfs_serve;

enum kvfs_node_kind { KVFS_NODE_DIR, KVFS_NODE_LINK, KVFS_NODE_FILE, KVFS_NODE_STATUS };

enum kvfs_verdict_kind {
    KVFS_VERDICT_MODEL,   /* encrypted; `entry` if a manifest vouches for it */
    KVFS_VERDICT_VOUCHED, /* a plain file, `entry` is a FILE of a manifest */
    KVFS_VERDICT_PASSED,  /* passed on unauthenticated, as plain= allows; flagged */
    KVFS_VERDICT_REFUSED, /* why */
};

struct kvfs_verdict {
    enum kvfs_verdict_kind kind;
    struct ct_manifest *manifest; /* a reference, or NULL */
    const struct ct_entry *entry; /* in it */
    struct ct_err why;            /* REFUSED */
};

/* Counters that status and xattrs show; relaxed atomics. */
struct kvfs_node_stats {
    uint64_t opens, reads, bytes_read, errors;
    uint64_t extents_decrypted, extents_prefetched, extents_hit;
};

struct kvfs_damage_memo; /* extents known to be damaged, see chunks.c */

struct kvfs_node {
    uint64_t id;
    enum kvfs_node_kind kind;
    uint64_t lookups; /* references the kernel holds; guarded by the table's lock */
    char **paths;     /* every name it goes by, relative to SRC, "" is the root */
    size_t path_count;
    struct stat st; /* as the view shows it */

    /* FILE only */
    struct ct_version version;
    struct kvfs_verdict verdict;
    struct ct_measure measure; /* MODEL */

    pthread_mutex_t lock;         /* guards what follows */
    struct kvfs_content *content; /* while open (kept while pinned) */
    bool pinned;                  /* was opened: under update=pin its names keep yielding it */
    bool stale;                   /* its source changed: every uncached read is ESTALE */
    unsigned open_count;
    struct ct_err last_error;
    struct kvfs_damage_memo *damage;
    struct kvfs_streams streams;
    struct kvfs_node_stats stats;
};

#endif
