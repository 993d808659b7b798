#include "kvfs/mount/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/args.h"
#include "kvfs/mounter/protocol.h"

enum { ANSWER_MS = 15000 };

static int open_socket(const char *path, struct ct_err *err)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(to.sun_path)) {
        return ct_err_set(err, CT_USAGE, "the path is too long");
    }
    memcpy(to.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to))) {
        int sys = errno;
        ct_closep(&fd);
        return ct_err_sys(err, sys, "is kvfs-mounter running?");
    }
    return fd;
}

static int take_inherited(const char *number, struct ct_err *err)
{
    uint64_t n = 0;
    int type = 0;
    socklen_t size = sizeof(type);
    if (kvfs_parse_u64(number, INT32_MAX, &n) ||
        getsockopt((int)n, SOL_SOCKET, SO_TYPE, &type, &size) || type != SOCK_SEQPACKET) {
        return ct_err_set(err, CT_USAGE, "it is no descriptor that kvfs-mounter gave");
    }
    (void)fcntl((int)n, F_SETFD, FD_CLOEXEC);
    return (int)n;
}

static int say(int sock, char byte, struct ct_err *err)
{
    /* One that stands still has a full queue in the end: nobody here waits for it. */
    return send(sock, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1
               ? 0
               : ct_err_sys(err, errno, "the mounter is gone");
}

static bool has_something(int sock)
{
    struct pollfd p = {.fd = sock, .events = POLLIN};
    int n;
    while ((n = poll(&p, 1, ANSWER_MS)) < 0 && errno == EINTR) {
    }
    return n > 0;
}

static void close_all(const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ct_closep(&fds[i]);
    }
}

/* The answer; with descriptors in fds, -1 where there are none. */
static int hear(int sock, int fds[static KM_FDS], dev_t *dev, struct ct_err *err)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * KM_FDS)];
    } control;
    struct km_answer answer = {0};
    struct iovec iov = {&answer, sizeof(answer)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    memset(fds, 0xff, sizeof(int) * KM_FDS);
    ssize_t n = has_something(sock) ? recvmsg(sock, &m, MSG_CMSG_CLOEXEC) : -1;
    if (n < 0 && errno == ECONNRESET) {
        n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC); /* it closed, and said something before */
    }
    const struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        size_t bytes = c->cmsg_len - CMSG_LEN(0); /* alignment leaves room for one more */
        memcpy(fds, CMSG_DATA(c), bytes < sizeof(int) * KM_FDS ? bytes : sizeof(int) * KM_FDS);
    }
    if (n <= 0) {
        return ct_err_set(err, CT_DENIED,
                          "the mounter closed the connection: uid and gid in its configuration are "
                          "not those of this process");
    }
    if (n != sizeof(answer) || answer.version != KM_VERSION) {
        return ct_err_set(err, CT_UNSUPPORTED, "the mounter is of another version");
    }
    answer.text[KM_TEXT_MAX - 1] = '\0';
    *dev = makedev(answer.major, answer.minor);
    return answer.error
               ? ct_err_set(err, answer.error == EBUSY ? CT_BUSY : CT_IO, "%s", answer.text)
               : 0;
}

int kvfs_remote_mount(const char *where, struct kvfs_mounted *out, struct ct_err *err)
{
    dev_t dev = 0;
    int fds[KM_FDS];
    bool inherited = strncmp(where, "fd:", 3) == 0;
    int sock = inherited ? take_inherited(where + 3, err) : open_socket(where, err);
    if (sock < 0) {
        return ct_err_wrap(err, "mounter %s", where);
    }
    struct ct_err gone = CT_ERR_INIT;
    (void)say(sock, KM_MOUNT, &gone); /* if it has closed, it may have said why */
    if (hear(sock, fds, &dev, err)) {
        close(sock);
        return ct_err_wrap(err, "mounter %s", where);
    }
    if (fds[KM_FDS - 1] < 0) {
        close_all(fds, KM_FDS);
        close(sock);
        return ct_err_set(err, CT_MALFORMED, "mounter %s: it gave no descriptors", where);
    }
    *out = (struct kvfs_mounted){.path = out->path,
                                 .remote = true,
                                 .dev = dev,
                                 .comm_fd = sock,
                                 .fuse_fd = fds[KM_FUSE],
                                 .clone_fd = fds[KM_CLONE],
                                 .shared_fd = fds[KM_SHARED],
                                 .abort_fd = -1,
                                 .fusermount = -1};
    return 0;
}

int kvfs_remote_umount(const struct kvfs_mounted *m, bool lazy, struct ct_err *err)
{
    dev_t dev = 0;
    int fds[KM_FDS];
    if (!lazy) {
        int rc = say(m->comm_fd, KM_UNMOUNT, err) || hear(m->comm_fd, fds, &dev, err) ? -1 : 0;
        return rc;
    }
    kvfs_remote_abort(m);
    char byte;
    return has_something(m->comm_fd) && recv(m->comm_fd, &byte, 1, 0) == 0
               ? 0
               : ct_err_set(err, CT_IO, "the mounter does not answer");
}

void kvfs_remote_abort(const struct kvfs_mounted *m)
{
    (void)shutdown(m->comm_fd, SHUT_WR);
}

void kvfs_remote_ready(const struct kvfs_mounted *m)
{
    struct ct_err err = CT_ERR_INIT;
    if (say(m->comm_fd, KM_READY, &err)) {
        ct_log(CT_LOG_ERROR, "%s", err.msg);
    }
}

void kvfs_remote_alive(const struct kvfs_mounted *m)
{
    (void)say(m->comm_fd, KM_ALIVE, NULL); /* the supervisor sees by itself if it is gone */
}
