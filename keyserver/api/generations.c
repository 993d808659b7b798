#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

static int check_form(struct ks_request *r, struct ks_publication *p)
{
    int rc = ks_body_members(r, "stage generation manifest");
    if (rc) {
        return rc;
    }
    const json_t *number = json_object_get(r->body, "generation");
    const json_t *manifest = json_object_get(r->body, "manifest");
    p->stage = ks_body_text(r, "stage");
    if (!p->stage || !kx_is_name(p->stage)) {
        return ks_refuse(r, KS_NAME, "the stage");
    }
    if (!json_is_integer(number) || json_integer_value(number) < 1 ||
        !(json_is_null(manifest) || json_is_string(manifest))) {
        return ks_refuse(r, KS_MALFORMED, "generation is a number from 1, manifest text or null");
    }
    p->generation = json_integer_value(number);
    p->manifest = json_string_value(manifest);
    p->manifest_len = json_string_length(manifest);
    return 0;
}

static int answer(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    char detail[64];
    if (ks_begin(r->ctx.db, KS_WRITE, err)) {
        return -1;
    }
    int rc = ks_own_model(r, &m, err);
    if (rc) {
        return rc;
    }
    (void)snprintf(detail, sizeof(detail), "generation %lld", (long long)m.generation);
    r->data = ks_model_json(r, &m, err);
    return !r->data || ks_record(r, "published", detail, err) || ks_commit(r->ctx.db, err) ? -1 : 0;
}

int ks_post_generation(struct ks_request *r, struct ct_err *err)
{
    struct ks_model m;
    struct ks_publication p = {0};
    enum ks_published result;
    int rc = check_form(r, &p);
    if (rc) {
        return rc;
    }
    if (ks_begin(r->ctx.db, KS_READ, err)) {
        return -1;
    }
    rc = ks_own_model(r, &m, err);
    ks_rollback(r->ctx.db);
    rc = rc ? rc : ks_publish(&r->ctx, m.id, &p, &result, err);
    if (rc) {
        return rc;
    }
    switch (result) {
    case KS_NOTHING_STAGED:
        return ks_refuse(r, KS_STAGE_EMPTY, NULL);
    case KS_OTHER_GENERATION:
        return ks_refuse_err(r, KS_GENERATION, err);
    case KS_BAD_MANIFEST:
        return ks_refuse_err(r, KS_MANIFEST, err);
    default:
        return answer(r, err);
    }
}
