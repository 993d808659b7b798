#include <stdio.h>
#include <string.h>

#include "keyserver/admin/admin.h"

enum { LEASE_MIN = 60, LEASE_MAX = 86400 };

int ks_cmd_user_add(struct ks_admin *a, struct ct_err *err)
{
    struct ks_user u;
    if (ks_user_create(&a->ctx, a->words[0], &u, err) ||
        ks_admin_record(a, u.name, NULL, NULL, NULL, err)) {
        return -1;
    }
    return ks_admin_print(a, json_pack("{s:s,s:s}", "user", u.name, "id", u.id), err);
}

int ks_cmd_user_disable(struct ks_admin *a, struct ct_err *err)
{
    struct ks_user u;
    int64_t leases = 0;
    if (ks_admin_user(a, a->words[0], &u, err) ||
        ks_revoke(&a->ctx, KS_USER_ID, u.id, "user disabled", &leases, err) < 0 ||
        ks_admin_record(a, u.name, NULL, NULL, NULL, err)) {
        return -1;
    }
    return ks_admin_print(
        a, json_pack("{s:s,s:I}", "user", u.name, "revoked_leases", (json_int_t)leases), err);
}

int ks_cmd_apikey_add(struct ks_admin *a, struct ct_err *err)
{
    struct ks_user u;
    int64_t expires = 0;
    char id[KS_ID + 1];
    char text[KS_APIKEY_TEXT];
    const char *label = ks_option(a, "label", "");
    if (ks_admin_user(a, a->words[0], &u, err) || ks_option_time(a, "expires", &expires, err) ||
        ks_apikey_create(&a->ctx, &u, ks_option(a, "scope", ""), label, expires, id, text, err) ||
        ks_admin_record(a, u.name, NULL, NULL, id, err)) {
        return -1;
    }
    int r = ks_admin_print(a, json_pack("{s:s,s:s}", "id", id, "api_key", text), err);
    ct_wipe(text, sizeof(text));
    return r;
}

int ks_cmd_model_add(struct ks_admin *a, struct ct_err *err)
{
    struct ks_user u;
    struct ks_model m;
    char owner[KS_NAME_LEN + 1];
    char name[KS_NAME_LEN + 1];
    if (!kx_split_model(a->words[0], owner, name)) {
        return ct_err_set(err, CT_USAGE, "a model is OWNER/NAME");
    }
    if (ks_admin_user(a, owner, &u, err) ||
        ks_model_create(&a->ctx, &u, name, ks_option(a, "description", ""), &m, err) ||
        ks_admin_record(a, u.name, a->words[0], NULL, NULL, err)) {
        return -1;
    }
    return ks_admin_print(a, json_pack("{s:s,s:s}", "model", a->words[0], "id", m.id), err);
}

static bool are_profiles(const char *list)
{
    char one[40];
    for (const char *p = list; *p;) {
        size_t n = strcspn(p, " ");
        (void)snprintf(one, sizeof(one), "%.*s", (int)(n < 39 ? n : 39), p);
        if (!kx_is_profile(one)) {
            return false;
        }
        p += n + (p[n] == ' ');
    }
    return strlen(list) < KS_LIST_TEXT;
}

int ks_cmd_model_set(struct ks_admin *a, struct ct_err *err)
{
    struct ks_model m;
    int64_t lease = 0;
    int64_t grace = 0;
    if (ks_admin_model(a, a->words[0], &m, err) ||
        ks_option_number(a, "lease", m.lease_seconds, LEASE_MAX, &lease, err) ||
        ks_option_number(a, "grace", m.lease_grace, LEASE_MAX, &grace, err)) {
        return -1;
    }
    const char *assurance = ks_option(a, "assurance", m.assurance);
    const char *profiles = ks_option(a, "profiles", m.profiles);
    if (lease < LEASE_MIN || ks_assurance_rank(assurance) < 0 || !are_profiles(profiles)) {
        return ct_err_set(err, CT_USAGE,
                          "--lease is %d to %d seconds, --assurance self-reported, tpm or tee, "
                          "--profiles names with blanks between them",
                          LEASE_MIN, LEASE_MAX);
    }
    char detail[512];
    (void)snprintf(detail, sizeof(detail), "lease %lld, grace %lld, assurance %s, profiles %s",
                   (long long)lease, (long long)grace, assurance, profiles);
    if (ks_exec(a->ctx.db, err,
                "UPDATE models SET lease_seconds = $2, lease_grace = $3, assurance = $4,"
                " profiles = $5 WHERE id = $1",
                "siiss", m.id, lease, grace, assurance, profiles) < 0) {
        return -1;
    }
    return ks_admin_record(a, NULL, a->words[0], NULL, detail, err);
}

