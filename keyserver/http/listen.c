#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "format/base/log.h"
#include "keyserver/api/api.h"
#include "keyserver/http/lanes.h"
#include "keyserver/http/tls.h"

enum {
    NEW,
    RUNNING,
    ANSWERED,
    IDLE_SECONDS = 30,      /* without a byte */
    BODY_SECONDS = 120,     /* for a whole request */
    BODY_MAX = 4 * KS_MIB,  /* of a request that is no upload */
    DROP_MAX = 64 * KS_MIB, /* what is read of a body that is refused, so that the answer arrives */
    CONNECTIONS = 4096,
};
/* AES-128 first: its suites go with SHA-256, which processors help with. */
#define PRIORITIES                                                                                 \
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:"            \
    "+CHACHA20-POLY1305:%SERVER_PRECEDENCE"
#define BUDGET ((size_t)768 * KS_MIB) /* of all bodies together */

struct ks_listener {
    struct ks_server *server;
    struct MHD_Daemon *daemon;
    struct ks_lanes *lanes;
    atomic_size_t budget; /* in use */
};

/* ---- the beginning of a request ---- */

static void set_address(struct ks_request *r)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(r->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *a = info ? info->client_addr : NULL;
    if (a && a->sa_family == AF_INET) {
        (void)inet_ntop(AF_INET, &((const struct sockaddr_in *)a)->sin_addr, r->address,
                        sizeof(r->address));
    } else if (a && a->sa_family == AF_INET6) {
        /* A customer has a whole /64. */
        struct in6_addr net = ((const struct sockaddr_in6 *)a)->sin6_addr;
        memset(&net.s6_addr[8], 0, 8);
        (void)inet_ntop(AF_INET6, &net, r->address, sizeof(r->address));
    }
}

static size_t limit_of(const struct ks_request *r)
{
    unsigned flags = r->route ? r->route->flags : 0;
    return flags & KS_ROUTE_UPLOAD ? r->server->opt.max_upload
           : flags & KS_ROUTE_BODY ? BODY_MAX
                                   : 0;
}

static uint64_t announced(const struct ks_request *r)
{
    const char *length =
        MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    return length ? strtoull(length, NULL, 10) : 0;
}

/* What can be refused before a byte of the body is read. */
static void refuse_early(struct ks_request *r)
{
    if (r->route && r->route->flags & KS_ROUTE_PUBLISHER && !ks_token_plausible(r)) {
        (void)ks_refuse(r, KS_TOKEN, NULL);
    } else if (r->route && announced(r) > limit_of(r)) {
        (void)ks_refuse(r, KS_TOO_LARGE, "at most %zu bytes", limit_of(r));
    }
}

static struct ks_request *begin(struct ks_listener *l, struct MHD_Connection *c, const char *url,
                                const char *method)
{
    enum ks_code code = KS_OK;
    struct ks_request *r = calloc(1, sizeof(*r));
    if (!r) {
        return NULL;
    }
    r->server = l->server;
    r->connection = c;
    r->started_ns = ks_monotonic_ns();
    set_address(r);
    r->route = ks_route_find(method, url, r->params, &code);
    const char *authorization =
        MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    if (authorization && strncasecmp(authorization, "Bearer ", 7) == 0) {
        r->token = strdup(authorization + 7);
    }
    if (code != KS_OK) {
        (void)ks_refuse(r, code, NULL);
    } else {
        refuse_early(r);
    }
    return r;
}

static void request_free(struct ks_listener *l, struct ks_request *r)
{
    atomic_fetch_sub(&l->budget, r->budget);
    for (int i = 0; i < KS_PARAMS; i++) {
        free(r->params[i]);
    }
    ct_wiping_free(r->token);
    ct_buf_free(&r->raw);
    json_decref(r->body);
    json_decref(r->data);
    json_decref(r->payload);
    free(r);
}

/* ---- its body ---- */

static enum MHD_Result take_body(struct ks_listener *l, struct ks_request *r, const char *data,
                                 size_t n)
{
    if (ks_monotonic_ns() - r->started_ns > (int64_t)BODY_SECONDS * 1000000000) {
        return MHD_NO;
    }
    if (r->code != KS_OK) {
        r->dropped += n;
        return r->dropped > DROP_MAX ? MHD_NO : MHD_YES;
    }
    if (r->raw.len + n > limit_of(r)) {
        ct_buf_free(&r->raw);
        (void)ks_refuse(r, KS_TOO_LARGE, "at most %zu bytes", limit_of(r));
        return MHD_YES;
    }
    r->budget += n;
    if (atomic_fetch_add(&l->budget, n) + n > BUDGET) {
        ct_buf_free(&r->raw);
        (void)ks_refuse(r, KS_BUSY, NULL);
        return MHD_YES;
    }
    ct_buf_put(&r->raw, data, n);
    return r->raw.failed ? MHD_NO : MHD_YES;
}

/* ---- its answer ---- */

static void free_answer(void *p)
{
    ct_wiping_free(p);
}

