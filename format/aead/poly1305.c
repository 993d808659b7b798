#include "format/aead/poly1305.h"

#include <string.h>

#include "format/base/secret.h"

struct ct_gf1305 ct_poly1305_r(const uint8_t key[static 32])
{
    uint8_t r[16];
    memcpy(r, key, 16);
    for (int i = 3; i < 16; i += 4) { /* RFC 8439 section 2.5.1: some bits of r are 0 */
        r[i] &= 15;
    }
    for (int i = 4; i < 16; i += 4) {
        r[i] &= 252;
    }
    struct ct_gf1305 v = ct_gf1305_load(r, 0);
    ct_wipe(r, sizeof(r));
    return v;
}

struct ct_gf1305 ct_poly1305_step(const struct ct_gf1305 *sum, const uint8_t block[static 16],
                                  const struct ct_gf1305 *r)
{
    struct ct_gf1305 v = ct_gf1305_load(block, 1); /* 2^128 marks a whole block */
    v = ct_gf1305_add(sum, &v);
    return ct_gf1305_mul(&v, r);
}

void ct_poly1305_mac(const struct ct_gf1305 *sum, const uint8_t key[static 32],
                     uint8_t mac[static 16])
{
    /* s is added modulo 2^128, after the reduction: hence twice. */
    (void)ct_gf1305_store(sum, mac);
    struct ct_gf1305 low = ct_gf1305_load(mac, 0);
    struct ct_gf1305 s = ct_gf1305_load(key + 16, 0);
    low = ct_gf1305_add(&low, &s);
    (void)ct_gf1305_store(&low, mac);
    ct_wipe(&low, sizeof(low));
    ct_wipe(&s, sizeof(s));
}
