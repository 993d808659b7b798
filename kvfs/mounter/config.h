/*
 * The mounter's configuration, the only thing it follows. Lines of `NAME VALUE`; `#` begins a
 * comment. The file has to belong to the mounter's user, and nobody else may write to it.
 *
 *   target DIR       where to mount. Absolute, and no component of it may be a link
 *   uid UID          who may ask for the mount
 *   gid GID          and his group (the same number)
 *   socket PATH      where he asks
 *   options LIST     of allow-other (users other than uid may enter, as far as modes allow) and
 *                    nosymfollow, with commas between. Always ro, nosuid, nodev, noexec,
 *                    default_permissions
 *   readahead KIB    the kernel's read-ahead (1024)
 *   silence SEC      how long a guarded daemon may say nothing before the mount is taken back (10;
 *                    0: for ever). More than the `gap` of its profile, after which it seals itself
 */
#ifndef KVFS_MOUNTER_CONFIG_H
#define KVFS_MOUNTER_CONFIG_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "format/base/err.h"

enum { KM_SOCKET_MAX = 108 }; /* sun_path */

struct km_config {
    char target[PATH_MAX];
    char socket[KM_SOCKET_MAX]; /* "": none */
    uint32_t uid, gid;
    bool uid_set, gid_set;
    bool allow_other, nosymfollow;
    uint32_t readahead_kb;
    uint32_t silence_s;
};

/* A descriptor of the file, locked against a second mounter for as long as it is open; or -1. */
int km_config_read(const char *path, struct km_config *out, struct ct_err *err);

#endif
