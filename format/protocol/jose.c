#include "format/protocol/jose.h"

#include <jose/jose.h>
#include <jose/openssl.h>
#include <stdarg.h>
#include <string.h>

#include "format/base/secret.h"

enum { PROTECTED_MAX = 1024, COORDINATE = 43 };

static void swallow(void *misc, const char *file, int line, uint64_t code, const char *fmt,
                    va_list ap)
{
    (void)misc;
    (void)file;
    (void)line;
    (void)code;
    (void)fmt;
    (void)ap;
}

/* One each call: its reference count is not atomic. The default one writes to stderr. */
static jose_cfg_t *quiet(void)
{
    jose_cfg_t *cfg = jose_cfg();
    if (cfg) {
        jose_cfg_set_err_func(cfg, swallow, NULL);
    }
    return cfg;
}

json_t *kx_json_parse(const void *text, size_t n, struct ct_err *err)
{
    json_t *j = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(j)) {
        json_decref(j);
        ct_err_set(err, CT_MALFORMED, "not a JSON object");
        return NULL;
    }
    return j;
}

/* ---- form ---- */

static bool is_base64url(const json_t *value)
{
    const char *p = json_string_value(value);
    size_t n = json_string_length(value);
    if (!p || n == 0 || n % 4 == 1) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        bool good = (p[i] >= 'A' && p[i] <= 'Z') || (p[i] >= 'a' && p[i] <= 'z') ||
                    (p[i] >= '0' && p[i] <= '9') || p[i] == '-' || p[i] == '_';
        if (!good) {
            return false;
        }
    }
    return true;
}

/* Exactly these members and no other, all of them base64url but `other`. */
static int check_members(const json_t *object, const char *const *names, const char *other,
                         struct ct_err *err)
{
    size_t n = other ? 1 : 0;
    for (; *names; names++, n++) {
        if (!is_base64url(json_object_get(object, *names))) {
            return ct_err_set(err, CT_MALFORMED, "member \"%s\" is not base64url", *names);
        }
    }
    if (other && !json_is_object(json_object_get(object, other))) {
        return ct_err_set(err, CT_MALFORMED, "no object \"%s\"", other);
    }
    return json_object_size(object) == n
               ? 0
               : ct_err_set(err, CT_MALFORMED, "there are members that are not allowed");
}

static json_t *read_protected(const json_t *object, struct ct_err *err)
{
    uint8_t text[PROTECTED_MAX];
    const json_t *value = json_object_get(object, "protected");
    ssize_t n =
        ct_base64_decode(json_string_value(value), json_string_length(value), text, sizeof(text));
    if (n < 0) {
        ct_err_set(err, CT_MALFORMED, "the protected header is too long or not base64url");
        return NULL;
    }
    json_t *header = kx_json_parse(text, (size_t)n, err);
    if (!header) {
        ct_err_wrap(err, "protected header");
    }
    return header;
}

static int check_is(const json_t *header, const char *name, const char *wanted, enum ct_code code,
                    struct ct_err *err)
{
    const char *have = json_string_value(json_object_get(header, name));
    return have && strcmp(have, wanted) == 0
               ? 0
               : ct_err_set(err, have ? code : CT_MALFORMED, "\"%s\" is not \"%s\"", name, wanted);
}

static int take_kid(const json_t *header, char kid[static KX_THUMBPRINT + 1], struct ct_err *err)
{
    const json_t *value = json_object_get(header, "kid");
    if (!is_base64url(value) || json_string_length(value) != KX_THUMBPRINT) {
        return ct_err_set(err, CT_MALFORMED, "\"kid\" is not a thumbprint");
    }
    memcpy(kid, json_string_value(value), KX_THUMBPRINT + 1);
    return 0;
}

/* ---- keys ---- */

json_t *kx_jwk_new(struct ct_err *err)
{
    jose_cfg_auto_t *cfg = quiet();
    json_t *jwk = json_pack("{s:s,s:s}", "kty", "EC", "crv", "P-256");
    if (!jwk || !jose_jwk_gen(cfg, jwk)) {
        json_decref(jwk);
        ct_err_set(err, CT_IO, "no key could be made");
        return NULL;
    }
    return jwk;
}

