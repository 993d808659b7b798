/* Which manifest governs a path: the nearest one, unless one above it lists something there. */
#ifndef KVFS_SERVE_RULES_H
#define KVFS_SERVE_RULES_H

#include <limits.h>

#include "format/manifest.h"

struct kvfs_serve;

struct kvfs_rule {                /* what governs a path */
    struct ct_manifest *manifest; /* a reference of the caller's, or NULL */
    char rest[PATH_MAX];          /* the path, relative to its directory */
    char dir[PATH_MAX];
    bool refused; /* there is a manifest, and it is not valid: why */
    struct ct_err why;
};

/* The rule for a name; of a directory (`is_dir`) its own manifest counts. -1: CT_NOMEM. */
int kvfs_judge_rule(struct kvfs_serve *s, const char *path, bool is_dir, struct kvfs_rule *out,
                    struct ct_err *err);

#endif
