#include "kvfs/mount/mounter.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/bytes.h"
#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/mount/mountinfo.h"
#include "kvfs/mount/remote.h"

#define FUSERMOUNT "fusermount3"

enum { MISSING = 127, SAID_MAX = 512 };

/* ---- Running fusermount3 ---- */

/* In the child. comm < 0: none. */
static void exec_fusermount(char *const argv[], int comm, int said)
{
    sigset_t none;
    int null = open("/dev/null", O_RDWR);
    char number[16];
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)signal(SIGPIPE, SIG_DFL);
    if (dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
        dup2(said, STDERR_FILENO) < 0) {
        _exit(1);
    }
    if (comm >= 0) {
        (void)snprintf(number, sizeof(number), "%d", comm);
        (void)fcntl(comm, F_SETFD, 0);
        (void)setenv("_FUSE_COMMFD", number, 1);
    }
    (void)execvp(FUSERMOUNT, argv);
    (void)execv("/usr/bin/" FUSERMOUNT, argv); /* mount(8) and systemd may pass no PATH */
    _exit(errno == ENOENT ? MISSING : 1);
}

/* Starts it; *said is where its complaints come from. The pid, or -1. */
static pid_t start_fusermount(char *const argv[], int comm, int *said, struct ct_err *err)
{
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC)) {
        return ct_err_sys(err, errno, "pipe");
    }
    pid_t pid = fork();
    if (pid == 0) {
        exec_fusermount(argv, comm, pipes[1]);
    }
    int sys = errno;
    close(pipes[1]);
    if (pid < 0) {
        close(pipes[0]);
        return ct_err_sys(err, sys, "fork");
    }
    *said = pipes[0];
    return pid;
}

