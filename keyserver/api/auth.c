#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"
#include "keyserver/api/api.h"
#include "keyserver/crypto/stamp.h"

/*
 * Sessions. An access token is a stamp, so that a request without a good one is refused before its
 * body is read; what it stands for is in the database, by its hash. A refresh token works once: who
 * presents one that was used has stolen it, or was stolen from, and the session ends.
 */
enum { ACCESS_SECONDS = 3600, REFRESH_SECONDS = 30 * 86400 };

bool ks_token_plausible(const struct ks_request *r)
{
    struct ks_stamp s;
    return r->token && ks_stamp_read(r->server->stamp_key, 'a', r->token, &s, NULL) == 0 &&
           s.expires > ks_now();
}

int ks_authenticate(struct ks_request *r, struct ct_err *err)
{
    uint8_t hash[CT_SHA256_LEN];
    const int64_t now = ks_now();
    ks_autorows rows = NULL;
    if (!ks_token_plausible(r)) {
        return ks_refuse(r, KS_TOKEN, NULL);
    }
    if (ct_sha256(r->token, strlen(r->token), hash, err)) {
        return -1;
    }
    int rc = ks_one(r->ctx.db, &rows, err,
                    "SELECT u.id, u.name, k.scope, s.id FROM sessions s JOIN apikeys k ON k.id ="
                    " s.apikey_id JOIN users u ON u.id = k.user_id WHERE s.access = $1 AND"
                    " s.ended = 0 AND s.access_expires > $2 AND k.revoked = 0 AND u.disabled = 0"
                    " AND (k.expires = 0 OR k.expires > $2)",
                    "bi", hash, sizeof(hash), now);
    if (rc != 1) {
        return rc < 0 ? -1 : ks_refuse(r, KS_TOKEN, NULL);
    }
    (void)snprintf(r->user.id, sizeof(r->user.id), "%s", ks_text(rows, 0));
    (void)snprintf(r->user.name, sizeof(r->user.name), "%s", ks_text(rows, 1));
    (void)snprintf(r->session_id, sizeof(r->session_id), "%s", ks_text(rows, 3));
    return strcmp(ks_text(rows, 2), "publish") == 0 ? 0 : ks_refuse(r, KS_SCOPE, NULL);
}

struct tokens {
    char access[KS_STAMP_TEXT + 1], refresh[KS_TOKEN_LEN + 1];
    uint8_t access_hash[CT_SHA256_LEN], refresh_hash[CT_SHA256_LEN];
    int64_t access_expires, refresh_expires;
};

static int make_tokens(struct ks_request *r, struct tokens *t, struct ct_err *err)
{
    struct ks_stamp stamp = {.kind = 'a', .expires = ks_now() + ACCESS_SECONDS};
    t->access_expires = stamp.expires;
    t->refresh_expires = ks_now() + REFRESH_SECONDS;
    return ks_stamp_make(r->server->stamp_key, &stamp, t->access, err) ||
                   ks_new_token(t->refresh, err) ||
                   ct_sha256(t->access, strlen(t->access), t->access_hash, err) ||
                   ct_sha256(t->refresh, strlen(t->refresh), t->refresh_hash, err)
               ? -1
               : 0;
}

static int answer(struct ks_request *r, const struct tokens *t, const char *user,
                  struct ct_err *err)
{
    char access[32];
    char refresh[32];
    ks_rfc3339(t->access_expires, access);
    ks_rfc3339(t->refresh_expires, refresh);
    r->data = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "access_token", t->access, "refresh_token",
                        t->refresh, "expires_at", access, "refresh_expires_at", refresh,
                        "token_type", "Bearer", "username", user);
    return r->data ? 0 : ct_err_set(err, CT_NOMEM, "no memory for an answer");
}

