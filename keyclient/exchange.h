/*
 * The exchange for one model (keyserver/PROTOCOL.md), as a state machine over bytes: kc_next() says
 * what to send, kc_take() is given the answer, until kc_take() says that a lease is held or that
 * there will be none. It does no I/O and knows no clock: the caller passes the time at which a
 * request was sent, in milliseconds of CLOCK_BOOTTIME.
 *
 *     challenge -> attest -> keys (at most two synchronisations) -> release
 *     challenge -> renew                                         -> the lease goes on
 *
 * Everything that is used is signed by the pinned identity. What is not signed (errors, the
 * transport) can end an attempt, and never a lease. One thread at a time.
 */
#ifndef KC_EXCHANGE_H
#define KC_EXCHANGE_H

#include "format/keyring.h"
#include "keyclient/runtime.h"
#include "keyclient/shards.h"

enum { KC_PATH_MAX = 256, KC_CODE_MAX = 48, KC_MODEL_MAX = 129 };

struct kc_request {
    const char *method;     /* "GET", "POST" */
    char path[KC_PATH_MAX]; /* absolute, with the query */
    struct ct_buf body;     /* JSON; the caller's */
};

/* What a failed step calls for. */
enum kc_again {
    KC_STAYS, /* until somebody changes something */
    KC_LATER, /* the same from the start, after a pause that grows */
    KC_ANEW,  /* from the start at once, with a new challenge */
};

enum kc_step { KC_FAILED = -1, KC_GO_ON, KC_HELD };

struct kc_lease {
    char id[33];
    int64_t sent_ms;               /* when what it answers was sent */
    int64_t seconds, renew, grace; /* from then on */
    int64_t generation;
    char assurance[32];
};

struct kc_exchange;

/* `runtime` is borrowed for as long as it lives; shards are taken over. `seen` is the highest
 * generation of this model that was ever seen, 0 for none. */
struct kc_exchange *kc_exchange_new(struct kc_runtime *runtime, const char *model,
                                    struct kc_shards *shards, int64_t seen, struct ct_err *err);
void kc_exchange_free(struct kc_exchange *x); /* wipes the keys; NULL is allowed */

/* From the start, also after a failure, which kc_next() does not go on from. With a lease held it
 * is renewed, else one is asked for. */
void kc_begin(struct kc_exchange *x);
int kc_next(struct kc_exchange *x, struct kc_request *out, struct ct_err *err);
/* `status` is HTTP's, 0 when no answer came (then `answer` is the courier's sentence). On
 * KC_FAILED *again says what that means. Errors: CT_DENIED with the server's sentence; CT_REJECTED
 * for what does not agree with what was sent, or is not signed by the pinned identity. */
enum kc_step kc_take(struct kc_exchange *x, unsigned status, const uint8_t *answer, size_t n,
                     int64_t sent_ms, enum kc_again *again, struct ct_err *err);

/* Gives the lease back. `reason` is for the server's audit (PROTOCOL.md section 8): why this
 * runtime sealed itself, or NULL. What comes of it holds no secret. */
int kc_end_request(struct kc_exchange *x, const char *reason, struct kc_request *out,
                   struct ct_err *err);

/* Once a lease is held. */
const struct kc_lease *kc_lease(const struct kc_exchange *x);
const struct kc_shards *kc_exchange_shards(const struct kc_exchange *x);
struct ct_keysource *kc_exchange_keys(struct kc_exchange *x); /* borrowed */
/* Wipes the released master key, of which nobody may be asking for a copy: from then on there is
 * none. The one thing that another thread than the exchange's may do. */
void kc_exchange_forget(struct kc_exchange *x);
/* The identity that was compared with the pin, for the long poll; borrowed, immutable. */
const json_t *kc_exchange_identity(const struct kc_exchange *x);
/* Digest of the ticket that the lease came of. */
const char *kc_ticket_sha256(const struct kc_exchange *x);
/* Digest that the manifest must have; NULL: the generation has none. */
const char *kc_manifest_sha256(const struct kc_exchange *x);

/* The sentence and kind of a code of section 10. */
enum kc_again kc_code_again(const char *code);

#endif
