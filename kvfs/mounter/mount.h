/*
 * One FUSE mount, made and unmade by descriptors: no path is looked up after the target was opened,
 * so that whoever swaps a path for another gains nothing.
 */
#ifndef KVFS_MOUNTER_MOUNT_H
#define KVFS_MOUNTER_MOUNT_H

#include <stdbool.h>
#include <sys/types.h>

#include "kvfs/mount/control.h"
#include "kvfs/mounter/config.h"
#include "kvfs/mounter/protocol.h"

/* Opens the target, which is made if it is missing; refuses links anywhere in its path. What an
 * earlier mounter left mounted there is taken away. A descriptor (O_PATH), or -1. */
int km_target_open(const char *path, struct ct_err *err);
/* CT_STALE unless the path still leads to this directory. */
int km_target_check(int target, const char *path, struct ct_err *err);

struct km_mount {
    int target;      /* borrowed: the directory underneath */
    int fds[KM_FDS]; /* KM_FUSE is -1 once it was given away */
    int abort_fd;    /* fusectl's, or -1 where it can't be mounted */
    int id;          /* as mountinfo has it; -1: never mounted */
    dev_t dev;
    const struct kvfs_shared *page;
};

/* Mounts. `daemon` is a pidfd of who asks (-1: not seen from here): the pids of readers will be
 * those of its PID namespace. */
int km_mount(const struct km_config *config, int target, int daemon, struct km_mount *out,
             struct ct_err *err);

/* 0, also if it is gone already; CT_BUSY if it is in use. */
int km_unmount(const struct km_mount *m, struct ct_err *err);

/* Ends the connection, takes back what is cached and mapped, unmounts. Waits for nobody: requests
 * in flight end with the connection, whoever had taken them. */
void km_revoke(const struct km_mount *m);

void km_set_readahead(const struct km_mount *m, uint32_t kib);
void km_close(struct km_mount *m);

#endif
