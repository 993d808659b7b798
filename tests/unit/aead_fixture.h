/* What the tests of ciphers share: each runs with every backend that this machine has. */
#ifndef TESTS_AEAD_FIXTURE_H
#define TESTS_AEAD_FIXTURE_H

#include <criterion/criterion.h>
#include <string.h>

#include "format/aead/backend.h"
#include "format/base/bytes.h"
#include "format/base/secret.h"

static const enum ct_alg algs[] = {CT_ALG_AES128GCM, CT_ALG_AES256GCM, CT_ALG_CHACHA20POLY1305};

/* From now on that backend serves; false if it is not there. Where it is built in and the processor
 * has what it needs, it has to be. */
static inline bool use(enum ct_crypto crypto)
{
    static const uint8_t key[32];
    ct_aead_use(crypto);
    struct ct_aead *a = ct_aead_new(CT_ALG_AES128GCM, key, NULL);
    ct_aead_free(a);
    if (!a) {
        cr_assert_eq(crypto, CT_CRYPTO_IPSEC);
#if KVFS_HAVE_IPSEC
        cr_assert(!__builtin_cpu_supports("aes") || !__builtin_cpu_supports("pclmul"));
#endif
    }
    return a != NULL;
}

/* for (EACH_BACKEND(c)) ...: AUTO too, which may share an algorithm out. */
#define EACH_BACKEND(c)                                                                            \
    enum ct_crypto c = CT_CRYPTO_AUTO;                                                             \
    c <= CT_CRYPTO_IPSEC &&use(c);                                                                 \
    c++

static inline struct ct_aead *keyed(enum ct_alg alg, const uint8_t *key)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_aead *a = ct_aead_new(alg, key, &err);
    cr_assert(a, "%s", err.msg);
    return a;
}

static inline int gmac(struct ct_aead *a, const uint8_t *iv, size_t iv_len, const uint8_t *in,
                       size_t n, uint8_t tag[static 16])
{
    return ct_gmac(a->by[CT_OP_GMAC], iv, iv_len, in, n, tag);
}

static inline int chacha20(struct ct_aead *a, const uint8_t iv[static 12], uint32_t block,
                           const uint8_t *in, size_t n, uint8_t *out)
{
    struct ct_impl *i = a->by[CT_OP_CHACHA20];
    return i->backend->chacha20(i, iv, block, in, n, out);
}

static inline int poly1305(struct ct_aead *a, const uint8_t iv[static 12], const uint8_t *in,
                           size_t n, uint8_t sum[static CT_POLY_SUM])
{
    struct ct_impl *i = a->by[CT_OP_POLY1305];
    return i->backend->poly1305(i, iv, in, n, sum);
}

static inline void fill(uint8_t *p, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        p[i] = (uint8_t)(seed >> 24);
    }
}

static inline size_t unhex(const char *hex, uint8_t *out, size_t cap)
{
    int n = ct_unhex(hex, strlen(hex), out, cap);
    cr_assert_geq(n, 0, "%s", hex);
    return (size_t)n;
}

static inline void expect_hex(const uint8_t *p, size_t n, const char *hex, const char *what)
{
    char have[1024];
    cr_assert_lt(2 * n, sizeof(have));
    ct_hex(have, p, n);
    cr_expect_str_eq(have, hex, "%s", what);
}

#endif
