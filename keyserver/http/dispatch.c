#include <stdio.h>
#include <string.h>
#include <time.h>

#include "format/base/log.h"
#include "keyserver/api/api.h"

enum { TRIES = 8, AUDITS_A_SECOND = 50 };

/* ---- before the handler ---- */

static int check_rate(struct ks_request *r)
{
    const struct ks_options *opt = &r->server->opt;
    bool good = true;
    if (r->route->flags & KS_ROUTE_LOGIN) {
        good = ks_rate_take(r->server->rates, 'l', r->address, opt->rate_login);
    } else if (r->route->flags & KS_ROUTE_ATTEST) {
        good = ks_rate_take(r->server->rates, 'a', r->address, opt->rate_attest);
    }
    return good ? 0 : ks_refuse(r, KS_RATE, NULL);
}

static int parse_body(struct ks_request *r)
{
    struct ct_err err = CT_ERR_INIT;
    if (!(r->route->flags & KS_ROUTE_BODY) || r->body) {
        return 0;
    }
    r->body = kx_json_parse(r->raw.data ? (char *)r->raw.data : "", r->raw.len, &err);
    ct_buf_free(&r->raw);
    return r->body ? 0 : ks_refuse_err(r, KS_MALFORMED, &err);
}

/* ---- the handler, in its transaction ---- */

static int run_in_transaction(struct ks_request *r, struct ct_err *err)
{
    struct ks_db *db = r->ctx.db;
    enum ks_tx kind = r->route->flags & KS_ROUTE_WRITE ? KS_WRITE : KS_READ;
    if (ks_begin(db, kind, err)) {
        return -1;
    }
    int rc = r->route->flags & KS_ROUTE_PUBLISHER ? ks_authenticate(r, err) : 0;
    rc = rc ? rc : r->route->run(r, err);
    if (r->prepare) {
        ks_rollback(db);
        return rc;
    }
    if (rc == 1 && r->keep) {
        /* The refusal is written with what it leaves. */
        if (ks_record(r, r->route->event, *r->detail ? r->detail : NULL, err)) {
            rc = -1;
        }
    }
    if ((rc == 0 || (rc == 1 && r->keep)) && kind == KS_WRITE) {
        return ks_commit(db, err) ? -1 : rc;
    }
    ks_rollback(db);
    return rc;
}

/* Those that may take long begin transactions themselves, after a short one for the user. */
static int run_long(struct ks_request *r, struct ct_err *err)
{
    if (r->route->flags & KS_ROUTE_PUBLISHER) {
        if (ks_begin(r->ctx.db, KS_READ, err)) {
            return -1;
        }
        int rc = ks_authenticate(r, err);
        ks_rollback(r->ctx.db);
        if (rc) {
            return rc;
        }
    }
    int rc = r->route->run(r, err);
    ks_rollback(r->ctx.db);
    return rc;
}

static int prepare(struct ks_request *r, struct ct_err *err)
{
    int (*what)(struct ks_request * r, struct ct_err * err) = r->prepare;
    r->prepare = NULL;
    r->prepared = true;
    ks_request_reset(r);
    return what(r, err);
}

static int run(struct ks_request *r, struct ct_err *err)
{
    const bool transaction = r->route->flags & (KS_ROUTE_READ | KS_ROUTE_WRITE);
    if (r->prepare) {
        int rc = prepare(r, err);
        if (rc) {
            return rc;
        }
    }
    for (int i = 1;; i++) {
        ks_request_reset(r);
        int rc = transaction ? run_in_transaction(r, err) : run_long(r, err);
        if (rc >= 0 || err->code != CT_BUSY || i == TRIES || !transaction) {
            return rc;
        }
        const struct timespec pause = {0, i * (1000000 + ks_monotonic_ns() % 4000000)};
        nanosleep(&pause, NULL);
    }
}

/* ---- after it ---- */

static int sign(struct ks_request *r, struct ct_err *err)
{
    if (!r->payload) {
        return 0;
    }
    json_t *jws = kx_jws_sign(r->server->identity, r->typ, r->payload, err);
    return jws && json_object_set_new(r->data, "signed", jws) == 0 ? 0 : -1;
}

static void failed(struct ks_request *r, const struct ct_err *err)
{
    static struct ct_ratelimit limit;
    unsigned missed = 0;
    enum ks_code code = err->code == CT_BUSY || err->code == CT_NOMEM ? KS_BUSY
                        : err->code == CT_IO                          ? KS_UNAVAILABLE
                                                                      : KS_INTERNAL;
    ks_request_reset(r);
    (void)ks_refuse(r, code, NULL);
    if (ct_ratelimit_take(&limit, 10, &missed)) {
        ct_log(CT_LOG_ERROR, "%s: %s%s", r->route->event, err->msg,
               missed ? " (and more that are not shown)" : "");
    }
}

static void audit_refusal(struct ks_request *r)
{
    static struct ct_ratelimit limit;
    struct ct_err err = CT_ERR_INIT;
    unsigned missed = 0;
    unsigned status = ks_code_status(r->code);
    if (r->keep || status == 429 || status >= 500 || (r->route->flags & KS_ROUTE_QUIET) ||
        (!*r->user.id && !ct_ratelimit_take(&limit, AUDITS_A_SECOND, &missed))) {
        return;
    }
    if (ks_begin(r->ctx.db, KS_WRITE, &err)) {
        ct_log(CT_LOG_ERROR, "audit: %s", err.msg);
        return;
    }
    if (ks_record(r, r->route->event, *r->detail ? r->detail : NULL, &err) ||
        ks_commit(r->ctx.db, &err)) {
        ks_rollback(r->ctx.db);
        ct_log(CT_LOG_ERROR, "audit: %s", err.msg);
    }
}

void ks_dispatch(struct ks_request *r, struct ks_db *db)
{
    struct ct_err err = CT_ERR_INIT;
    r->ctx = (struct ks_ctx){db, r->server->seal};
    int rc = check_rate(r);
    rc = rc ? rc : parse_body(r);
    rc = rc ? rc : run(r, &err);
    if (r->prepare) {
        return;
    }
    if (rc >= 0 && sign(r, &err)) {
        rc = -1;
    }
    if (rc < 0) {
        failed(r, &err);
    } else if (rc > 0) {
        audit_refusal(r);
    }
    r->ctx.db = NULL;
}

int ks_render(struct ks_request *r, struct ct_buf *out, struct ct_err *err)
{
    char now[32];
    char message[2 * KS_DETAIL];
    if (r->code == KS_OK && r->route && r->route->flags & KS_ROUTE_PLAIN) {
        ct_buf_puts(out, json_string_value(r->data));
        return ct_buf_ok(out, err);
    }
    ks_rfc3339(ks_now(), now);
    (void)snprintf(message, sizeof(message), "%s%s%s", ks_code_sentence(r->code),
                   *r->detail ? ": " : "", r->detail);
    const bool good = r->code == KS_OK;
    kx_autojson envelope = json_pack("{s:b,s:O?,s:s?,s:s?,s:s}", "success", good, "data", r->data,
                                     "message", good ? NULL : message, "error",
                                     good ? NULL : ks_code_name(r->code), "timestamp", now);
    char *text = envelope ? json_dumps(envelope, JSON_COMPACT) : NULL;
    if (!text) {
        return ct_err_set(err, CT_NOMEM, "no memory for an answer");
    }
    ct_buf_puts(out, text);
    ct_wiping_free(text);
    return ct_buf_ok(out, err);
}
