/* Cipher backends: NIST's vectors, each against the other, and which of them is chosen. */
#include <stdio.h>
#include <stdlib.h>

#include "format/aead/pieces.h"
#include "format/aead/stream.h"
#include "tests/unit/aead_fixture.h"

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(backends, .init = setup, .timeout = 100);

/* ---- NIST ---- */

enum { FIELD = 128 };

struct vector {
    char key[FIELD], iv[FIELD], sealed[FIELD], tag[FIELD], plain[FIELD];
};

static void check_vector(const struct vector *v)
{
    static const uint8_t zeros[64];
    uint8_t key[32];
    uint8_t iv[12];
    uint8_t sealed[64];
    uint8_t tag[16];
    uint8_t out[64];
    uint8_t made[16];
    struct ct_err err = CT_ERR_INIT;
    enum ct_alg alg = unhex(v->key, key, 32) == 32 ? CT_ALG_AES256GCM : CT_ALG_AES128GCM;
    size_t n = *v->sealed == '-' ? 0 : unhex(v->sealed, sealed, sizeof(sealed));
    cr_assert_eq(unhex(v->iv, iv, 12), 12);
    cr_assert_eq(unhex(v->tag, tag, 16), 16);
    struct ct_aead *a = keyed(alg, key);
    int r = ct_aead_open(a, iv, sealed, n, tag, out, &err);
    if (strcmp(v->plain, "FAIL") == 0) {
        cr_expect(r == -1 && err.code == CT_TAG, "%s was accepted", v->tag);
        cr_expect_arr_eq(out, zeros, n);
    } else {
        cr_expect_eq(r, 0, "%s: %s", v->tag, err.msg);
        expect_hex(out, n, *v->plain == '-' ? "" : v->plain, v->tag);
        cr_expect_eq(ct_aead_encrypt(a, iv, out, n, out, made, NULL), 0);
        cr_expect_arr_eq(out, sealed, n);
        cr_expect_arr_eq(made, tag, 16);
    }
    ct_aead_free(a);
}

Test(backends, nist_gcm)
{
    for (EACH_BACKEND(c)) {
        char line[1024];
        int count = 0;
        int refused = 0;
        FILE *f = fopen(TEST_DATA "/nist-gcm.txt", "re");
        cr_assert(f);
        while (fgets(line, sizeof(line), f)) {
            struct vector v;
            if (line[0] != '#') {
                cr_assert_eq(sscanf(line, "%127s %127s %127s %127s %127s", v.key, v.iv, v.sealed,
                                    v.tag, v.plain),
                             5);
                check_vector(&v);
                count++;
                refused += strcmp(v.plain, "FAIL") == 0;
            }
        }
        (void)fclose(f);
        cr_expect(count == 200 && refused == 74, "%d, %d", count, refused);
    }
}

/* ---- each against OpenSSL ---- */

/* The same key in both. */
struct pair {
    struct ct_aead *reference, *other;
};

static bool pair_new(struct pair *p, enum ct_alg alg, const uint8_t *key)
{
    cr_assert(use(CT_CRYPTO_OPENSSL));
    p->reference = keyed(alg, key);
    if (use(CT_CRYPTO_IPSEC)) {
        p->other = keyed(alg, key);
        return true;
    }
    ct_aead_free(p->reference);
    return false;
}

static void pair_rekey(struct pair *p, const uint8_t *key)
{
    cr_assert_eq(ct_aead_rekey(p->reference, key, NULL), 0);
    cr_assert_eq(ct_aead_rekey(p->other, key, NULL), 0);
}

static void pair_free(struct pair *p)
{
    ct_aead_free(p->reference);
    ct_aead_free(p->other);
}

/* Room for a message at any alignment, and what must stay as it is around it. */
enum { GUARD = 64, ROOM = CT_PIECE + 2 * GUARD + 128 };
static uint8_t plain[ROOM], sealed[ROOM], got[ROOM];

