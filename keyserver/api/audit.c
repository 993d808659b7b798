#include <stdio.h>
#include <string.h>

#include "keyserver/api/api.h"

enum { RECORDS_MAX = 256, RECORD_MAX = 4096, DAY = 86400 };

struct records {
    json_t *payload;
    const json_t *list;
    json_int_t first;
    const char *previous, *head;
};

static int take(struct ks_request *r, const struct ks_lease *l, struct records *t,
                struct ct_err *err)
{
    if (kx_jws_verify(json_object_get(r->body, "records"), "kvfs-audit+jws",
                      json_object_get(l->claims, "audit"), &t->payload, err)) {
        return err->code == CT_REJECTED ? ks_refuse_err(r, KS_PROOF, err)
                                        : ks_refuse_err(r, KS_JOSE, err);
    }
    int rc = ks_members(r, t->payload, "the records", "version lease first previous records head");
    if (rc) {
        return rc;
    }
    const char *lease = json_string_value(json_object_get(t->payload, "lease"));
    const json_t *first = json_object_get(t->payload, "first");
    t->list = json_object_get(t->payload, "records");
    t->previous = json_string_value(json_object_get(t->payload, "previous"));
    t->head = json_string_value(json_object_get(t->payload, "head"));
    t->first = json_integer_value(first);
    if (!lease || strcmp(lease, l->id) != 0) {
        return ks_refuse(r, KS_PROOF, "the records are of another lease");
    }
    size_t n = json_array_size(t->list);
    if (json_integer_value(json_object_get(t->payload, "version")) != 1 ||
        !json_is_integer(first) || t->first < 1 || !kx_is_hex(t->previous, KX_HEX) ||
        !kx_is_hex(t->head, KX_HEX) || !json_is_array(t->list) || n < 1 || n > RECORDS_MAX) {
        return ks_refuse(r, KS_MALFORMED, "records: 1 to %d, with numbers and heads", RECORDS_MAX);
    }
    return 0;
}

/* Refuses, with what is here. */
static int gap(struct ks_request *r, const struct ks_lease *l, struct ct_err *err)
{
    if (ks_answer_signed(r, "kvfs-head+jws",
                         json_pack("{s:i,s:s,s:I,s:s}", "version", 1, "lease", l->id, "sequence",
                                   (json_int_t)l->audit_count, "head", l->head),
                         err)) {
        return -1;
    }
    return ks_refuse(r, KS_AUDIT, NULL);
}

static int append(struct ks_request *r, struct ks_lease *l, const struct records *t,
                  struct ct_err *err)
{
    char head[KX_HEX + 1];
    size_t i = 0;
    const json_t *record = NULL;
    ks_copy(head, sizeof(head), l->head);
    json_array_foreach(t->list, i, record)
    {
        const char *text = json_string_value(record);
        const int64_t number = t->first + (int64_t)i;
        if (!text || !*text || json_string_length(record) > RECORD_MAX) {
            return ks_refuse(r, KS_MALFORMED, "a record is 1 to %d bytes of text", RECORD_MAX);
        }
        if (kx_audit_next(head, number, text, err) ||
            ks_exec(r->ctx.db, err,
                    "INSERT INTO audit_records (lease_id, sequence, record, at) VALUES"
                    " ($1, $2, $3, $4)",
                    "sisi", l->id, number, text, ks_now()) < 0) {
            return -1;
        }
    }
    if (strcmp(head, t->head) != 0) {
        return gap(r, l, err);
    }
    ks_copy(l->head, sizeof(l->head), head);
    l->audit_count += (int64_t)json_array_size(t->list);
    return 0;
}

static int extend(struct ks_request *r, struct ks_lease *l, struct records *t, struct ct_err *err)
{
    int rc = take(r, l, t, err);
    if (rc) {
        return rc;
    }
    if (l->expires + l->grace + DAY < ks_now()) {
        return ks_refuse(r, KS_LEASE_OLD, NULL);
    }
    if (t->first != l->audit_count + 1 || strcmp(t->previous, l->head) != 0) {
        return gap(r, l, err);
    }
    const int64_t before = l->audit_count;
    rc = append(r, l, t, err);
    if (rc) {
        return rc;
    }
    int64_t n = ks_exec(r->ctx.db, err,
                        "UPDATE leases SET audit_count = $2, audit_head = $3 WHERE id = $1 AND"
                        " audit_count = $4",
                        "sisi", l->id, l->audit_count, l->head, before);
    if (n != 1) {
        return n < 0 ? -1 : ct_err_set(err, CT_BUSY, "records came from elsewhere meanwhile");
    }
    return ks_answer_signed(r, "kvfs-head+jws",
                            json_pack("{s:i,s:s,s:I,s:s}", "version", 1, "lease", l->id, "sequence",
                                      (json_int_t)l->audit_count, "head", l->head),
                            err);
}

int ks_post_audit(struct ks_request *r, struct ct_err *err)
{
    struct records t = {0};
    ks_autolease l = {0};
    const char *id = ks_body_text(r, "lease");
    int rc = ks_body_members(r, "lease records");
    rc = rc ? rc : ks_lease_get(r, id ? id : "", &l, err);
    rc = rc ? rc : extend(r, &l, &t, err);
    json_decref(t.payload);
    return rc;
}