/* What it said before it ended, without its name and the newline; its exit code. */
static int finish_fusermount(pid_t pid, int said, char text[static SAID_MAX])
{
    size_t n = 0;
    ssize_t got;
    int status = 0;
    while (n + 1 < SAID_MAX && (got = read(said, text + n, SAID_MAX - 1 - n)) != 0) {
        if (got < 0 && errno != EINTR) {
            break;
        }
        n += got > 0 ? (size_t)got : 0;
    }
    text[n] = '\0';
    text[strcspn(text, "\n")] = '\0';
    static const char name[] = FUSERMOUNT ": ";
    if (strncmp(text, name, sizeof(name) - 1) == 0) {
        memmove(text, text + sizeof(name) - 1, strlen(text) - (sizeof(name) - 1) + 1);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int explain_missing(struct ct_err *err)
{
    return ct_err_set(err, CT_NOTFOUND, FUSERMOUNT " is missing: apt install fuse3");
}

/* ---- Mounting ---- */

static int explain_device(int sys, struct ct_err *err)
{
    if (sys == ENOENT || sys == ENODEV || sys == ENXIO) {
        return ct_err_set(err, CT_NOTFOUND,
                          "/dev/fuse is missing: modprobe fuse, or for a container --device "
                          "/dev/fuse");
    }
    return ct_err_sys(err, sys,
                      "/dev/fuse can't be opened by uid %u (chmod 666 /dev/fuse, or for a "
                      "container --device /dev/fuse)",
                      geteuid());
}

/* fusermount3's complaints, and what to type. */
static const struct {
    const char *part, *sentence;
} complaints[] = {
    {"user_allow_other", "allow-other takes the line user_allow_other in /etc/fuse.conf: "
                         "echo user_allow_other | sudo tee -a /etc/fuse.conf"},
    {"not permitted", "mounting takes root (or a setuid " FUSERMOUNT "), and in a container "
                      "--cap-add SYS_ADMIN --security-opt apparmor=unconfined"},
    {"write access to mountpoint", "chown it, or mount as root"},
    {"not owned by user", "mount on a directory of your own"},
    {"determine username", "add a line for this uid to /etc/passwd, or mount as root"},
};

static int explain_mount(const char *path, int code, const char *said, struct ct_err *err)
{
    if (code == MISSING) {
        return explain_missing(err);
    }
    ct_autofd device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0) {
        return explain_device(errno, err);
    }
    for (size_t i = 0; i < sizeof(complaints) / sizeof(complaints[0]); i++) {
        if (strstr(said, complaints[i].part)) {
            return ct_err_set(err, CT_IO, "%s: %s (" FUSERMOUNT ": %s)", path,
                              complaints[i].sentence, said);
        }
    }
    return ct_err_set(err, CT_IO, "%s: " FUSERMOUNT ": %s", path,
                      *said ? said : "it failed without a reason");
}

/* The descriptor that fusermount3 passes: a byte with SCM_RIGHTS. -1 if it ends without. */
static int receive_fd(int sock)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    struct iovec iov = {&byte, 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t n;
    do {
        n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    const struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
        return -1;
    }
    int fd;
    memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

static void put_escaped(struct ct_buf *out, const char *text)
{
    for (; *text; text++) {
        if (*text == ',' || *text == '\\') {
            ct_buf_putc(out, '\\');
        }
        ct_buf_putc(out, *text);
    }
}

static int make_options(const struct kvfs_config *config, bool noexec, struct ct_buf *out,
                        struct ct_err *err)
{
    ct_buf_puts(out, "ro,nosuid,nodev,default_permissions,auto_unmount,subtype=kvfs,fsname=");
    put_escaped(out, config->source);
    ct_buf_puts(out, config->allow_other ? ",allow_other" : "");
    ct_buf_puts(out, noexec ? ",noexec" : "");
    ct_buf_putc(out, '\0');
    return ct_buf_ok(out, err);
}

/* Of what is mounted on top; 0 where the kernel does not tell. Asks the kernel's cache, not the
 * mount. */
static uint64_t unique_id(const char *path)
{
    enum { MNT_ID_UNIQUE = 0x4000 };
    struct statx st;
    memset(&st, 0, sizeof(st));
    int rc = statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC,
                   MNT_ID_UNIQUE, &st);
    return rc == 0 && st.stx_mask & MNT_ID_UNIQUE ? st.stx_mnt_id : 0;
}

static void abort_path(const struct kvfs_mounted *m, char path[static 64])
{
    (void)snprintf(path, 64, "/sys/fs/fuse/connections/%u/abort", minor(m->dev));
}

static void find_device(struct kvfs_mounted *m)
{
    char path[64];
    struct kvfs_mountinfo info;
    m->known = kvfs_mountinfo_at(m->path, &info, NULL) > 0 && strcmp(info.fstype, KVFS_FSTYPE) == 0;
    m->dev = m->known ? info.dev : 0;
    m->id = m->known ? unique_id(m->path) : 0;
    abort_path(m, path);
    m->abort_fd = m->known ? open(path, O_WRONLY | O_CLOEXEC) : -1;
    if (!m->known) {
        ct_log(CT_LOG_INFO, "%s is not in the mount table of this process", m->path);
    }
}

int kvfs_mounter_mount(const struct kvfs_config *config, bool noexec, struct kvfs_mounted *out,
                       struct ct_err *err)
{
    ct_autobuf options = {0};
    int pair[2];
    int said = -1;
    if (*config->mounter) {
        out->path = config->mountpoint;
        return kvfs_remote_mount(config->mounter, out, err);
    }
    if (make_options(config, noexec, &options, err)) {
        return -1;
    }
    char *const argv[] = {(char[]){FUSERMOUNT},       (char[]){"-o"},
                          (char *)options.data,       (char[]){"--"},
                          (char *)config->mountpoint, NULL};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        return ct_err_sys(err, errno, "socketpair");
    }
    pid_t pid = start_fusermount(argv, pair[1], &said, err);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return -1;
    }
    int fd = receive_fd(pair[0]);
    if (fd < 0) {
        char text[SAID_MAX];
        int code = finish_fusermount(pid, said, text);
        close(said);
        close(pair[0]);
        return explain_mount(config->mountpoint, code, text, err);
    }
    close(said); /* it goes on waiting for our end, and has nothing more to say */
    *out = (struct kvfs_mounted){.path = config->mountpoint,
                                 .fuse_fd = fd,
                                 .clone_fd = -1,
                                 .shared_fd = -1,
                                 .abort_fd = -1,
                                 .comm_fd = pair[0],
                                 .fusermount = (int)syscall(SYS_pidfd_open, pid, 0)};
    find_device(out);
    return 0;
}

