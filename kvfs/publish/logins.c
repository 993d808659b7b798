#include "kvfs/publish/logins.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

#include "format/base/file.h"

#define NAME "logins.json"

enum { LOGINS_MAX = 1 << 20 };

/* ---- the directory ---- */

/* XDG: a path that is not absolute counts for nothing. */
static char *config_dir(void)
{
    char *path = NULL;
    const char *xdg = getenv("XDG_CONFIG_HOME");
    const char *home = getenv("HOME");
    const struct passwd *pw = NULL;
    if (xdg && *xdg == '/') {
        return asprintf(&path, "%s/kvfs", xdg) < 0 ? NULL : path;
    }
    if (!home || *home != '/') {
        pw = getpwuid(geteuid());
        home = pw ? pw->pw_dir : "/";
    }
    return asprintf(&path, "%s/.config/kvfs", home) < 0 ? NULL : path;
}

static int make_dirs(char *path, struct ct_err *err)
{
    for (char *slash = path; slash;) {
        slash = strchr(slash + 1, '/');
        if (slash) {
            *slash = '\0';
        }
        int rc = mkdir(path, 0700);
        int why = errno;
        if (slash) {
            *slash = '/';
        }
        if (rc && why != EEXIST) {
            return ct_err_sys(err, why, "%s", path);
        }
    }
    return 0;
}

/* A temporary file holds tokens too; under the lock it can only be one that a kill left. */
static void remove_leftovers(int dirfd)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d) {
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    for (const struct dirent *e; (e = readdir(d));) {
        if (fnmatch("." NAME ".*.tmp", e->d_name, FNM_PERIOD) == 0) {
            (void)unlinkat(dirfd, e->d_name, 0);
        }
    }
    (void)closedir(d);
}

static int open_dir(struct kvfs_logins *l, bool make, struct ct_err *err)
{
    l->path = config_dir();
    if (!l->path) {
        return ct_err_set(err, CT_NOMEM, "no memory for a path");
    }
    if (make && make_dirs(l->path, err)) {
        return -1;
    }
    l->dirfd = open(l->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (l->dirfd < 0) {
        return !make && errno == ENOENT ? 0 : ct_err_sys(err, errno, "%s", l->path);
    }
    while (flock(l->dirfd, LOCK_EX)) {
        if (errno != EINTR) {
            return ct_err_sys(err, errno, "%s", l->path);
        }
    }
    remove_leftovers(l->dirfd);
    return 0;
}

/* ---- the file ---- */

static int check_private(const struct kvfs_logins *l, int fd, struct ct_err *err)
{
    struct stat st;
    if (fstat(fd, &st)) {
        return ct_err_sys(err, errno, "%s/" NAME, l->path);
    }
    if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077)) {
        return ct_err_set(err, CT_REJECTED,
                          "%s/" NAME " is not for you alone: remove it, and log in anew", l->path);
    }
    return 0;
}

static bool entry_ok(const json_t *e)
{
    static const char *const texts[] = {
        "url", "user", "access_token", "access_expires", "refresh_token", "refresh_expires"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        if (!json_is_string(json_object_get(e, texts[i]))) {
            return false;
        }
    }
    return true;
}

static int read_list(struct kvfs_logins *l, struct ct_err *err)
{
    ct_autobuf text = {0};
    ct_autofd fd =
        l->dirfd < 0 ? -1 : openat(l->dirfd, NAME, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        l->list = json_array();
        return l->dirfd < 0 || errno == ENOENT ? 0 : ct_err_sys(err, errno, "%s/" NAME, l->path);
    }
    if (check_private(l, fd, err) || ct_read_fd(fd, LOGINS_MAX, &text, err)) {
        return -1;
    }
    l->list =
        json_loadb(text.len ? (const char *)text.data : "", text.len, JSON_REJECT_DUPLICATES, NULL);
    bool ok = json_is_array(l->list);
    for (size_t i = 0; ok && i < json_array_size(l->list); i++) {
        ok = entry_ok(json_array_get(l->list, i));
    }
    return ok ? 0
              : ct_err_set(err, CT_MALFORMED, "%s/" NAME " is damaged: remove it, and log in anew",
                           l->path);
}

int kvfs_logins_open(struct kvfs_logins *l, bool make, struct ct_err *err)
{
    *l = (struct kvfs_logins)KVFS_LOGINS;
    return open_dir(l, make, err) || read_list(l, err) ? -1 : 0;
}

void kvfs_logins_close(struct kvfs_logins *l)
{
    if (l->dirfd >= 0) {
        close(l->dirfd); /* the lock goes with it */
    }
    free(l->path);
    json_decref(l->list);
    *l = (struct kvfs_logins)KVFS_LOGINS;
}

/* ---- entries ---- */

static const char *url_of(const json_t *entry)
{
    return json_string_value(json_object_get(entry, "url"));
}

json_t *kvfs_logins_find(const struct kvfs_logins *l, const char *url)
{
    if (!url) {
        return json_array_size(l->list) == 1 ? json_array_get(l->list, 0) : NULL;
    }
    for (size_t i = 0; i < json_array_size(l->list); i++) {
        json_t *e = json_array_get(l->list, i);
        if (strcmp(url_of(e), url) == 0) {
            return e;
        }
    }
    return NULL;
}

void kvfs_logins_remove(struct kvfs_logins *l, const char *url)
{
    for (size_t i = json_array_size(l->list); i-- > 0;) {
        if (strcmp(url_of(json_array_get(l->list, i)), url) == 0) {
            (void)json_array_remove(l->list, i);
        }
    }
}

int kvfs_logins_put(struct kvfs_logins *l, json_t *entry, struct ct_err *err)
{
    if (!entry || !entry_ok(entry)) {
        json_decref(entry);
        return ct_err_set(err, CT_NOMEM, "no memory for a login");
    }
    kvfs_logins_remove(l, url_of(entry));
    return json_array_append_new(l->list, entry)
               ? ct_err_set(err, CT_NOMEM, "no memory for a login")
               : 0;
}

static int dump(const char *text, size_t n, void *ctx)
{
    ct_buf_put(ctx, text, n);
    return 0;
}

int kvfs_logins_write(const struct kvfs_logins *l, struct ct_err *err)
{
    struct ct_newfile f = {.fd = -1};
    ct_autobuf text = {0};
    if (json_array_size(l->list) == 0) {
        return unlinkat(l->dirfd, NAME, 0) && errno != ENOENT
                   ? ct_err_sys(err, errno, "%s/" NAME, l->path)
                   : 0;
    }
    int rc = json_dump_callback(l->list, dump, &text, JSON_INDENT(1));
    ct_buf_putc(&text, '\n');
    if (rc || ct_buf_ok(&text, err)) {
        return ct_err_set(err, CT_NOMEM, "no memory for a login");
    }
    rc = ct_newfile_open(&f, l->dirfd, NAME, 0600, err) ||
         ct_write_full(f.fd, text.data, text.len, err) || ct_newfile_commit(&f, true, err);
    ct_newfile_abort(&f);
    return rc ? ct_err_wrap(err, "%s", l->path) : 0;
}
