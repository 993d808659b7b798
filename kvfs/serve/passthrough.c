#include "kvfs/serve/passthrough.h"

#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Not in the kernel headers of Debian 12. In `flags2` of INIT stand the bits from 32 on, and the
 * depth of stacked file systems behind it. */
enum { PASSTHROUGH_BIT2 = 1 << 5, OPEN_PASSTHROUGH = 1 << 7 };

struct init_in {
    struct fuse_in_header header;
    struct fuse_init_in body;
};

static void look_at_init(struct kvfs_passthrough *p, const void *request, ssize_t n)
{
    struct init_in in;
    memset(&in, 0, sizeof(in));
    memcpy(&in, request, (size_t)n < sizeof(in) ? (size_t)n : sizeof(in));
    if (n < (ssize_t)sizeof(in.header) || in.header.opcode != FUSE_INIT) {
        return;
    }
    p->unique = in.header.unique;
    p->offered = n >= (ssize_t)sizeof(in) && in.body.flags & FUSE_INIT_EXT &&
                 in.body.flags2 & PASSTHROUGH_BIT2;
}

static ssize_t io_read(int fd, void *buf, size_t size, void *userdata)
{
    struct kvfs_passthrough *p = kvfs_passthrough_of(userdata);
    ssize_t n = read(fd, buf, size);
    if (n > 0 && !atomic_load_explicit(&p->settled, memory_order_relaxed)) {
        look_at_init(p, buf, n);
    }
    return n;
}

/* Whether it is the answer to INIT, good, and whole; then changed in `out`. */
static bool change_init(struct kvfs_passthrough *p, const struct iovec *iov, int count,
                        struct fuse_init_out *out)
{
    struct fuse_out_header head;
    if (count != 2 || iov[0].iov_len != sizeof(head) || iov[1].iov_len != sizeof(*out)) {
        return false;
    }
    memcpy(&head, iov[0].iov_base, sizeof(head));
    if (head.unique != p->unique || head.error) {
        return false;
    }
    atomic_store(&p->settled, true);
    if (!p->wanted || !p->offered) {
        return false;
    }
    memcpy(out, iov[1].iov_base, sizeof(*out));
    out->flags |= FUSE_INIT_EXT;
    out->flags2 |= PASSTHROUGH_BIT2;
    out->unused[0] = 1; /* max_stack_depth: what lies behind is no stacked file system */
    atomic_store(&p->on, true);
    return true;
}

static ssize_t io_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    struct kvfs_passthrough *p = kvfs_passthrough_of(userdata);
    struct fuse_init_out out;
    if (!atomic_load_explicit(&p->settled, memory_order_relaxed) &&
        change_init(p, iov, count, &out)) {
        const struct iovec changed[2] = {iov[0], {&out, sizeof(out)}};
        return writev(fd, changed, 2);
    }
    return writev(fd, iov, count);
}

int kvfs_passthrough_attach(struct fuse_session *session, int fd)
{
    static const struct fuse_custom_io io = {.read = io_read, .writev = io_writev};
    return fuse_session_custom_io(session, &io, fd) ? -1 : 0;
}

int kvfs_passthrough_reply(fuse_req_t req, uint64_t fh, int32_t backing)
{
    struct fuse_open_out out = {.fh = fh, .open_flags = OPEN_PASSTHROUGH};
    memcpy(&out.padding, &backing, sizeof(backing)); /* `backing_id` since 6.9 */
    return fuse_reply_buf(req, (const char *)&out, sizeof(out));
}
