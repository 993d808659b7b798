/*
 * The mounter's end of the socket: who is on the other one, as the kernel says, and what goes over.
 */
#ifndef KVFS_MOUNTER_PEER_H
#define KVFS_MOUNTER_PEER_H

#include <stdbool.h>
#include <sys/types.h>

#include "kvfs/mounter/config.h"
#include "kvfs/mounter/protocol.h"

/* Listens at config->socket, whose directory is made if it is missing. Everybody may connect: who
 * may have something is for km_peer_accept() to say. A descriptor, or -1. */
int km_peer_listen(const struct km_config *config, struct ct_err *err);

/* The next connection of the configured uid and gid (SO_PEERCRED); others are closed at once, with
 * no byte sent. -1: there is none. */
int km_peer_accept(int listener, const struct km_config *config);

/* A connection that a command is given instead: ours, and his in *other. */
int km_peer_pair(int *other, struct ct_err *err);

/* Takes KM_MOUNT from a process of the configured uid and gid (SCM_CREDENTIALS). *daemon: its
 * pidfd, or -1 when it is in a PID namespace that can't be seen from here. 1, 0 when the other side
 * is gone, or -1. */
int km_peer_asks(int conn, const struct km_config *config, int *daemon, struct ct_err *err);

/* The next byte, or 0 when the other side is gone. */
char km_peer_next(int conn);

/* `fds`: KM_FDS of them with the mount's device, or NULL. Whether it went off. */
bool km_peer_answer(int conn, const struct ct_err *why, const int *fds, dev_t dev);

#endif
