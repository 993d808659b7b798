#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyclient/exchange_parts.h"

enum { REASON_MAX = 256 };

struct kc_exchange *kc_exchange_new(struct kc_runtime *runtime, const char *model,
                                    struct kc_shards *shards, int64_t seen, struct ct_err *err)
{
    char owner[65];
    char name[65];
    struct kc_exchange *x = calloc(1, sizeof(*x));
    if (!x || !kx_split_model(model, owner, name)) {
        ct_err_set(err, x ? CT_USAGE : CT_NOMEM, x ? "a model is named OWNER/NAME" : "no memory");
        free(x);
        kc_shards_free(shards);
        return NULL;
    }
    (void)snprintf(x->model, sizeof(x->model), "%s", model);
    x->runtime = runtime;
    x->shards = *shards;
    *shards = (struct kc_shards){0};
    x->seen = seen;
    kc_source_init(x);
    return x;
}

static void forget_run(struct kc_exchange *x)
{
    json_decref(x->server_key);
    x->server_key = NULL;
    x->ticket[0] = '\0';
    x->call = 0;
}

void kc_exchange_free(struct kc_exchange *x)
{
    if (x) {
        forget_run(x);
        json_decref(x->identity);
        ct_secret_free(x->master);
        kc_shards_free(&x->shards);
        free(x);
    }
}

void kc_begin(struct kc_exchange *x)
{
    forget_run(x);
    if (!x->held) {
        kc_shards_reset(&x->shards);
    }
    x->stage = KC_CHALLENGE;
}

/* ---- what is sent ---- */

static int put_json(json_t *value, struct ct_buf *out, struct ct_err *err)
{
    char *text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    json_decref(value);
    if (!text) {
        return ct_err_set(err, CT_NOMEM, "no memory for a request");
    }
    ct_buf_puts(out, text);
    ct_wiping_free(text);
    return ct_buf_ok(out, err);
}

static json_t *sign_with(const struct kc_key *key, const char *typ, json_t *payload,
                         struct ct_err *err)
{
    kx_autojson pair = kc_key_pair(key, err);
    json_t *jws = pair && payload ? kx_jws_sign(pair, typ, payload, err) : NULL;
    json_decref(payload);
    return jws;
}

/* What /attest and /renew have in common; `lease` NULL for the first. */
static json_t *make_evidence(struct kc_exchange *x, const char *lease, struct ct_err *err)
{
    const struct kc_runtime *r = x->runtime;
    const struct kc_key *k = r->keys;
    if (kx_evidence_digest(x->challenge, k[KC_SIGN].thumbprint, k[KC_DECRYPT].thumbprint,
                           k[KC_AUDIT].thumbprint, r->measurement, x->evidence, err)) {
        return NULL;
    }
    json_t *binding = sign_with(&k[KC_SIGN], "kvfs-binding+jws",
                                json_pack("{s:i,s:s,s:s?,s:s}", "version", 1, "challenge",
                                          x->challenge, "lease", lease, "evidence", x->evidence),
                                err);
    if (!binding) {
        return NULL;
    }
    json_t *e =
        json_pack("{s:i,s:[i],s:s,s:s#,s:O,s:O,s:n,s:o}", "version", 1, "versions", 1, "challenge",
                  x->challenge, "api_key", (const char *)ct_secret_peek(r->api_key),
                  (int)ct_secret_len(r->api_key), "measurements", r->measurements, "guard",
                  r->guard, "hardware", "binding", binding);
    if (!e) {
        ct_err_set(err, CT_NOMEM, "no memory for evidence");
    } else if (lease) {
        json_object_set_new(e, "lease", json_string(lease));
    } else {
        json_object_set_new(e, "models", json_pack("[s]", x->model));
        json_object_set_new(e, "keys", kc_runtime_publics(r));
        json_object_set_new(e, "host", json_string(r->host));
    }
    return e;
}

