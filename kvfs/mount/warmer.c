#include "kvfs/mount/warmer.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/kvfs.h"

void kvfs_warmer_start(struct kvfs_warmer *w, const char *mountpoint,
                       struct kvfs_guarding *guarding)
{
    int go[2] = {-1, -1}; /* not before the guard knows it */
    char *const argv[] = {(char[]){"kvfs"},    (char[]){"warm"},   (char[]){"--wait"},
                          (char[]){"--quiet"}, (char *)mountpoint, NULL};
    w->pid = pipe2(go, O_CLOEXEC) ? -1 : fork();
    if (w->pid == 0) {
        sigset_t none;
        char byte;
        close(go[1]);
        ssize_t ignored = read(go[0], &byte, 1);
        (void)ignored;
        (void)prctl(PR_SET_NAME, KVFS_WARM_NAME, 0, 0, 0);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        (void)syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0);
        (void)execv("/proc/self/exe", argv);
        _exit(1);
    }
    if (w->pid > 0) {
        kvfs_guarding_add(guarding, w->pid, true);
    }
    close(go[0]);
    close(go[1]);
    w->fd = w->pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, w->pid, 0);
    if (w->fd < 0) {
        ct_log(CT_LOG_WARN, "kvfs warm can't be started: %s", strerror(errno));
    }
}

void kvfs_warmer_signal(const struct kvfs_warmer *w, int signal)
{
    if (w->fd >= 0) {
        (void)syscall(SYS_pidfd_send_signal, w->fd, signal, NULL, 0);
    }
}

void kvfs_warmer_reap(struct kvfs_warmer *w)
{
    int status = 0;
    (void)waitpid(w->pid, &status, 0);
    close(w->fd);
    w->fd = -1;
    ct_log(CT_LOG_INFO, "warming ended%s", status ? " before all was read" : "");
}
