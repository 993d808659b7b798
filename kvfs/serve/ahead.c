#include "kvfs/serve/chunks_parts.h"

#define NO_EXTENT UINT32_MAX /* of a wish that was fulfilled otherwise */

static void wish_for(struct kvfs_chunks *c, struct kvfs_node *node, struct kvfs_content *content,
                     uint32_t extent)
{
    if (c->sealed || c->wish_count == KVFS_WISHES || kvfs_slots_find(&c->slots, node->id, extent)) {
        return;
    }
    for (unsigned i = 0; i < c->wish_count; i++) {
        const struct wish *w = &c->wishes[(c->wish_first + i) % KVFS_WISHES];
        if (w->node == node && w->extent == extent) {
            return;
        }
    }
    c->wishes[(c->wish_first + c->wish_count++) % KVFS_WISHES] =
        (struct wish){node, kvfs_content_ref(content), extent};
    pthread_cond_signal(&c->work);
}

/* How many extents to ask for, from *first: what has come into the window since the last time. A
 * source that is asked for too much at a time may leave some of it out (FUSE does). With the node's
 * lock held. */
static uint32_t source_window(const struct kvfs_chunks *c, struct kvfs_cursor *stream, uint32_t now,
                              uint32_t all, uint32_t *first)
{
    uint32_t window = kvfs_fetch_window(c->fetch);
    uint32_t end = all - now < window ? all : now + window;
    if (stream->asked < now + 1) {
        stream->asked = now + 1;
    }
    uint32_t count = end > stream->asked ? end - stream->asked : 0;
    *first = stream->asked;
    stream->asked += count;
    return count;
}

/* A single read takes its extents one by one, and authenticates a long message alone, unless
 * others help. */
static void wish_for_rest(struct kvfs_chunks *c, struct kvfs_node *node,
                          struct kvfs_content *content, uint64_t offset, uint32_t size)
{
    size_t head = 0;
    (void)kvfs_content_head(content, &head);
    uint32_t first = kvfs_content_extent_at(content, offset < head ? head : offset);
    uint32_t last = kvfs_content_extent_at(content, offset + size - 1);
    uint32_t pending = kvfs_content_pending(content, first);
    last = pending > last - first ? first + pending : last;
    if (last > first) {
        pthread_mutex_lock(&c->lock);
        for (uint32_t i = first + 1; i <= last && i <= first + c->threads; i++) {
            if (pending || !kvfs_content_was_given(content, i)) {
                wish_for(c, node, content, i);
            }
        }
        pthread_mutex_unlock(&c->lock);
    }
}

bool kvfs_look_ahead(struct kvfs_chunks *c, struct kvfs_node *node, struct kvfs_content *content,
                     uint64_t offset, uint32_t size)
{
    size_t head = 0;
    (void)kvfs_content_head(content, &head);
    uint32_t now = 0;
    uint32_t all = kvfs_content_extents(content);
    uint32_t first = 0;
    uint32_t count = 0;
    pthread_mutex_lock(&node->lock);
    struct kvfs_cursor *stream = kvfs_streams_note(&node->streams, offset, size);
    bool goes_on = stream && stream->next > head;
    if (goes_on) {
        /* Where the stream is, not this request: several threads take requests from the kernel, and
         * what lies behind has been given out and may be forgotten by now. */
        now = kvfs_content_extent_at(content, stream->next - 1);
        count = source_window(c, stream, now, all, &first);
    }
    pthread_mutex_unlock(&node->lock);
    if (count) {
        kvfs_fetch_ask(c->fetch, content, first, count);
    }
    if (!goes_on) {
        wish_for_rest(c, node, content, offset, size);
        return false;
    }
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 1; i <= c->threads && now + i < all; i++) {
        if (!kvfs_content_was_given(content, now + i)) {
            wish_for(c, node, content, now + i);
        }
    }
    pthread_mutex_unlock(&c->lock);
    return true;
}

void kvfs_wish_cancel(struct kvfs_chunks *c, const struct kvfs_node *node, uint32_t extent)
{
    for (unsigned i = 0; i < c->wish_count; i++) {
        struct wish *w = &c->wishes[(c->wish_first + i) % KVFS_WISHES];
        if (w->node == node && w->extent == extent) {
            w->extent = NO_EXTENT;
            return;
        }
    }
}

void kvfs_wish_grant(struct kvfs_chunks *c)
{
    struct wish w = c->wishes[c->wish_first];
    bool unread = false;
    c->wish_first = (c->wish_first + 1) % KVFS_WISHES;
    c->wish_count--;
    struct kvfs_slot *slot = kvfs_slots_find(&c->slots, w.node->id, w.extent);
    if (w.extent != NO_EXTENT && !slot &&
        (slot = kvfs_slots_take(&c->slots, w.node->id, true, &unread))) {
        struct ct_err err = CT_ERR_INIT;
        kvfs_count(&c->stats.evicted_unread, unread);
        kvfs_count(&c->stats.prefetched, 1);
        if (kvfs_slot_fill(c, slot, w.node, w.content, w.extent, NULL, &err) == 0) {
            kvfs_slot_unpin(c, slot);
        }
    }
    pthread_mutex_unlock(&c->lock);
    kvfs_content_unref(w.content);
    pthread_mutex_lock(&c->lock);
}

void kvfs_wishes_drop(struct kvfs_chunks *c, const struct kvfs_node *node)
{
    for (unsigned i = c->wish_count; i > 0; i--) {
        struct wish w = c->wishes[c->wish_first];
        c->wish_first = (c->wish_first + 1) % KVFS_WISHES;
        c->wish_count--;
        if (!node || w.node == node) {
            kvfs_content_unref(w.content);
        } else {
            c->wishes[(c->wish_first + c->wish_count++) % KVFS_WISHES] = w;
        }
    }
}
