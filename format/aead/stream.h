/*
 * Encrypting one message that is too long for memory: its bytes come in parts, its tag at the
 * end. Behind the same seam as aead.h. There is no counterpart for decryption on purpose: it would
 * give out bytes before their tag was checked.
 */
#ifndef CT_AEAD_STREAM_H
#define CT_AEAD_STREAM_H

#include "format/aead/aead.h"

/* The longest message of an algorithm: 2^36 - 32 bytes of AES-GCM (NIST SP 800-38D section
 * 5.2.1.1), 2^38 - 64 of ChaCha20-Poly1305 (RFC 8439 section 2.8). Beyond, the counter wraps. */
uint64_t ct_aead_message_max(enum ct_alg alg);

struct ct_aead_stream;

struct ct_aead_stream *ct_aead_stream_new(enum ct_alg alg, const uint8_t *key,
                                          const uint8_t iv[static 12], struct ct_err *err);
/* `in` and `out` may be the same. */
int ct_aead_stream_update(struct ct_aead_stream *s, const uint8_t *in, size_t n, uint8_t *out,
                          struct ct_err *err);
/* Once, after the last part. */
int ct_aead_stream_tag(struct ct_aead_stream *s, uint8_t tag[static 16], struct ct_err *err);
void ct_aead_stream_free(struct ct_aead_stream *s); /* wipes; NULL is allowed */

#endif
