/*
 * Poly1305 (RFC 8439 section 2.5) around a sum that a backend has made of a whole message, or that
 * pieces.c has put together. All of it is secret.
 */
#ifndef CT_POLY1305_H
#define CT_POLY1305_H

#include "format/aead/gf1305.h"

/* r of a one-time key (r, s). */
struct ct_gf1305 ct_poly1305_r(const uint8_t key[static 32]);
/* One more block of 16 bytes: (sum + 2^128 + block) * r. */
struct ct_gf1305 ct_poly1305_step(const struct ct_gf1305 *sum, const uint8_t block[static 16],
                                  const struct ct_gf1305 *r);
/* sum + s, modulo 2^128: the MAC. */
void ct_poly1305_mac(const struct ct_gf1305 *sum, const uint8_t key[static 32],
                     uint8_t mac[static 16]);

#endif
