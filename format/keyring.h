/*
 * Keys. `struct ct_keysource` is the seam: the format asks it for the key that a header names and
 * does not know whether a local file or a key server answers. The keyring is the local one: JWK
 * (RFC 7517) and JWK Set files, CRYPTOTENSOR_KEYS, and `file://` in jku beneath named directories.
 *
 * Choice: by kty and kid. A key of that kid for another algorithm is CT_REJECTED. Where the header
 * names no kid: the one key of that kty and algorithm, CT_NOKEY if there is none or more than one.
 * Two different keys of one kty and kid: CT_REJECTED (ambiguous), when asked for.
 */
#ifndef CT_KEYRING_H
#define CT_KEYRING_H

#include "format/base/secret.h"
#include "format/meta.h"
#include "format/sign.h"

struct ct_keysource {
    /* The master key that `ref` names, owned by the caller. CT_NOKEY, CT_REJECTED. */
    int (*master)(struct ct_keysource *ks, const struct ct_keyref *ref, struct ct_secret **out,
                  struct ct_err *err);
    /* The Ed25519 public key. Never taken from the file or from a jku. */
    int (*verify)(struct ct_keysource *ks, const struct ct_keyref *ref,
                  uint8_t pub[static CT_ED25519_PUB], struct ct_err *err);
};

struct ct_keyring;

struct ct_keyring *ct_keyring_new(struct ct_err *err);
void ct_keyring_free(struct ct_keyring *r);

/* Adds the keys of a JWK or JWK Set. `where` (a file's name) is for messages only. A key that is
 * not understood is skipped with a warning in the log; text that is neither is CT_MALFORMED. */
int ct_keyring_add(struct ct_keyring *r, const uint8_t *json, size_t n, const char *where,
                   struct ct_err *err);
size_t ct_keyring_count(const struct ct_keyring *r);

/* Opens the path of a `file://` jku, read-only, beneath a directory the operator named; a
 * descriptor owned by the caller, or -1. Only master keys are looked for in it. */
typedef int (*ct_jku_open_fn)(void *ctx, const char *path, struct ct_err *err);
void ct_keyring_set_jku(struct ct_keyring *r, ct_jku_open_fn fn, void *ctx);

/* The seam's view of the ring; borrowed, lives as long as the ring. Thread-safe. */
struct ct_keysource *ct_keyring_source(struct ct_keyring *r);

/* For writers: the private signing key of this kid (NULL: the only one). The public half is in
 * `pub`; `kid` points into the ring. */
int ct_keyring_signer(struct ct_keyring *r, const char *kid, const struct ct_secret **seed,
                      struct ct_span *kid_out, uint8_t pub[static CT_ED25519_PUB],
                      struct ct_err *err);
/* For writers: the master key of this kid (NULL: the only one) with its algorithm. */
int ct_keyring_master(struct ct_keyring *r, const char *kid, const struct ct_secret **key,
                      enum ct_alg *alg, struct ct_span *kid_out, struct ct_err *err);

/* The `jku` of the JWK that one of these two keys came from; n = 0 where it has none. Points into
 * the ring. */
struct ct_span ct_keyring_jku(const struct ct_keyring *r, const struct ct_secret *key);

/* Makes a new random key and appends it as a JWK (with private members) to `out`, a wiped buffer;
 * with alg NONE an Ed25519 pair, and its public half as a second JWK to `pub_out`. */
int ct_key_generate(enum ct_alg alg, const char *kid, struct ct_buf *out, struct ct_buf *pub_out,
                    struct ct_err *err);

#endif
