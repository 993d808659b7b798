#include <stdio.h>
#include <string.h>

#include "format/base/sha256.h"
#include "keyserver/data/data.h"

/* 256 random bits need no slow hash: nobody guesses them. */
int ks_apikey_create(struct ks_ctx *c, const struct ks_user *user, const char *scope,
                     const char *label, int64_t expires, char id[static KS_ID + 1],
                     char text[static KS_APIKEY_TEXT], struct ct_err *err)
{
    char token[KS_TOKEN_LEN + 1];
    uint8_t hash[CT_SHA256_LEN];
    if (strcmp(scope, "publish") != 0 && strcmp(scope, "deploy") != 0) {
        return ct_err_set(err, CT_USAGE, "a scope is publish or deploy");
    }
    if (ks_new_id(id, err) || ks_new_token(token, err)) {
        return -1;
    }
    (void)snprintf(text, KS_APIKEY_TEXT, "kvfs_%s_%s", scope, token);
    ct_wipe(token, sizeof(token));
    if (ct_sha256(text, strlen(text), hash, err)) {
        return -1;
    }
    return ks_exec(c->db, err,
                   "INSERT INTO apikeys (id, user_id, scope, hash, label, created, expires)"
                   " VALUES ($1, $2, $3, $4, $5, $6, $7)",
                   "sssbsii", id, user->id, scope, hash, sizeof(hash), label, ks_now(), expires) < 0
               ? -1
               : 0;
}

int ks_apikey_find(struct ks_ctx *c, const char *text, struct ks_apikey *out, struct ct_err *err)
{
    uint8_t hash[CT_SHA256_LEN];
    ks_autorows rows = NULL;
    if (ct_sha256(text, strlen(text), hash, err)) {
        return -1;
    }
    int r = ks_one(c->db, &rows, err,
                   "SELECT k.id, k.scope, u.id, u.name FROM apikeys k JOIN users u ON u.id ="
                   " k.user_id WHERE k.hash = $1 AND k.revoked = 0 AND u.disabled = 0 AND"
                   " (k.expires = 0 OR k.expires > $2)",
                   "bi", hash, sizeof(hash), ks_now());
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    *out = (struct ks_apikey){0};
    (void)snprintf(out->id, sizeof(out->id), "%s", ks_text(rows, 0));
    (void)snprintf(out->scope, sizeof(out->scope), "%s", ks_text(rows, 1));
    (void)snprintf(out->user.id, sizeof(out->user.id), "%s", ks_text(rows, 2));
    (void)snprintf(out->user.name, sizeof(out->user.name), "%s", ks_text(rows, 3));
    return 0;
}
