#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#include "keyserver/data/data.h"

int ks_make_secret(struct ks_ctx *c, const struct ks_place *at, size_t len,
                   struct ct_secret **secret, struct ct_buf *sealed, struct ct_err *err)
{
    *secret = ct_secret_new(len, err);
    if (!*secret) {
        return -1;
    }
    if (RAND_priv_bytes(ct_secret_bytes(*secret), (int)len) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    return ks_seal(c->seal, at, *secret, sealed, err);
}

static bool is_kid(struct ct_span have, const char *wanted)
{
    return ct_span_is(have, wanted, strlen(wanted));
}

static int master(struct ct_keysource *ks, const struct ct_keyref *ref, struct ct_secret **out,
                  struct ct_err *err)
{
    struct ks_keys *k = (struct ks_keys *)ks;
    if (ref->alg != CT_ALG_AES256GCM) {
        return ct_err_set(err, CT_REJECTED, "the header is not for aes256gcm");
    }
    if (!is_kid(ref->kid, k->master_kid)) {
        return ct_err_set(err, CT_NOKEY, "the header names another master key than %s",
                          k->master_kid);
    }
    *out = ct_secret_from(ct_secret_peek(k->master), ct_secret_len(k->master), err);
    return *out ? 0 : -1;
}

static int verify(struct ct_keysource *ks, const struct ct_keyref *ref,
                  uint8_t pub[static CT_ED25519_PUB], struct ct_err *err)
{
    struct ks_keys *k = (struct ks_keys *)ks;
    if (!is_kid(ref->kid, k->sign_kid)) {
        return ct_err_set(err, CT_NOKEY, "the header names another sign key than %s", k->sign_kid);
    }
    memcpy(pub, k->pub, CT_ED25519_PUB);
    return 0;
}

int ks_keys_of_owner(struct ks_ctx *c, const struct ks_model *m, struct ks_keys *out,
                     struct ct_err *err)
{
    *out = (struct ks_keys){.source = {master, verify}};
    (void)snprintf(out->master_kid, sizeof(out->master_kid), "%s", m->master_kid);
    return ks_model_master(c, m, &out->master, err) ||
                   ks_user_sign_key(c, m->owner_id, &out->seed, out->pub, out->sign_kid, err)
               ? -1
               : 0;
}

int ks_keys_of_subscription(struct ks_ctx *c, const char *id, struct ks_keys *out,
                            struct ct_err *err)
{
    ks_autorows rows = NULL;
    size_t n = 0;
    *out = (struct ks_keys){.source = {master, verify}};
    int r = ks_one(c->db, &rows, err,
                   "SELECT master_kid, master_sealed, sign_kid, sign_sealed, user_id, model_id"
                   " FROM subscriptions WHERE id = $1",
                   "s", id);
    if (r != 1) {
        return r < 0 ? -1 : ct_err_set(err, CT_NOTFOUND, "the subscription is gone");
    }
    (void)snprintf(out->master_kid, sizeof(out->master_kid), "%s", ks_text(rows, 0));
    (void)snprintf(out->sign_kid, sizeof(out->sign_kid), "%s", ks_text(rows, 2));
    char owner[KS_OWNER_TEXT];
    ks_subscription_place(ks_text(rows, 4), ks_text(rows, 5), owner);
    const struct ks_place at_master = {"subscriptions", id, "master_sealed", owner, 0};
    const struct ks_place at_seed = {"subscriptions", id, "sign_sealed", owner, 0};
    const uint8_t *p = ks_blob(rows, 1, &n);
    if (ks_unseal(c->seal, &at_master, p, n, &out->master, err)) {
        return -1;
    }
    p = ks_blob(rows, 3, &n);
    /* The public half out of the seed: the column beside it is anybody's who can write SQL. */
    return ks_unseal(c->seal, &at_seed, p, n, &out->seed, err) ||
                   ct_ed25519_public(out->seed, out->pub, err)
               ? -1
               : 0;
}

void ks_keys_free(struct ks_keys *k)
{
    ct_secret_free(k->master);
    ct_secret_free(k->seed);
    *k = (struct ks_keys){0};
}
