/* What model.c, model_open.c and extents.c share. Not for others. */
#ifndef CT_MODEL_PARTS_H
#define CT_MODEL_PARTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "format/message.h"
#include "format/model.h"
#include "format/unwrap.h"

struct extent {
    uint64_t begin;
    uint32_t len;
    uint32_t tensor; /* that `begin` lies in; never an empty one */
};

struct ct_model {
    atomic_uint refs;
    struct ct_source *source;
    struct ct_version version;
    uint64_t body_at; /* in the source */

    struct ct_header *header;
    struct ct_keys_field keys;
    struct ct_policy_field policy;
    struct ct_encryption_field enc;
    struct ct_deks deks;
    struct ct_manifest *manifest; /* a reference, or NULL */
    const struct ct_entry *entry; /* in it */

    struct ct_buf view; /* the view's first bytes */
    struct extent *extents;
    uint32_t extent_count;

    pthread_mutex_t lock; /* guards what follows */
    uint32_t *long_first; /* of a tensor's long messages in `longs`; NULL if there are none */
    struct ct_message **longs;
    size_t long_count;
    struct ct_aead *idle[8]; /* contexts between two reads */
    unsigned idle_count;

    struct ct_model_info info;
};

/* The unit of authentication that begins at `at` in tensor i. */
struct unit {
    uint64_t begin; /* in the body */
    uint32_t len;
    uint64_t message; /* index of its message in the tensor; encrypted only */
    uint64_t piece;   /* index in a long message */
    bool encrypted, is_long;
};

/* ---- extents.c ---- */
void ct_unit_at(const struct ct_model *m, size_t tensor, uint64_t at, struct unit *out);
/* Messages of tensor i that are longer than an extent. */
uint64_t ct_long_messages(const struct ct_model *m, size_t tensor);
/* Fills m->extents and m->long_first. */
int ct_extents_make(struct ct_model *m, struct ct_err *err);
/* The digests a manifest has of the unencrypted tensor that begins there; NULL if none. */
const struct ct_digests *ct_plain_digests(const struct ct_model *m, const struct ct_tensor *t);

#endif
