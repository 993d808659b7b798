/*
 * The one seam for ciphers. Backends fill `struct ct_aead_ops`; the rest of kvfs calls the
 * functions below and does not know which backend answers.
 */
#ifndef CT_AEAD_H
#define CT_AEAD_H

#include <stddef.h>
#include <stdint.h>

#include "format/base/err.h"

enum ct_alg { CT_ALG_NONE, CT_ALG_AES128GCM, CT_ALG_AES256GCM, CT_ALG_CHACHA20POLY1305 };

size_t ct_alg_key_len(enum ct_alg alg);                 /* 16 or 32; 0 for CT_ALG_NONE */
const char *ct_alg_name(enum ct_alg alg);               /* "aes256gcm" */
enum ct_alg ct_alg_parse(const char *text, size_t len); /* case and '-' ignored; NONE if unknown */

/* A key made ready for use. Holds key schedule: lives in wiped memory; one thread at a time. */
struct ct_aead; /* below */

struct ct_aead *ct_aead_new(enum ct_alg alg, const uint8_t *key, struct ct_err *err);
/* Loads another key of the same algorithm into it: cheaper than a new one. */
int ct_aead_rekey(struct ct_aead *a, const uint8_t *key, struct ct_err *err);
void ct_aead_free(struct ct_aead *a); /* wipes; NULL is allowed */

/* One message; `in` and `out` may be the same. 12-byte IV, no associated data, 16-byte tag. On a
 * failed tag `out` is zeroed and the code is CT_TAG. */
int ct_aead_open(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                 const uint8_t tag[static 16], uint8_t *out, struct ct_err *err);
int ct_aead_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t *out, uint8_t tag[static 16], struct ct_err *err);

/*
 * Pieces: parts of one long message, decrypted one at a time (format/message.h). A piece's digest
 * is 16 bytes that say what its ciphertext was when the message was authenticated; they are secret.
 * A piece begins at a multiple of CT_PIECE in its message.
 */
enum { CT_PIECE = 2097152, CT_PIECE_DIGEST = 16 };

/* For AES-GCM the digest is the piece's share of GHASH, under the message's key, so that the
 * digests of all pieces together give the message's tag and may be taken in any order; `salt`
 * is not used. For ChaCha20-Poly1305 it is a one-time Poly1305 under a key derived from `salt` (32
 * secret bytes of the message) and `index`: it says nothing of the tag. */
int ct_aead_piece_digest(struct ct_aead *a, const uint8_t salt[static 32], uint64_t index,
                         const uint8_t *in, size_t n, uint8_t digest[static CT_PIECE_DIGEST],
                         struct ct_err *err);
/* AES-GCM: whether the `count` digests belong to the message of n bytes with this IV and tag.
 * CT_TAG if not. */
int ct_aead_pieces_check(struct ct_aead *a, const uint8_t iv[static 12],
                         const uint8_t (*digests)[CT_PIECE_DIGEST], uint64_t count, uint64_t n,
                         const uint8_t tag[static 16], struct ct_err *err);
/* Decrypts piece `index`, whose ciphertext must have this digest. On CT_TAG `out` is zeroed. */
int ct_aead_piece_open(struct ct_aead *a, const uint8_t iv[static 12],
                       const uint8_t salt[static 32], uint64_t index, const uint8_t *in, size_t n,
                       const uint8_t digest[static CT_PIECE_DIGEST], uint8_t *out,
                       struct ct_err *err);

/* What a backend provides; openssl.c is always there. */
struct ct_aead_ops {
    const char *name;
    struct ct_aead *(*create)(enum ct_alg alg, struct ct_err *err);
    void (*destroy)(struct ct_aead *a);
    int (*set_key)(struct ct_aead *a, const uint8_t *key);
    /* IVs have 12 or, for AES-GCM, 16 bytes. open: 0, 1 if the tag fails, -1 on trouble. */
    int (*open)(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in, size_t n,
                const uint8_t tag[static 16], uint8_t *out);
    int (*encrypt)(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                   uint8_t *out, uint8_t tag[static 16]);
    /* AES-GCM: the tag over n bytes of associated data and no plaintext. */
    int (*gmac)(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in, size_t n,
                uint8_t tag[static 16]);
};

extern const struct ct_aead_ops ct_aead_openssl;

/* What every backend's context begins with. */
struct ct_aead {
    const struct ct_aead_ops *ops;
    enum ct_alg alg;
    uint8_t key[32];
    /* AES-GCM, once a piece was asked for: the hash key, its inverse, its power by a whole piece.
     */
    int have_h;
    uint8_t h[16], h_inverse[16], h_piece[16];
};

#endif
