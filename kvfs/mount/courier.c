#include "kvfs/mount/courier.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvfs/mount/child.h"

/* A place for one more, once those that have ended are out of the way. */
static pid_t *find_place(struct kvfs_couriers *c)
{
    pid_t *place = NULL;
    for (size_t i = 0; i < KVFS_COURIERS_MAX; i++) {
        if (c->pids[i] && waitpid(c->pids[i], NULL, WNOHANG) != 0) {
            c->pids[i] = 0;
        }
        place = c->pids[i] || place ? place : &c->pids[i];
    }
    return place;
}

static pid_t start(const struct kvfs_couriers *c, int sock, struct ct_err *err)
{
    /* What libcurl may be told by the environment. */
    static const char *const proxies[] = {"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY",
                                          "no_proxy",    "NO_PROXY",    NULL};
    int fds[] = {sock, c->ca_fd};
    char uid[16];
    char gid[16];
    char ca[32];
    (void)snprintf(uid, sizeof(uid), "%u", c->config->worker_uid);
    (void)snprintf(gid, sizeof(gid), "%u", c->config->worker_gid);
    (void)snprintf(ca, sizeof(ca), "/proc/self/fd/%d", KVFS_COURIER_CA);
    char *const argv[] = {(char[]){"kvfs"},          (char[]){"courier"},      uid, gid,
                          (char *)c->config->server, c->ca_fd < 0 ? NULL : ca, NULL};
    const struct kvfs_child how = {.argv = argv,
                                   .variables = proxies,
                                   .fds = fds,
                                   .count = c->ca_fd < 0 ? 1 : 2,
                                   .first = KVFS_COURIER_FD,
                                   .errors = -1};
    return kvfs_child_start(&how, err);
}

int kvfs_courier_start(struct kvfs_couriers *c, struct ct_err *err)
{
    int pair[2];
    pid_t *place = find_place(c);
    if (!place) {
        return ct_err_set(err, CT_BUSY, "there are %d couriers already", KVFS_COURIERS_MAX);
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        return ct_err_sys(err, errno, "a socket for a courier");
    }
    pid_t pid = start(c, pair[1], err);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return -1;
    }
    *place = pid;
    return pair[0];
}
