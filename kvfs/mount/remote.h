/*
 * A mount that kvfs-mounter makes for us, who may not: its end of kvfs/mounter/protocol.h.
 *
 * Every process that holds out->comm_fd keeps the mount; once none does, the mounter takes back
 * what is cached, and unmounts.
 */
#ifndef KVFS_MOUNT_REMOTE_H
#define KVFS_MOUNT_REMOTE_H

#include "kvfs/mount/mounter.h"

/* `where`: the mounter's socket, or fd:N. */
int kvfs_remote_mount(const char *where, struct kvfs_mounted *out, struct ct_err *err);

/* CT_BUSY if it is in use and not `lazy`. Lazy is the end: it also revokes. */
int kvfs_remote_umount(const struct kvfs_mounted *m, bool lazy, struct ct_err *err);
/* The end without waiting for it. */
void kvfs_remote_abort(const struct kvfs_mounted *m);
void kvfs_remote_ready(const struct kvfs_mounted *m);
/* The guard is at work. From then on the mounter expects to hear of it. Never waits. */
void kvfs_remote_alive(const struct kvfs_mounted *m);

#endif
