#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "format/base/file.h"
#include "format/header.h"
#include "keyclient/measure.h"
#include "keyclient/wait.h"

/* The client against a server that is played here with the keys of tests/vectors/protocol, first
 * an honest one, then one that alters a single thing. */

static json_t *vectors;
static struct kc_runtime runtime;
static struct ct_buf header;

static void copy(char *to, size_t cap, const char *from)
{
    (void)snprintf(to, cap, "%s", from);
}

static json_t *key(const char *name)
{
    return json_object_get(json_object_get(vectors, "keys"), name);
}

static json_t *public_of(const char *name)
{
    return kx_jwk_public(key(name));
}

static json_t *measurements(void)
{
    return json_pack("{s:s,s:[{s:s,s:s,s:s}]}", "profile", "none", "items", "kind", "executable",
                     "name", "kvfs", "sha256",
                     "60264ade292ab2487ac4640d9eab94ee02c897c042e40b2062d00eca8e03ffe8");
}

static void setup(void)
{
    char pin[KX_THUMBPRINT + 1];
    struct ct_err err = CT_ERR_INIT;
    static const char api_key[] = "kvfs_deploy_abc\n";
    cr_assert_eq(ct_secret_init(NULL), 0);
    vectors = json_load_file(TEST_VECTORS "/protocol/jose.json", 0, NULL);
    cr_assert(vectors);
    kx_autojson identity = public_of("identity");
    cr_assert_eq(kx_jwk_thumbprint(identity, pin, &err), 0);
    cr_assert_eq(
        kc_runtime_init(&runtime, pin, "host", api_key, strlen(api_key), measurements(), &err), 0,
        "%s", err.msg);
    ct_autobuf file = {0};
    cr_assert_eq(ct_read_file(AT_FDCWD, TEST_VECTORS "/good/jku-and-kid.cryptotensors", 1 << 24,
                              &file, &err),
                 0, "%s", err.msg);
    ct_buf_put(&header, file.data, 8 + ct_le64(file.data));
}

static void teardown(void)
{
    kc_runtime_free(&runtime);
    json_decref(vectors);
    ct_buf_free(&header);
}

TestSuite(exchange, .init = setup, .fini = teardown, .timeout = 60);

static uint64_t body_len(void)
{
    struct ct_header *h = NULL;
    cr_assert_eq(ct_header_parse(header.data + 8, header.len - 8, CT_BODY_UNKNOWN, &h, NULL), 0);
    uint64_t n = h->body_len;
    ct_header_free(h);
    return n;
}

static struct kc_exchange *begin(int64_t seen)
{
    struct ct_err err = CT_ERR_INIT;
    struct kc_shards shards = {0};
    cr_assert_eq(kc_shards_add(&shards, "a.safetensors", header.data, header.len, body_len(), &err),
                 0, "%s", err.msg);
    struct kc_exchange *x = kc_exchange_new(&runtime, "alice/m", &shards, seen, &err);
    cr_assert(x, "%s", err.msg);
    kc_begin(x);
    return x;
}

/* ---- the server; `change` alters one payload before it is signed or encrypted ---- */

struct lie {
    const char *name;
    const char *typ;    /* of the payload that is altered */
    const char *member; /* removed and set to */
    const char *value;  /* this JSON; NULL: only removed */
    const char *signer; /* NULL: identity */
    int syncs;          /* that come before the release */
    enum ct_code code;
    const char *words; /* in the message */
};

struct server {
    const struct lie *lie;
    char challenge[64], evidence[KX_HEX + 1], ticket_sha256[KX_HEX + 1];
    json_t *keys; /* of the runtime */
    int calls;
};

static json_t *told(const struct server *s, const char *typ, json_t *payload)
{
    const struct lie *lie = s->lie;
    if (lie && lie->typ && strcmp(lie->typ, typ) == 0 && lie->member) {
        json_object_del(payload, lie->member);
        if (lie->value) {
            json_object_set_new(payload, lie->member,
                                json_loads(lie->value, JSON_DECODE_ANY, NULL));
        }
    }
    return payload;
}

