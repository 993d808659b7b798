#include "keyclient/wait.h"

#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#include "keyclient/exchange_parts.h"

int kc_wait_request(struct kc_wait *w, unsigned seconds, struct kc_request *out, struct ct_err *err)
{
    uint8_t random[(sizeof(w->nonce) - 1) / 2];
    *out = (struct kc_request){.method = "GET"};
    if (RAND_bytes(random, sizeof(random)) != 1) {
        return ct_err_set(err, CT_IO, "no random numbers");
    }
    ct_hex(w->nonce, random, sizeof(random));
    (void)snprintf(out->path, sizeof(out->path),
                   KC_DEPLOY "/leases/%s/wait?nonce=%s&generation=%lld&timeout=%u", w->lease,
                   w->nonce, (long long)w->generation, seconds);
    return 0;
}

static int judge(struct kc_wait *w, const json_t *p, struct ct_err *err)
{
    const json_t *generation = json_object_get(p, "generation");
    const char *reason = json_string_value(json_object_get(p, "reason"));
    if (!kc_is_number(p, "version", 1) || !kc_is(p, "lease", w->lease) ||
        !kc_is(p, "nonce", w->nonce)) {
        return ct_err_set(err, CT_REJECTED, "the state does not answer what was asked");
    }
    reason = reason && kx_is_text(reason, KC_CODE_MAX) ? reason : "no reason given";
    if (kc_is(p, "state", "revoked")) {
        return ct_err_set(err, CT_REVOKED, "the key server revoked the lease (%s)", reason);
    }
    if (kc_is(p, "state", "ended") || kc_is(p, "state", "expired")) {
        return ct_err_set(err, CT_EXPIRED, "the key server says that the lease is over (%s)",
                          reason);
    }
    if (!kc_is(p, "state", "active") || !json_is_integer(generation)) {
        return ct_err_set(err, CT_MALFORMED, "the state is malformed");
    }
    w->generation = json_integer_value(generation);
    return 0;
}

int kc_wait_take(struct kc_wait *w, const json_t *identity, unsigned status, const uint8_t *answer,
                 size_t n, enum kc_again *again, struct ct_err *err)
{
    kx_autojson p = NULL;
    kx_autojson data = kc_answer(status, answer, n, again, err);
    return data && kx_jws_verify(json_object_get(data, "signed"), "kvfs-state+jws", identity, &p,
                                 err) == 0
               ? judge(w, p, err)
               : -1;
}
