/* The cipher seam: published vectors, and the fields that pieces are computed in. */
#include <openssl/bn.h>
#include <stdio.h>

#include "format/aead/gf128.h"
#include "format/aead/poly1305.h"
#include "tests/unit/aead_fixture.h"

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(aead, .init = setup, .timeout = 100);

#define GCM_TEXT                                                                                   \
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"                             \
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
#define ZEROS16 "00000000000000000000000000000000"

/* McGrew and Viega, "The Galois/Counter Mode of Operation (GCM)", test cases without associated
 * data; ChaCha20-Poly1305 has no published ones without, and comes below. */
static const struct {
    const char *name;
    enum ct_alg alg;
    const char *key, *iv, *text, *sealed, *tag;
} vectors[] = {
    {"GCM 1", CT_ALG_AES128GCM, ZEROS16, "000000000000000000000000", "", "",
     "58e2fccefa7e3061367f1d57a4e7455a"},
    {"GCM 2", CT_ALG_AES128GCM, ZEROS16, "000000000000000000000000", ZEROS16,
     "0388dace60b6a392f328c2b971b2fe78", "ab6e47d42cec13bdf53a67b21257bddf"},
    {"GCM 3", CT_ALG_AES128GCM, "feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
     GCM_TEXT,
     "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
     "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985",
     "4d5c2af327cd64a62cf35abd2ba6fab4"},
    {"GCM 13", CT_ALG_AES256GCM, ZEROS16 ZEROS16, "000000000000000000000000", "", "",
     "530f8afbc74536b9a963b4f1c4cb738b"},
    {"GCM 14", CT_ALG_AES256GCM, ZEROS16 ZEROS16, "000000000000000000000000", ZEROS16,
     "cea7403d4d606b6e074ec5d3baf39d18", "d0d1c8a799996bf0265b98b5d48ab919"},
    {"GCM 15", CT_ALG_AES256GCM, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
     "cafebabefacedbaddecaf888", GCM_TEXT,
     "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
     "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad",
     "b094dac5d93471bdec1a502270e3cc6c"},
};

Test(aead, published_vectors)
{
    for (EACH_BACKEND(c)) {
        for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
            uint8_t key[32];
            uint8_t iv[12];
            uint8_t text[64];
            uint8_t buf[64];
            uint8_t tag[16];
            struct ct_err err = CT_ERR_INIT;
            const char *name = vectors[i].name;
            unhex(vectors[i].key, key, sizeof(key));
            unhex(vectors[i].iv, iv, sizeof(iv));
            size_t n = unhex(vectors[i].text, text, sizeof(text));
            struct ct_aead *a = keyed(vectors[i].alg, key);
            cr_expect_eq(ct_aead_encrypt(a, iv, text, n, buf, tag, &err), 0);
            expect_hex(buf, n, vectors[i].sealed, name);
            expect_hex(tag, 16, vectors[i].tag, name);
            cr_expect_eq(ct_aead_open(a, iv, buf, n, tag, buf, &err), 0, "%s: %s", name, err.msg);
            expect_hex(buf, n, vectors[i].text, name);
            ct_aead_free(a);
        }
    }
}

/* The MAC that a sum gives, under the one-time key. */
static void mac_of(const uint8_t sum[static CT_POLY_SUM], const uint8_t key[static 32],
                   uint8_t mac[static 16])
{
    struct ct_gf1305 v = ct_gf1305_load(sum, sum[16]);
    ct_poly1305_mac(&v, key, mac);
}

/* RFC 8439 section 2.8.2, put together from the backend's parts: the text is the AEAD's own, the
 * tag takes in associated data, which the seam does not have. */
