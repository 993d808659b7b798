#include "kvfs/mounter/peer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"

enum { BACKLOG = 16, DIR_MODE = 0755, NO_EXEC = 0111 };

static void make_dir_of(const char *path)
{
    char dir[KM_SOCKET_MAX];
    (void)snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    *slash = '\0';
    if (*dir && mkdir(dir, DIR_MODE) && errno != EEXIST) {
        ct_log(CT_LOG_WARN, "%s: %s", dir, strerror(errno)); /* bind() will say more */
    }
}

int km_peer_listen(const struct km_config *config, struct ct_err *err)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct stat st;
    const int on = 1;
    memcpy(to.sun_path, config->socket, strlen(config->socket) + 1);
    make_dir_of(config->socket);
    if (lstat(config->socket, &st) == 0 && S_ISSOCK(st.st_mode)) {
        (void)unlink(config->socket); /* an earlier mounter's: this one has the lock */
    }
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(NO_EXEC);
    int rc = fd < 0 ? -1 : bind(fd, (struct sockaddr *)&to, sizeof(to));
    (void)umask(mask);
    /* Connections inherit it: later would be too late for who sends at once. */
    if (rc || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) || listen(fd, BACKLOG)) {
        int sys = errno;
        ct_closep(&fd);
        return ct_err_sys(err, sys, "%s", config->socket);
    }
    return fd;
}

static bool is_allowed(const struct ucred *who, const struct km_config *config)
{
    if (who->uid == config->uid && who->gid == config->gid) {
        return true;
    }
    ct_log(CT_LOG_WARN, "refused: process %d of uid %u, gid %u", who->pid, who->uid, who->gid);
    return false;
}

int km_peer_accept(int listener, const struct km_config *config)
{
    struct ucred who;
    socklen_t size = sizeof(who);
    int conn = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (conn < 0) {
        return -1;
    }
    if (getsockopt(conn, SOL_SOCKET, SO_PEERCRED, &who, &size) || !is_allowed(&who, config)) {
        close(conn);
        return -1;
    }
    return conn;
}

int km_peer_pair(int *other, struct ct_err *err)
{
    const int on = 1;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        return ct_err_sys(err, errno, "socketpair");
    }
    *other = pair[1];
    (void)setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
    return pair[0];
}

/* One byte, and who sent it. Descriptors that come along are dropped. */
static ssize_t receive(int conn, char *byte, struct ucred *who)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(struct ucred))];
    } control;
    char got = 0;
    struct iovec iov = {&got, 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t n;
    do {
        n = recvmsg(conn, &m, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    *byte = got;
    *who = (struct ucred){.pid = 0, .uid = (uid_t)-1, .gid = (gid_t)-1};
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); n > 0 && c; c = CMSG_NXTHDR(&m, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
            memcpy(who, CMSG_DATA(c), sizeof(*who));
        }
    }
    return n;
}

int km_peer_asks(int conn, const struct km_config *config, int *daemon, struct ct_err *err)
{
    struct ucred who;
    char byte = 0;
    ssize_t got = receive(conn, &byte, &who);
    if (got <= 0) {
        return 0;
    }
    if (byte != KM_MOUNT || !is_allowed(&who, config)) {
        return ct_err_set(err, CT_DENIED, "that is not for you");
    }
    *daemon = who.pid > 0 ? (int)syscall(SYS_pidfd_open, who.pid, 0) : -1;
    return who.pid > 0 && *daemon < 0 ? ct_err_sys(err, errno, "process %d", who.pid) : 1;
}

char km_peer_next(int conn)
{
    struct ucred who;
    char byte = 0;
    return receive(conn, &byte, &who) == 1 ? byte : 0;
}

bool km_peer_answer(int conn, const struct ct_err *why, const int *fds, dev_t dev)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * KM_FDS)];
    } control;
    struct km_answer answer = {.version = KM_VERSION, .major = major(dev), .minor = minor(dev)};
    struct iovec iov = {&answer, sizeof(answer)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    if (why->code) {
        answer.error = why->sys ? why->sys : ct_err_errno(why);
        (void)snprintf(answer.text, sizeof(answer.text), "%.*s", (int)sizeof(answer.text) - 1,
                       why->msg);
    } else if (fds) {
        memset(&control, 0, sizeof(control));
        m.msg_control = control.bytes;
        m.msg_controllen = sizeof(control.bytes);
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int) * KM_FDS),
                              .cmsg_level = SOL_SOCKET,
                              .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), fds, sizeof(int) * KM_FDS);
    }
    return sendmsg(conn, &m, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof(answer);
}
