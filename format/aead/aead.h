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

size_t ct_alg_key_len(enum ct_alg alg); /* 16 or 32; 0 for CT_ALG_NONE */
const char *ct_alg_name(enum ct_alg alg);                 /* "aes256gcm" */
enum ct_alg ct_alg_parse(const char *text, size_t len); /* case and '-' ignored; NONE if unknown */

/* A key made ready for use. Holds key schedule: lives in wiped memory; one thread at a time. */
struct ct_aead;

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
 * Messages too long to be decrypted whole (version 1 tensors, version 2 chunks above a slot) are
 * authenticated once, in pieces of CT_PIECE bytes, and each piece is checked again whenever it is
 * read, since the ciphertext is not trusted between two reads.
 *
 * ct_pieces_digest() gives 16 secret bytes for piece `index`; ct_pieces_check() says whether the
 * digests of all pieces belong to the message's tag; ct_pieces_open() decrypts one piece whose
 * ciphertext has that digest (CT_TAG otherwise, with `out` zeroed). Digests may be taken in any order and
 * in parallel (one ct_aead per thread). For ChaCha20-Poly1305 see format/aead/README.md.
 */
enum { CT_PIECE = 2097152, CT_PIECE_DIGEST = 16 };

struct ct_pieces; /* one per message: n, iv, tag, digests and state; see message.h */

#endif
