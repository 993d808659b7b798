#include "kvfs/mount/keys_in.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "format/base/file.h"
#include "format/base/secret.h"

int kvfs_keys_from_env(struct ct_err *err)
{
    char *text = getenv(KVFS_KEYS_ENV);
    if (!text) {
        return -1;
    }
    size_t n = strlen(text);
    int fd = n ? memfd_create(KVFS_KEYS_ENV, MFD_CLOEXEC) : -1;
    int rc = 0;
    if (n && fd < 0) {
        rc = ct_err_sys(err, errno, KVFS_KEYS_ENV);
    } else if (n) {
        rc = ct_write_full(fd, text, n, err);
    }
    ct_wipe(text, n);
    (void)unsetenv(KVFS_KEYS_ENV);
    if (rc) {
        if (fd >= 0) {
            close(fd);
        }
        return -2;
    }
    if (fd >= 0) {
        (void)lseek(fd, 0, SEEK_SET);
    }
    return fd;
}

int kvfs_keys_open(const struct kvfs_keys_arg *keys, int env_fd, struct kvfs_key_files *out,
                   struct ct_err *err)
{
    for (size_t i = 0; i < keys->count; i++) {
        if (kvfs_key_files_open(out, keys->paths[i], err)) {
            if (env_fd >= 0) {
                close(env_fd);
            }
            return -1;
        }
    }
    if (keys->count > 0) {
        if (env_fd >= 0) {
            close(env_fd);
        }
        return 0;
    }
    if (env_fd < 0) {
        return ct_err_set(
            err, CT_NOKEY,
            "no keys: say --key FILE (kvfs keygen makes some), or set " KVFS_KEYS_ENV);
    }
    out->items[0].fd = env_fd;
    (void)strcpy(out->items[0].name, KVFS_KEYS_ENV);
    out->count = 1;
    return 0;
}
