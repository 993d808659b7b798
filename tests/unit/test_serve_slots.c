/* The bound on the memory for plaintext, whatever threads there are. */
#include <criterion/criterion.h>
#include <string.h>

#include "kvfs/serve/edges.h"

Test(slots, served)
{
    /* In requests of any size, in any order, twice: whole only when each byte was given out. */
    static const uint32_t lens[] = {1, 63, 64, 1000, 65537, CT_EXTENT_MAX};
    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        struct kvfs_slots s = {0};
        struct kvfs_slot slot = {.len = lens[i]};
        uint32_t step = lens[i] / 7 + 1;
        kvfs_slots_touch(&s, &slot, 0, lens[i] / 2);
        kvfs_slots_touch(&s, &slot, 0, lens[i] / 2);
        cr_expect(!kvfs_slot_is_served(&slot), "half of %u", lens[i]);
        for (uint32_t at = 0; at < lens[i]; at += step) {
            cr_expect(!kvfs_slot_is_served(&slot), "%u of %u", at, lens[i]);
            kvfs_slots_touch(&s, &slot, at, lens[i] - at < step ? lens[i] - at : step);
        }
        cr_expect(kvfs_slot_is_served(&slot), "all of %u", lens[i]);
    }
}

Test(slots, holes)
{
    /* A single page that was left out is missed, wherever the extent begins. */
    static const uint64_t begins[] = {0, 4096, 100, 4095};
    for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]); i++) {
        struct kvfs_slots s = {0};
        struct kvfs_slot slot = {.begin = begins[i], .len = CT_EXTENT_MAX};
        uint32_t hole = 300 * KVFS_PAGE - (uint32_t)(begins[i] % KVFS_PAGE);
        kvfs_slots_touch(&s, &slot, 0, hole);
        kvfs_slots_touch(&s, &slot, hole + KVFS_PAGE, slot.len - hole - KVFS_PAGE);
        cr_expect(!kvfs_slot_is_served(&slot));
        kvfs_slots_touch(&s, &slot, hole, KVFS_PAGE);
        cr_expect(kvfs_slot_is_served(&slot));
        kvfs_slot_begin(&slot);
        cr_expect(!kvfs_slot_is_served(&slot));
        kvfs_slot_serve_all(&slot);
        cr_expect(kvfs_slot_is_served(&slot));
    }
}

Test(slots, memory)
{
    static const struct {
        uint64_t mib;
        unsigned threads;
    } mounts[] = {{16, 1}, {16, 4}, {16, 256}, {64, 96}, {512, 2}, {512, 256}};
    for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
        struct kvfs_slots s;
        uint64_t memory = mounts[i].mib << 20;
        unsigned threads = kvfs_slots_threads(memory, mounts[i].threads);
        cr_assert_eq(kvfs_slots_make(&s, memory, threads, NULL), 0);
        cr_expect(threads >= 1 && threads <= mounts[i].threads);
        cr_expect_leq(s.map_len, memory, "%zu bytes for %u threads", s.map_len, threads);
        cr_expect_geq(s.count, 4);
        kvfs_slots_free(&s);
    }
}

/* Fills a slot for a file, with what nobody has read yet. False if none was to be had. */
static bool fill(struct kvfs_slots *s, uint64_t node, uint32_t extent)
{
    bool unread = false;
    struct kvfs_slot *slot = kvfs_slots_take(s, node, false, &unread);
    if (slot) {
        slot->state = KVFS_SLOT_READY;
        slot->node = node;
        slot->extent = extent;
        slot->len = CT_EXTENT_MAX;
        kvfs_slot_begin(slot);
    }
    return slot != NULL;
}

static unsigned held(struct kvfs_slots *s, uint64_t node)
{
    unsigned n = 0;
    for (unsigned i = 0; i < s->count; i++) {
        n += s->slots[i].state == KVFS_SLOT_READY && s->slots[i].node == node;
    }
    return n;
}

