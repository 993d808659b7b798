#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

static void copy(char *to, size_t cap, struct ks_rows *rows, int column)
{
    (void)snprintf(to, cap, "%s", ks_text(rows, column));
}

int ks_lease_get(struct ks_request *r, const char *id, struct ks_lease *out, struct ct_err *err)
{
    ks_autorows rows = NULL;
    *out = (struct ks_lease){0};
    int rc = kx_is_hex(id, KS_ID)
                 ? ks_one(r->ctx.db, &rows, err,
                          "SELECT id, user_id, apikey_id, model_id, subscription_id, audit_head,"
                          " reason, created, expires, grace, ended, revoked, generation,"
                          " audit_count, claims FROM leases WHERE id = $1",
                          "s", id)
                 : 0;
    if (rc != 1) {
        return rc < 0 ? -1 : ks_refuse(r, KS_LEASE, NULL);
    }
    copy(out->id, sizeof(out->id), rows, 0);
    copy(out->user_id, sizeof(out->user_id), rows, 1);
    copy(out->apikey_id, sizeof(out->apikey_id), rows, 2);
    copy(out->model_id, sizeof(out->model_id), rows, 3);
    copy(out->subscription_id, sizeof(out->subscription_id), rows, 4);
    copy(out->head, sizeof(out->head), rows, 5);
    copy(out->reason, sizeof(out->reason), rows, 6);
    out->created = ks_int(rows, 7);
    out->expires = ks_int(rows, 8);
    out->grace = ks_int(rows, 9);
    out->ended = ks_int(rows, 10);
    out->revoked = ks_int(rows, 11);
    out->generation = ks_int(rows, 12);
    out->audit_count = ks_int(rows, 13);
    const char *claims = ks_text(rows, 14);
    out->claims = kx_json_parse(claims, strlen(claims), err);
    (void)snprintf(r->audit_lease, sizeof(r->audit_lease), "%s", out->id);
    return out->claims ? 0 : -1;
}

void ks_lease_free(struct ks_lease *l)
{
    json_decref(l->claims);
    l->claims = NULL;
}

const char *ks_lease_state(const struct ks_lease *l, int64_t now)
{
    return l->revoked                     ? "revoked"
           : l->ended                     ? "ended"
           : l->expires + l->grace <= now ? "expired"
                                          : "active";
}

int64_t ks_lease_seconds(const struct ks_access *a)
{
    const int64_t most = a->model.lease_seconds;
    const int64_t end = a->owned || !a->subscription.expires ? 0 : a->subscription.expires;
    const int64_t left = end ? end - ks_now() : most;
    return left < most ? left : most;
}

json_t *ks_lease_json(const char *id, const struct ks_model *m, const struct ks_access *a)
{
    const int64_t seconds = ks_lease_seconds(a);
    const int64_t end = a->owned || !a->subscription.expires ? 0 : a->subscription.expires;
    kx_autojson left = end ? json_integer(end - ks_now()) : json_null();
    /* Where the subscription ends, no grace goes beyond it. */
    return json_pack("{s:s,s:I,s:I,s:I,s:O}", "id", id, "seconds", (json_int_t)seconds, "renew",
                     (json_int_t)(seconds / 3), "grace", (json_int_t)(end ? 0 : m->lease_grace),
                     "end", left);
}

/* ---- waiting ---- */

enum { WAIT_MAX = 60 };

static int64_t number(const char *text, int64_t otherwise)
{
    char *end = NULL;
    if (!text || *text < '0' || *text > '9' || strlen(text) > 18) {
        return otherwise;
    }
    int64_t n = strtoll(text, &end, 10);
    return *end ? otherwise : n;
}

static bool is_nonce(const char *text)
{
    size_t n = text ? strlen(text) : 0;
    return n >= 16 && n <= 64 &&
           strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == n;
}

static int64_t count_changes(struct ks_request *r, struct ct_err *err)
{
    ks_autorows rows = NULL;
    int rc = ks_one(r->ctx.db, &rows, err, "SELECT counter FROM changes WHERE one = 1", "");
    return rc == 1 ? ks_int(rows, 0) : -1;
}

/* When the answer is due at the latest; a lease that runs out is answered then. */
static int64_t due(const struct ks_request *r, const struct ks_lease *l, int64_t timeout)
{
    const int64_t by_timeout = r->started_ns + timeout * 1000000000;
    const int64_t by_lease =
        ks_monotonic_ns() + (l->expires + l->grace - ks_now()) * 1000000000 + 100000000;
    return by_lease < by_timeout ? by_lease : by_timeout;
}

int ks_get_wait(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    ks_autolease l = {0};
    const char *nonce = ks_query_value(r, "nonce");
    const int64_t generation = number(ks_query_value(r, "generation"), -1);
    const int64_t timeout = number(ks_query_value(r, "timeout"), 0);
    if (!is_nonce(nonce) || generation < 0 || timeout < 1 || timeout > WAIT_MAX) {
        return ks_refuse(r, KS_MALFORMED, "nonce, generation, timeout (1 to %d)", WAIT_MAX);
    }
    r->changes = count_changes(r, err);
    int rc = r->changes < 0 ? -1 : ks_lease_get(r, r->params[0], &l, err);
    rc = rc ? rc : ks_model_get(&r->ctx, l.model_id, &m, err);
    if (rc) {
        return rc;
    }
    ks_copy(r->waits_for[0], KS_ID + 1, l.id);
    ks_copy(r->waits_for[1], KS_ID + 1, m.id);
    const char *state = ks_lease_state(&l, ks_now());
    if (strcmp(state, "active") == 0 && m.generation == generation &&
        due(r, &l, timeout) > ks_monotonic_ns() && !atomic_load(&r->server->stopping)) {
        r->wait_until_ns = due(r, &l, timeout);
        return 0;
    }
    return ks_answer_signed(r, "kvfs-state+jws",
                            json_pack("{s:i,s:s,s:s,s:s,s:s?,s:I}", "version", 1, "lease", l.id,
                                      "nonce", nonce, "state", state, "reason",
                                      *l.reason ? l.reason : NULL, "generation",
                                      (json_int_t)m.generation),
                            err);
}

/* ---- giving back ---- */

int ks_post_end(struct ks_request *r, struct ct_err *err)
{
    ks_autolease l = {0};
    kx_autojson payload = NULL;
    int rc = ks_body_members(r, "proof");
    rc = rc ? rc : ks_lease_get(r, r->params[0], &l, err);
    if (rc) {
        return rc;
    }
    if (kx_jws_verify(json_object_get(r->body, "proof"), "kvfs-end+jws",
                      json_object_get(l.claims, "sign"), &payload, err)) {
        return err->code == CT_REJECTED ? ks_refuse_err(r, KS_PROOF, err)
                                        : ks_refuse_err(r, KS_JOSE, err);
    }
    kx_autojson wanted = json_pack("{s:i,s:s}", "version", 1, "lease", l.id);
    if (!json_equal(payload, wanted)) {
        return ks_refuse(r, KS_PROOF, "it is for another lease");
    }
    if (!l.ended && !l.revoked &&
        (ks_exec(r->ctx.db, err,
                 "UPDATE leases SET ended = $2, reason = 'given back' WHERE id = $1", "si", l.id,
                 ks_now()) < 0 ||
         ks_touch(&r->ctx, l.id, err) || ks_record(r, "lease-ended", NULL, err))) {
        return -1;
    }
    r->data = json_pack("{s:s}", "state", "ended");
    return r->data ? 0 : ct_err_set(err, CT_NOMEM, "no memory for an answer");
}
