#include "kvfs/publish/session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format/protocol/digest.h"
#include "kvfs/progress.h"
#include "kvfs/publish/logins.h"

enum { CONNECT_SECONDS = 20 };

#define LOGIN "/api/auth/inference-login"
#define REFRESH "/api/auth/refresh"
#define REVOKE "/api/auth/revoke"

/* ---- what login and refresh answer ---- */

static const char *text_of(const json_t *entry, const char *name)
{
    return json_string_value(json_object_get(entry, name));
}

/* Makes the entry to keep, and keeps it. */
static int keep(struct kvfs_logins *l, const char *url, const char *ca, const json_t *data,
                struct ct_err *err)
{
    static const char *const from[] = {"username", "access_token", "expires_at", "refresh_token",
                                       "refresh_expires_at"};
    static const char *const to[] = {"user", "access_token", "access_expires", "refresh_token",
                                     "refresh_expires"};
    json_t *entry = json_pack("{s:s,s:s?}", "url", url, "ca", ca);
    for (size_t i = 0; i < sizeof(from) / sizeof(*from); i++) {
        const char *text = kvfs_api_text(data, from[i], err);
        if (!text || (i == 0 && !kx_is_name(text))) {
            json_decref(entry);
            return text ? ct_err_set(err, CT_MALFORMED, "the server's answer has no user") : -1;
        }
        (void)json_object_set_new(entry, to[i], json_string(text));
    }
    return kvfs_logins_put(l, entry, err) || kvfs_logins_write(l, err) ? -1 : 0;
}

static int post_token(const struct kvfs_api *api, const char *path, const char *name,
                      const char *token, struct kvfs_api_answer *out, struct ct_err *err)
{
    ct_autobuf body = {0};
    kvfs_api_put(&body, "{", name, token);
    ct_buf_putc(&body, '}');
    if (ct_buf_ok(&body, err)) {
        return -1;
    }
    const struct kvfs_api_request q = {
        .method = "POST", .path = path, .body = &body, .once = strcmp(path, REFRESH) == 0};
    return kvfs_api_call(api, &q, out, err);
}

/* ---- going on ---- */

static int connect_to(struct kvfs_api *api, const struct kvfs_server_arg *arg, const char *url,
                      const char *ca, struct ct_err *err)
{
    const struct kvfs_http_config config = {
        .url = url, .ca = ca, .connect_seconds = CONNECT_SECONDS};
    *api = (struct kvfs_api){.command = arg->command, .patience = arg->patience};
    api->http = kvfs_http_open(&config, err);
    if (!api->http) {
        return -1;
    }
    kvfs_http_stop_when(api->http, kvfs_interrupted);
    return 0;
}

static int take_entry(struct kvfs_session *s, const json_t *entry, struct ct_err *err)
{
    const char *token = text_of(entry, "access_token");
    ct_secret_free(s->access);
    s->access = ct_secret_from(token, strlen(token) + 1, err);
    (void)snprintf(s->user, sizeof(s->user), "%s", text_of(entry, "user"));
    return s->access ? 0 : -1;
}

static int refresh(struct kvfs_session *s, struct kvfs_logins *l, json_t *entry, struct ct_err *err)
{
    struct kvfs_api_answer answer = {0};
    const char *url = text_of(entry, "url");
    /* What can't be written must be known before the old token is spent. */
    if (kvfs_logins_write(l, err)) {
        return -1;
    }
    int rc = post_token(&s->api, REFRESH, "refresh_token", text_of(entry, "refresh_token"), &answer,
                        err);
    if (rc && strcmp(answer.code, "token_invalid") == 0) {
        ct_err_set(err, CT_DENIED, "the login to %s has ended: kvfs login %s", url, url);
    }
    json_t *kept = json_incref(entry); /* it is replaced, and its texts are used meanwhile */
    rc = rc || keep(l, url, text_of(entry, "ca"), answer.data, err) ||
         take_entry(s, kvfs_logins_find(l, url), err);
    json_decref(kept);
    json_decref(answer.data);
    return rc ? -1 : 0;
}

