/*
 * Signed objects: the flattened JSON serialisation of a JWS (RFC 7515 section 7.2.2), Ed25519 only
 * (RFC 8037). Far fewer forms are taken than the RFC allows, so that nothing in an object can
 * choose how it is checked: the protected header holds exactly `alg` "EdDSA", the expected `typ`,
 * and `kid`; there is no unprotected header; the three members are plain base64url.
 */
#ifndef CT_JWS_H
#define CT_JWS_H

#include "format/scan.h"
#include "format/sign.h"

enum { CT_JWS_KID_MAX = 255 };

struct ct_jws {
    struct ct_span protected, payload, signature; /* as stored; borrowed from the text */
    char kid[CT_JWS_KID_MAX + 1];
    size_t kid_len;
};

/* Takes the object apart and checks the protected header, without trusting anything. CT_MALFORMED;
 * CT_UNSUPPORTED for another algorithm; CT_REJECTED for another `typ`. */
int ct_jws_parse(const uint8_t *text, size_t n, const char *typ, struct ct_jws *out,
                 struct ct_err *err);
/* CT_REJECTED unless `pub` made the signature. Only then is the payload worth a look. */
int ct_jws_verify(const struct ct_jws *jws, const uint8_t pub[static CT_ED25519_PUB],
                  struct ct_err *err);
/* Appends the decoded payload. */
int ct_jws_payload(const struct ct_jws *jws, struct ct_buf *out, struct ct_err *err);

/* Signs and appends the object. The kid must not be empty. */
int ct_jws_sign(const char *typ, struct ct_span kid, const struct ct_secret *seed,
                const void *payload, size_t n, struct ct_buf *out, struct ct_err *err);

#endif
