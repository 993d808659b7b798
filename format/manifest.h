/*
 * The signed manifest of a model directory, `kvfs.manifest` (format/README.md 7): a flattened JWS
 * (RFC 7515, EdDSA, `typ` "kvfs-manifest+json") over JSON that lists every path with what
 * authenticates it. It governs its directory and all below, up to a deeper manifest in a directory
 * of which it lists nothing: a genuine manifest of another release takes nothing from it.
 */
#ifndef CT_MANIFEST_H
#define CT_MANIFEST_H

#include "format/keyring.h"

#define CT_MANIFEST_NAME "kvfs.manifest"

enum { CT_MANIFEST_MAX = 64 << 20, CT_DIGEST = 32, CT_DIGEST_PIECE = 1 << 20 };

enum ct_entry_kind { CT_ENTRY_FILE, CT_ENTRY_LINK, CT_ENTRY_SHARD };

/* Digests of consecutive pieces of `piece` bytes, the last one shorter. */
struct ct_digests {
    uint64_t begin, end; /* of the file, or of the body for a shard's unencrypted tensor */
    uint32_t piece;
    size_t count;
    const uint8_t (*sha256)[CT_DIGEST];
};

struct ct_entry {
    enum ct_entry_kind kind;
    const char *path;          /* relative, `/` between components, no `.` or `..` */
    uint64_t size;             /* FILE: bytes. SHARD: bytes of the body */
    uint8_t sha256[CT_DIGEST]; /* FILE: of the whole. SHARD: of the header's immutable part */
    struct ct_digests pieces;  /* FILE above 1 MiB; count 0 otherwise */
    const char *target;        /* LINK */
    size_t plain_count;        /* SHARD: one for each non-empty tensor that is not encrypted, */
    const struct ct_digests *plain; /* by begin */
};

struct ct_manifest; /* immutable, refcounted */

/* Checks the JWS with the key that its protected header's kid names (`keys->verify`) and parses
 * the payload. CT_MALFORMED, CT_REJECTED, CT_NOKEY, CT_UNSUPPORTED. */
int ct_manifest_parse(const uint8_t *jws, size_t n, struct ct_keysource *keys,
                      struct ct_manifest **out, struct ct_err *err);
struct ct_manifest *ct_manifest_ref(struct ct_manifest *m);
void ct_manifest_unref(struct ct_manifest *m);

uint64_t ct_manifest_generation(const struct ct_manifest *m);
size_t ct_manifest_count(const struct ct_manifest *m);
const struct ct_entry *ct_manifest_at(const struct ct_manifest *m, size_t i); /* by bytes of path */
/* NULL if it is not listed. */
const struct ct_entry *ct_manifest_find(const struct ct_manifest *m, const char *path);
/* Whether some entry lies beneath the directory `path` ("" is the manifest's own). */
bool ct_manifest_has_dir(const struct ct_manifest *m, const char *path);
/* SHA-256 over the JWS as stored, hex. */
const char *ct_manifest_digest(const struct ct_manifest *m);

/* Building one. Entries may be added in any order; two of one path are refused. */
struct ct_manifest_builder;
struct ct_manifest_builder *ct_manifest_builder_new(uint64_t generation, struct ct_err *err);
/* Copies everything that `e` points to. */
int ct_manifest_builder_add(struct ct_manifest_builder *b, const struct ct_entry *e,
                            struct ct_err *err);
/* Signs and appends the JWS to `out`. */
int ct_manifest_builder_sign(struct ct_manifest_builder *b, const struct ct_secret *seed,
                             struct ct_span kid, struct ct_buf *out, struct ct_err *err);
void ct_manifest_builder_free(struct ct_manifest_builder *b);

/* Compares n bytes at `offset` (a whole number of pieces, or up to the end) with `d`. CT_TAG. */
int ct_digests_check(const struct ct_digests *d, uint64_t offset, const uint8_t *bytes, size_t n,
                     struct ct_err *err);

#endif
