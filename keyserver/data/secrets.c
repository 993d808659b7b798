#include <stdio.h>
#include <string.h>

#include "keyserver/server.h"

enum { STAMP_LEN = 32 };

static int put(struct ks_ctx *c, const char *id, const char *kind, int64_t expires,
               const struct ct_secret *secret, struct ct_err *err)
{
    ct_autobuf sealed = {0};
    const struct ks_place at = {"secrets", id, "sealed", "", 0};
    if (ks_seal(c->seal, &at, secret, &sealed, err)) {
        return -1;
    }
    return ks_exec(c->db, err,
                   "INSERT INTO secrets (id, kind, created, expires, sealed) VALUES"
                   " ($1, $2, $3, $4, $5)",
                   "ssiib", id, kind, ks_now(), expires, sealed.data, sealed.len) < 0
               ? -1
               : 0;
}

static int get(struct ks_ctx *c, const char *id, struct ct_secret **out, int64_t *expires,
               struct ct_err *err)
{
    ks_autorows rows = NULL;
    size_t n = 0;
    int r = ks_one(c->db, &rows, err, "SELECT sealed, expires FROM secrets WHERE id = $1", "s", id);
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    const struct ks_place at = {"secrets", id, "sealed", "", 0};
    const uint8_t *p = ks_blob(rows, 0, &n);
    *expires = ks_int(rows, 1);
    return ks_unseal(c->seal, &at, p, n, out, err);
}

static int put_jwk(struct ks_ctx *c, const char *id, const char *kind, int64_t expires,
                   const json_t *jwk, struct ct_err *err)
{
    char *text = json_dumps(jwk, JSON_COMPACT);
    ct_autosecret secret = text ? ct_secret_from(text, strlen(text), err) : NULL;
    ct_wiping_free(text);
    return secret ? put(c, id, kind, expires, secret, err) : -1;
}

static int get_jwk(struct ks_ctx *c, const char *id, json_t **out, int64_t *expires,
                   struct ct_err *err)
{
    ct_autosecret text = NULL;
    int r = get(c, id, &text, expires, err);
    if (r) {
        return r;
    }
    *out = kx_json_parse(ct_secret_peek(text), ct_secret_len(text), err);
    return *out ? 0 : -1;
}

int ks_secrets_create(struct ks_ctx *c, struct ct_err *err)
{
    ct_autosecret stamp = NULL;
    ct_autobuf unused = {0};
    const struct ks_place at = {"secrets", "stamp", "sealed", "", 0};
    kx_autojson jwk = kx_jwk_new(err);
    if (!jwk || ks_make_secret(c, &at, STAMP_LEN, &stamp, &unused, err)) {
        return -1;
    }
    return put_jwk(c, "identity", "identity", 0, jwk, err) ||
                   put(c, "stamp", "stamp", 0, stamp, err)
               ? -1
               : 0;
}

int ks_secrets_load(struct ks_ctx *c, struct ks_server *s, struct ct_err *err)
{
    int64_t expires = 0;
    int r = get_jwk(c, "identity", &s->identity, &expires, err);
    r = r ? r : get(c, "stamp", &s->stamp_key, &expires, err);
    if (r > 0) {
        return ct_err_set(err, CT_NOTFOUND, "the database has no identity: run init");
    }
    return r || kx_jwk_thumbprint(s->identity, s->thumbprint, err) ? -1 : 0;
}

void ks_secrets_free(struct ks_server *s)
{
    json_decref(s->identity);
    ct_secret_free(s->stamp_key);
    for (size_t i = 0; i < s->key_count; i++) {
        json_decref(s->keys[i].jwk);
    }
    s->key_count = 0;
}

/* ---- server keys: newest first ---- */

