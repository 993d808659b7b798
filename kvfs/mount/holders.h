/*
 * Who uses a mount, as far as /proc lets us see: an ordinary user sees only own processes.
 */
#ifndef KVFS_MOUNT_HOLDERS_H
#define KVFS_MOUNT_HOLDERS_H

#include <stddef.h>
#include <sys/types.h>

struct kvfs_holder {
    pid_t pid;
    const char *command; /* its name, as in /proc/PID/comm */
    const char *how;     /* "has open", "maps", "works in", "has as its root", "runs" */
    const char *file;
};

/* Calls fn once for each process that holds the device `dev`, mounted at `mountpoint`. How many. */
size_t kvfs_holders(dev_t dev, const char *mountpoint,
                    void (*fn)(void *ctx, const struct kvfs_holder *), void *ctx);

#endif
