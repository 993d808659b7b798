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
