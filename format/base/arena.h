/*
 * An arena: many small allocations that are freed together. Zero-initialised; not thread-safe.
 * Not for secrets.
 */
#ifndef CT_BASE_ARENA_H
#define CT_BASE_ARENA_H

#include <stddef.h>

#include "format/base/err.h"

struct ct_arena_block;

struct ct_arena {
    struct ct_arena_block *blocks;
    size_t used, cap; /* of the first block */
    size_t total;     /* bytes held, for statistics */
};

/* `count` zeroed items of `size` bytes, aligned for any type. Never NULL for a count of 0. NULL
 * with CT_NOMEM when memory runs out or the product overflows. */
void *ct_arena_alloc(struct ct_arena *a, size_t count, size_t size, struct ct_err *err);
/* A copy of n bytes with a NUL after them. */
char *ct_arena_copy(struct ct_arena *a, const void *p, size_t n, struct ct_err *err);
void ct_arena_free(struct ct_arena *a); /* also zeroes the structure */
#define ct_autoarena __attribute__((cleanup(ct_arena_free))) struct ct_arena

#endif
