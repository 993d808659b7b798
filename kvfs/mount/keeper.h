/*
 * The keeper: a process that waits until supervisor and worker are both dead, however they died,
 * and then does what the supervisor would have done: refuses, invalidates, unmounts. Meanwhile it
 * looks whether the worker is half dead (mounter.h), and ends the connection then; and whether it
 * is dead, and the supervisor does nothing.
 *
 * fusermount3 would unmount as well (auto_unmount), if root or allow_other lets it look; it
 * invalidates nothing. It stays the last resort should the keeper be killed too.
 */
#ifndef KVFS_MOUNT_KEEPER_H
#define KVFS_MOUNT_KEEPER_H

#include "kvfs/mount/spawn.h"

/* Its pid, or -1. Call from the supervisor, whose log it shares. `clone_fd` -1: it only unmounts.
 * `residents`: the tmpfs of tmpfs.h, or -1. `foreign`: what
 * the keeper must not hold open; -1 among them is skipped. */
pid_t kvfs_keeper_start(const struct kvfs_mounted *m, const struct kvfs_worker *w, int clone_fd,
                        int residents, bool foreground, const int *foreign, size_t count,
                        struct ct_err *err);

#endif
