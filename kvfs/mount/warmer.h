/*
 * `kvfs warm` beside a mount, for `-o warm`: a process of its own reads through the mount, which
 * the supervisor never does.
 */
#ifndef KVFS_MOUNT_WARMER_H
#define KVFS_MOUNT_WARMER_H

#include "kvfs/mount/guarding.h"

struct kvfs_warmer {
    pid_t pid;
    int fd; /* its pidfd, -1: there is none */
};

/* `guarding` is told of it before it begins. */
void kvfs_warmer_start(struct kvfs_warmer *w, const char *mountpoint,
                       struct kvfs_guarding *guarding);
void kvfs_warmer_signal(const struct kvfs_warmer *w, int signal);
/* It has ended. */
void kvfs_warmer_reap(struct kvfs_warmer *w);

#endif
