#include "keyserver/data/data.h"

/* What ends, and which leases hang on it. */
static const struct {
    const char *end, *leases;
} kinds[] = {
    [KS_LEASE_ID] = {NULL, "UPDATE leases SET revoked = $2, reason = $3 WHERE id = $1 AND"
                           " revoked = 0 AND ended = 0 AND expires + grace > $2"},
    [KS_APIKEY_ID] = {"UPDATE apikeys SET revoked = $2 WHERE id = $1 AND revoked = 0",
                      "UPDATE leases SET revoked = $2, reason = $3 WHERE apikey_id = $1 AND"
                      " revoked = 0 AND ended = 0 AND expires + grace > $2"},
    [KS_SUBSCRIPTION_ID] = {"UPDATE subscriptions SET ended = $2 WHERE id = $1 AND ended = 0",
                            "UPDATE leases SET revoked = $2, reason = $3 WHERE subscription_id = $1"
                            " AND revoked = 0 AND ended = 0 AND expires + grace > $2"},
    [KS_USER_ID] = {"UPDATE users SET disabled = $2 WHERE id = $1 AND disabled = 0",
                    "UPDATE leases SET revoked = $2, reason = $3 WHERE user_id = $1 AND"
                    " revoked = 0 AND ended = 0 AND expires + grace > $2"},
    [KS_MODEL_ID] = {NULL, "UPDATE leases SET revoked = $2, reason = $3 WHERE model_id = $1 AND"
                           " revoked = 0 AND ended = 0 AND expires + grace > $2"},
};

int ks_revoke(struct ks_ctx *c, enum ks_what what, const char *id, const char *reason,
              int64_t *leases, struct ct_err *err)
{
    int64_t now = ks_now();
    int64_t ended = 0;
    if (kinds[what].end) {
        ended = ks_exec(c->db, err, kinds[what].end, "si", id, now);
        if (ended < 0) {
            return -1;
        }
    }
    *leases = ks_exec(c->db, err, kinds[what].leases, "sis", id, now, reason);
    if (*leases < 0 || ks_touch(c, what == KS_LEASE_ID || what == KS_MODEL_ID ? id : "*", err)) {
        return -1;
    }
    return ended == 0 && *leases == 0 ? 1 : 0;
}
