#include "format/aead/stream.h"

#include <openssl/evp.h>
#include <stdlib.h>

/* EVP counts in int. */
enum { STEP = 1 << 30 };

struct ct_aead_stream {
    EVP_CIPHER_CTX *ctx;
    uint64_t left;
};

static const EVP_CIPHER *cipher_of(enum ct_alg alg)
{
    switch (alg) {
    case CT_ALG_AES128GCM:
        return EVP_aes_128_gcm();
    case CT_ALG_AES256GCM:
        return EVP_aes_256_gcm();
    case CT_ALG_CHACHA20POLY1305:
        return EVP_chacha20_poly1305();
    case CT_ALG_NONE:
        break;
    }
    return NULL;
}

uint64_t ct_aead_message_max(enum ct_alg alg)
{
    switch (alg) {
    case CT_ALG_AES128GCM:
    case CT_ALG_AES256GCM:
        return (UINT64_C(1) << 36) - 32;
    case CT_ALG_CHACHA20POLY1305:
        return (UINT64_C(1) << 38) - 64;
    case CT_ALG_NONE:
        break;
    }
    return 0;
}

struct ct_aead_stream *ct_aead_stream_new(enum ct_alg alg, const uint8_t *key,
                                          const uint8_t iv[static 12], struct ct_err *err)
{
    const EVP_CIPHER *cipher = cipher_of(alg);
    struct ct_aead_stream *s = calloc(1, sizeof(*s));
    if (s && cipher && (s->ctx = EVP_CIPHER_CTX_new()) &&
        EVP_EncryptInit_ex(s->ctx, cipher, NULL, key, iv) == 1) {
        s->left = ct_aead_message_max(alg);
        return s;
    }
    ct_aead_stream_free(s);
    ct_err_set(err, cipher ? CT_NOMEM : CT_UNSUPPORTED, "the cipher cannot be set up");
    return NULL;
}

int ct_aead_stream_update(struct ct_aead_stream *s, const uint8_t *in, size_t n, uint8_t *out,
                          struct ct_err *err)
{
    if (n > s->left) {
        return ct_err_set(err, CT_USAGE, "the message is too long for its cipher");
    }
    s->left -= n;
    while (n) {
        int done = 0;
        int step = n < STEP ? (int)n : STEP;
        if (EVP_EncryptUpdate(s->ctx, out, &done, in, step) != 1 || done != step) {
            return ct_err_set(err, CT_IO, "encryption failed");
        }
        in += step;
        out += step;
        n -= (size_t)step;
    }
    return 0;
}

int ct_aead_stream_tag(struct ct_aead_stream *s, uint8_t tag[static 16], struct ct_err *err)
{
    uint8_t none[16];
    int done = 0;
    s->left = 0;
    if (EVP_EncryptFinal_ex(s->ctx, none, &done) != 1 || done != 0 ||
        EVP_CIPHER_CTX_ctrl(s->ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag) != 1) {
        return ct_err_set(err, CT_IO, "encryption failed");
    }
    return 0;
}

void ct_aead_stream_free(struct ct_aead_stream *s)
{
    if (s) {
        EVP_CIPHER_CTX_free(s->ctx); /* wipes */
        free(s);
    }
}
