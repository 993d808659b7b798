#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "format/base/log.h"
#include "kvfs/serve/audit.h"
#include "kvfs/serve/leases.h"
#include "kvfs/serve/resident.h"

enum { PIECE = 256 << 20 };

int kvfs_seal_why(const struct kvfs_serve *s, struct ct_err *err)
{
    if (!atomic_load(&s->sealed)) {
        return ct_err_set(err, CT_SEALED, "the mount ends");
    }
    if (err) {
        *err = s->seal_why;
    }
    return -1;
}

/* 0, also when the kernel has no such inode, or no such mount any more. */
static int drop_pages(struct kvfs_serve *s, uint64_t id, uint64_t at, uint64_t len)
{
    int r = fuse_lowlevel_notify_inval_inode(s->session, id, (off_t)at, (off_t)len);
    kvfs_progress(s);
    return r == -ENOENT || r == -ENODEV ? 0 : r;
}

/* The pages that the kernel has of a node. Waits for reads of it that are in flight: not for a FUSE
 * thread. In pieces, so that it can be seen to go on. The errno of one that stays. */
static int invalidate(struct kvfs_serve *s, uint64_t id)
{
    uint64_t size = kvfs_table_size(s->table, id);
    for (uint64_t at = 0; size > PIECE && at < size - PIECE; at += PIECE) {
        (void)drop_pages(s, id, at, PIECE); /* the last one says how it ends */
    }
    int r = drop_pages(s, id, 0, 0);
    return r ? drop_pages(s, id, 0, 0) : 0;
}

/* ---- some files ---- */

struct found {
    struct kvfs_node *node;       /* held */
    struct kvfs_content *content; /* a reference, or NULL */
};

struct search {
    bool (*is)(void *ctx, const struct kvfs_node *node);
    void *ctx;
    const struct ct_err *why;
    struct found *all; /* NULL: only counts */
    size_t count, room;
};

/* The content is revoked while the table is locked: an open that comes later finds it so. */
static void take(void *ctx, struct kvfs_node *node)
{
    struct search *s = ctx;
    if (node->kind != KVFS_NODE_FILE || !s->is(s->ctx, node)) {
        return;
    }
    if (s->all && s->count < s->room) {
        struct found *f = &s->all[s->count];
        pthread_mutex_lock(&node->lock);
        node->held++;
        *f = (struct found){node, node->content ? kvfs_content_ref(node->content) : NULL};
        pthread_mutex_unlock(&node->lock);
        if (f->content) {
            kvfs_content_revoke(f->content, s->why);
        }
    }
    s->count++;
}

/* Every node that is, held. With more of them by the time they are taken, it is tried again. */
static int search(struct kvfs_serve *s, struct search *q)
{
    for (;;) {
        q->count = 0;
        kvfs_table_each(s->table, take, q);
        if (q->count <= q->room) {
            return 0;
        }
        for (size_t i = 0; i < q->room; i++) {
            kvfs_content_unref(q->all[i].content);
            kvfs_table_release(s->table, q->all[i].node);
        }
        q->room = q->count + 64;
        free(q->all);
        q->all = calloc(q->room, sizeof(*q->all));
        if (!q->all) {
            return -1;
        }
    }
}

/* What was given out; then what we have, which may have to wait for the source. */
static void take_back(struct kvfs_serve *s, const struct found *f, const struct ct_err *why)
{
    kvfs_chunks_refuse(s->chunks, f->node, why);
    kvfs_resident_revoke(s, f->node, false);
    int r = invalidate(s, f->node->id);
    if (r) {
        ct_log(CT_LOG_ERROR, "pages of a file can't be taken back: %s", strerror(-r));
    }
}

static void forget(struct kvfs_serve *s, const struct found *f)
{
    kvfs_chunks_wipe(s->chunks, f->node);
    kvfs_resident_revoke(s, f->node, true);
    struct ct_model *m = f->content ? kvfs_content_as_model(f->content) : NULL;
    if (m) {
        ct_model_forget(m);
    }
}

void kvfs_revoke(struct kvfs_serve *s, bool (*is)(void *ctx, const struct kvfs_node *node),
                 void *ctx, const struct ct_err *why)
{
    struct search q = {.is = is, .ctx = ctx, .why = why};
    if (search(s, &q)) {
        kvfs_seal(s, why); /* rather all than none */
        return;
    }
    for (size_t i = 0; i < q.count; i++) {
        take_back(s, &q.all[i], why);
    }
    for (size_t i = 0; i < q.count; i++) {
        forget(s, &q.all[i]);
        kvfs_content_unref(q.all[i].content);
        kvfs_table_release(s->table, q.all[i].node);
    }
    ct_log(CT_LOG_ERROR, "%zu files are revoked: %s", q.count, why->msg);
    free(q.all);
}

/* ---- all of them ---- */

void kvfs_seal(struct kvfs_serve *s, const struct ct_err *why)
{
    if (atomic_flag_test_and_set(&s->sealing)) {
        return;
    }
    s->seal_why = *why;
    atomic_store(&s->sealed, true);
    struct timespec begin;
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    __atomic_store_n(&s->shared->sealed, 1, __ATOMIC_RELAXED);
    if (s->chunks) {
        kvfs_chunks_refuse(s->chunks, NULL, why);
        kvfs_resident_seal(s);
    }
    /* The flag is set and nothing is parked: no page comes back behind an invalidation. */
    uint64_t highest = __atomic_load_n(&s->shared->highest_node, __ATOMIC_RELAXED);
    int left = 0;
    for (uint64_t id = 1; s->session && id <= highest; id++) {
        int r = invalidate(s, id);
        left = r ? r : left;
    }
    if (s->chunks) {
        kvfs_chunks_wipe(s->chunks, NULL);
    }
    kvfs_leases_part(s->leases, why); /* signs with what is wiped then, sends nothing */
    ct_secret_wipe_all();
    kvfs_audit_event_everywhere(s, "seal", kvfs_audit_why(why));
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (left) { /* never said to be sealed: the supervisor does it from outside */
        ct_log(CT_LOG_ERROR, "pages can't be taken back: %s", strerror(-left));
        _exit(1);
    }
    atomic_store(&s->taken, true);
    __atomic_store_n(&s->shared->sealed, 2, __ATOMIC_RELAXED);
    (void)kvfs_source_sealed(s, why->msg);
    ct_log(CT_LOG_ERROR, "sealed: %s (%lld ms)", why->msg,
           (long long)(end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
}
