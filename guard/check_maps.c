#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Code in memory that has no file: memfd, System V and POSIX shared memory, /dev/zero. */
static bool is_memory(const struct guard_map *m)
{
    return begins(m->path, "/memfd:") || begins(m->path, "/SYSV") || begins(m->path, "/dev/zero") ||
           begins(m->path, "/dev/shm/") || begins(m->path, "/[aio]");
}

static bool is_kernels(const struct guard_map *m)
{
    return m->path[0] == '[' && strcmp(m->path, "[heap]") != 0 && !begins(m->path, "[stack") &&
           !begins(m->path, "[anon");
}

static void check_file(struct guard_run *r, const struct guard_map *m)
{
    if (m->deleted) {
        guard_fail(r, GUARD_MAPPED_DELETED, 0, m->path, "code of a deleted file is mapped: %.120s",
                   m->path);
        return;
    }
    const struct guard_mount *on =
        guard_has(r, GUARD_HAS_MOUNTS) ? guard_mount_of(&r->now->mounts, m->path) : NULL;
    if (on && !(on->flags & GUARD_M_RO)) {
        guard_fail(r, GUARD_MAPPED_WRITABLE, 0, m->path,
                   "code is mapped from a writable mount: %.120s", m->path);
    }
}

static bool looked_at(const struct guard_maps *maps, size_t i)
{
    return i > 0 && maps->items[i].ino == maps->items[i - 1].ino &&
           strcmp(maps->items[i].path, maps->items[i - 1].path) == 0;
}

static void check_kinds(struct guard_run *r)
{
    static const enum guard_id all[] = {GUARD_MAPPED_WRITABLE, GUARD_MAPPED_MEMORY,
                                        GUARD_MAPPED_DELETED, GUARD_MAPPED_RWX};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        guard_looked(r, all[i]);
    }
    for (size_t i = 0; i < r->now->maps.count; i++) {
        const struct guard_map *m = &r->now->maps.items[i];
        if (is_kernels(m)) {
            continue;
        }
        if (m->flags & GUARD_MAP_W) {
            guard_fail(r, GUARD_MAPPED_RWX, 0, m->path,
                       "memory can be written and executed at once: %.120s",
                       *m->path ? m->path : "anonymous");
        } else if (m->path[0] != '/') {
            guard_fail(r, GUARD_MAPPED_RWX, 0, "anonymous", "there is code in anonymous memory");
        }
        if (is_memory(m)) {
            guard_fail(r, GUARD_MAPPED_MEMORY, 0, m->path, "code in memory without a file: %.120s",
                       m->path);
        } else if (m->path[0] == '/' && !looked_at(&r->now->maps, i)) {
            check_file(r, m);
        }
    }
}

/* ---- Files of code, own ones only ---- */

static int stat_code(int root_fd, const char *path, struct guard_file_id *id)
{
    struct stat st;
    if (fstatat(root_fd, path + 1, &st, 0)) {
        return -1;
    }
    guard_file_id_of(&st, id);
    return 0;
}

