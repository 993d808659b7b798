/* What the worker's system call filter ends it for: each in a child of its own. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvfs/mount/filter.h"

/* How a child ends that closes the sandbox and then does this. */
static int fate_of(void (*deed)(void))
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || kvfs_filter_load(NULL)) {
            _exit(3);
        }
        deed();
        _exit(0);
    }
    cr_assert(pid > 0 && waitpid(pid, &status, 0) == pid);
    return status;
}

static void nothing(void)
{
}

static void make_socket(void)
{
    (void)socket(AF_INET, SOCK_STREAM, 0);
}

static void make_pair(void)
{
    int pair[2];
    (void)socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
}

static void run_program(void)
{
    char *const none[] = {NULL};
    (void)execve("/bin/true", none, none);
}

static void make_memfd(void)
{
    (void)memfd_create("code", 0);
}

static void open_file(void)
{
    if (open("/etc/passwd", O_RDONLY) >= 0) { /* NOLINT(android-cloexec-open) */
        _exit(4);
    }
}

Test(filter, nothing_forbidden)
{
    int status = fate_of(nothing);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

Test(filter, ends_the_process)
{
    void (*const deeds[])(void) = {make_socket, make_pair, run_program, make_memfd};
    for (size_t i = 0; i < sizeof(deeds) / sizeof(deeds[0]); i++) {
        int status = fate_of(deeds[i]);
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "deed %zu: %d", i, status);
    }
}

Test(filter, a_path_leads_nowhere, .disabled = KVFS_SANITIZED)
{
    int status = fate_of(open_file);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%d", status);
}
