#include "format/base/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A sanitizer sees the bounds of what malloc gave: for it, every item is a block of its own. */
enum { BLOCK = KVFS_SANITIZED ? 0 : 65536 };

struct ct_arena_block {
    struct ct_arena_block *next;
    alignas(max_align_t) unsigned char bytes[];
};

static struct ct_arena_block *new_block(struct ct_arena *a, size_t n)
{
    size_t all = 0;
    if (__builtin_add_overflow(sizeof(struct ct_arena_block), n, &all)) {
        return NULL;
    }
    struct ct_arena_block *b = calloc(1, all);
    if (b) {
        a->total += all;
    }
    return b;
}

void *ct_arena_alloc(struct ct_arena *a, size_t count, size_t size, struct ct_err *err)
{
    size_t n = 0;
    size_t room = 0;
    const size_t align = alignof(max_align_t);
    struct ct_arena_block *b = NULL;
    if (__builtin_mul_overflow(count, size, &n) ||
        __builtin_add_overflow(n, (n % align || n == 0) ? align - n % align : 0, &room)) {
        goto nomem;
    }
    if (room <= a->cap - a->used) {
        void *p = a->blocks->bytes + a->used;
        a->used += room;
        return p;
    }
    if (!(b = new_block(a, room <= BLOCK / 4 ? BLOCK : KVFS_SANITIZED ? n : room))) {
        goto nomem;
    }
    if (room > BLOCK / 4 && a->blocks) { /* its own block, behind the one in use */
        b->next = a->blocks->next;
        a->blocks->next = b;
    } else {
        b->next = a->blocks;
        a->blocks = b;
        a->cap = room > BLOCK / 4 ? room : BLOCK;
        a->used = room;
    }
    return b->bytes;
nomem:
    ct_err_set(err, CT_NOMEM, "no memory for %zu times %zu bytes", count, size);
    return NULL;
}

char *ct_arena_copy(struct ct_arena *a, const void *p, size_t n, struct ct_err *err)
{
    char *to = n < SIZE_MAX ? ct_arena_alloc(a, n + 1, 1, err) : NULL;
    if (to && n) {
        memcpy(to, p, n);
    }
    return to;
}

void ct_arena_free(struct ct_arena *a)
{
    for (struct ct_arena_block *b = a->blocks; b;) {
        struct ct_arena_block *next = b->next;
        free(b);
        b = next;
    }
    *a = (struct ct_arena){0};
}
