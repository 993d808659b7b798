#include "format/base/sha256.h"

#include <openssl/evp.h>
#include <stdlib.h>

struct ct_sha256 {
    EVP_MD_CTX *ctx;
};

static int failed(struct ct_err *err)
{
    return ct_err_set(err, CT_NOMEM, "SHA-256 is not to be had from OpenSSL");
}

int ct_sha256(const void *p, size_t n, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    return EVP_Digest(p, n, out, NULL, EVP_sha256(), NULL) == 1 ? 0 : failed(err);
}

struct ct_sha256 *ct_sha256_new(struct ct_err *err)
{
    struct ct_sha256 *s = calloc(1, sizeof(*s));
    if (s && (s->ctx = EVP_MD_CTX_new()) && EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) == 1) {
        return s;
    }
    ct_sha256_free(s);
    failed(err);
    return NULL;
}

int ct_sha256_update(struct ct_sha256 *s, const void *p, size_t n, struct ct_err *err)
{
    return EVP_DigestUpdate(s->ctx, p, n) == 1 ? 0 : failed(err);
}

int ct_sha256_take(struct ct_sha256 *s, uint8_t out[static CT_SHA256_LEN], struct ct_err *err)
{
    if (EVP_DigestFinal_ex(s->ctx, out, NULL) != 1 ||
        EVP_DigestInit_ex(s->ctx, EVP_sha256(), NULL) != 1) {
        return failed(err);
    }
    return 0;
}

void ct_sha256_free(struct ct_sha256 *s)
{
    if (s) {
        EVP_MD_CTX_free(s->ctx);
        free(s);
    }
}
