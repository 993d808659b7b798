#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"
#include "keyserver/crypto/stamp.h"

enum { VERSION = 1, FINDINGS_MAX = 64, FINDING_MAX = 256, VERSIONS_MAX = 16 };

int ks_common_version(struct ks_request *r, const json_t *versions, uint8_t *out)
{
    size_t i = 0;
    const json_t *v = NULL;
    *out = 0;
    if (!json_is_array(versions) || json_array_size(versions) > VERSIONS_MAX) {
        return ks_refuse(r, KS_MALFORMED, "versions is not a list of numbers");
    }
    json_array_foreach(versions, i, v)
    {
        if (!json_is_integer(v)) {
            return ks_refuse(r, KS_MALFORMED, "versions is not a list of numbers");
        }
        if (json_integer_value(v) == VERSION) {
            *out = VERSION;
        }
    }
    return *out ? 0 : ks_refuse(r, KS_VERSION, "this server speaks 1");
}

void ks_evidence_free(struct ks_evidence *e)
{
    json_decref(e->plain);
    json_decref(e->claims);
}

static int jose_failed(struct ks_request *r, const struct ct_err *err)
{
    return err->code == CT_NOMEM || err->code == CT_IO ? -1 : ks_refuse_err(r, KS_JOSE, err);
}

static int decrypt(struct ks_request *r, const char *typ, struct ks_evidence *e, struct ct_err *err)
{
    char kid[KX_THUMBPRINT + 1];
    kx_autojson key = NULL;
    if (kx_jwe_kid(r->body, typ, kid, err)) {
        return jose_failed(r, err);
    }
    int rc = ks_server_key_find(&r->ctx, r->server, kid, &key, err);
    if (rc) {
        return rc < 0 ? -1 : ks_refuse(r, KS_SERVER_KEY, NULL);
    }
    return kx_jwe_decrypt(r->body, key, &e->plain, err) ? jose_failed(r, err) : 0;
}

static int check_key(struct ks_request *r, struct ks_evidence *e, struct ct_err *err)
{
    const char *text = json_string_value(json_object_get(e->plain, "api_key"));
    if (!text) {
        return ks_refuse(r, KS_MALFORMED, "api_key is not a string");
    }
    int rc = ks_apikey_find(&r->ctx, text, &e->apikey, err);
    if (rc) {
        return rc < 0 ? -1 : ks_refuse(r, KS_DENIED, NULL);
    }
    r->user = e->apikey.user;
    return strcmp(e->apikey.scope, "deploy") == 0 ? 0 : ks_refuse(r, KS_SCOPE, "deploy");
}

/* Uses the challenge up. From here on a refusal is committed, so that it stays used. */
static int check_challenge(struct ks_request *r, struct ks_evidence *e, struct ct_err *err)
{
    struct ks_stamp stamp;
    uint8_t offered = 0;
    e->challenge = json_string_value(json_object_get(e->plain, "challenge"));
    int rc = ks_common_version(r, json_object_get(e->plain, "versions"), &offered);
    if (rc) {
        return rc;
    }
    if (!e->challenge || ks_stamp_read(r->server->stamp_key, 'c', e->challenge, &stamp, err)) {
        return e->challenge && err->code != CT_REJECTED ? -1 : ks_refuse(r, KS_CHALLENGE, NULL);
    }
    if (stamp.expires <= ks_now()) {
        return ks_refuse(r, KS_CHALLENGE_OLD, NULL);
    }
    int64_t n = ks_exec(r->ctx.db, err,
                        "INSERT INTO challenges (nonce, expires) VALUES ($1, $2)"
                        " ON CONFLICT DO NOTHING",
                        "bi", stamp.nonce, sizeof(stamp.nonce), stamp.expires + 60);
    if (n < 1) {
        return n < 0 ? -1 : ks_refuse(r, KS_CHALLENGE_USED, NULL);
    }
    r->keep = true;
    json_int_t version = json_integer_value(json_object_get(e->plain, "version"));
    return offered == stamp.version && version == stamp.version ? 0
                                                                : ks_refuse(r, KS_DOWNGRADE, NULL);
}

int ks_evidence_open(struct ks_request *r, const char *typ, struct ks_evidence *e,
                     struct ct_err *err)
{
    int rc = decrypt(r, typ, e, err);
    rc = rc ? rc : check_key(r, e, err);
    return rc ? rc : check_challenge(r, e, err);
}

/* ---- keys ---- */

static int take_key(struct ks_request *r, const json_t *keys, const char *name, json_t *claims,
                    char thumb[static KX_THUMBPRINT + 1], struct ct_err *err)
{
    json_t *jwk = json_object_get(keys, name);
    if (kx_jwk_check(jwk, err)) {
        ct_err_wrap(err, "keys.%s", name);
        return ks_refuse_err(r, KS_MALFORMED, err);
    }
    if (kx_jwk_thumbprint(jwk, thumb, err) || json_object_set(claims, name, jwk) ||
        json_object_set_new(json_object_get(claims, "thumbs"), name, json_string(thumb))) {
        return -1;
    }
    return 0;
}

