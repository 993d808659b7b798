#include "kvfs/mounter/mount.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/mount/mountinfo.h"
#include "kvfs/mount/refuse.h"

#define SOURCE "kvfs-mounter"

enum { DIR_MODE = 0755, SELF_FD_MAX = 32 };

/* ---- the target ---- */

static int open_plain(const char *path, struct ct_err *err)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_NO_SYMLINKS};
    int fd = (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));
    if (fd < 0 && errno == ELOOP) {
        return ct_err_set(err, CT_LEAVES, "%s: there is a link in this path", path);
    }
    return fd >= 0 ? fd : ct_err_sys(err, errno, "%s", path);
}

/* The last component, in a directory whose path has no link. */
static int make_dir(const char *path, struct ct_err *err)
{
    char parent[PATH_MAX];
    (void)snprintf(parent, sizeof(parent), "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash || !slash[1]) {
        return ct_err_set(err, CT_USAGE, "%s: a path must not end with a slash", path);
    }
    *slash = '\0';
    ct_autofd dir = open_plain(slash == parent ? "/" : parent, err);
    if (dir < 0) {
        return -1;
    }
    return mkdirat(dir, slash + 1, DIR_MODE) && errno != EEXIST
               ? ct_err_sys(err, errno, "%s can't be made", path)
               : 0;
}

static const char *self_fd(int fd, char out[static SELF_FD_MAX])
{
    (void)snprintf(out, SELF_FD_MAX, "/proc/self/fd/%d", fd);
    return out;
}

/* What mountinfo says of the mount that a descriptor lies on. 1, 0 or -1. */
static int mount_of(int fd, struct kvfs_mountinfo *out, struct ct_err *err)
{
    char path[SELF_FD_MAX + 8];
    char line[128];
    int id = -1;
    (void)snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) {
        (void)sscanf(line, "mnt_id: %d", &id); // NOLINT(cert-err34-c)
    }
    if (f) {
        (void)fclose(f);
    }
    return kvfs_mountinfo_of(id, out, NULL, err);
}

static bool is_ours(const struct kvfs_mountinfo *info)
{
    return strcmp(info->fstype, KVFS_FSTYPE) == 0 && strcmp(info->source, SOURCE) == 0;
}

int km_target_open(const char *path, struct ct_err *err)
{
    for (;;) {
        struct kvfs_mountinfo info;
        char self[SELF_FD_MAX];
        int fd = open_plain(path, err);
        if (fd < 0 && err->sys == ENOENT) {
            *err = (struct ct_err)CT_ERR_INIT;
            fd = make_dir(path, err) ? -1 : open_plain(path, err);
        }
        if (fd < 0) {
            return -1;
        }
        if (mount_of(fd, &info, err) != 1) {
            close(fd);
            return -1;
        }
        if (!is_ours(&info)) {
            if (!info.shared) {
                ct_log(CT_LOG_WARN,
                       "%s lies on no shared mount: containers that run already won't see what is "
                       "mounted there (mount --make-shared)",
                       path);
            }
            return fd;
        }
        ct_log(CT_LOG_WARN, "%s: unmounting what an earlier mounter left", path);
        int rc = umount2(self_fd(fd, self), MNT_FORCE | MNT_DETACH);
        int sys = errno;
        close(fd);
        if (rc) {
            return ct_err_sys(err, sys, "%s: can't be unmounted", path);
        }
    }
}

int km_target_check(int target, const char *path, struct ct_err *err)
{
    struct stat a;
    struct stat b;
    ct_autofd now = open_plain(path, err);
    if (now < 0) {
        return -1;
    }
    if (fstat(target, &a) || fstat(now, &b)) {
        return ct_err_sys(err, errno, "%s", path);
    }
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino
               ? 0
               : ct_err_set(err, CT_STALE, "%s is not the directory any more that it was", path);
}

/* ---- mounting ---- */

