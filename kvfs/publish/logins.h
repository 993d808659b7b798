/*
 * Where `kvfs login` keeps what it got: $XDG_CONFIG_HOME/kvfs/logins.json (~/.config/kvfs), mode
 * 0600, in a directory of mode 0700. One entry a server:
 *
 *     {"url", "user", "access_token", "access_expires", "refresh_token", "refresh_expires",
 *      "ca": absolute path or null}
 *
 * Access tokens work for an hour, and a refresh, which works once, ends the one before: so commands
 * that run at the same time share both, and refresh under a lock, which struct kvfs_logins holds.
 * The file is replaced, never changed.
 */
#ifndef KVFS_LOGINS_H
#define KVFS_LOGINS_H

#include <jansson.h>
#include <stdbool.h>

#include "format/base/err.h"

struct kvfs_logins {
    int dirfd;
    char *path; /* of the directory, for messages */
    json_t *list;
};
#define KVFS_LOGINS                                                                                \
    {                                                                                              \
        .dirfd = -1                                                                                \
    }

/* Waits for the lock and reads. `make`: makes what is missing; otherwise there are no entries then.
 * CT_REJECTED when somebody else can read or owns the file. To be closed in any case. */
int kvfs_logins_open(struct kvfs_logins *l, bool make, struct ct_err *err);
void kvfs_logins_close(struct kvfs_logins *l);
#define kvfs_autologins __attribute__((cleanup(kvfs_logins_close))) struct kvfs_logins

/* The entry of a server, borrowed, or NULL. `url` NULL: the only one there is. */
json_t *kvfs_logins_find(const struct kvfs_logins *l, const char *url);
/* Replaces the entry of that url, or adds it. `entry` is stolen. */
int kvfs_logins_put(struct kvfs_logins *l, json_t *entry, struct ct_err *err);
void kvfs_logins_remove(struct kvfs_logins *l, const char *url);
/* Atomically. Without an entry the file is removed. */
int kvfs_logins_write(const struct kvfs_logins *l, struct ct_err *err);

#endif
