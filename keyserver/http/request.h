/*
 * One request on its way through the server.
 *
 * A handler gets a request with a parsed body, a database in a transaction (as its route says) and,
 * where the route asks for it, the user. It returns 0 with `data` set, 1 after ks_refuse(), or -1
 * with err. What it wrote is committed when it returns 0, or 1 with `keep` set. A handler may be
 * run again from the start when its transaction lost against another one: it keeps nothing outside
 * the request. One that finds that something has to be made first, which may take long, returns
 * what ks_prepare_first() does: all is rolled back, and done again from the start by a worker for
 * what takes long.
 */
#ifndef KS_REQUEST_H
#define KS_REQUEST_H

#include <microhttpd.h>

#include "keyserver/http/codes.h"
#include "keyserver/server.h"

enum { KS_PARAMS = 3, KS_DETAIL = 256, KS_ADDRESS = 64 };

struct ks_request;

enum ks_route_flags {
    KS_ROUTE_READ = 1,      /* in a reading transaction */
    KS_ROUTE_WRITE = 2,     /* in a writing transaction */
    KS_ROUTE_PUBLISHER = 4, /* needs the access token of a publish key */
    KS_ROUTE_BULK = 8,      /* may take long: has workers of its own */
    KS_ROUTE_BODY = 16,     /* the body is a JSON object */
    KS_ROUTE_UPLOAD = 32,   /* of up to max_upload bytes */
    KS_ROUTE_PLAIN = 64,    /* no envelope: data is a JSON string that is sent as it is */
    KS_ROUTE_LOGIN = 128,   /* limited in rate, each by itself */
    KS_ROUTE_ATTEST = 256,
    KS_ROUTE_QUIET = 512, /* refusals are not audited */
};

struct ks_route {
    const char *method;
    const char *pattern; /* segments; `:` takes one, `*` the rest */
    int (*run)(struct ks_request *r, struct ct_err *err);
    unsigned flags;
    const char *event; /* its name in the audit */
};

struct ks_request {
    struct ks_server *server;
    struct MHD_Connection *connection;
    const struct ks_route *route;
    char *params[KS_PARAMS];
    char address[KS_ADDRESS];
    char *token; /* Bearer, or NULL */
    struct ct_buf raw;
    int64_t started_ns;
    size_t budget; /* bytes of the common budget that it holds */
    size_t dropped;

    /* while it runs */
    struct ks_ctx ctx;
    json_t *body;
    struct ks_user user;
    char session_id[KS_ID + 1];

    int (*prepare)(struct ks_request *r, struct ct_err *err); /* to be run first, or NULL */
    bool prepared;

    /* the outcome */
    enum ks_code code;
    char detail[KS_DETAIL]; /* what the sentence adds */
    json_t *data;
    const char *typ; /* with payload: what data is to have, signed */
    json_t *payload;
    bool keep;
    int64_t
        changes; /* with wait_until_ns: the counter of changes that it saw, and what it is for */
    char waits_for[2][KS_ID + 1];
    int64_t
        wait_until_ns; /* CLOCK_MONOTONIC; not 0: run it again when something changed, or then */
    char audit_user[KS_NAME_LEN + 1], audit_model[2 * KS_NAME_LEN + 2], audit_lease[KS_ID + 1];

    /* how far it is; the listener's */
    int state;
    struct ks_request *next;
};

/* Notes the refusal; returns 1. `detail` may be NULL; it never holds anything secret. */
int ks_refuse(struct ks_request *r, enum ks_code code, const char *detail, ...)
    __attribute__((format(printf, 3, 4)));
/* Refuses with what `err` says. */
int ks_refuse_err(struct ks_request *r, enum ks_code code, const struct ct_err *err);

/* Has the request run again after `prepare`, which runs outside a transaction and returns what a
 * handler does; once only. */
int ks_prepare_first(struct ks_request *r, int (*prepare)(struct ks_request *r, struct ct_err *err),
                     struct ct_err *err);

/* A member of the body that is a string, or NULL. */
const char *ks_body_text(const struct ks_request *r, const char *name);
/* Exactly these members (names separated by blanks; one that ends with ? is optional): 0, or
 * refuses. */
int ks_body_members(struct ks_request *r, const char *names);
int ks_members(struct ks_request *r, const json_t *object, const char *what, const char *names);
const char *ks_query_value(const struct ks_request *r, const char *name);

/* Sets data to {"signed": JWS by the identity key}: signed when the transaction is over, so that
 * nobody waits for it. `typ` is a literal; the payload is stolen. */
int ks_answer_signed(struct ks_request *r, const char *typ, json_t *payload, struct ct_err *err);

/* What happened, into the audit, in the handler's own transaction. */
int ks_record(struct ks_request *r, const char *event, const char *detail, struct ct_err *err);

int64_t ks_monotonic_ns(void);

/* ---- routes.c ---- */
extern const struct ks_route ks_routes[];
/* The route and its parameters (allocated into `params`), or NULL with *code. */
const struct ks_route *ks_route_find(const char *method, const char *url, char **params,
                                     enum ks_code *code);

/* ---- dispatch.c ---- */
/* Runs the request on `db`; sets state and answer, or `prepare`: to be run once more. */
void ks_dispatch(struct ks_request *r, struct ks_db *db);
/* The answer's bytes: envelope or plain text. */
int ks_render(struct ks_request *r, struct ct_buf *out, struct ct_err *err);
/* Clears the outcome. */
void ks_request_reset(struct ks_request *r);

/* ---- rate.c ---- */
struct ks_rates *ks_rates_new(struct ct_err *err);
void ks_rates_free(struct ks_rates *r);
/* Whether `address` may do `kind` (one character) once more now. Thread-safe. */
bool ks_rate_take(struct ks_rates *r, char kind, const char *address, double per_second);

/* ---- metrics.c ---- */
struct ks_metrics *ks_metrics_new(struct ct_err *err);
void ks_metrics_free(struct ks_metrics *m);
void ks_metrics_count(struct ks_metrics *m, const struct ks_route *route, enum ks_code code,
                      int64_t ns);
/* OpenMetrics text, without the last line. */
void ks_metrics_put(struct ks_metrics *m, struct ct_buf *out);

/* ---- listen.c ---- */
struct ks_listener;
int ks_listen(struct ks_server *s, const char *cert, const char *key, struct ks_listener **out,
              struct ct_err *err);
unsigned ks_listen_port(const struct ks_listener *l);
/* Takes no more connections, answers what is under way (at most `seconds`), ends. */
void ks_listen_stop(struct ks_listener *l, unsigned seconds);

#endif
