/*
 * A reader that goes on reading while its neighbour, another process of the same container, does
 * what ought to be found: how long does it get anything? Five ways, all the time in turn:
 *
 *     open     opens the file
 *     new      reads what the kernel has not cached (O_DIRECT, through an old descriptor)
 *     old      reads what it has, through an old descriptor
 *     mapped   touches a mapping
 *     locked   touches one whose pages are locked into memory
 *
 * Lines on stdin: `state` answers {"now", WAY: {"ok", "last", "refused", "error"}}: how often it
 * succeeded, when for the last time, when it was first refused, and how; times in ns of
 * CLOCK_MONOTONIC. Everything else is handed on to the neighbour, and its answer back.
 */
#include "guard_tool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 64 << 10, LOCKED = 2 << 20, PAUSE_MS = 1 };

struct way {
    int64_t ok, last, refused;
    int error;
};

struct reader {
    const char *path;
    size_t size;
    int fd, direct, neighbour;
    int pipe[2];
    char *mapped, *locked;
    char *block;
    uint64_t dice;
};

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static size_t anywhere(struct reader *r, size_t below)
{
    r->dice = r->dice * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (size_t)(r->dice >> 24) % below / BLOCK * BLOCK;
}

static int error_of(ssize_t n)
{
    return n > 0 ? 0 : n == 0 ? ENODATA : errno;
}

/* A fault would end us; of a write(2) it is EFAULT. */
static int touch(struct reader *r, const char *at)
{
    char byte;
    int error = error_of(write(r->pipe[1], at, 1));
    return error ? error : error_of(read(r->pipe[0], &byte, 1));
}

static int try_open(struct reader *r)
{
    int fd = open(r->path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? errno : close(fd);
}

static int try_new(struct reader *r)
{
    return error_of(pread(r->direct, r->block, BLOCK, (off_t)anywhere(r, r->size - BLOCK)));
}

static int try_old(struct reader *r)
{
    return error_of(pread(r->fd, r->block, BLOCK, (off_t)anywhere(r, r->size - BLOCK)));
}

static int try_mapped(struct reader *r)
{
    return touch(r, r->mapped + anywhere(r, r->size - BLOCK));
}

static int try_locked(struct reader *r)
{
    return touch(r, r->locked + anywhere(r, LOCKED));
}

enum { WAYS = 5, ASKING = 2 /* the first of them wait for kvfs */ };
static struct way *ways; /* shared */
static const char *const names[WAYS] = {"open", "new", "old", "mapped", "locked"};
static int (*const tries[])(struct reader *r) = {try_open, try_new, try_old, try_mapped,
                                                 try_locked};
static void try_some(struct reader *r, size_t i, size_t end)
{
    for (; i < end; i++) {
        int error = tries[i](r);
        int64_t now = now_ns();
        if (error == 0) {
            ways[i].ok++;
            ways[i].last = now;
        } else {
            ways[i].error = error;
            ways[i].refused = ways[i].refused ? ways[i].refused : now;
        }
    }
}

static void say_state(void)
{
    printf("{\"now\": %" PRId64, now_ns());
    for (size_t i = 0; i < WAYS; i++) {
        const struct way *w = &ways[i];
        printf(", \"%s\": {\"ok\": %" PRId64 ", \"last\": %" PRId64 ", \"refused\": %" PRId64
               ", \"error\": %d}",
               names[i], w->ok, w->last, w->refused, w->error);
    }
    printf("}\n");
    (void)fflush(stdout);
}

/* The neighbour's answer; a deed that ends it, or its first thread, has none. */
static void hand_on(struct reader *r, const char *line)
{
    char answer[256];
    struct pollfd p = {.fd = r->neighbour, .events = POLLIN};
    ssize_t n = write(r->neighbour, line, strlen(line));
    n = n > 0 && poll(&p, 1, 200) == 1 ? read(r->neighbour, answer, sizeof(answer) - 1) : 0;
    answer[n > 0 ? n : 0] = '\0';
    printf("%s\n", n > 1 ? strtok(answer, "\n") : "no answer");
    (void)fflush(stdout);
}

static int prepare(struct reader *r)
{
    struct stat st;
    r->fd = open(r->path, O_RDONLY | O_CLOEXEC);
    r->direct = open(r->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (r->fd < 0 || r->direct < 0 || fstat(r->fd, &st) || pipe2(r->pipe, O_CLOEXEC) ||
        posix_memalign((void **)&r->block, BLOCK, BLOCK)) {
        return -1;
    }
    r->size = (size_t)st.st_size;
    r->mapped = mmap(NULL, r->size, PROT_READ, MAP_SHARED, r->fd, 0);
    r->locked = mmap(NULL, LOCKED, PROT_READ, MAP_SHARED, r->fd, 0);
    if (r->size <= LOCKED || r->mapped == MAP_FAILED || r->locked == MAP_FAILED) {
        return -1;
    }
    for (size_t at = 0; at < r->size; at += 4096) {
        if (touch(r, r->mapped + at)) {
            return -1;
        }
    }
    return mlock(r->locked, LOCKED);
}

/* Lines may come together: no buffer of stdio's, which poll(2) knows nothing of. */
static bool take_line(char *line, size_t cap)
{
    size_t n = 0;
    while (n + 1 < cap && read(STDIN_FILENO, line + n, 1) == 1) {
        if (line[n++] == '\n') {
            line[n] = '\0';
            return true;
        }
    }
    return false;
}

static int go_on_reading(struct reader *r)
{
    char line[256];
    ways =
        mmap(NULL, WAYS * sizeof(*ways), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (ways == MAP_FAILED || prepare(r)) {
        printf("%s: %s\n", r->path, strerror(errno));
        return fflush(stdout), 1;
    }
    pid_t child = fork();
    if (child == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
            try_some(r, 0, ASKING);
            (void)usleep(PAUSE_MS * 1000);
        }
    }
    printf("reading\n");
    (void)fflush(stdout);
    for (;;) {
        struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
        try_some(r, ASKING, WAYS);
        if (poll(&p, 1, PAUSE_MS) < 1) {
            continue;
        }
        if (!take_line(line, sizeof(line))) {
            return 0;
        }
        if (strcmp(line, "state\n") == 0) {
            say_state();
        } else {
            hand_on(r, line);
        }
    }
}

int guard_tool_read(const char *path)
{
    struct reader r = {.path = path};
    char pid[32];
    int pair[2];
    int fd = open(path, O_RDONLY | O_CLOEXEC); /* both are readers */
    if (fd < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        printf("%s: %s\n", path, strerror(errno));
        return 1;
    }
    pid_t child = fork();
    if (child < 0) {
        return 1;
    }
    if (child == 0) {
        r.neighbour = pair[0];
        while (read(pair[0], pid, sizeof(pid)) < 1) { /* idle says its number */
        }
        _exit(go_on_reading(&r));
    }
    return dup2(pair[1], STDIN_FILENO) < 0 || dup2(pair[1], STDOUT_FILENO) < 0 ? 1
                                                                               : guard_tool_idle();
}
