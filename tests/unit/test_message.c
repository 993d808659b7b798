/* Long messages in pieces: the same as decrypting the whole, damage found where it is, threads. */
#include <openssl/evp.h>
#include <pthread.h>

#include "format/aead/gf128.h"
#include "format/aead/sum.h"
#include "format/message.h"
#include "tests/unit/aead_fixture.h"

static void setup(void)
{
    cr_assert_eq(ct_secret_init(NULL), 0);
}

TestSuite(message, .init = setup, .timeout = 100);

static const uint8_t key[32] = {7, 1, 2, 3};
static const uint8_t iv[12] = {9, 8, 7, 6, 5, 4, 3, 2, 0xff, 0xff, 0xff, 0xfe};

enum { MAX_PIECES = 4 };
#define PIECE ((uint64_t)CT_PIECE)

static uint8_t buf[CT_PIECE]; /* each test runs in a process of its own */

/* A message, and what reads it. */
struct text {
    uint64_t n;
    uint8_t *plain, *sealed;
    uint8_t tag[16];
    int reads;
    int fail_at; /* this read fails; -1: none */
    pthread_mutex_t lock;
};

static void text_new(struct text *t, enum ct_alg alg, uint64_t n)
{
    uint32_t x = (uint32_t)n;
    *t = (struct text){.n = n, .plain = malloc(n), .sealed = malloc(n), .fail_at = -1};
    pthread_mutex_init(&t->lock, NULL);
    for (uint64_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        t->plain[i] = (uint8_t)(x >> 24);
    }
    struct ct_aead *a = ct_aead_new(alg, key, NULL);
    cr_assert_eq(ct_aead_encrypt(a, iv, t->plain, n, t->sealed, t->tag, NULL), 0);
    ct_aead_free(a);
}

static void text_free(struct text *t)
{
    free(t->plain);
    free(t->sealed);
}

static int read_text(void *ctx, uint64_t offset, uint8_t *out, size_t n, struct ct_err *err)
{
    struct text *t = ctx;
    pthread_mutex_lock(&t->lock);
    int number = t->reads++;
    pthread_mutex_unlock(&t->lock);
    cr_assert(offset % CT_SUM_PART == 0 && offset + n <= t->n && n <= CT_SUM_PART);
    if (number == t->fail_at) {
        return ct_err_set(err, CT_IO, "the disk");
    }
    memcpy(out, t->sealed + offset, n);
    return 0;
}

/* How many reads take in the whole of it. */
static int parts_of(const struct text *t)
{
    return (int)((t->n + CT_SUM_PART - 1) / CT_SUM_PART);
}

static int sum_in_parts(struct ct_aead *a, const struct text *t, size_t part, struct ct_err *err)
{
    struct ct_sum sum;
    int r = ct_sum_start(&sum, a, iv, err);
    for (size_t at = 0; r == 0 && at < t->n; at += part) {
        r = ct_sum_add(&sum, t->sealed + at, t->n - at < part ? t->n - at : part, err);
    }
    r = r == 0 ? ct_sum_check(&sum, t->tag, err) : r;
    ct_sum_end(&sum);
    return r;
}

static size_t len_of(const struct text *t, uint64_t index)
{
    uint64_t left = t->n - index * CT_PIECE;
    return left < CT_PIECE ? (size_t)left : CT_PIECE;
}

/* Opens every piece; those of `damaged` (a bit each) must fail, with zeros. */
static void expect_pieces(struct text *t, struct ct_message *m, struct ct_aead *a, unsigned damaged)
{
    for (uint64_t i = ct_piece_count(t->n); i-- > 0;) {
        struct ct_err err = CT_ERR_INIT;
        size_t n = len_of(t, i);
        memcpy(buf, t->sealed + i * CT_PIECE, n);
        int r = ct_message_open(m, a, i, buf, n, &err);
        if (damaged >> i & 1) {
            cr_expect_eq(r, -1);
            cr_expect_eq(err.code, CT_TAG);
            for (size_t k = 0; k < n; k++) {
                cr_assert_eq(buf[k], 0);
            }
        } else {
            cr_expect_eq(r, 0, "piece %d of %llu bytes: %s", (int)i, (unsigned long long)t->n,
                         err.msg);
            cr_expect_eq(memcmp(buf, t->plain + i * CT_PIECE, n), 0);
        }
    }
}

