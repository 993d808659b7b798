#include "kvfs/publish/api.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "format/base/clock.h"
#include "format/canon.h"
#include "kvfs/progress.h"
#include "kvfs/term.h"

enum { ANSWER_MAX = 64 << 20, CALL_SECONDS = 60, SENTENCE_MAX = 400 };
enum { PAUSE_MIN_MS = 300, PAUSE_MAX_MS = 10000, NAP_MS = 100 };

/* ---- one answer ---- */

static enum ct_code kind_of(const char *code, unsigned status)
{
    static const struct {
        const char *code;
        enum ct_code kind;
    } kinds[] = {
        {"denied", CT_DENIED},      {"token_invalid", CT_DENIED}, {"wrong_scope", CT_DENIED},
        {"not_found", CT_NOTFOUND}, {"exists", CT_EXISTS},        {"generation_mismatch", CT_STALE},
        {"rate_limited", CT_IO},
    };
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        if (strcmp(code, kinds[i].code) == 0) {
            return kinds[i].kind;
        }
    }
    return status >= 500 ? CT_IO : CT_REJECTED;
}

/* The sentence may hold anything: who prints it makes it safe. */
static int refused(const json_t *envelope, struct kvfs_api_answer *out, struct ct_err *err)
{
    char sentence[SENTENCE_MAX];
    const char *code = json_string_value(json_object_get(envelope, "error"));
    const char *message = json_string_value(json_object_get(envelope, "message"));
    if (!code || !*code || strlen(code) >= sizeof(out->code)) {
        return ct_err_set(err, CT_MALFORMED, "the server's answer has no code");
    }
    (void)snprintf(out->code, sizeof(out->code), "%s", code);
    ct_utf8_copy(sentence, sizeof(sentence), message ? message : "the server refuses");
    return ct_err_set(err, kind_of(code, out->status), "%s (%s)", sentence, code);
}

static bool is_gateways(unsigned status)
{
    return status >= 502 && status <= 504;
}

static int take(const struct ct_buf *text, struct kvfs_api_answer *out, struct ct_err *err)
{
    json_t *envelope =
        json_loadb(text->len ? (const char *)text->data : "", text->len, JSON_REJECT_DUPLICATES,
                   NULL); /* the parser's error would quote the text */
    const json_t *success = json_object_get(envelope, "success");
    int rc = -1;
    if (!json_is_boolean(success)) {
        rc = ct_err_set(err, is_gateways(out->status) ? CT_IO : CT_MALFORMED,
                        "HTTP status %u, and no answer of a key server", out->status);
    } else if (json_is_false(success)) {
        rc = refused(envelope, out, err);
    } else {
        json_t *data = json_object_get(envelope, "data");
        rc = json_is_object(data) ? 0 : ct_err_set(err, CT_MALFORMED, "an answer without data");
        out->data = rc ? NULL : json_incref(data);
    }
    json_decref(envelope);
    return rc;
}

static int attempt(const struct kvfs_api *api, const struct kvfs_api_request *q,
                   struct kvfs_api_answer *out, struct ct_err *err)
{
    ct_autobuf text = {0};
    const void *body = q->body ? q->body->data : NULL;
    *out = (struct kvfs_api_answer){0};
    *err = (struct ct_err)CT_ERR_INIT;
    if (kvfs_http_call(api->http, q->method, q->path, q->bearer, body, q->body ? q->body->len : 0,
                       q->seconds ? q->seconds : CALL_SECONDS, ANSWER_MAX, &out->status, &text,
                       err)) {
        out->status = 0;
        return -1;
    }
    return take(&text, out, err) ? ct_err_wrap(err, "%s", kvfs_http_url(api->http)) : 0;
}

/* ---- again ---- */

static bool may_repeat(const struct kvfs_api_request *q, const struct kvfs_api_answer *a,
                       const struct ct_err *err)
{
    static const char *const again[] = {"rate_limited", "busy", "unavailable"};
    for (size_t i = 0; i < sizeof(again) / sizeof(*again); i++) {
        if (strcmp(a->code, again[i]) == 0) {
            return true; /* nothing was done */
        }
    }
    return err->code == CT_IO && !*a->code && (!q->once || err->sys == ECONNREFUSED);
}

/* Half of it is chance, so that many clients do not come back at once. */
static int pause_for(unsigned n, int64_t until, struct ct_err *err)
{
    int64_t most = PAUSE_MIN_MS * (INT64_C(1) << (n < 6 ? n : 6));
    most = most < PAUSE_MAX_MS ? most : PAUSE_MAX_MS;
    int64_t end = ct_now_ms() + most / 2 + (int64_t)randombytes_uniform((uint32_t)most / 2);
    end = end < until ? end : until;
    while (ct_now_ms() < end) {
        const struct timespec nap = {.tv_nsec = NAP_MS * 1000000L};
        if (kvfs_check_interrupted(err)) {
            return -1;
        }
        (void)nanosleep(&nap, NULL);
    }
    return 0;
}

int kvfs_api_call(const struct kvfs_api *api, const struct kvfs_api_request *q,
                  struct kvfs_api_answer *out, struct ct_err *err)
{
    struct ct_err own = CT_ERR_INIT;
    struct ct_err *e = err ? err : &own;
    const int64_t until = ct_now_ms() + (int64_t)api->patience * 1000;
    for (unsigned n = 0;; n++) {
        if (attempt(api, q, out, e) == 0) {
            return 0;
        }
        if (!may_repeat(q, out, e) || kvfs_interrupted() || ct_now_ms() >= until) {
            return -1;
        }
        if (n == 0) {
            kvfs_progress_hide();
            kvfs_warn(api->command, "%s; trying again for up to %u s", e->msg, api->patience);
        }
        if (pause_for(n, until, e)) {
            return -1;
        }
    }
}

/* ---- JSON ---- */

const char *kvfs_api_text(const json_t *data, const char *name, struct ct_err *err)
{
    const char *text = json_string_value(json_object_get(data, name));
    if (!text || !*text) {
        ct_err_set(err, CT_MALFORMED, "the server's answer has no %s", name);
        return NULL;
    }
    return text;
}

int kvfs_api_number(const json_t *data, const char *name, uint64_t *out, struct ct_err *err)
{
    const json_t *value = json_object_get(data, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0) {
        return ct_err_set(err, CT_MALFORMED, "the server's answer has no %s", name);
    }
    *out = (uint64_t)json_integer_value(value);
    return 0;
}

void kvfs_api_put(struct ct_buf *body, const char *before, const char *name, const char *value)
{
    ct_buf_printf(body, "%s\"%s\":", before, name);
    ct_canon_string(body, (struct ct_span){value, strlen(value)});
}
