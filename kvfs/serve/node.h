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
struct kvfs_shared;

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

/* How the kernel is served a file, until its last close. */
enum kvfs_served { KVFS_SERVED_NOT, KVFS_SERVED_PAGE, KVFS_SERVED_RESIDENT };

struct kvfs_resident; /* resident.c */

struct kvfs_node {
    uint64_t id;
    enum kvfs_node_kind kind;
    uint64_t lookups; /* references the kernel holds; guarded by the table's lock */
    char **paths;     /* every name it goes by, relative to SRC, "" is the root */
    size_t path_count;
    struct stat st; /* of the source; a directory's changes: kvfs_table_stat() */
    char *target;   /* LINK */
    struct kvfs_node *next_by_id, *next_by_what; /* in the table */
    uint64_t what;                               /* its key there */

    /* FILE only */
    struct ct_version version;
    struct kvfs_verdict verdict;
    struct ct_measure measure; /* MODEL */

    pthread_mutex_t opening; /* held while the content is made: openers share the work */

    pthread_mutex_t lock;         /* guards what follows */
    struct kvfs_content *content; /* while open (kept while pinned) */
    bool pinned;                  /* was opened: under update=pin its names keep yielding it */
    bool stale;                   /* its source changed: every uncached read is ESTALE */
    unsigned open_count;
    unsigned busy; /* opens on their way: they keep content and node as an open does */
    unsigned held; /* by who is taking its content away: keeps the node alone */
    struct ct_err last_error;
    struct kvfs_damage_memo *damage;
    struct kvfs_streams streams;

    /* guarded by the lock of resident.c */
    enum kvfs_served cache;
    unsigned cache_users; /* handles */
    struct kvfs_resident *resident;

    struct kvfs_node_stats stats;
};

/* ---- the table (node.c); thread-safe ---- */

struct kvfs_table;

struct kvfs_table *kvfs_table_new(struct kvfs_shared *shared, struct ct_err *err);

/* The node of an id, NULL if the kernel should not know it. Valid while the kernel holds it. */
struct kvfs_node *kvfs_table_get(struct kvfs_table *t, uint64_t id);

/* The size of its file in the view, 0 if there is no such node. */
uint64_t kvfs_table_size(struct kvfs_table *t, uint64_t id);

/* What lookup needs to know of a name; verdict and target are taken over. */
struct kvfs_found {
    enum kvfs_node_kind kind;
    struct stat st;            /* of the source */
    struct ct_version version; /* FILE */
    struct kvfs_verdict verdict;
    struct ct_measure measure;
    char *target; /* LINK */
};

/* The node for a name: the one that has this file, version and verdict, else a new one. Counts one
 * lookup. Takes what `found` owns, also on failure. */
struct kvfs_node *kvfs_table_put(struct kvfs_table *t, const char *path, struct kvfs_found *found,
                                 struct ct_err *err);
/* The node that a name is pinned to, with one lookup counted; NULL if it is not pinned. */
struct kvfs_node *kvfs_table_pinned(struct kvfs_table *t, const char *path);
/* From now on all names of the node yield it. */
void kvfs_table_pin(struct kvfs_table *t, struct kvfs_node *node);
/* Forgets all pins. Without a lock, calls `name` for each name, and `file` for each file that has
 * content, counted as busy: as if an open of it had just failed. */
struct kvfs_unpin {
    void (*name)(void *ctx, uint64_t parent, const char *name);
    void (*file)(void *ctx, struct kvfs_node *node);
    void *ctx;
};
int kvfs_table_unpin_all(struct kvfs_table *t, const struct kvfs_unpin *u, struct ct_err *err);
/* The kernel drops n references. The last one frees the node, unless it is pinned or open, or has
 * content: whoever takes that away frees it, once nothing reads or decrypts for it any more. */
void kvfs_table_forget(struct kvfs_table *t, uint64_t id, uint64_t n);
/* Gives up a hold (node->held). */
void kvfs_table_release(struct kvfs_table *t, struct kvfs_node *node);
/* The source's attributes, from which the node's are made. */
struct stat kvfs_table_stat(struct kvfs_table *t, const struct kvfs_node *node);
/* Calls fn for every node; the table is locked meanwhile. */
void kvfs_table_each(struct kvfs_table *t, void (*fn)(void *ctx, struct kvfs_node *node),
                     void *ctx);
/* A copy of the node's names, to be freed with kvfs_paths_free(); NULL without memory. */
char **kvfs_table_paths(struct kvfs_table *t, const struct kvfs_node *node, size_t *count);
void kvfs_paths_free(char **paths, size_t count);

#endif
