/*
 * The ciphers. kvfs calls the functions below (and pieces.h, stream.h) and does not know which
 * library answers: OpenSSL, or Intel's ipsec-mb where it was built in, gives right answers on this
 * machine and is faster. backend.h is what stands behind.
 */
#ifndef CT_AEAD_H
#define CT_AEAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/base/err.h"

enum ct_alg { CT_ALG_NONE, CT_ALG_AES128GCM, CT_ALG_AES256GCM, CT_ALG_CHACHA20POLY1305 };

size_t ct_alg_key_len(enum ct_alg alg);                 /* 16 or 32; 0 for CT_ALG_NONE */
const char *ct_alg_name(enum ct_alg alg);               /* "aes256gcm" */
enum ct_alg ct_alg_parse(const char *text, size_t len); /* case and '-' ignored; NONE if unknown */

/* A key made ready for use. Holds the key schedule: lives in wiped memory; one thread at a time. */
struct ct_aead;

struct ct_aead *ct_aead_new(enum ct_alg alg, const uint8_t *key, struct ct_err *err);
/* Loads another key of the same algorithm into it: cheaper than a new one. */
int ct_aead_rekey(struct ct_aead *a, const uint8_t *key, struct ct_err *err);
void ct_aead_free(struct ct_aead *a); /* wipes; NULL is allowed */
enum ct_alg ct_aead_alg(const struct ct_aead *a);

/* One message; `in` and `out` may be the same. 12-byte IV, no associated data, 16-byte tag. On a
 * failed tag `out` is zeroed and the code is CT_TAG. */
int ct_aead_open(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                 const uint8_t tag[static 16], uint8_t *out, struct ct_err *err);
/* Reads n bytes of ciphertext at `offset` in the message. 0, or -1 with err. */
typedef int (*ct_aead_read_fn)(void *ctx, uint64_t offset, uint8_t *buf, size_t n,
                               struct ct_err *err);
/* As ct_aead_open(), of a ciphertext that is read part by part, in order: each is still in the
 * processor's cache when it is decrypted, and `out` is written to once. Nobody may see `out`
 * before this has succeeded; when reading fails, too, it is zeroed. */
int ct_aead_open_read(struct ct_aead *a, const uint8_t iv[static 12], ct_aead_read_fn read,
                      void *ctx, size_t n, const uint8_t tag[static 16], uint8_t *out,
                      struct ct_err *err);
int ct_aead_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t *out, uint8_t tag[static 16], struct ct_err *err);

/*
 * Which backend serves. Before its first use in a process an algorithm is tried out: each backend
 * has to give known answers, and is timed (some milliseconds in all). AUTO then takes the faster
 * for each operation. A backend that is asked for by name has to be there and to be right, or the
 * call fails with CT_UNSUPPORTED; what it does not have at all (ipsec-mb: ChaCha20 from the middle
 * of a message) OpenSSL does.
 */
enum ct_crypto { CT_CRYPTO_AUTO, CT_CRYPTO_OPENSSL, CT_CRYPTO_IPSEC };

/* What they are called: "auto", "openssl", "ipsec"; ends with NULL. */
extern const char *const ct_crypto_names[];

/* What the environment variable KVFS_CRYPTO names; AUTO without it. */
int ct_crypto_environment(enum ct_crypto *out, struct ct_err *err);
/* For all contexts that are made from now on. Where nobody calls it the environment decides. */
void ct_aead_use(enum ct_crypto crypto);
/* Tries all algorithms out now; afterwards libraries open no files and ask no kernel. */
int ct_aead_prepare(struct ct_err *err);

/* How an operation is done, and what the trial gave in GB/s (10^9 bytes; 0: not there, or wrong).
 */
struct ct_aead_choice {
    const char *operation; /* "open", "encrypt", "gmac", "chacha20", "poly1305" */
    const char *backend;   /* "openssl" or "ipsec" */
    double openssl, ipsec;
};
enum { CT_AEAD_CHOICES = 5 };
/* Returns how many there are; 0 when the algorithm cannot be used. */
size_t ct_aead_choices(enum ct_alg alg, struct ct_aead_choice out[static CT_AEAD_CHOICES]);

#endif
