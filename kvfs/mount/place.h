/*
 * Whether SRC can be read and MNT be mounted on, said in sentences that help.
 */
#ifndef KVFS_MOUNT_PLACE_H
#define KVFS_MOUNT_PLACE_H

#include "kvfs/mount/options.h"

/* Opens SRC and makes config.source absolute and resolved. A descriptor, or -1. */
int kvfs_place_source(struct kvfs_config *config, struct ct_err *err);

/* Checks MNT and makes config.mountpoint absolute and resolved; with config.mounter it is not
 * looked at, since it need not exist here. config.source is resolved. */
int kvfs_place_mountpoint(struct kvfs_config *config, bool nonempty, struct ct_err *err);

/* CT_BUSY if a kvfs is mounted at `path`, which is not touched. */
int kvfs_place_is_free(const char *path, struct ct_err *err);

#endif
