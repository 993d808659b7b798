#include "kvfs/mount/carry.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "format/base/clock.h"
enum { MARGIN_MS = 10000, FOREVER = -1 };

struct wire {
    int sock, stop;
    int64_t until; /* FOREVER: without end */
};

static int wait_for(const struct wire *w, short events, struct ct_err *err)
{
    struct pollfd p[] = {{.fd = w->sock, .events = events}, {.fd = w->stop, .events = POLLIN}};
    for (;;) {
        int64_t left = w->until == FOREVER ? FOREVER : w->until - ct_now_ms();
        int n = left < 0 && w->until != FOREVER ? 0 : poll(p, 2, (int)left);
        if (n > 0) {
            return p[1].revents ? ct_err_set(err, CT_IO, "the mount ends") : 0;
        }
        if (n == 0) {
            return ct_err_set(err, CT_IO, "the courier does not answer");
        }
        if (errno != EINTR) {
            return ct_err_sys(err, errno, "the courier's socket");
        }
    }
}

static int put(const struct wire *w, const void *bytes, size_t n, struct ct_err *err)
{
    const uint8_t *from = bytes;
    while (n > 0) {
        struct iovec iov = {(void *)from, n};
        const struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t sent = sendmsg(w->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) {
            if (wait_for(w, POLLOUT, err)) {
                return -1;
            }
        } else if (sent < 0 && errno != EINTR) {
            return ct_err_sys(err, errno, "the courier's socket");
        } else if (sent > 0) {
            from += sent;
            n -= (size_t)sent;
        }
    }
    return 0;
}

/* 1, or 0 when the other side was gone before the first byte. */
static int get(const struct wire *w, void *bytes, size_t n, struct ct_err *err)
{
    uint8_t *to = bytes;
    for (size_t got = 0; got < n;) {
        if (wait_for(w, POLLIN, err)) {
            return -1;
        }
        ssize_t r = read(w->sock, to + got, n - got);
        if (r == 0 && got == 0) {
            return 0;
        }
        if (r == 0 || (r < 0 && errno != EINTR)) {
            return ct_err_set(err, CT_IO, "the courier is gone");
        }
        got += r > 0 ? (size_t)r : 0;
    }
    return 1;
}

/* `n` bytes, the size of which was announced by the other side. */
static int get_body(const struct wire *w, uint32_t n, struct ct_buf *out, struct ct_err *err)
{
    uint8_t *to = n <= KVFS_CARRY_MAX ? ct_buf_reserve(out, (size_t)n + 1) : NULL;
    if (!to) {
        return ct_err_set(err, CT_NOMEM, "no memory for %u bytes of the key exchange", n);
    }
    if (n && get(w, to, n, err) != 1) {
        return ct_err_set(err, CT_IO, "the courier is gone");
    }
    out->len += n;
    return 0;
}

int kvfs_carry_call(int sock, int stop, const struct kvfs_carry_request *request,
                    const uint8_t *body, unsigned *status, struct ct_buf *answer,
                    struct ct_err *err)
{
    struct kvfs_carry_answer head = {0};
    const struct wire w = {sock, stop, ct_now_ms() + (int64_t)request->seconds * 1000 + MARGIN_MS};
    if (put(&w, request, sizeof(*request), err) || put(&w, body, request->size, err)) {
        return -1;
    }
    int r = get(&w, &head, sizeof(head), err);
    if (r != 1) {
        return r ? -1 : ct_err_set(err, CT_IO, "the courier is gone");
    }
    *status = head.status;
    return get_body(&w, head.size, answer, err);
}

int kvfs_carry_next(int sock, struct kvfs_carry_request *request, struct ct_buf *body,
                    struct ct_err *err)
{
    const struct wire w = {sock, -1, FOREVER};
    int r = get(&w, request, sizeof(*request), err);
    if (r != 1) {
        return r;
    }
    if (!memchr(request->method, '\0', sizeof(request->method)) ||
        !memchr(request->path, '\0', sizeof(request->path)) || request->path[0] != '/') {
        return ct_err_set(err, CT_MALFORMED, "the worker sent what no worker sends");
    }
    return get_body(&w, request->size, body, err) ? -1 : 1;
}

int kvfs_carry_answer(int sock, unsigned status, const uint8_t *bytes, size_t n, struct ct_err *err)
{
    const struct kvfs_carry_answer head = {.status = status, .size = (uint32_t)n};
    const struct wire w = {sock, -1, FOREVER};
    if (n > KVFS_CARRY_MAX) {
        return ct_err_set(err, CT_MALFORMED, "an answer of %zu bytes", n);
    }
    return put(&w, &head, sizeof(head), err) || put(&w, bytes, n, err) ? -1 : 0;
}
