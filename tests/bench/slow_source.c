/*
 * A file system that is far away: the files of one directory, read-only, every read answered after
 * a latency, all of them together at a bandwidth; or hanging: no read is answered between SIGUSR1
 * and SIGUSR2. For benchmarks, for which the directory should be a tmpfs, and tests.
 *
 *   slow_source DIR MNT LATENCY_MS MIB_PER_SECOND [direct]     runs until it is unmounted; with
 * `direct`, no page cache is between it and who reads
 */
#define FUSE_USE_VERSION 314
#include <fuse.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int dir = -1;
static int64_t latency_ns, ns_per_mib;
static pthread_mutex_t line = PTHREAD_MUTEX_INITIALIZER;
static int64_t free_at; /* when the wire has carried what was asked for so far */
static atomic_bool hangs;
static bool direct;

static void hang(int signal)
{
    atomic_store(&hangs, signal == SIGUSR1);
}

static const char *relative(const char *path)
{
    return path[1] ? path + 1 : ".";
}

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Until the bytes would have arrived. */
static void travel(size_t bytes)
{
    pthread_mutex_lock(&line);
    int64_t now = now_ns();
    free_at = (free_at > now ? free_at : now) + (int64_t)bytes * ns_per_mib / (1 << 20);
    int64_t arrival = free_at + latency_ns;
    pthread_mutex_unlock(&line);
    const struct timespec until = {arrival / 1000000000, arrival % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

static int op_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
    (void)fi;
    return fstatat(dir, relative(path), st, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int op_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off,
                      struct fuse_file_info *fi, enum fuse_readdir_flags flags)
{
    (void)off;
    (void)fi;
    (void)flags;
    int fd = openat(dir, relative(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        return -errno;
    }
    for (const struct dirent *e; (e = readdir(d));) {
        fill(buf, e->d_name, NULL, 0, 0);
    }
    closedir(d);
    return 0;
}

static int op_open(const char *path, struct fuse_file_info *fi)
{
    int fd = openat(dir, relative(path), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    fi->fh = (uint64_t)fd;
    return 0;
}

static int op_read(const char *path, char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)path;
    ssize_t n = pread((int)fi->fh, buf, size, off);
    if (n < 0) {
        return -errno;
    }
    travel((size_t)n);
    while (atomic_load(&hangs)) {
        (void)nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return (int)n;
}

static int op_release(const char *path, struct fuse_file_info *fi)
{
    (void)path;
    close((int)fi->fh);
    return 0;
}

static void *op_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
    /* Of what hangs there shall be less than threads: other requests are answered. */
    conn->max_background = conn->congestion_threshold = direct ? 16 : 64;
    conn->want &= direct ? ~(unsigned)FUSE_CAP_ASYNC_DIO : ~0U;
    config->use_ino = 1;
    config->direct_io = config->kernel_cache = direct; /* or an open waits for what hangs */
    return NULL;
}

int main(int argc, char **argv)
{
    static const struct fuse_operations ops = {.getattr = op_getattr,
                                               .readdir = op_readdir,
                                               .open = op_open,
                                               .read = op_read,
                                               .release = op_release,
                                               .init = op_init};
    direct = argc == 6 && strcmp(argv[5], "direct") == 0;
    if (argc != 5 && !direct) {
        (void)fputs("usage: slow_source DIR MNT LATENCY_MS MIB_PER_SECOND [direct]\n", stderr);
        return 2;
    }
    dir = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    double mib = strtod(argv[4], NULL);
    latency_ns = (int64_t)(strtod(argv[3], NULL) * 1e6);
    ns_per_mib = mib > 0 ? (int64_t)(1e9 / mib) : 0;
    if (dir < 0) {
        perror(argv[1]);
        return 1;
    }
    (void)signal(SIGUSR1, hang);
    (void)signal(SIGUSR2, hang);
    char *args[] = {argv[0], argv[2], (char[]){"-o"}, (char[]){"ro,allow_other,max_threads=64"},
                    NULL};
    return fuse_main(4, args, &ops, NULL);
}
