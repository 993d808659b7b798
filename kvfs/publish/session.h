/*
 * A producer's session with a key server: made by `kvfs login`, gone on with by its tokens, ended
 * by `kvfs logout`. Commands may use one session at the same time.
 */
#ifndef KVFS_SESSION_H
#define KVFS_SESSION_H

#include "format/base/secret.h"
#include "kvfs/publish/api.h"

struct kvfs_session {
    struct kvfs_api api;
    char user[65];
    struct ct_secret *access; /* with a NUL behind it */
};

/* What commands say of the server. */
struct kvfs_server_arg {
    const char *command;
    const char *url; /* NULL: the only one that is logged in to (not for a login) */
    const char *ca;  /* NULL: the one of the login, else the system's */
    unsigned patience;
};

/* Goes on with a login: CT_NOKEY when there is none, CT_DENIED when it has ended. Where the access
 * token has run out, it is refreshed, and what that gave is kept before this returns. To be closed
 * in any case. */
int kvfs_session_open(struct kvfs_session *s, const struct kvfs_server_arg *arg,
                      struct ct_err *err);
/* As kvfs_api_call(); `bearer` is the session's. A token that ran out is refreshed meanwhile. */
int kvfs_session_call(struct kvfs_session *s, struct kvfs_api_request *request,
                      struct kvfs_api_answer *out, struct ct_err *err);
void kvfs_session_close(struct kvfs_session *s);

/* Logs in and keeps the refresh token; a login that is there already is ended. CT_DENIED for a key
 * of another scope than `publish`. `until` is when it ends by itself. */
int kvfs_session_login(const struct kvfs_server_arg *arg, const struct ct_secret *key,
                       char user[static 65], char until[static 32], struct ct_err *err);
/* Ends the session and forgets it. When the server can't be told, it is forgotten only with
 * `force`; *told is whether it was. *url is the server's (owned by the caller). */
int kvfs_session_logout(const struct kvfs_server_arg *arg, bool force, bool *told, char **url,
                        struct ct_err *err);

#endif
