#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

enum { CALLS = 3 };

struct ticket {
    char hash[KX_HEX + 1], apikey_id[KS_ID + 1], user_id[KS_ID + 1], model_id[KS_ID + 1];
    char subscription_id[KS_ID + 1]; /* "" for the owner */
    char challenge[160];
    int64_t expires, calls, done, generation;
    json_t *claims;
    struct ks_user user;
    char model[2 * KS_NAME_LEN + 2];
};

struct proof {
    json_t *payload;
    const json_t *headers;
    json_int_t call;
    char headers_sha256[KX_HEX + 1];
};

/* ---- the ticket ---- */

static void copy(char *to, size_t cap, struct ks_rows *rows, int column)
{
    (void)snprintf(to, cap, "%s", ks_text(rows, column));
}

static int find_ticket(struct ks_request *r, struct ticket *t, struct ct_err *err)
{
    ks_autorows rows = NULL;
    const char *text = ks_body_text(r, "ticket");
    if (!text) {
        return ks_refuse(r, KS_MALFORMED, "ticket is not a string");
    }
    if (kx_hex_sha256(text, strlen(text), t->hash, err)) {
        return -1;
    }
    int rc = ks_one(r->ctx.db, &rows, err,
                    "SELECT t.apikey_id, t.user_id, t.model_id, t.subscription_id, t.challenge,"
                    " t.claims, u.name, o.name, m.name, t.expires, t.calls, t.done, t.generation"
                    " FROM tickets t JOIN users u ON u.id = t.user_id JOIN models m ON m.id ="
                    " t.model_id JOIN users o ON o.id = m.owner_id WHERE t.hash = $1",
                    "s", t->hash);
    if (rc != 1) {
        return rc < 0 ? -1 : ks_refuse(r, KS_TICKET, NULL);
    }
    copy(t->apikey_id, sizeof(t->apikey_id), rows, 0);
    copy(t->user_id, sizeof(t->user_id), rows, 1);
    copy(t->model_id, sizeof(t->model_id), rows, 2);
    copy(t->subscription_id, sizeof(t->subscription_id), rows, 3);
    copy(t->challenge, sizeof(t->challenge), rows, 4);
    const char *claims = ks_text(rows, 5);
    t->claims = kx_json_parse(claims, strlen(claims), err);
    copy(t->user.name, sizeof(t->user.name), rows, 6);
    (void)snprintf(t->user.id, sizeof(t->user.id), "%s", t->user_id);
    (void)snprintf(t->model, sizeof(t->model), "%s/%s", ks_text(rows, 7), ks_text(rows, 8));
    t->expires = ks_int(rows, 9);
    t->calls = ks_int(rows, 10);
    t->done = ks_int(rows, 11);
    t->generation = ks_int(rows, 12);
    (void)snprintf(r->audit_user, sizeof(r->audit_user), "%s", t->user.name);
    (void)snprintf(r->audit_model, sizeof(r->audit_model), "%s", t->model);
    return t->claims ? 0 : -1;
}

static int check_ticket(struct ks_request *r, const struct ticket *t)
{
    return t->done || t->calls >= CALLS ? ks_refuse(r, KS_TICKET_USED, NULL)
           : t->expires <= ks_now()     ? ks_refuse(r, KS_TICKET_OLD, NULL)
                                        : 0;
}

/* ---- the proof ---- */

