/*
 * GF(2^128) as GHASH has it (NIST SP 800-38D section 6.3): 16 bytes, the first bit the lowest
 * power. Constant time: operands are secret.
 */
#ifndef CT_GF128_H
#define CT_GF128_H

#include <stdint.h>

/* out = a * b; out may be either. */
void ct_gf128_mul(uint8_t out[static 16], const uint8_t a[static 16], const uint8_t b[static 16]);
/* out = a^e for a public exponent; a^0 is 1. */
void ct_gf128_pow(uint8_t out[static 16], const uint8_t a[static 16], uint64_t e);
/* out = a^-1 (0 for 0). */
void ct_gf128_inverse(uint8_t out[static 16], const uint8_t a[static 16]);

static inline void ct_xor16(uint8_t *a, const uint8_t *b)
{
    for (int i = 0; i < 16; i++) {
        a[i] ^= b[i];
    }
}

#endif
