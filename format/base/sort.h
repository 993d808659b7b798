/*
 * A stable sort that takes O(n log n) whatever the items are: qsort() is not stable, and may be
 * quadratic where memory is short.
 */
#ifndef CT_BASE_SORT_H
#define CT_BASE_SORT_H

#include <stddef.h>

#include "format/base/err.h"

enum { CT_SORT_ITEM_MAX = 128 };

/* `count` items of `size` bytes, at most CT_SORT_ITEM_MAX. What is in order already costs one pass
 * and no memory; otherwise 8 bytes an item for a moment. CT_NOMEM leaves the items as they were. */
int ct_sort(void *items, size_t count, size_t size, int (*cmp)(const void *a, const void *b),
            struct ct_err *err);

#endif
