#include <stdio.h>
#include <string.h>

#include "keyclient/exchange_parts.h"

enum { MASTER_LEN = 32 };

/* ---- the seam ---- */

static bool is_kid(struct ct_span kid, const char *have)
{
    return kid.n == strlen(have) && memcmp(kid.p, have, kid.n) == 0;
}

static int give_master(struct ct_keysource *ks, const struct ct_keyref *ref, struct ct_secret **out,
                       struct ct_err *err)
{
    const struct kc_exchange *x = (const struct kc_exchange *)ks;
    if (!x->held || !x->master || !is_kid(ref->kid, x->master_kid)) {
        return ct_err_set(err, CT_NOKEY, "the key server released no master key of this kid");
    }
    if (ref->alg != CT_ALG_AES256GCM) {
        return ct_err_set(err, CT_REJECTED, "the released master key is for another algorithm");
    }
    *out = ct_secret_from(ct_secret_peek(x->master), ct_secret_len(x->master), err);
    return *out ? 0 : -1;
}

static int give_verify(struct ct_keysource *ks, const struct ct_keyref *ref,
                       uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    const struct kc_exchange *x = (const struct kc_exchange *)ks;
    const struct kc_public *keys[] = {&x->verify, &x->manifest};
    for (int i = 0; x->held && i < 2; i++) {
        if (is_kid(ref->kid, keys[i]->kid)) {
            memcpy(pub, keys[i]->pub, CT_ED25519_PUB);
            return 0;
        }
    }
    return ct_err_set(err, CT_NOKEY, "the key server released no verification key of this kid");
}

void kc_source_init(struct kc_exchange *x)
{
    x->source = (struct ct_keysource){.master = give_master, .verify = give_verify};
}

/* ---- the keys ---- */

static int take_key(const json_t *jwk, const char *kty, const char *alg, const char *member,
                    uint8_t out[static 32], char kid[static KC_KID_MAX + 1], struct ct_err *err)
{
    const char *id = json_string_value(json_object_get(jwk, "kid"));
    const json_t *bytes = json_object_get(jwk, member);
    if (!kc_is(jwk, "kty", kty) || !kc_is(jwk, "alg", alg) || !id || !kx_is_text(id, KC_KID_MAX) ||
        !json_is_string(bytes) ||
        ct_base64_decode(json_string_value(bytes), json_string_length(bytes), out, 32) != 32) {
        return ct_err_set(err, CT_MALFORMED, "a released key is malformed");
    }
    (void)snprintf(kid, KC_KID_MAX + 1, "%s", id);
    return 0;
}

static int take_master(struct kc_exchange *x, const json_t *jwk, struct ct_err *err)
{
    ct_autosecret fresh = ct_secret_new(MASTER_LEN, err);
    if (!fresh ||
        take_key(jwk, "oct", "aes256gcm", "k", ct_secret_bytes(fresh), x->master_kid, err)) {
        return -1;
    }
    ct_secret_free(x->master);
    x->master = fresh;
    fresh = NULL;
    return 0;
}

static int take_manifest(struct kc_exchange *x, const json_t *plain, struct ct_err *err)
{
    const json_t *digest = json_object_get(plain, "manifest_sha256");
    const char *text = json_string_value(digest);
    if (!json_is_null(digest) && !kx_is_hex(text, KX_HEX)) {
        return ct_err_set(err, CT_MALFORMED, "the release names no manifest and not none");
    }
    (void)snprintf(x->manifest_sha256, sizeof(x->manifest_sha256), "%s", text ? text : "");
    return 0;
}

static int take_keys(struct kc_exchange *x, const json_t *plain, struct ct_err *err)
{
    if (!kc_is_number(plain, "version", 1) || !kc_is(plain, "ticket_sha256", x->ticket_sha256) ||
        !kc_is(plain, "model", x->model) ||
        !kc_is_number(plain, "generation", x->ticket_generation)) {
        return ct_err_set(err, CT_REJECTED, "the keys are not those of this release");
    }
    return take_master(x, json_object_get(plain, "master_key"), err) ||
                   take_key(json_object_get(plain, "verify_key"), "okp", "ed25519", "x",
                            x->verify.pub, x->verify.kid, err) ||
                   take_key(json_object_get(plain, "manifest_key"), "okp", "ed25519", "x",
                            x->manifest.pub, x->manifest.kid, err) ||
                   take_manifest(x, plain, err)
               ? -1
               : 0;
}

static int open_keys(struct kc_exchange *x, const json_t *jwe, struct ct_err *err)
{
    const struct kc_key *mine = &x->runtime->keys[KC_DECRYPT];
    char kid[KX_THUMBPRINT + 1];
    json_t *plain = NULL;
    if (kx_jwe_kid(jwe, "kvfs-keys+jwe", kid, err)) {
        return -1;
    }
    if (strcmp(kid, mine->thumbprint) != 0) {
        return ct_err_set(err, CT_REJECTED, "the keys are for another runtime");
    }
    kx_autojson pair = kc_key_pair(mine, err);
    if (!pair || kx_jwe_decrypt(jwe, pair, &plain, err)) {
        return -1;
    }
    int r = take_keys(x, plain, err);
    json_decref(plain);
    return r;
}

/* ---- all of it ---- */

static int check_bound(const struct kc_exchange *x, const json_t *p, struct ct_err *err)
{
    kx_autojson thumbs = kc_runtime_thumbprints(x->runtime);
    const bool good =
        kc_is_number(p, "version", 1) && kc_is(p, "decision", "release") &&
        kc_is(p, "challenge", x->challenge) && kc_is(p, "ticket_sha256", x->ticket_sha256) &&
        kc_is_number(p, "call", x->call) && kc_is(p, "headers_sha256", x->headers_sha256) &&
        kc_is(p, "model", x->model) && kc_is_number(p, "generation", x->ticket_generation) &&
        json_equal(json_object_get(p, "keys"), thumbs) && kc_is(p, "assurance", "self-reported");
    return good ? 0
                : ct_err_set(err, CT_REJECTED, "the release does not answer what was asked for");
}

int kc_take_release(struct kc_exchange *x, const json_t *payload, int64_t sent_ms,
                    struct ct_err *err)
{
    struct kc_lease lease = {.generation = x->ticket_generation, .assurance = "self-reported"};
    if (check_bound(x, payload, err) ||
        kc_take_lease(json_object_get(payload, "lease"), sent_ms, &lease, err) ||
        open_keys(x, json_object_get(payload, "release"), err)) {
        return -1;
    }
    x->lease = lease;
    x->seen = lease.generation;
    x->held = true;
    return 0;
}