int ks_cmd_subscription_add(struct ks_admin *a, struct ct_err *err)
{
    struct ks_user u;
    struct ks_model m;
    char id[KS_ID + 1];
    int64_t expires = 0;
    int64_t leases = 0;
    if (ks_admin_model(a, a->words[0], &m, err) || ks_admin_user(a, a->words[1], &u, err) ||
        ks_option_time(a, "expires", &expires, err) ||
        ks_option_number(a, "max-leases", 0, 1000000, &leases, err) ||
        ks_subscription_create(&a->ctx, &m, &u, expires, leases, id, err) ||
        ks_admin_record(a, u.name, a->words[0], NULL, id, err)) {
        return -1;
    }
    return ks_admin_print(a, json_pack("{s:s}", "id", id), err);
}

int ks_cmd_subscription_set(struct ks_admin *a, struct ct_err *err)
{
    struct ks_subscription s;
    int64_t expires = 0;
    int64_t leases = 0;
    int r = ks_subscription_get(&a->ctx, a->words[0], &s, err);
    if (r) {
        return r < 0 ? -1 : ct_err_set(err, CT_NOTFOUND, "there is no such subscription");
    }
    if (ks_option_time(a, "expires", &expires, err) ||
        ks_option_number(a, "max-leases", s.max_leases, 1000000, &leases, err)) {
        return -1;
    }
    if (!ks_option(a, "expires", NULL)) {
        expires = s.expires;
    }
    return ks_exec(a->ctx.db, err,
                   "UPDATE subscriptions SET expires = $2, max_leases = $3 WHERE id = $1", "sii",
                   s.id, expires, leases) < 0 ||
                   ks_admin_record(a, NULL, NULL, NULL, s.id, err)
               ? -1
               : 0;
}

int ks_cmd_baseline_add(struct ks_admin *a, struct ct_err *err)
{
    struct ks_model m;
    char id[KS_ID + 1];
    const char *assurance = ks_option(a, "assurance", "self-reported");
    if (!kx_is_hex(a->words[1], KX_HEX) || ks_assurance_rank(assurance) < 0) {
        return ct_err_set(err, CT_USAGE,
                          "a digest is 64 hexadecimal digits, --assurance self-reported, tpm or "
                          "tee");
    }
    if (ks_admin_model(a, a->words[0], &m, err) || ks_new_id(id, err) ||
        ks_exec(a->ctx.db, err,
                "INSERT INTO baselines (id, model_id, digest, assurance, label, created) VALUES"
                " ($1, $2, $3, $4, $5, $6) ON CONFLICT (model_id, digest) DO UPDATE SET"
                " assurance = excluded.assurance, label = excluded.label, withdrawn = 0",
                "sssssi", id, m.id, a->words[1], assurance, ks_option(a, "label", ""),
                ks_now()) < 0) {
        return -1;
    }
    return ks_admin_record(a, NULL, a->words[0], NULL, a->words[1], err);
}

int ks_cmd_baseline_withdraw(struct ks_admin *a, struct ct_err *err)
{
    struct ks_model m;
    if (ks_admin_model(a, a->words[0], &m, err)) {
        return -1;
    }
    int64_t n = ks_exec(a->ctx.db, err,
                        "UPDATE baselines SET withdrawn = $3 WHERE model_id = $1 AND digest = $2",
                        "ssi", m.id, a->words[1], ks_now());
    if (n < 1) {
        return n < 0 ? -1 : ct_err_set(err, CT_NOTFOUND, "the model has no such baseline");
    }
    return ks_admin_record(a, NULL, a->words[0], NULL, a->words[1], err);
}

int ks_cmd_revoke(struct ks_admin *a, struct ct_err *err)
{
    struct ks_model m;
    int64_t leases = 0;
    const char *verb = a->command->verb;
    const char *id = a->words[0];
    enum ks_what what = strcmp(verb, "lease") == 0          ? KS_LEASE_ID
                        : strcmp(verb, "apikey") == 0       ? KS_APIKEY_ID
                        : strcmp(verb, "subscription") == 0 ? KS_SUBSCRIPTION_ID
                                                            : KS_MODEL_ID;
    if (what == KS_MODEL_ID) {
        if (ks_admin_model(a, id, &m, err)) {
            return -1;
        }
        id = m.id;
    }
    const char *reason = ks_option(a, "reason", "revoked by the administrator");
    if (!kx_is_text(reason, 120)) {
        return ct_err_set(err, CT_USAGE, "--reason is one line of at most 120 bytes");
    }
    int r = ks_revoke(&a->ctx, what, id, reason, &leases, err);
    if (r) {
        return r < 0 ? -1 : ct_err_set(err, CT_NOTFOUND, "there is nothing of this id to end");
    }
    if (ks_admin_record(a, NULL, what == KS_MODEL_ID ? a->words[0] : NULL,
                        what == KS_LEASE_ID ? id : NULL, reason, err)) {
        return -1;
    }
    return ks_admin_print(a, json_pack("{s:I}", "revoked_leases", (json_int_t)leases), err);
}
