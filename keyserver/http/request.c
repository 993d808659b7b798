#include "keyserver/http/request.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int64_t ks_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

__attribute__((format(printf, 2, 0))) static void detail_of(struct ks_request *r, const char *fmt,
                                                            va_list ap)
{
    (void)vsnprintf(r->detail, sizeof(r->detail), fmt, ap);
}

int ks_refuse(struct ks_request *r, enum ks_code code, const char *detail, ...)
{
    va_list ap;
    va_start(ap, detail);
    r->code = code;
    r->detail[0] = '\0';
    if (detail) {
        detail_of(r, detail, ap);
    }
    va_end(ap);
    return 1;
}

/* A message can quote a hostile file; an answer has to be UTF-8. */
int ks_refuse_err(struct ks_request *r, enum ks_code code, const struct ct_err *err)
{
    (void)ks_refuse(r, code, "%s", err->msg);
    size_t n = strlen(r->detail);
    while (n && !ct_utf8_ok((uint8_t *)r->detail, n)) { /* cut in the middle of a character */
        r->detail[--n] = '\0';
    }
    return 1;
}

int ks_prepare_first(struct ks_request *r, int (*prepare)(struct ks_request *r, struct ct_err *err),
                     struct ct_err *err)
{
    if (r->prepared) {
        return ct_err_set(err, CT_BUSY, "what was made is gone again");
    }
    r->prepare = prepare;
    return 1;
}

void ks_request_reset(struct ks_request *r)
{
    json_decref(r->data);
    json_decref(r->payload);
    r->data = r->payload = NULL;
    r->code = KS_OK;
    r->detail[0] = '\0';
    r->keep = false;
    r->wait_until_ns = 0;
    r->audit_user[0] = r->audit_model[0] = r->audit_lease[0] = '\0';
}

const char *ks_body_text(const struct ks_request *r, const char *name)
{
    return json_string_value(json_object_get(r->body, name));
}

int ks_members(struct ks_request *r, const json_t *object, const char *what, const char *names)
{
    size_t count = 0;
    if (!json_is_object(object)) {
        return ks_refuse(r, KS_MALFORMED, "%s is not an object", what);
    }
    for (const char *p = names; *p;) {
        char name[64];
        size_t n = strcspn(p, " ");
        bool optional = p[n - 1] == '?';
        (void)snprintf(name, sizeof(name), "%.*s", (int)(n - optional), p);
        bool have = json_object_get(object, name) != NULL;
        if (!have && !optional) {
            return ks_refuse(r, KS_MALFORMED, "%s has no member \"%s\"", what, name);
        }
        count += have;
        p += n + (p[n] == ' ');
    }
    return json_object_size(object) == count
               ? 0
               : ks_refuse(r, KS_MALFORMED, "%s has a member that is not known", what);
}

int ks_body_members(struct ks_request *r, const char *names)
{
    return ks_members(r, r->body, "the body", names);
}

const char *ks_query_value(const struct ks_request *r, const char *name)
{
    return MHD_lookup_connection_value(r->connection, MHD_GET_ARGUMENT_KIND, name);
}

int ks_answer_signed(struct ks_request *r, const char *typ, json_t *payload, struct ct_err *err)
{
    if (!payload) {
        return ct_err_set(err, CT_NOMEM, "no memory for an answer");
    }
    r->typ = typ;
    r->payload = payload;
    r->data = json_object();
    return r->data ? 0 : ct_err_set(err, CT_NOMEM, "no memory for an answer");
}

static const char *or_null(const char *text)
{
    return *text ? text : NULL;
}

int ks_record(struct ks_request *r, const char *event, const char *detail, struct ct_err *err)
{
    const char *user = *r->audit_user ? r->audit_user : r->user.name;
    const struct ks_event e = {
        .event = event,
        .code = ks_code_name(r->code),
        .user = or_null(user),
        .model = or_null(r->audit_model),
        .lease = or_null(r->audit_lease),
        .address = r->address,
        .detail = detail,
    };
    return ks_audit(&r->ctx, &e, err);
}
