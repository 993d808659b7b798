#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

/* ---- Namespaces ---- */

static void check_namespaces(struct guard_run *r)
{
    guard_looked(r, GUARD_NAMESPACES);
    if (!r->start || !(r->start->has & GUARD_HAS_NS)) {
        return;
    }
    for (int i = 0; i < GUARD_NS_COUNT; i++) {
        if (r->now->ns[i] != r->start->ns[i]) {
            guard_fail(r, GUARD_NAMESPACES, 0, guard_ns_names[i],
                       "it is in another %s namespace than at the start", guard_ns_names[i]);
        }
    }
}

/* The first namespaces of these kinds have had the same numbers since Linux 3.8
 * (include/linux/proc_ns.h). Those of mounts and network have none of their own everywhere. */
static void check_host_namespaces(struct guard_run *r)
{
    static const struct {
        enum guard_ns kind;
        uint64_t first;
        const char *what;
    } firsts[] = {{GUARD_NS_IPC, 0xefffffff, "IPC"},
                  {GUARD_NS_UTS, 0xeffffffe, "UTS"},
                  {GUARD_NS_PID, 0xeffffffc, "PID"}};
    guard_looked(r, GUARD_HOST_NAMESPACES);
    for (size_t i = 0; i < sizeof(firsts) / sizeof(firsts[0]); i++) {
        if (r->now->ns[firsts[i].kind] == firsts[i].first) {
            guard_fail(r, GUARD_HOST_NAMESPACES, 0, firsts[i].what,
                       "it is in the host's %s namespace", firsts[i].what);
        }
    }
}

/* ---- Device nodes ---- */

enum { DEV_DEPTH = 4, DEV_ENTRIES = 8192 };

static bool is_pty(const struct stat *st)
{
    return S_ISCHR(st->st_mode) && major(st->st_rdev) >= 136 && major(st->st_rdev) <= 143;
}

/* Numbers: Linux's Documentation/admin-guide/devices.txt. A name alone says nothing: whoever
 * configures the container may have put a disk there. */
int guard_device_is_standard(const char *path, const struct stat *st)
{
    static const struct {
        const char *path;
        unsigned major, minor;
    } nodes[] = {{"/dev/null", 1, 3},    {"/dev/zero", 1, 5},    {"/dev/full", 1, 7},
                 {"/dev/random", 1, 8},  {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
                 {"/dev/console", 5, 1}, {"/dev/ptmx", 5, 2},    {"/dev/pts/ptmx", 5, 2}};
    for (size_t i = 0; i < sizeof(nodes) / sizeof(nodes[0]); i++) {
        if (strcmp(path, nodes[i].path) == 0) {
            bool same =
                S_ISCHR(st->st_mode) && st->st_rdev == makedev(nodes[i].major, nodes[i].minor);
            /* A runtime binds a terminal there. */
            return same || (strcmp(path, "/dev/console") == 0 && is_pty(st));
        }
    }
    return strncmp(path, "/dev/pts/", 9) == 0 ? is_pty(st) : -1;
}

static bool is_declared_device(const struct guard_run *r, const char *path, const struct stat *st)
{
    if (guard_device_is_standard(path, st) == 1) {
        return true;
    }
    for (size_t i = 0; i < r->profile->count; i++) {
        const struct guard_declared *d = &r->profile->declared[i];
        if (d->kind == GUARD_DEVICE && fnmatch(d->path, path, FNM_PATHNAME) == 0) {
            return true;
        }
    }
    return false;
}

struct walk {
    struct guard_run *r;
    unsigned entries;
    bool blind;
};

static void walk_devices(struct walk *w, int dirfd, const char *name, const char *path, int depth);

static void one_entry(struct walk *w, int dirfd, const struct dirent *e, const char *path,
                      int depth)
{
    char full[512];
    struct stat st;
    int n = snprintf(full, sizeof(full), "%s/%s", path, e->d_name);
    if (n < 0 || (size_t)n >= sizeof(full) || ++w->entries > DEV_ENTRIES) {
        w->blind = true;
        return;
    }
    if (e->d_type != DT_UNKNOWN && e->d_type != DT_DIR && e->d_type != DT_CHR &&
        e->d_type != DT_BLK) {
        return;
    }
    if (fstatat(dirfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW)) {
        w->blind |= errno != ENOENT;
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        if (depth < DEV_DEPTH) {
            walk_devices(w, dirfd, e->d_name, full, depth + 1);
        } else {
            w->blind = true;
        }
    } else if ((S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) &&
               !is_declared_device(w->r, full, &st)) {
        guard_fail(w->r, GUARD_DEVICES, 0, full, "a device that is not declared: %.150s", full);
    }
}

static void walk_devices(struct walk *w, int dirfd, const char *name, const char *path, int depth)
{
    int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        w->blind = true;
        if (fd >= 0) {
            close(fd);
        }
        return;
    }
    const struct dirent *e = NULL;
    while ((e = readdir(dir)) && w->entries <= DEV_ENTRIES) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
            one_entry(w, fd, e, path, depth);
        }
    }
    (void)closedir(dir);
}

static void check_devices(struct guard_run *r)
{
    struct walk w = {.r = r};
    guard_looked(r, GUARD_DEVICES);
    walk_devices(&w, r->proc_root_fd, "dev", "/dev", 0);
    if (w.blind) {
        guard_fail(r, GUARD_DEVICES, 0, "", "/dev can't be looked through");
    }
}

/* ---- Sockets of container runtimes ---- */

static void check_sockets(struct guard_run *r)
{
    static const char *const sockets[] = {"run/docker.sock",
                                          "var/run/docker.sock",
                                          "run/containerd/containerd.sock",
                                          "run/crio/crio.sock",
                                          "run/podman/podman.sock",
                                          "run/k3s/containerd/containerd.sock",
                                          "run/buildkit/buildkitd.sock",
                                          "var/run/containerd/containerd.sock"};
    guard_looked(r, GUARD_RUNTIME_SOCKET);
    for (size_t i = 0; i < sizeof(sockets) / sizeof(sockets[0]); i++) {
        struct stat st;
        if (guard_stat_in(r->proc_root_fd, sockets[i], &st) == 0 && S_ISSOCK(st.st_mode)) {
            guard_fail(r, GUARD_RUNTIME_SOCKET, 0, sockets[i],
                       "a container runtime can be told what to do: /%s", sockets[i]);
        }
    }
    /* Under another name: a bind of a socket still has its own. */
    for (size_t i = 0; guard_has(r, GUARD_HAS_MOUNTS) && i < r->now->mounts.count; i++) {
        const struct guard_mount *m = &r->now->mounts.items[i];
        size_t n = strlen(m->root);
        if (n > 5 && strcmp(m->root + n - 5, ".sock") == 0) {
            guard_fail(r, GUARD_RUNTIME_SOCKET, 0, m->path,
                       "a socket of the host is mounted at %.100s (%.60s)", m->path, m->root);
        }
    }
}

void guard_check_machine(struct guard_run *r)
{
    if (guard_has(r, GUARD_HAS_NS)) {
        check_namespaces(r);
        check_host_namespaces(r);
    }
    if (r->proc_root_fd < 0 || r->s->role == GUARD_MATE) {
        return;
    }
    if (guard_wants(r, GUARD_DEVICES)) {
        check_devices(r);
    }
    if (guard_wants(r, GUARD_RUNTIME_SOCKET)) {
        check_sockets(r);
    }
}
