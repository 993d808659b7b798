/*
 * The local policy: whether `data.model.allow` is exactly true, by the subset of Rego v1 that
 * format/policy/README.md states. Everything else (other constructs, false, undefined, a conflict,
 * a text above 64 KiB or nested deeper than 32) is CT_POLICY with a sentence that names it. It
 * never allows by mistake: what is not understood refuses.
 */
#ifndef CT_POLICY_H
#define CT_POLICY_H

#include <jansson.h>

#include "format/base/err.h"

enum { CT_POLICY_MAX = 65536, CT_POLICY_DEPTH = 32 };

/* 0 when allowed; -1 with CT_POLICY (CT_NOMEM). `input` is borrowed; NULL is an empty object. Pure,
 * thread-safe, bounded in time and memory. */
int ct_policy_allow(const char *text, size_t len, const json_t *input, struct ct_err *err);

/* What `input` holds, in one place (policy/input.c). */
struct ct_policy_context {
    const char *host;  /* NULL: gethostname() */
    unsigned uid;      /* of the reader */
    int64_t unix_time; /* seconds */
    const char *path;  /* in the mount, with a leading slash */
    const char *model; /* name of the model: its directory in the mount, "" at the top */
    const char *guard; /* profile of the guard that watches; NULL: none does */
};
/* {"kvfs":{"version"},"host","uid","time" (RFC 3339, UTC),"unix","path","model",
 * "guard":{"profile","ok","findings"}}; owned by the caller. */
json_t *ct_policy_input(const struct ct_policy_context *c);

#endif
