#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "guard/state.h"

static bool is_own(const struct guard_run *r, const struct guard_mount *m)
{
    return r->g->mounted && m->dev == r->g->mount_dev;
}

static bool is_one_of(const char *text, const char *const *list)
{
    while (*list && strcmp(*list, text) != 0) {
        list++;
    }
    return *list != NULL;
}

static const struct guard_declared *declared(const struct guard_run *r, enum guard_kind kind,
                                             const char *path)
{
    for (size_t i = 0; i < r->profile->count; i++) {
        const struct guard_declared *d = &r->profile->declared[i];
        if (d->kind == kind && fnmatch(d->path, path, FNM_PATHNAME) == 0) {
            return d;
        }
    }
    return NULL;
}

/* ---- What a runtime mounts by itself ---- */

/* A bind of one device node, as it stands in /dev of the host: the node, and not a directory or
 * another device of this name. */
static bool is_device(const struct guard_run *r, const struct guard_mount *m, const char *name)
{
    static const char *const types[] = {"devtmpfs", "tmpfs", NULL};
    char path[64];
    struct stat st;
    if (m->root[0] != '/' || strcmp(m->root + 1, name) != 0 || !is_one_of(m->fstype, types) ||
        r->proc_root_fd < 0 || fstatat(r->proc_root_fd, m->path + 1, &st, AT_SYMLINK_NOFOLLOW) ||
        (!S_ISCHR(st.st_mode) && !S_ISBLK(st.st_mode))) {
        return false;
    }
    (void)snprintf(path, sizeof(path), "/dev/%s", name);
    return guard_device_is_standard(path, &st) != 0;
}

static bool known_in_proc(const struct guard_run *r, const struct guard_mount *m)
{
    const char *rest = m->path + strlen("/proc");
    if (!*rest) {
        return strcmp(m->fstype, "proc") == 0 && strcmp(m->root, "/") == 0;
    }
    if (strcmp(m->fstype, "proc") == 0) { /* a part of itself, read-only */
        return strcmp(m->root, rest) == 0 && (m->flags & GUARD_M_RO);
    }
    return is_device(r, m, "null") || (strcmp(m->fstype, "tmpfs") == 0 && (m->flags & GUARD_M_RO));
}

static bool known_in_sys(const struct guard_mount *m)
{
    static const char *const groups[] = {"cgroup", "cgroup2", "tmpfs", NULL};
    /* Where the controllers of cgroup version 1 are mounted; only root may write there. */
    const unsigned safe = GUARD_M_NOSUID | GUARD_M_NODEV | GUARD_M_NOEXEC;
    if (strcmp(m->path, "/sys/fs/cgroup") == 0 && strcmp(m->fstype, "tmpfs") == 0) {
        return (m->flags & safe) == safe && strcmp(m->root, "/") == 0;
    }
    if (!(m->flags & GUARD_M_RO)) {
        return false;
    }
    if (strcmp(m->path, "/sys") == 0) {
        return strcmp(m->fstype, "sysfs") == 0 && strcmp(m->root, "/") == 0;
    }
    return guard_path_beneath(m->path, "/sys/fs/cgroup") ? is_one_of(m->fstype, groups)
                                                         : strcmp(m->fstype, "tmpfs") == 0;
}

static bool known_in_dev(const struct guard_run *r, const struct guard_mount *m)
{
    static const char *const nodes[] = {"null", "zero", "full", "tty", "random", "urandom", NULL};
    static const struct {
        const char *path, *fstype;
    } known[] = {{"/dev", "tmpfs"},
                 {"/dev/pts", "devpts"},
                 {"/dev/shm", "tmpfs"},
                 {"/dev/mqueue", "mqueue"},
                 {"/dev/console", "devpts"}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(m->path, known[i].path) == 0) {
            /* Whole: a directory of the host is no runtime's own. A terminal has a name. */
            return strcmp(m->fstype, known[i].fstype) == 0 &&
                   (strcmp(m->root, "/") == 0 || strcmp(m->path, "/dev/console") == 0);
        }
    }
    const char *name = m->path + strlen("/dev/");
    return is_device(r, m, name) && (is_one_of(name, nodes) || declared(r, GUARD_DEVICE, m->path));
}

