/*
 * Audit records for the server (keyserver/PROTOCOL.md section 9). What it has by now is what its
 * identity signs, also where it refuses what does not extend that; so a lost answer is made good by
 * the next. Touches no exchange, so that it can run beside one in another thread.
 */
#ifndef KC_AUDIT_H
#define KC_AUDIT_H

#include "keyclient/exchange.h"

enum { KC_AUDIT_RECORDS = 256 }; /* in one request, at most */

struct kc_audit {
    char lease[33];
    int64_t count;         /* records that the server has */
    char head[KX_HEX + 1]; /* after them */
};

/* Those after a->count: an array of texts, taken over. `key` is the lease's audit key. */
int kc_audit_request(const struct kc_audit *a, const struct kc_key *key, json_t *records,
                     struct kc_request *out, struct ct_err *err);

/* 0: count and head are what the server has now, whether it took the records or not; that they are
 * heads of the same chain is for the caller to see. `identity` is kc_exchange_identity(). All else
 * is no answer, and leaves them. */
int kc_audit_take(struct kc_audit *a, const json_t *identity, unsigned status,
                  const uint8_t *answer, size_t n, enum kc_again *again, struct ct_err *err);

#endif