json_t *kx_jwk_public(const json_t *jwk)
{
    return json_pack("{s:s,s:s,s:O,s:O}", "kty", "EC", "crv", "P-256", "x",
                     json_object_get(jwk, "x"), "y", json_object_get(jwk, "y"));
}

int kx_jwk_check(const json_t *jwk, struct ct_err *err)
{
    const json_t *x = json_object_get(jwk, "x");
    const json_t *y = json_object_get(jwk, "y");
    if (json_object_size(jwk) != 4 || check_is(jwk, "kty", "EC", CT_MALFORMED, NULL) ||
        check_is(jwk, "crv", "P-256", CT_MALFORMED, NULL) || !is_base64url(x) || !is_base64url(y) ||
        json_string_length(x) != COORDINATE || json_string_length(y) != COORDINATE) {
        return ct_err_set(err, CT_MALFORMED, "not a public P-256 JWK of exactly kty, crv, x, y");
    }
    jose_cfg_auto_t *cfg = quiet();
    EVP_PKEY *key = jose_openssl_jwk_to_EVP_PKEY(cfg, jwk);
    EVP_PKEY_free(key);
    return key ? 0 : ct_err_set(err, CT_MALFORMED, "not a point of P-256");
}

int kx_jwk_thumbprint(const json_t *jwk, char out[static KX_THUMBPRINT + 1], struct ct_err *err)
{
    uint8_t digest[32];
    ct_autobuf text = {0};
    jose_cfg_auto_t *cfg = quiet();
    if (jose_jwk_thp_buf(cfg, jwk, "S256", digest, sizeof(digest)) != sizeof(digest)) {
        return ct_err_set(err, CT_MALFORMED, "not a key with a thumbprint");
    }
    ct_base64url_put(&text, digest, sizeof(digest));
    ct_buf_putc(&text, '\0');
    if (ct_buf_ok(&text, err)) {
        return -1;
    }
    memcpy(out, text.data, KX_THUMBPRINT + 1);
    return 0;
}

/* ---- JWS ---- */

json_t *kx_jws_sign(const json_t *key, const char *typ, const json_t *payload, struct ct_err *err)
{
    char kid[KX_THUMBPRINT + 1];
    jose_cfg_auto_t *cfg = quiet();
    if (kx_jwk_thumbprint(key, kid, err)) {
        return NULL;
    }
    char *text = json_dumps(payload, JSON_COMPACT);
    json_t *encoded = text ? jose_b64_enc(text, strlen(text)) : NULL;
    ct_wiping_free(text);
    json_t *jws = json_pack("{s:o*}", "payload", encoded);
    kx_autojson sig =
        json_pack("{s:{s:s,s:s,s:s}}", "protected", "alg", "ES256", "kid", kid, "typ", typ);
    if (!encoded || !jws || !sig || !jose_jws_sig(cfg, jws, sig, key)) {
        json_decref(jws);
        ct_err_set(err, CT_NOMEM, "signing failed");
        return NULL;
    }
    return jws;
}

static int check_jws(const json_t *jws, const char *typ, const json_t *key, struct ct_err *err)
{
    static const char *const members[] = {"protected", "payload", "signature", NULL};
    char kid[KX_THUMBPRINT + 1];
    char wanted[KX_THUMBPRINT + 1];
    if (check_members(jws, members, NULL, err)) {
        return -1;
    }
    kx_autojson header = read_protected(jws, err);
    if (!header || check_is(header, "alg", "ES256", CT_UNSUPPORTED, err) ||
        check_is(header, "typ", typ, CT_REJECTED, err) || take_kid(header, kid, err) ||
        kx_jwk_thumbprint(key, wanted, err)) {
        return -1;
    }
    if (json_object_size(header) != 3) {
        return ct_err_set(err, CT_MALFORMED, "the protected header has more than alg, kid, typ");
    }
    return strcmp(kid, wanted) == 0 ? 0 : ct_err_set(err, CT_REJECTED, "made by another key");
}

