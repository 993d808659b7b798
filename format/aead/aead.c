#include "format/aead/aead.h"

#include <ctype.h>
#include <sodium.h>
#include <string.h>

#include "format/aead/gf128.h"
#include "format/base/bytes.h"
#include "format/base/secret.h"

size_t ct_alg_key_len(enum ct_alg alg)
{
    return alg == CT_ALG_AES128GCM ? 16 : alg == CT_ALG_NONE ? 0 : 32;
}

static const char *const alg_names[] = {"none", "aes128gcm", "aes256gcm", "chacha20poly1305"};

const char *ct_alg_name(enum ct_alg alg)
{
    return (unsigned)alg < sizeof(alg_names) / sizeof(alg_names[0]) ? alg_names[alg] : "unknown";
}

enum ct_alg ct_alg_parse(const char *text, size_t len)
{
    char plain[32];
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '-') {
            continue;
        }
        if (n == sizeof(plain) - 1) {
            return CT_ALG_NONE;
        }
        plain[n++] = (char)tolower((unsigned char)text[i]);
    }
    plain[n] = '\0';
    for (enum ct_alg alg = CT_ALG_AES128GCM; alg <= CT_ALG_CHACHA20POLY1305; alg++) {
        if (strcmp(plain, alg_names[alg]) == 0) {
            return alg;
        }
    }
    return CT_ALG_NONE;
}

struct ct_aead *ct_aead_new(enum ct_alg alg, const uint8_t *key, struct ct_err *err)
{
    if (alg == CT_ALG_NONE) {
        ct_err_set(err, CT_UNSUPPORTED, "no cipher");
        return NULL;
    }
    struct ct_aead *a = ct_aead_openssl.create(alg, err);
    if (!a) {
        return NULL;
    }
    a->ops = &ct_aead_openssl;
    a->alg = alg;
    if (ct_aead_rekey(a, key, err)) {
        ct_aead_free(a);
        return NULL;
    }
    return a;
}

int ct_aead_rekey(struct ct_aead *a, const uint8_t *key, struct ct_err *err)
{
    a->have_h = 0;
    memcpy(a->key, key, ct_alg_key_len(a->alg));
    return a->ops->set_key(a, key) ? ct_err_set(err, CT_IO, "the cipher cannot be keyed") : 0;
}

void ct_aead_free(struct ct_aead *a)
{
    if (a) {
        sodium_memzero(a->key, sizeof(a->key));
        sodium_memzero(a->h, sizeof(a->h));
        sodium_memzero(a->h_inverse, sizeof(a->h_inverse));
        sodium_memzero(a->h_piece, sizeof(a->h_piece));
        a->ops->destroy(a);
    }
}

static int opened(int r, uint8_t *out, size_t n, struct ct_err *err)
{
    if (r == 0) {
        return 0;
    }
    if (n) {
        memset(out, 0, n);
    }
    return r > 0 ? ct_err_set(err, CT_TAG, "tag does not match")
                 : ct_err_set(err, CT_IO, "decryption failed");
}

int ct_aead_open(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                 const uint8_t tag[static 16], uint8_t *out, struct ct_err *err)
{
    return opened(a->ops->open(a, iv, 12, in, n, tag, out), out, n, err);
}

int ct_aead_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t *out, uint8_t tag[static 16], struct ct_err *err)
{
    return a->ops->encrypt(a, iv, in, n, out, tag) ? ct_err_set(err, CT_IO, "encryption failed")
                                                   : 0;
}

/* ---- AES-GCM in pieces ---- */

static void put_bits(uint8_t block[static 16], size_t at, uint64_t bytes)
{
    ct_put_be32(block + at, (uint32_t)(bytes * 8 >> 32));
    ct_put_be32(block + at + 4, (uint32_t)(bytes * 8));
}

static int load_h(struct ct_aead *a)
{
    static const uint8_t zero_iv[12];
    uint8_t e1[16];
    uint8_t one_block[16] = {0};
    uint8_t tag[16];
    if (a->have_h) {
        return 0;
    }
    /* Two GMACs give H. Over a block of zeros: tag = (0 ^ len) * H ^ E(J0), over nothing:
     * tag = E(J0); and len, 128 bits of associated data, is a known element. */
    if (a->ops->gmac(a, zero_iv, 12, NULL, 0, e1) ||
        a->ops->gmac(a, zero_iv, 12, one_block, 16, tag)) {
        return -1;
    }
    uint8_t len[16] = {0};
    put_bits(len, 0, 16);
    ct_xor16(tag, e1);
    ct_gf128_inverse(len, len);
    ct_gf128_mul(a->h, tag, len);
    ct_gf128_inverse(a->h_inverse, a->h);
    ct_gf128_pow(a->h_piece, a->h, CT_PIECE / 16);
    a->have_h = 1;
    return 0;
}

static int gcm_digest(struct ct_aead *a, const uint8_t *in, size_t n, uint8_t digest[static 16])
{
    static const uint8_t iv[12];
    uint8_t e1[16];
    uint8_t len[16] = {0};
    if (load_h(a) || a->ops->gmac(a, iv, 12, NULL, 0, e1) ||
        a->ops->gmac(a, iv, 12, in, n, digest)) {
        return -1;
    }
    put_bits(len, 0, n);
    ct_xor16(digest, e1);
    ct_gf128_mul(digest, digest, a->h_inverse);
    ct_xor16(digest, len);
    return 0;
}