static json_t *signed_by(const struct server *s, const char *typ, json_t *payload)
{
    const struct lie *lie = s->lie;
    bool other = lie && lie->signer && strcmp(lie->typ, typ) == 0;
    payload = told(s, typ, payload);
    json_t *jws = kx_jws_sign(key(other ? lie->signer : "identity"), typ, payload, NULL);
    cr_assert(jws);
    json_decref(payload);
    return jws;
}

static json_t *answer_challenge(struct server *s)
{
    copy(s->challenge, sizeof(s->challenge), "challenge-of-this-test");
    const bool foreign = s->lie && s->lie->typ && strcmp(s->lie->typ, "identity") == 0;
    return json_pack(
        "{s:o,s:o}", "identity", public_of(foreign ? "stranger" : "identity"), "signed",
        signed_by(s, "kvfs-challenge+jws",
                  json_pack("{s:i,s:s,s:o,s:i}", "version", 1, "challenge", s->challenge,
                            "server_key", public_of("server"), "expires_in", 60)));
}

static json_t *opened(const json_t *jwe, const char *typ)
{
    char kid[KX_THUMBPRINT + 1];
    json_t *plain = NULL;
    cr_assert_eq(kx_jwe_kid(jwe, typ, kid, NULL), 0);
    cr_assert_eq(kx_jwe_decrypt(jwe, key("server"), &plain, NULL), 0);
    return plain;
}

static json_t *answer_attest(struct server *s, const json_t *body)
{
    kx_autojson e = opened(body, "kvfs-evidence+jwe");
    kx_autojson binding = NULL;
    cr_assert_str_eq(json_string_value(json_object_get(e, "api_key")), "kvfs_deploy_abc");
    s->keys = json_incref(json_object_get(e, "keys"));
    cr_assert_eq(kx_jws_verify(json_object_get(e, "binding"), "kvfs-binding+jws",
                               json_object_get(s->keys, "sign"), &binding, NULL),
                 0);
    copy(s->evidence, sizeof(s->evidence), json_string_value(json_object_get(binding, "evidence")));
    cr_assert_eq(kx_hex_sha256("ticket", 6, s->ticket_sha256, NULL), 0);
    return json_pack(
        "{s:o}", "signed",
        signed_by(s, "kvfs-ticket+jws",
                  json_pack("{s:i,s:s,s:s,s:[{s:s,s:s,s:i,s:i}]}", "version", 1, "challenge",
                            s->challenge, "evidence", s->evidence, "results", "model", "alice/m",
                            "ticket", "ticket", "expires_in", 60, "generation", 3)));
}

static json_t *thumbprints(const struct server *s)
{
    json_t *all = json_object();
    const char *name = NULL;
    const json_t *jwk = NULL;
    json_object_foreach(s->keys, name, jwk)
    {
        char thumb[KX_THUMBPRINT + 1];
        cr_assert_eq(kx_jwk_thumbprint(jwk, thumb, NULL), 0);
        json_object_set_new(all, name, json_string(thumb));
    }
    return all;
}

static json_t *sealed_keys(const struct server *s)
{
    static const char k[] = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    kx_autojson plain = told(
        s, "kvfs-keys+jwe",
        json_pack("{s:i,s:s,s:s,s:i,s:{s:s,s:s,s:s,s:s},s:{s:s,s:s,s:s,s:s},s:{s:s,s:s,s:s,s:s},"
                  "s:n}",
                  "version", 1, "ticket_sha256", s->ticket_sha256, "model", "alice/m", "generation",
                  3, "master_key", "kty", "oct", "alg", "aes256gcm", "kid", "mk", "k", k,
                  "verify_key", "kty", "okp", "alg", "ed25519", "kid", "vk", "x", k, "manifest_key",
                  "kty", "okp", "alg", "ed25519", "kid", "pk", "x", k, "manifest_sha256"));
    json_t *jwe = kx_jwe_encrypt(json_object_get(s->keys, "decrypt"), "kvfs-keys+jwe", plain, NULL);
    cr_assert(jwe);
    return jwe;
}

