#include "kvfs/serve/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "format/base/secret.h"
#include "kvfs/serve/edges.h"

enum { SLOTS_MIN = 4, EDGES_SHARE = 64 }; /* of the memory */

/* Pages are locked as they are touched. Where the limit is too low for all of it, half of the limit
 * goes to the first slots, which are used most, and the rest is left to keys. Status shows what
 * came of it. */
static void lock_what_fits(uint8_t *map, size_t len)
{
    struct rlimit r;
    if (mlock2(map, len, MLOCK_ONFAULT) == 0 || getrlimit(RLIMIT_MEMLOCK, &r)) {
        return;
    }
    size_t part = (r.rlim_cur / 2) & ~(size_t)(CT_EXTENT_MAX - 1);
    (void)mlock2(map, part < len ? part : len, MLOCK_ONFAULT);
}

unsigned kvfs_slots_threads(uint64_t memory, unsigned threads)
{
    uint64_t most = memory / 4 / KVFS_ASSEMBLY;
    return threads == 0 || most == 0 ? 1 : threads < most ? threads : (unsigned)most;
}

int kvfs_slots_make(struct kvfs_slots *s, uint64_t memory, unsigned threads, struct ct_err *err)
{
    size_t assembly = (size_t)threads * KVFS_ASSEMBLY;
    unsigned edges = (unsigned)(memory / EDGES_SHARE / KVFS_EDGES_SIZE);
    size_t beside = assembly + (size_t)edges * KVFS_EDGES_SIZE;
    uint64_t count = memory > beside ? (memory - beside) / CT_EXTENT_MAX : 0;
    *s = (struct kvfs_slots){.count = count < SLOTS_MIN ? SLOTS_MIN : (unsigned)count,
                             .edges.count = edges};
    s->map_len = (size_t)s->count * CT_EXTENT_MAX + beside;
    s->slots = calloc(s->count, sizeof(*s->slots));
    s->edges.all = calloc(edges + 1, sizeof(*s->edges.all));
    s->map = mmap(NULL, s->map_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!s->slots || !s->edges.all || s->map == MAP_FAILED) {
        free(s->slots);
        free(s->edges.all);
        return ct_err_sys(err, errno, "no memory for %u slots", s->count);
    }
    (void)madvise(s->map, s->map_len, MADV_DONTDUMP);
    (void)madvise(s->map, s->map_len, MADV_HUGEPAGE);
    lock_what_fits(s->map, s->map_len);
    for (unsigned i = 0; i < s->count; i++) {
        s->slots[i].buf = s->map + (size_t)i * CT_EXTENT_MAX;
    }
    s->assembly = s->map + (size_t)s->count * CT_EXTENT_MAX;
    for (unsigned i = 0; i < edges; i++) {
        s->edges.all[i].memory = s->assembly + assembly + (size_t)i * KVFS_EDGES_SIZE;
    }
    return 0;
}

/* Somebody reads into it, so that the pages go rather than their content. */
static void discard(const struct kvfs_slot *slot)
{
    (void)munlock(slot->buf, CT_EXTENT_MAX);
    (void)madvise(slot->buf, CT_EXTENT_MAX, MADV_DONTNEED);
}

void kvfs_slots_wipe(struct kvfs_slots *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (s->slots[i].state == KVFS_SLOT_FILLING) {
            discard(&s->slots[i]);
            continue;
        }
        /* Only what was ever filled, so that untouched slots stay untouched. */
        if (s->slots[i].len) {
            ct_wipe(s->slots[i].buf, CT_EXTENT_MAX);
        }
        s->slots[i].state = KVFS_SLOT_FREE;
        s->slots[i].node = 0;
    }
    for (unsigned i = 0; i < s->edges.count; i++) {
        if (s->edges.all[i].node) {
            ct_wipe(s->edges.all[i].memory, KVFS_EDGES_SIZE);
        }
        s->edges.all[i].node = 0;
    }
}

void kvfs_slots_free(struct kvfs_slots *s)
{
    if (s->map) {
        kvfs_slots_wipe(s);
        munmap(s->map, s->map_len);
    }
    free(s->slots);
    free(s->edges.all);
    *s = (struct kvfs_slots){0};
}

struct kvfs_slot *kvfs_slots_find(struct kvfs_slots *s, uint64_t node, uint32_t extent)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct kvfs_slot *slot = &s->slots[i];
        if (slot->node == node && slot->extent == extent && slot->state != KVFS_SLOT_FREE) {
            return slot;
        }
    }
    return NULL;
}

