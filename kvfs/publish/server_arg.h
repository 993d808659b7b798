/* --ca and --wait, for commands of producers that talk to a key server. */
#ifndef KVFS_SERVER_ARG_H
#define KVFS_SERVER_ARG_H

#include <argp.h>

#include "kvfs/publish/session.h"

enum { KVFS_PATIENCE = 30, KVFS_PATIENCE_MAX = 86400 };

#define KVFS_SERVER_ARG(name)                                                                      \
    {                                                                                              \
        .command = (name), .patience = KVFS_PATIENCE                                               \
    }

/* The input is a struct kvfs_server_arg. */
extern const struct argp kvfs_server_argp;

/* Takes the one URL of a command line. 0. */
error_t kvfs_server_take_url(struct kvfs_server_arg *a, const char *url, struct argp_state *state);

#endif
