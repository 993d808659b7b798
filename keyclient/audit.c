#include "keyclient/audit.h"

#include <stdio.h>
#include <string.h>

#include "format/base/secret.h"
#include "keyclient/exchange_parts.h"

static int head_after(const struct kc_audit *a, const json_t *records, char head[static KX_HEX + 1],
                      struct ct_err *err)
{
    size_t i = 0;
    const json_t *record = NULL;
    memcpy(head, a->head, KX_HEX + 1);
    json_array_foreach(records, i, record)
    {
        if (kx_audit_next(head, a->count + 1 + (int64_t)i, json_string_value(record), err)) {
            return -1;
        }
    }
    return 0;
}

int kc_audit_request(const struct kc_audit *a, const struct kc_key *key, json_t *records,
                     struct kc_request *out, struct ct_err *err)
{
    char head[KX_HEX + 1];
    *out = (struct kc_request){.method = "POST", .path = KC_DEPLOY "/audit"};
    if (head_after(a, records, head, err)) {
        json_decref(records);
        return -1;
    }
    kx_autojson pair = kc_key_pair(key, err);
    kx_autojson payload =
        json_pack("{s:i,s:s,s:I,s:s,s:o,s:s}", "version", 1, "lease", a->lease, "first",
                  (json_int_t)a->count + 1, "previous", a->head, "records", records, "head", head);
    json_t *jws = pair && payload ? kx_jws_sign(pair, "kvfs-audit+jws", payload, err) : NULL;
    kx_autojson body = jws ? json_pack("{s:s,s:o}", "lease", a->lease, "records", jws) : NULL;
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    if (!text) {
        return ct_err_set(err, CT_NOMEM, "no memory for audit records");
    }
    ct_buf_puts(&out->body, text);
    ct_wiping_free(text);
    return ct_buf_ok(&out->body, err);
}

/* The data of an answer that refuses, which this one code has. */
static json_t *gap_data(unsigned status, const uint8_t *answer, size_t n)
{
    kx_autojson envelope = status == 409 ? kx_json_parse(answer, n, NULL) : NULL;
    return kc_is(envelope, "error", "audit_gap") ? json_incref(json_object_get(envelope, "data"))
                                                 : NULL;
}

int kc_audit_take(struct kc_audit *a, const json_t *identity, unsigned status,
                  const uint8_t *answer, size_t n, enum kc_again *again, struct ct_err *err)
{
    kx_autojson p = NULL;
    json_t *gap = gap_data(status, answer, n);
    kx_autojson data = gap ? gap : kc_answer(status, answer, n, again, err);
    if (!data ||
        kx_jws_verify(json_object_get(data, "signed"), "kvfs-head+jws", identity, &p, err)) {
        return -1;
    }
    const json_t *sequence = json_object_get(p, "sequence");
    const char *head = json_string_value(json_object_get(p, "head"));
    if (!kc_is_number(p, "version", 1) || !kc_is(p, "lease", a->lease) ||
        !json_is_integer(sequence) || !head || !kx_is_hex(head, KX_HEX)) {
        return ct_err_set(err, CT_REJECTED, "the head does not answer what was sent");
    }
    a->count = json_integer_value(sequence);
    memcpy(a->head, head, sizeof(a->head));
    return 0;
}
