/* What manifest.c, manifest_read.c and manifest_build.c share. Not for others. */
#ifndef CT_MANIFEST_PARTS_H
#define CT_MANIFEST_PARTS_H

#include <stdatomic.h>

#include "format/base/arena.h"
#include "format/base/sha256.h"
#include "format/manifest.h"

#define CT_MANIFEST_TYP "kvfs-manifest+json"

enum {
    CT_MANIFEST_VERSION = 1,
    CT_MANIFEST_PATH_MAX = 4095,
    CT_MANIFEST_NAME_MAX = 255, /* bytes of one component */
};

/* Integers stay where every JSON library keeps them exact. */
#define CT_MANIFEST_INT_MAX ((UINT64_C(1) << 53) - 1)

struct ct_manifest {
    atomic_uint refs;
    uint64_t generation;
    size_t count;
    struct ct_entry *entries; /* by bytes of path; what they point to is in the arena */
    struct ct_arena arena;
    char digest[2 * CT_DIGEST + 1];
};

/* How many digests `len` bytes have. */
static inline uint64_t ct_digest_count(uint64_t len)
{
    return len / CT_DIGEST_PIECE + (len % CT_DIGEST_PIECE != 0);
}

/* The rules for one entry, and for all of them together, sorted by path. The same for what is
 * read (code CT_MALFORMED) and what is about to be written (CT_USAGE). */
int ct_entry_check(const struct ct_entry *e, enum ct_code code, struct ct_err *err);
int ct_entries_check(const struct ct_entry *entries, size_t count, enum ct_code code,
                     struct ct_err *err);
int ct_entry_compare(const void *a, const void *b); /* for qsort */

/* Fills generation, count and entries. */
int ct_manifest_read_payload(struct ct_manifest *m, const uint8_t *json, size_t n,
                             struct ct_err *err);

#endif
