#include "keyserver/http/tls.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "format/base/bytes.h"
#include "format/base/file.h"

enum { CHAIN_MAX = 8, PEM_MAX = 65536, KEY_ID = 64 };

struct certificate {
    gnutls_pcert_st chain[CHAIN_MAX];
    unsigned count;
    gnutls_privkey_t key;
    struct certificate *older; /* a connection may have it still: freed at the end */
};

static _Atomic(struct certificate *) newest;

static void certificate_free(struct certificate *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        gnutls_pcert_deinit(&c->chain[i]);
    }
    if (c->key) {
        gnutls_privkey_deinit(c->key);
    }
    free(c);
}

static int read_pem(const char *path, struct ct_buf *out, struct ct_err *err)
{
    return ct_read_file(AT_FDCWD, path, PEM_MAX, out, err) ? ct_err_wrap(err, "%s", path) : 0;
}

static bool same_key(gnutls_pubkey_t one, gnutls_pubkey_t two)
{
    unsigned char a[KEY_ID];
    unsigned char b[KEY_ID];
    size_t n = sizeof(a);
    size_t m = sizeof(b);
    return gnutls_pubkey_get_key_id(one, GNUTLS_KEYID_USE_SHA256, a, &n) == 0 &&
           gnutls_pubkey_get_key_id(two, GNUTLS_KEYID_USE_SHA256, b, &m) == 0 && n == m &&
           memcmp(a, b, n) == 0;
}

static bool fits(const struct certificate *c)
{
    gnutls_pubkey_t own = NULL;
    bool good = gnutls_pubkey_init(&own) == 0 &&
                gnutls_pubkey_import_privkey(own, c->key, 0, 0) == 0 &&
                same_key(own, c->chain[0].pubkey);
    if (own) {
        gnutls_pubkey_deinit(own);
    }
    return good;
}

static int take(struct certificate *c, const struct ct_buf *cert, const struct ct_buf *key,
                struct ct_err *err)
{
    const gnutls_datum_t cert_text = {cert->data, (unsigned)cert->len};
    const gnutls_datum_t key_text = {key->data, (unsigned)key->len};
    unsigned count = CHAIN_MAX;
    if (gnutls_pcert_list_import_x509_raw(c->chain, &count, &cert_text, GNUTLS_X509_FMT_PEM, 0)) {
        return ct_err_set(err, CT_MALFORMED, "no chain of at most %d certificates", CHAIN_MAX);
    }
    c->count = count;
    if (gnutls_privkey_init(&c->key) ||
        gnutls_privkey_import_x509_raw(c->key, &key_text, GNUTLS_X509_FMT_PEM, NULL, 0)) {
        return ct_err_set(err, CT_MALFORMED, "the key is none");
    }
    return count && fits(c) ? 0 : ct_err_set(err, CT_MALFORMED, "certificate and key do not fit");
}

int ks_tls_load(const char *cert, const char *key, struct ct_err *err)
{
    ct_autobuf cert_text = {0};
    ct_autobuf key_text = {0};
    if (read_pem(cert, &cert_text, err) || read_pem(key, &key_text, err)) {
        return -1;
    }
    struct certificate *c = calloc(1, sizeof(*c));
    if (!c) {
        return ct_err_set(err, CT_NOMEM, "no memory for a certificate");
    }
    if (take(c, &cert_text, &key_text, err)) {
        certificate_free(c);
        return ct_err_wrap(err, "%s", cert);
    }
    c->older = atomic_load(&newest);
    atomic_store(&newest, c);
    return 0;
}

void ks_tls_free(void)
{
    struct certificate *c = atomic_exchange(&newest, NULL);
    while (c) {
        struct certificate *older = c->older;
        certificate_free(c);
        c = older;
    }
}

int ks_tls_choose(gnutls_session_t session, const gnutls_datum_t *authorities, int authority_count,
                  const gnutls_pk_algorithm_t *algorithms, int algorithm_count,
                  gnutls_pcert_st **chain, unsigned *chain_count, gnutls_privkey_t *key)
{
    struct certificate *c = atomic_load(&newest);
    (void)session;
    (void)authorities;
    (void)authority_count;
    (void)algorithms;
    (void)algorithm_count;
    *chain = c->chain;
    *chain_count = c->count;
    *key = c->key;
    return 0;
}
