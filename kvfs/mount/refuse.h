/*
 * What is left to do when the worker is dead or has to go: nothing stays readable. Killing a
 * daemon or unmounting does not do that, since pages in the cache outlive both.
 *
 * It takes a FUSE_DEV_IOC_CLONE of the worker's descriptor. A dup won't do: requests that the dead
 * worker had taken would stay unanswered, and an invalidation waits for them in D state.
 */
#ifndef KVFS_MOUNT_REFUSE_H
#define KVFS_MOUNT_REFUSE_H

#include "kvfs/mount/control.h"

/* A clone of the mount's descriptor, or -1 where /dev/fuse can't be opened. */
int kvfs_refuse_clone(int fuse_fd, struct ct_err *err);

/* Drops the cached pages of all nodes, mapped ones included. Waits for requests of theirs that are
 * in flight, and for as long only if somebody answers them or the connection has ended. `shared` is
 * the worker's to write: a number that makes no sense only costs time, and that is bounded. */
void kvfs_refuse_invalidate(int clone_fd, const struct kvfs_shared *shared);

/* Answers every request with EIO from a thread of its own, drops the cached pages of all nodes,
 * calls then(ctx), which unmounts, and stops answering. The worker must be dead. */
void kvfs_refuse(int clone_fd, const struct kvfs_shared *shared, void (*then)(void *), void *ctx);

#endif