int ct_aead_pieces_check(struct ct_aead *a, const uint8_t iv[static 12],
                         const uint8_t (*digests)[CT_PIECE_DIGEST], uint64_t count, uint64_t n,
                         const uint8_t tag[static 16], struct ct_err *err)
{
    uint8_t sum[16] = {0};
    uint8_t e1[16];
    uint8_t last[16];
    uint8_t len[16] = {0};
    if (load_h(a) || a->ops->gmac(a, iv, 12, NULL, 0, e1)) {
        return ct_err_set(err, CT_IO, "decryption failed");
    }
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *power = a->h_piece;
        if (i + 1 == count) {
            ct_gf128_pow(last, a->h, (n - i * CT_PIECE + 15) / 16);
            power = last;
        }
        ct_gf128_mul(sum, sum, power);
        ct_xor16(sum, digests[i]);
    }
    put_bits(len, 8, n);
    ct_xor16(sum, len);
    ct_gf128_mul(sum, sum, a->h);
    ct_xor16(sum, e1);
    int same = sodium_memcmp(sum, tag, 16) == 0;
    sodium_memzero(sum, sizeof(sum));
    return same ? 0 : ct_err_set(err, CT_TAG, "tag does not match");
}

/*
 * A piece alone: GCM whose J0 is iv || (1 + index * blocks of a piece), so that its key stream
 * continues where the piece lies. J0 comes from a 16-byte IV x by GHASH, J0 = ((x * H) ^ L) * H,
 * which is solved for x. The tag to expect is made from the digest and E(J0), which is the tag of
 * an empty message under that IV.
 */
static int gcm_piece_open(struct ct_aead *a, const uint8_t iv[static 12], uint64_t index,
                          const uint8_t *in, size_t n, const uint8_t digest[static 16],
                          uint8_t *out)
{
    uint8_t x[16];
    uint8_t j0[16];
    uint8_t len[16] = {0};
    uint8_t expected[16];
    if (load_h(a)) {
        return -1;
    }
    memcpy(j0, iv, 12);
    ct_put_be32(j0 + 12, (uint32_t)(1 + index * (CT_PIECE / 16)));
    put_bits(len, 8, 16);
    ct_gf128_mul(x, j0, a->h_inverse);
    ct_xor16(x, len);
    ct_gf128_mul(x, x, a->h_inverse);

    memset(len, 0, sizeof(len));
    put_bits(len, 8, n);
    memcpy(expected, digest, 16);
    ct_xor16(expected, len);
    ct_gf128_mul(expected, expected, a->h);
    uint8_t e[16];
    if (a->ops->gmac(a, x, sizeof(x), NULL, 0, e)) {
        return -1;
    }
    ct_xor16(expected, e);
    return a->ops->open(a, x, sizeof(x), in, n, expected, out);
}

/* ---- ChaCha20-Poly1305 in pieces ---- */

static void chacha_digest(const uint8_t salt[static 32], uint64_t index, const uint8_t *in,
                          size_t n, uint8_t digest[static 16])
{
    uint8_t key[crypto_onetimeauth_KEYBYTES];
    uint8_t nonce[crypto_stream_chacha20_ietf_NONCEBYTES] = {0};
    ct_put_le64(nonce, index);
    crypto_stream_chacha20_ietf(key, sizeof(key), nonce, salt);
    crypto_onetimeauth(digest, in, n, key);
    sodium_memzero(key, sizeof(key));
}

static int chacha_piece_open(struct ct_aead *a, const uint8_t iv[static 12],
                             const uint8_t salt[static 32], uint64_t index, const uint8_t *in,
                             size_t n, const uint8_t digest[static 16], uint8_t *out)
{
    uint8_t now[16];
    chacha_digest(salt, index, in, n, now);
    if (sodium_memcmp(now, digest, 16) != 0) {
        return 1;
    }
    uint32_t block = (uint32_t)(1 + index * (CT_PIECE / 64)); /* block 0 makes the Poly1305 key */
    return crypto_stream_chacha20_ietf_xor_ic(out, in, n, iv, block, a->key) ? -1 : 0;
}

/* ---- either ---- */

int ct_aead_piece_digest(struct ct_aead *a, const uint8_t salt[static 32], uint64_t index,
                         const uint8_t *in, size_t n, uint8_t digest[static CT_PIECE_DIGEST],
                         struct ct_err *err)
{
    if (a->alg == CT_ALG_CHACHA20POLY1305) {
        chacha_digest(salt, index, in, n, digest);
        return 0;
    }
    return gcm_digest(a, in, n, digest) ? ct_err_set(err, CT_IO, "decryption failed") : 0;
}

int ct_aead_piece_open(struct ct_aead *a, const uint8_t iv[static 12],
                       const uint8_t salt[static 32], uint64_t index, const uint8_t *in, size_t n,
                       const uint8_t digest[static CT_PIECE_DIGEST], uint8_t *out,
                       struct ct_err *err)
{
    int r = a->alg == CT_ALG_CHACHA20POLY1305
                ? chacha_piece_open(a, iv, salt, index, in, n, digest, out)
                : gcm_piece_open(a, iv, index, in, n, digest, out);
    return opened(r, out, n, err);
}