static enum MHD_Result answer(struct ks_listener *l, struct ks_request *r)
{
    struct ct_err err = CT_ERR_INIT;
    struct ct_buf text = {0};
    r->state = ANSWERED;
    ks_metrics_count(l->server->metrics, r->route, r->code, ks_monotonic_ns() - r->started_ns);
    if (ks_render(r, &text, &err)) {
        ct_buf_free(&text);
        return MHD_NO;
    }
    struct MHD_Response *response =
        MHD_create_response_from_buffer_with_free_callback(text.len, text.data, free_answer);
    if (!response) {
        ct_buf_free(&text);
        return MHD_NO;
    }
    const bool metrics = r->route && r->route->run == ks_get_metrics && r->code == KS_OK;
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
                                  metrics
                                      ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                      : "application/json");
    (void)MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (r->code == KS_RATE || r->code == KS_BUSY) {
        (void)MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, "1");
    }
    enum MHD_Result rc = MHD_queue_response(r->connection, ks_code_status(r->code), response);
    MHD_destroy_response(response);
    return rc;
}

/* The order matters: once it is submitted, a worker may resume it at any time. */
static enum MHD_Result submit(struct ks_listener *l, struct ks_request *r)
{
    r->state = RUNNING;
    (void)MHD_suspend_connection(r->connection);
    if (!ks_lanes_submit(l->lanes, r)) {
        (void)ks_refuse(r, KS_BUSY, NULL);
        MHD_resume_connection(r->connection);
    }
    return MHD_YES;
}

static void done(struct ks_request *r)
{
    MHD_resume_connection(r->connection);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **state)
{
    struct ks_listener *l = cls;
    struct ks_request *r = *state;
    (void)version;
    if (!r) {
        *state = r = begin(l, c, url, method);
        /* Answered at once, and the connection closed. */
        return !r ? MHD_NO : r->code != KS_OK && announced(r) > DROP_MAX ? answer(l, r) : MHD_YES;
    }
    if (*size) {
        size_t n = *size;
        *size = 0;
        return r->state == NEW ? take_body(l, r, data, n) : MHD_YES;
    }
    if (r->state == NEW && r->code == KS_OK) {
        return submit(l, r);
    }
    return r->state == ANSWERED ? MHD_YES : answer(l, r);
}

static void on_completed(void *cls, struct MHD_Connection *c, void **state,
                         enum MHD_RequestTerminationCode how)
{
    (void)c;
    (void)how;
    if (*state) {
        request_free(cls, *state);
        *state = NULL;
    }
}

__attribute__((format(printf, 2, 0))) static void on_log(void *cls, const char *fmt, va_list ap)
{
    static struct ct_ratelimit limit;
    unsigned missed = 0;
    char line[256];
    (void)cls;
    (void)vsnprintf(line, sizeof(line), fmt, ap);
    line[strcspn(line, "\n")] = '\0';
    if (ct_ratelimit_take(&limit, 2, &missed)) {
        ct_log(CT_LOG_DEBUG, "http: %s", line);
    }
}

/* ---- start and stop ---- */

/* Not epoll: with that, MHD spins while the client's half of a handshake is on its way. What is
 * suspended (every long poll) is not polled, so that few descriptors are. */
static struct MHD_Daemon *start(struct ks_listener *l)
{
    const struct ks_options *opt = &l->server->opt;
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_TLS |
                     MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    if (opt->listen.ss_family == AF_INET6) {
        flags |= MHD_USE_DUAL_STACK;
    }
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, l, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_SOCK_ADDR, (const struct sockaddr *)&opt->listen, MHD_OPTION_HTTPS_CERT_CALLBACK,
        ks_tls_choose, MHD_OPTION_HTTPS_PRIORITIES, PRIORITIES, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
        MHD_OPTION_THREAD_POOL_SIZE, 2U, MHD_OPTION_LISTENING_ADDRESS_REUSE, 1U,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, l, MHD_OPTION_END);
}

int ks_listen(struct ks_server *s, const char *cert, const char *key, struct ks_listener **out,
              struct ct_err *err)
{
    struct ks_listener *l = calloc(1, sizeof(*l));
    *out = NULL;
    if (!l) {
        return ct_err_set(err, CT_NOMEM, "no memory for a listener");
    }
    l->server = s;
    int r = ks_tls_load(cert, key, err) || ks_lanes_start(s, done, &l->lanes, err);
    if (r == 0) {
        l->daemon = start(l);
        r = l->daemon ? 0 : ct_err_set(err, CT_IO, "cannot listen: the address is taken");
    }
    if (r) {
        ks_listen_stop(l, 0);
        return -1;
    }
    *out = l;
    return 0;
}

unsigned ks_listen_port(const struct ks_listener *l)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(l->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info ? info->port : 0;
}

void ks_listen_stop(struct ks_listener *l, unsigned seconds)
{
    atomic_store(&l->server->stopping, true);
    MHD_socket listening = l->daemon ? MHD_quiesce_daemon(l->daemon) : MHD_INVALID_SOCKET;
    if (l->lanes) {
        ks_lanes_stop(l->lanes, seconds);
    }
    if (l->daemon) {
        /* What was resumed just now is sent before the connections are closed. */
        const struct timespec pause = {0, 200000000};
        nanosleep(&pause, NULL);
        MHD_stop_daemon(l->daemon);
    }
    ks_lanes_free(l->lanes); /* connections that were open could submit until now */
    if (listening != MHD_INVALID_SOCKET) {
        close(listening);
    }
    ks_tls_free();
    free(l);
}