static int put_evidence(struct kc_exchange *x, const char *lease, struct ct_buf *out,
                        struct ct_err *err)
{
    kx_autojson plain = make_evidence(x, lease, err);
    json_t *jwe = plain
                      ? kx_jwe_encrypt(x->server_key,
                                       lease ? "kvfs-renewal+jwe" : "kvfs-evidence+jwe", plain, err)
                      : NULL;
    return jwe ? put_json(jwe, out, err) : -1;
}

static int put_proof(struct kc_exchange *x, struct ct_buf *out, struct ct_err *err)
{
    json_t *headers = kc_shards_json(&x->shards);
    if (kx_headers_digest(headers, x->headers_sha256, err)) {
        json_decref(headers);
        return -1;
    }
    x->call++;
    json_t *proof = sign_with(&x->runtime->keys[KC_SIGN], "kvfs-proof+jws",
                              json_pack("{s:i,s:s,s:i,s:o,s:s}", "version", 1, "ticket_sha256",
                                        x->ticket_sha256, "call", x->call, "headers", headers,
                                        "headers_sha256", x->headers_sha256),
                              err);
    return proof ? put_json(json_pack("{s:s,s:o}", "ticket", x->ticket, "proof", proof), out, err)
                 : -1;
}

static void address(struct kc_request *q, const char *method, const char *what)
{
    *q = (struct kc_request){.method = method};
    (void)snprintf(q->path, sizeof(q->path), KC_DEPLOY "%s", what);
}

int kc_next(struct kc_exchange *x, struct kc_request *out, struct ct_err *err)
{
    static const char *const what[] = {[KC_CHALLENGE] = "/challenge",
                                       [KC_ATTEST] = "/attest",
                                       [KC_KEYS_CALL] = "/keys",
                                       [KC_RENEW] = "/renew"};
    if (x->stage == KC_DONE) {
        return ct_err_set(err, CT_USAGE, "the exchange is over");
    }
    address(out, "POST", what[x->stage]);
    switch (x->stage) {
    case KC_CHALLENGE:
        return put_json(json_pack("{s:[i]}", "versions", 1), &out->body, err);
    case KC_ATTEST:
        return put_evidence(x, NULL, &out->body, err);
    case KC_RENEW:
        return put_evidence(x, x->lease.id, &out->body, err);
    default:
        return put_proof(x, &out->body, err);
    }
}

/* ---- what comes back ---- */

static int copy_token(const json_t *object, const char *name, size_t max, char *out,
                      struct ct_err *err)
{
    const char *text = json_string_value(json_object_get(object, name));
    if (!text || !kx_is_text(text, max) || strchr(text, ' ')) {
        return ct_err_set(err, CT_MALFORMED, "no \"%s\" in the answer", name);
    }
    memcpy(out, text, strlen(text) + 1);
    return 0;
}

static int take_challenge(struct kc_exchange *x, const json_t *data, struct ct_err *err)
{
    char thumbprint[KX_THUMBPRINT + 1];
    json_t *identity = json_object_get(data, "identity");
    json_t *p = NULL;
    if (kx_jwk_check(identity, err) || kx_jwk_thumbprint(identity, thumbprint, err)) {
        return ct_err_wrap(err, "the server's identity");
    }
    if (strcmp(thumbprint, x->runtime->pin) != 0) {
        return ct_err_set(err, CT_REJECTED,
                          "the server's identity is %s, not the one that was named", thumbprint);
    }
    if (kx_jws_verify(json_object_get(data, "signed"), "kvfs-challenge+jws", identity, &p, err)) {
        return -1;
    }
    json_t *key = json_object_get(p, "server_key");
    int r =
        !kc_is_number(p, "version", 1)
            ? ct_err_set(err, CT_UNSUPPORTED, "the server speaks another version")
        : copy_token(p, "challenge", KC_CHALLENGE_MAX, x->challenge, err) || kx_jwk_check(key, err)
            ? -1
            : 0;
    if (r == 0) {
        if (!x->identity) { /* never exchanged: another thread may read it */
            x->identity = json_incref(identity);
        }
        x->server_key = json_incref(key);
        x->stage = x->held ? KC_RENEW : KC_ATTEST;
    }
    json_decref(p);
    return r;
}