int ks_evidence_take_keys(struct ks_request *r, struct ks_evidence *e, struct ct_err *err)
{
    static const char *const names[] = {"sign", "decrypt", "audit"};
    char thumbs[3][KX_THUMBPRINT + 1];
    const json_t *keys = json_object_get(e->plain, "keys");
    int rc = ks_members(r, keys, "keys", "sign decrypt audit");
    e->claims = json_pack("{s:{}}", "thumbs");
    if (!e->claims) {
        return ct_err_set(err, CT_NOMEM, "no memory for evidence");
    }
    for (int i = 0; rc == 0 && i < 3; i++) {
        rc = take_key(r, keys, names[i], e->claims, thumbs[i], err);
    }
    if (rc) {
        return rc;
    }
    return strcmp(thumbs[0], thumbs[1]) == 0 || strcmp(thumbs[0], thumbs[2]) == 0 ||
                   strcmp(thumbs[1], thumbs[2]) == 0
               ? ks_refuse(r, KS_MALFORMED, "keys: two of the three are the same")
               : 0;
}

/* ---- measurements, guard ---- */

static int check_guard(struct ks_request *r, const json_t *guard, const char *profile)
{
    size_t i = 0;
    const json_t *finding = NULL;
    int rc = ks_members(r, guard, "guard", "state findings");
    if (rc) {
        return rc;
    }
    const char *state = json_string_value(json_object_get(guard, "state"));
    const json_t *findings = json_object_get(guard, "findings");
    if (!state ||
        (strcmp(state, "off") != 0 && strcmp(state, "ok") != 0 && strcmp(state, "drift") != 0)) {
        return ks_refuse(r, KS_MALFORMED, "guard.state is not off, ok or drift");
    }
    if (!json_is_array(findings) || json_array_size(findings) > FINDINGS_MAX) {
        return ks_refuse(r, KS_MALFORMED, "guard.findings: at most %d", FINDINGS_MAX);
    }
    json_array_foreach(findings, i, finding)
    {
        if (!kx_is_text(json_string_value(finding), FINDING_MAX)) {
            return ks_refuse(r, KS_MALFORMED, "guard.findings: not short texts");
        }
    }
    return (strcmp(state, "off") == 0) == (strcmp(profile, "none") == 0)
               ? 0
               : ks_refuse(r, KS_MALFORMED, "guard: off goes with the profile none, and only so");
}

static int take_claims(struct ks_request *r, struct ks_evidence *e, struct ct_err *err)
{
    char digest[KX_HEX + 1];
    json_t *measurements = json_object_get(e->plain, "measurements");
    const json_t *guard = json_object_get(e->plain, "guard");
    if (kx_measurement_digest(measurements, digest, err)) {
        return err->code == CT_MALFORMED ? ks_refuse_err(r, KS_MALFORMED, err) : -1;
    }
    const char *profile = json_string_value(json_object_get(measurements, "profile"));
    int rc = check_guard(r, guard, profile);
    if (rc) {
        return rc;
    }
    kx_autojson more =
        json_pack("{s:s,s:s,s:O,s:s}", "measurement", digest, "profile", profile, "guard",
                  json_object_get(guard, "state"), "assurance", "self-reported");
    return json_object_update(e->claims, more) ? ct_err_set(err, CT_NOMEM, "no memory for evidence")
                                               : 0;
}

/* ---- binding ---- */

static const char *thumb(const json_t *claims, const char *name)
{
    return json_string_value(json_object_get(json_object_get(claims, "thumbs"), name));
}

static int check_binding(struct ks_request *r, struct ks_evidence *e, const char *lease,
                         struct ct_err *err)
{
    kx_autojson payload = NULL;
    const json_t *binding = json_object_get(e->plain, "binding");
    const char *measurement = json_string_value(json_object_get(e->claims, "measurement"));
    if (kx_evidence_digest(e->challenge, thumb(e->claims, "sign"), thumb(e->claims, "decrypt"),
                           thumb(e->claims, "audit"), measurement, e->evidence, err)) {
        return -1;
    }
    if (kx_jws_verify(binding, "kvfs-binding+jws", json_object_get(e->claims, "sign"), &payload,
                      err)) {
        return err->code == CT_REJECTED ? ks_refuse_err(r, KS_BINDING, err) : jose_failed(r, err);
    }
    kx_autojson wanted = json_pack("{s:i,s:s,s:s?,s:s}", "version", VERSION, "challenge",
                                   e->challenge, "lease", lease, "evidence", e->evidence);
    return json_equal(payload, wanted) ? 0 : ks_refuse(r, KS_BINDING, "it is for other evidence");
}

int ks_evidence_check(struct ks_request *r, struct ks_evidence *e, const char *lease,
                      struct ct_err *err)
{
    if (!json_is_null(json_object_get(e->plain, "hardware"))) {
        return ks_refuse(r, KS_HARDWARE, NULL);
    }
    int rc = take_claims(r, e, err);
    return rc ? rc : check_binding(r, e, lease, err);
}
