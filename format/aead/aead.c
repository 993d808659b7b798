#include "format/aead/aead.h"

#include <ctype.h>
#include <string.h>

static const struct ct_aead_ops *const backends[] = {&ct_aead_openssl};

static const char *const alg_names[] = {"none", "aes128gcm", "aes256gcm", "chacha20poly1305"};

size_t ct_alg_key_len(enum ct_alg alg)
{
    return alg == CT_ALG_AES128GCM ? 16 : alg == CT_ALG_NONE ? 0 : 32;
}

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
        if (n == strlen(alg_names[alg]) && memcmp(plain, alg_names[alg], n) == 0) {
            return alg;
        }
    }
    return CT_ALG_NONE;
}

static const struct ct_aead_ops *backend_of(enum ct_alg alg)
{
    for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
        if (alg != CT_ALG_NONE && backends[i]->supports(alg)) {
            return backends[i];
        }
    }
    return NULL;
}

const char *ct_aead_backend(enum ct_alg alg)
{
    const struct ct_aead_ops *ops = backend_of(alg);
    return ops ? ops->name : "none";
}

struct ct_aead *ct_aead_new(enum ct_alg alg, const uint8_t *key, struct ct_err *err)
{
    const struct ct_aead_ops *ops = backend_of(alg);
    struct ct_aead *a = ops ? ops->create(alg) : NULL;
    if (!a) {
        ct_err_set(err, ops ? CT_NOMEM : CT_UNSUPPORTED, "no cipher for %s", ct_alg_name(alg));
        return NULL;
    }
    a->ops = ops;
    a->alg = alg;
    if (ct_aead_rekey(a, key, err)) {
        ct_aead_free(a);
        return NULL;
    }
    return a;
}

int ct_aead_rekey(struct ct_aead *a, const uint8_t *key, struct ct_err *err)
{
    return a->ops->set_key(a, key) ? ct_err_set(err, CT_IO, "the cipher cannot be keyed") : 0;
}

void ct_aead_free(struct ct_aead *a)
{
    if (a) {
        a->ops->destroy(a);
    }
}

int ct_aead_open(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                 const uint8_t tag[static 16], uint8_t *out, struct ct_err *err)
{
    int r = a->ops->open(a, iv, 12, in, n, tag, out);
    if (r == 0) {
        return 0;
    }
    if (n) {
        memset(out, 0, n);
    }
    return r > 0 ? ct_err_set(err, CT_TAG, "tag does not match")
                 : ct_err_set(err, CT_IO, "decryption failed");
}

int ct_aead_encrypt(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in, size_t n,
                    uint8_t *out, uint8_t tag[static 16], struct ct_err *err)
{
    return a->ops->encrypt(a, iv, in, n, out, tag) ? ct_err_set(err, CT_IO, "encryption failed")
                                                   : 0;
}
