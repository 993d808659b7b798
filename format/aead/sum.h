/*
 * The sum of a ciphertext: what its tag is made of (GHASH, Poly1305), without decrypting it. It is
 * taken part by part, so that a part is still in the processor's cache when it has just been read.
 * Of a whole message the sum tells whether the tag is right, of a piece it is the piece's share.
 *
 * A sum uses its context alone until it has ended. What it holds is secret.
 */
#ifndef CT_SUM_H
#define CT_SUM_H

#include "format/aead/gf1305.h"
#include "format/aead/pieces.h"

/* A good size of parts: few calls, and small beside a second-level cache of 1 or 2 MiB. */
enum { CT_SUM_PART = 524288 };

struct ct_sum {
    struct ct_aead *aead;
    uint8_t iv[12];
    uint64_t len;
    struct ct_gf1305 poly, r; /* of ChaCha20-Poly1305: so far, and what to multiply it by */
};

/* `iv` is the message's. */
int ct_sum_start(struct ct_sum *s, struct ct_aead *a, const uint8_t iv[static 12],
                 struct ct_err *err);
/* n > 0 more bytes; all parts but the last one are multiples of 16. */
int ct_sum_add(struct ct_sum *s, const uint8_t *in, size_t n, struct ct_err *err);
/* Of a piece of a message. */
int ct_sum_share(struct ct_sum *s, struct ct_piece *out, struct ct_err *err);
/* Of a whole message: CT_TAG unless that is its tag. Then the ciphertext is authentic. */
int ct_sum_check(struct ct_sum *s, const uint8_t tag[static 16], struct ct_err *err);
/* Wipes. To be called in any case, also after a failure. */
void ct_sum_end(struct ct_sum *s);

/* ---- for pieces.c ---- */

/* The block of lengths in GHASH: n bytes of associated data or of ciphertext. */
void ct_gcm_lengths(uint8_t block[static 16], uint64_t aad, uint64_t text);
/* E(J0) under that IV: the mask of its tags. */
int ct_gcm_mask(struct ct_aead *a, const uint8_t *iv, size_t iv_len, uint8_t out[static 16]);
/* H, the key of GHASH. */
int ct_gcm_h(struct ct_aead *a, uint8_t h[static 16]);
/* The key of Poly1305 for that IV. */
int ct_poly_key(struct ct_aead *a, const uint8_t iv[static 12], uint8_t key[static 32]);

#endif
