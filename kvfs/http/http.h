/*
 * HTTPS to one server, over libcurl: what every command that talks to a key server uses.
 *
 * One call is one attempt: retrying is the caller's, who knows what may be sent twice. (But a
 * request on a connection that was used before and that the server closed without a byte of an
 * answer is sent again on a new one, as libcurl does; the first call of a handle never is.)
 *
 * TLS 1.2 or later, with the server's certificate and name always verified. No redirects, no
 * cookies, no .netrc, no other protocol. The proxy is that of the environment (https_proxy,
 * all_proxy, no_proxy), which gets a CONNECT and nothing of what is inside. Connections are kept
 * between the calls of a handle. All memory of libcurl is wiped when it is freed; what a caller
 * passes in and gets out is the caller's to wipe (struct ct_buf does).
 *
 * A handle serves one thread at a time; several handles may be used at once. No signal is set or
 * raised, but for SIGPIPE, which the process has to ignore.
 */
#ifndef KVFS_HTTP_H
#define KVFS_HTTP_H

#include <stdbool.h>
#include <stddef.h>

#include "format/base/bytes.h"
#include "format/base/err.h"

enum { KVFS_URL_MAX = 2048 }; /* bytes */

struct kvfs_http_config {
    const char *url; /* https://HOST[:PORT][/PREFIX]; a prefix stands before every path */
    const char *ca;  /* PEM file of the only authorities to trust, or NULL for the system's */
    unsigned connect_seconds; /* for name, connection and TLS together; 0: 300 */
};

struct kvfs_http;

/* Connects to nothing yet. `ca` is read now, once. Nothing of config is kept by reference.
 * NULL: CT_USAGE for an URL of another form, CT_IO or CT_MALFORMED for the CA file,
 * CT_UNSUPPORTED where there is no libcurl. */
struct kvfs_http *kvfs_http_open(const struct kvfs_http_config *config, struct ct_err *err);

/*
 * One request and its answer. `path` begins with '/', is escaped where it has to be, and may have
 * a query. `bearer` is a token or NULL. `body` is n bytes of JSON, or NULL for none. `seconds`
 * (0: no limit) is for all of it, connecting included.
 *
 * 0: the server answered; *status is any HTTP status, and the body, at most `max` bytes, is
 * appended to `out`. -1: nothing to go by, and the message begins with the URL's host:
 *   CT_IO         no answer: no connection, a time-out, a connection lost half-way
 *   CT_REJECTED   the certificate does not verify, or is for another name
 *   CT_MALFORMED  more than `max` bytes, or not HTTP
 *   CT_NOMEM
 * After CT_IO it is not known whether the server did what was asked; but where err->sys is
 * ECONNREFUSED there was no connection (for whatever reason), and it has not seen the request.
 */
int kvfs_http_call(struct kvfs_http *h, const char *method, const char *path, const char *bearer,
                   const void *body, size_t n, unsigned seconds, size_t max, unsigned *status,
                   struct ct_buf *out, struct ct_err *err);

/* From now on a call ends with CT_IO soon (within about a second) after stop() says true; it is
 * asked often, in the thread that calls. */
void kvfs_http_stop_when(struct kvfs_http *h, bool (*stop)(void));

/* The URL as it is used: without slashes at the end. */
const char *kvfs_http_url(const struct kvfs_http *h);

void kvfs_http_close(struct kvfs_http *h); /* NULL is allowed */

#endif
