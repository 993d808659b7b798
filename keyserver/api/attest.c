#include <string.h>

#include "keyserver/api/api.h"

enum { MODELS_MAX = 64, HOST_MAX = 255 };

static int make_ticket(struct ks_request *r, const struct ks_evidence *e, const struct ks_access *a,
                       char ticket[static KS_TOKEN_LEN + 1], struct ct_err *err)
{
    char hash[KX_HEX + 1];
    if (ks_new_token(ticket, err) || kx_hex_sha256(ticket, KS_TOKEN_LEN, hash, err)) {
        return -1;
    }
    char *claims = json_dumps(e->claims, JSON_COMPACT);
    if (!claims) {
        return ct_err_set(err, CT_NOMEM, "no memory for a ticket");
    }
    int64_t n = ks_exec(r->ctx.db, err,
                        "INSERT INTO tickets (hash, expires, apikey_id, user_id, model_id,"
                        " subscription_id, generation, challenge, claims) VALUES"
                        " ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                        "sissssiss", hash, ks_now() + r->server->opt.ticket_seconds, e->apikey.id,
                        e->apikey.user.id, a->model.id, a->owned ? NULL : a->subscription.id,
                        a->model.generation, e->challenge, claims);
    ct_wiping_free(claims);
    return n < 0 ? -1 : 0;
}

/* One model's ticket or refusal; *out is owned by the caller. */
static int ask(struct ks_request *r, const struct ks_evidence *e, const char *model, json_t **out,
               struct ct_err *err)
{
    char ticket[KS_TOKEN_LEN + 1];
    struct ks_access a;
    int rc = ks_access_check(r, &e->apikey.user, model, e->claims, "attest", &a, err);
    if (rc < 0 || (rc == 0 && make_ticket(r, e, &a, ticket, err))) {
        return -1;
    }
    if (ks_record(r, "attest", *r->detail ? r->detail : NULL, err)) {
        return -1;
    }
    *out = rc == 0 ? json_pack("{s:s,s:s,s:I,s:I}", "model", model, "ticket", ticket, "expires_in",
                               (json_int_t)r->server->opt.ticket_seconds, "generation",
                               (json_int_t)a.model.generation)
                   : json_pack("{s:s,s:s,s:s}", "model", model, "error", ks_code_name(r->code),
                               "message", ks_code_sentence(r->code));
    r->code = KS_OK; /* one model's refusal is not the request's */
    r->detail[0] = '\0';
    return *out ? 0 : ct_err_set(err, CT_NOMEM, "no memory for a ticket");
}

static int check_models(struct ks_request *r, const json_t *models)
{
    const size_t n = json_array_size(models);
    if (!json_is_array(models) || n < 1 || n > MODELS_MAX) {
        return ks_refuse(r, KS_MALFORMED, "models: 1 to %d", MODELS_MAX);
    }
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(models, i));
        char owner[KS_NAME_LEN + 1];
        char half[KS_NAME_LEN + 1];
        if (!kx_split_model(name, owner, half)) {
            return ks_refuse(r, KS_NAME, "a model is OWNER/NAME");
        }
        for (size_t k = 0; k < i; k++) {
            if (strcmp(json_string_value(json_array_get(models, k)), name) == 0) {
                return ks_refuse(r, KS_MALFORMED, "models: one twice");
            }
        }
    }
    return 0;
}

static int check(struct ks_request *r, struct ks_evidence *e, struct ct_err *err)
{
    int rc = ks_members(r, e->plain, "the evidence",
                        "version versions challenge api_key models keys measurements guard host"
                        " hardware binding");
    rc = rc ? rc : check_models(r, json_object_get(e->plain, "models"));
    rc = rc ? rc : ks_evidence_take_keys(r, e, err);
    if (rc) {
        return rc;
    }
    json_t *host = json_object_get(e->plain, "host");
    if (!kx_is_text(json_string_value(host), HOST_MAX)) {
        return ks_refuse(r, KS_MALFORMED, "host is not a short text");
    }
    return json_object_set(e->claims, "host", host) ? -1 : ks_evidence_check(r, e, NULL, err);
}

int ks_post_attest(struct ks_request *r, struct ct_err *err)
{
    size_t i = 0;
    const json_t *model = NULL;
    ks_autoevidence e = {0};
    int rc = ks_evidence_open(r, "kvfs-evidence+jwe", &e, err);
    rc = rc ? rc : check(r, &e, err);
    if (rc) {
        return rc;
    }
    kx_autojson results = json_array();
    json_array_foreach(json_object_get(e.plain, "models"), i, model)
    {
        json_t *one = NULL;
        if (ask(r, &e, json_string_value(model), &one, err) ||
            json_array_append_new(results, one)) {
            return -1;
        }
    }
    return ks_answer_signed(r, "kvfs-ticket+jws",
                            json_pack("{s:i,s:s,s:s,s:O}", "version", 1, "challenge", e.challenge,
                                      "evidence", e.evidence, "results", results),
                            err);
}
