#include <string.h>

#include "keyserver/api/api.h"

#define DEPLOY "/api/deploy/v1"
#define MODEL "/api/resources/:/models/:"

enum {
    PUB_READ = KS_ROUTE_PUBLISHER | KS_ROUTE_READ,
    PUB_WRITE = KS_ROUTE_PUBLISHER | KS_ROUTE_WRITE,
    WRITE_BODY = KS_ROUTE_WRITE | KS_ROUTE_BODY,
};

const struct ks_route ks_routes[] = {
    {"GET", "/healthz", ks_get_health, KS_ROUTE_READ | KS_ROUTE_PLAIN | KS_ROUTE_QUIET, "health"},
    {"GET", "/metrics", ks_get_metrics, KS_ROUTE_READ | KS_ROUTE_PLAIN | KS_ROUTE_QUIET, "metrics"},

    {"POST", DEPLOY "/challenge", ks_post_challenge, KS_ROUTE_BODY | KS_ROUTE_ATTEST, "challenge"},
    {"POST", DEPLOY "/attest", ks_post_attest, WRITE_BODY | KS_ROUTE_ATTEST, "attest"},
    {"POST", DEPLOY "/keys", ks_post_keys, WRITE_BODY, "keys"},
    {"POST", DEPLOY "/renew", ks_post_renew, WRITE_BODY, "renew"},
    {"GET", DEPLOY "/leases/:/wait", ks_get_wait, KS_ROUTE_READ, "wait"},
    {"POST", DEPLOY "/leases/:/end", ks_post_end, WRITE_BODY, "end"},
    {"POST", DEPLOY "/audit", ks_post_audit, WRITE_BODY, "audit"},

    {"POST", "/api/auth/inference-login", ks_post_login, WRITE_BODY | KS_ROUTE_LOGIN, "login"},
    {"POST", "/api/auth/refresh", ks_post_refresh, WRITE_BODY | KS_ROUTE_LOGIN, "refresh"},
    {"POST", "/api/auth/revoke", ks_post_logout, WRITE_BODY | KS_ROUTE_LOGIN, "logout"},
    {"GET", "/api/users/sign-key", ks_get_sign_key, PUB_WRITE, "sign-key"},
    {"GET", "/api/resources/:/models", ks_get_models, PUB_READ, "models"},
    {"POST", "/api/resources/:/models", ks_post_model, PUB_WRITE | KS_ROUTE_BODY, "model"},
    {"GET", MODEL, ks_get_model, PUB_READ, "model-detail"},
    {"GET", MODEL "/master-key", ks_get_master_key, PUB_WRITE, "master-key"},
    {"GET", MODEL "/files", ks_get_files, PUB_READ, "files"},
    {"POST", MODEL "/files", ks_post_files,
     KS_ROUTE_PUBLISHER | KS_ROUTE_BODY | KS_ROUTE_UPLOAD | KS_ROUTE_BULK, "upload"},
    {"DELETE", MODEL "/files", ks_delete_files, PUB_WRITE, "delete"},
    {"GET", MODEL "/files/*", ks_get_file, PUB_READ, "file"},
    {"GET", MODEL "/stages/:", ks_get_stage, PUB_READ, "stage"},
    {"DELETE", MODEL "/stages/:", ks_delete_stage, PUB_WRITE, "unstage"},
    {"POST", MODEL "/generations", ks_post_generation,
     KS_ROUTE_PUBLISHER | KS_ROUTE_BODY | KS_ROUTE_UPLOAD | KS_ROUTE_BULK, "publish"},
    {0},
};

/* Whether the address fits the pattern; the segments that `:` and `*` stand for, by place. */
static bool fits(const char *pattern, const char *url, const char **at, size_t *len)
{
    int n = 0;
    while (*pattern) {
        if (*pattern != ':' && *pattern != '*') {
            if (*pattern++ != *url++) {
                return false;
            }
            continue;
        }
        at[n] = url;
        len[n] = *pattern == '*' ? strlen(url) : strcspn(url, "/");
        if (len[n] == 0) {
            return false;
        }
        url += len[n++];
        pattern++;
    }
    return *url == '\0';
}

const struct ks_route *ks_route_find(const char *method, const char *url, char **params,
                                     enum ks_code *code)
{
    *code = KS_NOT_FOUND;
    for (const struct ks_route *route = ks_routes; route->method; route++) {
        const char *at[KS_PARAMS] = {0};
        size_t len[KS_PARAMS] = {0};
        if (!fits(route->pattern, url, at, len)) {
            continue;
        }
        if (strcmp(route->method, method) != 0) {
            *code = KS_METHOD;
            continue;
        }
        for (int i = 0; i < KS_PARAMS && at[i]; i++) {
            params[i] = strndup(at[i], len[i]);
            if (!params[i]) {
                *code = KS_BUSY;
                return NULL;
            }
        }
        *code = KS_OK;
        return route;
    }
    return NULL;
}
