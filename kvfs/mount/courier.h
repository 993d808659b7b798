/*
 * Couriers: processes that carry the worker's requests to the key server (carry.h), one a socket.
 * They have a socket(2), libcurl and the server's address, and no secret: what they carry is
 * encrypted and signed for the other side. `kvfs courier UID GID URL [CA]` is not for users.
 *
 * Descriptors: the socket, and the file of certificates, which was opened before the mount was
 * there: by its path, a courier might have to wait for the mount that waits for it.
 */
#ifndef KVFS_MOUNT_COURIER_H
#define KVFS_MOUNT_COURIER_H

#include <sys/types.h>

#include "format/base/err.h"
#include "kvfs/mount/config.h"

enum { KVFS_COURIERS_MAX = 160, KVFS_COURIER_FD = 3, KVFS_COURIER_CA = 4 };

struct kvfs_couriers {
    const struct kvfs_config *config; /* borrowed */
    int ca_fd;                        /* borrowed; -1 for the system's certificates */
    pid_t pids[KVFS_COURIERS_MAX];    /* 0: none */
};

/* Starts one; the worker's end of its socket, owned by the caller, or -1. It ends with the socket,
 * or with this process. CT_BUSY when too many live. */
int kvfs_courier_start(struct kvfs_couriers *c, struct ct_err *err);

#endif