/* By this machine's clock, which may be wrong: the server has the last word. */
static bool runs_out(const json_t *entry)
{
    enum { MARGIN = 60 };
    struct tm t = {0};
    const char *end = strptime(text_of(entry, "access_expires"), "%Y-%m-%dT%H:%M:%SZ", &t);
    return !end || timegm(&t) < time(NULL) + MARGIN;
}

/* The URL as kvfs_http has it, so that one server has one entry; NULL stays NULL. */
static int usual_url(const char *url, char buf[static KVFS_URL_MAX + 1], const char **out,
                     struct ct_err *err)
{
    const struct kvfs_http_config config = {.url = url};
    *out = NULL;
    if (!url) {
        return 0;
    }
    struct kvfs_http *h = kvfs_http_open(&config, err);
    if (!h) {
        return -1;
    }
    (void)snprintf(buf, KVFS_URL_MAX + 1, "%s", kvfs_http_url(h));
    *out = buf;
    kvfs_http_close(h);
    return 0;
}

static json_t *find(const struct kvfs_logins *l, const char *url, struct ct_err *err)
{
    json_t *entry = kvfs_logins_find(l, url);
    if (!entry && url) {
        ct_err_set(err, CT_NOKEY, "not logged in to %s: kvfs login %s", url, url);
    } else if (!entry) {
        ct_err_set(err, CT_NOKEY,
                   json_array_size(l->list) ? "logged in to several servers: name one"
                                            : "not logged in to any server");
    }
    return entry;
}

int kvfs_session_open(struct kvfs_session *s, const struct kvfs_server_arg *arg, struct ct_err *err)
{
    kvfs_autologins l = KVFS_LOGINS;
    *s = (struct kvfs_session){0};
    char buf[KVFS_URL_MAX + 1];
    const char *url = NULL;
    if (usual_url(arg->url, buf, &url, err) || kvfs_logins_open(&l, false, err)) {
        return -1;
    }
    json_t *entry = find(&l, url, err);
    if (!entry) {
        return -1;
    }
    const char *ca = arg->ca ? arg->ca : text_of(entry, "ca");
    if (connect_to(&s->api, arg, text_of(entry, "url"), ca, err)) {
        return -1;
    }
    return runs_out(entry) ? refresh(s, &l, entry, err) : take_entry(s, entry, err);
}

/* The server does not know the token any more. Another command may have refreshed it. */
static int refresh_again(struct kvfs_session *s, struct ct_err *err)
{
    kvfs_autologins l = KVFS_LOGINS;
    if (kvfs_logins_open(&l, false, err)) {
        return -1;
    }
    json_t *entry = find(&l, kvfs_http_url(s->api.http), err);
    if (!entry) {
        return -1;
    }
    if (strcmp(text_of(entry, "user"), s->user) != 0) {
        return ct_err_set(err, CT_DENIED, "somebody else logged in to %s meanwhile",
                          kvfs_http_url(s->api.http));
    }
    bool ours =
        strcmp(text_of(entry, "access_token"), (const char *)ct_secret_peek(s->access)) == 0;
    return ours ? refresh(s, &l, entry, err) : take_entry(s, entry, err);
}

int kvfs_session_call(struct kvfs_session *s, struct kvfs_api_request *q,
                      struct kvfs_api_answer *out, struct ct_err *err)
{
    q->bearer = (const char *)ct_secret_peek(s->access);
    int rc = kvfs_api_call(&s->api, q, out, err);
    if (rc && strcmp(out->code, "token_invalid") == 0 && refresh_again(s, err) == 0) {
        q->bearer = (const char *)ct_secret_peek(s->access);
        rc = kvfs_api_call(&s->api, q, out, err);
    }
    q->bearer = NULL;
    return rc;
}

void kvfs_session_close(struct kvfs_session *s)
{
    ct_secret_free(s->access);
    kvfs_http_close(s->api.http);
    *s = (struct kvfs_session){0};
}

/* ---- login ---- */

