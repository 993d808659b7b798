/*
 * How kvfs inspect shows what it found.
 */
#ifndef KVFS_INSPECT_PRINT_H
#define KVFS_INSPECT_PRINT_H

#include "kvfs/inspect.h"

struct kvfs_inspection {
    struct kvfs_inspected *items;
    size_t count;
};

/* Both go to stdout; -1 if something is malformed. */
int kvfs_inspection_print(const struct kvfs_inspection *all, bool policies);
int kvfs_inspection_json(const struct kvfs_inspection *all);

#endif
