#include "kvfs/serve/chunks.h"

#include <stdlib.h>
#include <string.h>

#include "format/base/secret.h"
#include "kvfs/serve/chunks_parts.h"
#include "kvfs/serve/damage.h"
#include "kvfs/serve/edges.h"
#include "kvfs/serve/resident.h"

/*
 * A read takes one of three ways. All bytes ready: the FUSE thread replies from their slots. One
 * extent, not ready: a job; while another thread fills that extent the job waits in the slot's
 * list, and the filler puts it back in front of the queue. Several extents: a job that copies them
 * one by one into its thread's assembly buffer.
 *
 * No deadlock with few slots: a thread holds at most one slot. A filler never waits for anything
 * but the source; whoever waits for a slot, or for another's filling, holds none. What the filler
 * itself has to answer is parked in the slot as well: takeback.c answers it in his place, since a
 * source may hang.
 */

enum { SHARED = 4096 }; /* bytes: a page, which two extents may have in common */

/* ---- jobs ---- */

static void job_free(struct kvfs_job *j)
{
    kvfs_content_unref(j->content);
    free(j);
}

static void job_fail(struct kvfs_chunks *c, struct kvfs_job *j, const struct ct_err *err)
{
    kvfs_reply_error(c->serve, j->req, j->node, err);
    job_free(j);
}

void kvfs_jobs_fail(struct kvfs_chunks *c, struct kvfs_job *list, const struct ct_err *err)
{
    while (list) {
        struct kvfs_job *next = list->next;
        job_fail(c, list, err);
        list = next;
    }
}

/* With the lock held. */
static void push_back(struct kvfs_chunks *c, struct kvfs_job *j)
{
    j->next = NULL;
    *c->last = j;
    c->last = &j->next;
}

static void push_front(struct kvfs_chunks *c, struct kvfs_job *list)
{
    while (list) {
        struct kvfs_job *next = list->next;
        list->next = c->first;
        c->first = list;
        if (!list->next) {
            c->last = &list->next;
        }
        list = next;
    }
    pthread_cond_broadcast(&c->work);
}

/* ---- filling ---- */

static void note_stale(struct kvfs_node *node)
{
    pthread_mutex_lock(&node->lock);
    node->stale = true;
    pthread_mutex_unlock(&node->lock);
}

int kvfs_slot_fill(struct kvfs_chunks *c, struct kvfs_slot *slot, struct kvfs_node *node,
                   struct kvfs_content *content, uint32_t extent, struct kvfs_job **own,
                   struct ct_err *err)
{
    struct ct_damages damages = {0};
    slot->state = KVFS_SLOT_FILLING;
    slot->node = node->id;
    slot->extent = extent;
    kvfs_slot_begin(slot);
    slot->own = own ? *own : NULL;
    slot->stored = kvfs_content_was_given(content, extent);
    kvfs_content_extent(content, extent, &slot->begin, &slot->len);
    kvfs_content_ref(content); /* the job may be gone with its own */
    c->filling++;
    pthread_mutex_unlock(&c->lock);

    int r = kvfs_content_read(content, extent, slot->buf, &damages, err);
    if (r == 0 && damages.count && !atomic_load(&c->serve->sealed)) {
        r = kvfs_damage_remember(node, &damages, err);
    }
    if (r && err->code == CT_STALE) {
        note_stale(node);
    }
    ct_damages_free(&damages);
    kvfs_count(&c->stats.bytes_decrypted, r ? 0 : slot->len);
    kvfs_count(&node->stats.extents_decrypted, 1);
    kvfs_content_unref(content);

