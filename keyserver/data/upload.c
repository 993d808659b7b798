#include <string.h>

#include "format/policy/parse.h"
#include "keyserver/data/data.h"

static int check_policy(const struct ct_policy_field *policy, struct ct_err *err)
{
    struct ct_policy parsed;
    struct ct_err why = CT_ERR_INIT;
    int r = strlen(policy->remote) == policy->remote_len
                ? ct_policy_parse(&parsed, policy->remote, policy->remote_len, &why)
                : ct_err_set(&why, CT_POLICY, "a NUL in it");
    if (strlen(policy->remote) == policy->remote_len) {
        ct_policy_free(&parsed);
    }
    return r ? ct_err_set(err, CT_POLICY, "remote policy: %s", why.msg) : 0;
}

int ks_header_check(struct ks_keys *keys, const uint8_t *header, size_t n,
                    struct ct_header_facts *out, struct ct_err *err)
{
    ct_autobuf again = {0};
    const struct ct_write_keys same = {
        .master = keys->master,
        .alg = CT_ALG_AES256GCM,
        .master_kid = {keys->master_kid, strlen(keys->master_kid)},
        .seed = keys->seed,
        .sign_kid = {keys->sign_kid, strlen(keys->sign_kid)},
    };
    /* Rewrapping unwraps every DEK and compares the immutable parts: what works here works for
     * every subscription. */
    return ct_header_facts(header, n, &keys->source, out, err) || check_policy(&out->policy, err) ||
                   ct_rewrap_header(header, n, CT_BODY_UNKNOWN, &keys->source, &same, &again, err)
               ? -1
               : 0;
}

int ks_stage_put(struct ks_ctx *c, const struct ks_model *m, const char *stage, const char *path,
                 const uint8_t *header, size_t n, const struct ct_header_facts *facts,
                 struct ct_err *err)
{
    char sha256[KX_HEX + 1];
    char immutable[KX_HEX + 1];
    ct_hex(sha256, facts->sha256, sizeof(facts->sha256));
    ct_hex(immutable, facts->immutable, sizeof(facts->immutable));
    if (ks_exec(c->db, err,
                "INSERT INTO stages (model_id, stage, touched) VALUES ($1, $2, $3)"
                " ON CONFLICT (model_id, stage) DO UPDATE SET touched = excluded.touched",
                "ssi", m->id, stage, ks_now()) < 0 ||
        ks_exec(c->db, err, "DELETE FROM staged WHERE model_id = $1 AND stage = $2 AND path = $3",
                "sss", m->id, stage, path) < 0) {
        return -1;
    }
    return ks_exec(c->db, err,
                   "INSERT INTO staged (model_id, stage, path, sha256, immutable, body, size,"
                   " policy, header) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                   "sssssiisb", m->id, stage, path, sha256, immutable, (int64_t)facts->body_len,
                   (int64_t)n, facts->policy.remote, header, n) < 0
               ? -1
               : 0;
}
