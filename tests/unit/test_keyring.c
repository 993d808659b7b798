/* JWKs in all the spellings that occur, and which key a header gets. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "format/base/file.h"
#include "format/base/log.h"
#include "format/keyring.h"

static char logged[1024]; /* the last line */

static void keep_line(void *ctx, enum ct_level level, const char *line)
{
    (void)ctx;
    (void)level;
    (void)snprintf(logged, sizeof(logged), "%s", line);
}

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
    ct_log_set_sink(keep_line, NULL);
}

TestSuite(keyring, .init = setup);

/* 32 bytes in each base64; 0xfb and 0xff make `+/` and `-_`. */
#define K32 "+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/+/8="
#define K32_URL "-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_-_8"
#define K16 "AAECAwQFBgcICQoLDA0ODw=="
/* RFC 8032 section 7.1, test 1 */
#define SEED "nWGxne/9WmC6hEr0kuwsxEmss3O3xTY01sLbPL7YBCA="
#define SEED_OTHER "TM0Imyj/ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U+4pvs="
static char PUB[64], PUB_OTHER[64]; /* of these, filled by pubs() */

static struct ct_keyring *ring_of(const char *json)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_keyring *r = ct_keyring_new(&err);
    cr_assert(r);
    cr_assert_eq(ct_keyring_add(r, (const uint8_t *)json, strlen(json), "test", &err), 0, "%s: %s",
                 json, err.msg);
    return r;
}

static struct ct_span span(const char *s)
{
    return (struct ct_span){s, strlen(s)};
}

static void pub_of(const char *seed, char out[64])
{
    uint8_t bytes[32];
    uint8_t pub[32];
    ct_autobuf text = {0};
    cr_assert_eq(ct_base64_decode(seed, strlen(seed), bytes, 32), 32);
    struct ct_secret *s = ct_secret_from(bytes, 32, NULL);
    cr_assert_eq(ct_ed25519_public(s, pub, NULL), 0);
    ct_secret_free(s);
    ct_base64_put(&text, pub, 32);
    (void)snprintf(out, 64, "%.*s", (int)text.len, (char *)text.data);
}

static void pubs(void)
{
    pub_of(SEED, PUB);
    pub_of(SEED_OTHER, PUB_OTHER);
}