Test(aead, chacha20_poly1305_of_rfc_8439)
{
    static const char text[] = "Ladies and Gentlemen of the class of '99: If I could offer you "
                               "only one tip for the future, sunscreen would be it.";
    static const uint8_t aad[16] = {0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1,
                                    0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7};
    enum { N = 114, PADDED = 128 };
    for (EACH_BACKEND(c)) {
        uint8_t key[32];
        uint8_t iv[12];
        uint8_t one_time[32] = {0};
        uint8_t sealed[16 + PADDED + 16] = {0};
        uint8_t sum[CT_POLY_SUM];
        uint8_t mac[16];
        uint8_t tag[16];
        uint8_t alone[PADDED];
        unhex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f", key, 32);
        unhex("070000004041424344454647", iv, 12);
        struct ct_aead *a = keyed(CT_ALG_CHACHA20POLY1305, key);
        memcpy(sealed, aad, sizeof(aad));
        cr_expect_eq(chacha20(a, iv, 1, (const uint8_t *)text, N, sealed + 16), 0);
        expect_hex(sealed + 16, N,
                   "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6"
                   "3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36"
                   "92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc"
                   "3ff4def08e4b7a9de576d26586cec64b6116",
                   "ciphertext");
        ct_put_le64(sealed + 16 + PADDED, 12);
        ct_put_le64(sealed + 16 + PADDED + 8, N);
        cr_expect_eq(chacha20(a, iv, 0, one_time, 32, one_time), 0);
        expect_hex(one_time, 32, "7bac2b252db447af09b67a55a4e955840ae1d6731075d9eb2a9375783ed553ff",
                   "one-time key");
        cr_expect_eq(poly1305(a, iv, sealed, sizeof(sealed), sum), 0);
        mac_of(sum, one_time, mac);
        expect_hex(mac, 16, "1ae10b594f09e26a7e902ecbd0600691", "tag");

        /* The AEAD itself, without associated data, from the same parts. */
        cr_expect_eq(ct_aead_encrypt(a, iv, (const uint8_t *)text, N, alone, tag, NULL), 0);
        cr_expect_arr_eq(alone, sealed + 16, N);
        ct_put_le64(sealed + 16 + PADDED, 0);
        cr_expect_eq(poly1305(a, iv, sealed + 16, PADDED + 16, sum), 0);
        mac_of(sum, one_time, mac);
        cr_expect_arr_eq(tag, mac, 16);
        ct_aead_free(a);
    }
}

/* RFC 8439 section 2.4.2 and appendix A.1: blocks in the middle of the key stream. */
Test(aead, chacha20_counter)
{
    static const uint8_t zeros[64];
    for (EACH_BACKEND(c)) {
        uint8_t key[32] = {0};
        uint8_t iv[12] = {0};
        uint8_t out[64] = {0};
        struct ct_aead *a = keyed(CT_ALG_CHACHA20POLY1305, key);
        cr_expect_eq(chacha20(a, iv, 1, zeros, 64, out), 0);
        expect_hex(out, 64,
                   "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
                   "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
                   "A.1 #2");
        key[1] = 0xff;
        cr_expect_eq(ct_aead_rekey(a, key, NULL), 0);
        cr_expect_eq(chacha20(a, iv, 2, zeros, 64, out), 0);
        expect_hex(out, 64,
                   "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
                   "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
                   "A.1 #4");
        ct_aead_free(a);
    }
}

/* Poly1305's sum block by block; n bytes and the zeros that fill the last one. */
static struct ct_gf1305 plain_sum(const uint8_t key[static 32], const uint8_t *text, size_t n)
{
    struct ct_gf1305 r = ct_poly1305_r(key);
    struct ct_gf1305 sum = {{0}};
    for (size_t at = 0; at < n; at += 16) {
        uint8_t block[16] = {0};
        memcpy(block, text + at, n - at < 16 ? n - at : 16);
        sum = ct_poly1305_step(&sum, block, &r);
    }
    return sum;
}

/* RFC 8439 appendix A.3: the cases at the edges of the field, in whole blocks. Backends make their
 * own one-time keys; given ones only the arithmetic here and OpenSSL's part take. */
