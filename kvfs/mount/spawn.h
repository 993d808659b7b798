/*
 * Starts the worker: this executable again, with the descriptors of control.h, no environment, and
 * deaf to signals that are meant for the supervisor.
 */
#ifndef KVFS_MOUNT_SPAWN_H
#define KVFS_MOUNT_SPAWN_H

#include <sys/types.h>

#include "keyclient/measure.h"
#include "kvfs/keys_arg.h"
#include "kvfs/mount/control.h"
#include "kvfs/mount/mounter.h"

struct kvfs_worker {
    pid_t pid;
    int pidfd;
    int control;                /* our end */
    int said;                   /* what it writes to stderr */
    struct kvfs_shared *shared; /* hostile */
};

/* What it is started with; all borrowed. */
struct kvfs_start {
    const struct kvfs_config *config;
    const struct kvfs_key_files *keys;
    const struct kvfs_mounted *mounted;
    int guard_link; /* -1: none */
    const struct kc_measured *measured;
    uint32_t measured_count;
};

/* Starts it and says hello. Its limits are ours. */
int kvfs_worker_start(const struct kvfs_start *how, struct kvfs_worker *out, struct ct_err *err);

/* Turns before all others for each of its threads (kvfs_turns_first), so that it ends soon. */
void kvfs_worker_hurry(const struct kvfs_worker *w);

/* SIGKILL, and hurry. */
void kvfs_worker_kill(const struct kvfs_worker *w);

/* Whether it was killed, though a thread of it lives on: one that the kernel can't let go. */
bool kvfs_worker_is_half_dead(pid_t pid);

/* "exit 1", "killed by signal 9 (Killed)", of what waitpid() said. */
void kvfs_worker_describe_end(int status, char out[static 64]);

#endif
