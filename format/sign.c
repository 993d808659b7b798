#include "format/sign.h"

#include <openssl/evp.h>

static int verify(EVP_PKEY *key, EVP_MD_CTX *ctx, const void *msg, size_t n, const uint8_t *sig)
{
    return key && ctx && EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, key) == 1 &&
           EVP_DigestVerify(ctx, sig, CT_ED25519_SIG, msg, n) == 1;
}

int ct_ed25519_verify(const uint8_t pub[static CT_ED25519_PUB], const void *msg, size_t n,
                      const uint8_t sig[static CT_ED25519_SIG], struct ct_err *err)
{
    EVP_PKEY *key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, pub, CT_ED25519_PUB);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int good = verify(key, ctx, msg, n, sig);
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return good ? 0 : ct_err_set(err, CT_REJECTED, "the signature does not fit");
}

static EVP_PKEY *private_key(const struct ct_secret *seed)
{
    return ct_secret_len(seed) == CT_ED25519_SEED
               ? EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, ct_secret_peek(seed),
                                              CT_ED25519_SEED)
               : NULL;
}

int ct_ed25519_sign(const struct ct_secret *seed, const void *msg, size_t n,
                    uint8_t sig[static CT_ED25519_SIG], struct ct_err *err)
{
    EVP_PKEY *key = private_key(seed);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    size_t len = CT_ED25519_SIG;
    int good = key && ctx && EVP_DigestSignInit(ctx, NULL, NULL, NULL, key) == 1 &&
               EVP_DigestSign(ctx, sig, &len, msg, n) == 1 && len == CT_ED25519_SIG;
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return good ? 0 : ct_err_set(err, CT_USAGE, "signing failed");
}

int ct_ed25519_public(const struct ct_secret *seed, uint8_t pub[static CT_ED25519_PUB],
                      struct ct_err *err)
{
    EVP_PKEY *key = private_key(seed);
    size_t len = CT_ED25519_PUB;
    int good = key && EVP_PKEY_get_raw_public_key(key, pub, &len) == 1 && len == CT_ED25519_PUB;
    EVP_PKEY_free(key);
    return good ? 0 : ct_err_set(err, CT_USAGE, "not an Ed25519 seed");
}
