#include "format/aead/gf128.h"

#include <string.h>

#include "format/base/secret.h"

static uint64_t be64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++) {
        v = v << 8 | p[i];
    }
    return v;
}

static void put_be64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8) {
        p[i] = (uint8_t)v;
    }
}

void ct_gf128_mul(uint8_t out[static 16], const uint8_t a[static 16], const uint8_t b[static 16])
{
    uint64_t x[2] = {be64(a), be64(a + 8)};
    uint64_t v[2] = {be64(b), be64(b + 8)};
    uint64_t z[2] = {0, 0};
    for (unsigned i = 0; i < 128; i++) {
        uint64_t take = 0 - (x[i / 64] >> (63 - i % 64) & 1);
        z[0] ^= v[0] & take;
        z[1] ^= v[1] & take;
        uint64_t carry = 0 - (v[1] & 1);
        v[1] = v[1] >> 1 | v[0] << 63;
        v[0] = v[0] >> 1 ^ (UINT64_C(0xe1) << 56 & carry);
    }
    put_be64(out, z[0]);
    put_be64(out + 8, z[1]);
}

void ct_gf128_pow(uint8_t out[static 16], const uint8_t a[static 16], uint64_t e)
{
    uint8_t square[16];
    uint8_t r[16] = {0x80}; /* 1 */
    memcpy(square, a, 16);
    for (; e; e >>= 1) {
        if (e & 1) {
            ct_gf128_mul(r, r, square);
        }
        ct_gf128_mul(square, square, square);
    }
    memcpy(out, r, 16);
    ct_wipe(square, sizeof(square));
    ct_wipe(r, sizeof(r));
}

void ct_gf128_inverse(uint8_t out[static 16], const uint8_t a[static 16])
{
    /* a^(2^128 - 2): the product of a^(2^i) for i from 1 to 127. */
    uint8_t square[16];
    uint8_t r[16] = {0x80};
    memcpy(square, a, 16);
    for (int i = 1; i < 128; i++) {
        ct_gf128_mul(square, square, square);
        ct_gf128_mul(r, r, square);
    }
    memcpy(out, r, 16);
    ct_wipe(square, sizeof(square));
    ct_wipe(r, sizeof(r));
}
