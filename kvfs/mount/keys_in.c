#include "kvfs/mount/keys_in.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/secret.h"
#include "format/protocol/digest.h"
#include "kvfs/args.h"

int kvfs_keys_from_env(const char *name, struct ct_err *err)
{
    char *text = getenv(name);
    if (!text) {
        return -1;
    }
    size_t n = strlen(text);
    int fd = n ? memfd_create(name, MFD_CLOEXEC) : -1;
    int rc = 0;
    if (n && fd < 0) {
        rc = ct_err_sys(err, errno, "%s", name);
    } else if (n) {
        rc = ct_write_full(fd, text, n, err);
    }
    ct_wipe(text, n);
    (void)unsetenv(name);
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

int kvfs_keys_check(const struct kvfs_mount_options *o, struct ct_err *err)
{
    char owner[65];
    char name[65];
    const struct kvfs_config *c = &o->config;
    if (!*c->server) {
        const char *alone = *c->server_key  ? "server-key"
                            : *c->model     ? "model"
                            : o->deploy_key ? "deploy-key"
                            : o->ca         ? "ca"
                                            : NULL;
        return alone ? ct_err_set(err, CT_USAGE,
                                  "option %s is for a key server: say which, server=URL", alone)
                     : 0;
    }
    if (strncmp(c->server, "https://", 8) != 0 || strchr(c->server, '@')) {
        return ct_err_set(err, CT_USAGE, "option server: an address like https://HOST[:PORT]");
    }
    if (o->keys.count || o->keys.key_dir) {
        return ct_err_set(err, CT_USAGE,
                          "keys come from the server or from files, never from both");
    }
    if (!*c->server_key) {
        return ct_err_set(err, CT_USAGE, "which server is it? Say server-key=THUMBPRINT");
    }
    return *c->model && !kx_split_model(c->model, owner, name)
               ? ct_err_set(err, CT_USAGE, "option model: a model is named OWNER/NAME")
               : 0;
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

/* ---- a key server's API key ---- */

static int take_descriptor(const char *number, struct ct_err *err)
{
    uint64_t n = 0;
    if (kvfs_parse_u64(number, INT32_MAX, &n) || n <= STDERR_FILENO) {
        return ct_err_set(err, CT_USAGE, "option deploy-key: fd:N takes a number above 2");
    }
    int fd = fcntl((int)n, F_DUPFD_CLOEXEC, 0);
    close((int)n); /* whoever is started from here on shall not have it */
    return fd >= 0 ? fd : ct_err_sys(err, errno, "option deploy-key: descriptor %d", (int)n);
}

static int open_credential(struct ct_err *err)
{
    char path[PATH_MAX];
    const char *dir = getenv("CREDENTIALS_DIRECTORY");
    int n = dir ? snprintf(path, sizeof(path), "%s/" KVFS_DEPLOY_KEY_CREDENTIAL, dir) : -1;
    int fd = n > 0 && n < PATH_MAX ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    return fd >= 0 ? fd
                   : ct_err_set(err, CT_NOKEY,
                                "no API key for the key server: say --deploy-key FILE, or "
                                "set " KVFS_DEPLOY_KEY_ENV);
}

int kvfs_deploy_key_open(const char *given, int env_fd, struct kvfs_key_files *out,
                         struct ct_err *err)
{
    if (given && env_fd >= 0) {
        close(env_fd);
    }
    if (given && strncmp(given, "fd:", 3) != 0) {
        return kvfs_key_files_open(out, given, err) ? -1
               : out->count != 1
                   ? ct_err_set(err, CT_USAGE, "option deploy-key: one file with the key")
                   : 0;
    }
    int fd = given ? take_descriptor(given + 3, err) : env_fd >= 0 ? env_fd : open_credential(err);
    if (fd < 0) {
        return -1;
    }
    out->items[0].fd = fd;
    (void)strcpy(out->items[0].name, "deploy key");
    out->count = 1;
    return 0;
}
