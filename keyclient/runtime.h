/*
 * A runtime: who asks a key server for keys. It has three ephemeral P-256 keys, the API key and its
 * measurements, and pins the server's identity. One a process; used by one thread at a time.
 *
 * The audit key outlives ct_secret_wipe_all(): it signs what is said of the sealing, and opens
 * nothing. Private halves and the API key live in secrets; for the moment of a call they are also
 * in JSON memory, which ct_secret_init() makes wipe itself.
 */
#ifndef KC_RUNTIME_H
#define KC_RUNTIME_H

#include "format/base/secret.h"
#include "format/protocol/digest.h"
#include "format/protocol/jose.h"

enum kc_which { KC_SIGN, KC_DECRYPT, KC_AUDIT, KC_KEYS };

enum { KC_API_KEY_MAX = 512, KC_HOST_MAX = 255 };

struct kc_key {
    json_t *public;
    struct ct_secret *d; /* the private member's characters */
    char thumbprint[KX_THUMBPRINT + 1];
};

struct kc_runtime {
    char pin[KX_THUMBPRINT + 1]; /* of the server's identity key */
    char host[KC_HOST_MAX + 1];
    struct ct_secret *api_key; /* its characters */
    struct kc_key keys[KC_KEYS];
    json_t *measurements; /* {"profile", "items"} */
    json_t *guard;        /* its report, for the evidence; see kc_runtime_guard() */
    char measurement[KX_HEX + 1];
};

/* Makes the keys. `api_key` may end with white space, which is left out; measurements are taken
 * over, also on failure. CT_USAGE for a pin that is no thumbprint, CT_NOKEY for what cannot be an
 * API key. To be freed in any case. */
int kc_runtime_init(struct kc_runtime *r, const char *pin, const char *host, const void *api_key,
                    size_t n, json_t *measurements, struct ct_err *err);
void kc_runtime_free(struct kc_runtime *r);

/* One key by itself. To be freed in any case. */
int kc_key_make(struct kc_key *key, struct ct_err *err);
void kc_key_free(struct kc_key *key);
/* The guard's latest report, {"state", "findings"}; taken over. Until then it is said to be off. */
void kc_runtime_guard(struct kc_runtime *r, json_t *report);

/* The key pair as a JWK, for one call; owned by the caller. */
json_t *kc_key_pair(const struct kc_key *key, struct ct_err *err);

/* {"sign", "decrypt", "audit"}: public JWKs, or thumbprints. Owned by the caller. */
json_t *kc_runtime_publics(const struct kc_runtime *r);
json_t *kc_runtime_thumbprints(const struct kc_runtime *r);

#endif