    pthread_mutex_lock(&c->lock);
    c->filling--;
    if (own) {
        *own = slot->own;
    }
    slot->own = NULL;
    if (c->sealed) {
        ct_wipe(slot->buf, slot->len);
        r = kvfs_seal_why(c->serve, err);
    }
    slot->state = r ? KVFS_SLOT_FREE : KVFS_SLOT_READY;
    slot->pins += r ? 0 : 1;
    struct kvfs_job *waiters = slot->waiters;
    slot->waiters = NULL;
    if (r && waiters) {
        /* What failed for one would fail for them as well. */
        pthread_mutex_unlock(&c->lock);
        kvfs_jobs_fail(c, waiters, err);
        pthread_mutex_lock(&c->lock);
    } else {
        push_front(c, waiters);
    }
    pthread_cond_broadcast(&c->changed);
    return r;
}

void kvfs_slot_unpin(struct kvfs_chunks *c, struct kvfs_slot *slot)
{
    slot->pins--;
    pthread_cond_broadcast(&c->changed);
}

/* What was given out is asked for again, and more of it than the page that it shares with its
 * neighbour: the page cache has been emptied. */
static void note_emptied(const struct kvfs_job *j, uint32_t extent)
{
    uint64_t begin = 0;
    uint32_t len = 0;
    kvfs_content_extent(j->content, extent, &begin, &len);
    uint64_t from = j->offset > begin ? j->offset : begin;
    uint64_t to = j->offset + j->size < begin + len ? j->offset + j->size : begin + len;
    if (to - from >= SHARED && kvfs_content_was_given(j->content, extent)) {
        kvfs_content_forget_given(j->content);
    }
}

static struct kvfs_slot *fill_own(struct kvfs_chunks *c, struct kvfs_slot *slot, struct kvfs_job *j,
                                  uint32_t extent, int *r, struct ct_err *err)
{
    *r = kvfs_slot_fill(c, slot, j->node, j->content, extent, &j, err);
    if (!j) {
        if (*r == 0) {
            kvfs_slot_unpin(c, slot);
        }
        *r = 0;
        return NULL;
    }
    return *r ? NULL : slot;
}

/* The slot of an extent, ready and pinned. With the lock held, which is given up while waiting.
 * With `park`, a job that would wait for another's filling is left in that slot's list: then NULL
 * and 0, and so if somebody else has answered it. NULL and -1 on failure. */
static struct kvfs_slot *want(struct kvfs_chunks *c, struct kvfs_job *j, uint32_t extent, bool park,
                              int *r, struct ct_err *err)
{
    for (;;) {
        bool unread = false;
        *r = c->sealed ? kvfs_seal_why(c->serve, err) : kvfs_content_revoked(j->content, err);
        if (*r) {
            return NULL;
        }
        struct kvfs_slot *slot = kvfs_slots_find(&c->slots, j->node->id, extent);
        if (slot && slot->state == KVFS_SLOT_READY) {
            slot->pins++;
            kvfs_count(&c->stats.hits, 1);
            return slot;
        }
        if (slot && park) {
            kvfs_count(&c->stats.waits, 1);
            j->next = slot->waiters;
            slot->waiters = j;
            return NULL;
        }
        if (!slot && (slot = kvfs_slots_take(&c->slots, j->node->id, false, &unread))) {
            kvfs_count(&c->stats.misses, 1);
            kvfs_wish_cancel(c, j->node, extent);
            note_emptied(j, extent);
            kvfs_count(&c->stats.evicted_unread, unread);
            return fill_own(c, slot, j, extent, r, err);
        }
        pthread_cond_wait(&c->changed, &c->lock);
    }
}

/* ---- answering ---- */

static void store_rest(struct kvfs_chunks *c, struct kvfs_job *j, struct kvfs_slot *slot)
{
    if (kvfs_store_is_wanted(slot, j->size, j->random)) {
        kvfs_store_ask(c, slot, j->node, j->content, j->offset, j->size);
    }
}

static void reply_from(struct kvfs_chunks *c, const struct kvfs_job *j,
                       const struct kvfs_slot *slot)
{
    struct iovec iov = {slot->buf + (j->offset - slot->begin), j->size};
    kvfs_reply_data(c->serve, j->req, j->content, &iov, 1);
}

