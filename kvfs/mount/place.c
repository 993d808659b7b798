#include "kvfs/mount/place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvfs/mount/mountinfo.h"

int kvfs_place_source(struct kvfs_config *config, struct ct_err *err)
{
    char given[PATH_MAX];
    memcpy(given, config->source, sizeof(given));
    int fd = open(given, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        switch (errno) {
        case ENOENT:
            return ct_err_set(err, CT_NOTFOUND, "there is no directory %s to mount", given);
        case ENOTDIR:
            return ct_err_set(err, CT_USAGE, "%s is no directory: name the one that it lies in",
                              given);
        case EACCES:
            return ct_err_set(err, CT_IO, "%s can't be read by uid %u: chmod it, or mount as root",
                              given, geteuid());
        default:
            return ct_err_sys(err, errno, "%s", given);
        }
    }
    if (!realpath(given, config->source)) {
        ct_err_sys(err, errno, "%s", given);
        close(fd);
        return -1;
    }
    return fd;
}

static int check_empty(const char *path, struct ct_err *err)
{
    DIR *dir = opendir(path);
    if (!dir) {
        return ct_err_sys(err, errno, "%s can't be mounted on", path);
    }
    const struct dirent *d;
    int rc = 0;
    while (rc == 0 && (d = readdir(dir))) {
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0) {
            rc = ct_err_set(err, CT_EXISTS,
                            "%s is not empty: mount somewhere else, or say -o nonempty", path);
        }
    }
    (void)closedir(dir);
    return rc;
}

int kvfs_place_is_free(const char *path, struct ct_err *err)
{
    struct kvfs_mountinfo info;
    int rc = kvfs_mountinfo_at(path, &info, err);
    if (rc < 0) {
        return -1;
    }
    if (rc > 0 && strcmp(info.fstype, KVFS_FSTYPE) == 0) {
        return ct_err_set(err, CT_BUSY, "%s is mounted at %s already: kvfs umount %s first",
                          info.source, path, path);
    }
    return 0;
}

static int explain_mountpoint(const char *path, int sys, struct ct_err *err)
{
    switch (sys) {
    case ENOENT:
        return ct_err_set(err, CT_NOTFOUND, "%s does not exist: mkdir -p %s", path, path);
    case ENOTCONN:
        return ct_err_set(err, CT_BUSY, "a dead mount is left at %s: fusermount3 -uz %s", path,
                          path);
    default:
        return ct_err_sys(err, sys, "%s can't be mounted on", path);
    }
}

static bool is_inside(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return strcmp(dir, "/") == 0 || (strncmp(path, dir, n) == 0 && path[n] == '/');
}

int kvfs_place_mountpoint(struct kvfs_config *config, bool nonempty, struct ct_err *err)
{
    char given[PATH_MAX];
    char untouched[PATH_MAX];
    struct stat st;
    memcpy(given, config->mountpoint, sizeof(given));
    if (*config->mounter) {
        return *given == '/'
                   ? 0
                   : ct_err_set(err, CT_USAGE, "%s: MNT has to be an absolute path", given);
    }
    if (kvfs_mountpoint_path(given, untouched, err)) {
        return explain_mountpoint(given, err->sys, err);
    }
    if (kvfs_place_is_free(untouched, err)) {
        return -1;
    }
    if (!realpath(given, config->mountpoint) || stat(given, &st)) {
        return explain_mountpoint(given, errno, err);
    }
    if (!S_ISDIR(st.st_mode)) {
        return ct_err_set(err, CT_USAGE, "%s is no directory", given);
    }
    /* The path may have led over a link to a mount. */
    if (kvfs_place_is_free(config->mountpoint, err)) {
        return -1;
    }
    /* The supervisor would wait for the worker, which waits for the supervisor. */
    if (is_inside(config->mountpoint, config->source)) {
        return ct_err_set(err, CT_USAGE, "%s lies inside %s: mount somewhere else",
                          config->mountpoint, config->source);
    }
    return nonempty ? 0 : check_empty(config->mountpoint, err);
}