Test(message, pieces_equal_the_whole)
{
    static const uint64_t lengths[] = {1,
                                       15,
                                       16,
                                       17,
                                       1000,
                                       PIECE - 1,
                                       CT_PIECE,
                                       PIECE + 1,
                                       PIECE + 15,
                                       PIECE + 16,
                                       PIECE + 17,
                                       2 * PIECE - 16,
                                       2 * PIECE - 1,
                                       2 * PIECE,
                                       3 * PIECE + 63,
                                       4 * PIECE};
    struct ct_piece pieces[MAX_PIECES];
    for (size_t k = 0; k < 3; k++) {
        struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
            struct ct_err err = CT_ERR_INIT;
            struct text t;
            text_new(&t, algs[k], lengths[i]);
            struct ct_message *m = ct_message_new(iv, t.tag, t.n, pieces, &err);
            cr_assert(m);
            int r = ct_message_authenticate(m, a, read_text, &t, &err);
            cr_assert_eq(r, 0, "%s, %d: %s", ct_alg_name(algs[k]), (int)t.n, err.msg);
            cr_expect_eq(t.reads, parts_of(&t));
            cr_expect_eq(ct_message_authenticate(m, a, read_text, &t, &err), 0);
            cr_expect_eq(t.reads, parts_of(&t), "authenticated twice");
            expect_pieces(&t, m, a, 0);
            ct_message_free(m);
            text_free(&t);
        }
        ct_aead_free(a);
    }
}

/* The sum of a whole message in parts of any length, by each backend, and what is not its tag. */
Test(message, a_sum_tells_whether_the_tag_is_right)
{
    static const size_t lengths[] = {1, 15, 16, 17, 1000, 65536, 100001, CT_PIECE};
    for (EACH_BACKEND(c)) {
        for (size_t k = 0; k < 3 * sizeof(lengths) / sizeof(lengths[0]); k++) {
            struct text t;
            struct ct_err err = CT_ERR_INIT;
            text_new(&t, algs[k % 3], lengths[k / 3]);
            struct ct_aead *a = keyed(algs[k % 3], key);
            for (size_t part = t.n < 2000 ? 16 : 4096; part < 4 * t.n && part < 2UL * CT_PIECE;
                 part *= 32) {
                cr_expect_eq(sum_in_parts(a, &t, part, &err), 0, "%d of %d: %s", (int)part,
                             (int)t.n, err.msg);
                t.sealed[t.n - 1] ^= 1;
                cr_expect_eq(sum_in_parts(a, &t, part, &err), -1);
                cr_expect_eq(err.code, CT_TAG);
                t.sealed[t.n - 1] ^= 1;
            }
            t.tag[3] ^= 1;
            cr_expect_eq(sum_in_parts(a, &t, CT_SUM_PART, &err), -1);
            cr_expect_eq(err.code, CT_TAG);
            ct_aead_free(a);
            text_free(&t);
        }
    }
}

Test(message, a_wrong_message_is_remembered)
{
    struct ct_piece pieces[MAX_PIECES];
    for (size_t k = 0; k < 3; k++) {
        struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
        struct text t;
        text_new(&t, algs[k], 2 * PIECE + 1000);
        for (int where = 0; where < 5; where++) {
            struct ct_err err = CT_ERR_INIT;
            uint8_t *wrong = where < 3 ? t.sealed + where * PIECE + 999 : t.tag + where;
            *wrong ^= 0x10;
            struct ct_message *m = ct_message_new(iv, t.tag, t.n, pieces, &err);
            t.reads = 0;
            for (int again = 0; again < 3; again++) {
                cr_expect_eq(ct_message_authenticate(m, a, read_text, &t, &err), -1);
                cr_expect_eq(err.code, CT_TAG);
                cr_expect_eq(t.reads, parts_of(&t));
            }
            *wrong ^= 0x10;
            ct_message_free(m);
        }
        text_free(&t);
        ct_aead_free(a);
    }
}

