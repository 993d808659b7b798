#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

static json_t *base64(const uint8_t *p, size_t n)
{
    ct_autobuf text = {0};
    ct_base64_put(&text, p, n);
    return text.failed ? NULL : json_stringn((char *)text.data, text.len);
}

static int no_memory(struct ct_err *err)
{
    return ct_err_set(err, CT_NOMEM, "no memory for an answer");
}

/* The user of the address has to be the one who asks; whatever is not his looks like nothing. */
static int own_address(struct ks_request *r)
{
    return strcmp(r->params[0], r->user.name) == 0 ? 0 : ks_refuse(r, KS_NOT_FOUND, NULL);
}

int ks_own_model(struct ks_request *r, struct ks_model *out, struct ct_err *err)
{
    int rc = own_address(r);
    rc = rc ? rc : ks_model_find(&r->ctx, r->user.name, r->params[1], out, err);
    if (rc) {
        return rc < 0 ? -1 : ks_refuse(r, KS_NOT_FOUND, NULL);
    }
    (void)snprintf(r->audit_model, sizeof(r->audit_model), "%s/%s", out->owner, out->name);
    return 0;
}

json_t *ks_model_json(struct ks_request *r, const struct ks_model *m, struct ct_err *err)
{
    char created[32];
    ks_autorows rows = NULL;
    if (ks_one(r->ctx.db, &rows, err,
               "SELECT COUNT(*) FROM files WHERE model_id = $1 AND generation = $2", "si", m->id,
               m->generation) != 1) {
        return NULL;
    }
    ks_rfc3339(m->created, created);
    json_t *j =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:i}", "id", m->id, "name", m->name, "owner",
                  m->owner, "description", m->description, "created_at", created, "generation",
                  (json_int_t)m->generation, "next_generation", (json_int_t)m->last_generation + 1,
                  "file_count", (json_int_t)(m->generation ? ks_int(rows, 0) : 0),
                  "max_header_bytes", 10 * KS_MIB);
    if (!j) {
        no_memory(err);
    }
    return j;
}

int ks_get_sign_key(struct ks_request *r, struct ct_err *err)
{
    char kid[KS_KID + 1];
    char jku[KS_JKU];
    uint8_t pub[CT_ED25519_PUB];
    ct_autosecret seed = NULL;
    if (ks_user_sign_key(&r->ctx, r->user.id, &seed, pub, kid, err)) {
        return -1;
    }
    (void)snprintf(jku, sizeof(jku), "koalavault://users/%s/sign-key", r->user.name);
    r->data = json_pack("{s:{s:s,s:s,s:s,s:o,s:o,s:s}}", "private_key_jwk", "kty", "okp", "alg",
                        "ed25519", "kid", kid, "x", base64(pub, sizeof(pub)), "d",
                        base64(ct_secret_peek(seed), ct_secret_len(seed)), "jku", jku);
    return r->data ? ks_record(r, "sign-key", NULL, err) : no_memory(err);
}

int ks_get_master_key(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m = {0};
    char jku[KS_JKU];
    ct_autosecret key = NULL;
    int rc = ks_own_model(r, &m, err);
    if (rc || ks_model_master(&r->ctx, &m, &key, err)) {
        return rc ? rc : -1;
    }
    (void)snprintf(jku, sizeof(jku), "koalavault://resources/%s/models/%s/master-key", m.owner,
                   m.name);
    r->data = json_pack("{s:{s:s,s:s,s:s,s:o,s:s}}", "master_key_jwk", "kty", "oct", "alg",
                        "aes256gcm", "kid", m.master_kid, "k",
                        base64(ct_secret_peek(key), ct_secret_len(key)), "jku", jku);
    return r->data ? ks_record(r, "master-key", NULL, err) : no_memory(err);
}

int ks_post_model(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m = {0};
    const char *name = ks_body_text(r, "name");
    const json_t *description = json_object_get(r->body, "description");
    int rc = own_address(r);
    rc = rc ? rc : ks_body_members(r, "name description?");
    if (rc) {
        return rc;
    }
    if (!name || (description && !json_is_string(description) && !json_is_null(description))) {
        return ks_refuse(r, KS_MALFORMED, "name and description are strings");
    }
    const char *text = json_string_value(description);
    (void)snprintf(r->audit_model, sizeof(r->audit_model), "%s/%.64s", r->user.name,
                   kx_is_name(name) ? name : "?");
    if (ks_model_create(&r->ctx, &r->user, name, text ? text : "", &m, err)) {
        return err->code == CT_USAGE    ? ks_refuse_err(r, KS_NAME, err)
               : err->code == CT_EXISTS ? ks_refuse(r, KS_EXISTS, NULL)
                                        : -1;
    }
    r->data = ks_model_json(r, &m, err);
    return r->data ? ks_record(r, "model-created", NULL, err) : -1;
}

int ks_get_model(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m = {0};
    int rc = ks_own_model(r, &m, err);
    if (rc) {
        return rc;
    }
    r->data = ks_model_json(r, &m, err);
    return r->data ? 0 : -1;
}

static int list(struct ks_request *r, json_t *models, struct ct_err *err)
{
    int rc = 0;
    ks_autorows rows =
        ks_query(r->ctx.db, err, "SELECT name FROM models WHERE owner_id = $1 ORDER BY name", "s",
                 r->user.id);
    if (!rows) {
        return -1;
    }
    while ((rc = ks_next(rows, err)) == 1) {
        struct ks_model m = {0};
        rc = ks_model_find(&r->ctx, r->user.name, ks_text(rows, 0), &m, err);
        json_t *one = rc ? NULL : ks_model_json(r, &m, err);
        if (!one || json_array_append_new(models, one)) {
            return -1;
        }
    }
    return rc;
}

int ks_get_models(struct ks_request *r, struct ct_err *err)
{
    int rc = own_address(r);
    if (rc) {
        return rc;
    }
    json_t *models = json_array();
    if (!models || list(r, models, err)) {
        json_decref(models);
        return -1;
    }
    r->data = json_pack("{s:o,s:I}", "models", models, "total_count",
                        (json_int_t)json_array_size(models));
    return r->data ? 0 : no_memory(err);
}
