#include "kvfs/mount/courier.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/file.h"

/* What libcurl may be told by the environment; nothing else goes along. */
static char **courier_environment(void)
{
    static const char *const names[] = {"https_proxy",   "HTTPS_PROXY",  "all_proxy",
                                        "ALL_PROXY",     "no_proxy",     "NO_PROXY",
                                        "SSL_CERT_FILE", "SSL_CERT_DIR", "ASAN_OPTIONS",
                                        "UBSAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS"};
    enum { COUNT = sizeof(names) / sizeof(names[0]) };
    static char *env[COUNT + 1];
    size_t n = 0;
    for (size_t i = 0; i < COUNT; i++) {
        const char *value = getenv(names[i]);
        if (value && asprintf(&env[n], "%s=%s", names[i], value) >= 0) {
            n++;
        }
    }
    env[n] = NULL;
    return env;
}

/* In the child. */
static void exec_courier(const struct kvfs_couriers *c, int sock)
{
    static char ca[32];
    const int first = KVFS_COURIER_CA + 1;
    char uid[16];
    char gid[16];
    sigset_t none;
    (void)snprintf(uid, sizeof(uid), "%u", c->config->worker_uid);
    (void)snprintf(gid, sizeof(gid), "%u", c->config->worker_gid);
    (void)snprintf(ca, sizeof(ca), "/proc/self/fd/%d", KVFS_COURIER_CA);
    char *const argv[] = {(char[]){"kvfs"},          (char[]){"courier"},      uid, gid,
                          (char *)c->config->server, c->ca_fd < 0 ? NULL : ca, NULL};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    (void)setsid();
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    for (int fd = 0; fd <= STDERR_FILENO; fd++) {
        (void)dup2(null, fd);
    }
    /* dup2() of a descriptor to itself would leave it CLOEXEC. */
    sock = fcntl(sock, F_DUPFD_CLOEXEC, first);
    int certificates = fcntl(c->ca_fd < 0 ? null : c->ca_fd, F_DUPFD_CLOEXEC, first);
    if (dup2(sock, KVFS_COURIER_FD) >= 0 && dup2(certificates, KVFS_COURIER_CA) >= 0 &&
        syscall(SYS_close_range, first, ~0U, 0) == 0) {
        (void)execve("/proc/self/exe", argv, courier_environment());
    }
    _exit(1);
}

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
    pid_t pid = fork();
    if (pid == 0) {
        exec_courier(c, pair[1]);
    }
    int sys = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return ct_err_sys(err, sys, "a courier can't be started");
    }
    *place = pid;
    return pair[0];
}
