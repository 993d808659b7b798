/*
 * What a file of a model directory is, by name and content. Weights that can't be encrypted must
 * not slip through as side files: what is not recognised and large counts as weights too.
 */
#ifndef KVFS_WEIGHTS_H
#define KVFS_WEIGHTS_H

#include "format/header.h"

enum kvfs_what {
    KVFS_WHAT_SIDE,      /* nothing that asks for encryption */
    KVFS_WHAT_PLAIN,     /* safetensors */
    KVFS_WHAT_ENCRYPTED, /* CryptoTensors */
    KVFS_WHAT_BROKEN,    /* begins or is named as one of these two, and is none */
    KVFS_WHAT_WEIGHTS,   /* weights in another container */
};

/* A file that nothing is known of counts as weights above this size, unless it begins as text. */
enum { KVFS_UNKNOWN_MAX = 64 << 20 };

struct kvfs_recognised {
    enum kvfs_what what;
    struct ct_measure measure; /* PLAIN, ENCRYPTED */
    char why[CT_ERR_MSG_MAX];  /* BROKEN, WEIGHTS: what it is */
};

/* -1 only when the file can't be read (CT_IO, CT_STALE, CT_NOMEM). */
int kvfs_recognise(struct ct_source *s, const struct ct_version *v, const char *path,
                   struct kvfs_recognised *out, struct ct_err *err);

#endif