static int check_proof(struct ks_request *r, const struct ticket *t, struct proof *p,
                       struct ct_err *err)
{
    if (kx_jws_verify(json_object_get(r->body, "proof"), "kvfs-proof+jws",
                      json_object_get(t->claims, "sign"), &p->payload, err)) {
        return err->code == CT_REJECTED ? ks_refuse_err(r, KS_PROOF, err)
                                        : ks_refuse_err(r, KS_JOSE, err);
    }
    int rc =
        ks_members(r, p->payload, "the proof", "version ticket_sha256 call headers headers_sha256");
    if (rc) {
        return rc;
    }
    const char *hash = json_string_value(json_object_get(p->payload, "ticket_sha256"));
    const char *set = json_string_value(json_object_get(p->payload, "headers_sha256"));
    const json_t *call = json_object_get(p->payload, "call");
    p->headers = json_object_get(p->payload, "headers");
    if (kx_headers_digest(p->headers, p->headers_sha256, err)) {
        return err->code == CT_MALFORMED ? ks_refuse_err(r, KS_MALFORMED, err) : -1;
    }
    if (json_integer_value(json_object_get(p->payload, "version")) != 1 || !json_is_integer(call)) {
        return ks_refuse(r, KS_MALFORMED, "the proof's version and call are numbers");
    }
    p->call = json_integer_value(call);
    if (!hash || strcmp(hash, t->hash) != 0) {
        return ks_refuse(r, KS_PROOF, "it is for another ticket");
    }
    if (!set || strcmp(set, p->headers_sha256) != 0) {
        return ks_refuse(r, KS_PROOF, "headers_sha256 is not the digest of headers");
    }
    return p->call == t->calls + 1 ? 0 : ks_refuse(r, KS_CALL, NULL);
}

/* Takes this use of the ticket, once over all replicas. From here on a refusal is committed. */
static int use_ticket(struct ks_request *r, const struct ticket *t, struct ct_err *err)
{
    int64_t n = ks_exec(r->ctx.db, err,
                        "UPDATE tickets SET calls = calls + 1 WHERE hash = $1 AND calls = $2 AND"
                        " done = 0",
                        "si", t->hash, t->calls);
    if (n < 1) {
        return n < 0 ? -1 : ks_refuse(r, KS_CALL, NULL);
    }
    r->keep = true;
    return 0;
}

/* ---- what must still hold ---- */

static int check_key(struct ks_request *r, const struct ticket *t, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int rc = ks_one(r->ctx.db, &rows, err,
                    "SELECT 1 FROM apikeys k JOIN users u ON u.id = k.user_id WHERE k.id = $1 AND"
                    " k.revoked = 0 AND u.disabled = 0 AND (k.expires = 0 OR k.expires > $2)",
                    "si", t->apikey_id, ks_now());
    return rc < 0 ? -1 : rc ? 0 : ks_refuse(r, KS_DENIED, NULL);
}

static int check_again(struct ks_request *r, const struct ticket *t, struct ks_access *a,
                       struct ct_err *err)
{
    /* From here to the commit nobody revokes the key, disables the user or publishes. */
    int rc = ks_hold(r->ctx.db, KS_APIKEYS, t->apikey_id, err) ||
                     ks_hold(r->ctx.db, KS_USERS, t->user_id, err) ||
                     ks_hold(r->ctx.db, KS_MODELS, t->model_id, err)
                 ? -1
                 : check_key(r, t, err);
    rc = rc ? rc : ks_access_check(r, &t->user, t->model, t->claims, "keys", a, err);
    if (rc) {
        return rc;
    }
    if (!a->owned && strcmp(a->subscription.id, t->subscription_id) != 0) {
        return ks_refuse(r, KS_SUBSCRIPTION, NULL); /* ended, and a new one begun */
    }
    return a->model.generation == t->generation ? 0 : ks_refuse(r, KS_GENERATION_CHANGED, NULL);
}

/* ---- headers ---- */

static struct ks_rows *query_set(struct ks_request *r, const struct ticket *t,
                                 const struct ks_access *a, struct ct_err *err)
{
    return a->owned
               ? ks_query(r->ctx.db, err,
                          "SELECT path, sha256, immutable, body FROM files WHERE model_id = $1 AND"
                          " generation = $2",
                          "si", t->model_id, t->generation)
               : ks_query(r->ctx.db, err,
                          "SELECT f.path, p.sha256, f.immutable, f.body FROM files f LEFT JOIN"
                          " personal p ON p.subscription_id = $3 AND p.generation = f.generation"
                          " AND p.path = f.path WHERE f.model_id = $1 AND f.generation = $2",
                          "sis", t->model_id, t->generation, t->subscription_id);
}

/* The set that he has to have: [{"path", "sha256", "immutable_sha256", "body"}, …]. 1 when some of
 * it is not made yet. */
