#include "kvfs/walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "format/base/file.h"

static int open2(int dirfd, const char *path, int flags, uint64_t resolve)
{
    /* openat2 refuses flags that O_PATH would ignore. */
    const int more = O_CLOEXEC | (flags & O_PATH ? 0 : O_NOCTTY);
    const struct open_how how = {
        .flags = (uint64_t)(unsigned)(flags | more),
        .resolve = resolve | RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
    };
    for (;;) {
        long fd = syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
        if (fd >= 0 || (errno != EINTR && errno != EAGAIN)) {
            return (int)fd;
        }
    }
}

int kvfs_open_beneath(int dirfd, const char *path, int flags, struct ct_err *err)
{
    int fd = open2(dirfd, *path ? path : ".", flags, RESOLVE_NO_SYMLINKS);
    if (fd < 0) {
        return ct_err_sys(err, errno, "%s", path);
    }
    return fd;
}

int kvfs_open_regular(int dirfd, const char *path, struct stat *st, struct ct_err *err)
{
    int fd = kvfs_open_beneath(dirfd, path, O_RDONLY | O_NONBLOCK, err);
    if (fd < 0) {
        return -1;
    }
    if (fstat(fd, st)) {
        ct_err_sys(err, errno, "%s", path);
    } else if (!S_ISREG(st->st_mode)) {
        ct_err_set(err, CT_USAGE, "%s: no regular file", path);
    } else {
        return fd;
    }
    close(fd);
    return -1;
}

int kvfs_resolve_beneath(int dirfd, const char *path, struct stat *st, struct ct_err *err)
{
    ct_autofd fd = open2(dirfd, path, O_PATH, 0);
    if (fd < 0) {
        int why = errno;
        if (why == EXDEV) {
            return ct_err_set(err, CT_LEAVES, "%s: the link leaves the directory", path);
        }
        if (why == ENOENT || why == ENOTDIR) {
            return ct_err_set(err, CT_NOTFOUND, "%s: the link leads nowhere", path);
        }
        return ct_err_sys(err, why, "%s", path);
    }
    return fstat(fd, st) ? ct_err_sys(err, errno, "%s", path) : 0;
}

struct walker {
    struct kvfs_walk *out;
    kvfs_walk_skip_fn skip;
    void *ctx;
    size_t cap;
    struct ct_err *err;
};

static int read_target(int dirfd, const char *name, struct kvfs_item *item, struct ct_err *err)
{
    char target[PATH_MAX];
    ssize_t n = readlinkat(dirfd, name, target, sizeof(target));
    if (n < 0 || n == sizeof(target)) {
        return ct_err_sys(err, n < 0 ? errno : ENAMETOOLONG, "%s", item->path);
    }
    item->target = strndup(target, (size_t)n);
    return item->target ? 0 : ct_err_set(err, CT_NOMEM, "no memory for a list of files");
}

static struct kvfs_item *append(struct walker *w, const char *prefix, const char *name)
{
    struct kvfs_walk *out = w->out;
    if (out->count == KVFS_WALK_ITEMS) {
        ct_err_set(w->err, CT_USAGE, "more than %d files", KVFS_WALK_ITEMS);
        return NULL;
    }
    if (out->count == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        struct kvfs_item *items = reallocarray(out->items, cap, sizeof(*items));
        if (!items) {
            ct_err_set(w->err, CT_NOMEM, "no memory for a list of files");
            return NULL;
        }
        out->items = items;
        w->cap = cap;
    }
    struct kvfs_item *item = &out->items[out->count];
    *item = (struct kvfs_item){0};
    if (asprintf(&item->path, "%s%s%s", prefix, *prefix ? "/" : "", name) < 0) {
        item->path = NULL;
        ct_err_set(w->err, CT_NOMEM, "no memory for a list of files");
        return NULL;
    }
    out->count++;
    return item;
}

static int walk(struct walker *w, const char *path, unsigned depth);

