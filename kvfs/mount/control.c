#include "kvfs/mount/control.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for more descriptors than are ever sent, so that surplus ones are seen and closed. */
enum { FDS_MAX = 4 };

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
};

int kvfs_control_send(int sock, const void *msg, size_t size, int fd, bool nowait,
                      struct ct_err *err)
{
    union control control;
    struct iovec iov = {.iov_base = (void *)msg, .iov_len = size};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    memset(&control, 0, sizeof(control));
    if (fd >= 0) {
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(fd));
    }
    ssize_t n;
    do {
        n = sendmsg(sock, &m, MSG_NOSIGNAL | (nowait ? MSG_DONTWAIT : 0));
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return errno == EAGAIN ? ct_err_set(err, CT_BUSY, "control socket: nobody reads it")
                               : ct_err_sys(err, errno, "control socket");
    }
    return 0; /* SOCK_SEQPACKET sends all or nothing */
}

/* Keeps the first descriptor of the message in *fd, closes all others; how many came. */
static size_t take_fds(struct msghdr *m, int *fd)
{
    size_t count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++, count++) {
            int one;
            memcpy(&one, CMSG_DATA(c) + i * sizeof(int), sizeof(one));
            if (count == 0) {
                *fd = one;
            } else {
                close(one);
            }
        }
    }
    return count;
}

int kvfs_control_recv_upto(int sock, void *msg, size_t most, size_t *got, int *fd,
                           struct ct_err *err)
{
    union control control;
    struct iovec iov = {.iov_base = msg, .iov_len = most};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t n;
    do {
        n = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (fd) {
        *fd = -1;
    }
    if (n < 0) {
        return errno == ECONNRESET ? 0 : ct_err_sys(err, errno, "control socket");
    }
    int first = -1;
    size_t count = take_fds(&m, &first);
    if (n == 0 && count == 0) {
        return 0;
    }
    if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || count > (fd ? 1 : 0)) {
        if (first >= 0) {
            close(first);
        }
        return ct_err_set(err, CT_MALFORMED, "control socket: a message of the wrong form");
    }
    if (fd) {
        *fd = first;
    }
    *got = (size_t)n;
    return 1;
}

int kvfs_control_recv(int sock, void *msg, size_t size, int *fd, struct ct_err *err)
{
    size_t got = 0;
    int r = kvfs_control_recv_upto(sock, msg, size, &got, fd, err);
    if (r != 1 || got == size) {
        return r;
    }
    if (fd && *fd >= 0) {
        close(*fd);
        *fd = -1;
    }
    return ct_err_set(err, CT_MALFORMED, "control socket: a message of the wrong form");
}
