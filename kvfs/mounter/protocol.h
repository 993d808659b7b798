/*
 * What daemon and mounter say to each other, over a Unix socket (SOCK_SEQPACKET): packets of one
 * byte to the mounter, struct km_answer back.
 *
 *   KM_MOUNT    the first packet. The answer brings KM_FDS descriptors if its error is 0, and else
 *               says why not
 *   KM_READY    INIT is answered, the kernel's limits are known. No answer
 *   KM_ALIVE    the daemon's guard is at work, or has sealed. No answer. Who has said so once goes
 *               on, every second: a daemon whose processes are all stopped takes nothing back
 *   KM_UNMOUNT  unmount unless it is in use. The answer's error is 0 or EBUSY
 *
 * When nobody holds the daemon's end any more, or it was shut down, or its guard has been silent
 * for too long (`silence` in config.h), the mounter ends the mount's connection, takes back what is
 * cached, unmounts, and closes its end, in this order. That it has done so is all that a daemon can
 * still see of it.
 */
#ifndef KVFS_MOUNTER_PROTOCOL_H
#define KVFS_MOUNTER_PROTOCOL_H

#include <stdint.h>

enum { KM_MOUNT = 'm', KM_READY = 'r', KM_ALIVE = 'a', KM_UNMOUNT = 'u' };

/* The descriptors of a mount, in this order. */
enum {
    KM_FUSE,   /* the mount's /dev/fuse; the mounter keeps no copy */
    KM_CLONE,  /* a FUSE_DEV_IOC_CLONE of it, for whoever outlives the worker (refuse.h) */
    KM_SHARED, /* a sealed memfd of one page, struct kvfs_shared of control.h */
    KM_FDS
};

enum { KM_VERSION = 2, KM_TEXT_MAX = 256, KM_FIRST_FD = 3 };

struct km_answer {
    uint32_t version;
    int32_t error;         /* errno, or 0 */
    uint32_t major, minor; /* of the mount's device, by which others know it */
    char text[KM_TEXT_MAX];
};

#endif
