#include "kvfs/mount/refuse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "format/base/clock.h"
#include "format/base/log.h"
#include "kvfs/mount/turns.h"

/* A request must fit as a whole, or the kernel fails it: what libfuse negotiates is at most 1 MiB.
 */
enum { REQUEST_MAX = (1 << 20) + 65536, POLL_MS = 20, INVALIDATE_SECONDS = 10 };

int kvfs_refuse_clone(int fuse_fd, struct ct_err *err)
{
    uint32_t from = (uint32_t)fuse_fd;
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return ct_err_sys(err, errno, "/dev/fuse");
    }
    if (ioctl(fd, FUSE_DEV_IOC_CLONE, &from)) {
        ct_err_sys(err, errno, "/dev/fuse: clone");
        close(fd);
        return -1;
    }
    return fd;
}

struct answerer {
    int fd;
    void *buffer;
    atomic_bool stop;
};

static bool wants_no_answer(uint32_t opcode)
{
    return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
}

static void refuse_one(int fd, const void *request, ssize_t n)
{
    struct fuse_in_header in;
    if (n < (ssize_t)sizeof(in)) {
        return;
    }
    memcpy(&in, request, sizeof(in));
    if (wants_no_answer(in.opcode)) {
        return;
    }
    const struct fuse_out_header out = {.len = sizeof(out), .error = -EIO, .unique = in.unique};
    /* ENOENT: the reader gave up meanwhile. */
    ssize_t ignored = write(fd, &out, sizeof(out));
    (void)ignored;
}

static void *answer(void *arg)
{
    struct answerer *a = arg;
    struct pollfd p = {.fd = a->fd, .events = POLLIN};
    while (!atomic_load(&a->stop)) {
        if (poll(&p, 1, POLL_MS) <= 0) {
            continue;
        }
        ssize_t n = read(a->fd, a->buffer, REQUEST_MAX);
        if (n > 0) {
            refuse_one(a->fd, a->buffer, n);
        } else if (errno == ENODEV || (p.revents & POLLERR)) {
            break; /* the last user of the mount is gone */
        }
    }
    return NULL;
}

void kvfs_refuse_invalidate(int clone_fd, const struct kvfs_shared *shared)
{
    uint64_t highest = __atomic_load_n(&shared->highest_node, __ATOMIC_ACQUIRE);
    int64_t until = ct_now_ms() + (int64_t)INVALIDATE_SECONDS * 1000;
    for (uint64_t id = 1; id <= highest; id++) {
        struct fuse_out_header head = {.error = FUSE_NOTIFY_INVAL_INODE};
        struct fuse_notify_inval_inode_out node = {.ino = id}; /* from 0 to the end */
        head.len = sizeof(head) + sizeof(node);
        const struct iovec iov[] = {{&head, sizeof(head)}, {&node, sizeof(node)}};
        ssize_t n = writev(clone_fd, iov, 2);
        if (n < 0 && errno == ENODEV) {
            return;
        }
        if (n > 0) { /* the kernel knew it: however long that takes, the end comes nearer */
            until = ct_now_ms() + (int64_t)INVALIDATE_SECONDS * 1000;
        }
        if (id % 1024 == 0 && ct_now_ms() > until) {
            ct_log(CT_LOG_WARN, "only the first %llu of %llu nodes could be invalidated in time",
                   (unsigned long long)id, (unsigned long long)highest);
            return;
        }
    }
}

void kvfs_refuse(int clone_fd, const struct kvfs_shared *shared, void (*then)(void *), void *ctx)
{
    struct answerer a = {.fd = clone_fd};
    pthread_t thread;
    a.buffer = mmap(NULL, REQUEST_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a.buffer == MAP_FAILED || pthread_create(&thread, NULL, answer, &a)) {
        ct_log(CT_LOG_ERROR, "no memory to refuse requests: cached pages stay readable");
        then(ctx);
        return;
    }
    kvfs_turns_first_thread(thread);
    kvfs_refuse_invalidate(clone_fd, shared);
    then(ctx);
    atomic_store(&a.stop, true);
    pthread_join(thread, NULL);
    munmap(a.buffer, REQUEST_MAX);
}