static json_t *lease_of(void)
{
    return json_pack("{s:s,s:i,s:i,s:i,s:n}", "id", "796197ee89479de8c76f3f3c77d8dd09", "seconds",
                     900, "renew", 300, "grace", 0, "end");
}

static json_t *sync_answer(struct server *s)
{
    char sha[KX_HEX + 1];
    char immutable[KX_HEX + 1];
    ct_autobuf text = {0};
    struct kc_shards own = {0};
    cr_assert_eq(kc_shards_add(&own, "a.safetensors", header.data, header.len, body_len(), NULL),
                 0);
    copy(immutable, sizeof(immutable), own.items[0].immutable);
    copy(sha, sizeof(sha), own.items[0].local);
    kc_shards_free(&own);
    ct_base64_put(&text, header.data, header.len);
    json_t *list = json_pack("[{s:s,s:s,s:s,s:I}]", "path", "a.safetensors", "sha256", sha,
                             "immutable_sha256", immutable, "body", (json_int_t)body_len());
    char digest[KX_HEX + 1];
    cr_assert_eq(kx_headers_digest(list, digest, NULL), 0);
    return json_pack(
        "{s:o,s:[{s:s,s:s#}]}", "signed",
        signed_by(s, "kvfs-sync+jws",
                  json_pack("{s:i,s:s,s:s,s:i,s:s,s:i,s:o,s:s}", "version", 1, "decision", "sync",
                            "ticket_sha256", s->ticket_sha256, "call", s->calls, "model", "alice/m",
                            "generation", 3, "headers", list, "headers_sha256", digest)),
        "headers", "path", "a.safetensors", "header", (const char *)text.data, (int)text.len);
}

static json_t *answer_keys(struct server *s, const json_t *body)
{
    kx_autojson proof = NULL;
    cr_assert_eq(kx_jws_verify(json_object_get(body, "proof"), "kvfs-proof+jws",
                               json_object_get(s->keys, "sign"), &proof, NULL),
                 0);
    s->calls++;
    cr_assert_eq(json_integer_value(json_object_get(proof, "call")), s->calls);
    if (s->lie && s->calls <= s->lie->syncs) {
        return sync_answer(s);
    }
    return json_pack(
        "{s:o}", "signed",
        signed_by(s, "kvfs-release+jws",
                  json_pack("{s:i,s:s,s:s,s:s,s:i,s:O,s:s,s:i,s:o,s:s,s:o,s:o}", "version", 1,
                            "decision", "release", "challenge", s->challenge, "ticket_sha256",
                            s->ticket_sha256, "call", s->calls, "headers_sha256",
                            json_object_get(proof, "headers_sha256"), "model", "alice/m",
                            "generation", 3, "keys", thumbprints(s), "assurance", "self-reported",
                            "lease", lease_of(), "release", sealed_keys(s))));
}

static json_t *answer_renew(struct server *s, const json_t *body)
{
    kx_autojson e = opened(body, "kvfs-renewal+jwe");
    kx_autojson binding = NULL;
    cr_assert_eq(kx_jws_verify(json_object_get(e, "binding"), "kvfs-binding+jws",
                               json_object_get(s->keys, "sign"), &binding, NULL),
                 0);
    cr_assert_str_eq(json_string_value(json_object_get(binding, "lease")),
                     json_string_value(json_object_get(e, "lease")));
    copy(s->evidence, sizeof(s->evidence), json_string_value(json_object_get(binding, "evidence")));
    return json_pack(
        "{s:o}", "signed",
        signed_by(s, "kvfs-lease+jws",
                  json_pack("{s:i,s:s,s:s,s:s,s:i,s:s,s:o}", "version", 1, "challenge",
                            s->challenge, "evidence", s->evidence, "model", "alice/m", "generation",
                            3, "assurance", "self-reported", "lease", lease_of())));
}