Test(slots, fair)
{
    struct kvfs_slots s;
    cr_assert_eq(kvfs_slots_make(&s, UINT64_C(64) << 20, 1, NULL), 0);
    /* Alone, a file may have all. */
    for (uint32_t i = 0; i < 2 * s.count; i++) {
        cr_assert(fill(&s, 1, i));
    }
    cr_expect_eq(held(&s, 1), s.count);
    /* A few of another's are left alone, however many are taken, and its share is to be had. */
    for (uint32_t i = 0; i < 3; i++) {
        cr_assert(fill(&s, 2, i));
    }
    for (uint32_t i = 0; i < 4 * s.count; i++) {
        cr_assert(fill(&s, 1, 1000 + i));
        cr_assert_eq(held(&s, 2), 3, "after %u", i);
    }
    for (uint32_t i = 0; i < 4 * s.count; i++) {
        cr_assert(fill(&s, 2, 1000 + i));
    }
    cr_expect_eq(held(&s, 1), s.count - s.count / 2);
    cr_expect_eq(held(&s, 2), s.count / 2);
    /* A slot that was given out is anybody's. */
    for (unsigned i = 0; i < s.count; i++) {
        kvfs_slot_serve_all(&s.slots[i]);
    }
    for (uint32_t i = 0; i < s.count; i++) {
        cr_assert(fill(&s, 3, i));
    }
    cr_expect_eq(held(&s, 3), s.count);
    kvfs_slots_free(&s);
}

Test(edges, kept)
{
    /* The bytes on both sides of the first and of the last page boundary, and nothing else. */
    struct kvfs_slots s;
    uint8_t got[KVFS_EDGE];
    enum { BEGIN = 1000, LEN = 100000 };
    cr_assert_eq(kvfs_slots_make(&s, UINT64_C(64) << 20, 1, NULL), 0);
    struct kvfs_slot *slot = &s.slots[0];
    *slot = (struct kvfs_slot){.buf = slot->buf,
                               .state = KVFS_SLOT_READY,
                               .node = 7,
                               .extent = 3,
                               .begin = BEGIN,
                               .len = LEN};
    for (uint32_t i = 0; i < LEN; i++) {
        slot->buf[i] = (uint8_t)(i * 7 + i / 256);
    }
    static const struct {
        uint64_t from, to;
        bool kept;
    } reads[] = {{BEGIN, KVFS_EDGE, true},
                 {BEGIN + 5, BEGIN + 6, true},
                 {BEGIN, KVFS_EDGE + 1, false},
                 {BEGIN - 1, KVFS_EDGE, false},
                 {UINT64_C(24) * KVFS_EDGE, BEGIN + LEN, true},
                 {UINT64_C(24) * KVFS_EDGE - 1, BEGIN + LEN, false},
                 {UINT64_C(24) * KVFS_EDGE, BEGIN + LEN + 1, false}};
    cr_expect(!kvfs_edges_copy(&s.edges, 7, 3, BEGIN, KVFS_EDGE, got));
    kvfs_edges_keep(&s.edges, slot);
    for (size_t i = 0; i < sizeof(reads) / sizeof(reads[0]); i++) {
        uint64_t n = reads[i].to - reads[i].from;
        bool kept = kvfs_edges_copy(&s.edges, 7, 3, reads[i].from, reads[i].to, got);
        cr_expect_eq(kept, reads[i].kept, "%zu", i);
        cr_expect(!kept || memcmp(got, slot->buf + (reads[i].from - BEGIN), n) == 0, "%zu", i);
    }
    cr_expect(!kvfs_edges_copy(&s.edges, 8, 3, BEGIN, KVFS_EDGE, got), "another file");
    cr_expect(!kvfs_edges_copy(&s.edges, 7, 4, BEGIN, KVFS_EDGE, got), "another extent");
    kvfs_slots_wipe(&s);
    cr_expect(!kvfs_edges_copy(&s.edges, 7, 3, BEGIN, KVFS_EDGE, got), "wiped");
    kvfs_slots_free(&s);
}
