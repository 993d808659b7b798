/* What model.c, model_open.c and extents.c share. Not for others. */
#ifndef CT_MODEL_PARTS_H
#define CT_MODEL_PARTS_H

#include <pthread.h>
#include <stdatomic.h>

#include "format/base/arena.h"
#include "format/message.h"
#include "format/model.h"
#include "format/unwrap.h"

/* What is left of a tensor's entries in the header once it is verified. */
struct tensor {
    uint64_t begin, end; /* in the body */
    const char *name;
    uint32_t name_len;
    bool encrypted;
    uint8_t iv[CT_IV_LEN]; /* encrypted: base_iv in version 2 */
    const uint8_t *tags;   /* encrypted: one for each message */
    const struct ct_digests
        *digests;        /* not encrypted: the manifest's; NULL: nothing vouches for it */
    uint32_t first_long; /* of its long messages in `longs`, if it has any */
};

struct long_message {
    struct ct_message *message; /* NULL until it is needed */
    uint64_t first_piece;
};

struct extent {
    uint64_t begin;
    uint32_t len;
    uint32_t tensor; /* that `begin` lies in; never an empty one */
};

struct ct_model {
    atomic_uint refs;
    struct ct_source *source;
    struct ct_version version;
    uint64_t body_at, body_len; /* in the source */

    struct ct_keys_field keys;
    struct ct_policy_field policy;
    struct ct_manifest *manifest; /* a reference, or NULL */
    struct ct_deks deks;
    struct ct_arena arena; /* of the arrays that follow */
    struct tensor *tensors;
    size_t tensor_count;
    struct extent *extents;
    uint32_t extent_count;
    struct ct_buf view; /* the view's first bytes */

    pthread_mutex_t lock; /* guards what follows */
    struct long_message *longs;
    size_t long_count;
    uint64_t loads;           /* so far */
    struct ct_secret *pieces; /* struct ct_piece, of all long messages; NULL if there are none */
    struct ct_aead *idle[8];  /* contexts between two reads */
    unsigned idle_count;

    struct ct_model_info info;
};

/* The unit of authentication that begins at `at` in a tensor. */
struct unit {
    uint64_t begin; /* in the body */
    uint32_t len;
    uint64_t message; /* index of its message in the tensor; encrypted only */
    uint64_t piece;   /* index in a long message, or among the manifest's digests */
    bool is_long;
};

/* ---- extents.c ---- */
void ct_unit_at(const struct ct_model *m, const struct tensor *t, uint64_t at, struct unit *out);
/* Begin and length, in the body, of the message that a unit of an encrypted tensor belongs to. */
uint64_t ct_message_begin(const struct ct_model *m, const struct tensor *t, const struct unit *u);
uint64_t ct_message_len(const struct ct_model *m, const struct tensor *t, const struct unit *u);
/* Makes m->extents and m->longs. */
int ct_extents_make(struct ct_model *m, struct ct_err *err);

#endif