/* Single files that runtimes bind. */
static bool known_in_etc(const struct guard_mount *m)
{
    static const char *const files[] = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts",
                                        "/etc/passwd",      "/etc/group",    NULL};
    return is_one_of(m->path, files) && (m->flags & GUARD_M_RO);
}

static bool known_by_runtime(const struct guard_run *r, const struct guard_mount *m)
{
    if (strcmp(m->path, "/") == 0) {
        return true; /* root-ro judges it */
    }
    if (guard_path_beneath(m->path, "/proc")) {
        return known_in_proc(r, m);
    }
    if (guard_path_beneath(m->path, "/sys")) {
        return known_in_sys(m);
    }
    if (guard_path_beneath(m->path, "/dev")) {
        return known_in_dev(r, m);
    }
    return known_in_etc(m) ||
           (strcmp(m->path, "/run/.containerenv") == 0 && (m->flags & GUARD_M_RO));
}

static bool known_by_profile(const struct guard_run *r, const struct guard_mount *m)
{
    const struct guard_declared *bind = declared(r, GUARD_BIND, m->path);
    if (bind) {
        return bind->rw || (m->flags & GUARD_M_RO);
    }
    return strcmp(m->fstype, "tmpfs") == 0 && strcmp(m->root, "/") == 0 &&
           declared(r, GUARD_TMPFS, m->path);
}

static bool is_source(const struct guard_run *r, const struct guard_mount *m)
{
    return r->s->role != GUARD_STRANGER && r->config->source &&
           strcmp(m->path, r->config->source) == 0;
}

static bool known(const struct guard_run *r, const struct guard_mount *m)
{
    return is_own(r, m) || is_source(r, m) || known_by_runtime(r, m) || known_by_profile(r, m);
}

/* ---- The checks ---- */

static void check_root(struct guard_run *r)
{
    const struct guard_mount *m = guard_mount_of(&r->now->mounts, "/");
    guard_looked(r, GUARD_ROOT_RO);
    if (!m) {
        guard_fail(r, GUARD_ROOT_RO, 0, "/", "the mount table has no root");
    } else if (!(m->flags & GUARD_M_RO) && !m->super_ro) {
        guard_fail(r, GUARD_ROOT_RO, 0, "/", "the root file system (%.40s) is mounted rw",
                   m->fstype);
    } else if (!(m->flags & GUARD_M_RO)) {
        guard_fail(r, GUARD_ROOT_RO, 0, "/",
                   "only the superblock of the root file system (%.40s) is ro, the mount is rw",
                   m->fstype);
    }
}

/* Where a runtime's own mounts can't be otherwise. */
static bool may_have_devices(const struct guard_run *r, const struct guard_mount *m)
{
    return strcmp(m->path, "/dev") == 0 || guard_path_beneath(m->path, "/proc") ||
           (guard_path_beneath(m->path, "/dev") &&
            (strcmp(m->fstype, "devpts") == 0 || is_device(r, m, m->path + strlen("/dev/"))));
}

static void check_flags(struct guard_run *r, const struct guard_mount *m)
{
    const char *wrong = NULL;
    bool writable = !(m->flags & GUARD_M_RO);
    if (strcmp(m->path, "/") == 0 || may_have_devices(r, m)) {
        return;
    }
    if (writable && !(m->flags & GUARD_M_NOSUID)) {
        wrong = "writable without nosuid";
    } else if (!(m->flags & GUARD_M_NODEV) && (writable || is_source(r, m))) {
        wrong = writable ? "writable without nodev" : "without nodev";
    } else if (writable && !(m->flags & GUARD_M_NOEXEC) &&
               !(strcmp(m->fstype, "tmpfs") == 0 && declared(r, GUARD_TMPFS, m->path))) {
        wrong = "writable without noexec";
    }
    if (wrong) {
        guard_fail(r, GUARD_MOUNT_FLAGS, 0, m->path, "the %.30s at %.100s is mounted %s", m->fstype,
                   m->path, wrong);
    }
}

