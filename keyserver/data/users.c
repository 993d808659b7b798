#include <stdio.h>
#include <string.h>
#include <time.h>

#include "keyserver/data/data.h"

int64_t ks_now(void)
{
    return time(NULL);
}

void ks_rfc3339(int64_t when, char out[static 32])
{
    struct tm utc;
    time_t t = (time_t)when;
    out[0] = '\0';
    if (gmtime_r(&t, &utc)) {
        (void)strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
}

int ks_touch(struct ks_ctx *c, const char *subject, struct ct_err *err)
{
    return ks_exec(c->db, err, "UPDATE changes SET counter = counter + 1 WHERE one = 1", "") < 0 ||
                   ks_exec(c->db, err,
                           "INSERT INTO changed (number, subject) SELECT counter, $1 FROM changes"
                           " WHERE one = 1",
                           "s", subject) < 0
               ? -1
               : 0;
}

static int insert(struct ks_ctx *c, const struct ks_user *u, struct ct_err *err)
{
    char kid[KS_KID + 1];
    uint8_t pub[CT_ED25519_PUB];
    ct_autosecret seed = NULL;
    ct_autobuf sealed = {0};
    const struct ks_place at = {"users", u->id, "sign_sealed", u->id, 0};
    (void)snprintf(kid, sizeof(kid), "%s-sign-%.8s", u->name, u->id);
    if (ks_make_secret(c, &at, CT_ED25519_SEED, &seed, &sealed, err) ||
        ct_ed25519_public(seed, pub, err)) {
        return -1;
    }
    return ks_exec(c->db, err,
                   "INSERT INTO users (id, name, created, sign_kid, sign_pub, sign_sealed)"
                   " VALUES ($1, $2, $3, $4, $5, $6)",
                   "ssisbb", u->id, u->name, ks_now(), kid, pub, sizeof(pub), sealed.data,
                   sealed.len) < 0
               ? -1
               : 0;
}

int ks_user_create(struct ks_ctx *c, const char *name, struct ks_user *out, struct ct_err *err)
{
    *out = (struct ks_user){0};
    if (!kx_is_name(name)) {
        return ct_err_set(err, CT_USAGE,
                          "a user's name is 1 to 64 characters of A-Z a-z 0-9 . _ -");
    }
    ks_copy(out->name, sizeof(out->name), name);
    if (ks_new_id(out->id, err) || insert(c, out, err)) {
        return err->code == CT_EXISTS ? ct_err_set(err, CT_EXISTS, "there is a user %s", name) : -1;
    }
    return 0;
}

int ks_user_find(struct ks_ctx *c, const char *name, struct ks_user *out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(c->db, &rows, err, "SELECT id, name, disabled FROM users WHERE name = $1", "s",
                   name);
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    (void)snprintf(out->id, sizeof(out->id), "%s", ks_text(rows, 0));
    (void)snprintf(out->name, sizeof(out->name), "%s", ks_text(rows, 1));
    out->disabled = ks_int(rows, 2);
    return 0;
}

int ks_user_sign_key(struct ks_ctx *c, const char *id, struct ct_secret **seed,
                     uint8_t pub[static CT_ED25519_PUB], char kid[static KS_KID + 1],
                     struct ct_err *err)
{
    ks_autorows rows = NULL;
    ct_autosecret secret = NULL;
    size_t n = 0;
    int r =
        ks_one(c->db, &rows, err, "SELECT sign_kid, sign_sealed FROM users WHERE id = $1", "s", id);
    if (r != 1) {
        return r < 0 ? -1 : 1;
    }
    ks_copy(kid, KS_KID + 1, ks_text(rows, 0));
    const struct ks_place at = {"users", id, "sign_sealed", id, 0};
    const uint8_t *p = ks_blob(rows, 1, &n);
    /* The public half out of the seed: the column beside it is anybody's who can write SQL. */
    if (ks_unseal(c->seal, &at, p, n, &secret, err) || ct_ed25519_public(secret, pub, err)) {
        return -1;
    }
    if (seed) {
        *seed = secret;
        secret = NULL;
    }
    return 0;
}
