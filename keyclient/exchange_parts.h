/* Inside keyclient: shared by exchange.c, release.c, answer.c. */
#ifndef KC_EXCHANGE_PARTS_H
#define KC_EXCHANGE_PARTS_H

#include "keyclient/exchange.h"

#define KC_DEPLOY "/api/deploy/v1"

enum kc_stage { KC_CHALLENGE, KC_ATTEST, KC_KEYS_CALL, KC_RENEW, KC_DONE };
enum { KC_CHALLENGE_MAX = 128, KC_TICKET_MAX = 128, KC_CALLS = 3, KC_KID_MAX = 255 };

struct kc_public { /* an Ed25519 key that the release names */
    char kid[KC_KID_MAX + 1];
    uint8_t pub[CT_ED25519_PUB];
};

struct kc_exchange {
    struct ct_keysource source; /* first: the seam's view of it */
    struct kc_runtime *runtime;
    char model[KC_MODEL_MAX + 1];
    struct kc_shards shards;
    int64_t seen;
    enum kc_stage stage;
    bool held;

    json_t *identity; /* equal to the pin; NULL before the first challenge */

    /* of this run */
    json_t *server_key;
    char challenge[KC_CHALLENGE_MAX + 1];
    char evidence[KX_HEX + 1];
    char ticket[KC_TICKET_MAX + 1];
    char ticket_sha256[KX_HEX + 1];
    char headers_sha256[KX_HEX + 1];
    int64_t ticket_generation;
    int call;

    /* of the release */
    struct kc_lease lease;
    struct ct_secret *master;
    char master_kid[KC_KID_MAX + 1];
    struct kc_public verify, manifest;
    char manifest_sha256[KX_HEX + 1]; /* "" for none */
};

/* The `data` of an envelope, owned by the caller; NULL with err and *again. answer.c */
json_t *kc_answer(unsigned status, const uint8_t *answer, size_t n, enum kc_again *again,
                  struct ct_err *err);
/* Whether a member is this text, or this number. */
bool kc_is(const json_t *object, const char *name, const char *text);
bool kc_is_number(const json_t *object, const char *name, int64_t number);
int kc_take_lease(const json_t *value, int64_t sent_ms, struct kc_lease *out, struct ct_err *err);

/* A checked payload of typ kvfs-release+jws: fills the lease and the keys. release.c */
int kc_take_release(struct kc_exchange *x, const json_t *payload, int64_t sent_ms,
                    struct ct_err *err);
void kc_source_init(struct kc_exchange *x);

#endif
