/* Unwrapping: every tensor's DEK, out of the header, under the master key. */
#ifndef CT_UNWRAP_H
#define CT_UNWRAP_H

#include "format/base/secret.h"
#include "format/meta.h"

struct ct_deks {
    struct ct_secret *bytes; /* DEK i at i * key length; zeros where there is none */
    bool *good;              /* one a tensor: encrypted, and its DEK unwrapped */
    size_t encrypted, unwrapped;
};

/* CT_REJECTED when there are wrapped DEKs and none of them opens; a few that don't are told by
 * `good`. Freed with ct_deks_free(), also on failure. */
int ct_unwrap(const struct ct_encryption_field *enc, enum ct_alg alg,
              const struct ct_secret *master, struct ct_deks *out, struct ct_err *err);
void ct_deks_free(struct ct_deks *d);

static inline const uint8_t *ct_dek(const struct ct_deks *d, enum ct_alg alg, size_t tensor)
{
    return ct_secret_peek(d->bytes) + tensor * ct_alg_key_len(alg);
}

#endif
