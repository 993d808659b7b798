#include "kvfs/mount/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/base/file.h"
#include "kvfs/mount/child.h"
#include "kvfs/mount/turns.h"

enum { FDS_MAX = KVFS_FD_KEYS + KVFS_KEY_FILES_MAX };

static int say_hello(int control, const struct kvfs_start *how, struct ct_err *err)
{
    struct kvfs_hello *hello = calloc(1, sizeof(*hello));
    if (!hello) {
        return ct_err_set(err, CT_NOMEM, "no memory to start the worker");
    }
    hello->size = sizeof(*hello);
    hello->key_count = (uint32_t)how->keys->count;
    hello->config = *how->config;
    hello->measured_count = how->measured_count;
    memcpy(hello->measured, how->measured, how->measured_count * sizeof(*how->measured));
    for (size_t i = 0; i < how->keys->count; i++) {
        (void)snprintf(hello->key_names[i], sizeof(hello->key_names[i]), "%.63s",
                       how->keys->items[i].name);
    }
    int rc = kvfs_control_send(control, hello, sizeof(*hello), -1, true, err);
    free(hello);
    return rc;
}

/* `fd`: the mounter's, which looks at it too, or -1. */
static int make_shared(int fd, struct kvfs_shared **out, struct ct_err *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bool ours = fd < 0;
    fd = ours ? memfd_create("kvfs-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING) : fd;
    /* A worker that shrank it would kill us with SIGBUS. */
    if (fd < 0 || (ours && (ftruncate(fd, (off_t)page) ||
                            fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)))) {
        ct_err_sys(err, errno, "memfd");
    } else {
        void *p = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
        if (p != MAP_FAILED) {
            *out = p;
            return fd;
        }
        ct_err_sys(err, errno, "memfd");
    }
    if (fd >= 0) {
        close(fd);
    }
    return -1;
}

static pid_t start(const struct kvfs_start *how, int control, int shared, int said,
                   struct ct_err *err)
{
    static const char *const nothing[] = {NULL};
    int fds[FDS_MAX] = {how->mounted->comm_fd, control, how->mounted->fuse_fd, shared,
                        how->guard_link >= 0 ? how->guard_link : shared};
    char *const argv[] = {(char[]){"kvfs"}, (char[]){"worker"}, (char *)how->config->mountpoint,
                          NULL};
    struct kvfs_child child = {.argv = argv,
                               .variables = nothing,
                               .fds = fds,
                               .count = KVFS_FD_KEYS - KVFS_FD_COMM,
                               .first = KVFS_FD_COMM,
                               .errors = said};
    for (size_t i = 0; i < how->keys->count; i++) {
        fds[child.count++] = how->keys->items[i].fd;
    }
    return kvfs_child_start(&child, err);
}

int kvfs_worker_start(const struct kvfs_start *how, struct kvfs_worker *out, struct ct_err *err)
{
    int pair[2];
    int pipes[2];
    kvfs_turns_short();
    ct_autofd shared = make_shared(how->mounted->shared_fd, &out->shared, err);
    if (shared < 0) {
        return -1;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) || pipe2(pipes, O_CLOEXEC)) {
        return ct_err_sys(err, errno, "can't start the worker"); /* and end: nothing to close */
    }
    out->control = pair[0];
    out->said = pipes[0];
    out->pid = start(how, pair[1], shared, pipes[1], err);
    close(pair[1]);
    close(pipes[1]);
    if (out->pid < 0) {
        return -1;
    }
    out->pidfd = (int)syscall(SYS_pidfd_open, out->pid, 0);
    if (out->pidfd < 0) {
        return ct_err_sys(err, errno, "pidfd_open");
    }
    (void)fcntl(out->said, F_SETFL, O_NONBLOCK);
    return say_hello(out->control, how, err);
}

void kvfs_worker_hurry(const struct kvfs_worker *w)
{
    char path[32];
    struct pollfd p = {.fd = w->pidfd, .events = POLLIN};
    (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)w->pid);
    DIR *dir = opendir(path);
    const struct dirent *e = NULL;
    /* While it lives, these are its threads, and not those of another process with its number. */
    while (dir && poll(&p, 1, 0) == 0 && (e = readdir(dir))) {
        if (e->d_name[0] != '.') {
            kvfs_turns_first((pid_t)strtol(e->d_name, NULL, 10));
        }
    }
    if (dir) {
        (void)closedir(dir);
    }
}

void kvfs_worker_kill(const struct kvfs_worker *w)
{
    (void)syscall(SYS_pidfd_send_signal, w->pidfd, SIGKILL, NULL, 0);
    kvfs_worker_hurry(w);
}

bool kvfs_worker_is_half_dead(pid_t pid)
{
    char path[32];
    char text[256];
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    ct_autofd fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    text[n > 0 ? n : 0] = '\0';
    /* pid (name) state … */
    const char *state = strrchr(text, ')');
    return state && strncmp(state, ") Z", 3) == 0;
}

void kvfs_worker_describe_end(int status, char out[static 64])
{
    if (WIFSIGNALED(status)) {
        (void)snprintf(out, 64, "killed by signal %d (%s)%s", WTERMSIG(status),
                       strsignal(WTERMSIG(status)), /* NOLINT(concurrency-mt-unsafe) */
                       WTERMSIG(status) == SIGSYS ? ": a system call not on its list" : "");
    } else {
        (void)snprintf(out, 64, "exit %d", WEXITSTATUS(status));
    }
}
