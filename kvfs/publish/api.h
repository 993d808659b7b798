/*
 * Calls of a key server (keyserver/PROTOCOL.md): the envelope, what its codes mean here, and which
 * calls are made again when no answer came.
 */
#ifndef KVFS_API_H
#define KVFS_API_H

#include <jansson.h>

#include "kvfs/http/http.h"

enum { KVFS_API_CODE = 48 };

struct kvfs_api {
    struct kvfs_http *http;
    const char *command; /* for the one warning that it tries again */
    unsigned patience;   /* seconds for which a call is tried again */
};

struct kvfs_api_request {
    const char *method, *path;
    const char *bearer;        /* NULL: none */
    const struct ct_buf *body; /* JSON; NULL: none */
    bool once;                 /* not again when the server may have seen it */
    unsigned seconds;          /* for each attempt; 0: 60 */
};

struct kvfs_api_answer {
    unsigned status;          /* 0: no answer */
    char code[KVFS_API_CODE]; /* of a refusal; "" otherwise */
    json_t *data;             /* of a success, an object; owned by the caller */
};

/*
 * 0 with data, or -1. What is tried again, with growing and random pauses: `rate_limited`, `busy`,
 * `unavailable`, a gateway's 502 to 504, and no answer at all; never a certificate that does not
 * verify. Refusals have the server's sentence and code in the message: CT_DENIED for `denied`,
 * `token_invalid`, `wrong_scope`; CT_NOTFOUND; CT_EXISTS; CT_STALE for `generation_mismatch`; CT_IO
 * for what is the server's trouble; CT_REJECTED for the rest.
 */
int kvfs_api_call(const struct kvfs_api *api, const struct kvfs_api_request *request,
                  struct kvfs_api_answer *out, struct ct_err *err);

/* A member of an answer that has to be there. NULL with CT_MALFORMED. */
const char *kvfs_api_text(const json_t *data, const char *name, struct ct_err *err);
int kvfs_api_number(const json_t *data, const char *name, uint64_t *out, struct ct_err *err);

/* Appends "NAME":"VALUE", escaped, with `before` in front. */
void kvfs_api_put(struct ct_buf *body, const char *before, const char *name, const char *value);

#endif