static void expect_guards(const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < GUARD; i++) {
        cr_assert(p[-1 - (int)i] == 0xa5 && p[n + i] == 0xa5, "written beside %zu bytes", n);
    }
}

/* Encrypts by one, opens by the other and the reverse; `skew` and `place` shift the buffers. */
static void compare(struct pair *p, const uint8_t *iv, size_t n, size_t skew, bool in_place)
{
    struct ct_err err = CT_ERR_INIT;
    uint8_t *to = got + GUARD + skew;
    uint8_t tag[16];
    uint8_t tag2[16];
    fill(plain, n + skew, (uint32_t)n);
    const uint8_t *text = plain + skew;
    cr_assert_eq(ct_aead_encrypt(p->reference, iv, text, n, sealed, tag, NULL), 0);

    memset(got, 0xa5, skew + n + 2UL * GUARD);
    memcpy(to, in_place ? text : (const uint8_t *)to, n);
    cr_assert_eq(ct_aead_encrypt(p->other, iv, in_place ? to : text, n, to, tag2, NULL), 0);
    cr_assert(memcmp(to, sealed, n) == 0 && memcmp(tag, tag2, 16) == 0, "encrypting %zu", n);
    expect_guards(to, n);

    memset(got, 0xa5, skew + n + 2UL * GUARD);
    memcpy(to, in_place ? sealed : to, n);
    int r = ct_aead_open(p->other, iv, in_place ? to : sealed, n, tag, to, &err);
    cr_assert(r == 0 && memcmp(to, text, n) == 0, "opening %zu: %s", n, err.msg);
    expect_guards(to, n);

    memcpy(to, sealed, n);
    tag[n % 16] ^= 4;
    cr_assert(ct_aead_open(p->other, iv, to, n, tag, to, &err) == -1 && err.code == CT_TAG);
}

static const size_t borders[] = {16, 48, 64, 128, 256, 512, 768, 1024, 1536, 4096, 65536, CT_PIECE};

Test(backends, lengths_and_alignments)
{
    uint8_t key[32];
    uint8_t iv[16];
    fill(key, 32, 5);
    fill(iv, 16, 6);
    for (size_t k = 0; k < 3; k++) {
        struct pair p;
        if (!pair_new(&p, algs[k], key)) {
            cr_skip_test("ipsec-mb is not here");
        }
        for (size_t n = 0; n <= 300; n++) {
            compare(&p, iv, n, n * 7 % 64, n % 2);
        }
        for (size_t b = 0; b < sizeof(borders) / sizeof(borders[0]); b++) {
            for (size_t n = borders[b] - 1; n <= borders[b] + 1; n++) {
                compare(&p, iv, n, n % 61, false);
                compare(&p, iv, n, n % 61 + 1, true);
            }
        }
        pair_free(&p);
    }
}

/* Operations of pieces, and messages in parts: random keys, IVs, lengths. */
static void compare_gcm(struct pair *p, const uint8_t *iv, size_t n, const uint8_t *text)
{
    uint8_t a[16];
    uint8_t b[16];
    for (size_t iv_len = 12; iv_len <= 16; iv_len += 4) {
        cr_assert_eq(gmac(p->reference, iv, iv_len, text, n, a), 0);
        cr_assert_eq(gmac(p->other, iv, iv_len, text, n, b), 0);
        cr_assert_arr_eq(a, b, 16, "GMAC of %zu", n);
    }
    /* 16-byte IVs make any counter, also one that soon wraps. The tag of the zeros that the other
     * direction gives is not known, so the texts are compared. */
    for (struct ct_aead **x = (struct ct_aead *[]){p->reference, p->other, NULL}; *x; x++) {
        struct ct_impl *i = (*x)->by[CT_OP_OPEN];
        uint8_t *to = *x == p->reference ? sealed : got;
        cr_assert_eq(ct_open(i, iv, 16, text, n, a, to), 1);
    }
    cr_assert_eq(memcmp(sealed, got, n), 0, "a 16-byte IV, %zu", n);
}

