/* SHA-256, by OpenSSL. */
#ifndef CT_BASE_SHA256_H
#define CT_BASE_SHA256_H

#include <stddef.h>
#include <stdint.h>

#include "format/base/err.h"

enum { CT_SHA256_LEN = 32 };

int ct_sha256(const void *p, size_t n, uint8_t out[static CT_SHA256_LEN], struct ct_err *err);

/* The same over bytes that come in parts. Used by one thread at a time. */
struct ct_sha256;
struct ct_sha256 *ct_sha256_new(struct ct_err *err);
int ct_sha256_update(struct ct_sha256 *s, const void *p, size_t n, struct ct_err *err);
/* Gives the digest and begins anew. */
int ct_sha256_take(struct ct_sha256 *s, uint8_t out[static CT_SHA256_LEN], struct ct_err *err);
void ct_sha256_free(struct ct_sha256 *s); /* NULL is allowed */

static inline void ct_sha256_freep(struct ct_sha256 **s)
{
    ct_sha256_free(*s);
}
#define ct_autosha256 __attribute__((cleanup(ct_sha256_freep))) struct ct_sha256

#endif
