/*
 * What a file says of itself, without any key: nothing of it is authenticated.
 */
#ifndef KVFS_INSPECT_H
#define KVFS_INSPECT_H

#include <jansson.h>

#include "format/meta.h"
#include "kvfs/walk.h"

enum kvfs_inspected_kind {
    KVFS_IS_ENCRYPTED,
    KVFS_IS_PLAIN,   /* safetensors */
    KVFS_IS_WEIGHTS, /* in another container */
    KVFS_IS_SIDE,
    KVFS_IS_MANIFEST,
    KVFS_IS_LINK,
    KVFS_IS_SPECIAL,
    KVFS_IS_BROKEN,
};

struct kvfs_inspected {
    char *path; /* NULL when memory ran out */
    enum kvfs_inspected_kind kind;
    uint64_t size;
    char why[CT_ERR_MSG_MAX]; /* BROKEN; WEIGHTS: what they are; LINK: where to */

    /* ENCRYPTED, and PLAIN as far as it goes; of a BROKEN one what could be read */
    int version; /* of CryptoTensors; 0 where it was not read */
    enum ct_alg alg;
    uint64_t chunk_size;
    char enc_kid[256], sign_kid[256], jku[512];
    size_t tensors, encrypted;
    uint64_t plain_bytes;  /* of tensors that are not encrypted */
    char plain_first[128]; /* the name of the first such tensor */
    char unknown[128];     /* dtypes that are not known here, by commas */
    struct ct_policy_field policy;

    /* MANIFEST */
    uint64_t generation;
    json_t *listed; /* set of paths */
};

/* Looks at the file that fd is open on (taken over; -1 for what is no file); `item` says its path
 * and what fstat said. Everything that is wrong with it goes into *out. */
void kvfs_inspect(int fd, const struct kvfs_item *item, struct kvfs_inspected *out);
void kvfs_inspect_unreadable(const struct kvfs_item *item, const char *why,
                             struct kvfs_inspected *out);
void kvfs_inspected_release(struct kvfs_inspected *i);
/* "encrypted", "plain", …: stable, for JSON. */
const char *kvfs_inspected_name(enum kvfs_inspected_kind kind);
/* Whether a policy text is the one that writers put where none is given. */
bool kvfs_policy_is_default(const char *text, size_t n);

#endif