Test(message, later_damage_is_found_where_it_is)
{
    struct ct_piece pieces[MAX_PIECES];
    for (size_t k = 0; k < 3; k++) {
        struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
        struct text t;
        text_new(&t, algs[k], 3 * PIECE + 5);
        struct ct_message *m = ct_message_new(iv, t.tag, t.n, pieces, NULL);
        cr_assert_eq(ct_message_authenticate(m, a, read_text, &t, NULL), 0);
        for (uint64_t bit = 0; bit < 4; bit++) {
            uint64_t at = bit == 3 ? t.n - 1 : bit * PIECE + bit * 77;
            t.sealed[at] ^= 1;
            expect_pieces(&t, m, a, 1U << bit);
            t.sealed[at] ^= 1;
        }
        /* Two pieces exchanged: each is authentic, in another place. */
        memcpy(buf, t.sealed, CT_PIECE);
        cr_expect_eq(ct_message_open(m, a, 1, buf, CT_PIECE, NULL), -1);
        ct_message_free(m);
        text_free(&t);
        ct_aead_free(a);
    }
}

Test(message, a_failed_read_is_not_remembered)
{
    struct ct_piece pieces[MAX_PIECES];
    for (size_t k = 0; k < 3; k++) {
        struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
        struct text t;
        text_new(&t, algs[k], 4 * PIECE);
        struct ct_message *m = ct_message_new(iv, t.tag, t.n, pieces, NULL);
        for (int at = 0; at < 4; at++) {
            struct ct_err err = CT_ERR_INIT;
            t.reads = 0;
            t.fail_at = at;
            cr_expect_eq(ct_message_authenticate(m, a, read_text, &t, &err), -1);
            cr_expect_eq(err.code, CT_IO);
            cr_expect_str_eq(err.msg, "the disk");
        }
        t.fail_at = -1;
        cr_expect_eq(ct_message_authenticate(m, a, read_text, &t, NULL), 0);
        expect_pieces(&t, m, a, 0);
        ct_message_free(m);
        text_free(&t);
        ct_aead_free(a);
    }
}

/* ---- decrypted while it is authenticated ---- */

/* What landed is the plaintext; returns how many pieces did. */
static unsigned expect_landed(const struct text *t, struct ct_message *m, const uint8_t *to,
                              uint64_t number)
{
    unsigned count = 0;
    for (uint64_t i = 0; i < ct_piece_count(t->n); i++) {
        if (ct_message_landed(m, i, number)) {
            count++;
            cr_expect_eq(memcmp(to + i * PIECE, t->plain + i * PIECE, len_of(t, i)), 0);
        }
    }
    return count;
}

Test(message, lands_while_it_is_authenticated)
{
    static const uint64_t lengths[] = {1, 1000, PIECE, PIECE + 17, 3 * PIECE + 100, 4 * PIECE};
    struct ct_piece pieces[MAX_PIECES];
    for (EACH_BACKEND(c)) {
        for (size_t k = 0; k < 3 * sizeof(lengths) / sizeof(lengths[0]); k++) {
            struct text t;
            struct ct_err err = CT_ERR_INIT;
            text_new(&t, algs[k % 3], lengths[k / 3]);
            struct ct_aead *a = keyed(algs[k % 3], key);
            struct ct_landing landing = {malloc(t.n), 7, keyed(algs[k % 3], key)};
            struct ct_message *m = ct_message_new(iv, t.tag, t.n, pieces, NULL);
            cr_expect_eq(ct_message_load(m, a, read_text, &t, &landing, NULL), 0);
            cr_expect_eq(t.reads, parts_of(&t), "read once");
            cr_expect_eq(expect_landed(&t, m, landing.to, 7), ct_piece_count(t.n));
            cr_expect_eq(expect_landed(&t, m, landing.to, 8), 0);
            expect_pieces(&t, m, a, 0);
            ct_message_free(m);

            t.sealed[t.n / 2] ^= 1;
            m = ct_message_new(iv, t.tag, t.n, pieces, NULL);
            cr_expect_eq(ct_message_load(m, a, read_text, &t, &landing, &err), -1);
            cr_expect_eq(err.code, CT_TAG);
            ct_message_free(m);
            ct_aead_free(landing.aead);
            ct_aead_free(a);
            free(landing.to);
            text_free(&t);
        }
    }
}

