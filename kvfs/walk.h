/*
 * A directory and all beneath, as a list; links are not followed, and no component of a path is a
 * link when something is opened.
 */
#ifndef KVFS_WALK_H
#define KVFS_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "format/base/err.h"

enum kvfs_item_kind { KVFS_ITEM_DIR, KVFS_ITEM_FILE, KVFS_ITEM_LINK, KVFS_ITEM_SPECIAL };

struct kvfs_item {
    char *path; /* relative to the root, `/` between components, no `.` or `..` */
    enum kvfs_item_kind kind;
    struct stat st; /* of the item itself */
    char *target;   /* LINK: as it stands */
};

struct kvfs_walk {
    int fd;                  /* the root */
    struct kvfs_item *items; /* by bytes of the path; directories too, the root not */
    size_t count;
};

enum { KVFS_WALK_DEPTH = 64, KVFS_WALK_ITEMS = 1 << 20 };

/* What of a directory is left out: then nothing beneath it is looked at. NULL: nothing. */
typedef bool (*kvfs_walk_skip_fn)(void *ctx, const char *path);

/* A directory that can't be read fails the whole walk, with its path. */
int kvfs_walk_dir(const char *root, kvfs_walk_skip_fn skip, void *ctx, struct kvfs_walk *out,
                  struct ct_err *err);
void kvfs_walk_free(struct kvfs_walk *w);
#define kvfs_autowalk __attribute__((cleanup(kvfs_walk_free))) struct kvfs_walk

/* Opens beneath dirfd without following any link (O_CLOEXEC, O_NOCTTY are added). -1 with err. */
int kvfs_open_beneath(int dirfd, const char *path, int flags, struct ct_err *err);
/* A regular file, for reading: as above, but neither blocks on nor opens anything else. */
int kvfs_open_regular(int dirfd, const char *path, struct stat *st, struct ct_err *err);
/* Where a path leads with links followed, none of which may leave dirfd; stat in *st. CT_LEAVES,
 * CT_NOTFOUND. */
int kvfs_resolve_beneath(int dirfd, const char *path, struct stat *st, struct ct_err *err);

/* Lists of globs: one without `/` is for the name of a file or directory at any depth, one with
 * `/` for a whole path (where `*` does not match `/`). */
struct kvfs_globs {
    const char **items;
    unsigned *hits; /* how often each matched */
    size_t count;
};

int kvfs_globs_add(struct kvfs_globs *g, const char *glob);
bool kvfs_globs_match(struct kvfs_globs *g, const char *path);
/* For what is no path: `*` matches everything. */
bool kvfs_globs_match_name(struct kvfs_globs *g, const char *name);
/* The first that never matched, or NULL. */
const char *kvfs_globs_unused(const struct kvfs_globs *g);
void kvfs_globs_free(struct kvfs_globs *g);

#endif
