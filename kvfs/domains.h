/*
 * The manifests of a directory tree, and what each governs: its directory and all below, up to a
 * deeper manifest in a directory of which it lists nothing.
 */
#ifndef KVFS_DOMAINS_H
#define KVFS_DOMAINS_H

#include "format/manifest.h"
#include "kvfs/walk.h"

struct kvfs_domain {
    char *dir;                    /* "" is the root */
    struct ct_manifest *manifest; /* what lies there, or NULL */
    struct ct_err why;            /* why there is none although a file lies there */
    struct ct_buf text;           /* of the file */
    uint64_t generation;          /* for those who write: of the new one, */
    bool sign;                    /* which is made, or the text is taken along */
};

struct kvfs_domains {
    struct kvfs_domain *items; /* deepest first */
    size_t count;
};

/* Finds and checks every kvfs.manifest. One that can't be read or is not valid is an error, or,
 * with `tolerate`, a domain without manifest and with a reason. */
int kvfs_domains_find(struct kvfs_domains *d, const struct kvfs_walk *walk,
                      struct ct_keysource *keys, bool tolerate, struct ct_err *err);
/* Adds one for a directory that has none. Pointers to domains that were taken before are void. */
struct kvfs_domain *kvfs_domains_add(struct kvfs_domains *d, const char *dir, size_t n,
                                     struct ct_err *err);
void kvfs_domains_free(struct kvfs_domains *d);

/* The one that governs a path, or NULL. */
struct kvfs_domain *kvfs_domain_of(const struct kvfs_domains *d, const char *path);
/* The path as the domain's manifest lists it. */
const char *kvfs_path_in(const struct kvfs_domain *domain, const char *path);
bool kvfs_is_manifest(const struct kvfs_item *item);
const char *kvfs_base_name(const char *path);
/* Opens the directory in which `path` lies. -1 with err. */
int kvfs_open_dir_of(const char *path, struct ct_err *err);

#endif