static void check_each(struct guard_run *r)
{
    guard_looked(r, GUARD_MOUNT_FOREIGN);
    guard_looked(r, GUARD_MOUNT_FLAGS);
    guard_looked(r, GUARD_MOUNT_STACKED);
    for (size_t i = 0; i < r->now->mounts.count; i++) {
        const struct guard_mount *m = &r->now->mounts.items[i];
        if (guard_wants(r, GUARD_MOUNT_FOREIGN) && !known(r, m)) {
            guard_fail(r, GUARD_MOUNT_FOREIGN, 0, m->path,
                       "something that is not declared is mounted at %.80s (%.30s, %.60s, %s)",
                       m->path, m->fstype, m->root, m->flags & GUARD_M_RO ? "ro" : "rw");
        }
        if (guard_wants(r, GUARD_MOUNT_FLAGS)) {
            check_flags(r, m);
        }
        if (guard_wants(r, GUARD_MOUNT_STACKED) && !guard_mount_visible(&r->now->mounts, m)) {
            guard_fail(r, GUARD_MOUNT_STACKED, 0, m->path,
                       "something is mounted over the %.30s at %.150s", m->fstype, m->path);
        }
    }
}

static void check_kernel_files(struct guard_run *r)
{
    static const char *const paths[] = {"/sys", "/proc/sys"};
    guard_looked(r, GUARD_KERNEL_WRITABLE);
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        const struct guard_mount *m = guard_mount_of(&r->now->mounts, paths[i]);
        bool there = m && (i || strcmp(m->path, paths[i]) == 0);
        if (there && !(m->flags & GUARD_M_RO)) {
            guard_fail(r, GUARD_KERNEL_WRITABLE, 0, paths[i], "%s is writable", paths[i]);
        }
    }
}

static void check_source(struct guard_run *r)
{
    const struct guard_mount *m =
        r->config->source ? guard_mount_of(&r->now->mounts, r->config->source) : NULL;
    if (!m) {
        return;
    }
    guard_looked(r, GUARD_SOURCE_RO);
    if (!(m->flags & GUARD_M_RO)) {
        guard_fail(r, GUARD_SOURCE_RO, 0, "", "the source lies on a mount that is rw (%.100s)",
                   m->path);
    }
}

/* It was unmounted: the end of it, and no drift. */
static bool own_is_gone(const struct guard_run *r)
{
    for (size_t i = 0; i < r->now->mounts.count; i++) {
        if (is_own(r, &r->now->mounts.items[i])) {
            return false;
        }
    }
    return r->g->mounted;
}

static void check_own(struct guard_run *r)
{
    const unsigned need = GUARD_M_RO | GUARD_M_NOSUID | GUARD_M_NODEV;
    if (!r->g->mounted || !r->config->mountpoint) {
        return;
    }
    const struct guard_mount *m = guard_mount_of(&r->now->mounts, r->config->mountpoint);
    guard_looked(r, GUARD_MOUNT_OWN);
    if (own_is_gone(r)) {
        return;
    }
    if (!m || !is_own(r, m) || strcmp(m->path, r->config->mountpoint) != 0) {
        guard_fail(r, GUARD_MOUNT_OWN, 0, "place", "%.150s does not lead to kvfs's own mount",
                   r->config->mountpoint);
    } else if ((m->flags & need) != need || strcmp(m->root, "/") != 0) {
        guard_fail(r, GUARD_MOUNT_OWN, 0, "flags",
                   "kvfs's own mount is not whole, read-only, nosuid and nodev");
    }
}

