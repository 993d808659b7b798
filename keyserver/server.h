/*
 * A running key server: what its parts share. Made by admin/cmd_serve.c, one a process.
 */
#ifndef KS_SERVER_H
#define KS_SERVER_H

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>

#include "keyserver/data/data.h"

enum { KS_SERVER_KEYS = 8, KS_MIB = 1 << 20 };

struct ks_options {
    struct sockaddr_storage listen;
    socklen_t listen_len;
    unsigned workers, bulk_workers;
    int64_t challenge_seconds, ticket_seconds, server_key_seconds, settle_seconds;
    int64_t keep_days;              /* 0: for ever */
    double rate_login, rate_attest; /* per address and second; 0: no limit */
    size_t max_upload;              /* bytes of a request with headers */
};

/* A short-lived key for JWEs to the server. */
struct ks_server_key {
    char kid[KX_THUMBPRINT + 1];
    json_t *jwk; /* private */
    int64_t expires;
};

struct ks_metrics;
struct ks_rates;

struct ks_server {
    struct ks_options opt;
    const char *database;
    struct ks_seal *seal;
    json_t *identity; /* private JWK */
    char thumbprint[KX_THUMBPRINT + 1];
    struct ct_secret *stamp_key;

    pthread_mutex_t keys_lock; /* guards what follows */
    struct ks_server_key keys[KS_SERVER_KEYS];
    size_t key_count;

    atomic_bool stopping; /* long polls are to be answered now */
    struct ks_metrics *metrics;
    struct ks_rates *rates;
};

/* ---- secrets.c ---- */

/* Makes the server's own secrets (identity, stamp key). Inside a transaction. CT_EXISTS. */
int ks_secrets_create(struct ks_ctx *c, struct ct_err *err);
/* Loads them. Inside a transaction. */
int ks_secrets_load(struct ks_ctx *c, struct ks_server *s, struct ct_err *err);
void ks_secrets_free(struct ks_server *s);
/* Has a server key that is good for long enough yet, made here or by another replica. Transactions
 * of its own. */
int ks_server_key_refresh(struct ks_ctx *c, struct ks_server *s, struct ct_err *err);
/* The newest, as a public JWK; owned by the caller. */
json_t *ks_server_key_current(struct ks_server *s, struct ct_err *err);
/* Of this kid, private; owned by the caller. 1 if there is none. Inside a transaction. */
int ks_server_key_find(struct ks_ctx *c, struct ks_server *s, const char *kid, json_t **out,
                       struct ct_err *err);

#endif