Test(aead, poly1305_edges)
{
    static const struct {
        const char *key, *text, *mac;
    } edges[] = {
        {ZEROS16 ZEROS16, ZEROS16 ZEROS16, ZEROS16},
        {"02000000000000000000000000000000" ZEROS16, "ffffffffffffffffffffffffffffffff",
         "03000000000000000000000000000000"},
        {"02000000000000000000000000000000"
         "ffffffffffffffffffffffffffffffff",
         "02000000000000000000000000000000", "03000000000000000000000000000000"},
        {"01000000000000000000000000000000" ZEROS16,
         "fffffffffffffffffffffffffffffffff0ffffffffffffffffffffffffffffff"
         "11000000000000000000000000000000",
         "05000000000000000000000000000000"},
        {"01000000000000000000000000000000" ZEROS16,
         "fffffffffffffffffffffffffffffffffbfefefefefefefefefefefefefefefe"
         "01010101010101010101010101010101",
         ZEROS16},
        {"02000000000000000000000000000000" ZEROS16, "fdffffffffffffffffffffffffffffff",
         "faffffffffffffffffffffffffffffff"},
        {"01000000000000000400000000000000" ZEROS16,
         "e33594d7505e43b900000000000000003394d7505e4379cd0100000000000000"
         "0000000000000000000000000000000001000000000000000000000000000000",
         "14000000000000005500000000000000"},
        {"01000000000000000400000000000000" ZEROS16,
         "e33594d7505e43b900000000000000003394d7505e4379cd0100000000000000"
         "00000000000000000000000000000000",
         "13000000000000000000000000000000"},
    };
    static const uint8_t any[32];
    cr_assert(use(CT_CRYPTO_OPENSSL));
    struct ct_aead *a = keyed(CT_ALG_CHACHA20POLY1305, any);
    for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
        uint8_t key[32];
        uint8_t text[64] = {0};
        uint8_t mac[16];
        uint8_t sum[CT_POLY_SUM];
        uint8_t want[CT_POLY_SUM];
        unhex(edges[i].key, key, 32);
        size_t n = unhex(edges[i].text, text, 64);
        struct ct_gf1305 plain = plain_sum(key, text, n);
        ct_poly1305_mac(&plain, key, mac);
        expect_hex(mac, 16, edges[i].mac, edges[i].text);
        want[16] = (uint8_t)ct_gf1305_store(&plain, want);
        cr_expect_eq(ct_openssl_poly1305(a->by[CT_OP_POLY1305], key, text, n, sum), 0);
        /* The two high bits can't be told when r is as small as here; a key has no such r. */
        cr_expect_arr_eq(sum, want, 16);
    }
    ct_aead_free(a);
}

/* Every backend's sum is the plain one: all 130 bits, all lengths up to some of its widest loops.
 */
Test(aead, poly1305_sums)
{
    enum { MAX = 2100 };
    static const uint8_t zeros[32];
    uint8_t text[MAX];
    uint8_t key[32];
    uint8_t iv[12];
    for (EACH_BACKEND(c)) {
        fill(key, 32, 1);
        struct ct_aead *a = keyed(CT_ALG_CHACHA20POLY1305, key);
        for (size_t n = 1; n <= MAX; n += n < 600 ? 1 : 37) {
            uint8_t one_time[32];
            uint8_t sum[CT_POLY_SUM];
            uint8_t want[CT_POLY_SUM];
            fill(iv, 12, (uint32_t)n);
            fill(text, n, (uint32_t)n + 7);
            if (n % 5 == 0) {
                memset(text, 0xff, n);
            }
            cr_assert_eq(chacha20(a, iv, 0, zeros, 32, one_time), 0);
            struct ct_gf1305 plain = plain_sum(one_time, text, n);
            want[16] = (uint8_t)ct_gf1305_store(&plain, want);
            cr_assert_eq(poly1305(a, iv, text, n, sum), 0);
            cr_expect_arr_eq(sum, want, sizeof(sum), "%s, %zu bytes", ct_crypto_names[c], n);
        }
        ct_aead_free(a);
    }
}

/* All lengths up to some blocks, and every way to be wrong. */
Test(aead, opens_in_place_or_zeroes)
{
    enum { MAX = 300 };
    uint8_t text[MAX];
    uint8_t sealed[MAX];
    uint8_t out[MAX];
    uint8_t key[32];
    uint8_t iv[12];
    uint8_t tag[16];
    static const uint8_t zeros[MAX];
    fill(text, MAX, 1);
    fill(key, 32, 2);
    fill(iv, 12, 3);
    for (EACH_BACKEND(c)) {
        for (size_t k = 0; k < 3; k++) {
            struct ct_err err = CT_ERR_INIT;
            struct ct_aead *a = keyed(algs[k], key);
            for (size_t n = 0; n <= MAX; n++) {
                cr_assert_eq(ct_aead_encrypt(a, iv, text, n, sealed, tag, &err), 0);
                cr_expect_eq(ct_aead_open(a, iv, sealed, n, tag, out, &err), 0);
                cr_expect_arr_eq(out, text, n);
                memcpy(out, sealed, n);
                cr_expect_eq(ct_aead_open(a, iv, out, n, tag, out, &err), 0);
                cr_expect_arr_eq(out, text, n);

                memcpy(out, sealed, n);
                uint8_t *wrong = n % 3 == 0 ? tag + n % 16 : n % 3 == 1 ? out + n / 2 : iv + n % 12;
                *wrong ^= (uint8_t)(1 << n % 8);
                cr_expect_eq(ct_aead_open(a, iv, out, n, tag, out, &err), -1);
                cr_expect_eq(err.code, CT_TAG);
                cr_expect_arr_eq(out, zeros, n);
                if (n % 3 != 1) {
                    *wrong ^= (uint8_t)(1 << n % 8);
                }
            }
            ct_aead_free(a);
        }
    }
    ct_aead_free(NULL);
}

