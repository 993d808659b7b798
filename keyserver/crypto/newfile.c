#include "keyserver/crypto/newfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

static int write_in(int dirfd, const char *name, mode_t mode, bool replace, const void *bytes,
                    size_t n, struct ct_err *err)
{
    struct ct_newfile f = {.fd = -1};
    int r = ct_newfile_open(&f, dirfd, name, mode, err) || ct_write_full(f.fd, bytes, n, err) ||
                    ct_newfile_commit(&f, replace, err)
                ? -1
                : 0;
    ct_newfile_abort(&f);
    return r;
}

int ks_write_file(const char *path, mode_t mode, bool replace, const void *bytes, size_t n,
                  struct ct_err *err)
{
    char dir[PATH_MAX] = ".";
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (slash) {
        (void)snprintf(dir, sizeof(dir), "%.*s", (int)(slash == path ? 1 : slash - path), path);
    }
    ct_autofd dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dirfd < 0) {
        return ct_err_sys(err, errno, "%s", dir);
    }
    return write_in(dirfd, name, mode, replace, bytes, n, err) ? ct_err_wrap(err, "%s", path) : 0;
}
