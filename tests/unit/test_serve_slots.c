/* The bound on the memory for plaintext, whatever threads there are. */
#include <criterion/criterion.h>

#include "kvfs/serve/slots.h"

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
