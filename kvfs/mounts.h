/* The mounts that are there, and what each says of itself in `.kvfs/`. */
#ifndef KVFS_MOUNTS_H
#define KVFS_MOUNTS_H

#include "format/base/file.h"

/* Opens MNT/.kvfs/name for reading. -1 with a sentence that says what to do. */
int kvfs_mount_open(const char *mount, const char *name, struct ct_err *err);
/* Calls fn for every mount of kvfs in this mount namespace, until it returns non-zero. */
int kvfs_mounts_each(int (*fn)(void *ctx, const char *mount), void *ctx, struct ct_err *err);

#endif
