#include "format/names.h"

#include <sodium.h>
#include <string.h>

struct ct_name_index {
    unsigned char seed[crypto_shorthash_KEYBYTES];
    uint32_t mask;
    uint32_t slots[]; /* index of the tensor + 1; 0: free */
};

static uint32_t slot_of(const struct ct_name_index *x, struct ct_span name)
{
    unsigned char hash[crypto_shorthash_BYTES];
    uint32_t v = 0;
    crypto_shorthash(hash, (const unsigned char *)name.p, name.n, x->seed);
    memcpy(&v, hash, sizeof(v));
    return v & x->mask;
}

int ct_names_index(const struct ct_tensor *tensors, size_t count, struct ct_arena *arena,
                   struct ct_name_index **out, struct ct_err *err)
{
    size_t slots = 8;
    while (slots < count * 2) {
        slots *= 2;
    }
    struct ct_name_index *x =
        ct_arena_alloc(arena, 1, sizeof(*x) + slots * sizeof(x->slots[0]), err);
    if (!x) {
        return -1;
    }
    randombytes_buf(x->seed, sizeof(x->seed));
    x->mask = (uint32_t)(slots - 1);
    for (size_t i = 0; i < count; i++) {
        struct ct_span name = tensors[i].name;
        uint32_t at = slot_of(x, name);
        for (; x->slots[at]; at = (at + 1) & x->mask) {
            struct ct_span other = tensors[x->slots[at] - 1].name;
            if (ct_span_is(name, other.p, other.n)) {
                return ct_err_set(err, CT_MALFORMED, "tensor %.*s twice", ct_span_shown(name),
                                  name.p);
            }
        }
        x->slots[at] = (uint32_t)(i + 1);
    }
    *out = x;
    return 0;
}

ptrdiff_t ct_names_find(const struct ct_name_index *x, const struct ct_tensor *tensors,
                        struct ct_span name)
{
    for (uint32_t at = slot_of(x, name); x->slots[at]; at = (at + 1) & x->mask) {
        uint32_t i = x->slots[at] - 1;
        if (ct_span_is(name, tensors[i].name.p, tensors[i].name.n)) {
            return (ptrdiff_t)i;
        }
    }
    return -1;
}