static int take_result(struct kc_exchange *x, const json_t *result, enum kc_again *again,
                       struct ct_err *err)
{
    const json_t *generation = json_object_get(result, "generation");
    const char *code = json_string_value(json_object_get(result, "error"));
    if (!kc_is(result, "model", x->model)) {
        return ct_err_set(err, CT_REJECTED, "the ticket is for another model");
    }
    if (code) {
        const char *sentence = json_string_value(json_object_get(result, "message"));
        *again = kc_code_again(code);
        return ct_err_set(err, CT_DENIED, "the key server refuses: %.300s (%.40s)",
                          sentence ? sentence : "", code);
    }
    if (copy_token(result, "ticket", KC_TICKET_MAX, x->ticket, err) ||
        kx_hex_sha256(x->ticket, strlen(x->ticket), x->ticket_sha256, err)) {
        return -1;
    }
    x->ticket_generation = json_integer_value(generation);
    if (!json_is_integer(generation) || x->ticket_generation < 1) {
        return ct_err_set(err, CT_MALFORMED, "the ticket has no generation");
    }
    if (x->ticket_generation < x->seen) {
        return ct_err_set(err, CT_REJECTED,
                          "the server offers generation %lld, and %lld was seen already",
                          (long long)x->ticket_generation, (long long)x->seen);
    }
    x->stage = KC_KEYS_CALL;
    return 0;
}

static int take_ticket(struct kc_exchange *x, const json_t *p, enum kc_again *again,
                       struct ct_err *err)
{
    const json_t *results = json_object_get(p, "results");
    if (!kc_is_number(p, "version", 1) || !kc_is(p, "challenge", x->challenge) ||
        !kc_is(p, "evidence", x->evidence) || json_array_size(results) != 1) {
        return ct_err_set(err, CT_REJECTED, "the ticket does not answer the evidence");
    }
    return take_result(x, json_array_get(results, 0), again, err);
}

static int take_sync(struct kc_exchange *x, const json_t *p, const json_t *sent, struct ct_err *err)
{
    if (!kc_is_number(p, "version", 1) || !kc_is(p, "decision", "sync") ||
        !kc_is(p, "ticket_sha256", x->ticket_sha256) || !kc_is_number(p, "call", x->call) ||
        !kc_is(p, "model", x->model) || !kc_is_number(p, "generation", x->ticket_generation)) {
        return ct_err_set(err, CT_REJECTED, "the synchronisation does not answer the proof");
    }
    return x->call >= KC_CALLS
               ? ct_err_set(err, CT_REJECTED, "a third synchronisation, which is not allowed")
               : kc_shards_sync(&x->shards, p, sent, err);
}

static int take_renewal(struct kc_exchange *x, const json_t *p, int64_t sent_ms, struct ct_err *err)
{
    struct kc_lease lease = x->lease;
    if (!kc_is_number(p, "version", 1) || !kc_is(p, "challenge", x->challenge) ||
        !kc_is(p, "evidence", x->evidence) || !kc_is(p, "model", x->model) ||
        !kc_is(p, "assurance", x->lease.assurance) ||
        kc_take_lease(json_object_get(p, "lease"), sent_ms, &lease, err) ||
        strcmp(lease.id, x->lease.id) != 0) {
        return ct_err_set(err, CT_REJECTED, "the lease does not answer the renewal");
    }
    x->lease = lease;
    return 0;
}

static int verify_signed(const struct kc_exchange *x, const json_t *data, const char *typ,
                         json_t **payload, struct ct_err *err)
{
    return kx_jws_verify(json_object_get(data, "signed"), typ, x->identity, payload, err);
}

static enum kc_step finish(struct kc_exchange *x)
{
    forget_run(x);
    x->stage = KC_DONE;
    return KC_HELD;
}

