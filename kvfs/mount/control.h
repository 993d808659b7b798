/*
 * The control socket between supervisor and worker: SOCK_SEQPACKET, one fixed-size message a
 * packet. The worker has no path to anything: it asks the supervisor, which opens beneath SRC (or
 * the key directory) with openat2 and passes a descriptor.
 *
 * Descriptors the worker inherits, by number:
 *   KVFS_FD_CONTROL  the socket
 *   KVFS_FD_FUSE     the mount's /dev/fuse descriptor
 *   KVFS_FD_SHARED   memfd of one page, struct kvfs_shared
 *   KVFS_FD_KEYS     the first of config message's key_count descriptors of JWK files
 * EOF on the socket tells each side that the other is gone.
 */
#ifndef KVFS_MOUNT_CONTROL_H
#define KVFS_MOUNT_CONTROL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "format/base/err.h"
#include "kvfs/mount/config.h"

enum { KVFS_FD_CONTROL = 3, KVFS_FD_FUSE = 4, KVFS_FD_SHARED = 5, KVFS_FD_KEYS = 6 };
enum { KVFS_KEY_FILES_MAX = 256, KVFS_TEXT_MAX = 1024 };

/* One page, mapped by both. Written by the worker only, with relaxed atomics. */
struct kvfs_shared {
    uint64_t highest_node; /* node ids are dense and never reused: 1..highest_node */
    uint64_t sealed;
};

enum kvfs_request_type {
    KVFS_REQ_OPEN = 1, /* path beneath SRC; "" is SRC. Reply with a descriptor */
    KVFS_REQ_OPEN_KEY, /* path of a `file://` jku, for --key-dir. Reply with a descriptor */
    KVFS_REQ_READY,    /* INIT answered; text: what the user should be told, may be "". No reply */
    KVFS_REQ_FAILED,   /* the mount cannot start; text: why. No reply */
};

struct kvfs_request {
    uint32_t type;
    uint32_t size; /* of this structure: guards against a changed executable */
    char path[PATH_MAX];
    char text[KVFS_TEXT_MAX];
};

struct kvfs_reply {
    int32_t error;   /* errno; EXDEV: the link leaves SRC and text says which directory to mount */
    uint32_t is_link; /* the last component is a symbolic link */
    struct stat st;   /* of what the path leads to in the end */
    char target[PATH_MAX]; /* of the link, as it stands */
    char text[KVFS_TEXT_MAX];
};

struct kvfs_hello { /* supervisor → worker, first packet */
    uint32_t size;
    uint32_t key_count;
    struct kvfs_config config;
    char key_names[KVFS_KEY_FILES_MAX][64]; /* base names, for messages */
};

#endif
