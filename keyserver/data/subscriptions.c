#include <stdio.h>
#include <string.h>

#include "keyserver/data/data.h"

enum { MASTER_LEN = 32 };

void ks_subscription_place(const char *user_id, const char *model_id, char out[KS_OWNER_TEXT])
{
    (void)snprintf(out, KS_OWNER_TEXT, "%s:%s", user_id, model_id);
}

static int insert(struct ks_ctx *c, const struct ks_model *m, const struct ks_user *user,
                  const struct ks_subscription *s, struct ct_err *err)
{
    char owner[KS_OWNER_TEXT];
    char master_kid[KS_KID + 1];
    char sign_kid[KS_KID + 1];
    uint8_t pub[CT_ED25519_PUB];
    ct_autosecret master = NULL;
    ct_autosecret seed = NULL;
    ct_autobuf sealed_master = {0};
    ct_autobuf sealed_seed = {0};
    ks_subscription_place(user->id, m->id, owner);
    const struct ks_place at_master = {"subscriptions", s->id, "master_sealed", owner, 0};
    const struct ks_place at_seed = {"subscriptions", s->id, "sign_sealed", owner, 0};
    (void)snprintf(master_kid, sizeof(master_kid), "%s-master-%.8s", m->name, s->id);
    (void)snprintf(sign_kid, sizeof(sign_kid), "%s-sign-%.8s", m->name, s->id);
    if (ks_make_secret(c, &at_master, MASTER_LEN, &master, &sealed_master, err) ||
        ks_make_secret(c, &at_seed, CT_ED25519_SEED, &seed, &sealed_seed, err) ||
        ct_ed25519_public(seed, pub, err)) {
        return -1;
    }
    return ks_exec(c->db, err,
                   "INSERT INTO subscriptions (id, model_id, user_id, created, expires, max_leases,"
                   " master_kid, master_sealed, sign_kid, sign_pub, sign_sealed)"
                   " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                   "sssiiisbsbb", s->id, m->id, user->id, s->created, s->expires, s->max_leases,
                   master_kid, sealed_master.data, sealed_master.len, sign_kid, pub, sizeof(pub),
                   sealed_seed.data, sealed_seed.len) < 0
               ? -1
               : 0;
}

int ks_subscription_create(struct ks_ctx *c, const struct ks_model *m, const struct ks_user *user,
                           int64_t expires, int64_t max_leases, char id[static KS_ID + 1],
                           struct ct_err *err)
{
    struct ks_model now;
    struct ks_subscription s = {.created = ks_now(), .expires = expires, .max_leases = max_leases};
    if (strcmp(m->owner_id, user->id) == 0) {
        return ct_err_set(err, CT_USAGE, "the owner needs no subscription");
    }
    if (ks_new_id(s.id, err) || ks_model_lock(c, m->id, err) || ks_model_get(c, m->id, &now, err)) {
        return -1;
    }
    if (insert(c, &now, user, &s, err)) {
        return err->code == CT_EXISTS
                   ? ct_err_set(err, CT_EXISTS, "%s has a running subscription", user->name)
                   : -1;
    }
    ks_copy(id, KS_ID + 1, s.id);
    return 0;
}

#define COLUMNS                                                                                    \
    "SELECT id, model_id, user_id, created, expires, ended, max_leases FROM subscriptions "

static int take(struct ks_rows *rows, struct ks_subscription *s)
{
    (void)snprintf(s->id, sizeof(s->id), "%s", ks_text(rows, 0));
    (void)snprintf(s->model_id, sizeof(s->model_id), "%s", ks_text(rows, 1));
    (void)snprintf(s->user_id, sizeof(s->user_id), "%s", ks_text(rows, 2));
    s->created = ks_int(rows, 3);
    s->expires = ks_int(rows, 4);
    s->ended = ks_int(rows, 5);
    s->max_leases = ks_int(rows, 6);
    return 0;
}

int ks_subscription_find(struct ks_ctx *c, const char *model_id, const char *user_id,
                         struct ks_subscription *out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(c->db, &rows, err,
                   COLUMNS "WHERE model_id = $1 AND user_id = $2"
                           " ORDER BY CASE WHEN ended = 0 THEN 0 ELSE 1 END, ended DESC LIMIT 1",
                   "ss", model_id, user_id);
    return r < 0 ? -1 : r == 0 ? 1 : take(rows, out);
}

int ks_subscription_get(struct ks_ctx *c, const char *id, struct ks_subscription *out,
                        struct ct_err *err)
{
    ks_autorows rows = NULL;
    int r = ks_one(c->db, &rows, err, COLUMNS "WHERE id = $1", "s", id);
    return r < 0 ? -1 : r == 0 ? 1 : take(rows, out);
}
