#include "kvfs/mount/openat.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "format/base/file.h"

enum { LINKS_MAX = 40, TRIES = 8 };

static int open_beneath(int dirfd, const char *path, int flags, uint64_t more)
{
    const struct open_how how = {
        .flags = (uint64_t)(flags | O_CLOEXEC),
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | more,
    };
    long fd = -1;
    for (int i = 0; i < TRIES; i++) {
        fd = syscall(SYS_openat2, dirfd, *path ? path : ".", &how, sizeof(how));
        if (fd >= 0 || errno != EAGAIN) { /* EAGAIN: something was renamed meanwhile */
            break;
        }
    }
    return (int)fd;
}

bool kvfs_path_is_plain(const char *path)
{
    if (!*path) {
        return true;
    }
    for (const char *p = path;; p++) {
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.')) {
            return false;
        }
        p += n;
        if (!*p) {
            return true;
        }
    }
}

void kvfs_common_directory(const char *a, const char *b, char out[static PATH_MAX])
{
    size_t common = 0;
    size_t i = 0;
    for (; a[i] && a[i] == b[i]; i++) {
        if (a[i] == '/') {
            common = i;
        }
    }
    if ((!a[i] || a[i] == '/') && (!b[i] || b[i] == '/')) {
        common = i; /* one lies in the other */
    }
    (void)snprintf(out, PATH_MAX, "%.*s", (int)(common ? common : 1), common ? a : "/");
}

/* ---- Following links by name ---- */

/* What is walked: `done` is free of links, `rest` is still to be resolved. While `done` lies in the
 * root it is relative to it; once it has left (`out`), absolute. */
struct walk {
    const char *root;
    char done[PATH_MAX];
    char rest[2 * PATH_MAX];
    bool out;
};

static int append(char *path, const char *name, size_t n)
{
    size_t have = strlen(path);
    bool slash = have > 0 && path[have - 1] != '/';
    if (have + slash + n >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (slash) {
        path[have++] = '/';
    }
    memcpy(path + have, name, n);
    path[have + n] = '\0';
    return 0;
}

static void drop_last(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash == path && path[1]) {
        slash[1] = '\0'; /* "/a" becomes "/" */
    } else if (slash != path) {
        *(slash ? slash : path) = '\0';
    }
}

/* Comes back into the root when the absolute path outside has reached it again. */
static void maybe_enter(struct walk *w)
{
    size_t n = strlen(w->root);
    if (w->out && strncmp(w->done, w->root, n) == 0 && (!w->done[n] || w->done[n] == '/')) {
        memmove(w->done, w->done + n + (w->done[n] == '/'),
                strlen(w->done + n + (w->done[n] == '/')) + 1);
        w->out = false;
    }
}

static int go_up(struct walk *w)
{
    if (!w->out && !w->done[0]) {
        w->out = true;
        (void)snprintf(w->done, sizeof(w->done), "%s", w->root);
    }
    drop_last(w->done);
    return 0;
}

/* Puts a link's target before what is left. */
static int insert_target(struct walk *w, const char *target)
{
    char rest[2 * PATH_MAX];
    int n = snprintf(rest, sizeof(rest), "%s%s%s", target, *w->rest ? "/" : "", w->rest);
    if (n < 0 || (size_t)n >= sizeof(rest)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(w->rest, rest, (size_t)n + 1);
    if (*target == '/') {
        w->out = true;
        (void)strcpy(w->done, "/");
    }
    return 0;
}

/* The target of `done` if that is a link: its length, 0 if it is something else, or -1. */
static ssize_t read_target(int dirfd, const char *path, char target[static PATH_MAX])
{
    ct_autofd fd = open_beneath(dirfd, path, O_PATH | O_NOFOLLOW, RESOLVE_NO_SYMLINKS);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        return -1;
    }
    if (!S_ISLNK(st.st_mode)) {
        return 0;
    }
    ssize_t n = readlinkat(fd, "", target, PATH_MAX - 1);
    if (n >= 0) {
        target[n] = '\0';
    }
    return n;
}