/* How the slots are divided among files; two files that share a line share its slots, and lose
 * little by it. */
enum { LINES = 64 };

struct division {
    unsigned held[LINES];
    unsigned share; /* slots that each file may hold when others want some */
    unsigned mine;  /* the line of the file that asks */
};

static unsigned line_of(uint64_t node)
{
    return (unsigned)(node % LINES);
}

static void divide(const struct kvfs_slots *s, uint64_t node, struct division *d)
{
    unsigned files = 0;
    *d = (struct division){.mine = line_of(node)};
    for (unsigned i = 0; i < s->count; i++) {
        const struct kvfs_slot *slot = &s->slots[i];
        files += slot->state != KVFS_SLOT_FREE && d->held[line_of(slot->node)]++ == 0;
    }
    files += d->held[d->mine] == 0;
    d->share = s->count / files;
}

/* Whether a file keeps what it has: the one that asks gets no more than its share from others. */
static bool keeps(const struct division *d, const struct kvfs_slot *slot)
{
    unsigned line = line_of(slot->node);
    return line != d->mine && (d->held[d->mine] >= d->share || d->held[line] <= d->share);
}

/* What is dropped first, least first. Whatever was given out whole lies in the kernel's page cache:
 * the latest of these is taken again and again, so that a stream of reads goes through memory that
 * the processor's caches hold, and free slots stay untouched. */
static uint64_t worth(const struct kvfs_slots *s, const struct division *d,
                      const struct kvfs_slot *slot)
{
    if (slot->state == KVFS_SLOT_FREE) {
        return UINT64_C(1) << 61;
    }
    if (kvfs_slot_is_served(slot)) {
        return s->tick - slot->touched;
    }
    return slot->touched + (UINT64_C(1) << (keeps(d, slot) ? 63 : 62));
}

struct kvfs_slot *kvfs_slots_take(struct kvfs_slots *s, uint64_t node, bool prefetch, bool *unread)
{
    struct kvfs_slot *best = NULL;
    struct division d;
    divide(s, node, &d);
    for (unsigned i = 0; i < s->count; i++) {
        struct kvfs_slot *slot = &s->slots[i];
        if (slot->pins || slot->state == KVFS_SLOT_FILLING ||
            (prefetch && slot->state == KVFS_SLOT_READY && !kvfs_slot_is_served(slot) &&
             s->tick - slot->touched < s->count)) {
            continue;
        }
        if (!best || worth(s, &d, slot) < worth(s, &d, best)) {
            best = slot;
        }
    }
    if (best) {
        *unread = best->state == KVFS_SLOT_READY && best->given_count == 0;
        /* Direct reads come to a page that two extents share when one of them has been dropped. */
        if (best->state == KVFS_SLOT_READY) {
            kvfs_edges_keep(&s->edges, best);
        }
        best->state = KVFS_SLOT_FREE;
        best->touched = ++s->tick;
    }
    return best;
}

/* ---- what was given out ---- */

static unsigned pages(const struct kvfs_slot *slot)
{
    uint64_t end = slot->begin + slot->len + KVFS_PAGE - 1;
    return (unsigned)(end / KVFS_PAGE - slot->begin / KVFS_PAGE);
}

void kvfs_slot_begin(struct kvfs_slot *slot)
{
    memset(slot->given, 0, sizeof(slot->given));
    slot->given_count = 0;
}

bool kvfs_slot_is_served(const struct kvfs_slot *slot)
{
    return slot->given_count == pages(slot);
}

void kvfs_slot_serve_all(struct kvfs_slot *slot)
{
    memset(slot->given, 0xff, sizeof(slot->given));
    slot->given_count = pages(slot);
}

/* A page counts once its last byte was given out: streams arrive in requests of any size. Page by
 * page, because the kernel may come late to a single one that lies between two read-aheads. */
void kvfs_slots_touch(struct kvfs_slots *s, struct kvfs_slot *slot, uint32_t offset, uint32_t bytes)
{
    uint32_t end = offset + bytes;
    uint64_t first = slot->begin / KVFS_PAGE;
    uint64_t from = (slot->begin + offset) / KVFS_PAGE - first;
    uint64_t to = end >= slot->len ? pages(slot) : (slot->begin + end) / KVFS_PAGE - first;
    slot->touched = ++s->tick;
    for (uint64_t i = from; i < to; i++) {
        uint64_t bit = UINT64_C(1) << i % 64;
        slot->given_count += !(slot->given[i / 64] & bit);
        slot->given[i / 64] |= bit;
    }
}
