/*
 * The long poll: the server answers when a lease is not active any more, when the model's
 * generation is not the one named, and after `seconds` at the latest. Touches no exchange, so that
 * it can run beside one in another thread.
 */
#ifndef KC_WAIT_H
#define KC_WAIT_H

#include "keyclient/exchange.h"

struct kc_wait {
    char lease[33];
    int64_t generation;
    char nonce[33]; /* of the request on its way */
};

/* `seconds`: 1 to 60. */
int kc_wait_request(struct kc_wait *w, unsigned seconds, struct kc_request *out,
                    struct ct_err *err);

/* 0: the lease is active, w->generation is the model's now. `identity` is the public JWK of the
 * pinned identity (kc_exchange_identity()). What the identity signed is believed: CT_REVOKED,
 * CT_EXPIRED (ended or expired). All else is no answer: CT_IO, CT_DENIED, CT_REJECTED,
 * CT_MALFORMED, and the lease goes on. */
int kc_wait_take(struct kc_wait *w, const json_t *identity, unsigned status, const uint8_t *answer,
                 size_t n, enum kc_again *again, struct ct_err *err);

#endif
