#include "format/aead/sum.h"

#include <sodium.h>
#include <string.h>

#include "format/aead/backend.h"
#include "format/aead/gf128.h"
#include "format/aead/poly1305.h"
#include "format/base/bytes.h"
#include "format/base/secret.h"

/* ---- AES-GCM: the GMAC of the ciphertext, which differs from its tag in the lengths only ---- */

void ct_gcm_lengths(uint8_t block[static 16], uint64_t aad, uint64_t text)
{
    ct_put_be32(block, (uint32_t)(aad >> 29));
    ct_put_be32(block + 4, (uint32_t)(aad << 3));
    ct_put_be32(block + 8, (uint32_t)(text >> 29));
    ct_put_be32(block + 12, (uint32_t)(text << 3));
}

/* GMAC over nothing. */
int ct_gcm_mask(struct ct_aead *a, const uint8_t *iv, size_t iv_len, uint8_t out[static 16])
{
    return ct_gmac(a->by[CT_OP_GMAC], iv, iv_len, NULL, 0, out);
}

/* GHASH over one block of zeros is (its lengths) * H. */
int ct_gcm_h(struct ct_aead *a, uint8_t h[static 16])
{
    static const uint8_t iv[12]; /* of GMACs that never leave this process */
    static const uint8_t block[16];
    /* 1 / (the lengths of 16 bytes of associated data) */
    static const uint8_t inverse[16] = {0x08, 0,    0,    0,    0,    0,    0,    0,
                                        0x00, 0xda, 0x2b, 0x1e, 0xfc, 0x97, 0x53, 0x84};
    uint8_t mask[16];
    if (ct_gcm_mask(a, iv, sizeof(iv), mask) ||
        ct_gmac(a->by[CT_OP_GMAC], iv, sizeof(iv), block, sizeof(block), h)) {
        return -1;
    }
    ct_xor16(h, mask);
    ct_gf128_mul(h, h, inverse);
    ct_wipe(mask, sizeof(mask));
    return 0;
}

static int gcm_start(struct ct_sum *s)
{
    struct ct_impl *i = s->aead->by[CT_OP_GMAC];
    return i->backend->gmac_start(i, s->iv, sizeof(s->iv));
}

static int gcm_add(struct ct_sum *s, const uint8_t *in, size_t n)
{
    struct ct_impl *i = s->aead->by[CT_OP_GMAC];
    return i->backend->gmac_add(i, in, n);
}

static int gcm_finish(struct ct_sum *s, uint8_t out[static 16])
{
    struct ct_impl *i = s->aead->by[CT_OP_GMAC];
    return i->backend->gmac_finish(i, out);
}

static int gcm_share(struct ct_sum *s, struct ct_piece *out)
{
    uint8_t mask[16];
    if (gcm_finish(s, out->bytes) || ct_gcm_mask(s->aead, s->iv, sizeof(s->iv), mask)) {
        return -1;
    }
    ct_xor16(out->bytes, mask);
    ct_wipe(mask, sizeof(mask));
    return 0;
}

static int gcm_tag(struct ct_sum *s, uint8_t tag[static 16])
{
    uint8_t h[16];
    uint8_t lengths[16];
    uint8_t wrong[16];
    if (gcm_finish(s, tag) || ct_gcm_h(s->aead, h)) {
        return -1;
    }
    ct_gcm_lengths(lengths, 0, s->len);
    ct_gcm_lengths(wrong, s->len, 0);
    ct_xor16(lengths, wrong);
    ct_gf128_mul(lengths, lengths, h);
    ct_xor16(tag, lengths);
    ct_wipe(h, sizeof(h));
    ct_wipe(lengths, sizeof(lengths));
    return 0;
}

/* ---- ChaCha20-Poly1305: each part's sum, times the power of r that the next part's length is ----
 */

int ct_poly_key(struct ct_aead *a, const uint8_t iv[static 12], uint8_t key[static 32])
{
    struct ct_impl *i = a->by[CT_OP_CHACHA20];
    memset(key, 0, 32); /* block 0 of the key stream */
    return i->backend->chacha20(i, iv, 0, key, 32, key);
}

static int poly_start(struct ct_sum *s)
{
    uint8_t key[32];
    if (ct_poly_key(s->aead, s->iv, key)) {
        return -1;
    }
    s->r = ct_poly1305_r(key);
    ct_wipe(key, sizeof(key));
    return 0;
}

static int poly_add(struct ct_sum *s, const uint8_t *in, size_t n)
{
    struct ct_impl *i = s->aead->by[CT_OP_POLY1305];
    uint8_t sum[CT_POLY_SUM];
    if (i->backend->poly1305(i, s->iv, in, n, sum)) {
        return -1;
    }
    struct ct_gf1305 part = ct_gf1305_load(sum, sum[16]);
    struct ct_gf1305 power = ct_gf1305_pow(&s->r, (n + 15) / 16);
    s->poly = ct_gf1305_mul(&s->poly, &power);
    s->poly = ct_gf1305_add(&s->poly, &part);
    ct_wipe(sum, sizeof(sum));
    ct_wipe(&part, sizeof(part));
    ct_wipe(&power, sizeof(power));
    return 0;
}

static int poly_tag(struct ct_sum *s, uint8_t tag[static 16])
{
    uint8_t lengths[16] = {0};
    uint8_t key[32];
    if (ct_poly_key(s->aead, s->iv, key)) {
        return -1;
    }
    ct_put_le64(lengths + 8, s->len); /* of nothing, and of the ciphertext */
    s->poly = ct_poly1305_step(&s->poly, lengths, &s->r);
    ct_poly1305_mac(&s->poly, key, tag);
    ct_wipe(key, sizeof(key));
    return 0;
}

/* ---- either ---- */

static int trouble(struct ct_err *err)
{
    return ct_err_set(err, CT_IO, "authentication failed");
}

static bool is_chacha(const struct ct_sum *s)
{
    return s->aead->alg == CT_ALG_CHACHA20POLY1305;
}

int ct_sum_start(struct ct_sum *s, struct ct_aead *a, const uint8_t iv[static 12],
                 struct ct_err *err)
{
    *s = (struct ct_sum){.aead = a};
    memcpy(s->iv, iv, sizeof(s->iv));
    return (is_chacha(s) ? poly_start(s) : gcm_start(s)) ? trouble(err) : 0;
}

int ct_sum_add(struct ct_sum *s, const uint8_t *in, size_t n, struct ct_err *err)
{
    s->len += n;
    return (is_chacha(s) ? poly_add(s, in, n) : gcm_add(s, in, n)) ? trouble(err) : 0;
}

int ct_sum_share(struct ct_sum *s, struct ct_piece *out, struct ct_err *err)
{
    if (is_chacha(s)) {
        out->bytes[16] = (uint8_t)ct_gf1305_store(&s->poly, out->bytes);
        return 0;
    }
    return gcm_share(s, out) ? trouble(err) : 0;
}

int ct_sum_check(struct ct_sum *s, const uint8_t tag[static 16], struct ct_err *err)
{
    uint8_t made[16];
    if (is_chacha(s) ? poly_tag(s, made) : gcm_tag(s, made)) {
        return trouble(err);
    }
    bool same = sodium_memcmp(made, tag, sizeof(made)) == 0;
    ct_wipe(made, sizeof(made)); /* of a forged ciphertext it is what the forger lacks */
    return same ? 0 : ct_err_set(err, CT_TAG, "tag does not match");
}

void ct_sum_end(struct ct_sum *s)
{
    ct_wipe(s, sizeof(*s));
}
