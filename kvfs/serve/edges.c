#include "kvfs/serve/edges.h"

#include <string.h>

#include "format/base/secret.h"

/* Direct-mapped: what comes later takes the place. */
static struct kvfs_edge *place_of(const struct kvfs_edges *e, uint64_t node, uint32_t extent)
{
    return e->count ? &e->all[(node * 31 + extent) % e->count] : NULL;
}

void kvfs_edges_keep(struct kvfs_edges *e, const struct kvfs_slot *slot)
{
    struct kvfs_edge *at = place_of(e, slot->node, slot->extent);
    uint64_t end = slot->begin + slot->len;
    if (!at || slot->len < KVFS_EDGES_SIZE) {
        return;
    }
    at->node = slot->node;
    at->extent = slot->extent;
    at->begin = slot->begin;
    at->end = end;
    at->first = (uint32_t)(-slot->begin % KVFS_EDGE);
    at->last = (uint32_t)(end % KVFS_EDGE);
    memcpy(at->memory, slot->buf, at->first);
    memcpy(at->memory + KVFS_EDGE, slot->buf + slot->len - at->last, at->last);
}

bool kvfs_edges_copy(const struct kvfs_edges *e, uint64_t node, uint32_t extent, uint64_t offset,
                     uint64_t end, uint8_t *to)
{
    const struct kvfs_edge *at = place_of(e, node, extent);
    if (!at || at->node != node || at->extent != extent || offset < at->begin || end > at->end) {
        return false;
    }
    if (end <= at->begin + at->first) {
        memcpy(to, at->memory + (offset - at->begin), end - offset);
        return true;
    }
    uint64_t last = at->end - at->last;
    if (offset >= last) {
        memcpy(to, at->memory + KVFS_EDGE + (offset - last), end - offset);
        return true;
    }
    return false;
}

void kvfs_edges_forget(struct kvfs_edges *e, uint64_t node)
{
    for (unsigned i = 0; i < e->count; i++) {
        if (e->all[i].node == node) {
            ct_wipe(e->all[i].memory, KVFS_EDGES_SIZE);
            e->all[i].node = 0;
        }
    }
}
