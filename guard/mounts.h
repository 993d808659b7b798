/*
 * A mount table (/proc/PID/mountinfo, proc_pid_mountinfo(5)) and what can be said of it.
 */
#ifndef GUARD_MOUNTS_H
#define GUARD_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "format/base/arena.h"

enum {
    GUARD_M_RO = 1,
    GUARD_M_NOSUID = 2,
    GUARD_M_NODEV = 4,
    GUARD_M_NOEXEC = 8,
};

struct guard_mount {
    int id, parent;
    dev_t dev;
    unsigned flags;     /* options of the mount */
    bool super_ro;      /* option of the file system: / of a container may be rw here and still be
                           read-only as a mount */
    const char *root;   /* what of the file system is mounted, "/" for all of it */
    const char *path;   /* where */
    const char *fstype; /* of FUSE with a subtype that whoever mounts chooses */
    const char *source; /* as whoever mounts says */
};

struct guard_mounts {
    struct ct_arena arena;
    struct guard_mount *items;
    size_t count;
};

enum { GUARD_MOUNTS_MAX = 16384 };

int guard_parse_mounts(const char *text, size_t n, struct guard_mounts *out, struct ct_err *err);
void guard_mounts_free(struct guard_mounts *m);

/* Whether `path` is `dir` or lies beneath it, by whole components: /tmpfoo is not beneath /tmp. */
bool guard_path_beneath(const char *path, const char *dir);

/* Whether it lies on top, so that its path leads to it: false if something is mounted over it, or
 * over a directory above. */
bool guard_mount_visible(const struct guard_mounts *m, const struct guard_mount *one);

/* The mount that a path (absolute, without links) leads to, or NULL. */
const struct guard_mount *guard_mount_of(const struct guard_mounts *m, const char *path);

#endif