/* ---- as it is read ---- */

enum { LONG = 300000 };
static uint8_t whole[LONG], encrypted[LONG], opened[LONG];

struct reader {
    size_t next, fails_at;
};

static int read_next(void *ctx, uint64_t offset, uint8_t *buf, size_t n, struct ct_err *err)
{
    struct reader *r = ctx;
    cr_assert_eq(offset, r->next, "in order");
    r->next += n;
    memcpy(buf, encrypted + offset, n);
    return r->next > r->fails_at ? ct_err_set(err, CT_IO, "no more") : 0;
}

static void expect_zeros(size_t n)
{
    static const uint8_t zeros[LONG];
    cr_expect_eq(memcmp(opened, zeros, n), 0);
}

Test(aead, opens_as_it_is_read_or_zeroes)
{
    static const size_t lengths[] = {0, 1, 131071, 131072, 131073, 262144, LONG};
    uint8_t key[32];
    uint8_t iv[12];
    uint8_t tag[16];
    struct ct_err err = CT_ERR_INIT;
    fill(whole, LONG, 1);
    fill(key, 32, 2);
    fill(iv, 12, 3);
    for (EACH_BACKEND(c)) {
        for (size_t i = 0; i < 3 * sizeof(lengths) / sizeof(lengths[0]); i++) {
            size_t n = lengths[i / 3];
            struct reader r = {.fails_at = LONG};
            struct ct_aead *a = keyed(algs[i % 3], key);
            cr_assert_eq(ct_aead_encrypt(a, iv, whole, n, encrypted, tag, NULL), 0);
            cr_expect_eq(ct_aead_open_read(a, iv, read_next, &r, n, tag, opened, NULL), 0);
            cr_expect(r.next == n && memcmp(opened, whole, n) == 0);

            memset(opened, 1, n);
            r = (struct reader){.fails_at = n - 1};
            if (n) {
                cr_expect_eq(ct_aead_open_read(a, iv, read_next, &r, n, tag, opened, &err), -1);
                cr_expect_eq(err.code, CT_IO);
                expect_zeros(n);
                encrypted[n / 2] ^= 1;
            } else {
                tag[0] ^= 1;
            }
            r = (struct reader){.fails_at = LONG};
            cr_expect_eq(ct_aead_open_read(a, iv, read_next, &r, n, tag, opened, &err), -1);
            cr_expect_eq(err.code, CT_TAG);
            expect_zeros(n);
            ct_aead_free(a);
        }
    }
}

/* One context for many keys, with both directions and both lengths of IV in between. */
Test(aead, rekeys)
{
    uint8_t text[100];
    uint8_t buf[100];
    uint8_t mac[16];
    fill(text, sizeof(text), 4);
    for (EACH_BACKEND(c)) {
        for (size_t k = 0; k < 3; k++) {
            struct ct_aead *a = NULL;
            for (uint32_t i = 0; i < 50; i++) {
                uint8_t key[32];
                uint8_t iv[16];
                uint8_t tag[16];
                fill(key, 32, i);
                fill(iv, 16, i + 1000);
                if (!a) {
                    a = keyed(algs[k], key);
                } else {
                    cr_assert_eq(ct_aead_rekey(a, key, NULL), 0);
                }
                struct ct_aead *fresh = keyed(algs[k], key);
                cr_assert_eq(ct_aead_encrypt(fresh, iv, text, sizeof(text), buf, tag, NULL), 0);
                cr_expect_eq(ct_aead_open(a, iv, buf, sizeof(text), tag, buf, NULL), 0);
                cr_expect_arr_eq(buf, text, sizeof(text));
                if (algs[k] != CT_ALG_CHACHA20POLY1305) {
                    cr_expect_eq(gmac(a, iv, i % 2 ? 16 : 12, text, 17, mac), 0);
                    cr_expect_eq(gmac(fresh, iv, i % 2 ? 16 : 12, text, 17, tag), 0);
                    cr_expect_arr_eq(mac, tag, 16);
                }
                ct_aead_free(fresh);
            }
            ct_aead_free(a);
        }
    }
}

