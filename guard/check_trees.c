#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "format/base/file.h"
#include "guard/state.h"

static int marks_of(const char *path, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    ct_autofd fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return ct_err_sys(err, errno, "%s", path);
    }
    return guard_tree_marks(fd, out, err);
}

int guard_trees_take(struct guard *g, struct ct_err *err)
{
    for (size_t i = 0; i < g->profile->count; i++) {
        const struct guard_declared *d = &g->profile->declared[i];
        if (d->kind != GUARD_TREE) {
            continue;
        }
        struct guard_watched_tree *t = &g->trees[g->tree_count];
        if (g->tree_count == GUARD_TREES_MAX) {
            return ct_err_set(err, CT_USAGE, "the profile names more than %d trees",
                              GUARD_TREES_MAX);
        }
        if (marks_of(d->path, t->marks, err)) {
            return ct_err_wrap(err, "tree");
        }
        if (d->marked && memcmp(t->marks, d->marks, sizeof(t->marks)) != 0) {
            return ct_err_set(err, CT_STALE, "tree %s was changed after it was measured", d->path);
        }
        t->path = d->path;
        g->tree_count++;
    }
    return 0;
}

void guard_check_trees(struct guard_run *r)
{
    for (size_t i = 0; (r->flags & GUARD_FULL) && i < r->g->tree_count; i++) {
        const struct guard_watched_tree *t = &r->g->trees[i];
        uint8_t marks[CT_SHA256_LEN];
        struct ct_err why = CT_ERR_INIT;
        guard_looked(r, GUARD_TREE_CHANGED);
        if (marks_of(t->path, marks, &why)) {
            guard_fail(r, GUARD_TREE_CHANGED, 0, t->path, "a tree can't be looked at: %.150s",
                       why.msg);
        } else if (memcmp(marks, t->marks, sizeof(marks)) != 0) {
            guard_fail(r, GUARD_TREE_CHANGED, 0, t->path, "%.150s was changed since the start",
                       t->path);
        }
    }
}

/* ---- Digests that are known ---- */

static bool is_fuse(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) || (unsigned long)fs.f_type == FUSE_SUPER_MAGIC;
}

int guard_known_file_digest(struct guard *g, int fd, uint8_t out[static CT_SHA256_LEN],
                            struct ct_err *err)
{
    struct stat st;
    struct guard_file_id before;
    struct guard_file_id after;
    if (fstat(fd, &st)) {
        return ct_err_sys(err, errno, "stat");
    }
    guard_file_id_of(&st, &before);
    for (size_t i = 0; i < g->digest_count; i++) {
        if (guard_file_id_same(&g->digests[i].id, &before)) {
            memcpy(out, g->digests[i].digest, CT_SHA256_LEN);
            return 0;
        }
    }
    if (guard_file_digest(fd, out, err) || fstat(fd, &st)) {
        return err && err->code ? -1 : ct_err_sys(err, errno, "stat");
    }
    guard_file_id_of(&st, &after);
    if (!guard_file_id_same(&before, &after)) {
        return ct_err_set(err, CT_STALE, "the file changed while it was read");
    }
    if (is_fuse(fd)) {
        return 0; /* what it says of a file is whatever its daemon likes */
    }
    struct guard_known_digest *k = &g->digests[g->digest_next];
    *k = (struct guard_known_digest){.id = before};
    memcpy(k->digest, out, CT_SHA256_LEN);
    g->digest_next = (g->digest_next + 1) % GUARD_DIGESTS_MAX;
    g->digest_count += g->digest_count < GUARD_DIGESTS_MAX;
    return 0;
}

static struct guard_known_tree *known_tree(struct guard *g, const struct stat *st, uint64_t mnt_ns)
{
    for (size_t i = 0; i < g->known_tree_count; i++) {
        struct guard_known_tree *k = &g->known_trees[i];
        if (k->dev == st->st_dev && k->ino == st->st_ino && k->mnt_ns == mnt_ns) {
            return k;
        }
    }
    if (g->known_tree_count < GUARD_TREES_MAX) {
        g->known_tree_count++;
    }
    struct guard_known_tree *k = &g->known_trees[g->known_tree_count - 1];
    *k = (struct guard_known_tree){.dev = st->st_dev, .ino = st->st_ino, .mnt_ns = mnt_ns};
    return k;
}

/* Marks are good for a period: comparing them costs a stat() a file. */
int guard_known_tree_digest(struct guard *g, int dirfd, uint64_t mnt_ns,
                            uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    struct stat st;
    uint8_t marks[CT_SHA256_LEN];
    if (fstat(dirfd, &st)) {
        return ct_err_sys(err, errno, "stat");
    }
    struct guard_known_tree *k = known_tree(g, &st, mnt_ns);
    int64_t now = guard_now_ns();
    if (!k->looked_ns || now - k->looked_ns > (int64_t)g->profile->period_ms * 1000000) {
        if (guard_tree_marks(dirfd, marks, err)) {
            return -1;
        }
        if (!k->looked_ns || memcmp(marks, k->marks, sizeof(marks)) != 0) {
            k->looked_ns = 0;
            if (guard_tree_measure(dirfd, k->digest, k->marks, err)) {
                return -1;
            }
        }
        k->looked_ns = now;
    }
    memcpy(out, k->digest, CT_SHA256_LEN);
    return 0;
}
