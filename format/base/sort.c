#include "format/base/sort.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct items {
    unsigned char *p;
    size_t count, size;
    int (*cmp)(const void *a, const void *b);
};

static int compare(const struct items *x, size_t a, size_t b)
{
    return x->cmp(x->p + a * x->size, x->p + b * x->size);
}

/* Indices are sorted, not items: those may be large. Returns where the order ended up. */
static uint32_t *merge(const struct items *x, uint32_t *from, uint32_t *to)
{
    for (size_t width = 1; width < x->count; width *= 2) {
        for (size_t lo = 0; lo < x->count; lo += 2 * width) {
            size_t mid = lo + width < x->count ? lo + width : x->count;
            size_t hi = mid + width < x->count ? mid + width : x->count;
            size_t a = lo;
            size_t b = mid;
            for (size_t k = lo; k < hi; k++) {
                bool left = a < mid && (b == hi || compare(x, from[a], from[b]) <= 0);
                to[k] = left ? from[a++] : from[b++];
            }
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    return from;
}

/* Item order[i] goes to place i, along the cycles of the permutation. */
static void permute(const struct items *x, uint32_t *order)
{
    unsigned char hold[CT_SORT_ITEM_MAX];
    for (size_t i = 0; i < x->count; i++) {
        if (order[i] == i) {
            continue;
        }
        memcpy(hold, x->p + i * x->size, x->size);
        size_t at = i;
        while (order[at] != i) {
            size_t next = order[at];
            memcpy(x->p + at * x->size, x->p + next * x->size, x->size);
            order[at] = (uint32_t)at;
            at = next;
        }
        memcpy(x->p + at * x->size, hold, x->size);
        order[at] = (uint32_t)at;
    }
}

int ct_sort(void *items, size_t count, size_t size, int (*cmp)(const void *a, const void *b),
            struct ct_err *err)
{
    const struct items x = {items, count, size, cmp};
    size_t sorted = 1;
    while (sorted < count && compare(&x, sorted - 1, sorted) <= 0) {
        sorted++;
    }
    if (sorted >= count) {
        return 0;
    }
    bool fits = size <= CT_SORT_ITEM_MAX && count <= UINT32_MAX;
    uint32_t *order = fits ? calloc(2 * count, sizeof(*order)) : NULL;
    if (!order) {
        return ct_err_set(err, CT_NOMEM, "no memory to sort %zu items", count);
    }
    for (size_t i = 0; i < count; i++) {
        order[i] = (uint32_t)i;
    }
    permute(&x, merge(&x, order, order + count));
    free(order);
    return 0;
}