static int configure(int fs, int fuse, const struct km_config *c, struct ct_err *err)
{
    char fd[16];
    char uid[16];
    char gid[16];
    (void)snprintf(fd, sizeof(fd), "%d", fuse);
    (void)snprintf(uid, sizeof(uid), "%u", c->uid);
    (void)snprintf(gid, sizeof(gid), "%u", c->gid);
    const struct {
        const char *key, *value; /* value NULL: a flag; key NULL: not this time */
    } all[] = {{"source", SOURCE},
               {"subtype", "kvfs"},
               {"fd", fd},
               {"rootmode", "40000"},
               {"user_id", uid},
               {"group_id", gid},
               {"default_permissions", NULL},
               {"ro", NULL},
               {c->allow_other ? "allow_other" : NULL, NULL}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        unsigned how = all[i].value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
        if (all[i].key && fsconfig(fs, how, all[i].key, all[i].value, 0)) {
            return ct_err_sys(err, errno, "mount option %s", all[i].key);
        }
    }
    return 0;
}

/* The kernel gives pids of readers as they are in the PID namespace of whoever does this. */
static int create_in(int fs, int daemon, struct ct_err *err)
{
    ct_autofd own = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    if (own < 0 || setns(daemon, CLONE_NEWPID)) {
        return ct_err_sys(err, errno, "the daemon's PID namespace can't be entered");
    }
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) ? errno : 0);
    }
    int sys = pid < 0 ? errno : 0;
    if (setns(own, CLONE_NEWPID)) {
        sys = errno;
    }
    if (pid > 0 && waitpid(pid, &status, 0) == pid && status) {
        sys = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
    }
    return sys ? ct_err_sys(err, sys, "FUSE can't be mounted") : 0;
}

static int create(int fs, int daemon, struct ct_err *err)
{
    if (daemon >= 0) {
        return create_in(fs, daemon, err);
    }
    return fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)
               ? ct_err_sys(err, errno, "FUSE can't be mounted")
               : 0;
}

/* For both sides to see how far node ids have come; nobody can shrink it under the other. */
static int make_shared(struct km_mount *m, struct ct_err *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int fd = m->fds[KM_SHARED] = memfd_create("kvfs-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)page) ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
        return ct_err_sys(err, errno, "memfd");
    }
    void *p = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        return ct_err_sys(err, errno, "memfd");
    }
    m->page = p;
    return 0;
}

/* The file whose writing ends the connection, kept open: what it belongs to can't change. */
static int open_abort(dev_t dev)
{
    char path[32];
    ct_autofd fs = fsopen("fusectl", FSOPEN_CLOEXEC);
    if (fs < 0 || fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0)) {
        return -1;
    }
    ct_autofd dir = fsmount(fs, FSMOUNT_CLOEXEC, 0);
    (void)snprintf(path, sizeof(path), "%u/abort", minor(dev));
    return dir < 0 ? -1 : openat(dir, path, O_WRONLY | O_CLOEXEC);
}

static int attach(int fs, const struct km_config *c, struct km_mount *m, struct ct_err *err)
{
    struct kvfs_mountinfo info;
    ct_autofd mnt = fsmount(fs, FSMOUNT_CLOEXEC,
                            MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
                                MOUNT_ATTR_NOEXEC | (c->nosymfollow ? MOUNT_ATTR_NOSYMFOLLOW : 0));
    if (mnt < 0 ||
        move_mount(mnt, "", m->target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)) {
        return ct_err_sys(err, errno, "can't be mounted on");
    }
    int found = mount_of(mnt, &info, err);
    if (found != 1) {
        char self[SELF_FD_MAX];
        (void)umount2(self_fd(mnt, self), MNT_FORCE | MNT_DETACH);
        return found < 0 ? -1 : ct_err_set(err, CT_IO, "it is mounted, and not in the mount table");
    }
    m->id = info.id;
    m->dev = info.dev;
    m->abort_fd = open_abort(m->dev);
    if (m->abort_fd < 0) {
        ct_log(CT_LOG_INFO, "fusectl can't be used: %s", strerror(errno));
    }
    return 0;
}

