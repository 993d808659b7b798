/* Ed25519 (RFC 8032), by OpenSSL. */
#ifndef CT_SIGN_H
#define CT_SIGN_H

#include "format/base/secret.h"

enum { CT_ED25519_PUB = 32, CT_ED25519_SEED = 32, CT_ED25519_SIG = 64 };

/* CT_REJECTED if the signature does not fit; `what` names it in the message. */
int ct_ed25519_verify(const uint8_t pub[static CT_ED25519_PUB], const void *msg, size_t n,
                      const uint8_t sig[static CT_ED25519_SIG], struct ct_err *err);
int ct_ed25519_sign(const struct ct_secret *seed, const void *msg, size_t n,
                    uint8_t sig[static CT_ED25519_SIG], struct ct_err *err);
int ct_ed25519_public(const struct ct_secret *seed, uint8_t pub[static CT_ED25519_PUB],
                      struct ct_err *err);

#endif