/* The extent that the whole request lies in, -1 if it spans several (or the head). */
static int64_t single_extent(const struct kvfs_content *content, uint64_t offset, uint32_t size)
{
    size_t head = 0;
    uint64_t begin = 0;
    uint32_t len = 0;
    (void)kvfs_content_head(content, &head);
    if (offset < head) {
        return -1;
    }
    uint32_t extent = kvfs_content_extent_at(content, offset);
    kvfs_content_extent(content, extent, &begin, &len);
    return offset + size <= begin + len ? (int64_t)extent : -1;
}

static void answer_single(struct kvfs_chunks *c, struct kvfs_job *j, uint32_t extent)
{
    struct ct_err err = CT_ERR_INIT;
    int r = 0;
    pthread_mutex_lock(&c->lock);
    struct kvfs_slot *slot = want(c, j, extent, true, &r, &err);
    if (!slot) {
        pthread_mutex_unlock(&c->lock);
        if (r) {
            job_fail(c, j, &err);
        }
        return;
    }
    store_rest(c, j, slot);
    kvfs_slot_give(c, j->content, slot, j->offset, j->size);
    pthread_mutex_unlock(&c->lock);
    if (kvfs_damage_check(j->node, j->offset, j->offset + j->size, &err)) {
        kvfs_reply_error(c->serve, j->req, j->node, &err);
    } else {
        reply_from(c, j, slot);
    }
    job_free(j);
    pthread_mutex_lock(&c->lock);
    kvfs_slot_unpin(c, slot);
    pthread_mutex_unlock(&c->lock);
}

/* Copies [at, end) of the body that lies in one extent to `to`; how many bytes, 0 if somebody else
 * has answered the job, or -1. */
static ssize_t copy_extent(struct kvfs_chunks *c, struct kvfs_job *j, uint64_t at, uint64_t end,
                           uint8_t *to, struct ct_err *err)
{
    int r = 0;
    uint64_t begin = 0;
    uint32_t len = 0;
    uint32_t extent = kvfs_content_extent_at(j->content, at);
    kvfs_content_extent(j->content, extent, &begin, &len);
    uint64_t stop = begin + len < end ? begin + len : end;
    pthread_mutex_lock(&c->lock);
    if (!c->sealed && kvfs_edges_copy(&c->slots.edges, j->node->id, extent, at, stop, to)) {
        kvfs_count(&c->stats.hits, 1);
        pthread_mutex_unlock(&c->lock);
        return (ssize_t)(stop - at);
    }
    struct kvfs_slot *slot = want(c, j, extent, false, &r, err);
    if (!slot) {
        pthread_mutex_unlock(&c->lock);
        return r;
    }
    store_rest(c, j, slot);
    kvfs_slot_give(c, j->content, slot, at, (uint32_t)(stop - at));
    pthread_mutex_unlock(&c->lock);
    memcpy(to, slot->buf + (at - slot->begin), stop - at);
    pthread_mutex_lock(&c->lock);
    kvfs_slot_unpin(c, slot);
    pthread_mutex_unlock(&c->lock);
    return (ssize_t)(stop - at);
}

static void answer_several(struct kvfs_chunks *c, struct kvfs_job *j, uint8_t *assembly)
{
    struct ct_err err = CT_ERR_INIT;
    size_t head_len = 0;
    const uint8_t *head = kvfs_content_head(j->content, &head_len);
    uint64_t end = j->offset + j->size;
    uint64_t at = j->offset;
    if (at < head_len) {
        size_t n = head_len - at < j->size ? head_len - at : j->size;
        memcpy(assembly, head + at, n);
        at += n;
    }
    while (at < end) {
        ssize_t n = copy_extent(c, j, at, end, assembly + (at - j->offset), &err);
        if (n < 0) {
            job_fail(c, j, &err);
        }
        if (n <= 0) {
            return;
        }
        at += (uint64_t)n;
    }
    if (kvfs_damage_check(j->node, j->offset, end, &err)) {
        job_fail(c, j, &err);
        return;
    }
    struct iovec iov = {assembly, j->size};
    kvfs_reply_data(c->serve, j->req, j->content, &iov, 1);
    job_free(j);
}

