#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

static int check_state(struct ks_request *r, const struct ks_lease *l)
{
    return l->revoked                          ? ks_refuse(r, KS_LEASE_REVOKED, "%s", l->reason)
           : l->ended                          ? ks_refuse(r, KS_LEASE_END, NULL)
           : l->expires + l->grace <= ks_now() ? ks_refuse(r, KS_LEASE_OLD, NULL)
                                               : 0;
}

/* The lease's keys and host are those of its release; the rest is claimed anew. */
static int take_claims(struct ks_evidence *e, const struct ks_lease *l, struct ct_err *err)
{
    e->claims = json_deep_copy(l->claims);
    return e->claims ? 0 : ct_err_set(err, CT_NOMEM, "no memory for claims");
}

static int check(struct ks_request *r, struct ks_evidence *e, struct ks_lease *l,
                 struct ct_err *err)
{
    int rc = ks_members(r, e->plain, "the evidence",
                        "version versions challenge api_key lease measurements guard hardware"
                        " binding");
    if (rc) {
        return rc;
    }
    const char *id = json_string_value(json_object_get(e->plain, "lease"));
    rc = ks_lease_get(r, id ? id : "", l, err);
    if (rc) {
        return rc;
    }
    /* Somebody else's lease looks like none. */
    if (strcmp(l->user_id, e->apikey.user.id) != 0) {
        return ks_refuse(r, KS_LEASE, NULL);
    }
    if (take_claims(e, l, err)) {
        return -1;
    }
    rc = ks_evidence_check(r, e, l->id, err);
    return rc ? rc : check_state(r, l);
}

static int check_access(struct ks_request *r, const struct ks_evidence *e, const struct ks_lease *l,
                        struct ks_access *a, struct ct_err *err)
{
    struct ks_model m;
    char name[2 * KS_NAME_LEN + 2];
    if (!json_equal(json_object_get(e->claims, "measurement"),
                    json_object_get(l->claims, "measurement"))) {
        return ks_refuse(r, KS_MEASUREMENT, NULL);
    }
    struct ks_db *db = r->ctx.db;
    if (ks_hold(db, KS_APIKEYS, e->apikey.id, err) || ks_hold(db, KS_USERS, l->user_id, err) ||
        ks_hold(db, KS_MODELS, l->model_id, err) || ks_model_get(&r->ctx, l->model_id, &m, err)) {
        return -1;
    }
    (void)snprintf(name, sizeof(name), "%s/%s", m.owner, m.name);
    int rc = ks_access_check(r, &e->apikey.user, name, e->claims, "renew", a, err);
    if (rc) {
        return rc;
    }
    return a->owned || strcmp(a->subscription.id, l->subscription_id) == 0
               ? 0
               : ks_refuse(r, KS_SUBSCRIPTION, NULL);
}

static int answer(struct ks_request *r, const struct ks_evidence *e, const struct ks_lease *l,
                  const struct ks_access *a, struct ct_err *err)
{
    json_t *lease = ks_lease_json(l->id, &a->model, a);
    const int64_t grace = json_integer_value(json_object_get(lease, "grace"));
    int64_t n = ks_exec(r->ctx.db, err,
                        "UPDATE leases SET expires = $2, grace = $3 WHERE id = $1 AND revoked = 0"
                        " AND ended = 0",
                        "sii", l->id, ks_now() + ks_lease_seconds(a), grace);
    if (n < 1) {
        json_decref(lease);
        return n < 0 ? -1 : ks_refuse(r, KS_LEASE_REVOKED, NULL);
    }
    json_t *payload = json_pack("{s:i,s:s,s:s,s:s,s:I,s:O,s:o}", "version", 1, "challenge",
                                e->challenge, "evidence", e->evidence, "model", r->audit_model,
                                "generation", (json_int_t)a->model.generation, "assurance",
                                json_object_get(e->claims, "assurance"), "lease", lease);
    return ks_answer_signed(r, "kvfs-lease+jws", payload, err) || ks_record(r, "renew", NULL, err)
               ? -1
               : 0;
}

int ks_post_renew(struct ks_request *r, struct ct_err *err)
{
    ks_autoevidence e = {0};
    ks_autolease l = {0};
    struct ks_access a = {0};
    int rc = ks_evidence_open(r, "kvfs-renewal+jwe", &e, err);
    rc = rc ? rc : check(r, &e, &l, err);
    rc = rc ? rc : check_access(r, &e, &l, &a, err);
    return rc ? rc : answer(r, &e, &l, &a, err);
}