/* RFC 8032 section 7.1: keys, and signatures of nothing and of one byte. */
Test(keyring, ed25519_of_rfc_8032)
{
    static const struct {
        const char *seed, *pub, *text, *sig;
    } tests[] = {
        {"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
         "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
         "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
         "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"},
        {"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
         "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
         "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
         "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"},
    };
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        uint8_t bytes[32];
        uint8_t pub[32];
        uint8_t sig[64];
        uint8_t text[8];
        char hex[129];
        cr_assert_eq(ct_unhex(tests[i].seed, 64, bytes, 32), 32);
        size_t n = (size_t)ct_unhex(tests[i].text, strlen(tests[i].text), text, sizeof(text));
        struct ct_secret *seed = ct_secret_from(bytes, 32, NULL);
        cr_expect_eq(ct_ed25519_public(seed, pub, &err), 0);
        ct_hex(hex, pub, 32);
        cr_expect_str_eq(hex, tests[i].pub);
        cr_expect_eq(ct_ed25519_sign(seed, text, n, sig, &err), 0);
        ct_hex(hex, sig, 64);
        cr_expect_str_eq(hex, tests[i].sig);
        cr_expect_eq(ct_ed25519_verify(pub, text, n, sig, &err), 0);
        for (int bit = 0; bit < 512; bit += 37) {
            sig[bit / 8] ^= (uint8_t)(1 << bit % 8);
            cr_expect_eq(ct_ed25519_verify(pub, text, n, sig, &err), -1);
            cr_expect_eq(err.code, CT_REJECTED);
            sig[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        text[0] ^= 1;
        cr_expect_eq(ct_ed25519_verify(pub, text, n + !n, sig, &err), -1);
        ct_secret_free(seed);
    }
    struct ct_secret *cut = ct_secret_new(31, NULL);
    struct ct_err err = CT_ERR_INIT;
    uint8_t sig[64];
    cr_expect_eq(ct_ed25519_sign(cut, "", 0, sig, &err), -1);
    cr_expect_eq(err.code, CT_USAGE);
    ct_secret_free(cut);
}

Test(keyring, spellings)
{
    static const struct {
        const char *json;
        size_t keys;
        const char *why; /* in the log, when it is left out */
    } jwks[] = {
        {"{\"kty\":\"oct\",\"alg\":\"aes256gcm\",\"kid\":\"a\",\"k\":\"" K32 "\"}", 1, ""},
        {"{\"kty\":\"OCT\",\"alg\":\"AES-256-GCM\",\"k\":\"" K32_URL "\"}", 1, ""},
        {"{\"kty\":\"oct\",\"alg\":\"ChaCha20-Poly1305\",\"k\":\"" K32_URL "=\"}", 1, ""},
        {"{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"k\":\"" K16 "\",\"use\":\"enc\"}", 1, ""},
        {"{\"keys\":[]}", 0, ""},
        {"{\"keys\":[{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"k\":\"" K16
         "\"},{\"kty\":\"RSA\",\"n\":\"x\"}]}",
         1, "key type \"RSA\""},
        {"{\"kty\":\"oct\",\"alg\":\"aes256gcm\",\"k\":\"" K16 "\"}", 0, "k is not 32 bytes"},
        {"{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"k\":\"" K32 "\"}", 0, "k is not 16 bytes"},
        {"{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"k\":\"AAECAwQFBgcICQoLDA0OD!==\"}", 0,
         "k is not 16 bytes"},
        {"{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"k\":7}", 0, "k is not 16 bytes"},
        {"{\"kty\":\"oct\",\"alg\":\"aes128gcm\"}", 0, "k is not 16 bytes"},
        {"{\"kty\":\"oct\",\"alg\":\"aes192gcm\",\"k\":\"" K16 "\"}", 0, "\"aes192gcm\""},
        {"{\"kty\":\"oct\",\"k\":\"" K16 "\"}", 0, "algorithm \"\""},
        {"{\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"kid\":5,\"k\":\"" K16 "\"}", 0, "kid"},
        {"{\"kty\":\"okp\",\"alg\":\"ed25519\",\"d\":\"" SEED "\"}", 1, ""},
        {"{\"kty\":\"OKP\",\"alg\":\"EdDSA\",\"crv\":\"Ed25519\",\"d\":\"" SEED "\"}", 1, ""},
        {"{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"" K32_URL "\"}", 1, ""},
        {"{\"kty\":\"OKP\",\"crv\":\"Ed448\",\"x\":\"" K32_URL "\"}", 0, "not known"},
        {"{\"kty\":\"OKP\",\"alg\":\"ed25519\",\"crv\":\"X25519\",\"x\":\"" K32_URL "\"}", 0,
         "not known"},
        {"{\"kty\":\"OKP\",\"alg\":\"ES256\",\"crv\":\"Ed25519\",\"x\":\"" K32_URL "\"}", 0,
         "not known"},
        {"{\"kty\":\"okp\",\"alg\":\"ed25519\"}", 0, "neither x nor d"},
        {"{\"kty\":\"okp\",\"alg\":\"ed25519\",\"x\":\"" K16 "\"}", 0, "x is not 32 bytes"},
        {"{\"kty\":\"okp\",\"alg\":\"ed25519\",\"d\":\"" K16 "\"}", 0, "d is not 32 bytes"},
        {"{\"kty\":\"okp\",\"alg\":\"ed25519\",\"x\":\"" K32 "\",\"d\":\"" SEED "\"}", 0,
         "not the public half"},
        {"{\"keys\":[1,null,\"x\"]}", 0, "key type"},
    };
    for (size_t i = 0; i < sizeof(jwks) / sizeof(jwks[0]); i++) {
        logged[0] = '\0';
        struct ct_keyring *r = ring_of(jwks[i].json);
        cr_expect_eq(ct_keyring_count(r), jwks[i].keys, "%s", jwks[i].json);
        cr_expect(strstr(logged, jwks[i].why), "%s: %s", jwks[i].json, logged);
        cr_expect(*jwks[i].why || !*logged, "%s: %s", jwks[i].json, logged);
        cr_expect(!strstr(logged, K16) && !strstr(logged, K32) && !strstr(logged, SEED),
                  "a key in the log");
        ct_keyring_free(r);
    }
}

static const char twice[] =
    "{\"kty\":\"oct\",\"kty\":\"oct\",\"alg\":\"aes128gcm\",\"k\":\"" K16 "\"}";

Test(keyring, neither_jwk_nor_set)
{
    static const char *const texts[] = {
        "", "[]", "{}", "null", "{\"keys\":{}}", "{\"keys\":3}", "{\"kty\":\"oct\"", twice,
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        struct ct_keyring *r = ct_keyring_new(NULL);
        int n = ct_keyring_add(r, (const uint8_t *)texts[i], strlen(texts[i]), "k.jwk", &err);
        cr_expect_eq(n, -1, "%s", texts[i]);
        cr_expect_eq(err.code, CT_MALFORMED);
        cr_expect(strstr(err.msg, "k.jwk") && !strstr(err.msg, K16), "%s", err.msg);
        cr_expect_eq(ct_keyring_count(r), 0);
        ct_keyring_free(r);
    }
}

#define OCT(alg, kid, k) "{\"kty\":\"oct\",\"alg\":\"" alg "\",\"kid\":\"" kid "\",\"k\":\"" k "\"}"
#define OKP(kid, d) "{\"kty\":\"okp\",\"alg\":\"ed25519\",\"kid\":\"" kid "\",\"d\":\"" d "\"}"
#define SET(...) "{\"keys\":[" __VA_ARGS__ "]}"
#define K32_OTHER "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

Test(keyring, master_by_kid)
{
    static const struct {
        const char *json, *kid;
        enum ct_alg alg;
        enum ct_code code;
    } cases[] = {
        {OCT("aes256gcm", "a", K32), "a", CT_ALG_AES256GCM, CT_OK},
        {OCT("aes256gcm", "a", K32), "b", CT_ALG_AES256GCM, CT_NOKEY},
        {OCT("aes256gcm", "a", K32), "A", CT_ALG_AES256GCM, CT_NOKEY},
        {OCT("aes256gcm", "a", K32), "a", CT_ALG_CHACHA20POLY1305, CT_REJECTED},
        {OCT("aes256gcm", "a", K32), "", CT_ALG_AES256GCM, CT_OK},
        {OCT("aes256gcm", "a", K32), "", CT_ALG_CHACHA20POLY1305, CT_NOKEY},
        {OKP("a", SEED), "a", CT_ALG_AES256GCM, CT_NOKEY},
        {"{\"keys\":[]}", "a", CT_ALG_AES256GCM, CT_NOKEY},
        /* the same key twice is one key */
        {SET(OCT("aes256gcm", "a", K32) "," OCT("AES-256-GCM", "a", K32_URL)), "a",
         CT_ALG_AES256GCM, CT_OK},
        {SET(OCT("aes256gcm", "a", K32) "," OCT("aes256gcm", "b", K32)), "", CT_ALG_AES256GCM,
         CT_OK},
        {SET(OCT("aes256gcm", "a", K32) "," OCT("aes256gcm", "a", K32_OTHER)), "a",
         CT_ALG_AES256GCM, CT_REJECTED},
        {SET(OCT("aes256gcm", "a", K32) "," OCT("chacha20poly1305", "a", K32)), "a",
         CT_ALG_AES256GCM, CT_REJECTED},
        {SET(OCT("aes256gcm", "a", K32) "," OCT("aes256gcm", "b", K32_OTHER)), "b",
         CT_ALG_AES256GCM, CT_OK},
        {SET(OCT("aes256gcm", "a", K32) "," OCT("aes256gcm", "b", K32_OTHER)), "", CT_ALG_AES256GCM,
         CT_NOKEY},
        {SET(OCT("aes256gcm", "a", K32) "," OCT("chacha20poly1305", "b", K32_OTHER)), "",
         CT_ALG_AES256GCM, CT_OK},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ct_keyring *r = ring_of(cases[i].json);
        struct ct_keysource *ks = ct_keyring_source(r);
        struct ct_keyref ref = {.alg = cases[i].alg, .kid = span(cases[i].kid)};
        struct ct_err err = CT_ERR_INIT;
        struct ct_secret *key = NULL;
        int n = ks->master(ks, &ref, &key, &err);
        cr_expect_eq(n ? err.code : CT_OK, cases[i].code, "%s, kid \"%s\": %s", cases[i].json,
                     cases[i].kid, err.msg);
        cr_expect_eq(n == 0, key != NULL);
        if (key) {
            cr_expect_eq(ct_secret_len(key), 32);
            cr_expect_eq(ct_secret_peek(key)[0], strcmp(cases[i].kid, "b") == 0 ? 0 : 0xfb);
        }
        cr_expect(!strstr(err.msg, "+/"), "a key in an error");
        ct_secret_free(key);
        ct_keyring_free(r);
    }
}

Test(keyring, verification_by_kid)
{
    static const struct {
        const char *json, *kid;
        enum ct_code code;
        int other; /* it is SEED_OTHER's */
    } cases[] = {
        {OKP("a", SEED), "a", CT_OK, 0},
        {OKP("a", SEED), "", CT_OK, 0},
        {OKP("a", SEED), "b", CT_NOKEY, 0},
        {OCT("aes256gcm", "a", K32), "a", CT_NOKEY, 0},
        {SET(OKP("a", SEED) "," OKP("b", SEED_OTHER)), "b", CT_OK, 1},
        {SET(OKP("a", SEED) "," OKP("b", SEED_OTHER)), "", CT_NOKEY, 0},
        {SET(OKP("a", SEED) "," OKP("a", SEED_OTHER)), "a", CT_REJECTED, 0},
        {SET(OKP("a", SEED) "," OKP("a", SEED)), "a", CT_OK, 0},
    };
    pubs();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ct_keyring *r = ring_of(cases[i].json);
        struct ct_keysource *ks = ct_keyring_source(r);
        struct ct_keyref ref = {.kid = span(cases[i].kid), .jku = span("file:///never")};
        struct ct_err err = CT_ERR_INIT;
        uint8_t pub[32] = {0};
        uint8_t want[32];
        int n = ks->verify(ks, &ref, pub, &err);
        cr_expect_eq(n ? err.code : CT_OK, cases[i].code, "%s: %s", cases[i].json, err.msg);
        if (n == 0) {
            const char *text = cases[i].other ? PUB_OTHER : PUB;
            cr_assert_eq(ct_base64_decode(text, strlen(text), want, 32), 32);
            cr_expect_arr_eq(pub, want, 32);
        }
        ct_keyring_free(r);
    }
}

