/*
 * Files: whole reads, whole writes, atomic replacement, and the seam for source access.
 *
 * A source is where ciphertext comes from. Everything that reads an encrypted file does so through
 * `struct ct_source`, so that another one (an object store, a test with latency) can stand in for a
 * descriptor. Every length that a source reports is hostile until checked, and a source can change
 * between two calls: compare versions.
 */
#ifndef CT_BASE_FILE_H
#define CT_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "format/base/bytes.h"
#include "format/base/err.h"

/* What tells one version of a source from another. Times in nanoseconds since the epoch. */
struct ct_version {
    uint64_t dev, ino, size;
    int64_t mtime_ns, ctime_ns;
    bool unlinked; /* no name leads to it any more; taking the last one away set ctime */
};

struct ct_source;

enum ct_advice { CT_WILL_NEED, CT_DONE_WITH };

struct ct_source_ops {
    /* Up to n bytes at `offset`; 0 at the end. -1 with err. Thread-safe. */
    ssize_t (*pread)(struct ct_source *s, void *buf, size_t n, uint64_t offset, struct ct_err *err);
    /* The version now. Thread-safe. */
    int (*version)(struct ct_source *s, struct ct_version *v, struct ct_err *err);
    void (*close)(struct ct_source *s);
    /* May be NULL. Changes nothing but speed, and waits for nothing. Thread-safe. */
    void (*advise)(struct ct_source *s, uint64_t offset, uint64_t n, enum ct_advice advice);
    /* May be NULL: that is not known. As ct_source_is_near(). Thread-safe. */
    bool (*is_near)(struct ct_source *s, uint64_t offset, uint64_t n);
};

struct ct_source {
    const struct ct_source_ops *ops;
};

/* A source over a descriptor, which it owns from then on (also closed when this fails). */
struct ct_source *ct_source_fd(int fd, struct ct_err *err);
void ct_source_close(struct ct_source *s); /* NULL is allowed */

/* Exactly n bytes. A source that ends before is CT_STALE when it is shorter than it was
 * (`at_version`, may be NULL), CT_MALFORMED otherwise. Never SIGBUS: ciphertext is not mapped. */
int ct_source_read(struct ct_source *s, void *buf, size_t n, uint64_t offset,
                   const struct ct_version *at_version, struct ct_err *err);

/* Has the source bring these bytes near, where that means anything to it, and waits for it. */
void ct_source_fetch(struct ct_source *s, uint64_t offset, uint64_t n);
/* Whether these bytes, n > 0, are near already, as far as can be told at next to no cost: a guess.
 */
bool ct_source_is_near(struct ct_source *s, uint64_t offset, uint64_t n);
/* They will hardly be read again: what holds them is better used for other things. */
void ct_source_done(struct ct_source *s, uint64_t offset, uint64_t n);

bool ct_version_same(const struct ct_version *a, const struct ct_version *b);
/* CT_STALE unless the source's version is still `v`. */
int ct_source_check(struct ct_source *s, const struct ct_version *v, struct ct_err *err);
/* The same without ctime, which chmod and link change too: for bytes that a tag authenticates. */
int ct_source_check_data(struct ct_source *s, const struct ct_version *v, struct ct_err *err);
void ct_version_of(const struct stat *st, struct ct_version *v);

/* All n bytes or -1 (CT_IO; ENOSPC is kept in err->sys). */
int ct_write_full(int fd, const void *buf, size_t n, struct ct_err *err);
int ct_pwrite_full(int fd, const void *buf, size_t n, uint64_t offset, struct ct_err *err);

/* The whole file beneath `dirfd` into `out` (appended); CT_MALFORMED above `max` bytes. */
int ct_read_file(int dirfd, const char *path, size_t max, struct ct_buf *out, struct ct_err *err);
int ct_read_fd(int fd, size_t max, struct ct_buf *out, struct ct_err *err);

/*
 * A file that appears whole or not at all: written beside its final name, then fsync, rename
 * (never over an existing file unless `replace`), fsync of the directory. `dirfd` is borrowed and
 * must stay open until commit or abort.
 */
struct ct_newfile {
    int dirfd;
    int fd; /* write here */
    char tmp[300];
    char name[256];
};

int ct_newfile_open(struct ct_newfile *f, int dirfd, const char *name, mode_t mode,
                    struct ct_err *err);
int ct_newfile_commit(struct ct_newfile *f, bool replace, struct ct_err *err);
/* Removes the temporary file; harmless after commit or when never opened (fd -1). */
void ct_newfile_abort(struct ct_newfile *f);

static inline void ct_closep(const int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
}
#define ct_autofd __attribute__((cleanup(ct_closep))) int

#endif
