#include "kvfs/mount/holders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "format/base/bytes.h"
#include "format/base/file.h"

struct search {
    dev_t dev;
    const char *mountpoint;
};

/* The file behind a link of /proc, if it is on the device. Attributes as cached: asking the mount
 * for them could hang. */
static bool link_holds(const struct search *s, int dirfd, const char *name,
                       char file[static PATH_MAX])
{
    struct statx stx;
    ssize_t n = readlinkat(dirfd, name, file, PATH_MAX - 1);
    if (n < 0) {
        return false;
    }
    file[n] = '\0';
    if (statx(dirfd, name, AT_STATX_DONT_SYNC, 0, &stx) == 0) {
        return makedev(stx.stx_dev_major, stx.stx_dev_minor) == s->dev;
    }
    /* A dead or sealed mount, or one that does not let us in: go by the name. */
    size_t len = strlen(s->mountpoint);
    return strncmp(file, s->mountpoint, len) == 0 && (file[len] == '/' || !file[len]);
}

static bool fds_hold(const struct search *s, int proc, char file[static PATH_MAX])
{
    int fd = openat(proc, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *d;
    bool found = false;
    while (dir && !found && (d = readdir(dir))) {
        found = d->d_name[0] != '.' && link_holds(s, dirfd(dir), d->d_name, file);
    }
    if (dir) {
        (void)closedir(dir);
    }
    return found;
}

/* ADDRESSES PERMISSIONS OFFSET MAJOR:MINOR INODE PATH, device numbers in hexadecimal. */
static bool maps_hold(const struct search *s, int proc, char file[static PATH_MAX])
{
    char want[32];
    int fd = openat(proc, "maps", O_RDONLY | O_CLOEXEC);
    FILE *maps = fd >= 0 ? fdopen(fd, "re") : NULL;
    ct_autofree char *line = NULL;
    size_t size = 0;
    bool found = false;
    (void)snprintf(want, sizeof(want), "%02x:%02x", major(s->dev), minor(s->dev));
    while (maps && !found && getline(&line, &size, maps) > 0) {
        char *save = NULL;
        char *word = strtok_r(line, " \n", &save);
        for (int i = 0; i < 3 && word; i++) {
            word = strtok_r(NULL, " \n", &save);
        }
        found = word && strcmp(word, want) == 0;
        if (found && strtok_r(NULL, " \n", &save)) {
            const char *path = strtok_r(NULL, "\n", &save);
            path = path ? path + strspn(path, " ") : "";
            (void)snprintf(file, PATH_MAX, "%s", path);
        }
    }
    if (maps) {
        (void)fclose(maps);
    }
    return found;
}

static const char *how_held(const struct search *s, int proc, char file[static PATH_MAX])
{
    if (fds_hold(s, proc, file)) {
        return "has open";
    }
    if (link_holds(s, proc, "cwd", file)) {
        return "works in";
    }
    if (link_holds(s, proc, "root", file)) {
        return "has as its root";
    }
    if (link_holds(s, proc, "exe", file)) {
        return "runs";
    }
    return maps_hold(s, proc, file) ? "maps" : NULL;
}

static void read_command(int proc, char *out, size_t size)
{
    ct_autofd fd = openat(proc, "comm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, size - 1) : 0;
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

size_t kvfs_holders(dev_t dev, const char *mountpoint,
                    void (*fn)(void *ctx, const struct kvfs_holder *), void *ctx)
{
    const struct search s = {dev, mountpoint};
    DIR *all = opendir("/proc");
    const struct dirent *d;
    size_t count = 0;
    while (all && (d = readdir(all))) {
        char *end = NULL;
        char file[PATH_MAX] = "";
        char command[64];
        long pid = strtol(d->d_name, &end, 10);
        if (pid <= 0 || *end) {
            continue;
        }
        ct_autofd proc = openat(dirfd(all), d->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        const char *how = proc >= 0 ? how_held(&s, proc, file) : NULL;
        if (how) {
            read_command(proc, command, sizeof(command));
            const struct kvfs_holder holder = {(pid_t)pid, command, how, file};
            fn(ctx, &holder);
            count++;
        }
    }
    if (all) {
        (void)closedir(all);
    }
    return count;
}
