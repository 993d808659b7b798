#include "kvfs/serve/chunks_parts.h"
#include "kvfs/serve/damage.h"
#include "kvfs/serve/serve.h"

void kvfs_slot_give(struct kvfs_chunks *c, struct kvfs_content *content, struct kvfs_slot *slot,
                    uint64_t offset, uint32_t bytes)
{
    kvfs_slots_touch(&c->slots, slot, (uint32_t)(offset - slot->begin), bytes);
    if (kvfs_slot_is_served(slot)) {
        kvfs_content_give(content, slot->extent);
    }
}

enum { READY_MAX = 4 };

/* The parts of a read that are ready, each in its pinned slot; the head, if it is part of it, in
 * none. */
struct ready {
    struct iovec iov[READY_MAX];
    struct kvfs_slot *slots[READY_MAX];
    int count;
};

/* With the lock held. False, with nothing pinned, unless all of it is ready. */
static bool pin_all(struct kvfs_chunks *c, const struct kvfs_node *node,
                    struct kvfs_content *content, uint64_t offset, uint32_t size, struct ready *r)
{
    size_t head_len = 0;
    const uint8_t *head = kvfs_content_head(content, &head_len);
    uint64_t end = offset + size;
    r->count = 0;
    if (offset < head_len) {
        r->slots[r->count] = NULL;
        r->iov[r->count++] = (struct iovec){(void *)(head + offset), head_len - offset};
        offset = head_len;
    }
    while (offset < end && r->count < READY_MAX) {
        struct kvfs_slot *slot =
            kvfs_slots_find(&c->slots, node->id, kvfs_content_extent_at(content, offset));
        if (!slot || slot->state != KVFS_SLOT_READY) {
            break;
        }
        uint64_t stop = slot->begin + slot->len < end ? slot->begin + slot->len : end;
        r->slots[r->count] = slot;
        r->iov[r->count++] = (struct iovec){slot->buf + (offset - slot->begin), stop - offset};
        offset = stop;
    }
    if (offset < end) {
        return false;
    }
    for (int i = 0; i < r->count; i++) {
        struct kvfs_slot *slot = r->slots[i];
        if (slot) {
            slot->pins++;
            kvfs_slot_give(c, content, slot,
                           slot->begin +
                               (uint64_t)((const uint8_t *)r->iov[i].iov_base - slot->buf),
                           (uint32_t)r->iov[i].iov_len);
            kvfs_count(&c->stats.hits, 1);
        }
    }
    return true;
}

bool kvfs_reply_at_once(struct kvfs_chunks *c, fuse_req_t req, struct kvfs_node *node,
                        struct kvfs_content *content, uint64_t offset, uint32_t size)
{
    struct ct_err ignored = CT_ERR_INIT;
    struct ready r;
    pthread_mutex_lock(&c->lock);
    if (c->sealed || !pin_all(c, node, content, offset, size, &r)) {
        pthread_mutex_unlock(&c->lock);
        return false;
    }
    c->busy++;
    pthread_mutex_unlock(&c->lock);
    bool good = kvfs_damage_check(node, offset, offset + size, &ignored) == 0;
    if (good) {
        kvfs_reply_data(c->serve, req, content, r.iov, r.count);
    }
    pthread_mutex_lock(&c->lock);
    c->busy--;
    for (int i = 0; i < r.count; i++) {
        if (r.slots[i]) {
            kvfs_slot_unpin(c, r.slots[i]);
        }
    }
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return good;
}
