#include "kvfs/mount/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "kvfs/mount/logsink.h"
#include "kvfs/mount/refuse.h"
#include "kvfs/mount/tmpfs.h"

static void unmount(void *ctx)
{
    struct ct_err err = CT_ERR_INIT;
    if (kvfs_mounter_umount(ctx, true, &err)) {
        ct_log(CT_LOG_ERROR, "can't unmount: %s", err.msg);
    }
}

/* A pidfd is readable once its process has ended and closed all it had open. */
static void wait_for_end(int pidfd)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    while (poll(&p, 1, -1) < 0 && errno == EINTR) {
    }
}

static void keep(struct kvfs_mounted *m, const struct kvfs_worker *w, int supervisor, int clone_fd,
                 int residents)
{
    wait_for_end(supervisor);
    wait_for_end(w->pidfd);
    if (!kvfs_mounter_is_mounted(m)) {
        kvfs_mounter_forget(m); /* as it should be */
        return;
    }
    ct_log(CT_LOG_ERROR, "supervisor and worker are dead: unmounting");
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

int kvfs_keeper_start(const struct kvfs_mounted *m, const struct kvfs_worker *w, int clone_fd,
                      int residents, bool foreground, const int *foreign, size_t count,
                      struct ct_err *err)
{
    ct_autofd self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (self < 0) {
        return ct_err_sys(err, errno, "pidfd_open");
    }
    pid_t pid = fork();
    if (pid != 0) {
        return pid < 0 ? ct_err_sys(err, errno, "fork") : 0;
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
    keep(&mounted, w, self, clone_fd, residents);
    _exit(0);
}