int guard_code_take(struct guard_subject *s, struct ct_err *err)
{
    const struct guard_maps *maps = &s->start.maps;
    ct_autofd root = openat(s->proc_fd, "root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    s->code = calloc(maps->count + 1, sizeof(*s->code));
    if (!s->code) {
        return ct_err_set(err, CT_NOMEM, "no memory for a list of code");
    }
    for (size_t i = 0; i < maps->count; i++) {
        struct guard_code *c = &s->code[s->code_count];
        if (maps->items[i].path[0] != '/' || looked_at(maps, i) || maps->items[i].deleted) {
            continue;
        }
        if (!(c->path = strdup(maps->items[i].path))) {
            return ct_err_set(err, CT_NOMEM, "no memory for a list of code");
        }
        s->code_count++;
        if (root < 0 || stat_code(root, c->path, &c->id)) {
            c->id.ino = 0;
        }
    }
    return 0;
}

/* A hard link more or less changes ctime too (package managers keep one for a moment). */
static bool was_changed(const struct guard_file_id *was, const struct guard_file_id *is)
{
    return was->size != is->size || was->mtime_ns != is->mtime_ns ||
           (was->ctime_ns != is->ctime_ns && was->nlink == is->nlink);
}

static void check_changed(struct guard_run *r)
{
    if (r->proc_root_fd < 0) {
        return;
    }
    guard_looked(r, GUARD_MAPPED_CHANGED);
    for (size_t i = 0; i < r->s->code_count; i++) {
        const struct guard_code *c = &r->s->code[i];
        struct guard_file_id id;
        if (c->id.ino && stat_code(r->proc_root_fd, c->path, &id) == 0 && id.ino == c->id.ino &&
            id.dev == c->id.dev && was_changed(&c->id, &id)) {
            guard_fail(r, GUARD_MAPPED_CHANGED, 0, c->path,
                       "the file of mapped code was changed: %.120s", c->path);
        }
    }
}

static void check_new(struct guard_run *r)
{
    guard_looked(r, GUARD_MAPPED_NEW);
    for (size_t i = 0; i < r->now->maps.count; i++) {
        const struct guard_map *m = &r->now->maps.items[i];
        bool found = m->path[0] != '/' || looked_at(&r->now->maps, i);
        for (size_t k = 0; k < r->start->maps.count && !found; k++) {
            const struct guard_map *o = &r->start->maps.items[k];
            found = o->ino == m->ino && strcmp(o->path, m->path) == 0;
        }
        if (!found) {
            guard_fail(r, GUARD_MAPPED_NEW, 0, m->path, "code was mapped after the start: %.120s",
                       m->path);
        }
    }
}

/* ---- Pages of code ---- */

/* Bits of /proc/PID/pagemap: a page of a private mapping that is no longer the file's was written
 * to (a breakpoint, a patch, a uprobe). */
static const uint64_t page_present = UINT64_C(1) << 63;
static const uint64_t page_swapped = UINT64_C(1) << 62;
static const uint64_t page_of_file = UINT64_C(1) << 61;

enum { ENTRIES = 1024 };

/* The number of altered pages, or -1. */
static long altered_pages(int fd, const struct guard_map *m, uint64_t page)
{
    uint64_t entries[ENTRIES];
    long found = 0;
    for (uint64_t at = m->start / page, end = m->end / page; at < end;) {
        uint64_t want = end - at < ENTRIES ? end - at : ENTRIES;
        ssize_t n = pread(fd, entries, want * sizeof(entries[0]), (off_t)(at * sizeof(entries[0])));
        if (n < (ssize_t)sizeof(entries[0])) {
            return -1;
        }
        size_t got = (size_t)n / sizeof(entries[0]);
        for (size_t i = 0; i < got; i++) {
            found += (entries[i] & (page_present | page_swapped)) && !(entries[i] & page_of_file);
        }
        at += got;
    }
    return found;
}

static void check_text(struct guard_run *r)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    if (r->s->pagemap_fd < 0) {
        guard_unseen(r, GUARD_TEXT_ALTERED);
        return;
    }
    guard_looked(r, GUARD_TEXT_ALTERED);
    for (size_t i = 0; i < r->now->maps.count; i++) {
        const struct guard_map *m = &r->now->maps.items[i];
        if (m->path[0] != '/' || (m->flags & GUARD_MAP_SHARED)) {
            continue;
        }
        long found = altered_pages(r->s->pagemap_fd, m, page);
        if (found) {
            guard_fail(r, GUARD_TEXT_ALTERED, 0, m->path,
                       found < 0 ? "pages of code can't be looked at: %.120s"
                                 : "code was altered in memory: %.120s",
                       m->path);
        }
    }
}

void guard_check_maps(struct guard_run *r)
{
    if (!guard_has(r, GUARD_HAS_MAPS)) {
        return;
    }
    check_kinds(r);
    if (r->s->role == GUARD_STRANGER) {
        return;
    }
    check_text(r);
    if (r->start && (r->start->has & GUARD_HAS_MAPS)) {
        check_new(r);
        if (r->s->role == GUARD_SELF || (r->flags & GUARD_FULL)) {
            check_changed(r);
        }
    }
}
