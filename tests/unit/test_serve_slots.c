/* The bound on the memory for plaintext, whatever threads there are. */
#include <criterion/criterion.h>

#include "kvfs/serve/slots.h"

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
