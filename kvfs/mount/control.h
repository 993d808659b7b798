/*
 * The control socket between supervisor and worker: SOCK_SEQPACKET, one fixed-size message a
 * packet. The worker has no path to anything: it asks the supervisor, which opens beneath SRC (or
 * the key directory) with openat2 and passes a descriptor.
 *
 * Descriptors the worker inherits, by number:
 *   KVFS_FD_COMM     fusermount3's socket, which is only kept open: when the last process that
 *                    holds it is gone, fusermount3 removes the mount, unless it still answers.
 *                    The kernel lets go of a dying process's descriptors from the highest down
 *                    (task_work_run), so this must lie below /dev/fuse, here and in supervisor
 *                    and keeper: then the connection has ended before fusermount3 looks.
 *   KVFS_FD_CONTROL  the socket
 *   KVFS_FD_FUSE     the mount's /dev/fuse descriptor
 *   KVFS_FD_SHARED   memfd of one page, struct kvfs_shared
 *   KVFS_FD_GUARD    the link to the guard (guard_link.h), if there is one
 *   KVFS_FD_KEYS     the first of the hello message's key_count descriptors of JWK files, or with a
 *                    key server the one with the API key
 * EOF on the socket tells each side that the other is gone.
 *
 * The supervisor serves one request after the other, and believes nothing that the worker says: a
 * packet of another size, an unknown type, a path that is not relative, plain and terminated, or a
 * reply that is not fetched ends the worker.
 */
#ifndef KVFS_MOUNT_CONTROL_H
#define KVFS_MOUNT_CONTROL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "format/base/err.h"
#include "keyclient/measure.h"
#include "kvfs/mount/config.h"

enum {
    KVFS_FD_COMM = 3,
    KVFS_FD_CONTROL = 4,
    KVFS_FD_FUSE = 5,
    KVFS_FD_SHARED = 6,
    KVFS_FD_GUARD = 7,
    KVFS_FD_KEYS = 8
};
enum { KVFS_KEY_FILES_MAX = 256, KVFS_TEXT_MAX = 1024 };

/* One page, mapped by both. Written by the worker only, with relaxed atomics. */
struct kvfs_shared {
    uint64_t highest_node; /* node ids are dense and never reused: 1..highest_node */
    uint64_t sealed;       /* 1: it is sealed; 2: and all is taken back */
    uint64_t progress;     /* of taking things back: another value means that something has been */
    uint64_t lease_ends;   /* the first of the leases: milliseconds of CLOCK_BOOTTIME; 0: there is
                              none. Until then, and a little longer, the worker may have to end it */
};

enum kvfs_request_type {
    KVFS_REQ_OPEN = 1, /* path beneath SRC; "" is SRC. Reply with a descriptor */
    KVFS_REQ_OPEN_KEY, /* path of a `file://` jku, for --key-dir. Reply with a descriptor */
    KVFS_REQ_RESIDENT, /* a resident file for `bytes` bytes. Reply with number, backing, descriptor
                        */
    KVFS_REQ_RESIDENT_MORE, /* may the next part of one be taken? Reply: ENOMEM */
    KVFS_REQ_RESIDENT_END,  /* the end of resident file `number`. Reply: EBUSY while it is mapped */
    KVFS_REQ_COURIER,       /* a courier's socket (carry.h). Reply with a descriptor */
    KVFS_REQ_SEEN,   /* generation `bytes` of model `text` was seen. Reply: value, the highest */
    KVFS_REQ_AUDIT,  /* chain `text`, body `path` (audit_file.h). Reply: text, a note or "" */
    KVFS_REQ_READY,  /* INIT answered; text: what the user should be told, may be "". No reply */
    KVFS_REQ_SEALED, /* the mount is sealed, all is taken back; text: why. No reply */
    KVFS_REQ_FAILED, /* the mount cannot start; text: why. No reply */
};

struct kvfs_request {
    uint32_t type;
    uint32_t size; /* of this structure: guards against a changed executable */
    uint32_t number;
    uint64_t bytes;
    char path[PATH_MAX]; /* components without `.` and `..`, one `/` between them; AUDIT: JSON */
    char text[KVFS_TEXT_MAX];
};

struct kvfs_reply {
    int32_t error;    /* errno; EXDEV: the link leaves SRC and text says which directory to mount */
    uint32_t is_link; /* the last component is a symbolic link */
    uint32_t number;  /* RESIDENT */
    int32_t backing;  /* RESIDENT: for the reply to open */
    int64_t value;    /* SEEN */
    struct stat st;   /* of what the path leads to in the end */
    char target[PATH_MAX]; /* of the link, as it stands */
    char text[KVFS_TEXT_MAX];
};

struct kvfs_hello { /* supervisor → worker, first packet */
    uint32_t size;
    uint32_t key_count;
    struct kvfs_config config;
    uint32_t measured_count;
    struct kc_measured measured[KVFS_MEASURED_MAX];
    char key_names[KVFS_KEY_FILES_MAX][64]; /* base names, for messages */
};

/* One packet of `size` bytes; `fd` (-1: none) goes along and stays the caller's. Never blocks when
 * `nowait`: then a full socket is an error (CT_BUSY). Never SIGPIPE. */
int kvfs_control_send(int sock, const void *msg, size_t size, int fd, bool nowait,
                      struct ct_err *err);
/* One packet of exactly `size` bytes, with the descriptor that came along in *fd (-1: none;
 * CLOEXEC; owned by the caller); `fd` NULL: none may come. 1, or 0 when the other side is gone, or
 * -1. */
int kvfs_control_recv(int sock, void *msg, size_t size, int *fd, struct ct_err *err);
/* The same for a packet of at most `most` bytes; *got of them. */
int kvfs_control_recv_upto(int sock, void *msg, size_t most, size_t *got, int *fd,
                           struct ct_err *err);

#endif
