#include "guard/tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/file.h"

enum { BLOCK = 1 << 14 };

struct tree {
    struct ct_sha256 *sha;
    bool contents;
    size_t items;
};

int guard_file_digest(int fd, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    ct_autosha256 *sha = ct_sha256_new(err);
    uint8_t block[BLOCK];
    if (!sha) {
        return ct_err_set(err, CT_NOMEM, "no memory for a digest");
    }
    for (off_t at = 0;;) {
        ssize_t n = pread(fd, block, BLOCK, at);
        if (n < 0 && errno != EINTR) {
            return ct_err_sys(err, errno, "read");
        }
        if (n == 0) {
            return ct_sha256_take(sha, out, err);
        }
        if (n > 0 && ct_sha256_update(sha, block, (size_t)n, err)) {
            return -1;
        }
        at += n > 0 ? n : 0;
    }
}

static void put_marks(struct ct_buf *line, const struct stat *st)
{
    struct guard_file_id id;
    guard_file_id_of(st, &id);
    ct_buf_printf(line, "%llu %llu %llu %lld %lld", (unsigned long long)id.dev,
                  (unsigned long long)id.ino, (unsigned long long)id.size, (long long)id.mtime_ns,
                  (long long)id.ctime_ns);
}

static int put_content(struct ct_buf *line, int dirfd, const char *name, struct ct_err *err)
{
    uint8_t digest[CT_SHA256_LEN];
    char hex[2 * CT_SHA256_LEN + 1];
    struct stat st;
    ct_autofd fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) {
        return ct_err_sys(err, errno, "%s", name);
    }
    if (!S_ISREG(st.st_mode) || guard_file_digest(fd, digest, err)) {
        return ct_err_wrap(err, "%s", name);
    }
    ct_hex(hex, digest, sizeof(digest));
    ct_buf_printf(line, "%llu", (unsigned long long)st.st_size);
    ct_buf_putc(line, '\0');
    ct_buf_puts(line, hex);
    return 0;
}

static int put_link(struct ct_buf *line, int dirfd, const char *name, struct ct_err *err)
{
    char target[PATH_MAX];
    ssize_t n = readlinkat(dirfd, name, target, sizeof(target));
    if (n < 0) {
        return ct_err_sys(err, errno, "%s", name);
    }
    ct_buf_put(line, target, (size_t)n);
    return 0;
}

static int add_dir(struct tree *t, int fd, const char *path, int depth, struct ct_err *err);

static int add_item(struct tree *t, int dirfd, const char *name, const char *path, int depth,
                    struct ct_err *err)
{
    struct stat st;
    ct_autobuf line = {0};
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW)) {
        return ct_err_sys(err, errno, "%s", path);
    }
    char kind = S_ISREG(st.st_mode)   ? 'f'
                : S_ISLNK(st.st_mode) ? 'l'
                : S_ISDIR(st.st_mode) ? 'd'
                                      : '?';
    if (kind == '?') {
        return ct_err_set(err, CT_UNSUPPORTED, "%s is neither file, link nor directory", path);
    }
    if (++t->items > GUARD_TREE_ITEMS_MAX) {
        return ct_err_set(err, CT_UNSUPPORTED, "more than %d files", GUARD_TREE_ITEMS_MAX);
    }
    ct_buf_put(&line, path, strlen(path) + 1);
    ct_buf_putc(&line, kind);
    if (kind != 'd' || !t->contents) {
        ct_buf_putc(&line, '\0');
    }
    if (!t->contents) {
        put_marks(&line, &st);
    } else if ((kind == 'f' && put_content(&line, dirfd, name, err)) ||
               (kind == 'l' && put_link(&line, dirfd, name, err))) {
        return ct_err_wrap(err, "%s", path);
    }
    ct_buf_putc(&line, '\n');
    if (ct_buf_ok(&line, err) || ct_sha256_update(t->sha, line.data, line.len, err)) {
        return -1;
    }
    if (kind != 'd') {
        return 0;
    }
    ct_autofd sub = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return sub < 0 ? ct_err_sys(err, errno, "%s", path) : add_dir(t, sub, path, depth + 1, err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_names(struct tree *t, int fd, char **names, size_t count, const char *path,
                     int depth, struct ct_err *err)
{
    int rc = 0;
    if (count > 1) {
        qsort(names, count, sizeof(*names), by_name);
    }
    for (size_t i = 0; i < count && rc == 0; i++) {
        ct_autofree char *full = NULL;
        if (asprintf(&full, "%s%s%s", path, *path ? "/" : "", names[i]) < 0) {
            full = NULL;
            return ct_err_set(err, CT_NOMEM, "no memory for a path");
        }
        rc = add_item(t, fd, names[i], full, depth, err);
    }
    return rc;
}

static int read_names(DIR *dir, char ***names, size_t *count, struct ct_err *err)
{
    size_t cap = 0;
    const struct dirent *e = NULL;
    while ((errno = 0, e = readdir(dir))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) {
            continue;
        }
        if (*count == cap) {
            cap = cap ? cap * 2 : 32;
            char **more = realloc(*names, cap * sizeof(**names));
            if (!more || *count > GUARD_TREE_ITEMS_MAX) {
                *names = more ? more : *names;
                return ct_err_set(err, CT_NOMEM, "too many names");
            }
            *names = more;
        }
        if (!((*names)[*count] = strdup(e->d_name))) {
            return ct_err_set(err, CT_NOMEM, "no memory for a name");
        }
        (*count)++;
    }
    return errno ? ct_err_sys(err, errno, "readdir") : 0;
}

static int add_dir(struct tree *t, int fd, const char *path, int depth, struct ct_err *err)
{
    char **names = NULL;
    size_t count = 0;
    int copy = dup(fd);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir || depth > GUARD_TREE_DEPTH_MAX) {
        if (dir) {
            (void)closedir(dir);
        } else if (copy >= 0) {
            close(copy);
        }
        return ct_err_set(err, CT_IO, "%s can't be looked through", *path ? path : "it");
    }
    rewinddir(dir); /* the copy shares its place with fd */
    int rc = read_names(dir, &names, &count, err);
    if (rc == 0) {
        rc = add_names(t, fd, names, count, path, depth, err);
    }
    for (size_t i = 0; i < count; i++) {
        free(names[i]);
    }
    free(names);
    (void)closedir(dir);
    return rc;
}

static int digest(int dirfd, bool contents, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    ct_autosha256 *sha = ct_sha256_new(err);
    ct_autofd fd = sha ? openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    struct tree t = {.sha = sha, .contents = contents};
    if (!sha || fd < 0) {
        return sha ? ct_err_sys(err, errno, "open") : -1;
    }
    return add_dir(&t, fd, "", 0, err) ? -1 : ct_sha256_take(sha, out, err);
}

int guard_tree_digest(int dirfd, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    return digest(dirfd, true, out, err);
}

int guard_tree_marks(int dirfd, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    return digest(dirfd, false, out, err);
}

int guard_tree_measure(int dirfd, uint8_t digest[static CT_SHA256_LEN],
                       uint8_t marks[static CT_SHA256_LEN], struct ct_err *err)
{
    uint8_t again[CT_SHA256_LEN];
    if (guard_tree_marks(dirfd, marks, err) || guard_tree_digest(dirfd, digest, err) ||
        guard_tree_marks(dirfd, again, err)) {
        return -1;
    }
    return memcmp(marks, again, sizeof(again)) == 0
               ? 0
               : ct_err_set(err, CT_STALE, "it changed while it was read");
}
