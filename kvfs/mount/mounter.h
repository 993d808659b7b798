/*
 * Mounts and unmounts: through fusermount3, which works for every user, can be replaced by a proxy
 * where a container may not mount, and removes a dead mount when all of ours were killed; or has
 * kvfs-mounter do both, with config->mounter.
 */
#ifndef KVFS_MOUNT_MOUNTER_H
#define KVFS_MOUNT_MOUNTER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "format/base/err.h"
#include "kvfs/mount/config.h"

struct kvfs_mounted {
    const char *path; /* borrowed from the configuration */
    int fuse_fd;      /* the mount's /dev/fuse */
    int comm_fd;      /* fusermount3's socket: it waits for the end of all who hold it */
    bool known;       /* the mount is in our mount table */
    dev_t dev;        /* its device, where it is known or remote */
    uint64_t id;      /* no other mount will ever have it; 0 before kernel 6.8 */
    int fusermount;   /* pidfd of the fusermount3 that waits */
    int abort_fd;     /* what ends this connection and no other, even when the mount is detached; -1
                         where fusectl is not mounted */
    bool remote; /* made by kvfs-mounter: comm_fd is its connection, and the rest is remote.h's */
    int clone_fd, shared_fd; /* from there, as of kvfs/mounter/protocol.h; or -1 */
};

/* Mounts at config->mountpoint. Errors name what to type. */
int kvfs_mounter_mount(const struct kvfs_config *config, bool noexec, struct kvfs_mounted *out,
                       struct ct_err *err);

/* Unmounts what is at `path`: as root by itself, else through fusermount3. CT_BUSY if it is in use
 * and not `lazy`. `force`, for root only, ends its connection first: every request fails. */
int kvfs_umount_path(const char *path, bool lazy, bool force, struct ct_err *err);

/* The same for our mount, and no other that has come to lie there: 0 also if it is gone already. */
int kvfs_mounter_umount(const struct kvfs_mounted *m, bool lazy, struct ct_err *err);
/* Whether it is still there. */
bool kvfs_mounter_is_mounted(const struct kvfs_mounted *m);

/* Ends the mount's connection: every request fails, of those too that a dying worker had taken. For
 * a worker that was killed while it invalidated or stored a page which a read in flight holds:
 * nothing else ends that thread, and as long as it is there the connection is. */
void kvfs_mounter_abort(const struct kvfs_mounted *m);
/* Whether it would work. */
bool kvfs_mounter_can_abort(const struct kvfs_mounted *m);

/* When ours is unmounted: fusermount3 would unmount whatever lies at the path by now. */
void kvfs_mounter_forget(const struct kvfs_mounted *m);

/* Tells the kernel how far to read ahead, where /sys may be written. */
void kvfs_mounter_set_readahead(const struct kvfs_mounted *m, uint32_t kib);

#endif
