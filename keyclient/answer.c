#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "keyclient/exchange_parts.h"

enum kc_again kc_code_again(const char *code)
{
    static const char *const later[] = {"rate_limited", "busy", "unavailable"};
    static const char *const anew[] = {"challenge_expired", "challenge_used", "server_key_unknown",
                                       "ticket_unknown",    "ticket_expired", "ticket_used",
                                       "generation_changed"};
    for (size_t i = 0; i < sizeof(later) / sizeof(later[0]); i++) {
        if (strcmp(code, later[i]) == 0) {
            return KC_LATER;
        }
    }
    for (size_t i = 0; i < sizeof(anew) / sizeof(anew[0]); i++) {
        if (strcmp(code, anew[i]) == 0) {
            return KC_ANEW;
        }
    }
    return KC_STAYS;
}

/* Codes come from anybody in between: letters and `_`, or nothing. */
static const char *safe_code(const json_t *value)
{
    const char *code = json_string_value(value);
    size_t n = code ? strlen(code) : 0;
    return n && n < KC_CODE_MAX && strspn(code, "abcdefghijklmnopqrstuvwxyz_") == n ? code
                                                                                    : "no code";
}

static int refusal(const json_t *envelope, unsigned status, enum kc_again *again,
                   struct ct_err *err)
{
    const char *code = safe_code(json_object_get(envelope, "error"));
    const char *sentence = json_string_value(json_object_get(envelope, "message"));
    *again = kc_code_again(code);
    return ct_err_set(
        err, *again == KC_LATER ? CT_IO : CT_DENIED, "the key server refuses: %.300s (%s, HTTP %u)",
        sentence && kx_is_text(sentence, 1000) ? sentence : "no reason given", code, status);
}

json_t *kc_answer(unsigned status, const uint8_t *answer, size_t n, enum kc_again *again,
                  struct ct_err *err)
{
    *again = KC_LATER;
    if (status == 0) {
        ct_err_set(err, CT_IO, "no answer from the key server: %.*s", n < 300 ? (int)n : 300,
                   answer ? (const char *)answer : "");
        return NULL;
    }
    kx_autojson envelope = kx_json_parse(answer, n, NULL);
    if (!envelope) {
        /* A gateway's own page, as long as the server behind it is away. */
        *again = status >= 500 ? KC_LATER : KC_STAYS;
        ct_err_set(err, CT_IO, "the answer (HTTP %u) is not a key server's", status);
        return NULL;
    }
    if (!json_is_true(json_object_get(envelope, "success"))) {
        (void)refusal(envelope, status, again, err);
        return NULL;
    }
    *again = KC_STAYS;
    json_t *data = json_object_get(envelope, "data");
    if (status != 200 || !json_is_object(data)) {
        ct_err_set(err, CT_MALFORMED, "the answer (HTTP %u) has no data", status);
        return NULL;
    }
    return json_incref(data);
}

bool kc_is(const json_t *object, const char *name, const char *text)
{
    const char *have = json_string_value(json_object_get(object, name));
    return have && strcmp(have, text) == 0;
}

bool kc_is_number(const json_t *object, const char *name, int64_t number)
{
    const json_t *value = json_object_get(object, name);
    return json_is_integer(value) && json_integer_value(value) == number;
}

int kc_take_lease(const json_t *value, int64_t sent_ms, struct kc_lease *out, struct ct_err *err)
{
    const char *id = NULL;
    json_int_t seconds = 0;
    json_int_t renew = 0;
    json_int_t grace = 0;
    const int64_t most = 366LL * 86400;
    if (json_unpack((json_t *)value, "{s:s,s:I,s:I,s:I}", "id", &id, "seconds", &seconds, "renew",
                    &renew, "grace", &grace) ||
        !kx_is_hex(id, sizeof(out->id) - 1) || seconds < 1 || seconds > most || renew < 1 ||
        renew > seconds || grace < 0 || grace > most) {
        return ct_err_set(err, CT_MALFORMED, "the lease is malformed");
    }
    memcpy(out->id, id, sizeof(out->id));
    out->sent_ms = sent_ms;
    out->seconds = seconds;
    out->renew = renew;
    out->grace = grace;
    return 0;
}