static void answer(struct kvfs_chunks *c, struct kvfs_job *j, uint8_t *assembly)
{
    struct ct_err err = CT_ERR_INIT;
    /* A chunk that is known to be damaged is not decrypted again. */
    if (kvfs_damage_check(j->node, j->offset, j->offset + j->size, &err)) {
        job_fail(c, j, &err);
        return;
    }
    int64_t extent = single_extent(j->content, j->offset, j->size);
    if (extent >= 0) {
        answer_single(c, j, (uint32_t)extent);
    } else {
        answer_several(c, j, assembly);
    }
}

/* ---- threads ---- */

static bool may_populate(struct kvfs_chunks *c)
{
    return !c->sealed && kvfs_resident_pending(c->serve);
}

static void work(void *arg, unsigned number)
{
    struct kvfs_chunks *c = arg;
    uint8_t *assembly = c->slots.assembly + (size_t)number * KVFS_ASSEMBLY;
    unsigned revocations = 0;
    bool owes = false; /* a step: reads and wishes that never end must not keep an open waiting */
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->first && !c->wish_count && !c->stopping && revocations == c->revocations &&
               !may_populate(c)) {
            pthread_cond_wait(&c->work, &c->lock);
        }
        if (c->stopping) {
            break;
        }
        if (revocations != c->revocations) {
            revocations = c->revocations;
            ct_wipe(assembly, KVFS_ASSEMBLY);
            continue;
        }
        c->busy++;
        bool step = owes && may_populate(c);
        struct kvfs_job *j = step ? NULL : c->first;
        owes = j || (!step && c->wish_count);
        if (j) {
            c->first = j->next;
            if (!c->first) {
                c->last = &c->first;
            }
            pthread_mutex_unlock(&c->lock);
            answer(c, j, assembly);
            pthread_mutex_lock(&c->lock);
        } else if (!step && c->wish_count) {
            kvfs_wish_grant(c);
        } else {
            c->filling++;
            pthread_mutex_unlock(&c->lock);
            kvfs_resident_step(c->serve);
            pthread_mutex_lock(&c->lock);
            c->filling--;
        }
        c->busy--;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
}

void kvfs_chunks_read(struct kvfs_chunks *c, fuse_req_t req, struct kvfs_node *node,
                      struct kvfs_content *content, uint64_t offset, size_t size, bool direct)
{
    uint64_t all = kvfs_content_size(content);
    size_t head_len = 0;
    const uint8_t *head = kvfs_content_head(content, &head_len);
    size = offset >= all ? 0 : all - offset < size ? (size_t)(all - offset) : size;
    kvfs_count(&node->stats.reads, 1);
    kvfs_count(&node->stats.bytes_read, size);
    if (offset + size <= head_len || size == 0) {
        struct iovec iov = {size ? (void *)(head + offset) : NULL, size};
        kvfs_reply_data(c->serve, req, content, &iov, 1);
        return;
    }
    struct ct_err err = CT_ERR_INIT;
    /* At once, whatever the threads may be waiting for. */
    if (kvfs_content_revoked(content, &err)) {
        kvfs_reply_error(c->serve, req, node, &err);
        return;
    }
    struct kvfs_job *j = size <= KVFS_ASSEMBLY ? malloc(sizeof(*j)) : NULL;
    if (!j) {
        ct_err_set(&err, CT_NOMEM, "no memory for a read of %zu bytes", size);
        kvfs_reply_error(c->serve, req, node, &err);
        return;
    }
    bool random = !kvfs_look_ahead(c, node, content, offset, (uint32_t)size) && !direct;
    if (kvfs_reply_at_once(c, req, node, content, offset, (uint32_t)size)) {
        free(j);
        return;
    }
    *j = (struct kvfs_job){NULL,           req,   node, kvfs_content_ref(content), offset,
                           (uint32_t)size, random};
    kvfs_count(&c->stats.parked, 1);
    pthread_mutex_lock(&c->lock);
    bool refused = c->sealed || c->stopping;
    if (!refused) {
        push_back(c, j);
        pthread_cond_signal(&c->work);
    }
    pthread_mutex_unlock(&c->lock);
    if (refused) {
        (void)kvfs_seal_why(c->serve, &err);
        job_fail(c, j, &err);
    }
}

