#include <openssl/evp.h>
#include <pthread.h>
#include <sodium.h>
#include <string.h>

#include "format/aead/backend.h"
#include "format/aead/poly1305.h"
#include "format/base/secret.h"

/* EVP counts in int. */
enum { STEP = 1 << 30 };

struct ossl {
    struct ct_impl base;
    EVP_CIPHER_CTX *ctx; /* keyed by set_key(); OpenSSL wipes it when freed */
    size_t iv_len;
    EVP_CIPHER_CTX *chacha; /* ChaCha20 alone, under the same key; NULL for AES */
    EVP_MAC_CTX *poly;
};

/* Fetched once: an implicit fetch costs more than a small tensor. Never freed. */
static EVP_CIPHER *ciphers[4], *chacha20;
static EVP_MAC *poly1305;
static pthread_once_t fetched = PTHREAD_ONCE_INIT;

static void fetch(void)
{
    ciphers[CT_ALG_AES128GCM] = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    ciphers[CT_ALG_AES256GCM] = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    ciphers[CT_ALG_CHACHA20POLY1305] = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL);
    chacha20 = EVP_CIPHER_fetch(NULL, "ChaCha20", NULL);
    poly1305 = EVP_MAC_fetch(NULL, "POLY1305", NULL);
}

static bool ossl_provides(enum ct_alg alg, enum ct_op op)
{
    pthread_once(&fetched, fetch);
    return ciphers[alg] && ct_alg_has(alg, op) &&
           (alg != CT_ALG_CHACHA20POLY1305 || (chacha20 && poly1305));
}

static void ossl_destroy(struct ct_impl *i)
{
    struct ossl *o = (struct ossl *)i;
    EVP_CIPHER_CTX_free(o->ctx);
    EVP_CIPHER_CTX_free(o->chacha);
    EVP_MAC_CTX_free(o->poly);
    ct_wiping_free(o);
}

static EVP_CIPHER_CTX *context_of(const EVP_CIPHER *cipher)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (ctx && EVP_CipherInit_ex(ctx, cipher, NULL, NULL, NULL, 0) == 1) {
        return ctx;
    }
    EVP_CIPHER_CTX_free(ctx);
    return NULL;
}

static struct ct_impl *ossl_create(enum ct_alg alg)
{
    struct ossl *o = ct_wiping_malloc(sizeof(*o));
    bool stream = alg == CT_ALG_CHACHA20POLY1305;
    if (!o) {
        return NULL;
    }
    *o = (struct ossl){
        .base = {&ct_backend_openssl, alg}, .ctx = context_of(ciphers[alg]), .iv_len = 12};
    if (stream) {
        o->chacha = context_of(chacha20);
        o->poly = EVP_MAC_CTX_new(poly1305);
    }
    if (!o->ctx || (stream && (!o->chacha || !o->poly))) {
        ossl_destroy(&o->base);
        return NULL;
    }
    return &o->base;
}

static int ossl_set_key(struct ct_impl *i, const uint8_t *key)
{
    struct ossl *o = (struct ossl *)i;
    if (EVP_CipherInit_ex(o->ctx, NULL, NULL, key, NULL, 0) != 1 ||
        (o->chacha && EVP_CipherInit_ex(o->chacha, NULL, NULL, key, NULL, 1) != 1)) {
        return -1;
    }
    return 0;
}

/* The key stays; the direction may change. */
static int set_iv(struct ossl *o, const uint8_t *iv, size_t iv_len, int encrypt)
{
    if (o->iv_len != iv_len) {
        if (EVP_CIPHER_CTX_ctrl(o->ctx, EVP_CTRL_AEAD_SET_IVLEN, (int)iv_len, NULL) != 1) {
            return -1;
        }
        o->iv_len = iv_len;
    }
    return EVP_CipherInit_ex(o->ctx, NULL, NULL, NULL, iv, encrypt) == 1 ? 0 : -1;
}

static int update(EVP_CIPHER_CTX *ctx, uint8_t *out, const uint8_t *in, size_t n)
{
    while (n) {
        int done = 0;
        int step = n < STEP ? (int)n : STEP;
        if (EVP_CipherUpdate(ctx, out, &done, in, step) != 1 || done != step) {
            return -1;
        }
        in += step;
        out = out ? out + step : NULL;
        n -= (size_t)step;
    }
    return 0;
}

static int ossl_open_start(struct ct_impl *i, const uint8_t *iv, size_t iv_len)
{
    return set_iv((struct ossl *)i, iv, iv_len, 0);
}

static int ossl_open_finish(struct ct_impl *i, const uint8_t tag[static 16])
{
    struct ossl *o = (struct ossl *)i;
    uint8_t none[16];
    int done = 0;
    if (EVP_CIPHER_CTX_ctrl(o->ctx, EVP_CTRL_AEAD_SET_TAG, 16, (void *)tag) != 1) {
        return -1;
    }
    return EVP_CipherFinal_ex(o->ctx, none, &done) == 1 ? 0 : 1;
}

static int ossl_start(struct ct_impl *i, const uint8_t iv[static 12])
{
    return set_iv((struct ossl *)i, iv, 12, 1);
}

static int ossl_update(struct ct_impl *i, const uint8_t *in, size_t n, uint8_t *out)
{
    return update(((struct ossl *)i)->ctx, out, in, n);
}