/* Any key may log in; only one of the right scope is of use here. */
static int check_scope(const struct kvfs_api *api, const json_t *data, struct ct_err *err)
{
    char path[128];
    struct kvfs_api_answer answer = {0};
    const char *user = kvfs_api_text(data, "username", err);
    if (!user || !kx_is_name(user)) {
        return user ? ct_err_set(err, CT_MALFORMED, "the server's answer has no user") : -1;
    }
    (void)snprintf(path, sizeof(path), "/api/resources/%s/models", user);
    const struct kvfs_api_request q = {
        .method = "GET", .path = path, .bearer = text_of(data, "access_token")};
    int rc = kvfs_api_call(api, &q, &answer, err);
    json_decref(answer.data);
    return rc;
}

/* As well as it can be done: the session ends by itself. */
static void revoke(const struct kvfs_api *api, const char *token)
{
    struct ct_err ignored = CT_ERR_INIT;
    struct kvfs_api_answer answer = {0};
    if (token) {
        (void)post_token(api, REVOKE, "refresh_token", token, &answer, &ignored);
        json_decref(answer.data);
    }
}

static int store_login(const struct kvfs_api *api, const char *ca, const json_t *data,
                       struct ct_err *err)
{
    kvfs_autologins l = KVFS_LOGINS;
    const char *url = kvfs_http_url(api->http);
    ct_autofree char *path = ca ? realpath(ca, NULL) : NULL;
    if (kvfs_logins_open(&l, true, err)) {
        return -1;
    }
    json_t *before = json_incref(kvfs_logins_find(&l, url));
    int rc = keep(&l, url, path ? path : ca, data, err);
    if (rc == 0) {
        revoke(api, text_of(before, "refresh_token"));
    }
    json_decref(before);
    return rc;
}

int kvfs_session_login(const struct kvfs_server_arg *arg, const struct ct_secret *key,
                       char user[static 65], char until[static 32], struct ct_err *err)
{
    struct kvfs_api api;
    struct kvfs_api_answer answer = {0};
    if (connect_to(&api, arg, arg->url, arg->ca, err)) {
        return -1;
    }
    int rc = post_token(&api, LOGIN, "api_key", (const char *)ct_secret_peek(key), &answer, err);
    if (rc == 0) {
        rc = check_scope(&api, answer.data, err) || store_login(&api, arg->ca, answer.data, err);
        if (rc) {
            revoke(&api, text_of(answer.data, "refresh_token"));
        } else {
            (void)snprintf(user, 65, "%s", text_of(answer.data, "username"));
            (void)snprintf(until, 32, "%s", text_of(answer.data, "refresh_expires_at"));
        }
    }
    json_decref(answer.data);
    kvfs_http_close(api.http);
    return rc ? -1 : 0;
}

/* ---- logout ---- */

static int tell(const struct kvfs_server_arg *arg, const json_t *entry, struct ct_err *err)
{
    struct kvfs_api api;
    struct kvfs_api_answer answer = {0};
    const char *ca = arg->ca ? arg->ca : text_of(entry, "ca");
    if (connect_to(&api, arg, text_of(entry, "url"), ca, err)) {
        return -1;
    }
    int rc =
        post_token(&api, REVOKE, "refresh_token", text_of(entry, "refresh_token"), &answer, err);
    if (rc && strcmp(answer.code, "token_invalid") == 0) {
        rc = 0; /* it has ended already */
    }
    json_decref(answer.data);
    kvfs_http_close(api.http);
    return rc;
}

int kvfs_session_logout(const struct kvfs_server_arg *arg, bool force, bool *told, char **url,
                        struct ct_err *err)
{
    kvfs_autologins l = KVFS_LOGINS;
    char buf[KVFS_URL_MAX + 1];
    const char *usual = NULL;
    if (usual_url(arg->url, buf, &usual, err) || kvfs_logins_open(&l, false, err)) {
        return -1;
    }
    const json_t *entry = find(&l, usual, err);
    if (!entry) {
        return -1;
    }
    *told = tell(arg, entry, err) == 0;
    if (!*told && !force) {
        return -1;
    }
    *url = strdup(text_of(entry, "url"));
    if (!*url) {
        return ct_err_set(err, CT_NOMEM, "no memory for an URL");
    }
    kvfs_logins_remove(&l, *url);
    return kvfs_logins_write(&l, err);
}