/* ---- life ---- */

enum { RUNNERS = 2 };

struct kvfs_fetch *kvfs_chunks_fetch(struct kvfs_chunks *c)
{
    return c->fetch;
}

struct kvfs_chunks *kvfs_chunks_start(struct kvfs_serve *serve, uint64_t memory, unsigned threads,
                                      struct ct_err *err)
{
    pthread_condattr_t monotonic;
    struct kvfs_chunks *c = calloc(1, sizeof(*c));
    if (!c) {
        ct_err_set(err, CT_NOMEM, "no memory for the cache");
        return NULL;
    }
    c->serve = serve;
    c->threads = kvfs_slots_threads(memory, threads);
    c->last = &c->first;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->work, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&c->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&c->storing, NULL);
    if (kvfs_slots_make(&c->slots, memory, c->threads, err) ||
        !(c->pool = kvfs_pool_start(c->threads, RUNNERS, work, c, err))) {
        kvfs_slots_free(&c->slots);
        free(c);
        return NULL;
    }
    c->fetch = kvfs_fetch_start(memory, err);
    int e = c->fetch ? pthread_create(&c->storer, NULL, kvfs_store_run, c) : 0;
    if (!c->fetch || (e && ct_err_sys(err, e, "a thread"))) {
        return NULL; /* and the process ends */
    }
    return c;
}

void kvfs_chunks_run(struct kvfs_chunks *c, void (*fn)(void *), void *arg)
{
    kvfs_pool_run(c->pool, fn, arg);
}

void kvfs_chunks_wake(struct kvfs_chunks *c)
{
    pthread_mutex_lock(&c->lock);
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->lock);
}

void kvfs_chunks_decrypted(struct kvfs_chunks *c, struct kvfs_node *node, uint64_t bytes)
{
    kvfs_count(&c->stats.bytes_decrypted, bytes);
    kvfs_count(&node->stats.extents_decrypted, 1);
}

void kvfs_chunks_stop(struct kvfs_chunks *c)
{
    pthread_mutex_lock(&c->lock);
    c->stopping = true;
    kvfs_wishes_drop(c, NULL);
    struct kvfs_job *queued = c->first;
    c->first = NULL;
    c->last = &c->first;
    pthread_cond_broadcast(&c->work);
    pthread_cond_broadcast(&c->storing);
    pthread_mutex_unlock(&c->lock);
    struct ct_err err = CT_ERR_INIT;
    ct_err_set(&err, CT_IO, "unmounted");
    kvfs_jobs_fail(c, queued, &err);
    (void)pthread_join(c->storer, NULL);
    kvfs_pool_stop(c->pool);
    kvfs_fetch_stop(c->fetch); /* the pool asked it */
    kvfs_stores_drop(c, NULL);
    kvfs_slots_free(&c->slots);
    pthread_cond_destroy(&c->storing);
    pthread_cond_destroy(&c->work);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void kvfs_chunks_stats(struct kvfs_chunks *c, struct kvfs_chunks_stats *out)
{
    pthread_mutex_lock(&c->lock);
    const uint64_t *from = (const uint64_t *)&c->stats;
    uint64_t *to = (uint64_t *)out;
    for (size_t i = 0; i < sizeof(*out) / sizeof(uint64_t); i++) {
        to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    }
    out->slots = c->slots.count;
    out->slots_used = 0;
    for (unsigned i = 0; i < c->slots.count; i++) {
        out->slots_used += c->slots.slots[i].state != KVFS_SLOT_FREE;
    }
    pthread_mutex_unlock(&c->lock);
}
