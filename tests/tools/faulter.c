/*
 * Many readers of one file, for seals under load: faulter FILE N. A third of them touches a
 * mapping, a third reads through the page cache, which it empties and has filled again in the
 * background, a third opens, and reads past it. Each goes on whatever it gets.
 *
 * A line on stdin is answered with {"now", "ok", "last", "refused"}: how many reads succeeded and
 * failed, and when the last one that succeeded began, in ns of CLOCK_MONOTONIC: when it was told to
 * have ended is also a matter of whose turn it is on a busy processor. With the end of stdin the
 * readers are killed, and the last line says how many of them did not end in five seconds.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { READERS_MAX = 256, BLOCK = 64 << 10, AHEAD = 1 << 20 };

struct slot {
    atomic_llong ok, last, refused;
};

static struct slot *slots; /* shared */
static uint64_t dice;

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static off_t anywhere(size_t size)
{
    dice = dice * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (off_t)((dice >> 24) % (size - BLOCK) / BLOCK * BLOCK);
}

/* A fault would be SIGBUS; of a write(2) it is EFAULT. */
static bool touch(const char *at, const int pipes[2])
{
    char byte;
    return write(pipes[1], at, 1) == 1 && read(pipes[0], &byte, 1) == 1;
}

static bool read_cached(int fd, size_t size, char *block)
{
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    for (int i = 0; i < 8; i++) {
        (void)posix_fadvise(fd, anywhere(size), AHEAD, POSIX_FADV_WILLNEED);
    }
    return pread(fd, block, BLOCK, anywhere(size)) > 0;
}

static bool read_past(const char *path, size_t size, char *block)
{
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    bool good = fd >= 0 && pread(fd, block, BLOCK, anywhere(size)) > 0;
    if (fd >= 0) {
        close(fd);
    }
    return good;
}

static int go_on(const char *path, int number)
{
    struct stat st;
    int pipes[2];
    struct slot *mine = &slots[number];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *block = aligned_alloc(BLOCK, BLOCK);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (fd < 0 || fstat(fd, &st) || st.st_size <= BLOCK || pipe2(pipes, O_CLOEXEC) || !block) {
        return 1;
    }
    size_t size = (size_t)st.st_size;
    const char *mapped = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    dice = (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15);
    for (;;) {
        int64_t begun = now_ns();
        bool good = number % 3 == 0   ? touch(mapped + anywhere(size), pipes)
                    : number % 3 == 1 ? read_cached(fd, size, block)
                                      : read_past(path, size, block);
        if (good) {
            atomic_store(&mine->last, begun);
        }
        atomic_fetch_add(good ? &mine->ok : &mine->refused, 1);
        if (!good) {
            (void)usleep(1000);
        }
    }
}

static void say(int count)
{
    int64_t ok = 0;
    int64_t refused = 0;
    int64_t last = 0;
    for (int i = 0; i < count; i++) {
        ok += atomic_load(&slots[i].ok);
        refused += atomic_load(&slots[i].refused);
        last = atomic_load(&slots[i].last) > last ? atomic_load(&slots[i].last) : last;
    }
    printf("{\"now\": %" PRId64 ", \"ok\": %" PRId64 ", \"refused\": %" PRId64
           ", \"last\": %" PRId64 "}\n",
           now_ns(), ok, refused, last);
    (void)fflush(stdout);
}

static int end(const pid_t *pids, int count)
{
    int left = 0;
    int64_t until = now_ns() + INT64_C(5000000000);
    for (int i = 0; i < count; i++) {
        (void)kill(pids[i], SIGKILL);
    }
    for (int i = 0; i < count; i++) {
        while (waitpid(pids[i], NULL, WNOHANG) == 0 && now_ns() < until) {
            (void)usleep(1000);
        }
        left += waitpid(pids[i], NULL, WNOHANG) == 0;
    }
    printf("%d\n", left);
    return left != 0;
}

int main(int argc, char **argv)
{
    char line[64];
    pid_t pids[READERS_MAX];
    int count = argc == 3 ? (int)strtol(argv[2], NULL, 10) : 0;
    slots = mmap(NULL, READERS_MAX * sizeof(*slots), PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (count < 1 || count > READERS_MAX || slots == MAP_FAILED) {
        return 2;
    }
    for (int i = 0; i < count; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            _exit(go_on(argv[1], i));
        }
    }
    while (fgets(line, sizeof(line), stdin)) {
        say(count);
    }
    return end(pids, count);
}
