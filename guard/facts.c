#include "guard/facts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "format/base/file.h"

const char *const guard_ns_names[GUARD_NS_COUNT] = {"mnt", "pid", "user",   "net",
                                                    "ipc", "uts", "cgroup", "time"};

enum { SMALL = 1 << 16, LARGE = 32 << 20 };

int guard_read_at(int dirfd, const char *name, size_t max, struct ct_buf *out, struct ct_err *err)
{
    ct_autofd fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        return ct_err_sys(err, errno, "%s", name);
    }
    for (;;) {
        uint8_t *to = ct_buf_reserve(out, 4096);
        ssize_t n = to ? read(fd, to, 4095) : 0;
        if (n < 0 && errno != EINTR) {
            return ct_err_sys(err, errno, "%s", name);
        }
        if (n == 0) {
            break;
        }
        out->len += n > 0 ? (size_t)n : 0;
        if (out->len > max) {
            return ct_err_set(err, CT_MALFORMED, "%s: more than %zu bytes", name, max);
        }
    }
    if (ct_buf_ok(out, err)) {
        return -1;
    }
    out->data[out->len] = '\0'; /* ct_buf_reserve() made room for one more */
    return 0;
}

int guard_open_in(int dirfd, const char *path, uint64_t resolve, uint64_t flags)
{
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve | RESOLVE_NO_MAGICLINKS};
    return (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
}

int guard_stat_in(int root_fd, const char *path, struct stat *st)
{
    ct_autofd fd = guard_open_in(root_fd, path, RESOLVE_IN_ROOT, O_PATH);
    return fd < 0 ? -1 : fstat(fd, st);
}

char *guard_readlink_at(int dirfd, const char *name, struct ct_err *err)
{
    char path[PATH_MAX];
    ssize_t n = readlinkat(dirfd, name, path, sizeof(path) - 1);
    if (n < 0) {
        ct_err_sys(err, errno, "%s", name);
        return NULL;
    }
    path[n] = '\0';
    char *copy = strdup(path);
    if (!copy) {
        ct_err_set(err, CT_NOMEM, "no memory for a path");
    }
    return copy;
}

void guard_file_id_of(const struct stat *st, struct guard_file_id *out)
{
    *out = (struct guard_file_id){
        .dev = st->st_dev,
        .ino = st->st_ino,
        .size = (uint64_t)st->st_size,
        .nlink = st->st_nlink,
        .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec,
        .ctime_ns = (int64_t)st->st_ctim.tv_sec * 1000000000 + st->st_ctim.tv_nsec,
    };
}

