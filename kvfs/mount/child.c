#include "kvfs/mount/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void take_along(char **env, size_t *n, const char *name)
{
    const char *value = getenv(name);
    if (value && *n < KVFS_CHILD_VARIABLES && asprintf(&env[*n], "%s=%s", name, value) >= 0) {
        ++*n;
    }
}

static void make_environment(const struct kvfs_child *how, char **env)
{
    static const char *const sanitizers[] = {"ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS",
                                             "TSAN_OPTIONS"};
    size_t n = 0;
    for (size_t i = 0; how->variables[i]; i++) {
        take_along(env, &n, how->variables[i]);
    }
    for (size_t i = 0; KVFS_SANITIZED && i < sizeof(sanitizers) / sizeof(sanitizers[0]); i++) {
        take_along(env, &n, sanitizers[i]);
    }
    env[n] = NULL;
}

/* In the child. */
static int arrange(const struct kvfs_child *how)
{
    int end = how->first + (int)how->count;
    for (size_t i = 0; i < how->count; i++) {
        /* Out of the way of those still to come; and dup2() to itself would leave CLOEXEC. */
        how->fds[i] = fcntl(how->fds[i], F_DUPFD_CLOEXEC, end);
        if (how->fds[i] < 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < how->count; i++) {
        if (dup2(how->fds[i], how->first + (int)i) < 0) {
            return -1;
        }
    }
    return (int)syscall(SYS_close_range, end, ~0U, 0);
}

static void exec_self(const struct kvfs_child *how, char **env)
{
    sigset_t none;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int errors = how->errors < 0 ? null : how->errors;
    (void)setsid();
    (void)signal(SIGTERM, SIG_IGN);
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGHUP, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(errors, STDERR_FILENO) >= 0 && dup2(null, STDIN_FILENO) >= 0 &&
        dup2(null, STDOUT_FILENO) >= 0 && arrange(how) == 0) {
        (void)execve("/proc/self/exe", how->argv, env);
    }
    static const char what[] = "kvfs: error: can't execute /proc/self/exe\n";
    (void)!write(STDERR_FILENO, what, sizeof(what) - 1);
    _exit(1);
}

pid_t kvfs_child_start(const struct kvfs_child *how, struct ct_err *err)
{
    char *env[KVFS_CHILD_VARIABLES + 1];
    make_environment(how, env);
    pid_t pid = fork();
    if (pid == 0) {
        exec_self(how, env);
    }
    int sys = errno;
    for (size_t i = 0; env[i]; i++) {
        free(env[i]);
    }
    return pid < 0 ? ct_err_sys(err, sys, "kvfs %s can't be started", how->argv[1]) : pid;
}