static int step(struct walk *w, int dirfd, unsigned *links)
{
    char name[PATH_MAX];
    char target[PATH_MAX];
    char *next = w->rest + strspn(w->rest, "/");
    size_t n = strcspn(next, "/");
    if (n >= sizeof(name)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(name, next, n);
    name[n] = '\0';
    memmove(w->rest, next + n, strlen(next + n) + 1);
    if (n == 0 || strcmp(name, ".") == 0) {
        return 0;
    }
    if (strcmp(name, "..") == 0) {
        return go_up(w);
    }
    if (append(w->done, name, n)) {
        return -1;
    }
    if (w->out) {
        maybe_enter(w);
        return 0;
    }
    ssize_t len = read_target(dirfd, w->done, target);
    if (len <= 0) {
        return (int)len;
    }
    if (++*links > LINKS_MAX) {
        errno = ELOOP;
        return -1;
    }
    drop_last(w->done);
    return insert_target(w, target);
}

int kvfs_follow(int dirfd, const char *root, const char *path, char out[static PATH_MAX])
{
    struct walk w = {.root = strcmp(root, "/") == 0 ? "" : root};
    unsigned links = 0;
    (void)snprintf(w.rest, sizeof(w.rest), "%s", path);
    while (*w.rest) {
        if (step(&w, dirfd, &links)) {
            return -1;
        }
    }
    memcpy(out, w.done, PATH_MAX);
    return w.out;
}

/* ---- Requests ---- */

static void explain(const char *root, const char *outside, struct kvfs_reply *reply)
{
    char common[PATH_MAX];
    kvfs_common_directory(root, outside, common);
    if (strcmp(common, "/") == 0) {
        (void)snprintf(reply->text, sizeof(reply->text),
                       "the link leads to %.400s, outside of %.400s: copy what it leads to",
                       outside, root);
    } else {
        (void)snprintf(reply->text, sizeof(reply->text),
                       "the link leads to %.300s, outside of %.300s: mount %.300s instead", outside,
                       root, common);
    }
}

/* Follows a path to its end, O_PATH. What the kernel refuses because a link is absolute or leaves
 * is looked at once more by name; *path is then where it leads, in `inside`. */
static int open_end(int dirfd, const char *root, const char **path, char inside[static PATH_MAX],
                    struct kvfs_reply *reply)
{
    int fd = open_beneath(dirfd, *path, O_PATH, 0);
    if (fd >= 0 || errno != EXDEV) {
        return fd;
    }
    int rc = kvfs_follow(dirfd, root, *path, inside);
    if (rc == 0) {
        *path = inside;
        return open_beneath(dirfd, inside, O_PATH, RESOLVE_NO_SYMLINKS);
    }
    if (rc > 0) {
        explain(root, inside, reply);
        errno = EXDEV;
    }
    return -1;
}

/* What the path leads to, open for reading, if that is a file or a directory. `end` is open on it
 * already, so that no device is ever opened. */
static int open_for_reading(int dirfd, const char *path, int end, struct kvfs_reply *reply, int *fd)
{
    struct stat st;
    if (fstat(end, &reply->st)) {
        return errno;
    }
    if (!S_ISREG(reply->st.st_mode) && !S_ISDIR(reply->st.st_mode)) {
        return 0;
    }
    int got = open_beneath(dirfd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
    if (got < 0) {
        return errno;
    }
    if (fstat(got, &st) || st.st_dev != reply->st.st_dev || st.st_ino != reply->st.st_ino) {
        close(got);
        return ESTALE; /* replaced in between */
    }
    *fd = got;
    return 0;
}

static void open_once(int dirfd, const char *root, const char *path, struct kvfs_reply *reply,
                      int *fd)
{
    char inside[PATH_MAX];
    memset(reply, 0, sizeof(*reply));
    ct_autofd last = open_beneath(dirfd, path, O_PATH | O_NOFOLLOW, 0);
    if (last >= 0 && fstat(last, &reply->st) == 0 && S_ISLNK(reply->st.st_mode)) {
        ssize_t n = readlinkat(last, "", reply->target, sizeof(reply->target) - 1);
        reply->is_link = n >= 0;
    }
    ct_autofd end = open_end(dirfd, root, &path, inside, reply);
    reply->error = end < 0 ? errno : open_for_reading(dirfd, path, end, reply, fd);
}

void kvfs_open_source(int dirfd, const char *root, const char *path, struct kvfs_reply *reply,
                      int *fd)
{
    *fd = -1;
    for (int i = 0; i < TRIES; i++) {
        open_once(dirfd, root, path, reply, fd);
        if (reply->error != ESTALE) {
            break;
        }
    }
}