static int personal_set(struct ks_request *r, const struct ticket *t, const struct ks_access *a,
                        json_t **out, struct ct_err *err)
{
    kx_autojson set = json_array();
    ks_autorows rows = query_set(r, t, a, err);
    int rc = rows ? 1 : -1;
    while (rc == 1 && (rc = ks_next(rows, err)) == 1) {
        if (ks_is_null(rows, 1)) {
            return 1;
        }
        json_t *one =
            json_pack("{s:s,s:s,s:s,s:I}", "path", ks_text(rows, 0), "sha256", ks_text(rows, 1),
                      "immutable_sha256", ks_text(rows, 2), "body", (json_int_t)ks_int(rows, 3));
        if (!one || json_array_append_new(set, one)) {
            rc = ct_err_set(err, CT_NOMEM, "no memory for headers");
        }
    }
    *out = rc ? NULL : json_incref(set);
    return rc;
}

static int load_header(struct ks_request *r, const struct ticket *t, const struct ks_access *a,
                       const char *path, json_t **out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    ct_autobuf text = {0};
    size_t n = 0;
    int rc = a->owned ? ks_one(r->ctx.db, &rows, err,
                               "SELECT header FROM files WHERE model_id = $1 AND generation = $2"
                               " AND path = $3",
                               "sis", t->model_id, t->generation, path)
                      : ks_one(r->ctx.db, &rows, err,
                               "SELECT header FROM personal WHERE subscription_id = $1 AND"
                               " generation = $2 AND path = $3",
                               "sis", t->subscription_id, t->generation, path);
    if (rc != 1) {
        return rc < 0 ? -1 : ct_err_set(err, CT_STALE, "a header is gone");
    }
    const uint8_t *p = ks_blob(rows, 0, &n);
    ct_base64_put(&text, p, n);
    *out = text.failed
               ? NULL
               : json_pack("{s:s,s:s%}", "path", path, "header", (char *)text.data, text.len);
    return *out ? 0 : ct_err_set(err, CT_NOMEM, "no memory for a header");
}

/* {path: sha256} of what the proof has. */
static json_t *by_path(const json_t *headers)
{
    size_t i = 0;
    const json_t *one = NULL;
    json_t *map = json_object();
    json_array_foreach(headers, i, one)
    {
        (void)json_object_set(map, json_string_value(json_object_get(one, "path")),
                              json_object_get(one, "sha256"));
    }
    return map;
}

static int synchronise(struct ks_request *r, const struct ticket *t, const struct proof *p,
                       const struct ks_access *a, json_t *set, const char *set_sha256,
                       struct ct_err *err)
{
    size_t i = 0;
    const json_t *one = NULL;
    kx_autojson have = by_path(p->headers);
    kx_autojson headers = json_array();
    if (p->call == CALLS) {
        return ks_refuse(r, KS_SYNC, NULL);
    }
    json_array_foreach(set, i, one)
    {
        json_t *header = NULL;
        const char *path = json_string_value(json_object_get(one, "path"));
        if (json_equal(json_object_get(have, path), json_object_get(one, "sha256"))) {
            continue;
        }
        if (load_header(r, t, a, path, &header, err) || json_array_append_new(headers, header)) {
            return -1;
        }
    }
    json_t *payload =
        json_pack("{s:i,s:s,s:s,s:I,s:s,s:I,s:O,s:s}", "version", 1, "decision", "sync",
                  "ticket_sha256", t->hash, "call", p->call, "model", t->model, "generation",
                  (json_int_t)t->generation, "headers", set, "headers_sha256", set_sha256);
    if (ks_answer_signed(r, "kvfs-sync+jws", payload, err) ||
        json_object_set(r->data, "headers", headers)) {
        return -1;
    }
    return ks_record(r, "sync", NULL, err);
}

/* ---- leases ---- */

