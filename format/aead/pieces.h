/*
 * Pieces: parts of one long message that are decrypted one at a time. The message is authenticated
 * once: every piece gives its share of the message's tag, in any order and on any thread, and
 * ct_pieces_check() puts the shares together. What is kept of each piece then tells whether its
 * ciphertext is still the same. format/README.md 6 says how; message.h is who calls this.
 *
 * A piece begins at a multiple of CT_PIECE in its message, and only the last one is shorter. The
 * context `a` holds the message's key. A context serves one thread, a message's pieces may be
 * shared out over many.
 */
#ifndef CT_PIECES_H
#define CT_PIECES_H

#include "format/aead/aead.h"

enum { CT_PIECE = 2097152 };

static inline uint64_t ct_piece_count(uint64_t n)
{
    return n / CT_PIECE + (n % CT_PIECE != 0);
}

/* Secret: with it one could forge. Belongs in a ct_secret. */
struct ct_piece {
    uint8_t bytes[32];
};

/* The share of n bytes of ciphertext. */
int ct_piece_share(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                   struct ct_piece *out, struct ct_err *err);
/* CT_TAG unless the shares of all pieces make up the tag of this message of n > 0 bytes. Then the
 * pieces can be opened; otherwise they must not be used. */
int ct_pieces_check(struct ct_aead *a, const uint8_t iv[static 12], struct ct_piece *pieces,
                    uint64_t n, const uint8_t tag[static 16], struct ct_err *err);
/*
 * Decrypting a piece while its share is taken, part by part. Nobody may see the plaintext before
 * ct_pieces_check() has accepted the share of the same bytes. A stream uses its context alone, also
 * for several pieces one after the other.
 */
struct ct_piece_stream {
    struct ct_aead *aead;
    uint8_t iv[12];
    uint8_t h_inverse[16]; /* of AES-GCM */
    uint32_t block;        /* of ChaCha20 */
};
int ct_piece_stream_init(struct ct_piece_stream *s, struct ct_aead *a, const uint8_t iv[static 12],
                         struct ct_err *err);
int ct_piece_stream_start(struct ct_piece_stream *s, uint64_t index, struct ct_err *err);
/* n more bytes; all parts but a piece's last one are multiples of 64. */
int ct_piece_stream_add(struct ct_piece_stream *s, const uint8_t *in, size_t n, uint8_t *out,
                        struct ct_err *err);
void ct_piece_stream_end(struct ct_piece_stream *s); /* wipes; also after a failure */

/* Decrypts piece `index` in place. CT_TAG, and the buffer zeroed, if it is not the ciphertext that
 * was authenticated. */
int ct_piece_open(struct ct_aead *a, const uint8_t iv[static 12], uint64_t index,
                  const struct ct_piece *piece, uint8_t *buf, size_t n, struct ct_err *err);

#endif