static enum kc_step take_keys_answer(struct kc_exchange *x, const json_t *data, int64_t sent_ms,
                                     struct ct_err *err)
{
    json_t *p = NULL;
    const json_t *sent = json_object_get(data, "headers");
    if (verify_signed(x, data, sent ? "kvfs-sync+jws" : "kvfs-release+jws", &p, err)) {
        return KC_FAILED;
    }
    int r = sent ? take_sync(x, p, sent, err) : kc_take_release(x, p, sent_ms, err);
    json_decref(p);
    return r ? KC_FAILED : sent ? KC_GO_ON : finish(x);
}

static enum kc_step take(struct kc_exchange *x, unsigned status, const uint8_t *answer, size_t n,
                         int64_t sent_ms, enum kc_again *again, struct ct_err *err)
{
    kx_autojson data = kc_answer(status, answer, n, again, err);
    kx_autojson p = NULL;
    if (!data) {
        return KC_FAILED;
    }
    switch (x->stage) {
    case KC_CHALLENGE:
        return take_challenge(x, data, err) ? KC_FAILED : KC_GO_ON;
    case KC_ATTEST:
        return verify_signed(x, data, "kvfs-ticket+jws", &p, err) || take_ticket(x, p, again, err)
                   ? KC_FAILED
                   : KC_GO_ON;
    case KC_RENEW:
        return verify_signed(x, data, "kvfs-lease+jws", &p, err) || take_renewal(x, p, sent_ms, err)
                   ? KC_FAILED
                   : finish(x);
    case KC_KEYS_CALL:
        return take_keys_answer(x, data, sent_ms, err);
    default:
        ct_err_set(err, CT_USAGE, "the exchange is over");
        return KC_FAILED;
    }
}

/* After a failure nothing goes on but from the start. */
enum kc_step kc_take(struct kc_exchange *x, unsigned status, const uint8_t *answer, size_t n,
                     int64_t sent_ms, enum kc_again *again, struct ct_err *err)
{
    enum kc_step step = take(x, status, answer, n, sent_ms, again, err);
    if (step == KC_FAILED) {
        forget_run(x);
        x->stage = KC_DONE;
    }
    return step;
}

int kc_end_request(struct kc_exchange *x, const char *reason, struct kc_request *out,
                   struct ct_err *err)
{
    char what[64];
    (void)snprintf(what, sizeof(what), "/leases/%s/end", x->lease.id);
    address(out, "POST", what);
    json_t *payload = json_pack("{s:i,s:s}", "version", 1, "lease", x->lease.id);
    if (reason) {
        size_t n = strnlen(reason, REASON_MAX);
        while (n && !ct_utf8_ok((const uint8_t *)reason, n)) {
            n--; /* cut within a character, or a path of other bytes */
        }
        (void)json_object_set_new(payload, "reason", json_stringn(n ? reason : "?", n ? n : 1));
    }
    json_t *proof = sign_with(&x->runtime->keys[KC_SIGN], "kvfs-end+jws", payload, err);
    return proof ? put_json(json_pack("{s:o}", "proof", proof), &out->body, err) : -1;
}

const struct kc_lease *kc_lease(const struct kc_exchange *x)
{
    return &x->lease;
}

const struct kc_shards *kc_exchange_shards(const struct kc_exchange *x)
{
    return &x->shards;
}

struct ct_keysource *kc_exchange_keys(struct kc_exchange *x)
{
    return &x->source;
}

void kc_exchange_forget(struct kc_exchange *x)
{
    ct_secret_free(x->master);
    x->master = NULL;
}

const json_t *kc_exchange_identity(const struct kc_exchange *x)
{
    return x->identity;
}

const char *kc_ticket_sha256(const struct kc_exchange *x)
{
    return x->ticket_sha256;
}

const char *kc_manifest_sha256(const struct kc_exchange *x)
{
    return x->manifest_sha256[0] ? x->manifest_sha256 : NULL;
}