static int ossl_finish(struct ct_impl *i, uint8_t tag[static 16])
{
    struct ossl *o = (struct ossl *)i;
    uint8_t none[16];
    int done = 0;
    bool good = EVP_CipherFinal_ex(o->ctx, none, &done) == 1 &&
                EVP_CIPHER_CTX_ctrl(o->ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1;
    return good ? 0 : -1;
}

static int ossl_gmac_start(struct ct_impl *i, const uint8_t *iv, size_t iv_len)
{
    return set_iv((struct ossl *)i, iv, iv_len, 1);
}

static int ossl_gmac_add(struct ct_impl *i, const uint8_t *in, size_t n)
{
    return update(((struct ossl *)i)->ctx, NULL, in, n);
}

static int ossl_chacha20(struct ct_impl *i, const uint8_t iv[static 12], uint32_t block,
                         const uint8_t *in, size_t n, uint8_t *out)
{
    struct ossl *o = (struct ossl *)i;
    uint8_t from[16]; /* OpenSSL's IV: the counter, little endian, then the 12 bytes */
    for (int k = 0; k < 4; k++, block >>= 8) {
        from[k] = (uint8_t)block;
    }
    memcpy(from + 4, iv, 12);
    return EVP_CipherInit_ex(o->chacha, NULL, NULL, NULL, from, 1) == 1
               ? update(o->chacha, out, in, n)
               : -1;
}

static int poly_finish(EVP_MAC_CTX *ctx, uint8_t mac[static 16])
{
    size_t n = 0;
    return EVP_MAC_final(ctx, mac, &n, 16) == 1 && n == 16 ? 0 : -1;
}

/* MACs under (r, 0): over the text, which gives the lower 128 bits of its sum, and over the text
 * and one more block of zeros. */
static int two_macs(EVP_MAC_CTX *ctx, const uint8_t r_only[static 32], const uint8_t *in, size_t n,
                    uint8_t low[static 16], uint8_t more[static 16])
{
    static const uint8_t zeros[16];
    if (EVP_MAC_init(ctx, r_only, 32, NULL) != 1 || EVP_MAC_update(ctx, in, n) != 1 ||
        EVP_MAC_update(ctx, zeros, (16 - n % 16) % 16) != 1) {
        return -1;
    }
    EVP_MAC_CTX *longer = EVP_MAC_CTX_dup(ctx);
    int r = !longer || EVP_MAC_update(longer, zeros, 16) != 1 || poly_finish(longer, more) ||
                    poly_finish(ctx, low)
                ? -1
                : 0;
    EVP_MAC_CTX_free(longer);
    return r;
}

/* The two high bits of the sum whose lower ones are `low`, when one more block of zeros gives
 * `more`. Without branches: they are secret. */
static uint8_t high_bits(const uint8_t key[static 32], const uint8_t low[static 16],
                         const uint8_t more[static 16])
{
    static const uint8_t zeros[16];
    struct ct_gf1305 r = ct_poly1305_r(key);
    uint8_t then[16];
    unsigned high = 0;
    unsigned found = 0;
    for (unsigned k = 0; k < 4; k++) {
        struct ct_gf1305 sum = ct_gf1305_load(low, k);
        sum = ct_poly1305_step(&sum, zeros, &r);
        (void)ct_gf1305_store(&sum, then);
        unsigned same = (unsigned)(sodium_memcmp(then, more, 16) + 1) & ~found;
        high |= k * same;
        found |= same;
    }
    ct_wipe(&r, sizeof(r));
    ct_wipe(then, sizeof(then));
    return (uint8_t)high;
}

int ct_openssl_poly1305(struct ct_impl *i, const uint8_t key[static 32], const uint8_t *in,
                        size_t n, uint8_t sum[static CT_POLY_SUM])
{
    uint8_t r_only[32] = {0};
    uint8_t more[16];
    memcpy(r_only, key, 16);
    int r = two_macs(((struct ossl *)i)->poly, r_only, in, n, sum, more);
    if (r == 0) {
        sum[16] = high_bits(key, sum, more);
    }
    ct_wipe(r_only, sizeof(r_only));
    ct_wipe(more, sizeof(more));
    return r;
}

static int ossl_poly1305(struct ct_impl *i, const uint8_t iv[static 12], const uint8_t *in,
                         size_t n, uint8_t sum[static CT_POLY_SUM])
{
    uint8_t key[32] = {0};
    int r =
        ossl_chacha20(i, iv, 0, key, sizeof(key), key) || ct_openssl_poly1305(i, key, in, n, sum)
            ? -1
            : 0;
    ct_wipe(key, sizeof(key));
    return r;
}

const struct ct_backend ct_backend_openssl = {
    .name = "openssl",
    .provides = ossl_provides,
    .create = ossl_create,
    .destroy = ossl_destroy,
    .set_key = ossl_set_key,
    .open_start = ossl_open_start,
    .open_add = ossl_update,
    .open_finish = ossl_open_finish,
    .start = ossl_start,
    .update = ossl_update,
    .finish = ossl_finish,
    .gmac_start = ossl_gmac_start,
    .gmac_add = ossl_gmac_add,
    .gmac_finish = ossl_finish,
    .chacha20 = ossl_chacha20,
    .poly1305 = ossl_poly1305,
};
