#include "format/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include <linux/magic.h>
#include <openssl/rand.h>

struct fd_source {
    struct ct_source base;
    int fd;
    bool in_memory; /* all of it, always */
};

void ct_version_of(const struct stat *st, struct ct_version *v)
{
    *v = (struct ct_version){
        .dev = st->st_dev,
        .ino = st->st_ino,
        .size = (uint64_t)st->st_size,
        .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec,
        .ctime_ns = (int64_t)st->st_ctim.tv_sec * 1000000000 + st->st_ctim.tv_nsec,
        .unlinked = st->st_nlink == 0,
    };
}

static ssize_t fd_pread(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                        struct ct_err *err)
{
    struct fd_source *f = (struct fd_source *)s;
    if (offset > INT64_MAX) {
        return ct_err_set(err, CT_MALFORMED, "offset %llu is beyond any file",
                          (unsigned long long)offset);
    }
    for (;;) {
        ssize_t got = pread(f->fd, buf, n, (off_t)offset);
        if (got >= 0) {
            return got;
        }
        if (errno != EINTR) {
            return ct_err_sys(err, errno, "read");
        }
    }
}

static int fd_version(struct ct_source *s, struct ct_version *v, struct ct_err *err)
{
    struct stat st;
    if (fstat(((struct fd_source *)s)->fd, &st)) {
        return ct_err_sys(err, errno, "stat");
    }
    ct_version_of(&st, v);
    return 0;
}

static void fd_close(struct ct_source *s)
{
    close(((struct fd_source *)s)->fd);
    free(s);
}

static void fd_advise(struct ct_source *s, uint64_t offset, uint64_t n, enum ct_advice advice)
{
    int how = advice == CT_WILL_NEED ? POSIX_FADV_WILLNEED : POSIX_FADV_DONTNEED;
    if (offset <= INT64_MAX && n <= INT64_MAX - offset) {
        (void)posix_fadvise(((struct fd_source *)s)->fd, (off_t)offset, (off_t)n, how);
    }
}

/* Three bytes have to do: mincore() and cachestat() tell more, but only to who may write. */
static bool fd_is_near(struct ct_source *s, uint64_t offset, uint64_t n)
{
    const struct fd_source *f = (struct fd_source *)s;
    uint8_t byte;
    const struct iovec to = {&byte, 1};
    if (f->in_memory) {
        return true;
    }
    for (unsigned i = 0; i < 3; i++) {
        if (preadv2(f->fd, &to, 1, (off_t)(offset + (n - 1) / 2 * i), RWF_NOWAIT) != 1) {
            return false;
        }
    }
    return true;
}

static const struct ct_source_ops fd_ops = {.pread = fd_pread,
                                            .version = fd_version,
                                            .close = fd_close,
                                            .advise = fd_advise,
                                            .is_near = fd_is_near};

