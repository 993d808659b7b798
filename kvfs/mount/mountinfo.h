/*
 * /proc/self/mountinfo, the only way to learn about a mount without touching it: a stat() of a
 * mount whose worker hangs would hang too.
 */
#ifndef KVFS_MOUNT_MOUNTINFO_H
#define KVFS_MOUNT_MOUNTINFO_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "format/base/err.h"

#define KVFS_FSTYPE "fuse.kvfs"

struct kvfs_mountinfo {
    int id, parent;
    dev_t dev;
    bool shared; /* what is mounted beneath it shows in copies of it, too */
    char fstype[64];
    char source[PATH_MAX];
    char path[PATH_MAX];
};

/* What is mounted at exactly `path` (absolute, resolved), topmost. 1, 0 if nothing is, or -1. */
int kvfs_mountinfo_at(const char *path, struct kvfs_mountinfo *out, struct ct_err *err);

/* The mount with this id. *covered (may be NULL): another lies on top of it.
 * 1, 0 if there is none, or -1. */
int kvfs_mountinfo_of(int id, struct kvfs_mountinfo *out, bool *covered, struct ct_err *err);

/* Whether a mount with this device is still at `path`; *on_top (may be NULL): with nothing over
 * it. An unreadable table counts as still there. */
bool kvfs_mountinfo_has(const char *path, dev_t dev, bool *on_top);

/* Undoes \040 and the like, as the table has it for blanks, in place. */
void kvfs_mountinfo_unescape(char *text);

/* The absolute path of `path`, whose last component is not touched, since it may be a dead mount.
 * 0, or -1. */
int kvfs_mountpoint_path(const char *path, char out[static PATH_MAX], struct ct_err *err);

#endif