/* `items` may move while the directory is walked: nothing of it is kept over the recursion. */
static int visit(struct walker *w, int dirfd, const char *prefix, const char *name, unsigned depth)
{
    struct kvfs_item *item = append(w, prefix, name);
    if (!item) {
        return -1;
    }
    if (w->skip && w->skip(w->ctx, item->path)) {
        free(item->path);
        w->out->count--;
        return 0;
    }
    if (fstatat(dirfd, name, &item->st, AT_SYMLINK_NOFOLLOW)) {
        return ct_err_sys(w->err, errno, "%s", item->path);
    }
    if (S_ISREG(item->st.st_mode)) {
        item->kind = KVFS_ITEM_FILE;
    } else if (S_ISLNK(item->st.st_mode)) {
        item->kind = KVFS_ITEM_LINK;
        return read_target(dirfd, name, item, w->err);
    } else if (S_ISDIR(item->st.st_mode)) {
        item->kind = KVFS_ITEM_DIR;
        return walk(w, item->path, depth + 1);
    } else {
        item->kind = KVFS_ITEM_SPECIAL;
    }
    return 0;
}

static void close_dir(DIR **d)
{
    if (*d) {
        (void)closedir(*d);
    }
}

static int walk(struct walker *w, const char *path, unsigned depth)
{
    if (depth > KVFS_WALK_DEPTH) {
        return ct_err_set(w->err, CT_USAGE, "%s: nested deeper than %d directories", path,
                          KVFS_WALK_DEPTH);
    }
    int fd = kvfs_open_beneath(w->out->fd, path, O_RDONLY | O_DIRECTORY, w->err);
    if (fd < 0) {
        return -1;
    }
    __attribute__((cleanup(close_dir))) DIR *d = fdopendir(fd);
    if (!d) {
        close(fd);
        return ct_err_set(w->err, CT_NOMEM, "no memory for a directory");
    }
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e) {
            return errno ? ct_err_sys(w->err, errno, "%s", path) : 0;
        }
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            visit(w, dirfd(d), path, e->d_name, depth)) {
            return -1;
        }
    }
}

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct kvfs_item *)a)->path, ((const struct kvfs_item *)b)->path);
}

int kvfs_walk_dir(const char *root, kvfs_walk_skip_fn skip, void *ctx, struct kvfs_walk *out,
                  struct ct_err *err)
{
    struct walker w = {.out = out, .skip = skip, .ctx = ctx, .err = err};
    *out = (struct kvfs_walk){.fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    if (out->fd < 0) {
        return ct_err_sys(err, errno, "%s", root);
    }
    if (walk(&w, "", 0)) {
        kvfs_walk_free(out);
        return ct_err_wrap(err, "%s", root);
    }
    if (out->count) {
        qsort(out->items, out->count, sizeof(*out->items), compare);
    }
    return 0;
}

void kvfs_walk_free(struct kvfs_walk *w)
{
    for (size_t i = 0; i < w->count; i++) {
        free(w->items[i].path);
        free(w->items[i].target);
    }
    free(w->items);
    if (w->fd >= 0) {
        close(w->fd);
    }
    *w = (struct kvfs_walk){.fd = -1};
}

int kvfs_globs_add(struct kvfs_globs *g, const char *glob)
{
    const char **items = reallocarray(g->items, g->count + 1, sizeof(*items));
    if (!items) {
        return -1;
    }
    g->items = items;
    unsigned *hits = reallocarray(g->hits, g->count + 1, sizeof(*hits));
    if (!hits) {
        return -1;
    }
    g->hits = hits;
    g->hits[g->count] = 0;
    g->items[g->count++] = glob;
    return 0;
}

static bool match_one(struct kvfs_globs *g, size_t i, const char *text, int flags)
{
    bool yes = fnmatch(g->items[i], text, flags) == 0;
    g->hits[i] += yes;
    return yes;
}

bool kvfs_globs_match_name(struct kvfs_globs *g, const char *name)
{
    bool any = false;
    for (size_t i = 0; i < g->count; i++) {
        any |= match_one(g, i, name, 0);
    }
    return any;
}

bool kvfs_globs_match(struct kvfs_globs *g, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    bool any = false;
    for (size_t i = 0; i < g->count; i++) {
        bool whole = strchr(g->items[i], '/');
        any |= match_one(g, i, whole ? path : name, whole ? FNM_PATHNAME : 0);
    }
    return any;
}

const char *kvfs_globs_unused(const struct kvfs_globs *g)
{
    for (size_t i = 0; i < g->count; i++) {
        if (g->hits[i] == 0) {
            return g->items[i];
        }
    }
    return NULL;
}

void kvfs_globs_free(struct kvfs_globs *g)
{
    free(g->items);
    free(g->hits);
    *g = (struct kvfs_globs){0};
}
