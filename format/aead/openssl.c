#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>

#include "format/aead/aead.h"
#include "format/base/secret.h"

/* EVP counts in int. */
enum { STEP = 1 << 30 };

struct ossl {
    struct ct_aead base;
    EVP_CIPHER_CTX *ctx; /* holds the key; wiped by OpenSSL when freed */
};

/* Fetched once: an implicit fetch costs more than a small tensor. Never freed. */
static EVP_CIPHER *ciphers[4];
static pthread_once_t fetched = PTHREAD_ONCE_INIT;

static void fetch(void)
{
    ciphers[CT_ALG_AES128GCM] = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    ciphers[CT_ALG_AES256GCM] = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    ciphers[CT_ALG_CHACHA20POLY1305] = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", NULL);
}

static struct ct_aead *ossl_create(enum ct_alg alg, struct ct_err *err)
{
    pthread_once(&fetched, fetch);
    struct ossl *o = ct_wiping_malloc(sizeof(*o));
    if (o) {
        *o = (struct ossl){.base.alg = alg, .ctx = EVP_CIPHER_CTX_new()};
    }
    if (!o || !o->ctx || !ciphers[alg]) {
        if (o) {
            EVP_CIPHER_CTX_free(o->ctx);
        }
        ct_wiping_free(o);
        ct_err_set(err, CT_NOMEM, "OpenSSL has no %s", ct_alg_name(alg));
        return NULL;
    }
    return &o->base;
}

static void ossl_destroy(struct ct_aead *a)
{
    struct ossl *o = (struct ossl *)a;
    EVP_CIPHER_CTX_free(o->ctx);
    ct_wiping_free(o);
}

static int ossl_set_key(struct ct_aead *a, const uint8_t *key)
{
    /* Nothing to prepare: set_iv() gives key and IV together, since the direction may change. */
    (void)a;
    (void)key;
    return 0;
}

static int set_iv(struct ct_aead *a, const uint8_t *iv, size_t iv_len, int encrypt)
{
    struct ossl *o = (struct ossl *)a;
    if (EVP_CipherInit_ex(o->ctx, ciphers[a->alg], NULL, NULL, NULL, encrypt) != 1 ||
        EVP_CIPHER_CTX_ctrl(o->ctx, EVP_CTRL_AEAD_SET_IVLEN, (int)iv_len, NULL) != 1 ||
        EVP_CipherInit_ex(o->ctx, NULL, NULL, a->key, iv, encrypt) != 1) {
        return -1;
    }
    return 0;
}

static int update(struct ct_aead *a, uint8_t *out, const uint8_t *in, size_t n)
{
    struct ossl *o = (struct ossl *)a;
    while (n) {
        int done = 0;
        int step = n < STEP ? (int)n : STEP;
        if (EVP_CipherUpdate(o->ctx, out, &done, in, step) != 1 || done != step) {
            return -1;
        }
        in += step;
        out = out ? out + step : NULL;
        n -= (size_t)step;
    }
    return 0;
}

static int ossl_open(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in,
                     size_t n, const uint8_t tag[static 16], uint8_t *out)
{
    struct ossl *o = (struct ossl *)a;
    uint8_t none[16];
    int done = 0;
    if (set_iv(a, iv, iv_len, 0) || update(a, out, in, n) ||
        EVP_CIPHER_CTX_ctrl(o->ctx, EVP_CTRL_AEAD_SET_TAG, 16, (void *)tag) != 1) {
        return -1;
    }
    return EVP_CipherFinal_ex(o->ctx, none, &done) == 1 ? 0 : 1;
}

static int finish(struct ct_aead *a, uint8_t tag[static 16])
{
    struct ossl *o = (struct ossl *)a;
    uint8_t none[16];
    int done = 0;
    return EVP_CipherFinal_ex(o->ctx, none, &done) == 1 &&
                   EVP_CIPHER_CTX_ctrl(o->ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag) == 1
               ? 0
               : -1;
}

static int ossl_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                        uint8_t *out, uint8_t tag[static 16])
{
    return set_iv(a, iv, 12, 1) || update(a, out, in, n) || finish(a, tag) ? -1 : 0;
}

static int ossl_gmac(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in,
                     size_t n, uint8_t tag[static 16])
{
    return set_iv(a, iv, iv_len, 1) || update(a, NULL, in, n) || finish(a, tag) ? -1 : 0;
}

const struct ct_aead_ops ct_aead_openssl = {
    .name = "OpenSSL",
    .create = ossl_create,
    .destroy = ossl_destroy,
    .set_key = ossl_set_key,
    .open = ossl_open,
    .encrypt = ossl_encrypt,
    .gmac = ossl_gmac,
};