bool guard_file_id_same(const struct guard_file_id *a, const struct guard_file_id *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

static int read_status(int fd, struct guard_facts *f, struct ct_err *err)
{
    ct_autobuf text = {0};
    return guard_read_at(fd, "status", SMALL, &text, err)
               ? -1
               : guard_parse_status((char *)text.data, text.len, &f->status, err);
}

static int read_mounts(int fd, struct guard_facts *f, struct ct_err *err)
{
    ct_autobuf text = {0};
    return guard_read_at(fd, "mountinfo", LARGE, &text, err)
               ? -1
               : guard_parse_mounts((char *)text.data, text.len, &f->mounts, err);
}

static int read_maps(int fd, struct guard_facts *f, struct ct_err *err)
{
    ct_autobuf text = {0};
    return guard_read_at(fd, "maps", LARGE, &text, err)
               ? -1
               : guard_parse_maps((char *)text.data, text.len, &f->maps, err);
}

static int read_ns(int fd, struct guard_facts *f, struct ct_err *err)
{
    for (int i = 0; i < GUARD_NS_COUNT; i++) {
        char name[32];
        char target[64];
        (void)snprintf(name, sizeof(name), "ns/%s", guard_ns_names[i]);
        ssize_t n = readlinkat(fd, name, target, sizeof(target) - 1);
        if (n < 0 && errno != ENOENT) {
            return ct_err_sys(err, errno, "%s", name);
        }
        target[n < 0 ? 0 : n] = '\0';
        f->ns[i] = guard_parse_ns(target);
    }
    return f->ns[GUARD_NS_MNT] ? 0 : ct_err_set(err, CT_MALFORMED, "ns/mnt: no number");
}

static int read_exe(int fd, struct guard_facts *f, struct ct_err *err)
{
    static const char gone[] = " (deleted)";
    const size_t tail = sizeof(gone) - 1;
    struct stat st;
    f->exe_path = guard_readlink_at(fd, "exe", err);
    if (!f->exe_path) {
        return -1;
    }
    if (fstatat(fd, "exe", &st, 0)) {
        return ct_err_sys(err, errno, "exe");
    }
    guard_file_id_of(&st, &f->exe);
    size_t n = strlen(f->exe_path);
    if (n > tail && strcmp(f->exe_path + n - tail, gone) == 0 && st.st_nlink == 0) {
        f->exe_deleted = true;
        f->exe_path[n - tail] = '\0';
    }
    return 0;
}

static int read_environ(int fd, struct guard_facts *f, struct ct_err *err)
{
    ct_autobuf text = {0};
    if (guard_read_at(fd, "environ", LARGE, &text, err)) {
        return -1;
    }
    f->environ = guard_parse_environ((char *)text.data, text.len);
    return 0;
}

static int read_limits(int fd, struct guard_facts *f, struct ct_err *err)
{
    ct_autobuf text = {0};
    uint64_t soft = 0;
    uint64_t hard = 0;
    if (guard_read_at(fd, "limits", SMALL, &text, err) ||
        guard_parse_limit((char *)text.data, text.len, "Max core file size", &soft, &hard, err)) {
        return -1;
    }
    f->core_limit = soft < hard ? soft : hard;
    if (guard_parse_limit((char *)text.data, text.len, "Max locked memory", &soft, &hard, err)) {
        return -1;
    }
    f->lock_limit = soft < hard ? soft : hard;
    return 0;
}

static int read_cgroup(int fd, struct guard_facts *f, struct ct_err *err)
{
    return guard_read_at(fd, "cgroup", SMALL, &f->cgroup, err);
}

int guard_facts_read(int fd, unsigned wanted, struct guard_facts *f, struct ct_err *err)
{
    static const struct {
        unsigned bit;
        int (*read)(int fd, struct guard_facts *f, struct ct_err *err);
    } parts[] = {
        {GUARD_HAS_STATUS, read_status}, {GUARD_HAS_MOUNTS, read_mounts},
        {GUARD_HAS_MAPS, read_maps},     {GUARD_HAS_NS, read_ns},
        {GUARD_HAS_EXE, read_exe},       {GUARD_HAS_ENVIRON, read_environ},
        {GUARD_HAS_LIMITS, read_limits}, {GUARD_HAS_CGROUP, read_cgroup},
    };
    *f = (struct guard_facts){.wanted = wanted};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        struct ct_err why = CT_ERR_INIT;
        if (!(wanted & parts[i].bit)) {
            continue;
        }
        if (parts[i].read(fd, f, &why) == 0) {
            f->has |= parts[i].bit;
        } else if (why.code == CT_NOMEM || (parts[i].bit == GUARD_HAS_STATUS && why.sys == ESRCH)) {
            guard_facts_free(f);
            return ct_err_set(err, why.code == CT_NOMEM ? CT_NOMEM : CT_NOTFOUND, "%s", why.msg);
        } else if (f->missing.code == CT_OK) {
            f->missing = why;
        }
    }
    return 0;
}

void guard_facts_free(struct guard_facts *f)
{
    guard_mounts_free(&f->mounts);
    guard_maps_free(&f->maps);
    free(f->exe_path);
    ct_buf_free(&f->cgroup);
    *f = (struct guard_facts){0};
}