/* ---- Unmounting ---- */

static int umount_by_fusermount(const char *path, bool lazy, struct ct_err *err)
{
    char text[SAID_MAX];
    int said = -1;
    char *const argv[] = {(char[]){FUSERMOUNT}, lazy ? (char[]){"-uz"} : (char[]){"-u"},
                          (char[]){"--"}, (char *)path, NULL};
    pid_t pid = start_fusermount(argv, -1, &said, err);
    if (pid < 0) {
        return -1;
    }
    int code = finish_fusermount(pid, said, text);
    close(said);
    if (code == 0) {
        return 0;
    }
    if (code == MISSING) {
        return explain_missing(err);
    }
    return ct_err_set(err, strstr(text, "busy") ? CT_BUSY : CT_IO, "%s", text);
}

int kvfs_umount_path(const char *path, bool lazy, bool force, struct ct_err *err)
{
    if (geteuid() != 0) {
        return force ? ct_err_sys(err, EPERM, "only root may unmount by force")
                     : umount_by_fusermount(path, lazy, err);
    }
    int flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0) | (force ? MNT_FORCE : 0);
    if (umount2(path, flags) == 0) {
        return 0;
    }
    return errno == EBUSY ? ct_err_set(err, CT_BUSY, "%s is busy", path)
                          : ct_err_sys(err, errno, "%s", path);
}

/* A device number is given to the next mount as soon as ours is gone: then the id tells. */
static bool is_there(const struct kvfs_mounted *m, bool *on_top)
{
    return m->known && kvfs_mountinfo_has(m->path, m->dev, on_top) &&
           (!*on_top || !m->id || unique_id(m->path) == m->id);
}

bool kvfs_mounter_is_mounted(const struct kvfs_mounted *m)
{
    bool on_top = false;
    return is_there(m, &on_top);
}

bool kvfs_mounter_can_abort(const struct kvfs_mounted *m)
{
    char path[64];
    abort_path(m, path);
    return geteuid() == 0 || access(path, W_OK) == 0;
}

void kvfs_mounter_abort(const struct kvfs_mounted *m)
{
    char path[64];
    bool on_top = false;
    if (m->remote) {
        kvfs_remote_abort(m);
        return;
    }
    if ((m->abort_fd >= 0 && write(m->abort_fd, "1", 1) == 1) || !is_there(m, &on_top)) {
        return;
    }
    /* The owner of a mount may do it where fusectl is mounted; root may by umount(2). */
    abort_path(m, path);
    ct_autofd fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "1", 1) == 1) {
        return;
    }
    if (!on_top || umount2(m->path, UMOUNT_NOFOLLOW | MNT_FORCE)) {
        ct_log(CT_LOG_WARN, "the connection of %s may not have been ended", m->path);
    }
}

void kvfs_mounter_forget(const struct kvfs_mounted *m)
{
    if (m->fusermount >= 0) {
        (void)syscall(SYS_pidfd_send_signal, m->fusermount, SIGKILL, NULL, 0);
    }
}

int kvfs_mounter_umount(const struct kvfs_mounted *m, bool lazy, struct ct_err *err)
{
    bool on_top = false;
    if (m->remote) {
        return kvfs_remote_umount(m, lazy, err);
    }
    if (!m->known) {
        return umount_by_fusermount(m->path, lazy, err); /* a proxy knows where it is */
    }
    if (!is_there(m, &on_top)) {
        return 0;
    }
    return on_top ? kvfs_umount_path(m->path, lazy, false, err)
                  : ct_err_set(err, CT_BUSY, "something else is mounted over %s", m->path);
}

void kvfs_mounter_set_readahead(const struct kvfs_mounted *m, uint32_t kib)
{
    char path[80];
    char text[16];
    int n = snprintf(text, sizeof(text), "%u\n", kib);
    (void)snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major(m->dev),
                   minor(m->dev));
    if (m->remote) {
        kvfs_remote_ready(m);
    }
    if (!m->known) {
        return;
    }
    ct_autofd fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, (size_t)n) != n) {
        ct_log(CT_LOG_INFO, "read-ahead stays at the kernel's default: %s", strerror(errno));
    }
}
