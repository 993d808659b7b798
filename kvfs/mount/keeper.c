#include "kvfs/mount/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/mount/logsink.h"
#include "kvfs/mount/refuse.h"
#include "kvfs/mount/tmpfs.h"
#include "kvfs/mount/turns.h"

static void unmount(void *ctx)
{
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_mounter_umount(ctx, true, &err)) {
        ct_log(CT_LOG_ERROR, "can't unmount: %s", err.msg);
    }
}

/* As the supervisor would be, who comes first where both look. */
enum { SEALING_MS = 8000, SEALING_LONGEST_MS = 610000, DYING_MS = 500, DEAD_MS = 4000 };

/* A pidfd is readable once its process has ended and closed all it had open. */
static bool wait_for_end(int pidfd, int ms)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    int n;
    while ((n = poll(&p, 1, ms)) < 0 && errno == EINTR) {
    }
    return n > 0;
}

/* For how long a worker has been sealing without taking anything back. */
struct stall {
    uint64_t progress;
    int ms;
};

static void look_at_seal(struct stall *s, const struct kvfs_worker *w)
{
    uint64_t before = s->progress;
    s->progress = __atomic_load_n(&w->shared->progress, __ATOMIC_RELAXED);
    bool sealing = __atomic_load_n(&w->shared->sealed, __ATOMIC_RELAXED) == 1;
    s->ms = sealing && s->progress == before ? s->ms + DYING_MS : 0;
    if (s->ms == SEALING_MS) {
        ct_log(CT_LOG_ERROR, "the worker does not seal, and nobody ends it: killing it");
        kvfs_worker_kill(w);
    }
}

/* A worker that others killed may be half dead; then the supervisor hears nothing of it for a
 * while. Nor does a supervisor that hangs in its source, or was stopped: what it does not do for
 * the worker is done here. */
static void wait_for_supervisor(const struct kvfs_mounted *m, const struct kvfs_worker *w,
                                int supervisor)
{
    struct stall stall = {0};
    bool dying = false;
    int dead = 0;
    while (dead < DEAD_MS && !wait_for_end(supervisor, DYING_MS)) {
        bool before = dying;
        bool ended = wait_for_end(w->pidfd, 0);
        look_at_seal(&stall, w);
        dying = !ended && kvfs_worker_is_half_dead(w->pid);
        if (dying) {
            kvfs_worker_hurry(w);
        }
        if (before && dying) {
            ct_log(CT_LOG_ERROR, "the worker was killed and can't end: ending the connection");
            kvfs_mounter_abort(m);
        }
        dead = ended || dying ? dead + DYING_MS : 0;
    }
    if (dead >= DEAD_MS) { /* the supervisor's descriptor would keep requests waiting */
        kvfs_mounter_abort(m);
    }
}

/* The worker seals itself when the supervisor is gone. */
static void wait_for_worker(const struct kvfs_mounted *m, const struct kvfs_worker *w)
{
    uint64_t progress = 0;
    int waited = 0;
    kvfs_worker_hurry(w);
    for (int all = 0; waited < SEALING_MS && all < SEALING_LONGEST_MS; all += DYING_MS) {
        uint64_t before = progress;
        progress = __atomic_load_n(&w->shared->progress, __ATOMIC_RELAXED);
        waited = progress == before ? waited + DYING_MS : 0;
        bool dying = kvfs_worker_is_half_dead(w->pid);
        if (wait_for_end(w->pidfd, DYING_MS)) {
            return;
        }
        if (dying) {
            break;
        }
    }
    kvfs_worker_kill(w);
    if (!wait_for_end(w->pidfd, DYING_MS)) {
        ct_log(CT_LOG_ERROR, "the worker can't end: ending the connection");
        kvfs_mounter_abort(m);
        (void)wait_for_end(w->pidfd, DYING_MS);
    }
}

static void keep(struct kvfs_mounted *m, const struct kvfs_worker *w, int supervisor, int clone_fd,
                 int residents)
{
    wait_for_supervisor(m, w, supervisor);
    wait_for_worker(m, w);
    if (!kvfs_mounter_is_mounted(m)) {
        kvfs_mounter_forget(m); /* as it should be */
        return;
    }
    ct_log(CT_LOG_ERROR, "supervisor and worker are dead, or as good as that: unmounting");
    if (residents >= 0) {
        kvfs_tmpfs_revoke(residents);
    }
    if (clone_fd >= 0) {
        kvfs_refuse(clone_fd, w->shared, unmount, m);
    } else {
        unmount(m);
    }
    if (!kvfs_mounter_is_mounted(m)) {
        kvfs_mounter_forget(m);
    }
}

pid_t kvfs_keeper_start(const struct kvfs_mounted *m, const struct kvfs_worker *w, int clone_fd,
                        int residents, bool foreground, const int *foreign, size_t count,
                        struct ct_err *err)
{
    ct_autofd self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (self < 0) {
        return ct_err_sys(err, errno, "pidfd_open");
    }
    pid_t pid = fork();
    if (pid != 0) {
        return pid < 0 ? ct_err_sys(err, errno, "fork") : pid;
    }
    struct kvfs_mounted mounted = *m;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    (void)setsid();
    (void)prctl(PR_SET_NAME, "kvfs-keeper", 0, 0, 0);
    for (int fd = 0; fd < (foreground ? STDERR_FILENO : STDERR_FILENO + 1); fd++) {
        (void)dup2(null, fd);
    }
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);
    for (size_t i = 0; i < count; i++) {
        if (foreign[i] >= 0) {
            close(foreign[i]);
        }
    }
    kvfs_logsink_start();
    kvfs_turns_first(0);
    keep(&mounted, w, self, clone_fd, residents);
    _exit(0);
}
