/*
 * The latest generation that was seen of each model, in a file of the state directory, so that a
 * server (or somebody who has its database's copy of last month) can't offer an older one.
 *
 * `seen.json`: {SERVER'S THUMBPRINT: {"OWNER/NAME": generation}}. Several mounts may share it.
 */
#ifndef KVFS_MOUNT_SEEN_H
#define KVFS_MOUNT_SEEN_H

#include <stdint.h>

#include "format/base/err.h"

/* Opens the directory: `given`, else what systemd names, else /var/lib/kvfs if it is there. -1
 * with CT_OK in err when there is none, and nothing will be remembered. */
int kvfs_seen_open(const char *given, struct ct_err *err);
/* Notes `generation` if it is higher than what is there (0 only asks); *out is the highest. A file
 * that makes no sense is CT_MALFORMED, and stays as it is. */
int kvfs_seen(int dirfd, const char *server_key, const char *model, int64_t generation,
              int64_t *out, struct ct_err *err);

#endif
