/* What is found out by trying. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

/* ---- Writing ---- */

/* 0 if a file could be made there, or the errno. */
static int try_to_write(const char *dir)
{
    char name[80];
    ct_autofd at = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0) {
        return errno;
    }
    (void)snprintf(name, sizeof(name), ".kvfs-guard.%d.%llx", getpid(),
                   (unsigned long long)guard_now_ns());
    ct_autofd fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        return errno;
    }
    (void)unlinkat(at, name, 0);
    return 0;
}

static void probe(struct guard_run *r, size_t i)
{
    const char *dir = r->profile->declared[i].path;
    if (r->start && r->g->writable[i] &&
        r->profile->level[GUARD_WRITE_PROBE][GUARD_OWN] == GUARD_KEEP) {
        return; /* it was so at the start: no file comes and goes there every second */
    }
    int e = try_to_write(dir);
    if (e == EROFS || e == ENOENT || e == ENOTDIR) {
        return;
    }
    r->g->writable[i] = e == 0;
    if (e == 0) {
        guard_fail(r, GUARD_WRITE_PROBE, 0, dir, "a file can be made in %.150s", dir);
    } else {
        /* EACCES is what an ordinary user gets where root could write. */
        guard_fail(r, GUARD_WRITE_PROBE, 0, dir,
                   "a write to %.100s was not refused by a read-only mount (%s)", dir, strerror(e));
    }
}

static void check_writes(struct guard_run *r)
{
    for (size_t i = 0; i < r->profile->count; i++) {
        if (r->profile->declared[i].kind == GUARD_PROTECT) {
            guard_looked(r, GUARD_WRITE_PROBE);
            probe(r, i);
        }
    }
}

/* ---- A tracer outside the PID namespace ---- */

enum { TASKS_MAX = 256, FREE = 0, TRACED = 2, BLIND = 3 };

static size_t list_tasks(pid_t tasks[TASKS_MAX])
{
    size_t count = 0;
    DIR *dir = opendir("/proc/self/task");
    const struct dirent *e = NULL;
    while (dir && (e = readdir(dir)) && count < TASKS_MAX) {
        long tid = strtol(e->d_name, NULL, 10);
        if (tid > 0) {
            tasks[count++] = (pid_t)tid;
        }
    }
    if (dir) {
        (void)closedir(dir);
    }
    return count;
}

/* What a child runs may take no lock, which another thread may have held when it was made. So it is
 * not instrumented either, and calls the kernel itself: ThreadSanitizer's wrappers have locks. */
#define IN_CHILD __attribute__((no_sanitize("thread")))

/* Its end lets go of all that it seized. */
IN_CHILD static int seize(pid_t like_us, const pid_t *tasks, size_t count)
{
    if (syscall(SYS_ptrace, PTRACE_SEIZE, like_us, 0L, 0L)) {
        return BLIND;
    }
    for (size_t i = 0; i < count; i++) {
        if (syscall(SYS_ptrace, PTRACE_SEIZE, tasks[i], 0L, 0L) && errno == EPERM) {
            return TRACED;
        }
    }
    return FREE;
}

/* A child that sends no SIGCHLD, so that nobody else's waiting is disturbed, holds no descriptor of
 * ours and does not outlive us. It seizes like_us and the tasks, or, without like_us, waits. */
IN_CHILD static pid_t quiet_fork(pid_t like_us, const pid_t *tasks, size_t count)
{
    pid_t pid = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, 0);
    if (pid != 0) {
        return pid;
    }
    (void)syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0L, 0L, 0L);
    (void)syscall(SYS_close_range, 0, ~0U, 0);
    if (like_us) {
        (void)syscall(SYS_exit_group, seize(like_us, tasks, count));
    }
    for (;;) {
        (void)syscall(SYS_ppoll, NULL, 0L, NULL, NULL, 0L);
    }
}

static int reap(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, __WALL) < 0) {
        if (errno != EINTR) {
            return BLIND;
        }
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : BLIND;
}

/* A process can be traced by one other only. Whether a child is allowed to trace at all is found
 * out with another child, which has all that we have but the tracer. */
static void check_outside(struct guard_run *r)
{
    pid_t tasks[TASKS_MAX];
    size_t count = list_tasks(tasks);
    int result = BLIND;
    pid_t like_us = quiet_fork(0, NULL, 0);
    pid_t child = like_us < 0 ? -1 : quiet_fork(like_us, tasks, count);
    if (child > 0) {
        result = reap(child);
    }
    if (like_us > 0) {
        (void)kill(like_us, SIGKILL);
        (void)reap(like_us);
    }
    if (result == BLIND || r->now->status.tracer) {
        guard_unseen(r, GUARD_TRACER_OUTSIDE);
        return;
    }
    guard_looked(r, GUARD_TRACER_OUTSIDE);
    if (result == TRACED) {
        guard_fail(r, GUARD_TRACER_OUTSIDE, 0, "",
                   "this process is traced from outside the PID namespace");
    }
}

void guard_check_probes(struct guard_run *r)
{
    if (guard_wants(r, GUARD_WRITE_PROBE)) {
        check_writes(r);
    }
    if (guard_wants(r, GUARD_TRACER_OUTSIDE) && (r->flags & GUARD_FULL) &&
        guard_has(r, GUARD_HAS_STATUS)) {
        check_outside(r);
    }
}
