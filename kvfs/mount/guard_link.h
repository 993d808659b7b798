/*
 * Between the guard's thread in the supervisor and the worker: SOCK_SEQPACKET, one message a packet
 * (KVFS_FD_GUARD in the worker). The worker asks and is answered in any order; the guard says that
 * it is alive after every run, and when to seal. A worker that has not heard of it for `gap` seals
 * itself: a guard that was silenced guards nothing. Neither side waits for the other to read, but
 * for the worker's leave.
 */
#ifndef KVFS_MOUNT_GUARD_LINK_H
#define KVFS_MOUNT_GUARD_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "format/base/err.h"

enum kvfs_guard_type {
    KVFS_GUARD_ADMIT = 1, /* worker: may process `pid` open a file? */
    KVFS_GUARD_CHECK,     /* worker: a whole run, for the evidence before keys */
    KVFS_GUARD_LEAVE,     /* worker: it ends, keys and plaintext are gone from it. The guard closes
                             the link and looks no more */
    KVFS_GUARD_ANSWER,    /* guard: to `number`. ADMIT: `good`, and text is the executable, "" if it
                             is not seen; or text says why not. CHECK: text is
                             {"state", "findings"} of keyserver/PROTOCOL.md section 6 */
    KVFS_GUARD_ALIVE,     /* guard */
    KVFS_GUARD_SEAL,      /* guard: text says why */
};

enum { KVFS_GUARD_TEXT_MAX = 40 << 10 };

struct kvfs_guard_message {
    uint32_t type;
    uint32_t size;   /* of the packet, which ends with the text's NUL */
    uint32_t number; /* of the question */
    int32_t pid;
    uint32_t good;
    char text[KVFS_GUARD_TEXT_MAX];
};

/* Never blocks: a link that nobody reads is CT_BUSY. Sets the size. */
int kvfs_guard_send(int link, struct kvfs_guard_message *m, struct ct_err *err);
/* 1, or 0 when the other side is gone, or -1. The text is terminated. */
int kvfs_guard_recv(int link, struct kvfs_guard_message *m, struct ct_err *err);

#endif