static json_t *decode(const json_t *value, struct ct_err *err)
{
    size_t n = json_string_length(value);
    ct_autobuf text = {0};
    uint8_t *to = ct_buf_reserve(&text, n);
    ssize_t len = to ? ct_base64_decode(json_string_value(value), n, to, n) : -1;
    if (len < 0) {
        ct_err_set(err, CT_MALFORMED, "the payload is not base64url");
        return NULL;
    }
    text.len = (size_t)len;
    return kx_json_parse(text.data, text.len, err);
}

int kx_jws_verify(const json_t *jws, const char *typ, const json_t *key, json_t **payload,
                  struct ct_err *err)
{
    *payload = NULL;
    if (check_jws(jws, typ, key, err)) {
        return ct_err_wrap(err, "%s", typ);
    }
    jose_cfg_auto_t *cfg = quiet();
    if (!jose_jws_ver(cfg, jws, NULL, key, false)) {
        return ct_err_set(err, CT_REJECTED, "%s: the signature does not fit", typ);
    }
    *payload = decode(json_object_get(jws, "payload"), err);
    return *payload ? 0 : ct_err_wrap(err, "%s", typ);
}

/* ---- JWE ---- */

json_t *kx_jwe_encrypt(const json_t *key, const char *typ, const json_t *payload,
                       struct ct_err *err)
{
    char kid[KX_THUMBPRINT + 1];
    jose_cfg_auto_t *cfg = quiet();
    if (kx_jwk_thumbprint(key, kid, err)) {
        return NULL;
    }
    char *text = json_dumps(payload, JSON_COMPACT);
    json_t *jwe = json_pack("{s:{s:s,s:s,s:s,s:s}}", "protected", "alg", "ECDH-ES+A256KW", "enc",
                            "A256GCM", "kid", kid, "typ", typ);
    bool good = text && jwe && jose_jwe_enc(cfg, jwe, NULL, key, text, strlen(text));
    ct_wiping_free(text);
    if (!good) {
        json_decref(jwe);
        ct_err_set(err, CT_NOMEM, "encrypting failed");
        return NULL;
    }
    return jwe;
}

static int check_jwe_header(const json_t *jwe, const char *typ, char kid[static KX_THUMBPRINT + 1],
                            struct ct_err *err)
{
    kx_autojson header = read_protected(jwe, err);
    if (!header || check_is(header, "alg", "ECDH-ES+A256KW", CT_UNSUPPORTED, err) ||
        check_is(header, "enc", "A256GCM", CT_UNSUPPORTED, err) ||
        check_is(header, "typ", typ, CT_REJECTED, err) || take_kid(header, kid, err)) {
        return -1;
    }
    return json_object_size(header) == 4
               ? 0
               : ct_err_set(err, CT_MALFORMED,
                            "the protected header has more than alg, enc, kid, typ");
}

int kx_jwe_kid(const json_t *jwe, const char *typ, char kid[static KX_THUMBPRINT + 1],
               struct ct_err *err)
{
    static const char *const members[] = {"protected",  "encrypted_key", "iv",
                                          "ciphertext", "tag",           NULL};
    const json_t *header = json_object_get(jwe, "header");
    if (check_members(jwe, members, "header", err) || check_jwe_header(jwe, typ, kid, err)) {
        return ct_err_wrap(err, "%s", typ);
    }
    if (json_object_size(header) != 1 || kx_jwk_check(json_object_get(header, "epk"), err)) {
        return ct_err_set(err, CT_MALFORMED, "%s: the header is not exactly one epk", typ);
    }
    return 0;
}

int kx_jwe_decrypt(const json_t *jwe, const json_t *key, json_t **payload, struct ct_err *err)
{
    size_t n = 0;
    jose_cfg_auto_t *cfg = quiet();
    char *text = jose_jwe_dec(cfg, jwe, NULL, key, &n);
    if (!text) {
        *payload = NULL;
        return ct_err_set(err, CT_REJECTED, "the JWE does not open");
    }
    *payload = kx_json_parse(text, n, err);
    ct_wiping_free(text);
    return *payload ? 0 : -1;
}