static json_t *answer(struct server *s, const struct kc_request *q)
{
    kx_autojson body = kx_json_parse(q->body.data, q->body.len, NULL);
    cr_assert(body);
    const char *what = strrchr(q->path, '/');
    return strcmp(what, "/challenge") == 0 ? answer_challenge(s)
           : strcmp(what, "/attest") == 0  ? answer_attest(s, body)
           : strcmp(what, "/keys") == 0    ? answer_keys(s, body)
                                           : answer_renew(s, body);
}

static enum kc_step run(struct kc_exchange *x, struct server *s, int64_t now, struct ct_err *err)
{
    enum kc_step step = KC_GO_ON;
    while (step == KC_GO_ON) {
        struct kc_request q = {0};
        enum kc_again again = KC_STAYS;
        cr_assert_eq(kc_next(x, &q, err), 0, "%s", err->msg);
        kx_autojson envelope = json_pack("{s:b,s:o,s:n,s:n,s:s}", "success", 1, "data",
                                         answer(s, &q), "message", "error", "timestamp", "");
        char *text = json_dumps(envelope, 0);
        step = kc_take(x, 200, (const uint8_t *)text, strlen(text), now, &again, err);
        ct_wiping_free(text);
        ct_buf_free(&q.body);
    }
    return step;
}

Test(exchange, released_and_renewed)
{
    struct ct_err err = CT_ERR_INIT;
    struct server s = {0};
    struct kc_exchange *x = begin(0);
    struct ct_secret *master = NULL;
    uint8_t pub[CT_ED25519_PUB];
    struct ct_keyref ref = {.alg = CT_ALG_AES256GCM, .kid = {"mk", 2}};
    struct ct_keysource *keys = kc_exchange_keys(x);
    cr_expect_eq(keys->master(keys, &ref, &master, &err), -1); /* not before the release */
    cr_assert_eq(run(x, &s, 5000, &err), KC_HELD, "%s", err.msg);
    cr_expect_eq(kc_lease(x)->seconds, 900);
    cr_expect_eq(kc_lease(x)->sent_ms, 5000);
    cr_expect_eq(kc_lease(x)->generation, 3);
    cr_expect_null(kc_manifest_sha256(x));
    cr_assert_eq(keys->master(keys, &ref, &master, &err), 0, "%s", err.msg);
    cr_expect_eq(ct_secret_peek(master)[31], 31);
    ct_secret_free(master);
    ref.kid = (struct ct_span){"zz", 2};
    cr_expect_eq(keys->verify(keys, &ref, pub, &err), -1);
    ref.kid = (struct ct_span){"pk", 2};
    cr_expect_eq(keys->verify(keys, &ref, pub, &err), 0);
    kc_begin(x);
    cr_assert_eq(run(x, &s, 305000, &err), KC_HELD, "%s", err.msg);
    cr_expect_eq(kc_lease(x)->sent_ms, 305000);
    kc_exchange_free(x);
    json_decref(s.keys);
}

