#include "kvfs/serve/chunks_parts.h"

static void wish_for(struct kvfs_chunks *c, struct kvfs_node *node, struct kvfs_content *content,
                     uint32_t extent)
{
    if (c->wish_count == KVFS_WISHES || kvfs_slots_find(&c->slots, node->id, extent)) {
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

void kvfs_look_ahead(struct kvfs_chunks *c, struct kvfs_node *node, struct kvfs_content *content,
                     uint64_t offset, uint32_t size)
{
    size_t head = 0;
    (void)kvfs_content_head(content, &head);
    pthread_mutex_lock(&node->lock);
    bool stream = kvfs_streams_note(&node->streams, offset, size);
    pthread_mutex_unlock(&node->lock);
    if (!stream || offset + size <= head) {
        return;
    }
    uint32_t now = kvfs_content_extent_at(content, offset + size - 1);
    uint32_t all = kvfs_content_extents(content);
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 1; i <= c->threads && now + i < all; i++) {
        wish_for(c, node, content, now + i);
    }
    pthread_mutex_unlock(&c->lock);
}

void kvfs_wish_grant(struct kvfs_chunks *c)
{
    struct wish w = c->wishes[c->wish_first];
    bool unread = false;
    c->wish_first = (c->wish_first + 1) % KVFS_WISHES;
    c->wish_count--;
    struct kvfs_slot *slot = kvfs_slots_find(&c->slots, w.node->id, w.extent);
    if (!slot && (slot = kvfs_slots_take(&c->slots, true, &unread))) {
        struct ct_err err = CT_ERR_INIT;
        kvfs_count(&c->stats.evicted_unread, unread);
        kvfs_count(&c->stats.prefetched, 1);
        if (kvfs_slot_fill(c, slot, w.node, w.content, w.extent, &err) == 0) {
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