static void compare_chacha(struct pair *p, const uint8_t *iv, size_t n, const uint8_t *text)
{
    uint8_t a[CT_POLY_SUM];
    uint8_t b[CT_POLY_SUM];
    cr_assert_eq(poly1305(p->reference, iv, text, n, a), 0);
    cr_assert_eq(poly1305(p->other, iv, text, n, b), 0);
    cr_assert_arr_eq(a, b, sizeof(a), "Poly1305 of %zu", n);
}

Test(backends, random)
{
    uint8_t key[32];
    uint8_t iv[16];
    uint32_t x = 12345;
    for (size_t k = 0; k < 3; k++) {
        struct pair p;
        fill(key, 32, x);
        if (!pair_new(&p, algs[k], key)) {
            cr_skip_test("ipsec-mb is not here");
        }
        for (int round = 0; round < 1500; round++) {
            x = x * 1664525 + 1013904223;
            size_t n = 1 + (x >> 8) % (round % 100 == 0 ? CT_PIECE : round % 10 == 0 ? 40000 : 900);
            fill(key, 32, x);
            fill(iv, 16, x + 1);
            pair_rekey(&p, key);
            compare(&p, iv, n, x >> 26, x >> 25 & 1);
            if (algs[k] == CT_ALG_CHACHA20POLY1305) {
                compare_chacha(&p, iv, n, plain + (x >> 26));
            } else {
                compare_gcm(&p, iv, n, plain + (x >> 26));
            }
        }
        pair_free(&p);
    }
}

/* ---- version 1 ---- */

/* Shares by one backend, settled by the other, opened by either. */
Test(backends, pieces_mix)
{
    const size_t n = CT_PIECE + 4321;
    uint8_t key[32];
    uint8_t iv[12];
    fill(key, 32, 8);
    fill(iv, 12, 9);
    uint8_t *text = malloc(n);
    uint8_t *whole = malloc(n);
    cr_assert(text && whole);
    fill(text, n, 10);
    for (size_t k = 0; k < 3; k++) {
        struct pair p;
        struct ct_piece by[2][2];
        uint8_t tag[16];
        if (!pair_new(&p, algs[k], key)) {
            cr_skip_test("ipsec-mb is not here");
        }
        struct ct_aead *both[] = {p.reference, p.other};
        cr_assert_eq(ct_aead_encrypt(p.other, iv, text, n, whole, tag, NULL), 0);
        for (int b = 0; b < 2; b++) {
            cr_assert_eq(ct_piece_share(both[b], iv, whole, CT_PIECE, &by[b][0], NULL), 0);
            cr_assert_eq(ct_piece_share(both[!b], iv, whole + CT_PIECE, 4321, &by[b][1], NULL), 0);
            cr_assert_eq(ct_pieces_check(both[b], iv, by[b], n, tag, NULL), 0);
        }
        size_t used = algs[k] == CT_ALG_CHACHA20POLY1305 ? CT_POLY_SUM : sizeof(struct ct_piece);
        for (int b = 0; b < 4; b++) {
            struct ct_piece *piece = &by[b & 1][1];
            cr_expect_arr_eq(by[0][1].bytes, piece->bytes, used);
            memcpy(got, whole + CT_PIECE, 4321);
            cr_assert_eq(ct_piece_open(both[b >> 1], iv, 1, piece, got, 4321, NULL), 0);
            cr_assert_eq(memcmp(got, text + CT_PIECE, 4321), 0);
            memcpy(got, whole + CT_PIECE, 4321);
            got[4320] ^= 1;
            cr_assert_eq(ct_piece_open(both[b >> 1], iv, 1, piece, got, 4321, NULL), -1);
        }
        pair_free(&p);
    }
    free(text);
    free(whole);
}

