#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "keyserver/admin/admin.h"
#include "keyserver/crypto/newfile.h"

/* A P-256 key and a certificate for it that it signed itself: enough where clients get the file. */

enum { YEARS = 10, NAMES_MAX = 1024 };

/* "a,1.2.3.4" as "DNS:a,IP:1.2.3.4". */
static void alternatives(const char *names, char out[NAMES_MAX])
{
    size_t n = 0;
    out[0] = '\0';
    for (const char *p = names; *p;) {
        size_t len = strcspn(p, ",");
        bool address = strspn(p, "0123456789.") >= len || memchr(p, ':', len) != NULL;
        if (len && n < NAMES_MAX) {
            n += (size_t)snprintf(out + n, NAMES_MAX - n, "%s%s:%.*s", n ? "," : "",
                                  address ? "IP" : "DNS", (int)len, p);
        }
        p += len + (p[len] == ',');
    }
}

static bool extend(X509 *cert, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, cert, cert, NULL, NULL, 0);
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool good = e && X509_add_ext(cert, e, -1) == 1;
    X509_EXTENSION_free(e);
    return good;
}

static bool fill(X509 *cert, EVP_PKEY *key, const char *names)
{
    char alternative[NAMES_MAX];
    uint8_t serial[16];
    alternatives(names, alternative);
    BIGNUM *number =
        RAND_bytes(serial, sizeof(serial)) == 1 ? BN_bin2bn(serial, sizeof(serial), NULL) : NULL;
    X509_NAME *name = X509_get_subject_name(cert);
    bool good =
        number && X509_set_version(cert, X509_VERSION_3) == 1 &&
        BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert)) &&
        X509_gmtime_adj(X509_getm_notBefore(cert), -3600L) &&
        X509_gmtime_adj(X509_getm_notAfter(cert), YEARS * 365L * 86400L) &&
        X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8,
                                   (const unsigned char *)"kvfs-keyserver", -1, -1, 0) == 1 &&
        X509_set_issuer_name(cert, name) == 1 && X509_set_pubkey(cert, key) == 1 &&
        extend(cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
        extend(cert, NID_key_usage, "critical,digitalSignature,keyCertSign") &&
        extend(cert, NID_ext_key_usage, "serverAuth") &&
        extend(cert, NID_subject_alt_name, alternative) &&
        extend(cert, NID_subject_key_identifier, "hash") && X509_sign(cert, key, EVP_sha256()) > 0;
    BN_free(number);
    return good;
}

static int write_bio(BIO *bio, const char *path, mode_t mode, struct ct_err *err)
{
    char *data = NULL;
    long n = BIO_get_mem_data(bio, &data);
    return ks_write_file(path, mode, true, data, (size_t)n, err);
}

int ks_self_signed(const char *names, const char *cert_path, const char *key_path,
                   struct ct_err *err)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    BIO *key_text = BIO_new(BIO_s_mem());
    BIO *cert_text = BIO_new(BIO_s_mem());
    int r = key && cert && key_text && cert_text && fill(cert, key, names) &&
                    PEM_write_bio_PKCS8PrivateKey(key_text, key, NULL, NULL, 0, NULL, NULL) == 1 &&
                    PEM_write_bio_X509(cert_text, cert) == 1
                ? 0
                : ct_err_set(err, CT_USAGE, "no certificate could be made for %.200s", names);
    /* The key first: the certificate says that both are there. */
    r = r || write_bio(key_text, key_path, S_IRUSR | S_IWUSR, err) ||
        write_bio(cert_text, cert_path, S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH, err);
    BIO_free(key_text);
    BIO_free(cert_text);
    X509_free(cert);
    EVP_PKEY_free(key);
    return r ? -1 : 0;
}