/* What landed, and was read again by others since, may be something else than what is authentic. */
Test(message, only_what_was_authenticated_has_landed)
{
    struct ct_piece pieces[MAX_PIECES];
    for (size_t k = 0; k < 3; k++) {
        struct text t;
        text_new(&t, algs[k], 4 * PIECE);
        struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
        struct ct_landing landing = {calloc(1, t.n), 1, ct_aead_new(algs[k], key, NULL)};
        struct ct_message *m = ct_message_new(iv, t.tag, t.n, pieces, NULL);
        t.sealed[5] ^= 1;
        t.fail_at = parts_of(&t) - 1;
        cr_expect_eq(ct_message_load(m, a, read_text, &t, &landing, NULL), -1);
        t.sealed[5] ^= 1;
        cr_expect_eq(ct_message_authenticate(m, a, read_text, &t, NULL), 0);
        cr_expect_eq(expect_landed(&t, m, landing.to, 1), 0);
        cr_expect_eq(ct_message_load(m, a, read_text, &t, &landing, NULL), 0);
        cr_expect_eq(expect_landed(&t, m, landing.to, 1), 0, "it was settled before");
        ct_message_free(m);
        ct_aead_free(landing.aead);
        ct_aead_free(a);
        free(landing.to);
        text_free(&t);
    }
}

/* ---- counters at their end ---- */

/* The key stream of 64 bytes from a block on, by OpenSSL. */
static void key_stream(const char *cipher, const uint8_t start[static 16], uint8_t out[static 64])
{
    static const uint8_t zeros[64];
    int n = 0;
    EVP_CIPHER *c = EVP_CIPHER_fetch(NULL, cipher, NULL);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    cr_assert_eq(EVP_EncryptInit_ex(ctx, c, NULL, key, start), 1);
    cr_assert_eq(EVP_EncryptUpdate(ctx, out, &n, zeros, 64), 1);
    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER_free(c);
}

/* The longest message of AES-GCM: 2^36 - 32 bytes, here all zero, so that its tag is only its
 * lengths times H, and every piece but the last is the same. Its last counter is 2^32 - 1. */
Test(message, the_last_counter_of_gcm)
{
    const uint64_t n = (UINT64_C(1) << 36) - 32;
    const uint64_t count = ct_piece_count(n);
    struct ct_err err = CT_ERR_INIT;
    static const uint8_t zeros[12];
    static struct ct_piece pieces[32768];
    struct ct_aead *a = ct_aead_new(CT_ALG_AES256GCM, key, NULL);
    uint8_t h[16];
    uint8_t tag[16];
    uint8_t mask[16];
    uint8_t len[16] = {0};
    uint8_t stream[64];
    uint8_t start[16];
    cr_assert_eq(count, sizeof(pieces) / sizeof(pieces[0]));

    EVP_CIPHER_CTX *ecb = EVP_CIPHER_CTX_new();
    int done = 0;
    memset(h, 0, 16);
    EVP_EncryptInit_ex(ecb, EVP_aes_256_ecb(), NULL, key, NULL);
    EVP_EncryptUpdate(ecb, h, &done, h, 16);
    EVP_CIPHER_CTX_free(ecb);
    ct_put_be32(len + 8, (uint32_t)(n >> 29));
    ct_put_be32(len + 12, (uint32_t)(n << 3));
    ct_gf128_mul(tag, len, h);
    cr_assert_eq(gmac(a, iv, 12, NULL, 0, mask), 0);
    ct_xor16(tag, mask);

    cr_assert_eq(ct_piece_share(a, zeros, buf, CT_PIECE, &pieces[0], &err), 0);
    for (uint64_t i = 1; i + 1 < count; i++) {
        pieces[i] = pieces[0];
    }
    cr_assert_eq(ct_piece_share(a, zeros, buf, CT_PIECE - 32, &pieces[count - 1], &err), 0);
    cr_assert_eq(ct_pieces_check(a, iv, pieces, n, tag, &err), 0, "%s", err.msg);

    size_t last = CT_PIECE - 32;
    cr_expect_eq(ct_piece_open(a, iv, count - 1, &pieces[count - 1], buf, last, &err), 0);
    memcpy(start, iv, 12);
    ct_put_be32(start + 12, 0xffffffff - 3);
    key_stream("AES-256-CTR", start, stream);
    cr_expect_arr_eq(buf + last - 64, stream, 64);
    ct_aead_free(a);
}