/* A message in parts of all lengths is the same as in one. */
Test(backends, streams)
{
    enum { N = 70000 };
    uint8_t key[32];
    uint8_t iv[12];
    uint8_t tag[16];
    uint8_t whole_tag[16];
    fill(key, 32, 11);
    fill(iv, 12, 12);
    fill(plain, N, 13);
    for (EACH_BACKEND(c)) {
        for (size_t k = 0; k < 3; k++) {
            struct ct_aead *a = keyed(algs[k], key);
            cr_assert_eq(ct_aead_encrypt(a, iv, plain, N, sealed, whole_tag, NULL), 0);
            ct_aead_free(a);
            struct ct_aead_stream *s = ct_aead_stream_new(algs[k], key, iv, NULL);
            cr_assert(s);
            memcpy(got, plain, N);
            for (size_t at = 0, step = 0, next = 0; at < N; at += step) {
                next = (next + 1) % 379; /* 0 too */
                step = next < N - at ? next : N - at;
                cr_assert_eq(ct_aead_stream_update(s, got + at, step, got + at, NULL), 0);
            }
            cr_assert_eq(ct_aead_stream_tag(s, tag, NULL), 0);
            ct_aead_stream_free(s);
            cr_expect_eq(memcmp(got, sealed, N), 0, "%s", ct_crypto_names[c]);
            cr_expect_arr_eq(tag, whole_tag, 16);
        }
    }
}

/* ---- the choice ---- */

static const char *chosen(enum ct_alg alg, const char *operation, struct ct_aead_choice *out)
{
    struct ct_aead_choice all[CT_AEAD_CHOICES];
    size_t n = ct_aead_choices(alg, all);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(all[i].operation, operation) == 0) {
            *out = all[i];
            return all[i].backend;
        }
    }
    return NULL;
}

Test(backends, the_faster_is_chosen)
{
    struct ct_aead_choice c;
    cr_assert_eq(ct_aead_prepare(NULL), 0);
    ct_aead_use(CT_CRYPTO_AUTO);
    for (size_t k = 0; k < 3; k++) {
        struct ct_aead_choice all[CT_AEAD_CHOICES];
        size_t n = ct_aead_choices(algs[k], all);
        cr_expect_eq(n, algs[k] == CT_ALG_CHACHA20POLY1305 ? 4 : 3);
        for (size_t i = 0; i < n; i++) {
            bool ipsec = strcmp(all[i].backend, "ipsec") == 0;
            cr_expect(all[i].openssl > 0);
            cr_expect_eq(ipsec, all[i].ipsec > 1.05 * all[i].openssl, "%s", all[i].operation);
            cr_expect(KVFS_HAVE_IPSEC || all[i].ipsec == 0);
        }
    }
    ct_aead_use(CT_CRYPTO_OPENSSL);
    cr_expect_str_eq(chosen(CT_ALG_AES256GCM, "open", &c), "openssl");
    if (use(CT_CRYPTO_IPSEC)) {
        cr_expect_str_eq(chosen(CT_ALG_AES256GCM, "gmac", &c), "ipsec");
        cr_expect_str_eq(chosen(CT_ALG_CHACHA20POLY1305, "poly1305", &c), "ipsec");
        cr_expect_str_eq(chosen(CT_ALG_CHACHA20POLY1305, "chacha20", &c), "openssl");
    } else {
        cr_expect_null(chosen(CT_ALG_AES256GCM, "open", &c));
        cr_expect_eq(ct_aead_prepare(NULL), -1);
    }
}

Test(backends, the_environment)
{
    static const uint8_t key[32];
    struct ct_err err = CT_ERR_INIT;
    struct ct_aead_choice c;
    setenv("KVFS_CRYPTO", "nonsense", 1);
    cr_expect_null(ct_aead_new(CT_ALG_AES256GCM, key, &err));
    cr_expect_eq(err.code, CT_USAGE);
    setenv("KVFS_CRYPTO", "openssl", 1);
    cr_expect_str_eq(chosen(CT_ALG_AES256GCM, "open", &c), "openssl");
}