/* ---- jku ---- */

static int opened;

static int open_jku(void *ctx, const char *path, struct ct_err *err)
{
    opened++;
    if (strcmp(path, "keys/a.jwk") != 0 && strcmp(path, "/abs/~/b") != 0) {
        return ct_err_set(err, CT_LEAVES, "not beneath the key directory");
    }
    const char *json = ctx;
    int fd = memfd_create("jwk", MFD_CLOEXEC);
    cr_assert_eq(ct_write_full(fd, json, strlen(json), NULL), 0);
    cr_assert_eq(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

Test(keyring, jku)
{
    static const char there[] = SET(OCT("aes256gcm", "far", K32) "," OKP("far-sign", SEED));
    static const struct {
        const char *kid, *jku;
        enum ct_code code;
        int opened;
        const char *log;
    } cases[] = {
        {"far", "file://keys/a.jwk", CT_OK, 1, ""},
        {"far", "file:///abs/~/b", CT_OK, 1, ""},
        {"", "file:///abs/~/b", CT_OK, 0, ""}, /* the one that is here */
        {"near", "file://keys/a.jwk", CT_OK, 0, ""},
        {"far", "", CT_NOKEY, 0, ""},
        {"far", "file://", CT_NOKEY, 0, ""},
        {"far", "FILE://keys/a.jwk", CT_NOKEY, 0, ""},
        {"far", "https://keys/a.jwk", CT_NOKEY, 0, ""},
        {"far", "koalavault://x", CT_NOKEY, 0, ""},
        {"elsewhere", "file://keys/a.jwk", CT_NOKEY, 1, ""},
        {"far", "file://../out", CT_NOKEY, 1, "not beneath"},
    };
    struct ct_keyring *r = ring_of(OCT("aes256gcm", "near", K32));
    struct ct_keysource *ks = ct_keyring_source(r);
    struct ct_keyref ref = {CT_ALG_AES256GCM, span("far"), span("file://keys/a.jwk")};
    struct ct_secret *key = NULL;
    cr_expect_eq(ks->master(ks, &ref, &key, NULL), -1, "no opener, no jku");
    ct_keyring_set_jku(r, open_jku, (void *)there);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        ref.kid = span(cases[i].kid);
        ref.jku = span(cases[i].jku);
        opened = 0;
        logged[0] = '\0';
        int n = ks->master(ks, &ref, &key, &err);
        cr_expect_eq(n ? err.code : CT_OK, cases[i].code, "%s: %s", cases[i].jku, err.msg);
        cr_expect_eq(opened, cases[i].opened, "%s", cases[i].jku);
        cr_expect(strstr(logged, cases[i].log) && (*cases[i].log || !*logged), "%s", logged);
        if (n == 0) {
            ct_secret_free(key);
        }
    }
    /* Never for verification keys. */
    uint8_t pub[32];
    ref = (struct ct_keyref){CT_ALG_NONE, span("far-sign"), span("file://keys/a.jwk")};
    opened = 0;
    cr_expect_eq(ks->verify(ks, &ref, pub, NULL), -1);
    cr_expect_eq(opened, 0);
    cr_expect_eq(ct_keyring_count(r), 1);
    ct_keyring_free(r);
}

/* ---- for writers ---- */

Test(keyring, writers_keys)
{
    struct ct_keyring *r =
        ring_of(SET(OCT("aes256gcm", "a", K32) "," OCT("aes128gcm", "b", K16) "," OKP("s", SEED)));
    static const char pub_only[] =
        "{\"kty\":\"okp\",\"alg\":\"ed25519\",\"kid\":\"p\",\"x\":\"" K32 "\"}";
    const struct ct_secret *key = NULL;
    enum ct_alg alg = CT_ALG_NONE;
    struct ct_span kid;
    uint8_t pub[32];
    struct ct_err err = CT_ERR_INIT;
    cr_assert_eq(ct_keyring_add(r, (const uint8_t *)pub_only, strlen(pub_only), "p", &err), 0);
    cr_expect_eq(ct_keyring_master(r, "b", &key, &alg, &kid, &err), 0);
    cr_expect(alg == CT_ALG_AES128GCM && ct_secret_len(key) == 16 && ct_span_eq(kid, "b"));
    cr_expect_eq(ct_keyring_master(r, NULL, &key, &alg, &kid, &err), -1);
    cr_expect_eq(err.code, CT_USAGE);
    cr_expect_eq(ct_keyring_master(r, "c", &key, &alg, &kid, &err), -1);
    cr_expect_eq(err.code, CT_NOKEY);
    cr_expect_eq(ct_keyring_signer(r, NULL, &key, &kid, pub, &err), 0, "%s", err.msg);
    cr_expect(ct_span_eq(kid, "s") && ct_secret_len(key) == 32);
    cr_expect_eq(ct_keyring_signer(r, "p", &key, &kid, pub, &err), -1, "a public half signs");
    cr_expect_eq(err.code, CT_NOKEY);
    ct_keyring_free(r);
}

Test(keyring, jku_of_writers_keys)
{
    static const char set[] =
        SET("{\"kty\":\"oct\",\"alg\":\"aes256gcm\",\"kid\":\"a\",\"k\":\"" K32
            "\",\"jku\":\"file:///a\"}," OKP("s", SEED));
    struct ct_keyring *r = ring_of(set);
    const struct ct_secret *key = NULL;
    enum ct_alg alg = CT_ALG_NONE;
    struct ct_span kid;
    uint8_t pub[32];
    cr_assert_eq(ct_keyring_master(r, NULL, &key, &alg, &kid, NULL), 0);
    cr_expect(ct_span_eq(ct_keyring_jku(r, key), "file:///a"));
    cr_assert_eq(ct_keyring_signer(r, NULL, &key, &kid, pub, NULL), 0);
    cr_expect_eq(ct_keyring_jku(r, key).n, 0);
    ct_keyring_free(r);
}

Test(keyring, generated_keys_are_read_back)
{
    static const char *const kids[] = {"k", "", "with \"quotes\" and \\ and \xc3\xbc"};
    static const enum ct_alg algs[] = {CT_ALG_NONE, CT_ALG_AES128GCM, CT_ALG_AES256GCM,
                                       CT_ALG_CHACHA20POLY1305};
    for (size_t i = 0; i < 12; i++) {
        enum ct_alg alg = algs[i / 3];
        struct ct_err err = CT_ERR_INIT;
        ct_autobuf out = {0};
        ct_autobuf again = {0};
        ct_autobuf pub = {0};
        struct ct_keyring *r = ct_keyring_new(NULL);
        cr_assert_eq(ct_key_generate(alg, kids[i % 3], &out, &pub, &err), 0, "%s", err.msg);
        cr_assert_eq(ct_keyring_add(r, out.data, out.len, "generated", &err), 0, "%s", err.msg);
        cr_assert_eq(ct_keyring_count(r), 1);
        const struct ct_secret *key = NULL;
        enum ct_alg found = CT_ALG_NONE;
        struct ct_span kid = {0};
        uint8_t signer[32];
        uint8_t verifier[32];
        if (alg != CT_ALG_NONE) {
            cr_expect_eq(ct_keyring_master(r, NULL, &key, &found, &kid, &err), 0);
            cr_expect_eq(found, alg);
            cr_expect_eq(ct_secret_len(key), ct_alg_key_len(alg));
            cr_expect_eq(pub.len, 0);
        } else {
            struct ct_keyring *p = ct_keyring_new(NULL);
            cr_expect_eq(ct_keyring_signer(r, NULL, &key, &kid, signer, &err), 0);
            cr_assert_eq(ct_keyring_add(p, pub.data, pub.len, "public", &err), 0);
            cr_expect_eq(memmem(pub.data, pub.len, "\"d\"", 3), NULL);
            struct ct_keysource *ks = ct_keyring_source(p);
            cr_expect_eq(ks->verify(ks, &(struct ct_keyref){.kid = kid}, verifier, &err), 0);
            cr_expect_arr_eq(signer, verifier, 32);
            ct_keyring_free(p);
        }
        cr_expect(ct_span_is(kid, kids[i % 3], strlen(kids[i % 3])));
        cr_assert_eq(ct_key_generate(alg, kids[i % 3], &again, &pub, &err), 0);
        cr_expect_neq(ct_cmp_bytes(out.data, out.len, again.data, again.len), 0, "the same key");
        ct_keyring_free(r);
    }
}
