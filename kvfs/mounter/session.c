#include "kvfs/mounter/session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/mounter/mount.h"
#include "kvfs/mounter/peer.h"

/* ---- the keeper ---- */

/* In the child. What it need not have is closed: the daemon has to see our end. */
static void keep(const struct km_mounter *m, const struct km_mount *mount, int mounter, int conn)
{
    const int foreign[] = {conn, m->listener, m->signal_fd};
    struct pollfd p = {.fd = mounter, .events = POLLIN};
    (void)prctl(PR_SET_NAME, "kvfs-mntkeeper", 0, 0, 0);
    (void)setsid();
    for (size_t i = 0; i < sizeof(foreign) / sizeof(foreign[0]); i++) {
        ct_closep(&foreign[i]);
    }
    while (poll(&p, 1, -1) < 0 && errno == EINTR) {
    }
    ct_log(CT_LOG_ERROR, "the mounter is dead: unmounting");
    km_revoke(mount);
    _exit(0);
}

/* Its pid. */
static pid_t start_keeper(const struct km_mounter *m, const struct km_mount *mount, int conn,
                          struct ct_err *err)
{
    ct_autofd self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    pid_t pid = self < 0 ? -1 : fork();
    if (pid == 0) {
        keep(m, mount, self, conn);
    }
    return pid > 0 ? pid : ct_err_sys(err, errno, "a keeper can't be started");
}

static void end_keeper(pid_t pid)
{
    (void)kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

/* ---- the session ---- */

/* One mount, one daemon. */
static void refuse_another(const struct km_mounter *m)
{
    struct ct_err busy = CT_ERR_INIT;
    ct_autofd conn = km_peer_accept(m->listener, m->config);
    if (conn >= 0) {
        ct_err_set(&busy, CT_BUSY, "another daemon serves this mount");
        (void)km_peer_answer(conn, &busy, NULL, 0);
    }
}

/* False at the end. */
static bool serve_one(const struct km_mounter *m, const struct km_mount *mount, int conn,
                      int64_t *heard)
{
    struct ct_err why = CT_ERR_INIT;
    switch (km_peer_next(conn)) {
    case KM_READY:
        km_set_readahead(mount, m->config->readahead_kb);
        return true;
    case KM_ALIVE:
        *heard = ct_now_ms();
        return true;
    case KM_UNMOUNT:
        (void)km_unmount(mount, &why);
        return km_peer_answer(conn, &why, NULL, 0);
    default:
        return false;
    }
}

/* How long the daemon may go on saying nothing, in ms; -1: for ever. */
static int patience(const struct km_mounter *m, int64_t heard)
{
    if (!heard || !m->config->silence_s) {
        return -1;
    }
    int64_t left = heard + (int64_t)m->config->silence_s * 1000 - ct_now_ms();
    return left < 0 ? 0 : (int)left;
}

static void serve(struct km_mounter *m, const struct km_mount *mount, int conn)
{
    int64_t heard = 0; /* of its guard; 0: never */
    for (;;) {
        struct pollfd p[] = {{.fd = conn, .events = POLLIN},
                             {.fd = m->listener, .events = POLLIN},
                             {.fd = m->signal_fd, .events = POLLIN}};
        if (poll(p, sizeof(p) / sizeof(p[0]), patience(m, heard)) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return;
        }
        if (p[2].revents) {
            m->stop = true;
            return;
        }
        if (p[0].revents && !serve_one(m, mount, conn, &heard)) {
            return;
        }
        if (p[1].revents) {
            refuse_another(m);
        }
        struct pollfd unheard = {.fd = conn, .events = POLLIN};
        if (patience(m, heard) == 0 && poll(&unheard, 1, 0) == 0) {
            ct_log(CT_LOG_ERROR, "the daemon's guard is silent: nothing stays readable");
            return;
        }
    }
}

/* 0 with the mount made, watched over and given away. */
static int begin(const struct km_mounter *m, int conn, int daemon, struct km_mount *mount,
                 pid_t *keeper, struct ct_err *err)
{
    if (km_target_check(m->target, m->config->target, err) ||
        km_mount(m->config, m->target, daemon, mount, err)) {
        return -1;
    }
    const int fds[KM_FDS] = {mount->fds[KM_FUSE], mount->fds[KM_CLONE], mount->fds[KM_SHARED]};
    mount->fds[KM_FUSE] = -1;
    const struct ct_err none = CT_ERR_INIT;
    bool given = km_peer_answer(conn, &none, fds, mount->dev);
    /* A copy here would keep requests alive that a dead worker had taken. */
    close(fds[KM_FUSE]);
    *keeper = start_keeper(m, mount, conn, err);
    if (!given || *keeper < 0) {
        km_revoke(mount);
        km_close(mount);
        return given ? -1 : ct_err_set(err, CT_IO, "the daemon takes nothing");
    }
    return 0;
}

/* As km_peer_asks(). */
static int wait_for_daemon(struct km_mounter *m, int conn, int ms, int *daemon, struct ct_err *err)
{
    struct pollfd p[] = {{.fd = conn, .events = POLLIN}, {.fd = m->signal_fd, .events = POLLIN}};
    int n;
    while ((n = poll(p, 2, ms)) < 0 && errno == EINTR) {
    }
    m->stop = n > 0 && p[1].revents;
    if (m->stop) {
        return 0;
    }
    return n > 0 ? km_peer_asks(conn, m->config, daemon, err)
                 : ct_err_set(err, CT_IO, "a daemon connected and asked for nothing");
}

void km_session(struct km_mounter *m, int conn, int ms)
{
    struct ct_err err = CT_ERR_INIT;
    struct km_mount mount;
    pid_t keeper = -1;
    int daemon = -1;
    int asked = wait_for_daemon(m, conn, ms, &daemon, &err);
    if (asked == 1 && begin(m, conn, daemon, &mount, &keeper, &err) == 0) {
        ct_log(CT_LOG_INFO, "mounted %s", m->config->target);
        serve(m, &mount, conn);
        km_revoke(&mount);
        end_keeper(keeper);
        km_close(&mount);
        ct_log(CT_LOG_INFO, "unmounted %s", m->config->target);
    } else if (asked != 0) {
        ct_log(CT_LOG_ERROR, "%s", err.msg);
        (void)km_peer_answer(conn, &err, NULL, 0);
    }
    ct_closep(&daemon);
    close(conn);
}