/* The subscription's row is written first, so that of several at once one waits for the other. */
static int count_leases(struct ks_request *r, const struct ks_subscription *s, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int64_t n = ks_exec(r->ctx.db, err,
                        "UPDATE subscriptions SET leases = leases + 1 WHERE id = $1 AND ended = 0",
                        "s", s->id);
    if (n < 1) {
        return n < 0 ? -1 : ks_refuse(r, KS_SUBSCRIPTION, NULL);
    }
    if (s->max_leases == 0) {
        return 0;
    }
    int rc =
        ks_one(r->ctx.db, &rows, err,
               "SELECT COUNT(*) FROM leases WHERE subscription_id = $1 AND expires + grace > $2"
               " AND ended = 0 AND revoked = 0",
               "si", s->id, ks_now());
    return rc < 0 ? -1
           : ks_int(rows, 0) < s->max_leases
               ? 0
               : ks_refuse(r, KS_MAX_LEASES, "%lld", (long long)s->max_leases);
}

static int make_lease(struct ks_request *r, const struct ticket *t, const struct ks_access *a,
                      char id[static KS_ID + 1], struct ct_err *err)
{
    char head[KX_HEX + 1];
    const int64_t now = ks_now();
    if (ks_new_id(id, err) || kx_audit_start(id, head, err)) {
        return -1;
    }
    kx_autojson lease = ks_lease_json(id, &a->model, a);
    char *claims = json_dumps(t->claims, JSON_COMPACT);
    const json_int_t grace = json_integer_value(json_object_get(lease, "grace"));
    int64_t n = !claims || !lease
                    ? ct_err_set(err, CT_NOMEM, "no memory for a lease")
                    : ks_exec(r->ctx.db, err,
                              "INSERT INTO leases (id, created, expires, grace, apikey_id, user_id,"
                              " model_id, subscription_id, generation, claims, audit_head) VALUES"
                              " ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                              "siiissssiss", id, now, now + ks_lease_seconds(a), (int64_t)grace,
                              t->apikey_id, t->user_id, t->model_id,
                              a->owned ? NULL : t->subscription_id, t->generation, claims, head);
    ct_wiping_free(claims);
    return n < 0 ? -1 : 0;
}

/* ---- release ---- */

static json_t *base64(const uint8_t *p, size_t n)
{
    ct_autobuf text = {0};
    ct_base64_put(&text, p, n);
    return text.failed ? NULL : json_stringn((char *)text.data, text.len);
}

static json_t *public_jwk(const char *kid, const uint8_t pub[static CT_ED25519_PUB])
{
    return json_pack("{s:s,s:s,s:s,s:o}", "kty", "okp", "alg", "ed25519", "kid", kid, "x",
                     base64(pub, CT_ED25519_PUB));
}

static int manifest_of(struct ks_request *r, const struct ticket *t, json_t **out,
                       struct ct_err *err)
{
    ks_autorows rows = NULL;
    int rc = ks_one(r->ctx.db, &rows, err,
                    "SELECT manifest_sha256 FROM generations WHERE model_id = $1 AND number = $2",
                    "si", t->model_id, t->generation);
    if (rc != 1) {
        return rc < 0 ? -1 : ct_err_set(err, CT_STALE, "a generation is gone");
    }
    *out = ks_is_null(rows, 0) ? json_null() : json_string(ks_text(rows, 0));
    return 0;
}

/* What only the runtime may see: encrypted for its key. */
static json_t *encrypt_keys(struct ks_request *r, const struct ticket *t, const struct ks_access *a,
                            struct ct_err *err)
{
    uint8_t producer[CT_ED25519_PUB];
    char producer_kid[KS_KID + 1];
    ks_autokeys keys = {0};
    kx_autojson manifest = NULL;
    int rc = a->owned ? ks_keys_of_owner(&r->ctx, &a->model, &keys, err)
                      : ks_keys_of_subscription(&r->ctx, t->subscription_id, &keys, err);
    if (rc || ks_user_sign_key(&r->ctx, a->model.owner_id, NULL, producer, producer_kid, err) ||
        manifest_of(r, t, &manifest, err)) {
        return NULL;
    }
    kx_autojson plain = json_pack("{s:i,s:s,s:s,s:I,s:{s:s,s:s,s:s,s:o},s:o,s:o,s:O}", "version", 1,
                                  "ticket_sha256", t->hash, "model", t->model, "generation",
                                  (json_int_t)t->generation, "master_key", "kty", "oct", "alg",
                                  "aes256gcm", "kid", keys.master_kid, "k",
                                  base64(ct_secret_peek(keys.master), ct_secret_len(keys.master)),
                                  "verify_key", public_jwk(keys.sign_kid, keys.pub), "manifest_key",
                                  public_jwk(producer_kid, producer), "manifest_sha256", manifest);
    if (!plain) {
        ct_err_set(err, CT_NOMEM, "no memory for keys");
        return NULL;
    }
    return kx_jwe_encrypt(json_object_get(t->claims, "decrypt"), "kvfs-keys+jwe", plain, err);
}

