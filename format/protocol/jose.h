/*
 * JOSE objects as keyserver/PROTOCOL.md section 4 has them: flattened JSON, exactly the members
 * listed there, by libjose. Every object is checked here before the library sees it, so that
 * nothing in it can choose how it is treated. All keys are P-256 JWKs as JSON objects, borrowed.
 *
 * Errors: CT_MALFORMED for the form, CT_UNSUPPORTED for another alg or enc, CT_REJECTED for another
 * typ or kid and for a signature or decryption that fails.
 */
#ifndef KX_JOSE_H
#define KX_JOSE_H

#include <jansson.h>

#include "format/base/bytes.h"

enum { KX_THUMBPRINT = 43 }; /* characters: SHA-256 in base64url */

static inline void kx_json_freep(json_t **j)
{
    json_decref(*j);
}
#define kx_autojson __attribute__((cleanup(kx_json_freep))) json_t *

/* A new key pair, owned by the caller. */
json_t *kx_jwk_new(struct ct_err *err);
/* The public half: exactly kty, crv, x, y. Owned by the caller. */
json_t *kx_jwk_public(const json_t *jwk);
/* CT_MALFORMED unless it is a public JWK of exactly that form and a point of the curve. */
int kx_jwk_check(const json_t *jwk, struct ct_err *err);
/* RFC 7638. */
int kx_jwk_thumbprint(const json_t *jwk, char out[static KX_THUMBPRINT + 1], struct ct_err *err);

/* Signs the payload (borrowed); owned by the caller. */
json_t *kx_jws_sign(const json_t *key, const char *typ, const json_t *payload, struct ct_err *err);
/* Checks form, typ, kid and signature; *payload is a JSON object, owned by the caller. */
int kx_jws_verify(const json_t *jws, const char *typ, const json_t *key, json_t **payload,
                  struct ct_err *err);

json_t *kx_jwe_encrypt(const json_t *key, const char *typ, const json_t *payload,
                       struct ct_err *err);
/* Checks the form and says for which key it is. */
int kx_jwe_kid(const json_t *jwe, const char *typ, char kid[static KX_THUMBPRINT + 1],
               struct ct_err *err);
/* Only after kx_jwe_kid(). */
int kx_jwe_decrypt(const json_t *jwe, const json_t *key, json_t **payload, struct ct_err *err);

/* A JSON object out of text, duplicates refused; owned by the caller. The parser's own words are
 * not shown, since they quote the text. */
json_t *kx_json_parse(const void *text, size_t n, struct ct_err *err);

#endif