/* Of ChaCha20-Poly1305: 2^38 - 64 bytes; a piece's share is enough to open it. */
Test(message, the_last_counter_of_chacha20)
{
    const uint64_t index = ct_piece_count((UINT64_C(1) << 38) - 64) - 1;
    struct ct_err err = CT_ERR_INIT;
    struct ct_piece piece;
    struct ct_aead *a = ct_aead_new(CT_ALG_CHACHA20POLY1305, key, NULL);
    uint8_t stream[64];
    uint8_t start[16] = {0xff, 0xff, 0xff, 0xff};
    size_t last = CT_PIECE - 64;
    cr_assert_eq(index, 131071);
    cr_assert_eq(ct_piece_share(a, iv, buf, last, &piece, &err), 0);
    cr_assert_eq(ct_piece_open(a, iv, index, &piece, buf, last, &err), 0);
    memcpy(start + 4, iv, 12);
    key_stream("ChaCha20", start, stream);
    cr_expect_arr_eq(buf + last - 64, stream, 64);
    ct_aead_free(a);
}

Test(message, longer_than_the_cipher_allows)
{
    static const uint8_t tag[16];
    for (size_t k = 0; k < 3; k++) {
        struct ct_err err = CT_ERR_INIT;
        uint64_t n = algs[k] == CT_ALG_CHACHA20POLY1305 ? (UINT64_C(1) << 38) - 63
                                                        : (UINT64_C(1) << 36) - 31;
        struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
        struct ct_message *m = ct_message_new(iv, tag, n, NULL, NULL);
        cr_expect_eq(ct_message_authenticate(m, a, read_text, NULL, &err), -1);
        cr_expect_eq(err.code, CT_TAG);
        ct_message_free(m);
        ct_aead_free(a);
    }
}

/* ---- threads ---- */

struct crowd {
    struct ct_message *m;
    enum ct_alg alg;
    struct text *t;
    pthread_barrier_t gate;
    uint8_t *to;     /* where every other one has it decrypted to; or NULL */
    unsigned joined; /* so many threads; this and the next one under the text's lock */
    int failed;
};

static void *join_in(void *arg)
{
    struct crowd *c = arg;
    struct ct_aead *a = ct_aead_new(c->alg, key, NULL);
    struct ct_landing landing = {c->to, 1, ct_aead_new(c->alg, key, NULL)};
    pthread_mutex_lock(&c->t->lock);
    bool lands = c->to && c->joined++ % 2 == 0;
    pthread_mutex_unlock(&c->t->lock);
    pthread_barrier_wait(&c->gate);
    int r = ct_message_load(c->m, a, read_text, c->t, lands ? &landing : NULL, NULL);
    pthread_mutex_lock(&c->t->lock);
    c->failed += r != 0;
    pthread_mutex_unlock(&c->t->lock);
    ct_aead_free(landing.aead);
    ct_aead_free(a);
    return NULL;
}

static int run_crowd(struct crowd *c, unsigned threads)
{
    pthread_t ids[8];
    c->failed = 0;
    c->joined = 0;
    pthread_barrier_init(&c->gate, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        cr_assert_eq(pthread_create(&ids[i], NULL, join_in, c), 0);
    }
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    pthread_barrier_destroy(&c->gate);
    return c->failed;
}

/* Every piece is read once, whoever reads it; a thread whose read fails is the only one to know. */
Test(message, threads_help)
{
    struct ct_piece pieces[MAX_PIECES];
    for (size_t k = 0; k < 3; k++) {
        struct text t;
        text_new(&t, algs[k], 3 * PIECE + 100);
        uint8_t *to = malloc(t.n);
        for (int round = 0; round < 20; round++) {
            struct crowd c = {.alg = algs[k], .t = &t, .to = round % 3 ? to : NULL};
            c.m = ct_message_new(iv, t.tag, t.n, pieces, NULL);
            t.reads = 0;
            t.fail_at = round % 2 ? round / 2 % 4 : -1;
            int failed = run_crowd(&c, 5);
            cr_expect_eq(failed, round % 2);
            cr_expect(round % 2 || t.reads == parts_of(&t), "%d reads", t.reads);
            if (failed) {
                t.fail_at = -1;
            }
            struct ct_aead *a = ct_aead_new(algs[k], key, NULL);
            cr_expect_eq(ct_message_authenticate(c.m, a, read_text, &t, NULL), 0);
            expect_pieces(&t, c.m, a, 0);
            (void)expect_landed(&t, c.m, to, 1);
            ct_aead_free(a);
            ct_message_free(c.m);
        }
        free(to);
        text_free(&t);
    }
}