static void keep(struct ks_server *s, const char *kid, json_t *jwk, int64_t expires)
{
    pthread_mutex_lock(&s->keys_lock);
    size_t at = 0;
    while (at < s->key_count && s->keys[at].expires > expires) {
        at++;
    }
    bool have = false;
    for (size_t i = 0; i < s->key_count; i++) {
        have = have || strcmp(s->keys[i].kid, kid) == 0;
    }
    if (!have && at < KS_SERVER_KEYS) {
        if (s->key_count == KS_SERVER_KEYS) {
            json_decref(s->keys[--s->key_count].jwk);
        }
        memmove(&s->keys[at + 1], &s->keys[at], (s->key_count - at) * sizeof(s->keys[0]));
        s->keys[at] = (struct ks_server_key){.jwk = json_incref(jwk), .expires = expires};
        ks_copy(s->keys[at].kid, sizeof(s->keys[at].kid), kid);
        s->key_count++;
    }
    pthread_mutex_unlock(&s->keys_lock);
}

static int64_t newest(struct ks_server *s)
{
    pthread_mutex_lock(&s->keys_lock);
    int64_t expires = s->key_count ? s->keys[0].expires : 0;
    pthread_mutex_unlock(&s->keys_lock);
    return expires;
}

/* The newest of the database: 0 if it is good enough. */
static int load_newest(struct ks_ctx *c, struct ks_server *s, int64_t until, struct ct_err *err)
{
    char id[KX_THUMBPRINT + 1];
    int64_t expires = 0;
    kx_autojson jwk = NULL;
    ks_autorows rows = NULL;
    int r = ks_one(c->db, &rows, err,
                   "SELECT id FROM secrets WHERE kind = 'server-key' AND expires >= $1"
                   " ORDER BY expires DESC LIMIT 1",
                   "i", until);
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    (void)snprintf(id, sizeof(id), "%s", ks_text(rows, 0));
    r = get_jwk(c, id, &jwk, &expires, err);
    if (r == 0) {
        keep(s, id, jwk, expires);
    }
    return r;
}

static int make_newest(struct ks_ctx *c, struct ks_server *s, struct ct_err *err)
{
    char id[KX_THUMBPRINT + 1];
    int64_t expires = ks_now() + s->opt.server_key_seconds;
    kx_autojson jwk = kx_jwk_new(err);
    if (!jwk || kx_jwk_thumbprint(jwk, id, err) ||
        put_jwk(c, id, "server-key", expires, jwk, err)) {
        return -1;
    }
    keep(s, id, jwk, expires);
    return 0;
}

int ks_server_key_refresh(struct ks_ctx *c, struct ks_server *s, struct ct_err *err)
{
    int64_t until = ks_now() + s->opt.server_key_seconds / 2;
    if (newest(s) >= until) {
        return 0;
    }
    if (ks_begin(c->db, KS_WRITE, err)) {
        return -1;
    }
    int r = load_newest(c, s, until, err);
    if (r > 0) {
        r = make_newest(c, s, err);
    }
    if (r < 0) {
        ks_rollback(c->db);
        return -1;
    }
    return ks_commit(c->db, err);
}

json_t *ks_server_key_current(struct ks_server *s, struct ct_err *err)
{
    json_t *jwk = NULL;
    pthread_mutex_lock(&s->keys_lock);
    if (s->key_count && s->keys[0].expires > ks_now()) {
        jwk = kx_jwk_public(s->keys[0].jwk);
    }
    pthread_mutex_unlock(&s->keys_lock);
    if (!jwk) {
        ct_err_set(err, CT_IO, "no server key: the database cannot be written");
    }
    return jwk;
}

int ks_server_key_find(struct ks_ctx *c, struct ks_server *s, const char *kid, json_t **out,
                       struct ct_err *err)
{
    const int64_t now = ks_now();
    int64_t expires = 0;
    *out = NULL;
    pthread_mutex_lock(&s->keys_lock);
    for (size_t i = 0; i < s->key_count; i++) {
        if (strcmp(s->keys[i].kid, kid) == 0 && s->keys[i].expires > now) {
            *out = json_incref(s->keys[i].jwk);
        }
    }
    pthread_mutex_unlock(&s->keys_lock);
    if (*out) {
        return 0;
    }
    int r = strlen(kid) == KX_THUMBPRINT ? get_jwk(c, kid, out, &expires, err) : 1;
    if (r == 0 && expires <= now) { /* "identity" is no thumbprint, but expires at 0 as well */
        json_decref(*out);
        *out = NULL;
        r = 1;
    }
    if (r == 0) {
        keep(s, kid, *out, expires);
    }
    return r;
}