static int release(struct ks_request *r, const struct ticket *t, const struct proof *p,
                   const struct ks_access *a, struct ct_err *err)
{
    char id[KS_ID + 1];
    int rc = a->owned ? 0 : count_leases(r, &a->subscription, err);
    if (rc) {
        return rc;
    }
    if (make_lease(r, t, a, id, err) ||
        ks_exec(r->ctx.db, err, "UPDATE tickets SET done = 1 WHERE hash = $1", "s", t->hash) < 0) {
        return -1;
    }
    json_t *jwe = encrypt_keys(r, t, a, err);
    if (!jwe) {
        return -1;
    }
    (void)snprintf(r->audit_lease, sizeof(r->audit_lease), "%s", id);
    json_t *payload = json_pack(
        "{s:i,s:s,s:s,s:s,s:I,s:s,s:I,s:O,s:s,s:O,s:o,s:o}", "version", 1, "decision", "release",
        "challenge", t->challenge, "ticket_sha256", t->hash, "call", p->call, "model", t->model,
        "generation", (json_int_t)t->generation, "keys", json_object_get(t->claims, "thumbs"),
        "headers_sha256", p->headers_sha256, "assurance", json_object_get(t->claims, "assurance"),
        "lease", ks_lease_json(id, &a->model, a), "release", jwe);
    char detail[160];
    (void)snprintf(detail, sizeof(detail), "generation %lld, %s, measured %s",
                   (long long)t->generation,
                   json_string_value(json_object_get(t->claims, "assurance")),
                   json_string_value(json_object_get(t->claims, "measurement")));
    return ks_answer_signed(r, "kvfs-release+jws", payload, err) ||
                   ks_record(r, "release", detail, err)
               ? -1
               : 0;
}

/* ---- all of it ---- */

/* Before the call is run again: the headers that he does not have yet. */
static int make_headers(struct ks_request *r, struct ct_err *err)
{
    struct ticket t = {0};
    if (ks_begin(r->ctx.db, KS_READ, err)) {
        return -1;
    }
    int rc = find_ticket(r, &t, err);
    ks_rollback(r->ctx.db);
    json_decref(t.claims);
    return rc ? rc : ks_personalise(&r->ctx, t.model_id, t.subscription_id, t.generation, err);
}

static int decide(struct ks_request *r, struct ticket *t, struct proof *p, struct ct_err *err)
{
    struct ks_access a;
    char wanted[KX_HEX + 1];
    int rc = ks_body_members(r, "ticket proof");
    rc = rc ? rc : find_ticket(r, t, err);
    rc = rc ? rc : check_ticket(r, t);
    rc = rc ? rc : check_proof(r, t, p, err);
    rc = rc ? rc : use_ticket(r, t, err);
    rc = rc ? rc : check_again(r, t, &a, err);
    if (rc) {
        return rc;
    }
    kx_autojson set = NULL;
    rc = personal_set(r, t, &a, &set, err);
    if (rc || kx_headers_digest(set, wanted, err)) {
        return rc > 0 ? ks_prepare_first(r, make_headers, err) : -1;
    }
    if (json_array_size(set) == 0) {
        return ks_refuse(r, KS_EMPTY, NULL);
    }
    return strcmp(wanted, p->headers_sha256) == 0 ? release(r, t, p, &a, err)
                                                  : synchronise(r, t, p, &a, set, wanted, err);
}

int ks_post_keys(struct ks_request *r, struct ct_err *err)
{
    struct ticket t = {0};
    struct proof p = {0};
    int rc = decide(r, &t, &p, err);
    json_decref(t.claims);
    json_decref(p.payload);
    return rc;
}