static int mount_all(const struct km_config *config, int daemon, struct km_mount *m,
                     struct ct_err *err)
{
    ct_autofd fs = fsopen("fuse", FSOPEN_CLOEXEC);
    m->fds[KM_FUSE] = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fs < 0 || m->fds[KM_FUSE] < 0) {
        return ct_err_sys(err, errno, "/dev/fuse");
    }
    if (make_shared(m, err) || configure(fs, m->fds[KM_FUSE], config, err) ||
        create(fs, daemon, err)) {
        return -1;
    }
    m->fds[KM_CLONE] = kvfs_refuse_clone(m->fds[KM_FUSE], err);
    return m->fds[KM_CLONE] < 0 || attach(fs, config, m, err) ? -1 : 0;
}

int km_mount(const struct km_config *config, int target, int daemon, struct km_mount *out,
             struct ct_err *err)
{
    *out = (struct km_mount){.target = target, .fds = {-1, -1, -1}, .abort_fd = -1, .id = -1};
    if (mount_all(config, daemon, out, err)) {
        km_close(out);
        return ct_err_wrap(err, "%s", config->target);
    }
    return 0;
}

/* ---- and the end of it ---- */

/* The target's descriptor leads to what is mounted on it last. */
static int take_off(const struct km_mount *m, int flags, struct ct_err *err)
{
    struct kvfs_mountinfo info;
    char self[SELF_FD_MAX];
    bool covered = false;
    int found = m->id < 0 ? 0 : kvfs_mountinfo_of(m->id, &info, &covered, err);
    if (found <= 0 || info.dev != m->dev || !is_ours(&info)) {
        return found < 0 ? -1 : 0;
    }
    if (covered) {
        return ct_err_set(err, CT_BUSY, "something else is mounted over it");
    }
    if (umount2(self_fd(m->target, self), flags) == 0) {
        return 0;
    }
    return errno == EBUSY ? ct_err_set(err, CT_BUSY, "it is in use")
                          : ct_err_sys(err, errno, "can't unmount");
}

int km_unmount(const struct km_mount *m, struct ct_err *err)
{
    return take_off(m, 0, err);
}

void km_revoke(const struct km_mount *m)
{
    struct ct_err err = CT_ERR_INIT;
    bool ended = m->abort_fd >= 0 && write(m->abort_fd, "1", 1) == 1;
    if (!ended && take_off(m, MNT_FORCE | MNT_DETACH, &err)) {
        ct_log(CT_LOG_ERROR, "the connection may not have been ended: %s", err.msg);
        err = (struct ct_err)CT_ERR_INIT;
    }
    /* An invalidation waits for reads in flight, and now there are none. */
    kvfs_refuse_invalidate(m->fds[KM_CLONE], m->page);
    if (take_off(m, MNT_DETACH, &err)) {
        ct_log(CT_LOG_ERROR, "%s", err.msg);
    }
}

void km_set_readahead(const struct km_mount *m, uint32_t kib)
{
    char path[80];
    char text[16];
    int n = snprintf(text, sizeof(text), "%u\n", kib);
    (void)snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(m->dev),
                   minor(m->dev));
    ct_autofd fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, (size_t)n) != n) {
        ct_log(CT_LOG_INFO, "read-ahead stays at the kernel's default: %s", strerror(errno));
    }
}

void km_close(struct km_mount *m)
{
    for (size_t i = 0; i < KM_FDS; i++) {
        ct_closep(&m->fds[i]);
        m->fds[i] = -1;
    }
    ct_closep(&m->abort_fd);
    m->abort_fd = -1;
    if (m->page) {
        (void)munmap((void *)m->page, (size_t)sysconf(_SC_PAGESIZE));
        m->page = NULL;
    }
}
