/*
 * Which tensor has a name: a hash table over the names of a header, keyed by SipHash with a seed of
 * its own, so that nobody can choose names that collide.
 */
#ifndef CT_NAMES_H
#define CT_NAMES_H

#include "format/base/arena.h"
#include "format/header.h"

struct ct_name_index;

/* In `arena`, about 12 bytes a tensor. CT_MALFORMED where a name stands twice. */
int ct_names_index(const struct ct_tensor *tensors, size_t count, struct ct_arena *arena,
                   struct ct_name_index **out, struct ct_err *err);
ptrdiff_t ct_names_find(const struct ct_name_index *x, const struct ct_tensor *tensors,
                        struct ct_span name);

#endif