/* ---- What changed since the start ---- */

static bool concerns(const struct guard_run *r, const struct guard_mount *m)
{
    const char *ends[] = {r->config->source, r->config->mountpoint};
    for (size_t i = 0; i < 2; i++) {
        if (ends[i] &&
            (guard_path_beneath(ends[i], m->path) || guard_path_beneath(m->path, ends[i]))) {
            return true;
        }
    }
    for (size_t i = 0; i < r->profile->count; i++) {
        const struct guard_declared *d = &r->profile->declared[i];
        if ((d->kind == GUARD_PROTECT && guard_path_beneath(d->path, m->path)) ||
            (d->kind == GUARD_TREE &&
             (guard_path_beneath(d->path, m->path) || guard_path_beneath(m->path, d->path)))) {
            return true;
        }
    }
    return false;
}

static const struct guard_mount *find(const struct guard_mounts *m, const struct guard_mount *one)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct guard_mount *o = &m->items[i];
        if (o->id == one->id && o->dev == one->dev && strcmp(o->path, one->path) == 0 &&
            strcmp(o->root, one->root) == 0) {
            return o;
        }
    }
    return NULL;
}

static void compare(struct guard_run *r, const struct guard_mount *was)
{
    const struct guard_mount *is = find(&r->now->mounts, was);
    if (!is && is_own(r, was) && own_is_gone(r)) {
        return;
    }
    if (!is) {
        guard_fail(r, GUARD_MOUNT_PATH, 0, was->path, "the %.30s at %.150s is gone", was->fstype,
                   was->path);
    } else if (is->flags != was->flags || is->super_ro != was->super_ro ||
               is->parent != was->parent) {
        guard_fail(r, GUARD_MOUNT_PATH, 0, was->path,
                   "the %.30s at %.100s was mounted anew: %s, %s before", is->fstype, is->path,
                   is->flags & GUARD_M_RO ? "ro" : "rw", was->flags & GUARD_M_RO ? "ro" : "rw");
    }
}

static void check_changes(struct guard_run *r)
{
    if (!r->start || !(r->start->has & GUARD_HAS_MOUNTS)) {
        return;
    }
    guard_looked(r, GUARD_MOUNT_PATH);
    for (size_t i = 0; i < r->start->mounts.count; i++) {
        if (concerns(r, &r->start->mounts.items[i])) {
            compare(r, &r->start->mounts.items[i]);
        }
    }
    for (size_t i = 0; i < r->now->mounts.count; i++) {
        const struct guard_mount *m = &r->now->mounts.items[i];
        if (concerns(r, m) && !find(&r->start->mounts, m)) {
            guard_fail(r, GUARD_MOUNT_PATH, 0, m->path,
                       "since the start, a %.30s was mounted at %.150s", m->fstype, m->path);
        }
    }
}

static bool same_table(const struct guard_mounts *a, const struct guard_mounts *b)
{
    for (size_t i = 0; i < a->count; i++) {
        const struct guard_mount *o = find(b, &a->items[i]);
        if (!o || o->flags != a->items[i].flags) {
            return false;
        }
    }
    return a->count == b->count;
}

static void check_event(struct guard_run *r)
{
    guard_looked(r, GUARD_MOUNT_EVENT);
    if ((r->flags & GUARD_WOKEN) && r->start) {
        guard_fail(r, GUARD_MOUNT_EVENT, 0, "",
                   same_table(&r->start->mounts, &r->now->mounts)
                       ? "a mount table was touched; ours is as it was at the start"
                       : "our mount table was changed");
    }
}

void guard_check_mounts(struct guard_run *r)
{
    if (!guard_has(r, GUARD_HAS_MOUNTS)) {
        return;
    }
    check_root(r);
    check_each(r);
    check_kernel_files(r);
    if (r->s->role == GUARD_SELF) {
        check_source(r);
        check_own(r);
        check_changes(r);
        check_event(r);
    }
}
