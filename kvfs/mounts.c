#include "kvfs/mounts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "kvfs/mount/mountinfo.h"

int kvfs_mount_open(const char *mount, const char *name, struct ct_err *err)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/.kvfs/%s", mount, name) >= (int)sizeof(path)) {
        return ct_err_set(err, CT_USAGE, "%.64s…: the path is too long", mount);
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        return fd;
    }
    if (errno == ENOENT || errno == ENOTDIR) {
        return ct_err_set(err, CT_NOTFOUND, "no kvfs is mounted at %s", mount);
    }
    if (errno == EACCES) {
        return ct_err_set(err, CT_IO, "%s is not for this user: be root or the mount's uid", mount);
    }
    return ct_err_sys(err, errno, "%s", mount);
}

int kvfs_mounts_each(int (*fn)(void *ctx, const char *mount), void *ctx, struct ct_err *err)
{
    FILE *table = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t cap = 0;
    int r = 0;
    if (!table) {
        return ct_err_sys(err, errno, "/proc/self/mountinfo");
    }
    while (r == 0 && getline(&line, &cap, table) > 0) {
        char point[PATH_MAX + 1];
        if (strstr(line, " - fuse.kvfs ") && sscanf(line, "%*s %*s %*s %*s %4096s", point) == 1) {
            kvfs_mountinfo_unescape(point);
            r = fn(ctx, point);
        }
    }
    free(line);
    (void)fclose(table);
    return r;
}
