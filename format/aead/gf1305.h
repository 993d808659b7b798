/*
 * Integers modulo 2^130 - 5, as Poly1305 has them (RFC 8439 section 2.5). Constant time: operands
 * are secret.
 */
#ifndef CT_GF1305_H
#define CT_GF1305_H

#include <stdint.h>

/* Limbs of 44, 44 and 42 bits, the lowest first; not always fully reduced. */
struct ct_gf1305 {
    uint64_t limb[3];
};

/* 16 bytes, little endian, plus high * 2^128 (0 to 3). */
struct ct_gf1305 ct_gf1305_load(const uint8_t p[static 16], uint64_t high);
/* Reduces fully; the lowest 128 bits go to p, the others are returned. */
uint64_t ct_gf1305_store(const struct ct_gf1305 *a, uint8_t p[static 16]);
struct ct_gf1305 ct_gf1305_add(const struct ct_gf1305 *a, const struct ct_gf1305 *b);
struct ct_gf1305 ct_gf1305_mul(const struct ct_gf1305 *a, const struct ct_gf1305 *b);
/* a^e for a public exponent. */
struct ct_gf1305 ct_gf1305_pow(const struct ct_gf1305 *a, uint64_t e);

#endif
