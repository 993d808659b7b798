/*
 * One long AEAD message, read in pieces: a version 1 tensor, or a version 2 chunk, of more than
 * CT_PIECE bytes. It is authenticated once as a whole; on the way something secret is kept of each
 * piece, with which every later read of the piece is compared, since the ciphertext in the source
 * is not trusted between two reads. format/README.md 6 says how.
 *
 * Thread-safe: threads that need the message while it is being authenticated take pieces and help.
 */
#ifndef CT_MESSAGE_H
#define CT_MESSAGE_H

#include "format/aead/pieces.h"
#include "format/meta.h"

struct ct_message;

/* Reads a part of a piece, or all of it. One thread reads all parts of a piece, from its beginning
 * to its end. */
typedef ct_aead_read_fn ct_message_read_fn;

/* n > 0 bytes of ciphertext. `pieces` is room for ct_piece_count(n) of them, in secret memory
 * that is borrowed as long as the message lives. */
struct ct_message *ct_message_new(const uint8_t iv[static CT_IV_LEN],
                                  const uint8_t tag[static CT_TAG_LEN], uint64_t n,
                                  struct ct_piece *pieces, struct ct_err *err);
void ct_message_free(struct ct_message *m); /* NULL is allowed */

/* Authenticates the message unless that was done. CT_TAG is remembered; any other failure is this
 * call's only. `a` is keyed with the message's DEK and is used by the caller's thread alone. */
int ct_message_authenticate(struct ct_message *m, struct ct_aead *a, ct_message_read_fn read,
                            void *ctx, struct ct_err *err);

/* Where a message is decrypted to while it is authenticated. */
struct ct_landing {
    uint8_t *to;          /* room for all of it */
    uint64_t number;      /* which no other landing of this message has; not 0 */
    struct ct_aead *aead; /* keyed like the other one, which is busy meanwhile */
};

/* The same, and decrypts at once what this caller reads (landing NULL: does not); others may read
 * the rest, and it does not land here. Nobody may see what landed before this has succeeded. */
int ct_message_load(struct ct_message *m, struct ct_aead *a, ct_message_read_fn read, void *ctx,
                    const struct ct_landing *landing, struct ct_err *err);
/* Whether piece `index` landed there: what was authenticated is what was decrypted to there, by
 * whichever of the callers with this number. Only after ct_message_load() succeeded. */
bool ct_message_landed(struct ct_message *m, uint64_t index, uint64_t number);
/* Whether that has an outcome already. */
bool ct_message_is_settled(struct ct_message *m);

/* Decrypts piece `index` (n bytes of ciphertext, as just read) in place. CT_TAG, with `buf` zeroed,
 * when it is not what was authenticated. Only after ct_message_authenticate() succeeded. */
int ct_message_open(struct ct_message *m, struct ct_aead *a, uint64_t index, uint8_t *buf, size_t n,
                    struct ct_err *err);

#endif
