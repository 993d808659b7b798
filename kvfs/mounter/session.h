/*
 * One daemon's time with the mount: from its first packet to its end, or ours.
 *
 * A child does nothing but wait for the mounter's end, however it comes, and then does what is left
 * to do.
 */
#ifndef KVFS_MOUNTER_SESSION_H
#define KVFS_MOUNTER_SESSION_H

#include <stdbool.h>

#include "kvfs/mounter/config.h"

struct km_mounter {
    const struct km_config *config;
    int target;    /* km_target_open() */
    int listener;  /* -1: there is one connection and no other */
    int signal_fd; /* SIGTERM, SIGINT */
    bool stop;     /* a signal asked for it */
};

/* Serves a connection, which it closes. Waits `ms` (-1: for ever) for the first packet. When it
 * returns, nothing of the mount is left. */
void km_session(struct km_mounter *m, int conn, int ms);

#endif