static const struct lie lies[] = {
    {"another identity", "identity", NULL, NULL, NULL, 0, CT_REJECTED, "identity"},
    {"challenge by another key", "kvfs-challenge+jws", NULL, NULL, "stranger", 0, CT_REJECTED, ""},
    {"another version", "kvfs-challenge+jws", "version", "2", NULL, 0, CT_UNSUPPORTED, "version"},
    {"no server key", "kvfs-challenge+jws", "server_key", NULL, NULL, 0, CT_MALFORMED, ""},
    {"ticket by another key", "kvfs-ticket+jws", NULL, NULL, "server", 0, CT_REJECTED, ""},
    {"ticket of a replayed challenge", "kvfs-ticket+jws", "challenge", "\"old\"", NULL, 0,
     CT_REJECTED, "evidence"},
    {"ticket for other evidence", "kvfs-ticket+jws", "evidence", "\"00\"", NULL, 0, CT_REJECTED,
     "evidence"},
    {"no results", "kvfs-ticket+jws", "results", "[]", NULL, 0, CT_REJECTED, ""},
    {"an older generation", "kvfs-ticket+jws", "results",
     "[{\"model\":\"alice/m\",\"ticket\":\"t\",\"generation\":1}]", NULL, 0, CT_REJECTED, "seen"},
    {"another model's ticket", "kvfs-ticket+jws", "results",
     "[{\"model\":\"alice/n\",\"ticket\":\"t\",\"generation\":3}]", NULL, 0, CT_REJECTED, "model"},
    {"a refusal", "kvfs-ticket+jws", "results",
     "[{\"model\":\"alice/m\",\"error\":\"baseline_unknown\",\"message\":\"Register it.\"}]", NULL,
     0, CT_DENIED, "Register it. (baseline_unknown)"},
    {"release by another key", "kvfs-release+jws", NULL, NULL, "stranger", 0, CT_REJECTED, ""},
    {"release of another challenge", "kvfs-release+jws", "challenge", "\"old\"", NULL, 0,
     CT_REJECTED, ""},
    {"release of another ticket", "kvfs-release+jws", "ticket_sha256", "\"00\"", NULL, 0,
     CT_REJECTED, ""},
    {"release of another call", "kvfs-release+jws", "call", "2", NULL, 0, CT_REJECTED, ""},
    {"release of other headers", "kvfs-release+jws", "headers_sha256", "\"00\"", NULL, 0,
     CT_REJECTED, ""},
    {"release for other keys", "kvfs-release+jws", "keys", "{}", NULL, 0, CT_REJECTED, ""},
    {"release of another generation", "kvfs-release+jws", "generation", "2", NULL, 0, CT_REJECTED,
     ""},
    {"assurance that nobody has", "kvfs-release+jws", "assurance", "\"tee\"", NULL, 0, CT_REJECTED,
     ""},
    {"no lease", "kvfs-release+jws", "lease", NULL, NULL, 0, CT_MALFORMED, "lease"},
    {"a lease for ever", "kvfs-release+jws", "lease",
     "{\"id\":\"796197ee89479de8c76f3f3c77d8dd09\",\"seconds\":9223372036854775807,\"renew\":1,"
     "\"grace\":0}",
     NULL, 0, CT_MALFORMED, "lease"},
    {"no keys", "kvfs-release+jws", "release", "{}", NULL, 0, CT_MALFORMED, ""},
    {"keys of another model", "kvfs-keys+jwe", "model", "\"alice/n\"", NULL, 0, CT_REJECTED, ""},
    {"keys of another ticket", "kvfs-keys+jwe", "ticket_sha256", "\"00\"", NULL, 0, CT_REJECTED,
     ""},
    {"master key too short", "kvfs-keys+jwe", "master_key",
     "{\"kty\":\"oct\",\"alg\":\"aes256gcm\",\"kid\":\"mk\",\"k\":\"AAAA\"}", NULL, 0, CT_MALFORMED,
     "key"},
    {"manifest digest that is none", "kvfs-keys+jwe", "manifest_sha256", "\"x\"", NULL, 0,
     CT_MALFORMED, "manifest"},
    {"synchronisation by another key", "kvfs-sync+jws", NULL, NULL, "stranger", 1, CT_REJECTED, ""},
    {"synchronisation of another call", "kvfs-sync+jws", "call", "9", NULL, 1, CT_REJECTED, ""},
    {"a set that is not its digest's", "kvfs-sync+jws", "headers_sha256", "\"00\"", NULL, 1,
     CT_MALFORMED, "contradicts"},
    {"headers that belong to none", "kvfs-sync+jws", "headers", "[]", NULL, 1, CT_MALFORMED, ""},
    {"a third synchronisation", NULL, NULL, NULL, NULL, 3, CT_REJECTED, "third"},
};

