/*
 * Opens for the worker beneath a directory, and explains links that lead out of it. Nothing outside
 * is touched, not even to find out what is there: it could be the mount itself.
 */
#ifndef KVFS_MOUNT_OPENAT_H
#define KVFS_MOUNT_OPENAT_H

#include <stdbool.h>

#include "kvfs/mount/control.h"

/* Relative, without empty, `.` and `..` components; "" is allowed. */
bool kvfs_path_is_plain(const char *path);

/* Fills `reply` for KVFS_REQ_OPEN of a plain path beneath `dirfd`, which is open on `root`
 * (absolute, resolved). *fd: a regular file or directory open for reading, or -1. Links whose
 * target is absolute are followed as long as it lies in `root`. */
void kvfs_open_source(int dirfd, const char *root, const char *path, struct kvfs_reply *reply,
                      int *fd);

/* Where `path` leads with links followed by name only: 0 and a plain path beneath root in `out`, or
 * 1 and an absolute path outside in `out`, or -1 with errno. */
int kvfs_follow(int dirfd, const char *root, const char *path, char out[static PATH_MAX]);

/* The deepest directory that holds both; "/" if there is no other. */
void kvfs_common_directory(const char *a, const char *b, char out[static PATH_MAX]);

#endif
