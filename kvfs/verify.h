/*
 * Authenticates every byte of a file: of an encrypted one every chunk, of another one what a
 * manifest says.
 */
#ifndef KVFS_VERIFY_H
#define KVFS_VERIFY_H

#include "format/model.h"
#include "kvfs/domains.h"

enum { KVFS_VERIFY_DAMAGES = 8 }; /* that are kept of one file */

struct kvfs_verified {
    bool wrong;
    struct ct_err why;         /* the file as a whole; code CT_OK if it is not that */
    struct ct_damages damages; /* the first of them */
    uint64_t damage_count;     /* all of them */
    bool model;                /* it is an encrypted file */
    struct ct_model_info info; /* then */
    struct ct_err policy;      /* why its policy refuses here and now; CT_OK if it allows */
    uint64_t bytes;            /* authenticated */
};

struct kvfs_verify {
    struct ct_keysource *keys;
    unsigned threads; /* 0: one a CPU */
};

/* `in` is taken over. `entry` of `manifest` is what a manifest says of it, or NULL; `path` as the
 * manifest lists it. Progress goes to kvfs/progress.h. -1 only when interrupted. */
int kvfs_verify_model(const struct kvfs_verify *how, struct ct_source *in,
                      const struct ct_version *v, const struct ct_manifest *manifest,
                      const char *path, struct kvfs_verified *out);
int kvfs_verify_plain(struct ct_source *in, const struct ct_version *v,
                      const struct ct_entry *entry, struct kvfs_verified *out);
void kvfs_verified_release(struct kvfs_verified *v);

#endif