Test(aead, names)
{
    static const struct {
        const char *text;
        enum ct_alg alg;
    } names[] = {
        {"aes128gcm", CT_ALG_AES128GCM},
        {"AES-256-GCM", CT_ALG_AES256GCM},
        {"ChaCha20-Poly1305", CT_ALG_CHACHA20POLY1305},
        {"aes256gc", CT_ALG_NONE},
        {"aes256gcmm", CT_ALG_NONE},
        {"aes192gcm", CT_ALG_NONE},
        {"none", CT_ALG_NONE},
        {"", CT_ALG_NONE},
        {"-", CT_ALG_NONE},
        {"aes256gcm-aes256gcm-aes256gcm-aes256gcm", CT_ALG_NONE},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        cr_expect_eq(ct_alg_parse(names[i].text, strlen(names[i].text)), names[i].alg, "%s",
                     names[i].text);
    }
    cr_expect_eq(ct_alg_parse("aes128gcm\0", 10), CT_ALG_NONE);
    cr_expect_str_eq(ct_alg_name(CT_ALG_AES256GCM), "aes256gcm");
    cr_expect_eq(ct_alg_key_len(CT_ALG_NONE), 0);
    struct ct_err err = CT_ERR_INIT;
    uint8_t key[32] = {0};
    cr_expect_null(ct_aead_new(CT_ALG_NONE, key, &err));
    cr_expect_eq(err.code, CT_UNSUPPORTED);
}

/* The GHASH of GCM test case 2, step by step, and the laws of a field. */
Test(aead, gf128)
{
    uint8_t h[16];
    uint8_t x[16];
    uint8_t len[16] = {0};
    uint8_t y[16];
    static const uint8_t one[16] = {0x80};
    unhex("66e94bd4ef8a2c3b884cfa59ca342b2e", h, 16);
    unhex("0388dace60b6a392f328c2b971b2fe78", x, 16);
    ct_gf128_mul(x, x, h);
    expect_hex(x, 16, "5e2ec746917062882c85b0685353deb7", "X1");
    len[15] = 0x80;
    ct_xor16(x, len);
    ct_gf128_mul(x, h, x);
    expect_hex(x, 16, "f38cbb1ad69223dcc3457ae5b6b0f885", "GHASH");
    for (uint32_t i = 0; i < 100; i++) {
        fill(h, 16, i);
        ct_gf128_inverse(x, h);
        ct_gf128_mul(x, x, h);
        cr_expect_arr_eq(x, one, 16);
        memcpy(y, one, 16);
        for (uint32_t k = 0; k < i; k++) {
            ct_gf128_mul(y, y, h);
        }
        ct_gf128_pow(x, h, i);
        cr_expect_arr_eq(x, y, 16);
    }
}

/* Against OpenSSL's own big numbers. */
Test(aead, gf1305)
{
    BN_CTX *ctx = BN_CTX_new();
    BIGNUM *p = BN_new();
    BIGNUM *x = BN_new();
    BIGNUM *y = BN_new();
    BIGNUM *z = BN_new();
    BN_one(p);
    BN_lshift(p, p, 130);
    BN_sub_word(p, 5);
    for (uint32_t i = 0; i < 2000; i++) {
        uint8_t a[17];
        uint8_t b[17];
        uint8_t c[17];
        uint8_t want[17];
        fill(a, 17, i);
        fill(b, 17, i + 5000);
        if (i % 10 == 0) { /* the edges, also above the modulus */
            memset(a, 0xff, 17);
            a[0] = (uint8_t)(0xf8 + i / 10 % 8);
        }
        a[16] &= 3;
        b[16] &= 3;
        struct ct_gf1305 u = ct_gf1305_load(a, a[16]);
        struct ct_gf1305 v = ct_gf1305_load(b, b[16]);
        BN_lebin2bn(a, 17, x);
        BN_lebin2bn(b, 17, y);
        if (i % 3 == 0) {
            u = ct_gf1305_mul(&u, &v);
            BN_mod_mul(z, x, y, p, ctx);
        } else if (i % 3 == 1) {
            u = ct_gf1305_add(&u, &v);
            BN_mod_add(z, x, y, p, ctx);
        } else {
            u = ct_gf1305_pow(&u, i);
            BN_set_word(y, i);
            BN_mod_exp(z, x, y, p, ctx);
        }
        c[16] = (uint8_t)ct_gf1305_store(&u, c);
        BN_bn2lebinpad(z, want, 17);
        cr_expect_arr_eq(c, want, 17, "%u", i);
    }
    BN_free(p);
    BN_free(x);
    BN_free(y);
    BN_free(z);
    BN_CTX_free(ctx);
}
