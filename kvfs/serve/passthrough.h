/*
 * FUSE passthrough (kernel 6.9 and later), which libfuse 3.14 does not know: the reply to INIT is
 * changed on its way out, and a reply to open is made by hand.
 */
#ifndef KVFS_SERVE_PASSTHROUGH_H
#define KVFS_SERVE_PASSTHROUGH_H

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct kvfs_passthrough {
    bool wanted;         /* by us: set before the session runs */
    bool offered;        /* by the kernel */
    uint64_t unique;     /* of the INIT request */
    atomic_bool settled; /* INIT is answered */
    atomic_bool on;      /* both want it */
};

/* In place of fuse_session_mount(): serves the mount whose descriptor is `fd`, which the session
 * closes. 0 or -1. */
int kvfs_passthrough_attach(struct fuse_session *session, int fd);
/* Where in the session's user data the state is (worker.c). */
struct kvfs_passthrough *kvfs_passthrough_of(void *userdata);

/* Answers an open: reads and mappings go to the file registered as `backing`. As
 * fuse_reply_open(). */
int kvfs_passthrough_reply(fuse_req_t req, uint64_t fh, int32_t backing);

#endif
