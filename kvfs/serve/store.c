#include <unistd.h>

#include "kvfs/serve/chunks_parts.h"
#include "kvfs/serve/damage.h"
#include "kvfs/serve/edges.h"
#include "kvfs/serve/serve.h"

/*
 * A random fault takes a megabyte of the extent that was decrypted for it; by the time the rest is
 * wanted the slot serves others. So the rest is put into the page cache, by a thread of its own:
 * the kernel makes it wait for pages that reads on their way have locked, and whoever answers those
 * must not wait for it. For the same reason its queue, whose slots are pinned, is a part of the
 * slots only.
 */

enum { LEAST = 65536 }; /* a smaller read is alone, as far as the kernel knows */

bool kvfs_store_is_wanted(const struct kvfs_slot *slot, uint32_t size, bool random)
{
    return random && !slot->stored && (size >= LEAST || slot->given_count);
}

void kvfs_store_ask(struct kvfs_chunks *c, struct kvfs_slot *slot, struct kvfs_node *node,
                    struct kvfs_content *content, uint64_t offset, uint32_t size)
{
    if (!c->serve->config.may_store || c->store_count == KVFS_STORES ||
        (c->store_count + 1) * 4 > c->slots.count) {
        return;
    }
    slot->stored = true;
    slot->pins++;
    c->stores[(c->store_first + c->store_count++) % KVFS_STORES] =
        (struct kvfs_store){slot, node, kvfs_content_ref(content), offset, offset + size};
    pthread_cond_signal(&c->storing);
}

/* Whole pages of [begin, end); the file's last one may be shorter. */
static void store_pages(struct kvfs_chunks *c, const struct kvfs_store *s, uint64_t begin,
                        uint64_t end)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    begin = (begin + page - 1) / page * page;
    if (end < kvfs_content_size(s->content)) {
        end = end / page * page;
    }
    if (begin < end) {
        kvfs_count(&c->stats.bytes_stored, end - begin);
        kvfs_reply_store(c->serve, s->node, s->content, begin,
                         s->slot->buf + (begin - s->slot->begin), end - begin);
    }
}

/* False if some of it is damaged. All of the slot but what the kernel asked for: those pages are
 * locked until it has them. */
static bool store(struct kvfs_chunks *c, const struct kvfs_store *s)
{
    uint64_t begin = s->slot->begin;
    uint64_t end = begin + s->slot->len;
    struct ct_err ignored = CT_ERR_INIT;
    if (kvfs_damage_check(s->node, begin, end, &ignored)) {
        return false;
    }
    store_pages(c, s, begin, s->asked < end ? s->asked : end);
    store_pages(c, s, s->asked_end > begin ? s->asked_end : begin, end);
    return true;
}

/* With the lock held. */
static struct kvfs_store take(struct kvfs_chunks *c)
{
    struct kvfs_store s = c->stores[c->store_first];
    c->store_first = (c->store_first + 1) % KVFS_STORES;
    c->store_count--;
    return s;
}

void *kvfs_store_run(void *arg)
{
    struct kvfs_chunks *c = arg;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (!c->store_count && !c->stopping) {
            pthread_cond_wait(&c->storing, &c->lock);
        }
        if (c->stopping) {
            break;
        }
        struct kvfs_store s = take(c);
        c->busy++; /* sealing waits for it, and it begins none afterwards: then the queue is empty
                    */
        pthread_mutex_unlock(&c->lock);
        bool good = store(c, &s);
        pthread_mutex_lock(&c->lock);
        kvfs_slot_serve_all(s.slot);
        if (good) {
            kvfs_edges_keep(&c->slots.edges, s.slot);
        }
        kvfs_content_give(s.content, s.slot->extent);
        c->busy--;
        kvfs_slot_unpin(c, s.slot);
        pthread_mutex_unlock(&c->lock);
        kvfs_content_unref(s.content);
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

void kvfs_stores_drop(struct kvfs_chunks *c, const struct kvfs_node *node)
{
    for (unsigned i = c->store_count; i > 0; i--) {
        struct kvfs_store s = take(c);
        if (!node || s.node == node) {
            kvfs_slot_unpin(c, s.slot);
            kvfs_content_unref(s.content);
        } else {
            c->stores[(c->store_first + c->store_count++) % KVFS_STORES] = s;
        }
    }
}
