#include "keyclient/runtime.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"

static const char *const names[KC_KEYS] = {
    [KC_SIGN] = "sign", [KC_DECRYPT] = "decrypt", [KC_AUDIT] = "audit"};

int kc_key_make(struct kc_key *key, struct ct_err *err)
{
    kx_autojson pair = kx_jwk_new(err);
    const json_t *d = json_object_get(pair, "d");
    if (!pair) {
        return -1;
    }
    key->public = kx_jwk_public(pair);
    key->d = ct_secret_from(json_string_value(d), json_string_length(d), err);
    return key->public && key->d ? kx_jwk_thumbprint(key->public, key->thumbprint, err)
                                 : ct_err_set(err, CT_NOMEM, "no memory for a key");
}

void kc_key_free(struct kc_key *key)
{
    json_decref(key->public);
    ct_secret_free(key->d);
    *key = (struct kc_key){0};
}

json_t *kc_key_pair(const struct kc_key *key, struct ct_err *err)
{
    json_t *pair = json_copy(key->public);
    json_t *d = json_stringn((const char *)ct_secret_peek(key->d), ct_secret_len(key->d));
    if (!pair || json_object_set_new(pair, "d", d)) {
        json_decref(pair);
        ct_err_set(err, CT_NOMEM, "no memory for a key");
        return NULL;
    }
    return pair;
}

static int take_api_key(struct kc_runtime *r, const char *text, size_t n, struct ct_err *err)
{
    while (n && isspace((unsigned char)text[n - 1])) {
        n--;
    }
    bool good = n > 0 && n <= KC_API_KEY_MAX;
    for (size_t i = 0; good && i < n; i++) {
        good = text[i] > ' ' && text[i] < 0x7f;
    }
    if (!good) {
        return ct_err_set(err, CT_NOKEY, "the deploy key is not one line of an API key");
    }
    r->api_key = ct_secret_from(text, n, err);
    return r->api_key ? 0 : -1;
}

int kc_runtime_init(struct kc_runtime *r, const char *pin, const char *host, const void *api_key,
                    size_t n, json_t *measurements, struct ct_err *err)
{
    uint8_t digest[CT_SHA256_LEN];
    *r = (struct kc_runtime){.measurements = measurements,
                             .guard = json_pack("{s:s,s:[]}", "state", "off", "findings")};
    if (strlen(pin) != KX_THUMBPRINT ||
        ct_base64_decode(pin, KX_THUMBPRINT, digest, sizeof(digest)) != sizeof(digest) ||
        strpbrk(pin, "+/")) {
        return ct_err_set(err, CT_USAGE,
                          "not a thumbprint (43 characters, printed by kvfs-keyserver init)");
    }
    (void)snprintf(r->pin, sizeof(r->pin), "%s", pin);
    if (kx_is_text(host, KC_HOST_MAX)) {
        (void)snprintf(r->host, sizeof(r->host), "%s", host);
    }
    if (take_api_key(r, api_key, n, err) ||
        kx_measurement_digest(measurements, r->measurement, err)) {
        return -1;
    }
    for (int i = 0; i < KC_KEYS; i++) {
        if (kc_key_make(&r->keys[i], err)) {
            return -1;
        }
    }
    ct_secret_keep(r->keys[KC_AUDIT].d);
    return 0;
}

void kc_runtime_free(struct kc_runtime *r)
{
    for (int i = 0; i < KC_KEYS; i++) {
        kc_key_free(&r->keys[i]);
    }
    ct_secret_free(r->api_key);
    json_decref(r->measurements);
    json_decref(r->guard);
    *r = (struct kc_runtime){0};
}

void kc_runtime_guard(struct kc_runtime *r, json_t *report)
{
    json_decref(r->guard);
    r->guard = report;
}

json_t *kc_runtime_publics(const struct kc_runtime *r)
{
    json_t *all = json_object();
    for (int i = 0; i < KC_KEYS; i++) {
        json_object_set(all, names[i], r->keys[i].public);
    }
    return all;
}

json_t *kc_runtime_thumbprints(const struct kc_runtime *r)
{
    json_t *all = json_object();
    for (int i = 0; i < KC_KEYS; i++) {
        json_object_set_new(all, names[i], json_string(r->keys[i].thumbprint));
    }
    return all;
}