struct ct_source *ct_source_fd(int fd, struct ct_err *err)
{
    struct fd_source *f = calloc(1, sizeof(*f));
    if (!f) {
        close(fd);
        ct_err_set(err, CT_NOMEM, "no memory for a source");
        return NULL;
    }
    struct statfs fs;
    f->base.ops = &fd_ops;
    f->fd = fd;
    f->in_memory = fstatfs(fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
    return &f->base;
}

void ct_source_close(struct ct_source *s)
{
    if (s) {
        s->ops->close(s);
    }
}

int ct_source_read(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                   const struct ct_version *at_version, struct ct_err *err)
{
    size_t done = 0;
    while (done < n) {
        ssize_t got = s->ops->pread(s, (uint8_t *)buf + done, n - done, offset + done, err);
        if (got < 0) {
            return -1;
        }
        if (got == 0) {
            if (at_version && ct_source_check(s, at_version, err)) {
                return -1;
            }
            return ct_err_set(err, CT_MALFORMED, "the file ends at byte %" PRIu64, offset + done);
        }
        done += (size_t)got;
    }
    return 0;
}

static bool same_data(const struct ct_version *a, const struct ct_version *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size && a->mtime_ns == b->mtime_ns;
}

void ct_source_done(struct ct_source *s, uint64_t offset, uint64_t n)
{
    if (s->ops->advise) {
        s->ops->advise(s, offset, n, CT_DONE_WITH);
    }
}

/* The kernel fetches no more at a time than its read-ahead for the file system, 128 KiB by default,
 * and leaves some of it out when the file system is busy: hence the touch afterwards. */
enum { FETCH_STEP = 128 << 10 };

void ct_source_fetch(struct ct_source *s, uint64_t offset, uint64_t n)
{
    if (!s->ops->advise) {
        return;
    }
    for (uint64_t at = 0; at < n; at += FETCH_STEP) {
        s->ops->advise(s, offset + at, n - at < FETCH_STEP ? n - at : FETCH_STEP, CT_WILL_NEED);
    }
    for (uint64_t at = 0; at < n; at += FETCH_STEP) {
        uint8_t byte;
        if (s->ops->pread(s, &byte, 1, offset + at, NULL) != 1) {
            return;
        }
    }
}

bool ct_source_is_near(struct ct_source *s, uint64_t offset, uint64_t n)
{
    return s->ops->is_near && s->ops->is_near(s, offset, n);
}

bool ct_version_same(const struct ct_version *a, const struct ct_version *b)
{
    return same_data(a, b) && (a->ctime_ns == b->ctime_ns || a->unlinked || b->unlinked);
}

static int check(struct ct_source *s, const struct ct_version *v,
                 bool (*same)(const struct ct_version *, const struct ct_version *),
                 struct ct_err *err)
{
    struct ct_version now;
    if (s->ops->version(s, &now, err)) {
        return -1;
    }
    if (!same(&now, v)) {
        return ct_err_set(err, CT_STALE, "the source changed since it was opened");
    }
    return 0;
}

int ct_source_check(struct ct_source *s, const struct ct_version *v, struct ct_err *err)
{
    return check(s, v, ct_version_same, err);
}

int ct_source_check_data(struct ct_source *s, const struct ct_version *v, struct ct_err *err)
{
    return check(s, v, same_data, err);
}

int ct_write_full(int fd, const void *buf, size_t n, struct ct_err *err)
{
    const uint8_t *p = buf;
    while (n) {
        ssize_t put = write(fd, p, n);
        if (put < 0) {
            if (errno == EINTR) {
                continue;
            }
            return ct_err_sys(err, errno, "write");
        }
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

int ct_pwrite_full(int fd, const void *buf, size_t n, uint64_t offset, struct ct_err *err)
{
    const uint8_t *p = buf;
    while (n) {
        ssize_t put = pwrite(fd, p, n, (off_t)offset);
        if (put < 0) {
            if (errno == EINTR) {
                continue;
            }
            return ct_err_sys(err, errno, "write");
        }
        p += put;
        offset += (uint64_t)put;
        n -= (size_t)put;
    }
    return 0;
}

int ct_read_fd(int fd, size_t max, struct ct_buf *out, struct ct_err *err)
{
    size_t start = out->len;
    for (;;) {
        uint8_t *to = ct_buf_reserve(out, 65536);
        if (!to) {
            return ct_buf_ok(out, err);
        }
        ssize_t got = read(fd, to, 65536);
        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            return ct_err_sys(err, errno, "read");
        }
        if (got == 0) {
            return 0;
        }
        out->len += (size_t)got;
        if (out->len - start > max) {
            return ct_err_set(err, CT_MALFORMED, "larger than %zu bytes", max);
        }
    }
}

int ct_read_file(int dirfd, const char *path, size_t max, struct ct_buf *out, struct ct_err *err)
{
    ct_autofd fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        return ct_err_sys(err, errno, "%s", path);
    }
    return ct_read_fd(fd, max, out, err) ? ct_err_wrap(err, "%s", path) : 0;
}

int ct_newfile_open(struct ct_newfile *f, int dirfd, const char *name, mode_t mode,
                    struct ct_err *err)
{
    f->fd = -1;
    f->dirfd = dirfd;
    uint64_t r = 0;
    if (strlen(name) >= sizeof(f->name) - 32) {
        return ct_err_set(err, CT_USAGE, "%.64s…: the name is too long", name);
    }
    if (RAND_bytes((unsigned char *)&r, sizeof(r)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    (void)snprintf(f->name, sizeof(f->name), "%s", name);
    (void)snprintf(f->tmp, sizeof(f->tmp), ".%s.%016llx.tmp", name, (unsigned long long)r);
    f->fd = openat(dirfd, f->tmp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (f->fd < 0) {
        return ct_err_sys(err, errno, "%s", name);
    }
    return 0;
}

/* Gives the file its name, but not over another one. NFS and others do not know that flag: there a
 * second name, which is never over another one, does the same. */
static int rename_new(const struct ct_newfile *f)
{
    if (renameat2(f->dirfd, f->tmp, f->dirfd, f->name, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL || linkat(f->dirfd, f->tmp, f->dirfd, f->name, 0)) {
        return -1;
    }
    return unlinkat(f->dirfd, f->tmp, 0);
}

int ct_newfile_commit(struct ct_newfile *f, bool replace, struct ct_err *err)
{
    int failed = fsync(f->fd);
    int why = errno;
    if (close(f->fd) && !failed) {
        failed = -1;
        why = errno;
    }
    f->fd = -1;
    if (!failed &&
        (failed = replace ? renameat(f->dirfd, f->tmp, f->dirfd, f->name) : rename_new(f))) {
        why = errno;
    }
    if (failed) {
        unlinkat(f->dirfd, f->tmp, 0);
        if (why == EEXIST) {
            return ct_err_set(err, CT_EXISTS, "%s exists already, and nothing is overwritten",
                              f->name);
        }
        return ct_err_sys(err, why, "%s", f->name);
    }
    if (fsync(f->dirfd) && errno != EINVAL) {
        return ct_err_sys(err, errno, "fsync of the directory of %s", f->name);
    }
    return 0;
}

void ct_newfile_abort(struct ct_newfile *f)
{
    if (f->fd >= 0) {
        close(f->fd);
        f->fd = -1;
        unlinkat(f->dirfd, f->tmp, 0);
    }
}
