/* What is known to be damaged is an error, never zeros: also where memory runs out. */
#include <criterion/criterion.h>

#include "kvfs/serve/damage.h"

static bool no_memory;

void *__real_realloc(void *p, size_t n); /* NOLINT(bugprone-reserved-identifier) */
void *__wrap_realloc(void *p, size_t n); /* NOLINT(bugprone-reserved-identifier) */

void *__wrap_realloc(void *p, size_t n) /* NOLINT(bugprone-reserved-identifier) */
{
    return no_memory ? NULL : __real_realloc(p, n);
}

Test(damage, memo)
{
    struct kvfs_node node = {0};
    struct ct_err err = CT_ERR_INIT;
    struct ct_damage items[20];
    struct ct_damages all = {items, 20};
    pthread_mutex_init(&node.lock, NULL);
    for (uint64_t i = 0; i < 20; i++) {
        items[i] = (struct ct_damage){100 * i, 100 * i + 50, CT_TAG, "tag does not match"};
    }
    no_memory = true;
    cr_expect_eq(kvfs_damage_remember(&node, &all, &err), -1);
    cr_expect_eq(err.code, CT_NOMEM);
    no_memory = false;
    for (int twice = 0; twice < 2; twice++) {
        cr_expect_eq(kvfs_damage_remember(&node, &all, &err), 0);
    }
    cr_expect_eq(kvfs_damage_check(&node, 49, 50, &err), -1);
    cr_expect_eq(err.code, CT_TAG);
    cr_expect_eq(kvfs_damage_check(&node, 1949, 2000, &err), -1);
    cr_expect_eq(kvfs_damage_check(&node, 50, 100, &err), 0);
    cr_expect_eq(kvfs_damage_check(&node, 1950, 5000, &err), 0);
    kvfs_damage_memo_free(node.damage);
}

static void remember(struct kvfs_node *node, uint64_t begin, uint64_t end)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_damage item = {begin, end, CT_TAG, "tag does not match"};
    cr_assert_eq(kvfs_damage_remember(node, &(struct ct_damages){&item, 1}, &err), 0);
}

/* Whatever the order, and however the ranges overlap: exactly their union is refused. */
Test(damage, union_of_ranges)
{
    enum { SIZE = 500 };
    unsigned seed = 1;
    for (int round = 0; round < 300; round++) {
        struct kvfs_node node = {0};
        struct ct_err err = CT_ERR_INIT;
        bool damaged[SIZE] = {0};
        pthread_mutex_init(&node.lock, NULL);
        for (int i = 0; i < 12; i++) {
            unsigned begin = (unsigned)rand_r(&seed) % (SIZE - 1);
            unsigned most = round % 2 ? 20 : 200;
            unsigned end = begin + 1 + (unsigned)rand_r(&seed) % most;
            end = end < SIZE ? end : SIZE;
            memset(damaged + begin, true, end - begin);
            remember(&node, begin, end);
        }
        for (unsigned at = 0; at < SIZE; at++) {
            cr_assert_eq(kvfs_damage_check(&node, at, at + 1, &err), damaged[at] ? -1 : 0,
                         "round %d, byte %u", round, at);
        }
        kvfs_damage_memo_free(node.damage);
    }
}

/* Alternately from both ends, so that what comes too late lies in the middle. */
Test(damage, too_many)
{
    enum { MANY = KVFS_DAMAGES_MAX + 100 };
    struct kvfs_node node = {0};
    struct ct_err err = CT_ERR_INIT;
    uint64_t refused = 0;
    pthread_mutex_init(&node.lock, NULL);
    for (uint64_t i = 0; i < MANY; i++) {
        uint64_t at = 10 * (i % 2 ? MANY - i / 2 - 1 : i / 2);
        remember(&node, at, at + 5);
    }
    for (uint64_t at = 0; at < 10ULL * MANY; at += 5) {
        bool is = kvfs_damage_check(&node, at, at + 5, &err) != 0;
        cr_assert(is || at % 10, "byte %llu", (unsigned long long)at);
        refused += is;
    }
    cr_expect_eq(refused, MANY + 100, "one gap for each that came too late");
    cr_expect_eq(kvfs_damage_check(&node, 5, 10, &err), 0);
    cr_expect_eq(kvfs_damage_check(&node, 10ULL * MANY, 20ULL * MANY, &err), 0);
    kvfs_damage_memo_free(node.damage);
}