int ks_post_login(struct ks_request *r, struct ct_err *err)
{
    char id[KS_ID + 1];
    struct tokens t;
    struct ks_apikey key;
    const char *text = ks_body_text(r, "api_key");
    int rc = ks_body_members(r, "api_key");
    if (rc || !text) {
        return rc ? rc : ks_refuse(r, KS_MALFORMED, "api_key is not a string");
    }
    rc = ks_apikey_find(&r->ctx, text, &key, err);
    if (rc) {
        return rc < 0 ? -1 : ks_refuse(r, KS_DENIED, NULL);
    }
    r->user = key.user;
    if (make_tokens(r, &t, err) || ks_new_id(id, err) ||
        ks_exec(r->ctx.db, err,
                "INSERT INTO sessions (id, apikey_id, access, refresh, access_expires,"
                " refresh_expires) VALUES ($1, $2, $3, $4, $5, $6)",
                "ssbbii", id, key.id, t.access_hash, sizeof(t.access_hash), t.refresh_hash,
                sizeof(t.refresh_hash), t.access_expires, t.refresh_expires) < 0 ||
        ks_record(r, "login", NULL, err)) {
        return -1;
    }
    return answer(r, &t, key.user.name, err);
}

struct session {
    char id[KS_ID + 1];
    uint8_t hash[CT_SHA256_LEN]; /* of the token */
    bool used;                   /* the token is the one before the current one */
};

/* The running session that a refresh token belongs to. */
static int find_session(struct ks_request *r, struct session *out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    const char *text = ks_body_text(r, "refresh_token");
    int rc = ks_body_members(r, "refresh_token");
    if (rc || !text) {
        return rc ? rc : ks_refuse(r, KS_MALFORMED, "refresh_token is not a string");
    }
    if (ct_sha256(text, strlen(text), out->hash, err)) {
        return -1;
    }
    rc =
        ks_one(r->ctx.db, &rows, err,
               "SELECT s.id, u.id, u.name, CASE WHEN s.refresh = $1 THEN 0 ELSE 1 END FROM sessions"
               " s JOIN apikeys k ON k.id = s.apikey_id JOIN users u ON u.id = k.user_id WHERE"
               " (s.refresh = $1 OR s.previous = $1) AND s.ended = 0 AND s.refresh_expires > $2"
               " AND k.revoked = 0 AND u.disabled = 0 AND (k.expires = 0 OR k.expires > $2)",
               "bi", out->hash, sizeof(out->hash), ks_now());
    if (rc != 1) {
        return rc < 0 ? -1 : ks_refuse(r, KS_TOKEN, NULL);
    }
    (void)snprintf(out->id, sizeof(out->id), "%s", ks_text(rows, 0));
    (void)snprintf(r->user.id, sizeof(r->user.id), "%s", ks_text(rows, 1));
    (void)snprintf(r->user.name, sizeof(r->user.name), "%s", ks_text(rows, 2));
    out->used = ks_int(rows, 3);
    return 0;
}

static int end_session(struct ks_request *r, const struct session *s, struct ct_err *err)
{
    return ks_exec(r->ctx.db, err, "UPDATE sessions SET ended = $2 WHERE id = $1", "si", s->id,
                   ks_now()) < 0
               ? -1
               : 0;
}

int ks_post_refresh(struct ks_request *r, struct ct_err *err)
{
    struct tokens t;
    struct session s = {0};
    int rc = find_session(r, &s, err);
    if (rc) {
        return rc;
    }
    if (s.used) {
        r->keep = true;
        return end_session(r, &s, err)
                   ? -1
                   : ks_refuse(r, KS_TOKEN,
                               "this refresh token was used before: the session ended");
    }
    if (make_tokens(r, &t, err)) {
        return -1;
    }
    int64_t n = ks_exec(r->ctx.db, err,
                        "UPDATE sessions SET previous = refresh, access = $2, refresh = $3,"
                        " access_expires = $4, refresh_expires = $5 WHERE id = $1 AND refresh = $6",
                        "sbbiib", s.id, t.access_hash, sizeof(t.access_hash), t.refresh_hash,
                        sizeof(t.refresh_hash), t.access_expires, t.refresh_expires, s.hash,
                        sizeof(s.hash));
    if (n < 1) {
        return n < 0 ? -1 : ks_refuse(r, KS_TOKEN, NULL);
    }
    return answer(r, &t, r->user.name, err);
}

int ks_post_logout(struct ks_request *r, struct ct_err *err)
{
    struct session s = {0};
    int rc = find_session(r, &s, err);
    if (rc) {
        return rc;
    }
    r->data = json_pack("{s:b}", "revoked", 1);
    return end_session(r, &s, err) || ks_record(r, "logout", NULL, err) ? -1 : 0;
}
