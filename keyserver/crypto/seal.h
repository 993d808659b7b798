/*
 * Secrets at rest: AES-256-GCM under a key from outside the database, bound to the place where they
 * lie. A row that is copied to another place, owner or generation does not open.
 *
 * Key file: a JWK Set of `oct` keys with `alg` A256GCM, `kid` and `k` (base64url, 32 bytes). The
 * first one seals, all of them open: that is how the key is rotated. A random 96-bit IV each; far
 * fewer than 2^32 secrets are ever sealed under one key.
 */
#ifndef KS_SEAL_H
#define KS_SEAL_H

#include "format/base/bytes.h"
#include "format/base/secret.h"

enum { KS_SEALKEY_ID = 8 }; /* characters of a sealing key's kid */

struct ks_seal;

struct ks_place {
    const char *table, *row, *column;
    const char *owner;  /* id of the user or model that it belongs to; "" for the server's own */
    int64_t generation; /* 0 where there is none */
};

/* Makes a key file (mode 0600); CT_EXISTS rather than overwrite one. */
int ks_seal_create(const char *path, struct ct_err *err);
/* Reads it. Kept; to be freed with ks_seal_free(). Thread-safe from then on. */
int ks_seal_open(const char *path, struct ks_seal **out, struct ct_err *err);
void ks_seal_free(struct ks_seal *s);
/* Rotation, in the file and in memory. A new key at the end: it opens, and seals nothing yet. */
int ks_seal_add(struct ks_seal *s, struct ct_err *err);
/* The last key to the front: it seals from now on. */
int ks_seal_use(struct ks_seal *s, struct ct_err *err);
/* Leaves only the first one. */
int ks_seal_drop_old(struct ks_seal *s, struct ct_err *err);

int ks_seal(struct ks_seal *s, const struct ks_place *at, const struct ct_secret *secret,
            struct ct_buf *out, struct ct_err *err);
/* CT_NOKEY when the key is not in the file (which is read again first); CT_REJECTED when it does
 * not open here. */
int ks_unseal(struct ks_seal *s, const struct ks_place *at, const uint8_t *sealed, size_t n,
              struct ct_secret **out, struct ct_err *err);

#endif