Test(exchange, lies)
{
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        struct server s = {.lie = &lies[i]};
        struct kc_exchange *x = begin(2);
        cr_expect_eq(run(x, &s, 0, &err), KC_FAILED, "%s: released", lies[i].name);
        cr_expect_eq(err.code, lies[i].code, "%s: %s", lies[i].name, err.msg);
        cr_expect(strstr(err.msg, lies[i].words), "%s: %s", lies[i].name, err.msg);
        kc_exchange_free(x);
        json_decref(s.keys);
    }
}

/* What a failed synchronisation left behind is never released for. */
Test(exchange, from_the_start_after_a_failure)
{
    struct ct_err err = CT_ERR_INIT;
    const struct lie lie = {
        .name = "no set", .typ = "kvfs-sync+jws", .member = "headers", .value = "[]", .syncs = 1};
    struct server liar = {.lie = &lie};
    struct server honest = {0};
    struct kc_request q = {0};
    struct kc_exchange *x = begin(0);
    cr_expect_eq(run(x, &liar, 0, &err), KC_FAILED);
    cr_expect_eq(kc_next(x, &q, &err), -1);
    kc_begin(x);
    const struct kc_shard *shard = kc_exchange_shards(x)->items;
    cr_expect(shard->wanted && shard->header.len == 0);
    cr_expect_str_eq(shard->used, shard->local);
    cr_expect_eq(run(x, &honest, 0, &err), KC_HELD, "%s", err.msg);
    kc_exchange_free(x);
    json_decref(liar.keys);
    json_decref(honest.keys);
}

Test(exchange, two_synchronisations_are_allowed)
{
    struct ct_err err = CT_ERR_INIT;
    const struct lie two = {.name = "two", .syncs = 2};
    struct server s = {.lie = &two};
    struct kc_exchange *x = begin(3);
    cr_expect_eq(run(x, &s, 0, &err), KC_HELD, "%s", err.msg);
    kc_exchange_free(x);
    json_decref(s.keys);
}

Test(exchange, answers_that_are_none)
{
    static const struct {
        const char *text;
        unsigned status;
        enum kc_again again;
        enum ct_code code;
    } cases[] = {
        {"connection refused", 0, KC_LATER, CT_IO},
        {"<html>", 502, KC_LATER, CT_IO},
        {"<html>", 200, KC_STAYS, CT_IO},
        {"[]", 200, KC_STAYS, CT_IO},
        {"{}", 200, KC_STAYS, CT_DENIED},
        {"{\"success\":true}", 200, KC_STAYS, CT_MALFORMED},
        {"{\"success\":true,\"data\":{}}", 200, KC_STAYS, CT_MALFORMED},
        {"{\"success\":true,\"data\":{},\"data\":{}}", 200, KC_STAYS, CT_IO},
        {"{\"success\":false,\"error\":\"busy\",\"message\":\"x\"}", 503, KC_LATER, CT_IO},
        {"{\"success\":false,\"error\":\"challenge_used\"}", 403, KC_ANEW, CT_DENIED},
        {"{\"success\":false,\"error\":\"denied\"}", 401, KC_STAYS, CT_DENIED},
        {"{\"success\":false,\"error\":\"\\u001b[2J\",\"message\":\"\\u001b[2J\"}", 401, KC_STAYS,
         CT_DENIED},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        enum kc_again again = KC_STAYS;
        struct kc_exchange *x = begin(0);
        cr_expect_eq(kc_take(x, cases[i].status, (const uint8_t *)cases[i].text,
                             strlen(cases[i].text), 0, &again, &err),
                     KC_FAILED);
        cr_expect_eq(again, cases[i].again, "%s", cases[i].text);
        cr_expect_eq(err.code, cases[i].code, "%s: %s", cases[i].text, err.msg);
        cr_expect(!strchr(err.msg, 0x1b));
        kc_exchange_free(x);
    }
}

Test(exchange, what_a_runtime_refuses)
{
    struct ct_err err = CT_ERR_INIT;
    struct kc_runtime r;
    char pin[KX_THUMBPRINT + 1];
    copy(pin, sizeof(pin), runtime.pin);
    static const char *const keys[] = {"", "\n", "two words", "tab\there", "\x80"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        cr_expect_eq(kc_runtime_init(&r, pin, "h", keys[i], strlen(keys[i]), measurements(), &err),
                     -1);
        cr_expect_eq(err.code, CT_NOKEY);
        kc_runtime_free(&r);
    }
    cr_expect_eq(kc_runtime_init(&r, "short", "h", "k", 1, measurements(), &err), -1);
    cr_expect_eq(err.code, CT_USAGE);
    kc_runtime_free(&r);
}

static int waited(struct kc_wait *w, const char *signer, const char *state, const char *nonce,
                  struct ct_err *err)
{
    enum kc_again again = KC_STAYS;
    kx_autojson identity = public_of("identity");
    kx_autojson p = json_pack("{s:i,s:s,s:s,s:s,s:n,s:i}", "version", 1, "lease", w->lease, "nonce",
                              nonce ? nonce : w->nonce, "state", state, "reason", "generation", 4);
    kx_autojson envelope = json_pack("{s:b,s:{s:o}}", "success", 1, "data", "signed",
                                     kx_jws_sign(key(signer), "kvfs-state+jws", p, NULL));
    char *text = json_dumps(envelope, 0);
    int r = kc_wait_take(w, identity, 200, (const uint8_t *)text, strlen(text), &again, err);
    ct_wiping_free(text);
    return r;
}

Test(exchange, long_poll)
{
    static const struct {
        const char *signer, *state, *nonce;
        enum ct_code code;
    } cases[] = {{"identity", "active", NULL, CT_OK},
                 {"identity", "revoked", NULL, CT_REVOKED},
                 {"identity", "expired", NULL, CT_EXPIRED},
                 {"identity", "ended", NULL, CT_EXPIRED},
                 {"identity", "sleeping", NULL, CT_MALFORMED},
                 {"identity", "revoked", "0123456789abcdef", CT_REJECTED}, /* replayed */
                 {"stranger", "revoked", NULL, CT_REJECTED},
                 {"stranger", "active", NULL, CT_REJECTED}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ct_err err = CT_ERR_INIT;
        struct kc_wait w = {.lease = "796197ee89479de8c76f3f3c77d8dd09", .generation = 3};
        struct kc_request q = {0};
        cr_assert_eq(kc_wait_request(&w, 60, &q, &err), 0);
        cr_expect(strstr(q.path, "/wait?nonce=") && strstr(q.path, "&generation=3&timeout=60"));
        int r = waited(&w, cases[i].signer, cases[i].state, cases[i].nonce, &err);
        cr_expect_eq(r, cases[i].code ? -1 : 0);
        cr_expect_eq(err.code, cases[i].code, "%zu: %s", i, err.msg);
        cr_expect_eq(w.generation, r ? 3 : 4);
    }
}

Test(exchange, measurements_of_this_process)
{
    struct ct_err err = CT_ERR_INIT;
    char one[KX_HEX + 1];
    char two[KX_HEX + 1];
    kx_autojson m = kc_measure("none", NULL, 0, &err);
    kx_autojson again = kc_measure("none", NULL, 0, &err);
    cr_assert(m && again, "%s", err.msg);
    cr_assert_eq(kx_measurement_digest(m, one, &err), 0, "%s", err.msg);
    cr_assert_eq(kx_measurement_digest(again, two, &err), 0, "%s", err.msg);
    cr_expect_str_eq(one, two);
    size_t i = 0;
    const json_t *item = NULL;
    bool crypto = false;
    json_array_foreach(json_object_get(m, "items"), i, item)
    {
        crypto = crypto ||
                 strcmp(json_string_value(json_object_get(item, "name")), "libcrypto.so.3") == 0;
    }
    cr_expect(crypto);
}
